//! A client of its own, on its own thread and over real sockets, that writes down every frame it gets and comes
//! back by its cursor whenever it is cut off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Watcher, hash};

/// How long it waits for a frame before it looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Frame<'a> {
    r#type: String,
    sub: Option<u64>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
    outcome: Option<String>,
    #[serde(rename = "gen")]
    generation: Option<String>,
    code: Option<String>,
    over: Option<bool>,
}

#[derive(Deserialize)]
struct Number {
    seq: u64,
}

/// What the recorder has seen.
#[derive(Default)]
pub struct Seen {
    /// The events of each task, in the order in which they came: number and SHA-256 of the text.
    pub events: BTreeMap<String, Vec<(u64, String)>>,
    /// Every `subscribed` but the first of each task: its outcome and gen.
    pub resumed: Vec<(String, String)>,
    /// The gen of each task when it was first heard of.
    pub generations: BTreeMap<String, String>,
    /// The notices: code, and whether it is over.
    pub notices: Vec<(String, bool)>,
    /// What must not happen, in words.
    pub wrong: Vec<String>,
    /// When the last event came.
    pub last: Option<Instant>,
}

/// The recorder.
pub struct Recorder {
    tasks: Vec<String>,
    seen: Arc<Mutex<Seen>>,
    address: Arc<Mutex<Option<(SocketAddr, String)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Recorder {
    /// Follows these tasks from their first event, once it is told where.
    pub fn start(tasks: &[&str]) -> Self {
        let tasks: Vec<String> = tasks.iter().map(|task| (*task).to_owned()).collect();
        let (seen, address, stop) = (Arc::default(), Arc::default(), Arc::default());
        let follower = Follower {
            tasks: tasks.clone(),
            seen: Arc::clone(&seen),
            address: Arc::clone(&address),
            stop: Arc::clone(&stop),
            client: uuid::Uuid::new_v4().to_string(),
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(follower.follow());
        });
        Self { tasks, seen, address, stop, thread: Some(thread) }
    }

    /// Where the server is now.
    pub fn point_at(&self, address: SocketAddr, token: &str) {
        *self.address.lock().unwrap() = Some((address, token.to_owned()));
    }

    /// How long ago the last event came; `None` before the first.
    pub fn quiet_for(&self) -> Option<Duration> {
        self.seen.lock().unwrap().last.map(|last| last.elapsed())
    }

    /// Looks at what was seen so far.
    pub fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    /// Waits until it has seen every event up to these numbers.
    pub async fn reaches(&self, heads: &[(&str, u64)]) {
        let deadline = Instant::now() + crate::harness::PATIENCE;
        for (task, head) in heads {
            while self.position(task) < *head {
                assert!(
                    Instant::now() < deadline,
                    "the recorder stands at {} of {head} of {task}",
                    self.position(task)
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    fn position(&self, task: &str) -> u64 {
        self.look(|seen| seen.events.get(task).and_then(|events| events.last()).map_or(0, |(seq, _)| *seq))
    }

    /// Ends it; gives what it has seen.
    pub fn end(mut self) -> Seen {
        self.join();
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        assert_eq!(seen.wrong, Vec::<String>::new());
        assert_eq!(seen.generations.len(), self.tasks.len());
        seen
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Follower {
    tasks: Vec<String>,
    seen: Arc<Mutex<Seen>>,
    address: Arc<Mutex<Option<(SocketAddr, String)>>>,
    stop: Arc<AtomicBool>,
    client: String,
}

impl Follower {
    async fn follow(self) {
        let mut attempt = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let there = self.address.lock().unwrap().clone();
            let Some((address, token)) = there else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let Ok(stream) = TcpStream::connect(address).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            if let Ok(watcher) = Watcher::over(stream, address, Some(&token)).await {
                attempt += 1;
                let _ = self.record(watcher, attempt).await;
            }
        }
    }

    /// One connection, until it ends.
    async fn record(&self, mut watcher: Watcher, attempt: u64) -> Option<()> {
        let subscribe: Vec<_> =
            self.tasks.iter().enumerate().map(|(index, task)| self.subscribe(index, task)).collect();
        let hello = json!({ "type": "hello", "protocol": 1, "client": self.client, "attempt": attempt, "subscribe": subscribe });
        watcher.socket.send(Message::text(hello.to_string())).await.ok()?;
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            let Ok(message) = tokio::time::timeout(LOOK, watcher.socket.next()).await else { continue };
            match message?.ok()? {
                Message::Text(text) => self.note(text.as_str()),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    fn subscribe(&self, index: usize, task: &str) -> serde_json::Value {
        let seen = self.seen.lock().unwrap();
        let after = seen.events.get(task).and_then(|events| events.last()).map_or(0, |(seq, _)| *seq);
        json!({ "sub": index + 1, "task": task, "gen": seen.generations.get(task), "after": after })
    }

    fn note(&self, text: &str) {
        let frame: Frame<'_> = serde_json::from_str(text).unwrap();
        if frame.r#type == "notice" {
            let notice = (frame.code.unwrap_or_default(), frame.over.unwrap_or_default());
            self.seen.lock().unwrap().notices.push(notice);
            return;
        }
        let Some(task) = frame.sub.and_then(|sub| self.tasks.get(sub as usize - 1)) else { return };
        let mut seen = self.seen.lock().unwrap();
        match frame.r#type.as_str() {
            "subscribed" => {
                let (outcome, generation) = (frame.outcome.unwrap(), frame.generation.unwrap_or_default());
                if outcome != "resumed" {
                    seen.wrong.push(format!("{task} was subscribed with {outcome}: {text}"));
                }
                match seen.generations.get(task) {
                    None => drop(seen.generations.insert(task.clone(), generation)),
                    Some(first) if *first != generation => {
                        let words = format!("{task} came back with another gen: {text}");
                        seen.wrong.push(words);
                    }
                    Some(_) => seen.resumed.push((outcome, generation)),
                }
            }
            "event" | "events" => {
                for event in frame.items.unwrap_or_default().into_iter().chain(frame.event) {
                    let Number { seq } = serde_json::from_str(event.get()).unwrap();
                    let events = seen.events.entry(task.clone()).or_default();
                    let before = events.last().map_or(0, |(seq, _)| *seq);
                    events.push((seq, hash(event.get())));
                    if seq != before + 1 {
                        seen.wrong.push(format!("{task}: {seq} came after {before}"));
                    }
                    seen.last = Some(Instant::now());
                }
            }
            "caught_up" | "heartbeat" => {}
            other => seen.wrong.push(format!("{task}: {other} was not expected: {text}")),
        }
    }
}
