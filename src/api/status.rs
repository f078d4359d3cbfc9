//! What the server says of itself.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use super::Api;
use super::error::ApiError;
use super::wire::PoolView;
use crate::clock::rfc3339;
use crate::stream::publish::Writable;

/// What does not change while the server lives, and whether it is ready.
#[derive(Debug)]
pub struct About {
    /// When it started.
    pub started: Instant,
    /// Changes with each start.
    pub boot: String,
    /// Whether it takes work: after recovery, until it goes down.
    pub ready: AtomicBool,
}

/// `GET /api/v1/status`.
pub async fn status(State(api): State<Api>) -> Json<Value> {
    let (running, queued) = api.runs.counts();
    let next = api
        .viewer
        .registry
        .all()
        .into_iter()
        .filter(|task| task.is_scheduled())
        .filter_map(|task| Some((task.due_next()?, task)))
        .min_by_key(|(planned, _)| *planned)
        .and_then(|(_, task)| Some((task.upcoming()?.0, task.id.clone())));
    let held_until = *api.trust.held().borrow();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": api.about.started.elapsed().as_secs(),
        "connections": api.live.hub.count(),
        "running": running,
        "queued": queued,
        "pools": api.runs.pools().into_iter().map(PoolView::from).collect::<Vec<_>>(),
        "next": next.map(|(at, task)| json!({ "task": task, "at": rfc3339(at) })),
        "clock": {
            "now": rfc3339(api.publisher.clock().now()),
            "looked_at": rfc3339(api.trust.looked_at()),
            "held_until": held_until.map(rfc3339),
            "jumped": api.trust.has_jumped(),
        },
        "notices": api.live.notices.current(),
        "server": { "boot": api.about.boot },
    }))
}

/// `POST /api/v1/clock/accept`: somebody says that the clock is right. What was planned behind now is forgotten; what runs
/// were made of is not made again. Nothing waits any more for what it showed before. A clock that nobody doubts is left as it is.
///
/// # Errors
/// The store's.
pub async fn accept_clock(State(api): State<Api>) -> Result<Json<Value>, ApiError> {
    let (registry, now) = (&api.viewer.registry, api.publisher.clock().now());
    let newest = registry.last_stored();
    let (tasks, forgotten) = if newest > now { registry.accept_clock(now).await? } else { (0, 0) };
    warn!(%now, %newest, tasks, forgotten, "the clock is said to be right");
    registry.believe_clock();
    api.runs.accept_clock();
    api.snoozed.notify_one();
    api.planner.notify_one();
    Ok(Json(json!({ "now": rfc3339(now), "newest": rfc3339(newest), "tasks": tasks, "forgotten": forgotten })))
}

/// `GET /healthz`: the process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: it takes work.
pub async fn readyz(State(api): State<Api>) -> (StatusCode, &'static str) {
    let writable = *api.publisher.writable().borrow() == Writable::Yes;
    match api.about.ready.load(Ordering::Relaxed) && writable {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}
