//! The one SQLite file: opening it, its schema, who may write and how it is read. What stands in the tables is
//! the business of `stream::log` and of the stores beside it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::mem::ManuallyDrop;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::config::trust::{Untrusted, owned, trusted};

pub mod backup;
mod opens;
pub mod restore;
pub(crate) mod schema;

/// The newest version of the schema that this program knows.
pub use schema::VERSION;

/// How long the lock of a server that is gone may outlive it.
const LOCK_PASSES: Duration = Duration::from_secs(2);
/// Idle read connections that are kept; each holds a page cache. As many as `stream.page_reads` is unless set: SQLite
/// keeps the descriptor of one that is closed while another has a lock, for the next that is opened.
const KEPT_READERS: usize = 8;

/// What a data folder consists of; copies and what a restore has replaced are no part of it.
const PARTS: [&str; 12] = [
    "rejoin.db",
    "rejoin.db-wal",
    "rejoin.db-shm",
    "rejoin.db-journal",
    "opens",
    "output",
    "restoring",
    "lock",
    "token",
    "metrics-token",
    "backup-mark",
    "rejoin.sock",
];

/// After how many of SQLite's steps it is asked whether to go on: a few times a second.
const PROGRESS_STEPS: i32 = 100_000;

/// The number of a task in the store; never given twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TaskNo(pub i64);

/// A number as SQLite keeps it: the same 64 bits, with a sign.
pub const fn sql(number: u64) -> i64 {
    number.cast_signed()
}

/// A number as it was before [`sql`].
pub const fn from_sql(number: i64) -> u64 {
    number.cast_unsigned()
}

/// How hard a commit is pressed onto the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Survives a crash of the server; a power cut may take the last commits (which then get a new gen).
    #[default]
    Normal,
    /// Every commit is synced: survives a power cut.
    Full,
}

/// The store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Nothing can be written at the moment, most often because the disk is full.
    #[error("the store cannot be written at the moment: {0}")]
    NotWritable(String),
    /// The server is going down.
    #[error("the server is stopping")]
    Stopping,
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseBusy, DiskFull, ReadOnly, SystemIoFailure};
        match error.sqlite_error_code() {
            Some(DiskFull | SystemIoFailure | ReadOnly | CannotOpen | DatabaseBusy) => {
                Self::NotWritable(error.to_string())
            }
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// Another server has the data folder.
#[derive(Debug, thiserror::Error)]
#[error("another server (pid {pid}) has the data folder {}: stop it first, or give this one another data_dir", dir.display())]
pub struct InUse {
    pid: String,
    dir: PathBuf,
}

/// What the id of a removed task begins with whose rows are still there: no id does, and it sorts behind them all.
pub const REMOVED: &str = "~";

/// How many pages the write-ahead log holds, and who is woken when they are many.
#[derive(Debug, Default)]
struct WalPages {
    count: AtomicU32,
    sleeper: Mutex<Option<Sleeper>>,
}

/// A thread that sleeps until the write-ahead log holds at least so many pages.
#[derive(Debug)]
struct Sleeper {
    many: u32,
    thread: Thread,
}

impl WalPages {
    fn note(&self, pages: u32) {
        self.count.store(pages, Relaxed);
        if let Some(sleeper) = self.sleeper().take_if(|sleeper| pages >= sleeper.many) {
            sleeper.thread.unpark();
        }
    }

    fn sleep_until(&self, many: u32, seen: u32, longest: Duration) {
        {
            // A commit is counted before it looks for a sleeper: either it is seen here, or it finds the one that is left.
            let mut sleeper = self.sleeper();
            if self.count.load(Relaxed) != seen {
                return;
            }
            *sleeper = Some(Sleeper { many, thread: std::thread::current() });
        }
        std::thread::park_timeout(longest);
        *self.sleeper() = None;
    }

    fn sleeper(&self) -> MutexGuard<'_, Option<Sleeper>> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A data folder that is open: the lock, the file and the connections that read it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// Pages in the write-ahead log, as the writer's last commit left it.
    wal_pages: Arc<WalPages>,
    /// The database file, to have it synced beside the writer. Never closed: a close of any descriptor of a file gives
    /// up all locks that the process has on it (`fcntl(2)`), and SQLite's among them.
    file: ManuallyDrop<File>,
    /// Idle read connections. Taken out for one page, never held over an await.
    readers: Mutex<Vec<Connection>>,
    /// Taken in async code before a page is read.
    permits: Arc<Semaphore>,
    /// How many read for long, see [`Store::read_for_long`].
    long_reads: AtomicUsize,
    /// Where pages are read.
    place: Place,
    /// Held for as long as the server lives: a second server on the same data is refused.
    _lock: Flock<File>,
}

/// Where pages are read.
enum Place {
    /// On threads that may block.
    Threads,
    /// Where they are asked for, between two pauses: nothing else decides how long a page takes.
    Here(Box<dyn Fn() -> Duration + Send + Sync>),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Threads => "Threads",
            Self::Here(_) => "Here",
        })
    }
}

