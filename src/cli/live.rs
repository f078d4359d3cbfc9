//! Follows tasks live: connects, resumes where it was, notices every gap and fills it, and never gives up.
//!
//! A library of its own: it knows the protocol (`docs/protocol.md`) and nothing of commands, terminals or HTTP. How a
//! socket and a page of a log are got comes in from outside.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::backoff;
use super::failure::Failure;
use super::wire::{Event, EventPage, Task};

/// The name of the protocol at the handshake.
pub const SUBPROTOCOL: &str = "rejoin.v1";

/// A server that was not heard for so long is dead: it sends a heartbeat every 20 s.
const LIFE: Duration = Duration::from_secs(35);

/// How long connecting, and sending a frame, may take.
const SOCKET_WITHIN: Duration = Duration::from_secs(10);

/// While pages are fetched the socket is not read; a sign of life this often keeps it.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(10);

/// How many events a page of the log is asked to have.
const PAGE: u64 = 500;

/// How much of a log that replaced another is shown from its beginning; of a longer one only what runs now.
const WHOLE_LOG: u64 = 20_000;

/// A subscription that keeps going wrong is asked for again at most this often.
const RESUBSCRIBE_EVERY: Duration = Duration::from_secs(1);

/// After an error that may pass: the server asked not to be hurried.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Subscribing again this often without a single event in order means that the socket itself is at fault.
const RESUBSCRIBES: u32 = 3;

/// How many tasks a connection may follow.
const MOST_FOLLOWED: usize = 256;

/// Where sockets and pages come from.
pub trait Transport {
    /// What the frames travel on.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// Connects to `/live`.
    fn dial(&self) -> impl Future<Output = Result<WebSocketStream<Self::Stream>, Dial>> + Send;

    /// Fetches a page of a log.
    fn page(&self, query: PageQuery<'_>) -> impl Future<Output = Result<EventPage, PageError>> + Send;
}

/// Which page of which log.
#[derive(Clone, Copy, Debug)]
pub struct PageQuery<'a> {
    /// The task.
    pub task: &'a str,
    /// The id of its log.
    pub generation: &'a str,
    /// The event before the first one wanted.
    pub after: u64,
    /// How many at most.
    pub limit: u64,
}

/// Why there is no socket.
#[derive(Debug)]
pub enum Dial {
    /// It may work later.
    Failed(String),
    /// It will not.
    Refused(Failure),
}

/// Why there is no page.
#[derive(Debug)]
pub enum PageError {
    /// It may work later.
    Failed(String),
    /// What is wanted was removed; the log now begins here.
    Gone {
        /// The first event that is still there.
        oldest: u64,
    },
    /// The log is another one, or none.
    Replaced,
}

/// What happens, in order.
#[derive(Debug)]
pub enum Step {
    /// The server answered. `again` is false the first time.
    Connected {
        /// Whether there was a connection before.
        again: bool,
    },
    /// The next event of a task.
    Event {
        /// The task.
        task: String,
        /// The event.
        event: Event,
    },
    /// The server could not go on where this client was. What is still there follows as events.
    Reset {
        /// The task.
        task: String,
        /// `too_far`, `from_start`, `retention`, `generation`, `future`.
        why: String,
        /// Whether the log is another one than before: numbers begin anew and what was seen counts no more.
        replaced: bool,
        /// Events that are gone for good, first and last.
        lost: Option<(u64, u64)>,
        /// Events that are there and are not repeated here, first and last.
        skipped: Option<(u64, u64)>,
    },
    /// All that was missing has been given.
    CaughtUp {
        /// The task.
        task: String,
        /// How many events were missing.
        missed: u64,
        /// Up to which event everything was given, or said to be gone.
        position: u64,
    },
    /// The connection is lost; the next attempt comes after `wait`.
    Reconnecting {
        /// Which attempt in a row.
        attempt: u32,
        /// How long until then.
        wait: Duration,
        /// Why, in words.
        why: String,
    },
    /// The task is not there (any more), or not for this credential.
    NotFound {
        /// The task.
        task: String,
    },
    /// The server does not let this task be followed.
    Refused {
        /// The task.
        task: String,
        /// Why.
        message: String,
    },
    /// Something to tell a person.
    Notice {
        /// In words.
        text: String,
        /// Whether it is over.
        over: bool,
    },
    /// The list of tasks, or what changed in it.
    Tasks {
        /// Whether it is the whole list.
        full: bool,
        /// Tasks as they are now.
        items: Vec<Task>,
        /// Tasks that are no more.
        removed: Vec<String>,
    },
}

