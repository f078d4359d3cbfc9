//! What becomes of the runs that an earlier server left behind: ended, taken up, or put into the line again.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::Connection;
use tracing::info;

use super::stops::Unstarted;
use super::{RunError, Runs};
use crate::event::{Body, RunId, State, TaskId};
use crate::record::Run;
use crate::run::external::{lasted, lost_result};
use crate::run::process;
use crate::run::runner::reasoned;
use crate::stream::topic::Offer;
use crate::task::definition::Overlap;

/// What the result of a call says whose end nobody saw.
const LOST: &str = "The server ended while this call was under way.";

impl Runs {
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
            let ended = tokio::task::spawn_blocking(move || process::end_survivors(&ids, &recorded)).await;
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
        let mut newest: BTreeMap<TaskId, RunId> = waiting.map(|run| (run.task, run.id)).collect();
        // What a program elsewhere has begun since that slot is not what it was to replace.
        newest.retain(|task, by| {
            !open.iter().any(|other| other.task == *task && other.state != "queued" && other.id > *by)
        });
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
        "SELECT runs.id, tasks.id, runs.state, runs.slot
         FROM runs INDEXED BY runs_open_by_task JOIN tasks ON tasks.no = runs.task
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
