//! `Idempotency-Key` and the ids of commands, which are one thing: the same key acts once, whoever sends it again and
//! whichever way, for a day. What it did is stored in the transaction in which it was done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::auth::Credential;
use super::error::ApiError;
use crate::event::{RunId, TaskId};
use crate::run::queue::RunError;
use crate::store::{Store, StoreError};
use crate::stream::publish::Publisher;

/// How long a key is remembered.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// The longest key.
const MAX_KEY: usize = 200;
/// The most keys of one credential that are remembered: one every five seconds all day long. A key beyond is refused,
/// as one that is forgotten too early would act twice.
const MOST_KEYS: i64 = 20_000;
/// So many keys that are too old go with each new one: the table shrinks, and no call waits for a day's worth of it.
const SWEPT: i64 = 64;

/// What names a request: chosen by whoever sends it, and sent again with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key of a call, if it has one.
    ///
    /// # Errors
    /// 400 for a key that is empty, too long or not printable.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
        let good = |key: &&str| !key.is_empty() && key.len() <= MAX_KEY && key.chars().all(|c| c.is_ascii_graphic());
        let key = key.to_str().ok().filter(good).ok_or_else(|| {
            ApiError::invalid("Idempotency-Key", format!("a key is 1 to {MAX_KEY} printable characters without spaces"))
        })?;
        // However a UUID is written, it is the same one.
        Ok(Some(key.parse::<Uuid>().map_or_else(|_| Self(key.into()), Self::from)))
    }

    /// The same key for the second half of the same call. No key has a space.
    #[must_use]
    fn then(&self, part: &str) -> Self {
        Self(format!("{} {part}", self.0).into())
    }
}

impl From<Uuid> for Key {
    fn from(id: Uuid) -> Self {
        Self(id.to_string().into())
    }
}

/// What a key stands for, as a hash: the same request gives the same one, whichever way it came.
type Request = [u8; 32];

/// The keys that were used.
#[derive(Clone, Debug)]
pub struct Keys {
    store: Arc<Store>,
    publisher: Publisher,
    /// The keys of the calls under way. Locked for moments only.
    lines: Arc<Mutex<HashMap<Key, Line>>>,
}

/// Those who are here with one key: one acts, the others wait and then find what it did.
#[derive(Debug)]
struct Line {
    request: Request,
    turn: Arc<tokio::sync::Mutex<()>>,
    there: usize,
}

/// A place in the line of a key; given back when dropped, also by who gave up waiting.
#[derive(Debug)]
struct Place {
    lines: Arc<Mutex<HashMap<Key, Line>>>,
    key: Key,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get_mut(&self.key) {
            line.there -= 1;
            if line.there == 0 {
                lines.remove(&self.key);
            }
        }
    }
}

/// A request in its turn: nobody else acts under its key as long as this is there. One without a key has no turn to
/// wait for, and nothing of it is noted.
#[derive(Debug, Default)]
pub struct Once {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    keys: Keys,
    key: Key,
    request: Request,
    by: Arc<str>,
    /// The turn goes before the place.
    _turn: OwnedMutexGuard<()>,
    _place: Place,
}

/// What was done under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The task it made, changed or ran.
    pub task: TaskId,
    /// The run it made or changed.
    pub run: Option<RunId>,
}

impl Keys {
    /// The keys of this store.
    pub fn new(store: Arc<Store>, publisher: Publisher) -> Self {
        Self { store, publisher, lines: Arc::default() }
    }

    /// Waits until nobody else acts under this key, if there is one. `asked` is the whole request in one text.
    ///
    /// # Errors
    /// 409 `conflict` when somebody is at another request under this key.
    pub async fn enter(&self, key: Option<Key>, asked: &str, by: &Credential) -> Result<Once, ApiError> {
        let Some(key) = key else { return Ok(Once::default()) };
        let request: Request = Sha256::digest(asked.as_bytes()).into();
        let (turn, place) = {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            let line = lines.entry(key.clone()).or_insert_with(|| Line { request, turn: Arc::default(), there: 0 });
            if line.request != request {
                return Err(other_request());
            }
            line.there += 1;
            (Arc::clone(&line.turn), Place { lines: Arc::clone(&self.lines), key: key.clone() })
        };
        let turn = turn.lock_owned().await;
        let held = Held { keys: self.clone(), key, request, by: Arc::clone(&by.id), _turn: turn, _place: place };
        Ok(Once { held: Some(held) })
    }
}

