//! The durable log: all SQL of events is here.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::offer::Offer;
use super::segment::{Damaged, Segment};
use crate::event::{Gen, RunId, Seq, State, TaskId};
use crate::record::{Fold, Mark, Run};
use crate::store::{REMOVED, TaskNo, from_sql, sql};

/// The most events of one page (`docs/protocol.md`, "Numbers").
pub const PAGE_EVENTS: usize = 500;
/// The bytes at which a page is full.
pub const PAGE_BYTES: usize = 128 * 1024;

const SEQ_BITS: u32 = 40;
/// A UUID in words.
const RUN_ID_CHARS: usize = 36;

/// The key of a row: rows of a task lie side by side, in the order of their events.
fn key(task: TaskNo, seq: Seq) -> i64 {
    (task.0 << SEQ_BITS) | i64::try_from(seq.0).unwrap_or(i64::MAX)
}

fn end_of(task: TaskNo) -> i64 {
    (task.0 + 1) << SEQ_BITS
}

fn seq_of(key: i64) -> Seq {
    Seq((key & ((1 << SEQ_BITS) - 1)).unsigned_abs())
}

/// Where a log stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// The log.
    pub generation: Gen,
    /// The first event still there; `head` + 1 when none is.
    pub oldest: Seq,
    /// The last event.
    pub head: Seq,
    /// All event JSON it ever held, in bytes.
    pub bytes: u64,
}

/// Reads where the log stands; nothing of a task that was removed, whose rows go one after the other.
///
/// # Errors
/// When the file cannot be read.
pub fn bounds(connection: &Connection, task: TaskNo) -> rusqlite::Result<Option<Bounds>> {
    connection
        .prepare_cached("SELECT gen, oldest, head, bytes FROM tasks WHERE no = ?1 AND id < ?2")?
        .query_row(params![task.0, REMOVED], |row| {
            Ok(Bounds {
                generation: Gen(from_sql(row.get(0)?)),
                oldest: Seq(from_sql(row.get(1)?)),
                head: Seq(from_sql(row.get(2)?)),
                bytes: from_sql(row.get(3)?),
            })
        })
        .optional()
}

/// Adds a segment. `total` is all event JSON of the log through it.
///
/// # Errors
/// When the file cannot be written.
pub fn append(
    transaction: &Connection,
    task: TaskNo,
    segment: &Segment,
    at: Timestamp,
    total: u64,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO segments (key, first, at, total, ends, items) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            key(task, segment.last()),
            sql(segment.first().0),
            at.as_microsecond(),
            sql(total),
            segment.ends_to_store(),
            segment.items()
        ])
        .map(drop)
}

/// Moves the head, in the transaction of the segments.
///
/// # Errors
/// When the file cannot be written.
pub fn set_head(transaction: &Connection, task: TaskNo, head: Seq, bytes: u64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE tasks SET head = ?2, bytes = ?3 WHERE no = ?1")?
        .execute(params![task.0, sql(head.0), sql(bytes)])
        .map(drop)
}

/// Gives the log another id: positions in the old one are no longer positions in it.
///
/// # Errors
/// When the file cannot be written.
pub fn set_generation(transaction: &Connection, task: TaskNo, generation: Gen) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE tasks SET gen = ?2 WHERE no = ?1")?
        .execute(params![task.0, sql(generation.0)])
        .map(drop)
}

/// Keeps an event as it was before it was cut.
///
/// # Errors
/// When the file cannot be written.
pub fn keep_whole(transaction: &Connection, task: TaskNo, seq: Seq, event: &str) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT INTO whole_events (key, event) VALUES (?1, ?2)")?
        .execute(params![key(task, seq), event])
        .map(drop)
}

/// An event as it was before it was cut, if it was.
///
/// # Errors
/// When the file cannot be read.
pub fn whole(connection: &Connection, task: TaskNo, seq: Seq) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT event FROM whole_events WHERE key = ?1")?
        .query_row([key(task, seq)], |row| row.get(0))
        .optional()
}

