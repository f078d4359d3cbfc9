//! Which moments a schedule means: pure calculation over cron, periods, single times and zones.
//!
//! How a change of the clock is taken, with croner matching wall clock times and this file placing them in the zone:
//!
//! | schedule | the clock goes forward | the clock goes back |
//! | --- | --- | --- |
//! | fixed hours, like `30 2 * * *` | what falls into the gap runs once, at the first moment after it | runs once, at the first passing |
//! | hours that begin with `*`, or are all 24 | runs in every real hour; what falls into the gap never was | runs at both passings |
//! | `every` | has no effect | has no effect |
//! | `at` | a time inside the gap is refused | a time that passes twice is refused without an offset |

use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{DateTime, date};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::config::units::{duration_text, duration_words};
use crate::task::definition::Schedule;

/// The shortest period of `every`.
pub const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// How many years a cron expression is searched for a date that exists. The rarest, the 29th of February on a given
/// weekday, comes back within 40.
const SEARCH_YEARS: i16 = 41;

/// How many moments of a cron expression are counted one by one; see [`Timing::count`].
pub const COUNT_LIMIT: u64 = 100_000;

/// Why a schedule is not taken: one line, and the key of the schedule it is about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Wrong {
    /// `cron`, `every`, `at` or `tz`.
    pub key: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Wrong {
    fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

/// A moment that is to come.
#[derive(Clone, Debug, PartialEq)]
pub struct Upcoming {
    /// When, in the zone of the schedule.
    pub at: Zoned,
    /// What a change of the clock did to it.
    pub note: Option<String>,
}

/// How many moments there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// So many.
    Exactly(u64),
    /// So many or more: counting them all would take too long.
    AtLeast(u64),
}

impl Count {
    /// The number that is certain.
    pub const fn number(self) -> u64 {
        match self {
            Self::Exactly(number) | Self::AtLeast(number) => number,
        }
    }
}

/// A schedule that was understood. Cheap enough to make when a task is loaded, and to keep.
#[derive(Clone, Debug)]
pub struct Timing {
    kind: Kind,
    zone: TimeZone,
}

#[derive(Clone, Debug)]
enum Kind {
    Cron { cron: Box<Cron>, every_hour: bool },
    Every { micros: i64 },
    At { at: Timestamp },
}

impl Timing {
    /// Understands a schedule. A schedule that names no zone is in `default_zone`, the machine's own.
    ///
    /// # Errors
    /// [`Wrong`]: an expression that cannot be read, a date that never comes, a zone that is not known, a period
    /// under one second, a single time that does not exist or exists twice. A single time in the past is no error
    /// here: it was once in the future; see [`check`].
    pub fn new(schedule: &Schedule, default_zone: &TimeZone) -> Result<Self, Wrong> {
        match schedule {
            Schedule::Cron { expression, zone } => {
                let zone = zone_or(zone.as_deref(), default_zone)?;
                let (cron, every_hour) = parse_cron(expression)?;
                Ok(Self { kind: Kind::Cron { cron: Box::new(cron), every_hour }, zone })
            }
            Schedule::Every { period } => {
                if *period < SHORTEST_PERIOD {
                    let message = format!("every {} is too often: one second is the shortest", duration_text(*period));
                    return Err(Wrong::new("every", message));
                }
                let micros =
                    i64::try_from(period.as_micros()).map_err(|_| Wrong::new("every", "the period is too long"))?;
                Ok(Self { kind: Kind::Every { micros }, zone: default_zone.clone() })
            }
            Schedule::At { time, zone } => {
                let zone = zone_or(zone.as_deref(), default_zone)?;
                let at = single_time(time, &zone)?;
                Ok(Self { kind: Kind::At { at }, zone })
            }
        }
    }

    /// The zone in which the schedule is meant and shown.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first moment after `after`; none where the schedule has no more. `anchor` is from where `every` counts:
    /// when the schedule was given or last changed.
    pub fn next_after(&self, anchor: Timestamp, after: Timestamp) -> Option<Timestamp> {
        self.next_noted(anchor, after).map(|(at, _)| at)
    }

