//! `rejoin attention`, `runs acknowledge` and `runs snooze`: what runs have found, and what a person answers.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::Session;
use super::escape;
use super::failure::Result;
use super::runs::run_id;
use super::tasks::{read, width};
use super::wire::Finding;
use super::{table, times};

/// Lists what is open; with `all` also what is snoozed or acknowledged.
pub async fn list(session: &Session, all: bool, n: usize) -> Result<()> {
    let state = if all { "all" } else { "open" };
    let items = session.client.list(&["attention"], &[("state", state)], n).await?;
    if session.screen.json {
        return session.screen.document(&json!({ "items": items, "next": null }));
    }
    if items.is_empty() {
        session.screen.say(if all { "Nothing was ever found." } else { "Nothing needs you." });
        return Ok(());
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let mut rows = Vec::new();
    for item in items {
        let finding: Finding = read(item)?;
        let when = finding.at.map(|at| times::with_distance(at, now, &zone)).unwrap_or_default();
        let state = standing(&finding, now, &zone);
        rows.push(vec![finding.run, finding.task, when, state, finding.summary]);
    }
    session.screen.line(&table::list(&["RUN", "TASK", "FOUND", "STATE", "WHAT"], &rows, width(session)))
}

fn standing(finding: &Finding, now: Timestamp, zone: &TimeZone) -> String {
    match finding.snoozed_until {
        Some(until) => format!("snoozed until {}", times::with_distance(until, now, zone)),
        None => finding.state.clone(),
    }
}

/// Notes that what a run has found was seen.
pub async fn acknowledge(session: &Session, id: &str) -> Result<()> {
    let id = run_id(id)?;
    let answer = session.client.post(&["runs", &id, "acknowledge"], &json!({}), None).await?;
    told(session, answer, |finding| format!("Acknowledged: {}", finding.summary))
}

/// Puts away for some time what a run has found.
pub async fn snooze(session: &Session, id: &str, span: &str) -> Result<()> {
    let id = run_id(id)?;
    let answer = session.client.post(&["runs", &id, "snooze"], &json!({ "for": span }), None).await?;
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    told(session, answer, |finding| {
        let until = finding.snoozed_until.map(|until| times::with_distance(until, now, &zone)).unwrap_or_default();
        format!("Snoozed until {until}: {}", finding.summary)
    })
}

fn told(session: &Session, answer: Value, words: impl Fn(&Finding) -> String) -> Result<()> {
    if session.screen.json {
        return session.screen.document(&answer);
    }
    session.screen.line(&escape::line(&words(&read(answer)?)))
}
