//! What happened and is not decided yet, what was told lately, and every delivery: all SQL of notifications.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::notice::Notice;
use super::rules::{LONGEST_HOLD, Standing};
use crate::event::{RunId, TaskId};
use crate::metrics::instrument::OTHER;
use crate::metrics::tally::{self, Measurement};
use crate::record::{Run, wire_time};
use crate::store::{TaskNo, from_sql, sql};
use crate::task::telling::Occasion;

/// How many happenings are decided in one transaction.
pub const BATCH: usize = 256;

/// No delivery waits longer than this, quiet hours of a day included.
pub const LONGEST_WAIT: SignedDuration = SignedDuration::from_hours(26);

/// How many deliveries of one channel wait, at most.
pub const MOST_WAITING: i64 = 1000;

/// The triggers that note what happens. They are the writer's connection's own and gone with it: a server without
/// channels notes nothing. What ends a run, or closes a slot, need not know of them, and cannot forget them.
const TRIGGERS: &str = "
CREATE TEMP TRIGGER IF NOT EXISTS note_run AFTER UPDATE OF state ON runs
WHEN new.state IS NOT old.state AND new.state IN ('waiting', 'succeeded', 'failed', 'timed_out', 'interrupted')
BEGIN
  INSERT INTO happenings (task, what, run) VALUES (new.task, new.state, new.id);
END;
CREATE TEMP TRIGGER IF NOT EXISTS note_given_up AFTER UPDATE OF state ON runs
WHEN old.state = 'queued' AND new.state IN ('cancelled', 'interrupted') AND new.run ->> '$.not_before' IS NOT NULL
BEGIN
  INSERT INTO happenings (task, what, run) SELECT task, 'given_up', id FROM runs
  WHERE id = new.run ->> '$.retry_of' AND state IN ('failed', 'timed_out', 'interrupted');
END;
CREATE TEMP TRIGGER IF NOT EXISTS note_new_slot AFTER INSERT ON slots WHEN new.outcome = 'missed'
BEGIN
  INSERT INTO happenings (task, what, slot, count, reason)
  VALUES (new.task, new.outcome, new.scheduled_for, new.count, new.reason);
END;
CREATE TEMP TRIGGER IF NOT EXISTS note_slot AFTER UPDATE ON slots
WHEN (new.outcome = 'missed' AND (old.outcome IS NOT 'missed' OR new.count > old.count))
  OR (new.outcome = 'late' AND old.outcome IS NOT 'late')
BEGIN
  INSERT INTO happenings (task, what, run, slot, count, late_ms, reason)
  VALUES (new.task, new.outcome, new.run, new.scheduled_for,
          new.count - CASE WHEN old.outcome = new.outcome THEN old.count ELSE 0 END, new.late_ms, new.reason);
END;";

/// The same for the starts of runs, of which only a service hears that waits for signs of life.
const START_TRIGGER: &str = "
CREATE TEMP TRIGGER IF NOT EXISTS note_start AFTER UPDATE OF state ON runs
WHEN new.state = 'running' AND old.state = 'queued'
BEGIN
  INSERT INTO happenings (task, what, run) VALUES (new.task, new.state, new.id);
END;";

/// Has everything noted from now on that somebody may have to be told of; starts of runs only where they are asked for.
///
/// # Errors
/// When the store cannot be written.
pub fn note_from_now_on(writer: &Connection, starts: bool) -> rusqlite::Result<()> {
    writer.execute_batch(TRIGGERS)?;
    if starts { writer.execute_batch(START_TRIGGER) } else { Ok(()) }
}

/// What happened and is not decided yet, with what is needed to decide it.
#[derive(Clone, Debug)]
pub struct Happening {
    /// Its number.
    pub n: i64,
    /// The task.
    pub task: TaskNo,
    /// The state of the run, or the outcome of the slot; `given_up` for a failure whose retry ended without a start.
    pub what: String,
    /// The run as it is by now, if it is about one and that is still there.
    pub run: Option<Run>,
    /// Whether the run is tried again by itself.
    pub retried: bool,
    /// How long the last good runs before took, in milliseconds.
    pub usual: Vec<u64>,
    /// The slot.
    pub slot: Option<Timestamp>,
    /// How many slots.
    pub count: Option<u64>,
    /// How late the run started.
    pub late_ms: Option<u64>,
    /// Why.
    pub reason: Option<String>,
}

