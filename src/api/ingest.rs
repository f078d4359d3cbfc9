//! What a program elsewhere asks for: a run to carry out, a place to say what happens, and whether to stop.
//!
//! `POST /api/v1/runs/{run}/events` takes lines over one request that may last as long as the run.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::auth::Credential;
use super::error::{ApiError, run_id, task_id};
use super::once::Key;
use super::{Api, One};
use crate::run::external::feed::{Feed, Receipt, Rejected};
use crate::run::external::{Elsewhere, Replaced};
use crate::run::queue::RunError;
use crate::run::queue::elsewhere::Also;
use crate::run::runner::StopCause;

/// The longest name of a producer.
const MAX_NAME: usize = 100;
/// How long a request may be waited in, in seconds.
const MAX_WAIT: u64 = 60;
/// How long who asks for work waits unless said.
const CLAIM_WAIT: u64 = 30;
/// After an answer that comes before the end of the body, what still comes is read for so long: who only writes has
/// a chance to see it.
const LINGER: Duration = Duration::from_secs(1);
/// How long the body may go on after the line that ended the run.
const LAST_LINES: Duration = Duration::from_secs(5);
/// How long what is on its way to the log is waited for when the request is cut short.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How long is waited for an answer.
#[derive(Debug, Deserialize)]
pub struct WaitQuery {
    wait: Option<String>,
}

impl WaitQuery {
    fn or(&self, default: u64) -> Result<Duration, ApiError> {
        let wrong = || ApiError::invalid("wait", format!("wait must be a number of seconds from 0 to {MAX_WAIT}"));
        let seconds = self.wait.as_deref().map_or(Ok(default), |text| text.parse().map_err(|_| wrong()))?;
        if seconds > MAX_WAIT { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
    }
}

/// Gives a run of the task to who asks, once there is one.
///
/// # Errors
/// 404, 409 `not_external`, 409 for a key that is taken.
pub async fn claim(
    State(api): State<Api>,
    Extension(credential): Extension<Credential>,
    Path(id): One,
    Query(query): Query<WaitQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let task = task_id(&id)?;
    let wait = query.or(CLAIM_WAIT)?;
    let begin = Instant::now();
    let (key, asked) = (Key::of(&headers)?, format!("claim {task}"));
    // Whoever waits with this key already, over a line that is dead, is not waited for any longer than for a run.
    let Ok(once) = tokio::time::timeout(wait, api.acts.keys.enter(key, &asked, &credential)).await else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let once = once?;
    if let Some(run) = once.done().await?.and_then(|done| done.run) {
        let run = api.runs.find(run).await?;
        return Ok(Json(json!({ "run": run })).into_response());
    }
    let note = once.note().of_run(task.clone());
    // It has the turn too: a run that is given to who hung up is noted before the same key is looked for again.
    let also: Also = Arc::new(move |connection, run| {
        let _turn = &once;
        note(connection, run)
    });
    let wait = wait.saturating_sub(begin.elapsed());
    match api.runs.claim(&task, wait, also).await? {
        Some(run) => Ok(Json(json!({ "run": run })).into_response()),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// Whether the program of a run is to stop: told as soon as it is asked for.
///
/// # Errors
/// 404, 409 `not_external`, 409 `run_over`.
pub async fn stop_asked(
    State(api): State<Api>,
    Path(id): One,
    Query(query): Query<WaitQuery>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let wait = query.or(0)?;
    let name = producer(&headers)?;
    let seat = api.runs.elsewhere(run_id(&id)?).await?;
    // Who asks is there.
    let _presence = seat.listen(name).map_err(|replaced| fenced(&seat, &replaced))?;
    tokio::select! {
        _ = seat.stop_raised() => {}
        () = seat.over() => return Err(over(&api, &seat).await),
        () = api.runs.leaving() => return Err(RunError::Stopping.into()),
        () = tokio::time::sleep(wait) => {}
    }
    let why = seat.stop_cause().map(|cause| match cause {
        StopCause::TimedOut(_) | StopCause::Silent(_) => "timed_out",
        StopCause::Asked | StopCause::Replaced | StopCause::Shutdown => "asked",
    });
    Ok(Json(json!({ "stop": why.is_some(), "why": why, "last_n": seat.producer.saved() })))
}

/// Takes what a program elsewhere says of its run, line by line.
///
/// # Errors
/// 404, 409 `not_external`, `run_over`, `gap` and `fenced`, 400 `bad_line`, 503 while the server goes down.
pub async fn append(
    State(api): State<Api>,
    Path(id): One,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Json<Value>, ApiError> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        let detail = "lines are taken as they are: send them without Content-Encoding";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid", detail));
    }
    let name = producer(&headers)?;
    let none_taken = |error: RunError| ApiError::from(error).with("accepted", 0);
    let seat = api.runs.elsewhere(run_id(&id)?).await.map_err(none_taken)?;
    let (_presence, mut entry) = seat.enter(name).map_err(|replaced| fenced(&seat, &replaced))?;
    let turn = api.publisher.take_turn(&seat.producer).await?;
    let run = seat.topic.tail().fold.run(seat.id).cloned();
    let Some(run) = run else {
        seat.end();
        return Err(over(&api, &seat).await.with("accepted", 0));
    };
    let mut feed = Feed::new(api.publisher.clone(), Arc::clone(&seat), turn, run);
    let cut_short = async {
        tokio::select! {
            biased;
            () = seat.over() => Rejected::RunOver,
            () = entry.fenced() => Rejected::Fenced,
            () = api.runs.leaving() => Rejected::Stopping,
        }
    };
    tokio::pin!(cut_short);
    let (done, cut) = tokio::select! {
        biased;
        done = read(&mut body, &mut feed) => (done, false),
        rejected = &mut cut_short => (Err(rejected), true),
    };
    // Where the producer ended the run itself, that is no reason to hang up on it.
    let done = if cut && feed.has_ended() { read_last(&mut body, &mut feed).await } else { done };
    let done = match (done, tokio::time::timeout(LAST_EVENTS, feed.settle()).await) {
        (Ok(()), Ok(Err(rejected))) => Err(rejected),
        (done, _) => done,
    };
    let receipt = feed.receipt();
    match done {
        Ok(()) => Ok(Json(answer(&receipt))),
        Err(rejected) => {
            linger(body);
            Err(refused(&api, &seat, rejected, &receipt).await)
        }
    }
}

/// The name that a program gave itself: once another has come, it is refused by it.
fn producer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(name) = headers.get("rejoin-producer") else { return Ok(None) };
    let good = |name: &&str| !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(|c| c.is_ascii_graphic());
    name.to_str().ok().filter(good).map(Some).ok_or_else(|| {
        let detail = format!("a producer's name is 1 to {MAX_NAME} printable characters without spaces");
        ApiError::invalid("Rejoin-Producer", detail)
    })
}

fn fenced(seat: &Elsewhere, replaced: &Replaced) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "fenced", replaced.to_string())
        .with("accepted", 0)
        .with("last_n", seat.producer.saved())
}

