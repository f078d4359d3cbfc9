//! What an agent writes, on its way to those who watch: cleaned of secrets, and shown a few times a second.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::secrets::{Redactor, RedactorStream};
use crate::agent::delta::Deltas;
use crate::event::{Body, RunId};
use crate::stream::publish::Publisher;
use crate::stream::topic::Topic;

/// How often what was written is shown at most: smooth to the eye, and few wake-ups for each watcher.
const EVERY: Duration = Duration::from_millis(50);

/// The texts that a run is writing.
#[derive(Debug)]
pub struct Drafting {
    publisher: Publisher,
    topic: Arc<Topic>,
    run: RunId,
    deltas: Deltas,
    redactor: Redactor,
    /// For each open text, so that a secret that is split between two pieces is taken out too.
    streams: HashMap<Box<str>, RedactorStream>,
    next: Instant,
}

impl Drafting {
    /// The texts of a run, none open yet.
    pub fn new(publisher: Publisher, topic: Arc<Topic>, run: RunId, deltas: Deltas, redactor: Redactor) -> Self {
        Self { publisher, topic, run, deltas, redactor, streams: HashMap::new(), next: Instant::now() }
    }

    /// Waits until there is something to show and it is time to. Safe to drop at any point.
    pub async fn due(&self) {
        self.deltas.ready().await;
        tokio::time::sleep_until(self.next).await;
    }

    /// Shows what was written.
    pub fn show(&mut self) {
        self.next = Instant::now() + EVERY;
        let mut is_news = false;
        for (key, text) in self.deltas.take() {
            let stream = self.streams.entry(key.clone()).or_insert_with(|| self.redactor.stream());
            let certain = stream.push(text.as_bytes());
            let certain = String::from_utf8_lossy(&certain);
            is_news |= self.topic.write_draft(self.run, &self.redactor.text(&key), &certain);
        }
        if is_news {
            self.publisher.wake_all(&self.topic);
        }
    }

    /// An event is on its way to the log; what it has the whole of is written no more.
    pub fn note(&mut self, body: &Body) {
        if let Body::Written { key, .. } = body {
            self.streams.remove(&**key);
        }
    }
}
