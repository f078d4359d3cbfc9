//! One run, from its start to its terminal status: the agent at work, its events on their way to the log, the
//! clock of the policy, and whoever stops it.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{Instrument, info, info_span, warn};

use super::draft::Drafting;
use super::process::{Processes, Record, Spawned, Stage, StopStages, marks};
use super::pulse::Pulse;
use super::secrets::{self, Redactor};
use crate::agent::{self, Assignment, Emitter, Outcome};
use crate::event::{Attention, Body, RunId, Seq, State, Status, TaskId};
use crate::failpoint;
use crate::record::Run;
use crate::store::StoreError;
use crate::stream::publish::Publisher;
use crate::stream::topic::{Offer, Topic};
use crate::task::registry::Task;
use crate::task::registry::rows::off;
use crate::task::slots;

/// How long an agent may go on talking once all its commands are gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why a run gives way to the next one.
pub const REPLACED: &str = "replaced by the run of a newer slot";

/// Why a run is being stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopCause {
    /// Someone asked for it.
    Asked,
    /// It took longer than its policy allows.
    TimedOut(Duration),
    /// It said nothing for longer than its policy allows.
    Silent(Duration),
    /// A newer slot takes its place.
    Replaced,
    /// The server is going down.
    Shutdown,
}

/// What every run of this server has in common.
#[derive(Clone, Debug)]
pub struct Workshop {
    /// Where events go.
    pub publisher: Publisher,
    /// This program's own file, which is also the supervisor of commands.
    pub exe: PathBuf,
    /// Where the outputs of tool calls are kept.
    pub output_dir: PathBuf,
    /// Where commands of tasks that are no files run.
    pub work_dir: PathBuf,
    /// When the stages of a stop come.
    pub stages: StopStages,
    /// The port that HTTP steps never reach: the server's own.
    pub own_port: Option<u16>,
}

impl Workshop {
    /// Carries out a run that is queued, and returns once its terminal status is saved. `stop` may be raised at
    /// any time; it acts at once, also while the store cannot be written.
    pub async fn carry_out(
        &self,
        task: Arc<Task>,
        topic: Arc<Topic>,
        run: Run,
        stop: watch::Receiver<Option<StopCause>>,
    ) {
        let span = info_span!("run", task = %task.id, run = %run.id);
        let ended = self.work(task, &topic, &run, stop).instrument(span.clone()).await;
        failpoint::hit("terminal-not-committed");
        let (status, saved) = match ended {
            Ended::Worked(status) => {
                let saved = self.publisher.publish(&topic, Some(run.id), &Body::Status(status.clone())).await;
                (status, saved.map(drop).map_err(anyhow::Error::from))
            }
            Ended::Unstarted(status) => {
                let saved = self.save_unstarted(&topic, run.id, &status).await;
                (status, saved.map_err(anyhow::Error::from))
            }
            Ended::Before => return span.in_scope(|| info!("the run was over before it started")),
        };
        let (state, duration_ms) = (status.state, status.duration_ms);
        span.in_scope(|| match saved {
            Ok(()) => info!(state = state.as_str(), duration_ms, "run ended"),
            Err(error) => warn!(state = state.as_str(), duration_ms, %error, "run ended; its end could not be saved"),
        });
    }

    /// Everything up to the terminal status, which it gives.
    async fn work(
        &self,
        task: Arc<Task>,
        topic: &Arc<Topic>,
        run: &Run,
        mut stop: watch::Receiver<Option<StopCause>>,
    ) -> Ended {
        failpoint::hit("claimed-not-started");
        let started = tokio::select! {
            biased;
            cause = raised(&mut stop) => return Ended::Unstarted(stopped(&task.id, cause, Vec::new())),
            started = self.say_started(topic, &task, run) => started,
        };
        match started {
            Ok(true) => Ended::Worked(self.work_on(task, topic, run, stop).await),
            Ok(false) => Ended::Before,
            Err(error) => Ended::Unstarted(failed(&task.id, format!("its start could not be saved: {error:#}"), None)),
        }
    }

