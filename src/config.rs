//! What the server is told by `config.toml` and by its environment.
//!
//! A value comes from the defaults below, then from the file, then from `REJOIN__SECTION__KEY`. Nothing here is
//! looked up again later: the server reads it once and hands the parts on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

pub use channels::Notify;
pub use pools::{PoolName, PoolSize};
pub use trust::{Untrusted, trusted};

use place::{Place, key_at, table};

use crate::store::Durability;
use crate::task::definition::{Backoff, Catchup, Keep, OnCrash, Overlap, Policy, Terms};

pub mod channels;
pub mod place;
pub mod pools;
pub mod trust;
pub mod units;

/// The file that is read from the working directory when none is named.
pub const DEFAULT_FILE: &str = "config.toml";

/// What variables of the environment that override a key begin with.
pub const PREFIX: &str = "REJOIN__";

/// Sections that other versions know: named, so that nobody believes they are in force.
const NOT_IN_THIS_VERSION: [&str; 2] = ["agents", "tls"];

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// Where the log, the socket and the token are kept.
    pub data_dir: PathBuf,
    /// Where task files are read from.
    pub tasks_dir: PathBuf,
    /// Names, beside loopback, that `Host` may have; without port.
    pub allowed_hosts: Vec<String>,
    /// Proxies whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<Network>,
    /// What a power cut may take.
    pub durability: Durability,
    /// Signing in.
    pub auth: Auth,
    /// Live watching.
    pub stream: Stream,
    /// Runs.
    pub runs: Runs,
    /// The pools, each with its size: how many runs of the tasks that name it are at work at once.
    pub pools: BTreeMap<PoolName, PoolSize>,
    /// Schedules, and the policy of tasks that say nothing.
    pub schedule: ScheduleDefaults,
    /// Telling people by other ways than the page.
    pub notify: Notify,
    /// What is kept.
    pub retention: Retention,
    /// What the server does for itself.
    pub housekeeping: Housekeeping,
    /// Copies of the store that it makes by itself.
    pub backup: Backup,
    /// Who may read `/metrics`, and how much is there.
    pub metrics: Metrics,
    /// The server's own log.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7171)),
            data_dir: "data".into(),
            tasks_dir: "tasks".into(),
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            durability: Durability::default(),
            auth: Auth::default(),
            stream: Stream::default(),
            runs: Runs::default(),
            pools: BTreeMap::new(),
            schedule: ScheduleDefaults::default(),
            notify: Notify::default(),
            retention: Retention::default(),
            housekeeping: Housekeeping::default(),
            backup: Backup::default(),
            metrics: Metrics::default(),
            log: Log::default(),
        }
    }
}

/// Signing in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// How many days a browser stays signed in after it was last seen.
    pub session_days: u32,
    /// How long a one-time sign-in code is good.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub code_life: Duration,
}

impl Default for Auth {
    fn default() -> Self {
        Self { session_days: 30, code_life: Duration::from_secs(60) }
    }
}

