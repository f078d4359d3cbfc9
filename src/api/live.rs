//! `GET /api/v1/live`: one socket, one task of the runtime, one loop. It is woken and pulls; nothing is queued
//! for it anywhere but the few frames it is about to write.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::{Sink, Stream};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WireError;
use tracing::{info, warn};

use super::auth::{Authority, Credential, Refused};
use super::board::{self, Board, Due};
use super::frame::{self, ClientFrame, Hello, Subscribe};
use super::hub::{Closing, Hub, Knock, Member};
use super::notice::Notices;
use super::pace::Pace;
use super::socket::Meter;
use super::sub::{Position, Sub};
use super::wire::Viewer;
use crate::clock::{Clock, rfc3339};
use crate::event::TaskId;
use crate::store::StoreError;
use crate::stream::reader::{Lost, Pull, ReplayLimits, Span};

/// The times and sizes of a socket (`docs/protocol.md`, "Numbers to start from").
#[derive(Clone, Debug)]
pub struct LiveLimits {
    /// How often the server says that it is there.
    pub heartbeat: Duration,
    /// After how long without a byte the client is taken for dead.
    pub life: Duration,
    /// How long a socket may be silent before its hello.
    pub hello: Duration,
    /// Fewer bytes than this accepted in `slow_window` while data waits is too slow.
    pub slow_bytes: u64,
    /// See `slow_bytes`.
    pub slow_window: Duration,
    /// The most subscriptions of one socket.
    pub subscriptions: usize,
    /// How much is replayed.
    pub replay: ReplayLimits,
}

/// Bad frames after which a socket is closed.
const BAD_FRAMES: u32 = 5;
/// Client frames that may wait while what was asked for is still being written.
const WAITING_FRAMES: usize = 64;
/// Client frames per heartbeat interval that are too many.
const FRAMES_PER_HEARTBEAT: u32 = 2000;
/// How much of a flush may wait in front of a socket that takes nothing more: the buffer it waits in never shrinks.
const MOST_WAITING: u64 = 64 * 1024;
/// The longest client id.
const MAX_CLIENT: usize = 64;
/// How long a close frame may take to go out.
const GOODBYE: Duration = Duration::from_secs(1);

/// What all sockets share.
#[derive(Clone, Debug)]
pub struct Live {
    /// The open sockets.
    pub hub: Arc<Hub>,
    /// The list of tasks.
    pub board: Arc<Board>,
    /// What everybody should know.
    pub notices: Arc<Notices>,
    /// Tasks and their streams.
    pub viewer: Viewer,
    /// Who may come in.
    pub authority: Arc<Authority>,
    /// The times and sizes.
    pub limits: LiveLimits,
    /// Changes with each start of the server.
    pub boot: Arc<str>,
    /// The time of day.
    pub clock: Clock,
}

/// What a socket brought along when it was opened.
#[derive(Debug)]
pub struct Opening {
    /// From a header; wins over the hello's token.
    pub header: Option<Result<Credential, Refused>>,
    /// From a cookie; the hello's token wins over it.
    pub cookie: Option<Result<Credential, Refused>>,
    /// Counts what the network accepted.
    pub meter: Arc<Meter>,
}

/// Why the loop ended.
#[derive(Debug)]
enum End {
    /// The client is gone.
    Gone,
    /// The client said that it goes: its close is answered with ours.
    Left,
    /// The server closes it.
    Close(Closing),
}

impl From<Closing> for End {
    fn from(closing: Closing) -> Self {
        Self::Close(closing)
    }
}

impl Live {
    /// Serves one socket until it ends.
    pub async fn serve(self, socket: WebSocket, opening: Opening) {
        let meter = Arc::clone(&opening.meter);
        let mut wire = Wire::new(socket, Pace::new(meter, self.limits.slow_bytes));
        let end = match self.hub.knock() {
            Err(closing) => End::Close(closing),
            Ok(knock) => match self.welcome(&mut wire, opening, knock).await {
                Ok(mut session) => {
                    let end = session.run(&mut wire).await;
                    if let End::Close(closing) = &end {
                        session.member.handle.close(closing.clone());
                    }
                    end
                }
                Err(end) => end,
            },
        };
        match end {
            End::Gone => {}
            End::Left => wire.answer_close().await,
            End::Close(closing) => wire.goodbye(&closing).await,
        }
    }

