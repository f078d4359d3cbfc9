//! What can be asked of tasks and their runs, the same over HTTP and over the socket: run, stop, retry, message,
//! approve, deny. Each acts once under its key, whichever way it came.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use tracing::{debug, warn};

use super::auth::Credential;
use super::error::ApiError;
use super::once::{Done, Key, Keys, Note, Once};
use crate::event::{RunId, TaskId};
use crate::record::Run;
use crate::run::queue::{RunError, Runs};

/// How long a stop waits for the store to say what was done under its key, and to note what was done: it acts
/// whatever the store does.
const STOP_WAITS: Duration = Duration::from_millis(500);
/// The longest message, in bytes: it becomes an event.
const MAX_MESSAGE: usize = 32 * 1024;

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Run a task now.
    Run {
        /// The task.
        task: TaskId,
        /// What the run is given.
        params: Map<String, Value>,
    },
    /// Stop a run.
    Stop {
        /// The run.
        run: RunId,
    },
    /// Do once more what a run that is over was to do.
    Retry {
        /// The run.
        run: RunId,
    },
    /// Say something to a run.
    Message {
        /// To whom.
        to: To,
        /// What.
        text: String,
    },
    /// Answer a run that asks whether it may go on.
    Answer {
        /// The run.
        run: RunId,
        /// What it asks, as it was shown.
        request: Option<String>,
        /// Whether it may.
        yes: bool,
    },
}

/// To whom a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// To this run.
    Run(RunId),
    /// To whatever run of the task is under way.
    Task(TaskId),
}

impl Ask {
    /// The whole request in one text: the same request gives the same text.
    fn text(&self) -> String {
        match self {
            Self::Run { task, params } => format!("run {task} {}", Value::Object(params.clone())),
            Self::Stop { run } => format!("stop {run}"),
            Self::Retry { run } => format!("retry {run}"),
            Self::Message { to: To::Run(run), text } => format!("message run {run} {text}"),
            Self::Message { to: To::Task(task), text } => format!("message task {task} {text}"),
            Self::Answer { run, request, yes } => {
                let word = if *yes { "approve" } else { "deny" };
                format!("{word} {run} {}", json!(request))
            }
        }
    }
}

/// Does what is asked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Acts {
    /// The runs.
    pub runs: Runs,
    /// The keys that were used.
    pub keys: Keys,
}

impl Acts {
    /// Does it, once under its key; gives the run that it made or that it is about, as it is now.
    ///
    /// # Errors
    /// [`ApiError`]: what is not there, what cannot be, a key that is taken, what may pass.
    pub async fn act(&self, ask: Ask, key: Option<Key>, by: &Credential) -> Result<Run, ApiError> {
        let whole = ask.text();
        match ask {
            Ask::Stop { run } => self.stop(run, key, &whole, by).await,
            Ask::Run { task, params } => self.once(key, &whole, by, |note| self.run(task, params, note)).await,
            Ask::Retry { run } => self.once(key, &whole, by, |note| self.retry(run, note)).await,
            Ask::Message { to, text } => self.once(key, &whole, by, |_| self.message(to, &text)).await,
            Ask::Answer { run, .. } => self.once(key, &whole, by, |_| self.answer(run)).await,
        }
    }

    /// Acts unless that was done under the key; `act` notes what it did.
    async fn once<F>(
        &self,
        key: Option<Key>,
        whole: &str,
        by: &Credential,
        act: impl FnOnce(Note) -> F,
    ) -> Result<Run, ApiError>
    where
        F: Future<Output = Result<Run, ApiError>>,
    {
        let once = self.keys.enter(key, whole, by).await?;
        match once.done().await? {
            Some(done) => self.done(&done).await,
            None => act(once.note()).await,
        }
    }

    /// What was done under the key, as it is now.
    async fn done(&self, done: &Done) -> Result<Run, ApiError> {
        match done.run {
            Some(run) => Ok(self.runs.find(run).await?),
            None => Err(ApiError::no_task(done.task.as_str())),
        }
    }

    /// Runs a task now; the key is noted with the run.
    ///
    /// # Errors
    /// 404, 400 with the parameter, 409 for a task that is off, 429 when too many wait.
    pub async fn run(&self, task: TaskId, params: Map<String, Value>, note: Note) -> Result<Run, ApiError> {
        Ok(self.runs.start_by_hand(&task, params, note.of_run(task.clone())).await?)
    }

    async fn retry(&self, run: RunId, note: Note) -> Result<Run, ApiError> {
        let task = self.runs.find(run).await?.task;
        Ok(self.runs.retry(run, note.of_run(task)).await?)
    }

    /// Acts at once. What its key says is asked first, but not waited for: a store that does not answer holds no
    /// stop up, and a stop that is asked for twice is one.
    async fn stop(&self, run: RunId, key: Option<Key>, text: &str, by: &Credential) -> Result<Run, ApiError> {
        let look = async {
            let once = self.keys.enter(key, text, by).await?;
            match once.done().await {
                // Too many keys, or a store that cannot be read, are no reason not to stop.
                Err(error) if error.status() != StatusCode::CONFLICT => Ok((Once::default(), None)),
                done => done.map(|done| (once, done)),
            }
        };
        let (once, done) = match tokio::time::timeout(STOP_WAITS, look).await {
            Ok(looked) => looked?,
            Err(_) => {
                warn!(%run, "the store does not say whether this stop was done: it is done again");
                (Once::default(), None)
            }
        };
        if let Some(done) = done {
            return self.done(&done).await;
        }
        let stopped = self.runs.stop(run).await?;
        let kept = once.keep(Done { task: stopped.task.clone(), run: Some(stopped.id) });
        match tokio::time::timeout(STOP_WAITS, kept).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%run, %error, "the run is stopped; that it was asked under this key is not noted"),
            Err(_) => debug!(%run, "the run is stopped; that it was asked under this key is not noted in time"),
        }
        Ok(stopped)
    }

    /// No agent of this version reads messages: what is refused says why.
    async fn message(&self, to: To, text: &str) -> Result<Run, ApiError> {
        if text.trim().is_empty() || text.len() > MAX_MESSAGE {
            return Err(ApiError::invalid("text", format!("text has 1 to {MAX_MESSAGE} bytes, and not only blanks")));
        }
        let (task, whom) = match to {
            To::Run(run) => (self.under_way(run).await?.task, format!("run {run}")),
            To::Task(task) => (task.clone(), format!("the run of task {task}")),
        };
        let known = self.runs.registry().get(&task).ok_or_else(|| ApiError::no_task(task.as_str()))?;
        if !self.runs.has_runs(&task) {
            return Err(conflict(format!("task {task} has no run that could be told anything: run it first")));
        }
        let agent = json!(known.definition.agent);
        let agent = agent.as_str().unwrap_or("none");
        Err(conflict(format!("{whom} takes no messages: its agent ({agent}) does not read any")))
    }

    /// No run of this version asks whether it may go on.
    async fn answer(&self, run: RunId) -> Result<Run, ApiError> {
        let run = self.under_way(run).await?;
        Err(conflict(format!("run {} asks for nothing that can be approved or denied", run.id)))
    }

    async fn under_way(&self, run: RunId) -> Result<Run, ApiError> {
        let run = self.runs.find(run).await?;
        if run.state.is_ended() { Err(RunError::Over(Box::new(run)).into()) } else { Ok(run) }
    }
}

fn conflict(detail: String) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "conflict", detail)
}
