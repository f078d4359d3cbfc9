//! The runs that programs elsewhere carry out: opened by hand, given to those who ask for work, held for as long as
//! their program is heard of, and ended by the server where nobody else does.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{RunError, Runs, to_the_end};
use crate::event::{Body, RunId, State, Status, TaskId};
use crate::record::{Run, RunState};
use crate::run::external::{Elsewhere, lasted, lost_result, started};
use crate::run::runner::{StopCause, reasoned, stopped};
use crate::store::StoreError;
use crate::stream::publish::Writable;
use crate::stream::topic::{Offer, Topic};
use crate::task::registry::rows::off;
use crate::task::slots;

/// How long nobody may have spoken for a run that was opened by hand before whoever asks for work gets it. Never
/// longer than half of the lease: it must be given before it is taken away.
const FREE_AFTER: Duration = Duration::from_secs(5);

/// Why a program elsewhere is no longer waited for.
enum Unheard {
    /// It was asked to stop, or ran out of time.
    Stopped(StopCause),
    /// Nothing was heard of it.
    Lapsed,
}

/// A run that may be given to who asks.
enum Free {
    /// It waits; here it was taken from the list.
    Queued(RunId),
    /// It was opened by hand, and nobody spoke for it.
    Opened(Arc<Elsewhere>),
    /// None; at that moment one that was opened by hand may be taken.
    Not(Option<Instant>),
}

/// What is written in the transaction that gives a run away.
pub type Also = Arc<dyn Fn(&Connection, RunId) -> Result<(), RunError> + Send + Sync>;

impl Runs {
    /// The run, if a program elsewhere is at work on it.
    ///
    /// # Errors
    /// [`RunError`]: no such run, it is over, or it is carried out here.
    pub async fn elsewhere(&self, id: RunId) -> Result<Arc<Elsewhere>, RunError> {
        let seat = self.lists().elsewhere.get(&id).cloned();
        match seat.filter(|seat| !seat.is_over()) {
            Some(seat) => Ok(seat),
            None => {
                let run = self.find(id).await?;
                Err(if run.state.is_ended() { RunError::Over(Box::new(run)) } else { RunError::NotElsewhere(id) })
            }
        }
    }

    /// Ready once the server goes down: whoever waits for something here goes.
    pub async fn leaving(&self) {
        self.shared.leaving.cancelled().await;
    }

    /// Holds a run that was opened by hand: it takes events at once.
    pub(super) fn begin_elsewhere(&self, id: RunId, topic: Arc<Topic>) {
        self.shared.workshop.note_unwatched(&topic.id);
        info!(run = %id, task = %topic.id, "run starts elsewhere");
        let free_from = Instant::now() + FREE_AFTER.min(self.shared.patience.lease / 2);
        self.hold(Elsewhere::new(id, topic, 0, Some(free_from)));
    }

    /// Holds a run of before, if it is carried out elsewhere: its lease begins anew.
    pub(super) fn take_up(&self, id: RunId, task: &TaskId) -> bool {
        let Some(topic) = self.publisher().topic(task) else { return false };
        let run = topic.tail().fold.run(id).cloned();
        let Some((run, saved)) = run.and_then(|run| run.last_n.map(|saved| (run, saved))) else { return false };
        // Its program gets the time to come back before another may have it.
        let untouched = saved == 0 && run.scheduled_for.is_none();
        let free_from = untouched.then(|| Instant::now() + self.shared.patience.lease / 2);
        let seat = Elsewhere::new(id, topic, saved, free_from);
        if run.stopping.is_some() {
            seat.raise(StopCause::Asked);
        }
        info!(run = %id, %task, last_n = saved, "a run that is carried out elsewhere goes on");
        self.hold(seat);
        true
    }

    fn hold(&self, seat: Arc<Elsewhere>) {
        {
            let mut lists = self.lists();
            lists.places.note_elsewhere(seat.id, &seat.topic.id);
            lists.elsewhere.insert(seat.id, Arc::clone(&seat));
        }
        self.shared.offered.notify_waiters();
        let runs = self.clone();
        self.shared.keepers.spawn(async move {
            // The server goes down: the run goes on, and the next start finds it.
            tokio::select! {
                () = runs.leaving() => {}
                () = runs.keep(&seat) => {
                    seat.end();
                    {
                        let mut lists = runs.lists();
                        lists.elsewhere.remove(&seat.id);
                        lists.places.leave(seat.id);
                    }
                    runs.shared.ended.notify_waiters();
                    runs.look_again();
                }
            }
        });
    }

