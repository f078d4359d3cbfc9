//! How a connection is woken. One flag and one waker: a thousand wake-ups before it looks are one.
//!
//! The order that loses nothing: the reader clears the flag, *then* reads the heads, *then* waits; the writer
//! moves the head, *then* raises the flag. Whatever the reader did not see was written before a flag it has yet
//! to clear. `tests/loom` explores the interleavings.

use std::task::{Context, Poll};

use super::sync::{AtomicBool, AtomicWaker, Ordering};

/// Wakes one connection.
#[derive(Debug, Default)]
pub struct Wake {
    raised: AtomicBool,
    waker: AtomicWaker,
}

impl Wake {
    /// A wake with its flag down.
    pub fn new() -> Self {
        Self { raised: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    /// Raises the flag; wakes the connection if it was down. Never waits.
    pub fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Ready once the flag is up; takes it down. The caller reads the heads after this, never before.
    pub fn poll_raised(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.raised.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        // Register, then look again: a flag raised between the two is seen here or wakes us.
        register(&self.waker, context);
        if self.raised.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(not(feature = "loom"))]
fn register(waker: &AtomicWaker, context: &Context<'_>) {
    waker.register(context.waker());
}

#[cfg(feature = "loom")]
fn register(waker: &AtomicWaker, context: &Context<'_>) {
    waker.register_by_ref(context.waker());
}
