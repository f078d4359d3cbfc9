//! Runs that a program elsewhere carries out, fed line by line.

use std::time::Duration;

use rejoin::clock::Clock;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::harness::{Client, Home, PATIENCE, is_terminal, seqs};
use crate::process::until;
use crate::producer::Producer;

/// A task whose work is done elsewhere.
pub const EXTERNAL: &str = "title = \"Elsewhere\"\nagent = \"external\"\n";
/// A server that soon ends what does not end itself when it is told to. Its lease is longer than any stall of the machine.
const SOON: &str = "[runs]\nexternal_lease = \"10s\"\nexternal_stop = \"500ms\"";

fn home(config: &str) -> Home {
    Home::new(config).task("elsewhere", EXTERNAL)
}

fn line(n: u64, kind: &str, data: Value) -> String {
    json!({ "n": n, "kind": kind, "data": data }).to_string() + "\n"
}

fn thought(n: u64) -> String {
    line(n, "thought", json!({ "text": format!("thought {n}") }))
}

pub fn end(n: u64) -> String {
    line(n, "status", json!({ "state": "succeeded" }))
}

/// Lines `first` to `last`.
pub fn thoughts(first: u64, last: u64) -> String {
    (first..=last).map(thought).collect()
}

/// Sends all lines in one request.
pub async fn feed(client: &Client, run: &str, lines: impl Into<reqwest::Body>) -> (u16, Value) {
    let request = client.request(reqwest::Method::POST, &format!("/runs/{run}/events")).body(lines);
    let response = request.timeout(PATIENCE).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

/// The texts of the thoughts that a task's log has, in their order.
pub async fn said(client: &Client, task: &str) -> Vec<String> {
    let thoughts = client.pages(task).await.into_iter().filter(|event| event["kind"] == "thought");
    thoughts.map(|event| event["data"]["text"].as_str().unwrap().to_owned()).collect()
}

pub fn numbered(last: u64) -> Vec<String> {
    (1..=last).map(|n| format!("thought {n}")).collect()
}

/// Waits until so many lines of a run are saved.
pub async fn saved(client: &Client, run: &str, last_n: u64) -> Value {
    client.until(&format!("/runs/{run}"), |run| run["last_n"].as_u64() >= Some(last_n)).await
}

#[tokio::test]
async fn lines_of_a_program_elsewhere_come_out_at_a_watcher_and_its_last_status_ends_the_run() {
    let home = home("");
    let server = home.serve().await;
    let (status, answer) = server.client.post("/tasks/elsewhere/runs", json!({})).await;
    assert_eq!((status, &answer["run"]["state"]), (201, &json!("running")), "{answer}");
    assert_eq!(answer["run"]["last_n"], 0);
    let run = answer["run"]["id"].as_str().unwrap();
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "elsewhere", "after": 0 }])).await;
    let body = [
        line(1, "thought", json!({ "text": "What now?" })),
        line(2, "tool_use", json!({ "call": "c1", "tool": "shell", "input": {} })),
        line(3, "tool_result", json!({ "call": "c1", "tool": "shell", "ok": true, "output": "" })),
        line(4, "metric", json!({ "load": 1.5 })),
        line(5, "status", json!({ "state": "succeeded", "text": "Done" })),
    ];
    let (status, answer) = feed(&server.client, run, body.concat()).await;
    assert_eq!((status, answer), (200, json!({ "accepted": 5, "last_n": 5, "last_seq": 7, "stop": false })));
    let events = watcher.events_until_end().await;
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["status", "status", "thought", "tool_use", "tool_result", "metric", "status"]);
    assert_eq!(events[5]["data"], json!({ "load": 1.5 }), "what is not known is kept as it came");
    let over = server.client.ended(run).await;
    assert_eq!((&over["state"], &over["last_n"], &over["text"]), (&json!("succeeded"), &json!(5), &json!("Done")));
    assert!(over["duration_ms"].is_u64());
    server.stop().await;
}

#[tokio::test]
async fn lines_are_seen_while_the_request_goes_on_and_blank_ones_only_keep_it_alive() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "elsewhere", "after": 0 }])).await;
    let mut producer = Producer::open(&server.client, &run).await;
    // A line in three chunks, two lines in one, and blank ones of every make.
    for chunk in ["{\"n\":1,\"ki", "nd\":\"thought\",\"data\":", "{\"text\":\"thought 1\"}}\r\n", "\n \t\r\n\n"] {
        producer.say(chunk).await;
    }
    producer.say(thoughts(2, 3)).await;
    // Heartbeats come all the time: what never comes must not be waited for with them.
    let shown = timeout(PATIENCE, watcher.until(|frame| frame.to_string().contains("thought 3")));
    let frames = shown.await.expect("the lines are not shown while the request goes on");
    let shown: String = frames.iter().map(Value::to_string).collect();
    assert!(shown.contains("thought 1") && shown.contains("thought 2"));
    producer.say("\n".repeat(100_000)).await;
    // The last line needs no line break, as it is whole.
    producer.say(end(4).trim_end()).await;
    let (status, answer) = producer.end().await;
    assert_eq!((status, &answer["accepted"], &answer["last_n"]), (200, &json!(4), &json!(4)), "{answer}");
    assert_eq!(server.client.ended(&run).await["state"], "succeeded");
    server.stop().await;
}

