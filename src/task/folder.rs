//! Tasks that are files: reads the folder, and tells what changed in it.
//!
//! Who owns the tasks hears of a file only when something about it is different: a new good version, something wrong
//! with it, or that it is gone. It is looked at when the system says that it changed, and every 30 s in any case,
//! as that word may never come (a network share, too many watches, a link to elsewhere).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::trust::trusted;
use crate::event::TaskId;
use crate::task::definition::{Definition, Terms};
use crate::task::parse::{self, Problem, Problems};

/// How long a file may be away before its task is gone: editors save by unlink and create.
pub const GRACE: Duration = Duration::from_secs(5);

/// How often the folder is read in any case.
pub const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long to wait after a word of the system: a save is several changes.
pub const DEBOUNCE: Duration = Duration::from_millis(200);

/// The largest task file, in bytes. The longest that people wrote by hand are a hundredth of it.
pub const MAX_BYTES: u64 = 1 << 20;

/// How many scans may wait for the owner. The reader waits when it is full, and reads what is true then.
const CHANGES_CAPACITY: usize = 4;

/// What is different about one file.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// There is a good version of it, new or another than before.
    Good {
        /// The task: the name of the file.
        id: TaskId,
        /// What it says.
        definition: Arc<Definition>,
        /// The file.
        path: PathBuf,
    },
    /// Something is wrong with it. The last good version, if there was one, stays in force.
    Bad {
        /// The task; none where the name of the file is no task id.
        id: Option<TaskId>,
        /// The file, or the folder where it cannot be read.
        path: PathBuf,
        /// What is wrong.
        problems: Problems,
    },
    /// It is not there any more, for longer than [`GRACE`].
    Gone {
        /// The task; none where the name of the file was no task id.
        id: Option<TaskId>,
        /// The file.
        path: PathBuf,
    },
}

impl Change {
    /// The task; none where the name of the file is no task id.
    pub fn id(&self) -> Option<&TaskId> {
        match self {
            Self::Good { id, .. } => Some(id),
            Self::Bad { id, .. } | Self::Gone { id, .. } => id.as_ref(),
        }
    }

    /// The file, or the folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::Good { path, .. } | Self::Bad { path, .. } | Self::Gone { path, .. } => path,
        }
    }
}

/// One file as it was read.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    id: Option<TaskId>,
    read: Result<Arc<Definition>, Problems>,
}

/// Reads one task file: its id, which is its name, and what it says. The file and its folder must be
/// [`trusted`].
pub fn read(path: &Path, terms: &Terms) -> (Option<TaskId>, Result<Definition, Problems>) {
    let problem = |message: String| problem_of(path, message);
    let id: Result<TaskId, String> = match path.file_stem().and_then(OsStr::to_str) {
        Some(stem) => stem.parse().map_err(|bad: crate::event::BadTaskId| bad.to_string()),
        None => Err("the name of the file is not UTF-8".into()),
    };
    let id = match id {
        Ok(id) => id,
        Err(why) => return (None, Err(problem(why))),
    };
    let definition =
        read_text(path).map_err(problem).and_then(|text| parse::from_toml(&path.display().to_string(), &text, terms));
    (Some(id), definition)
}

/// The text of a file that may be acted on.
fn read_text(path: &Path) -> Result<String, String> {
    let said = |error: io::Error| error.to_string();
    let metadata = path.metadata().map_err(said)?;
    // Asked before it is opened: a pipe would wait for a writer for ever.
    if !metadata.is_file() {
        return Err("is not a file".into());
    }
    trusted(path).map_err(|why| format!("refused: {why}"))?;
    if metadata.len() > MAX_BYTES {
        return Err(format!("is larger than {} KiB", MAX_BYTES / 1024));
    }
    let file = std::fs::File::open(path).map_err(said)?;
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(said)?;
    Ok(text)
}

/// Reads a whole folder once, in the order of the names. A folder that is not there has no tasks, as long as none was known.
pub fn load<'t, T>(dir: &Path, terms: &'t T) -> Vec<Change>
where
    Terms: From<&'t T>,
{
    Folder::new(dir.to_owned(), Terms::from(terms)).scan(Instant::now())
}

/// The file of a task in its folder.
pub fn file_of(dir: &Path, id: &TaskId) -> PathBuf {
    dir.join(format!("{id}.toml"))
}

/// A folder and what was last told of it.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    terms: Terms,
    told: BTreeMap<PathBuf, Found>,
    /// Files that are not there, and from when on they are gone.
    away: BTreeMap<PathBuf, Instant>,
}

impl Folder {
    /// A folder of which nothing was told yet. `terms` is what tasks are read with.
    pub fn new(dir: PathBuf, terms: impl Into<Terms>) -> Self {
        Self { dir, terms: terms.into(), told: BTreeMap::new(), away: BTreeMap::new() }
    }

    /// The same folder, of which it is known that these tasks came from it, as it was read before. Their files are gone if
    /// they are not there at the first look, and only then: what cannot be read says nothing about them.
    pub fn knowing(mut self, tasks: impl IntoIterator<Item = TaskId>) -> Self {
        let now = Instant::now();
        for id in tasks {
            let path = file_of(&self.dir, &id);
            let unread = problem_of(&path, "was not read yet".to_owned());
            self.told.insert(path.clone(), Found { id: Some(id), read: Err(unread) });
            self.away.insert(path, now);
        }
        self
    }

