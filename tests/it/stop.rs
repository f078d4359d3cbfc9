//! Stop: by a person, by the clock, by the end of the server. Nothing of the tree is left, nothing follows the end,
//! and no run is ever where nobody ends it.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Client, Gate, Home, PATIENCE, REJOIN, Watcher, events_of, is_terminal, seqs};
use crate::process::until;
use crate::trees;

/// The stages of a stop, many times as fast.
const FAST: &str = "[runs]\nconcurrency = 16\nstop_term = \"200ms\"\nstop_kill = \"500ms\"\nstop_give_up = \"15s\"\nshutdown_grace = \"1s\"";

/// The living processes that carry the mark of a run, or whose arguments have `word`.
fn living(run: &str, word: &str) -> Vec<i32> {
    let mark = format!("REJOIN_RUN={run}");
    let has =
        |path: &Path, text: &str| std::fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text));
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    pids.filter(|(_, path)| {
        // A process that is over and not yet reaped has neither.
        has(&path.join("environ"), &mark) || (!word.is_empty() && has(&path.join("cmdline"), word))
    })
    .map(|(pid, _)| pid)
    .collect()
}

async fn stop(client: &Client, run: &str) -> (u16, Value) {
    client.post(&format!("/runs/{run}/stop"), json!({})).await
}

/// Waits until the command of the task has said `up`; gives the events so far.
async fn up(watcher: &mut Watcher) -> Vec<Value> {
    let says_up = |event: &Value| {
        event["kind"] == "tool_output" && event["data"]["text"].as_str().is_some_and(|text| text.contains("up"))
    };
    let frames = watcher.until(|frame| events_of(frame).iter().any(says_up)).await;
    frames.iter().flat_map(events_of).collect()
}

fn states(home: &Home, task: &str, run: &str) -> Vec<String> {
    let events = home.logged_events(task).into_iter().map(|(_, text)| serde_json::from_str::<Value>(&text).unwrap());
    let of_run = events.filter(|event| event["run"] == run && event["kind"] == "status");
    of_run.map(|event| event["data"]["state"].as_str().unwrap().to_owned()).collect()
}