/// The segments from the one that holds `from` on, until a page is full. O(log rows + page).
///
/// # Errors
/// When the file cannot be read or a row is damaged.
pub fn page(connection: &Connection, task: TaskNo, from: Seq) -> rusqlite::Result<Vec<Arc<Segment>>> {
    let mut statement = connection
        .prepare_cached("SELECT first, ends, items FROM segments WHERE key >= ?1 AND key < ?2 ORDER BY key")?;
    let mut rows = statement.query([key(task, from), end_of(task)])?;
    let mut page = Vec::new();
    let (mut events, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        let segment = segment(row)?;
        events += segment.len();
        bytes += segment.items().len();
        page.push(Arc::new(segment));
        if events >= PAGE_EVENTS || bytes >= PAGE_BYTES {
            break;
        }
    }
    Ok(page)
}

/// The segments that end with the one that holds `through`, ascending, until a page is full.
///
/// # Errors
/// When the file cannot be read or a row is damaged.
pub fn page_back(connection: &Connection, task: TaskNo, through: Seq) -> rusqlite::Result<Vec<Arc<Segment>>> {
    let mut page = Vec::new();
    let (mut events, mut bytes) = (0, 0);
    // The row that holds `through` ends at or behind it: it is the first at or after, the others lie before.
    let holding: Option<i64> = connection
        .prepare_cached("SELECT min(key) FROM segments WHERE key >= ?1 AND key < ?2")?
        .query_row([key(task, through), end_of(task)], |row| row.get(0))?;
    let Some(holding) = holding else { return Ok(page) };
    let mut statement = connection
        .prepare_cached("SELECT first, ends, items FROM segments WHERE key <= ?1 AND key >= ?2 ORDER BY key DESC")?;
    let mut rows = statement.query([holding, key(task, Seq(0))])?;
    while let Some(row) = rows.next()? {
        let segment = segment(row)?;
        let counted = segment.len().min((through.0 + 1).saturating_sub(segment.first().0) as usize);
        events += counted;
        bytes += segment.items().len();
        page.push(Arc::new(segment));
        if events >= PAGE_EVENTS || bytes >= PAGE_BYTES {
            break;
        }
    }
    page.reverse();
    Ok(page)
}

fn segment(row: &Row<'_>) -> rusqlite::Result<Segment> {
    let ends = row.get_ref(1)?.as_blob()?;
    Segment::from_stored(Seq(from_sql(row.get(0)?)), row.get(2)?, ends).map_err(|_| damaged())
}

/// What a reader says of a log that does not hold what it should.
pub fn damaged() -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(Damaged))
}

/// The bytes of event JSON from `from` to the head of `bounds`. O(log rows): from running totals.
///
/// # Errors
/// When the file cannot be read or a row is damaged.
pub fn bytes_from(connection: &Connection, task: TaskNo, bounds: &Bounds, from: Seq) -> rusqlite::Result<u64> {
    if from > bounds.head {
        return Ok(0);
    }
    let holding = connection
        .prepare_cached(
            "SELECT first, ends, items, total FROM segments WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT 1",
        )?
        .query_row([key(task, from), end_of(task)], |row| Ok((segment(row)?, from_sql(row.get::<_, i64>(3)?))))
        .optional()?;
    let Some((segment, total)) = holding else { return Ok(0) };
    Ok(bounds.bytes.saturating_sub(total) + segment.event_bytes_from(from))
}

/// The most rows that one step of letting go takes: a step is a part of a commit that others wait for.
const STEP_ROWS: i64 = 256;
/// The most bytes of events that it takes, but for the last row.
const STEP_BYTES: i64 = 512 * 1024;
/// The most events that were kept whole beside their cut ones: each may be large.
const STEP_WHOLE: i64 = 8;

/// What one step of letting go did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Raised {
    /// The first event that is still there.
    pub oldest: Seq,
    /// Whether that is all that was wanted; another step goes on otherwise.
    pub done: bool,
}

