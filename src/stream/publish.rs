//! The single writer. Every event of every task passes here, and every change of state beside it: numbered,
//! committed, put into the ring; then the look-up of who is live *now*, then the wake-up. One thread gives the
//! order.
//!
//! Commit → ring and head → look up → wake. A watcher never sees what is not saved.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tracing::{error, info, warn};

use super::forwarder::Connections;
use super::log;
use super::ring;
use super::segment::{Builder, Segment};
use super::topic::{Offer, Queue, QueueLimits, Refused, Start, Topic};
use crate::clock::Clock;
use crate::event::{Body, RunId, Seq, State, TaskId};
use crate::failpoint;
use crate::record::{Fold, Mark, Run};
use crate::store::{Store, StoreError, TaskNo};

/// The most events of one group (`docs/protocol.md`, invariant 1).
const GROUP_EVENTS: usize = 4096;
/// The most bytes of one group.
const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// The most changes of state that go into one group.
const GROUP_JOBS: usize = 1024;
/// While others wait, one task gets at most this part of a group.
const FLOOD_SHARE: usize = 4;
/// How long to wait before a failed group is tried again; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

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

/// Offers events to the writer and asks it for changes of state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inbox: Mutex<Inbox>,
    bell: Condvar,
    topics: RwLock<HashMap<TaskId, Arc<Topic>>>,
    connections: Connections,
    writable: watch::Sender<Writable>,
    changes: Changes,
    /// Held by the writer for each group; whoever must have it quiet for a moment takes it.
    gate: Mutex<()>,
    queues_bytes: Arc<Semaphore>,
    limits: Limits,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Inbox {
    jobs: VecDeque<Job>,
    /// Topics with something in their queue.
    ready: VecDeque<Arc<Topic>>,
    stop: bool,
}

/// What a job does with the group's transaction, or with the reason why there is none.
type Act = dyn FnOnce(Result<&Connection, StoreError>) -> Acted + Send;

/// A change of state: looks and writes in the group's transaction and says which events go with it. A job that
/// cannot be tried is given the reason instead, so that the one who asked hears it.
struct Job {
    act: Box<Act>,
}

impl Job {
    /// Tells the one who asked why it is not tried.
    fn refuse(self, error: &StoreError) {
        let Acted { answer, .. } = (self.act)(Err(error.clone()));
        answer(Err(error.clone()));
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

/// What a job did within its savepoint.
struct Acted {
    /// The events that go with it; none if it failed.
    offers: Result<Vec<(Arc<Topic>, Offer)>, ()>,
    /// Tells the one who asked.
    answer: Answer,
}

type Answer = Box<dyn FnOnce(Result<Vec<Seq>, StoreError>) + Send>;

/// The tasks whose state changed, for those who show lists of tasks. Bounded by the number of tasks.
#[derive(Debug, Default)]
pub struct Changes {
    tasks: Mutex<BTreeSet<TaskId>>,
    bell: Notify,
}

impl Changes {
    /// Notes that a task changed.
    pub fn note(&self, task: &TaskId) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).insert(task.clone());
        self.bell.notify_one();
    }

    /// Waits for changes and takes them. For one who waits.
    pub async fn take(&self) -> BTreeSet<TaskId> {
        loop {
            let changed = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            if !changed.is_empty() {
                return changed;
            }
            // A change noted since then has left a permit behind.
            self.bell.notified().await;
        }
    }
}

