//! The frames of the live protocol as a client sees them: what is answered to what, and with which code a socket ends.

use std::time::Duration;

use futures_util::SinkExt;
use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use rejoin::event::State;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::harness::{Gate, Home, InProcess, Watcher, events_of, is_terminal};
use crate::rows_stage::{NO_HEARTBEAT, Page, Play, SOON, stage};

async fn open(server: &InProcess) -> Watcher {
    Watcher::open(server.client.address, Some(server.client.token())).await
}

/// A socket of a named client; what came first: the welcome, or the close.
async fn enter(server: &InProcess, client: &str, attempt: u64) -> Result<(Watcher, Value), Option<CloseFrame>> {
    let mut watcher = open(server).await;
    watcher.hello(client, attempt, json!([])).await;
    let first = watcher.next_of_any().await?;
    assert_eq!(first["type"], "welcome");
    Ok((watcher, first))
}

/// Reads to the end of a socket; gives the code and the reason.
async fn closed(watcher: &mut Watcher) -> (u16, Value) {
    loop {
        match watcher.next_of_any().await {
            Ok(_) => {}
            Err(Some(close)) => {
                assert!(close.reason.len() <= 123);
                let reason = serde_json::from_str(&close.reason).unwrap_or(Value::Null);
                return (close.code.into(), reason);
            }
            Err(None) => panic!("closed without a word"),
        }
    }
}

