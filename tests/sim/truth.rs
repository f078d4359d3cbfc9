//! What is true: every log as it was committed, read from the file by a connection of its own at each commit, before
//! anyone is woken for it. Knows the tables and the protocol; knows nothing of the server's own memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::Connection;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Microseconds since the simulation began.
pub type Micros = u64;

/// For how long the server's memory may lag behind its file: as long as the writer is held between commit and wake.
pub const LAG: Micros = 600_000;

/// Everything that was ever committed.
#[derive(Debug, Default)]
pub struct Truth {
    /// The logs of each task name, the newest last.
    tasks: BTreeMap<String, Vec<Log>>,
    /// What emitters said that is in some log: emitter and count.
    said: BTreeSet<(u32, u64)>,
}

/// One log: what has one gen.
#[derive(Clone, Debug)]
pub struct Log {
    /// The task's number in the store.
    pub no: i64,
    /// Its id.
    pub generation: String,
    /// Every event it ever had, also those that retention took.
    pub events: Vec<Event>,
    /// Since when.
    pub began: Micros,
    /// Until when.
    pub ended: Option<Micros>,
    /// From when on which event was the oldest.
    pub oldest: Vec<(Micros, u64)>,
    /// Why it is another than the one before.
    pub cause: Cause,
    /// How far each emitter is in it.
    counts: BTreeMap<u32, u64>,
    /// The bytes of all its events.
    total: u64,
}

/// Why there is a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The task was made.
    Made,
    /// The log of the same task got another id while the server ran.
    Renewed,
    /// The server found another file than it had left.
    Restored,
}

/// One committed event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its JSON.
    pub text: Arc<str>,
    /// When it was committed.
    pub at: Micros,
    run: Option<Arc<str>>,
    means: Means,
    happened: Arc<str>,
}

/// What an event means for the state of its task.
#[derive(Clone, Debug)]
enum Means {
    Status { state: String, text: String },
    Opens(String),
    Closes(String),
    Nothing,
}

/// A run, by the words of the protocol.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Run {
    pub id: String,
    pub state: String,
    pub first_seq: u64,
    pub last_seq: u64,
    pub queued_at: String,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    pub text: Option<String>,
}

/// What applying events gives.
#[derive(Debug, Default)]
pub struct Folded {
    /// By their making.
    pub runs: Vec<Run>,
    /// The numbers of the `tool_use` events that are open.
    pub calls: Vec<u64>,
}

/// Where every log stood when the file was copied.
#[derive(Clone, Debug, Default)]
pub struct Marked(BTreeMap<String, (usize, u64)>);

/// How much may be replayed.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    pub events: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Stored<'a> {
    #[serde(borrow)]
    run: Option<&'a str>,
    seq: u64,
    #[serde(borrow)]
    at: &'a str,
    #[serde(borrow)]
    kind: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
struct Data {
    state: Option<String>,
    text: Option<String>,
    call: Option<String>,
}

struct Row {
    no: i64,
    id: String,
    generation: String,
    oldest: u64,
    head: u64,
    bytes: u64,
}

const SEQ_BITS: u32 = 40;

fn rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement =
        connection.prepare_cached("SELECT no, id, gen, oldest, head, bytes FROM tasks WHERE id < '~' ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        Ok(Row {
            no: row.get(0)?,
            id: row.get(1)?,
            generation: format!("{:016x}", row.get::<_, i64>(2)?.cast_unsigned()),
            oldest: row.get::<_, i64>(3)?.cast_unsigned(),
            head: row.get::<_, i64>(4)?.cast_unsigned(),
            bytes: row.get::<_, i64>(5)?.cast_unsigned(),
        })
    })?;
    rows.collect()
}

/// The events of a task behind `after`, as they stand in the file.
fn stored(connection: &Connection, no: i64, after: u64) -> Result<Vec<(u64, Event)>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("the log of task {no} cannot be read: {error}");
    let mut statement = connection
        .prepare_cached("SELECT items FROM segments WHERE key > ?1 AND key < ?2 ORDER BY key")
        .map_err(|error| failed(&error))?;
    let (from, to) = ((no << SEQ_BITS) | after.cast_signed(), (no + 1) << SEQ_BITS);
    let mut rows = statement.query([from, to]).map_err(|error| failed(&error))?;
    let mut events = Vec::new();
    while let Some(row) = rows.next().map_err(|error| failed(&error))? {
        let items: String = row.get(0).map_err(|error| failed(&error))?;
        let list = format!("[{items}]");
        let items: Vec<&RawValue> = serde_json::from_str(&list).map_err(|error| failed(&error))?;
        for item in items {
            let event: Stored<'_> = serde_json::from_str(item.get()).map_err(|error| failed(&error))?;
            events.push((event.seq, Event::new(item.get(), &event)));
        }
    }
    Ok(events)
}

