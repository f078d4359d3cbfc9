//! `rejoin watch`, and the watching that `tasks add --watch` and `runs logs -f` share.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::Session;
use super::client::Client;
use super::escape;
use super::failure::{Failure, Result};
use super::live::{Live, Step};
use super::render::Renderer;
use super::screen::Screen;
use super::tasks;
use super::tasks::{read, resolve};
use super::times;
use super::wire::{Event, Run, Task};
use crate::event::{RunId, State};

/// What to do until a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Everything it does.
    Everything,
    /// How it ended.
    End,
}

/// Shows events on stdout and says on stderr how the connection is.
#[derive(Debug)]
pub struct Viewer {
    screen: Screen,
    renderer: Renderer,
    /// Whether the next "caught up" is worth a word: after a loss, not at the beginning.
    was_away: bool,
    /// Whether several tasks are watched: what is caught up on is then said of each.
    several: bool,
    /// How many events came since.
    came: u64,
}

impl Viewer {
    /// A viewer; with `name_task` every line names its task.
    pub fn new(screen: Screen, name_task: bool) -> Self {
        let renderer = Renderer::new(screen.colour, name_task, TimeZone::system());
        Self { screen, renderer, was_away: false, several: name_task, came: 0 }
    }

    /// Says something to the person.
    pub fn say(&self, text: &str) {
        self.screen.say(text);
    }

    /// Shows an event.
    ///
    /// # Errors
    /// The reader went away.
    pub fn show(&mut self, task: &str, event: &Event) -> Result<()> {
        if self.screen.json {
            return self.screen.json_line(event.raw.get());
        }
        self.renderer.lines(task, event).iter().try_for_each(|line| self.screen.line(line))
    }

    /// The run is over: says what was caught up on if it ended while nobody was connected.
    fn end(&mut self) {
        if std::mem::take(&mut self.was_away) {
            self.say(&format!("-- {}", caught_up(self.came)));
        }
    }

    /// Says how the connection is.
    fn narrate(&mut self, step: &Step) {
        let words = match step {
            Step::Event { .. } => {
                self.came += 1;
                None
            }
            Step::Connected { again: true } => {
                (self.was_away, self.came) = (true, 0);
                Some("Connected again.".to_owned())
            }
            Step::CaughtUp { task, missed, .. } if self.several => {
                (self.was_away && *missed > 0).then(|| format!("{task}: {}", caught_up(*missed)))
            }
            Step::CaughtUp { missed, .. } if std::mem::take(&mut self.was_away) => Some(caught_up(*missed)),
            Step::Reconnecting { attempt, wait, why } => Some(lost(*attempt, *wait, why)),
            Step::Reset { task, replaced, lost, skipped, .. } => {
                (self.was_away, self.came) = (true, 0);
                reset(task, *replaced, *lost, *skipped)
            }
            Step::NotFound { task } => Some(format!("Task {task} is not there (any more).")),
            Step::Refused { task, message } => Some(format!("Task {task} cannot be watched: {message}")),
            Step::Notice { text, over } => Some(if *over { format!("Over: {text}") } else { text.clone() }),
            _ => None,
        };
        if let Some(words) = words {
            self.say(&format!("-- {}", escape::line(&words)));
        }
    }
}

fn caught_up(missed: u64) -> String {
    match missed {
        0 => "Nothing was missed.".into(),
        1 => "Caught up on 1 event.".into(),
        missed => format!("Caught up on {missed} events."),
    }
}

fn lost(attempt: u32, wait: Duration, why: &str) -> String {
    let seconds = wait.as_secs_f64();
    let begin = if attempt == 1 { "Connection lost" } else { "Still no connection" };
    format!("{begin}: {why}. Trying again in {seconds:.1} s (attempt {attempt}).")
}

fn reset(task: &str, replaced: bool, lost: Option<(u64, u64)>, skipped: Option<(u64, u64)>) -> Option<String> {
    let mut words = Vec::new();
    if replaced {
        words.push(format!("The log of task {task} was replaced by another one: what follows is shown anew."));
    }
    if let Some((first, last)) = lost {
        words.push(format!("Events {first} to {last} of task {task} were removed and cannot be shown."));
    }
    if let Some((first, last)) = skipped {
        words.push(format!("Events {first} to {last} are not repeated; `rejoin runs logs` shows them."));
    }
    (!words.is_empty()).then(|| words.join(" "))
}

/// Ends this process at Ctrl-C, with words. On a thread of its own, so that it is heard while output waits.
fn end_at_ctrl_c(screen: Screen, words: String) {
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            screen.say(&format!("\n{words}"));
            std::process::exit(130);
        }
    });
}

fn live(client: &Client) -> Live<&Client> {
    Live::new(client, rand::random::<f64>)
}

