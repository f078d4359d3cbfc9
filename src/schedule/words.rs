//! A schedule in plain words: "every weekday at 03:00 in Berlin". Says nothing that is not so: an expression with no
//! short way to say it is quoted as it stands.

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::{Timestamp, Zoned};

use crate::schedule::timing::{self, Fields, Timing};
use crate::task::definition::{Schedule, When};

/// How many times of a day, or days of a month, are named one by one.
const NAMED: usize = 6;

/// A schedule for people. `timing` is what was understood of it; of one task, it says by how much `stagger` moves that.
pub fn words(schedule: &Schedule, timing: &Timing) -> String {
    let mut words = match &schedule.when {
        When::Every { period } => format!("every {}", each(*period)),
        When::At { time, zone } => once(time, zone.as_ref().map(|zone| named(timing, zone))),
        When::Cron { expression, zone } => {
            let place = zone.as_ref().map(|zone| place(named(timing, zone))).unwrap_or_default();
            let said = timing.fields().and_then(|fields| cron(&fields, &place));
            said.unwrap_or_else(|| {
                let comma = if place.is_empty() { "" } else { "," };
                format!("at the times of `{}`{comma}{place}", expression.trim())
            })
        }
    };
    if schedule.stagger {
        words.push_str(&match timing.stagger() {
            Some(moved) if !moved.is_zero() => format!(", and {} later", length(moved)),
            _ => ", and a steady while later".to_owned(),
        });
    }
    if let Some(jitter) = schedule.jitter {
        words.push_str(&format!(", spread over {}", length(jitter)));
    }
    words
}

/// A zone as the world writes it, however it was written here.
fn named<'t>(timing: &'t Timing, zone: &'t str) -> &'t str {
    timing.zone().iana_name().unwrap_or(zone)
}

/// ` in Berlin`; a zone that is not named after a place stands as it is.
fn place(zone: &str) -> String {
    const PARTS: [&str; 9] =
        ["Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Europe", "Indian", "Pacific"];
    let mut parts = zone.split('/');
    let first = parts.next().unwrap_or_default();
    let city =
        parts.next_back().filter(|city| city.chars().any(char::is_lowercase) && !city.contains(char::is_numeric));
    match city {
        Some(city) if PARTS.iter().any(|part| part.eq_ignore_ascii_case(first)) || first == "Australia" => {
            format!(" in {}", city.replace('_', " "))
        }
        _ => format!(" in {zone}"),
    }
}

/// A period without its "every": `minute`, `15 minutes`, `1 hour and 30 minutes`.
fn each(period: Duration) -> String {
    let words = length(period);
    match words.strip_prefix("1 ") {
        Some(unit) if !unit.contains(' ') => unit.to_owned(),
        _ => words,
    }
}

/// A length of time in full words. No days: one that is 24 hours is not always from one time of day to the same.
fn length(length: Duration) -> String {
    let seconds = length.as_secs();
    let parts = [
        (seconds / 3600, "hour"),
        (seconds / 60 % 60, "minute"),
        (seconds % 60, "second"),
        (u64::from(length.subsec_millis()), "millisecond"),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|(count, _)| *count > 0).map(|(n, unit)| many(n, unit)).collect();
    if parts.is_empty() { "no time".into() } else { listed(&parts) }
}

fn many(count: u64, unit: &str) -> String {
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// A single time, as it was given: local in its zone, or with an offset.
fn once(time: &str, zone: Option<&str>) -> String {
    let text = time.trim();
    let found = zone.and_then(|zone| timing::zone(zone).ok());
    let at_once = |at: DateTime, place: String| format!("once on {} at {}{place}", day(at.date()), clock(at));
    if let Ok(moment) = text.parse::<Timestamp>() {
        return match (found, zone) {
            (Some(tz), Some(zone)) => {
                let at = moment.to_zoned(tz);
                at_once(at.datetime(), format!("{}{}", place(zone), which_passing(&at)))
            }
            _ => {
                // In the offset that it was given with.
                let offset =
                    jiff::fmt::temporal::Pieces::parse(text).ok().and_then(|pieces| pieces.to_numeric_offset());
                let offset = offset.unwrap_or(jiff::tz::Offset::UTC);
                let name =
                    if offset.seconds() == 0 { " UTC".to_owned() } else { format!(" UTC{}", timing::iso(offset)) };
                at_once(offset.to_datetime(moment), name)
            }
        };
    }
    match text.parse::<DateTime>() {
        Ok(local) => at_once(local, zone.map(place).unwrap_or_default()),
        Err(_) => format!("once at {text}"),
    }
}

/// Which of two passings, where a wall clock time comes twice.
fn which_passing(at: &Zoned) -> &'static str {
    let placed = at.time_zone().to_ambiguous_zoned(at.datetime());
    if !placed.is_ambiguous() {
        return "";
    }
    match placed.earlier() {
        Ok(first) if first.timestamp() == at.timestamp() => ", the first time it passes",
        _ => ", the second time it passes",
    }
}

