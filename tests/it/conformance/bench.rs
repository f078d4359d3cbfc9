//! The server that a case is played against: one of our own within this process, or one behind a program that does
//! what cannot be done over the wire (`tests/conformance/README.md`, "A server in another language").

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;

use rejoin::event::{Body, OutputStream, Role, State, Status};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::case::{Said, Settings, Work};
use crate::harness::{Client, Home, InProcess};
use crate::rows_stage::{Play, forget_below};

/// How many events are saved one by one.
const FEW: usize = 50;

/// Why something was not done.
#[derive(Debug)]
pub enum Not {
    /// This server has no way to it: the case cannot be played.
    Possible(String),
    /// It went wrong.
    Done(String),
}

impl From<String> for Not {
    fn from(why: String) -> Self {
        Self::Done(why)
    }
}

impl From<&str> for Not {
    fn from(why: &str) -> Self {
        Self::Done(why.to_owned())
    }
}

/// The server of a case.
pub enum Bench {
    /// Ours.
    Ours(Box<Ours>),
    /// Another one.
    Other(Box<Other>),
}

impl Bench {
    /// Starts a server: another one if `SERVER` names a program for that.
    pub async fn start(settings: &Settings) -> Result<Self, Not> {
        match std::env::var("SERVER") {
            Ok(program) if !program.is_empty() => Ok(Self::Other(Box::new(Other::start(&program, settings).await?))),
            _ => Ok(Self::Ours(Box::new(Ours::start(settings).await))),
        }
    }

    /// Speaks with it.
    pub fn client(&self) -> &Client {
        match self {
            Self::Ours(ours) => &ours.client,
            Self::Other(other) => &other.client,
        }
    }

    /// Makes a task.
    pub async fn task(&mut self, task: &str, work: Work) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => ours.task(task, work).await,
            Self::Other(other) => other.tell(json!({ "do": "task", "task": task, "work": work })).await.map(drop),
        }
    }

    /// Begins a run; gives its id.
    pub async fn begin(&mut self, task: &str, run: &str, queued_only: bool) -> Result<Value, Not> {
        match self {
            Self::Ours(ours) => Ok(ours.begin(task, run, queued_only).await),
            Self::Other(other) => {
                let told = json!({ "do": "begin", "task": task, "run": run, "queued_only": queued_only });
                Ok(other.tell(told).await?["run"].clone())
            }
        }
    }

    /// Puts events into the log.
    pub async fn say(&mut self, run: &str, events: Vec<Said>) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => ours.say(run, events).await,
            Self::Other(other) => other.tell(json!({ "do": "say", "run": run, "events": events })).await.map(drop),
        }
    }

    /// Writes a piece of a text.
    pub async fn delta(&mut self, run: &str, key: &str, text: &str) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => {
                ours.play(run)?.write(key, text);
                Ok(())
            }
            Self::Other(other) => {
                other.tell(json!({ "do": "delta", "run": run, "key": key, "text": text })).await.map(drop)
            }
        }
    }

    /// Ends a run.
    pub async fn end(&mut self, run: &str, state: &str) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => {
                let state: State = serde_json::from_value(json!(state)).map_err(|error| error.to_string())?;
                ours.play(run)?.status(state).await;
                Ok(())
            }
            Self::Other(other) => other.tell(json!({ "do": "end", "run": run, "state": state })).await.map(drop),
        }
    }

    /// Lets retention take what is before an event.
    pub async fn forget(&mut self, task: &str, below: u64) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => {
                forget_below(ours.server(), task, below).await;
                Ok(())
            }
            Self::Other(other) => other.tell(json!({ "do": "forget", "task": task, "below": below })).await.map(drop),
        }
    }

    /// Says something to everybody, or that it is over.
    pub async fn notice(&mut self, code: &str, text: &str, over: bool) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => ours.notice(code, text, over),
            Self::Other(other) => {
                other.tell(json!({ "do": "notice", "code": code, "text": text, "over": over })).await.map(drop)
            }
        }
    }

    /// Stops it in order and starts it again.
    pub async fn restart(&mut self) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => {
                ours.plays.clear();
                ours.server.take().expect("a server that runs").stop().await;
                let server = ours.home.serve().await;
                ours.client = server.client.clone();
                ours.server = Some(server);
                Ok(())
            }
            Self::Other(other) => {
                let told = other.tell(json!({ "do": "restart" })).await?;
                other.client = client_of(&told)?;
                Ok(())
            }
        }
    }

    /// Lets it begin to stop in order.
    pub async fn drain(&mut self) -> Result<(), Not> {
        match self {
            Self::Ours(ours) => {
                ours.plays.clear();
                let server = ours.server.take().expect("a server that runs");
                ours.stopping = Some(tokio::spawn(server.stop()));
                Ok(())
            }
            Self::Other(other) => other.tell(json!({ "do": "drain" })).await.map(drop),
        }
    }

    /// The case is over.
    pub async fn stop(self) {
        if let Self::Ours(mut ours) = self {
            ours.plays.clear();
            if let Some(stopping) = ours.stopping.take() {
                stopping.await.unwrap();
            }
            if let Some(server) = ours.server.take() {
                server.stop().await;
            }
        }
    }
}

