//! Which runs wait, which are at work, and who starts next. The store has the truth (a `queued` run is one that
//! nobody has started); this keeps the order in memory and the places.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{error, info, warn};

use super::external::Elsewhere;
use super::places::{Kind, Manner, Places, PoolState, Standstill, Waits};
use super::runner::{StopCause, Workshop};
use crate::event::{Body, RunId, State, Status, TaskId};
use crate::record::Run;
use crate::store::{REMOVED, Store, StoreError, TaskNo};
use crate::stream::ends::Following;
use crate::stream::publish::{Publisher, Writable};
use crate::stream::topic::Offer;
use crate::task::definition::Overlap;
use crate::task::registry::{Registry, TaskError};

mod by_hand;
pub mod elsewhere;
mod recovery;
pub mod retries;
mod stops;

/// Why a run does not start that somebody stopped while it waited.
const STOPPED: &str = "stopped before it started";
/// How long the ends of stopped runs may take to be saved, beyond the stages, when the server goes down.
const UNSAVED: Duration = Duration::from_secs(1);

/// Why a run was not made, found or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no such task.
    #[error("there is no task {0}")]
    NoTask(TaskId),
    /// There is no such run.
    #[error("there is no run {0}")]
    NoRun(RunId),
    /// The run has ended.
    #[error("the run is over: it ended as {}", .0.state.as_str())]
    Over(Box<Run>),
    /// The run has not ended, and what was asked is for one that has.
    #[error("the run is not over, it is {}: wait for its end, or stop it", .0.state.as_str())]
    NotOver(Box<Run>),
    /// Too many wait already.
    #[error("{0} runs of this task wait already: stop one, or wait for them")]
    QueueFull(u32),
    /// Too many are at work elsewhere.
    #[error("{0} runs of this task are at work already: end some of them first")]
    TooManyOpen(usize),
    /// A parameter is wrong: its name, and why.
    #[error("{1}")]
    Param(String, String),
    /// The task's file is gone.
    #[error("the file of task {0} is gone: put it back, or remove the task")]
    Disabled(TaskId),
    /// The task's file never had a good version: the task, and what is wrong.
    #[error("the file of task {0} has an error: {1}")]
    Broken(TaskId, String),
    /// The run is carried out by the server itself.
    #[error("run {0} is carried out by the server: only runs of a task with agent = \"external\" are fed")]
    NotElsewhere(RunId),
    /// The task is carried out by the server itself.
    #[error("task {0} is carried out by the server: only runs of a task with agent = \"external\" are given away")]
    DoneHere(TaskId),
    /// The server is going down.
    #[error("the server is stopping and starts no more runs")]
    Stopping,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for RunError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<TaskError> for RunError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::NotFound(id) => Self::NoTask(id),
            TaskError::Store(error) => Self::Store(error),
            other => Self::Store(StoreError::Broken(other.to_string())),
        }
    }
}

/// All runs that are not over. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    workshop: Workshop,
    registry: Registry,
    store: Arc<Store>,
    lists: Mutex<Lists>,
    /// Held while runs are given places and their starts are handed to the writer, so that both have one order.
    starting: Mutex<()>,
    /// Rung for the dispatcher when a run was queued or has ended.
    bell: Notify,
    /// Rung when a retry was made that waits for its time.
    again: Notify,
    /// Rung for everyone when a run has ended.
    ended: Notify,
    tracker: TaskTracker,
    /// Where the writer has things done that it must not wait for.
    runtime: Handle,
    /// Rung for those who ask for work.
    offered: Notify,
    /// How long programs elsewhere may be silent, and take to end.
    patience: Patience,
    /// Those who hold a run for a program elsewhere.
    keepers: TaskTracker,
    /// Set when the server goes down: whoever waits for something here goes.
    leaving: CancellationToken,
}

/// How long programs elsewhere may be silent, and take to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// A run nothing was heard of for so long is over.
    pub lease: Duration,
    /// A program that was asked to stop has so long to end its run itself.
    pub stop: Duration,
}

#[derive(Debug)]
struct Lists {
    /// Who waits, who is at work, on the way to it or elsewhere, and who is next.
    places: Places,
    /// How those at work here are stopped.
    working: HashMap<RunId, watch::Sender<Option<StopCause>>>,
    /// Whose end is on its way to the store with a retry: nobody can stop that one before it is saved.
    followed: HashSet<RunId>,
    /// At work by programs that this server did not start: they take no place.
    elsewhere: HashMap<RunId, Arc<Elsewhere>>,
    /// Set when the server goes down: nothing starts any more.
    closed: bool,
    /// Set while nothing starts: a [`Stillness`] is there.
    held: bool,
}