/// The writer's thread. Stops when told to, after what was offered is written.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Starts the writer on its own thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(connection: Connection, limits: Limits, clock: Clock) -> anyhow::Result<(Self, Writer)> {
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            bell: Condvar::new(),
            topics: RwLock::default(),
            connections: Connections::new(),
            writable: watch::Sender::new(Writable::Yes),
            changes: Changes::default(),
            gate: Mutex::new(()),
            queues_bytes: Arc::new(Semaphore::new(limits.queues_bytes)),
            limits,
            clock,
        });
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let ending = Ending(shared);
                ending.0.write_until_stopped(&connection);
            }
        })?;
        let publisher = Self { shared: Arc::clone(&shared) };
        Ok((publisher, Writer { shared, thread: Some(thread) }))
    }

    /// Opens the stream of a task as it stands in the store.
    pub fn open(&self, id: TaskId, no: TaskNo, start: Start) -> Arc<Topic> {
        let limits = &self.shared.limits;
        let topic = Arc::new(Topic::new(id.clone(), no, start, limits.ring, limits.queue));
        self.shared.topics.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&topic));
        topic
    }

    /// The stream of a task that is there.
    pub fn topic(&self, id: &TaskId) -> Option<Arc<Topic>> {
        self.shared.topics.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Closes the stream of a deleted task: emitters get an error, watchers are woken to be told.
    pub fn forget(&self, topic: &Arc<Topic>) {
        topic.close();
        let mut topics = self.shared.topics.write().unwrap_or_else(PoisonError::into_inner);
        if topics.get(&topic.id).is_some_and(|there| Arc::ptr_eq(there, topic)) {
            topics.remove(&topic.id);
        }
        drop(topics);
        self.wake_all(topic);
    }

    /// Wakes every watcher of a task for something that is not an event: another gen, a raised `oldest`.
    pub fn wake_all(&self, topic: &Topic) {
        let mut forwarder = topic.forwarder.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.connections.get_or_refresh_forwarder(&topic.id, &mut forwarder);
        forwarder.forward(&topic.id, "status");
    }

    /// The live connections.
    pub fn connections(&self) -> &Connections {
        &self.shared.connections
    }

    /// Whether the store can be written, and when that changes.
    pub fn writable(&self) -> watch::Receiver<Writable> {
        self.shared.writable.subscribe()
    }

    /// Offers an event and waits for a place in the queue, not for the commit. Watchers never make it wait.
    ///
    /// # Errors
    /// [`Refused`] when the log is gone or the server is stopping.
    pub async fn offer(&self, topic: &Arc<Topic>, run: Option<RunId>, body: &Body) -> Result<(), Refused> {
        let offer = Offer::new(run, self.shared.clock.now(), body);
        self.enqueue(topic, offer).await
    }

    /// Offers an event and waits until it is saved; gives its number.
    ///
    /// # Errors
    /// [`Refused`] when the run is over, the log is gone or the server is stopping.
    pub async fn publish(&self, topic: &Arc<Topic>, run: Option<RunId>, body: &Body) -> Result<Seq, Refused> {
        let mut offer = Offer::new(run, self.shared.clock.now(), body);
        let (ack, saved) = oneshot::channel();
        offer.ack = Some(ack);
        if offer.is_from_reserve() {
            self.push(topic, offer)?;
        } else {
            self.enqueue(topic, offer).await?;
        }
        saved.await.map_err(|_| Refused::Stopping)?
    }

    async fn enqueue(&self, topic: &Arc<Topic>, offer: Offer) -> Result<(), Refused> {
        let bytes = weight(&offer, &self.shared.limits);
        // The semaphores are closed with the log, or with the writer.
        let closed = |_| if topic.is_closed() { Refused::LogGone } else { Refused::Stopping };
        // Guards until the offer is in the queue: whoever gives up waiting leaves no place taken behind.
        let place = topic.slots.acquire().await.map_err(closed)?;
        let of_task = topic.bytes.acquire_many(bytes).await.map_err(closed)?;
        let of_all = self.shared.queues_bytes.acquire_many(bytes).await.map_err(closed)?;
        self.push(topic, offer)?;
        // From here on they are the offer's; the writer gives them back.
        place.forget();
        of_task.forget();
        of_all.forget();
        Ok(())
    }

    fn push(&self, topic: &Arc<Topic>, offer: Offer) -> Result<(), Refused> {
        if topic.is_closed() {
            return Err(Refused::LogGone);
        }
        // Inbox, then queue, as the writer does: what is taken before the stop is written before the end.
        let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.stop {
            return Err(Refused::Stopping);
        }
        let mut queue = topic.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.offers.push_back(offer);
        if !std::mem::replace(&mut queue.listed, true) {
            inbox.ready.push_back(Arc::clone(topic));
            self.shared.bell.notify_one();
        }
        Ok(())
    }

    /// Changes state: `act` looks and writes in the writer's transaction, and the events it gives are numbered
    /// in that same transaction, in their order. All of it is saved, or none. The answer comes after the commit,
    /// with the numbers of the events.
    ///
    /// # Errors
    /// What `act` gave; or a [`StoreError`] when the store cannot be written now: it is not tried again.
    pub async fn transact<T, E, F>(&self, act: F) -> Result<(T, Vec<Seq>), E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<(T, Vec<(Arc<Topic>, Offer)>), E> + Send + 'static,
    {
        let (sender, answer) = oneshot::channel::<Result<(T, Vec<Seq>), E>>();
        let job = Job {
            act: Box::new(move |connection| match connection.map_err(E::from).and_then(act) {
                Ok((value, offers)) => Acted {
                    offers: Ok(offers),
                    answer: Box::new(move |saved| {
                        let _ = sender.send(saved.map(|numbers| (value, numbers)).map_err(E::from));
                    }),
                },
                Err(error) => Acted {
                    offers: Err(()),
                    answer: Box::new(move |_| {
                        let _ = sender.send(Err(error));
                    }),
                },
            }),
        };
        {
            let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            if inbox.stop {
                return Err(StoreError::Stopping.into());
            }
            inbox.jobs.push_back(job);
            self.shared.bell.notify_one();
        }
        answer.await.map_err(|_| E::from(StoreError::Stopping))?
    }

    /// Keeps the writer between two groups while `act` runs: for a checkpoint that must reach the end.
    pub fn while_quiet<T>(&self, act: impl FnOnce() -> T) -> T {
        let _gate = self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner);
        act()
    }

    /// Which tasks changed since someone last looked.
    pub fn changes(&self) -> &Changes {
        &self.shared.changes
    }

    /// Gives back memory: rings of tasks that fell quiet, and the least recently used where all rings together
    /// take too much. O(tasks log tasks); called from time to time.
    pub fn tidy(&self) {
        let topics: Vec<_> =
            self.shared.topics.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let now = Instant::now();
        let mut used: Vec<(Instant, usize, Arc<Topic>)> = Vec::new();
        let mut total = 0;
        for topic in topics {
            let mut tail = topic.tail();
            if now.duration_since(tail.used) >= self.shared.limits.ring_idle {
                tail.ring.clear();
            }
            let (last, bytes) = (tail.used, tail.ring.bytes());
            drop(tail);
            total += bytes;
            if bytes > 0 {
                used.push((last, bytes, topic));
            }
        }
        if total > self.shared.limits.rings_bytes {
            used.sort_by_key(|(last, ..)| *last);
            for (_, bytes, topic) in used {
                if total <= self.shared.limits.rings_bytes {
                    break;
                }
                topic.tail().ring.clear();
                total -= bytes;
            }
        }
    }

    /// Lets go of what retention takes: raises `oldest` in the store and in memory, and tells the readers that
    /// stand below it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn raise_oldest(&self, topic: &Arc<Topic>, oldest: Seq) -> Result<(), StoreError> {
        let no = topic.no;
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            Ok((log::raise_oldest(connection, no, oldest)?, Vec::new()))
        };
        if let (Some(raised), _) = self.transact(act).await? {
            let mut tail = topic.tail();
            tail.oldest = tail.oldest.max(raised);
            tail.ring.forget_below(raised);
            drop(tail);
            self.wake_all(topic);
        }
        Ok(())
    }

    /// The clock that events are stamped with.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }
}

