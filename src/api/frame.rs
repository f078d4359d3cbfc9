//! The frames of the live protocol: what clients say, and how what the server says is written.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::event::{Gen, Seq, TaskId};
use crate::record::Run;
use crate::stream::delta::Piece;
use crate::stream::log::Bounds;
use crate::stream::reader::{Snapshot, Why};
use crate::stream::segment::Slice;

/// The only version there is.
pub const PROTOCOL: u64 = 1;
/// The largest frame of a client, in bytes.
pub const MAX_CLIENT_FRAME: usize = 64 * 1024;
/// The largest message that is read at all; beyond it the socket is closed with 1009.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// The largest snapshot.
pub const MAX_SNAPSHOT: usize = 256 * 1024;

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// The first frame.
    Hello(Hello),
    /// Watch a task.
    Subscribe(Subscribe),
    /// Watch it no more.
    Unsubscribe {
        /// The subscription.
        sub: u32,
    },
    /// The answer to a heartbeat.
    Pong {},
    /// Send the whole list of tasks.
    Tasks {},
    /// Do something.
    Command {
        /// Chosen by the client; the answer names it.
        #[serde(default)]
        id: Value,
        /// What, and what that needs.
        #[serde(flatten)]
        what: Map<String, Value>,
    },
}

/// Whether a frame that is not understood is the hello of another version.
pub fn is_of_another_version(text: &str) -> bool {
    #[derive(Deserialize)]
    struct AnyHello {
        r#type: String,
        protocol: u64,
    }
    serde_json::from_str::<AnyHello>(text).is_ok_and(|hello| hello.r#type == "hello" && hello.protocol != PROTOCOL)
}

/// The first frame.
#[derive(Debug, Deserialize)]
pub struct Hello {
    /// The version it speaks.
    pub protocol: u64,
    /// Made per page load.
    pub client: String,
    /// Grows per page load.
    #[serde(default)]
    pub attempt: u64,
    /// Whether it shows the list of tasks.
    #[serde(default)]
    pub tasks: bool,
    /// What it watches from the start.
    #[serde(default)]
    pub subscribe: Vec<Subscribe>,
    /// Where neither cookie nor header can carry it.
    #[serde(default)]
    pub token: Option<String>,
}

/// Watch a task from a position on.
#[derive(Debug, Deserialize)]
pub struct Subscribe {
    /// The subscription: 1 to 2^31-1, new for each.
    pub sub: u32,
    /// The task.
    pub task: String,
    /// The log of the position.
    #[serde(default, rename = "gen")]
    pub generation: Option<String>,
    /// The last event seen.
    #[serde(default)]
    pub after: Option<Seq>,
}

/// What a snapshot's state holds.
#[derive(Debug, Serialize)]
struct SnapshotState<'a> {
    task: &'a Value,
    runs: &'a [Run],
    calls: Vec<Value>,
}

/// `subscribed` for a task that is there.
pub fn subscribed(sub: u32, task: &TaskId, outcome: &str, log: &Bounds, from: Seq, runs: &[Run]) -> String {
    let mut frame = json!({
        "type": "subscribed", "sub": sub, "task": task, "gen": log.generation, "outcome": outcome,
        "from": from, "head": log.head, "runs": runs,
    });
    if outcome == "resumed" {
        frame["missed"] = (log.head.0 + 1 - from.0.min(log.head.0 + 1)).into();
    }
    frame.to_string()
}

/// `subscribed` for a task that is not there, or not for this credential: the same words for both.
pub fn not_found(sub: u32, task: &str) -> String {
    json!({ "type": "subscribed", "sub": sub, "task": task, "outcome": "not_found" }).to_string()
}

/// `reset`.
pub fn reset(sub: u32, log: &Bounds, why: Why, have: Seq) -> String {
    json!({
        "type": "reset", "sub": sub, "gen": log.generation, "why": why, "have": have,
        "oldest": log.oldest, "head": log.head,
    })
    .to_string()
}

/// `snapshot`, at most [`MAX_SNAPSHOT`] bytes: the largest inputs are cut first, then the oldest runs go.
pub fn snapshot(sub: u32, snapshot: &Snapshot, task: &Value) -> String {
    let mut calls: Vec<Value> =
        snapshot.calls.iter().filter_map(|call| serde_json::from_str(&call.event).ok()).collect();
    let mut runs: &[Run] = &snapshot.runs;
    let mut truncated = false;
    loop {
        let state = SnapshotState { task, runs, calls: calls.clone() };
        let mut frame = json!({
            "type": "snapshot", "sub": sub, "gen": snapshot.generation, "seq": snapshot.seq,
            "head": snapshot.head, "state": state,
        });
        if truncated {
            frame["truncated"] = true.into();
        }
        let text = frame.to_string();
        if text.len() <= MAX_SNAPSHOT {
            return text;
        }
        truncated = true;
        let largest = calls.iter_mut().max_by_key(|call| call["data"]["input"].to_string().len());
        match largest {
            Some(call) if call["data"]["input"] != json!({}) => call["data"]["input"] = json!({}),
            _ if runs.len() > 1 => runs = &runs[runs.len() / 2..],
            _ => return text,
        }
    }
}

/// `event` for one, `events` for several: the log's own text in a frame around it.
pub fn events(sub: u32, slice: &Slice) -> String {
    let items = slice.items();
    let mut frame = String::with_capacity(items.len() + 96);
    if slice.first == slice.last {
        let _ = write!(frame, r#"{{"type":"event","sub":{sub},"event":"#);
        frame.push_str(items);
        frame.push('}');
    } else {
        let (first, last) = (slice.first, slice.last);
        let _ = write!(frame, r#"{{"type":"events","sub":{sub},"first":{first},"last":{last},"items":["#);
        frame.push_str(items);
        frame.push_str("]}");
    }
    frame
}

/// `delta`: a piece of a text that is being written.
pub fn delta(sub: u32, piece: &Piece) -> String {
    let Piece { run, key, offset, text } = piece;
    json!({ "type": "delta", "sub": sub, "run": run, "key": key, "offset": offset, "text": text }).to_string()
}

/// `caught_up`.
pub fn caught_up(sub: u32, seq: Seq) -> String {
    json!({ "type": "caught_up", "sub": sub, "seq": seq }).to_string()
}

/// `done`: a command was carried out, now or before.
pub fn done(id: &Value, result: &Value) -> String {
    json!({ "type": "done", "id": id, "result": result }).to_string()
}

/// `error` about a frame, a sub or a command.
pub fn error(about: Option<(&str, Value)>, code: &str, message: &str, retryable: bool) -> String {
    let mut frame = json!({ "type": "error", "code": code, "message": message, "retryable": retryable });
    if let Some((name, value)) = about {
        frame[name] = value;
    }
    frame.to_string()
}

/// The position of a subscribe as it was meant: no gen, or one that is none, is another log.
pub fn position(subscribe: &Subscribe) -> (Option<Gen>, Seq) {
    let generation = subscribe.generation.as_deref().and_then(|text| text.parse().ok());
    (generation, subscribe.after.unwrap_or_default())
}
