//! Who is watching *now*: the map of live connections, and the forwarder that is refreshed from it before each
//! event. Nothing else knows the map.

use std::sync::Arc;

use tracing::{debug, info};

use super::sync::{AtomicBool, AtomicU64, Ordering};
use super::wake::Wake;
use crate::event::{Seq, TaskId};

/// A live connection, as the stream knows it: who it is, and how it is woken.
#[derive(Debug)]
pub struct Peer {
    /// Its number; never given twice while the server lives.
    pub id: u64,
    /// The name of its credential.
    pub user: Arc<str>,
    /// The page load or program that it belongs to.
    pub client: Arc<str>,
    /// Wakes its task.
    pub wake: Wake,
    closed: AtomicBool,
}

impl Peer {
    /// A peer that is live.
    pub fn new(id: u64, user: Arc<str>, client: Arc<str>) -> Self {
        Self { id, user, client, wake: Wake::new(), closed: AtomicBool::new(false) }
    }

    /// Says that nothing can be sent to it any more. It leaves the map on its own.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// One subscription of one connection.
#[derive(Debug)]
pub struct Watcher {
    /// The connection.
    pub peer: Arc<Peer>,
    /// The subscription's number within it.
    pub sub: u32,
    /// The next event it wants: read by the writer to keep in the ring what is still unread.
    next: AtomicU64,
}

impl Watcher {
    /// A watcher that wants `next` first.
    pub fn new(peer: Arc<Peer>, sub: u32, next: Seq) -> Self {
        Self { peer, sub, next: AtomicU64::new(next.0) }
    }

    /// The next event it wants.
    pub fn next(&self) -> Seq {
        Seq(self.next.load(Ordering::Relaxed))
    }

    /// Notes the next event it wants.
    pub fn set_next(&self, next: Seq) {
        self.next.store(next.0, Ordering::Relaxed);
    }
}

/// The watchers of one task.
#[derive(Debug, Default)]
struct Topic {
    /// Grows with every change of any topic: a list that was emptied and made again is not mistaken for the old.
    version: u64,
    /// The version with which the newest came in; it stands last.
    entered: u64,
    /// With the number of the connection beside each, so that one is found without a look at all of them.
    watchers: Vec<(u64, Arc<Watcher>)>,
}

/// What the writer holds for a task between two events: who was watching when it last looked.
#[derive(Debug, Default)]
pub struct Forwarder {
    version: u64,
    watchers: Vec<Arc<Watcher>>,
    /// Whether anyone ever watched through it: a later newcomer is a reconnection (SPK-09).
    ever: bool,
}

impl Forwarder {
    /// Wakes every live watcher. Never waits, and never touches a closed one (T-34).
    pub fn forward(&self, task: &TaskId, kind: &str) {
        for watcher in self.watchers.iter() {
            if watcher.peer.is_closed() {
                let user = &watcher.peer.user;
                let connection = watcher.peer.id;
                debug!(target: "rejoin::delivery", connection, %user, %task, kind, "WebSocket closed for user={user}, chat={task} - skipping {kind} message");
            } else {
                watcher.peer.wake.raise();
            }
        }
    }

    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }
}

/// The live connections of all tasks.
#[derive(Debug, Default)]
pub struct Connections {
    topics: map::Map<Topic>,
    versions: AtomicU64,
}

impl Connections {
    /// An empty map.
    pub fn new() -> Self {
        Self { topics: map::Map::default(), versions: AtomicU64::new(0) }
    }

    /// Puts a watcher in, under the guard of its task's entry. O(1).
    pub fn insert(&self, task: &TaskId, watcher: Arc<Watcher>) {
        let version = self.next_version();
        self.topics.upsert(task, |topic| {
            topic.watchers.push((watcher.peer.id, watcher));
            (topic.version, topic.entered) = (version, version);
        });
    }

    /// Takes a watcher out, by its connection and sub: a connection that closes late never removes another
    /// (T-03). An empty topic goes with it, decided under the guard. O(watchers of the task).
    pub fn remove(&self, task: &TaskId, peer: u64, sub: u32) {
        let version = self.next_version();
        self.topics.update(task, |topic| {
            if let Some(at) = topic.watchers.iter().position(|(of, watcher)| *of == peer && watcher.sub == sub) {
                topic.watchers.remove(at);
                topic.version = version;
            }
        });
        self.topics.remove_if(task, |topic| topic.watchers.is_empty());
    }

