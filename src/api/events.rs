//! `GET /api/v1/tasks/{task}/events`: the log in pages, with the same cursor as the socket.

use std::fmt::Write as _;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Api;
use super::error::{ApiError, run_id, task_id};
use crate::event::{Gen, RunId, Seq, TaskId};
use crate::run::queue::RunError;
use crate::stream::log::{self, Bounds};

/// The most events of a page.
const MAX_LIMIT: usize = 500;
/// How many events are looked at for one page of one run.
const MAX_LOOK: usize = 20_000;

/// What page is asked for.
#[derive(Debug, Deserialize)]
pub struct PageQuery {
    #[serde(rename = "gen")]
    generation: Option<String>,
    after: Option<String>,
    before: Option<String>,
    limit: Option<String>,
    run: Option<String>,
}

/// A page in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    After(Seq),
    Before(Seq),
}

fn number(field: &str, text: Option<&str>) -> Result<Option<u64>, ApiError> {
    let wrong = || ApiError::invalid(field, format!("{field} must be a number from 0 to 9007199254740991"));
    let read = |text: &str| text.parse::<u64>().ok().filter(|number| *number < 1 << 53).ok_or_else(wrong);
    text.map(read).transpose()
}

/// One page of a task's log.
///
/// # Errors
/// 400 for a query that is none; 404; 409 `generation`, 409 `future` and 410 `retention`, each with `oldest`,
/// `head` and `gen`.
pub async fn page(
    State(api): State<Api>,
    Path(task): Path<String>,
    Query(query): Query<PageQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("*/*");
    if !accept.contains("json") && !accept.contains("*/*") && !accept.contains("application/*") {
        let detail = "events come as application/json here, and live over /api/v1/live";
        return Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail));
    }
    let id = task_id(&task)?;
    let topic = api.publisher.topic(&id).ok_or_else(|| ApiError::no_task(&task))?;
    let position = match (number("after", query.after.as_deref())?, number("before", query.before.as_deref())?) {
        (Some(_), Some(_)) => return Err(ApiError::invalid("before", "give after or before, not both")),
        (after, None) => Position::After(Seq(after.unwrap_or(0))),
        (None, Some(before)) => Position::Before(Seq(before)),
    };
    let limit = match number("limit", query.limit.as_deref())? {
        Some(0) => return Err(ApiError::invalid("limit", "limit must be from 1 to 500")),
        Some(limit) => usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT),
        None => MAX_LIMIT,
    };
    let generation = match query.generation.as_deref() {
        Some(text) => Some(text.parse().map_err(|()| ApiError::invalid("gen", "gen is 16 lower-case hex digits"))?),
        None => None,
    };
    let run = match query.run.as_deref() {
        Some(text) => Some(api.runs.find(run_id(text)?).await?),
        None => None,
    };
    if let Some(run) = &run
        && run.task != id
    {
        return Err(ApiError::no_run(&run.id.to_string()));
    }
    // Of one run only what lies between its first and its last event is looked at.
    let within = run.as_ref().map(|run| Within {
        id: run.id,
        first: run.first_seq,
        last: run.state.is_ended().then_some(run.last_seq),
    });
    let no = topic.no;
    let read = move |connection: &rusqlite::Connection| {
        let Some(bounds) = log::bounds(connection, no)? else { return Ok(None) };
        if let Err(gone) = check(position, generation, &bounds) {
            return Ok(Some((bounds, Err(gone))));
        }
        let items = collect(connection, no, &bounds, position, limit, within)?;
        Ok(Some((bounds, Ok(items))))
    };
    let (bounds, items) = api.store.read(read).await?.ok_or_else(|| ApiError::no_task(&task))?;
    match items {
        Ok(items) => Ok(answer(&id, &bounds, &items)),
        Err(gone) => {
            let mut generation = bounds.generation;
            if gone == Gone::Future {
                generation = api.publisher.renew(&topic, bounds.generation).await?;
            }
            Err(gone.error(&bounds, generation))
        }
    }
}

/// The run that a page is about.
#[derive(Clone, Copy, Debug)]
struct Within {
    id: RunId,
    first: Seq,
    last: Option<Seq>,
}

/// Why a position is none of this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    Generation,
    Future,
    Retention,
}

impl Gone {
    fn error(self, bounds: &Bounds, generation: Gen) -> ApiError {
        let (status, code, detail) = match self {
            Self::Generation => (
                StatusCode::CONFLICT,
                "generation",
                "this position is in another log of the task: start again without gen and after",
            ),
            Self::Future => (
                StatusCode::CONFLICT,
                "future",
                "this position is beyond the end of the log: start again without gen and after",
            ),
            Self::Retention => (
                StatusCode::GONE,
                "retention",
                "the events behind this position are no longer kept: go on after oldest - 1",
            ),
        };
        ApiError::new(status, code, detail)
            .with("oldest", bounds.oldest.0)
            .with("head", bounds.head.0)
            .with("gen", generation.to_string())
    }
}

