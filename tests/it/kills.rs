//! `kill -9`: at named points and at random moments. Nothing that a watcher saw is lost, no slot starts twice, no
//! process of a run is left, and everything goes on.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::kills_scene::{Checked, Scene};

/// Checks a scene; gives how many of its kills came right behind an event.
async fn check(scene: Scene, what: &str) -> usize {
    let Checked { kills, fresh, resumed, .. } = scene.check().await;
    eprintln!("{what}: {kills} kills, {fresh} with an event seen in the 100 ms before");
    assert!(resumed >= kills, "the recorder came back {resumed} times after {kills} kills");
    fresh
}

/// Five kills at the passes given of one point, on one home.
async fn kill_at(point: &str, passes: [u64; 5]) {
    let mut scene = Scene::new();
    for pass in passes {
        scene.kill_at(&format!("{point}@{pass}")).await;
    }
    check(scene, point).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_killed_right_after_a_run_was_queued_the_run_runs_once() {
    kill_at("queued", [1, 2, 3, 4, 6]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_09_killed_within_a_commit_nothing_of_it_was_seen() {
    kill_at("in-commit", [6, 11, 23, 38, 52]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_09_killed_between_the_commit_and_the_watchers_all_is_seen_later() {
    kill_at("committed-not-woken", [5, 9, 20, 33, 47]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_35_killed_after_a_slot_was_claimed_it_starts_once_all_the_same() {
    kill_at("claimed-not-started", [1, 2, 3, 4, 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_killed_before_a_process_was_recorded_none_of_it_is_left() {
    kill_at("spawned-not-recorded", [1, 3, 6, 10, 14]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_29_killed_before_the_terminal_status_was_saved_the_run_ends_as_interrupted() {
    kill_at("terminal-not-committed", [1, 1, 2, 3, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_06_over_twenty_kills_at_random_moments_a_watcher_sees_each_event_once() {
    let seed = std::env::var("REJOIN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("REJOIN_SEED={seed} repeats the moments");
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::new();
    for _ in 0..20 {
        scene.kill_after(Duration::from_millis(random.random_range(0..400))).await;
    }
    assert!(check(scene, "random").await >= 20);
}
