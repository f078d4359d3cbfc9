//! A TCP proxy between a client and the server that can end a connection in each of the ways in which networks do:
//! with a FIN, with a RST, or by saying nothing any more.

#![allow(dead_code, reason = "not every build of the tests needs all of it")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;

/// What a link does with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes it on.
    Forward,
    /// Ends both connections as a closing program does.
    Fin,
    /// Ends both connections at once, with what is under way lost.
    Rst,
    /// Takes it and passes nothing on: each write succeeds, nothing arrives.
    Blackhole(Direction),
}

/// Which way is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What the client says is lost.
    ToServer,
    /// What the server says is lost.
    ToClient,
    /// Both.
    Both,
}

/// Listens, and passes on to one server.
pub struct Proxy {
    listener: TcpListener,
    server: SocketAddr,
}

/// One connection through the proxy. It lives until both sides are gone.
#[derive(Clone)]
pub struct Link {
    mode: Arc<watch::Sender<Mode>>,
    to_server: Arc<Traffic>,
    to_client: Arc<Traffic>,
}

/// What went one way.
#[derive(Default)]
struct Traffic {
    /// When something was passed on last.
    passed: Mutex<Option<Instant>>,
    /// When the side that speaks let go of the connection.
    left: Mutex<Option<Instant>>,
}

impl Link {
    /// From now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// When the server was last sent anything.
    pub fn server_heard(&self) -> Option<Instant> {
        *self.to_server.passed.lock().unwrap()
    }

    /// When the client was last sent anything.
    pub fn client_heard(&self) -> Option<Instant> {
        *self.to_client.passed.lock().unwrap()
    }

    /// When the server let go of the connection, heard or not by the client.
    pub fn server_left(&self) -> Option<Instant> {
        *self.to_client.left.lock().unwrap()
    }
}

impl Proxy {
    /// A proxy in front of a server.
    pub async fn before(server: SocketAddr) -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), server }
    }

    /// A connection to the server through the proxy. One at a time: call it behind a lock.
    pub async fn connect(&self) -> (TcpStream, Link) {
        self.try_connect().await.unwrap()
    }

    /// The same where the server may not be there.
    pub async fn try_connect(&self) -> std::io::Result<(TcpStream, Link)> {
        let address = self.listener.local_addr()?;
        let server = TcpStream::connect(self.server).await?;
        let (ours, accepted) = tokio::join!(TcpStream::connect(address), self.listener.accept());
        let (ours, (client, _)) = (ours?, accepted?);
        let (to_server, to_client) = (Arc::default(), Arc::default());
        let link = Link { mode: Arc::new(watch::Sender::new(Mode::Forward)), to_server, to_client };
        tokio::spawn(serve(client, server, link.mode.subscribe(), link.clone()));
        Ok((ours, link))
    }
}

async fn serve(mut client: TcpStream, mut server: TcpStream, mut mode: watch::Receiver<Mode>, link: Link) {
    let Link { to_server: there_was, to_client: back_was, .. } = &link;
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let ended = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let there = pass(&mut from_client, &mut to_server, mode.clone(), Direction::ToServer, there_was);
        let back = pass(&mut from_server, &mut to_client, mode.clone(), Direction::ToClient, back_was);
        tokio::select! {
            ended = told_to_end(&mut mode) => Some(ended),
            _ = async { tokio::join!(there, back) } => None,
        }
    };
    if ended == Some(Mode::Rst) {
        for stream in [&client, &server] {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    } else {
        let _ = tokio::join!(client.shutdown(), server.shutdown());
        // What still comes is read, or the system would answer it with a reset.
        let rest = async { tokio::join!(drain(&mut client), drain(&mut server)) };
        let _ = tokio::time::timeout(Duration::from_secs(5), rest).await;
    }
}

async fn told_to_end(mode: &mut watch::Receiver<Mode>) -> Mode {
    let told = mode.wait_for(|mode| matches!(mode, Mode::Fin | Mode::Rst)).await.map(|mode| *mode);
    match told {
        Ok(mode) => mode,
        // Nobody holds the link any more: it stays as it is.
        Err(_) => std::future::pending().await,
    }
}

async fn drain(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
}

/// Passes on in one direction until the source ends; then ends the other side of it too, unless it is dead: an end
/// is not heard through a dead line either.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mode: watch::Receiver<Mode>,
    direction: Direction,
    was: &Traffic,
) {
    let dead = || match *mode.borrow() {
        Mode::Blackhole(Direction::Both) => true,
        Mode::Blackhole(which) => which == direction,
        _ => false,
    };
    let mut buffer = [0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            was.left.lock().unwrap().get_or_insert_with(Instant::now);
            break;
        };
        if dead() {
            continue;
        }
        // No later than the other side may hear it.
        let now = Instant::now();
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        *was.passed.lock().unwrap() = Some(now);
    }
    if !dead() {
        let _ = to.shutdown().await;
    }
}
