//! One WebSocket: messages in, frames out, and how fast they are taken. What a message is, is the library's; what
//! goes out beside its pongs and its close goes around its buffers (`outgoing`).

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::error::ApiError;
use super::frame;
use super::hub::Closing;
use super::outgoing::{Frame, Outgoing};
use super::pace::Pace;

/// The only subprotocol there is.
const SUBPROTOCOL: &str = "rejoin.v1";
/// How much is read at a time: what a client says is a few words, and this is memory per watcher.
const READ: usize = 256;
/// How much of a flush may wait in front of a socket that takes nothing more: it keeps its events in memory after the
/// ring has let go of them.
const MOST_WAITING: usize = 64 * 1024;
/// After so much was written in one go, others have their turn.
const TURN: usize = 512 * 1024;
/// How long a close frame may take to go out.
const GOODBYE: Duration = Duration::from_secs(1);

/// Answers a request for a WebSocket: with the answer, and what becomes of the connection once it is sent.
///
/// # Errors
/// 400 when it is none; 426 where there is nothing that could be upgraded.
pub fn accept(request: &mut Request) -> Result<(Response, OnUpgrade), ApiError> {
    let refused = |error: Error| ApiError::new(StatusCode::BAD_REQUEST, "invalid", format!("no WebSocket: {error}"));
    let mut response = create_response_with_body(request, Body::empty).map_err(refused)?;
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers =
        |list: &HeaderValue| list.to_str().is_ok_and(|list| list.split(',').any(|it| it.trim() == SUBPROTOCOL));
    if offered.iter().any(offers) {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok((response, hyper::upgrade::on(request)))
}

/// What a client sent.
#[derive(Debug)]
pub enum Incoming {
    /// A text message.
    Text(Utf8Bytes),
    /// A binary message.
    Binary,
}

/// What happened on the socket.
#[derive(Debug)]
pub enum Step {
    /// Everything fed was accepted.
    Flushed,
    /// A message came.
    Frame(Incoming),
    /// Something came that needs no answer.
    Heard,
}

/// Why there will be no further step.
#[derive(Debug)]
pub enum Over {
    /// The client is gone.
    Gone,
    /// The client said that it goes: its close is answered with ours.
    Left,
    /// It sent a message that is not even read.
    TooLarge,
    /// It broke the rules of WebSockets.
    Broken,
    /// It sent text that is not UTF-8.
    NotText,
}

/// The socket with what is known of its speed.
pub struct WebSocket {
    io: TokioIo<Upgraded>,
    protocol: WebSocketContext,
    outgoing: Outgoing,
    pace: Pace,
    /// What was put into the present flush, in bytes.
    fed: usize,
    /// Nothing more is put into it: it is waited for.
    flushing: bool,
    /// What was written since others had their turn.
    turn: usize,
    heard: Instant,
    /// The library must not be asked again: it has said why.
    ended: bool,
}

/// The connection as the library wants it: reads come from it, writes wait in their order among the frames.
struct Through<'a, 'c> {
    io: &'a mut TokioIo<Upgraded>,
    outgoing: &'a mut Outgoing,
    context: &'a mut Context<'c>,
}

impl Read for Through<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(into);
        match Pin::new(&mut *self.io).poll_read(self.context, &mut into) {
            Poll::Ready(read) => read.map(|()| into.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Through<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.outgoing.push_made(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WebSocket {
    /// A socket that has said nothing yet.
    pub fn new(upgraded: Upgraded, pace: Pace) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(0)
            .max_message_size(Some(frame::MAX_MESSAGE))
            .max_frame_size(Some(frame::MAX_MESSAGE));
        Self {
            io: TokioIo::new(upgraded),
            protocol: WebSocketContext::new(Role::Server, Some(config)),
            outgoing: Outgoing::default(),
            pace,
            fed: 0,
            flushing: false,
            turn: 0,
            heard: Instant::now(),
            ended: false,
        }
    }

    /// Whether another frame may be fed: the last flush is done, this one is not full, and what was fed is taken.
    pub fn takes(&self) -> bool {
        !self.flushing && self.fed < self.pace.flush_bytes() && self.outgoing.bytes() < MOST_WAITING
    }

    /// How many bytes of events to put into the next frame.
    pub fn frame_bytes(&self) -> usize {
        self.pace.frame_bytes()
    }

    /// When something was last heard of the client.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Puts a frame behind those that are about to be written.
    pub fn feed(&mut self, frame: Frame) {
        if self.outgoing.is_empty() && self.fed == 0 {
            self.pace.begin();
        }
        self.fed += self.outgoing.push(frame);
    }

    /// Writes what was fed, as far as it is taken at once. `more` says whether the flush could go on. True when all
    /// of it was taken.
    ///
    /// # Errors
    /// When the client is gone.
    pub async fn write(&mut self, more: bool) -> Result<bool, Over> {
        let waited = self.outgoing.bytes();
        let written =
            std::future::poll_fn(|context| Poll::Ready(self.outgoing.poll_write(Pin::new(&mut self.io), context)));
        let all = match written.await {
            Poll::Ready(written) => written.map(|()| true).map_err(|_| Over::Gone)?,
            Poll::Pending => false,
        };
        self.turn += waited - self.outgoing.bytes();
        if !all {
            self.flushing = true;
        } else if !more || self.fed >= self.pace.flush_bytes() {
            self.end_flush();
        }
        Ok(all)
    }

    /// Whether so much was written in one go that others should have their turn.
    pub fn turn_is_over(&self) -> bool {
        self.turn >= TURN
    }

    /// Others had their turn.
    pub fn begin_turn(&mut self) {
        self.turn = 0;
    }

    fn end_flush(&mut self) {
        self.flushing = false;
        if std::mem::take(&mut self.fed) > 0 {
            self.pace.end();
        }
    }

    /// Notes that nothing waits, so that an idle watcher is not taken for a slow one later, and holds nothing.
    pub fn rest_if_idle(&mut self) {
        if self.outgoing.is_empty() {
            self.pace.rest();
            self.outgoing.rest();
        }
    }

    /// Waits for the end of the flush or for a message, whichever is first. Safe to drop at any point.
    ///
    /// # Errors
    /// When there will be no further step.
    pub async fn step(&mut self, reads: bool) -> Result<Step, Over> {
        std::future::poll_fn(|context| self.poll_step(context, reads)).await
    }

    fn poll_step(&mut self, context: &mut Context<'_>, reads: bool) -> Poll<Result<Step, Over>> {
        // What comes in goes first: a client that takes all there is must still be heard.
        if reads && let Poll::Ready(heard) = self.poll_message(context) {
            return Poll::Ready(heard);
        }
        if self.outgoing.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.outgoing.poll_write(Pin::new(&mut self.io), context)) {
            Ok(()) => {
                self.end_flush();
                Poll::Ready(Ok(Step::Flushed))
            }
            Err(_) => Poll::Ready(Err(Over::Gone)),
        }
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Step, Over>> {
        if self.ended {
            return Poll::Ready(Err(Over::Gone));
        }
        let Self { io, protocol, outgoing, .. } = self;
        let waited = !outgoing.is_empty();
        let read = protocol.read(&mut Through { io, outgoing, context });
        if !waited && !outgoing.is_empty() {
            // A pong is due: it is waited for as any frame is.
            self.pace.begin();
        }
        let message = match read {
            Ok(message) => message,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => {
                self.ended = true;
                return Poll::Ready(Err(match error {
                    Error::Capacity(_) => Over::TooLarge,
                    Error::Utf8(_) => Over::NotText,
                    // An end without a close is no rule that was broken: lines are cut.
                    Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Over::Gone,
                    Error::Protocol(_) => Over::Broken,
                    _ => Over::Gone,
                }));
            }
        };
        self.heard = Instant::now();
        Poll::Ready(match message {
            Message::Text(text) => Ok(Step::Frame(Incoming::Text(text))),
            Message::Binary(_) => Ok(Step::Frame(Incoming::Binary)),
            Message::Close(_) => Err(Over::Left),
            // Answered by the library; a sign of life all the same.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(Step::Heard),
        })
    }

    /// When too little will have been accepted for too long; none while nothing waits.
    pub fn stalls_at(&self, window: Duration) -> Option<Instant> {
        (!self.outgoing.is_empty()).then(|| self.pace.progressed() + window)
    }

    /// Answers the client's close; the library has the answer ready. Without it the client sees a broken
    /// connection where there was none.
    pub async fn answer_close(mut self) {
        let answer = std::future::poll_fn(|context| {
            let Self { io, protocol, outgoing, .. } = &mut self;
            // Says that the connection is over, having put the answer among the frames.
            let _ = protocol.flush(&mut Through { io, outgoing, context });
            self.outgoing.poll_write(Pin::new(&mut self.io), context)
        });
        let _ = tokio::time::timeout(GOODBYE, answer).await;
    }

    /// Says why, as far as that can still be heard, then lets go.
    pub async fn goodbye(mut self, closing: &Closing) {
        if closing.code == Closing::SLOW.code {
            // The line is full: what is in it will not be read. Do not keep it for that.
            self.pace.abort();
        }
        let frame = CloseFrame { code: closing.code.into(), reason: closing.reason().into() };
        let say = async {
            let mut close = Some(frame);
            let said = std::future::poll_fn(|context| {
                let Self { io, protocol, outgoing, .. } = &mut self;
                if let Some(frame) = close.take() {
                    let _ = protocol.close(&mut Through { io, outgoing, context }, Some(frame));
                }
                self.outgoing.poll_write(Pin::new(&mut self.io), context)
            });
            if said.await.is_ok() {
                // The answer to a close is a close; wait for it, so that the reason is not lost to a reset.
                while self.step(true).await.is_ok() {}
            }
        };
        let _ = tokio::time::timeout(GOODBYE, say).await;
    }
}
