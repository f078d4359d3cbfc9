//! The bell, with the machine's own clock: it cannot be moved from outside. And a planner whose bell is silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use rejoin::config::ScheduleDefaults;
use rejoin::planner::{Planner, Trust};
use rejoin::schedule::bell::Bell;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::harness::Home;
use crate::process::until;

/// Only a bell that is broken takes so long.
const NEVER: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bell_wakes_all_that_wait_and_can_be_stopped_and_made_again() {
    for _ in 0..2 {
        let wakes: Vec<Arc<Notify>> = vec![Arc::default(), Arc::default()];
        let bell = Bell::start(wakes.clone(), true).await.unwrap();
        let start = Instant::now();
        for _ in 0..2 {
            for wake in &wakes {
                tokio::time::timeout(NEVER, wake.notified()).await.expect("the bell rings");
            }
        }
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        tokio::time::timeout(NEVER, bell.stop()).await.expect("the bell stops").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_is_noticed_by_a_planner_whose_bell_is_silent() {
    let begin: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(begin);
    let home = Home::new("");
    let server = home.serve_at(clock.clone()).await;
    let (api, trust) = (server.server.api(), Arc::new(Trust::default()));
    let planner = Planner {
        registry: api.viewer.registry.clone(),
        runs: api.runs.clone(),
        publisher: api.publisher.clone(),
        bell: Arc::default(),
        look_again: ScheduleDefaults::default().look_again,
        trust: Arc::clone(&trust),
    };
    let stop = CancellationToken::new();
    let planning = tokio::spawn(planner.run(stop.clone()));
    // Forward, and back.
    for minutes in [0, 29, 10, 40] {
        clock.set(begin + SignedDuration::from_mins(minutes));
        until("the planner has looked at the clock", || trust.looked_at() == clock.now()).await;
    }
    stop.cancel();
    planning.await.unwrap();
    server.stop().await;
}
