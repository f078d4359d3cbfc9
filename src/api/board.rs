//! The list of tasks as it changes, for those who show it: numbered changes, made once for all who look.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::frame;
use super::wire::{TaskView, Viewer};
use crate::event::TaskId;
use crate::store::StoreError;
use crate::stream::forwarder::Peer;

/// Changes that come together are shown together: a list that moves ten times a second is calm enough.
const TOGETHER: Duration = Duration::from_millis(100);
/// How many changes are kept for those who lag; who lags more gets the whole list.
const KEPT: usize = 64;

/// The revision of one who has seen no list; none is ever at it.
pub const NOTHING: u64 = 0;
/// Where revisions begin. A list in several frames is numbered up to the revision it is at, so there must be room
/// below the first.
const FIRST: u64 = 1_000_000;

/// More than this gone at once is told by the whole list: a frame has a size.
const MOST_REMOVED: usize = 1000;

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
    lookers: BTreeMap<u64, Arc<Peer>>,
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
        let state = State { rev: FIRST, frames: VecDeque::new(), lookers: BTreeMap::new() };
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
        {
            let mut state = self.state();
            if state.lookers.is_empty() {
                // Nobody sees the number: who comes next starts from the whole list.
                state.frames.clear();
                state.rev += 1;
                return Ok(());
            }
        }
        let (mut items, mut removed) = (Vec::new(), Vec::new());
        for id in changed {
            let is_known = self.viewer.registry.get(&id).is_some();
            match self.viewer.one(&id).await? {
                Some(view) => items.push(view),
                // It goes right now: it is noted once more when it is gone, and is told then.
                None if is_known => {}
                None => removed.push(id),
            }
        }
        if items.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let peers: Vec<_> = {
            let mut state = self.state();
            // What goes, goes with the first.
            let mut removed = removed;
            if removed.len() > MOST_REMOVED {
                removed.clear();
                state.frames.clear();
                state.rev += 1;
            }
            for items in in_parts(items) {
                state.rev += 1;
                let (rev, removed) = (state.rev, std::mem::take(&mut removed));
                let frame = json!({ "type": "tasks", "rev": rev, "full": false, "items": items, "removed": removed });
                state.frames.push_back((rev, frame.to_string().into()));
                if state.frames.len() > KEPT {
                    state.frames.pop_front();
                }
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

    /// The whole list in as many frames as it takes, and the revision that the last of them is at.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn all(&self) -> Result<(u64, Vec<String>), StoreError> {
        // The number first: a change in between comes again as a change, which is harmless.
        let rev = self.state().rev;
        let parts = in_parts(self.viewer.all().await?);
        let last = parts.len() - 1;
        let frames = parts.into_iter().enumerate().map(|(index, items)| {
            let rev = rev - (last - index) as u64;
            let mut frame = json!({ "type": "tasks", "rev": rev, "full": index == 0, "items": items, "removed": [] });
            if index < last {
                frame["more"] = true.into();
            }
            frame.to_string()
        });
        Ok((rev, frames.collect()))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tasks in parts that fit a frame each; one part at least. A task that is too much by itself is cut.
fn in_parts(views: Vec<TaskView>) -> Vec<Vec<Value>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for view in views {
        let mut item = json!(view);
        let mut size = item.to_string().len();
        if size > frame::MAX_STATE / 2 {
            frame::shorten(&mut item);
            item["truncated"] = true.into();
            size = item.to_string().len();
        }
        if bytes + size > frame::MAX_STATE {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size + 1;
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    parts
}
