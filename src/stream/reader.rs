//! A reader: the cursor of one subscription. It is woken and pulls from the ring, or from the log where the ring
//! no longer has it, or says that what it had is gone. Replay and live are this one path.

use std::collections::VecDeque;
use std::sync::Arc;

use super::delta::{Piece, Shown};
use super::forwarder::Watcher;
use super::log::{self, Bounds};
use super::publish::Publisher;
use super::segment::{Segment, Slice};
use super::topic::{Tail, Topic};
use crate::event::{Gen, Seq};
use crate::record::{OpenCall, Run};
use crate::store::{Store, StoreError};

/// How much is replayed at most; more is paged over HTTP (`docs/protocol.md`, "Resume table").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimits {
    /// Events, inclusive.
    pub events: u64,
    /// Bytes of event JSON, inclusive.
    pub bytes: u64,
}

impl Default for ReplayLimits {
    fn default() -> Self {
        Self { events: 20_000, bytes: 16 * 1024 * 1024 }
    }
}

/// The most runs that a snapshot tells of.
pub const SNAPSHOT_RUNS: usize = 100;

/// Why a client cannot go on where it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// More is missing than is replayed.
    TooFar,
    /// A newcomer, and there is more than is replayed.
    FromStart,
    /// Retention took what it wants next.
    Retention,
    /// Its position is in another log.
    Generation,
    /// Its position is beyond the end of the log.
    Future,
}

impl Why {
    /// Its name, on the wire and elsewhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooFar => "too_far",
            Self::FromStart => "from_start",
            Self::Retention => "retention",
            Self::Generation => "generation",
            Self::Future => "future",
        }
    }

    /// The reason in the log that is told of, for a position in a log that may be another by now: what was missing in
    /// that one says nothing of this one. A newcomer has no position, and a position beyond the end replaced the log.
    pub fn in_log(self, known: Option<Gen>, log: Gen) -> Self {
        match self {
            Self::TooFar | Self::Retention if known != Some(log) => Self::Generation,
            why => why,
        }
    }
}

/// What the resume table says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Go on with this event.
    Resume(Seq),
    /// Start again behind a snapshot.
    Reset(Why),
}

/// The part of a log that somebody wants events of: all of it, or where one run lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Nothing that is wanted lies before it.
    pub first: Seq,
    /// Nothing that is wanted lies behind it; none while it grows.
    pub last: Option<Seq>,
}

impl Span {
    /// All of a log.
    pub const ALL: Self = Self { first: Seq(0), last: None };
}

/// The rows of the resume table that need no look at sizes: `None` means "it depends on how much is missing".
pub fn judge(generation: Option<Gen>, after: Seq, log: &Bounds) -> Option<Verdict> {
    if after == Seq(0) {
        return None;
    }
    if generation != Some(log.generation) {
        return Some(Verdict::Reset(Why::Generation));
    }
    if after > log.head {
        return Some(Verdict::Reset(Why::Future));
    }
    if after < log.oldest.prev() {
        return Some(Verdict::Reset(Why::Retention));
    }
    (after == log.head).then_some(Verdict::Resume(after.next()))
}

/// The state of a task's log at one event: exactly what applying the events up to it gives.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The log.
    pub generation: Gen,
    /// The event it stands at.
    pub seq: Seq,
    /// The last event of the log.
    pub head: Seq,
    /// The newest runs, ascending: [`SNAPSHOT_RUNS`] at most.
    pub runs: Vec<Run>,
    /// The calls not closed, in the order of their events.
    pub calls: Vec<OpenCall>,
}

/// What a pull gives.
#[derive(Debug)]
pub enum Pull {
    /// Events, from the position on.
    Slice(Slice),
    /// There is nothing more at the moment.
    Nothing,
    /// There is more, but only in the log: fetch a page.
    InLog,
    /// The position is no longer one.
    Lost(Lost),
}

/// Why a position is no longer one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// The task was deleted.
    Deleted,
    /// The log was replaced.
    Replaced,
    /// Retention took the next event.
    Retention,
}

/// The cursor of one subscription. Leaves the map of connections when it is dropped.
#[derive(Debug)]
pub struct Reader {
    topic: Arc<Topic>,
    watcher: Arc<Watcher>,
    publisher: Publisher,
    generation: Gen,
    next: Seq,
    /// What was fetched from the log and not passed yet: one page at most.
    page: VecDeque<Arc<Segment>>,
    /// How far the texts that are being written were shown.
    shown: Shown,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.publisher.connections().remove(&self.topic.id, self.watcher.peer.id, self.watcher.sub);
    }
}