    /// The last moment at or before `until` and after `after`; none where there is none. Takes as long for a year
    /// as for an hour.
    pub fn last_in(&self, anchor: Timestamp, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        if until <= after {
            return None;
        }
        match &self.kind {
            Kind::Every { micros } => {
                let k = until.as_microsecond().checked_sub(anchor.as_microsecond())?.div_euclid(*micros);
                slot(anchor, *micros, k).filter(|at| k >= 1 && *at > after)
            }
            Kind::At { at } => (after < *at && *at <= until).then_some(*at),
            Kind::Cron { .. } => {
                // Looks forward from ever farther back: the first stretch that holds a moment holds the last one.
                let mut stretch = SignedDuration::from_mins(2);
                loop {
                    let from = until.checked_sub(stretch).unwrap_or(Timestamp::MIN).max(after);
                    let mut last = None;
                    let mut at = from;
                    while let Some(next) = self.next_after(anchor, at).filter(|next| *next <= until) {
                        last = Some(next);
                        at = next;
                    }
                    if last.is_some() || from == after {
                        return last;
                    }
                    stretch = stretch.checked_mul(4).unwrap_or(SignedDuration::MAX);
                }
            }
        }
    }

    /// How many moments are after `after` and at or before `until`. Exact and immediate for `every` and `at`; a cron
    /// expression is counted one by one up to [`COUNT_LIMIT`].
    pub fn count(&self, anchor: Timestamp, after: Timestamp, until: Timestamp) -> Count {
        self.count_upto(anchor, after, until, COUNT_LIMIT)
    }

    /// The same, with a cron expression counted up to `most` only.
    pub fn count_upto(&self, anchor: Timestamp, after: Timestamp, until: Timestamp, most: u64) -> Count {
        if until <= after {
            return Count::Exactly(0);
        }
        match &self.kind {
            Kind::Every { micros } => {
                let upto = |t: Timestamp| {
                    let elapsed = t.as_microsecond().saturating_sub(anchor.as_microsecond());
                    u64::try_from(elapsed.div_euclid(*micros)).unwrap_or(0)
                };
                Count::Exactly(upto(until) - upto(after))
            }
            Kind::At { at } => Count::Exactly(u64::from(after < *at && *at <= until)),
            Kind::Cron { .. } => {
                let mut number = 0;
                let mut at = after;
                while let Some(next) = self.next_after(anchor, at).filter(|next| *next <= until) {
                    if number == most {
                        return Count::AtLeast(number);
                    }
                    number += 1;
                    at = next;
                }
                Count::Exactly(number)
            }
        }
    }

    /// The next `n` moments after `after`, with what a change of the clock did to them.
    pub fn next_n(&self, anchor: Timestamp, after: Timestamp, n: usize) -> Vec<Upcoming> {
        let mut from = after;
        let mut upcoming = Vec::new();
        while upcoming.len() < n {
            let Some((at, note)) = self.next_noted(anchor, from) else {
                break;
            };
            from = at;
            upcoming.push(Upcoming { at: at.to_zoned(self.zone.clone()), note });
        }
        upcoming
    }

    fn next_noted(&self, anchor: Timestamp, after: Timestamp) -> Option<(Timestamp, Option<String>)> {
        match &self.kind {
            Kind::Every { micros } => {
                let elapsed = after.as_microsecond().checked_sub(anchor.as_microsecond())?;
                // Slot 0 is the anchor itself, which is when the schedule was given: not a time to run.
                let k = (elapsed.div_euclid(*micros) + 1).max(1);
                slot(anchor, *micros, k).map(|at| (at, None))
            }
            Kind::At { at } => (*at > after).then_some((*at, None)),
            Kind::Cron { cron, every_hour: true } => next_in_every_hour(cron, &self.zone, after),
            Kind::Cron { cron, every_hour: false } => next_at_fixed_hours(cron, &self.zone, after),
        }
    }
}

