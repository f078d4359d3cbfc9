//! Decides who is told of what happened: reads what was noted, and writes deliveries in its place, in one transaction.
//! What is decided is decided by `rules`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::channel::Channel;
use super::ledger::{Draft, Happening};
use super::notice::{self, Notice};
use super::rules::{self, Happened, Rules, Standing, Told};
use crate::event::TaskId;
use crate::record::{Run, RunState};
use crate::store::TaskNo;
use crate::task::registry::Task;
use crate::task::telling::Occasion;

/// What decisions follow from, beside what happened.
#[derive(Debug)]
pub struct Witness {
    /// The channels.
    pub channels: Vec<Arc<Channel>>,
    /// After how long what goes on is told again.
    pub repeat: SignedDuration,
    /// The most that is told of a task in an hour.
    pub hourly: usize,
    /// How many times as long as usual is slow.
    pub slow: f64,
    /// The page's address.
    pub page: String,
}

/// What some happenings come to.
#[derive(Debug, Default)]
pub struct Decided {
    /// What is told.
    pub drafts: Vec<Draft>,
    /// The tasks of which something was taken in, as they stand then.
    pub standings: HashMap<TaskNo, Standing>,
}

impl Witness {
    /// Decides some happenings, in their order. `standings` has every task of them.
    pub fn decide(
        &self,
        happenings: &[Happening],
        tasks: &HashMap<TaskNo, Arc<Task>>,
        standings: HashMap<TaskNo, Standing>,
        now: Timestamp,
    ) -> Decided {
        let mut decided = Decided { drafts: Vec::new(), standings };
        for happening in happenings {
            // A task that was removed meanwhile is nobody's business any more.
            let Some(task) = tasks.get(&happening.task).filter(|task| task.definition.notify.enabled) else { continue };
            self.pulse(happening, task, now, &mut decided.drafts);
            let standing = decided.standings.entry(task.no).or_default();
            self.occasions(happening, task, standing, now, &mut decided.drafts);
        }
        decided
    }

    /// What is told of a task of which something was held back.
    pub fn catch_up(&self, task: &Task, standing: &mut Standing, now: Timestamp) -> Vec<Draft> {
        let told = standing.catch_up(&self.rules(task), now);
        told.map(|told| self.held_back(task, &told, now)).unwrap_or_default()
    }

    fn rules(&self, task: &Task) -> Rules {
        let wanted =
            |occasion: &Occasion| self.channels.iter().any(|one| one.wants(&task.definition.notify, *occasion));
        let wanted = Occasion::CHOICES.into_iter().filter(wanted).collect();
        Rules { wanted, repeat: self.repeat, hourly: self.hourly }
    }

    fn occasions(
        &self,
        happening: &Happening,
        task: &Task,
        standing: &mut Standing,
        now: Timestamp,
        drafts: &mut Vec<Draft>,
    ) {
        let rules = self.rules(task);
        let (happened, usual) = self.read(happening);
        let mut told = Vec::new();
        for happened in &happened {
            let (before, this) = standing.take(happened, &rules, now);
            drafts.extend(before.map(|before| self.held_back(task, &before, now)).unwrap_or_default());
            told.extend(this);
        }
        for channel in &self.channels {
            // A channel hears of one happening once: of what matters most of what it wants.
            let wants = |told: &&Told| channel.wants(&task.definition.notify, told.event);
            let Some(told) = told.iter().find(wants) else { continue };
            let notice = self.notice(happening, task, told, usual, now);
            let subject = subject(happening, told.event);
            drafts.push(channel.draft(subject, notice));
        }
    }

    /// What a happening means; the one that matters most first. With how long a run takes usually.
    fn read(&self, happening: &Happening) -> (Vec<Happened>, Option<Duration>) {
        match happening.what.as_str() {
            "late" => return (vec![Happened::Late], None),
            "missed" => return (vec![Happened::Missed], None),
            _ => {}
        }
        let Some(run) = &happening.run else { return (Vec::new(), None) };
        let found = run.attention.as_ref().map(|found| Happened::Found(found.summary.clone()));
        match happening.what.as_str() {
            // By now it may be over: then there is nothing left to approve.
            "waiting" if run.state == RunState::Waiting => (vec![Happened::Waits], None),
            "succeeded" => {
                let before: Vec<Duration> = happening.usual.iter().map(|ms| Duration::from_millis(*ms)).collect();
                let took = Duration::from_millis(run.duration_ms.unwrap_or_default());
                let slow = rules::slow(took, &before, self.slow);
                let worked = Happened::Worked { slow: slow.is_some_and(|(_, slow)| slow) };
                ([worked].into_iter().chain(found).collect(), slow.map(|(usual, _)| usual))
            }
            // One that never started was missed or called off: its slot says so. One that is tried again has not
            // failed yet; where its retry never starts, it has by then.
            "failed" | "timed_out" | "interrupted" | "given_up" if has_failed(happening, run) => {
                ([Happened::Failed].into_iter().chain(found).collect(), None)
            }
            _ => (Vec::new(), None),
        }
    }

