//! Telling people what happened by other ways than the page: webhook, push, mail, signs of life.
//!
//! What happens is noted by the store itself, in the transaction in which it happens (`ledger`). From there `witness`
//! decides who is told, and each channel has a `courier` who brings it. In memory there is nothing that could be lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config;
use crate::event::TaskId;
use crate::failpoint;
use crate::store::{Store, StoreError, TaskNo};
use crate::stream::publish::Publisher;
use crate::task::registry::{Registry, Task};
use crate::task::telling::Occasion;
use channel::{Channel, Unreached};
use courier::Courier;
use ledger::{Delivery, Outcome, Summary};
use notice::Notice;
use sending::{Parcel, Trouble};
use witness::Witness;

pub mod channel;
pub mod courier;
mod digest;
mod healthchecks;
pub mod ledger;
mod mail;
pub mod notice;
mod ntfy;
pub mod quiet;
pub mod rules;
pub mod sending;
mod webhook;
pub mod witness;

/// How often it is looked whether something was noted, should nothing say so.
const LOOK: Duration = Duration::from_secs(5);

/// How often the clock is looked at for what was held back.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

/// How long what happens is gathered before it is looked at: nobody is told within milliseconds.
const BREATH: Duration = Duration::from_millis(50);

/// How many tests are under way at once.
const TESTS: usize = 4;

/// How long it may take at most, once a test was sent, to write down what became of it: then it is sent again.
const NOTED_WITHIN: Duration = Duration::from_secs(60);

/// Tells people. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Notifier {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    witness: Witness,
    channels: BTreeMap<String, (Arc<Channel>, Arc<Notify>)>,
    registry: Registry,
    publisher: Publisher,
    store: Arc<Store>,
    keep: u32,
    retry: Duration,
    give_up: SignedDuration,
    tests: Semaphore,
}

/// A channel as clients see it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ChannelView {
    /// Its name.
    pub name: String,
    /// `webhook`, `ntfy`, `mail` or `healthchecks`.
    pub kind: &'static str,
    /// What is told by it.
    pub on: Vec<Occasion>,
    /// Whether it is told of tasks that name no channels.
    pub every_task: bool,
    /// Whether it has quiet hours.
    pub quiet: Option<String>,
    /// How it stands.
    #[serde(flatten)]
    pub summary: Summary,
}

