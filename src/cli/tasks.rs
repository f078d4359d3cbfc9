//! `rejoin tasks list`, `show`, `remove`, `pause`, `resume`, `next`, `slots` and `export`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::Session;
use super::failure::{Failure, Result};
use super::wire::{PastSlot, Run, Slot, Task};
use super::{matching, table, times};
use crate::event::TaskId;

/// More tasks than a person has.
const ALL: usize = 100_000;

/// Reads what the server answered.
pub fn read<T: DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer)
        .map_err(|error| Failure::Server(format!("the server's answer cannot be read: {error}")))
}

/// All tasks.
pub async fn all(session: &Session) -> Result<Vec<Task>> {
    session.client.list(&["tasks"], &[], ALL).await?.into_iter().map(read).collect()
}

/// The id of the task that `words` name: an id as it stands, else a title.
pub async fn resolve(session: &Session, words: &str) -> Result<String> {
    if words.parse::<TaskId>().is_ok() {
        return Ok(words.to_owned());
    }
    let tasks = all(session).await?;
    match matching::find(words, &tasks)? {
        Some(task) => Ok(task.id.clone()),
        None => {
            let near: Vec<String> =
                matching::nearest(words, &tasks).iter().map(|task| format!("{:?}", task.title)).collect();
            let near = if near.is_empty() { String::new() } else { format!(" Near: {}.", near.join(", ")) };
            Err(Failure::NotFound(format!("There is no task called {words:?}.{near}")))
        }
    }
}

/// A task.
pub async fn get(session: &Session, id: &str) -> Result<Value> {
    session.client.get(&["tasks", id], &[]).await
}

