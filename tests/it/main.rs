//! x
mod config;
mod schedule_timing;
