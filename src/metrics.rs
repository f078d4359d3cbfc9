//! What the server counts of itself: plain numbers that any thread adds to without waiting, without a lock and without
//! memory. They begin at 0 with each start. Knows nothing of those who count, nor of how it is shown.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use instrument::{Counter, Histogram, Labelled, Pairs};
use tally::Measurement;

pub mod exposition;
pub mod instrument;
pub mod process;
pub mod tally;

/// Microseconds: a commit is some ten to some thousand of them, and more when a disk is slow.
const COMMIT_MICROS: &[u64] = &[
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000,
];
/// Events of one commit: from one to the most that a group holds.
const COMMIT_EVENTS: &[u64] = &[0, 1, 2, 4, 16, 64, 256, 1024, 4096];
/// Milliseconds: a start within 50 ms of its slot is what is aimed at, a minute is where `late` begins.
const LATE_MILLIS: &[u64] = &[
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000, 21_600_000,
    86_400_000,
];
/// Milliseconds: from a command that only looks to a night's backup.
const RUN_MILLIS: &[u64] =
    &[100, 500, 1_000, 5_000, 15_000, 60_000, 300_000, 900_000, 1_800_000, 3_600_000, 10_800_000, 43_200_000];

/// Outcomes that close a slot.
const OUTCOMES: &[&str] = &["ran", "late", "skipped", "coalesced", "missed", "disabled"];
/// What makes runs.
const TRIGGERS: &[&str] = &["hand", "schedule", "catchup"];
/// How runs end.
const ENDS: &[&str] = &["succeeded", "failed", "cancelled", "timed_out", "interrupted"];
/// Why watchers start again behind a snapshot.
const RESETS: &[&str] = &["too_far", "from_start", "retention", "generation", "future"];
/// What carries events to watchers.
const TRANSPORTS: &[&str] = &["websocket", "events"];
/// Why sockets and streams of events end: the words of their closes, and the client's own ways.
const CLOSES: &[&str] = &[
    "gone",
    "left",
    "draining",
    "replaced",
    "too_slow",
    "no_life",
    "expired",
    "bad_credential",
    "connection_limit",
    "too_many_requests",
    "too_large",
    "broken_frame",
    "not_utf8",
    "bad_frames",
    "protocol",
    "not_found",
    "not_writable",
    "internal",
];
/// Kinds of channels by which people are told.
const CHANNELS: &[&str] = &["webhook", "ntfy", "mail", "healthchecks"];
/// What a try came to: it arrived, it did not and is tried again, it is given up, it waits for the end of quiet hours, it
/// is not tried.
const TOLD: &[&str] = &["sent", "retried", "failed", "held", "dropped"];

/// All that is counted.
#[derive(Debug)]
pub struct Metrics {
    /// How long groups took from their beginning to their commit, in microseconds.
    pub commits: Histogram,
    /// How many events each had.
    pub commit_events: Histogram,
    /// Groups that could not be saved.
    pub commits_failed: Counter,
    /// Events saved.
    pub events: Counter,
    /// Their JSON, in bytes.
    pub event_bytes: Counter,
    /// Slots whose time came.
    pub slots_due: Counter,
    /// Slots by the outcome that closed them.
    pub slots: Labelled,
    /// How long after their planned time the runs of slots started, in milliseconds.
    pub lateness: Histogram,
    /// Runs made, by what made them.
    pub runs_made: Labelled,
    /// Runs that began.
    pub runs_started: Counter,
    /// Runs that ended, by how.
    pub runs_ended: Labelled,
    /// How long those took that said so, in milliseconds.
    pub run_times: Histogram,
    /// Sockets and streams of events that came in.
    pub opened: Labelled,
    /// Those that ended, by why.
    pub closed: Labelled,
    /// Watchers that came with a position of before.
    pub reconnects: Counter,
    /// Events that those had missed and that were there for them.
    pub replayed: Counter,
    /// Watchers that had to start again behind a snapshot, by why.
    pub resets: Labelled,
    /// Events handed to the connections of watchers.
    pub delivered: Counter,
    /// Deliveries, by the kind of their channel and by what each try came to.
    pub notifications: Pairs,
    /// Whether schedules are held, because the clock is wrong.
    pub schedules_held: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            commits: Histogram::new(COMMIT_MICROS),
            commit_events: Histogram::new(COMMIT_EVENTS),
            commits_failed: Counter::default(),
            events: Counter::default(),
            event_bytes: Counter::default(),
            slots_due: Counter::default(),
            slots: Labelled::new(OUTCOMES),
            lateness: Histogram::new(LATE_MILLIS),
            runs_made: Labelled::new(TRIGGERS),
            runs_started: Counter::default(),
            runs_ended: Labelled::new(ENDS),
            run_times: Histogram::new(RUN_MILLIS),
            opened: Labelled::new(TRANSPORTS),
            closed: Labelled::new(CLOSES),
            reconnects: Counter::default(),
            replayed: Counter::default(),
            resets: Labelled::new(RESETS),
            delivered: Counter::default(),
            notifications: Pairs::new(CHANNELS, TOLD),
            schedules_held: AtomicBool::new(false),
        }
    }
}

impl Metrics {
    /// A group of so many events and bytes is saved, with what was done beside them.
    pub fn committed(&self, took: Duration, events: u64, bytes: u64, beside: Vec<Measurement>) {
        self.commits.note(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.commit_events.note(events);
        self.events.add(events);
        self.event_bytes.add(bytes);
        for measurement in beside {
            match measurement {
                Measurement::SlotsDue(count) => self.slots_due.add(count),
                Measurement::SlotsClosed(outcome, count) => self.slots.add(outcome, count),
                Measurement::SlotStarted { late_ms } => self.lateness.note(late_ms),
                Measurement::Told { kind, result, count } => self.notifications.add(kind, result, count),
            }
        }
    }

    /// A run ended.
    pub fn ended(&self, how: &str, took_ms: Option<u64>) {
        self.runs_ended.add(how, 1);
        if let Some(took) = took_ms {
            self.run_times.note(took);
        }
    }

    /// Schedules are held, or go on.
    pub fn hold_schedules(&self, held: bool) {
        self.schedules_held.store(held, Relaxed);
    }
}
