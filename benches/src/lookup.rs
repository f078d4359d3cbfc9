//! What the look-up before each event costs: within this process, as it is far below what can be seen from outside.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rejoin::event::{Seq, TaskId};
use rejoin::stream::forwarder::{Connections, Forwarder, Peer, Watcher};

use crate::report::{Bound, Row, Sample, median};
use crate::scenario::Bench;

const TASKS: u64 = 100;
const WATCHERS: u64 = 1000;
/// Each sample is the mean of one look-up of every task: a clock is read in a third of the time of one look-up.
const ROUNDS: usize = 20_000;

/// The system's allocator, and how often this thread has asked it.
pub struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

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

/// `get_or_refresh_forwarder` with 1,000 live watchers on 100 tasks, none of which comes or goes.
pub fn lookup(bench: &Bench) -> Vec<Row> {
    let what = "allocations of 2,000,000 look-ups when nothing changed";
    let allocations = Row::new("look-up", what, "", Some(Bound::AtMost(0.0)));
    let what = "get_or_refresh_forwarder, 1,000 watchers on 100 tasks, p50";
    let time = Row::new("look-up", what, "ns", Some(Bound::AtMost(100.0)));
    bench.rows([time, allocations], || {
        let (median, allocated) = measure()?;
        Ok([Sample::from(median), Sample::from(allocated as f64)])
    })
}

fn measure() -> Result<(f64, u64)> {
    let connections = Connections::new();
    let tasks = (0..TASKS).map(|task| format!("task-{task}").parse()).collect::<Result<Vec<TaskId>, _>>();
    let tasks = tasks.ok().context("no id of a task")?;
    for number in 0..WATCHERS {
        let peer = Arc::new(Peer::new(number, "admin".into(), format!("client-{number}").into()));
        let watcher = Arc::new(Watcher::new(peer, 1, Seq(1)));
        connections.insert(&tasks[(number % TASKS) as usize], watcher);
    }
    let mut held: Vec<Forwarder> = tasks.iter().map(|_| Forwarder::default()).collect();
    let mut round = || {
        let refreshed =
            tasks.iter().zip(&mut held).map(|(task, held)| connections.get_or_refresh_forwarder(task, held));
        refreshed.filter(|refreshed| black_box(*refreshed)).count()
    };
    ensure!(round() == tasks.len(), "the first look finds everybody new");
    let mut times = Vec::with_capacity(ROUNDS);
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let refreshed = round();
        times.push(started.elapsed().as_nanos() as f64 / TASKS as f64);
        ensure!(refreshed == 0, "nothing changed, and something was refreshed");
    }
    let allocated = ALLOCATIONS.with(Cell::get) - before;
    times.sort_by(f64::total_cmp);
    Ok((median(&times), allocated))
}