#[tokio::test]
async fn a_line_that_was_there_before_is_dropped_and_one_that_is_missing_is_asked_for() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    assert_eq!(feed(&server.client, &run, thoughts(1, 5)).await.1["accepted"], 5);
    // Sent again, as after a cut: three are dropped, two are new.
    let (status, answer) = feed(&server.client, &run, thoughts(3, 7)).await;
    assert_eq!((status, &answer["accepted"], &answer["last_n"]), (200, &json!(2), &json!(7)));
    // Line 9 is missing: what came before it is kept, what follows is not.
    let (status, answer) = feed(&server.client, &run, thought(8) + &thoughts(10, 12)).await;
    assert_eq!((status, &answer["code"]), (409, &json!("gap")), "{answer}");
    assert_eq!((&answer["last_n"], &answer["accepted"], &answer["line"]), (&json!(8), &json!(1), &json!(2)));
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.1["last_n"], 8);
    // The producer no longer has lines 9 and 10: the loss becomes an event.
    let (status, answer) = feed(&server.client, &run, "{\"n\":10,\"gap\":true}\n".to_owned() + &thoughts(11, 12)).await;
    assert_eq!((status, &answer["accepted"], &answer["last_n"]), (200, &json!(3), &json!(12)));
    let mut wanted = numbered(12);
    wanted.drain(8..10);
    assert_eq!(said(&server.client, "elsewhere").await, wanted);
    let events = server.client.pages("elsewhere").await;
    let gap = events.iter().find(|event| !event["data"]["gap"].is_null()).unwrap();
    assert_eq!((&gap["data"]["gap"], &gap["data"]["state"]), (&json!({ "from": 9, "to": 10 }), &json!("progress")));
    assert!(gap["data"]["text"].as_str().unwrap().contains("2 events were lost"));
    server.stop().await;
}

#[tokio::test]
async fn a_new_request_fences_the_old_one_and_nothing_of_that_is_saved_any_more() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let mut old = Producer::open(&server.client, &run).await;
    old.say(thoughts(1, 3)).await;
    saved(&server.client, &run, 3).await;
    let mut new = Producer::open(&server.client, &run).await;
    new.say(thought(4)).await;
    saved(&server.client, &run, 4).await;
    // The old one goes on as if nothing had happened.
    let _ = old.try_say(line(5, "thought", json!({ "text": "of the old" }))).await;
    let (status, answer) = old.answer().await;
    assert_eq!((status, &answer["code"], &answer["accepted"]), (409, &json!("fenced"), &json!(3)), "{answer}");
    new.say(thoughts(5, 6)).await;
    let (status, answer) = new.end().await;
    assert_eq!((status, &answer["accepted"], &answer["last_n"]), (200, &json!(3), &json!(6)));
    assert_eq!(said(&server.client, "elsewhere").await, numbered(6));
    server.stop().await;
}

#[tokio::test]
async fn a_program_with_a_name_that_another_replaced_does_not_come_back() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let as_name = async |name: &str, lines: String| {
        let request = server.client.request(reqwest::Method::POST, &format!("/runs/{run}/events"));
        let response = request.header("Rejoin-Producer", name).body(lines).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    assert_eq!(as_name("first", thought(1)).await.0, 200);
    assert_eq!(as_name("first", thought(2)).await.0, 200, "its own requests replace each other");
    assert_eq!(as_name("second", thought(3)).await.0, 200);
    // The first hung, and knows nothing of it.
    let (status, answer) = as_name("first", line(4, "thought", json!({ "text": "of the first" }))).await;
    assert_eq!((status, &answer["code"], &answer["last_n"]), (409, &json!("fenced"), &json!(3)), "{answer}");
    let asked = server.client.request(reqwest::Method::GET, &format!("/runs/{run}/stop"));
    assert_eq!(asked.header("Rejoin-Producer", "first").send().await.unwrap().status(), 409);
    assert_eq!(as_name("second", thought(4)).await.0, 200);
    assert_eq!(said(&server.client, "elsewhere").await, numbered(4));
    assert_eq!(as_name("a name", thought(5)).await.0, 400);
    server.stop().await;
}

#[tokio::test]
async fn of_many_requests_at_once_each_line_is_saved_once_and_in_order() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    // As a producer that loses its connection again and again, and sends all it has each time.
    let requests = (0..20).map(|_| {
        let (client, run) = (server.client.clone(), run.clone());
        tokio::spawn(async move { feed(&client, &run, thoughts(1, 2000)).await })
    });
    let mut whole = 0;
    for request in requests.collect::<Vec<_>>() {
        let (status, answer) = request.await.unwrap();
        assert!(status == 200 || answer["code"] == "fenced", "{answer}");
        whole += u64::from(status == 200);
    }
    assert!(whole > 0, "the last one is fenced by nobody");
    assert_eq!(said(&server.client, "elsewhere").await, numbered(2000));
    assert_eq!(seqs(&server.client.pages("elsewhere").await), (1..=2002).collect::<Vec<_>>());
    server.stop().await;
}

