//! The tests from outside.

mod cli_commands;
mod cli_live;
