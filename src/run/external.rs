//! A run that a program elsewhere carries out: it takes no place here, and says what happens line by line.

use std::sync::Arc;

use jiff::Timestamp;

use crate::event::{Body, RunId, State, Status};
use crate::stream::topic::{Offer, Topic};
use crate::task::registry::Task;

/// A run at work elsewhere.
#[derive(Debug)]
pub struct Elsewhere {
    id: RunId,
    topic: Arc<Topic>,
}

impl Elsewhere {
    /// A run that has just begun.
    pub fn new(id: RunId, topic: Arc<Topic>) -> Self {
        Self { id, topic }
    }

    /// The run.
    pub fn id(&self) -> RunId {
        self.id
    }

    /// Where its events go.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }
}

/// The event that begins such a run.
pub fn started(task: &Task, run: RunId, at: Timestamp) -> Offer {
    let mut status = Status::new(State::Started, format!("Task {}: Starting execution...", task.id));
    status.other.insert("definition".to_owned(), task.definition.hash().into());
    status.other.insert("agent".to_owned(), "external".into());
    Offer::new(Some(run), at, &Body::Status(status))
}