    /// From the saved start to the terminal status.
    async fn work_on(
        &self,
        task: Arc<Task>,
        topic: &Arc<Topic>,
        run: &Run,
        mut stop: watch::Receiver<Option<StopCause>>,
    ) -> Status {
        // What it waited for the store does not count.
        let begin = Instant::now();
        let (values, redactor) = match take_secrets(&task) {
            Ok(taken) => taken,
            Err(reason) => return failed(&task.id, reason, None).lasting(begin),
        };
        let (emitter, bodies) = Emitter::channel();
        let drafting = Drafting::new(self.publisher.clone(), topic.clone(), run.id, emitter.deltas(), redactor.clone());
        let pulse = Pulse::default();
        let pump = Pump {
            publisher: self.publisher.clone(),
            topic: topic.clone(),
            run: run.id,
            redactor: redactor.clone(),
            pulse: pulse.clone(),
        };
        let pump = tokio::spawn(pump.carry(bodies, drafting));
        let processes = self.processes(run);
        let assignment = self.assignment(&task, run, values, redactor, processes.clone());
        let (limit, idle) = (task.definition.policy.timeout, task.definition.policy.idle_timeout);

        // A panic of an agent is a failed run, not a run for ever.
        let work = std::panic::AssertUnwindSafe(agent::carry_out(assignment, emitter.clone())).catch_unwind();
        let mut work = Box::pin(work);
        let cause = tokio::select! {
            biased;
            cause = raised(&mut stop) => Err(cause),
            done = &mut work => Ok(done),
            () = tokio::time::sleep_until(begin + limit) => Err(StopCause::TimedOut(limit)),
            () = pulse.silent(idle) => Err(StopCause::Silent(idle.unwrap_or_default())),
        };
        let mut status = match cause {
            Ok(Ok(outcome)) => ended(&task.id, outcome),
            Ok(Err(_)) => failed(&task.id, "the agent broke down; see the server's log".to_owned(), None),
            Err(cause) => {
                let left = self.stop(&processes, &emitter, work.as_mut()).await;
                stopped(&task.id, cause, left)
            }
        };
        // Both speak: as long as one is there, the pump waits for what else may come.
        drop(work);
        drop(emitter);
        let open = pump.await.unwrap_or_default();
        self.close_calls(topic, run.id, open, &status.text).await;
        status.duration_ms = Some(millis(begin.elapsed()));
        status
    }

    /// Says it in the log where a run starts and nobody watches.
    pub(super) fn note_unwatched(&self, task: &TaskId) {
        if !self.publisher.connections().has_watchers(task) {
            info!("No WebSocket connection for user=any, task will run without real-time updates");
        }
    }

    /// Says that the run starts. False when it is over already, or called off in this moment.
    async fn say_started(&self, topic: &Arc<Topic>, task: &Task, run: &Run) -> anyhow::Result<bool> {
        self.note_unwatched(&task.id);
        info!(attempt = run.attempt, trigger = run.trigger, "run starts");
        let mut started = Status::new(State::Started, format!("Task {}: Starting execution...", task.id));
        started.other.insert("definition".to_owned(), task.definition.hash().into());
        // Saved before the work begins, with the outcome of its slot: after a crash nobody starts it a second time.
        if !self.save_start(topic, task, run, started).await? {
            return Ok(false);
        }
        let head: String = task.definition.title.chars().take(80).collect();
        let progress = Status::new(State::Progress, format!("Executing task: {head}..."));
        self.publisher.offer(topic, Some(run.id), &Body::Status(progress)).await?;
        Ok(true)
    }

    /// Saves the start. Waits while the store cannot be written: a start that is not saved is none. Whether the
    /// task is on is asked in the same transaction; of one that is not, a run that no person started is called off.
    async fn save_start(
        &self,
        topic: &Arc<Topic>,
        task: &Task,
        run: &Run,
        started: Status,
    ) -> Result<bool, StoreError> {
        let body = Body::Status(started);
        let (on, numbers) = self
            .save(|| {
                let now = self.publisher.clock().now();
                let start =
                    run.scheduled_for.map(|slot| slots::Start::of(task.timing.as_deref(), task.anchor, run, slot, now));
                let start_offer = Offer::new(Some(run.id), now, &body);
                let (id, no, topic, by_itself) = (run.id, task.no, topic.clone(), run.is_by_itself());
                let task = task.id.clone();
                move |connection: &Connection| -> Result<_, StoreError> {
                    if by_itself && let Some(off) = off(connection, no)? {
                        slots::note_end_unstarted(connection, id, "disabled", off.then())?;
                        let off = Body::Status(reasoned(State::Cancelled, &task, off.then()));
                        return Ok((false, vec![(topic, Offer::new(Some(id), now, &off))]));
                    }
                    if let Some(start) = start {
                        slots::note_start(connection, id, &start)?;
                    }
                    Ok((true, vec![(topic, start_offer)]))
                }
            })
            .await?;
        // Without a number the start was refused: someone ended the run while it waited.
        Ok(on && !numbers.is_empty())
    }

    /// Saves the end of a run that never started, with the outcome of its slot.
    async fn save_unstarted(&self, topic: &Arc<Topic>, id: RunId, status: &Status) -> Result<(), StoreError> {
        let body = Body::Status(status.clone());
        self.save(|| {
            let offer = Offer::new(Some(id), self.publisher.clock().now(), &body);
            let (topic, reason) = (topic.clone(), status.reason.clone().unwrap_or_default());
            move |connection: &Connection| -> Result<_, StoreError> {
                slots::note_end_unstarted(connection, id, "skipped", &reason)?;
                Ok(((), vec![(topic, offer)]))
            }
        })
        .await?;
        Ok(())
    }

