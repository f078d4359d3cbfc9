//! One subscription of a watcher, whatever carries it: how it is answered, and how it starts again when its position
//! is lost. Knows neither socket nor HTTP.

use std::sync::Arc;

use serde_json::json;
use tracing::info;

use super::frame::{self, Said};
use super::wire::Viewer;
use crate::event::{Gen, Seq};
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::stream::delta::Piece;
use crate::stream::forwarder::{Peer, Watcher};
use crate::stream::log::{self, Bounds};
use crate::stream::reader::{Lost, Pull, Reader, ReplayLimits, Snapshot, Span, Verdict, Why};
use crate::stream::segment::Slice;
use crate::stream::topic::Topic;

/// The most text of one `delta`: its frame is memory per watcher for ever.
const DELTA_BYTES: usize = 16 * 1024;

/// Where a client says that it is.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The log.
    pub generation: Option<Gen>,
    /// The last event it has; none when it said something that is no position of any log.
    pub after: Option<Seq>,
}

impl Position {
    /// What is no position of any log.
    pub const NONE: Self = Self { generation: None, after: None };
}

/// One subscription.
#[derive(Debug)]
pub struct Sub {
    /// Its number.
    pub number: u32,
    /// Its cursor.
    pub reader: Reader,
    /// The number in its frames; left out where a connection has this one only.
    named: Option<u32>,
    /// `caught_up` is due once the position has passed this.
    catch_up: Option<Seq>,
    /// It begins: what is being written is shown before the events.
    begins: bool,
}

/// The outcome of a subscription.
#[derive(Debug)]
pub enum Answer {
    /// What is said of it; events follow.
    Begins(Vec<Said>),
    /// Its task was deleted while it was looked at: it ends with this.
    NotFound(Said),
}

/// What a subscription has to say next.
#[derive(Debug)]
pub enum Next {
    /// Events, which it is behind now.
    Events(Slice),
    /// Nothing.
    Nothing,
    /// Its position is lost.
    Lost(Lost),
}

impl Next {
    /// None where it is to be read from the file first.
    fn of(pull: Pull, metrics: &Metrics) -> Option<Self> {
        match pull {
            Pull::Slice(slice) => {
                metrics.delivered.add(slice.last.0 + 1 - slice.first.0);
                Some(Self::Events(slice))
            }
            Pull::Nothing => Some(Self::Nothing),
            Pull::Lost(lost) => Some(Self::Lost(lost)),
            Pull::InLog => None,
        }
    }
}

impl Sub {
    /// A subscription that is in the map already, so that nothing is missed from here on. None when the task was
    /// deleted since it was found: whoever told its watchers may not have found this one yet.
    pub fn enter(viewer: &Viewer, topic: Arc<Topic>, peer: &Arc<Peer>, named: Option<u32>) -> Option<Self> {
        let number = named.unwrap_or(1);
        let watcher = Arc::new(Watcher::new(Arc::clone(peer), number, topic.head().next()));
        let reader = Reader::enter(&viewer.publisher, topic, watcher);
        let is_there = !reader.topic().is_closed();
        is_there.then_some(Self { number, reader, named, catch_up: None, begins: true })
    }

    /// The next events, at most `max_bytes` of them but at least one: from memory, else from the file.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged.
    pub async fn next(&mut self, viewer: &Viewer, max_bytes: usize) -> Result<Next, StoreError> {
        match Next::of(self.reader.pull(max_bytes), viewer.publisher.metrics()) {
            Some(next) => Ok(next),
            // Boxed: what is seldom needed is not kept room for by every watcher.
            None => Box::pin(self.next_of_file(viewer, max_bytes)).await,
        }
    }

    async fn next_of_file(&mut self, viewer: &Viewer, max_bytes: usize) -> Result<Next, StoreError> {
        self.reader.fetch(&viewer.store).await?;
        if let Some(next) = Next::of(self.reader.pull(max_bytes), viewer.publisher.metrics()) {
            return Ok(next);
        }
        // Read and not there: the task was deleted or retention took it, which the file knows before memory does.
        viewer.publisher.settled().await?;
        Next::of(self.reader.pull(max_bytes), viewer.publisher.metrics())
            .ok_or_else(|| StoreError::Broken("an event of the log is not there".to_owned()))
    }

    /// Exactly one outcome: what the resume table says, in the frames that say it, in their order.
    ///
    /// # Errors
    /// When the store cannot be read, or cannot be written where the log needs a new id; nothing was said then.
    pub async fn answer(
        &mut self,
        viewer: &Viewer,
        limits: ReplayLimits,
        position: Position,
        span: Span,
    ) -> Result<Answer, StoreError> {
        let Position { generation, after } = position;
        if after != Some(Seq(0)) {
            viewer.publisher.metrics().reconnects.add(1);
        }
        let Some(after) = after else {
            return self.reset(viewer, limits, Why::Generation, position, true).await;
        };
        let (verdict, log) = self.reader.verdict_within(&viewer.store, generation, after, limits, span).await?;
        match verdict {
            Verdict::Resume(from) => {
                self.reader.seek(log.generation, from);
                if after > Seq(0) {
                    let missed = log.head.0 + 1 - from.0;
                    viewer.publisher.metrics().replayed.add(missed);
                    info!(task = %self.reader.topic().id, missed, "watcher resumed; what it missed is replayed");
                }
                self.catch_up = Some(log.head);
                Ok(Answer::Begins(vec![self.subscribed("resumed", &log, from)]))
            }
            Verdict::Reset(why) => {
                // The log has lost its end: what comes next must not be taken for what the client has seen.
                if why == Why::Future && viewer.publisher.renew(self.reader.topic(), log.generation).await?.is_none() {
                    return Ok(Answer::NotFound(self.not_found()));
                }
                self.reset(viewer, limits, why, position, true).await
            }
        }
    }