/// Reads the body to its end.
async fn read(body: &mut Body, feed: &mut Feed) -> Result<(), Rejected> {
    loop {
        tokio::select! {
            biased;
            landed = feed.landed() => landed?,
            frame = body.frame() => match frame {
                Some(Ok(frame)) => {
                    if let Ok(chunk) = frame.into_data() {
                        feed.take(&chunk).await?;
                    }
                }
                // Cut: what came of the last line is nothing. Nobody is there to be told.
                Some(Err(_)) => return feed.settle().await,
                None => return feed.finish().await,
            },
        }
    }
}

/// What comes after the line that ended the run: nothing, or it is said that it is too late.
async fn read_last(body: &mut Body, feed: &mut Feed) -> Result<(), Rejected> {
    tokio::time::timeout(LAST_LINES, read(body, feed)).await.unwrap_or(Ok(()))
}

fn answer(receipt: &Receipt) -> Value {
    let Receipt { accepted, last_n, last_seq, stop } = receipt;
    json!({ "accepted": accepted, "last_n": last_n, "last_seq": last_seq, "stop": stop })
}

/// Why no more is taken, with how far the producer has come.
async fn refused(api: &Api, seat: &Elsewhere, rejected: Rejected, receipt: &Receipt) -> ApiError {
    let detail = rejected.to_string();
    let conflict = |code| ApiError::new(StatusCode::CONFLICT, code, detail.clone());
    let error = match rejected {
        Rejected::BadLine { line, .. } => ApiError::new(StatusCode::BAD_REQUEST, "bad_line", detail).with("line", line),
        Rejected::Gap { line, .. } => conflict("gap").with("line", line),
        Rejected::Fenced => conflict("fenced"),
        Rejected::RunOver => over(api, seat).await,
        Rejected::LogGone => ApiError::no_run(&seat.id.to_string()),
        Rejected::Stopping => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail),
    };
    error.with("accepted", receipt.accepted).with("last_n", receipt.last_n).with("last_seq", json!(receipt.last_seq))
}

/// The run is over: how it ended.
async fn over(api: &Api, seat: &Elsewhere) -> ApiError {
    match api.runs.find(seat.id).await {
        Ok(run) => RunError::Over(Box::new(run)).into(),
        Err(error) => error.into(),
    }
}

/// Reads on for a while without looking.
fn linger(mut body: Body) {
    tokio::spawn(tokio::time::timeout(LINGER, async move { while let Some(Ok(_)) = body.frame().await {} }));
}
