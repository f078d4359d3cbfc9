//! The retries: made in the transaction that saves the end of the attempt before, waiting here until they are due, then
//! in line with the other runs. What follows an end is decided by `run/retry.rs`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Lists, Queued, RunError, Runs, STOPPED};
use crate::config::units::duration_words;
use crate::event::{Body, RunId, State, Status, TaskId};
use crate::failpoint;
use crate::record::Run;
use crate::run::places::{Due, Kind};
use crate::run::retry::{self, Next, Past};
use crate::run::runner::{REPLACED, StopCause, reasoned};
use crate::schedule::plan::Off;
use crate::store::{StoreError, TaskNo};
use crate::stream::ends::Following;
use crate::stream::topic::Offer;
use crate::task::definition::Overlap;
use crate::task::registry::Task;
use crate::task::registry::rows;
use crate::task::slots;

/// How often the clock is asked while a retry waits: a machine that slept has not counted.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A clock that has not come to the end of a wait after that time and this part of it more was set back, and is not
/// waited for. One that is only slowed down a little to be right again comes to it earlier.
const SET_BACK: u32 = 8;

/// Says whether a run at work is stopped, and why; also once it is no longer at work.
struct Stop(Option<watch::Receiver<Option<StopCause>>>);

impl Stop {
    /// Why someone, or a newer slot, has ended the run, if that is so: what it says itself is no failure any more, and
    /// is not tried again.
    fn given_up(&self) -> Option<&'static str> {
        match *self.0.as_ref()?.borrow() {
            Some(StopCause::Asked) => Some(STOPPED),
            Some(StopCause::Replaced) => Some(REPLACED),
            _ => None,
        }
    }
}

impl Lists {
    fn stop_of(&self, id: RunId) -> Stop {
        let elsewhere = self.elsewhere.get(&id).map(|seat| seat.stop());
        Stop(elsewhere.or_else(|| self.working.get(&id).map(watch::Sender::subscribe)))
    }
}

impl Runs {
    /// What made a run that waits, and for a retry, when it is due.
    pub(super) fn kind_of(&self, id: RunId, task: &TaskId) -> Kind {
        // One that is over already does not start, and holds up nobody until then.
        let Some(run) = self.open_run(task, id) else { return Kind::Hand };
        let Some(at) = run.not_before else {
            return if run.is_by_itself() { Kind::Slot } else { Kind::Hand };
        };
        let until = |from: Timestamp| Duration::try_from(at.duration_since(from)).unwrap_or(Duration::ZERO);
        // Over a start of the server too a clock that was set back does not make the wait longer than it was drawn.
        let left = until(self.publisher().clock().now()).min(until(run.queued_at));
        let by = Instant::now() + left + left / SET_BACK + LOOK_AGAIN;
        let at = at.min(self.publisher().clock().now().saturating_add(left).unwrap_or(at));
        Kind::Retry { due: (!left.is_zero()).then_some(Due { at, by }) }
    }

    /// Lets no retry wait for what the clock showed before it was set back: each waits for as long as it has left.
    pub fn accept_clock(&self) {
        let (wall, now) = (self.publisher().clock().now(), Instant::now());
        self.lists().places.bring_near(wall, now);
    }

