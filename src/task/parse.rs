//! Reads a task, from TOML as in `tasks/*.toml` or from JSON as the API takes it, and checks all of it.
//!
//! Both become the same small tree and go through the same checks. Whatever is wrong is found at once, each with the
//! key it is about and, in a file, the line and column to go to. Knows nothing of files; `folder.rs` does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value as Json;

use crate::config::place::{self, Place};
use crate::event::TaskId;
use crate::schedule::timing::Timing;
use crate::task::definition::{
    Action, AgentKind, Backoff, Catchup, Definition, Keep, OnCrash, OnError, Overlap, Param, Policy, Schedule,
    SecretSource, Step, Terms, When,
};

use reader::{Open, Reader, not_known};
pub use rules::MAX_CONDITION;
use rules::{NAME_RULE, check_secret_name, check_url, is_name};
use tree::{Data, Node, json_node, member_span, table_node};

mod reader;
mod rules;
mod telling;
mod tree;

/// The longest title, in characters: one line on a phone or two.
pub const MAX_TITLE: usize = 120;

/// How many steps a task may have.
pub const MAX_STEPS: usize = 256;

/// How often a step may be tried again.
pub const MAX_RETRIES: i64 = 100;

/// How many runs of a task may wait.
pub const MAX_QUEUE: i64 = 10_000;
/// The most runs or events that a task may be told to keep: more than any disk has room for.
const MAX_KEPT: i64 = 1_000_000_000_000;

/// One thing that is wrong with a task.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// The file, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// From 1; none where the task is no file, or the key is missing from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// In characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// What it is about, like `steps[1].timeout`; empty where it is about the whole.
    pub key: String,
    /// What is wrong and, where there is one, the way out.
    pub message: String,
}

impl Problem {
    /// A problem of no place in a file. `key` is empty where it is about the whole.
    pub fn of(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: None, line: None, column: None, key: key.into(), message: message.into() }
    }

    /// What is said of a task whose file is no longer there.
    pub fn file_is_gone() -> Self {
        Self::of("", "the file is gone: put it back, or remove the task")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            f.write_str(file)?;
            if let (Some(line), Some(column)) = (self.line, self.column) {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a task: at least one problem, in the order of the text.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// All of them.
    pub fn all(&self) -> &[Problem] {
        &self.0
    }

    /// The first, for where there is room for one.
    pub fn first(&self) -> &Problem {
        &self.0[0]
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A task as the API was given it.
#[derive(Clone, PartialEq, Debug)]
pub struct Posted {
    /// The id that was asked for.
    pub id: Option<TaskId>,
    /// Whether a task without a schedule runs at once; unless said, where its work is done here: a program
    /// elsewhere opens its runs itself.
    pub run: bool,
    /// The task.
    pub definition: Definition,
}

/// Reads a task file. `file` is its name for the problems; `terms` what a task is read with.
///
/// A single time in the past is no problem here, as a file stays when its time has come; whoever puts a *new or
/// changed* schedule in force asks [`crate::schedule::timing::check`].
///
/// # Errors
/// [`Problems`]: everything that is wrong with it.
pub fn from_toml<'t, T>(file: &str, text: &str, terms: &'t T) -> Result<Definition, Problems>
where
    Terms: From<&'t T>,
{
    let problem = |span: Option<Range<usize>>, key: String, message: String| {
        let place = span.map(|span| Place::of(text, span.start));
        Problem {
            file: Some(file.to_owned()),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            key,
            message,
        }
    };
    let table = place::table(text)
        .map_err(|error| Problems::from(problem(error.span(), String::new(), error.message().to_owned())))?;
    let root = Node { data: table_node(table.get_ref()), span: None };
    let mut reader = Reader::default();
    let definition = reader.definition(&root, &Terms::from(terms));
    reader.end(definition, problem)
}

/// Reads a task as the API takes it: the task file as JSON, and beside it `id` and `run`.
///
/// # Errors
/// [`Problems`]: everything that is wrong with it, without places.
pub fn from_json<'t, T>(value: &Json, terms: &'t T) -> Result<Posted, Problems>
where
    Terms: From<&'t T>,
{
    let mut reader = Reader::default();
    let mut value = value.clone();
    let mut id = None;
    let mut run = None;
    if let Json::Object(members) = &mut value {
        if let Some(given) = members.remove("id").filter(|given| !given.is_null()) {
            match given.as_str().map(str::parse) {
                Some(Ok(good)) => id = Some(good),
                Some(Err(bad)) => reader.wrong("id", None, format!("{bad}")),
                None => reader.wrong("id", None, "must be text".into()),
            }
        }
        if let Some(given) = members.remove("run").filter(|given| !given.is_null()) {
            match given.as_bool() {
                Some(given) => run = Some(given),
                None => reader.wrong("run", None, "must be true or false".into()),
            }
        }
    }
    let root = Node { data: json_node(&value), span: None };
    let definition = reader.definition(&root, &Terms::from(terms));
    let definition = reader.end(definition, without_place)?;
    let run = run.unwrap_or(!definition.agent.is_elsewhere());
    Ok(Posted { id, run, definition })
}

/// A task with some members replaced, as PATCH gives them: each as a whole, and null takes one away.
///
/// # Errors
/// [`Problems`]: everything that is wrong with the result, without places.
pub fn patched<'t, T>(old: &Definition, changes: &Json, terms: &'t T) -> Result<Definition, Problems>
where
    Terms: From<&'t T>,
{
    let whole = |key: &str, message: &str| Problems::from(without_place(None, key.into(), message.into()));
    let Json::Object(changes) = changes else {
        return Err(whole("", "must be an object"));
    };
    let mut task = old.to_json();
    for (key, change) in changes {
        match key.as_str() {
            "id" => return Err(whole("id", "the id of a task does not change: it is in links and logs")),
            "run" => return Err(whole("run", "a change starts no run: POST to its runs")),
            _ => {}
        }
        if let Json::Object(members) = &mut task {
            if change.is_null() {
                members.remove(key);
            } else {
                members.insert(key.clone(), change.clone());
            }
        }
    }
    from_json(&task, terms).map(|posted| posted.definition)
}

