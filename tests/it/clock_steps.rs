//! What a clock that is set does to schedules, in a server that runs: the table of `docs/decisions/0020`, read from there.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use serde_json::{Value, json};

use crate::harness::{Home, InProcess};

const TABLE: &str = include_str!("../../docs/decisions/0020-what-a-clock-that-was-set-does.md");
const OVERLAPS: [&str; 4] = ["skip", "queue", "replace", "allow"];
const CATCHUPS: [&str; 3] = ["none", "last", "all"];

fn noon() -> Timestamp {
    "2026-05-01T12:00:00Z".parse().unwrap()
}

/// A server at noon with a task for each pair of policies, once with runs that are over at once and once with runs
/// that go on; the first slot has run.
struct Scene {
    server: InProcess,
    clock: Clock,
    _home: Home,
}

fn name(overlap: &str, catchup: &str, is_active: bool) -> String {
    format!("{overlap}-{catchup}-{}", if is_active { "active" } else { "idle" })
}

impl Scene {
    async fn set() -> Self {
        let mut home = Home::new("[runs]\nconcurrency = 500\nstop_term = \"1s\"");
        for overlap in OVERLAPS {
            for catchup in CATCHUPS {
                for (is_active, run) in [(false, "true"), (true, "exec sleep 600")] {
                    let task = format!(
                        "title = \"Due\"\n[schedule]\nevery = \"1m\"\n[policy]\noverlap = \"{overlap}\"\nqueue_limit = 2\n\
                         catchup = \"{catchup}\"\ncatchup_window = \"5m\"\ncatchup_limit = 10\n[[steps]]\nrun = \"{run}\"\n"
                    );
                    home = home.task(&name(overlap, catchup, is_active), &task);
                }
            }
        }
        let clock = Clock::standing_at(noon());
        let server = home.serve_at(clock.clone()).await;
        let scene = Self { server, clock, _home: home };
        scene.pass(60).await;
        for task in scene.tasks() {
            let state = if task.ends_with("active") { "running" } else { "succeeded" };
            let runs = format!("/tasks/{task}/runs");
            scene.server.client.until(&runs, |page| page["items"][0]["state"] == state).await;
        }
        scene.pass(20).await;
        scene
    }

    fn tasks(&self) -> Vec<String> {
        let pairs = OVERLAPS.iter().flat_map(|overlap| CATCHUPS.iter().map(move |catchup| (overlap, catchup)));
        pairs.flat_map(|(overlap, catchup)| [false, true].map(|active| name(overlap, catchup, active))).collect()
    }

    /// Waits until the planner has looked at the clock as it stands, and is through.
    async fn looked(&self) {
        self.server.server.api().planner.notify_one();
        let now = rejoin::clock::rfc3339(self.clock.now());
        self.server.client.until("/status", |status| status["clock"]["looked_at"] == now).await;
    }

    async fn pass(&self, seconds: u64) {
        self.clock.pass(Duration::from_secs(seconds));
        self.looked().await;
    }

    async fn step(&self, seconds: i64) {
        self.clock.set(self.clock.now() + SignedDuration::from_secs(seconds));
        self.looked().await;
    }

    /// What became of each slot of a task, by its minute from noon on; with the run that each has.
    async fn slots(&self, task: &str) -> BTreeMap<i64, (String, Value)> {
        let page = self.server.client.get(&format!("/tasks/{task}/slots?limit=500")).await.1;
        let mut slots = BTreeMap::new();
        for slot in page["items"].as_array().unwrap() {
            let minute =
                |at: &Value| (at.as_str().unwrap().parse::<Timestamp>().unwrap().as_second() - noon().as_second()) / 60;
            let first = minute(&slot["scheduled_for"]);
            let last = if slot["to"].is_null() { first } else { minute(&slot["to"]) };
            assert_eq!(slot["count"], last - first + 1, "{slot}");
            for minute in first..=last {
                let outcome = slot["outcome"].as_str().unwrap().to_owned();
                let twice = slots.insert(minute, (outcome, slot["run"].clone()));
                assert!(twice.is_none(), "{task} has minute {minute} twice");
            }
        }
        slots
    }

