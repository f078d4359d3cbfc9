//! Whether anything else runs on this machine: what shares a core with the server or the client makes figures of
//! chance.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// A share of the machine that others may have while something is measured.
const MOST: f64 = 0.05;
/// How long it must have been quiet before something is measured.
const LOOK: Duration = Duration::from_millis(400);

/// The processor time of everybody and of this program with the servers it has ended, in ticks.
#[derive(Clone, Copy)]
struct Ticks {
    all: u64,
    busy: u64,
    own: u64,
}

fn ticks() -> Result<Ticks> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat has no total")?;
    let fields = line.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    // user nice system idle iowait irq softirq steal; what guests use is in user already.
    let all: u64 = fields.iter().take(8).sum();
    let idle: u64 = fields.iter().skip(3).take(2).sum();
    let own = std::fs::read_to_string("/proc/self/stat")?;
    let own = own.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let own = own.skip(11).take(4).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Ticks { all, busy: all - idle, own })
}

fn others(before: Ticks, now: Ticks) -> f64 {
    let busy = (now.busy - before.busy).saturating_sub(now.own - before.own);
    busy as f64 / (now.all - before.all).max(1) as f64
}

/// Waits until nothing else runs, at most until `deadline`.
///
/// # Errors
/// The system's.
pub fn wait(deadline: Instant) -> Result<()> {
    let mut before = ticks()?;
    while Instant::now() < deadline {
        std::thread::sleep(LOOK);
        let now = ticks()?;
        if others(before, now) <= MOST {
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
        Ok(others(self.0, ticks()?))
    }

    /// Whether others had so little that the figures stand.
    ///
    /// # Errors
    /// The system's.
    pub fn was_quiet(&self) -> Result<bool> {
        Ok(self.others()? <= 2.0 * MOST)
    }
}
