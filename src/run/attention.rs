//! What runs have found and a person should look at: open until it is acknowledged, less the time it is snoozed.
//!
//! A finding is written with the end of its run (`stream::log`); here it is read, and answered by people. Whoever
//! answers one answers with it all of the same task from before: they were shown as one.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use serde::Serialize;

use crate::event::{RunId, TaskId};
use crate::record::wire_time;
use crate::store::{TaskNo, from_sql, sql};
use crate::stream::log::LONGEST_SNOOZE;

/// How many open findings of one task are counted: a task that looks every second has thousands in a night.
const MOST_COUNTED: i64 = 1000;

/// Where a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Nobody has answered it, or its snooze is over.
    Open,
    /// It comes back.
    Snoozed,
    /// Somebody has seen it.
    Acknowledged,
}

impl Answer {
    /// The answer of this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Open, Self::Snoozed, Self::Acknowledged].into_iter().find(|answer| answer.as_str() == name)
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Snoozed => "snoozed",
            Self::Acknowledged => "acknowledged",
        }
    }

    /// The rows in this state; `?1` is now. What is snoozed for longer than anything can be was snoozed by a clock that was
    /// ahead, and is open.
    fn condition(self) -> String {
        let latest = format!("?1 + {}", LONGEST_SNOOZE.as_micros());
        match self {
            Self::Open => {
                format!("acknowledged IS NULL AND (snoozed IS NULL OR snoozed <= ?1 OR snoozed > {latest})")
            }
            Self::Snoozed => format!("acknowledged IS NULL AND snoozed > ?1 AND snoozed <= {latest}"),
            Self::Acknowledged => "acknowledged IS NOT NULL".to_owned(),
        }
    }
}

/// A finding as clients see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The run that found it.
    pub run: RunId,
    /// Its task.
    pub task: TaskId,
    /// The finding in one line.
    pub summary: String,
    /// When the run was over.
    #[serde(with = "wire_time")]
    pub at: Timestamp,
    /// Where it is.
    pub state: Answer,
    /// When somebody acknowledged it.
    #[serde(with = "wire_time::option")]
    pub acknowledged_at: Option<Timestamp>,
    /// Until when it is snoozed.
    #[serde(with = "wire_time::option")]
    pub snoozed_until: Option<Timestamp>,
}

/// What a task has found and nobody has answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Open {
    /// The newest run that found something.
    pub run: RunId,
    /// What it found, in one line.
    pub summary: String,
    /// When.
    #[serde(with = "wire_time")]
    pub at: Timestamp,
    /// How many findings of the task are open, up to a thousand.
    pub count: u64,
}

/// What is open of a task. O(open findings of the task), at most a thousand.
///
/// # Errors
/// When the store cannot be read.
pub fn open_of(connection: &Connection, task: TaskNo, now: Timestamp) -> rusqlite::Result<Option<Open>> {
    let of_task = format!("FROM findings WHERE {} AND task = ?2 ORDER BY run DESC LIMIT", Answer::Open.condition());
    let newest = connection
        .prepare_cached(&format!("SELECT run, summary, at {of_task} 1"))?
        .query_row(params![now.as_microsecond(), task.0], |row| {
            let run: Option<RunId> = row.get::<_, String>(0)?.parse().ok();
            Ok(run.map(|run| (run, row.get_unwrap(1), time(row.get_unwrap(2)))))
        })
        .optional()?;
    let Some((run, summary, at)) = newest.flatten() else { return Ok(None) };
    let count = connection
        .prepare_cached(&format!("SELECT count(*) FROM (SELECT 1 {of_task} {MOST_COUNTED})"))?
        .query_row(params![now.as_microsecond(), task.0], |row| row.get(0))
        .map(from_sql)?;
    Ok(Some(Open { run, summary, at, count }))
}

/// Which findings are asked for.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// In this state; in any without.
    pub state: Option<Answer>,
    /// Of this task; of any without.
    pub task: Option<TaskNo>,
    /// Of runs before this one.
    pub before: Option<RunId>,
}

