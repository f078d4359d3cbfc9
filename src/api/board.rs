//! The list of tasks as it changes, for those who show it: numbered changes, made once for all who look.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::wire::{TaskView, Viewer};
use crate::event::TaskId;
use crate::store::StoreError;
use crate::stream::forwarder::Peer;

/// Changes that come together are shown together: a list that moves ten times a second is calm enough.
const TOGETHER: Duration = Duration::from_millis(100);
/// How many changes are kept for those who lag; who lags more gets the whole list.
const KEPT: usize = 64;
/// The most bytes of one frame: a list that is longer comes in several, far below what a frame may have.
const MOST_BYTES: usize = 256 * 1024;
/// Where the count of changes begins. A whole list that comes in parts counts up to the change at which it stands, so
/// there must be numbers below it.
const FIRST_REV: u64 = 1_000_000;

/// The list of tasks as it changes.
#[derive(Debug)]
pub struct Board {
    viewer: Viewer,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rev: u64,
    /// The frames of the last changes, the newest last.
    frames: VecDeque<(u64, Arc<str>)>,
    lookers: HashMap<u64, Arc<Peer>>,
}

/// What is due to one who has seen a revision.
#[derive(Debug)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// This frame, which brings it to that revision.
    Frame(u64, Arc<str>),
    /// The whole list.
    All,
}

impl Board {
    /// A board nobody looks at yet.
    pub fn new(viewer: Viewer) -> Arc<Self> {
        let state = State { rev: FIRST_REV, frames: VecDeque::new(), lookers: HashMap::new() };
        Arc::new(Self { viewer, state: Mutex::new(state) })
    }

    /// Follows the changes until told to stop.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = self.viewer.publisher.changes().take() => changed,
            };
            if let Err(error) = self.post(changed.iter().cloned().collect()).await {
                warn!(%error, "the list of tasks could not be brought up to date; tried again");
                for id in &changed {
                    self.viewer.publisher.changes().note(id);
                }
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    async fn post(&self, changed: Vec<TaskId>) -> Result<(), StoreError> {
        if self.state().lookers.is_empty() {
            // Nobody sees the number: who comes next starts from the whole list.
            self.state().frames.clear();
            self.state().rev += 1;
            return Ok(());
        }
        let mut parts = Parts::default();
        for id in changed {
            match self.viewer.one(&id).await? {
                Some(view) => parts.item(&view),
                None => parts.removed(&id),
            }
        }
        let peers: Vec<_> = {
            let mut state = self.state();
            for part in parts.all {
                state.rev += 1;
                let rev = state.rev;
                state.frames.push_back((rev, part.frame(rev, false).into()));
            }
            while state.frames.len() > KEPT {
                state.frames.pop_front();
            }
            state.lookers.values().cloned().collect()
        };
        for peer in peers {
            peer.wake.raise();
        }
        Ok(())
    }

    /// Wakes this one at every change from now on.
    pub fn look(&self, peer: Arc<Peer>) {
        self.state().lookers.insert(peer.id, peer);
    }

    /// Wakes it no more.
    pub fn leave(&self, peer: u64) {
        self.state().lookers.remove(&peer);
    }

    /// What is due to one who has seen `rev`.
    pub fn due(&self, rev: u64) -> Due {
        let state = self.state();
        if state.rev == rev {
            return Due::Nothing;
        }
        match state.frames.iter().find(|(number, _)| *number == rev + 1) {
            Some((number, frame)) => Due::Frame(*number, Arc::clone(frame)),
            None => Due::All,
        }
    }

    /// The whole list, at the revision that goes with it: one frame, or several that follow each other.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn all(&self) -> Result<(u64, Vec<String>), StoreError> {
        // The number first: a change in between comes again as a change, which is harmless.
        let rev = self.state().rev;
        let mut parts = Parts::default();
        for view in self.viewer.all().await? {
            parts.item(&view);
        }
        if parts.all.is_empty() {
            parts.all.push(Part::default());
        }
        let before = parts.all.len() as u64 - 1;
        let first = rev.saturating_sub(before);
        let frames = parts.all.iter().zip(first..).map(|(part, rev)| part.frame(rev, rev == first));
        Ok((rev, frames.collect()))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A list in pieces, each of which fits into a frame.
#[derive(Debug, Default)]
struct Parts {
    all: Vec<Part>,
}

/// What goes into one frame.
#[derive(Debug, Default)]
struct Part {
    items: String,
    removed: String,
}

impl Parts {
    fn item(&mut self, view: &TaskView) {
        let text = view.fitted(MOST_BYTES / 2).to_string();
        let items = &mut self.with_room(text.len()).items;
        push(items, &text);
    }

    fn removed(&mut self, id: &TaskId) {
        let text = json!(id).to_string();
        let removed = &mut self.with_room(text.len()).removed;
        push(removed, &text);
    }

    fn with_room(&mut self, bytes: usize) -> &mut Part {
        let is_full = |part: &Part| part.items.len() + part.removed.len() + bytes > MOST_BYTES;
        if self.all.last().is_none_or(is_full) {
            self.all.push(Part::default());
        }
        let last = self.all.len() - 1;
        &mut self.all[last]
    }
}

fn push(list: &mut String, text: &str) {
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(text);
}

impl Part {
    fn frame(&self, rev: u64, full: bool) -> String {
        let Self { items, removed } = self;
        format!(r#"{{"type":"tasks","rev":{rev},"full":{full},"items":[{items}],"removed":[{removed}]}}"#)
    }
}
