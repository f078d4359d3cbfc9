//! Tasks: what they are, how they are read and checked, where they come from.

pub mod definition;
pub mod folder;
pub mod parse;
