//! What the server says of itself.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Api;
use super::wire::PoolView;
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
        .filter_map(|task| Some((task.next?, task.id.clone())))
        .min();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": api.about.started.elapsed().as_secs(),
        "connections": api.live.hub.count(),
        "running": running,
        "queued": queued,
        "pools": api.runs.pools().into_iter().map(PoolView::from).collect::<Vec<_>>(),
        "next": next.map(|(at, task)| json!({ "task": task, "at": crate::clock::rfc3339(at) })),
        "notices": api.live.notices.current(),
        "server": { "boot": api.about.boot },
    }))
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
