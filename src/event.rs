//! What everything else speaks of: ids, cursors and the events of a task.
//!
//! This file knows nothing of tasks, storage, connections or HTTP.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

/// The largest serialised event, in bytes of UTF-8 (`docs/protocol.md`, "Event").
pub const MAX_EVENT_BYTES: usize = 64 * 1024;

/// The name of a task: `[a-z0-9][a-z0-9_-]{0,63}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

/// Why a text is no task id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a task id: use 1 to 64 of a-z, 0-9, '_' and '-', beginning with a letter or digit")]
pub struct BadTaskId(pub String);

impl TaskId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A task id made of a title: lower case, runs of anything else become one `-`.
    pub fn from_title(title: &str) -> Option<Self> {
        let mut slug = String::new();
        for c in title.chars().flat_map(char::to_lowercase) {
            if c.is_ascii_alphanumeric() {
                slug.push(c);
            } else if !slug.is_empty() && !slug.ends_with('-') {
                slug.push('-');
            }
            if slug.len() >= 60 {
                break;
            }
        }
        slug.trim_end_matches('-').parse().ok()
    }
}

impl FromStr for TaskId {
    type Err = BadTaskId;

    fn from_str(text: &str) -> Result<Self, BadTaskId> {
        let bytes = text.as_bytes();
        let inner = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        let first = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
        if bytes.len() <= 64 && bytes.first().is_some_and(first) && bytes.iter().all(inner) {
            Ok(Self(text.into()))
        } else {
            Err(BadTaskId(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One run of a task: a UUID of version 7, so that ids sort by the time they were made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub Uuid);

impl RunId {
    /// A new id, later than all before it on this machine.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// The id of a task's log: 16 hex digits. A log that was replaced has another one, so that an old cursor is
/// never taken for a position in the new log (T-09).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gen(pub u64);

impl Gen {
    /// A new, random id.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Gen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Gen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Gen {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 16 && text.bytes().all(hex) {
            u64::from_str_radix(text, 16).map(Self).map_err(|_| ())
        } else {
            Err(())
        }
    }
}

impl Serialize for Gen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Gen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom("a gen is 16 lower-case hex digits"))
    }
}

/// The number of an event within its task's log: from 1, without gaps. 0 means "seen nothing".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number before this one; 0 stays 0.
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in a task's log: the last event that was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// The log.
    pub generation: Gen,
    /// The last event seen in it.
    pub seq: Seq,
}

/// What state a run, or with no run the task, came into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The run waits for its turn.
    Queued,
    /// The run began.
    Started,
    /// The run says where it is.
    Progress,
    /// The run waits for an approval.
    Waiting,
    /// The run ended well.
    Succeeded,
    /// The run ended with an error.
    Failed,
    /// Someone stopped the run.
    Cancelled,
    /// The run took longer than its policy allows.
    TimedOut,
    /// The server went away under the run.
    Interrupted,
    /// Without a run: a slot was skipped.
    Skipped,
    /// Without a run: a slot was missed.
    Missed,
    /// Without a run: the task was paused.
    Paused,
    /// Without a run: the task was resumed.
    Resumed,
}

impl State {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Waiting => "waiting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
            Self::Skipped => "skipped",
            Self::Missed => "missed",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
        }
    }

    /// No event of a run follows one of these.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut | Self::Interrupted)
    }
}

/// What a run that worked has found: one line for a person.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attention {
    /// The finding in one line.
    pub summary: String,
}

/// The data of a `status` event. Members that are absent are not written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The state.
    pub state: State,
    /// The state in words, for people.
    #[serde(default, deserialize_with = "text_or_null")]
    pub text: String,
    /// Why, where there is a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which attempt of its slot this run is, from 1 (`queued`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The run that this one does once more (`queued`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
    /// What made the run: `hand`, `schedule`, `catchup` (`queued`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// The slot of the run, or of the skipped or missed time.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "wire_time::option")]
    pub scheduled_for: Option<Timestamp>,
    /// The run is a retry, and starts no sooner (`queued`).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "wire_time::option")]
    pub not_before: Option<Timestamp>,
    /// The parameters of the run (`queued`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<serde_json::Map<String, serde_json::Value>>,
    /// From `started` to the end (terminal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// The exit code of what failed, or of the last command (terminal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// What a person should look at (terminal).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<Attention>,
    /// How many equal slots this stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The stage of a stop: `SIGINT`, `SIGTERM`, `SIGKILL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// Absent and null mean the same.
fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Status {
    /// A status with its words and nothing else.
    pub fn new(state: State, text: impl Into<String>) -> Self {
        Self {
            state,
            text: text.into(),
            reason: None,
            attempt: None,
            retry_of: None,
            trigger: None,
            scheduled_for: None,
            not_before: None,
            params: None,
            duration_ms: None,
            exit: None,
            attention: None,
            count: None,
            stage: None,
            other: serde_json::Map::new(),
        }
    }
}

/// Which of its two streams a command wrote to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Who speaks in a `message`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A person.
    User,
    /// The agent.
    Agent,
    /// The program around it.
    System,
}

