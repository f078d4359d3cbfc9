//! What the system says of a process.

use std::path::Path;

use anyhow::Result;

/// The processor time of a process, in ticks.
pub struct Times {
    /// In user and in system mode.
    pub own: u64,
    /// The same of those of its children that are over and were waited for.
    pub children: u64,
}

impl Times {
    /// Reads them; `process` is a folder of `/proc`.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read(process: &Path) -> Result<Self> {
        let stat = std::fs::read_to_string(process.join("stat"))?;
        // The name in brackets may hold blanks; behind it utime, stime, cutime and cstime are the 12th field to the 15th.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let times = fields.skip(11).take(4).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let (own, children) = times.split_at(times.len().min(2));
        Ok(Self { own: own.iter().sum(), children: children.iter().sum() })
    }

    /// All of it.
    pub fn all(&self) -> u64 {
        self.own + self.children
    }
}