/// As long as it is there, no run starts; those that could start when it goes.
#[must_use]
pub struct Stillness<'r>(&'r Runs);

impl Drop for Stillness<'_> {
    fn drop(&mut self) {
        self.0.lists().held = false;
        self.0.start_ready();
    }
}

/// A run that has its place and is not yet at work.
struct Next {
    id: RunId,
    task: TaskId,
    stop: watch::Receiver<Option<StopCause>>,
    token: TaskTrackerToken,
}

impl Lists {
    fn is_at_work(&self, id: RunId) -> bool {
        self.working.contains_key(&id) || self.elsewhere.contains_key(&id)
    }

    /// The runs of a task that are at work, here or elsewhere.
    fn at_work_of(&self, task: &TaskId) -> Vec<RunId> {
        self.places.at_work_of(task).into_iter().filter(|id| self.is_at_work(*id)).collect()
    }

    /// Stops a run that is at work, if it is; the first cause counts.
    fn raise(&self, id: RunId, why: StopCause) -> bool {
        if let Some(seat) = self.elsewhere.get(&id) {
            seat.raise(why);
            return true;
        }
        let Some(stop) = self.working.get(&id) else { return false };
        stop.send_if_modified(|cause| {
            let first = cause.is_none();
            *cause = cause.or(Some(why));
            first
        });
        true
    }
}

/// Carries on when the one who asked goes away half-way: a client that hangs up must not leave a run that is saved
/// and in no list.
async fn to_the_end<T, F>(work: F) -> Result<T, RunError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, RunError>> + Send + 'static,
{
    tokio::spawn(work).await.map_err(|error| StoreError::Broken(error.to_string()))?
}

impl Runs {
    /// No runs yet; [`Runs::recover`] finds those of before. To be made within a runtime.
    pub fn new(workshop: Workshop, registry: Registry, store: Arc<Store>, places: Places, patience: Patience) -> Self {
        let shared = Shared {
            workshop,
            registry,
            store,
            lists: Mutex::new(Lists {
                places,
                working: HashMap::new(),
                followed: HashSet::new(),
                elsewhere: HashMap::new(),
                closed: false,
                held: false,
            }),
            starting: Mutex::default(),
            bell: Notify::new(),
            again: Notify::new(),
            ended: Notify::new(),
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            offered: Notify::new(),
            patience,
            keepers: TaskTracker::new(),
            leaving: CancellationToken::new(),
        };
        let runs = Self { shared: Arc::new(shared) };
        // Not the runs themselves: they hold the publisher, and neither would ever go.
        let weak = Arc::downgrade(&runs.shared);
        runs.publisher().on_end(Box::new(move |connection, task, run| match weak.upgrade() {
            Some(shared) => Self { shared }.follow(connection, task, run),
            None => Ok(Following::default()),
        }));
        runs
    }

    /// Puts a run whose `queued` event is saved into the order; a retry, once it is due.
    pub fn note_queued(&self, id: RunId, task: TaskId) {
        let _ = self.note_queued_unless(id, task, || None);
    }

