//! The planner: when slots are due, it writes down what becomes of each and queues the runs. The state of
//! schedules is in the store; what is decided is decided by `schedule::plan`, in the writer's transaction.
//!
//! It sleeps until the next slot, and looks once a second in any case (a suspended machine, a stepped clock). It is woken
//! when a task changes, and by the bell.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::event::RunId;
use crate::failpoint;
use crate::run::queue::{Queued, Runs, count_queued};
use crate::schedule::plan::{self, Decision, Outcome, Plan, Row, ScheduleState};
use crate::store::StoreError;
use crate::stream::publish::Publisher;
use crate::stream::topic::{Offer, Topic};
use crate::task::registry::planned::{Planned, Stored, note_clock, planned, set_planned};
use crate::task::registry::rows::has_open_runs;
use crate::task::registry::{Registry, Task};
use crate::task::slots;

/// How many tasks are planned in the first transaction of many: few, so that their runs start before the rest has its
/// rows.
const FIRST_BATCH: usize = 64;
/// How many tasks are planned in one transaction after that: each transaction lets others in between.
const BATCH: usize = 256;
/// What is overdue although it was just planned is not planned again at once.
const BREATH: Duration = Duration::from_millis(5);
/// While nothing is due the time is noted so often: a start behind it by more than an hour has a wrong clock.
const NOTE_CLOCK: SignedDuration = SignedDuration::from_mins(10);
/// How long to wait after the store refused: it says nothing by itself to those who only plan.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is said that the store refuses.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Plans the slots of all tasks.
#[derive(Debug)]
pub struct Planner {
    /// The tasks.
    pub registry: Registry,
    /// Where their runs go.
    pub runs: Runs,
    /// Where rows and events go.
    pub publisher: Publisher,
    /// Rung once a minute, and when a task was added or changed.
    pub bell: Arc<Notify>,
    /// How long it sleeps at most.
    pub look_again: Duration,
    /// Whether the clock is believed.
    pub trust: Arc<Trust>,
}

/// Whether the clock is believed: between the planner, those who ask and those who say so.
#[derive(Debug, Default)]
pub struct Trust {
    /// Until when schedules are held, because the clock is wrong; told on change.
    held: watch::Sender<Option<Timestamp>>,
    /// Whether it jumped forward and is not yet believed.
    jumped: AtomicBool,
    /// What the clock showed at the last look that is through, in microseconds.
    looked_at: AtomicI64,
}

impl Trust {
    /// Until when schedules are held, as it changes.
    pub fn held(&self) -> watch::Receiver<Option<Timestamp>> {
        self.held.subscribe()
    }

    /// Whether the clock jumped forward and is not yet believed.
    pub fn has_jumped(&self) -> bool {
        self.jumped.load(Ordering::Acquire)
    }

    /// What the clock showed when the planner last looked for slots, and was through.
    pub fn looked_at(&self) -> Timestamp {
        Timestamp::from_microsecond(self.looked_at.load(Ordering::Acquire)).unwrap_or_default()
    }

    fn note_look(&self, now: Timestamp) {
        self.looked_at.store(now.as_microsecond(), Ordering::Release);
    }
}

/// What goes wrong again and again: it is said at once, and then now and then. The log may be on the disk that is full.
#[derive(Debug, Default)]
struct Trouble {
    said: Option<Instant>,
}

impl Trouble {
    fn is_to_be_said(&mut self, now: Instant) -> bool {
        let is_due = self.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN);
        if is_due {
            self.said = Some(now);
        }
        is_due
    }
}

/// What a look has claimed of one task.
struct Claimed {
    task: Arc<Task>,
    planned: Planned,
    queued: Vec<RunId>,
    /// The run for which those before it are stopped.
    replaces: Option<RunId>,
}