/// The first that are not decided yet. O(batch).
///
/// # Errors
/// When the store cannot be read.
pub fn undecided(connection: &Connection, usual_of: usize) -> rusqlite::Result<Vec<Happening>> {
    let mut statement = connection.prepare_cached(
        "SELECT n, happenings.task, what, happenings.run, happenings.slot, count, late_ms, reason, runs.run
         FROM happenings LEFT JOIN runs ON runs.id = happenings.run ORDER BY n LIMIT ?1",
    )?;
    let rows = statement.query_map([BATCH as i64], |row| {
        Ok(Happening {
            n: row.get(0)?,
            task: TaskNo(row.get(1)?),
            what: row.get(2)?,
            run: row.get::<_, Option<String>>(8)?.and_then(|run| serde_json::from_str(&run).ok()),
            retried: false,
            usual: Vec::new(),
            slot: time(row, 4)?,
            count: row.get::<_, Option<i64>>(5)?.map(from_sql),
            late_ms: row.get::<_, Option<i64>>(6)?.map(from_sql),
            reason: row.get(7)?,
        })
    })?;
    let mut all: Vec<Happening> = rows.collect::<rusqlite::Result<_>>()?;
    for happening in &mut all {
        let Some(run) = &happening.run else { continue };
        match happening.what.as_str() {
            "succeeded" => happening.usual = durations_before(connection, happening.task, run.id, usual_of)?,
            "failed" | "timed_out" | "interrupted" => {
                happening.retried = is_retried(connection, happening.task, run.id)?;
            }
            _ => {}
        }
    }
    Ok(all)
}

/// How long the last good runs before one took. O(runs looked at), ended ones of any kind between them included.
fn durations_before(connection: &Connection, task: TaskNo, run: RunId, most: usize) -> rusqlite::Result<Vec<u64>> {
    let mut statement = connection.prepare_cached(
        "SELECT json_extract(run, '$.duration_ms') FROM
           (SELECT state, run FROM runs WHERE task = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3)
         WHERE state = 'succeeded'",
    )?;
    let looked_at = 3 * most;
    let rows =
        statement.query_map(params![task.0, run.to_string(), looked_at as i64], |row| row.get::<_, Option<i64>>(0))?;
    rows.filter_map(Result::transpose).take(most).map(|ms| ms.map(from_sql)).collect()
}

/// Whether a run that failed is tried again by itself: the next attempt was made with its end. One that a person asked
/// for does not wait for a time.
fn is_retried(connection: &Connection, task: TaskNo, run: RunId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM runs WHERE task = ?1 AND id > ?2
               AND json_extract(run, '$.retry_of') = ?2 AND json_extract(run, '$.not_before') IS NOT NULL)",
        )?
        .query_row(params![task.0, run.to_string()], |row| row.get(0))
}

