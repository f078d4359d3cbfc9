//! What the system says of this process, as every Prometheus client tells it: time of the processor, memory, descriptors.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// The process at one moment. What the system does not say is 0.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Process {
    /// Time of the processor, its own and the kernel's for it, in seconds.
    pub cpu_seconds: f64,
    /// Memory it has in the machine, in bytes.
    pub resident_bytes: u64,
    /// Addresses it has, in bytes.
    pub virtual_bytes: u64,
    /// Descriptors that are open.
    pub open_fds: u64,
    /// How many may be.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
    /// When it started, in seconds since 1970.
    pub start_seconds: f64,
}

impl Process {
    /// This process. Reads a few files of `/proc`.
    pub fn this() -> Self {
        let (ticks, page) = (system(SysconfVar::CLK_TCK, 100), system(SysconfVar::PAGE_SIZE, 4096));
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let of_system = fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = of_system.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        Self {
            // Beside the one that is opened to look.
            open_fds: fs::read_dir("/proc/self/fd").map_or(0, |all| (all.count() as u64).saturating_sub(1)),
            max_fds: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            ..Self::parse(&stat, booted.unwrap_or(0.0), ticks, page)
        }
    }

    /// Reads a line of `/proc/<pid>/stat`. The name may hold spaces and parentheses, so it ends at the last one.
    fn parse(stat: &str, booted: f64, ticks: u64, page: u64) -> Self {
        let behind = stat.rfind(')').map_or("", |close| &stat[close + 1..]);
        let fields: Vec<u64> = behind.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        // The first of these is the third of the line, its state (proc_pid_stat(5)).
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let seconds = |count: u64| count as f64 / ticks as f64;
        Self {
            cpu_seconds: seconds(field(14) + field(15)),
            threads: field(20),
            start_seconds: booted + seconds(field(22)),
            virtual_bytes: field(23),
            resident_bytes: field(24) * page,
            ..Self::default()
        }
    }
}

fn system(what: SysconfVar, usual: u64) -> u64 {
    sysconf(what).ok().flatten().and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_system_is_read_whatever_the_name_is() {
        let line =
            "7 (a) b (c) S 1 7 7 0 -1 4194304 9 0 0 0 250 50 1 2 20 0 12 0 4200 8192000 300 18446744073709551615";
        let read = Process::parse(line, 1000.0, 100, 4096);
        assert_eq!((read.cpu_seconds, read.threads, read.start_seconds), (3.0, 12, 1042.0));
        assert_eq!((read.virtual_bytes, read.resident_bytes), (8_192_000, 300 * 4096));
    }

    #[test]
    fn this_process_is_there() {
        let this = Process::this();
        assert!(this.resident_bytes > 0 && this.open_fds > 2 && this.max_fds >= this.open_fds && this.threads > 0);
        assert!(this.start_seconds > 1_600_000_000.0, "{this:?}");
    }
}
