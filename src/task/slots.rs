//! Slots: the due times of a task, each with what became of it. All SQL of slots is here.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use crate::event::{Body, Gen, RunId, State, Status, TaskId};
use crate::metrics::tally::{self, Measurement};
use crate::record::{Run, wire_time};
use crate::schedule::plan::{self, Outcome};
use crate::schedule::timing::Timing;
use crate::store::{TaskNo, from_sql, sql};

/// A slot, or a streak of consecutive ones with one outcome, as clients see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Slot {
    /// When it was due; of a streak, the first.
    #[serde(with = "wire_time")]
    pub scheduled_for: Timestamp,
    /// When it was to start, where that was later: `jitter` and `stagger`.
    #[serde(with = "wire_time::option")]
    pub planned_for: Option<Timestamp>,
    /// What became of it: `pending`, `queued`, `ran`, `late`, `skipped`, `coalesced`, `missed`, `disabled`.
    pub outcome: String,
    /// Its run, or the run it became part of.
    pub run: Option<RunId>,
    /// Where that run is: a slot that ran may have failed.
    pub run_state: Option<String>,
    /// How long after the time it was planned for the run started, in milliseconds.
    pub late_ms: Option<u64>,
    /// Why it is as it is.
    pub reason: Option<String>,
    /// How many slots the row stands for.
    pub count: u64,
    /// The last of a streak.
    #[serde(with = "wire_time::option")]
    pub to: Option<Timestamp>,
}

/// The name of an outcome in the store and on the wire.
const fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Run { .. } => "pending",
        Outcome::Queue { .. } | Outcome::Replace { .. } => "queued",
        Outcome::Skipped => "skipped",
        Outcome::Coalesced { .. } => "coalesced",
        Outcome::Missed => "missed",
        Outcome::Disabled => "disabled",
    }
}

/// What a new row did to the rows before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Noted {
    /// It made a row of its own, behind a streak of this many that ended with it.
    Row {
        /// The outcome and number of the streak of slots without a run that it ended, if it ended one of several.
        ended: Option<(String, u64)>,
    },
    /// It goes on with the streak before it.
    Joined,
}

/// Writes a decided slot down. A closed one without a run goes on with an equal streak right before it.
///
/// # Errors
/// When the store cannot be written, or the slot has a row already.
pub fn note(
    connection: &Connection,
    task: TaskNo,
    generation: Gen,
    row: &plan::Row,
    run: Option<RunId>,
) -> rusqlite::Result<Noted> {
    let before: Option<(i64, String, Option<String>, i64)> = connection
        .prepare_cached(
            // Behind it there may be slots that were claimed while the clock was ahead.
            "SELECT scheduled_for, outcome, reason, count FROM slots
             WHERE task = ?1 AND gen = ?2 AND scheduled_for < ?3 ORDER BY scheduled_for DESC LIMIT 1",
        )?
        .query_row(params![task.0, sql(generation.0), row.scheduled_for.as_microsecond()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let outcome = name(row.outcome);
    let count = sql(row.count);
    let is_closed = matches!(row.outcome, Outcome::Skipped | Outcome::Missed | Outcome::Disabled);
    tally::note(Measurement::SlotsDue(row.count));
    if is_closed || matches!(row.outcome, Outcome::Coalesced { .. }) {
        tally::note(Measurement::SlotsClosed(outcome, row.count));
    }
    if let Some((first, last_outcome, last_reason, _)) = &before
        && is_closed
        && last_outcome == outcome
        && last_reason.as_deref() == row.reason
    {
        connection
            .prepare_cached(
                "UPDATE slots SET through = ?4, count = count + ?5
                 WHERE task = ?1 AND gen = ?2 AND scheduled_for = ?3",
            )?
            .execute(params![task.0, sql(generation.0), first, row.last().as_microsecond(), count])?;
        return Ok(Noted::Joined);
    }
    connection
        .prepare_cached(
            "INSERT INTO slots (task, gen, scheduled_for, through, count, outcome, run, reason, planned_for)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            task.0,
            sql(generation.0),
            row.scheduled_for.as_microsecond(),
            row.last().as_microsecond(),
            count,
            outcome,
            run.map(|run| run.to_string()),
            row.reason,
            row.planned_for.map(Timestamp::as_microsecond)
        ])?;
    let ended = before.filter(|(_, outcome, _, count)| *count > 1 && (outcome == "skipped" || outcome == "missed"));
    Ok(Noted::Row { ended: ended.map(|(_, outcome, _, count)| (outcome, from_sql(count))) })
}

/// What the log says of a slot without a run: once at the start of a streak, and once with the count at its end.
pub fn said(noted: &Noted, row: &plan::Row, task: &TaskId) -> Vec<Body> {
    let Noted::Row { ended } = noted else { return Vec::new() };
    let mut bodies = Vec::new();
    if let Some((outcome, count)) = ended {
        let state = if outcome == "missed" { State::Missed } else { State::Skipped };
        let mut status = Status::new(state, format!("Task {task}: {count} slots {outcome} in a row"));
        status.count = Some(*count);
        bodies.push(Body::Status(status));
    }
    let state = match row.outcome {
        Outcome::Skipped => State::Skipped,
        Outcome::Missed => State::Missed,
        _ => return bodies,
    };
    let reason = row.reason.unwrap_or_default();
    let word = if state == State::Missed { "missed" } else { "skipped" };
    let mut status = Status::new(state, format!("Task {task}: slot {word}: {reason}"));
    status.reason = Some(reason.to_owned());
    status.scheduled_for = Some(row.scheduled_for);
    status.count = Some(row.count);
    bodies.push(Body::Status(status));
    bodies
}

/// What the start of a run says of its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    is_caught_up: bool,
    now: Timestamp,
    tolerance: SignedDuration,
}

