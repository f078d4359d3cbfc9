//! Five hundred stops of deep trees: children that ignore SIGINT and SIGTERM, left their group or their session, hold
//! the pipe, stand still, are orphans, have another environment or leave zombies. Nothing of any of them is left.

use std::sync::Arc;
use std::time::Duration;

use crate::part::{Part, play};
use crate::trees;

/// How many are stopped in one moment.
const AT_ONCE: usize = 25;
/// How often that is done: five hundred all together.
const ROUNDS: usize = 20;

/// Round after round against one server, which must be as it was.
pub async fn stops(part: Arc<Part>) {
    let rounds = if part.full { ROUNDS } else { 1 };
    let at_once = if part.full { AT_ONCE } else { 11 };
    let bounds = if part.full { trees::Bounds::PROMISED } else { trees::Bounds::BY_STAGES };
    let home = trees::home(trees::SHIPPED, at_once).run_by(&part.program);
    let mut server = home.spawn(&[]).await;
    let (mut trees, mut processes, mut polite, mut worst) = (0, 0, 0, 0);
    for round in 1..=rounds {
        let took = trees::stop_all(&home, &server, at_once, bounds).await;
        part.say(format!("round {round}: {took:?}"));
        (trees, processes) = (trees + took.trees, processes + took.processes);
        (polite, worst) = (polite.max(took.polite_ms), worst.max(took.worst_ms));
    }
    part.note("stops", trees);
    part.note("processes", processes);
    part.note("left", 0);
    part.note("longest of those that take SIGINT, ms", polite as i64);
    part.note("longest of all, ms", worst as i64);
    assert!(server.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_each_kind_of_tree_that_is_stopped_nothing_is_left() {
    stops(Part::glance("stops", Duration::from_secs(20))).await;
}

#[test]
#[ignore = "ten minutes: make soak"]
fn stops_at_full_length() {
    play("stops", "SOAK_SERVER", stops);
}
