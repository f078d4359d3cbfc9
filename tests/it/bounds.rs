//! What frames and pages are held to: how large they may be, and what is said when the store, a sign-in or the client
//! itself does not keep up.

use std::time::Duration;

use futures_util::SinkExt;
use jiff::ToSpan;
use rejoin::clock::Clock;
use rejoin::event::{Body, State, Status};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::doors::{knock, sign_in};
use crate::feed_stage::Stream;
use crate::harness::{Home, InProcess, PATIENCE, Watcher, events_of, seqs};
use crate::rows_stage::{NO_HEARTBEAT, Play, stage};

/// The largest frame of a server.
const MAX_FRAME: usize = 384 * 1024;

/// A store of which something cannot be read, until it is mended.
pub struct Broken {
    file: rusqlite::Connection,
    back: &'static str,
}

impl Broken {
    fn by(home: &Home, hurt: &str, back: &'static str) -> Self {
        let file = rusqlite::Connection::open(home.database()).unwrap();
        file.busy_timeout(PATIENCE).unwrap();
        file.execute_batch(hurt).unwrap();
        Self { file, back }
    }

    /// One in which neither events nor runs can be found. Nothing can be written to it either.
    pub fn store_of(home: &Home) -> Self {
        Self::by(
            home,
            "ALTER TABLE segments RENAME TO gone_segments; ALTER TABLE runs RENAME TO gone_runs",
            "ALTER TABLE gone_segments RENAME TO segments; ALTER TABLE gone_runs RENAME TO runs",
        )
    }

    /// One in which the log of task `job`, as far as it goes, is damaged.
    pub fn log_of(home: &Home) -> Self {
        let hurt = "CREATE TABLE whole AS SELECT key, ends FROM segments
                    WHERE key >> 40 = (SELECT no FROM tasks WHERE id = 'job');
                    UPDATE segments SET ends = x'01' WHERE key IN (SELECT key FROM whole)";
        let back = "UPDATE segments SET ends = (SELECT ends FROM whole WHERE whole.key = segments.key)
                    WHERE key IN (SELECT key FROM whole);
                    DROP TABLE whole";
        Self::by(home, hurt, back)
    }

    /// All is as it was.
    pub fn mend(self) {
        self.file.execute_batch(self.back).unwrap();
    }
}

