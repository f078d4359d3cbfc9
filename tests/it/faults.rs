//! Many watchers, many cuts, one run: at the end each has every event, exactly once and in order.
//!
//! Everything goes over real sockets through a proxy that cuts. What a watcher has is compared by number and hash of
//! the exact text with what a separate reader of the file finds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rejoin::event::{Body, RunId, TaskId};
use rejoin::stream::publish::Publisher;
use rejoin::stream::topic::Topic;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Client, Gate, Home, PATIENCE, Watcher, hash, is_terminal, raw_events};
use crate::proxy::{Direction, Mode, Proxy};

const WATCHERS: usize = 20;
const EVENTS: u64 = 2000;
/// The run is steady: one event in so long.
const PAUSE: Duration = Duration::from_millis(16);
/// What the ring holds, and what is replayed, in events: small, so that each answer comes up often.
const RING: u64 = 24;
const REPLAY: u64 = 100;
/// After so long without a frame a watcher takes its connection for dead.
const LIFE: Duration = Duration::from_millis(600);

/// A seed for this run of the test: of the environment, or new; printed either way.
pub fn seed() -> u64 {
    let seed = std::env::var("REJOIN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("REJOIN_TEST_SEED={seed}");
    seed
}

/// One time away.
#[derive(Clone, Copy, Debug)]
struct Leave {
    /// How the connection ends.
    how: Mode,
    /// After how many events of it.
    after: u64,
    /// How many events pass before the watcher comes back.
    away: u64,
    /// Comes back with a position in another log.
    other_log: bool,
}

fn plan(random: &mut StdRng) -> Vec<Leave> {
    let mut plan = Vec::new();
    for round in 0..16 {
        let direction = [Direction::ToServer, Direction::ToClient, Direction::Both][round % 3];
        for how in [Mode::Fin, Mode::Rst, Mode::Blackhole(direction)] {
            // Short: the ring has it. Long: only the log has it.
            let away = match (how, round % 2) {
                (Mode::Rst, 0) => random.random_range(RING + 6..2 * RING),
                (Mode::Fin | Mode::Rst, _) => random.random_range(2..12),
                _ => random.random_range(1..4),
            };
            plan.push(Leave { how, after: random.random_range(1..4), away, other_log: false });
        }
    }
    plan.shuffle(random);
    plan[20].away = REPLAY + 20;
    plan[40].away = REPLAY + 20;
    plan[10].other_log = true;
    plan[30].other_log = true;
    plan
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    fin: u64,
    rst: u64,
    silent: u64,
    /// Of the silent: closed by the server, which heard nothing.
    no_life: u64,
    /// Ends that were asked for and not heard within a life, on a machine that stood still for that long.
    stood: u64,
    /// Ends that were not asked for: a busy machine may let a life pass.
    unasked: u64,
    resumes: u64,
    missed_some: u64,
    from_ring: u64,
    from_log: u64,
    resets: u64,
    too_far: u64,
    generation: u64,
    paged: u64,
    caught_up: u64,
    heartbeats: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        let Self { fin, rst, silent, no_life, unasked, resumes, missed_some, from_ring, from_log, resets, .. } = other;
        self.fin += fin;
        self.rst += rst;
        self.silent += silent;
        self.no_life += no_life;
        self.unasked += unasked;
        self.stood += other.stood;
        self.resumes += resumes;
        self.missed_some += missed_some;
        self.from_ring += from_ring;
        self.from_log += from_log;
        self.resets += resets;
        self.too_far += other.too_far;
        self.generation += other.generation;
        self.paged += other.paged;
        self.caught_up += other.caught_up;
        self.heartbeats += other.heartbeats;
    }
}

/// What the watchers of one test share.
struct Stage {
    proxy: Mutex<Proxy>,
    server: SocketAddr,
    client: Client,
    token: String,
    topic: Arc<Topic>,
    over: AtomicBool,
}

/// A client of the live protocol that keeps its position by the rules, and fails where the server breaks one.
struct Follower {
    stage: Arc<Stage>,
    random: StdRng,
    client: String,
    attempt: u64,
    generation: Option<String>,
    position: u64,
    has: BTreeMap<u64, String>,
    /// Ranges that a reset jumped over: after, through.
    gaps: Vec<(u64, u64)>,
    /// Saw the end of the run.
    done: bool,
    counts: Counts,
}

/// The state of one subscription: what may come next.
struct Session {
    subscribed: bool,
    /// Says what must follow.
    reset: bool,
    /// The head that `caught_up` waits for.
    due: Option<u64>,
    /// Where it resumed, and what the ring no longer had before it asked: until the first event shows the answer.
    asked: Option<(u64, u64)>,
    seen: u64,
    sub: u64,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Closed(Option<u16>),
    Silence,
    /// Nothing more to wait for.
    Done,
}

