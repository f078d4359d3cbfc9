//! Whether anything else runs on this machine: what shares a core with the server or the client makes figures of
//! chance.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::process::Times;

/// A share of the machine that others may have while something is measured.
const MOST: f64 = 0.05;
/// How long it must have been quiet before something is measured.
const LOOK: Duration = Duration::from_millis(400);

/// The processor time of everybody, of this program with the servers it has ended, and of those that it has not, in ticks.
#[derive(Clone, Copy)]
struct Ticks {
    all: u64,
    busy: u64,
    own: u64,
    servers: u64,
}

fn ticks() -> Result<Ticks> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat has no total")?;
    let fields = line.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    // user nice system idle iowait irq softirq steal; what guests use is in user already.
    let all: u64 = fields.iter().take(8).sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    let (servers, own) = (used_by_children(), Times::read(Path::new("/proc/self"))?.all());
    Ok(Ticks { all, busy: all - idle, own, servers })
}

/// What the servers have used that still run, where the kernel tells (`CONFIG_PROC_CHILDREN`): that of those that ended is
/// this program's own.
fn used_by_children() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let used_by = |pid: &str| Times::read(&Path::new("/proc").join(pid)).map_or(0, |times| times.all());
    children.map(|children| children.split_whitespace().map(used_by).sum::<u64>()).sum()
}

/// The share of the machine that others had, and the servers that still run with them.
fn shares(before: Ticks, now: Ticks) -> (f64, f64) {
    let all = (now.all - before.all).max(1) as f64;
    let with_servers = (now.busy - before.busy).saturating_sub(now.own.saturating_sub(before.own));
    let others =
        (now.busy - before.busy).saturating_sub((now.own + now.servers).saturating_sub(before.own + before.servers));
    (others as f64 / all, with_servers as f64 / all)
}

/// Waits until nothing else runs, nor a server that still has something to do, at most until `deadline`.
///
/// # Errors
/// The system's.
pub fn wait(deadline: Instant) -> Result<()> {
    let mut before = ticks()?;
    while Instant::now() < deadline {
        std::thread::sleep(LOOK);
        let now = ticks()?;
        if shares(before, now).1 <= MOST {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Watches what others use while something is measured.
pub struct Watch(Ticks);

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// The system's.
    pub fn begin() -> Result<Self> {
        ticks().map(Self)
    }

    /// The share of the machine that others had.
    ///
    /// # Errors
    /// The system's.
    pub fn others(&self) -> Result<f64> {
        Ok(shares(self.0, ticks()?).0)
    }

    /// Whether others had so little that the figures stand.
    ///
    /// # Errors
    /// The system's.
    pub fn was_quiet(&self) -> Result<bool> {
        Ok(self.others()? <= 2.0 * MOST)
    }
}
