//! The stream without a network: a real store, the writer and its readers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use rejoin::clock::Clock;
use rejoin::event::{Body, Gen, RunId, Seq, State, Status, TaskId};
use rejoin::record::RunState;
use rejoin::store::{Durability, Store, StoreError, TaskNo, sql};
use rejoin::stream::batch::{Batch, Producer, Turn};
use rejoin::stream::forwarder::{Peer, Watcher};
use rejoin::stream::log::{self, Bounds};
use rejoin::stream::publish::{Limits, Publisher, Writable};
use rejoin::stream::reader::{Lost, Pull, Reader, ReplayLimits, Snapshot, Verdict, Why};
use rejoin::stream::ring;
use rejoin::stream::topic::{Offer, QueueLimits, Refused, Start, Topic};
use rejoin::stream::writer::Writer;
use rusqlite::Connection;
use serde_json::{Value, json};

/// A server's stream on a store of its own.
struct Stream {
    store: Arc<Store>,
    publisher: Publisher,
    writer: Writer,
}

impl Stream {
    fn open(dir: &Path, limits: Limits) -> Self {
        let opened = Store::open(dir, Durability::Normal, 64).unwrap();
        let (publisher, writer) = Publisher::start(opened.writer, limits, Clock::system()).unwrap();
        let stream = Self { store: Arc::new(opened.store), publisher, writer };
        stream.open_topics();
        stream
    }

    fn open_topics(&self) {
        let starts = self.store.read_blocking(|connection| {
            let mut statement = connection.prepare("SELECT no, id FROM tasks")?;
            let rows = statement.query_map([], |row| Ok((TaskNo(row.get(0)?), row.get::<_, String>(1)?)))?;
            rows.map(|row| {
                let (no, id) = row?;
                let id: TaskId = id.parse().unwrap();
                let Bounds { generation, oldest, head, bytes } = log::bounds(connection, no)?.unwrap();
                let fold = log::fold_at(connection, &id, no, head)?;
                Ok((id, no, Start { generation, oldest, head, bytes, fold }))
            })
            .collect::<rusqlite::Result<Vec<_>>>()
        });
        for (id, no, start) in starts.unwrap() {
            self.publisher.open(id, no, start);
        }
    }

    /// Makes a task.
    async fn task(&self, id: &str) -> Arc<Topic> {
        let generation = Gen::random();
        let name = id.to_owned();
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            connection.execute(
                "INSERT INTO tasks (id, gen, source, definition, anchor, planned, created)
                 VALUES (?1, ?2, 'store', '{}', 0, 0, 0)",
                rusqlite::params![name, sql(generation.0)],
            )?;
            Ok((TaskNo(connection.last_insert_rowid()), Vec::new()))
        };
        let (no, _) = self.publisher.transact(act).await.unwrap();
        let start = Start { generation, oldest: Seq(1), head: Seq(0), bytes: 0, fold: rejoin::record::Fold::default() };
        self.publisher.open(id.parse().unwrap(), no, start)
    }

    /// Begins a run.
    async fn run(&self, topic: &Arc<Topic>) -> RunId {
        let run = RunId::new();
        self.publisher.publish(topic, Some(run), &status(State::Queued)).await.unwrap();
        self.publisher.publish(topic, Some(run), &status(State::Started)).await.unwrap();
        run
    }

    async fn say(&self, topic: &Arc<Topic>, run: Option<RunId>, text: &str) -> Seq {
        self.publisher.publish(topic, run, &thought(text)).await.unwrap()
    }

    /// A subscription that goes on after `after`.
    async fn watch(&self, topic: &Arc<Topic>, peer: u64, after: Seq) -> Watch {
        let generation = topic.tail().generation;
        let (watch, verdict) = self.subscribe(topic, peer, Some(generation), after).await;
        assert_eq!(verdict, Verdict::Resume(after.next()));
        watch
    }

    async fn subscribe(&self, topic: &Arc<Topic>, peer: u64, gen_: Option<Gen>, after: Seq) -> (Watch, Verdict) {
        let peer = Arc::new(Peer::new(peer, "u".into(), "c".into()));
        let watcher = Arc::new(Watcher::new(Arc::clone(&peer), 1, topic.head().next()));
        let reader = Reader::enter(&self.publisher, Arc::clone(topic), watcher);
        let mut watch = Watch { peer, reader, store: Arc::clone(&self.store), fetched: 0 };
        let (verdict, log) = watch.reader.verdict(&self.store, gen_, after, ReplayLimits::default()).await.unwrap();
        if let Verdict::Resume(from) = verdict {
            watch.reader.seek(log.generation, from);
        }
        (watch, verdict)
    }

    /// All that stands in the log, read by another connection.
    fn logged(&self, topic: &Topic) -> Vec<(Seq, String)> {
        let (mut all, mut next) = (Vec::new(), Seq(1));
        loop {
            let page = self.store.read_blocking(|connection| log::page(connection, topic.no, next)).unwrap();
            let Some(last) = page.last().map(|segment| segment.last()) else { return all };
            all.extend(page.iter().flat_map(|segment| segment.events()).map(|(seq, event)| (seq, event.to_owned())));
            next = last.next();
        }
    }

    /// Retention, as the server does it.
    async fn retain_from(&self, topic: &Arc<Topic>, oldest: Seq) -> Seq {
        self.publisher.raise_oldest(topic, oldest).await.unwrap();
        topic.tail().oldest
    }

    /// No page more for the file: what SQLite does on a full disk.
    async fn fill_disk(&self) {
        self.pages(1).await;
    }

    async fn free_disk(&self) {
        self.pages(1 << 30).await;
    }

    async fn pages(&self, most: i64) {
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            let sql = format!("PRAGMA max_page_count = {most}");
            connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?;
            Ok(((), Vec::new()))
        };
        self.publisher.transact(act).await.unwrap();
    }

    /// What a change of state that writes gets.
    async fn note(&self, key: &'static str, bytes: usize) -> Result<(), StoreError> {
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            let insert = "INSERT INTO meta (key, value) VALUES (?1, ?2)";
            connection.execute(insert, (key, "x".repeat(bytes)))?;
            Ok(((), Vec::new()))
        };
        self.publisher.transact(act).await.map(|((), _)| ())
    }

    /// Keeps the writer busy until the given thing is dropped: what is offered meanwhile waits together.
    async fn hold(&self) -> Hold {
        let (entered, held) = tokio::sync::oneshot::channel();
        let (free, freed) = std::sync::mpsc::channel::<()>();
        let publisher = self.publisher.clone();
        tokio::spawn(async move {
            let act = move |_: &Connection| -> Result<_, StoreError> {
                let _ = entered.send(());
                let _ = freed.recv();
                Ok(((), Vec::new()))
            };
            let _ = publisher.transact(act).await;
        });
        held.await.unwrap();
        Hold { _free: free }
    }
}

struct Hold {
    _free: std::sync::mpsc::Sender<()>,
}

/// A connection with one subscription, in the order of the live loop.
struct Watch {
    peer: Arc<Peer>,
    reader: Reader,
    store: Arc<Store>,
    /// Pages read from the log.
    fetched: usize,
}

impl Watch {
    /// What is due now.
    async fn due(&mut self) -> Result<Vec<(Seq, String)>, Lost> {
        let mut seen = Vec::new();
        loop {
            match self.reader.pull(usize::MAX) {
                Pull::Slice(slice) => {
                    assert_eq!(slice.items(), slice.events().map(|(_, event)| event).collect::<Vec<_>>().join(","));
                    seen.extend(slice.events().map(|(seq, event)| (seq, event.to_owned())));
                }
                Pull::Nothing => return Ok(seen),
                Pull::Lost(lost) => return Err(lost),
                Pull::InLog => {
                    self.fetched += 1;
                    self.reader.fetch(&self.store).await.unwrap();
                }
            }
        }
    }

    async fn woken(&self) {
        poll_fn(|context| self.peer.wake.poll_raised(context)).await;
    }

    /// Everything up to `last`; sleeps only as the live loop does.
    async fn through(&mut self, last: Seq) -> Vec<(Seq, String)> {
        let mut seen = Vec::new();
        loop {
            seen.extend(self.due().await.unwrap());
            if self.reader.next() > last {
                return seen;
            }
            self.woken().await;
        }
    }
}

/// Notes how far a task was whenever a watcher was woken, on the writer's own thread: once for each group.
struct GroupWaker {
    peer: Arc<Peer>,
    of: Arc<Topic>,
    heads: Mutex<Vec<Seq>>,
    logs: Mutex<Vec<(Gen, Seq)>>,
}

impl GroupWaker {
    /// Watches `through`, and looks at `of`.
    fn enter(stream: &Stream, through: &Arc<Topic>, of: &Arc<Topic>) -> Arc<Self> {
        let peer = Arc::new(Peer::new(1 << 40, "u".into(), "c".into()));
        let watcher = Arc::new(Watcher::new(Arc::clone(&peer), 1, through.head().next()));
        stream.publisher.connections().insert(&through.id, watcher);
        let this = Arc::new(Self { peer, of: Arc::clone(of), heads: Mutex::default(), logs: Mutex::default() });
        this.register();
        this
    }

    fn register(self: &Arc<Self>) {
        let waker = Waker::from(Arc::clone(self));
        while self.peer.wake.poll_raised(&mut Context::from_waker(&waker)).is_ready() {}
    }

    fn heads(&self) -> Vec<Seq> {
        self.heads.lock().unwrap().clone()
    }
}