impl Event {
    fn new(text: &str, stored: &Stored<'_>) -> Self {
        let data = || serde_json::from_str::<Data>(stored.data.get()).ok();
        let call = || data().and_then(|data| data.call);
        let means = match stored.kind {
            "status" => {
                data().and_then(|data| Some(Means::Status { state: data.state?, text: data.text.unwrap_or_default() }))
            }
            "tool_use" => call().map(Means::Opens),
            "tool_result" => call().map(Means::Closes),
            _ => None,
        };
        Self {
            text: text.into(),
            at: 0,
            run: stored.run.map(Into::into),
            means: means.unwrap_or(Means::Nothing),
            happened: stored.at.into(),
        }
    }

    /// Who said it, and as its how-manieth: `~emitter.count~` stands in everything that is said.
    fn token(&self) -> Option<(u32, u64)> {
        let (_, rest) = self.text.split_once('~')?;
        let (token, _) = rest.split_once('~')?;
        let (emitter, count) = token.split_once('.')?;
        Some((emitter.parse().ok()?, count.parse().ok()?))
    }
}

impl Log {
    /// The last event.
    pub fn head(&self) -> u64 {
        self.events.len() as u64
    }

    /// The last event at a moment.
    pub fn head_at(&self, at: Micros) -> u64 {
        self.events.partition_point(|event| event.at <= at) as u64
    }

    /// One event.
    pub fn event(&self, seq: u64) -> Option<&Event> {
        self.events.get(usize::try_from(seq.checked_sub(1)?).unwrap())
    }

    /// What was the oldest event at some moment of a time.
    pub fn oldest_within(&self, from: Micros, to: Micros) -> Vec<u64> {
        let begin = self.oldest.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        self.oldest[begin..].iter().take_while(|(at, _)| *at <= to).map(|(_, oldest)| *oldest).collect()
    }

    /// The oldest event now.
    pub fn oldest_now(&self) -> u64 {
        self.oldest.last().map_or(1, |(_, oldest)| *oldest)
    }

    /// Whether it was the task's log at some moment of a time.
    pub fn was_within(&self, from: Micros, to: Micros) -> bool {
        self.began <= to && self.ended.is_none_or(|ended| ended >= from)
    }

    /// The bytes of so many events.
    pub fn bytes(&self, from: u64, to: u64) -> u64 {
        (from..=to).filter_map(|seq| self.event(seq)).map(|event| event.text.len() as u64).sum()
    }

    /// Whether events `from` to `head` may be replayed.
    pub fn fits(&self, from: u64, head: u64, replay: Replay) -> bool {
        from > head || (head - from < replay.events && self.bytes(from, head) <= replay.bytes)
    }

    /// Every run as events 1 to `seq` have it, and the open calls.
    pub fn folded(&self, seq: u64) -> Folded {
        let mut runs: BTreeMap<Arc<str>, Run> = BTreeMap::new();
        let mut calls: Vec<(u64, Arc<str>, &str)> = Vec::new();
        for (number, event) in (1..=seq).filter_map(|seq| Some((seq, self.event(seq)?))) {
            let Some(id) = &event.run else { continue };
            if let Means::Status { state, text } = &event.means
                && state == "queued"
            {
                let run = Run {
                    id: id.to_string(),
                    state: "queued".to_owned(),
                    first_seq: number,
                    last_seq: number,
                    queued_at: event.happened.to_string(),
                    started_at: None,
                    ended_at: None,
                    text: Some(text.clone()),
                };
                runs.insert(Arc::clone(id), run);
                continue;
            }
            let Some(run) = runs.get_mut(id) else { continue };
            run.last_seq = number;
            match &event.means {
                Means::Opens(call) => calls.push((number, Arc::clone(id), call)),
                Means::Closes(call) => calls.retain(|(_, of, open)| of != id || open != call),
                Means::Status { state, text } => {
                    run.apply(state, text, &event.happened);
                    if run.is_over() {
                        calls.retain(|(_, of, _)| of != id);
                    }
                }
                Means::Nothing => {}
            }
        }
        let mut runs: Vec<Run> = runs.into_values().collect();
        runs.sort_by(|one, other| one.id.cmp(&other.id));
        Folded { runs, calls: calls.into_iter().map(|(seq, ..)| seq).collect() }
    }

