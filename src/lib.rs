//! Rejoin: a task agent that you can walk away from and rejoin mid-sentence.

pub mod clock;
pub mod config;
pub mod egress;
pub mod event;
pub mod failpoint;
pub mod logging;
pub mod metrics;
pub mod shutdown;

pub mod record;
pub mod store;

pub mod stream;

pub mod schedule;
pub mod task;

pub mod agent;
pub mod run;

pub mod notify;
pub mod planner;

pub mod housekeeping;

pub mod api;
pub mod server;

pub mod cli;
