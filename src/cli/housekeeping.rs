//! `rejoin housekeeping`: what the server does for itself, when, and what came of it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, Result};
use super::tasks::width;
use super::{table, times};

/// What of `housekeeping` is asked.
#[derive(Debug, clap::Subcommand)]
pub enum Ask {
    /// Say when each was done last, with what result, and when it is due (the default)
    List,
    /// Have one done now
    Run {
        /// Its name
        name: String,
    },
}

/// A chore, as the server gives it.
#[derive(Debug, Deserialize)]
struct Chore {
    id: String,
    state: String,
    #[serde(default)]
    every: Option<String>,
    #[serde(default)]
    next_at: Option<Timestamp>,
    #[serde(default)]
    last: Option<Last>,
}

#[derive(Debug, Deserialize)]
struct Last {
    at: Timestamp,
    duration_ms: u64,
    result: String,
}

/// Shows the chores, or has one done.
pub async fn housekeeping(session: &Session, ask: Option<Ask>) -> Result<()> {
    match ask.unwrap_or(Ask::List) {
        Ask::List => list(session).await,
        Ask::Run { name } => {
            let answer = session.client.post(&["housekeeping", &name, "run"], &json!({}), None).await?;
            if session.screen.json {
                return session.screen.document(&answer);
            }
            session.screen.say(&format!("{name} is under way; `rejoin housekeeping` says what comes of it."));
            Ok(())
        }
    }
}

async fn list(session: &Session) -> Result<()> {
    let answer: Value = session.client.get(&["housekeeping"], &[]).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let chores: Vec<Chore> = serde_json::from_value(answer["items"].clone())
        .map_err(|error| Failure::Server(format!("the server's housekeeping cannot be read: {error}")))?;
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let row = |chore: Chore| {
        let (last, took, result) = match chore.last {
            Some(last) => (times::with_distance(last.at, now, &zone), times::duration(last.duration_ms), last.result),
            None => Default::default(),
        };
        let next = chore.next_at.map(|at| times::with_distance(at, now, &zone)).unwrap_or_default();
        vec![chore.id, chore.state, chore.every.unwrap_or_default(), last, took, next, result]
    };
    let rows: Vec<Vec<String>> = chores.into_iter().map(row).collect();
    let headings = ["CHORE", "STATE", "EVERY", "LAST", "TOOK", "NEXT", "RESULT"];
    session.screen.line(&table::list(&headings, &rows, width(session)))
}
