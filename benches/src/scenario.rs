//! The seven scenarios. Each begins with a fresh server, and each receipt is checked; what was not checked is not
//! counted.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use serde_json::Value;

use crate::fleet::{Fleet, nanos};
use crate::http;
use crate::publish::Publisher;
use crate::quiet;
use crate::report::{Bound, Row, Sample};
use crate::script::Script;
use crate::server::Server;

/// The only task of most scenarios.
pub const TASK: &str = "bench";
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: f64 = 1024.0 * 1024.0;

/// What is measured, and how often.
#[derive(Clone)]
pub struct Bench {
    /// The server's program.
    pub program: PathBuf,
    /// Where the servers' data goes.
    pub under: PathBuf,
    /// How often each row is measured, at least.
    pub repeats: usize,
    /// How many events S2 publishes for its sustained rate.
    pub many: u64,
    /// How long to wait for others to leave the machine alone.
    pub wait_for_quiet: Duration,
}

/// The file of a task whose work is done elsewhere.
pub fn external(id: &str) -> (String, String) {
    (id.to_owned(), format!("title = \"{id}\"\nagent = \"external\"\n"))
}

impl Bench {
    fn start(&self) -> Result<Server> {
        Server::start(&self.program, &self.under, [external(TASK)])
    }

    /// The same, each row measured so often.
    pub fn with_repeats(&self, repeats: usize) -> Self {
        Self { repeats, ..self.clone() }
    }

    /// Measures rows again and again; each time gives one sample of each. What goes wrong once makes them void. A
    /// measurement that others disturbed is made again, as long as there is time to wait for them.
    pub fn rows<const N: usize>(&self, mut rows: [Row; N], mut once: impl FnMut() -> Result<[Sample; N]>) -> Vec<Row> {
        for _ in 0..self.repeats {
            match self.measure(&mut once) {
                Ok((samples, others)) => {
                    rows.iter_mut().zip(samples).for_each(|(row, sample)| row.add(sample, others));
                }
                Err(error) => {
                    rows.iter_mut().for_each(|row| row.void = Some(format!("{error:#}")));
                    break;
                }
            }
        }
        rows.into()
    }

    fn measure<T>(&self, once: &mut impl FnMut() -> Result<T>) -> Result<(T, f64)> {
        let deadline = Instant::now() + self.wait_for_quiet;
        loop {
            quiet::wait(deadline)?;
            let watch = quiet::Watch::begin()?;
            let samples = once()?;
            if watch.was_quiet()? || Instant::now() >= deadline {
                return Ok((samples, watch.others()?));
            }
        }
    }
}

/// Opens a run that events are published to.
pub fn open_run(server: &Server, task: &str) -> Result<Arc<Script>> {
    let opened = http::call(server, "POST", &format!("/tasks/{task}/runs"), "{}")?;
    Ok(Arc::new(Script::new(task, &opened)?))
}

/// Publishes `1..=to` and waits until all of it is saved; gives the log's id.
fn publish(server: &Server, script: &Script, from: u64, to: u64) -> Result<String> {
    let mut publisher = Publisher::open(server, script)?;
    publisher.send(from, to)?;
    publisher.finish()?;
    let started = Instant::now();
    loop {
        let (generation, head) = head_of(server, TASK)?;
        if head >= script.seq(to) {
            return Ok(generation);
        }
        ensure!(started.elapsed() < PATIENCE, "saved up to {head} only");
    }
}

/// A fleet that is connected and has everything there is.
fn watched(server: &Server, count: usize, script: &Arc<Script>) -> Result<Fleet> {
    let mut fleet = Fleet::new(server, TASK, count)?;
    fleet.expect(script);
    // Not all at once: this is the way in, not a storm.
    for index in 0..count {
        fleet.connect(index)?;
        if index % 64 == 63 {
            fleet.until(PATIENCE, |fleet| fleet.seen.caught_up > index - 32)?;
        }
    }
    fleet.until(PATIENCE, |fleet| fleet.seen.caught_up == count)?;
    Ok(fleet)
}

fn per_million(cpu: Duration, deliveries: u64) -> Option<f64> {
    Some(cpu.as_secs_f64() * 1e6 / deliveries as f64)
}