/// Lists all tasks.
pub async fn list(session: &Session) -> Result<()> {
    let screen = &session.screen;
    let items = session.client.list(&["tasks"], &[], ALL).await?;
    if screen.json {
        return screen.document(&json!({ "items": items, "next": null }));
    }
    if items.is_empty() {
        screen.say("There are no tasks. Make one with: rejoin tasks add TITLE --run COMMAND");
        return Ok(());
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let mut rows = Vec::new();
    for item in items {
        let task: Task = read(item)?;
        let wrong = task.error.map(|error| error.to_string());
        let found = task.attention.map(|attention| format!("! {}", attention.summary));
        let last = task.last_run.map(|run| in_short(&run, now));
        rows.push(vec![
            task.id,
            task.title,
            task.state,
            task.schedule_words.unwrap_or_else(|| "by hand".into()),
            task.next_at.map(|at| times::with_distance(at, now, &zone)).unwrap_or_default(),
            wrong.or(found).or(last).unwrap_or_default(),
        ]);
    }
    screen.line(&table::list(&["ID", "TITLE", "STATE", "SCHEDULE", "NEXT", "LAST"], &rows, width(session)))
}

/// The width that tables share: the terminal's; none for a pipe.
pub fn width(session: &Session) -> Option<u16> {
    session.screen.terminal.then(|| comfy_table::Table::new().width().unwrap_or(100))
}

fn in_short(run: &Run, now: Timestamp) -> String {
    let when = run.ended_at.or(run.started_at).or(run.queued_at);
    match when {
        Some(at) => format!("{} {}", run.state, times::distance(at, now)),
        None => run.state.clone(),
    }
}

/// Shows a task.
pub async fn show(session: &Session, words: &str) -> Result<()> {
    let id = resolve(session, words).await?;
    let answer = get(session, &id).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let task: Task = read(answer)?;
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let params: Vec<String> = task
        .params
        .iter()
        .map(|(name, param)| match param.get("default") {
            Some(default) if !default.is_null() => format!("{name}={default}"),
            _ => name.clone(),
        })
        .collect();
    session.screen.line(&table::facts(&[
        ("task", Some(task.id)),
        ("title", Some(task.title)),
        ("about", Some(task.description)),
        ("state", Some(task.state)),
        ("agent", Some(task.agent)),
        ("kept in", Some(task.source)),
        ("schedule", task.schedule_words),
        ("next", task.next_at.map(|at| times::with_distance(at, now, &zone))),
        ("planned for", task.next_planned_for.map(|at| times::with_distance(at, now, &zone))),
        ("pool", task.policy.get("concurrency").and_then(Value::as_str).map(str::to_owned)),
        ("params", Some(params.join(", "))),
        ("last run", task.last_run.map(|run| format!("{} {}", run.id, in_short(&run, now)))),
        ("attention", task.attention.map(|attention| attention.summary)),
        ("error", task.error.map(|error| error.to_string())),
    ]))
}

/// Removes a task.
pub async fn remove(session: &Session, words: &str, stop: bool) -> Result<()> {
    let id = resolve(session, words).await?;
    let query: &[(&str, &str)] = if stop { &[("stop", "true")] } else { &[] };
    session.client.delete(&["tasks", &id], query).await?;
    if session.screen.json {
        return session.screen.document(&json!({ "removed": id }));
    }
    session.screen.line(&format!("Task {id} is removed."))
}

/// Pauses or resumes a task.
pub async fn switch(session: &Session, words: &str, verb: &str) -> Result<()> {
    let id = resolve(session, words).await?;
    let answer = session.client.post(&["tasks", &id, verb], &json!({}), None).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let task: Task = read(answer)?;
    session.screen.line(&match (verb, task.next_at) {
        ("pause", _) => format!("Task {id} is paused: it runs by hand only, until: rejoin tasks resume {id}"),
        (_, Some(at)) => {
            let next = times::with_distance(at, Timestamp::now(), &TimeZone::system());
            format!("Task {id} is resumed. Next: {next}")
        }
        _ => format!("Task {id} is resumed."),
    })
}

/// Shows when a task runs next.
pub async fn next(session: &Session, words: &str, n: u32) -> Result<()> {
    let id = resolve(session, words).await?;
    let answer: Value = session.client.get(&["tasks", &id, "next"], &[("n", &n.to_string())]).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let lines = slot_lines(&answer)?;
    match said_of(&answer) {
        Some(words) if !lines.is_empty() => {
            session.screen.say(&super::escape::line(&format!("Task {id} runs {words}")))
        }
        Some(words) => session.screen.say(&super::escape::line(&format!("Task {id} ran {words} It is over."))),
        None => session.screen.say(&format!("Task {id} does not run by itself.")),
    }
    if answer.get("enabled") == Some(&Value::Bool(false)) && !lines.is_empty() {
        session
            .screen
            .say("It does not now, as it is paused or its file is gone: these are the times at which it would.");
    }
    lines.iter().try_for_each(|line| session.screen.line(line))
}

/// A schedule as the server says it, as the end of a sentence, with the zone in which its times are shown.
pub fn said_of(answer: &Value) -> Option<String> {
    let words = answer.get("words")?.as_str()?;
    Some(match answer.get("zone").and_then(Value::as_str) {
        Some(zone) => format!("{words}. Times are in {zone}."),
        None => format!("{words}."),
    })
}

/// The coming times of `{"items": [...]}` as lines.
pub fn slot_lines(answer: &Value) -> Result<Vec<String>> {
    let slots: Vec<Slot> = read(answer.get("items").cloned().unwrap_or_default())?;
    let now = Timestamp::now();
    let line = |slot: Slot| {
        let distance = slot.at.parse::<Timestamp>().map(|at| format!("  ({})", times::distance(at, now)));
        let note = slot.note.map(|note| format!("  {note}")).unwrap_or_default();
        let planned = slot.planned_for.map(|planned| format!("  planned for {planned}")).unwrap_or_default();
        super::escape::line(&format!("{}{}{planned}{note}", slot.at, distance.unwrap_or_default()))
    };
    Ok(slots.into_iter().map(line).collect())
}

/// Shows what became of a task's times.
pub async fn slots(session: &Session, words: &str, n: usize) -> Result<()> {
    let id = resolve(session, words).await?;
    let items = session.client.list(&["tasks", &id, "slots"], &[], n).await?;
    if session.screen.json {
        return session.screen.document(&json!({ "items": items, "next": null }));
    }
    if items.is_empty() {
        session.screen.say(&format!("No time of task {id} has come yet."));
        return Ok(());
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let mut rows = Vec::new();
    for item in items {
        let slot: PastSlot = read(item)?;
        let late = slot.late_ms.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms >= 1_000);
        let due = slot.scheduled_for.map(|at| times::with_distance(at, now, &zone)).unwrap_or_default();
        let planned = slot.planned_for.map(|at| format!(", for {}", at.to_zoned(zone.clone()).strftime("%H:%M:%S")));
        let times_over = slot.count.filter(|count| *count > 1).map(|count| format!(" ({count} times)"));
        rows.push(vec![
            format!("{due}{}", planned.unwrap_or_default()),
            format!("{}{}", slot.outcome, times_over.unwrap_or_default()),
            late.map(|ms| format!("{} late", times::duration(ms))).unwrap_or_default(),
            slot.run.unwrap_or_default(),
            slot.reason.unwrap_or_default(),
        ]);
    }
    session.screen.line(&table::list(&["SLOT", "OUTCOME", "", "RUN", "WHY"], &rows, width(session)))
}

/// Prints a task as a file.
pub async fn export(session: &Session, words: &str) -> Result<()> {
    let id = resolve(session, words).await?;
    let mut answer = get(session, &id).await?;
    let definition = answer.get_mut("definition").map(Value::take).unwrap_or_default();
    if session.screen.json {
        return session.screen.document(&definition);
    }
    let Value::Object(definition) = definition else {
        return Err(Failure::Server(format!("the server does not say what task {id} is made of")));
    };
    session.screen.line(as_file(definition)?.trim_end())
}

/// A definition as the text of a task file, its title first.
fn as_file(mut definition: Map<String, Value>) -> Result<String> {
    // The name of the file says it.
    definition.remove("id");
    let mut text = String::new();
    let (first, rest): (Map<_, _>, Map<_, _>) =
        definition.into_iter().partition(|(key, _)| matches!(key.as_str(), "title" | "description" | "agent"));
    let (mut first, mut rest) = (Value::Object(first), Value::Object(rest));
    for part in [&mut first, &mut rest] {
        without_nulls(part);
    }
    for key in ["title", "description", "agent"] {
        if let Some(value) = first.get(key) {
            text.push_str(&toml(&json!({ key: value }))?);
        }
    }
    text.push('\n');
    text.push_str(&toml(&rest)?);
    Ok(text)
}

fn toml(value: &Value) -> Result<String> {
    Ok(toml::to_string_pretty(value).map_err(anyhow::Error::from)?)
}

/// TOML has no null; absent means the same.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_task_is_a_file_that_says_the_same() {
        let definition = json!({
            "id": "x", "title": "Say \"hello\"", "agent": "steps", "description": null,
            "schedule": {"every": "30m"}, "params": {"who": {"default": "you"}},
            "steps": [{"name": "hello", "run": "echo hello\necho again"}, {"run": "true", "timeout": "2m"}],
        });
        let Value::Object(members) = definition else { unreachable!() };
        let text = as_file(members).unwrap();
        assert!(text.starts_with("title = "), "{text}");
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["title"].as_str(), Some("Say \"hello\""));
        assert_eq!(table["schedule"]["every"].as_str(), Some("30m"));
        assert_eq!(table["steps"][0]["run"].as_str(), Some("echo hello\necho again"));
        assert!(!table.contains_key("description") && !table.contains_key("id"));
    }
}
