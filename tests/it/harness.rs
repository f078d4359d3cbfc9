//! A server with fresh data, and clients that speak with it over real sockets.
#![allow(dead_code, reason = "not every build of the tests needs all of it")]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rejoin::clock::Clock;
use rejoin::config::Config;
use rejoin::server::Server;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};

/// How long anything may take that is not itself about time.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub const REJOIN: &str = env!("CARGO_BIN_EXE_rejoin");

/// A folder with a configuration, task files and data, gone with the test.
pub struct Home {
    dir: TempDir,
    config: String,
    program: PathBuf,
}

impl Home {
    /// A home whose server listens on a free port. `config` is added to its file.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = format!("listen = \"127.0.0.1:0\"\ndata_dir = \"data\"\ntasks_dir = \"tasks\"\n{config}\n");
        std::fs::create_dir(dir.path().join("tasks")).unwrap();
        std::fs::write(dir.path().join("config.toml"), &config).unwrap();
        Self { dir, config, program: REJOIN.into() }
    }

    /// Whose spawned servers are another build of the program.
    pub fn run_by(self, program: &Path) -> Self {
        Self { program: program.to_owned(), ..self }
    }

    /// With one more task file.
    pub fn task(self, id: &str, text: &str) -> Self {
        std::fs::write(self.path().join("tasks").join(format!("{id}.toml")), text).unwrap();
        self
    }

    /// A task of one shell command that runs by hand.
    pub fn shell_task(self, id: &str, command: &str) -> Self {
        let text =
            format!("title = {id:?}\n[[steps]]\nname = \"only\"\nthought = \"What now?\"\nrun = {}\n", json!(command));
        self.task(id, &text)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The SQLite file.
    pub fn database(&self) -> PathBuf {
        self.path().join("data/rejoin.db")
    }

    /// The admin token, once a server has started.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.path().join("data/token")).unwrap().trim().to_owned()
    }

    /// Starts a server within this process.
    pub async fn serve(&self) -> InProcess {
        self.serve_at(Clock::system()).await
    }

    /// The same with a clock of the test's own.
    pub async fn serve_at(&self, clock: Clock) -> InProcess {
        let file = self.path().join("config.toml");
        let config = Config::from_text(Some(&file), &self.config, &std::collections::BTreeMap::new()).unwrap();
        let server = Server::start(config, REJOIN.into(), clock).await.unwrap();
        let client = Client::new(server.address(), &self.token());
        InProcess { server, client }
    }

    /// Starts the program as a process of its own, and waits until it is ready.
    pub async fn spawn(&self, environment: &[(&str, &str)]) -> Process {
        match self.try_spawn(environment) {
            Ok(process) => process,
            Err(status) => panic!("the server did not start ({status}): {}", self.log()),
        }
    }

    /// The same where it may end before it is ready; gives how it ended then.
    pub fn try_spawn(&self, environment: &[(&str, &str)]) -> Result<Process, std::process::ExitStatus> {
        let mut child = Command::new(&self.program)
            .args(["serve", "--config"])
            .arg(self.path().join("config.toml"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::OpenOptions::new().create(true).append(true).open(self.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split([';', '\n']).next());
        let Some(address) = address else { return Err(child.wait().unwrap()) };
        let client = Client::new(address.trim().parse().unwrap(), &self.token());
        Ok(Process { child, client })
    }

    /// What the spawned servers have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// Every event of a task as a separate reader of the file has it: number and SHA-256 of its text.
    pub fn logged(&self, task: &str) -> Vec<(u64, String)> {
        self.logged_events(task).into_iter().map(|(seq, text)| (seq, hash(&text))).collect()
    }

    /// Every event of a task as a separate reader of the file has it, as text.
    pub fn logged_events(&self, task: &str) -> Vec<(u64, String)> {
        Archive::open(self).events_after(task, 0)
    }
}

/// A separate reader of the file of a home.
pub struct Archive {
    file: rusqlite::Connection,
}

impl Archive {
    /// Opens the file; a server must have made it.
    pub fn open(home: &Home) -> Self {
        Self::at(&home.database())
    }

    /// Opens a file.
    pub fn at(database: &Path) -> Self {
        let file = rusqlite::Connection::open_with_flags(database, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        file.busy_timeout(PATIENCE).unwrap();
        Self { file }
    }

    /// Every task with the id of its log, the first event that is still there and the last.
    pub fn logs(&self) -> Vec<(String, String, u64, u64)> {
        let mut rows = self.file.prepare_cached("SELECT id, gen, oldest, head FROM tasks WHERE id < '~'").unwrap();
        let log = |row: &rusqlite::Row<'_>| {
            let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            Ok((row.get(0)?, format!("{:016x}", number(1)?), number(2)?, number(3)?))
        };
        rows.query_map([], log).unwrap().map(Result::unwrap).collect()
    }

    /// What `read` sees is the file of one moment.
    pub fn at_one_moment<T>(&self, read: impl FnOnce(&Self) -> T) -> T {
        let _moment = self.file.unchecked_transaction().unwrap();
        read(self)
    }

    /// The events of a task behind one of them, as text.
    pub fn events_after(&self, task: &str, after: u64) -> Vec<(u64, String)> {
        let mut rows = self
            .file
            .prepare_cached(
                "SELECT segments.first, segments.ends, segments.items FROM segments JOIN tasks
                 ON segments.key > (tasks.no << 40) + ?2 AND segments.key < (tasks.no + 1) << 40
                 WHERE tasks.id = ?1 ORDER BY segments.key",
            )
            .unwrap();
        let segments = rows
            .query_map(rusqlite::params![task, after.cast_signed()], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, String>(2)?))
            })
            .unwrap();
        let mut events = Vec::new();
        for segment in segments {
            let (first, ends, items) = segment.unwrap();
            let mut start = 0;
            for (index, end) in ends.chunks_exact(4).enumerate() {
                let end = u32::from_le_bytes(end.try_into().unwrap()) as usize;
                let seq = first.cast_unsigned() + index as u64;
                if seq > after {
                    events.push((seq, items[start..end].to_owned()));
                }
                start = end + 1;
            }
        }
        events
    }
}