impl Start {
    /// The start at `now` of the run of a slot, by the schedule of its task.
    pub fn of(timing: Option<&Timing>, anchor: Timestamp, run: &Run, slot: Timestamp, now: Timestamp) -> Self {
        let tolerance = timing.map_or(plan::ON_TIME, |timing| plan::slack(timing, anchor, slot));
        Self { is_caught_up: run.trigger == "catchup", now, tolerance }
    }
}

/// Notes that the run of a slot started. Late is what starts long after the time that the slot was planned for.
///
/// # Errors
/// When the store cannot be written.
pub fn note_start(connection: &Connection, run: RunId, start: &Start) -> rusqlite::Result<()> {
    let tolerance = i64::try_from(start.tolerance.as_micros()).unwrap_or(i64::MAX);
    let begun: Option<(bool, i64)> = connection
        .prepare_cached(
            "UPDATE slots SET late_ms = max(0, ?2 - coalesce(planned_for, scheduled_for)) / 1000,
               outcome = CASE WHEN ?3 OR ?2 - coalesce(planned_for, scheduled_for) > ?4 THEN 'late' ELSE 'ran' END
             WHERE run = ?1 AND outcome IN ('pending', 'queued')
             RETURNING outcome = 'late', late_ms",
        )?
        .query_row(params![run.to_string(), start.now.as_microsecond(), start.is_caught_up, tolerance], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    // A retry starts too, and its slot has run already.
    if let Some((is_late, late_ms)) = begun {
        tally::note(Measurement::SlotsClosed(if is_late { "late" } else { "ran" }, 1));
        tally::note(Measurement::SlotStarted { late_ms: from_sql(late_ms) });
    }
    Ok(())
}

/// Notes what became of the slot of a run that ends without a start. Where that is a retry the slot has run: it stays as
/// it is, unless the retry is called off with its task. Of a run that has started, or is over, the slot says it already.
///
/// # Errors
/// When the store cannot be written.
pub fn note_end_unstarted(
    connection: &Connection,
    run: RunId,
    outcome: &'static str,
    reason: &str,
) -> rusqlite::Result<()> {
    // Its start may have been on its way to the store when it was stopped.
    let attempt: Option<u32> = connection
        .prepare_cached("SELECT attempt FROM runs WHERE id = ?1 AND state = 'queued'")?
        .query_row([run.to_string()], |row| row.get(0))
        .optional()?;
    match attempt {
        None => Ok(()),
        Some(..=1) => {
            let noted = connection
                .prepare_cached(
                    "UPDATE slots SET outcome = ?2, reason = ?3 WHERE run = ?1 AND outcome IN ('pending', 'queued')",
                )?
                .execute(params![run.to_string(), outcome, reason])?;
            tally::note(Measurement::SlotsClosed(outcome, noted as u64));
            Ok(())
        }
        Some(_) => {
            let reason = format!("it ran, its retry did not: {reason}");
            connection
                .prepare_cached(
                    "UPDATE slots SET outcome = CASE WHEN ?2 THEN 'disabled' ELSE outcome END, reason = ?3
                     WHERE run = ?1 AND outcome IN ('ran', 'late')",
                )?
                .execute(params![run.to_string(), outcome == "disabled", reason])
                .map(drop)
        }
    }
}

/// Notes that the run of a slot is done once more: the slot names the last attempt.
///
/// # Errors
/// When the store cannot be written.
pub fn note_retry(connection: &Connection, run: RunId, retry: RunId) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE slots SET run = ?2 WHERE run = ?1 AND outcome IN ('ran', 'late')")?
        .execute(params![run.to_string(), retry.to_string()])
        .map(drop)
}

/// Notes that the slot of a run that will not start became part of another run.
///
/// # Errors
/// When the store cannot be written.
pub fn note_coalesced(connection: &Connection, run: RunId, into: RunId, reason: &str) -> rusqlite::Result<()> {
    let open = "SELECT count(*) FROM slots WHERE run = ?1 AND outcome IN ('pending', 'queued')";
    let open: i64 = connection.prepare_cached(open)?.query_row([run.to_string()], |row| row.get(0))?;
    connection
        .prepare_cached(
            "UPDATE slots SET outcome = 'coalesced', run = ?2, reason = ?3
             WHERE run = ?1 AND outcome IN ('pending', 'queued', 'coalesced')",
        )?
        .execute(params![run.to_string(), into.to_string(), reason])?;
    tally::note(Measurement::SlotsClosed("coalesced", from_sql(open)));
    Ok(())
}