/// What was told of a task lately.
///
/// # Errors
/// When the store cannot be read.
pub fn standing(connection: &Connection, task: TaskNo) -> rusqlite::Result<Standing> {
    let text: Option<String> = connection
        .prepare_cached("SELECT standing FROM standings WHERE task = ?1")?
        .query_row([task.0], |row| row.get(0))
        .optional()?;
    // One that another version wrote begins anew: what is told twice is better than what is never told.
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// The tasks of which something was held back that can be told now.
///
/// # Errors
/// When the store cannot be read.
pub fn standings_due(connection: &Connection, now: Timestamp) -> rusqlite::Result<Vec<TaskNo>> {
    let mut statement =
        connection.prepare_cached("SELECT task FROM standings WHERE due <= ?1 OR due > ?2 ORDER BY due LIMIT ?3")?;
    let range = params![now.as_microsecond(), never(now, LONGEST_HOLD), BATCH as i64];
    statement.query_map(range, |row| row.get(0).map(TaskNo))?.collect()
}

/// From when on a moment is none that was waited for: nothing is put off for longer. It comes from a clock that was
/// wrong, and does not hold anything up.
fn never(now: Timestamp, longest: SignedDuration) -> i64 {
    now.checked_add(longest).map_or(i64::MAX, Timestamp::as_microsecond)
}

/// Whether a moment that is waited for is still to come. One that is too far ahead is not: the clock was set back.
pub fn is_ahead(next: Timestamp, now: Timestamp, longest: SignedDuration) -> bool {
    next > now && next.as_microsecond() <= never(now, longest)
}

/// When the next of them can be told.
///
/// # Errors
/// When the store cannot be read.
pub fn next_standing(connection: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    connection.prepare_cached("SELECT min(due) FROM standings WHERE due IS NOT NULL")?.query_row([], |row| time(row, 0))
}

/// Writes down what was told of a task. A task that is gone has nothing.
///
/// # Errors
/// When the store cannot be written.
pub fn set_standing(connection: &Connection, task: TaskNo, standing: &Standing) -> rusqlite::Result<()> {
    let json =
        serde_json::to_string(standing).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    connection
        .prepare_cached(
            "INSERT INTO standings (task, due, standing) SELECT no, ?2, ?3 FROM tasks WHERE no = ?1
             ON CONFLICT (task) DO UPDATE SET due = excluded.due, standing = excluded.standing",
        )?
        .execute(params![task.0, standing.due().map(Timestamp::as_microsecond), json])
        .map(drop)
}

/// Takes off what is decided: up to this number.
///
/// # Errors
/// When the store cannot be written.
pub fn note_decided(connection: &Connection, through: i64) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM happenings WHERE n <= ?1")?.execute([through]).map(drop)
}

/// How far a delivery has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is tried, now or later.
    Pending,
    /// It waits for the end of quiet hours.
    Held,
    /// It arrived, as far as the receiver says.
    Sent,
    /// It was given up.
    Failed,
    /// It was not tried.
    Dropped,
}

impl State {
    /// The name in the store and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pending, Self::Held, Self::Sent, Self::Failed, Self::Dropped].into_iter().find(|s| s.as_str() == name)
    }
}

/// A delivery as clients see it: what is told by one channel.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Delivery {
    /// Its number, by which lists are paged.
    #[serde(skip)]
    pub n: i64,
    /// The same at each try.
    pub id: String,
    /// When it was decided.
    #[serde(with = "wire_time")]
    pub at: Timestamp,
    /// To whom.
    pub channel: String,
    /// What.
    pub event: Occasion,
    /// Of which task.
    pub task: Option<String>,
    /// Of which run.
    pub run: Option<RunId>,
    /// In one line.
    pub text: String,
    /// How far it has come.
    pub state: State,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next.
    #[serde(with = "wire_time::option")]
    pub next_at: Option<Timestamp>,
    /// When it arrived.
    #[serde(with = "wire_time::option")]
    pub sent_at: Option<Timestamp>,
    /// Why the last try failed, or why it was not tried.
    pub last_error: Option<String>,
    /// What is told.
    #[serde(skip)]
    pub notice: Notice,
}

/// What a delivery is made of.
#[derive(Clone, Debug)]
pub struct Draft {
    /// To whom.
    pub channel: String,
    /// What kind of channel that is.
    pub kind: &'static str,
    /// What it is about: a channel is told once of each.
    pub subject: String,
    /// What is told.
    pub notice: Notice,
}

const COLUMNS: &str = "n, id, at, channel, event, task, run, state, attempts, next, sent, error, notice";

fn delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    let (event, notice): (String, String) = (row.get(4)?, row.get(12)?);
    let at = time(row, 2)?.unwrap_or_default();
    // One that another version wrote must not keep the others from being told.
    let notice: Notice = serde_json::from_str(&notice).unwrap_or_else(|_| {
        let event = Occasion::chosen(&event).unwrap_or(Occasion::Test);
        Notice::new(event, at, "a message of another version of Rejoin, which cannot be read")
    });
    Ok(Delivery {
        n: row.get(0)?,
        id: row.get(1)?,
        at,
        channel: row.get(3)?,
        event: notice.event,
        task: row.get(5)?,
        run: row.get::<_, Option<String>>(6)?.and_then(|id| id.parse().ok()),
        text: notice.text.clone(),
        state: State::named(&row.get::<_, String>(7)?).unwrap_or(State::Dropped),
        attempts: row.get(8)?,
        next_at: time(row, 9)?,
        sent_at: time(row, 10)?,
        last_error: row.get(11)?,
        notice,
    })
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.and_then(|micros| Timestamp::from_microsecond(micros).ok()))
}

