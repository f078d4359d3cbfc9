//! Tasks that are files: reads the folder, and tells what changed in it.
//!
//! Who owns the tasks hears of a file only when something about it is different: a new good version, something wrong
//! with it, or that it is gone. It is looked at when the system says that it changed, and every 30 s in any case,
//! as that word may never come (a network share, too many watches, a link to elsewhere). A good file that stands as it was
//! read is not read again: reading a hundred takes 7 ms, which is much for a server that has nothing to do.

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

/// How often all files are read, however they stand: not every file system tells of each change by the times it gives.
const READ_ALL: Duration = Duration::from_secs(600);

/// How long a file has to stand as it does before a reading holds until it stands otherwise: the coarsest file systems count
/// in two seconds.
const SETTLED: Duration = Duration::from_secs(3);

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
    /// How good files stood at the last look, and whether they have to be read at the next.
    stand: BTreeMap<PathBuf, Stand>,
    /// When all files are read next.
    read_all: Option<Instant>,
    /// Files that are not there, and from when on they are gone.
    away: BTreeMap<PathBuf, Instant>,
}

/// What is different after each change of a file, or of its owner or mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    /// Seconds and nanoseconds of `ctime`.
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = path.metadata().ok()?;
        Some(Self { file: (meta.dev(), meta.ino()), bytes: meta.size(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

/// How a good file stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stand {
    stamp: Stamp,
    since: Instant,
    /// Whether it was read when the stamp was so old that a later change has another.
    is_read: bool,
}

impl Stand {
    /// How it stands after it was read `now`, and had this stamp before and afterwards.
    fn read(before: Option<Self>, stamp: Stamp, now: Instant) -> Self {
        let since = before.filter(|before| before.stamp == stamp).map_or(now, |before| before.since);
        Self { stamp, since, is_read: now.duration_since(since) >= SETTLED }
    }
}

impl Folder {
    /// A folder of which nothing was told yet. `terms` is what tasks are read with.
    pub fn new(dir: PathBuf, terms: impl Into<Terms>) -> Self {
        Self {
            dir,
            terms: terms.into(),
            told: BTreeMap::new(),
            stand: BTreeMap::new(),
            read_all: None,
            away: BTreeMap::new(),
        }
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
    /// O(n log n) for n files: a good one that stands as it was read costs one look at it, a link what it leads to besides.
    pub fn scan(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        let files = match self.files() {
            Ok(files) => files,
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
        if self.read_all.is_none_or(|due| now >= due) {
            self.read_all = Some(now + READ_ALL);
            self.stand.clear();
        }
        let is_folder_trusted = trusted(&self.dir).is_ok();
        for (path, &may_be_link) in &files {
            self.away.remove(path);
            let stamp = Stamp::of(path);
            let before = self.stand.get(path).copied();
            // Who may write the folder is not in the stamp, and changes without the file; a link leads to one of its own. Who
            // else is in the file's group is not either, but what such a one writes is: it is judged when it is read.
            let is_trusted = || if may_be_link { trusted(path).is_ok() } else { is_folder_trusted };
            if before.is_some_and(|stand| stand.is_read && Some(stand.stamp) == stamp) && is_trusted() {
                continue;
            }
            let (id, read) = read(path, &self.terms);
            // A file that went between listing and reading is away, not bad.
            if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                self.stand.remove(path);
                continue;
            }
            if let Some(stamp) = stamp.filter(|stamp| read.is_ok() && Stamp::of(path).as_ref() == Some(stamp)) {
                self.stand.insert(path.clone(), Stand::read(before, stamp, now));
            } else {
                self.stand.remove(path);
            }
            changes.extend(self.tell(path.clone(), Found { id, read: read.map(Arc::new) }));
        }
        let missing: Vec<PathBuf> = self.told.keys().filter(|path| !files.contains_key(*path)).cloned().collect();
        for path in missing {
            // The folder itself stands among the files only while it could not be read.
            let gone = *self.away.entry(path.clone()).or_insert(now + GRACE);
            if path == self.dir || now >= gone {
                self.away.remove(&path);
                self.stand.remove(&path);
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

    /// The task files by name, and whether each may be a link: `*.toml`, neither hidden nor an editor's copy.
    fn files(&self) -> io::Result<BTreeMap<PathBuf, bool>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            // It may be on a disk that is not there: only where no task came from it there is nothing to miss.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.knows_files() => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let mut files = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(".toml") && !name.starts_with(['.', '#', '~']) && !name.ends_with("~.toml") {
                files.insert(entry.path(), entry.file_type().map_or(true, |kind| kind.is_symlink()));
            }
        }
        Ok(files)
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::task::definition::Policy;

    fn write(path: &Path, title: &str) {
        fs::write(path, format!("title = \"{title}\"\n[[steps]]\nrun = \"true\"\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    /// A folder whose one file is read, and was read again when it had stood for long enough.
    fn folder_of_one() -> (tempfile::TempDir, PathBuf, Folder, Instant) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        write(&path, "A");
        let mut folder = Folder::new(dir.path().to_owned(), Policy::default());
        let begin = Instant::now();
        assert!(matches!(&folder.scan(begin)[..], [Change::Good { .. }]));
        assert!(!folder.stand[&path].is_read, "the next change may have the same time");
        assert_eq!(folder.scan(begin + SETTLED), []);
        assert!(folder.stand[&path].is_read);
        (dir, path, folder, begin + SETTLED)
    }

    /// As if the file stood as it was read, on a file system that does not tell.
    fn settle(folder: &mut Folder, path: &Path) {
        folder.stand.get_mut(path).unwrap().stamp = Stamp::of(path).unwrap();
    }

    #[test]
    fn a_file_that_stands_as_it_was_read_is_not_read_again_but_every_ten_minutes() {
        let (_dir, path, mut folder, now) = folder_of_one();
        write(&path, "Another");
        settle(&mut folder, &path);
        assert_eq!(folder.scan(now), [], "taken for the one that was read");
        let told = |changes: &[Change], title| matches!(changes, [Change::Good { definition, .. }] if definition.title == title);
        let changes = folder.scan(now + READ_ALL);
        assert!(told(&changes, "Another"), "{changes:?}");
        write(&path, "The third");
        let changes = folder.scan(now + READ_ALL);
        assert!(told(&changes, "The third"), "{changes:?}");
    }

    #[test]
    fn a_file_counts_as_read_only_after_it_was_read_when_it_had_stood_for_three_seconds() {
        let (_dir, path, _, now) = folder_of_one();
        let stamp = Stamp::of(&path).unwrap();
        let first = Stand::read(None, stamp, now);
        let at = |after| Stand::read(Some(first), stamp, now + after);
        assert_eq!([0, 2999, 3000].map(|ms| at(Duration::from_millis(ms)).is_read), [false, false, true]);
        let changed = Stamp { bytes: 0, ..stamp };
        assert!(!Stand::read(Some(first), changed, now + SETTLED).is_read);
    }

    #[test]
    fn a_link_whose_file_stands_as_it_was_read_is_spoilt_by_the_folder_that_it_leads_to() {
        let (dir, path, ..) = folder_of_one();
        let links = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&path, links.path().join("a.toml")).unwrap();
        let mut folder = Folder::new(links.path().to_owned(), Policy::default());
        let begin = Instant::now();
        folder.scan(begin);
        folder.scan(begin + SETTLED);
        assert!(folder.stand.values().all(|stand| stand.is_read) && !folder.stand.is_empty());
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let changes = folder.scan(begin + SETTLED);
        assert!(matches!(&changes[..], [Change::Bad { .. }]), "{changes:?}");
    }

    #[test]
    fn a_folder_that_others_may_write_spoils_its_files_also_when_they_stand_as_they_were_read() {
        let (dir, _, mut folder, now) = folder_of_one();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let changes = folder.scan(now);
        assert!(matches!(&changes[..], [Change::Bad { .. }]), "{changes:?}");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        assert!(matches!(&folder.scan(now)[..], [Change::Good { .. }]));
    }
}
