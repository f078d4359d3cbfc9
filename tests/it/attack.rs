//! What somebody who means harm, or makes a slip, may send and write: it costs what it is about and nothing else.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use crate::harness::Home;

/// Nested so deeply that it takes minutes.
fn endless() -> String {
    let ten = "[1,2,3,4,5,6,7,8,9,10]";
    let mut text = "a + b + c + d + e + f + g + h > 0".to_owned();
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        text = format!("{ten}.all({name}, {text})");
    }
    text
}

#[tokio::test]
async fn events_of_a_run_can_be_paged_whatever_the_language_of_its_thoughts() {
    // One of the three is cut within a character, wherever the numbers before it end.
    let steps: String = ["", "x", "xx"]
        .iter()
        .map(|start| format!("[[steps]]\nthought = \"{start}{}\"\nrun = \"true\"\n", "€".repeat(60)))
        .collect();
    let home = Home::new("").task("words", &format!("title = \"Words\"\n{steps}"));
    let server = home.serve().await;
    let run = server.client.run("words").await;
    server.client.ended(&run).await;
    let (_, all) = server.client.get("/tasks/words/events").await;
    let (status, page) = server.client.get(&format!("/tasks/words/events?run={run}")).await;
    assert_eq!(status, 200, "{page}");
    assert_eq!(page["items"], all["items"]);
    server.stop().await;
}

#[tokio::test]
async fn conditions_that_take_for_ever_hold_up_neither_the_server_nor_their_stop() {
    let task = |key: &str| {
        format!("title = \"Endless\"\n[policy]\ntimeout = \"2s\"\n[[steps]]\n{key} = '{}'\nrun = \"true\"\n", endless())
    };
    let mut home = Home::new("");
    for number in 0..2 {
        home = home.task(&format!("endless{number}"), &task(if number % 2 == 0 { "when" } else { "attention" }));
    }
    // With one thread for everything, one of them would be enough.
    let mut server = home.spawn(&[("TOKIO_WORKER_THREADS", "1")]).await;
    let mut runs = Vec::new();
    for number in 0..2 {
        runs.push(timeout(Duration::from_secs(10), server.client.run(&format!("endless{number}"))).await.unwrap());
    }
    let (status, _) = server.client.post(&format!("/runs/{}/stop", runs[0]), json!({})).await;
    assert!(status == 202 || status == 409, "{status}");
    for (number, run) in runs.iter().enumerate() {
        let ended = server.client.ended(run).await;
        let good = if number == 0 { ended["state"] != "succeeded" } else { ended["state"] == "timed_out" };
        assert!(good, "{ended}");
    }
    server.kill();
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_holds_up_neither_its_run_nor_the_end_of_the_server() {
    let task = "title = \"Pipe\"\n[[steps]]\nrun = \"mkfifo pipe\"\n[[steps]]\nwrite = { path = \"pipe\", content = \"x\", append = true }\n";
    let home = Home::new("").task("pipe", task);
    let mut server = home.spawn(&[]).await;
    let run = server.client.run("pipe").await;
    let ended = server.client.ended(&run).await;
    assert_eq!(ended["state"], "failed", "{ended}");
    assert!(ended["reason"].as_str().unwrap().contains("could not write"), "{ended}");
    assert!(timeout(Duration::from_secs(10), server.terminate()).await.unwrap().success());
}

#[tokio::test]
async fn a_host_whose_port_is_none_is_not_ours() {
    let home = Home::new("");
    let server = home.serve().await;
    for (host, status) in [
        ("localhost:1", 200),
        ("localhost:", 200),
        ("[::1]", 200),
        ("[::1]:80", 200),
        ("localhost:1/x", 421),
        ("localhost:elsewhere.example", 421),
        ("[::1]:1/x", 421),
        ("[::1]x", 421),
    ] {
        let answer = server.client.request(reqwest::Method::GET, "/status").header("host", host).send().await.unwrap();
        assert_eq!(answer.status(), status, "{host}");
    }
    server.stop().await;
}