    /// Waits until a run is over; ends it where its program does not.
    async fn keep(&self, seat: &Arc<Elsewhere>) {
        let Some(run) = seat.topic.tail().fold.run(seat.id).cloned() else { return };
        let (limit, idle) = match self.shared.registry.get(&seat.topic.id) {
            Some(task) => (task.definition.policy.timeout, task.definition.policy.idle_timeout),
            None => return,
        };
        // It counts from its start, also over a restart of the server.
        let took = Duration::from_millis(lasted(&run, self.publisher().clock().now()).unwrap_or(0));
        let unheard = tokio::select! {
            biased;
            () = seat.over() => return,
            cause = seat.stop_raised() => Unheard::Stopped(cause),
            () = tokio::time::sleep(limit.saturating_sub(took)) => Unheard::Stopped(StopCause::TimedOut(limit)),
            () = seat.lapsed(self.shared.patience.lease) => Unheard::Lapsed,
            () = self.silent(seat, idle) => Unheard::Stopped(StopCause::Silent(idle.unwrap_or_default())),
        };
        let task = &seat.topic.id;
        let status = match unheard {
            Unheard::Lapsed => {
                let lease = crate::config::units::duration_words(self.shared.patience.lease);
                reasoned(State::Interrupted, task, &format!("nothing was heard of its program for {lease}"))
            }
            // Ended by another hand in the moment of its start.
            Unheard::Stopped(_) if seat.topic.tail().fold.run(seat.id).is_none() => return,
            Unheard::Stopped(cause) => {
                seat.raise(cause);
                let ended = tokio::time::timeout(self.shared.patience.stop, async {
                    let told = Status::new(State::Progress, "Stopping: its program was told");
                    let told = Status { stage: Some("told".to_owned()), ..told };
                    let _ = self.publisher().offer(&seat.topic, Some(seat.id), &Body::Status(told)).await;
                    seat.over().await;
                });
                if ended.await.is_ok() {
                    return;
                }
                stopped(task, cause, Vec::new())
            }
        };
        self.end_elsewhere(seat, &run, status).await;
    }

    /// Ready once a program said nothing for so long, although it could: a run that waits for an answer says nothing,
    /// and a log that cannot be written takes nothing.
    async fn silent(&self, seat: &Elsewhere, limit: Option<Duration>) {
        let mut writable = self.publisher().writable();
        loop {
            seat.pulse.silent(limit).await;
            let is_waiting = seat.topic.tail().fold.run(seat.id).is_some_and(|run| run.state == RunState::Waiting);
            let is_full = *writable.borrow_and_update() != Writable::Yes;
            if !is_waiting && !is_full {
                return;
            }
            if is_full {
                let _ = writable.wait_for(|writable| *writable == Writable::Yes).await;
            }
            seat.pulse.beat();
        }
    }

    /// Ends a run in its program's place: from here on nothing of it is taken any more.
    async fn end_elsewhere(&self, seat: &Arc<Elsewhere>, run: &Run, mut status: Status) {
        // Even where the store cannot be written now, nobody else's turn holds after this.
        let _ = self.publisher().take_turn(&seat.producer).await;
        status.duration_ms = lasted(run, self.publisher().clock().now());
        let said = self.publisher().save(|| {
            let (topic, status) = (seat.topic.clone(), status.clone());
            let id = seat.id;
            let now = self.publisher().clock().now();
            move |_: &Connection| -> Result<_, StoreError> {
                let mut bodies: Vec<Body> = {
                    let tail = topic.tail();
                    let calls = tail.fold.calls().iter().filter(|open| open.run == id);
                    calls.map(|open| lost_result(&open.call, &open.event, &status.text)).collect()
                };
                bodies.push(Body::Status(status));
                let offers = bodies.iter().map(|body| (topic.clone(), Offer::new(Some(id), now, body))).collect();
                Ok(((), offers))
            }
        });
        match said.await {
            Ok(_) => {
                info!(run = %seat.id, task = %seat.topic.id, state = status.state.as_str(), reason = status.reason, "run ended")
            }
            Err(error) => warn!(run = %seat.id, task = %seat.topic.id, %error, "run ended; its end could not be saved"),
        }
    }

