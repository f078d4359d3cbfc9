//! How events and changes of state get to the writer: offered behind bounded queues, told when they are saved.

use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::warn;

use super::batch::{Batch, Producer, Turn};
use super::changes::Changes;
use super::ends::Decide;
use super::forwarder::Connections;
use super::intake::{Acted, Intake, Job, places, weight};
use super::log;
use super::topic::{Offer, Refused, Start, Topic, Work};
use super::writer::{Ending, Rounds, Stepper, Writer};

pub use super::intake::{Limits, Writable};
use crate::clock::Clock;
use crate::event::{Body, Gen, RunId, Seq, TaskId};
use crate::metrics::Metrics;
use crate::store::{StoreError, TaskNo};

/// How long [`Publisher::save`] waits for the word that the store can be written again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Offers events to the writer and asks it for changes of state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Intake>,
}

impl Publisher {
    /// Starts the writer on its own thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(connection: Connection, limits: Limits, clock: Clock) -> anyhow::Result<(Self, Writer)> {
        let publisher = Self::new(limits, clock);
        let shared = Arc::clone(&publisher.shared);
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let ending = Ending(shared);
                ending.0.write_until_stopped(&connection);
            }
        })?;
        Ok((publisher, Writer { shared, thread: Some(thread) }))
    }

    /// The same with a writer that has no thread: it writes when it is told to.
    pub fn stepped(connection: Connection, limits: Limits, clock: Clock) -> (Self, Stepper) {
        let publisher = Self::new(limits, clock);
        let ending = Ending(Arc::clone(&publisher.shared));
        (publisher, Stepper { ending, connection, rounds: Rounds::new() })
    }

    fn new(limits: Limits, clock: Clock) -> Self {
        let shared = Intake {
            inbox: Mutex::default(),
            bell: Condvar::new(),
            rung: Arc::default(),
            topics: RwLock::default(),
            connections: Connections::new(),
            writable: watch::Sender::new(Writable::Yes),
            changes: Changes::default(),
            gate: Mutex::new(()),
            ends: Arc::default(),
            queues_bytes: Arc::new(Semaphore::new(limits.queues_bytes)),
            rings_bytes: AtomicIsize::new(0),
            crowded: watch::Sender::new(()),
            limits,
            clock,
            metrics: Metrics::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Says who decides what follows the end of a run; to be said once, before any run ends. What follows is saved
    /// in the transaction of the end.
    pub fn on_end(&self, decide: Decide) {
        self.shared.ends.set(decide);
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

    /// Closes the stream of a task that `act` takes the name from. What comes behind it is refused, already in the very
    /// group, and what that numbered before is not shown. The rows, the task's own at last, go in steps of their own
    /// ([`log::delete_step`]): nothing finds them any more.
    ///
    /// # Errors
    /// What `act` gave, or a [`StoreError`] when the store cannot be written now.
    pub async fn delete<T, E, F>(&self, topic: &Arc<Topic>, act: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + From<rusqlite::Error> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let act = move |connection: &Connection| -> Result<_, E> { Ok((act(connection)?, Vec::new())) };
        let (value, _) = self.ask(act, |_| None, Some(Arc::clone(topic))).await?;
        self.forget(topic);
        Ok(value)
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
        self.enqueue(topic, Work::One(offer)).await
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
            self.push(topic, Work::One(offer))?;
        } else {
            self.enqueue(topic, Work::One(offer)).await?;
        }
        saved.await.map_err(|_| Refused::Stopping)?
    }

    /// Takes the turn to speak for a run that is fed from elsewhere: whoever had it is fenced. When this returns,
    /// [`Turn::saved`] is exact: nothing of an older turn is saved any more.
    ///
    /// # Errors
    /// When the store cannot be written now.
    pub async fn take_turn(&self, producer: &Arc<Producer>) -> Result<Turn, StoreError> {
        let turn = producer.next_turn();
        // What comes after this is refused.
        self.settled().await?;
        Ok(turn)
    }

    /// Waits for what the writer had before this: it is saved then, and memory says the same as the file. In between
    /// the file is ahead, where rows were deleted too.
    ///
    /// # Errors
    /// When the store cannot be written now.
    pub async fn settled(&self) -> Result<(), StoreError> {
        self.transact(|_| Ok::<_, StoreError>(((), Vec::new()))).await.map(drop)
    }

    /// Offers a batch with the producer's number of its last event, and waits for places in the queue. The answer,
    /// the number of its last event once all of it is saved, comes by the channel: the next batch can be made
    /// meanwhile. All of it is saved, or nothing.
    ///
    /// # Errors
    /// [`Refused`] when the log is gone or the server is stopping; by the channel also when the run is over or
    /// the turn was taken.
    pub async fn offer_batch(
        &self,
        topic: &Arc<Topic>,
        mut batch: Batch,
        turn: &Turn,
        last_n: u64,
    ) -> Result<oneshot::Receiver<Result<Seq, Refused>>, Refused> {
        let (ack, saved) = oneshot::channel();
        batch.turn = Some(turn.through(last_n));
        batch.ack = Some(ack);
        self.enqueue(topic, Work::Many(batch)).await?;
        Ok(saved)
    }

    async fn enqueue(&self, topic: &Arc<Topic>, work: Work) -> Result<(), Refused> {
        let bytes = weight(work.bytes(), &self.shared.limits);
        let places = places(work.events(), &self.shared.limits);
        // The semaphores are closed with the log, or with the writer.
        let closed = |_| if topic.is_closed() { Refused::LogGone } else { Refused::Stopping };
        // Guards until the offer is in the queue: whoever gives up waiting leaves no place taken behind.
        let place = topic.slots.acquire_many(places).await.map_err(closed)?;
        let of_task = topic.bytes.acquire_many(bytes).await.map_err(closed)?;
        let of_all = self.shared.queues_bytes.acquire_many(bytes).await.map_err(closed)?;
        self.push(topic, work)?;
        // From here on they are the work's; the writer gives them back.
        place.forget();
        of_task.forget();
        of_all.forget();
        Ok(())
    }

    fn push(&self, topic: &Arc<Topic>, work: Work) -> Result<(), Refused> {
        if topic.is_closed() {
            return Err(Refused::LogGone);
        }
        // Inbox, then queue, as the writer does: what is taken before the stop is written before the end.
        let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.stop {
            return Err(Refused::Stopping);
        }
        let mut queue = topic.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.work.push_back(work);
        if !std::mem::replace(&mut queue.listed, true) {
            inbox.ready.push_back(Arc::clone(topic));
            self.shared.ring();
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
        self.change(act, |_| None).await
    }

    /// As [`transact`](Self::transact) for what has happened already and must be written down: while the store cannot be
    /// written it waits, and has made again and tried again what `act` makes.
    ///
    /// # Errors
    /// As for [`transact`](Self::transact), but for a store that cannot be written now.
    pub async fn save<T, F>(&self, mut act: impl FnMut() -> F) -> Result<(T, Vec<Seq>), StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<(T, Vec<(Arc<Topic>, Offer)>), StoreError> + Send + 'static,
    {
        loop {
            let mut writable = self.writable();
            match self.transact(act()).await {
                Err(StoreError::NotWritable(_)) => {
                    // The writer says when it can write again; asked again every second all the same, as nothing else
                    // may be there to be written.
                    let _ = tokio::time::timeout(ASK_AGAIN, writable.changed()).await;
                }
                done => return done,
            }
        }
    }

    /// As [`transact`](Self::transact); `follow` says what brings memory up to what was saved. That is done after
    /// the commit, in the order of the changes, and before anyone is shown an event of it.
    ///
    /// # Errors
    /// As for [`transact`](Self::transact).
    pub async fn change<T, E, F, M>(&self, act: F, follow: M) -> Result<(T, Vec<Seq>), E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<(T, Vec<(Arc<Topic>, Offer)>), E> + Send + 'static,
        M: FnOnce(&T) -> Option<Box<dyn FnOnce() + Send>> + Send + 'static,
    {
        self.ask(act, follow, None).await
    }

    /// Hands the writer a change of state, with the stream that ends by it.
    async fn ask<T, E, F, M>(&self, act: F, follow: M, ends: Option<Arc<Topic>>) -> Result<(T, Vec<Seq>), E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<(T, Vec<(Arc<Topic>, Offer)>), E> + Send + 'static,
        M: FnOnce(&T) -> Option<Box<dyn FnOnce() + Send>> + Send + 'static,
    {
        let (sender, answer) = oneshot::channel::<Result<(T, Vec<Seq>), E>>();
        let job = Job {
            act: Box::new(move |connection| match connection.map_err(E::from).and_then(act) {
                Ok((value, offers)) => Acted {
                    offers: Ok(offers),
                    ends,
                    follow: follow(&value),
                    answer: Box::new(move |saved| {
                        let _ = sender.send(saved.map(|numbers| (value, numbers)).map_err(E::from));
                    }),
                },
                Err(error) => Acted {
                    offers: Err(()),
                    ends: None,
                    follow: None,
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
            self.shared.ring();
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

    /// Rung when all rings together take more than they may: time to [`tidy`](Self::tidy).
    pub fn crowded(&self) -> watch::Receiver<()> {
        self.shared.crowded.subscribe()
    }

    /// Gives back memory: rings of tasks that fell quiet, and the least recently used where all rings together
    /// take too much. O(tasks log tasks); called from time to time, and when they are too much.
    pub fn tidy(&self) {
        let topics = self.topics();
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
            // Some more than has to go, so that not every event from here on calls for the next round.
            let enough = self.shared.limits.rings_bytes / 8 * 7;
            used.sort_by_key(|(last, ..)| *last);
            for (_, bytes, topic) in used {
                if total <= enough {
                    break;
                }
                topic.tail().ring.clear();
                total -= bytes;
            }
        }
        // What the writer added meanwhile is counted the next time.
        self.shared.rings_bytes.store(total.cast_signed(), Ordering::Relaxed);
    }

    /// Lets go of what retention takes: raises `oldest` in the store and in memory, in steps that no event waits for
    /// long, and tells the readers that stand below it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn raise_oldest(&self, topic: &Arc<Topic>, oldest: Seq) -> Result<(), StoreError> {
        while !self.raise_oldest_step(topic, oldest).await? {}
        Ok(())
    }

    /// One step of [`raise_oldest`](Self::raise_oldest); true for the last.
    async fn raise_oldest_step(&self, topic: &Arc<Topic>, oldest: Seq) -> Result<bool, StoreError> {
        let no = topic.no;
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            Ok((log::raise_oldest(connection, no, oldest)?, Vec::new()))
        };
        let (cut, publisher) = (Arc::clone(topic), self.clone());
        let follow = move |raised: &Option<log::Raised>| -> Option<Box<dyn FnOnce() + Send>> {
            let raised = (*raised)?;
            Some(Box::new(move || {
                let mut tail = cut.tail();
                tail.oldest = tail.oldest.max(raised.oldest);
                tail.ring.forget_below(raised.oldest);
                drop(tail);
                if raised.done {
                    publisher.wake_all(&cut);
                }
            }))
        };
        let (raised, _) = self.change(act, follow).await?;
        Ok(raised.is_none_or(|raised| raised.done))
    }

    /// Gives a log a new id, once: a cursor beyond its end shows that it lost its end, and the numbers that come
    /// next must not be taken for those that were seen. `seen` is the id that was looked at; gives the one that is
    /// in force then, or none where the task was deleted meanwhile. No event that is numbered after this is shown under
    /// the old id.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn renew(&self, topic: &Arc<Topic>, seen: Gen) -> Result<Option<Gen>, StoreError> {
        let now = topic.tail().generation;
        if now != seen {
            return Ok(Some(now));
        }
        let (fresh, no) = (Gen::random(), topic.no);
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            // Another may have renewed it since.
            let now = log::bounds(connection, no)?.map(|bounds| bounds.generation);
            if now == Some(seen) {
                log::set_generation(connection, no, fresh)?;
                return Ok((fresh, Vec::new()));
            }
            Ok((now.unwrap_or(seen), Vec::new()))
        };
        let (renewed, publisher) = (Arc::clone(topic), self.clone());
        let follow = move |generation: &Gen| -> Option<Box<dyn FnOnce() + Send>> {
            let generation = *generation;
            Some(Box::new(move || {
                let before = std::mem::replace(&mut renewed.tail().generation, generation);
                publisher.wake_all(&renewed);
                if before == generation {
                    return;
                }
                warn!(task = %renewed.id, old = %seen, new = %generation, "a watcher knew events beyond the end of this log: the log has a new id");
            }))
        };
        let (now, _) = self.change(act, follow).await?;
        // Deleted by a later job of the same group, the log was never anybody's under the new id.
        self.settled().await?;
        Ok((!topic.is_closed()).then_some(now))
    }

    /// The clock that events are stamped with.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The streams of all tasks.
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        self.shared.topics.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// How many events and bytes wait for the writer. O(tasks).
    pub fn waiting(&self) -> (usize, usize) {
        let Limits { queue, queues_bytes, .. } = &self.shared.limits;
        let events =
            self.topics().into_iter().map(|topic| queue.events.saturating_sub(topic.slots.available_permits()));
        (events.sum(), queues_bytes.saturating_sub(self.shared.queues_bytes.available_permits()))
    }
}
