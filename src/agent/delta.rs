//! What an agent writes piece by piece, before it is an event. It never waits for whoever shows it: what lies here too
//! long is dropped, from the end of the text and never from its middle.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The most bytes that wait, of all texts together.
const MOST_WAITING: usize = 64 * 1024;
/// The longest key, in bytes.
const MAX_KEY: usize = 64;
/// So many texts of a run are remembered as closed. A run that has more shows no more of them while they are written:
/// it could not tell an old key from a new one.
const MOST_CLOSED: usize = 16 * 1024;

/// The pieces that nobody has fetched yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Deltas {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    /// Rung when something waits.
    bell: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// In the order in which the texts were begun.
    pieces: Vec<(Box<str>, String)>,
    bytes: usize,
    /// Of these texts nothing is taken any more: their event is there, or a piece of them was dropped.
    closed: HashSet<Box<str>>,
}

impl Deltas {
    /// Goes on with a text. Never waits.
    pub fn write(&self, key: &str, text: &str) {
        if text.is_empty() || key.is_empty() || key.len() > MAX_KEY {
            return;
        }
        let mut waiting = self.waiting();
        if waiting.closed.contains(key) || waiting.closed.len() >= MOST_CLOSED {
            return;
        }
        if waiting.bytes + text.len() > MOST_WAITING {
            // Whoever shows it is far behind. What comes later must not be put behind what is missing.
            waiting.closed.insert(key.into());
            return;
        }
        waiting.bytes += text.len();
        match waiting.pieces.iter_mut().find(|(known, _)| **known == *key) {
            Some((_, piece)) => piece.push_str(text),
            None => waiting.pieces.push((key.into(), text.to_owned())),
        }
        drop(waiting);
        self.inner.bell.notify_one();
    }

    /// The event of this text comes now: nothing more of it is taken, and what waits is not needed.
    pub fn close(&self, key: &str) {
        let mut waiting = self.waiting();
        if waiting.closed.len() < MOST_CLOSED {
            waiting.closed.insert(key.into());
        }
        waiting.pieces.retain(|(known, _)| **known != *key);
        waiting.bytes = waiting.pieces.iter().map(|(_, piece)| piece.len()).sum();
    }

    /// Waits until something is there to be taken.
    pub async fn ready(&self) {
        loop {
            // Registered before the look, so that what comes in between rings.
            let bell = self.inner.bell.notified();
            if !self.waiting().pieces.is_empty() {
                return;
            }
            bell.await;
        }
    }

    /// Takes what waits: for each text its next piece.
    pub fn take(&self) -> Vec<(Box<str>, String)> {
        let mut waiting = self.waiting();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.pieces)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(deltas: &Deltas) -> Vec<(String, String)> {
        deltas.take().into_iter().map(|(key, text)| (key.into(), text)).collect()
    }

    #[test]
    fn pieces_of_one_text_that_nobody_fetched_are_one_piece() {
        let deltas = Deltas::default();
        for (key, text) in [("a", "one "), ("b", "x"), ("a", "two")] {
            deltas.write(key, text);
        }
        assert_eq!(taken(&deltas), [("a".to_owned(), "one two".to_owned()), ("b".to_owned(), "x".to_owned())]);
        assert!(taken(&deltas).is_empty());
    }

    #[test]
    fn behind_what_was_dropped_nothing_is_taken_and_other_texts_go_on() {
        let deltas = Deltas::default();
        deltas.write("a", &"x".repeat(MOST_WAITING));
        deltas.write("a", "dropped");
        assert_eq!(taken(&deltas)[0].1.len(), MOST_WAITING);
        deltas.write("a", "behind a gap");
        deltas.write("b", "fine");
        assert_eq!(taken(&deltas), [("b".to_owned(), "fine".to_owned())]);
    }

    #[test]
    fn behind_its_event_nothing_is_taken_of_a_text() {
        let deltas = Deltas::default();
        deltas.write("a", "draft");
        deltas.close("a");
        deltas.write("a", "late");
        assert!(taken(&deltas).is_empty());
    }

    #[test]
    fn what_is_remembered_of_closed_texts_is_bounded() {
        let deltas = Deltas::default();
        for n in 0..MOST_CLOSED + 10 {
            deltas.close(&n.to_string());
        }
        assert_eq!(deltas.waiting().closed.len(), MOST_CLOSED);
        deltas.write("new", "text");
        assert!(taken(&deltas).is_empty());
    }
}
