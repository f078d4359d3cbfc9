//! `rejoin doctor`: what it says of lines that stand and of what tasks name that is not there.

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{Client, Gate, Home, PATIENCE, REJOIN};

fn task(policy: &str, run: &str) -> String {
    format!("title = \"Pooled\"\n[policy]\n{policy}\n[[steps]]\nname = \"only\"\nrun = {run:?}\n")
}

async fn is_at_work(client: &Client, run: &str) {
    client.until(&format!("/runs/{run}"), |run| run["state"] == "running").await;
}

/// What the server says by one check.
async fn said(client: &Client, check: &str) -> Vec<Value> {
    let (_, report) = client.get("/doctor").await;
    report["items"].as_array().unwrap().iter().filter(|item| item["check"] == check).cloned().collect()
}

fn level_and_text(item: &Value) -> (&str, &str) {
    (item["level"].as_str().unwrap(), item["text"].as_str().unwrap())
}

/// What the command says, with its exit code.
async fn doctor(home: &Home) -> (i32, String) {
    let config = home.path().join("config.toml");
    let mut command = Command::new(REJOIN);
    command.args(["doctor".as_ref(), "--config".as_ref(), config.as_os_str()]);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_long_for_a_place_is_named_with_who_has_it_and_what_to_do() {
    let home = Home::new("[runs]\nconcurrency = 2\n[pools]\nnarrow = 1\nwide = 2\n");
    let (gate, other) = (Gate::new(home.path(), "gate"), Gate::new(home.path(), "other"));
    let narrow = "concurrency = \"narrow\"";
    let home = home
        .task("holds", &task(narrow, &gate.wait()))
        .task("first", &task(narrow, "true"))
        .shell_task("free", &other.wait())
        .shell_task("last", "true");
    let begin: Timestamp = "2026-03-02T10:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(begin);
    let server = home.serve_at(clock.clone()).await;
    let client = &server.client;
    let holds = client.run("holds").await;
    is_at_work(client, &holds).await;
    clock.set(begin + SignedDuration::from_mins(5));
    let first = client.run("first").await;
    clock.set(begin + SignedDuration::from_secs(15 * 60 - 1));
    let places = said(client, "places").await;
    let texts: Vec<_> = places.iter().map(level_and_text).collect();
    let ok = [
        ("ok", "1 of 2 places taken, 1 waiting"),
        ("ok", "pool narrow: 1 of 1 places taken, 1 waiting"),
        ("ok", "pool wide: 0 of 2 places taken, 0 waiting"),
    ];
    assert_eq!(texts, ok, "not for long");

    clock.set(begin + SignedDuration::from_secs(15 * 60 + 20));
    let places = said(client, "places").await;
    let stands = format!(
        "pool narrow: 1 of 1 places taken, 1 waiting; run {first} of first has been waiting for 10 min, and run {holds} \
         of holds at work for 15 min"
    );
    assert_eq!(level_and_text(&places[0]), ("warn", stands.as_str()), "what stands comes first: {places:?}");
    let advice = places[0]["advice"].as_str().unwrap();
    assert!(
        advice.contains(&format!("rejoin runs stop {holds}")) && advice.contains("narrow under [pools]"),
        "{advice}"
    );
    assert_eq!(places[1..].iter().map(level_and_text).collect::<Vec<_>>(), [ok[0], ok[2]]);
    let (code, out) = doctor(&home).await;
    assert_eq!(code, 0, "something to know, and no trouble: {out}");
    assert!(out.contains(&stands), "{out}");

    // The server's own places.
    let free = client.run("free").await;
    is_at_work(client, &free).await;
    let last = client.run("last").await;
    clock.set(begin + SignedDuration::from_mins(40));
    let places = said(client, "places").await;
    let stands = format!(
        "2 of 2 places taken, 2 waiting; run {last} of last has been waiting for 24 min, and run {holds} of holds at \
         work for 40 min"
    );
    assert_eq!(level_and_text(&places[0]), ("warn", stands.as_str()), "{places:?}");
    assert!(places[0]["advice"].as_str().unwrap().contains("[runs] concurrency"), "{places:?}");
    gate.open().await;
    other.open().await;
    for run in [&holds, &free, &first, &last] {
        client.ended(run).await;
    }
    assert!(said(client, "places").await.iter().all(|item| item["level"] == "ok"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_has_waited_for_a_place_only_since_its_time_came() {
    let home = Home::new("[pools]\nnarrow = 1\n");
    let gate = Gate::new(home.path(), "gate");
    let policy = "concurrency = \"narrow\"\nretries = 1\nbackoff = \"20m..20m\"";
    let home =
        home.task("again", &task(policy, "exit 1")).task("holds", &task("concurrency = \"narrow\"", &gate.wait()));
    let begin: Timestamp = "2026-03-02T10:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(begin);
    let server = home.serve_at(clock.clone()).await;
    let client = &server.client;
    let failed = client.run("again").await;
    client.ended(&failed).await;
    let retried = client.until(&format!("/runs/{failed}"), |run| run["retried_by"].is_string()).await;
    let retry = retried["retried_by"].as_str().unwrap();
    let holds = client.run("holds").await;
    is_at_work(client, &holds).await;
    let due = client.get(&format!("/runs/{retry}")).await.1["not_before"].as_str().unwrap().parse::<Timestamp>();
    let due = due.unwrap();
    assert!(due > begin + SignedDuration::from_mins(5), "{due}");
    clock.set(due);
    client.until(&format!("/runs/{retry}"), |run| run["waits"]["for"] == "pool").await;
    clock.set(due + SignedDuration::from_mins(9));
    assert!(said(client, "places").await.iter().all(|item| item["level"] == "ok"));
    clock.set(due + SignedDuration::from_mins(11));
    let places = said(client, "places").await;
    let (level, text) = level_and_text(&places[0]);
    let waits = format!("run {retry} of again has been waiting for 11 min");
    assert!(level == "warn" && text.contains(&waits), "{text}");
    gate.open().await;
    client.ended(&holds).await;
    client.ended(retry).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_not_there_is_named_with_its_task_and_none_is_shown() {
    let with =
        |secrets: &str| format!("title = \"S\"\n[secrets]\n{secrets}\n[[steps]]\nname = \"only\"\nrun = \"true\"\n");
    let home = Home::new("");
    let key = home.path().join("key");
    std::fs::write(&key, "a value of some length\n").unwrap();
    let home = home.task("good", &with(&format!("KEY = {{ file = {key:?} }}")));
    let server = home.serve().await;
    let secrets = said(&server.client, "secrets").await;
    assert_eq!(secrets.iter().map(level_and_text).collect::<Vec<_>>(), [("ok", "each can be read, 1 of all tasks")]);
    server.stop().await;

    let home = home.task("bad", &with("TOKEN = { env = \"REJOIN_TEST_NOT_SET\" }"));
    let server = home.serve().await;
    let secrets = said(&server.client, "secrets").await;
    let missing = "task bad: secret TOKEN: the variable REJOIN_TEST_NOT_SET is not set in the server's environment";
    assert_eq!(secrets.iter().map(level_and_text).collect::<Vec<_>>(), [("trouble", missing)]);
    let (code, out) = doctor(&home).await;
    assert!(code == 1 && out.contains(missing), "{code} {out}");
    assert!(!out.contains("a value of"), "{out}");
    server.stop().await;
}
