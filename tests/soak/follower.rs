//! Watchers that keep their place by the rules, over sockets, streams of events and pages, on lines that fail in each
//! of the ways in which lines do. Whatever they get goes to the ledger; whatever breaks a rule does too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::feed_stage::Stream;
use crate::harness::Watcher;
use crate::ledger::{Ledger, Log, digest};
use crate::proxy::{Direction, Link, Mode};
use crate::road::Road;

/// How long nothing may come before it looks whether there is something to do.
const LOOK: Duration = Duration::from_millis(200);
/// How long it waits for a server that is not there.
const AGAIN: Duration = Duration::from_millis(20);
/// How long a handshake or a small write may take.
const WITHIN: Duration = Duration::from_secs(20);
/// A task that is not there is asked for again after so long.
const NOT_THERE: Duration = Duration::from_secs(1);

/// How one watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A socket with all its tasks.
    Socket,
    /// The same, with a line that takes so many bytes in a second.
    Slow(usize),
    /// Server-sent events of one task.
    Stream,
    /// Pages of one task after the other.
    Pages,
}

/// What happens to a line in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Line(Mode),
    /// It stops reading for a while.
    Stall,
    /// It says goodbye.
    Close,
    /// It opens a newer socket beside the one that is there.
    Replace,
    /// It gives a subscription up and asks anew, or asks a second time over the first.
    Resubscribe,
}

/// How one goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Habit {
    /// How it watches.
    pub way: Way,
    /// After so long without a frame it takes the line for dead.
    pub life: Duration,
    /// How long a line is left alone, from nothing to twice this; none is for ever.
    pub peace: Option<Duration>,
}

/// How much of what happened.
pub type Counts = BTreeMap<&'static str, u64>;

/// A frame; members of other frames are left alone.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    sub: Option<u64>,
    outcome: Option<String>,
    #[serde(rename = "gen")]
    generation: Option<String>,
    why: Option<String>,
    from: Option<u64>,
    missed: Option<u64>,
    head: Option<u64>,
    have: Option<u64>,
    seq: Option<u64>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    heads: Option<&'a RawValue>,
    at: Option<String>,
    code: Option<String>,
}

#[derive(Deserialize)]
struct Heads {
    sent: u64,
    head: u64,
}

#[derive(Deserialize)]
struct Number {
    seq: u64,
}

/// A page, or why there is none.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(rename = "gen")]
    generation: Option<String>,
    oldest: Option<u64>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
    next: Option<u64>,
    more: Option<bool>,
}

/// Where a subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Asked,
    Open,
    /// A reset is to come.
    Resetting,
    /// The snapshot is to come.
    Reset,
    /// There is no such task; asked for again at this time.
    NotThere(Instant),
}

/// One task that is followed.
struct Place {
    task: String,
    log: Option<Log>,
    position: u64,
    sub: u64,
    phase: Phase,
    /// The head that `caught_up` waits for.
    due: Option<u64>,
}

/// A watcher.
pub struct Follower {
    name: String,
    way: Way,
    road: Arc<Road>,
    ledger: Arc<Ledger>,
    random: StdRng,
    life: Duration,
    peace: Option<Duration>,
    places: Vec<Place>,
    attempt: u64,
    last_sub: u64,
    /// What a reset jumped over: the log, after, through.
    gaps: Vec<(Log, u64, u64)>,
    counts: Counts,
}

/// How a connection ended.
enum Ended {
    Line,
    Done,
}

