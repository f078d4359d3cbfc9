//! Lines that die without a word, in one direction or both, with the times that ship: both sides notice within the
//! 35 s and the minute that are promised, and what was missed is there right after the client is back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rejoin::cli::live::{Live, Step};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::feed_stage::Stream;
use crate::harness::raw_events;
use crate::harness::{Home, PATIENCE, Watcher};
use crate::ledger::digest;
use crate::part::{Part, play};
use crate::proxy::{Direction, Link, Mode};
use crate::road::Road;
use crate::speaker::{Speaker, Voice};
use crate::stage::{ELSEWHERE, Stage};
use crate::viewer::Dialer;

/// How many lines of each kind there are: sockets, command lines, streams.
const LINES: [u64; 3] = [30, 12, 9];
/// A task in which something is said all the time, and one that is silent most of the time.
const TASKS: [&str; 2] = ["talk", "silence"];
/// Beyond what is promised, for a machine that does other things as well.
const SLACK: Duration = Duration::from_secs(3);
/// How soon what was missed is there once the line is up again.
const BACK: Duration = Duration::from_secs(5);

/// The times that hold.
#[derive(Clone, Copy)]
struct Times {
    /// Silent for so long: dead.
    life: Duration,
    /// From the moment the line dies, both sides know of it by then.
    minute: Duration,
    /// A line dies at some moment of this long.
    moment: Duration,
}

/// What ships, and what the command line's client has built in.
const SHIPPED: Times =
    Times { life: Duration::from_secs(35), minute: Duration::from_secs(60), moment: Duration::from_secs(25) };

/// Who watches over a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Socket,
    CommandLine,
    Stream,
}

/// How one loss was noticed.
struct Loss {
    kind: Kind,
    direction: Direction,
    /// From the end of the line until each side let go.
    client: Duration,
    server: Duration,
    /// From the last byte of the client that reached the server, or of the server that reached the client, until the
    /// one to which the line was dead let go.
    silence: Duration,
    /// From the moment the client was connected again until it had all it had missed, and how much that was.
    back: Duration,
    missed: u64,
}

/// What the lines share.
#[derive(Clone)]
struct Field {
    road: Arc<Road>,
    times: Times,
    /// No new loss is begun from here on.
    until: Instant,
    losses: Arc<Mutex<Vec<Loss>>>,
}

/// A line, and what came over it.
struct Line {
    field: Field,
    kind: Kind,
    task: &'static str,
    random: StdRng,
    name: String,
    generation: Option<String>,
    position: u64,
    /// All events: number and digest.
    has: Vec<(u64, u64)>,
}

impl Line {
    fn take(&mut self, text: &str) {
        for (seq, event) in raw_events(text) {
            self.event(seq, &event);
        }
    }

    fn event(&mut self, seq: u64, event: &str) {
        assert_eq!(seq, self.position + 1, "{}: lost or doubled", self.name);
        self.position = seq;
        self.has.push((seq, digest(event)));
    }

    fn direction(&mut self, of: &[Direction]) -> Direction {
        of[self.random.random_range(0..of.len())]
    }

    /// When the line is to die.
    fn moment(&mut self) -> Instant {
        Instant::now() + self.field.times.moment.mul_f64(self.random.random_range(0.0..1.0))
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.field.until
    }

