//! The `steps` agent.

pub mod condition;

/// temp
pub async fn run(_a: super::Assignment, _e: super::Emitter) -> super::Outcome { todo!() }
