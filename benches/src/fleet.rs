//! Many watchers in one thread: raw sockets, one buffer for all, and a check of every event that arrives. It must cost
//! less than what it measures, so frames are compared, not parsed.

use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

use crate::http;
use crate::script::{Script, number};
use crate::server::Server;

/// One read takes at most so much.
const BUFFER: usize = 1 << 20;

/// Watchers of one task.
pub struct Fleet {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    request: Vec<u8>,
    address: std::net::SocketAddr,
    task: String,
    script: Option<Arc<Script>>,
    sockets: Vec<Socket>,
    /// What happened so far.
    pub seen: Seen,
}

/// What happened to all watchers together.
#[derive(Default)]
pub struct Seen {
    /// Events that arrived, all watchers together.
    pub delivered: u64,
    /// Events that a watcher was sent again.
    pub twice: u64,
    /// Events that a watcher was never sent.
    pub lost: u64,
    /// Watchers that have everything up to their [`Fleet::goal`].
    pub at_goal: usize,
    /// `caught_up` frames.
    pub caught_up: usize,
    /// Watchers whose socket ended without being asked to.
    pub ended: Vec<usize>,
    /// When event `n` was published, in nanoseconds since `clock`, for those who measure the way of each.
    pub sent_at: Option<Arc<Vec<AtomicU64>>>,
    /// The time from publish to receipt of each event, in nanoseconds.
    pub ways: Vec<u64>,
    /// Whether a loss is counted instead of ending the measurement.
    pub counts_losses: bool,
    goal: u64,
}

#[derive(PartialEq)]
enum Phase {
    Away,
    Connecting,
    Upgrading,
    Open,
}

struct Socket {
    stream: Option<TcpStream>,
    phase: Phase,
    /// What was read of a frame that is not whole yet.
    rest: Vec<u8>,
    generation: Option<String>,
    /// The last event it has.
    position: u64,
    attempt: u64,
}

impl Fleet {
    /// So many watchers, none of them connected.
    ///
    /// # Errors
    /// The system's.
    pub fn new(server: &Server, task: &str, count: usize) -> Result<Self> {
        let head = http::head(server, "GET", "/live");
        let request = format!(
            "{head}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: rejoin.v1\r\n\r\n"
        );
        let away =
            || Socket { stream: None, phase: Phase::Away, rest: Vec::new(), generation: None, position: 0, attempt: 0 };
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            buffer: vec![0; BUFFER],
            request: request.into_bytes(),
            address: server.address,
            task: task.to_owned(),
            script: None,
            sockets: std::iter::repeat_with(away).take(count).collect(),
            seen: Seen { goal: u64::MAX, ..Seen::default() },
        })
    }

    /// What will arrive.
    pub fn expect(&mut self, script: &Arc<Script>) {
        self.script = Some(Arc::clone(script));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Counts in `seen.at_goal` who has everything up to event `seq`.
    pub fn goal(&mut self, seq: u64) {
        self.seen.goal = seq;
        self.seen.at_goal = self.sockets.iter().filter(|socket| socket.position >= seq).count();
    }

    /// Puts a watcher that has not seen anything behind event `seq` of a log.
    pub fn place(&mut self, index: usize, generation: &str, seq: u64) {
        let socket = &mut self.sockets[index];
        (socket.generation, socket.position) = (Some(generation.to_owned()), seq);
    }

    /// The last event that a watcher has.
    pub fn position(&self, index: usize) -> u64 {
        self.sockets[index].position
    }

    /// Whether a watcher is connected, or about to be.
    pub fn is_there(&self, index: usize) -> bool {
        self.sockets[index].phase != Phase::Away
    }

    /// Begins to connect one watcher with the position it has.
    ///
    /// # Errors
    /// The system's.
    pub fn connect(&mut self, index: usize) -> Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        let socket = &mut self.sockets[index];
        socket.stream = Some(stream);
        socket.phase = Phase::Connecting;
        socket.attempt += 1;
        socket.rest = Vec::new();
        Ok(())
    }

    /// Begins to connect them all.
    ///
    /// # Errors
    /// The system's.
    pub fn connect_all(&mut self) -> Result<()> {
        (0..self.sockets.len()).try_for_each(|index| self.connect(index))
    }

    /// Cuts one off, without a word.
    pub fn cut(&mut self, index: usize) {
        self.sockets[index].stream = None;
        self.sockets[index].phase = Phase::Away;
    }

    /// Takes what comes until it is as wanted; gives up after `within`.
    ///
    /// # Errors
    /// When something came that should not, or nothing for too long.
    pub fn until(&mut self, within: Duration, wanted: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + within;
        while !wanted(self) {
            let now = Instant::now();
            ensure!(
                now < deadline,
                "waited in vain: {} delivered, {} at their goal, {} caught up",
                self.seen.delivered,
                self.seen.at_goal,
                self.seen.caught_up
            );
            self.turn((deadline - now).min(Duration::from_millis(100)))?;
        }
        Ok(())
    }

    /// Takes what comes for so long.
    ///
    /// # Errors
    /// As [`Fleet::until`].
    pub fn idle(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.turn(left)?;
        }
        Ok(())
    }

    /// Waits for something to come, at most so long, and takes it.
    ///
    /// # Errors
    /// As [`Fleet::until`].
    pub fn turn(&mut self, wait: Duration) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        let Self { events, buffer, sockets, seen, script, request, task, .. } = self;
        let script = script.as_deref();
        for event in events.iter() {
            let index = event.token().0;
            let socket = &mut sockets[index];
            let taken = (|| {
                if socket.phase == Phase::Connecting && event.is_writable() {
                    socket.begin(request)?;
                }
                socket.take(index, buffer, seen, script, task)
            })();
            match taken {
                Ok(true) => {}
                Ok(false) => {
                    socket.stream = None;
                    socket.phase = Phase::Away;
                    seen.ended.push(index);
                }
                Err(error) => return Err(error.context(format!("watcher {index}"))),
            }
        }
        Ok(())
    }
}

