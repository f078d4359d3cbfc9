//! One socket after its welcome: what it is owed, what it asks for, and the loop that goes on until it ends.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tracing::warn;

use super::{End, Live, too_large};
use crate::api::auth::Credential;
use crate::api::board::{self, Due};
use crate::api::command::{Desk, Taken};
use crate::api::frame::{self, ClientFrame, Hello, Subscribe};
use crate::api::hub::{Closing, Member};
use crate::api::outgoing::Frame;
use crate::api::sub::{Answer, Next, Position, Sub};
use crate::api::websocket::{Incoming, Step, WebSocket};
use crate::clock::rfc3339;
use crate::event::TaskId;
use crate::store::StoreError;
use crate::stream::reader::{Lost, Span};

/// Bad frames after which a socket is closed.
const BAD_FRAMES: u32 = 5;
/// Client frames that may wait while what was asked for is still being written.
const WAITING_FRAMES: usize = 64;
/// Client frames per heartbeat interval that are too many.
const FRAMES_PER_HEARTBEAT: u32 = 2000;
/// How long one whose time is over still has. A server that stood still, as its whole machine may, finds the time over
/// before it has read what came meanwhile.
const SECOND_LOOK: Duration = Duration::from_millis(100);

/// One socket after its welcome.
pub(super) struct Session {
    live: Arc<Live>,
    pub(super) member: Member,
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
    /// Its commands that are under way.
    desk: Desk,
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
    /// One that was welcomed: what its hello asked for is to be answered, behind the welcome.
    pub(super) fn new(live: Arc<Live>, member: Member, credential: Credential, hello: Hello, welcome: String) -> Self {
        let mut session = Self {
            live,
            member,
            desk: Desk::new(credential),
            subs: Vec::with_capacity(hello.subscribe.len()),
            turn: 0,
            outbox: VecDeque::from([welcome.into()]),
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
        session
    }

    /// Fills the wire while it takes, then waits for whatever comes first.
    pub(super) async fn run(&mut self, wire: &mut WebSocket) -> End {
        match self.run_to_end(wire).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn run_to_end(&mut self, wire: &mut WebSocket) -> Result<std::convert::Infallible, End> {
        let live = Arc::clone(&self.live);
        let limits = &live.limits;
        let mut heartbeat = Instant::now() + limits.heartbeat;
        // One alarm for all that has a time. It may ring too early, as it is seldom set back: then it is set anew.
        let mut alarm = pin!(tokio::time::sleep_until(heartbeat));
        // When one whose time is over is looked at for the second time.
        let mut second_look: Option<Instant> = None;
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
                Box::pin(self.handle(next)).await?;
            }
            let due = wire.takes() && (!self.outbox.is_empty() || self.has_due());
            if due && !wire.turn_is_over() {
                continue;
            }
            wire.rest_if_idle();
            self.rest();
            if inbox.is_empty() {
                inbox = VecDeque::new();
            }
            let reads = inbox.len() < WAITING_FRAMES;
            let silent = reads.then(|| wire.heard() + limits.life);
            let stalls = wire.stalls_at(limits.slow_window);
            let next = [silent, stalls].into_iter().flatten().fold(heartbeat, Instant::min);
            second_look = second_look.filter(|_| next <= Instant::now());
            let next = second_look.map_or(next, |at| next.max(at));
            if next < alarm.deadline() {
                alarm.as_mut().reset(next);
            }
            tokio::select! {
                // In this order, so that the same happens again when the same comes again. A wake may wait behind a
                // frame that came, as what is due is asked for in each round.
                biased;
                () = &mut alarm => {
                    let now = Instant::now();
                    let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
                    // Asked again: what was accepted of a flush that goes on is no step of its own.
                    let stalls = wire.stalls_at(limits.slow_window);
                    let verdict = match (is_past(stalls), is_past(silent)) {
                        (true, _) => Some(Closing::SLOW),
                        (false, true) => Some(Closing::NO_LIFE),
                        (false, false) => None,
                    };
                    second_look = match (verdict, second_look) {
                        (Some(verdict), Some(at)) if at <= now => return Err(verdict.into()),
                        (Some(_), at) => at.or(Some(now + SECOND_LOOK)),
                        (None, _) => None,
                    };
                    if heartbeat <= now {
                        self.frames = 0;
                        self.heartbeat_due = true;
                        heartbeat = now + limits.heartbeat;
                    }
                    alarm.as_mut().reset(heartbeat);
                }
                step = wire.step(reads) => match step? {
                    Step::Flushed => {}
                    Step::Heard => self.count_frame()?,
                    Step::Frame(next) => inbox.extend(self.accept(next)?),
                },
                () = std::future::poll_fn(|context| peer.wake.poll_raised(context)) => self.look = true,
                // More is due, but much went out already: others first.
                () = tokio::task::yield_now(), if due => {}
            }
            wire.begin_turn();
        }
    }

