//! The time of day, passed in from outside so that tests can move it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// Tells the time of day, and how much time has passed. Cheap to clone.
///
/// Waiting is tokio's business; this is only for what is written down or compared with what was.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// What a test has set; the machine's time without.
    set: Option<Arc<Mutex<Hands>>>,
}

/// A clock of a test.
#[derive(Clone, Copy, Debug)]
struct Hands {
    wall: Timestamp,
    passed: Duration,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self { set: None }
    }

    /// A clock that stands at `at` until it is moved.
    pub fn standing_at(at: Timestamp) -> Self {
        Self { set: Some(Arc::new(Mutex::new(Hands { wall: to_micros(at), passed: Duration::ZERO }))) }
    }

    /// Sets a clock made by [`Clock::standing_at`], as somebody sets a clock: no time passes. The machine's clock is left
    /// alone.
    pub fn set(&self, at: Timestamp) {
        self.turn(|hands| hands.wall = to_micros(at));
    }

    /// Lets time pass on a clock made by [`Clock::standing_at`].
    pub fn pass(&self, time: Duration) {
        self.turn(|hands| {
            let length = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
            hands.wall = hands.wall.saturating_add(length).map_or(hands.wall, to_micros);
            hands.passed += time;
        });
    }

    fn turn(&self, turn: impl FnOnce(&mut Hands)) {
        if let Some(set) = &self.set {
            turn(&mut set.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Now, to the microsecond: finer digits would not survive a round through the log.
    pub fn now(&self) -> Timestamp {
        self.look().0
    }

    /// Now, and how much time has passed since some moment: nobody can set that, and it goes on while the machine sleeps.
    pub fn look(&self) -> (Timestamp, Duration) {
        match &self.set {
            Some(set) => {
                let hands = *set.lock().unwrap_or_else(PoisonError::into_inner);
                (hands.wall, hands.passed)
            }
            None => (to_micros(Timestamp::now()), since_boot()),
        }
    }
}

/// The time since the machine was started, its sleep included. Every Linux that is in use has this clock.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

fn to_micros(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or_default()
}

/// A time as it stands on the wire: RFC 3339, UTC with `Z`, six digits.
pub fn rfc3339(at: Timestamp) -> String {
    format!("{at:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_lets_no_time_pass_and_one_that_goes_on_shows_both() {
        let begin: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
        let clock = Clock::standing_at(begin);
        clock.set(begin + SignedDuration::from_hours(24));
        assert_eq!(clock.look(), (begin + SignedDuration::from_hours(24), Duration::ZERO));
        clock.pass(Duration::from_secs(60));
        let later = begin + SignedDuration::from_hours(24) + SignedDuration::from_secs(60);
        assert_eq!(clock.look(), (later, Duration::from_secs(60)));
    }

    #[test]
    fn the_machines_clock_goes_on_in_both_hands() {
        let clock = Clock::system();
        let (wall, passed) = clock.look();
        while clock.look().1 == passed || clock.now() == wall {}
        assert!(clock.look() > (wall, passed));
        clock.set(Timestamp::UNIX_EPOCH);
        assert!(clock.now() > wall);
    }
}
