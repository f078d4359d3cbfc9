//! The resume table once more, by the words of the protocol: what a watcher may be told, as far as what it asked and
//! what was true meanwhile allow it.

use serde::Deserialize;

use crate::truth::{Cause, LAG, Log, Micros, Replay, Run, Truth};

/// What a watcher asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub generation: Option<String>,
    pub after: u64,
    /// When.
    pub at: Micros,
}

/// What it was told by `subscribed`.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub generation: String,
    pub from: u64,
    pub head: u64,
    pub missed: Option<u64>,
}

/// What it was told by `reset`.
#[derive(Clone, Debug)]
pub struct Reset {
    pub generation: String,
    pub why: String,
    pub have: u64,
    pub oldest: u64,
    pub head: u64,
}

/// What it was told by `snapshot`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub generation: String,
    pub seq: u64,
    pub head: u64,
    pub runs: Vec<Run>,
    pub calls: Vec<(u64, String)>,
    pub truncated: bool,
}

/// The number of an event, and no more.
#[derive(Deserialize)]
pub struct Numbered {
    pub seq: u64,
}

/// The most runs of a snapshot.
const RUNS: usize = 100;

/// A time in which the server may have looked.
#[derive(Clone, Copy, Debug)]
struct While {
    from: Micros,
    to: Micros,
}

impl While {
    fn since(at: Micros, now: Micros) -> Self {
        Self { from: at.saturating_sub(LAG), to: now }
    }

    /// The log of that id, if it was the task's meanwhile.
    fn log<'t>(&self, truth: &'t Truth, task: &str, generation: &str) -> Result<&'t Log, String> {
        let log = truth.log(task, generation).filter(|log| log.was_within(self.from, self.to));
        log.ok_or_else(|| format!("{generation} was no log of {task} then"))
    }

    fn heads(&self, log: &Log) -> std::ops::RangeInclusive<u64> {
        // What was saved in the very first moment may not have been told yet.
        let least = if self.from == 0 { 0 } else { log.head_at(self.from) };
        least..=log.head_at(self.to)
    }

    fn head(&self, log: &Log, head: u64) -> Result<(), String> {
        let heads = self.heads(log);
        if heads.contains(&head) { Ok(()) } else { Err(format!("head {head} was told, it was {heads:?}")) }
    }
}

/// `not_found`: the task was away at some moment.
pub fn not_found(truth: &Truth, task: &str, asked: Micros, now: Micros) -> Result<(), String> {
    let time = While::since(asked, now);
    if truth.was_away(task, time.from, time.to) {
        return Ok(());
    }
    let lives: Vec<_> = truth.logs(task).iter().map(|log| (log.began, log.ended, log.cause)).collect();
    Err(format!("{task} was there all the time, from {} to {}: {lives:?}", time.from, time.to))
}

/// `resumed`.
pub fn resumed(
    truth: &Truth,
    task: &str,
    asked: &Asked,
    told: &Outcome,
    now: Micros,
    replay: Replay,
) -> Result<(), String> {
    let time = While::since(asked.at, now);
    let log = time.log(truth, task, &told.generation)?;
    time.head(log, told.head)?;
    let oldest = log.oldest_within(time.from, time.to);
    let Outcome { from, head, .. } = *told;
    if told.missed != Some(head + 1 - from) {
        return Err(format!("{:?} missed from {from} to {head}", told.missed));
    }
    if asked.after == 0 {
        if !oldest.contains(&from) {
            return Err(format!("a newcomer begins at {from}, the oldest was {oldest:?}"));
        }
    } else {
        if asked.generation.as_deref() != Some(&told.generation) {
            return Err(format!("resumed in {} behind a position of {:?}", told.generation, asked.generation));
        }
        if from != asked.after + 1 {
            return Err(format!("resumed at {from} behind {}", asked.after));
        }
        if asked.after > head {
            return Err(format!("resumed behind {}, beyond head {head}", asked.after));
        }
        if oldest.iter().all(|oldest| asked.after + 1 < *oldest) {
            return Err(format!("resumed behind {}, below {oldest:?}", asked.after));
        }
    }
    // Of a task that is deleted meanwhile nothing is found to be counted, and less of a log of which retention takes
    // some; not_found follows, or a reset.
    let is_whole = log.ended.is_none_or(|ended| ended > time.to) && oldest.iter().all(|oldest| *oldest <= from);
    if is_whole && !log.fits(from, head, replay) {
        let bytes = log.bytes(from, head);
        return Err(format!("resumed at {from} under head {head}, {bytes} bytes: more than {replay:?}"));
    }
    Ok(())
}

/// The runs that `subscribed` tells of: those not ended, at some moment since.
pub fn open_runs(
    truth: &Truth,
    task: &str,
    generation: &str,
    told: &[Run],
    since: Micros,
    now: Micros,
) -> Result<(), String> {
    let time = While::since(since, now);
    let log = time.log(truth, task, generation)?;
    let open = |head: u64| log.folded(head).runs.into_iter().filter(|run| !run.is_over()).collect::<Vec<_>>();
    // Of a log that is replaced meanwhile they may be those of its successor, the reset follows; of a task that is
    // deleted meanwhile they are gone already, not_found follows.
    let is_over = log.ended.is_some_and(|ended| ended <= time.to);
    if is_over || time.heads(log).rev().any(|head| open(head) == told) {
        return Ok(());
    }
    Err(format!("open runs\n    {told:?}, they are\n    {:?}", open(log.head_at(now))))
}

