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

/// A moment as local time with offset and note.
fn shown(up: timing::Upcoming) -> String {
    let at = up.at.strftime("%Y-%m-%d %H:%M:%S%:z").to_string();
    up.note.map_or(at.clone(), |note| format!("{at} ({note})"))
}

/// The next moments.
fn next(schedule: &Schedule, after: &str, n: usize) -> Vec<String> {
    let after = ts(after);
    timing(schedule).next_n(after, after, n).into_iter().map(shown).collect()
}

/// The table that a second implementation is held to as well: `tests/zones/check.py`.
const TABLE: &str = include_str!("../zones/table.txt");

/// Zone, schedule, from when on, and what comes.
fn table() -> Vec<(&'static str, &'static str, &'static str, Vec<&'static str>)> {
    let mut rows: Vec<(&str, &str, &str, Vec<&str>)> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("    ") {
            Some(moment) => rows.last_mut().unwrap().3.push(moment),
            None => {
                let parts: Vec<&str> = line.split(" | ").collect();
                rows.push((parts[0], parts[1], parts[2], Vec::new()));
            }
        }
    }
    rows
}

#[test]
fn t_35_every_change_of_the_clock_is_taken_as_the_table_says() {
    let rows = table();
    assert_eq!(rows.len(), 55);
    for (zone, schedule, after, expected) in rows {
        let schedule = match schedule.split_once(' ') {
            Some(("every", period)) => every(rejoin::config::units::duration(period).unwrap()),
            Some(("at", time)) => at(time, zone),
            _ => cron(schedule, zone),
        };
        let found = match Timing::new(&schedule, &TimeZone::get(zone).unwrap()) {
            // `every` is shown in the machine's zone.
            Ok(timing) => {
                let after = ts(after);
                timing.next_n(after, after, expected.len()).into_iter().map(shown).collect()
            }
            Err(wrong) => vec![format!("refused: {}", wrong.message)],
        };
        for (expected, found) in expected.iter().zip(&found) {
            let is_it = expected == found || expected.starts_with("refused") && found.contains(&expected[9..]);
            assert!(is_it, "{schedule:?} in {zone} after {after}: {found}, not {expected}");
        }
        assert_eq!(found.len(), expected.len(), "{schedule:?} in {zone} after {after}");
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
        ("61 * * * *", "\"61 * * * *\": the minute goes from 0 to 59, and 61 is not among them"),
        ("0 1-25/2 * * *", "\"0 1-25/2 * * *\": the hour goes from 0 to 23, and 25 is not among them"),
        ("70 0 0 * * *", "\"70 0 0 * * *\": the second goes from 0 to 59, and 70 is not among them"),
        ("0 0 * 13 *", "\"0 0 * 13 *\": the month goes from 1 to 12, and 13 is not among them"),
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
fn t_35_of_the_newest_slots_there_are_never_more_than_were_asked_for() {
    // Halved twice, the stretch ends within a microsecond before the slot of 7:35.
    let cron = timing(&cron("*/7 * * * *", "Europe/Berlin"));
    let (after, until) = (ts("2026-10-09T07:27:59.999999Z"), ts("2026-10-09T07:57:32.292Z"));
    let newest = cron.newest_in(after, after, until, 3);
    assert_eq!(newest, ["2026-10-09T07:42:00Z", "2026-10-09T07:49:00Z", "2026-10-09T07:56:00Z"].map(ts));
    let slot = newest[0];
    for (before, count) in [(0, 0), (1, 1), (999, 1), (1000, 1)] {
        assert_eq!(cron.count(after, slot - SignedDuration::from_nanos(before), slot), count, "{before} ns before");
    }
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

/// Hours before and after a change of the clock.
const CHANGES: [(&str, &str); 9] = [
    ("America/New_York", "2026-03-08T07:00Z"),
    ("America/New_York", "2026-11-01T06:00Z"),
    ("Europe/Berlin", "2026-03-29T01:00Z"),
    ("Europe/Berlin", "2026-10-25T01:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00Z"),
    ("America/Santiago", "2026-09-06T04:00Z"),
    ("America/Santiago", "2026-04-05T03:00Z"),
    // A whole day that never was.
    ("Pacific/Apia", "2011-12-30T10:00Z"),
];

proptest! {
    #[test]
    fn t_35_slots_are_computed_as_many_as_come_one_by_one_over_every_change_of_the_clock(
        (zone, change) in prop::sample::select(CHANGES.to_vec()),
        expression in prop_oneof![
            prop::sample::select(EXPRESSIONS.to_vec()).prop_map(str::to_owned),
            ("[0-5]?[0-9](,[0-5]?[0-9])?|\\*/7|\\*", "[01]?[0-9](,2[0-3])?|0-4|22-23|\\*/3|\\*")
                .prop_map(|(minute, hour)| format!("{minute} {hour} * * *")),
            "[0-5]?[0-9] [0-5]?[0-9] [0-4]".prop_map(|time| format!("{time} * * *")),
        ],
        before in 0i64..200_000_000_000,
        length in 0i64..400_000_000_000,
        most in 0usize..40,
    ) {
        let timing = timing(&cron(&expression, zone));
        let after = ts(change) - SignedDuration::from_micros(before);
        let until = after + SignedDuration::from_micros(length);
        let one_by_one: Vec<_> = std::iter::successors(timing.next_after(after, after), |at| timing.next_after(after, *at))
            .take_while(|at| *at <= until)
            .collect();
        prop_assert_eq!(timing.count(after, after, until), one_by_one.len() as u64, "{} in {}", expression, zone);
        prop_assert_eq!(timing.last_in(after, after, until), one_by_one.last().copied());
        let newest = &one_by_one[one_by_one.len() - most.min(one_by_one.len())..];
        prop_assert_eq!(timing.newest_in(after, after, until, most), newest);
    }

    #[test]
    fn planned_times_never_invert_and_stay_before_the_next_slot(
        zone in 0..ZONES.len(),
        expression in 0..EXPRESSIONS.len(),
        jitter in prop::option::of(1u64..590),
        stagger in any::<bool>(),
        (id, seed) in ("[a-z]{1,8}", any::<u64>()),
        start in 1_767_225_600i64..1_830_297_600,
    ) {
        let jitter = jitter.map(Duration::from_secs);
        let spread = Schedule { jitter, stagger, ..cron(EXPRESSIONS[expression], ZONES[zone]) };
        let spread_of = |id: &str, seed| Timing::new(&spread, &TimeZone::UTC).unwrap().of_task(id, seed);
        let (timing, again) = (spread_of(&id, seed), spread_of(&id, seed));
        let start = Timestamp::from_second(start).unwrap();
        let mut before = start;
        for up in timing.next_n(start, start, 60) {
            let slot = up.at.timestamp();
            let planned = timing.planned_for(start, slot);
            prop_assert!(planned >= slot && planned > before);
            prop_assert!(timing.next_after(start, slot).is_none_or(|next| planned < next));
            prop_assert_eq!(again.planned_for(start, slot), planned, "drawn once");
            prop_assert_eq!(up.planned_for.map(|planned| planned.timestamp()), (planned != slot).then_some(planned));
            before = planned;
        }
    }
}

#[test]
fn a_slot_starts_before_the_next_also_where_a_change_of_the_clock_brings_the_two_together() {
    // On Lord Howe 01:45 comes twice within half an hour.
    let (first, second) = (ts("2026-04-05T01:45+11:00"), ts("2026-04-05T01:45+10:30"));
    let jitter = Some(Duration::from_secs(59 * 60));
    let hourly = Schedule { jitter, ..cron("45 * * * *", "Australia/Lord_Howe") };
    for seed in 0..50 {
        let timing = Timing::new(&hourly, &TimeZone::UTC).unwrap().of_task("due", seed);
        assert_eq!(timing.next_after(first, first), Some(second));
        assert!(timing.planned_for(first, first) < second, "seed {seed}");
    }
}

#[test]
fn jitter_is_another_for_each_slot_and_task_and_stagger_the_same_for_all_slots() {
    let hourly = |jitter: Option<u64>, stagger| Schedule {
        jitter: jitter.map(Duration::from_secs),
        stagger,
        ..cron("@hourly", "UTC")
    };
    let start = ts("2026-05-01T00:00:00Z");
    let offsets = |schedule: &Schedule, id: &str, seed| -> Vec<SignedDuration> {
        let timing = Timing::new(schedule, &TimeZone::UTC).unwrap().of_task(id, seed);
        let slots =
            std::iter::successors(timing.next_after(start, start), |at| timing.next_after(start, *at)).take(1000);
        slots.map(|slot| timing.planned_for(start, slot).duration_since(slot)).collect()
    };
    let spread = offsets(&hourly(Some(300), false), "a", 1);
    assert!(spread.iter().all(|offset| *offset < SignedDuration::from_secs(300)));
    // Spread over all of it: each of ten parts has its share.
    for part in 0..10 {
        let of_part = spread.iter().filter(|offset| offset.as_secs() / 30 == part).count();
        assert!((60..=140).contains(&of_part), "{of_part} of 1000 in part {part}");
    }
    assert_ne!(spread, offsets(&hourly(Some(300), false), "a", 2), "another task");
    let moved = offsets(&hourly(None, true), "a", 1);
    assert!(moved.iter().all(|offset| *offset == moved[0]));
    assert_eq!(moved, offsets(&hourly(None, true), "a", 2), "of its id alone");
    assert_ne!(moved, offsets(&hourly(None, true), "b", 1));
    assert!(offsets(&hourly(None, false), "a", 1).iter().all(SignedDuration::is_zero), "off unless asked for");
}
