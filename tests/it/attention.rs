//! What runs have found: shown until a person has answered, and pushed to all who look.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Client, Home, InProcess, Watcher};

/// How long a change of the list may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(40);

/// A task that finds what its parameter says, if it says anything.
const FINDS: &str = r#"
title = "Finds"
agent = "steps"

[params]
what = { default = "a disk is full" }

[[steps]]
name = "look"
run = 'echo "$REJOIN_PARAM_WHAT"'
attention = 'params.what != ""'
summary = "${steps.look.output}"
"#;

fn home() -> Home {
    Home::new("").task("finds", FINDS).task("quiet", &FINDS.replace("a disk is full", ""))
}

/// Runs it to its end; gives the run.
async fn find(client: &Client, what: &str) -> String {
    let (status, made) = client.post("/tasks/finds/runs", json!({ "params": { "what": what } })).await;
    assert_eq!(status, 201, "{made}");
    let run = made["run"]["id"].as_str().unwrap().to_owned();
    client.ended(&run).await;
    run
}

async fn attention(client: &Client) -> Value {
    client.get("/tasks/finds").await.1["attention"].clone()
}

async fn in_state(client: &Client, state: &str) -> Vec<String> {
    let (status, page) = client.get(&format!("/attention?state={state}")).await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().iter().map(|item| item["run"].as_str().unwrap().to_owned()).collect()
}

/// A watcher of the list of tasks, which has the list.
async fn looker(server: &InProcess) -> Watcher {
    let mut watcher = server.client.watch(json!([])).await;
    watcher.send(json!({ "type": "tasks" })).await;
    watcher.until(|frame| frame["type"] == "tasks").await;
    watcher
}

