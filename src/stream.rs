//! The heart: what happens to an event from the moment it is offered until a connection has it.
//!
//! Knows events and runs as events tell of them; knows nothing of tasks' definitions, HTTP or status codes.

pub mod segment;

pub mod ring;

pub mod delta;

pub mod wake;

pub mod forwarder;

pub mod topic;

pub mod offer;

pub mod batch;

pub mod log;

pub mod publish;

pub mod changes;
pub mod ends;
mod intake;
mod numbering;
pub mod writer;

pub mod checkpoint;

pub mod reader;

mod sync;