/// Reads a schedule alone, as it stands in a task: what is refused there is refused here.
///
/// # Errors
/// [`Problems`], with keys like `cron`.
pub fn schedule_from_json(value: &Json) -> Result<Schedule, Problems> {
    let mut reader = Reader::default();
    let schedule = reader.schedule("", &Node { data: json_node(value), span: None });
    reader.end(schedule, without_place)
}

/// The parameters of one run: the defaults of the task with `given` over them. A text that is given where the
/// default is a number, or true or false, is read as one: command lines know only text.
///
/// # Errors
/// [`Problems`]: a parameter that the task does not have, one without a default that is not given, and one of
/// another kind than its default.
pub fn run_params(task: &Definition, given: &Json) -> Result<BTreeMap<String, Json>, Problems> {
    let mut reader = Reader::default();
    let mut params: BTreeMap<String, Json> = BTreeMap::new();
    for (name, param) in &task.params {
        params.extend(param.default.clone().map(|default| (name.clone(), default)));
    }
    match given {
        Json::Null => {}
        Json::Object(members) => {
            for (name, value) in members {
                let key = format!("params.{name}");
                match task.params.get(name).map(|param| fitting(param.default.as_ref(), value)) {
                    Some(Ok(value)) => {
                        params.insert(name.clone(), value);
                    }
                    Some(Err(why)) => reader.wrong(key, None, why),
                    None => {
                        let known: Vec<&str> = task.params.keys().map(String::as_str).collect();
                        reader.wrong(key, None, not_known(name, &known));
                    }
                }
            }
        }
        _ => reader.wrong("params", None, "must be a table".into()),
    }
    for name in task.params.keys() {
        let key = format!("params.{name}");
        if !params.contains_key(name) && !reader.findings.iter().any(|finding| finding.key == key) {
            reader.wrong(key, None, "has no default and must be given".into());
        }
    }
    reader.end(Some(params), without_place)
}

