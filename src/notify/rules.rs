//! What of all that happens to a task is worth telling, and how often: decided from what was told lately. Plain data
//! and pure functions; knows neither channels nor the store.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::task::telling::Occasion;

/// Over how long the limit of what is told counts.
pub const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// Nothing is held back for longer than this: what was told further ahead than an hour does not count, as the clock was
/// set back since.
pub const LONGEST_HOLD: SignedDuration = SignedDuration::from_hours(2);

/// From how many good runs what is usual is known.
pub const USUAL_FROM: usize = 5;

/// How many good runs say what is usual: the last.
pub const USUAL_OF: usize = 20;

/// A run is not slow by less than this, however short it is: nobody wants to hear of seconds.
const SLOW_BY: Duration = Duration::from_secs(30);

/// How many times the usual deviation from the usual a run must be off: what always varies is not slow.
const SLOW_SPREAD: u32 = 5;

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// How often people are told, and of what.
#[derive(Clone, PartialEq, Debug)]
pub struct Rules {
    /// What anybody wants to hear of the task.
    pub wanted: Vec<Occasion>,
    /// What goes on is told again after so long.
    pub repeat: SignedDuration,
    /// The most that is told of a task in an hour.
    pub hourly: usize,
}

/// What happened to a task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Happened {
    /// A run failed for good.
    Failed,
    /// A run worked.
    Worked {
        /// Whether it took much longer than usual.
        slow: bool,
    },
    /// A run found this.
    Found(String),
    /// A run waits for an approval.
    Waits,
    /// A run started late.
    Late,
    /// Slots were missed.
    Missed,
}

/// What is to be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// As what.
    pub event: Occasion,
    /// How often it failed in a row.
    pub failures: Option<u32>,
    /// How much else happened that was not told.
    pub held_back: Option<u32>,
    /// It is the last for some time: until when.
    pub quiet_until: Option<Timestamp>,
}

/// What people believe of a task by what they were told, and what was told lately.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// Failures in a row.
    failures: u32,
    /// When it was last told that it fails, and not since that it works again.
    said_failing: Option<Timestamp>,
    /// What was told within the last hour.
    told: Vec<Timestamp>,
    /// When each was last told, where that decides whether it is told again.
    last: BTreeMap<Occasion, Timestamp>,
    /// What was last found.
    found: Option<String>,
    /// How much was not told, because too much was.
    held_back: u32,
    /// As what the last of it would have been told.
    held: Option<Occasion>,
}

impl Standing {
    /// Takes in what happened; gives what is to be told: first what was held back, if there is room again, then this,
    /// if it is worth it. O(what is told in an hour).
    pub fn take(&mut self, happened: &Happened, rules: &Rules, now: Timestamp) -> (Option<Told>, Option<Told>) {
        let before = self.catch_up(rules, now);
        let Some(event) = self.worth_telling(happened, rules, now) else { return (before, None) };
        if !rules.wanted.contains(&event) {
            self.let_go(event);
            return (before, None);
        }
        self.forget_older(now);
        if self.told.len() >= rules.hourly {
            self.held_back = self.held_back.saturating_add(1);
            self.held = Some(event);
            return (before, None);
        }
        (before, Some(self.tell(event, happened, rules, now)))
    }

    /// What is told of all that was held back, once there is room again.
    pub fn catch_up(&mut self, rules: &Rules, now: Timestamp) -> Option<Told> {
        self.forget_older(now);
        if self.held_back == 0 || self.told.len() >= rules.hourly {
            return None;
        }
        // It may stand as people believe it does: then what they did not hear of was in between.
        let event = match (self.failures > 0, self.said_failing.is_some(), self.held) {
            (true, _, _) => Occasion::Failed,
            (false, true, _) => Occasion::Recovered,
            (false, false, Some(Occasion::Failed) | None) => Occasion::Recovered,
            (false, false, Some(held)) => held,
        };
        if !rules.wanted.contains(&event) {
            (self.held_back, self.held) = (0, None);
            self.let_go(event);
            return None;
        }
        let happened = if event == Occasion::Failed { Happened::Failed } else { Happened::Worked { slow: false } };
        Some(self.tell(event, &happened, rules, now))
    }

    /// When what was held back can be told.
    pub fn due(&self) -> Option<Timestamp> {
        if self.held_back == 0 {
            return None;
        }
        self.told.first().map_or(Some(Timestamp::UNIX_EPOCH), |first| first.checked_add(HOUR).ok())
    }

