//! What a server is killed in: tasks by schedule, by hand and from elsewhere, those who watch, and what must hold
//! afterwards.
#![allow(dead_code, reason = "not every build of the tests needs all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::{Client, Home, PATIENCE, Process};
use crate::kills_recorder::Recorder;

/// What is due is looked for soon after a start.
pub const SOON: &str = "[schedule]\nlook_again = \"1s\"";

/// Runs every second, and is over well before the next.
const TICK: &str = r#"
title = "Tick"
[schedule]
every = "1s"
[[steps]]
name = "one"
thought = "A second has passed."
run = "echo one"
[[steps]]
name = "two"
thought = "And now?"
run = "echo two; echo three >&2"
"#;

/// Many short steps, by hand.
fn talk() -> String {
    let mut text = "title = \"Talk\"\n".to_owned();
    for step in 0..8 {
        text.push_str(&format!(
            "[[steps]]\nname = \"s{step}\"\nthought = \"Step {step}\"\nrun = \"echo {step}; sleep 0.02\"\n"
        ));
    }
    text
}

/// A home with both tasks, its recorder, and what the kills left behind.
pub struct Scene {
    home: Home,
    recorder: Recorder,
    /// Told where each server is.
    others: Vec<Pointer>,
    /// Runs that were at work at a kill.
    at_work: BTreeSet<String>,
    /// Runs by hand that waited at a kill and were not yet at work at a later one.
    waited: BTreeSet<String>,
    /// Kills with an event at the recorder within the 100 ms before.
    fresh: usize,
    kills: usize,
}

/// Tells somebody where the server is, with the token.
pub type Pointer = Box<dyn Fn(SocketAddr, &str) + Send + Sync>;

/// What a scene came to.
pub struct Checked {
    /// The home, with no server in it.
    pub home: Home,
    /// How often a server was killed.
    pub kills: usize,
    /// How many of the kills had an event at the recorder within the 100 ms before.
    pub fresh: usize,
    /// How often the recorder came back to a log.
    pub resumed: usize,
}

impl Scene {
    /// A scene with nothing but the two tasks and one recorder.
    pub fn new() -> Self {
        Self::on(Home::new(SOON), Vec::new())
    }

    /// A scene on a home that has more, and with others who want to know where the server is.
    pub fn on(home: Home, others: Vec<Pointer>) -> Self {
        let home = home.task("tick", TICK).task("talk", &talk());
        let recorder = Recorder::start(&["tick", "talk"]);
        Self { home, recorder, others, at_work: BTreeSet::new(), waited: BTreeSet::new(), fresh: 0, kills: 0 }
    }

    /// A server on what there is. No process of a run that an earlier one had at work is left then.
    pub async fn spawn(&self, environment: &[(&str, &str)]) -> Process {
        let server = self.home.spawn(environment).await;
        self.follow(&server);
        server
    }

    fn follow(&self, server: &Process) {
        let token = self.home.token();
        self.recorder.point_at(server.client.address, &token);
        for tell in &self.others {
            tell(server.client.address, &token);
        }
        let left = processes_of(&self.at_work);
        assert!(left.is_empty(), "of runs that are over there are still {left:?}");
    }

    /// One server that is killed at a point.
    pub async fn kill_at(&mut self, point: &str) {
        match self.home.try_spawn(&[("REJOIN_FAILPOINT", point)]) {
            Ok(server) => {
                self.follow(&server);
                self.drive_until_killed(server).await;
            }
            // What is due at its start has brought it to the point before it was ready.
            Err(ended) => self.note_end(ended, false),
        }
    }