    fn not_found(&self) -> Said {
        frame::not_found(self.named, self.reader.topic().id.as_str())
    }

    /// What is said of a position that is no longer one, unless the task is gone.
    ///
    /// # Errors
    /// When the store cannot be read; nothing was said then.
    pub async fn start_again(
        &mut self,
        viewer: &Viewer,
        limits: ReplayLimits,
        lost: Lost,
    ) -> Result<Answer, StoreError> {
        let position = Position { generation: Some(self.reader.generation()), after: Some(self.reader.next().prev()) };
        match lost {
            Lost::Deleted => Ok(Answer::NotFound(self.not_found())),
            Lost::Replaced => self.reset(viewer, limits, Why::Generation, position, true).await,
            Lost::Retention => self.reset(viewer, limits, Why::Retention, position, false).await,
        }
    }

    /// Says the gap aloud: (subscribed →) reset → snapshot, and no event before it. Of a task that is deleted meanwhile
    /// parts may have been read: its rows go once its topic is closed, and from then on it is not found.
    async fn reset(
        &mut self,
        viewer: &Viewer,
        limits: ReplayLimits,
        why: Why,
        position: Position,
        again: bool,
    ) -> Result<Answer, StoreError> {
        let snapshot = match why {
            Why::FromStart => self.reader.snapshot_before_last_work(&viewer.store, limits).await?,
            _ => self.reader.snapshot_at_head(&viewer.store).await?,
        };
        let Snapshot { generation, seq, head, .. } = snapshot;
        let view = viewer.one(&self.reader.topic().id).await?;
        if self.reader.topic().is_closed() {
            return Ok(Answer::NotFound(self.not_found()));
        }
        // The log may have been replaced since it was judged.
        let why = why.in_log(position.generation, generation);
        let have = position.after.unwrap_or(Seq(0));
        self.reader.seek(generation, seq.next());
        self.reader.show_again();
        let log = Bounds { generation, head, ..self.reader.bounds() };
        info!(task = %self.reader.topic().id, why = why.as_str(), %have, "watcher starts again behind a snapshot");
        viewer.publisher.metrics().resets.add(why.as_str(), 1);
        (self.catch_up, self.begins) = (Some(head), true);
        let subscribed = again.then(|| self.subscribed("reset", &log, seq.next()));
        let rest = [frame::reset(self.named, &log, why, have), frame::snapshot(self.named, &snapshot, &json!(view))];
        Ok(Answer::Begins(subscribed.into_iter().chain(rest).collect()))
    }

    fn subscribed(&self, outcome: &str, log: &Bounds, from: Seq) -> Said {
        let runs: Vec<_> = self.reader.topic().tail().fold.runs().cloned().collect();
        frame::subscribed(self.named, &self.reader.topic().id, outcome, log, from, &runs)
    }

    /// A piece of what is being written, if it is due: the text so far where the sub begins, and later what is new of
    /// it, where no event waits. An event may be the whole of what is written; who is behind is not kept from it.
    pub fn draft(&mut self, max_bytes: usize) -> Option<Piece> {
        let is_next = self.begins || !(self.reader.is_due() || self.is_caught_up());
        let piece = match is_next && self.reader.has_draft() {
            true => self.reader.draft(max_bytes.min(DELTA_BYTES)),
            false => None,
        };
        self.begins &= piece.is_some();
        piece
    }

    /// The same as a frame.
    pub fn delta(&mut self, max_bytes: usize) -> Option<Said> {
        let named = self.named;
        self.draft(max_bytes).map(|piece| frame::delta(named, &piece))
    }

    /// Whether `caught_up` is due.
    pub fn is_caught_up(&self) -> bool {
        self.catch_up.is_some_and(|head| self.reader.next() > head)
    }

    /// `caught_up`, once when it is due.
    pub fn caught_up(&mut self) -> Option<Said> {
        if !self.is_caught_up() {
            return None;
        }
        self.catch_up = None;
        Some(frame::caught_up(self.named, self.reader.next().prev()))
    }

    /// One line for each event that went out; held back by the default filter.
    pub fn log_delivery<'a>(&self, peer: &Peer, events: impl Iterator<Item = (Seq, &'a str)>) {
        if !tracing::enabled!(target: "rejoin::delivery", tracing::Level::INFO) {
            return;
        }
        let (task, user, session) = (&self.reader.topic().id, &peer.user, peer.id);
        for (seq, event) in events {
            let kind = log::kind_of(event);
            info!(target: "rejoin::delivery", connection = session, %user, %task, kind, %seq, "Sent {kind} message to user={user}, session=c-{session}, chat={task}");
        }
    }
}