    /// Who is live *now*? Called for every event, after its commit and before anyone is woken for it. One look
    /// into the map, O(1): nothing changed → the held forwarder is used on, nothing is allocated and nothing is
    /// logged; changed → it is refreshed, O(watchers of the task). True when it was.
    pub fn get_or_refresh_forwarder(&self, task: &TaskId, held: &mut Forwarder) -> bool {
        let fresh = self.topics.read(task, |topic| (topic.version != held.version).then(|| held.refresh(topic)));
        match fresh {
            // Nobody watches, and nobody did: stable.
            None if held.is_empty() => false,
            None => {
                *held = Forwarder { ever: true, ..Forwarder::default() };
                true
            }
            Some(None) => false,
            Some(Some(newcomer)) => {
                held.tell_of(task, newcomer);
                true
            }
        }
    }

    /// Whether anyone watches the task.
    pub fn has_watchers(&self, task: &TaskId) -> bool {
        self.topics.read(task, |_| ()).is_some()
    }

    /// The first event of the task that some live watcher still wants. O(watchers of the task).
    pub fn slowest(&self, task: &TaskId) -> Option<Seq> {
        self.topics.read(task, |topic| {
            let live = topic.watchers.iter().filter(|(_, watcher)| !watcher.peer.is_closed());
            live.map(|(_, watcher)| watcher.next()).min()
        })?
    }

    /// How many watch the task, and how far the last of them is behind its newest event. O(watchers of the task).
    pub fn lag(&self, task: &TaskId, head: Seq) -> (usize, u64) {
        let lag = self.topics.read(task, |topic| {
            let live = topic.watchers.iter().filter(|(_, watcher)| !watcher.peer.is_closed());
            live.fold((0, 0), |(count, most), (_, watcher)| {
                (count + 1, most.max((head.0 + 1).saturating_sub(watcher.next().0)))
            })
        });
        lag.unwrap_or((0, 0))
    }