/// Live watching: the limits and times of `docs/protocol.md`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// How often the server says that it is there.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub heartbeat: Duration,
    /// After how long without a byte the other side is taken for dead; more than `heartbeat`.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub life: Duration,
    /// How long a new socket may take to say hello.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub hello_deadline: Duration,
    /// How many of a task's last events are kept in memory.
    pub ring_events: usize,
    /// How many bytes of a task's last events are kept in memory.
    #[serde(deserialize_with = "units::as_bytes::deserialize")]
    pub ring_bytes: u64,
    /// How many bytes of events are kept in memory for all tasks together.
    #[serde(deserialize_with = "units::as_bytes::deserialize")]
    pub ring_total_bytes: u64,
    /// How long after its last event a task's events stay in memory.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub ring_idle: Duration,
    /// How many missed events are replayed; a watcher that missed more gets a snapshot.
    pub replay_events: u64,
    /// How many bytes of missed events are replayed.
    #[serde(deserialize_with = "units::as_bytes::deserialize")]
    pub replay_bytes: u64,
    /// A watcher that takes fewer bytes than this in `slow_window` while data waits is closed, to come back later.
    #[serde(deserialize_with = "units::as_bytes::deserialize")]
    pub slow_bytes: u64,
    /// See `slow_bytes`.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub slow_window: Duration,
    /// How many pages of the log are read at once.
    pub page_reads: usize,
    /// How many sockets there are at most.
    pub connections: usize,
    /// How many sockets one credential has at most.
    pub connections_per_credential: usize,
    /// How many sockets there are at most that have not yet shown a credential.
    pub unauthenticated: usize,
    /// How many tasks one socket watches at most.
    pub subscriptions: usize,
    /// How many events of one run wait for the log before its agent has to wait.
    pub queue_events: usize,
    /// How many bytes of one run wait for the log before its agent has to wait.
    #[serde(deserialize_with = "units::as_bytes::deserialize")]
    pub queue_bytes: u64,
    /// How many bytes of all runs together wait for the log.
    #[serde(deserialize_with = "units::as_bytes::deserialize")]
    pub queue_total_bytes: u64,
    /// Over how long a stop of the server spreads the goodbyes to its watchers, at most.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub drain: Duration,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(20),
            life: Duration::from_secs(35),
            hello_deadline: Duration::from_secs(10),
            ring_events: 1024,
            ring_bytes: 1 << 20,
            ring_total_bytes: 256 << 20,
            ring_idle: Duration::from_secs(300),
            replay_events: 20_000,
            replay_bytes: 16 << 20,
            slow_bytes: 16 << 10,
            slow_window: Duration::from_secs(10),
            page_reads: 8,
            connections: 10_000,
            connections_per_credential: 64,
            unauthenticated: 256,
            subscriptions: 256,
            queue_events: 1024,
            queue_bytes: 4 << 20,
            queue_total_bytes: 64 << 20,
            drain: Duration::from_secs(30),
        }
    }
}

/// Runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runs {
    /// How many runs there are at once; 0 is twice the number of cores. See [`Runs::places`].
    pub concurrency: usize,
    /// How long runs may go on when the server is told to end.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub shutdown_grace: Duration,
    /// When, after the SIGINT of a stop, SIGTERM follows.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub stop_term: Duration,
    /// When, after the SIGINT of a stop, SIGKILL follows.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub stop_kill: Duration,
    /// When, after the SIGINT of a stop, the run ends even if a process cannot be ended.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub stop_give_up: Duration,
    /// A run that a program elsewhere carries out ends when nothing was heard of it for so long.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub external_lease: Duration,
    /// How long such a program has to end its run itself when it is asked to stop.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub external_stop: Duration,
}

impl Runs {
    /// How many runs there are at once: what was set, else twice the number of cores.
    pub fn places(&self) -> usize {
        match self.concurrency {
            0 => 2 * std::thread::available_parallelism().map_or(1, usize::from),
            set => set,
        }
    }
}

impl Default for Runs {
    fn default() -> Self {
        Self {
            concurrency: 0,
            shutdown_grace: Duration::from_secs(10),
            stop_term: Duration::from_secs(5),
            stop_kill: Duration::from_secs(15),
            stop_give_up: Duration::from_secs(20),
            external_lease: Duration::from_secs(60),
            external_stop: Duration::from_secs(10),
        }
    }
}

/// Schedules, and the policy of tasks that say nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleDefaults {
    /// See [`Policy::overlap`].
    pub overlap: Overlap,
    /// See [`Policy::queue_limit`].
    pub queue_limit: u32,
    /// See [`Policy::catchup`].
    pub catchup: Catchup,
    /// See [`Policy::catchup_window`]; `auto` is none.
    #[serde(deserialize_with = "auto_or_duration")]
    pub catchup_window: Option<Duration>,
    /// See [`Policy::catchup_limit`].
    pub catchup_limit: u32,
    /// See [`Policy::timeout`].
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub timeout: Duration,
    /// See [`Policy::idle_timeout`]; `none` is none.
    #[serde(deserialize_with = "none_or_duration")]
    pub idle_timeout: Option<Duration>,
    /// See [`Policy::retries`].
    pub retries: u32,
    /// See [`Policy::backoff`].
    pub backoff: Backoff,
    /// See [`Policy::retry_on`].
    pub retry_on: Vec<u8>,
    /// See [`Policy::on_crash`].
    pub on_crash: OnCrash,
    /// See [`Policy::pause_after`].
    pub pause_after: u32,
    /// How often due slots are looked for in any case. Time that passes is meant, which nobody can set: a clock that was
    /// set is noticed within this, whatever becomes of the bell.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub look_again: Duration,
}