impl std::task::Wake for GroupWaker {
    fn wake(self: Arc<Self>) {
        self.heads.lock().unwrap().push(self.of.head());
        let (generation, head) = {
            let tail = self.of.tail();
            (tail.generation, tail.head)
        };
        self.logs.lock().unwrap().push((generation, head));
        self.register();
    }
}

fn status(state: State) -> Body {
    Body::Status(Status::new(state, format!("{state:?}")))
}

fn thought(text: &str) -> Body {
    Body::Thought { text: text.to_owned() }
}

fn tool_use(call: &str) -> Body {
    Body::ToolUse { call: call.to_owned(), tool: "shell".to_owned(), input: json!({ "command": "df" }) }
}

fn tool_result(call: &str) -> Body {
    let (call, tool) = (call.to_owned(), "shell".to_owned());
    Body::ToolResult { call, tool, ok: true, output: String::new(), cut_bytes: 0, exit: Some(0), duration_ms: 1 }
}

fn event(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn numbers(events: &[(Seq, String)]) -> Vec<u64> {
    for (seq, text) in events {
        assert_eq!(event(text)["seq"], seq.0, "the number stands in the event");
    }
    events.iter().map(|(seq, _)| seq.0).collect()
}

/// A queue and rings so small that everything has to wait and to be read from the log.
fn tiny() -> Limits {
    Limits {
        ring: ring::Limits { events: 4, bytes: 2048, unread_bytes: 4096 },
        queue: QueueLimits { events: 8, bytes: 64 * 1024 },
        ..Limits::default()
    }
}

/// A queue that takes what a test offers while the writer is held.
fn roomy() -> Limits {
    Limits { queue: QueueLimits { events: 100_000, bytes: 256 << 20 }, queues_bytes: 512 << 20, ..Limits::default() }
}

/// A test that hangs says so.
async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("this must not wait for ever")
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(within(work))
}

type Waiting<T> = std::pin::Pin<Box<dyn Future<Output = Result<T, Refused>> + Send>>;

/// A `publish` that is not polled yet. Pending means that it waits, never that it has used up its share of time.
fn publishing(publisher: &Publisher, topic: &Arc<Topic>, run: Option<RunId>, body: Body) -> Waiting<Seq> {
    let (publisher, topic) = (publisher.clone(), Arc::clone(topic));
    Box::pin(tokio::task::unconstrained(async move { publisher.publish(&topic, run, &body).await }))
}

/// An `offer` that is not polled yet.
fn offering(publisher: &Publisher, topic: &Arc<Topic>, body: Body) -> Waiting<()> {
    let (publisher, topic) = (publisher.clone(), Arc::clone(topic));
    Box::pin(tokio::task::unconstrained(async move { publisher.offer(&topic, None, &body).await }))
}

/// Whether a future that was polled once has to wait.
async fn waits<F: Future + Unpin>(work: &mut F) -> bool {
    poll_fn(|context| std::task::Poll::Ready(std::pin::Pin::new(&mut *work).poll(context).is_pending())).await
}

#[test]
fn spk_17_events_of_many_emitters_are_numbered_without_gaps_and_never_reach_another_task() {
    const TASKS: usize = 4;
    const EMITTERS: usize = 4;
    const EVENTS: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Arc::new(Stream::open(dir.path(), tiny()));
        let mut work = Vec::new();
        for task in 0..TASKS {
            let topic = stream.task(&format!("t{task}")).await;
            for emitter in 0..EMITTERS {
                let (stream, topic) = (Arc::clone(&stream), Arc::clone(&topic));
                work.push(tokio::spawn(async move {
                    for n in 0..EVENTS {
                        let body = thought(&format!("{emitter}.{n}"));
                        stream.publisher.offer(&topic, None, &body).await.unwrap();
                    }
                }));
            }
            // Watchers that come and go while events flow, each from where the last one was.
            let (stream, topic) = (Arc::clone(&stream), Arc::clone(&topic));
            work.push(tokio::spawn(async move {
                let last = Seq((EMITTERS * EVENTS) as u64);
                let (mut seen, mut peer) = (Vec::new(), 0);
                while seen.len() < EMITTERS * EVENTS {
                    peer += 1;
                    let mut watch = stream.watch(&topic, peer, Seq(seen.len() as u64)).await;
                    let upto = Seq((seen.len() as u64 + 40).min(last.0));
                    seen.extend(watch.through(upto).await);
                }
                assert_eq!(numbers(&seen), (1..=last.0).collect::<Vec<_>>());
                let mut of_each = BTreeMap::<String, Vec<usize>>::new();
                for (_, text) in &seen {
                    let event = event(text);
                    assert_eq!(event["task"], topic.id.as_str(), "routed to its own task");
                    let text = event["data"]["text"].as_str().unwrap().to_owned();
                    let (emitter, n) = text.split_once('.').unwrap();
                    of_each.entry(emitter.to_owned()).or_default().push(n.parse().unwrap());
                }
                for order in of_each.values() {
                    assert_eq!(*order, (0..EVENTS).collect::<Vec<_>>(), "each emitter's own order is kept");
                }
            }));
        }
        for task in work {
            task.await.unwrap();
        }
    });
}

#[test]
fn t_05_what_a_watcher_has_seen_is_in_the_file_at_that_moment() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Arc::new(Stream::open(dir.path(), Limits::default()));
        let topic = stream.task("a").await;
        let file =
            Connection::open_with_flags(stream.store.path(), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let emitter = tokio::spawn({
            let (stream, topic) = (Arc::clone(&stream), Arc::clone(&topic));
            async move {
                for _ in 0..500 {
                    stream.publisher.offer(&topic, None, &thought("x")).await.unwrap();
                }
            }
        });
        let mut watch = stream.watch(&topic, 1, Seq(0)).await;
        while watch.reader.next() <= Seq(500) {
            let seen = watch.due().await.unwrap();
            if let Some((seq, _)) = seen.last() {
                let saved = log::bounds(&file, topic.no).unwrap().unwrap();
                assert!(saved.head >= *seq, "{seq} was seen, {} is saved", saved.head);
                let page = log::page(&file, topic.no, *seq).unwrap();
                assert!(page.first().is_some_and(|segment| segment.first() <= *seq && *seq <= segment.last()));
            } else {
                watch.woken().await;
            }
        }
        emitter.await.unwrap();
    });
}

#[test]
fn t_28_no_event_of_a_run_follows_its_terminal_status() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Arc::new(Stream::open(dir.path(), tiny()));
        let topic = stream.task("a").await;
        for _ in 0..20 {
            let run = stream.run(&topic).await;
            let emitters: Vec<_> = (0..4)
                .map(|_| {
                    let (stream, topic) = (Arc::clone(&stream), Arc::clone(&topic));
                    tokio::spawn(async move {
                        loop {
                            match stream.publisher.publish(&topic, Some(run), &thought("late?")).await {
                                Ok(_) => {}
                                Err(refused) => return refused,
                            }
                        }
                    })
                })
                .collect();
            stream.say(&topic, None, "others go on").await;
            stream.publisher.publish(&topic, Some(run), &status(State::Cancelled)).await.unwrap();
            for emitter in emitters {
                assert_eq!(emitter.await.unwrap(), Refused::RunOver);
            }
            let again = stream.publisher.publish(&topic, Some(run), &status(State::Failed)).await;
            assert_eq!(again, Err(Refused::RunOver), "it ends once");
        }
        let mut over = BTreeSet::new();
        for (seq, text) in stream.logged(&topic) {
            let event = event(&text);
            if let Some(run) = event["run"].as_str() {
                assert!(!over.contains(run), "{seq} follows the end of its run");
                if event["data"]["state"] == "cancelled" {
                    over.insert(run.to_owned());
                }
            }
        }
        assert_eq!(over.len(), 20);
    });
}

#[test]
fn t_28_what_stands_behind_the_end_of_its_run_in_the_same_group_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let hold = stream.hold().await;
        let mut end = publishing(&stream.publisher, &topic, Some(run), status(State::Succeeded));
        let mut late = publishing(&stream.publisher, &topic, Some(run), thought("late"));
        assert!(waits(&mut end).await && waits(&mut late).await);
        drop(hold);
        assert_eq!(end.await, Ok(Seq(3)));
        assert_eq!(late.await, Err(Refused::RunOver));
        assert_eq!(numbers(&stream.logged(&topic)), [1, 2, 3], "a refused event takes no number");
    });
}

#[test]
fn segments_have_at_most_256_events_and_32_kib_and_one_larger_event_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let hold = stream.hold().await;
        for n in 0..1500_usize {
            let bytes = if n == 700 {
                40_000
            } else if n > 700 {
                1000
            } else {
                1
            };
            stream.publisher.offer(&topic, None, &thought(&"x".repeat(bytes))).await.unwrap();
        }
        drop(hold);
        let last = stream.say(&topic, None, "last").await;
        let (mut next, mut full, mut large) = (Seq(1), 0, 0);
        while next <= last {
            for segment in stream.store.read_blocking(|connection| log::page(connection, topic.no, next)).unwrap() {
                assert_eq!(segment.first(), next, "segments follow on");
                assert!(segment.len() <= 256);
                assert!(segment.items().len() <= 32 * 1024 || segment.len() == 1);
                full += usize::from(segment.len() == 256);
                large += usize::from(segment.items().len() > 32 * 1024);
                next = segment.last().next();
            }
        }
        assert!(full >= 2, "what waits together is stored together");
        assert_eq!(large, 1);
    });
}