    /// Waits until what became of a task's slots behind the first is as a cell of the table says. `minutes` are those that
    /// a number of the table stands for.
    async fn is_as(&self, task: &str, cell: &str, minutes: impl Fn(i64) -> Vec<i64>) {
        let expected = read(cell, task.ends_with("active"), minutes);
        let mut found = BTreeMap::new();
        let begun = std::time::Instant::now();
        while begun.elapsed() < crate::harness::PATIENCE {
            found = self.slots(task).await;
            found.retain(|minute, _| *minute > 1);
            let outcomes: BTreeMap<i64, &str> =
                found.iter().map(|(at, (outcome, _))| (*at, outcome.as_str())).collect();
            let wanted: BTreeMap<i64, &str> = expected.iter().map(|(at, (outcome, _))| (*at, *outcome)).collect();
            if outcomes == wanted {
                for (minute, (_, into)) in &expected {
                    let into = into.unwrap_or(*minute);
                    assert_eq!(found[minute].1, found[&into].1, "{task}: the run of minute {minute} is that of {into}");
                }
                return;
            }
            tokio::task::yield_now().await;
        }
        let last: Vec<_> = found.iter().rev().take(12).collect();
        panic!("{task}: {cell:?} is not what became of {} slots: {last:?}", found.len());
    }

    async fn end(self) {
        for task in self.tasks() {
            self.server.client.post(&format!("/tasks/{task}/pause"), json!({})).await;
            let runs = self.server.client.get(&format!("/tasks/{task}/runs?limit=50&state=running")).await.1;
            for run in runs["items"].as_array().unwrap() {
                self.server.client.post(&format!("/runs/{}/stop", run["id"].as_str().unwrap()), json!({})).await;
            }
        }
        self.server.stop().await;
    }
}

/// What a command says that speaks with a server.
async fn rejoin(server: &InProcess, line: &[&str]) -> String {
    let mut command = tokio::process::Command::new(crate::harness::REJOIN);
    command.args(line).args(["--server", &format!("http://{}", server.client.address)]);
    let output = command.env("REJOIN_TOKEN", &server.client.token).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A cell of the table: of each minute what becomes of it in the end, and into which it is made part of.
fn read(cell: &str, is_active: bool, minutes: impl Fn(i64) -> Vec<i64>) -> BTreeMap<i64, (&'static str, Option<i64>)> {
    let mut expected = BTreeMap::new();
    for clause in cell.split(", ") {
        let is_slots = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) || *word == "and";
        let words: Vec<&str> = clause.split(' ').collect();
        let slots: Vec<&str> = words.iter().copied().take_while(is_slots).collect();
        let what = words[slots.len()..].join(" ");
        let number = |text: &str| text.parse::<i64>().unwrap_or_else(|_| panic!("{clause:?}"));
        let (outcome, into) = match what.as_str() {
            "missed" => ("missed", None),
            "skipped" => ("skipped", None),
            "runs" | "replaces" => ("ran", None),
            "runs late" | "run late" => ("late", None),
            "waits" | "wait" | "waits late" | "wait late" if is_active => ("queued", None),
            "waits" | "wait" => ("ran", None),
            "waits late" | "wait late" => ("late", None),
            coalesced => {
                let into = coalesced.strip_prefix("coalesced into ").unwrap_or_else(|| panic!("{clause:?}"));
                ("coalesced", Some(minutes(number(into))[0]))
            }
        };
        for slots in slots.into_iter().filter(|word| *word != "and") {
            let (first, last) = slots.split_once('–').unwrap_or((slots, slots));
            for slot in number(first)..=number(last) {
                for minute in minutes(slot) {
                    assert!(expected.insert(minute, (outcome, into)).is_none(), "{cell:?}");
                }
            }
        }
    }
    expected
}