/// A server within this process, whose log is written by hand.
pub struct Ours {
    home: Home,
    server: Option<InProcess>,
    client: Client,
    stopping: Option<JoinHandle<()>>,
    plays: BTreeMap<String, Play>,
}

impl Ours {
    async fn start(settings: &Settings) -> Self {
        let home = Home::new(&configuration(settings));
        let server = home.serve().await;
        let client = server.client.clone();
        Self { home, server: Some(server), client, stopping: None, plays: BTreeMap::new() }
    }

    fn server(&self) -> &InProcess {
        self.server.as_ref().expect("a server that runs")
    }

    fn play(&self, run: &str) -> Result<&Play, Not> {
        self.plays.get(run).ok_or_else(|| format!("no run {run} was begun").into())
    }

    async fn task(&self, task: &str, work: Work) -> Result<(), Not> {
        let command = match work {
            Work::Said | Work::Ends => "true",
            Work::Waits => "exec sleep 600",
        };
        let steps = json!([{ "name": "only", "run": command }]);
        let body = json!({ "id": task, "title": task, "steps": steps, "run": false });
        match self.client.post("/tasks", body).await {
            (201, _) => Ok(()),
            other => Err(format!("the task could not be made: {other:?}").into()),
        }
    }

    async fn begin(&mut self, task: &str, run: &str, queued_only: bool) -> Value {
        let play = match queued_only {
            true => Play::queued(self.server(), task).await,
            false => Play::begin(self.server(), task).await,
        };
        let id = json!(play.run);
        self.plays.insert(run.to_owned(), play);
        id
    }

    async fn say(&self, run: &str, events: Vec<Said>) -> Result<(), Not> {
        let play = self.play(run)?;
        let mut bodies: Vec<Body> = events.into_iter().map(body_of).collect::<Result<_, _>>()?;
        // Few are saved one by one: each is a row of the log then, and retention may part them anywhere.
        let at_once = if bodies.len() > FEW { bodies.len() - 1 } else { 0 };
        for body in bodies.drain(..at_once) {
            play.offer(&body).await;
        }
        for body in bodies {
            play.say(body).await;
        }
        Ok(())
    }

    fn notice(&self, code: &str, text: &str, over: bool) -> Result<(), Not> {
        let live = &self.server().server.api().live;
        let code: &'static str = match code {
            "store_not_writable" => "store_not_writable",
            "draining" => "draining",
            "clock_wrong" => "clock_wrong",
            other => return Err(format!("there is no notice {other}").into()),
        };
        match over {
            true => live.notices.lift(code, text),
            false => live.notices.say(code, text.to_owned(), jiff::Timestamp::UNIX_EPOCH),
        }
        live.hub.wake_all();
        Ok(())
    }
}

