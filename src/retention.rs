//! What is kept of each task: events by age, number, bytes and runs. Terminal statuses and summaries outlive the
//! events, in the table of runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use rusqlite::{Connection, params};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config;
use crate::event::Seq;
use crate::store::{Store, StoreError, TaskNo, from_sql, sql};
use crate::stream::log;
use crate::stream::publish::Publisher;
use crate::task::registry::Registry;

/// Keeps what should be kept.
#[derive(Debug)]
pub struct Retention {
    /// The tasks.
    pub registry: Registry,
    /// Their streams.
    pub publisher: Publisher,
    /// Where they are kept.
    pub store: Arc<Store>,
    /// What is kept.
    pub limits: config::Retention,
    /// Where the outputs of runs are.
    pub output_dir: Arc<Path>,
}

impl Retention {
    /// Sweeps from time to time until told to stop.
    pub async fn run(self, stop: CancellationToken, every: Duration) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            if let Err(error) = self.sweep().await {
                warn!(%error, "old events could not be removed; tried again later");
            }
        }
    }

    /// Lets go of what is too old or too much. O(tasks), and O(what goes).
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        let before = self.publisher.clock().now() - SignedDuration::from_hours(24 * i64::from(self.limits.days));
        for task in self.registry.all() {
            let Some(topic) = self.publisher.topic(&task.id) else { continue };
            let (no, limits) = (task.no, self.limits.clone());
            let read = move |connection: &Connection| {
                let outlived = log::outlived(connection, no, before, limits.events, limits.bytes)?;
                let by_runs = first_kept_run(connection, no, limits.runs)?;
                // What goes on is never taken from under it.
                let open = first_open_run(connection, no)?;
                let oldest = outlived.max(by_runs);
                Ok((open.map_or(oldest, |open| oldest.min(open)), log::bounds(connection, no)?))
            };
            let (oldest, bounds) = self.store.read(read).await?;
            if let Some(bounds) = bounds
                && oldest > bounds.oldest
            {
                self.publisher.raise_oldest(&topic, oldest).await?;
                info!(task = %task.id, %oldest, "old events removed");
                self.remove_outputs(no, bounds.oldest, oldest).await?;
            }
        }
        Ok(())
    }

    /// The outputs go with the events of their runs: of those that ended from `from` on and before `oldest`.
    async fn remove_outputs(&self, no: TaskNo, from: Seq, oldest: Seq) -> Result<(), StoreError> {
        let read = move |connection: &Connection| {
            let mut statement =
                connection.prepare_cached("SELECT id FROM runs WHERE task = ?1 AND last >= ?2 AND last < ?3")?;
            let rows = statement.query_map(params![no.0, sql(from.0), sql(oldest.0)], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        for run in self.store.read(read).await? {
            // Not every run has any.
            let _ = tokio::fs::remove_dir_all(self.output_dir.join(run)).await;
        }
        Ok(())
    }
}

fn first_kept_run(connection: &Connection, no: TaskNo, runs: u64) -> rusqlite::Result<Seq> {
    let mut statement =
        connection.prepare_cached("SELECT first FROM runs WHERE task = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2")?;
    let mut rows = statement.query(params![no.0, sql(runs.saturating_sub(1))])?;
    let first: Option<i64> = rows.next()?.map(|row| row.get(0)).transpose()?;
    Ok(first.map_or(Seq(1), |first| Seq(from_sql(first))))
}

fn first_open_run(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<Seq>> {
    let first: Option<i64> = connection
        .prepare_cached("SELECT min(first) FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')")?
        .query_row([no.0], |row| row.get(0))?;
    Ok(first.map(|first| Seq(from_sql(first))))
}