    /// One server that is killed after a while, at a moment at which something is going on.
    pub async fn kill_after(&mut self, pause: Duration) {
        let mut server = self.spawn(&[]).await;
        for _ in 0..2 {
            let request = server.client.request(reqwest::Method::POST, "/tasks/talk/runs").json(&json!({}));
            let _ = request.send().await;
        }
        tokio::time::sleep(pause).await;
        let deadline = Instant::now() + PATIENCE;
        while !self.is_fresh() {
            assert!(Instant::now() < deadline, "nothing is going on: {}", self.home.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        self.note_kill(true);
    }

    /// Notes what the file says right after a kill.
    fn note_kill(&mut self, fresh: bool) {
        self.kills += 1;
        self.fresh += usize::from(fresh);
        for (run, state, slot) in open_runs(&self.home) {
            if state == "queued" {
                if slot.is_none() {
                    self.waited.insert(run);
                }
            } else {
                self.waited.remove(&run);
                self.at_work.insert(run);
            }
        }
    }

    /// Asks for runs until the server is gone.
    async fn drive_until_killed(&mut self, mut server: Process) {
        let client = server.client.clone();
        let driver = tokio::spawn(async move {
            loop {
                // Cut off in the middle, or too many wait: both are fine.
                let request = client.request(reqwest::Method::POST, "/tasks/talk/runs").json(&json!({}));
                let _ = tokio::time::timeout(PATIENCE, request.send()).await;
                tokio::time::sleep(Duration::from_millis(120)).await;
            }
        });
        let ended = server.ended().await;
        let fresh = self.is_fresh();
        driver.abort();
        self.note_end(ended, fresh);
    }

    fn note_end(&mut self, ended: ExitStatus, fresh: bool) {
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended);
        assert_eq!(signal, Some(9), "the point was never passed: {ended:?}\n{}", self.home.log());
        self.note_kill(fresh);
    }

    fn is_fresh(&self) -> bool {
        self.recorder.quiet_for().is_some_and(|quiet| quiet < Duration::from_millis(100))
    }

    /// Starts once more without kills and checks everything.
    pub async fn check(self) -> Checked {
        let server = self.spawn(&[]).await;
        self.check_on(server).await
    }

    /// Checks everything on a server that was started without kills, and ends it.
    pub async fn check_on(self, mut server: Process) -> Checked {
        let client = server.client.clone();
        // However soon the kills came: one slot at least, or there is nothing to check.
        client
            .until("/tasks/tick/slots", |slots| slots["items"].as_array().is_some_and(|items| !items.is_empty()))
            .await;
        assert_eq!(client.post("/tasks/tick/pause", json!({})).await.0, 200);
        for task in ["tick", "talk"] {
            all_over(&client, task).await;
            // No task is wedged.
            let run = client.run(task).await;
            assert_eq!(client.ended(&run).await["state"], "succeeded");
        }
        self.check_runs(&client).await;
        let mut heads = Vec::new();
        for task in ["tick", "talk"] {
            heads.push((task, client.get(&format!("/tasks/{task}")).await.1["head"].as_u64().unwrap()));
        }
        self.recorder.reaches(&heads).await;
        assert!(server.terminate().await.success(), "{}", self.home.log());

        let Self { home, recorder, fresh, kills, .. } = self;
        let seen = recorder.end();
        for task in ["tick", "talk"] {
            let logged = home.logged(task);
            let numbers: Vec<u64> = logged.iter().map(|(seq, _)| *seq).collect();
            assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "the log of {task} has a gap");
            // The recorder saw each number once, in order (it says so itself), up to the head: all, and the same.
            assert_eq!(seen.events[task], logged, "{task}: what was seen is not what is saved");
            check_starts(&home, task);
        }
        check_slots(&home);
        Checked { home, kills, fresh, resumed: seen.resumed.len() }
    }

    /// What was at work is interrupted, what waited has run, and nothing is left of what is over.
    async fn check_runs(&self, client: &Client) {
        for run in &self.at_work {
            let run = client.get(&format!("/runs/{run}")).await.1;
            assert_eq!(run["state"], "interrupted", "{run}");
        }
        for run in &self.waited {
            let run = client.get(&format!("/runs/{run}")).await.1;
            assert!(!run["started_at"].is_null(), "it waited and never started: {run}");
        }
        let all: BTreeSet<String> = all_runs(&self.home);
        let left = processes_of(&all);
        assert!(left.is_empty(), "all runs are over and there are still {left:?}");
    }
}

