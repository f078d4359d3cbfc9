//! What one request of a producer says: lines are taken as they come, put into batches, and numbered by the writer
//! while the next are read.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;
use tracing::info;

use super::line::{self, Line, Meaning, Said};
use super::{Elsewhere, ended, lost_result};
use crate::event::{Body, Seq, State, Status};
use crate::record::Run;
use crate::stream::batch::{Batch, Turn};
use crate::stream::publish::Publisher;
use crate::stream::topic::Refused;

/// The longest line, in bytes.
pub const MAX_LINE: usize = 1024 * 1024;
/// How many batches may be on their way: one is written while the next are made.
const MAX_FLIGHTS: usize = 32;
/// How many calls of a run may be open: each is kept in memory.
const MAX_OPEN_CALLS: usize = 1024;
/// A longer buffer for a line that came in parts is given back.
const KEPT_BUFFER: usize = 64 * 1024;

/// The lines of one request.
#[derive(Debug)]
pub struct Feed {
    publisher: Publisher,
    seat: Arc<Elsewhere>,
    turn: Turn,
    /// The run as it was when the request came.
    run: Run,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// How many lines have come.
    line: u64,
    /// The producer's number of the last line that was taken; saved or on its way.
    taken: u64,
    batch: Option<Batch>,
    flights: VecDeque<Flight>,
    accepted: u64,
    last_seq: Seq,
    open_calls: HashSet<Box<str>>,
    ended: bool,
}

/// A batch on its way.
#[derive(Debug)]
struct Flight {
    lines: u64,
    /// Whether its last event ends the run.
    ends: bool,
    saved: oneshot::Receiver<Result<Seq, Refused>>,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// How many lines of it became events; a line that was there before does not count.
    pub accepted: u64,
    /// The producer's number of the last line that is saved.
    pub last_n: u64,
    /// The last event of the run.
    pub last_seq: Seq,
    /// Whether the program was asked to stop.
    pub stop: bool,
}

/// Why no more lines are taken. What came before is saved.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Rejected {
    /// A line is not what a line is.
    #[error("line {line}: {why}")]
    BadLine {
        /// Which line of the request, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// Lines are missing.
    #[error("line {line} has the number {n}, but {wanted} comes next: send what is missing, or {{\"n\":{},\"gap\":true}} where you no longer have it", n - 1)]
    Gap {
        /// Which line of the request, from 1.
        line: u64,
        /// The number it has.
        n: u64,
        /// The number that comes next.
        wanted: u64,
    },
    /// Nothing is said of a run that is over.
    #[error("the run is over")]
    RunOver,
    /// A newer request speaks for the run.
    #[error("a newer request speaks for this run")]
    Fenced,
    /// The task was deleted.
    #[error("the task of this run is no longer there")]
    LogGone,
    /// The server is going down.
    #[error("the server is stopping: go on when it is back")]
    Stopping,
}

impl From<Refused> for Rejected {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::RunOver => Self::RunOver,
            Refused::Fenced => Self::Fenced,
            Refused::LogGone => Self::LogGone,
            Refused::Stopping => Self::Stopping,
        }
    }
}

/// What follows a line.
enum Step {
    /// The next one.
    Next,
    /// The batch is full.
    Full,
    /// The run is over.
    End { n: u64, at: Timestamp, status: Box<Status> },
}

impl Feed {
    /// The lines of a request that has the turn. The run is not over.
    pub fn new(publisher: Publisher, seat: Arc<Elsewhere>, turn: Turn, run: Run) -> Self {
        let open_calls = {
            let tail = seat.topic.tail();
            let calls = tail.fold.calls().iter().filter(|open| open.run == seat.id);
            calls.map(|open| open.call.as_str().into()).collect()
        };
        Self {
            taken: turn.saved(),
            last_seq: run.last_seq,
            publisher,
            seat,
            turn,
            run,
            partial: Vec::new(),
            line: 0,
            batch: None,
            flights: VecDeque::new(),
            accepted: 0,
            open_calls,
            ended: false,
        }
    }