    /// Waits until the server has let go of a line; gives when.
    async fn server_left(&self, link: &Link, dead: Instant) -> Instant {
        loop {
            if let Some(left) = link.server_left() {
                return left;
            }
            let long = self.field.times.minute + SLACK;
            assert!(dead.elapsed() < long, "{}: after {long:?} the server still holds a dead line", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks and keeps a loss.
    fn lost(&self, loss: Loss) {
        let Times { life, minute, .. } = self.field.times;
        let Loss { direction, client, server, silence, back, missed, .. } = loss;
        let told = format!("{} ({direction:?}): the client after {client:?}, the server after {server:?}", self.name);
        assert!(client < minute && server < minute, "{told}: not within {minute:?}");
        // Who hears nothing lets go after a life, and not before.
        assert!(silence < life + SLACK, "{told}: {silence:?} of silence");
        assert!(silence + Duration::from_millis(100) > life, "{told}: {silence:?} of silence only");
        assert!(back < BACK, "{told}: {missed} missed events took {back:?}");
        self.field.losses.lock().unwrap().push(loss);
    }

    /// A page's socket: it lets go of what is silent for a life, and comes back at once.
    async fn sockets(mut self) -> Self {
        let mut last: Option<(Direction, Instant, Instant, Instant, Duration)> = None;
        for attempt in 1.. {
            let (stream, address, token, link) = self.field.road.connect().await.unwrap();
            let link = link.unwrap();
            let mut watcher = Watcher::over(stream, address, Some(&token)).await.unwrap();
            let subscribe = json!([{ "sub": 1, "task": self.task, "gen": self.generation, "after": self.position }]);
            watcher.hello(&self.name, attempt, subscribe).await;
            let connected = Instant::now();
            let begin = self.position;
            self.caught_up(&mut watcher).await;
            if let Some((direction, dead, client, server, silence)) = last.take() {
                let (client, server) = (client - dead, server - dead);
                let (back, missed) = (connected.elapsed(), self.position - begin);
                self.lost(Loss { kind: Kind::Socket, direction, client, server, silence, back, missed });
            }
            if !self.goes_on() {
                self.rest(&mut watcher).await;
                break;
            }
            let direction = self.direction(&[Direction::ToServer, Direction::ToClient, Direction::Both]);
            let at = self.moment();
            let (dead, client) = self.until_lost(&mut watcher, &link, direction, at).await;
            drop(watcher);
            let server = self.server_left(&link, dead).await;
            let silence = match direction {
                Direction::ToServer | Direction::Both => server - link.server_heard().unwrap(),
                Direction::ToClient => client - link.client_heard().unwrap(),
            };
            last = Some((direction, dead, client, server, silence));
        }
        self
    }

    /// Reads until all that was missed is there.
    async fn caught_up(&mut self, watcher: &mut Watcher) {
        loop {
            let message = timeout(PATIENCE, watcher.socket.next()).await.expect("nothing came").unwrap().unwrap();
            let Message::Text(text) = message else { panic!("{message:?}") };
            let frame: Value = serde_json::from_str(&text).unwrap();
            match frame["type"].as_str().unwrap() {
                "subscribed" => {
                    assert_eq!(frame["outcome"], "resumed", "{frame}");
                    self.generation = frame["gen"].as_str().map(str::to_owned);
                }
                "event" | "events" => self.take(&text),
                "caught_up" => return,
                _ => {}
            }
        }
    }

    /// Reads, lets the line die at the moment, and reads on until the client knows; gives both times.
    async fn until_lost(
        &mut self,
        watcher: &mut Watcher,
        link: &Link,
        direction: Direction,
        at: Instant,
    ) -> (Instant, Instant) {
        let mut heard = Instant::now();
        let mut dead: Option<Instant> = None;
        loop {
            let next = if dead.is_none() { at } else { heard + self.field.times.life };
            let message = match tokio::time::timeout_at(next, watcher.socket.next()).await {
                Ok(message) => message,
                Err(_) => match dead {
                    Some(dead) => return (dead, Instant::now()),
                    None => {
                        link.set(Mode::Blackhole(direction));
                        dead = Some(Instant::now());
                        continue;
                    }
                },
            };
            heard = Instant::now();
            match message {
                // Into a dead line: the write of an answer succeeds all the same.
                Some(Ok(Message::Text(text))) => self.heed(watcher, &text).await,
                Some(Ok(Message::Close(close))) => {
                    let code = close.map(|close| u16::from(close.code));
                    assert_eq!((direction, code), (Direction::ToServer, Some(4012)), "{}", self.name);
                    return (dead.expect("it was closed before its line died"), Instant::now());
                }
                other => panic!("{}: {other:?}", self.name),
            }
        }
    }

    /// Stays to the end.
    async fn rest(&mut self, watcher: &mut Watcher) {
        while !self.has_all() {
            let Ok(message) = timeout(Duration::from_millis(100), watcher.socket.next()).await else { continue };
            let Some(Ok(Message::Text(text))) = message else { panic!("{}: {message:?}", self.name) };
            self.heed(watcher, &text).await;
        }
    }

    /// Takes events, and answers heartbeats.
    async fn heed(&mut self, watcher: &mut Watcher, text: &str) {
        let frame: Value = serde_json::from_str(text).unwrap();
        match frame["type"].as_str().unwrap() {
            "event" | "events" => self.take(text),
            "heartbeat" => {
                let pong = json!({ "type": "pong", "at": frame["at"] }).to_string();
                watcher.socket.send(Message::text(pong)).await.unwrap();
            }
            other => panic!("{}: {other} does not come on a line that is idle: {text}", self.name),
        }
    }

    fn has_all(&self) -> bool {
        let log = self.generation.clone().map(|generation| (self.task.to_owned(), generation));
        self.field.road.has_all(&self.name, [(self.task, log.as_ref(), self.position)])
    }

    /// The client of the command line, which knows by itself and comes back by itself.
    async fn command_lines(mut self) -> Self {
        let link = Arc::new(Mutex::new(None));
        let dialer = Dialer { road: Arc::clone(&self.field.road), link: Arc::clone(&link) };
        let seed = self.random.random();
        let mut random = StdRng::seed_from_u64(seed);
        let mut live = Live::new(dialer, move || random.random_range(0.0..1.0));
        assert!(live.follow(self.task, None, 0));
        let generation = self.field.road.call(reqwest::Method::GET, &format!("/tasks/{}", self.task), None).await;
        self.generation = generation.unwrap().1["gen"].as_str().map(str::to_owned);
        self.until_caught_up(&mut live).await;
        loop {
            if !self.goes_on() {
                while !self.has_all() {
                    if let Ok(step) = timeout(Duration::from_millis(100), live.next()).await {
                        self.step(&step.unwrap());
                    }
                }
                live.close().await;
                return self;
            }
            // Its own life is built in: what ships can be tried, and in the gate only what the server notices.
            let of: &[Direction] = if self.field.times.life == SHIPPED.life {
                &[Direction::ToServer, Direction::ToClient, Direction::Both]
            } else {
                &[Direction::ToServer]
            };
            let direction = self.direction(of);
            let at = self.moment();
            while let Ok(step) = tokio::time::timeout_at(at, live.next()).await {
                self.step(&step.unwrap());
            }
            let link = link.lock().unwrap().clone().unwrap();
            link.set(Mode::Blackhole(direction));
            let dead = Instant::now();
            let client = loop {
                let step = timeout(self.field.times.minute, live.next()).await;
                let step = step.unwrap_or_else(|_| panic!("{} never noticed", self.name)).unwrap();
                if let Step::Reconnecting { .. } = step {
                    break Instant::now();
                }
                self.step(&step);
            };
            // The waits before it tries again are its own; what is timed is from the connection on.
            let begin = self.position;
            let connected = loop {
                match live.next().await.unwrap() {
                    Step::Connected { again: true } => break Instant::now(),
                    step => self.step(&step),
                }
            };
            self.until_caught_up(&mut live).await;
            let (back, missed) = (connected.elapsed(), self.position - begin);
            // The new line is not left alone while the end of the old one is waited for.
            while link.server_left().is_none() {
                if let Ok(step) = timeout(Duration::from_millis(100), live.next()).await {
                    self.step(&step.unwrap());
                }
                assert!(
                    dead.elapsed() < self.field.times.minute + SLACK,
                    "{}: the server holds a dead line",
                    self.name
                );
            }
            let server = link.server_left().unwrap();
            let silence = match direction {
                Direction::ToServer | Direction::Both => server - link.server_heard().unwrap(),
                Direction::ToClient => client - link.client_heard().unwrap(),
            };
            let (client, server) = (client - dead, server - dead);
            self.lost(Loss { kind: Kind::CommandLine, direction, client, server, silence, back, missed });
        }
    }

    async fn until_caught_up<T: rejoin::cli::live::Transport>(&mut self, live: &mut Live<T>) {
        loop {
            let step = timeout(PATIENCE, live.next()).await.expect("nothing came").unwrap();
            if let Step::CaughtUp { .. } = step {
                return;
            }
            self.step(&step);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Event { event, .. } => self.event(event.seq, event.raw.get()),
            Step::Connected { .. } | Step::CaughtUp { .. } => {}
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// A stream of events, which lets go of what is silent for a life. The server hears nothing of its client but the
    /// end, so only the way to the client can be told to be dead.
    async fn streams(mut self) -> Self {
        let mut last: Option<(Instant, Instant, Instant, Duration)> = None;
        loop {
            let (socket, address, token, link) = self.field.road.connect().await.unwrap();
            let link = link.unwrap();
            let token = format!("Bearer {token}");
            let id = self.generation.as_ref().map(|generation| format!("{generation}.{}", self.position));
            let mut headers = vec![("Authorization", token.as_str())];
            headers.extend(id.as_deref().map(|id| ("Last-Event-ID", id)));
            let mut stream =
                Stream::over(socket, address, "GET", self.task, "?after=0", &headers).await.expect("an answer");
            stream.patience = self.field.times.minute;
            assert_eq!(stream.status, 200);
            let connected = Instant::now();
            let begin = self.position;
            loop {
                let said = stream.next().await.expect("the stream ended");
                match said.name.as_str() {
                    "subscribed" => {
                        let frame = said.frame();
                        assert_eq!(frame["outcome"], "resumed", "{frame}");
                        self.generation = frame["gen"].as_str().map(str::to_owned);
                    }
                    "event" | "events" => self.take(&said.data),
                    "caught_up" => break,
                    _ => {}
                }
            }
            if let Some((dead, client, server, silence)) = last.take() {
                let (client, server) = (client - dead, server - dead);
                let (back, missed) = (connected.elapsed(), self.position - begin);
                let direction = Direction::ToClient;
                self.lost(Loss { kind: Kind::Stream, direction, client, server, silence, back, missed });
            }
            let goes_on = self.goes_on();
            let at = self.moment();
            let mut heard = Instant::now();
            let mut dead: Option<Instant> = None;
            let client = loop {
                if !goes_on && self.has_all() {
                    return self;
                }
                let next = match dead {
                    None if goes_on => at,
                    None => Instant::now() + Duration::from_millis(100),
                    Some(_) => heard + self.field.times.life,
                };
                match (tokio::time::timeout_at(next, stream.next()).await, dead) {
                    (Ok(said), _) => {
                        let said = said.expect("the stream ended");
                        heard = Instant::now();
                        if matches!(said.name.as_str(), "event" | "events") {
                            self.take(&said.data);
                        }
                    }
                    (Err(_), Some(_)) => break Instant::now(),
                    (Err(_), None) if goes_on => {
                        link.set(Mode::Blackhole(Direction::ToClient));
                        dead = Some(Instant::now());
                    }
                    (Err(_), None) => {}
                }
            };
            drop(stream);
            let dead = dead.unwrap();
            let server = self.server_left(&link, dead).await;
            last = Some((dead, client, server, client - link.client_heard().unwrap()));
        }
    }
}

/// Least, median and most, in seconds.
fn spread(mut lengths: Vec<Duration>) -> Option<[f64; 3]> {
    lengths.sort();
    let seconds = |length: &Duration| (length.as_secs_f64() * 1000.0).round() / 1000.0;
    Some([lengths.first()?, lengths.get(lengths.len() / 2)?, lengths.last()?].map(seconds))
}

async fn blackholes(part: Arc<Part>, config: &str, times: Times, lines: [u64; 3]) {
    let home = Home::new(&format!("{config}\nconnections_per_credential = 1000"));
    let home = TASKS.iter().fold(home, |home, task| home.task(task, ELSEWHERE));
    let stage = Stage::open(&part, home).await;
    stage.road.put_proxy().await;
    let mut speakers = JoinSet::new();
    for (task, pause) in TASKS.iter().zip([Duration::from_millis(150), times.life.mul_f64(1.5)]) {
        let voice = Voice {
            task: (*task).to_owned(),
            pause,
            chunk: 1..4,
            flood: (0.0, 0),
            chars: 0..300,
            run: 200..400,
            cut: 0.0,
        };
        let seed = part.seed ^ pause.as_millis() as u64;
        speakers.spawn(Speaker::new(&stage.road, voice, seed).speak());
    }
    // A loss takes a moment, a minute and a while.
    let until = Instant::now() + part.length.saturating_sub(times.moment + times.minute);
    let losses = Arc::default();
    let field = Field { road: Arc::clone(&stage.road), times, until, losses: Arc::clone(&losses) };
    let mut all = JoinSet::new();
    let kinds = [Kind::Socket, Kind::CommandLine, Kind::Stream];
    for (kind, count) in kinds.into_iter().zip(lines) {
        for number in 0..count {
            let line = Line {
                field: field.clone(),
                kind,
                task: TASKS[number as usize % 2],
                random: StdRng::seed_from_u64(part.seed ^ (number << 8) ^ kind as u64),
                name: format!("{kind:?} {number}"),
                generation: None,
                position: 0,
                has: Vec::new(),
            };
            all.spawn(async move {
                match line.kind {
                    Kind::Socket => line.sockets().await,
                    Kind::CommandLine => line.command_lines().await,
                    Kind::Stream => line.streams().await,
                }
            });
        }
    }
    while !part.is_over() {
        let pause = part.left().min(Duration::from_secs(60));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // None ends before its time but by failing.
            failed = all.join_next() => drop(failed.unwrap().map(|_| panic!("a line ended early")).unwrap()),
        }
        part.say(format!("{} losses", losses.lock().unwrap().len()));
    }
    let mut watchers = JoinSet::new();
    let ledger = Arc::clone(&stage.ledger);
    watchers.spawn(async move {
        let mut counts = crate::follower::Counts::new();
        while let Some(line) = all.join_next().await {
            let line = line.unwrap();
            let log = (line.task.to_owned(), line.generation.clone().unwrap());
            for (seq, digest) in &line.has {
                ledger.seen(&log, *seq, *digest, &line.name);
            }
            *counts.entry("events").or_default() += line.has.len() as u64;
        }
        counts
    });
    note(&part, &losses.lock().unwrap());
    stage.close(&part, &[], speakers, watchers).await;
    note(&part, &losses.lock().unwrap());
    let count = losses.lock().unwrap().len() as u64;
    assert!(count >= lines.iter().sum(), "only {count} losses");
}

fn note(part: &Part, losses: &[Loss]) {
    part.note("losses", losses.len());
    let mut figures = serde_json::Map::new();
    for kind in [Kind::Socket, Kind::CommandLine, Kind::Stream] {
        for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
            let of: Vec<&Loss> =
                losses.iter().filter(|loss| loss.kind == kind && loss.direction == direction).collect();
            if of.is_empty() {
                continue;
            }
            let all = |what: fn(&Loss) -> Duration| spread(of.iter().map(|loss| what(loss)).collect());
            let figure = json!({
                "losses": of.len(),
                "client knows after": all(|loss| loss.client),
                "server knows after": all(|loss| loss.server),
                "silence before who hears nothing lets go": all(|loss| loss.silence),
                "back with all that was missed after": all(|loss| loss.back),
                "events missed": of.iter().map(|loss| loss.missed).sum::<u64>(),
            });
            figures.insert(format!("{kind:?}, dead {direction:?}"), figure);
        }
    }
    part.note("seconds, as least, median and most", figures);
}

#[tokio::test(flavor = "multi_thread")]
async fn t_05_t_22_swe_24_lines_that_die_at_any_moment_are_noticed_by_both_sides_and_nothing_is_lost() {
    // Not shorter: who answers late because the machine is busy would be taken for dead.
    let times =
        Times { life: Duration::from_secs(8), minute: Duration::from_secs(20), moment: Duration::from_millis(2500) };
    let config = "[stream]\nheartbeat = \"1s\"\nlife = \"8s\"";
    blackholes(Part::glance("blackholes", Duration::from_secs(40)), config, times, [3, 2, 2]).await;
}

#[test]
#[ignore = "three quarters of an hour: make soak"]
fn blackholes_at_full_length() {
    play("blackholes", "SOAK_SERVER", |part| async move { blackholes(part, "[stream]", SHIPPED, LINES).await });
}