    /// Writes frames while the wire takes them and any are due, until others should have their turn.
    async fn fill(&mut self, wire: &mut WebSocket) -> Result<(), End> {
        while wire.takes() && !wire.turn_is_over() {
            let mut more = true;
            while more && wire.takes() {
                match self.next_frame(wire.frame_bytes()).await? {
                    Some(next) => wire.feed(next),
                    None => more = false,
                }
            }
            if !wire.write(more).await? || !more {
                break;
            }
        }
        Ok(())
    }

    async fn next_frame(&mut self, max_bytes: usize) -> Result<Option<Frame>, End> {
        loop {
            if let Some(next) = self.outbox.pop_front() {
                return Ok(Some(next.into()));
            }
            if let Some(asked) = self.greeting.pop_front() {
                Box::pin(self.handle(asked)).await?;
            } else if std::mem::take(&mut self.look) {
                self.look_around().await;
            } else if std::mem::take(&mut self.heartbeat_due) {
                return Ok(Some(Utf8Bytes::from(self.heartbeat()).into()));
            } else {
                return self.next_events(max_bytes).await;
            }
        }
    }

    fn give_up_now(&mut self, index: usize, error: &StoreError) -> Option<Frame> {
        let sub = self.subs.remove(index);
        self.give_up(sub.number, error);
        self.outbox.pop_front().map(Frame::from)
    }

    /// The next events of whichever sub's turn it is.
    async fn next_events(&mut self, max_bytes: usize) -> Result<Option<Frame>, End> {
        for _ in 0..self.subs.len() {
            let index = self.turn % self.subs.len();
            self.turn = index + 1;
            let sub = &mut self.subs[index];
            if let Some(said) = sub.delta(max_bytes) {
                return Ok(Some(Utf8Bytes::from(said.text).into()));
            }
            if let Some(said) = sub.caught_up() {
                return Ok(Some(Utf8Bytes::from(said.text).into()));
            }
            if !sub.reader.is_due() {
                continue;
            }
            match sub.next(&self.live.viewer, max_bytes).await {
                Ok(Next::Events(slice)) => {
                    sub.log_delivery(&self.member.handle.peer, slice.events());
                    return Ok(Some(Frame::Events { sub: sub.number, slice }));
                }
                Ok(Next::Nothing) => {}
                Ok(Next::Lost(lost)) => return Ok(Box::pin(self.lose_now(index, lost)).await),
                Err(error) => return Ok(self.give_up_now(index, &error)),
            }
        }
        Ok(None)
    }

    fn has_due(&self) -> bool {
        self.heartbeat_due
            || self.look
            || !self.greeting.is_empty()
            || self.subs.iter().any(|sub| sub.reader.is_due() || sub.is_caught_up() || sub.reader.has_draft())
    }

