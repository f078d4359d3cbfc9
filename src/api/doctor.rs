//! `GET /api/v1/doctor`: what the server finds when it looks at itself, each with what to do about it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};

use super::Api;
use crate::stream::publish::Writable;
use crate::task::registry::Source;

/// How long the store is looked through.
const LOOK_THROUGH: Duration = Duration::from_secs(3);
/// How long a supervisor may take to start.
const START_WITHIN: Duration = Duration::from_secs(5);
/// Less room than this is something to know.
const LITTLE_ROOM: u64 = 1 << 30;
/// Less room than this is trouble soon.
const NO_ROOM: u64 = 100 << 20;
/// How many lines of one kind are shown.
const MAX_LINES: usize = 20;

/// How something that was looked at is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something to know.
    Warn,
    /// Something to do.
    Trouble,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// In words.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, text: text.into(), advice: None }
    }

    fn warn(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, text: text.into(), advice: Some(advice.into()) }
    }

    fn trouble(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Trouble, text: text.into(), advice: Some(advice.into()) }
    }
}

/// Everything that was looked at.
pub async fn doctor(State(api): State<Api>) -> Json<Value> {
    let (store, supervisor, channels) = tokio::join!(store(&api), supervisor(api.runs.supervisor()), channels(&api));
    let mut items = vec![store, writable(&api), room(&api), clock(&api), zone(&api), supervisor];
    items.extend(task_files(&api));
    items.extend(channels);
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "items": items }))
}

async fn store(api: &Api) -> Finding {
    const ADVICE: &str = "stop the server, keep a copy of the data folder, and put a backup back";
    let store = std::sync::Arc::clone(&api.store);
    let until = Instant::now() + LOOK_THROUGH;
    match tokio::task::spawn_blocking(move || store.check(move || Instant::now() < until)).await {
        Ok(Ok(None)) => Finding::ok("store", "the store is whole"),
        Ok(Ok(Some(found))) => Finding::trouble("store", format!("the store is damaged: {found}"), ADVICE),
        Ok(Err(error)) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
            Finding::ok("store", format!("the store is whole as far as it was read in {} s", LOOK_THROUGH.as_secs()))
        }
        Ok(Err(error)) => Finding::trouble("store", format!("the store cannot be read: {error}"), ADVICE),
        Err(error) => Finding::trouble("store", format!("the store could not be looked at: {error}"), ADVICE),
    }
}

fn writable(api: &Api) -> Finding {
    match &*api.publisher.writable().borrow() {
        Writable::Yes => Finding::ok("writing", "the store can be written"),
        Writable::No { why, .. } => Finding::trouble(
            "writing",
            format!("nothing can be saved: {why}"),
            "make room on the disk of the data folder: what waits is written then",
        ),
    }
}

fn room(api: &Api) -> Finding {
    let folder = api.store.path().parent().unwrap_or(Path::new("."));
    let space = match nix::sys::statvfs::statvfs(folder) {
        Ok(space) => space,
        Err(error) => {
            return Finding::warn("disk", format!("the room could not be asked for: {error}"), "look at it with df");
        }
    };
    let free = space.blocks_available().saturating_mul(space.fragment_size());
    let text = format!("{} MiB free for {}", free >> 20, folder.display());
    match free {
        ..NO_ROOM => Finding::trouble("disk", text, "make room: nothing can be saved soon"),
        NO_ROOM..LITTLE_ROOM => Finding::warn("disk", text, "make room, or keep less: [retention] in config.toml"),
        _ => Finding::ok("disk", text),
    }
}

fn clock(api: &Api) -> Finding {
    let held = api.live.notices.current().into_iter().find(|notice| notice.code == "clock_wrong" && !notice.over);
    match held {
        Some(notice) => Finding::trouble("clock", notice.text, "set the clock of this machine"),
        None => Finding::ok("clock", format!("it is {}", crate::clock::rfc3339(api.publisher.clock().now()))),
    }
}

fn zone(api: &Api) -> Finding {
    match api.viewer.registry.zone().iana_name().filter(|name| *name != "Etc/Unknown") {
        Some(name) => Finding::ok("time zone", format!("schedules without tz are in {name}")),
        None => Finding::warn(
            "time zone",
            "the zone of this machine is not known: schedules without tz are in UTC",
            "set the zone (timedatectl set-timezone Europe/Berlin), or give each schedule its tz",
        ),
    }
}

async fn supervisor(exe: &Path) -> Finding {
    let mut command = tokio::process::Command::new(exe);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let advice = "commands cannot be run: look at the limits of processes and memory (ulimit -a, systemctl show)";
    match tokio::time::timeout(START_WITHIN, command.status()).await {
        Ok(Ok(status)) if status.success() => Finding::ok("supervisor", "commands can be run"),
        Ok(Ok(status)) => Finding::trouble("supervisor", format!("a supervisor ended at once: {status}"), advice),
        Ok(Err(error)) => Finding::trouble("supervisor", format!("a supervisor cannot be started: {error}"), advice),
        Err(_) => Finding::trouble("supervisor", format!("a supervisor did not start within {START_WITHIN:?}"), advice),
    }
}

fn task_files(api: &Api) -> Vec<Finding> {
    let registry = &api.viewer.registry;
    let of_tasks = registry.all().into_iter().filter_map(|task| {
        let problem = task.problem.clone()?;
        Some((task.id.clone(), problem, task.source))
    });
    let broken = registry.broken().into_iter().map(|(id, problem)| (id, problem, Source::File));
    let mut findings: Vec<Finding> = of_tasks
        .chain(broken)
        .take(MAX_LINES)
        .map(|(id, problem, source)| {
            let advice = match source {
                Source::File => {
                    "correct the file: it is read again by itself, and until then the last good version is in force"
                }
                Source::Store => "put it back into config.toml and start the server again, or change the task",
            };
            Finding::trouble("tasks", format!("task {id}: {problem}"), advice)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("tasks", format!("{} tasks, each in force as it is written", registry.all().len())));
    }
    findings
}

async fn channels(api: &Api) -> Vec<Finding> {
    let mut findings = Vec::new();
    let summaries = api.notifier.channels().await.unwrap_or_default();
    for (name, reached) in api.notifier.reach().await {
        let summary = summaries.iter().find(|channel| channel.name == name).map(|channel| &channel.summary);
        findings.push(match (reached, summary.and_then(|summary| summary.last_error.clone())) {
            (Err(why), _) => Finding::trouble("notify", format!("channel {name}: {why}"), "correct it in config.toml"),
            (Ok(()), Some(why)) => Finding::warn(
                "notify",
                format!("channel {name} can be reached; the last delivery failed: {why}"),
                format!("rejoin notify test {name}"),
            ),
            (Ok(()), None) => Finding::ok("notify", format!("channel {name} can be reached")),
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok("notify", "no channels: nobody is told anything but by the page"));
    }
    findings
}
