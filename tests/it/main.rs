//! The tests from outside.

mod cli_live;
