//! Runs that people start: what they may give along, how many may wait, and the way into the line.

use std::sync::Arc;

use rusqlite::Connection;
use serde_json::{Map, Value};

use super::{Queued, RunError, Runs, count_queued, to_the_end};
use crate::event::{Body, RunId, TaskId};
use crate::failpoint;
use crate::record::Run;
use crate::run::external;
use crate::stream::topic::{Offer, Topic};
use crate::task::parse;
use crate::task::registry::Task;
use crate::task::registry::rows::is_enabled;

/// The most bytes of all parameters of a run: they are part of an event, which has at most 64 KiB.
const MAX_PARAMS: usize = 32 * 1024;
/// How many runs started by hand may wait for one task.
const HAND_QUEUE: u32 = 10;
/// How many runs of one task may be at work elsewhere.
const MAX_ELSEWHERE: usize = 1000;

impl Runs {
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
        let known = self.shared.registry.get(task).ok_or_else(|| match self.shared.registry.broken().remove(task) {
            Some(problem) => RunError::Broken(task.clone(), problem.to_string()),
            None => RunError::NoTask(task.clone()),
        })?;
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