#[test]
fn a_group_has_at_most_4096_events() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let groups = GroupWaker::enter(&stream, &topic, &topic);
        let hold = stream.hold().await;
        for _ in 0..10_000 {
            stream.publisher.offer(&topic, None, &thought("x")).await.unwrap();
        }
        drop(hold);
        stream.say(&topic, None, "last").await;
        let heads = groups.heads();
        let sizes: Vec<u64> =
            heads.iter().scan(0, |before, head| Some(head.0 - std::mem::replace(before, head.0))).collect();
        assert!(sizes.iter().all(|size| *size <= 4096), "{sizes:?}");
        assert!(sizes.contains(&4096), "nobody else waits: the whole group is its own: {sizes:?}");
        assert!(sizes.len() <= 5, "no lingering, no group of one while more waits: {sizes:?}");
    });
}

#[test]
fn a_group_has_at_most_4_mib() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let groups = GroupWaker::enter(&stream, &topic, &topic);
        let hold = stream.hold().await;
        let text = "x".repeat(50_000);
        for _ in 0..200 {
            stream.publisher.offer(&topic, None, &thought(&text)).await.unwrap();
        }
        drop(hold);
        stream.say(&topic, None, "last").await;
        let sizes: Vec<u64> =
            groups.heads().iter().scan(0, |before, head| Some(head.0 - std::mem::replace(before, head.0))).collect();
        assert!(sizes.iter().all(|size| size * 50_000 <= 4 * 1024 * 1024), "{sizes:?}");
        assert!(sizes.contains(&83), "{sizes:?}");
    });
}

#[test]
fn a_task_that_floods_gets_a_quarter_of_a_group_while_others_wait() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let (flood, quiet) = (stream.task("flood").await, stream.task("quiet").await);
        // Wakes when the quiet one's event is shown, and looks how far the flood was then.
        let groups = GroupWaker::enter(&stream, &quiet, &flood);
        let hold = stream.hold().await;
        for _ in 0..20_000 {
            stream.publisher.offer(&flood, None, &thought("x")).await.unwrap();
        }
        let mut said = publishing(&stream.publisher, &quiet, None, thought("one"));
        assert!(waits(&mut said).await);
        drop(hold);
        said.await.unwrap();
        assert_eq!(groups.heads(), [Seq(1024)], "the one event went with the first group after it was offered");
        stream.say(&flood, None, "last").await;
        assert_eq!(flood.head(), Seq(20_001), "and the flood loses nothing by it");
    });
}

#[test]
fn a_place_in_the_queue_comes_back_when_an_emitter_gives_up_waiting() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let limits = Limits { queue: QueueLimits { events: 50, bytes: 1000 }, ..Limits::default() };
        let stream = Stream::open(dir.path(), limits);
        let topic = stream.task("a").await;
        let hold = stream.hold().await;
        stream.publisher.offer(&topic, None, &thought(&"x".repeat(900))).await.unwrap();
        for _ in 0..1000 {
            // Has its place, waits for its bytes, and gives up.
            let mut given_up = offering(&stream.publisher, &topic, thought(&"y".repeat(900)));
            assert!(waits(&mut given_up).await);
        }
        drop(hold);
        assert_eq!(stream.say(&topic, None, "z").await, Seq(2), "none of those who gave up was written");
        let hold = stream.hold().await;
        for n in 0..50 {
            let mut taken = offering(&stream.publisher, &topic, thought("z"));
            assert!(!waits(&mut taken).await, "place {n} is there");
        }
        drop(hold);
    });
}

#[test]
fn who_waits_when_the_server_stops_is_told_and_what_was_taken_is_written() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        let hold = stream.hold().await;
        let mut taken = Vec::new();
        for n in 0..8 {
            let mut said = publishing(&stream.publisher, &topic, None, thought(&n.to_string()));
            assert!(waits(&mut said).await);
            taken.push(said);
        }
        let mut waiting = offering(&stream.publisher, &topic, thought("waits in front of a full queue"));
        assert!(waits(&mut waiting).await);
        let Stream { store, publisher, writer } = stream;
        // The writer stops once it is let go; the stop must be asked for before that.
        let stopping = tokio::task::spawn_blocking(move || writer.stop());
        let refused = loop {
            // Refused at once from the moment of the stop on, whether or not the queue has a place.
            let mut asked = Box::pin(publisher.transact::<_, StoreError, _>(|_| Ok(((), Vec::new()))));
            match poll_fn(|context| std::task::Poll::Ready(asked.as_mut().poll(context))).await {
                std::task::Poll::Ready(answer) => break answer,
                std::task::Poll::Pending => tokio::task::yield_now().await,
            }
        };
        assert!(matches!(refused, Err(StoreError::Stopping)));
        drop(hold);
        stopping.await.unwrap();
        for (n, said) in (1..).zip(taken) {
            assert_eq!(said.await, Ok(Seq(n)));
        }
        assert_eq!(waiting.await, Err(Refused::Stopping));
        assert_eq!(publisher.offer(&topic, None, &thought("later")).await, Err(Refused::Stopping));
        assert_eq!(publisher.publish(&topic, None, &status(State::Failed)).await, Err(Refused::Stopping));
        let head = store.read_blocking(|connection| log::bounds(connection, topic.no)).unwrap().unwrap().head;
        assert_eq!(head, Seq(8));
    });
}

#[test]
fn a_full_disk_does_not_keep_the_server_from_stopping_and_all_who_wait_are_told() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let (one, other, third) = (stream.task("a").await, stream.task("b").await, stream.task("c").await);
        stream.fill_disk().await;
        let hold = stream.hold().await;
        let mut work = Vec::new();
        for topic in [&one, &other] {
            for _ in 0..20 {
                let mut said = publishing(&stream.publisher, topic, None, thought(&"x".repeat(20_000)));
                assert!(waits(&mut said).await);
                work.push(said);
            }
        }
        let mut writable = stream.publisher.writable();
        drop(hold);
        writable.wait_for(|writable| *writable != Writable::Yes).await.unwrap();
        // Waits in its queue behind the group that could not be written.
        let mut behind = publishing(&stream.publisher, &third, None, thought("x"));
        assert!(waits(&mut behind).await);
        work.push(behind);
        let Stream { store: _store, publisher: _publisher, writer } = stream;
        tokio::task::spawn_blocking(move || writer.stop()).await.unwrap();
        for said in work {
            assert_eq!(said.await, Err(Refused::Stopping));
        }
    });
}

#[test]
fn while_the_store_cannot_be_written_emitters_wait_nothing_is_shown_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let mut watch = stream.watch(&topic, 1, Seq(0)).await;
        assert_eq!(watch.due().await.unwrap().len(), 2);
        stream.fill_disk().await;
        let offered = Arc::new(AtomicU64::new(0));
        let emitter = tokio::spawn({
            let (publisher, topic, offered) = (stream.publisher.clone(), Arc::clone(&topic), Arc::clone(&offered));
            async move {
                for n in 0..30 {
                    let body = thought(&format!("{n} {}", "x".repeat(20_000)));
                    publisher.offer(&topic, Some(run), &body).await.unwrap();
                    offered.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let mut writable = stream.publisher.writable();
        let why = writable.wait_for(|writable| *writable != Writable::Yes).await.unwrap().clone();
        assert!(matches!(why, Writable::No { ref why, .. } if why.contains("full")), "{why:?}");
        for n in 0..20 {
            let key: &'static str = ["a", "b", "c", "d"][n % 4];
            let refused = stream.note(key, 50_000).await;
            assert!(matches!(refused, Err(StoreError::NotWritable(_))), "a change of state fails at once: {refused:?}");
        }
        assert!(offered.load(Ordering::SeqCst) <= 8, "emitters wait behind a bounded queue");
        assert!(!emitter.is_finished());
        assert!(watch.due().await.unwrap().is_empty(), "nothing that is not saved is seen");
        assert_eq!((topic.head(), topic.tail().head), (Seq(2), Seq(2)));
        assert_eq!(stream.logged(&topic).len(), 2);
        // The end of a run does not wait for a place behind its own output.
        let mut end = publishing(&stream.publisher, &topic, None, status(State::Failed));
        assert!(waits(&mut end).await);
        stream.free_disk().await;
        emitter.await.unwrap();
        end.await.unwrap();
        writable.wait_for(|writable| *writable == Writable::Yes).await.unwrap();
        stream.publisher.publish(&topic, Some(run), &status(State::Succeeded)).await.unwrap();
        let seen = watch.through(topic.head()).await;
        assert_eq!(numbers(&seen), (3..=34).collect::<Vec<_>>());
        let said: Vec<_> = seen
            .iter()
            .filter_map(|(_, text)| event(text)["data"]["text"].as_str()?.split_once(' ')?.0.parse::<u64>().ok())
            .collect();
        assert_eq!(said, (0..30).collect::<Vec<_>>(), "none lost, none doubled, in order");
        assert_eq!(stream.logged(&topic)[2..], seen);
    });
}

/// A job of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    /// Numbers so many events.
    Says(usize),
    /// Claims the slot; where no job of the group does, it was claimed before.
    Claims,
    /// Numbers a hundred events, more than a segment, and then claims the slot that is taken.
    Fails,
    /// Makes a change and refuses.
    Refuses,
    /// Makes a change and ends by a panic.
    Panics,
}

