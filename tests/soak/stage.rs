//! A server as a process of its own, everybody's way to it, and a reader of its file that writes down every event
//! before retention takes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::follower::Counts;
use crate::harness::{Archive, Home, Process};
use crate::ledger::Ledger;
use crate::part::Part;
use crate::probe::Probe;
use crate::road::Road;
use crate::speaker::{Spoken, compare};

/// A task whose runs are fed from elsewhere.
pub const ELSEWHERE: &str = "title = \"Elsewhere\"\nagent = \"external\"\n";

/// A task of two short commands that runs by itself.
pub fn ticking(every: Duration) -> String {
    format!(
        "title = \"Ticking\"\n[schedule]\nevery = \"{}s\"\n[[steps]]\nname = \"one\"\nthought = \"And now?\"\n\
         run = \"echo one; echo two >&2\"\n[[steps]]\nname = \"two\"\nrun = \"seq 40\"\n",
        every.as_secs()
    )
}

/// How often the file is read.
const READ: Duration = Duration::from_millis(100);
/// How long the last events may take to reach the last watcher: the slow ones have much before them.
const SETTLE: Duration = Duration::from_secs(180);

/// The stage.
pub struct Stage {
    home: Home,
    /// The server.
    pub server: Process,
    /// The way to it.
    pub road: Arc<Road>,
    /// What was saved and seen.
    pub ledger: Arc<Ledger>,
    archivist: Archivist,
}

impl Stage {
    /// A server in a home, by the build of the part.
    pub async fn open(part: &Part, home: Home) -> Self {
        let home = home.run_by(&part.program);
        let server = home.spawn(&[]).await;
        let (road, ledger) = (Arc::new(Road::default()), Arc::new(Ledger::default()));
        road.point_at(server.client.address, &home.token());
        let archivist = Archivist::start(&home, &ledger);
        Self { home, server, road, ledger, archivist }
    }

    /// Looks at the server's process.
    pub fn probe(&self) -> Probe {
        Probe::of(self.server.pid())
    }

    /// Ends the load: the speakers bring their runs to an end, the schedules rest, and every watcher stays until it
    /// has the last event of each of its logs. Then all of it is compared.
    pub async fn close(
        self,
        part: &Part,
        scheduled: &[&str],
        speakers: JoinSet<Spoken>,
        watchers: JoinSet<Counts>,
    ) -> Counts {
        self.close_after(part, scheduled, speakers, watchers, async {}).await.0
    }

