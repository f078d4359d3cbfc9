//! What becomes of the slots that are due: pure decision, no waiting, no storage.
//!
//! Every slot after the last planned one and up to now gets its row, once; the policy decides which one of them
//! runs. A clock that was set back repeats nothing, as nothing before the last planned slot is looked at again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::schedule::timing::{Timing, just_before};
use crate::task::definition::{Catchup, Overlap, Policy};

/// A slot that is taken up within this of its time is on time; within half a period, if that is shorter.
pub const ON_TIME: SignedDuration = SignedDuration::from_secs(60);

/// The longest catch-up window of a policy that names none.
pub const LONGEST_WINDOW: SignedDuration = SignedDuration::from_hours(24);

/// How far the clock may be behind the last stored time before all schedules are held: more than a wrong zone or a
/// step of NTP, less than a dead battery.
pub const CLOCK_SLACK: SignedDuration = SignedDuration::from_hours(1);

/// Where a task's schedule stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScheduleState<'c> {
    /// Every slot up to and including this moment has its row. When the schedule is given: that moment.
    pub last_planned: Timestamp,
    /// From where `every` counts: when the schedule was given or last changed. It lies behind the last planned slot only
    /// where the clock was not believed that showed it then.
    pub anchor: Timestamp,
    /// Until when the task was paused, where it was let go on since then by a clock that was not believed.
    pub resumed: Option<Timestamp>,
    /// The newest time in the store, of any task: tells whether the clock can be believed.
    pub last_stored: Timestamp,
    /// Why the task does not run by itself, if it does not; read again for every decision.
    pub off: Option<Off>,
    /// Whether a run of the task is under way, or a retry of one is pending.
    pub active: bool,
    /// How many runs of the task wait for their turn.
    pub queued: u32,
    /// Slots behind the last planned one that have their row all the same, first and last of each in order: runs claimed
    /// them under a clock that was wrong. They are not planned again.
    pub claimed: &'c [(Timestamp, Timestamp)],
}

/// Why a task does not run by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Off {
    /// Someone paused it, or it did itself.
    Paused,
    /// Its file is not there, or the task itself no more.
    Gone,
}

impl Off {
    /// The reason of slots that pass.
    pub const fn now(self) -> &'static str {
        match self {
            Self::Paused => "the task is paused",
            Self::Gone => "the task or its file is gone",
        }
    }

    /// The reason of a run that waited, and does not start.
    pub const fn then(self) -> &'static str {
        match self {
            Self::Paused => "the task was paused",
            Self::Gone => "the task or its file was removed",
        }
    }
}

/// A clock that goes back by more than this was wrong before.
const SET_BACK: SignedDuration = SignedDuration::from_mins(30);

/// What is to be done now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The clock is far behind what it once was: nothing is planned until it has caught up.
    Hold {
        /// Until the clock shows this.
        until: Timestamp,
    },
    /// Slots to write down.
    Plan(Plan),
}

/// Slots to write down in one transaction with `planned_to`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Rows in the order of their slots; they overlap neither each other nor those of any plan before.
    pub rows: Vec<Row>,
    /// The new [`ScheduleState::anchor`]: the same, unless it is settled only now.
    pub anchor: Timestamp,
    /// The new [`ScheduleState::last_planned`].
    pub planned_to: Timestamp,
    /// When the first slot that is to come is planned for; none where the schedule has no more.
    pub next: Option<Timestamp>,
}

/// One slot, or a streak of consecutive ones with the same end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The slot, or the first of the streak.
    pub scheduled_for: Timestamp,
    /// The last of the streak; none for a single slot.
    pub to: Option<Timestamp>,
    /// When it was to start, where that is not its time; of a slot that is taken up by itself.
    pub planned_for: Option<Timestamp>,
    /// How many slots it stands for.
    pub count: u64,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Why, where it does not simply run.
    pub reason: Option<&'static str>,
}

