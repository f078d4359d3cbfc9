//! Which tasks there are, and how each stands: in memory to be asked, in the store to be kept.
//!
//! A task is its definition and where its schedule is. What its runs do is the business of its stream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::Notify;

use self::planned::{EARLIEST, Given, Planned, end_pause, next_look, read_seen};
use self::rows::{Row, free_id, read_rows, switches};
use super::agenda::{Agenda, Entry};
use super::definition::{Definition, Terms};
use super::parse::{self, Problem};
use crate::event::{Body, Gen, Seq, State, Status, TaskId};
use crate::record::Fold;
use crate::schedule::plan::JumpWatch;
use crate::schedule::timing::{Timing, Wrong};
use crate::store::{Store, StoreError, TaskNo, sql};
use crate::stream::publish::Publisher;
use crate::stream::topic::{Offer, Start};

pub mod burial;
pub mod planned;
pub mod rows;

/// Where a task comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A file of `tasks_dir`: changed by editing the file.
    File,
    /// Added by command or API.
    Store,
}

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Store => "store",
        }
    }
}

/// A task as it stands. Replaced, never changed: who holds one sees one moment.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its number in the store.
    pub no: TaskNo,
    /// What it is; the last good version.
    pub definition: Arc<Definition>,
    /// Its schedule, understood.
    pub timing: Option<Arc<Timing>>,
    /// Where it comes from.
    pub source: Source,
    /// Where its file is, if it is one.
    pub path: Option<PathBuf>,
    /// What is wrong with its file now; `definition` is from before.
    pub problem: Option<Problem>,
    /// False when its file is gone.
    pub enabled: bool,
    /// Whether someone paused it.
    pub paused: bool,
    /// From when `every` counts.
    pub anchor: Timestamp,
    /// Every slot up to here has its row.
    pub planned: Timestamp,
    /// Until when it was paused, where it was let go on by a clock that was not believed yet.
    pub resumed: Option<Timestamp>,
    /// When the next slot is planned for.
    pub next: Option<Timestamp>,
    /// Its own number, from which jitter is drawn.
    pub seed: u64,
}

impl Task {
    /// Whether it runs by itself at all.
    pub fn is_scheduled(&self) -> bool {
        self.enabled && !self.paused && self.timing.is_some()
    }

    /// When it is due next. None while that is not known, as a clock is in doubt: then it is only looked at then.
    pub fn due_next(&self) -> Option<Timestamp> {
        self.next.filter(|next| *next > self.planned)
    }

    /// The next slot: its own time, and when it is planned for.
    pub fn upcoming(&self) -> Option<(Timestamp, Timestamp)> {
        let (timing, next) = (self.timing.as_ref()?, self.next?);
        let slot = timing.next_after(self.anchor, self.planned).filter(|slot| *slot <= next)?;
        Some((slot, next))
    }
}

/// Why a task was not made or changed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The id is taken.
    #[error("there is already a task {0}: choose another id, or change that one")]
    Exists(TaskId),
    /// There is no such task.
    #[error("there is no task {0}")]
    NotFound(TaskId),
    /// The schedule cannot be.
    #[error("{0}")]
    Schedule(#[from] Wrong),
    /// It has runs that are not over.
    #[error("the task has runs that are not over: stop them, or remove it with --stop (over HTTP ?stop=true)")]
    Running,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for TaskError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// All tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    publisher: Publisher,
    tasks: RwLock<Tasks>,
    /// Files that never had a good version.
    broken: RwLock<BTreeMap<TaskId, Problem>>,
    /// What is of no task: files whose names are none's, or that of a task that is no file, and their folder where it cannot
    /// be read.
    astray: RwLock<BTreeMap<PathBuf, Problem>>,
    /// What tasks are read with.
    terms: Terms,
    zone: TimeZone,
    /// The newest time at which schedules were looked at, in microseconds.
    seen: AtomicI64,
    /// Tells whether the clock jumped: whoever looks first sees it.
    jumps: Mutex<JumpWatch>,
    /// Held over one change of a definition, in the store and here.
    edits: tokio::sync::Mutex<()>,
    /// Rung when a task was removed: its name is free.
    removed: Notify,
}

/// The tasks, and when they are due.
#[derive(Debug, Default)]
struct Tasks {
    by_id: BTreeMap<TaskId, Arc<Task>>,
    agenda: Agenda,
}

