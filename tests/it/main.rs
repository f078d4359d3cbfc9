//! x
mod config;
mod schedule_plan;
mod schedule_timing;
