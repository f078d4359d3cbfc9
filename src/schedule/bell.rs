//! The bell: once a minute it wakes whoever has something to do from time to time. It owns no time and decides nothing.
//!
//! It goes by the time of day: one that was set back silences it until that time has come again. Who is woken also looks
//! by itself, so that a bell that falls silent costs nothing.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler};

/// Every second, in UTC: six fields, the only form the library takes.
const EVERY_SECOND: &str = "* * * * * *";
/// Once a minute, away from its beginning, when most tasks are due. Each ring is handed on through several tasks of the
/// library: one a second would take as much of the machine as all else that an idle server does.
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
    /// Starts to ring for all of `wakes`, once a minute or, where it is to be often, once a second. A ring that nobody
    /// waits for is kept for the next who does, and only one: ten that were missed are one look.
    ///
    /// # Errors
    /// Where the library cannot be started.
    pub async fn start(wakes: Vec<Arc<Notify>>, often: bool) -> anyhow::Result<Self> {
        let scheduler = JobScheduler::new().await.context("the bell could not be made")?;
        // A body that cannot fail: a job that panics once never runs again. And one job for all: the library loses some
        // that are due together with many others.
        let job = Job::new_async(if often { EVERY_SECOND } else { EVERY_MINUTE }, move |_, _| {
            for wake in &wakes {
                wake.notify_one();
            }
            Box::pin(std::future::ready(()))
        })
        .context("the job of the bell could not be made")?;
        scheduler.add(job).await.context("the job of the bell could not be added")?;
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