#[tokio::test]
async fn however_the_body_is_cut_into_chunks_the_same_lines_come_out() {
    let home = home("");
    let server = home.serve().await;
    let long = json!({ "n": 40, "kind": "thought", "data": { "text": "x".repeat(200_000) } }).to_string() + "\r\n";
    let odd = thoughts(1, 39).replace("thought 7\"", "dreißig 😀\"") + "\n\r\n  \n";
    let body = odd + &long + &thoughts(41, 60) + &end(61);
    let mut first: Option<Vec<Value>> = None;
    for round in 0..12_u64 {
        let seed = rand::random::<u64>() | 1;
        let run = server.client.run("elsewhere").await;
        let mut producer = Producer::open(&server.client, &run).await;
        let (mut rest, mut state) = (body.as_bytes(), seed);
        while !rest.is_empty() {
            // A few bytes at a time, or many; the first as one.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let most = if round % 2 == 0 { 400 } else { 50_000 };
            let size = if round == 0 { rest.len() } else { (1 + (state >> 33) as usize % most).min(rest.len()) };
            let (chunk, others) = rest.split_at(size);
            producer.say(chunk).await;
            rest = others;
        }
        let (status, answer) = producer.end().await;
        assert_eq!((status, &answer["accepted"]), (200, &json!(61)), "seed {seed}: {answer}");
        let events = server.client.pages("elsewhere").await.into_iter().filter(|event| event["run"] == run.as_str());
        let shown: Vec<Value> = events.map(|event| json!([event["kind"], event["data"]["text"]])).collect();
        assert_eq!(first.get_or_insert_with(|| shown.clone()), &shown, "seed {seed}");
    }
    server.stop().await;
}

#[tokio::test]
async fn rubbish_is_refused_with_its_line_and_what_came_before_is_kept() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let nested = format!("{{\"n\":9,\"kind\":\"k\",\"data\":{{\"a\":{}", "[".repeat(100_000));
    let huge = json!({ "n": 9, "kind": "k", "data": { "text": "x".repeat(1024 * 1024) } }).to_string();
    let rubbish: [&[u8]; 14] = [
        b"{\"n\":9,\"kind\":\"k\",\"data\":{\"text\":\"\xff\xfe\"}}",
        b"\x00\x00\x00",
        b"{\"n\":9,\"kind\":\"k\",\"data\":{\"text\":\"\x00\"}}",
        b"{\"n\":9,\"kind\":\"k\",\"data\":{\"text\":\"\\ud800\"}}",
        b"not json at all",
        b"[1,2,3]",
        b"42",
        b"{\"n\":9,\"kind\":\"k\",\"data\":7}",
        b"{\"n\":9,\"kind\":\"tool_use\",\"data\":{\"call\":\"c\"}}",
        b"{\"n\":9,\"kind\":\"status\",\"data\":{\"state\":\"started\"}}",
        b"{\"n\":\"9\",\"kind\":\"k\",\"data\":{}}",
        b"{\"n\":9,\"kind\":\"k\",\"data\":{\"half\":",
        nested.as_bytes(),
        huge.as_bytes(),
    ];
    let mut last_n = 0;
    for bytes in rubbish {
        let good = thought(last_n + 1) + "\n" + &thought(last_n + 2);
        last_n += 2;
        // A number that is next, so that nothing else is wrong.
        let has_number = bytes.windows(5).any(|part| part == b"\"n\":9");
        let bytes = if has_number { replaced(bytes, last_n + 1) } else { bytes.to_vec() };
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let (status, answer) =
            feed(&server.client, &run, [good.as_bytes(), &bytes, b"\n", thought(last_n + 1).as_bytes()].concat()).await;
        assert_eq!((status, &answer["code"]), (400, &json!("bad_line")), "{shown}: {answer}");
        assert_eq!(
            (&answer["line"], &answer["accepted"], &answer["last_n"]),
            (&json!(4), &json!(2), &json!(last_n)),
            "{shown}"
        );
        assert!(answer["detail"].as_str().unwrap().starts_with("line 4: "), "{answer}");
    }
    assert_eq!(said(&server.client, "elsewhere").await, numbered(last_n));
    // Half a line at the end of the body is a bad line too; of a body that is cut it is nothing.
    let half = format!("{{\"n\":{},\"kind\":\"thou", last_n + 1);
    assert_eq!(feed(&server.client, &run, half.clone()).await.1["code"], "bad_line");
    let mut cut = Producer::open(&server.client, &run).await;
    cut.say(thought(last_n + 1) + &half).await;
    saved(&server.client, &run, last_n + 1).await;
    drop(cut);
    // The run goes on after all of it.
    let (status, answer) = feed(&server.client, &run, end(last_n + 2)).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
    server.stop().await;
}

/// The number 9 replaced by another.
fn replaced(bytes: &[u8], n: u64) -> Vec<u8> {
    let at = bytes.windows(5).position(|part| part == b"\"n\":9").unwrap();
    [&bytes[..at + 4], n.to_string().as_bytes(), &bytes[at + 5..]].concat()
}