impl Follower {
    fn new(stage: Arc<Stage>, seed: u64) -> Self {
        Self {
            stage,
            random: StdRng::seed_from_u64(seed),
            client: format!("watcher-{seed}"),
            attempt: 0,
            generation: None,
            position: 0,
            has: BTreeMap::new(),
            gaps: Vec::new(),
            done: false,
            counts: Counts::default(),
        }
    }

    /// Goes through all of the plan, then stays until the end of the run.
    async fn follow(mut self) -> Self {
        let mut plan = plan(&mut self.random);
        plan.reverse();
        let mut other_log = false;
        while let Some(leave) = plan.last().copied() {
            let (ended, asked) = self.connection(Some(leave), other_log).await;
            other_log = false;
            self.fill_gaps().await;
            if !asked {
                // It ended before its time: the plan goes on where it was.
                self.counts.unasked += 1;
                continue;
            }
            plan.pop();
            match leave.how {
                Mode::Fin => self.counts.fin += 1,
                Mode::Rst => self.counts.rst += 1,
                _ => self.counts.silent += 1,
            }
            match (leave.how, &ended) {
                (Mode::Fin | Mode::Rst, Ended::Closed(code)) => assert_eq!(*code, None, "{leave:?}"),
                (Mode::Blackhole(Direction::ToServer), Ended::Closed(code)) => {
                    assert_eq!(*code, Some(4012), "{leave:?}");
                    self.counts.no_life += 1;
                }
                (Mode::Blackhole(Direction::ToServer) | Mode::Fin | Mode::Rst, Ended::Silence) => {
                    self.counts.stood += 1;
                }
                (Mode::Blackhole(_), Ended::Silence) => {}
                _ => panic!("{leave:?} ended as {ended:?}"),
            }
            self.stay_away(leave.away).await;
            other_log = leave.other_log;
        }
        while !self.done {
            let (ended, _) = self.connection(None, other_log).await;
            other_log = false;
            self.counts.unasked += u64::from(ended != Ended::Done);
            self.fill_gaps().await;
        }
        self
    }