    /// Hello, credential, welcome.
    async fn welcome(&self, wire: &mut Wire, opening: Opening, knock: Knock) -> Result<Session, End> {
        let hello = tokio::time::timeout(self.limits.hello, wire.hello())
            .await
            // Not 4500: a machine that fell asleep in between has shown no bad credential, and comes back.
            .map_err(|_| End::Close(Closing::NO_LIFE))??;
        if hello.protocol != frame::PROTOCOL {
            return Err(Closing::PROTOCOL.into());
        }
        let from_token = hello.token.as_ref().map(|token| self.authority.by_token(token).ok_or(Refused::Unknown));
        let credential = opening.header.or(from_token).or(opening.cookie).unwrap_or(Err(Refused::Unknown));
        let credential = credential.map_err(Closing::of_refused)?;
        let client: String = hello.client.chars().take(MAX_CLIENT).collect();
        let member = self.hub.enter(credential.id.clone(), credential.user.clone(), client.into(), hello.attempt)?;
        drop(knock);
        // Behind the entry: who is signed out from here on is found among the sockets.
        self.authority.stands(&credential).map_err(|_| Closing::EXPIRED)?;
        info!(connection = member.handle.peer.id, user = %credential.user, attempt = hello.attempt, "watcher connected");
        let limits = &self.limits;
        let welcome = json!({
            "type": "welcome", "protocol": frame::PROTOCOL, "connection": format!("c-{}", member.handle.peer.id),
            "server": { "version": env!("CARGO_PKG_VERSION"), "boot": &*self.boot },
            "heartbeat_ms": limits.heartbeat.as_millis() as u64,
            "limits": {
                "frame_bytes": frame::MAX_CLIENT_FRAME, "subscriptions": limits.subscriptions,
                "replay_events": limits.replay.events, "replay_bytes": limits.replay.bytes,
                "life_ms": limits.life.as_millis() as u64,
            },
            "last_close": member.last_close,
        });
        let mut session = Session {
            live: self.clone(),
            member,
            subs: Vec::new(),
            turn: 0,
            outbox: VecDeque::from([welcome.to_string().into()]),
            greeting: hello.subscribe.into_iter().map(ClientFrame::Subscribe).collect(),
            look: false,
            list: None,
            notices_seen: 0,
            bad_frames: 0,
            frames: 0,
            heartbeat_due: false,
        };
        session.tell_notices();
        if hello.tasks {
            session.greeting.push_back(ClientFrame::Tasks {});
        }
        Ok(session)
    }
}

/// One socket after its welcome.
struct Session {
    live: Live,
    member: Member,
    subs: Vec<Sub>,
    /// Whose turn it is: subs take turns frame by frame.
    turn: usize,
    /// Frames that are about to be written. Bounded: whatever makes frames does so only while it is empty, so
    /// that a watcher that takes nothing is owed nothing either.
    outbox: VecDeque<Utf8Bytes>,
    /// What the hello asked for and is not answered yet. Before it is, no event goes out.
    greeting: VecDeque<ClientFrame>,
    /// It was woken: positions may be lost, the list or the notices may have changed.
    look: bool,
    /// The revision of the list of tasks it has seen, if it shows the list.
    list: Option<u64>,
    notices_seen: u64,
    bad_frames: u32,
    frames: u32,
    heartbeat_due: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.live.board.leave(self.member.handle.peer.id);
    }
}