/// What an offer takes of the byte budgets: never more than there is of them, or it would wait for ever.
fn weight(offer: &Offer, limits: &Limits) -> u32 {
    let most = limits.queue.bytes.min(limits.queues_bytes);
    u32::try_from(offer.bytes().min(most)).unwrap_or(u32::MAX)
}

impl Writer {
    /// Writes what was offered, then ends the thread. Blocks.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the writer ended by a panic");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ends the queue with the writer, also when that ends by a panic: nobody waits for ever.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What goes into one commit.
#[derive(Default)]
struct Group {
    jobs: Vec<Job>,
    batches: Vec<(Arc<Topic>, Vec<Offer>)>,
    stop: bool,
}

/// The events of one task in one group, numbered.
struct Numbering {
    topic: Arc<Topic>,
    head: Seq,
    bytes: u64,
    builder: Builder,
    at: Timestamp,
    segments: Vec<Arc<Segment>>,
    /// The runs whose state this group changes: as they are now, or over.
    staged: HashMap<RunId, Option<Run>>,
    numbered: Vec<Numbered>,
}

/// What of a numbered event is needed after the commit.
struct Numbered {
    run: Option<RunId>,
    seq: Seq,
    at: Timestamp,
    kind: Box<str>,
    mark: Mark,
    /// The event's text where the fold keeps it.
    text: Option<String>,
}

impl Shared {
    fn write_until_stopped(&self, connection: &Connection) {
        let mut kept: Vec<(Arc<Topic>, Vec<Offer>)> = Vec::new();
        let mut pause = RETRY.0;
        loop {
            let waiting = match (kept.is_empty(), self.is_writable()) {
                (false, _) => Some(pause),
                (true, false) => Some(RETRY.1),
                (true, true) => None,
            };
            let group = self.collect(std::mem::take(&mut kept), waiting);
            let stop = group.stop;
            let unsaved = self.write(connection, group);
            if unsaved.is_empty() {
                pause = RETRY.0;
                if stop {
                    break;
                }
            } else if self.is_stopping() {
                // Tried once more after the stop was asked for; a full disk must not keep the server alive.
                warn!(events = unsaved.iter().map(|(_, offers)| offers.len()).sum::<usize>(),
                    "stopping while the store cannot be written: these events are lost, nobody has seen them");
                break;
            } else {
                pause = (pause * 2).min(RETRY.1);
                kept = unsaved;
            }
        }
    }

