//! The bell: once a second it wakes whoever plans. It owns no time and decides nothing.
//!
//! It goes by the time of day: one that was set back silences it until that time has come again. Who plans also sleeps
//! until the next due slot and looks by itself in any case, so that a bell that falls silent costs nothing.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler};

/// Every second, in UTC: six fields, the only form the library takes.
const EVERY_SECOND: &str = "* * * * * *";
/// Once a minute, away from its beginning, when most tasks are due.
const EVERY_MINUTE: &str = "40 * * * * *";

/// A bell that rings. Needs the multi-threaded runtime; ask it to stop with [`Bell::stop`].
pub struct Bell {
    scheduler: JobScheduler,
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bell")
    }
}

impl Bell {
    /// Starts to wake the planner once a second, and housekeeping once a minute, or once a second where it says so. A
    /// ring that nobody waits for is kept for the next who does, and only one: ten missed seconds are one look.
    ///
    /// # Errors
    /// Where the library cannot be started.
    pub async fn start(planner: Arc<Notify>, (housekeeping, often): (Arc<Notify>, bool)) -> anyhow::Result<Self> {
        let scheduler = JobScheduler::new().await.context("the bell could not be made")?;
        for (when, wake) in [(EVERY_SECOND, planner), (if often { EVERY_SECOND } else { EVERY_MINUTE }, housekeeping)] {
            // A body that cannot fail: the library loses jobs that are due together with many others, and a job that
            // panics once never runs again.
            let job = Job::new_async(when, move |_, _| {
                wake.notify_one();
                Box::pin(std::future::ready(()))
            })
            .context("a job of the bell could not be made")?;
            scheduler.add(job).await.context("a job of the bell could not be added")?;
        }
        scheduler.start().await.context("the bell could not be started")?;
        Ok(Self { scheduler })
    }

    /// Stops ringing. A ring may still be under way when this returns.
    ///
    /// # Errors
    /// Where the library cannot be stopped; there is nothing to be done about it then.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.scheduler.shutdown().await.context("the bell could not be stopped")
    }
}