impl Once {
    /// What was done under this key already, if anything.
    ///
    /// # Errors
    /// 409 `conflict` when the key was used for something else, 429 `limit` when no more keys can be remembered.
    pub async fn done(&self) -> Result<Option<Done>, ApiError> {
        match &self.held {
            Some(held) => held.look(held.key.clone()).await,
            None => Ok(None),
        }
    }

    /// What the second half of the request did already. It has a transaction, and so a key, of its own.
    ///
    /// # Errors
    /// As for [`Once::done`].
    pub async fn done_of(&self, part: &str) -> Result<Option<Done>, ApiError> {
        match &self.held {
            Some(held) => held.look(held.key.then(part)).await,
            None => Ok(None),
        }
    }

    /// What notes the effect, for the transaction in which it is done.
    pub fn note(&self) -> Note {
        Note(self.held.as_ref().map(|held| held.entry(held.key.clone())))
    }

    /// The same for the second half of the request.
    pub fn note_of(&self, part: &str) -> Note {
        Note(self.held.as_ref().map(|held| held.entry(held.key.then(part))))
    }

    /// Notes an effect that is there already and that comes to the same when it is asked for again.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn keep(&self, done: Done) -> Result<(), StoreError> {
        let Some(held) = &self.held else { return Ok(()) };
        let note = self.note();
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            note.write(connection, &done.task, done.run)?;
            Ok(((), Vec::new()))
        };
        held.keys.publisher.transact(act).await.map(drop)
    }
}

impl Held {
    async fn look(&self, key: Key) -> Result<Option<Done>, ApiError> {
        let (by, now) = (Arc::clone(&self.by), self.now());
        match self.keys.store.read(move |connection| look_up(connection, &key, &by, now)).await? {
            Found::Nothing => Ok(None),
            Found::Full => Err(too_many_keys()),
            Found::Effect { request, .. } if request != self.request => Err(other_request()),
            Found::Effect { task, run, .. } => {
                let task = task.parse().map_err(|_| StoreError::Broken("a stored effect names no task".to_owned()))?;
                Ok(Some(Done { task, run: run.parse().ok() }))
            }
        }
    }

    fn entry(&self, key: Key) -> Entry {
        Entry { key, request: self.request, by: Arc::clone(&self.by), now: self.now() }
    }

    fn now(&self) -> Timestamp {
        self.keys.publisher.clock().now()
    }
}

fn other_request() -> ApiError {
    let detail = "this id or Idempotency-Key was used for another request: use a new one for a new request";
    ApiError::new(StatusCode::CONFLICT, "conflict", detail).with("field", "Idempotency-Key")
}

fn too_many_keys() -> ApiError {
    let detail = format!(
        "{MOST_KEYS} keys of this credential are remembered already, each for 24 hours: wait, or call without an \
         Idempotency-Key"
    );
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "limit", detail)
}

/// Notes what is done under a key, in the transaction in which it is done.
#[derive(Debug)]
pub struct Note(Option<Entry>);

#[derive(Debug)]
struct Entry {
    key: Key,
    request: Request,
    by: Arc<str>,
    now: Timestamp,
}

impl Note {
    /// What notes it with the run that it makes of a task, in the transaction that makes the run.
    pub fn of_run(self, task: TaskId) -> impl Fn(&Connection, RunId) -> Result<(), RunError> + Send + Sync + 'static {
        move |connection, run| Ok(self.write(connection, &task, Some(run))?)
    }

    /// Notes it, if there is a key. Keys that are too old go, a few at a time.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn write(&self, connection: &Connection, task: &TaskId, run: Option<RunId>) -> rusqlite::Result<()> {
        let Some(Entry { key, request, by, now }) = &self.0 else { return Ok(()) };
        let sweep = "DELETE FROM effects WHERE key IN (SELECT key FROM effects WHERE at <= ?1 ORDER BY at LIMIT ?2)";
        connection.prepare_cached(sweep)?.execute(params![oldest(*now), SWEPT])?;
        // In its turn nobody else has it: what may be there is too old and not swept yet.
        let insert = "INSERT OR REPLACE INTO effects (key, request, run, task, at, credential)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let run = run.map(|run| run.to_string()).unwrap_or_default();
        connection
            .prepare_cached(insert)?
            .execute(params![&*key.0, request, run, task.as_str(), now.as_microsecond(), &**by])
            .map(drop)
    }
}