    /// The first event of the oldest run not ended at `head`, else of the last run.
    pub fn start_of_last_work(&self, head: u64) -> Option<u64> {
        let runs = self.folded(head).runs;
        let open = runs.iter().filter(|run| !run.is_over()).map(|run| run.first_seq).min();
        open.or_else(|| runs.iter().map(|run| run.first_seq).max())
    }
}

impl Run {
    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "queued" | "running" | "waiting")
    }

    fn apply(&mut self, state: &str, text: &str, at: &str) {
        if state == "started" {
            self.started_at = Some(at.to_owned());
        }
        let state = match state {
            "started" => "running",
            "progress" if self.state == "waiting" => "running",
            "progress" => &self.state,
            other => other,
        };
        self.state = state.to_owned();
        if !text.is_empty() {
            self.text = Some(text.to_owned());
        }
        if self.is_over() {
            self.ended_at = Some(at.to_owned());
        }
    }
}

impl Truth {
    /// Takes in what was committed since the last look.
    ///
    /// # Errors
    /// What no commit may do.
    pub fn observe(&mut self, connection: &Connection, now: Micros) -> Result<(), String> {
        let rows = rows(connection).map_err(|error| format!("the tasks cannot be read: {error}"))?;
        for (id, logs) in &mut self.tasks {
            let there = rows.iter().find(|row| row.id == *id).map(|row| row.no);
            if let Some(log) = logs.last_mut().filter(|log| log.ended.is_none() && Some(log.no) != there) {
                log.ended = Some(now);
            }
        }
        for row in rows {
            let logs = self.tasks.entry(row.id.clone()).or_default();
            match logs.last_mut().filter(|log| log.ended.is_none()) {
                None => logs.push(Log::new(&row, Vec::new(), now, Cause::Made)),
                Some(log) if log.generation != row.generation => {
                    log.ended = Some(now);
                    let renewed =
                        Log { oldest: log.oldest.clone(), ..Log::new(&row, log.events.clone(), now, Cause::Renewed) };
                    logs.push(renewed);
                }
                Some(_) => {}
            }
            let log = logs.last_mut().unwrap();
            log.extend(connection, &row, now, &mut self.said)?;
        }
        Ok(())
    }

    /// Takes in what a server finds at its start: what was committed when the one before ended, and nothing else.
    ///
    /// # Errors
    /// When it finds more or less.
    pub fn find_again(&mut self, connection: &Connection, now: Micros) -> Result<(), String> {
        let rows = rows(connection).map_err(|error| format!("the tasks cannot be read: {error}"))?;
        let there: Vec<_> = rows.iter().map(|row| (&row.id, row.generation.as_str(), row.head, row.oldest)).collect();
        let known = self.tasks.iter().filter_map(|(id, logs)| {
            let log = logs.last().filter(|log| log.ended.is_none())?;
            Some((id, log.generation.as_str(), log.head(), log.oldest_now()))
        });
        let known: Vec<_> = known.collect();
        if there != known {
            return Err(format!("a start finds other logs than were left: {there:?}, not {known:?}"));
        }
        self.observe(connection, now)
    }

    /// Takes in what a server finds at its start in an older copy of its file: every log ends where it was, under a new
    /// id.
    ///
    /// # Errors
    /// When it finds anything else.
    pub fn find_older(&mut self, connection: &Connection, marked: &Marked, now: Micros) -> Result<(), String> {
        for logs in self.tasks.values_mut() {
            if let Some(log) = logs.last_mut().filter(|log| log.ended.is_none()) {
                log.ended = Some(now);
            }
        }
        for row in rows(connection).map_err(|error| format!("the tasks cannot be read: {error}"))? {
            let logs = self.tasks.entry(row.id.clone()).or_default();
            let Some((index, head)) = marked.0.get(&row.id) else {
                return Err(format!("an older file has a task {} that was not there", row.id));
            };
            if *head != row.head {
                return Err(format!("an older file ends at {} of {}, not at {head}", row.head, row.id));
            }
            if logs.iter().any(|log| log.generation == row.generation) {
                return Err(format!("an older file of {} goes on under an old gen", row.id));
            }
            let events = logs[*index].events[..usize::try_from(*head).unwrap()].to_vec();
            for (seq, event) in stored(connection, row.no, row.oldest - 1)? {
                if events.get(usize::try_from(seq - 1).unwrap()).is_none_or(|known| known.text != event.text) {
                    return Err(format!("an older file has another event {seq} of {}", row.id));
                }
            }
            let log = Log { oldest: vec![(now, row.oldest)], ..Log::new(&row, events, now, Cause::Restored) };
            logs.push(log);
        }
        Ok(())
    }

