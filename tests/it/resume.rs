//! Coming back: one test per row of the resume table, over real sockets, and what the frames say.

use std::collections::BTreeMap;

use rejoin::event::{Body, State};
use serde_json::{Value, json};

use crate::harness::{Gate, Home, InProcess, Watcher, events_of, is_terminal, seqs};
use crate::rows_stage::{NO_HEARTBEAT, Page, Play, forget_below, stage};

/// A home whose servers replay at most so many events.
fn replaying(events: u64) -> Home {
    Home::new(&format!("{NO_HEARTBEAT}\nreplay_events = {events}\nring_events = 32")).shell_task("job", "true")
}

async fn generation(server: &InProcess, task: &str) -> String {
    server.client.get(&format!("/tasks/{task}")).await.1["gen"].as_str().unwrap().to_owned()
}

/// All frames of one subscribe, up to and with `caught_up`.
async fn asked(server: &InProcess, position: Value) -> (Watcher, Vec<Value>) {
    let mut subscribe = json!({ "sub": 1, "task": "job" });
    for (name, value) in position.as_object().unwrap() {
        subscribe[name] = value.clone();
    }
    let mut watcher = server.client.watch(json!([subscribe])).await;
    let frames = watcher.until(|frame| frame["type"] == "caught_up").await;
    (watcher, frames)
}

fn types(frames: &[Value]) -> Vec<&str> {
    let mut types: Vec<_> = frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect();
    for name in &mut types {
        if *name == "event" {
            *name = "events";
        }
    }
    types.dedup();
    types
}

fn shown(frames: &[Value]) -> Vec<u64> {
    seqs(&frames.iter().flat_map(events_of).collect::<Vec<_>>())
}

/// What the events up to one give, folded by nobody but this test: runs with the members that matter, and the
/// calls that are open.
fn folded(home: &Home, through: u64) -> (Vec<Value>, Vec<Value>) {
    let mut runs: BTreeMap<String, Value> = BTreeMap::new();
    let mut calls: Vec<Value> = Vec::new();
    for (_, text) in home.logged_events("job").into_iter().filter(|(seq, _)| *seq <= through) {
        let event: Value = serde_json::from_str(&text).unwrap();
        let Some(id) = event["run"].as_str() else { continue };
        let data = &event["data"];
        if event["kind"] == "status" && data["state"] == "queued" {
            runs.insert(id.to_owned(), json!({ "id": id, "first_seq": event["seq"], "queued_at": event["at"], "started_at": null, "ended_at": null }));
        }
        let run = runs.get_mut(id).unwrap();
        run["last_seq"] = event["seq"].clone();
        match event["kind"].as_str().unwrap() {
            "status" => {
                run["text"] = data["text"].clone();
                let state = data["state"].as_str().unwrap();
                if state != "progress" {
                    run["state"] = if state == "started" { json!("running") } else { json!(state) };
                }
                if state == "started" {
                    run["started_at"] = event["at"].clone();
                }
                if is_terminal(&event) {
                    run["ended_at"] = event["at"].clone();
                    calls.retain(|call| call["run"] != id);
                }
            }
            "tool_use" => calls.push(event.clone()),
            "tool_result" => calls.retain(|call| call["run"] != id || call["data"]["call"] != data["call"]),
            _ => {}
        }
    }
    (runs.into_values().collect(), calls)
}

