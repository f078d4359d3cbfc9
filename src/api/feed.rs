//! Server-sent events: `GET /api/v1/tasks/{task}/events` for those who cannot open a socket. One stream, one task of
//! the runtime, one loop; the same subscription as on a socket, in another writing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Api;
use super::auth::Credential;
use super::error::{ApiError, task_id};
use super::events::{EventsQuery, OfRun, number};
use super::frame::{self, Said};
use super::hub::{Closing, Member};
use super::live::Live;
use super::pace::Pace;
use super::socket::{Came, Meter};
use super::sub::{self, Answer, Position, Sub};
use crate::clock::rfc3339;
use crate::event::{Gen, Seq};
use crate::store::StoreError;
use crate::stream::reader::{Lost, Span};
use crate::stream::segment::Slice;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Asks a proxy not to keep events back until it has enough of them.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How long the last words may take to go out.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long a browser waits before it comes back from a line that was cut without a word: not all at the same time.
const RETRY_MS: std::ops::Range<u64> = 1000..3000;
/// When to come back from a store that cannot be used, in milliseconds.
const RETRY_STORE_MS: u64 = 5000;
/// So many events of other runs are passed over before the client's position is moved on in between.
const MOVE_ON: u64 = 1000;

/// Opens a stream of a task's events. What is wrong for good is refused here, as everywhere; what may pass is said in
/// the stream, because a browser stops for good at any status but 200.
///
/// # Errors
/// 400 for a query that is none, 401, 404 when there is no such task or run.
pub async fn open(
    api: &Api,
    came: &Came,
    credential: &Credential,
    task: &str,
    query: &EventsQuery,
    asked: &Parts,
) -> Result<Response, ApiError> {
    let id = task_id(task)?;
    let topic = api.publisher.topic(&id).ok_or_else(|| ApiError::no_task(task))?;
    let position = position(&asked.headers, query)?;
    let of_run = match OfRun::named(&api.runs, &id, query.run.as_deref()).await {
        Ok(of_run) => of_run,
        Err(error) if error.status().is_server_error() => {
            let goodbye = Goodbye { word: "internal", retry_ms: Some(RETRY_STORE_MS) };
            return Ok(response(Body::from(goodbye.text())));
        }
        Err(error) => return Err(error),
    };
    if asked.method == Method::HEAD {
        return Ok(response(Body::empty()));
    }
    let live = api.live.clone();
    let member = match live.hub.enter_stream(credential.id.clone(), credential.user.clone()) {
        Ok(member) => member,
        Err(closing) => {
            api.publisher.metrics().closed.add(closing.word, 1);
            return Ok(response(Body::from(Goodbye::from(closing).text())));
        }
    };
    // Behind the entry: who is signed out from here on is found among the streams.
    live.authority.stands(credential).map_err(|_| ApiError::unauthenticated())?;
    let peer = Arc::clone(&member.handle.peer);
    let sub = Sub::enter(&live.viewer, topic, &peer, None).ok_or_else(|| ApiError::no_task(task))?;
    info!(connection = peer.id, user = %credential.user, task = %id, "watcher connected by events");
    api.publisher.metrics().opened.add("events", 1);
    // It is counted among the sockets from here on, and would keep a place of those who only ask for hours.
    came.place.give_back();
    let (chunks, mut body) = mpsc::channel::<Bytes>(1);
    let feed = Feed {
        pace: Pace::new(Arc::clone(&came.meter), live.limits.slow_bytes),
        meter: Arc::clone(&came.meter),
        live,
        member,
        sub,
        of_run,
        outbox: VecDeque::new(),
        ending: None,
        look: false,
        heartbeat_due: false,
        notices_seen: 0,
        told: Seq(0),
        under_way: false,
    };
    tokio::spawn(feed.serve(chunks, position));
    let body = futures_util::stream::poll_fn(move |context| body.poll_recv(context));
    Ok(response(Body::from_stream(futures_util::StreamExt::map(body, Ok::<_, Infallible>))))
}

fn response(body: Body) -> Response {
    let fixed = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
        // The connection has no place any more, and ends with its stream.
        (header::CONNECTION, HeaderValue::from_static("close")),
    ];
    (fixed, body).into_response()
}

/// Where the client is: the id of the last event that its browser has, else what stands in the address, which is where
/// it was when it first came.
fn position(headers: &HeaderMap, query: &EventsQuery) -> Result<Position, ApiError> {
    if query.before.is_some() {
        return Err(ApiError::invalid("before", "a stream goes forward only: give after"));
    }
    match headers.get(LAST_EVENT_ID) {
        Some(id) if !id.is_empty() => Ok(id.to_str().ok().and_then(read_id).unwrap_or(Position::NONE)),
        _ => {
            let after = number("after", query.after.as_deref())?.unwrap_or(0);
            let generation = query.generation.as_deref().and_then(|text| text.parse().ok());
            Ok(Position { generation, after: Some(Seq(after)) })
        }
    }
}

