//! `/api/v1/runs`: starting, showing and stopping runs, and the whole output of their calls.

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tower_http::services::ServeFile;

use super::act::{Ask, To};
use super::auth::Credential;
use super::error::{ApiError, run_id, task_id};
use super::once::Key;
use super::socket::Came;
use super::{Api, One, json_body, limit};
use crate::event::{RunId, TaskId};
use crate::record::{Run, RunState};
use crate::run::queue::{self, Runs};

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

fn fresh(api: &Api, run: Run) -> Value {
    as_it_is(&api.runs, run)
}

/// A run as it is at this moment, with its place in the queue.
pub fn as_it_is(runs: &Runs, run: Run) -> Value {
    let run = runs.open_run(&run.task, run.id).unwrap_or(run);
    let mut value = json!(run);
    if run.state == RunState::Queued {
        value["queue_position"] = json!(runs.position(run.id));
    }
    value
}

/// One run.
///
/// # Errors
/// 404.
pub async fn show(State(api): State<Api>, Path(id): One) -> Result<Json<Value>, ApiError> {
    let run = api.runs.find(run_id(&id)?).await?;
    let retried_by = api.runs.retried_by(&run).await?;
    let mut value = fresh(&api, run);
    value["retried_by"] = json!(retried_by);
    Ok(Json(value))
}

/// Runs a task now.
///
/// # Errors
/// 404, 400 with the parameter, 409 for a key that is taken, 429 when too many wait.
pub async fn start(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let task = task_id(&id)?;
    let params = params(&json_body(&headers, &body)?)?;
    let ask = Ask::Run { task: task.clone(), params };
    let run = api.acts.act(ask, Key::of(&headers)?, &credential).await?;
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

/// Stops a run. Acts at once; asked again, it changes nothing.
///
/// # Errors
/// 404, 409 `run_over`.
pub async fn stop(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let ask = Ask::Stop { run: run_id(&id)? };
    let run = api.acts.act(ask, Key::of(&headers)?, &credential).await?;
    Ok((StatusCode::ACCEPTED, Json(fresh(&api, run))))
}

/// Does once more what a run that is over was to do: a new run of the same task, with the same parameters.
///
/// # Errors
/// 404, 409 for a run that is not over or a task that is off, 400 with a parameter that the task no longer takes, 429.
pub async fn retry(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let ask = Ask::Retry { run: run_id(&id)? };
    let run = api.acts.act(ask, Key::of(&headers)?, &credential).await?;
    let address = address(&api, &headers, &came, &run.task, Some(run.id));
    Ok((StatusCode::CREATED, Json(json!({ "run": fresh(&api, run), "url": address }))))
}

/// Says something to a run.
///
/// # Errors
/// 404, 400, 409 `run_over`, 409 `conflict` for a run that takes no messages.
pub async fn message(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let body = json_body(&headers, &body)?;
    let Some(text) = body.get("text").and_then(Value::as_str) else {
        return Err(ApiError::invalid("text", "text is what to say"));
    };
    let ask = Ask::Message { to: To::Run(run_id(&id)?), text: text.to_owned() };
    let run = api.acts.act(ask, Key::of(&headers)?, &credential).await?;
    Ok((StatusCode::ACCEPTED, Json(fresh(&api, run))))
}

/// Lets a run go on that asks for it.
///
/// # Errors
/// 404, 409 `run_over`, 409 `conflict` for a run that asks for nothing.
pub async fn approve(
    state: State<Api>,
    credential: Extension<Credential>,
    path: One,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    answer(state, credential, path, headers, body, true).await
}

/// Tells a run that asks that it may not.
///
/// # Errors
/// As for [`approve`].
pub async fn deny(
    state: State<Api>,
    credential: Extension<Credential>,
    path: One,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    answer(state, credential, path, headers, body, false).await
}

async fn answer(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
    body: Bytes,
    yes: bool,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let body = json_body(&headers, &body)?;
    let request = match body.get("request") {
        None | Some(Value::Null) => None,
        Some(Value::String(request)) => Some(request.clone()),
        Some(_) => return Err(ApiError::invalid("request", "request is a text: what the run asks, as it was shown")),
    };
    let ask = Ask::Answer { run: run_id(&id)?, request, yes };
    let run = api.acts.act(ask, Key::of(&headers)?, &credential).await?;
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
