//! What is done to a server beside watching: tasks that come and go under one name, and runs by hand.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::follower::Counts;
use crate::road::Road;

/// Makes a task, lets it be fed for a while, deletes it and makes it again, until all is quiet; then it stays.
pub async fn come_and_go(road: Arc<Road>, task: String, stay: Duration, seed: u64) -> Counts {
    let mut random = StdRng::seed_from_u64(seed);
    let mut counts = Counts::new();
    let body = json!({ "id": task, "title": "Comes and goes", "agent": "external", "run": false });
    loop {
        let made = road.call(reqwest::Method::POST, "/tasks", Some(body.clone())).await;
        assert!(matches!(made, Some((201, _))), "{task} cannot be made: {made:?}");
        *counts.entry("tasks made").or_default() += 1;
        road.rest(stay.mul_f64(random.random_range(0.5..1.5))).await;
        if road.is_quiet() {
            return counts;
        }
        let deleted = road.call(reqwest::Method::DELETE, &format!("/tasks/{task}?stop=true"), None).await;
        assert!(deleted.as_ref().is_some_and(|(status, _)| *status < 300), "{task} cannot be deleted: {deleted:?}");
        road.rest(stay.mul_f64(random.random_range(0.0..0.1))).await;
    }
}

/// Runs a task by hand again and again until all is quiet.
pub async fn by_hand(road: Arc<Road>, task: String, pause: Duration, seed: u64) -> Counts {
    let mut random = StdRng::seed_from_u64(seed);
    let mut counts = Counts::new();
    while !road.is_quiet() {
        let path = format!("/tasks/{task}/runs");
        match road.call(reqwest::Method::POST, &path, Some(json!({}))).await {
            Some((201, _)) => *counts.entry("runs by hand").or_default() += 1,
            // So many wait already.
            Some((409 | 429, _)) => *counts.entry("runs by hand that were too many").or_default() += 1,
            other => panic!("{task} cannot be run: {other:?}"),
        }
        road.rest(pause.mul_f64(random.random_range(0.0..2.0))).await;
    }
    counts
}