/// What opening gives: the store, and the one connection that writes.
#[derive(Debug)]
pub struct Opened {
    /// To read.
    pub store: Store,
    /// To write: goes to the single writer.
    pub writer: Connection,
    /// Whether the logs on disk may have lost their end, so that every task needs a new gen.
    pub logs_replaced: bool,
}

impl Store {
    /// Opens the data folder, makes what is missing and brings the schema up to date. At most `page_reads` pages
    /// are read at once: a recovery storm must not take all threads.
    ///
    /// # Errors
    /// When another server has it, when its data is of a newer version, or when it cannot be read or written;
    /// each says what to do.
    pub fn open(dir: &Path, durability: Durability, page_reads: usize) -> Result<Opened> {
        make_private_dir(dir)?;
        refuse_foreign(dir)?;
        let lock = lock(dir)?;
        restore::finish(dir)?;
        remove_unfinished(dir);
        let path = dir.join("rejoin.db");
        let mut writer = Connection::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        set_up_writer(&writer, durability).with_context(|| format!("cannot set up {}", path.display()))?;
        schema::migrate(&mut writer).with_context(|| format!("cannot use {}", path.display()))?;
        let logs_replaced = opens::note_open(&writer, &dir.join("opens"), durability)?;
        let wal_pages = count_wal_pages(&mut writer)?;
        let file = ManuallyDrop::new(File::open(&path).with_context(|| format!("cannot open {}", path.display()))?);
        let (readers, permits) = (Mutex::new(Vec::new()), Arc::new(Semaphore::new(page_reads)));
        let long_reads = AtomicUsize::new(0);
        let store = Self { path, wal_pages, file, readers, permits, long_reads, place: Place::Threads, _lock: lock };
        Ok(Opened { store, writer, logs_replaced })
    }

    /// Reads pages without a thread from now on: for a simulation, in which time passes only as it is told to.
    /// A page takes the two pauses that it is given, one before and one after the read.
    #[must_use]
    pub fn reading_here(self, pause: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { place: Place::Here(Box::new(pause)), ..self }
    }

    /// Notes that the server stopped in order, once nothing is written any more. The file is whole by itself then:
    /// a copy of it is a backup, and an older copy put in its place meets no log of a newer one. Where it could not be
    /// made whole (somebody else reads it, the disk is full) nothing is noted: it was no stop in order.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn note_clean_stop(&self) -> Result<()> {
        self.note_clean_stop_within(Duration::from_secs(5))
    }

    fn note_clean_stop_within(&self, patience: Duration) -> Result<()> {
        let whole = open_checkpointer(&self.path, patience).and_then(|connection| {
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0))
        });
        if !matches!(whole, Ok(false)) {
            warn!(?whole, "the write-ahead log could not be moved into the file; the next start does it");
            return Ok(());
        }
        opens::note_clean_stop(&self.path.with_file_name("opens"))
    }

    /// Reads on this thread for as long as it takes, with a connection of its own. Meanwhile the write-ahead log is not
    /// begun anew: that would have the writer wait for this reader.
    ///
    /// # Errors
    /// Those of `read`, or of opening the file.
    pub fn read_for_long<T, E: From<rusqlite::Error>>(
        &self,
        read: impl FnOnce(&mut Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        struct Reading<'s>(&'s AtomicUsize);
        impl Drop for Reading<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        self.long_reads.fetch_add(1, Relaxed);
        let _reading = Reading(&self.long_reads);
        let mut connection = open_reader(&self.path)?;
        read(&mut connection)
    }

    /// Whether somebody reads for long.
    pub fn is_read_for_long(&self) -> bool {
        self.long_reads.load(Relaxed) > 0
    }

    /// Looks at the whole file for damage; gives the first thing that is wrong. `go_on` is asked now and then.
    ///
    /// # Errors
    /// When it cannot be read, or was given up.
    pub fn check(&self, go_on: impl FnMut() -> bool + Send + 'static) -> rusqlite::Result<Option<String>> {
        self.read_for_long(|connection| {
            let mut go_on = go_on;
            connection.progress_handler(PROGRESS_STEPS, Some(move || !go_on()))?;
            let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            Ok((found != "ok").then(|| found.replace('\n', " ")))
        })
    }

    /// Reads one page on a thread that may block. The permit is taken here, in async code; the read
    /// transaction lives only as long as `read`.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub async fn read<T, F>(self: &Arc<Self>, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Stopping)?;
        if let Place::Here(pause) = &self.place {
            tokio::time::sleep(pause()).await;
            let page = self.read_blocking(read);
            tokio::time::sleep(pause()).await;
            return page;
        }
        let store = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            store.read_blocking(read)
        });
        done.await.map_err(|error| StoreError::Broken(error.to_string()))?
    }

    /// Reads on this thread, in one read transaction.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be read.
    pub fn read_blocking<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match kept {
            Some(connection) => connection,
            None => open_reader(&self.path)?,
        };
        let transaction = connection.unchecked_transaction()?;
        let result = read(&transaction);
        drop(transaction);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < KEPT_READERS {
            readers.push(connection);
        }
        Ok(result?)
    }

    /// Gives back what readers that are not reading keep, of pages and of plans: each would fill with time, however seldom
    /// it is used. O(what they keep), at most a millisecond, in which nobody begins to read.
    pub fn tidy(&self) {
        for reader in self.readers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            reader.flush_prepared_statement_cache();
            if let Err(error) = reader.execute_batch("PRAGMA shrink_memory") {
                warn!(%error, "a reader of the store keeps its memory");
            }
        }
    }

    /// The permits for pages: whoever must keep readers away for a moment takes them all.
    pub fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// How many pages the write-ahead log holds, moved into the file or not.
    pub fn wal_pages(&self) -> u32 {
        self.wal_pages.count.load(Relaxed)
    }

    /// Blocks until a commit leaves at least `many` pages in the write-ahead log, until the thread is unparked, or for
    /// `longest`. Not at all, where there are others than those that were `seen`. For one thread at a time.
    pub fn sleep_until_wal_pages(&self, many: u32, seen: u32, longest: Duration) {
        self.wal_pages.sleep_until(many, seen, longest);
    }

    /// The next commit begins the write-ahead log anew; for one who knows that nothing was committed since.
    pub fn note_wal_begun_anew(&self) {
        self.wal_pages.note(0);
    }

    /// Has what was written to the file so far reach the disk. Blocks, and nobody else.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// A copy of the store of a data folder that no server has, see [`backup::copy`].
