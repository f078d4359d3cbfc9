//! Which runs wait, which are at work, and who starts next. The store has the truth (a `queued` run is one that
//! nobody has started); this keeps the order in memory and the places.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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

use super::external::{self, Elsewhere, lasted, lost_result};
use super::places::{Kind, Manner, Places, PoolState, Standstill, Waits};
use super::runner::{CALLED_OFF, REPLACED, StopCause, Workshop, reasoned};
use crate::event::{Body, RunId, State, Status, TaskId};
use crate::failpoint;
use crate::record::Run;
use crate::store::{REMOVED, Store, StoreError, TaskNo};
use crate::stream::ends::Following;
use crate::stream::publish::{Publisher, Writable};
use crate::stream::topic::{Offer, Topic};
use crate::task::definition::Overlap;
use crate::task::parse;
use crate::task::registry::{Registry, Task, TaskError, is_enabled};
use crate::task::slots;

pub mod elsewhere;
pub mod retries;

/// The most bytes of all parameters of a run: they are part of an event, which has at most 64 KiB.
const MAX_PARAMS: usize = 32 * 1024;
/// How many runs started by hand may wait for one task.
pub const HAND_QUEUE: u32 = 10;
/// How many runs of one task may be at work elsewhere.
const MAX_ELSEWHERE: usize = 1000;
/// What the result of a call says whose end nobody saw.
const LOST: &str = "The server ended while this call was under way.";
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

    /// Makes a run by hand: it waits behind those of its task, whatever `overlap` says. `also` is written in the
    /// same transaction.
    ///
    /// # Errors
    /// [`RunError`]: no such task, a wrong parameter, too many wait, the store cannot be written.
    pub async fn start_by_hand(
        &self,
        task: &TaskId,
        given: Map<String, Value>,
        also: impl FnOnce(&Connection, RunId) -> Result<(), RunError> + Send + 'static,
    ) -> Result<Run, RunError> {
        let queued = Queued::by_hand(1, None, given);
        self.make_by_hand(task, queued, also).await
    }

    /// Makes a run that does once more what one that is over was to do: of the same task, with what that one was
    /// given. Otherwise as [`Runs::start_by_hand`].
    ///
    /// # Errors
    /// [`RunError`]: no such run, it is not over; and those of [`Runs::start_by_hand`].
    pub async fn retry(
        &self,
        of: RunId,
        also: impl FnOnce(&Connection, RunId) -> Result<(), RunError> + Send + 'static,
    ) -> Result<Run, RunError> {
        let run = self.find(of).await?;
        if !run.state.is_ended() {
            return Err(RunError::NotOver(Box::new(run)));
        }
        let Run { attempt, params, task, .. } = run;
        let attempt = attempt.saturating_add(1);
        let queued = Queued::by_hand(attempt, Some(of), params);
        self.make_by_hand(&task, queued, also).await
    }

    async fn make_by_hand(
        &self,
        task: &TaskId,
        mut queued: Queued,
        also: impl FnOnce(&Connection, RunId) -> Result<(), RunError> + Send + 'static,
    ) -> Result<Run, RunError> {
        let known = self.shared.registry.get(task).ok_or_else(|| RunError::NoTask(task.clone()))?;
        if !known.enabled {
            return Err(RunError::Disabled(task.clone()));
        }
        if self.lists().closed {
            return Err(RunError::Stopping);
        }
        let open = self.lists().elsewhere.values().filter(|seat| seat.topic.id == *task).count();
        if open >= MAX_ELSEWHERE {
            return Err(RunError::TooManyOpen(open));
        }
        queued.params = checked(&known, queued.params)?;
        let topic = self.publisher().topic(task).ok_or_else(|| RunError::NoTask(task.clone()))?;
        let runs = self.clone();
        to_the_end(async move { runs.queue_by_hand(&known, topic, queued, also).await }).await
    }

    async fn queue_by_hand(
        &self,
        known: &Task,
        topic: Arc<Topic>,
        queued: Queued,
        also: impl FnOnce(&Connection, RunId) -> Result<(), RunError> + Send + 'static,
    ) -> Result<Run, RunError> {
        let publisher = self.publisher();
        let id = RunId::new();
        let now = publisher.clock().now();
        let mut offers = vec![(topic.clone(), queued.offer(id, now))];
        // What is done elsewhere begins with the call that asks for it: the caller is who does it.
        let is_elsewhere = known.definition.agent.is_elsewhere();
        if is_elsewhere {
            let started = Body::Status(external::started(known));
            offers.push((topic.clone(), Offer::new(Some(id), now, &started)));
        }
        let (no, task) = (known.no, known.id.clone());
        let act = move |connection: &Connection| -> Result<_, RunError> {
            // Asked again here: behind the write that takes a task off, nothing new comes in.
            match is_enabled(connection, no)? {
                None => return Err(RunError::NoTask(task)),
                Some(false) => return Err(RunError::Disabled(task)),
                Some(true) => {}
            }
            let waiting = count_queued(connection, no)?;
            if waiting >= HAND_QUEUE {
                return Err(RunError::QueueFull(waiting));
            }
            also(connection, id)?;
            Ok(((), offers))
        };
        publisher.transact(act).await?;
        failpoint::hit("queued");
        if is_elsewhere {
            self.begin_elsewhere(id, topic.clone());
        } else {
            self.note_queued(id, known.id.clone());
        }
        let run = topic.tail().fold.run(id).cloned();
        match run {
            Some(run) => Ok(run),
            // It has started and ended before we looked.
            None => self.find(id).await,
        }
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

    /// Stops a run: at once, whatever the store or its queue is doing. A run that waits is over when this
    /// returns; one at work says its stages and ends. Of one that is over and is tried again, the retry is stopped; so
    /// it is of one whose end is being saved, and is over when this returns.
    ///
    /// # Errors
    /// [`RunError`]: no such run, it ended otherwise, or its end cannot be saved.
    pub async fn stop(&self, id: RunId) -> Result<Run, RunError> {
        let (mut id, mut asked) = (id, None);
        loop {
            let runs = self.clone();
            match to_the_end(async move { runs.stop_now(id).await }).await {
                // Asked again: it is as was asked.
                Err(RunError::Over(run)) if run.state == crate::record::RunState::Cancelled => return Ok(*run),
                Err(RunError::Over(run)) => match self.retry_made_of(&run).await? {
                    Some(retry) => {
                        asked = asked.or(Some(run));
                        id = retry;
                    }
                    None => return Err(RunError::Over(asked.unwrap_or(run))),
                },
                done => return done,
            }
        }
    }

    async fn stop_now(&self, id: RunId) -> Result<Run, RunError> {
        let (at_work, waited, followed) = {
            let mut lists = self.lists();
            (lists.raise(id, StopCause::Asked), lists.places.take_out(id), lists.followed.contains(&id))
        };
        if followed {
            // What is answered holds over a kill: its retry is there then, or, where nothing can be saved, is not made.
            match self.publisher().settled().await {
                Ok(()) | Err(StoreError::NotWritable(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let done = self.end_unless_at_work(id, at_work).await;
        if let (Err(error), Some(task)) = (&done, waited)
            && !matches!(error, RunError::Over(_))
        {
            self.note_queued(id, task);
        }
        done
    }

    async fn end_unless_at_work(&self, id: RunId, at_work: bool) -> Result<Run, RunError> {
        let run = self.find(id).await?;
        if run.state.is_ended() {
            return Err(RunError::Over(Box::new(run)));
        }
        if at_work {
            return Ok(run);
        }
        // It waits; or it is on its way into the list, or was lost on it: in each case nobody else ends it.
        let status = reasoned(State::Cancelled, &run.task, STOPPED);
        let end = Unstarted { status, outcome: "skipped", reason: STOPPED };
        self.end_waiting(&run.task, id, end).await?;
        // On its way it may have come to a place meanwhile. Its start is refused, and this ends the rest.
        self.lists().raise(id, StopCause::Asked);
        self.find(id).await
    }

    async fn end_waiting(&self, task: &TaskId, id: RunId, end: Unstarted) -> Result<(), RunError> {
        let publisher = self.publisher();
        let topic = publisher.topic(task).ok_or_else(|| RunError::NoTask(task.clone()))?;
        let Unstarted { status, outcome, reason } = end;
        let offer = Offer::new(Some(id), publisher.clock().now(), &Body::Status(status));
        let act = move |connection: &Connection| -> Result<_, RunError> {
            slots::note_end_unstarted(connection, id, outcome, reason)?;
            Ok(((), vec![(topic, offer)]))
        };
        publisher.transact(act).await?;
        Ok(())
    }

    /// Stops all runs of a task and waits until they are over.
    ///
    /// # Errors
    /// [`RunError`]: the end of one that waits cannot be saved.
    pub async fn stop_all_of(&self, task: &TaskId) -> Result<(), RunError> {
        loop {
            // Registered before the look, so that an end in between is not missed.
            let ended = self.shared.ended.notified();
            // Those of the log too: a run that was saved may still be on its way into the lists.
            let topic = self.publisher().topic(task);
            let mut ids: BTreeSet<RunId> =
                topic.map(|topic| topic.tail().fold.runs().map(|run| run.id).collect()).unwrap_or_default();
            {
                let lists = self.lists();
                ids.extend(lists.places.waiting_of(task));
                ids.extend(lists.at_work_of(task));
            }
            if ids.is_empty() {
                return Ok(());
            }
            let mut working = false;
            for id in ids {
                match self.stop(id).await {
                    Ok(run) => working |= !run.state.is_ended(),
                    // Saved as over; its place is given back in a moment, if it is not yet.
                    Err(RunError::Over(run)) => working |= self.lists().is_at_work(run.id),
                    Err(error) => return Err(error),
                }
            }
            if working {
                ended.await;
            }
        }
    }

    /// Calls off the scheduled runs of a task that wait, and its retries: their slots become `disabled`. Those started
    /// by hand wait on.
    ///
    /// # Errors
    /// [`RunError`]: their end cannot be saved.
    pub async fn call_off_scheduled(&self, task: &TaskId) -> Result<(), RunError> {
        let waiting = self.lists().places.waiting_of(task);
        let (runs, task) = (self.clone(), task.clone());
        to_the_end(async move { runs.call_off(&task, waiting).await }).await
    }

    async fn call_off(&self, task: &TaskId, waiting: Vec<RunId>) -> Result<(), RunError> {
        for id in waiting {
            let by_itself = self.find(id).await?.is_by_itself();
            if by_itself && self.lists().places.take_out(id).is_some() {
                let end = Unstarted::called_off(task);
                if let Err(error) = self.end_waiting(task, id, end).await {
                    self.note_queued(id, task.clone());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Lets a run take the place of those of its task that are at work or wait for their slot: they are stopped, and
    /// it starts when they are over. Those started by hand that wait, wait on.
    pub fn replace(&self, task: &TaskId, by: RunId) {
        let Some(topic) = self.publisher().topic(task) else { return };
        let scheduled: Vec<RunId> = {
            let tail = topic.tail();
            tail.fold.runs().filter(|run| run.id != by && run.scheduled_for.is_some()).map(|run| run.id).collect()
        };
        let given_up: Vec<RunId> = {
            let mut lists = self.lists();
            // Before the stop: none of them may start in the place that comes free.
            let given_up = scheduled.into_iter().filter(|id| lists.places.take_out(*id).is_some()).collect();
            // The one before may have ended by itself meanwhile, and this one be at work.
            for id in lists.at_work_of(task).into_iter().filter(|id| *id != by) {
                lists.raise(id, StopCause::Replaced);
            }
            given_up
        };
        for id in given_up {
            let runs = self.clone();
            let topic = Arc::clone(&topic);
            let note = move |connection: &Connection| slots::note_coalesced(connection, id, by, REPLACED);
            self.shared.tracker.spawn(async move { runs.end_given_up(&topic, id, REPLACED, note).await });
        }
    }

    /// Ends a run that waited and is in no list any more; `note` writes what becomes of its slot.
    async fn end_given_up(
        &self,
        topic: &Arc<Topic>,
        id: RunId,
        reason: &'static str,
        note: impl Fn(&Connection) -> rusqlite::Result<()> + Copy + Send + 'static,
    ) {
        let said = self.publisher().save(|| {
            let (topic, now) = (Arc::clone(topic), self.publisher().clock().now());
            move |connection: &Connection| -> Result<_, StoreError> {
                note(connection)?;
                let end = Body::Status(reasoned(State::Cancelled, &topic.id, reason));
                Ok(((), vec![(topic, Offer::new(Some(id), now, &end))]))
            }
        });
        if let Err(error) = said.await {
            warn!(run = %id, task = %topic.id, reason, %error, "a run that waited is over; its end could not be saved");
        }
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

    /// Ends what an earlier server left behind, then takes up what waits: survivors of its commands are killed,
    /// runs that were at work become `interrupted`, runs that waited wait on, unless they are too old. What is
    /// carried out elsewhere goes on.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn recover(&self) -> Result<(), RunError> {
        let (open, recorded) = self.shared.store.read(read_open).await?;
        let at_work: Vec<&Open> =
            open.iter().filter(|open| open.state != "queued" && !self.take_up(open.id, &open.task)).collect();
        if !at_work.is_empty() {
            let ids = at_work.iter().map(|open| open.id).collect();
            let ended = tokio::task::spawn_blocking(move || super::process::end_survivors(&ids, &recorded)).await;
            let killed = ended.map_or(0, |ended| ended.killed.len());
            info!(runs = at_work.len(), killed, "runs of an earlier server are interrupted");
        }
        for run in &at_work {
            self.interrupt(run).await?;
        }
        for run in open.iter().filter(|open| open.state == "queued") {
            self.requeue(run).await?;
        }
        self.replace_again(&open);
        Ok(())
    }

    /// Has the newest slot of each task that replaces take the place of what waits: the server may have ended between the
    /// commit that made its run and the end of those before it.
    fn replace_again(&self, open: &[Open]) {
        let replaces = |open: &&Open| {
            let task = self.shared.registry.get(&open.task);
            task.is_some_and(|task| task.definition.policy.overlap == Overlap::Replace)
        };
        let is_first = |run: &Run| run.scheduled_for.is_some() && run.attempt == 1 && run.started_at.is_none();
        let waiting =
            open.iter().filter(replaces).filter_map(|open| self.open_run(&open.task, open.id)).filter(is_first);
        // In the order of their ids, so that the last one stays.
        let newest: BTreeMap<TaskId, RunId> = waiting.map(|run| (run.task, run.id)).collect();
        for (task, by) in newest {
            self.replace(&task, by);
        }
    }

    async fn interrupt(&self, open: &Open) -> Result<(), RunError> {
        let Some(topic) = self.publisher().topic(&open.task) else { return Ok(()) };
        let now = self.publisher().clock().now();
        let mut status = reasoned(State::Interrupted, &open.task, "the server ended while it was at work");
        let mut offers = Vec::new();
        {
            let tail = topic.tail();
            let Some(run) = tail.fold.run(open.id) else { return Ok(()) };
            status.duration_ms = lasted(run, now);
            for call in tail.fold.calls().iter().filter(|call| call.run == open.id) {
                offers.push(Offer::new(Some(open.id), now, &lost_result(&call.call, &call.event, LOST)));
            }
        }
        offers.push(Offer::new(Some(open.id), now, &Body::Status(status)));
        let offers = offers.into_iter().map(|offer| (topic.clone(), offer)).collect();
        self.publisher().transact::<_, RunError, _>(move |_| Ok(((), offers))).await?;
        Ok(())
    }

    /// A run that waited waits on; a scheduled one that is older than its catch-up window is missed, and one of a
    /// paused task is called off.
    async fn requeue(&self, open: &Open) -> Result<(), RunError> {
        let task = self.shared.registry.get(&open.task);
        let run = self.open_run(&open.task, open.id);
        if run.as_ref().is_some_and(Run::is_by_itself) && task.as_deref().is_some_and(|task| task.paused) {
            return self.end_waiting(&open.task, open.id, Unstarted::called_off(&open.task)).await;
        }
        let slot = open.slot.and_then(|slot| Timestamp::from_microsecond(slot).ok());
        // A retry has waited since it was due: the slot had its run in time.
        let not_before = run.and_then(|run| run.not_before);
        let too_old = task.as_deref().zip(slot).is_some_and(|(task, slot)| {
            task.timing.as_ref().is_some_and(|timing| {
                let window = crate::schedule::plan::window(timing, &task.definition.policy, task.anchor, slot);
                let planned = timing.planned_for(task.anchor, slot);
                let since = not_before.map_or(planned, |not_before| not_before.max(planned));
                self.publisher().clock().now().duration_since(since) > window
            })
        });
        if !too_old {
            self.note_queued(open.id, open.task.clone());
            return Ok(());
        }
        let status = reasoned(State::Interrupted, &open.task, "missed: it waited longer than its catch-up window");
        self.end_waiting(&open.task, open.id, Unstarted { status, outcome: "missed", reason: "too old in the queue" })
            .await
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

/// How a run ends that never started, and what becomes of its slot.
struct Unstarted {
    status: Status,
    outcome: &'static str,
    reason: &'static str,
}

impl Unstarted {
    /// Of a scheduled run whose task was paused while it waited.
    fn called_off(task: &TaskId) -> Self {
        let reason = CALLED_OFF;
        Self { status: reasoned(State::Cancelled, task, reason), outcome: "disabled", reason }
    }
}

/// The parameters of a run as they were given, each of the kind of its default.
fn checked(task: &Task, given: Map<String, Value>) -> Result<Map<String, Value>, RunError> {
    let bytes = serde_json::to_string(&given).map_or(0, |text| text.len());
    if bytes > MAX_PARAMS {
        let why =
            format!("{bytes} bytes of parameters are too many, at most {MAX_PARAMS} are taken: put more into a file");
        return Err(RunError::Param(String::new(), why));
    }
    let whole = parse::run_params(&task.definition, &Value::Object(given.clone())).map_err(|problems| {
        let first = problems.first();
        let name = first.key.strip_prefix("params.").unwrap_or(&first.key);
        RunError::Param(name.to_owned(), format!("the parameter {name}: {}", first.message))
    })?;
    Ok(whole.into_iter().filter(|(name, _)| given.contains_key(name)).collect())
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

/// A run that was not over when the server before ended.
struct Open {
    id: RunId,
    task: TaskId,
    state: String,
    slot: Option<i64>,
}

/// A supervisor that was written down: its process id and its start time, in clock ticks since boot.
type Recorded = (i32, u64);

fn read_open(connection: &Connection) -> rusqlite::Result<(Vec<Open>, Vec<Recorded>)> {
    let mut statement = connection.prepare(
        "SELECT runs.id, tasks.id, runs.state, runs.slot FROM runs JOIN tasks ON tasks.no = runs.task
         WHERE runs.state IN ('queued', 'running', 'waiting') ORDER BY runs.id",
    )?;
    let rows = statement.query_map([], |row| {
        let (id, task): (String, String) = (row.get(0)?, row.get(1)?);
        let (state, slot) = (row.get(2)?, row.get(3)?);
        Ok(id.parse().ok().zip(task.parse().ok()).map(|(id, task)| Open { id, task, state, slot }))
    })?;
    let open = rows.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?;
    let mut statement = connection.prepare(
        "SELECT pid, start_ticks FROM processes JOIN runs ON runs.id = processes.run
         WHERE runs.state IN ('running', 'waiting')",
    )?;
    let recorded = statement
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?
        .collect::<rusqlite::Result<_>>()?;
    Ok((open, recorded))
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