/// Findings, the newest first.
///
/// # Errors
/// When the store cannot be read.
pub fn list(connection: &Connection, which: &Which, now: Timestamp, limit: usize) -> rusqlite::Result<Vec<Finding>> {
    let condition = which.state.map_or_else(|| "?1 IS NOT NULL".to_owned(), Answer::condition);
    let before = which.before.map_or_else(|| "~".to_owned(), |run| run.to_string());
    let (micros, limit) = (now.as_microsecond(), sql(limit as u64));
    let mut given: Vec<&dyn ToSql> = vec![&micros, &before, &limit];
    let of_task = which.task.as_ref().map_or("", |task| {
        given.push(&task.0);
        "AND findings.task = ?4"
    });
    let sql = format!(
        "SELECT run, id, summary, at, acknowledged, snoozed FROM findings JOIN tasks ON tasks.no = findings.task
         WHERE {condition} AND run < ?2 {of_task} ORDER BY run DESC LIMIT ?3"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(given.as_slice(), |row| finding(row, now))?;
    rows.filter_map(Result::transpose).collect()
}

/// What a run has found, if it has.
///
/// # Errors
/// When the store cannot be read.
pub fn of_run(connection: &Connection, run: RunId, now: Timestamp) -> rusqlite::Result<Option<Finding>> {
    connection
        .prepare_cached(
            "SELECT run, id, summary, at, acknowledged, snoozed FROM findings JOIN tasks ON tasks.no = findings.task
             WHERE run = ?1",
        )?
        .query_row([run.to_string()], |row| finding(row, now))
        .optional()
        .map(Option::flatten)
}

/// Notes that somebody has seen what a run has found, and what its task had found before.
///
/// # Errors
/// When the store cannot be written.
pub fn acknowledge(connection: &Connection, task: TaskNo, run: RunId, now: Timestamp) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE findings SET acknowledged = ?3 WHERE task = ?1 AND run <= ?2 AND acknowledged IS NULL")?
        .execute(params![task.0, run.to_string(), now.as_microsecond()])
        .map(drop)
}

/// Puts away until then what a run has found, and what else of its task is not acknowledged from before. One that
/// was acknowledged comes back then too.
///
/// # Errors
/// When the store cannot be written.
pub fn snooze(connection: &Connection, task: TaskNo, run: RunId, until: Timestamp) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE findings SET snoozed = ?3, acknowledged = NULL
             WHERE task = ?1 AND run <= ?2 AND (acknowledged IS NULL OR run = ?2)",
        )?
        .execute(params![task.0, run.to_string(), until.as_microsecond()])
        .map(drop)
}

/// The tasks of which a snooze ended after one moment and up to another, or because the clock was set back.
///
/// # Errors
/// When the store cannot be read.
pub fn woken(connection: &Connection, after: Timestamp, upto: Timestamp) -> rusqlite::Result<Vec<TaskId>> {
    let mut statement = connection.prepare_cached(
        "SELECT DISTINCT id FROM findings JOIN tasks ON tasks.no = findings.task
         WHERE ((snoozed > ?1 AND snoozed <= ?2) OR snoozed > ?3) AND acknowledged IS NULL",
    )?;
    let range = [after.as_microsecond(), upto.as_microsecond(), latest(upto).as_microsecond()];
    let rows = statement.query_map(range, |row| row.get::<_, String>(0))?;
    rows.filter_map(|row| row.map(|id| id.parse().ok()).transpose()).collect()
}

/// When the next snooze ends after a moment.
///
/// # Errors
/// When the store cannot be read.
pub fn next_end(connection: &Connection, after: Timestamp) -> rusqlite::Result<Option<Timestamp>> {
    connection
        .prepare_cached(
            "SELECT min(snoozed) FROM findings WHERE snoozed > ?1 AND snoozed <= ?2 AND acknowledged IS NULL",
        )?
        .query_row([after.as_microsecond(), latest(after).as_microsecond()], |row| row.get::<_, Option<i64>>(0))
        .map(|micros| micros.map(time))
}

/// Until when what is snoozed now can be at most.
fn latest(now: Timestamp) -> Timestamp {
    now.saturating_add(LONGEST_SNOOZE).unwrap_or(Timestamp::MAX)
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or_default()
}

/// A row as [`list`] and [`of_run`] select it.
fn finding(row: &Row<'_>, now: Timestamp) -> rusqlite::Result<Option<Finding>> {
    let (Ok(run), Ok(task)) = (row.get::<_, String>(0)?.parse(), row.get::<_, String>(1)?.parse()) else {
        return Ok(None);
    };
    let acknowledged_at = row.get::<_, Option<i64>>(4)?.map(time);
    let is_ahead = |until: &Timestamp| *until > now && *until <= latest(now);
    let snoozed_until =
        row.get::<_, Option<i64>>(5)?.map(time).filter(|until| acknowledged_at.is_none() && is_ahead(until));
    let state = match (acknowledged_at, snoozed_until) {
        (Some(_), _) => Answer::Acknowledged,
        (None, Some(_)) => Answer::Snoozed,
        (None, None) => Answer::Open,
    };
    Ok(Some(Finding { run, task, summary: row.get(2)?, at: time(row.get(3)?), state, acknowledged_at, snoozed_until }))
}
