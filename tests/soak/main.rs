//! What takes too long for the gate: kills, idle hours, dead lines, crowds, memory over time, many seeds.
//!
//! `make soak` plays each part at full length against release builds; `docs/soak/README.md` says how to read what it
//! writes. In the gate each part is played for some seconds, so that it still works when it is wanted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where by panicking")]

mod blackholes;
mod crowd;
mod idle;
mod kills;
mod memory;
mod sim;
mod stops;

mod part;
mod probe;

mod follower;
mod ledger;
mod load;
mod road;
mod speaker;
mod stage;
mod viewer;

#[path = "../it/feed_stage.rs"]
mod feed_stage;
#[path = "../it/harness.rs"]
mod harness;
#[path = "../it/kills_recorder.rs"]
mod kills_recorder;
#[path = "../it/kills_scene.rs"]
mod kills_scene;
#[path = "../it/producer.rs"]
mod producer;
#[path = "../it/proxy.rs"]
mod proxy;
#[path = "../it/trees.rs"]
mod trees;
