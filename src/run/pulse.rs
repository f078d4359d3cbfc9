//! The pulse of a run: when it last said something. A run that may not be silent for long is ended by it. Knows no log
//! and no run.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// When something was last said. Cheap to clone: all of them are one.
#[derive(Clone, Debug)]
pub struct Pulse {
    heard: watch::Sender<Heard>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    since: Instant,
    /// What was said waits for a place in the log: who says it is held up and not silent.
    is_held: bool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { heard: watch::Sender::new(Heard { since: Instant::now(), is_held: false }) }
    }
}

impl Pulse {
    /// Something was said just now.
    pub fn beat(&self) {
        self.heard.send_replace(Heard { since: Instant::now(), is_held: false });
    }

    /// Something was said and waits for a place in the log; the next beat says that it has one.
    pub fn hold(&self) {
        self.heard.send_replace(Heard { since: Instant::now(), is_held: true });
    }

    /// Ready once nothing was said for so long; never without a limit.
    pub async fn silent(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        let mut heard = self.heard.subscribe();
        loop {
            let Heard { since, is_held } = *heard.borrow_and_update();
            let until = since + limit;
            tokio::select! {
                // This pulse has the other end.
                _ = heard.changed() => {}
                () = tokio::time::sleep_until(until), if !is_held => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_for_so_long_is_silent_and_each_word_begins_the_time_anew() {
        let (pulse, begin) = (Pulse::default(), Instant::now());
        let speaker = pulse.clone();
        tokio::spawn(async move {
            for _ in 0..5 {
                tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
                speaker.beat();
            }
        });
        pulse.silent(Some(LIMIT)).await;
        assert_eq!(begin.elapsed(), 5 * (LIMIT - Duration::from_secs(1)) + LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_log_is_not_silent() {
        let (pulse, begin) = (Pulse::default(), Instant::now());
        pulse.hold();
        let log = pulse.clone();
        tokio::spawn(async move {
            tokio::time::sleep(50 * LIMIT).await;
            log.beat();
        });
        pulse.silent(Some(LIMIT)).await;
        assert_eq!(begin.elapsed(), 51 * LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_is_ever_silent() {
        let year = Duration::from_secs(365 * 86_400);
        assert!(tokio::time::timeout(year, Pulse::default().silent(None)).await.is_err());
    }
}
