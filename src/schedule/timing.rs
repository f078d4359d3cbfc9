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

use std::ops::RangeInclusive;
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{Date, DateTime, date};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, Zoned};
use sha2::{Digest, Sha256};

use crate::config::units::duration_text;
use crate::task::definition::{Schedule, When};

mod count;

/// The shortest period of `every`.
pub const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// How many years a cron expression is searched for a date that exists. The rarest, the 29th of February on a given
/// weekday, comes back within 40.
const SEARCH_YEARS: i16 = 41;

/// `stagger` moves a task by less than this: it is to part tasks that are due together, not to give them another hour.
pub const LONGEST_STAGGER: Duration = Duration::from_secs(3600);

/// The longest `jitter` of a single time, which has no next one that it could run into.
const LONGEST_SINGLE_JITTER: Duration = Duration::from_secs(24 * 3600);

/// How many moments of a cron expression are looked at for the shortest time between two.
const LOOKED_AT: usize = 500;

/// Why a schedule is not taken: one line, and the key of the schedule it is about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Wrong {
    /// `cron`, `every`, `at`, `tz` or `jitter`.
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
    /// When it starts, where that is later.
    pub planned_for: Option<Zoned>,
    /// What a change of the clock did to it.
    pub note: Option<String>,
}

/// A schedule that was understood. Cheap enough to make when a task is loaded, and to keep.
#[derive(Clone, Debug)]
pub struct Timing {
    kind: Kind,
    zone: TimeZone,
    spread: Spread,
}

/// How much later than its moment each slot starts.
#[derive(Clone, Debug, Default)]
struct Spread {
    /// At most so much, in milliseconds; another length for each slot.
    jitter: u64,
    /// How far `stagger` may go, in milliseconds.
    room: u64,
    /// What the task is moved by, in milliseconds; none until it is known which task it is.
    stagger: u64,
    /// The task's own number, from which jitter is drawn.
    seed: u64,
}

impl Spread {
    /// Both parts for one slot. A hash, so that neither the slots of a task nor tasks beside each other go together.
    fn of(&self, slot: Timestamp) -> SignedDuration {
        let mut later = self.stagger;
        if self.jitter > 0 {
            later += drawn(&[&self.seed.to_be_bytes(), &slot.as_microsecond().to_be_bytes()], self.jitter);
        }
        SignedDuration::from_millis(i64::try_from(later).unwrap_or(i64::MAX))
    }
}

/// A number below `most` that hangs on the parts alone.
fn drawn(parts: &[&[u8]], most: u64) -> u64 {
    let hash = parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize();
    let first = hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    first.checked_rem(most).unwrap_or(0)
}

