//! What follows a failure, in a server that runs: retries and their waits, crashes, silence, and tasks that pause
//! themselves.

use std::process::Output;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::external::{EXTERNAL, feed};
use crate::harness::{Client, Home, InProcess, PATIENCE, REJOIN, is_terminal};
use crate::producer::Producer;

/// A task of one command.
fn task(policy: &str, run: &str) -> String {
    format!("title = \"Again\"\n[policy]\n{policy}\n[[steps]]\nname = \"only\"\nrun = {}\n", json!(run))
}

/// The same, due each second.
fn each_second(policy: &str, run: &str) -> String {
    task(policy, run).replacen("[policy]", "[schedule]\nevery = \"1s\"\n[policy]", 1)
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("{value} is no time")).parse().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// All runs of a task, oldest first.
async fn runs(client: &Client, task: &str) -> Vec<Value> {
    let mut runs = client.get(&format!("/tasks/{task}/runs?limit=500")).await.1["items"].as_array().unwrap().clone();
    runs.reverse();
    runs
}

/// The slot that names a run.
async fn slot_of(client: &Client, task: &str, run: &Value) -> Value {
    let page = client.get(&format!("/tasks/{task}/slots?limit=500")).await.1;
    let slot = page["items"].as_array().unwrap().iter().find(|slot| slot["run"] == *run);
    slot.unwrap_or_else(|| panic!("no slot names {run}: {page}")).clone()
}

/// Whether a slot's run was made, in time or on a busy machine a little later.
fn has_run(slot: &Value) -> bool {
    slot["outcome"] == "ran" || slot["outcome"] == "late"
}

/// Waits for the end of the last attempt; gives all of them.
async fn attempts(client: &Client, first: &str) -> Vec<Value> {
    let (mut attempts, mut next) = (Vec::new(), Some(first.to_owned()));
    while let Some(run) = next {
        client.ended(&run).await;
        // Asked again: what follows an end is there as soon as the end is.
        let run = client.get(&format!("/runs/{run}")).await.1;
        next = run["retried_by"].as_str().map(ToOwned::to_owned);
        attempts.push(run);
    }
    attempts
}

/// Waits until a run has a retry that waits; gives the retry.
async fn pending_retry(client: &Client, run: &str) -> Value {
    let run = client.until(&format!("/runs/{run}"), |run| !run["retried_by"].is_null()).await;
    client.get(&format!("/runs/{}", text(&run["retried_by"]))).await.1
}

