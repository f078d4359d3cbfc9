//! What the server does for itself: a few chores, each due from time to time. The bell rings; here it is decided what
//! is due, by what the store has of the last time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, params};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::schedule::plan;
use crate::store::{Store, StoreError};
use crate::stream::checkpoint::Checkpointer;
use crate::stream::publish::Publisher;
use crate::task::registry::Registry;
use retention::{Retention, Swept};

pub mod backup;
pub mod retention;
pub mod vacuum;

/// How often it is looked by itself what is due, should the bell be dead.
const LOOK_AGAIN: Duration = Duration::from_secs(120);
/// Chores that come more often than this have the bell ring each second.
const OFTEN: Duration = Duration::from_secs(60);

/// How often a checkpoint is tried while somebody reads, and how long after the last try.
const CHECKPOINT_TRIES: u32 = 40;
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(250);

/// One thing that the server does for itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Chore {
    /// What is no longer kept goes.
    Retention,
    /// The write-ahead log is emptied and cut.
    Checkpoint,
    /// Room that is not needed is given back.
    Vacuum,
    /// The store is looked through for damage.
    Integrity,
    /// A copy of the store is made.
    Backup,
}

impl Chore {
    /// All, in the order in which they are done when several are due.
    pub const ALL: [Self; 5] = [Self::Retention, Self::Vacuum, Self::Checkpoint, Self::Integrity, Self::Backup];

    /// Its name on the wire and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retention => "retention",
            Self::Checkpoint => "checkpoint",
            Self::Vacuum => "vacuum",
            Self::Integrity => "integrity",
            Self::Backup => "backup",
        }
    }

    /// What it does, in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Retention => "Removes what is no longer kept",
            Self::Checkpoint => "Empties the store's log",
            Self::Vacuum => "Gives unused room back",
            Self::Integrity => "Looks through the store for damage",
            Self::Backup => "Makes a copy of the store",
        }
    }

    /// The chore of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|chore| chore.name() == name)
    }
}

/// How a chore went last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Last {
    /// When it began.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Whether it could be done.
    pub ok: bool,
    /// What came of it, in words.
    pub result: String,
}

/// How a chore stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChoreState {
    /// Which.
    pub chore: Chore,
    /// How often it is due; nothing for one that is off.
    pub every: Option<Duration>,
    /// Whether somebody wants it now, and it waits for its turn.
    pub asked: bool,
    /// Since when it is under way.
    pub running: Option<Timestamp>,
    /// How it went last.
    pub last: Option<Last>,
    /// When it is due.
    pub next: Option<Timestamp>,
}

/// When a chore is due that is due so often: at once, where it never was done, or where the last time lies ahead, as
/// after a clock that was wrong.
fn due(last: Option<Timestamp>, every: Duration, now: Timestamp) -> Timestamp {
    match last {
        Some(last) if last <= now => last.checked_add(every).unwrap_or(Timestamp::MAX),
        _ => now,
    }
}

/// The moment at which a chore begins.
#[derive(Clone, Copy, Debug)]
struct Moment {
    now: Timestamp,
    /// Whether the clock can be believed: by one that is wrong everything may be old.
    is_believed: bool,
}

/// What is remembered of the chores while the server lives.
#[derive(Debug, Default)]
struct Ledger {
    last: BTreeMap<Chore, Last>,
    running: Option<(Chore, Timestamp)>,
    /// Those that somebody wants now.
    asked: BTreeSet<Chore>,
}

/// Carries the chores out, one after the other. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Housekeeping {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    publisher: Publisher,
    retention: Retention,
    output_dir: Arc<Path>,
    every: BTreeMap<Chore, Duration>,
    backup: config::Backup,
    ledger: Mutex<Ledger>,
    wake: Arc<Notify>,
    /// What could not be done, for those who should be told.
    trouble: watch::Sender<Vec<(Chore, String)>>,
    /// One copy at a time: by the chore, or for somebody who asked.
    copying: Arc<tokio::sync::Mutex<()>>,
}

