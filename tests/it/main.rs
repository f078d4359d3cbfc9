//! Rejoin from the outside and between its parts. One binary, so that it links once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where by panicking")]

mod agenda;
mod api;
mod attack;
mod attention;
mod backup;
#[cfg(feature = "failpoints")]
mod backup_kills;
mod bounds;
mod calendar;
mod cli;
mod cli_commands;
mod cli_live;
mod clock_steps;
mod commands;
#[cfg(feature = "failpoints")]
mod commands_faults;
mod config;
mod conformance;
#[cfg(feature = "failpoints")]
mod deltas;
#[cfg(feature = "failpoints")]
mod disk;
mod disk_limits;
mod doctor;
mod doors;
mod external;
#[cfg(feature = "failpoints")]
mod external_faults;
mod faults;
mod faults_life;
mod feed;
mod feed_faults;
mod feed_stage;
mod frames;
mod grafana;
mod harness;
mod house;
mod housekeeping;
#[cfg(feature = "failpoints")]
mod kills;
#[cfg(feature = "failpoints")]
mod kills_recorder;
#[cfg(feature = "failpoints")]
mod kills_scene;
mod logs;
mod memory;
mod metrics;
mod notify;
mod notify_receivers;
mod places;
mod policies;
mod pools;
mod process;
mod producer;
mod proxy;
mod resume;
mod retries;
mod rows;
mod rows_cli;
mod rows_events;
mod rows_stage;
mod schedule_bell;
mod schedule_plan;
mod schedule_preview;
mod schedule_timing;
mod schedule_words;
mod scrape;
mod slow;
mod steps;
mod stop;
mod stream;
mod task_files;
mod task_files_folder;
mod trees;
