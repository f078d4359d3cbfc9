//! Conditions: CEL expressions over `params` and the steps' results.

use cel::Program;

/// Checks that a text is a CEL expression.
///
/// # Errors
/// Why it is none, in one line.
pub fn check(text: &str) -> Result<(), String> {
    Program::compile(text).map(drop).map_err(|error| error.to_string())
}
