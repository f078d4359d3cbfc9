//! `GET /api/v1/tasks/{task}/events`: the log in pages, with the same cursor as the socket.

use std::fmt::Write as _;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Api;
use super::error::{ApiError, run_id, task_id};
use crate::event::{Gen, RunId, Seq, TaskId};
use crate::run::queue::{RunError, Runs};
use crate::stream::log::{self, Bounds};
use crate::stream::reader::Span;

/// The most events of a page.
const MAX_LIMIT: usize = 500;
/// How much of a log is looked at for one page of one run: the events of others in between cost reading too.
const MAX_LOOK: usize = 20_000;
/// The same in bytes.
const MAX_LOOK_BYTES: usize = 4 * 1024 * 1024;

/// In which form events are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A page of JSON, which has an end.
    Page,
    /// Server-sent events.
    Stream,
}

impl Form {
    /// The form that the `Accept` header likes most; none when it takes neither. The stream goes only to those who
    /// name it, and to those who name both equally goes the page, which ends.
    pub fn asked_for(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let (mut page, mut any, mut stream, mut said) = (0.0_f32, 0.0_f32, 0.0_f32, false);
        for range in lines.flat_map(|line| line.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(1.0));
            let liked = match kind.as_str() {
                "" => continue,
                "text/event-stream" | "text/*" => &mut stream,
                "*/*" | "application/*" => &mut any,
                kind if kind == "application/json" || kind.ends_with("+json") => &mut page,
                _ => {
                    said = true;
                    continue;
                }
            };
            said = true;
            *liked = liked.max(quality);
        }
        if stream > 0.0 && stream > page && stream >= any {
            Some(Self::Stream)
        } else if page > 0.0 || any > 0.0 || !said {
            Some(Self::Page)
        } else {
            None
        }
    }
}

/// Which events are asked for.
#[derive(Debug, Deserialize)]
pub struct EventsQuery {
    /// The log of the position.
    #[serde(rename = "gen")]
    pub generation: Option<String>,
    /// The last event that is there already.
    pub after: Option<String>,
    /// The first that is there already, going back; of pages only.
    pub before: Option<String>,
    /// The most events of a page.
    pub limit: Option<String>,
    /// Only those of this run.
    pub run: Option<String>,
}

/// One run within the log of its task.
#[derive(Clone, Debug)]
pub struct OfRun {
    /// What its events have in their text.
    mark: String,
    /// Where it lies.
    pub span: Span,
}

impl OfRun {
    /// The run that a query names, if it names one.
    ///
    /// # Errors
    /// 404 when there is no such run of this task.
    pub async fn named(runs: &Runs, task: &TaskId, run: Option<&str>) -> Result<Option<Self>, ApiError> {
        let Some(text) = run else { return Ok(None) };
        let run = runs.find(run_id(text)?).await?;
        if run.task != *task {
            return Err(ApiError::no_run(text));
        }
        let last = run.state.is_ended().then_some(run.last_seq);
        Ok(Some(Self { mark: mark(run.id), span: Span { first: run.first_seq, last } }))
    }

    /// Whether it is this run.
    pub fn is(&self, run: RunId) -> bool {
        self.mark == mark(run)
    }

    /// Whether an event is of it. The run stands right behind the task, before anything that came from outside.
    pub fn has(&self, event: &str) -> bool {
        event[..event.floor_char_boundary(160)].contains(&self.mark)
    }
}

fn mark(run: RunId) -> String {
    format!(r#""run":"{run}""#)
}

/// A page in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    After(Seq),
    Before(Seq),
}

/// Reads a number of a query.
///
/// # Errors
/// 400 for what is none.
pub fn number(field: &str, text: Option<&str>) -> Result<Option<u64>, ApiError> {
    let wrong = || ApiError::invalid(field, format!("{field} must be a number from 0 to 9007199254740991"));
    let read = |text: &str| text.parse::<u64>().ok().filter(|number| *number < 1 << 53).ok_or_else(wrong);
    text.map(read).transpose()
}