impl Reader {
    /// A reader that is in the map already, before anything was looked at: what is committed from here on wakes
    /// it. Its position is set once the resume table was asked.
    pub fn enter(publisher: &Publisher, topic: Arc<Topic>, watcher: Arc<Watcher>) -> Self {
        publisher.connections().insert(&topic.id, Arc::clone(&watcher));
        let (generation, head) = {
            let tail = topic.tail();
            (tail.generation, tail.head)
        };
        Self {
            topic,
            watcher,
            publisher: publisher.clone(),
            generation,
            next: head.next(),
            page: VecDeque::new(),
            shown: Shown::default(),
        }
    }

    /// The task's stream.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    /// The log it reads.
    pub fn generation(&self) -> Gen {
        self.generation
    }

    /// The next event it wants.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Puts it before an event of a log.
    pub fn seek(&mut self, generation: Gen, next: Seq) {
        self.generation = generation;
        self.next = next;
        self.page.clear();
        self.watcher.set_next(next);
    }

    /// Shows the texts that are being written from their beginning again.
    pub fn show_again(&mut self) {
        self.shown = Shown::default();
    }

    /// The next piece of a text that is being written, at most `most` bytes of it.
    pub fn draft(&mut self, most: usize) -> Option<Piece> {
        self.topic.next_draft(&mut self.shown, most)
    }

    /// Whether there may be such a piece, without the lock.
    pub fn has_draft(&self) -> bool {
        self.topic.has_draft(&self.shown)
    }

    /// Where the log stands now.
    pub fn bounds(&self) -> Bounds {
        let tail = self.topic.tail();
        Bounds { generation: tail.generation, oldest: tail.oldest, head: tail.head, bytes: tail.bytes }
    }

