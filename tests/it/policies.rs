//! What the policies of a task do, in a server that runs: overlap, catch-up.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Client, Home};

/// A task that is due each second.
fn each_second(policy: &str, run: &str) -> String {
    format!(
        "title = \"Due\"\n[schedule]\nevery = \"1s\"\n[policy]\n{policy}\n[[steps]]\nname = \"only\"\nrun = {run:?}\n"
    )
}

async fn runs(client: &Client, task: &str) -> Vec<Value> {
    let mut runs = client.get(&format!("/tasks/{task}/runs?limit=500")).await.1["items"].as_array().unwrap().clone();
    runs.reverse();
    runs
}

/// The slots of a task, oldest first.
async fn slots(client: &Client, task: &str) -> Vec<Value> {
    let mut slots = client.get(&format!("/tasks/{task}/slots?limit=500")).await.1["items"].as_array().unwrap().clone();
    slots.reverse();
    slots
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_replaces_stops_the_run_before_it_and_takes_in_the_slots_that_waited() {
    let home = Home::new("");
    // Of INT it takes no notice, so that a slot or two come while it is being stopped.
    let stubborn = "trap '' INT; sleep 60 & while kill -0 $! 2>/dev/null; do wait; done";
    let home = home.task("due", &each_second("overlap = \"replace\"", stubborn));
    let server = home.serve().await;
    let is_replaced = |run: &Value| run["state"] == "cancelled" && run["started_at"].is_string();
    let second_works = |page: &Value| {
        let items = page["items"].as_array().unwrap();
        items.iter().any(is_replaced) && items.iter().any(|run| run["state"] == "running")
    };
    server.client.until("/tasks/due/runs?limit=500", second_works).await;
    server.client.post("/tasks/due/pause", Value::Null).await;
    let runs = runs(&server.client, "due").await;
    let first = &runs[0];
    assert_eq!(
        (&first["state"], first["reason"].as_str()),
        (&"cancelled".into(), Some("replaced by the run of a newer slot"))
    );
    let second = runs.iter().find(|run| run["state"] == "running").unwrap();
    let at_once = runs.iter().filter(|run| run["state"] == "running").count();
    assert_eq!(at_once, 1, "one after the other: {runs:?}");
    assert!(second["started_at"].as_str() >= first["ended_at"].as_str());
    // The slots that came meanwhile are part of the run that took the place.
    let slots = slots(&server.client, "due").await;
    for run in runs.iter().filter(|run| run["started_at"].is_null() && run["state"] == "cancelled") {
        let slot = slots.iter().find(|slot| slot["scheduled_for"] == run["scheduled_for"]).unwrap();
        if run["reason"] == "replaced by the run of a newer slot" {
            assert_eq!(slot["outcome"], "coalesced", "{slot}");
            assert_ne!(slot["run"], run["id"], "it names the run that it is part of");
        }
    }
    assert!(slots.iter().any(|slot| slot["outcome"] == "coalesced"), "{slots:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_is_allowed_runs_of_one_task_are_at_work_side_by_side() {
    let home = Home::new("").task("due", &each_second("overlap = \"allow\"", "sleep 30"));
    let server = home.serve().await;
    let two_work =
        |page: &Value| page["items"].as_array().unwrap().iter().filter(|run| run["state"] == "running").count() >= 2;
    server.client.until("/tasks/due/runs?limit=500", two_work).await;
    server.client.post("/tasks/due/pause", Value::Null).await;
    let slots = slots(&server.client, "due").await;
    assert!(slots.iter().all(|slot| slot["outcome"] != "skipped" && slot["outcome"] != "coalesced"), "{slots:?}");
    server.stop().await;
}

/// The table of `docs/decisions/0019`, with a real process that stands still.
#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_server_that_stood_still_for_twenty_seconds_accounts_for_every_slot_by_its_policies() {
    let policies: Vec<(String, &str, &str)> = ["skip", "queue", "replace", "allow"]
        .into_iter()
        .flat_map(|overlap| ["none", "last", "all"].map(|catchup| (format!("{overlap}-{catchup}"), overlap, catchup)))
        .collect();
    let home = policies.iter().fold(Home::new(""), |home, (id, overlap, catchup)| {
        let policy = format!(
            "overlap = \"{overlap}\"\nqueue_limit = 20\ncatchup = \"{catchup}\"\ncatchup_window = \"5s\"\ncatchup_limit = 20"
        );
        home.task(id, &each_second(&policy, "true"))
    });
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    for (id, ..) in &policies {
        client.until(&format!("/tasks/{id}/slots"), |page| page["items"].as_array().unwrap().len() >= 2).await;
    }
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    let stood = jiff::Timestamp::now();
    kill(pid, Signal::SIGSTOP).unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    kill(pid, Signal::SIGCONT).unwrap();
    let went_on = jiff::Timestamp::now();
    // The server lets go of connections on which nothing was said for so long, perhaps just as they are used.
    let client = Client::new(client.address, &client.token);
    for (id, ..) in &policies {
        let after = |page: &Value| {
            page["items"].as_array().unwrap().iter().any(|slot| {
                let due: jiff::Timestamp = slot["scheduled_for"].as_str().unwrap().parse().unwrap();
                due > went_on && (slot["outcome"] == "ran" || slot["outcome"] == "late")
            })
        };
        client.until(&format!("/tasks/{id}/slots?limit=500"), after).await;
    }
    for (id, overlap, catchup) in &policies {
        let slots = slots(&client, id).await;
        // Every second has its row, once.
        let mut next: Option<jiff::Timestamp> = None;
        for slot in &slots {
            let due: jiff::Timestamp = slot["scheduled_for"].as_str().unwrap().parse().unwrap();
            assert!(next.is_none_or(|next| next == due), "{id}: {next:?} is not {slot}");
            next = Some(due + jiff::SignedDuration::from_secs(slot["count"].as_i64().unwrap()));
        }
        // Before and after that a busy machine may have left something of a slot to the next one.
        let meanwhile = |slot: &&Value| {
            let due: jiff::Timestamp = slot["scheduled_for"].as_str().unwrap().parse().unwrap();
            due <= went_on && due + jiff::SignedDuration::from_secs(slot["count"].as_i64().unwrap()) >= stood
        };
        let number = |outcome: &str| -> u64 {
            let of = slots.iter().filter(meanwhile).filter(|slot| slot["outcome"] == outcome);
            of.map(|slot| slot["count"].as_u64().unwrap()).sum()
        };
        let (missed, coalesced, late) = (number("missed"), number("coalesced"), number("late"));
        // What waited when everything stood still gives way to the next.
        let waited = u64::from(*overlap == "replace");
        match (*catchup, *overlap) {
            // A run was at work when everything stood still, and still is.
            ("last" | "all", "skip") if number("skipped") > 0 => {
                assert!((14..=16).contains(&missed), "{id}: {missed} missed: {slots:?}");
                assert!((4..=6).contains(&number("skipped")), "{id}: {slots:?}");
            }
            ("none", _) => {
                assert!((18..=21).contains(&missed), "{id}: {missed} missed: {slots:?}");
                assert!(coalesced <= waited, "{id}: {slots:?}");
            }
            ("last", _) | ("all", "replace") => {
                assert!((14..=16).contains(&missed), "{id}: {missed} missed: {slots:?}");
                assert!((3..=5 + waited).contains(&coalesced), "{id}: {coalesced} coalesced: {slots:?}");
            }
            _ => {
                assert!((14..=16).contains(&missed), "{id}: {missed} missed: {slots:?}");
                assert_eq!(coalesced, 0, "{id}: {slots:?}");
                assert!(late >= 4, "{id}: {late} late: {slots:?}");
            }
        }
    }
    assert!(server.terminate().await.success());
}