///
/// # Errors
/// When a server has the folder; [`backup::BackupError`].
pub fn copy_of_idle(dir: &Path, to: &Path, outputs: bool, label: &backup::Label) -> Result<backup::Copied> {
    let _lock = lock(dir)?;
    restore::finish(dir)?;
    let source = Connection::open(dir.join("rejoin.db"))?;
    let folder = dir.join("output");
    Ok(backup::copy(&source, outputs.then_some(folder.as_path()), to, label, &|| true)?)
}

/// Where a copy is made that is sent away: nobody has it once the server is gone.
pub fn place_for_copy(dir: &Path) -> PathBuf {
    dir.join(format!("{COPY}{:016x}", rand::random::<u64>()))
}

/// What its name begins with.
const COPY: &str = "backup.part-";

/// A server that was killed left what nobody asks for any more.
fn remove_unfinished(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(COPY)) {
        let _ = std::fs::remove_file(entry.path());
    }
}

/// A connection of its own for checkpoints, so that the writer never does one by itself. It waits so long for readers.
///
/// # Errors
/// When the file cannot be opened.
pub fn open_checkpointer(path: &Path, patience: Duration) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(patience)?;
    Ok(connection)
}

fn set_up_writer(writer: &Connection, durability: Durability) -> Result<()> {
    writer.busy_timeout(Duration::from_secs(5))?;
    // Must come before the first table, or it has no effect.
    writer.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let mode: String = writer.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        bail!("the file system does not allow a write-ahead log (journal mode is {mode:?}): use a local disk");
    }
    let synchronous = match durability {
        Durability::Normal => "NORMAL",
        Durability::Full => "FULL",
    };
    writer.pragma_update(None, "synchronous", synchronous)?;
    writer.pragma_update(None, "wal_autocheckpoint", 0)?;
    writer.pragma_update(None, "foreign_keys", true)?;
    // A transaction of 256 slots changes more pages than the 2 MiB that are usual: what does not fit is written twice.
    writer.pragma_update(None, "cache_size", -8192)?;
    // What a job's savepoint keeps to undo it is of that job only: no file for it.
    writer.pragma_update(None, "temp_store", "MEMORY")?;
    // Plans do not depend on values, so that none is made again for another value.
    writer.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    writer.set_prepared_statement_cache_capacity(128);
    Ok(())
}

/// Counts the pages of the write-ahead log from the next commit on.
fn count_wal_pages(writer: &mut Connection) -> rusqlite::Result<Arc<WalPages>> {
    let counted = Arc::new(WalPages::default());
    let count = Arc::clone(&counted);
    writer.wal_hook(Some(move |_: &mut Wal, pages| {
        count.note(u32::try_from(pages).unwrap_or(u32::MAX));
        Ok(())
    }))?;
    Ok(counted)
}

