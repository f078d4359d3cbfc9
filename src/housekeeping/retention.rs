//! What is kept of each task: events by age, number, bytes and runs, with the stored outputs of its runs. How runs
//! ended outlives that, for a longer while.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use rusqlite::types::FromSql;
use rusqlite::{Connection, params};

use crate::config;
use crate::event::{RunId, Seq};
use crate::store::{Store, StoreError, TaskNo, from_sql, sql};
use crate::stream::log;
use crate::stream::publish::Publisher;
use crate::stream::topic::Topic;
use crate::task::definition::Keep;
use crate::task::registry::{Registry, Task, burial};
use crate::task::slots;

/// How many runs or slots are forgotten in one step, so that no event waits for long.
const STEP_ROWS: i64 = 256;

/// How many tasks are looked at in one read: so many that the way to a reader's thread is not what a round of them costs.
const LOOK_TASKS: usize = 64;

/// After so many rows of runs and slots a read looks at no further task: the log of the store waits for who reads.
const LOOK_ROWS: usize = 2000;

/// Keeps what should be kept.
#[derive(Debug)]
pub struct Retention {
    /// The tasks.
    pub registry: Registry,
    /// Their streams.
    pub publisher: Publisher,
    /// Where they are kept.
    pub store: Arc<Store>,
    /// What is kept of a task that says nothing else.
    pub limits: config::Retention,
    /// Where the outputs of runs are.
    pub output_dir: Arc<Path>,
    /// How many bytes the outputs of ended runs have: looked at once, they do not change.
    pub sizes: Mutex<HashMap<RunId, u64>>,
}

/// What was let go of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Events.
    pub events: u64,
    /// Folders of outputs.
    pub outputs: u64,
    /// Ended runs and slots of which nothing is known any more.
    pub history: u64,
}

/// What is kept of one task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kept {
    runs: u64,
    days: u32,
    events: u64,
    bytes: u64,
}

impl Kept {
    fn of(own: Keep, limits: &config::Retention) -> Self {
        Self {
            runs: own.runs.unwrap_or(limits.runs),
            days: own.days.unwrap_or(limits.days),
            events: own.events.unwrap_or(limits.events),
            bytes: own.bytes.unwrap_or(limits.bytes),
        }
    }
}

/// What is looked at of one task.
#[derive(Debug)]
struct Look {
    no: TaskNo,
    kept: Kept,
    /// What is older is too old.
    before: Timestamp,
    /// How many ended runs, and how many slots, are remembered.
    history: u64,
    /// Its ended runs of which there are outputs, the newest first: last event and bytes.
    outputs: Vec<(Seq, u64)>,
}

/// What is too much of one task.
#[derive(Debug)]
struct Excess {
    /// The first event to keep.
    oldest: Seq,
    /// The first event that is there, if any is.
    first: Option<Seq>,
    /// The newest ended run to forget.
    run: Option<String>,
    /// Slots before this time are forgotten.
    slot: Option<i64>,
    /// How many rows were gone through to know.
    rows: usize,
}

impl Look {
    fn excess(&self, connection: &Connection) -> rusqlite::Result<Excess> {
        let Self { no, kept, .. } = *self;
        let outlived = log::outlived(connection, no, self.before, kept.events)?;
        let (by_runs, kept_runs) = first_kept_run(connection, no, kept.runs)?;
        let by_bytes = oldest_within(kept.bytes, &self.outputs, |bytes| log::within_bytes(connection, no, bytes))?;
        let oldest = outlived.max(by_runs).max(by_bytes);
        // What goes on is never taken from under it.
        let oldest = first_open_run(connection, no)?.map_or(oldest, |open| oldest.min(open));
        let first = log::bounds(connection, no)?.map(|bounds| bounds.oldest);
        let (run, runs) = behind(connection, ENDED_RUNS, no, self.history)?;
        let (slot, slots) = behind(connection, SLOTS, no, self.history)?;
        let slot = slot.map(|through: i64| through.saturating_add(1));
        Ok(Excess { oldest, first, run, slot, rows: kept_runs + runs + slots })
    }
}