    /// An event shows itself by the head; what is not an event must be looked for. One thing at a time: a
    /// snapshot is large, and there may be many.
    async fn look_around(&mut self) {
        self.tell_notices();
        self.outbox.extend(self.desk.fetch().into_iter().map(Utf8Bytes::from));
        let lost = self.subs.iter().enumerate().find_map(|(index, sub)| Some((index, sub.reader.lost()?)));
        if let Some((index, lost)) = lost {
            self.look = true;
            return Box::pin(self.lose(index, lost)).await;
        }
        let Some(rev) = self.list else { return };
        match self.live.board.due(rev) {
            Due::Nothing => {}
            Due::Frame(rev, text) => {
                self.list = Some(rev);
                self.outbox.push_back(Utf8Bytes::from(&*text));
                self.look = true;
            }
            Due::All => Box::pin(self.send_list()).await,
        }
    }

    /// Gives back what was held for frames, now that none is due.
    fn rest(&mut self) {
        if self.outbox.is_empty() && self.greeting.is_empty() {
            (self.outbox, self.greeting) = (VecDeque::new(), VecDeque::new());
        }
    }

    fn tell_notices(&mut self) {
        let (seen, due) = self.live.notices.since(self.notices_seen);
        self.notices_seen = seen;
        self.outbox.extend(due.into_iter().map(Utf8Bytes::from));
    }

    /// Why the server goes is told in words too, also to who is closed before it looked around.
    pub(super) fn last_words(&mut self, wire: &mut WebSocket, closing: &Closing) {
        if closing.code == Closing::draining(0).code {
            let (_, due) = self.live.notices.since(self.notices_seen);
            due.into_iter().for_each(|notice| wire.feed(Utf8Bytes::from(notice).into()));
        }
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
        // Thousands of idle sockets say nothing else: written as it is, without a tree of values.
        let mut text = format!(r#"{{"type":"heartbeat","at":"{}","heads":{{"#, rfc3339(self.live.clock.now()));
        for (index, sub) in self.subs.iter().enumerate() {
            let (comma, number) = (if index > 0 { "," } else { "" }, sub.number);
            let (sent, head) = (sub.reader.next().prev(), sub.reader.topic().head());
            let _ = write!(text, r#"{comma}"{number}":{{"sent":{sent},"head":{head}}}"#);
        }
        text.push_str("}}");
        text
    }

    /// Reads a frame; what cannot be understood is answered, and the fifth ends the socket.
    fn accept(&mut self, text: Incoming) -> Result<Option<ClientFrame>, End> {
        self.count_frame()?;
        let (code, message) = match text {
            // A list of the members would be understood as well.
            Incoming::Text(text) if !text.trim_start().starts_with('{') => {
                ("bad_frame", "a frame is a JSON object".to_owned())
            }
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
            ClientFrame::Command { id, what } => {
                match self.desk.take(&self.live.commands, &self.member.handle, &id, what) {
                    Taken::Bad(why) => self.complain(Some(("id", id)), "bad_frame", &why),
                    Taken::Said(text) => {
                        self.outbox.push_back(text.into());
                        Ok(())
                    }
                    Taken::Later => Ok(()),
                }
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
            Ok(Answer::Begins(said)) => {
                self.outbox.extend(said.into_iter().map(|said| Utf8Bytes::from(said.text)));
                self.subs.push(sub);
            }
            Ok(Answer::NotFound(said)) => self.outbox.push_back(said.text.into()),
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

    async fn lose_now(&mut self, index: usize, lost: Lost) -> Option<Frame> {
        self.lose(index, lost).await;
        self.outbox.pop_front().map(Frame::from)
    }

    /// A position that is no longer one: the sub ends, or starts again.
    async fn lose(&mut self, index: usize, lost: Lost) {
        let mut sub = self.subs.remove(index);
        match sub.start_again(&self.live.viewer, self.live.limits.replay, lost).await {
            Ok(Answer::Begins(said)) => {
                self.outbox.extend(said.into_iter().map(|said| Utf8Bytes::from(said.text)));
                self.subs.insert(index, sub);
            }
            Ok(Answer::NotFound(said)) => self.outbox.push_back(said.text.into()),
            Err(error) => self.give_up(sub.number, &error),
        }
    }
}