    /// Reads the folder and tells what is different from what was told before. Reads files: not for an async task.
    pub fn scan(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        let paths = match self.paths() {
            Ok(paths) => paths,
            Err(error) => {
                // Nothing is known of the files now: none of them is gone, nor has it been away for any time.
                self.away.clear();
                let dir = self.dir.clone();
                let said = format!("the folder cannot be read, and its tasks stay as they are: {error}");
                let found = Found { id: None, read: Err(problem_of(&dir, said)) };
                changes.extend(self.tell(dir, found));
                return changes;
            }
        };
        for path in &paths {
            self.away.remove(path);
            let (id, read) = read(path, &self.terms);
            // A file that went between listing and reading is away, not bad.
            if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                continue;
            }
            changes.extend(self.tell(path.clone(), Found { id, read: read.map(Arc::new) }));
        }
        let missing: Vec<PathBuf> = self.told.keys().filter(|path| !paths.contains(path)).cloned().collect();
        for path in missing {
            // The folder itself stands among the files only while it could not be read.
            let gone = *self.away.entry(path.clone()).or_insert(now + GRACE);
            if path == self.dir || now >= gone {
                self.away.remove(&path);
                let id = self.told.remove(&path).and_then(|found| found.id);
                changes.push(Change::Gone { id, path });
            }
        }
        changes
    }

    /// When the next file that is away will be gone.
    pub fn next_gone(&self) -> Option<Instant> {
        self.away.values().min().copied()
    }

    /// Notes what a file says now, and the change if it is one.
    fn tell(&mut self, path: PathBuf, found: Found) -> Option<Change> {
        if self.told.get(&path) == Some(&found) {
            return None;
        }
        self.told.insert(path.clone(), found.clone());
        Some(match (found.id, found.read) {
            (Some(id), Ok(definition)) => Change::Good { id, definition, path },
            (id, Err(problems)) => Change::Bad { id, path, problems },
            // `read` gives no definition without an id.
            (None, Ok(_)) => return None,
        })
    }

    fn knows_files(&self) -> bool {
        self.told.keys().any(|path| *path != self.dir)
    }

    /// The task files, sorted: `*.toml`, neither hidden nor an editor's copy.
    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            // It may be on a disk that is not there: only where no task came from it there is nothing to miss.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.knows_files() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".toml") && !name.starts_with(['.', '#', '~']) && !name.ends_with("~.toml") {
                paths.push(entry.path());
            }
        }
        paths.sort();
        Ok(paths)
    }
}

fn problem_of(path: &Path, message: String) -> Problems {
    Problem { file: Some(path.display().to_string()), ..Problem::of("", message) }.into()
}

/// Reads the folder now and whenever it changes, until `stop` or until nobody listens any more. The first message
/// is the folder as it stands, even if there is nothing in it; later ones hold at least one change.
pub fn watch(folder: Folder, stop: CancellationToken) -> mpsc::Receiver<Vec<Change>> {
    let (sender, receiver) = mpsc::channel(CHANGES_CAPACITY);
    tokio::spawn(async move {
        // A `select` so that a full channel does not outlive the stop.
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow(folder, sender) => {}
        }
    });
    receiver
}

async fn follow(mut folder: Folder, sender: mpsc::Sender<Vec<Change>>) {
    let changed = Arc::new(Notify::new());
    let mut ear = Ear::new(folder.dir.clone(), Arc::clone(&changed));
    let mut first = true;
    loop {
        // Listen before reading: what changes in between rings afterwards.
        let now = Instant::now();
        let scanned = tokio::task::spawn_blocking(move || {
            ear.listen();
            let changes = folder.scan(now);
            (ear, folder, changes)
        });
        let changes;
        (ear, folder, changes) = match scanned.await {
            Ok(scanned) => scanned,
            Err(error) => {
                tracing::error!(%error, "the task folder is not followed any more");
                return;
            }
        };
        if (first || !changes.is_empty()) && sender.send(changes).await.is_err() {
            return;
        }
        first = false;
        let look_again = Instant::now() + LOOK_AGAIN;
        let wake = folder.next_gone().map_or(look_again, |gone| gone.min(look_again));
        tokio::select! {
            () = changed.notified() => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep_until(wake) => {}
            () = sender.closed() => return,
        }
    }
}

/// The system's word that something changed. May be deaf; then the folder is only read now and again.
struct Ear {
    dir: PathBuf,
    changed: Arc<Notify>,
    /// The watcher, and which folder it watches: one that was made anew under the same name is another.
    watching: Option<(RecommendedWatcher, (u64, u64))>,
    said_deaf: bool,
}

impl Ear {
    fn new(dir: PathBuf, changed: Arc<Notify>) -> Self {
        Self { dir, changed, watching: None, said_deaf: false }
    }

    /// Starts to listen, unless it does already.
    fn listen(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let Ok(metadata) = self.dir.metadata() else {
            self.watching = None;
            return;
        };
        let folder = (metadata.dev(), metadata.ino());
        if self.watching.as_ref().is_some_and(|(_, watched)| *watched == folder) {
            return;
        }
        match self.watcher() {
            Ok(watcher) => self.watching = Some((watcher, folder)),
            Err(error) if !self.said_deaf => {
                self.said_deaf = true;
                let seconds = LOOK_AGAIN.as_secs();
                tracing::warn!(dir = %self.dir.display(), %error, "the task folder cannot be watched; it is read every {seconds} s");
            }
            Err(_) => {}
        }
    }

    fn watcher(&self) -> notify::Result<RecommendedWatcher> {
        let changed = Arc::clone(&self.changed);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is told too: only what may have changed one counts, or every look would bring on
            // the next. An error may stand for events that were lost.
            let may_have_changed = match &event {
                Ok(event) => match event.kind {
                    EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
                    _ => true,
                },
                Err(_) => true,
            };
            if may_have_changed {
                changed.notify_one();
            }
        })?;
        watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}