/// What becomes of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A run starts now: the row is `pending` until it has, then `ran` or `late`.
    Run {
        /// Caught up, so that it ends as `late`.
        late: bool,
    },
    /// A run waits for the one before it: the row is `queued`.
    Queue {
        /// Caught up, so that it ends as `late`.
        late: bool,
    },
    /// The runs before it are stopped, and one waits for their end: the row is `queued`.
    Replace {
        /// Caught up, so that it ends as `late`.
        late: bool,
    },
    /// Left out, for a run is not over or the queue is full.
    Skipped,
    /// Became part of the run of another slot.
    Coalesced {
        /// That slot.
        into: Timestamp,
    },
    /// The server was down, the machine asleep, and the policy does not make up for it.
    Missed,
    /// The task was paused.
    Disabled,
}

impl Row {
    /// The last slot it stands for.
    pub fn last(&self) -> Timestamp {
        self.to.unwrap_or(self.scheduled_for)
    }

    /// This row with the next one in it, where both are of one closed outcome without a run, for one reason. `next`
    /// must be the row of the slots right behind.
    pub fn joined(&self, next: &Row) -> Option<Row> {
        let closed = matches!(self.outcome, Outcome::Skipped | Outcome::Missed | Outcome::Disabled);
        if !closed || self.outcome != next.outcome || self.reason != next.reason {
            return None;
        }
        Some(Row {
            scheduled_for: self.scheduled_for,
            to: Some(next.last()),
            planned_for: None,
            count: self.count.saturating_add(next.count),
            ..*self
        })
    }
}

/// Until when all schedules are held, if the clock is far behind the newest time in the store.
pub fn held_until(last_stored: Timestamp, now: Timestamp) -> Option<Timestamp> {
    (last_stored.duration_since(now) > CLOCK_SLACK).then_some(last_stored)
}

/// Decides over all slots that are due at `now`, by a clock that is believed.
pub fn plan(timing: &Timing, policy: &Policy, state: &ScheduleState<'_>, now: Timestamp) -> Decision {
    if let Some(until) = held_until(state.last_stored, now) {
        return Decision::Hold { until };
    }
    let state = begun(state, now);
    let Some(resumed) = state.resumed.and_then(|shown| settled(shown, now)) else {
        return Decision::Plan(due(timing, policy, &state, now));
    };
    let Plan { mut rows, planned_to, .. } = paused(timing, &state, resumed);
    let plan = due(timing, policy, &ScheduleState { last_planned: planned_to, ..state }, now);
    rows.extend(plan.rows);
    Decision::Plan(Plan { rows, ..plan })
}

/// What becomes of the slots of a task that is paused until `until`.
pub fn paused(timing: &Timing, state: &ScheduleState<'_>, until: Timestamp) -> Plan {
    due(timing, &Policy::default(), &ScheduleState { off: Some(Off::Paused), ..begun(state, until) }, until)
}

/// The moment at which a clock in doubt showed this, by a clock that is believed; none where that one was set back since:
/// it was wrong.
fn settled(shown: Timestamp, now: Timestamp) -> Option<Timestamp> {
    (shown.duration_since(now) <= SET_BACK).then(|| shown.min(now))
}

/// With the beginning of a schedule settled that was given by a clock in doubt: as that one showed it, or by the time that
/// had passed since one was believed.
fn begun<'c>(state: &ScheduleState<'c>, now: Timestamp) -> ScheduleState<'c> {
    if state.anchor <= state.last_planned {
        return *state;
    }
    let begin = settled(state.anchor, now).unwrap_or(state.last_planned).max(state.last_planned);
    ScheduleState { anchor: begin, last_planned: begin, ..*state }
}