async fn say(watcher: &mut Watcher, text: impl Into<String>) {
    watcher.socket.send(Message::text(text.into())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_answered_and_the_fifth_ends_the_socket() {
    let home = Home::new("");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    let bad = ["no json", "{}", r#"{"type":"unknown"}"#, r#"{"type":"subscribe","sub":"one","task":"x"}"#];
    for text in bad {
        say(&mut watcher, text).await;
        let error = watcher.next().await;
        assert_eq!(
            (&error["type"], &error["code"], &error["retryable"]),
            (&json!("error"), &json!("bad_frame"), &json!(false)),
            "{text}"
        );
        assert!(error["message"].is_string());
    }
    // Good ones in between forgive nothing and are served all the same.
    watcher.send(json!({ "type": "subscribe", "sub": 1, "task": "none" })).await;
    assert_eq!(watcher.next().await["outcome"], "not_found");
    say(&mut watcher, "[]").await;
    let (code, reason) = closed(&mut watcher).await;
    assert_eq!((code, &reason["code"]), (4501, &json!("bad_frames")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_bad_frame_is_named() {
    let home = Home::new("");
    let server = home.serve().await;
    for text in [
        r#"{"type":"subscribe","sub":1}"#,
        r#"{"type":"subscribe","sub":-1,"task":"x"}"#,
        r#"{"type":"subscribe","sub":0,"task":"x"}"#,
        r#"{"type":"subscribe","sub":2147483648,"task":"x"}"#,
        r#"{"type":"subscribe","sub":1.5,"task":"x"}"#,
        r#"{"type":"subscribe","sub":1,"task":"x","after":-1}"#,
        r#"{"type":"unsubscribe"}"#,
        r#"{"type":"hello","protocol":1,"client":"again"}"#,
        r#""text""#,
        r#"["subscribe",1,"x"]"#,
        "",
    ] {
        let mut watcher = server.client.watch(json!([])).await;
        say(&mut watcher, text).await;
        assert_eq!(watcher.next().await["code"], "bad_frame", "{text}");
    }
    let mut watcher = server.client.watch(json!([])).await;
    watcher.socket.send(Message::binary(vec![1_u8, 2, 3])).await.unwrap();
    assert_eq!(watcher.next().await["code"], "bad_frame", "a frame is a text message");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_64_kib_is_an_error_and_one_over_256_kib_ends_the_socket() {
    let home = Home::new("");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    let sized = |bytes: usize| {
        let frame = r#"{"type":"pong","at":""}"#;
        frame.replace("\"\"", &format!("\"{}\"", "x".repeat(bytes - frame.len())))
    };
    say(&mut watcher, sized(64 * 1024)).await;
    watcher.send(json!({ "type": "subscribe", "sub": 1, "task": "none" })).await;
    assert_eq!(watcher.next().await["outcome"], "not_found", "64 KiB are allowed");
    for bytes in [64 * 1024 + 1, 256 * 1024] {
        say(&mut watcher, sized(bytes)).await;
        assert_eq!(watcher.next().await["code"], "too_large");
    }
    say(&mut watcher, sized(256 * 1024 + 1)).await;
    assert_eq!(closed(&mut watcher).await.0, 1009);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_rules_of_websockets_is_told_so_and_ends_the_socket() {
    let home = Home::new("");
    let server = home.serve().await;
    let long_ping = [&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], &[b'x'; 126][..]].concat();
    let broken: [(&str, &[u8], u16); 6] = [
        ("no such opcode", &[0x83, 0x80, 0, 0, 0, 0], 1002),
        ("a reserved bit", &[0xf1, 0x80, 0, 0, 0, 0], 1002),
        ("not masked", &[0x81, 1, b'x'], 1002),
        ("goes on with nothing", &[0x80, 0x81, 0, 0, 0, 0, b'x'], 1002),
        ("a long ping", &long_ping, 1002),
        ("not UTF-8", &[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe], 1007),
    ];
    for (what, bytes, code) in broken {
        let mut greeted = server.client.watch(json!([])).await;
        let mut silent = open(&server).await;
        for watcher in [&mut greeted, &mut silent] {
            watcher.socket.get_mut().write_all(bytes).await.unwrap();
            assert_eq!(closed(watcher).await.0, code, "{what}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_in_a_frame_is_ignored() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut watcher = open(&server).await;
    watcher
        .send(json!({ "type": "hello", "protocol": 1, "client": "c", "colour": "red",
                      "subscribe": [{ "sub": 1, "task": "job", "shade": { "of": "grey" } }] }))
        .await;
    assert_eq!(watcher.next().await["type"], "welcome");
    watcher.until(|frame| frame["type"] == "caught_up").await;
    watcher.send(json!({ "type": "pong", "at": 7, "more": [] })).await;
    watcher.send(json!({ "type": "unsubscribe", "sub": 99, "more": null })).await;
    let seq = play.thought("still there").await;
    assert_eq!(events_of(&watcher.next().await)[0]["seq"], seq);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_frame_is_a_hello_of_this_protocol() {
    let home = Home::new("");
    let server = home.serve().await;
    for (first, code) in [
        (json!({ "type": "pong" }), 4501),
        (json!({ "type": "subscribe", "sub": 1, "task": "x" }), 4501),
        (json!({ "type": "hello", "protocol": 1 }), 4501),
        (json!({ "type": "hello", "protocol": 2, "client": "c" }), 4502),
        (json!({ "type": "hello", "protocol": 0, "client": "c" }), 4502),
    ] {
        let mut watcher = open(&server).await;
        watcher.send(first.clone()).await;
        assert_eq!(closed(&mut watcher).await.0, code, "{first}");
    }
    let mut watcher = open(&server).await;
    watcher.socket.send(Message::binary(vec![0_u8])).await.unwrap();
    assert_eq!(closed(&mut watcher).await.0, 4501);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_no_hello_is_closed_and_may_come_back() {
    let home = Home::new("[stream]\nhello_deadline = \"3s\"\nunauthenticated = 2");
    let server = home.serve().await;
    let unknown = || Watcher::open(server.client.address, None);
    let mut silent = [unknown().await, unknown().await];
    // Both places are taken until the two are closed.
    let mut third = unknown().await;
    let (code, reason) = closed(&mut third).await;
    assert!(code == 4104 || code == 4012, "{code}");
    assert!(code == 4012 || reason["retry_ms"].is_u64());
    for watcher in &mut silent {
        let (code, reason) = closed(watcher).await;
        assert_eq!((code, &reason["code"]), (4012, &json!("no_life")));
    }
    assert!(enter(&server, "c", 1).await.is_ok());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_a_credential_is_not_turned_away_by_those_who_come_back_with_it() {
    let home = Home::new("[stream]\nunauthenticated = 1\nconnections = 3");
    let server = home.serve().await;
    // All are there before the first says hello, as after a restart of the server.
    let mut back = [open(&server).await, open(&server).await, open(&server).await];
    let mut stranger = Watcher::open(server.client.address, None).await;
    for (index, watcher) in back.iter_mut().enumerate() {
        watcher.hello(&format!("watcher-{index}"), 1, json!([])).await;
        assert_eq!(watcher.next().await["type"], "welcome");
    }
    let mut second = Watcher::open(server.client.address, None).await;
    assert_eq!(closed(&mut second).await.0, 4104, "of those without one there is one at most");
    stranger.hello("stranger", 1, json!([])).await;
    assert_eq!(closed(&mut stranger).await.0, 4500, "there was room for one without, and it was heard");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_24_who_falls_silent_is_taken_for_dead() {
    let home = Home::new("[stream]\nheartbeat = \"200ms\"\nlife = \"3s\"");
    let server = home.serve().await;
    let (mut alive, _) = enter(&server, "alive", 1).await.unwrap();
    let (mut silent, _) = enter(&server, "silent", 1).await.unwrap();
    let silence = tokio::spawn(async move { closed(&mut silent).await });
    // As long as it takes until the other is taken for dead, and on: then it has lived longer than a life.
    let (mut beats_after, deadline) = (0, Instant::now() + SOON);
    while beats_after < 4 {
        assert!(Instant::now() < deadline, "the other lives on");
        let beat = alive.next_of_any().await.unwrap();
        assert_eq!(beat["type"], "heartbeat");
        assert_eq!(beat["heads"], json!({}), "{{}} before any");
        alive.send(json!({ "type": "pong", "at": beat["at"] })).await;
        beats_after += u32::from(silence.is_finished());
    }
    let (code, reason) = silence.await.unwrap();
    assert_eq!((code, &reason["code"]), (4012, &json!("no_life")));
    let (_, welcome) = enter(&server, "silent", 2).await.unwrap();
    assert_eq!(welcome["last_close"], "no_life", "it is told why it was closed last");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stood_still_hears_what_came_meanwhile_before_it_takes_anybody_for_dead() {
    let home = Home::new("[stream]\nheartbeat = \"1s\"\nlife = \"3s\"");
    let mut server = home.spawn(&[]).await;
    let mut watcher = server.client.watch(json!([])).await;
    let pid = nix::unistd::Pid::from_raw(server.pid().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    watcher.send(json!({ "type": "pong" })).await;
    // Longer than the life that is left: it is the time that passes which is tried here.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    // One is due already; those behind it come after it was looked at again.
    for _ in 0..3 {
        let beat = watcher.next_of_any().await.expect("it said that it is there");
        assert_eq!(beat["type"], "heartbeat");
        watcher.send(json!({ "type": "pong", "at": beat["at"] })).await;
    }
    assert!(server.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_welcome_says_what_holds() {
    let home = Home::new(
        "[stream]\nheartbeat = \"7s\"\nlife = \"12s\"\nsubscriptions = 5\nreplay_events = 77\nreplay_bytes = \"1 MiB\"",
    );
    let server = home.serve().await;
    let (_, welcome) = enter(&server, "c", 1).await.unwrap();
    assert_eq!(
        (&welcome["protocol"], &welcome["heartbeat_ms"], &welcome["last_close"]),
        (&json!(1), &json!(7000), &Value::Null)
    );
    assert_eq!(
        welcome["limits"],
        json!({ "frame_bytes": 65536, "subscriptions": 5, "replay_events": 77, "replay_bytes": 1 << 20, "life_ms": 12000 })
    );
    let (_, other) = enter(&server, "d", 1).await.unwrap();
    assert_ne!(welcome["connection"], other["connection"]);
    assert_eq!(welcome["server"], other["server"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_with_an_older_attempt_is_closed_itself_and_an_equal_or_newer_one_takes_over() {
    let home = Home::new("");
    let server = home.serve().await;
    let (mut third, _) = enter(&server, "tab", 3).await.unwrap();
    let late = enter(&server, "tab", 2).await.err().flatten().expect("the late one is closed");
    assert_eq!((u16::from(late.code), &*late.reason), (4514, r#"{"code":"replaced"}"#));
    let (mut again, _) = enter(&server, "tab", 3).await.unwrap();
    assert_eq!(closed(&mut third).await.0, 4514);
    let (mut fourth, welcome) = enter(&server, "tab", 4).await.unwrap();
    assert_eq!(closed(&mut again).await.0, 4514);
    assert_eq!(welcome["last_close"], "replaced");
    // Another client is another client.
    let (_other, _) = enter(&server, "other", 1).await.unwrap();
    fourth.send(json!({ "type": "subscribe", "sub": 1, "task": "none" })).await;
    assert_eq!(fourth.next().await["outcome"], "not_found");
    // Once it is gone, a lower attempt is no older one.
    drop(fourth);
    server.client.until("/status", |status| status["connections"].as_u64() <= Some(1)).await;
    assert!(enter(&server, "tab", 1).await.is_ok());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_at_most_so_many_sockets_in_all_and_of_one_credential() {
    for limit in ["connections = 2", "connections_per_credential = 2"] {
        let home = Home::new(&format!("[stream]\n{limit}"));
        let server = home.serve().await;
        let (first, _) = enter(&server, "one", 1).await.unwrap();
        let (_second, _) = enter(&server, "two", 1).await.unwrap();
        let close = enter(&server, "three", 1).await.err().flatten().expect("one too many");
        assert_eq!(u16::from(close.code), 4104);
        assert!(close.reason.contains("retry_ms"));
        // Who comes back takes its own place.
        let (_again, _) = enter(&server, "two", 2).await.unwrap();
        drop(first);
        server.client.until("/status", |status| status["connections"] == 1).await;
        assert!(enter(&server, "three", 2).await.is_ok());
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_too_much_is_closed_and_may_come_back_later() {
    let home = Home::new(NO_HEARTBEAT);
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    for _ in 0..2001 {
        if watcher.socket.feed(Message::text(r#"{"type":"pong"}"#)).await.is_err() {
            break;
        }
    }
    let _ = watcher.socket.flush().await;
    let (code, reason) = closed(&mut watcher).await;
    assert_eq!((code, &reason["code"]), (4013, &json!("too_many_requests")));
    assert!(reason["retry_ms"].is_u64());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_in_use_is_refused_and_one_that_ended_is_free() {
    let home = stage("job").shell_task("other", "true");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([{ "sub": 2147483647, "task": "job" }])).await;
    watcher.until(|frame| frame["type"] == "caught_up").await;
    watcher.send(json!({ "type": "subscribe", "sub": 2147483647, "task": "other" })).await;
    let error = watcher.next().await;
    assert_eq!((&error["code"], &error["sub"]), (&json!("bad_frame"), &json!(2147483647)));
    watcher.send(json!({ "type": "unsubscribe", "sub": 2147483647 })).await;
    watcher.send(json!({ "type": "subscribe", "sub": 2147483647, "task": "other" })).await;
    assert_eq!(watcher.next().await["task"], "other");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_unsubscribed_says_nothing_more() {
    let home = stage("job").shell_task("other", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    watcher.until(|frame| frame["type"] == "caught_up").await;
    watcher.send(json!({ "type": "unsubscribe", "sub": 1 })).await;
    watcher.send(json!({ "type": "subscribe", "sub": 2, "task": "other" })).await;
    watcher.until(|frame| frame["type"] == "caught_up" && frame["sub"] == 2).await;
    play.thought("nobody hears this").await;
    Play::begin(&server, "other").await;
    assert_eq!(watcher.next().await["sub"], 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_watches_at_most_so_many_tasks_and_goes_on_with_those() {
    let mut home = Home::new("");
    for n in 0..258 {
        home = home.shell_task(&format!("t{n}"), "true");
    }
    let server = home.serve().await;
    let subscribe: Vec<Value> = (0..258).map(|n| json!({ "sub": n + 1, "task": format!("t{n}") })).collect();
    let mut watcher = server.client.watch(json!(subscribe)).await;
    let (mut subscribed, mut errors) = (0, Vec::new());
    while subscribed + errors.len() < 258 {
        let frame = watcher.next().await;
        match frame["type"].as_str().unwrap() {
            "subscribed" => subscribed += 1,
            "error" => errors.push(frame),
            _ => {}
        }
    }
    assert_eq!((subscribed, errors.len()), (256, 2));
    assert_eq!((&errors[0]["code"], &errors[0]["sub"]), (&json!("limit"), &json!(257)));
    // One that it has may be asked for again, and a place that is given back can be taken.
    watcher.send(json!({ "type": "subscribe", "sub": 300, "task": "t0" })).await;
    watcher.until(|frame| frame["type"] == "subscribed" && frame["sub"] == 300 && frame["outcome"] == "resumed").await;
    watcher.send(json!({ "type": "unsubscribe", "sub": 300 })).await;
    watcher.send(json!({ "type": "subscribe", "sub": 301, "task": "t257" })).await;
    watcher.until(|frame| frame["type"] == "subscribed" && frame["sub"] == 301).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_tasks_comes_whole_then_as_changes_and_whole_again_when_asked() {
    let home = Home::new(NO_HEARTBEAT).shell_task("b", "true").shell_task("a", "true");
    let server = home.serve().await;
    let mut watcher = open(&server).await;
    watcher
        .send(json!({ "type": "hello", "protocol": 1, "client": "c", "tasks": true, "subscribe": [{ "sub": 1, "task": "a" }] }))
        .await;
    assert_eq!(watcher.next().await["type"], "welcome");
    assert_eq!(watcher.next().await["type"], "subscribed", "the list comes after what is watched");
    let list = watcher.until(|frame| frame["type"] == "tasks").await.pop().unwrap();
    assert_eq!(list["full"], true);
    let ids =
        |list: &Value| list["items"].as_array().unwrap().iter().map(|task| task["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&list), ["a", "b"]);
    let (_, over_http) = server.client.get("/tasks").await;
    assert_eq!(list["items"], over_http["items"], "the same objects everywhere");

    let mut rev = list["rev"].as_u64().unwrap();
    let mut change = async |watcher: &mut Watcher, good: &dyn Fn(&Value) -> bool| loop {
        let frame = watcher.next().await;
        if frame["type"] == "tasks" {
            assert_eq!((&frame["full"], &frame["rev"]), (&json!(false), &json!(rev + 1)), "grows by 1");
            rev += 1;
            if good(&frame) {
                return frame;
            }
        }
    };
    let steps = json!([{ "name": "one", "run": "true" }]);
    server.client.post("/tasks", json!({ "title": "c", "steps": steps, "run": false })).await;
    let added = change(&mut watcher, &|frame| ids(frame).contains(&json!("c"))).await;
    assert_eq!((ids(&added), &added["removed"]), (vec![json!("c")], &json!([])));
    server.client.run("b").await;
    change(&mut watcher, &|frame| {
        frame["items"][0]["id"] == "b" && frame["items"][0]["last_run"]["state"] == "succeeded"
    })
    .await;
    server.client.post("/tasks/b/pause", json!({})).await;
    change(&mut watcher, &|frame| frame["items"][0]["id"] == "b" && frame["items"][0]["state"] == "paused").await;
    server.client.delete("/tasks/c").await;
    let removed = change(&mut watcher, &|frame| frame["removed"] == json!(["c"])).await;
    assert!(!ids(&removed).contains(&json!("c")), "{removed}");
    watcher.send(json!({ "type": "tasks" })).await;
    let again = watcher.until(|frame| frame["type"] == "tasks").await.pop().unwrap();
    assert_eq!((&again["full"], &again["rev"], ids(&again)), (&json!(true), &json!(rev), vec![json!("a"), json!("b")]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_goes_is_told_once_when_it_is_gone() {
    let home = Home::new(NO_HEARTBEAT).shell_task("a", "true").shell_task("b", "true");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    watcher.send(json!({ "type": "tasks" })).await;
    let list = watcher.until(|frame| frame["type"] == "tasks").await.pop().unwrap();
    // As far as a removal is when its transaction is done: the stream is closed, and the name is not free yet.
    let publisher = &server.server.api().publisher;
    publisher.forget(&publisher.topic(&"b".parse().unwrap()).unwrap());
    publisher.changes().note(&"b".parse().unwrap());
    server.client.post("/tasks/a/pause", json!({})).await;
    let next = watcher.until(|frame| frame["type"] == "tasks").await.pop().unwrap();
    assert_eq!((&next["rev"], &next["removed"]), (&json!(list["rev"].as_u64().unwrap() + 1), &json!([])), "{next}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nam_52_what_is_made_is_told_to_all_who_show_the_list() {
    let home = Home::new(NO_HEARTBEAT);
    let server = home.serve().await;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        let mut watcher = server.client.watch(json!([])).await;
        watcher.send(json!({ "type": "tasks" })).await;
        assert_eq!(watcher.next().await["items"], json!([]));
        watchers.push(watcher);
    }
    let steps = json!([{ "name": "one", "run": "true" }]);
    server.client.post("/tasks", json!({ "title": "New", "steps": steps, "run": false })).await;
    for watcher in &mut watchers {
        assert_eq!(watcher.next().await["items"][0]["id"], "new");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_shown_from_the_first_time_it_is_asked_for() {
    let home = Home::new(NO_HEARTBEAT).shell_task("a", "true");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    server.client.post("/tasks/a/pause", json!({})).await;
    watcher.send(json!({ "type": "tasks" })).await;
    let list = watcher.next().await;
    assert_eq!((&list["full"], &list["items"][0]["state"]), (&json!(true), &json!("paused")));
    server.client.post("/tasks/a/resume", json!({})).await;
    watcher
        .until(|frame| frame["type"] == "tasks" && frame["full"] == false && frame["items"][0]["state"] == "idle")
        .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notice_is_told_on_change_and_to_newcomers_before_anything_else_while_it_lasts() {
    let home = stage("job");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    let live = &server.server.api().live;
    live.notices.say("clock_wrong", "the clock is wrong".to_owned(), jiff::Timestamp::UNIX_EPOCH);
    live.hub.wake_all();
    let notice = watcher.next().await;
    assert_eq!(
        notice,
        json!({ "type": "notice", "code": "clock_wrong", "text": "the clock is wrong", "since": "1970-01-01T00:00:00.000000Z", "over": false })
    );
    let mut newcomer = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    assert_eq!(newcomer.next().await, notice, "before what is watched");
    assert_eq!(newcomer.next().await["type"], "subscribed");
    assert_eq!(server.client.get("/status").await.1["notices"][0]["code"], "clock_wrong");
    live.notices.lift("clock_wrong", "the clock is right");
    live.hub.wake_all();
    let over = watcher.next().await;
    assert_eq!((&over["code"], &over["over"]), (&json!("clock_wrong"), &json!(true)));
    let mut later = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    assert_eq!(later.next().await["type"], "subscribed", "what is over is no news");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_is_told_while_it_lasts_and_when_it_is_over() {
    let begin = "2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap();
    let clock = Clock::standing_at(begin);
    // Due once a day: behind the clock that was set back nothing is due for hours.
    let daily = "title = \"daily\"\n[schedule]\ncron = \"0 0 * * *\"\n[[steps]]\nrun = \"true\"\n";
    let home = Home::new(NO_HEARTBEAT).task("daily", daily);
    let server = home.serve_at(clock.clone()).await;
    let mut watcher = server.client.watch(json!([])).await;
    clock.set(begin - SignedDuration::from_mins(80));
    let notice = watcher.next().await;
    assert_eq!(
        (&notice["type"], &notice["code"], &notice["over"]),
        (&json!("notice"), &json!("clock_wrong"), &json!(false)),
        "{notice}"
    );
    assert!(notice["text"].as_str().unwrap().contains("2026-03-01T12:00:00"), "{notice}");
    assert_eq!(server.client.watch(json!([])).await.next().await, notice, "newcomers are told too");
    // Runs by hand are not held.
    let run = server.client.run("daily").await;
    server.client.ended(&run).await;
    clock.set(begin - SignedDuration::from_mins(40));
    let over = watcher.next().await;
    assert_eq!((&over["code"], &over["over"]), (&json!("clock_wrong"), &json!(true)), "{over}");
    assert_eq!(server.client.get("/status").await.1["notices"], json!([]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_says_so_and_when_to_come_back() {
    let home = stage("job");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    let stop = tokio::spawn(server.stop());
    let notice = watcher.next().await;
    assert_eq!(
        (&notice["type"], &notice["code"], &notice["over"]),
        (&json!("notice"), &json!("draining"), &json!(false)),
        "{notice}"
    );
    let (code, reason) = closed(&mut watcher).await;
    assert_eq!((code, &reason["code"]), (4001, &json!("draining")));
    assert!(reason["retry_ms"].as_u64().unwrap() >= 500);
    stop.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_subs_of_one_socket_do_not_hold_each_other_up() {
    let home = stage("loud").shell_task("quiet", "true");
    let server = home.serve().await;
    let (loud, quiet) = (Play::begin(&server, "loud").await, Play::begin(&server, "quiet").await);
    loud.thoughts(4000).await;
    loud.thought("the last").await;
    quiet.thought("one").await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "loud" }, { "sub": 2, "task": "quiet" }])).await;
    let frames = watcher.until(|frame| frame["type"] == "caught_up" && frame["sub"] == 1).await;
    let at = |sub: u64| frames.iter().rposition(|frame| frame["sub"] == sub && !events_of(frame).is_empty()).unwrap();
    assert!(at(2) < at(1), "they take turns");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_of_the_transport_is_a_sign_of_life_and_is_answered() {
    use futures_util::StreamExt;
    let home = Home::new(NO_HEARTBEAT);
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    watcher.socket.send(Message::Ping(vec![7].into())).await.unwrap();
    let answer = timeout(SOON, watcher.socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer, Message::Pong(vec![7].into()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_31_who_stops_reading_holds_up_nobody_and_is_cut_with_a_reason_and_resumes() {
    let home =
        Home::new("[stream]\nheartbeat = \"10m\"\nlife = \"20m\"\nslow_bytes = \"16 KiB\"\nslow_window = \"300ms\"")
            .shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut good = Page::open(&server.client, "job").await;
    let mut slow = Page::open(&server.client, "job").await;
    let text = "x".repeat(30_000);
    let mut sent = 0;
    // Until it is cut: the kernel's buffers must be full first.
    let begin = Instant::now();
    while server.client.get("/status").await.1["connections"] == 2 {
        for _ in 0..20 {
            good.sees(play.thought(&text).await).await;
            sent += 1;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "never cut");
    }
    let last = play.status(State::Succeeded).await;
    good.sees(last).await;
    let position = slow.position;
    slow.cut();
    let subscribed = slow.dial().await;
    assert_eq!(
        subscribed["outcome"],
        if last - position > 20_000 || sent * 30_000 > 16 << 20 { "reset" } else { "resumed" }
    );
    assert_eq!(position, 2, "it had read nothing");
    let (_, welcome) = enter(&server, &slow.name, 9).await.unwrap();
    assert!(["too_slow", "replaced"].contains(&welcome["last_close"].as_str().unwrap()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_is_let_go_and_its_run_goes_on() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let run = server.client.run("job").await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    watcher.socket.close(None).await.unwrap();
    assert_eq!(watcher.close_code().await, None);
    server.client.until("/status", |status| status["connections"] == 0).await;
    gate.open().await;
    assert_eq!(server.client.ended(&run).await["state"], "succeeded");
    assert!(is_terminal(server.client.pages("job").await.last().unwrap()));
    server.stop().await;
}

/// The text of the next frame of a type.
async fn text_of(watcher: &mut Watcher, wanted: &str) -> String {
    use futures_util::StreamExt;
    loop {
        let message = timeout(SOON, watcher.socket.next()).await.expect("nothing came").unwrap().unwrap();
        let Message::Text(text) = message else { continue };
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["type"] == wanted {
            return text.as_str().to_owned();
        }
    }
}

/// The most bytes of a frame of the server.
const MOST: usize = 384 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_too_large_for_one_frame_comes_in_several_whose_revs_grow_by_one() {
    let home = Home::new(NO_HEARTBEAT);
    let server = home.serve().await;
    let words = "x".repeat(2000);
    let task = |n: usize| {
        json!({ "id": format!("t{n:04}"), "title": "t", "description": words, "run": false,
                                  "steps": [{ "run": "true" }] })
    };
    let add = async |numbers: std::ops::Range<usize>| {
        for n in numbers {
            assert_eq!(server.client.post("/tasks", task(n)).await.0, 201);
        }
    };
    add(0..300).await;
    let mut watcher = server.client.watch(json!([])).await;
    let mut rev = 0;
    // Asked twice, and each time it is the same whole list.
    for _ in 0..2 {
        watcher.send(json!({ "type": "tasks" })).await;
        let mut ids: Vec<Value> = Vec::new();
        let mut frames = 0;
        while ids.len() < 300 {
            let text = text_of(&mut watcher, "tasks").await;
            assert!(text.len() <= MOST, "{} bytes", text.len());
            let frame: Value = serde_json::from_str(&text).unwrap();
            if ids.is_empty() && frame["full"] == false {
                // A change that was on its way when the list was asked for.
                continue;
            }
            assert_eq!(frame["full"], ids.is_empty(), "the first is the list, the others go on with it");
            assert!(ids.is_empty() || frame["rev"] == rev + 1, "{} follows {rev}", frame["rev"]);
            rev = frame["rev"].as_u64().unwrap();
            ids.extend(frame["items"].as_array().unwrap().iter().map(|task| task["id"].clone()));
            frames += 1;
        }
        assert!(frames > 1);
        assert_eq!(ids, (0..300).map(|n| json!(format!("t{n:04}"))).collect::<Vec<_>>());
    }
    // Many changes at once do not make a frame too large either.
    add(300..320).await;
    for n in 0..320 {
        server.client.post(&format!("/tasks/t{n:04}/pause"), json!({})).await;
    }
    let mut paused = std::collections::BTreeSet::new();
    while paused.len() < 320 {
        let text = text_of(&mut watcher, "tasks").await;
        assert!(text.len() <= MOST, "{} bytes", text.len());
        let frame: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&frame["full"], &frame["rev"]), (&json!(false), &json!(rev + 1)));
        rev += 1;
        let items = frame["items"].as_array().unwrap().iter();
        paused.extend(items.filter(|task| task["state"] == "paused").map(|task| task["id"].to_string()));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_changes_is_a_few_frames_and_who_lags_behind_gets_the_whole_list() {
    let home = Home::new(NO_HEARTBEAT).shell_task("a", "true").shell_task("b", "true");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    watcher.send(json!({ "type": "tasks" })).await;
    let mut rev = watcher.next().await["rev"].as_u64().unwrap();
    let begin = Instant::now();
    for n in 0..200 {
        let call = if n % 2 == 0 { "pause" } else { "resume" };
        server.client.post(&format!("/tasks/a/{call}"), json!({})).await;
    }
    server.client.post("/tasks/b/pause", json!({})).await;
    let mut frames = 0;
    loop {
        let frame = watcher.next().await;
        assert_eq!((&frame["type"], &frame["rev"], &frame["full"]), (&json!("tasks"), &json!(rev + 1), &json!(false)));
        (rev, frames) = (rev + 1, frames + 1);
        if frame["items"].as_array().unwrap().iter().any(|task| task["id"] == "b") {
            break;
        }
    }
    let most = begin.elapsed().as_millis() / 100 + 2;
    assert!(frames <= most, "{frames} frames for 201 changes within {:?}", begin.elapsed());

    // Revisions that are no longer kept: the board says "all".
    let board = &server.server.api().live.board;
    assert!(matches!(board.due(rev - 1000), rejoin::api::board::Due::All));
    assert!(matches!(board.due(rev), rejoin::api::board::Due::Nothing));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_any_size_fits_into_the_frames_that_show_it() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nreplay_events = 2"));
    let server = home.serve().await;
    let params: serde_json::Map<String, Value> =
        (0..4000).map(|n| (format!("p{n}"), json!({ "default": "y".repeat(60) }))).collect();
    let large = json!({ "id": "large", "title": "Large", "description": "d".repeat(500_000), "params": params,
                        "steps": [{ "run": "true" }], "run": false });
    let (status, made) = server.client.post("/tasks", large).await;
    assert_eq!(status, 201, "{made}");
    Play::begin(&server, "large").await.thoughts(10).await;
    server.client.until("/tasks/large", |task| task["head"] == 12).await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "large" }])).await;
    let snapshot = text_of(&mut watcher, "snapshot").await;
    assert!(snapshot.len() <= 256 * 1024, "{} bytes", snapshot.len());
    watcher.send(json!({ "type": "tasks" })).await;
    let list = text_of(&mut watcher, "tasks").await;
    assert!(list.len() <= MOST, "{} bytes", list.len());
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["items"][0]["id"], &list["items"][0]["truncated"]), (&json!("large"), &json!(true)));
    let (_, whole) = server.client.get("/tasks/large").await;
    assert_eq!(whole["description"].as_str().unwrap().len(), 500_000, "the whole is there over HTTP");
    server.stop().await;
}
