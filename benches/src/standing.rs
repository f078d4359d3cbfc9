//! What a server costs that has little to do, and one that has much to keep: memory, size, start, pages.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::http::call;
use crate::publish::Publisher;
use crate::quiet;
use crate::report::{Bound, Row, Sample};
use crate::scenario::{Bench, open_run};
use crate::server::Server;

const MIB: f64 = 1024.0 * 1024.0;

/// A server with 100 scheduled tasks and nobody who looks.
pub fn idle(bench: &Bench) -> Vec<Row> {
    /// Processor time is counted in steps of 10 ms, which are 0.01 % of this.
    const IDLE: Duration = Duration::from_secs(100);
    /// Until all that follows a start is over: the first round of housekeeping, which comes with the first ring of the bell.
    const SETTLED: Duration = Duration::from_secs(70);
    let busy = Row::new("idle", "server idle, 100 tasks: CPU", "% of a core", Some(Bound::AtMost(0.1)));
    let row = Row::new("idle", "server idle, 100 tasks: resident memory", "MiB", Some(Bound::AtMost(30.0)));
    let mut rows = bench.rows([row, busy], || {
        let task = |n: u32| {
            let text =
                "title = \"Once a year\"\n[schedule]\ncron = \"0 4 1 1 *\"\n[[steps]]\nname = \"s\"\nrun = \"true\"\n";
            (format!("task-{n}"), text.to_owned())
        };
        let server = Server::start(&bench.program, &bench.under, (0..100).map(task))?;
        let tasks = call(&server, "GET", "/tasks?limit=500", "")?;
        ensure!(tasks["items"].as_array().map(Vec::len) == Some(100), "not all tasks are there");
        std::thread::sleep(SETTLED);
        let cpu = server.cpu()?;
        std::thread::sleep(IDLE);
        let used = server.cpu()? - cpu;
        let busy = used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        Ok([Sample::from(server.resident()? as f64 / MIB), Sample::from(busy)])
    });
    let what = "size of the program, as `cargo build --release` makes it";
    let mut size = Row::new("binary", what, "MB", Some(Bound::AtMost(25.0)));
    match std::fs::metadata(&bench.program) {
        Ok(file) => size.add(Sample::from(file.len() as f64 / 1e6), 0.0),
        Err(error) => size.void = Some(error.to_string()),
    }
    rows.push(size);
    rows
}

/// A store with 10,000 tasks and 1,000,000 events.
pub fn store(bench: &Bench) -> Vec<Row> {
    let mut rows = [
        Row::new("store", "10,000 tasks, 1,000,000 events: start of the server", "ms", Some(Bound::AtMost(1000.0))),
        Row::new("store", "the same: a task with its last page of events", "ms", Some(Bound::AtMost(20.0))),
        Row::new("store", "the same: the first page of the list of tasks", "ms", None),
        Row::new("store", "the same: resident memory", "MiB", None),
    ];
    if let Err(error) = measure_store(bench, &mut rows) {
        rows.iter_mut().for_each(|row| row.void = Some(format!("{error:#}")));
    }
    rows.into()
}

fn measure_store(bench: &Bench, rows: &mut [Row; 4]) -> Result<()> {
    const TASKS: u64 = 10_000;
    /// One task in so many has events.
    const EVERY: u64 = 100;
    const EVENTS: u64 = 1_000_000 / (TASKS / EVERY);
    let mut server = Server::start(&bench.program, &bench.under, [])?;
    for n in 0..TASKS {
        let task =
            json!({ "id": format!("task-{n}"), "title": format!("Task {n}"), "agent": "external", "run": false });
        call(&server, "POST", "/tasks", &task.to_string())?;
        if n % EVERY == 0 {
            let script = open_run(&server, &format!("task-{n}"))?;
            let mut publisher = Publisher::open(&server, &script)?;
            publisher.send(1, EVENTS)?;
            publisher.end(EVENTS + 1)?;
            publisher.finish()?;
        }
    }
    let millis = |started: Instant| started.elapsed().as_secs_f64() * 1e3;
    for round in 0..bench.repeats as u64 {
        quiet::wait(Instant::now() + bench.wait_for_quiet)?;
        let watch = quiet::Watch::begin()?;
        server.kill()?;
        let start = server.start_again()?;
        rows[0].add(Sample::from(start.as_secs_f64() * 1e3), watch.others()?);
        // A task that nobody has looked at since the start.
        let task = format!("/tasks/task-{}", EVERY * (7 + round));
        let started = Instant::now();
        let view = call(&server, "GET", &task, "")?;
        let (generation, head) = (view["gen"].as_str().context("no gen")?, view["head"].as_u64().context("no head")?);
        ensure!(head > EVENTS, "only {head} events are there");
        let page = call(&server, "GET", &format!("{task}/events?gen={generation}&before={}&limit=500", head + 1), "")?;
        rows[1].add(Sample::from(millis(started)), watch.others()?);
        // As many as a page holds: 500, or 128 KiB.
        let items = page["items"].as_array().context("no items")?;
        ensure!(items.len() > 250 && items.last().is_some_and(|event| event["seq"] == head), "not the last events");
        let started = Instant::now();
        call(&server, "GET", "/tasks", "")?;
        rows[2].add(Sample::from(millis(started)), watch.others()?);
        rows[3].add(Sample::from(server.resident()? as f64 / MIB), watch.others()?);
    }
    Ok(())
}