#[tokio::test]
async fn a_line_of_a_megabyte_is_taken_cut_to_fit_and_kept_whole() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let text = "é".repeat(500_000);
    let long = json!({ "n": 1, "kind": "thought", "data": { "text": text }, "at": "2026-11-20T20:41:07Z" }).to_string();
    assert!(long.len() < 1024 * 1024);
    assert_eq!(feed(&server.client, &run, long).await.0, 200);
    let events = server.client.pages("elsewhere").await;
    let event = events.last().unwrap();
    assert!(event["data"]["cut"]["text"].as_u64() > Some(900_000), "{}", event["data"]["cut"]);
    let (_, whole) = server.client.get(&format!("/runs/{run}/events/{}/full", event["seq"])).await;
    assert_eq!((whole["data"]["text"].as_str(), &whole["at"]), (Some(text.as_str()), &event["at"]));
    server.stop().await;
}

#[tokio::test]
async fn when_something_happened_is_the_producers_to_say_within_the_life_of_its_run() {
    let clock = Clock::system();
    let home = home("");
    let server = home.serve_at(clock).await;
    let run = server.client.run("elsewhere").await;
    let queued_at = server.client.get(&format!("/runs/{run}")).await.1["queued_at"].as_str().unwrap().to_owned();
    let at =
        |n: u64, at: &str| json!({ "n": n, "kind": "thought", "data": { "text": "t" }, "at": at }).to_string() + "\n";
    let body = at(1, "1999-01-01T00:00:00Z") + &at(2, &queued_at) + &at(3, "9999-01-01T00:00:00+02:00") + &thought(4);
    assert_eq!(feed(&server.client, &run, body).await.0, 200);
    let events = server.client.pages("elsewhere").await;
    let times: Vec<&str> = events[2..].iter().map(|event| event["at"].as_str().unwrap()).collect();
    assert_eq!(times[..2], [queued_at.as_str(), queued_at.as_str()], "not before the run");
    assert!(times[2] > queued_at.as_str() && times[2] < "9000", "not in the time to come: {}", times[2]);
    assert!(times[3] >= queued_at.as_str());
    server.stop().await;
}

#[tokio::test]
async fn a_call_is_open_once_and_an_end_in_many_words_repeats_few_of_them_for_each() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let opens = |n: u64, call: &str| line(n, "tool_use", json!({ "call": call, "tool": "shell", "input": {} }));
    let twice = opens(1, "c1") + &opens(2, "c1");
    for (body, number) in [(twice, 2), (opens(2, "c1"), 1)] {
        let (status, answer) = feed(&server.client, &run, body).await;
        assert_eq!((status, &answer["code"], &answer["line"]), (400, &json!("bad_line"), &json!(number)), "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains("c1 is open already"), "{answer}");
    }
    let result = line(2, "tool_result", json!({ "call": "c1", "tool": "shell", "ok": true }));
    let words = "x".repeat(50_000);
    let ends = line(5, "status", json!({ "state": "failed", "text": words }));
    let (status, answer) = feed(&server.client, &run, result + &opens(3, "c1") + &opens(4, "c2") + &ends).await;
    assert_eq!(status, 200, "{answer}");
    let events = server.client.pages("elsewhere").await;
    let lost: Vec<_> = events.iter().filter(|event| event["kind"] == "tool_result").skip(1).collect();
    assert_eq!(lost.len(), 2);
    assert!(lost.iter().all(|event| event["data"]["output"].as_str().unwrap().len() == 200));
    server.stop().await;
}

#[tokio::test]
async fn the_end_closes_what_is_open_and_nothing_follows_it() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let opens = line(1, "tool_use", json!({ "call": "c1", "tool": "shell", "input": { "command": "sleep" } }));
    let ends = line(2, "status", json!({ "state": "failed", "reason": "no luck", "attention": { "summary": "Look" } }));
    let (status, answer) = feed(&server.client, &run, opens + &ends + &thoughts(3, 5)).await;
    assert_eq!((status, &answer["code"]), (409, &json!("run_over")), "{answer}");
    assert_eq!((&answer["accepted"], &answer["last_n"]), (&json!(2), &json!(2)));
    assert_eq!(answer["run"]["state"], "failed");
    let events = server.client.pages("elsewhere").await;
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["status", "status", "tool_use", "tool_result", "status"]);
    assert_eq!(
        (&events[3]["data"]["call"], &events[3]["data"]["ok"], &events[3]["data"]["tool"]),
        (&json!("c1"), &json!(false), &json!("shell"))
    );
    let over = server.client.ended(&run).await;
    assert_eq!((&over["reason"], &over["attention"]["summary"]), (&json!("no luck"), &json!("Look")));
    assert_eq!(over["text"], "Task elsewhere failed: no luck");
    // Sent again, as by a producer that did not hear the answer: it is told how far it came.
    let (status, answer) = feed(&server.client, &run, ends).await;
    assert_eq!(
        (status, &answer["code"], &answer["last_n"], &answer["accepted"]),
        (409, &json!("run_over"), &json!(2), &json!(0))
    );
    server.stop().await;
}

