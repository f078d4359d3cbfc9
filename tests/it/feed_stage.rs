//! A client of server-sent events that does what a browser's does, byte by byte, and nothing by itself.
#![allow(dead_code, reason = "not every build of the tests needs all of it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::harness::{Client, PATIENCE, events_of};

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Its name.
    pub name: String,
    /// The id that it sets, if it sets one.
    pub id: Option<String>,
    /// Its data.
    pub data: String,
    /// How long to wait before coming back, if it says so.
    pub retry: Option<u64>,
}

impl Said {
    /// Its data as a frame; null where it is no JSON.
    pub fn frame(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or(Value::Null)
    }
}

/// One answer that is read as it comes.
pub struct Stream {
    /// The connection.
    pub socket: TcpStream,
    /// The status.
    pub status: u16,
    /// The headers, with their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What was received and is not taken apart yet.
    raw: Vec<u8>,
    /// What was taken out of its chunks and not out of its lines.
    text: Vec<u8>,
    chunked: bool,
    ended: bool,
    /// The last id, as a browser keeps it.
    pub last_id: Option<String>,
    /// How long it waits for the next bytes.
    pub patience: Duration,
}

impl Stream {
    /// Asks for the events of a task. `query` begins with `?` unless it is empty.
    pub async fn open(client: &Client, task: &str, query: &str, headers: &[(&str, &str)]) -> Self {
        let socket = TcpStream::connect(client.address).await.unwrap();
        let token = format!("Bearer {}", client.token());
        let headers: Vec<_> = headers.iter().copied().chain([("Authorization", token.as_str())]).collect();
        Self::over(socket, client.address, "GET", task, query, &headers).await.expect("an answer")
    }

    /// The same over a connection that is there, with these headers and no others.
    pub async fn over(
        mut socket: TcpStream,
        host: SocketAddr,
        method: &str,
        task: &str,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Option<Self> {
        let mut request = format!("{method} /api/v1/tasks/{task}/events{query} HTTP/1.1\r\nHost: {host}\r\n");
        if !headers.iter().any(|(name, _)| *name == "Accept") {
            request.push_str("Accept: text/event-stream\r\n");
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        socket.set_nodelay(true).ok()?;
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut stream = Self {
            socket,
            status: 0,
            headers: BTreeMap::new(),
            raw: Vec::new(),
            text: Vec::new(),
            chunked: false,
            ended: false,
            last_id: None,
            patience: PATIENCE,
        };
        stream.read_head().await?;
        Some(stream)
    }

    async fn read_head(&mut self) -> Option<()> {
        let end = loop {
            if let Some(end) = self.raw.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            self.receive().await?;
        };
        let head: Vec<u8> = self.raw.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        self.status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        self.headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        self.chunked = self.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
        Some(())
    }

    async fn receive(&mut self) -> Option<()> {
        let mut buffer = [0; 16 * 1024];
        let count = timeout(self.patience, self.socket.read(&mut buffer)).await.expect("nothing came").ok()?;
        self.raw.extend_from_slice(&buffer[..count]);
        (count > 0).then_some(())
    }

    /// Takes whole chunks out of what was received.
    fn unpack(&mut self) {
        if !self.chunked {
            self.text.append(&mut self.raw);
            return;
        }
        while let Some(line) = self.raw.windows(2).position(|two| two == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&self.raw[..line]).unwrap(), 16).unwrap();
            if self.raw.len() < line + 2 + size + 2 {
                return;
            }
            self.text.extend_from_slice(&self.raw[line + 2..line + 2 + size]);
            assert_eq!(&self.raw[line + 2 + size..line + 4 + size], b"\r\n");
            self.raw.drain(..line + 4 + size);
            self.ended |= size == 0;
        }
    }

    /// The next event of the stream; none when it has ended, in order or not.
    pub async fn next(&mut self) -> Option<Said> {
        loop {
            self.unpack();
            while let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.text.drain(..end + 2).collect();
                if let Some(said) = self.read_block(&String::from_utf8(block).unwrap()) {
                    return Some(said);
                }
            }
            if self.ended {
                return None;
            }
            self.receive().await?;
        }
    }

    /// Whether the stream had an end, and was not cut.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn read_block(&mut self, block: &str) -> Option<Said> {
        let (mut said, mut has_data) = (Said::default(), false);
        assert!(!block.contains('\r'), "a line ends in one way");
        for line in block.lines().filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "event" => said.name = value,
                "id" => said.id = Some(value),
                "retry" => said.retry = value.parse().ok(),
                "data" => {
                    assert!(!has_data, "a frame is one line: {block}");
                    (said.data, has_data) = (value, true);
                }
                other => panic!("{other:?} is no field of a stream of ours: {block:?}"),
            }
        }
        if said.id.is_some() {
            self.last_id.clone_from(&said.id);
        }
        // What says only when to come back is no event.
        has_data.then_some(said)
    }

    /// Reads on until an event of this name; gives all that came, the wanted last.
    pub async fn until(&mut self, name: &str) -> Vec<Said> {
        self.until_that(|said| said.name == name).await
    }

    /// Reads on until an event is as wanted; gives all that came, the wanted last.
    pub async fn until_that(&mut self, good: impl Fn(&Said) -> bool) -> Vec<Said> {
        let (mut all, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            let said = self.next().await.unwrap_or_else(|| panic!("ended before what was waited for: {all:?}"));
            assert!(said.name == "cursor" || said.frame()["type"] == said.name, "its name is its type: {said:?}");
            let (done, is_heartbeat) = (good(&said), said.name == "heartbeat");
            all.push(said);
            if done {
                return all;
            }
            // They come for ever, and make nobody wait longer for something else.
            assert!(!is_heartbeat || Instant::now() < deadline, "what was waited for never came: {all:?}");
        }
    }

    /// Reads to the end of the stream; gives all that came.
    pub async fn rest(&mut self) -> Vec<Said> {
        let (mut all, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while let Some(said) = self.next().await {
            assert!(said.name != "heartbeat" || Instant::now() < deadline, "it did not end: {all:?}");
            all.push(said);
        }
        all
    }

    /// The body of an answer that is no stream.
    pub async fn problem(&mut self) -> Value {
        let length = self.headers.get("content-length").and_then(|length| length.parse::<usize>().ok());
        loop {
            self.unpack();
            if self.ended || length == Some(self.text.len()) || self.receive().await.is_none() {
                break;
            }
        }
        serde_json::from_slice(&self.text).unwrap_or(json!(null))
    }
}

/// The names of events, those with events of the log as one name, each once in a row.
pub fn names(all: &[Said]) -> Vec<&str> {
    let name = |said: &'_ Said| if said.name == "event" { "events" } else { named(&said.name) };
    let mut names: Vec<_> = all.iter().map(name).collect();
    names.dedup();
    names
}

fn named(name: &str) -> &'static str {
    const NAMES: [&str; 9] =
        ["subscribed", "reset", "snapshot", "events", "caught_up", "cursor", "heartbeat", "notice", "close"];
    NAMES.into_iter().find(|known| *known == name).unwrap_or("error")
}

/// The events of the log in what came.
pub fn shown(all: &[Said]) -> Vec<Value> {
    all.iter().flat_map(|said| events_of(&said.frame())).collect()
}