/// One task that is followed.
#[derive(Debug)]
struct Follow {
    task: String,
    generation: Option<String>,
    /// The last event that was given out, or counts as seen.
    position: u64,
    /// The last event that this subscription delivered or skipped by a snapshot; ahead of `position` while a gap
    /// between them is being filled from pages.
    wire: u64,
    /// The subscription on the present connection. Frames of any other number are discarded.
    sub: Option<u32>,
    phase: Phase,
    /// Until where pages are to be fetched before the socket is read again.
    gap_to: Option<u64>,
    /// What `caught_up` will report.
    missed: u64,
    /// Heartbeats in a row that did not name the subscription.
    absent: u32,
    /// `sent` of the last heartbeat that said there is more.
    stuck_at: Option<u64>,
    /// How often it was subscribed again since the last event in order.
    resubscribes: u32,
    /// When it was subscribed last.
    subscribed_at: Option<Instant>,
    /// When it is to be subscribed again; until then it has no subscription.
    again_at: Option<Instant>,
    /// Whether it was said that it cannot be followed: once is enough.
    said_again: bool,
}

#[derive(Debug)]
enum Phase {
    /// Subscribed to, not answered.
    Asked,
    /// Events come.
    Open,
    /// A snapshot is to come, and until then nothing else.
    Reset { why: String, oldest: u64 },
}

enum Link<S> {
    /// No socket; the next attempt is due at this time.
    Down { until: Instant },
    /// A socket; boxed, as it is much larger than none.
    Up(Box<Socket<S>>),
}

struct Socket<S> {
    stream: WebSocketStream<S>,
    welcomed: bool,
    /// When this side last sent something.
    spoke: Instant,
    /// When the other side did, as far as it was looked at.
    heard: Instant,
    /// `at` of the last heartbeat.
    beat: Value,
}

/// Follows tasks. [`Live::next`] gives what happens, one step after the other.
pub struct Live<T: Transport> {
    transport: T,
    random: Box<dyn FnMut() -> f64 + Send>,
    client: uuid::Uuid,
    want_tasks: bool,
    /// Grows with each hello, so that the server can tell an old socket from a new one.
    hellos: u64,
    /// Failed attempts since the last welcome.
    failures: u32,
    connected_before: bool,
    link: Link<T::Stream>,
    follows: Vec<Follow>,
    next_sub: u32,
    pending: VecDeque<Step>,
    outbox: VecDeque<Value>,
    boot: Option<String>,
    revision: Option<u64>,
}

/// A server frame: all members of all frames, those of other frames absent. Flat, as the frames are, because events
/// must be kept as they came.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(default)]
    sub: Option<u32>,
    #[serde(default, rename = "gen")]
    generation: Option<String>,
    #[serde(default)]
    outcome: Option<String>,
    #[serde(default)]
    from: Option<u64>,
    #[serde(default)]
    missed: Option<u64>,
    #[serde(default)]
    why: Option<String>,
    #[serde(default)]
    oldest: Option<u64>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    state: Option<SnapshotState>,
    #[serde(default, borrow)]
    event: Option<&'a RawValue>,
    #[serde(default, borrow)]
    items: Option<Vec<&'a RawValue>>,
    #[serde(default)]
    heads: Option<BTreeMap<String, Heads>>,
    #[serde(default)]
    at: Option<Value>,
    #[serde(default)]
    protocol: Option<u64>,
    #[serde(default)]
    server: Option<Server>,
    #[serde(default)]
    rev: Option<u64>,
    #[serde(default)]
    full: Option<bool>,
    #[serde(default)]
    removed: Option<Vec<String>>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    retryable: Option<bool>,
    #[serde(default)]
    over: Option<bool>,
}