    async fn save<T, F>(&self, act: impl FnMut() -> F) -> Result<(T, Vec<Seq>), StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<(T, Vec<(Arc<Topic>, Offer)>), StoreError> + Send + 'static,
    {
        self.publisher.save(act).await
    }

    fn processes(&self, run: &Run) -> Processes {
        let publisher = self.publisher.clone();
        let id = run.id;
        let record: Record = Arc::new(move |spawned| record_process(publisher.clone(), id, spawned));
        let marks = marks(&run.task, run.id, run.scheduled_for, run.attempt);
        Processes::with_stages(run.id, marks, self.exe.clone(), record, self.stages)
    }

    fn assignment(
        &self,
        task: &Task,
        run: &Run,
        secrets: std::collections::BTreeMap<String, String>,
        redactor: Redactor,
        processes: Processes,
    ) -> Assignment {
        let defaults =
            task.definition.params.iter().filter_map(|(name, param)| Some((name.clone(), param.default.clone()?)));
        let given = run.params.iter().map(|(name, value)| (name.clone(), value.clone()));
        let beside_file = task.path.as_ref().and_then(|path| path.parent());
        Assignment {
            task: task.id.clone(),
            run: run.id,
            definition: task.definition.clone(),
            params: defaults.chain(given).collect(),
            scheduled_for: run.scheduled_for,
            attempt: run.attempt,
            secrets,
            redactor,
            output_dir: self.output_dir.join(run.id.to_string()),
            work_dir: beside_file.unwrap_or(&self.work_dir).to_owned(),
            processes,
            own_port: self.own_port,
        }
    }

