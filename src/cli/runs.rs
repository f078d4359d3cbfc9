//! `rejoin runs list`, `show`, `stop`, `retry` and `logs`, and what can be said to a run: `send`, `approve`, `deny`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::Session;
use super::add::{self, Until};
use super::failure::{Failure, Result};
use super::tasks::{read, resolve, width};
use super::watch::{self, Viewer};
use super::wire::{Event, Run};
use super::{table, times};
use crate::event::RunId;

/// How many events a page is asked to have.
const PAGE: &str = "500";

/// An id of a run, checked before it is sent.
pub(super) fn run_id(text: &str) -> Result<String> {
    let id = text
        .parse::<RunId>()
        .map_err(|_| Failure::NotFound(format!("there is no run {text:?}: `rejoin runs list` shows the ids")))?;
    Ok(id.to_string())
}

/// Lists runs, the newest first.
pub async fn list(session: &Session, task: Option<String>, state: Option<String>, n: usize) -> Result<()> {
    let task = match task {
        Some(words) => Some(resolve(session, &words).await?),
        None => None,
    };
    let mut query: Vec<(&str, &str)> = Vec::new();
    query.extend(task.as_deref().map(|task| ("task", task)));
    query.extend(state.as_deref().map(|state| ("state", state)));
    let items = session.client.list(&["runs"], &query, n).await?;
    if session.screen.json {
        return session.screen.document(&json!({ "items": items, "next": null }));
    }
    if items.is_empty() {
        session.screen.say("There are no such runs.");
        return Ok(());
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let mut rows = Vec::new();
    for item in items {
        let run: Run = read(item)?;
        let when = run.started_at.or(run.queued_at);
        let found = run.attention.map(|attention| format!("! {}", attention.summary));
        rows.push(vec![
            run.id,
            run.task,
            run.state,
            when.map(|at| times::with_distance(at, now, &zone)).unwrap_or_default(),
            run.duration_ms.map(times::duration).unwrap_or_default(),
            run.reason.or(found).unwrap_or_default(),
        ]);
    }
    session.screen.line(&table::list(&["RUN", "TASK", "STATE", "STARTED", "TOOK", "WHY"], &rows, width(session)))
}

/// Shows a run.
pub async fn show(session: &Session, id: &str) -> Result<()> {
    let answer = session.run(id).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let run: Run = read(answer)?;
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let time = |at: Option<Timestamp>| at.map(|at| times::with_distance(at, now, &zone));
    session.screen.line(&table::facts(&[
        ("run", Some(run.id)),
        ("task", Some(run.task)),
        ("state", Some(run.state)),
        ("status", run.text),
        ("why", run.reason),
        ("attention", run.attention.map(|attention| attention.summary)),
        ("made by", run.trigger),
        ("retry of", run.retry_of),
        ("attempt", run.attempt.filter(|attempt| *attempt > 1).map(|attempt| attempt.to_string())),
        ("retried by", run.retried_by),
        ("slot", time(run.scheduled_for)),
        ("not before", time(run.not_before.filter(|_| run.started_at.is_none()))),
        ("queued", time(run.queued_at)),
        ("place", run.queue_position.map(|place| format!("{place} in the queue"))),
        ("started", time(run.started_at)),
        ("ended", time(run.ended_at)),
        ("took", run.duration_ms.map(times::duration)),
    ]))
}

/// Asks for a run to be stopped.
pub async fn stop(session: &Session, id: &str) -> Result<()> {
    let id = run_id(id)?;
    let answer = session.client.post(&["runs", &id, "stop"], &json!({}), None).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    // Of a run that is over and is tried again, it is the retry.
    let Run { id, .. } = read(answer)?;
    session.screen.line(&format!("Run {id} is being stopped."))
}

/// Does once more what a run that is over was to do.
pub async fn retry(session: Session, id: &str, until: Until, once: Option<&str>) -> Result<()> {
    let answer = session.client.post(&["runs", &run_id(id)?, "retry"], &json!({}), once).await?;
    add::report(session, answer, until).await
}

/// Says something to the run of a task that is under way.
pub async fn send(session: &Session, words: &str, text: &str) -> Result<()> {
    let task = resolve(session, words).await?;
    let mut at_work = Vec::new();
    for state in ["waiting", "running"] {
        at_work.extend(session.client.list(&["runs"], &[("task", &task), ("state", state)], 1).await?);
    }
    let Some(run) = at_work.into_iter().next() else {
        return Err(Failure::Conflict(format!(
            "task {task} has no run at work that could be told anything: run it first (rejoin tasks run {task})"
        )));
    };
    let Run { id, .. } = read(run)?;
    let answer = session.client.post(&["runs", &id, "message"], &json!({ "text": text }), None).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    session.screen.line(&format!("Run {id} was told."))
}

/// Approves or denies what a run asks.
pub async fn answer(session: &Session, id: &str, how: &str) -> Result<()> {
    let id = run_id(id)?;
    // What is answered is what it asks now, and not what it may ask next.
    let asked = session.run(&id).await?.get("request").cloned().unwrap_or_default();
    let answer = session.client.post(&["runs", &id, how], &json!({ "request": asked }), None).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let done = if how == "approve" { "may go on" } else { "may not" };
    session.screen.line(&format!("Run {id} was told that it {done}."))
}

/// Prints what a run did, and with `follow` goes on until it is over.
pub async fn logs(session: Session, id: &str, follow: bool, tail: Option<usize>) -> Result<()> {
    let run: Run = read(session.run(id).await?)?;
    let mut viewer = Viewer::new(session.screen, false);
    if tail.is_none() && follow {
        // The live stream begins where it is told to: history and what is new are one.
        return watch::logs(session, run, None, viewer).await;
    }
    let mut last = None;
    let events = match tail {
        Some(count) => last_events(&session, &run, count).await?,
        None => {
            print_all(&session, &run, &mut viewer).await?;
            Vec::new()
        }
    };
    for event in &events {
        viewer.show(&run.task, event)?;
        last = Some(event.seq);
    }
    if !follow {
        return Ok(());
    }
    let run: Run = read(session.run(id).await?)?;
    let over = run.is_over() && (last >= run.last_seq || run.last_seq.is_none());
    if over { Ok(()) } else { watch::logs(session, run, last, viewer).await }
}

async fn print_all(session: &Session, run: &Run, viewer: &mut Viewer) -> Result<()> {
    let mut after = run.first_seq.unwrap_or(1).saturating_sub(1);
    let first = session.client.events(&run.task, &[("limit", "1")]).await?;
    let generation = first.generation;
    if first.oldest > after + 1 {
        viewer.say(&format!("Events {} to {} were removed by retention.", after + 1, first.oldest - 1));
        after = first.oldest - 1;
    }
    loop {
        let from = after.to_string();
        let query = [("run", run.id.as_str()), ("gen", &generation), ("after", &from), ("limit", PAGE)];
        let page = session.client.events(&run.task, &query).await?;
        for event in page.items.iter().filter_map(|raw| Event::read(raw)) {
            viewer.show(&run.task, &event)?;
        }
        if !page.more || run.is_over() && run.last_seq.is_some_and(|last| page.next >= last) {
            return Ok(());
        }
        if page.next <= after {
            return Err(stands_still());
        }
        after = page.next;
    }
}

/// A server that says there is more and not where would be asked for ever.
fn stands_still() -> Failure {
    Failure::Server("the server says that there are more events, and not where".into())
}

/// The last `count` events of a run, ascending.
async fn last_events(session: &Session, run: &Run, count: usize) -> Result<Vec<Event>> {
    let first = session.client.events(&run.task, &[("limit", "1")]).await?;
    let mut before = run.last_seq.filter(|_| run.is_over()).unwrap_or(first.head) + 1;
    let begin = run.first_seq.unwrap_or(1).max(first.oldest);
    let mut pages: Vec<Vec<Event>> = Vec::new();
    let mut have = 0;
    while have < count && before > begin {
        let until = before.to_string();
        let query = [("run", run.id.as_str()), ("gen", &first.generation), ("before", &until), ("limit", PAGE)];
        let page = session.client.events(&run.task, &query).await?;
        let events: Vec<Event> = page.items.iter().filter_map(|raw| Event::read(raw)).collect();
        have += events.len();
        pages.push(events);
        if !page.more {
            break;
        }
        if page.next >= before {
            return Err(stands_still());
        }
        before = page.next;
    }
    let mut events: Vec<Event> = pages.into_iter().rev().flatten().collect();
    events.drain(..events.len().saturating_sub(count));
    Ok(events)
}
