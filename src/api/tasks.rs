//! `/api/v1/tasks` and what belongs to a task: its schedule and its slots.

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::{Timestamp, Zoned};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::Credential;
use super::error::{ApiError, task_id};
use super::once::{Key, Once};
use super::socket::Came;
use super::wire::TaskView;
use super::{Api, One, json_body, limit};
use crate::config::units;
use crate::event::TaskId;
use crate::schedule::{timing, words};
use crate::task::definition::Definition;
use crate::task::parse;
use crate::task::registry::{Source, Task, TaskError};

/// The most moments of a preview.
const MAX_NEXT: usize = 500;

/// How a list is asked for.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// All tasks by their ids, in pages.
///
/// # Errors
/// 400, or the store's.
pub async fn list(State(api): State<Api>, Query(query): Query<ListQuery>) -> Result<Json<Value>, ApiError> {
    let most = limit(query.limit.as_deref(), 1000, 1000)?;
    let (views, next) = api.viewer.page(query.cursor.as_deref().unwrap_or_default(), most).await?;
    Ok(Json(json!({ "items": views, "next": next })))
}

/// One task with its definition.
///
/// # Errors
/// 404.
pub async fn show(State(api): State<Api>, Path(id): One) -> Result<Json<Value>, ApiError> {
    let view = view(&api, &task_id(&id)?).await?;
    let definition = api.viewer.registry.get(&view.id).map(|task| task.definition.to_json());
    let mut answer = json!(view);
    answer["definition"] = json!(definition);
    Ok(Json(answer))
}

async fn view(api: &Api, id: &TaskId) -> Result<TaskView, ApiError> {
    api.viewer.one(id).await?.ok_or_else(|| ApiError::no_task(id.as_str()))
}

fn known(api: &Api, id: &str) -> Result<std::sync::Arc<Task>, ApiError> {
    api.viewer.registry.get(&task_id(id)?).ok_or_else(|| ApiError::no_task(id))
}

/// Whether something is done, or only said what would be wrong with it.
#[derive(Debug, Deserialize)]
pub struct DryQuery {
    dry_run: Option<String>,
}

impl DryQuery {
    fn is_dry(&self) -> bool {
        self.dry_run.as_deref() == Some("true")
    }
}

/// How a task is made.
#[derive(Debug, Deserialize)]
pub struct AddQuery {
    #[serde(flatten)]
    dry: DryQuery,
    again: Option<String>,
}

/// Counts a distance from now, up to a full second, where a schedule has one in place of its time.
fn count_from_now(schedule: Option<&mut Value>, now: Timestamp) {
    let Some(at) = schedule.and_then(|schedule| schedule.get_mut("at")) else { return };
    let Some(distance) = at.as_str().and_then(|text| units::duration(text).ok()) else { return };
    let then = now.as_microsecond().saturating_add(i64::try_from(distance.as_micros()).unwrap_or(i64::MAX));
    let second = then.saturating_add(999_999).div_euclid(1_000_000);
    if let Ok(then) = Timestamp::from_second(second) {
        *at = then.to_string().into();
    }
}