    /// The run that does once more what this one was to do; none, as long as nobody did.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn retried_by(&self, run: &Run) -> Result<Option<RunId>, StoreError> {
        if !run.state.is_ended() {
            return Ok(None);
        }
        let (id, attempt) = (run.id, run.attempt.saturating_add(1));
        self.shared.store.read(move |connection| retried_by(connection, id, attempt)).await
    }

    /// The retry that the server made of a run that is over.
    pub(super) async fn retry_made_of(&self, run: &Run) -> Result<Option<RunId>, RunError> {
        let Some(next) = self.retried_by(run).await? else { return Ok(None) };
        Ok(self.find(next).await?.not_before.map(|_| next))
    }

    /// Puts retries into the line as they become due, until the server goes down.
    pub async fn line_up_retries(self) {
        loop {
            let wait = self.line_up_due().map_or(Duration::MAX, |left| left.min(LOOK_AGAIN));
            tokio::select! {
                // A ring since the last look has left a permit behind.
                () = self.shared.again.notified() => {}
                () = tokio::time::sleep(wait) => {}
                () = self.leaving() => return,
            }
        }
    }

    /// Puts those into the line that are due; gives how long until the next.
    fn line_up_due(&self) -> Option<Duration> {
        let (wall, now) = (self.registry().look().believed(), Instant::now());
        let (due, next) = {
            let mut lists = self.lists();
            (lists.places.line_up_due(wall, now), lists.places.next_due())
        };
        if due {
            self.look_again();
        }
        let Due { at, by } = next?;
        let by_clock = Duration::try_from(at.duration_since(wall)).unwrap_or(Duration::ZERO);
        Some(by_clock.min(by.saturating_duration_since(now)))
    }

    /// What follows the end of a run: called by the writer, in the transaction of the end.
    pub(super) fn follow(&self, connection: &Connection, no: TaskNo, run: &Run) -> Result<Following, StoreError> {
        let task = self.registry().get(&run.task).filter(|task| task.no == no);
        let Some(task) = task else { return Ok(Following::default()) };
        if run.started_at.is_none() {
            return self.follow_unstarted(connection, &task, run);
        }
        if run.state == crate::record::RunState::Succeeded {
            rows::note_failure(connection, no, false)?;
            return Ok(Following::default());
        }
        let stop = {
            let mut lists = self.lists();
            // Asked again, as it could not be saved, it may be decided otherwise.
            lists.followed.remove(&run.id);
            lists.stop_of(run.id)
        };
        if stop.given_up().is_some() {
            return Ok(Following::default());
        }
        let policy = &task.definition.policy;
        let is_on = rows::off(connection, no)?.is_none();
        let past = past(connection, run)?;
        match retry::next(policy, run, past, is_on, rand::random()) {
            Next::Nothing => Ok(Following::default()),
            // It was about to be stopped for that one: the planner's commit came before this one.
            Next::Again { .. } if policy.overlap == Overlap::Replace && has_slot_waiting(connection, no)? => {
                Ok(Following::default())
            }
            Next::Again { wait } => self.make_retry(connection, run, wait, stop),
            Next::Failed => self.note_failure(connection, &task),
        }
    }

    /// A retry that ends without a start: then the failure before it was not tried again, and counts.
    fn follow_unstarted(&self, connection: &Connection, task: &Task, run: &Run) -> Result<Following, StoreError> {
        let before = run.not_before.and(run.retry_of);
        let before = before.map(|before| saved(connection, before)).transpose()?.flatten();
        match before {
            Some(before) if retry::is_failure(before.state) => self.note_failure(connection, task),
            _ => Ok(Following::default()),
        }
    }

    fn note_failure(&self, connection: &Connection, task: &Task) -> Result<Following, StoreError> {
        let failures = rows::note_failure(connection, task.no, true)?;
        if retry::pauses(&task.definition.policy, failures) && rows::off(connection, task.no)?.is_none() {
            return self.pause_itself(connection, task, failures);
        }
        Ok(Following::default())
    }

    fn make_retry(
        &self,
        connection: &Connection,
        run: &Run,
        wait: Duration,
        stop: Stop,
    ) -> Result<Following, StoreError> {
        {
            let mut lists = self.lists();
            // Whoever stopped the run until now is heard; whoever does from here on waits for what is saved.
            if stop.given_up().is_some() {
                return Ok(Following::default());
            }
            lists.followed.insert(run.id);
        }
        let now = self.publisher().clock().now();
        let not_before = SignedDuration::try_from(wait).ok().and_then(|wait| now.checked_add(wait).ok());
        let attempt = run.attempt.saturating_add(1);
        let queued = Queued {
            trigger: match run.trigger.as_str() {
                "schedule" => "schedule",
                "catchup" => "catchup",
                _ => "hand",
            },
            scheduled_for: run.scheduled_for,
            attempt,
            retry_of: Some(run.id),
            not_before: Some(not_before.unwrap_or(now)),
            params: run.params.clone(),
        };
        let id = RunId::new();
        slots::note_retry(connection, run.id, id)?;
        failpoint::hit("retry-not-saved");
        let (runs, task, of) = (self.clone(), run.task.clone(), run.id);
        let (tracker, runtime) = (self.shared.tracker.clone(), self.shared.runtime.clone());
        let after = move || {
            failpoint::hit("retry-saved");
            runs.lists().followed.remove(&of);
            info!(run = %id, %of, %task, attempt, wait_ms = wait.as_millis(), "the run is tried again");
            // Until it is saved, who stops the run finds no retry, and means it all the same; so does a newer slot.
            if let Err(reason) = runs.note_queued_unless(id, task.clone(), || stop.given_up()) {
                let topic = runs.publisher().topic(&task);
                let off = async move {
                    let Some(topic) = topic else { return };
                    runs.end_given_up(&topic, id, reason, move |connection| {
                        slots::note_end_unstarted(connection, id, "skipped", reason)
                    })
                    .await;
                };
                tracker.spawn_on(off, &runtime);
            }
        };
        Ok(Following { offers: vec![queued.offer(id, now)], after: Some(Box::new(after)) })
    }

    /// Pauses a task too many of whose runs failed in a row, and calls off what of it waits by itself.
    fn pause_itself(&self, connection: &Connection, task: &Task, failures: u32) -> Result<Following, StoreError> {
        let now = self.publisher().clock().now();
        rows::pause(connection, task.no)?;
        let reason = match failures {
            1 => "its run failed".to_owned(),
            failures => format!("{failures} of its runs failed in a row"),
        };
        let mut status = Status::new(State::Paused, format!("Task {} paused itself: {reason}", task.id));
        status.reason = Some(reason);
        let mut offers = vec![Offer::new(None, now, &Body::Status(status))];
        let why = Off::Paused.then();
        let off = Body::Status(reasoned(State::Cancelled, &task.id, why));
        let waiting: Vec<RunId> = queued_by_themselves(connection, task.no)?;
        for id in &waiting {
            slots::note_end_unstarted(connection, *id, "disabled", why)?;
            offers.push(Offer::new(Some(*id), now, &off));
        }
        let (runs, id, no) = (self.clone(), task.id.clone(), task.no);
        let after = move || {
            warn!(task = %id, failures, "the task paused itself: so many of its runs failed in a row");
            runs.registry().note_paused(&id, no, true);
            let mut lists = runs.lists();
            for id in waiting {
                lists.places.take_out(id);
            }
        };
        Ok(Following { offers, after: Some(Box::new(after)) })
    }
}

