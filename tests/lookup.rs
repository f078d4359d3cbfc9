//! What the look-up before each event costs, and what it says. A binary of its own: it counts allocations.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rejoin::event::{Seq, TaskId};
use rejoin::stream::forwarder::{Connections, Forwarder, Peer, Watcher};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator; the counter is plain data that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// The lines that are logged on this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    fn take(&self) -> Vec<(Level, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = String::new();
        event.record(&mut Message(&mut line));
        self.0.lock().unwrap().push((*event.metadata().level(), line));
    }
}

fn logged(work: impl FnOnce(&Lines)) {
    let lines = Lines::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(lines.clone()), || work(&lines));
}

fn task() -> TaskId {
    "df-report".parse().unwrap()
}

fn enter(connections: &Connections, peer: u64, user: &str) -> Arc<Watcher> {
    let peer = Arc::new(Peer::new(peer, user.into(), "page".into()));
    let watcher = Arc::new(Watcher::new(peer, 1, Seq(1)));
    connections.insert(&task(), Arc::clone(&watcher));
    watcher
}

fn watched_by(count: u64) -> (Connections, Forwarder, Vec<Arc<Watcher>>) {
    let connections = Connections::new();
    let watchers = (0..count).map(|peer| enter(&connections, peer, "u")).collect();
    let mut held = Forwarder::default();
    connections.get_or_refresh_forwarder(&task(), &mut held);
    (connections, held, watchers)
}

#[test]
fn spk_13_half_of_ten_thousand_look_ups_take_less_than_a_millisecond_whoever_watches() {
    for count in [0, 1, 1000] {
        let (connections, mut held, _watchers) = watched_by(count);
        let task = task();
        let mut times: Vec<Duration> = (0..10_000)
            .map(|_| {
                let start = Instant::now();
                connections.get_or_refresh_forwarder(&task, &mut held);
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        assert!(times[5_000] < Duration::from_millis(1), "{count} watchers: {:?}", times[5_000]);
    }
}

#[test]
fn spk_14_while_the_watchers_stay_the_same_nothing_is_built_allocated_or_logged() {
    for count in [0, 1, 1000] {
        let (connections, mut held, _watchers) = watched_by(count);
        let task = task();
        logged(|lines| {
            // The first event after the wake-up finds everything as it will be.
            held.forward(&task, "thought");
            let before = allocations();
            for _ in 0..10_000 {
                assert!(!connections.get_or_refresh_forwarder(&task, &mut held), "nothing is built");
                held.forward(&task, "thought");
            }
            assert_eq!(allocations() - before, 0, "{count} watchers");
            assert_eq!(lines.take(), []);
        });
    }
}

#[test]
fn spk_12_a_forwarder_says_for_whom_it_was_made() {
    let connections = Connections::new();
    let mut held = Forwarder::default();
    logged(|lines| {
        enter(&connections, 7, "ada");
        assert!(connections.get_or_refresh_forwarder(&task(), &mut held));
        let line = "WebSocket forwarder created: task=df-report, chat=df-report, user=ada";
        assert_eq!(lines.take(), [(Level::INFO, line.to_owned())], "the first attach is no reconnection");
    });
}

#[test]
fn spk_09_a_reconnection_is_logged_once_and_only_after_an_earlier_watcher() {
    const RECONNECTION: &str = "Detected WebSocket reconnection for chat=df-report, resuming updates";
    let connections = Connections::new();
    let mut held = Forwarder::default();
    let reconnections =
        |lines: &Lines| lines.take().iter().filter(|line| **line == (Level::INFO, RECONNECTION.to_owned())).count();
    logged(|lines| {
        connections.get_or_refresh_forwarder(&task(), &mut held);
        enter(&connections, 1, "u");
        connections.get_or_refresh_forwarder(&task(), &mut held);
        assert_eq!(reconnections(lines), 0, "the first attach");
        connections.remove(&task(), 1, 1);
        enter(&connections, 2, "u");
        for _ in 0..5 {
            connections.get_or_refresh_forwarder(&task(), &mut held);
        }
        assert_eq!(reconnections(lines), 1, "swapped between two events: once");
        connections.remove(&task(), 2, 1);
        connections.get_or_refresh_forwarder(&task(), &mut held);
        assert_eq!(reconnections(lines), 0, "leaving is none");
        enter(&connections, 3, "u");
        connections.get_or_refresh_forwarder(&task(), &mut held);
        assert_eq!(reconnections(lines), 1, "gone for a while and back");
    });
}

#[test]
fn spk_08_the_same_connection_is_not_taken_for_another_and_another_not_for_the_same() {
    let connections = Connections::new();
    let mut held = Forwarder::default();
    logged(|lines| {
        enter(&connections, 1, "u");
        assert!(connections.get_or_refresh_forwarder(&task(), &mut held));
        lines.take();
        assert!(!connections.get_or_refresh_forwarder(&task(), &mut held), "reused");
        assert_eq!(lines.take(), []);
        // Something is there all the time: only its identity tells.
        enter(&connections, 2, "u");
        connections.remove(&task(), 1, 1);
        assert!(connections.get_or_refresh_forwarder(&task(), &mut held), "replaced");
        assert_eq!(lines.take().len(), 2);
    });
}

#[test]
fn spk_11_a_closed_connection_is_skipped_with_a_debug_line_and_nothing_louder() {
    let connections = Connections::new();
    let mut held = Forwarder::default();
    let watcher = enter(&connections, 1, "ada");
    connections.get_or_refresh_forwarder(&task(), &mut held);
    watcher.peer.close();
    logged(|lines| {
        connections.get_or_refresh_forwarder(&task(), &mut held);
        held.forward(&task(), "tool_use");
        let line = "WebSocket closed for user=ada, chat=df-report - skipping tool_use message";
        assert_eq!(lines.take(), [(Level::DEBUG, line.to_owned())]);
    });
}
