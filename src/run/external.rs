//! A run that a program elsewhere carries out: it takes no place here, it says what happens line by line, and it is
//! held for as long as its program is heard of.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pulse::Pulse;
use super::runner::{StopCause, stopped};
use crate::event::{Body, RunId, State, Status};
use crate::record::Run;
use crate::stream::batch::Producer;
use crate::stream::topic::Topic;
use crate::task::registry::Task;

pub mod feed;
pub mod line;

/// How many programs that were sent away are remembered.
const MAX_FORMER: usize = 64;

/// A run at work elsewhere.
#[derive(Debug)]
pub struct Elsewhere {
    /// The run.
    pub id: RunId,
    /// Where its events go.
    pub topic: Arc<Topic>,
    /// Whose turn it is to speak for it, and how far it has come.
    pub producer: Arc<Producer>,
    /// When its program last said something new; at first, when the run began or the server did.
    pub pulse: Pulse,
    heard: watch::Sender<Heard>,
    speakers: Mutex<Speakers>,
    stop: watch::Sender<Option<StopCause>>,
    over: CancellationToken,
}

/// The programs that gave themselves a name: who speaks, and who spoke before another came.
#[derive(Debug, Default)]
struct Speakers {
    current: Option<Box<str>>,
    former: VecDeque<Box<str>>,
}

impl Speakers {
    fn is_former(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| self.former.iter().any(|former| **former == *name))
    }

    fn speak(&mut self, name: Option<&str>) {
        if self.current.as_deref() == name {
            return;
        }
        if let Some(former) = std::mem::replace(&mut self.current, name.map(Box::from)) {
            self.former.truncate(MAX_FORMER - 1);
            self.former.push_front(former);
        }
    }
}

/// Another program speaks for the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("another program speaks for this run since")]
pub struct Replaced;

/// What was heard of the program.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Requests that are open.
    open: usize,
    /// When the last one ended, or the run began.
    since: Instant,
    /// From when on another program may take the run; never, once one has spoken for it.
    free_from: Option<Instant>,
    /// How many requests have come to say what happens.
    entries: u64,
}

impl Elsewhere {
    /// A run whose program has come as far as `saved`. Nobody has spoken for it as long as `free_from` is given:
    /// from then on whoever asks for work may take it.
    pub fn new(id: RunId, topic: Arc<Topic>, saved: u64, free_from: Option<Instant>) -> Arc<Self> {
        let heard = Heard { open: 0, since: Instant::now(), free_from, entries: 0 };
        Arc::new(Self {
            id,
            topic,
            producer: Producer::new(saved),
            pulse: Pulse::default(),
            heard: watch::Sender::new(heard),
            speakers: Mutex::default(),
            stop: watch::Sender::new(None),
            over: CancellationToken::new(),
        })
    }

    /// Its program is there for as long as the guard lives.
    ///
    /// # Errors
    /// [`Replaced`] for a program that gave itself a name, once another has spoken for the run.
    pub fn listen(self: &Arc<Self>, name: Option<&str>) -> Result<Presence, Replaced> {
        if self.speakers().is_former(name) {
            return Err(Replaced);
        }
        self.heard.send_modify(|heard| {
            heard.open += 1;
            heard.free_from = None;
        });
        Ok(Presence { seat: Arc::clone(self) })
    }

    /// Its program comes to say what happens. Whoever came before is told to go; a program with a name that was
    /// sent away by another does not come back, however late it notices.
    ///
    /// # Errors
    /// [`Replaced`] for such a one.
    pub fn enter(self: &Arc<Self>, name: Option<&str>) -> Result<(Presence, Entry), Replaced> {
        let mut speakers = self.speakers();
        if speakers.is_former(name) {
            return Err(Replaced);
        }
        speakers.speak(name);
        let mut mine = 0;
        self.heard.send_modify(|heard| {
            heard.open += 1;
            heard.free_from = None;
            heard.entries += 1;
            mine = heard.entries;
        });
        Ok((Presence { seat: Arc::clone(self) }, Entry { heard: self.heard.subscribe(), mine }))
    }

    fn speakers(&self) -> MutexGuard<'_, Speakers> {
        self.speakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the run to whoever asks, if nobody spoke for it in time. One gets it.
    pub fn take_free(&self, now: Instant) -> bool {
        self.heard.send_if_modified(|heard| {
            let free = heard.free_from.is_some_and(|from| from <= now);
            if free {
                heard.free_from = None;
                heard.since = now;
            }
            free
        })
    }

    /// Who was given the run could not take it.
    pub fn give_back(&self) {
        self.heard.send_modify(|heard| heard.free_from = Some(Instant::now()));
    }