/// What is too much of the first of these tasks, of one at least and of as many as one read takes.
fn excesses(looks: &[Look], connection: &Connection) -> rusqlite::Result<Vec<Excess>> {
    let (mut found, mut rows) = (Vec::with_capacity(looks.len()), 0);
    for look in looks {
        if rows >= LOOK_ROWS {
            break;
        }
        let excess = look.excess(connection)?;
        rows += excess.rows;
        found.push(excess);
    }
    Ok(found)
}

impl Retention {
    /// Lets go of what is too much, and of what is too old at a moment; without one nothing is too old. It is one for the
    /// whole round: the clock may be set meanwhile. O(tasks + runs and slots that are remembered + stored outputs), and
    /// O(what goes).
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn sweep(&self, now: Option<Timestamp>) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for removed in self.store.read(burial::removed).await? {
            self.registry.bury(removed).await?;
        }
        let folders = self.folders().await?;
        let outputs = self.outputs_by_task(&folders).await?;
        let tasks = self.registry.all();
        let mut rest = &tasks[..];
        while !rest.is_empty() {
            let next = &rest[..rest.len().min(LOOK_TASKS)];
            // Taken before the look: where a task is removed meanwhile and its name given again, this is not the new one's.
            let topics: Vec<_> = next.iter().map(|task| self.publisher.topic(&task.id)).collect();
            let looks: Vec<_> = next.iter().map(|task| self.look(task, now, outputs.get(&task.no))).collect();
            let found = self.store.read(move |connection| excesses(&looks, connection)).await?;
            rest = &rest[found.len()..];
            for ((task, topic), excess) in next.iter().zip(topics).zip(found) {
                if let Some(topic) = topic {
                    swept.events += self.let_events_go(&topic, &excess).await?;
                }
                swept.history += self.forget(task.no, excess).await?;
            }
        }
        swept.outputs = self.remove_outputs(folders).await?;
        Ok(swept)
    }

    fn look(&self, task: &Task, now: Option<Timestamp>, outputs: Option<&Vec<(Seq, u64)>>) -> Look {
        let kept = Kept::of(task.definition.policy.keep, &self.limits);
        let age = SignedDuration::from_hours(24 * i64::from(kept.days));
        let before = now.and_then(|now| now.checked_sub(age).ok()).unwrap_or(Timestamp::MIN);
        let outputs = outputs.cloned().unwrap_or_default();
        Look { no: task.no, kept, before, history: self.limits.history, outputs }
    }

    async fn let_events_go(&self, topic: &Arc<Topic>, excess: &Excess) -> Result<u64, StoreError> {
        let Some(first) = excess.first.filter(|first| excess.oldest > *first) else { return Ok(0) };
        self.publisher.raise_oldest(topic, excess.oldest).await?;
        let now = topic.tail().oldest;
        Ok(now.0.saturating_sub(first.0))
    }

    /// Forgets how old runs ended and what became of old slots, step by step. What has events stays.
    async fn forget(&self, no: TaskNo, excess: Excess) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        if let Some(run) = excess.run {
            forgotten += self.in_steps(move |connection| forget_runs(connection, no, &run)).await?;
        }
        if let Some(slot) = excess.slot {
            forgotten += self.in_steps(move |connection| slots::forget(connection, no, slot, STEP_ROWS)).await?;
        }
        Ok(forgotten)
    }

    /// Repeats a step until it finds no row more; gives how many it found.
    async fn in_steps<F>(&self, step: F) -> Result<u64, StoreError>
    where
        F: Fn(&Connection) -> rusqlite::Result<usize> + Clone + Send + 'static,
    {
        let mut done = 0;
        loop {
            let step = step.clone();
            let act = move |connection: &Connection| -> Result<_, StoreError> { Ok((step(connection)?, Vec::new())) };
            match self.publisher.transact(act).await?.0 {
                0 => return Ok(done),
                rows => done += rows as u64,
            }
        }
    }

    /// The runs of which there are stored outputs.
    async fn folders(&self) -> Result<Vec<RunId>, StoreError> {
        let dir = Arc::clone(&self.output_dir);
        let list = move || -> std::io::Result<Vec<RunId>> {
            let entries = match std::fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let names =
                entries.map(|entry| Ok(entry?.file_name().into_string().ok().and_then(|name| name.parse().ok())));
            names.filter_map(Result::transpose).collect()
        };
        blocking(list).await
    }

    /// For each task the ended runs of which there are outputs: their last event, and how many bytes those have; the
    /// newest first.
    async fn outputs_by_task(&self, folders: &[RunId]) -> Result<BTreeMap<TaskNo, Vec<(Seq, u64)>>, StoreError> {
        let asked = folders.to_vec();
        let ended = self.store.read(move |connection| ended_runs(connection, &asked)).await?;
        let known = std::mem::take(&mut *self.sizes.lock().unwrap_or_else(PoisonError::into_inner));
        let dir = Arc::clone(&self.output_dir);
        let measure = move || -> std::io::Result<_> {
            let mut sizes = HashMap::with_capacity(ended.len());
            for run in ended.keys() {
                let size = known.get(run).copied().map_or_else(|| size_of(&dir.join(run.to_string())), Ok)?;
                sizes.insert(*run, size);
            }
            Ok((ended, sizes))
        };
        let (ended, sizes) = blocking(measure).await?;
        let mut by_task: BTreeMap<TaskNo, Vec<(Seq, u64)>> = BTreeMap::new();
        for (run, (task, last)) in &ended {
            by_task.entry(*task).or_default().push((*last, sizes.get(run).copied().unwrap_or(0)));
        }
        by_task.values_mut().for_each(|runs| runs.sort_by_key(|(last, _)| std::cmp::Reverse(*last)));
        *self.sizes.lock().unwrap_or_else(PoisonError::into_inner) = sizes;
        Ok(by_task)
    }

    /// The outputs go with the last event of their run, or with the run.
    async fn remove_outputs(&self, folders: Vec<RunId>) -> Result<u64, StoreError> {
        // Asked after the folders were listed: a run is there before its folder is.
        let asked = folders.clone();
        let kept = self.store.read(move |connection| runs_with_events(connection, &asked)).await?;
        let mut removed = 0;
        for run in folders.into_iter().filter(|run| !kept.contains_key(run)) {
            if tokio::fs::remove_dir_all(self.output_dir.join(run.to_string())).await.is_ok() {
                removed += 1;
            }
            self.sizes.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
        }
        Ok(removed)
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let broken = |error: &dyn std::fmt::Display| StoreError::Broken(format!("stored outputs cannot be read: {error}"));
    tokio::task::spawn_blocking(act).await.map_err(|error| broken(&error))?.map_err(|error| broken(&error))
}