    fn worth_telling(&mut self, happened: &Happened, rules: &Rules, now: Timestamp) -> Option<Occasion> {
        let is_old = |last: Option<&Timestamp>| last.is_none_or(|last| now.duration_since(*last).abs() >= rules.repeat);
        match happened {
            Happened::Failed => {
                self.failures = self.failures.saturating_add(1);
                is_old(self.said_failing.as_ref()).then_some(Occasion::Failed)
            }
            Happened::Worked { slow } => {
                self.failures = 0;
                if self.said_failing.is_some() {
                    return Some(Occasion::Recovered);
                }
                (*slow && is_old(self.last.get(&Occasion::Slow))).then_some(Occasion::Slow)
            }
            Happened::Found(what) => {
                let is_new = self.found.as_deref() != Some(what);
                self.found = Some(what.clone());
                (is_new || is_old(self.last.get(&Occasion::Attention))).then_some(Occasion::Attention)
            }
            Happened::Waits => Some(Occasion::Waiting),
            Happened::Late => is_old(self.last.get(&Occasion::Late)).then_some(Occasion::Late),
            Happened::Missed => is_old(self.last.get(&Occasion::Missed)).then_some(Occasion::Missed),
        }
    }

    /// Nobody wants to hear that: what people believe is left to them.
    fn let_go(&mut self, event: Occasion) {
        if event == Occasion::Recovered {
            self.said_failing = None;
        }
    }

    fn tell(&mut self, event: Occasion, happened: &Happened, rules: &Rules, now: Timestamp) -> Told {
        self.told.push(now);
        self.last.insert(event, now);
        match event {
            Occasion::Failed => self.said_failing = Some(now),
            Occasion::Recovered => self.said_failing = None,
            _ => {}
        }
        self.held = None;
        let held_back = std::mem::take(&mut self.held_back);
        let is_last = self.told.len() >= rules.hourly;
        let free = self.told.first().and_then(|first| first.checked_add(HOUR).ok());
        Told {
            event,
            failures: (*happened == Happened::Failed).then_some(self.failures),
            held_back: (held_back > 0).then_some(held_back),
            quiet_until: free.filter(|_| is_last),
        }
    }

    /// What is no longer of the last hour; and what is of the future, from a clock that was set back since.
    fn forget_older(&mut self, now: Timestamp) {
        self.told.retain(|at| now.duration_since(*at).abs() < HOUR);
    }
}

/// How long a run takes usually, if enough is known, and whether it took much longer: more than `factor` times the
/// median of the last good runs, off by more than they vary, and by something that a person would notice.
pub fn slow(took: Duration, before: &[Duration], factor: f64) -> Option<(Duration, bool)> {
    if before.len() < USUAL_FROM {
        return None;
    }
    let usual = median(before.to_vec());
    let spread = median(before.iter().map(|one| one.abs_diff(usual)).collect());
    let off = took.saturating_sub(usual);
    let is_slow = took.as_secs_f64() > usual.as_secs_f64() * factor && off > spread * SLOW_SPREAD && off > SLOW_BY;
    Some((usual, is_slow))
}