/// The words of a retry that waits.
pub(super) fn words(attempt: u32, wait: SignedDuration) -> String {
    match Duration::try_from(wait) {
        Ok(wait) if wait >= Duration::from_secs(1) => {
            format!("Attempt {attempt} starts in {}", duration_words(Duration::from_secs(wait.as_secs())))
        }
        _ => format!("Attempt {attempt} is queued"),
    }
}

/// How the attempts ended that led to this run, and how it ended itself.
fn past(connection: &Connection, run: &Run) -> rusqlite::Result<Past> {
    let mut past = Past::default().with(run.state);
    let (mut retry_of, mut attempt) = (run.not_before.and(run.retry_of), run.attempt);
    // What a person does once more begins anew: only a retry has a time before which it does not start.
    while let Some(of) = retry_of {
        let Some(before) = saved(connection, of)? else {
            // Retention took them: as if all of them had failed, so that there is an end.
            past.failures = past.failures.saturating_add(attempt.saturating_sub(1));
            break;
        };
        past = past.with(before.state);
        (retry_of, attempt) = (before.not_before.and(before.retry_of), before.attempt);
    }
    Ok(past)
}

/// A run as it is saved by now.
fn saved(connection: &Connection, run: RunId) -> rusqlite::Result<Option<Run>> {
    let text: Option<String> = connection
        .prepare_cached("SELECT run FROM runs WHERE id = ?1")?
        .query_row([run.to_string()], |row| row.get(0))
        .optional()?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// Whether a slot of a task waits for its run.
fn has_slot_waiting(connection: &Connection, task: TaskNo) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            // The first condition on the state is that of the index, without which all runs that are kept are read.
            "SELECT 1 FROM runs INDEXED BY runs_open_by_task
             WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')
               AND state = 'queued' AND slot IS NOT NULL AND attempt = 1",
        )?
        .exists([task.0])
}

/// The runs of a task that wait and that no person has started.
fn queued_by_themselves(connection: &Connection, task: TaskNo) -> rusqlite::Result<Vec<RunId>> {
    let mut statement = connection.prepare_cached(
        // As above.
        "SELECT run FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')
           AND state = 'queued' ORDER BY id",
    )?;
    let rows = statement.query_map([task.0], |row| row.get::<_, String>(0))?;
    let by_itself = |text: String| {
        let run: Option<Run> = serde_json::from_str(&text).ok();
        run.filter(Run::is_by_itself).map(|run| run.id)
    };
    rows.filter_map(|row| row.map(by_itself).transpose()).collect()
}

/// The next attempt of a run, or what a person did once more of it: whichever came first.
fn retried_by(connection: &Connection, run: RunId, attempt: u32) -> rusqlite::Result<Option<RunId>> {
    connection
        .prepare_cached(
            "SELECT id FROM runs WHERE task = (SELECT task FROM runs WHERE id = ?1) AND id > ?1 AND attempt = ?2
               AND run ->> '$.retry_of' = ?1 ORDER BY id LIMIT 1",
        )?
        .query_row(rusqlite::params![run.to_string(), attempt], |row| row.get::<_, String>(0))
        .optional()
        .map(|id| id.and_then(|id| id.parse().ok()))
}
