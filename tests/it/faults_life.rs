//! The life of one socket: heartbeats, silence in either direction, what happens to a subscription while the
//! connection stays, and how each side lets go.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rejoin::api::sub::{Answer, Position, Sub};
use rejoin::event::{Body, TaskId};
use rejoin::stream::forwarder::Peer;
use rejoin::stream::reader::{Lost, Span};
use rejoin::stream::topic::Topic;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::raw_events;
use crate::harness::{Gate, Home, InProcess, PATIENCE, Watcher, events_of, is_terminal, seqs};
use crate::proxy::{Direction, Mode, Proxy};

/// Three seconds here are twenty: a heartbeat of 20 s and a life of 35 s, and the minute within which a loss is noticed.
/// Not shorter: a machine that stands still for two seconds makes nobody take the other for dead.
const SCALED: &str = "[stream]\nheartbeat = \"3s\"\nlife = \"5250ms\"";
const LIFE: Duration = Duration::from_millis(5250);
const MINUTE: Duration = Duration::from_secs(9);

fn topic(server: &InProcess, task: &str) -> std::sync::Arc<Topic> {
    server.server.api().publisher.topic(&task.parse::<TaskId>().unwrap()).unwrap()
}

async fn say(server: &InProcess, task: &str, run: &str, text: &str) {
    let body = Body::Thought { text: text.to_owned() };
    let run = Some(run.parse().unwrap());
    server.server.api().publisher.publish(&topic(server, task), run, &body).await.unwrap();
}

/// Waits until the server has so many sockets; gives how long that took.
async fn sockets(server: &InProcess, count: usize) -> Duration {
    let started = Instant::now();
    while server.server.api().live.hub.count() != count {
        assert!(started.elapsed() < PATIENCE, "never {count} sockets");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    started.elapsed()
}

/// Reads as a browser does: whoever says nothing for a life is dead. Gives the events and the code, if there is one.
async fn until_dead(watcher: &mut Watcher) -> (Vec<Value>, Option<u16>) {
    let mut events = Vec::new();
    loop {
        match timeout(LIFE, watcher.socket.next()).await {
            Ok(Some(Ok(Message::Text(text)))) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                events.extend(events_of(&frame));
                if frame["type"] == "heartbeat" {
                    let pong = json!({ "type": "pong", "at": frame["at"] }).to_string();
                    let _ = watcher.socket.send(Message::text(pong)).await;
                }
            }
            Ok(Some(Ok(Message::Close(close)))) => return (events, close.map(|close| close.code.into())),
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(_)) | None) | Err(_) => return (events, None),
        }
    }
}