#[test]
fn what_one_job_fails_at_is_undone_and_concerns_nobody_else_wherever_in_its_group_it_is() {
    const SHAPES: &[&[Act]] = &[
        &[Act::Fails],
        &[Act::Refuses],
        &[Act::Panics],
        &[Act::Fails, Act::Refuses, Act::Panics],
        &[Act::Panics, Act::Fails, Act::Says(2)],
        &[Act::Fails, Act::Says(3), Act::Refuses, Act::Says(2)],
        &[Act::Refuses, Act::Says(3), Act::Says(2)],
        &[Act::Panics, Act::Says(3), Act::Fails, Act::Says(2)],
        &[Act::Says(3), Act::Fails, Act::Panics, Act::Says(2)],
        &[Act::Says(3), Act::Panics, Act::Says(2), Act::Fails],
        &[Act::Claims, Act::Says(3), Act::Fails, Act::Panics, Act::Says(2)],
        &[Act::Refuses, Act::Claims, Act::Fails, Act::Says(2)],
    ];
    for shape in SHAPES {
        for with_batch in [false, true] {
            block_on(group_with_failing_jobs(shape, with_batch));
        }
    }
}

/// Has the jobs written in one group; `with_batch` there is an event of an emitter behind them.
async fn group_with_failing_jobs(shape: &[Act], with_batch: bool) {
    let dir = tempfile::tempdir().unwrap();
    let stream = Stream::open(dir.path(), roomy());
    let topic = stream.task("a").await;
    let slot = jiff::Timestamp::UNIX_EPOCH;
    let queued = || {
        let mut status = Status::new(State::Queued, "x".repeat(600));
        (status.scheduled_for, status.attempt) = (Some(slot), Some(1));
        (Arc::clone(&topic), Offer::new(Some(RunId::new()), slot, &Body::Status(status)))
    };
    let says = |n: usize, letter: &str| -> Vec<_> {
        let offer = || Offer::new(None, slot, &thought(&letter.repeat(600)));
        (0..n).map(|_| (Arc::clone(&topic), offer())).collect()
    };
    let mut head = 0;
    if !shape.contains(&Act::Claims) {
        let claim = vec![queued()];
        let claimed = stream.publisher.transact::<_, StoreError, _>(move |_| Ok(((), claim))).await;
        assert_eq!(claimed.unwrap().1, [Seq(1)]);
        head = 1;
    }
    let hold = stream.hold().await;
    let mut jobs = Vec::new();
    for (index, act) in shape.iter().enumerate() {
        let offers = match act {
            Act::Says(n) => says(*n, "y"),
            Act::Claims => vec![queued()],
            Act::Fails => says(100, "n").into_iter().chain([queued()]).collect(),
            Act::Refuses | Act::Panics => Vec::new(),
        };
        let (publisher, act) = (stream.publisher.clone(), *act);
        let mut job = Box::pin(async move {
            let change = move |connection: &Connection| {
                connection.execute("INSERT INTO meta (key, value) VALUES (?1, '')", [format!("job {index}")])?;
                match act {
                    Act::Refuses => Err(StoreError::Broken("refused".to_owned())),
                    Act::Panics => panic!("a fault in a change of state"),
                    Act::Says(_) | Act::Claims | Act::Fails => Ok(((), offers)),
                }
            };
            publisher.transact::<_, StoreError, _>(change).await
        });
        assert!(waits(&mut job).await);
        jobs.push((act, job));
    }
    let mut batch = publishing(&stream.publisher, &topic, None, thought(&"y".repeat(600)));
    if with_batch {
        assert!(waits(&mut batch).await);
    }
    drop(hold);
    for (act, job) in jobs {
        match (act, job.await) {
            (Act::Says(_) | Act::Claims, Ok(((), numbers))) => {
                let said = if let Act::Says(n) = act { n } else { 1 };
                let expected: Vec<_> = (head + 1..).take(said).map(Seq).collect();
                assert_eq!(numbers, expected, "in {shape:?}");
                head += said as u64;
            }
            (Act::Fails, Err(StoreError::Broken(why))) if why.contains("UNIQUE") => {}
            (Act::Refuses, Err(StoreError::Broken(why))) if why == "refused" => {}
            (Act::Panics, Err(_)) => {}
            (act, done) => panic!("{act:?} in {shape:?}: {done:?}"),
        }
    }
    assert_eq!(batch.await.unwrap(), Seq(head + 1), "in {shape:?}");
    assert_eq!(*stream.publisher.writable().borrow(), Writable::Yes, "the store is not to blame");
    let logged = stream.logged(&topic);
    assert_eq!(numbers(&logged), (1..=head + 1).collect::<Vec<_>>(), "in {shape:?}");
    assert!(logged.iter().all(|(_, text)| !text.contains("nnn")), "what was undone is nowhere: {shape:?}");
    let changes = stream.store.read_blocking(|connection| {
        let mut statement = connection.prepare("SELECT key FROM meta WHERE key LIKE 'job %' ORDER BY key")?;
        statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
    });
    let done = shape.iter().enumerate().filter(|(_, act)| matches!(act, Act::Says(_) | Act::Claims));
    let done: Vec<_> = done.map(|(index, _)| format!("job {index}")).collect();
    assert_eq!(changes.unwrap(), done, "in {shape:?}");
    let mut watch = stream.watch(&topic, 1, Seq(0)).await;
    assert_eq!(watch.due().await.unwrap(), logged, "the ring says what the log says: {shape:?}");
    assert_eq!(topic.tail().bytes, logged.iter().map(|(_, text)| text.len() as u64).sum::<u64>());
}

#[test]
fn when_the_store_ends_the_transaction_under_a_job_that_does_not_notice_nothing_of_its_group_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let hold = stream.hold().await;
        let mut unaware = Box::pin(stream.publisher.transact::<_, StoreError, _>(|connection| {
            connection.execute_batch("ROLLBACK")?;
            Ok(((), Vec::new()))
        }));
        let mut next = Box::pin(stream.publisher.transact::<_, StoreError, _>(|connection| {
            connection.execute("INSERT INTO meta (key, value) VALUES ('next', '')", [])?;
            Ok(((), Vec::new()))
        }));
        let mut event = publishing(&stream.publisher, &topic, None, thought("e"));
        assert!(waits(&mut unaware).await && waits(&mut next).await && waits(&mut event).await);
        drop(hold);
        assert!(matches!(unaware.await, Err(StoreError::NotWritable(_))));
        assert!(matches!(next.await, Err(StoreError::NotWritable(_))));
        assert_eq!(event.await.unwrap(), Seq(1), "an event is tried again");
        let saved = stream
            .store
            .read_blocking(|connection| connection.prepare("SELECT 1 FROM meta WHERE key = 'next'")?.exists([]));
        assert!(!saved.unwrap(), "what was refused is not there");
        assert_eq!(numbers(&stream.logged(&topic)), [1]);
    });
}

#[test]
fn when_the_store_cannot_even_begin_every_job_hears_that_and_not_that_the_server_stops() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let opened = Store::open(dir.path(), Durability::Normal, 64).unwrap();
        opened.writer.busy_timeout(Duration::ZERO).unwrap();
        let (publisher, _writer) = Publisher::start(opened.writer, Limits::default(), Clock::system()).unwrap();
        let other = Connection::open(opened.store.path()).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let refused = publisher.transact::<_, StoreError, _>(|_| Ok(((), Vec::new()))).await;
        assert!(matches!(refused, Err(StoreError::NotWritable(_))), "{refused:?}");
        other.execute_batch("ROLLBACK").unwrap();
        publisher.transact::<_, StoreError, _>(|_| Ok(((), Vec::new()))).await.unwrap();
    });
}

#[test]
fn ring_and_log_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        for n in 0..50 {
            stream.say(&topic, None, &format!("{n} é \" \\ \u{1} 😀")).await;
        }
        let mut from_ring = stream.watch(&topic, 1, Seq(7)).await;
        let ring = from_ring.due().await.unwrap();
        assert_eq!(from_ring.fetched, 0);
        topic.tail().ring.clear();
        let mut from_log = stream.watch(&topic, 2, Seq(7)).await;
        let log = from_log.due().await.unwrap();
        assert!(from_log.fetched > 0);
        assert_eq!(ring, log);
        assert_eq!(numbers(&log), (8..=50).collect::<Vec<_>>());
        for (_, text) in log {
            assert_eq!(serde_json::to_string(&event(&text)["seq"]).unwrap(), event(&text)["seq"].to_string());
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn t_07_a_resume_gives_exactly_what_follows_the_cursor_from_ring_and_log(
        batches in prop::collection::vec(prop::collection::vec(1usize..3000, 1..12), 1..12),
        cursors in prop::collection::vec(any::<prop::sample::Index>(), 6),
        max_bytes in 1usize..5000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let stream = Stream::open(dir.path(), Limits { queue: roomy().queue, ..tiny() });
            let topic = stream.task("a").await;
            for sizes in &batches {
                let hold = stream.hold().await;
                for size in sizes {
                    stream.publisher.offer(&topic, None, &thought(&"x".repeat(*size))).await.unwrap();
                }
                drop(hold);
            }
            stream.say(&topic, None, "last").await;
            let logged = stream.logged(&topic);
            for (peer, cursor) in (1..).zip(&cursors) {
                let after = cursor.index(logged.len() + 1);
                let mut watch = stream.watch(&topic, peer, Seq(after as u64)).await;
                let mut seen = Vec::new();
                loop {
                    match watch.reader.pull(max_bytes) {
                        Pull::Slice(slice) => {
                            assert!(slice.items().len() <= max_bytes || slice.first == slice.last);
                            seen.extend(slice.events().map(|(seq, event)| (seq, event.to_owned())));
                        }
                        Pull::InLog => watch.reader.fetch(&watch.store).await.unwrap(),
                        Pull::Nothing => break,
                        Pull::Lost(lost) => panic!("{lost:?}"),
                    }
                }
                assert_eq!(seen, logged[after..], "after {after}");
            }
        });
    }
}