    /// Takes what has come. Waits while the log cannot take more. After an error nothing more is taken, and what
    /// came before is saved.
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn take(&mut self, chunk: &[u8]) -> Result<(), Rejected> {
        match self.take_lines(chunk).await {
            Ok(()) => self.send().await,
            Err(rejected) => {
                self.settle().await?;
                Err(rejected)
            }
        }
    }

    /// Nothing more comes: a last line without a line break is one too.
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn finish(&mut self) -> Result<(), Rejected> {
        let last = std::mem::take(&mut self.partial);
        let taken = self.take_line(&last).await;
        self.settle().await?;
        taken
    }

    /// Waits until all that was taken is saved.
    ///
    /// # Errors
    /// [`Rejected`] where a part of it is not.
    pub async fn settle(&mut self) -> Result<(), Rejected> {
        let mut done = self.send().await;
        while !self.flights.is_empty() {
            done = done.and(self.landed().await);
        }
        done
    }

    /// Waits for the oldest batch on its way; never ready where none is. May be given up at any time.
    ///
    /// # Errors
    /// [`Rejected`] when it was not saved.
    pub async fn landed(&mut self) -> Result<(), Rejected> {
        let Some(flight) = self.flights.front_mut() else { return std::future::pending().await };
        let saved = (&mut flight.saved).await.unwrap_or(Err(Refused::Stopping));
        let Flight { lines, ends, .. } = *flight;
        self.flights.pop_front();
        self.last_seq = saved?;
        self.accepted += lines;
        if ends {
            self.ended = true;
            self.seat.end();
        }
        Ok(())
    }

    /// What became of the request so far.
    pub fn receipt(&self) -> Receipt {
        Receipt {
            accepted: self.accepted,
            last_n: self.turn.saved(),
            last_seq: self.last_seq,
            stop: self.seat.stop_cause().is_some(),
        }
    }

