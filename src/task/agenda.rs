//! When tasks are due: who is next, and how far slots are planned. Plain data, so that looking costs O(log tasks) a
//! second and not O(tasks).

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::event::TaskId;

/// Where the schedule of one task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its next slot.
    pub next: Option<Timestamp>,
    /// Every slot up to here has its row.
    pub planned: Timestamp,
}

/// All tasks in the order of their next slots.
#[derive(Debug, Default)]
pub struct Agenda {
    next: BTreeSet<(Timestamp, TaskId)>,
    planned: BTreeSet<(Timestamp, TaskId)>,
}

impl Agenda {
    /// Notes where a task is now, and was before; none where it is not there.
    pub fn note(&mut self, id: &TaskId, before: Option<Entry>, now: Option<Entry>) {
        if before == now {
            return;
        }
        if let Some(Entry { next, planned }) = before {
            self.planned.remove(&(planned, id.clone()));
            next.map(|next| self.next.remove(&(next, id.clone())));
        }
        if let Some(Entry { next, planned }) = now {
            self.planned.insert((planned, id.clone()));
            next.map(|next| self.next.insert((next, id.clone())));
        }
    }

    /// The tasks that are due, in the order of their slots.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = &TaskId> {
        self.next.iter().take_while(move |(next, _)| *next <= now).map(|(_, id)| id)
    }

    /// When the next task is due.
    pub fn next(&self) -> Option<Timestamp> {
        self.next.first().map(|(next, _)| *next)
    }

    /// The newest time up to which a task is planned.
    pub fn newest_planned(&self) -> Option<Timestamp> {
        self.planned.last().map(|(planned, _)| *planned)
    }
}
