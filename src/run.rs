//! Runs: how work is started, followed, stopped and recorded.

pub mod attention;
pub mod draft;
pub mod external;
pub mod process;
pub mod pulse;
pub mod secrets;
pub mod supervisor;

pub mod retry;
pub mod runner;

pub mod places;
pub mod queue;