/// Waits until no run of a task is left that is not over; as long as they go on, however many they are.
async fn all_over(client: &Client, task: &str) {
    let (mut left, mut deadline) = (usize::MAX, Instant::now() + PATIENCE);
    while left > 0 {
        let page = client.get(&format!("/tasks/{task}/runs?limit=500")).await.1;
        let open = page["items"].as_array().unwrap().iter().filter(|run| run["ended_at"].is_null()).count();
        if open < left {
            (left, deadline) = (open, Instant::now() + PATIENCE);
        }
        assert!(Instant::now() < deadline, "{open} runs of {task} do not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn open(home: &Home) -> Connection {
    Connection::open_with_flags(home.database(), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// The runs that are not over in the file: id, state, slot.
fn open_runs(home: &Home) -> Vec<(String, String, Option<i64>)> {
    let file = open(home);
    let mut rows = file
        .prepare(
            "SELECT runs.id, state, slot FROM runs JOIN tasks ON tasks.no = runs.task
             WHERE tasks.id IN ('tick', 'talk') AND state IN ('queued', 'running', 'waiting')",
        )
        .unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn all_runs(home: &Home) -> BTreeSet<String> {
    let file = open(home);
    let mut rows = file.prepare("SELECT id FROM runs").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// The living processes that carry the mark of one of these runs.
pub fn processes_of(runs: &BTreeSet<String>) -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Of a process that is over and only not yet reaped this is empty.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        for variable in environment.split(|byte| *byte == 0) {
            if let Some(run) = variable.strip_prefix(b"REJOIN_RUN=") {
                let run = String::from_utf8_lossy(run).into_owned();
                if runs.contains(&run) {
                    found.push((pid, run));
                }
            }
        }
    }
    found
}

/// No run starts twice, none says anything after its end, and no attempt of a slot is two runs.
fn check_starts(home: &Home, task: &str) {
    let mut starts: BTreeMap<String, usize> = BTreeMap::new();
    let mut ended: BTreeSet<String> = BTreeSet::new();
    let mut of_slot: BTreeMap<(String, u64), usize> = BTreeMap::new();
    for (seq, text) in home.logged_events(task) {
        let event: Value = serde_json::from_str(&text).unwrap();
        let Some(run) = event["run"].as_str() else { continue };
        assert!(!ended.contains(run), "{task}: {seq} follows the end of its run: {text}");
        if event["kind"] != "status" {
            continue;
        }
        match event["data"]["state"].as_str().unwrap() {
            "queued" => {
                if let Some(slot) = event["data"]["scheduled_for"].as_str() {
                    let attempt = event["data"]["attempt"].as_u64().unwrap_or(1);
                    *of_slot.entry((slot.to_owned(), attempt)).or_default() += 1;
                }
            }
            "started" => *starts.entry(run.to_owned()).or_default() += 1,
            "succeeded" | "failed" | "cancelled" | "timed_out" | "interrupted" => drop(ended.insert(run.to_owned())),
            _ => {}
        }
    }
    assert!(starts.values().all(|count| *count == 1), "{task}: {starts:?}");
    assert!(of_slot.values().all(|count| *count == 1), "{task}: {of_slot:?}");
    assert_eq!(ended, all_runs_of(home, task), "every run of {task} has its end in the log");
}

fn all_runs_of(home: &Home, task: &str) -> BTreeSet<String> {
    let file = open(home);
    let mut rows =
        file.prepare("SELECT runs.id FROM runs JOIN tasks ON tasks.no = runs.task WHERE tasks.id = ?1").unwrap();
    rows.query_map([task], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Every second from the first slot to the last has exactly one row, and none is left open.
fn check_slots(home: &Home) {
    const SECOND: i64 = 1_000_000;
    let file = open(home);
    let mut rows =
        file.prepare("SELECT scheduled_for, through, count, outcome FROM slots ORDER BY scheduled_for").unwrap();
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
    let rows: Vec<(i64, i64, i64, String)> = rows.map(Result::unwrap).collect();
    assert!(!rows.is_empty());
    for (first, through, count, outcome) in &rows {
        assert_eq!(*count, (through - first) / SECOND + 1, "{rows:?}");
        assert!(outcome != "pending" && outcome != "queued", "{rows:?}");
    }
    for pair in rows.windows(2) {
        assert_eq!(pair[1].0, pair[0].1 + SECOND, "a slot has no row, or two: {rows:?}");
    }
}