impl Session {
    /// Fills the wire while it takes, then waits for whatever comes first.
    async fn run(&mut self, wire: &mut Wire) -> End {
        match self.run_to_end(wire).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn run_to_end(&mut self, wire: &mut Wire) -> Result<std::convert::Infallible, End> {
        let limits = self.live.limits.clone();
        let mut heartbeat = tokio::time::interval_at(Instant::now() + limits.heartbeat, limits.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inbox: VecDeque<ClientFrame> = VecDeque::new();
        let peer = Arc::clone(&self.member.handle.peer);
        loop {
            if let Some(closing) = self.member.handle.closing() {
                return Err(closing.into());
            }
            self.fill(wire).await?;
            while self.outbox.is_empty()
                && self.greeting.is_empty()
                && let Some(next) = inbox.pop_front()
            {
                self.handle(next).await?;
            }
            if wire.takes() && (!self.outbox.is_empty() || self.has_due()) {
                continue;
            }
            wire.rest_if_idle();
            let reads = inbox.len() < WAITING_FRAMES;
            let (stalled, silent) = (wire.stalled(limits.slow_window), wire.heard + limits.life);
            tokio::select! {
                // In this order, so that the same happens again when the same comes again. What is rare goes first; a
                // wake may wait behind a frame that came, as what is due is asked for in each round.
                biased;
                _ = heartbeat.tick() => {
                    self.frames = 0;
                    self.heartbeat_due = true;
                }
                step = wire.step(reads) => match step? {
                    Step::Flushed => {}
                    Step::Heard => self.count_frame()?,
                    Step::Frame(next) => inbox.extend(self.accept(next)?),
                },
                () = stalled => return Err(Closing::SLOW.into()),
                () = tokio::time::sleep_until(silent), if reads => return Err(Closing::NO_LIFE.into()),
                () = std::future::poll_fn(|context| peer.wake.poll_raised(context)) => self.look = true,
            }
        }
    }

    /// Puts frames on the wire until it has enough for one flush or nothing is due.
    async fn fill(&mut self, wire: &mut Wire) -> Result<(), End> {
        while wire.takes() {
            let Some(next) = self.next_frame(wire.pace.frame_bytes()).await? else { break };
            wire.feed(next)?;
        }
        wire.begin_flush();
        Ok(())
    }

    async fn next_frame(&mut self, max_bytes: usize) -> Result<Option<Utf8Bytes>, End> {
        loop {
            if let Some(next) = self.outbox.pop_front() {
                return Ok(Some(next));
            }
            if let Some(asked) = self.greeting.pop_front() {
                self.handle(asked).await?;
            } else if std::mem::take(&mut self.look) {
                self.look_around().await?;
            } else if std::mem::take(&mut self.heartbeat_due) {
                return Ok(Some(self.heartbeat().into()));
            } else {
                return self.next_events(max_bytes).await;
            }
        }
    }

    fn give_up_now(&mut self, index: usize, error: &StoreError) -> Option<Utf8Bytes> {
        let sub = self.subs.remove(index);
        self.give_up(sub.number, error);
        self.outbox.pop_front()
    }

    /// The next events of whichever sub's turn it is.
    async fn next_events(&mut self, max_bytes: usize) -> Result<Option<Utf8Bytes>, End> {
        for _ in 0..self.subs.len() {
            let index = self.turn % self.subs.len();
            self.turn = index + 1;
            let sub = &mut self.subs[index];
            if let Some(said) = sub.caught_up() {
                return Ok(Some(said.text.into()));
            }
            if !sub.reader.is_due() {
                continue;
            }
            let mut pull = sub.reader.pull(max_bytes);
            if matches!(pull, Pull::InLog) {
                if let Err(error) = sub.reader.fetch(&self.live.viewer.store).await {
                    return Ok(self.give_up_now(index, &error));
                }
                pull = sub.reader.pull(max_bytes);
            }
            match pull {
                Pull::Slice(slice) => {
                    let text = frame::events(sub.number, &slice);
                    sub.log_delivery(&self.member.handle.peer, slice.events());
                    return Ok(Some(text.into()));
                }
                Pull::Nothing => {}
                // Read and not there: retention took it meanwhile, or the log is damaged.
                Pull::InLog => match sub.reader.lost() {
                    Some(lost) => return Ok(self.lose_now(index, lost).await),
                    None => {
                        let error = StoreError::Broken("an event of the log is not there".to_owned());
                        return Ok(self.give_up_now(index, &error));
                    }
                },
                Pull::Lost(lost) => return Ok(self.lose_now(index, lost).await),
            }
        }
        Ok(None)
    }

    fn has_due(&self) -> bool {
        self.heartbeat_due
            || self.look
            || !self.greeting.is_empty()
            || self.subs.iter().any(|sub| sub.reader.is_due() || sub.is_caught_up())
    }

    /// An event shows itself by the head; what is not an event must be looked for. One thing at a time: a
    /// snapshot is large, and there may be many.
    async fn look_around(&mut self) -> Result<(), End> {
        self.tell_notices();
        let lost = self.subs.iter().enumerate().find_map(|(index, sub)| Some((index, sub.reader.lost()?)));
        if let Some((index, lost)) = lost {
            self.look = true;
            self.lose(index, lost).await;
            return Ok(());
        }
        let Some(rev) = self.list else { return Ok(()) };
        match self.live.board.due(rev) {
            Due::Nothing => {}
            Due::Frame(rev, text) => {
                self.list = Some(rev);
                self.outbox.push_back(Utf8Bytes::from(&*text));
                self.look = true;
            }
            Due::All => self.send_list().await,
        }
        Ok(())
    }

    fn tell_notices(&mut self) {
        let (seen, due) = self.live.notices.since(self.notices_seen);
        self.notices_seen = seen;
        self.outbox.extend(due.into_iter().map(Utf8Bytes::from));
    }

    async fn show_list(&mut self) {
        self.live.board.look(Arc::clone(&self.member.handle.peer));
        self.send_list().await;
    }

    async fn send_list(&mut self) {
        match self.live.board.all().await {
            Ok((rev, parts)) => {
                self.list = Some(rev);
                self.outbox.extend(parts.into_iter().map(Utf8Bytes::from));
            }
            Err(error) => {
                warn!(%error, "the list of tasks could not be sent; its next change brings the whole of it");
                self.list.get_or_insert(board::NOTHING);
                self.outbox.push_back(frame::store_error(None, &error).into());
            }
        }
    }

    fn heartbeat(&self) -> String {
        let heads: serde_json::Map<String, Value> = self
            .subs
            .iter()
            .map(|sub| {
                let heads = json!({ "sent": sub.reader.next().prev(), "head": sub.reader.topic().head() });
                (sub.number.to_string(), heads)
            })
            .collect();
        json!({ "type": "heartbeat", "at": rfc3339(self.live.clock.now()), "heads": heads }).to_string()
    }

    /// Reads a frame; what cannot be understood is answered, and the fifth ends the socket.
    fn accept(&mut self, text: Incoming) -> Result<Option<ClientFrame>, End> {
        self.count_frame()?;
        let (code, message) = match text {
            Incoming::Text(text) if text.len() <= frame::MAX_CLIENT_FRAME => match serde_json::from_str(&text) {
                Ok(frame) => return Ok(Some(frame)),
                Err(error) => ("bad_frame", format!("this frame is not understood: {error}")),
            },
            Incoming::Text(text) => ("too_large", too_large(text.len())),
            Incoming::Binary => ("bad_frame", "a frame is a text message".to_owned()),
        };
        self.complain(None, code, &message)?;
        Ok(None)
    }

    /// Whatever comes costs time, also what needs no answer.
    fn count_frame(&mut self) -> Result<(), End> {
        self.frames += 1;
        if self.frames > FRAMES_PER_HEARTBEAT { Err(Closing::TOO_MANY.into()) } else { Ok(()) }
    }

    fn complain(&mut self, about: Option<(&str, Value)>, code: &str, message: &str) -> Result<(), End> {
        self.bad_frames += 1;
        if self.bad_frames >= BAD_FRAMES {
            return Err(Closing::BAD_FRAMES.into());
        }
        self.outbox.push_back(frame::error(about, code, message, false).into());
        Ok(())
    }

    async fn handle(&mut self, next: ClientFrame) -> Result<(), End> {
        match next {
            ClientFrame::Pong {} => Ok(()),
            ClientFrame::Subscribe(subscribe) => self.subscribe(subscribe).await,
            ClientFrame::Unsubscribe { sub } => {
                self.subs.retain(|held| held.number != sub);
                Ok(())
            }
            ClientFrame::Tasks {} => {
                self.show_list().await;
                Ok(())
            }
            ClientFrame::Hello(_) => self.complain(None, "bad_frame", "hello was said already"),
            ClientFrame::Command { id } => {
                let message = "this server takes commands over HTTP only: POST /api/v1/tasks/{task}/runs, /api/v1/runs/{run}/stop";
                self.outbox.push_back(frame::error(Some(("id", id)), "forbidden", message, false).into());
                Ok(())
            }
        }
    }

    /// Exactly one outcome for every subscribe.
    async fn subscribe(&mut self, subscribe: Subscribe) -> Result<(), End> {
        let number = subscribe.sub;
        if number == 0 || number > i32::MAX.cast_unsigned() || self.subs.iter().any(|sub| sub.number == number) {
            let message = "a sub is a number from 1 to 2147483647 that is not in use";
            return self.complain(Some(("sub", number.into())), "bad_frame", message);
        }
        let topic = subscribe.task.parse::<TaskId>().ok().and_then(|id| self.live.viewer.publisher.topic(&id));
        let Some(topic) = topic else {
            self.outbox.push_back(frame::not_found(Some(number), &subscribe.task).text.into());
            return Ok(());
        };
        // A new subscribe for a task replaces the older one.
        self.subs.retain(|sub| sub.reader.topic().id != topic.id);
        if self.subs.len() >= self.live.limits.subscriptions {
            let message = format!("a socket has at most {} subscriptions", self.live.limits.subscriptions);
            self.outbox.push_back(frame::error(Some(("sub", number.into())), "limit", &message, false).into());
            return Ok(());
        }
        let peer = &self.member.handle.peer;
        let Some(mut sub) = Sub::enter(&self.live.viewer, topic, peer, Some(number)) else {
            self.outbox.push_back(frame::not_found(Some(number), &subscribe.task).text.into());
            return Ok(());
        };
        let (generation, after) = frame::position(&subscribe);
        let position = Position { generation, after: Some(after) };
        match sub.answer(&self.live.viewer, self.live.limits.replay, position, Span::ALL).await {
            Ok(said) => {
                self.outbox.extend(said.into_iter().map(|said| Utf8Bytes::from(said.text)));
                self.subs.push(sub);
            }
            Err(error) => self.give_up(number, &error),
        }
        Ok(())
    }

    /// A sub that the store cannot serve ends and is asked for again by the client; the socket and its other subs
    /// have nothing to do with it.
    fn give_up(&mut self, number: u32, error: &StoreError) {
        warn!(%error, "a subscription could not be served; its client asks again");
        self.outbox.push_back(frame::store_error(Some(("sub", number.into())), error).into());
    }

    async fn lose_now(&mut self, index: usize, lost: Lost) -> Option<Utf8Bytes> {
        self.lose(index, lost).await;
        self.outbox.pop_front()
    }

    /// A position that is no longer one: the sub ends, or starts again.
    async fn lose(&mut self, index: usize, lost: Lost) {
        let mut sub = self.subs.remove(index);
        match sub.start_again(&self.live.viewer, self.live.limits.replay, lost).await {
            Ok(said) => {
                self.outbox.extend(said.into_iter().map(|said| Utf8Bytes::from(said.text)));
                if lost != Lost::Deleted {
                    self.subs.insert(index, sub);
                }
            }
            Err(error) => self.give_up(sub.number, &error),
        }
    }
}

fn too_large(bytes: usize) -> String {
    format!("{bytes} bytes are too many: a frame has at most {}", frame::MAX_CLIENT_FRAME)
}

/// What a client sent.
#[derive(Debug)]
enum Incoming {
    Text(Utf8Bytes),
    Binary,
}

/// What happened on the wire.
#[derive(Debug)]
enum Step {
    /// Everything fed was accepted.
    Flushed,
    /// A message came.
    Frame(Incoming),
    /// Something came that needs no answer.
    Heard,
}

/// The socket with what is known of its speed.
struct Wire {
    socket: WebSocket,
    pace: Pace,
    fed: usize,
    /// What had been accepted when the flush began.
    accepted_before: u64,
    flushing: bool,
    heard: Instant,
}

impl Wire {
    fn new(socket: WebSocket, pace: Pace) -> Self {
        Self { socket, pace, fed: 0, accepted_before: 0, flushing: false, heard: Instant::now() }
    }

    /// Whether another frame may be fed: the last flush is done, this one is not full, and what was fed is taken.
    fn takes(&self) -> bool {
        !self.flushing && self.fed < self.pace.flush_bytes() && self.waiting() < MOST_WAITING
    }

    /// What was fed and is not accepted yet, in bytes; without the few around each frame.
    fn waiting(&self) -> u64 {
        (self.fed as u64).saturating_sub(self.pace.accepted() - self.accepted_before)
    }

    fn feed(&mut self, text: Utf8Bytes) -> Result<(), End> {
        if self.fed == 0 {
            self.accepted_before = self.pace.accepted();
        }
        self.fed += text.len();
        let socket = Pin::new(&mut self.socket);
        socket.start_send(Message::Text(text)).map_err(|_| End::Gone)
    }

    fn begin_flush(&mut self) {
        if self.fed > 0 && !self.flushing {
            self.flushing = true;
            self.pace.begin();
        }
    }

    /// Notes that nothing waits, so that an idle watcher is not taken for a slow one later.
    fn rest_if_idle(&mut self) {
        if !self.flushing {
            self.pace.rest();
        }
    }

    /// Waits for the end of the flush or for a message, whichever is first. Safe to drop at any point.
    async fn step(&mut self, reads: bool) -> Result<Step, End> {
        std::future::poll_fn(|context| {
            // What comes in goes first: a client that takes all there is must still be heard.
            if reads && let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(context) {
                return Poll::Ready(self.hear(message));
            }
            if self.flushing
                && let Poll::Ready(done) = Pin::new(&mut self.socket).poll_flush(context)
            {
                if done.is_err() {
                    return Poll::Ready(Err(End::Gone));
                }
                self.flushing = false;
                self.fed = 0;
                self.pace.end();
                return Poll::Ready(Ok(Step::Flushed));
            }
            Poll::Pending
        })
        .await
    }

    fn hear(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<Step, End> {
        let message = match message {
            None => return Err(End::Gone),
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let inner = error.into_inner();
                let too_large = matches!(inner.downcast_ref(), Some(WireError::Capacity(_)));
                return Err(if too_large { End::Close(Closing::TOO_LARGE) } else { End::Gone });
            }
        };
        self.heard = Instant::now();
        match message {
            Message::Text(text) => Ok(Step::Frame(Incoming::Text(text))),
            Message::Binary(_) => Ok(Step::Frame(Incoming::Binary)),
            Message::Close(_) => Err(End::Left),
            // Answered by the library; a sign of life all the same.
            Message::Ping(_) | Message::Pong(_) => Ok(Step::Heard),
        }
    }

    /// The first frame, which must be hello.
    async fn hello(&mut self) -> Result<Hello, End> {
        loop {
            return match self.step(true).await? {
                Step::Frame(Incoming::Text(text)) if text.len() > frame::MAX_CLIENT_FRAME => {
                    // Not read: nobody is known yet. Without a hello there is no socket that could be asked again.
                    let error = frame::error(None, "too_large", &too_large(text.len()), false);
                    self.feed(error.into())?;
                    Err(Closing::BAD_FRAMES.into())
                }
                Step::Frame(Incoming::Text(text)) => match serde_json::from_str(&text) {
                    Ok(ClientFrame::Hello(hello)) => Ok(hello),
                    // Another version may have another shape.
                    _ if frame::is_of_another_version(&text) => Err(Closing::PROTOCOL.into()),
                    _ => Err(Closing::BAD_FRAMES.into()),
                },
                Step::Frame(Incoming::Binary) => Err(Closing::BAD_FRAMES.into()),
                Step::Flushed | Step::Heard => continue,
            };
        }
    }

    /// Ready when too little was accepted for too long while data waits; never, while none does.
    fn stalled(&self, window: Duration) -> impl Future<Output = ()> + use<> {
        let meter = self.flushing.then(|| self.pace.meter());
        async move {
            match meter {
                Some(meter) => meter.stalled(window).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Answers the client's close; the library has the answer ready. Without it the client sees a broken
    /// connection where there was none.
    async fn answer_close(mut self) {
        let flush = std::future::poll_fn(|context| Pin::new(&mut self.socket).poll_flush(context));
        let _ = tokio::time::timeout(GOODBYE, flush).await;
    }

    /// Says why, as far as that can still be heard, then lets go.
    async fn goodbye(mut self, closing: &Closing) {
        let reason = Utf8Bytes::from(closing.reason());
        let close = Message::Close(Some(CloseFrame { code: closing.code, reason }));
        if closing.code == Closing::SLOW.code {
            // Its buffers are full: what is in them will not be read. Do not keep it for that.
            self.pace.abort();
        }
        let say = async {
            let _ = self.socket.send(close).await;
            // The answer to a close is a close; wait for it, so that the reason is not lost to a reset.
            while self.step(true).await.is_ok() {}
        };
        let _ = tokio::time::timeout(GOODBYE, say).await;
    }
}
