//! The bell, with the machine's own clock: it cannot be moved from outside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rejoin::schedule::bell::Bell;
use tokio::sync::Notify;

/// Only a bell that is broken takes so long.
const NEVER: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bell_wakes_who_plans_about_once_a_second_and_can_be_stopped_and_made_again() {
    for _ in 0..2 {
        let wake = Arc::new(Notify::new());
        let bell = Bell::start(Arc::clone(&wake), (Arc::default(), false)).await.unwrap();
        let start = Instant::now();
        for _ in 0..2 {
            tokio::time::timeout(NEVER, wake.notified()).await.expect("the bell rings");
        }
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        tokio::time::timeout(NEVER, bell.stop()).await.expect("the bell stops").unwrap();
    }
}
