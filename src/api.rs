//! The outside over HTTP: JSON under `/api/v1`, the socket for watchers, health, and the page.
//!
//! Nothing below this module knows HTTP.

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use tokio::sync::Notify;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

use crate::housekeeping::Housekeeping;
use crate::notify::Notifier;
use crate::planner::Trust;
use crate::run::queue::Runs;
use crate::store::Store;
use crate::stream::publish::Publisher;

use act::Acts;
use auth::Credential;
use door::Door;
use error::ApiError;
use live::{Live, Opening};
use socket::Came;
use wire::Viewer;

pub mod act;
pub mod attention;
pub mod auth;
pub mod board;
pub mod calendar;
pub mod command;
pub mod doctor;
pub mod door;
pub mod error;
pub mod events;
pub mod feed;
pub mod frame;
pub mod housekeeping;
pub mod hub;
pub mod ingest;
pub mod live;
pub mod metrics;
pub mod notice;
pub mod notifications;
pub mod once;
pub mod outgoing;
pub mod pace;
pub mod runs;
pub mod session;
pub mod socket;
pub mod status;
pub mod sub;
pub mod tasks;
pub mod web;
pub mod websocket;
pub mod wire;

/// What a copy of the store is, on the wire.
const BACKUP_TYPE: &str = "application/vnd.sqlite3";

/// The largest body of a call: a task with hundreds of steps is a tenth of it.
const MAX_BODY: usize = 1024 * 1024;

/// The parts that calls are answered with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    /// Tasks as clients see them.
    pub viewer: Viewer,
    /// Their runs.
    pub runs: Runs,
    /// Who tells people.
    pub notifier: Notifier,
    /// What can be asked of them.
    pub acts: Acts,
    /// Their streams.
    pub publisher: Publisher,
    /// What is kept.
    pub store: Arc<Store>,
    /// Who may come in.
    pub door: Arc<Door>,
    /// The sockets.
    pub live: Arc<Live>,
    /// Rung when a schedule changed.
    pub planner: Arc<Notify>,
    /// Whether the clock is believed.
    pub trust: Arc<Trust>,
    /// Rung when something was snoozed.
    pub snoozed: Arc<Notify>,
    /// What the server says of itself.
    pub about: Arc<status::About>,
    /// What the server does for itself.
    pub housekeeping: Housekeeping,
    /// Who may read the metrics, and how many tasks have series of their own.
    pub scrape: Arc<metrics::Scrape>,
    /// Where the outputs of tool calls are.
    pub output_dir: Arc<std::path::Path>,
}

/// All routes.
pub fn router(api: Api) -> Router {
    let known = Router::new()
        .route("/tasks", get(tasks::list).post(tasks::add))
        .route("/tasks/{task}", get(tasks::show).patch(tasks::patch).delete(tasks::remove))
        .route("/tasks/{task}/pause", post(tasks::pause))
        .route("/tasks/{task}/resume", post(tasks::resume))
        .route("/tasks/{task}/export", get(tasks::export))
        .route("/tasks/{task}/next", get(tasks::next))
        .route("/tasks/{task}/slots", get(tasks::slots))
        .route("/tasks/{task}/runs", get(runs::list_of_task).post(runs::start))
        .route("/tasks/{task}/events", get(events_of_task))
        .route("/calendar", get(calendar::calendar))
        .route("/schedule/preview", post(tasks::preview))
        .route("/runs", get(runs::list))
        .route("/runs/{run}", get(runs::show))
        .route("/runs/{run}/stop", get(ingest::stop_asked).post(runs::stop))
        .route("/runs/{run}/retry", post(runs::retry))
        .route("/runs/{run}/message", post(runs::message))
        .route("/runs/{run}/approve", post(runs::approve))
        .route("/runs/{run}/deny", post(runs::deny))
        .route("/runs/{run}/acknowledge", post(attention::acknowledge))
        .route("/runs/{run}/snooze", post(attention::snooze))
        .route("/attention", get(attention::list))
        .route("/runs/{run}/output/{call}", get(runs::output))
        .route("/runs/{run}/events", post(ingest::append))
        .route("/runs/{run}/events/{seq}/full", get(events::full))
        .route("/notifications", get(notifications::list))
        .route("/notify", get(notifications::channels))
        .route("/notify/{channel}/test", post(notifications::test))
        .route("/session/codes", post(session::make_code))
        .route("/session/devices", get(session::devices))
        .route("/session/devices/{id}", delete(session::revoke))
        .route("/clock/accept", post(status::accept_clock))
        .route("/housekeeping", get(housekeeping::list))
        .route("/housekeeping/{chore}/run", post(housekeeping::run))
        .route("/backup", get(housekeeping::download))
        .route("/status", get(status::status))
        .route("/doctor", get(doctor::doctor))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&api.door), door::require));
    let waiting = Router::new()
        .route("/tasks/{task}/claim", post(ingest::claim))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&api.door), door::require_for_waiting));
    let v1 = known
        .merge(waiting)
        .route("/session", get(session::show).post(session::sign_in).delete(session::sign_out))
        .route("/live", any(open_live))
        .fallback(no_such_call);
    // Output of agents may hold what an attacker chose beside what is secret: no compression over both (BREACH);
    // the page's own files are compressed.
    // Nor over a stream of them: what waits for more to be packed with it is late.
    let small = SizeAbove::new(1024)
        .and(NotForContentType::new("application/json"))
        .and(NotForContentType::new("text/plain"))
        .and(NotForContentType::new(BACKUP_TYPE))
        .and(NotForContentType::SSE);
    let door = Arc::clone(&api.door);
    Router::new()
        .nest("/api/v1", v1)
        .route("/api", any(no_such_call))
        .route("/api/{*rest}", any(no_such_call))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz))
        .route("/metrics", get(metrics::page))
        .fallback(get(web::page))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn(error::as_problem))
        .layer(CompressionLayer::new().compress_when(small))
        .layer(CatchPanicLayer::custom(|_| ApiError::internal(&"a handler panicked").into_response()))
        .layer(axum::middleware::from_fn_with_state(door, door::guard))
        .with_state(api)
}