impl Socket {
    fn begin(&mut self, request: &[u8]) -> Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        // Refused: seen by the read that follows.
        if stream.take_error()?.is_none() {
            stream.set_nodelay(true)?;
            if stream.write(request).is_ok_and(|sent| sent == request.len()) {
                self.phase = Phase::Upgrading;
            }
        }
        Ok(())
    }

    /// Reads all there is; false when the connection has ended.
    fn take(
        &mut self,
        index: usize,
        buffer: &mut [u8],
        seen: &mut Seen,
        script: Option<&Script>,
        task: &str,
    ) -> Result<bool> {
        loop {
            let have = self.rest.len();
            buffer[..have].copy_from_slice(&self.rest);
            let Some(stream) = &mut self.stream else { return Ok(true) };
            let read = match stream.read(&mut buffer[have..]) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Ok(false),
            };
            let now = if seen.sent_at.is_some() { nanos() } else { 0 };
            let whole = have + read == buffer.len();
            let data = &buffer[..have + read];
            let mut used = 0;
            if self.phase == Phase::Upgrading {
                let Some(end) = data.windows(4).position(|four| four == b"\r\n\r\n") else {
                    self.rest = data.to_vec();
                    continue;
                };
                let head = std::str::from_utf8(&data[..end])?;
                ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
                used = end + 4;
                self.phase = Phase::Open;
                self.hello(index, task)?;
            }
            while let Some((opcode, range)) = frame(&data[used..]) {
                let text = &data[used + range.start..used + range.end];
                used += range.end;
                match opcode {
                    1 => self.frame(text, seen, script, now)?,
                    8 if seen.counts_losses => return Ok(false),
                    8 => bail!("closed by the server: {}", String::from_utf8_lossy(text.get(2..).unwrap_or_default())),
                    _ => {}
                }
            }
            self.rest.clear();
            self.rest.extend_from_slice(&data[used..]);
            if self.rest.is_empty() {
                // Thousands of watchers that are idle must not weigh on this side either.
                self.rest.shrink_to_fit();
            }
            ensure!(self.rest.len() < buffer.len(), "a frame is larger than {BUFFER} bytes");
            // Fewer bytes than there was room for: all was read, and what comes next is announced.
            if !whole {
                return Ok(true);
            }
        }
    }

    fn hello(&mut self, index: usize, task: &str) -> Result<()> {
        let subscribe = json!([{ "sub": 1, "task": task, "gen": self.generation, "after": self.position }]);
        let (client, attempt) = (format!("watcher-{index}"), self.attempt);
        let hello =
            json!({ "type": "hello", "protocol": 1, "client": client, "attempt": attempt, "subscribe": subscribe });
        self.say(&hello)
    }

    fn say(&mut self, frame: &Value) -> Result<()> {
        let text = frame.to_string();
        // A client's frames are masked; the mask of zeros leaves the text as it is.
        let mut bytes = vec![0x81];
        match u8::try_from(text.len()) {
            Ok(length) if length < 126 => bytes.push(0x80 | length),
            _ => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&u16::try_from(text.len())?.to_be_bytes());
            }
        }
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(text.as_bytes());
        let stream = self.stream.as_mut().context("not connected")?;
        match stream.write(&bytes) {
            Ok(sent) => ensure!(sent == bytes.len(), "the system takes not even {} bytes", bytes.len()),
            // Gone: seen by the next read.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn frame(&mut self, text: &[u8], seen: &mut Seen, script: Option<&Script>, now: u64) -> Result<()> {
        if let Some(rest) = text.strip_prefix(br#"{"type":"events","sub":1,"first":"#) {
            let (first, digits) = number(rest);
            let rest = rest[digits..].strip_prefix(br#","last":"#).context("events without their last")?;
            let (last, digits) = number(rest);
            let mut rest = rest[digits..].strip_prefix(br#","items":["#).context("events without items")?;
            for seq in first..=last {
                rest = &rest[self.event(rest, seq, seen, script, now)?..];
                if seq < last {
                    rest = rest.strip_prefix(b",").context("events without a comma between them")?;
                }
            }
            ensure!(rest == b"]}", "events that do not end with their last");
            Ok(())
        } else if let Some(rest) = text.strip_prefix(br#"{"type":"event","sub":1,"event":"#) {
            let length = self.event(rest, self.position + 1, seen, script, now)?;
            ensure!(&rest[length..] == b"}", "an event with something behind it");
            Ok(())
        } else {
            self.word(text, seen)
        }
    }

    fn event(&mut self, items: &[u8], seq: u64, seen: &mut Seen, script: Option<&Script>, now: u64) -> Result<usize> {
        let due = self.position + 1;
        if seq != due {
            ensure!(seen.counts_losses, "event {seq} came where {due} was due");
            seen.twice += u64::from(seq < due);
            seen.lost += seq.saturating_sub(due);
        }
        let (length, n) = script.context("an event, and none was due")?.check(items, seq)?;
        if seq > self.position {
            self.position = seq;
        }
        seen.delivered += 1;
        seen.at_goal += usize::from(seq == seen.goal);
        if let (Some(sent_at), Some(n)) = (&seen.sent_at, n)
            && let Some(sent) = sent_at.get(n as usize)
        {
            seen.ways.push(now.saturating_sub(sent.load(Ordering::Acquire)));
        }
        Ok(length)
    }

    /// A frame that is not of events: seldom, so it is parsed.
    fn word(&mut self, text: &[u8], seen: &mut Seen) -> Result<()> {
        let frame: Value = serde_json::from_slice(text)?;
        match frame["type"].as_str() {
            Some("welcome" | "tasks" | "notice") => {}
            Some("caught_up") => seen.caught_up += 1,
            Some("heartbeat") => self.say(&json!({ "type": "pong", "at": frame["at"] }))?,
            Some("subscribed") => {
                ensure!(frame["outcome"] == "resumed", "not resumed: {frame}");
                let from = frame["from"].as_u64().context("no from")?;
                if self.generation.is_none() {
                    self.position = from - 1;
                }
                ensure!(from == self.position + 1, "resumed from {from}, having {}", self.position);
                self.generation = Some(frame["gen"].as_str().context("no gen")?.to_owned());
            }
            _ => bail!("an unexpected frame: {frame}"),
        }
        Ok(())
    }
}

/// The first whole WebSocket frame: its opcode, and where its payload lies. A server's frames are not masked.
fn frame(data: &[u8]) -> Option<(u8, std::ops::Range<usize>)> {
    let (&first, &second) = (data.first()?, data.get(1)?);
    let (length, start) = match second & 0x7f {
        126 => (u16::from_be_bytes(data.get(2..4)?.try_into().ok()?) as usize, 4),
        127 => (u64::from_be_bytes(data.get(2..10)?.try_into().ok()?) as usize, 10),
        short => (short as usize, 2),
    };
    (data.len() >= start + length).then_some((first & 0x0f, start..start + length))
}

/// Nanoseconds since the first call; the same clock for all threads of the load client.
pub fn nanos() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
