//! `/api/v1/runs`: starting, showing and stopping runs, and the whole output of their calls.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tower_http::services::ServeFile;

use super::error::{ApiError, run_id, task_id};
use super::once::Once;
use super::socket::Came;
use super::{Api, One, json_body, limit};
use crate::event::{RunId, TaskId};
use crate::record::{Run, RunState};
use crate::run::queue::{self, RunError};

/// How a list is asked for.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    task: Option<String>,
    state: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// Runs, the newest first, in pages.
///
/// # Errors
/// 400, 404 for a task that is not there.
pub async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Value>, ApiError> {
    let most = limit(query.limit.as_deref(), 50, 500)?;
    let no = match query.task.as_deref() {
        Some(text) => {
            let task = api.viewer.registry.get(&task_id(text)?);
            Some(task.ok_or_else(|| ApiError::no_task(text))?.no)
        }
        None => None,
    };
    let state = match query.state {
        Some(text) => {
            let wrong = || {
                ApiError::invalid(
                    "state",
                    "state is one of queued, running, waiting, succeeded, failed, cancelled, timed_out, interrupted",
                )
            };
            let state: RunState = serde_json::from_value(Value::from(text)).map_err(|_| wrong())?;
            Some(state)
        }
        None => None,
    };
    let before = match query.cursor.as_deref() {
        Some(text) => Some(text.parse().map_err(|_| ApiError::invalid("cursor", "this is no cursor of this list"))?),
        None => None,
    };
    let read = move |connection: &rusqlite::Connection| {
        queue::list(connection, no, state.map(RunState::as_str), before, most + 1)
    };
    let mut runs = api.store.read(read).await?;
    let more = runs.len() > most;
    runs.truncate(most);
    let next = runs.last().filter(|_| more).map(|run| run.id);
    let items: Vec<Value> = runs.into_iter().map(|run| fresh(&api, run)).collect();
    Ok(Json(json!({ "items": items, "next": next })))
}

/// The runs of a task.
///
/// # Errors
/// As for [`list`].
pub async fn list_of_task(
    State(api): State<Api>,
    Path(id): One,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, ApiError> {
    list(State(api), Query(ListQuery { task: Some(id), ..query })).await
}

/// A run as it is at this moment, with its place in the queue.
fn fresh(api: &Api, run: Run) -> Value {
    let open = api.publisher.topic(&run.task).and_then(|topic| topic.tail().fold.run(run.id).cloned());
    let run = open.unwrap_or(run);
    let mut value = json!(run);
    if run.state == RunState::Queued {
        value["queue_position"] = json!(api.runs.position(run.id));
    }
    value
}

/// One run.
///
/// # Errors
/// 404.
pub async fn show(State(api): State<Api>, Path(id): One) -> Result<Json<Value>, ApiError> {
    let run = api.runs.find(run_id(&id)?).await?;
    Ok(Json(fresh(&api, run)))
}

/// Runs a task now.
///
/// # Errors
/// 404, 400 with the parameter, 409 for a key that is taken, 429 when too many wait.
pub async fn start(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    Path(id): One,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let task = task_id(&id)?;
    let body = json_body(&headers, &body)?;
    let once = Once::of(&headers, &format!("POST /tasks/{task}/runs"), &body)?;
    let params = params(&body)?;
    let run = start_once(&api, &task, params, once).await?;
    let address = address(&api, &headers, &came, &task, Some(run.id));
    Ok((StatusCode::CREATED, Json(json!({ "run": fresh(&api, run), "url": address }))))
}

fn params(body: &Value) -> Result<Map<String, Value>, ApiError> {
    for name in body.as_object().into_iter().flat_map(Map::keys) {
        if name != "params" {
            return Err(ApiError::invalid(name, "only params may be given"));
        }
    }
    match body.get("params") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(params)) => Ok(params.clone()),
        Some(_) => Err(ApiError::invalid("params", "params is an object")),
    }
}

/// The page's address of a task or one of its runs.
pub fn address(api: &Api, headers: &HeaderMap, came: &Came, task: &TaskId, run: Option<RunId>) -> String {
    let base = api.door.address_for(headers, came);
    match run {
        Some(run) => format!("{base}/tasks/{task}/runs/{run}"),
        None => format!("{base}/tasks/{task}"),
    }
}

/// Runs a task now; under a key that was used, gives the run it made.
///
/// # Errors
/// As for [`start`].
pub async fn start_once(
    api: &Api,
    task: &TaskId,
    params: Map<String, Value>,
    once: Option<Once>,
) -> Result<Run, ApiError> {
    let now = api.publisher.clock().now();
    if let Some(once) = &once
        && let Some(done) = once.done(&api.store, now).await?
        && let Some(run) = done.run
    {
        return Ok(api.runs.find(run).await?);
    }
    let (noted, id) = (once.clone(), task.clone());
    let also = move |connection: &rusqlite::Connection, run| -> Result<(), RunError> {
        Ok(noted.map_or(Ok(()), |once| once.note(connection, &id, Some(run), now))?)
    };
    match (api.runs.start_by_hand(task, params, also).await, once) {
        (Ok(run), _) => Ok(run),
        // The same key at the same moment: the other one was first.
        (Err(error), Some(once)) => match once.done(&api.store, now).await?.and_then(|done| done.run) {
            Some(run) => Ok(api.runs.find(run).await?),
            None => Err(error.into()),
        },
        (Err(error), None) => Err(error.into()),
    }
}

/// Stops a run. Acts at once; asked again, it changes nothing.
///
/// # Errors
/// 404, 409 `run_over`.
pub async fn stop(State(api): State<Api>, Path(id): One) -> Result<(StatusCode, Json<Value>), ApiError> {
    let run = api.runs.stop(run_id(&id)?).await?;
    Ok((StatusCode::ACCEPTED, Json(fresh(&api, run))))
}

/// The whole output of a call, as a file to keep; byte ranges are served.
///
/// # Errors
/// 404.
pub async fn output(
    State(api): State<Api>,
    Path((run, call)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let none = || ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no output of this call");
    let id = run_id(&run)?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if call.is_empty() || call.len() > 64 || !call.chars().all(is_plain) {
        return Err(none());
    }
    let found = api.runs.find(id).await?;
    let path = api.output_dir.join(id.to_string()).join(&call);
    let plain = "text/plain; charset=utf-8".parse().map_err(|error| ApiError::internal(&error))?;
    let served = ServeFile::new_with_mime(path, &plain).try_call(request).await;
    let response = served.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => none(),
        _ => ApiError::internal(&error),
    })?;
    if response.status() == StatusCode::NOT_FOUND {
        return Err(none());
    }
    let mut response = response.into_response();
    let name = format!("attachment; filename=\"{}-{id}-{call}.txt\"", found.task);
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
