//! How a task goes: out of sight in one transaction, and then its rows, in steps that nobody waits for long.

use std::sync::PoisonError;

use rusqlite::{Connection, params};

use super::rows::has_open_runs;
use super::{Registry, TaskError};
use crate::event::{RunId, TaskId};
use crate::failpoint;
use crate::store::{REMOVED, StoreError, TaskNo};
use crate::stream::log;

/// How many rows of a removed task go in one step.
const BURIED: i64 = 128;

impl Registry {
    /// Removes a task, its log and its runs, and says which runs those were. They must be over: that is asked
    /// in the transaction, as one may come in at any moment. `also` is written in the same transaction.
    ///
    /// From that transaction on nothing finds the task and its name is free; its rows go in steps, so that nobody
    /// waits for a task with a long history. What a crash leaves of them, [`Registry::bury`] takes.
    ///
    /// # Errors
    /// [`TaskError`]: no such task, a run is not over, the store cannot be written.
    pub async fn remove(
        &self,
        id: &TaskId,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Vec<RunId>, TaskError> {
        let edit = self.shared.edits.lock().await;
        let not_found = || TaskError::NotFound(id.clone());
        let task = self.get(id).ok_or_else(not_found)?;
        let topic = self.shared.publisher.topic(id).ok_or_else(not_found)?;
        let no = task.no;
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            if has_open_runs(connection, no)? {
                return Err(TaskError::Running);
            }
            connection.execute("UPDATE tasks SET id = ?2 || no, enabled = 0 WHERE no = ?1", params![no.0, REMOVED])?;
            also(connection)?;
            Ok(())
        };
        self.shared.publisher.delete(&topic, act).await?;
        self.forget(id, no);
        drop(edit);
        self.shared.publisher.changes().note(id);
        self.shared.removed.notify_one();
        failpoint::hit("removed-not-buried");
        // The task is gone, whatever becomes of its rows: they are taken later then.
        Ok(self.bury(no).await.unwrap_or_else(|error| {
            tracing::warn!(task = %id, %error, "the rows of a removed task are still there; housekeeping takes them");
            Vec::new()
        }))
    }

    fn forget(&self, id: &TaskId, no: TaskNo) {
        let mut tasks = self.shared.tasks.write().unwrap_or_else(PoisonError::into_inner);
        // Another of the same name may be there already.
        if tasks.by_id.get(id).is_some_and(|there| there.no == no) {
            tasks.remove(id);
        }
    }

    /// Takes the rows of a removed task, in steps that nobody waits for long; gives its runs.
    ///
    /// # Errors
    /// When the store cannot be written: another call goes on.
    pub async fn bury(&self, no: TaskNo) -> Result<Vec<RunId>, StoreError> {
        let mut runs = Vec::new();
        loop {
            let act = move |connection: &Connection| -> Result<_, StoreError> {
                Ok((bury_step(connection, no)?, Vec::new()))
            };
            let (step, _) = self.shared.publisher.transact(act).await?;
            match step {
                Some(gone) => runs.extend(gone),
                None => return Ok(runs),
            }
        }
    }
}

/// The removed tasks of which there are rows.
///
/// # Errors
/// When the store cannot be read.
pub fn removed(connection: &Connection) -> rusqlite::Result<Vec<TaskNo>> {
    let mut statement = connection.prepare_cached("SELECT no FROM tasks WHERE id >= ?1")?;
    statement.query_map([REMOVED], |row| row.get(0).map(TaskNo))?.collect()
}

/// Takes some rows of a removed task, the task's own at last; gives the runs among them, nothing when it is gone.
fn bury_step(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<Vec<RunId>>> {
    let is_removed =
        connection.prepare_cached("SELECT 1 FROM tasks WHERE no = ?1 AND id >= ?2")?.exists(params![no.0, REMOVED])?;
    if !is_removed {
        return Ok(None);
    }
    if !log::delete_step(connection, no)? {
        return Ok(Some(Vec::new()));
    }
    let mut statement = connection.prepare_cached(
        "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE task = ?1 ORDER BY id LIMIT ?2) RETURNING id",
    )?;
    let rows = statement.query_map([no.0, BURIED], |row| row.get::<_, String>(0))?;
    let runs: Vec<String> = rows.collect::<rusqlite::Result<_>>()?;
    if !runs.is_empty() {
        return Ok(Some(runs.iter().filter_map(|id| id.parse().ok()).collect()));
    }
    let slots = connection
        .prepare_cached(
            "DELETE FROM slots WHERE task = ?1 AND (gen, scheduled_for) IN
               (SELECT gen, scheduled_for FROM slots WHERE task = ?1 LIMIT ?2)",
        )?
        .execute(params![no.0, BURIED])?;
    if slots == 0 {
        connection.execute("DELETE FROM tasks WHERE no = ?1", [no.0])?;
    }
    Ok(Some(Vec::new()))
}