    fn is_writable(&self) -> bool {
        *self.writable.borrow() == Writable::Yes
    }

    /// Finds out whether the store can be written again while nobody has anything to write: those who were told
    /// that it cannot should be told that it can.
    fn probe(&self, connection: &Connection) {
        let written = connection.execute(
            "INSERT INTO meta (key, value) VALUES ('probe', ?1)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [crate::clock::rfc3339(self.clock.now())],
        );
        if written.is_ok() {
            self.note_writable();
        }
    }

    fn is_stopping(&self) -> bool {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    /// Nothing is written any more. Whoever still waits is told: by the drop of what was queued, and by the
    /// closing of what they wait in front of.
    fn end(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.stop = true;
        inbox.jobs.clear();
        let mut lost = 0;
        for topic in inbox.ready.drain(..) {
            let mut queue = topic.queue.lock().unwrap_or_else(PoisonError::into_inner);
            lost += queue.offers.len();
            queue.offers.clear();
            queue.listed = false;
        }
        drop(inbox);
        if lost > 0 {
            warn!(events = lost, "the writer ended before these events were written; nobody has seen them");
        }
        self.queues_bytes.close();
        for topic in self.topics.read().unwrap_or_else(PoisonError::into_inner).values() {
            topic.close_queue();
        }
    }

    /// Waits for something to write. With `retry`, `kept` goes again at the latest after so long.
    fn collect(&self, kept: Vec<(Arc<Topic>, Vec<Offer>)>, retry: Option<Duration>) -> Group {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let idle = inbox.jobs.is_empty() && (inbox.ready.is_empty() || !kept.is_empty());
            if !idle || inbox.stop {
                break;
            }
            match retry {
                Some(pause) => {
                    inbox = self.bell.wait_timeout(inbox, pause).unwrap_or_else(PoisonError::into_inner).0;
                    break;
                }
                None => inbox = self.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let jobs = inbox.jobs.len().min(GROUP_JOBS);
        let mut group = Group { jobs: inbox.jobs.drain(..jobs).collect(), batches: kept, stop: false };
        // While a failed group waits, queues are left full: emitters wait in front of them.
        if group.batches.is_empty() {
            take_batches(&mut inbox, &mut group);
        }
        group.stop = inbox.stop && inbox.jobs.is_empty() && inbox.ready.is_empty();
        group
    }

    /// Commits a group, then tells everyone. Gives back the batches of a group that could not be saved.
    fn write(&self, connection: &Connection, group: Group) -> Vec<(Arc<Topic>, Vec<Offer>)> {
        let Group { jobs, batches, .. } = group;
        if jobs.is_empty() && batches.is_empty() {
            if !self.is_writable() {
                self.probe(connection);
            }
            return batches;
        }
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numberings = Numberings::default();
        let mut jobs = jobs.into_iter();
        let mut answers = Vec::new();
        let mut acks = Vec::new();
        let written = (|| -> Result<(), StoreError> {
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            for job in jobs.by_ref() {
                run_job(connection, &mut numberings, job, &mut answers)?;
            }
            for (topic, offers) in &batches {
                let numbering = numberings.of(topic);
                for offer in offers {
                    acks.push(numbering.number(connection, offer)?);
                }
            }
            for numbering in &mut numberings.all {
                numbering.finish(connection)?;
            }
            failpoint::hit("in-commit");
            connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        })();
        if let Err(error) = written {
            // A failed COMMIT may leave the transaction open or may have ended it: both are fine.
            let _ = connection.execute_batch("ROLLBACK");
            drop(gate);
            for (answer, _) in answers {
                answer(Err(error.clone()));
            }
            for untried in jobs {
                untried.refuse(&error);
            }
            self.note_unwritable(&error);
            return batches;
        }
        drop(gate);
        failpoint::hit("committed-not-woken");
        self.note_writable();
        for numbering in numberings.all {
            self.show(numbering);
        }
        for (answer, numbers) in answers {
            answer(numbers);
        }
        self.acknowledge(batches, acks);
        Vec::new()
    }

    fn show(&self, numbering: Numbering) {
        let Numbering { topic, segments, numbered, staged, .. } = numbering;
        let id = &topic.id;
        let changes_task = !staged.is_empty() || numbered.iter().any(|event| event.mark.state().is_some());
        let apply = |fold: &mut Fold| {
            for event in &numbered {
                let text = event.text.as_deref().unwrap_or_default();
                fold.apply(id, event.run, event.seq, event.at, &event.mark, text);
            }
        };
        topic.show(&self.connections, segments, apply, numbered.iter().map(|event| &*event.kind));
        if changes_task {
            self.changes.note(id);
        }
    }

    /// Gives the places in the queue back and tells those who wait for their numbers.
    fn acknowledge(&self, batches: Vec<(Arc<Topic>, Vec<Offer>)>, results: Vec<Result<Seq, Refused>>) {
        let mut results = results.into_iter();
        for (topic, offers) in batches {
            let (mut places, mut bytes) = (0, 0);
            for offer in offers {
                let result = results.next().unwrap_or(Err(Refused::Stopping));
                if !offer.is_from_reserve() {
                    places += 1;
                    bytes += weight(&offer, &self.limits) as usize;
                }
                if let Some(ack) = offer.ack {
                    let _ = ack.send(result);
                }
            }
            topic.slots.add_permits(places);
            topic.bytes.add_permits(bytes);
            self.queues_bytes.add_permits(bytes);
        }
    }

    fn note_unwritable(&self, error: &StoreError) {
        let why = error.to_string();
        let since = self.clock.now();
        self.writable.send_if_modified(|writable| {
            if *writable == Writable::Yes {
                error!(%why, "the store cannot be written; what is offered waits and is tried again");
                *writable = Writable::No { since, why };
                true
            } else {
                false
            }
        });
    }

    fn note_writable(&self) {
        self.writable.send_if_modified(|writable| {
            let changed = *writable != Writable::Yes;
            if changed {
                info!("the store can be written again");
                *writable = Writable::Yes;
            }
            changed
        });
    }
}

/// Fills the group from the queues, in turn; one that floods gets a share while others wait.
fn take_batches(inbox: &mut Inbox, group: &mut Group) {
    let (mut events, mut bytes) = (0, 0);
    for _ in 0..inbox.ready.len() {
        if events >= GROUP_EVENTS || bytes >= GROUP_BYTES {
            break;
        }
        let Some(topic) = inbox.ready.pop_front() else { break };
        let share = if inbox.ready.is_empty() && group.batches.is_empty() { 1 } else { FLOOD_SHARE };
        let most_events = (GROUP_EVENTS / share).min(GROUP_EVENTS - events);
        let most_bytes = (GROUP_BYTES / share).min(GROUP_BYTES - bytes);
        let mut queue = topic.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = take(&mut queue, most_events, most_bytes);
        events += taken.len();
        bytes += taken.iter().map(Offer::bytes).sum::<usize>();
        queue.listed = !queue.offers.is_empty();
        let again = queue.listed;
        drop(queue);
        if again {
            inbox.ready.push_back(Arc::clone(&topic));
        }
        if !taken.is_empty() {
            group.batches.push((topic, taken));
        }
    }
}

fn take(queue: &mut Queue, most_events: usize, most_bytes: usize) -> Vec<Offer> {
    let mut bytes = 0;
    let count = queue
        .offers
        .iter()
        .take(most_events)
        .take_while(|offer| {
            bytes += offer.bytes();
            bytes <= most_bytes
        })
        .count()
        .max(1)
        .min(queue.offers.len());
    queue.offers.drain(..count).collect()
}

/// Runs one job in a savepoint: what it fails at is undone and answered, the group goes on. An error here means
/// that the store has ended the transaction, as it does when the disk is full.
fn run_job(
    connection: &Connection,
    numberings: &mut Numberings,
    job: Job,
    answers: &mut Vec<(Answer, Result<Vec<Seq>, StoreError>)>,
) -> Result<(), StoreError> {
    if let Err(error) = connection.prepare_cached("SAVEPOINT job").and_then(|mut begin| begin.execute([])) {
        let error = StoreError::from(error);
        job.refuse(&error);
        return Err(error);
    }
    // A panic in a job undoes that job; its asker is told by the drop of the answer.
    let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (job.act)(Ok(connection))));
    let Ok(Acted { offers, answer }) = acted else {
        error!("a change of state ended by a panic; it is undone");
        return undo_job(connection);
    };
    let Ok(offers) = offers else {
        answers.push((answer, Ok(Vec::new())));
        return undo_job(connection);
    };
    let before = numberings.marks(&offers);
    let numbered = offers.iter().try_fold(Vec::with_capacity(offers.len()), |mut numbers, (topic, offer)| {
        numbers.extend(numberings.of(topic).number(connection, offer)?.ok());
        Ok::<_, StoreError>(numbers)
    });
    if numbered.is_err() {
        numberings.back_to(before);
        answers.push((answer, numbered));
        return undo_job(connection);
    }
    answers.push((answer, numbered));
    connection.prepare_cached("RELEASE job")?.execute([])?;
    Ok(())
}

fn undo_job(connection: &Connection) -> Result<(), StoreError> {
    if connection.is_autocommit() {
        return Err(StoreError::NotWritable("the transaction was ended by the store".to_owned()));
    }
    Ok(connection.execute_batch("ROLLBACK TO job; RELEASE job")?)
}

/// The tasks that a group touches, in the order in which it came to them.
#[derive(Default)]
struct Numberings {
    all: Vec<Numbering>,
    index: HashMap<TaskNo, usize>,
}

impl Numberings {
    fn of(&mut self, topic: &Arc<Topic>) -> &mut Numbering {
        let index = *self.index.entry(topic.no).or_insert_with(|| {
            self.all.push(Numbering::new(Arc::clone(topic)));
            self.all.len() - 1
        });
        &mut self.all[index]
    }

