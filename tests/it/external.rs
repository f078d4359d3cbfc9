//! Runs that a program elsewhere carries out, fed line by line.

use serde_json::{Value, json};

use crate::harness::{Home, is_terminal};

/// A task whose work is done elsewhere.
const EXTERNAL: &str = "title = \"Elsewhere\"\nagent = \"external\"\n";

fn line(n: u64, kind: &str, data: Value) -> String {
    json!({ "n": n, "kind": kind, "data": data }).to_string() + "\n"
}

#[tokio::test]
async fn lines_of_a_program_elsewhere_come_out_at_a_watcher_and_its_last_status_ends_the_run() {
    let home = Home::new("").task("elsewhere", EXTERNAL);
    let server = home.serve().await;
    let (status, answer) = server.client.post("/tasks/elsewhere/runs", json!({})).await;
    assert_eq!((status, &answer["run"]["state"]), (201, &json!("running")), "{answer}");
    let run = answer["run"]["id"].as_str().unwrap();
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "elsewhere", "after": 0 }])).await;
    let body = [
        line(1, "thought", json!({ "text": "What now?" })),
        line(2, "tool_use", json!({ "call": "c1", "tool": "shell", "input": {} })),
        line(3, "tool_result", json!({ "call": "c1", "tool": "shell", "ok": true, "output": "" })),
        line(4, "metric", json!({ "load": 1.5 })),
        line(5, "status", json!({ "state": "succeeded", "text": "Done" })),
    ];
    let request = server.client.request(reqwest::Method::POST, &format!("/runs/{run}/events")).body(body.concat());
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!((&answer["accepted"], &answer["last_n"], &answer["last_seq"]), (&json!(5), &json!(5), &json!(7)));
    let events = watcher.events_until_end().await;
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["status", "status", "thought", "tool_use", "tool_result", "metric", "status"]);
    assert!(events.iter().rev().take(1).all(is_terminal));
    assert_eq!(server.client.ended(run).await["state"], "succeeded");
    server.stop().await;
}