/// Makes deliveries, but for those of which the channel was told already. Where too many wait for a channel, what else
/// there is for it is written down as dropped. Gives how many were made. What waits is counted once for each channel.
///
/// # Errors
/// When the store cannot be written.
pub fn add_all(connection: &Connection, drafts: &[Draft], now: Timestamp) -> rusqlite::Result<usize> {
    let mut waiting: HashMap<&str, i64> = HashMap::new();
    let mut added = 0;
    for draft in drafts {
        let waiting = match waiting.entry(&draft.channel) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(count_waiting(connection, &draft.channel)?),
        };
        let full = *waiting >= MOST_WAITING;
        let state = if full { State::Dropped } else { State::Pending };
        let error = full.then(|| format!("{MOST_WAITING} others wait for this channel already"));
        let id = format!("msg_{}", uuid::Uuid::now_v7().simple());
        let next = (!full).then_some(now);
        if insert(connection, &id, draft, now, state, next, error.as_deref())? {
            added += 1;
            *waiting += i64::from(!full);
        }
    }
    Ok(added)
}

fn count_waiting(connection: &Connection, channel: &str) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT count(*) FROM notifications WHERE channel = ?1 AND next IS NOT NULL")?
        .query_row([channel], |row| row.get(0))
}

/// Makes a delivery that somebody brings by itself, at once. Where it is not said by `until` what became of it, it is
/// brought like all others.
///
/// # Errors
/// When the store cannot be written.
pub fn add_brought(
    connection: &Connection,
    id: &str,
    draft: &Draft,
    now: Timestamp,
    until: Timestamp,
) -> rusqlite::Result<i64> {
    insert(connection, id, draft, now, State::Pending, Some(until), None)?;
    Ok(connection.last_insert_rowid())
}

fn insert(
    connection: &Connection,
    id: &str,
    draft: &Draft,
    now: Timestamp,
    state: State,
    next: Option<Timestamp>,
    error: Option<&str>,
) -> rusqlite::Result<bool> {
    let Draft { channel, subject, notice, .. } = draft;
    let json = serde_json::to_string(notice).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let made = connection
        .prepare_cached(
            "INSERT INTO notifications (id, subject, channel, event, task, run, at, state, next, error, notice)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (channel, subject) DO NOTHING",
        )?
        .execute(params![
            id,
            subject,
            channel,
            notice.event.as_str(),
            notice.task.as_ref().map(TaskId::as_str),
            notice.run.map(|run| run.to_string()),
            now.as_microsecond(),
            state.as_str(),
            next.map(Timestamp::as_microsecond),
            error,
            json
        ])?;
    if state == State::Dropped {
        count(draft.kind, "dropped", made);
    }
    Ok(made > 0)
}

/// Counts what became of deliveries, with the transaction in which it is written down.
fn count(kind: &'static str, result: &'static str, deliveries: usize) {
    if deliveries > 0 {
        tally::note(Measurement::Told { kind, result, count: deliveries as u64 });
    }
}

/// What waits for a channel, each with when its turn is: what is told of a task keeps its order, so it is none's turn
/// before that of what was to be told earlier. A clock that was wrong does not put off. O(what waits).
const TURNS: &str = "
WITH turns AS (
  SELECT n, due, max(due) OVER (PARTITION BY task ORDER BY n) AS turn
  FROM (SELECT n, task, CASE WHEN next > ?3 THEN ?2 ELSE next END AS due
        FROM notifications WHERE channel = ?1 AND next IS NOT NULL))";

/// Those of a channel whose turn it is, the longest due first, those of one task in their order.
///
/// # Errors
/// When the store cannot be read.
pub fn due(connection: &Connection, channel: &str, now: Timestamp, most: usize) -> rusqlite::Result<Vec<Delivery>> {
    due_by(connection, "turn", channel, now, most)
}