    /// Where the tasks of a job stand before it.
    fn marks(&mut self, offers: &[(Arc<Topic>, Offer)]) -> HashMap<TaskNo, Before> {
        let mut marks = HashMap::new();
        for (topic, offer) in offers {
            let numbering = self.of(topic);
            let before: &mut Before = marks.entry(topic.no).or_insert_with(|| numbering.before());
            if let Some(run) = offer.run {
                before.staged.insert(run, numbering.staged.get(&run).cloned());
            }
        }
        marks
    }

    /// Takes back what a job numbered.
    fn back_to(&mut self, marks: HashMap<TaskNo, Before>) {
        for (task, before) in marks {
            if let Some(index) = self.index.get(&task) {
                self.all[*index].back_to(before);
            }
        }
    }
}

/// Where a numbering stood before a job.
struct Before {
    head: Seq,
    bytes: u64,
    at: Timestamp,
    segments: usize,
    /// How many events of the segment under way were there.
    building: usize,
    numbered: usize,
    /// The runs that the job's events are of, as far as this group had changed them.
    staged: HashMap<RunId, Option<Option<Run>>>,
}

impl Numbering {
    fn new(topic: Arc<Topic>) -> Self {
        let tail = topic.tail();
        let (head, bytes) = (tail.head, tail.bytes);
        drop(tail);
        Self {
            topic,
            head,
            bytes,
            builder: Builder::new(head.next()),
            at: Timestamp::UNIX_EPOCH,
            segments: Vec::new(),
            staged: HashMap::new(),
            numbered: Vec::new(),
        }
    }

