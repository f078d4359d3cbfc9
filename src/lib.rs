//! Rejoin: a task agent that you can walk away from and rejoin mid-sentence.

pub mod clock;
pub mod event;
pub mod failpoint;

pub mod record;
pub mod store;

pub mod stream;

pub mod cli;