#[test]
fn t_06_a_thousand_reconnections_under_a_fast_stream_see_every_event_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Arc::new(Stream::open(dir.path(), tiny()));
        let topic = stream.task("a").await;
        let over = Arc::new(AtomicBool::new(false));
        let emitter = tokio::spawn({
            let (stream, topic, over) = (Arc::clone(&stream), Arc::clone(&topic), Arc::clone(&over));
            async move {
                while !over.load(Ordering::SeqCst) {
                    stream.publisher.offer(&topic, None, &thought("x")).await.unwrap();
                }
            }
        });
        let mut seen = Vec::new();
        let mut old = None;
        for peer in 0..1000 {
            let mut watch = stream.watch(&topic, peer, Seq(seen.len() as u64)).await;
            if peer % 3 == 0 {
                // The one before closes only now.
                drop(old.take());
            }
            seen.extend(watch.due().await.unwrap());
            if peer % 5 == 0 {
                seen.extend(watch.through(Seq(seen.len() as u64 + 1)).await);
            }
            old = Some(watch);
        }
        over.store(true, Ordering::SeqCst);
        emitter.await.unwrap();
        let last = stream.say(&topic, None, "last").await;
        let mut watch = stream.watch(&topic, 1000, Seq(seen.len() as u64)).await;
        seen.extend(watch.through(last).await);
        assert!(last >= Seq(200), "a fast stream");
        assert_eq!(numbers(&seen), (1..=last.0).collect::<Vec<_>>());
    });
}

#[test]
fn t_02_who_comes_back_to_a_silent_task_gets_what_it_missed_without_a_new_event() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        let watch = stream.watch(&topic, 1, Seq(0)).await;
        drop(watch);
        let run = stream.run(&topic).await;
        stream.publisher.publish(&topic, Some(run), &status(State::Succeeded)).await.unwrap();
        let mut again = stream.watch(&topic, 2, Seq(0)).await;
        assert_eq!(numbers(&again.due().await.unwrap()), [1, 2, 3]);
    });
}

#[test]
fn t_03_an_old_connection_that_closes_after_the_new_one_opened_takes_nothing_from_it() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        let old = stream.watch(&topic, 1, Seq(0)).await;
        let mut new = stream.watch(&topic, 2, Seq(0)).await;
        drop(old);
        assert!(new.due().await.unwrap().is_empty());
        stream.say(&topic, None, "x").await;
        new.woken().await;
        assert_eq!(numbers(&new.due().await.unwrap()), [1]);
    });
}

#[test]
fn t_08_more_than_is_replayed_is_said_and_never_skipped() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        for _ in 0..20 {
            stream.say(&topic, None, "x").await;
        }
        let (watch, _) = stream.subscribe(&topic, 1, None, Seq(0)).await;
        let generation = Some(topic.tail().generation);
        let bytes: u64 = stream.logged(&topic)[5..].iter().map(|(_, text)| text.len() as u64).sum();
        let ask = |after, limits| watch.reader.verdict(&stream.store, generation, Seq(after), limits);
        let all = u64::MAX;
        let events = |events| ReplayLimits { events, bytes: all };
        let sized = |bytes| ReplayLimits { events: all, bytes };
        assert_eq!(ask(5, events(15)).await.unwrap().0, Verdict::Resume(Seq(6)), "inclusive");
        assert_eq!(ask(5, events(14)).await.unwrap().0, Verdict::Reset(Why::TooFar));
        assert_eq!(ask(5, sized(bytes)).await.unwrap().0, Verdict::Resume(Seq(6)), "inclusive");
        assert_eq!(ask(5, sized(bytes - 1)).await.unwrap().0, Verdict::Reset(Why::TooFar));
        assert_eq!(ask(0, events(19)).await.unwrap().0, Verdict::Reset(Why::FromStart));
        assert_eq!(ask(0, events(20)).await.unwrap().0, Verdict::Resume(Seq(1)));
        assert_eq!(ask(20, events(0)).await.unwrap().0, Verdict::Resume(Seq(21)), "nothing is missed");
    });
}

#[test]
fn retention_is_said_to_who_wanted_what_it_took_and_nothing_below_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        stream.publisher.publish(&topic, Some(run), &status(State::Failed)).await.unwrap();
        for _ in 0..17 {
            stream.say(&topic, None, "x").await;
        }
        let (mut behind, mut ahead) = (stream.watch(&topic, 1, Seq(3)).await, stream.watch(&topic, 2, Seq(10)).await);
        assert_eq!(stream.retain_from(&topic, Seq(11)).await, Seq(11));
        behind.woken().await;
        assert_eq!(behind.due().await.unwrap_err(), Lost::Retention);
        assert_eq!(numbers(&ahead.due().await.unwrap()), (11..=20).collect::<Vec<_>>());
        assert_eq!(stream.logged(&topic).first().unwrap().0, Seq(11));
        let generation = Some(topic.tail().generation);
        assert_eq!(stream.subscribe(&topic, 3, generation, Seq(9)).await.1, Verdict::Reset(Why::Retention));
        assert_eq!(stream.subscribe(&topic, 4, generation, Seq(10)).await.1, Verdict::Resume(Seq(11)));
        let back = stream.store.read_blocking(|connection| log::page_back(connection, topic.no, Seq(10))).unwrap();
        assert!(back.iter().all(|segment| segment.first() >= Seq(11)));
        // T-29: the end of the run outlives its events.
        let snapshot = ahead.reader.snapshot_at_head(&stream.store).await.unwrap();
        assert_eq!(snapshot.runs[0].state, RunState::Failed);
        assert_eq!(stream.retain_from(&topic, Seq(99)).await, Seq(21), "an empty log has oldest = head + 1");
        assert_eq!(stream.say(&topic, None, "on").await, Seq(21), "numbers go on");
    });
}

#[test]
fn t_29_the_end_of_a_run_is_replayed_and_stays_when_the_ring_and_the_events_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let watch = stream.watch(&topic, 1, Seq(2)).await;
        drop(watch);
        let mut failed = Status::new(State::Failed, "no space");
        failed.exit = Some(3);
        stream.publisher.publish(&topic, Some(run), &Body::Status(failed)).await.unwrap();
        for _ in 0..40 {
            stream.say(&topic, None, "much later").await;
        }
        let mut back = stream.watch(&topic, 2, Seq(2)).await;
        let (seq, first) = back.due().await.unwrap().remove(0);
        assert_eq!(
            (seq, &event(&first)["data"]["state"], &event(&first)["data"]["exit"]),
            (Seq(3), &json!("failed"), &json!(3))
        );
        stream.retain_from(&topic, Seq(30)).await;
        let snapshot = back.reader.snapshot_at_head(&stream.store).await.unwrap();
        let (run, exit) = (snapshot.runs[0].id == run, snapshot.runs[0].exit);
        assert_eq!((snapshot.runs.len(), run, exit), (1, true, Some(3)));
    });
}

#[test]
fn a_reader_of_an_old_log_gets_nothing_of_the_new_one_also_when_the_task_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        stream.say(&topic, None, "of the old log").await;
        let mut slow = stream.watch(&topic, 1, Seq(1)).await;
        let old = topic.tail().generation;
        let mut new = {
            let renewed = stream.publisher.renew(&topic, old).await.unwrap();
            assert_ne!(renewed, Some(old));
            stream.watch(&topic, 2, Seq(1)).await
        };
        stream.say(&topic, None, "of the new log").await;
        stream.publisher.forget(&topic);
        assert!(matches!(slow.reader.pull(usize::MAX), Pull::Lost(Lost::Deleted)));
        assert!(matches!(new.reader.pull(usize::MAX), Pull::Slice(_)), "what was said before the end is still told");
    });
}

#[test]
fn a_deleted_task_is_said_to_its_watchers_and_refused_to_its_emitters() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        stream.say(&topic, None, "x").await;
        let mut watch = stream.watch(&topic, 1, Seq(0)).await;
        let hold = stream.hold().await;
        let mut queued = Vec::new();
        for _ in 0..8 {
            let mut said = publishing(&stream.publisher, &topic, None, thought("queued"));
            assert!(waits(&mut said).await);
            queued.push(said);
        }
        let mut waiting = offering(&stream.publisher, &topic, thought("in front of the queue"));
        assert!(waits(&mut waiting).await);
        stream.publisher.forget(&topic);
        assert_eq!(waiting.await, Err(Refused::LogGone), "told at once");
        drop(hold);
        for said in queued {
            assert_eq!(said.await, Err(Refused::LogGone));
        }
        watch.woken().await;
        assert_eq!(watch.due().await.unwrap_err(), Lost::Deleted);
        assert!(stream.publisher.topic(&topic.id).is_none());
        // Another of the same name is another: forgetting the old one once more does not touch it.
        drop(watch);
        let no = topic.no;
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            while !log::delete_step(connection, no)? {}
            connection.execute("DELETE FROM tasks WHERE no = ?1", [no.0])?;
            Ok(((), Vec::new()))
        };
        stream.publisher.transact(act).await.unwrap();
        let again = stream.task("a").await;
        stream.publisher.forget(&topic);
        assert_eq!(stream.say(&again, None, "new").await, Seq(1));
        assert_eq!(stream.publisher.offer(&topic, None, &thought("old")).await, Err(Refused::LogGone));
        assert!(stream.logged(&topic).is_empty());
    });
}

