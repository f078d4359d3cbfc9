//! The rows of tasks in the store: how they are read at a start, and what is asked and noted of one within a transaction.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::{Source, TaskError};
use crate::event::{Gen, Seq, TaskId};
use crate::record::Fold;
use crate::schedule::plan::Off;
use crate::store::{REMOVED, StoreError, TaskNo, from_sql};
use crate::stream::log;

pub(super) fn free_id(connection: &Connection, id: Option<TaskId>, title: &str) -> Result<TaskId, TaskError> {
    let is_taken = |id: &TaskId| -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM tasks WHERE id = ?1")?.exists([id.as_str()])
    };
    if let Some(id) = id {
        return if is_taken(&id)? { Err(TaskError::Exists(id)) } else { Ok(id) };
    }
    let stem = TaskId::from_title(title).map_or_else(|| "task".to_owned(), |id| id.to_string());
    for number in 1_u32.. {
        let text = if number == 1 { stem.clone() } else { format!("{}-{number}", &stem[..stem.len().min(56)]) };
        if let Ok(id) = text.parse()
            && !is_taken(&id)?
        {
            return Ok(id);
        }
    }
    Err(StoreError::Broken("no free id".to_owned()).into())
}

/// A row of `tasks`, with what is open in its log.
pub(super) struct Row {
    pub(super) no: TaskNo,
    pub(super) id: TaskId,
    pub(super) generation: Gen,
    pub(super) oldest: Seq,
    pub(super) head: Seq,
    pub(super) bytes: u64,
    pub(super) source: Source,
    pub(super) definition: String,
    pub(super) enabled: bool,
    pub(super) paused: bool,
    pub(super) anchor: Timestamp,
    pub(super) planned: Timestamp,
    pub(super) resumed: Option<Timestamp>,
    pub(super) seed: u64,
    pub(super) fold: Fold,
}

pub(super) fn read_rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default();
    let mut statement = connection.prepare(
        "SELECT no, id, gen, oldest, head, bytes, source, definition, enabled, paused, anchor, planned, seed,
           resumed
         FROM tasks WHERE id < ?1 ORDER BY id",
    )?;
    let rows = statement.query_map([REMOVED], |row| {
        let id: String = row.get(1)?;
        let source: String = row.get(6)?;
        Ok(id.parse().ok().map(|id| Row {
            no: TaskNo(row.get_unwrap(0)),
            id,
            generation: Gen(from_sql(row.get_unwrap(2))),
            oldest: Seq(from_sql(row.get_unwrap(3))),
            head: Seq(from_sql(row.get_unwrap(4))),
            bytes: from_sql(row.get_unwrap(5)),
            source: if source == "file" { Source::File } else { Source::Store },
            definition: row.get_unwrap(7),
            enabled: row.get_unwrap(8),
            paused: row.get_unwrap(9),
            anchor: time(row.get_unwrap(10)),
            planned: time(row.get_unwrap(11)),
            seed: row.get_unwrap::<_, i64>(12).cast_unsigned(),
            resumed: row.get_unwrap::<_, Option<i64>>(13).map(time),
            fold: Fold::default(),
        }))
    })?;
    let mut rows: Vec<Row> = rows.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?;
    for row in &mut rows {
        row.fold = log::fold_at(connection, &row.id, row.no, row.head)?;
    }
    Ok(rows)
}

/// Why a task of this number does not run by itself, if it does not: asked again when a run starts.
///
/// # Errors
/// When the store cannot be read.
pub fn off(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<Off>> {
    Ok(switches(connection, no)?.map_or(Some(Off::Gone), |(enabled, paused)| off_by(enabled, paused)))
}

/// The same of one that is there, by whether it may run at all and whether it is paused.
pub(super) const fn off_by(enabled: bool, paused: bool) -> Option<Off> {
    match (enabled, paused) {
        (false, _) => Some(Off::Gone),
        (true, true) => Some(Off::Paused),
        (true, false) => None,
    }
}

/// Whether a task of this number is there, and may run at all.
///
/// # Errors
/// When the store cannot be read.
pub fn is_enabled(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<bool>> {
    Ok(switches(connection, no)?.map(|(enabled, _)| enabled))
}

/// Whether a task that is there may run at all, and whether it is paused.
pub(super) fn switches(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<(bool, bool)>> {
    connection
        .prepare_cached("SELECT enabled, paused FROM tasks WHERE no = ?1 AND id < ?2")?
        .query_row(params![no.0, REMOVED], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// Whether a run of the task is not over: asked in the transaction that depends on it.
///
/// # Errors
/// When the store cannot be read.
pub fn has_open_runs(connection: &Connection, no: TaskNo) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')")?
        .exists([no.0])
}

/// Notes whether a run of the task failed, and gives how many have in a row.
///
/// # Errors
/// When the store cannot be written.
pub fn note_failure(connection: &Connection, no: TaskNo, failed: bool) -> rusqlite::Result<u32> {
    let update = if failed {
        "UPDATE tasks SET failures = failures + 1 WHERE no = ?1 RETURNING failures"
    } else {
        "UPDATE tasks SET failures = 0 WHERE no = ?1 AND failures > 0 RETURNING failures"
    };
    connection.prepare_cached(update)?.query_row([no.0], |row| row.get(0)).optional().map(Option::unwrap_or_default)
}

/// Pauses a task within the transaction of what made it pause. Its failures count anew.
///
/// # Errors
/// When the store cannot be written.
pub fn pause(connection: &Connection, no: TaskNo) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE tasks SET paused = 1, failures = 0 WHERE no = ?1")?.execute([no.0]).map(drop)
}
