//! What the rows are played with: a run whose events the test says itself, one at a time; a page that keeps its
//! place like a good client; and the lines that the server logs.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rejoin::event::{Body, Role, RunId, Seq, State, Status};
use rejoin::stream::publish::Publisher;
use rejoin::stream::topic::Topic;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::harness::{Client, Home, InProcess, Watcher, events_of, is_terminal};

/// No heartbeat comes to the aid of a watcher that should have been woken.
pub const NO_HEARTBEAT: &str = "[stream]\nheartbeat = \"10m\"\nlife = \"20m\"";
/// How long a watcher that must be woken may take on a machine that is busy: below any heartbeat, the one as shipped too.
pub const SOON: Duration = Duration::from_secs(15);

/// A home with one task that never runs by itself, and no heartbeats.
pub fn stage(task: &str) -> Home {
    Home::new(NO_HEARTBEAT).shell_task(task, "true")
}

/// A run whose events the test says.
#[derive(Clone)]
pub struct Play {
    publisher: Publisher,
    /// The task's stream.
    pub topic: Arc<Topic>,
    /// The run.
    pub run: RunId,
}

impl Play {
    /// A run that is made and has started.
    pub async fn begin(server: &InProcess, task: &str) -> Self {
        let play = Self::queued(server, task).await;
        play.status(State::Started).await;
        play
    }

    /// A run that is made.
    pub async fn queued(server: &InProcess, task: &str) -> Self {
        let publisher = server.server.api().publisher.clone();
        let topic = publisher.topic(&task.parse().unwrap()).unwrap();
        let play = Self { publisher, topic, run: RunId::new() };
        play.status(State::Queued).await;
        play
    }

    /// Says something; gives its number once it is saved.
    pub async fn say(&self, body: Body) -> u64 {
        self.publisher.publish(&self.topic, Some(self.run), &body).await.unwrap().0
    }

    pub async fn status(&self, state: State) -> u64 {
        self.say(Body::Status(Status::new(state, format!("{state:?}")))).await
    }

    pub async fn thought(&self, text: &str) -> u64 {
        self.say(Body::Thought { text: text.to_owned() }).await
    }

    pub async fn message(&self, role: Role, text: &str) -> u64 {
        self.say(Body::Message { role, text: text.to_owned() }).await
    }

    pub async fn tool_use(&self, call: &str) -> u64 {
        let input = json!({ "command": "df -P" });
        self.say(Body::ToolUse { call: call.to_owned(), tool: "shell".to_owned(), input }).await
    }

    pub async fn tool_result(&self, call: &str) -> u64 {
        let (call, tool) = (call.to_owned(), "shell".to_owned());
        let output = "done".to_owned();
        self.say(Body::ToolResult { call, tool, ok: true, output, cut_bytes: 0, exit: Some(0), duration_ms: 1 }).await
    }

    /// Offers many thoughts without waiting for each.
    pub async fn thoughts(&self, count: usize) {
        for n in 0..count {
            let body = Body::Thought { text: format!("thought {n}") };
            self.publisher.offer(&self.topic, Some(self.run), &body).await.unwrap();
        }
    }

    /// Offers something without waiting until it is saved.
    pub async fn offer(&self, body: &Body) {
        self.publisher.offer(&self.topic, Some(self.run), body).await.unwrap();
    }

    /// Writes a piece of a text that is no event yet.
    pub fn write(&self, key: &str, text: &str) {
        if self.topic.write_draft(self.run, key, text) {
            self.publisher.wake_all(&self.topic);
        }
    }

    /// The last event that is saved.
    pub fn head(&self) -> u64 {
        self.topic.head().0
    }
}

/// Lets retention take what is below an event of a task.
pub async fn forget_below(server: &InProcess, task: &str, oldest: u64) {
    let publisher = &server.server.api().publisher;
    let topic = publisher.topic(&task.parse().unwrap()).unwrap();
    publisher.raise_oldest(&topic, Seq(oldest)).await.unwrap();
}

/// One page load that watches one task and keeps its place as the protocol says: an event that is not the next
/// one is a failure.
pub struct Page {
    client: Client,
    task: String,
    /// Made per page load.
    pub name: String,
    attempt: u64,
    sub: u64,
    /// The socket, while there is one.
    pub socket: Option<Watcher>,
    generation: Option<String>,
    /// The last event it has seen.
    pub position: u64,
    /// All events it has shown.
    pub events: Vec<Value>,
    /// How many frames brought them.
    pub frames: usize,
}

impl Page {
    pub fn new(client: &Client, task: &str) -> Self {
        Self {
            client: client.clone(),
            task: task.to_owned(),
            name: uuid::Uuid::new_v4().to_string(),
            attempt: 0,
            sub: 0,
            socket: None,
            generation: None,
            position: 0,
            events: Vec::new(),
            frames: 0,
        }
    }

