//! What all actors of one simulation share: its time, its truth, its trace, and the first thing that was wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use rejoin::clock::Clock;
use rejoin::config::Config;
use rejoin::stream;
use rejoin::stream::publish::Limits;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::chance::Chance;
use crate::network::Line;
use crate::truth::{Micros, Replay, Truth};

/// When every simulation begins, by its own clock: 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600_000_000;

/// What one seed is like. Each has other sizes, and only some of the faults: what hides behind one that happens all the
/// time shows in a seed without it.
#[derive(Clone, Debug)]
pub struct Profile {
    pub tasks: usize,
    pub watchers: usize,
    /// For how long faults happen, in seconds.
    pub storm: u64,
    pub limits: Limits,
    pub replay: Replay,
    /// Pages of the log that are read at once.
    pub page_reads: usize,
    /// The longest pause on either side of a page, in milliseconds.
    pub read_pause: u64,
    /// The longest time between a bell and the writer's step, in milliseconds.
    pub write_pause: u64,
    /// The writer is held at a point of its step once in so many times.
    pub held: u64,
    /// What connections are like at first.
    pub line: Line,
    /// One connection in so many is as slow as a bad phone.
    pub slow: u64,
    /// Milliseconds between two words of an emitter, at most.
    pub pace: u64,
    /// An emitter says so many words at once, once in a while.
    pub flood: u64,
    /// One word in so many is large.
    pub large: u64,
    /// How often which fault happens: one in so many; 0 is never.
    pub faults: Faults,
}

/// How often which fault is chosen, as weights; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub cut: u64,
    pub silence: u64,
    pub stall: u64,
    pub crash: u64,
    pub restart: u64,
    pub restore: u64,
    pub retention: u64,
    pub tidy: u64,
    pub full_disk: u64,
    pub remake: u64,
    pub probe: u64,
    pub leave: u64,
    pub resubscribe: u64,
}

impl Profile {
    /// The profile of a seed.
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed, "profile");
        let mut weight = |of: u64| if chance.one_in(2) { of } else { 0 };
        let faults = Faults {
            cut: weight(6),
            silence: weight(2),
            stall: weight(3),
            crash: weight(3),
            restart: weight(2),
            restore: weight(1),
            retention: weight(6),
            tidy: weight(3),
            full_disk: weight(2),
            remake: weight(2),
            probe: weight(8),
            leave: weight(2),
            resubscribe: weight(3),
        };
        // Most are short, so that there may be many; few go on for long.
        let long = chance.one_in(80);
        let ring_bytes = *chance.pick(&[600, 2_000, 8_000, 40_000]);
        let limits = Limits {
            ring: stream::ring::Limits {
                events: *chance.pick(&[1, 3, 8, 40]),
                bytes: ring_bytes,
                unread_bytes: ring_bytes * *chance.pick(&[1, 2, 8]),
            },
            rings_bytes: *chance.pick(&[1_000, 10_000, 1 << 20]),
            ring_idle: std::time::Duration::from_secs(*chance.pick(&[0, 300])),
            queue: stream::topic::QueueLimits {
                events: *chance.pick(&[2, 8, 64]),
                bytes: *chance.pick(&[4_000, 200_000]),
            },
            queues_bytes: *chance.pick(&[8_000, 400_000]),
        };
        Self {
            tasks: *chance.pick(&[1, 1, 2, 3]),
            watchers: *chance.pick(&[1, 2, 2, 3, 4]),
            storm: if long { chance.within(20..=60) } else { chance.within(4..=20) },
            limits,
            replay: Replay {
                events: *chance.pick(&[4, 20, 100, 20_000]),
                bytes: *chance.pick(&[1_500, 10_000, 16 << 20]),
            },
            page_reads: *chance.pick(&[1, 2, 64]),
            read_pause: *chance.pick(&[0, 2, 20]),
            write_pause: *chance.pick(&[0, 3, 30]),
            held: *chance.pick(&[0, 3, 10]),
            line: Line { delay: *chance.pick(&[0, 5, 60]), room: *chance.pick(&[3_000, 16_000, 200_000]), rate: None },
            slow: *chance.pick(&[0, 0, 4]),
            pace: if long { 100 } else { *chance.pick(&[300, 1_000, 3_000]) },
            flood: if long { 60 } else { *chance.pick(&[0, 8, 20]) },
            large: *chance.pick(&[0, 3, 8, 40]),
            faults,
        }
    }

    /// The server's configuration: as it ships, but for sizes.
    pub fn config(&self, data_dir: PathBuf) -> Config {
        let mut config = Config { data_dir, ..Config::default() };
        config.stream.replay_events = self.replay.events;
        config.stream.replay_bytes = self.replay.bytes;
        config.stream.page_reads = self.page_reads;
        config
    }
}

/// What happened, in order; always as a hash, on request also in words.
#[derive(Debug)]
struct Trace {
    hash: u64,
    lines: u64,
    aloud: bool,
    /// Ids of logs are random: in the trace they bear the number of their coming.
    names: BTreeMap<String, usize>,
    /// The last lines, for a report.
    last: std::collections::VecDeque<String>,
}