#[test]
fn of_a_task_deleted_in_the_group_of_its_last_events_nothing_is_shown_and_no_rows_are_left() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let hold = stream.hold().await;
        let offer = Offer::new(None, jiff::Timestamp::UNIX_EPOCH, &thought(&"x".repeat(100_000)));
        let offers = vec![(Arc::clone(&topic), offer)];
        let mut last = Box::pin(stream.publisher.transact::<_, StoreError, _>(move |_| Ok(((), offers))));
        let no = topic.no;
        let mut delete = Box::pin(stream.publisher.delete(&topic, move |connection| -> Result<_, StoreError> {
            Ok(connection.execute("UPDATE tasks SET id = '~' || no WHERE no = ?1", [no.0])?)
        }));
        let mut late = publishing(&stream.publisher, &topic, None, thought("late"));
        assert!(waits(&mut last).await && waits(&mut delete).await && waits(&mut late).await);
        drop(hold);
        assert_eq!(last.await.unwrap().1, [Seq(1)]);
        delete.await.unwrap();
        assert_eq!(late.await, Err(Refused::LogGone), "the writer takes changes of state before what is queued");
        assert_eq!(topic.head(), Seq(0), "nobody is shown what was said of a task that is gone");
        let count = |sql: &'static str| {
            stream.store.read_blocking(|c| c.query_row(sql, [], |row| row.get::<_, i64>(0))).unwrap()
        };
        assert_eq!(count("SELECT head FROM tasks"), 1, "the late word has no number");
        let bury = move |connection: &Connection| -> Result<_, StoreError> {
            while !log::delete_step(connection, no)? {}
            Ok(((), Vec::new()))
        };
        stream.publisher.transact(bury).await.unwrap();
        assert_eq!(count("SELECT count(*) FROM segments"), 0);
        assert_eq!(count("SELECT count(*) FROM whole_events"), 0);
    });
}

#[test]
fn a_run_of_a_task_that_is_gone_is_not_written_and_stands_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let mut run = topic.tail().fold.run(run).cloned().unwrap();
        run.id = RunId::new();
        let gone = TaskNo(topic.no.0 + 1);
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            log::project_run(connection, gone, &run)?;
            Ok(((), Vec::new()))
        };
        stream.publisher.transact(act).await.unwrap();
        let count = |c: &Connection| c.query_row("SELECT count(*) FROM runs", [], |row| row.get::<_, i64>(0));
        assert_eq!(stream.store.read_blocking(count).unwrap(), 1);
    });
}

#[test]
fn t_09_a_log_that_was_replaced_is_said_and_an_old_cursor_is_no_position_in_it() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        for _ in 0..5 {
            stream.say(&topic, None, "x").await;
        }
        let old = topic.tail().generation;
        let mut watch = stream.watch(&topic, 1, Seq(5)).await;
        let (no, new) = (topic.no, Gen::random());
        stream
            .publisher
            .transact::<_, StoreError, _>(move |connection| Ok((log::set_generation(connection, no, new)?, Vec::new())))
            .await
            .unwrap();
        topic.tail().generation = new;
        stream.publisher.wake_all(&topic);
        watch.woken().await;
        assert_eq!(watch.due().await.unwrap_err(), Lost::Replaced);
        assert_eq!(stream.subscribe(&topic, 2, Some(old), Seq(3)).await.1, Verdict::Reset(Why::Generation));
        assert_eq!(stream.subscribe(&topic, 3, Some(old), Seq(0)).await.1, Verdict::Resume(Seq(1)));
        assert_eq!(stream.subscribe(&topic, 4, Some(new), Seq(6)).await.1, Verdict::Reset(Why::Future));
        assert_eq!(stream.subscribe(&topic, 5, Some(new), Seq(3)).await.1, Verdict::Resume(Seq(4)));
    });
}

#[test]
fn t_09_after_a_restart_numbers_go_on_and_open_runs_and_calls_are_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        let ended = stream.run(&topic).await;
        let open = stream.run(&topic).await;
        for call in ["c1", "c2"] {
            stream.publisher.publish(&topic, Some(open), &tool_use(call)).await.unwrap();
        }
        stream.publisher.publish(&topic, Some(open), &tool_result("c1")).await.unwrap();
        stream.publisher.publish(&topic, Some(ended), &tool_use("never closed")).await.unwrap();
        stream.publisher.publish(&topic, Some(ended), &status(State::TimedOut)).await.unwrap();
        stream.say(&topic, Some(open), "x").await;
        let before = Remembered::of(&topic);
        let cursor = topic.head();
        let logged = stream.logged(&topic);
        let Stream { store, writer, publisher } = stream;
        tokio::task::spawn_blocking(move || writer.stop()).await.unwrap();
        drop((store, publisher, topic));

        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.publisher.topic(&"a".parse().unwrap()).unwrap();
        assert_eq!(Remembered::of(&topic), before);
        assert_eq!(before.calls, [(Seq(6), open, "c2".to_owned())]);
        assert_eq!(before.runs.iter().map(|run| run.id).collect::<Vec<_>>(), [open]);
        assert_eq!(stream.logged(&topic), logged);
        let mut watch = stream.watch(&topic, 1, cursor).await;
        let next = stream.say(&topic, Some(open), "on").await;
        assert_eq!(next, cursor.next());
        assert_eq!(numbers(&watch.through(next).await), [next.0], "the old cursor goes on without loss");
        let over = stream.publisher.publish(&topic, Some(ended), &thought("late")).await;
        assert_eq!(over, Err(Refused::RunOver), "what was over stays over");
    });
}

#[test]
fn a_run_whose_beginning_retention_took_is_still_open_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        let (ended, open) = (stream.run(&topic).await, stream.run(&topic).await);
        for _ in 0..20 {
            stream.say(&topic, Some(open), "x").await;
        }
        stream.publisher.publish(&topic, Some(ended), &tool_use("never closed")).await.unwrap();
        stream.publisher.publish(&topic, Some(ended), &status(State::Failed)).await.unwrap();
        stream.publisher.publish(&topic, Some(open), &tool_use("c1")).await.unwrap();
        stream.retain_from(&topic, Seq(10)).await;
        let before = Remembered::of(&topic);
        let Stream { store, writer, publisher } = stream;
        tokio::task::spawn_blocking(move || writer.stop()).await.unwrap();
        drop((store, publisher, topic));
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.publisher.topic(&"a".parse().unwrap()).unwrap();
        assert_eq!(Remembered::of(&topic), before);
        stream.publisher.publish(&topic, Some(open), &status(State::Succeeded)).await.unwrap();
    });
}

/// What a stream remembers.
#[derive(Debug, PartialEq)]
struct Remembered {
    generation: Gen,
    oldest: Seq,
    head: Seq,
    bytes: u64,
    runs: Vec<rejoin::record::Run>,
    calls: Vec<(Seq, RunId, String)>,
}

impl Remembered {
    fn of(topic: &Topic) -> Self {
        let tail = topic.tail();
        Self {
            generation: tail.generation,
            oldest: tail.oldest,
            head: tail.head,
            bytes: tail.bytes,
            runs: tail.fold.runs().cloned().collect(),
            calls: tail.fold.calls().iter().map(|call| (call.seq, call.run, call.call.clone())).collect(),
        }
    }
}

/// The fold once more, as a client would write it from the events alone.
#[derive(Debug, Default, PartialEq)]
struct Folded {
    /// state, first, last, words
    runs: BTreeMap<String, (String, u64, u64, String)>,
    calls: Vec<(u64, Value)>,
}

impl Folded {
    fn through(events: &[(Seq, String)], last: Seq) -> Self {
        let mut this = Self::default();
        for (seq, text) in events.iter().filter(|(seq, _)| *seq <= last) {
            let event = event(text);
            let Some(run) = event["run"].as_str().map(str::to_owned) else { continue };
            let data = &event["data"];
            match event["kind"].as_str().unwrap() {
                "status" => {
                    let state = data["state"].as_str().unwrap();
                    let words = data["text"].as_str().unwrap().to_owned();
                    let first = this.runs.get(&run).map_or(seq.0, |run| run.1);
                    let state = if state == "started" { "running" } else { state };
                    this.runs.insert(run.clone(), (state.to_owned(), first, seq.0, words));
                    if !["queued", "running", "waiting"].contains(&state) {
                        this.calls.retain(|(_, open)| open["run"] != *run);
                    }
                }
                "tool_use" => this.calls.push((seq.0, event.clone())),
                "tool_result" => {
                    this.calls.retain(|(_, open)| open["run"] != *run || open["data"]["call"] != data["call"]);
                }
                _ => {}
            }
            this.runs.get_mut(&run).unwrap().2 = seq.0;
        }
        this
    }