/// One page of a task's log.
///
/// # Errors
/// 400 for a query that is none; 404; 409 `generation`, 409 `future` and 410 `retention`, each with `oldest`,
/// `head` and `gen`.
pub async fn page(api: &Api, task: &str, query: &EventsQuery) -> Result<Response, ApiError> {
    let id = task_id(task)?;
    let topic = api.publisher.topic(&id).ok_or_else(|| ApiError::no_task(task))?;
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
    let of_run = OfRun::named(&api.runs, &id, query.run.as_deref()).await?;
    let no = topic.no;
    let read = move |connection: &rusqlite::Connection| {
        let Some(bounds) = log::bounds(connection, no)? else { return Ok(None) };
        if let Err(gone) = check(position, generation, &bounds) {
            return Ok(Some((bounds, Err(gone))));
        }
        let items = collect(connection, no, &bounds, position, Search::new(limit, of_run))?;
        Ok(Some((bounds, Ok(items))))
    };
    let (bounds, items) = api.store.read(read).await?.ok_or_else(|| ApiError::no_task(task))?;
    match items {
        Ok(items) => Ok(answer(&id, &bounds, &items)),
        Err(gone) => {
            let mut generation = bounds.generation;
            if gone == Gone::Future {
                let renewed = api.publisher.renew(&topic, bounds.generation).await?;
                generation = renewed.ok_or_else(|| ApiError::no_task(task))?;
            }
            Err(gone.error(&bounds, generation))
        }
    }
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

/// The search for what goes on one page.
#[derive(Debug)]
struct Search {
    of_run: Option<OfRun>,
    limit: usize,
    found: Vec<String>,
    found_bytes: usize,
    looked: usize,
    looked_bytes: usize,
}

impl Search {
    fn new(limit: usize, of_run: Option<OfRun>) -> Self {
        Self { of_run, limit, found: Vec::new(), found_bytes: 0, looked: 0, looked_bytes: 0 }
    }

    /// Looks at the next event; false when that is for another page.
    fn look(&mut self, event: &str) -> bool {
        if self.looked >= MAX_LOOK || self.looked_bytes >= MAX_LOOK_BYTES {
            return false;
        }
        if self.of_run.as_ref().is_none_or(|of_run| of_run.has(event)) {
            let full = self.found.len() == self.limit || self.found_bytes + event.len() > log::PAGE_BYTES;
            // One event always goes.
            if full && !self.found.is_empty() {
                return false;
            }
            self.found_bytes += event.len() + 1;
            self.found.push(event.to_owned());
        }
        self.looked += 1;
        self.looked_bytes += event.len();
        true
    }
}

fn collect(
    connection: &rusqlite::Connection,
    no: crate::store::TaskNo,
    bounds: &Bounds,
    position: Position,
    mut search: Search,
) -> rusqlite::Result<Items> {
    let span = search.of_run.as_ref().map_or(Span::ALL, |of_run| of_run.span);
    let (first, last) = (span.first.max(bounds.oldest), span.last.unwrap_or(bounds.head).min(bounds.head));
    let mut next;
    let more;
    match position {
        Position::After(given) => {
            next = given;
            'pages: loop {
                let from = next.next().max(first);
                if from > last {
                    break;
                }
                let page = log::page(connection, no, from)?;
                for (seq, event) in page.iter().flat_map(|segment| segment.events()).filter(|(seq, _)| *seq >= from) {
                    if seq > last || !search.look(event) {
                        break 'pages;
                    }
                    next = seq;
                }
                if next < from {
                    return Err(log::damaged());
                }
            }
            more = next < last;
        }
        Position::Before(given) => {
            next = given;
            'back: while next > first && first <= last {
                let through = next.prev().min(last);
                let page = log::page_back(connection, no, through)?;
                let events = page.iter().rev().flat_map(|segment| segment.events().rev());
                for (seq, event) in events.filter(|(seq, _)| *seq <= through) {
                    if seq < first || !search.look(event) {
                        break 'back;
                    }
                    next = seq;
                }
                if next > through {
                    return Err(log::damaged());
                }
            }
            search.found.reverse();
            more = next > first;
        }
    }
    // With nothing left of it (retention took all), there is no more, wherever the position is.
    Ok(Items { text: search.found.join(","), next, more: more && first <= last })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_goes_to_those_who_name_it_and_the_page_to_everybody_else() {
        let asked = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in accept {
                headers.append(header::ACCEPT, line.parse().unwrap());
            }
            Form::asked_for(&headers)
        };
        let (page, stream) = (Some(Form::Page), Some(Form::Stream));
        assert_eq!(asked(&[]), page);
        assert_eq!(asked(&["*/*"]), page);
        assert_eq!(asked(&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"]), page);
        assert_eq!(asked(&["application/json"]), page);
        assert_eq!(asked(&["text/event-stream"]), stream);
        assert_eq!(asked(&["Text/Event-Stream; charset=utf-8"]), stream);
        assert_eq!(asked(&["text/event-stream, */*"]), stream);
        assert_eq!(asked(&["text/*"]), stream);
        assert_eq!(asked(&["application/json, text/event-stream"]), page, "a page has an end");
        assert_eq!(asked(&["application/json;q=0.5", "text/event-stream"]), stream);
        assert_eq!(asked(&["text/event-stream;q=0.5, application/json"]), page);
        assert_eq!(asked(&["text/event-stream;q=0, application/json;q=0.1"]), page);
        assert_eq!(asked(&["text/event-stream;q=0"]), None);
        assert_eq!(asked(&["image/png"]), None);
        assert_eq!(asked(&["text/html"]), None);
    }
}