/// `Tuesday 1 December 2026`.
fn day(date: Date) -> String {
    date.strftime("%A %-d %B %Y").to_string()
}

fn clock(at: DateTime) -> String {
    let form = if at.second() == 0 && at.subsec_nanosecond() == 0 { "%H:%M" } else { "%H:%M:%S%.f" };
    at.strftime(form).to_string()
}

/// The common shapes of an expression; none for the others.
fn cron(fields: &Fields, place: &str) -> Option<String> {
    let days = Days::of(fields)?;
    let every_day = days == Days::Every && fields.months.len() == 12;
    // The whole day in even steps needs no zone, and no days before it.
    if every_day && let Some(steps) = whole_day(fields) {
        return Some(steps);
    }
    let days = days.words(&fields.months)?;
    let times = times(fields)?;
    let comma = if times.starts_with("every") { ", " } else { " " };
    if every_day && comma == ", " {
        return Some(format!("{times}{place}"));
    }
    Some(format!("{days}{comma}{times}{place}"))
}

/// Even steps through the whole day, wherever it is: seconds and minutes that divide a minute and an hour.
fn whole_day(fields: &Fields) -> Option<String> {
    let Fields { seconds, minutes, hours, .. } = fields;
    if hours.len() != 24 {
        return None;
    }
    match (even_steps(seconds, 60), even_steps(minutes, 60)) {
        (Some(step), Some(1)) => Some(every(step, "second")),
        _ if seconds[..] != [0] => None,
        (_, Some(step)) => Some(every(step, "minute")),
        _ if minutes[..] == [0] => Some("every hour".into()),
        _ => None,
    }
}

/// The step of values that begin at zero and divide the whole: `0, 15, 30, 45` of 60. One alone is none.
fn even_steps(values: &[u16], whole: u16) -> Option<u16> {
    let step = *values.get(1)?;
    let even = values.iter().zip((0..whole).step_by(usize::from(step))).all(|(value, at)| *value == at);
    (even && whole.is_multiple_of(step) && values.len() == usize::from(whole / step)).then_some(step)
}

fn every(step: u16, unit: &str) -> String {
    if step == 1 { format!("every {unit}") } else { format!("every {}", many(step.into(), unit)) }
}

/// The times of a day: `at 03:00 and 15:00`, `every 10 minutes from 09:00 to 17:50`, `every hour at :05`.
fn times(fields: &Fields) -> Option<String> {
    let Fields { seconds, minutes, hours, .. } = fields;
    let [second] = seconds[..] else { return None };
    let part = if second == 0 { String::new() } else { format!(":{second:02}") };
    let time = |hour: u16, minute: u16| format!("{hour:02}:{minute:02}{part}");
    let number = hours.len() * minutes.len();
    if number <= NAMED {
        let all: Vec<String> =
            hours.iter().flat_map(|hour| minutes.iter().map(move |minute| time(*hour, *minute))).collect();
        return Some(format!("at {}", listed(&all)));
    }
    let (first, last) = (*hours.first()?, *hours.last()?);
    let in_a_row = hours.len() == usize::from(last - first) + 1;
    let span = |from: String, to: String| format!("from {from} to {to}");
    if let Some(step) = even_steps(minutes, 60).filter(|_| in_a_row) {
        let all = span(time(first, 0), time(last, 60 - step));
        return Some(format!("{} {all}", every(step, "minute")));
    }
    if hours.len() == 24 && minutes.len() <= NAMED {
        let all: Vec<String> = minutes.iter().map(|minute| format!(":{minute:02}{part}")).collect();
        return Some(format!("every hour at {}", listed(&all)));
    }
    let [minute] = minutes[..] else { return None };
    let step = hours.get(1)? - first;
    let even = hours.windows(2).all(|two| two[1] - two[0] == step);
    even.then(|| format!("{} {}", every(step, "hour"), span(time(first, minute), time(last, minute))))
}

/// The days of an expression.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Days {
    Every,
    /// These weekdays, from Monday as 1 to Sunday as 7.
    Weekdays(Vec<u16>),
    /// These days of the month.
    Dates(Vec<u16>),
    /// The last day of the month.
    Last,
    /// The nth of this weekday in the month; the last without a number.
    Nth(Option<u16>, u16),
}

