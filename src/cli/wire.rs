//! What the server answers, as far as the commands read it. Members that are unknown here are no error, so that
//! an older client goes on with a newer server; `--json` shows the answer as it came, not these.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Absent and null mean the same.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A task.
#[derive(Clone, Debug, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// What people call it.
    #[serde(default, deserialize_with = "or_default")]
    pub title: String,
    /// What it is for.
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// What carries it out.
    #[serde(default, deserialize_with = "or_default")]
    pub agent: String,
    /// `idle`, `queued`, `running`, `waiting`, `paused`, `error`.
    #[serde(default, deserialize_with = "or_default")]
    pub state: String,
    /// `file` or `store`.
    #[serde(default, deserialize_with = "or_default")]
    pub source: String,
    /// What is wrong with its file.
    pub error: Option<FileError>,
    /// When it runs by itself, in words.
    pub schedule_words: Option<String>,
    /// How it runs.
    #[serde(default, deserialize_with = "or_default")]
    pub policy: Map<String, Value>,
    /// The parameters it takes.
    #[serde(default, deserialize_with = "or_default")]
    pub params: Map<String, Value>,
    /// Its next slot.
    pub next_at: Option<Timestamp>,
    /// When that one starts, where it is later.
    pub next_planned_for: Option<Timestamp>,
    /// Its last run.
    pub last_run: Option<Run>,
    /// What its last run found.
    pub attention: Option<Attention>,
    /// The id of its log.
    #[serde(rename = "gen")]
    pub generation: Option<String>,
    /// The last event of its log.
    #[serde(default, deserialize_with = "or_default")]
    pub head: u64,
}

/// What is wrong with a task file, and where.
#[derive(Clone, Debug, Deserialize)]
pub struct FileError {
    /// The file.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<u64>,
    /// In characters, from 1.
    pub column: Option<u64>,
    /// What it is about, like `steps[1].timeout`; empty where it is about the whole.
    #[serde(default, deserialize_with = "or_default")]
    pub key: String,
    /// What is wrong.
    #[serde(default, deserialize_with = "or_default")]
    pub message: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(file), Some(line), Some(column)) = (&self.file, self.line, self.column) {
            write!(f, "{file}:{line}:{column}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// What a person should look at.
#[derive(Clone, Debug, Deserialize)]
pub struct Attention {
    /// The finding in one line.
    #[serde(default, deserialize_with = "or_default")]
    pub summary: String,
}

/// A finding, and what a person answered to it.
#[derive(Clone, Debug, Deserialize)]
pub struct Finding {
    /// The run that found it.
    pub run: String,
    /// Its task.
    #[serde(default, deserialize_with = "or_default")]
    pub task: String,
    /// The finding in one line.
    #[serde(default, deserialize_with = "or_default")]
    pub summary: String,
    /// When it was found.
    pub at: Option<Timestamp>,
    /// `open`, `snoozed` or `acknowledged`.
    #[serde(default, deserialize_with = "or_default")]
    pub state: String,
    /// Until when it is snoozed.
    pub snoozed_until: Option<Timestamp>,
}

/// A run.
#[derive(Clone, Debug, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// Its task.
    pub task: String,
    /// Where it is: `queued`, `running`, ..., `succeeded`.
    #[serde(default, deserialize_with = "or_default")]
    pub state: String,
    /// Which attempt of its slot, from 1.
    pub attempt: Option<u64>,
    /// The run that it does once more.
    pub retry_of: Option<String>,
    /// The run that does it once more.
    pub retried_by: Option<String>,
    /// Of a retry: it starts no sooner.
    pub not_before: Option<Timestamp>,
    /// What made it.
    pub trigger: Option<String>,
    /// Its slot.
    pub scheduled_for: Option<Timestamp>,
    /// When it was made.
    pub queued_at: Option<Timestamp>,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// From its begin to its end.
    pub duration_ms: Option<u64>,
    /// Its first event.
    pub first_seq: Option<u64>,
    /// Its last event so far.
    pub last_seq: Option<u64>,
    /// Why it ended as it did.
    pub reason: Option<String>,
    /// Its last status in words.
    pub text: Option<String>,
    /// What it found.
    pub attention: Option<Attention>,
    /// What it waits for.
    pub waits: Option<Waits>,
}

impl Run {
    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed" | "cancelled" | "timed_out" | "interrupted")
    }
}

/// What a run waits for.
#[derive(Clone, Debug, Deserialize)]
pub struct Waits {
    /// `run`, `pool`, `place`, `retry` or `claim`.
    #[serde(rename = "for", default, deserialize_with = "or_default")]
    pub what: String,
    /// The pool.
    pub pool: Option<String>,
    /// Which it is of those that wait for the same.
    pub position: Option<u64>,
    /// When its time comes.
    pub until: Option<Timestamp>,
}

/// The answer to a task or a run that was made.
#[derive(Clone, Debug, Deserialize)]
pub struct Made {
    /// The task, where one was made.
    pub task: Option<Task>,
    /// The run, unless it only has a schedule.
    pub run: Option<Run>,
    /// The page's address.
    pub url: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug, Deserialize)]