/// Decides over all slots that are due, each by whether the task runs by itself.
fn due(timing: &Timing, policy: &Policy, state: &ScheduleState<'_>, now: Timestamp) -> Plan {
    let anchor = state.anchor;
    let mut planned_to = now.max(state.last_planned);
    let mut due = Due { timing, anchor, now, free: free(state, planned_to) };
    let mut last = due.last();
    // The slot whose time has come may be planned for a little later. Those before it are due: no slot is planned for
    // later than the next one's time.
    if let Some(pending) = last.filter(|last| timing.planned_for(anchor, *last) > now) {
        planned_to = just_before(pending).max(state.last_planned);
        due.free = free(state, planned_to);
        last = due.last();
    }
    let rows = last.map_or_else(Vec::new, |last| match state.off {
        None => due.rows(last, policy, state),
        Some(off) => due.streak(Timestamp::MIN, now, Outcome::Disabled, Some(off.now())),
    });
    let next = next_free(timing, state, planned_to).map(|next| timing.planned_for(anchor, next));
    Plan { rows, anchor, planned_to, next }
}

/// The stretches behind the last planned slot up to `until` in which no slot is claimed: behind the one moment, up to the
/// other.
fn free(state: &ScheduleState<'_>, until: Timestamp) -> Vec<(Timestamp, Timestamp)> {
    let mut stretches = Vec::new();
    let mut after = state.last_planned;
    for (first, through) in state.claimed.iter().filter(|(first, _)| *first <= until) {
        stretches.push((after, just_before(*first)));
        after = after.max(*through);
    }
    stretches.push((after, until));
    stretches.retain(|(after, until)| after < until);
    stretches
}

/// The first slot after `after` that nobody has claimed.
fn next_free(timing: &Timing, state: &ScheduleState<'_>, mut after: Timestamp) -> Option<Timestamp> {
    loop {
        let next = timing.next_after(state.anchor, after)?;
        match state.claimed.iter().find(|(first, through)| (*first..=*through).contains(&next)) {
            Some((_, through)) => after = *through,
            None => return Some(next),
        }
    }
}

/// How long after its time a slot is on time; a run that starts later ends its slot as `late`.
pub fn slack(timing: &Timing, anchor: Timestamp, slot: Timestamp) -> SignedDuration {
    period(timing, anchor, slot).map_or(ON_TIME, |period| ON_TIME.min(period / 2))
}

/// How long after its time a slot may still be caught up, and how long it may wait in a queue.
pub fn window(timing: &Timing, policy: &Policy, anchor: Timestamp, slot: Timestamp) -> SignedDuration {
    match policy.catchup_window {
        Some(set) => SignedDuration::try_from(set).unwrap_or(SignedDuration::MAX),
        None => period(timing, anchor, slot).map_or(LONGEST_WINDOW, |period| period.min(LONGEST_WINDOW)),
    }
}

/// The time to the next slot; none after the last one.
fn period(timing: &Timing, anchor: Timestamp, slot: Timestamp) -> Option<SignedDuration> {
    timing.next_after(anchor, slot).map(|next| next.duration_since(slot))
}

/// The slots that are due.
struct Due<'t> {
    timing: &'t Timing,
    anchor: Timestamp,
    now: Timestamp,
    /// Where they lie, in order: behind the one moment, up to the other.
    free: Vec<(Timestamp, Timestamp)>,
}

