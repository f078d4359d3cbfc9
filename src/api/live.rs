//! `GET /api/v1/live`: one socket, one task of the runtime, one loop. It is woken and pulls; nothing is queued
//! for it anywhere but the few frames it is about to write.

use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use serde_json::json;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tracing::info;

use self::session::Session;
use super::auth::{Authority, Credential, Refused};
use super::board::Board;
use super::command::Commands;
use super::frame::{self, ClientFrame, Hello};
use super::hub::{Closing, Hub, Knock};
use super::notice::Notices;
use super::pace::Pace;
use super::socket::Meter;
use super::websocket::{Incoming, Over, Step, WebSocket};
use super::wire::Viewer;
use crate::clock::Clock;
use crate::stream::reader::ReplayLimits;

mod session;

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

/// The longest client id.
const MAX_CLIENT: usize = 64;

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
    /// Carries out commands.
    pub commands: Commands,
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

impl End {
    /// Its name among those that are counted.
    const fn word(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Left => "left",
            Self::Close(closing) => closing.word,
        }
    }
}

impl From<Closing> for End {
    fn from(closing: Closing) -> Self {
        Self::Close(closing)
    }
}

impl From<Over> for End {
    fn from(over: Over) -> Self {
        match over {
            Over::Gone => Self::Gone,
            Over::Left => Self::Left,
            Over::TooLarge => Self::Close(Closing::TOO_LARGE),
            Over::Broken => Self::Close(Closing::BROKEN),
            Over::NotText => Self::Close(Closing::NOT_TEXT),
        }
    }
}

impl Live {
    /// Serves one socket until it ends.
    pub async fn serve(self: Arc<Self>, upgraded: Upgraded, opening: Opening) {
        let meter = Arc::clone(&opening.meter);
        let mut wire = WebSocket::new(upgraded, Pace::new(meter, self.limits.slow_bytes));
        let is_known = matches!(opening.header.as_ref().or(opening.cookie.as_ref()), Some(Ok(_)));
        let end = match self.hub.knock(is_known) {
            Err(closing) => End::Close(closing),
            // What happens once or seldom has a place of its own: what is in this one is memory of every watcher.
            Ok(knock) => match Box::pin(self.welcome(&mut wire, opening, knock)).await {
                Ok(mut session) => {
                    let end = session.run(&mut wire).await;
                    if let End::Close(closing) = &end {
                        session.member.handle.close(closing.clone());
                        session.last_words(&mut wire, closing);
                    }
                    end
                }
                Err(end) => end,
            },
        };
        let closed = &self.viewer.publisher.metrics().closed;
        closed.add(end.word(), 1);
        match end {
            End::Gone => {}
            End::Left => Box::pin(wire.answer_close()).await,
            End::Close(closing) => Box::pin(wire.goodbye(&closing)).await,
        }
    }

    /// Hello, credential, welcome.
    async fn welcome(self: &Arc<Self>, wire: &mut WebSocket, opening: Opening, knock: Knock) -> Result<Session, End> {
        let hello = tokio::time::timeout(self.limits.hello, hello(wire))
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
        self.viewer.publisher.metrics().opened.add("websocket", 1);
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
        Ok(Session::new(Arc::clone(self), member, credential, hello, welcome.to_string()))
    }
}

fn too_large(bytes: usize) -> String {
    format!("{bytes} bytes are too many: a frame has at most {}", frame::MAX_CLIENT_FRAME)
}

/// The first frame, which must be hello.
async fn hello(wire: &mut WebSocket) -> Result<Hello, End> {
    loop {
        return match wire.step(true).await? {
            Step::Frame(Incoming::Text(text)) if text.len() > frame::MAX_CLIENT_FRAME => {
                // Not read: nobody is known yet. Without a hello there is no socket that could be asked again.
                let error = frame::error(None, "too_large", &too_large(text.len()), false);
                wire.feed(Utf8Bytes::from(error).into());
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