    /// From when on it may be taken by whoever asks, if nobody spoke for it.
    pub fn free_from(&self) -> Option<Instant> {
        self.heard.borrow().free_from
    }

    /// Ready once no request was open, and nothing heard, for `lease`.
    pub async fn lapsed(&self, lease: Duration) {
        let mut heard = self.heard.subscribe();
        loop {
            let Heard { open, since, .. } = *heard.borrow_and_update();
            let until = if open > 0 { None } else { Some(since + lease) };
            let changed = match until {
                Some(until) => tokio::select! {
                    changed = heard.changed() => changed,
                    () = tokio::time::sleep_until(until) => return,
                },
                None => heard.changed().await,
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Asks the program to stop; the first cause counts.
    pub fn raise(&self, why: StopCause) {
        self.stop.send_if_modified(|cause| {
            let first = cause.is_none();
            *cause = cause.or(Some(why));
            first
        });
    }

    /// Says whether the program was asked to stop, and why; also when this is gone.
    pub fn stop(&self) -> watch::Receiver<Option<StopCause>> {
        self.stop.subscribe()
    }

    /// Why the program was asked to stop, if it was.
    pub fn stop_cause(&self) -> Option<StopCause> {
        *self.stop.borrow()
    }

    /// Ready once the program was asked to stop.
    pub async fn stop_raised(&self) -> StopCause {
        let mut stop = self.stop.subscribe();
        match stop.wait_for(Option::is_some).await.map(|cause| *cause) {
            Ok(Some(cause)) => cause,
            _ => std::future::pending().await,
        }
    }

    /// The run is over.
    pub fn end(&self) {
        self.over.cancel();
    }

    /// Whether the run is over.
    pub fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Ready once the run is over.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
}

/// Held by every request of the program: as long as one is there, the program is.
#[derive(Debug)]
pub struct Presence {
    seat: Arc<Elsewhere>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.seat.heard.send_modify(|heard| {
            heard.open -= 1;
            heard.since = Instant::now();
        });
    }
}

/// One request that says what happens, until the next one comes.
#[derive(Debug)]
pub struct Entry {
    heard: watch::Receiver<Heard>,
    mine: u64,
}

impl Entry {
    /// Ready once a newer request has come.
    pub async fn fenced(&mut self) {
        let mine = self.mine;
        if self.heard.wait_for(|heard| heard.entries != mine).await.is_err() {
            std::future::pending().await
        }
    }
}

/// What the event says that begins such a run.
pub fn started(task: &Task) -> Status {
    let mut status = Status::new(State::Started, format!("Task {}: Starting execution...", task.id));
    status.other.insert("definition".to_owned(), task.definition.hash().into());
    status.other.insert("agent".to_owned(), "external".into());
    status
}

/// The end of a run as its program says it, with what the server knows: how long it took, and whether that was too
/// long.
fn ended(seat: &Elsewhere, run: &Run, mut status: Status, now: Timestamp) -> Status {
    let task = &seat.topic.id;
    if let Some(cause @ (StopCause::TimedOut(_) | StopCause::Silent(_))) = seat.stop_cause() {
        let text = std::mem::take(&mut status.text);
        let over = stopped(task, cause, Vec::new());
        (status.state, status.text, status.reason) = (over.state, over.text, over.reason);
        if !text.is_empty() {
            status.other.insert("said".to_owned(), text.into());
        }
    }
    if status.text.is_empty() {
        let reason = status.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        status.text = match status.state {
            State::Succeeded => format!("Task {task} completed successfully"),
            State::Failed => format!("Task {task} failed{reason}"),
            _ => format!("Task {task} cancelled{reason}"),
        };
    }
    status.duration_ms = status.duration_ms.or_else(|| lasted(run, now));
    status
}

/// How long a run took until `now`.
pub fn lasted(run: &Run, now: Timestamp) -> Option<u64> {
    u64::try_from(now.duration_since(run.started_at.unwrap_or(run.queued_at)).as_millis()).ok()
}

/// The most characters of the words with which a run ended that each of its lost calls repeats.
const LOST_WORDS: usize = 200;

/// The result of a call whose end nobody saw.
pub fn lost_result(call: &str, event: &str, why: &str) -> Body {
    #[derive(serde::Deserialize)]
    struct Use {
        data: Tool,
    }
    #[derive(serde::Deserialize)]
    struct Tool {
        tool: String,
    }
    let tool = serde_json::from_str::<Use>(event).map_or_else(|_| "unknown".to_owned(), |event| event.data.tool);
    Body::ToolResult {
        call: call.to_owned(),
        tool,
        ok: false,
        output: why.chars().take(LOST_WORDS).collect(),
        cut_bytes: 0,
        exit: None,
        duration_ms: 0,
    }
}