    /// Gives a run of the task to who asks, as soon as there is one, within `wait`. One run goes to one; `also` is
    /// written in the same transaction.
    ///
    /// # Errors
    /// [`RunError`]: no such task, its work is done here, the store cannot be written.
    pub async fn claim(&self, task: &TaskId, wait: Duration, also: Also) -> Result<Option<Run>, RunError> {
        let deadline = Instant::now() + wait;
        loop {
            // Registered before the look, so that what is offered in between is not missed.
            let mut offered = std::pin::pin!(self.shared.offered.notified());
            offered.as_mut().enable();
            let known = self.shared.registry.get(task).ok_or_else(|| RunError::NoTask(task.clone()))?;
            if !known.definition.agent.is_elsewhere() {
                return Err(RunError::DoneHere(task.clone()));
            }
            let until = match self.take_free(task) {
                Free::Not(until) => until.map_or(deadline, |until| until.min(deadline)),
                free => {
                    let (runs, task, also) = (self.clone(), task.clone(), also.clone());
                    // To its end: a run that was begun is held, also when who asked for it hangs up meanwhile.
                    match to_the_end(async move { runs.give(&task, free, also).await }).await? {
                        Some(run) => return Ok(Some(run)),
                        // It was over before it could be given.
                        None => continue,
                    }
                }
            };
            if Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::select! {
                () = offered => {}
                () = tokio::time::sleep_until(until) => {}
                () = self.leaving() => return Err(RunError::Stopping),
            }
        }
    }

    /// The oldest run of a task that is free. One that waits follows those at work.
    fn take_free(&self, task: &TaskId) -> Free {
        let mut lists = self.lists();
        if lists.closed {
            return Free::Not(None);
        }
        let now = Instant::now();
        let mut opened: Vec<&Arc<Elsewhere>> =
            lists.elsewhere.values().filter(|seat| seat.topic.id == *task && !seat.is_over()).collect();
        opened.sort_by_key(|seat| seat.id);
        if let Some(seat) = opened.iter().find(|seat| seat.take_free(now)) {
            return Free::Opened(Arc::clone(seat));
        }
        let until = opened.iter().filter_map(|seat| seat.free_from()).min();
        lists.places.give_next_of(task).map_or(Free::Not(until), Free::Queued)
    }

    /// Gives a run away; `None` when it is over.
    async fn give(&self, task: &TaskId, free: Free, also: Also) -> Result<Option<Run>, RunError> {
        match free {
            Free::Not(_) => Ok(None),
            Free::Opened(seat) => {
                let id = seat.id;
                let act = move |connection: &Connection| also(connection, id).map(|()| ((), Vec::new()));
                if let Err(error) = self.publisher().transact::<_, RunError, _>(act).await {
                    seat.give_back();
                    self.look_again();
                    return Err(error);
                }
                let run = seat.topic.tail().fold.run(seat.id).cloned();
                Ok(run)
            }
            Free::Queued(id) => {
                let begun = self.begin(task, id, also).await;
                if !matches!(begun, Ok(Some(_))) {
                    self.lists().places.leave(id);
                }
                match begun {
                    Ok(Some(seat)) => {
                        self.hold(Arc::clone(&seat));
                        let run = seat.topic.tail().fold.run(id).cloned();
                        Ok(run)
                    }
                    Ok(None) => {
                        self.look_again();
                        Ok(None)
                    }
                    Err(error) => {
                        self.note_queued(id, task.clone());
                        Err(error)
                    }
                }
            }
        }
    }

    /// Saves the start of a run that waited; `None` when it is over, or called off in this moment.
    async fn begin(&self, task: &TaskId, id: RunId, also: Also) -> Result<Option<Arc<Elsewhere>>, RunError> {
        let known = self.shared.registry.get(task).zip(self.publisher().topic(task));
        let (known, topic) = known.ok_or_else(|| RunError::NoTask(task.clone()))?;
        let Some(run) = topic.tail().fold.run(id).cloned() else { return Ok(None) };
        let now = self.publisher().clock().now();
        let start =
            run.scheduled_for.map(|slot| slots::Start::of(known.timing.as_deref(), known.anchor, &run, slot, now));
        let started = Offer::new(Some(id), now, &Body::Status(started(&known)));
        let (no, of, to, by_itself) = (known.no, task.clone(), topic.clone(), run.is_by_itself());
        let act = move |connection: &Connection| -> Result<_, RunError> {
            // Someone may have ended it on its way here.
            if !is_queued(connection, id)? {
                return Ok((false, Vec::new()));
            }
            if by_itself && let Some(off) = off(connection, no)? {
                slots::note_end_unstarted(connection, id, "disabled", off.then())?;
                let off = Body::Status(reasoned(State::Cancelled, &of, off.then()));
                return Ok((false, vec![(to, Offer::new(Some(id), now, &off))]));
            }
            if let Some(start) = &start {
                slots::note_start(connection, id, start)?;
            }
            also(connection, id)?;
            Ok((true, vec![(to, started)]))
        };
        let (on, numbers) = self.publisher().transact(act).await?;
        self.shared.workshop.note_unwatched(task);
        Ok((on && !numbers.is_empty()).then(|| Elsewhere::new(id, topic, 0, None)))
    }
}

fn is_queued(connection: &Connection, run: RunId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT state = 'queued' FROM runs WHERE id = ?1")?
        .query_row([run.to_string()], |row| row.get(0))
}
