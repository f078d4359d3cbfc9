//! How what happened becomes an event that fits: at most 64 KiB, the longest strings cut in the middle, nothing
//! lost (the whole is kept beside it).

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::event::{Body, MAX_EVENT_BYTES, RunId, Seq, State, known_kind};
use crate::record::Mark;

/// What an event has around its data, at most: ids, number, time, kind and punctuation.
const AROUND: usize = 512;
/// The most of a kind that is not known.
const MAX_KIND: usize = 64;
/// A string is never cut below this: the rest goes with the next longest.
const SHORTEST_CUT: usize = 256;
/// So often at most: each cut looks at all of the data again.
const MOST_CUTS: usize = 64;
/// So many short members stay beside the head of data that could not be cut: 8 KiB at most.
const MOST_MEMBERS: usize = 32;

/// An event on its way to the log: it has everything but its number.
#[derive(Debug)]
pub struct Offer {
    /// The run it is of, if any.
    pub run: Option<RunId>,
    /// When it happened.
    pub at: Timestamp,
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// Its data as JSON, already within the bounds of an event.
    pub data: Box<str>,
    /// Its data before it was cut, if it was.
    pub whole: Option<Box<str>>,
    /// What it means for the state of the task.
    pub mark: Mark,
    /// Told the number once it is committed, or why not.
    pub(super) ack: Option<oneshot::Sender<Result<Seq, Refused>>>,
}

/// Why an event was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No event of a run follows its terminal status (T-28).
    #[error("the run is over")]
    RunOver,
    /// The task was deleted, or its log replaced by another.
    #[error("the log of this task is no longer there")]
    LogGone,
    /// Another request has taken the turn to speak for the run.
    #[error("another request feeds this run now")]
    Fenced,
    /// The server is going down.
    #[error("the server is stopping")]
    Stopping,
}

impl Offer {
    /// The event that says `body`.
    pub fn new(run: Option<RunId>, at: Timestamp, body: &Body) -> Self {
        let mut mark = Mark::of(body);
        let data: Box<str> = body.data().map_or_else(|_| "{}".into(), |raw| one_line(raw.get()).into());
        let kind = named(body.kind());
        let (data, whole) = match fitted(&data) {
            Some(cut) => (cut, Some(data)),
            None => (data, None),
        };
        // What is remembered of a status is what its event says, so that a start from the log gives the same.
        // Not so for a new run: it works with the parameters as they were given.
        if whole.is_some() && mark.state().is_some_and(|state| state != State::Queued) {
            mark = Mark::of_stored(&kind, &data);
        }
        Self { run, at, kind, data, whole, mark, ack: None }
    }

    /// Whether it needs no place in the queue: the end of a run never waits behind its own output.
    pub fn is_from_reserve(&self) -> bool {
        self.mark.state().is_some_and(State::is_terminal)
    }

    /// The bytes it takes of its task's queue.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.whole.as_ref().map_or(0, |whole| whole.len())
    }
}

/// JSON as it came, but in one line: between its tokens a line break is as good as a blank.
pub(super) fn one_line(json: &str) -> Cow<'_, str> {
    // Bytes, not characters: this looks at all that comes in.
    if json.bytes().any(|byte| matches!(byte, b'\n' | b'\r')) {
        json.replace(['\n', '\r'], " ").into()
    } else {
        json.into()
    }
}

/// The name of a kind, within its bound; those that are known cost no allocation.
pub(super) fn named(kind: &str) -> Cow<'static, str> {
    known_kind(kind).map_or_else(|| kind.chars().take(MAX_KIND).collect::<String>().into(), Cow::Borrowed)
}

/// The data cut so that the event fits, or `None` when it fits as it is.
pub(super) fn fitted(data: &str) -> Option<Box<str>> {
    let room = MAX_EVENT_BYTES - AROUND;
    if data.len() <= room {
        return None;
    }
    let mut value = serde_json::from_str(data).unwrap_or(Value::Null);
    if !value.is_object() {
        return Some(head_only(data));
    }
    let mut cuts = Map::new();
    for _ in 0..MOST_CUTS {
        let text = value.to_string();
        let with_cuts = text.len() + Value::Object(cuts.clone()).to_string().len() + 8;
        if with_cuts <= room {
            value["cut"] = Value::Object(cuts);
            return Some(value.to_string().into());
        }
        let mut longest = Longest::default();
        longest.look(&value, &mut String::new());
        let Some(Value::String(string)) = value.pointer_mut(&longest.pointer) else { break };
        if string.len() <= SHORTEST_CUT {
            break;
        }
        // Escaping makes a string up to six times as long: cut by what is too much, at least to a half.
        let keep = string.len().saturating_sub(with_cuts - room + 64).max(string.len() / 2).max(SHORTEST_CUT / 2);
        let field = longest.pointer.trim_start_matches('/').replace('/', ".");
        let (short, gone) = cut_middle(string, keep);
        *string = short;
        let before = cuts.get(&field).and_then(Value::as_u64).unwrap_or(0);
        cuts.insert(field, (before + gone as u64).into());
    }
    Some(head_only(data))
}

/// Data that is long without a long string (a list of a million numbers): only its head is shown, beside the
/// short members, which say what it is (the state of a status, the call of a tool).
fn head_only(data: &str) -> Box<str> {
    let (head, rest) = data.split_at(data.floor_char_boundary(8 * 1024));
    let mut members = match serde_json::from_str(data) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    };
    members.retain(|name, value| match value {
        Value::String(text) => name.len() + text.len() <= SHORTEST_CUT,
        Value::Array(_) | Value::Object(_) => false,
        _ => name.len() <= SHORTEST_CUT,
    });
    if members.len() > MOST_MEMBERS {
        members.clear();
    }
    members.entry("text").or_insert_with(|| head.into());
    members.insert("cut".to_owned(), serde_json::json!({ "": rest.len() }));
    Value::Object(members).to_string().into()
}

