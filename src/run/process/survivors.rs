//! What an earlier server left behind, found by its marks.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::tree::{self, Process};
use super::wire::Left;
use crate::event::RunId;

/// How long ending them may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What [`end_survivors`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The processes that were killed: id and the kernel's short name.
    pub killed: Vec<(i32, String)>,
    /// Those that were still there after five seconds: uninterruptible, or not ours to kill.
    pub left: Vec<Left>,
}

/// Ends what runs of an earlier server left behind: processes whose environment at their start named one of `runs`
/// as `REJOIN_RUN`, the `recorded` supervisors (process id and start time in clock ticks since boot, so that a
/// reused id is nobody's), and all their descendants. This process and those it descends from are never touched.
///
/// Blocks for at most about five seconds; call it before the runtime starts or from a blocking task.
pub fn end_survivors(runs: &HashSet<RunId>, recorded: &[(i32, u64)]) -> Ended {
    let marks: HashSet<Vec<u8>> =
        runs.iter().map(|run| format!("REJOIN_RUN={run}").into_bytes()).collect();
    let is_marked = |process: &Process| {
        recorded.contains(&(process.pid, process.start_ticks))
            || (!marks.is_empty() && environment_has(process.pid, |entry| marks.contains(entry)))
    };
    end(is_marked)
}

/// Ends what is left of one command whose supervisor was lost.
pub(crate) fn end_command(run: RunId, call: &str) -> Ended {
    let marks = [format!("REJOIN_RUN={run}"), format!("REJOIN_CALL={call}")];
    end(|process| {
        marks.iter().all(|mark| environment_has(process.pid, |entry| entry == mark.as_bytes()))
    })
}

fn environment_has(pid: i32, test: impl Fn(&[u8]) -> bool) -> bool {
    let environment = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ"));
    environment.is_ok_and(|all| all.split(|byte| *byte == 0).any(test))
}

fn end(is_marked: impl Fn(&Process) -> bool) -> Ended {
    let mut ended = Ended::default();
    let mut counted = HashSet::new();
    let give_up = Instant::now() + PATIENCE;
    // Once one was found it stays one of ours, even when the parent that made it so is gone.
    let mut ours = HashSet::new();
    loop {
        let mut scan = || {
            let mut found = scan(&is_marked, &ours);
            ours.extend(found.iter().map(|process| (process.pid, process.start_ticks)));
            found.retain(|process| !process.is_over());
            found
        };
        for process in tree::kill_all(&mut scan) {
            if counted.insert((process.pid, process.start_ticks)) {
                ended.killed.push((process.pid, process.name));
            }
        }
        let left = scan();
        if left.is_empty() || Instant::now() >= give_up {
            let left = left.into_iter();
            ended.left = left
                .map(|process| Left { pid: process.pid, name: process.name, state: process.state })
                .collect();
            return ended;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn scan(is_marked: &impl Fn(&Process) -> bool, ours: &HashSet<(i32, u64)>) -> Vec<Process> {
    let all = tree::all();
    let spared = ourselves(&all);
    let roots: Vec<Process> = all
        .iter()
        .filter(|process| !spared.contains(&process.pid))
        .filter(|process| ours.contains(&(process.pid, process.start_ticks)) || is_marked(process))
        .cloned()
        .collect();
    let mut found = tree::descendants(&all, &roots.iter().map(|process| process.pid).collect());
    found.retain(|process| !spared.contains(&process.pid));
    found.extend(roots);
    found
}

/// This process and its ancestors: a server may itself have been started by a task of another.
fn ourselves(all: &[Process]) -> HashSet<i32> {
    let mut spared = HashSet::from([0, 1]);
    let mut pid = std::process::id().cast_signed();
    while spared.insert(pid) {
        pid = all.iter().find(|process| process.pid == pid).map_or(0, |process| process.parent);
    }
    spared
}