    /// The same, unless there is a reason not to: asked with the lists in hand, so that who stops something meanwhile
    /// either is the reason, or finds the run in them.
    fn note_queued_unless(
        &self,
        id: RunId,
        task: TaskId,
        off: impl FnOnce() -> Option<&'static str>,
    ) -> Result<(), &'static str> {
        let kind = self.kind_of(id, &task);
        {
            let mut lists = self.lists();
            if let Some(reason) = off() {
                return Err(reason);
            }
            let manner = self.manner(&task);
            lists.places.add(id, &task, kind, manner);
        }
        if matches!(kind, Kind::Retry { due: Some(_) }) {
            self.shared.again.notify_one();
        } else {
            self.look_again();
        }
        Ok(())
    }

    /// How the runs of a task are let in, as its definition says now. Asked with the lists in hand, so that what is asked
    /// last is noted last.
    fn manner(&self, task: &TaskId) -> Manner {
        let Some(task) = self.shared.registry.get(task) else { return Manner::default() };
        let policy = &task.definition.policy;
        Manner {
            pool: policy.concurrency.clone(),
            side_by_side: policy.overlap == Overlap::Allow,
            elsewhere: task.definition.agent.is_elsewhere(),
        }
    }

    /// Lets runs in as their definitions say now: some of them have changed.
    pub fn reread(&self) {
        {
            let mut lists = self.lists();
            let tasks: Vec<TaskId> = lists.places.tasks().cloned().collect();
            for task in tasks {
                let manner = self.manner(&task);
                lists.places.set_manner(&task, manner);
            }
        }
        self.look_again();
    }

    /// Looks again for runs that may start: one waits, or has ended.
    fn look_again(&self) {
        self.shared.bell.notify_one();
        self.shared.offered.notify_waiters();
    }

    /// Finds a run, ended or not.
    ///
    /// # Errors
    /// [`RunError::NoRun`], or the store's.
    pub async fn find(&self, id: RunId) -> Result<Run, RunError> {
        let read = move |connection: &Connection| {
            connection
                .prepare_cached(
                    "SELECT runs.run, tasks.id FROM runs JOIN tasks ON tasks.no = runs.task
                     WHERE runs.id = ?1 AND tasks.id < ?2",
                )?
                .query_row([&id.to_string(), REMOVED], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
                .optional()
        };
        let (text, task) = self.shared.store.read(read).await?.ok_or(RunError::NoRun(id))?;
        if let Some(run) = task.parse().ok().and_then(|task| self.open_run(&task, id)) {
            return Ok(run);
        }
        serde_json::from_str(&text).map_err(|error| StoreError::Broken(error.to_string()).into())
    }

    /// A run that is not over, as it is now.
    pub fn open_run(&self, task: &TaskId, id: RunId) -> Option<Run> {
        self.publisher().topic(task)?.tail().fold.run(id).cloned()
    }

    /// What this run waits for; `None` when it does not wait.
    pub fn waits(&self, id: RunId) -> Option<Waits> {
        self.lists().places.waits(id)
    }

    /// How the server's places and the pools stand.
    pub fn pools(&self) -> Vec<PoolState> {
        self.lists().places.pools()
    }

    /// The lines that stand, because all places are taken.
    pub fn standstills(&self) -> Vec<Standstill> {
        self.lists().places.standstills()
    }

    /// How many are at work, and how many wait.
    pub fn counts(&self) -> (usize, usize) {
        let lists = self.lists();
        (lists.working.len() + lists.elsewhere.len(), lists.places.queued())
    }

    /// Whether a run of the task waits or is at work.
    pub fn has_runs(&self, task: &TaskId) -> bool {
        self.lists().places.has_any_of(task)
    }

    /// Starts runs as places come free, until the server goes down. Runs of one task follow each other, unless its
    /// policy lets them run side by side.
    pub async fn dispatch(self) {
        loop {
            self.start_ready();
            if self.lists().closed {
                return;
            }
            // A ring since the last look has left a permit behind.
            self.shared.bell.notified().await;
        }
    }

    /// Lets no run start for a while; there is one of these at a time, the planner's.
    pub fn keep_still(&self) -> Stillness<'_> {
        self.lists().held = true;
        Stillness(self)
    }

    /// Starts every run that may start, in their order.
    pub fn start_ready(&self) {
        let _starting = self.shared.starting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(next) = self.take_next() {
            self.start(next);
        }
    }

    /// The first that may start now: it has its place from here on.
    fn take_next(&self) -> Option<Next> {
        let mut lists = self.lists();
        if lists.closed || lists.held {
            return None;
        }
        let (id, task) = lists.places.start_next()?;
        let (sender, stop) = watch::channel(None);
        lists.working.insert(id, sender);
        // Taken under the lock that `closed` is set under: whoever waits for the end of all waits for this one.
        let token = self.shared.tracker.token();
        Some(Next { id, task, stop, token })
    }

    fn start(&self, next: Next) {
        let runs = self.clone();
        let Next { id, task, stop, token } = next;
        let mut work = Box::pin(async move {
            let _token = token;
            let _place = Place { runs: runs.clone(), id };
            // The definition is taken now, not when the run was queued.
            let known = runs.shared.registry.get(&task).zip(runs.publisher().topic(&task));
            let Some((known, topic)) = known else { return };
            if known.definition.agent.is_elsewhere() {
                // Since it was taken from the list: it waits for someone who asks for work.
                return runs.note_queued(id, task);
            }
            let run = topic.tail().fold.run(id).cloned();
            match run {
                Some(run) => runs.shared.workshop.carry_out(known, topic, run, stop).await,
                // It was stopped on its way here.
                None => info!(run = %id, %task, "a run that was called off does not start"),
            }
        });
        // As far as it goes at once, which is until its start is with the writer: starts are saved in this order.
        if (&mut work).now_or_never().is_none() {
            tokio::spawn(work);
        }
    }

    /// Starts nothing any more; gives the runs at work `grace` to end, then stops them as interrupted, and waits
    /// for all. Runs that wait stay queued for the next start.
    pub async fn shut_down(&self, grace: Duration) {
        self.lists().closed = true;
        self.shared.bell.notify_one();
        // What is carried out elsewhere goes on, and is found by the next start.
        self.shared.leaving.cancel();
        self.shared.keepers.close();
        self.shared.keepers.wait().await;
        self.shared.tracker.close();
        if tokio::time::timeout(grace, self.shared.tracker.wait()).await.is_ok() {
            return;
        }
        {
            let lists = self.lists();
            for id in lists.working.keys() {
                lists.raise(*id, StopCause::Shutdown);
            }
        }
        // An end that cannot be saved is not waited for: the next start finds the run and says it.
        let stages = self.shared.workshop.stages.kill + UNSAVED;
        tokio::select! {
            () = self.shared.tracker.wait() => {}
            () = self.unwritable_for(stages) => warn!("the store cannot be written: runs are left to the next start"),
        }
    }

    /// Ready once the store could not be written for so long without a break.
    async fn unwritable_for(&self, long: Duration) {
        let mut writable = self.publisher().writable();
        loop {
            let _ = writable.wait_for(|writable| *writable != Writable::Yes).await;
            let again = writable.wait_for(|writable| *writable == Writable::Yes);
            if tokio::time::timeout(long, again).await.is_err() {
                return;
            }
        }
    }

    /// The program that stands over commands.
    pub fn supervisor(&self) -> &std::path::Path {
        &self.shared.workshop.exe
    }

    /// The tasks these runs are of.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    fn publisher(&self) -> &Publisher {
        &self.shared.workshop.publisher
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, Lists> {
        self.shared.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those at work: given back however the run ends.
struct Place {
    runs: Runs,
    id: RunId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let had_place = {
            let mut lists = self.runs.lists();
            lists.working.remove(&self.id);
            lists.places.leave(self.id)
        };
        if !had_place {
            error!(run = %self.id, "a run gave back a place that it did not have");
        }
        self.runs.shared.ended.notify_waiters();
        self.runs.shared.bell.notify_one();
    }
}

