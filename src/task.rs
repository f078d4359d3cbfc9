//! Tasks: what they are, how they are read and checked, where they come from, which there are.

pub mod agenda;
pub mod definition;
pub mod files;
pub mod folder;
pub mod parse;
pub mod registry;
pub mod slots;
pub mod telling;
