//! Commands while things go wrong: a server that is killed between doing and saying, and a disk that is full.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::disk::processes_of;
use crate::disk_limits::limit_files;
use crate::harness::{Client, Gate, Home, PATIENCE, Process, Watcher};

async fn socket(server: &Process) -> Watcher {
    let mut watcher = Watcher::open(server.client.address, Some(server.client.token())).await;
    watcher.hello(&Uuid::new_v4().to_string(), 1, json!([])).await;
    assert_eq!(watcher.next().await["type"], "welcome");
    watcher
}

/// A server that is killed at the n-th pass of a point, counted from when the file is there.
pub async fn to_be_armed(home: &Home, point: &str) -> (Process, PathBuf) {
    let from = home.path().join("armed");
    let _ = std::fs::remove_file(&from);
    let server = home.spawn(&[("REJOIN_FAILPOINT", point), ("REJOIN_FAILPOINT_FROM", from.to_str().unwrap())]).await;
    (server, from)
}

/// A server that is killed at the n-th pass of a point from now on, and a socket of it: what it does for itself after a
/// start is done, and nothing is left to do but what is asked.
async fn armed(home: &Home, point: &str) -> (Process, Watcher) {
    let (server, from) = to_be_armed(home, point).await;
    let due = |chore: &Value| chore["last"].is_null() && !chore["next_at"].is_null();
    let (_, chores) = server.client.get("/housekeeping").await;
    for chore in chores["items"].as_array().unwrap().iter().filter(|chore| due(chore)) {
        let path = format!("/housekeeping/{}/run", chore["id"].as_str().unwrap());
        assert_eq!(server.client.post(&path, json!({})).await.0, 202);
    }
    // One that came by itself at that moment is done once more, as it was asked.
    let done = |chore: &Value| !due(chore) && chore["state"] != "queued" && chore["state"] != "running";
    server.client.until("/housekeeping", |chores| chores["items"].as_array().unwrap().iter().all(done)).await;
    let watcher = socket(&server).await;
    std::fs::write(&from, "").unwrap();
    (server, watcher)
}

fn run(id: Uuid) -> Value {
    json!({ "type": "command", "id": id, "op": "run", "task": "job" })
}

async fn ask(watcher: &mut Watcher, command: Value) -> Value {
    let id = command["id"].clone();
    watcher.send(command).await;
    let is_it = |frame: &Value| ["done", "error"].contains(&frame["type"].as_str().unwrap()) && frame["id"] == id;
    watcher.until(is_it).await.pop().unwrap()
}

async fn runs_of(client: &Client) -> Vec<Value> {
    client.get("/tasks/job/runs?limit=500").await.1["items"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_a_server_that_is_killed_between_the_commit_and_the_answer_has_acted_once_for_whoever_asks_again() {
    // Before the commit nothing was done; right behind it the run is there, whether or not anybody was told.
    for (point, made) in [("in-commit@1", 0), ("committed-not-woken@1", 1), ("queued@1", 1)] {
        let home = Home::new("").shell_task("job", "true");
        let (mut server, mut watcher) = armed(&home, point).await;
        let id = Uuid::new_v4();
        watcher.send(run(id)).await;
        let answer = watcher.next_of_any().await;
        assert!(answer.is_err(), "{point}: it was answered: {answer:?}");
        server.ended().await;

        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let file = rusqlite::Connection::open_with_flags(home.database(), flags).unwrap();
        let count = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM runs"), made, "{point}");
        assert_eq!(count("SELECT count(*) FROM effects"), made, "{point}: the id is saved with what it did");
        drop(file);

        let mut server = home.spawn(&[]).await;
        let mut watcher = socket(&server).await;
        let done = ask(&mut watcher, run(id)).await;
        assert_eq!(done["type"], "done", "{point}: {done}");
        let again = ask(&mut watcher, run(id)).await;
        assert_eq!(again["result"]["id"], done["result"]["id"], "{point}");
        server.client.ended(done["result"]["id"].as_str().unwrap()).await;
        assert_eq!(runs_of(&server.client).await.len(), 1, "{point}");
        assert!(server.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_killed_behind_any_of_its_commits_a_command_that_is_sent_until_it_is_answered_acts_once() {
    // A command starts only once its process is saved: at least one commit for each, however busy the writer is.
    let steps = "[[steps]]\nrun = \"true\"\n".repeat(5);
    let home = Home::new("").task("job", &format!("title = \"Job\"\n{steps}"));
    let mut ids = Vec::new();
    for round in 0..8_u64 {
        let id = Uuid::new_v4();
        ids.push(id);
        // Each commit is of the command or of its run.
        let (mut server, mut watcher) = armed(&home, &format!("committed-not-woken@{}", 1 + round % 5)).await;
        watcher.send(run(id)).await;
        server.ended().await;
        drop(watcher);
        let mut server = home.spawn(&[]).await;
        let done = ask(&mut socket(&server).await, run(id)).await;
        assert_eq!(done["type"], "done", "{done}");
        server.client.ended(done["result"]["id"].as_str().unwrap()).await;
        assert_eq!(runs_of(&server.client).await.len(), ids.len(), "round {round}");
        server.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_a_stop_acts_and_is_answered_and_what_cannot_be_done_may_be_asked_again() {
    let home = Home::new("[runs]\nstop_term = \"200ms\"\nstop_kill = \"500ms\"\nstop_give_up = \"10s\"");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    let mut watcher = socket(&server).await;
    let made = ask(&mut watcher, run(Uuid::new_v4())).await["result"]["id"].as_str().unwrap().to_owned();
    client.until(&format!("/runs/{made}"), |run| run["state"] == "running").await;
    let deadline = Instant::now() + PATIENCE;
    while processes_of(&made) < 2 {
        assert!(Instant::now() < deadline, "its command never started");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    limit_files(server.pid(), Some(1));
    let (again, stop) = (Uuid::new_v4(), Uuid::new_v4());
    for _ in 0..2 {
        let error = ask(&mut watcher, run(again)).await;
        assert_eq!(
            (&error["code"], &error["retryable"]),
            (&json!("not_writable"), &json!(true)),
            "refused, and it may be sent again: {error}"
        );
    }
    let begin = Instant::now();
    let stop = json!({ "type": "command", "id": stop, "op": "stop", "run": made });
    let done = ask(&mut watcher, stop.clone()).await;
    assert_eq!((&done["type"], &done["result"]["id"]), (&json!("done"), &json!(made)), "{done}");
    while processes_of(&made) > 0 {
        assert!(begin.elapsed() < Duration::from_secs(5), "the stop did not act");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let done = ask(&mut watcher, stop.clone()).await;
    assert_eq!(done["type"], "done", "the same stop again is the same: {done}");

    limit_files(server.pid(), None);
    assert_eq!(client.ended(&made).await["state"], "cancelled");
    assert_eq!(ask(&mut watcher, stop).await["result"]["state"], "cancelled");
    let done = ask(&mut watcher, run(again)).await;
    assert_eq!(done["type"], "done", "{done}");
    assert_eq!(runs_of(&client).await.len(), 2, "what was refused has left nothing behind");
    drop(gate);
    assert!(server.terminate().await.success());
}
