//! Commands over the socket. Each is carried out beside the socket, which goes on meanwhile, and its answer lies ready
//! until the socket fetches it. One whose socket is gone is carried out all the same: whoever sends it again gets the
//! answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::act::{Acts, Ask, To};
use super::auth::Credential;
use super::error::{ApiError, run_id, task_id};
use super::hub::{Closing, Handle};
use super::once::Key;
use super::{frame, runs};

/// How many commands of one socket may be under way, their answers fetched: each is a task of the runtime, and some
/// words.
pub const UNDER_WAY: usize = 16;

/// Carries out commands, for all sockets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands {
    /// What they ask.
    pub acts: Acts,
    /// Those that are under way: waited for when the server stops.
    pub under_way: TaskTracker,
}

/// The commands of one socket. Most have none: it is memory of every watcher.
#[derive(Debug)]
pub struct Desk {
    by: Credential,
    at_work: Option<Box<AtWork>>,
}

#[derive(Debug, Default)]
struct AtWork {
    answers: Arc<Mutex<Answers>>,
    /// The end of the last command that the next one has to follow.
    last: Option<oneshot::Receiver<()>>,
}

#[derive(Debug, Default)]
struct Answers {
    under_way: usize,
    ready: VecDeque<String>,
}

/// What becomes of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is no command: why.
    Bad(String),
    /// This is said at once.
    Said(String),
    /// It is carried out; the socket is woken when there is an answer.
    Later,
}

impl Desk {
    /// The desk of a socket, for whoever is at it.
    pub const fn new(by: Credential) -> Self {
        Self { by, at_work: None }
    }

    /// Takes a command. Those of one socket follow each other as they were sent; a stop follows none.
    pub fn take(&mut self, commands: &Commands, socket: &Arc<Handle>, id: &Value, what: Map<String, Value>) -> Taken {
        let Some(uuid) = id.as_str().and_then(|id| id.parse::<Uuid>().ok()) else {
            return Taken::Bad("the id of a command is a uuid".to_owned());
        };
        let ask = match read(what) {
            Ok(ask) => ask,
            Err(Unread::Bad(why)) => return Taken::Bad(why),
            Err(Unread::NotThere(error)) => return Taken::Said(refused(id.clone(), &error)),
        };
        let AtWork { answers, last } = &mut **self.at_work.get_or_insert_default();
        {
            let mut answers = lock(answers);
            if answers.under_way >= UNDER_WAY {
                let message = format!("{UNDER_WAY} commands of this socket are under way: wait for one to be answered");
                return Taken::Said(frame::error(Some(("id", id.clone())), "limit", &message, true));
            }
            answers.under_way += 1;
        }
        let before = match ask {
            Ask::Stop { .. } => None,
            _ => last.take(),
        };
        let (done, after) = oneshot::channel();
        if !matches!(ask, Ask::Stop { .. }) {
            *last = Some(after);
        }
        let (acts, by, socket) = (commands.acts.clone(), self.by.clone(), Arc::clone(socket));
        let (answers, id) = (Arc::clone(answers), id.clone());
        commands.under_way.spawn(async move {
            if let Some(before) = before {
                // Its end, however it ended.
                let _ = before.await;
            }
            let answer = match socket.closing() {
                // Who may no longer come in does nothing more either.
                Some(closing) if closing == Closing::EXPIRED => None,
                _ => Some(answer(&acts, ask, uuid, id, &by).await),
            };
            let _ = done.send(());
            let mut answers = lock(&answers);
            match answer {
                Some(answer) => answers.ready.push_back(answer),
                None => answers.under_way -= 1,
            }
            drop(answers);
            socket.peer.wake.raise();
        });
        Taken::Later
    }

    /// The answers that are ready, in the order in which they came about.
    pub fn fetch(&mut self) -> VecDeque<String> {
        let Some(at_work) = &self.at_work else { return VecDeque::new() };
        let mut answers = lock(&at_work.answers);
        let ready = std::mem::take(&mut answers.ready);
        answers.under_way -= ready.len();
        let is_done = answers.under_way == 0;
        drop(answers);
        if is_done {
            self.at_work = None;
        }
        ready
    }
}

fn lock(answers: &Mutex<Answers>) -> std::sync::MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(acts: &Acts, ask: Ask, uuid: Uuid, id: Value, by: &Credential) -> String {
    match acts.act(ask, Some(Key::from(uuid)), by).await {
        Ok(run) => frame::done(&id, &runs::as_it_is(&acts.runs, run)),
        Err(error) => refused(id, &error),
    }
}

/// An error of the API as a frame. What may pass is `retryable`: the same command may be sent again.
fn refused(id: Value, error: &ApiError) -> String {
    let (code, retryable) = match (error.status(), error.code()) {
        (StatusCode::TOO_MANY_REQUESTS, _) => ("limit", true),
        (_, "not_writable") => ("not_writable", true),
        (StatusCode::NOT_FOUND, _) => ("not_found", false),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => ("forbidden", false),
        (_, "run_over") => ("run_over", false),
        // What is wrong with a command that can be read is that it does not go with what is there.
        (status, _) if status.is_client_error() => ("conflict", false),
        // Whether anything was done is not known; the same id tells.
        _ => ("internal", true),
    };
    frame::error(Some(("id", id)), code, error.detail(), retryable)
}

/// Why a command was not read.
enum Unread {
    /// It is none.
    Bad(String),
    /// It names what cannot be there.
    NotThere(ApiError),
}

impl From<ApiError> for Unread {
    fn from(error: ApiError) -> Self {
        Self::NotThere(error)
    }
}

#[derive(Deserialize)]
struct RunTask {
    task: String,
    params: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct OfRun {
    run: String,
}

#[derive(Deserialize)]
struct Message {
    task: Option<String>,
    run: Option<String>,
    text: String,
}

#[derive(Deserialize)]
struct Answer {
    run: String,
    request: String,
}

/// Reads what is asked. Members that the op does not know are ignored.
fn read(mut what: Map<String, Value>) -> Result<Ask, Unread> {
    let op = what.remove("op");
    let Some(op) = op.as_ref().and_then(Value::as_str) else {
        return Err(Unread::Bad("a command has an op: run, stop, message, approve or deny".to_owned()));
    };
    Ok(match op {
        "run" => {
            let RunTask { task, params } = members(op, what)?;
            Ask::Run { task: task_id(&task)?, params: params.unwrap_or_default() }
        }
        "stop" => Ask::Stop { run: run_id(&members::<OfRun>(op, what)?.run)? },
        "message" => {
            let Message { task, run, text } = members(op, what)?;
            let to = match (task, run) {
                (Some(task), None) => To::Task(task_id(&task)?),
                (None, Some(run)) => To::Run(run_id(&run)?),
                _ => return Err(Unread::Bad("message: give either task or run".to_owned())),
            };
            Ask::Message { to, text }
        }
        "approve" | "deny" => {
            let Answer { run, request } = members(op, what)?;
            Ask::Answer { run: run_id(&run)?, request: Some(request), yes: op == "approve" }
        }
        other => {
            let other: String = other.chars().take(40).collect();
            let words = "there are run, stop, message, approve and deny";
            return Err(Unread::Bad(format!("there is no op {other:?}: {words}")));
        }
    })
}

fn members<T: DeserializeOwned>(op: &str, what: Map<String, Value>) -> Result<T, Unread> {
    serde_json::from_value(Value::Object(what)).map_err(|error| Unread::Bad(format!("{op}: {error}")))
}