impl Days {
    /// Where only one of the two fields says something: which of two fits has no short words.
    fn of(fields: &Fields) -> Option<Self> {
        match (fields.day.as_str(), fields.weekday.as_str()) {
            ("*", "*") => Some(Self::Every),
            ("l", "*") => Some(Self::Last),
            (days, "*") => {
                let days = values(days, 1, 31, &[])?;
                Some(if days.len() == 31 { Self::Every } else { Self::Dates(days) })
            }
            ("*", days) => Self::of_weekdays(days),
            _ => None,
        }
    }

    fn of_weekdays(field: &str) -> Option<Self> {
        const NAMES: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
        let from_monday = |day: u16| if day == 0 { 7 } else { day };
        let one = |text: &str| match values(text, 0, 7, &NAMES)?[..] {
            [day] => Some(from_monday(day)),
            _ => None,
        };
        if let Some((day, nth)) = field.split_once('#') {
            let nth = match nth {
                "l" => None,
                "1" | "2" | "3" | "4" | "5" => Some(nth.parse().ok()?),
                _ => return None,
            };
            return Some(Self::Nth(nth, one(day)?));
        }
        let mut days: Vec<u16> = values(field, 0, 7, &NAMES)?.into_iter().map(from_monday).collect();
        days.sort_unstable();
        days.dedup();
        Some(if days.len() == 7 { Self::Every } else { Self::Weekdays(days) })
    }

    fn words(&self, months: &[u16]) -> Option<String> {
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
        let weekday = |day: &u16| WEEKDAYS[usize::from(*day) - 1].to_owned();
        let month = |month: &u16| MONTHS[usize::from(*month) - 1].to_owned();
        let all_year = months.len() == 12;
        let names = || listed(&months.iter().map(month).collect::<Vec<_>>());
        let in_months = if all_year { String::new() } else { format!(" in {}", names()) };
        let of_months = if all_year { " of every month".to_owned() } else { format!(" of {}", names()) };
        Some(match self {
            Self::Every => format!("every day{in_months}"),
            Self::Weekdays(days) if days[..] == [1, 2, 3, 4, 5] => format!("every weekday{in_months}"),
            Self::Weekdays(days) => {
                format!("every {}{in_months}", listed(&days.iter().map(weekday).collect::<Vec<_>>()))
            }
            Self::Dates(days) if days.len() > NAMED => return None,
            Self::Dates(days) if all_year && days.len() == 1 && days[0] > 28 => {
                format!("on the {} of every month that has one", nth(&days[0]))
            }
            // Not every month has them, and each would need its own word.
            Self::Dates(days) if days.iter().any(|day| months.iter().any(|month| *day > shortest(*month))) => {
                return None;
            }
            Self::Dates(days) if days.len() == 1 && months.len() == 1 => {
                format!("on {} {} of every year", days[0], names())
            }
            Self::Dates(days) => format!("on the {}{of_months}", listed(&days.iter().map(nth).collect::<Vec<_>>())),
            Self::Last => format!("on the last day{of_months}"),
            Self::Nth(None, day) => format!("on the last {}{of_months}", weekday(day)),
            Self::Nth(Some(5), _) if !all_year => return None,
            Self::Nth(Some(5), day) => format!("on the 5th {} of every month that has one", weekday(day)),
            Self::Nth(Some(number), day) => format!("on the {} {}{of_months}", nth(number), weekday(day)),
        })
    }
}

/// The days of a month that it has in any year.
fn shortest(month: u16) -> u16 {
    match month {
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// A field as the values that it stands for, ascending: lists of values, ranges and steps. None for what else it may
/// hold.
fn values(field: &str, least: u16, most: u16, names: &[&str]) -> Option<Vec<u16>> {
    let value = |text: &str| -> Option<u16> {
        let by_name = names.iter().position(|name| *name == text).and_then(|at| u16::try_from(at).ok());
        let by_number = || text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        by_name.or_else(by_number).filter(|value| (least..=most).contains(value))
    };
    let mut all = Vec::new();
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (value(first)?, value(last)?),
            None if range == "*" => (least, if names.is_empty() { most } else { 6 }),
            // A step from one value on is read in more than one way.
            None if step.is_some() => return None,
            None => (value(range)?, value(range)?),
        };
        let step = step.map_or(Some(1), |step| step.parse::<usize>().ok().filter(|step| *step > 0))?;
        if first > last {
            return None;
        }
        all.extend((first..=last).step_by(step));
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// `1st`, `2nd`, `3rd`, `4th`, `11th`.
fn nth(number: &u16) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
