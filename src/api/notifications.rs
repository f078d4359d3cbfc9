//! `/api/v1/notifications` and `/api/v1/notify`: what people were told by other ways than the page, and by which.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{ApiError, task_id};
use super::{Api, One, json_body, limit};
use crate::notify::TestError;
use crate::notify::ledger;

/// How a list is asked for.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    task: Option<String>,
    channel: Option<String>,
    state: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// Deliveries, the newest first, in pages.
///
/// # Errors
/// 400 for a state or cursor that is none, 404 for a channel that is not there and of which nothing is kept.
pub async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Value>, ApiError> {
    let most = limit(query.limit.as_deref(), 50, 500)?;
    let state = match query.state.as_deref() {
        Some(name) => Some(
            ledger::State::named(name)
                .ok_or_else(|| ApiError::invalid("state", "state is one of pending, held, sent, failed, dropped"))?,
        ),
        None => None,
    };
    let before = match query.cursor.as_deref() {
        Some(text) => Some(text.parse().map_err(|_| ApiError::invalid("cursor", "this is no cursor of this list"))?),
        None => None,
    };
    let task = query.task.as_deref().map(task_id).transpose()?.map(|id| id.to_string());
    let asked = ledger::Query { task, channel: query.channel.clone(), state, before };
    let mut items = api.notifier.list(asked, most + 1).await?;
    if let Some(channel) = query.channel.filter(|_| items.is_empty()) {
        api.notifier.channel(&channel)?;
    }
    let more = items.len() > most;
    items.truncate(most);
    let next = items.last().filter(|_| more).map(|delivery| delivery.n.to_string());
    Ok(Json(json!({ "items": items, "next": next })))
}

/// The channels, and how each stands.
///
/// # Errors
/// When the store cannot be read.
pub async fn channels(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({ "items": api.notifier.channels().await?, "next": null })))
}

/// Sends a test by a channel, now, and gives it as it was delivered: `state` is `sent`, or `failed` with `last_error`.
///
/// # Errors
/// 404 for a channel that is not there, 400 where it needs a task, 429 while others are under way, 503 while the store
/// cannot be written: then nothing was sent, or it is said what was.
pub async fn test(
    State(api): State<Api>,
    Path(channel): One,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let body = json_body(&headers, &body)?;
    let task = match body.get("task") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => {
            let id = task_id(id)?;
            Some(api.viewer.registry.get(&id).ok_or_else(|| ApiError::no_task(id.as_str()))?.id.clone())
        }
        Some(_) => return Err(ApiError::invalid("task", "task is the id of a task")),
    };
    Ok(Json(json!(api.notifier.test(&channel, task.as_ref()).await?)))
}

impl From<TestError> for ApiError {
    fn from(error: TestError) -> Self {
        let words = error.to_string();
        match error {
            TestError::NoChannel(_) => Self::new(StatusCode::NOT_FOUND, "not_found", words),
            TestError::NoCheck => Self::invalid("task", words),
            TestError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "limit", words),
            TestError::Unnoted { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_writable", words),
            TestError::Store(error) => error.into(),
        }
    }
}
