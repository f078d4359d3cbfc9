//! The intake: what stands between those who publish and the writer. Queues with bounds, the bell, and what both
//! look at.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{Notify, Semaphore, watch};

use super::changes::Changes;
use super::ends::Ends;
use super::forwarder::Connections;
use super::ring;
use super::topic::{Offer, QueueLimits, Topic};
use crate::clock::Clock;
use crate::event::{Seq, TaskId};
use crate::metrics::Metrics;
use crate::store::StoreError;

/// How much the stream keeps in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One task's ring.
    pub ring: ring::Limits,
    /// All rings together, in bytes of allocation.
    pub rings_bytes: usize,
    /// How long a ring is kept after the last event.
    pub ring_idle: Duration,
    /// One task's queue in front of the writer.
    pub queue: QueueLimits,
    /// All queues together, in bytes.
    pub queues_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            ring: ring::Limits { events: 1024, bytes: MIB, unread_bytes: 16 * MIB },
            rings_bytes: 256 * MIB,
            ring_idle: Duration::from_secs(300),
            queue: QueueLimits { events: 1024, bytes: 4 * MIB },
            queues_bytes: 64 * MIB,
        }
    }
}

/// Whether the store can be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Writable {
    /// It can.
    Yes,
    /// It cannot, since then and for that reason.
    No {
        /// Since when.
        since: Timestamp,
        /// What the store said.
        why: String,
    },
}

/// What the publisher and the writer both look at.
#[derive(Debug)]
pub(super) struct Intake {
    pub(super) inbox: Mutex<Inbox>,
    pub(super) bell: Condvar,
    /// The same bell, for one who must not block.
    pub(super) rung: Arc<Notify>,
    pub(super) topics: RwLock<HashMap<TaskId, Arc<Topic>>>,
    pub(super) connections: Connections,
    pub(super) writable: watch::Sender<Writable>,
    pub(super) changes: Changes,
    /// Held by the writer for each group; whoever must have it quiet for a moment takes it.
    pub(super) gate: Mutex<()>,
    /// Says what follows the end of a run.
    pub(super) ends: Arc<Ends>,
    pub(super) queues_bytes: Arc<Semaphore>,
    /// What all rings take, as the last tidying counted it and the writer has added since.
    pub(super) rings_bytes: AtomicIsize,
    /// Rung when that is too much.
    pub(super) crowded: watch::Sender<()>,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

impl Intake {
    /// Notes by how much a ring has grown, and has memory given back when all together take too much.
    pub(super) fn note_grown(&self, bytes: isize) {
        let before = self.rings_bytes.fetch_add(bytes, Ordering::Relaxed);
        let most = self.limits.rings_bytes.cast_signed();
        if before <= most && before.saturating_add(bytes) > most {
            self.crowded.send_replace(());
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) jobs: VecDeque<Job>,
    /// Topics with something in their queue.
    pub(super) ready: VecDeque<Arc<Topic>>,
    pub(super) stop: bool,
}

/// What a job does with the group's transaction, or with the reason why there is none.
pub(super) type Act = dyn FnOnce(Result<&Connection, StoreError>) -> Acted + Send;

/// A change of state: looks and writes in the group's transaction and says which events go with it. A job that
/// cannot be tried is given the reason instead, so that the one who asked hears it.
pub(super) struct Job {
    pub(super) act: Box<Act>,
}

impl Job {
    /// Tells the one who asked why it is not tried.
    pub(super) fn refuse(self, error: &StoreError) {
        let Acted { answer, .. } = (self.act)(Err(error.clone()));
        answer(Err(error.clone()));
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// What a job did in the transaction of its group.
pub(super) struct Acted {
    /// The events that go with it; none if it failed.
    pub(super) offers: Result<Vec<(Arc<Topic>, Offer)>, ()>,
    /// The stream that ends with it: nothing behind it in the group gets a number there.
    pub(super) ends: Option<Arc<Topic>>,
    /// Brings memory up to the commit, before anyone is shown what the group holds.
    pub(super) follow: Option<Box<dyn FnOnce() + Send>>,
    /// Tells the one who asked.
    pub(super) answer: Answer,
}

pub(super) type Answer = Box<dyn FnOnce(Result<Vec<Seq>, StoreError>) + Send>;

/// What `bytes` take of the byte budgets: never more than there is of them, or it would wait for ever.
pub(super) fn weight(bytes: usize, limits: &Limits) -> u32 {
    let most = limits.queue.bytes.min(limits.queues_bytes);
    u32::try_from(bytes.min(most)).unwrap_or(u32::MAX)
}

/// What `events` take of the places of a task's queue: never more than there are.
pub(super) fn places(events: usize, limits: &Limits) -> u32 {
    u32::try_from(events.min(limits.queue.events)).unwrap_or(u32::MAX)
}
