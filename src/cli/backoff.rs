//! How long to wait before the next attempt to connect. Knows neither clock nor socket.

use std::time::Duration;

/// The caps of the waits after the first, which comes within a second.
const CAPS_S: [u64; 6] = [1, 2, 4, 8, 16, 30];

/// The longest wait, also for what comes back "only after the longest delay".
pub const LONGEST: Duration = Duration::from_secs(30);

/// After so many attempts in a row the wait no longer varies much: whoever watches knows what to expect.
pub const STEADY_AFTER: u32 = 10;

/// The wait before attempt `attempt` (from 1), for `random` in 0..1: at once within a second, then anywhere under
/// caps that double, so that the watchers of a server that restarts do not all come in the same moment.
pub fn delay(attempt: u32, random: f64) -> Duration {
    let random = random.clamp(0.0, 1.0);
    if attempt > STEADY_AFTER {
        return LONGEST.mul_f64(0.8 + 0.4 * random);
    }
    let place = usize::try_from(attempt.saturating_sub(2)).unwrap_or(usize::MAX);
    let cap = CAPS_S.get(place).copied().unwrap_or(LONGEST.as_secs());
    Duration::from_secs(cap).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caps_double_up_to_thirty_seconds() {
        let caps: Vec<u64> = (1..=10).map(|attempt| delay(attempt, 1.0).as_secs()).collect();
        assert_eq!(caps, [1, 1, 2, 4, 8, 16, 30, 30, 30, 30]);
    }

    #[test]
    fn every_wait_is_spread_from_nothing_to_its_cap() {
        for attempt in 1..=STEADY_AFTER {
            assert_eq!(delay(attempt, 0.0), Duration::ZERO);
            assert_eq!(delay(attempt, 0.5) * 2, delay(attempt, 1.0));
        }
    }

    #[test]
    fn after_ten_attempts_it_goes_on_about_every_thirty_seconds() {
        assert_eq!(delay(11, 0.0), Duration::from_secs(24));
        assert_eq!(delay(1_000_000, 1.0), Duration::from_secs(36));
    }
}
