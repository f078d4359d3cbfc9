//! Runs elsewhere under a full disk, and under kills at the worst moments.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::commands_faults::to_be_armed;
use crate::disk_limits::limit_files;
use crate::external::{EXTERNAL, end, feed, numbered, said, saved, thoughts};
use crate::harness::{Home, is_terminal, seqs};
use crate::producer::Producer;

/// How many lines a run has.
const LINES: u64 = 3000;
/// How many of them are sent in one request, which is answered once they are saved: one commit at least.
const AT_ONCE: u64 = 300;

/// Feeds a run over a server that is killed at a point, and looks whether each line is there once.
async fn killed_at(point: &str, pass: u64) {
    let home = Home::new("").task("elsewhere", EXTERNAL);
    let armed = format!("{point}@{pass}");
    let (mut server, from) = to_be_armed(&home, &armed).await;
    let run = server.client.run("elsewhere").await;
    std::fs::write(&from, "").unwrap();
    let mut killed = false;
    let mut last_n = 0;
    while last_n < LINES {
        let answer = match Producer::try_open(&server.client, &run).await {
            Ok(mut producer) => {
                let (mut next, last) = (last_n + 1, LINES.min(last_n + AT_ONCE));
                while next <= last && producer.try_say(thoughts(next, last.min(next + 29))).await.is_ok() {
                    next += 30;
                }
                producer.try_end().await
            }
            Err(_) => None,
        };
        if let Some((status, answer)) = answer {
            assert_eq!(status, 200, "{answer}");
            last_n = answer["last_n"].as_u64().unwrap();
        } else {
            assert!(!killed, "killed once");
            killed = true;
            server.ended().await;
            server = home.spawn(&[]).await;
            // It goes on behind what was confirmed to it: what is saved beyond that comes again.
            let there = server.client.get(&format!("/runs/{run}")).await.1["last_n"].as_u64().unwrap();
            assert!(there >= last_n, "{there} of {last_n} that were confirmed");
        }
    }
    assert!(killed, "the point {armed} was never passed");
    assert_eq!(feed(&server.client, &run, end(LINES + 1)).await.0, 200);
    assert_eq!(said(&server.client, "elsewhere").await, numbered(LINES), "{armed}");
    let events = server.client.pages("elsewhere").await;
    assert_eq!(seqs(&events), (1..=events.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn killed_within_a_commit_the_number_and_the_events_are_both_not_there() {
    for pass in [5, 9] {
        killed_at("in-commit", pass).await;
    }
}

#[tokio::test]
async fn killed_after_a_commit_the_lines_that_nobody_confirmed_are_dropped_when_they_come_again() {
    for pass in [5, 9] {
        killed_at("committed-not-woken", pass).await;
    }
}

#[tokio::test]
async fn while_the_disk_is_full_a_producer_waits_and_a_stop_is_told() {
    // All that waits is saved before the time is over in which the program has to end.
    let home = Home::new("[runs]\nexternal_lease = \"20s\"\nexternal_stop = \"60s\"").task("elsewhere", EXTERNAL);
    let server = home.spawn(&[]).await;
    let run = server.client.run("elsewhere").await;
    let mut producer = Producer::open(&server.client, &run).await;
    producer.say(thoughts(1, 10)).await;
    saved(&server.client, &run, 10).await;
    limit_files(server.pid(), Some(1));
    // As much as fits into the queues and the network; then the producer has to wait.
    let mut next = 11;
    while timeout(Duration::from_secs(1), producer.say(thoughts(next, next + 999))).await.is_ok() {
        next += 1000;
        assert!(next < 2_000_000, "nothing holds the producer back");
    }
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.1["last_n"], 10, "nothing unsaved is counted");
    let begun = Instant::now();
    assert_eq!(server.client.post(&format!("/runs/{run}/stop"), json!({})).await.0, 202);
    assert_eq!(server.client.get(&format!("/runs/{run}/stop?wait=30")).await.1["why"], "asked");
    assert!(begun.elapsed() < Duration::from_secs(5));
    limit_files(server.pid(), None);
    // Whole lines are saved once there is room; what was cut in the middle is the producer's to send again.
    drop(producer);
    saved(&server.client, &run, next - 1).await;
    let last_n = server.client.get(&format!("/runs/{run}")).await.1["last_n"].as_u64().unwrap();
    let (status, answer) = feed(&server.client, &run, thoughts(last_n + 1, next + 1000) + &end(next + 1001)).await;
    assert_eq!((status, &answer["stop"]), (200, &Value::Bool(true)), "{answer}");
    assert_eq!(said(&server.client, "elsewhere").await, numbered(next + 1000));
    assert_eq!(server.client.pages("elsewhere").await.iter().filter(|event| is_terminal(event)).count(), 1);
}