/// The rows of the nth table under a heading; "the same" is what stands above it.
fn table(heading: &str, nth: usize) -> Vec<(String, Vec<String>)> {
    let begin = format!("| {heading} |");
    let (at, _) = TABLE.match_indices(&begin).nth(nth).unwrap_or_else(|| panic!("no table {heading:?}"));
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for line in TABLE[at..].lines().skip(2).take_while(|line| line.starts_with('|')) {
        let mut cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        let overlap = cells.remove(0).split(' ').next().unwrap().to_owned();
        for (at, cell) in cells.iter_mut().enumerate().filter(|(_, cell)| *cell == "the same") {
            cell.clone_from(&rows.last().unwrap().1[at]);
        }
        rows.push((overlap, cells));
    }
    assert_eq!(rows.iter().map(|(overlap, _)| overlap.as_str()).collect::<Vec<_>>(), OVERLAPS, "{heading}");
    rows
}

/// Checks all pairs against the two tables under a heading: nothing active, and a run active.
async fn all_are_as(scene: &Scene, heading: &str, minutes: impl Fn(i64) -> Vec<i64> + Copy) {
    for is_active in [false, true] {
        for (overlap, cells) in table(heading, usize::from(is_active)) {
            for (catchup, cell) in CATCHUPS.into_iter().zip(cells) {
                scene.is_as(&name(&overlap, catchup, is_active), &cell, minutes).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_clock_set_forward_by_ten_minutes_is_as_the_table_says() {
    let scene = Scene::set().await;
    scene.step(600).await;
    all_are_as(&scene, "+10 min", |slot| vec![slot]).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_clock_set_forward_by_a_day_is_believed_after_a_minute_and_as_the_table_says() {
    let scene = Scene::set().await;
    scene.step(24 * 3600).await;
    let jumped = |status: &Value| status["clock"]["jumped"] == true && status["clock"]["held_until"].is_null();
    assert!(jumped(&scene.server.client.get("/status").await.1));
    scene.pass(59).await;
    for task in scene.tasks() {
        assert_eq!(scene.slots(&task).await.len(), 1, "{task} was planned before the clock was believed");
    }
    scene.pass(1).await;
    assert!(!jumped(&scene.server.client.get("/status").await.1));
    let minutes = |slot: i64| match slot {
        2 => (2..=1433).collect(),
        slot @ 3..=6 => vec![slot + 1431],
        slot => vec![slot + 1431],
    };
    all_are_as(&scene, "+10 min", minutes).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_clock_set_forward_by_mistake_and_back_within_a_minute_plans_nothing() {
    let scene = Scene::set().await;
    scene.step(24 * 3600).await;
    scene.pass(30).await;
    scene.step(-24 * 3600).await;
    // It is 12:01:50.
    scene.pass(15).await;
    for task in scene.tasks() {
        let slots = scene.slots(&task).await;
        assert_eq!(slots.keys().copied().collect::<Vec<_>>(), [1, 2], "{task}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_clock_set_back_by_ten_minutes_repeats_nothing_and_is_as_the_table_says() {
    let scene = Scene::set().await;
    scene.step(-600).await;
    scene.pass(600).await;
    for task in scene.tasks() {
        assert_eq!(scene.slots(&task).await.len(), 1, "{task}");
    }
    scene.pass(45).await;
    for (overlap, cells) in table("−10 min", 0) {
        for (is_active, cell) in [false, true].into_iter().zip(cells) {
            for catchup in CATCHUPS {
                scene.is_as(&name(&overlap, catchup, is_active), &cell, |slot| vec![slot]).await;
            }
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_clock_set_back_by_a_day_holds_all_schedules_and_set_right_again_is_as_the_table_says() {
    let scene = Scene::set().await;
    scene.step(-24 * 3600).await;
    let status = scene.server.client.get("/status").await.1;
    assert_eq!(status["clock"]["held_until"], "2026-05-01T12:01:00.000000Z", "{status}");
    scene.server.client.until("/status", |status| status["notices"][0]["code"] == "clock_wrong").await;
    // Held: the slots of the day before are nobody's.
    scene.pass(60).await;
    for task in scene.tasks() {
        assert_eq!(scene.slots(&task).await.len(), 1, "{task}");
    }
    scene.step(24 * 3600).await;
    scene.pass(60).await;
    all_are_as(&scene, "−1 day, and right again", |slot| vec![slot]).await;
    scene.server.client.until("/status", |status| status["notices"] == json!([])).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_clock_that_was_set_back_and_is_accepted_goes_on_from_there_and_repeats_nothing() {
    let scene = Scene::set().await;
    scene.step(-24 * 3600).await;
    let said = rejoin(&scene.server, &["doctor", "--accept-clock"]).await;
    assert!(said.contains("The clock is taken for right: it is 2026-04-30T12:01:20Z"), "{said}");
    assert!(said.contains("24 tasks were planned up to 2026-05-01T12:01:00Z"), "{said}");
    scene.looked().await;
    assert!(scene.server.client.get("/status").await.1["clock"]["held_until"].is_null());
    // 12:02 on the day before comes alone, as after ten minutes back.
    scene.pass(45).await;
    for (overlap, cells) in table("−10 min", 0) {
        for (is_active, cell) in [false, true].into_iter().zip(cells) {
            for catchup in CATCHUPS {
                let task = name(&overlap, catchup, is_active);
                let expected = read(&cell, is_active, |slot| vec![slot - 1440]);
                let is_so = |slots: &Value| {
                    let slot = |at: &str| {
                        slots["items"].as_array().unwrap().iter().find(|slot| slot["scheduled_for"] == at).cloned()
                    };
                    let came = slot("2026-04-30T12:02:00.000000Z").map(|slot| slot["outcome"].clone());
                    slots["items"].as_array().unwrap().len() == 2 && came == Some(expected[&-1438].0.into())
                };
                scene.server.client.until(&format!("/tasks/{task}/slots"), is_so).await;
            }
        }
    }
    // A day later the slot that ran comes a second time: it has its run.
    for task in scene.tasks() {
        scene.server.client.post(&format!("/tasks/{task}/pause"), json!({})).await;
    }
    scene.pass(24 * 3600 - 45 - 25).await;
    for task in scene.tasks() {
        scene.server.client.post(&format!("/tasks/{task}/resume"), json!({})).await;
    }
    let before: Vec<_> =
        futures_util::future::join_all(scene.tasks().iter().map(async |task| scene.slots(task).await)).await;
    scene.pass(10).await;
    for (task, before) in scene.tasks().iter().zip(before) {
        let now = scene.slots(task).await;
        assert_eq!(now.keys().last(), Some(&1), "{task}: the claim stays, and nothing is planned behind it");
        assert_eq!(now[&1].1, before[&1].1, "{task}: it keeps its run");
        assert_eq!(now.keys().copied().collect::<Vec<_>>(), (-1438..=1).collect::<Vec<_>>(), "{task}");
        let runs = scene.server.client.get(&format!("/tasks/{task}/runs?limit=500")).await.1;
        let of_it = |run: &&Value| run["scheduled_for"] == "2026-05-01T12:01:00.000000Z";
        assert_eq!(runs["items"].as_array().unwrap().iter().filter(of_it).count(), 1, "{task}");
    }
    scene.pass(60).await;
    for task in scene.tasks() {
        assert_eq!(scene.slots(&task).await.keys().last(), Some(&2), "{task}: behind it schedules go on");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_machine_without_a_clock_holds_its_schedules_and_says_so() {
    let hourly = "title = \"Due\"\n[schedule]\nevery = \"1h\"\n[[steps]]\nrun = \"true\"\n";
    let home = Home::new("").task("due", hourly);
    let clock = Clock::standing_at(noon());
    let server = home.serve_at(clock.clone()).await;
    server.stop().await;
    // It starts again in 1970, and on a machine of its own for the first time.
    for home in [home, Home::new("").task("due", hourly)] {
        let clock = Clock::standing_at("1970-01-01T00:00:10Z".parse().unwrap());
        let server = home.serve_at(clock.clone()).await;
        let client = &server.client;
        let notices = client.until("/status", |status| status["notices"][0]["code"] == "clock_wrong").await;
        assert!(notices["notices"][0]["text"].as_str().unwrap().contains("rejoin doctor --accept-clock"), "{notices}");
        clock.pass(Duration::from_secs(7200));
        server.server.api().planner.notify_one();
        let now = rejoin::clock::rfc3339(clock.now());
        client.until("/status", |status| status["clock"]["looked_at"] == now).await;
        assert_eq!(client.get("/tasks/due/slots").await.1["items"], json!([]));
        // Its clock is set: after a minute it goes on.
        clock.set(noon() + SignedDuration::from_mins(70));
        server.server.api().planner.notify_one();
        client.until("/status", |status| status["clock"]["jumped"] == true).await;
        clock.pass(Duration::from_secs(60));
        server.server.api().planner.notify_one();
        client.until("/status", |status| status["notices"] == json!([])).await;
        let next = client.get("/tasks/due").await.1["next_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert!(next > noon() && next <= clock.now() + SignedDuration::from_hours(1), "{next}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jitter_and_stagger_plan_is_shown_before_kept_over_a_restart_and_what_late_counts_from() {
    let task = |more: &str| {
        format!("title = \"Due\"\n[schedule]\ncron = \"0 * * * *\"\ntz = \"UTC\"\n{more}\n[[steps]]\nrun = \"true\"\n")
    };
    let home = Home::new("")
        .task("spread", &task("jitter = \"50m\""))
        .task("moved", &task("stagger = true"))
        .task("plain", &task(""));
    let clock = Clock::standing_at(noon());
    let server = home.serve_at(clock.clone()).await;
    let next = async |server: &InProcess, task: &str| {
        server.client.get(&format!("/tasks/{task}/next?n=5")).await.1["items"].as_array().unwrap().clone()
    };
    let time = |item: &Value| item["planned_for"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let before = (next(&server, "spread").await, next(&server, "moved").await);
    assert!(next(&server, "plain").await.iter().all(|item| item["planned_for"].is_null()));
    let distances: std::collections::BTreeSet<_> =
        before.0.iter().map(|item| time(item).as_millisecond() % 3_600_000).collect();
    assert_eq!(distances.len(), 5, "another for each: {:?}", before.0);
    let distances: std::collections::BTreeSet<_> =
        before.1.iter().map(|item| time(item).as_millisecond() % 3_600_000).collect();
    assert_eq!(distances.len(), 1, "the same for all: {:?}", before.1);
    let said = rejoin(&server, &["tasks", "next", "spread", "-n", "1"]).await;
    assert!(said.contains("2026-05-01T13:00:00+00:00") && said.contains("planned for 2026-05-01T13:"), "{said}");
    server.stop().await;
    let server = home.serve_at(clock.clone()).await;
    assert_eq!((next(&server, "spread").await, next(&server, "moved").await), before, "over a restart");
    let planned = time(&before.0[0]);
    let looked = async |at: Timestamp| {
        clock.pass(at.duration_since(clock.now()).unsigned_abs());
        server.server.api().planner.notify_one();
        let now = rejoin::clock::rfc3339(at);
        server.client.until("/status", |status| status["clock"]["looked_at"] == now).await;
    };
    looked(planned - SignedDuration::from_millis(1)).await;
    assert_eq!(server.client.get("/tasks/spread/slots").await.1["items"], json!([]));
    let shown = server.client.get("/tasks/spread").await.1;
    assert_eq!(shown["next_at"], "2026-05-01T13:00:00.000000Z");
    assert_eq!(shown["next_planned_for"], rejoin::clock::rfc3339(planned));
    assert_eq!(next(&server, "spread").await[0], before.0[0], "its time has come, and it is still to come");
    looked(planned + SignedDuration::from_millis(1500)).await;
    let ran = |slots: &Value| slots["items"][0]["outcome"] == "ran";
    let slot = server.client.until("/tasks/spread/slots", ran).await["items"][0].clone();
    assert_eq!(slot["scheduled_for"], "2026-05-01T13:00:00.000000Z", "{slot}");
    assert_eq!(slot["planned_for"], rejoin::clock::rfc3339(planned), "{slot}");
    assert_eq!(slot["late_ms"], 1500, "{slot}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_machine_that_slept_makes_up_for_it_at_once() {
    let hourly = "title = \"Due\"\n[schedule]\nevery = \"1h\"\n[[steps]]\nrun = \"true\"\n";
    let home = Home::new("").task("due", hourly);
    let clock = Clock::standing_at(noon());
    let server = home.serve_at(clock.clone()).await;
    // Both hands go on while it sleeps; that is no clock that was set.
    clock.pass(Duration::from_secs(8 * 3600 + 600));
    server.server.api().planner.notify_one();
    let caught_up = |slots: &Value| slots["items"][0]["outcome"] == "late";
    let slots = server.client.until("/tasks/due/slots", caught_up).await["items"].clone();
    assert_eq!(slots[0]["scheduled_for"], "2026-05-01T20:00:00.000000Z", "{slots}");
    assert_eq!((&slots[1]["outcome"], &slots[1]["count"]), (&json!("missed"), &json!(7)), "{slots}");
    server.stop().await;
}

/// What became of the slots of a task, oldest first: the second of the first and of the last behind noon, and what.
async fn slots_of(server: &InProcess, task: &str) -> Vec<(i64, i64, String)> {
    let page = server.client.get(&format!("/tasks/{task}/slots?limit=500")).await.1;
    let second = |at: &Value| at.as_str().unwrap().parse::<Timestamp>().unwrap().as_second() - noon().as_second();
    let slot = |slot: &Value| {
        let last = if slot["to"].is_null() { &slot["scheduled_for"] } else { &slot["to"] };
        (second(&slot["scheduled_for"]), second(last), slot["outcome"].as_str().unwrap().to_owned())
    };
    page["items"].as_array().unwrap().iter().rev().map(slot).collect()
}

/// Waits until what became of them is that.
async fn become_of(server: &InProcess, task: &str, expected: &[(i64, i64, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(first, last, what)| (*first, *last, (*what).to_owned())).collect();
    let begun = std::time::Instant::now();
    while slots_of(server, task).await != expected {
        assert!(begun.elapsed() < crate::harness::PATIENCE, "{task}: {:?}", slots_of(server, task).await);
        tokio::task::yield_now().await;
    }
}

async fn look(server: &InProcess, clock: &Clock) {
    server.server.api().planner.notify_one();
    let now = rejoin::clock::rfc3339(clock.now());
    server.client.until("/status", |status| status["clock"]["looked_at"] == now).await;
}

/// A server at 12:01:30 by a clock that was set forward by a day at that moment; before anybody looked at it, a task that
/// was paused is let go on, one is added and one gets another schedule.
async fn changed_by_a_clock_that_jumped() -> (Home, Clock, InProcess) {
    let minutely = "title = \"Due\"\n[schedule]\nevery = \"1m\"\n[[steps]]\nrun = \"true\"\n";
    let body = json!({
        "id": "changed", "title": "Changed", "run": false, "steps": [{"run": "true"}], "schedule": {"every": "1m"},
    });
    let home = Home::new("").task("paused", minutely);
    let clock = Clock::standing_at(noon());
    let server = home.serve_at(clock.clone()).await;
    server.client.post("/tasks/paused/pause", json!({})).await;
    assert_eq!(server.client.post("/tasks", body.clone()).await.0, 201);
    clock.pass(Duration::from_secs(90));
    look(&server, &clock).await;
    become_of(&server, "changed", &[(60, 60, "ran")]).await;
    server.client.until("/tasks/changed/runs", |page| page["items"][0]["state"] == "succeeded").await;
    clock.set(clock.now() + SignedDuration::from_hours(24));
    assert_eq!(server.client.post("/tasks/paused/resume", json!({})).await.0, 200);
    let mut added = body;
    added["id"] = json!("added");
    let (status, made) = server.client.post("/tasks", added).await;
    assert_eq!((status, &made["task"]["next_at"]), (201, &Value::Null), "not known yet: {made}");
    let change = json!({"schedule": {"every": "40s"}});
    let patched = server.client.request(reqwest::Method::PATCH, "/tasks/changed").json(&change).send().await.unwrap();
    assert_eq!(patched.status(), 200);
    look(&server, &clock).await;
    assert_eq!(server.client.get("/status").await.1["clock"]["jumped"], true);
    (home, clock, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_what_is_changed_while_a_clock_that_jumped_is_not_believed_counts_from_then_once_it_is() {
    // Whoever believes it: the minute that passed, a person, or a server that starts.
    for believer in ["minute", "person", "start"] {
        let (home, clock, mut server) = changed_by_a_clock_that_jumped().await;
        match believer {
            "minute" => clock.pass(Duration::from_secs(60)),
            "person" => {
                clock.pass(Duration::from_secs(59));
                assert_eq!(server.client.post("/clock/accept", json!({})).await.0, 200);
                clock.pass(Duration::from_secs(1));
            }
            _ => {
                server.stop().await;
                clock.pass(Duration::from_secs(60));
                server = home.serve_at(clock.clone()).await;
            }
        }
        look(&server, &clock).await;
        // It is 12:02:30 a day later.
        let day = 24 * 3600;
        become_of(&server, "paused", &[(60, day + 60, "disabled"), (day + 120, day + 120, "ran")]).await;
        become_of(&server, "added", &[(day + 150, day + 150, "ran")]).await;
        become_of(&server, "changed", &[(60, 60, "ran"), (day + 130, day + 130, "ran")]).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_what_is_changed_while_a_clock_is_wrong_for_a_moment_counts_from_then_and_holds_nothing() {
    for is_started_again in [false, true] {
        let (home, clock, mut server) = changed_by_a_clock_that_jumped().await;
        clock.pass(Duration::from_secs(10));
        let right = clock.now() - SignedDuration::from_hours(24);
        if is_started_again {
            server.stop().await;
            clock.set(right);
            server = home.serve_at(clock.clone()).await;
        } else {
            clock.set(right);
        }
        look(&server, &clock).await;
        assert!(server.client.get("/status").await.1["clock"]["held_until"].is_null());
        let next = server.client.get("/tasks/added").await.1["next_at"].clone();
        assert_eq!(next, "2026-05-01T12:02:30.000000Z");
        clock.pass(Duration::from_secs(50));
        look(&server, &clock).await;
        // It is 12:02:30.
        become_of(&server, "paused", &[(60, 60, "disabled"), (120, 120, "ran")]).await;
        become_of(&server, "added", &[(150, 150, "ran")]).await;
        become_of(&server, "changed", &[(60, 60, "ran"), (130, 130, "ran")]).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_task_that_is_let_go_on_before_anybody_looked_catches_up_nothing_of_its_pause() {
    let hourly = "title = \"Due\"\n[schedule]\nevery = \"1h\"\n[[steps]]\nrun = \"true\"\n";
    let home = Home::new("").task("due", hourly);
    let clock = Clock::standing_at(noon());
    let server = home.serve_at(clock.clone()).await;
    server.client.post("/tasks/due/pause", json!({})).await;
    // The machine sleeps for hours, and the first thing that it is told is that the task goes on.
    clock.pass(Duration::from_secs(8 * 3600 + 600));
    server.client.post("/tasks/due/resume", json!({})).await;
    look(&server, &clock).await;
    become_of(&server, "due", &[(3600, 8 * 3600, "disabled")]).await;
    clock.pass(Duration::from_secs(3600));
    look(&server, &clock).await;
    become_of(&server, "due", &[(3600, 8 * 3600, "disabled"), (9 * 3600, 9 * 3600, "late")]).await;
    server.stop().await;
}