/// What the table says of a key.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Effect {
        request: Request,
        task: String,
        run: String,
    },
    Nothing,
    /// Nothing, and no more can be remembered for this credential.
    Full,
}

fn look_up(connection: &Connection, key: &Key, by: &str, now: Timestamp) -> rusqlite::Result<Found> {
    let sql = "SELECT request, task, run FROM effects WHERE key = ?1 AND at > ?2";
    let effect = connection
        .prepare_cached(sql)?
        .query_row(params![&*key.0, oldest(now)], |row| {
            Ok(Found::Effect { request: row.get(0)?, task: row.get(1)?, run: row.get(2)? })
        })
        .optional()?;
    if let Some(effect) = effect {
        return Ok(effect);
    }
    let count = "SELECT count(*) FROM effects WHERE credential = ?1 AND at > ?2";
    let kept: i64 = connection.prepare_cached(count)?.query_row(params![by, oldest(now)], |row| row.get(0))?;
    Ok(if kept >= MOST_KEYS { Found::Full } else { Found::Nothing })
}

fn oldest(now: Timestamp) -> i64 {
    now.checked_sub(KEPT).unwrap_or(Timestamp::MIN).as_microsecond()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    fn table() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection).unwrap();
        connection
    }

    fn key(text: &str) -> Key {
        Key(text.into())
    }

    fn note(connection: &Connection, name: &str, by: &str, now: Timestamp) {
        let entry = Entry { key: key(name), request: [7; 32], by: by.into(), now };
        Note(Some(entry)).write(connection, &"job".parse().unwrap(), None).unwrap();
    }

    fn count(connection: &Connection) -> i64 {
        connection.query_row("SELECT count(*) FROM effects", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn one_credential_cannot_fill_the_table_and_another_is_not_held_up_by_it() {
        let (connection, now) = (table(), Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1000));
        connection
            .execute(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                 INSERT INTO effects (key, request, run, task, at, credential)
                 SELECT 'k' || i, x'00', '', 'job', ?2, 'token' FROM n",
                params![MOST_KEYS - 1, now.as_microsecond()],
            )
            .unwrap();
        let look = |name: &str, by: &str, now| look_up(&connection, &key(name), by, now).unwrap();
        assert_eq!(look("new", "token", now), Found::Nothing, "one more has room");
        note(&connection, "last", "token", now);
        assert_eq!(look("new", "token", now), Found::Full);
        assert!(matches!(look("last", "token", now), Found::Effect { .. }), "what is there is found");
        assert!(matches!(look("last", "other", now), Found::Effect { .. }), "whoever asks");
        assert_eq!(look("new", "other", now), Found::Nothing);
        assert_eq!(look("new", "token", now + KEPT), Found::Nothing, "a day later there is room");
    }

    #[test]
    fn what_is_too_old_goes_a_little_with_each_new_key() {
        let (connection, now) = (table(), Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1000));
        for n in 0..3 * SWEPT {
            note(&connection, &n.to_string(), "token", now);
        }
        let later = now + KEPT;
        assert_eq!(look_up(&connection, &key("5"), "token", later).unwrap(), Found::Nothing, "no longer found");
        for (round, left) in [2 * SWEPT, SWEPT, 0, 0].into_iter().enumerate() {
            note(&connection, &format!("new-{round}"), "token", later);
            assert_eq!(count(&connection), left + round as i64 + 1);
        }
    }

    #[test]
    fn a_key_that_is_too_old_and_still_there_can_be_used_again() {
        let (connection, now) = (table(), Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1000));
        for n in 0..2 * SWEPT {
            note(&connection, &format!("older-{n}"), "token", now);
        }
        note(&connection, "again", "token", now + SignedDuration::from_secs(1));
        note(&connection, "again", "token", now + SignedDuration::from_secs(1) + KEPT);
        let found = look_up(&connection, &key("again"), "token", now + SignedDuration::from_secs(2) + KEPT).unwrap();
        assert!(matches!(found, Found::Effect { .. }));
    }

    #[test]
    fn a_uuid_is_one_key_however_it_is_written() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([("idempotency-key".parse().unwrap(), value.parse().unwrap())]);
            Key::of(&headers).unwrap().unwrap()
        };
        let id = Uuid::now_v7();
        for written in [id.to_string(), id.to_string().to_uppercase(), id.simple().to_string(), id.urn().to_string()] {
            assert_eq!(of(&written), Key::from(id), "{written}");
        }
        assert_ne!(of("Key"), of("key"), "what is no uuid stands as it is");
    }
}
