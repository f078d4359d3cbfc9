//! `rejoin status`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::Session;
use super::failure::{Failure, Result};
use super::wire::Status;
use super::{table, times};

/// Says how the server is.
pub async fn status(session: &Session) -> Result<()> {
    let answer: Value = session.client.get(&["status"], &[]).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let status: Status = serde_json::from_value(answer)
        .map_err(|error| Failure::Server(format!("the server's status cannot be read: {error}")))?;
    let zone = TimeZone::system();
    let next = status.next.map(|next| match next.at {
        Some(at) => format!("{} {}", next.task, times::with_distance(at, Timestamp::now(), &zone)),
        None => next.task,
    });
    let mut facts = vec![
        ("server", Some(session.client.place().to_string())),
        ("version", Some(status.version)),
        ("up for", Some(times::duration(status.uptime_s.saturating_mul(1000)))),
        ("runs", Some(format!("{} running, {} queued", status.running, status.queued))),
    ];
    facts.extend(status.pools.iter().map(|pool| {
        let stands = format!("{} of {} taken, {} waiting", pool.running, pool.size, pool.queued);
        match pool.name.as_str() {
            "all" => ("places", Some(stands)),
            name => ("pool", Some(format!("{name}: {stands}"))),
        }
    }));
    facts.extend([("watchers", Some(status.connections.to_string())), ("next", next)]);
    facts.extend(
        status
            .notices
            .into_iter()
            .map(|notice| ("notice", Some(if notice.text.is_empty() { notice.code } else { notice.text }))),
    );
    session.screen.line(&table::facts(&facts))
}