#[derive(Deserialize)]
struct SnapshotState {
    #[serde(default)]
    runs: Option<Vec<super::wire::Run>>,
}

#[derive(Deserialize)]
struct Heads {
    sent: u64,
    head: u64,
}

#[derive(Deserialize)]
struct Server {
    #[serde(default)]
    boot: Option<String>,
}

/// The reason of a close frame.
#[derive(Deserialize, Default)]
struct CloseReason {
    code: Option<String>,
    retry_ms: Option<u64>,
}

/// Why the connection is given up, and what that means for the next one.
struct Lost {
    why: String,
    at_least: Duration,
}

impl Lost {
    fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), at_least: Duration::ZERO }
    }
}

impl<T: Transport> Live<T> {
    /// A follower of no task yet. `random` gives numbers in 0..1 for the spread of the waits.
    pub fn new(transport: T, random: impl FnMut() -> f64 + Send + 'static) -> Self {
        Self {
            transport,
            random: Box::new(random),
            client: uuid::Uuid::new_v4(),
            want_tasks: false,
            hellos: 0,
            failures: 0,
            connected_before: false,
            link: Link::Down { until: Instant::now() },
            follows: Vec::new(),
            next_sub: 1,
            pending: VecDeque::new(),
            outbox: VecDeque::new(),
            boot: None,
            revision: None,
        }
    }

    /// Asks for the list of tasks too.
    pub fn with_tasks(mut self) -> Self {
        self.want_tasks = true;
        self
    }

    /// Follows a task from the event after `after` of the log `generation`. A task that is followed already is left
    /// as it is. False: no more tasks can be followed.
    pub fn follow(&mut self, task: &str, generation: Option<&str>, after: u64) -> bool {
        if self.follows(task) {
            return true;
        }
        if self.follows.len() >= MOST_FOLLOWED {
            return false;
        }
        self.follows.push(Follow {
            task: task.to_owned(),
            generation: generation.map(ToOwned::to_owned),
            position: after,
            wire: after,
            sub: None,
            phase: Phase::Asked,
            gap_to: None,
            missed: 0,
            absent: 0,
            stuck_at: None,
            resubscribes: 0,
            subscribed_at: None,
            again_at: None,
            said_again: false,
        });
        if matches!(&self.link, Link::Up(socket) if socket.welcomed) {
            self.subscribe(self.follows.len() - 1);
        }
        true
    }

    /// Whether a task is followed.
    pub fn follows(&self, task: &str) -> bool {
        self.follows.iter().any(|follow| follow.task == task)
    }

    /// The next thing that happens. Comes back with an error only where trying again makes no sense.
    ///
    /// # Errors
    /// The credential or the protocol is refused.
    pub async fn next(&mut self) -> Result<Step, Failure> {
        loop {
            if let Some(step) = self.pending.pop_front() {
                return Ok(step);
            }
            let turn = match &self.link {
                Link::Down { until } => {
                    sleep_until(*until).await;
                    self.connect().await?
                }
                Link::Up(_) => match self.follows.iter().position(|follow| follow.gap_to.is_some()) {
                    Some(index) => self.fill(index).await,
                    None => self.hear().await?,
                },
            };
            if let Err(lost) = turn {
                self.lose(lost);
            }
        }
    }

    /// Says goodbye, so that the server need not find out.
    pub async fn close(mut self) {
        if let Link::Up(socket) = &mut self.link {
            let _ = timeout(Duration::from_millis(500), socket.stream.close(None)).await;
        }
    }

