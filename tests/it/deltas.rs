//! Texts that are shown while they are written: to whoever watches, from the beginning, never with a gap, never behind
//! the event that has the whole of them.

use std::collections::HashMap;
use std::path::Path;

use rejoin::event::{Body, State};
use rejoin::stream::delta::{MOST_TEXT, MOST_TEXTS};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::harness::{Home, InProcess, Watcher, events_of, is_terminal};
use crate::rows_stage::{NO_HEARTBEAT, Play, SOON, stage};

/// A task whose agent follows a script; what it waits for are files in the home.
fn scripted(home: Home, task: &str, more: &str, script: &[Value]) -> Home {
    let script: Vec<String> = script.iter().map(Value::to_string).collect();
    let text = format!(
        "title = \"{task}\"\nagent = \"echo_model\"\n[params]\nscript = {{ default = {} }}\n{more}\n",
        toml::Value::from(script.join("\n"))
    );
    home.task(task, &text)
}

fn wait(home: &Path, name: &str) -> Value {
    json!(["wait", home.join(name)])
}

fn go(home: &Home, name: &str) {
    std::fs::write(home.path().join(name), "").unwrap();
}

/// What a client makes of the frames of one sub, by the rules of the protocol.
#[derive(Default)]
struct Reading {
    /// The open texts, by run and key.
    texts: HashMap<(String, String), String>,
    closed: Vec<(String, String)>,
    /// The types of the frames, runs of the same one as one.
    order: Vec<String>,
    events: Vec<Value>,
    deltas: usize,
}

impl Reading {
    fn take(&mut self, frame: &Value) {
        let kind = frame["type"].as_str().unwrap().to_owned();
        let kind = if kind == "event" { "events".to_owned() } else { kind };
        if self.order.last() != Some(&kind) {
            self.order.push(kind.clone());
        }
        match kind.as_str() {
            "subscribed" | "snapshot" => self.texts.clear(),
            "delta" => {
                let text = |name: &str| frame[name].as_str().unwrap().to_owned();
                let of = (text("run"), text("key"));
                assert!(!self.closed.contains(&of), "behind its event: {frame}");
                let known = self.texts.entry(of).or_default();
                assert_eq!(known.chars().count() as u64, frame["offset"].as_u64().unwrap(), "a gap: {frame}");
                assert!(!text("text").is_empty());
                known.push_str(&text("text"));
                self.deltas += 1;
            }
            _ => {}
        }
        for event in events_of(frame) {
            let run = event["run"].as_str().unwrap_or_default().to_owned();
            if let Some(key) = event["data"]["key"].as_str() {
                let of = (run.clone(), key.to_owned());
                if let Some(draft) = self.texts.remove(&of) {
                    let whole = event["data"]["text"].as_str().unwrap();
                    let is_cut = event["data"]["cut"].is_object();
                    assert!(is_cut || whole.starts_with(&draft), "{draft:.200?} is no beginning of {whole:.200?}");
                }
                self.closed.push(of);
            }
            if is_terminal(&event) {
                self.texts.retain(|(of, _), _| *of != run);
                // Nothing of the run follows, no piece either.
                self.closed.push((run, "*".to_owned()));
            }
            self.events.push(event);
        }
    }

    async fn until(&mut self, watcher: &mut Watcher, good: impl Fn(&Self) -> bool) {
        while !good(self) {
            let frame = timeout(SOON, watcher.next()).await.expect("nothing came");
            self.take(&frame);
        }
    }

    fn only_text(&self) -> &str {
        assert!(self.texts.len() <= 1);
        self.texts.values().next().map_or("", String::as_str)
    }

    /// What there is of one text. Others may be open: one may begin before the event of the one before is saved.
    fn text(&self, key: &str) -> &str {
        self.texts.iter().find(|((_, known), _)| known == key).map_or("", |(_, text)| text)
    }

    fn is_over(&self) -> bool {
        self.events.last().is_some_and(is_terminal)
    }
}

async fn watch(server: &InProcess, task: &str) -> (Watcher, Reading) {
    (server.client.watch(json!([{ "sub": 1, "task": task }])).await, Reading::default())
}

fn write(play: &Play, server: &InProcess, key: &str, text: &str) {
    if play.topic.write_draft(play.run, key, text) {
        server.server.api().publisher.wake_all(&play.topic);
    }
}

