//! One task's stream in memory: the tail of its log behind one lock, and the queue in front of its writer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::batch::Batch;
use super::delta::{Drafts, Piece, Shown};
use super::forwarder::{Connections, Forwarder};
pub use super::offer::{Offer, Refused};
use super::ring::{Limits, Ring};
use super::segment::Segment;
use super::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering};
use crate::event::{Gen, RunId, Seq, TaskId};
use crate::failpoint;
use crate::record::{Fold, Mark};
use crate::store::TaskNo;

/// The tail of a log: what readers pull from. Locked for moments only, never over an await.
#[derive(Debug)]
pub struct Tail {
    /// The log.
    pub generation: Gen,
    /// The first event that is still there; `head` + 1 when none is.
    pub oldest: Seq,
    /// The last event.
    pub head: Seq,
    /// All event JSON the log ever held, in bytes.
    pub bytes: u64,
    /// The newest segments.
    pub ring: Ring,
    /// The runs not ended and the calls not closed, at `head`.
    pub fold: Fold,
    /// When something was last written.
    pub used: Instant,
}

/// One task's stream.
#[derive(Debug)]
pub struct Topic {
    /// The task.
    pub id: TaskId,
    /// Its number in the store.
    pub no: TaskNo,
    tail: Mutex<Tail>,
    /// `tail.head` once more, for a reader that only wants to know whether to look. Stored after the ring has
    /// the event, so that whoever sees the number finds the event.
    head: AtomicU64,
    /// Set when the task is deleted: emitters of this log get an error from then on.
    closed: AtomicBool,
    /// What waits for the writer.
    pub(super) queue: std::sync::Mutex<Queue>,
    /// Places in the queue, and bytes of it: an emitter waits for both.
    pub(super) slots: Arc<Semaphore>,
    pub(super) bytes: Arc<Semaphore>,
    /// The writer's own: who watched when it last looked.
    pub(super) forwarder: std::sync::Mutex<Forwarder>,
    /// What agents are writing. Never locked together with the tail.
    drafts: std::sync::Mutex<Drafts>,
    /// How often that changed, for a reader that only wants to know whether to look; 0 as long as nothing was written.
    drafted: std::sync::atomic::AtomicU64,
}

/// How much may wait in front of the writer for one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Events.
    pub events: usize,
    /// Bytes of event data.
    pub bytes: usize,
}

/// Events that wait for the writer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) work: VecDeque<Work>,
    /// Whether the writer already has this topic on its list.
    pub(super) listed: bool,
}

/// One place in the queue.
#[derive(Debug)]
pub(super) enum Work {
    One(Offer),
    Many(Batch),
}

impl Work {
    pub(super) fn events(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(batch) => batch.len(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::One(offer) => offer.bytes(),
            Self::Many(batch) => batch.bytes(),
        }
    }
}

impl Topic {
    /// The stream of a task as it stands in the store.
    pub fn new(id: TaskId, no: TaskNo, start: Start, ring: Limits, queue: QueueLimits) -> Self {
        let Start { generation, oldest, head, bytes, fold } = start;
        let tail = Tail { generation, oldest, head, bytes, ring: Ring::new(head, ring), fold, used: Instant::now() };
        Self {
            id,
            no,
            tail: Mutex::new(tail),
            head: AtomicU64::new(head.0),
            closed: AtomicBool::new(false),
            queue: std::sync::Mutex::default(),
            slots: Arc::new(Semaphore::new(queue.events)),
            bytes: Arc::new(Semaphore::new(queue.bytes)),
            forwarder: std::sync::Mutex::default(),
            drafts: std::sync::Mutex::default(),
            drafted: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// The last event's number, without the lock. Whoever sees it finds the event in the tail or the log.
    pub fn head(&self) -> Seq {
        Seq(self.head.load(Ordering::Acquire))
    }

    /// The tail. The guard must not live over an await.
    pub fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows a commit, in the order that loses nothing: ring and head → look up → wake. Gives by how many bytes
    /// the ring has grown.
    pub fn show<'a>(
        &self,
        connections: &Connections,
        segments: impl IntoIterator<Item = Arc<Segment>>,
        fold: impl FnOnce(&mut Fold),
        kinds: impl IntoIterator<Item = &'a str>,
    ) -> isize {
        let grown = self.extend(segments, || connections.slowest(&self.id), fold);
        failpoint::hit("in-ring-not-woken");
        let mut forwarder = self.forwarder.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, kind) in kinds.into_iter().enumerate() {
            // Before each event: who is live now? One wake serves all events that the same watchers are due.
            if connections.get_or_refresh_forwarder(&self.id, &mut forwarder) || index == 0 {
                forwarder.forward(&self.id, kind);
            }
        }
        grown
    }