    /// The same; with what `last` gives that is done when all have left and before the server ends.
    pub async fn close_after<T>(
        self,
        part: &Part,
        scheduled: &[&str],
        mut speakers: JoinSet<Spoken>,
        mut watchers: JoinSet<Counts>,
        last: impl Future<Output = T>,
    ) -> (Counts, T) {
        let Self { home, mut server, road, ledger, archivist } = self;
        road.quieten();
        let client = server.client.clone();
        for task in scheduled {
            assert_eq!(client.post(&format!("/tasks/{task}/pause"), json!({})).await.0, 200);
        }
        let (mut spoken, mut runs, mut lines, mut cuts, mut abandoned) = (Vec::new(), 0, 0, 0, 0);
        while let Some(one) = speakers.join_next().await {
            let one = one.unwrap();
            runs += one.ended.len();
            (lines, cuts, abandoned) = (lines + one.lines, cuts + one.cuts, abandoned + one.abandoned);
            spoken.push(one);
        }
        let ends = Archive::open(&home).logs();
        for (task, ..) in &ends {
            let over = |page: &serde_json::Value| {
                page["items"].as_array().unwrap().iter().all(|run| !run["ended_at"].is_null())
            };
            client.until(&format!("/tasks/{task}/runs?limit=100"), over).await;
        }
        let ends = Archive::open(&home).logs();
        part.say(format!("quiet; the logs end at {:?}", ends.iter().map(|log| log.3).collect::<Vec<_>>()));
        road.ends_at(ends.iter().map(|(task, generation, _, head)| (task.clone(), (generation.clone(), *head))));
        let (mut counts, deadline) = (Counts::new(), Instant::now() + SETTLE);
        let mut late = 0;
        loop {
            match tokio::time::timeout_at(deadline, watchers.join_next()).await {
                Ok(Some(one)) => {
                    for (what, count) in one.unwrap() {
                        *counts.entry(what).or_default() += count;
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    late = watchers.len();
                    break;
                }
            }
        }
        let last = last.await;
        archivist.finish(&ends.iter().map(|log| ((log.0.clone(), log.1.clone()), log.3)).collect::<Vec<_>>());
        assert!(server.terminate().await.success(), "{}", home.log());
        if late > 0 {
            ledger.wrong(format!("{late} watchers do not have all there is after {SETTLE:?}: {}", road.missing()));
        }
        let living = |log: &(String, String)| ends.iter().any(|end| (&end.0, &end.1) == (&log.0, &log.1));
        let may_be_gone = |task: &str, log: Option<&(String, String)>| match log {
            Some(log) => !living(log),
            None => ledger.logs_of(task).iter().any(|log| !living(log)),
        };
        let gone: u64 = spoken.iter().map(|one| compare(&ledger, one, may_be_gone)).sum();
        let (saved, never_found) = ledger.totals();
        let (unread, of_deleted): (Vec<_>, Vec<_>) = never_found.into_iter().partition(|(log, _)| living(log));
        if !unread.is_empty() {
            ledger.wrong(format!("{} events were seen and never found in the file: {:?}", unread.len(), unread[0]));
        }
        let loud: Vec<String> = home.log().lines().filter(|line| line.contains(" ERROR ")).map(str::to_owned).collect();
        if let Some(first) = loud.first() {
            ledger.wrong(format!("the server logged {} errors: {first}", loud.len()));
        }
        part.note("events saved", saved);
        part.note("events seen of deleted logs, compared among watchers only", of_deleted.len());
        part.note("runs fed from elsewhere", runs);
        part.note("runs fed from elsewhere that others ended", abandoned);
        part.note("runs whose task was deleted before they were read to their end", gone);
        part.note("lines from elsewhere that were said to be kept", lines);
        part.note("cut requests of programs elsewhere", cuts);
        for what in ["lost", "doubled"] {
            part.note(what, counts.remove(what).unwrap_or_default());
        }
        part.note("watchers met", &counts);
        let (wrong, words) = ledger.verdict();
        part.note("wrong", wrong);
        assert!(wrong == 0, "{wrong} things are wrong, first of all: {}", words.join("\n"));
        (counts, last)
    }
}

/// Reads the file on a thread of its own.
struct Archivist {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    ledger: Arc<Ledger>,
}

impl Archivist {
    fn start(home: &Home, ledger: &Arc<Ledger>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (database, ledger, stop) = (home.database(), Arc::clone(ledger), Arc::clone(&stop));
            move || {
                let archive = Archive::at(&database);
                loop {
                    // Looked at before the file is, so that what was there at the end is read.
                    let last = stop.load(Ordering::SeqCst);
                    read(&archive, &ledger);
                    if last {
                        return;
                    }
                    std::thread::sleep(READ);
                }
            }
        });
        Self { stop, thread: Some(thread), ledger: Arc::clone(ledger) }
    }

    /// Reads to the end; all of these logs must have been read whole.
    fn finish(mut self, ends: &[((String, String), u64)]) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        for (log, head) in ends {
            if self.ledger.read_to(log) != *head {
                self.ledger.wrong(format!("{log:?} ends at {head} and was read to {}", self.ledger.read_to(log)));
            }
        }
    }
}

impl Drop for Archivist {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn read(archive: &Archive, ledger: &Ledger) {
    let new = archive.at_one_moment(|archive| {
        let new = |(task, generation, oldest, head): (String, String, u64, u64)| {
            let log = (task, generation);
            let after = ledger.read_to(&log).max(oldest.saturating_sub(1));
            let events = if after < head { archive.events_after(&log.0, after) } else { Vec::new() };
            (log, events)
        };
        archive.logs().into_iter().map(new).collect::<Vec<_>>()
    });
    for (log, events) in new {
        for (seq, event) in events {
            ledger.saved(&log, seq, &event);
        }
    }
}