/// Lets go of whole segments below `oldest`, as many as one step takes. Never lowers it; gives nothing where there
/// is nothing to take.
///
/// # Errors
/// When the file cannot be written.
pub fn raise_oldest(transaction: &Connection, task: TaskNo, oldest: Seq) -> rusqlite::Result<Option<Raised>> {
    let Some(bounds) = bounds(transaction, task)? else { return Ok(None) };
    if oldest <= bounds.oldest {
        return Ok(None);
    }
    let first: Option<i64> = transaction
        .prepare_cached("SELECT first FROM segments WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT 1")?
        .query_row([key(task, oldest), end_of(task)], |row| row.get(0))
        .optional()?;
    let wanted = first.map_or(bounds.head.next(), |first| Seq(from_sql(first)));
    if wanted <= bounds.oldest {
        return Ok(None);
    }
    let last = delete_some(transaction, task, key(task, wanted))?;
    let raised = match last {
        Some(last) if seq_of(last).next() < wanted => Raised { oldest: seq_of(last).next(), done: false },
        _ => Raised { oldest: wanted, done: true },
    };
    transaction
        .prepare_cached("UPDATE tasks SET oldest = ?2 WHERE no = ?1")?
        .execute(params![task.0, sql(raised.oldest.0)])?;
    Ok(Some(raised))
}

/// Lets go of a task's oldest rows below a key, as many as one step takes; gives the key of the last.
fn delete_some(transaction: &Connection, task: TaskNo, below: i64) -> rusqlite::Result<Option<i64>> {
    let from = key(task, Seq(0));
    let nth_whole: Option<i64> = transaction
        .prepare_cached("SELECT key FROM whole_events WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT 1 OFFSET ?3")?
        .query_row([from, below, STEP_WHOLE], |row| row.get(0))
        .optional()?;
    let mut statement = transaction
        .prepare_cached("SELECT key, total FROM segments WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT ?3")?;
    let mut rows = statement.query([from, below, STEP_ROWS])?;
    let mut last = None;
    let mut most = i64::MAX;
    while let Some(row) = rows.next()? {
        let (key, total): (i64, i64) = (row.get(0)?, row.get(1)?);
        if last.is_some() && (total > most || nth_whole.is_some_and(|nth| key >= nth)) {
            break;
        }
        if last.is_none() {
            most = total.saturating_add(STEP_BYTES);
        }
        last = Some(key);
    }
    drop(rows);
    if let Some(last) = last {
        transaction.prepare_cached("DELETE FROM segments WHERE key >= ?1 AND key <= ?2")?.execute([from, last])?;
        transaction.prepare_cached("DELETE FROM whole_events WHERE key >= ?1 AND key <= ?2")?.execute([from, last])?;
    }
    Ok(last)
}

/// Lets go of a removed task's events, as many as one step takes. True when none is left.
///
/// # Errors
/// When the file cannot be written.
pub fn delete_step(transaction: &Connection, task: TaskNo) -> rusqlite::Result<bool> {
    Ok(delete_some(transaction, task, end_of(task))?.is_none())
}

/// How far retention by age and number of events would raise `oldest`; 1 where it would not.
///
/// # Errors
/// When the file cannot be read.
pub fn outlived(connection: &Connection, task: TaskNo, before: Timestamp, events: u64) -> rusqlite::Result<Seq> {
    let Some(bounds) = bounds(connection, task)? else { return Ok(Seq(1)) };
    let by_count = Seq((bounds.head.0 + 1).saturating_sub(events));
    // The first that is young enough: what came after it stays, though a clock that was wrong had dated it back.
    let young: Option<i64> = connection
        .prepare_cached("SELECT first FROM segments WHERE key >= ?1 AND key < ?2 AND at >= ?3 ORDER BY key LIMIT 1")?
        .query_row(params![key(task, Seq(0)), end_of(task), before.as_microsecond()], |row| row.get(0))
        .optional()?;
    let by_age = young.map_or(bounds.head.next(), |first| Seq(from_sql(first)));
    Ok(by_count.max(by_age).max(Seq(1)))
}

