//! Times and durations in words.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A time of day with the distance to it beside it: `2026-11-21 03:00 (in 5 h)`.
pub fn with_distance(at: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let absolute = at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S");
    format!("{absolute} ({})", distance(at, now))
}

/// How far a time is away: `in 5 h`, `3 min ago`.
pub fn distance(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.as_second() - now.as_second();
    match seconds {
        0 => "now".into(),
        1.. => format!("in {}", rough(seconds.unsigned_abs())),
        _ => format!("{} ago", rough(seconds.unsigned_abs())),
    }
}

fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A duration: `0.3 s`, `12 s`, `2 min 3 s`, `3 h 5 min`.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..10 => format!("{seconds}.{} s", ms % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_stands_beside_its_distance() {
        let now: Timestamp = "2026-11-20T20:00:00Z".parse().unwrap();
        let at = |text: &str| with_distance(text.parse().unwrap(), now, &TimeZone::UTC);
        assert_eq!(at("2026-11-20T20:00:45Z"), "2026-11-20 20:00:45 (in 45 s)");
        assert_eq!(at("2026-11-20T17:30:00Z"), "2026-11-20 17:30:00 (2 h ago)");
        assert_eq!(at("2026-11-30T20:00:00Z"), "2026-11-30 20:00:00 (in 10 days)");
        assert_eq!(at("2026-11-20T20:00:00Z"), "2026-11-20 20:00:00 (now)");
    }

    #[test]
    fn durations_have_as_many_digits_as_matter() {
        let said: Vec<String> = [0, 340, 9_999, 12_700, 123_000, 11_100_000].into_iter().map(duration).collect();
        assert_eq!(said, ["0.0 s", "0.3 s", "9.9 s", "12 s", "2 min 3 s", "3 h 5 min"]);
    }
}
