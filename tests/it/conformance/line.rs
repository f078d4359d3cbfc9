//! One connection of a case: a WebSocket or a stream of server-sent events, read one message at a time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

/// How long anything may take that is not itself about time.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// As little as a system can be made to take: it rounds up.
const SMALL: u32 = 4096;

/// What was read.
#[derive(Debug)]
pub enum Heard {
    /// A frame, or an event of a stream as `{"event","id","retry","data"}`.
    Message(Value),
    /// The end, with what was said.
    End(Option<CloseFrame>),
}

/// One connection.
pub enum Line {
    /// A WebSocket.
    Live(Box<WebSocketStream<Stubborn>>),
    /// Server-sent events.
    Feed(Feed),
}

impl Line {
    /// Opens a WebSocket; the status and the body where HTTP refuses it.
    pub async fn live(
        address: SocketAddr,
        headers: &[(String, String)],
        small_window: bool,
    ) -> Result<(Self, Value), Value> {
        let socket = TcpSocket::new_v4().unwrap();
        if small_window {
            socket.set_recv_buffer_size(SMALL).unwrap();
        }
        let stream = socket.connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut request = format!("ws://{address}/api/v1/live").into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "rejoin.v1".parse().unwrap());
        for (name, value) in headers {
            let name: tokio_tungstenite::tungstenite::http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        match tokio_tungstenite::client_async(request, Stubborn(stream)).await {
            Ok((socket, response)) => {
                let answer = json!({ "status": 101, "headers": headers_of(response.headers()) });
                Ok((Self::Live(Box::new(socket)), answer))
            }
            Err(Error::Http(response)) => Err(json!({ "status": response.status().as_u16() })),
            Err(error) => panic!("{error}"),
        }
    }

    /// Opens a stream of server-sent events; the status, headers and body where it is none.
    pub async fn feed(request: reqwest::RequestBuilder) -> Result<(Self, Value), Value> {
        let response = timeout(PATIENCE, request.send()).await.expect("no answer").unwrap();
        let mut answer = json!({ "status": response.status().as_u16(), "headers": headers_of(response.headers()) });
        let kind = answer["headers"]["content-type"].as_str().unwrap_or_default().to_owned();
        if response.status() != 200 || !kind.starts_with("text/event-stream") {
            answer["body"] = response.json().await.unwrap_or_default();
            return Err(answer);
        }
        let feed = Feed { response, unread: Vec::new() };
        Ok((Self::Feed(feed), answer))
    }

    /// The next message.
    pub async fn hear(&mut self) -> Result<Heard, String> {
        let heard = async {
            match self {
                Self::Live(socket) => loop {
                    match socket.next().await {
                        Some(Ok(Message::Text(text))) => {
                            let frame = serde_json::from_str(&text).map_err(|_| format!("no JSON came: {text}"))?;
                            return Ok(Heard::Message(frame));
                        }
                        Some(Ok(Message::Close(close))) => return Ok(Heard::End(close)),
                        Some(Ok(Message::Binary(_))) => return Err("a frame came that is no text".to_owned()),
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Ok(Heard::End(None)),
                    }
                },
                Self::Feed(feed) => feed.hear().await,
            }
        };
        timeout(PATIENCE, heard).await.map_err(|_| format!("nothing came within {} s", PATIENCE.as_secs()))?
    }

    /// Sends a message over a WebSocket.
    pub async fn say(&mut self, message: Message) -> Result<(), String> {
        let Self::Live(socket) = self else { return Err("nothing can be sent over server-sent events".to_owned()) };
        // Who was closed meanwhile hears it when it listens.
        let _ = socket.feed(message).await;
        let _ = timeout(PATIENCE, socket.flush()).await.map_err(|_| "the server takes nothing".to_owned())?;
        Ok(())
    }
}

/// A connection on which writing never fails: a server that closes in the middle of a long message said why before it
/// did, and that is what counts.
pub struct Stubborn(TcpStream);

impl AsyncRead for Stubborn {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buf)
    }
}

impl AsyncWrite for Stubborn {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes).map(|written| Ok(written.unwrap_or(bytes.len())))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context).map(|_| Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context).map(|_| Ok(()))
    }
}

/// A stream of server-sent events.
pub struct Feed {
    response: reqwest::Response,
    unread: Vec<u8>,
}

impl Feed {
    async fn hear(&mut self) -> Result<Heard, String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.unread.drain(..end + 2).collect();
                let block = String::from_utf8(block).map_err(|_| "what came is no UTF-8".to_owned())?;
                if let Some(message) = message_of(&block)? {
                    return Ok(Heard::Message(message));
                }
                continue;
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.unread.extend_from_slice(&bytes),
                Ok(None) | Err(_) => return Ok(Heard::End(None)),
            }
        }
    }
}

/// An event of a stream; none for a comment.
fn message_of(block: &str) -> Result<Option<Value>, String> {
    let mut message = Map::new();
    let mut data: Vec<&str> = Vec::new();
    for line in block.lines().filter(|line| !line.is_empty() && !line.starts_with(':')) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" | "id" => drop(message.insert(name.to_owned(), value.into())),
            "retry" => {
                let number: u64 = value.parse().map_err(|_| format!("retry: {value} is no number"))?;
                message.insert(name.to_owned(), number.into());
            }
            "data" => data.push(value),
            _ => return Err(format!("a field {name} came")),
        }
    }
    if !data.is_empty() {
        let text = data.join("\n");
        message.insert("data".to_owned(), serde_json::from_str(&text).unwrap_or(Value::String(text)));
    }
    Ok((!message.is_empty()).then_some(Value::Object(message)))
}

fn headers_of(headers: &reqwest::header::HeaderMap) -> Value {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())).collect()
}