#[tokio::test]
async fn after_the_end_a_body_that_stays_open_is_answered_all_the_same() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let mut producer = Producer::open(&server.client, &run).await;
    producer.say(end(1)).await;
    server.client.ended(&run).await;
    producer.say("\n\n").await;
    let (status, answer) = producer.answer().await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn only_runs_elsewhere_are_fed_claimed_and_asked_whether_to_stop() {
    let home = home("").shell_task("here", "sleep 30");
    let server = home.serve().await;
    let here = server.client.run("here").await;
    for (status, answer) in [
        feed(&server.client, &here, thought(1)).await,
        server.client.post("/tasks/here/claim?wait=0", json!({})).await,
        server.client.get(&format!("/runs/{here}/stop")).await,
    ] {
        assert_eq!((status, &answer["code"]), (409, &json!("not_external")), "{answer}");
    }
    let nobody = "0192f0c1-0000-7000-8000-000000000000";
    for (status, answer) in [
        feed(&server.client, nobody, thought(1)).await,
        feed(&server.client, "rubbish", thought(1)).await,
        server.client.post("/tasks/nothing/claim?wait=0", json!({})).await,
        server.client.get(&format!("/runs/{nobody}/stop")).await,
    ] {
        assert_eq!((status, &answer["code"]), (404, &json!("not_found")), "{answer}");
    }
    for wait in ["61", "-1", "soon"] {
        assert_eq!(server.client.post(&format!("/tasks/elsewhere/claim?wait={wait}"), json!({})).await.0, 400);
    }
    let run = server.client.run("elsewhere").await;
    let packed = server.client.request(reqwest::Method::POST, &format!("/runs/{run}/events"));
    let packed = packed.header("Content-Encoding", "gzip").body("x").send().await.unwrap();
    assert_eq!(packed.status(), 415);
    server.client.post(&format!("/runs/{here}/stop"), json!({})).await;
    server.stop().await;
}

#[tokio::test]
async fn a_body_has_no_limit() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let lines: String = (1..=3000).map(|n| line(n, "thought", json!({ "text": "x".repeat(2000) }))).collect();
    assert!(lines.len() > 5 * 1024 * 1024);
    let (status, answer) = feed(&server.client, &run, lines).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(3000)), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_program_that_falls_silent_loses_its_run_and_an_open_request_keeps_it() {
    let home = home("[runs]\nexternal_lease = \"2s\"");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let producer = Producer::open(&server.client, &run).await;
    // Its lease begins while it is being made, so the time does too.
    let begun = Instant::now();
    let silent = server.client.run("elsewhere").await;
    let over = server.client.ended(&silent).await;
    assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
    assert_eq!(over["state"], "interrupted");
    assert_eq!(over["reason"], "nothing was heard of its program for 2 s");
    // Longer than the lease: the request is open, though nothing comes.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.1["state"], "running");
    drop(producer);
    assert_eq!(server.client.ended(&run).await["state"], "interrupted");
    let (status, answer) = feed(&server.client, &run, thought(1)).await;
    assert_eq!((status, &answer["code"], &answer["last_n"]), (409, &json!("run_over"), &json!(0)));
    server.stop().await;
}

#[tokio::test]
async fn a_stop_is_told_to_the_program_which_ends_the_run_itself() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let mut producer = Producer::open(&server.client, &run).await;
    producer.say(thought(1)).await;
    saved(&server.client, &run, 1).await;
    let path = format!("/runs/{run}/stop?wait=30");
    assert_eq!(
        server.client.get(&format!("/runs/{run}/stop")).await.1,
        json!({ "stop": false, "why": null, "last_n": 1 })
    );
    let (client, asked) = (server.client.clone(), path.clone());
    let waiting = tokio::spawn(async move { client.get(&asked).await });
    let (status, stopping) = server.client.post(&format!("/runs/{run}/stop"), json!({})).await;
    assert_eq!((status, &stopping["state"]), (202, &json!("running")));
    assert_eq!(waiting.await.unwrap(), (200, json!({ "stop": true, "why": "asked", "last_n": 1 })));
    let shown = server.client.until(&format!("/runs/{run}"), |run| !run["stopping"].is_null()).await;
    assert_eq!(shown["stopping"]["stage"], "told");
    producer.say(line(2, "status", json!({ "state": "cancelled", "reason": "asked to" }))).await;
    let (status, answer) = producer.end().await;
    assert_eq!((status, &answer["stop"]), (200, &json!(true)), "{answer}");
    let over = server.client.ended(&run).await;
    assert_eq!(
        (&over["state"], &over["reason"], &over["stopping"]),
        (&json!("cancelled"), &json!("asked to"), &Value::Null)
    );
    server.stop().await;
}