/// Reads `<gen>.<seq>`.
fn read_id(id: &str) -> Option<Position> {
    let (generation, seq) = id.split_once('.')?;
    let generation = generation.parse().ok()?;
    let is_number = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
    let after = seq.parse().ok().filter(|after| is_number && *after < 1 << 53)?;
    Some(Position { generation: Some(generation), after: Some(Seq(after)) })
}

/// Writes one event of the stream. Frames are one line each.
fn write_event(out: &mut String, name: &str, id: Option<(Gen, Seq)>, data: &str) {
    let _ = writeln!(out, "event: {name}");
    if let Some((generation, seq)) = id {
        let _ = writeln!(out, "id: {generation}.{seq}");
    }
    let _ = write!(out, "data: {data}\n\n");
}

/// What is said before the server ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Goodbye {
    word: &'static str,
    retry_ms: Option<u64>,
}

impl From<Closing> for Goodbye {
    fn from(closing: Closing) -> Self {
        Self { word: closing.word, retry_ms: closing.retry_ms }
    }
}

impl Goodbye {
    /// `close`. A browser comes back in any case: where it has no business any more it is told by a status then.
    fn text(self) -> String {
        let mut data = json!({ "type": "close", "code": self.word });
        if let Some(retry_ms) = self.retry_ms {
            data["retry_ms"] = retry_ms.into();
        }
        let mut text = format!("retry: {}\n", self.retry_ms.unwrap_or(RETRY_MS.start));
        write_event(&mut text, "close", None, &data.to_string());
        text
    }
}

/// Why the loop ended.
#[derive(Debug)]
enum End {
    /// The client is gone.
    Gone,
    /// The server ends it.
    Said(Goodbye),
}

/// What one look for something to say gave.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Something was said.
    Said,
    /// Nothing was said, but the position moved: there may be more.
    Passed,
    /// There is nothing to say.
    Nothing,
}

/// One stream of events.
struct Feed {
    live: Arc<Live>,
    member: Member,
    sub: Sub,
    of_run: Option<OfRun>,
    pace: Pace,
    meter: Arc<Meter>,
    /// Events of the stream that are about to be written. Bounded: whatever makes them does so only while it is
    /// empty.
    outbox: VecDeque<String>,
    /// Said once the outbox is empty.
    ending: Option<Goodbye>,
    /// It was woken: the position may be lost, the notices may have changed.
    look: bool,
    heartbeat_due: bool,
    notices_seen: u64,
    /// The last position that the client was given.
    told: Seq,
    /// Whether something was handed over that may not be accepted yet.
    under_way: bool,
}

impl Feed {
    /// Serves the stream until it ends.
    async fn serve(mut self, chunks: mpsc::Sender<Bytes>, position: Position) {
        let end = match self.run_to_end(&chunks, position).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let closed = &self.live.viewer.publisher.metrics().closed;
        let End::Said(goodbye) = end else { return closed.add("gone", 1) };
        closed.add(goodbye.word, 1);
        info!(connection = self.member.handle.peer.id, code = goodbye.word, "a stream of events is ended");
        let say = async {
            // Behind what was handed over before; then until the network has it.
            let _ = chunks.send(goodbye.text().into()).await;
            let _ = chunks.reserve().await;
            self.meter.taken().await;
        };
        if tokio::time::timeout(GOODBYE, say).await.is_err() && self.meter.waits() {
            // Its buffers are full: what is in them will not be read.
            self.meter.cut();
        }
    }

    /// Hands over while the network takes, then waits for whatever comes first.
    async fn run_to_end(&mut self, chunks: &mpsc::Sender<Bytes>, position: Position) -> Result<Infallible, End> {
        let (every, window) = (self.live.limits.heartbeat, self.live.limits.slow_window);
        let mut heartbeat = Instant::now() + every;
        let peer = Arc::clone(&self.member.handle.peer);
        self.begin(position).await;
        loop {
            if let Some(closing) = self.member.handle.closing() {
                return Err(End::Said(closing.into()));
            }
            // Looked at in each turn: who takes all there is as fast as it comes has heartbeats too.
            let now = Instant::now();
            if now >= heartbeat {
                (self.heartbeat_due, heartbeat) = (true, now + every);
            }
            let waits = self.meter.waits();
            let place = if waits { None } else { chunks.try_reserve().ok() };
            let is_full = place.is_none() && !waits;
            if let Some(place) = place {
                if std::mem::take(&mut self.under_way) {
                    self.pace.end();
                }
                if self.outbox.is_empty()
                    && let Some(goodbye) = self.ending
                {
                    return Err(End::Said(goodbye));
                }
                let (chunk, next) = self.fill().await;
                if !chunk.is_empty() {
                    self.under_way = true;
                    self.pace.begin();
                    place.send(chunk.into());
                    continue;
                }
                if next != Next::Nothing || self.ending.is_some() {
                    continue;
                }
                self.pace.rest();
            }
            tokio::select! {
                () = std::future::poll_fn(|context| peer.wake.poll_raised(context)) => self.look = true,
                () = chunks.closed() => return Err(End::Gone),
                () = self.meter.taken(), if waits => {}
                _ = chunks.reserve(), if is_full => {}
                () = self.meter.stalled(window), if waits => return Err(End::Said(Closing::SLOW.into())),
                () = tokio::time::sleep_until(heartbeat) => {}
            }
        }
    }

