//! The `steps` agent: carries out the steps written in a task, one after another, and says what it does.
//!
//! Knows neither model nor network of its own: what a step does is in the task's file and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use self::condition::Facts;
use self::output::{Recorded, Recorder};
use self::quote::{Quotes, shorten};
use crate::agent::{Assignment, Emitter, Outcome, Over};
use crate::event::{Attention, Body, OutputStream, Role};
use crate::run::process::CommandSpec;
use crate::task::definition::{Action, OnError, Step};

pub mod condition;
mod environment;
mod http;
mod output;
mod quote;
mod shell;
mod write;

/// The longest thought, in characters, and the longest value quoted in it.
const THOUGHT: usize = 2000;
const QUOTED: usize = 300;

/// The longest reason or finding, in characters: one line for a person.
const LINE: usize = 300;

/// The pause before a step is tried again; doubled each time up to the last.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long leftovers of commands are waited for at the end; they are killed after two seconds, so what is still
/// there then cannot be.
const SETTLE: Duration = Duration::from_secs(5);

/// How a step went, as conditions and later steps see it. A step that has not run is one that was left out.
#[derive(Clone, Debug, Default)]
struct StepResult {
    output: String,
    stdout: String,
    stderr: String,
    /// The exit code; 0 and 1 for what has none, -1 for a step that was left out.
    exit: i64,
    /// The HTTP status, 0 without.
    status: i64,
    ok: bool,
    skipped: bool,
    duration_ms: i64,
    /// Where the whole output is.
    file: Option<PathBuf>,
    /// Whether `output` is the whole.
    whole: bool,
}

impl StepResult {
    fn skipped() -> Self {
        Self { exit: -1, skipped: true, whole: true, ..Self::default() }
    }

    /// A member as text, for quotes; outputs without the newlines at their end.
    fn member(&self, name: &str) -> Option<String> {
        let text = |text: &str| text.trim_end_matches('\n').to_owned();
        Some(match name {
            "output" => text(&self.output),
            "stdout" => text(&self.stdout),
            "stderr" => text(&self.stderr),
            "exit" => self.exit.to_string(),
            "status" => self.status.to_string(),
            "ok" => self.ok.to_string(),
            "skipped" => self.skipped.to_string(),
            "duration_ms" => self.duration_ms.to_string(),
            _ => return None,
        })
    }
}

/// A tool call under way.
struct Call<'a> {
    id: String,
    step: &'a str,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
}

/// How a tool call went, its output apart.
struct Done {
    ok: bool,
    exit: Option<i32>,
    status: Option<u16>,
    /// Why it did not work, to be read after "step x ".
    reason: Option<String>,
}

impl Done {
    fn failed(reason: impl Into<String>) -> Self {
        Self { ok: false, exit: None, status: None, reason: Some(reason.into()) }
    }
}

/// Carries out the steps. Returns promptly once [`Processes::stop`](crate::run::process::Processes::stop) was
/// called, with [`Outcome::Failed`], whose reason is then of no interest. When it returns by itself nothing is left
/// of what its commands started, except what took no SIGKILL for some seconds.
pub async fn run(assignment: Assignment, emitter: Emitter) -> Outcome {
    let steps = assignment.definition.steps.iter();
    let results = steps.map(|step| (step.name.clone(), StepResult::skipped())).collect();
    let mut work = Work { assignment, emitter, results, calls: 0, findings: Vec::new(), exit: None, warned: false };
    let end = work.all_steps().await;
    // Leftovers of commands get SIGTERM and, two seconds later, SIGKILL; a stop has its own patience.
    tokio::select! {
        _ = tokio::time::timeout(SETTLE, work.assignment.processes.settled()) => {}
        () = work.assignment.processes.stopping() => {}
    }
    let attention = work.attention();
    match end {
        Ok(()) => Outcome::Succeeded { exit: work.exit, attention },
        Err(End::Over) => Outcome::Failed { reason: "stopped".to_owned(), exit: None, attention },
        Err(End::Failed { reason, exit }) => Outcome::Failed { reason, exit, attention },
    }
}

/// Why no further step is carried out.
enum End {
    Over,
    Failed { reason: String, exit: Option<i32> },
}

impl From<Over> for End {
    fn from(_: Over) -> Self {
        Self::Over
    }
}

struct Work {
    assignment: Assignment,
    emitter: Emitter,
    results: BTreeMap<String, StepResult>,
    /// How many calls there were.
    calls: u32,
    findings: Vec<String>,
    /// The exit code of the last command.
    exit: Option<i32>,
    /// It was said that output cannot be kept.
    warned: bool,
}

impl Work {
    async fn all_steps(&mut self) -> Result<(), End> {
        let definition = self.assignment.definition.clone();
        for step in &definition.steps {
            self.step(step).await?;
        }
        if let Some(condition) = &definition.attention {
            let holds = self.facts(None).hold(condition).await.map_err(|why| {
                let reason = format!("The task's attention condition `{condition}` cannot be evaluated: {why}");
                End::Failed { reason: self.line(&reason), exit: None }
            })?;
            if holds {
                self.find(definition.summary.as_deref(), || format!("{} needs a look", definition.title));
            }
        }
        Ok(())
    }