/// The state of a snapshot is exactly what the events up to its number give.
fn is_the_fold(home: &Home, snapshot: &Value) {
    let (runs, calls) = folded(home, snapshot["seq"].as_u64().unwrap());
    let given = snapshot["state"]["runs"].as_array().unwrap();
    assert_eq!(given.len(), runs.len(), "{given:?}");
    for (given, run) in given.iter().zip(&runs) {
        for (name, value) in run.as_object().unwrap() {
            assert_eq!(&given[name], value, "{name} of {given}");
        }
    }
    assert_eq!(snapshot["state"]["calls"], json!(calls));
    assert_eq!(snapshot["state"]["task"]["id"], "job");
    assert!(snapshot["truncated"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_01_a_watcher_that_comes_back_gets_the_next_event_of_the_same_run() {
    let home = Home::new(NO_HEARTBEAT);
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &format!("echo one; {}; echo two", gate.wait()));
    let server = home.serve().await;
    let run = server.client.run("job").await;
    let mut page = Page::open(&server.client, "job").await;
    if !page.events.iter().any(|event| event["kind"] == "tool_output") {
        page.sees_that(|event| event["kind"] == "tool_output").await;
    }
    let last = page.position;
    page.cut();
    assert_eq!(page.connect().await["from"], last + 1);
    gate.open().await;
    let end = page.sees_end().await;
    assert_eq!((&end["run"], &page.events[usize::try_from(last).unwrap()]["run"]), (&json!(run), &json!(run)));
    page.has_all_of(&home);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_not_there_is_not_found_and_ends_the_sub() {
    let home = Home::new("");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([{ "sub": 7, "task": "nothing" }])).await;
    assert_eq!(
        watcher.next().await,
        json!({ "type": "subscribed", "sub": 7, "task": "nothing", "outcome": "not_found" })
    );
    // What is no task id at all names no task either, and the number is free again.
    for (sub, task) in [(7, "Not An Id"), (8, "../x"), (9, "")] {
        watcher.send(json!({ "type": "subscribe", "sub": sub, "task": task, "gen": "x", "after": 9 })).await;
        assert_eq!(
            watcher.next().await,
            json!({ "type": "subscribed", "sub": sub, "task": task, "outcome": "not_found" })
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_07_after_is_the_last_event_seen_and_what_follows_it_comes_first() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(8).await;
    play.thought("the tenth is saved, and this one").await;
    let generation = generation(&server, "job").await;
    for after in [1, 5, 10] {
        let (_, frames) = asked(&server, json!({ "gen": generation, "after": after })).await;
        assert_eq!(types(&frames), ["subscribed", "events", "caught_up"]);
        let subscribed = &frames[0];
        assert_eq!(subscribed["outcome"], "resumed");
        assert_eq!(
            (&subscribed["from"], &subscribed["head"], &subscribed["missed"]),
            (&json!(after + 1), &json!(11), &json!(11 - after))
        );
        assert_eq!(subscribed["gen"], generation);
        assert_eq!(shown(&frames), (after + 1..=11).collect::<Vec<_>>());
        assert_eq!(frames.last().unwrap(), &json!({ "type": "caught_up", "sub": 1, "seq": 11 }));
        let runs = subscribed["runs"].as_array().unwrap();
        assert_eq!((runs.len(), &runs[0]["id"], &runs[0]["state"]), (1, &json!(play.run), &json!("running")));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_everything_is_resumed_with_nothing_missed() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let generation = generation(&server, "job").await;
    let (mut watcher, frames) = asked(&server, json!({ "gen": generation, "after": 2 })).await;
    assert_eq!(types(&frames), ["subscribed", "caught_up"]);
    assert_eq!((&frames[0]["from"], &frames[0]["head"], &frames[0]["missed"]), (&json!(3), &json!(2), &json!(0)));
    play.thought("live").await;
    assert_eq!(events_of(&watcher.next().await)[0]["seq"], 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_events_is_resumed_and_caught_up_at_once() {
    let home = stage("job");
    let server = home.serve().await;
    let (_, frames) = asked(&server, json!({})).await;
    assert_eq!(types(&frames), ["subscribed", "caught_up"]);
    assert_eq!((&frames[0]["from"], &frames[0]["head"], &frames[0]["missed"]), (&json!(1), &json!(0), &json!(0)));
    assert_eq!(frames[1]["seq"], 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_is_a_position_in_every_log_whatever_the_gen() {
    let home = stage("job");
    let server = home.serve().await;
    Play::begin(&server, "job").await.thought("t").await;
    for position in [
        json!({}),
        json!({ "after": 0 }),
        json!({ "gen": "0000000000000001", "after": 0 }),
        json!({ "gen": "no gen", "after": 0 }),
    ] {
        let (_, frames) = asked(&server, position).await;
        assert_eq!(frames[0]["outcome"], "resumed");
        assert_eq!(shown(&frames), [1, 2, 3]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_resumes_from_the_oldest_event_that_is_kept() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for _ in 0..8 {
        play.thought("each is a row of its own").await;
    }
    forget_below(&server, "job", 6).await;
    let (_, frames) = asked(&server, json!({})).await;
    assert_eq!(
        (&frames[0]["outcome"], &frames[0]["from"], &frames[0]["missed"]),
        (&json!("resumed"), &json!(6), &json!(5))
    );
    assert_eq!(shown(&frames), [6, 7, 8, 9, 10]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_replay_is_inclusive_and_one_more_is_too_far() {
    let home = replaying(100);
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(148).await;
    assert_eq!(play.thought("the last").await, 151);
    let generation = generation(&server, "job").await;
    let (_, frames) = asked(&server, json!({ "gen": generation, "after": 51 })).await;
    assert_eq!((&frames[0]["outcome"], &frames[0]["missed"]), (&json!("resumed"), &json!(100)));
    assert_eq!(shown(&frames), (52..=151).collect::<Vec<_>>());

    let (mut watcher, frames) = asked(&server, json!({ "gen": generation, "after": 50 })).await;
    assert_eq!(types(&frames), ["subscribed", "reset", "snapshot", "caught_up"]);
    let [subscribed, reset, snapshot, caught_up] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(
        (&subscribed["outcome"], &subscribed["from"], &subscribed["missed"]),
        (&json!("reset"), &json!(152), &Value::Null)
    );
    assert_eq!(
        reset,
        &json!({ "type": "reset", "sub": 1, "gen": generation, "why": "too_far", "have": 50, "oldest": 1, "head": 151 })
    );
    assert_eq!((&snapshot["seq"], &snapshot["head"], &snapshot["gen"]), (&json!(151), &json!(151), &json!(generation)));
    assert_eq!(caught_up["seq"], 151);
    is_the_fold(&home, snapshot);
    play.thought("live").await;
    assert_eq!(events_of(&watcher.next().await)[0]["seq"], 152);

    // The range between is paged over HTTP, with the same cursor.
    let (_, page) = server.client.get(&format!("/tasks/job/events?gen={generation}&after=50&limit=500")).await;
    assert_eq!(seqs(page["items"].as_array().unwrap()), (51..=152).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_limited_in_bytes_too() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nreplay_bytes = \"64 KiB\"\nring_bytes = \"32 KiB\""))
        .shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for _ in 0..10 {
        play.thought(&"x".repeat(10_000)).await;
    }
    let generation = generation(&server, "job").await;
    let (_, frames) = asked(&server, json!({ "gen": generation, "after": 6 })).await;
    assert_eq!(frames[0]["outcome"], "resumed");
    assert_eq!(shown(&frames), (7..=12).collect::<Vec<_>>());
    let (_, frames) = asked(&server, json!({ "gen": generation, "after": 4 })).await;
    assert_eq!(
        (types(&frames), &frames[1]["why"]),
        (vec!["subscribed", "reset", "snapshot", "caught_up"], &json!("too_far"))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_who_cannot_have_everything_starts_before_the_oldest_run_that_is_not_over() {
    let home = replaying(100);
    let server = home.serve().await;
    let first = Play::begin(&server, "job").await;
    first.thoughts(200).await;
    first.tool_use("never-closed").await;
    first.status(State::Failed).await;
    let open = Play::begin(&server, "job").await;
    open.tool_use("c1").await;
    let later = Play::begin(&server, "job").await;
    later.status(State::Succeeded).await;
    let start =
        home.logged_events("job").iter().filter(|(_, text)| text.contains(r#""state":"queued""#)).nth(1).unwrap().0;
    let (_, frames) = asked(&server, json!({ "after": 0 })).await;
    assert_eq!(types(&frames), ["subscribed", "reset", "snapshot", "events", "caught_up"]);
    assert_eq!((&frames[0]["outcome"], &frames[0]["from"]), (&json!("reset"), &json!(start)));
    assert_eq!(frames[1]["why"], "from_start");
    let snapshot = &frames[2];
    assert_eq!(snapshot["seq"], start - 1);
    is_the_fold(&home, snapshot);
    assert_eq!(shown(&frames), (start..=later.head()).collect::<Vec<_>>());
    assert_eq!(frames[0]["runs"].as_array().unwrap().len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_run_under_way_such_a_newcomer_starts_before_the_last_run() {
    let home = replaying(100);
    let server = home.serve().await;
    let first = Play::begin(&server, "job").await;
    first.thoughts(200).await;
    let end = first.status(State::Failed).await;
    let second = Play::begin(&server, "job").await;
    second.tool_use("c1").await;
    second.status(State::Succeeded).await;
    let (_, frames) = asked(&server, json!({})).await;
    assert_eq!(types(&frames), ["subscribed", "reset", "snapshot", "events", "caught_up"]);
    assert_eq!(frames[2]["seq"], end);
    is_the_fold(&home, &frames[2]);
    assert_eq!(shown(&frames), (end + 1..=second.head()).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_where_even_that_is_too_much_at_the_head() {
    let home = replaying(100);
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(150).await;
    play.tool_use("open").await;
    let (_, frames) = asked(&server, json!({})).await;
    assert_eq!(types(&frames), ["subscribed", "reset", "snapshot", "caught_up"]);
    assert_eq!((&frames[1]["why"], &frames[2]["seq"]), (&json!("from_start"), &json!(play.head())));
    is_the_fold(&home, &frames[2]);
    assert_eq!(frames[2]["state"]["calls"][0]["data"]["call"], "open");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_in_another_log_or_in_none_is_reset_for_its_generation() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thought("t").await;
    for position in [
        json!({ "after": 2 }),
        json!({ "gen": "0000000000000001", "after": 2 }),
        json!({ "gen": "0000000000000001", "after": 99 }),
    ] {
        let (_, frames) = asked(&server, position.clone()).await;
        assert_eq!(types(&frames), ["subscribed", "reset", "snapshot", "caught_up"]);
        assert_eq!((&frames[1]["why"], &frames[1]["have"]), (&json!("generation"), &position["after"]));
        assert_eq!(frames[2]["seq"], 3);
        is_the_fold(&home, &frames[2]);
    }
    assert_eq!(
        generation(&server, "job").await,
        server.client.get("/tasks/job").await.1["gen"],
        "that changes nothing"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_09_a_position_beyond_the_end_gives_the_log_a_new_name_and_tells_the_others() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let before = generation(&server, "job").await;
    let (mut other, _) = asked(&server, json!({ "gen": before, "after": 1 })).await;
    let (mut watcher, frames) = asked(&server, json!({ "gen": before, "after": 3 })).await;
    let after = generation(&server, "job").await;
    assert_ne!(before, after);
    assert_eq!(types(&frames), ["subscribed", "reset", "snapshot", "caught_up"]);
    assert_eq!((&frames[1]["why"], &frames[1]["have"]), (&json!("future"), &json!(3)));
    for frame in &frames[..3] {
        assert_eq!(frame["gen"], after);
    }
    is_the_fold(&home, &frames[2]);
    // A second `subscribed` on a sub that is open: its log was replaced.
    let told = other.until(|frame| frame["type"] == "caught_up").await;
    assert_eq!(types(&told), ["subscribed", "reset", "snapshot", "caught_up"]);
    assert_eq!(
        (&told[0]["outcome"], &told[0]["gen"], &told[1]["why"], &told[1]["have"]),
        (&json!("reset"), &json!(after), &json!("generation"), &json!(2))
    );
    // Only the first cursor that names the log in force renews it.
    let (_, frames) = asked(&server, json!({ "gen": before, "after": 3 })).await;
    assert_eq!(frames[1]["why"], "generation");
    assert_eq!(generation(&server, "job").await, after);
    let seq = play.thought("both go on").await;
    for watcher in [&mut other, &mut watcher] {
        assert_eq!(events_of(&watcher.next().await)[0]["seq"], seq);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_08_a_position_that_retention_took_is_reset_and_the_one_before_the_oldest_is_not() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for _ in 0..8 {
        play.thought("a row").await;
    }
    forget_below(&server, "job", 6).await;
    let generation = generation(&server, "job").await;
    let (_, frames) = asked(&server, json!({ "gen": generation, "after": 5 })).await;
    assert_eq!((&frames[0]["outcome"], &frames[0]["from"]), (&json!("resumed"), &json!(6)));
    let (_, frames) = asked(&server, json!({ "gen": generation, "after": 4 })).await;
    assert_eq!(types(&frames), ["subscribed", "reset", "snapshot", "caught_up"]);
    let reset = &frames[1];
    assert_eq!(
        (&reset["why"], &reset["have"], &reset["oldest"], &reset["head"]),
        (&json!("retention"), &json!(4), &json!(6), &json!(10))
    );
    assert_eq!((&frames[2]["seq"], &frames[2]["state"]["runs"][0]["first_seq"]), (&json!(10), &json!(1)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_empty_after_retention_is_resumed_at_its_end() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.status(State::Succeeded).await;
    forget_below(&server, "job", 4).await;
    let generation = generation(&server, "job").await;
    for position in [json!({}), json!({ "gen": generation, "after": 3 })] {
        let (_, frames) = asked(&server, position).await;
        assert_eq!(types(&frames), ["subscribed", "caught_up"]);
        assert_eq!((&frames[0]["from"], &frames[0]["head"], &frames[0]["missed"]), (&json!(4), &json!(3), &json!(0)));
    }
    let (_, page) = server.client.get("/tasks/job/events").await;
    assert_eq!(
        (&page["items"], &page["oldest"], &page["head"], &page["more"]),
        (&json!([]), &json!(4), &json!(3), &json!(false))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_reader_that_stands_before_what_retention_takes_goes_on_without_a_word() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut page = Page::open(&server.client, "job").await;
    page.sees(play.thought("seen").await).await;
    forget_below(&server, "job", 4).await;
    page.sees(play.thought("next").await).await;
    assert_eq!(page.position, 4);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_that_is_open_when_its_task_is_deleted_ends_as_not_found_and_the_socket_stays() {
    let home = Home::new(NO_HEARTBEAT).shell_task("other", "true");
    let server = home.serve().await;
    let steps = json!([{ "name": "one", "run": "sleep 600" }]);
    let (status, made) = server.client.post("/tasks", json!({ "title": "job", "steps": steps })).await;
    assert_eq!((status, &made["task"]["id"]), (201, &json!("job")));
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }, { "sub": 2, "task": "other" }])).await;
    watcher.until(|frame| events_of(frame).iter().any(|event| event["kind"] == "tool_use")).await;
    assert_eq!(server.client.delete("/tasks/job").await.0, 409);
    assert_eq!(server.client.delete("/tasks/job?stop=true").await.0, 204);
    let last = watcher.until(|frame| frame["type"] == "subscribed" && frame["sub"] == 1).await;
    assert_eq!(last.last().unwrap(), &json!({ "type": "subscribed", "sub": 1, "task": "job", "outcome": "not_found" }));
    assert!(last.iter().flat_map(events_of).any(|event| is_terminal(&event)), "its end is told before it goes");
    // The same id again is another task, with another log.
    let made =
        server.client.post("/tasks", json!({ "title": "job", "steps": [{ "name": "one", "run": "true" }] })).await.1;
    watcher.send(json!({ "type": "subscribe", "sub": 3, "task": "job", "gen": "0000000000000001", "after": 4 })).await;
    let frames = watcher.until(|frame| frame["type"] == "snapshot").await;
    assert!(
        frames.iter().any(|frame| frame["why"] == "generation" && frame["gen"] == made["task"]["gen"]),
        "{frames:?}"
    );
    server.client.run("other").await;
    let others = watcher
        .until(|frame| events_of(frame).iter().any(|event| is_terminal(event) && event["task"] == "other"))
        .await;
    assert!(others.iter().all(|frame| frame["sub"] == 2 || frame["sub"] == 3));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_subscribe_for_a_task_takes_the_place_of_the_older_one() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let (mut watcher, _) = asked(&server, json!({})).await;
    watcher.send(json!({ "type": "subscribe", "sub": 2, "task": "job" })).await;
    assert_eq!(shown(&watcher.until(|frame| frame["type"] == "caught_up").await), [1, 2]);
    let seq = play.thought("once").await;
    let frame = watcher.next().await;
    assert_eq!((&frame["sub"], &events_of(&frame)[0]["seq"]), (&json!(2), &json!(seq)));
    let seq = play.thought("and once").await;
    assert_eq!(events_of(&watcher.next().await)[0]["seq"], seq);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_has_at_most_256_kib_and_says_when_it_had_to_cut() {
    let home = replaying(10);
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for call in 0..12 {
        let input = json!({ "command": "x".repeat(50_000) });
        play.say(Body::ToolUse { call: format!("c{call}"), tool: "shell".to_owned(), input }).await;
    }
    let (_, frames) = asked(&server, json!({})).await;
    let snapshot = frames.iter().find(|frame| frame["type"] == "snapshot").unwrap();
    assert!(snapshot.to_string().len() <= 256 * 1024);
    assert_eq!(snapshot["truncated"], true);
    let calls = snapshot["state"]["calls"].as_array().unwrap();
    assert_eq!(calls.len(), 12, "every call is named");
    assert!(calls.iter().any(|call| call["data"]["input"] == json!({})));
    assert!(calls.iter().any(|call| call["data"]["input"] != json!({})), "no more is cut than must be");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_in_memory_comes_from_the_file_in_the_same_frames() {
    let home = replaying(20_000);
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(3000).await;
    play.status(State::Succeeded).await;
    let generation = generation(&server, "job").await;
    let (_, frames) = asked(&server, json!({ "gen": generation, "after": 7 })).await;
    assert_eq!(types(&frames), ["subscribed", "events", "caught_up"]);
    assert_eq!(shown(&frames), (8..=3003).collect::<Vec<_>>());
    for frame in frames.iter().filter(|frame| frame["type"] == "events") {
        let items = frame["items"].as_array().unwrap();
        assert!(items.len() <= 256 && frame.to_string().len() <= 33 * 1024);
        assert_eq!((&frame["first"], &frame["last"]), (&items[0]["seq"], &items.last().unwrap()["seq"]));
    }
    server.stop().await;
}