    /// The notices of the moment, then the one answer.
    async fn begin(&mut self, position: Position) {
        self.outbox.push_back(format!("retry: {}\n\n", rand::random_range(RETRY_MS)));
        self.tell_notices();
        let span = self.span();
        let answer = self.sub.answer(&self.live.viewer, self.live.limits.replay, position, span).await;
        match answer {
            Ok(Answer::Begins(said)) => {
                self.told = self.sub.reader.next().prev();
                self.say(said);
            }
            Ok(Answer::NotFound(said)) => self.end_with_the_task(said),
            Err(error) => self.give_up(&error),
        }
    }

    fn span(&self) -> Span {
        self.of_run.as_ref().map_or(Span::ALL, |of_run| of_run.span)
    }

    fn say(&mut self, said: Vec<Said>) {
        let generation = self.sub.reader.generation();
        for Said { name, text, seq } in said {
            let mut out = String::with_capacity(text.len() + 96);
            write_event(&mut out, name, seq.map(|seq| (generation, seq)), &text);
            self.outbox.push_back(out);
            self.told = seq.unwrap_or(self.told);
        }
    }

    /// The store cannot serve it: the client comes back, and asks again.
    fn give_up(&mut self, error: &StoreError) {
        warn!(%error, "a stream of events could not be served; its client comes back");
        let mut out = String::new();
        write_event(&mut out, "error", None, &frame::store_error(None, error));
        self.outbox.push_back(out);
        let word = if matches!(error, StoreError::NotWritable(_)) { "not_writable" } else { "internal" };
        self.ending = Some(Goodbye { word, retry_ms: Some(RETRY_STORE_MS) });
    }

    /// As much as is to be handed over at once, and what the last look gave.
    async fn fill(&mut self) -> (String, Next) {
        let most = self.pace.frame_bytes();
        let mut out = String::new();
        loop {
            let next = self.next(&mut out, most).await;
            if next != Next::Said || out.len() >= most {
                return (out, next);
            }
        }
    }

    async fn next(&mut self, out: &mut String, most: usize) -> Next {
        if let Some(text) = self.outbox.pop_front() {
            out.push_str(&text);
            return Next::Said;
        }
        if self.ending.is_some() {
            return Next::Nothing;
        }
        if std::mem::take(&mut self.look) {
            self.look_around().await;
            return Next::Passed;
        }
        if std::mem::take(&mut self.heartbeat_due) {
            self.move_on(out);
            write_event(out, "heartbeat", None, &self.heartbeat().to_string());
            return Next::Said;
        }
        self.pass_over();
        if let Some(piece) = self.sub.draft(most) {
            let is_wanted = self.of_run.as_ref().is_none_or(|of_run| of_run.is(piece.run));
            if is_wanted {
                let Said { name, text, .. } = frame::delta(None, &piece);
                write_event(out, name, None, &text);
            }
            return if is_wanted { Next::Said } else { Next::Passed };
        }
        if let Some(Said { name, text, .. }) = self.sub.caught_up() {
            self.move_on(out);
            write_event(out, name, None, &text);
            return Next::Said;
        }
        if !self.sub.reader.is_due() {
            return Next::Nothing;
        }
        self.next_events(out, most).await
    }

    async fn next_events(&mut self, out: &mut String, most: usize) -> Next {
        match self.sub.next(&self.live.viewer, most).await {
            Ok(sub::Next::Events(slice)) => return self.write_slice(out, &slice),
            Ok(sub::Next::Nothing) => return Next::Nothing,
            Ok(sub::Next::Lost(lost)) => self.lose(lost).await,
            Err(error) => self.give_up(&error),
        }
        Next::Passed
    }