    /// Whether the run is over, because a line said so.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    async fn take_lines(&mut self, mut chunk: &[u8]) -> Result<(), Rejected> {
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            let line = &chunk[..end];
            chunk = &chunk[end + 1..];
            if self.partial.is_empty() {
                self.take_line(line).await?;
                continue;
            }
            self.keep_part(line)?;
            let mut whole = std::mem::take(&mut self.partial);
            self.take_line(&whole).await?;
            if whole.capacity() <= KEPT_BUFFER {
                whole.clear();
                self.partial = whole;
            }
        }
        self.keep_part(chunk)
    }

    fn keep_part(&mut self, part: &[u8]) -> Result<(), Rejected> {
        if self.partial.len() + part.len() > MAX_LINE {
            let why = format!("is longer than {MAX_LINE} bytes");
            return Err(Rejected::BadLine { line: self.line + 1, why });
        }
        self.partial.extend_from_slice(part);
        Ok(())
    }

    async fn take_line(&mut self, text: &[u8]) -> Result<(), Rejected> {
        self.line += 1;
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        match self.absorb(text)? {
            Step::Next => Ok(()),
            Step::Full => self.send().await,
            Step::End { n, at, status } => self.end(n, at, *status).await,
        }
    }

    /// Puts a line into the batch.
    fn absorb(&mut self, text: &[u8]) -> Result<Step, Rejected> {
        if self.ended {
            return Err(Rejected::RunOver);
        }
        if text.len() > MAX_LINE {
            self.line -= 1;
            return Err(self.keep_part(text).err().unwrap_or(Rejected::RunOver));
        }
        let Line { n, said } = line::read(text).map_err(|why| Rejected::BadLine { line: self.line, why })?;
        if n <= self.taken {
            return Ok(Step::Next);
        }
        self.seat.pulse.beat();
        let wanted = self.taken + 1;
        match said {
            Said::Gap => {
                let loss = lost(wanted, n).map_err(|error| self.bad(error.to_string()))?;
                self.batch(None).push("status", &loss);
            }
            Said::Event { .. } if n != wanted => return Err(Rejected::Gap { line: self.line, n, wanted }),
            Said::Event { meaning: Meaning::Ends(status), at, .. } => {
                return Ok(Step::End { n, at: self.within(at), status });
            }
            Said::Event { kind, data, at, meaning } => {
                match meaning {
                    Meaning::Opens(_) if self.open_calls.len() >= MAX_OPEN_CALLS => {
                        return Err(self.bad(format!("{MAX_OPEN_CALLS} calls of this run are open: say their results")));
                    }
                    Meaning::Opens(call) => {
                        if self.open_calls.contains(&*call) {
                            return Err(self.bad(format!("call {call} is open already: say its result first")));
                        }
                        self.open_calls.insert(call.into());
                    }
                    Meaning::Closes(call) => {
                        self.open_calls.remove(&*call);
                    }
                    _ => {}
                }
                self.batch(at).push(&kind, data);
            }
        }
        self.taken = n;
        Ok(if self.batch.as_ref().is_some_and(Batch::is_full) { Step::Full } else { Step::Next })
    }

    fn bad(&self, why: String) -> Rejected {
        Rejected::BadLine { line: self.line, why }
    }

    /// The batch under way, for events that happened at `at`.
    fn batch(&mut self, at: Option<Timestamp>) -> &mut Batch {
        let at = at.map(|at| self.within(Some(at)));
        let batch = self
            .batch
            .get_or_insert_with(|| Batch::new(&self.seat.topic.id, self.seat.id, self.publisher.clock().now()));
        batch.happened(at);
        batch
    }

    /// When something happened, as the producer has it; but not before its run and not in the time to come.
    fn within(&self, at: Option<Timestamp>) -> Timestamp {
        let now = self.publisher.clock().now();
        at.map_or(now, |at| at.max(self.run.queued_at).min(now))
    }

    /// Sends the batch under way.
    async fn send(&mut self) -> Result<(), Rejected> {
        let Some(batch) = self.batch.take() else { return Ok(()) };
        while self.flights.len() >= MAX_FLIGHTS {
            self.landed().await?;
        }
        let lines = batch.len() as u64;
        let saved = self.publisher.offer_batch(&self.seat.topic, batch, &self.turn, self.taken).await?;
        self.flights.push_back(Flight { lines, ends: false, saved });
        Ok(())
    }

    /// The run is over: its open calls are closed, then its end is said, all in one.
    async fn end(&mut self, n: u64, at: Timestamp, status: Status) -> Result<(), Rejected> {
        // What came before must be in the log: only then is it known which calls are open.
        self.settle().await?;
        let status = ended(&self.seat, &self.run, status, self.publisher.clock().now());
        let (state, reason, duration_ms) = (status.state, status.reason.clone(), status.duration_ms);
        let mut batch = Batch::new(&self.seat.topic.id, self.seat.id, at);
        let closing = {
            let tail = self.seat.topic.tail();
            let calls = tail.fold.calls().iter().filter(|open| open.run == self.seat.id);
            calls.map(|open| lost_result(&open.call, &open.event, &status.text)).collect::<Vec<_>>()
        };
        for body in closing.iter().chain([&Body::Status(status)]) {
            let data = body.data().map_err(|error| self.bad(error.to_string()))?;
            batch.push(body.kind(), &data);
        }
        let saved = self.publisher.offer_batch(&self.seat.topic, batch, &self.turn, n).await?;
        self.taken = n;
        self.flights.push_back(Flight { lines: 1, ends: true, saved });
        self.landed().await?;
        info!(run = %self.seat.id, task = %self.seat.topic.id, state = state.as_str(), reason, duration_ms, "run ended");
        Ok(())
    }
}

/// The data of the event that says what a producer lost.
fn lost(from: u64, to: u64) -> serde_json::Result<Box<RawValue>> {
    let count = to - from + 1;
    let text = match count {
        1 => "1 event was lost on its way here".to_owned(),
        _ => format!("{count} events were lost on their way here"),
    };
    let mut status = Status::new(State::Progress, text);
    status.other.insert("gap".to_owned(), json!({ "from": from, "to": to }));
    to_raw_value(&status)
}