    fn before(&self) -> Before {
        Before {
            head: self.head,
            bytes: self.bytes,
            at: self.at,
            segments: self.segments.len(),
            building: self.builder.len(),
            numbered: self.numbered.len(),
            staged: HashMap::new(),
        }
    }

    fn back_to(&mut self, before: Before) {
        let Before { head, bytes, at, segments, building, numbered, staged } = before;
        (self.head, self.bytes, self.at) = (head, bytes, at);
        for (run, before) in staged {
            match before {
                Some(before) => self.staged.insert(run, before),
                None => self.staged.remove(&run),
            };
        }
        // What was under way then is the beginning of the first segment that was cut since.
        if let Some(cut) = self.segments.get(segments) {
            self.builder = Builder::again(cut);
        }
        self.builder.truncate(building);
        self.segments.truncate(segments);
        self.numbered.truncate(numbered);
    }

    /// Gives an event its number and puts it into the segment under way.
    fn number(&mut self, connection: &Connection, offer: &Offer) -> Result<Result<Seq, Refused>, StoreError> {
        if self.topic.is_closed() {
            return Ok(Err(Refused::LogGone));
        }
        let begins = offer.mark.state() == Some(State::Queued);
        if let Some(run) = offer.run
            && !begins
            && !self.is_open(run)
        {
            return Ok(Err(Refused::RunOver));
        }
        let seq = self.head.next();
        let mut text = String::with_capacity(offer.data.len() + 192);
        log::write_event(&mut text, &self.topic.id, offer, &offer.data, seq);
        if let Some(whole) = &offer.whole {
            let mut event = String::with_capacity(whole.len() + 192);
            log::write_event(&mut event, &self.topic.id, offer, whole, seq);
            log::keep_whole(connection, self.topic.no, seq, &event)?;
        }
        if !self.builder.takes(text.len()) {
            self.cut_segment(connection)?;
        }
        self.builder.push(|items| items.push_str(&text));
        self.head = seq;
        self.bytes += text.len() as u64;
        self.at = self.at.max(offer.at);
        let kept = matches!(offer.mark, Mark::Opens(_)).then_some(text);
        let event = Numbered {
            run: offer.run,
            seq,
            at: offer.at,
            kind: offer.kind.clone(),
            mark: offer.mark.clone(),
            text: kept,
        };
        self.stage(connection, &event)?;
        self.numbered.push(event);
        Ok(Ok(seq))
    }