/// Keeps about `keep` bytes, half from each end; gives the text and how many bytes are gone.
pub fn cut_middle(text: &str, keep: usize) -> (String, usize) {
    if text.len() <= keep {
        return (text.to_owned(), 0);
    }
    let head = text.floor_char_boundary(keep / 2);
    let tail = text.ceil_char_boundary(text.len() - keep / 2);
    let mut short = String::with_capacity(head + text.len() - tail + 3);
    short.push_str(&text[..head]);
    short.push('…');
    short.push_str(&text[tail..]);
    (short, tail - head)
}

/// The longest string of a value, as a JSON pointer (RFC 6901).
#[derive(Default)]
struct Longest {
    bytes: usize,
    pointer: String,
}

impl Longest {
    fn look(&mut self, value: &Value, pointer: &mut String) {
        let mark = pointer.len();
        match value {
            Value::String(text) if text.len() > self.bytes => {
                self.bytes = text.len();
                self.pointer.clone_from(pointer);
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    pointer.push_str(&format!("/{index}"));
                    self.look(item, pointer);
                    pointer.truncate(mark);
                }
            }
            Value::Object(members) => {
                for (name, member) in members {
                    pointer.push('/');
                    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                    self.look(member, pointer);
                    pointer.truncate(mark);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn t_30_a_long_string_is_cut_in_the_middle_and_the_cut_is_said() {
        let long = "a".repeat(50_000) + &"b".repeat(50_000);
        let data = json!({ "call": "c1", "input": { "command": long, "short": "s" } }).to_string();
        let cut: Value = serde_json::from_str(&fitted(&data).unwrap()).unwrap();
        let command = cut["input"]["command"].as_str().unwrap();
        assert!(command.starts_with("aaa") && command.ends_with("bbb"));
        let gone = cut["cut"]["input.command"].as_u64().unwrap() as usize;
        assert_eq!(gone + command.len() - '…'.len_utf8(), 100_000);
        assert_eq!(cut["input"]["short"], "s");
        assert_eq!(fitted(&json!({ "text": "short" }).to_string()), None);
    }

    #[test]
    fn t_30_data_that_is_no_object_or_too_deep_is_cut_too_and_its_bytes_are_said() {
        let string = json!("a".repeat(100_000)).to_string();
        let deep = "[".repeat(40_000) + &"]".repeat(40_000);
        for data in [string, deep] {
            let cut: Value = serde_json::from_str(&fitted(&data).unwrap()).unwrap();
            assert_eq!(cut["cut"][""].as_u64().unwrap() as usize + cut["text"].as_str().unwrap().len(), data.len());
        }
    }

    #[test]
    fn t_30_ten_thousand_middling_strings_are_cut_in_few_steps() {
        let strings: Vec<_> = (0..10_000).map(|_| "x".repeat(300)).collect();
        let data = json!({ "call": "c1", "strings": strings }).to_string();
        // Each step looks at three megabytes: ten thousand of them would not end within this test's patience.
        let cut: Value = serde_json::from_str(&fitted(&data).unwrap()).unwrap();
        assert_eq!(cut["call"], "c1");
    }

    #[test]
    fn a_status_that_was_cut_keeps_its_state_and_is_remembered_as_its_event_says_it() {
        let mut status = crate::event::Status::new(State::Failed, "x".repeat(100_000));
        let offer = Offer::new(None, Timestamp::UNIX_EPOCH, &Body::Status(status.clone()));
        let Mark::Status(marked) = &offer.mark else { panic!("no status: {:?}", offer.mark) };
        let said: Value = serde_json::from_str(&offer.data).unwrap();
        assert_eq!(said["text"], *marked.text);
        status.text = "short".to_owned();
        status.other.insert("numbers".to_owned(), json!(vec![1; 100_000]));
        let offer = Offer::new(None, Timestamp::UNIX_EPOCH, &Body::Status(status));
        assert_eq!(offer.mark.state(), Some(State::Failed));
        assert_eq!(Mark::of_stored(&offer.kind, &offer.data).state(), Some(State::Failed), "in the log too");
    }

    #[test]
    fn json_that_comes_in_lines_goes_out_in_one() {
        let raw = serde_json::value::RawValue::from_string("{\n \"a\":\r\n 1}".to_owned()).unwrap();
        let offer = Offer::new(None, Timestamp::UNIX_EPOCH, &Body::Other { kind: "k".to_owned(), raw });
        assert!(!offer.data.contains(['\n', '\r']));
        assert_eq!(serde_json::from_str::<Value>(&offer.data).unwrap(), json!({ "a": 1 }));
    }

    #[test]
    fn long_data_without_a_long_string_is_cut_too() {
        let data = json!({ "numbers": vec![1; 100_000] }).to_string();
        let cut: Value = serde_json::from_str(&fitted(&data).unwrap()).unwrap();
        assert!(cut["cut"][""].as_u64().unwrap() > 100_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn whatever_is_said_fits(
            texts in prop::collection::vec("[\\x00-\\x7f€😀\"]{0,9000}", 1..24),
        ) {
            let members: Map<String, Value> =
                texts.iter().enumerate().map(|(i, text)| (format!("f{i}"), text.as_str().into())).collect();
            let data = Value::Object(members).to_string();
            let fitting = fitted(&data).unwrap_or_else(|| data.clone().into());
            prop_assert!(fitting.len() + AROUND <= MAX_EVENT_BYTES);
            prop_assert!(serde_json::from_str::<Value>(&fitting).unwrap().is_object());
        }
    }
}
