//! Which moments a schedule means: cron as people know it, and every change of the clock.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rejoin::schedule::timing::{self, Timing};
use rejoin::task::definition::{Schedule, When};

fn ts(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cron(expression: &str, zone: &str) -> Schedule {
    When::Cron { expression: expression.into(), zone: Some(zone.into()) }.into()
}

fn every(period: Duration) -> Schedule {
    When::Every { period }.into()
}

fn at(time: &str, zone: &str) -> Schedule {
    When::At { time: time.into(), zone: Some(zone.into()) }.into()
}

fn timing(schedule: &Schedule) -> Timing {
    Timing::new(schedule, &TimeZone::UTC).unwrap()
}

fn refused(schedule: &Schedule) -> String {
    Timing::new(schedule, &TimeZone::UTC).unwrap_err().to_string()
}

/// The next moments as local time with offset and note.
fn next(schedule: &Schedule, after: &str, n: usize) -> Vec<String> {
    let after = ts(after);
    timing(schedule)
        .next_n(after, after, n)
        .into_iter()
        .map(|up| {
            let at = up.at.strftime("%Y-%m-%d %H:%M:%S%:z").to_string();
            up.note.map_or(at.clone(), |note| format!("{at} ({note})"))
        })
        .collect()
}

/// One row: zone, expression, where to look from, and what must come, made by hand from the zones' rules.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str]);

const TABLE: &[Row] = &[
    // New York, 8 March 2026: 02:00 becomes 03:00.
    (
        "America/New_York",
        "30 2 * * *",
        "2026-03-07T00:00-05:00",
        &[
            "2026-03-07 02:30:00-05:00",
            "2026-03-08 03:00:00-04:00 (clock goes forward: moved from 02:30)",
            "2026-03-09 02:30:00-04:00",
        ],
    ),
    (
        "America/New_York",
        "0 1 * * *",
        "2026-03-08T00:00-05:00",
        &["2026-03-08 01:00:00-05:00", "2026-03-09 01:00:00-04:00"],
    ),
    (
        "America/New_York",
        "0 * * * *",
        "2026-03-08T00:30-05:00",
        &["2026-03-08 01:00:00-05:00", "2026-03-08 03:00:00-04:00", "2026-03-08 04:00:00-04:00"],
    ),
    (
        "America/New_York",
        "*/30 * * * *",
        "2026-03-08T01:00-05:00",
        &["2026-03-08 01:30:00-05:00", "2026-03-08 03:00:00-04:00", "2026-03-08 03:30:00-04:00"],
    ),
    // All that falls into the gap is one moment, and so is what was due at its end anyway.
    (
        "America/New_York",
        "15,45 2 * * *",
        "2026-03-08T00:00-05:00",
        &["2026-03-08 03:00:00-04:00 (clock goes forward: moved from 02:15)", "2026-03-09 02:15:00-04:00"],
    ),
    (
        "America/New_York",
        "0 2,3 * * *",
        "2026-03-08T00:00-05:00",
        &["2026-03-08 03:00:00-04:00 (clock goes forward: moved from 02:00)", "2026-03-09 02:00:00-04:00"],
    ),
    // New York, 1 November 2026: 02:00 becomes 01:00.
    (
        "America/New_York",
        "30 1 * * *",
        "2026-10-31T12:00-04:00",
        &["2026-11-01 01:30:00-04:00 (clock goes back: first passing)", "2026-11-02 01:30:00-05:00"],
    ),
    (
        "America/New_York",
        "0 * * * *",
        "2026-11-01T00:30-04:00",
        &[
            "2026-11-01 01:00:00-04:00 (clock goes back: first passing)",
            "2026-11-01 01:00:00-05:00 (clock goes back: second passing)",
            "2026-11-01 02:00:00-05:00",
        ],
    ),
    // Berlin, 29 March 2026 and 25 October 2026.
    (
        "Europe/Berlin",
        "0 3 * * *",
        "2026-03-28T12:00+01:00",
        &["2026-03-29 03:00:00+02:00", "2026-03-30 03:00:00+02:00"],
    ),
    (
        "Europe/Berlin",
        "30 2 * * 0",
        "2026-03-28T12:00+01:00",
        &["2026-03-29 03:00:00+02:00 (clock goes forward: moved from 02:30)", "2026-04-05 02:30:00+02:00"],
    ),
    (
        "Europe/Berlin",
        "*/10 2 * * *",
        "2026-03-28T12:00+01:00",
        &["2026-03-29 03:00:00+02:00 (clock goes forward: moved from 02:00)", "2026-03-30 02:00:00+02:00"],
    ),
    (
        "Europe/Berlin",
        "0,30 2 * * *",
        "2026-10-24T12:00+02:00",
        &[
            "2026-10-25 02:00:00+02:00 (clock goes back: first passing)",
            "2026-10-25 02:30:00+02:00 (clock goes back: first passing)",
            "2026-10-26 02:00:00+01:00",
        ],
    ),
    (
        "Europe/Berlin",
        "0 */2 * * *",
        "2026-10-25T00:30+02:00",
        &[
            "2026-10-25 02:00:00+02:00 (clock goes back: first passing)",
            "2026-10-25 02:00:00+01:00 (clock goes back: second passing)",
            "2026-10-25 04:00:00+01:00",
        ],
    ),
    (
        "Europe/Berlin",
        "30 * * * *",
        "2027-10-31T00:00Z",
        &[
            "2027-10-31 02:30:00+02:00 (clock goes back: first passing)",
            "2027-10-31 02:30:00+01:00 (clock goes back: second passing)",
            "2027-10-31 03:30:00+01:00",
        ],
    ),
    // Looked for from within the second passing, the first is over.
    ("Europe/Berlin", "59 2 * * *", "2026-10-25T02:10+01:00", &["2026-10-26 02:59:00+01:00"]),
    // Lord Howe moves by 30 minutes: 4 October 2026 02:00 becomes 02:30, 5 April 2026 02:00 becomes 01:30.
    (
        "Australia/Lord_Howe",
        "15 2 * * *",
        "2026-10-03T12:00+10:30",
        &["2026-10-04 02:30:00+11:00 (clock goes forward: moved from 02:15)", "2026-10-05 02:15:00+11:00"],
    ),
    (
        "Australia/Lord_Howe",
        "15,30 2 * * *",
        "2026-10-03T12:00+10:30",
        &["2026-10-04 02:30:00+11:00 (clock goes forward: moved from 02:15)", "2026-10-05 02:15:00+11:00"],
    ),
    (
        "Australia/Lord_Howe",
        "0 * * * *",
        "2026-10-04T01:00+10:30",
        &["2026-10-04 03:00:00+11:00", "2026-10-04 04:00:00+11:00"],
    ),
    (
        "Australia/Lord_Howe",
        "45 1 * * *",
        "2026-04-04T12:00+11:00",
        &["2026-04-05 01:45:00+11:00 (clock goes back: first passing)", "2026-04-06 01:45:00+10:30"],
    ),
    (
        "Australia/Lord_Howe",
        "*/15 * * * *",
        "2026-04-05T01:20+11:00",
        &[
            "2026-04-05 01:30:00+11:00 (clock goes back: first passing)",
            "2026-04-05 01:45:00+11:00 (clock goes back: first passing)",
            "2026-04-05 01:30:00+10:30 (clock goes back: second passing)",
            "2026-04-05 01:45:00+10:30 (clock goes back: second passing)",
            "2026-04-05 02:00:00+10:30",
        ],
    ),
    // Santiago changes at midnight: 6 September 2026 00:00 becomes 01:00, 5 April 2026 00:00 becomes 4 April 23:00.
    (
        "America/Santiago",
        "@daily",
        "2026-09-05T12:00-04:00",
        &["2026-09-06 01:00:00-03:00 (clock goes forward: moved from 00:00)", "2026-09-07 00:00:00-03:00"],
    ),
    (
        "America/Santiago",
        "@hourly",
        "2026-09-05T22:30-04:00",
        &["2026-09-05 23:00:00-04:00", "2026-09-06 01:00:00-03:00"],
    ),
    (
        "America/Santiago",
        "30 23 * * *",
        "2026-04-04T12:00-03:00",
        &["2026-04-04 23:30:00-03:00 (clock goes back: first passing)", "2026-04-05 23:30:00-04:00"],
    ),
    (
        "America/Santiago",
        "0 0 * * *",
        "2027-04-03T12:00-03:00",
        &["2027-04-04 00:00:00-04:00", "2027-04-05 00:00:00-04:00"],
    ),
];

#[test]
fn t_35_every_change_of_the_clock_is_taken_as_the_table_says() {
    for (zone, expression, after, expected) in TABLE {
        let found = next(&cron(expression, zone), after, expected.len());
        assert_eq!(found, *expected, "{expression} in {zone} after {after}");
    }
}

#[test]
fn t_35_a_zone_that_skips_a_whole_day_runs_once_for_it() {
    // Samoa had no 30 December 2011: what was due then and what was due at the next midnight are one moment.
    let found = next(&cron("0 0 * * *", "Pacific/Apia"), "2011-12-29T00:00-10:00", 3);
    assert_eq!(found[0], "2011-12-31 00:00:00+14:00 (clock goes forward: moved from 00:00)");
    assert_eq!(found[1], "2012-01-01 00:00:00+14:00");
}

#[test]
fn both_days_have_to_fit_where_one_of_them_begins_with_a_star_else_either_will_do() {
    // 1 May 2026 is a Friday.
    let days = |expression: &str, n| -> Vec<String> {
        next(&cron(expression, "UTC"), "2026-05-01T00:00:01Z", n).iter().map(|text| text[5..10].to_owned()).collect()
    };
    assert_eq!(days("0 0 13 * 5", 4), ["05-08", "05-13", "05-15", "05-22"]);
    assert_eq!(days("0 0 */2 * 1", 3), ["05-11", "05-25", "06-01"]);
    assert_eq!(days("0 0 13 * */2", 3), ["06-13", "08-13", "09-13"]);
    assert_eq!(days("0 0 * * 1", 2), ["05-04", "05-11"]);
    assert_eq!(days("0 0 5 * *", 2), ["05-05", "06-05"]);
}

#[test]
fn fields_names_and_marks_are_taken_as_people_write_them() {
    let first = |expression: &str| next(&cron(expression, "UTC"), "2026-05-01T00:00:00Z", 1).remove(0);
    for (expression, expected) in [
        ("*/10 * * * * *", "2026-05-01 00:00:10+00:00"),
        ("30 15 3 * * *", "2026-05-01 03:15:30+00:00"),
        ("@hourly", "2026-05-01 01:00:00+00:00"),
        ("@Weekly", "2026-05-03 00:00:00+00:00"),
        ("@midnight", "2026-05-02 00:00:00+00:00"),
        ("@yearly", "2027-01-01 00:00:00+00:00"),
        ("0 0 L * *", "2026-05-31 00:00:00+00:00"),
        ("0 9 * * MON#2", "2026-05-11 09:00:00+00:00"),
        ("0 9 * * fri#L", "2026-05-29 09:00:00+00:00"),
        ("0 9 * jun-aug mon-fri", "2026-06-01 09:00:00+00:00"),
        ("0 0 * * 7", "2026-05-03 00:00:00+00:00"),
        ("0 0 29 2 *", "2028-02-29 00:00:00+00:00"),
        (" 5  4 * * * ", "2026-05-01 04:05:00+00:00"),
    ] {
        assert_eq!(first(expression), expected, "{expression}");
    }
}

#[test]
fn an_expression_that_means_nothing_is_refused_with_the_reason() {
    for (expression, part) in [
        ("0 0 31 2 *", "never comes"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("* * * *", "has 4 fields"),
        ("* * * * * * *", "has 7 fields"),
        ("", "has 0 fields"),
        ("@reboot", "is not a time"),
        ("@often", "is not known"),
        ("0 0 1,,2 * *", "empty place"),
        (", * * * *", "empty place"),
        ("61 * * * *", "\"61 * * * *\": "),
        ("* 24 * * *", ""),
        ("*/0 * * * *", ""),
        ("5-1 * * * *", ""),
        ("a b c d e", "there is no 'A' in 'A'"),
        ("0 0 * * MONDAY", ""),
    ] {
        let said = refused(&cron(expression, "UTC"));
        assert!(said.contains(part), "{expression}: {said}");
        assert!(!said.contains("CronPattern") && !said.contains("Scheduler"), "{said}");
    }
}

#[test]
fn a_zone_that_is_not_known_is_refused_with_the_one_that_was_meant() {
    for (wrong, meant) in [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/londn", "Europe/London"),
        ("Berlin", "Europe/Berlin"),
        ("America/New York", "America/New_York"),
    ] {
        let said = refused(&cron("0 0 * * *", wrong));
        assert!(said.contains(&format!("did you mean {meant:?}?")), "{said}");
    }
    let said = refused(&cron("0 0 * * *", "Middle/Earth"));
    assert!(said.contains("is not a time zone: write it like"), "{said}");
}

#[test]
fn t_35_a_period_counts_elapsed_time_from_its_anchor_whatever_the_clock_does() {
    let half_hour = timing(&every(Duration::from_secs(1800)));
    // Over the night in which Berlin's clock goes back.
    let anchor = ts("2026-10-24T23:10:00Z");
    let mut at = anchor;
    for k in 1..=6 {
        at = half_hour.next_after(anchor, at).unwrap();
        assert_eq!(at, anchor + SignedDuration::from_mins(30 * k));
    }
    // The anchor itself is when it was given, not a time to run; before it nothing is due.
    let before = anchor - SignedDuration::from_hours(5);
    assert_eq!(half_hour.next_after(anchor, before), Some(anchor + SignedDuration::from_mins(30)));
}

#[test]
fn t_35_slots_of_a_period_over_years_are_computed_not_counted() {
    let second = timing(&every(Duration::from_secs(1)));
    let (anchor, now) = (ts("1990-01-01T00:00:00Z"), ts("2026-01-01T00:00:00.5Z"));
    assert_eq!(second.count(anchor, anchor, now), 1_136_073_600);
    assert_eq!(second.last_in(anchor, anchor, now), Some(ts("2026-01-01T00:00:00Z")));
}

#[test]
fn t_35_slots_of_a_cron_over_half_a_century_are_computed_not_counted() {
    let (from, now) = (ts("1970-01-01T00:00:00Z"), ts("2026-01-01T00:00:30Z"));
    // One by one these would be nearly two thousand million.
    for (expression, count, last) in [
        ("* * * * * *", 1_767_225_630, "2026-01-01T00:00:30Z"),
        ("* * * * *", 29_453_760, "2026-01-01T00:00:00Z"),
        ("* * 3 29 2 *", 14 * 3600, "2024-02-29T03:59:59Z"),
        ("0 0 * * 1", 2922, "2025-12-29T00:00:00Z"),
        ("@yearly", 56, "2026-01-01T00:00:00Z"),
    ] {
        let timing = timing(&cron(expression, "UTC"));
        assert_eq!(timing.count(from, from, now), count, "{expression}");
        assert_eq!(timing.last_in(from, from, now), Some(ts(last)), "{expression}");
    }
    let yearly = timing(&cron("@yearly", "UTC"));
    assert_eq!(yearly.last_in(from, ts("2025-01-01T00:00:00Z"), ts("2025-06-01T00:00:00Z")), None);
}

#[test]
fn a_period_under_one_second_is_refused() {
    assert!(refused(&every(Duration::from_millis(999))).contains("one second is the shortest"));
    timing(&every(Duration::from_secs(1)));
}

#[test]
fn a_single_time_comes_once() {
    let once = timing(&at("2026-12-01T03:00", "Europe/Berlin"));
    let moment = ts("2026-12-01T02:00:00Z");
    assert_eq!(once.next_after(moment, ts("2026-01-01T00:00:00Z")), Some(moment));
    assert_eq!(once.next_after(moment, moment), None);
    assert_eq!(once.last_in(moment, ts("2026-01-01T00:00:00Z"), moment), Some(moment));
    for same in ["2026-12-01T03:00:00", "2026-12-01 03:00", "2026-12-01T02:00Z", "2026-12-01T03:00+01:00"] {
        assert_eq!(timing(&at(same, "Europe/Berlin")).next_after(moment, Timestamp::MIN), Some(moment), "{same}");
    }
}

#[test]
fn t_35_a_single_time_that_is_not_or_is_twice_or_is_over_is_refused_with_the_reason() {
    let said = refused(&at("2026-03-29T02:30", "Europe/Berlin"));
    assert!(said.contains("does not exist in Europe/Berlin"), "{said}");
    let said = refused(&at("2026-10-25T02:30", "Europe/Berlin"));
    assert!(said.contains("write 2026-10-25T02:30+02:00 or 2026-10-25T02:30+01:00"), "{said}");
    timing(&at("2026-10-25T02:30+01:00", "Europe/Berlin"));
    let said = refused(&at("tomorrow", "Europe/Berlin"));
    assert!(said.contains("is not a time: write it like"), "{said}");
    let now = ts("2026-11-20T12:00:00Z");
    let check = |time| timing::check(&at(time, "Europe/Berlin"), &TimeZone::UTC, now);
    assert_eq!(
        check("2026-11-20T12:59").unwrap_err().to_string(),
        "2026-11-20T12:59 is in the past: it is 2026-11-20 13:00"
    );
    check("2026-11-20T13:01").unwrap();
}

#[test]
fn a_schedule_without_a_zone_is_in_the_machines_own() {
    let daily = When::Cron { expression: "0 3 * * *".into(), zone: None }.into();
    let zone = TimeZone::get("Asia/Tokyo").unwrap();
    let daily = Timing::new(&daily, &zone).unwrap();
    let after = ts("2026-01-01T00:00:00Z");
    assert_eq!(daily.next_after(after, after), Some(ts("2026-01-01T18:00:00Z")));
}

const ZONES: [&str; 5] = ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "UTC"];
const EXPRESSIONS: [&str; 10] = [
    "*/15 * * * *",
    "0 * * * *",
    "30 2 * * *",
    "15,45 1,2 * * *",
    "@daily",
    "0 */2 * * *",
    "0 3 * * 1-5",
    "0 0 13 * 5",
    "*/10 2 * * *",
    "45 1-3 * * 0",
];

proptest! {
    #[test]
    fn t_35_moments_only_go_forward_and_none_is_left_out(
        zone in 0..ZONES.len(),
        expression in 0..EXPRESSIONS.len(),
        start in 1_767_225_600i64..1_830_297_600,
        skip in 1i64..50_000,
    ) {
        let timing = timing(&cron(EXPRESSIONS[expression], ZONES[zone]));
        let start = Timestamp::from_second(start).unwrap();
        let mut at = start;
        for _ in 0..50 {
            let next = timing.next_after(start, at).unwrap();
            prop_assert!(next > at);
            // From anywhere in between the same moment is next, and it is the last one up to itself.
            let between = at + SignedDuration::from_secs(skip.min(next.duration_since(at).as_secs() - 1).max(0));
            prop_assert_eq!(timing.next_after(start, between), Some(next));
            prop_assert_eq!(timing.last_in(start, at, next), Some(next));
            prop_assert_eq!(timing.count(start, at, next), 1);
            at = next;
        }
        prop_assert_eq!(timing.count(start, start, at), 50);
        prop_assert_eq!(timing.last_in(start, start, at), Some(at));
    }
}
