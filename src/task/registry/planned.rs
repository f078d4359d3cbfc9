//! How far tasks are planned, and the newest time that is stored of that, by which a clock is believed or not.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use tracing::warn;

use super::{Registry, Task, TaskError, rows};
use crate::schedule::plan::{self, JumpWatch, Off, Plan, ScheduleState};
use crate::schedule::timing::Timing;
use crate::store::{REMOVED, TaskNo};
use crate::stream::topic::{Offer, Topic};
use crate::task::slots;

/// No clock is right that shows an earlier time than this: 1 January 2026. A machine without a clock starts in 1970.
pub(super) const EARLIEST: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// How many tasks are set right in one transaction when a clock is accepted.
const ACCEPTED_AT_ONCE: usize = 512;

/// What the clock showed when somebody looked at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// What it shows.
    pub now: Timestamp,
    /// What it would show had it not jumped, as long as it is not believed that it is right.
    carried: Option<Timestamp>,
}

impl Look {
    /// Whether it did not jump forward, or that is believed.
    pub fn is_believed(&self) -> bool {
        self.carried.is_none()
    }

    /// What is taken for the time: what it shows; as long as a jump is not believed, what it would show without.
    pub fn believed(&self) -> Timestamp {
        self.carried.unwrap_or(self.now)
    }
}

/// When something was changed that counts from then on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Given {
    /// It is at least so late.
    pub(super) since: Timestamp,
    /// What the clock shows, which is later as long as a jump of it is not believed.
    pub(super) shown: Timestamp,
}

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

    /// Looks at the clock. One that jumped forward by more than an hour is believed if it still says so in a minute.
    pub fn look(&self) -> Look {
        let mut jumps = self.jumps();
        let (now, passed) = self.shared.publisher.clock().look();
        jumps.believes(now, passed);
        if jumps.has_just_seen_one() {
            warn!(%now, "the clock jumped forward by more than an hour: it is believed if it still says so in a minute");
        }
        Look { now, carried: jumps.carried(passed) }
    }

    /// Somebody says that the clock is right: a jump needs no more proof.
    pub fn believe_clock(&self) {
        *self.jumps() = JumpWatch::default();
    }

    fn jumps(&self) -> MutexGuard<'_, JumpWatch> {
        self.shared.jumps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From when on something counts that is changed now. Behind a clock that is held it is at least as late as what is
    /// stored. By a clock that is not believed it is only known between which times it lies: which of them counts is settled
    /// when one is believed, by `schedule::plan`.
    pub(super) fn given_at(&self) -> Given {
        let look = self.look();
        let passed = look.believed();
        let since = plan::held_until(self.last_stored(), passed).unwrap_or(passed);
        Given { since, shown: look.now.max(since) }
    }

    /// Takes the clock for right, whatever is stored: what was planned behind now is forgotten, what runs were made of
    /// stays and is not made again. Gives how many tasks and rows of slots that concerned.
    ///
    /// # Errors
    /// [`TaskError`]: the store cannot be written.
    pub async fn accept_clock(&self, now: Timestamp) -> Result<(usize, usize), TaskError> {
        let _edit = self.shared.edits.lock().await;
        let is_ahead = |task: &Arc<Task>| task.planned.max(task.anchor) > now || task.resumed > Some(now);
        let ahead: Vec<_> = self.all().into_iter().filter(is_ahead).collect();
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
                    (task.planned, task.resumed) = (now, None);
                    task.next = task.timing.as_ref().and_then(|timing| next_look(timing, task.anchor, now, None));
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
    pub fn note_planned(&self, read: &Task, planned: Planned) {
        // A task that was removed meanwhile needs no note, and one whose schedule was edited has its own.
        let _ = self.change(&read.id, |task| {
            if Planned::of(task).is_of(read) {
                planned.put_into(task, read.no);
            }
        });
    }
}

/// When a task is to be looked at next: when the first slot behind a moment is planned for; at once, where it is not
/// settled from when on it runs, as a clock was in doubt.
pub(super) fn next_look(
    timing: &Timing,
    anchor: Timestamp,
    planned: Timestamp,
    resumed: Option<Timestamp>,
) -> Option<Timestamp> {
    if anchor > planned || resumed.is_some() {
        return Some(planned);
    }
    timing.next_after(anchor, planned).map(|slot| timing.planned_for(anchor, slot))
}

/// How far a task is planned, and from when on it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// From when its schedule counts; see [`plan::ScheduleState::anchor`].
    pub anchor: Timestamp,
    /// Every slot up to here has its row.
    pub to: Timestamp,
    /// Until when it was paused, where that is not settled yet.
    pub resumed: Option<Timestamp>,
    /// When it is to be looked at next.
    pub next: Option<Timestamp>,
}

impl Planned {
    fn of(task: &Task) -> Self {
        Self { anchor: task.anchor, to: task.planned, resumed: task.resumed, next: task.next }
    }

    /// Whether a task, as it was read, is planned so far.
    pub fn is_of(&self, task: &Task) -> bool {
        (self.anchor, self.to, self.resumed) == (task.anchor, task.planned, task.resumed)
    }