/// The bytes in a folder of outputs; nothing of one that is gone.
fn size_of(folder: &Path) -> std::io::Result<u64> {
    let gone = |error: std::io::Error| if error.kind() == std::io::ErrorKind::NotFound { Ok(0) } else { Err(error) };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return gone(error),
    };
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.and_then(|entry| entry.metadata()).map_or_else(gone, |meta| Ok(meta.len()))?;
    }
    Ok(bytes)
}

/// The first event to keep, so that it and all that follow have at most so many bytes, together with the outputs of
/// the runs that end among them. `outputs` are the ended runs that have any, the newest first: last event and bytes.
/// `within` gives the first event to keep for events alone.
fn oldest_within<E>(
    most: u64,
    outputs: &[(Seq, u64)],
    mut within: impl FnMut(u64) -> Result<Seq, E>,
) -> Result<Seq, E> {
    let mut left = most;
    let mut oldest = within(left)?;
    for (last, bytes) in outputs {
        if *last < oldest {
            break;
        }
        // With this run's outputs there is less room for events; where that leaves the run out, so are its outputs.
        match left.checked_sub(*bytes) {
            None => return Ok(oldest.max(last.next())),
            Some(less) => {
                let with_it = within(less)?;
                if with_it > *last {
                    return Ok(oldest.max(last.next()));
                }
                (left, oldest) = (less, with_it);
            }
        }
    }
    Ok(oldest)
}