/// The slots behind a moment that have their row already, first and last of each, in order: asked where a clock was wrong.
///
/// # Errors
/// When the store cannot be read.
pub fn claimed_after(
    connection: &Connection,
    task: TaskNo,
    after: Timestamp,
) -> rusqlite::Result<Vec<(Timestamp, Timestamp)>> {
    let mut statement = connection.prepare_cached(
        "SELECT scheduled_for, through FROM slots WHERE task = ?1 AND through > ?2 ORDER BY scheduled_for",
    )?;
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    let rows = statement
        .query_map(params![task.0, after.as_microsecond()], |row| Ok((time(row.get(0)?), time(row.get(1)?))))?;
    rows.collect()
}

/// Forgets what was planned behind `now` by a clock that was ahead. What a run was made of stays, so that it is not made
/// a second time. Gives the last slot that stays, and how many rows went.
///
/// # Errors
/// When the store cannot be written.
pub fn forget_after(
    connection: &Connection,
    task: TaskNo,
    timing: &Timing,
    anchor: Timestamp,
    now: Timestamp,
) -> rusqlite::Result<(Option<Timestamp>, usize)> {
    let at = now.as_microsecond();
    let gone = connection
        .prepare_cached("DELETE FROM slots WHERE task = ?1 AND run IS NULL AND scheduled_for > ?2")?
        .execute(params![task.0, at])?;
    let across: Vec<(i64, i64)> = connection
        .prepare_cached(
            "SELECT gen, scheduled_for FROM slots
             WHERE task = ?1 AND run IS NULL AND scheduled_for <= ?2 AND through > ?2",
        )?
        .query_map(params![task.0, at], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (generation, first) in across {
        let before = Timestamp::from_microsecond(first - 1).unwrap_or_default();
        let last = timing.last_in(anchor, before, now).map_or(first, Timestamp::as_microsecond);
        let count = timing.count(anchor, before, now).max(1);
        connection
            .prepare_cached(
                "UPDATE slots SET through = ?4, count = ?5 WHERE task = ?1 AND gen = ?2 AND scheduled_for = ?3",
            )?
            .execute(params![task.0, generation, first, last, sql(count)])?;
    }
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(through) FROM slots WHERE task = ?1 AND through > ?2")?
        .query_row(params![task.0, at], |row| row.get(0))?;
    Ok((last.and_then(|micros| Timestamp::from_microsecond(micros).ok()), gone))
}

/// The slots of a task, newest first, before one.
///
/// # Errors
/// When the store cannot be read.
pub fn list(
    connection: &Connection,
    task: TaskNo,
    before: Option<Timestamp>,
    limit: usize,
) -> rusqlite::Result<Vec<Slot>> {
    let mut statement = connection.prepare_cached(
        "SELECT scheduled_for, through, count, outcome, slots.run, late_ms, reason, planned_for, runs.state
         FROM slots LEFT JOIN runs ON runs.id = slots.run
         WHERE slots.task = ?1 AND scheduled_for < ?2 ORDER BY scheduled_for DESC LIMIT ?3",
    )?;
    let before = before.map_or(i64::MAX, Timestamp::as_microsecond);
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    let rows = statement.query_map(params![task.0, before, sql(limit as u64)], |row| {
        let (first, through): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(Slot {
            scheduled_for: time(first),
            planned_for: row.get::<_, Option<i64>>(7)?.map(time),
            outcome: row.get(3)?,
            run: row.get::<_, Option<String>>(4)?.and_then(|id| id.parse().ok()),
            run_state: row.get(8)?,
            late_ms: row.get::<_, Option<i64>>(5)?.map(from_sql),
            reason: row.get(6)?,
            count: from_sql(row.get(2)?),
            to: (through != first).then(|| time(through)),
        })
    })?;
    rows.collect()
}

/// Forgets rows of a task whose last slot was before a time, at most so many, the oldest first; gives how many. Those of
/// runs that have not started stay: it is still to be noted what becomes of them.
///
/// # Errors
/// When the store cannot be written.
pub fn forget(connection: &Connection, task: TaskNo, before: i64, most: i64) -> rusqlite::Result<usize> {
    connection
        .prepare_cached(
            "DELETE FROM slots WHERE task = ?1 AND (gen, scheduled_for) IN
               (SELECT gen, scheduled_for FROM slots WHERE task = ?1 AND through < ?2
                  AND outcome NOT IN ('pending', 'queued')
                ORDER BY gen, scheduled_for LIMIT ?3)",
        )?
        .execute(params![task.0, before, most])
}
