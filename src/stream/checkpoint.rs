//! Moving the write-ahead log into the file, beside a steady writer.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::publish::Publisher;
use crate::store::{Store, StoreError};

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
    held: Vec<OwnedSemaphorePermit>,
    /// How many pages the log held at the last look, and whether it was as before then, with nothing left to do.
    seen: u32,
    is_at_rest: bool,
}

impl Checkpointer {
    /// Below this nothing is done: 4 MiB.
    pub const LOW: u32 = 1024;
    /// From here on the log is begun anew, so that it does not grow: 16 MiB.
    pub const AGAIN: u32 = 4096;
    /// Above this size of the log's file, in bytes, readers are kept away: 64 MiB.
    pub const HIGH: u64 = 64 * 1024 * 1024;
    /// How often the log is looked at while something is written.
    const EVERY: Duration = Duration::from_millis(250);
    /// How often while nothing is.
    const AT_REST: Duration = Duration::from_secs(2);
    /// How long the writer is kept waiting for readers at most.
    const READERS: Duration = Duration::from_millis(20);

    /// A checkpointer for the store's file.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn new(store: &Store) -> rusqlite::Result<Self> {
        let mut wal = store.path().as_os_str().to_owned();
        wal.push("-wal");
        let connection = crate::store::open_checkpointer(store.path(), Self::READERS)?;
        Ok(Self { connection, wal: wal.into(), held: Vec::new(), seen: 0, is_at_rest: false })
    }

    /// Looks at the log and does what is due.
    pub fn tick(&mut self, store: &Store, publisher: &Publisher) {
        let pages = store.wal_pages();
        let before = std::mem::replace(&mut self.seen, pages);
        let is_done = self.look(pages, store, publisher);
        self.is_at_rest = before == pages && is_done;
    }

    /// Blocks until it is time for the next look: soon, beside a writer that writes; else until a commit leaves something
    /// new to do, and for two seconds at most. Over at once when the thread is unparked.
    pub fn rest(&self, store: &Store) {
        if self.is_at_rest {
            store.sleep_until_wal_pages(Self::more_to_do_from(self.seen), self.seen, Self::AT_REST);
        } else {
            std::thread::park_timeout(Self::EVERY);
        }
    }

    /// With how many pages there is more to do than with those that were seen. Not with each commit: what is moved while
    /// a burst begins makes the burst wait for the disk.
    fn more_to_do_from(seen: u32) -> u32 {
        [Self::LOW, Self::AGAIN].into_iter().find(|pages| *pages > seen).unwrap_or(u32::MAX)
    }

    /// False where the log is too long and could not be cut: that is to be tried again soon.
    fn look(&mut self, pages: u32, store: &Store, publisher: &Publisher) -> bool {
        let size = std::fs::metadata(&self.wal).map_or(0, |meta| meta.len());
        if store.is_read_for_long() {
            // The log cannot be begun anew before that ends; the writer would wait for nothing.
            self.held.clear();
            if pages >= Self::LOW {
                told(self.checkpoint("PASSIVE"));
            }
            return true;
        }
        if size < Self::HIGH {
            self.held.clear();
            if pages >= Self::LOW {
                told(self.checkpoint("PASSIVE"));
            }
            if pages >= Self::AGAIN {
                told(self.finish("RESTART", store, publisher));
            }
            return true;
        }
        told(self.checkpoint("PASSIVE"));
        // All that are free now; those in use come back within a page, and then nobody else gets them.
        let permits = store.permits();
        let free = u32::try_from(permits.available_permits()).unwrap_or(u32::MAX);
        if free > 0
            && let Ok(free) = Arc::clone(permits).try_acquire_many_owned(free)
        {
            self.held.push(free);
        }
        // One that fails (a full disk) is not helped by waiting for readers; they are let in.
        let cut = told(self.finish("TRUNCATE", store, publisher));
        if cut.as_ref().is_none_or(|done| !done.busy) {
            self.held.clear();
        }
        cut.is_some_and(|done| !done.busy)
    }

    /// Moves all of the log into the file, and cuts it: when little is written, a busy moment need not take its room
    /// for ever. Gives how long the log was; nothing where a reader is in the way.
    ///
    /// # Errors
    /// When the file cannot be written, as on a full disk.
    pub fn empty(&self, store: &Store, publisher: &Publisher) -> Result<Option<u64>, StoreError> {
        let size = std::fs::metadata(&self.wal).map_or(0, |meta| meta.len());
        if size == 0 {
            return Ok(Some(0));
        }
        if store.is_read_for_long() {
            return Ok(None);
        }
        self.checkpoint("PASSIVE")?;
        let done = self.finish("TRUNCATE", store, publisher)?;
        Ok((!done.busy).then_some(size))
    }

    /// Moves the rest of the log while the writer pauses. What was moved before is synced first, so that the writer
    /// waits for the disk only as long as the last few pages take.
    fn finish(&self, mode: &str, store: &Store, publisher: &Publisher) -> Result<Checkpoint, StoreError> {
        store.sync().map_err(|error| StoreError::NotWritable(error.to_string()))?;
        publisher.while_quiet(|| {
            let done = self.checkpoint(mode)?;
            if !done.busy {
                store.note_wal_begun_anew();
            }
            Ok(done)
        })
    }

    fn checkpoint(&self, mode: &str) -> Result<Checkpoint, StoreError> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        Ok(self.connection.query_row(&sql, [], |row| Ok(Checkpoint { busy: row.get(0)? }))?)
    }
}

/// Where the next look tries again, nobody has to hear more of it than the log.
fn told(done: Result<Checkpoint, StoreError>) -> Option<Checkpoint> {
    done.inspect_err(|error| warn!(%error, "the checkpoint failed; it is tried again")).ok()
}

/// What became of a checkpoint.
struct Checkpoint {
    /// A reader was in its way.
    busy: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_ends_at_the_next_length_with_which_there_is_more_to_do() {
        let (low, again) = (Checkpointer::LOW, Checkpointer::AGAIN);
        let ends = [0, low - 1, low, again - 1, again, u32::MAX].map(Checkpointer::more_to_do_from);
        assert_eq!(ends, [low, low, again, again, u32::MAX, u32::MAX]);
    }
}
