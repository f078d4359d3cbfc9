//! Slots: the due times of a task, each with what became of it. All SQL of slots is here.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::registry::Task;
use crate::event::{Gen, RunId};
use crate::record::{Run, wire_time};
use crate::schedule::plan::{self, Outcome};
use crate::store::{TaskNo, from_sql, sql};

/// A slot, or a streak of consecutive ones with one outcome, as clients see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Slot {
    /// When it was due; of a streak, the first.
    #[serde(with = "wire_time")]
    pub scheduled_for: Timestamp,
    /// What became of it: `pending`, `queued`, `ran`, `late`, `skipped`, `coalesced`, `missed`, `disabled`.
    pub outcome: String,
    /// Its run, or the run it became part of.
    pub run: Option<RunId>,
    /// Where that run is: a slot that ran may have failed.
    pub run_state: Option<String>,
    /// How long after its time the run started, in milliseconds.
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
            "SELECT scheduled_for, outcome, reason, count FROM slots WHERE task = ?1 AND gen = ?2
             ORDER BY scheduled_for DESC LIMIT 1",
        )?
        .query_row(params![task.0, sql(generation.0)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let outcome = name(row.outcome);
    let count = sql(row.count.number());
    let is_closed = matches!(row.outcome, Outcome::Skipped | Outcome::Missed | Outcome::Disabled);
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
            "INSERT INTO slots (task, gen, scheduled_for, through, count, outcome, run, reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            task.0,
            sql(generation.0),
            row.scheduled_for.as_microsecond(),
            row.last().as_microsecond(),
            count,
            outcome,
            run.map(|run| run.to_string()),
            row.reason
        ])?;
    let ended = before.filter(|(_, outcome, _, count)| *count > 1 && (outcome == "skipped" || outcome == "missed"));
    Ok(Noted::Row { ended: ended.map(|(_, outcome, _, count)| (outcome, from_sql(count))) })
}

/// What the start of a run says of its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    late: bool,
    late_ms: u64,
}

impl Start {
    /// The start at `now` of the run of a slot.
    pub fn of(task: &Task, run: &Run, slot: Timestamp, now: Timestamp) -> Self {
        let behind = now.duration_since(slot);
        let tolerance = task.timing.as_ref().map_or(plan::ON_TIME, |timing| plan::slack(timing, task.anchor, slot));
        Self {
            late: run.trigger == "catchup" || behind > tolerance,
            late_ms: u64::try_from(behind.as_millis()).unwrap_or(0),
        }
    }
}

/// Notes that the run of a slot started.
///
/// # Errors
/// When the store cannot be written.
pub fn note_start(connection: &Connection, run: RunId, start: &Start) -> rusqlite::Result<()> {
    let outcome = if start.late { "late" } else { "ran" };
    connection
        .prepare_cached(
            "UPDATE slots SET outcome = ?2, late_ms = ?3 WHERE run = ?1 AND outcome IN ('pending', 'queued')",
        )?
        .execute(params![run.to_string(), outcome, sql(start.late_ms)])
        .map(drop)
}

/// Notes what became of the slot of a run that ended without a start. Where that was a retry the slot has run: it stays
/// as it is, unless the retry was called off with its task.
///
/// # Errors
/// When the store cannot be written.
pub fn note_end_unstarted(connection: &Connection, run: RunId, outcome: &str, reason: &str) -> rusqlite::Result<()> {
    let noted = connection
        .prepare_cached(
            "UPDATE slots SET outcome = ?2, reason = ?3 WHERE run = ?1 AND outcome IN ('pending', 'queued')",
        )?
        .execute(params![run.to_string(), outcome, reason])?;
    if noted == 0 {
        let reason = format!("it ran, its retry did not: {reason}");
        connection
            .prepare_cached(
                "UPDATE slots SET outcome = CASE WHEN ?2 THEN 'disabled' ELSE outcome END, reason = ?3
                 WHERE run = ?1 AND outcome IN ('ran', 'late')",
            )?
            .execute(params![run.to_string(), outcome == "disabled", reason])?;
    }
    Ok(())
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
    connection
        .prepare_cached(
            "UPDATE slots SET outcome = 'coalesced', run = ?2, reason = ?3
             WHERE run = ?1 AND outcome IN ('pending', 'queued', 'coalesced')",
        )?
        .execute(params![run.to_string(), into.to_string(), reason])
        .map(drop)
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
        "SELECT scheduled_for, through, count, outcome, slots.run, late_ms, reason, runs.state
         FROM slots LEFT JOIN runs ON runs.id = slots.run
         WHERE slots.task = ?1 AND scheduled_for < ?2 ORDER BY scheduled_for DESC LIMIT ?3",
    )?;
    let before = before.map_or(i64::MAX, Timestamp::as_microsecond);
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    let rows = statement.query_map(params![task.0, before, sql(limit as u64)], |row| {
        let (first, through): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(Slot {
            scheduled_for: time(first),
            outcome: row.get(3)?,
            run: row.get::<_, Option<String>>(4)?.and_then(|id| id.parse().ok()),
            run_state: row.get(7)?,
            late_ms: row.get::<_, Option<i64>>(5)?.map(from_sql),
            reason: row.get(6)?,
            count: from_sql(row.get(2)?),
            to: (through != first).then(|| time(through)),
        })
    })?;
    rows.collect()
}