    fn of(snapshot: &Snapshot) -> Self {
        let runs = snapshot.runs.iter().map(|run| {
            let standing =
                (run.state.as_str().to_owned(), run.first_seq.0, run.last_seq.0, run.text.clone().unwrap_or_default());
            (run.id.to_string(), standing)
        });
        let calls = snapshot.calls.iter().map(|call| (call.seq.0, event(&call.event)));
        Self { runs: runs.collect(), calls: calls.collect() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_is_what_applying_the_events_up_to_it_gives(
        steps in prop::collection::vec((0usize..5, 0u8..8, 0usize..3), 1..80),
        together in 1usize..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let stream = Stream::open(dir.path(), Limits { queue: roomy().queue, ..tiny() });
            let topic = stream.task("a").await;
            let mut runs: Vec<Option<RunId>> = vec![None; 5];
            for group in steps.chunks(together) {
                let hold = stream.hold().await;
                for (of, what, call) in group {
                    let call = format!("c{call}");
                    let (run, body) = match (runs[*of], what) {
                        (None, _) => {
                            let run = RunId::new();
                            runs[*of] = Some(run);
                            (run, status(State::Queued))
                        }
                        (Some(run), 0 | 1) => (run, status(State::Started)),
                        (Some(run), 2) => (run, status(State::Waiting)),
                        (Some(run), 3 | 4) => (run, tool_use(&call)),
                        (Some(run), 5) => (run, tool_result(&call)),
                        (Some(run), 6) => (run, thought("x")),
                        (Some(run), _) => {
                            runs[*of] = None;
                            (run, status(State::Succeeded))
                        }
                    };
                    stream.publisher.offer(&topic, Some(run), &body).await.unwrap();
                }
                drop(hold);
            }
            stream.say(&topic, None, "last").await;
            let logged = stream.logged(&topic);
            let (watch, _) = stream.subscribe(&topic, 1, None, Seq(0)).await;
            let at_head = watch.reader.snapshot_at_head(&stream.store).await.unwrap();
            assert_eq!(at_head.seq, Seq(logged.len() as u64));
            assert_eq!(Folded::of(&at_head), Folded::through(&logged, at_head.seq));
            let limits = ReplayLimits::default();
            let earlier = watch.reader.snapshot_before_last_work(&stream.store, limits).await.unwrap();
            assert_eq!(Folded::of(&earlier), Folded::through(&logged, earlier.seq));
            let open = at_head.runs.iter().filter(|run| !run.state.is_ended()).map(|run| run.first_seq).min();
            let from = open.or(at_head.runs.iter().map(|run| run.first_seq).max()).unwrap();
            assert_eq!(earlier.seq, from.prev(), "it stands before the oldest open run, else before the last");
            for seq in (0..=logged.len() as u64).step_by(7).map(Seq) {
                let no = topic.no;
                let id = topic.id.clone();
                let fold = stream.store.read_blocking(|connection| log::fold_at(connection, &id, no, seq)).unwrap();
                let mut expected = Folded::through(&logged, seq);
                expected.runs.retain(|_, (state, ..)| ["queued", "running", "waiting"].contains(&state.as_str()));
                let (generation, runs) = (Gen(0), fold.runs().cloned().collect());
                let calls = fold.calls().to_vec();
                let found = Snapshot { generation, seq, head: seq, runs, calls };
                assert_eq!(Folded::of(&found), expected, "at {seq}");
            }
        });
    }
}

#[test]
fn spk_02_t_31_a_watcher_that_never_reads_costs_nothing_but_a_bounded_ring() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        let mut stuck = stream.watch(&topic, 1, Seq(0)).await;
        let mut other = stream.watch(&topic, 2, Seq(0)).await;
        for n in 1..=200 {
            // Saved without anybody having read anything.
            assert_eq!(stream.say(&topic, None, &"x".repeat(100)).await, Seq(n));
            assert!(topic.tail().ring.bytes() <= 4096, "what is kept for the slow one is bounded");
        }
        assert_eq!(other.through(Seq(200)).await.len(), 200);
        // It resumes by its cursor all the same: its lag lives in the log.
        assert_eq!(numbers(&stuck.due().await.unwrap()), (1..=200).collect::<Vec<_>>());
        assert!(stuck.fetched > 0);
    });
}

#[test]
fn t_34_after_a_close_nobody_is_woken_and_events_still_go_to_the_log() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        let watch = stream.watch(&topic, 1, Seq(0)).await;
        watch.peer.close();
        stream.say(&topic, None, "x").await;
        let mut context = Context::from_waker(Waker::noop());
        assert!(watch.peer.wake.poll_raised(&mut context).is_pending(), "a closed one is left alone");
        drop(watch);
        assert!(!stream.publisher.connections().has_watchers(&topic.id));
        assert_eq!(stream.say(&topic, None, "y").await, Seq(2));
        assert_eq!(numbers(&stream.watch(&topic, 2, Seq(0)).await.due().await.unwrap()), [1, 2]);
    });
}

#[test]
fn rings_give_their_memory_back_least_recently_used_first() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits { rings_bytes: 2500, ..Limits::default() });
        let mut topics = Vec::new();
        for id in ["old", "middle", "new"] {
            let topic = stream.task(id).await;
            stream.say(&topic, None, &"x".repeat(800)).await;
            topics.push(topic);
        }
        stream.publisher.tidy();
        let held: Vec<_> = topics.iter().map(|topic| topic.tail().ring.events()).collect();
        assert_eq!(held, [0, 1, 1]);
        let mut watch = stream.watch(&topics[0], 1, Seq(0)).await;
        assert_eq!(numbers(&watch.due().await.unwrap()), [1], "the log still has it");
        stream.say(&topics[0], None, "y").await;
        assert_eq!(numbers(&watch.through(Seq(2)).await), [2]);
        let idle = Limits { ring_idle: Duration::ZERO, ..Limits::default() };
        let other = tempfile::tempdir().unwrap();
        let stream = Stream::open(other.path(), idle);
        let topic = stream.task("a").await;
        stream.say(&topic, None, "x").await;
        stream.publisher.tidy();
        assert_eq!(topic.tail().ring.events(), 0, "a task that fell quiet keeps no ring");
    });
}

#[test]
fn a_large_write_ahead_log_holds_pages_back_until_it_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let wal = dir.path().join("rejoin.db-wal");
        let size = || std::fs::metadata(&wal).unwrap().len();
        let mut checkpointer = rejoin::stream::checkpoint::Checkpointer::new(&stream.store).unwrap();
        // A reader that does not come to its end keeps the log from being truncated.
        let reading = Connection::open(stream.store.path()).unwrap();
        reading.execute_batch("BEGIN; SELECT count(*) FROM meta").unwrap();
        for key in ["a", "b", "c", "d", "e"] {
            stream.note(key, 16 << 20).await.unwrap();
        }
        assert!(size() > rejoin::stream::checkpoint::Checkpointer::HIGH);
        let all = stream.store.permits().available_permits();
        checkpointer.tick(&stream.store, &stream.publisher);
        assert_eq!(stream.store.permits().available_permits(), 0, "held back from one look to the next");
        reading.execute_batch("COMMIT").unwrap();
        checkpointer.tick(&stream.store, &stream.publisher);
        assert_eq!((size(), stream.store.permits().available_permits()), (0, all));
    });
}

#[test]
fn a_write_ahead_log_of_16_mib_is_begun_anew_and_does_not_grow() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let wal = dir.path().join("rejoin.db-wal");
        let size = || std::fs::metadata(&wal).unwrap().len();
        let mut checkpointer = rejoin::stream::checkpoint::Checkpointer::new(&stream.store).unwrap();
        let mut sizes = Vec::new();
        for key in ["a", "b", "c"] {
            stream.note(key, 17 << 20).await.unwrap();
            sizes.push(size());
            assert!(stream.store.wal_pages() >= rejoin::stream::checkpoint::Checkpointer::AGAIN);
            checkpointer.tick(&stream.store, &stream.publisher);
            assert_eq!(stream.store.wal_pages(), 0, "there is nothing left to do at the next look");
        }
        // What the first round had to allocate is used again by those after it.
        assert!(sizes[2] < sizes[0] * 3 / 2, "{sizes:?}");
    });
}

#[test]
fn the_end_of_a_run_waits_behind_nothing_but_what_its_queue_has_taken() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), tiny());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let hold = stream.hold().await;
        let mut waiting = Vec::new();
        for _ in 0..50 {
            let mut said = publishing(&stream.publisher, &topic, Some(run), thought("x"));
            assert!(waits(&mut said).await);
            waiting.push(said);
        }
        let mut end = publishing(&stream.publisher, &topic, Some(run), status(State::Cancelled));
        assert!(waits(&mut end).await);
        drop(hold);
        assert_eq!(end.await, Ok(Seq(2 + 8 + 1)), "eight had a place; the others were not taken yet");
        for (n, said) in (0..).zip(waiting) {
            assert_eq!(said.await, if n < 8 { Ok(Seq(3 + n)) } else { Err(Refused::RunOver) });
        }
    });
}

/// A batch of thoughts, numbered from `first` by their producer.
fn thoughts(topic: &Topic, run: RunId, first: u64, count: u64) -> Batch {
    let mut batch = Batch::new(&topic.id, run, Clock::system().now());
    for n in first..first + count {
        batch.push("thought", &raw(&json!({ "text": format!("{n}") })));
    }
    batch
}

fn raw(data: &Value) -> Box<serde_json::value::RawValue> {
    serde_json::value::to_raw_value(data).unwrap()
}

async fn feed(stream: &Stream, topic: &Arc<Topic>, batch: Batch, turn: &Turn, last_n: u64) -> Result<Seq, Refused> {
    stream.publisher.offer_batch(topic, batch, turn, last_n).await.unwrap().await.unwrap()
}