/// The first event to keep, so that it and all after it have at most so many bytes, give or take a segment. O(log²
/// events): `total` grows with the key, so it is searched for by halves.
///
/// # Errors
/// When the file cannot be read.
pub fn within_bytes(connection: &Connection, task: TaskNo, bytes: u64) -> rusqlite::Result<Seq> {
    let Some(bounds) = bounds(connection, task)? else { return Ok(Seq(1)) };
    let most = sql(bounds.bytes.saturating_sub(bytes));
    let mut holding = connection
        .prepare_cached("SELECT key, total FROM segments WHERE key >= ?1 AND key < ?2 ORDER BY key LIMIT 1")?;
    let mut end_if_too_much = |seq: u64| -> rusqlite::Result<Option<Seq>> {
        let row: Option<(i64, i64)> =
            holding.query_row([key(task, Seq(seq)), end_of(task)], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        Ok(row.filter(|(_, total)| *total <= most).map(|(key, _)| seq_of(key)))
    };
    // Everything before `first` is too much; nothing from `end` on is.
    let (mut first, mut end) = (bounds.oldest.0, bounds.head.0 + 1);
    while first < end {
        let middle = if first == bounds.oldest.0 { first } else { first + (end - first) / 2 };
        match end_if_too_much(middle)? {
            Some(last) => first = last.0 + 1,
            None => end = middle,
        }
    }
    Ok(Seq(if first == bounds.oldest.0 { 1 } else { first }))
}

/// Writes a run as the fold of its events has it, in the transaction of the event that changed it; nothing, where the task
/// is gone.
///
/// # Errors
/// When the file cannot be written, or when its slot and attempt were claimed by another run.
pub fn project_run(transaction: &Connection, task: TaskNo, run: &Run) -> rusqlite::Result<()> {
    let json = serde_json::to_string(run).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    // Asked by itself: for an INSERT from a SELECT the store keeps a journal of the pages that it changes, lest a later
    // row fail. It took a quarter of the time in which ten thousand slots have their rows.
    if !transaction.prepare_cached("SELECT 1 FROM tasks WHERE no = ?1")?.exists([task.0])? {
        return Ok(());
    }
    transaction
        .prepare_cached(
            "INSERT INTO runs (id, task, state, first, last, slot, attempt, run)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, last = excluded.last, run = excluded.run",
        )?
        .execute(params![
            run.id.to_string(),
            task.0,
            run.state.as_str(),
            sql(run.first_seq.0),
            sql(run.last_seq.0),
            run.scheduled_for.map(Timestamp::as_microsecond),
            run.attempt,
            json
        ])?;
    note_finding(transaction, task, run)
}

/// The longest snooze: what is put away for longer is better acknowledged, or mended. One that ends later was given by a
/// clock that was ahead, and counts as over.
pub const LONGEST_SNOOZE: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Notes what a run that is over has found. The same of the same task as what is snoozed is snoozed with it: a task
/// that looks every minute would wake its person every minute.
fn note_finding(transaction: &Connection, task: TaskNo, run: &Run) -> rusqlite::Result<()> {
    let (Some(at), Some(attention)) = (run.ended_at, &run.attention) else { return Ok(()) };
    transaction
        .prepare_cached(
            "INSERT INTO findings (run, task, at, summary, snoozed)
             VALUES (?1, ?2, ?3, ?4, (SELECT max(snoozed) FROM findings
                                      WHERE task = ?2 AND acknowledged IS NULL AND snoozed > ?3 AND snoozed <= ?5
                                        AND summary = ?4))
             ON CONFLICT (run) DO NOTHING",
        )?
        .execute(params![
            run.id.to_string(),
            task.0,
            at.as_microsecond(),
            attention.summary,
            at.saturating_add(LONGEST_SNOOZE).unwrap_or(Timestamp::MAX).as_microsecond()
        ])
        .map(drop)
}

/// Notes how far the producer of a run came that is over.
///
/// # Errors
/// When the file cannot be written.
pub fn set_last_n(transaction: &Connection, run: RunId, last_n: u64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE runs SET run = json_set(run, '$.last_n', ?2) WHERE id = ?1")?
        .execute(params![run.to_string(), sql(last_n)])
        .map(drop)
}

/// An event as it stands in the log.
#[derive(Debug, Deserialize)]
pub struct Stored<'a> {
    /// Its run.
    #[serde(default)]
    pub run: Option<RunId>,
    /// Its number.
    pub seq: Seq,
    /// When it happened.
    pub at: Timestamp,
    /// Its kind.
    pub kind: &'a str,
    /// Its data.
    #[serde(borrow)]
    pub data: &'a RawValue,
}