impl Follower {
    /// A watcher that has seen nothing yet.
    pub fn new(
        name: String,
        habit: Habit,
        tasks: &[String],
        road: &Arc<Road>,
        ledger: &Arc<Ledger>,
        seed: u64,
    ) -> Self {
        let place = |task: &String| Place {
            task: task.clone(),
            log: None,
            position: 0,
            sub: 0,
            phase: Phase::Asked,
            due: None,
        };
        Self {
            name,
            way: habit.way,
            road: Arc::clone(road),
            ledger: Arc::clone(ledger),
            random: StdRng::seed_from_u64(seed),
            life: habit.life,
            peace: habit.peace,
            places: tasks.iter().map(place).collect(),
            attempt: 0,
            last_sub: 0,
            gaps: Vec::new(),
            counts: Counts::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn wrong(&mut self, words: impl std::fmt::Display) {
        self.ledger.wrong(format!("{} ({:?}): {words}", self.name, self.way));
    }

    fn is_done(&self) -> bool {
        let places = self.places.iter().map(|place| (place.task.as_str(), place.log.as_ref(), place.position));
        self.road.has_all(&self.name, places)
    }

    /// Watches until it has all there is and nothing is added any more; gives what it has met.
    pub async fn follow(mut self) -> Counts {
        loop {
            let ended = match self.way {
                Way::Socket | Way::Slow(_) => self.socket().await,
                Way::Stream => self.stream().await,
                Way::Pages => self.pages().await,
            };
            self.fill_gaps().await;
            match ended {
                Some(Ended::Done) if self.is_done() && self.gaps.is_empty() => return self.counts,
                Some(Ended::Done) => {}
                Some(Ended::Line) => {
                    self.count("connections ended");
                    let away = self.peace.map_or(Duration::ZERO, |_| self.away());
                    self.road.rest(away).await;
                }
                None => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// How long it stays away: mostly short, sometimes long.
    fn away(&mut self) -> Duration {
        if self.road.is_quiet() {
            return Duration::ZERO;
        }
        let long = self.peace.unwrap_or_default().mul_f64(1.25);
        let most = if self.random.random_bool(0.1) { long } else { Duration::from_secs(1).min(long) };
        most.mul_f64(self.random.random_range(0.0..1.0))
    }

    /// How long it does not read.
    fn stall(&mut self) -> Duration {
        self.count("stalls");
        self.peace.unwrap_or_default().mul_f64(self.random.random_range(0.0..1.25))
    }

    /// When the line is to fail.
    fn until_fault(&mut self) -> Option<Instant> {
        if self.road.is_quiet() {
            return None;
        }
        let peace = self.peace?.mul_f64(self.random.random_range(0.0..2.0));
        Some(Instant::now() + peace)
    }

    fn fault(&mut self) -> Fault {
        let directions = [Direction::ToServer, Direction::ToClient, Direction::Both];
        match (self.way, self.random.random_range(0..10)) {
            (Way::Slow(_), 0..5) => Fault::Stall,
            (Way::Slow(_), _) | (_, 6) => Fault::Close,
            (_, 0..2) => Fault::Line(Mode::Fin),
            (_, 2..4) => Fault::Line(Mode::Rst),
            // A stream says nothing to the server: only the other way can be told to be dead.
            (Way::Stream, 4) => Fault::Line(Mode::Blackhole(Direction::ToClient)),
            (_, 4) => Fault::Line(Mode::Blackhole(directions[self.random.random_range(0..3)])),
            (Way::Stream, _) | (_, 5) => Fault::Stall,
            (_, 7) => Fault::Replace,
            _ => Fault::Resubscribe,
        }
    }

    fn next_sub(&mut self) -> u64 {
        self.last_sub += 1;
        self.last_sub
    }

    /// What is asked for a task, under a new number.
    fn subscription(&mut self, index: usize) -> serde_json::Value {
        let sub = self.next_sub();
        let place = &mut self.places[index];
        (place.sub, place.phase, place.due) = (sub, Phase::Asked, None);
        let generation = place.log.as_ref().map(|log| &log.1);
        json!({ "sub": sub, "task": place.task, "gen": generation, "after": place.position })
    }

    /// A socket with all tasks asked for, and a hold of its line.
    async fn open_socket(&mut self) -> Option<(Watcher, Option<Link>)> {
        let (stream, address, token, link) = match self.way {
            Way::Slow(_) => {
                // Directly, and with little kept on the way: what is not read, the server feels.
                let client = self.road.client()?;
                let socket = TcpSocket::new_v4().ok()?;
                socket.set_recv_buffer_size(8 * 1024).ok()?;
                (socket.connect(client.address).await.ok()?, client.address, client.token, None)
            }
            _ => self.road.connect().await?,
        };
        let mut watcher = timeout(WITHIN, Watcher::over(stream, address, Some(&token))).await.ok()?.ok()?;
        self.attempt += 1;
        let subscribe: Vec<_> = (0..self.places.len()).map(|index| self.subscription(index)).collect();
        let hello = json!({ "type": "hello", "protocol": 1, "client": self.name, "attempt": self.attempt, "subscribe": subscribe });
        let said = watcher.socket.send(Message::text(hello.to_string()));
        timeout(WITHIN, said).await.ok()?.ok()?;
        self.count("connections");
        Some((watcher, link))
    }

    /// One socket, until it ends.
    async fn socket(&mut self) -> Option<Ended> {
        let (mut watcher, mut link) = self.open_socket().await?;
        let mut fault_at = self.until_fault();
        let mut faulted = None;
        let (mut heard, mut spoke) = (Instant::now(), Instant::now());
        loop {
            if self.is_done() {
                return Some(Ended::Done);
            }
            if fault_at.is_some_and(|at| at <= Instant::now()) && faulted.is_none() {
                let fault = self.fault();
                match fault {
                    Fault::Line(mode) => {
                        let Some(link) = &link else { continue };
                        link.set(mode);
                        faulted = Some(mode);
                        self.count(named(mode));
                    }
                    Fault::Stall => {
                        tokio::time::sleep(self.stall()).await;
                        heard = Instant::now();
                        fault_at = self.until_fault();
                    }
                    Fault::Close => {
                        self.count("goodbyes");
                        let _ = timeout(WITHIN, watcher.socket.close(None)).await;
                        return Some(Ended::Line);
                    }
                    Fault::Replace => {
                        self.count("newer sockets");
                        let old = watcher;
                        (watcher, link) = self.open_socket().await?;
                        let (road, ledger, name) =
                            (Arc::clone(&self.road), Arc::clone(&self.ledger), self.name.clone());
                        tokio::spawn(async move {
                            if let Some(wrong) = not_replaced(old).await
                                && !road.is_quiet()
                            {
                                ledger.wrong(format!("{name}: {wrong}"));
                            }
                        });
                        heard = Instant::now();
                        fault_at = self.until_fault();
                    }
                    Fault::Resubscribe => {
                        self.count("resubscribes");
                        self.resubscribe(&mut watcher).await?;
                        fault_at = self.until_fault();
                    }
                }
            }
            self.ask_again(&mut watcher).await?;
            if spoke.elapsed() > self.life / 3 && matches!(self.way, Way::Slow(_)) {
                // Its answers to heartbeats come late, because the heartbeats do.
                spoke = Instant::now();
                let pong = json!({ "type": "pong", "at": "2000-01-01T00:00:00.000000Z" });
                timeout(WITHIN, watcher.socket.send(Message::text(pong.to_string()))).await.ok()?.ok()?;
            }
            let message = match timeout(LOOK, watcher.socket.next()).await {
                Ok(message) => message,
                Err(_) if heard.elapsed() > self.life => {
                    self.count("silent for too long");
                    return Some(Ended::Line);
                }
                Err(_) => continue,
            };
            heard = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => {
                    if let Some(pong) = self.heed(&text, faulted.is_some()) {
                        let sent = timeout(WITHIN, watcher.socket.send(Message::text(pong))).await;
                        if !matches!(sent, Ok(Ok(()))) {
                            return Some(Ended::Line);
                        }
                    }
                    if let Way::Slow(rate) = self.way
                        && !self.road.is_quiet()
                    {
                        tokio::time::sleep(Duration::from_secs_f64(text.len() as f64 / rate as f64)).await;
                    }
                }
                Some(Ok(Message::Close(close))) => {
                    self.closed(close.map(|close| u16::from(close.code)));
                    return Some(Ended::Line);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Some(Ended::Line),
            }
        }
    }

    fn closed(&mut self, code: Option<u16>) {
        match code {
            Some(4008) => self.count("closed: too slow"),
            Some(4012) => self.count("closed: no life"),
            Some(4001) => self.count("closed: draining"),
            other => self.wrong(format!("closed with {other:?}")),
        }
    }

    /// Asks anew where the task was not there.
    async fn ask_again(&mut self, watcher: &mut Watcher) -> Option<()> {
        for index in 0..self.places.len() {
            if let Phase::NotThere(again) = self.places[index].phase
                && again <= Instant::now()
            {
                self.ask(watcher, index).await?;
            }
        }
        Some(())
    }

    async fn ask(&mut self, watcher: &mut Watcher, index: usize) -> Option<()> {
        let mut frame = self.subscription(index);
        frame["type"] = "subscribe".into();
        timeout(WITHIN, watcher.socket.send(Message::text(frame.to_string()))).await.ok()?.ok()
    }

    async fn resubscribe(&mut self, watcher: &mut Watcher) -> Option<()> {
        let index = self.random.random_range(0..self.places.len());
        if self.random.random_bool(0.5) {
            let frame = json!({ "type": "unsubscribe", "sub": self.places[index].sub });
            timeout(WITHIN, watcher.socket.send(Message::text(frame.to_string()))).await.ok()?.ok()?;
        }
        self.ask(watcher, index).await
    }

    /// Takes a frame of a socket; gives the answer to a heartbeat.
    fn heed(&mut self, text: &str, faulted: bool) -> Option<String> {
        let frame: Frame<'_> = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(error) => {
                self.wrong(format!("a frame that cannot be read ({error}): {:.200}", text));
                return None;
            }
        };
        match &*frame.kind {
            "heartbeat" => {
                self.heed_heartbeat(&frame);
                self.count("heartbeats");
                return Some(json!({ "type": "pong", "at": frame.at }).to_string());
            }
            "welcome" | "notice" => return None,
            "error" if !faulted => self.wrong(format!("an error: {text}")),
            _ => {}
        }
        let sub = frame.sub;
        // Of a sub that was given up.
        let index = self.places.iter().position(|place| Some(place.sub) == sub)?;
        if matches!(self.places[index].phase, Phase::NotThere(_)) {
            self.wrong(format!("something comes for a task that is not there: {text:.200}"));
        }
        self.heed_of(index, &frame, text);
        None
    }

    /// What is told of each sub is where it stands. A stream has one, and it has no number.
    fn heed_heartbeat(&mut self, frame: &Frame<'_>) {
        let heads = frame.heads.map_or("{}", RawValue::get);
        let told: BTreeMap<u64, Heads> = match (self.way, heads) {
            (_, "{}") => BTreeMap::new(),
            (Way::Stream, heads) => BTreeMap::from([(self.places[0].sub, serde_json::from_str(heads).unwrap())]),
            (_, heads) => serde_json::from_str(heads).unwrap(),
        };
        let mut wrong = Vec::new();
        for place in &self.places {
            match (place.phase, told.get(&place.sub)) {
                (Phase::Open, Some(told)) if told.sent != place.position || told.head < told.sent => {
                    let (task, at, Heads { sent, head }) = (&place.task, place.position, told);
                    wrong.push(format!("{task} stands at {at} and is told {sent} of {head}"));
                }
                (Phase::Open, None) => wrong.push(format!("{} is not in the heads", place.task)),
                (Phase::Reset | Phase::Resetting, Some(_)) => {
                    wrong.push(format!("{} is in the heads between reset and snapshot", place.task));
                }
                _ => {}
            }
        }
        wrong.into_iter().for_each(|words| self.wrong(words));
    }

    /// Takes a frame of one subscription, whatever brought it.
    fn heed_of(&mut self, index: usize, frame: &Frame<'_>, text: &str) {
        let place = &mut self.places[index];
        match (&*frame.kind, place.phase) {
            // A second one says that the log was replaced, or that the task was deleted.
            ("subscribed", Phase::Asked | Phase::Open | Phase::Reset | Phase::Resetting) => {
                let again = place.phase != Phase::Asked;
                match frame.outcome.as_deref() {
                    Some("not_found") => {
                        (place.phase, place.due) = (Phase::NotThere(Instant::now() + NOT_THERE), None);
                        self.count("not found");
                    }
                    Some("resumed") if !again => self.resumed(index, frame, text),
                    Some("reset") => {
                        (place.phase, place.due) = (Phase::Resetting, None);
                        self.count("resets at a subscribe");
                    }
                    _ => self.wrong(format!("not an outcome here: {text:.300}")),
                }
            }
            ("reset", Phase::Resetting | Phase::Open) => {
                if frame.have != Some(place.position) {
                    let words = format!("it stands at {} and is reset from another: {text:.300}", place.position);
                    self.wrong(words);
                }
                let place = &mut self.places[index];
                (place.phase, place.due) = (Phase::Reset, None);
                let why = match frame.why.as_deref() {
                    Some("too_far") => "reset: too_far",
                    Some("from_start") => "reset: from_start",
                    Some("retention") => "reset: retention",
                    Some("generation") => "reset: generation",
                    other => {
                        self.wrong(format!("reset because of {other:?}"));
                        "reset: other"
                    }
                };
                self.count(why);
            }
            ("snapshot", Phase::Reset) => {
                let (Some(generation), Some(seq), Some(head)) = (&frame.generation, frame.seq, frame.head) else {
                    return self.wrong(format!("a snapshot without its members: {text:.300}"));
                };
                let log = (place.task.clone(), generation.clone());
                let same = place.log.as_ref() == Some(&log);
                if same && seq < place.position {
                    let words = format!("a snapshot at {seq} behind {}", place.position);
                    return self.wrong(words);
                }
                let after = if same { place.position } else { 0 };
                (place.log, place.position) = (Some(log.clone()), seq);
                (place.phase, place.due) = (Phase::Open, Some(head));
                self.gaps.push((log, after, seq));
            }
            ("event" | "events", Phase::Open) => {
                let Some(log) = place.log.clone() else { return };
                for event in frame.items.iter().flatten().chain(&frame.event) {
                    self.take(index, &log, event.get());
                }
            }
            ("caught_up", Phase::Open) => {
                let (position, due) = (place.position, place.due.take());
                if frame.seq != Some(position) || due.is_none_or(|due| position < due) {
                    self.wrong(format!("it stands at {position} of {due:?} and is told: {text}"));
                }
            }
            ("error", _) => self.wrong(format!("an error: {text}")),
            (_, phase) => self.wrong(format!("this does not come when {phase:?}: {text:.300}")),
        }
    }

    fn resumed(&mut self, index: usize, frame: &Frame<'_>, text: &str) {
        let place = &mut self.places[index];
        let (Some(generation), Some(from), Some(head), Some(missed)) =
            (&frame.generation, frame.from, frame.head, frame.missed)
        else {
            return self.wrong(format!("an outcome without its members: {text:.300}"));
        };
        let fits = missed == (head + 1).saturating_sub(from)
            && (place.position == 0
                || (from == place.position + 1 && place.log.as_ref().is_some_and(|log| log.1 == *generation)));
        let words = format!("it stands at {} of {:?} and is told: {text:.300}", place.position, place.log);
        place.log = Some((place.task.clone(), generation.clone()));
        place.position = from - 1;
        (place.phase, place.due) = (Phase::Open, Some(head));
        self.count("resumes");
        *self.counts.entry("missed and sent").or_default() += missed;
        if !fits {
            self.wrong(words);
        }
    }

    /// Takes an event.
    fn take(&mut self, index: usize, log: &Log, event: &str) {
        let Ok(Number { seq }) = serde_json::from_str(event) else {
            return self.wrong(format!("an event without a number: {event:.200}"));
        };
        let position = self.places[index].position;
        self.places[index].position = seq;
        self.count("events");
        if seq <= position {
            self.count("doubled");
            self.wrong(format!("doubled: {seq} of {log:?} comes behind {position}"));
        } else if seq != position + 1 {
            *self.counts.entry("lost").or_default() += seq - position - 1;
            self.wrong(format!("lost: {seq} of {log:?} comes behind {position}"));
        }
        self.ledger.seen(log, seq, digest(event), &self.name);
    }

    /// One stream of events, until it ends.
    async fn stream(&mut self) -> Option<Ended> {
        let (socket, address, token, link) = self.road.connect().await?;
        let token = format!("Bearer {token}");
        let place = &mut self.places[0];
        (place.phase, place.due) = (Phase::Asked, None);
        let task = place.task.clone();
        let mut headers = vec![("Authorization", token.as_str())];
        let id = place.log.as_ref().map(|log| format!("{}.{}", log.1, place.position));
        if let Some(id) = &id {
            headers.push(("Last-Event-ID", id));
        }
        let opened = timeout(WITHIN, Stream::over(socket, address, "GET", &task, "?after=0", &headers)).await;
        let mut stream = opened.ok()??;
        if stream.status == 404 {
            self.count("not found");
            tokio::time::sleep(NOT_THERE).await;
            return None;
        }
        // It goes down.
        if stream.status == 503 {
            return None;
        }
        if stream.status != 200 {
            self.wrong(format!("answered with {}", stream.status));
            return None;
        }
        self.count("connections");
        let fault_at = self.until_fault();
        let mut faulted = false;
        let mut heard = Instant::now();
        loop {
            if self.is_done() {
                return Some(Ended::Done);
            }
            if fault_at.is_some_and(|at| at <= Instant::now()) && !faulted {
                faulted = true;
                match self.fault() {
                    Fault::Line(mode) => {
                        link.as_ref()?.set(mode);
                        self.count(named(mode));
                    }
                    Fault::Stall => {
                        tokio::time::sleep(self.stall()).await;
                        heard = Instant::now();
                    }
                    _ => {
                        self.count("goodbyes");
                        return Some(Ended::Line);
                    }
                }
            }
            let said = match timeout(LOOK, stream.next()).await {
                Ok(Some(said)) => said,
                Ok(None) => return Some(Ended::Line),
                Err(_) if heard.elapsed() > self.life => {
                    self.count("silent for too long");
                    return Some(Ended::Line);
                }
                Err(_) => continue,
            };
            heard = Instant::now();
            let frame: Frame<'_> = match serde_json::from_str(&said.data) {
                Ok(frame) => frame,
                Err(error) => {
                    self.wrong(format!("an event that cannot be read ({error}): {said:.300?}"));
                    return Some(Ended::Line);
                }
            };
            match said.name.as_str() {
                "heartbeat" => {
                    self.heed_heartbeat(&frame);
                    self.count("heartbeats");
                }
                "notice" => {}
                "close" => {
                    match frame.code.as_deref() {
                        Some("too_slow") => self.count("closed: too slow"),
                        Some("draining") => self.count("closed: draining"),
                        other => self.wrong(format!("closed with {other:?}")),
                    }
                    return Some(Ended::Line);
                }
                _ => {
                    self.heed_of(0, &frame, &said.data);
                    let place = &self.places[0];
                    if let Phase::NotThere(_) = place.phase {
                        return Some(Ended::Line);
                    }
                    let id = place.log.as_ref().map(|log| format!("{}.{}", log.1, place.position));
                    if matches!(said.name.as_str(), "event" | "events" | "snapshot") && said.id != id {
                        self.wrong(format!("stands at {id:?} and is told {:?}", said.id));
                    }
                }
            }
        }
    }

    /// Pages of all tasks as long as there is more, then a rest.
    async fn pages(&mut self) -> Option<Ended> {
        for index in 0..self.places.len() {
            while self.next_page(index).await? {}
        }
        if self.is_done() {
            return Some(Ended::Done);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.road.rest(Duration::from_secs_f64(self.random.random_range(0.0..1.0))).await;
        Some(Ended::Done)
    }

    /// Whether there is more.
    async fn next_page(&mut self, index: usize) -> Option<bool> {
        let place = &self.places[index];
        let (task, position, log) = (place.task.clone(), place.position, place.log.clone());
        let limit = self.random.random_range(1..500);
        let generation = log.as_ref().map(|log| format!("&gen={}", log.1)).unwrap_or_default();
        let path = format!("/tasks/{task}/events?after={position}&limit={limit}{generation}");
        let (status, text) = self.road.text(&path).await?;
        let page: Page<'_> = serde_json::from_str(&text).ok()?;
        match (status, page) {
            (
                200,
                Page { generation: Some(generation), items: Some(items), next: Some(next), more: Some(more), .. },
            ) => {
                self.count("pages");
                let log = (task, generation);
                // The first page of a log that has lost its beginning begins later.
                if self.places[index].position == 0
                    && let Some(Number { seq }) = items.first().and_then(|event| serde_json::from_str(event.get()).ok())
                {
                    self.places[index].position = seq - 1;
                }
                for event in items {
                    self.take(index, &log, event.get());
                }
                if next < self.places[index].position {
                    self.wrong(format!("stands at {} and is told to go on at {next}", self.places[index].position));
                }
                self.places[index].position = next;
                self.places[index].log = Some(log);
                Some(more)
            }
            (409 | 410, Page { generation: Some(generation), oldest: Some(oldest), .. }) => {
                let other = log.as_ref().is_some_and(|log| log.1 != generation);
                let fits = match status {
                    409 => other || log.is_none(),
                    _ => !other && oldest > position + 1,
                };
                if !fits {
                    self.wrong(format!("stands at {position} of {log:?} and is answered with {status}: {text:.300}"));
                }
                self.count(if other { "pages of another log" } else { "pages that were gone" });
                if !other {
                    *self.counts.entry("told to be gone").or_default() += oldest - position - 1;
                }
                self.places[index].position = oldest - 1;
                self.places[index].log = Some((task, generation));
                Some(true)
            }
            (404, _) => {
                self.count("not found");
                tokio::time::sleep(NOT_THERE).await;
                Some(false)
            }
            // It goes down.
            (503, _) => None,
            (status, _) => {
                self.wrong(format!("{path} is answered with {status}: {text:.300}"));
                Some(false)
            }
        }
    }

    /// Pages what a reset jumped over, as far as it is still there.
    async fn fill_gaps(&mut self) {
        while let Some((log, mut after, through)) = self.gaps.pop() {
            while after < through {
                let path = format!("/tasks/{}/events?gen={}&after={after}&limit=500", log.0, log.1);
                let Some((status, text)) = self.road.text(&path).await else {
                    self.gaps.push((log, after, through));
                    return tokio::time::sleep(AGAIN).await;
                };
                let Ok(page) = serde_json::from_str::<Page<'_>>(&text) else {
                    self.wrong(format!("a page that cannot be read: {text:.300}"));
                    break;
                };
                match (status, page.items, page.oldest) {
                    // From its beginning every log may be read, also the one that took the place of this.
                    (200, ..) if page.generation.as_ref().is_some_and(|generation| *generation != log.1) => break,
                    (200, Some(items), _) => {
                        self.count("pages of gaps");
                        if items.is_empty() {
                            self.wrong(format!("an empty page at {after} of {log:?}, wanted through {through}"));
                            break;
                        }
                        for event in items {
                            let seq = serde_json::from_str::<Number>(event.get()).map_or(0, |number| number.seq);
                            if seq > through {
                                after = through;
                                break;
                            }
                            if seq != after + 1 && after > 0 {
                                self.wrong(format!("a page has {seq} behind {after} of {log:?}"));
                            }
                            after = seq;
                            self.count("events of gaps");
                            self.ledger.seen(&log, seq, digest(event.get()), &self.name);
                        }
                    }
                    (410, _, Some(oldest)) => {
                        *self.counts.entry("told to be gone").or_default() += oldest.min(through + 1) - after - 1;
                        after = oldest - 1;
                    }
                    // The log is no more, or another one.
                    (404 | 409, ..) => break,
                    _ => {
                        self.wrong(format!("{path} is answered with {status}: {text:.300}"));
                        break;
                    }
                }
            }
        }
    }
}

fn named(mode: Mode) -> &'static str {
    match mode {
        Mode::Fin => "cuts by FIN",
        Mode::Rst => "cuts by RST",
        Mode::Blackhole(_) => "lines dead without a word",
        Mode::Forward => "nothing",
    }
}

/// Reads an older socket to its end; what is wrong with that, if something is.
async fn not_replaced(mut old: Watcher) -> Option<String> {
    loop {
        match timeout(WITHIN, old.socket.next()).await {
            Ok(Some(Ok(Message::Close(close)))) => {
                let code = close.map(|close| u16::from(close.code));
                // Where two reasons come together either may be told.
                let fits = matches!(code, Some(4514 | 4008 | 4012));
                return (!fits).then(|| format!("an older socket is closed with {code:?}"));
            }
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(_)) | None) => return None,
            Err(_) => return Some("an older socket is still open".to_owned()),
        }
    }
}