/// The SHA-256 of an event's text, in hex.
pub fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server within this process.
pub struct InProcess {
    /// The server.
    pub server: Server,
    /// Speaks with it.
    pub client: Client,
}

impl InProcess {
    /// Stops it in order.
    pub async fn stop(self) {
        // Longer than runs at work may take to be stopped.
        timeout(2 * PATIENCE, self.server.stop()).await.expect("the server does not stop").unwrap();
    }

    /// Has the writer wait at the first point, from now on, of which `here` says so.
    #[cfg(feature = "failpoints")]
    pub async fn hold_writer(&self, mut here: impl FnMut(&str) -> bool + Send + 'static) -> Hold {
        let (come, came) = tokio::sync::oneshot::channel();
        let (go, let_go) = std::sync::mpsc::channel::<()>();
        let mut come = Some(come);
        // What changes the store is done by the writer, in its thread.
        let act = move |_: &rusqlite::Connection| -> Result<_, rejoin::store::StoreError> {
            rejoin::failpoint::visit_on_this_thread(move |point| {
                if let Some(come) = come.take_if(|_| here(point)) {
                    let _ = come.send(());
                    let _ = let_go.recv();
                }
            });
            Ok(((), Vec::new()))
        };
        self.server.api().publisher.transact(act).await.unwrap();
        Hold { came: Some(came), _go: go }
    }
}

/// A writer that waits, or will; dropped, it goes on.
#[cfg(feature = "failpoints")]
pub struct Hold {
    came: Option<tokio::sync::oneshot::Receiver<()>>,
    _go: std::sync::mpsc::Sender<()>,
}

#[cfg(feature = "failpoints")]
impl Hold {
    /// Ready once the writer waits.
    pub async fn reached(&mut self) {
        let came = self.came.take().expect("waited for already");
        tokio::time::timeout(PATIENCE, came).await.expect("the writer does not come there").unwrap();
    }
}

