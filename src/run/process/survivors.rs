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
    let marks: HashSet<Vec<u8>> = runs.iter().map(|run| format!("REJOIN_RUN={run}").into_bytes()).collect();
    let is_marked = |process: &Process| {
        recorded.contains(&(process.pid, process.start_ticks))
            || (!marks.is_empty() && environment_has(process.pid, |entry| marks.contains(entry)))
    };
    end(is_marked)
}

/// Ends what is left of one command whose supervisor was lost.
pub(crate) fn end_command(run: RunId, call: &str) -> Ended {
    let marks = [format!("REJOIN_RUN={run}"), format!("REJOIN_CALL={call}")];
    end(|process| marks.iter().all(|mark| environment_has(process.pid, |entry| entry == mark.as_bytes())))
}

fn environment_has(pid: i32, test: impl Fn(&[u8]) -> bool) -> bool {
    let environment = std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ"));
    environment.is_ok_and(|all| all.split(|byte| *byte == 0).any(test))
}

fn end(is_marked: impl Fn(&Process) -> bool) -> Ended {
    let mut ended = Ended::default();
    let mut counted = HashSet::new();
    let spared = ourselves();
    // Once one was found it stays one of ours, even when the parent that made it so is gone.
    let mut ours = HashSet::new();
    let mut look = |visit: &mut dyn FnMut(&Process)| {
        for process in tree::all().filter(|process| !spared.contains(&process.pid)) {
            if !ours.contains(&process.key()) && !is_marked(&process) {
                continue;
            }
            let mut claim = |process: &Process| {
                if !spared.contains(&process.pid) {
                    ours.insert(process.key());
                    visit(process);
                }
            };
            claim(&process);
            tree::walk(process.pid, &mut claim);
        }
    };
    let give_up = Instant::now() + PATIENCE;
    loop {
        for process in tree::kill_all(&mut look) {
            if counted.insert(process.key()) {
                ended.killed.push((process.pid, process.name));
            }
        }
        let mut left = Vec::new();
        look(&mut |process| {
            if !process.is_over() {
                left.push(Left { pid: process.pid, name: process.name.clone(), state: process.state });
            }
        });
        if left.is_empty() || Instant::now() >= give_up {
            ended.left = left;
            return ended;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// This process and its ancestors: a server may itself have been started by a task of another.
fn ourselves() -> HashSet<i32> {
    let mut spared = HashSet::from([0, 1]);
    let mut pid = std::process::id().cast_signed();
    while spared.insert(pid) {
        pid = Process::look(pid).map_or(0, |process| process.parent);
    }
    spared
}