    /// One step with its condition and its retries.
    async fn step(&mut self, step: &Step) -> Result<(), End> {
        let mut pause = RETRY_PAUSE;
        let tries = match step.on_error {
            OnError::Retry(more) => more.saturating_add(1),
            OnError::Stop | OnError::Continue => 1,
        };
        if !self.is_wanted(step).await? {
            return Ok(());
        }
        if let Some(thought) = &step.thought {
            let thought = shorten(&self.quotes(QUOTED).fill(thought), THOUGHT);
            self.emitter.emit(Body::Thought { text: self.clean(&thought) }).await?;
        }
        for attempt in 1..=tries {
            if self.assignment.processes.is_stopping() {
                return Err(End::Failed { reason: "stopped".to_owned(), exit: None });
            }
            let Err((reason, exit)) = self.attempt(step).await? else { return Ok(()) };
            let stopping = self.assignment.processes.is_stopping();
            if !stopping && step.on_error == OnError::Continue {
                return Ok(());
            }
            if stopping || attempt == tries {
                let again = if attempt > 1 { format!(" (tried {attempt} times)") } else { String::new() };
                return Err(End::Failed { reason: self.line(&format!("{reason}{again}")), exit });
            }
            let words = format!("{reason}. Trying again in {pause:?} ({attempt} of {tries} tries done).");
            self.say(&words).await?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.assignment.processes.stopping() => {}
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
        Ok(())
    }

    /// Whether the step's condition holds. One that cannot be evaluated is a failed step.
    async fn is_wanted(&mut self, step: &Step) -> Result<bool, End> {
        let Some(condition) = &step.when else { return Ok(true) };
        match self.facts(None).hold(condition).await {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.say(&format!("Step {} is left out: `{condition}` is false.", step.name)).await?;
                Ok(false)
            }
            Err(why) => {
                let reason = format!("Step {}: its condition `{condition}` cannot be evaluated: {why}", step.name);
                if step.on_error == OnError::Continue {
                    self.say(&reason).await?;
                    return Ok(false);
                }
                Err(End::Failed { reason: self.line(&reason), exit: None })
            }
        }
    }

    /// One call. The inner result says why the step failed, in one line, and with which exit code.
    async fn attempt(&mut self, step: &Step) -> Result<Result<(), (String, Option<i32>)>, Over> {
        self.calls += 1;
        let deadline = step.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let id = format!("c{}", self.calls);
        let call = Call { id, step: &step.name, timeout: step.timeout, deadline };
        let begin = Instant::now();
        let (tool, done, recorded) = self.act(step, &call).await?;
        let duration_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let reason = done.reason.as_ref().map(|reason| self.clean(reason));
        let mut output = recorded.result.clone();
        // The result reads alone: what its exit code does not say must stand in it.
        if let Some(reason) = reason.as_ref().filter(|reason| !reason.starts_with(shell::ENDED_WITH)) {
            let newline = if output.is_empty() || output.ends_with('\n') { "" } else { "\n" };
            output.push_str(&format!("{newline}[{reason}]\n"));
        }
        let result = Body::ToolResult {
            call: call.id.clone(),
            tool: tool.to_owned(),
            ok: done.ok,
            output,
            cut_bytes: recorded.result_cut,
            exit: done.exit,
            duration_ms,
        };
        self.emitter.emit(result).await?;
        if let (Some(error), false) = (&recorded.not_kept, self.warned) {
            self.warned = true;
            self.say(&format!("The whole output of {} could not be kept: {error}", call.id)).await?;
        }
        if done.exit.is_some() {
            self.exit = done.exit;
        }
        let reason = reason.map(|reason| failure(step, &call.id, &reason, &recorded));
        let exit = done.exit;
        let kept = recorded.not_kept.is_none();
        let result = StepResult {
            output: recorded.output,
            stdout: recorded.stdout,
            stderr: recorded.stderr,
            exit: i64::from(done.exit.unwrap_or(i32::from(!done.ok))),
            status: done.status.map_or(0, i64::from),
            ok: done.ok,
            skipped: false,
            duration_ms: i64::try_from(duration_ms).unwrap_or(i64::MAX),
            file: kept.then(|| self.assignment.output_dir.join(&call.id)),
            whole: recorded.whole,
        };
        self.results.insert(step.name.clone(), result);
        let noticed = self.notice(step).await;
        Ok(match (reason, noticed) {
            (Some(reason), _) => Err((reason, exit)),
            (None, Err(reason)) => Err((reason, None)),
            (None, Ok(())) => Ok(()),
        })
    }

