//! The `steps` agent.

pub mod condition;
