//! Server-sent events over lines that break and clients that do not read: nothing is lost or doubled, and nobody costs
//! more than a number.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rejoin::event::{Body, RunId, State, TaskId};
use rejoin::stream::publish::Publisher;
use rejoin::stream::topic::Topic;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::faults::seed;
use crate::feed_stage::{Said, Stream};
use crate::harness::raw_events;
use crate::harness::{Client, Home, PATIENCE, Process, hash, is_terminal};
use crate::memory::Growth;
use crate::proxy::{Direction, Mode, Proxy};
use crate::rows_stage::Play;
use crate::slow::{is_held, loud, narrow, shout, trickle};

const WATCHERS: u64 = 12;
const CUTS: usize = 20;
const EVENTS: u64 = 1200;
const PAUSE: Duration = Duration::from_millis(8);
const RING: u64 = 24;
const REPLAY: u64 = 100;
/// After so long without an event of the stream a watcher takes its connection for dead.
const LIFE: Duration = Duration::from_millis(800);

/// What the watchers of one test share.
struct Stage {
    proxy: Mutex<Proxy>,
    server: SocketAddr,
    client: Client,
    topic: Arc<Topic>,
    /// The run that half of them want alone.
    run: RunId,
    over: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    fin: u64,
    rst: u64,
    silent: u64,
    resumes: u64,
    resets: u64,
    cursors: u64,
    paged: u64,
}

/// A browser: it keeps the last id and the events, and comes back with the id.
struct Browser {
    stage: Arc<Stage>,
    random: StdRng,
    /// Whether it wants one run only.
    of_run: bool,
    last_id: Option<String>,
    /// The last event that it has, or passed over with a cursor.
    position: u64,
    has: BTreeMap<u64, String>,
    gaps: Vec<(u64, u64)>,
    counts: Counts,
}

