//! What a task is: title, agent, schedule, policy, parameters and steps, as in `tasks/*.toml` and as JSON.
//!
//! Knows nothing of files, storage or time passing; reading and checking is in `task/parse.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::telling::Telling;
use crate::config::units::{duration, duration_text};

/// A task that was read and checked: every duration parsed, every condition compiled once, every name allowed.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// What people call it.
    pub title: String,
    /// What it is for.
    pub description: String,
    /// What carries it out.
    pub agent: AgentKind,
    /// When it runs by itself; never, without one.
    pub schedule: Option<Schedule>,
    /// How it runs.
    pub policy: Policy,
    /// Who is told what of it.
    pub notify: Telling,
    /// What a run may be given.
    pub params: BTreeMap<String, Param>,
    /// Where secrets come from, by the name of the variable they become.
    pub secrets: BTreeMap<String, SecretSource>,
    /// What the `steps` agent does.
    pub steps: Vec<Step>,
    /// A CEL condition over all steps: marks the run for attention.
    pub attention: Option<String>,
    /// The one line that goes with `attention`.
    pub summary: Option<String>,
}

/// What carries out a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    /// The steps written in the task.
    #[default]
    Steps,
    /// A program elsewhere, which sends what happens.
    External,
    /// An agent for tests, which says what it is told to.
    #[cfg(feature = "failpoints")]
    #[serde(rename = "echo_model")]
    EchoModel,
}

impl AgentKind {
    /// Whether the work is done by a program that this server does not start.
    pub const fn is_elsewhere(self) -> bool {
        matches!(self, Self::External)
    }
}

/// When a task runs by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// At which moments.
    pub when: When,
    /// How much later than its moment a slot starts at most: another length for each.
    pub jitter: Option<Duration>,
    /// Whether all slots start later by a length that is the task's own.
    pub stagger: bool,
}

impl From<When> for Schedule {
    /// At the moments themselves.
    fn from(when: When) -> Self {
        Self { when, jitter: None, stagger: false }
    }
}

/// The moments of a schedule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum When {
    /// A cron expression in a zone.
    Cron {
        /// 5 or 6 fields, or `@hourly` and friends.
        expression: String,
        /// An IANA zone; the machine's own without.
        zone: Option<String>,
    },
    /// A fixed distance of elapsed time; at least one second.
    Every {
        /// The distance.
        period: Duration,
    },
    /// Once.
    At {
        /// As it was given: with an offset, or local time in `zone`.
        time: String,
        /// An IANA zone; the machine's own without.
        zone: Option<String>,
    },
}

/// What happens when a slot is due while a run of the task is not over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// The slot is skipped.
    #[default]
    Skip,
    /// The slot waits; at most [`Policy::queue_limit`] wait.
    Queue,
    /// The run is stopped, and the slot waits for its end.
    Replace,
    /// The slot runs beside it.
    Allow,
}

/// What happens to slots that passed while the server was down or the machine slept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Catchup {
    /// They are missed.
    None,
    /// The last one runs, if it is within the window.
    #[default]
    Last,
    /// Those within the window run, the newest of them: at most [`Policy::catchup_limit`].
    All,
}

/// What happens to a run whose server ended under it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrash {
    /// It stays interrupted.
    #[default]
    Fail,
    /// It is done once more.
    Retry,
}

/// How long it takes from the end of an attempt to the start of the next: from `first` on, doubled each time, at most
/// `longest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// Before the first retry, at least.
    pub first: Duration,
    /// Before any retry, at most.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(30), longest: Duration::from_secs(600) }
    }
}

impl fmt::Display for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&duration_text(self.first))?;
        if self.longest != self.first {
            write!(f, "..{}", duration_text(self.longest))?;
        }
        Ok(())
    }
}

impl FromStr for Backoff {
    type Err = String;

    /// Reads `30s..10m`, or one length of time for a wait that stays the same.
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, longest) = text.split_once("..").unwrap_or((text, text));
        let length = |text: &str| match duration(text)? {
            Duration::ZERO => Err(format!("{text:?} must be more than nothing")),
            // A millisecond is the finest that is kept, so that writing and reading give the same.
            length if length.subsec_nanos() % 1_000_000 != 0 => Err(format!("{text:?} must be whole milliseconds")),
            length => Ok(length),
        };
        if first.trim().is_empty() || longest.trim().is_empty() {
            return Err(format!("{text:?} is not a range of waits: write it like \"30s..10m\""));
        }
        let (first, longest) = (length(first.trim())?, length(longest.trim())?);
        if first > longest {
            return Err(format!("{text:?} begins with the longer one: write it like \"30s..10m\""));
        }
        Ok(Self { first, longest })
    }
}