/// What the events up to `at` leave open: the runs not ended there, and their calls. Reads the log from the
/// first event of the oldest such run on, so O(events of the runs that were open at `at`).
///
/// # Errors
/// When the file cannot be read or a row is damaged.
pub fn fold_at(connection: &Connection, id: &TaskId, task: TaskNo, at: Seq) -> rusqlite::Result<Fold> {
    let mut fold = Fold::default();
    let from: Option<i64> = connection
        .prepare_cached(
            "SELECT min(first) FROM runs WHERE task = ?1 AND first <= ?2
               AND (last > ?2 OR state IN ('queued', 'running', 'waiting'))",
        )?
        .query_row(params![task.0, sql(at.0)], |row| row.get(0))?;
    let Some(from) = from else { return Ok(fold) };
    let mut next = Seq(from_sql(from));
    if let Some(bounds) = bounds(connection, task)?
        && next < bounds.oldest
    {
        // Retention took the beginning of a run that is still open: what is left is applied to its row, which
        // has what the lost events said.
        next = bounds.oldest;
        fold = Fold::of_runs(begun_before(connection, task, bounds.oldest, at)?);
    }
    while next <= at {
        let page = page(connection, task, next)?;
        let Some(end) = page.last().map(|segment| segment.last()) else { break };
        for (seq, json) in page.iter().flat_map(|segment| segment.events()) {
            if seq < next || seq > at {
                continue;
            }
            // Most events change nothing but where their run ends: a run of millions is folded without parsing them.
            if !Mark::is_made_by(kind_of(json)) {
                if let Some(run) = run_of(json, id) {
                    fold.note_producer(run, seq, None);
                }
                continue;
            }
            let Ok(event) = serde_json::from_str::<Stored<'_>>(json) else { continue };
            let mark = Mark::of_stored(event.kind, event.data.get());
            fold.apply(id, event.run, seq, event.at, &mark, json);
        }
        next = end.next();
    }
    // What a producer counts stands in no event.
    for run in open_runs(connection, task)? {
        fold.note_producer(run.id, Seq(0), run.last_n);
    }
    Ok(fold)
}

/// The runs not ended, as their rows have them.
fn open_runs(connection: &Connection, task: TaskNo) -> rusqlite::Result<Vec<Run>> {
    let mut statement = connection
        .prepare_cached("SELECT run FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')")?;
    let rows = statement.query_map([task.0], |row| row.get::<_, String>(0))?;
    rows.filter_map(|row| row.map(|json| serde_json::from_str(&json).ok()).transpose()).collect()
}

/// The runs not ended at `at` whose first event is no longer there, as they were before their end.
fn begun_before(connection: &Connection, task: TaskNo, oldest: Seq, at: Seq) -> rusqlite::Result<Vec<Run>> {
    let mut statement = connection.prepare_cached(
        "SELECT run FROM runs WHERE task = ?1 AND first < ?2
           AND (last > ?3 OR state IN ('queued', 'running', 'waiting'))",
    )?;
    let rows = statement.query_map(params![task.0, sql(oldest.0), sql(at.0)], |row| row.get::<_, String>(0))?;
    rows.filter_map(|row| row.map(|json| serde_json::from_str(&json).ok().map(Run::before_its_end)).transpose())
        .collect()
}

