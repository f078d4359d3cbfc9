//! What follows the end of a run: whether it is done once more, after how long, and whether its task pauses itself. Pure
//! decision, no waiting, no storage; `queue/retries.rs` acts on it.

use std::time::Duration;

use crate::record::{Run, RunState};
use crate::task::definition::{Backoff, OnCrash, Policy};

/// How often in a row of attempts a run is done once more because its server ended under it: a run that itself ends the
/// server or the machine must not do so for ever.
pub const MAX_CRASHES: u32 = 10;

/// How the attempts of one piece of work ended so far, the last one included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Past {
    /// Those that failed or took too long.
    pub failures: u32,
    /// Those whose server ended under them.
    pub crashes: u32,
}

impl Past {
    /// With one more attempt.
    pub fn with(mut self, state: RunState) -> Self {
        match state {
            RunState::Failed | RunState::TimedOut => self.failures = self.failures.saturating_add(1),
            RunState::Interrupted => self.crashes = self.crashes.saturating_add(1),
            _ => {}
        }
        self
    }
}

/// What follows the end of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing: it worked, it was stopped, or it never started.
    Nothing,
    /// It is done once more, after so long.
    Again {
        /// From its end to the earliest start of the next attempt.
        wait: Duration,
    },
    /// It failed, and is not done again.
    Failed,
}

/// Decides what follows the end of a run. `is_on` says whether its task runs by itself at this moment; `draw`, from 0 to
/// 1, is the chance in the wait.
pub fn next(policy: &Policy, run: &Run, past: Past, is_on: bool, draw: f64) -> Next {
    // What never started was called off, or could not be saved: there is no attempt to repeat.
    if run.started_at.is_none() {
        return Next::Nothing;
    }
    match run.state {
        RunState::Failed | RunState::TimedOut => {
            if is_on && past.failures <= policy.retries && is_named(policy, run) {
                return Next::Again { wait: wait(policy.backoff, past.failures, draw) };
            }
            Next::Failed
        }
        RunState::Interrupted => {
            if is_on && policy.on_crash == OnCrash::Retry && past.crashes <= MAX_CRASHES {
                // The first time there is nothing to wait for; then it may be the run that ends the server.
                let wait = past.crashes.checked_sub(1).map_or(Duration::ZERO, |n| wait(policy.backoff, n, draw));
                return Next::Again { wait };
            }
            Next::Nothing
        }
        _ => Next::Nothing,
    }
}

/// Whether a failure is one that is tried again: any, unless exit codes are named.
fn is_named(policy: &Policy, run: &Run) -> bool {
    let named = |exit: i32| policy.retry_on.iter().any(|code| i32::from(*code) == exit);
    policy.retry_on.is_empty() || run.exit.is_some_and(named)
}

/// How long to wait before retry `n`, from 1: between the n-th step and the next, each twice the one before and none
/// longer than the longest; before retry 0, nothing. Everything stays within what the policy says, and tasks that fail
/// together do not come back together.
pub fn wait(backoff: Backoff, n: u32, draw: f64) -> Duration {
    if n == 0 {
        return Duration::ZERO;
    }
    let step = |doublings: u32| {
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        backoff.first.saturating_mul(factor).min(backoff.longest)
    };
    let top = step(n);
    let bottom = (top / 2).max(backoff.first);
    // Whole milliseconds, as all lengths of time in a policy.
    let span = u64::try_from(top.saturating_sub(bottom).as_millis()).unwrap_or(u64::MAX);
    let part = Duration::try_from_secs_f64(Duration::from_millis(span).as_secs_f64() * draw.clamp(0.0, 1.0));
    let part = part.unwrap_or_default();
    bottom + Duration::from_millis(u64::try_from(part.as_millis()).unwrap_or(span))
}

/// Whether a run that ended so and is not done once more is a failure of its task: that its server ended is none.
pub const fn is_failure(state: RunState) -> bool {
    matches!(state, RunState::Failed | RunState::TimedOut)
}

