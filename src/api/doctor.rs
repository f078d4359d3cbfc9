//! `GET /api/v1/doctor`: what the server finds when it looks at itself, each with what to do about it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use super::Api;
use crate::config::units::duration_words;
use crate::event::{RunId, TaskId};
use crate::notify::channel::Unreached;
use crate::record::Run;
use crate::run::places::{ALL, PoolState};
use crate::run::secrets;
use crate::stream::publish::Writable;
use crate::task::parse::Problem;

/// How long the store is looked through.
const LOOK_THROUGH: Duration = Duration::from_secs(3);
/// How long a supervisor may take to start.
const START_WITHIN: Duration = Duration::from_secs(5);
/// Less room than this is something to know.
const LITTLE_ROOM: u64 = 1 << 30;
/// Less room than this is trouble soon.
const NO_ROOM: u64 = 100 << 20;
/// Who has waited longer than this for a place is something to know.
const LONG_WAIT: SignedDuration = SignedDuration::from_mins(10);
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
    let (store, supervisor, secrets, channels) =
        tokio::join!(store(&api), supervisor(api.runs.supervisor()), secrets(&api), channels(&api));
    let mut items = vec![store, writable(&api), room(&api), clock(&api), zone(&api), supervisor];
    items.extend(places(&api));
    items.extend(task_files(&api));
    items.extend(secrets);
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

/// The server's places and each pool: whether somebody has been waiting for one for long. What stands comes first.
fn places(api: &Api) -> Vec<Finding> {
    let (now, standstills) = (api.publisher.clock().now(), api.runs.standstills());
    let open = |(id, task): &(RunId, TaskId)| api.runs.open_run(task, *id);
    let mut findings: Vec<Finding> = api
        .runs
        .pools()
        .iter()
        .map(|pool| {
            let line = standstills.iter().find(|line| line.pool == pool.name);
            let first = line.and_then(|line| open(&line.first));
            let at_work = line.map(|line| line.at_work.iter().filter_map(open).collect()).unwrap_or_default();
            place(pool, first.as_ref(), at_work, now)
        })
        .collect();
    findings.sort_by_key(|finding| finding.level == Level::Ok);
    findings.truncate(MAX_LINES);
    findings
}

/// One pool, with who is first in its line and who has its places, where all of them are taken.
fn place(pool: &PoolState, first: Option<&Run>, at_work: Vec<Run>, now: Timestamp) -> Finding {
    let PoolState { name, size, running, queued } = pool;
    let (mut text, setting) = match &**name {
        ALL => (String::new(), "[runs] concurrency".to_owned()),
        name => (format!("pool {name}: "), format!("{name} under [pools]")),
    };
    text.push_str(&format!("{running} of {size} places taken, {queued} waiting"));
    // A retry has only waited for a place since its time came.
    let since = first.map(|run| (run, run.queued_at.max(run.not_before.unwrap_or(run.queued_at))));
    let waits = since.map(|(run, since)| (run, now.duration_since(since)));
    let Some((run, waited)) = waits.filter(|(_, waited)| *waited >= LONG_WAIT) else {
        return Finding::ok("places", text);
    };
    text.push_str(&format!("; run {} of {} has been waiting for {}", run.id, run.task, words(waited)));
    let oldest = at_work.into_iter().filter_map(|run| Some((run.started_at?, run))).min_by_key(|(started, _)| *started);
    let Some((started, oldest)) = oldest else {
        return Finding::warn("places", text, format!("write more places: {setting} in config.toml"));
    };
    text.push_str(&format!(
        ", and run {} of {} at work for {}",
        oldest.id,
        oldest.task,
        words(now.duration_since(started))
    ));
    let advice = format!(
        "look at what the one at work does: rejoin runs logs {id}, and stop it if it hangs: rejoin runs stop {id}; or \
         write more places: {setting} in config.toml",
        id = oldest.id
    );
    Finding::warn("places", text, advice)
}