/// The newest ended runs whose last event is at or below `at`, ascending, and of those after them only the
/// ones of `open`: together, the runs as the events up to `at` have them.
///
/// # Errors
/// When the file cannot be read.
pub fn runs_at(
    connection: &Connection,
    task: TaskNo,
    at: Seq,
    open: &Fold,
    limit: usize,
) -> rusqlite::Result<Vec<Run>> {
    let mut statement = connection.prepare_cached(
        "SELECT run FROM runs WHERE task = ?1 AND last <= ?2
           AND state NOT IN ('queued', 'running', 'waiting') ORDER BY id DESC LIMIT ?3",
    )?;
    let rows = statement.query_map(params![task.0, sql(at.0), sql(limit as u64)], |row| row.get::<_, String>(0))?;
    let mut runs: Vec<Run> = open.runs().cloned().collect();
    for row in rows {
        if let Ok(run) = serde_json::from_str(&row?) {
            runs.push(run);
        }
    }
    runs.sort_by_key(|run| run.id);
    let surplus = runs.len().saturating_sub(limit);
    runs.drain(..surplus);
    Ok(runs)
}

/// The first event of the oldest run not ended, else of the last run: where a newcomer who cannot have
/// everything starts.
///
/// # Errors
/// When the file cannot be read.
pub fn start_of_last_work(connection: &Connection, task: TaskNo) -> rusqlite::Result<Option<Seq>> {
    let first: Option<i64> = connection
        .prepare_cached(
            "SELECT coalesce(
               (SELECT min(first) FROM runs WHERE task = ?1 AND state IN ('queued', 'running', 'waiting')),
               (SELECT max(first) FROM runs WHERE task = ?1))",
        )?
        .query_row([task.0], |row| row.get(0))?;
    Ok(first.map(|first| Seq(from_sql(first))))
}

/// Writes the event as it stands in the log, in frames and on pages: everywhere the same text.
pub fn write_event(out: &mut String, task: &TaskId, offer: &Offer, data: &str, seq: Seq) {
    let _ = write!(out, r#"{{"task":"{task}","#);
    if let Some(run) = offer.run {
        let _ = write!(out, r#""run":"{run}","#);
    } else {
        out.push_str(r#""run":null,"#);
    }
    let _ = write!(out, r#""seq":{seq},"at":"{:.6}","kind":"#, offer.at);
    write_kind(out, &offer.kind);
    out.push_str(r#","data":"#);
    out.push_str(data);
    out.push('}');
}

pub(super) fn write_kind(out: &mut String, kind: &str) {
    if kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')) {
        let _ = write!(out, r#""{kind}""#);
    } else {
        out.push_str(&serde_json::Value::from(kind).to_string());
    }
}

/// The kind of an event as it stands in the log. Found by its place in the text; no parsing.
pub fn kind_of(event: &str) -> &str {
    const BEFORE: &str = r#","kind":""#;
    let Some(start) = event.find(BEFORE) else { return "" };
    let rest = &event[start + BEFORE.len()..];
    rest.find('"').map_or("", |end| &rest[..end])
}

/// The run of an event as it stands in the log, likewise.
fn run_of(event: &str, task: &TaskId) -> Option<RunId> {
    let start = r#"{"task":"","run":""#.len() + task.as_str().len();
    event.get(start..start + RUN_ID_CHARS)?.parse().ok()
}

/// Whether a state of an event ends a run; for those who read the log.
pub fn is_terminal(event: &Stored<'_>) -> bool {
    let Mark::Status(status) = Mark::of_stored(event.kind, event.data.get()) else { return false };
    State::is_terminal(status.state)
}