    fn notice(
        &self,
        happening: &Happening,
        task: &Task,
        told: &Told,
        usual: Option<Duration>,
        now: Timestamp,
    ) -> Notice {
        let run = happening.run.as_ref();
        let at = run.and_then(|run| run.ended_at).unwrap_or(now);
        let mut notice = Notice::new(told.event, at, "");
        if let Some(run) = run {
            notice = notice.of_run(run);
        }
        notice.scheduled_for = notice.scheduled_for.or(happening.slot);
        notice.slots = happening.count.filter(|_| told.event == Occasion::Missed);
        notice.late_ms = happening.late_ms;
        notice.usual_ms = usual.and_then(|usual| u64::try_from(usual.as_millis()).ok());
        notice.reason = notice.reason.or_else(|| happening.reason.clone());
        let title = &task.definition.title;
        notice.text = notice::words(told.event, title, run, &notice);
        self.addressed(notice, task, told)
    }

    fn held_back(&self, task: &Task, told: &Told, now: Timestamp) -> Vec<Draft> {
        let title = &task.definition.title;
        let text = match told.event {
            Occasion::Failed => format!("{title} fails"),
            Occasion::Recovered => format!("{title} works"),
            other => format!("{title}: {} more, the last one {}", told.held_back.unwrap_or_default(), other.as_str()),
        };
        let notice = self.addressed(Notice::new(told.event, now, notice::line(&text)), task, told);
        let subject = format!("{}/{}/{}", told.event.as_str(), task.id, now.as_microsecond());
        let wanting = self.channels.iter().filter(|channel| channel.wants(&task.definition.notify, told.event));
        wanting.map(|channel| channel.draft(subject.clone(), notice.clone())).collect()
    }

    /// A notice with its task, and where to look.
    fn addressed(&self, mut notice: Notice, task: &Task, told: &Told) -> Notice {
        notice.task = Some(task.id.clone());
        notice.title = Some(task.definition.title.clone());
        (notice.failures, notice.held_back, notice.quiet_until) = (told.failures, told.held_back, told.quiet_until);
        notice.url = Some(self.url(&task.id, notice.run.map(|run| run.to_string()).as_deref()));
        notice
    }

    fn url(&self, task: &TaskId, run: Option<&str>) -> String {
        let page = self.page.trim_end_matches('/');
        run.map_or_else(|| format!("{page}/tasks/{task}"), |run| format!("{page}/tasks/{task}/runs/{run}"))
    }

    /// Signs of life, for tasks that have a check.
    fn pulse(&self, happening: &Happening, task: &Task, now: Timestamp, drafts: &mut Vec<Draft>) {
        let (Some(check), Some(run)) = (&task.definition.notify.check, &happening.run) else { return };
        let text = match happening.what.as_str() {
            "running" => "started".to_owned(),
            "succeeded" => run.text.clone().unwrap_or_default(),
            "failed" | "timed_out" | "interrupted" | "given_up" if has_failed(happening, run) => {
                run.reason.clone().unwrap_or_default()
            }
            _ => return,
        };
        let mut notice = Notice::new(Occasion::Ping, run.ended_at.unwrap_or(now), notice::line(&text)).of_run(run);
        if happening.what == "running" {
            // It may be over by now, and its end is told as another.
            (notice.state, notice.exit) = (Some(RunState::Running), None);
        }
        notice.task = Some(task.id.clone());
        notice.title = Some(task.definition.title.clone());
        notice.check = Some(check.clone());
        notice.url = Some(self.url(&task.id, Some(&run.id.to_string())));
        let names = task.definition.notify.channels.as_ref();
        let meant = |channel: &&Arc<Channel>| {
            channel.is_pulse() && names.is_none_or(|names| names.contains(&channel.name) || !self.any_pulse_in(names))
        };
        for channel in self.channels.iter().filter(meant) {
            drafts.push(channel.draft(format!("{}/{}", happening.what, run.id), notice.clone()));
        }
    }

    /// Whether a task that names channels names one of these: else its check is for all of them.
    fn any_pulse_in(&self, names: &[String]) -> bool {
        self.channels.iter().any(|channel| channel.is_pulse() && names.contains(&channel.name))
    }
}

/// Whether a run that ended so failed for good.
fn has_failed(happening: &Happening, run: &Run) -> bool {
    let started = run.started_at.is_some() || happening.what == "failed";
    started && !happening.retried
}

/// What a delivery is about: the same happening is the same subject.
fn subject(happening: &Happening, event: Occasion) -> String {
    let event = event.as_str();
    match (&happening.run, happening.what.as_str()) {
        // A run may wait more than once, and a streak of slots goes on.
        (Some(run), "waiting") => format!("{event}/{}/{}", run.id, happening.n),
        (Some(run), _) => format!("{event}/{}", run.id),
        (None, _) => format!("{event}/{}", happening.n),
    }
}