/// The next frame and its size.
async fn sized(watcher: &mut Watcher) -> (Value, usize) {
    use futures_util::StreamExt;
    loop {
        let message = timeout(PATIENCE, watcher.socket.next()).await.unwrap().unwrap().unwrap();
        if let Message::Text(text) = message {
            return (serde_json::from_str(&text).unwrap(), text.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_that_the_store_cannot_serve_is_answered_so_and_the_socket_and_its_others_stay() {
    let home = Home::new("[stream]\nheartbeat = \"100ms\"\nring_events = 4")
        .shell_task("job", "true")
        .shell_task("other", "true");
    let server = home.serve().await;
    let (play, other) = (Play::begin(&server, "job").await, Play::begin(&server, "other").await);
    play.thoughts(40).await;
    play.thought("the last").await;
    let mut watcher = server.client.watch(json!([])).await;
    let broken = Broken::log_of(&home);
    watcher.send(json!({ "type": "subscribe", "sub": 1, "task": "job" })).await;
    watcher.send(json!({ "type": "subscribe", "sub": 2, "task": "other" })).await;
    let error = watcher.next().await;
    assert_eq!(
        (&error["type"], &error["sub"], &error["code"], &error["retryable"]),
        (&json!("error"), &json!(1), &json!("internal"), &json!(true)),
        "{error}"
    );
    let all = watcher.until(|frame| frame["type"] == "caught_up").await;
    assert_eq!((&all[0]["sub"], &all[0]["outcome"]), (&json!(2), &json!("resumed")));
    let seq = other.thought("the other goes on").await;
    assert_eq!(events_of(&watcher.next().await)[0]["seq"], seq);
    let beat = watcher.next_of_any().await.unwrap();
    assert_eq!(beat["heads"], json!({ "2": { "sent": seq, "head": seq } }), "a sub without an outcome is no sub");
    broken.mend();
    watcher.send(json!({ "type": "subscribe", "sub": 3, "task": "job" })).await;
    let all = watcher.until(|frame| frame["type"] == "caught_up").await;
    assert_eq!(seqs(&all.iter().flat_map(events_of).collect::<Vec<_>>()), (1..=43).collect::<Vec<_>>());
    // The list cannot be read: that is said too, and the socket stays. Its next change brings it whole.
    let broken = Broken::store_of(&home);
    watcher.send(json!({ "type": "tasks" })).await;
    let error = watcher.until(|frame| frame["type"] == "error").await.pop().unwrap();
    assert_eq!((&error["sub"], &error["code"], &error["retryable"]), (&Value::Null, &json!("internal"), &json!(true)));
    broken.mend();
    play.status(State::Succeeded).await;
    let all = watcher.until(|frame| frame["type"] == "tasks").await;
    assert_eq!(all.last().unwrap()["full"], true);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_that_loses_the_store_in_the_middle_is_given_up_in_words() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nring_events = 4")).shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for _ in 0..30 {
        play.thought(&"x".repeat(60_000)).await;
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = server.client.address;
    let stream = socket.connect(address).await.unwrap();
    let mut watcher = Watcher::over(stream, address, Some(server.client.token())).await.unwrap();
    watcher.hello("narrow", 1, json!([{ "sub": 1, "task": "job" }])).await;
    watcher.until(|frame| !events_of(frame).is_empty()).await;
    let broken = Broken::log_of(&home);
    let all = watcher.until(|frame| frame["type"] == "error").await;
    let error = all.last().unwrap();
    assert_eq!((&error["sub"], &error["code"], &error["retryable"]), (&json!(1), &json!("internal"), &json!(true)));
    broken.mend();
    let mut position = 0;
    for event in all.iter().flat_map(events_of) {
        position = event["seq"].as_u64().unwrap();
    }
    let generation = server.client.get("/tasks/job").await.1["gen"].clone();
    watcher.send(json!({ "type": "subscribe", "sub": 2, "task": "job", "gen": generation, "after": position })).await;
    let all = watcher.until(|frame| frame["type"] == "caught_up").await;
    assert_eq!(all[0]["from"], position + 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_that_needs_a_store_that_can_be_written_is_told_that_it_cannot() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let generation = server.client.get("/tasks/job").await.1["gen"].clone();
    let file = rusqlite::Connection::open(home.database()).unwrap();
    file.busy_timeout(PATIENCE).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut watcher = server.client.watch(json!([])).await;
    let beyond = json!({ "type": "subscribe", "sub": 1, "task": "job", "gen": generation, "after": 99 });
    let id = format!("{}.99", generation.as_str().unwrap());
    let mut stream = Stream::open(&server.client, "job", "", &[("Last-Event-ID", &id)]).await;
    watcher.send(beyond.clone()).await;
    let (all, rest) = tokio::join!(watcher.until(|frame| frame["type"] == "error"), stream.rest());
    let error = all.last().unwrap();
    assert_eq!((&error["sub"], &error["code"], &error["retryable"]), (&json!(1), &json!("not_writable"), &json!(true)));
    let [.., error, close] = &rest[..] else { panic!("{rest:?}") };
    assert_eq!((&error.frame()["code"], &close.frame()["code"]), (&json!("not_writable"), &json!("not_writable")));
    file.execute_batch("ROLLBACK").unwrap();
    watcher.send(beyond).await;
    let all = watcher.until(|frame| frame["type"] == "caught_up").await;
    let reset = all.iter().find(|frame| frame["type"] == "reset").unwrap();
    assert_eq!(reset["why"], "future");
    play.thought("on it goes").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_tasks_that_is_too_long_for_a_frame_comes_in_several_that_follow_each_other() {
    let mut home = Home::new(NO_HEARTBEAT);
    for task in 0..120 {
        let text = format!(
            "title = \"{task}\"\ndescription = \"{}\"\n[[steps]]\nname = \"one\"\nrun = \"true\"\n",
            "d".repeat(6000)
        );
        home = home.task(&format!("task-{task}"), &text);
    }
    let server = home.serve().await;
    let huge = json!({ "title": "Huge", "id": "huge", "description": "h".repeat(900_000),
                       "schedule": { "every": "90d" }, "steps": [{ "name": "one", "run": "true" }] });
    assert_eq!(server.client.post("/tasks", huge).await.0, 201);
    let mut watcher = server.client.watch(json!([])).await;
    watcher.send(json!({ "type": "tasks" })).await;
    let (mut ids, mut rev, mut frames) = (Vec::new(), None, 0);
    loop {
        let (frame, bytes) = sized(&mut watcher).await;
        assert!(bytes <= MAX_FRAME, "{bytes}");
        assert_eq!((&frame["type"], &frame["full"]), (&json!("tasks"), &json!(frames == 0)));
        let next = frame["rev"].as_u64().unwrap();
        assert!(rev.is_none_or(|rev| next == rev + 1), "who sees it jump asks again");
        (rev, frames) = (Some(next), frames + 1);
        for item in frame["items"].as_array().unwrap() {
            ids.push(item["id"].as_str().unwrap().to_owned());
            assert_eq!(item["truncated"] == true, item["id"] == "huge");
        }
        if frame["more"] != true {
            break;
        }
    }
    assert!((3..20).contains(&frames), "{frames}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 121);
    // The next change follows on.
    server.client.post("/tasks/task-7/pause", json!({})).await;
    let mut rev = rev.unwrap();
    loop {
        let (change, _) = sized(&mut watcher).await;
        rev += 1;
        assert_eq!((&change["rev"], &change["full"]), (&json!(rev), &json!(false)));
        let is_it = |item: &Value| item["id"] == "task-7" && item["state"] == "paused";
        if change["items"].as_array().unwrap().iter().any(is_it) {
            break;
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_with_huge_parameters_fit_into_the_frames_that_name_them() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nreplay_events = 10")).shell_task("job", "true");
    let server = home.serve().await;
    let mut runs = Vec::new();
    for _ in 0..8 {
        let play = Play::queued(&server, "job").await;
        let mut status = Status::new(State::Queued, "queued");
        status.params = Some(Map::from_iter([("huge".to_owned(), json!("p".repeat(200_000)))]));
        let mut again = play.clone();
        again.run = rejoin::event::RunId::new();
        again.say(Body::Status(status)).await;
        runs.push(again.run.to_string());
        runs.push(play.run.to_string());
    }
    runs.sort_unstable();
    let named = |of: &Value| {
        let mut ids: Vec<_> = of.as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
        ids.sort_unstable();
        ids
    };
    let generation = server.client.get("/tasks/job").await.1["gen"].clone();
    for (after, outcome) in [(12, "resumed"), (1, "reset")] {
        let mut watcher =
            server.client.watch(json!([{ "sub": 1, "task": "job", "gen": generation, "after": after }])).await;
        let (subscribed, bytes) = sized(&mut watcher).await;
        assert!(bytes <= MAX_FRAME, "{bytes}");
        assert_eq!((&subscribed["outcome"], &subscribed["truncated"]), (&json!(outcome), &json!(true)));
        assert_eq!(named(&subscribed["runs"]), runs, "each of them is named");
        if outcome == "reset" {
            sized(&mut watcher).await;
            let (snapshot, bytes) = sized(&mut watcher).await;
            assert!(bytes <= 256 * 1024, "{bytes}");
            assert_eq!((&snapshot["truncated"], named(&snapshot["state"]["runs"])), (&json!(true), runs.clone()));
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_fits_whatever_its_calls_are_like() {
    let home = Home::new(&format!("{NO_HEARTBEAT}\nreplay_events = 10")).shell_task("job", "true");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    for call in 0..40 {
        let (call, input) = (format!("{call} {}", "c".repeat(20_000)), json!({ "n": "x".repeat(20_000) }));
        play.say(Body::ToolUse { call, tool: "t".repeat(20_000), input }).await;
    }
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    loop {
        let (frame, bytes) = sized(&mut watcher).await;
        assert!(bytes <= 256 * 1024, "{bytes}");
        if frame["type"] == "snapshot" {
            assert_eq!((&frame["truncated"], frame["state"]["calls"].as_array().unwrap().len()), (&json!(true), 40));
            break;
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_is_too_large_is_told_so_and_is_none() {
    let home = Home::new("");
    let server = home.serve().await;
    let hello = |bytes: usize| {
        let frame = json!({ "type": "hello", "protocol": 1, "client": "c", "more": "" }).to_string();
        frame.replace(r#""more":"""#, &format!(r#""more":"{}""#, "x".repeat(bytes - frame.len())))
    };
    let open = async |bytes| {
        let mut watcher = Watcher::open(server.client.address, Some(server.client.token())).await;
        watcher.socket.send(Message::text(hello(bytes))).await.unwrap();
        watcher
    };
    assert_eq!(open(64 * 1024).await.next().await["type"], "welcome");
    for bytes in [64 * 1024 + 1, 256 * 1024] {
        let mut watcher = open(bytes).await;
        let error = watcher.next().await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("too_large")), "{bytes}");
        assert_eq!(watcher.close_code().await, Some(4501));
    }
    assert_eq!(open(256 * 1024 + 1).await.close_code().await, Some(1009));
    server.stop().await;
}

async fn open_with(server: &InProcess, cookie: &str) -> Watcher {
    let own = format!("http://{}", server.client.address);
    let mut watcher = knock(server, &[("Cookie", cookie), ("Origin", &own)]).await.unwrap();
    watcher.hello("tab", 1, json!([])).await;
    watcher
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_runs_out_closes_what_is_open_at_that_moment_and_is_told_from_a_wrong_one() {
    let begin = Clock::system().now();
    let clock = Clock::standing_at(begin);
    let home = Home::new(&format!("[auth]\nsession_days = 2\n{NO_HEARTBEAT}")).shell_task("job", "true");
    let server = home.serve_at(clock.clone()).await;
    let (one, two) = (sign_in(&server).await, sign_in(&server).await);
    let (mut first, mut second) = (open_with(&server, &one).await, open_with(&server, &two).await);
    for watcher in [&mut first, &mut second] {
        assert_eq!(watcher.next().await["type"], "welcome");
    }
    let address = server.client.address;
    let open_stream = async |cookie: &str| {
        let socket = TcpStream::connect(address).await.unwrap();
        Stream::over(socket, address, "GET", "job", "", &[("Cookie", cookie)]).await.unwrap()
    };
    let mut stream = open_stream(&one).await;
    stream.until("caught_up").await;
    // The second is seen again in between, which counts from there.
    clock.set(begin + 24.hours());
    assert_eq!(open_stream(&two).await.status, 200);
    clock.set(begin + 49.hours());
    let over = Instant::now();
    assert_eq!(first.close_code().await, Some(4505));
    assert_eq!(stream.rest().await.pop().unwrap().frame()["code"], "expired");
    assert!(over.elapsed() < Duration::from_secs(10), "{:?}", over.elapsed());
    assert!(timeout(Duration::from_millis(1500), second.next_of_any()).await.is_err(), "the other stays");
    // Who comes back with it is told that it has expired; that of nobody is a bad one.
    assert_eq!(open_with(&server, &one).await.close_code().await, Some(4505));
    let name = one.split_once('=').unwrap().0;
    assert_eq!(open_with(&server, &format!("{name}=none")).await.close_code().await, Some(4500));
    assert_eq!(open_stream(&one).await.status, 401);
    let devices = server.client.get("/session/devices").await.1;
    assert_eq!(devices["items"].as_array().unwrap().len(), 1, "it is signed in no more: {devices}");
    // A sign-in makes no bad one of it.
    let _three = sign_in(&server).await;
    assert_eq!(open_with(&server, &one).await.close_code().await, Some(4505));
    server.stop().await;
}

/// Signed out between the upgrade and the hello: the list of sockets does not have it yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_is_signed_out_while_it_connects_does_not_come_in() {
    let home = Home::new("");
    let server = home.serve().await;
    let cookie = sign_in(&server).await;
    let own = format!("http://{}", server.client.address);
    let mut watcher = knock(&server, &[("Cookie", &cookie), ("Origin", &own)]).await.unwrap();
    let devices = server.client.get("/session/devices").await.1;
    let device = devices["items"][0]["id"].as_str().unwrap();
    assert_eq!(server.client.delete(&format!("/session/devices/{device}")).await.0, 204);
    watcher.hello("tab", 1, json!([])).await;
    assert_eq!(watcher.close_code().await, Some(4505));
    server.stop().await;
}

/// All of a run by its pages, in one direction; the items, and how many pages it took.
async fn paged(server: &InProcess, run: &str, back: bool) -> (Vec<Value>, usize) {
    let generation = server.client.get("/tasks/job").await.1["gen"].as_str().unwrap().to_owned();
    let (mut items, mut pages) = (Vec::new(), 0);
    let mut at = if back { 9_007_199_254_740_991 } else { 0 };
    loop {
        let way = if back { "before" } else { "after" };
        let path = format!("/tasks/job/events?gen={generation}&{way}={at}{run}");
        let request = server.client.request(reqwest::Method::GET, &path).timeout(PATIENCE);
        let text = request.send().await.unwrap().text().await.unwrap();
        assert!(text.len() < 200 * 1024, "{} bytes", text.len());
        let page: Value = serde_json::from_str(&text).unwrap();
        let found = page["items"].as_array().unwrap();
        if back {
            items.splice(0..0, found.iter().cloned());
        } else {
            items.extend(found.iter().cloned());
        }
        pages += 1;
        let next = page["next"].as_u64().unwrap();
        if page["more"] == false {
            return (items, pages);
        }
        assert!(if back { next < at } else { next > at }, "it gets on: {at} {next}");
        at = next;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_bounded_in_bytes_and_in_what_is_looked_at_for_them_also_for_one_run() {
    let home = stage("job");
    let server = home.serve().await;
    let (one, two) = (Play::begin(&server, "job").await, Play::begin(&server, "job").await);
    for _ in 0..12 {
        one.thought(&"o".repeat(30_000)).await;
    }
    // Nine megabytes of another run lie in between.
    for _ in 0..150 {
        two.thought(&"t".repeat(60_000)).await;
    }
    one.thought("the last of it").await;
    one.status(State::Succeeded).await;
    let all = server.client.pages("job").await;
    let wanted: Vec<_> = all.iter().filter(|event| event["run"] == one.run.to_string()).cloned().collect();
    for back in [false, true] {
        let (items, pages) = paged(&server, &format!("&run={}", one.run), back).await;
        assert_eq!(items, wanted);
        assert!((5..12).contains(&pages), "360 KiB found and 9 MiB looked at: {pages}");
        let (items, _) = paged(&server, "", back).await;
        assert_eq!(items, all);
    }
    server.stop().await;
}
