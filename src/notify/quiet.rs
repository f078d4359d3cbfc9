//! Quiet hours: until when nobody is to be disturbed. Pure.

use jiff::{Timestamp, ToSpan};

use crate::config::channels::Quiet;

/// When the quiet hours end in which a moment lies; none where it lies outside. Where the clock is set forward over
/// the end, they end right behind the gap.
pub fn until(quiet: &Quiet, now: Timestamp) -> Option<Timestamp> {
    let here = now.to_zoned(quiet.zone.clone());
    let (time, today) = (here.time(), here.date());
    let over_midnight = quiet.to < quiet.from;
    let inside =
        if over_midnight { time >= quiet.from || time < quiet.to } else { time >= quiet.from && time < quiet.to };
    if !inside {
        return None;
    }
    let ends_today = time < quiet.to;
    let day = if ends_today { today } else { today.checked_add(1.day()).ok()? };
    let end = quiet.zone.to_zoned(day.to_datetime(quiet.to)).ok()?.timestamp();
    // An end that was there twice lies behind at its first passing: what is left is not quiet.
    (end > now).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    fn quiet(from: &str, to: &str) -> Quiet {
        Quiet { from: from.parse().unwrap(), to: to.parse().unwrap(), zone: TimeZone::get("Europe/Berlin").unwrap() }
    }

    fn ends(quiet: &Quiet, now: &str) -> Option<String> {
        let now: Timestamp = now.parse().unwrap();
        until(quiet, now).map(|end| end.to_string())
    }

    #[test]
    fn quiet_hours_go_over_midnight_and_end_when_they_say() {
        let night = quiet("22:00", "07:00");
        let end = Some("2026-11-21T06:00:00Z".to_owned());
        assert_eq!(ends(&night, "2026-11-20T20:59:59Z"), None);
        assert_eq!(ends(&night, "2026-11-20T21:00:00Z"), end);
        assert_eq!(ends(&night, "2026-11-21T05:59:59Z"), end);
        assert_eq!(ends(&night, "2026-11-21T06:00:00Z"), None);
    }

    #[test]
    fn quiet_hours_within_a_day() {
        let noon = quiet("12:00", "13:30");
        assert_eq!(ends(&noon, "2026-11-20T11:30:00Z"), Some("2026-11-20T12:30:00Z".to_owned()));
        assert_eq!(ends(&noon, "2026-11-20T12:30:00Z"), None);
        assert_eq!(ends(&noon, "2026-11-20T23:30:00Z"), None);
    }

    #[test]
    fn the_end_is_on_the_clock_of_the_wall_also_when_that_is_changed() {
        // The night of the last Sunday in March is an hour shorter, that in October an hour longer.
        let night = quiet("22:00", "07:00");
        assert_eq!(ends(&night, "2026-03-28T22:00:00Z"), Some("2026-03-29T05:00:00Z".to_owned()));
        assert_eq!(ends(&night, "2026-10-24T21:00:00Z"), Some("2026-10-25T06:00:00Z".to_owned()));
        // 02:30 is not there in March: the quiet ends right behind the gap.
        let gap = quiet("22:00", "02:30");
        assert_eq!(ends(&gap, "2026-03-29T00:30:00Z"), Some("2026-03-29T01:30:00Z".to_owned()));
    }
}