/// Whether a schedule may be given or changed to now: all that [`Timing::new`] says, and that something is to come.
///
/// # Errors
/// [`Wrong`], with the key it is about.
pub fn check(schedule: &Schedule, default_zone: &TimeZone, now: Timestamp) -> Result<Timing, Wrong> {
    let timing = Timing::new(schedule, default_zone)?;
    if let (Kind::At { at }, Schedule::At { time, .. }) = (&timing.kind, schedule)
        && *at <= now
    {
        let now = now.to_zoned(timing.zone.clone()).strftime("%Y-%m-%d %H:%M");
        return Err(Wrong::new("at", format!("{time} is in the past: it is {now}")));
    }
    Ok(timing)
}

/// Slot `k` of a period: anchor + k × period in elapsed time.
fn slot(anchor: Timestamp, micros: i64, k: i64) -> Option<Timestamp> {
    let at = k.checked_mul(micros)?.checked_add(anchor.as_microsecond())?;
    Timestamp::from_microsecond(at).ok()
}

/// The next moment of an expression whose hours are fixed. Wall clock times are placed in order: one inside a gap
/// at its end, one that passes twice at its first passing; two that fall together are one moment.
fn next_at_fixed_hours(cron: &Cron, zone: &TimeZone, after: Timestamp) -> Option<(Timestamp, Option<String>)> {
    let mut wall = zone.to_datetime(after);
    loop {
        wall = cron.find_next_occurrence(&wall, false).ok()?;
        let placed = zone.to_ambiguous_zoned(wall);
        let (at, note) = match placed.offset() {
            AmbiguousOffset::Unambiguous { .. } => (placed.unambiguous().ok()?.timestamp(), None),
            AmbiguousOffset::Fold { .. } => {
                let note = "clock goes back: first passing".to_owned();
                (placed.earlier().ok()?.timestamp(), Some(note))
            }
            AmbiguousOffset::Gap { before, .. } => {
                // With the offset from before the gap the wall time is a moment behind the change of the clock, by
                // less than the gap is long: the change is the last one up to it.
                let behind = before.to_timestamp(wall).ok()?;
                let behind = behind.checked_add(SignedDuration::from_nanos(1)).ok()?;
                let change = zone.preceding(behind).next()?.timestamp();
                let note = format!("clock goes forward: moved from {}", wall.strftime("%H:%M"));
                (change, Some(note))
            }
        };
        if at > after {
            return Some((at, note));
        }
    }
}

/// The next moment of an expression that runs in every real hour: the stretches between two changes of the clock
/// are gone through one after the other, each with its own offset.
fn next_in_every_hour(cron: &Cron, zone: &TimeZone, after: Timestamp) -> Option<(Timestamp, Option<String>)> {
    let mut from = after;
    let mut inclusive = false;
    loop {
        let offset = zone.to_offset(from);
        let wall = cron.find_next_occurrence(&offset.to_datetime(from), inclusive).ok()?;
        let at = offset.to_timestamp(wall).ok()?;
        match zone.following(from).next().map(|change| change.timestamp()) {
            Some(change) if change <= at => {
                from = change;
                inclusive = true;
            }
            _ => return Some((at, passing(zone, wall, at))),
        }
    }
}

/// Which passing a moment is whose wall clock time comes twice.
fn passing(zone: &TimeZone, wall: DateTime, at: Timestamp) -> Option<String> {
    let placed = zone.to_ambiguous_zoned(wall);
    if !matches!(placed.offset(), AmbiguousOffset::Fold { .. }) {
        return None;
    }
    let first = placed.earlier().is_ok_and(|first| first.timestamp() == at);
    Some(format!("clock goes back: {} passing", if first { "first" } else { "second" }))
}

/// The zone of that name, or the other one.
fn zone_or(name: Option<&str>, default_zone: &TimeZone) -> Result<TimeZone, Wrong> {
    match name {
        None => Ok(default_zone.clone()),
        Some(name) => zone(name).map_err(|message| Wrong::new("tz", message)),
    }
}