#[tokio::test]
async fn a_program_that_does_not_stop_is_ended_by_the_server_and_told_so() {
    let home = home(SOON);
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let mut producer = Producer::open(&server.client, &run).await;
    producer.say(line(1, "tool_use", json!({ "call": "c1", "tool": "shell", "input": {} }))).await;
    saved(&server.client, &run, 1).await;
    server.client.post(&format!("/runs/{run}/stop"), json!({})).await;
    let over = server.client.ended(&run).await;
    assert_eq!((&over["state"], &over["reason"]), (&json!("cancelled"), &json!("stopped on request")));
    let (status, answer) = producer.answer().await;
    assert_eq!((status, &answer["code"], &answer["last_n"]), (409, &json!("run_over"), &json!(1)), "{answer}");
    let events = server.client.pages("elsewhere").await;
    let last: Vec<&str> = events.iter().rev().take(2).map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(last, ["status", "tool_result"], "the open call is closed first");
    let (status, answer) = server.client.get(&format!("/runs/{run}/stop")).await;
    assert_eq!((status, &answer["code"]), (409, &json!("run_over")));
    server.stop().await;
}

#[tokio::test]
async fn the_time_of_the_policy_holds_and_the_program_is_told() {
    let text = format!("{EXTERNAL}[policy]\ntimeout = \"1s\"\n");
    let home = Home::new(SOON).task("elsewhere", &text);
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let (status, told) = server.client.get(&format!("/runs/{run}/stop?wait=30")).await;
    assert_eq!((status, &told["why"]), (200, &json!("timed_out")));
    let over = server.client.ended(&run).await;
    assert_eq!((&over["state"], &over["reason"]), (&json!("timed_out"), &json!("took longer than 1 s")));
    server.stop().await;
    // One that ends in the time it is given to end took too long all the same.
    let home = Home::new("[runs]\nexternal_stop = \"60s\"").task("elsewhere", &text);
    let server = home.serve().await;
    let late = server.client.run("elsewhere").await;
    let producer = Producer::open(&server.client, &late).await;
    server.client.get(&format!("/runs/{late}/stop?wait=30")).await;
    let mut producer = producer;
    producer.say(line(1, "status", json!({ "state": "succeeded", "text": "Just so" }))).await;
    assert_eq!(producer.end().await.0, 200);
    let over = server.client.ended(&late).await;
    assert_eq!((&over["state"], &over["reason"]), (&json!("timed_out"), &json!("took longer than 1 s")));
    let events = server.client.pages("elsewhere").await;
    assert_eq!(events.last().unwrap()["data"]["said"], "Just so");
    server.stop().await;
}

