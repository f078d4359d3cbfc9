//! The JSON of tasks, as clients see them: on pages, in frames and in snapshots the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::Connection;
use serde::Serialize;
use serde_json::{Value, json};

use crate::event::{Seq, TaskId};
use crate::record::{Run, RunState, wire_time};
use crate::run::attention::{self, Open};
use crate::run::places::{PoolState, Waits, What};
use crate::run::queue;
use crate::schedule::words::words;
use crate::store::{Store, StoreError};
use crate::stream::offer::cut_middle;
use crate::stream::publish::Publisher;
use crate::task::parse::Problem;
use crate::task::registry::{Registry, Task};

/// A task as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// What people call it.
    pub title: String,
    /// What it is for.
    pub description: String,
    /// What carries it out.
    pub agent: Value,
    /// `idle`, `queued`, `running`, `waiting`, `paused` or `error`.
    pub state: &'static str,
    /// Whether it runs by itself: false when it is paused or its file is gone.
    pub enabled: bool,
    /// `file` or `store`.
    pub source: Value,
    /// What is wrong with its file; the last good version stays in force.
    pub error: Option<Problem>,
    /// When it runs by itself.
    pub schedule: Value,
    /// The same in words.
    pub schedule_words: Option<String>,
    /// How it runs.
    pub policy: Value,
    /// What a run may be given.
    pub params: Value,
    /// The next slot.
    #[serde(with = "wire_time::option")]
    pub next_at: Option<Timestamp>,
    /// When it starts, where that is later: `jitter` and `stagger`.
    #[serde(with = "wire_time::option")]
    pub next_planned_for: Option<Timestamp>,
    /// The newest run.
    pub last_run: Option<Run>,
    /// The newest run that has ended.
    pub last_ended: Option<Run>,
    /// How many runs are not over.
    pub active_runs: usize,
    /// What it has found and nobody has answered.
    pub attention: Option<Open>,
    /// Its log.
    #[serde(rename = "gen")]
    pub generation: Option<String>,
    /// The first event still there.
    pub oldest: Seq,
    /// The last event.
    pub head: Seq,
}

impl TaskView {
    /// The same as JSON within so many bytes. What does not fit is cut: long texts first, then the parameters;
    /// `truncated` says so, and the whole is at `GET /api/v1/tasks/{task}`.
    pub fn fitted(&self, most: usize) -> Value {
        let mut value = json!(self);
        let fits = |value: &Value| value.to_string().len() <= most;
        if fits(&value) {
            return value;
        }
        value["truncated"] = true.into();
        for longest in [4096, 512] {
            shorten(&mut value, longest);
            if fits(&value) {
                return value;
            }
        }
        for params in ["/params", "/last_run/params", "/last_ended/params"] {
            if let Some(params) = value.pointer_mut(params) {
                *params = json!({});
            }
        }
        value
    }
}

/// Cuts every string in the middle that is longer than so many bytes.
fn shorten(value: &mut Value, longest: usize) {
    match value {
        Value::String(text) if text.len() > longest => *text = cut_middle(text, longest).0,
        Value::Array(items) => items.iter_mut().for_each(|item| shorten(item, longest)),
        Value::Object(members) => members.values_mut().for_each(|member| shorten(member, longest)),
        _ => {}
    }
}

/// What a run waits for, as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WaitsView {
    /// `run`, `pool`, `place`, `retry` or `claim`.
    #[serde(rename = "for")]
    what: &'static str,
    /// The pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<String>,
    /// Which it is, from 1, of those that wait for the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    /// When its time comes.
    #[serde(with = "wire_time::option", skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
}

impl From<Waits> for WaitsView {
    fn from(waits: Waits) -> Self {
        let (what, pool, until) = match waits.what {
            What::Run => ("run", None, None),
            What::Pool(pool) => ("pool", Some(pool.to_string()), None),
            What::Place => ("place", None, None),
            What::Retry(until) => ("retry", None, Some(until)),
            What::Claim => ("claim", None, None),
        };
        Self { what, pool, position: waits.position, until }
    }
}

/// The server's places, or a pool, as clients see them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PoolView {
    /// `all` for the server's places.
    name: String,
    /// How many places it has.
    size: usize,
    /// How many of them are taken.
    running: usize,
    /// How many runs wait of those that need one.
    queued: usize,
}

impl From<PoolState> for PoolView {
    fn from(pool: PoolState) -> Self {
        let PoolState { name, size, running, queued } = pool;
        Self { name: name.to_string(), size, running, queued }
    }
}

/// What it takes to show tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Viewer {
    /// The tasks.
    pub registry: Registry,
    /// Their streams.
    pub publisher: Publisher,
    /// Their runs of before.
    pub store: Arc<Store>,
}