/// A value that is given, as the kind of the default.
fn fitting(default: Option<&Json>, given: &Json) -> Result<Json, String> {
    let read = |kind: &str| match given {
        Json::String(text) => serde_json::from_str::<Json>(text.trim()).map_err(|_| format!("{text:?} is not {kind}")),
        other => Ok(other.clone()),
    };
    match default {
        Some(Json::Number(_)) => {
            read("a number")?.as_number().map(|n| Json::from(n.clone())).ok_or_else(|| "must be a number".into())
        }
        Some(Json::Bool(_)) => {
            read("true or false")?.as_bool().map(Json::from).ok_or_else(|| "must be true or false".into())
        }
        Some(_) if !given.is_string() => Err("must be text".into()),
        _ => match given {
            Json::String(text) if text.contains('\0') => Err("must not have a zero byte".into()),
            Json::String(_) | Json::Number(_) | Json::Bool(_) => Ok(given.clone()),
            _ => Err("must be text, a number, true or false".into()),
        },
    }
}

fn without_place(_: Option<Range<usize>>, key: String, message: String) -> Problem {
    Problem::of(key, message)
}

impl Reader {
    fn definition(&mut self, root: &Node, terms: &Terms) -> Option<Definition> {
        const KNOWN: [&str; 11] = [
            "title",
            "description",
            "agent",
            "schedule",
            "policy",
            "notify",
            "params",
            "secrets",
            "steps",
            "attention",
            "summary",
        ];
        let mut open = self.open("", root)?;
        let title = self.title(&mut open);
        let description = self.text(&mut open, "description").unwrap_or_default();
        let agent = self.agent(&mut open);
        let schedule = open.take("schedule").and_then(|node| self.schedule("schedule", node));
        let policy = match open.take("policy") {
            Some(node) => self.policy(node, terms),
            None => Some(terms.policy.clone()),
        };
        if agent.is_some_and(AgentKind::is_elsewhere)
            && policy.as_ref().is_some_and(|policy| policy.concurrency.is_some())
        {
            let span = member_span(open.take("policy"), "concurrency");
            let message = "agent \"external\" takes no places here: take it out, or agent".to_owned();
            self.wrong("policy.concurrency", span, message);
        }
        let notify = open.take("notify").map(|node| self.telling(node, terms)).unwrap_or_default();
        let params = open.take("params").map(|node| self.params(node)).unwrap_or_default();
        let secrets = open.take("secrets").map(|node| self.secrets(node)).unwrap_or_default();
        if schedule.is_some() {
            for (name, param) in &params {
                if param.default.is_none() {
                    let span = member_span(open.take("params"), name);
                    let message = "needs a default: nobody gives one when the task runs by its schedule".to_owned();
                    self.wrong(format!("params.{name}"), span, message);
                }
            }
        }
        let steps = match agent {
            #[cfg(feature = "failpoints")]
            Some(AgentKind::EchoModel) => {
                let _ = open.take("steps");
                Vec::new()
            }
            Some(AgentKind::External) => self.no_steps(&mut open),
            _ => self.steps(&mut open),
        };
        let attention = self.condition(&mut open, "attention");
        let summary = self.line(&mut open, "summary");
        if summary.is_some() && attention.is_none() && open.take("attention").is_none() {
            self.wrong(
                "summary",
                open.take("summary").and_then(|node| node.span.clone()),
                "goes with attention, which is not there".into(),
            );
        }
        for name in ["instruction", "command", "model"] {
            if let Some(node) = open.take(name) {
                let message = "no agent of this version takes it: write the work as [[steps]]".to_owned();
                self.wrong(name, node.span.clone(), message);
            }
        }
        self.close(open, &KNOWN, &["stagger", "keep", "allow", "deny", "on_approval"]);
        Some(Definition {
            title: title?,
            description,
            agent: agent?,
            schedule,
            policy: policy?,
            notify,
            params,
            secrets,
            steps,
            attention,
            summary,
        })
    }

    fn title(&mut self, open: &mut Open<'_>) -> Option<String> {
        let Some(node) = open.take("title") else {
            self.wrong("title", None, "is missing: a task needs a title".into());
            return None;
        };
        let title = self.line(open, "title")?.trim().to_owned();
        let length = title.chars().count();
        if length > MAX_TITLE {
            self.wrong("title", node.span.clone(), format!("has {length} characters, at most {MAX_TITLE} are taken"));
            return None;
        }
        if title.chars().any(char::is_control) {
            self.wrong("title", node.span.clone(), "must not have control characters".into());
            return None;
        }
        Some(title)
    }

