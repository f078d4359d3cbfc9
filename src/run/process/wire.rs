//! What the server and a supervisor say to each other: one JSON object a line, over the supervisor's standard input.
//!
//! Both ends are the same program file, so there is no version in it.

use std::ffi::OsString;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest line a supervisor takes, in bytes: far above what the kernel takes as an environment (2 MiB), even
/// where every byte of it is written as a number.
pub(crate) const MAX_LINE: usize = 32 * 1024 * 1024;

/// How many processes a supervisor names at most when it is asked what is left.
pub(crate) const MAX_LEFT: usize = 20;

/// The server to the supervisor.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Start the command. Comes once, after the record of the supervisor is committed. Not UTF-8 of necessity.
    Start {
        /// The text for `/bin/sh -c`.
        command: String,
        /// Its whole environment.
        env: Vec<(OsString, OsString)>,
        /// Where it runs.
        cwd: OsString,
    },
    /// Send this signal, by its number, to the whole tree.
    Signal(i32),
    /// Say what is left.
    List,
}

/// The supervisor to the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The supervisor is there and waits for the start.
    Ready {
        /// Its process id.
        pid: i32,
        /// Its start time, in clock ticks since boot.
        start_ticks: u64,
    },
    /// The command runs.
    Started {
        /// Its process id.
        pid: i32,
    },
    /// The command could not be started.
    Refused(String),
    /// The command ended; others of its tree may not have.
    Exited {
        /// Its exit code, if it ended by itself.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// The answer to [`Order::List`].
    Left(Vec<Left>),
    /// Nothing is left of the tree: the supervisor's last word.
    Gone,
}

/// A process that would not go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Its id.
    pub pid: i32,
    /// The kernel's short name of it.
    pub name: String,
    /// Its state letter in `/proc`: `D` waits in the kernel and takes no signal.
    pub state: char,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, name, state } = self;
        match state {
            'D' => write!(f, "{pid} ({name}, in uninterruptible sleep)"),
            'T' | 't' => write!(f, "{pid} ({name}, stopped)"),
            'R' | 'S' | 'I' => write!(f, "{pid} ({name}, not killed)"),
            _ => write!(f, "{pid} ({name})"),
        }
    }
}

/// One message as the line that is sent.
pub(crate) fn line(message: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named_with_the_state_it_is_in() {
        let words = |state| Left { pid: 7, name: "x".to_owned(), state }.to_string();
        assert_eq!(words('D'), "7 (x, in uninterruptible sleep)");
        assert_eq!(words('T'), "7 (x, stopped)");
        assert_eq!(words('S'), "7 (x, not killed)");
        assert_eq!(words('?'), "7 (x)");
    }
}