/// What a `queued` event says.
#[derive(Debug, Clone)]
pub struct Queued {
    /// `hand`, `schedule` or `catchup`.
    pub trigger: &'static str,
    /// The slot.
    pub scheduled_for: Option<Timestamp>,
    /// Which attempt of it, from 1.
    pub attempt: u32,
    /// The run that this one does once more.
    pub retry_of: Option<RunId>,
    /// Of a retry: it starts no sooner.
    pub not_before: Option<Timestamp>,
    /// The parameters it was given.
    pub params: Map<String, Value>,
}

impl Queued {
    /// Of a run that a person starts.
    fn by_hand(attempt: u32, retry_of: Option<RunId>, params: Map<String, Value>) -> Self {
        Self { trigger: "hand", scheduled_for: None, attempt, retry_of, not_before: None, params }
    }

    /// The event that makes the run.
    pub fn offer(self, id: RunId, at: Timestamp) -> Offer {
        let words = |not_before: Timestamp| retries::words(self.attempt, not_before.duration_since(at));
        let mut status = Status::new(State::Queued, self.not_before.map_or_else(|| "Queued".to_owned(), words));
        status.trigger = Some(self.trigger.to_owned());
        status.scheduled_for = self.scheduled_for;
        status.attempt = Some(self.attempt);
        status.retry_of = self.retry_of;
        status.not_before = self.not_before;
        status.params = Some(self.params);
        Offer::new(Some(id), at, &Body::Status(status))
    }
}

/// How many runs of the task wait; a retry of a slot counts as a run under way.
///
/// # Errors
/// When the store cannot be read.
pub fn count_queued(connection: &Connection, task: TaskNo) -> rusqlite::Result<u32> {
    connection
        .prepare_cached(
            // The first condition on the state is that of the index, and says nothing more.
            "SELECT count(*) FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')
               AND state = 'queued' AND (slot IS NULL OR attempt = 1)",
        )?
        .query_row([task.0], |row| row.get(0))
}

/// Runs that are over or not, newest first: of one task or all, in one state or any, before one id.
///
/// # Errors
/// When the store cannot be read.
pub fn list(
    connection: &Connection,
    task: Option<TaskNo>,
    state: Option<&str>,
    before: Option<RunId>,
    limit: usize,
) -> rusqlite::Result<Vec<Run>> {
    let mut statement = connection.prepare_cached(
        "SELECT run FROM runs WHERE (?1 IS NULL OR task = ?1) AND (?2 IS NULL OR state = ?2)
           AND (?3 IS NULL OR id < ?3) AND task NOT IN (SELECT no FROM tasks WHERE id >= ?5)
         ORDER BY id DESC LIMIT ?4",
    )?;
    let before = before.map(|id| id.to_string());
    let rows = statement
        .query_map(params![task.map(|no| no.0), state, before, limit as i64, REMOVED], |row| row.get::<_, String>(0))?;
    rows.filter_map(|row| row.map(|text| serde_json::from_str(&text).ok()).transpose()).collect()
}