    /// Goes on with a text that is shown while it is written. True if those who watch should be woken.
    pub fn write_draft(&self, run: RunId, key: &str, text: &str) -> bool {
        let is_news = self.drafts().write(run, key, text);
        if is_news {
            self.drafted.fetch_add(1, std::sync::atomic::Ordering::Release);
        }
        is_news
    }

    /// Forgets the texts that these events have the whole of, or whose run they end. Called before the events are
    /// shown: whoever has seen the event finds nothing of the text behind it.
    pub(super) fn end_drafts<'a>(&self, events: impl IntoIterator<Item = (RunId, &'a Mark)>) {
        if self.drafted.load(std::sync::atomic::Ordering::Acquire) == 0 {
            return;
        }
        let mut drafts = self.drafts();
        if !drafts.is_empty() {
            events.into_iter().for_each(|(run, mark)| drafts.end(run, mark));
        }
    }

    /// The next piece that was not shown yet.
    pub fn next_draft(&self, shown: &mut Shown, most: usize) -> Option<Piece> {
        // The count first: what is written in between is looked for once more.
        let change = self.drafted.load(std::sync::atomic::Ordering::Acquire);
        let piece = self.drafts().next(shown, most);
        if piece.is_none() {
            shown.change = change;
        }
        piece
    }

    /// Whether there may be a piece that was not shown yet. Without a lock.
    pub fn has_draft(&self, shown: &Shown) -> bool {
        self.drafted.load(std::sync::atomic::Ordering::Acquire) != shown.change
    }

    fn drafts(&self) -> std::sync::MutexGuard<'_, Drafts> {
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts committed segments into the ring and moves the head: the step between commit and look-up. Gives by how many
    /// bytes the ring has grown; it shrinks where a larger one goes.
    pub fn extend(
        &self,
        segments: impl IntoIterator<Item = Arc<Segment>>,
        unread: impl Fn() -> Option<Seq>,
        fold: impl FnOnce(&mut Fold),
    ) -> isize {
        let mut tail = self.tail();
        let before = tail.ring.bytes().cast_signed();
        for segment in segments {
            tail.head = segment.last();
            tail.bytes += segment.event_bytes();
            tail.ring.push(segment, &unread);
        }
        fold(&mut tail.fold);
        tail.used = Instant::now();
        self.head.store(tail.head.0, Ordering::Release);
        tail.ring.bytes().cast_signed() - before
    }

    /// Whether the task was deleted.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Refuses every further event of this log, also of those who wait for a place in its queue.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.close_queue();
    }

    /// Sends away whoever waits for a place in the queue.
    pub(super) fn close_queue(&self) {
        self.slots.close();
        self.bytes.close();
    }
}

/// Where a stream starts from.
#[derive(Debug)]
pub struct Start {
    /// The log.
    pub generation: Gen,
    /// The first event still there.
    pub oldest: Seq,
    /// The last event.
    pub head: Seq,
    /// All event JSON it ever held, in bytes.
    pub bytes: u64,
    /// The runs not ended and calls not closed.
    pub fold: Fold,
}
