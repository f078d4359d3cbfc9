//! Which tasks there are, and how each stands: in memory to be asked, in the store to be kept.
//!
//! A task is its definition and where its schedule is. What its runs do is the business of its stream.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension, params};

use super::definition::{Definition, Policy};
use super::parse::{self, Problem};
use crate::event::{Body, Gen, RunId, Seq, State, Status, TaskId};
use crate::record::Fold;
use crate::schedule::timing::Timing;
use crate::store::{Store, StoreError, TaskNo, from_sql, sql};
use crate::stream::log;
use crate::stream::publish::Publisher;
use crate::stream::topic::{Offer, Start};

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
    /// The next slot.
    pub next: Option<Timestamp>,
}

impl Task {
    /// Whether it runs by itself at all.
    pub fn is_scheduled(&self) -> bool {
        self.enabled && !self.paused && self.timing.is_some()
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
    Schedule(#[from] crate::schedule::timing::Wrong),
    /// It has runs that are not over.
    #[error("the task has runs that are not over: stop them, or call with ?stop=true")]
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
    tasks: RwLock<BTreeMap<TaskId, Arc<Task>>>,
    /// Files that never had a good version.
    broken: RwLock<BTreeMap<TaskId, Problem>>,
    /// The policy of a task that says nothing.
    defaults: Policy,
    zone: TimeZone,
    /// Held over one change of a definition, in the store and here.
    edits: tokio::sync::Mutex<()>,
}

impl Registry {
    /// All tasks of the store, each with its stream open.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn load(
        store: &Arc<Store>,
        publisher: Publisher,
        defaults: Policy,
        zone: TimeZone,
    ) -> Result<Self, TaskError> {
        let rows = store.read(read_rows).await?;
        let registry = Self {
            shared: Arc::new(Shared {
                publisher,
                tasks: RwLock::default(),
                broken: RwLock::default(),
                defaults,
                zone,
                edits: tokio::sync::Mutex::default(),
            }),
        };
        for row in rows {
            registry.open(row);
        }
        Ok(registry)
    }

    fn open(&self, row: Row) {
        let definition = match serde_json::from_str(&row.definition)
            .map_err(|error| error.to_string())
            .and_then(|json| parse::from_json(&json, &self.shared.defaults).map_err(|problems| problems.to_string()))
        {
            Ok(posted) => posted.definition,
            Err(error) => {
                // Another version wrote what this one refuses: the task stays, with its history, and says so.
                tracing::error!(task = %row.id, %error, "the stored task cannot be used by this version");
                let problem = Problem { file: None, line: None, column: None, key: String::new(), message: error };
                self.broken_mut().insert(row.id, problem);
                return;
            }
        };
        let timing = self.timing(&definition).ok().flatten();
        let start =
            Start { generation: row.generation, oldest: row.oldest, head: row.head, bytes: row.bytes, fold: row.fold };
        self.shared.publisher.open(row.id.clone(), row.no, start);
        let next = timing.as_ref().and_then(|timing| timing.next_after(row.anchor, row.planned));
        self.set(Task {
            id: row.id,
            no: row.no,
            definition: Arc::new(definition),
            timing,
            source: row.source,
            path: None,
            problem: None,
            enabled: row.enabled,
            paused: row.paused,
            anchor: row.anchor,
            planned: row.planned,
            next,
        });
    }

    fn timing(&self, definition: &Definition) -> Result<Option<Arc<Timing>>, crate::schedule::timing::Wrong> {
        let schedule = definition.schedule.as_ref();
        schedule.map(|schedule| Timing::new(schedule, &self.shared.zone).map(Arc::new)).transpose()
    }

    /// One task.
    pub fn get(&self, id: &TaskId) -> Option<Arc<Task>> {
        self.shared.tasks.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All tasks by their ids.
    pub fn all(&self) -> Vec<Arc<Task>> {
        self.shared.tasks.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The files that never had a good version, and what is wrong with each.
    pub fn broken(&self) -> BTreeMap<TaskId, Problem> {
        self.shared.broken.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The policy of a task that says nothing.
    pub fn defaults(&self) -> &Policy {
        &self.shared.defaults
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
        let now = self.shared.publisher.clock().now();
        if let Some(schedule) = &definition.schedule {
            crate::schedule::timing::check(schedule, &self.shared.zone, now)?;
        }
        let timing = self.timing(&definition)?;
        let definition = Arc::new(definition);
        let generation = Gen::random();
        let taken = definition.clone();
        let next = timing.as_ref().and_then(|timing| timing.next_after(now, now));
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            let id = free_id(connection, id, &taken.title)?;
            connection.execute(
                "INSERT INTO tasks (id, gen, source, definition, anchor, planned, next, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?5)",
                params![
                    id.as_str(),
                    sql(generation.0),
                    source.as_str(),
                    taken.to_json().to_string(),
                    now.as_microsecond(),
                    next.map(Timestamp::as_microsecond)
                ],
            )?;
            let no = TaskNo(connection.last_insert_rowid());
            also(connection, &id)?;
            Ok(((id, no), Vec::new()))
        };
        let ((id, no), _) = self.shared.publisher.transact(act).await?;
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
            anchor: now,
            planned: now,
            next,
        }))
    }

