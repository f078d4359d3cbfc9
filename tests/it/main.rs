//! x
mod config;
mod schedule_timing;
//! Rejoin from the outside and between its parts. One binary, so that it links once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where by panicking")]

mod process;
mod steps;