/// Whether a task pauses itself, so many of whose runs failed in a row.
pub const fn pauses(policy: &Policy, failures: u32) -> bool {
    policy.pause_after > 0 && failures >= policy.pause_after
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ended(state: &str, exit: Option<i32>, started: bool) -> Run {
        let at = "2026-11-20T20:00:00.000000Z";
        let run = serde_json::json!({
            "id": "0192f0c1-7c1e-7a54-9e0b-3f6f3f0d2c11", "task": "t", "state": state, "attempt": 1, "trigger": "hand",
            "scheduled_for": null, "queued_at": at, "started_at": started.then_some(at), "ended_at": at, "exit": exit,
            "first_seq": 1, "last_seq": 2, "params": BTreeMap::<String, String>::new(),
        });
        serde_json::from_value(run).unwrap()
    }

    fn seconds(first: u64, longest: u64) -> Backoff {
        Backoff { first: Duration::from_secs(first), longest: Duration::from_secs(longest) }
    }

    fn policy(retries: u32, retry_on: &[u8], on_crash: OnCrash) -> Policy {
        Policy { retries, retry_on: retry_on.to_vec(), on_crash, backoff: seconds(30, 600), ..Policy::default() }
    }

    /// What is written down in `docs/decisions/0024`.
    #[test]
    fn what_follows_an_end_is_as_the_table_says() {
        use OnCrash::{Fail, Retry};
        // State, exit, failures, crashes, retries, retry_on, on_crash, and what follows.
        type Row<'r> = (&'r str, Option<i32>, u32, u32, u32, &'r [u8], OnCrash, &'r str);
        let table: [Row<'_>; 24] = [
            ("succeeded", Some(0), 0, 0, 3, &[], Retry, "nothing"),
            ("cancelled", None, 0, 0, 3, &[], Retry, "nothing"),
            ("cancelled", Some(75), 0, 0, 3, &[75], Retry, "nothing"),
            ("failed", Some(1), 1, 0, 0, &[], Retry, "failed"),
            ("failed", Some(1), 1, 0, 1, &[], Fail, "30"),
            ("failed", Some(1), 2, 0, 1, &[], Fail, "failed"),
            ("failed", None, 1, 0, 1, &[], Fail, "30"),
            ("failed", Some(75), 1, 0, 1, &[75], Fail, "30"),
            ("failed", Some(1), 1, 0, 1, &[75], Fail, "failed"),
            ("failed", None, 1, 0, 1, &[75], Fail, "failed"),
            ("failed", Some(-75), 1, 0, 1, &[75], Fail, "failed"),
            ("failed", Some(331), 1, 0, 1, &[75], Fail, "failed"),
            ("timed_out", None, 1, 0, 1, &[], Fail, "30"),
            ("timed_out", None, 2, 0, 1, &[], Fail, "failed"),
            ("timed_out", None, 1, 0, 1, &[75], Fail, "failed"),
            ("interrupted", None, 0, 1, 3, &[], Fail, "nothing"),
            ("interrupted", None, 0, 1, 0, &[], Retry, "0"),
            ("interrupted", None, 0, 1, 0, &[75], Retry, "0"),
            ("interrupted", None, 0, 2, 0, &[], Retry, "30"),
            ("interrupted", None, 0, 3, 0, &[], Retry, "60"),
            ("interrupted", None, 0, 10, 0, &[], Retry, "300"),
            ("interrupted", None, 0, 11, 0, &[], Retry, "nothing"),
            // Neither uses up the other's.
            ("failed", Some(1), 1, 7, 1, &[], Retry, "30"),
            ("interrupted", None, 7, 1, 1, &[], Retry, "0"),
        ];
        for row in table {
            let (state, exit, failures, crashes, retries, retry_on, on_crash, wanted) = row;
            let past = Past { failures, crashes };
            let run = ended(state, exit, true);
            let policy = policy(retries, retry_on, on_crash);
            let follows = match next(&policy, &run, past, true, 0.0) {
                Next::Nothing => "nothing".to_owned(),
                Next::Failed => "failed".to_owned(),
                Next::Again { wait } => wait.as_secs().to_string(),
            };
            assert_eq!(follows, wanted, "{row:?}");
            // A task that is paused, or whose file is gone, repeats nothing.
            assert!(!matches!(next(&policy, &run, past, false, 0.0), Next::Again { .. }), "{row:?}");
            // What never started is not repeated, and is no failure of the task.
            assert_eq!(next(&policy, &ended(state, exit, false), past, true, 0.0), Next::Nothing, "{row:?}");
        }
    }

    #[test]
    fn waits_double_within_what_the_policy_says() {
        let (no_luck, luck) = (0.0, 1.0);
        let bounds = |n| (wait(seconds(30, 600), n, no_luck).as_secs(), wait(seconds(30, 600), n, luck).as_secs());
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 100].map(bounds),
            [(30, 60), (60, 120), (120, 240), (240, 480), (300, 600), (300, 600), (300, 600)]
        );
        // One length of time is a wait that stays the same.
        assert_eq!([1, 2, 50].map(|n| wait(seconds(7, 7), n, 0.5).as_secs()), [7, 7, 7]);
    }

    #[test]
    fn a_task_pauses_itself_at_its_number_and_never_without_one() {
        let pauses = |after, failures| pauses(&Policy { pause_after: after, ..Policy::default() }, failures);
        assert_eq!(
            [(0, 1), (0, 1000), (3, 2), (3, 3), (3, 4), (1, 0), (1, 1)].map(|(after, n)| pauses(after, n)),
            [false, false, false, true, true, false, true]
        );
    }

    proptest! {
        #[test]
        fn no_wait_is_outside_of_the_policy_and_the_chance_never_shortens_a_later_one(
            first in 1u64..100_000, more in prop_oneof![0u64..100, 0u64..10_000_000], n in 1u32..200, draw in 0.0f64..=1.0, luck in 0.0f64..=1.0,
        ) {
            let backoff = Backoff {
                first: Duration::from_millis(first),
                longest: Duration::from_millis(first + more),
            };
            let now = wait(backoff, n, draw);
            prop_assert!(now >= backoff.first && now <= backoff.longest, "{now:?}");
            prop_assert!(wait(backoff, n + 1, draw) >= now);
            // More luck waits no less.
            prop_assert!((wait(backoff, n, luck) >= now) || luck < draw);
        }

        /// However attempts end, in whatever order: there are never more than the policy allows.
        #[test]
        fn the_attempts_of_one_piece_of_work_come_to_an_end(
            retries in 0u32..=20, retries_crashes in any::<bool>(), ends in proptest::collection::vec(0u8..3, 1..200),
        ) {
            let on_crash = if retries_crashes { OnCrash::Retry } else { OnCrash::Fail };
            let policy = policy(retries, &[], on_crash);
            let mut past = Past::default();
            let mut attempts = 0;
            for end in ends {
                let run = ended(["failed", "timed_out", "interrupted"][usize::from(end)], None, true);
                past = past.with(run.state);
                attempts += 1;
                if !matches!(next(&policy, &run, past, true, 0.5), Next::Again { .. }) {
                    break;
                }
            }
            let most = 1 + retries + if retries_crashes { MAX_CRASHES } else { 0 };
            prop_assert!(attempts <= most, "{attempts} attempts with {policy:?}");
        }
    }
}