impl Due<'_> {
    fn last(&self) -> Option<Timestamp> {
        self.free.iter().rev().find_map(|(after, until)| self.timing.last_in(self.anchor, *after, *until))
    }

    /// The rows of a task that is on, whose last due slot is `last`: too old, made part of others, and what is taken up.
    /// What becomes of each is in `docs/decisions/0019`.
    fn rows(&self, last: Timestamp, policy: &Policy, state: &ScheduleState<'_>) -> Vec<Row> {
        let age = self.now.duration_since(self.timing.planned_for(self.anchor, last));
        let on_time = age <= slack(self.timing, self.anchor, last);
        // Only the last slot can be on time: half a period behind another one the next is not yet due.
        let window = window(self.timing, policy, self.anchor, last);
        let too_old = match policy.catchup {
            Catchup::None => "it passed while nothing could run it; catchup is none",
            Catchup::Last | Catchup::All => "it passed longer ago than the catch-up window",
        };
        let caught_up = policy.catchup != Catchup::None && age <= window;
        if !on_time && !caught_up {
            return self.streak(Timestamp::MIN, self.now, Outcome::Missed, Some(too_old));
        }
        // Slots from here on are inside the window; without catch-up none but the last is.
        let oldest = match policy.catchup {
            Catchup::None => last,
            Catchup::Last | Catchup::All => self.oldest_within(window).min(last),
        };
        let before_oldest = just_before(oldest);
        let taken_up = match policy.catchup {
            // Each would replace the one before it.
            Catchup::All if policy.overlap != Overlap::Replace => self.newest(before_oldest, policy.catchup_limit),
            _ => vec![last],
        };
        let before_taken = taken_up.first().map_or(before_oldest, |first| just_before(*first));
        let mut overlaps = Overlaps { policy, active: state.active, queued: state.queued, began: 0 };
        let itself = |slot: Timestamp| {
            let (outcome, reason) = overlaps.take_up(slot < last || !on_time);
            let planned_for = Some(self.timing.planned_for(self.anchor, slot)).filter(|planned| *planned != slot);
            Row { scheduled_for: slot, to: None, planned_for, count: 1, outcome, reason }
        };
        let taken_up: Vec<Row> = taken_up.into_iter().map(itself).collect();
        let (with, why) = match (policy.catchup, taken_up.first()) {
            (Catchup::All, _) if policy.overlap != Overlap::Replace => {
                (Outcome::Missed, Some("more slots passed than catchup_limit makes up for"))
            }
            (_, Some(Row { outcome: Outcome::Skipped, reason, .. })) => (Outcome::Skipped, *reason),
            _ => (Outcome::Coalesced { into: last }, Some("one run makes up for all that were due")),
        };
        let missed = self.streak(Timestamp::MIN, before_oldest, Outcome::Missed, Some(too_old));
        let with = self.streak(before_oldest, before_taken, with, why);
        let mut rows: Vec<Row> = Vec::new();
        for row in [missed, with, taken_up].into_iter().flatten() {
            let before = rows.last_mut().filter(|before| self.is_one_stretch(before.last(), row.scheduled_for));
            match before.and_then(|before| before.joined(&row).map(|joined| (before, joined))) {
                Some((before, joined)) => *before = joined,
                None => rows.push(row),
            }
        }
        rows
    }

    /// From where on slots are inside the window: they count from when they were planned for.
    fn oldest_within(&self, window: SignedDuration) -> Timestamp {
        let edge = self.now.checked_sub(window).unwrap_or(Timestamp::MIN);
        let across = self.timing.last_in(self.anchor, self.free[0].0, just_before(edge));
        across.filter(|slot| self.timing.planned_for(self.anchor, *slot) >= edge).unwrap_or(edge)
    }

    /// Whether no claimed slot lies between the two.
    fn is_one_stretch(&self, one: Timestamp, other: Timestamp) -> bool {
        self.free.iter().any(|(after, until)| *after < one && other <= *until)
    }

    /// The newest slots after `after`, at most so many, oldest first.
    fn newest(&self, after: Timestamp, most: u32) -> Vec<Timestamp> {
        let mut slots: Vec<Timestamp> = Vec::new();
        for (from, until) in self.free.iter().rev() {
            let left = (most.max(1) as usize).saturating_sub(slots.len());
            let mut newest = self.timing.newest_in(self.anchor, (*from).max(after), *until, left);
            newest.append(&mut slots);
            slots = newest;
        }
        slots
    }

    /// All slots after `after` up to `until`: one row for each stretch between claimed ones.
    fn streak(&self, after: Timestamp, until: Timestamp, outcome: Outcome, reason: Option<&'static str>) -> Vec<Row> {
        let row = |(from, to): &(Timestamp, Timestamp)| {
            let (after, until) = ((*from).max(after), (*to).min(until));
            let first = self.timing.next_after(self.anchor, after).filter(|first| *first <= until)?;
            let last = self.timing.last_in(self.anchor, after, until)?;
            let count = self.timing.count(self.anchor, after, until);
            let to = (first < last).then_some(last);
            Some(Row { scheduled_for: first, to, planned_for: None, count, outcome, reason })
        };
        self.free.iter().filter_map(row).collect()
    }
}