impl ScheduleDefaults {
    /// The most [`ScheduleDefaults::look_again`]: less often, a clock that jumped and was set right again would not be seen.
    pub const LONGEST_LOOK: Duration = Duration::from_secs(60);

    /// The policy of a task that says nothing.
    pub fn policy(&self) -> Policy {
        Policy {
            overlap: self.overlap,
            queue_limit: self.queue_limit,
            catchup: self.catchup,
            catchup_window: self.catchup_window,
            catchup_limit: self.catchup_limit,
            timeout: self.timeout,
            idle_timeout: self.idle_timeout,
            retries: self.retries,
            backoff: self.backoff,
            retry_on: self.retry_on.clone(),
            on_crash: self.on_crash,
            pause_after: self.pause_after,
            // Each task's own, or what `[retention]` says when it is asked.
            keep: Keep::default(),
            concurrency: None,
        }
    }
}

impl Default for ScheduleDefaults {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            overlap: policy.overlap,
            queue_limit: policy.queue_limit,
            catchup: policy.catchup,
            catchup_window: policy.catchup_window,
            catchup_limit: policy.catchup_limit,
            timeout: policy.timeout,
            idle_timeout: policy.idle_timeout,
            retries: policy.retries,
            backoff: policy.backoff,
            retry_on: policy.retry_on,
            on_crash: policy.on_crash,
            pause_after: policy.pause_after,
            look_again: Duration::from_secs(1),
        }
    }
}

/// What is kept of each task.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Ended runs.
    pub runs: u64,
    /// Days.
    pub days: u32,
    /// Events.
    pub events: u64,
    /// Bytes, stored outputs included.
    #[serde(deserialize_with = "units::as_bytes::deserialize")]
    pub bytes: u64,
    /// Ended runs of which is known how they ended, and due times of which is known what became of them: beyond what
    /// their events are kept.
    pub history: u64,
    /// How often what is no longer kept is removed.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub every: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            runs: 100,
            days: 90,
            events: 1_000_000,
            bytes: 1 << 30,
            history: 10_000,
            every: Duration::from_secs(600),
        }
    }
}

/// What the server does for itself, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Housekeeping {
    /// How often the write-ahead log is emptied and cut.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub checkpoint: Duration,
    /// How often room that the store no longer needs is given back.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub vacuum: Duration,
    /// How often the store is looked through for damage.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub integrity: Duration,
}

impl Default for Housekeeping {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self { checkpoint: HOUR, vacuum: HOUR, integrity: HOUR * 24 * 7 }
    }
}

/// Copies of the store that the server makes by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// Where they are put; nowhere, and none are made, where this is empty.
    pub folder: PathBuf,
    /// How often.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub every: Duration,
    /// How many are kept.
    pub keep: u32,
    /// Whether stored outputs are in them.
    pub outputs: bool,
}

impl Default for Backup {
    fn default() -> Self {
        Self { folder: PathBuf::new(), every: Duration::from_secs(24 * 3600), keep: 7, outputs: true }
    }
}

/// `/metrics`, for Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Whether it is shown to everybody who reaches the server, without a credential.
    pub open: bool,
    /// How many tasks have series of their own: the oldest ones. 0 is none.
    pub tasks: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { open: false, tasks: 100 }
    }
}

/// The server's own log, on standard error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What is logged, as `tracing` writes it: `info`, `rejoin=debug`.
    pub filter: String,
    /// How.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