impl Viewer {
    /// All tasks by their ids; files that never had a good version too. O(tasks).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn all(&self) -> Result<Vec<TaskView>, StoreError> {
        Ok(self.page("", usize::MAX).await?.0)
    }

    /// Of all tasks the first that come behind an id, at most so many (1 at least); and the last id of this page, where
    /// another follows. The store is read for those alone; their ids are O(tasks).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn page(&self, after: &str, most: usize) -> Result<(Vec<TaskView>, Option<TaskId>), StoreError> {
        let (tasks, broken) = (self.registry.all(), self.registry.broken());
        let ids = tasks.iter().map(|task| &task.id).chain(broken.keys()).filter(|id| id.as_str() > after);
        let ids: BTreeSet<&TaskId> = ids.collect();
        let last = ids.iter().nth(most.saturating_sub(1)).filter(|_| ids.len() > most).map(|id| TaskId::clone(id));
        let is_in = |id: &TaskId| id.as_str() > after && last.as_ref().is_none_or(|last| id <= last);
        let tasks = tasks.iter().filter(|task| is_in(&task.id)).cloned().collect();
        let mut views: BTreeMap<TaskId, TaskView> =
            self.views(tasks).await?.into_iter().map(|view| (view.id.clone(), view)).collect();
        for (id, problem) in broken.into_iter().filter(|(id, _)| is_in(id)) {
            views.entry(id.clone()).or_insert_with(|| self::broken(id, problem));
        }
        Ok((views.into_values().collect(), last))
    }

    /// One task, if it is there.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn one(&self, id: &TaskId) -> Result<Option<TaskView>, StoreError> {
        match self.registry.get(id) {
            Some(task) => Ok(self.views(vec![task]).await?.pop()),
            None => Ok(self.registry.broken().remove(id).map(|problem| broken(id.clone(), problem))),
        }
    }

    async fn views(&self, tasks: Vec<Arc<Task>>) -> Result<Vec<TaskView>, StoreError> {
        let numbers: Vec<_> = tasks.iter().map(|task| task.no).collect();
        let now = self.publisher.clock().now();
        let read = move |connection: &Connection| {
            let of =
                |no| Ok((queue::list(connection, Some(no), None, None, 2)?, attention::open_of(connection, no, now)?));
            numbers.into_iter().map(of).collect()
        };
        let newest: Vec<(Vec<Run>, Option<Open>)> = self.store.read(read).await?;
        let mut views = Vec::with_capacity(tasks.len());
        for (task, (newest, attention)) in tasks.into_iter().zip(newest) {
            // A task that was deleted meanwhile has no stream and is no longer shown.
            if let Some(view) = self.view(&task, newest, attention).await? {
                views.push(view);
            }
        }
        Ok(views)
    }

    async fn view(
        &self,
        task: &Task,
        mut newest: Vec<Run>,
        attention: Option<Open>,
    ) -> Result<Option<TaskView>, StoreError> {
        let Some(topic) = self.publisher.topic(&task.id) else { return Ok(None) };
        let (generation, oldest, head, open) = {
            let tail = topic.tail();
            (tail.generation, tail.oldest, tail.head, tail.fold.runs().cloned().collect::<Vec<_>>())
        };
        // Runs not over are fresher in memory.
        for run in &mut newest {
            if let Some(fresh) = open.iter().find(|fresh| fresh.id == run.id) {
                run.clone_from(fresh);
            }
        }
        let mut last_ended = newest.iter().find(|run| run.state.is_ended()).cloned();
        if last_ended.is_none() && newest.len() == 2 {
            // Two or more wait or work: the last ended one lies further back.
            let no = task.no;
            last_ended = self.store.read(move |connection| last_ended_run(connection, no)).await?;
        }
        let last_run = newest.into_iter().next();
        let definition = &task.definition;
        let upcoming = task.upcoming().filter(|_| task.is_scheduled());
        let schedule_words =
            definition.schedule.as_ref().zip(task.timing.as_ref()).map(|(schedule, timing)| words(schedule, timing));
        Ok(Some(TaskView {
            id: task.id.clone(),
            title: definition.title.clone(),
            description: definition.description.clone(),
            agent: json!(definition.agent),
            state: state(task, &open),
            enabled: task.enabled && !task.paused,
            source: json!(task.source),
            error: task.problem.clone(),
            schedule: json!(definition.schedule),
            schedule_words,
            policy: json!(definition.policy),
            params: json!(definition.params),
            next_at: upcoming.map(|(slot, _)| slot),
            next_planned_for: upcoming.and_then(|(slot, planned)| (planned != slot).then_some(planned)),
            last_run,
            last_ended,
            active_runs: open.len(),
            attention,
            generation: Some(generation.to_string()),
            oldest,
            head,
        }))
    }
}

/// The newest run of a task that has ended.
pub(super) fn last_ended_run(connection: &Connection, no: crate::store::TaskNo) -> rusqlite::Result<Option<Run>> {
    let sql = "SELECT run FROM runs WHERE task = ?1 AND state NOT IN ('queued', 'running', 'waiting')
               ORDER BY id DESC LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([no.0])?;
    let text: Option<String> = rows.next()?.map(|row| row.get(0)).transpose()?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The newest run of a task that succeeded, among its last 1,000: one that never does is not looked at for ever.
pub(super) fn last_success(connection: &Connection, no: crate::store::TaskNo) -> rusqlite::Result<Option<Run>> {
    let sql = "SELECT run FROM (SELECT id, state, run FROM runs WHERE task = ?1 ORDER BY id DESC LIMIT 1000)
               WHERE state = 'succeeded' ORDER BY id DESC LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([no.0])?;
    let text: Option<String> = rows.next()?.map(|row| row.get(0)).transpose()?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// What a person wants to know first: what goes on, then what keeps it from going on.
fn state(task: &Task, open: &[Run]) -> &'static str {
    let any = |state| open.iter().any(|run| run.state == state);
    if any(RunState::Waiting) {
        "waiting"
    } else if any(RunState::Running) {
        "running"
    } else if any(RunState::Queued) {
        "queued"
    } else if task.paused {
        "paused"
    } else if task.problem.is_some() || !task.enabled {
        "error"
    } else {
        "idle"
    }
}

fn broken(id: TaskId, problem: Problem) -> TaskView {
    TaskView {
        title: id.to_string(),
        description: String::new(),
        agent: Value::Null,
        state: "error",
        enabled: false,
        source: json!("file"),
        error: Some(problem),
        schedule: Value::Null,
        schedule_words: None,
        policy: Value::Null,
        params: json!({}),
        next_at: None,
        next_planned_for: None,
        last_run: None,
        last_ended: None,
        active_runs: 0,
        attention: None,
        generation: None,
        oldest: Seq(1),
        head: Seq(0),
        id,
    }
}