    fn agent(&mut self, open: &mut Open<'_>) -> Option<AgentKind> {
        if open.take("agent").is_none() {
            return Some(AgentKind::default());
        }
        let words = [
            ("steps", Some(AgentKind::Steps)),
            ("external", Some(AgentKind::External)),
            #[cfg(feature = "failpoints")]
            ("echo_model", Some(AgentKind::EchoModel)),
            ("script", None),
            ("model", None),
            ("acp", None),
            ("claude", None),
            ("codex", None),
            ("gemini", None),
            ("opencode", None),
        ];
        self.word(open, "agent", &words)
    }

    fn schedule(&mut self, path: &str, node: &Node) -> Option<Schedule> {
        let mut open = self.open(path, node)?;
        let cron = self.filled(&mut open, "cron");
        let every = self.length(&mut open, "every");
        let at = match open.take("at").map(|node| &node.data) {
            Some(Data::Time(time)) => Some(time.clone()),
            _ => self.filled(&mut open, "at"),
        };
        let zone = self.filled(&mut open, "tz");
        let jitter = self.length(&mut open, "jitter");
        let stagger = self.flag(&mut open, "stagger").unwrap_or(false);
        let given: Vec<&str> = ["cron", "every", "at"].into_iter().filter(|name| open.take(name).is_some()).collect();
        let spans: BTreeMap<&str, Option<Range<usize>>> =
            SCHEDULE_KEYS.into_iter().filter_map(|name| Some((name, open.take(name)?.span.clone()))).collect();
        let header = open.span.clone();
        let [zone_key, keys] = [open.key("tz"), open.key("")];
        self.close(open, &SCHEDULE_KEYS, &[]);
        if given.len() != 1 {
            let message = if given.is_empty() {
                "needs one of cron, every and at".to_owned()
            } else {
                format!("takes one of cron, every and at, has {}", given.join(" and "))
            };
            self.wrong(path, header, message);
            return None;
        }
        let when = match (cron, every, at) {
            (Some(expression), _, _) => When::Cron { expression: expression.trim().to_owned(), zone },
            (_, Some(_), _) if zone.is_some() => {
                let message = "has no effect with every, which counts elapsed time: take it out".to_owned();
                self.wrong(zone_key, spans.get("tz").cloned().flatten(), message);
                return None;
            }
            (_, Some(period), _) => When::Every { period },
            (_, _, Some(time)) => When::At { time: time.trim().to_owned(), zone },
            _ => return None,
        };
        let schedule = Schedule { when, jitter, stagger };
        // The machine's zone stands in where none is given: whether a local time exists is asked again with it when
        // the schedule is put in force.
        if let Err(wrong) = Timing::new(&schedule, &TimeZone::system()) {
            self.wrong(format!("{keys}{}", wrong.key), spans.get(wrong.key).cloned().flatten(), wrong.message);
            return None;
        }
        Some(schedule)
    }

