//! When tasks are due in the days to come: pure calculation, for a picture of a week. What is due so often in a day
//! that single moments say nothing is folded into one line of that day.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::timing::{Timing, Upcoming, just_before};

/// What is due more often than so many times in one day is folded.
pub const DENSE: usize = 8;

/// What is due of one task in one day.
#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    /// Once.
    At(Upcoming),
    /// Many times.
    Dense {
        /// The first.
        from: Timestamp,
        /// The last.
        to: Timestamp,
        /// How many.
        count: u64,
    },
}

/// The days in a zone from `now` on, each as the moments before which it begins and at which it ends: what is left
/// of today, and the whole days after it.
pub fn days(now: Timestamp, zone: &TimeZone, number: u8) -> Vec<(Timestamp, Timestamp)> {
    let mut days = Vec::new();
    let mut day = now.to_zoned(zone.clone());
    let mut begin = now;
    while days.len() < usize::from(number) {
        let Some(next) = day.tomorrow().ok().and_then(|next| next.start_of_day().ok()) else { break };
        // A moment at midnight belongs to the day that begins.
        days.push((begin, just_before(next.timestamp())));
        begin = just_before(next.timestamp());
        day = next;
    }
    days
}

/// What is due of one schedule in these days. Takes from `budget` what it has looked at: each day, and the moments of it
/// that are not folded. O(days).
pub fn entries(timing: &Timing, anchor: Timestamp, days: &[(Timestamp, Timestamp)], budget: &mut u64) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (after, until) in days {
        let count = timing.count(anchor, *after, *until);
        *budget = budget.saturating_sub(count.min(DENSE as u64) + 1);
        if count <= DENSE as u64 {
            let moments = timing.next_n(anchor, *after, usize::try_from(count).unwrap_or(DENSE));
            entries.extend(moments.into_iter().map(Entry::At));
        } else if let (Some(from), Some(to)) =
            (timing.next_after(anchor, *after), timing.last_in(anchor, *after, *until))
        {
            entries.push(Entry::Dense { from, to, count });
        }
    }
    entries
}
