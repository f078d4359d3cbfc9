//! The network: connections that are two pipes in memory. Bytes take time on their way, in pieces; a connection can be
//! cut, can stall, and can fall silent in one direction or in both without either side being told.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::serve::Listener;
use rejoin::api::socket::{Counted, Door};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::chance::Chance;

/// How a connection carries bytes.
#[derive(Clone, Debug)]
pub struct Line {
    /// The longest a piece is on its way, in milliseconds.
    pub delay: u64,
    /// How many bytes may be on their way in one direction; then the writer waits.
    pub room: usize,
    /// Bytes per second towards the client; with none they take no time of their own.
    pub rate: Option<u64>,
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    chance: Chance,
    line: Line,
    /// What is on its way, and when it arrives.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    /// Bytes that take room.
    under_way: usize,
    /// When the last piece arrives.
    last: Instant,
    /// The writer is gone: this is what the reader finds behind the last piece.
    ended: bool,
    /// The reader is gone, and the writer is told.
    unread: bool,
    /// What each side finds broken.
    broken: Broken,
    /// Nothing arrives any more, and nobody is told.
    silent: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Broken {
    for_reader: bool,
    for_writer: bool,
}

impl Pipe {
    fn new(chance: Chance, line: Line) -> Self {
        Self {
            chance,
            line,
            pieces: VecDeque::new(),
            under_way: 0,
            last: Instant::now(),
            ended: false,
            unread: false,
            broken: Broken::default(),
            silent: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn write(&mut self, context: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken.for_writer || self.unread {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = self.line.room.saturating_sub(self.under_way);
        if room == 0 {
            self.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let taken = bytes.len().min(room);
        let taken = if taken > 1 && self.chance.one_in(4) { self.chance.size(1..=taken) } else { taken };
        let mut at = (Instant::now() + self.chance.millis(0..=self.line.delay)).max(self.last);
        if let Some(rate) = self.line.rate {
            at += Duration::from_micros(taken as u64 * 1_000_000 / rate);
        }
        self.last = at;
        self.under_way += taken;
        if !self.silent {
            self.pieces.push_back((at, bytes[..taken].to_vec()));
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(taken))
    }

    /// What has arrived; or when something will.
    fn read(&mut self, context: &Context<'_>, into: &mut ReadBuf<'_>) -> Result<Poll<io::Result<()>>, Instant> {
        if self.broken.for_reader {
            return Ok(Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())));
        }
        self.reader = Some(context.waker().clone());
        if self.silent {
            return Ok(Poll::Pending);
        }
        match self.pieces.front_mut() {
            Some((at, _)) if *at > Instant::now() => Err(*at),
            Some((_, piece)) => {
                let taken = piece.len().min(into.remaining());
                into.put_slice(&piece[..taken]);
                piece.drain(..taken);
                if piece.is_empty() {
                    self.pieces.pop_front();
                }
                self.under_way -= taken;
                if let Some(writer) = self.writer.take() {
                    writer.wake();
                }
                Ok(Poll::Ready(Ok(())))
            }
            None if self.ended => Ok(Poll::Ready(Ok(()))),
            None => Ok(Poll::Pending),
        }
    }
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// A connection, as the one who breaks it sees it.
#[derive(Debug)]
pub struct Link {
    up: Mutex<Pipe>,
    down: Mutex<Pipe>,
    /// It is quick, and nothing was done to it.
    calm: AtomicBool,
}

impl Link {
    /// A new connection: the client's end and the server's.
    pub fn new(seed: u64, name: &str, line: &Line) -> (Arc<Self>, End, End) {
        let pipe = |way, line| Mutex::new(Pipe::new(Chance::new(seed, &format!("{name} {way}")), line));
        let up = pipe("up", Line { rate: None, ..line.clone() });
        let down = pipe("down", line.clone());
        let link = Arc::new(Self { up, down, calm: AtomicBool::new(line.rate.is_none()) });
        let end = |writes| End { link: Arc::clone(&link), writes, timer: None };
        let (client, server) = (end(Way::ToServer), end(Way::ToClient));
        (link, client, server)
    }

    fn pipe(&self, way: Way) -> MutexGuard<'_, Pipe> {
        match way {
            Way::ToServer => self.up.lock().unwrap(),
            Way::ToClient => self.down.lock().unwrap(),
        }
    }

    /// Whether it is quick and nothing was done to it.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    fn disturb(&self, way: Way, change: impl FnOnce(&mut Pipe)) {
        self.calm.store(false, Ordering::Relaxed);
        let mut pipe = self.pipe(way);
        change(&mut pipe);
        pipe.wake();
    }

    /// Both ends find it broken; what was under way is lost.
    pub fn cut(&self) {
        for way in [Way::ToServer, Way::ToClient] {
            self.disturb(way, |pipe| pipe.broken = Broken { for_reader: true, for_writer: true });
        }
    }

    /// Nothing arrives any more that way, and nobody is told.
    pub fn silence(&self, way: Way) {
        self.disturb(way, |pipe| pipe.silent = true);
    }

    /// Nothing arrives for so long.
    pub fn stall(&self, long: Duration) {
        let until = Instant::now() + long;
        for way in [Way::ToServer, Way::ToClient] {
            self.disturb(way, |pipe| {
                pipe.last = pipe.last.max(until);
                for (at, _) in &mut pipe.pieces {
                    *at = (*at).max(until);
                }
            });
        }
    }

    /// The server's machine is gone: its own end is broken, the client is told nothing.
    pub fn lose_server(&self) {
        self.disturb(Way::ToServer, |pipe| (pipe.silent, pipe.broken.for_reader) = (true, true));
        self.disturb(Way::ToClient, |pipe| (pipe.silent, pipe.broken.for_writer) = (true, true));
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    link: Arc<Link>,
    /// The way of what it writes; it reads what goes the other way.
    writes: Way,
    timer: Option<Pin<Box<Sleep>>>,
}

impl End {
    fn incoming(&self) -> MutexGuard<'_, Pipe> {
        match self.writes {
            Way::ToServer => self.link.pipe(Way::ToClient),
            Way::ToClient => self.link.pipe(Way::ToServer),
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut out = self.link.pipe(self.writes);
        if !out.silent {
            out.ended = true;
            out.wake();
        }
        let told = !out.silent;
        drop(out);
        let mut incoming = self.incoming();
        // That nobody reads any more is said the other way.
        if told {
            incoming.unread = true;
            incoming.wake();
        }
    }
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let at = match self.incoming().read(context, into) {
                Ok(done) => return done,
                Err(at) => at,
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.link.pipe(self.writes).write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut out = self.link.pipe(self.writes);
        if !out.silent {
            out.ended = true;
            out.wake();
        }
        Poll::Ready(Ok(()))
    }
}

/// The server asks the system for nothing that a file which is none of its sockets would not refuse.
impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        static NULL: OnceLock<File> = OnceLock::new();
        NULL.get_or_init(|| File::open("/dev/null").unwrap()).as_fd()
    }
}

/// Where connections come in.
#[derive(Debug)]
pub struct Port(pub mpsc::UnboundedReceiver<End>);

/// Where the simulated clients are.
pub const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000);

impl Listener for Port {
    type Io = Counted<End>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.0.recv().await {
            Some(end) => (Counted::new(end), CLIENT),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(CLIENT)
    }
}

impl Door for Port {
    fn from(address: &Self::Addr) -> Option<IpAddr> {
        Some(address.ip())
    }
}
