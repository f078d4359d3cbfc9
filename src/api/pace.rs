//! How fast a socket takes what it is given: how much to put into one flush, and when it is too slow.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::socket::Meter;

/// The first flush. A phone at 6 kB/s must make progress, and what waits in a socket cannot be taken back.
const FIRST_FLUSH: usize = 16 * 1024;
/// The smallest flush.
const LEAST_FLUSH: usize = 4 * 1024;
/// The largest flush: loopback must not be held back.
const MOST_FLUSH: usize = 1024 * 1024;
/// A flush accepted within this doubles the next.
const QUICK: Duration = Duration::from_secs(1);
/// The largest frame of events: what a client must have whole before it can show any of it.
const MOST_FRAME: usize = crate::stream::segment::MAX_BYTES;

/// How fast a socket takes what it is given.
#[derive(Debug)]
pub struct Pace {
    meter: Arc<Meter>,
    flush: usize,
    began: Instant,
    /// Whether nothing waited before the present flush.
    idle: bool,
    /// How many bytes count as progress.
    least: u64,
}

impl Pace {
    /// The pace of a socket that has sent nothing yet.
    /// `least` bytes count as progress.
    pub fn new(meter: Arc<Meter>, least: u64) -> Self {
        Self { meter, flush: FIRST_FLUSH, began: Instant::now(), idle: true, least }
    }

    /// How many bytes to put into the next flush.
    pub fn flush_bytes(&self) -> usize {
        self.flush
    }

    /// How many bytes of events to put into the next frame.
    pub fn frame_bytes(&self) -> usize {
        self.flush.min(MOST_FRAME)
    }

    /// A flush begins.
    pub fn begin(&mut self) {
        self.began = Instant::now();
        if std::mem::take(&mut self.idle) {
            self.meter.begin(self.least);
        }
    }

    /// Nothing waits any more.
    pub fn rest(&mut self) {
        self.idle = true;
    }

    /// The flush is done: quick ones grow, slow ones shrink.
    pub fn end(&mut self) {
        self.flush = if self.began.elapsed() <= QUICK {
            (self.flush * 2).min(MOST_FLUSH)
        } else {
            (self.flush / 2).max(LEAST_FLUSH)
        };
    }

    /// When the socket last got on.
    pub fn progressed(&self) -> Instant {
        self.meter.progressed()
    }

    /// Lets the connection be reset when it is dropped, instead of lingering with what nobody reads.
    pub fn abort(&self) {
        self.meter.abort();
    }
}