/// What an expression says, for those who put it into words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fields {
    /// The seconds of a minute.
    pub seconds: Vec<u16>,
    /// The minutes of an hour.
    pub minutes: Vec<u16>,
    /// The hours of a day.
    pub hours: Vec<u16>,
    /// The months of a year, from 1.
    pub months: Vec<u16>,
    /// The field of the day of the month, in small letters.
    pub day: String,
    /// The field of the day of the week, in small letters.
    pub weekday: String,
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
        let (kind, zone) = match &schedule.when {
            When::Cron { expression, zone } => {
                let zone = zone_or(zone.as_deref(), default_zone)?;
                let (cron, every_hour) = parse_cron(expression)?;
                (Kind::Cron { cron: Box::new(cron), every_hour }, zone)
            }
            When::Every { period } => {
                if *period < SHORTEST_PERIOD {
                    let message = format!("every {} is too often: one second is the shortest", duration_text(*period));
                    return Err(Wrong::new("every", message));
                }
                let micros =
                    i64::try_from(period.as_micros()).map_err(|_| Wrong::new("every", "the period is too long"))?;
                (Kind::Every { micros }, default_zone.clone())
            }
            When::At { time, zone } => {
                let zone = zone_or(zone.as_deref(), default_zone)?;
                let at = single_time(time, &zone)?;
                (Kind::At { at }, zone)
            }
        };
        let mut timing = Self { kind, zone, spread: Spread::default() };
        timing.spread = timing.spread_over(schedule)?;
        Ok(timing)
    }

    /// The room that `jitter` and `stagger` have together: less than the shortest time between two moments.
    fn spread_over(&self, schedule: &Schedule) -> Result<Spread, Wrong> {
        if schedule.jitter.is_none() && !schedule.stagger {
            return Ok(Spread::default());
        }
        let shortest = self.shortest();
        let jitter = schedule.jitter.unwrap_or_default();
        if jitter >= shortest {
            let message = match self.kind {
                Kind::At { .. } => format!("must be less than {}", duration_text(shortest)),
                _ => format!(
                    "must be less than the shortest time between two slots, which is {}",
                    duration_text(shortest)
                ),
            };
            return Err(Wrong::new("jitter", message));
        }
        let room = if schedule.stagger { shortest.saturating_sub(jitter).min(LONGEST_STAGGER) } else { Duration::ZERO };
        let millis = |length: Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        Ok(Spread { jitter: millis(jitter), room: millis(room), ..Spread::default() })
    }

    /// The shortest time between two moments. Of an expression: among those from a fixed day on, so that what is
    /// taken today is taken tomorrow.
    fn shortest(&self) -> Duration {
        match &self.kind {
            Kind::Every { micros } => Duration::from_micros(micros.unsigned_abs()),
            Kind::At { .. } => LONGEST_SINGLE_JITTER,
            Kind::Cron { .. } => {
                let begin = Timestamp::from_second(1_767_225_600).unwrap_or_default();
                let moments: Vec<Timestamp> =
                    std::iter::successors(self.next_after(begin, begin), |at| self.next_after(begin, *at))
                        .take(LOOKED_AT)
                        .collect();
                let apart = moments.windows(2).map(|two| two[1].duration_since(two[0]).unsigned_abs());
                apart.min().unwrap_or(LONGEST_SINGLE_JITTER)
            }
        }
    }

    /// The same for one task: `stagger` is drawn from its id, `jitter` from a number of its own.
    #[must_use]
    pub fn of_task(mut self, id: &str, seed: u64) -> Self {
        self.spread.stagger = drawn(&[id.as_bytes()], self.spread.room);
        self.spread.seed = seed;
        self
    }

    /// The same with every slot at its own time.
    #[must_use]
    pub fn without_spread(mut self) -> Self {
        self.spread = Spread::default();
        self
    }

    /// How far all slots of the task are moved by `stagger`; none where they are not.
    pub fn stagger(&self) -> Option<Duration> {
        (self.spread.room > 0).then(|| Duration::from_millis(self.spread.stagger))
    }

    /// When a slot starts: its own time and what `jitter` and `stagger` add to it, and before the next one in any case.
    pub fn planned_for(&self, anchor: Timestamp, slot: Timestamp) -> Timestamp {
        let later = self.spread.of(slot);
        if later.is_zero() {
            return slot;
        }
        let room = self.next_after(anchor, slot).map_or(later, |next| {
            next.duration_since(slot).saturating_sub(SignedDuration::from_millis(1)).max(SignedDuration::ZERO)
        });
        slot.checked_add(later.min(room)).unwrap_or(slot)
    }

    /// The anchor of a schedule whose own is behind `now`: as many periods earlier as it takes, so that its slots stay
    /// where they are.
    pub fn anchor_before(&self, anchor: Timestamp, now: Timestamp) -> Timestamp {
        if anchor <= now {
            return anchor;
        }
        let Kind::Every { micros } = self.kind else { return now };
        let ahead = anchor.as_microsecond().saturating_sub(now.as_microsecond());
        let periods = ahead.saturating_add(micros - 1).div_euclid(micros);
        let earlier = periods.checked_mul(micros).and_then(|by| anchor.as_microsecond().checked_sub(by));
        earlier.and_then(|at| Timestamp::from_microsecond(at).ok()).unwrap_or(now)
    }

    /// What an expression says; none for other schedules.
    pub fn fields(&self) -> Option<Fields> {
        let Kind::Cron { cron, .. } = &self.kind else { return None };
        let pattern = &cron.pattern;
        let written = written_fields(pattern.as_str());
        let day_at = written.len().checked_sub(3)?;
        Some(Fields {
            seconds: pattern.seconds.values(),
            minutes: pattern.minutes.values(),
            hours: pattern.hours.values(),
            months: pattern.months.values(),
            day: written.get(day_at)?.to_lowercase(),
            weekday: written.last()?.to_lowercase(),
        })
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
                    if let Some(first) = self.next_after(anchor, from).filter(|first| *first <= until) {
                        return Some(self.last_from(anchor, first, until));
                    }
                    if from == after {
                        return None;
                    }
                    stretch = stretch.checked_mul(4).unwrap_or(SignedDuration::MAX);
                }
            }
        }
    }

    /// The last moment up to `until`, from a moment on: halves the stretch instead of going through all of it.
    fn last_from(&self, anchor: Timestamp, mut last: Timestamp, until: Timestamp) -> Timestamp {
        let mut beyond = until;
        while let Some(next) = self.next_after(anchor, last).filter(|next| *next <= until) {
            let middle = last + beyond.duration_since(last) / 2;
            match self.next_after(anchor, middle).filter(|found| *found <= until) {
                Some(found) => last = found,
                None => (last, beyond) = (next, middle),
            }
        }
        last
    }

    /// How many moments are after `after` and at or before `until`: computed, never counted one by one. O(days) for an
    /// expression, a millisecond or two for half a century; O(1) for the others.
    pub fn count(&self, anchor: Timestamp, after: Timestamp, until: Timestamp) -> u64 {
        if until <= after {
            return 0;
        }
        match &self.kind {
            Kind::Every { micros } => {
                let upto = |t: Timestamp| {
                    let elapsed = t.as_microsecond().saturating_sub(anchor.as_microsecond());
                    u64::try_from(elapsed.div_euclid(*micros)).unwrap_or(0)
                };
                upto(until) - upto(after)
            }
            Kind::At { at } => u64::from(after < *at && *at <= until),
            Kind::Cron { cron, every_hour } => count::moments(cron, *every_hour, &self.zone, after, until),
        }
    }

    /// The newest moments after `after` and at or before `until`, at most so many, oldest first.
    pub fn newest_in(&self, anchor: Timestamp, after: Timestamp, until: Timestamp, most: usize) -> Vec<Timestamp> {
        let Some(last) = self.last_in(anchor, after, until).filter(|_| most > 0) else { return Vec::new() };
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        let within = |from: Timestamp| self.count(anchor, from, last) <= most;
        let mut stretch = SignedDuration::from_mins(2);
        let mut from = after;
        while let Some(nearer) = last.checked_sub(stretch).ok().filter(|nearer| *nearer > after) {
            if !within(nearer) {
                from = nearer;
                break;
            }
            stretch = stretch.checked_mul(4).unwrap_or(SignedDuration::MAX);
        }
        // `to` has few enough behind it, `from` perhaps too many.
        let mut to = last;
        while !within(from) && to.duration_since(from) > SignedDuration::from_secs(1) {
            let middle = from + to.duration_since(from) / 2;
            if within(middle) { to = middle } else { from = middle }
        }
        let begin = if within(from) { from } else { to };
        let moments = std::iter::successors(self.next_after(anchor, begin), |at| self.next_after(anchor, *at));
        moments.take_while(|at| *at <= last).collect()
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
            let planned_for = Some(self.planned_for(anchor, at)).filter(|planned| *planned != at);
            let planned_for = planned_for.map(|planned| planned.to_zoned(self.zone.clone()));
            upcoming.push(Upcoming { at: at.to_zoned(self.zone.clone()), planned_for, note });
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
    if let (Kind::At { at }, When::At { time, .. }) = (&timing.kind, &schedule.when)
        && *at <= now
    {
        let now = now.to_zoned(timing.zone.clone()).strftime("%Y-%m-%d %H:%M");
        return Err(Wrong::new("at", format!("{time} is in the past: it is {now}")));
    }
    Ok(timing)
}