    /// Where every log stands.
    pub fn mark(&self) -> Marked {
        let ends = self.tasks.iter().filter_map(|(id, logs)| {
            let log = logs.last().filter(|log| log.ended.is_none())?;
            Some((id.clone(), (logs.len() - 1, log.head())))
        });
        Marked(ends.collect())
    }

    /// The tasks that are there.
    pub fn there(&self) -> impl Iterator<Item = (&str, &Log)> {
        self.tasks.iter().filter_map(|(id, logs)| Some((id.as_str(), logs.last().filter(|log| log.ended.is_none())?)))
    }

    /// The log of a task, if it is there.
    pub fn now(&self, task: &str) -> Option<&Log> {
        self.tasks.get(task)?.last().filter(|log| log.ended.is_none())
    }

    /// The logs that a task ever had.
    pub fn logs(&self, task: &str) -> &[Log] {
        self.tasks.get(task).map_or(&[], |logs| logs)
    }

    /// The log of that id.
    pub fn log(&self, task: &str, generation: &str) -> Option<&Log> {
        self.logs(task).iter().rev().find(|log| log.generation == generation)
    }

    /// Whether the task was not there at some moment of a time.
    pub fn was_away(&self, task: &str, from: Micros, to: Micros) -> bool {
        let logs = self.logs(task);
        // There before and after, and in between without a break: then it was never away.
        let Some(first) = logs.iter().position(|log| log.was_within(from, from)) else { return true };
        let mut until = logs[first].ended;
        for log in &logs[first + 1..] {
            match until {
                Some(ended) if ended >= log.began && log.cause != Cause::Made => until = log.ended,
                _ => break,
            }
        }
        until.is_some_and(|until| until <= to)
    }

    /// Whether an emitter's word is in some log.
    pub fn has(&self, emitter: u32, count: u64) -> bool {
        self.said.contains(&(emitter, count))
    }
}

impl Log {
    fn new(row: &Row, events: Vec<Event>, now: Micros, cause: Cause) -> Self {
        let mut log = Self {
            no: row.no,
            generation: row.generation.clone(),
            events: Vec::new(),
            began: now,
            ended: None,
            oldest: vec![(now, 1)],
            cause,
            counts: BTreeMap::new(),
            total: 0,
        };
        for event in &events {
            log.total += event.text.len() as u64;
            if let Some((emitter, count)) = event.token() {
                log.counts.insert(emitter, count);
            }
        }
        log.events = events;
        log
    }

    fn extend(
        &mut self,
        connection: &Connection,
        row: &Row,
        now: Micros,
        said: &mut BTreeSet<(u32, u64)>,
    ) -> Result<(), String> {
        let id = &row.id;
        if row.head < self.head() {
            return Err(format!("the head of {id} went back from {} to {}", self.head(), row.head));
        }
        if row.head > self.head() {
            for (seq, mut event) in stored(connection, row.no, self.head())? {
                if seq != self.head() + 1 {
                    return Err(format!("event {seq} of {id} was committed behind event {}", self.head()));
                }
                if let Some((emitter, count)) = event.token() {
                    if self.counts.insert(emitter, count).is_some_and(|before| before >= count) {
                        return Err(format!("what emitter {emitter} said as {count} came twice or too late into {id}"));
                    }
                    said.insert((emitter, count));
                }
                event.at = now;
                self.total += event.text.len() as u64;
                self.events.push(event);
            }
        }
        if row.head != self.head() {
            return Err(format!("the head of {id} is {}, its last event {}", row.head, self.head()));
        }
        let before = self.oldest_now();
        if row.oldest < before || row.oldest > row.head + 1 {
            return Err(format!(
                "the oldest event of {id} went from {before} to {} under head {}",
                row.oldest, row.head
            ));
        }
        if row.oldest != before {
            self.oldest.push((now, row.oldest));
        }
        if row.bytes != self.total {
            return Err(format!("the log of {id} counts {} bytes, and has {}", row.bytes, self.total));
        }
        Ok(())
    }
}
