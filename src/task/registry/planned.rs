//! How far tasks are planned, and the newest time that is stored of that, by which a clock is believed or not.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Registry, Task, TaskError};
use crate::schedule::plan;
use crate::schedule::timing::Timing;
use crate::store::{REMOVED, TaskNo};
use crate::task::slots;

/// No clock is right that shows an earlier time than this: 1 January 2026. A machine without a clock starts in 1970.
pub(super) const EARLIEST: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// How many tasks are set right in one transaction when a clock is accepted.
const ACCEPTED_AT_ONCE: usize = 512;

impl Registry {
    /// The newest time that is stored of schedules: a clock far behind it is wrong.
    pub fn last_stored(&self) -> Timestamp {
        let planned = self.newest_planned();
        let seen = Timestamp::from_microsecond(self.shared.seen.load(Ordering::Relaxed)).unwrap_or_default();
        planned.map_or(seen, |planned| planned.max(seen))
    }

    /// The newest time up to which a task is planned.
    pub fn newest_planned(&self) -> Option<Timestamp> {
        self.tasks().agenda.newest_planned()
    }

    /// Notes in memory that schedules were looked at, once the store has it.
    pub fn note_seen(&self, now: Timestamp) {
        self.shared.seen.store(now.as_microsecond(), Ordering::Relaxed);
    }

    /// From when a schedule counts that is given now. Behind a clock that is held it is at least as late as what is
    /// stored.
    pub(super) fn given_at(&self) -> Timestamp {
        let now = self.shared.publisher.clock().now();
        plan::held_until(self.last_stored(), now).unwrap_or(now)
    }

    /// Takes the clock for right, whatever is stored: what was planned behind now is forgotten, what runs were made of
    /// stays and is not made again. Gives how many tasks and rows of slots that concerned.
    ///
    /// # Errors
    /// [`TaskError`]: the store cannot be written.
    pub async fn accept_clock(&self, now: Timestamp) -> Result<(usize, usize), TaskError> {
        let _edit = self.shared.edits.lock().await;
        let ahead: Vec<_> = self.all().into_iter().filter(|task| task.planned.max(task.anchor) > now).collect();
        let mut forgotten = 0;
        for batch in ahead.chunks(ACCEPTED_AT_ONCE) {
            let tasks = batch.to_vec();
            let act = move |connection: &Connection| -> Result<_, TaskError> {
                let mut gone = 0;
                for task in &tasks {
                    gone += forget_plan(connection, task, now)?;
                }
                note_clock(connection, now)?;
                Ok((gone, Vec::new()))
            };
            forgotten += self.shared.publisher.transact(act).await?.0;
            for task in batch {
                // One that was removed meanwhile has nothing left to change.
                let _ = self.change(&task.id, |task| {
                    task.anchor = task.timing.as_ref().map_or(now, |timing| timing.anchor_before(task.anchor, now));
                    task.planned = now;
                    task.next = task.timing.as_ref().and_then(|timing| next_planned(timing, task.anchor, now));
                });
            }
        }
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            note_clock(connection, now)?;
            Ok(((), Vec::new()))
        };
        self.shared.publisher.transact(act).await?;
        self.note_seen(now);
        Ok((ahead.len(), forgotten))
    }

    /// Notes in memory how far a task, as it was read, is planned, once the store has it.
    pub fn note_planned(&self, read: &Task, planned: Timestamp, next: Option<Timestamp>) {
        // A task that was removed meanwhile needs no note, and one whose schedule was edited has its own.
        let _ = self.change(&read.id, |task| {
            if (task.no, task.anchor, task.planned) == (read.no, read.anchor, read.planned) {
                (task.planned, task.next) = (planned, next);
            }
        });
    }
}

/// When the first slot behind a moment is planned for.
pub(super) fn next_planned(timing: &Timing, anchor: Timestamp, after: Timestamp) -> Option<Timestamp> {
    timing.next_after(anchor, after).map(|slot| timing.planned_for(anchor, slot))
}

/// How far a task is planned, as the store has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    /// From when its schedule counts.
    pub anchor: Timestamp,
    /// Every slot up to here has its row.
    pub to: Timestamp,
    /// Slots behind that which have theirs too, first and last of each, in order: a clock was ahead.
    pub claimed: Vec<(Timestamp, Timestamp)>,
}

/// How far a task is planned, as the store has it.
///
/// # Errors
/// When the store cannot be read.
pub fn planned(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<Planned>> {
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    let row: Option<(i64, i64, Option<i64>)> = connection
        .prepare_cached("SELECT anchor, planned, claimed FROM tasks WHERE no = ?1 AND id < ?2")?
        .query_row(params![no.0, REMOVED], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((anchor, to, claimed)) = row else { return Ok(None) };
    let (anchor, to) = (time(anchor), time(to));
    let claimed = match claimed {
        Some(through) if time(through) > to => slots::claimed_after(connection, no, to)?,
        _ => Vec::new(),
    };
    Ok(Some(Planned { anchor, to, claimed }))
}

/// Notes how far a task is planned, in the transaction of its slots.
///
/// # Errors
/// When the store cannot be written.
pub fn set_planned(
    connection: &Connection,
    no: TaskNo,
    planned: Timestamp,
    next: Option<Timestamp>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE tasks SET planned = ?2, next = ?3 WHERE no = ?1")?
        .execute(params![no.0, planned.as_microsecond(), next.map(Timestamp::as_microsecond)])
        .map(drop)
}

/// Forgets what is planned of a task behind now; gives how many rows of slots went.
fn forget_plan(connection: &Connection, task: &Task, now: Timestamp) -> rusqlite::Result<usize> {
    let Some(timing) = &task.timing else {
        connection
            .prepare_cached("UPDATE tasks SET planned = ?2, anchor = ?2 WHERE no = ?1")?
            .execute(params![task.no.0, now.as_microsecond()])?;
        return Ok(0);
    };
    let (claimed, gone) = slots::forget_after(connection, task.no, timing, task.anchor, now)?;
    let anchor = timing.anchor_before(task.anchor, now);
    connection
        .prepare_cached("UPDATE tasks SET planned = ?2, anchor = ?3, next = ?4, claimed = ?5 WHERE no = ?1")?
        .execute(params![
            task.no.0,
            now.as_microsecond(),
            anchor.as_microsecond(),
            next_planned(timing, anchor, now).map(Timestamp::as_microsecond),
            claimed.map(Timestamp::as_microsecond)
        ])?;
    Ok(gone)
}

pub(super) fn read_seen(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let micros: Option<i64> = connection
        .query_row("SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'clock'", [], |row| row.get(0))
        .optional()?;
    Ok(micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()))
}

/// Notes the time at which schedules were looked at: the next start knows then whether its clock can be right.
///
/// # Errors
/// When the store cannot be written.
pub fn note_clock(connection: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES ('clock', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1",
        )?
        .execute([now.as_microsecond().to_string()])
        .map(drop)
}
