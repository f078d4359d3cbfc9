//! The `rejoin` program: the server and the commands that speak with it.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: what stands over a command must not have threads, and starts in a moment.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "supervise") {
        return rejoin::run::supervisor::main();
    }
    rejoin::cli::main()
}