    fn is_open(&self, run: RunId) -> bool {
        match self.staged.get(&run) {
            Some(staged) => staged.is_some(),
            None => self.topic.tail().fold.run(run).is_some(),
        }
    }

    /// Writes the run whose state an event changes, as the fold will have it after the commit.
    fn stage(&mut self, connection: &Connection, event: &Numbered) -> Result<(), StoreError> {
        let (Some(id), Some(_)) = (event.run, event.mark.state()) else { return Ok(()) };
        let before = match self.staged.remove(&id) {
            Some(staged) => staged,
            None => self.topic.tail().fold.run(id).cloned(),
        };
        let mut fold = Fold::of_runs(before);
        if let Some(run) = fold.apply(&self.topic.id, Some(id), event.seq, event.at, &event.mark, "") {
            log::project_run(connection, self.topic.no, &run)?;
            self.staged.insert(id, (!run.state.is_ended()).then_some(run));
        }
        Ok(())
    }

    fn cut_segment(&mut self, connection: &Connection) -> Result<(), StoreError> {
        if let Some(segment) = self.builder.finish() {
            log::append(connection, self.topic.no, &segment, self.at, self.bytes)?;
            self.segments.push(Arc::new(segment));
        }
        Ok(())
    }

    fn finish(&mut self, connection: &Connection) -> Result<(), StoreError> {
        self.cut_segment(connection)?;
        if !self.numbered.is_empty() {
            let is_there = log::set_head(connection, self.topic.no, self.head, self.bytes)?;
            if !is_there {
                // The task was deleted by a later job of this group: its events go with it.
                log::delete(connection, self.topic.no)?;
            }
        }
        Ok(())
    }
}

/// Moves the log into the file beside a steady writer. Runs on its own thread with its own connection, so that
/// the writer does not pay for it.
///
/// A passive checkpoint beside a steady writer never reaches the end: the last part is done while the writer
/// pauses. Above [`Checkpointer::HIGH`] pages are held back too, until a truncating one succeeded.
#[derive(Debug)]
pub struct Checkpointer {
    connection: Connection,
    wal: std::path::PathBuf,
    /// The permits for pages that are held back, from one look to the next.
    held: Mutex<Vec<OwnedSemaphorePermit>>,
}

impl Checkpointer {
    /// Below this nothing is done: 4 MiB.
    pub const LOW: u64 = 4 * 1024 * 1024;
    /// Above this readers are kept away: 64 MiB.
    pub const HIGH: u64 = 64 * 1024 * 1024;