/// The first event of the oldest of the newest ended runs, so many of them; 1 where there are no more than those. And
/// how many there are of them.
fn first_kept_run(connection: &Connection, no: TaskNo, runs: u64) -> rusqlite::Result<(Seq, usize)> {
    let (first, count): (Option<i64>, i64) = connection
        .prepare_cached(
            "SELECT min(first), count(*) FROM (
               SELECT first FROM runs WHERE task = ?1 AND state NOT IN ('queued', 'running', 'waiting')
               ORDER BY id DESC LIMIT ?2)",
        )?
        .query_row(params![no.0, sql(runs)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // What was said between the runs goes with the run after it, but not before there is one too many.
    let oldest = first.filter(|_| from_sql(count) == runs).map_or(Seq(1), |first| Seq(from_sql(first)));
    Ok((oldest, usize::try_from(count).unwrap_or_default()))
}

fn first_open_run(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<Seq>> {
    let first: Option<i64> = connection
        .prepare_cached("SELECT min(first) FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')")?
        .query_row([no.0], |row| row.get(0))?;
    Ok(first.map(|first| Seq(from_sql(first))))
}

/// The ended runs of a task, the newest first, as many as are asked for.
const ENDED_RUNS: &str = "SELECT id FROM runs WHERE task = ?1 AND state NOT IN ('queued', 'running', 'waiting')
   ORDER BY id DESC LIMIT ?2";

/// The ends of a task's slots, the newest first, as many as are asked for.
const SLOTS: &str = "SELECT through FROM slots WHERE task = ?1 ORDER BY scheduled_for DESC LIMIT ?2";

/// What comes behind the newest `most` that a query gives, if anything; and how many rows it gave.
fn behind<T: FromSql>(
    connection: &Connection,
    query: &str,
    no: TaskNo,
    most: u64,
) -> rusqlite::Result<(Option<T>, usize)> {
    let mut statement = connection.prepare_cached(query)?;
    let mut rows = statement.query(params![no.0, sql(most.saturating_add(1))])?;
    let mut given = 0;
    while let Some(row) = rows.next()? {
        given += 1;
        if given as u64 > most {
            return Ok((Some(row.get(0)?), given));
        }
    }
    Ok((None, given))
}

/// Forgets ended runs up to one, the oldest first, with what was recorded of their processes; those whose events are
/// still there stay. As many as one step takes; gives how many.
fn forget_runs(connection: &Connection, no: TaskNo, through: &str) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "DELETE FROM runs WHERE id IN (
               SELECT id FROM runs WHERE task = ?1 AND id <= ?2 AND state NOT IN ('queued', 'running', 'waiting')
                 AND last < (SELECT oldest FROM tasks WHERE no = ?1) ORDER BY id LIMIT ?3)",
        )?
        .execute(params![no.0, through, STEP_ROWS])
}

/// Of these runs those that are over: their task and their last event.
fn ended_runs(connection: &Connection, runs: &[RunId]) -> rusqlite::Result<HashMap<RunId, (TaskNo, Seq)>> {
    look_up(
        connection,
        runs,
        "SELECT task, last FROM runs WHERE id = ?1 AND state NOT IN ('queued', 'running', 'waiting')",
    )
}

/// Of these runs those that go on, or whose last event is still there.
fn runs_with_events(connection: &Connection, runs: &[RunId]) -> rusqlite::Result<HashMap<RunId, (TaskNo, Seq)>> {
    look_up(
        connection,
        runs,
        "SELECT runs.task, runs.last FROM runs JOIN tasks ON tasks.no = runs.task WHERE runs.id = ?1
           AND (runs.state IN ('queued', 'running', 'waiting') OR runs.last >= tasks.oldest)",
    )
}