impl Tasks {
    fn put(&mut self, task: &Arc<Task>) {
        let before = self.by_id.insert(task.id.clone(), Arc::clone(task));
        self.agenda.note(&task.id, before.map(|before| entry(&before)), Some(entry(task)));
    }

    fn change(&mut self, id: &TaskId, change: impl FnOnce(&mut Task)) -> Option<Arc<Task>> {
        let task = self.by_id.get_mut(id)?;
        let before = entry(task);
        change(Arc::make_mut(task));
        self.agenda.note(id, Some(before), Some(entry(task)));
        Some(Arc::clone(task))
    }

    fn remove(&mut self, id: &TaskId) {
        if let Some(task) = self.by_id.remove(id) {
            self.agenda.note(id, Some(entry(&task)), None);
        }
    }
}

fn entry(task: &Task) -> Entry {
    Entry { next: task.next, planned: task.planned }
}

impl Registry {
    /// All tasks of the store, each with its stream open.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn load(
        store: &Arc<Store>,
        publisher: Publisher,
        terms: Terms,
        zone: TimeZone,
    ) -> Result<Self, TaskError> {
        let rows = store.read(read_rows).await?;
        let seen = store.read(read_seen).await?.unwrap_or(EARLIEST);
        let registry = Self {
            shared: Arc::new(Shared {
                publisher,
                tasks: RwLock::default(),
                broken: RwLock::default(),
                astray: RwLock::default(),
                terms,
                zone,
                seen: AtomicI64::new(seen.as_microsecond()),
                jumps: Mutex::default(),
                edits: tokio::sync::Mutex::default(),
                removed: Notify::new(),
            }),
        };
        // From here on a jump is seen, whoever looks first.
        registry.look();
        for row in rows {
            registry.open(row);
        }
        Ok(registry)
    }

    fn open(&self, row: Row) {
        let definition =
            match serde_json::from_str(&row.definition).map_err(|error| error.to_string()).and_then(|json| {
                parse::from_json(&json, &self.shared.terms.policy).map_err(|problems| problems.to_string())
            }) {
                Ok(posted) => posted.definition,
                Err(error) => {
                    // Another version wrote what this one refuses: the task stays, with its history, and says so.
                    tracing::error!(task = %row.id, %error, "the stored task cannot be used by this version");
                    self.broken_mut().insert(row.id, Problem::of("", error));
                    return;
                }
            };
        let timing = self.timing(&definition, &row.id, row.seed).ok().flatten();
        let start =
            Start { generation: row.generation, oldest: row.oldest, head: row.head, bytes: row.bytes, fold: row.fold };
        self.shared.publisher.open(row.id.clone(), row.no, start);
        let next = timing.as_ref().and_then(|timing| next_look(timing, row.anchor, row.planned, row.resumed));
        let gone = self.what_is_gone(&definition);
        for problem in &gone {
            tracing::error!(task = %row.id, %problem, "what a task names is no longer in the configuration");
        }
        let off = row.source == Source::File && !row.enabled;
        self.set(Task {
            id: row.id,
            no: row.no,
            definition: Arc::new(definition),
            timing,
            source: row.source,
            path: None,
            problem: off.then(Problem::file_is_gone).or(gone.into_iter().next()),
            enabled: row.enabled,
            paused: row.paused,
            anchor: row.anchor,
            planned: row.planned,
            resumed: row.resumed,
            next,
            seed: row.seed,
        });
    }

    /// What is said of a task of the store that names a pool or a channel which is not in the configuration any more: it is
    /// none of the task's doing, so its runs go on, of such a pool one at a time.
    fn what_is_gone(&self, definition: &Definition) -> Vec<Problem> {
        let terms = &self.shared.terms;
        let pool = definition.policy.concurrency.as_deref().and_then(|name| terms.no_such_pool(name)).map(|why| {
            Problem::of("policy.concurrency", format!("{why}; until then one run of it is at work at a time"))
        });
        let named = definition.notify.channels.iter().flatten().enumerate();
        let channels = named.filter_map(|(n, name)| {
            let why = terms.no_such_channel(name)?;
            Some(Problem::of(format!("notify.channels[{n}]"), format!("{why}; until then nobody is told by it")))
        });
        pool.into_iter().chain(channels).collect()
    }

    fn timing(&self, definition: &Definition, id: &TaskId, seed: u64) -> Result<Option<Arc<Timing>>, Wrong> {
        let of_task = |timing: Timing| Arc::new(timing.of_task(id.as_str(), seed));
        let schedule = definition.schedule.as_ref();
        schedule.map(|schedule| Timing::new(schedule, &self.shared.zone).map(of_task)).transpose()
    }

    /// One task.
    pub fn get(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.tasks().by_id.get(id).cloned()
    }

    /// All tasks by their ids.
    pub fn all(&self) -> Vec<Arc<Task>> {
        self.tasks().by_id.values().cloned().collect()
    }

    /// The tasks whose next slot is due, in the order of those slots. O(log tasks), beside what it gives.
    pub fn due(&self, now: Timestamp) -> Vec<Arc<Task>> {
        let tasks = self.tasks();
        tasks.agenda.due(now).filter_map(|id| tasks.by_id.get(id).cloned()).collect()
    }

    /// When the next task is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.tasks().agenda.next()
    }

    fn tasks(&self) -> std::sync::RwLockReadGuard<'_, Tasks> {
        self.shared.tasks.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that never had a good version, and what is wrong with each.
    pub fn broken(&self) -> BTreeMap<TaskId, Problem> {
        self.shared.broken.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is wrong with files that are no task's, and with their folder.
    pub fn astray(&self) -> Vec<Problem> {
        self.shared.astray.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Waits until a task was removed; a removal that nobody waited for is not lost. For one who waits.
    pub async fn removal(&self) {
        self.shared.removed.notified().await;
    }

    /// What tasks are read with.
    pub fn terms(&self) -> &Terms {
        &self.shared.terms
    }

    /// The zone of schedules that name none.
    pub fn zone(&self) -> &TimeZone {
        &self.shared.zone
    }

    /// Makes a task. Without an id the title gives one, with a number behind it while that is taken: two adds
    /// are two tasks (T-26). `also` is written in the same transaction.
    ///
    /// # Errors
    /// [`TaskError`]: a given id is taken, the schedule is in the past, the store cannot be written.
    pub async fn add(
        &self,
        id: Option<TaskId>,
        definition: Definition,
        source: Source,
        path: Option<PathBuf>,
        also: impl FnOnce(&Connection, &TaskId) -> Result<(), TaskError> + Send + 'static,
    ) -> Result<Arc<Task>, TaskError> {
        let Given { since, shown } = self.given_at();
        if let Some(schedule) = &definition.schedule {
            crate::schedule::timing::check(schedule, &self.shared.zone, shown)?;
        }
        let definition = Arc::new(definition);
        let (generation, seed) = (Gen::random(), rand::random::<u64>());
        let (taken, registry) = (definition.clone(), self.clone());
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            let id = free_id(connection, id, &taken.title)?;
            let timing = registry.timing(&taken, &id, seed)?;
            let next = timing.as_ref().and_then(|timing| next_look(timing, shown, since, None));
            connection.execute(
                "INSERT INTO tasks (id, gen, source, definition, anchor, planned, next, created, seed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?6, ?8)",
                params![
                    id.as_str(),
                    sql(generation.0),
                    source.as_str(),
                    taken.to_json().to_string(),
                    shown.as_microsecond(),
                    since.as_microsecond(),
                    next.map(Timestamp::as_microsecond),
                    seed.cast_signed()
                ],
            )?;
            let no = TaskNo(connection.last_insert_rowid());
            also(connection, &id)?;
            Ok(((id, no, timing, next), Vec::new()))
        };
        let ((id, no, timing, next), _) = self.shared.publisher.transact(act).await?;
        let start = Start { generation, oldest: Seq(1), head: Seq(0), bytes: 0, fold: Fold::default() };
        self.shared.publisher.open(id.clone(), no, start);
        self.broken_mut().remove(&id);
        Ok(self.set(Task {
            id,
            no,
            definition,
            timing,
            source,
            path,
            problem: None,
            enabled: true,
            paused: false,
            anchor: shown,
            planned: since,
            resumed: None,
            next,
            seed,
        }))
    }

    /// Puts another version of a task in force: what `change` makes of the one that is, which nobody else changes meanwhile.
    /// A schedule that changed counts from now. `also` is written in the same transaction.
    ///
    /// # Errors
    /// What `change` refuses; [`TaskError`], as for [`Registry::add`].
    pub async fn redefine<E>(
        &self,
        id: &TaskId,
        change: impl FnOnce(&Task) -> Result<Definition, E> + Send + 'static,
        path: Option<PathBuf>,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Arc<Task>, E>
    where
        E: From<TaskError> + Send + 'static,
    {
        // To its end also when the one who asked hangs up: what is in force is what the store has.
        let (registry, id) = (self.clone(), id.clone());
        let done = tokio::spawn(async move {
            // One after the other: the last one saved is the one in force, and each begins with what the one before left.
            let _edit = registry.shared.edits.lock().await;
            let task = registry.get(&id).ok_or(TaskError::NotFound(id))?;
            let definition = change(&task)?;
            Ok(registry.put_in_force(&task, definition, path, also).await?)
        });
        done.await.map_err(|error| TaskError::Store(StoreError::Broken(error.to_string())))?
    }

    /// Called with `edits` held.
    async fn put_in_force(
        &self,
        task: &Task,
        definition: Definition,
        path: Option<PathBuf>,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Arc<Task>, TaskError> {
        let id = &task.id;
        let Given { since, shown } = self.given_at();
        let rescheduled = task.definition.schedule != definition.schedule;
        if rescheduled && let Some(schedule) = &definition.schedule {
            crate::schedule::timing::check(schedule, &self.shared.zone, shown)?;
        }
        let timing = self.timing(&definition, id, task.seed)?;
        let begins = rescheduled || !task.enabled;
        let (anchor, planned) = if begins { (shown, since) } else { (task.anchor, task.planned) };
        let resumed = task.resumed.filter(|_| !begins);
        let next = timing.as_ref().and_then(|timing| next_look(timing, anchor, planned, resumed));
        let (no, json) = (task.no, definition.to_json().to_string());
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            // A slot that was planned meanwhile has its row and is not planned again.
            let sql =
                "UPDATE tasks SET definition = ?2, enabled = 1, anchor = ?3, planned = max(planned, ?4), next = ?5, resumed = ?6
                 WHERE no = ?1 RETURNING planned";
            let planned: Option<i64> = connection
                .prepare_cached(sql)?
                .query_row(
                    params![
                        no.0,
                        json,
                        anchor.as_microsecond(),
                        planned.as_microsecond(),
                        next.map(Timestamp::as_microsecond),
                        resumed.map(Timestamp::as_microsecond)
                    ],
                    |row| row.get(0),
                )
                .optional()?;
            if planned.is_some() {
                also(connection)?;
            }
            Ok((planned.and_then(|micros| Timestamp::from_microsecond(micros).ok()), Vec::new()))
        };
        let (stored, _) = self.shared.publisher.transact(act).await?;
        let planned = stored.ok_or_else(|| TaskError::NotFound(id.clone()))?;
        self.change(id, |task| {
            task.definition = Arc::new(definition);
            task.timing = timing;
            task.path = path;
            task.problem = None;
            task.enabled = true;
            // The planner may have gone on since, by the same schedule.
            let planned = if task.anchor == anchor { planned.max(task.planned) } else { planned };
            let next = task.timing.as_ref().and_then(|timing| next_look(timing, anchor, planned, resumed));
            (task.anchor, task.planned, task.resumed, task.next) = (anchor, planned, resumed, next);
        })
    }

    /// Notes where the file of a task is that says what is in force already.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub fn adopt(&self, id: &TaskId, path: PathBuf) -> Result<Arc<Task>, TaskError> {
        self.change(id, |task| (task.path, task.problem) = (Some(path), None))
    }

    /// Notes where the file of a task is, whatever it says now.
    pub fn note_path(&self, id: &TaskId, path: PathBuf) {
        // One that was removed meanwhile has nothing left to change.
        let _ = self.change(id, |task| task.path = Some(path));
    }

    /// Pauses a task or lets it go on; says so in its log. What passes while it is paused is never caught up. `also`
    /// is written in the same transaction.
    ///
    /// # Errors
    /// [`TaskError`]: no such task, the store cannot be written.
    pub async fn set_paused(
        &self,
        id: &TaskId,
        paused: bool,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Arc<Task>, TaskError> {
        let _edit = self.shared.edits.lock().await;
        let not_found = || TaskError::NotFound(id.clone());
        let task = self.get(id).ok_or_else(not_found)?;
        let topic = self.shared.publisher.topic(id).ok_or_else(not_found)?;
        let (now, given) = (self.shared.publisher.clock().now(), self.given_at());
        let (state, words) = if paused { (State::Paused, "paused") } else { (State::Resumed, "resumed") };
        let body = Body::Status(Status::new(state, format!("Task {id} {words}")));
        let (no, is_news) = (task.no, task.paused != paused);
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            also(connection)?;
            let ends = !paused && switches(connection, no)?.is_some_and(|(_, paused)| paused);
            connection.execute("UPDATE tasks SET paused = ?2, failures = 0 WHERE no = ?1", params![no.0, paused])?;
            let mut said = Vec::new();
            let planned = if ends { end_pause(connection, &task, &topic, given, &mut said)? } else { None };
            if is_news {
                said.push((topic, Offer::new(None, now, &body)));
            }
            Ok((planned, said))
        };
        // Memory follows in the order of the commits: the task may pause itself at the same time.
        let (registry, changed) = (self.clone(), id.clone());
        let follow = move |planned: &Option<Planned>| -> Option<Box<dyn FnOnce() + Send>> {
            let planned = *planned;
            Some(Box::new(move || {
                registry.note_paused(&changed, no, paused);
                if let Some(planned) = planned {
                    let _ = registry.change(&changed, |task| planned.put_into(task, no));
                }
            }))
        };
        self.shared.publisher.change(act, follow).await?;
        self.get(id).ok_or_else(|| TaskError::NotFound(id.clone()))
    }

    /// Notes in memory that a task is paused or not, once the store has it.
    pub fn note_paused(&self, id: &TaskId, no: TaskNo, paused: bool) {
        // A task that was removed meanwhile needs no note, nor does another of its name.
        let _ = self.change(id, |task| task.paused = if task.no == no { paused } else { task.paused });
    }

    /// Says that a task's file is gone (the task keeps its history), or is there again.
    ///
    /// # Errors
    /// [`TaskError`]: no such task, the store cannot be written.
    pub async fn set_enabled(&self, id: &TaskId, enabled: bool) -> Result<Arc<Task>, TaskError> {
        let _edit = self.shared.edits.lock().await;
        let task = self.get(id).ok_or_else(|| TaskError::NotFound(id.clone()))?;
        let no = task.no;
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            connection.execute("UPDATE tasks SET enabled = ?2 WHERE no = ?1", params![no.0, enabled])?;
            Ok(((), Vec::new()))
        };
        self.shared.publisher.transact(act).await?;
        self.change(id, |task| task.enabled = enabled)
    }

    /// Notes what is wrong with a task's file; the last good version stays in force.
    pub fn set_problem(&self, id: &TaskId, problem: Problem) {
        if self.change(id, |task| task.problem = Some(problem.clone())).is_err() {
            self.broken_mut().insert(id.clone(), problem);
            self.shared.publisher.changes().note(id);
        }
    }

    /// Forgets a file that never had a good version.
    pub fn forget_broken(&self, id: &TaskId) {
        if self.broken_mut().remove(id).is_some() {
            self.shared.publisher.changes().note(id);
        }
    }

    /// Notes what is wrong with a file that is no task's, or with the folder.
    pub fn set_astray(&self, path: PathBuf, problem: Problem) {
        self.astray_mut().insert(path, problem);
    }

    /// Forgets what was wrong with such a file, or with the folder.
    pub fn forget_astray(&self, path: &Path) {
        self.astray_mut().remove(path);
    }

    fn set(&self, task: Task) -> Arc<Task> {
        let task = Arc::new(task);
        let mut tasks = self.shared.tasks.write().unwrap_or_else(PoisonError::into_inner);
        tasks.put(&task);
        drop(tasks);
        self.shared.publisher.changes().note(&task.id);
        task
    }

    /// Changes a task in memory; one that was removed meanwhile has nothing left to change.
    fn change(&self, id: &TaskId, change: impl FnOnce(&mut Task)) -> Result<Arc<Task>, TaskError> {
        let mut tasks = self.shared.tasks.write().unwrap_or_else(PoisonError::into_inner);
        let task = tasks.change(id, change);
        drop(tasks);
        self.shared.publisher.changes().note(id);
        task.ok_or_else(|| TaskError::NotFound(id.clone()))
    }

    fn astray_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<PathBuf, Problem>> {
        self.shared.astray.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<TaskId, Problem>> {
        self.shared.broken.write().unwrap_or_else(PoisonError::into_inner)
    }
}