    /// A checkpointer for the store's file.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn new(store: &Store) -> rusqlite::Result<Self> {
        let mut wal = store.path().as_os_str().to_owned();
        wal.push("-wal");
        let connection = crate::store::open_checkpointer(store.path())?;
        Ok(Self { connection, wal: wal.into(), held: Mutex::default() })
    }

    /// Looks at the size of the log beside the file and does what is due.
    pub fn tick(&self, store: &Store, publisher: &Publisher) {
        let size = std::fs::metadata(&self.wal).map_or(0, |meta| meta.len());
        if size < Self::LOW {
            self.held().clear();
            return;
        }
        let passive = self.checkpoint("PASSIVE");
        if size < Self::HIGH {
            self.held().clear();
            if passive.is_some_and(|done| done.frames > done.moved) {
                publisher.while_quiet(|| self.checkpoint("RESTART"));
            }
            return;
        }
        // All that are free now; those in use come back within a page, and then nobody else gets them.
        let permits = store.permits();
        let free = u32::try_from(permits.available_permits()).unwrap_or(u32::MAX);
        if let Ok(free) = Arc::clone(permits).try_acquire_many_owned(free) {
            self.held().push(free);
        }
        let truncated = publisher.while_quiet(|| self.checkpoint("TRUNCATE"));
        if truncated.is_some_and(|done| !done.busy) {
            self.held().clear();
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<OwnedSemaphorePermit>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checkpoint(&self, mode: &str) -> Option<Checkpoint> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let result = self.connection.query_row(&sql, [], |row| {
            Ok(Checkpoint { busy: row.get(0)?, frames: row.get(1)?, moved: row.get(2)? })
        });
        result.inspect_err(|error| warn!(%error, mode, "the checkpoint failed; it is tried again")).ok()
    }
}

/// How far a checkpoint came.
struct Checkpoint {
    /// A reader or the writer was in its way.
    busy: bool,
    /// Frames in the log.
    frames: i64,
    /// Frames that are in the file now.
    moved: i64,
}