    async fn stay_away(&self, events: u64) {
        let back = self.stage.topic.head().0 + events;
        while self.stage.topic.head().0 < back && !self.stage.over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// One connection, until it ends. Says how, and whether that was as planned.
    async fn connection(&mut self, leave: Option<Leave>, other_log: bool) -> (Ended, bool) {
        let (stream, link) = self.stage.proxy.lock().await.connect().await;
        let mut watcher = Watcher::over(stream, self.stage.server, Some(&self.stage.token)).await.unwrap();
        self.attempt += 1;
        let sub = self.attempt * 7;
        let generation = if other_log { Some("00000000deadbeef".to_owned()) } else { self.generation.clone() };
        let evicted = self.stage.topic.tail().ring.evicted_through().0;
        let subscribe = json!([{ "sub": sub, "task": "job", "gen": generation, "after": self.position }]);
        watcher.hello(&self.client, self.attempt, subscribe).await;
        let mut session =
            Session { subscribed: false, reset: false, due: None, asked: Some((0, evicted)), seen: 0, sub };
        let mut asked = false;
        let mut welcome = false;
        loop {
            let message = match timeout(LIFE, watcher.socket.next()).await {
                Err(_) => return (Ended::Silence, asked),
                Ok(Some(Ok(Message::Text(text)))) => text,
                Ok(Some(Ok(Message::Close(close)))) => {
                    let code = close.map(|close| close.code.into());
                    assert_ne!(code, Some(4514), "the newest socket of a client is never replaced");
                    return (Ended::Closed(code), asked);
                }
                Ok(Some(Ok(_))) => continue,
                Ok(Some(Err(_)) | None) => return (Ended::Closed(None), asked),
            };
            let frame: Value = serde_json::from_str(&message).unwrap();
            if !welcome {
                assert_eq!(frame["type"], "welcome", "nothing comes before it");
                welcome = true;
                continue;
            }
            if frame["type"] == "heartbeat" {
                self.heed_heartbeat(&frame, &session);
                let pong = json!({ "type": "pong", "at": frame["at"] }).to_string();
                if futures_util::SinkExt::send(&mut watcher.socket, Message::text(pong)).await.is_err() {
                    return (Ended::Closed(None), asked);
                }
            } else {
                self.heed(&frame, &message, &mut session, other_log);
            }
            if self.done && session.due.is_none() {
                return (Ended::Done, asked);
            }
            if let Some(leave) = leave
                && !asked
                && session.due.is_none()
                && (session.seen >= leave.after || self.stage.over.load(Ordering::Relaxed))
            {
                asked = true;
                link.set(leave.how);
            }
        }
    }

    fn heed_heartbeat(&mut self, frame: &Value, session: &Session) {
        self.counts.heartbeats += 1;
        let heads = &frame["heads"][session.sub.to_string()];
        if !session.subscribed {
            return;
        }
        assert_eq!(heads["sent"], self.position, "sent is the position: {frame}");
        assert!(heads["head"].as_u64().unwrap() >= self.position, "{frame}");
    }

    fn heed(&mut self, frame: &Value, text: &str, session: &mut Session, other_log: bool) {
        let number = |name: &str| frame[name].as_u64().unwrap();
        if frame["type"] != "notice" {
            assert_eq!(frame["sub"], session.sub, "{frame}");
        }
        match frame["type"].as_str().unwrap() {
            "subscribed" => {
                assert!(!session.subscribed, "one outcome for one subscribe: {frame}");
                session.subscribed = true;
                self.heed_outcome(frame, session, other_log);
            }
            "reset" => {
                assert!(session.subscribed && session.reset, "only behind subscribed: {frame}");
                assert_eq!(frame["have"], self.position);
                let why = frame["why"].as_str().unwrap();
                match why {
                    "too_far" => self.counts.too_far += 1,
                    "generation" => self.counts.generation += 1,
                    _ => panic!("{frame}"),
                }
                assert_eq!(why == "generation", other_log, "{frame}");
            }
            "snapshot" => {
                assert!(session.reset, "{frame}");
                session.reset = false;
                let seq = number("seq");
                assert!(seq >= self.position, "the log did not lose anything: {frame}");
                self.gaps.push((self.position, seq));
                self.position = seq;
                self.generation = Some(frame["gen"].as_str().unwrap().to_owned());
                session.due = Some(number("head"));
            }
            "event" | "events" => {
                assert!(session.subscribed && !session.reset, "no event before its snapshot: {frame}");
                let events = raw_events(text);
                if frame["type"] == "events" {
                    assert_eq!((number("first"), number("last")), (events[0].0, events[events.len() - 1].0));
                    assert!(events.len() <= 256);
                }
                assert!(session.due.is_none_or(|due| events[0].0 <= due), "caught_up comes first: {frame}");
                self.heed_answer(session);
                for (seq, event) in events {
                    assert_eq!(seq, self.position + 1, "no gap, nothing twice");
                    self.position = seq;
                    session.seen += 1;
                    self.done |= is_terminal(&serde_json::from_str(&event).unwrap());
                    assert_eq!(self.has.insert(seq, hash(&event)), None, "{seq} came twice");
                }
            }
            "caught_up" => {
                self.counts.caught_up += 1;
                assert_eq!(number("seq"), self.position);
                let due = session.due.take().expect("caught_up once, behind subscribed or snapshot");
                assert!(self.position >= due, "{frame}");
            }
            other => panic!("{other}: {frame}"),
        }
    }

    fn heed_outcome(&mut self, frame: &Value, session: &mut Session, other_log: bool) {
        let number = |name: &str| frame[name].as_u64().unwrap();
        let away = (self.position, number("head"));
        match frame["outcome"].as_str().unwrap() {
            "resumed" => {
                assert!(!other_log || self.position == 0, "{frame}");
                assert_eq!(number("from"), self.position + 1, "resuming after n gives n + 1 first");
                assert_eq!(number("missed"), away.1 - away.0);
                assert!(self.position == 0 || number("missed") <= REPLAY, "{frame}");
                self.generation = Some(frame["gen"].as_str().unwrap().to_owned());
                if self.position > 0 {
                    self.counts.resumes += 1;
                    self.counts.missed_some += u64::from(number("missed") > 0);
                }
                if let Some(asked) = &mut session.asked {
                    asked.0 = number("from");
                }
                if self.position == 0 || number("missed") == 0 {
                    session.asked = None;
                }
                session.due = Some(number("head"));
            }
            "reset" => {
                assert!(other_log || away.1 - away.0 > REPLAY, "{frame}");
                self.counts.resets += 1;
                session.asked = None;
                session.reset = true;
            }
            other => panic!("{other}: {frame}"),
        }
    }

    /// The first event after a resume is here: where did it come from? What the ring had let go of before the
    /// question came from the log; what it has still not let go of came from the ring.
    fn heed_answer(&mut self, session: &mut Session) {
        let Some((from, evicted_before)) = session.asked.take() else { return };
        let evicted = self.stage.topic.tail().ring.evicted_through().0;
        self.counts.from_log += u64::from(from <= evicted_before);
        self.counts.from_ring += u64::from(from > evicted);
    }

    /// Pages what a reset jumped over.
    async fn fill_gaps(&mut self) {
        for (mut after, through) in std::mem::take(&mut self.gaps) {
            let generation = self.generation.clone().unwrap();
            while after < through {
                let path = format!("/tasks/job/events?gen={generation}&after={after}&limit=37");
                let answer = self.stage.client.request(reqwest::Method::GET, &path).timeout(PATIENCE).send().await;
                let text = answer.unwrap().text().await.unwrap();
                let events = raw_events(&text);
                assert!(!events.is_empty(), "{text}");
                for (seq, event) in events.into_iter().filter(|(seq, _)| *seq <= through) {
                    assert_eq!(seq, after + 1);
                    after = seq;
                    self.counts.paged += 1;
                    self.done |= is_terminal(&serde_json::from_str(&event).unwrap());
                    assert_eq!(self.has.insert(seq, hash(&event)), None, "{seq} came twice");
                }
            }
        }
    }
}

/// Says what a run of `EVENTS` events says, steadily.
async fn talk(publisher: Publisher, topic: Arc<Topic>, run: RunId, mut random: StdRng) {
    let mut next = Instant::now();
    for number in 0..EVENTS {
        let long = if random.random_bool(0.05) { random.random_range(100..6000) } else { random.random_range(0..80) };
        let text = format!("{number} “{}”\n{}", "☂".repeat(number as usize % 3), "x".repeat(long));
        publisher.offer(&topic, Some(run), &Body::Thought { text }).await.unwrap();
        next += PAUSE;
        tokio::time::sleep_until(next).await;
    }
}

/// The run is a real one that waits at a gate; its events are offered beside its command, as an agent in the server
/// offers its own, because a command's output is held together to a few events per second.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn spk_16_spk_17_spk_33_t_05_t_06_t_07_t_11_twenty_watchers_lose_and_double_nothing_over_nine_hundred_cuts() {
    let seed = seed();
    let config = format!(
        "[stream]\nheartbeat = \"150ms\"\nlife = \"{}ms\"\nring_events = {RING}\nring_bytes = \"64 KiB\"\nreplay_events = {REPLAY}",
        LIFE.as_millis()
    );
    let home = Home::new(&config);
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let started = Instant::now();
    let run = server.client.run("job").await;
    let api = server.server.api();
    let id: TaskId = "job".parse().unwrap();
    let topic = api.publisher.topic(&id).unwrap();
    let stage = Arc::new(Stage {
        proxy: Mutex::new(Proxy::before(server.client.address).await),
        server: server.client.address,
        client: server.client.clone(),
        token: home.token(),
        topic: Arc::clone(&topic),
        over: AtomicBool::new(false),
    });