/// How the server's own log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// An address, or all addresses with the same beginning: `10.0.0.7`, `10.0.0.0/8`, `fd00::/8`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether an address is in it. An IPv4 address written as IPv6 counts as IPv4.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.prefix);
                a.to_bits().checked_shr(shift) == b.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.prefix);
                a.to_bits().checked_shr(shift) == b.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an address like \"10.0.0.7\" or a network like \"10.0.0.0/8\"");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(longest), str::parse).map_err(|_| wrong())?;
        if prefix > longest {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads `auto` or a length of time.
fn auto_or_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    word_or_duration("auto", from)
}

/// Reads `none` or a length of time.
fn none_or_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    word_or_duration("none", from)
}

fn word_or_duration<'de, D: Deserializer<'de>>(word: &str, from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    if text == word {
        return Ok(None);
    }
    units::duration(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Why the configuration is not taken. One line; says where and what to do.
#[derive(Debug)]
pub struct ConfigError {
    /// The file or the variable.
    pub source_name: String,
    /// Where in the file.
    pub place: Option<Place>,
    /// The dotted key; empty where the text as a whole is wrong.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source_name)?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads `path`, or `config.toml` in the working directory if there is one, and the environment. Relative paths
    /// in it are relative to the file, without a file to the working directory.
    ///
    /// # Errors
    /// [`ConfigError`] where a file that was named is not there, may be written by others, or says what is not
    /// understood; and where a variable of the environment does.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let found = match path {
            Some(path) => Some(path),
            None => Some(Path::new(DEFAULT_FILE)).filter(|path| path.exists()),
        };
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
            Some((name, value.to_string_lossy().into_owned()))
        });
        let environment: BTreeMap<String, String> = environment.collect();
        let Some(path) = found else {
            return Self::from_text(None, "", &environment);
        };
        let name = path.display().to_string();
        let wrong =
            |message: String| ConfigError { source_name: name.clone(), place: None, key: String::new(), message };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        trusted(path).map_err(|why| wrong(why.to_string()))?;
        Self::from_text(Some(path), &text, &environment)
    }

    /// Reads a text as the file `path` would be read, with these variables of the environment.
    ///
    /// # Errors
    /// [`ConfigError`], as [`Config::load`].
    pub fn from_text(
        path: Option<&Path>,
        text: &str,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let name = path.map_or_else(|| DEFAULT_FILE.to_owned(), |path| path.display().to_string());
        let at = |offset: usize, message: String| ConfigError {
            source_name: name.clone(),
            place: Some(Place::of(text, offset)),
            key: key_at(text, offset),
            message,
        };
        let in_text =
            |error: &toml::de::Error| at(error.span().map_or(0, |span| span.start), error.message().to_owned());
        let spanned = table(text).map_err(|error| in_text(&error))?;
        for (key, _) in spanned.get_ref() {
            if NOT_IN_THIS_VERSION.contains(&key.get_ref().as_ref()) {
                return Err(at(key.span().start, "not in this version".into()));
            }
        }
        let mut config: Self = toml::from_str(text).map_err(|error| in_text(&error))?;
        if !environment.is_empty() {
            config = Self::with_environment(text, environment, &name)?;
        }
        if let Err((key, message)) = config.check() {
            let variable = format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"));
            let from_environment = environment.contains_key(&variable);
            let (section, field) = key.split_once('.').unwrap_or(("", key));
            let offset = find(spanned.get_ref(), section, field).filter(|_| !from_environment);
            return Err(ConfigError {
                source_name: if from_environment { variable } else { name },
                place: offset.map(|offset| Place::of(text, offset)),
                key: key.into(),
                message,
            });
        }
        let folder = path.and_then(Path::parent).unwrap_or(Path::new(""));
        config.data_dir = folder.join(&config.data_dir);
        config.tasks_dir = folder.join(&config.tasks_dir);
        if !config.backup.folder.as_os_str().is_empty() {
            config.backup.folder = folder.join(&config.backup.folder);
        }
        config.notify.place(folder);
        Ok(config)
    }

    /// The file with the variables of the environment over it, one after the other, so that an error can name its
    /// variable.
    fn with_environment(text: &str, environment: &BTreeMap<String, String>, name: &str) -> Result<Self, ConfigError> {
        let wrong = |source_name: &str, key: &str, message: String| ConfigError {
            source_name: source_name.to_owned(),
            place: None,
            key: key.to_owned(),
            message,
        };
        let mut table: Table = toml::from_str(text).map_err(|error| wrong(name, "", error.message().to_owned()))?;
        let mut config = Self::default();
        for (variable, value) in environment {
            let name = variable.strip_prefix(PREFIX).unwrap_or(variable);
            let path: Vec<String> = name.split("__").map(str::to_lowercase).collect();
            let key = path.join(".");
            if path.iter().any(String::is_empty) || path.len() > 2 {
                return Err(wrong(variable, "", "a key is named like REJOIN__LISTEN or REJOIN__LOG__FILTER".into()));
            }
            if NOT_IN_THIS_VERSION.contains(&path[0].as_str()) {
                return Err(wrong(variable, &key, "not in this version".into()));
            }
            // A value is TOML where it can be (`30`, `true`, `["a"]`), else text as it stands. Text is tried second
            // also where TOML reads something that the key does not take, like a filter that is a number.
            let typed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
            let text = Value::String(value.clone());
            let attempts = typed.into_iter().chain([text]);
            let mut first_error = None;
            let mut taken = None;
            for attempt in attempts {
                let mut with = table.clone();
                put(&mut with, &path, attempt);
                match Self::deserialize(Value::Table(with.clone())) {
                    Ok(read) => {
                        taken = Some((with, read));
                        break;
                    }
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
            let Some((with, read)) = taken else {
                let message = first_error.map_or_else(String::new, |error| error.message().to_owned());
                return Err(wrong(variable, &key, message));
            };
            table = with;
            config = read;
        }
        Ok(config)
    }

    /// What tasks are read with.
    pub fn terms(&self) -> Terms {
        let pools = self.pools.keys().map(|name| name.as_str().to_owned()).collect();
        let channels = self.notify.channels.keys().cloned().collect();
        Terms { policy: self.schedule.policy(), pools: Some(Arc::new(pools)), channels: Some(Arc::new(channels)) }
    }

    /// What the types alone do not say. The key and what is wrong with it.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let above_nothing = [
            ("auth.session_days", u64::from(self.auth.session_days)),
            ("auth.code_life", self.auth.code_life.as_secs()),
            ("stream.heartbeat", millis(self.stream.heartbeat)),
            ("stream.hello_deadline", millis(self.stream.hello_deadline)),
            ("stream.ring_events", self.stream.ring_events as u64),
            ("stream.ring_bytes", self.stream.ring_bytes),
            ("stream.ring_total_bytes", self.stream.ring_total_bytes),
            ("stream.ring_idle", millis(self.stream.ring_idle)),
            ("stream.replay_events", self.stream.replay_events),
            ("stream.replay_bytes", self.stream.replay_bytes),
            ("stream.slow_window", millis(self.stream.slow_window)),
            ("stream.page_reads", self.stream.page_reads as u64),
            ("stream.connections", self.stream.connections as u64),
            ("stream.connections_per_credential", self.stream.connections_per_credential as u64),
            ("stream.unauthenticated", self.stream.unauthenticated as u64),
            ("stream.subscriptions", self.stream.subscriptions as u64),
            ("stream.queue_events", self.stream.queue_events as u64),
            ("stream.queue_bytes", self.stream.queue_bytes),
            ("stream.queue_total_bytes", self.stream.queue_total_bytes),
            ("schedule.queue_limit", u64::from(self.schedule.queue_limit)),
            ("schedule.catchup_limit", u64::from(self.schedule.catchup_limit)),
            ("schedule.timeout", millis(self.schedule.timeout)),
            ("schedule.look_again", millis(self.schedule.look_again)),
            ("retention.runs", self.retention.runs),
            ("retention.days", u64::from(self.retention.days)),
            ("retention.events", self.retention.events),
            ("retention.bytes", self.retention.bytes),
            ("retention.history", self.retention.history),
            ("retention.every", millis(self.retention.every)),
            ("housekeeping.checkpoint", millis(self.housekeeping.checkpoint)),
            ("housekeeping.vacuum", millis(self.housekeeping.vacuum)),
            ("housekeeping.integrity", millis(self.housekeeping.integrity)),
            ("backup.every", millis(self.backup.every)),
            ("backup.keep", u64::from(self.backup.keep)),
        ];
        if let Some((key, _)) = above_nothing.iter().find(|(_, value)| *value == 0) {
            return Err((key, "must be more than nothing".into()));
        }
        if self.schedule.catchup_window == Some(Duration::ZERO) {
            return Err(("schedule.catchup_window", "must be more than nothing; catchup = \"none\" is never".into()));
        }
        if self.schedule.idle_timeout == Some(Duration::ZERO) {
            return Err(("schedule.idle_timeout", "must be more than nothing; \"none\" is never".into()));
        }
        let at_most = [
            ("schedule.retries", self.schedule.retries, Policy::MAX_RETRIES),
            ("schedule.pause_after", self.schedule.pause_after, Policy::MAX_PAUSE_AFTER),
            // Farther than a century no calendar can be trusted to count.
            ("retention.days", self.retention.days, Keep::MAX_DAYS),
            ("auth.session_days", self.auth.session_days, Keep::MAX_DAYS),
        ];
        if let Some((key, _, most)) = at_most.iter().find(|(_, value, most)| value > most) {
            return Err((key, format!("must be at most {most}")));
        }
        if self.schedule.look_again > ScheduleDefaults::LONGEST_LOOK {
            return Err((
                "schedule.look_again",
                "must be at most 1m: less often, a clock that jumps is not seen".into(),
            ));
        }
        if self.schedule.retry_on.contains(&0) {
            return Err(("schedule.retry_on", "0 is not the exit code of a failure: those are from 1 to 255".into()));
        }
        if self.stream.life <= self.stream.heartbeat {
            return Err(("stream.life", "must be more than stream.heartbeat, or every watcher is cut off".into()));
        }
        let Runs { stop_term, stop_kill, stop_give_up, .. } = self.runs;
        if stop_kill < stop_term {
            return Err(("runs.stop_kill", "must not be before runs.stop_term".into()));
        }
        if stop_give_up < stop_kill {
            return Err(("runs.stop_give_up", "must not be before runs.stop_kill".into()));
        }
        self.notify.check()?;
        let bad_host = |host: &&String| host.is_empty() || host.contains(['/', '*', ' ']) || host.contains("://");
        if let Some(host) = self.allowed_hosts.iter().find(bad_host) {
            return Err(("allowed_hosts", format!("{host:?} is not a host name: no scheme, path or wildcard")));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&self.log.filter) {
            return Err(("log.filter", error.to_string()));
        }
        Ok(())
    }
}

/// Whole milliseconds; what is longer than they can count is the most they can.
fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// Where `section.field`, or the top key `field`, stands in the text.
fn find(table: &toml::de::DeTable<'_>, section: &str, field: &str) -> Option<usize> {
    let named = |table: &toml::de::DeTable<'_>, name: &str| {
        table.iter().find(|(key, _)| key.get_ref() == name).map(|(key, _)| key.span().start)
    };
    if section.is_empty() {
        return named(table, field);
    }
    let inner = table.get(section)?.get_ref().as_table()?;
    named(inner, field)
}

/// Puts a value under a path of one or two names.
fn put(table: &mut Table, path: &[String], value: Value) {
    match path {
        [key] => {
            table.insert(key.clone(), value);
        }
        [section, rest @ ..] => {
            let inner = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            } else {
                // The section is no table: let reading it say so.
                *inner = value;
            }
        }
        [] => {}
    }
}
