//! The frames of the live protocol: what clients say, and how what the server says is written.

use std::io::Write;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::event::{Gen, Seq, TaskId};
use crate::record::Run;
use crate::store::StoreError;
use crate::stream::delta::Piece;
use crate::stream::log::Bounds;
use crate::stream::offer::cut_middle;
use crate::stream::reader::{Snapshot, Why};

/// The only version there is.
pub const PROTOCOL: u64 = 1;
/// The largest frame of a client, in bytes.
pub const MAX_CLIENT_FRAME: usize = 64 * 1024;
/// The largest message that is read at all; beyond it the socket is closed with 1009.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// The largest frame that tells of tasks and runs: far enough below what a frame may have.
pub const MAX_STATE: usize = 256 * 1024;
/// What such a frame has around them, at most.
const AROUND: usize = 1024;
/// A text beyond this is cut in its middle where a frame would be too large, in bytes.
const LONG_TEXT: usize = 1024;
/// Parameters beyond this are left out then.
const MOST_PARAMS: usize = 8 * 1024;

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

/// A frame about a subscription, for whatever carries it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Its `type`.
    pub name: &'static str,
    /// The frame.
    pub text: String,
    /// The position that it moves the client to, where that is not said by events.
    pub seq: Option<Seq>,
}

impl Said {
    /// `sub` is left out where there is one subscription only.
    fn new(name: &'static str, sub: Option<u32>, mut frame: Value) -> Self {
        frame["type"] = name.into();
        if let Some(sub) = sub {
            frame["sub"] = sub.into();
        }
        Self { name, text: frame.to_string(), seq: None }
    }
}

/// `subscribed` for a task that is there; at most [`MAX_STATE`] bytes: where it would be more, the long texts of its
/// runs are cut, then the oldest runs go.
pub fn subscribed(sub: Option<u32>, task: &TaskId, outcome: &str, log: &Bounds, from: Seq, runs: &[Run]) -> Said {
    let mut runs: Vec<Value> = runs.iter().map(|run| json!(run)).collect();
    let mut frame = json!({
        "task": task, "gen": log.generation, "outcome": outcome, "from": from, "head": log.head,
    });
    if outcome == "resumed" {
        frame["missed"] = (log.head.0 + 1 - from.0.min(log.head.0 + 1)).into();
    }
    if length(&runs) > MAX_STATE - AROUND {
        frame["truncated"] = true.into();
        runs.iter_mut().for_each(shorten);
        keep_newest(&mut runs, MAX_STATE - AROUND);
    }
    frame["runs"] = runs.into();
    Said::new("subscribed", sub, frame)
}

/// `subscribed` for a task that is not there, or not for this credential: the same words for both.
pub fn not_found(sub: Option<u32>, task: &str) -> Said {
    Said::new("subscribed", sub, json!({ "task": task, "outcome": "not_found" }))
}

/// `reset`.
pub fn reset(sub: Option<u32>, log: &Bounds, why: Why, have: Seq) -> Said {
    let (oldest, head) = (log.oldest, log.head);
    let frame = json!({ "gen": log.generation, "why": why, "have": have, "oldest": oldest, "head": head });
    Said::new("reset", sub, frame)
}

/// `snapshot`, at most [`MAX_STATE`] bytes: where it would be more, the largest inputs are emptied first, then long
/// texts are cut, then the oldest half of the runs goes, and again.
pub fn snapshot(sub: Option<u32>, snapshot: &Snapshot, task: &Value) -> Said {
    let mut calls: Vec<Value> =
        snapshot.calls.iter().filter_map(|call| serde_json::from_str(&call.event).ok()).collect();
    let mut runs: Vec<Value> = snapshot.runs.iter().map(|run| json!(run)).collect();
    let mut task = task.clone();
    let truncated = fit_state(&mut task, &mut runs, &mut calls);
    let mut frame = json!({
        "gen": snapshot.generation, "seq": snapshot.seq, "head": snapshot.head,
        "state": { "task": task, "runs": runs, "calls": calls },
    });
    if truncated {
        frame["truncated"] = true.into();
    }
    Said { seq: Some(snapshot.seq), ..Said::new("snapshot", sub, frame) }
}

