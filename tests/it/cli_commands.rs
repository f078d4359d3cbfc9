//! The program itself against a server that says what a test wants it to say.

#![allow(clippy::unwrap_used, reason = "what surprises a test should end it")]

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path as PathOf, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const GEN: &str = "9d2e77c1a0b4f3e8";
const RUN: &str = "0192f0c1-0000-7000-8000-000000000001";
const OTHER_RUN: &str = "0192f0c1-0000-7000-8000-000000000002";

/// What the server has and what it was asked.
#[derive(Default)]
struct Scene {
    log: Vec<Value>,
    /// After how many events each connection is cut, in order; later ones are not.
    cuts: Vec<usize>,
    connections: usize,
    /// Method, path (with the query where it may change something) and body of each call, and the two headers that matter.
    calls: Vec<(String, Value)>,
    credentials: Vec<Option<String>>,
    once: Vec<Option<String>>,
}

type Shared = Arc<Mutex<Scene>>;

struct Server {
    folder: tempfile::TempDir,
    data: PathBuf,
    scene: Shared,
}

impl Server {
    fn start(log: Vec<Value>, cuts: &[usize]) -> Self {
        Self::start_in("", log, cuts)
    }

    fn start_in(below: &str, log: Vec<Value>, cuts: &[usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join(below);
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("token"), "the-token-of-the-folder\n").unwrap();
        let scene = Shared::new(Mutex::new(Scene { log, cuts: cuts.to_vec(), ..Scene::default() }));
        // Bound by a short name, as a path of a socket has 107 bytes at most.
        let short = folder.path().join("s");
        let listener = tokio::net::UnixListener::bind(&short).unwrap();
        std::fs::rename(&short, data.join("rejoin.sock")).unwrap();
        let app = app(scene.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { folder, data, scene }
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = rejoin(self.folder.path());
        command.arg("--data-dir").arg(&self.data).args(line);
        command
    }

    async fn run(&self, line: &[&str]) -> Output {
        self.command(line).output().await.unwrap()
    }

    /// What was asked for that changes something.
    fn changes(&self) -> Vec<(String, Value)> {
        let scene = self.scene.lock().unwrap();
        scene.calls.iter().filter(|(call, _)| !call.starts_with("GET")).cloned().collect()
    }
}

fn rejoin(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rejoin"));
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    for name in ["REJOIN_SERVER", "REJOIN_TOKEN", "REJOIN__DATA_DIR"] {
        command.env_remove(name);
    }
    command
}

fn app(scene: Shared) -> Router {
    let api = Router::new()
        .route("/status", get(async || Json(json!({"version": "9", "uptime_s": 61, "running": 1}))))
        .route("/tasks", get(tasks).post(made))
        .route("/tasks/{task}", get(one_task).delete(is_a_file))
        .route("/tasks/{task}/runs", get(runs).post(made))
        .route("/tasks/{task}/events", get(events))
        .route("/runs/{run}", get(one_run))
        .route("/attention", get(async || Json(json!({"items": [finding("open"), finding("snoozed")], "next": null}))))
        .route("/runs/{run}/acknowledge", post(async || Json(finding("acknowledged"))))
        .route("/runs/{run}/snooze", post(async || Json(finding("snoozed"))))
        .route("/schedule/preview", post(async || Json(json!({"items": [{"at": "2099-01-01T00:00:00+01:00"}]}))))
        .route("/session/codes", post(async || Json(json!({"url": "http://127.0.0.1:1/#code=x"}))))
        .route("/live", get(live));
    let kept = middleware::from_fn_with_state(scene.clone(), keep);
    Router::new().nest("/api/v1", api).layer(kept).with_state(scene)
}

async fn keep(State(scene): State<Shared>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let is_live = parts.uri.path().ends_with("/live");
    let body = if is_live { Bytes::new() } else { axum::body::to_bytes(body, 1 << 20).await.unwrap() };
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    {
        let mut scene = scene.lock().unwrap();
        let mut call = format!("{} {}", parts.method, parts.uri.path().trim_start_matches("/api/v1"));
        // What a query asks for of a call that changes something decides whether it does.
        if let Some(query) = parts.uri.query().filter(|_| parts.method != Method::GET) {
            call = format!("{call}?{query}");
        }
        scene.calls.push((call, serde_json::from_slice(&body).unwrap_or_default()));
        scene.credentials.push(header("authorization"));
        scene.once.push(header("idempotency-key"));
    }
    next.run(Request::from_parts(parts, body.into())).await
}

/// What it found would act on a terminal, if it could.
fn finding(state: &str) -> Value {
    json!({"run": RUN, "task": "long", "summary": "A disk is full\u{1b}[2J", "at": "2026-11-20T20:00:00.000000Z",
           "state": state, "snoozed_until": (state == "snoozed").then_some("2099-01-01T00:00:00.000000Z")})
}

fn problem(status: u16, code: &str, detail: &str) -> Response {
    let body = json!({"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail});
    let kind = [("content-type", "application/problem+json")];
    (StatusCode::from_u16(status).unwrap(), kind, body.to_string()).into_response()
}

fn task(head: usize) -> Value {
    json!({"id": "long", "title": "Long task", "state": "idle", "source": "file", "gen": GEN, "head": head,
           "oldest": 1, "params": {"n": {"default": 3}}, "schedule_words": "every 30 min"})
}

async fn tasks(State(scene): State<Shared>) -> Response {
    let head = scene.lock().unwrap().log.len();
    Json(json!({"items": [task(head)], "next": null})).into_response()
}

async fn one_task(State(scene): State<Shared>, PathOf(id): PathOf<String>) -> Response {
    let head = scene.lock().unwrap().log.len();
    if id == "long" { Json(task(head)).into_response() } else { problem(404, "not_found", "There is no such task.") }
}

async fn is_a_file() -> Response {
    problem(409, "task_is_a_file", "The task is the file long.toml.")
}

fn a_run(scene: &Scene) -> Value {
    let end = scene.log.last().and_then(|event| event["data"]["state"].as_str().map(ToOwned::to_owned));
    let state = end.unwrap_or("running".into());
    json!({"id": RUN, "task": "long", "state": state, "first_seq": 3, "last_seq": scene.log.len()})
}

async fn made(State(scene): State<Shared>, Query(query): Query<Value>) -> Response {
    if query["dry_run"] == "true" {
        return Json(json!({"definition": {}})).into_response();
    }
    let run = a_run(&scene.lock().unwrap());
    let made = json!({"task": task(0), "run": run, "url": "http://127.0.0.1:7171/#task=long"});
    (StatusCode::CREATED, Json(made)).into_response()
}

async fn runs(State(scene): State<Shared>) -> Response {
    let run = a_run(&scene.lock().unwrap());
    Json(json!({"items": [run], "next": null})).into_response()
}

async fn one_run(State(scene): State<Shared>, PathOf(id): PathOf<String>) -> Response {
    if id == RUN {
        Json(a_run(&scene.lock().unwrap())).into_response()
    } else {
        problem(404, "not_found", "There is no such run.")
    }
}

async fn events(State(scene): State<Shared>, Query(query): Query<Value>) -> Response {
    let scene = scene.lock().unwrap();
    let number = |name: &str| query[name].as_str().and_then(|text| text.parse::<usize>().ok());
    let limit = number("limit").unwrap_or(500);
    let head = scene.log.len();
    let range = match (number("before"), number("after")) {
        (Some(before), _) => before.saturating_sub(1 + limit)..before - 1,
        (None, after) => after.unwrap_or(0)..head.min(after.unwrap_or(0) + limit),
    };
    let (next, more) = match number("before") {
        Some(_) => (range.start + 1, range.start > 0),
        None => (range.end, range.end < head),
    };
    let mine = |event: &&Value| query["run"].as_str().is_none_or(|run| event["run"] == run);
    let items: Vec<&Value> = scene.log[range].iter().filter(mine).collect();
    Json(json!({"task": "long", "gen": GEN, "oldest": 1, "head": head, "items": items, "next": next, "more": more}))
        .into_response()
}

async fn live(State(scene): State<Shared>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    assert_eq!(headers["sec-websocket-protocol"], "rejoin.v1");
    upgrade.protocols(["rejoin.v1"]).on_upgrade(move |socket| speak(scene, socket))
}

async fn speak(scene: Shared, mut socket: WebSocket) {
    let Some(Ok(Message::Text(hello))) = socket.recv().await else { return };
    let hello: Value = serde_json::from_str(&hello).unwrap();
    let (log, cut) = {
        let mut scene = scene.lock().unwrap();
        scene.connections += 1;
        (scene.log.clone(), scene.cuts.get(scene.connections - 1).copied())
    };
    let mut frames = vec![json!({"type": "welcome", "protocol": 1, "server": {"version": "9", "boot": "b"}})];
    for asked in hello["subscribe"].as_array().unwrap() {
        let (sub, after) = (&asked["sub"], asked["after"].as_u64().unwrap());
        let head = log.len() as u64;
        frames.push(json!({"type": "subscribed", "sub": sub, "task": "long", "gen": GEN, "outcome": "resumed",
                           "from": after + 1, "head": head, "missed": head - after, "runs": []}));
        let missing = log.iter().skip(usize::try_from(after).unwrap()).take(cut.unwrap_or(usize::MAX));
        frames.extend(missing.map(|event| json!({"type": "event", "sub": sub, "event": event})));
        if cut.is_none() {
            frames.push(json!({"type": "caught_up", "sub": sub, "seq": head}));
        }
    }
    for frame in frames {
        if socket.send(Message::Text(frame.to_string().into())).await.is_err() {
            return;
        }
    }
    if cut.is_none() {
        // Until the client has had enough.
        while let Some(Ok(_)) = socket.recv().await {}
    }
}

fn event(seq: usize, run: &str, kind: &str, data: &Value) -> Value {
    json!({"task": "long", "run": run, "seq": seq, "at": "2026-11-20T20:41:07.123456Z", "kind": kind, "data": data})
}

/// Two events of another run, then a run of `thoughts` thoughts that ends in `end`, or goes on without one.
fn log(thoughts: usize, end: Option<&str>) -> Vec<Value> {
    let mut log = vec![
        event(1, OTHER_RUN, "thought", &json!({"text": "not mine"})),
        event(2, OTHER_RUN, "status", &json!({"state": "succeeded", "text": "not mine"})),
        event(3, RUN, "status", &json!({"state": "queued", "text": "Queued"})),
    ];
    log.extend((1..=thoughts).map(|n| event(n + 3, RUN, "thought", &json!({"text": format!("thought {n}.")}))));
    let seq = log.len() + 1;
    log.extend(end.map(|state| event(seq, RUN, "status", &json!({"state": state, "text": "It is over"}))));
    log
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn thoughts(text: &str) -> Vec<usize> {
    let number = |line: &str| line.split_once("thought ")?.1.trim_end_matches('.').parse().ok();
    text.lines().filter_map(number).collect()
}

async fn first_line(child: &mut Child) -> (String, BufReader<tokio::process::ChildStdout>) {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).await.unwrap();
    (line, reader)
}

#[tokio::test]
async fn add_and_watch_shows_every_event_once_over_cut_connections_and_ends_as_the_run_does() {
    let server = Server::start(log(20, Some("succeeded")), &[5, 0, 9]);
    let output = server.run(&["tasks", "add", "long TASK!", "--watch"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let shown = out(&output);
    assert_eq!(thoughts(&shown), (1..=20).collect::<Vec<_>>(), "{shown}");
    for part in [RUN, "long", "http://127.0.0.1:7171/#task=long", "It is over"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!shown.contains("not mine"), "{shown}");
    assert_eq!(server.scene.lock().unwrap().connections, 4);
    let said = err(&output);
    for part in ["Connection lost", "Trying again in", "Connected again", "Caught up on"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(server.changes(), [("POST /tasks/long/runs".to_owned(), json!({"params": {}}))]);
}

#[tokio::test]
async fn a_run_that_fails_is_exit_code_1() {
    for (state, code) in [("failed", 1), ("cancelled", 1), ("timed_out", 1), ("interrupted", 1), ("succeeded", 0)] {
        let server = Server::start(log(1, Some(state)), &[]);
        let output = server.run(&["tasks", "run", "long", "--wait"]).await;
        assert_eq!(output.status.code(), Some(code), "{state}: {}", err(&output));
        assert!(out(&output).contains("It is over") && !out(&output).contains("thought 1"), "{}", out(&output));
        let output = server.run(&["watch", RUN]).await;
        assert_eq!(output.status.code(), Some(code), "{state}");
    }
}

#[tokio::test]
async fn what_went_wrong_can_be_told_by_the_exit_code() {
    let server = Server::start(log(1, None), &[]);
    for (line, code, words) in [
        (&["tasks", "show", "none"][..], 4, "no such task"),
        (&["tasks", "show", "No such title"], 4, "no task called"),
        (&["runs", "show", OTHER_RUN], 4, "no such run"),
        (&["runs", "show", "../tasks"], 4, "there is no run"),
        (&["watch", "none"], 4, "no such task"),
        (&["tasks", "remove", "long"], 6, "long.toml"),
        (&["tasks", "add", "Long tusk"], 2, "\"Long task\""),
        (&["tasks", "add", "Long task", "--every", "30m"], 6, "change the file"),
        (&["tasks", "add", "Long task", "-p", "x=1"], 2, "no parameter"),
        (&["tasks", "add", "none.toml"], 2, "none.toml"),
        (&["tasks", "frobnicate"], 2, "frobnicate"),
        (&["open"], 2, "not a terminal"),
        (&["--server", "http://192.0.2.1", "status"], 5, "readable on the way"),
    ] {
        let output = server.run(line).await;
        assert_eq!(output.status.code(), Some(code), "{line:?}: {}", err(&output));
        assert!(err(&output).contains(words), "{line:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{line:?}");
    }
    let changes: Vec<String> = server.changes().into_iter().map(|(call, _)| call).collect();
    assert_eq!(changes, ["DELETE /tasks/long"], "nothing is made by a mistake");
}

#[tokio::test]
async fn without_a_server_one_line_says_what_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    for line in [&["tasks", "list"][..], &["watch"], &["tasks", "add", "x", "--watch"], &["status", "--json"]] {
        let output = rejoin(folder.path()).args(line).output().await.unwrap();
        assert_eq!(output.status.code(), Some(3));
        let said = err(&output);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("data/rejoin.sock") && said.contains("rejoin serve"), "{said}");
    }
}

#[tokio::test]
async fn the_token_of_the_folder_goes_over_its_socket_and_to_no_address() {
    let server = Server::start(log(1, Some("succeeded")), &[]);
    server.run(&["tasks", "run", "long", "--watch"]).await;
    let bearer = Some("Bearer the-token-of-the-folder".to_owned());
    assert!(server.scene.lock().unwrap().credentials.iter().all(|credential| *credential == bearer));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let scene = Shared::default();
    let app = app(scene.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let output = server.run(&["status", "--server", &url]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let output = server.command(&["status", "--server", &url]).env("REJOIN_TOKEN", "mine").output().await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(scene.lock().unwrap().credentials, [None, Some("Bearer mine".to_owned())]);
    // A proxy of the environment would be handed the token.
    let output = server
        .command(&["status", "--server", &url])
        .env("http_proxy", "http://127.0.0.1:9")
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

#[tokio::test]
async fn json_is_one_document_or_the_events_as_they_came() {
    let log = log(3, Some("failed"));
    let server = Server::start(log.clone(), &[2]);
    let list: Value = serde_json::from_str(&out(&server.run(&["tasks", "list", "--json"]).await)).unwrap();
    assert_eq!((&list["items"][0]["id"], &list["next"]), (&json!("long"), &Value::Null));
    let made: Value = serde_json::from_str(&out(&server.run(&["tasks", "add", "Long task", "--json"]).await)).unwrap();
    assert_eq!(made["run"]["id"], RUN);
    let waited = server.run(&["tasks", "add", "Long task", "--json", "--wait"]).await;
    assert_eq!(waited.status.code(), Some(1));
    let waited: Value = serde_json::from_str(&out(&waited)).unwrap();
    assert_eq!(waited["run"]["state"], "failed");

    let lines: Vec<String> = log[2..].iter().map(Value::to_string).collect();
    for line in [&["watch", RUN, "--json"][..], &["tasks", "run", "long", "--watch", "--json"]] {
        let output = server.run(line).await;
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(out(&output).lines().collect::<Vec<_>>(), lines);
    }
    for line in [&["runs", "logs", RUN, "--json"][..], &["runs", "logs", RUN, "--json", "-f"]] {
        let output = server.run(line).await;
        assert_eq!(output.status.code(), Some(0), "reading a run that failed is no failure");
        assert_eq!(out(&output).lines().collect::<Vec<_>>(), lines);
    }
}

#[tokio::test]
async fn the_tail_of_a_run_is_its_last_events() {
    let server = Server::start(log(1_300, Some("succeeded")), &[]);
    let all = server.run(&["runs", "logs", RUN]).await;
    assert_eq!(thoughts(&out(&all)), (1..=1_300).collect::<Vec<_>>());
    for line in [&["runs", "logs", RUN, "--tail", "700"][..], &["runs", "logs", RUN, "--tail", "700", "-f"]] {
        let output = server.run(line).await;
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(thoughts(&out(&output)), (602..=1_300).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn ctrl_c_ends_the_viewer_with_130_and_says_that_the_run_goes_on() {
    for line in
        [&["watch", RUN][..], &["watch", "long"], &["tasks", "run", "long", "--watch"], &["runs", "logs", RUN, "-f"]]
    {
        let server = Server::start(log(3, None), &[]);
        let mut child = server.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (_, mut reader) = first_line(&mut child).await;
        // The last event is there: the viewer follows now, whatever it printed before.
        let mut text = String::new();
        while !text.contains("thought 3") {
            assert_ne!(reader.read_line(&mut text).await.unwrap(), 0, "{text}");
        }
        kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), Signal::SIGINT).unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(130), "{line:?}");
        assert!(err(&output).contains("goes on"), "{}", err(&output));
        assert!(server.changes().iter().all(|(call, _)| !call.contains("stop")));
    }
}

#[tokio::test]
async fn a_reader_that_went_away_ends_it_quietly() {
    let server = Server::start(log(20_000, Some("succeeded")), &[]);
    for line in [&["runs", "logs", RUN][..], &["watch", RUN], &["watch", RUN, "--json"]] {
        let mut child = server.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (first, reader) = first_line(&mut child).await;
        assert!(!first.is_empty());
        drop(reader);
        let output = child.wait_with_output().await.unwrap();
        assert_eq!((output.status.code(), err(&output).as_str()), (Some(141), ""), "{line:?}");
    }
}

#[tokio::test]
async fn a_socket_with_a_long_path_is_reached() {
    let server = Server::start_in(&"a-long-name/".repeat(20), log(1, Some("succeeded")), &[]);
    let output = server.run(&["tasks", "add", "Long task", "--watch"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(thoughts(&out(&output)), [1]);
}

#[tokio::test]
async fn commands_become_a_task_with_a_key_that_makes_it_once() {
    let server = Server::start(log(1, None), &[]);
    let line = [
        "tasks",
        "add",
        "Say hello",
        "--run",
        "echo $REJOIN_PARAM_WHO",
        "-p",
        "who=me",
        "--every",
        "30m",
        "--retries",
        "2",
        "--once",
        "k-1",
    ];
    let output = server.run(&line).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let body = json!({
        "title": "Say hello", "steps": [{"run": "echo $REJOIN_PARAM_WHO"}], "schedule": {"every": "30m"},
        "policy": {"retries": 2}, "params": {"who": {"default": "me"}},
    });
    assert_eq!(server.changes(), [("POST /tasks".to_owned(), body)]);
    assert_eq!(server.scene.lock().unwrap().once.last().unwrap().as_deref(), Some("k-1"));
}

#[tokio::test]
async fn a_dry_run_shows_the_times_and_makes_nothing() {
    let server = Server::start(log(1, None), &[]);
    let line =
        ["tasks", "add", "Say hello", "--run", "true", "--cron", "0 3 * * *", "--tz", "Europe/Berlin", "--dry-run"];
    let output = server.run(&line).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("2099-01-01T00:00:00+01:00"), "{}", out(&output));
    let schedule = json!({"cron": "0 3 * * *", "tz": "Europe/Berlin"});
    let would_be = json!({"title": "Say hello", "steps": [{"run": "true"}], "schedule": schedule});
    let mut times = schedule;
    times["n"] = 5.into();
    let asked = [("POST /tasks?dry_run=true".to_owned(), would_be), ("POST /schedule/preview".to_owned(), times)];
    assert_eq!(server.changes(), asked);
}

#[tokio::test]
async fn output_for_a_pipe_has_no_colours_and_one_line_an_entry() {
    let server = Server::start(log(1, None), &[]);
    let output = server.run(&["tasks", "list"]).await;
    assert_eq!(
        out(&output),
        "ID    TITLE      STATE  SCHEDULE      NEXT  LAST\nlong  Long task  idle   every 30 min\n"
    );
    let output = server.run(&["status"]).await;
    assert!(out(&output).contains("up for    1 min 1 s"), "{}", out(&output));
    let output = server.run(&["open", "--print"]).await;
    assert_eq!(out(&output), "http://127.0.0.1:1/#code=x\n");
}

#[tokio::test]
async fn an_answer_that_does_not_come_leaves_no_doubt_about_the_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(folder.path().join("rejoin.sock")).unwrap();
    tokio::spawn(async move {
        // Listed tasks, then a server that dies with the request in its hands.
        for answer in [r#"{"items":[{"id":"long","title":"Long task"}],"next":null}"#, ""] {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut socket, &mut request).await;
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
            if !answer.is_empty() {
                tokio::io::AsyncWriteExt::write_all(&mut socket, (head + answer).as_bytes()).await.unwrap();
            }
        }
    });
    let output = rejoin(folder.path()).args(["--data-dir", ".", "tasks", "add", "long task"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("may have been done"), "{}", err(&output));
}

#[tokio::test]
async fn ctrl_c_is_heard_while_the_reader_of_the_output_pauses() {
    let server = Server::start(log(20_000, None), &[]);
    let mut child = server.command(&["watch", RUN]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // More than a pipe holds is to come, and nobody takes it.
    let (_, reader) = first_line(&mut child).await;
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    drop(reader);
}

#[tokio::test]
async fn what_runs_have_found_is_listed_and_answered_and_cannot_act_on_a_terminal() {
    let server = Server::start(Vec::new(), &[]);
    let said = async |line: &[&str]| {
        let output = server.run(line).await;
        assert!(output.status.success(), "{line:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let list = said(&["attention", "--all"]).await;
    assert!(list.contains(RUN) && list.contains("open") && list.contains("snoozed until 2099-01-01"), "{list}");
    let acknowledged = said(&["runs", "acknowledge", RUN]).await;
    assert!(acknowledged.starts_with("Acknowledged: A disk is full"), "{acknowledged}");
    let snoozed = said(&["runs", "snooze", RUN, "--for", "4h"]).await;
    assert!(snoozed.starts_with("Snoozed until 2099-01-01"), "{snoozed}");
    for text in [&list, &acknowledged, &snoozed] {
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
    let changes = server.changes();
    assert_eq!(changes[0].0, format!("POST /runs/{RUN}/acknowledge"));
    assert_eq!(changes[1], (format!("POST /runs/{RUN}/snooze"), json!({ "for": "4h" })));
    let json: Value = serde_json::from_str(&said(&["attention", "--json"]).await).unwrap();
    assert_eq!(json["items"].as_array().unwrap().len(), 2);
}
