//! What a run is: exactly what folding its events gives. Knows events only.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{Attention, Body, RunId, Seq, State, Status, TaskId};

pub use crate::event::wire_time;

/// The state of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for its turn.
    Queued,
    /// At work.
    Running,
    /// Waits for an approval.
    Waiting,
    /// Ended well.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Was stopped.
    Cancelled,
    /// Took too long.
    TimedOut,
    /// The server went away under it.
    Interrupted,
}

impl RunState {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether the run is over.
    pub const fn is_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running | Self::Waiting)
    }
}

/// How far the stop of a run has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stopping {
    /// The last signal: `SIGINT`, `SIGTERM`, `SIGKILL`.
    pub stage: String,
    /// When it was sent.
    #[serde(with = "wire_time")]
    pub since: Timestamp,
}

/// A run as clients see it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its task.
    pub task: TaskId,
    /// Where it is.
    pub state: RunState,
    /// Which attempt of its slot, from 1.
    pub attempt: u32,
    /// The run that it does once more, if it is a retry.
    pub retry_of: Option<RunId>,
    /// What made it: `hand`, `schedule` or `catchup`.
    pub trigger: String,
    /// The slot it is for, unless a person started it.
    #[serde(with = "wire_time::option")]
    pub scheduled_for: Option<Timestamp>,
    /// Set where it was made because the attempt before it failed: it starts no sooner.
    #[serde(default, with = "wire_time::option")]
    pub not_before: Option<Timestamp>,
    /// When it was put into the queue.
    #[serde(with = "wire_time")]
    pub queued_at: Timestamp,
    /// When its agent began.
    #[serde(with = "wire_time::option")]
    pub started_at: Option<Timestamp>,
    /// When it was over.
    #[serde(with = "wire_time::option")]
    pub ended_at: Option<Timestamp>,
    /// From its start to its end, in milliseconds.
    pub duration_ms: Option<u64>,
    /// Its first event.
    pub first_seq: Seq,
    /// Its last event so far.
    pub last_seq: Seq,
    /// Why it ended as it did.
    pub reason: Option<String>,
    /// The words of its last status.
    pub text: Option<String>,
    /// The exit code that goes with its end.
    pub exit: Option<i32>,
    /// What a person should look at.
    pub attention: Option<Attention>,
    /// What it was given.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Set while it is being stopped.
    pub stopping: Option<Stopping>,
    /// Of a run that is fed from elsewhere: the producer's own number of the last event that is saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_n: Option<u64>,
}

impl Run {
    /// The run that its `queued` event makes.
    fn queued(task: &TaskId, id: RunId, seq: Seq, at: Timestamp, status: &Status) -> Self {
        Self {
            id,
            task: task.clone(),
            state: RunState::Queued,
            attempt: status.attempt.unwrap_or(1),
            retry_of: status.retry_of,
            trigger: status.trigger.clone().unwrap_or_else(|| "hand".to_owned()),
            scheduled_for: status.scheduled_for,
            not_before: status.not_before,
            queued_at: at,
            started_at: None,
            ended_at: None,
            duration_ms: None,
            first_seq: seq,
            last_seq: seq,
            reason: status.reason.clone(),
            text: Some(status.text.clone()),
            exit: None,
            attention: None,
            params: status.params.clone().unwrap_or_default(),
            stopping: None,
            last_n: None,
        }
    }

    /// Whether the server made it, by a schedule or as a retry, and no person: a task that is paused starts no such run.
    pub fn is_by_itself(&self) -> bool {
        self.scheduled_for.is_some() || self.not_before.is_some()
    }

    /// The run as it was before it ended; one that has not ended is as it is.
    pub fn before_its_end(mut self) -> Self {
        if self.state.is_ended() {
            self.state = if self.started_at.is_some() { RunState::Running } else { RunState::Queued };
            (self.ended_at, self.duration_ms, self.reason) = (None, None, None);
            (self.exit, self.attention, self.text) = (None, None, None);
        }
        self
    }

    fn apply(&mut self, seq: Seq, at: Timestamp, mark: &Mark) {
        self.last_seq = seq;
        let Mark::Status(status) = mark else { return };
        self.state = match status.state {
            State::Queued => RunState::Queued,
            State::Started => RunState::Running,
            State::Waiting => RunState::Waiting,
            State::Succeeded => RunState::Succeeded,
            State::Failed => RunState::Failed,
            State::Cancelled => RunState::Cancelled,
            State::TimedOut => RunState::TimedOut,
            State::Interrupted => RunState::Interrupted,
            State::Progress if self.state == RunState::Waiting => RunState::Running,
            _ => self.state,
        };
        if !status.text.is_empty() {
            self.text = Some(status.text.clone());
        }
        if status.state == State::Started {
            self.started_at = Some(at);
            if status.other.get("agent").is_some_and(|agent| agent == "external") {
                self.last_n = self.last_n.or(Some(0));
            }
        }
        if let Some(stage) = &status.stage {
            self.stopping = Some(Stopping { stage: stage.clone(), since: at });
        }
        if status.state.is_terminal() {
            self.stopping = None;
            self.ended_at = Some(at);
            self.duration_ms = status.duration_ms;
            self.reason = status.reason.clone();
            self.exit = status.exit;
            self.attention = status.attention.clone();
        }
    }
}