impl Housekeeping {
    /// The chores as configured, with how each went last.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn load(
        config: &Config,
        store: &Arc<Store>,
        publisher: Publisher,
        registry: Registry,
        output_dir: Arc<Path>,
    ) -> Result<Self, StoreError> {
        let mut every = BTreeMap::from([
            (Chore::Retention, config.retention.every),
            (Chore::Checkpoint, config.housekeeping.checkpoint),
            (Chore::Vacuum, config.housekeeping.vacuum),
            (Chore::Integrity, config.housekeeping.integrity),
        ]);
        if !config.backup.folder.as_os_str().is_empty() {
            every.insert(Chore::Backup, config.backup.every);
        }
        let last = store.read(read_last).await?;
        let retention = Retention {
            registry,
            publisher: publisher.clone(),
            store: Arc::clone(store),
            limits: config.retention.clone(),
            output_dir: Arc::clone(&output_dir),
            sizes: Mutex::default(),
        };
        let shared = Shared {
            store: Arc::clone(store),
            publisher,
            retention,
            output_dir,
            every,
            backup: config.backup.clone(),
            trouble: watch::Sender::new(trouble_of(&last)),
            ledger: Mutex::new(Ledger { last, ..Ledger::default() }),
            wake: Arc::default(),
            copying: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Rung when something may be due.
    pub fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.shared.wake)
    }

    /// Whether the bell has to ring each second, or once a minute.
    pub fn is_often(&self) -> bool {
        self.shared.every.values().any(|every| *every < OFTEN)
    }

    /// What could not be done, and when that changes.
    pub fn trouble(&self) -> watch::Receiver<Vec<(Chore, String)>> {
        self.shared.trouble.subscribe()
    }

    /// Held by whoever copies the store.
    pub fn copying(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.shared.copying)
    }

    /// How each chore stands.
    pub fn states(&self) -> Vec<ChoreState> {
        let now = self.clock().now();
        let ledger = self.ledger();
        Chore::ALL.into_iter().map(|chore| self.state_of(&ledger, chore, now)).collect()
    }

    fn state_of(&self, ledger: &Ledger, chore: Chore, now: Timestamp) -> ChoreState {
        let every = self.shared.every.get(&chore).copied();
        let last = ledger.last.get(&chore).cloned();
        let running = ledger.running.filter(|(running, _)| *running == chore).map(|(_, since)| since);
        let asked = ledger.asked.contains(&chore);
        let due = |every| due(last.as_ref().map(|last| last.at), every, now);
        let next = every.map(|every| if asked { now } else { due(every) });
        ChoreState { chore, every, asked, running, last, next }
    }

    /// Has a chore done now. False for one that is off.
    pub fn ask(&self, chore: Chore) -> bool {
        let is_on = self.shared.every.contains_key(&chore);
        if is_on {
            self.ledger().asked.insert(chore);
            self.shared.wake.notify_one();
        }
        is_on
    }

    /// Does what is due whenever the bell rings, until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            let mut done = BTreeSet::new();
            while !stop.is_cancelled() {
                let moment = self.look();
                let Some(chore) = self.next_due(&done, moment.now) else { break };
                self.carry_out(chore, moment, &stop).await;
                done.insert(chore);
            }
        }
    }

    /// Looks at the clock. It is believed where schedules are: not for a minute after it jumped forward, and not far
    /// behind what is stored.
    fn look(&self) -> Moment {
        let registry = &self.shared.retention.registry;
        let look = registry.look();
        let held = plan::held_until(registry.last_stored(), look.now).is_some();
        Moment { now: look.now, is_believed: look.is_believed() && !held }
    }

    /// The first that is due and was not done in this round: one that is due again at once lets the others go first.
    fn next_due(&self, done: &BTreeSet<Chore>, now: Timestamp) -> Option<Chore> {
        let ledger = self.ledger();
        let is_due = |chore: &Chore| {
            ledger.asked.contains(chore)
                || self.state_of(&ledger, *chore, now).next.is_some_and(|next| next <= now && !done.contains(chore))
        };
        Chore::ALL.into_iter().find(is_due)
    }

    async fn carry_out(&self, chore: Chore, moment: Moment, stop: &CancellationToken) {
        let (at, began) = (moment.now, Instant::now());
        {
            let mut ledger = self.ledger();
            ledger.running = Some((chore, at));
            ledger.asked.remove(&chore);
        }
        // In a task of its own: a chore that panics is one that failed.
        let (this, stopped) = (self.clone(), stop.clone());
        let done = tokio::spawn(async move { this.act(chore, moment, stopped).await }).await;
        let done = done.unwrap_or_else(|error| Err(format!("it ended by a panic: {error}")));
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if done.is_err() && stop.is_cancelled() {
            // Given up for the stop: it is due again at the next start.
            self.ledger().running = None;
            return;
        }
        let last = match done {
            Ok(result) => {
                info!(chore = chore.name(), duration_ms, "{result}");
                Last { at, duration_ms, ok: true, result }
            }
            Err(result) => {
                error!(chore = chore.name(), duration_ms, "housekeeping failed: {result}");
                Last { at, duration_ms, ok: false, result }
            }
        };
        let row = last.clone();
        let note = move |connection: &Connection| -> Result<_, StoreError> {
            write_last(connection, chore, &row)?;
            Ok(((), Vec::new()))
        };
        let trouble = {
            let mut ledger = self.ledger();
            ledger.running = None;
            ledger.last.insert(chore, last);
            trouble_of(&ledger.last)
        };
        if let Err(error) = self.shared.publisher.transact(note).await {
            error!(chore = chore.name(), %error, "how housekeeping went could not be noted");
        }
        self.shared.trouble.send_if_modified(|now| {
            let changed = *now != trouble;
            *now = trouble;
            changed
        });
    }

    /// Does it; says what came of it, in either case in words.
    async fn act(&self, chore: Chore, moment: Moment, stop: CancellationToken) -> Result<String, String> {
        let Shared { store, publisher, retention, .. } = &*self.shared;
        let words = |error: StoreError| error.to_string();
        match chore {
            Chore::Retention => {
                // What is too much goes in any case: a disk does not wait for a clock.
                let old_at = moment.is_believed.then_some(moment.now);
                let swept = retention.sweep(old_at).await.map_err(words)?;
                let doubt = if moment.is_believed { "" } else { "; nothing by its age, as the clock is in doubt" };
                Ok(format!("{}{doubt}", swept_words(&swept)))
            }
            Chore::Vacuum => vacuum::give_back(store, publisher).await.map(given_words).map_err(words),
            Chore::Checkpoint => {
                let (store, publisher) = (Arc::clone(store), publisher.clone());
                let empty = move || {
                    let checkpointer = Checkpointer::new(&store).map_err(|error| error.to_string())?;
                    // A page is read in a moment: whoever is in the way is soon out of it.
                    for _ in 0..CHECKPOINT_TRIES {
                        let emptied = checkpointer.empty(&store, &publisher);
                        if let Some(size) = emptied.map_err(|error| error.to_string())? {
                            return Ok(size);
                        }
                        if stop.is_cancelled() {
                            break;
                        }
                        std::thread::sleep(CHECKPOINT_PAUSE);
                    }
                    Err("somebody reads all the time: the store's log cannot be emptied".to_owned())
                };
                Ok(format!("the log was {}", size_words(blocking(empty).await?)))
            }
            Chore::Integrity => {
                let store = Arc::clone(store);
                let check = move || store.check(move || !stop.is_cancelled()).map_err(|error| error.to_string());
                match blocking(check).await? {
                    None => Ok("no damage".to_owned()),
                    Some(damage) => {
                        Err(format!("the store is damaged ({damage}): stop the server and restore a backup"))
                    }
                }
            }
            Chore::Backup => {
                let this = Arc::clone(&self.shared);
                let _copying = this.copying.lock().await;
                let this = Arc::clone(&self.shared);
                let make = move || {
                    let go_on = || !stop.is_cancelled();
                    backup::make(&this.store, &this.output_dir, &this.backup, moment.now, &go_on)
                        .map_err(|error| format!("{error:#}"))
                };
                let (path, copied, removed) = blocking(make).await?;
                let more = if removed > 0 { format!(", {removed} older removed") } else { String::new() };
                Ok(format!("{}, {}{more}", path.display(), size_words(copied.bytes)))
            }
        }
    }

    fn clock(&self) -> &Clock {
        self.shared.publisher.clock()
    }

    /// Locked for moments, never over an await.
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn blocking<T: Send + 'static>(act: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(act).await.map_err(|error| format!("it ended by a panic: {error}"))?
}