/// Those of a channel that are due, whosever turn it is: what is told in quiet hours waits behind what is held already,
/// and is to be held with it.
///
/// # Errors
/// When the store cannot be read.
pub fn due_to_hold(
    connection: &Connection,
    channel: &str,
    now: Timestamp,
    most: usize,
) -> rusqlite::Result<Vec<Delivery>> {
    due_by(connection, "due", channel, now, most)
}

fn due_by(
    connection: &Connection,
    column: &'static str,
    channel: &str,
    now: Timestamp,
    most: usize,
) -> rusqlite::Result<Vec<Delivery>> {
    let sql = format!(
        "{TURNS} SELECT {COLUMNS} FROM turns JOIN notifications USING (n) WHERE {column} <= ?2 ORDER BY turn, n LIMIT ?4"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    statement
        .query_map(params![channel, now.as_microsecond(), never(now, LONGEST_WAIT), most as i64], delivery)?
        .collect()
}

/// When it is the next one's turn.
///
/// # Errors
/// When the store cannot be read.
pub fn next_due(connection: &Connection, channel: &str, now: Timestamp) -> rusqlite::Result<Option<Timestamp>> {
    let sql = format!("{TURNS} SELECT min(turn) FROM turns");
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_row(params![channel, now.as_microsecond(), never(now, LONGEST_WAIT)], |row| time(row, 0))
}

/// What became of a delivery that was tried, or of one that was not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It arrived; not everywhere, where some of those it was for refused it: then why.
    Sent(Option<String>),
    /// It did not, and is tried again then.
    Again(Timestamp, String),
    /// It did not, and is not tried again.
    GivenUp(String),
    /// It waits for the end of quiet hours; it was not tried.
    Held(Timestamp),
}

/// Writes down what became of a delivery by a channel of this kind.
///
/// # Errors
/// When the store cannot be written.
pub fn note_outcome(
    connection: &Connection,
    kind: &'static str,
    n: i64,
    outcome: &Outcome,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let (state, result, tried, next, sent, error) = match outcome {
        Outcome::Sent(refused) => (State::Sent, "sent", 1, None, Some(now), refused.as_ref()),
        Outcome::Again(next, why) => (State::Pending, "retried", 1, Some(*next), None, Some(why)),
        Outcome::GivenUp(why) => (State::Failed, "failed", 1, None, None, Some(why)),
        Outcome::Held(next) => (State::Held, "held", 0, Some(*next), None, None),
    };
    let noted = connection
        .prepare_cached(
            "UPDATE notifications SET state = ?2, attempts = attempts + ?3, next = ?4, sent = ?5, error = ?6
             WHERE n = ?1 AND next IS NOT NULL",
        )?
        .execute(params![
            n,
            state.as_str(),
            tried,
            next.map(Timestamp::as_microsecond),
            sent.map(Timestamp::as_microsecond),
            error
        ])?;
    count(kind, result, noted);
    Ok(())
}

/// Drops what waits for channels that there are no longer; of what kind they were nobody knows any more.
///
/// # Errors
/// When the store cannot be written.
pub fn drop_unknown(connection: &Connection, known: &[String]) -> rusqlite::Result<()> {
    let known = serde_json::to_string(known).unwrap_or_default();
    connection
        .execute(
            "UPDATE notifications SET state = 'dropped', next = NULL, error = 'the channel is no longer in config.toml'
             WHERE next IS NOT NULL AND channel NOT IN (SELECT value FROM json_each(?1))",
            [known],
        )
        .map(|dropped| count(OTHER, "dropped", dropped))
}

/// Forgets the oldest deliveries beyond so many; those that wait stay. They are counted, as numbers have holes: one that
/// was refused as told already takes a number too. O(kept).
///
/// # Errors
/// When the store cannot be written.
pub fn forget_oldest(connection: &Connection, keep: u32) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "DELETE FROM notifications
             WHERE next IS NULL AND n <= (SELECT n FROM notifications ORDER BY n DESC LIMIT 1 OFFSET ?1)",
        )?
        .execute([keep])
        .map(drop)
}