/// The one in the middle; of an even number, the lower of the two.
fn median(mut lengths: Vec<Duration>) -> Duration {
    lengths.sort_unstable();
    lengths.get(lengths.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// How long to wait after so many tries that failed: the first pause doubled each time, up to an hour.
pub fn pause(first: Duration, tries: u32) -> Duration {
    let doubled = 2_u32.checked_pow(tries.saturating_sub(1)).and_then(|times| first.checked_mul(times));
    doubled.map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE)).max(first.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOURLY: usize = 6;

    fn rules() -> Rules {
        Rules { wanted: Occasion::CHOICES.to_vec(), repeat: SignedDuration::from_hours(4), hourly: HOURLY }
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_780_000_000 + minutes * 60).unwrap()
    }

    /// What is told of a series, by the minute in which it is.
    fn told(series: &[(i64, Happened)]) -> Vec<(i64, Occasion)> {
        let mut standing = Standing::default();
        let mut told = Vec::new();
        for (minute, happened) in series {
            let (before, now) = standing.take(happened, &rules(), at(*minute));
            told.extend([before, now].into_iter().flatten().map(|told| (*minute, told.event)));
        }
        told
    }

    const WORKED: Happened = Happened::Worked { slow: false };

    #[test]
    fn of_failures_in_a_row_the_first_is_told_and_one_every_few_hours() {
        let series: Vec<_> = (0..600).map(|minute| (minute, Happened::Failed)).collect();
        assert_eq!(told(&series), [(0, Occasion::Failed), (240, Occasion::Failed), (480, Occasion::Failed)]);
    }

    #[test]
    fn a_task_that_works_again_is_told_of_once_and_only_if_its_failure_was() {
        let series = [(0, WORKED), (1, Happened::Failed), (2, Happened::Failed), (3, WORKED), (4, WORKED)];
        assert_eq!(told(&series), [(1, Occasion::Failed), (3, Occasion::Recovered)]);
    }

    #[test]
    fn what_nobody_wants_to_hear_is_not_told_and_takes_no_place() {
        let rules = Rules { wanted: vec![Occasion::Failed], ..rules() };
        let mut standing = Standing::default();
        let mut count = 0;
        for minute in 0..HOURLY as i64 {
            standing.take(&Happened::Late, &rules, at(minute));
            standing.take(&WORKED, &rules, at(minute));
            count += usize::from(standing.take(&Happened::Failed, &rules, at(minute)).1.is_some());
        }
        assert_eq!(count, HOURLY, "each follows a run that worked");
    }

    #[test]
    fn a_nightly_task_is_told_of_each_night() {
        let series: Vec<_> = (0..4).map(|night| (night * 24 * 60, Happened::Failed)).collect();
        assert_eq!(told(&series).len(), 4);
    }

    #[test]
    fn a_task_that_flaps_is_told_of_a_few_times_and_then_as_it_stands() {
        let mut standing = Standing::default();
        let mut said = Vec::new();
        for minute in 0..60 {
            let happened = if minute % 2 == 0 { Happened::Failed } else { WORKED };
            said.extend(standing.take(&happened, &rules(), at(minute)).1);
        }
        assert_eq!(said.len(), HOURLY);
        assert_eq!(said[4].quiet_until, None);
        assert_eq!(said[5].quiet_until, Some(at(60)));
        // The last of it was that it works, and that is what was last told: there is more to tell all the same.
        assert_eq!(standing.due(), Some(at(60)));
        assert_eq!(standing.catch_up(&rules(), at(59)), None);
        let told = standing.catch_up(&rules(), at(60)).unwrap();
        assert_eq!((told.event, told.held_back), (Occasion::Recovered, Some(27)));
        assert_eq!(standing.catch_up(&rules(), at(61)), None);
        assert_eq!(standing.due(), None);
    }

    #[test]
    fn the_same_finding_is_told_once_and_another_at_once() {
        let found = |what: &str| Happened::Found(what.to_owned());
        let series = [(0, found("disk")), (1, found("disk")), (2, found("memory")), (3, found("memory"))];
        assert_eq!(told(&series), [(0, Occasion::Attention), (2, Occasion::Attention)]);
    }

    #[test]
    fn a_clock_that_was_set_back_by_a_day_does_not_silence_anybody() {
        let mut standing = Standing::default();
        for _ in 0..6 {
            standing.take(&Happened::Waits, &rules(), at(24 * 60));
        }
        assert!(standing.take(&Happened::Failed, &rules(), at(0)).1.is_some());
        assert!(standing.take(&Happened::Failed, &rules(), at(0) - SignedDuration::from_hours(24)).1.is_some());
    }

    #[test]
    fn slow_is_far_above_the_middle_of_the_last_good_runs() {
        let seconds = |all: &[u64]| all.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>();
        let is_slow = |took: u64, before: &[u64]| slow(Duration::from_secs(took), &seconds(before), 3.0).map(|s| s.1);
        assert_eq!(is_slow(1000, &[10, 10, 10, 10]), None, "too little is known");
        assert_eq!(is_slow(61, &[20, 20, 20, 20, 20]), Some(true));
        assert_eq!(is_slow(60, &[20, 20, 20, 20, 20]), Some(false), "not more than three times");
        assert_eq!(is_slow(25, &[1, 1, 1, 1, 1]), Some(false), "seconds are nothing to hear of");
        assert_eq!(is_slow(61, &[20, 20, 20, 20, 3600]), Some(true), "one that was long does not hide the next");
        assert_eq!(is_slow(350, &[10, 100, 20, 150, 80]), Some(false), "what always varies");
        assert_eq!(is_slow(500, &[10, 100, 20, 150, 80]), Some(true));
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let pauses: Vec<u64> = (1..12).map(|tries| pause(Duration::from_secs(10), tries).as_secs()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]);
        assert_eq!(pause(Duration::from_secs(10), u32::MAX), LONGEST_PAUSE);
    }

    fn any_happened() -> impl Strategy<Value = Happened> {
        prop_oneof![
            Just(Happened::Failed),
            any::<bool>().prop_map(|slow| Happened::Worked { slow }),
            "[ab]".prop_map(Happened::Found),
            Just(Happened::Waits),
            Just(Happened::Late),
            Just(Happened::Missed),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_no_hour_has_more_than_its_limit_and_in_the_end_people_know_how_it_stands(
            series in prop::collection::vec((0_i64..40, any_happened()), 0..200),
        ) {
            let (mut standing, mut minute) = (Standing::default(), 0);
            let mut told = Vec::new();
            let mut believed_failing = false;
            let mut fails = false;
            let mut hear = |told: &Told| match told.event {
                Occasion::Failed => believed_failing = true,
                Occasion::Recovered => believed_failing = false,
                _ => {}
            };
            for (pause, happened) in series {
                minute += pause;
                match happened {
                    Happened::Failed => fails = true,
                    Happened::Worked { .. } => fails = false,
                    _ => {}
                }
                let (before, now) = standing.take(&happened, &rules(), at(minute));
                for one in [before, now].into_iter().flatten() {
                    hear(&one);
                    told.push(minute);
                }
            }
            for window in told.windows(HOURLY + 1) {
                prop_assert!(window[HOURLY] - window[0] >= 60, "{told:?}");
            }
            if let Some(one) = standing.catch_up(&rules(), at(minute + 61)) {
                hear(&one);
            }
            prop_assert_eq!(believed_failing, fails);
        }
    }
}
