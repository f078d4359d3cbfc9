//! The tests of the whole, in one binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod config;
mod schedule_bell;
mod schedule_plan;
mod schedule_timing;
mod task_files;
mod task_files_folder;