/// What happened: the `kind` and `data` of an event, before it has a number.
#[derive(Clone, Debug)]
pub enum Body {
    /// A change of state.
    Status(Status),
    /// What the agent thinks before it acts.
    Thought {
        /// The thought.
        text: String,
    },
    /// Something said by or to the agent.
    Message {
        /// Who says it.
        role: Role,
        /// What is said.
        text: String,
    },
    /// A tool is about to be used.
    ToolUse {
        /// Pairs the use with its output and result; unique within the run.
        call: String,
        /// The tool: `shell`, `http`, `write`, ...
        tool: String,
        /// What the tool is given.
        input: serde_json::Value,
    },
    /// A part of a tool's output while it works.
    ToolOutput {
        /// The `tool_use` it belongs to.
        call: String,
        /// Where it was written.
        stream: OutputStream,
        /// The text, middle cut where there was too much.
        text: String,
        /// How many bytes were cut out of `text`.
        cut_bytes: u64,
    },
    /// A tool is done.
    ToolResult {
        /// The `tool_use` it belongs to.
        call: String,
        /// The tool's name once more, so that the event reads alone (SPK-38).
        tool: String,
        /// Whether it worked.
        ok: bool,
        /// Head and tail of the output.
        output: String,
        /// How many bytes of the output are left out between head and tail.
        cut_bytes: u64,
        /// The exit code, where there is one.
        exit: Option<i32>,
        /// From use to result.
        duration_ms: u64,
    },
    /// A thought or message that was shown while it was being written.
    Written {
        /// The name it was shown under, unique within the run; it is `data.key` of the event.
        key: String,
        /// The thought or message.
        body: Box<Body>,
    },
    /// A kind that this version does not know: kept as it came.
    Other {
        /// Its name.
        kind: String,
        /// Its data.
        raw: Box<RawValue>,
    },
}

/// The kinds that this version knows.
const KINDS: [&str; 6] = ["status", "thought", "message", "tool_use", "tool_output", "tool_result"];

/// The name of a kind that this version knows, without an allocation.
pub fn known_kind(kind: &str) -> Option<&'static str> {
    KINDS.into_iter().find(|known| *known == kind)
}

impl Body {
    /// The `kind` member of the event.
    pub fn kind(&self) -> &str {
        match self {
            Self::Status(_) => "status",
            Self::Thought { .. } => "thought",
            Self::Message { .. } => "message",
            Self::ToolUse { .. } => "tool_use",
            Self::ToolOutput { .. } => "tool_output",
            Self::ToolResult { .. } => "tool_result",
            Self::Written { body, .. } => body.kind(),
            Self::Other { kind, .. } => kind,
        }
    }

    /// The state, if this is a `status`.
    pub fn state(&self) -> Option<State> {
        match self {
            Self::Status(status) => Some(status.state),
            Self::Written { body, .. } => body.state(),
            _ => None,
        }
    }

    /// The `data` member of the event as JSON text.
    ///
    /// # Errors
    /// Only where a map of `Other` or an input cannot be written as JSON, which its types exclude.
    pub fn data(&self) -> serde_json::Result<Box<RawValue>> {
        use serde_json::{json, value::to_raw_value};
        match self {
            Self::Status(status) => to_raw_value(status),
            Self::Thought { text } => to_raw_value(&json!({ "text": text })),
            Self::Message { role, text } => to_raw_value(&json!({ "role": role, "text": text })),
            Self::ToolUse { call, tool, input } => to_raw_value(&json!({ "call": call, "tool": tool, "input": input })),
            Self::ToolOutput { call, stream, text, cut_bytes } => {
                let mut data = json!({ "call": call, "stream": stream, "text": text });
                if *cut_bytes > 0 {
                    data["cut_bytes"] = (*cut_bytes).into();
                }
                to_raw_value(&data)
            }
            Self::ToolResult { call, tool, ok, output, cut_bytes, exit, duration_ms } => {
                let mut data = json!({
                    "call": call, "tool": tool, "ok": ok, "output": output,
                    "exit": exit, "duration_ms": duration_ms,
                });
                if *cut_bytes > 0 {
                    data["cut_bytes"] = (*cut_bytes).into();
                }
                to_raw_value(&data)
            }
            Self::Written { key, body } => {
                let mut data: serde_json::Value = serde_json::from_str(body.data()?.get())?;
                data["key"] = key.as_str().into();
                to_raw_value(&data)
            }
            Self::Other { raw, .. } => Ok(raw.clone()),
        }
    }
}

/// Times on the wire: RFC 3339, UTC with `Z`, six digits.
pub mod wire_time {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the time with six digits.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{at:.6}"))
    }

    /// Reads a time.
    ///
    /// # Errors
    /// When the text is no RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        Timestamp::deserialize(deserializer)
    }

    /// The same for a time that may be missing.
    pub mod option {
        use jiff::Timestamp;
        use serde::{Deserialize, Deserializer, Serializer};

        /// Writes the time with six digits, or null.
        ///
        /// # Errors
        /// Those of the serializer.
        pub fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => serializer.serialize_str(&format!("{at:.6}")),
                None => serializer.serialize_none(),
            }
        }

        /// Reads a time or null.
        ///
        /// # Errors
        /// When the text is no RFC 3339 time.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
            Option::deserialize(deserializer)
        }
    }
}
