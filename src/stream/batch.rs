//! A batch: consecutive events of one run that come together, rendered but for their numbers. What a producer
//! sends as fast as it can goes through here: one place in the queue, one answer, no allocation for each event.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::log;
use super::offer::{self, Refused};
use crate::event::{RunId, Seq, TaskId};
use crate::record::Mark;

/// The most events of one batch: half of a task's queue, so that one is made while the other is written.
pub const MAX_EVENTS: usize = 512;
/// The bytes at which a batch is full; a single larger event makes a batch of its own.
pub const MAX_BYTES: usize = 256 * 1024;

/// Events of one run, in order.
#[derive(Debug)]
pub struct Batch {
    pub(super) run: RunId,
    pub(super) at: Timestamp,
    /// What stands before the number of each event.
    pub(super) head: Box<str>,
    /// What stands between number and kind: the time, rendered once for all that happened then.
    at_text: String,
    /// The time in `at_text`.
    said_at: Timestamp,
    /// What stands behind the number, event after event.
    text: String,
    pub(super) pieces: Vec<Piece>,
    /// The events that mean something for the state of the task, by their place.
    pub(super) marks: Vec<(usize, Mark)>,
    /// The events that were cut, by their place, as their data was before.
    pub(super) wholes: Vec<(usize, Box<str>)>,
    pub(super) turn: Option<Turn>,
    /// Told the number of the last event once all are committed, or why not.
    pub(super) ack: Option<oneshot::Sender<Result<Seq, Refused>>>,
}

/// One event of a batch.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where its text ends.
    end: usize,
    pub(super) kind: Cow<'static, str>,
}

/// Who may speak for a run that is fed from elsewhere. A new request takes a new turn: what an older one still has
/// under way is refused from then on.
#[derive(Debug, Default)]
pub struct Producer {
    turn: AtomicU64,
    saved: AtomicU64,
}

/// One request's right to speak, until the next one takes it.
#[derive(Clone, Debug)]
pub struct Turn {
    producer: Arc<Producer>,
    turn: u64,
    /// The producer's own number of the last event of the batch, saved with it.
    pub(super) last_n: u64,
}

impl Producer {
    /// A producer of whose events `saved` are in the log.
    pub fn new(saved: u64) -> Arc<Self> {
        Arc::new(Self { turn: AtomicU64::new(0), saved: AtomicU64::new(saved) })
    }

    /// The producer's number of the last event that is saved; 0 before any.
    pub fn saved(&self) -> u64 {
        self.saved.load(Ordering::Acquire)
    }

    /// Takes the turn from whoever has it. What that one has under way may still be saved until the writer was
    /// asked once more: see [`Publisher::take_turn`](super::publish::Publisher::take_turn).
    pub(super) fn next_turn(self: &Arc<Self>) -> Turn {
        let turn = self.turn.fetch_add(1, Ordering::AcqRel) + 1;
        Turn { producer: Arc::clone(self), turn, last_n: 0 }
    }
}

impl Turn {
    /// Whether nobody has taken it since.
    pub fn holds(&self) -> bool {
        self.producer.turn.load(Ordering::Acquire) == self.turn
    }

    /// The producer's number of the last event that is saved.
    pub fn saved(&self) -> u64 {
        self.producer.saved()
    }

    /// The same turn, for a batch that ends with the producer's `last_n`.
    pub(super) fn through(&self, last_n: u64) -> Self {
        Self { last_n, ..self.clone() }
    }

    /// Notes what is committed.
    pub(super) fn note_saved(&self) {
        self.producer.saved.fetch_max(self.last_n, Ordering::AcqRel);
    }
}

impl Batch {
    /// An empty batch of events that happened at `at`.
    pub fn new(task: &TaskId, run: RunId, at: Timestamp) -> Self {
        Self {
            run,
            at,
            head: format!(r#"{{"task":"{task}","run":"{run}","seq":"#).into(),
            at_text: format!(r#","at":"{at:.6}","kind":"#),
            said_at: at,
            text: String::new(),
            pieces: Vec::new(),
            marks: Vec::new(),
            wholes: Vec::new(),
            turn: None,
            ack: None,
        }
    }

    /// The events that follow happened at `at`; without, at the time of the batch.
    pub fn happened(&mut self, at: Option<Timestamp>) {
        let at = at.unwrap_or(self.at);
        if at != self.said_at {
            self.said_at = at;
            self.at_text.clear();
            let _ = write!(self.at_text, r#","at":"{at:.6}","kind":"#);
        }
    }

    /// Adds an event. Data over the bounds of an event is cut, and kept whole beside it.
    pub fn push(&mut self, kind: &str, data: &RawValue) {
        let kind = offer::named(kind);
        let data = offer::one_line(data.get());
        let cut = offer::fitted(&data);
        let mark = Mark::of_stored(&kind, cut.as_deref().unwrap_or(&data));
        if !matches!(mark, Mark::Plain) {
            self.marks.push((self.pieces.len(), mark));
        }
        self.text.push_str(&self.at_text);
        log::write_kind(&mut self.text, &kind);
        self.text.push_str(r#","data":"#);
        self.text.push_str(cut.as_deref().unwrap_or(&data));
        self.text.push('}');
        if cut.is_some() {
            self.wholes.push((self.pieces.len(), data.into_owned().into()));
        }
        self.pieces.push(Piece { end: self.text.len(), kind });
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The bytes it takes of its task's queue.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.wholes.iter().map(|(_, whole)| whole.len()).sum::<usize>()
    }

    /// Whether it should be sent before more is added.
    pub fn is_full(&self) -> bool {
        self.len() >= MAX_EVENTS || self.bytes() >= MAX_BYTES
    }

    /// What stands behind the number of an event.
    pub(super) fn tail(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.pieces[before].end);
        &self.text[start..self.pieces[index].end]
    }

    /// An event as it was before it was cut.
    pub(super) fn whole(&self, data: &str, seq: Seq, index: usize) -> String {
        let mut event = String::with_capacity(data.len() + 192);
        // Every time is written with as many characters.
        let at_text = &self.tail(index)[..self.at_text.len()];
        let _ = write!(event, "{}{seq}{at_text}", self.head);
        log::write_kind(&mut event, &self.pieces[index].kind);
        let _ = write!(event, r#","data":{data}}}"#);
        event
    }
}