fn configuration(settings: &Settings) -> String {
    let heartbeat = settings.heartbeat_ms.unwrap_or(600_000);
    let life = settings.life_ms.unwrap_or(1_200_000);
    let mut text = format!("[stream]\nheartbeat = \"{heartbeat}ms\"\nlife = \"{life}ms\"\n");
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name} = {value}");
        }
    };
    let time = |ms: Option<u64>| ms.map(|ms| format!("\"{ms}ms\""));
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| format!("\"{bytes} B\""));
    let plain = |number: Option<u64>| number.map(|number| number.to_string());
    add("hello_deadline", time(settings.hello_ms));
    add("replay_events", plain(settings.replay_events));
    add("replay_bytes", bytes(settings.replay_bytes));
    add("ring_events", plain(settings.ring_events));
    add("subscriptions", plain(settings.subscriptions));
    add("connections", plain(settings.sockets));
    add("connections_per_credential", plain(settings.sockets_per_credential));
    add("unauthenticated", plain(settings.sockets_without_hello));
    add("slow_bytes", bytes(settings.slow_bytes));
    add("slow_window", time(settings.slow_window_ms));
    text
}

fn body_of(said: Said) -> Result<Body, Not> {
    let Said { kind, data } = said;
    let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
    let bad = |error: serde_json::Error| Not::Done(format!("{kind} with {data}: {error}"));
    let body = match kind.as_str() {
        "status" => Body::Status(serde_json::from_value::<Status>(data.clone()).map_err(bad)?),
        "thought" => Body::Thought { text: text("text") },
        "message" => {
            let role: Role = serde_json::from_value(data["role"].clone()).map_err(bad)?;
            Body::Message { role, text: text("text") }
        }
        "tool_use" => Body::ToolUse { call: text("call"), tool: text("tool"), input: data["input"].clone() },
        "tool_output" => {
            let stream: OutputStream = serde_json::from_value(data["stream"].clone()).map_err(bad)?;
            Body::ToolOutput { call: text("call"), stream, text: text("text"), cut_bytes: 0 }
        }
        "tool_result" => Body::ToolResult {
            call: text("call"),
            tool: text("tool"),
            ok: data["ok"] == true,
            output: text("output"),
            cut_bytes: 0,
            exit: data["exit"].as_i64().and_then(|exit| i32::try_from(exit).ok()),
            duration_ms: 1,
        },
        _ => {
            let raw = RawValue::from_string(data.to_string()).map_err(bad)?;
            Body::Other { kind: kind.clone(), raw }
        }
    };
    Ok(match data["key"].as_str() {
        Some(key) if matches!(body, Body::Thought { .. } | Body::Message { .. }) => {
            Body::Written { key: key.to_owned(), body: Box::new(body) }
        }
        _ => body,
    })
}

/// A server behind a program that is told what to do, a line of JSON each, and answers each with a line.
pub struct Other {
    client: Client,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    /// Ends with the case.
    _program: Child,
}

impl Other {
    async fn start(program: &str, settings: &Settings) -> Result<Self, Not> {
        let mut words = program.split(' ');
        let mut program = Command::new(words.next().unwrap_or_default())
            .args(words)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let input = program.stdin.take().ok_or("it takes no input")?;
        let output = BufReader::new(program.stdout.take().ok_or("it has no output")?).lines();
        let nowhere = Client::new(SocketAddr::from(([127, 0, 0, 1], 9)), "");
        let mut other = Self { client: nowhere, input, output, _program: program };
        let told = other.tell(json!({ "do": "start", "settings": settings })).await?;
        other.client = client_of(&told)?;
        Ok(other)
    }

    async fn tell(&mut self, told: Value) -> Result<Value, Not> {
        let line = format!("{told}\n");
        self.input.write_all(line.as_bytes()).await.map_err(|error| format!("it takes nothing: {error}"))?;
        let answer = self.output.next_line().await.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&answer.unwrap_or_default())
            .map_err(|error| format!("what it answers to {told} is no JSON: {error}"))?;
        if let Some(why) = answer["cannot"].as_str() {
            return Err(Not::Possible(why.to_owned()));
        }
        match answer["error"].as_str() {
            Some(why) => Err(format!("{told}: {why}").into()),
            None => Ok(answer),
        }
    }
}

fn client_of(told: &Value) -> Result<Client, Not> {
    let address = told["address"].as_str().and_then(|address| address.parse().ok());
    Ok(Client::new(address.ok_or("no address came")?, told["token"].as_str().unwrap_or_default()))
}