/// Makes a task. Without a schedule it runs at once, unless told not to. With `?dry_run=true` nothing is made: the
/// answer is the definition as it would be, or what is wrong with it. With `?again=true` it is given only if it was made
/// under the same key before.
///
/// # Errors
/// 400 with the field, 404 for what was not made before, 409 for an id or a key that is taken.
pub async fn add(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    Extension(credential): Extension<Credential>,
    Query(query): Query<AddQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let mut body = json_body(&headers, &body)?;
    // As it was sent: a distance means another time whenever it is sent again.
    let asked = format!("POST /tasks {body}");
    count_from_now(body.get_mut("schedule"), api.publisher.clock().now());
    let posted = parse::from_json(&body, api.viewer.registry.terms())?;
    let runs_now = posted.run && posted.definition.schedule.is_none();
    if runs_now {
        // Before it is made: else there would be a task, and an error.
        parse::run_params(&posted.definition, &Value::Null)?;
    }
    if query.dry.is_dry() {
        let would_be = would_be(&api, &posted.definition)?;
        if let Some(id) = posted.id.filter(|id| api.viewer.registry.get(id).is_some()) {
            return Err(TaskError::Exists(id).into());
        }
        return Ok((StatusCode::OK, Json(would_be)));
    }
    let once = api.acts.keys.enter(Key::of(&headers)?, &asked, &credential).await?;
    let id = match once.done().await? {
        Some(done) => done.task,
        None if query.again.as_deref() == Some("true") => {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "no task was made under this Idempotency-Key",
            ));
        }
        None => {
            let note = once.note();
            let also = move |connection: &rusqlite::Connection, id: &TaskId| -> Result<(), TaskError> {
                Ok(note.write(connection, id, None)?)
            };
            let added = api.viewer.registry.add(posted.id, posted.definition, Source::Store, None, also).await?;
            api.planner.notify_one();
            added.id.clone()
        }
    };
    let run = match (runs_now, once.done_of("run").await?.and_then(|done| done.run)) {
        (false, _) => None,
        (true, Some(run)) => Some(api.runs.find(run).await?),
        (true, None) => Some(api.acts.run(id.clone(), Map::new(), once.note_of("run")).await?),
    };
    let address = super::runs::address(&api, &headers, &came, &id, run.as_ref().map(|run| run.id));
    Ok((StatusCode::CREATED, Json(json!({ "task": view(&api, &id).await?, "run": run, "url": address }))))
}

/// A definition that could be put in force at this moment.
fn would_be(api: &Api, definition: &Definition) -> Result<Value, ApiError> {
    if let Some(schedule) = &definition.schedule {
        timing::check(schedule, api.viewer.registry.zone(), api.publisher.clock().now())
            .map_err(TaskError::Schedule)?;
    }
    Ok(json!({ "definition": definition.to_json() }))
}

/// Changes a task: the members that are given replace those it has. With `?dry_run=true` nothing is changed.
///
/// # Errors
/// 400 with the field, 404, 409 `task_is_a_file`.
pub async fn patch(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    Query(query): Query<DryQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let mut body = json_body(&headers, &body)?;
    let asked = format!("PATCH /tasks/{id} {body}");
    count_from_now(body.get_mut("schedule"), api.publisher.clock().now());
    if query.is_dry() {
        let task = known(&api, &id)?;
        refuse_file(&task)?;
        let definition = parse::patched(&task.definition, &body, api.viewer.registry.terms())?;
        // A single time that has come stays when nothing else is given.
        if definition.schedule == task.definition.schedule {
            return Ok(Json(json!({ "definition": definition.to_json() })));
        }
        return would_be(&api, &definition).map(Json);
    }
    let once = api.acts.keys.enter(Key::of(&headers)?, &asked, &credential).await?;
    if once.done().await?.is_none() {
        let (task, registry) = (task_id(&id)?, api.viewer.registry.clone());
        let also = noting(&once, &task);
        // Of the task as it is when its turn comes: what another has changed meanwhile stays changed.
        let change = move |task: &Task| -> Result<Definition, ApiError> {
            refuse_file(task)?;
            Ok(parse::patched(&task.definition, &body, registry.terms())?)
        };
        api.viewer.registry.redefine(&task, change, None, also).await?;
        api.planner.notify_one();
        api.runs.reread();
    }
    show(State(api), Path(id)).await
}

/// Notes a change of a task under its key, in the transaction of the change.
fn noting(once: &Once, task: &TaskId) -> impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<()> + Send + use<> {
    let (note, task) = (once.note(), task.clone());
    move |connection| note.write(connection, &task, None)
}

