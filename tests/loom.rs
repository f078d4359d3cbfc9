//! Every interleaving of the stream's two orders. Writer: commit → ring and head → look up → wake. Reader: enter
//! the map → clear the flag → read the head → wait.
//!
//! A reader that sleeps while an event is due is a deadlock here, which ends the model. No heartbeat wakes
//! anyone in these models: that it does so in the server is a net below, not what the order stands on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where by panicking")]

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Waker};

use loom::future::block_on;
use loom::thread;
use rejoin::event::{Gen, Seq, TaskId};
use rejoin::record::Fold;
use rejoin::store::TaskNo;
use rejoin::stream::forwarder::{Connections, Forwarder, Peer, Watcher};
use rejoin::stream::ring::Limits;
use rejoin::stream::segment::{Builder, Segment};
use rejoin::stream::topic::{QueueLimits, Start, Topic};

/// One task, its watchers, and nothing in its log yet.
struct Model {
    connections: Connections,
    topic: Topic,
}

impl Model {
    fn new() -> Arc<Self> {
        let start = Start { generation: Gen(1), oldest: Seq(1), head: Seq(0), bytes: 0, fold: Fold::default() };
        let ring = Limits { events: 16, bytes: 1 << 16, unread_bytes: 1 << 16 };
        let topic = Topic::new(task(), TaskNo(1), start, ring, QueueLimits { events: 16, bytes: 1 << 16 });
        Arc::new(Self { connections: Connections::new(), topic })
    }

    fn enter(&self, peer: &Arc<Peer>, sub: u32) {
        self.connections.insert(&task(), Arc::new(Watcher::new(Arc::clone(peer), sub, Seq(1))));
    }

    /// What the writer does after a commit: the very code.
    fn show(&self, seq: u64) {
        self.topic.show(&self.connections, [segment(seq)], |_| (), ["thought"]);
    }

    /// A connection that has seen nothing and wants every event up to `last`, in the order of the live loop:
    /// enter, then again and again pull what is due, and sleep.
    fn read_through(&self, peer: &Arc<Peer>, last: u64) {
        self.enter(peer, 1);
        let mut next = Seq(1);
        loop {
            while self.topic.head() >= next {
                next = self.pull(next);
            }
            if next > Seq(last) {
                return;
            }
            block_on(poll_fn(|context| peer.wake.poll_raised(context)));
        }
    }

    fn pull(&self, next: Seq) -> Seq {
        let tail = self.topic.tail();
        let held = tail.ring.holding(next).expect("whoever sees the head finds the event");
        held.last().next()
    }
}

fn task() -> TaskId {
    "a".parse().unwrap()
}

fn peer(id: u64) -> Arc<Peer> {
    Arc::new(Peer::new(id, "u".into(), "c".into()))
}

fn segment(seq: u64) -> Arc<Segment> {
    let mut builder = Builder::new(Seq(seq));
    builder.push(|items| items.push_str("{}"));
    Arc::new(builder.finish().unwrap())
}

/// Every interleaving with at most three switches away from a thread that could have gone on.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn t_02_a_reader_never_sleeps_with_an_event_due() {
    explore(|| {
        let model = Model::new();
        let reader = thread::spawn({
            let model = Arc::clone(&model);
            move || model.read_through(&peer(1), 2)
        });
        model.show(1);
        model.show(2);
        reader.join().unwrap();
    });
}

#[test]
fn t_06_a_reader_that_enters_between_two_events_sees_each_of_them_once() {
    explore(|| {
        let model = Model::new();
        model.show(1);
        let writer = thread::spawn({
            let model = Arc::clone(&model);
            move || model.show(2)
        });
        model.read_through(&peer(1), 2);
        writer.join().unwrap();
    });
}

#[test]
fn spk_17_a_watcher_that_enters_while_an_empty_topic_is_removed_is_not_lost() {
    explore(|| {
        let model = Model::new();
        let (old, new) = (peer(1), peer(2));
        model.enter(&old, 1);
        let leaver = thread::spawn({
            let model = Arc::clone(&model);
            move || model.connections.remove(&task(), 1, 1)
        });
        model.enter(&new, 1);
        leaver.join().unwrap();
        let mut held = Forwarder::default();
        model.connections.get_or_refresh_forwarder(&task(), &mut held);
        held.forward(&task(), "thought");
        let mut context = Context::from_waker(Waker::noop());
        assert!(new.wake.poll_raised(&mut context).is_ready(), "the new watcher is in the map");
        assert!(old.wake.poll_raised(&mut context).is_pending(), "the old one is not");
    });
}

#[test]
fn t_03_an_old_connection_that_leaves_late_takes_no_event_from_the_new_one() {
    explore(|| {
        let model = Model::new();
        let old = peer(1);
        model.enter(&old, 1);
        let reader = thread::spawn({
            let model = Arc::clone(&model);
            move || model.read_through(&peer(2), 1)
        });
        let leaver = thread::spawn({
            let model = Arc::clone(&model);
            move || {
                old.close();
                model.connections.remove(&task(), 1, 1);
            }
        });
        model.show(1);
        reader.join().unwrap();
        leaver.join().unwrap();
    });
}

#[test]
fn t_03_the_last_to_leave_takes_the_topic_and_nobody_who_comes_later_is_missed() {
    explore(|| {
        let model = Model::new();
        model.enter(&peer(1), 1);
        let leavers = thread::spawn({
            let model = Arc::clone(&model);
            move || {
                model.connections.remove(&task(), 1, 1);
                model.show(1);
            }
        });
        model.read_through(&peer(2), 1);
        leavers.join().unwrap();
        model.connections.remove(&task(), 2, 1);
        assert!(!model.connections.has_watchers(&task()), "an empty topic leaves the map");
    });
}