/// Which deliveries are asked for.
#[derive(Clone, Default, Debug)]
pub struct Query {
    /// Of this task.
    pub task: Option<String>,
    /// By this channel.
    pub channel: Option<String>,
    /// That stand so.
    pub state: Option<State>,
    /// Older than this number.
    pub before: Option<i64>,
}

/// Deliveries, the newest first.
///
/// # Errors
/// When the store cannot be read.
pub fn list(connection: &Connection, query: &Query, most: usize) -> rusqlite::Result<Vec<Delivery>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM notifications WHERE (?1 IS NULL OR task = ?1) AND (?2 IS NULL OR channel = ?2)
           AND (?3 IS NULL OR state = ?3) AND (?4 IS NULL OR n < ?4) ORDER BY n DESC LIMIT ?5"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let Query { task, channel, state, before } = query;
    statement.query_map(params![task, channel, state.map(State::as_str), before, sql_count(most)], delivery)?.collect()
}

/// One delivery.
///
/// # Errors
/// When the store cannot be read, or has none of that number.
pub fn one(connection: &Connection, n: i64) -> rusqlite::Result<Delivery> {
    let sql = format!("SELECT {COLUMNS} FROM notifications WHERE n = ?1");
    connection.prepare_cached(&sql)?.query_row([n], delivery)
}

fn sql_count(count: usize) -> i64 {
    sql(count as u64)
}

/// How a channel stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Summary {
    /// How many wait.
    pub waiting: u64,
    /// When the last arrived.
    #[serde(with = "wire_time::option")]
    pub last_sent_at: Option<Timestamp>,
    /// Why the last that was tried failed, or who refused it; none where it arrived.
    pub last_error: Option<String>,
}