    fn next_version(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Forwarder {
    /// Takes the list over; gives who came in since it last did.
    fn refresh(&mut self, topic: &Topic) -> Option<Arc<Peer>> {
        // By number, not by search: thousands may leave at once, and each event of a run passes here meanwhile.
        let newcomer = (topic.entered > self.version).then(|| topic.watchers.last()).flatten();
        self.version = topic.version;
        self.watchers.clear();
        self.watchers.extend(topic.watchers.iter().map(|(_, watcher)| Arc::clone(watcher)));
        newcomer.map(|(_, watcher)| Arc::clone(&watcher.peer))
    }

    fn tell_of(&mut self, task: &TaskId, newcomer: Option<Arc<Peer>>) {
        if let Some(peer) = newcomer {
            if self.ever {
                info!(connection = peer.id, user = %peer.user, %task, "Detected WebSocket reconnection for chat={task}, resuming updates");
            }
            let user = &peer.user;
            info!(connection = peer.id, %user, %task, "WebSocket forwarder created: task={task}, chat={task}, user={user}");
        }
        self.ever = true;
    }
}

#[cfg(not(feature = "loom"))]
mod map {
    //! `DashMap` behind four verbs, so that no guard leaves this file.

    use dashmap::DashMap;

    use crate::event::TaskId;

    #[derive(Debug)]
    pub(super) struct Map<T>(DashMap<TaskId, T>);

    impl<T> Default for Map<T> {
        fn default() -> Self {
            Self(DashMap::new())
        }
    }

    impl<T> Map<T> {
        pub(super) fn read<R>(&self, task: &TaskId, read: impl FnOnce(&T) -> R) -> Option<R> {
            self.0.get(task).map(|topic| read(&topic))
        }

        pub(super) fn upsert(&self, task: &TaskId, change: impl FnOnce(&mut T))
        where
            T: Default,
        {
            change(&mut self.0.entry(task.clone()).or_default());
        }

        pub(super) fn update(&self, task: &TaskId, change: impl FnOnce(&mut T)) {
            if let Some(mut topic) = self.0.get_mut(task) {
                change(&mut topic);
            }
        }

        pub(super) fn remove_if(&self, task: &TaskId, condition: impl FnOnce(&T) -> bool) {
            self.0.remove_if(task, |_, topic| condition(topic));
        }
    }
}

#[cfg(feature = "loom")]
mod map {
    //! The model of the map: every verb is one step under one lock, as it is under the guard of an entry.

    use std::collections::HashMap;

    use loom::sync::Mutex;

    use crate::event::TaskId;

    #[derive(Debug)]
    pub(super) struct Map<T>(Mutex<HashMap<TaskId, T>>);

    impl<T> Default for Map<T> {
        fn default() -> Self {
            Self(Mutex::new(HashMap::new()))
        }
    }

    #[expect(clippy::unwrap_used, reason = "the model never panics under its lock")]
    impl<T> Map<T> {
        pub(super) fn read<R>(&self, task: &TaskId, read: impl FnOnce(&T) -> R) -> Option<R> {
            self.0.lock().unwrap().get(task).map(read)
        }

        pub(super) fn upsert(&self, task: &TaskId, change: impl FnOnce(&mut T))
        where
            T: Default,
        {
            change(self.0.lock().unwrap().entry(task.clone()).or_default());
        }

        pub(super) fn update(&self, task: &TaskId, change: impl FnOnce(&mut T)) {
            if let Some(topic) = self.0.lock().unwrap().get_mut(task) {
                change(topic);
            }
        }

        pub(super) fn remove_if(&self, task: &TaskId, condition: impl FnOnce(&T) -> bool) {
            let mut map = self.0.lock().unwrap();
            if map.get(task).is_some_and(condition) {
                map.remove(task);
            }
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[expect(clippy::unwrap_used, reason = "the text is an id")]
    fn task() -> TaskId {
        "a".parse().unwrap()
    }

    fn watcher(peer: u64, sub: u32) -> Arc<Watcher> {
        Arc::new(Watcher::new(Arc::new(Peer::new(peer, "u".into(), "c".into())), sub, Seq(1)))
    }

    #[test]
    fn spk_08_the_same_connection_reuses_the_forwarder_and_another_replaces_it() {
        let connections = Connections::new();
        let mut held = Forwarder::default();
        assert!(!connections.get_or_refresh_forwarder(&task(), &mut held), "nobody: nothing to refresh");
        connections.insert(&task(), watcher(1, 1));
        assert!(connections.get_or_refresh_forwarder(&task(), &mut held));
        assert!(!connections.get_or_refresh_forwarder(&task(), &mut held), "unchanged: reused");
        connections.remove(&task(), 1, 1);
        connections.insert(&task(), watcher(2, 1));
        assert!(connections.get_or_refresh_forwarder(&task(), &mut held), "something is there, but another one");
    }

    #[test]
    fn t_03_an_old_connection_that_closes_late_does_not_remove_the_new_one() {
        let connections = Connections::new();
        connections.insert(&task(), watcher(1, 1));
        connections.insert(&task(), watcher(2, 1));
        connections.remove(&task(), 1, 1);
        connections.remove(&task(), 1, 1);
        let mut held = Forwarder::default();
        connections.get_or_refresh_forwarder(&task(), &mut held);
        assert_eq!(held.watchers.iter().map(|watcher| watcher.peer.id).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn t_34_a_closed_connection_is_not_woken() {
        let closed = watcher(1, 1);
        let connections = Connections::new();
        connections.insert(&task(), closed.clone());
        let mut held = Forwarder::default();
        connections.get_or_refresh_forwarder(&task(), &mut held);
        closed.peer.close();
        held.forward(&task(), "thought");
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(closed.peer.wake.poll_raised(&mut context).is_pending());
    }

    #[test]
    fn an_empty_topic_leaves_the_map() {
        let connections = Connections::new();
        connections.insert(&task(), watcher(1, 1));
        connections.insert(&task(), watcher(1, 2));
        connections.remove(&task(), 1, 1);
        assert!(connections.has_watchers(&task()));
        connections.remove(&task(), 1, 2);
        assert!(!connections.has_watchers(&task()));
    }
}
