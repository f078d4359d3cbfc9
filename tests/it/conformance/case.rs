//! A case for a server, as its file has it (`tests/conformance/README.md`). Knows nothing of how it is played.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    #[serde(rename = "$schema")]
    _schema: String,
    /// What holds, in a sentence.
    #[serde(rename = "case")]
    _holds: String,
    /// The rows, codes, frames and traps it is for.
    #[serde(rename = "covers")]
    _covers: Vec<String>,
    /// What the server is told before it starts.
    #[serde(default)]
    pub settings: Settings,
    pub steps: Vec<Step>,
}

/// What the server is told before it starts. What is absent is large enough to be out of the way.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub heartbeat_ms: Option<u64>,
    pub life_ms: Option<u64>,
    pub hello_ms: Option<u64>,
    pub replay_events: Option<u64>,
    pub replay_bytes: Option<u64>,
    pub ring_events: Option<u64>,
    pub subscriptions: Option<u64>,
    pub sockets: Option<u64>,
    pub sockets_per_credential: Option<u64>,
    pub sockets_without_hello: Option<u64>,
    pub slow_bytes: Option<u64>,
    pub slow_window_ms: Option<u64>,
}

/// What a task does when it runs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Nothing by itself: what its runs say is said by the case.
    #[default]
    Said,
    /// Ends well at once.
    Ends,
    /// Goes on until it is stopped.
    Waits,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The WebSocket.
    #[default]
    Live,
    /// Server-sent events of a task.
    Feed,
}

/// An event to be put into a log.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Said {
    pub kind: String,
    pub data: Value,
}

/// What is asked over HTTP.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Asked {
    pub method: Option<String>,
    /// Below `/api/v1`.
    pub path: Value,
    pub query: Map<String, Value>,
    pub headers: Map<String, Value>,
    /// `token` (the default), `wrong`, `none`, or the name of a browser that signed in.
    pub credential: Option<String>,
    pub body: Option<Value>,
}

/// A subscription that a hello asks for is sent as it stands; the rest is named by the step.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Makes a task.
    Task {
        task: String,
        #[serde(default)]
        work: Work,
    },
    /// Deletes a task with its log.
    Remove { task: String },
    /// Makes a run: two events, `queued` and `started`; or the first only.
    Begin {
        task: String,
        run: String,
        #[serde(default)]
        queued_only: bool,
    },
    /// Puts events of a run into the log: those given, or so many thoughts. Done when they are saved.
    Say {
        run: String,
        count: Option<u64>,
        bytes: Option<usize>,
        #[serde(default)]
        events: Vec<Said>,
    },
    /// Text of a model as it is written: no event.
    Delta { run: String, key: String, text: String },
    /// Ends a run.
    End { run: String, state: String },
    /// Retention takes what is before an event.
    Forget { task: String, below: u64 },
    /// Something everybody should know, or its end.
    Notice {
        code: String,
        text: String,
        #[serde(default)]
        over: bool,
    },
    /// Remembers the gen of a task's log.
    Look { task: String, save: String },
    /// The server is stopped in order and started again with the same data.
    Restart {},
    /// The server begins to stop in order; the case goes on beside it.
    Drain {},
    /// A browser signs in.
    SignIn {
        #[serde(rename = "as")]
        name: String,
    },
    /// ... and is signed out, from elsewhere.
    SignOut { name: String },
    /// Opens a connection. `answer` is what HTTP answers; without it, it has to succeed.
    Open {
        #[serde(rename = "as")]
        name: String,
        #[serde(default)]
        via: Via,
        #[serde(default)]
        ask: Asked,
        /// The client's system takes as little as it can before it is read.
        #[serde(default)]
        small_window: bool,
        answer: Option<Value>,
    },
    /// Opens a WebSocket, says hello, and reads the welcome.
    Hello {
        #[serde(rename = "as")]
        name: String,
        /// Which page load it is of; the connection's name if absent.
        client: Option<String>,
        attempt: Option<u64>,
        tasks: Option<bool>,
        #[serde(default)]
        subscribe: Vec<Value>,
        credential: Option<String>,
        #[serde(default)]
        small_window: bool,
        /// What the welcome has to be beside being one.
        welcome: Option<Value>,
    },
    /// Sends a frame, a text, or bytes.
    Send {
        to: String,
        frame: Option<Value>,
        text: Option<Value>,
        #[serde(default)]
        binary: bool,
        times: Option<u32>,
    },
    /// The next message is this. Heartbeats are answered and not counted unless one is expected; neither are
    /// changes of the list of tasks.
    Expect { from: String, frame: Value },
    /// The next messages are these, in any order.
    ExpectAll { from: String, frames: Vec<Value> },
    /// The next messages bring these events, in order and each once, in frames of lawful size.
    Events {
        from: String,
        sub: Option<Value>,
        first: Value,
        last: Value,
        #[serde(default)]
        items: Vec<Value>,
        /// The id of the feed's last message.
        id: Option<Value>,
        frames: Option<Value>,
    },
    /// Reads on until a message is this; whatever comes before it is passed over.
    Until { from: String, frame: Value },
    /// Nothing more comes: a question is asked, and its answer is the next message.
    Silent { from: String },
    /// The server closes, now or after heartbeats.
    Closed {
        from: String,
        code: Option<u16>,
        reason: Option<Value>,
        within_ms: Option<u64>,
        /// Other frames may come before.
        #[serde(default)]
        after_others: bool,
    },
    /// The client closes as one should.
    Close {
        #[serde(rename = "as")]
        name: String,
    },
    /// The connection breaks without a word.
    Cut {
        #[serde(rename = "as")]
        name: String,
    },
    /// Asks over HTTP; with `until`, again and again until the answer is as wanted.
    Ask {
        ask: Asked,
        answer: Value,
        #[serde(default)]
        until: bool,
    },
    /// Compares what was saved.
    Check { value: Value, is: Value },
}

/// A case with where it stands.
pub struct Found {
    /// `server/...`, without the ending.
    pub name: String,
    pub case: Case,
}

/// All cases of a folder, by name.
pub fn all(folder: &Path) -> Vec<Found> {
    let mut folders = vec![folder.to_owned()];
    let mut paths: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "json") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.strip_prefix(folder.parent().unwrap()).unwrap().with_extension("");
        let text = std::fs::read_to_string(&path).unwrap();
        let case = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Found { name: name.display().to_string(), case }
    };
    paths.into_iter().map(read).collect()
}