fn check(position: Position, generation: Option<Gen>, bounds: &Bounds) -> Result<(), Gone> {
    let (seq, least, most) = match position {
        Position::After(seq) => (seq, bounds.oldest.prev(), bounds.head),
        // "Before the end of time" is a way to ask for the last page, and no position that somebody has seen.
        Position::Before(seq) => (seq.min(bounds.head.next()), bounds.oldest, bounds.head.next()),
    };
    if seq == Seq(0) {
        return Ok(());
    }
    if generation != Some(bounds.generation) {
        return Err(Gone::Generation);
    }
    if seq > most {
        return Err(Gone::Future);
    }
    if seq < least { Err(Gone::Retention) } else { Ok(()) }
}

/// What is on a page.
#[derive(Debug, Default)]
struct Items {
    text: String,
    next: Seq,
    more: bool,
}

fn collect(
    connection: &rusqlite::Connection,
    no: crate::store::TaskNo,
    bounds: &Bounds,
    position: Position,
    limit: usize,
    within: Option<Within>,
) -> rusqlite::Result<Items> {
    let (first, last) = match within {
        Some(run) => (run.first.max(bounds.oldest), run.last.unwrap_or(bounds.head).min(bounds.head)),
        None => (bounds.oldest, bounds.head),
    };
    let mark = within.map(|run| format!(r#""run":"{}""#, run.id));
    // The run stands right behind the task, before anything that came from outside.
    let is_of =
        |event: &str| mark.as_ref().is_none_or(|mark| event[..event.floor_char_boundary(160)].contains(mark.as_str()));
    let mut found: Vec<String> = Vec::new();
    let mut looked = 0;
    match position {
        Position::After(given) => {
            let mut next = given;
            let mut from = given.next().max(first);
            'pages: while from <= last && found.len() < limit && looked < MAX_LOOK {
                let page = log::page(connection, no, from)?;
                if page.is_empty() {
                    break;
                }
                for (seq, event) in page.iter().flat_map(|segment| segment.events()) {
                    if seq < from {
                        continue;
                    }
                    if seq > last || found.len() == limit {
                        break 'pages;
                    }
                    looked += 1;
                    next = seq;
                    if is_of(event) {
                        found.push(event.to_owned());
                    }
                }
                from = next.next();
                if within.is_none() {
                    break;
                }
            }
            // With nothing left of it (retention took all), there is no more, wherever the position is.
            Ok(Items { text: found.join(","), next, more: next < last && first <= last })
        }
        Position::Before(given) => {
            let mut next = given;
            'back: while next > first && found.len() < limit && looked < MAX_LOOK {
                let page = log::page_back(connection, no, next.prev().min(last))?;
                let before = next;
                for (seq, event) in page.iter().rev().flat_map(|segment| segment.events().rev()) {
                    if seq >= before || seq > last {
                        continue;
                    }
                    if seq < first || found.len() == limit {
                        break 'back;
                    }
                    looked += 1;
                    next = seq;
                    if is_of(event) {
                        found.push(event.to_owned());
                    }
                }
                if within.is_none() || next == before {
                    break;
                }
            }
            found.reverse();
            Ok(Items { text: found.join(","), next, more: next > first && first <= last })
        }
    }
}

fn answer(task: &TaskId, bounds: &Bounds, items: &Items) -> Response {
    let Bounds { generation, oldest, head, .. } = bounds;
    let Items { text, next, more } = items;
    let mut body = String::with_capacity(text.len() + 160);
    let _ = write!(body, r#"{{"task":"{task}","gen":"{generation}","oldest":{oldest},"head":{head},"items":["#);
    body.push_str(text);
    let _ = write!(body, r#"],"next":{next},"more":{more}}}"#);
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// An event that was cut, as it was; one that was not, as it is.
///
/// # Errors
/// 404 when the run or the event is not there.
pub async fn full(State(api): State<Api>, Path((run, seq)): Path<(String, String)>) -> Result<Response, ApiError> {
    let none = || ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("run {run} has no event {seq}"));
    let id = run_id(&run)?;
    let number = Seq(seq.parse().map_err(|_| none())?);
    let found = api.runs.find(id).await?;
    let topic = api.publisher.topic(&found.task).ok_or(RunError::NoTask(found.task))?;
    let no = topic.no;
    let read = move |connection: &rusqlite::Connection| {
        if let Some(whole) = log::whole(connection, no, number)? {
            return Ok(Some(whole));
        }
        let page = log::page(connection, no, number)?;
        let event = page.iter().flat_map(|segment| segment.events()).find(|(seq, _)| *seq == number);
        Ok(event.map(|(_, event)| event.to_owned()))
    };
    let event = api.store.read(read).await?.ok_or_else(none)?;
    let of_run = serde_json::from_str::<log::Stored<'_>>(&event).is_ok_and(|event| event.run == Some(id));
    if !of_run {
        return Err(none());
    }
    Ok(([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")], event).into_response())
}
