//! Why a command did not end well, and the exit code that goes with it. Knows nothing of how it is printed.

use std::io;
use std::process::ExitCode;

/// What a command comes back with.
pub type Result<T> = std::result::Result<T, Failure>;

/// Why a command did not end well. Each kind has its exit code, so that scripts can tell them apart.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The run that was waited for did not succeed; what is to say was said by then.
    #[error("the run did not succeed")]
    RunFailed,
    /// Something that was looked at is in trouble; what is to say was said by then.
    #[error("there is trouble")]
    Trouble,
    /// The command line or a file is wrong.
    #[error("{0}")]
    Usage(String),
    /// No server answers at the address that was tried.
    #[error("{0}")]
    NoServer(String),
    /// The server was there and its answer did not come.
    #[error("{0}")]
    Broken(String),
    /// What was named is not there, or not for this credential.
    #[error("{0}")]
    NotFound(String),
    /// The credential does not allow it.
    #[error("{0}")]
    NotAllowed(String),
    /// It does not go together with what is there.
    #[error("{0}")]
    Conflict(String),
    /// The server answered that it could not do it, or answered what is no answer.
    #[error("{0}")]
    Server(String),
    /// Whoever read the output went away, as `head` does: no reason to complain.
    #[error("the reader of the output went away")]
    Pipe,
    /// Something on this side went wrong.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::RunFailed | Self::Trouble => 1,
            Self::Usage(_) => 2,
            Self::NoServer(_) | Self::Broken(_) => 3,
            Self::NotFound(_) => 4,
            Self::NotAllowed(_) => 5,
            Self::Conflict(_) => 6,
            Self::Server(_) | Self::Other(_) => 7,
            // What a shell shows for a program that SIGPIPE ended.
            Self::Pipe => 141,
        }
    }

    /// Whether there is anything left to say about it.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::RunFailed | Self::Trouble | Self::Pipe)
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.code())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe { Self::Pipe } else { Self::Other(error.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_has_the_exit_code_that_scripts_rely_on() {
        let words = || "why".to_owned();
        let codes = [
            (Failure::RunFailed, 1),
            (Failure::Trouble, 1),
            (Failure::Usage(words()), 2),
            (Failure::NoServer(words()), 3),
            (Failure::NotFound(words()), 4),
            (Failure::NotAllowed(words()), 5),
            (Failure::Conflict(words()), 6),
            (Failure::Server(words()), 7),
        ];
        for (failure, code) in codes {
            assert_eq!(failure.code(), code, "{failure:?}");
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_complaint() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(failure, Failure::Pipe) && failure.is_silent());
    }
}
