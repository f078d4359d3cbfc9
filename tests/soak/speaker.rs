//! A program elsewhere that says numbered lines for as long as it may. It is cut now and then, goes on behind what was
//! saved, and knows in the end how many lines of each run it was told were kept.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::ledger::{Ledger, Log};
use crate::producer::Producer;
use crate::road::Road;

/// How long it waits before it tries again what failed.
const AGAIN: Duration = Duration::from_millis(50);
/// How long an answer may take that is on its way.
const ANSWER: Duration = Duration::from_secs(20);

/// How it speaks.
#[derive(Clone)]
pub struct Voice {
    /// The task whose runs it feeds.
    pub task: String,
    /// What it waits between two chunks, from nothing to twice this.
    pub pause: Duration,
    /// How many lines a chunk has.
    pub chunk: Range<u64>,
    /// How likely a chunk is a flood, and how many lines that has.
    pub flood: (f64, u64),
    /// How many characters a line has beside its number.
    pub chars: Range<usize>,
    /// How many lines a run has.
    pub run: Range<u64>,
    /// How likely it is cut after a chunk.
    pub cut: f64,
}

/// What it came to.
#[derive(Default)]
pub struct Spoken {
    /// The runs that it brought to their end, with their task and the number of their last line.
    pub ended: BTreeMap<String, (String, u64)>,
    /// Runs that were ended by others, as when their task was deleted.
    pub abandoned: u64,
    /// Lines that it was told are kept.
    pub lines: u64,
    /// How often its request was cut, by itself or others.
    pub cuts: u64,
}

/// How a request ended.
enum Request {
    /// The run is over, with so many lines.
    Ended(u64),
    /// It may go on in another request.
    Cut,
}

/// The program.
pub struct Speaker {
    road: Arc<Road>,
    voice: Voice,
    random: StdRng,
    spoken: Spoken,
}

impl Speaker {
    /// A program that has said nothing yet.
    pub fn new(road: &Arc<Road>, voice: Voice, seed: u64) -> Self {
        Self { road: Arc::clone(road), voice, random: StdRng::seed_from_u64(seed), spoken: Spoken::default() }
    }

    /// Feeds run after run until it is told to be quiet, and brings the last one to its end.
    pub async fn speak(mut self) -> Spoken {
        while !self.road.is_quiet() {
            let key = uuid::Uuid::from_u128(self.random.random()).to_string();
            let Some(run) = self.open(&key).await else { break };
            let lines = self.random.random_range(self.voice.run.clone());
            match self.feed(&run, lines).await {
                Some(last) => drop(self.spoken.ended.insert(run, (self.voice.task.clone(), last))),
                None => self.spoken.abandoned += 1,
            }
        }
        self.spoken
    }

    /// Opens a run; the same key until it is there, so that it is one run however often it is asked for.
    async fn open(&mut self, key: &str) -> Option<String> {
        let path = format!("/tasks/{}/runs", self.voice.task);
        loop {
            let asked = self.road.keyed(reqwest::Method::POST, &path, Some(json!({})), Some(key)).await;
            if let Some((200 | 201, answer)) = asked {
                return Some(answer["run"]["id"].as_str().unwrap().to_owned());
            }
            if self.road.is_quiet() {
                return None;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Feeds a run to its end over as many requests as that takes; gives the number of its last line. None where
    /// somebody else ended it.
    async fn feed(&mut self, run: &str, lines: u64) -> Option<u64> {
        let mut saved = 0;
        loop {
            let Some((status, answer)) = self.road.call(reqwest::Method::GET, &format!("/runs/{run}"), None).await
            else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            if status == 404 {
                return None;
            }
            let last = answer["last_n"].as_u64().unwrap_or_default();
            assert!(last >= saved, "run {run} had {saved} lines and has {last}: {answer}");
            self.spoken.lines += last - saved;
            saved = last;
            if !answer["ended_at"].is_null() {
                // The answer to the line that ended it was cut off, or somebody else was faster.
                return (answer["state"] == "succeeded").then_some(saved);
            }
            match self.request(run, saved, lines).await {
                Request::Ended(last) => {
                    self.spoken.lines += last - saved;
                    return Some(last);
                }
                Request::Cut => self.spoken.cuts += 1,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// One request from the line behind `saved` on.
    async fn request(&mut self, run: &str, saved: u64, lines: u64) -> Request {
        let Some(client) = self.road.client() else { return Request::Cut };
        let Ok(mut producer) = Producer::try_open(&client, run).await else { return Request::Cut };
        let mut n = saved;
        loop {
            let is_last = n >= lines || self.road.is_quiet();
            let text = if is_last {
                json!({ "n": n + 1, "kind": "status", "data": { "state": "succeeded" } }).to_string() + "\n"
            } else {
                self.chunk(&mut n)
            };
            let cut = !is_last && self.random.random_bool(self.voice.cut);
            // In the middle of a line, as cables are pulled.
            let said = if cut { &text.as_bytes()[..self.random.random_range(0..text.len())] } else { text.as_bytes() };
            if !matches!(tokio::time::timeout(ANSWER, producer.try_say(said)).await, Ok(Ok(()))) {
                return Request::Cut;
            }
            if cut {
                return Request::Cut;
            }
            if is_last {
                return match tokio::time::timeout(ANSWER, producer.try_end()).await {
                    Ok(Some((200, answer))) if answer["last_n"] == n + 1 => Request::Ended(n + 1),
                    _ => Request::Cut,
                };
            }
            let pause = self.voice.pause.mul_f64(self.random.random_range(0.0..2.0));
            tokio::select! {
                () = self.road.rest(pause) => {}
                // It says something before the end: that it takes no more.
                _ = producer.stream.readable() => return Request::Cut,
            }
        }
    }

    /// The next lines.
    fn chunk(&mut self, n: &mut u64) -> String {
        let (likely, many) = self.voice.flood;
        let count = if likely > 0.0 && self.random.random_bool(likely) {
            many
        } else {
            self.random.random_range(self.voice.chunk.clone())
        };
        let mut text = String::new();
        for _ in 0..count {
            *n += 1;
            let words = format!("line {n} {}", "“x” ".repeat(self.random.random_range(self.voice.chars.clone()) / 4));
            let line = json!({ "n": *n, "kind": "thought", "data": { "text": words } });
            text.push_str(&line.to_string());
            text.push('\n');
        }
        text
    }
}

/// Every line that was said to be kept is in the log; the last one of a run is its end and has no text. A log that was
/// deleted may not have been read to its end: `may_be_gone` says so of the log of a run, or of its task where nothing of
/// the run was read. Gives how many runs of such logs there were.
pub fn compare(ledger: &Ledger, spoken: &Spoken, may_be_gone: impl Fn(&str, Option<&Log>) -> bool) -> u64 {
    let mut gone = 0;
    for (run, (task, last)) in &spoken.ended {
        let read = ledger.last_line(run);
        let saved = read.as_ref().map_or(0, |(_, line)| *line);
        if saved + 1 == *last {
            continue;
        }
        if may_be_gone(task, read.as_ref().map(|(log, _)| log)) {
            gone += 1;
        } else {
            ledger.wrong(format!("{last} lines of run {run} were said to be kept, {} of them are", saved + 1));
        }
    }
    gone
}
