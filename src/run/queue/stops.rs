//! How runs are stopped, called off and replaced. Whoever waits is over at once, whoever is at work is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::Connection;
use tracing::warn;

use super::{RunError, Runs, STOPPED, to_the_end};
use crate::event::{Body, RunId, State, Status, TaskId};
use crate::record::Run;
use crate::run::runner::{REPLACED, StopCause, reasoned};
use crate::schedule::plan::Off;
use crate::store::StoreError;
use crate::stream::topic::{Offer, Topic};
use crate::task::slots;

impl Runs {
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

    pub(super) async fn end_waiting(&self, task: &TaskId, id: RunId, end: Unstarted) -> Result<(), RunError> {
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
    pub(super) async fn end_given_up(
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
}

/// How a run ends that never started, and what becomes of its slot.
pub(super) struct Unstarted {
    pub(super) status: Status,
    pub(super) outcome: &'static str,
    pub(super) reason: &'static str,
}

impl Unstarted {
    /// Of a scheduled run whose task was paused while it waited.
    pub(super) fn called_off(task: &TaskId) -> Self {
        let reason = Off::Paused.then();
        Self { status: reasoned(State::Cancelled, task, reason), outcome: "disabled", reason }
    }
}
