//! Puts a copy of the store in the place of what a data folder holds, so that a crash at any moment leaves the one or
//! the other and never a mixture.
//!
//! Everything is made ready in `restoring/` first; a file in it says that it is. From then on it is only renamed, and
//! whoever opens the folder next ends what a crash has interrupted. What was there goes to a folder of its own.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::backup::Label;
use super::schema;
use crate::failpoint;

/// Where the new data is made ready.
const STAGE: &str = "restoring";
/// The file in it that says that it is ready, and holds the name of the folder for what was there.
const READY: &str = "ready";
/// What a data folder holds beside the lock, the token and the socket. The store itself goes last.
const OLD: [&str; 5] = ["rejoin.db-wal", "rejoin.db-shm", "opens", "output", "rejoin.db"];

/// Why a file is no backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is not there, or cannot be read.
    #[error("cannot read {path}: {why}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// It is no store, or not whole.
    #[error("{path} is no backup, or is damaged: {why}. Nothing was changed")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another version wrote it.
    #[error(
        "{path} is of version {found}, this program knows versions up to {known}: restore it with the newer program \
         that wrote it. Nothing was changed"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that is known.
        known: u32,
    },
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// What the copy says of itself; a plain copy of a store says nothing.
    pub label: Option<Label>,
    /// How many tasks are in it.
    pub tasks: u64,
    /// Where what was there is now; nothing where there was nothing.
    pub replaced: Option<PathBuf>,
}

/// Looks whether a file is a store that this program can use: whole, and of a version that it knows. It is only read.
///
/// # Errors
/// [`Unfit`].
pub fn examine(file: &Path) -> Result<Option<Label>, Unfit> {
    let path = file.to_owned();
    let unreadable = |error: std::io::Error| Unfit::Unreadable { path: path.clone(), why: error.to_string() };
    let damaged = |why: String| Unfit::Damaged { path: path.clone(), why };
    // Asked before it is opened: a pipe that nobody writes to would be waited for.
    if !std::fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(damaged("it has to be a plain file, which a folder, a pipe or a device is not".to_owned()));
    }
    File::open(file).and_then(|mut file| file.read(&mut [0])).map_err(unreadable)?;
    let sqlite = |error: rusqlite::Error| damaged(error.to_string());
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    if std::fs::metadata(PathBuf::from(&log)).is_ok_and(|meta| meta.len() > 0) {
        return Err(damaged(format!("it was copied while it was written to, and part of it is in {}", log.display())));
    }
    let connection = open_unchanging(file).map_err(sqlite)?;
    let version: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sqlite)?;
    if version > schema::VERSION {
        return Err(Unfit::Newer { path, found: version, known: schema::VERSION });
    }
    let is_store = connection
        .table_exists(None, "tasks")
        .and_then(|tasks| Ok(tasks && connection.table_exists(None, "segments")?));
    if version == 0 || !is_store.map_err(sqlite)? {
        return Err(damaged("it is a SQLite file, but not of this program".to_owned()));
    }
    let wrong: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    if wrong != "ok" {
        return Err(damaged(wrong.replace('\n', " ")));
    }
    let label: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'backup'", [], |row| row.get(0))
        .optional()
        .map_err(sqlite)?;
    Ok(label.and_then(|text| serde_json::from_str(&text).ok()))
}

/// Opens a file that nobody writes to, where nothing can be written either.
fn open_unchanging(file: &Path) -> rusqlite::Result<Connection> {
    let name = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    // Byte by byte: a name need not be UTF-8, and what stands in a URI for something else stands here for itself.
    let escaped: String = name.as_os_str().as_bytes().iter().map(|byte| format!("%{byte:02x}")).collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
}

/// Puts a copy in the place of what a data folder holds. No server may have the folder; it is made where there is none.
/// `replaced` names the folder for what was there.
///
/// # Errors
/// [`Unfit`] for the file; that a server has the folder; that it cannot be written. Nothing was changed then.
pub fn restore(file: &Path, dir: &Path, replaced: &str) -> Result<Restored> {
    let label = examine(file)?;
    super::make_private_dir(dir)?;
    let _lock = super::lock(dir)?;
    finish(dir)?;
    let stage = dir.join(STAGE);
    let staged = make_ready(file, &stage);
    let tasks = match staged {
        Ok(tasks) => tasks,
        Err(error) => {
            let _ = std::fs::remove_dir_all(&stage);
            return Err(error.context("nothing was changed"));
        }
    };
    failpoint::hit("restore-staged");
    // Two restores of one second have a folder each.
    let names = std::iter::once(replaced.to_owned()).chain((2..).map(|number| format!("{replaced}-{number}")));
    let mut free = names.skip_while(|name| dir.join(name).exists());
    let replaced = free.next().unwrap_or_else(|| replaced.to_owned());
    let had_some = OLD.iter().any(|name| dir.join(name).exists());
    write_synced(&stage.join(READY), replaced.as_bytes())?;
    sync_dir(&stage)?;
    failpoint::hit("restore-ready");
    finish(dir)?;
    Ok(Restored { label, tasks, replaced: had_some.then(|| dir.join(replaced)) })
}