    fn policy(&mut self, node: &Node, terms: &Terms) -> Option<Policy> {
        const KNOWN: [&str; 14] = [
            "overlap",
            "queue_limit",
            "catchup",
            "catchup_window",
            "catchup_limit",
            "timeout",
            "idle_timeout",
            "retries",
            "backoff",
            "retry_on",
            "on_crash",
            "pause_after",
            "keep",
            "concurrency",
        ];
        let defaults = &terms.policy;
        let mut open = self.open("policy", node)?;
        let overlap = [
            ("skip", Some(Overlap::Skip)),
            ("queue", Some(Overlap::Queue)),
            ("replace", Some(Overlap::Replace)),
            ("allow", Some(Overlap::Allow)),
        ];
        let overlap = self.word(&mut open, "overlap", &overlap).unwrap_or(defaults.overlap);
        let catchup = [("none", Some(Catchup::None)), ("last", Some(Catchup::Last)), ("all", Some(Catchup::All))];
        let catchup = self.word(&mut open, "catchup", &catchup).unwrap_or(defaults.catchup);
        let queue_limit = self.number(&mut open, "queue_limit", 1, MAX_QUEUE);
        let catchup_limit = self.number(&mut open, "catchup_limit", 1, MAX_QUEUE);
        let catchup_window = match open.take("catchup_window").map(|node| &node.data) {
            Some(Data::Text(text)) if text == "auto" => None,
            Some(_) => self.length(&mut open, "catchup_window"),
            None => defaults.catchup_window,
        };
        let timeout = self.length(&mut open, "timeout").unwrap_or(defaults.timeout);
        let idle_timeout = match open.take("idle_timeout").map(|node| &node.data) {
            Some(Data::Text(text)) if text == "none" => None,
            Some(_) => self.length(&mut open, "idle_timeout"),
            None => defaults.idle_timeout,
        };
        let retries = self.number(&mut open, "retries", 0, Policy::MAX_RETRIES.into());
        let backoff = self.backoff(&mut open).unwrap_or(defaults.backoff);
        let retry_on = self.exit_codes(&mut open).unwrap_or_else(|| defaults.retry_on.clone());
        let on_crash = [("fail", Some(OnCrash::Fail)), ("retry", Some(OnCrash::Retry))];
        let on_crash = self.word(&mut open, "on_crash", &on_crash).unwrap_or(defaults.on_crash);
        let pause_after = self.number(&mut open, "pause_after", 0, Policy::MAX_PAUSE_AFTER.into());
        let keep = open.take("keep").map(|node| self.keep(node));
        let concurrency = self.pool(&mut open, terms);
        self.close(open, &KNOWN, &[]);
        Some(Policy {
            overlap,
            queue_limit: queue_limit.and_then(|n| u32::try_from(n).ok()).unwrap_or(defaults.queue_limit),
            catchup,
            catchup_window,
            catchup_limit: catchup_limit.and_then(|n| u32::try_from(n).ok()).unwrap_or(defaults.catchup_limit),
            timeout,
            idle_timeout,
            retries: retries.and_then(|n| u32::try_from(n).ok()).unwrap_or(defaults.retries),
            backoff,
            retry_on,
            on_crash,
            pause_after: pause_after.and_then(|n| u32::try_from(n).ok()).unwrap_or(defaults.pause_after),
            keep: keep.unwrap_or(defaults.keep),
            concurrency,
        })
    }

    fn pool(&mut self, open: &mut Open<'_>, terms: &Terms) -> Option<Arc<str>> {
        let span = open.take("concurrency").and_then(|node| node.span.clone());
        let name = self.line(open, "concurrency")?;
        if let Some(why) = terms.no_such_pool(&name) {
            self.wrong(open.key("concurrency"), span, why);
            return None;
        }
        Some(name.into())
    }

    fn backoff(&mut self, open: &mut Open<'_>) -> Option<Backoff> {
        let node = open.take("backoff")?;
        let read = match &node.data {
            Data::Text(text) => text.parse(),
            other => Err(format!("must be a range of waits like \"30s..10m\", is {}", other.name())),
        };
        read.map_err(|message| self.wrong(open.key("backoff"), node.span.clone(), message)).ok()
    }

    fn exit_codes(&mut self, open: &mut Open<'_>) -> Option<Vec<u8>> {
        let node = open.take("retry_on")?;
        let Data::List(items) = &node.data else {
            let message = format!("must be a list of exit codes like [75], is {}", node.data.name());
            self.wrong(open.key("retry_on"), node.span.clone(), message);
            return None;
        };
        let mut codes = BTreeSet::new();
        for item in items {
            match item.data {
                Data::Integer(code @ 1..=255) => codes.extend(u8::try_from(code)),
                Data::Integer(code) => {
                    let message = format!("{code} is not the exit code of a failure: those are from 1 to 255");
                    self.wrong(open.key("retry_on"), item.span.clone(), message);
                }
                ref other => {
                    let message = format!("must be a list of exit codes like [75], has {}", other.name());
                    self.wrong(open.key("retry_on"), item.span.clone(), message);
                }
            }
        }
        Some(codes.into_iter().collect())
    }