    let mut watchers = JoinSet::new();
    for number in 0..WATCHERS as u64 {
        watchers.spawn(Follower::new(Arc::clone(&stage), seed.wrapping_add(number)).follow());
    }
    let talk = talk(api.publisher.clone(), topic, run.parse().unwrap(), StdRng::seed_from_u64(seed));
    tokio::select! {
        () = talk => {}
        // None ends before the run does, but by failing.
        failed = watchers.join_next() => panic!("a watcher failed: {}", failed.unwrap().err().unwrap()),
    }
    gate.open().await;
    server.client.ended(&run).await;
    stage.over.store(true, Ordering::Relaxed);
    let talked = started.elapsed();

    let logged = home.logged("job");
    assert!(logged.len() as u64 >= EVENTS);
    let mut counts = Counts::default();
    while let Some(follower) = watchers.join_next().await {
        let follower = follower.unwrap();
        counts.add(&follower.counts);
        let has: Vec<(u64, String)> = follower.has.into_iter().collect();
        assert!(has == logged, "a watcher has {} events, the log {}", has.len(), logged.len());
    }
    println!("run {talked:?}, all {:?}: {counts:#?}", started.elapsed());
    assert!(counts.fin >= 300 && counts.rst >= 300 && counts.silent >= 300, "{counts:?}");
    assert!(counts.no_life >= 50, "{counts:?}");
    assert!(counts.stood * 4 < counts.fin + counts.rst + counts.silent, "{counts:?}");
    assert!(counts.from_ring >= 200 && counts.from_log >= 200, "{counts:?}");
    assert!(counts.resets >= 50, "{counts:?}");
    assert!(counts.missed_some >= 500, "{counts:?}");
    server.stop().await;
}
