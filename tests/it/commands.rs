//! Commands over the socket, and the keys of calls: each acts once, whichever way and however often it is sent.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::harness::{Client, Gate, Home, InProcess, Watcher, events_of};
use crate::proxy::{Direction, Mode, Proxy};
use crate::rows_stage::{NO_HEARTBEAT, Play, stage};

fn run(id: Uuid, task: &str) -> Value {
    json!({ "type": "command", "id": id, "op": "run", "task": task })
}

fn stop(id: Uuid, run: &str) -> Value {
    json!({ "type": "command", "id": id, "op": "stop", "run": run })
}

/// Sends a command and waits for its answer; what else comes meanwhile is left out.
async fn ask(watcher: &mut Watcher, command: Value) -> Value {
    let id = command["id"].clone();
    watcher.send(command).await;
    answer(watcher, &id).await
}

async fn answer(watcher: &mut Watcher, id: &Value) -> Value {
    let is_it = |frame: &Value| ["done", "error"].contains(&frame["type"].as_str().unwrap()) && frame["id"] == *id;
    watcher.until(is_it).await.pop().unwrap()
}

async fn socket(server: &InProcess) -> Watcher {
    server.client.watch(json!([])).await
}

/// A call with a key: its status and its JSON.
async fn with_key(client: &Client, method: Method, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let request = client.request(method, path).header("Idempotency-Key", key).json(body);
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

async fn runs_of(client: &Client, task: &str) -> usize {
    client.get(&format!("/tasks/{task}/runs?limit=500")).await.1["items"].as_array().unwrap().len()
}

/// A task whose runs wait until the test opens the gate.
fn gated(home: Home, task: &str) -> (Home, Gate) {
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task(task, &gate.wait());
    (home, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_a_command_acts_once_and_the_same_id_gives_the_same_run_whichever_way_it_comes() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let mut watcher = socket(&server).await;
    let id = Uuid::new_v4();
    let done = ask(&mut watcher, run(id, "job")).await;
    assert_eq!((&done["type"], &done["id"]), (&json!("done"), &json!(id)), "{done}");
    let made = done["result"]["id"].as_str().unwrap().to_owned();
    assert_eq!((&done["result"]["task"], &done["result"]["trigger"]), (&json!("job"), &json!("hand")));
    assert_eq!(ask(&mut watcher, run(id, "job")).await["result"]["id"], made, "on the same socket");
    assert_eq!(ask(&mut socket(&server).await, run(id, "job")).await["result"]["id"], made, "on another one");
    let (status, over_http) =
        with_key(&server.client, Method::POST, "/tasks/job/runs", &id.to_string(), &json!({})).await;
    assert_eq!((status, &over_http["run"]["id"]), (201, &json!(made)), "over HTTP");
    let shouted = id.to_string().to_uppercase();
    let (_, again) =
        with_key(&server.client, Method::POST, "/tasks/job/runs", &shouted, &json!({ "params": {} })).await;
    assert_eq!(again["run"]["id"], made, "however the uuid is written and nothing is said in params");
    server.client.ended(&made).await;
    let later = ask(&mut watcher, run(id, "job")).await;
    assert_eq!(
        (&later["result"]["id"], &later["result"]["state"]),
        (&json!(made), &json!("succeeded")),
        "the run as it is when it is asked for"
    );
    assert_eq!(runs_of(&server.client, "job").await, 1);

    // The other way round.
    let id = Uuid::now_v7();
    let (_, first) = with_key(&server.client, Method::POST, "/tasks/job/runs", &id.to_string(), &json!({})).await;
    let done = ask(&mut watcher, run(id, "job")).await;
    assert_eq!(done["result"]["id"], first["run"]["id"]);
    assert_eq!(runs_of(&server.client, "job").await, 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_the_same_id_with_another_body_is_a_conflict_and_does_nothing() {
    let task = "title = \"job\"\n[params]\nx = { default = 1 }\n[[steps]]\nrun = \"true\"\n";
    let home = Home::new("").task("job", task).shell_task("other", "true");
    let server = home.serve().await;
    let mut watcher = socket(&server).await;
    let id = Uuid::new_v4();
    let command = json!({ "type": "command", "id": id, "op": "run", "task": "job", "params": { "x": 2 } });
    let made = ask(&mut watcher, command.clone()).await["result"]["id"].as_str().unwrap().to_owned();
    let mut others = vec![run(id, "job"), run(id, "other"), stop(id, &made)];
    others.push(json!({ "type": "command", "id": id, "op": "run", "task": "job", "params": { "x": 3 } }));
    others.push(json!({ "type": "command", "id": id, "op": "message", "run": made, "text": "hello" }));
    others.push(json!({ "type": "command", "id": id, "op": "approve", "run": made, "request": "r" }));
    for other in others {
        let error = ask(&mut watcher, other.clone()).await;
        assert_eq!(
            (&error["type"], &error["code"], &error["retryable"]),
            (&json!("error"), &json!("conflict"), &json!(false)),
            "{other}"
        );
        assert!(error["message"].as_str().unwrap().contains("another request"), "{error}");
    }
    for (path, body) in [
        ("/tasks/job/runs".to_owned(), json!({ "params": { "x": 3 } })),
        (format!("/runs/{made}/stop"), json!({})),
        ("/tasks/job/pause".to_owned(), json!({})),
        ("/tasks".to_owned(), json!({ "title": "New", "steps": [{ "run": "true" }] })),
    ] {
        let (status, problem) = with_key(&server.client, Method::POST, &path, &id.to_string(), &body).await;
        assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "{path}: {problem}");
    }
    // What is not known of it does not make it another one.
    let mut same = command;
    same["colour"] = json!("red");
    assert_eq!(ask(&mut watcher, same).await["result"]["id"], made);
    assert_eq!((runs_of(&server.client, "job").await, runs_of(&server.client, "other").await), (1, 0));
    assert_eq!(server.client.get("/tasks").await.1["items"].as_array().unwrap().len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_sent_by_two_sockets_and_over_http_at_the_same_moment_it_acts_once_and_all_are_answered() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true");
    let server = home.serve().await;
    let (mut one, mut two) = (socket(&server).await, socket(&server).await);
    for round in 0..40 {
        let id = Uuid::new_v4();
        let (text, body) = (id.to_string(), json!({}));
        let (first, second, third) = tokio::join!(
            ask(&mut one, run(id, "job")),
            ask(&mut two, run(id, "job")),
            with_key(&server.client, Method::POST, "/tasks/job/runs", &text, &body),
        );
        let run = first["result"]["id"].as_str().unwrap_or_else(|| panic!("{first}"));
        assert_eq!((&second["result"]["id"], &third.1["run"]["id"]), (&json!(run), &json!(run)), "round {round}");
        server.client.ended(run).await;
    }
    assert_eq!(runs_of(&server.client, "job").await, 40);
    server.stop().await;
}

/// Where the line of a socket is cut that has a command under way.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// So many bytes of the frame have left.
    After(usize),
    /// The server has it; its answer is lost on the way.
    AnswerLost,
    /// The whole frame has left and the socket goes at once, with or without a word.
    AtOnce(Mode),
    /// The run is there, and nobody has read the answer.
    Acted,
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_a_socket_cut_at_any_point_of_a_command_that_is_sent_again_acts_exactly_once() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true");
    let server = home.serve().await;
    let proxy = Proxy::before(server.client.address).await;
    let bytes = run(Uuid::nil(), "job").to_string().len();
    let mut cuts: Vec<Cut> = (0..bytes + 6).step_by(7).map(Cut::After).collect();
    for _ in 0..6 {
        cuts.extend([Cut::AnswerLost, Cut::AtOnce(Mode::Fin), Cut::AtOnce(Mode::Rst), Cut::Acted]);
    }
    let (client, mut attempt) = (Uuid::new_v4().to_string(), 0);
    let mut expected = 0;
    for cut in cuts {
        let id = Uuid::new_v4();
        let (stream, link) = proxy.connect().await;
        let mut first = Watcher::over(stream, server.client.address, Some(server.client.token())).await.unwrap();
        attempt += 1;
        first.hello(&client, attempt, json!([])).await;
        assert_eq!(first.next().await["type"], "welcome");
        match cut {
            Cut::After(count) => {
                let frame = masked(&run(id, "job").to_string());
                first.socket.get_mut().write_all(&frame[..count.min(frame.len())]).await.unwrap();
                link.set(Mode::Rst);
            }
            Cut::AnswerLost => {
                link.set(Mode::Blackhole(Direction::ToClient));
                first.send(run(id, "job")).await;
            }
            Cut::AtOnce(how) => {
                first.send(run(id, "job")).await;
                link.set(how);
            }
            Cut::Acted => {
                link.set(Mode::Blackhole(Direction::ToClient));
                first.send(run(id, "job")).await;
                server
                    .client
                    .until("/tasks/job/runs?limit=500", |page| page["items"].as_array().unwrap().len() > expected)
                    .await;
                link.set(Mode::Rst);
            }
        }
        // The same page load comes back: its older socket is replaced, if it is still there.
        attempt += 1;
        let mut second = Watcher::open(server.client.address, Some(server.client.token())).await;
        second.hello(&client, attempt, json!([])).await;
        assert_eq!(second.next().await["type"], "welcome");
        let done = ask(&mut second, run(id, "job")).await;
        assert_eq!(done["type"], "done", "{cut:?}: {done}");
        let once = done["result"]["id"].as_str().unwrap().to_owned();
        let again = ask(&mut second, run(id, "job")).await;
        assert_eq!(again["result"]["id"], once, "{cut:?}");
        server.client.ended(&once).await;
        expected += 1;
        assert_eq!(runs_of(&server.client, "job").await, expected, "{cut:?}");
        drop(first);
    }
    server.stop().await;
}

/// A client's text frame as it goes over the line.
fn masked(text: &str) -> Vec<u8> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126, "longer ones have another head");
    let head = [&[0x81, 0x80 | length][..], &MASK].concat();
    head.into_iter().chain(text.bytes().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_a_command_that_is_still_at_work_is_answered_later_and_to_whoever_asks_again() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut one = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    one.until(|frame| frame["type"] == "caught_up").await;
    let id = Uuid::new_v4();
    let hold = Hold::of(&server);
    one.send(run(id, "job")).await;
    // The socket goes on while it works.
    one.send(json!({ "type": "tasks" })).await;
    assert_eq!(one.next().await["type"], "tasks");
    let mut two = socket(&server).await;
    two.send(run(id, "job")).await;
    let other = json!({ "type": "command", "id": id, "op": "run", "task": "none" });
    let error = ask(&mut socket(&server).await, other).await;
    assert_eq!(error["code"], "conflict", "another body is told at once: {error}");
    drop(one);
    hold.end();
    let done = answer(&mut two, &json!(id)).await;
    assert_eq!(done["type"], "done", "{done}");
    assert_eq!(runs_of(&server.client, "job").await, 2, "the one that is played, and the one that was asked for");
    drop(play);
    server.stop().await;
}

/// Keeps the writer from writing until it is told otherwise.
struct Hold {
    go: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Hold {
    fn of(server: &InProcess) -> Self {
        let publisher = server.server.api().publisher.clone();
        let (go, wait) = std::sync::mpsc::channel();
        let (held, is_held) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            publisher.while_quiet(|| {
                held.send(()).unwrap();
                let _ = wait.recv();
            });
        });
        is_held.recv().unwrap();
        Self { go, thread }
    }

    fn end(self) {
        drop(self.go);
        self.thread.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_has_so_many_commands_under_way_and_one_more_is_told_to_come_again() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::begin(&server, "job").await;
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job" }])).await;
    watcher.until(|frame| frame["type"] == "caught_up").await;
    let hold = Hold::of(&server);
    let ids: Vec<Uuid> = (0..40).map(|_| Uuid::new_v4()).collect();
    for id in &ids {
        watcher.send(run(*id, "none")).await;
    }
    // Of these nothing is written, so they are answered; only sixteen at a time may be there all the same.
    let mut answers = Vec::new();
    while answers.len() < 40 {
        let frame = watcher.next().await;
        if frame["type"] == "error" {
            answers.push(frame);
        }
    }
    assert!(answers.iter().all(|error| ["not_found", "limit"].contains(&error["code"].as_str().unwrap())));
    // Of these each waits for the writer.
    for id in &ids {
        watcher.send(run(*id, "job")).await;
    }
    for _ in 16..40 {
        let error = watcher.next().await;
        assert_eq!(
            (&error["type"], &error["code"], &error["retryable"]),
            (&json!("error"), &json!("limit"), &json!(true)),
            "{error}"
        );
    }
    hold.end();
    // Events go on beside it, the sixteen are carried out, ten of them wait in the queue of the task.
    let mut done = 0;
    let mut full = 0;
    while done + full < 16 {
        let frame = watcher.next().await;
        match frame["type"].as_str().unwrap() {
            "done" => done += 1,
            "error" => {
                assert_eq!((&frame["code"], &frame["retryable"]), (&json!("limit"), &json!(true)));
                full += 1;
            }
            _ => {}
        }
    }
    assert!(done >= 10, "{done} done, {full} refused");
    let seq = play.thought("still there").await;
    watcher.until(|frame| events_of(frame).iter().any(|event| event["seq"] == seq)).await;
    // What may pass is not kept: the same ids act later.
    let waiting = server.client.get("/runs?state=queued&limit=500").await.1;
    for run in waiting["items"].as_array().unwrap() {
        server.client.post(&format!("/runs/{}/stop", run["id"].as_str().unwrap()), json!({})).await;
    }
    let done = ask(&mut watcher, run(ids[39], "job")).await;
    assert_eq!(done["type"], "done", "{done}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_one_socket_follow_each_other_and_a_stop_follows_none() {
    let (home, gate) = gated(Home::new(NO_HEARTBEAT), "job");
    let server = home.serve().await;
    let mut watcher = socket(&server).await;
    let first = ask(&mut watcher, run(Uuid::new_v4(), "job")).await["result"]["id"].as_str().unwrap().to_owned();
    server.client.until(&format!("/runs/{first}"), |run| run["state"] == "running").await;
    let hold = Hold::of(&server);
    let ids: Vec<Uuid> = (0..8).map(|_| Uuid::new_v4()).collect();
    for id in &ids {
        watcher.send(run(*id, "job")).await;
    }
    let begin = std::time::Instant::now();
    let stopped = ask(&mut watcher, stop(Uuid::new_v4(), &first)).await;
    assert_eq!((&stopped["type"], &stopped["result"]["id"]), (&json!("done"), &json!(first)), "{stopped}");
    assert!(begin.elapsed() < Duration::from_secs(5), "it waited for the others: {:?}", begin.elapsed());
    hold.end();
    let mut made = Vec::new();
    for id in &ids {
        let done = watcher.next().await;
        assert_eq!((&done["type"], &done["id"]), (&json!("done"), &json!(id)), "in the order they were sent: {done}");
        made.push(done["result"]["id"].as_str().unwrap().to_owned());
    }
    assert!(made.is_sorted(), "{made:?}");
    assert_eq!(server.client.ended(&first).await["state"], "cancelled");
    drop(gate);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_stops_a_run_and_one_that_is_over_is_said_to_be() {
    let (home, gate) = gated(Home::new("").shell_task("quick", "true"), "job");
    let server = home.serve().await;
    let mut watcher = socket(&server).await;
    let at_work = server.client.run("job").await;
    server.client.until(&format!("/runs/{at_work}"), |run| run["state"] == "running").await;
    let id = Uuid::new_v4();
    let done = ask(&mut watcher, stop(id, &at_work)).await;
    assert_eq!((&done["type"], &done["result"]["id"]), (&json!("done"), &json!(at_work)), "{done}");
    assert_eq!(server.client.ended(&at_work).await["state"], "cancelled");
    let again = ask(&mut watcher, stop(id, &at_work)).await;
    assert_eq!(again["result"]["state"], "cancelled", "the same command again: {again}");
    let (status, over_http) =
        with_key(&server.client, Method::POST, &format!("/runs/{at_work}/stop"), &id.to_string(), &json!({})).await;
    assert_eq!((status, &over_http["state"]), (202, &json!("cancelled")));
    let once_more = ask(&mut watcher, stop(Uuid::new_v4(), &at_work)).await;
    assert_eq!(once_more["type"], "done", "another stop of it is as was asked: {once_more}");

    let over = server.client.run("quick").await;
    server.client.ended(&over).await;
    let error = ask(&mut watcher, stop(Uuid::new_v4(), &over)).await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("run_over"), &json!(false)), "{error}");
    let error = ask(&mut watcher, stop(Uuid::new_v4(), &Uuid::now_v7().to_string())).await;
    assert_eq!((&error["code"], &error["retryable"]), (&json!("not_found"), &json!(false)), "{error}");
    drop(gate);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_a_bad_frame_and_the_fifth_ends_the_socket() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true");
    let server = home.serve().await;
    let id = Uuid::new_v4();
    let bad = [
        json!({ "type": "command", "op": "run", "task": "job" }),
        json!({ "type": "command", "id": "c0", "op": "run", "task": "job" }),
        json!({ "type": "command", "id": 7, "op": "run", "task": "job" }),
        json!({ "type": "command", "id": id }),
        json!({ "type": "command", "id": id, "op": "dance" }),
        json!({ "type": "command", "id": id, "op": "run" }),
        json!({ "type": "command", "id": id, "op": "run", "task": "job", "params": [] }),
        json!({ "type": "command", "id": id, "op": "stop" }),
        json!({ "type": "command", "id": id, "op": "message", "text": "to nobody" }),
        json!({ "type": "command", "id": id, "op": "message", "task": "job", "run": "x", "text": "to both" }),
        json!({ "type": "command", "id": id, "op": "message", "task": "job" }),
        json!({ "type": "command", "id": id, "op": "approve", "run": id }),
        json!({ "type": "command", "id": id, "op": "deny", "request": "r" }),
    ];
    for five in bad.chunks(4) {
        let mut watcher = socket(&server).await;
        for frame in five {
            watcher.send(frame.clone()).await;
            let error = watcher.next().await;
            assert_eq!(
                (&error["type"], &error["code"], &error["retryable"], &error["id"]),
                (&json!("error"), &json!("bad_frame"), &json!(false), frame.get("id").unwrap_or(&Value::Null)),
                "{frame}"
            );
        }
        for frame in &bad[..5 - five.len()] {
            watcher.send(frame.clone()).await;
        }
        assert_eq!(watcher.close_code().await, Some(4501));
    }
    assert_eq!(runs_of(&server.client, "job").await, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_can_be_read_and_not_be_carried_out_is_no_bad_frame() {
    let task = "title = \"job\"\n[params]\nx = { default = 1 }\n[[steps]]\nrun = \"true\"\n";
    let home = Home::new(NO_HEARTBEAT).task("job", task);
    let server = home.serve().await;
    let mut watcher = socket(&server).await;
    let params = |params: Value| json!({ "type": "command", "id": Uuid::new_v4(), "op": "run", "task": "job", "params": params });
    for _ in 0..3 {
        for (command, code) in [
            (params(json!({ "none": 1 })), "conflict"),
            (params(json!({ "x": "text" })), "conflict"),
            (params(json!({ "x": "y".repeat(40 * 1024) })), "conflict"),
            (run(Uuid::new_v4(), "none"), "not_found"),
            (run(Uuid::new_v4(), "No Task"), "not_found"),
            (stop(Uuid::new_v4(), "no run"), "not_found"),
        ] {
            let error = ask(&mut watcher, command.clone()).await;
            assert_eq!((&error["code"], &error["retryable"]), (&json!(code), &json!(false)), "{command}: {error}");
            assert!(!error["message"].as_str().unwrap().is_empty());
        }
    }
    // Nothing was done, so nothing is kept: what was refused may be asked again once it can be.
    let id = Uuid::new_v4();
    assert_eq!(ask(&mut watcher, run(id, "later")).await["code"], "not_found");
    server.client.post("/tasks", json!({ "title": "later", "steps": [{ "run": "true" }], "run": false })).await;
    assert_eq!(ask(&mut watcher, run(id, "later")).await["type"], "done");
    assert_eq!(runs_of(&server.client, "job").await, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_over_64_kib_is_too_large_and_one_over_256_kib_ends_the_socket() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true");
    let server = home.serve().await;
    let mut watcher = socket(&server).await;
    let sized = |bytes: usize| {
        let mut command = run(Uuid::new_v4(), "job");
        command["padding"] = json!("");
        command["padding"] = json!("x".repeat(bytes - command.to_string().len()));
        command
    };
    assert_eq!(ask(&mut watcher, sized(64 * 1024)).await["type"], "done", "64 KiB are allowed");
    watcher.send(sized(64 * 1024 + 1)).await;
    assert_eq!(watcher.next().await["code"], "too_large");
    watcher.send(sized(256 * 1024 + 1)).await;
    assert_eq!(watcher.close_code().await, Some(1009));
    assert_eq!(runs_of(&server.client, "job").await, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_answers_are_refused_with_the_reason_as_long_as_no_run_takes_any() {
    let (home, gate) = gated(Home::new(NO_HEARTBEAT).shell_task("quick", "true"), "job");
    let server = home.serve().await;
    let client = &server.client;
    let mut watcher = socket(&server).await;
    let at_work = client.run("job").await;
    let over = client.run("quick").await;
    client.ended(&over).await;
    let none = Uuid::now_v7().to_string();
    let message = |to: &str, whom: &str| json!({ "op": "message", to: whom, "text": "hello" });
    let cases = [
        (message("run", &at_work), "conflict", "takes no messages"),
        (message("task", "job"), "conflict", "takes no messages"),
        (message("task", "quick"), "conflict", "no run"),
        (message("run", &over), "run_over", "over"),
        (message("run", &none), "not_found", "no run"),
        (message("task", "none"), "not_found", "no task"),
        (json!({ "op": "message", "run": at_work, "text": "  " }), "conflict", "bytes"),
        (json!({ "op": "approve", "run": at_work, "request": "r1" }), "conflict", "asks for nothing"),
        (json!({ "op": "deny", "run": at_work, "request": "r1" }), "conflict", "asks for nothing"),
        (json!({ "op": "approve", "run": over, "request": "r1" }), "run_over", "over"),
        (json!({ "op": "deny", "run": none, "request": "r1" }), "not_found", "no run"),
    ];
    for (mut command, code, words) in cases {
        command["type"] = json!("command");
        command["id"] = json!(Uuid::new_v4());
        for time in ["once", "again"] {
            let error = ask(&mut watcher, command.clone()).await;
            assert_eq!((&error["code"], &error["retryable"]), (&json!(code), &json!(false)), "{time} {command}");
            assert!(error["message"].as_str().unwrap().contains(words), "{error}");
        }
    }
    for (call, body, status, code) in [
        ("message", json!({ "text": "hello" }), 409, "conflict"),
        ("message", json!({}), 400, "invalid"),
        ("message", json!({ "text": 7 }), 400, "invalid"),
        ("approve", json!({ "request": "r" }), 409, "conflict"),
        ("deny", json!({}), 409, "conflict"),
        ("deny", json!({ "request": 7 }), 400, "invalid"),
        ("retry", json!({}), 409, "conflict"),
    ] {
        let (given, problem) = client.post(&format!("/runs/{at_work}/{call}"), body).await;
        assert_eq!((given, &problem["code"]), (status, &json!(code)), "{call}: {problem}");
    }
    for call in ["message", "approve", "deny"] {
        let (given, problem) = client.post(&format!("/runs/{over}/{call}"), json!({ "text": "x" })).await;
        assert_eq!((given, &problem["code"]), (409, &json!("run_over")), "{call}");
        assert_eq!(client.post(&format!("/runs/{none}/{call}"), json!({ "text": "x" })).await.0, 404, "{call}");
    }
    gate.open().await;
    let ended = client.ended(&at_work).await;
    assert_eq!(ended["state"], "succeeded", "nothing of it reached the run");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_a_new_run_with_the_same_parameters_and_says_of_which() {
    let task = "title = \"job\"\n[params]\nx = { default = 1 }\n[[steps]]\nrun = \"exit $REJOIN_PARAM_X\"\n";
    let home = Home::new("").task("job", task);
    let server = home.serve().await;
    let client = &server.client;
    let (_, first) = client.post("/tasks/job/runs", json!({ "params": { "x": 3 } })).await;
    let first = first["run"]["id"].as_str().unwrap().to_owned();
    assert_eq!(client.ended(&first).await["state"], "failed");
    let path = format!("/runs/{first}/retry");
    let (status, again) = with_key(client, Method::POST, &path, "k", &json!({})).await;
    assert_eq!(status, 201, "{again}");
    let second = again["run"]["id"].as_str().unwrap().to_owned();
    assert!(again["url"].as_str().unwrap().ends_with(&second));
    let ended = client.ended(&second).await;
    assert_eq!(
        (&ended["retry_of"], &ended["attempt"], &ended["params"]["x"], &ended["exit"]),
        (&json!(first), &json!(2), &json!(3), &json!(3)),
        "{ended}"
    );
    assert_eq!((&ended["scheduled_for"], &ended["trigger"]), (&Value::Null, &json!("hand")));
    let (_, same) = with_key(client, Method::POST, &path, "k", &json!({})).await;
    assert_eq!(same["run"]["id"], second, "the same key");
    let (_, third) = client.post(&format!("/runs/{second}/retry"), json!({})).await;
    assert_eq!((&third["run"]["retry_of"], &third["run"]["attempt"]), (&json!(second), &json!(3)));
    assert_eq!(client.ended(&first).await["retry_of"], Value::Null);
    // What the log says is what the run is.
    let queued = home.logged_events("job").into_iter().map(|(_, text)| serde_json::from_str::<Value>(&text).unwrap());
    let retries: Vec<Value> = queued
        .filter(|event| event["data"]["state"] == "queued")
        .map(|event| event["data"]["retry_of"].clone())
        .collect();
    assert_eq!(retries, [Value::Null, json!(first), json!(second)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_every_call_that_changes_a_task_or_a_run_acts_once_under_its_key() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let client = &server.client;
    let made = json!({ "title": "Made", "steps": [{ "run": "true" }], "run": false });
    client.post("/tasks", made.clone()).await;
    let key = |n: usize| format!("key-{n}");

    let pause = async |n| with_key(client, Method::POST, "/tasks/made/pause", &key(n), &json!({})).await;
    let resume = async |n| with_key(client, Method::POST, "/tasks/made/resume", &key(n), &json!({})).await;
    assert_eq!(pause(1).await.1["state"], "paused");
    assert_eq!(resume(2).await.1["state"], "idle");
    let (status, again) = pause(1).await;
    assert_eq!((status, &again["state"]), (200, &json!("idle")), "paused once; shown as it is");
    assert_eq!(pause(3).await.1["state"], "paused");
    assert_eq!(resume(2).await.1["state"], "paused", "resumed once");
    resume(4).await;

    let title = async |n, title: &str| {
        let (status, task) = with_key(client, Method::PATCH, "/tasks/made", &key(n), &json!({ "title": title })).await;
        (status, task["title"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(title(5, "One").await, (200, "One".to_owned()));
    assert_eq!(title(6, "Two").await, (200, "Two".to_owned()));
    assert_eq!(title(5, "One").await, (200, "Two".to_owned()), "changed once; shown as it is");
    assert_eq!(title(5, "Three").await.0, 409, "another body");

    let remove = async |n, path: &str| with_key(client, Method::DELETE, path, &key(n), &json!({})).await.0;
    assert_eq!(remove(7, "/tasks/made").await, 204);
    assert_eq!(remove(7, "/tasks/made").await, 204, "it is done");
    let mut again = made;
    again["id"] = json!("made");
    assert_eq!(client.post("/tasks", again).await.0, 201);
    assert_eq!(remove(7, "/tasks/made").await, 204);
    assert_eq!(client.get("/tasks/made").await.0, 200, "the new one is another one");
    assert_eq!(remove(7, "/tasks/made?stop=true").await, 409, "another request");
    assert_eq!(remove(8, "/tasks/made").await, 204);

    // A refusal has done nothing, and the key is free.
    assert_eq!(remove(9, "/tasks/made").await, 404);
    assert_eq!(with_key(client, Method::PATCH, "/tasks/job", &key(9), &json!({ "title": "x" })).await.0, 409);
    let over = client.run("job").await;
    client.ended(&over).await;
    let (status, problem) = with_key(client, Method::POST, &format!("/runs/{over}/stop"), &key(9), &json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("run_over")));
    for path in ["/tasks/job/pause", "/tasks/job/resume", "/tasks/job/runs"] {
        let key = Uuid::new_v4().to_string();
        let heads = async || client.get("/tasks/job").await.1["head"].clone();
        assert!(with_key(client, Method::POST, path, &key, &json!({})).await.0 < 300);
        client.until("/tasks/job", |task| task["active_runs"] == 0).await;
        let head = heads().await;
        let body = json!({});
        let again = join_all((0..4).map(|_| with_key(client, Method::POST, path, &key, &body))).await;
        assert!(again.iter().all(|(status, _)| *status < 300), "{path}: {again:?}");
        assert_eq!(heads().await, head, "{path} said something again");
    }
    for path in ["/tasks/job/pause", "/runs/x/stop", "/runs/x/retry", "/runs/x/message", "/runs/x/approve"] {
        let (status, problem) = with_key(client, Method::POST, path, &"x".repeat(201), &json!({ "text": "x" })).await;
        assert!(status == 400 || status == 404, "{path}: {problem}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_an_id_is_remembered_for_a_day_and_then_forgotten() {
    let home = Home::new(NO_HEARTBEAT).shell_task("job", "true");
    let begin = "2026-03-01T12:00:00Z".parse::<Timestamp>().unwrap();
    let clock = Clock::standing_at(begin);
    let server = home.serve_at(clock.clone()).await;
    let mut watcher = socket(&server).await;
    let (id, other) = (Uuid::new_v4(), Uuid::new_v4());
    let first = ask(&mut watcher, run(id, "job")).await["result"]["id"].clone();
    clock.set(begin + SignedDuration::from_hours(12));
    assert_eq!(ask(&mut watcher, run(id, "job")).await["result"]["id"], first);
    ask(&mut watcher, run(other, "job")).await;
    clock.set(begin + SignedDuration::from_hours(24) - SignedDuration::from_secs(1));
    assert_eq!(ask(&mut watcher, run(id, "job")).await["result"]["id"], first, "counted from when it acted");
    clock.set(begin + SignedDuration::from_hours(24));
    let again = ask(&mut watcher, run(id, "job")).await["result"]["id"].clone();
    assert!(again.is_string() && again != first, "{again}");
    assert_eq!(kept(&home), BTreeSet::from([id.to_string(), other.to_string()]));
    // What is too old goes with what is new.
    clock.set(begin + SignedDuration::from_hours(37));
    let last = Uuid::new_v4();
    ask(&mut watcher, run(last, "job")).await;
    assert_eq!(kept(&home), BTreeSet::from([id.to_string(), last.to_string()]));
    server.stop().await;
}

/// The keys in the file.
fn kept(home: &Home) -> BTreeSet<String> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let file = rusqlite::Connection::open_with_flags(home.database(), flags).unwrap();
    let mut rows = file.prepare("SELECT key FROM effects").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_an_id_is_remembered_over_a_restart() {
    let home = Home::new("").shell_task("job", "true");
    let id = Uuid::new_v4();
    let server = home.serve().await;
    let first = ask(&mut socket(&server).await, run(id, "job")).await["result"]["id"].clone();
    server.client.ended(first.as_str().unwrap()).await;
    server.stop().await;
    let server = home.serve().await;
    assert_eq!(ask(&mut socket(&server).await, run(id, "job")).await["result"]["id"], first);
    assert_eq!(runs_of(&server.client, "job").await, 1);
    server.stop().await;
}