    /// What is kept of a task. Each key by itself: what is left out is the server's to say.
    fn keep(&mut self, node: &Node) -> Keep {
        let Some(mut open) = self.open("policy.keep", node) else { return Keep::default() };
        let number = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        let keep = Keep {
            runs: number(self.number(&mut open, "runs", 1, MAX_KEPT)),
            days: self
                .number(&mut open, "days", 1, i64::from(Keep::MAX_DAYS))
                .and_then(|days| u32::try_from(days).ok()),
            events: number(self.number(&mut open, "events", 1, MAX_KEPT)),
            bytes: self.size(&mut open, "bytes"),
        };
        self.close(open, &["runs", "days", "events", "bytes"], &[]);
        keep
    }

    fn params(&mut self, node: &Node) -> BTreeMap<String, Param> {
        let mut params = BTreeMap::new();
        let Some(open) = self.open("params", node) else {
            return params;
        };
        for (member, _) in &open.members {
            let path = open.key(&member.name);
            if !is_name(&member.name) {
                self.wrong(path, member.name_span.clone(), NAME_RULE.into());
                continue;
            }
            let Some(mut inner) = self.open(&path, &member.node) else {
                continue;
            };
            let default = inner.take("default").and_then(|node| match &node.data {
                Data::Text(text) if !text.contains('\0') => Some(Json::from(text.clone())),
                Data::Bool(value) => Some(Json::from(*value)),
                Data::Integer(number) => Some(Json::from(*number)),
                Data::Float(number) if number.is_finite() => Some(Json::from(*number)),
                other => {
                    let message = format!("must be text, a number, true or false; is {}", other.name());
                    self.wrong(inner.key("default"), node.span.clone(), message);
                    None
                }
            });
            let help = self.text(&mut inner, "help").unwrap_or_default();
            self.close(inner, &["default", "help"], &[]);
            params.insert(member.name.clone(), Param { default, help });
        }
        params
    }

    fn secrets(&mut self, node: &Node) -> BTreeMap<String, SecretSource> {
        let mut secrets = BTreeMap::new();
        let Some(open) = self.open("secrets", node) else {
            return secrets;
        };
        for (member, _) in &open.members {
            let path = open.key(&member.name);
            if let Err(why) = check_secret_name(&member.name) {
                self.wrong(path, member.name_span.clone(), why);
                continue;
            }
            let Some(mut inner) = self.open(&path, &member.node) else {
                continue;
            };
            let env = self.line(&mut inner, "env");
            let file = self.line(&mut inner, "file");
            let both = inner.take("env").is_some() && inner.take("file").is_some();
            let neither = inner.take("env").is_none() && inner.take("file").is_none();
            let span = inner.span.clone();
            self.close(inner, &["env", "file"], &[]);
            match (env, file) {
                (Some(env), None) if !both && env.contains('=') => {
                    self.wrong(path, span, format!("{env:?} is not the name of a variable"));
                }
                (Some(env), None) if !both => {
                    secrets.insert(member.name.clone(), SecretSource::Env(env));
                }
                (None, Some(file)) if !both => {
                    secrets.insert(member.name.clone(), SecretSource::File(PathBuf::from(file)));
                }
                _ if both || neither => {
                    self.wrong(
                        path,
                        span,
                        "takes one of { env = \"VARIABLE\" } and { file = \"path\" }; its value never stands in a task"
                            .into(),
                    );
                }
                _ => {}
            }
        }
        secrets
    }

    /// What only steps can do is refused where a program elsewhere does the work: it would never happen.
    fn no_steps(&mut self, open: &mut Open<'_>) -> Vec<Step> {
        for (name, what) in [
            ("steps", "carries out no steps: take them out, or agent"),
            ("secrets", "gets no secrets from here: give them to the program where it runs"),
            ("attention", "has no steps that a condition could speak of: the program says attention itself"),
        ] {
            let is_empty = |node: &Node| matches!(&node.data, Data::List(items) if items.is_empty());
            if let Some(node) = open.take(name).filter(|node| !is_empty(node)) {
                self.wrong(name, node.span.clone(), format!("agent \"external\" {what}"));
            }
        }
        Vec::new()
    }

