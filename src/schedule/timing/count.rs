//! How many moments of a cron expression lie between two times: computed from what a day has, never one by one.
//!
//! Between two changes of the clock, wall clock times and moments are one to one, and a day that fits has as many as
//! its hours, minutes and seconds multiply to. What a change does to them is what `timing.rs` says in its table.

use croner::Cron;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{fits, just_before};

/// How many moments are after `after` and at or before `until`. O(days between them).
pub(super) fn moments(cron: &Cron, every_hour: bool, zone: &TimeZone, after: Timestamp, until: Timestamp) -> u64 {
    let day = Day::of(cron);
    // From here on as the first moment that counts and the first that does not.
    let (mut from, end) = (just_after(after), just_after(until));
    let mut change = zone.preceding(just_after(from)).next().map(|change| change.timestamp());
    let mut number = 0;
    while from < end {
        let offset = zone.to_offset(from);
        let next = zone.following(from).next().map(|change| change.timestamp()).filter(|next| *next < end);
        let (mut first, beyond) = (offset.to_datetime(from), offset.to_datetime(next.unwrap_or(end)));
        if let Some(change) = change.filter(|_| !every_hour) {
            let old = zone.to_offset(just_before(change)).to_datetime(change);
            let new = offset.to_datetime(change);
            if old > new {
                // The clock went back: what passes a second time ran at its first passing.
                first = first.max(old);
            } else if from == change
                && day.between(cron, old, new) > 0
                && day.between(cron, new, second_after(new)) == 0
            {
                // It went forward: all that fell into the gap is one moment, at its end.
                number += 1;
            }
        }
        number += day.between(cron, first, beyond);
        let Some(next) = next else { break };
        (from, change) = (next, Some(next));
    }
    number
}

/// What a day that fits has, ascending.
struct Day {
    hours: Vec<u16>,
    minutes: Vec<u16>,
    seconds: Vec<u16>,
}

impl Day {
    fn of(cron: &Cron) -> Self {
        let pattern = &cron.pattern;
        Self { hours: pattern.hours.values(), minutes: pattern.minutes.values(), seconds: pattern.seconds.values() }
    }

    /// How many wall clock times there are from one on and before another.
    fn between(&self, cron: &Cron, from: DateTime, before: DateTime) -> u64 {
        if from >= before {
            return 0;
        }
        let (mut day, last) = (from.date(), before.date());
        let mut number = 0;
        loop {
            if fits(cron, day) {
                let begin = if day == from.date() { self.earlier_than(from.time()) } else { 0 };
                let end = if day == last { self.earlier_than(before.time()) } else { self.all() };
                number += end - begin;
            }
            match day.tomorrow() {
                Ok(tomorrow) if day < last => day = tomorrow,
                _ => return number,
            }
        }
    }

    fn all(&self) -> u64 {
        (self.hours.len() * self.minutes.len() * self.seconds.len()) as u64
    }

    /// How many times of a day are earlier than this one. They are whole seconds.
    fn earlier_than(&self, time: Time) -> u64 {
        let below = |values: &[u16], value: i8| values.partition_point(|one| i32::from(*one) < i32::from(value));
        let has = |values: &[u16], value: i8| usize::from(values.iter().any(|one| i32::from(*one) == i32::from(value)));
        // A part of a second is behind its whole second.
        let part = usize::from(time.subsec_nanosecond() > 0) * has(&self.seconds, time.second());
        let seconds = below(&self.seconds, time.second()) + part;
        let per_minute = self.seconds.len();
        let minutes = below(&self.minutes, time.minute()) * per_minute + has(&self.minutes, time.minute()) * seconds;
        let per_hour = self.minutes.len() * per_minute;
        (below(&self.hours, time.hour()) * per_hour + has(&self.hours, time.hour()) * minutes) as u64
    }
}

/// By the least there is: who looks for a slot by halves asks about parts of a microsecond.
fn just_after(at: Timestamp) -> Timestamp {
    at.checked_add(SignedDuration::from_nanos(1)).unwrap_or(at)
}

fn second_after(at: DateTime) -> DateTime {
    at.checked_add(SignedDuration::from_secs(1)).unwrap_or(at)
}