impl<'de> Deserialize<'de> for Backoff {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a task runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// See [`Overlap`].
    pub overlap: Overlap,
    /// How many may wait with [`Overlap::Queue`]: 10 unless said.
    pub queue_limit: u32,
    /// See [`Catchup`].
    pub catchup: Catchup,
    /// How old a slot may be that is caught up; without: one period, at most 24 h (24 h for `at`).
    pub catchup_window: Option<Duration>,
    /// How many slots are caught up at once with [`Catchup::All`]: 10 unless said.
    pub catchup_limit: u32,
    /// How long a whole run may take.
    pub timeout: Duration,
    /// How long a run may say nothing; without: as long as it may take.
    pub idle_timeout: Option<Duration>,
    /// How often a run that failed is done once more.
    pub retries: u32,
    /// How long to wait before that.
    pub backoff: Backoff,
    /// The exit codes after which it is; none: after any failure.
    pub retry_on: Vec<u8>,
    /// See [`OnCrash`].
    pub on_crash: OnCrash,
    /// After how many failures in a row the task pauses itself; 0 is never.
    pub pause_after: u32,
    /// What is kept of its runs.
    pub keep: Keep,
    /// The pool of which its runs take a place, beside one of the server's.
    pub concurrency: Option<Arc<str>>,
}

/// What a task is read with: the policy of one that says nothing, and the pools and channels there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// The policy of a task that says nothing.
    pub policy: Policy,
    /// The pools of the configuration. None where any name is taken, as for a task of the store: it stays what it was
    /// when its pool goes.
    pub pools: Option<Arc<BTreeSet<String>>>,
    /// The channels of the configuration; none as with the pools.
    pub channels: Option<Arc<BTreeSet<String>>>,
}

impl Terms {
    /// Why there is no such pool; none where there is.
    pub fn no_such_pool(&self, name: &str) -> Option<String> {
        let pools = self.pools.as_ref().filter(|pools| !pools.contains(name))?;
        Some(match listed(pools) {
            None => format!("there is no pool {name:?}: name it with its size in [pools] of config.toml"),
            Some(known) => format!("there is no pool {name:?} in [pools] of config.toml: there are {known}"),
        })
    }

    /// Why there is no such channel; none where there is.
    pub fn no_such_channel(&self, name: &str) -> Option<String> {
        let channels = self.channels.as_ref().filter(|channels| !channels.contains(name))?;
        Some(match listed(channels) {
            None => format!("there is no channel {name:?}: set it up in [notify.channels] of config.toml"),
            Some(known) => {
                format!("there is no channel {name:?} in [notify.channels] of config.toml: there are {known}")
            }
        })
    }
}

/// Names as a sentence has them; nothing where there are none.
fn listed(names: &BTreeSet<String>) -> Option<String> {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

impl From<Policy> for Terms {
    /// With any pool and channel.
    fn from(policy: Policy) -> Self {
        Self { policy, pools: None, channels: None }
    }
}

impl From<&Policy> for Terms {
    fn from(policy: &Policy) -> Self {
        policy.clone().into()
    }
}

impl From<&Terms> for Terms {
    fn from(terms: &Terms) -> Self {
        terms.clone()
    }
}

impl Policy {
    /// The most [`Policy::retries`]: with the longest waits that is most of a day.
    pub const MAX_RETRIES: u32 = 100;
    /// The most [`Policy::pause_after`].
    pub const MAX_PAUSE_AFTER: u32 = 1000;
}

/// What is kept of a task; where it says nothing, what the server's `[retention]` says then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Keep {
    /// Ended runs, with their events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<u64>,
    /// Days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// Bytes of events and of stored outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Keep {
    /// The most [`Keep::days`], and the most days of anything else: a century.
    pub const MAX_DAYS: u32 = 36_525;

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            overlap: Overlap::default(),
            queue_limit: 10,
            catchup: Catchup::default(),
            catchup_window: None,
            catchup_limit: 10,
            timeout: Duration::from_secs(3600),
            idle_timeout: None,
            retries: 0,
            backoff: Backoff::default(),
            retry_on: Vec::new(),
            on_crash: OnCrash::default(),
            pause_after: 0,
            keep: Keep::default(),
            concurrency: None,
        }
    }
}