/// What all actors share.
#[derive(Debug)]
pub struct World {
    pub seed: u64,
    pub profile: Profile,
    pub clock: Clock,
    pub dir: PathBuf,
    begin: Instant,
    now: AtomicU64,
    trace: Mutex<Trace>,
    truth: Mutex<Truth>,
    wrong: Mutex<Option<String>>,
    /// Rung when something is wrong.
    pub alarm: Notify,
    /// The faults are over: every connection from now on is a good one.
    calm: AtomicBool,
    /// Numbers that are never given twice.
    last: AtomicU64,
    /// What was seen to happen, and how often.
    seen: Mutex<BTreeMap<String, u64>>,
}

const LAST_LINES: usize = 60;

impl World {
    /// The beginning of a seed's world.
    pub fn new(seed: u64, dir: PathBuf, aloud: bool) -> Arc<Self> {
        Arc::new(Self {
            seed,
            profile: Profile::of(seed),
            clock: Clock::standing_at(Timestamp::from_microsecond(BEGIN).unwrap()),
            dir,
            begin: Instant::now(),
            now: AtomicU64::new(0),
            trace: Mutex::new(Trace {
                hash: 0xcbf2_9ce4_8422_2325,
                lines: 0,
                aloud,
                names: BTreeMap::new(),
                last: std::collections::VecDeque::new(),
            }),
            truth: Mutex::default(),
            wrong: Mutex::default(),
            alarm: Notify::new(),
            calm: AtomicBool::new(false),
            last: AtomicU64::new(0),
            seen: Mutex::default(),
        })
    }

    /// The time, which the server's clock is set to; only where the runtime is.
    pub fn tick(&self) -> Micros {
        let now = u64::try_from(self.begin.elapsed().as_micros()).unwrap();
        self.now.store(now, Ordering::Relaxed);
        self.clock.set(Timestamp::from_microsecond(BEGIN + now.cast_signed()).unwrap());
        now
    }

    /// The time of the last tick; anywhere.
    pub fn now(&self) -> Micros {
        self.now.load(Ordering::Relaxed)
    }

    /// A time of the server's clock.
    pub fn read_time(&self, text: &str) -> Option<Micros> {
        let at: Timestamp = text.parse().ok()?;
        u64::try_from(at.as_microsecond() - BEGIN).ok()
    }

    /// A number that is never given twice.
    pub fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What is true.
    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    /// Whether the faults are over.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Ends the faults.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// What a new connection is like.
    pub fn line(&self, chance: &mut Chance) -> Line {
        let mut line = self.profile.line.clone();
        if !self.is_calm() && chance.one_in(self.profile.slow) {
            line.rate = Some(chance.within(3_000..=20_000));
        }
        line
    }

    /// Notes that something happened.
    pub fn trace(&self, who: &str, what: &str) {
        let mut trace = self.trace.lock().unwrap();
        let mut line = String::with_capacity(who.len() + what.len() + 24);
        let now = self.now();
        let _ = write!(line, "{:>4}.{:06} {who:<8} {what}", now / 1_000_000, now % 1_000_000);
        for byte in line.bytes() {
            trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        trace.lines += 1;
        if trace.aloud {
            println!("{line}");
        }
        if trace.last.len() >= LAST_LINES {
            trace.last.pop_front();
        }
        trace.last.push_back(line);
    }

    /// Counts something that a thousand seeds must have seen.
    pub fn saw(&self, what: &str) {
        self.saw_so_many(what, 1);
    }

    /// The same for many at once.
    pub fn saw_so_many(&self, what: &str, many: u64) {
        *self.seen.lock().unwrap().entry(what.to_owned()).or_default() += many;
    }

    /// What was seen.
    pub fn seen(&self) -> BTreeMap<String, u64> {
        self.seen.lock().unwrap().clone()
    }

    /// The name of a log in the trace.
    pub fn name(&self, generation: &str) -> String {
        let mut trace = self.trace.lock().unwrap();
        let next = trace.names.len() + 1;
        let number = *trace.names.entry(generation.to_owned()).or_insert(next);
        format!("g{number}")
    }

    /// Notes that something is wrong; the first counts.
    pub fn wrong(&self, who: &str, what: &str) {
        let mut wrong = self.wrong.lock().unwrap();
        if wrong.is_none() {
            self.trace(who, &format!("WRONG: {what}"));
            *wrong = Some(format!("{who}: {what}"));
            self.alarm.notify_one();
        }
    }

    /// What was wrong first.
    pub fn first_wrong(&self) -> Option<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// A number that stands for all that happened, and how many things that were.
    pub fn hash(&self) -> (u64, u64) {
        let trace = self.trace.lock().unwrap();
        (trace.hash, trace.lines)
    }

    /// The last things that happened.
    pub fn last_lines(&self) -> String {
        let trace = self.trace.lock().unwrap();
        trace.last.iter().map(|line| format!("  {line}\n")).collect()
    }
}