/// Watches what is named.
pub async fn watch(session: Session, target: Option<String>) -> Result<()> {
    let Some(target) = target else { return everything(&session).await };
    if target.parse::<RunId>().is_ok() {
        let run: Run = read(session.run(&target).await?)?;
        return until_over(&session, &run, Show::Everything).await?.result();
    }
    let id = resolve(&session, &target).await?;
    let task: Task = read(tasks::get(&session, &id).await?)?;
    one_task(&session, &task).await
}

/// How the last attempt of a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// The last attempt.
    pub run: String,
    /// The state it ended in.
    pub state: String,
}

impl Over {
    /// A run that does not succeed is a failure.
    ///
    /// # Errors
    /// [`Failure::RunFailed`].
    pub fn result(&self) -> Result<()> {
        if self.state == "succeeded" { Ok(()) } else { Err(Failure::RunFailed) }
    }
}

/// Watches a run from its beginning to the end of its last attempt.
///
/// # Errors
/// When it cannot be watched.
pub async fn until_over(session: &Session, run: &Run, show: Show) -> Result<Over> {
    let viewer = Viewer::new(session.screen, false);
    follow(session, run, None, Stay { show, attempts: true }, viewer).await
}

/// Goes on printing a run after event `after`, or from its beginning, until it is over.
pub async fn logs(session: Session, run: Run, after: Option<u64>, viewer: Viewer) -> Result<()> {
    let stay = Stay { show: Show::Everything, attempts: false };
    follow(&session, &run, after, stay, viewer).await.map(drop)
}

/// How long to stay with a run, and what to show of it.
#[derive(Clone, Copy, Debug)]
struct Stay {
    show: Show,
    /// Until the last of its attempts is over.
    attempts: bool,
}

/// Follows a run until it is over.
async fn follow(session: &Session, run: &Run, after: Option<u64>, stay: Stay, mut viewer: Viewer) -> Result<Over> {
    let flags = session.server.flags();
    let words = format!("Stopped watching. The run goes on; watch it again with: rejoin watch {}{flags}", run.id);
    end_at_ctrl_c(session.screen, words);
    let task: Task = read(tasks::get(session, &run.task).await?)?;
    let after = after.unwrap_or_else(|| run.first_seq.unwrap_or(1).saturating_sub(1));
    let mut live = live(&session.client);
    live.follow(&run.task, task.generation.as_deref(), after);
    let mut run = run.clone();
    // The state in which it ended, as long as the server has not said whether it is tried again.
    let mut ended: Option<String> = None;
    // What ended before the log begins is known to the table of runs only.
    let mut ask_table = true;
    loop {
        let step = live.next().await?;
        viewer.narrate(&step);
        match &step {
            Step::Event { task, event } if event.run.as_deref() == Some(&run.id) => {
                let end = event.state().filter(|state| state.is_terminal());
                if stay.show == Show::Everything || end.is_some() && !session.screen.json {
                    viewer.show(task, event)?;
                }
                ended = end.map(name_of);
            }
            Step::Reset { .. } => ask_table = true,
            Step::CaughtUp { position, .. } if ended.is_none() && std::mem::take(&mut ask_table) => {
                ended = ended_unseen(session, &run, *position, &viewer).await?;
            }
            // The server was away when it was asked whether the run is tried again.
            Step::CaughtUp { .. } => {}
            Step::NotFound { task } | Step::Refused { task, .. } => {
                return Err(Failure::NotFound(format!("The run's task {task} cannot be watched any more.")));
            }
            _ => continue,
        }
        let Some(state) = ended.clone() else { continue };
        let next = if stay.attempts { next_attempt(session, &run, &state).await } else { Ok(None) };
        match next {
            // Its first event is right behind the last one that came.
            Ok(Some(next)) => {
                viewer.say(&escape::line(&tried_again(&run, &next)));
                (run, ended, ask_table) = (next, None, true);
            }
            Ok(None) => {
                viewer.end();
                live.close().await;
                return Ok(Over { run: run.id, state });
            }
            Err(failure @ Failure::NotFound(_)) => return Err(failure),
            // The stream notices a server that went away: asked again when it is back.
            Err(_) => {}
        }
    }
}

/// The retry of a run that ended in this state. It is there as soon as the end is; what a person does once more is none.
async fn next_attempt(session: &Session, run: &Run, state: &str) -> Result<Option<Run>> {
    if !matches!(state, "failed" | "timed_out" | "interrupted") {
        return Ok(None);
    }
    let now: Run = read(session.run(&run.id).await?)?;
    let Some(next) = now.retried_by else { return Ok(None) };
    let next: Run = read(session.run(&next).await?)?;
    Ok(next.not_before.is_some().then_some(next))
}

