//! `Idempotency-Key`: the same key acts once, whoever sends it again, for a day. What it did is stored in the
//! transaction in which it was done.

use axum::http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use crate::event::{RunId, TaskId};
use crate::store::{Store, StoreError};

/// How long a key is remembered.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// The longest key.
const MAX_KEY: usize = 200;

/// A key with what is asked under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    key: String,
    request: Vec<u8>,
}

/// What was done under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The task it made or ran.
    pub task: TaskId,
    /// The run it made.
    pub run: Option<RunId>,
}

impl Once {
    /// The key of a call, if it has one.
    ///
    /// # Errors
    /// 400 for a key that is empty, too long or not printable.
    pub fn of(headers: &HeaderMap, call: &str, body: &Value) -> Result<Option<Self>, ApiError> {
        let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
        let good = |key: &&str| !key.is_empty() && key.len() <= MAX_KEY && key.chars().all(|c| c.is_ascii_graphic());
        let key = key.to_str().ok().filter(good);
        let key = key.ok_or_else(|| {
            ApiError::invalid("Idempotency-Key", format!("a key is 1 to {MAX_KEY} printable characters without spaces"))
        })?;
        let request = Sha256::digest(format!("{call}\n{body}").as_bytes()).to_vec();
        Ok(Some(Self { key: key.to_owned(), request }))
    }

    /// The same key for the second half of the same call.
    #[must_use]
    pub fn then(&self, part: &str) -> Self {
        Self { key: format!("{}#{part}", self.key), request: self.request.clone() }
    }

    /// What was done under this key already, if anything.
    ///
    /// # Errors
    /// 409 `conflict` when the key was used for something else.
    pub async fn done(&self, store: &std::sync::Arc<Store>, now: Timestamp) -> Result<Option<Done>, ApiError> {
        let key = self.key.clone();
        let read = move |connection: &Connection| {
            let sql = "SELECT request, task, body FROM effects WHERE key = ?1 AND at > ?2";
            connection
                .prepare_cached(sql)?
                .query_row(params![key, oldest(now)], |row| {
                    Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
                })
                .optional()
        };
        let Some((request, task, run)) = store.read(read).await? else { return Ok(None) };
        if request != self.request {
            let detail = "this Idempotency-Key was used for another request: use a new key for a new request";
            return Err(ApiError::new(StatusCode::CONFLICT, "conflict", detail).with("field", "Idempotency-Key"));
        }
        let task = task.parse().map_err(|_| StoreError::Broken("a stored effect names no task".to_owned()))?;
        Ok(Some(Done { task, run: run.parse().ok() }))
    }

    /// Notes what is done, in its own transaction. Keys that are too old go.
    ///
    /// # Errors
    /// When the key was used meanwhile, or the store cannot be written.
    pub fn note(
        &self,
        connection: &Connection,
        task: &TaskId,
        run: Option<RunId>,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        connection.prepare_cached("DELETE FROM effects WHERE at <= ?1")?.execute([oldest(now)])?;
        connection
            .prepare_cached(
                "INSERT INTO effects (key, request, status, body, task, at) VALUES (?1, ?2, 201, ?3, ?4, ?5)",
            )?
            .execute(params![
                self.key,
                self.request,
                run.map(|run| run.to_string()).unwrap_or_default(),
                task.as_str(),
                now.as_microsecond()
            ])
            .map(drop)
    }
}

fn oldest(now: Timestamp) -> i64 {
    now.checked_sub(KEPT).unwrap_or(Timestamp::MIN).as_microsecond()
}