    /// The log's own text with little around it; of one run, only what is of it.
    fn write_slice(&mut self, out: &mut String, slice: &Slice) -> Next {
        let (first, last) = (slice.first, slice.last);
        let wanted: Option<Vec<(Seq, &str)>> =
            self.of_run.as_ref().map(|of_run| slice.events().filter(|(_, event)| of_run.has(event)).collect());
        let joined: String;
        let items = match &wanted {
            Some(wanted) if wanted.is_empty() => {
                if last.0 >= self.told.0 + MOVE_ON {
                    self.move_on(out);
                    return Next::Said;
                }
                return Next::Passed;
            }
            Some(wanted) => {
                joined = wanted.iter().map(|(_, event)| *event).collect::<Vec<_>>().join(",");
                joined.as_str()
            }
            None => slice.items(),
        };
        let name = if first == last { "event" } else { "events" };
        let generation = self.sub.reader.generation();
        let _ = write!(out, "event: {name}\nid: {generation}.{last}\ndata: ");
        if first == last {
            let _ = write!(out, r#"{{"type":"event","event":{items}}}"#);
        } else {
            let _ = write!(out, r#"{{"type":"events","first":{first},"last":{last},"items":[{items}]}}"#);
        }
        out.push_str("\n\n");
        self.told = last;
        let peer = &self.member.handle.peer;
        match wanted {
            Some(wanted) => self.sub.log_delivery(peer, wanted.into_iter()),
            None => self.sub.log_delivery(peer, slice.events()),
        }
        Next::Said
    }

    /// Goes over what cannot be of the run without reading it.
    fn pass_over(&mut self) {
        let span = self.span();
        let reader = &mut self.sub.reader;
        let (next, end) = (reader.next(), reader.topic().head().next());
        let to = match span.last {
            Some(last) if next > last => end,
            _ => span.first.min(end),
        };
        if to > next {
            reader.seek(reader.generation(), to);
        }
    }

    /// `cursor`: the position of who sees only one run moves on with the events of the others.
    fn move_on(&mut self, out: &mut String) {
        let seq = self.sub.reader.next().prev();
        if self.of_run.is_some() && seq > self.told {
            let _ = write!(out, "event: cursor\nid: {}.{seq}\ndata:\n\n", self.sub.reader.generation());
            self.told = seq;
        }
    }

    fn heartbeat(&self) -> Value {
        let heads = json!({ "sent": self.sub.reader.next().prev(), "head": self.sub.reader.topic().head() });
        json!({ "type": "heartbeat", "at": rfc3339(self.live.clock.now()), "heads": heads })
    }

    fn tell_notices(&mut self) {
        let (seen, due) = self.live.notices.since(self.notices_seen);
        self.notices_seen = seen;
        for text in due {
            let mut out = String::new();
            write_event(&mut out, "notice", None, &text);
            self.outbox.push_back(out);
        }
    }

    /// An event shows itself by the head; what is not an event must be looked for.
    async fn look_around(&mut self) {
        self.tell_notices();
        if let Some(lost) = self.sub.reader.lost() {
            self.lose(lost).await;
        }
    }

    fn end_with_the_task(&mut self, said: Said) {
        self.say(vec![said]);
        self.ending = Some(Goodbye { word: "not_found", retry_ms: None });
    }

    /// A position that is no longer one: the stream ends with its task, or starts again.
    async fn lose(&mut self, lost: Lost) {
        match self.sub.start_again(&self.live.viewer, self.live.limits.replay, lost).await {
            Ok(Answer::Begins(said)) => self.say(said),
            Ok(Answer::NotFound(said)) => self.end_with_the_task(said),
            Err(error) => self.give_up(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_log_and_a_number_and_nothing_else() {
        let read = |id| read_id(id).and_then(|position| position.after);
        assert_eq!(read("9d2e77c1a0b4f3e8.1043"), Some(Seq(1043)));
        assert_eq!(read("9d2e77c1a0b4f3e8.0"), Some(Seq(0)));
        for none in [
            "",
            ".",
            "1043",
            "9d2e77c1a0b4f3e8",
            "9d2e77c1a0b4f3e8.",
            "9d2e77c1a0b4f3e8.+1",
            "9d2e77c1a0b4f3e8.-1",
            "9d2e77c1a0b4f3e8.1.2",
            "9d2e77c1a0b4f3e8.9007199254740992",
            "9d2e77c1a0b4f3e8.99999999999999999999",
            "9D2E77C1A0B4F3E8.1",
            "9d2e77c1a0b4f3e.1",
        ] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_last_words_say_why_and_when_to_come_back() {
        let text = Goodbye::from(Closing::draining(1200)).text();
        assert_eq!(
            text,
            "retry: 1200\nevent: close\ndata: {\"code\":\"draining\",\"retry_ms\":1200,\"type\":\"close\"}\n\n"
        );
        assert!(!Goodbye::from(Closing::EXPIRED).text().contains("retry_ms"));
    }
}