    /// Ends everything the run has started, in stages that are shown as progress. Gives what could not be ended.
    async fn stop(
        &self,
        processes: &Processes,
        emitter: &Emitter,
        mut work: Pin<&mut impl Future<Output = std::thread::Result<Outcome>>>,
    ) -> Vec<String> {
        let (stages, mut reached) = mpsc::channel(4);
        let say = async {
            while let Some(stage) = reached.recv().await {
                let _ = emitter.emit(Body::Status(stage_status(stage))).await;
            }
        };
        let ending = async {
            let left = processes.stop(stages).await;
            left.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        // The agent is polled on: it notices the end of its commands and says their results.
        let settle = async {
            tokio::pin!(ending);
            let (left, done) = tokio::select! {
                left = &mut ending => (left, false),
                _ = &mut work => (ending.await, true),
            };
            if !done {
                let _ = tokio::time::timeout(LAST_WORDS, work).await;
            }
            left
        };
        tokio::join!(settle, say).0
    }

    /// Closes every call that has no result: a reader never waits for one that cannot come.
    async fn close_calls(&self, topic: &Arc<Topic>, run: RunId, open: Vec<(String, String)>, why: &str) {
        for (call, tool) in open {
            let body = Body::ToolResult {
                call,
                tool,
                ok: false,
                output: why.to_owned(),
                cut_bytes: 0,
                exit: None,
                duration_ms: 0,
            };
            let _ = self.publisher.offer(topic, Some(run), &body).await;
        }
    }
}

/// Carries events from an agent to the log.
struct Pump {
    publisher: Publisher,
    topic: Arc<Topic>,
    run: RunId,
    redactor: Redactor,
    pulse: Pulse,
}

impl Pump {
    /// Carries all of them, redacted, in order, and shows what the agent writes meanwhile. Gives the calls left open,
    /// with their tools.
    async fn carry(self, mut bodies: mpsc::Receiver<Body>, mut drafting: Drafting) -> Vec<(String, String)> {
        let mut open = Vec::new();
        loop {
            let body = tokio::select! {
                body = bodies.recv() => body,
                () = drafting.due() => {
                    drafting.show();
                    continue;
                }
            };
            let Some(body) = body else { break };
            self.pulse.hold();
            drafting.note(&body);
            match &body {
                Body::ToolUse { call, tool, .. } => open.push((call.clone(), tool.clone())),
                Body::ToolResult { call, .. } => open.retain(|(id, _)| id != call),
                _ => {}
            }
            let body = redacted(body, &self.redactor);
            if self.publisher.offer(&self.topic, Some(self.run), &body).await.is_err() {
                break;
            }
            self.pulse.beat();
        }
        open
    }
}

fn redacted(body: Body, redactor: &Redactor) -> Body {
    let clean = |text: String| redactor.text(&text).into_owned();
    match body {
        Body::Thought { text } => Body::Thought { text: clean(text) },
        Body::Message { role, text } => Body::Message { role, text: clean(text) },
        Body::ToolUse { call, tool, mut input } => {
            redactor.json(&mut input);
            Body::ToolUse { call, tool, input }
        }
        Body::ToolOutput { call, stream, text, cut_bytes } => {
            Body::ToolOutput { call, stream, text: clean(text), cut_bytes }
        }
        Body::ToolResult { call, tool, ok, output, cut_bytes, exit, duration_ms } => {
            Body::ToolResult { call, tool, ok, output: clean(output), cut_bytes, exit, duration_ms }
        }
        Body::Status(mut status) => {
            status.text = clean(status.text);
            status.reason = status.reason.map(&clean);
            status.attention = status.attention.map(|found| Attention { summary: clean(found.summary) });
            Body::Status(status)
        }
        Body::Written { key, body } => Body::Written { key: clean(key), body: Box::new(redacted(*body, redactor)) },
        other @ Body::Other { .. } => other,
    }
}

/// How a run ended.
enum Ended {
    /// With this status, after its start.
    Worked(Status),
    /// With this status, before its start.
    Unstarted(Status),
    /// By someone else, who has said so.
    Before,
}

fn record_process(publisher: Publisher, run: RunId, spawned: Spawned) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(async move {
        failpoint::hit("spawned-not-recorded");
        let act = || {
            let Spawned { call, pid, start_ticks } = spawned.clone();
            move |connection: &Connection| -> Result<_, StoreError> {
                connection
                    .prepare_cached("INSERT INTO processes (run, call, pid, start_ticks) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![run.to_string(), call, pid, start_ticks.cast_signed()])?;
                Ok(((), Vec::new()))
            }
        };
        // A full disk holds a run up; it does not make it fail.
        publisher.save(act).await?;
        Ok(())
    })
}

fn take_secrets(task: &Task) -> Result<(std::collections::BTreeMap<String, String>, Redactor), String> {
    let values = secrets::resolve(&task.definition.secrets).map_err(|error| format!("{error:#}"))?;
    let redactor = Redactor::new(values.values().map(String::as_str)).map_err(|error| format!("{error:#}"))?;
    Ok((values, redactor))
}

/// Ready when a stop is asked for. Never, once nobody can ask any more.
async fn raised(stop: &mut watch::Receiver<Option<StopCause>>) -> StopCause {
    match stop.wait_for(Option::is_some).await.map(|cause| *cause) {
        Ok(Some(cause)) => cause,
        _ => std::future::pending().await,
    }
}

/// The end of a run that somebody or something ended, and why.
pub(super) fn reasoned(state: State, task: &TaskId, reason: &str) -> Status {
    let word = if state == State::Cancelled { "cancelled" } else { "interrupted" };
    let mut status = Status::new(state, format!("Task {task} {word}: {reason}"));
    status.reason = Some(reason.to_owned());
    status
}

fn stage_status(stage: Stage) -> Status {
    let name = stage.as_str();
    let mut status = Status::new(State::Progress, format!("Stopping: {name} sent"));
    status.stage = Some(name.to_owned());
    status
}

fn ended(task: &TaskId, outcome: Outcome) -> Status {
    match outcome {
        Outcome::Succeeded { exit, attention } => {
            let mut status = Status::new(State::Succeeded, format!("Task {task} completed successfully"));
            (status.exit, status.attention) = (exit, attention);
            status
        }
        Outcome::Failed { reason, exit, attention } => {
            let mut status = failed(task, reason, exit);
            status.attention = attention;
            status
        }
    }
}

fn failed(task: &TaskId, reason: String, exit: Option<i32>) -> Status {
    let mut status = Status::new(State::Failed, format!("Task {task} failed: {reason}"));
    (status.reason, status.exit) = (Some(reason), exit);
    status
}

pub(super) fn stopped(task: &TaskId, cause: StopCause, left: Vec<String>) -> Status {
    let (state, mut reason) = match cause {
        StopCause::Asked => (State::Cancelled, "stopped on request".to_owned()),
        StopCause::Replaced => (State::Cancelled, REPLACED.to_owned()),
        StopCause::TimedOut(limit) => {
            (State::TimedOut, format!("took longer than {}", crate::config::units::duration_words(limit)))
        }
        StopCause::Silent(limit) => {
            (State::TimedOut, format!("said nothing for {}", crate::config::units::duration_words(limit)))
        }
        StopCause::Shutdown => (State::Interrupted, "the server was stopped".to_owned()),
    };
    if !left.is_empty() {
        reason = format!("{reason}; still there: {}", left.join(", "));
    }
    let word = match state {
        State::Cancelled => "cancelled",
        State::TimedOut => "timed out",
        _ => "interrupted",
    };
    let mut status = Status::new(state, format!("Task {task} {word}: {reason}"));
    status.reason = Some(reason);
    status
}

impl Status {
    /// The status with the time from `begin` until now.
    fn lasting(mut self, begin: Instant) -> Self {
        self.duration_ms = Some(millis(begin.elapsed()));
        self
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