/// Waits until a task has a retry that waits; gives it.
async fn pending_retry_of(client: &Client, task: &str) -> Value {
    let is_retry = |run: &&Value| run["state"] == "queued" && !run["not_before"].is_null();
    let there = |page: &Value| page["items"].as_array().unwrap().iter().any(|run| is_retry(&run));
    let page = client.until(&format!("/tasks/{task}/runs?limit=500"), there).await;
    page["items"].as_array().unwrap().iter().find(is_retry).unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_is_tried_again_as_often_as_its_policy_says_and_knows_which_attempt_it_is() {
    let home = Home::new("");
    let said = home.path().join("said");
    let command = format!("echo $REJOIN_ATTEMPT $REJOIN_RUN >> '{}'; exit 7", said.display());
    let home = home.task("again", &task("retries = 2\nbackoff = \"40ms..100ms\"", &command));
    let server = home.serve().await;
    let first = server.client.run("again").await;
    let attempts = attempts(&server.client, &first).await;
    assert_eq!(attempts.len(), 3, "{attempts:?}");
    for (run, attempt) in attempts.iter().zip(1..) {
        assert_eq!((&run["state"], &run["exit"]), (&json!("failed"), &json!(7)), "{run}");
        assert_eq!((&run["attempt"], &run["trigger"]), (&json!(attempt), &json!("hand")), "{run}");
    }
    assert_eq!((&attempts[0]["not_before"], &attempts[0]["retry_of"]), (&Value::Null, &Value::Null));
    for pair in attempts.windows(2) {
        let [before, after] = pair else { unreachable!() };
        assert_eq!(after["retry_of"], before["id"]);
        // The wait is drawn when the end of the one before is saved, within what the policy says, and is kept.
        assert!(time(&after["queued_at"]) >= time(&before["ended_at"]), "{after}");
        let wait = time(&after["not_before"]).duration_since(time(&after["queued_at"])).as_millis();
        assert!((39..=101).contains(&wait), "{wait} ms: {after}");
        assert!(time(&after["started_at"]) >= time(&after["not_before"]), "{after}");
        // Nothing comes between the end and what follows it.
        assert_eq!(after["first_seq"].as_u64(), before["last_seq"].as_u64().map(|seq| seq + 1));
    }
    let wanted: String = attempts.iter().map(|run| format!("{} {}\n", run["attempt"], text(&run["id"]))).collect();
    assert_eq!(std::fs::read_to_string(said).unwrap(), wanted);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_exit_codes_that_are_named_are_tried_again_and_what_worked_is_not() {
    let policy = "retries = 5\nbackoff = \"10ms\"\nretry_on = [75, 111]";
    let home = Home::new("")
        .task(
            "changes",
            &task(policy, "[ $REJOIN_ATTEMPT = 1 ] && exit 75; [ $REJOIN_ATTEMPT = 2 ] && exit 111; exit 3"),
        )
        .task("works", &task("retries = 5\nbackoff = \"10ms\"", "[ $REJOIN_ATTEMPT = 2 ]"));
    let server = home.serve().await;
    let of = async |task: &str| {
        let first = server.client.run(task).await;
        let attempts = attempts(&server.client, &first).await;
        attempts.iter().map(|run| (text(&run["state"]), run["exit"].as_i64())).collect::<Vec<_>>()
    };
    let failed = |code| ("failed".to_owned(), Some(code));
    assert_eq!(of("changes").await, [failed(75), failed(111), failed(3)]);
    assert_eq!(of("works").await, [failed(1), ("succeeded".to_owned(), Some(0))]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_does_once_more_has_its_own_retries() {
    let home = Home::new("").task("again", &task("retries = 1\nbackoff = \"10ms\"", "false"));
    let server = home.serve().await;
    let first = server.client.run("again").await;
    let last = text(&attempts(&server.client, &first).await[1]["id"]);
    let (_, answer) = server.client.post(&format!("/runs/{last}/retry"), json!({})).await;
    let by_hand = text(&answer["run"]["id"]);
    let numbers: Vec<_> = attempts(&server.client, &by_hand)
        .await
        .iter()
        .map(|run| (run["attempt"].clone(), run["not_before"].is_null()))
        .collect();
    assert_eq!(numbers, [(json!(3), true), (json!(4), false)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_a_run_that_was_stopped_is_not_tried_again_whatever_it_says_itself() {
    let policy = "retries = 3\nbackoff = \"10ms\"\non_crash = \"retry\"";
    let home = Home::new("")
        .task("again", &task(policy, "echo begun; trap 'exit 9' INT; sleep 600 & wait"))
        .task("elsewhere", &format!("{EXTERNAL}[policy]\n{policy}\n"));
    let server = home.serve().await;
    let run = server.client.run("again").await;
    server.client.until(&format!("/runs/{run}"), |run| run["state"] == "running").await;
    server.client.post(&format!("/runs/{run}/stop"), json!({})).await;
    let over = attempts(&server.client, &run).await;
    assert_eq!((over.len(), &over[0]["state"]), (1, &json!("cancelled")), "{over:?}");
    // A program elsewhere that was told to stop may call that a failure.
    let run = server.client.run("elsewhere").await;
    server.client.post(&format!("/runs/{run}/stop"), json!({})).await;
    let failed = json!({ "n": 1, "kind": "status", "data": { "state": "failed", "exit": 75 } });
    assert_eq!(feed(&server.client, &run, failed.to_string()).await.0, 200);
    let over = attempts(&server.client, &run).await;
    assert_eq!((over.len(), &over[0]["state"]), (1, &json!("failed")), "{over:?}");
    server.stop().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn t_28_a_stop_in_the_moment_in_which_the_failure_is_saved_stops_its_retry() {
    let home = Home::new("").task("again", &task("retries = 1\nbackoff = \"10ms\"", "false"));
    let server = home.serve().await;
    // In its transaction the failure and its retry are written; nobody else sees them yet.
    let mut hold = server.hold_writer(|point| point == "retry-not-saved").await;
    let run = server.client.run("again").await;
    hold.reached().await;
    let all = server.server.api().runs.clone();
    let stop = all.stop(run.parse().unwrap());
    tokio::pin!(stop);
    // A kill would leave the retry: as long as that is so, nobody is told that it is stopped.
    let early = tokio::time::timeout(Duration::from_millis(200), &mut stop).await;
    assert!(early.is_err(), "{early:?}");
    drop(hold);
    let stopped = stop.await.unwrap();
    assert_eq!(
        (stopped.state, stopped.retry_of.map(|of| of.to_string())),
        (rejoin::record::RunState::Cancelled, Some(run.clone()))
    );
    let over = attempts(&server.client, &run).await;
    let ends: Vec<_> = over.iter().map(|run| (&run["state"], &run["reason"], run["started_at"].is_null())).collect();
    let stopped = (&json!("cancelled"), &json!("stopped before it started"), true);
    assert_eq!((ends.len(), ends[0].0, ends[1]), (2, &json!("failed"), stopped), "{over:?}");
    assert_eq!(server.client.get("/status").await.1["queued"], 0, "it stands in no line");
    server.stop().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_a_run_that_is_stopped_while_its_start_is_saved_says_nothing_of_a_retry() {
    let home =
        Home::new("[runs]\nshutdown_grace = \"10ms\"").task("again", &each_second("overlap = \"queue\"", "sleep 600"));
    let server = home.serve().await;
    let api = server.server.api();
    let (publisher, runs) = (api.publisher.clone(), api.runs.clone());
    // It has its place, and its start is with the writer.
    let is_starting = move |point: &str| {
        let is_at_work = point == "in-commit" && runs.counts().0 > 0;
        is_at_work && publisher.topic(&"again".parse().unwrap()).unwrap().tail().fold.runs().next().is_some()
    };
    let mut hold = server.hold_writer(is_starting).await;
    hold.reached().await;
    let id = text(&server.client.get("/tasks/again/runs").await.1["items"][0]["id"]);
    let asked = api.runs.stop(id.parse().unwrap()).await.unwrap();
    assert!(!asked.state.is_ended(), "{asked:?}");
    drop(hold);
    let over = server.client.ended(&id).await;
    assert_eq!((&over["state"], over["started_at"].is_null()), (&json!("cancelled"), false), "{over}");
    let slot = slot_of(&server.client, "again", &over["id"]).await;
    assert!(has_run(&slot), "{slot}");
    assert_eq!(slot["reason"], Value::Null, "{slot}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_retry_counts_as_a_run_that_is_not_over_and_its_slot_names_it() {
    let home = Home::new("").task("again", &each_second("retries = 1\nbackoff = \"1h\"", "false"));
    let server = home.serve().await;
    let client = &server.client;
    let retry = pending_retry_of(client, "again").await;
    let first = client.get(&format!("/runs/{}", text(&retry["retry_of"]))).await.1;
    assert_eq!((&first["state"], &first["retried_by"]), (&json!("failed"), &retry["id"]));
    assert_eq!((&retry["attempt"], &retry["trigger"]), (&json!(2), &first["trigger"]));
    assert_eq!(retry["scheduled_for"], first["scheduled_for"]);
    let slot = slot_of(client, "again", &retry["id"]).await;
    assert!(has_run(&slot) && slot["scheduled_for"] == first["scheduled_for"], "{slot}");
    let skipped = |page: &Value| page["items"][0]["outcome"] == "skipped";
    let page = client.until("/tasks/again/slots", skipped).await;
    assert_eq!(page["items"][0]["reason"], "a run of the task is not over");
    assert_eq!(client.get("/tasks/again").await.1["state"], "queued");
    // Paused, it is called off with its task, and its slot says so.
    client.post("/tasks/again/pause", Value::Null).await;
    let off = client.get(&format!("/runs/{}", text(&retry["id"]))).await.1;
    assert_eq!((&off["state"], &off["reason"]), (&json!("cancelled"), &json!("the task was paused")));
    let slot = slot_of(client, "again", &retry["id"]).await;
    assert_eq!(
        (&slot["outcome"], &slot["reason"]),
        (&json!("disabled"), &json!("it ran, its retry did not: the task was paused"))
    );
    assert!(off["retried_by"].is_null(), "{off}");
    // Nothing of it comes back when the task goes on.
    client.post("/tasks/again/resume", Value::Null).await;
    let other = pending_retry_of(client, "again").await;
    assert_ne!(other["scheduled_for"], retry["scheduled_for"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_a_pending_retry_cancels_it_and_the_slot_stays_as_it_ran() {
    let home = Home::new("").task("again", &each_second("retries = 3\nbackoff = \"1h\"", "false"));
    let server = home.serve().await;
    let client = &server.client;
    let retry = text(&pending_retry_of(client, "again").await["id"]);
    assert_eq!(client.post(&format!("/runs/{retry}/stop"), json!({})).await.0, 202);
    let over = client.get(&format!("/runs/{retry}")).await.1;
    assert_eq!((&over["state"], &over["started_at"]), (&json!("cancelled"), &Value::Null));
    assert_eq!(over["retried_by"], Value::Null);
    let slot = slot_of(client, "again", &over["id"]).await;
    assert!(has_run(&slot), "{slot}");
    assert_eq!(slot["reason"], "it ran, its retry did not: stopped before it started");
    // Asked of the attempt before it, it is the retry that is meant; of one that was stopped, it is as was asked.
    let pending = pending_retry_of(client, "again").await;
    for _ in 0..2 {
        let (status, answer) = client.post(&format!("/runs/{}/stop", text(&pending["retry_of"])), json!({})).await;
        assert_eq!((status, &answer["id"], &answer["state"]), (202, &pending["id"], &json!("cancelled")));
    }
    // The schedule goes on.
    let retry = text(&pending["id"]);
    let other = client.until("/tasks/again/runs", |page| page["items"][0]["id"].as_str() > Some(&retry)).await;
    assert!(other["items"][0]["scheduled_for"].is_string());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_a_pending_retry_is_removed_only_with_it() {
    let home = Home::new("");
    let server = home.serve().await;
    let made = json!({
        "id": "again", "title": "Again", "steps": [{ "run": "false" }],
        "policy": { "retries": 1, "backoff": "1h" },
    });
    assert_eq!(server.client.post("/tasks", made).await.0, 201);
    pending_retry_of(&server.client, "again").await;
    assert_eq!(server.client.delete("/tasks/again").await.1["code"], "task_running");
    assert_eq!(server.client.delete("/tasks/again?stop=true").await.0, 204);
    assert_eq!(server.client.get("/tasks/again").await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_wait_let_a_retry_go_first_and_what_a_person_starts_does_not() {
    let policy = "overlap = \"queue\"\nretries = 1\nbackoff = \"1h\"";
    let home = Home::new("").task("again", &each_second(policy, "[ -z \"$REJOIN_SCHEDULED_FOR\" ]"));
    let server = home.serve().await;
    let client = &server.client;
    let retry = pending_retry_of(client, "again").await;
    let waits = |run: &&Value| run["state"] == "queued" && run["attempt"] == 1;
    let two = |page: &Value| page["items"].as_array().unwrap().iter().filter(waits).count() >= 2;
    client.until("/tasks/again/runs?limit=500", two).await;
    let by_hand = client.run("again").await;
    assert_eq!(client.ended(&by_hand).await["state"], "succeeded");
    let started = runs(client, "again").await.iter().filter(|run| run["started_at"].is_string()).count();
    assert_eq!(started, 2, "the first slot and the run by hand");
    // Without it the next slot starts.
    client.post(&format!("/runs/{}/stop", text(&retry["id"])), json!({})).await;
    let three = |page: &Value| {
        page["items"].as_array().unwrap().iter().filter(|run| run["started_at"].is_string()).count() >= 3
    };
    client.until("/tasks/again/runs?limit=500", three).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_slot_that_replaces_takes_the_place_of_a_pending_retry() {
    let policy = "overlap = \"replace\"\nretries = 1\nbackoff = \"1h\"";
    let home = Home::new("").task("again", &each_second(policy, "false"));
    let server = home.serve().await;
    let retry = text(&pending_retry_of(&server.client, "again").await["id"]);
    let over = server.client.ended(&retry).await;
    assert_eq!(
        (&over["state"], &over["reason"], &over["started_at"]),
        (&json!("cancelled"), &json!("replaced by the run of a newer slot"), &Value::Null)
    );
    assert!(has_run(&slot_of(&server.client, "again", &over["id"]).await));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_counts_whose_retry_never_starts_whoever_took_that_back() {
    let long = "backoff = \"1h\"\nretries = 1\npause_after = 2";
    let home = Home::new("")
        .task("replaced", &each_second(&format!("overlap = \"replace\"\n{long}"), "false"))
        .task("stopped", &task(long, "false"));
    let server = home.serve().await;
    let client = &server.client;
    for paused in ["queued", "paused"] {
        let first = client.run("stopped").await;
        let retry = text(&pending_retry(client, &first).await["id"]);
        assert_eq!(client.get("/tasks/stopped").await.1["state"], "queued");
        assert_eq!(client.post(&format!("/runs/{retry}/stop"), json!({})).await.0, 202);
        assert_eq!(client.get("/tasks/stopped").await.1["state"] == "paused", paused == "paused");
    }
    // Each slot takes the place of the retry of the one before.
    client.until("/tasks/replaced", |task| task["state"] == "paused").await;
    let events = client.pages("replaced").await;
    let paused = events.iter().find(|event| event["data"]["state"] == "paused").unwrap();
    assert_eq!(paused["data"]["reason"], "2 of its runs failed in a row");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_retry_survives_the_server_and_starts_when_it_is_due_and_not_before() {
    let home = Home::new("").task("again", &task("retries = 1\nbackoff = \"1h\"", "[ $REJOIN_ATTEMPT = 2 ]"));
    let now: Timestamp = "2026-11-20T20:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(now);
    let server = home.serve_at(clock.clone()).await;
    let first = server.client.run("again").await;
    let retry = pending_retry(&server.client, &first).await;
    assert_eq!(time(&retry["not_before"]), now + SignedDuration::from_hours(1));
    server.stop().await;
    clock.set(now + SignedDuration::from_mins(59));
    let server = home.serve_at(clock.clone()).await;
    let again = server.client.get(&format!("/runs/{}", text(&retry["id"]))).await.1;
    assert_eq!((&again["state"], &again["not_before"]), (&json!("queued"), &retry["not_before"]));
    assert_eq!(again["waits"], json!({"for": "retry", "until": retry["not_before"]}), "it is not in line yet");
    // The clock goes on while the server runs.
    clock.set(now + SignedDuration::from_hours(1));
    let over = server.client.ended(&text(&retry["id"])).await;
    assert_eq!((&over["state"], &over["attempt"]), (&json!("succeeded"), &json!(2)));
    server.stop().await;
    let clock = Clock::standing_at(now + SignedDuration::from_hours(2));
    let server = home.serve_at(clock).await;
    assert_eq!(runs(&server.client, "again").await.len(), 2, "and once");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_not_begun_early_by_a_clock_that_jumped_and_is_not_believed() {
    let home = Home::new("")
        .task("again", &task("retries = 1\nbackoff = \"20m\"", "[ $REJOIN_ATTEMPT = 2 ]"))
        .task("soon", &task("retries = 1\nbackoff = \"1s\"", "[ $REJOIN_ATTEMPT = 2 ]"));
    let start: Timestamp = "2026-11-20T20:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(start);
    let server = home.serve_at(clock.clone()).await;
    let first = server.client.run("again").await;
    let retry = text(&pending_retry(&server.client, &first).await["id"]);
    clock.set(start + SignedDuration::from_hours(72));
    // Once this one is due, so would be the other.
    let first = server.client.run("soon").await;
    let soon = text(&pending_retry(&server.client, &first).await["id"]);
    assert_eq!(server.client.ended(&soon).await["state"], "succeeded");
    let waits = server.client.get(&format!("/runs/{retry}")).await.1;
    assert_eq!((&waits["state"], &waits["waits"]["for"]), (&json!("queued"), &json!("retry")), "{waits}");
    // Set right again it comes when it was to come.
    clock.set(start);
    clock.pass(Duration::from_secs(20 * 60));
    assert_eq!(server.client.ended(&retry).await["state"], "succeeded");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_waits_no_longer_when_a_clock_that_was_ahead_is_set_right() {
    let home = Home::new("").task("again", &task("retries = 1\nbackoff = \"1h\"", "[ $REJOIN_ATTEMPT = 2 ]"));
    let clock = Clock::standing_at("2027-07-01T12:00:00Z".parse().unwrap());
    let server = home.serve_at(clock.clone()).await;
    let first = server.client.run("again").await;
    let retry = text(&pending_retry(&server.client, &first).await["id"]);
    let right: Timestamp = "2025-07-01T12:00:00Z".parse().unwrap();
    clock.set(right);
    let until =
        async |server: &InProcess| time(&server.client.get(&format!("/runs/{retry}")).await.1["waits"]["until"]);
    server.client.post("/clock/accept", json!({})).await;
    // What it had left, and what a clock may be slowed down by.
    let latest = right + SignedDuration::from_mins(68);
    assert!(until(&server).await <= latest, "{}", until(&server).await);
    server.stop().await;
    let server = home.serve_at(clock.clone()).await;
    assert!(until(&server).await <= latest, "also over a start: {}", until(&server).await);
    clock.pass(Duration::from_secs(68 * 60));
    let over = server.client.ended(&retry).await;
    assert_eq!((&over["state"], &over["attempt"]), (&json!("succeeded"), &json!(2)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_was_due_longer_ago_than_the_window_is_not_made_up() {
    let policy = "retries = 1\nbackoff = \"1h\"\ncatchup = \"none\"\ncatchup_window = \"2h\"";
    let daily = |policy: &str| task(policy, "false").replacen("[policy]", "[schedule]\nevery = \"24h\"\n[policy]", 1);
    let home = Home::new("").task("again", &daily(policy));
    let now: Timestamp = "2026-11-20T20:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(now);
    let server = home.serve_at(clock.clone()).await;
    clock.set(now + SignedDuration::from_hours(24));
    server.server.api().planner.notify_one();
    // A forward jump is believed after a minute: the start does not count as one.
    server.stop().await;
    let server = home.serve_at(clock.clone()).await;
    let retry = pending_retry_of(&server.client, "again").await;
    server.stop().await;
    // Due 25 h after the beginning, and found 4 h later.
    clock.set(now + SignedDuration::from_hours(29));
    let server = home.serve_at(clock).await;
    let over = server.client.ended(&text(&retry["id"])).await;
    assert_eq!((&over["state"], &over["started_at"]), (&json!("interrupted"), &Value::Null));
    assert!(text(&over["reason"]).contains("catch-up window"), "{over}");
    assert_eq!(over["retried_by"], Value::Null);
    let slot = slot_of(&server.client, "again", &over["id"]).await;
    assert_eq!(slot["outcome"], "ran", "{slot}");
    server.stop().await;
}

/// Sleeps at the first attempt, works at the second.
const CRASHES: &str = "[ $REJOIN_ATTEMPT = 1 ] && sleep 600; true";

#[tokio::test]
async fn t_29_killed_under_a_run_it_is_done_once_more_where_its_policy_says_so_and_only_there() {
    let home = Home::new("").task("again", &task("on_crash = \"retry\"", CRASHES)).task("not", &task("", CRASHES));
    let mut server = home.spawn(&[]).await;
    let (again, not) = (server.client.run("again").await, server.client.run("not").await);
    for run in [&again, &not] {
        server.client.until(&format!("/runs/{run}"), |run| run["state"] == "running").await;
    }
    server.kill();
    let mut server = home.spawn(&[]).await;
    let states = async |run: &str| {
        let attempts = attempts(&server.client, run).await;
        attempts.iter().map(|run| text(&run["state"])).collect::<Vec<_>>()
    };
    assert_eq!(states(&again).await, ["interrupted", "succeeded"]);
    assert_eq!(states(&not).await, ["interrupted"]);
    let events = server.client.pages("again").await;
    assert_eq!(events.iter().filter(|event| is_terminal(event)).count(), 2);
    assert!(server.terminate().await.success());
}

#[tokio::test]
async fn stopped_under_a_run_the_next_start_does_it_once_more() {
    let home = Home::new("[runs]\nshutdown_grace = \"10ms\"").task("again", &task("on_crash = \"retry\"", CRASHES));
    let mut server = home.spawn(&[]).await;
    let run = server.client.run("again").await;
    server.client.until(&format!("/runs/{run}"), |run| run["state"] == "running").await;
    assert!(server.terminate().await.success());
    let mut server = home.spawn(&[]).await;
    let attempts = attempts(&server.client, &run).await;
    let ends: Vec<_> = attempts.iter().map(|run| (text(&run["state"]), run["reason"].as_str())).collect();
    assert_eq!(ends, [("interrupted".to_owned(), Some("the server was stopped")), ("succeeded".to_owned(), None)]);
    assert!(server.terminate().await.success());
}

/// Kills the server at a point on the way from a failure to its retry; gives the attempts that there are in the end, as
/// attempt and state.
#[cfg(feature = "failpoints")]
async fn killed_at(point: &str, policy: &str) -> Vec<(u64, String)> {
    let policy = format!("retries = 1\nbackoff = \"50ms\"\n{policy}");
    let home = Home::new("").task("again", &task(&policy, "[ $REJOIN_ATTEMPT = 2 ]"));
    let mut server = home.spawn(&[("REJOIN_FAILPOINT", point)]).await;
    // It may be over before the answer is out.
    let _ = server.client.request(reqwest::Method::POST, "/tasks/again/runs").json(&json!({})).send().await;
    assert!(!server.ended().await.success(), "{point} was never passed");
    let mut server = home.spawn(&[]).await;
    let first = text(&runs(&server.client, "again").await[0]["id"]);
    attempts(&server.client, &first).await;
    let runs = runs(&server.client, "again").await;
    assert!(server.terminate().await.success());
    runs.iter().map(|run| (run["attempt"].as_u64().unwrap(), text(&run["state"]))).collect()
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn killed_between_a_failure_and_its_retry_both_are_there_or_neither() {
    let (first, second) = ((1, "failed".to_owned()), (2, "succeeded".to_owned()));
    let lost = (1, "interrupted".to_owned());
    // Within the transaction: the failure was not saved, and the run is as if the server had been killed under it.
    assert_eq!(killed_at("retry-not-saved@1", "").await, std::slice::from_ref(&lost));
    assert_eq!(killed_at("retry-not-saved@1", "on_crash = \"retry\"").await, [lost, second.clone()]);
    // Right behind it: the retry is there, and starts once.
    assert_eq!(killed_at("retry-saved@1", "").await, [first.clone(), second.clone()]);
    // On its way to its start.
    assert_eq!(killed_at("claimed-not-started@2", "").await, [first, second]);
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn killed_before_a_newer_slot_takes_the_place_of_a_retry_the_next_start_has_it_do_so() {
    let policy = "overlap = \"replace\"\nretries = 1\nbackoff = \"1h\"";
    let home = Home::new("").task("again", &each_second(policy, "false").replace("\"1s\"", "\"3s\""));
    // The first slot is claimed, its run comes to its start and fails; the second slot is claimed.
    let mut server = home.spawn(&[("REJOIN_FAILPOINT", "claimed-not-started@3")]).await;
    let retry = text(&pending_retry_of(&server.client, "again").await["id"]);
    assert!(!server.ended().await.success());
    // No other slot does it instead.
    let home = home.task("again", &task(policy, "false"));
    let mut server = home.spawn(&[]).await;
    let over = server.client.ended(&retry).await;
    assert_eq!(
        (&over["state"], &over["reason"], &over["started_at"]),
        (&json!("cancelled"), &json!("replaced by the run of a newer slot"), &Value::Null)
    );
    let newer = runs(&server.client, "again").await[2].clone();
    assert_eq!((&newer["attempt"], newer["scheduled_for"].is_string()), (&json!(1), true), "{newer}");
    assert_eq!(server.client.ended(&text(&newer["id"])).await["state"], "failed", "the newer one has its run");
    assert!(server.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_says_nothing_for_too_long_is_ended_and_says_why() {
    let home = Home::new("[runs]\nstop_term = \"100ms\"\nstop_kill = \"200ms\"")
        .task("mute", &task("idle_timeout = \"300ms\"\nretries = 1\nbackoff = \"10ms\"", "echo begun; sleep 600"))
        .task("talks", &task("idle_timeout = \"4s\"", "for n in 1 2 3 4 5 6; do sleep 1; echo $n; done"));
    let server = home.serve().await;
    let talks = server.client.run("talks").await;
    let mute = server.client.run("mute").await;
    let over = attempts(&server.client, &mute).await;
    assert_eq!(over.len(), 2, "it counts as a failure: {over:?}");
    for run in &over {
        assert_eq!((&run["state"], &run["reason"]), (&json!("timed_out"), &json!("said nothing for 300 ms")));
        assert!(text(&run["text"]).contains("timed out: said nothing for 300 ms"), "{run}");
    }
    assert_eq!(server.client.ended(&talks).await["state"], "succeeded", "six seconds, each with a word");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_elsewhere_that_says_nothing_for_too_long_is_told_to_stop() {
    let home = Home::new("[runs]\nexternal_stop = \"2s\"")
        .task("elsewhere", &format!("{EXTERNAL}[policy]\nidle_timeout = \"2s\"\n"));
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    // It is there all the time, and says nothing.
    let mut producer = Producer::open(&server.client, &run).await;
    let (status, told) = server.client.get(&format!("/runs/{run}/stop?wait=30")).await;
    assert_eq!((status, &told["why"]), (200, &json!("timed_out")));
    let over = server.client.ended(&run).await;
    assert_eq!((&over["state"], &over["reason"]), (&json!("timed_out"), &json!("said nothing for 2 s")));
    assert_eq!(producer.answer().await.1["code"], "run_over");
    // One that waits for an answer has nothing to say.
    let run = server.client.run("elsewhere").await;
    let waits = json!({ "n": 1, "kind": "status", "data": { "state": "waiting", "text": "May I?" } });
    let mut producer = Producer::open(&server.client, &run).await;
    producer.say(waits.to_string() + "\n").await;
    let (status, told) = server.client.get(&format!("/runs/{run}/stop?wait=4")).await;
    assert_eq!((status, &told["stop"]), (200, &json!(false)), "nobody asks it to stop");
    server.client.post(&format!("/runs/{run}/stop"), json!({})).await;
    server.client.ended(&run).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_of_a_run_elsewhere_goes_to_who_asks_for_work_when_it_is_due() {
    let policy = "retries = 1\nbackoff = \"200ms\"\nretry_on = [75]";
    let home = Home::new("").task("elsewhere", &format!("{EXTERNAL}[policy]\n{policy}\n"));
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let failed = json!({ "n": 1, "kind": "status", "data": { "state": "failed", "exit": 75 } }).to_string();
    assert_eq!(feed(&server.client, &run, failed.clone()).await.0, 200);
    let (status, answer) = server.client.post("/tasks/elsewhere/claim?wait=20", json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let retry = &answer["run"];
    assert_eq!((&retry["retry_of"], &retry["attempt"]), (&json!(run), &json!(2)));
    assert!(time(&retry["started_at"]) >= time(&retry["not_before"]), "{retry}");
    assert_eq!(feed(&server.client, &text(&retry["id"]), failed).await.0, 200);
    assert_eq!(attempts(&server.client, &run).await.len(), 2, "once more, and not again");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_elsewhere_that_is_no_longer_heard_of_is_a_crash() {
    let home = Home::new("[runs]\nexternal_lease = \"300ms\"")
        .task("elsewhere", &format!("{EXTERNAL}[policy]\non_crash = \"retry\"\nretries = 0\n"));
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let retry = pending_retry(&server.client, &run).await;
    assert_eq!(server.client.ended(&run).await["state"], "interrupted");
    let (status, answer) = server.client.post("/tasks/elsewhere/claim?wait=20", json!({})).await;
    assert_eq!((status, &answer["run"]["id"]), (200, &retry["id"]), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_task_pauses_itself_after_so_many_failures_in_a_row_and_says_so() {
    let home = Home::new("").task("again", &each_second("pause_after = 2\nretries = 1\nbackoff = \"10ms\"", "false"));
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    client.until("/tasks/again", |task| task["state"] == "paused").await;
    let all = runs(&client, "again").await;
    // An attempt that is tried again is no failure yet: two slots, two attempts each.
    let ends: Vec<_> = all.iter().map(|run| (run["attempt"].as_u64().unwrap(), text(&run["state"]))).collect();
    let failed = |attempt| (attempt, "failed".to_owned());
    assert_eq!(ends, [failed(1), failed(2), failed(1), failed(2)]);
    let events = client.pages("again").await;
    let paused: Vec<_> = events.iter().filter(|event| event["data"]["state"] == "paused").collect();
    assert_eq!(paused.len(), 1);
    assert_eq!(paused[0]["data"]["reason"], "2 of its runs failed in a row");
    assert_eq!(paused[0]["seq"].as_u64(), all[3]["last_seq"].as_u64().map(|seq| seq + 1), "with the last of them");
    assert!(home.log().contains("the task paused itself"), "{}", home.log());
    client.until("/tasks/again/slots", |page| page["items"][0]["outcome"] == "disabled").await;
    // It is paused for the next server too.
    server.kill();
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    assert_eq!(client.get("/tasks/again").await.1["state"], "paused");
    // Resumed, it counts anew.
    client.post("/tasks/again/resume", Value::Null).await;
    client.until("/tasks/again", |task| task["state"] == "paused").await;
    assert_eq!(runs(&client, "again").await.len(), 8);
    assert!(server.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_ends_a_row_of_failures_and_a_stop_does_not_belong_to_it() {
    let command = "[ \"$REJOIN_PARAM_HOW\" = sleep ] && sleep 600; [ \"$REJOIN_PARAM_HOW\" = well ]";
    let text = task("pause_after = 3", command) + "[params]\nhow = { default = \"badly\" }\n";
    let home = Home::new("").task("again", &text);
    let server = home.serve().await;
    let client = &server.client;
    let run = async |how: &str| {
        let (status, answer) = client.post("/tasks/again/runs", json!({ "params": { "how": how } })).await;
        assert_eq!(status, 201, "{answer}");
        let id = answer["run"]["id"].as_str().unwrap().to_owned();
        if how == "sleep" {
            client.until(&format!("/runs/{id}"), |run| run["state"] == "running").await;
            client.post(&format!("/runs/{id}/stop"), json!({})).await;
        }
        client.ended(&id).await;
        // In the log it stands beside the end, or not at all.
        client.pages("again").await.iter().any(|event| event["data"]["state"] == "paused")
    };
    for how in ["badly", "badly", "well", "badly", "sleep", "badly", "well", "badly", "sleep", "badly"] {
        assert!(!run(how).await, "paused after {how}");
    }
    assert!(run("badly").await, "three in a row");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_by_itself_is_called_off_when_a_task_pauses_itself_and_what_a_person_started_is_not() {
    let policy = "overlap = \"queue\"\npause_after = 1";
    let home = Home::new("");
    let gate = crate::harness::Gate::new(home.path(), "gate");
    let command = format!("[ -z \"$REJOIN_SCHEDULED_FOR\" ] && exit 0; {}; exit 1", gate.wait());
    let home = home.task("again", &each_second(policy, &command));
    let server = home.serve().await;
    let client = &server.client;
    let two =
        |page: &Value| page["items"].as_array().unwrap().iter().filter(|run| run["state"] == "queued").count() >= 2;
    client.until("/tasks/again/runs?limit=500", two).await;
    let by_hand = client.run("again").await;
    gate.open().await;
    assert_eq!(client.ended(&by_hand).await["state"], "succeeded");
    let slots = client.get("/tasks/again/slots?limit=500").await.1["items"].as_array().unwrap().clone();
    for run in runs(client, "again").await {
        if run["started_at"].is_null() {
            assert_eq!((&run["state"], &run["reason"]), (&json!("cancelled"), &json!("the task was paused")), "{run}");
            let slot = slots.iter().find(|slot| slot["run"] == run["id"]).unwrap();
            assert_eq!(slot["outcome"], "disabled", "{slot}");
        }
    }
    let started = runs(client, "again").await.iter().filter(|run| run["started_at"].is_string()).count();
    assert_eq!(started, 2, "the slot that failed and the run by hand");
    server.stop().await;
}

/// A command beside the server of a home.
async fn rejoin(home: &Home, line: &[&str]) -> Output {
    let mut command = Command::new(REJOIN);
    command
        .current_dir(home.path())
        .args(line)
        .env_remove("REJOIN_SERVER")
        .env_remove("REJOIN_TOKEN")
        .kill_on_drop(true);
    tokio::time::timeout(2 * PATIENCE, command.output()).await.expect("the command does not end").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stays_for_a_run_stays_for_its_last_attempt() {
    let home = Home::new("")
        .task(
            "works",
            &task("retries = 3\nbackoff = \"300ms\"", "echo attempt $REJOIN_ATTEMPT; [ $REJOIN_ATTEMPT = 3 ]"),
        )
        .task("fails", &task("retries = 1\nbackoff = \"10ms\"", "echo attempt $REJOIN_ATTEMPT; exit 4"));
    let server = home.serve().await;
    let waited = rejoin(&home, &["tasks", "run", "works", "--wait", "--json"]).await;
    assert_eq!(waited.status.code(), Some(0), "{waited:?}");
    let answer: Value = serde_json::from_slice(&waited.stdout).unwrap();
    assert_eq!((&answer["run"]["attempt"], &answer["run"]["state"]), (&json!(3), &json!("succeeded")));
    let watched = rejoin(&home, &["tasks", "run", "works", "--watch"]).await;
    assert_eq!(watched.status.code(), Some(0), "{watched:?}");
    let out = String::from_utf8(watched.stdout).unwrap();
    for attempt in 1..=3 {
        assert!(out.contains(&format!("| attempt {attempt}")), "{out}");
    }
    let said = String::from_utf8(watched.stderr).unwrap();
    assert!(said.contains("Attempt 1 is over; attempt 2 starts"), "{said}");
    let failed = rejoin(&home, &["tasks", "run", "fails", "--wait"]).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    let last = runs(&server.client, "fails").await;
    assert_eq!(last.len(), 2);
    // One that is over is watched to its last attempt too; its log is its own.
    let first = text(&last[0]["id"]);
    let again = rejoin(&home, &["watch", &first]).await;
    assert_eq!(again.status.code(), Some(1));
    let out = String::from_utf8(again.stdout).unwrap();
    assert!(out.contains("| attempt 1") && out.contains("| attempt 2"), "{out}");
    let logs = rejoin(&home, &["runs", "logs", &first, "-f"]).await;
    let out = String::from_utf8(logs.stdout).unwrap();
    assert!(out.contains("| attempt 1") && !out.contains("| attempt 2"), "{out}");
    server.stop().await;
}

/// A key, a bad value as TOML, the same as JSON and as a flag, and what is said of it.
type BadValue<'v> = (&'v str, &'v str, Value, Option<(&'v str, &'v str)>, &'v str);

fn bad_values() -> Vec<BadValue<'static>> {
    let flag = |name, value| Some((name, value));
    let duration = "is not a length of time";
    vec![
        ("retries", "-1", json!(-1), flag("--retries=-1", "invalid"), "-1 is not from 0 to 100"),
        ("retries", "101", json!(101), flag("--retries=101", ""), "101 is not from 0 to 100"),
        ("retries", "\"3\"", json!("3"), None, "must be a whole number, is text"),
        ("retries", "1.5", json!(1.5), flag("--retries=1.5", "invalid"), "must be a whole number, is a number"),
        ("backoff", "\"\"", json!(""), flag("--backoff=", ""), "is not a range of waits"),
        ("backoff", "\"30\"", json!("30"), flag("--backoff=30", ""), duration),
        ("backoff", "\"30s..\"", json!("30s.."), flag("--backoff=30s..", ""), "is not a range of waits"),
        ("backoff", "\"10m..30s\"", json!("10m..30s"), flag("--backoff=10m..30s", ""), "begins with the longer one"),
        ("backoff", "\"0s..1m\"", json!("0s..1m"), flag("--backoff=0s..1m", ""), "must be more than nothing"),
        ("backoff", "\"1us..1m\"", json!("1us..1m"), flag("--backoff=1us..1m", ""), "must be whole milliseconds"),
        ("backoff", "\"1m..1 month\"", json!("1m..1 month"), flag("--backoff=1m..1 month", ""), "no fixed length"),
        ("backoff", "30", json!(30), None, "must be a range of waits like \"30s..10m\", is a number"),
        ("retry_on", "75", json!(75), None, "must be a list of exit codes like [75], is a number"),
        ("retry_on", "[0]", json!([0]), flag("--retry-on=0", ""), "0 is not the exit code of a failure"),
        ("retry_on", "[75, 256]", json!([75, 256]), flag("--retry-on=75,256", ""), "256 is not the exit code"),
        ("retry_on", "[-1]", json!([-1]), flag("--retry-on=-1", ""), "-1 is not the exit code of a failure"),
        ("retry_on", "[\"75\"]", json!(["75"]), flag("--retry-on=many", "invalid"), "has text"),
        (
            "on_crash",
            "\"again\"",
            json!("again"),
            flag("--on-crash=again", "possible values: fail, retry"),
            "\"again\" is not known",
        ),
        ("on_crash", "true", json!(true), None, "must be text, is true or false"),
        ("idle_timeout", "\"0s\"", json!("0s"), flag("--idle-timeout=0s", ""), "must be more than nothing"),
        ("idle_timeout", "\"never\"", json!("never"), flag("--idle-timeout=never", ""), duration),
        ("idle_timeout", "30", json!(30), None, "must have a unit"),
        ("pause_after", "-1", json!(-1), flag("--pause-after=-1", "invalid"), "-1 is not from 0 to 1000"),
        ("pause_after", "1001", json!(1001), flag("--pause-after=1001", ""), "1001 is not from 0 to 1000"),
        ("pause_after", "\"three\"", json!("three"), flag("--pause-after=three", "invalid"), "must be a whole number"),
        ("keep", "5", json!(5), None, "must be a table, is a number"),
        ("keep.runs", "0", json!(0), flag("--keep=runs=0", ""), "0 is not from 1 to 1000000000000"),
        ("keep.runs", "1.5", json!(1.5), flag("--keep=runs=1.5", ""), "must be a whole number"),
        ("keep.days", "\"7d\"", json!("7d"), flag("--keep=days=7d", ""), "must be a whole number, is text"),
        ("keep.days", "40000", json!(40000), flag("--keep=days=40000", ""), "40000 is not from 1 to 36525"),
        ("keep.events", "-1", json!(-1), flag("--keep=events=-1", ""), "-1 is not from 1 to 1000000000000"),
        ("keep.bytes", "\"1 MiBs\"", json!("1 MiBs"), flag("--keep=bytes=1 MiBs", ""), "\"1 MiBs\" is not a size"),
        ("keep.bytes", "0", json!(0), flag("--keep=bytes=0", ""), "must be more than nothing"),
        ("keep.runz", "5", json!(5), flag("--keep=runz=5", ""), "is not known: did you mean \"runs\"?"),
        ("notify.channels", "\"phone\"", json!("phone"), None, "must be a list of names, is text"),
        (
            "notify.channels",
            "[\"phone\"]",
            json!(["phone"]),
            flag("--notify=phone", ""),
            "there is no channel \"phone\"",
        ),
        ("notify.channels", "[\"\"]", json!([""]), flag("--notify=", ""), "is no name"),
    ]
}

/// The table that a key is of, and its name there: where none is named it is that of the policy.
fn table_and_key(key: &str) -> (&str, &str) {
    key.strip_prefix("notify.").map_or(("policy", key), |key| ("notify", key))
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_values_are_refused_with_their_reason_in_files_by_the_api_and_on_the_command_line() {
    let bad = bad_values();
    let home = bad.iter().enumerate().fold(Home::new(""), |home, (n, (key, toml, ..))| {
        let (table, key) = table_and_key(key);
        let text = task(&format!("{key} = {toml}"), "true").replacen("policy", table, 1);
        home.task(&format!("bad-{n}"), &text)
    });
    let server = home.serve().await;
    for (n, (key, toml, json, flag, said)) in bad.into_iter().enumerate() {
        let (table, key) = table_and_key(key);
        let key = format!("{table}.{key}");
        // What is wrong with one of a list is said of that one.
        let is_of_it = |said: &Value| text(said) == key || text(said) == format!("{key}[0]");
        let file = server.client.get(&format!("/tasks/bad-{n}")).await.1;
        assert!(file["state"] == "error" && is_of_it(&file["error"]["key"]), "{toml}: {file}");
        assert!(text(&file["error"]["message"]).contains(said), "{key} = {toml}: {}", file["error"]);
        assert_eq!(file["error"]["line"], 3, "{file}");
        let mut body = json!({ "id": "made", "title": "Made", "steps": [{ "run": "true" }] });
        let whole = key.split('.').rev().fold(json, |value, member| json!({ member: value }));
        body[table] = whole[table].clone();
        let (status, problem) = server.client.post("/tasks", body.clone()).await;
        assert!(status == 400 && is_of_it(&problem["field"]), "{body}: {problem}");
        assert!(text(&problem["detail"]).contains(said), "{body}: {problem}");
        // What the command line takes for a wrong flag it refuses itself; all else the server does.
        let Some((flag, own)) = flag else { continue };
        let refused = rejoin(&home, &["tasks", "add", "Made", "--run", "true", flag]).await;
        let words = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{flag}: {words}");
        assert!(words.contains(if own.is_empty() { said } else { own }), "{flag}: {words}");
    }
    assert_eq!(server.client.get("/tasks/made").await.0, 404, "none of them made anything");
    server.stop().await;
}

#[test]
fn bad_defaults_are_refused_with_their_reason_in_the_config() {
    let refused = |text: &str| {
        let none = std::collections::BTreeMap::new();
        rejoin::config::Config::from_text(None, &format!("[schedule]\n{text}"), &none).unwrap_err().to_string()
    };
    for (text, said) in [
        ("retries = 101", "schedule.retries: must be at most 100"),
        ("retries = -1", "schedule.retries: "),
        ("backoff = \"10m..30s\"", "begins with the longer one"),
        ("retry_on = [0]", "schedule.retry_on: 0 is not the exit code of a failure"),
        ("retry_on = [300]", "schedule.retry_on"),
        ("on_crash = \"again\"", "schedule.on_crash"),
        ("idle_timeout = \"0s\"", "schedule.idle_timeout: must be more than nothing"),
        ("idle_timeout = 30", "schedule.idle_timeout"),
        ("pause_after = 1001", "schedule.pause_after: must be at most 1000"),
    ] {
        let words = refused(text);
        assert!(words.contains(said), "{text}: {words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_says_nothing_has_the_retries_of_the_config() {
    let config = "[schedule]\nretries = 1\nbackoff = \"10ms\"\nretry_on = [5]\npause_after = 1";
    let home = Home::new(config).task("again", "title = \"Again\"\n[[steps]]\nrun = \"exit 5\"\n");
    let server = home.serve().await;
    let policy = server.client.get("/tasks/again").await.1["policy"].clone();
    let of = |key: &str| policy[key].clone();
    assert_eq!(
        json!([of("retries"), of("backoff"), of("retry_on"), of("on_crash"), of("idle_timeout"), of("pause_after")]),
        json!([1, "10ms", [5], "fail", "none", 1])
    );
    let run = server.client.run("again").await;
    assert_eq!(attempts(&server.client, &run).await.len(), 2);
    server.client.until("/tasks/again", |task| task["state"] == "paused").await;
    server.stop().await;
}

/// Reconnecting, a watcher of the task sees the end and what follows it in the same order as everybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_the_failure_then_its_retry() {
    let home = Home::new("").task("again", &task("retries = 1\nbackoff = \"10ms\"", "[ $REJOIN_ATTEMPT = 2 ]"));
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "again", "after": 0 }])).await;
    let run = server.client.run("again").await;
    let mut events = watcher.events_until_end().await;
    while events.iter().filter(|event| is_terminal(event)).count() < 2 {
        events.extend(watcher.events_until_end().await);
    }
    let states: Vec<_> = events.iter().filter(|event| event["kind"] == "status").collect();
    let failed = states.iter().position(|event| event["data"]["state"] == "failed").unwrap();
    let queued = &states[failed + 1]["data"];
    assert_eq!((&queued["state"], &queued["retry_of"], &queued["attempt"]), (&json!("queued"), &json!(run), &json!(2)));
    let retry = server.client.get(&format!("/runs/{}", text(&states[failed + 1]["run"]))).await.1;
    assert_eq!(retry["not_before"], queued["not_before"]);
    server.stop().await;
}
