//! What the policies of a task do, in a server that runs: overlap, catch-up.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{Client, Home};

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

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
    // Without catching up: a slot that a busy machine is late for would be part of the next one.
    let policy = "overlap = \"allow\"\ncatchup = \"none\"";
    let home = Home::new("").task("due", &each_second(policy, "sleep 30"));
    let server = home.serve().await;
    let two_work =
        |page: &Value| page["items"].as_array().unwrap().iter().filter(|run| run["state"] == "running").count() >= 2;
    server.client.until("/tasks/due/runs?limit=500", two_work).await;
    server.client.post("/tasks/due/pause", Value::Null).await;
    let slots = slots(&server.client, "due").await;
    assert!(slots.iter().all(|slot| slot["outcome"] != "skipped" && slot["outcome"] != "coalesced"), "{slots:?}");
    server.stop().await;
}

/// How long the slots of the next test may be caught up, in seconds.
const WINDOW: i64 = 5;

/// The table of `docs/decisions/0019`, with a real process that stands still.
#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_server_that_stood_still_for_twenty_seconds_accounts_for_every_slot_by_its_policies() {
    let policies: Vec<(String, &str, &str)> = ["skip", "queue", "replace", "allow"]
        .into_iter()
        .flat_map(|overlap| ["none", "last", "all"].map(|catchup| (format!("{overlap}-{catchup}"), overlap, catchup)))
        .collect();
    let home = policies.iter().fold(Home::new(""), |home, (id, overlap, catchup)| {
        let policy = format!(
            "overlap = \"{overlap}\"\nqueue_limit = 20\ncatchup = \"{catchup}\"\ncatchup_window = \"{WINDOW}s\"\ncatchup_limit = 20"
        );
        home.task(id, &each_second(&policy, "true"))
    });
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    for (id, ..) in &policies {
        client.until(&format!("/tasks/{id}/slots"), |page| page["items"].as_array().unwrap().len() >= 2).await;
    }
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let stood = jiff::Timestamp::now();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let went_on = jiff::Timestamp::now();
    kill(pid, Signal::SIGCONT).unwrap();
    // The server lets go of connections on which nothing was said for so long, perhaps just as they are used.
    let client = Client::new(client.address, &client.token);
    for (id, ..) in &policies {
        let after = |page: &Value| {
            page["items"].as_array().unwrap().iter().any(|slot| {
                time(&slot["scheduled_for"]) > went_on && (slot["outcome"] == "ran" || slot["outcome"] == "late")
            })
        };
        client.until(&format!("/tasks/{id}/slots?limit=500"), after).await;
    }
    for (id, overlap, catchup) in &policies {
        let slots = slots(&client, id).await;
        // Every second has its row, once.
        let mut seconds: Vec<(Timestamp, &str)> = Vec::new();
        for slot in &slots {
            let due = time(&slot["scheduled_for"]);
            let next = seconds.last().map(|(last, _)| *last + SignedDuration::from_secs(1));
            assert!(next.is_none_or(|next| next == due), "{id}: {next:?} is not {slot}");
            let all = (0..slot["count"].as_i64().unwrap()).map(|n| due + SignedDuration::from_secs(n));
            seconds.extend(all.map(|second| (second, slot["outcome"].as_str().unwrap())));
        }
        let of = |from: Timestamp, to: Timestamp| -> Vec<&str> {
            seconds.iter().filter(|(due, _)| (from..to).contains(due)).map(|(_, outcome)| *outcome).collect()
        };
        // Nobody could look at these before it went on, and when it did they had been due for longer than the window.
        let too_old = of(stood + SignedDuration::from_secs(1), went_on - SignedDuration::from_secs(WINDOW));
        assert!(too_old.len() >= 13, "{id}: {slots:?}");
        assert!(too_old.iter().all(|outcome| *outcome == "missed"), "{id}: {slots:?}");
        // The look at what was due came no later than the first run that it made.
        let runs = runs(&client, id).await;
        let is_new = |run: &&Value| time(&run["scheduled_for"]) > stood + SignedDuration::from_secs(1);
        let look = runs.iter().filter(is_new).map(|run| time(&run["queued_at"])).min().unwrap();
        let held =
            runs.iter().any(|run| !is_new(&run) && (run["ended_at"].is_null() || time(&run["ended_at"]) >= went_on));
        // These were within the window then, and late, and others were due after them.
        let within = of(look - SignedDuration::from_secs(WINDOW), went_on - SignedDuration::from_secs(1));
        let expected = match (*catchup, *overlap) {
            // A run was at work when everything stood still, and perhaps still is.
            ("last" | "all", "skip") if held && within.contains(&"skipped") => "skipped",
            ("none", _) => "missed",
            ("last", _) | ("all", "replace") => "coalesced",
            _ => "late",
        };
        assert!(!within.is_empty(), "{id}: it was looked at them only at {look}: {slots:?}");
        assert!(within.iter().all(|outcome| *outcome == expected), "{id}: not all are {expected}: {slots:?}");
    }
    assert!(server.terminate().await.success());
}