/// The zone of an IANA name.
///
/// # Errors
/// One line, with the name that was probably meant.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    // Only names of places and UTC: a POSIX rule or a path would be read by no other part of a machine the same way.
    if let Ok(zone) = jiff::tz::db().get(name) {
        return Ok(zone);
    }
    let names: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
    match nearest(name, names.iter().map(String::as_str)) {
        Some(near) => Err(format!("{name:?} is not a time zone: did you mean {near:?}?")),
        None => Err(format!("{name:?} is not a time zone: write it like \"Europe/Berlin\" or \"UTC\"")),
    }
}

/// The name that is nearest to what was written, if one is near enough to have been meant.
pub fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = written.to_lowercase().replace([' ', '-'], "_");
    let allowed = 1 + wanted.chars().count() / 5;
    names
        .map(|name| {
            let lower = name.to_lowercase();
            // Half a name is common: the city without its continent.
            let last = lower.rsplit('/').next().unwrap_or(&lower);
            let distance = edits(&wanted, &lower).min(edits(&wanted, last));
            (distance, name)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, name)| (*distance, name.len()))
        .map(|(_, name)| name)
}

/// How many letters have to be put in, taken out or changed to get from one to the other (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// Reads an expression; true where it runs in every real hour.
fn parse_cron(expression: &str) -> Result<(Cron, bool), Wrong> {
    let wrong = |message: String| Wrong::new("cron", message);
    let text = expression.trim();
    let expanded = if text.starts_with('@') {
        match text.to_lowercase().as_str() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@reboot" => {
                return Err(wrong("@reboot is not a time; there is no schedule for the start of the server".into()));
            }
            _ => {
                return Err(wrong(format!(
                    "{text:?} is not known: there are @hourly, @daily, @weekly, @monthly and @yearly"
                )));
            }
        }
    } else {
        text
    };
    let fields: Vec<&str> = expanded.split_whitespace().collect();
    let fields: &[&str] = match fields.len() {
        5 => &fields,
        6 => &fields[1..],
        n => {
            return Err(wrong(format!(
                "{expression:?} has {n} fields: write minute, hour, day of month, month and day of week, or six with the second in front"
            )));
        }
    };
    if expanded.split_whitespace().any(|field| field.split(',').any(str::is_empty)) {
        return Err(wrong(format!("{expression:?} has an empty place between commas")));
    }
    // As in Vixie cron: both days have to fit where one of the two fields begins with `*`, else either will do. The
    // library does so only for a plain `*`.
    let begins_with_star = |field: &str| field.starts_with(['*', '?']);
    let both_days = begins_with_star(fields[2]) || begins_with_star(fields[4]);
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).dom_and_dow(both_days).build();
    let cron =
        parser.parse(expanded).map_err(|error| wrong(format!("{expression:?}: {}", readable(&error.to_string()))))?;
    let every_hour = fields[1].starts_with('*') || cron.pattern.hours.values().len() == 24;
    if !comes_ever(&cron) {
        return Err(wrong(format!("{expression:?} is a date that never comes")));
    }
    Ok((cron, every_hour))
}

/// The library's words without what means nothing to people.
fn readable(error: &str) -> String {
    let error = error.trim_end_matches('.');
    let error = ["Invalid pattern: ", "Pattern contains illegal characters: ", "Component error: "]
        .iter()
        .find_map(|prefix| error.strip_prefix(prefix))
        .unwrap_or(error);
    error.replace("CronPattern contains illegal character", "there is no").replace(" in part ", " in ")
}