fn trouble_of(last: &BTreeMap<Chore, Last>) -> Vec<(Chore, String)> {
    last.iter().filter(|(_, last)| !last.ok).map(|(chore, last)| (*chore, last.result.clone())).collect()
}

fn swept_words(swept: &Swept) -> String {
    if *swept == Swept::default() {
        return "nothing to remove".to_owned();
    }
    let Swept { events, outputs, history } = swept;
    format!("removed: events {events}, outputs of runs {outputs}, ends of runs and due times {history}")
}

fn given_words(bytes: u64) -> String {
    if bytes == 0 { "nothing to give back".to_owned() } else { format!("gave back {}", size_words(bytes)) }
}

/// A size for people: `512 B`, `3.2 MiB`.
pub fn size_words(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.into_iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size),
        None => format!("{bytes} B"),
    }
}

fn read_last(connection: &Connection) -> rusqlite::Result<BTreeMap<Chore, Last>> {
    let mut statement = connection.prepare("SELECT chore, at, duration_ms, ok, result FROM housekeeping")?;
    let rows = statement.query_map([], |row| {
        let last = Last {
            at: Timestamp::from_microsecond(row.get(1)?).unwrap_or_default(),
            duration_ms: row.get::<_, i64>(2)?.unsigned_abs(),
            ok: row.get(3)?,
            result: row.get(4)?,
        };
        Ok((row.get::<_, String>(0)?, last))
    })?;
    let known = rows.filter_map(|row| row.map(|(name, last)| Some((Chore::named(&name)?, last))).transpose());
    known.collect()
}

fn write_last(connection: &Connection, chore: Chore, last: &Last) -> rusqlite::Result<()> {
    connection
        .execute(
            "INSERT OR REPLACE INTO housekeeping (chore, at, duration_ms, ok, result) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![chore.name(), last.at.as_microsecond(), last.duration_ms.cast_signed(), last.ok, last.result],
        )
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chore_is_due_so_long_after_it_began_last_whatever_the_clock_did() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let hour = Duration::from_secs(3600);
        assert_eq!(due(None, hour, at(50)), at(50), "never done");
        assert_eq!(due(Some(at(50)), hour, at(60)), at(3650));
        assert_eq!(due(Some(at(50)), hour, at(9000)), at(3650), "overdue");
        assert_eq!(due(Some(at(9000)), hour, at(60)), at(60), "the clock was ahead then");
    }

    #[test]
    fn sizes_are_said_in_words() {
        assert_eq!([0, 512, 1536, 5 << 20].map(size_words), ["0 B", "512 B", "1.5 KiB", "5.0 MiB"]);
    }
}