/// Makes a snapshot's state fit; whether something had to go.
fn fit_state(task: &mut Value, runs: &mut Vec<Value>, calls: &mut Vec<Value>) -> bool {
    let room = MAX_STATE - AROUND;
    let all = |task: &Value, runs: &[Value], calls: &[Value]| task.to_string().len() + length(runs) + length(calls);
    let size = all(task, runs, calls);
    if size <= room {
        return false;
    }
    empty_inputs(calls, size - room);
    if all(task, runs, calls) > room {
        shorten(task);
        runs.iter_mut().chain(&mut *calls).for_each(shorten);
    }
    while all(task, runs, calls) > room && runs.len() > 1 {
        runs.drain(..runs.len() / 2);
    }
    let rest = room.saturating_sub(all(task, runs, &[]));
    keep_newest(calls, rest);
    true
}

/// Empties the largest inputs until so many bytes are won.
fn empty_inputs(calls: &mut [Value], mut too_many: usize) {
    let mut sizes: Vec<(usize, usize)> =
        calls.iter().enumerate().map(|(index, call)| (call["data"]["input"].to_string().len(), index)).collect();
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    for (size, index) in sizes {
        if too_many == 0 || size <= 2 {
            break;
        }
        calls[index]["data"]["input"] = json!({});
        too_many = too_many.saturating_sub(size - 2);
    }
}

/// Cuts every long text within, and leaves out parameters that are too much even so.
pub fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > LONG_TEXT => *text = cut_middle(text, LONG_TEXT).0,
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(members) => {
            for (name, member) in members {
                shorten(member);
                if name == "params" && member.to_string().len() > MOST_PARAMS {
                    *member = json!({});
                }
            }
        }
        _ => {}
    }
}

/// Lets go of the oldest until what is left takes at most so many bytes.
fn keep_newest(items: &mut Vec<Value>, bytes: usize) {
    let mut room = bytes;
    let kept = items.iter().rev().take_while(|item| {
        let size = item.to_string().len() + 1;
        let fits = size <= room;
        room = room.saturating_sub(size);
        fits
    });
    let gone = items.len() - kept.count();
    items.drain(..gone);
}

fn length(items: &[Value]) -> usize {
    items.iter().map(|item| item.to_string().len() + 1).sum()
}

/// What stands around events in a frame, `event` for one and `events` for several: writes what stands before them and
/// gives what stands behind. Between the two goes the log's own text.
pub fn around_events(before: &mut impl Write, sub: u32, first: Seq, last: Seq) -> &'static str {
    // Neither a buffer with room nor a vector fails.
    if first == last {
        let _ = write!(before, r#"{{"type":"event","sub":{sub},"event":"#);
        "}"
    } else {
        let _ = write!(before, r#"{{"type":"events","sub":{sub},"first":{first},"last":{last},"items":["#);
        "]}"
    }
}

/// `delta`: a piece of a text that is being written.
pub fn delta(sub: Option<u32>, piece: &Piece) -> Said {
    let Piece { run, key, offset, text } = piece;
    Said::new("delta", sub, json!({ "run": run, "key": key, "offset": offset, "text": text }))
}

/// `caught_up`.
pub fn caught_up(sub: Option<u32>, seq: Seq) -> Said {
    Said::new("caught_up", sub, json!({ "seq": seq }))
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

/// `error` for what the store could not do. It may be able to later.
pub fn store_error(about: Option<(&str, Value)>, error: &StoreError) -> String {
    let (code, message) = match error {
        StoreError::NotWritable(_) => {
            ("not_writable", "the store cannot be used at the moment, most often because the disk is full: ask again")
        }
        StoreError::Stopping => ("internal", "the server is stopping: ask again"),
        StoreError::Broken(_) => ("internal", "the log could not be read; the server's log says why: ask again"),
    };
    self::error(about, code, message, true)
}

/// The position of a subscribe as it was meant: no gen, or one that is none, is another log.
pub fn position(subscribe: &Subscribe) -> (Option<Gen>, Seq) {
    let generation = subscribe.generation.as_deref().and_then(|text| text.parse().ok());
    (generation, subscribe.after.unwrap_or_default())
}
