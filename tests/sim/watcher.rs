//! A watcher, by the words of the protocol and nothing else: what it is told, it holds against them and against what is
//! true. It shows each event once and in order, or was told of a gap.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use uuid::Uuid;

use crate::chance::Chance;
use crate::judge::{self, Asked, Numbered, Outcome, Reset, Snapshot};
use crate::network::{End, Link};
use crate::node::Node;
use crate::page::{self, Page};
use crate::truth::{Micros, Run};
use crate::world::World;

/// After so long without a frame the server is taken for dead.
const LIFE: Duration = Duration::from_secs(35);
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the client's own frame may take to go out.
const SEND: Duration = Duration::from_secs(5);
/// How often it looks after subscriptions that ended.
const LOOK: Duration = Duration::from_secs(3);
/// Within this an event is there on a line that is quick, and every `SPEED` bytes a second more. Less than a
/// heartbeat, which would bring it too.
const PROMPT: Micros = 3_000_000;
const SPEED: u64 = 30_000;
/// The delays of the client, as bounds on what is drawn, in milliseconds.
const BACKOFF: [u64; 7] = [1_000, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000];

type Socket = WebSocketStream<End>;

/// What a watcher is told to do.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Close the connection and come again.
    Leave,
    /// Open another connection while the first is still there.
    Replace,
    /// Subscribe to a task again, from where it is or from the beginning.
    Again(String, bool),
    /// Forget a task and watch it no more for a while.
    Unsubscribe(String),
}

/// What a watcher shows of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub generation: Option<String>,
    pub position: u64,
    /// It has an open subscription that caught up.
    pub live: bool,
    /// Everything that it was not told to be lost is there.
    pub whole: bool,
}

/// A watcher.
pub struct Watcher {
    world: Arc<World>,
    node: Arc<Node>,
    chance: Chance,
    name: String,
    client: Uuid,
    attempt: u64,
    tasks: BTreeMap<String, Interest>,
    last_sub: u32,
    /// Whether it fetches what lies before its first event.
    history: bool,
    /// Whether it shows the list of tasks.
    list: bool,
    wishes: mpsc::UnboundedReceiver<Wish>,
    shown: Arc<Mutex<BTreeMap<String, Shown>>>,
    failures: usize,
    connects: u64,
}

/// A watcher, as others see it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub name: String,
    pub wishes: mpsc::UnboundedSender<Wish>,
    shown: Arc<Mutex<BTreeMap<String, Shown>>>,
}

impl Handle {
    /// What it shows of each task.
    pub fn shown(&self) -> BTreeMap<String, Shown> {
        self.shown.lock().unwrap().clone()
    }
}

/// What it has of a task, over all connections.
#[derive(Debug, Default)]
struct Interest {
    generation: Option<String>,
    position: u64,
    have: BTreeSet<u64>,
    /// Gaps that it was told of and that nobody can fill.
    lost: Vec<(u64, u64)>,
    /// Gaps that it fills by pages.
    holes: VecDeque<(u64, u64)>,
    /// It asks no more before that.
    rests_until: Micros,
}

impl Interest {
    /// Starts again in a log.
    fn discard(&mut self, generation: &str) {
        *self = Self { generation: Some(generation.to_owned()), rests_until: self.rests_until, ..Self::default() };
    }

    fn lose(&mut self, from: u64, to: u64) {
        if from <= to {
            self.lost.push((from, to));
        }
    }

    fn is_whole(&self) -> bool {
        let is_lost = |seq: &u64| self.lost.iter().any(|(from, to)| (from..=to).contains(&seq));
        self.holes.is_empty() && (1..=self.position).all(|seq| self.have.contains(&seq) || is_lost(&seq))
    }
}

/// One subscription of one connection.
#[derive(Debug)]
struct Sub {
    task: String,
    asked: Asked,
    phase: Phase,
    /// `caught_up` is due once the position is there.
    due: Option<u64>,
    /// At how many heartbeats it was due already.
    overdue: usize,
    /// When it caught up.
    caught_up: Option<Micros>,
    /// `sent` of the last heartbeat at which the head was further.
    behind_at: Option<u64>,
    /// Heartbeats without an outcome.
    absent: u32,
    /// The server was at least so far, by its own time, when it said what came last.
    since: Micros,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// No outcome yet.
    Asked,
    /// `subscribed` said reset, the reset is to come.
    Told(Told),
    /// The snapshot is to come.
    Resetting(String),
    /// Events come.
    Live,
}

