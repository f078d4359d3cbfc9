//! The promises about watching a task while it runs, one test for each: what a watcher sees, what the log says, and
//! what does not happen.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use rejoin::event::{Body, State};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tracing::Level;

use crate::bounds::Broken;
use crate::harness::{Client, Gate, Home, PATIENCE, REJOIN, Watcher, events_of, is_terminal, seqs};
use crate::rows_stage::{NO_HEARTBEAT, Page, Play, SOON, forget_below, keep_log, logged, stage};

/// A reset instead of a goodbye: what a phone in a tunnel leaves behind.
fn reset(watcher: Watcher) {
    let stream = watcher.socket.into_inner();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Reads on until there was an event of a kind, which may have been before the page was there.
async fn has_seen(page: &mut Page, kind: &str) {
    if !page.events.iter().any(|event| event["kind"] == kind) {
        page.sees_that(|event| event["kind"] == kind).await;
    }
}

/// Whether a run was begun by the clock: by a machine that was busy when it was due, as one to catch up with.
fn is_by_the_clock(trigger: &Value) -> bool {
    trigger == "schedule" || trigger == "catchup"
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_02_with_the_watcher_gone_the_task_goes_on_to_its_end() {
    keep_log();
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("spk-02", &format!("echo one; {}; seq 2000", gate.wait()));
    let server = home.serve().await;
    let run = server.client.run("spk-02").await;
    let mut page = Page::open(&server.client, "spk-02").await;
    has_seen(&mut page, "tool_output").await;
    // It stops reading and is gone in the middle of what is sent to it.
    let watcher = page.socket.take().unwrap();
    gate.open().await;
    reset(watcher);
    let run = server.client.ended(&run).await;
    assert_eq!((&run["state"], &run["reason"]), (&json!("succeeded"), &Value::Null));
    let trouble = logged(&["spk-02"]).into_iter().filter(|line| line.level <= Level::WARN).count();
    assert_eq!(trouble, 0, "{:?}", logged(&["spk-02"]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_09_a_reconnection_is_logged_once_and_a_first_attachment_is_none() {
    const WORDS: &str = "Detected WebSocket reconnection for chat=spk-09, resuming updates";
    keep_log();
    let home = stage("spk-09");
    let server = home.serve().await;
    let play = Play::begin(&server, "spk-09").await;
    let mut page = Page::open(&server.client, "spk-09").await;
    page.sees(play.thought("first").await).await;
    assert_eq!(logged(&[WORDS]).len(), 0, "the first time is no reconnection");
    page.cut();
    page.connect().await;
    for text in ["second", "third", "fourth"] {
        page.sees(play.thought(text).await).await;
    }
    let lines = logged(&[WORDS]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].level, Level::INFO);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_10_every_event_that_is_delivered_has_its_line() {
    keep_log();
    let home = stage("spk-10");
    let server = home.serve().await;
    let play = Play::begin(&server, "spk-10").await;
    let mut page = Page::open(&server.client, "spk-10").await;
    play.thought("t").await;
    play.tool_use("c").await;
    page.sees(play.tool_result("c").await).await;
    for (kind, count) in [("status", 2), ("thought", 1), ("tool_use", 1), ("tool_result", 1)] {
        let lines = logged(&[&format!("Sent {kind} message to user=admin, session=c-"), "chat=spk-10"]);
        assert_eq!(lines.len(), count, "{kind}: {lines:?}");
        assert!(lines.iter().all(|line| line.level == Level::INFO));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_10_the_lines_are_held_back_until_they_are_asked_for() {
    for (environment, shown) in [(vec![], false), (vec![("RUST_LOG", "info,rejoin::delivery=info")], true)] {
        let home = Home::new("").shell_task("job", "echo hello");
        let server = home.spawn(&environment).await;
        let mut page = Page::open(&server.client, "job").await;
        server.client.run("job").await;
        page.sees_end().await;
        assert_eq!(home.log().contains("Sent tool_result message to user=admin"), shown, "{}", home.log());
        assert!(home.log().contains("watcher connected"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_12_a_forwarder_that_is_made_is_logged() {
    keep_log();
    let home = stage("spk-12");
    let server = home.serve().await;
    let play = Play::begin(&server, "spk-12").await;
    let mut page = Page::open(&server.client, "spk-12").await;
    page.sees(play.thought("t").await).await;
    let lines = logged(&["WebSocket forwarder created: task=spk-12, chat=spk-12, user=admin"]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0].level, Level::INFO);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_15_after_three_quick_refreshes_the_last_one_goes_on_and_the_earlier_ones_fail_silently() {
    keep_log();
    let home = stage("spk-15");
    let server = home.serve().await;
    let play = Play::begin(&server, "spk-15").await;
    let mut page = Page::open(&server.client, "spk-15").await;
    let mut old = Vec::new();
    for text in ["one", "two", "three"] {
        old.push(page.socket.take().unwrap());
        play.thought(text).await;
        page.connect().await;
    }
    let last = play.status(State::Succeeded).await;
    page.sees(last).await;
    page.has_all_of(&home);
    for mut socket in old {
        assert_eq!(socket.close_code().await, Some(4514));
    }
    let trouble = logged(&["spk-15"]).into_iter().filter(|line| line.level <= Level::WARN).count();
    assert_eq!(trouble, 0);
    server.stop().await;
}

/// Cuts and comes back again and again while events are made; the place kept is checked at each event.
async fn restless(client: Client, task: String, head: u64) -> Page {
    let mut page = Page::new(&client, &task);
    while page.position < head {
        assert_eq!(page.dial().await["outcome"], "resumed");
        for _ in 0..rand::random_range(0..12) {
            if page.position >= head {
                break;
            }
            page.step().await;
        }
        if rand::random() {
            page.cut();
        }
    }
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_16_t_10_over_any_pattern_of_reconnections_each_event_is_shown_once_and_none_is_missed() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let writer = {
        let play = play.clone();
        tokio::spawn(async move {
            for _ in 0..150 {
                play.thoughts(10).await;
                tokio::task::yield_now().await;
            }
        })
    };
    let pages = (0..8).map(|_| restless(server.client.clone(), "job".to_owned(), 1502));
    let pages = join_all(pages).await;
    writer.await.unwrap();
    for page in &pages {
        page.has_all_of(&home);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_17_events_that_coincide_with_connects_and_disconnects_reach_their_own_task_and_nothing_hangs() {
    let home = stage("red").shell_task("blue", "true");
    let server = home.serve().await;
    let (red, blue) = (Play::begin(&server, "red").await, Play::begin(&server, "blue").await);
    let speak = |play: Play| async move {
        play.thoughts(600).await;
        play.thought("the last of the storm").await
    };
    let client = &server.client;
    let (mut faithful_red, mut faithful_blue) = (Page::open(client, "red").await, Page::open(client, "blue").await);
    let watch = |task: &'static str| join_all((0..6).map(move |_| restless(client.clone(), task.to_owned(), 603)));
    let all = async { tokio::join!(speak(red.clone()), speak(blue.clone()), watch("red"), watch("blue")) };
    let (_, _, reds, blues) = timeout(Duration::from_secs(60), all).await.expect("something hangs");
    for (task, run, pages) in [("red", red.run, reds), ("blue", blue.run, blues)] {
        for page in pages {
            assert!(page.events.iter().all(|event| event["task"] == task && event["run"] == run.to_string()));
            page.has_all_of(&home);
        }
    }
    // Those who stayed through it all are still found, each for its own task only, and nobody else is left.
    server.client.until("/status", |status| status["connections"] == 2).await;
    for _ in 0..5 {
        faithful_red.sees(red.thought("red").await).await;
        faithful_blue.sees(blue.thought("blue").await).await;
    }
    faithful_red.has_all_of(&home);
    faithful_blue.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_18_t_01_the_newest_socket_wins_within_one_page_load_and_other_tabs_stay() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut other = Page::open(&server.client, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    let mut old = page.socket.take().unwrap();
    page.connect().await;
    assert_eq!(old.close_code().await, Some(4514));
    let seq = play.thought("for the newest").await;
    page.sees(seq).await;
    other.sees(seq).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_19_one_live_two_while_away_three_four_and_the_end_live_again_in_order_and_once() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    page.sees(play.thought("1").await).await;
    page.cut();
    play.thought("2").await;
    assert_eq!(page.connect().await["missed"], 1);
    for text in ["3", "4"] {
        page.sees(play.thought(text).await).await;
    }
    page.sees(play.status(State::Succeeded).await).await;
    let shown: Vec<_> = page.events[2..].iter().map(|event| event["data"]["text"].as_str().unwrap()).collect();
    assert_eq!(shown, ["1", "2", "3", "4", "Succeeded"]);
    page.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_20_the_result_of_a_long_call_arrives_on_the_connection_that_is_there_when_it_ends() {
    let home = Home::new(NO_HEARTBEAT);
    let gate = Gate::new(home.path(), "gate");
    // It says nothing meanwhile: the result is the very next event.
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let mut page = Page::open(&server.client, "job").await;
    server.client.run("job").await;
    page.sees_that(|event| event["kind"] == "tool_use").await;
    page.cut();
    let back = page.connect().await;
    assert_eq!(back["runs"][0]["state"], "running");
    assert_eq!(server.client.get("/status").await.1["running"], 1, "and by now its socket sleeps");
    gate.open().await;
    let result = page.sees_that(|event| event["kind"] == "tool_result").await;
    assert_eq!((&result["data"]["ok"], &result["data"]["tool"]), (&json!(true), &json!("shell")));
    if !page.events.last().is_some_and(is_terminal) {
        page.sees_end().await;
    }
    page.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_21_an_idle_connection_gets_the_second_scheduled_run_and_a_refreshed_one_the_third() {
    // Half an hour of heartbeats, 20 s each, is 90 of them: here they come a thousand times as fast.
    let home = Home::new("[stream]\nheartbeat = \"20ms\"\nlife = \"10s\"")
        .task("job", "title = \"job\"\n[schedule]\nevery = \"1s\"\n[[steps]]\nname = \"only\"\nrun = \"true\"\n");
    let server = home.serve().await;
    let client = &server.client;
    let pause = async |word: &str| assert_eq!(client.post(&format!("/tasks/job/{word}"), json!({})).await.0, 200);
    let mut page = Page::open(client, "job").await;
    let first = page.sees_end().await;
    pause("pause").await;
    client.until("/tasks/job", |task| task["active_runs"] == 0).await;
    let head = client.get("/tasks/job").await.1["head"].as_u64().unwrap();
    page.sees(head).await;
    let socket = page.socket.as_mut().unwrap();
    for _ in 0..90 {
        let frame = socket.next_of_any().await.unwrap();
        assert_eq!(frame["type"], "heartbeat", "an idle task is silent: {frame}");
        socket.send(json!({ "type": "pong", "at": frame["at"] })).await;
    }
    pause("resume").await;
    let second = page.sees_end().await;
    page.cut();
    page.connect().await;
    let third = page.sees_end().await;
    let runs: BTreeSet<_> = [&first, &second, &third].map(|end| end["run"].to_string()).into();
    assert_eq!(runs.len(), 3);
    let triggers = client.get("/tasks/job/runs").await.1;
    assert!(triggers["items"].as_array().unwrap().iter().all(|run| is_by_the_clock(&run["trigger"])), "{triggers}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_22_the_events_of_the_tenth_run_come_once_and_not_ten_times() {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.serve().await;
    let mut page = Page::open(&server.client, "job").await;
    let mut counts = Vec::new();
    for _ in 0..10 {
        let before = page.events.len();
        let run = server.client.run("job").await;
        page.sees_that(|event| is_terminal(event) && event["run"] == run.as_str()).await;
        counts.push(page.events[before..].iter().filter(|event| event["kind"] == "tool_use").count());
    }
    assert_eq!(counts, [1; 10]);
    page.has_all_of(&home);
    server.stop().await;
}

/// User and system time of a process so far, in clock ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_26_twenty_watchers_of_a_silent_task_cost_no_work() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.spawn(&[]).await;
    let pages = join_all((0..20).map(|_| Page::open(&server.client, "job"))).await;
    // This row is about time: what is spent in it while nothing happens. What the server does beside that for itself,
    // a chore that is due, does not fall into each of the windows.
    let mut least = u64::MAX;
    for _ in 0..3 {
        let before = cpu_ticks(server.pid());
        tokio::time::sleep(Duration::from_secs(3)).await;
        least = least.min(cpu_ticks(server.pid()) - before);
        if least <= 6 {
            break;
        }
    }
    assert!(least <= 6, "{least} ticks of 10 ms in 3 s");
    drop(pages);
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_27_who_came_back_is_found_at_the_next_event_and_not_some_seconds_later() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    let mut waits = Vec::new();
    for _ in 0..20 {
        page.cut();
        page.connect().await;
        let begin = Instant::now();
        let seq = play.thought("now").await;
        page.sees(seq).await;
        waits.push(begin.elapsed());
    }
    waits.sort();
    assert!(waits[10] < Duration::from_millis(100), "{waits:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_29_with_nobody_there_a_task_runs_as_always_and_nothing_is_amiss_in_the_log() {
    keep_log();
    let home = Home::new("").shell_task("spk-29", "seq 100");
    let server = home.serve().await;
    let run = server.client.run("spk-29").await;
    assert_eq!(server.client.ended(&run).await["state"], "succeeded");
    assert!(logged(&["spk-29"]).iter().all(|line| line.level > Level::WARN), "{:?}", logged(&["spk-29"]));
    assert_eq!(logged(&["Sent ", "chat=spk-29"]).len(), 0, "nobody was sent anything");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_30_nothing_has_to_be_configured_to_come_back_to_a_running_task() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("tasks")).unwrap();
    let file = "title = \"Long task\"\n[[steps]]\nname = \"one\"\nrun = \"echo one; read _ < gate; echo two\"\n";
    std::fs::write(folder.path().join("tasks/long.toml"), file).unwrap();
    let gate = Gate::new(&folder.path().join("tasks"), "gate");
    let mut server = Command::new(REJOIN)
        .args(["serve", "--listen", "127.0.0.1:0"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut line).unwrap();
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(';').next()).unwrap().parse().unwrap();
    let token = std::fs::read_to_string(folder.path().join("data/token")).unwrap();
    let client = Client::new(address, token.trim());
    client.run("long").await;
    let mut page = Page::open(&client, "long").await;
    has_seen(&mut page, "tool_output").await;
    page.cut();
    page.connect().await;
    gate.open().await;
    assert_eq!(page.sees_end().await["data"]["state"], "succeeded");
    server.kill().unwrap();
    server.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_31_it_holds_for_scheduled_runs_and_for_runs_by_hand() {
    let home = Home::new(NO_HEARTBEAT);
    let gate = Gate::new(home.path(), "gate");
    let steps = format!("[[steps]]\nname = \"only\"\nrun = {}\n", json!(gate.wait()));
    let home = home
        .task("clockwork", &format!("title = \"clockwork\"\n[schedule]\nevery = \"1s\"\n{steps}"))
        .task("by-hand", &format!("title = \"by hand\"\n{steps}"));
    let server = home.serve().await;
    server.client.run("by-hand").await;
    for (task, by_the_clock) in [("clockwork", true), ("by-hand", false)] {
        let mut page = Page::open(&server.client, task).await;
        has_seen(&mut page, "tool_use").await;
        page.cut();
        page.connect().await;
        let trigger = &page.events[0]["data"]["trigger"];
        assert!(if by_the_clock { is_by_the_clock(trigger) } else { trigger == "hand" }, "{task}: {trigger}");
        if task == "clockwork" {
            assert_eq!(server.client.post("/tasks/clockwork/pause", json!({})).await.0, 200);
        }
        let run = page.events[0]["run"].as_str().unwrap().to_owned();
        // Whichever of the two waits at the gate first goes on: both are asked to.
        assert_eq!(server.client.post(&format!("/runs/{run}/stop"), json!({})).await.0, 202);
        let end = page.sees_end().await;
        assert_eq!((&end["run"], &end["data"]["state"]), (&json!(run), &json!("cancelled")));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_32_t_04_who_looks_for_the_first_time_in_the_middle_gets_what_was_and_the_next_event() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thought("nobody saw this live").await;
    let mut page = Page::open(&server.client, "job").await;
    assert_eq!(page.position, 3);
    page.sees(play.thought("live").await).await;
    page.sees(play.status(State::Succeeded).await).await;
    page.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_33_t_02_what_was_missed_comes_at_once_without_a_new_event() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    page.cut();
    play.thoughts(700).await;
    play.status(State::Succeeded).await;
    let subscribed = page.connect().await;
    assert_eq!(subscribed["missed"], 701);
    page.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_34_progress_is_there_for_who_comes_back_after_the_server_was_stopped_and_started() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    page.cut();
    play.thoughts(50).await;
    play.status(State::Failed).await;
    server.stop().await;
    // Nothing is left of it in memory.
    let server = home.serve().await;
    let mut later = Page::open(&server.client, "job").await;
    later.has_all_of(&home);
    assert_eq!(later.events.pop().unwrap()["data"]["state"], "failed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_35_several_watch_one_task_and_each_gets_everything() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut pages = Vec::new();
    for _ in 0..5 {
        pages.push(Page::open(&server.client, "job").await);
    }
    // By now their sockets sleep.
    assert_eq!(server.client.get("/status").await.1["connections"], 5);
    for text in ["one", "two", "three"] {
        let seq = play.thought(text).await;
        for page in &mut pages {
            page.sees(seq).await;
        }
    }
    pages.iter().for_each(|page| page.has_all_of(&home));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_36_under_load_many_events_come_in_one_frame_to_who_comes_back() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    page.cut();
    play.thoughts(1000).await;
    play.thought("the last").await;
    let before = page.frames;
    page.connect().await;
    let frames = page.frames - before;
    assert_eq!(page.position, 1003);
    // The first frames are small, as nothing is known of the line yet.
    assert!(frames <= 50, "{frames} frames for 1001 events");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_37_the_quality_of_a_connection_can_be_shown_from_welcome_and_heartbeats() {
    let home = Home::new("[stream]\nheartbeat = \"30ms\"\nlife = \"5s\"").shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut watcher = Watcher::open(server.client.address, Some(&home.token())).await;
    watcher.hello("tab", 1, json!([{ "sub": 3, "task": "job" }])).await;
    let welcome = watcher.next().await;
    assert_eq!((&welcome["protocol"], &welcome["heartbeat_ms"]), (&json!(1), &json!(30)));
    assert_eq!(welcome["limits"]["life_ms"], 5000);
    assert!(welcome["connection"].as_str().unwrap().starts_with("c-"));
    let status = server.client.get("/status").await.1;
    assert_eq!(
        (&welcome["server"]["boot"], &welcome["server"]["version"]),
        (&status["server"]["boot"], &status["version"])
    );
    assert_eq!(status["connections"], 1);
    watcher.until(|frame| frame["type"] == "caught_up").await;
    let last = play.thought("t").await;
    // Until the event was there, and ten heartbeats more.
    let (mut seen, mut beats, deadline) = (0, 0, Instant::now() + PATIENCE);
    while seen < last || beats < 10 {
        assert!(Instant::now() < deadline, "{beats} heartbeats, and of {last} only {seen}");
        let frame = watcher.next_of_any().await.unwrap();
        match events_of(&frame).last() {
            Some(event) => seen = event["seq"].as_u64().unwrap(),
            None => {
                assert_eq!(frame["type"], "heartbeat");
                let at = frame["at"].as_str().unwrap();
                assert!(at.ends_with('Z') && at.split_once('.').unwrap().1.len() == 7, "six digits: {at}");
                let heads = &frame["heads"]["3"];
                assert!(heads["head"].as_u64().unwrap() >= heads["sent"].as_u64().unwrap());
                if seen == last {
                    assert_eq!(*heads, json!({ "sent": last, "head": last }), "`sent` is what was sent");
                    beats += 1;
                }
                watcher.send(json!({ "type": "pong", "at": frame["at"] })).await;
            }
        }
    }
    assert_eq!(seen, last);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_39_the_words_of_a_run_are_as_promised() {
    keep_log();
    let title = "Ä".repeat(100);
    let task = |command: &str| format!("title = {title:?}\n[[steps]]\nname = \"only\"\nrun = {command:?}\n");
    let home = Home::new("").task("spk-39-good", &task("true")).task("spk-39-bad", &task("exit 3"));
    let server = home.serve().await;
    for (task, end) in [("spk-39-good", "succeeded"), ("spk-39-bad", "failed")] {
        let run = server.client.run(task).await;
        let run = server.client.ended(&run).await;
        assert_eq!(run["state"], end);
        let events = server.client.pages(task).await;
        let texts: Vec<_> = events
            .iter()
            .filter(|event| event["kind"] == "status")
            .map(|event| event["data"]["text"].as_str().unwrap())
            .collect();
        let words = match end {
            "succeeded" => format!("Task {task} completed successfully"),
            _ => format!("Task {task} failed: {}", run["reason"].as_str().unwrap()),
        };
        let executing = format!("Executing task: {}...", "Ä".repeat(80));
        assert_eq!(texts, ["Queued", &format!("Task {task}: Starting execution..."), &executing, &words]);
        let lines = logged(&["No WebSocket connection for user=", "task will run without real-time updates", task]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].level, Level::INFO);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_03_an_old_connection_that_closes_late_takes_nothing_from_the_new_one() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut old = Page::open(&server.client, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    let both = play.thought("both are there").await;
    page.sees(both).await;
    old.sees(both).await;
    reset(old.socket.take().unwrap());
    server.client.until("/status", |status| status["connections"] == 1).await;
    page.sees(play.thought("the new one is still there").await).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_26_two_adds_are_two_runs_and_a_key_makes_them_one() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let (one, two) = (server.client.run("job").await, server.client.run("job").await);
    assert_ne!(one, two);
    for run in [&one, &two] {
        assert_eq!(server.client.ended(run).await["state"], "succeeded");
    }
    let once = async || {
        let request = server.client.request(reqwest::Method::POST, "/tasks/job/runs").header("Idempotency-Key", "k");
        request.send().await.unwrap().json::<Value>().await.unwrap()["run"]["id"].clone()
    };
    assert_eq!(once().await, once().await);
    assert_eq!(server.client.get("/runs").await.1["items"].as_array().unwrap().len(), 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_27_the_events_of_a_second_run_carry_its_own_id_and_the_first_shows_none_of_them() {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.serve().await;
    let mut page = Page::open(&server.client, "job").await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let run = server.client.run("job").await;
        page.sees_that(|event| is_terminal(event) && event["run"] == run.as_str()).await;
        runs.push(run);
    }
    let ends: Vec<usize> = (0..page.events.len()).filter(|at| is_terminal(&page.events[*at])).collect();
    let of = |events: &[Value], run: &str| events.iter().all(|event| event["run"] == run);
    let (one, two) = page.events.split_at(ends[0] + 1);
    assert!(of(one, &runs[0]) && of(two, &runs[1]));
    for events in [one, two] {
        let said = events.iter().find(|event| event["kind"] == "tool_output").expect("each of them says something");
        assert_eq!(said["data"]["text"], "hello\n");
    }
    let (_, first) = server.client.get(&format!("/tasks/job/events?run={}", runs[0])).await;
    assert_eq!(seqs(first["items"].as_array().unwrap()), (1..=ends[0] as u64 + 1).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_29_who_was_away_at_the_end_learns_how_it_ended_however_long_ago() {
    let home = Home::new("").shell_task("job", "exit 7");
    let server = home.serve().await;
    let mut page = Page::open(&server.client, "job").await;
    page.cut();
    let run = server.client.run("job").await;
    server.client.ended(&run).await;
    page.connect().await;
    let end = page.events.last().unwrap();
    assert!(is_terminal(end) && end["data"]["state"] == "failed" && end["data"]["exit"] == 7, "{end}");
    // The events may go; the run and how it ended stay.
    forget_below(&server, "job", page.position + 1).await;
    let kept = server.client.get(&format!("/runs/{run}")).await.1;
    assert_eq!((&kept["state"], &kept["exit"], &kept["reason"]), (&json!("failed"), &json!(7), &end["data"]["reason"]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_30_a_large_event_is_cut_and_marked_and_its_whole_is_fetched() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    let text = "ä€".repeat(100_000);
    let seq = play.thought(&text).await;
    let event = page.sees(seq).await;
    assert!(event.to_string().len() <= 64 * 1024);
    let cut = event["data"]["cut"]["text"].as_u64().unwrap();
    let kept = event["data"]["text"].as_str().unwrap();
    assert!(cut > 400_000 && kept.starts_with("ä€ä") && kept.ends_with("ä€"), "{cut}");
    let (status, whole) = server.client.get(&format!("/runs/{}/events/{seq}/full", play.run)).await;
    assert_eq!((status, whole["data"]["text"].as_str().unwrap()), (200, text.as_str()));
    assert_eq!((&whole["seq"], &whole["at"]), (&event["seq"], &event["at"]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_36_a_task_that_nobody_watched_for_long_has_its_whole_history() {
    let home = Home::new("[stream]\nring_idle = \"1ms\"\nring_events = 16").shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(400).await;
    play.status(State::Succeeded).await;
    timeout(SOON, async {
        while play.topic.tail().ring.bytes() > 0 {
            server.server.api().publisher.tidy();
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("what nobody reads is let go of");
    let page = Page::open(&server.client, "job").await;
    assert_eq!(page.position, 403);
    page.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nam_10_nam_11_what_a_watcher_sees_is_in_the_file_already() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    for round in 0..30 {
        let body = Body::Thought { text: format!("{round}") };
        server.server.api().publisher.offer(&play.topic, Some(play.run), &body).await.unwrap();
        page.step().await;
        // Read by someone else, at the moment it was seen.
        let saved = home.logged_events("job");
        assert!(saved.last().unwrap().0 >= page.position, "seen before it was saved");
    }
    page.sees(play.status(State::Succeeded).await).await;
    page.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nam_43_the_ids_of_task_and_run_are_given_before_the_work_begins() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let server = home.serve().await;
    let steps = json!([{ "name": "one", "run": gate.wait() }]);
    let (status, made) = server.client.post("/tasks", json!({ "title": "Something new", "steps": steps })).await;
    assert_eq!(status, 201, "{made}");
    let (task, run) = (made["task"]["id"].as_str().unwrap(), made["run"]["id"].as_str().unwrap());
    assert!(made["url"].as_str().unwrap().ends_with(&format!("/tasks/{task}/runs/{run}")));
    let mut page = Page::open(&server.client, task).await;
    gate.open().await;
    if !page.events.iter().any(is_terminal) {
        page.sees_end().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn per_01_a_socket_that_closes_interrupts_nothing() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &format!("{}; echo done", gate.wait()));
    let server = home.serve().await;
    let run = server.client.run("job").await;
    let mut page = Page::open(&server.client, "job").await;
    page.socket.as_mut().unwrap().socket.close(None).await.unwrap();
    page.cut();
    server.client.until("/status", |status| status["connections"] == 0).await;
    gate.open().await;
    assert_eq!(server.client.ended(&run).await["state"], "succeeded");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn per_10_a_stop_works_after_a_reconnection_and_nothing_follows_it() {
    let home = Home::new("").shell_task("job", "sleep 600 & wait");
    let server = home.serve().await;
    let run = server.client.run("job").await;
    let mut page = Page::open(&server.client, "job").await;
    page.cut();
    page.connect().await;
    if !page.events.iter().any(|event| event["kind"] == "tool_use") {
        page.sees_that(|event| event["kind"] == "tool_use").await;
    }
    let (status, _) = server.client.post(&format!("/runs/{run}/stop"), json!({})).await;
    assert_eq!(status, 202);
    let end = page.sees_end().await;
    assert_eq!(end["data"]["state"], "cancelled");
    assert_eq!(
        server.client.post(&format!("/runs/{run}/stop"), json!({})).await.0,
        202,
        "asked again, it changes nothing"
    );
    let after = page.position;
    assert_eq!(server.client.get("/tasks/job").await.1["head"], after, "nothing follows the end");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn per_11_sockets_that_fail_leave_nothing_behind() {
    let home = stage("job");
    let server = home.serve().await;
    let publisher = server.server.api().publisher.clone();
    let task = "job".parse().unwrap();
    for _ in 0..20 {
        let mut page = Page::open(&server.client, "job").await;
        reset(page.socket.take().unwrap());
    }
    server.client.until("/status", |status| status["connections"] == 0).await;
    timeout(SOON, async {
        while publisher.connections().has_watchers(&task) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a watcher is left in the map");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_01_swe_03_swe_29_an_unknown_id_is_said_plainly_and_nothing_is_made_by_asking() {
    let home = Home::new("");
    let server = home.serve().await;
    let made = json!({ "title": "Gone", "steps": [{ "name": "one", "run": "true" }], "run": false });
    assert_eq!(server.client.post("/tasks", made).await.0, 201);
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "gone" }])).await;
    let position = watcher.until(|frame| frame["type"] == "caught_up").await[0]["gen"].clone();
    assert_eq!(server.client.delete("/tasks/gone").await.0, 204);
    assert_eq!(watcher.next().await, json!({ "type": "subscribed", "sub": 1, "task": "gone", "outcome": "not_found" }));
    // The socket stays, and the old id can be tried again.
    for sub in 2..4 {
        watcher.send(json!({ "type": "subscribe", "sub": sub, "task": "gone", "gen": position, "after": 5 })).await;
        assert_eq!(
            watcher.next().await,
            json!({ "type": "subscribed", "sub": sub, "task": "gone", "outcome": "not_found" })
        );
    }
    assert_eq!(server.client.get("/tasks").await.1["items"], json!([]), "asking made nothing");
    let (status, problem) = server.client.get("/tasks/gone").await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_42_errors_tell_nothing_of_the_inside() {
    let home = Home::new("");
    let server = home.serve().await;
    let inside = home.path().to_str().unwrap().to_owned();
    let tells_nothing = |path: &str, problem: &Value| {
        let text = problem.to_string();
        for word in [inside.as_str(), "src/", "rusqlite", "SQL", "panicked", ".rs", "no such", "malformed"] {
            assert!(!text.contains(word), "{path}: {text}");
        }
    };
    for path in [
        "/tasks/none",
        "/tasks/%2e%2e%2fetc",
        "/runs/none",
        "/runs/0192f0c1-0000-7000-8000-000000000001",
        "/runs/x/output/..%2f..%2ftoken",
        "/nothing",
    ] {
        let (status, problem) = server.client.get(path).await;
        assert_eq!(status, 404, "{path}: {problem}");
        tells_nothing(path, &problem);
    }
    // What broke inside is told by a number only, which the log has too.
    let broken = Broken::store_of(&home);
    let (status, problem) = server.client.get("/runs").await;
    assert_eq!((status, &problem["code"]), (500, &json!("internal")), "{problem}");
    tells_nothing("/runs", &problem);
    broken.mend();
    assert_eq!(server.client.get("/runs").await.0, 200);
    server.stop().await;
}
