//! Where connections come in: TCP and the socket of the data folder, each with a meter that counts what the
//! network accepts.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::ConnectInfo;
use axum::serve::Listener;
use futures_util::task::AtomicWaker;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::warn;

/// How many connections may wait to be accepted: a recovery storm comes all at once.
const BACKLOG: u32 = 4096;
/// How long a client may take over the headers of a request, and be silent between two of them.
const HEADERS_WITHIN: Duration = Duration::from_secs(15);
/// How long the kernel tries to deliver before it gives the connection up.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// After how long of silence the kernel asks whether the other side is there, and how often it asks again. Longer
/// than a heartbeat: only those who send and hear nothing are asked.
const ALIVE: (Duration, Duration) = (Duration::from_secs(25), Duration::from_secs(5));
/// How much may lie unsent in the kernel: what waits there cannot be taken back, and is memory per watcher.
const NOT_SENT: u32 = 16 * 1024;

/// Counts what the network accepted on one connection, and how it is getting on.
#[derive(Debug)]
pub struct Meter {
    written: AtomicU64,
    /// When the last `step` bytes were full, and the count at that moment.
    progress: Mutex<Progress>,
    abort: AtomicBool,
    /// Whether the network took less than it was given last.
    waits: AtomicBool,
    /// Woken when it has taken all of it.
    taken: AtomicWaker,
    cut: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    at: Instant,
    written: u64,
    /// How many bytes count as progress.
    step: u64,
}

impl Default for Meter {
    fn default() -> Self {
        let progress = Progress { at: Instant::now(), written: 0, step: 16 * 1024 };
        Self {
            written: AtomicU64::new(0),
            progress: Mutex::new(progress),
            abort: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            taken: AtomicWaker::new(),
            cut: Notify::new(),
        }
    }
}

impl Meter {
    /// Notes what became of a write of so many bytes.
    fn note(&self, offered: usize, result: &Poll<io::Result<usize>>) {
        let waits = match result {
            Poll::Ready(Ok(bytes)) => {
                self.count(*bytes);
                *bytes < offered
            }
            Poll::Pending => true,
            Poll::Ready(Err(_)) => return,
        };
        if waits {
            self.waits.store(true, Ordering::Release);
        } else if self.waits.swap(false, Ordering::AcqRel) {
            self.taken.wake();
        }
    }

    fn count(&self, bytes: usize) {
        let written = self.written.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if written - progress.written >= progress.step {
            progress.written = written;
            progress.at = Instant::now();
        }
    }

    /// All bytes that were accepted.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Data begins to wait: progress counts from now, `step` bytes at a time.
    pub fn begin(&self, step: u64) {
        let written = self.written.load(Ordering::Relaxed);
        let at = Instant::now();
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Progress { at, written, step };
    }