/// A server as a process of its own; killed with the test.
pub struct Process {
    child: Child,
    /// Speaks with it.
    pub client: Client,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`; waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGTERM; waits until it is gone.
    pub async fn terminate(&mut self) -> std::process::ExitStatus {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.ended().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls the API.
#[derive(Clone)]
pub struct Client {
    /// Where the server listens.
    pub address: SocketAddr,
    /// The token it shows.
    pub token: String,
    http: reqwest::Client,
}

impl Client {
    /// A client with this token.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, token: token.to_owned(), http }
    }

    /// The token it shows.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A request to `/api/v1` + `path` with the token, to be filled further.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("http://{}/api/v1{path}", self.address)).bearer_auth(&self.token)
    }

    /// GET: the status and the JSON.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(reqwest::Method::GET, path)).await
    }

    /// POST of JSON: the status and the JSON (null where there is none).
    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        answer(self.request(reqwest::Method::POST, path).json(&body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> (u16, Value) {
        answer(self.request(reqwest::Method::DELETE, path)).await
    }

    /// Runs a task now; gives the id of the run.
    pub async fn run(&self, task: &str) -> String {
        let (status, answer) = self.post(&format!("/tasks/{task}/runs"), json!({})).await;
        assert_eq!(status, 201, "{answer}");
        answer["run"]["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a run is over; gives it.
    pub async fn ended(&self, run: &str) -> Value {
        self.until(&format!("/runs/{run}"), |run| !run["ended_at"].is_null()).await
    }

    /// Asks again until the answer is as wanted.
    pub async fn until(&self, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, value) = self.get(path).await;
            if good(&value) {
                return value;
            }
            assert!(Instant::now() < deadline, "never came about at {path}: {value}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All events of a task by pages.
    pub async fn pages(&self, task: &str) -> Vec<Value> {
        let mut events = Vec::new();
        let (mut query, mut after) = (String::new(), 0);
        loop {
            let (status, page) = self.get(&format!("/tasks/{task}/events?after={after}{query}")).await;
            assert_eq!(status, 200, "{page}");
            events.extend(page["items"].as_array().unwrap().iter().cloned());
            after = page["next"].as_u64().unwrap();
            query = format!("&gen={}", page["gen"].as_str().unwrap());
            if !page["more"].as_bool().unwrap() {
                return events;
            }
        }
    }

    /// Opens a socket and says hello with these subscriptions; the welcome was read.
    pub async fn watch(&self, subscribe: Value) -> Watcher {
        let mut watcher = Watcher::open(self.address, Some(&self.token)).await;
        watcher.hello(&uuid::Uuid::new_v4().to_string(), 1, subscribe).await;
        let welcome = watcher.next().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        watcher
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.timeout(PATIENCE).send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// A client of the live protocol that does nothing by itself.
pub struct Watcher {
    /// The socket.
    pub socket: WebSocketStream<TcpStream>,
}

impl Watcher {
    /// Opens a socket.
    pub async fn open(address: SocketAddr, token: Option<&str>) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), address, token).await.unwrap()
    }

    /// Opens a socket over a connection that is there.
    pub async fn over(
        stream: TcpStream,
        host: SocketAddr,
        token: Option<&str>,
    ) -> Result<Self, Box<tokio_tungstenite::tungstenite::Error>> {
        stream.set_nodelay(true).unwrap();
        let mut request = format!("ws://{host}/api/v1/live").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "rejoin.v1".parse().unwrap());
        if let Some(token) = token {
            request.headers_mut().insert("Authorization", format!("Bearer {token}").parse().unwrap());
        }
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(Box::new)?;
        Ok(Self { socket })
    }

    /// Says hello.
    pub async fn hello(&mut self, client: &str, attempt: u64, subscribe: Value) {
        self.send(
            json!({ "type": "hello", "protocol": 1, "client": client, "attempt": attempt, "subscribe": subscribe }),
        )
        .await;
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame; heartbeats are answered and left out, and make nobody wait longer for it.
    pub async fn next(&mut self) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = self.next_of_any().await.unwrap_or_else(|close| panic!("closed: {close:?}"));
            if frame["type"] != "heartbeat" {
                return frame;
            }
            assert!(Instant::now() < deadline, "nothing came but heartbeats");
            self.send(json!({ "type": "pong", "at": frame["at"] })).await;
        }
    }

    /// The next frame, or the close.
    pub async fn next_of_any(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            let message = timeout(PATIENCE, self.socket.next()).await.expect("nothing came");
            match message {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(close))) => return Err(close),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// Reads on until a frame is as wanted; gives all that came, the wanted last.
    pub async fn until(&mut self, good: impl Fn(&Value) -> bool) -> Vec<Value> {
        let (mut frames, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            let frame = self.next().await;
            let done = good(&frame);
            frames.push(frame);
            if done {
                return frames;
            }
            assert!(Instant::now() < deadline, "what was waited for never came");
        }
    }

    /// Reads on until the event that ends a run; gives all events that came.
    pub async fn events_until_end(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let frame = self.next().await;
            events.extend(events_of(&frame));
            if events.last().is_some_and(is_terminal) {
                return events;
            }
        }
    }

    /// The code with which the socket is closed.
    pub async fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.next_of_any().await {
                Ok(_) => {}
                Err(close) => return close.map(|close| close.code.into()),
            }
        }
    }
}

/// The events in a frame.
pub fn events_of(frame: &Value) -> Vec<Value> {
    match frame["type"].as_str() {
        Some("event") => vec![frame["event"].clone()],
        Some("events") => frame["items"].as_array().unwrap().clone(),
        _ => Vec::new(),
    }
}

/// Whether the event ends a run.
pub fn is_terminal(event: &Value) -> bool {
    let ends = ["succeeded", "failed", "cancelled", "timed_out", "interrupted"];
    event["kind"] == "status" && event["data"]["state"].as_str().is_some_and(|state| ends.contains(&state))
}

/// The numbers of events.
pub fn seqs(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

/// A gate that a shell command waits at until the test opens it: no sleeping, no guessing.
pub struct Gate {
    path: PathBuf,
}

impl Gate {
    /// A gate in a home.
    pub fn new(home: &Path, name: &str) -> Self {
        let path = home.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Self { path }
    }

    /// What a command says to wait there.
    pub fn wait(&self) -> String {
        format!("read _ < '{}'", self.path.display())
    }

    /// Lets one command through; waits until it is there.
    pub async fn open(&self) {
        let path = self.path.clone();
        let write = move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            writeln!(file).unwrap();
        };
        timeout(PATIENCE, tokio::task::spawn_blocking(write)).await.expect("nobody waits at the gate").unwrap();
    }
}

/// A frame, with the events in it as they were written.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

/// Events as they were written, from a frame or a page.
pub fn raw_events(text: &str) -> Vec<(u64, String)> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    let raw: Raw<'_> = serde_json::from_str(text).unwrap();
    let events = raw.event.into_iter().chain(raw.items.into_iter().flatten());
    let numbered = |event: &RawValue| {
        let seq = serde_json::from_str::<Numbered>(event.get()).unwrap().seq;
        (seq, event.get().to_owned())
    };
    events.map(numbered).collect()
}