async fn finish(play: &Play, key: &str, text: &str) -> u64 {
    let body = Box::new(Body::Thought { text: text.to_owned() });
    play.say(Body::Written { key: key.to_owned(), body }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_seen_growing_and_its_event_takes_its_place() {
    let home = Home::new(NO_HEARTBEAT);
    let path = home.path().to_owned();
    let script = [
        wait(&path, "one"),
        json!(["delta", "m1", "It is "]),
        wait(&path, "two"),
        json!(["delta", "m1", "full: "]),
        json!(["delta", "m1", "96 %"]),
        wait(&path, "three"),
        json!(["message", "m1", "It is full: 96 % of 20 GiB"]),
        json!(["delta", "m1", " and more"]),
        json!(["say", "done"]),
        wait(&path, "four"),
    ];
    let home = scripted(home, "job", "", &script);
    let server = home.serve().await;
    let (mut watcher, mut seen) = watch(&server, "job").await;
    seen.until(&mut watcher, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    let run = server.client.run("job").await;
    go(&home, "one");
    seen.until(&mut watcher, |seen| seen.only_text() == "It is ").await;
    assert_eq!(seen.texts.keys().next().unwrap(), &(run.clone(), "m1".to_owned()));
    go(&home, "two");
    seen.until(&mut watcher, |seen| seen.only_text() == "It is full: 96 %").await;
    go(&home, "three");
    seen.until(&mut watcher, |seen| seen.events.last().is_some_and(|event| event["data"]["text"] == "done")).await;
    let event = &seen.events[seen.events.len() - 2];
    assert_eq!(
        (&event["kind"], &event["data"]["key"], &event["data"]["role"], &event["data"]["text"]),
        (&json!("message"), &json!("m1"), &json!("agent"), &json!("It is full: 96 % of 20 GiB"))
    );
    go(&home, "four");
    seen.until(&mut watcher, Reading::is_over).await;
    assert!(seen.texts.is_empty());
    // It is nowhere but in its event.
    let pieces = home.logged_events("job").into_iter().filter(|(_, text)| text.contains("96 %")).count();
    assert_eq!(pieces, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_in_the_middle_gets_the_text_so_far_before_the_events() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    play.thought("before").await;
    write(&play, &server, "k", "Grüße 👩‍🚀, ");
    write(&play, &server, "k", "from here");
    let (mut watcher, mut seen) = watch(&server, "job").await;
    seen.until(&mut watcher, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    assert_eq!(seen.order, ["subscribed", "delta", "events", "caught_up"]);
    assert_eq!((seen.deltas, seen.only_text()), (1, "Grüße 👩‍🚀, from here"), "in one piece, at offset 0");
    write(&play, &server, "k", "!");
    let delta = timeout(SOON, watcher.next()).await.unwrap();
    let scalars = "Grüße 👩‍🚀, from here".chars().count();
    assert_eq!(delta["offset"], scalars, "counted in scalars, not in bytes or UTF-16");
    assert_eq!(
        delta,
        json!({ "type": "delta", "sub": 1, "run": play.run, "key": "k", "offset": scalars, "text": "!" })
    );
    seen.take(&delta);
    finish(&play, "k", "Grüße 👩‍🚀, from here!").await;
    seen.until(&mut watcher, |seen| seen.closed.len() == 1).await;
    let (mut late, mut seen) = watch(&server, "job").await;
    seen.until(&mut late, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    assert_eq!(seen.order, ["subscribed", "events", "caught_up"], "the event has it");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_reset_the_text_so_far_comes_again_between_snapshot_and_events() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    write(&play, &server, "k", "so far");
    let mut watcher =
        server.client.watch(json!([{ "sub": 1, "task": "job", "gen": "00000000000000aa", "after": 7 }])).await;
    let mut seen = Reading::default();
    seen.until(&mut watcher, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    assert_eq!(seen.order, ["subscribed", "reset", "snapshot", "delta", "caught_up"]);
    assert_eq!(seen.only_text(), "so far");
    // Another log in the middle of it: all begins anew, the text too.
    let generation = server.client.get("/tasks/job").await.1["gen"].as_str().unwrap().to_owned();
    let (status, _) = server.client.get(&format!("/tasks/job/events?gen={generation}&after=99")).await;
    assert_eq!(status, 409);
    seen.order.clear();
    seen.until(&mut watcher, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    assert_eq!(seen.order, ["subscribed", "reset", "snapshot", "delta", "caught_up"]);
    assert_eq!((seen.only_text(), seen.deltas), ("so far", 2));
    // A new sub of the same task on the same socket.
    watcher.send(json!({ "type": "subscribe", "sub": 2, "task": "job" })).await;
    seen.order.clear();
    seen.until(&mut watcher, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    assert_eq!(seen.order, ["subscribed", "delta", "events", "caught_up"]);
    assert_eq!(seen.only_text(), "so far");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_too_long_is_shown_as_far_as_it_is_kept_and_its_event_has_the_rest() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let (mut early, mut seen_early) = watch(&server, "job").await;
    let piece = "0123456789abcdé \u{1}".repeat(400);
    for _ in 0..20 {
        write(&play, &server, "k", &piece);
    }
    let kept = |seen: &Reading| seen.only_text().len();
    seen_early.until(&mut early, |seen| kept(seen) == MOST_TEXT || kept(seen) == MOST_TEXT - 1).await;
    let (mut late, mut seen_late) = watch(&server, "job").await;
    let mut largest = 0;
    while kept(&seen_late) < kept(&seen_early) {
        let frame = timeout(SOON, late.next()).await.expect("nothing came");
        largest = largest.max(frame.to_string().len());
        seen_late.take(&frame);
    }
    assert_eq!(seen_late.only_text(), seen_early.only_text());
    assert!(largest <= 100 * 1024, "a frame of {largest} bytes");
    write(&play, &server, "k", "nobody sees this");
    let whole = format!("{}and the end", piece.repeat(20));
    let seq = finish(&play, "k", &whole).await;
    for (watcher, seen) in [(&mut early, &mut seen_early), (&mut late, &mut seen_late)] {
        seen.until(watcher, |seen| {
            seen.events.iter().any(|event| event["seq"] == seq && event["data"]["cut"].is_object())
        })
        .await;
        assert!(seen.texts.is_empty());
    }
    let path = format!("/runs/{}/events/{seq}/full", play.run);
    assert_eq!(server.client.get(&path).await.1["data"]["text"], whole);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_too_many_at_once_are_left_to_their_events() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let (mut watcher, mut seen) = watch(&server, "job").await;
    for n in 0..MOST_TEXTS + 4 {
        write(&play, &server, &format!("k{n}"), "text");
    }
    seen.until(&mut watcher, |seen| seen.texts.len() == MOST_TEXTS).await;
    for n in 0..MOST_TEXTS + 4 {
        finish(&play, &format!("k{n}"), "text, all of it").await;
    }
    seen.until(&mut watcher, |seen| seen.closed.len() == MOST_TEXTS + 4).await;
    assert!(seen.texts.is_empty());
    write(&play, &server, "another", "there is room again");
    seen.until(&mut watcher, |seen| seen.only_text() == "there is room again").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_run_ends_what_it_was_writing() {
    let home = stage("job");
    let server = home.serve().await;
    let (one, two) = (Play::begin(&server, "job").await, Play::begin(&server, "job").await);
    write(&one, &server, "k", "of the one");
    write(&two, &server, "k", "of the other");
    let (mut watcher, mut seen) = watch(&server, "job").await;
    seen.until(&mut watcher, |seen| seen.texts.len() == 2).await;
    one.status(State::Cancelled).await;
    seen.until(&mut watcher, |seen| seen.events.last().is_some_and(is_terminal)).await;
    assert_eq!(seen.only_text(), "of the other");
    let (mut late, mut seen) = watch(&server, "job").await;
    seen.until(&mut late, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    assert_eq!((seen.deltas, seen.only_text()), (1, "of the other"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_no_piece_wherever_it_is_split() {
    let home = Home::new(NO_HEARTBEAT);
    let secret = "hunter22-äöü-horse";
    std::fs::write(home.path().join("secret"), secret).unwrap();
    let path = home.path().to_owned();
    let whole = format!("It is {secret}, yes {secret}{secret}. ");
    let chars: Vec<char> = whole.chars().collect();
    // Every way to cut it in two, some at a time; between the two halves the first one is seen.
    let cuts: Vec<usize> = (1..chars.len()).collect();
    let rounds = cuts.chunks(MOST_TEXTS - 2).count();
    let mut script = Vec::new();
    for (round, cuts) in cuts.chunks(MOST_TEXTS - 2).enumerate() {
        let half = |cut: usize, from: bool| -> String {
            let (head, tail) = chars.split_at(cut);
            if from { tail } else { head }.iter().collect()
        };
        // And one text each character for itself.
        script.extend(chars.iter().map(|c| json!(["delta", format!("k in round {round}"), c.to_string()])));
        script.extend(cuts.iter().map(|cut| json!(["delta", format!("k{cut}"), half(*cut, false)])));
        script.push(json!(["delta", format!("round {round}"), "heads"]));
        script.push(wait(&path, &format!("heads {round}")));
        script.extend(cuts.iter().map(|cut| json!(["delta", format!("k{cut}"), half(*cut, true)])));
        script.push(json!(["delta", format!("round {round}"), " and tails"]));
        script.push(wait(&path, &format!("tails {round}")));
        script.extend(cuts.iter().map(|cut| json!(["thought", format!("k{cut}"), whole])));
        script.push(json!(["thought", format!("k in round {round}"), whole]));
        script.push(json!(["thought", format!("round {round}"), "heads and tails"]));
        script.push(wait(&path, &format!("events {round}")));
    }
    let more =
        format!("[secrets]\nPASSWORD = {{ file = {} }}", toml::Value::from(path.join("secret").to_str().unwrap()));
    let home = scripted(home, "job", &more, &script);
    let server = home.serve().await;
    let (mut watcher, mut seen) = watch(&server, "job").await;
    let run = server.client.run("job").await;
    let mut raw = String::new();
    for round in 0..rounds {
        let mark = (run.clone(), format!("round {round}"));
        for (part, words) in [("heads", "heads"), ("tails", "heads and tails")] {
            while seen.texts.get(&mark).is_none_or(|text| text != words) {
                let frame = timeout(SOON, watcher.next()).await.expect("nothing came");
                raw.push_str(&frame.to_string());
                seen.take(&frame);
            }
            if part == "tails" {
                // What is shown of a text is the beginning of what it is without the secret.
                assert!(seen.texts.len() > 2);
                for ((_, key), text) in seen.texts.iter().filter(|((_, key), _)| key.starts_with('k')) {
                    assert_eq!(text.trim_end(), "It is [redacted], yes [redacted][redacted].", "{key}");
                }
            }
            go(&home, &format!("{part} {round}"));
        }
        // Only so many texts may be open: the next ones begin once these are over.
        while !seen.closed.contains(&mark) {
            let frame = timeout(SOON, watcher.next()).await.expect("nothing came");
            raw.push_str(&frame.to_string());
            seen.take(&frame);
        }
        go(&home, &format!("events {round}"));
    }
    seen.until(&mut watcher, Reading::is_over).await;
    raw.push_str(&format!("{:?}", seen.events));
    for part in ["hunter2", "unter22", "äöü", "horse"] {
        assert!(!raw.contains(part), "{part} was shown");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_holds_up_no_agent_and_later_has_the_text_without_a_gap() {
    let home = Home::new("[stream]\nheartbeat = \"10m\"\nlife = \"20m\"\nslow_window = \"20m\"");
    let words: String = (0..3000).map(|n| format!("word{n:05} ")).collect();
    let path = home.path().to_owned();
    let mut script = Vec::new();
    for key in 0..40 {
        script.push(json!(["speak", format!("k{key}"), words[..4000], 0]));
    }
    script.push(json!(["delta", "last", words]));
    script.push(json!(["say", "written"]));
    script.push(wait(&path, "end"));
    let home = scripted(home, "job", "", &script);
    let server = home.serve().await;
    let (mut slow, mut seen_slow) = watch(&server, "job").await;
    let (mut good, mut seen) = watch(&server, "job").await;
    server.client.run("job").await;
    // An agent that is held up by the one that does not read would never come this far.
    seen.until(&mut good, |seen| seen.events.iter().any(|event| event["data"]["text"] == "written")).await;
    seen.until(&mut good, |seen| seen.text("last") == words).await;
    // It reads only now: of the forty texts before it needs no piece, and of the last it has every word.
    seen_slow.until(&mut slow, |seen| seen.text("last") == words).await;
    go(&home, "end");
    seen_slow.until(&mut slow, Reading::is_over).await;
    seen.until(&mut good, Reading::is_over).await;
    assert_eq!(seen_slow.events, seen.events);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_and_events_of_many_texts_at_once_never_get_out_of_step() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut watchers = Vec::new();
    for _ in 0..4 {
        watchers.push(watch(&server, "job").await);
    }
    let writers = (0..4).map(|writer| {
        let (play, publisher) = (play.clone(), server.server.api().publisher.clone());
        tokio::spawn(async move {
            for round in 0..60 {
                let key = format!("w{writer}-{round}");
                let whole: String = (0..20).map(|n| format!("{writer}·{round}·{n} ")).collect();
                for word in whole.split_inclusive(' ') {
                    if play.topic.write_draft(play.run, &key, word) {
                        publisher.wake_all(&play.topic);
                    }
                    tokio::task::yield_now().await;
                }
                finish(&play, &key, &whole).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    play.status(State::Succeeded).await;
    // Each reading checks itself: beginnings only, no gap, nothing behind the event.
    let mut pieces = 0;
    for (watcher, seen) in &mut watchers {
        seen.until(watcher, Reading::is_over).await;
        assert_eq!(seen.closed.len(), 4 * 60 + 1);
        assert!(seen.texts.is_empty());
        pieces += seen.deltas;
    }
    assert!(pieces > 0, "nothing was shown while it was written");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_writer_wakes_its_watchers_a_few_times_a_second() {
    let home = Home::new(NO_HEARTBEAT);
    let words = "word ".repeat(400);
    let home = scripted(home, "job", "", &[json!(["speak", "k", words, 2])]);
    let server = home.serve().await;
    let (mut watcher, mut seen) = watch(&server, "job").await;
    let begin = Instant::now();
    server.client.run("job").await;
    seen.until(&mut watcher, Reading::is_over).await;
    let most = begin.elapsed().as_millis() / 50 + 2;
    assert!(seen.deltas > 3, "{} pieces", seen.deltas);
    assert!((seen.deltas as u128) <= most, "{} pieces of 400 words within {:?}", seen.deltas, begin.elapsed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_forgets_what_was_being_written_and_the_next_one_says_how_the_run_ended() {
    let home = Home::new(NO_HEARTBEAT);
    let path = home.path().to_owned();
    let home = scripted(home, "job", "", &[json!(["delta", "k", "half a sen"]), wait(&path, "never")]);
    let mut server = home.spawn(&[]).await;
    let run = server.client.run("job").await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    let mut seen = Reading::default();
    seen.until(&mut watcher, |seen| seen.only_text() == "half a sen").await;
    server.kill();
    let mut server = home.spawn(&[]).await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    let mut seen = Reading::default();
    seen.until(&mut watcher, |seen| seen.order.last().is_some_and(|last| last == "caught_up")).await;
    assert_eq!(seen.deltas, 0);
    assert_eq!(server.client.ended(&run).await["state"], "interrupted");
    // Stopped in the middle of it.
    let run = server.client.run("job").await;
    seen.until(&mut watcher, |seen| seen.only_text() == "half a sen").await;
    assert_eq!(server.client.post(&format!("/runs/{run}/stop"), json!({})).await.0, 202);
    seen.until(&mut watcher, Reading::is_over).await;
    assert!(seen.texts.is_empty());
    assert_eq!(server.client.ended(&run).await["state"], "cancelled");
    assert!(server.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_shown_in_a_stream_of_events_too_and_of_one_run_only_where_that_is_asked_for() {
    let home = stage("job");
    let server = home.serve().await;
    let (one, two) = (Play::begin(&server, "job").await, Play::begin(&server, "job").await);
    write(&one, &server, "k", "Of the one");
    write(&two, &server, "k", "Of the other");
    let open = async |query: &str| {
        let request = server.client.request(reqwest::Method::GET, &format!("/tasks/job/events{query}"));
        request.header("Accept", "text/event-stream").send().await.unwrap()
    };
    let (mut all, mut of_one) = (open("").await, open(&format!("?run={}", one.run)).await);
    let wait_for = async |stream: &mut reqwest::Response, words: &str| {
        let mut text = String::new();
        while !text.contains(words) {
            let chunk = timeout(SOON, stream.chunk()).await.expect("nothing came").unwrap().expect("it ended");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        text
    };
    let text = wait_for(&mut all, "caught_up").await;
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("no {words} in {text}"));
    assert!(at("event: subscribed") < at("event: delta") && at("Of the other") < at("event: event"), "{text}");
    assert!(!text.contains("\"sub\""), "{text}");
    let text = wait_for(&mut of_one, "caught_up").await;
    assert!(text.contains("Of the one") && !text.contains("Of the other"), "{text}");
    // A piece moves no position: it has no id.
    let delta = text.split("\n\n").find(|event| event.contains("event: delta")).unwrap();
    assert!(!delta.contains("id:"), "{delta}");
    write(&two, &server, "k", " and more");
    write(&one, &server, "k", " goes on");
    let text = wait_for(&mut of_one, "goes on").await;
    assert!(text.contains("\"offset\":10") && !text.contains("and more"), "{text}");
    finish(&one, "k", "Of the one goes on to its end").await;
    wait_for(&mut of_one, "to its end").await;
    server.stop().await;
}

#[test]
fn the_agent_for_tests_is_in_no_program_that_is_shipped() {
    let definition = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/task/definition.rs")).unwrap();
    let before = definition.split("EchoModel").next().unwrap();
    assert!(before.trim_end().ends_with("#[serde(rename = \"echo_model\")]"));
    let agent = before.rsplit("Steps,").next().unwrap();
    assert!(agent.contains("#[cfg(feature = \"failpoints\")]"), "{agent}");
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    assert!(manifest.contains("default = []"));
}