    /// Says what will be done and does it.
    async fn act(&mut self, step: &Step, call: &Call<'_>) -> Result<(&'static str, Done, Recorded), Over> {
        let Self { assignment, emitter, .. } = &*self;
        let path = assignment.output_dir.join(&call.id);
        let recorder = || Recorder::new(call.id.clone(), emitter.clone(), &assignment.redactor, path);
        let announce = async |tool: &'static str, mut input: serde_json::Value| {
            assignment.redactor.json(&mut input);
            let (call, tool) = (call.id.clone(), tool.to_owned());
            emitter.emit(Body::ToolUse { call, tool, input }).await
        };
        match &step.action {
            Action::Run { command } => {
                announce("shell", json!({ "command": command })).await?;
                let mut recorder = recorder();
                let done = match environment::of(assignment, &self.results).await {
                    Ok(env) => {
                        let (command, cwd) = (command.clone(), assignment.work_dir.clone());
                        let spec = CommandSpec { call: call.id.clone(), command, env, cwd };
                        shell::run(call, spec, &assignment.processes, emitter, &mut recorder).await?
                    }
                    Err(reason) => Done::failed(reason),
                };
                Ok(("shell", done, recorder.finish().await?))
            }
            Action::Http { method, url, headers, body, expect_status, allow_hosts } => {
                let quotes = Quotes { secrets: &assignment.secrets, ..self.quotes(usize::MAX) };
                let headers = headers.iter().map(|(name, value)| (name.clone(), quotes.fill(value)));
                let request = http::Request {
                    method,
                    // As it is written: an address is what it says.
                    url: url.clone(),
                    headers: headers.collect(),
                    body: body.as_deref().map(|body| quotes.fill(body)),
                    expect_status,
                    allow_hosts,
                    own_port: assignment.own_port,
                };
                announce("http", json!({ "method": method, "url": request.url })).await?;
                let mut recorder = recorder();
                let done = http::run(call, request, &assignment.processes, &mut recorder).await?;
                Ok(("http", done, recorder.finish().await?))
            }
            Action::Write { path: to, content, append } => {
                let content = self.quotes(usize::MAX).fill(content);
                let to = assignment.work_dir.join(to);
                let input = json!({ "path": to.to_string_lossy(), "append": append, "bytes": content.len() });
                announce("write", input).await?;
                let mut recorder = recorder();
                let (done, words) = write::run(to, content, *append).await;
                recorder.take(OutputStream::Stdout, words.as_bytes()).await;
                Ok(("write", done, recorder.finish().await?))
            }
        }
    }

    /// Looks whether the step's result asks for attention. The error says why that cannot be told.
    async fn notice(&mut self, step: &Step) -> Result<(), String> {
        let Some(condition) = &step.attention else { return Ok(()) };
        match self.facts(self.results.get(&step.name)).hold(condition).await {
            Ok(true) => self.find(step.summary.as_deref(), || format!("Step {} needs a look", step.name)),
            Ok(false) => {}
            Err(why) => {
                return Err(format!(
                    "Step {}: its attention condition `{condition}` cannot be evaluated: {why}",
                    step.name
                ));
            }
        }
        Ok(())
    }

    fn find(&mut self, summary: Option<&str>, otherwise: impl FnOnce() -> String) {
        let summary = summary.map_or_else(otherwise, |summary| self.quotes(QUOTED).fill(summary));
        let summary = self.line(&summary);
        // A step that is tried again finds the same again.
        if !self.findings.contains(&summary) {
            self.findings.push(summary);
        }
    }

    fn attention(&self) -> Option<Attention> {
        let summary = shorten(&self.findings.join("; "), LINE);
        (!summary.is_empty()).then_some(Attention { summary })
    }

    fn facts<'a>(&'a self, own: Option<&'a StepResult>) -> Facts<'a> {
        Facts { params: &self.assignment.params, steps: &self.results, own }
    }

    fn quotes(&self, longest: usize) -> Quotes<'_> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        Quotes { params: &self.assignment.params, steps: &self.results, secrets: &NONE, longest }
    }

    /// A word of the program around the steps.
    async fn say(&self, text: &str) -> Result<(), Over> {
        self.emitter.emit(Body::Message { role: Role::System, text: self.clean(text) }).await
    }

    fn clean(&self, text: &str) -> String {
        self.assignment.redactor.text(text).into_owned()
    }

    /// One line without secrets.
    fn line(&self, text: &str) -> String {
        let words: Vec<&str> = text.split_whitespace().collect();
        shorten(&self.clean(&words.join(" ")), LINE)
    }
}

/// Which step failed, how, the last it said, and where the rest is.
fn failure(step: &Step, call: &str, reason: &str, recorded: &Recorded) -> String {
    let last_line = |text: &str| {
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
        line.map(|line| shorten(line, LINE / 2))
    };
    let said = last_line(&recorded.stderr).or_else(|| last_line(&recorded.stdout));
    match said {
        Some(said) => format!("Step {} {reason}: {said} (see call {call})", step.name),
        None => format!("Step {} {reason} (see call {call})", step.name),
    }
}