impl Planner {
    /// Plans until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut trouble = Trouble::default();
        loop {
            let look = self.registry.look();
            let (now, believed) = (look.now, look.is_believed());
            self.trust.jumped.store(!believed, Ordering::Release);
            let pause = if believed {
                match self.plan_due(now).await {
                    Ok(until) => {
                        trouble = Trouble::default();
                        self.note_hold(until);
                        self.trust.note_look(now);
                        if until.is_some() { self.look_again } else { self.until_next() }
                    }
                    Err(error) => {
                        if trouble.is_to_be_said(Instant::now()) {
                            warn!(%error, "slots could not be written down; tried again every second");
                        }
                        RETRY
                    }
                }
            } else {
                // A clock that jumped is believed once it held for a minute.
                self.trust.note_look(now);
                Duration::from_secs(1)
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.bell.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn note_hold(&self, until: Option<Timestamp>) {
        let mut before = None;
        self.trust.held.send_if_modified(|held| {
            before = std::mem::replace(held, until);
            before != until
        });
        self.publisher.metrics().hold_schedules(until.is_some());
        match until {
            Some(until) if before.is_none() => {
                error!(
                    %until,
                    "the clock is more than an hour behind what is stored: schedules are held until it has caught up, \
                     or until `rejoin doctor --accept-clock` says that it is right"
                );
            }
            None if before.is_some() => warn!("the clock is taken for right again: schedules go on"),
            _ => {}
        }
    }

    fn until_next(&self) -> Duration {
        let now = self.publisher.clock().now();
        self.registry.next_due().map_or(self.look_again, |next| {
            let left = Duration::try_from(next.duration_since(now)).unwrap_or(Duration::ZERO);
            left.clamp(BREATH, self.look_again)
        })
    }

    /// Plans every task whose next slot is due. Gives until when schedules are held, if they are.
    /// O(log tasks) to look, O(due) to write.
    async fn plan_due(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let last_stored = self.registry.last_stored();
        // Asked also while nothing is due: behind a clock that was set back nothing is, and people wonder why.
        if let Some(until) = plan::held_until(last_stored, now) {
            return Ok(Some(until));
        }
        let due = self.registry.due(now);
        if due.is_empty() && now.duration_since(last_stored) >= NOTE_CLOCK {
            let act = move |connection: &Connection| -> Result<_, StoreError> {
                note_clock(connection, now)?;
                Ok(((), Vec::new()))
            };
            self.publisher.transact(act).await?;
            self.registry.note_seen(now);
        }
        let (first, rest) = due.split_at(due.len().min(FIRST_BATCH));
        let until = self.plan_batch(first, last_stored, now).await?;
        // Before the next batch has the writer: these are due, and the others wait for places anyway.
        self.runs.start_ready();
        if until.is_some() || rest.is_empty() {
            return Ok(until);
        }
        // From here on every slot has its row before another run takes the writer's time.
        let _still = self.runs.keep_still();
        for batch in rest.chunks(BATCH) {
            if let Some(until) = self.plan_batch(batch, last_stored, now).await? {
                return Ok(Some(until));
            }
        }
        Ok(None)
    }

    /// Plans these tasks in one transaction. Gives until when schedules are held, if they are.
    async fn plan_batch(
        &self,
        batch: &[Arc<Task>],
        last_stored: Timestamp,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let with_topic = |task: &Arc<Task>| Some((Arc::clone(task), self.publisher.topic(&task.id)?));
        let batch: Vec<_> = batch.iter().filter_map(with_topic).collect();
        if batch.is_empty() {
            return Ok(None);
        }
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            let mut planned = Vec::new();
            let mut offers = Vec::new();
            for (task, topic) in batch {
                match plan_one(connection, &task, &topic, last_stored, now, &mut offers)? {
                    Some(Ok(done)) => planned.push(done),
                    Some(Err(until)) => return Ok(((planned, Some(until)), offers)),
                    None => {}
                }
            }
            Ok(((planned, None), offers))
        };
        let ((planned, until), _) = self.publisher.transact(act).await?;
        failpoint::hit("claimed-not-started");
        for Claimed { task, planned, queued, replaces } in planned {
            self.registry.note_planned(&task, planned);
            for run in queued {
                self.runs.note_queued(run, task.id.clone());
            }
            if let Some(run) = replaces {
                self.runs.replace(&task.id, run);
            }
        }
        Ok(until)
    }
}

/// Plans one task within the transaction. `Err` is until when schedules are held; `None` is a task that is gone, or
/// that was changed since it was read.
fn plan_one(
    connection: &Connection,
    task: &Arc<Task>,
    topic: &Arc<Topic>,
    last_stored: Timestamp,
    now: Timestamp,
    offers: &mut Vec<(Arc<Topic>, Offer)>,
) -> Result<Option<Result<Claimed, Timestamp>>, StoreError> {
    let (Some(timing), Some(Stored { planned: stored, claimed, off })) = (&task.timing, planned(connection, task.no)?)
    else {
        return Ok(None);
    };
    // An edit that came in between counts from its own moment: what was read before it plans nothing.
    if !stored.is_of(task) {
        return Ok(None);
    }
    let active = has_open_runs(connection, task.no)?;
    let state = ScheduleState {
        last_planned: stored.to,
        anchor: stored.anchor,
        resumed: stored.resumed,
        last_stored,
        off,
        active,
        queued: if active { count_queued(connection, task.no)? } else { 0 },
        claimed: &claimed,
    };
    let Plan { rows, anchor, planned_to, next } = match plan::plan(timing, &task.definition.policy, &state, now) {
        Decision::Hold { until } => return Ok(Some(Err(until))),
        Decision::Plan(plan) => plan,
    };
    let generation = topic.tail().generation;
    let claimed: HashMap<Timestamp, RunId> =
        rows.iter().filter(|row| run_of(row).is_some()).map(|row| (row.scheduled_for, RunId::new())).collect();
    let (mut queued, mut replaces) = (Vec::new(), None);
    for row in &rows {
        // What became part of a run names it too.
        let slot = if let Outcome::Coalesced { into } = row.outcome { into } else { row.scheduled_for };
        let run = claimed.get(&slot).copied();
        let noted = slots::note(connection, task.no, generation, row, run)?;
        for body in slots::said(&noted, row, &task.id) {
            offers.push((topic.clone(), Offer::new(None, now, &body)));
        }
        if let (Some(trigger), Some(id)) = (run_of(row), run) {
            let slot = Some(row.scheduled_for);
            let queue = Queued {
                trigger,
                scheduled_for: slot,
                attempt: 1,
                retry_of: None,
                not_before: None,
                params: serde_json::Map::new(),
            };
            offers.push((topic.clone(), queue.offer(id, now)));
            queued.push(id);
            replaces = replaces.or(matches!(row.outcome, Outcome::Replace { .. }).then_some(id));
        }
    }
    let planned = Planned { anchor, to: planned_to, resumed: None, next };
    set_planned(connection, task.no, &planned)?;
    Ok(Some(Ok(Claimed { task: Arc::clone(task), planned, queued, replaces })))
}

/// What makes the run of a slot, if it gets one.
fn run_of(row: &Row) -> Option<&'static str> {
    match row.outcome {
        Outcome::Run { late } | Outcome::Queue { late } | Outcome::Replace { late } => {
            Some(if late { "catchup" } else { "schedule" })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_every_second_is_said_at_once_and_then_every_minute() {
        let (mut trouble, begin) = (Trouble::default(), Instant::now());
        let said: Vec<u64> =
            (0..=130).filter(|second| trouble.is_to_be_said(begin + Duration::from_secs(*second))).collect();
        assert_eq!(said, [0, 60, 120]);
    }
}