/// The last moment before: times are kept to the microsecond.
pub fn just_before(at: Timestamp) -> Timestamp {
    at.checked_sub(SignedDuration::from_micros(1)).unwrap_or(at)
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
    let fields = written_fields(expanded);
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
    let cron = parser.parse(expanded).map_err(|error| match out_of_bounds(expanded) {
        Some(what) => wrong(format!("{expression:?}: {what}")),
        None => wrong(format!("{expression:?}: {}", readable(&error.to_string()))),
    })?;
    let every_hour = fields[1].starts_with('*') || cron.pattern.hours.values().len() == 24;
    if !comes_ever(&cron) {
        return Err(wrong(format!("{expression:?} is a date that never comes")));
    }
    Ok((cron, every_hour))
}

/// The fields of an expression as they are written.
fn written_fields(expanded: &str) -> Vec<&str> {
    expanded.split_whitespace().collect()
}

/// Which field of an expression names a number that it cannot have, and which it can: the library only says that one does.
fn out_of_bounds(expanded: &str) -> Option<String> {
    const BOUNDS: [(&str, RangeInclusive<u32>); 6] = [
        ("the second", 0..=59),
        ("the minute", 0..=59),
        ("the hour", 0..=23),
        ("the day of the month", 1..=31),
        ("the month", 1..=12),
        ("the day of the week", 0..=7),
    ];
    let fields = written_fields(expanded);
    let bounds = &BOUNDS[BOUNDS.len().checked_sub(fields.len())?..];
    fields.iter().zip(bounds).find_map(|(field, (name, range))| {
        // What stands behind a slash is a length, and behind `#` which of a month.
        let moments = field.split(',').flat_map(|part| part.split(['/', '#']).next().unwrap_or(part).split('-'));
        let number = moments.filter_map(|text| text.parse::<u32>().ok()).find(|number| !range.contains(number))?;
        Some(format!("{name} goes from {} to {}, and {number} is not among them", range.start(), range.end()))
    })
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
        if fits(cron, day) {
            return true;
        }
        let Ok(next) = day.tomorrow() else {
            return false;
        };
        day = next;
    }
    false
}

/// Whether an expression has moments on this day.
fn fits(cron: &Cron, day: Date) -> bool {
    let pattern = &cron.pattern;
    let weekday = croner::Weekday::from_days_from_sunday(day.weekday().to_sunday_zero_offset() as u32);
    let (year, month, number) = (i32::from(day.year()), day.month() as u32, day.day() as u32);
    pattern.month_match(month).unwrap_or(false) && pattern.day_match(year, month, number, weekday).unwrap_or(false)
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
pub(super) fn iso(offset: jiff::tz::Offset) -> String {
    let minutes = offset.seconds() / 60;
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
}

/// The name of a zone for people.
pub fn zone_name(zone: &TimeZone) -> String {
    zone.iana_name().map_or_else(|| "the machine's own time zone".to_owned(), str::to_owned)
}
