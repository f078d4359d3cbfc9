//! What the server does for itself, as clients see it; and the copy of the store that they can take away.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::io::ReaderStream;

use super::error::ApiError;
use super::{Api, One};
use crate::clock::rfc3339;
use crate::config::units::duration_text;
use crate::housekeeping::{Chore, ChoreState, backup};
use crate::store::backup::BackupError;
use crate::store::place_for_copy;

fn shown(stands: &ChoreState) -> Value {
    let state = match (stands.running, stands.every, &stands.last) {
        (Some(_), ..) => "running",
        (None, Some(_), _) if stands.asked => "queued",
        (None, None, _) => "off",
        (None, Some(_), Some(last)) if !last.ok => "failed",
        _ => "idle",
    };
    json!({
        "id": stands.chore.name(),
        "title": stands.chore.words(),
        "system": true,
        "state": state,
        "every": stands.every.map(duration_text),
        "next_at": stands.next.map(rfc3339),
        "running_since": stands.running.map(rfc3339),
        "last": stands.last.as_ref().map(|last| json!({
            "at": rfc3339(last.at),
            "duration_ms": last.duration_ms,
            "ok": last.ok,
            "result": last.result,
        })),
    })
}

/// `GET /api/v1/housekeeping`: when each chore was done last, with what result, and when it is due.
pub async fn list(State(api): State<Api>) -> Json<Value> {
    let items: Vec<Value> = api.housekeeping.states().iter().map(shown).collect();
    Json(json!({ "items": items, "next": null }))
}

/// `POST /api/v1/housekeeping/{chore}/run`: has it done now, beside its own time.
///
/// # Errors
/// 404 where there is no such chore, 409 where it is off.
pub async fn run(State(api): State<Api>, Path(name): One) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Some(chore) = Chore::named(&name) else {
        let name: String = name.chars().take(80).collect();
        let there_are = Chore::ALL.map(Chore::name).join(", ");
        let detail = format!("there is no chore {name:?}: there are {there_are}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", detail));
    };
    if !api.housekeeping.ask(chore) {
        let detail = format!("{name} is off: name a folder under [backup] in config.toml");
        return Err(ApiError::new(StatusCode::CONFLICT, "chore_off", detail));
    }
    let chores = api.housekeeping.states();
    let item = chores.iter().find(|stands| stands.chore == chore).map(shown);
    Ok((StatusCode::ACCEPTED, Json(item.unwrap_or_default())))
}

/// What is asked of a copy.
#[derive(Debug, Deserialize)]
pub struct BackupQuery {
    outputs: Option<String>,
}

/// `GET /api/v1/backup`: the store as it is at one moment, as a file to keep. It is whole before its first byte is sent.
///
/// # Errors
/// 409 while another is made, 507 where there is no room to make it.
pub async fn download(State(api): State<Api>, Query(query): Query<BackupQuery>) -> Result<Response, ApiError> {
    let outputs = match query.outputs.as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(ApiError::invalid("outputs", "outputs is true or false")),
    };
    let Ok(copying) = api.housekeeping.copying().try_lock_owned() else {
        let detail = "another backup is being made: ask again when it is done";
        return Err(ApiError::new(StatusCode::CONFLICT, "backup_under_way", detail));
    };
    let now = api.publisher.clock().now();
    let (store, output_dir) = (Arc::clone(&api.store), Arc::clone(&api.output_dir));
    let make = move || {
        let dir = store.path().parent().map(std::path::Path::to_owned).unwrap_or_default();
        let part = place_for_copy(&dir);
        backup::copy(&store, outputs.then_some(&*output_dir), &part, &backup::label(now, outputs), &|| true)?;
        let file = std::fs::File::open(&part);
        // It is there for as long as it is open: nobody has to remove it.
        std::fs::remove_file(&part)?;
        let file = file?;
        let length = file.metadata()?.len();
        drop(copying);
        Ok::<_, BackupError>((file, length))
    };
    let made = tokio::task::spawn_blocking(make).await.map_err(|error| ApiError::internal(&error))?;
    let (file, length) = made.map_err(|error| match error {
        BackupError::DiskFull(_) => {
            let detail = format!("{error}: a copy is made in the data folder first; make room there");
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", detail)
        }
        error => ApiError::internal(&error),
    })?;
    let body = Body::from_stream(ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 * 1024));
    let headers = [
        (header::CONTENT_TYPE, super::BACKUP_TYPE.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", backup::name(now))),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, body).into_response())
}
