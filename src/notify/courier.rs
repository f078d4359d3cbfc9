//! Brings the deliveries of one channel: the longest due first, one after the other, those of one task in their order. A
//! receiver that is slow or dead makes its own channel wait and nobody else.

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
use crate::stream::publish::{Publisher, Writable};
use crate::task::registry::Registry;

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
    /// Who knows whether the clock is believed.
    pub registry: Registry,
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
            self.until_writable().await;
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
                    // The receiver may be away: the others wait a little with this one, and those of the same task
                    // until this one is done with.
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

    /// Waits until what becomes of a delivery can be written down: one that was sent and not noted is sent again.
    async fn until_writable(&self) {
        // The writer is gone with the server: nothing changes then.
        let _ = self.publisher.writable().wait_for(|writable| *writable == Writable::Yes).await;
    }

    /// Waits until something is due, or may be.
    async fn until(&self, next: Option<Timestamp>) {
        loop {
            tokio::select! {
                () = self.bell.notified() => return,
                () = tokio::time::sleep(LOOK), if next.is_some() => {}
            }
            let now = self.now();
            if next.is_some_and(|next| !ledger::is_ahead(next, now, ledger::LONGEST_WAIT)) {
                return;
            }
        }
    }

    /// What is taken for the time: what a jump of the clock makes old or due waits until that is believed.
    fn now(&self) -> Timestamp {
        self.registry.look().believed()
    }

    async fn bring_due(&self) -> Result<Round, StoreError> {
        let now = self.now();
        let name = self.channel.name.clone();
        let quiet_until = self.channel.config.quiet.as_ref().and_then(|hours| quiet::until(hours, now));
        let read = move |connection: &rusqlite::Connection| {
            let due = if quiet_until.is_some() { ledger::due_to_hold } else { ledger::due };
            let due = due(connection, &name, now, BATCH)?;
            let next = if due.is_empty() { ledger::next_due(connection, &name, now)? } else { None };
            Ok((due, next))
        };
        let (mut due, next) = self.store.read(read).await?;
        if due.is_empty() {
            return Ok(Round::Nothing(next));
        }
        if let Some(end) = quiet_until {
            self.note(&due, |_| Outcome::Held(end)).await?;
            return Ok(Round::Arrived);
        }
        let was_held = due.iter().filter(|delivery| delivery.state == State::Held).count() > 1;
        let bundle = self.channel.bundles() && (was_held || due.len() >= BUNDLE_FROM);
        if !bundle {
            due.truncate(1);
        }
        due.sort_by_key(|delivery| delivery.n);
        self.bring(&due).await
    }

    async fn bring(&self, due: &[Delivery]) -> Result<Round, StoreError> {
        let Some(first) = due.first() else { return Ok(Round::Arrived) };
        failpoint::hit("decided-not-sent");
        let members = due.iter().map(|delivery| (delivery.id.as_str(), &delivery.notice)).collect();
        let parcel = Parcel { members };
        let done = self.channel.send(&parcel, self.publisher.clock().now()).await;
        failpoint::hit("sent-not-noted");
        let channel = &self.channel.name;
        match done {
            Ok(refused) => {
                info!(channel, id = first.id, event = first.event.as_str(), count = due.len(), "told");
                self.note(due, |_| Outcome::Sent(refused.clone())).await?;
                Ok(Round::Arrived)
            }
            Err(Trouble::Never(why)) => {
                warn!(channel, id = first.id, why, "a notification was refused for good");
                self.note(due, |_| Outcome::GivenUp(why.clone())).await?;
                Ok(Round::Arrived)
            }
            Err(Trouble::Later(why)) => {
                debug!(channel, id = first.id, why, "a notification did not arrive");
                // The clock may have gone on while the receiver was waited for.
                let now = self.now();
                self.note(due, |delivery| self.again(delivery, &why, now)).await?;
                Ok(Round::Failed)
            }
        }
    }

    /// What becomes of one of those that did not arrive together: each has its own age and its own tries.
    fn again(&self, delivery: &Delivery, why: &str, now: Timestamp) -> Outcome {
        let channel = &self.channel.name;
        let outcome = after_trouble(delivery.at, delivery.attempts, self.retry, self.give_up, now, why);
        if matches!(outcome, Outcome::GivenUp(_)) {
            warn!(channel, id = delivery.id, why, "a notification did not arrive for too long and is given up");
        } else if delivery.attempts == 0 {
            warn!(channel, id = delivery.id, why, "a notification did not arrive; it is tried again");
        }
        outcome
    }

    /// Writes down what became of deliveries, however long that takes: until then nothing else is sent, and these not
    /// again.
    async fn note(&self, deliveries: &[Delivery], outcome: impl Fn(&Delivery) -> Outcome) -> Result<(), StoreError> {
        let outcomes: Vec<(i64, Outcome)> = deliveries.iter().map(|delivery| (delivery.n, outcome(delivery))).collect();
        let (kind, now) = (self.channel.kind(), self.now());
        loop {
            let act = || {
                let outcomes = outcomes.clone();
                move |connection: &rusqlite::Connection| -> Result<_, StoreError> {
                    for (n, outcome) in &outcomes {
                        ledger::note_outcome(connection, kind, *n, outcome, now)?;
                    }
                    Ok(((), Vec::new()))
                }
            };
            match self.publisher.save(act).await {
                Err(StoreError::Broken(error)) => {
                    warn!(channel = self.channel.name, error, "what was told could not be written down; tried again");
                    tokio::time::sleep(LOOK).await;
                }
                done => return done.map(drop),
            }
        }
    }
}

/// What becomes of a delivery that did not arrive, made at that moment and tried so often before: it is tried again,
/// unless it is too old. Pure.
fn after_trouble(
    made: Timestamp,
    tries_before: u32,
    retry: Duration,
    give_up: SignedDuration,
    now: Timestamp,
    why: &str,
) -> Outcome {
    if now.duration_since(made) >= give_up {
        return Outcome::GivenUp(why.to_owned());
    }
    let pause = rules::pause(retry, tries_before.saturating_add(1));
    let pause = SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX);
    Outcome::Again(now.checked_add(pause).unwrap_or(Timestamp::MAX), why.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_that_did_not_arrive_together_each_is_given_up_by_its_own_age() {
        let now = Timestamp::from_second(1_780_000_000).unwrap();
        let day = SignedDuration::from_hours(24);
        let fate = |made, tries| after_trouble(made, tries, Duration::from_secs(10), day, now, "away");
        let again = |seconds| Outcome::Again(now + SignedDuration::from_secs(seconds), "away".to_owned());
        assert_eq!(fate(now - day, 30), Outcome::GivenUp("away".to_owned()));
        assert_eq!(fate(now, 0), again(10));
        assert_eq!(fate(now - SignedDuration::from_hours(1), 3), again(80));
    }
}