/// A parameter of a task.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Param {
    /// What it is when nothing is given; without one it must be given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<serde_json::Value>,
    /// One line for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub help: String,
}

/// Where the value of a secret comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    /// A variable of the server's environment.
    Env(String),
    /// A file; its last newline is taken off.
    File(PathBuf),
}

/// One step of the `steps` agent.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// How later steps speak of it: `[a-z][a-z0-9_]*`, unique within the task; `step1`, `step2`, ... unless given.
    pub name: String,
    /// A CEL condition over `params` and `steps`: the step is left out where it is false.
    pub when: Option<String>,
    /// What to say before; `${params.x}` and `${steps.x.output}` are filled in.
    pub thought: Option<String>,
    /// What to do.
    pub action: Action,
    /// A CEL condition over this step's result: marks the run for attention.
    pub attention: Option<String>,
    /// The one line that goes with `attention`.
    pub summary: Option<String>,
    /// How long this step may take; the run's own time without.
    pub timeout: Option<Duration>,
    /// What a failure of this step means.
    pub on_error: OnError,
}

/// What a step does.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// A shell command.
    Run {
        /// Given to `/bin/sh -c` as it stands: nothing is pasted into it.
        command: String,
    },
    /// An HTTP call.
    Http {
        /// `GET` unless given.
        method: String,
        /// An `http` or `https` address.
        url: String,
        /// Headers to send.
        headers: BTreeMap<String, String>,
        /// Body to send.
        body: Option<String>,
        /// The status codes that mean it worked; 200 to 299 without.
        expect_status: Vec<u16>,
        /// Hosts that may be loopback, private or link-local.
        allow_hosts: Vec<String>,
    },
    /// A file to write.
    Write {
        /// Where.
        path: PathBuf,
        /// What; `${...}` is filled in as in `thought`.
        content: String,
        /// Add to the end instead of replacing the file.
        append: bool,
    },
}

/// What a failure of a step means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnError {
    /// The run failed.
    #[default]
    Stop,
    /// The run goes on.
    Continue,
    /// The step is tried again so many times, then the run failed.
    Retry(u32),
}

/// The task file, in the order in which people write one. One shape for TOML and JSON; what is not set is left out,
/// what has a default from elsewhere is always written, so that reading it anywhere gives the same task.
#[derive(Serialize)]
struct Written<'d> {
    title: &'d str,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'d str,
    agent: AgentKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<&'d str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'d str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<&'d Schedule>,
    policy: &'d Policy,
    #[serde(skip_serializing_if = "is_default")]
    notify: &'d Telling,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    params: &'d BTreeMap<String, Param>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    secrets: &'d BTreeMap<String, SecretSource>,
    #[serde(skip_serializing_if = "<[Step]>::is_empty")]
    steps: &'d [Step],
}

