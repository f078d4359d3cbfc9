//! Ten thousand tasks that are due in the same second, of a pool of 64: how soon all have their rows, how soon the first
//! 64 start, and whether the others follow in order. All of it is counted from the server's store, by another process.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rejoin::record::Run;
use rusqlite::{Connection, OpenFlags};

use crate::report::{Bound, Row, Sample};
use crate::scenario::Bench;
use crate::server::{Cores, Server};

const TASKS: usize = 10_000;
const POOL: usize = 64;
/// Percentiles of fewer starts would be of chance.
const REPETITIONS: usize = 20;
/// Time enough for all runs of a slot to be over before the next, mostly; and not so much that a system which takes memory
/// back that nobody used for a minute has the store read from the disk each time.
const PERIOD: u64 = 30;
/// A second that takes longer than this measures nothing.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the store is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What one slot came to.
struct Measured {
    /// Until all rows were there.
    claimed: Duration,
    /// How long after the slot each of the first started, in milliseconds.
    first: Vec<f64>,
    /// Until the files of the first were all written, in milliseconds.
    written: f64,
    /// Runs that started before one that was claimed before them.
    out_of_order: usize,
    /// Until the last run was over.
    over: Duration,
}

/// 10,000 slots in one second, 20 times.
pub fn slots(bench: &Bench) -> Vec<Row> {
    let bench = bench.with_repeats(bench.repeats.max(REPETITIONS));
    let most = |most| Some(Bound::AtMost(most));
    let rows = [
        Row::new("slots", "10,000 slots due in one second: all have their rows", "ms", most(2000.0)),
        Row::new("slots", "a pool of 64: the first 64 start after the slot, p99 of one second", "ms", most(50.0)),
        Row::new("slots", "the same: the files of all 64 are written", "ms", None),
        Row::new("slots", "the same: runs that started before one claimed before them", "", most(0.0)),
        Row::new("slots", "the same: all 10,000 are over", "s", None),
    ];
    let mut all = Row::new("slots", "the same: the first 64 start, p99 of all seconds together", "ms", most(50.0));
    let mut stage = match Stage::set(&bench) {
        Ok(stage) => stage,
        Err(error) => {
            all.void = Some(format!("{error:#}"));
            return vec![all];
        }
    };
    let mut starts = Vec::new();
    let mut rows = bench.rows(rows, || {
        let Measured { claimed, first, written, out_of_order, over } = stage.one()?;
        let values = [
            claimed.as_secs_f64() * 1e3,
            percentile(first.clone(), 99),
            written,
            out_of_order as f64,
            over.as_secs_f64(),
        ];
        starts.extend(first);
        Ok(values.map(Sample::from))
    });
    all.void = rows[1].void.clone();
    all.add(Sample::from(percentile(starts, 99)), rows[1].others.iter().copied().fold(0.0, f64::max));
    rows.insert(2, all);
    rows
}

/// The smallest value that so many of a hundred are not above.
fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() * percent).div_ceil(100).max(1) - 1;
    values.get(index).copied().unwrap_or(f64::NAN)
}

struct Stage {
    server: Server,
    store: Connection,
}

impl Stage {
    fn set(bench: &Bench) -> Result<Self> {
        let task = |number: usize| {
            let id = format!("task-{number:05}");
            let text = format!(
                "title = \"{id}\"\n[schedule]\ncron = \"*/{PERIOD} * * * * *\"\n[policy]\nconcurrency = \"narrow\"\n\
                 [[steps]]\nwrite = {{ path = \"../out/{id}\", content = \"done\" }}\n"
            );
            (id, text)
        };
        let config = format!("[runs]\nconcurrency = 1000\n[pools]\nnarrow = {POOL}\n");
        let server = Server::start_with(&bench.program, &bench.under, (0..TASKS).map(task), &config, Cores::All)?;
        std::fs::create_dir(server.home().join("out"))?;
        let file = server.home().join("data/rejoin.db");
        let store = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        store.busy_timeout(Duration::from_secs(5))?;
        let tasks: u32 = store.query_row("SELECT count(*) FROM tasks", [], |row| row.get(0))?;
        ensure!(tasks as usize == TASKS, "{tasks} tasks are there");
        Ok(Self { server, store })
    }