    /// When it last got on.
    pub fn progressed(&self) -> Instant {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).at
    }

    /// Ready once no `step` bytes were accepted within `window`.
    pub async fn stalled(&self, window: Duration) {
        loop {
            let until = self.progressed() + window;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Whether data waits that was written and is not accepted.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Ready once nothing waits. For one task at a time.
    pub async fn taken(&self) {
        std::future::poll_fn(|context| {
            // Register, then look: what is taken in between wakes us or is seen here.
            self.taken.register(context.waker());
            if self.waits() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    /// Resets the connection when it is dropped, instead of lingering with what nobody reads.
    pub fn abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
    }

    /// Ends the connection now, with what is in its buffers: for an answer that is too slow to be ended in order.
    pub fn cut(&self) {
        self.abort();
        self.cut.notify_one();
    }
}

/// A connection with its meter.
#[derive(Debug)]
pub struct Counted<S: AsFd> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S: AsFd> Counted<S> {
    /// A connection of which nothing was accepted yet.
    pub fn new(stream: S) -> Self {
        Self { stream, meter: Arc::default() }
    }
}

impl<S: AsFd> Drop for Counted<S> {
    fn drop(&mut self) {
        if self.meter.abort.load(Ordering::Relaxed) {
            let descriptor = self.stream.as_fd();
            let _ = socket2::SockRef::from(&descriptor).set_linger(Some(Duration::ZERO));
        }
    }
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buf);
        self.meter.note(buf.len(), &written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bufs);
        self.meter.note(bufs.iter().map(|buf| buf.len()).sum(), &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Where a request came in.
#[derive(Clone, Debug)]
pub struct Came {
    /// The address of the other side; none on the socket of the data folder.
    pub from: Option<IpAddr>,
    /// What the network accepts of what is written.
    pub meter: Arc<Meter>,
    /// Its place among the connections.
    pub place: Arc<Place>,
}

/// A place among the connections of a listener; given back when dropped, or before by an answer that goes on for
/// hours and is counted elsewhere. The default is none at all: a request that came by no listener.
#[derive(Debug, Default)]
pub struct Place(Mutex<Option<OwnedSemaphorePermit>>);

impl Place {
    /// Lets another connection have it.
    pub fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The TCP listener.
#[derive(Debug)]
pub struct Tcp(TcpListener);

/// The listener on the socket of the data folder. The file goes with it.
#[derive(Debug)]
pub struct Unix {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Unix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Tcp {
    /// Listens.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub fn bind(address: std::net::SocketAddr) -> anyhow::Result<Self> {
        let failed =
            || format!("cannot listen on {address}: choose another address with --listen, or stop what has it");
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address).with_context(failed)?;
        Ok(Self(socket.listen(BACKLOG).with_context(failed)?))
    }

    /// The address, with the port that was given for 0.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.0.local_addr()
    }
}

impl Unix {
    /// Listens on a socket that only this user may open. A path that is too long for the system (107 bytes) is
    /// bound through the folder's descriptor.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let failed = || format!("cannot make the socket {}", path.display());
        // The data folder is locked, so whoever left this is gone.
        let _ = std::fs::remove_file(path);
        let listener = if path.as_os_str().len() <= 107 {
            UnixListener::bind(path).with_context(failed)?
        } else {
            let folder = std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
            let name = path.file_name().unwrap_or_default();
            let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
            UnixListener::bind(short).with_context(failed)?
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

impl Listener for Tcp {
    type Io = Counted<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = <TcpListener as Listener>::accept(&mut self.0).await;
        if let Err(error) = tune(&stream) {
            warn!(%error, "a connection could not be tuned; it is served all the same");
        }
        (Counted::new(stream), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    // Who only reads from a peer that is gone would wait for ever.
    let alive = socket2::TcpKeepalive::new().with_time(ALIVE.0).with_interval(ALIVE.1).with_retries(3);
    socket.set_tcp_keepalive(&alive)?;
    socket.set_tcp_notsent_lowat(NOT_SENT)
}

impl Listener for Unix {
    type Io = Counted<UnixStream>;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = <UnixListener as Listener>::accept(&mut self.listener).await;
        (Counted::new(stream), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A listener whose connections are served: TCP, or the socket of the data folder.
pub trait Door: Listener<Io: MeteredIo> {
    /// The address of the other side, where it has one.
    fn from(address: &Self::Addr) -> Option<IpAddr>;
}

/// A connection with a meter.
pub trait MeteredIo {
    /// What counts the bytes that are accepted.
    fn meter(&self) -> Arc<Meter>;
}

impl<S: AsFd> MeteredIo for Counted<S> {
    fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }
}

impl Door for Tcp {
    fn from(address: &Self::Addr) -> Option<IpAddr> {
        Some(address.ip())
    }
}

impl Door for Unix {
    fn from(_: &Self::Addr) -> Option<IpAddr> {
        None
    }
}

/// Serves the connections of a listener, at most `most` at a time, until `stop`; then lets the requests under way
/// end. A client that takes long over its headers is let go: it would keep a place for nothing.
pub async fn serve<L: Door>(mut listener: L, router: Router, most: usize, stop: CancellationToken) {
    let under_way = TaskTracker::new();
    let places = Arc::new(Semaphore::new(most));
    loop {
        // The place first: who finds none waits in the kernel's queue, where it costs nothing.
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, (io, address)) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        let place = Arc::new(Place(Mutex::new(place.ok())));
        let meter = io.meter();
        let came = ConnectInfo(Came { from: L::from(&address), meter: Arc::clone(&meter), place });
        let router = router.clone();
        let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(came.clone());
            router.clone().oneshot(request.map(axum::body::Body::new))
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_WITHIN)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let stop = stop.clone();
        under_way.spawn(async move {
            tokio::pin!(connection);
            // Who hangs up in the middle is no reason for a word.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = meter.cut.notified() => return,
                () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            tokio::select! {
                _ = connection => {}
                () = meter.cut.notified() => {}
            }
        });
    }
    drop(listener);
    under_way.close();
    under_way.wait().await;
}