impl Browser {
    fn new(stage: Arc<Stage>, seed: u64, of_run: bool) -> Self {
        Self {
            stage,
            random: StdRng::seed_from_u64(seed),
            of_run,
            last_id: None,
            position: 0,
            has: BTreeMap::new(),
            gaps: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Is cut so often, then stays until it has what there is.
    async fn follow(mut self) -> Self {
        for cut in 0..CUTS {
            let how = [Mode::Fin, Mode::Rst, Mode::Blackhole(Direction::ToClient)][cut % 3];
            self.connection(Some(how)).await;
            match how {
                Mode::Fin => self.counts.fin += 1,
                Mode::Rst => self.counts.rst += 1,
                _ => self.counts.silent += 1,
            }
            self.fill_gaps().await;
            // Short: the ring has it. Longer: only the log has it. Very long: it is not replayed.
            let away = match cut % 7 {
                0 => REPLAY + 20,
                1 | 2 => RING + self.random.random_range(6..40),
                _ => self.random.random_range(0..10),
            };
            let back = self.stage.topic.head().0 + away;
            while self.stage.topic.head().0 < back && !self.stage.over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        while !self.stage.over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.connection(None).await;
        self.fill_gaps().await;
        self
    }

    /// One connection: until the network ends it as it was told to, or until it has caught up with the last event.
    async fn connection(&mut self, how: Option<Mode>) {
        let (socket, link) = self.stage.proxy.lock().await.connect().await;
        let token = format!("Bearer {}", self.stage.client.token());
        let mut headers = vec![("Authorization", token.as_str())];
        // It asks with the address that it first asked with, as browsers do.
        let query = if self.of_run { format!("?run={}&after=0", self.stage.run) } else { "?after=0".to_owned() };
        if let Some(id) = &self.last_id {
            headers.push(("Last-Event-ID", id));
        }
        let opened = timeout(PATIENCE, Stream::over(socket, self.stage.server, "GET", "job", &query, &headers)).await;
        let mut stream = opened.unwrap().expect("an answer");
        assert_eq!(stream.status, 200);
        stream.last_id.clone_from(&self.last_id);
        let cut_after = self.random.random_range(1..12);
        let (mut seen, mut reset, mut due) = (0, false, None);
        loop {
            let Ok(said) = timeout(LIFE, stream.next()).await else { return };
            let Some(said) = said else {
                assert!(!stream.has_ended(), "the server ended nothing");
                return;
            };
            self.heed(&said, &mut reset, &mut due);
            self.last_id.clone_from(&stream.last_id);
            seen += 1;
            match how {
                // At any point, also between `reset` and `snapshot`, and in the middle of an event.
                Some(how) if seen == cut_after || self.stage.over.load(Ordering::Relaxed) => link.set(how),
                None if due == Some(true) => return,
                _ => {}
            }
        }
    }

    fn heed(&mut self, said: &Said, reset: &mut bool, due: &mut Option<bool>) {
        let frame = said.frame();
        let number = |name: &str| frame[name].as_u64().unwrap();
        match said.name.as_str() {
            "subscribed" => {
                assert_eq!(*due, None, "one outcome for one request: {frame}");
                *due = Some(false);
                match frame["outcome"].as_str().unwrap() {
                    "resumed" => {
                        if self.position > 0 {
                            assert_eq!(number("from"), self.position + 1, "going on behind n gives n + 1 first");
                            self.counts.resumes += 1;
                        } else if self.of_run {
                            self.position = number("from") - 1;
                        }
                    }
                    "reset" => *reset = true,
                    other => panic!("{other}: {frame}"),
                }
            }
            "reset" => {
                assert!(*reset);
                self.counts.resets += 1;
            }
            "snapshot" => {
                assert!(std::mem::take(reset), "{frame}");
                self.gaps.push((self.position, number("seq")));
                self.position = number("seq");
            }
            "event" | "events" => {
                assert!(due.is_some() && !*reset, "no event before its snapshot: {frame}");
                for (seq, event) in raw_events(&said.data) {
                    let follows = if self.of_run { seq > self.position } else { seq == self.position + 1 };
                    assert!(follows, "{seq} behind {}: no gap, nothing twice", self.position);
                    self.position = seq;
                    assert_eq!(self.has.insert(seq, hash(&event)), None, "{seq} came twice");
                }
                if said.name == "events" {
                    self.position = number("last");
                }
            }
            "cursor" => {
                assert!(self.of_run && said.data.is_empty());
                self.counts.cursors += 1;
                let seq = said.id.as_ref().unwrap().split_once('.').unwrap().1.parse().unwrap();
                assert!(seq > self.position);
                self.position = seq;
            }
            "caught_up" => {
                assert!(!*reset);
                assert_eq!(number("seq"), self.position);
                *due = Some(true);
            }
            "heartbeat" => assert_eq!(frame["heads"]["sent"], self.position, "sent is the position: {frame}"),
            other => panic!("{other}: {frame}"),
        }
        if let Some(id) = &said.id {
            assert_eq!(id.split_once('.').unwrap().1, self.position.to_string(), "its id is the position");
        }
    }

    /// Pages what a reset jumped over.
    async fn fill_gaps(&mut self) {
        for (mut after, through) in std::mem::take(&mut self.gaps) {
            let generation = self.stage.topic.tail().generation;
            let run = if self.of_run { format!("&run={}", self.stage.run) } else { String::new() };
            while after < through {
                let path = format!("/tasks/job/events?gen={generation}&after={after}&limit=37{run}");
                let answer = self.stage.client.request(reqwest::Method::GET, &path).timeout(PATIENCE).send().await;
                let text = answer.unwrap().text().await.unwrap();
                for (seq, event) in raw_events(&text).into_iter().filter(|(seq, _)| *seq <= through) {
                    assert!(seq > after);
                    self.counts.paged += 1;
                    assert_eq!(self.has.insert(seq, hash(&event)), None, "{seq} came twice");
                }
                let page = serde_json::from_str::<serde_json::Value>(&text).unwrap();
                let next = page["next"].as_u64().unwrap();
                // Of a run there may be nothing more behind its end.
                if page["more"] == false {
                    break;
                }
                assert!(next > after, "{text}");
                after = next;
            }
        }
    }
}

/// Says what two runs of one task say in turn, steadily.
async fn talk(publisher: Publisher, topic: Arc<Topic>, runs: [RunId; 2], mut random: StdRng) {
    let mut next = Instant::now();
    for number in 0..EVENTS {
        let long = if random.random_bool(0.05) { random.random_range(100..6000) } else { random.random_range(0..80) };
        let text = format!("{number} “{}”\n{}", "☂".repeat(number as usize % 3), "x".repeat(long));
        let run = runs[usize::from(random.random_bool(0.5))];
        publisher.offer(&topic, Some(run), &Body::Thought { text }).await.unwrap();
        next += PAUSE;
        tokio::time::sleep_until(next).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn spk_16_t_05_t_06_t_07_t_10_twelve_streams_lose_and_double_nothing_over_two_hundred_cuts() {
    let seed = seed();
    let config = format!(
        "[stream]\nheartbeat = \"150ms\"\nlife = \"600ms\"\nring_events = {RING}\nring_bytes = \"64 KiB\"\nreplay_events = {REPLAY}"
    );
    let home = Home::new(&config).shell_task("job", "true");
    let server = home.serve().await;
    let (one, two) = (Play::begin(&server, "job").await, Play::begin(&server, "job").await);
    let api = server.server.api();
    let topic = api.publisher.topic(&"job".parse::<TaskId>().unwrap()).unwrap();
    let stage = Arc::new(Stage {
        proxy: Mutex::new(Proxy::before(server.client.address).await),
        server: server.client.address,
        client: server.client.clone(),
        topic: Arc::clone(&topic),
        run: one.run,
        over: AtomicBool::new(false),
    });
    let mut browsers = JoinSet::new();
    for number in 0..WATCHERS {
        let browser = Browser::new(Arc::clone(&stage), seed.wrapping_add(number), number % 2 == 1);
        browsers.spawn(browser.follow());
    }
    let talk = talk(api.publisher.clone(), topic, [one.run, two.run], StdRng::seed_from_u64(seed));
    tokio::select! {
        () = talk => {}
        failed = browsers.join_next() => panic!("a watcher failed: {}", failed.unwrap().err().unwrap()),
    }
    one.status(State::Succeeded).await;
    two.status(State::Succeeded).await;
    stage.over.store(true, Ordering::Relaxed);

    let logged = home.logged_events("job");
    assert!(logged.len() as u64 >= EVENTS);
    let mark = format!("\"run\":\"{}\"", one.run);
    let mut counts = Counts::default();
    while let Some(browser) = browsers.join_next().await {
        let Browser { has, of_run, counts: of_one, .. } = browser.unwrap();
        let wanted = logged.iter().filter(|(_, text)| !of_run || text.contains(&mark));
        let wanted: Vec<_> = wanted.map(|(seq, text)| (*seq, hash(text))).collect();
        let has: Vec<_> = has.into_iter().collect();
        assert!(has == wanted, "a watcher has {} events, the log {}", has.len(), wanted.len());
        counts.fin += of_one.fin;
        counts.rst += of_one.rst;
        counts.silent += of_one.silent;
        counts.resumes += of_one.resumes;
        counts.resets += of_one.resets;
        counts.cursors += of_one.cursors;
        counts.paged += of_one.paged;
    }
    println!("{counts:?}");
    assert!(counts.fin + counts.rst + counts.silent == WATCHERS * CUTS as u64, "{counts:?}");
    assert!(counts.resumes >= 80 && counts.resets >= 12 && counts.paged >= 100, "{counts:?}");
    assert!(counts.cursors >= 5, "{counts:?}");
    server.stop().await;
}

/// Opens a stream whose own side keeps next to nothing, and reads until the first events are there.
async fn taste(server: &Process, headers: &[(&str, &str)]) -> Stream {
    let (address, token) = (server.client.address, format!("Bearer {}", server.client.token()));
    let headers: Vec<_> = headers.iter().copied().chain([("Authorization", token.as_str())]).collect();
    let socket = narrow(address).await;
    let mut stream = Stream::over(socket, address, "GET", "loud", "", &headers).await.unwrap();
    stream.until_that(|said| said.id.is_some()).await;
    stream
}

/// Does not read until the server resets the connection, or a byte a second; gives how long that took.
async fn until_cut(stream: &Stream, drips: bool) -> Duration {
    let started = Instant::now();
    let (mut next, mut byte) = (Instant::now(), [0]);
    while is_held(&stream.socket) {
        if drips && Instant::now() >= next {
            next += Duration::from_secs(1);
            let _ = stream.socket.try_read(&mut byte);
        }
        assert!(started.elapsed() < PATIENCE, "never cut");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_31_streams_that_nobody_reads_cost_little_slow_no_run_are_cut_in_time_and_complete_afterwards() {
    const MIB: u64 = 1024 * 1024;
    const MUTE: usize = 8;
    let home = Home::new(
        "[stream]\nreplay_bytes = \"1 GiB\"\nreplay_events = 10_000_000\nslow_window = \"12s\"\nheartbeat = \"1s\"",
    )
    .task("loud", &loud(15, 62));
    let server = home.spawn(&[]).await;
    // What will be due to each.
    shout(&server.client, 28).await;
    let due: u64 = home.logged_events("loud").iter().map(|(_, event)| event.len() as u64).sum();
    assert!(due >= 24 * MIB, "{due}");
    let alone = shout(&server.client, 3).await;
    let growth = Growth::of(server.pid());
    let mut mute = Vec::new();
    for _ in 0..MUTE {
        mute.push(taste(&server, &[]).await);
    }
    let drip = taste(&server, &[]).await;
    let beside = shout(&server.client, 3).await;
    // Had a run waited for one of them, it could not end before the server lets go of that one.
    let held = mute.iter().chain([&drip]).filter(|stream| is_held(&stream.socket)).count();
    assert_eq!(held, MUTE + 1, "the runs beside streams that nobody reads took {beside:?}");
    let all_mute = async {
        let mut last = Duration::ZERO;
        for stream in &mute {
            last = last.max(until_cut(stream, false).await);
        }
        last
    };
    let (last_cut, drip_cut) = tokio::join!(all_mute, until_cut(&drip, true));
    let (_, grown) = growth.end().await;

    // Back with the last id: everything behind it, as the log has it, and nothing before.
    let id = mute[0].last_id.clone().unwrap();
    let mut position: u64 = id.split_once('.').unwrap().1.parse().unwrap();
    let logged = home.logged_events("loud");
    let mut stream = Stream::open(&server.client, "loud", "", &[("Last-Event-ID", &id)]).await;
    while position < logged.len() as u64 {
        let said = stream.next().await.unwrap();
        if said.name.starts_with("event") {
            for (seq, event) in raw_events(&said.data) {
                position += 1;
                assert!(logged[position as usize - 1] == (seq, event), "event {seq} is not as the log has it");
            }
        }
    }
    println!(
        "due {} MiB; alone {alone:?}, beside them {beside:?}; grown by {} KiB; cut after {last_cut:?} and {drip_cut:?}",
        due / MIB,
        grown / 1024
    );
    assert!(grown < 24 * MIB, "the server grew by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_33_a_stream_over_a_slow_line_is_not_cut_and_gets_everything() {
    let home = Home::new("[stream]\nslow_bytes = \"4 KiB\"\nslow_window = \"2s\"\nheartbeat = \"5s\"")
        .task("loud", &loud(3, 25));
    let server = home.spawn(&[]).await;
    shout(&server.client, 1).await;
    let logged = home.logged_events("loud");
    let bytes: usize = logged.iter().map(|(_, event)| event.len()).sum();
    let started = Instant::now();
    let address = server.client.address;
    let socket = TcpStream::connect(trickle(address, 8000).await).await.unwrap();
    let token = format!("Bearer {}", home.token());
    let mut stream = Stream::over(socket, address, "GET", "loud", "", &[("Authorization", &token)]).await.unwrap();
    let mut events: Vec<(u64, String)> = Vec::new();
    while !events.last().is_some_and(|(_, event)| is_terminal(&serde_json::from_str(event).unwrap())) {
        let said = stream.next().await.expect("cut");
        if said.name.starts_with("event") {
            events.extend(raw_events(&said.data));
        }
    }
    assert!(events == logged);
    println!("{} KiB in {:?}", bytes / 1024, started.elapsed());
    assert!(started.elapsed() > Duration::from_secs(6), "it was slow enough to be told apart");
}