/// `reset` as the outcome of a subscribe.
pub fn reset(
    truth: &Truth,
    task: &str,
    asked: &Asked,
    told: &Reset,
    now: Micros,
    replay: Replay,
) -> Result<(), String> {
    let time = While::since(asked.at, now);
    let log = time.log(truth, task, &told.generation)?;
    bounds(&time, log, told)?;
    let (least, head) = (log.head_at(time.from), told.head);
    let oldest = log.oldest_within(time.from, time.to);
    let same = asked.generation.as_deref() == Some(told.generation.as_str());
    let fits = match told.why.as_str() {
        "generation" => {
            asked.after > 0 && asked.generation.as_deref().is_none_or(|known| changed(truth, task, known, &time))
        }
        "future" => {
            let before = truth.logs(task).iter().position(|other| other.generation == told.generation);
            let before = before.and_then(|index| index.checked_sub(1)).map(|index| &truth.logs(task)[index]);
            log.cause == Cause::Renewed
                && before.is_some_and(|before| {
                    asked.generation.as_ref() == Some(&before.generation) && asked.after > before.head_at(time.from)
                })
        }
        "retention" => same && asked.after > 0 && oldest.iter().any(|oldest| asked.after + 1 < *oldest),
        "too_far" => same && asked.after > 0 && !log.fits(asked.after + 1, head, replay),
        "from_start" => asked.after == 0 && oldest.iter().any(|oldest| !log.fits(*oldest, head, replay)),
        _ => false,
    };
    if !fits {
        return Err(format!("{told:?} to {asked:?}, with head {least} to {head} and oldest {oldest:?}"));
    }
    Ok(())
}

/// Whether that id was not the task's log at some moment.
fn changed(truth: &Truth, task: &str, known: &str, time: &While) -> bool {
    truth.log(task, known).is_none_or(|log| log.ended.is_some_and(|ended| ended <= time.to) || log.began > time.from)
}

fn bounds(time: &While, log: &Log, told: &Reset) -> Result<(), String> {
    time.head(log, told.head)?;
    let oldest = log.oldest_within(time.from, time.to);
    if oldest.contains(&told.oldest) {
        Ok(())
    } else {
        Err(format!("oldest {} was told, it was {oldest:?}", told.oldest))
    }
}

/// `reset` of a subscription that was live: the log was replaced, or retention took what comes next.
pub fn reset_live(
    truth: &Truth,
    task: &str,
    known: &str,
    position: u64,
    told: &Reset,
    since: Micros,
    now: Micros,
) -> Result<(), String> {
    let time = While::since(since, now);
    let log = time.log(truth, task, &told.generation)?;
    bounds(&time, log, told)?;
    if told.have != position {
        return Err(format!("reset from {}, the position was {position}", told.have));
    }
    let fits = match told.why.as_str() {
        "generation" => told.generation != known,
        "retention" => {
            told.generation == known
                && position + 1 < log.oldest_within(time.from, time.to).into_iter().max().unwrap_or(0)
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("{told:?} in {known} behind {position}")) }
}

/// `snapshot` behind a `reset`: at the head, or for a newcomer before the last work; and what it says is what the events
/// give.
pub fn snapshot(
    truth: &Truth,
    task: &str,
    why: &str,
    told: &Snapshot,
    since: Micros,
    now: Micros,
    replay: Replay,
) -> Result<(), String> {
    let time = While::since(since, now);
    let log = time.log(truth, task, &told.generation)?;
    time.head(log, told.head)?;
    let at_head = told.seq == told.head;
    if !at_head && why != "from_start" {
        return Err(format!("a snapshot at {} of {} for {why}", told.seq, told.head));
    }
    if why == "from_start" && !newcomer(log, &time, told, replay) {
        return Err(format!("a newcomer begins behind {} of {}", told.seq, told.head));
    }
    let folded = log.folded(told.seq);
    let mut runs = folded.runs;
    runs.drain(..runs.len().saturating_sub(RUNS));
    // Of a task that is deleted meanwhile the runs are gone already; not_found follows.
    if told.truncated || log.ended.is_some_and(|ended| ended <= time.to) {
        return Ok(());
    }
    if told.runs != runs {
        let other =
            |runs: &[Run], others: &[Run]| runs.iter().filter(|run| !others.contains(run)).cloned().collect::<Vec<_>>();
        let (due, said) = (other(&runs, &told.runs), other(&told.runs, &runs));
        return Err(format!("at {} among the runs are\n    {due:?}, it told\n    {said:?}", told.seq));
    }
    let calls: Vec<u64> = told.calls.iter().map(|(seq, _)| *seq).collect();
    if calls != folded.calls {
        return Err(format!("at {} the calls {:?} are open, it told {calls:?}", told.seq, folded.calls));
    }
    // The same object; the order of its members is not part of it.
    let object = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    match told.calls.iter().find(|(seq, text)| log.event(*seq).is_none_or(|event| object(&event.text) != object(text)))
    {
        Some((seq, text)) => Err(format!("the call of event {seq} was told as {text}")),
        None => Ok(()),
    }
}

/// Whether a newcomer's snapshot stands where it may: the look at the runs may be later than the one at the head.
fn newcomer(log: &Log, time: &While, told: &Snapshot, replay: Replay) -> bool {
    let heads = *time.heads(log).start()..=*time.heads(log).end();
    let oldest = log.oldest_within(time.from, time.to);
    heads.clone().any(|seen| {
        let start = log.start_of_last_work(seen);
        oldest.iter().any(|oldest| {
            let from = start.unwrap_or(u64::MAX).max(*oldest);
            let fits = |head: u64| from <= head && log.fits(from, head, replay);
            if told.seq == told.head && heads.clone().any(|head| !fits(head)) {
                return true;
            }
            told.seq + 1 == from && heads.clone().any(fits)
        })
    })
}
