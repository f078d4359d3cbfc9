//! Which tasks changed since someone last looked: for those who show lists of tasks.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::event::TaskId;

/// The tasks whose state changed, for those who show lists of tasks. Bounded by the number of tasks.
#[derive(Debug, Default)]
pub struct Changes {
    tasks: Mutex<BTreeSet<TaskId>>,
    bell: Notify,
    /// For whoever only wants to know that something changed.
    noted: Notify,
}

impl Changes {
    /// Notes that a task changed.
    pub fn note(&self, task: &TaskId) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).insert(task.clone());
        self.bell.notify_one();
        self.noted.notify_one();
    }

    /// Waits until something changed since the last time. For one who waits.
    pub async fn noted(&self) {
        self.noted.notified().await;
    }

    /// Waits for changes and takes them. For one who waits.
    pub async fn take(&self) -> BTreeSet<TaskId> {
        loop {
            let changed = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
            if !changed.is_empty() {
                return changed;
            }
            // A change noted since then has left a permit behind.
            self.bell.notified().await;
        }
    }
}