/// S1: one watcher, 1,000 events a second: publish to receipt.
pub fn s1(bench: &Bench) -> Vec<Row> {
    let micros = |nanos: Option<&u64>| Sample::from(nanos.map_or(f64::NAN, |nanos| *nanos as f64 / 1e3));
    let p99 = Row::new("S1", "one watcher, 1,000 events/s: publish to receipt, p99", "µs", Some(Bound::AtMost(1000.0)));
    let p50 = Row::new("S1", "one watcher, 1,000 events/s: publish to receipt, p50", "µs", Some(Bound::AtMost(200.0)));
    bench.rows([p50, p99], || {
        const EVENTS: u64 = 5000;
        let server = bench.start()?;
        let script = open_run(&server, TASK)?;
        let mut fleet = watched(&server, 1, &script)?;
        let sent_at: Arc<Vec<AtomicU64>> = Arc::new((0..=EVENTS).map(|_| AtomicU64::new(0)).collect());
        fleet.seen.sent_at = Some(Arc::clone(&sent_at));
        fleet.goal(script.seq(EVENTS));
        let mut publisher = Publisher::open(&server, &script)?;
        let cpu = server.cpu()?;
        std::thread::scope(|scope| {
            let publishing = scope.spawn(move || -> Result<()> {
                let start = Instant::now();
                for n in 1..=EVENTS {
                    let due = start + Duration::from_millis(n);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    sent_at[n as usize].store(nanos(), Ordering::Release);
                    publisher.send(n, n)?;
                }
                publisher.finish()
            });
            fleet.until(PATIENCE, |fleet| fleet.seen.at_goal == 1)?;
            publishing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))?
        })?;
        let cpu = per_million(server.cpu()? - cpu, EVENTS);
        // The first tenth warms up both sides.
        let mut ways = fleet.seen.ways.split_off(EVENTS as usize / 10);
        ways.sort_unstable();
        let at = |part: usize| Sample { cpu, ..micros(ways.get(ways.len() * part / 100)) };
        Ok([at(50), at(99)])
    })
}

/// S2: one run, as fast as it goes, one watcher; and the same for long.
pub fn s2(bench: &Bench) -> Vec<Row> {
    let what = "one run, 200,000 events as fast as it goes, one watcher";
    let burst = Row::new("S2", what, "events/s", Some(Bound::AtLeast(410_000.0)));
    let mut rows = bench.rows([burst], || Ok([flood(bench, 200_000)?]));
    if bench.many == 0 {
        return rows;
    }
    let what = if bench.many == 5_000_000 { "the same, 5,000,000 events" } else { "the same, for long" };
    let sustained = Row::new("S2", what, "events/s", Some(Bound::AtLeast(200_000.0)));
    rows.extend(bench.rows([sustained], || Ok([flood(bench, bench.many)?])));
    rows
}

fn flood(bench: &Bench, events: u64) -> Result<Sample> {
    let server = bench.start()?;
    let script = open_run(&server, TASK)?;
    let mut fleet = watched(&server, 1, &script)?;
    fleet.goal(script.seq(events));
    let cpu = server.cpu()?;
    let taken = burst(&server, &mut fleet, &script, 1, events)?;
    Ok(Sample {
        value: events as f64 / taken.as_secs_f64(),
        cpu: per_million(server.cpu()? - cpu, events),
        memory: Some(server.peak()? as f64 / MIB),
    })
}

/// Publishes as fast as it goes; gives the time from the first byte until the last watcher has the last event.
fn burst(server: &Server, fleet: &mut Fleet, script: &Script, from: u64, to: u64) -> Result<Duration> {
    let mut publisher = Publisher::open(server, script)?;
    let watchers = fleet.len();
    std::thread::scope(|scope| {
        let started = Instant::now();
        let publishing = scope.spawn(move || {
            publisher.send(from, to)?;
            publisher.finish()
        });
        let patience = PATIENCE + Duration::from_millis(to / 50);
        fleet.until(patience, |fleet| fleet.seen.at_goal == watchers)?;
        let taken = started.elapsed();
        publishing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
        Ok(taken)
    })
}

/// S3: 2,000 events to 500 watchers.
pub fn s3(bench: &Bench) -> Vec<Row> {
    const EVENTS: u64 = 2000;
    const WATCHERS: u64 = 500;
    let what = "2,000 events to 500 watchers";
    let row = Row::new("S3", what, "deliveries/s", Some(Bound::AtLeast(1_300_000.0)));
    bench.rows([row], || {
        let server = bench.start()?;
        let script = open_run(&server, TASK)?;
        let mut fleet = watched(&server, WATCHERS as usize, &script)?;
        fleet.goal(script.seq(EVENTS));
        let before = fleet.seen.delivered;
        let cpu = server.cpu()?;
        let taken = burst(&server, &mut fleet, &script, 1, EVENTS)?;
        ensure!(fleet.seen.delivered - before == EVENTS * WATCHERS, "not every event was delivered once");
        Ok([Sample {
            value: (EVENTS * WATCHERS) as f64 / taken.as_secs_f64(),
            cpu: per_million(server.cpu()? - cpu, EVENTS * WATCHERS),
            memory: Some(server.peak()? as f64 / MIB),
        }])
    })
}