#[derive(Debug, PartialEq, Eq)]
struct Told {
    generation: String,
    from: u64,
    head: u64,
    /// It was live before.
    again: bool,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    name: &'a str,
    sub: Option<u32>,
    #[serde(borrow)]
    task: Option<&'a str>,
    #[serde(borrow, rename = "gen")]
    generation: Option<&'a str>,
    #[serde(borrow)]
    outcome: Option<&'a str>,
    from: Option<u64>,
    head: Option<u64>,
    missed: Option<u64>,
    #[serde(borrow)]
    why: Option<&'a str>,
    have: Option<u64>,
    oldest: Option<u64>,
    seq: Option<u64>,
    #[serde(borrow)]
    state: Option<&'a RawValue>,
    truncated: Option<bool>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    first: Option<u64>,
    last: Option<u64>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
    heads: Option<BTreeMap<u32, Heads>>,
    #[serde(borrow)]
    code: Option<&'a str>,
    over: Option<bool>,
    retryable: Option<bool>,
    rev: Option<u64>,
    full: Option<bool>,
    #[serde(borrow)]
    at: Option<&'a str>,
    runs: Option<Vec<Run>>,
}

#[derive(Deserialize)]
struct Heads {
    sent: u64,
    head: u64,
}

#[derive(Deserialize)]
struct State<'a> {
    runs: Vec<Run>,
    #[serde(borrow)]
    calls: Vec<&'a RawValue>,
}

/// Why a connection is over.
#[derive(Debug)]
enum Ended {
    /// It broke, or was left, or is dead.
    Over,
    /// Another one is made while it is still there.
    Replaced,
    /// What was told is wrong.
    Wrong(String),
}

impl From<String> for Ended {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

impl From<&str> for Ended {
    fn from(what: &str) -> Self {
        Self::Wrong(what.to_owned())
    }
}

/// One connection.
struct Session {
    socket: Socket,
    link: Arc<Link>,
    subs: BTreeMap<u32, Sub>,
    /// Subscriptions in the order of the hello that have no outcome yet.
    greeting: VecDeque<u32>,
    welcomed: bool,
    /// A right frame came: the next loss begins at the first delay.
    confirmed: bool,
    heard: Instant,
    /// Bytes that came lately.
    bytes: VecDeque<(Micros, u64)>,
    /// Of the list of tasks.
    rev: Option<u64>,
}

impl Watcher {
    /// A watcher of tasks.
    pub fn new(world: &Arc<World>, node: &Arc<Node>, name: &str, tasks: &[String]) -> (Self, Handle) {
        let mut chance = Chance::new(world.seed, name);
        let (wishes, wished) = mpsc::unbounded_channel();
        let shown = Arc::default();
        let handle = Handle { name: name.to_owned(), wishes, shown: Arc::clone(&shown) };
        let client = Uuid::from_u128(u128::from(chance.within(0..=u64::MAX)));
        let (history, list) = (chance.one_in(2), chance.one_in(3));
        let watcher = Self {
            world: Arc::clone(world),
            node: Arc::clone(node),
            chance,
            name: name.to_owned(),
            client,
            attempt: 0,
            tasks: tasks.iter().map(|task| (task.clone(), Interest::default())).collect(),
            last_sub: 0,
            history,
            list,
            wishes: wished,
            shown,
            failures: 0,
            connects: 0,
        };
        (watcher, handle)
    }

    /// Begins with a position that it got from elsewhere.
    pub fn begin_at(&mut self, task: &str, generation: Option<String>, position: u64) {
        let interest = self.tasks.entry(task.to_owned()).or_default();
        (interest.generation, interest.position) = (generation, position);
        interest.lose(1, position);
    }

    /// Watches until the end of the world.
    pub async fn watch(mut self) {
        loop {
            let pause = self.chance.millis(0..=BACKOFF[self.failures.min(BACKOFF.len() - 1)]);
            tokio::time::sleep(pause).await;
            self.failures += 1;
            let Some(mut session) = self.connect().await else { continue };
            let end = self.attend(&mut session).await;
            if session.confirmed {
                self.failures = 0;
            }
            match end {
                Ended::Over => {}
                Ended::Wrong(what) => self.world.wrong(&self.name, &what),
                Ended::Replaced => drop(tokio::spawn(outlive(session.socket))),
            }
            self.show(&BTreeMap::new());
        }
    }