/// Why a test was not made.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// There is no such channel.
    #[error("there is no channel {0:?}: config.toml names them under [notify.channels]")]
    NoChannel(String),
    /// A service that waits for signs of life has one check for each task.
    #[error("signs of life belong to a task: name one with a check in its [notify]")]
    NoCheck,
    /// Others are under way.
    #[error("{TESTS} tests are under way already: wait for them")]
    Busy,
    /// What became of it could not be written down.
    #[error("the test {became}, but that could not be written down ({error}): once it can, the test is sent again")]
    Unnoted {
        /// What became of it.
        became: String,
        /// Why it could not.
        error: StoreError,
    },
    /// The store failed, and nothing was sent.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Notifier {
    /// Knows the channels; nothing is noted before [`Notifier::begin`]. Links lead to `page`, where nothing else is
    /// configured.
    pub fn new(
        config: &config::Notify,
        registry: Registry,
        publisher: Publisher,
        store: Arc<Store>,
        page: String,
        own_port: Option<u16>,
    ) -> Self {
        let channel = |(name, one): (&String, &config::channels::Channel)| {
            let channel = Channel::new(name.clone(), one.clone(), config.timeout, own_port);
            (name.clone(), (Arc::new(channel), Arc::new(Notify::new())))
        };
        let channels: BTreeMap<_, _> = config.channels.iter().map(channel).collect();
        let witness = Witness {
            channels: channels.values().map(|(channel, _)| Arc::clone(channel)).collect(),
            repeat: length(config.repeat),
            hourly: config.hourly as usize,
            slow: config.slow,
            page: if config.page.is_empty() { page } else { config.page.clone() },
        };
        let shared = Shared {
            witness,
            channels,
            registry,
            publisher,
            store,
            keep: config.keep,
            retry: config.retry,
            give_up: length(config.give_up),
            tests: Semaphore::new(TESTS),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Has what happens noted from now on, if there is anybody to be told. To be called before anything happens.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn begin(&self) -> Result<(), StoreError> {
        let names: Vec<String> = self.shared.channels.keys().cloned().collect();
        for (name, (channel, _)) in &self.shared.channels {
            if let Err(why) = channel.has_its_secrets() {
                warn!(channel = name, why, "nobody can be told by this channel: its secrets are read anew each time");
            }
        }
        let starts = self.shared.witness.channels.iter().any(|channel| channel.is_pulse());
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            ledger::drop_unknown(connection, &names)?;
            if names.is_empty() {
                // What was noted for channels of before is for nobody.
                ledger::note_decided(connection, i64::MAX)?;
            } else {
                ledger::note_from_now_on(connection, starts)?;
            }
            Ok(((), Vec::new()))
        };
        self.shared.publisher.transact(act).await.map(drop)
    }

    /// Decides and brings until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        if self.shared.channels.is_empty() {
            return;
        }
        let mut couriers = JoinSet::new();
        for (channel, bell) in self.shared.channels.values() {
            let courier = Courier {
                channel: Arc::clone(channel),
                store: Arc::clone(&self.shared.store),
                publisher: self.shared.publisher.clone(),
                registry: self.shared.registry.clone(),
                bell: Arc::clone(bell),
                retry: self.shared.retry,
                give_up: self.shared.give_up,
            };
            couriers.spawn(courier.run(stop.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.decide_all() => {}
        }
        while couriers.join_next().await.is_some() {}
    }

    async fn decide_all(&self) {
        let mut next_held = None;
        loop {
            match self.decide_noted().await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => warn!(%error, "what happened could not be read for notifications; tried again"),
            }
            match self.tell_held_back(next_held).await {
                Ok(next) => next_held = next,
                Err(error) => warn!(%error, "what was held back could not be told; tried again"),
            }
            tokio::select! {
                () = self.shared.publisher.changes().noted() => tokio::time::sleep(BREATH).await,
                () = tokio::time::sleep(if next_held.is_some() { LOOK_AT_CLOCK } else { LOOK }) => {}
            }
        }
    }

    /// Decides some of what was noted. False when there was nothing.
    async fn decide_noted(&self) -> Result<bool, StoreError> {
        let read = |connection: &Connection| {
            let happenings = ledger::undecided(connection, rules::USUAL_OF)?;
            let tasks: std::collections::BTreeSet<TaskNo> = happenings.iter().map(|one| one.task).collect();
            let standings = tasks.into_iter().map(|no| Ok((no, ledger::standing(connection, no)?)));
            Ok((standings.collect::<rusqlite::Result<HashMap<_, _>>>()?, happenings))
        };
        let (standings, happenings) = self.shared.store.read(read).await?;
        let Some(last) = happenings.last().map(|happening| happening.n) else { return Ok(false) };
        failpoint::hit("ended-not-decided");
        let now = self.now();
        let decided = self.shared.witness.decide(&happenings, &self.tasks(), standings, now);
        let rung: Vec<String> = decided.drafts.iter().map(|draft| draft.channel.clone()).collect();
        let keep = self.shared.keep;
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            for (task, standing) in &decided.standings {
                ledger::set_standing(connection, *task, standing)?;
            }
            ledger::add_all(connection, &decided.drafts, now)?;
            if !decided.drafts.is_empty() {
                ledger::forget_oldest(connection, keep)?;
            }
            ledger::note_decided(connection, last)?;
            Ok(((), Vec::new()))
        };
        self.shared.publisher.transact(act).await?;
        self.ring(&rung);
        Ok(true)
    }

    /// Tells what was held back, where there is room again. Gives when there is next.
    async fn tell_held_back(&self, next: Option<Timestamp>) -> Result<Option<Timestamp>, StoreError> {
        let now = self.now();
        if next.is_some_and(|next| ledger::is_ahead(next, now, rules::LONGEST_HOLD)) {
            return self.shared.store.read(ledger::next_standing).await;
        }
        let read = move |connection: &Connection| {
            let due = ledger::standings_due(connection, now)?;
            let due = due.into_iter().map(|no| Ok((no, ledger::standing(connection, no)?)));
            Ok((due.collect::<rusqlite::Result<Vec<_>>>()?, ledger::next_standing(connection)?))
        };
        let (mut due, next) = self.shared.store.read(read).await?;
        if due.is_empty() {
            return Ok(next);
        }
        let tasks = self.tasks();
        let mut drafts = Vec::new();
        for (no, standing) in &mut due {
            match tasks.get(no) {
                Some(task) => drafts.extend(self.shared.witness.catch_up(task, standing, now)),
                None => *standing = rules::Standing::default(),
            }
        }
        let rung: Vec<String> = drafts.iter().map(|draft| draft.channel.clone()).collect();
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            for (task, standing) in &due {
                ledger::set_standing(connection, *task, standing)?;
            }
            ledger::add_all(connection, &drafts, now)?;
            Ok((ledger::next_standing(connection)?, Vec::new()))
        };
        let (next, _) = self.shared.publisher.transact(act).await?;
        self.ring(&rung);
        Ok(next)
    }

    /// What is taken for the time, of which all that is told goes: see `courier`.
    fn now(&self) -> Timestamp {
        self.shared.registry.look().believed()
    }

    fn ring(&self, channels: &[String]) {
        for (_, bell) in channels.iter().filter_map(|name| self.shared.channels.get(name)) {
            bell.notify_one();
        }
    }

    fn tasks(&self) -> HashMap<TaskNo, Arc<Task>> {
        self.shared.registry.all().into_iter().map(|task| (task.no, task)).collect()
    }

    /// Deliveries, the newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(&self, query: ledger::Query, most: usize) -> Result<Vec<Delivery>, StoreError> {
        self.shared.store.read(move |connection| ledger::list(connection, &query, most)).await
    }

    /// The channels, and how each stands.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn channels(&self) -> Result<Vec<ChannelView>, StoreError> {
        let names: Vec<String> = self.shared.channels.keys().cloned().collect();
        let read = move |connection: &Connection| {
            names.iter().map(|name| ledger::summary(connection, name)).collect::<rusqlite::Result<Vec<_>>>()
        };
        let summaries = self.shared.store.read(read).await?;
        let view = |(channel, summary): (&Arc<Channel>, Summary)| ChannelView {
            name: channel.name.clone(),
            kind: channel.kind(),
            on: if channel.is_pulse() { Vec::new() } else { channel.config.on.clone() },
            every_task: channel.config.every_task,
            quiet: channel.config.quiet.as_ref().map(|quiet| {
                let zone = quiet.zone.iana_name().unwrap_or_default();
                format!("{}-{} {zone}", quiet.from.strftime("%H:%M"), quiet.to.strftime("%H:%M")).trim_end().to_owned()
            }),
            summary,
        };
        Ok(self.shared.channels.values().map(|(channel, _)| channel).zip(summaries).map(view).collect())
    }

    /// Whether the receiver of each channel can be reached, as far as that shows without sending. All at once.
    pub async fn reach(&self) -> Vec<(String, Result<(), Unreached>)> {
        let looks = self.shared.channels.iter().map(|(name, (channel, _))| {
            let channel = Arc::clone(channel);
            (name.clone(), tokio::spawn(async move { channel.reach().await }))
        });
        let looks: Vec<_> = looks.collect();
        let mut reached = Vec::new();
        for (name, look) in looks {
            reached.push((name, look.await.unwrap_or_else(|error| Err(Unreached::Receiver(error.to_string())))));
        }
        reached
    }

    /// The channel of this name.
    ///
    /// # Errors
    /// [`TestError::NoChannel`].
    pub fn channel(&self, name: &str) -> Result<&Arc<Channel>, TestError> {
        self.known(name).map(|(channel, _)| channel)
    }

    /// The channel of this name, and what wakes its courier.
    fn known(&self, name: &str) -> Result<&(Arc<Channel>, Arc<Notify>), TestError> {
        self.shared.channels.get(name).ok_or_else(|| TestError::NoChannel(name.chars().take(80).collect()))
    }

    /// Sends a test now, past queue and quiet hours, and gives it as it was delivered or not. It is written down before
    /// it is sent: where that cannot be done, nothing is.
    ///
    /// # Errors
    /// [`TestError`]: nothing was sent, or it is not known any more what became of it.
    pub async fn test(&self, name: &str, task: Option<&TaskId>) -> Result<Delivery, TestError> {
        let (channel, bell) = self.known(name)?;
        let now = self.now();
        let mut notice = Notice::new(Occasion::Test, now, notice::words(Occasion::Test, "", None, &blank(now)));
        notice.url = Some(self.shared.witness.page.trim_end_matches('/').to_owned());
        if let Some(task) = task.and_then(|id| self.shared.registry.get(id)) {
            notice.check.clone_from(&task.definition.notify.check);
            notice.task = Some(task.id.clone());
        }
        if channel.is_pulse() && notice.check.is_none() {
            return Err(TestError::NoCheck);
        }
        let (notifier, channel, bell) = (self.clone(), Arc::clone(channel), Arc::clone(bell));
        // To its end also when the one who asked hangs up: what was sent is written down.
        let sent = tokio::spawn(async move { notifier.send_test(&channel, &bell, notice, now).await });
        sent.await.map_err(|error| StoreError::Broken(error.to_string()))?
    }

    async fn send_test(
        &self,
        channel: &Channel,
        bell: &Notify,
        notice: Notice,
        now: Timestamp,
    ) -> Result<Delivery, TestError> {
        let _permit = self.shared.tests.try_acquire().map_err(|_| TestError::Busy)?;
        let publisher = &self.shared.publisher;
        let id = format!("msg_{}", uuid::Uuid::now_v7().simple());
        let draft = channel.draft(format!("test/{id}"), notice.clone());
        let until = now.saturating_add(length(channel.takes_at_most() + NOTED_WITHIN)).unwrap_or(Timestamp::MAX);
        let (key, keep, kind) = (id.clone(), self.shared.keep, channel.kind());
        let make = move |connection: &Connection| -> Result<_, StoreError> {
            Ok((ledger::add_brought(connection, &key, &draft, now, until)?, Vec::new()))
        };
        let (n, _) = publisher.transact(make).await?;
        let done = channel.send(&Parcel { members: vec![(&id, &notice)] }, publisher.clock().now()).await;
        failpoint::hit("sent-not-noted");
        let (became, outcome) = match done {
            Ok(refused) => ("was sent".to_owned(), Outcome::Sent(refused)),
            Err(Trouble::Later(why) | Trouble::Never(why)) => {
                (format!("did not arrive ({why})"), Outcome::GivenUp(why))
            }
        };
        let note = move |connection: &Connection| -> Result<_, StoreError> {
            ledger::note_outcome(connection, kind, n, &outcome, now)?;
            ledger::forget_oldest(connection, keep)?;
            Ok((ledger::one(connection, n)?, Vec::new()))
        };
        let noted = publisher.transact(note).await;
        // Where it is not written down it may be its courier's own; what else is told of the task has waited for it.
        bell.notify_one();
        match noted {
            Ok((delivery, _)) => Ok(delivery),
            Err(error) => Err(TestError::Unnoted { became, error }),
        }
    }
}

fn blank(now: Timestamp) -> Notice {
    Notice::new(Occasion::Test, now, "")
}

fn length(length: Duration) -> SignedDuration {
    SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX)
}