    /// A page that is connected and has all there is.
    pub async fn open(client: &Client, task: &str) -> Self {
        let mut page = Self::new(client, task);
        page.connect().await;
        page
    }

    /// Opens a socket and goes on after the last event; gives the `subscribed` frame, with all up to `caught_up`
    /// read. A socket from before is dropped only after the new one is there.
    pub async fn connect(&mut self) -> Value {
        let subscribed = self.dial().await;
        assert_eq!(subscribed["outcome"], "resumed", "{subscribed}");
        while self.step().await["type"] != "caught_up" {}
        subscribed
    }

    /// Opens a socket and subscribes; gives the `subscribed` frame.
    pub async fn dial(&mut self) -> Value {
        (self.attempt, self.sub) = (self.attempt + 1, self.sub + 1);
        let mut socket = Watcher::open(self.client.address, Some(self.client.token())).await;
        let subscribe = json!([{ "sub": self.sub, "task": self.task, "gen": self.generation, "after": self.position }]);
        socket.hello(&self.name, self.attempt, subscribe).await;
        assert_eq!(socket.next().await["type"], "welcome");
        let subscribed = socket.next().await;
        self.generation = subscribed["gen"].as_str().map(str::to_owned);
        self.socket = Some(socket);
        subscribed
    }

    /// Lets the socket go without a word.
    pub fn cut(&mut self) {
        self.socket = None;
    }

    /// Reads one frame, soon.
    pub async fn step(&mut self) -> Value {
        let socket = self.socket.as_mut().expect("a page that is connected");
        let frame = timeout(SOON, socket.next()).await.expect("nothing came");
        let events = events_of(&frame);
        self.frames += usize::from(!events.is_empty());
        for event in events {
            assert_eq!(event["seq"], self.position + 1, "the next event, once and in order: {event}");
            self.position += 1;
            self.events.push(event);
        }
        frame
    }

    /// Reads on until it has seen this event; gives it.
    pub async fn sees(&mut self, seq: u64) -> Value {
        while self.position < seq {
            self.step().await;
        }
        self.events.iter().find(|event| event["seq"] == seq).unwrap().clone()
    }

    /// Reads on until a run has ended.
    pub async fn sees_end(&mut self) -> Value {
        self.sees_that(is_terminal).await
    }

    /// Reads on until an event is as wanted, of those not read yet.
    pub async fn sees_that(&mut self, good: impl Fn(&Value) -> bool) -> Value {
        loop {
            let before = self.events.len();
            self.step().await;
            if let Some(event) = self.events[before..].iter().find(|event| good(event)) {
                return event.clone();
            }
        }
    }

    /// All it has shown is all that the log has, byte for byte as JSON.
    pub fn has_all_of(&self, home: &Home) {
        let logged: Vec<Value> = home
            .logged_events(&self.task)
            .into_iter()
            .map(|(seq, text)| {
                let event: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(event["seq"], seq);
                event
            })
            .collect();
        assert_eq!(self.events.len(), logged.len());
        assert_eq!(self.events, logged);
    }
}

/// A line of the log.
#[derive(Clone, Debug)]
pub struct Line {
    pub level: tracing::Level,
    pub text: String,
}

fn lines() -> &'static Mutex<Vec<Line>> {
    static LINES: OnceLock<Mutex<Vec<Line>>> = OnceLock::new();
    LINES.get_or_init(|| {
        let _ = tracing_subscriber::registry().with(Keeper).try_init();
        Mutex::default()
    })
}

/// Keeps what is logged from now on.
pub fn keep_log() {
    lines();
}

/// The lines of this process that have all these words. Tests run side by side: name the task.
pub fn logged(words: &[&str]) -> Vec<Line> {
    let lines = lines().lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().filter(|line| words.iter().all(|word| line.text.contains(word))).cloned().collect()
}

struct Keeper;

impl<S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>> tracing_subscriber::Layer<S>
    for Keeper
{
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("rejoin") && *metadata.level() <= tracing::Level::DEBUG
    }

    fn on_new_span(&self, attributes: &tracing::span::Attributes<'_>, id: &tracing::span::Id, context: Context<'_, S>) {
        let mut words = Words::default();
        attributes.record(&mut words);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(words);
        }
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Words>() {
                words.0.push_str(&of_span.0);
            }
        }
        let line = Line { level: *event.metadata().level(), text: words.0 };
        lines().lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

#[derive(Default)]
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        if field.name() == "message" {
            let _ = write!(self.0, "{value:?} ");
        } else {
            let _ = write!(self.0, "{}={value:?} ", field.name());
        }
    }
}