/// Copies the file and unpacks what is in it; gives how many tasks there are.
fn make_ready(file: &Path, stage: &Path) -> Result<u64> {
    std::fs::DirBuilder::new().mode(0o700).create(stage).with_context(|| format!("cannot make {}", stage.display()))?;
    let store = stage.join("rejoin.db");
    let failed = || format!("cannot write {}", store.display());
    let mut from = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&store).with_context(failed)?;
    std::io::copy(&mut from, &mut to).with_context(failed)?;
    drop(to);
    let output = stage.join("output");
    std::fs::DirBuilder::new().mode(0o700).create(&output)?;
    let tasks = settle(&store, &output).with_context(failed)?;
    File::open(&store)?.sync_all()?;
    sync_dir(&output)?;
    Ok(tasks)
}

/// Makes of the copy a store that may begin: outputs are files again, no log has the name that it had, nobody is
/// signed in who was then, and no process of then is taken for one of now.
fn settle(store: &Path, output: &Path) -> Result<u64> {
    let mut connection = Connection::open(store)?;
    connection.query_row("PRAGMA journal_mode=DELETE", [], |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let transaction = connection.transaction()?;
    if transaction.table_exists(None, "backup_outputs")? {
        unpack(&transaction, output)?;
        transaction.execute_batch("DROP TABLE backup_outputs")?;
    }
    transaction.execute_batch(
        "UPDATE tasks SET gen = random();
         DELETE FROM devices;
         DELETE FROM processes;
         DELETE FROM meta WHERE key IN ('open', 'backup')",
    )?;
    let tasks = transaction.query_row("SELECT count(*) FROM tasks", [], |row| row.get::<_, i64>(0))?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(tasks.unsigned_abs())
}

fn unpack(copy: &Connection, output: &Path) -> Result<()> {
    let mut statement = copy.prepare("SELECT run, name, bytes FROM backup_outputs ORDER BY run, name, piece")?;
    let mut rows = statement.query([])?;
    // The one whose pieces come.
    let mut open: Option<(PathBuf, File)> = None;
    while let Some(row) = rows.next()? {
        let (run, name): (String, String) = (row.get(0)?, row.get(1)?);
        // Names from a file that anyone may have made: they stay within the folder.
        let is_plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if !is_plain(&run) || !is_plain(&name) {
            bail!("an output in it is called {run:?}/{name:?}, which no output is");
        }
        let folder = output.join(&run);
        let path = folder.join(&name);
        let (_, file) = match &mut open {
            Some(same) if same.0 == path => same,
            other => {
                if let Some((_, whole)) = other.take() {
                    whole.sync_all()?;
                }
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
                let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)?;
                other.insert((path, file))
            }
        };
        file.write_all(row.get_ref(2)?.as_blob()?)?;
    }
    if let Some((_, whole)) = open {
        whole.sync_all()?;
    }
    for folder in std::fs::read_dir(output)? {
        sync_dir(&folder?.path())?;
    }
    Ok(())
}

/// Ends what a crash has interrupted: new data that is ready takes its place, what was not ready goes. Called by who
/// holds the lock of the folder.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn finish(dir: &Path) -> Result<()> {
    let stage = dir.join(STAGE);
    if !stage.exists() {
        return Ok(());
    }
    let failed = || format!("cannot put restored data in its place in {}", dir.display());
    let replaced = match std::fs::read_to_string(stage.join(READY)) {
        Ok(name) => name,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return std::fs::remove_dir_all(&stage).with_context(failed);
        }
        Err(error) => return Err(error).with_context(failed),
    };
    let old = dir.join(&replaced);
    // What is still in the stage has not taken its place: what has its name in the folder is old. The store is the last
    // to go and the last to come, so as long as it is in the stage, what has no successor is old too.
    if stage.join("rejoin.db").exists() {
        for name in OLD {
            let is_new = name == "output" && !stage.join(name).exists();
            if dir.join(name).exists() && !is_new {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&old).with_context(failed)?;
                std::fs::rename(dir.join(name), old.join(name)).with_context(failed)?;
                failpoint::hit("restore-moved");
            }
        }
        if old.exists() {
            sync_dir(&old)?;
        }
        for name in ["output", "rejoin.db"] {
            if stage.join(name).exists() {
                std::fs::rename(stage.join(name), dir.join(name)).with_context(failed)?;
                failpoint::hit("restore-moved");
            }
        }
        sync_dir(dir)?;
    }
    std::fs::remove_dir_all(&stage).with_context(failed)?;
    sync_dir(dir)
}

fn write_synced(path: &Path, text: &[u8]) -> Result<()> {
    // In one step: a file that is there says all that it says.
    let new = path.with_extension("new");
    let failed = || format!("cannot write {}", path.display());
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).with_context(failed)?;
    file.write_all(text).and_then(|()| file.sync_all()).with_context(failed)?;
    std::fs::rename(&new, path).with_context(failed)
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot sync {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_of_several_pieces_are_whole_files_again() {
        let copy = Connection::open_in_memory().unwrap();
        copy.execute_batch(
            "CREATE TABLE backup_outputs (run TEXT, name TEXT, piece INTEGER, bytes BLOB);
             INSERT INTO backup_outputs VALUES
               ('b', '1', 0, x'7071'), ('a', '2', 1, x'6364'), ('a', '1', 0, x''), ('a', '2', 0, x'6162'),
               ('a', '2', 2, x'65'), ('b', '2', 0, x'7a')",
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(&copy, dir.path()).unwrap();
        let files = ["a/1", "a/2", "b/1", "b/2"].map(|file| std::fs::read_to_string(dir.path().join(file)).unwrap());
        assert_eq!(files, ["", "abcde", "pq", "z"]);
    }
}