    async fn connect(&mut self) -> Result<Result<(), Lost>, Failure> {
        let stream = match timeout(SOCKET_WITHIN, self.transport.dial()).await {
            Err(_) => return Ok(Err(Lost::because("no answer in time"))),
            Ok(Err(Dial::Failed(why))) => return Ok(Err(Lost::because(why))),
            Ok(Err(Dial::Refused(failure))) => return Err(failure),
            Ok(Ok(stream)) => stream,
        };
        self.hellos += 1;
        self.outbox.clear();
        let subscribe: Vec<Value> = (0..self.follows.len()).map(|index| self.subscription(index)).collect();
        self.outbox.push_back(json!({
            "type": "hello", "protocol": 1, "client": self.client, "attempt": self.hellos,
            "tasks": self.want_tasks, "subscribe": subscribe,
        }));
        let now = Instant::now();
        let socket = Socket { stream, welcomed: false, spoke: now, heard: now, beat: Value::Null };
        self.link = Link::Up(Box::new(socket));
        Ok(self.speak().await)
    }

    /// Gives a follow a new subscription and returns the request for it.
    fn subscription(&mut self, index: usize) -> Value {
        let sub = self.next_sub;
        self.next_sub = if sub >= i32::MAX.unsigned_abs() { 1 } else { sub + 1 };
        let follow = &mut self.follows[index];
        follow.sub = Some(sub);
        follow.phase = Phase::Asked;
        follow.wire = follow.position;
        follow.gap_to = None;
        follow.missed = 0;
        follow.absent = 0;
        follow.stuck_at = None;
        follow.subscribed_at = Some(Instant::now());
        follow.again_at = None;
        json!({ "sub": sub, "task": follow.task, "gen": follow.generation, "after": follow.position })
    }

    fn subscribe(&mut self, index: usize) {
        let mut frame = self.subscription(index);
        frame["type"] = "subscribe".into();
        self.outbox.push_back(frame);
    }

    /// Subscribes again because what came does not fit; what the old subscription still sends is discarded.
    fn resubscribe(&mut self, index: usize, why: &str) -> Result<(), Lost> {
        self.follows[index].resubscribes += 1;
        if self.follows[index].resubscribes > RESUBSCRIBES {
            return Err(Lost::because(format!("the stream stays out of order ({why})")));
        }
        tracing::debug!(task = self.follows[index].task, why, "subscribing again");
        let now = Instant::now();
        match self.follows[index].subscribed_at.map(|last| last + RESUBSCRIBE_EVERY) {
            Some(due) if due > now => self.subscribe_at(index, due),
            _ => self.subscribe(index),
        }
        Ok(())
    }

    /// Gives the subscription up and takes another one later.
    fn subscribe_at(&mut self, index: usize, due: Instant) {
        let follow = &mut self.follows[index];
        follow.sub = None;
        follow.again_at = Some(due);
    }

    /// Takes up what was put off, if its time has come; gives when the next is due.
    fn take_up(&mut self) -> Option<Instant> {
        let now = Instant::now();
        for index in 0..self.follows.len() {
            if self.follows[index].again_at.is_some_and(|due| due <= now) {
                self.subscribe(index);
            }
        }
        self.follows.iter().filter_map(|follow| follow.again_at).min()
    }

    async fn speak(&mut self) -> Result<(), Lost> {
        let Link::Up(socket) = &mut self.link else { return Ok(()) };
        while let Some(frame) = self.outbox.pop_front() {
            let sending = socket.stream.send(Message::text(frame.to_string()));
            match timeout(SOCKET_WITHIN, sending).await {
                Ok(Ok(())) => socket.spoke = Instant::now(),
                Ok(Err(error)) => return Err(Lost::because(broken(&error))),
                Err(_) => return Err(Lost::because("the server takes nothing any more")),
            }
        }
        Ok(())
    }