/// How a channel stands.
///
/// # Errors
/// When the store cannot be read.
pub fn summary(connection: &Connection, channel: &str) -> rusqlite::Result<Summary> {
    connection
        .prepare_cached(
            "SELECT (SELECT count(*) FROM notifications WHERE channel = ?1 AND next IS NOT NULL),
                    (SELECT max(sent) FROM notifications WHERE channel = ?1),
                    (SELECT error FROM notifications WHERE channel = ?1 AND attempts > 0 ORDER BY n DESC LIMIT 1)",
        )?
        .query_row([channel], |row| {
            Ok(Summary { waiting: from_sql(row.get(0)?), last_sent_at: time(row, 1)?, last_error: row.get(2)? })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    /// A store with one task, in which what happens is noted.
    fn store(starts: bool) -> Connection {
        let mut store = Connection::open_in_memory().unwrap();
        schema::migrate(&mut store).unwrap();
        store
            .execute_batch(
                "INSERT INTO tasks (no, id, gen, source, definition, anchor, planned, created)
                 VALUES (1, 't', 1, 'store', '{}', 0, 0, 0)",
            )
            .unwrap();
        note_from_now_on(&store, starts).unwrap();
        store
    }

    fn run(attempt: u32, retry_of: Option<RunId>, not_before: Option<&str>) -> (RunId, serde_json::Value) {
        let id = RunId::new();
        let run = serde_json::json!({
            "id": id, "task": "t", "state": "queued", "attempt": attempt, "retry_of": retry_of, "trigger": "schedule",
            "scheduled_for": null, "queued_at": "2026-05-01T00:00:00Z", "started_at": null, "ended_at": null,
            "duration_ms": null, "first_seq": 1, "last_seq": 1, "reason": null, "text": null, "exit": null,
            "attention": null, "params": {}, "stopping": null, "not_before": not_before,
        });
        (id, run)
    }

    fn put(store: &Connection, (id, run): &(RunId, serde_json::Value)) {
        let sql =
            "INSERT INTO runs (id, task, state, first, last, attempt, run) VALUES (?1, 1, 'queued', 1, 1, ?2, ?3)";
        store.execute(sql, params![id.to_string(), run["attempt"].as_i64().unwrap(), run.to_string()]).unwrap();
    }

    fn come_to(store: &Connection, run: &mut (RunId, serde_json::Value), state: &str) {
        run.1["state"] = state.into();
        let sql = "UPDATE runs SET state = ?2, run = ?3 WHERE id = ?1";
        store.execute(sql, params![run.0.to_string(), state, run.1.to_string()]).unwrap();
    }

    #[test]
    fn a_failure_that_is_tried_again_by_itself_is_told_apart_from_one_that_a_person_repeats() {
        let store = store(false);
        let mut failed = run(1, None, None);
        put(&store, &failed);
        come_to(&store, &mut failed, "running");
        come_to(&store, &mut failed, "failed");
        assert!(!undecided(&store, 20).unwrap()[0].retried);
        put(&store, &run(2, Some(failed.0), None));
        assert!(!undecided(&store, 20).unwrap()[0].retried, "a person's");
        put(&store, &run(2, Some(failed.0), Some("2026-05-01T00:01:00Z")));
        let happenings = undecided(&store, 20).unwrap();
        assert_eq!((happenings.len(), happenings[0].what.as_str()), (1, "failed"));
        assert!(happenings[0].retried);
    }

    #[test]
    fn the_failure_before_a_retry_is_noted_again_where_that_ends_without_a_start() {
        let noted = |before: &str, not_before: Option<&str>, states: &[&str]| {
            let store = store(false);
            let mut first = run(1, None, None);
            put(&store, &first);
            come_to(&store, &mut first, "running");
            come_to(&store, &mut first, before);
            let mut second = run(2, Some(first.0), not_before);
            put(&store, &second);
            for state in states {
                come_to(&store, &mut second, state);
            }
            let of_first = |one: Happening| (one.run.unwrap().id == first.0).then_some((one.what, one.retried));
            undecided(&store, 20).unwrap().into_iter().filter_map(of_first).collect::<Vec<_>>()
        };
        let due = Some("2026-05-01T00:01:00Z");
        for before in ["failed", "timed_out", "interrupted"] {
            let both = [(before.to_owned(), true), ("given_up".to_owned(), false)];
            // Decided at once or one after the other, it is told once.
            assert_eq!(noted(before, due, &["cancelled"]), both);
            assert_eq!(noted(before, due, &["interrupted"]), both);
            for states in [&["running", "cancelled"], &["running", "interrupted"], &["running", "failed"]] {
                assert_eq!(noted(before, due, states), both[..1], "{states:?}");
            }
            // One whose start could not be saved says so itself.
            assert_eq!(noted(before, due, &["failed"]), both[..1]);
            assert_eq!(noted(before, None, &["cancelled"]), [(before.to_owned(), false)], "a person's");
        }
    }

    #[test]
    fn starts_are_noted_only_where_somebody_waits_for_them_and_nothing_twice() {
        for starts in [false, true] {
            let store = store(starts);
            let mut one = run(1, None, None);
            put(&store, &one);
            for state in ["running", "running", "waiting", "running", "succeeded", "succeeded"] {
                come_to(&store, &mut one, state);
            }
            let noted: Vec<String> = undecided(&store, 20).unwrap().into_iter().map(|one| one.what).collect();
            let wanted: &[&str] = if starts { &["running", "waiting", "succeeded"] } else { &["waiting", "succeeded"] };
            assert_eq!(noted, wanted);
            note_decided(&store, i64::MAX).unwrap();
            assert!(undecided(&store, 20).unwrap().is_empty());
        }
    }

    fn draft(subject: &str) -> Draft {
        let notice = Notice::new(Occasion::Failed, Timestamp::UNIX_EPOCH, "x");
        Draft { channel: "c".into(), kind: "ntfy", subject: subject.into(), notice }
    }

    #[test]
    fn a_channel_is_told_once_of_each_subject_and_what_waits_is_bounded() {
        let store = store(false);
        let now = Timestamp::from_second(1_780_000_000).unwrap();
        assert_eq!(add_all(&store, &[draft("a"), draft("a")], now).unwrap(), 1);
        assert_eq!(add_all(&store, &[draft("a")], now).unwrap(), 0);
        // Those that were told already take no place: the last of these is the first too many.
        let more: Vec<Draft> = (1..=MOST_WAITING).flat_map(|n| [draft(&n.to_string()), draft("a")]).collect();
        assert_eq!(add_all(&store, &more, now).unwrap() as i64, MOST_WAITING);
        assert_eq!(summary(&store, "c").unwrap().waiting, MOST_WAITING as u64);
        let newest = list(&store, &Query::default(), 1).unwrap().remove(0);
        assert_eq!(newest.state, State::Dropped);
        // What waits stays, what is done with goes.
        forget_oldest(&store, 1).unwrap();
        assert_eq!(list(&store, &Query::default(), 5000).unwrap().len() as i64, MOST_WAITING + 1);
        let all: Vec<i64> = list(&store, &Query::default(), 5000).unwrap().into_iter().map(|one| one.n).collect();
        for n in all {
            note_outcome(&store, "ntfy", n, &Outcome::Sent(None), now).unwrap();
        }
        forget_oldest(&store, 10).unwrap();
        assert_eq!(list(&store, &Query::default(), 5000).unwrap().len(), 10);
    }

    #[test]
    fn what_is_told_of_a_task_keeps_its_order_however_long_the_first_of_it_is_tried() {
        let store = store(false);
        let now = Timestamp::from_second(1_780_000_000).unwrap();
        let later = |seconds| now + SignedDuration::from_secs(seconds);
        for (subject, task) in [("a", "one"), ("b", "one"), ("c", "two")] {
            let mut draft = draft(subject);
            draft.notice.task = Some(task.parse().unwrap());
            add_all(&store, &[draft], now).unwrap();
        }
        let turns = |at| due(&store, "c", at, 9).unwrap().into_iter().map(|one| one.n).collect::<Vec<_>>();
        assert_eq!(turns(now), [1, 2, 3]);
        // The first of a task is tried again later: the others of it wait with it, those of another task do not.
        note_outcome(&store, "ntfy", 1, &Outcome::Again(later(10), "away".to_owned()), now).unwrap();
        assert_eq!(turns(later(5)), [3]);
        note_outcome(&store, "ntfy", 3, &Outcome::Again(later(7), "away".to_owned()), now).unwrap();
        assert_eq!(next_due(&store, "c", later(5)).unwrap(), Some(later(7)));
        assert_eq!(turns(later(10)), [3, 1, 2]);
        // In quiet hours it is held with what is held already.
        note_outcome(&store, "ntfy", 1, &Outcome::Held(later(3600)), now).unwrap();
        assert_eq!(turns(later(60)), [3]);
        let to_hold = due_to_hold(&store, "c", later(60), 9).unwrap();
        assert_eq!(to_hold.iter().map(|one| one.n).collect::<Vec<_>>(), [3, 2]);
        for n in [2, 3] {
            note_outcome(&store, "ntfy", n, &Outcome::Held(later(3600)), now).unwrap();
        }
        assert_eq!(next_due(&store, "c", later(60)).unwrap(), Some(later(3600)));
        note_outcome(&store, "ntfy", 1, &Outcome::Sent(None), now).unwrap();
        assert_eq!(turns(later(3600)), [2, 3]);
    }

    #[test]
    fn what_a_clock_that_was_wrong_put_off_for_years_is_due_now() {
        let store = store(false);
        let now = Timestamp::from_second(1_780_000_000).unwrap();
        add_all(&store, &[draft("a")], now + SignedDuration::from_hours(24 * 365)).unwrap();
        add_all(&store, &[draft("b")], now + SignedDuration::from_hours(1)).unwrap();
        let due: Vec<String> = due(&store, "c", now, 9).unwrap().into_iter().map(|one| one.notice.text).collect();
        assert_eq!(due.len(), 1);
    }

    #[test]
    fn a_moment_is_waited_for_unless_the_clock_was_set_back_behind_it() {
        let now = Timestamp::from_second(1_780_000_000).unwrap();
        let ahead = |wait| is_ahead(now + wait, now, LONGEST_WAIT);
        assert!(ahead(SignedDuration::from_secs(1)) && ahead(LONGEST_WAIT));
        assert!(!ahead(SignedDuration::ZERO) && !ahead(SignedDuration::from_secs(-1)));
        assert!(!ahead(LONGEST_WAIT + SignedDuration::from_secs(1)));
    }
}