    /// Waits for the next slot before which no run is open, and until all its runs are over.
    fn one(&mut self) -> Result<Measured> {
        let slot = loop {
            let slot = Duration::from_secs((since_1970()?.as_secs() + 2).next_multiple_of(PERIOD));
            while since_1970()? + LOOK < slot {
                std::thread::sleep((slot - since_1970()?).saturating_sub(LOOK));
            }
            if self.are_over(None)? {
                break slot;
            }
        };
        let micros = i64::try_from(slot.as_micros())?;
        self.wait(slot, || self.are_planned(micros))?;
        let claimed = since_1970()? - slot;
        let rows: u32 = self.store.query_row(
            "SELECT count(*) FROM slots WHERE scheduled_for = ?1 AND run IS NOT NULL",
            [micros],
            |row| row.get(0),
        )?;
        ensure!(rows as usize == TASKS, "{rows} rows with a run");
        self.wait(slot, || self.are_over(Some(micros)))?;
        let over = since_1970()? - slot;
        let runs = self.runs(micros)?;
        ensure!(runs.len() == TASKS, "{} runs", runs.len());
        let mut latest = i64::MIN;
        let mut out_of_order = 0;
        let mut starts = Vec::with_capacity(TASKS);
        for run in &runs {
            ensure!(run.state.as_str() == "succeeded", "run {} is {}: {:?}", run.id, run.state.as_str(), run.reason);
            let start = run.started_at.context("a run without a start")?.as_microsecond();
            out_of_order += usize::from(start < latest);
            latest = latest.max(start);
            starts.push((start - micros) as f64 / 1e3);
        }
        let mut written = 0.0_f64;
        for run in &runs[..POOL] {
            let at = modified(&self.server.home().join("out").join(run.task.as_str()))?;
            written = written.max((at.as_secs_f64() - slot.as_secs_f64()) * 1e3);
        }
        Ok(Measured { claimed, first: starts[..POOL].to_vec(), written, out_of_order, over })
    }

    /// Whether every task is planned to here, which is written in the transaction of its row. The last task is asked
    /// first: to look takes next to nothing of the machine that the server is measured on, until it is so.
    fn are_planned(&self, slot: i64) -> Result<bool> {
        let behind = "SELECT 1 FROM tasks WHERE planned < ?1 ORDER BY no DESC LIMIT 1";
        Ok(!self.store.prepare_cached(behind)?.exists([slot])?)
    }

    /// Whether the runs of a slot are over, or all runs.
    fn are_over(&self, slot: Option<i64>) -> Result<bool> {
        let open = "SELECT 1 FROM runs INDEXED BY runs_open_by_task
                    WHERE state IN ('queued', 'running', 'waiting') AND (?1 IS NULL OR slot = ?1)";
        Ok(!self.store.prepare_cached(open)?.exists([slot])?)
    }

    fn wait(&self, slot: Duration, is_so: impl Fn() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !is_so()? {
            ensure!(begun.elapsed() < PATIENCE, "not done long after the slot of {}", slot.as_secs());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The runs of a slot in the order of their claims.
    fn runs(&self, slot: i64) -> Result<Vec<Run>> {
        let mut rows = self.store.prepare("SELECT run FROM runs WHERE slot = ?1 ORDER BY id")?;
        let texts = rows.query_map([slot], |row| row.get::<_, String>(0))?;
        texts.map(|text| Ok(serde_json::from_str(&text?)?)).collect()
    }
}

fn since_1970() -> Result<Duration> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?)
}

fn modified(path: &Path) -> Result<Duration> {
    Ok(std::fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH)?)
}
