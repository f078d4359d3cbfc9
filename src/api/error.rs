//! The one place where errors become HTTP: problem+json (RFC 9457) with a stable `code`. What is inside stays
//! inside: an internal error is logged with a number, and only the number is told.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tracing::error;

use crate::event::{RunId, TaskId};
use crate::run::queue::RunError;
use crate::store::StoreError;
use crate::task::parse::Problems;
use crate::task::registry::TaskError;

/// An error as clients see it.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    more: Map<String, Value>,
}

impl ApiError {
    /// An error with its stable code and its words.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), more: Map::new() }
    }

    /// With one more member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// A member of the request is wrong.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", detail).with("field", field)
    }

    /// There is no such task, or it is not for this credential: the same answer.
    pub fn no_task(id: &str) -> Self {
        let id: String = id.chars().take(80).collect();
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no task {id:?}"))
    }

    /// There is no such run.
    pub fn no_run(id: &str) -> Self {
        let id: String = id.chars().take(80).collect();
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no run {id:?}"))
    }

    /// No credential, or none that is good.
    pub fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "sign in first: `rejoin open` on the server's machine gives a link",
        )
    }

    /// Something inside. What it is goes to the log.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        let number = uuid::Uuid::now_v7();
        error!(%number, %cause, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            format!("something went wrong; the log has it as {number}"),
        )
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The words.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        for (name, value) in self.more {
            body[name] = value;
        }
        let mut response = (self.status, Json(body)).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// What the framework refuses by itself, before a handler is asked, is said as everything else: as a problem.
pub async fn as_problem(request: Request, next: Next) -> Response {
    const KIND: &str = "application/problem+json";
    let is_api = request.uri().path().starts_with("/api");
    let response = next.run(request).await;
    let status = response.status();
    let is_said = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == KIND);
    if !is_api || is_said || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, 4096).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let problem = match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            ApiError::new(status, "method_not_allowed", "there is no such call at this path")
        }
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(status, "too_large", "the body is too large: 1 MiB at most"),
        status if status.is_client_error() => {
            let field = text.split('`').nth(1).unwrap_or_default().to_owned();
            ApiError::new(status, "invalid", text).with("field", field)
        }
        _ => ApiError::internal(&text),
    };
    // Which calls there are, which ranges: what stands in headers stays.
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    let mut response = problem.into_response();
    response.headers_mut().extend(parts.headers);
    response
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotWritable(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not_writable",
                "the store cannot be written at the moment, most often because the disk is full: free some space, then try again",
            ),
            StoreError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "the server is stopping"),
            StoreError::Broken(cause) => Self::internal(&cause),
        }
    }
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Exists(id) => {
                let detail = TaskError::Exists(id).to_string();
                Self::new(StatusCode::CONFLICT, "conflict", detail).with("field", "id")
            }
            TaskError::NotFound(id) => Self::no_task(id.as_str()),
            TaskError::Schedule(wrong) => Self::invalid(&format!("schedule.{}", wrong.key), wrong.message),
            TaskError::Running => Self::new(StatusCode::CONFLICT, "task_running", TaskError::Running.to_string()),
            TaskError::Store(error) => error.into(),
        }
    }
}

impl From<RunError> for ApiError {
    fn from(error: RunError) -> Self {
        let detail = error.to_string();
        match error {
            RunError::NoTask(id) => Self::no_task(id.as_str()),
            RunError::NoRun(id) => Self::no_run(&id.to_string()),
            RunError::Over(run) => {
                Self::new(StatusCode::CONFLICT, "run_over", detail).with("last_n", run.last_n).with("run", json!(run))
            }
            RunError::NotOver(run) => Self::new(StatusCode::CONFLICT, "conflict", detail).with("run", json!(run)),
            RunError::QueueFull(_) | RunError::TooManyOpen(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "limit", detail)
            }
            RunError::Param(name, _) if name.is_empty() => Self::invalid("params", detail),
            RunError::Param(name, _) => Self::invalid(&format!("params.{name}"), detail),
            RunError::NotElsewhere(_) | RunError::DoneHere(_) => {
                Self::new(StatusCode::CONFLICT, "not_external", detail)
            }
            RunError::Disabled(_) | RunError::Broken(..) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            RunError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail),
            RunError::Store(error) => error.into(),
        }
    }
}

impl From<Problems> for ApiError {
    fn from(problems: Problems) -> Self {
        let first = problems.first();
        Self::invalid(&first.key, first.message.clone()).with("errors", json!(problems))
    }
}

/// Reads a task id of a path.
///
/// # Errors
/// Not found: what is no id names no task.
pub fn task_id(text: &str) -> Result<TaskId, ApiError> {
    text.parse().map_err(|_| ApiError::no_task(text))
}

/// Reads a run id of a path.
///
/// # Errors
/// Not found: what is no id names no run.
pub fn run_id(text: &str) -> Result<RunId, ApiError> {
    text.parse().map_err(|_| ApiError::no_run(text))
}