/// What the overlap policy makes of the slots that are taken up, one after the other.
struct Overlaps<'p> {
    policy: &'p Policy,
    active: bool,
    queued: u32,
    /// How many of them run or wait for each other.
    began: u32,
}

impl Overlaps<'_> {
    fn take_up(&mut self, late: bool) -> (Outcome, Option<&'static str>) {
        let (outcome, reason) = match self.policy.overlap {
            Overlap::Allow => (Outcome::Run { late }, None),
            _ if !self.active && self.queued == 0 && self.began == 0 => (Outcome::Run { late }, None),
            // They wait for nothing but each other: with `skip` only catch-up brings several at once.
            Overlap::Skip if self.began > 0 => (Outcome::Queue { late }, None),
            Overlap::Skip => (Outcome::Skipped, Some("a run of the task is not over")),
            Overlap::Queue if self.queued < self.policy.queue_limit => {
                self.queued += 1;
                (Outcome::Queue { late }, None)
            }
            Overlap::Queue => (Outcome::Skipped, Some("the queue of the task is full")),
            Overlap::Replace => (Outcome::Replace { late }, None),
        };
        if outcome == Outcome::Skipped {
            return (outcome, reason);
        }
        self.began += 1;
        (outcome, late.then_some("caught up"))
    }
}

/// Tells a clock that jumped forward from time that passed, by the monotonic clock beside it.
///
/// That clock goes on while a machine sleeps. One that was frozen from outside, as virtual machines are, looks the same
/// as one whose clock was set, so a jump is not refused, only believed when it still holds a minute later.
#[derive(Clone, Debug, Default)]
pub struct JumpWatch {
    last: Option<(Timestamp, Duration)>,
    jumped: Option<Jump>,
    is_news: bool,
}

#[derive(Clone, Copy, Debug)]
struct Jump {
    /// The monotonic clock when the jump was seen.
    seen: Duration,
    /// What the clock showed then.
    wall: Timestamp,
    /// Both clocks as they were last believed.
    before: (Timestamp, Duration),
}

/// How long a jump forward has to hold.
pub const JUMP_CONFIRMATION: Duration = Duration::from_secs(60);

impl JumpWatch {
    /// Looks at both clocks; true where the clock can be believed. `monotonic` is the time since any fixed moment.
    /// To be asked at least every [`JUMP_CONFIRMATION`], before slots are planned.
    pub fn believes(&mut self, wall: Timestamp, monotonic: Duration) -> bool {
        let (last_wall, last_monotonic) = *self.last.get_or_insert((wall, monotonic));
        self.last = Some((wall, monotonic));
        let passed = SignedDuration::try_from(monotonic.saturating_sub(last_monotonic)).unwrap_or(SignedDuration::ZERO);
        let ahead = wall.duration_since(last_wall).saturating_sub(passed);
        self.is_news = ahead > CLOCK_SLACK;
        if self.is_news {
            let before = self.jumped.map_or((last_wall, last_monotonic), |jump| jump.before);
            self.jumped = Some(Jump { seen: monotonic, wall, before });
        }
        let Some(jump) = self.jumped else {
            return true;
        };
        // Set back again: the jump was a mistake and is forgotten.
        let back = wall < jump.wall.saturating_sub(SET_BACK).unwrap_or(Timestamp::MIN);
        if back || monotonic.saturating_sub(jump.seen) >= JUMP_CONFIRMATION {
            self.jumped = None;
            return true;
        }
        false
    }

    /// What the clock would show without the jump, as long as that is not believed: the time it was believed last, and what
    /// has passed since.
    pub fn carried(&self, monotonic: Duration) -> Option<Timestamp> {
        let (wall, since) = self.jumped?.before;
        let passed = SignedDuration::try_from(monotonic.saturating_sub(since)).unwrap_or(SignedDuration::MAX);
        Some(wall.saturating_add(passed).unwrap_or(Timestamp::MAX))
    }

    /// Whether the last look was the one that saw a jump.
    pub fn has_just_seen_one(&self) -> bool {
        self.is_news
    }
}