/// Whether any day of the next 41 years fits. The library searches up to the year 5000, one second after the
/// other where it has to.
fn comes_ever(cron: &Cron) -> bool {
    let pattern = &cron.pattern;
    if [&pattern.seconds, &pattern.minutes, &pattern.hours].iter().any(|field| field.values().is_empty()) {
        return false;
    }
    let mut day = date(2024, 1, 1);
    let end = date(2024 + SEARCH_YEARS, 1, 1);
    while day < end {
        let weekday = croner::Weekday::from_days_from_sunday(day.weekday().to_sunday_zero_offset() as u32);
        let (year, month, number) = (i32::from(day.year()), day.month() as u32, day.day() as u32);
        let fits = pattern.month_match(month).unwrap_or(false)
            && pattern.day_match(year, month, number, weekday).unwrap_or(false);
        if fits {
            return true;
        }
        let Ok(next) = day.tomorrow() else {
            return false;
        };
        day = next;
    }
    false
}

/// Reads a single time: with an offset, or local in the zone.
fn single_time(text: &str, zone: &TimeZone) -> Result<Timestamp, Wrong> {
    let wrong = |message: String| Wrong::new("at", message);
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Timestamp::from_microsecond(at.as_microsecond()).map_err(|error| wrong(error.to_string()));
    }
    let local: DateTime = text.parse().map_err(|_| {
        wrong(format!(
            "{text:?} is not a time: write it like \"2026-12-01T03:00\" or with an offset, \"2026-12-01T03:00+01:00\""
        ))
    })?;
    let placed = zone.to_ambiguous_zoned(local);
    let name = zone_name(zone);
    match placed.offset() {
        AmbiguousOffset::Unambiguous { .. } => {}
        AmbiguousOffset::Gap { .. } => {
            return Err(wrong(format!("{text} does not exist in {name}: the clock goes forward over it")));
        }
        AmbiguousOffset::Fold { before, after } => {
            return Err(wrong(format!(
                "{text} comes twice in {name}: the clock goes back; write {text}{before} or {text}{after}",
                before = iso(before),
                after = iso(after)
            )));
        }
    }
    placed.unambiguous().map(|at| at.timestamp()).map_err(|error| wrong(error.to_string()))
}

/// An offset as it stands in a time: `+02:00`.
fn iso(offset: jiff::tz::Offset) -> String {
    let minutes = offset.seconds() / 60;
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
}

/// The name of a zone for people.
pub fn zone_name(zone: &TimeZone) -> String {
    zone.iana_name().map_or_else(|| "the machine's own time zone".to_owned(), str::to_owned)
}

/// A schedule for people: `every 30 min`, `every weekday at 03:00 (Europe/Berlin)`. An expression with no short way
/// to say it stands as it is.
pub fn in_words(schedule: &Schedule) -> String {
    let in_zone = |zone: &Option<String>| zone.as_ref().map_or_else(String::new, |zone| format!(" ({zone})"));
    match schedule {
        Schedule::Every { period } => {
            let words = duration_words(*period);
            match words.strip_prefix("1 ") {
                Some("s") => "every second".into(),
                Some("min") => "every minute".into(),
                Some("h") => "every hour".into(),
                Some("day") => "every 24 h".into(),
                _ => format!("every {words}"),
            }
        }
        Schedule::At { time, zone } => {
            format!("once at {}{}", time.trim().replacen('T', " ", 1), in_zone(zone))
        }
        Schedule::Cron { expression, zone } => {
            let words = cron_in_words(expression).unwrap_or_else(|| format!("cron {}", expression.trim()));
            // Where only minutes are said the zone means nothing to people.
            if words.contains(':') && !words.starts_with("every hour") || words.starts_with("cron") {
                words + &in_zone(zone)
            } else {
                words
            }
        }
    }
}

