//! Server-sent events: one test per row of the resume table, over real connections, and what the stream is like.

use std::time::Duration;

use rejoin::clock::Clock;
use rejoin::event::{Body, State};
use serde_json::{Value, json, value::RawValue};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::bounds::Broken;
use crate::feed_stage::{Said, Stream, names, shown};
use crate::harness::{Home, InProcess, PATIENCE, events_of, is_terminal, seqs};
use crate::rows_stage::{NO_HEARTBEAT, Play, SOON, forget_below, keep_log, logged, stage};

/// A home whose servers replay at most so many events.
fn replaying(events: u64) -> Home {
    Home::new(&format!("{NO_HEARTBEAT}\nreplay_events = {events}\nring_events = 32")).shell_task("job", "true")
}

async fn generation(server: &InProcess, task: &str) -> String {
    server.client.get(&format!("/tasks/{task}")).await.1["gen"].as_str().unwrap().to_owned()
}

fn address_of(generation: Option<&str>, after: u64) -> String {
    generation.map_or_else(|| format!("?after={after}"), |generation| format!("?gen={generation}&after={after}"))
}

/// What comes up to `caught_up` for a position: by the address, by `Last-Event-ID` and over a socket the same. Nothing
/// may happen meanwhile.
async fn asked(server: &InProcess, generation: Option<&str>, after: u64) -> Vec<Said> {
    let mut stream = Stream::open(&server.client, "job", &address_of(generation, after), &[]).await;
    assert_eq!(stream.status, 200);
    let by_address = stream.until("caught_up").await;
    if let Some(generation) = generation {
        let id = format!("{generation}.{after}");
        // The address is where the browser was when it first came: it counts no more.
        for query in ["", "?after=1", "?gen=0000000000000001&after=1"] {
            let mut stream = Stream::open(&server.client, "job", query, &[("Last-Event-ID", &id)]).await;
            assert_eq!(stream.until("caught_up").await, by_address, "{id} and {query}");
        }
    }
    let mut subscribe = json!({ "sub": 1, "task": "job", "after": after });
    if let Some(generation) = generation {
        subscribe["gen"] = generation.into();
    }
    let mut watcher = server.client.watch(json!([subscribe])).await;
    let mut frames = watcher.until(|frame| frame["type"] == "caught_up").await;
    for frame in &mut frames {
        frame.as_object_mut().unwrap().remove("sub");
    }
    assert_eq!(by_address.iter().map(Said::frame).collect::<Vec<_>>(), frames, "the same frames as on a socket");
    by_address
}

/// Every event that carries a position has it as its id, and no other has one.
fn has_its_ids(all: &[Said], generation: &str) {
    for said in all {
        let frame = said.frame();
        let seq = match said.name.as_str() {
            "event" => Some(&frame["event"]["seq"]),
            "events" => Some(&frame["last"]),
            "snapshot" => Some(&frame["seq"]),
            _ => None,
        };
        assert_eq!(said.id, seq.map(|seq| format!("{generation}.{seq}")), "{said:?}");
    }
}

fn is_reset(all: &[Said], why: &str, have: u64, seq: u64) {
    assert_eq!(names(all)[..3], ["subscribed", "reset", "snapshot"]);
    let frames: Vec<_> = all.iter().map(Said::frame).collect();
    assert_eq!((&frames[0]["outcome"], &frames[0]["from"]), (&json!("reset"), &json!(seq + 1)));
    assert!(frames[0]["missed"].is_null());
    assert_eq!((&frames[1]["why"], &frames[1]["have"]), (&json!(why), &json!(have)));
    assert_eq!(frames[2]["seq"], seq);
    for frame in &frames[..3] {
        assert_eq!(frame["gen"], frames[0]["gen"]);
    }
}

// The rows of the resume table.

