//! Coming back: one test per row of the resume table, over real sockets.

use serde_json::json;

use crate::harness::{Gate, Home, Watcher, events_of, is_terminal, seqs};

#[tokio::test(flavor = "multi_thread")]
async fn spk_01_a_watcher_that_comes_back_gets_the_next_event_of_the_same_run() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &format!("echo one; {}; echo two", gate.wait()));
    let server = home.serve().await;
    let client = &server.client;
    let run = client.run("job").await;

    let mut first = client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    let seen = first.until(|frame| events_of(frame).iter().any(|event| event["kind"] == "tool_output")).await;
    let seen: Vec<_> = seen.iter().flat_map(events_of).collect();
    let (generation, last) = (client.get("/tasks/job").await.1["gen"].clone(), seqs(&seen).pop().unwrap());
    drop(first);

    let mut second = client.watch(json!([{ "sub": 1, "task": "job", "gen": generation, "after": last }])).await;
    let subscribed = second.next().await;
    assert_eq!(subscribed["outcome"], "resumed");
    gate.open().await;
    let rest = second.events_until_end().await;
    assert_eq!(rest[0]["seq"], last + 1);
    assert_eq!(rest.last().unwrap()["run"], run);
    assert!(is_terminal(rest.last().unwrap()));
    let all: Vec<u64> = seqs(&seen).into_iter().chain(seqs(&rest)).collect();
    assert_eq!(all, (1..=all.len() as u64).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_not_there_is_not_found_and_ends_the_sub() {
    let home = Home::new("");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([{ "sub": 7, "task": "nothing" }])).await;
    assert_eq!(watcher.next().await, json!({ "type": "subscribed", "sub": 7, "task": "nothing", "outcome": "not_found" }));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_told_after_the_upgrade() {
    let home = Home::new("");
    let server = home.serve().await;
    let mut stranger = Watcher::open(server.client.address, Some("wrong")).await;
    stranger.hello("c", 1, json!([])).await;
    assert_eq!(stranger.close_code().await, Some(4500));
    server.stop().await;
}