/// S4: 10,000 events missed, one watcher: from connect to the last event.
pub fn s4(bench: &Bench) -> Vec<Row> {
    const MISSED: u64 = 10_000;
    let row =
        Row::new("S4", "10,000 events missed, one watcher: connect to last event", "ms", Some(Bound::AtMost(9.0)));
    bench.rows([row], || {
        let server = bench.start()?;
        let script = open_run(&server, TASK)?;
        let generation = publish(&server, &script, 1, MISSED)?;
        let mut fleet = Fleet::new(&server, TASK, 1)?;
        fleet.expect(&script);
        fleet.place(0, &generation, script.seq(0));
        fleet.goal(script.seq(MISSED));
        let cpu = server.cpu()?;
        let started = Instant::now();
        fleet.connect(0)?;
        fleet.until(PATIENCE, |fleet| fleet.seen.at_goal == 1)?;
        let taken = started.elapsed();
        ensure!(fleet.seen.delivered == MISSED, "{} events instead of {MISSED}", fleet.seen.delivered);
        Ok([Sample {
            value: taken.as_secs_f64() * 1e3,
            cpu: per_million(server.cpu()? - cpu, MISSED),
            memory: Some(server.resident()? as f64 / MIB),
        }])
    })
}

/// S5: 1,000 watchers cut at once, 200 events missed by each: until all are caught up.
pub fn s5(bench: &Bench) -> Vec<Row> {
    const WATCHERS: u64 = 1000;
    const MISSED: u64 = 200;
    let what = "1,000 watchers cut at once, 200 missed each: all caught up";
    let grown = Row::new("S5", "memory beyond that before the storm, at most", "MiB", Some(Bound::AtMost(50.0)));
    let row = Row::new("S5", what, "ms", Some(Bound::AtMost(200.0)));
    bench.rows([row, grown], || {
        let server = bench.start()?;
        let script = open_run(&server, TASK)?;
        let mut fleet = watched(&server, WATCHERS as usize, &script)?;
        (0..fleet.len()).for_each(|index| fleet.cut(index));
        publish(&server, &script, 1, MISSED)?;
        fleet.goal(script.seq(MISSED));
        let (before, caught_up) = (fleet.seen.delivered, fleet.seen.caught_up);
        let (cpu, memory) = (server.cpu()?, server.resident()?);
        server.forget_peak()?;
        let started = Instant::now();
        fleet.connect_all()?;
        fleet.until(PATIENCE, |fleet| fleet.seen.caught_up - caught_up == fleet.len())?;
        let taken = started.elapsed();
        ensure!(fleet.seen.at_goal == fleet.len(), "told that it is caught up, and is not");
        ensure!(fleet.seen.delivered - before == WATCHERS * MISSED, "not every event was delivered once");
        let time = Sample {
            value: taken.as_secs_f64() * 1e3,
            cpu: per_million(server.cpu()? - cpu, WATCHERS * MISSED),
            memory: Some(server.peak()? as f64 / MIB),
        };
        Ok([time, Sample::from(server.peak()?.saturating_sub(memory) as f64 / MIB)])
    })
}

/// S6: 5,000 watchers of a task that says nothing.
pub fn s6(bench: &Bench) -> Vec<Row> {
    const WATCHERS: usize = 5000;
    /// Longer than one interval of heartbeats.
    const IDLE: Duration = Duration::from_secs(25);
    let busy = Row::new("S6", "5,000 idle watchers: CPU, heartbeats and their answers included", "% of a core", None);
    let row = Row::new("S6", "5,000 idle watchers: server memory of each", "KiB", Some(Bound::AtMost(6.0)));
    bench.rows([row, busy], || {
        let server = bench.start()?;
        let script = open_run(&server, TASK)?;
        // What the first connection brings into memory once for all is not the watchers'.
        drop(watched(&server, 1, &script)?);
        let before = server.resident()?;
        let mut fleet = watched(&server, WATCHERS, &script)?;
        fleet.idle(Duration::from_secs(1))?;
        let each = (server.resident()? - before) as f64 / WATCHERS as f64 / 1024.0;
        let cpu = server.cpu()?;
        fleet.idle(IDLE)?;
        ensure!(fleet.seen.ended.is_empty(), "{} sockets ended by themselves", fleet.seen.ended.len());
        let cpu = server.cpu()? - cpu;
        let memory = Sample { value: each, cpu: None, memory: Some(server.resident()? as f64 / MIB) };
        Ok([memory, Sample::from(cpu.as_secs_f64() / IDLE.as_secs_f64() * 100.0)])
    })
}