async fn no_such_call(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(120).collect();
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no call {} {path}", request.method()))
}

/// A task's events: as a page, or as a stream for those who ask for one.
async fn events_of_task(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    Extension(credential): Extension<Credential>,
    Path(task): One,
    Query(query): Query<events::EventsQuery>,
    parts: Parts,
) -> Result<Response, ApiError> {
    match events::Form::asked_for(&parts.headers) {
        Some(events::Form::Page) => events::page(&api, &task, &query).await,
        Some(events::Form::Stream) => feed::open(&api, &came, &credential, &task, &query, &parts).await,
        None => {
            let detail = "events come as application/json, as text/event-stream, and live over /api/v1/live";
            Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail))
        }
    }
}

/// The socket for watchers. Only a wrong host or origin is refused in HTTP, as a browser cannot see why; a bad
/// credential is told after the upgrade.
async fn open_live(State(api): State<Api>, ConnectInfo(came): ConnectInfo<Came>, mut request: Request) -> Response {
    let headers = request.headers();
    let header = api.door.by_header(headers);
    let cookie = api.door.by_cookie(headers, &came);
    // A cookie that comes without a header is sent by a browser, and a browser says where it comes from.
    let required = header.is_none() && cookie.is_some();
    if let Err(error) = api.door.check_origin(headers, &came, required) {
        return error.into_response();
    }
    let opening = Opening { header, cookie, meter: Arc::clone(&came.meter) };
    match websocket::accept(&mut request) {
        Ok((response, upgraded)) => {
            tokio::spawn(async move {
                // Who hangs up before the answer is there has no socket.
                if let Ok(upgraded) = upgraded.await {
                    api.live.serve(upgraded, opening).await;
                }
            });
            response
        }
        Err(error) => error.into_response(),
    }
}

/// Reads a JSON body; an empty one is an empty object.
///
/// # Errors
/// 415 for a body that is not declared as JSON, 400 for one that is none.
pub(crate) fn json_body(headers: &HeaderMap, body: &[u8]) -> Result<serde_json::Value, ApiError> {
    if body.is_empty() {
        return Ok(serde_json::Value::Object(serde_json::Map::new()));
    }
    let kind = headers.get(axum::http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/json") {
        let detail = "the body must be JSON, with Content-Type: application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid", detail));
    }
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| ApiError::invalid("", format!("the body is no JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(ApiError::invalid("", "the body must be a JSON object")) }
}

/// Reads how many are asked for.
///
/// # Errors
/// 400 when it is no number from 1 on.
pub(crate) fn limit(text: Option<&str>, default: usize, most: usize) -> Result<usize, ApiError> {
    let Some(text) = text else { return Ok(default) };
    match text.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number.min(most)),
        _ => Err(ApiError::invalid("limit", format!("limit must be a number from 1 to {most}"))),
    }
}

/// A path of one part, for handlers that need no more.
pub(crate) type One = Path<String>;
