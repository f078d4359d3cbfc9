//! Pools, the server's places and the line in front of them: in servers that run.

use std::process::Output;

#[cfg(feature = "failpoints")]
use jiff::SignedDuration;
use jiff::Timestamp;
#[cfg(feature = "failpoints")]
use rejoin::clock::Clock;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Client, Gate, Home, PATIENCE, REJOIN};

const POOLS: &str = "[runs]\nconcurrency = 3\n[pools]\nnarrow = 1\nwide = 2\n";

fn task(pool: &str, run: &str) -> String {
    format!("title = \"Pooled\"\n[policy]\nconcurrency = {pool:?}\n[[steps]]\nname = \"only\"\nrun = {run:?}\n")
}

async fn rejoin(home: &Home, line: &[&str]) -> Output {
    let mut command = Command::new(REJOIN);
    command.args(["--config".as_ref(), home.path().join("config.toml").as_os_str()]).args(line);
    tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn waits(client: &Client, run: &str) -> Value {
    client.get(&format!("/runs/{run}")).await.1["waits"].clone()
}

async fn is_at_work(client: &Client, run: &str) {
    client.until(&format!("/runs/{run}"), |run| run["state"] == "running").await;
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_full_holds_up_its_own_runs_and_no_others_and_everyone_sees_the_line() {
    let home = Home::new(POOLS);
    let gate = Gate::new(home.path(), "gate");
    let home = home
        .task("holds", &task("narrow", &gate.wait()))
        .task("first", &task("narrow", "true"))
        .task("second", &task("narrow", "true"))
        .task("other", &task("wide", "true"))
        .shell_task("free", "true");
    let server = home.serve().await;
    let client = &server.client;
    let holds = client.run("holds").await;
    is_at_work(client, &holds).await;
    let again = client.run("holds").await;
    let (first, second) = (client.run("first").await, client.run("second").await);
    // Behind them in line, and of other pools.
    for task in ["other", "free"] {
        let run = client.run(task).await;
        assert_eq!(client.ended(&run).await["state"], "succeeded", "{task}");
    }
    assert_eq!(waits(client, &holds).await, Value::Null);
    assert_eq!(waits(client, &again).await, json!({"for": "run", "position": 1}));
    assert_eq!(waits(client, &first).await, json!({"for": "pool", "pool": "narrow", "position": 1}));
    assert_eq!(waits(client, &second).await, json!({"for": "pool", "pool": "narrow", "position": 2}));
    let listed = client.get("/runs?state=queued").await.1;
    assert_eq!(listed["items"][0]["waits"]["position"], 2, "lists say it too: {listed}");
    let pools = client.get("/status").await.1["pools"].clone();
    assert_eq!(
        pools,
        json!([
            {"name": "all", "size": 3, "running": 1, "queued": 3},
            {"name": "narrow", "size": 1, "running": 1, "queued": 3},
            {"name": "wide", "size": 2, "running": 0, "queued": 0},
        ])
    );
    let status = out(&rejoin(&home, &["status"]).await);
    assert!(status.contains("1 of 3 taken, 3 waiting"), "{status}");
    assert!(status.contains("narrow: 1 of 1 taken, 3 waiting"), "{status}");
    let list = out(&rejoin(&home, &["runs", "list"]).await);
    assert!(list.contains("waits for a place in pool narrow, first in line"), "{list}");
    let shown = out(&rejoin(&home, &["runs", "show", &second]).await);
    assert!(shown.contains("waits for a place in pool narrow, number 2 in line"), "{shown}");
    let shown = out(&rejoin(&home, &["tasks", "show", "first"]).await);
    assert!(shown.contains("pool") && shown.contains("narrow"), "{shown}");

    client.post(&format!("/runs/{first}/stop"), json!({})).await;
    assert_eq!(waits(client, &second).await["position"], 1, "the line moves up");
    gate.open().await;
    // It was made before the second, and its task is free now.
    is_at_work(client, &again).await;
    assert_eq!(waits(client, &second).await, json!({"for": "pool", "pool": "narrow", "position": 1}));
    gate.open().await;
    let (again, second) = (client.ended(&again).await, client.ended(&second).await);
    assert!(time(&again["ended_at"]) <= time(&second["started_at"]), "one at a time: {again} {second}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_has_so_many_places_for_all_pools_together() {
    let home = Home::new("[runs]\nconcurrency = 1\n[pools]\nwide = 8\n");
    let gate = Gate::new(home.path(), "gate");
    let home = home.task("holds", &task("wide", &gate.wait())).task("pooled", &task("wide", "true"));
    let home = home.shell_task("free", "true");
    let server = home.serve().await;
    let client = &server.client;
    let holds = client.run("holds").await;
    is_at_work(client, &holds).await;
    let (free, pooled) = (client.run("free").await, client.run("pooled").await);
    assert_eq!(waits(client, &free).await, json!({"for": "place", "position": 1}));
    assert_eq!(waits(client, &pooled).await, json!({"for": "place", "position": 2}));
    gate.open().await;
    let (free, pooled) = (client.ended(&free).await, client.ended(&pooled).await);
    assert!(time(&free["ended_at"]) <= time(&pooled["started_at"]), "in the order of their making");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_one_second_start_in_the_order_of_their_claims_as_their_pool_allows() {
    // Later than a busy machine needs for so many files and to start.
    let at = Timestamp::from_second(Timestamp::now().as_second() + 10).unwrap();
    let due = |pool: &str| {
        format!(
            "title = \"Due\"\n[schedule]\nat = \"{at}\"\n[policy]\nconcurrency = {pool:?}\n[[steps]]\nwrite = \
             {{ path = \"../out\", content = \"x\" }}\n"
        )
    };
    let home = Home::new("[runs]\nconcurrency = 64\n[pools]\nnarrow = 3\nwide = 64\n");
    let home = (0..200).fold(home, |home, n| home.task(&format!("due-{n}"), &due("narrow")));
    let server = home.serve().await;
    let over = |page: &Value| {
        let items = page["items"].as_array().unwrap();
        items.len() == 200 && items.iter().all(|run| run["ended_at"].is_string())
    };
    let runs = server.client.until("/runs?limit=500", over).await["items"].as_array().unwrap().clone();
    let mut at_work: Vec<Timestamp> = Vec::new();
    // Lists are newest first; a run's id says when it was claimed.
    for pair in runs.windows(2) {
        assert!(time(&pair[1]["started_at"]) <= time(&pair[0]["started_at"]), "{} {}", pair[1], pair[0]);
    }
    for run in runs.iter().rev() {
        assert_eq!(run["state"], "succeeded", "{run}");
        let started = time(&run["started_at"]);
        at_work.retain(|end| *end > started);
        at_work.push(time(&run["ended_at"]));
        assert!(at_work.len() <= 3, "{} at work at {started}", at_work.len());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_wait_for_a_pool_wait_on_over_a_kill_in_the_same_order() {
    let home = Home::new(POOLS);
    let gate = Gate::new(home.path(), "gate");
    let home = home.task("holds", &task("narrow", &gate.wait()));
    let home = ["c", "a", "b"].iter().fold(home, |home, id| home.task(id, &task("narrow", "true")));
    let mut server = home.spawn(&[]).await;
    let holds = server.client.run("holds").await;
    is_at_work(&server.client, &holds).await;
    let mut waiting = Vec::new();
    for id in ["c", "a", "b"] {
        waiting.push(server.client.run(id).await);
    }
    server.kill();
    let server = home.spawn(&[]).await;
    let mut last: Option<Timestamp> = None;
    for run in &waiting {
        let run = server.client.ended(run).await;
        assert_eq!(run["state"], "succeeded", "{run}");
        assert!(last.is_none_or(|last| last <= time(&run["started_at"])), "one after the other, as made: {run}");
        last = Some(time(&run["ended_at"]));
    }
    assert_eq!(server.client.ended(&holds).await["state"], "interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_moves_to_another_pool_takes_what_waits_of_it_along() {
    let home = Home::new(POOLS);
    let gate = Gate::new(home.path(), "gate");
    let home = home.task("holds", &task("narrow", &gate.wait()));
    let server = home.serve().await;
    let client = &server.client;
    let body = json!({
        "id": "moves", "title": "Moves", "run": false, "steps": [{"run": "true"}], "policy": {"concurrency": "narrow"},
    });
    let (status, made) = client.post("/tasks", body).await;
    assert_eq!((status, &made["task"]["policy"]["concurrency"]), (201, &json!("narrow")), "{made}");
    let holds = client.run("holds").await;
    is_at_work(client, &holds).await;
    let run = client.run("moves").await;
    assert_eq!(waits(client, &run).await["pool"], "narrow");
    let policy = json!({"policy": {"concurrency": "wide"}});
    let moved = client.request(reqwest::Method::PATCH, "/tasks/moves").json(&policy).send().await.unwrap();
    assert_eq!(moved.status(), 200);
    assert_eq!(client.ended(&run).await["state"], "succeeded", "while the other pool is full");
    gate.open().await;
    client.ended(&holds).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_gone_loses_no_task_and_bears_one_run_at_a_time_and_says_so() {
    let home = Home::new(POOLS);
    let gate = Gate::new(home.path(), "gate");
    let mut server = home.spawn(&[]).await;
    for (id, run) in [("holds", gate.wait()), ("waits", "true".to_owned())] {
        let policy = json!({"concurrency": "wide"});
        let body = json!({"id": id, "title": id, "run": false, "steps": [{"run": run}], "policy": policy});
        assert_eq!(server.client.post("/tasks", body).await.0, 201);
    }
    server.terminate().await;
    let config = home.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("wide = 2", "wider = 2");
    std::fs::write(&config, text).unwrap();
    let server = home.spawn(&[]).await;
    let client = &server.client;
    let (_, shown) = client.get("/tasks/holds").await;
    assert_eq!(shown["error"]["key"], "policy.concurrency", "{shown}");
    let said = "there is no pool \"wide\" in [pools] of config.toml: there are \"narrow\", \"wider\"; until then one run of \
                it is at work at a time";
    assert_eq!(shown["error"]["message"], said);
    let holds = client.run("holds").await;
    is_at_work(client, &holds).await;
    let second = client.run("waits").await;
    assert_eq!(waits(client, &second).await, json!({"for": "pool", "pool": "wide", "position": 1}));
    let pools = client.get("/status").await.1["pools"].clone();
    assert_eq!(pools[2], json!({"name": "wide", "size": 1, "running": 1, "queued": 1}), "{pools}");
    let doctor = rejoin(&home, &["doctor"]).await;
    assert_eq!(doctor.status.code(), Some(1));
    let doctor = out(&doctor);
    assert!(doctor.contains(&format!("task holds: policy.concurrency: {said}")), "{doctor}");
    assert!(doctor.contains("add the pool under [pools] in config.toml"), "{doctor}");
    gate.open().await;
    assert_eq!(client.ended(&second).await["state"], "succeeded");
    // What is changed has to be right.
    let patch = async |body: Value| {
        let sent = client.request(reqwest::Method::PATCH, "/tasks/waits").json(&body).send().await.unwrap();
        (sent.status().as_u16(), sent.json::<Value>().await.unwrap())
    };
    let (status, refused) = patch(json!({"title": "Waits"})).await;
    assert_eq!((status, &refused["field"]), (400, &json!("policy.concurrency")), "{refused}");
    let (status, mended) = patch(json!({"policy": {"concurrency": "wider"}})).await;
    assert_eq!((status, &mended["error"]), (200, &Value::Null), "{mended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_there_is_refused_in_file_api_and_command() {
    let home = Home::new(POOLS).task("file", &task("narow", "true"));
    let server = home.serve().await;
    let client = &server.client;
    let said = "there is no pool \"narow\" in [pools] of config.toml: there are \"narrow\", \"wide\"";
    let (_, shown) = client.get("/tasks/file").await;
    assert_eq!(shown["error"]["message"], said, "{shown}");
    assert_eq!((&shown["error"]["line"], &shown["error"]["key"]), (&json!(3), &json!("policy.concurrency")));
    let body = json!({"title": "T", "steps": [{"run": "true"}], "policy": {"concurrency": "narow"}});
    let (status, refused) = client.post("/tasks", body).await;
    assert_eq!((status, &refused["field"], &refused["code"]), (400, &json!("policy.concurrency"), &json!("invalid")));
    assert!(refused["detail"].as_str().unwrap().contains(said), "{refused}");
    let added = rejoin(&home, &["tasks", "add", "T", "--run", "true", "--concurrency", "narow"]).await;
    assert_eq!(added.status.code(), Some(2), "{added:?}");
    assert!(String::from_utf8_lossy(&added.stderr).contains(said), "{added:?}");
    let validated = rejoin(&home, &["tasks", "validate"]).await;
    assert_eq!(validated.status.code(), Some(2), "{validated:?}");
    assert!(out(&validated).contains(&format!("file.toml:3:15: policy.concurrency: {said}")), "{validated:?}");
    let added = rejoin(&home, &["tasks", "add", "T", "--run", "true", "--concurrency", "narrow", "--wait"]).await;
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    server.stop().await;
}

/// More than the planner writes down in its first two transactions: 64 and 256.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn of_many_slots_due_at_once_the_first_start_and_no_others_before_all_have_their_rows() {
    let begin: Timestamp = "2026-03-02T10:00:00Z".parse().unwrap();
    let at = begin + SignedDuration::from_secs(10);
    let due = |pool: &str| {
        let step = "[[steps]]\nwrite = { path = \"../out\", content = \"x\" }\n";
        format!("title = \"Due\"\n[schedule]\nat = \"{at}\"\n[policy]\nconcurrency = {pool:?}\n{step}")
    };
    let home = Home::new("[runs]\nconcurrency = 2\n[pools]\nnarrow = 1\nwide = 2\n");
    let home = (0..64).fold(home, |home, n| home.task(&format!("first-{n}"), &due("narrow")));
    let home = (0..257).fold(home, |home, n| home.task(&format!("then-{n}"), &due("wide")));
    let clock = Clock::standing_at(begin);
    let server = home.serve_at(clock.clone()).await;
    let api = server.server.api();
    let publisher = api.publisher.clone();
    let last_is_left = move |point: &str| point == "in-commit" && publisher.metrics().slots_due.get() == 64 + 256;
    let mut hold = server.hold_writer(last_is_left).await;
    clock.set(at);
    api.planner.notify_one();
    hold.reached().await;
    let line_up = async {
        loop {
            let (running, queued) = api.runs.counts();
            // The first of all may be over.
            if running + queued >= 64 + 256 - 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, line_up).await.expect("those that have their rows do not stand in line");
    // A place is free, and the first of the others would take it.
    api.runs.start_ready();
    assert!(api.runs.counts().0 <= 1, "one of the others is at work");
    drop(hold);
    server.client.until("/tasks/then-0/runs", |page| page["items"][0]["state"] == "succeeded").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_slots_are_written_down_no_run_starts_and_then_all_do() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let still = server.server.api().runs.keep_still();
    let run = server.client.run("job").await;
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.1["state"], "queued");
    let let_go = Timestamp::now();
    drop(still);
    assert_eq!(server.server.api().runs.counts(), (1, 0), "it has its place as soon as it may");
    gate.open().await;
    let ended = server.client.ended(&run).await;
    assert_eq!(ended["state"], "succeeded");
    let started = time(&ended["started_at"]);
    assert!(started >= let_go, "{started} is before {let_go}");
    server.stop().await;
}