/// The common shapes of an expression; none for the others.
fn cron_in_words(expression: &str) -> Option<String> {
    let expanded = match expression.trim().to_lowercase().as_str() {
        "@hourly" => "0 * * * *".to_owned(),
        "@daily" | "@midnight" => "0 0 * * *".to_owned(),
        "@weekly" => "0 0 * * 0".to_owned(),
        "@monthly" => "0 0 1 * *".to_owned(),
        "@yearly" | "@annually" => "0 0 1 1 *".to_owned(),
        other => other.to_owned(),
    };
    let mut fields: Vec<&str> = expanded.split_whitespace().collect();
    let second = if fields.len() == 6 { fields.remove(0) } else { "0" };
    let [minute, hour, day, month, weekday] = fields[..] else {
        return None;
    };
    let every_day = day == "*" && month == "*" && weekday == "*";
    // `*/7` in minutes is not every 7 minutes: the hour starts it anew.
    let step = |field: &str, whole: u32| -> Option<u32> {
        let n = field.strip_prefix("*/")?.parse().ok()?;
        (n > 0 && whole.is_multiple_of(n)).then_some(n)
    };
    let each = |n: u32, one: &str, many: &str| {
        if n == 1 { format!("every {one}") } else { format!("every {n} {many}") }
    };
    match (second, minute, hour) {
        ("*", "*", "*") if every_day => return Some("every second".into()),
        (s, "*", "*") if every_day && step(s, 60).is_some() => {
            return step(s, 60).map(|n| each(n, "second", "s"));
        }
        ("0", "*", "*") if every_day => return Some("every minute".into()),
        ("0", m, "*") if every_day && step(m, 60).is_some() => {
            return step(m, 60).map(|n| each(n, "minute", "min"));
        }
        ("0", "0", h) if every_day && step(h, 24).is_some() => {
            return step(h, 24).map(|n| each(n, "hour", "h"));
        }
        _ => {}
    }
    let number = |field: &str, most: u32| field.parse::<u32>().ok().filter(|n| *n <= most);
    let (second, minute) = (number(second, 59)?, number(minute, 59)?);
    let seconds = if second == 0 { String::new() } else { format!(":{second:02}") };
    if hour == "*" {
        let at = if minute == 0 && second == 0 {
            "every hour".to_owned()
        } else {
            format!("every hour at :{minute:02}{seconds}")
        };
        return every_day.then_some(at);
    }
    let time = format!("{:02}:{minute:02}{seconds}", number(hour, 23)?);
    let days = match (day, month, weekday) {
        ("*", "*", "*") => "every day".to_owned(),
        ("*", "*", "1-5" | "mon-fri") => "every weekday".to_owned(),
        ("*", "*", "0,6" | "6,0" | "6,7" | "6-7" | "sat,sun" | "sat-sun" | "sun,sat") => {
            "every Saturday and Sunday".to_owned()
        }
        ("*", "*", days) => {
            let names: Option<Vec<&str>> = days.split(',').map(day_name).collect();
            format!("every {}", listed(&names?))
        }
        ("l", "*", "*") => "on the last day of every month".to_owned(),
        (day, "*", "*") => format!("on day {} of every month", number(day, 31)?),
        (day, month, "*") => format!("on {} {} every year", number(day, 31)?, month_name(month)?),
        _ => return None,
    };
    Some(format!("{days} at {time}"))
}

/// The weekday of a field, if it is one.
fn day_name(field: &str) -> Option<&'static str> {
    Some(match field {
        "0" | "7" | "sun" => "Sunday",
        "1" | "mon" => "Monday",
        "2" | "tue" => "Tuesday",
        "3" | "wed" => "Wednesday",
        "4" | "thu" => "Thursday",
        "5" | "fri" => "Friday",
        "6" | "sat" => "Saturday",
        _ => return None,
    })
}

/// The month of a field, if it is one.
fn month_name(field: &str) -> Option<&'static str> {
    const MONTHS: [(&str, &str); 12] = [
        ("jan", "January"),
        ("feb", "February"),
        ("mar", "March"),
        ("apr", "April"),
        ("may", "May"),
        ("jun", "June"),
        ("jul", "July"),
        ("aug", "August"),
        ("sep", "September"),
        ("oct", "October"),
        ("nov", "November"),
        ("dec", "December"),
    ];
    let by_number = field.parse::<usize>().ok().and_then(|n| MONTHS.get(n.checked_sub(1)?));
    by_number.or_else(|| MONTHS.iter().find(|(short, _)| *short == field)).map(|(_, name)| *name)
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