    /// Asks the resume table. O(1) where the ring has what is missing, else one look into the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn verdict(
        &self,
        store: &Arc<Store>,
        generation: Option<Gen>,
        after: Seq,
        limits: ReplayLimits,
    ) -> Result<(Verdict, Bounds), StoreError> {
        self.verdict_within(store, generation, after, limits, Span::ALL).await
    }

    /// The same for one who wants only what lies in a part of the log: only that counts as missing.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn verdict_within(
        &self,
        store: &Arc<Store>,
        generation: Option<Gen>,
        after: Seq,
        limits: ReplayLimits,
        span: Span,
    ) -> Result<(Verdict, Bounds), StoreError> {
        let log = self.bounds();
        if let Some(verdict) = judge(generation, after, &log) {
            return Ok((verdict, log));
        }
        let (from, too_much) = match after {
            // For a newcomer it begins where there is something for it; never behind the next event.
            Seq(0) => (log.oldest.max(span.first).min(log.head.next()), Why::FromStart),
            after => (after.next(), Why::TooFar),
        };
        let missing = Span { first: from.max(span.first), last: span.last };
        let fits = self.fits(store, &log, missing, limits).await?;
        Ok((if fits { Verdict::Resume(from) } else { Verdict::Reset(too_much) }, log))
    }

    async fn fits(
        &self,
        store: &Arc<Store>,
        log: &Bounds,
        missing: Span,
        limits: ReplayLimits,
    ) -> Result<bool, StoreError> {
        let from = missing.first;
        let through = missing.last.unwrap_or(log.head).min(log.head);
        if from > through {
            return Ok(true);
        }
        if through.0 - from.0 + 1 > limits.events {
            return Ok(false);
        }
        let in_ring = {
            let tail = self.topic.tail();
            from > tail.ring.evicted_through() && (tail.ring.bytes() as u64) <= limits.bytes
        };
        if in_ring {
            return Ok(true);
        }
        let (no, log) = (self.topic.no, *log);
        let read = move |connection: &rusqlite::Connection| {
            let behind = log::bytes_from(connection, no, &log, through.next())?;
            Ok(log::bytes_from(connection, no, &log, from)?.saturating_sub(behind))
        };
        Ok(store.read(read).await? <= limits.bytes)
    }

    /// The state at the head: from memory, and the ended runs from the store.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn snapshot_at_head(&self, store: &Arc<Store>) -> Result<Snapshot, StoreError> {
        let (generation, head, fold) = {
            let tail = self.topic.tail();
            (tail.generation, tail.head, tail.fold.clone())
        };
        let calls = fold.calls().to_vec();
        let no = self.topic.no;
        let runs = store.read(move |connection| log::runs_at(connection, no, head, &fold, SNAPSHOT_RUNS)).await?;
        Ok(Snapshot { generation, seq: head, head, runs, calls })
    }

    /// The state before the first event of the oldest run not ended, else of the last run, if what follows is
    /// within the limits; else at the head.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn snapshot_before_last_work(
        &self,
        store: &Arc<Store>,
        limits: ReplayLimits,
    ) -> Result<Snapshot, StoreError> {
        let (no, id, log) = (self.topic.no, self.topic.id.clone(), self.bounds());
        let read = move |connection: &rusqlite::Connection| {
            // One look: retention may take events meanwhile, and the file knows of that before memory does.
            let file = log::bounds(connection, no)?.filter(|file| file.generation == log.generation);
            let Some(Bounds { oldest, .. }) = file else { return Ok(None) };
            let first = log::start_of_last_work(connection, no)?;
            let from = first.unwrap_or(log.head.next()).max(oldest);
            if from > log.head
                || log.head.0 - from.0 + 1 > limits.events
                || log::bytes_from(connection, no, &log, from)? > limits.bytes
            {
                return Ok(None);
            }
            let seq = from.prev();
            let fold = log::fold_at(connection, &id, no, seq)?;
            let runs = log::runs_at(connection, no, seq, &fold, SNAPSHOT_RUNS)?;
            Ok(Some(Snapshot { generation: log.generation, seq, head: log.head, runs, calls: fold.calls().to_vec() }))
        };
        match store.read(read).await? {
            Some(snapshot) => Ok(snapshot),
            None => self.snapshot_at_head(store).await,
        }
    }

    /// Whether there is something to pull, without the lock. A lost position shows only in a pull.
    pub fn is_due(&self) -> bool {
        // A deleted task is told once what came before is told.
        self.topic.head() >= self.next || self.topic.is_closed()
    }

    /// Whether the position is no longer one. For a reader that was woken without an event being due.
    pub fn lost(&self) -> Option<Lost> {
        self.lost_at(&self.topic.tail())
    }

    fn lost_at(&self, tail: &Tail) -> Option<Lost> {
        if self.topic.is_closed() {
            // What was said before the end is still told, as far as it is in memory and of the log that is read.
            let is_told = tail.generation == self.generation && tail.ring.holding(self.next).is_some();
            (!is_told).then_some(Lost::Deleted)
        } else if tail.generation != self.generation {
            Some(Lost::Replaced)
        } else if self.next < tail.oldest && self.next <= tail.head {
            Some(Lost::Retention)
        } else {
            None
        }
    }

    /// The next events, at most `max_bytes` of them but at least one, and moves behind them. Never waits.
    pub fn pull(&mut self, max_bytes: usize) -> Pull {
        while self.page.front().is_some_and(|segment| segment.last() < self.next) {
            self.page.pop_front();
        }
        if self.page.is_empty() {
            // A watcher that has caught up holds nothing for what it missed.
            self.page = VecDeque::new();
        }
        let segment = {
            let tail = self.topic.tail();
            if let Some(lost) = self.lost_at(&tail) {
                return Pull::Lost(lost);
            }
            if self.next > tail.head {
                return Pull::Nothing;
            }
            tail.ring.holding(self.next)
        };
        let slice = segment.as_ref().or(self.page.front()).and_then(|segment| segment.slice(self.next, max_bytes));
        match slice {
            Some(slice) => {
                self.next = slice.last.next();
                self.watcher.set_next(self.next);
                Pull::Slice(slice)
            }
            None => Pull::InLog,
        }
    }

    /// Fetches the next page from the log: one permit, one read transaction, no socket in between.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn fetch(&mut self, store: &Arc<Store>) -> Result<(), StoreError> {
        let (no, next) = (self.topic.no, self.next);
        self.page = store.read(move |connection| log::page(connection, no, next)).await?.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: Bounds = Bounds { generation: Gen(7), oldest: Seq(11), head: Seq(20), bytes: 0 };

    #[test]
    fn what_was_missing_in_a_log_is_no_reason_in_the_one_that_took_its_place() {
        let (this, other) = (Some(Gen(7)), Some(Gen(8)));
        for why in [Why::TooFar, Why::Retention] {
            assert_eq!(why.in_log(this, Gen(7)), why);
            assert_eq!(why.in_log(other, Gen(7)), Why::Generation);
        }
        for why in [Why::Future, Why::FromStart, Why::Generation] {
            assert_eq!(why.in_log(other, Gen(7)), why);
        }
    }

    #[test]
    fn the_rows_of_the_resume_table_are_tried_in_their_order() {
        let judge = |generation, after| judge(generation, Seq(after), &LOG);
        let (this, other) = (Some(Gen(7)), Some(Gen(8)));
        assert_eq!(judge(other, 0), None, "0 is a position in every log");
        assert_eq!(judge(None, 0), None);
        assert_eq!(judge(other, 15), Some(Verdict::Reset(Why::Generation)));
        assert_eq!(judge(None, 15), Some(Verdict::Reset(Why::Generation)));
        assert_eq!(judge(other, 99), Some(Verdict::Reset(Why::Generation)), "generation comes before future");
        assert_eq!(judge(this, 21), Some(Verdict::Reset(Why::Future)));
        assert_eq!(judge(this, 9), Some(Verdict::Reset(Why::Retention)));
        assert_eq!(judge(this, 10), None, "the event before the oldest is enough");
        assert_eq!(judge(this, 20), Some(Verdict::Resume(Seq(21))), "nothing missed is a resume too");
    }
}