    fn lose(&mut self, lost: Lost) {
        self.failures = self.failures.saturating_add(1);
        let wait = backoff::delay(self.failures, (self.random)()).max(lost.at_least);
        self.link = Link::Down { until: Instant::now() + wait };
        for follow in &mut self.follows {
            follow.sub = None;
            follow.gap_to = None;
            follow.resubscribes = 0;
            follow.subscribed_at = None;
            follow.again_at = None;
        }
        self.pending.push_back(Step::Reconnecting { attempt: self.failures, wait, why: lost.why });
    }

    /// Waits for one message and acts on it.
    async fn hear(&mut self) -> Result<Result<(), Lost>, Failure> {
        let due = self.take_up();
        if let Err(lost) = self.speak().await {
            return Ok(Err(lost));
        }
        let Link::Up(socket) = &mut self.link else { return Ok(Ok(())) };
        let dead = socket.heard + LIFE;
        let until = due.map_or(dead, |due| due.min(dead));
        // What is there already is taken first, so that a reader of the output that paused does not count as a dead
        // server.
        let message = match timeout_at(until, socket.stream.next()).await {
            Err(_) if until < dead => return Ok(Ok(())),
            Err(_) => return Ok(Err(Lost::because("nothing was heard for 35 s"))),
            Ok(None) => return Ok(Err(Lost::because("the server closed the connection"))),
            Ok(Some(Err(error))) => return Ok(Err(Lost::because(broken(&error)))),
            Ok(Some(Ok(message))) => message,
        };
        socket.heard = Instant::now();
        match message {
            Message::Text(text) => {
                let Ok(frame) = serde_json::from_str::<Frame<'_>>(&text) else {
                    return Ok(Err(Lost::because("a frame that cannot be read")));
                };
                let heard = self.heed(frame)?;
                if heard.is_err() {
                    return Ok(heard);
                }
                Ok(self.speak().await)
            }
            Message::Close(frame) => closed(frame.as_ref()).map(Err),
            _ => Ok(Ok(())),
        }
    }

    /// Acts on a frame. The position is moved before anything is given out.
    fn heed(&mut self, frame: Frame<'_>) -> Result<Result<(), Lost>, Failure> {
        match frame.kind {
            "welcome" => return self.welcomed(&frame).map(Ok),
            "heartbeat" => return Ok(self.beat(&frame)),
            "notice" => {
                let (text, over) = (frame.text.or(frame.message).unwrap_or_default(), frame.over.unwrap_or(false));
                self.pending.push_back(Step::Notice { text, over });
                return Ok(Ok(()));
            }
            "tasks" => {
                self.tasks(frame);
                return Ok(Ok(()));
            }
            _ => {}
        }
        // Frames of a subscription that was given up are discarded.
        let Some(index) = self.follows.iter().position(|f| frame.sub.is_some() && f.sub == frame.sub) else {
            if frame.kind == "error" && frame.sub.is_none() {
                let text = frame.message.unwrap_or_default();
                self.pending.push_back(Step::Notice { text, over: false });
            }
            return Ok(Ok(()));
        };
        Ok(match frame.kind {
            "subscribed" => self.subscribed(index, frame),
            "reset" => {
                let oldest = frame.oldest.unwrap_or(1);
                self.follows[index].phase = Phase::Reset { why: frame.why.unwrap_or_default(), oldest };
                Ok(())
            }
            "snapshot" => self.snapshot(index, frame),
            "event" => self.events(index, frame.event.into_iter()),
            "events" => self.events(index, frame.items.unwrap_or_default().into_iter()),
            "caught_up" => {
                let follow = &mut self.follows[index];
                let missed = std::mem::take(&mut follow.missed);
                let position = follow.position;
                self.pending.push_back(Step::CaughtUp { task: follow.task.clone(), missed, position });
                Ok(())
            }
            "error" => {
                self.refused(index, frame);
                Ok(())
            }
            _ => Ok(()),
        })
    }

    fn welcomed(&mut self, frame: &Frame<'_>) -> Result<(), Failure> {
        if frame.protocol.is_some_and(|version| version != 1) {
            return Err(Failure::Server(
                "The server speaks another version of the live protocol: update rejoin.".into(),
            ));
        }
        if let Link::Up(socket) = &mut self.link {
            socket.welcomed = true;
        }
        // Only now: a socket that opens and closes again must not make the waits begin anew.
        self.failures = 0;
        let boot = frame.server.as_ref().and_then(|server| server.boot.clone());
        if boot != self.boot {
            self.boot = boot;
            self.revision = None;
        }
        let again = std::mem::replace(&mut self.connected_before, true);
        self.pending.push_back(Step::Connected { again });
        Ok(())
    }

    fn tasks(&mut self, frame: Frame<'_>) {
        let full = frame.full.unwrap_or(false);
        if let (false, Some(revision), Some(known)) = (full, frame.rev, self.revision)
            && revision != known + 1
        {
            self.outbox.push_back(json!({ "type": "tasks" }));
        }
        self.revision = frame.rev.or(self.revision);
        let items = frame.items.unwrap_or_default();
        let items = items.iter().filter_map(|raw| serde_json::from_str(raw.get()).ok()).collect();
        self.pending.push_back(Step::Tasks { full, items, removed: frame.removed.unwrap_or_default() });
    }

    fn subscribed(&mut self, index: usize, frame: Frame<'_>) -> Result<(), Lost> {
        let follow = &mut self.follows[index];
        match frame.outcome.as_deref() {
            Some("not_found") => {
                let follow = self.follows.remove(index);
                self.pending.push_back(Step::NotFound { task: follow.task });
            }
            Some("reset") => {
                // What reset will say follows; until then nothing of this subscription counts.
                follow.phase = Phase::Reset { why: String::new(), oldest: 1 };
            }
            _ => {
                let before = frame.from.unwrap_or(follow.position + 1).saturating_sub(1);
                let other_log = frame.generation.is_some() && frame.generation != follow.generation;
                if follow.position > 0 && (before != follow.position || other_log) {
                    return self.resubscribe(index, "resumed at another place");
                }
                follow.phase = Phase::Open;
                follow.said_again = false;
                follow.position = before;
                follow.wire = before;
                follow.missed = frame.missed.unwrap_or(0);
                follow.generation = frame.generation.or(follow.generation.take());
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, index: usize, frame: Frame<'_>) -> Result<(), Lost> {
        let Some(seq) = frame.seq else { return Err(Lost::because("a snapshot without a number")) };
        let follow = &mut self.follows[index];
        let (why, oldest) = match std::mem::replace(&mut follow.phase, Phase::Open) {
            Phase::Reset { why, oldest } => (why, oldest.max(1)),
            // A snapshot that nobody announced: believe it, as what it says is right.
            _ => (String::new(), follow.position + 1),
        };
        let other = frame.generation.is_some() && follow.position > 0 && frame.generation != follow.generation;
        let replaced = other || matches!(why.as_str(), "generation" | "future");
        let had = if replaced { 0 } else { follow.position };
        let mut after = had.max(oldest - 1).min(seq);
        let lost = (had > 0 && oldest - 1 > had).then(|| (had + 1, oldest - 1));
        let mut skipped = None;
        if replaced && seq - after > WHOLE_LOG {
            let runs = frame.state.and_then(|state| state.runs).unwrap_or_default();
            let first = runs.iter().filter(|run| !run.is_over()).filter_map(|run| run.first_seq).min();
            let begin = first.map_or(seq, |first| first.saturating_sub(1).clamp(after, seq));
            skipped = (begin > after).then_some((after + 1, begin));
            after = begin;
        }
        follow.generation = frame.generation.or(follow.generation.take());
        follow.said_again = false;
        follow.position = after;
        follow.wire = seq;
        follow.gap_to = (after < seq).then_some(seq);
        follow.missed = seq - after;
        let task = follow.task.clone();
        self.pending.push_back(Step::Reset { task, why, replaced, lost, skipped });
        Ok(())
    }

    fn events<'a>(&mut self, index: usize, items: impl Iterator<Item = &'a RawValue>) -> Result<(), Lost> {
        for raw in items {
            let follow = &mut self.follows[index];
            if !matches!(follow.phase, Phase::Open) {
                return self.resubscribe(index, "events before the answer");
            }
            match Event::read(raw) {
                Some(event) if event.seq == follow.wire + 1 => {
                    follow.wire = event.seq;
                    follow.position = event.seq;
                    follow.resubscribes = 0;
                    let task = follow.task.clone();
                    self.pending.push_back(Step::Event { task, event });
                }
                _ => return self.resubscribe(index, "an event that is not the next one"),
            }
        }
        Ok(())
    }

    /// The server cannot serve a subscription: for the moment, or at all. The others have nothing to do with it.
    fn refused(&mut self, index: usize, frame: Frame<'_>) {
        let message = frame.message.unwrap_or_else(|| "refused".into());
        if frame.retryable == Some(true) {
            let follow = &mut self.follows[index];
            follow.gap_to = None;
            follow.phase = Phase::Asked;
            if !std::mem::replace(&mut follow.said_again, true) {
                let text =
                    format!("Task {} cannot be followed at the moment ({message}); it is tried again.", follow.task);
                self.pending.push_back(Step::Notice { text, over: false });
            }
            self.subscribe_at(index, Instant::now() + ASK_AGAIN_AFTER);
            return;
        }
        let follow = self.follows.remove(index);
        self.pending.push_back(Step::Refused { task: follow.task, message });
    }

    /// Answers a heartbeat, and compares what the server says it sent with what came.
    fn beat(&mut self, frame: &Frame<'_>) -> Result<(), Lost> {
        let at = frame.at.clone().unwrap_or_default();
        if let Link::Up(socket) = &mut self.link {
            socket.beat = at.clone();
        }
        self.outbox.push_back(json!({ "type": "pong", "at": at }));
        let none = BTreeMap::new();
        let heads = frame.heads.as_ref().unwrap_or(&none);
        for index in 0..self.follows.len() {
            let follow = &mut self.follows[index];
            let Some(sub) = follow.sub else { continue };
            let trouble = match heads.get(&sub.to_string()) {
                // Between a reset and its snapshot there is nothing that could be said of it.
                None if matches!(follow.phase, Phase::Reset { .. }) => None,
                None => {
                    follow.absent += 1;
                    (follow.absent >= 2).then_some("the server does not know the subscription")
                }
                Some(heads) => {
                    follow.absent = 0;
                    let stuck = (heads.sent < heads.head).then_some(heads.sent);
                    let stuck_before = std::mem::replace(&mut follow.stuck_at, stuck);
                    if matches!(follow.phase, Phase::Open) && heads.sent != follow.wire {
                        Some("the server sent what did not come")
                    } else if stuck.is_some() && stuck == stuck_before {
                        Some("the server does not send what it has")
                    } else {
                        None
                    }
                }
            };
            match trouble {
                Some(why) => self.resubscribe(index, why)?,
                None if heads.contains_key(&sub.to_string()) => self.follows[index].resubscribes = 0,
                None => {}
            }
        }
        Ok(())
    }

    /// Fetches one page of what a snapshot went over. The socket waits meanwhile, so the order holds.
    async fn fill(&mut self, index: usize) -> Result<(), Lost> {
        self.stay_alive().await?;
        let follow = &mut self.follows[index];
        let Some(to) = follow.gap_to else { return Ok(()) };
        let generation = follow.generation.clone().unwrap_or_default();
        let query = PageQuery {
            task: &follow.task,
            generation: &generation,
            after: follow.position,
            limit: PAGE.min(to - follow.position),
        };
        let page = match self.transport.page(query).await {
            Ok(page) => page,
            Err(PageError::Failed(why)) => return Err(Lost::because(why)),
            Err(PageError::Replaced) => return self.resubscribe(index, "the log was replaced"),
            Err(PageError::Gone { oldest }) => {
                // Removed while this client was reading: said aloud, then on with what is left.
                let until = oldest.saturating_sub(1).min(to);
                if until <= follow.position {
                    return Err(Lost::because("the log cannot be read"));
                }
                let lost = Some((follow.position + 1, until));
                follow.position = until;
                follow.gap_to = (until < to).then_some(to);
                let task = follow.task.clone();
                let why = "retention".to_owned();
                self.pending.push_back(Step::Reset { task, why, replaced: false, lost, skipped: None });
                return Ok(());
            }
        };
        if page.generation != generation {
            return self.resubscribe(index, "the log was replaced");
        }
        let before = follow.position;
        for raw in &page.items {
            let Some(event) = Event::read(raw).filter(|event| event.seq == follow.position + 1) else {
                return Err(Lost::because("a page of the log is out of order"));
            };
            if event.seq > to {
                break;
            }
            follow.position = event.seq;
            self.pending.push_back(Step::Event { task: follow.task.clone(), event });
        }
        if follow.position == before {
            return Err(Lost::because("a page of the log is empty"));
        }
        if follow.position >= to {
            follow.gap_to = None;
            follow.resubscribes = 0;
        }
        Ok(())
    }

    /// A long gap takes longer than the server waits for a sign of life.
    async fn stay_alive(&mut self) -> Result<(), Lost> {
        if let Link::Up(socket) = &self.link
            && socket.spoke.elapsed() >= SIGN_OF_LIFE_EVERY
        {
            let pong = json!({ "type": "pong", "at": socket.beat });
            self.outbox.push_back(pong);
        }
        self.speak().await
    }
}

