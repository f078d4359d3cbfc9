//! What the system says of a process: processor time, memory, descriptors, threads, children that nobody has reaped.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// A process.
#[derive(Clone, Copy)]
pub struct Probe {
    pid: u32,
}

/// What a process has at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Memory that is resident, in KiB.
    pub resident_kib: u64,
    /// Of that, what no file is behind.
    pub anonymous_kib: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Children that have ended and were not reaped.
    pub zombies: u64,
}

impl Sample {
    /// Of each figure the one that is chosen between this and the other.
    pub fn or(&self, other: &Self, choose: fn(u64, u64) -> u64) -> Self {
        Self {
            resident_kib: choose(self.resident_kib, other.resident_kib),
            anonymous_kib: choose(self.anonymous_kib, other.anonymous_kib),
            descriptors: choose(self.descriptors, other.descriptors),
            threads: choose(self.threads, other.threads),
            zombies: choose(self.zombies, other.zombies),
        }
    }
}

impl Probe {
    /// Looks at a process.
    pub fn of(pid: u32) -> Self {
        Self { pid }
    }

    fn read(self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap()
    }

    /// The processor time it has used so far, in user and in system mode; exact to 10 ms.
    pub fn processor(self) -> Duration {
        let stat = self.read("stat");
        // The name in brackets may hold blanks.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// How it is now.
    pub fn sample(self) -> Sample {
        let status = self.read("status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
        };
        Sample {
            resident_kib: field("VmRSS:"),
            anonymous_kib: field("RssAnon:"),
            descriptors: std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count() as u64,
            threads: field("Threads:"),
            zombies: self.zombies(),
        }
    }

    /// What is open, by kind: files by their name, and how many sockets, pipes and others.
    pub fn open(self) -> BTreeMap<String, usize> {
        let mut open = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().flatten() {
            // Closed meanwhile.
            let Ok(what) = std::fs::read_link(entry.path()) else { continue };
            let what = what.to_string_lossy();
            let kind = match what.split_once(":[") {
                Some((kind, _)) => kind,
                None => what.rsplit('/').next().unwrap_or(&what),
            };
            *open.entry(kind.to_owned()).or_default() += 1;
        }
        open
    }

    fn zombies(self) -> u64 {
        let of_this = |entry: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let (state, parent) = (fields.next()?, fields.next()?.parse::<u32>().ok()?);
            (state == "Z" && parent == self.pid).then_some(())
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(of_this).count() as u64
    }
}

/// The slope of the straight line that lies closest to the points, by least squares, in units of y per unit of x.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let along: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let across: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    along / across
}

/// How far off that slope may well be: its standard error, in the same units.
pub fn error_of_slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y, slope) = (mean(|point| point.0), mean(|point| point.1), slope(points));
    let beside: f64 = points.iter().map(|point| (point.1 - y - slope * (point.0 - x)).powi(2)).sum();
    let across: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    (beside / (count - 2.0) / across).sqrt()
}

#[test]
fn the_slope_is_that_of_the_closest_line() {
    assert!((slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) - 2.0).abs() < 1e-9);
    assert!(slope(&[(0.0, 1.0), (1.0, 2.0), (2.0, 1.0)]).abs() < 1e-9);
    assert!(error_of_slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).abs() < 1e-9);
    // The residuals are -1/3, 2/3 and -1/3, with one degree of freedom; across are 2.
    assert!((error_of_slope(&[(0.0, 1.0), (1.0, 2.0), (2.0, 1.0)]) - (1.0f64 / 3.0).sqrt()).abs() < 1e-9);
}