    async fn connect(&mut self) -> Option<Session> {
        self.world.tick();
        self.connects += 1;
        let name = format!("{} {}", self.name, self.connects);
        let (link, end) = self.node.connect(&name, &mut self.chance)?;
        let token = self.node.running()?.token.clone();
        let mut request = "ws://localhost:7171/api/v1/live".into_client_request().ok()?;
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {token}").parse().ok()?);
        headers.insert("sec-websocket-protocol", "rejoin.v1".parse().ok()?);
        let shaken = tokio::time::timeout(CONNECT, tokio_tungstenite::client_async(request, end)).await;
        let (socket, _) = shaken.ok()?.ok()?;
        self.world.saw("connection");
        Some(Session {
            socket,
            link,
            subs: BTreeMap::new(),
            greeting: VecDeque::new(),
            welcomed: false,
            confirmed: false,
            heard: Instant::now(),
            bytes: VecDeque::new(),
            rev: None,
        })
    }

    /// One connection, from hello to its end.
    async fn attend(&mut self, session: &mut Session) -> Ended {
        match self.attend_to_end(session).await {
            Ok(()) => Ended::Over,
            Err(end) => end,
        }
    }

    async fn attend_to_end(&mut self, session: &mut Session) -> Result<(), Ended> {
        self.attempt += 1;
        let names: Vec<String> = self.tasks.keys().cloned().collect();
        let mut subscribe = Vec::new();
        for task in names {
            let (number, asked) = self.ask(session, &task);
            session.greeting.push_back(number);
            subscribe.push(asked);
        }
        let hello = json!({
            "type": "hello", "protocol": 1, "client": self.client, "attempt": self.attempt,
            "tasks": self.list, "subscribe": subscribe,
        });
        self.world.trace(&self.name, &format!("hello {}", self.attempt));
        send(session, hello).await?;
        let (pages, mut paged) = mpsc::unbounded_channel();
        let mut paging = false;
        let mut look = tokio::time::interval(LOOK);
        loop {
            if session.welcomed && !paging {
                paging = self.fetch(&pages);
            }
            tokio::select! {
                biased;
                message = session.socket.next() => {
                    let Some(Ok(message)) = message else { return Ok(()) };
                    session.heard = Instant::now();
                    match message {
                        Message::Text(text) => self.hear(session, &text).await?,
                        Message::Close(close) => {
                            let code = close.map_or(1005, |close| u16::from(close.code));
                            self.world.trace(&self.name, &format!("closed {code}"));
                            self.world.saw(&format!("closed {code}"));
                            return match code {
                                4500..=4513 => Err(format!("closed for good: {code}").into()),
                                _ => Ok(()),
                            };
                        }
                        _ => {}
                    }
                }
                Some((task, hole, page)) = paged.recv() => {
                    paging = false;
                    self.take_page(&task, hole, page)?;
                }
                Some(wish) = self.wishes.recv() => {
                    if !self.obey(session, wish).await? {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(session.heard + LIFE) => {
                    self.world.tick();
                    self.world.trace(&self.name, "takes the server for dead");
                    self.world.saw("server taken for dead");
                    if session.link.is_calm() && session.welcomed {
                        return Err("a server that is there said nothing on a line that is quick".into());
                    }
                    return Ok(());
                }
                _ = look.tick() => self.look_after(session).await?,
            }
            self.show(&session.subs);
        }
    }

    /// Asks for a task from where it is: the number of the subscription, and what to send.
    fn ask(&mut self, session: &mut Session, task: &str) -> (u32, serde_json::Value) {
        self.last_sub += 1;
        let number = self.last_sub;
        let interest = self.tasks.get_mut(task).unwrap();
        let asked = Asked { generation: interest.generation.clone(), after: interest.position, at: self.world.tick() };
        let mut subscribe = json!({ "sub": number, "task": task, "after": asked.after });
        if let Some(generation) = &asked.generation {
            subscribe["gen"] = generation.as_str().into();
        }
        // The connection's older one for the task is replaced, and what still comes of it is discarded.
        session.subs.retain(|_, sub| sub.task != task);
        let sub = Sub {
            task: task.to_owned(),
            since: asked.at,
            asked,
            phase: Phase::Asked,
            due: None,
            overdue: 0,
            caught_up: None,
            behind_at: None,
            absent: 0,
        };
        session.subs.insert(number, sub);
        (number, subscribe)
    }

    async fn subscribe(&mut self, session: &mut Session, task: &str) -> Result<(), Ended> {
        let (number, mut subscribe) = self.ask(session, task);
        self.world.trace(&self.name, &format!("subscribe {number} {task}"));
        subscribe["type"] = "subscribe".into();
        send(session, subscribe).await
    }

    async fn obey(&mut self, session: &mut Session, wish: Wish) -> Result<bool, Ended> {
        self.world.tick();
        match wish {
            Wish::Leave => {
                self.world.trace(&self.name, "leaves");
                let _ = tokio::time::timeout(SEND, session.socket.close(None)).await;
                return Ok(false);
            }
            Wish::Replace => {
                self.world.trace(&self.name, "comes again beside itself");
                return Err(Ended::Replaced);
            }
            Wish::Again(task, afresh) if session.welcomed => {
                let now = self.world.now();
                let interest = self.tasks.entry(task.clone()).or_default();
                interest.rests_until = now;
                if afresh {
                    *interest = Interest::default();
                }
                self.subscribe(session, &task).await?;
            }
            Wish::Unsubscribe(task) if session.welcomed => {
                let until = self.world.now() + 5_000_000;
                self.tasks.entry(task.clone()).or_default().rests_until = until;
                if let Some((number, _)) = session.subs.iter().find(|(_, sub)| sub.task == task) {
                    let number = *number;
                    session.subs.remove(&number);
                    self.world.trace(&self.name, &format!("unsubscribe {number}"));
                    send(session, json!({ "type": "unsubscribe", "sub": number })).await?;
                }
            }
            _ => {}
        }
        Ok(true)
    }

    /// Subscribes again to what has no subscription: its task was away, or it was given up.
    async fn look_after(&mut self, session: &mut Session) -> Result<(), Ended> {
        let now = self.world.tick();
        if !session.welcomed {
            return Ok(());
        }
        let without: Vec<String> = self
            .tasks
            .iter()
            .filter(|(task, interest)| {
                interest.rests_until <= now && session.subs.values().all(|sub| sub.task != **task)
            })
            .map(|(task, _)| task.clone())
            .collect();
        for task in without {
            self.subscribe(session, &task).await?;
        }
        Ok(())
    }

    /// Begins to fetch a page into the first hole there is.
    fn fetch(&mut self, pages: &mpsc::UnboundedSender<(String, (u64, u64), Page)>) -> bool {
        let hole =
            self.tasks.iter().find_map(|(task, interest)| Some((task.clone(), interest, *interest.holes.front()?)));
        let Some((task, interest, hole)) = hole else { return false };
        let generation = interest.generation.clone();
        let mut chance = Chance::new(self.world.seed, &format!("{} page {}", self.name, self.world.number()));
        let (world, node, pages) = (Arc::clone(&self.world), Arc::clone(&self.node), pages.clone());
        tokio::spawn(async move {
            let page = page::fetch(&world, &node, &mut chance, &task, generation.as_deref(), hole.0 - 1).await;
            if matches!(page, Page::Lost) {
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
            let _ = pages.send((task, hole, page));
        });
        true
    }

    fn take_page(&mut self, task: &str, hole: (u64, u64), page: Page) -> Result<(), Ended> {
        let interest = self.tasks.get_mut(task).unwrap();
        // It may have started again meanwhile.
        if interest.holes.front() != Some(&hole) {
            return Ok(());
        }
        let (from, to) = hole;
        match page {
            Page::Lost => {}
            // The socket says what is next.
            Page::Gone => {
                interest.holes.pop_front();
                interest.lose(from, to);
            }
            Page::Retention(oldest) => {
                interest.lose(from, to.min(oldest - 1));
                interest.holes.pop_front();
                if oldest <= to {
                    interest.holes.push_front((oldest, to));
                }
            }
            Page::Items(generation, seqs, next) => {
                // The page of a task that was made again, from its beginning: as if the log were gone.
                if interest.generation.as_ref() != Some(&generation) {
                    interest.holes.pop_front();
                    interest.lose(from, to);
                    return Ok(());
                }
                // From the beginning: what comes before the oldest is gone.
                if let Some(first) = seqs.first() {
                    interest.lose(from, first - 1);
                }
                for seq in seqs.into_iter().filter(|seq| *seq <= to) {
                    if !interest.have.insert(seq) {
                        return Err(format!("event {seq} of {task} was paged, and was there").into());
                    }
                }
                interest.holes.pop_front();
                if next == from - 1 {
                    interest.lose(from, to);
                } else if next < to {
                    interest.holes.push_front((next + 1, to));
                }
            }
        }
        Ok(())
    }

    async fn hear(&mut self, session: &mut Session, text: &Utf8Bytes) -> Result<(), Ended> {
        let now = self.world.tick();
        session.bytes.push_back((now, text.len() as u64));
        let frame: Frame<'_> = serde_json::from_str(text).map_err(|error| format!("no frame: {error}: {text}"))?;
        if text.len() > 384 * 1024 {
            return Err(format!("a frame of {} bytes", text.len()).into());
        }
        if !session.welcomed && frame.name != "welcome" {
            return Err(format!("{} before the welcome", frame.name).into());
        }
        match frame.name {
            "welcome" => {
                if std::mem::replace(&mut session.welcomed, true) {
                    return Err("a second welcome".into());
                }
                session.confirmed = true;
                self.world.trace(&self.name, "welcome");
                return Ok(());
            }
            "notice" => {
                self.world.saw(&format!("notice over {}", frame.over.unwrap_or_default()));
                let text = format!("notice {} over {}", frame.code.unwrap_or_default(), frame.over.unwrap_or_default());
                self.world.trace(&self.name, &text);
                return Ok(());
            }
            "heartbeat" => return self.heartbeat(session, &frame, now).await,
            "tasks" => return self.list(session, &frame).await,
            "error" => return self.refused(session, &frame, text),
            _ => {}
        }
        let number = frame.sub.ok_or_else(|| format!("a frame without sub: {text}"))?;
        if let Some(next) = session.greeting.front().copied() {
            // One outcome per entry of the hello, in order; what belongs to one that was given up is discarded.
            if frame.name == "subscribed" {
                if number != next {
                    return Err(format!("the outcome of {number} came before that of {next}").into());
                }
                session.greeting.pop_front();
            }
        }
        let Some(mut sub) = session.subs.remove(&number) else { return Ok(()) };
        let stays = self.told(session, number, &mut sub, &frame, text, now)?;
        if stays {
            session.subs.insert(number, sub);
        }
        Ok(())
    }

    /// What the store cannot serve at the moment is asked for again after a while.
    fn refused(&mut self, session: &mut Session, frame: &Frame<'_>, text: &str) -> Result<(), Ended> {
        if frame.retryable != Some(true) || frame.code != Some("not_writable") {
            return Err(format!("error: {text}").into());
        }
        let Some(number) = frame.sub else { return Ok(()) };
        self.world.trace(&self.name, &format!("{number} not writable"));
        self.world.saw("sub not writable");
        session.greeting.retain(|greeted| *greeted != number);
        if let Some(sub) = session.subs.remove(&number) {
            self.tasks.get_mut(&sub.task).unwrap().rests_until = self.world.now() + 5_000_000;
        }
        Ok(())
    }

    /// A frame of a subscription. False when it ends it.
    fn told(
        &mut self,
        session: &Session,
        number: u32,
        sub: &mut Sub,
        frame: &Frame<'_>,
        text: &str,
        now: Micros,
    ) -> Result<bool, Ended> {
        match frame.name {
            "subscribed" => return self.subscribed(number, sub, frame, now),
            "reset" => self.reset(number, sub, frame, now)?,
            "snapshot" => self.snapshot(number, sub, frame, now)?,
            "event" => {
                let event = frame.event.ok_or("an event frame without event")?;
                self.events(session, number, sub, &[event], now)?;
            }
            "events" => {
                let items = frame.items.as_deref().ok_or("an events frame without items")?;
                let count = frame.last.zip(frame.first).map(|(last, first)| last + 1 - first);
                if count != Some(items.len() as u64) || items.len() > 256 || frame.first != Some(self.position(sub) + 1)
                {
                    return Err(format!("{:?} to {:?} with {} events", frame.first, frame.last, items.len()).into());
                }
                self.events(session, number, sub, items, now)?;
            }
            "caught_up" => {
                let position = self.position(sub);
                let due = sub.due.take().ok_or("caught_up that is not due")?;
                if sub.phase != Phase::Live || frame.seq != Some(position) || position < due {
                    return Err(format!("caught_up at {:?}, position {position}, due at {due}", frame.seq).into());
                }
                (sub.caught_up, sub.overdue) = (Some(now), 0);
                self.world.trace(&self.name, &format!("{number} caught up at {position}"));
            }
            _ => return Err(format!("an unknown frame: {text}").into()),
        }
        Ok(true)
    }

    fn position(&self, sub: &Sub) -> u64 {
        self.tasks[&sub.task].position
    }

    fn subscribed(&mut self, number: u32, sub: &mut Sub, frame: &Frame<'_>, now: Micros) -> Result<bool, Ended> {
        let task = sub.task.clone();
        if frame.task != Some(&task) {
            return Err(format!("subscribed {:?} for {task}", frame.task).into());
        }
        let again = match sub.phase {
            Phase::Asked => false,
            Phase::Live => true,
            _ => return Err("subscribed within a reset".into()),
        };
        let since = sub.since;
        let outcome = frame.outcome.ok_or("no outcome")?;
        if outcome == "not_found" {
            self.world.trace(&self.name, &format!("{number} not found"));
            self.world.saw(if again { "not_found of what was live" } else { "not_found" });
            judge::not_found(&self.world.truth(), &task, since, now)?;
            return Ok(false);
        }
        let (Some(generation), Some(from), Some(head)) = (frame.generation, frame.from, frame.head) else {
            return Err("subscribed without gen, from or head".into());
        };
        let name = self.world.name(generation);
        self.world.trace(&self.name, &format!("{number} {outcome} {name} from {from} head {head}"));
        let told = Outcome { generation: generation.to_owned(), from, head, missed: frame.missed };
        judge::open_runs(
            &self.world.truth(),
            &task,
            generation,
            frame.runs.as_deref().unwrap_or_default(),
            since,
            now,
        )?;
        match outcome {
            "resumed" if !again => {
                self.world.saw("resumed");
                judge::resumed(&self.world.truth(), &task, &sub.asked, &told, now, self.world.profile.replay)?;
                let interest = self.tasks.get_mut(&task).unwrap();
                if sub.asked.after == 0 {
                    interest.discard(generation);
                    interest.lose(1, from - 1);
                }
                interest.position = from - 1;
                (sub.phase, sub.due) = (Phase::Live, Some(head));
            }
            "reset" => {
                sub.phase = Phase::Told(Told { generation: generation.to_owned(), from, head, again });
            }
            _ => return Err(format!("outcome {outcome} on a sub that is live: {again}").into()),
        }
        (sub.caught_up, sub.overdue, sub.behind_at) = (None, 0, None);
        Ok(true)
    }

    fn reset(&mut self, number: u32, sub: &mut Sub, frame: &Frame<'_>, now: Micros) -> Result<(), Ended> {
        let (Some(generation), Some(why), Some(have), Some(oldest), Some(head)) =
            (frame.generation, frame.why, frame.have, frame.oldest, frame.head)
        else {
            return Err("reset without gen, why, have, oldest or head".into());
        };
        let live = !matches!(&sub.phase, Phase::Told(first) if !first.again);
        self.world.saw(&format!("reset {why}{}", if live { " of what was live" } else { "" }));
        self.world.trace(&self.name, &format!("{number} reset {why} have {have} [{oldest}, {head}]"));
        let told = Reset { generation: generation.to_owned(), why: why.to_owned(), have, oldest, head };
        let interest = self.tasks.get_mut(&sub.task).unwrap();
        let known = interest.generation.clone().unwrap_or_default();
        {
            let truth = self.world.truth();
            match &sub.phase {
                Phase::Told(first) if !first.again => {
                    if have != sub.asked.after || first.generation != generation || first.head != head {
                        return Err(format!("{told:?} behind {first:?} to {:?}", sub.asked).into());
                    }
                    judge::reset(&truth, &sub.task, &sub.asked, &told, now, self.world.profile.replay)?;
                }
                Phase::Told(first) if why == "generation" && first.generation == generation => {
                    judge::reset_live(&truth, &sub.task, &known, interest.position, &told, sub.since, now)?;
                }
                Phase::Live if why == "retention" => {
                    judge::reset_live(&truth, &sub.task, &known, interest.position, &told, sub.since, now)?;
                }
                phase => return Err(format!("{told:?} while {phase:?}").into()),
            }
        }
        match why {
            "generation" | "future" | "from_start" => interest.discard(generation),
            // What retention left between is still there to be fetched.
            _ => interest.lose(have + 1, oldest - 1),
        }
        (sub.phase, sub.due, sub.caught_up) = (Phase::Resetting(why.to_owned()), None, None);
        Ok(())
    }

    fn snapshot(&mut self, number: u32, sub: &mut Sub, frame: &Frame<'_>, now: Micros) -> Result<(), Ended> {
        let Phase::Resetting(why) = &sub.phase else { return Err("a snapshot without a reset".into()) };
        let (Some(generation), Some(seq), Some(head), Some(state)) =
            (frame.generation, frame.seq, frame.head, frame.state)
        else {
            return Err("a snapshot without gen, seq, head or state".into());
        };
        self.world.trace(&self.name, &format!("{number} snapshot {seq} of {head}"));
        let interest = self.tasks.get_mut(&sub.task).unwrap();
        if interest.generation.as_deref() != Some(generation) || seq > head {
            return Err(format!("a snapshot of {generation} at {seq} of {head}").into());
        }
        if why == "from_start" {
            let at = if seq == head { "at the head" } else { "before the last work" };
            self.world.saw(&format!("newcomer begins {at}"));
        }
        let state: State<'_> = serde_json::from_str(state.get()).map_err(|error| format!("no state: {error}"))?;
        let call = |call: &&RawValue| {
            let seq = serde_json::from_str::<Numbered>(call.get()).map_err(|error| error.to_string())?.seq;
            Ok((seq, call.get().to_owned()))
        };
        let told = Snapshot {
            generation: generation.to_owned(),
            seq,
            head,
            runs: state.runs,
            calls: state.calls.iter().map(call).collect::<Result<_, String>>()?,
            truncated: frame.truncated.unwrap_or_default(),
        };
        judge::snapshot(&self.world.truth(), &sub.task, why, &told, sub.since, now, self.world.profile.replay)?;
        // What lies between what it has and the snapshot is paged.
        let from = interest.lost.iter().map(|(_, to)| to + 1).chain([interest.position + 1]).max().unwrap_or(1);
        if from <= seq {
            if self.history || matches!(why.as_str(), "too_far" | "retention") {
                interest.holes.push_back((from, seq));
            } else {
                interest.lose(from, seq);
            }
        }
        interest.position = seq;
        (sub.phase, sub.due) = (Phase::Live, Some(head));
        Ok(())
    }

    fn events(
        &mut self,
        session: &Session,
        number: u32,
        sub: &mut Sub,
        events: &[&RawValue],
        now: Micros,
    ) -> Result<(), Ended> {
        if sub.phase != Phase::Live {
            return Err(format!("events while {:?}", sub.phase).into());
        }
        let interest = self.tasks.get_mut(&sub.task).unwrap();
        let generation = interest.generation.clone().unwrap_or_default();
        let first = interest.position + 1;
        let truth = self.world.truth();
        let log =
            truth.log(&sub.task, &generation).ok_or_else(|| format!("{generation} was never a log of {}", sub.task))?;
        for event in events {
            let seq = serde_json::from_str::<Numbered>(event.get()).map_err(|error| error.to_string())?.seq;
            if seq != interest.position + 1 {
                return Err(format!("{number}: event {seq} behind position {}", interest.position).into());
            }
            let Some(known) = log.event(seq) else {
                return Err(format!("event {seq} of {} was seen before it was saved", sub.task).into());
            };
            if *known.text != *event.get() {
                return Err(
                    format!("event {seq} of {} is {}, was told as {}", sub.task, known.text, event.get()).into()
                );
            }
            if let Some(caught_up) = sub.caught_up
                && session.link.is_calm()
            {
                let lately: u64 =
                    session.bytes.iter().filter(|(at, _)| at + 20_000_000 > now).map(|(_, bytes)| bytes).sum();
                let late = now - known.at.max(caught_up);
                if late > PROMPT + lately * 1_000_000 / SPEED {
                    return Err(format!("event {seq} of {} came {} ms after its commit", sub.task, late / 1000).into());
                }
            }
            interest.position = seq;
            sub.since = sub.since.max(known.at);
            if !interest.have.insert(seq) {
                return Err(format!("event {seq} of {} came twice", sub.task).into());
            }
        }
        drop(truth);
        self.world.saw_so_many("event received", events.len() as u64);
        self.world.trace(&self.name, &format!("{number} events {first} to {}", interest.position));
        Ok(())
    }

    async fn heartbeat(&mut self, session: &mut Session, frame: &Frame<'_>, now: Micros) -> Result<(), Ended> {
        let heads = frame.heads.as_ref().ok_or("a heartbeat without heads")?;
        let told: Vec<String> = heads.iter().map(|(sub, at)| format!("{sub}: {} of {}", at.sent, at.head)).collect();
        self.world.trace(&self.name, &format!("heartbeat {}", told.join(", ")));
        let said = frame.at.and_then(|at| self.world.read_time(at)).ok_or("a heartbeat without at")?;
        let mut again = Vec::new();
        let turns = if session.link.is_calm() { 1 } else { session.subs.len() };
        for (number, sub) in &mut session.subs {
            let position = self.tasks[&sub.task].position;
            match (heads.get(number), &sub.phase) {
                (None, Phase::Asked) => {
                    sub.absent += 1;
                    if sub.absent >= 2 {
                        again.push(sub.task.clone());
                    }
                }
                (None, Phase::Live) => return Err(format!("sub {number} is not among the heads").into()),
                // It may have been asked and answered in between, on its way behind this.
                (Some(_), Phase::Asked) => return Err(format!("heads of sub {number}, which has no outcome").into()),
                (Some(_), Phase::Told(_) | Phase::Resetting(_)) => {
                    return Err(format!("heads of sub {number} within a reset").into());
                }
                (None, _) => {}
                (Some(at), Phase::Live) => {
                    if at.sent != position {
                        return Err(
                            format!("sub {number} was sent up to {}, the position is {position}", at.sent).into()
                        );
                    }
                    let truth = self.world.truth();
                    let log = truth.log(&sub.task, self.tasks[&sub.task].generation.as_deref().unwrap_or_default());
                    // A log that was replaced a moment ago may be ahead under its next id.
                    if let Some(log) = log.filter(|log| log.ended.is_none()) {
                        let least = if session.link.is_calm() { log.head_at(now.saturating_sub(PROMPT)) } else { 0 };
                        if at.head > log.head() || at.head < least {
                            return Err(
                                format!("head {} was told of {}, it is {}", at.head, sub.task, log.head()).into()
                            );
                        }
                    }
                    drop(truth);
                    if sub.due.is_some_and(|due| position >= due) {
                        // On a slow line a heartbeat may go before each of the others' turns.
                        if sub.overdue >= turns {
                            return Err(format!("sub {number} was not told that it caught up at {position}").into());
                        }
                        sub.overdue += 1;
                    }
                    let behind = at.sent < at.head;
                    if behind && sub.behind_at == Some(at.sent) {
                        self.world.saw("sub that waits is asked for again");
                        if session.link.is_calm() {
                            return Err(
                                format!("sub {number} waits at {} of {} on a quick line", at.sent, at.head).into()
                            );
                        }
                        again.push(sub.task.clone());
                    }
                    sub.behind_at = behind.then_some(at.sent);
                    // What it still has to be told may have been before that; on a slow line that it ended, too.
                    if !behind && session.link.is_calm() {
                        sub.since = sub.since.max(said);
                    }
                }
            }
        }
        for task in again {
            self.subscribe(session, &task).await?;
        }
        send(session, json!({ "type": "pong", "at": "2026-01-01T00:00:00.000000Z" })).await
    }

    /// The list of tasks: each change is the next, or the whole list is asked for.
    async fn list(&mut self, session: &mut Session, frame: &Frame<'_>) -> Result<(), Ended> {
        let rev = frame.rev.ok_or("tasks without rev")?;
        let full = frame.full.unwrap_or_default();
        self.world.trace(&self.name, &format!("tasks {rev} full {full}"));
        if !session.greeting.is_empty() {
            return Err("the list came before the outcomes of the hello".into());
        }
        if full {
            session.rev = Some(rev);
            return Ok(());
        }
        if session.rev.is_some_and(|known| rev == known + 1) {
            session.rev = Some(rev);
            return Ok(());
        }
        send(session, json!({ "type": "tasks" })).await
    }

    /// Lets others see what it shows.
    fn show(&self, subs: &BTreeMap<u32, Sub>) {
        let mut shown = self.shown.lock().unwrap();
        for (task, interest) in &self.tasks {
            let live = subs.values().any(|sub| sub.task == *task && sub.phase == Phase::Live && sub.due.is_none());
            let before = shown.get(task).filter(|before| before.whole && before.position == interest.position);
            let known = before.is_some_and(|before| before.generation == interest.generation);
            let whole = live && self.world.is_calm() && interest.holes.is_empty() && (known || interest.is_whole());
            let (generation, position) = (interest.generation.clone(), interest.position);
            shown.insert(task.clone(), Shown { generation, position, live, whole });
        }
    }
}

/// A connection that is still there when its successor comes: the server ends it.
async fn outlive(mut socket: Socket) {
    while let Some(Ok(_)) = socket.next().await {}
}

async fn send(session: &mut Session, frame: serde_json::Value) -> Result<(), Ended> {
    let message = Message::Text(frame.to_string().into());
    match tokio::time::timeout(SEND, session.socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Ended::Over),
    }
}