/// A task is its file, as long as the file is there.
fn refuse_file(task: &Task) -> Result<(), ApiError> {
    if task.source == Source::File && task.enabled {
        let path = task.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let detail = format!("this task is the file {path}: edit or delete the file");
        return Err(ApiError::new(StatusCode::CONFLICT, "task_is_a_file", detail));
    }
    Ok(())
}

/// A task as a file, to be kept or to be put into the folder of tasks.
///
/// # Errors
/// 404.
pub async fn export(State(api): State<Api>, Path(id): One) -> Result<Response, ApiError> {
    let task = known(&api, &id)?;
    let text = task.definition.to_toml().map_err(|error| ApiError::internal(&error))?;
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(name) = HeaderValue::from_str(&format!("attachment; filename=\"{}.toml\"", task.id)) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// How a task is deleted.
#[derive(Debug, Deserialize)]
pub struct RemoveQuery {
    stop: Option<String>,
}

/// Deletes a task with its history; with `?stop=true` its runs are stopped first.
///
/// # Errors
/// 404, 409 `task_is_a_file`, 409 `task_running`.
pub async fn remove(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    Query(query): Query<RemoveQuery>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let stops = query.stop.as_deref() == Some("true");
    let asked = format!("DELETE /tasks/{id} {stops}");
    let once = api.acts.keys.enter(Key::of(&headers)?, &asked, &credential).await?;
    if once.done().await?.is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    let task = known(&api, &id)?;
    refuse_file(&task)?;
    if stops {
        // Nothing new may come in between the last run and the end.
        api.viewer.registry.set_enabled(&task.id, false).await?;
        if let Err(error) = api.runs.stop_all_of(&task.id).await {
            api.viewer.registry.set_enabled(&task.id, task.enabled).await?;
            return Err(error.into());
        }
    }
    for run in api.viewer.registry.remove(&task.id, noting(&once, &task.id)).await? {
        // Not every run has any output.
        let _ = tokio::fs::remove_dir_all(api.output_dir.join(run.to_string())).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a task: its slots are `disabled` until it is resumed, and scheduled runs that wait are called off.
///
/// # Errors
/// 404, or the store's.
pub async fn pause(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let asked = format!("POST /tasks/{id}/pause");
    let once = api.acts.keys.enter(Key::of(&headers)?, &asked, &credential).await?;
    let done = once.done().await?.is_some();
    let task = known(&api, &id)?;
    if !done {
        api.viewer.registry.set_paused(&task.id, true, noting(&once, &task.id)).await?;
    }
    // Asked again too: the first time it may have come to an end in between.
    if known(&api, &id)?.paused {
        api.runs.call_off_scheduled(&task.id).await?;
    }
    Ok(Json(json!(view(&api, &task.id).await?)))
}

/// Lets a task go on.
///
/// # Errors
/// 404, or the store's.
pub async fn resume(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let asked = format!("POST /tasks/{id}/resume");
    let once = api.acts.keys.enter(Key::of(&headers)?, &asked, &credential).await?;
    let done = once.done().await?.is_some();
    let task = known(&api, &id)?;
    if !done {
        // What passed while it was paused gets its rows first.
        api.planner.notify_one();
        api.viewer.registry.set_paused(&task.id, false, noting(&once, &task.id)).await?;
    }
    Ok(Json(json!(view(&api, &task.id).await?)))
}

/// How many moments are asked for.
#[derive(Debug, Deserialize)]
pub struct NextQuery {
    n: Option<String>,
}

/// The next due times of a task.
///
/// # Errors
/// 404, 400.
pub async fn next(
    State(api): State<Api>,
    Path(id): One,
    Query(query): Query<NextQuery>,
) -> Result<Json<Value>, ApiError> {
    let task = known(&api, &id)?;
    let n = limit(query.n.as_deref(), 5, MAX_NEXT)
        .map_err(|_| ApiError::invalid("n", "n must be a number from 1 to 500"))?;
    let now = api.publisher.clock().now();
    // A slot whose time has come and that is planned for a little later is still to come.
    let after = task.upcoming().map_or(now, |(slot, _)| now.min(timing::just_before(slot)));
    let items = task.timing.as_ref().map_or_else(Vec::new, |timing| moments(timing, task.anchor, after, n));
    let words = task.definition.schedule.as_ref().zip(task.timing.as_ref());
    let words = words.map(|(schedule, timing)| words::words(schedule, timing));
    let zone = task.timing.as_ref().map(|timing| timing::zone_name(timing.zone()));
    Ok(Json(json!({ "items": items, "enabled": task.is_scheduled(), "words": words, "zone": zone })))
}

fn moments(timing: &timing::Timing, anchor: Timestamp, after: Timestamp, n: usize) -> Vec<Value> {
    let upcoming = timing.next_n(anchor, after, n).into_iter();
    let shown = |at: &Zoned, part: &str| at.strftime(&format!("%Y-%m-%dT%H:%M:%S{part}%:z")).to_string();
    let moment = |next: timing::Upcoming| {
        json!({
            "at": shown(&next.at, ""),
            "planned_for": next.planned_for.as_ref().map(|planned| shown(planned, "%.f")),
            "note": next.note,
        })
    };
    upcoming.map(moment).collect()
}

/// The next due times of a schedule that is not saved yet, in words too, or why it is wrong: what a task would be refused
/// for is refused here.
///
/// # Errors
/// 400 with the field.
pub async fn preview(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Result<Json<Value>, ApiError> {
    let mut body = json_body(&headers, &body)?;
    let n = body.as_object_mut().and_then(|members| members.remove("n")).filter(|n| !n.is_null());
    let n = n.map_or(Some(5), |n| n.as_u64().and_then(|n| usize::try_from(n).ok()));
    let n = n
        .filter(|n| (1..=MAX_NEXT).contains(n))
        .ok_or_else(|| ApiError::invalid("n", "n must be a number from 1 to 500"))?;
    let now = api.publisher.clock().now();
    count_from_now(Some(&mut body), now);
    let schedule = parse::schedule_from_json(&body)?;
    let timing = timing::check(&schedule, api.viewer.registry.zone(), now)
        .map_err(|wrong| ApiError::invalid(wrong.key, wrong.message))?;
    // By how much `jitter` and `stagger` move it is drawn when the task is made.
    let timing = timing.without_spread();
    Ok(Json(json!({
        "items": moments(&timing, now, now, n),
        "words": words::words(&schedule, &timing),
        "zone": timing::zone_name(timing.zone()),
    })))
}

/// What became of a task's due times, the newest first.
///
/// # Errors
/// 404, 400.
pub async fn slots(
    State(api): State<Api>,
    Path(id): One,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, ApiError> {
    let task = known(&api, &id)?;
    let most = limit(query.limit.as_deref(), 50, 500)?;
    let wrong = |_| ApiError::invalid("cursor", "this is no cursor of this list");
    let before: Option<Timestamp> = query.cursor.as_deref().map(str::parse).transpose().map_err(wrong)?;
    let no = task.no;
    let mut slots =
        api.store.read(move |connection| crate::task::slots::list(connection, no, before, most + 1)).await?;
    let more = slots.len() > most;
    slots.truncate(most);
    let next = slots.last().filter(|_| more).map(|slot| crate::clock::rfc3339(slot.scheduled_for));
    Ok(Json(json!({ "items": slots, "next": next })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_counted_from_now_and_a_time_stays_as_it_is() {
        let now: Timestamp = "2026-11-20T20:00:00.5Z".parse().unwrap();
        let counted = |at: &str| {
            let mut schedule = json!({ "at": at });
            count_from_now(Some(&mut schedule), now);
            schedule["at"].as_str().unwrap().to_owned()
        };
        assert_eq!(counted("20m"), "2026-11-20T20:20:01Z");
        assert_eq!(counted("2026-12-01T03:00"), "2026-12-01T03:00");
        assert_eq!(counted("tomorrow"), "tomorrow");
    }
}
