//! Schedules in plain words: they say what is so, or quote the expression.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::civil::{Date, DateTime, date};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use proptest::prelude::*;
use rejoin::schedule::timing::Timing;
use rejoin::schedule::words::words;
use rejoin::task::definition::{Schedule, When};

fn said(schedule: &Schedule) -> String {
    words(schedule, &Timing::new(schedule, &TimeZone::UTC).unwrap())
}

fn cron(expression: &str, zone: Option<&str>) -> Schedule {
    When::Cron { expression: expression.into(), zone: zone.map(str::to_owned) }.into()
}

#[test]
fn schedules_read_as_people_say_them() {
    for (expression, words) in [
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 minutes"),
        ("0-59/15 * * * *", "every 15 minutes"),
        ("*/7 * * * *", "at the times of `*/7 * * * *`, in Berlin"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("* * * * * *", "every second"),
        ("0 */6 * * *", "every day at 00:00, 06:00, 12:00 and 18:00 in Berlin"),
        ("0 */2 * * *", "every 2 hours from 00:00 to 22:00 in Berlin"),
        ("0 */5 * * *", "every day at 00:00, 05:00, 10:00, 15:00 and 20:00 in Berlin"),
        ("0 * * * *", "every hour"),
        ("@hourly", "every hour"),
        ("5 * * * *", "every hour at :05 in Berlin"),
        ("5,35 * * * mon", "every Monday, every hour at :05 and :35 in Berlin"),
        ("0 3 * * *", "every day at 03:00 in Berlin"),
        ("@daily", "every day at 00:00 in Berlin"),
        ("30 0 3 * * *", "every day at 03:00:30 in Berlin"),
        ("0 3 * * 1-5", "every weekday at 03:00 in Berlin"),
        ("0 3 * * MON-FRI", "every weekday at 03:00 in Berlin"),
        ("0 3,15 * * 1-5", "every weekday at 03:00 and 15:00 in Berlin"),
        ("0 3 * * 6,0", "every Saturday and Sunday at 03:00 in Berlin"),
        ("0 3 * * mon,wed,fri", "every Monday, Wednesday and Friday at 03:00 in Berlin"),
        ("*/10 9-17 * * 1-5", "every weekday, every 10 minutes from 09:00 to 17:50 in Berlin"),
        ("0 9-17 * * 1-5", "every weekday, every hour from 09:00 to 17:00 in Berlin"),
        ("0 3 1 * *", "on the 1st of every month at 03:00 in Berlin"),
        ("0 3 1,15 * *", "on the 1st and 15th of every month at 03:00 in Berlin"),
        ("0 3 31 * *", "on the 31st of every month that has one at 03:00 in Berlin"),
        ("0 3 L * *", "on the last day of every month at 03:00 in Berlin"),
        ("0 9 * * MON#2", "on the 2nd Monday of every month at 09:00 in Berlin"),
        ("0 9 * * fri#L", "on the last Friday of every month at 09:00 in Berlin"),
        ("0 9 * * sun#5", "on the 5th Sunday of every month that has one at 09:00 in Berlin"),
        ("0 3 24 dec *", "on 24 December of every year at 03:00 in Berlin"),
        ("0 9 * jun-aug mon-fri", "every weekday in June, July and August at 09:00 in Berlin"),
        ("@yearly", "on 1 January of every year at 00:00 in Berlin"),
        // Either day will do, or not every year has it: no short words are true.
        ("0 3 13 * 5", "at the times of `0 3 13 * 5`, in Berlin"),
        ("0 3 13 * 0-6", "at the times of `0 3 13 * 0-6`, in Berlin"),
        ("0 0 29 2 *", "at the times of `0 0 29 2 *`, in Berlin"),
        ("0 0 15W * *", "at the times of `0 0 15W * *`, in Berlin"),
    ] {
        assert_eq!(said(&cron(expression, Some("europe/berlin"))), words, "{expression}");
    }
    assert_eq!(said(&cron("0 3 * * *", None)), "every day at 03:00");
    assert_eq!(said(&cron("0 3 13 * 5", None)), "at the times of `0 3 13 * 5`");
}

#[test]
fn a_zone_is_named_after_its_place_where_it_has_one() {
    for (zone, place) in [
        ("America/New_York", "New York"),
        ("America/Argentina/Buenos_Aires", "Buenos Aires"),
        ("Australia/Lord_Howe", "Lord Howe"),
        ("Australia/NSW", "Australia/NSW"),
        ("UTC", "UTC"),
        ("Etc/GMT+5", "Etc/GMT+5"),
        ("US/Eastern", "US/Eastern"),
    ] {
        assert_eq!(said(&cron("0 3 * * *", Some(zone))), format!("every day at 03:00 in {place}"));
    }
}

#[test]
fn periods_and_single_times_read_as_people_say_them() {
    for (seconds, words) in [
        (1, "every second"),
        (60, "every minute"),
        (900, "every 15 minutes"),
        (3600, "every hour"),
        (5400, "every 1 hour and 30 minutes"),
        (86_400, "every 24 hours"),
    ] {
        assert_eq!(said(&When::Every { period: Duration::from_secs(seconds) }.into()), words);
    }
    for (time, zone, words) in [
        ("2026-12-01T03:00", Some("Europe/Berlin"), "once on Tuesday 1 December 2026 at 03:00 in Berlin"),
        ("2026-12-01T02:00Z", Some("Europe/Berlin"), "once on Tuesday 1 December 2026 at 03:00 in Berlin"),
        ("2026-12-01T03:00:30", None, "once on Tuesday 1 December 2026 at 03:00:30"),
        ("2026-12-01T03:00+01:00", None, "once on Tuesday 1 December 2026 at 03:00 UTC+01:00"),
        ("2026-12-01T03:00Z", None, "once on Tuesday 1 December 2026 at 03:00 UTC"),
        (
            "2026-10-25T02:30+01:00",
            Some("Europe/Berlin"),
            "once on Sunday 25 October 2026 at 02:30 in Berlin, the second time it passes",
        ),
    ] {
        assert_eq!(said(&When::At { time: time.into(), zone: zone.map(str::to_owned) }.into()), words, "{time}");
    }
}

#[test]
fn what_moves_the_slots_is_said_with_them() {
    let jitter = Some(Duration::from_secs(300));
    let spread = Schedule { jitter, ..cron("0 3 * * *", Some("Europe/Berlin")) };
    assert_eq!(said(&spread), "every day at 03:00 in Berlin, spread over 5 minutes");
    let moved = Schedule { stagger: true, ..spread };
    let timing = Timing::new(&moved, &TimeZone::UTC).unwrap();
    let timing = timing.of_task("nightly", 7);
    let later = timing.stagger().unwrap();
    assert!(later < Duration::from_secs(3600), "{later:?}");
    let words = words(&moved, &timing);
    assert!(
        words.starts_with("every day at 03:00 in Berlin, and ") && words.ends_with(" later, spread over 5 minutes")
    );
    assert!(words.contains(&format!("{} second", later.as_secs() % 60)), "{words}");
}

/// What the words mean, read by somebody who knows nothing of cron: whether a wall clock time is among those they name.
struct Meaning {
    days: Vec<(Option<BTreeSet<i8>>, String)>,
    times: String,
}

const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn split(list: &str) -> Vec<&str> {
    list.split(", ").flat_map(|part| part.split(" and ")).collect()
}

fn months_in(list: &str) -> BTreeSet<i8> {
    split(list).iter().map(|name| MONTHS.iter().position(|month| month == name).expect(list) as i8 + 1).collect()
}

impl Meaning {
    fn of(words: &str) -> Self {
        let words = words.strip_suffix(" in Berlin").unwrap_or(words);
        // `DAYS at TIMES`, `DAYS, every ...`, or `every ...` alone, which is every day.
        let at =
            words.find(" at ").filter(|_| !words.contains(" every hour at ") && !words.starts_with("every hour at "));
        let (days, times) = match (at, words.rfind(", every ")) {
            (Some(at), _) => (&words[..at], words[at + 4..].to_owned()),
            (None, Some(comma)) => (&words[..comma], words[comma + 2..].to_owned()),
            (None, None) => ("every day", words.to_owned()),
        };
        let (days, months) = match days.split_once(" in ") {
            Some((days, months)) => (days, Some(months_in(months))),
            None => (days, None),
        };
        Self { days: vec![(months, days.to_owned())], times }
    }

    fn has_day(&self, day: Date) -> bool {
        self.days.iter().all(|(months, days)| {
            let weekday = WEEKDAYS[day.weekday().to_monday_zero_offset() as usize];
            if months.as_ref().is_some_and(|months| !months.contains(&day.month())) {
                return false;
            }
            match days.as_str() {
                "every day" => return true,
                "every weekday" => return !["Saturday", "Sunday"].contains(&weekday),
                _ => {}
            }
            if let Some(list) = days.strip_prefix("every ") {
                return split(list).contains(&weekday);
            }
            let list = days.strip_prefix("on ").expect(days);
            if let Some(dated) = list.strip_suffix(" of every year") {
                return dated == format!("{} {}", day.day(), MONTHS[day.month() as usize - 1]);
            }
            let (list, months) = list.strip_prefix("the ").expect(days).rsplit_once(" of ").expect(days);
            if !months.starts_with("every month") && !months_in(months).contains(&day.month()) {
                return false;
            }
            let is_last = day.tomorrow().unwrap().month() != day.month();
            if list == "last day" {
                return is_last;
            }
            if let Some(name) = list.strip_prefix("last ") {
                return name == weekday && day.saturating_add(7.days()).month() != day.month();
            }
            let ordinal = |text: &str| text.trim_end_matches(char::is_alphabetic).parse::<i8>().expect(text);
            match list.split_once(' ').filter(|(_, name)| WEEKDAYS.contains(name)) {
                Some((nth, name)) => name == weekday && (day.day() + 6) / 7 == ordinal(nth),
                None => split(list).iter().any(|text| ordinal(text) == day.day()),
            }
        })
    }

    fn has_time(&self, at: DateTime) -> bool {
        let second = i64::from(at.hour()) * 3600 + i64::from(at.minute()) * 60 + i64::from(at.second());
        let clock = |text: &str| -> i64 {
            let parts: Vec<i64> = text.split(':').map(|part| part.parse().expect(text)).collect();
            parts[0] * 3600 + parts[1] * 60 + parts.get(2).copied().unwrap_or(0)
        };
        let Some(each) = self.times.strip_prefix("every ") else {
            return split(&self.times).iter().any(|text| clock(text) == second);
        };
        if let Some(list) = each.strip_prefix("hour at ") {
            return split(list).iter().any(|text| clock(&format!("00{text}")) == second % 3600);
        }
        let (step, span) = each.split_once(" from ").unwrap_or((each, ""));
        let mut parts = step.rsplitn(2, ' ');
        let unit = parts.next().unwrap().trim_end_matches('s');
        let number: i64 = parts.next().map_or(1, |number| number.parse().expect(each));
        let step =
            number * [("second", 1), ("minute", 60), ("hour", 3600)].iter().find(|(name, _)| *name == unit).unwrap().1;
        let (first, last) = span.split_once(" to ").map_or((0, 86_399), |(from, to)| (clock(from), clock(to)));
        (first..=last).contains(&second) && (second - first) % step == 0
    }

    fn has(&self, at: DateTime) -> bool {
        self.has_day(at.date()) && self.has_time(at)
    }
}

fn field(least: u16, most: u16) -> impl Strategy<Value = String> {
    let value = move || least..=most;
    prop_oneof![
        4 => Just("*".to_owned()),
        4 => value().prop_map(|n| n.to_string()),
        2 => prop::collection::vec(value(), 1..5)
            .prop_map(|list| list.iter().map(u16::to_string).collect::<Vec<_>>().join(",")),
        2 => (value(), value()).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        2 => prop::sample::select(vec![2u16, 3, 5, 6, 7, 10, 15, 20, 30]).prop_map(|step| format!("*/{step}")),
        1 => (value(), value(), 1u16..9).prop_map(|(a, b, step)| format!("{}-{}/{step}", a.min(b), a.max(b))),
    ]
}

fn expressions() -> impl Strategy<Value = String> {
    let days = prop_oneof![6 => field(1, 31), 1 => Just("L".to_owned()), 1 => Just("15W".to_owned())];
    let weekdays = prop_oneof![
        5 => field(0, 7),
        2 => prop::sample::select(vec!["mon-fri", "SAT,sun", "tue#1", "thu#5", "fri#L", "1#3", "?"]).prop_map(str::to_owned),
    ];
    let seconds = prop_oneof![5 => Just(String::new()), 1 => field(0, 59).prop_map(|field| field + " ")];
    let months = prop_oneof![3 => Just("*".to_owned()), 1 => field(1, 12), 1 => Just("jun-aug".to_owned())];
    (seconds, field(0, 59), field(0, 23), days, months, weekdays).prop_map(
        |(second, minute, hour, day, month, weekday)| format!("{second}{minute} {hour} {day} {month} {weekday}"),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn words_are_never_wrong(expression in expressions(), from in 0i64..1400, probes in prop::collection::vec(0i64..86_400, 40)) {
        let schedule = cron(&expression, Some("Europe/Berlin"));
        let Ok(timing) = Timing::new(&schedule, &TimeZone::UTC) else { return Ok(()) };
        let said = words(&schedule, &timing);
        if said.starts_with("at the times of") {
            return Ok(());
        }
        let meaning = Meaning::of(&said);
        // Days on which the clock changes have their own table.
        let changes = |day: Date| {
            let zone = timing.zone();
            day.to_zoned(zone.clone()).unwrap().offset() != day.tomorrow().unwrap().to_zoned(zone.clone()).unwrap().offset()
        };
        let begin = date(2025, 1, 1).checked_add(from.days()).unwrap().to_zoned(timing.zone().clone()).unwrap().timestamp();
        // Each slot is among the times that the words name, and between two slots they name none.
        let mut at = begin;
        for next in timing.next_n(begin, begin, 12) {
            let local = next.at.datetime();
            prop_assert!(changes(local.date()) || meaning.has(local), "{expression}: {said:?} does not name {local}");
            let gap = next.at.timestamp().as_second() - at.as_second();
            for probe in &probes {
                let between = Timestamp::from_second(at.as_second() + 1 + probe * gap / 86_400).unwrap();
                let local = between.to_zoned(timing.zone().clone()).datetime();
                let is_slot = between >= next.at.timestamp();
                prop_assert!(changes(local.date()) || is_slot || !meaning.has(local), "{expression}: {said:?} names {local}");
            }
            at = next.at.timestamp();
        }
        // And on any day they name as many times as there are slots.
        if expression.split(' ').count() == 6 {
            return Ok(());
        }
        let midnight = date(2025, 1, 1).at(0, 0, 0, 0);
        let times = (0..1440i64).filter(|minute| meaning.has_time(midnight.saturating_add(minute.minutes()))).count() as u64;
        for probe in &probes {
            let day = date(2025, 1, 1).checked_add((from + probe % 400).days()).unwrap();
            if !changes(day) {
                let micro = jiff::SignedDuration::from_micros(1);
                let first = day.to_zoned(timing.zone().clone()).unwrap().timestamp() - micro;
                let slots = timing.count(first, first, first + jiff::SignedDuration::from_hours(24));
                let named = if meaning.has_day(day) { times } else { 0 };
                prop_assert_eq!(named, slots, "{}: {:?} on {}", expression, said, day);
            }
        }
    }
}
