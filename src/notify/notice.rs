//! What somebody is told: one happening in words and in members that programs read.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::units::duration_words;
use crate::event::{RunId, TaskId, wire_time};
use crate::record::{Run, RunState};
use crate::task::telling::Occasion;

/// The most characters of a line.
const MAX_LINE: usize = 300;

/// What somebody is told. The same at each try.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Notice {
    /// What is told.
    pub event: Occasion,
    /// When it happened.
    #[serde(with = "wire_time")]
    pub at: Timestamp,
    /// All of it in one line.
    pub text: String,
    /// The task.
    pub task: Option<TaskId>,
    /// What people call it.
    pub title: Option<String>,
    /// The run.
    pub run: Option<RunId>,
    /// How the run stands.
    pub state: Option<RunState>,
    /// Why.
    pub reason: Option<String>,
    /// What the run found.
    pub attention: Option<String>,
    /// The slot.
    #[serde(with = "wire_time::option")]
    pub scheduled_for: Option<Timestamp>,
    /// Which attempt of it.
    pub attempt: Option<u32>,
    /// The exit code.
    pub exit: Option<i32>,
    /// How long the run took.
    pub duration_ms: Option<u64>,
    /// How long it takes usually.
    pub usual_ms: Option<u64>,
    /// How late it started.
    pub late_ms: Option<u64>,
    /// How many slots were missed.
    pub slots: Option<u64>,
    /// How often it failed in a row.
    pub failures: Option<u32>,
    /// How much else happened since that is told with this.
    pub held_back: Option<u32>,
    /// Until when what else happens is told as one.
    #[serde(with = "wire_time::option")]
    pub quiet_until: Option<Timestamp>,
    /// The task's name at a service that waits for signs of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Where to look.
    pub url: Option<String>,
}

impl Notice {
    /// A notice about nothing yet.
    pub fn new(event: Occasion, at: Timestamp, text: impl Into<String>) -> Self {
        Self {
            event,
            at,
            text: text.into(),
            task: None,
            title: None,
            run: None,
            state: None,
            reason: None,
            attention: None,
            scheduled_for: None,
            attempt: None,
            exit: None,
            duration_ms: None,
            usual_ms: None,
            late_ms: None,
            slots: None,
            failures: None,
            held_back: None,
            quiet_until: None,
            check: None,
            url: None,
        }
    }

    /// With what is known of a run.
    #[must_use]
    pub fn of_run(mut self, run: &Run) -> Self {
        self.run = Some(run.id);
        self.state = Some(run.state);
        self.reason.clone_from(&run.reason);
        self.attention = run.attention.as_ref().map(|found| found.summary.clone());
        self.scheduled_for = run.scheduled_for;
        self.attempt = Some(run.attempt);
        self.exit = run.exit;
        self.duration_ms = run.duration_ms;
        self
    }

    /// The first line of a message: the task and what is with it.
    pub fn headline(&self) -> String {
        let Some(title) = &self.title else { return line(&self.text) };
        let words = match (self.event, self.state) {
            (Occasion::Failed, Some(RunState::TimedOut)) => "timed out",
            (Occasion::Failed, Some(RunState::Interrupted)) => "was interrupted",
            (Occasion::Failed, _) => "failed",
            (Occasion::Recovered, _) => "works again",
            (Occasion::Attention, _) => "found something",
            (Occasion::Missed, _) => "missed its time",
            (Occasion::Late, _) => "started late",
            (Occasion::Slow, _) => "took long",
            (Occasion::Waiting, _) => "waits for an approval",
            (Occasion::Test | Occasion::Ping, _) => return line(&self.text),
        };
        line(&format!("{title} {words}"))
    }

    /// The lines of a message under the headline, without the address.
    pub fn details(&self) -> Vec<String> {
        let mut lines = vec![line(&self.text)];
        let found = self.attention.as_deref().filter(|found| !self.text.contains(found));
        lines.extend(found.map(|found| line(&format!("Found: {found}"))));
        lines.extend(self.failures.filter(|count| *count > 1).map(|count| format!("{count} times in a row.")));
        lines.extend(
            self.held_back.map(|count| format!("{count} more happened since the last message; this is how it stands.")),
        );
        lines.extend(self.quiet_until.map(|until| {
            format!("This happens often: what else happens until {} is told as one.", until.strftime("%H:%M UTC"))
        }));
        lines
    }
}

/// What is said of each occasion, in one line.
pub fn words(event: Occasion, title: &str, run: Option<&Run>, notice: &Notice) -> String {
    let took = |ms: Option<u64>| duration_words(rounded(ms.unwrap_or_default()));
    let why = run.and_then(|run| run.reason.as_deref()).unwrap_or("no reason was given");
    let text = match event {
        Occasion::Failed => format!("{title} failed: {why}"),
        Occasion::Recovered => format!("{title} works again"),
        Occasion::Attention => {
            let found = run.and_then(|run| run.attention.as_ref()).map_or("", |found| &found.summary);
            format!("{title}: {found}")
        }
        Occasion::Missed => {
            let count = notice.slots.unwrap_or(1);
            let times = if count == 1 { "a time".to_owned() } else { format!("{count} times") };
            let why = notice.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("{title} missed {times}{why}")
        }
        Occasion::Late => format!("{title} started {} late", took(notice.late_ms)),
        Occasion::Slow => {
            format!("{title} took {}, usually it takes {}", took(notice.duration_ms), took(notice.usual_ms))
        }
        Occasion::Waiting => {
            let asks = run.and_then(|run| run.text.as_deref()).unwrap_or("a run waits for an approval");
            format!("{title}: {asks}")
        }
        Occasion::Test => "This is a test from Rejoin: what happens is told here.".to_owned(),
        Occasion::Ping => title.to_owned(),
    };
    line(&text)
}

/// A length of time as people say it: no milliseconds behind minutes.
fn rounded(ms: u64) -> std::time::Duration {
    let whole = if ms < 10_000 { ms } else { ms / 1000 * 1000 };
    std::time::Duration::from_millis(whole)
}

/// One line of bounded length, without what could act on who shows it.
pub fn line(text: &str) -> String {
    let mut line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_LINE + 1).collect::<String>();
    if line.chars().count() > MAX_LINE {
        line = line.chars().take(MAX_LINE - 1).chain(['…']).collect();
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_bounded() {
        assert_eq!(line("a\nb\u{1b}[0m"), "a b [0m");
        let long = line(&"x".repeat(1000));
        assert!(long.ends_with('…') && long.chars().count() == MAX_LINE, "{long}");
    }

    #[test]
    fn a_length_of_time_is_said_as_people_do() {
        let mut notice = Notice::new(Occasion::Slow, Timestamp::UNIX_EPOCH, "");
        (notice.duration_ms, notice.usual_ms) = (Some(312_345), Some(60_000));
        assert_eq!(words(Occasion::Slow, "Backup", None, &notice), "Backup took 5 min 12 s, usually it takes 1 min");
    }
}
