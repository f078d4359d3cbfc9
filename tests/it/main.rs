//! Rejoin from the outside and between its parts. One binary, so that it links once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where by panicking")]

mod cli;
mod cli_commands;
mod cli_live;
mod config;
mod faults;
mod faults_life;
mod harness;
mod house;
mod disk;
mod harness;
#[cfg(feature = "failpoints")]
mod kills;
mod kills_recorder;
mod process;
mod proxy;
mod resume;
mod schedule_bell;
mod schedule_plan;
mod schedule_timing;
mod slow;
mod steps;
mod stream;
mod stop;
mod task_files;
mod task_files_folder;
