//! Which tasks there are, and how each stands: in memory to be asked, in the store to be kept.
//!
//! A task is its definition and where its schedule is. What its runs do is the business of its stream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::{Connection, OptionalExtension, params};

use super::agenda::{Agenda, Entry};
use super::definition::{Definition, Terms};
use super::parse::{self, Problem};
use super::slots;
use crate::event::{Body, Gen, RunId, Seq, State, Status, TaskId};
use crate::failpoint;
use crate::record::Fold;
use crate::schedule::plan::{self, JumpWatch, Plan, Standing};
use crate::schedule::timing::{Timing, Wrong};
use crate::store::{REMOVED, Store, StoreError, TaskNo, from_sql, sql};
use crate::stream::log;
use crate::stream::publish::Publisher;
use crate::stream::topic::{Offer, Start, Topic};

/// No clock is right that shows an earlier time than this: 1 January 2026. A machine without a clock starts in 1970.
const EARLIEST: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// How many tasks are set right in one transaction when a clock is accepted.
const ACCEPTED_AT_ONCE: usize = 512;

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

    /// The next slot: its own time, and when it is planned for.
    pub fn upcoming(&self) -> Option<(Timestamp, Timestamp)> {
        let (timing, next) = (self.timing.as_ref()?, self.next?);
        let slot = timing.next_after(self.anchor, self.planned).filter(|slot| *slot <= next)?;
        Some((slot, next))
    }
}

/// What the clock showed when somebody looked at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Look {
    /// What it shows.
    pub now: Timestamp,
    /// What it would show had it not jumped, as long as it is not believed that it is right.
    carried: Option<Timestamp>,
}

impl Look {
    /// Whether it did not jump forward, or that is believed.
    pub fn is_believed(&self) -> bool {
        self.carried.is_none()
    }
}

