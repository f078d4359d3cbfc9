//! Rejoin: a task agent that you can walk away from and rejoin mid-sentence.

pub mod clock;
pub mod config;
pub mod event;
pub mod shutdown;

pub mod task;

pub mod agent;

pub mod run;

pub mod schedule;

pub mod cli;