/// Whether a file, which need not be there, is one of those that a data folder consists of: in it, or through a link. A
/// folder in which no server ever had its store is none, whatever a copy in it is called.
pub fn is_part_of(dir: &Path, file: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let is_same = |one: &Path, other: &Path| identity(one).is_some_and(|one| identity(other) == Some(one));
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let has_its_name =
        is_same(parent, dir) && file.file_name().is_some_and(|name| PARTS.iter().any(|part| name == *part));
    let is_one = has_its_name || PARTS.iter().any(|part| is_same(&dir.join(part), file));
    is_one && dir.join("lock").exists()
}

/// Makes the data folder, for its user alone. One that is there already must be nobody's to write but its owner's: who
/// can put a store or a token there has the server.
fn make_private_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make the data folder {}", dir.display()))?;
    trusted(dir).context("the data folder cannot be used")
}

/// Refuses what somebody else has left in the data folder while it could be written by others: it is acted upon. The
/// tokens are looked at where they are read.
fn refuse_foreign(dir: &Path) -> Result<()> {
    for part in PARTS.iter().filter(|part| !part.ends_with("token")) {
        owned(&dir.join(part)).map_err(|why| match why {
            Untrusted::Owner { path, owner, me } => anyhow!(
                "{} belongs to {owner}, who may have put it there: if it is yours all the same, chown -R {me} '{}'",
                path.display(),
                dir.display()
            ),
            why => why.into(),
        })?;
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let give_up = Instant::now() + LOCK_PASSES;
    let mut file = file;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.rewind()?;
                writeln!(*lock, "{}", std::process::id())?;
                return Ok(lock);
            }
            Err((file, _)) => file,
        };
        let mut pid = String::new();
        file.rewind()?;
        file.read_to_string(&mut pid)?;
        // A server that was killed while it started a command: for a moment the command-to-be still has the lock.
        if is_there(pid.trim()) || Instant::now() >= give_up {
            return Err(InUse { pid: pid.trim().to_owned(), dir: dir.to_owned() }.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and is not only waiting to be reaped.
fn is_there(pid: &str) -> bool {
    match std::fs::read_link(Path::new("/proc").join(pid).join("exe")) {
        Ok(_) => true,
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only one that is not woken sleeps so long.
    const NEVER: Duration = Duration::from_secs(30);

    #[test]
    fn who_sleeps_beside_the_log_is_woken_by_the_commit_that_makes_it_long_and_not_by_those_before() {
        let pages = Arc::new(WalPages::default());
        let sleeps = std::thread::spawn({
            let pages = Arc::clone(&pages);
            move || pages.sleep_until(1000, 0, NEVER)
        });
        while pages.sleeper().is_none() {
            std::thread::yield_now();
        }
        pages.note(999);
        assert!(pages.sleeper().is_some(), "it still sleeps");
        let long = Instant::now();
        pages.note(1000);
        sleeps.join().unwrap();
        assert!(long.elapsed() < NEVER);
    }

    #[test]
    fn who_has_not_seen_the_last_commit_does_not_sleep() {
        let pages = WalPages::default();
        pages.note(2);
        let begin = Instant::now();
        pages.sleep_until(1000, 1, NEVER);
        assert!(begin.elapsed() < NEVER);
    }

    #[test]
    fn a_commit_of_the_store_wakes_who_sleeps_beside_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let Opened { store, writer, .. } = Store::open(dir.path(), Durability::Normal, 1).unwrap();
        let seen = store.wal_pages();
        std::thread::scope(|scope| {
            let sleeps = scope.spawn(|| store.sleep_until_wal_pages(seen + 1, seen, NEVER));
            while store.wal_pages.sleeper().is_none() {
                std::thread::yield_now();
            }
            let commit = Instant::now();
            writer.execute("INSERT INTO meta (key, value) VALUES ('later', '')", []).unwrap();
            sleeps.join().unwrap();
            assert!(commit.elapsed() < NEVER);
        });
    }

    #[test]
    fn a_stop_that_left_part_of_the_store_in_its_log_is_not_noted_as_one_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let noted = || std::fs::read_to_string(dir.path().join("opens")).unwrap().contains("\"clean\":true");
        let opened = Store::open(dir.path(), Durability::Normal, 1).unwrap();
        let reader = Connection::open(dir.path().join("rejoin.db")).unwrap();
        let moment = reader.unchecked_transaction().unwrap();
        moment.query_row("SELECT count(*) FROM meta", [], |_| Ok(())).unwrap();
        opened.writer.execute("INSERT INTO meta (key, value) VALUES ('later', '')", []).unwrap();
        opened.store.note_clean_stop_within(Duration::ZERO).unwrap();
        assert!(!noted(), "a reader was in the way");
        drop(moment);
        opened.store.note_clean_stop_within(Duration::ZERO).unwrap();
        assert!(noted());
    }
}