/// When something was changed that counts from then on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Given {
    /// It is at least so late.
    since: Timestamp,
    /// What the clock shows, which is later as long as a jump of it is not believed.
    shown: Timestamp,
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
    tasks: RwLock<Tasks>,
    /// Files that never had a good version.
    broken: RwLock<BTreeMap<TaskId, Problem>>,
    /// What is of no task: files whose names are none's, and their folder where it cannot be read.
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
                    let problem = Problem { file: None, line: None, column: None, key: String::new(), message: error };
                    self.broken_mut().insert(row.id, problem);
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
        self.set(Task {
            id: row.id,
            no: row.no,
            definition: Arc::new(definition),
            timing,
            source: row.source,
            path: None,
            problem: gone.into_iter().next(),
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
        let problem = |key: String, message: String| Problem { file: None, line: None, column: None, key, message };
        let pool = definition.policy.concurrency.as_deref().and_then(|name| terms.no_such_pool(name)).map(|why| {
            problem("policy.concurrency".to_owned(), format!("{why}; until then one run of it is at work at a time"))
        });
        let named = definition.notify.channels.iter().flatten().enumerate();
        let channels = named.filter_map(|(n, name)| {
            let why = terms.no_such_channel(name)?;
            Some(problem(format!("notify.channels[{n}]"), format!("{why}; until then nobody is told by it")))
        });
        pool.into_iter().chain(channels).collect()
    }

    fn timing(&self, definition: &Definition, id: &TaskId, seed: u64) -> Result<Option<Arc<Timing>>, Wrong> {
        let of_task = |timing: Timing| Arc::new(timing.of_task(id.as_str(), seed));
        let schedule = definition.schedule.as_ref();
        schedule.map(|schedule| Timing::new(schedule, &self.shared.zone).map(of_task)).transpose()
    }

    /// The newest time that is stored of schedules: a clock far behind it is wrong.
    pub fn last_stored(&self) -> Timestamp {
        let planned = self.newest_planned();
        let seen = Timestamp::from_microsecond(self.shared.seen.load(Ordering::Relaxed)).unwrap_or_default();
        planned.map_or(seen, |planned| planned.max(seen))
    }

    /// Notes in memory that schedules were looked at, once the store has it.
    pub fn note_seen(&self, now: Timestamp) {
        self.shared.seen.store(now.as_microsecond(), Ordering::Relaxed);
    }

    /// Looks at the clock. One that jumped forward by more than an hour is believed if it still says so in a minute.
    pub fn look(&self) -> Look {
        let mut jumps = self.jumps();
        let (now, passed) = self.shared.publisher.clock().look();
        jumps.believes(now, passed);
        if jumps.has_just_seen_one() {
            tracing::warn!(%now, "the clock jumped forward by more than an hour: it is believed if it still says so in a minute");
        }
        Look { now, carried: jumps.carried(passed) }
    }

    /// Somebody says that the clock is right: a jump needs no more proof.
    pub fn believe_clock(&self) {
        *self.jumps() = JumpWatch::default();
    }

    fn jumps(&self) -> std::sync::MutexGuard<'_, JumpWatch> {
        self.shared.jumps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From when on something counts that is changed now. Behind a clock that is held it is at least as late as what is
    /// stored. By a clock that is not believed it is only known between which times it lies: which of them counts is settled
    /// when one is believed, by `schedule::plan`.
    fn given_at(&self) -> Given {
        let Look { now, carried } = self.look();
        let passed = carried.unwrap_or(now);
        let since = plan::held_until(self.last_stored(), passed).unwrap_or(passed);
        Given { since, shown: now.max(since) }
    }

    /// Takes the clock for right, whatever is stored: what was planned behind now is forgotten, what runs were made of
    /// stays and is not made again. Gives how many tasks and rows of slots that concerned.
    ///
    /// # Errors
    /// [`TaskError`]: the store cannot be written.
    pub async fn accept_clock(&self, now: Timestamp) -> Result<(usize, usize), TaskError> {
        let _edit = self.shared.edits.lock().await;
        let is_ahead = |task: &Arc<Task>| task.planned.max(task.anchor) > now || task.resumed > Some(now);
        let ahead: Vec<_> = self.all().into_iter().filter(is_ahead).collect();
        let mut forgotten = 0;
        for batch in ahead.chunks(ACCEPTED_AT_ONCE) {
            let tasks = batch.to_vec();
            let act = move |connection: &Connection| -> Result<_, TaskError> {
                let mut gone = 0;
                for task in &tasks {
                    gone += forget_plan(connection, task, now)?;
                }
                note_clock(connection, now)?;
                Ok((gone, Vec::new()))
            };
            forgotten += self.shared.publisher.transact(act).await?.0;
            for task in batch {
                // One that was removed meanwhile has nothing left to change.
                let _ = self.change(&task.id, |task| {
                    task.anchor = task.timing.as_ref().map_or(now, |timing| timing.anchor_before(task.anchor, now));
                    (task.planned, task.resumed) = (now, None);
                    task.next = task.timing.as_ref().and_then(|timing| next_look(timing, task.anchor, now, None));
                });
            }
        }
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            note_clock(connection, now)?;
            Ok(((), Vec::new()))
        };
        self.shared.publisher.transact(act).await?;
        self.note_seen(now);
        Ok((ahead.len(), forgotten))
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

    /// The newest time up to which a task is planned.
    pub fn newest_planned(&self) -> Option<Timestamp> {
        self.tasks().agenda.newest_planned()
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

    /// Removes a task, its log and its runs, and says which runs those were. They must be over: that is asked
    /// again in the transaction, as one may have come in meanwhile. `also` is written in the same transaction.
    ///
    /// From that transaction on nothing finds the task and its name is free; its rows go in steps, so that nobody
    /// waits for a task with a long history. What a crash leaves of them, [`Registry::bury`] takes.
    ///
    /// # Errors
    /// [`TaskError`]: no such task, a run is not over, the store cannot be written.
    pub async fn remove(
        &self,
        id: &TaskId,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<Vec<RunId>, TaskError> {
        let edit = self.shared.edits.lock().await;
        let not_found = || TaskError::NotFound(id.clone());
        let task = self.get(id).ok_or_else(not_found)?;
        let topic = self.shared.publisher.topic(id).ok_or_else(not_found)?;
        let no = task.no;
        let act = move |connection: &Connection| -> Result<_, TaskError> {
            if has_open_runs(connection, no)? {
                return Err(TaskError::Running);
            }
            connection.execute("UPDATE tasks SET id = ?2 || no, enabled = 0 WHERE no = ?1", params![no.0, REMOVED])?;
            also(connection)?;
            Ok(())
        };
        self.shared.publisher.delete(&topic, act).await?;
        self.forget(id, no);
        drop(edit);
        self.shared.publisher.changes().note(id);
        failpoint::hit("removed-not-buried");
        // The task is gone, whatever becomes of its rows: they are taken later then.
        Ok(self.bury(no).await.unwrap_or_else(|error| {
            tracing::warn!(task = %id, %error, "the rows of a removed task are still there; housekeeping takes them");
            Vec::new()
        }))
    }

    fn forget(&self, id: &TaskId, no: TaskNo) {
        let mut tasks = self.shared.tasks.write().unwrap_or_else(PoisonError::into_inner);
        // Another of the same name may be there already.
        if tasks.by_id.get(id).is_some_and(|there| there.no == no) {
            tasks.remove(id);
        }
    }

    /// Takes the rows of a removed task, in steps that nobody waits for long; gives its runs.
    ///
    /// # Errors
    /// When the store cannot be written: another call goes on.
    pub async fn bury(&self, no: TaskNo) -> Result<Vec<RunId>, StoreError> {
        let mut runs = Vec::new();
        loop {
            let act = move |connection: &Connection| -> Result<_, StoreError> {
                Ok((bury_step(connection, no)?, Vec::new()))
            };
            let (step, _) = self.shared.publisher.transact(act).await?;
            match step {
                Some(gone) => runs.extend(gone),
                None => return Ok(runs),
            }
        }
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

    /// Notes in memory how far a task, as it was read, is planned, once the store has it.
    pub fn note_planned(&self, read: &Task, planned: Planned) {
        // A task that was removed meanwhile needs no note, and one whose schedule was edited has its own.
        let _ = self.change(&read.id, |task| {
            if Planned::of(task).is_of(read) {
                planned.put_into(task, read.no);
            }
        });
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
    resumed: Option<Timestamp>,
    seed: u64,
    fold: Fold,
}

fn read_rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default();
    let mut statement = connection.prepare(
        "SELECT no, id, gen, oldest, head, bytes, source, definition, enabled, paused, anchor, planned, seed,
           resumed
         FROM tasks WHERE id < ?1 ORDER BY id",
    )?;
    let rows = statement.query_map([REMOVED], |row| {
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
            seed: row.get_unwrap::<_, i64>(12).cast_unsigned(),
            resumed: row.get_unwrap::<_, Option<i64>>(13).map(time),
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
    Ok(switches(connection, no)?.map(|(enabled, paused)| enabled && !paused))
}

/// Whether a task of this number is there, and may run at all.
///
/// # Errors
/// When the store cannot be read.
pub fn is_enabled(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<bool>> {
    Ok(switches(connection, no)?.map(|(enabled, _)| enabled))
}

/// Whether a task that is there may run at all, and whether it is paused.
fn switches(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<(bool, bool)>> {
    connection
        .prepare_cached("SELECT enabled, paused FROM tasks WHERE no = ?1 AND id < ?2")?
        .query_row(params![no.0, REMOVED], |row| Ok((row.get(0)?, row.get(1)?)))
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

/// When a task is to be looked at next: when the first slot behind a moment is planned for; at once, where it is not
/// settled from when on it runs, as a clock was in doubt.
fn next_look(timing: &Timing, anchor: Timestamp, planned: Timestamp, resumed: Option<Timestamp>) -> Option<Timestamp> {
    if anchor > planned || resumed.is_some() {
        return Some(planned);
    }
    timing.next_after(anchor, planned).map(|slot| timing.planned_for(anchor, slot))
}

/// How far a task is planned, and from when on it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// From when its schedule counts; see [`Standing::anchor`].
    pub anchor: Timestamp,
    /// Every slot up to here has its row.
    pub to: Timestamp,
    /// Until when it was paused, where that is not settled yet.
    pub resumed: Option<Timestamp>,
    /// When it is to be looked at next.
    pub next: Option<Timestamp>,
}

impl Planned {
    fn of(task: &Task) -> Self {
        Self { anchor: task.anchor, to: task.planned, resumed: task.resumed, next: task.next }
    }

    /// Whether a task, as it was read, is planned so far.
    pub fn is_of(&self, task: &Task) -> bool {
        (self.anchor, self.to, self.resumed) == (task.anchor, task.planned, task.resumed)
    }

    /// Another task of the same name is left alone.
    fn put_into(self, task: &mut Task, no: TaskNo) {
        if task.no == no {
            (task.anchor, task.planned, task.resumed, task.next) = (self.anchor, self.to, self.resumed, self.next);
        }
    }
}

/// How far a task is planned, as the store has it; and the slots behind that which have their row too, first and last of
/// each, in order: a clock was ahead.
///
/// # Errors
/// When the store cannot be read.
pub fn planned(
    connection: &Connection,
    no: TaskNo,
) -> rusqlite::Result<Option<(Planned, Vec<(Timestamp, Timestamp)>)>> {
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    let row: Option<(i64, i64, [Option<i64>; 3])> = connection
        .prepare_cached("SELECT anchor, planned, resumed, next, claimed FROM tasks WHERE no = ?1 AND id < ?2")?
        .query_row(params![no.0, REMOVED], |row| {
            Ok((row.get(0)?, row.get(1)?, [row.get(2)?, row.get(3)?, row.get(4)?]))
        })
        .optional()?;
    let Some((anchor, to, rest)) = row else { return Ok(None) };
    let [resumed, next, claimed] = rest.map(|micros| micros.map(time));
    let planned = Planned { anchor: time(anchor), to: time(to), resumed, next };
    let claimed = match claimed {
        Some(through) if through > planned.to => slots::claimed_after(connection, no, planned.to)?,
        _ => Vec::new(),
    };
    Ok(Some((planned, claimed)))
}

/// Writes down what passed of a task's slots while it was paused, in the transaction that lets it go on: nothing of it is
/// caught up, whoever looks at the clock next.
fn end_pause(
    connection: &Connection,
    task: &Task,
    topic: &Arc<Topic>,
    given: Given,
    said: &mut Vec<(Arc<Topic>, Offer)>,
) -> rusqlite::Result<Option<Planned>> {
    let Some(timing) = &task.timing else { return Ok(None) };
    let Some((stored, claimed)) = planned(connection, task.no)? else { return Ok(None) };
    let Given { since, shown } = given;
    let mut planned = Planned { resumed: Some(shown).filter(|shown| *shown > since), ..stored };
    // One that has not begun by now has no slots yet.
    if stored.anchor <= since {
        let standing = Standing {
            last_planned: stored.to,
            anchor: stored.anchor,
            resumed: None,
            last_stored: since,
            enabled: false,
            active: false,
            queued: 0,
            claimed: &claimed,
        };
        let Plan { rows, anchor, planned_to, next } = plan::paused(timing, &standing, since);
        let generation = topic.tail().generation;
        for row in &rows {
            let noted = slots::note(connection, task.no, generation, row, None)?;
            let bodies = slots::said(&noted, row, &task.id);
            said.extend(bodies.iter().map(|body| (Arc::clone(topic), Offer::new(None, shown, body))));
        }
        (planned.anchor, planned.to, planned.next) = (anchor, planned_to, next);
    }
    if planned.resumed.is_some() {
        planned.next = next_look(timing, planned.anchor, planned.to, planned.resumed);
    }
    set_planned(connection, task.no, &planned)?;
    Ok(Some(planned))
}

/// Forgets what is planned of a task behind now; gives how many rows of slots went.
fn forget_plan(connection: &Connection, task: &Task, now: Timestamp) -> rusqlite::Result<usize> {
    let Some(timing) = &task.timing else {
        connection
            .prepare_cached("UPDATE tasks SET planned = ?2, anchor = ?2, resumed = NULL WHERE no = ?1")?
            .execute(params![task.no.0, now.as_microsecond()])?;
        return Ok(0);
    };
    let (claimed, gone) = slots::forget_after(connection, task.no, timing, task.anchor, now)?;
    let anchor = timing.anchor_before(task.anchor, now);
    connection
        .prepare_cached(
            "UPDATE tasks SET planned = ?2, anchor = ?3, next = ?4, claimed = ?5, resumed = NULL WHERE no = ?1",
        )?
        .execute(params![
            task.no.0,
            now.as_microsecond(),
            anchor.as_microsecond(),
            next_look(timing, anchor, now, None).map(Timestamp::as_microsecond),
            claimed.map(Timestamp::as_microsecond)
        ])?;
    Ok(gone)
}

fn read_seen(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let micros: Option<i64> = connection
        .query_row("SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'clock'", [], |row| row.get(0))
        .optional()?;
    Ok(micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()))
}

/// Notes the time at which schedules were looked at: the next start knows then whether its clock can be right.
///
/// # Errors
/// When the store cannot be written.
pub fn note_clock(connection: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO meta (key, value) VALUES ('clock', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1",
        )?
        .execute([now.as_microsecond().to_string()])
        .map(drop)
}

/// Notes how far a task is planned, in the transaction of its slots.
///
/// # Errors
/// When the store cannot be written.
pub fn set_planned(connection: &Connection, no: TaskNo, planned: &Planned) -> rusqlite::Result<()> {
    let Planned { anchor, to, resumed, next } = planned;
    connection
        .prepare_cached("UPDATE tasks SET anchor = ?2, planned = ?3, resumed = ?4, next = ?5 WHERE no = ?1")?
        .execute(params![
            no.0,
            anchor.as_microsecond(),
            to.as_microsecond(),
            resumed.map(Timestamp::as_microsecond),
            next.map(Timestamp::as_microsecond)
        ])
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

/// The removed tasks of which there are rows.
///
/// # Errors
/// When the store cannot be read.
pub fn removed(connection: &Connection) -> rusqlite::Result<Vec<TaskNo>> {
    let mut statement = connection.prepare_cached("SELECT no FROM tasks WHERE id >= ?1")?;
    statement.query_map([REMOVED], |row| row.get(0).map(TaskNo))?.collect()
}

/// How many rows of a removed task go in one step.
const BURIED: i64 = 128;

/// Takes some rows of a removed task, the task's own at last; gives the runs among them, nothing when it is gone.
fn bury_step(connection: &Connection, no: TaskNo) -> rusqlite::Result<Option<Vec<RunId>>> {
    let is_removed =
        connection.prepare_cached("SELECT 1 FROM tasks WHERE no = ?1 AND id >= ?2")?.exists(params![no.0, REMOVED])?;
    if !is_removed {
        return Ok(None);
    }
    if !log::delete_step(connection, no)? {
        return Ok(Some(Vec::new()));
    }
    let mut statement = connection.prepare_cached(
        "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE task = ?1 ORDER BY id LIMIT ?2) RETURNING id",
    )?;
    let rows = statement.query_map([no.0, BURIED], |row| row.get::<_, String>(0))?;
    let runs: Vec<String> = rows.collect::<rusqlite::Result<_>>()?;
    if !runs.is_empty() {
        return Ok(Some(runs.iter().filter_map(|id| id.parse().ok()).collect()));
    }
    let slots = connection
        .prepare_cached(
            "DELETE FROM slots WHERE task = ?1 AND (gen, scheduled_for) IN
               (SELECT gen, scheduled_for FROM slots WHERE task = ?1 LIMIT ?2)",
        )?
        .execute(params![no.0, BURIED])?;
    if slots == 0 {
        connection.execute("DELETE FROM tasks WHERE no = ?1", [no.0])?;
    }
    Ok(Some(Vec::new()))
}