pub struct List {
    /// What is on it.
    #[serde(default, deserialize_with = "or_default")]
    pub items: Vec<Value>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// A time at which a task would run.
#[derive(Clone, Debug, Deserialize)]
pub struct Slot {
    /// The time with its offset.
    #[serde(default, deserialize_with = "or_default")]
    pub at: String,
    /// When it starts, where that is later.
    pub planned_for: Option<String>,
    /// What is special about it.
    pub note: Option<String>,
}

/// What became of a time at which a task should have run.
#[derive(Clone, Debug, Deserialize)]
pub struct PastSlot {
    /// The time.
    pub scheduled_for: Option<Timestamp>,
    /// When it was to start, where that was later.
    pub planned_for: Option<Timestamp>,
    /// What became of it.
    #[serde(default, deserialize_with = "or_default")]
    pub outcome: String,
    /// The run that was made of it.
    pub run: Option<String>,
    /// How late it was.
    pub late_ms: Option<i64>,
    /// Why.
    pub reason: Option<String>,
    /// How many equal ones this stands for.
    pub count: Option<u64>,
}

/// A page of a log.
#[derive(Clone, Debug, Deserialize)]
pub struct EventPage {
    /// The log.
    #[serde(rename = "gen")]
    pub generation: String,
    /// The first event that is still there.
    #[serde(default)]
    pub oldest: u64,
    /// The last event.
    #[serde(default)]
    pub head: u64,
    /// Ascending.
    #[serde(default)]
    pub items: Vec<Box<RawValue>>,
    /// What to pass to get the next page.
    #[serde(default)]
    pub next: u64,
    /// Whether there is one.
    #[serde(default)]
    pub more: bool,
}

/// A one-time code to sign in.
#[derive(Clone, Debug, Deserialize)]
pub struct SignIn {
    /// The link that carries it.
    pub url: String,
    /// How long it is good for.
    pub expires_in_s: Option<u64>,
}

/// What the server says about itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Its version.
    #[serde(default, deserialize_with = "or_default")]
    pub version: String,
    /// How long it has been up.
    #[serde(default, deserialize_with = "or_default")]
    pub uptime_s: u64,
    /// How many watch.
    #[serde(default, deserialize_with = "or_default")]
    pub connections: u64,
    /// How many runs there are.
    #[serde(default, deserialize_with = "or_default")]
    pub running: u64,
    /// How many runs wait.
    #[serde(default, deserialize_with = "or_default")]
    pub queued: u64,
    /// The server's places, then the pools.
    #[serde(default, deserialize_with = "or_default")]
    pub pools: Vec<Pool>,
    /// What runs next by itself.
    pub next: Option<NextSlot>,
    /// What it has to say.
    #[serde(default, deserialize_with = "or_default")]
    pub notices: Vec<Notice>,
}

/// Places that runs take.
#[derive(Clone, Debug, Deserialize)]
pub struct Pool {
    /// Its name; `all` for the server's.
    #[serde(default, deserialize_with = "or_default")]
    pub name: String,
    /// How many there are.
    #[serde(default, deserialize_with = "or_default")]
    pub size: u64,
    /// How many are taken.
    #[serde(default, deserialize_with = "or_default")]
    pub running: u64,
    /// How many runs wait of those that need one.
    #[serde(default, deserialize_with = "or_default")]
    pub queued: u64,
}

/// What runs next by itself.
#[derive(Clone, Debug, Deserialize)]
pub struct NextSlot {
    /// The task.
    pub task: String,
    /// When.
    pub at: Option<Timestamp>,
}

/// What it did that a clock was said to be right.
#[derive(Clone, Debug, Deserialize)]
pub struct ClockAccepted {
    /// What it shows.
    pub now: Timestamp,
    /// The newest time that was stored before.
    pub newest: Timestamp,
    /// How many tasks were planned beyond it.
    #[serde(default, deserialize_with = "or_default")]
    pub tasks: u64,
}

/// Something that whoever watches should know.
#[derive(Clone, Debug, Deserialize)]
pub struct Notice {
    /// What kind of thing.
    #[serde(default, deserialize_with = "or_default")]
    pub code: String,
    /// In words.
    #[serde(default, deserialize_with = "or_default")]
    pub text: String,
}

/// Why the server refuses (RFC 9457).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Problem {
    /// In a word or two.
    pub title: Option<String>,
    /// In a sentence.
    pub detail: Option<String>,
    /// For programs.
    pub code: Option<String>,
    /// Which member is wrong.
    pub field: Option<String>,
    /// The first event that is still there, where a cursor was wrong.
    pub oldest: Option<u64>,
}

/// An event, read as far as it is shown; `raw` is what was received.
#[derive(Clone, Debug)]
pub struct Event {
    /// The run, unless the event is about the task.
    pub run: Option<String>,
    /// Its number.
    pub seq: u64,
    /// When.
    pub at: Option<Timestamp>,
    /// What kind.
    pub kind: String,
    /// What happened.
    pub data: Value,
    /// As it came.
    pub raw: Box<RawValue>,
}

impl Event {
    /// Reads an event; none where it has no number.
    pub fn read(raw: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Parts {
            run: Option<String>,
            seq: u64,
            at: Option<Timestamp>,
            #[serde(default)]
            kind: String,
            #[serde(default)]
            data: Value,
        }
        let Parts { run, seq, at, kind, data } = serde_json::from_str(raw.get()).ok()?;
        Some(Self { run, seq, at, kind, data, raw: raw.to_owned() })
    }

    /// The state, if this is a `status`.
    pub fn state(&self) -> Option<crate::event::State> {
        if self.kind != "status" {
            return None;
        }
        serde_json::from_value(self.data.get("state")?.clone()).ok()
    }

    /// A text member of the data; empty where there is none.
    pub fn text(&self, member: &str) -> &str {
        self.data.get(member).and_then(Value::as_str).unwrap_or_default()
    }
}
