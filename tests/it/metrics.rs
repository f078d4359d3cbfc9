//! `/metrics`: the numbers are those of what happened, and who may read them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use rejoin::event::{Seq, State};
use rejoin::metrics::tally::{self, Measurement};
use rejoin::store::StoreError;
use rejoin::stream::forwarder::{Peer, Watcher as Cursor};
use serde_json::{Value, json};

use crate::harness::{Gate, Home, PATIENCE, Watcher};
use crate::rows_stage::{NO_HEARTBEAT, Page, Play, forget_below};
use crate::scrape::{Scrape, ask};

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_do_is_counted_and_timed_by_what_became_of_it() {
    let home = Home::new("").shell_task("good", "sleep 0.3").shell_task("bad", "exit 3").shell_task("idle", "true");
    let server = home.serve().await;
    let before = Scrape::of(&home, &server.client).await;
    assert_eq!(before.get("rejoin_runs_started_total"), 0.0);
    assert_eq!(before.get(r#"rejoin_runs_ended_total{state="failed"}"#), 0.0, "there from the beginning");
    let (mut good, mut run) = (Vec::new(), String::new());
    for task in ["good", "bad", "good"] {
        run = server.client.run(task).await;
        good.push(server.client.ended(&run).await);
    }
    // Its place is given back when its end is shown already.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let scrape = loop {
        let scrape = Scrape::of(&home, &server.client).await;
        if (scrape.get("rejoin_runs_running"), scrape.get("rejoin_runs_queued")) == (0.0, 0.0) {
            break scrape;
        }
        assert!(tokio::time::Instant::now() < deadline, "a run is at work though all are over");
    };
    assert_eq!(scrape.get(r#"rejoin_runs_made_total{trigger="hand"}"#), 3.0);
    assert_eq!(scrape.get(r#"rejoin_runs_made_total{trigger="schedule"}"#), 0.0);
    assert_eq!(scrape.get("rejoin_runs_started_total"), 3.0);
    assert_eq!(scrape.get(r#"rejoin_runs_ended_total{state="succeeded"}"#), 2.0);
    assert_eq!(scrape.get(r#"rejoin_runs_ended_total{state="failed"}"#), 1.0);
    // How long they took, as they say it themselves.
    let took: f64 = good.iter().map(|run| run["duration_ms"].as_f64().unwrap()).sum();
    assert_eq!(scrape.get("rejoin_run_duration_seconds_count"), 3.0);
    assert!((scrape.get("rejoin_run_duration_seconds_sum") - took / 1000.0).abs() < 1e-6, "{took}");
    let within = good.iter().filter(|run| run["duration_ms"].as_f64().unwrap() <= 100.0).count();
    assert_eq!(scrape.get(r#"rejoin_run_duration_seconds_bucket{le="0.1"}"#), within as f64);
    // Events and their bytes: those of the file.
    let events: Vec<_> = ["good", "bad", "idle"].iter().flat_map(|task| home.logged_events(task)).collect();
    let bytes: usize = events.iter().map(|(_, text)| text.len()).sum();
    assert_eq!(scrape.get("rejoin_events_total"), events.len() as f64);
    assert_eq!(scrape.get("rejoin_event_bytes_total"), bytes as f64);
    assert_eq!(scrape.get("rejoin_commit_size_events_sum"), events.len() as f64, "each event in one commit");
    assert_eq!(
        scrape.get("rejoin_commit_size_events_count"),
        scrape.get("rejoin_commit_duration_seconds_count"),
        "each commit is timed"
    );
    let commits = scrape.get("rejoin_commit_duration_seconds_count");
    assert!(commits >= 3.0 && scrape.get("rejoin_commit_duration_seconds_sum") > 0.0);
    assert!(scrape.get("rejoin_commit_duration_seconds_sum") < 60.0 * commits);
    // Task by task.
    let last = home.logged_events("good").last().unwrap().0;
    assert_eq!(scrape.get(r#"rejoin_task_stream_head{task="good"}"#), last as f64);
    assert_eq!(scrape.get(r#"rejoin_task_last_run_succeeded{task="good"}"#), 1.0);
    assert_eq!(scrape.get(r#"rejoin_task_last_run_succeeded{task="bad"}"#), 0.0);
    assert_eq!(scrape.find(r#"rejoin_task_last_run_succeeded{task="idle"}"#), None, "no run of it has ended");
    let ended: Timestamp = good[2]["ended_at"].as_str().unwrap().parse().unwrap();
    let ended = ended.as_microsecond() as f64 / 1e6;
    assert!((scrape.get(r#"rejoin_task_last_success_timestamp_seconds{task="good"}"#) - ended).abs() < 1e-3);
    assert_eq!(scrape.get(r#"rejoin_task_last_success_timestamp_seconds{task="bad"}"#), 0.0, "it never has");
    assert!(scrape.get(r#"rejoin_task_last_end_timestamp_seconds{task="bad"}"#) > 1.7e9);
    assert_eq!(scrape.get(r#"rejoin_tasks{state="on"}"#), 3.0);
    assert!(!scrape.text.contains(&run), "no series of one run");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_at_work_and_one_that_waits_show() {
    let home = Home::new("[runs]\nconcurrency = 1");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let first = server.client.run("job").await;
    server.client.until(&format!("/runs/{first}"), |run| run["state"] == "running").await;
    let second = server.client.run("job").await;
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!((scrape.get("rejoin_runs_running"), scrape.get("rejoin_runs_queued")), (1.0, 1.0));
    server.client.post(&format!("/runs/{second}/stop"), json!({})).await;
    gate.open().await;
    server.client.ended(&first).await;
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get(r#"rejoin_runs_ended_total{state="cancelled"}"#), 1.0);
    assert_eq!(scrape.get("rejoin_runs_started_total"), 1.0, "the other never began");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pool_has_its_places_those_that_are_taken_and_how_many_wait() {
    let home = Home::new("[runs]\nconcurrency = 3\n[pools]\nnarrow = 1\nwide = 2");
    let (gate, other) = (Gate::new(home.path(), "gate"), Gate::new(home.path(), "other"));
    let pooled = |pool: &str, run: &str| {
        format!("title = \"P\"\n[policy]\nconcurrency = {pool:?}\n[[steps]]\nname = \"only\"\nrun = {run:?}\n")
    };
    let home = home.task("holds", &pooled("narrow", &gate.wait())).task("waits", &pooled("narrow", "true"));
    let home = home.shell_task("free", &other.wait());
    let server = home.serve().await;
    let (held, free) = (server.client.run("holds").await, server.client.run("free").await);
    for run in [&held, &free] {
        server.client.until(&format!("/runs/{run}"), |run| run["state"] == "running").await;
    }
    let waits = server.client.run("waits").await;
    let scrape = Scrape::of(&home, &server.client).await;
    for (pool, size, running, queued) in [("all", 3.0, 2.0, 1.0), ("narrow", 1.0, 1.0, 1.0), ("wide", 2.0, 0.0, 0.0)] {
        let of = |name: &str| scrape.get(&format!("rejoin_pool_{name}{{pool={pool:?}}}"));
        assert_eq!((of("size"), of("running"), of("queued")), (size, running, queued), "{pool}");
    }
    assert_eq!(scrape.values_of("pool").len(), 3, "no series of anything else");
    gate.open().await;
    other.open().await;
    for run in [&held, &free, &waits] {
        server.client.ended(run).await;
    }
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.starting_with("rejoin_pool_queued").map(|(_, count)| count).sum::<f64>(), 0.0);
    server.stop().await;
}

/// What became of slots, as the file has it: by outcome, with how late those that started were.
fn slots_of_file(home: &Home) -> (BTreeMap<String, f64>, Vec<u64>) {
    let file = rusqlite::Connection::open(home.database()).unwrap();
    let mut rows = file.prepare("SELECT outcome, sum(count) FROM slots GROUP BY outcome").unwrap();
    let by_outcome = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    let mut rows = file.prepare("SELECT late_ms FROM slots WHERE late_ms IS NOT NULL").unwrap();
    let late = rows.query_map([], |row| row.get::<_, i64>(0)).unwrap().map(|ms| ms.unwrap().cast_unsigned()).collect();
    (by_outcome, late)
}

#[tokio::test(flavor = "multi_thread")]
async fn due_times_and_what_became_of_them_are_those_of_the_store() {
    let begin: Timestamp = "2026-03-02T10:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(begin);
    let each_minute = |id: &str, policy: &str, run: &str| {
        let policy = format!("[policy]\n{policy}\n");
        format!("title = {id:?}\n[schedule]\nevery = \"1m\"\n{policy}[[steps]]\nname = \"only\"\nrun = {run:?}\n")
    };
    let home = Home::new("[runs]\nconcurrency = 8");
    let gate = Gate::new(home.path(), "gate");
    let home = home
        .task("caught-up", &each_minute("caught-up", "catchup_window = \"10m\"", "true"))
        .task("all", &each_minute("all", "catchup = \"all\"\ncatchup_window = \"3m\"", "true"))
        .task("none", &each_minute("none", "catchup = \"none\"", "true"))
        .task("paused", &each_minute("paused", "", "true"))
        .task("busy", &each_minute("busy", "", &gate.wait()));
    let server = home.serve_at(clock.clone()).await;
    assert_eq!(server.client.post("/tasks/paused/pause", json!({})).await.0, 200);
    let busy = server.client.run("busy").await;
    server.client.until(&format!("/runs/{busy}"), |run| run["state"] == "running").await;
    let due = begin + SignedDuration::from_mins(1);
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get("rejoin_slots_due_total"), 0.0);
    assert_eq!(scrape.get(r#"rejoin_task_paused{task="paused"}"#), 1.0);
    let next = scrape.get(r#"rejoin_task_next_due_timestamp_seconds{task="none"}"#);
    assert_eq!(next, due.as_second() as f64);
    assert_eq!(scrape.find(r#"rejoin_task_next_due_timestamp_seconds{task="paused"}"#), None);

    // Ten minutes and fifty seconds later: nine slots, and one that is late.
    clock.set(begin + SignedDuration::from_secs(650));
    let closed = |page: &Value| {
        let items = page["items"].as_array().unwrap();
        !items.is_empty() && items.iter().all(|slot| slot["outcome"] != "pending" && slot["outcome"] != "queued")
    };
    for task in ["caught-up", "all", "none", "paused", "busy"] {
        server.client.until(&format!("/tasks/{task}/slots"), closed).await;
    }
    let (by_outcome, late) = slots_of_file(&home);
    let scrape = Scrape::of(&home, &server.client).await;
    for outcome in ["ran", "late", "skipped", "coalesced", "missed", "disabled"] {
        let counted = scrape.get(&format!("rejoin_slots_total{{outcome={outcome:?}}}"));
        assert_eq!(counted, by_outcome.get(outcome).copied().unwrap_or(0.0), "{outcome}: {by_outcome:?}");
    }
    assert_eq!(scrape.get("rejoin_slots_due_total"), 50.0, "ten of each");
    for outcome in ["late", "skipped", "coalesced", "missed", "disabled"] {
        assert!(by_outcome.contains_key(outcome), "the scene has some of each: {by_outcome:?}");
    }
    assert_eq!(scrape.get(r#"rejoin_slots_total{outcome="disabled"}"#), 10.0);
    let sum: u64 = late.iter().sum();
    assert_eq!(scrape.get("rejoin_slot_lateness_seconds_count"), late.len() as f64);
    assert_eq!(scrape.get("rejoin_slot_lateness_seconds_sum"), sum as f64 / 1000.0);
    let within = late.iter().filter(|late| **late <= 60_000).count();
    assert_eq!(scrape.get(r#"rejoin_slot_lateness_seconds_bucket{le="60"}"#), within as f64);
    assert_eq!(scrape.get(r#"rejoin_slot_lateness_seconds_bucket{le="30"}"#), 0.0);
    assert_eq!(scrape.get(r#"rejoin_runs_made_total{trigger="catchup"}"#), late.len() as f64);
    gate.open().await;
    server.client.ended(&busy).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_are_held_show() {
    let begin: Timestamp = "2026-03-02T10:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(begin);
    let home = Home::new("")
        .task("due", "title = \"Due\"\n[schedule]\nevery = \"1h\"\n[[steps]]\nname = \"only\"\nrun = \"true\"\n");
    let server = home.serve_at(clock.clone()).await;
    let held = async |wanted: f64| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while Scrape::of(&home, &server.client).await.get("rejoin_schedules_held") != wanted {
            assert!(tokio::time::Instant::now() < deadline);
        }
    };
    held(0.0).await;
    // A step forward of more than an hour would have to hold for a minute before it is believed.
    clock.set(begin - SignedDuration::from_mins(61));
    held(1.0).await;
    clock.set(begin - SignedDuration::from_mins(30));
    held(0.0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_undone_is_not_counted() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let publisher = &server.server.api().publisher;
    let undone = publisher
        .transact::<(), StoreError, _>(|_| {
            tally::note(Measurement::SlotsDue(7));
            tally::note(Measurement::SlotsClosed("missed", 7));
            Err(StoreError::Broken("no".to_owned()))
        })
        .await;
    assert!(undone.is_err());
    let done = publisher.transact::<_, StoreError, _>(|_| {
        tally::note(Measurement::SlotsDue(2));
        Ok(((), Vec::new()))
    });
    done.await.unwrap();
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get("rejoin_slots_due_total"), 2.0);
    assert_eq!(scrape.get(r#"rejoin_slots_total{outcome="missed"}"#), 0.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_reconnections_and_what_is_replayed_are_counted() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    let seq = play.thought("one").await;
    page.sees(seq).await;
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get(r#"rejoin_connections{transport="websocket"}"#), 1.0);
    assert_eq!(scrape.get(r#"rejoin_connections_opened_total{transport="websocket"}"#), 1.0);
    assert_eq!(scrape.get("rejoin_watchers"), 1.0);
    assert_eq!(scrape.get("rejoin_reconnects_total"), 0.0, "the first time is none");
    assert_eq!(scrape.get("rejoin_replayed_events_total"), 0.0);
    assert_eq!(scrape.get("rejoin_delivered_events_total"), seq as f64, "all there is, once");
    assert_eq!(scrape.get("rejoin_watcher_lag_events"), 0.0);

    page.cut();
    // Until it is noticed, what is said is still handed to the socket that was cut.
    server.client.until("/status", |status| status["connections"] == 0).await;
    let mut last = 0;
    for text in ["two", "three", "four"] {
        last = play.thought(text).await;
    }
    page.connect().await;
    page.sees(last).await;
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get("rejoin_reconnects_total"), 1.0);
    assert_eq!(scrape.get("rejoin_replayed_events_total"), 3.0, "what it had missed");
    assert_eq!(scrape.get("rejoin_delivered_events_total"), last as f64);
    assert_eq!(scrape.get(r#"rejoin_connections_opened_total{transport="websocket"}"#), 2.0);
    assert_eq!(scrape.starting_with("rejoin_resets_total").map(|(_, count)| count).sum::<f64>(), 0.0);

    // A stream of events over HTTP, and a page that goes by itself.
    let mut stream = server.client.request(reqwest::Method::GET, "/tasks/job/events?after=1");
    stream = stream.header("Accept", "text/event-stream");
    let mut stream = stream.send().await.unwrap();
    stream.chunk().await.unwrap();
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get(r#"rejoin_connections{transport="events"}"#), 1.0);
    assert_eq!(scrape.get(r#"rejoin_connections_opened_total{transport="events"}"#), 1.0);
    drop(stream);
    page.socket.take().unwrap().socket.close(None).await.unwrap();
    let ended = async || {
        let scrape = Scrape::of(&home, &server.client).await;
        let of = |reason: &str| scrape.get(&format!("rejoin_connections_closed_total{{reason={reason:?}}}"));
        (of("left"), of("gone"), scrape.get("rejoin_watchers"))
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // The first was cut without a word, and so was the stream.
    while ended().await != (1.0, 2.0, 0.0) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", ended().await);
    }
    // Who is not let in is counted too.
    let mut stranger = Watcher::open(server.client.address, Some("nobody's")).await;
    stranger.hello("x", 1, json!([])).await;
    assert_eq!(stranger.close_code().await, Some(4500));
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get(r#"rejoin_connections_closed_total{reason="bad_credential"}"#), 1.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_are_counted_by_their_reason() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nreplay_events = 5")).shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for n in 0..20 {
        play.thought(&format!("{n}")).await;
    }
    play.status(State::Succeeded).await;
    let head = play.head();
    let generation = server.client.get("/tasks/job").await.1["task"]["gen"].as_str().map(str::to_owned);
    let generation = generation.or(server.client.get("/tasks/job").await.1["gen"].as_str().map(str::to_owned)).unwrap();
    let other = "0123456789abcdef";
    forget_below(&server, "job", 4).await;
    for (reason, after, log) in [
        ("from_start", 0, generation.as_str()),
        ("too_far", 5, generation.as_str()),
        ("retention", 1, generation.as_str()),
        ("generation", 5, other),
        ("future", head + 100, generation.as_str()),
    ] {
        let subscribe = json!([{ "sub": 1, "task": "job", "gen": log, "after": after }]);
        let mut watcher = server.client.watch(subscribe).await;
        let frames = watcher.until(|frame| frame["type"] == "reset").await;
        assert_eq!(frames.last().unwrap()["why"], reason, "{frames:?}");
        let scrape = Scrape::of(&home, &server.client).await;
        assert_eq!(scrape.get(&format!("rejoin_resets_total{{reason={reason:?}}}")), 1.0);
    }
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get("rejoin_reconnects_total"), 4.0, "all but the newcomer had a position");
    assert_eq!(scrape.starting_with("rejoin_resets_total").map(|(_, count)| count).sum::<f64>(), 5.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_is_behind_shows_and_so_does_what_memory_holds() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true").shell_task("other", "true");
    let server = home.serve().await;
    let publisher = &server.server.api().publisher;
    let play = Play::begin(&server, "job").await;
    // One that takes nothing, and stands before the third event.
    let cursor = Arc::new(Cursor::new(Arc::new(Peer::new(u64::MAX, "u".into(), "c".into())), 1, Seq(3)));
    publisher.connections().insert(&play.topic.id, Arc::clone(&cursor));
    for n in 0..8 {
        play.thought(&format!("{n}")).await;
    }
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(play.head(), 10);
    assert_eq!(scrape.get("rejoin_watcher_lag_events"), 8.0, "the third to the tenth");
    assert_eq!(scrape.get(r#"rejoin_task_watcher_lag_events{task="job"}"#), 8.0);
    assert_eq!(scrape.get(r#"rejoin_task_watcher_lag_events{task="other"}"#), 0.0);
    assert_eq!(scrape.get("rejoin_watchers"), 1.0);
    assert_eq!(scrape.get("rejoin_ring_events"), 10.0);
    let bytes = play.topic.tail().ring.bytes();
    assert!(bytes > 0);
    assert_eq!(scrape.get("rejoin_ring_bytes"), bytes as f64);
    // While the writer is held, what is offered waits.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let quiet = {
        let publisher = publisher.clone();
        std::thread::spawn(move || {
            publisher.while_quiet(|| {
                ready.send(()).unwrap();
                let _ = held.recv();
            });
        })
    };
    is_ready.await.unwrap();
    play.thoughts(50).await;
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get("rejoin_queue_events"), 50.0);
    assert!(scrape.get("rejoin_queue_bytes") >= 50.0 * 9.0);
    drop(hold);
    quiet.join().unwrap();
    play.status(State::Succeeded).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let scrape = Scrape::of(&home, &server.client).await;
        if (scrape.get("rejoin_queue_events"), scrape.get("rejoin_queue_bytes")) == (0.0, 0.0) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
    }
    publisher.connections().remove(&play.topic.id, u64::MAX, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_and_its_files_are_as_the_system_says() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.spawn(&[]).await;
    let run = server.client.run("job").await;
    server.client.ended(&run).await;
    let size = |name: &str| std::fs::metadata(home.path().join("data").join(name)).unwrap().len() as f64;
    let sizes = || (size("rejoin.db"), size("rejoin.db-wal"));
    // A chore of the server may come in between: then once more.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let (scrape, (store, wal)) = loop {
        assert!(tokio::time::Instant::now() < deadline, "the files never stay as they are");
        let before = sizes();
        let scrape = Scrape::of(&home, &server.client).await;
        if sizes() == before {
            break (scrape, before);
        }
    };
    assert_eq!((scrape.get("rejoin_store_bytes"), scrape.get("rejoin_store_wal_bytes")), (store, wal));
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    let resident = statm.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4096.0;
    let told = scrape.get("process_resident_memory_bytes");
    assert!((told / resident - 1.0).abs() < 0.5, "{told} of {resident}");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as f64;
    assert!((scrape.get("process_open_fds") - fds).abs() <= 4.0, "{fds}");
    assert!(scrape.get("process_max_fds") >= fds && scrape.get("process_threads") >= 2.0);
    assert!(scrape.get("process_cpu_seconds_total") < 60.0);
    let now = Timestamp::now().as_second() as f64;
    assert!((now - scrape.get("process_start_time_seconds")).abs() < 120.0);
    assert_eq!(scrape.get(&format!("rejoin_build_info{{version={:?}}}", env!("CARGO_PKG_VERSION"))), 1.0);
    assert_eq!((scrape.get("rejoin_ready"), scrape.get("rejoin_store_writable")), (1.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_tasks_have_series_and_no_run_has_any() {
    for (config, most) in [("[metrics]\ntasks = 2", 2), ("[metrics]\ntasks = 0", 0)] {
        let mut home = Home::new(config);
        for task in ["d", "c", "b", "a"] {
            home = home.shell_task(task, "true");
        }
        let server = home.serve().await;
        let before = Scrape::of(&home, &server.client).await.values_of("task");
        assert_eq!(before.len(), most);
        // One that is new takes the series of no other, whatever its name.
        let definition = json!({ "title": "0", "id": "0", "steps": [{ "name": "x", "run": "true" }] });
        assert_eq!(server.client.post("/tasks", definition).await.0, 201);
        // Without a schedule it runs at once, and then once more.
        let run = server.client.run("0").await;
        server.client.ended(&run).await;
        let scrape = Scrape::of(&home, &server.client).await;
        assert_eq!(scrape.values_of("task"), before);
        assert_eq!(scrape.get("rejoin_tasks_without_series"), 5.0 - most as f64);
        assert_eq!(scrape.get(r#"rejoin_runs_ended_total{state="succeeded"}"#), 2.0, "all together they count");
        assert!(!scrape.text.contains(&run));
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_are_counted_by_way_and_result_and_by_nothing_else() {
    let home = Home::new("");
    let server = home.serve().await;
    let told = server.server.api().publisher.transact::<_, StoreError, _>(|_| {
        for (kind, result, count) in [("mail", "sent", 2), ("webhook", "failed", 1), ("pigeon", "sent", 1)] {
            tally::note(Measurement::Told { kind, result, count });
        }
        Ok(((), Vec::new()))
    });
    told.await.unwrap();
    let scrape = Scrape::of(&home, &server.client).await;
    assert_eq!(scrape.get(r#"rejoin_notifications_total{channel="mail",result="sent"}"#), 2.0);
    assert_eq!(scrape.get(r#"rejoin_notifications_total{channel="webhook",result="failed"}"#), 1.0);
    assert_eq!(scrape.get(r#"rejoin_notifications_total{channel="ntfy",result="dropped"}"#), 0.0);
    assert_eq!(scrape.get(r#"rejoin_notifications_total{channel="other",result="sent"}"#), 1.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_units_and_types_are_what_prometheus_expects() {
    let scrape = Scrape::after_a_run().await;
    for (name, kind) in &scrape.types {
        assert!(name.starts_with("rejoin_") || name.starts_with("process_"), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        for unit in ["_ms", "_millis", "_minutes", "_kb", "_mib"] {
            assert!(!name.contains(unit), "{name}: seconds and bytes");
        }
        let help = scrape.help.get(name).unwrap_or_else(|| panic!("{name} has no help"));
        assert!(help.ends_with('.') || help.ends_with("config.toml."), "{name}: {help}");
        let series = scrape.starting_with(name).count();
        assert!(series > 0 && series < 60, "{name} has {series} series");
    }
    // Buckets grow, and the last is the count.
    for (name, _) in scrape.types.iter().filter(|(_, kind)| *kind == "histogram") {
        let buckets: Vec<f64> = scrape
            .text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}_bucket")))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(buckets.is_sorted(), "{name}: {buckets:?}");
        assert_eq!(*buckets.last().unwrap(), scrape.get(&format!("{name}_count")), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_need_a_credential_and_theirs_opens_nothing_else() {
    let home = Home::new("").shell_task("job", "true");
    let mut server = home.spawn(&[]).await;
    let file = home.path().join("data/metrics-token");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let own = std::fs::read_to_string(&file).unwrap();
    assert_ne!(own, home.token());
    for (token, wanted) in [(None, 401), (Some("no"), 401), (Some(own.as_str()), 200), (Some(&home.token()), 200)] {
        let answer = ask(&server.client, token).await;
        assert_eq!(answer.status(), wanted, "{token:?}");
        if wanted == 401 {
            assert_eq!(answer.headers()["www-authenticate"], "Bearer");
            let text = answer.text().await.unwrap();
            assert!(text.contains("unauthenticated") && !text.contains("rejoin_"), "{text}");
        }
    }
    let thief = crate::harness::Client::new(server.client.address, &own);
    for path in ["/status", "/tasks", "/runs"] {
        assert_eq!(thief.get(path).await.0, 401, "{path}");
    }
    assert_eq!(thief.post("/tasks/job/runs", json!({})).await.0, 401);
    let mut socket = Watcher::open(server.client.address, Some(&own)).await;
    socket.hello("x", 1, json!([])).await;
    assert_eq!(socket.close_code().await, Some(4500));
    server.terminate().await;

    // The same token after a restart; one that others can read is no token.
    let mut server = home.spawn(&[]).await;
    assert_eq!(ask(&server.client, Some(&own)).await.status(), 200);
    server.terminate().await;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(home.try_spawn(&[]).is_err());
    assert!(home.log().contains("metrics-token can be read by others: chmod 600"), "{}", home.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_are_open_need_none_but_a_host_that_is_known() {
    let home = Home::new("[metrics]\nopen = true");
    let server = home.serve().await;
    let answer = ask(&server.client, None).await;
    assert_eq!(answer.status(), 200);
    Scrape::read(answer.text().await.unwrap());
    assert!(!home.path().join("data/metrics-token").exists(), "nobody needs one");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let address = format!("http://{}/metrics", server.client.address);
    let answer = http.get(address).header("Host", "evil.example").send().await.unwrap();
    assert_eq!(answer.status(), 421);
    server.stop().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_shows_and_counts_nothing_as_saved() {
    use crate::disk_limits::limit_files;

    let home = Home::new("").shell_task("job", "echo said");
    let server = home.spawn(&[]).await;
    let run = server.client.run("job").await;
    server.client.ended(&run).await;
    let before = Scrape::of(&home, &server.client).await;
    assert_eq!((before.get("rejoin_store_writable"), before.get("rejoin_commit_failures_total")), (1.0, 0.0));
    limit_files(server.pid(), Some(1));
    assert_eq!(server.client.post("/tasks/job/runs", json!({})).await.0, 503);
    let full = Scrape::of(&home, &server.client).await;
    assert_eq!(full.get("rejoin_store_writable"), 0.0);
    assert!(full.get("rejoin_commit_failures_total") >= 1.0);
    for same in ["rejoin_events_total", "rejoin_commit_size_events_sum", r#"rejoin_runs_made_total{trigger="hand"}"#] {
        assert_eq!(full.get(same), before.get(same), "{same}");
    }
    limit_files(server.pid(), None);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while Scrape::of(&home, &server.client).await.get("rejoin_store_writable") == 0.0 {
        assert!(tokio::time::Instant::now() < deadline);
    }
}
