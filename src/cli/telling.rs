//! `rejoin notify list`, `channels` and `test`: what people were told by other ways than the page.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, Result};
use super::tasks::{read, resolve, width};
use super::{table, times};

/// What was told to one channel.
#[derive(Debug, Deserialize)]
struct Delivery {
    at: Option<Timestamp>,
    channel: String,
    event: String,
    task: Option<String>,
    state: String,
    #[serde(default)]
    attempts: u64,
    #[serde(default)]
    text: String,
    next_at: Option<Timestamp>,
    last_error: Option<String>,
}

/// A way to tell people.
#[derive(Debug, Deserialize)]
struct Channel {
    name: String,
    kind: String,
    #[serde(default)]
    on: Vec<String>,
    quiet: Option<String>,
    #[serde(default)]
    waiting: u64,
    last_sent_at: Option<Timestamp>,
    last_error: Option<String>,
}

/// Lists what was told, the newest first.
pub async fn list(
    session: &Session,
    task: Option<String>,
    channel: Option<String>,
    state: Option<String>,
    n: usize,
) -> Result<()> {
    let pairs = [("task", &task), ("channel", &channel), ("state", &state)];
    let query: Vec<(&str, &str)> = pairs.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    let items = session.client.list(&["notifications"], &query, n).await?;
    if session.screen.json {
        return session.screen.document(&json!({ "items": items, "next": null }));
    }
    if items.is_empty() {
        session
            .screen
            .say("Nobody was told anything yet. `rejoin notify channels` shows by which ways people are told.");
        return Ok(());
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let mut rows = Vec::new();
    for item in items {
        let delivery: Delivery = read(item)?;
        let tries = if delivery.attempts > 1 {
            format!("{} ({} tries)", delivery.state, delivery.attempts)
        } else {
            delivery.state
        };
        let next = delivery.next_at.map(|at| format!("next {}", times::distance(at, now)));
        let why = delivery.last_error.into_iter().chain(next).collect::<Vec<_>>().join("; ");
        rows.push(vec![
            delivery.at.map(|at| times::with_distance(at, now, &zone)).unwrap_or_default(),
            delivery.channel,
            delivery.event,
            delivery.task.unwrap_or_default(),
            tries,
            delivery.text,
            why,
        ]);
    }
    let headings = ["WHEN", "CHANNEL", "EVENT", "TASK", "STATE", "TEXT", "WHY"];
    session.screen.line(&table::list(&headings, &rows, width(session)))
}

/// Lists the channels, and how each stands.
pub async fn channels(session: &Session) -> Result<()> {
    let answer: Value = session.client.get(&["notify"], &[]).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let items: Vec<Channel> = read(answer.get("items").cloned().unwrap_or_default())?;
    if items.is_empty() {
        session
            .screen
            .say("There are no channels: add one under [notify.channels] in config.toml and start the server again.");
        return Ok(());
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let rows: Vec<Vec<String>> = items
        .into_iter()
        .map(|channel| {
            vec![
                channel.name,
                channel.kind,
                channel.on.join(" "),
                channel.quiet.unwrap_or_default(),
                channel.waiting.to_string(),
                channel.last_sent_at.map(|at| times::with_distance(at, now, &zone)).unwrap_or_default(),
                channel.last_error.unwrap_or_default(),
            ]
        })
        .collect();
    let headings = ["CHANNEL", "KIND", "TOLD OF", "QUIET", "WAITING", "LAST TOLD", "LAST ERROR"];
    session.screen.line(&table::list(&headings, &rows, width(session)))
}

/// Sends a test by a channel.
pub async fn test(session: &Session, channel: &str, task: Option<String>) -> Result<()> {
    let task = match task {
        Some(words) => Some(resolve(session, &words).await?),
        None => None,
    };
    let answer = session.client.post(&["notify", channel, "test"], &json!({ "task": task }), None).await?;
    let delivery: Delivery = read(answer.clone())?;
    if session.screen.json {
        session.screen.document(&answer)?;
    }
    if delivery.state != "sent" {
        let why = delivery.last_error.unwrap_or_default();
        return Err(Failure::Server(format!("The test did not arrive: {why}")));
    }
    if session.screen.json {
        return Ok(());
    }
    session.screen.line(&format!("A test was sent by {channel}: look whether it arrived."))?;
    if let Some(why) = delivery.last_error {
        session.screen.say(&format!("Not all took it: {why}"));
    }
    Ok(())
}