    /// Another task of the same name is left alone.
    pub(super) fn put_into(self, task: &mut Task, no: TaskNo) {
        if task.no == no {
            (task.anchor, task.planned, task.resumed, task.next) = (self.anchor, self.to, self.resumed, self.next);
        }
    }
}

/// Slots that have their row, first and last of each, in order.
pub type Stretches = Vec<(Timestamp, Timestamp)>;

/// What the store has of a task for whoever plans its slots.
#[derive(Debug)]
pub struct Stored {
    /// How far it is planned.
    pub planned: Planned,
    /// The slots behind that which have their row too: a clock was ahead.
    pub claimed: Stretches,
    /// Why it does not run by itself, if it does not.
    pub off: Option<Off>,
}

/// How far a task is planned, as the store has it; nothing of one that was removed.
///
/// # Errors
/// When the store cannot be read.
pub fn planned(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<Stored>> {
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    let row = connection
        .prepare_cached(
            "SELECT anchor, planned, resumed, next, claimed, enabled, paused FROM tasks WHERE no = ?1 AND id < ?2",
        )?
        .query_row(params![no.0, REMOVED], |row| {
            let (anchor, to) = (time(row.get(0)?), time(row.get(1)?));
            let (resumed, next) = (row.get::<_, Option<i64>>(2)?.map(time), row.get::<_, Option<i64>>(3)?.map(time));
            let claimed = row.get::<_, Option<i64>>(4)?.map(time);
            Ok((Planned { anchor, to, resumed, next }, claimed, rows::off_by(row.get(5)?, row.get(6)?)))
        })
        .optional()?;
    let Some((planned, claimed, off)) = row else { return Ok(None) };
    let claimed = match claimed {
        Some(through) if through > planned.to => slots::claimed_after(connection, no, planned.to)?,
        _ => Vec::new(),
    };
    Ok(Some(Stored { planned, claimed, off }))
}

/// Notes how far a task is planned, in the transaction of its slots.
///
/// # Errors
/// When the store cannot be written.
pub fn set_planned(connection: &Connection, no: TaskNo, planned: &Planned) -> rusqlite::Result<()> {
    let Planned { anchor, to, resumed, next } = planned;
    connection
        .prepare_cached("UPDATE tasks SET anchor = ?2, planned = ?3, resumed = ?4, next = ?5 WHERE no = ?1")?
        .execute(params![
            no.0,
            anchor.as_microsecond(),
            to.as_microsecond(),
            resumed.map(Timestamp::as_microsecond),
            next.map(Timestamp::as_microsecond)
        ])
        .map(drop)
}

/// Writes down what passed of a task's slots while it was paused, in the transaction that lets it go on: nothing of it is
/// caught up, whoever looks at the clock next.
pub(super) fn end_pause(
    connection: &Connection,
    task: &Task,
    topic: &Arc<Topic>,
    given: Given,
    said: &mut Vec<(Arc<Topic>, Offer)>,
) -> rusqlite::Result<Option<Planned>> {
    let Some(timing) = &task.timing else { return Ok(None) };
    let Some(Stored { planned: stored, claimed, .. }) = planned(connection, task.no)? else { return Ok(None) };
    let Given { since, shown } = given;
    let mut planned = Planned { resumed: Some(shown).filter(|shown| *shown > since), ..stored };
    // One that has not begun by now has no slots yet.
    if stored.anchor <= since {
        let state = ScheduleState {
            last_planned: stored.to,
            anchor: stored.anchor,
            resumed: None,
            last_stored: since,
            off: Some(Off::Paused),
            active: false,
            queued: 0,
            claimed: &claimed,
        };
        let Plan { rows, anchor, planned_to, next } = plan::paused(timing, &state, since);
        let generation = topic.tail().generation;
        for row in &rows {
            let noted = slots::note(connection, task.no, generation, row, None)?;
            let bodies = slots::said(&noted, row, &task.id);
            said.extend(bodies.iter().map(|body| (Arc::clone(topic), Offer::new(None, shown, body))));
        }
        (planned.anchor, planned.to, planned.next) = (anchor, planned_to, next);
    }
    if planned.resumed.is_some() {
        planned.next = next_look(timing, planned.anchor, planned.to, planned.resumed);
    }
    set_planned(connection, task.no, &planned)?;
    Ok(Some(planned))
}

/// Forgets what is planned of a task behind now; gives how many rows of slots went.
fn forget_plan(connection: &Connection, task: &Task, now: Timestamp) -> rusqlite::Result<usize> {
    let Some(timing) = &task.timing else {
        connection
            .prepare_cached("UPDATE tasks SET planned = ?2, anchor = ?2, resumed = NULL WHERE no = ?1")?
            .execute(params![task.no.0, now.as_microsecond()])?;
        return Ok(0);
    };
    let (claimed, gone) = slots::forget_after(connection, task.no, timing, task.anchor, now)?;
    let anchor = timing.anchor_before(task.anchor, now);
    connection
        .prepare_cached(
            "UPDATE tasks SET planned = ?2, anchor = ?3, next = ?4, claimed = ?5, resumed = NULL WHERE no = ?1",
        )?
        .execute(params![
            task.no.0,
            now.as_microsecond(),
            anchor.as_microsecond(),
            next_look(timing, anchor, now, None).map(Timestamp::as_microsecond),
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