/// Reads on until the list says this of what the task has found.
async fn told(watcher: &mut Watcher, good: impl Fn(&Value) -> bool) -> Value {
    let is_it = |item: &Value| item["id"] == "finds" && good(&item["attention"]);
    let coming =
        watcher.until(|frame| frame["type"] == "tasks" && frame["items"].as_array().unwrap().iter().any(&is_it));
    // Heartbeats come for ever.
    let frames = tokio::time::timeout(PATIENCE, coming).await.expect("the list never said so");
    let items = frames.last().unwrap()["items"].as_array().unwrap().clone();
    items.into_iter().find(is_it).unwrap()["attention"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_has_found_is_shown_until_it_is_acknowledged_and_told_to_all_who_look() {
    let home = home();
    let server = home.serve().await;
    let client = &server.client;
    let mut watcher = looker(&server).await;
    let first = find(client, "a disk is full").await;
    let second = find(client, "two disks are full").await;
    let shown = told(&mut watcher, |attention| attention["count"] == 2).await;
    assert_eq!((&shown["run"], &shown["summary"]), (&json!(second), &json!("two disks are full")));
    assert!(shown["at"].is_string(), "{shown}");
    // A run that finds nothing answers nothing.
    find(client, "").await;
    assert_eq!(attention(client).await, shown);
    assert_eq!(in_state(client, "open").await, [second.clone(), first.clone()]);

    let (status, answered) = client.post(&format!("/runs/{second}/acknowledge"), json!({})).await;
    assert_eq!((status, &answered["state"]), (200, &json!("acknowledged")), "{answered}");
    assert!(answered["acknowledged_at"].is_string(), "{answered}");
    told(&mut watcher, Value::is_null).await;
    assert_eq!(attention(client).await, Value::Null, "what was found before was shown with it");
    assert_eq!(in_state(client, "open").await, Vec::<String>::new());
    assert_eq!(in_state(client, "acknowledged").await, [second.clone(), first.clone()]);
    let (_, again) = client.post(&format!("/runs/{second}/acknowledge"), json!({})).await;
    assert_eq!(again, answered, "asked again it changes nothing");

    let third = find(client, "two disks are full").await;
    let (_, late) = client.post(&format!("/runs/{first}/acknowledge"), json!({})).await;
    assert_eq!(late["state"], "acknowledged");
    assert_eq!((&attention(client).await["run"], &attention(client).await["count"]), (&json!(third), &json!(1)));
    assert_eq!(in_state(client, "all").await, [third, second, first]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snooze_ends_by_itself_and_all_who_look_are_told() {
    let home = home();
    let begin: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(begin);
    let server = home.serve_at(clock.clone()).await;
    let client = &server.client;
    let first = find(client, "a disk is full").await;
    let mut watcher = looker(&server).await;
    let (status, answered) = client.post(&format!("/runs/{first}/snooze"), json!({ "for": "4h" })).await;
    assert_eq!((status, &answered["state"]), (200, &json!("snoozed")), "{answered}");
    assert_eq!(answered["snoozed_until"], "2026-03-01T16:00:00.000000Z");
    told(&mut watcher, Value::is_null).await;
    // The same once more is no news; something else is.
    let second = find(client, "a disk is full").await;
    assert_eq!(attention(client).await, Value::Null);
    let other = find(client, "a disk is gone").await;
    let shown = told(&mut watcher, |attention| !attention.is_null()).await;
    assert_eq!((&shown["run"], &shown["count"]), (&json!(other), &json!(1)));
    client.post(&format!("/runs/{other}/snooze"), json!({ "for": "2h" })).await;
    told(&mut watcher, Value::is_null).await;
    assert_eq!(in_state(client, "snoozed").await, [other.clone(), second.clone(), first.clone()]);

    clock.set(begin + SignedDuration::from_hours(2) - SignedDuration::from_secs(1));
    assert_eq!(attention(client).await, Value::Null, "a second too early");
    clock.set(begin + SignedDuration::from_hours(2));
    // Told without being asked.
    let shown = told(&mut watcher, |attention| !attention.is_null()).await;
    assert_eq!((&shown["run"], &shown["count"]), (&json!(other), &json!(3)), "answered together, back together");
    client.post(&format!("/runs/{other}/acknowledge"), json!({})).await;
    told(&mut watcher, Value::is_null).await;
    // Whoever pressed the wrong one puts it away instead.
    let (_, back) = client.post(&format!("/runs/{other}/snooze"), json!({ "for": "1m" })).await;
    assert_eq!((&back["state"], &back["acknowledged_at"]), (&json!("snoozed"), &Value::Null));
    clock.set(begin + SignedDuration::from_hours(3));
    assert_eq!(told(&mut watcher, |attention| !attention.is_null()).await["count"], 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn see_02_a_snooze_given_by_a_clock_that_was_ahead_is_over_when_it_is_set_right() {
    let home = home();
    let ahead: Timestamp = "2027-06-01T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(ahead);
    let server = home.serve_at(clock.clone()).await;
    let client = &server.client;
    let first = find(client, "a disk is full").await;
    let mut watcher = looker(&server).await;
    client.post(&format!("/runs/{first}/snooze"), json!({ "for": "1h" })).await;
    told(&mut watcher, Value::is_null).await;
    clock.set("2025-06-01T12:00:00Z".parse().unwrap());
    client.post("/clock/accept", json!({})).await;
    // Told without being asked.
    assert_eq!(told(&mut watcher, |attention| !attention.is_null()).await["count"], 1);
    assert_eq!(in_state(client, "snoozed").await, [""; 0]);
    let second = find(client, "a disk is full").await;
    let shown = attention(client).await;
    assert_eq!((&shown["run"], &shown["count"]), (&json!(second), &json!(2)), "the same once more is news");
    assert_eq!(in_state(client, "open").await, [second, first]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn see_02_a_snooze_given_while_a_clock_was_wrong_for_a_moment_is_over_is_told_and_swallows_nothing_new() {
    let home = home();
    let right: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
    let wrong: Timestamp = "2028-06-01T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(right);
    let server = home.serve_at(clock.clone()).await;
    let client = &server.client;
    let first = find(client, "a disk is full").await;
    let mut watcher = looker(&server).await;
    clock.set(wrong);
    let (_, answered) = client.post(&format!("/runs/{first}/snooze"), json!({ "for": "1h" })).await;
    assert_eq!(answered["snoozed_until"], "2028-06-01T13:00:00.000000Z");
    told(&mut watcher, Value::is_null).await;
    // All that was to be told by then is told before what comes of another task later.
    client.post("/tasks/quiet/pause", json!({})).await;
    let is_paused = |item: &Value| item["id"] == "quiet" && item["state"] == "paused";
    watcher.until(|frame| frame["type"] == "tasks" && frame["items"].as_array().unwrap().iter().any(is_paused)).await;
    clock.set(right + SignedDuration::from_secs(20));
    // Nothing of the task was planned or made by the wrong clock: it is told because its snooze is over.
    client.post("/clock/accept", json!({})).await;
    assert_eq!(told(&mut watcher, |attention| !attention.is_null()).await["count"], 1);
    let second = find(client, "a disk is full").await;
    assert_eq!(attention(client).await["run"], json!(second));
    // The day comes near to which the wrong clock had put the first away: nobody has put the second away.
    clock.set(wrong - SignedDuration::from_hours(24));
    assert_eq!(attention(client).await["run"], json!(second));
    assert!(in_state(client, "open").await.contains(&second));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_and_answered_is_known_after_a_restart() {
    let home = home();
    let server = home.serve().await;
    let seen = find(&server.client, "a disk is full").await;
    server.client.post(&format!("/runs/{seen}/acknowledge"), json!({})).await;
    let found = find(&server.client, "a disk is gone").await;
    server.stop().await;
    let server = home.serve().await;
    let shown = attention(&server.client).await;
    assert_eq!((&shown["run"], &shown["count"]), (&json!(found), &json!(1)));
    assert_eq!(in_state(&server.client, "acknowledged").await, [seen]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_is_refused_with_its_field() {
    let home = home();
    let server = home.serve().await;
    let client = &server.client;
    let run = find(client, "a disk is full").await;
    let (_, made) = client.post("/tasks/quiet/runs", json!({})).await;
    let quiet = made["run"]["id"].as_str().unwrap();
    client.ended(quiet).await;
    for body in [json!({}), json!({ "for": 4 }), json!({ "for": "4" }), json!({ "for": "0s" }), json!({ "for": "91d" })]
    {
        let (status, problem) = client.post(&format!("/runs/{run}/snooze"), body.clone()).await;
        assert_eq!((status, &problem["code"], &problem["field"]), (400, &json!("invalid"), &json!("for")), "{body}");
    }
    let (status, problem) = client.post(&format!("/runs/{run}/snooze"), json!({ "for": "1h", "until": 3 })).await;
    assert_eq!((status, &problem["field"]), (400, &json!("until")));
    assert_eq!(attention(client).await["run"], json!(run), "nothing was put away");
    for (path, body) in [("acknowledge", json!({})), ("snooze", json!({ "for": "1h" }))] {
        let (status, problem) = client.post(&format!("/runs/{quiet}/{path}"), body.clone()).await;
        assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "{problem}");
        let nobody = "0192f0c1-0000-7000-8000-000000000000";
        assert_eq!(client.post(&format!("/runs/{nobody}/{path}"), body).await.0, 404);
    }
    for (query, field) in [("state=done", "state"), ("limit=0", "limit"), ("cursor=x", "cursor")] {
        let (status, problem) = client.get(&format!("/attention?{query}")).await;
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{query}");
    }
    assert_eq!(client.get("/attention?task=nobody").await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_under_a_key_acts_once() {
    let home = home();
    let server = home.serve().await;
    let client = &server.client;
    let run = find(client, "a disk is full").await;
    let path = format!("/runs/{run}/snooze");
    let send = async |span: &str| {
        let request = client.request(Method::POST, &path).header("Idempotency-Key", "k1");
        let response = request.json(&json!({ "for": span })).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    let (status, first) = send("4h").await;
    assert_eq!(status, 200, "{first}");
    client.post(&format!("/runs/{run}/acknowledge"), json!({})).await;
    let (status, again) = send("4h").await;
    assert_eq!((status, &again["state"]), (200, &json!("acknowledged")), "sent again it snoozes nothing");
    assert_eq!(send("5h").await.0, 409);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_come_in_pages_and_of_one_task() {
    let home = home().task("other", FINDS);
    let server = home.serve().await;
    let client = &server.client;
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.insert(0, find(client, "a disk is full").await);
    }
    let (_, made) = client.post("/tasks/other/runs", json!({})).await;
    client.ended(made["run"]["id"].as_str().unwrap()).await;
    let (mut cursor, mut seen) = (String::new(), Vec::new());
    loop {
        let (_, page) = client.get(&format!("/attention?task=finds&limit=2{cursor}")).await;
        for item in page["items"].as_array().unwrap() {
            assert_eq!((&item["task"], &item["state"]), (&json!("finds"), &json!("open")));
            seen.push(item["run"].as_str().unwrap().to_owned());
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, runs);
    assert_eq!(client.get("/attention").await.1["items"].as_array().unwrap().len(), 4);
    server.stop().await;
}
