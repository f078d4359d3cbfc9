//! When tasks run by themselves. Nothing else in the crate knows cron, time zones or the clock going forward and back.
//!
//! This module decides and rings; it knows nothing of storage, runs or connections.

pub mod bell;
pub mod calendar;
pub mod plan;
pub mod timing;
pub mod words;