#[test]
fn a_batch_gives_the_events_that_single_offers_give() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let mut watch = stream.watch(&topic, 1, Seq(2)).await;
        let long = "x".repeat(100_000);
        let said = [
            ("tool_use", json!({ "call": "c1", "tool": "shell", "input": { "command": "df" } })),
            ("thought", json!({ "text": long })),
            ("odd \"kind\"", json!([1, 2, 3])),
            ("status", json!({ "state": "progress", "text": "half" })),
            ("tool_result", json!({ "call": "c1", "tool": "shell", "ok": true, "output": "" })),
        ];
        for (kind, data) in &said {
            let body = Body::Other { kind: (*kind).to_owned(), raw: raw(data) };
            stream.publisher.publish(&topic, Some(run), &body).await.unwrap();
        }
        let turn = stream.publisher.take_turn(&Producer::new(0)).await.unwrap();
        let mut batch = Batch::new(&topic.id, run, Clock::system().now());
        for (kind, data) in &said {
            batch.push(kind, &raw(data));
        }
        assert_eq!(feed(&stream, &topic, batch, &turn, 5).await, Ok(Seq(12)));

        let seen = watch.through(Seq(12)).await;
        assert_eq!(numbers(&seen), (3..=12).collect::<Vec<_>>());
        assert_eq!(seen, stream.logged(&topic)[2..]);
        for (one, many) in seen[..5].iter().zip(&seen[5..]) {
            let (mut one, mut many) = (event(&one.1), event(&many.1));
            for value in [&mut one, &mut many] {
                value["seq"] = Value::Null;
                value["at"] = Value::Null;
            }
            assert_eq!(one, many);
        }
        let whole = |seq| stream.store.read_blocking(|connection| log::whole(connection, topic.no, seq)).unwrap();
        assert_eq!(event(&whole(Seq(9)).unwrap())["data"]["text"].as_str().unwrap().len(), 100_000);
        assert_eq!(whole(Seq(8)), None);
        let tail = topic.tail();
        assert!(tail.fold.calls().is_empty(), "the call that was opened is closed");
        assert_eq!(tail.fold.run(run).unwrap().text.as_deref(), Some("half"));
        assert_eq!(tail.fold.run(run).unwrap().last_n, Some(5));
    });
}

#[test]
fn what_an_older_request_has_under_way_is_refused_once_another_has_the_turn() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let producer = Producer::new(0);
        let older = stream.publisher.take_turn(&producer).await.unwrap();
        assert!(feed(&stream, &topic, thoughts(&topic, run, 1, 10), &older, 10).await.is_ok());

        let hold = stream.hold().await;
        let late = stream.publisher.offer_batch(&topic, thoughts(&topic, run, 11, 10), &older, 20).await.unwrap();
        let taking = stream.publisher.take_turn(&producer);
        tokio::pin!(taking);
        assert!(futures_util::poll!(&mut taking).is_pending(), "it asks the writer");
        drop(hold);
        let newer = taking.await.unwrap();
        assert_eq!(newer.saved(), 10, "exact from here on");
        assert_eq!(late.await.unwrap(), Err(Refused::Fenced));
        assert!(!older.holds() && newer.holds());
        assert_eq!(feed(&stream, &topic, thoughts(&topic, run, 11, 1), &newer, 11).await, Ok(Seq(13)));
        assert_eq!(newer.saved(), 11);
    });
}

#[test]
fn nothing_of_a_batch_follows_the_end_of_its_run_and_its_count_is_kept_t_28() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let turn = stream.publisher.take_turn(&Producer::new(0)).await.unwrap();
        let mut batch = thoughts(&topic, run, 1, 1);
        batch.push("status", &raw(&json!({ "state": "succeeded", "text": "done" })));
        batch.push("thought", &raw(&json!({ "text": "late" })));
        assert_eq!(feed(&stream, &topic, batch, &turn, 2).await, Ok(Seq(4)));
        assert_eq!(stream.logged(&topic).len(), 4);
        assert_eq!(feed(&stream, &topic, thoughts(&topic, run, 3, 1), &turn, 3).await, Err(Refused::RunOver));
        let row = stream.store.read_blocking(|connection| {
            connection.query_row("SELECT run FROM runs", [], |row| row.get::<_, String>(0))
        });
        let row = event(&row.unwrap());
        assert_eq!((&row["state"], &row["last_n"]), (&json!("succeeded"), &json!(2)));
    });
}

#[test]
fn how_far_a_producer_came_is_saved_with_its_events() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), Limits::default());
        let topic = stream.task("a").await;
        let run = stream.run(&topic).await;
        let turn = stream.publisher.take_turn(&Producer::new(0)).await.unwrap();
        stream.fill_disk().await;
        // More than the free pages of the file take.
        let mut batch = Batch::new(&topic.id, run, Clock::system().now());
        for _ in 0..100 {
            batch.push("thought", &raw(&json!({ "text": "x".repeat(2000) })));
        }
        let waiting = stream.publisher.offer_batch(&topic, batch, &turn, 100).await.unwrap();
        let mut writable = stream.publisher.writable();
        writable.wait_for(|writable| *writable != Writable::Yes).await.unwrap();
        assert_eq!(turn.saved(), 0, "what is not saved is not counted");
        stream.free_disk().await;
        assert_eq!(waiting.await.unwrap(), Ok(Seq(102)));
        assert_eq!(turn.saved(), 100);
        drop(stream);

        let again = Stream::open(dir.path(), Limits::default());
        let topic = again.publisher.topic(&"a".parse().unwrap()).unwrap();
        assert_eq!(topic.head(), Seq(102), "all of it, once");
        assert_eq!(topic.tail().fold.run(run).unwrap().last_n, Some(100));
    });
}

#[test]
fn t_09_no_event_is_shown_under_the_id_that_a_log_had_before() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let topic = stream.task("a").await;
        stream.say(&topic, None, "1").await;
        let old = topic.tail().generation;
        let waker = GroupWaker::enter(&stream, &topic, &topic);
        let hold = stream.hold().await;
        let renewing = stream.publisher.renew(&topic, old);
        tokio::pin!(renewing);
        assert!(futures_util::poll!(&mut renewing).is_pending());
        stream.publisher.offer(&topic, None, &thought("2")).await.unwrap();
        drop(hold);
        let fresh = renewing.await.unwrap().unwrap();
        assert_ne!(fresh, old);
        assert_eq!(stream.publisher.renew(&topic, old).await.unwrap(), Some(fresh), "once");
        stream.say(&topic, None, "3").await;
        let logs = waker.logs.lock().unwrap().clone();
        assert!(logs.contains(&(fresh, Seq(2))) || logs.contains(&(fresh, Seq(3))), "{logs:?}");
        assert!(logs.iter().all(|(generation, head)| *head == Seq(1) || *generation == fresh), "{logs:?}");
    });
}

#[test]
fn t_09_a_log_whose_task_is_deleted_meanwhile_gets_no_new_id() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        for deleted_first in [true, false] {
            let topic = stream.task("a").await;
            stream.say(&topic, None, "1").await;
            let old = topic.tail().generation;
            let hold = stream.hold().await;
            // Both are jobs of one group, in this order or in the other.
            let no = topic.no.0;
            let row = move |connection: &Connection| {
                connection.execute("UPDATE tasks SET id = '~' || no WHERE no = ?1", [no])
            };
            let delete = stream.publisher.delete(&topic, move |connection| row(connection).map_err(StoreError::from));
            let renew = stream.publisher.renew(&topic, old);
            tokio::pin!(delete, renew);
            if deleted_first {
                assert!(futures_util::poll!(&mut delete).is_pending());
            }
            assert!(futures_util::poll!(&mut renew).is_pending());
            assert!(futures_util::poll!(&mut delete).is_pending());
            drop(hold);
            let (deleted, renewed) = tokio::join!(delete, renew);
            deleted.unwrap();
            assert_eq!(renewed.unwrap(), None, "{deleted_first}");
            assert!(!deleted_first || topic.tail().generation == old);
        }
    });
}

#[test]
fn what_is_said_of_a_task_behind_its_deletion_in_the_same_group_gets_no_number_and_fails_nothing() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let stream = Stream::open(dir.path(), roomy());
        let (gone, other) = (stream.task("gone").await, stream.task("other").await);
        let hold = stream.hold().await;
        let no = gone.no.0;
        let row =
            move |connection: &Connection| connection.execute("UPDATE tasks SET id = '~' || no WHERE no = ?1", [no]);
        let delete = stream.publisher.delete(&gone, move |connection| row(connection).map_err(StoreError::from));
        let (queued, word) = (status(State::Queued), thought("1"));
        let begun = stream.publisher.offer(&gone, Some(RunId::new()), &queued);
        let late = Offer::new(Some(RunId::new()), Timestamp::UNIX_EPOCH, &queued);
        let late = vec![(Arc::clone(&gone), late)];
        let change = stream.publisher.transact(move |_| Ok::<_, StoreError>(((), late)));
        let said = stream.publisher.publish(&other, None, &word);
        tokio::pin!(delete, change, said);
        assert!(futures_util::poll!(&mut delete).is_pending());
        assert!(futures_util::poll!(&mut change).is_pending());
        begun.await.unwrap();
        assert!(futures_util::poll!(&mut said).is_pending());
        drop(hold);
        let (deleted, changed, said) = tokio::join!(delete, change, said);
        deleted.unwrap();
        assert_eq!((changed.unwrap().1, said.unwrap()), (Vec::new(), Seq(1)));
        assert_eq!(*stream.publisher.writable().borrow(), Writable::Yes);
    });
}