impl Definition {
    fn written(&self) -> Written<'_> {
        Written {
            title: &self.title,
            description: &self.description,
            agent: self.agent,
            attention: self.attention.as_deref(),
            summary: self.summary.as_deref(),
            schedule: self.schedule.as_ref(),
            policy: &self.policy,
            notify: &self.notify,
            params: &self.params,
            secrets: &self.secrets,
            steps: &self.steps,
        }
    }

    /// The task as the API gives and takes it.
    pub fn to_json(&self) -> serde_json::Value {
        // Every key is text and every number is finite: there is nothing that could fail.
        serde_json::to_value(self.written()).unwrap_or_default()
    }

    /// The task as a file.
    ///
    /// # Errors
    /// Only where TOML cannot say what a definition holds, which reading one excludes.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(&self.written())
    }

    /// The SHA-256 of the task as JSON with sorted keys, 64 hex digits: the same for the same task, however it was
    /// written.
    pub fn hash(&self) -> String {
        let mut text = String::new();
        canonical(&self.to_json(), &mut text);
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn is_default(telling: &Telling) -> bool {
    *telling == Telling::default()
}

/// JSON with sorted keys and no spaces.
fn canonical(value: &serde_json::Value, text: &mut String) {
    match value {
        serde_json::Value::Object(members) => {
            text.push('{');
            let sorted: BTreeMap<&String, &serde_json::Value> = members.iter().collect();
            for (n, (name, member)) in sorted.into_iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                text.push_str(&serde_json::Value::from(name.as_str()).to_string());
                text.push(':');
                canonical(member, text);
            }
            text.push('}');
        }
        serde_json::Value::Array(items) => {
            text.push('[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                canonical(item, text);
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let zone = match &self.when {
            When::Cron { expression, zone } => {
                map.serialize_entry("cron", expression)?;
                zone
            }
            When::Every { period } => {
                map.serialize_entry("every", &duration_text(*period))?;
                &None
            }
            When::At { time, zone } => {
                map.serialize_entry("at", time)?;
                zone
            }
        };
        if let Some(zone) = zone {
            map.serialize_entry("tz", zone)?;
        }
        if let Some(jitter) = self.jitter {
            map.serialize_entry("jitter", &duration_text(jitter))?;
        }
        if self.stagger {
            map.serialize_entry("stagger", &true)?;
        }
        map.end()
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("overlap", &self.overlap)?;
        map.serialize_entry("queue_limit", &self.queue_limit)?;
        map.serialize_entry("catchup", &self.catchup)?;
        let window = self.catchup_window.map_or_else(|| "auto".to_owned(), duration_text);
        map.serialize_entry("catchup_window", &window)?;
        map.serialize_entry("catchup_limit", &self.catchup_limit)?;
        map.serialize_entry("timeout", &duration_text(self.timeout))?;
        let idle = self.idle_timeout.map_or_else(|| "none".to_owned(), duration_text);
        map.serialize_entry("idle_timeout", &idle)?;
        map.serialize_entry("retries", &self.retries)?;
        map.serialize_entry("backoff", &self.backoff.to_string())?;
        map.serialize_entry("retry_on", &self.retry_on)?;
        map.serialize_entry("on_crash", &self.on_crash)?;
        map.serialize_entry("pause_after", &self.pause_after)?;
        // What it leaves to the server stays the server's to say, also when that changes.
        if !self.keep.is_empty() {
            map.serialize_entry("keep", &self.keep)?;
        }
        if let Some(pool) = &self.concurrency {
            map.serialize_entry("concurrency", &**pool)?;
        }
        map.end()
    }
}

impl Serialize for SecretSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Env(variable) => map.serialize_entry("env", variable)?,
            Self::File(path) => map.serialize_entry("file", path)?,
        }
        map.end()
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        for (key, text) in [
            ("when", &self.when),
            ("thought", &self.thought),
            ("attention", &self.attention),
            ("summary", &self.summary),
        ] {
            if let Some(text) = text {
                map.serialize_entry(key, text)?;
            }
        }
        if let Some(timeout) = self.timeout {
            map.serialize_entry("timeout", &duration_text(timeout))?;
        }
        match self.on_error {
            OnError::Stop => {}
            OnError::Continue => map.serialize_entry("on_error", "continue")?,
            OnError::Retry(count) => map.serialize_entry("on_error", &count)?,
        }
        match &self.action {
            Action::Run { command } => map.serialize_entry("run", command)?,
            Action::Http { method, url, headers, body, expect_status, allow_hosts } => {
                let call = WrittenCall { method, url, body: body.as_deref(), expect_status, allow_hosts, headers };
                map.serialize_entry("http", &call)?;
            }
            Action::Write { path, content, append } => {
                map.serialize_entry("write", &WrittenFile { path, content, append: *append })?;
            }
        }
        map.end()
    }
}

/// The `http` table of a step.
#[derive(Serialize)]
struct WrittenCall<'d> {
    method: &'d str,
    url: &'d str,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'d str>,
    #[serde(skip_serializing_if = "<[u16]>::is_empty")]
    expect_status: &'d [u16],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    allow_hosts: &'d [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: &'d BTreeMap<String, String>,
}

/// The `write` table of a step.
#[derive(Serialize)]
struct WrittenFile<'d> {
    path: &'d std::path::Path,
    content: &'d str,
    append: bool,
}