/// Why a socket does not work any more, in words for people.
fn broken(error: &Error) -> String {
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Io(_)
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing) => {
            "the server went away".into()
        }
        error => error.to_string(),
    }
}

/// What a close code means: whether to come back, and when at the earliest.
fn closed(frame: Option<&CloseFrame>) -> Result<Lost, Failure> {
    let Some(frame) = frame else { return Ok(Lost::because("the server closed the connection")) };
    let code = u16::from(frame.code);
    let reason: CloseReason = serde_json::from_str(&frame.reason).unwrap_or_default();
    let words = match code {
        4001 => "the server is going down or restarting".to_owned(),
        4008 => "this side reads too slowly".to_owned(),
        4012 => "the server heard nothing from here".to_owned(),
        4013 => "too many requests".to_owned(),
        4104 => "the server has as many connections as it takes".to_owned(),
        4500 => return Err(Failure::NotAllowed("The server does not accept the credential.".into())),
        4501 => return Err(Failure::Server("The server could not read what this rejoin sends: update it.".into())),
        4502 => return Err(Failure::Server("The server speaks another live protocol: update rejoin.".into())),
        4505 => return Err(Failure::NotAllowed("The credential has expired: get a new token.".into())),
        // This client's only socket: it comes back.
        4514 => "another connection took its place".to_owned(),
        code if code >= 4500 => {
            let why = reason.code.as_deref().map(super::escape::line).unwrap_or_default();
            return Err(Failure::Server(format!("The server ended the connection for good ({code} {why}).")));
        }
        code => format!("the server closed the connection ({code})"),
    };
    let least = match code {
        1002 | 1007 | 1009 => backoff::LONGEST,
        _ => Duration::from_millis(reason.retry_ms.unwrap_or(0)).min(10 * backoff::LONGEST),
    };
    Ok(Lost { why: words, at_least: least })
}