async fn a_dead_line(direction: Direction) {
    let home = Home::new(SCALED);
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let run = server.client.run("job").await;
    say(&server, "job", &run, "before").await;

    let proxy = Proxy::before(server.client.address).await;
    let (stream, link) = proxy.connect().await;
    let mut watcher = Watcher::over(stream, server.client.address, Some(&server.client.token)).await.unwrap();
    watcher.hello("one", 1, json!([{ "sub": 1, "task": "job", "after": 0 }])).await;
    let frames = watcher.until(|frame| frame["type"] == "caught_up").await;
    let mut has: Vec<Value> = frames.iter().flat_map(events_of).collect();
    let generation = frames.iter().find(|frame| frame["type"] == "subscribed").unwrap()["gen"].clone();
    assert_eq!(server.server.api().live.hub.count(), 1);

    link.set(Mode::Blackhole(direction));
    let dead = Instant::now();
    // What is sent into a dead line succeeds, and is not received.
    for number in 0..20 {
        say(&server, "job", &run, &format!("into the dark {number}")).await;
    }
    let client = async {
        let (events, code) = until_dead(&mut watcher).await;
        (events, code, dead.elapsed())
    };
    let ((events, code, client_noticed), server_noticed) = tokio::join!(client, sockets(&server, 0));
    println!("{direction:?}: the client noticed after {client_noticed:?}, the server after {server_noticed:?}");
    assert!(client_noticed < MINUTE, "{client_noticed:?}");
    assert!(server_noticed < MINUTE, "{server_noticed:?}");
    // The run says things of its own, some of them perhaps only now.
    let said = |event: &&Value| event["data"]["text"].as_str().is_some_and(|text| text.starts_with("into the dark"));
    match direction {
        Direction::ToServer => assert_eq!((code, events.iter().filter(said).count()), (Some(4012), 20)),
        // What was on its way to the client already may still come.
        _ => assert_eq!((code, events.iter().filter(said).count()), (None, 0)),
    }
    has.extend(events);

    let last = *seqs(&has).last().unwrap();
    let mut back = server.client.watch(json!([{ "sub": 1, "task": "job", "gen": generation, "after": last }])).await;
    gate.open().await;
    has.extend(back.events_until_end().await);
    assert_eq!(seqs(&has), home.logged("job").into_iter().map(|(seq, _)| seq).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_05_t_22_swe_24_a_line_dead_towards_the_client_is_noticed_by_both_within_the_scaled_minute() {
    a_dead_line(Direction::ToClient).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_05_t_22_swe_24_a_line_dead_towards_the_server_is_noticed_by_both_within_the_scaled_minute() {
    a_dead_line(Direction::ToServer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_05_t_22_swe_24_a_line_dead_both_ways_is_noticed_by_both_within_the_scaled_minute() {
    a_dead_line(Direction::Both).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_22_spk_21_an_idle_connection_survives_a_hundred_heartbeats_and_sees_the_next_run() {
    let home = Home::new("[stream]\nheartbeat = \"20ms\"\nlife = \"2s\"").shell_task("job", "echo done");
    let server = home.serve().await;
    let first_run = server.client.run("job").await;
    let mut first = server.client.watch(json!([{ "sub": 1, "task": "job", "after": 0 }])).await;
    let mut events = first.events_until_end().await;
    assert_eq!(events.last().unwrap()["run"], first_run);
    for _ in 0..100 {
        let frame = loop {
            let frame = first.next_of_any().await.unwrap();
            if frame["type"] == "heartbeat" {
                break frame;
            }
            assert_eq!(frame["type"], "caught_up", "nothing else happens");
        };
        let sent = *seqs(&events).last().unwrap();
        assert_eq!(frame["heads"], json!({ "1": { "sent": sent, "head": sent } }));
        first.send(json!({ "type": "pong", "at": frame["at"] })).await;
    }
    let second_run = server.client.run("job").await;
    events.extend(first.events_until_end().await);
    assert_eq!(events.last().unwrap()["run"], second_run);
    let (generation, last) = (server.client.get("/tasks/job").await.1["gen"].clone(), *seqs(&events).last().unwrap());
    drop(first);

    let mut second = server.client.watch(json!([{ "sub": 1, "task": "job", "gen": generation, "after": last }])).await;
    let third_run = server.client.run("job").await;
    events.extend(second.events_until_end().await);
    assert_eq!(events.last().unwrap()["run"], third_run);
    assert_eq!(seqs(&events), (1..=events.len() as u64).collect::<Vec<_>>());
    server.stop().await;
}

/// The flood is all there before the watcher comes, and the watcher takes its time: at no moment is nothing due.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_and_other_subscriptions_come_through_a_flood_of_one_task() {
    let home = Home::new("[stream]\nheartbeat = \"50ms\"\nlife = \"10s\"\nreplay_bytes = \"1 GiB\"");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("flood", &gate.wait()).shell_task("calm", "echo calm");
    let server = home.serve().await;
    let flood = server.client.run("flood").await;
    for _ in 0..1000 {
        say(&server, "flood", &flood, &"flood ".repeat(5000)).await;
    }
    let calm = server.client.run("calm").await;
    server.client.ended(&calm).await;

    let subscribe = json!([{ "sub": 1, "task": "flood", "after": 0 }, { "sub": 2, "task": "calm", "after": 0 }]);
    let mut watcher = server.client.watch(subscribe).await;
    let (mut heartbeats, mut flooded, mut calm_after) = (0, 0, None);
    loop {
        let message = timeout(PATIENCE, watcher.socket.next()).await.unwrap().unwrap().unwrap();
        let Message::Text(text) = message else { panic!("closed") };
        if text.starts_with(r#"{"type":"event"#) && text.contains(r#""sub":1,"#) {
            flooded += 1;
            // A watcher that takes its time.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        }
        let frame: Value = serde_json::from_str(&text).unwrap();
        match frame["type"].as_str().unwrap() {
            "heartbeat" => {
                heartbeats += 1;
                watcher.send(json!({ "type": "pong", "at": frame["at"] })).await;
            }
            "caught_up" if frame["sub"] == 2 => calm_after = Some(flooded),
            "caught_up" => break,
            _ => {}
        }
    }
    println!("{heartbeats} heartbeats between {flooded} frames; the calm task was there after {calm_after:?}");
    assert!(flooded >= 1000);
    assert!(heartbeats >= 10, "{heartbeats}");
    assert!(calm_after.is_some_and(|frames| frames <= 20), "subs take turns: {calm_after:?}");
    gate.open().await;
    server.client.ended(&flood).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_reader_that_retention_overtakes_is_reset_aloud_and_goes_on_behind_the_snapshot() {
    let home = Home::new("[stream]\nslow_window = \"1m\"\nring_events = 4\n[retention]\nevents = 5\nevery = \"1h\"");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let address = server.client.address;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let narrow = socket.connect(address).await.unwrap();
    let mut watcher = Watcher::over(narrow, address, Some(&server.client.token)).await.unwrap();
    watcher.hello("narrow", 1, json!([{ "sub": 1, "task": "job", "after": 0 }])).await;
    watcher.until(|frame| frame["type"] == "caught_up").await;

    // More than the wire and what is kept for a connected reader take, while nobody reads.
    let run = server.client.run("job").await;
    let stream = topic(&server, "job");
    for number in 0..600 {
        say(&server, "job", &run, &format!("{number} {}", "x".repeat(40_000))).await;
    }
    gate.open().await;
    server.client.ended(&run).await;
    let head = stream.head();
    server.server.api().publisher.raise_oldest(&stream, rejoin::event::Seq(head.0 - 2)).await.unwrap();

    let (mut position, mut reset) = (0, false);
    loop {
        let frame = watcher.next().await;
        match frame["type"].as_str().unwrap() {
            "event" | "events" => {
                assert!(!reset, "no event between reset and snapshot");
                for (seq, _) in raw_events(&frame.to_string()) {
                    assert_eq!(seq, position + 1);
                    position = seq;
                }
            }
            "reset" => {
                assert_eq!((&frame["why"], &frame["have"]), (&"retention".into(), &position.into()));
                assert_eq!(frame["head"], head.0);
                reset = true;
            }
            "snapshot" => {
                assert!(reset);
                position = frame["seq"].as_u64().unwrap();
                assert_eq!(position, head.0);
                assert_eq!(frame["state"]["runs"][0]["state"], "succeeded");
            }
            "caught_up" => {
                assert_eq!(frame["seq"], position);
                if reset {
                    break;
                }
            }
            other => panic!("{other}"),
        }
    }
    let next = server.client.run("job").await;
    let live = watcher.until(|frame| !events_of(frame).is_empty()).await;
    let live: Vec<Value> = live.iter().flat_map(events_of).collect();
    assert_eq!((&live[0]["seq"], &live[0]["run"]), (&(position + 1).into(), &next.into()));
    gate.open().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_takes_nothing_is_not_owed_every_change_of_the_list() {
    let home = Home::new("[stream]\nslow_window = \"1m\"\nlife = \"1m\"");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait()).shell_task("other", "true");
    let server = home.serve().await;
    let address = server.client.address;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let narrow = socket.connect(address).await.unwrap();
    let mut watcher = Watcher::over(narrow, address, Some(&server.client.token)).await.unwrap();
    let subscribe = json!([{ "sub": 1, "task": "job", "after": 0 }]);
    let hello =
        json!({ "type": "hello", "protocol": 1, "client": "n", "attempt": 1, "tasks": true, "subscribe": subscribe });
    watcher.send(hello).await;
    watcher.until(|frame| frame["type"] == "tasks").await;
    let run = server.client.run("job").await;
    for number in 0..200 {
        say(&server, "job", &run, &format!("{number} {}", "x".repeat(40_000))).await;
    }
    // More changes, each shown by itself, than are kept for those who lag.
    let looker = json!({ "type": "hello", "protocol": 1, "client": "l", "attempt": 1, "tasks": true, "subscribe": [] });
    let mut fast = Watcher::open(address, Some(&server.client.token)).await;
    fast.send(looker).await;
    let first = fast.until(|frame| frame["type"] == "tasks").await.pop().unwrap()["rev"].as_u64().unwrap();
    let mut rev = first;
    for what in ["pause", "resume"].into_iter().cycle() {
        if rev >= first + 80 {
            break;
        }
        server.client.post(&format!("/tasks/other/{what}"), json!({})).await;
        let frames = fast.until(|frame| frame["type"] == "tasks").await;
        rev = frames.last().unwrap()["rev"].as_u64().unwrap();
    }
    let (mut lists, mut last) = (0, 0);
    while last < rev {
        let frame = watcher.next().await;
        if frame["type"] == "tasks" {
            lists += 1;
            last = frame["rev"].as_u64().unwrap();
        }
    }
    assert!(lists < 40, "{lists} lists for {} changes", rev - first);
    gate.open().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_deleted_ends_its_sub_and_leaves_the_socket_and_the_others() {
    let home = Home::new("").shell_task("stays", "true");
    let server = home.serve().await;
    let task = json!({ "id": "goes", "title": "Goes", "steps": [{ "name": "a", "run": "true" }] });
    let (status, answer) = server.client.post("/tasks", task).await;
    assert_eq!(status, 201, "{answer}");
    let id = answer["task"]["id"].as_str().or(answer["id"].as_str()).unwrap().to_owned();
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": id }, { "sub": 2, "task": "stays" }])).await;
    for _ in 0..2 {
        watcher.until(|frame| frame["type"] == "caught_up").await;
    }
    let (status, answer) = server.client.delete(&format!("/tasks/{id}?stop=true")).await;
    assert!(status < 300, "{answer}");
    let ended = watcher.until(|frame| frame["type"] == "subscribed").await.pop().unwrap();
    assert_eq!((&ended["sub"], &ended["outcome"]), (&1.into(), &"not_found".into()));
    let run = server.client.run("stays").await;
    let events = watcher.events_until_end().await;
    assert_eq!(events.last().unwrap()["run"], run);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_limited_replaced_and_given_back() {
    let home = Home::new("[stream]\nsubscriptions = 2\nheartbeat = \"50ms\"\nlife = \"20s\"");
    let home = ["a", "b", "c"].into_iter().fold(home, |home, id| home.shell_task(id, "echo hi"));
    let server = home.serve().await;
    let subscribe = json!([{ "sub": 1, "task": "a" }, { "sub": 2, "task": "b" }, { "sub": 3, "task": "c" }]);
    let mut watcher = server.client.watch(subscribe).await;
    let frames = watcher.until(|frame| frame["type"] == "error").await;
    assert_eq!((&frames.last().unwrap()["sub"], &frames.last().unwrap()["code"]), (&3.into(), &"limit".into()));
    // A number in use is refused, and says so of that sub.
    watcher.send(json!({ "type": "subscribe", "sub": 2, "task": "c", "after": 0 })).await;
    let error = watcher.until(|frame| frame["type"] == "error").await.pop().unwrap();
    assert_eq!((&error["sub"], &error["code"]), (&2.into(), &"bad_frame".into()));
    // A newer one for the same task takes the place of the older; one given up makes room.
    watcher.send(json!({ "type": "subscribe", "sub": 4, "task": "a", "after": 0 })).await;
    watcher.send(json!({ "type": "unsubscribe", "sub": 2 })).await;
    watcher.send(json!({ "type": "subscribe", "sub": 5, "task": "c", "after": 0 })).await;
    watcher.until(|frame| frame["type"] == "caught_up" && frame["sub"] == 5).await;
    let heads = loop {
        let frame = watcher.next_of_any().await.unwrap();
        if frame["type"] == "heartbeat" {
            break frame["heads"].clone();
        }
    };
    assert_eq!(heads.as_object().unwrap().keys().collect::<Vec<_>>(), ["4", "5"]);
    for task in ["b", "c", "a"] {
        let run = server.client.run(task).await;
        server.client.ended(&run).await;
    }
    let mut subs = Vec::new();
    while subs.len() < 2 {
        let frame = watcher.until(|frame| events_of(frame).iter().any(is_terminal)).await.pop().unwrap();
        subs.push(frame["sub"].as_u64().unwrap());
    }
    // What two subscriptions are sent is in no order.
    subs.sort_unstable();
    assert_eq!(subs, [4, 5], "nothing comes for the sub that was given up, nor twice for the replaced one");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_01_t_03_the_newest_attempt_of_a_client_wins_and_an_older_one_is_refused_itself() {
    let home = Home::new("").shell_task("job", "echo hi");
    let server = home.serve().await;
    let open = async |client: &str, attempt| {
        let mut watcher = Watcher::open(server.client.address, Some(&server.client.token)).await;
        watcher.hello(client, attempt, json!([{ "sub": 1, "task": "job" }])).await;
        watcher
    };
    let mut old = open("tab", 4).await;
    let mut other = open("other tab", 1).await;
    old.until(|frame| frame["type"] == "caught_up").await;
    other.until(|frame| frame["type"] == "caught_up").await;
    let mut new = open("tab", 5).await;
    assert_eq!(old.close_code().await, Some(4514));
    new.until(|frame| frame["type"] == "caught_up").await;
    let mut late = open("tab", 3).await;
    assert_eq!(late.close_code().await, Some(4514), "a hello that was held up is refused");
    drop((old, late));
    let run = server.client.run("job").await;
    for watcher in [&mut new, &mut other] {
        let events = watcher.events_until_end().await;
        assert_eq!(seqs(&events), (1..=events.len() as u64).collect::<Vec<_>>());
        assert_eq!(events.last().unwrap()["run"], run);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_45_a_client_that_closes_is_answered_with_a_close() {
    let home = Home::new("");
    let server = home.serve().await;
    let mut watcher = server.client.watch(json!([])).await;
    watcher.socket.close(None).await.unwrap();
    let answer = timeout(PATIENCE, watcher.socket.next()).await.unwrap();
    assert!(matches!(answer, Some(Ok(Message::Close(_)))), "{answer:?}");
    sockets(&server, 0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_is_too_many_requests() {
    let home = Home::new("");
    let server = home.serve().await;
    let watcher = server.client.watch(json!([])).await;
    let (mut sink, mut stream) = watcher.socket.split();
    let ping = tokio::spawn(async move { while sink.send(Message::Ping(Vec::new().into())).await.is_ok() {} });
    let code = async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Close(close))) => return close.map(|close| u16::from(close.code)),
                Some(Ok(_)) => {}
                // What it still sent may have met the closed socket first.
                Some(Err(_)) | None => return None,
            }
        }
    };
    let code = timeout(PATIENCE, code).await.expect("it ends");
    assert!(code.is_none_or(|code| code == 4013), "{code:?}");
    sockets(&server, 0).await;
    let _ = ping.await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_position_is_lost_while_its_task_goes_is_told_that_it_is_gone_and_nothing_of_what_is_left() {
    let home = Home::new("");
    let server = home.serve().await;
    let steps = json!([{ "name": "one", "run": "true" }]);
    server.client.post("/tasks", json!({ "title": "job", "steps": steps, "run": false })).await;
    let run = server.client.run("job").await;
    server.client.ended(&run).await;
    let api = server.server.api();
    let peer = std::sync::Arc::new(Peer::new(u64::MAX, "u".into(), "c".into()));
    let mut sub = Sub::enter(&api.viewer, topic(&server, "job"), &peer, Some(1)).unwrap();
    // It has noticed that it has to start again, and the task goes before it does.
    assert_eq!(server.client.delete("/tasks/job").await.0, 204);
    let is_gone = |answer| matches!(answer, Answer::NotFound(said) if said.text.contains("not_found"));
    let limits = api.live.limits.replay;
    for lost in [Lost::Retention, Lost::Replaced, Lost::Deleted] {
        assert!(is_gone(sub.start_again(&api.viewer, limits, lost).await.unwrap()), "{lost:?}");
    }
    let answer = sub.answer(&api.viewer, limits, Position::NONE, Span::ALL).await.unwrap();
    assert!(is_gone(answer), "who comes back with a position of another log");
    server.stop().await;
}
