//! A copy of the store in one file, of one moment, while it is written to; with the outputs of runs in it.
//!
//! The copy is a SQLite file like the store, without a write-ahead log. Knows nothing of what the tables mean but of
//! its own two: `meta`, where it says what it is, and `backup_outputs`.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// Pages that are copied before it is looked whether to go on: 4 MiB, some milliseconds.
const STEP_PAGES: i32 = 1024;
/// An output lies in pieces of so many bytes: none has to be in memory as a whole.
const PIECE: usize = 1024 * 1024;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// No room where it is written.
    #[error("there is no room for the copy: {0}")]
    DiskFull(String),
    /// The server is stopping, or nobody wants it any more.
    #[error("the copy was given up")]
    GivenUp,
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // A file system that is full, or a limit of the process on the size of files.
            Some(rusqlite::ErrorCode::DiskFull | rusqlite::ErrorCode::SystemIoFailure) => {
                Self::DiskFull(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<std::io::Error> for BackupError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::DiskFull(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// What a copy says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Label {
    /// When it was made, RFC 3339.
    pub at: String,
    /// By which version of the program.
    pub program: String,
    /// Whether outputs are in it.
    pub outputs: bool,
}

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    /// The size of the file.
    pub bytes: u64,
    /// How many outputs are in it.
    pub outputs: u64,
}

/// Copies the store as `source` has it at one moment to a new file, which only its owner can read. `outputs` is the
/// folder of the runs' outputs, if they are to be in it. Asked now and then, `go_on` ends it. What was begun is
/// removed when it fails.
///
/// # Errors
/// [`BackupError`]; a file that is there already is not touched.
pub fn copy(
    source: &Connection,
    outputs: Option<&Path>,
    to: &Path,
    label: &Label,
    go_on: &dyn Fn() -> bool,
) -> Result<Copied, BackupError> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let unfinished = Unfinished(to);
    let mut copy = Connection::open(to)?;
    // Nobody needs a half of it: nothing of it has to be undone, and it is synced once, as a whole.
    copy.pragma_update(None, "journal_mode", "OFF")?;
    copy.pragma_update(None, "synchronous", "OFF")?;
    copy_pages(source, &mut copy, go_on)?;
    // A file by itself, that can be read where nothing can be written.
    copy.query_row("PRAGMA journal_mode=DELETE", [], |row| row.get::<_, String>(0))?;
    copy.pragma_update(None, "synchronous", "OFF")?;
    let outputs = match outputs {
        Some(folder) => copy_outputs(&mut copy, folder, go_on)?,
        None => 0,
    };
    let text = serde_json::to_string(label).map_err(|error| BackupError::Failed(error.to_string()))?;
    copy.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('backup', ?1)", [text])?;
    copy.close().map_err(|(_, error)| error)?;
    let file = File::open(to)?;
    file.sync_all()?;
    let bytes = file.metadata()?.len();
    std::mem::forget(unfinished);
    Ok(Copied { bytes, outputs })
}

/// Removes a copy that was not finished, with what SQLite may have put beside it.
struct Unfinished<'p>(&'p Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        for end in ["", "-journal", "-wal", "-shm"] {
            let mut name = self.0.as_os_str().to_owned();
            name.push(end);
            let _ = std::fs::remove_file(PathBuf::from(name));
        }
    }
}

/// Copies page by page within one read transaction: of what is written meanwhile nothing is in it, and it never has to
/// begin again.
fn copy_pages(source: &Connection, copy: &mut Connection, go_on: &dyn Fn() -> bool) -> Result<(), BackupError> {
    let moment = source.unchecked_transaction()?;
    moment.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
    let backup = Backup::new(&moment, copy)?;
    loop {
        match backup.step(STEP_PAGES)? {
            StepResult::Done => return Ok(()),
            StepResult::Busy | StepResult::Locked => std::thread::yield_now(),
            _ => {}
        }
        if !go_on() {
            return Err(BackupError::GivenUp);
        }
    }
}

fn copy_outputs(copy: &mut Connection, folder: &Path, go_on: &dyn Fn() -> bool) -> Result<u64, BackupError> {
    let transaction = copy.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE backup_outputs (
           run TEXT NOT NULL, name TEXT NOT NULL, piece INTEGER NOT NULL, bytes BLOB NOT NULL,
           PRIMARY KEY (run, name, piece)
         ) STRICT",
    )?;
    let mut count = 0;
    for run in names(folder)? {
        // Of a run that came later the copy knows nothing.
        if !transaction.prepare_cached("SELECT 1 FROM runs WHERE id = ?1")?.exists([&run])? {
            continue;
        }
        for name in names(&folder.join(&run))? {
            if !go_on() {
                return Err(BackupError::GivenUp);
            }
            count += u64::from(copy_output(&transaction, folder, &run, &name)?);
        }
    }
    transaction.commit()?;
    Ok(count)
}

/// False for one that is gone meanwhile: retention goes on.
fn copy_output(copy: &Connection, folder: &Path, run: &str, name: &str) -> Result<bool, BackupError> {
    let mut file = match File::open(folder.join(run).join(name)) {
        Ok(file) if file.metadata()?.is_file() => file,
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // One that grows is taken as long as it is now.
    let length = file.metadata()?.len();
    let mut left = (&mut file).take(length);
    let mut insert =
        copy.prepare_cached("INSERT INTO backup_outputs (run, name, piece, bytes) VALUES (?1, ?2, ?3, ?4)")?;
    for piece in 0_i64.. {
        let mut bytes = Vec::new();
        (&mut left).take(PIECE as u64).read_to_end(&mut bytes)?;
        if bytes.is_empty() && piece > 0 {
            break;
        }
        let is_last = bytes.len() < PIECE;
        insert.execute(params![run, name, piece, bytes])?;
        if is_last {
            break;
        }
    }
    Ok(true)
}

/// The names in a folder; none where there is none.
fn names(folder: &Path) -> Result<Vec<String>, BackupError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error.into()),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
