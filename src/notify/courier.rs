//! Brings the deliveries of one channel: the longest due first, one after the other. A receiver that is slow or dead
//! makes its own channel wait and nobody else.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::channel::Channel;
use super::ledger::{self, Delivery, Outcome, State};
use super::sending::{Parcel, Trouble};
use super::{quiet, rules};
use crate::failpoint;
use crate::store::{Store, StoreError};
use crate::stream::publish::Publisher;

/// How many deliveries are read at once.
const BATCH: usize = 64;

/// From how many that are due at once on they are one message, where the channel takes that.
const BUNDLE_FROM: usize = 4;

/// How often the clock is looked at, which may have been set, or stood still while the machine slept.
const LOOK: Duration = Duration::from_secs(1);

/// Brings what one channel is told.
#[derive(Debug)]
pub struct Courier {
    /// The channel.
    pub channel: Arc<Channel>,
    /// Where deliveries are.
    pub store: Arc<Store>,
    /// Where what became of them is written.
    pub publisher: Publisher,
    /// Rung when there is a new one.
    pub bell: Arc<Notify>,
    /// The first pause before another try.
    pub retry: Duration,
    /// How long a delivery is tried.
    pub give_up: SignedDuration,
}

impl Courier {
    /// Brings deliveries until told to stop. What is under way then is brought again after the next start.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.bring_all() => {}
        }
    }

    async fn bring_all(&self) {
        let mut failures = 0;
        loop {
            // A ring since the last look has left a permit behind.
            let pause = match self.bring_due().await {
                Ok(Round::Nothing(next)) => {
                    self.until(next).await;
                    continue;
                }
                Ok(Round::Arrived) => {
                    failures = 0;
                    continue;
                }
                Ok(Round::Failed) => {
                    // The receiver may be away: the others wait with this one.
                    failures += 1;
                    rules::pause(self.retry, failures)
                }
                Err(error) => {
                    warn!(channel = self.channel.name, %error, "notifications wait for the store");
                    LOOK
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits until something is due, or may be.
    async fn until(&self, next: Option<Timestamp>) {
        loop {
            tokio::select! {
                () = self.bell.notified() => return,
                () = tokio::time::sleep(LOOK), if next.is_some() => {}
            }
            if next.is_some_and(|next| next <= self.publisher.clock().now()) {
                return;
            }
        }
    }

    async fn bring_due(&self) -> Result<Round, StoreError> {
        let now = self.publisher.clock().now();
        let name = self.channel.name.clone();
        let read = move |connection: &rusqlite::Connection| {
            let due = ledger::due(connection, &name, now, BATCH)?;
            let next = if due.is_empty() { ledger::next_due(connection, &name)? } else { None };
            Ok((due, next))
        };
        let (mut due, next) = self.store.read(read).await?;
        if due.is_empty() {
            return Ok(Round::Nothing(next));
        }
        if let Some(end) = self.channel.config.quiet.as_ref().and_then(|hours| quiet::until(hours, now)) {
            self.note(&due, Outcome::Held(end)).await?;
            return Ok(Round::Arrived);
        }
        let was_held = due.iter().filter(|delivery| delivery.state == State::Held).count() > 1;
        let bundle = self.channel.bundles() && (was_held || due.len() >= BUNDLE_FROM);
        if !bundle {
            due.truncate(1);
        }
        due.sort_by_key(|delivery| delivery.n);
        self.bring(&due, now).await
    }

    async fn bring(&self, due: &[Delivery], now: Timestamp) -> Result<Round, StoreError> {
        let Some(first) = due.first() else { return Ok(Round::Arrived) };
        failpoint::hit("decided-not-sent");
        let parcel = Parcel { id: &first.id, notices: due.iter().map(|delivery| &delivery.notice).collect() };
        let done = self.channel.send(&parcel, now).await;
        failpoint::hit("sent-not-noted");
        let channel = &self.channel.name;
        let (outcome, round) = match done {
            Ok(()) => {
                info!(channel, id = first.id, event = first.event.as_str(), count = due.len(), "told");
                (Outcome::Sent, Round::Arrived)
            }
            Err(Trouble::Never(why)) => {
                warn!(channel, id = first.id, why, "a notification was refused for good");
                (Outcome::GivenUp(why), Round::Arrived)
            }
            Err(Trouble::Later(why)) => {
                debug!(channel, id = first.id, why, "a notification did not arrive");
                self.again(first, why)
            }
        };
        self.note(due, outcome).await?;
        Ok(round)
    }

    fn again(&self, first: &Delivery, why: String) -> (Outcome, Round) {
        // The clock may have gone on while the receiver was waited for.
        let now = self.publisher.clock().now();
        let channel = &self.channel.name;
        if now.duration_since(first.at) >= self.give_up {
            warn!(channel, id = first.id, why, "a notification did not arrive for too long and is given up");
            return (Outcome::GivenUp(why), Round::Failed);
        }
        let attempts = first.attempts + 1;
        if attempts == 1 {
            warn!(channel, id = first.id, why, "a notification did not arrive; it is tried again");
        }
        let pause = SignedDuration::try_from(rules::pause(self.retry, attempts)).unwrap_or(SignedDuration::MAX);
        (Outcome::Again(now.checked_add(pause).unwrap_or(Timestamp::MAX), why), Round::Failed)
    }

    async fn note(&self, deliveries: &[Delivery], outcome: Outcome) -> Result<(), StoreError> {
        let numbers: Vec<i64> = deliveries.iter().map(|delivery| delivery.n).collect();
        let (kind, now) = (self.channel.kind(), self.publisher.clock().now());
        let act = move |connection: &rusqlite::Connection| -> Result<_, StoreError> {
            ledger::note_outcome(connection, kind, &numbers, &outcome, now)?;
            Ok(((), Vec::new()))
        };
        self.publisher.transact(act).await.map(drop)
    }
}

/// What one look came to.
enum Round {
    /// Nothing was due; this is when the next is.
    Nothing(Option<Timestamp>),
    /// What was tried is done with.
    Arrived,
    /// It did not arrive.
    Failed,
}
