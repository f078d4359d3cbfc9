//! `rejoin doctor --accept-clock`: only a person can say that a clock is right.

use serde_json::json;

use super::Session;
use super::failure::Result;
use super::tasks::read;
use super::wire::ClockAccepted;

/// Says that the server's clock is right.
pub async fn accept(session: &Session) -> Result<()> {
    let answer = session.client.post(&["clock", "accept"], &json!({}), None).await?;
    if session.screen.json {
        return session.screen.document(&answer);
    }
    let ClockAccepted { now, newest, tasks } = read(answer)?;
    session.screen.line(&if newest > now {
        format!(
            "The clock is taken for right: it is {now:.0}. {tasks} tasks were planned up to {newest:.0}; they go on from \
             now. What has run is not run again."
        )
    } else {
        format!("The clock was not in doubt: it is {now:.0}.")
    })
}