fn tried_again(run: &Run, next: &Run) -> String {
    let attempt = |run: &Run| run.attempt.unwrap_or(1);
    let left = next.not_before.map(|at| at.duration_since(Timestamp::now())).filter(|left| left.is_positive());
    let left = left.and_then(|left| u64::try_from(left.as_millis()).ok());
    let when = left.map_or_else(String::new, |left| format!(" in {}", times::duration(left)));
    format!("-- Attempt {} is over; attempt {} starts{when}: run {}", attempt(run), attempt(next), next.id)
}

/// The state of a run that is over although its last event will not come: it is before what the log still has.
async fn ended_unseen(session: &Session, run: &Run, position: u64, viewer: &Viewer) -> Result<Option<String>> {
    let now: Run = match session.run(&run.id).await {
        Ok(answer) => read(answer)?,
        Err(failure @ Failure::NotFound(_)) => return Err(failure),
        // The stream notices a server that went away.
        Err(_) => return Ok(None),
    };
    if !now.is_over() || now.last_seq.is_some_and(|last| last > position) {
        return Ok(None);
    }
    let reason = now.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    viewer.say(&escape::line(&format!("-- The run is over: {}{reason}", now.state)));
    Ok(Some(now.state))
}

fn name_of(state: State) -> String {
    serde_json::to_value(state).ok().and_then(|name| name.as_str().map(ToOwned::to_owned)).unwrap_or_default()
}

/// Watches a task for ever: what runs now from its beginning, then all that comes.
async fn one_task(session: &Session, task: &Task) -> Result<()> {
    end_at_ctrl_c(session.screen, "Stopped watching. What runs goes on.".into());
    let newest = session.client.list(&["tasks", &task.id, "runs"], &[], 50).await?;
    let newest: Vec<Run> = newest.into_iter().map(read).collect::<Result<_>>()?;
    let active = newest.iter().filter(|run| !run.is_over()).filter_map(|run| run.first_seq).min();
    let after = active.map_or(task.head, |first| first.saturating_sub(1));
    let mut viewer = Viewer::new(session.screen, false);
    if active.is_none() {
        let paused = if task.state == "paused" { ", which is paused," } else { "" };
        viewer.say(&format!(
            "-- Nothing of {}{paused} runs now; its next run is shown as it comes.",
            escape::line(&task.id)
        ));
    }
    let mut live = live(&session.client);
    live.follow(&task.id, task.generation.as_deref(), after);
    loop {
        let step = live.next().await?;
        viewer.narrate(&step);
        match &step {
            Step::Event { task, event } => viewer.show(task, event)?,
            Step::NotFound { task } | Step::Refused { task, .. } => {
                return Err(Failure::NotFound(format!("Task {task} cannot be watched any more.")));
            }
            _ => {}
        }
    }
}

/// Watches all tasks, also those that are made meanwhile.
async fn everything(session: &Session) -> Result<()> {
    end_at_ctrl_c(session.screen, "Stopped watching. What runs goes on.".into());
    // Asked once over HTTP, so that a server that is not there is said at once and ends the command.
    let _: Value = session.client.get(&["status"], &[]).await?;
    let mut viewer = Viewer::new(session.screen, true);
    let mut live = live(&session.client).with_tasks();
    let mut listed = false;
    let mut said_too_many = false;
    loop {
        let step = live.next().await?;
        viewer.narrate(&step);
        match step {
            Step::Event { task, event } => viewer.show(&task, &event)?,
            Step::Tasks { full, items, .. } => {
                let mut all_fit = true;
                // A file that never could be read has no log yet.
                for task in items.iter().filter(|task| task.generation.is_some()) {
                    // What is there at the beginning is watched from now on; what comes later, from its first event.
                    let after = if listed { 0 } else { task.head };
                    all_fit &= live.follow(&task.id, task.generation.as_deref(), after);
                }
                if full && !listed {
                    listed = true;
                    viewer.say("-- Watching all tasks. Ctrl-C ends the viewer only.");
                }
                if !all_fit && !std::mem::replace(&mut said_too_many, true) {
                    viewer.say("-- There are more than 256 tasks: the first 256 are watched.");
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_says_why_and_when_it_tries_again() {
        let words = lost(1, Duration::from_millis(440), "the server is going down or restarting");
        assert_eq!(
            words,
            "Connection lost: the server is going down or restarting. Trying again in 0.4 s (attempt 1)."
        );
        assert!(lost(12, Duration::from_secs(30), "refused").starts_with("Still no connection"));
    }

    #[test]
    fn a_reset_that_loses_nothing_needs_no_words() {
        assert_eq!(reset("t", false, None, None), None);
        assert!(reset("t", true, None, None).unwrap().contains("replaced"));
        assert!(reset("t", false, Some((5, 9)), None).unwrap().contains("5 to 9"));
    }
}
