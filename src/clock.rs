//! The time of day, passed in from outside so that tests can move it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// Tells the time of day. Cheap to clone.
///
/// Waiting is tokio's business; this is only for what is written down or compared with what was.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Where a test has set the time, in microseconds since the epoch; the machine's time without.
    set: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self { set: None }
    }

    /// A clock that stands at `at` until it is set again.
    pub fn standing_at(at: Timestamp) -> Self {
        Self { set: Some(Arc::new(AtomicI64::new(at.as_microsecond()))) }
    }

    /// Moves a clock made by [`Clock::standing_at`]; the machine's clock is left alone.
    pub fn set(&self, at: Timestamp) {
        if let Some(set) = &self.set {
            set.store(at.as_microsecond(), Ordering::SeqCst);
        }
    }

    /// Now, to the microsecond: finer digits would not survive a round through the log.
    pub fn now(&self) -> Timestamp {
        let micros = match &self.set {
            Some(set) => set.load(Ordering::SeqCst),
            None => Timestamp::now().as_microsecond(),
        };
        Timestamp::from_microsecond(micros).unwrap_or_default()
    }
}

/// A time as it stands on the wire: RFC 3339, UTC with `Z`, six digits.
pub fn rfc3339(at: Timestamp) -> String {
    format!("{at:.6}")
}
