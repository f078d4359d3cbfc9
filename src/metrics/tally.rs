//! What a transaction will have done once it is saved: noted where it is done, counted after the commit, forgotten with
//! what is undone. The writer's thread has one; on any other thread nothing is noted.
//!
//! It stands beside the connection that everything in a transaction is done with, so that whoever closes a slot says so
//! at that very line, whichever change of state that is a part of.

use std::cell::RefCell;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measurement {
    /// The time of so many slots came.
    SlotsDue(u64),
    /// So many slots have this outcome, which is their last.
    SlotsClosed(&'static str, u64),
    /// The run of a slot began, so long after its planned time.
    SlotStarted {
        /// In milliseconds.
        late_ms: u64,
    },
    /// So many deliveries by channels of a kind came to this.
    Told {
        /// `webhook`, `ntfy`, `mail` or `healthchecks`; anything else for channels that are not known any more.
        kind: &'static str,
        /// `sent`, `retried`, `failed`, `held` or `dropped`.
        result: &'static str,
        /// How many.
        count: u64,
    },
}

thread_local! {
    static PENDING: RefCell<Option<Vec<Measurement>>> = const { RefCell::new(None) };
}

/// A transaction begins on this thread.
pub fn begin() {
    PENDING.set(Some(Vec::new()));
}

/// Notes something that is done in the transaction of this thread, if there is one.
pub fn note(measurement: Measurement) {
    PENDING.with_borrow_mut(|pending| {
        if let Some(pending) = pending {
            pending.push(measurement);
        }
    });
}

/// Where the transaction stands.
pub fn mark() -> usize {
    PENDING.with_borrow(|pending| pending.as_ref().map_or(0, Vec::len))
}

/// Forgets what was noted since.
pub fn back_to(mark: usize) {
    PENDING.with_borrow_mut(|pending| {
        if let Some(pending) = pending {
            pending.truncate(mark);
        }
    });
}

/// Ends the transaction: gives what was noted in it.
pub fn take() -> Vec<Measurement> {
    PENDING.take().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_is_not_counted_and_without_a_transaction_nothing_is() {
        note(Measurement::SlotsDue(1));
        assert_eq!(take(), []);
        begin();
        note(Measurement::SlotsDue(2));
        let before = mark();
        note(Measurement::SlotsDue(3));
        back_to(before);
        note(Measurement::SlotsDue(4));
        assert_eq!(take(), [Measurement::SlotsDue(2), Measurement::SlotsDue(4)]);
        note(Measurement::SlotsDue(5));
        assert_eq!(take(), []);
    }
}