/// In whole seconds, and in whole minutes where there are some.
fn words(length: SignedDuration) -> String {
    let seconds = length.as_secs().max(0).cast_unsigned();
    duration_words(Duration::from_secs(if seconds < 60 { seconds } else { seconds / 60 * 60 }))
}

/// Whether the secrets that tasks name are there: a run without one fails as it starts. Their values are looked at and
/// told to nobody.
async fn secrets(api: &Api) -> Vec<Finding> {
    let mut tasks = api.viewer.registry.all();
    tasks.retain(|task| task.enabled);
    let look = move || {
        let named: usize = tasks.iter().map(|task| task.definition.secrets.len()).sum();
        let missing = tasks.iter().filter_map(|task| {
            let why = secrets::resolve(&task.definition.secrets).err()?;
            let advice = "set it where the server has its environment and start the server again, or write the file: \
                          runs of the task fail without it";
            Some(Finding::trouble("secrets", format!("task {}: {why:#}", task.id), advice))
        });
        (named, missing.take(MAX_LINES).collect::<Vec<_>>())
    };
    match tokio::task::spawn_blocking(look).await {
        Ok((0, _)) => vec![Finding::ok("secrets", "no task needs any")],
        Ok((_, missing)) if !missing.is_empty() => missing,
        Ok((named, _)) => vec![Finding::ok("secrets", format!("each can be read, {named} of all tasks"))],
        Err(error) => {
            vec![Finding::trouble("secrets", format!("they could not be looked at: {error}"), "look at the log")]
        }
    }
}

fn task_files(api: &Api) -> Vec<Finding> {
    let registry = &api.viewer.registry;
    let of_tasks = registry.all().into_iter().filter_map(|task| Some((task.id.clone(), task.problem.clone()?)));
    let of_tasks = of_tasks
        .chain(registry.broken())
        .map(|(id, problem)| Finding::trouble("tasks", format!("task {id}: {problem}"), way_out(&id, &problem)));
    let advice = "put it right: it is looked at again by itself";
    let of_none = registry.astray().into_iter().map(|problem| Finding::trouble("tasks", problem.to_string(), advice));
    let mut findings: Vec<Finding> = of_none.chain(of_tasks).take(MAX_LINES).collect();
    if findings.is_empty() {
        findings.push(Finding::ok("tasks", format!("{} tasks, each in force as it is written", registry.all().len())));
    }
    findings
}

/// What to do about a problem of a task.
fn way_out(id: &TaskId, problem: &Problem) -> String {
    if *problem == Problem::file_is_gone() {
        return format!("put the file back: it is read by itself; or: rejoin tasks remove {id}");
    }
    let way = match (&problem.file, problem.key.as_str()) {
        (Some(_), _) => {
            "correct the file: it is read again by itself, and until then the last good version is in force"
        }
        (None, "policy.concurrency") => {
            "add the pool under [pools] in config.toml and start the server again, or choose another on the task's page"
        }
        (None, key) if key.starts_with("notify.channels") => {
            "put it back into config.toml and start the server again, or change the task"
        }
        (None, _) => "use the version that wrote it, or remove the task and add it anew",
    };
    way.to_owned()
}

async fn channels(api: &Api) -> Vec<Finding> {
    let mut findings = Vec::new();
    let summaries = api.notifier.channels().await.unwrap_or_default();
    for (name, reached) in api.notifier.reach().await {
        let summary = summaries.iter().find(|channel| channel.name == name).map(|channel| &channel.summary);
        findings.push(match (reached, summary.and_then(|summary| summary.last_error.clone())) {
            (Err(why), _) => {
                let advice = match why {
                    Unreached::Secret(_) => {
                        "set it where the server has its environment and start the server again, or write the file"
                    }
                    Unreached::Receiver(_) => "correct it in config.toml, or see to the receiver",
                };
                Finding::trouble("notify", format!("channel {name}: {why}"), advice)
            }
            (Ok(()), Some(why)) => Finding::warn(
                "notify",
                format!("channel {name} can be reached; the last delivery failed, or not all took it: {why}"),
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
