//! Moving the write-ahead log into the file, beside a steady writer.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::publish::Publisher;
use crate::store::Store;

/// Moves the log into the file beside a steady writer. Runs on its own thread with its own connection, so that
/// the writer does not pay for it.
///
/// A passive checkpoint beside a steady writer never reaches the end: the last part is done while the writer
/// pauses. Above [`Checkpointer::HIGH`] pages are held back too, until a truncating one succeeded.
#[derive(Debug)]
pub struct Checkpointer {
    connection: Connection,
    wal: std::path::PathBuf,
    /// The permits for pages that are held back, from one look to the next.
    held: Mutex<Vec<OwnedSemaphorePermit>>,
}

impl Checkpointer {
    /// Below this nothing is done: 4 MiB.
    pub const LOW: u64 = 4 * 1024 * 1024;
    /// Above this readers are kept away: 64 MiB.
    pub const HIGH: u64 = 64 * 1024 * 1024;

    /// A checkpointer for the store's file.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn new(store: &Store) -> rusqlite::Result<Self> {
        let mut wal = store.path().as_os_str().to_owned();
        wal.push("-wal");
        let connection = crate::store::open_checkpointer(store.path())?;
        Ok(Self { connection, wal: wal.into(), held: Mutex::default() })
    }

    /// Looks at the size of the log beside the file and does what is due.
    pub fn tick(&self, store: &Store, publisher: &Publisher) {
        let size = std::fs::metadata(&self.wal).map_or(0, |meta| meta.len());
        if size < Self::LOW {
            self.held().clear();
            return;
        }
        let passive = self.checkpoint("PASSIVE");
        if size < Self::HIGH {
            self.held().clear();
            if passive.is_some_and(|done| done.frames > done.moved) {
                publisher.while_quiet(|| self.checkpoint("RESTART"));
            }
            return;
        }
        // All that are free now; those in use come back within a page, and then nobody else gets them.
        let permits = store.permits();
        let free = u32::try_from(permits.available_permits()).unwrap_or(u32::MAX);
        if free > 0
            && let Ok(free) = Arc::clone(permits).try_acquire_many_owned(free)
        {
            self.held().push(free);
        }
        let truncated = publisher.while_quiet(|| self.checkpoint("TRUNCATE"));
        // One that fails (a full disk) is not helped by waiting for readers; they are let in.
        if truncated.is_none_or(|done| !done.busy) {
            self.held().clear();
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checkpoint(&self, mode: &str) -> Option<Checkpoint> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let result = self
            .connection
            .query_row(&sql, [], |row| Ok(Checkpoint { busy: row.get(0)?, frames: row.get(1)?, moved: row.get(2)? }));
        result.inspect_err(|error| warn!(%error, mode, "the checkpoint failed; it is tried again")).ok()
    }
}

/// How far a checkpoint came.
struct Checkpoint {
    /// A reader or the writer was in its way.
    busy: bool,
    /// Frames in the log.
    frames: i64,
    /// Frames that are in the file now.
    moved: i64,
}