/// What of an event matters to the state of its task: made once, when the event is offered.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A change of state.
    Status(Box<Status>),
    /// A `tool_use` opened this call.
    Opens(String),
    /// A `tool_result` closed this call.
    Closes(String),
    /// This is the whole of a text that was shown under this key while it was written.
    Writes(String),
    /// Nothing.
    Plain,
}

impl Mark {
    /// The mark of an event.
    pub fn of(body: &Body) -> Self {
        match body {
            Body::Status(status) => Self::Status(Box::new(status.clone())),
            Body::ToolUse { call, .. } => Self::Opens(call.clone()),
            Body::ToolResult { call, .. } => Self::Closes(call.clone()),
            Body::Written { key, .. } => Self::Writes(key.clone()),
            _ => Self::Plain,
        }
    }

    /// Whether events of a kind mean anything for the state of their task.
    pub fn is_made_by(kind: &str) -> bool {
        matches!(kind, "status" | "tool_use" | "tool_result")
    }

    /// The mark of an event as it stands in the log.
    pub fn of_stored(kind: &str, data: &str) -> Self {
        #[derive(Deserialize)]
        struct Call {
            call: String,
        }
        let call = || serde_json::from_str::<Call>(data).map(|data| data.call);
        match kind {
            "status" => serde_json::from_str(data).map_or(Self::Plain, |s| Self::Status(Box::new(s))),
            "tool_use" => call().map_or(Self::Plain, Self::Opens),
            "tool_result" => call().map_or(Self::Plain, Self::Closes),
            _ => Self::Plain,
        }
    }

    /// The state, if the event is a status.
    pub fn state(&self) -> Option<State> {
        match self {
            Self::Status(status) => Some(status.state),
            _ => None,
        }
    }
}

/// A `tool_use` without its `tool_result`.
#[derive(Clone, Debug)]
pub struct OpenCall {
    /// Where it stands.
    pub seq: Seq,
    /// Its run.
    pub run: RunId,
    /// Its id within the run.
    pub call: String,
    /// The whole event as JSON.
    pub event: Box<str>,
}

/// What applying the events of a task up to its head gives, less what is over: the runs not ended and the
/// calls not closed. O(open runs + open calls) in memory.
#[derive(Clone, Debug, Default)]
pub struct Fold {
    runs: BTreeMap<RunId, Run>,
    calls: Vec<OpenCall>,
}

impl Fold {
    /// A fold that starts from runs that were not ended at some point of the log.
    pub fn of_runs(runs: impl IntoIterator<Item = Run>) -> Self {
        Self { runs: runs.into_iter().map(|run| (run.id, run)).collect(), calls: Vec::new() }
    }

    /// The runs not ended, in the order of their making.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// One run, if it is not ended.
    pub fn run(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id)
    }

    /// Notes how far the producer of a run has come; `seq` is the last event with that.
    pub fn note_producer(&mut self, id: RunId, seq: Seq, last_n: Option<u64>) -> Option<&Run> {
        let run = self.runs.get_mut(&id)?;
        run.last_seq = run.last_seq.max(seq);
        run.last_n = run.last_n.max(last_n);
        Some(run)
    }

    /// The calls not closed, in the order of their events.
    pub fn calls(&self) -> &[OpenCall] {
        &self.calls
    }

    /// Applies one event. Gives the run as it is now if its state changed, also when that ended it.
    pub fn apply(
        &mut self,
        task: &TaskId,
        run: Option<RunId>,
        seq: Seq,
        at: Timestamp,
        mark: &Mark,
        event: &str,
    ) -> Option<Run> {
        let id = run?;
        match mark {
            Mark::Status(status) if status.state == State::Queued => {
                let run = Run::queued(task, id, seq, at, status);
                self.runs.insert(id, run.clone());
                return Some(run);
            }
            // The end of a run whose beginning retention took opens no call that nobody would close.
            _ if !self.runs.contains_key(&id) => return None,
            Mark::Opens(call) => {
                self.calls.push(OpenCall { seq, run: id, call: call.clone(), event: event.into() });
            }
            Mark::Closes(call) => self.calls.retain(|open| open.run != id || open.call != *call),
            _ => {}
        }
        let run = self.runs.get_mut(&id)?;
        run.apply(seq, at, mark);
        let state = mark.state()?;
        let run = run.clone();
        if state.is_terminal() {
            self.runs.remove(&id);
            self.calls.retain(|open| open.run != id);
        }
        Some(run)
    }
}