/// S7: 20 watchers, 10 random reconnections a second, 50 events a second, 20 s, and the server killed in the middle.
pub fn s7(bench: &Bench) -> Vec<Row> {
    let twice = Row::new("S7", "the same: events sent twice", "events", Some(Bound::AtMost(0.0)));
    let what = "20 watchers, 10 reconnections/s, 50 events/s, 20 s, one kill -9: events lost";
    let lost = Row::new("S7", what, "events", Some(Bound::AtMost(0.0)));
    bench.rows([lost, twice], || {
        let (lost, twice) = kill_in_between(bench)?;
        Ok([Sample::from(lost as f64), Sample::from(twice as f64)])
    })
}

fn kill_in_between(bench: &Bench) -> Result<(u64, u64)> {
    const WATCHERS: usize = 20;
    const EVENTS: u64 = 1000;
    let mut server = bench.start()?;
    let script = open_run(&server, TASK)?;
    let mut fleet = watched(&server, WATCHERS, &script)?;
    fleet.seen.counts_losses = true;
    let head = http::head(&server, "POST", &format!("/runs/{}/events", script.run));
    let asking = Asking { address: server.address, token: server.token.clone() };
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| {
            let published = publish_over_kills(&asking, &head, &script, EVENTS);
            ended.store(true, Ordering::Release);
            published
        });
        let started = Instant::now();
        let (mut next_cut, mut killed) = (started, false);
        let mut rng = rand::rng();
        while !ended.load(Ordering::Acquire) {
            fleet.turn(Duration::from_millis(10))?;
            let now = Instant::now();
            if now >= next_cut {
                next_cut += Duration::from_millis(100);
                fleet.cut(rng.random_range(0..WATCHERS));
            }
            if !killed && now - started > Duration::from_secs(10) {
                killed = true;
                server.kill()?;
                server.start_again()?;
            }
            (0..WATCHERS)
                .filter(|index| !fleet.is_there(*index))
                .collect::<Vec<_>>()
                .into_iter()
                .try_for_each(|index| fleet.connect(index))?;
        }
        publishing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))?
    })?;
    fleet.goal(script.seq(EVENTS));
    let deadline = Instant::now() + PATIENCE;
    while fleet.seen.at_goal < WATCHERS && Instant::now() < deadline {
        fleet.turn(Duration::from_millis(10))?;
        let away: Vec<_> = (0..WATCHERS).filter(|index| !fleet.is_there(*index)).collect();
        away.into_iter().try_for_each(|index| fleet.connect(index))?;
    }
    let missing: u64 = (0..WATCHERS).map(|index| script.seq(EVENTS).saturating_sub(fleet.position(index))).sum();
    Ok((fleet.seen.lost + missing, fleet.seen.twice))
}

/// What the publisher of S7 asks the server with while another thread ends and starts it.
struct Asking {
    address: std::net::SocketAddr,
    token: String,
}

/// 50 events a second; when the line breaks, asks how far the server has come and goes on behind it.
fn publish_over_kills(asking: &Asking, head: &str, script: &Script, events: u64) -> Result<()> {
    let started = Instant::now();
    let last_n = || -> Result<u64> {
        let run = http::call_at(asking.address, &asking.token, "GET", &format!("/runs/{}", script.run), "")?;
        let run = if run["run"].is_object() { &run["run"] } else { &run };
        Ok(run["last_n"].as_u64().unwrap_or(0))
    };
    loop {
        ensure!(started.elapsed() < PATIENCE * 2, "the events could not be published");
        let attempt = (|| -> Result<()> {
            let mut n = last_n()?;
            let mut publisher = Publisher::open_with(asking.address, head, script)?;
            while n < events {
                n += 1;
                let due = started + Duration::from_millis(20 * n);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                publisher.send(n, n)?;
            }
            publisher.finish()
        })();
        // The answer may be lost with the line: what counts is what is saved.
        if attempt.is_ok() || last_n().is_ok_and(|n| n == events) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The gen of a task's log and its last event.
pub fn head_of(server: &Server, task: &str) -> Result<(String, u64)> {
    let page: Value = http::call(server, "GET", &format!("/tasks/{task}/events?after=0&limit=1"), "")?;
    Ok((page["gen"].as_str().context("no gen")?.to_owned(), page["head"].as_u64().context("no head")?))
}