    fn steps(&mut self, open: &mut Open<'_>) -> Vec<Step> {
        let Some(node) = open.take("steps") else {
            self.wrong("steps", None, "is missing: write at least one [[steps]]".into());
            return Vec::new();
        };
        let Data::List(items) = &node.data else {
            self.wrong("steps", node.span.clone(), format!("must be a list of steps, is {}", node.data.name()));
            return Vec::new();
        };
        if items.is_empty() {
            self.wrong("steps", node.span.clone(), "is empty: there is nothing to do".into());
        }
        if items.len() > MAX_STEPS {
            self.wrong("steps", node.span.clone(), format!("has {} steps, at most {MAX_STEPS} are taken", items.len()));
            return Vec::new();
        }
        let mut names = BTreeSet::new();
        let mut steps = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let path = format!("steps[{n}]");
            if let Some(step) = self.step(&path, n, item) {
                if !names.insert(step.name.clone()) {
                    let message = format!("another step is named {:?}", step.name);
                    let span = member_span(Some(item), "name").or(item.span.clone());
                    self.wrong(format!("{path}.name"), span, message);
                }
                steps.push(step);
            }
        }
        steps
    }

    fn step(&mut self, path: &str, n: usize, node: &Node) -> Option<Step> {
        const KNOWN: [&str; 10] =
            ["name", "when", "thought", "run", "http", "write", "attention", "summary", "timeout", "on_error"];
        let mut open = self.open(path, node)?;
        let name = match open.take("name") {
            None => Some(format!("step{}", n + 1)),
            Some(node) => self.line(&mut open, "name").filter(|name| {
                let good = is_name(name);
                if !good {
                    self.wrong(format!("{path}.name"), node.span.clone(), NAME_RULE.into());
                }
                good
            }),
        };
        let when = self.condition(&mut open, "when");
        let thought = self.filled(&mut open, "thought");
        let attention = self.condition(&mut open, "attention");
        let summary = self.line(&mut open, "summary");
        if let Some(node) = open.take("summary")
            && open.take("attention").is_none()
        {
            self.wrong(format!("{path}.summary"), node.span.clone(), "goes with attention, which is not there".into());
        }
        let timeout = self.length(&mut open, "timeout");
        let on_error = self.on_error(&mut open);
        let given: Vec<&str> = ["run", "http", "write"].into_iter().filter(|name| open.take(name).is_some()).collect();
        let action = match given[..] {
            ["run"] => self.filled(&mut open, "run").map(|command| Action::Run { command }),
            ["http"] => open.take("http").and_then(|node| self.http(&format!("{path}.http"), node)),
            ["write"] => open.take("write").and_then(|node| self.write(&format!("{path}.write"), node)),
            [] => {
                self.wrong(path, open.span.clone(), "does nothing: it needs one of run, http and write".into());
                None
            }
            _ => {
                let message = format!("does more than one thing: {}; make each a step", given.join(" and "));
                self.wrong(path, open.span.clone(), message);
                None
            }
        };
        self.close(open, &KNOWN, &["retries", "backoff", "idle_timeout"]);
        Some(Step { name: name?, when, thought, action: action?, attention, summary, timeout, on_error })
    }

    fn on_error(&mut self, open: &mut Open<'_>) -> OnError {
        let Some(node) = open.take("on_error") else {
            return OnError::default();
        };
        let wrong = match &node.data {
            Data::Text(text) if text == "stop" => return OnError::Stop,
            Data::Text(text) if text == "continue" => return OnError::Continue,
            Data::Integer(count) if (1..=MAX_RETRIES).contains(count) => {
                return u32::try_from(*count).map_or(OnError::Stop, OnError::Retry);
            }
            Data::Integer(count) => format!("{count} is not a number of retries from 1 to {MAX_RETRIES}"),
            Data::Text(text) => {
                format!("{text:?} is not known: there are \"stop\", \"continue\" and a number of retries")
            }
            other => format!("must be \"stop\", \"continue\" or a number of retries, is {}", other.name()),
        };
        self.wrong(open.key("on_error"), node.span.clone(), wrong);
        OnError::Stop
    }

    fn http(&mut self, path: &str, node: &Node) -> Option<Action> {
        const KNOWN: [&str; 6] = ["method", "url", "headers", "body", "expect_status", "allow_hosts"];
        const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        let mut open = self.open(path, node)?;
        let method = match open.take("method") {
            None => Some("GET".to_owned()),
            Some(node) => self.line(&mut open, "method").map(|method| method.to_uppercase()).filter(|method| {
                let good = METHODS.contains(&method.as_str());
                if !good {
                    let message = format!("{method:?} is not known: there are {}", METHODS.join(", "));
                    self.wrong(format!("{path}.method"), node.span.clone(), message);
                }
                good
            }),
        };
        let url = match open.take("url") {
            None => {
                self.wrong(format!("{path}.url"), open.span.clone(), "is missing".into());
                None
            }
            Some(node) => self.line(&mut open, "url").filter(|url| {
                let why = check_url(url).err();
                if let Some(why) = &why {
                    self.wrong(format!("{path}.url"), node.span.clone(), why.clone());
                }
                why.is_none()
            }),
        };
        let headers = open.take("headers").map(|node| self.headers(&format!("{path}.headers"), node));
        let body = self.text(&mut open, "body");
        let expect_status = self.statuses(&mut open);
        let allow_hosts = self.hosts(&mut open);
        self.close(open, &KNOWN, &[]);
        Some(Action::Http {
            method: method?,
            url: url?,
            headers: headers.unwrap_or_default(),
            body,
            expect_status,
            allow_hosts,
        })
    }

    fn headers(&mut self, path: &str, node: &Node) -> BTreeMap<String, String> {
        let mut headers = BTreeMap::new();
        let Some(mut open) = self.open(path, node) else {
            return headers;
        };
        let names: Vec<(String, Option<Range<usize>>)> =
            open.members.iter().map(|(member, _)| (member.name.clone(), member.name_span.clone())).collect();
        for (name, span) in names {
            if reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
                self.wrong(open.key(&name), span, "is not the name of a header".into());
                continue;
            }
            if let Some(value) = self.text(&mut open, &name) {
                if reqwest::header::HeaderValue::from_str(&value).is_err() {
                    self.wrong(open.key(&name), span, "is not the value of a header".into());
                    continue;
                }
                headers.insert(name, value);
            }
        }
        headers
    }

    fn statuses(&mut self, open: &mut Open<'_>) -> Vec<u16> {
        let Some(node) = open.take("expect_status") else {
            return Vec::new();
        };
        let one = std::slice::from_ref(node);
        let items = if let Data::List(items) = &node.data { items.as_slice() } else { one };
        let mut statuses = Vec::new();
        for item in items {
            match item.data {
                Data::Integer(status @ 100..=599) => statuses.extend(u16::try_from(status)),
                _ => {
                    let message = "must be a status from 100 to 599, or a list of them".to_owned();
                    self.wrong(open.key("expect_status"), item.span.clone(), message);
                }
            }
        }
        statuses
    }

    fn hosts(&mut self, open: &mut Open<'_>) -> Vec<String> {
        let Some(node) = open.take("allow_hosts") else {
            return Vec::new();
        };
        let Data::List(items) = &node.data else {
            let message = format!("must be a list of hosts, is {}", node.data.name());
            self.wrong(open.key("allow_hosts"), node.span.clone(), message);
            return Vec::new();
        };
        let mut hosts = Vec::new();
        for item in items {
            match &item.data {
                Data::Text(host) if !host.is_empty() && !host.contains(['/', ' ', '*', '@']) => {
                    hosts.push(host.clone())
                }
                _ => {
                    let message =
                        "must be a list of host names or addresses, without scheme, path or wildcard".to_owned();
                    self.wrong(open.key("allow_hosts"), item.span.clone(), message);
                }
            }
        }
        hosts
    }

    fn write(&mut self, path: &str, node: &Node) -> Option<Action> {
        let mut open = self.open(path, node)?;
        for name in ["path", "content"] {
            if open.take(name).is_none() {
                self.wrong(format!("{path}.{name}"), open.span.clone(), "is missing".into());
            }
        }
        let target = self.line(&mut open, "path");
        let content = self.text(&mut open, "content");
        let append = self.flag(&mut open, "append").unwrap_or(false);
        self.close(open, &["path", "content", "append"], &[]);
        Some(Action::Write { path: PathBuf::from(target?), content: content?, append })
    }
}

/// The members of a schedule.
const SCHEDULE_KEYS: [&str; 6] = ["cron", "every", "at", "tz", "jitter", "stagger"];
