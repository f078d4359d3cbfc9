//! `/api/v1/attention`, and what a person answers to what a run has found: acknowledge it, or snooze it.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::auth::Credential;
use super::error::{ApiError, run_id, task_id};
use super::once::Key;
use super::{Api, One, json_body, limit};
use crate::config::units;
use crate::event::RunId;
use crate::run::attention::{self, Answer, Which};
use crate::store::{Store, StoreError, TaskNo};
use crate::stream::log::LONGEST_SNOOZE;
use crate::stream::publish::Publisher;

/// How often the clock is asked while something is snoozed: it may be set, and the machine may sleep.
const LOOK: Duration = Duration::from_secs(1);

/// How the list is asked for.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    state: Option<String>,
    task: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// What runs have found, the newest first, in pages: what is open, unless another state or `all` is asked for.
///
/// # Errors
/// 400, 404 for a task that is not there.
pub async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Value>, ApiError> {
    let most = limit(query.limit.as_deref(), 50, 500)?;
    let state = match query.state.as_deref() {
        None => Some(Answer::Open),
        Some("all") => None,
        Some(name) => Some(
            Answer::named(name)
                .ok_or_else(|| ApiError::invalid("state", "state is one of open, snoozed, acknowledged and all"))?,
        ),
    };
    let task = match query.task.as_deref() {
        Some(text) => Some(api.viewer.registry.get(&task_id(text)?).ok_or_else(|| ApiError::no_task(text))?.no),
        None => None,
    };
    let before = match query.cursor.as_deref() {
        Some(text) => Some(text.parse().map_err(|_| ApiError::invalid("cursor", "this is no cursor of this list"))?),
        None => None,
    };
    let (which, now) = (Which { state, task, before }, api.publisher.clock().now());
    let mut items = api.store.read(move |connection| attention::list(connection, &which, now, most + 1)).await?;
    let more = items.len() > most;
    items.truncate(most);
    let next = items.last().filter(|_| more).map(|finding| finding.run);
    Ok(Json(json!({ "items": items, "next": next })))
}

/// Notes that somebody has seen what a run has found, and with it what its task had found before. Asked again, it
/// changes nothing.
///
/// # Errors
/// 404, 409 for a run that has found nothing.
pub async fn acknowledge(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let run = run_id(&id)?;
    let asked = format!("POST /runs/{run}/acknowledge");
    answer(&api, &credential, &headers, run, &asked, None).await
}

/// Puts away for some time what a run has found, and with it what its task had found before.
///
/// # Errors
/// 404, 400 with the field, 409 for a run that has found nothing.
pub async fn snooze(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let run = run_id(&id)?;
    let span = snooze_span(&json_body(&headers, &body)?)?;
    let asked = format!("POST /runs/{run}/snooze {span:?}");
    let done = answer(&api, &credential, &headers, run, &asked, Some(span)).await;
    api.snoozed.notify_one();
    done
}

fn snooze_span(body: &Value) -> Result<SignedDuration, ApiError> {
    let wrong = |why: String| ApiError::invalid("for", why);
    if let Some(other) = body.as_object().and_then(|members| members.keys().find(|name| *name != "for")) {
        return Err(ApiError::invalid(other, "only for may be given: how long, like \"4h\""));
    }
    let text = body.get("for").and_then(Value::as_str);
    let text = text.ok_or_else(|| wrong("for is how long, like \"4h\" or \"1d\"".to_owned()))?;
    let span = units::duration(text).map_err(wrong)?;
    let span = SignedDuration::try_from(span).map_err(|error| wrong(error.to_string()))?;
    if span < SignedDuration::from_secs(1) || span > LONGEST_SNOOZE {
        return Err(wrong(format!("{text:?} is not from one second to 90 days: acknowledge it instead, or mend it")));
    }
    Ok(span)
}

/// Answers a finding, once under its key; gives it as it is now.
async fn answer(
    api: &Api,
    credential: &Credential,
    headers: &HeaderMap,
    run: RunId,
    asked: &str,
    snooze: Option<SignedDuration>,
) -> Result<Json<Value>, ApiError> {
    let once = api.acts.keys.enter(Key::of(headers)?, asked, credential).await?;
    let done = once.done().await?.is_some();
    let task = api.runs.find(run).await?.task;
    let now = api.publisher.clock().now();
    if !done {
        let no = api.viewer.registry.get(&task).ok_or_else(|| ApiError::no_run(&run.to_string()))?.no;
        let (note, of) = (once.note(), task.clone());
        let act = move |connection: &rusqlite::Connection| -> Result<_, StoreError> {
            let has = attention::of_run(connection, run, now)?.is_some();
            if has {
                note_answer(connection, no, run, now, snooze)?;
                note.write(connection, &of, Some(run))?;
            }
            Ok((has, Vec::new()))
        };
        let (has, _) = api.publisher.transact(act).await?;
        if !has {
            let detail = format!("run {run} has found nothing that anybody should look at");
            return Err(ApiError::new(StatusCode::CONFLICT, "conflict", detail));
        }
        api.publisher.changes().note(&task);
    }
    let finding = api.store.read(move |connection| attention::of_run(connection, run, now)).await?;
    finding.map(|finding| Json(json!(finding))).ok_or_else(|| ApiError::no_run(&run.to_string()))
}

fn note_answer(
    connection: &rusqlite::Connection,
    task: TaskNo,
    run: RunId,
    now: Timestamp,
    snooze: Option<SignedDuration>,
) -> rusqlite::Result<()> {
    match snooze.map(|span| now.saturating_add(span)) {
        None => attention::acknowledge(connection, task, run, now),
        Some(Ok(until)) => attention::snooze(connection, task, run, until),
        // A span, and no span of the calendar, is always added.
        Some(Err(_)) => Ok(()),
    }
}

/// Shows what was snoozed again when its time is over, to all who look at the list of tasks: until told to stop.
/// `snoozed` is rung when something was snoozed.
pub async fn follow(store: Arc<Store>, publisher: Publisher, snoozed: Arc<Notify>, stop: CancellationToken) {
    let mut seen = publisher.clock().now();
    loop {
        let now = publisher.clock().now();
        // A clock that was set back shows nothing a second time, and misses nothing: what it shows again is asked of
        // the store whenever a task is shown.
        let (from, upto) = (seen.min(now), now);
        let read = move |connection: &rusqlite::Connection| {
            Ok((attention::woken(connection, from, upto)?, attention::next_end(connection, upto)?))
        };
        let end = match store.read(read).await {
            Ok((woken, end)) => {
                seen = now;
                for task in woken {
                    publisher.changes().note(&task);
                }
                end
            }
            Err(error) => {
                warn!(%error, "what is snoozed could not be read; tried again");
                Some(now.saturating_add(SignedDuration::from_secs(1)).unwrap_or(now))
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = snoozed.notified() => {}
            () = ended(&publisher, end) => {}
        }
    }
}

/// Waits until the clock has come to `end`; for ever without one.
async fn ended(publisher: &Publisher, end: Option<Timestamp>) {
    let Some(end) = end else { return std::future::pending().await };
    loop {
        let left = Duration::try_from(end.duration_since(publisher.clock().now())).unwrap_or(Duration::ZERO);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}