/// The last event of the run in the file is its only terminal one.
fn assert_ends_once(home: &Home, task: &str, run: &str, state: &str) {
    let events = home.logged_events(task).into_iter().map(|(_, text)| serde_json::from_str::<Value>(&text).unwrap());
    let of_run: Vec<Value> = events.filter(|event| event["run"] == run).collect();
    assert_eq!(of_run.iter().filter(|event| is_terminal(event)).count(), 1, "{of_run:#?}");
    assert_eq!(of_run.last().unwrap()["data"]["state"], state, "{of_run:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_stop_ends_a_tool_of_a_minute_by_its_first_signal_also_after_a_reconnect() {
    let home = Home::new("").shell_task("long", "echo up; sleep 60");
    let server = home.serve().await;
    let client = &server.client;
    let run = client.run("long").await;
    let mut first = client.watch(json!([{ "sub": 1, "task": "long" }])).await;
    let seen = up(&mut first).await;
    drop(first);
    let generation = client.get("/tasks/long").await.1["gen"].clone();
    let after = seqs(&seen).pop().unwrap();
    let mut second = client.watch(json!([{ "sub": 1, "task": "long", "gen": generation, "after": after }])).await;
    assert!(!living(&run, "").is_empty());

    let asked = Instant::now();
    assert_eq!(stop(client, &run).await.0, 202);
    let rest = second.events_until_end().await;
    // The next signal would be sent 5 s after the first.
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let signals = |signal: &str| rest.iter().filter(|event| event.to_string().contains(signal)).count();
    assert_eq!(["SIGINT sent", "SIGTERM", "SIGKILL"].map(signals), [1, 0, 0], "{rest:#?}");
    assert_eq!(rest.last().unwrap()["data"]["state"], "cancelled");
    assert_eq!(client.get(&format!("/runs/{run}")).await.1["state"], "cancelled");
    assert_eq!(living(&run, ""), Vec::<i32>::new());
    // It is not taken for a failure to be tried again: the next run is the one asked for.
    let next = client.run("long").await;
    assert_eq!(client.get("/tasks/long/runs").await.1["items"].as_array().unwrap().len(), 2);
    assert_eq!(stop(client, &next).await.0, 202);
    client.ended(&next).await;
    server.stop().await;
    assert_ends_once(&home, "long", &run, "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_stop_twice_is_one_stop_and_stop_of_what_is_over_says_so() {
    let home = Home::new(FAST)
        .shell_task("deaf", "trap '' INT; echo up; sleep 60 & wait; sleep 60")
        .shell_task("short", "echo hello");
    let server = home.serve().await;
    let client = &server.client;
    let run = client.run("deaf").await;
    let mut watcher = client.watch(json!([{ "sub": 1, "task": "deaf" }])).await;
    up(&mut watcher).await;
    assert_eq!(stop(client, &run).await.0, 202);
    assert_eq!(stop(client, &run).await.0, 202);
    assert_eq!(client.ended(&run).await["state"], "cancelled");
    assert_eq!(stop(client, &run).await.0, 202, "asked again, it is as was asked");

    let short = client.run("short").await;
    assert_eq!(client.ended(&short).await["state"], "succeeded");
    assert_eq!(stop(client, &short).await.1["code"], "run_over");
    let (status, answer) = stop(client, &uuid::Uuid::now_v7().to_string()).await;
    assert_eq!((status, answer["code"].as_str()), (404, Some("not_found")));
    server.stop().await;
    assert_ends_once(&home, "deaf", &run, "cancelled");
    let interrupts = home.logged_events("deaf").iter().filter(|(_, text)| text.contains("SIGINT sent")).count();
    assert_eq!(interrupts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_stop_of_a_run_that_waits_ends_it_before_it_starts() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let client = &server.client;
    let first = client.run("job").await;
    let second = client.run("job").await;
    let third = client.run("job").await;
    let (status, answer) = stop(client, &second).await;
    assert_eq!((status, answer["state"].as_str()), (202, Some("cancelled")), "{answer}");
    assert_eq!(stop(client, &second).await.0, 202, "asked again, it is as was asked");
    for run in [&first, &third] {
        gate.open().await;
        assert_eq!(client.ended(run).await["state"], "succeeded");
    }
    assert_eq!(states(&home, "job", &second), ["queued", "cancelled"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_one_task_start_in_the_order_in_which_they_were_asked_for() {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.serve().await;
    let mut runs = Vec::new();
    for _ in 0..8 {
        runs.push(server.client.run("job").await);
    }
    server.client.ended(runs.last().unwrap()).await;
    let events = server.client.pages("job").await;
    let started = events.iter().filter(|event| event["data"]["state"] == "started");
    assert_eq!(started.map(|event| event["run"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), runs);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_whatever_shape_the_tree_has_nothing_of_it_is_left() {
    // Each says `up` when what is deaf in it is so, and names the number by which it is found again.
    let shapes = [
        ("deaf", "trap '' INT TERM; sleep @ & echo up; while :; do wait; sleep @; done"),
        ("away", "setsid sh -c 'setsid sh -c \"trap \\\"\\\" INT TERM; echo up; sleep @\" & sleep 0' & sleep @"),
        ("behind", "sh -c 'sleep @ & sleep @ & :'; echo up; sleep @"),
        ("holder", "(setsid sleep @ &) ; (trap '' INT TERM HUP; echo up; sleep @) & wait; sleep @"),
        ("stopped", "sh -c 'trap \"\" INT; kill -STOP $$; sleep @' & sleep @ & kill -STOP $!; echo up; sleep @"),
        ("nameless", "env -i /bin/sh -c 'trap \"\" INT TERM; echo up; sleep @' & sleep @"),
        ("forks", "trap '' INT; (while :; do sleep @ & sleep 0.05; done) & echo up; wait"),
    ];
    let numbers: Vec<String> = (0..shapes.len()).map(|index| format!("77.{}{index}", std::process::id())).collect();
    let mut home = Home::new(FAST);
    for ((name, command), number) in shapes.iter().zip(&numbers) {
        home = home.shell_task(name, &command.replace('@', number));
    }
    let server = home.serve().await;
    let client = &server.client;
    let mut trees = Vec::new();
    for ((name, _), number) in shapes.iter().zip(&numbers) {
        let run = client.run(name).await;
        let mut watcher = client.watch(json!([{ "sub": 1, "task": name }])).await;
        up(&mut watcher).await;
        until("all of it is there", || living(&run, number).len() >= 3).await;
        trees.push((*name, run, number));
    }
    let asked = Instant::now();
    for (_, run, _) in &trees {
        assert_eq!(stop(client, run).await.0, 202);
    }
    for (name, run, number) in &trees {
        assert_eq!(client.ended(run).await["state"], "cancelled", "{name}");
        assert_eq!(living(run, number), Vec::<i32>::new(), "{name}");
    }
    eprintln!("{} trees were gone {:?} after the first stop; SIGKILL comes at 500 ms", trees.len(), asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    server.stop().await;
    for (name, run, _) in &trees {
        assert_ends_once(&home, name, run, "cancelled");
        // All of these have one that takes neither SIGINT nor SIGTERM: the last stage was needed, and is shown.
        if ["deaf", "away", "holder", "nameless"].contains(name) {
            let killed = home.logged_events(name).iter().any(|(_, text)| text.contains("SIGKILL sent"));
            assert!(killed, "{name} was not as deaf as it should be");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_takes_too_long_is_timed_out_with_all_it_started() {
    let number = format!("78.{}", std::process::id());
    let text = format!(
        "title = \"Slow\"\n[policy]\ntimeout = \"1s\"\n[[steps]]\nname = \"only\"\nrun = \"trap '' INT; sleep {number} & echo up; wait; sleep {number}\"\n"
    );
    let home = Home::new(FAST).task("slow", &text);
    let server = home.serve().await;
    let run = server.client.run("slow").await;
    let ended = server.client.ended(&run).await;
    assert_eq!(ended["state"], "timed_out");
    assert!(ended["duration_ms"].as_u64().unwrap() >= 1000, "{ended}");
    assert_eq!(living(&run, &number), Vec::<i32>::new());
    server.stop().await;
    assert_ends_once(&home, "slow", &run, "timed_out");
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_02_with_the_watcher_gone_the_run_goes_on_and_nothing_complains() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home =
        home.shell_task("job", &format!("echo up; {}; for i in 1 2 3; do echo $i; sleep 0.3; done", gate.wait()));
    let mut server = home.spawn(&[("RUST_LOG", "debug")]).await;
    let run = server.client.run("job").await;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
        up(&mut watcher).await;
        watchers.push(watcher);
    }
    // Gone without a goodbye.
    for watcher in watchers {
        watcher.socket.get_ref().set_zero_linger().unwrap();
        drop(watcher);
    }
    gate.open().await;
    assert_eq!(server.client.ended(&run).await["state"], "succeeded");
    assert!(server.terminate().await.success());
    let log = home.log();
    let complaints: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_gives_runs_their_grace_then_interrupts_them_and_the_next_start_goes_on() {
    // More than enough for the one that is over by itself.
    let home = Home::new(&FAST.replace("shutdown_grace = \"1s\"", "shutdown_grace = \"4s\""))
        .shell_task("quick", "echo up; sleep 0.5; echo done")
        .shell_task("long", "trap '' INT; echo up; sleep 60; sleep 60");
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    let (quick, long, waits) = (client.run("quick").await, client.run("long").await, client.run("long").await);
    let mut watcher = client.watch(json!([{ "sub": 1, "task": "long" }])).await;
    let seen = up(&mut watcher).await;
    let mut other = client.watch(json!([{ "sub": 1, "task": "quick" }])).await;
    up(&mut other).await;
    let generation = client.get("/tasks/long").await.1["gen"].clone();

    let begin = Instant::now();
    let ended = tokio::spawn(async move { (server.terminate().await, server) });
    let close = loop {
        if let Err(close) = watcher.next_of_any().await {
            break close.expect("it was closed with a code");
        }
    };
    assert_eq!(u16::from(close.code), 4001);
    let reason: Value = serde_json::from_str(&close.reason).unwrap();
    assert_eq!(reason["code"], "draining");
    assert!(reason["retry_ms"].as_u64().is_some_and(|retry| retry > 0), "{reason}");
    let (status, _) = ended.await.unwrap();
    assert!(status.success(), "{}", home.log());
    assert!(begin.elapsed() < Duration::from_secs(14), "{:?}", begin.elapsed());
    assert_eq!(living(&long, ""), Vec::<i32>::new());
    assert_ends_once(&home, "quick", &quick, "succeeded");
    assert_ends_once(&home, "long", &long, "interrupted");
    assert_eq!(states(&home, "long", &waits), ["queued"]);

    let mut server = home.spawn(&[]).await;
    let after = seqs(&seen).pop().unwrap();
    let mut watcher =
        server.client.watch(json!([{ "sub": 1, "task": "long", "gen": generation, "after": after }])).await;
    assert_eq!(watcher.next().await["outcome"], "resumed");
    let run = server.client.until(&format!("/runs/{waits}"), |run| run["state"] == "running").await;
    assert_eq!(run["attempt"], 1);
    assert_eq!(stop(&server.client, &waits).await.0, 202);
    server.client.ended(&waits).await;
    assert!(server.terminate().await.success());
}

async fn refused(home: &Home) -> String {
    let config = home.path().join("config.toml");
    let serve = tokio::process::Command::new(REJOIN).arg("serve").arg("--config").arg(config).output();
    let output = tokio::time::timeout(PATIENCE, serve).await.expect("it was not refused").unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_data_is_refused_and_told_who_has_it() {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.spawn(&[]).await;
    let words = refused(&home).await;
    assert!(words.contains(&format!("(pid {})", server.pid())), "{words}");
    // The first one did not notice.
    let run = server.client.run("job").await;
    assert_eq!(server.client.ended(&run).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_a_newer_version_is_refused_and_left_as_it_is() {
    let home = Home::new("").shell_task("job", "echo hello");
    home.spawn(&[]).await.terminate().await;
    let newer = rejoin::store::VERSION + 1;
    rusqlite::Connection::open(home.database()).unwrap().pragma_update(None, "user_version", newer).unwrap();
    let words = refused(&home).await;
    assert!(words.contains(&format!("version {newer}")), "{words}");
    let found: u32 = rusqlite::Connection::open(home.database())
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(found, newer);
}

#[tokio::test(flavor = "multi_thread")]
async fn t_09_a_backup_that_was_copied_back_gets_new_gens_and_a_kill_does_not() {
    let home = Home::new("").shell_task("job", "echo hello");
    let generation = async |client: &Client| client.get("/tasks/job").await.1["gen"].as_str().unwrap().to_owned();
    let mut server = home.spawn(&[]).await;
    let run = server.client.run("job").await;
    server.client.ended(&run).await;
    let first = generation(&server.client).await;
    server.terminate().await;
    let backup = home.path().join("backup.db");
    std::fs::copy(home.database(), &backup).unwrap();

    let mut server = home.spawn(&[]).await;
    assert_eq!(generation(&server.client).await, first);
    let run = server.client.run("job").await;
    server.client.ended(&run).await;
    server.kill();
    let mut server = home.spawn(&[]).await;
    assert_eq!(generation(&server.client).await, first, "a kill keeps the log");
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    let seen = watcher.until(|frame| frame["type"] == "caught_up").await;
    let position = seen.last().unwrap()["seq"].as_u64().unwrap();
    server.terminate().await;

    std::fs::copy(&backup, home.database()).unwrap();
    let server = home.spawn(&[]).await;
    assert_ne!(generation(&server.client).await, first, "an older copy is another log");
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job", "gen": first, "after": position }])).await;
    assert_eq!(watcher.next().await["outcome"], "reset");
    assert_eq!(watcher.next().await["why"], "generation");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_half_way_leaves_no_run_that_nobody_starts() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let client = &server.client;
    let body = "{}";
    let request = format!(
        "POST /api/v1/tasks/job/runs HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        client.address,
        home.token(),
        body.len()
    );
    for round in 0..60_u64 {
        let (address, request) = (client.address, request.clone());
        let hang_up = move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            // Somewhere between the arrival of the request and its answer; with a reset, which is noticed at once.
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_micros(round * 20) {
                std::hint::spin_loop();
            }
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        };
        tokio::task::spawn_blocking(hang_up).await.unwrap();
    }
    let over = |page: &Value| page["items"].as_array().unwrap().iter().all(|run| !run["ended_at"].is_null());
    client.until("/tasks/job/runs?limit=500", over).await;
    let run = client.run("job").await;
    assert_eq!(client.ended(&run).await["state"], "succeeded");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_deleted_while_its_run_starts_leaves_nothing_behind() {
    let home = Home::new(FAST);
    let server = home.serve().await;
    let client = &server.client;
    let number = format!("79.{}", std::process::id());
    let mut runs = BTreeSet::new();
    for round in 0..25_u64 {
        let task =
            json!({ "id": "brief", "title": "Brief", "steps": [{ "name": "only", "run": format!("sleep {number}") }] });
        let (status, answer) = client.post("/tasks", task).await;
        assert_eq!(status, 201, "{answer}");
        let starter = client.clone();
        let start = tokio::spawn(async move { starter.post("/tasks/brief/runs", json!({})).await });
        tokio::time::sleep(Duration::from_micros(round * 300)).await;
        let (status, answer) = client.delete("/tasks/brief?stop=true").await;
        assert_eq!(status, 204, "{answer}");
        let (status, answer) = start.await.unwrap();
        match status {
            201 => drop(runs.insert(answer["run"]["id"].as_str().unwrap().to_owned())),
            404 | 409 => {}
            _ => panic!("{status} {answer}"),
        }
    }
    let idle = client.until("/status", |status| status["running"] == 0 && status["queued"] == 0).await;
    assert_eq!(idle["running"], 0);
    for run in &runs {
        assert_eq!(living(run, &number), Vec::<i32>::new());
    }
    eprintln!("{} of 25 runs were made before their task was gone", runs.len());
    server.stop().await;
}

/// A task that is due each second and whose first run waits at a gate while the next one is queued behind it.
async fn with_one_queued(home: Home, gate: &Gate) -> (Home, crate::harness::Process, String) {
    let text = format!(
        "title = \"Due\"\n[schedule]\nevery = \"1s\"\n[policy]\noverlap = \"queue\"\ncatchup_window = \"1h\"\n[[steps]]\nname = \"only\"\nrun = {}\n",
        json!(gate.wait())
    );
    let home = home.task("due", &text);
    let server = home.spawn(&[]).await;
    let any = |page: &Value, state: &str| page["items"].as_array().unwrap().iter().any(|run| run["state"] == state);
    let waits = |page: &Value| any(page, "running") && any(page, "queued");
    let page = server.client.until("/tasks/due/runs", waits).await;
    let queued = page["items"].as_array().unwrap().iter().rfind(|run| run["state"] == "queued").unwrap();
    let id = queued["id"].as_str().unwrap().to_owned();
    (home, server, id)
}

fn slot_of(home: &Home, run: &str) -> (String, Option<String>) {
    let file = rusqlite::Connection::open(home.database()).unwrap();
    file.query_row("SELECT outcome, reason FROM slots WHERE run = ?1", [run], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_pausing_calls_off_the_scheduled_run_that_waits_and_leaves_the_one_by_hand() {
    let home = Home::new(FAST);
    let gate = Gate::new(home.path(), "gate");
    let (home, server, queued) = with_one_queued(home, &gate).await;
    let by_hand = server.client.run("due").await;
    assert_eq!(server.client.post("/tasks/due/pause", json!({})).await.0, 200);
    assert_eq!(server.client.get(&format!("/runs/{queued}")).await.1["state"], "cancelled");
    assert_eq!(slot_of(&home, &queued).0, "disabled");
    gate.open().await;
    server.client.until(&format!("/runs/{by_hand}"), |run| run["state"] == "running").await;
    gate.open().await;
    assert_eq!(server.client.ended(&by_hand).await["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_whether_a_task_is_on_is_asked_again_when_its_run_starts() {
    let home = Home::new(FAST);
    let gate = Gate::new(home.path(), "gate");
    let (home, server, queued) = with_one_queued(home, &gate).await;
    // As if the pause came between the claim of the slot and the start of its run.
    rusqlite::Connection::open(home.database()).unwrap().execute("UPDATE tasks SET paused = 1", []).unwrap();
    gate.open().await;
    assert_eq!(server.client.ended(&queued).await["state"], "cancelled");
    assert_eq!(states(&home, "due", &queued), ["queued", "cancelled"]);
    assert_eq!(slot_of(&home, &queued), ("disabled".to_owned(), Some("the task was paused".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_kill_in_the_middle_of_a_pause_starts_no_run_of_the_paused_task() {
    let home = Home::new(FAST);
    let gate = Gate::new(home.path(), "gate");
    let (home, mut server, queued) = with_one_queued(home, &gate).await;
    server.kill();
    rusqlite::Connection::open(home.database()).unwrap().execute("UPDATE tasks SET paused = 1", []).unwrap();
    let server = home.spawn(&[]).await;
    assert_eq!(server.client.ended(&queued).await["state"], "cancelled");
    assert_eq!(slot_of(&home, &queued).0, "disabled");
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_a_schedule_edited_behind_the_time_that_is_planned_repeats_no_slot_and_goes_on() {
    let begin: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(begin);
    let home = Home::new("[schedule]\nlook_again = \"100ms\"");
    let server = home.serve_at(clock.clone()).await;
    let client = &server.client;
    let minutes = |minutes: i64| begin + SignedDuration::from_mins(minutes);
    let task = json!({ "id": "due", "title": "Due", "schedule": { "cron": "* * * * *", "tz": "UTC" }, "policy": { "catchup": "none" },
        "steps": [{ "name": "only", "run": "true" }] });
    assert_eq!(client.post("/tasks", task).await.0, 201);
    clock.set(minutes(1));
    let ran = |n: usize| {
        move |page: &Value| {
            let items = page["items"].as_array().unwrap();
            items.len() == n && items.iter().all(|slot| slot["outcome"] == "ran" || slot["outcome"] == "late")
        }
    };
    client.until("/tasks/due/slots", ran(1)).await;
    client.until("/tasks/due/runs", |page| !page["items"][0]["ended_at"].is_null()).await;
    // The clock is set back, the schedule edited so that the same minutes are due again, and the clock goes on.
    clock.set(minutes(0) + SignedDuration::from_secs(30));
    let (status, answer) = client
        .request(reqwest::Method::PATCH, "/tasks/due")
        .json(&json!({ "schedule": { "cron": "*/1 * * * *", "tz": "UTC" } }))
        .send()
        .await
        .map(|answer| (answer.status().as_u16(), answer))
        .unwrap();
    assert_eq!(status, 200, "{answer:?}");
    clock.set(minutes(1) + SignedDuration::from_secs(1));
    clock.set(minutes(2));
    client.until("/tasks/due/slots", ran(2)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_of_twenty_five_deep_trees_that_are_stopped_nothing_is_left() {
    let home = trees::home(trees::SHIPPED, 25);
    let mut server = home.spawn(&[]).await;
    let took = trees::stop_all(&home, &server, 25, trees::Bounds::BY_STAGES).await;
    eprintln!("{took:?}");
    assert!(took.trees == 25 && took.processes > 25 * 4, "{took:?}");
    assert!(server.terminate().await.success());
}