#[tokio::test(flavor = "multi_thread")]
async fn a_task_or_run_that_is_not_there_is_404_before_the_stream_begins() {
    let home = stage("job").shell_task("other", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "other").await;
    let of_other = format!("?run={}", play.run);
    for (task, query) in [
        ("nothing", ""),
        ("Not-An-Id", ""),
        ("nothing", "?gen=0000000000000001&after=7"),
        ("job", "?run=none"),
        ("job", "?run=0192f0c1-0000-7000-8000-000000000001"),
        ("job", &of_other),
    ] {
        let mut stream = Stream::open(&server.client, task, query, &[]).await;
        assert_eq!(stream.status, 404, "{task}{query}");
        assert_eq!(stream.headers["content-type"], "application/problem+json");
        assert_eq!(stream.problem().await["code"], "not_found");
    }
    assert_eq!(server.server.api().live.hub.count(), 0, "nobody entered");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_07_a_stream_goes_on_behind_the_last_event_seen() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(8).await;
    play.thought("the tenth is saved, and this one").await;
    let generation = generation(&server, "job").await;
    for after in [1, 5, 10, 11] {
        let all = asked(&server, Some(&generation), after).await;
        let subscribed = all[0].frame();
        assert_eq!(
            (&subscribed["outcome"], &subscribed["from"], &subscribed["head"], &subscribed["missed"]),
            (&json!("resumed"), &json!(after + 1), &json!(11), &json!(11 - after))
        );
        assert_eq!(seqs(&shown(&all)), (after + 1..=11).collect::<Vec<_>>());
        assert_eq!(all.last().unwrap().frame(), json!({ "type": "caught_up", "seq": 11 }));
        has_its_ids(&all, &generation);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_to_a_stream_gets_all_there_is_whatever_the_gen() {
    let home = stage("job");
    let server = home.serve().await;
    let all = asked(&server, None, 0).await;
    assert_eq!(names(&all), ["subscribed", "caught_up"], "nothing yet");
    let play = Play::begin(&server, "job").await;
    for _ in 0..8 {
        play.thought("a row").await;
    }
    for generation in [None, Some("0000000000000001")] {
        let all = asked(&server, generation, 0).await;
        assert_eq!(names(&all), ["subscribed", "events", "caught_up"]);
        assert_eq!(seqs(&shown(&all)), (1..=10).collect::<Vec<_>>());
    }
    let mut stream = Stream::open(&server.client, "job", "", &[]).await;
    assert_eq!(seqs(&shown(&stream.until("caught_up").await)), (1..=10).collect::<Vec<_>>(), "no position is 0");
    let mut stream = Stream::open(&server.client, "job", "?gen=no-gen", &[]).await;
    assert_eq!(stream.until("caught_up").await[0].frame()["outcome"], "resumed");
    forget_below(&server, "job", 6).await;
    let all = asked(&server, None, 0).await;
    let first = all[0].frame();
    assert_eq!((&first["outcome"], &first["from"], &first["missed"]), (&json!("resumed"), &json!(6), &json!(5)));
    assert_eq!(seqs(&shown(&all)), [6, 7, 8, 9, 10]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_streams_replay_is_inclusive_and_one_more_is_too_far() {
    let home = replaying(100);
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(148).await;
    assert_eq!(play.thought("the last").await, 151);
    let generation = generation(&server, "job").await;
    let all = asked(&server, Some(&generation), 51).await;
    assert_eq!((&all[0].frame()["outcome"], &all[0].frame()["missed"]), (&json!("resumed"), &json!(100)));
    assert_eq!(seqs(&shown(&all)), (52..=151).collect::<Vec<_>>());
    has_its_ids(&all, &generation);
    let all = asked(&server, Some(&generation), 50).await;
    assert_eq!(names(&all), ["subscribed", "reset", "snapshot", "caught_up"]);
    is_reset(&all, "too_far", 50, 151);
    has_its_ids(&all, &generation);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streams_replay_is_limited_in_bytes_too() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nreplay_bytes = \"64 KiB\"\nring_bytes = \"32 KiB\""))
        .shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for _ in 0..10 {
        play.thought(&"x".repeat(10_000)).await;
    }
    let generation = generation(&server, "job").await;
    assert_eq!(seqs(&shown(&asked(&server, Some(&generation), 6).await)), (7..=12).collect::<Vec<_>>());
    is_reset(&asked(&server, Some(&generation), 4).await, "too_far", 4, 12);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_to_a_long_stream_starts_before_the_work_that_goes_on_or_was_last_else_at_the_head() {
    let home = replaying(100);
    let server = home.serve().await;
    let first = Play::begin(&server, "job").await;
    first.thoughts(200).await;
    let end = first.status(State::Failed).await;
    let open = Play::begin(&server, "job").await;
    open.tool_use("c1").await;
    for under_way in [true, false] {
        if !under_way {
            open.status(State::Succeeded).await;
        }
        let all = asked(&server, None, 0).await;
        assert_eq!(names(&all), ["subscribed", "reset", "snapshot", "events", "caught_up"]);
        is_reset(&all, "from_start", 0, end);
        assert_eq!(seqs(&shown(&all)), (end + 1..=open.head()).collect::<Vec<_>>());
    }
    let long = Play::begin(&server, "job").await;
    long.thoughts(150).await;
    let head = long.thought("the last").await;
    let all = asked(&server, None, 0).await;
    assert_eq!(names(&all), ["subscribed", "reset", "snapshot", "caught_up"]);
    is_reset(&all, "from_start", 0, head);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_in_another_log_is_200_with_reset_and_snapshot() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thought("t").await;
    let before = generation(&server, "job").await;
    for (generation, after) in [(None, 2), (Some("0000000000000001"), 2), (Some("0000000000000001"), 99)] {
        let all = asked(&server, generation, after).await;
        assert_eq!(names(&all), ["subscribed", "reset", "snapshot", "caught_up"]);
        is_reset(&all, "generation", after, 3);
        has_its_ids(&all, &before);
    }
    // A gen that is none is that of another log; so is an id that is no position at all, whatever stands beside it.
    let mut stream = Stream::open(&server.client, "job", "?gen=none&after=2", &[]).await;
    is_reset(&stream.until("caught_up").await, "generation", 2, 3);
    let good = address_of(Some(&before), 3);
    for id in ["x", "7", "0000000000000001", &format!("{before}."), &format!("{before}.x"), "\u{fc}.1", "[object]"] {
        let mut stream = Stream::open(&server.client, "job", &good, &[("Last-Event-ID", id)]).await;
        assert_eq!(stream.status, 200, "{id}");
        is_reset(&stream.until("caught_up").await, "generation", 0, 3);
    }
    // An empty one is what a browser sends that has none.
    let mut stream = Stream::open(&server.client, "job", &good, &[("Last-Event-ID", "")]).await;
    assert_eq!(names(&stream.until("caught_up").await), ["subscribed", "caught_up"]);
    assert_eq!(generation(&server, "job").await, before, "that changes nothing");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_09_a_stream_that_asks_for_what_is_beyond_the_end_gives_the_log_a_new_name_and_tells_the_others() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let before = generation(&server, "job").await;
    let mut other = Stream::open(&server.client, "job", &address_of(Some(&before), 1), &[]).await;
    other.until("caught_up").await;
    let mut stream = Stream::open(&server.client, "job", "", &[("Last-Event-ID", &format!("{before}.3"))]).await;
    let all = stream.until("caught_up").await;
    let after = generation(&server, "job").await;
    assert_ne!(before, after);
    is_reset(&all, "future", 3, 2);
    has_its_ids(&all, &after);
    // A second `subscribed` on a stream that is open: its log was replaced.
    let told = other.until("caught_up").await;
    is_reset(&told, "generation", 2, 2);
    has_its_ids(&told, &after);
    // Only the first cursor that names the log in force renews it.
    is_reset(&asked(&server, Some(&before), 3).await, "generation", 3, 2);
    assert_eq!(generation(&server, "job").await, after);
    let seq = play.thought("both go on").await;
    for stream in [&mut other, &mut stream] {
        let said = stream.next().await.unwrap();
        assert_eq!((events_of(&said.frame())[0]["seq"].as_u64(), said.id), (Some(seq), Some(format!("{after}.{seq}"))));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_08_a_stream_whose_position_retention_took_is_reset_and_the_one_before_the_oldest_is_not() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for _ in 0..8 {
        play.thought("a row").await;
    }
    forget_below(&server, "job", 6).await;
    let generation = generation(&server, "job").await;
    let all = asked(&server, Some(&generation), 5).await;
    assert_eq!(seqs(&shown(&all)), [6, 7, 8, 9, 10]);
    let all = asked(&server, Some(&generation), 4).await;
    assert_eq!(names(&all), ["subscribed", "reset", "snapshot", "caught_up"]);
    is_reset(&all, "retention", 4, 10);
    assert_eq!(all[1].frame()["oldest"], 6);
    // The empty log is resumed at its end.
    play.status(State::Succeeded).await;
    forget_below(&server, "job", 12).await;
    for (generation, after) in [(None, 0), (Some(generation.as_str()), 11)] {
        let all = asked(&server, generation, after).await;
        assert_eq!((names(&all), &all[0].frame()["from"]), (vec!["subscribed", "caught_up"], &json!(12)));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_in_memory_comes_in_a_stream_from_the_file() {
    let home = replaying(20_000);
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(3000).await;
    play.status(State::Succeeded).await;
    let generation = generation(&server, "job").await;
    let all = asked(&server, Some(&generation), 7).await;
    assert_eq!(seqs(&shown(&all)), (8..=3003).collect::<Vec<_>>());
    has_its_ids(&all, &generation);
    for said in all.iter().filter(|said| said.name == "events") {
        let frame = said.frame();
        let items = frame["items"].as_array().unwrap();
        assert!(items.len() <= 256 && said.data.len() <= 33 * 1024);
        assert_eq!((&frame["first"], &frame["last"]), (&items[0]["seq"], &items.last().unwrap()["seq"]));
    }
    // Whatever was the last to arrive, its id goes on behind it.
    for said in all.iter().filter_map(|said| said.id.as_ref()).step_by(7) {
        let seq: u64 = said.split_once('.').unwrap().1.parse().unwrap();
        let mut stream = Stream::open(&server.client, "job", "?after=0", &[("Last-Event-ID", said)]).await;
        assert_eq!(seqs(&shown(&stream.until("caught_up").await)), (seq + 1..=3003).collect::<Vec<_>>());
    }
    server.stop().await;
}

// What happens while a stream is open.

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_counts_as_a_live_connection_and_is_woken_by_each_event() {
    keep_log();
    let home = stage("feed-woken");
    let server = home.serve().await;
    let play = Play::begin(&server, "feed-woken").await;
    let id = "feed-woken".parse().unwrap();
    let connections = server.server.api().publisher.connections();
    assert!(!connections.has_watchers(&id));
    let mut stream = Stream::open(&server.client, "feed-woken", "", &[]).await;
    stream.until("caught_up").await;
    assert!(connections.has_watchers(&id));
    assert_eq!(server.client.get("/status").await.1["connections"], 1);
    for n in 3..10 {
        let seq = play.thought("live").await;
        let said = timeout(SOON, stream.next()).await.expect("woken").unwrap();
        assert_eq!((said.name.as_str(), seq), ("event", n));
        assert_eq!(said.frame()["event"]["seq"], seq);
    }
    // Who leaves is taken out, without a word and without an event.
    drop(stream);
    let left = async {
        while connections.has_watchers(&id) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, left).await.expect("taken out of the map");
    assert_eq!(server.client.get("/status").await.1["connections"], 0);
    assert!(!logged(&["WebSocket forwarder created", "task=feed-woken"]).is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_deleted_ends_its_stream_in_words_and_is_404_from_then_on() {
    let home = Home::new(NO_HEARTBEAT);
    let server = home.serve().await;
    let steps = json!([{ "name": "one", "run": "sleep 600" }]);
    server.client.post("/tasks", json!({ "title": "job", "steps": steps })).await;
    let mut stream = Stream::open(&server.client, "job", "", &[]).await;
    stream.until_that(|said| events_of(&said.frame()).iter().any(|event| event["kind"] == "tool_use")).await;
    assert_eq!(server.client.delete("/tasks/job?stop=true").await.0, 204);
    let rest = stream.rest().await;
    assert!(shown(&rest).iter().any(is_terminal), "its end is told before it goes");
    let [.., last, close] = &rest[..] else { panic!("{rest:?}") };
    assert_eq!(last.frame(), json!({ "type": "subscribed", "task": "job", "outcome": "not_found" }));
    assert_eq!(close.frame(), json!({ "type": "close", "code": "not_found" }));
    assert!(close.retry.is_some() && stream.has_ended());
    assert_eq!(Stream::open(&server.client, "job", "", &[]).await.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_is_an_event_that_says_how_far_the_stream_is() {
    let home = Home::new("[stream]\nheartbeat = \"50ms\"\nlife = \"150ms\"").shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut stream = Stream::open(&server.client, "job", "", &[]).await;
    stream.until("caught_up").await;
    // Ten of them: nothing has to be answered, and nobody is taken for dead.
    for _ in 0..10 {
        let beat = stream.until("heartbeat").await.pop().unwrap();
        assert_eq!(beat.frame()["heads"], json!({ "sent": 2, "head": 2 }));
        assert!(beat.frame()["at"].as_str().unwrap().ends_with('Z') && beat.id.is_none());
    }
    play.thought("on it goes").await;
    stream.until_that(|said| said.frame()["heads"]["sent"] == 3).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_are_told_in_a_stream_and_an_end_of_the_server_is_said_with_when_to_come_back() {
    let home = stage("job");
    let server = home.serve().await;
    Play::begin(&server, "job").await;
    let (live, now) = (server.server.api().live.clone(), Clock::system().now());
    live.notices.say("clock_wrong", "the clock is wrong".to_owned(), now);
    let mut stream = Stream::open(&server.client, "job", "", &[]).await;
    let all = stream.until("caught_up").await;
    assert_eq!(names(&all), ["notice", "subscribed", "events", "caught_up"], "what holds is told first");
    assert_eq!((&all[0].frame()["code"], &all[0].frame()["over"]), (&json!("clock_wrong"), &json!(false)));
    live.notices.lift("clock_wrong", "it is right again");
    live.hub.wake_all();
    assert_eq!(stream.until("notice").await.pop().unwrap().frame()["over"], true);
    let stopped = tokio::spawn(server.stop());
    let rest = stream.rest().await;
    let close = rest.last().unwrap();
    let retry = close.frame()["retry_ms"].as_u64().unwrap();
    assert_eq!((&close.frame()["code"], close.retry), (&json!("draining"), Some(retry)));
    assert!(stream.has_ended(), "in order, not cut");
    stopped.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_over_a_restart_of_the_server() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut stream = Stream::open(&server.client, "job", "", &[]).await;
    stream.until("caught_up").await;
    play.thought("the last before").await;
    stream.until("event").await;
    server.stop().await;
    stream.rest().await;
    let id = stream.last_id.clone().unwrap();
    let server = home.serve().await;
    let mut stream = Stream::open(&server.client, "job", "", &[("Last-Event-ID", &id)]).await;
    let all = stream.until("caught_up").await;
    assert_eq!(all[0].frame()["outcome"], "resumed");
    let events = shown(&all);
    assert_eq!(seqs(&events)[0], 4);
    assert!(is_terminal(events.last().unwrap()), "what was under way was interrupted");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_room_for_one_more_a_stream_is_200_and_says_when_to_come_back() {
    for limit in ["connections = 2", "connections_per_credential = 2"] {
        let home = Home::new(&format!("{NO_HEARTBEAT}\n{limit}")).shell_task("job", "true");
        let server = home.serve().await;
        let mut one = Stream::open(&server.client, "job", "", &[]).await;
        one.until("caught_up").await;
        let _two = server.client.watch(json!([])).await;
        let mut three = Stream::open(&server.client, "job", "", &[]).await;
        assert_eq!(three.status, 200, "a browser would stop for good at any other");
        let rest = three.rest().await;
        assert_eq!(names(&rest), ["close"]);
        assert_eq!(rest[0].frame(), json!({ "type": "close", "code": "connection_limit", "retry_ms": 5000 }));
        assert_eq!(rest[0].retry, Some(5000));
        // Sockets are counted with streams.
        let mut watcher = crate::harness::Watcher::open(server.client.address, Some(server.client.token())).await;
        watcher.hello("late", 1, json!([])).await;
        assert_eq!(watcher.close_code().await, Some(4104));
        drop(one);
        server.client.until("/status", |status| status["connections"] == 1).await;
        let mut three = Stream::open(&server.client, "job", "", &[]).await;
        three.until("caught_up").await;
        server.stop().await;
    }
}

/// A stream keeps its connection for hours. It does not keep it from those who only ask for a page.
#[tokio::test(flavor = "multi_thread")]
async fn streams_take_no_place_from_other_requests() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nconnections = 3")).shell_task("job", "true");
    let server = home.serve().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = Stream::open(&server.client, "job", "", &[]).await;
        stream.until("caught_up").await;
        streams.push(stream);
    }
    let (status, page) = timeout(PATIENCE, server.client.get("/tasks/job/events")).await.expect("an answer");
    assert_eq!((status, &page["items"]), (200, &json!([])));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_read_is_said_in_the_stream_and_not_by_a_status() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nring_events = 4")).shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thoughts(40).await;
    play.thought("the last").await;
    let broken = Broken::store_of(&home);
    for query in ["", &format!("?run={}", play.run)] {
        let mut stream = Stream::open(&server.client, "job", query, &[]).await;
        assert_eq!(stream.status, 200);
        let rest = stream.rest().await;
        let close = rest.last().unwrap();
        assert_eq!((&close.frame()["code"], close.retry), (&json!("internal"), Some(5000)), "{rest:?}");
        if query.is_empty() {
            let error = rest[rest.len() - 2].frame();
            assert_eq!((&error["code"], &error["retryable"]), (&json!("internal"), &json!(true)));
        }
        assert!(shown(&rest).is_empty());
    }
    broken.mend();
    let mut stream = Stream::open(&server.client, "job", "", &[]).await;
    assert_eq!(seqs(&shown(&stream.until("caught_up").await)), (1..=43).collect::<Vec<_>>());
    server.stop().await;
}

// What the answer is like.

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_not_stored_not_packed_not_held_back_and_ends_its_connection() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thought(&"a".repeat(20_000)).await;
    let mut stream = Stream::open(&server.client, "job", "", &[("Accept-Encoding", "gzip, br")]).await;
    let header = |name: &str| stream.headers.get(name).map(String::as_str);
    assert_eq!(header("content-type"), Some("text/event-stream"));
    assert_eq!(header("cache-control"), Some("no-store"));
    assert_eq!(header("x-accel-buffering"), Some("no"));
    assert_eq!(header("connection"), Some("close"));
    assert_eq!(header("content-encoding"), None);
    assert!(header("content-security-policy").is_some() && header("x-content-type-options") == Some("nosniff"));
    assert_eq!(seqs(&shown(&stream.until("caught_up").await)), [1, 2, 3]);
    // HEAD tells the same and opens nothing.
    let token = format!("Bearer {}", server.client.token());
    let socket = TcpStream::connect(server.client.address).await.unwrap();
    let head =
        Stream::over(socket, server.client.address, "HEAD", "job", "", &[("Authorization", &token)]).await.unwrap();
    assert_eq!((head.status, head.headers["content-type"].as_str()), (200, "text/event-stream"));
    assert_eq!(server.server.api().live.hub.count(), 1);
    let socket = TcpStream::connect(server.client.address).await.unwrap();
    let head =
        Stream::over(socket, server.client.address, "HEAD", "none", "", &[("Authorization", &token)]).await.unwrap();
    assert_eq!(head.status, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_goes_to_those_who_ask_for_it_and_what_is_asked_wrongly_is_said() {
    let home = stage("job");
    let server = home.serve().await;
    for (accept, kind) in [("*/*", "application/json"), ("text/event-stream, */*;q=0.1", "text/event-stream")] {
        let stream = Stream::open(&server.client, "job", "", &[("Accept", accept)]).await;
        assert_eq!((stream.status, stream.headers["content-type"].as_str()), (200, kind));
    }
    let mut stream = Stream::open(&server.client, "job", "", &[("Accept", "text/html")]).await;
    assert_eq!((stream.status, &stream.problem().await["code"]), (406, &json!("not_acceptable")));
    for (query, field) in [("?after=x", "after"), ("?after=-1", "after"), ("?before=3", "before")] {
        let mut stream = Stream::open(&server.client, "job", query, &[]).await;
        assert_eq!(stream.status, 400, "{query}");
        assert_eq!(stream.problem().await["field"], field);
    }
    let socket = TcpStream::connect(server.client.address).await.unwrap();
    let stream = Stream::over(socket, server.client.address, "GET", "job", "", &[]).await.unwrap();
    assert_eq!(stream.status, 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_event_says_it_is_one_line_of_the_stream() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let texts = ["a\nb\r\nc\rd", "data: x\n\nevent: close\n\n", "\u{2028}\u{2029}\u{85}\u{b}\u{c}", "\0\u{feff}:"];
    for text in texts {
        play.thought(text).await;
    }
    let raw = RawValue::from_string("{\n \"of\":\r\n [1,\r2]\n}".to_owned()).unwrap();
    play.say(Body::Other { kind: "strange\nkind\r".to_owned(), raw }).await;
    let mut stream = Stream::open(&server.client, "job", "", &[]).await;
    let events = shown(&stream.until("caught_up").await);
    let said: Vec<_> = events[2..6].iter().map(|event| event["data"]["text"].as_str().unwrap()).collect();
    assert_eq!(said, texts);
    assert_eq!((&events[6]["kind"], &events[6]["data"]), (&json!("strange\nkind\r"), &json!({ "of": [1, 2] })));
    server.stop().await;
}

// One run.

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_one_run_has_its_events_only_and_its_id_moves_on_with_those_of_the_others() {
    let home = stage("job");
    let server = home.serve().await;
    let (one, two) = (Play::begin(&server, "job").await, Play::begin(&server, "job").await);
    for _ in 0..5 {
        one.thought("one").await;
        two.thought("two").await;
    }
    two.thoughts(300).await;
    let head = two.thought("two").await;
    let of = |run: &Play| {
        let (run, all) = (run.run.to_string(), home.logged_events("job"));
        let events = all.into_iter().map(|(_, text)| serde_json::from_str::<Value>(&text).unwrap());
        events.filter(|event| event["run"] == run).collect::<Vec<_>>()
    };
    let query = format!("?run={}", one.run);
    let mut stream = Stream::open(&server.client, "job", &query, &[]).await;
    let all = stream.until("caught_up").await;
    let first = all[0].frame();
    assert_eq!((&first["outcome"], &first["from"], &first["head"]), (&json!("resumed"), &json!(1), &json!(head)));
    assert_eq!(shown(&all), of(&one), "its own, as they are");
    for said in all.iter().filter(|said| said.name == "events") {
        let frame = said.frame();
        let seqs = seqs(frame["items"].as_array().unwrap());
        assert!(
            seqs[0] >= frame["first"].as_u64().unwrap() && *seqs.last().unwrap() <= frame["last"].as_u64().unwrap()
        );
    }
    let generation = generation(&server, "job").await;
    let cursor = &all[all.len() - 2];
    assert_eq!((cursor.name.as_str(), cursor.data.as_str()), ("cursor", ""));
    assert_eq!(cursor.id, Some(format!("{generation}.{head}")), "before `caught_up`, and as far");
    // Coming back by it looks at nothing twice.
    let id = stream.last_id.clone().unwrap();
    let mut stream = Stream::open(&server.client, "job", &query, &[("Last-Event-ID", &id)]).await;
    let all = stream.until("caught_up").await;
    assert_eq!((names(&all), &all[0].frame()["missed"]), (vec!["subscribed", "caught_up"], &json!(0)));
    // Live: nothing of the others; theirs move the id on once there are many of them.
    two.thoughts(3000).await;
    let mine = one.thought("one more").await;
    let all = stream.until_that(|said| !events_of(&said.frame()).is_empty()).await;
    assert_eq!(seqs(&shown(&all)), [mine]);
    let cursors = all.iter().filter(|said| said.name == "cursor").count();
    assert!((1..=3).contains(&cursors), "{cursors}");
    assert!(all.iter().all(|said| said.id.is_some()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_moves_the_id_of_a_stream_of_one_run_on() {
    let home = Home::new("[stream]\nheartbeat = \"100ms\"\nlife = \"1s\"").shell_task("job", "true");
    let server = home.serve().await;
    let (one, two) = (Play::begin(&server, "job").await, Play::begin(&server, "job").await);
    let mut stream = Stream::open(&server.client, "job", &format!("?run={}", one.run), &[]).await;
    stream.until("caught_up").await;
    let head = two.thought("of another run").await;
    let all = stream.until_that(|said| said.name == "heartbeat" && said.frame()["heads"]["sent"] == head).await;
    let cursor = &all[all.len() - 2];
    assert_eq!((cursor.name.as_str(), cursor.id.as_ref()), ("cursor", stream.last_id.as_ref()));
    assert!(stream.last_id.unwrap().ends_with(&format!(".{head}")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_run_only_what_lies_between_its_first_and_its_last_event_counts_as_missing() {
    let home = replaying(100);
    let server = home.serve().await;
    let before = Play::begin(&server, "job").await;
    before.thoughts(200).await;
    before.status(State::Succeeded).await;
    let one = Play::begin(&server, "job").await;
    one.thought("one").await;
    let last = one.status(State::Succeeded).await;
    let after = Play::begin(&server, "job").await;
    after.thoughts(200).await;
    let head = after.thought("the head").await;
    let generation = generation(&server, "job").await;
    let query = format!("?run={}", one.run);
    // A newcomer, and one that is where the run began: what lies around it is not in the way.
    for position in [String::new(), format!("&gen={generation}&after=0"), format!("&gen={generation}&after=7")] {
        let mut stream = Stream::open(&server.client, "job", &format!("{query}{position}"), &[]).await;
        let all = stream.until("caught_up").await;
        let first = all[0].frame();
        assert_eq!(first["outcome"], "resumed", "{position}");
        let from = if position.ends_with('7') { 8 } else { last - 3 };
        assert_eq!((&first["from"], &first["missed"]), (&json!(from), &json!(head - from + 1)));
        assert_eq!(seqs(&shown(&all)), (last - 3..=last).collect::<Vec<_>>());
        assert_eq!(all.last().unwrap().frame()["seq"], head);
        assert_eq!(stream.last_id, Some(format!("{generation}.{head}")), "nothing of it is behind");
    }
    // Who has the end of it misses nothing, however long ago that was.
    let id = format!("{generation}.{last}");
    let mut stream = Stream::open(&server.client, "job", &query, &[("Last-Event-ID", &id)]).await;
    let all = stream.until("caught_up").await;
    assert_eq!((&all[0].frame()["outcome"], &all[0].frame()["from"]), (&json!("resumed"), &json!(last + 1)));
    assert!(shown(&all).is_empty());
    // Of a run that is too long by itself the rows are as always.
    let mut stream = Stream::open(&server.client, "job", &format!("?run={}", before.run), &[]).await;
    assert_eq!(stream.until("caught_up").await[1].frame()["why"], "from_start");
    let (id, query) = (format!("{generation}.2"), format!("?run={}", before.run));
    let mut stream = Stream::open(&server.client, "job", &query, &[("Last-Event-ID", &id)]).await;
    is_reset(&stream.until("caught_up").await, "too_far", 2, head);
    server.stop().await;
}

// Who may look.

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_browser_that_is_signed_out_ends_at_once_also_when_nobody_reads_it() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let cookie = crate::doors::sign_in(&server).await;
    let address = server.client.address;
    let open = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let socket = socket.connect(address).await.unwrap();
        Stream::over(socket, address, "GET", "job", "", &[("Cookie", &cookie)]).await.unwrap()
    };
    let (mut reads, mut mute) = (open().await, open().await);
    reads.until("caught_up").await;
    mute.until("caught_up").await;
    // More than the line between takes: the mute one has data waiting.
    for _ in 0..100 {
        play.thought(&"x".repeat(60_000)).await;
    }
    let last = play.head();
    reads.until_that(|said| events_of(&said.frame()).iter().any(|event| event["seq"] == last)).await;
    let devices = server.client.get("/session/devices").await.1;
    let device = devices["items"][0]["id"].as_str().unwrap();
    let revoked = Instant::now();
    assert_eq!(server.client.delete(&format!("/session/devices/{device}")).await.0, 204);
    let rest = reads.rest().await;
    // Before anything else could have ended it: a window or a heartbeat.
    assert!(revoked.elapsed() < Duration::from_secs(5));
    assert_eq!(rest[0].frame(), json!({ "type": "close", "code": "expired" }));
    assert!(reads.has_ended());
    while server.server.api().live.hub.count() > 0 {
        assert!(revoked.elapsed() < Duration::from_secs(5), "the mute one is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!mute.rest().await.iter().any(|said| said.name == "close") && !mute.has_ended(), "cut");
    // A browser that comes back by itself is told by a status that it is not to.
    let socket = TcpStream::connect(address).await.unwrap();
    let again = Stream::over(socket, address, "GET", "job", "", &[("Cookie", &cookie)]).await.unwrap();
    assert_eq!(again.status, 401);
    server.stop().await;
}

// As people use it.

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_the_readme_works() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let readme = include_str!("../../README.md");
    let line = readme.lines().find(|line| line.starts_with("curl -N ")).expect("a line with curl -N");
    let home = stage("long-task");
    let server = home.serve().await;
    let play = Play::begin(&server, "long-task").await;
    let line = line.replace("127.0.0.1:7171", &server.client.address.to_string());
    let mut curl = tokio::process::Command::new("sh")
        .args(["-c", &format!("exec {line} --no-progress-meter --noproxy '*'")])
        .current_dir(home.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("sh is there");
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    let mut until = async |word: &str| {
        let mut all = Vec::new();
        while !all.last().is_some_and(|line: &String| line.contains(word)) {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("curl says more").unwrap();
            all.push(line.expect("curl goes on; it is needed for this test"));
        }
        all
    };
    let first = until("caught_up").await;
    assert!(first.contains(&"event: subscribed".to_owned()), "{first:?}");
    play.thought("as it happens").await;
    assert!(until("as it happens").await.iter().any(|line| line == "event: event"));
    server.stop().await;
}