#[tokio::test]
async fn a_deleted_task_stops_its_runs_elsewhere_and_their_programs_are_told() {
    let home = Home::new(SOON);
    let server = home.serve().await;
    let made = json!({ "id": "made", "title": "Made", "agent": "external", "run": false });
    assert_eq!(server.client.post("/tasks", made).await.0, 201);
    let run = server.client.run("made").await;
    let mut producer = Producer::open(&server.client, &run).await;
    producer.say(thoughts(1, 3)).await;
    saved(&server.client, &run, 3).await;
    assert_eq!(server.client.delete("/tasks/made").await.1["code"], "task_running");
    assert_eq!(server.client.delete("/tasks/made?stop=true").await.0, 204);
    let (status, answer) = producer.answer().await;
    assert!(status == 409 && answer["code"] == "run_over" || status == 404, "{status} {answer}");
    assert_eq!(feed(&server.client, &run, thought(4)).await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn a_run_by_hand_that_nobody_speaks_for_goes_to_one_of_many_who_ask() {
    let home = home("[runs]\nexternal_lease = \"4s\"");
    let server = home.serve().await;
    let claims: Vec<_> = (0..12)
        .map(|_| {
            let client = server.client.clone();
            tokio::spawn(async move { client.post("/tasks/elsewhere/claim?wait=6", json!({})).await })
        })
        .collect();
    let spoken_for = server.client.run("elsewhere").await;
    let producer = Producer::open(&server.client, &spoken_for).await;
    let run = server.client.run("elsewhere").await;
    let begun = Instant::now();
    let mut given = Vec::new();
    for claim in claims {
        match claim.await.unwrap() {
            (200, answer) => given.push(answer["run"]["id"].as_str().unwrap().to_owned()),
            (status, answer) => assert_eq!((status, &answer), (204, &Value::Null)),
        }
    }
    assert_eq!(given, [run], "one run, one program, and not the run that has one");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    drop(producer);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_elsewhere_began_after_a_slot_is_not_replaced_by_that_at_the_next_start() {
    let text = format!("{EXTERNAL}[schedule]\nevery = \"1h\"\n[policy]\noverlap = \"replace\"\n");
    let home = Home::new("").task("elsewhere", &text);
    let clock = Clock::standing_at("2026-11-20T20:00:00Z".parse().unwrap());
    let server = home.serve_at(clock.clone()).await;
    clock.pass(Duration::from_secs(3600));
    server.client.until("/tasks/elsewhere/runs", |runs| runs["items"][0]["state"] == "queued").await;
    clock.pass(Duration::from_secs(1));
    let (_, answer) = server.client.post("/tasks/elsewhere/runs", json!({})).await;
    let run = answer["run"]["id"].as_str().unwrap();
    assert_eq!(answer["run"]["state"], "running");
    server.stop().await;
    let server = home.serve_at(clock).await;
    let (status, answer) = feed(&server.client, run, end(1)).await;
    assert_eq!((status, &answer["stop"]), (200, &json!(false)), "{answer}");
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.1["state"], "succeeded");
    server.stop().await;
}

#[tokio::test]
async fn a_scheduled_run_waits_until_it_is_asked_for_and_goes_to_one() {
    let text = format!("{EXTERNAL}[schedule]\nevery = \"1s\"\n[policy]\noverlap = \"queue\"\n");
    let home = Home::new("").task("elsewhere", &text);
    let server = home.serve().await;
    let runs = server.client.until("/tasks/elsewhere/runs", |runs| runs["items"].as_array().unwrap().len() >= 2).await;
    assert!(runs["items"].as_array().unwrap().iter().all(|run| run["state"] == "queued"), "{runs}");
    let oldest = runs["items"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    let claims: Vec<_> = (0..6)
        .map(|_| {
            let client = server.client.clone();
            tokio::spawn(async move { client.post("/tasks/elsewhere/claim?wait=2", json!({})).await })
        })
        .collect();
    let mut given = Vec::new();
    for claim in claims {
        if let (200, answer) = claim.await.unwrap() {
            given.push(answer["run"].clone());
        }
    }
    assert_eq!(given.len(), 1, "runs of one task follow each other: {given:?}");
    assert_eq!(
        (given[0]["id"].as_str(), &given[0]["state"], &given[0]["last_n"]),
        (Some(oldest.as_str()), &json!("running"), &json!(0))
    );
    let slots = server.client.get("/tasks/elsewhere/slots").await.1;
    assert!(
        slots["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|slot| slot["run"] == oldest.as_str() && ["ran", "late"].contains(&slot["outcome"].as_str().unwrap())),
        "{slots}"
    );
    // Once it is over, the next may be had.
    assert_eq!(feed(&server.client, &oldest, end(1)).await.0, 200);
    let (status, next) = server.client.post("/tasks/elsewhere/claim", json!({})).await;
    assert_eq!(status, 200);
    assert_ne!(next["run"]["id"], oldest.as_str());
    server.stop().await;
}

#[tokio::test]
async fn under_its_key_a_claim_gives_the_same_run_again() {
    let home = home("[runs]\nexternal_lease = \"4s\"");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let claim = async || {
        let request = server.client.request(reqwest::Method::POST, "/tasks/elsewhere/claim?wait=15");
        let response = request.header("Idempotency-Key", "k-1").timeout(PATIENCE).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    };
    // As by a program that did not hear the first answer.
    let (first, again) = (claim().await, claim().await);
    assert_eq!((first.0, first.1["run"]["id"].as_str()), (200, Some(run.as_str())));
    assert_eq!((again.0, again.1["run"]["id"].as_str()), (200, Some(run.as_str())));
    server.stop().await;
}

/// Asks for work and has no answer yet.
async fn asks_for_work(client: &Client) -> Producer {
    let mut stream = TcpStream::connect(client.address).await.unwrap();
    let head = format!(
        "POST /api/v1/tasks/elsewhere/claim?wait=60 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n",
        client.address, client.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // It waits when a later request is answered.
    client.get("/status").await;
    Producer { stream }
}

#[tokio::test]
async fn who_asked_for_work_and_hung_up_is_given_none() {
    let home = home("[runs]\nexternal_lease = \"4s\"");
    let server = home.serve().await;
    for _ in 0..5 {
        drop(asks_for_work(&server.client).await);
    }
    let run = server.client.run("elsewhere").await;
    let (status, answer) = server.client.post("/tasks/elsewhere/claim?wait=15", json!({})).await;
    assert_eq!((status, answer["run"]["id"].as_str()), (200, Some(run.as_str())), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn who_waits_is_told_when_the_server_stops() {
    let home = home("");
    let server = home.serve().await;
    let run = server.client.run("elsewhere").await;
    let mut producer = Producer::open(&server.client, &run).await;
    producer.say(thoughts(1, 3)).await;
    saved(&server.client, &run, 3).await;
    // Nobody has spoken for this one, and it may be taken by others until its program asks: so that is seen.
    let quiet = server.client.run("elsewhere").await;
    let seat = server.server.api().runs.elsewhere(quiet.parse().unwrap()).await.unwrap();
    assert!(seat.free_from().is_some());
    let client = server.client.clone();
    let path = format!("/runs/{quiet}/stop?wait=60");
    let asking = tokio::spawn(async move { client.get(&path).await });
    until("its program asks", || seat.free_from().is_none()).await;
    let mut claiming = asks_for_work(&server.client).await;
    let begun = Instant::now();
    let stopping = tokio::spawn(server.stop());
    let (status, answer) = producer.answer().await;
    assert_eq!((status, &answer["code"], &answer["last_n"]), (503, &json!("draining"), &json!(3)), "{answer}");
    assert_eq!(asking.await.unwrap().0, 503);
    assert_eq!(claiming.answer().await.0, 503);
    drop(producer);
    stopping.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "a run elsewhere holds up no stop");
}

#[tokio::test]
async fn a_run_survives_a_stop_and_a_kill_of_the_server_and_loses_and_doubles_nothing() {
    let home = home("[runs]\nexternal_lease = \"20s\"");
    let mut server = home.spawn(&[]).await;
    let run = server.client.run("elsewhere").await;
    let total = 20_000;
    let mut restarts = 0;
    let mut next = 1;
    // The producer sends on without a break; when it is cut off it asks how far it came.
    while next <= total {
        let mut producer = Producer::open(&server.client, &run).await;
        while next <= total && producer.try_say(thoughts(next, (next + 49).min(total))).await.is_ok() {
            next = (next + 50).min(total + 1);
            if restarts < 5 && next > (restarts + 1) * 3000 {
                restarts += 1;
                if restarts % 2 == 0 {
                    assert!(server.terminate().await.success());
                } else {
                    server.kill();
                }
                server = home.spawn(&[]).await;
                break;
            }
        }
        if next > total {
            let (status, answer) = producer.end().await;
            assert_eq!((status, &answer["last_n"]), (200, &json!(total)), "{answer}");
        } else {
            let (_, there) = server.client.get(&format!("/runs/{run}")).await;
            assert_eq!(there["state"], "running", "{there}");
            next = there["last_n"].as_u64().unwrap() + 1;
        }
    }
    assert_eq!(restarts, 5);
    assert_eq!(feed(&server.client, &run, end(total + 1)).await.0, 200);
    assert_eq!(said(&server.client, "elsewhere").await, numbered(total));
    let events = server.client.pages("elsewhere").await;
    assert_eq!(seqs(&events), (1..=events.len() as u64).collect::<Vec<_>>());
    assert!(events.iter().rev().take(1).all(is_terminal));
    assert_eq!(events.iter().filter(|event| is_terminal(event)).count(), 1);
}

#[tokio::test]
async fn after_a_start_the_lease_begins_anew_and_a_stop_that_was_asked_for_still_holds() {
    let home = home("[runs]\nexternal_lease = \"4s\"\nexternal_stop = \"60s\"");
    let mut server = home.spawn(&[]).await;
    let (silent, stopped) = (server.client.run("elsewhere").await, server.client.run("elsewhere").await);
    let producer = Producer::open(&server.client, &stopped).await;
    server.client.post(&format!("/runs/{stopped}/stop"), json!({})).await;
    server.client.until(&format!("/runs/{stopped}"), |run| !run["stopping"].is_null()).await;
    drop(producer);
    server.kill();
    // Longer than the lease: the server was not there to hear anything.
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let server = home.spawn(&[]).await;
    assert_eq!(server.client.get(&format!("/runs/{silent}")).await.1["state"], "running");
    assert_eq!(server.client.get(&format!("/runs/{stopped}/stop")).await.1["why"], "asked");
    assert_eq!(server.client.ended(&silent).await["state"], "interrupted");
}

#[tokio::test]
async fn a_run_elsewhere_takes_no_place_of_those_at_work_here() {
    let home = home("[runs]\nconcurrency = 1").shell_task("here", "true");
    let server = home.serve().await;
    for _ in 0..3 {
        server.client.run("elsewhere").await;
    }
    let here = server.client.run("here").await;
    assert_eq!(server.client.ended(&here).await["state"], "succeeded");
    assert_eq!(server.client.get("/status").await.1["running"], 3);
    server.stop().await;
}

#[tokio::test]
async fn a_task_file_says_external_and_no_steps() {
    let home = home("");
    let server = home.serve().await;
    let (_, task) = server.client.get("/tasks/elsewhere").await;
    assert_eq!((&task["agent"], &task["definition"]["steps"]), (&json!("external"), &Value::Null));
    for (member, value) in [
        ("steps", json!([{ "run": "true" }])),
        ("secrets", json!({ "A": { "env": "B" } })),
        ("attention", json!("true")),
        ("instruction", json!("do it")),
    ] {
        let mut body = json!({ "title": "Wrong", "agent": "external" });
        body[member] = value;
        let (status, answer) = server.client.post("/tasks", body).await;
        assert_eq!((status, &answer["field"]), (400, &json!(member)), "{answer}");
    }
    // Its program opens the runs; one is opened at once only for who says so.
    let (status, made) = server.client.post("/tasks", json!({ "title": "Made", "agent": "external" })).await;
    assert_eq!((status, &made["run"]), (201, &Value::Null), "{made}");
    let at_once = json!({ "title": "At once", "agent": "external", "run": true });
    let (status, at_once) = server.client.post("/tasks", at_once).await;
    assert_eq!((status, &at_once["run"]["state"]), (201, &json!("running")), "{at_once}");
    let (status, patched) = server
        .client
        .request(reqwest::Method::PATCH, "/tasks/made")
        .json(&json!({ "title": "Other" }))
        .send()
        .await
        .map(|response| (response.status(), response))
        .unwrap();
    assert_eq!(status, 200, "{:?}", patched.text().await);
    server.stop().await;
}