fn look_up(connection: &Connection, runs: &[RunId], query: &str) -> rusqlite::Result<HashMap<RunId, (TaskNo, Seq)>> {
    let mut found = HashMap::new();
    let mut statement = connection.prepare_cached(query)?;
    for run in runs {
        let mut rows = statement.query([run.to_string()])?;
        if let Some(row) = rows.next()? {
            found.insert(*run, (TaskNo(row.get(0)?), Seq(from_sql(row.get(1)?))));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::schema;

    /// Every event of a log has ten bytes, and every event is a row of its own.
    fn within(head: u64) -> impl Fn(u64) -> Result<Seq, ()> {
        move |bytes| Ok(Seq((head + 1).saturating_sub(bytes / 10).max(1)))
    }

    #[test]
    fn tasks_that_have_been_through_much_are_looked_at_in_smaller_parts_and_at_least_one_by_one() {
        let mut store = Connection::open_in_memory().unwrap();
        schema::migrate(&mut store).unwrap();
        // The first two have done so much in all that the third is for another read.
        for (no, slots) in [(1, LOOK_ROWS - 1), (2, 3), (3, LOOK_ROWS + 5), (4, 0)] {
            let task = "INSERT INTO tasks (no, id, gen, source, definition, anchor, planned, created)
                        VALUES (?1, 't' || ?1, 1, 'store', '{}', 0, 0, 0)";
            store.execute(task, [no]).unwrap();
            let slot =
                "INSERT INTO slots (task, gen, scheduled_for, through, outcome) VALUES (?1, 1, ?2, ?2, 'missed')";
            for at in 1..=slots {
                store.execute(slot, params![no, at as i64]).unwrap();
            }
        }
        let kept = Kept { runs: 10, days: 1, events: 10, bytes: 10 };
        let look = |no| Look { no: TaskNo(no), kept, before: Timestamp::MIN, history: 100_000, outputs: Vec::new() };
        let rows = |nos: &[i64]| -> Vec<usize> {
            let looks: Vec<_> = nos.iter().copied().map(look).collect();
            excesses(&looks, &store).unwrap().iter().map(|excess| excess.rows).collect()
        };
        assert_eq!(rows(&[1, 2, 3, 4]), [LOOK_ROWS - 1, 3]);
        assert_eq!(rows(&[3, 4]), [LOOK_ROWS + 5]);
        assert_eq!(rows(&[4]), [0]);
        // What is too much is all beyond the newest so many.
        let Excess { slot, run, rows, .. } = Look { history: 2, ..look(2) }.excess(&store).unwrap();
        assert_eq!((slot, run, rows), (Some(2), None, 3));
    }

    #[test]
    fn outputs_count_as_the_events_do() {
        let outputs = [(Seq(90), 300), (Seq(50), 300), (Seq(20), 300)];
        let oldest = |most| oldest_within(most, &outputs, within(100)).unwrap();
        assert_eq!(oldest(2000), Seq(1));
        assert_eq!(oldest(1899), Seq(2), "900 of outputs, 999 of events");
        assert_eq!(oldest(1600), Seq(21), "the oldest run's outputs go first: then there is room for all after it");
        assert_eq!(oldest(390), Seq(91));
        assert_eq!(oldest(0), Seq(101));
    }

    proptest! {
        #[test]
        fn no_more_is_kept_than_there_is_room_for_and_nothing_goes_without_need(
            most in 0_u64..3000,
            ends in proptest::collection::btree_set(1_u64..=100, 0..8),
            sizes in proptest::collection::vec(0_u64..800, 8),
        ) {
            let outputs: Vec<_> = ends.iter().rev().zip(sizes).map(|(last, bytes)| (Seq(*last), bytes)).collect();
            let size = |oldest: u64| {
                let outputs = outputs.iter().filter(|(last, _)| last.0 >= oldest).map(|(_, bytes)| bytes).sum::<u64>();
                (101 - oldest) * 10 + outputs
            };
            let oldest = oldest_within(most, &outputs, within(100)).unwrap().0;
            prop_assert!(size(oldest) <= most);
            prop_assert!(oldest == 1 || size(oldest - 1) > most);
        }
    }
}
