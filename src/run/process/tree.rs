//! Processes as `/proc` tells of them: who descends from whom, and a signal that cannot hit a stranger.
//!
//! Knows nothing of runs, tasks or tokio; the supervisor uses it before any runtime exists.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;

/// How long one freeze of a tree may take: a tree that grows faster than it can be stopped is killed as it stands
/// and looked at again.
const FREEZING: Duration = Duration::from_secs(1);

/// How long sending a signal may go on after ever new processes.
const SIGNALLING: Duration = Duration::from_millis(100);

/// One process, as it stood when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: i32,
    /// The id of its parent.
    pub(crate) parent: i32,
    /// When it started, in clock ticks since boot: with the id, it names a process for ever.
    pub(crate) start_ticks: u64,
    /// The state letter: `R`, `S`, `D` (uninterruptible), `T` (stopped), `Z` (ended, not reaped), ...
    pub(crate) state: char,
    /// How many threads it has; 0 or 1 for one that ended.
    pub(crate) threads: u32,
    /// The kernel's short name of it, at most 15 bytes.
    pub(crate) name: String,
}

impl Process {
    /// Looks at one process.
    pub(crate) fn look(pid: i32) -> Option<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&stat))
    }

    /// Reads a line of `/proc/<pid>/stat`. The name may hold spaces and parentheses, so it ends at the last one.
    fn parse(stat: &str) -> Option<Self> {
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let rest: Vec<&str> = stat.get(close + 1..)?.split_ascii_whitespace().collect();
        Some(Self {
            pid: stat.get(..open)?.trim().parse().ok()?,
            name: stat.get(open + 1..close)?.to_owned(),
            state: rest.first()?.chars().next()?,
            parent: rest.get(1)?.parse().ok()?,
            threads: rest.get(17)?.parse().ok()?,
            start_ticks: rest.get(19)?.parse().ok()?,
        })
    }

    /// What names it for ever.
    pub(crate) fn key(&self) -> (i32, u64) {
        (self.pid, self.start_ticks)
    }

    /// It ended and only waits to be reaped. (A leader that ended before its other threads is not over.)
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    /// Sends a signal to this very process and to no other that took over its id meanwhile. Says whether it was
    /// still there to be signalled.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let handle = pidfd_open(self.pid);
        // Looked at after the handle exists: from here on the handle cannot come to mean another process.
        let same = Self::look(self.pid).is_some_and(|now| now.start_ticks == self.start_ticks);
        if !same {
            return false;
        }
        match handle {
            Ok(handle) => pidfd_send_signal(&handle, signal).is_ok(),
            // A kernel before 5.3, or no descriptor left: the start time was compared a moment ago.
            Err(Errno::ENOSYS | Errno::EMFILE | Errno::ENFILE | Errno::EPERM | Errno::EINVAL) => {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), signal).is_ok()
            }
            Err(_) => false,
        }
    }
}

fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just given us this descriptor (close-on-exec) and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pidfd_send_signal(handle: &OwnedFd, signal: Signal) -> Result<(), Errno> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open; a null siginfo means "as kill(2) would fill it".
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal as i32, none, 0) };
    Errno::result(sent).map(drop)
}

/// Every process of this machine that can be seen, looked at one after another as the iterator goes.
pub(crate) fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Process::look)
}

/// The children of a process; `None` where the kernel has no such list.
fn children(pid: i32) -> Option<Vec<i32>> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Some(Vec::new()) };
    let mut children = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(list.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // The thread is there and the list is not: a kernel built without it.
            Err(_) if thread.path().exists() => return None,
            Err(_) => {}
        }
    }
    Some(children)
}

/// Calls `visit` on every descendant of `root`, each as soon as it is seen and parents before their children: a
/// parent that `visit` stops has no more children than are found after it.
pub(crate) fn walk(root: i32, visit: &mut dyn FnMut(&Process)) {
    let mut seen = HashSet::from([root]);
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        let Some(children) = children(parent) else { return walk_slowly(root, visit) };
        for child in children.into_iter().filter_map(Process::look) {
            if seen.insert(child.pid) {
                visit(&child);
                next.push(child.pid);
            }
        }
    }
}

/// The same where the kernel lists no children: from a look at everybody.
fn walk_slowly(root: i32, visit: &mut dyn FnMut(&Process)) {
    let all: Vec<Process> = all().collect();
    for process in descendants(&all, root) {
        visit(process);
    }
}

fn descendants(all: &[Process], root: i32) -> Vec<&Process> {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut seen = HashSet::from([root]);
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if seen.insert(child.pid) {
                next.push(child.pid);
                found.push(*child);
            }
        }
    }
    found
}

/// A look at all that belong to something: calls its argument on each as soon as it is seen.
pub(crate) type Look<'a> = &'a mut dyn FnMut(&mut dyn FnMut(&Process));

/// Sends `signal`, and SIGCONT after it, to all that `look` shows, and looks again until it shows nobody new: a
/// process that was born meanwhile is not left out.
pub(crate) fn signal_all(look: Look<'_>, signal: Signal) {
    let mut seen = HashSet::new();
    repeat(SIGNALLING, || {
        let before = seen.len();
        look(&mut |process| {
            if !process.is_over() && seen.insert(process.key()) {
                process.signal(signal);
                // A stopped process takes the signal only once it goes on.
                process.signal(Signal::SIGCONT);
            }
        });
        seen.len() > before
    });
}

/// Kills all that `look` shows. They are stopped first, until no new one appears: what is stopped cannot fork, so
/// that this converges against a tree that keeps forking. Returns whom it has killed.
pub(crate) fn kill_all(look: Look<'_>) -> Vec<Process> {
    let mut frozen = HashMap::new();
    repeat(FREEZING, || {
        let before = frozen.len();
        look(&mut |process| {
            if !process.is_over() && !frozen.contains_key(&process.key()) {
                process.signal(Signal::SIGSTOP);
                frozen.insert(process.key(), process.clone());
            }
        });
        frozen.len() > before
    });
    frozen.into_values().filter(|process| process.signal(Signal::SIGKILL)).collect()
}

/// Again while there was something new, but not beyond `limit`.
fn repeat(limit: Duration, mut again: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while again() && Instant::now() < end {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, start_ticks: 1, state: 'S', threads: 1, name: String::new() }
    }

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) (b c) S 7 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 3 0 9917 1 2 3";
        let process = Process::parse(line).unwrap();
        assert_eq!((process.pid, process.parent, process.state), (42, 7, 'S'));
        assert_eq!((process.threads, process.start_ticks), (3, 9917));
        assert_eq!(process.name, "a) (b c");
    }

    #[test]
    fn descendants_are_found_through_every_generation_and_strangers_are_not() {
        let all = [process(9, 1), process(2, 1), process(3, 2), process(4, 3), process(1, 0)];
        let mut found: Vec<i32> = descendants(&all, 2).iter().map(|process| process.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [3, 4]);
    }

    #[test]
    fn a_signal_misses_a_process_that_only_has_the_same_id() {
        let mut stranger = Process::look(std::process::id().cast_signed()).unwrap();
        stranger.start_ticks += 1;
        assert!(!stranger.signal(Signal::SIGKILL));
    }
}