    /// Puts another version of a task in force. A schedule that changed counts from now. `also` is written in the
    /// same transaction.
    ///
    /// # Errors
    /// [`TaskError`], as for [`Registry::add`].
    pub async fn redefine(
        &self,
        id: &TaskId,
        definition: Definition,
        path: Option<PathBuf>,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Arc<Task>, TaskError> {
        // To its end also when the one who asked hangs up: what is in force is what the store has.
        let (registry, id) = (self.clone(), id.clone());
        let done = tokio::spawn(async move { registry.redefine_now(&id, definition, path, also).await });
        done.await.map_err(|error| StoreError::Broken(error.to_string()))?
    }

    async fn redefine_now(
        &self,
        id: &TaskId,
        definition: Definition,
        path: Option<PathBuf>,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Arc<Task>, TaskError> {
        // One after the other: the last one saved is the one in force.
        let _edit = self.shared.edits.lock().await;
        let task = self.get(id).ok_or_else(|| TaskError::NotFound(id.clone()))?;
        let now = self.shared.publisher.clock().now();
        let rescheduled = task.definition.schedule != definition.schedule;
        if rescheduled && let Some(schedule) = &definition.schedule {
            crate::schedule::timing::check(schedule, &self.shared.zone, now)?;
        }
        let timing = self.timing(&definition)?;
        let (anchor, planned) = if rescheduled || !task.enabled { (now, now) } else { (task.anchor, task.planned) };
        let next = timing.as_ref().and_then(|timing| timing.next_after(anchor, planned));
        let (no, json) = (task.no, definition.to_json().to_string());
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            // A slot that was planned meanwhile has its row and is not planned again.
            let sql =
                "UPDATE tasks SET definition = ?2, enabled = 1, anchor = ?3, planned = max(planned, ?4), next = ?5
                 WHERE no = ?1 RETURNING planned";
            let planned: Option<i64> = connection
                .prepare_cached(sql)?
                .query_row(
                    params![
                        no.0,
                        json,
                        anchor.as_microsecond(),
                        planned.as_microsecond(),
                        next.map(Timestamp::as_microsecond)
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
            let next = task.timing.as_ref().and_then(|timing| timing.next_after(anchor, planned));
            (task.anchor, task.planned, task.next) = (anchor, planned, next);
        })
    }

    /// Notes where the file of a task is that says what is in force already.
    ///
    /// # Errors
    /// [`TaskError::NotFound`].
    pub fn adopt(&self, id: &TaskId, path: PathBuf) -> Result<Arc<Task>, TaskError> {
        self.change(id, |task| (task.path, task.problem) = (Some(path), None))
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
        let now = self.shared.publisher.clock().now();
        let (state, words) = if paused { (State::Paused, "paused") } else { (State::Resumed, "resumed") };
        let body = Body::Status(Status::new(state, format!("Task {id} {words}")));
        let (no, is_news) = (task.no, task.paused != paused);
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            also(connection)?;
            connection.execute("UPDATE tasks SET paused = ?2, failures = 0 WHERE no = ?1", params![no.0, paused])?;
            let said = is_news.then(|| (topic, Offer::new(None, now, &body)));
            Ok(((), said.into_iter().collect()))
        };
        // Memory follows in the order of the commits: the task may pause itself at the same time.
        let (registry, changed) = (self.clone(), id.clone());
        let follow = move |(): &()| -> Option<Box<dyn FnOnce() + Send>> {
            Some(Box::new(move || registry.note_paused(&changed, no, paused)))
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

    /// Deletes a task, its log and its runs, and says which runs those were. They must be over: that is asked
    /// again in the transaction, as one may have come in meanwhile. `also` is written in the same transaction.
    ///
    /// # Errors
    /// [`TaskError`]: no such task, a run is not over, the store cannot be written.
    pub async fn remove(
        &self,
        id: &TaskId,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Vec<RunId>, TaskError> {
        let _edit = self.shared.edits.lock().await;
        let not_found = || TaskError::NotFound(id.clone());
        let task = self.get(id).ok_or_else(not_found)?;
        let topic = self.shared.publisher.topic(id).ok_or_else(not_found)?;
        let no = task.no;
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            if has_open_runs(connection, no)? {
                return Err(TaskError::Running);
            }
            let runs = run_ids(connection, no)?;
            connection.execute("DELETE FROM tasks WHERE no = ?1", [no.0])?;
            also(connection)?;
            Ok(runs)
        };
        let runs = self.shared.publisher.delete(&topic, act).await?;
        let mut tasks = self.shared.tasks.write().unwrap_or_else(PoisonError::into_inner);
        // Another of the same name may be there already.
        if tasks.get(id).is_some_and(|there| there.no == no) {
            tasks.remove(id);
        }
        drop(tasks);
        self.shared.publisher.changes().note(id);
        Ok(runs)
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

    /// Notes in memory how far a task, as it was read, is planned, once the store has it.
    pub fn note_planned(&self, read: &Task, planned: Timestamp, next: Option<Timestamp>) {
        // A task that was removed meanwhile needs no note, and one whose schedule was edited has its own.
        let _ = self.change(&read.id, |task| {
            if (task.no, task.anchor, task.planned) == (read.no, read.anchor, read.planned) {
                (task.planned, task.next) = (planned, next);
            }
        });
    }

    fn set(&self, task: Task) -> Arc<Task> {
        let task = Arc::new(task);
        let mut tasks = self.shared.tasks.write().unwrap_or_else(PoisonError::into_inner);
        tasks.insert(task.id.clone(), Arc::clone(&task));
        drop(tasks);
        self.shared.publisher.changes().note(&task.id);
        task
    }

    /// Changes a task in memory; one that was removed meanwhile has nothing left to change.
    fn change(&self, id: &TaskId, change: impl FnOnce(&mut Task)) -> Result<Arc<Task>, TaskError> {
        let mut tasks = self.shared.tasks.write().unwrap_or_else(PoisonError::into_inner);
        let task = tasks.get_mut(id).map(|task| {
            change(Arc::make_mut(task));
            Arc::clone(task)
        });
        drop(tasks);
        self.shared.publisher.changes().note(id);
        task.ok_or_else(|| TaskError::NotFound(id.clone()))
    }

    fn broken_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<TaskId, Problem>> {
        self.shared.broken.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn free_id(connection: &Connection, id: Option<TaskId>, title: &str) -> Result<TaskId, TaskError> {
    let is_taken = |id: &TaskId| -> rusqlite::Result<bool> {
        connection.prepare_cached("SELECT 1 FROM tasks WHERE id = ?1")?.exists([id.as_str()])
    };
    if let Some(id) = id {
        return if is_taken(&id)? { Err(TaskError::Exists(id)) } else { Ok(id) };
    }
    let stem = TaskId::from_title(title).map_or_else(|| "task".to_owned(), |id| id.to_string());
    for number in 1_u32.. {
        let text = if number == 1 { stem.clone() } else { format!("{}-{number}", &stem[..stem.len().min(56)]) };
        if let Ok(id) = text.parse()
            && !is_taken(&id)?
        {
            return Ok(id);
        }
    }
    Err(StoreError::Broken("no free id".to_owned()).into())
}

/// A row of `tasks`, with what is open in its log.
struct Row {
    no: TaskNo,
    id: TaskId,
    generation: Gen,
    oldest: Seq,
    head: Seq,
    bytes: u64,
    source: Source,
    definition: String,
    enabled: bool,
    paused: bool,
    anchor: Timestamp,
    planned: Timestamp,
    fold: Fold,
}

fn read_rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default();
    let mut statement = connection.prepare(
        "SELECT no, id, gen, oldest, head, bytes, source, definition, enabled, paused, anchor, planned
         FROM tasks ORDER BY id",
    )?;
    let rows = statement.query_map([], |row| {
        let id: String = row.get(1)?;
        let source: String = row.get(6)?;
        Ok(id.parse().ok().map(|id| Row {
            no: TaskNo(row.get_unwrap(0)),
            id,
            generation: Gen(from_sql(row.get_unwrap(2))),
            oldest: Seq(from_sql(row.get_unwrap(3))),
            head: Seq(from_sql(row.get_unwrap(4))),
            bytes: from_sql(row.get_unwrap(5)),
            source: if source == "file" { Source::File } else { Source::Store },
            definition: row.get_unwrap(7),
            enabled: row.get_unwrap(8),
            paused: row.get_unwrap(9),
            anchor: time(row.get_unwrap(10)),
            planned: time(row.get_unwrap(11)),
            fold: Fold::default(),
        }))
    })?;
    let mut rows: Vec<Row> = rows.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?;
    for row in &mut rows {
        row.fold = log::fold_at(connection, &row.id, row.no, row.head)?;
    }
    Ok(rows)
}

/// Whether a task of this number is there, and may run by itself: asked again when a slot is claimed.
///
/// # Errors
/// When the store cannot be read.
pub fn is_on(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<bool>> {
    connection
        .prepare_cached("SELECT enabled AND NOT paused FROM tasks WHERE no = ?1")?
        .query_row([no.0], |row| row.get(0))
        .optional()
}

/// Notes whether a run of the task failed, and gives how many have in a row.
///
/// # Errors
/// When the store cannot be written.
pub fn note_failure(connection: &Connection, no: TaskNo, failed: bool) -> rusqlite::Result<u32> {
    let update = if failed {
        "UPDATE tasks SET failures = failures + 1 WHERE no = ?1 RETURNING failures"
    } else {
        "UPDATE tasks SET failures = 0 WHERE no = ?1 AND failures > 0 RETURNING failures"
    };
    connection.prepare_cached(update)?.query_row([no.0], |row| row.get(0)).optional().map(Option::unwrap_or_default)
}

/// Pauses a task within the transaction of what made it pause. Its failures count anew.
///
/// # Errors
/// When the store cannot be written.
pub fn pause(connection: &Connection, no: TaskNo) -> rusqlite::Result<()> {
    connection.prepare_cached("UPDATE tasks SET paused = 1, failures = 0 WHERE no = ?1")?.execute([no.0]).map(drop)
}

/// From when a task's schedule counts and how far it is planned, as the store has it.
///
/// # Errors
/// When the store cannot be read.
pub fn planned(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<(Timestamp, Timestamp)>> {
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    connection
        .prepare_cached("SELECT anchor, planned FROM tasks WHERE no = ?1")?
        .query_row([no.0], |row| Ok((time(row.get(0)?), time(row.get(1)?))))
        .optional()
}

/// Notes how far a task is planned, in the transaction of its slots.
///
/// # Errors
/// When the store cannot be written.
pub fn set_planned(
    connection: &Connection,
    no: TaskNo,
    planned: Timestamp,
    next: Option<Timestamp>,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE tasks SET planned = ?2, next = ?3 WHERE no = ?1")?
        .execute(params![no.0, planned.as_microsecond(), next.map(Timestamp::as_microsecond)])
        .map(drop)
}

/// Whether a run of the task is not over: asked in the transaction that depends on it.
///
/// # Errors
/// When the store cannot be read.
pub fn has_open_runs(connection: &Connection, no: TaskNo) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')")?
        .exists([no.0])
}

fn run_ids(connection: &Connection, no: TaskNo) -> rusqlite::Result<Vec<RunId>> {
    let mut statement = connection.prepare_cached("SELECT id FROM runs WHERE task = ?1")?;
    let rows = statement.query_map([no.0], |row| row.get::<_, String>(0))?;
    rows.filter_map(|row| row.map(|id| id.parse().ok()).transpose()).collect()
}
