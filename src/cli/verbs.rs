//! What can be said on the command line: the verbs, what each takes, and the words of their help.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::place::Where;
use super::{add, backup, doctor, housekeeping};

const EXAMPLES: &str = "\
Examples:
  rejoin serve                                       start the server here
  rejoin open                                        sign in to its page
  rejoin tasks add \"Run smart maintenance\" --watch   run a task and watch it
  rejoin tasks add \"Say hello\" --run 'echo hello' --every 30m
                                                     make a task of your own
  rejoin watch                                       watch everything, live
  rejoin runs logs RUN | less                        read a run from its beginning

Exit codes:
  0 done; 1 the run failed (with --wait or --watch), or the doctor found trouble; 2 usage or bad file; 3 no server answers;
  4 not found; 5 not allowed; 6 conflict; 7 the server could not;
  130 stopped watching (the run goes on).";

/// A task agent that you can walk away from and rejoin mid-sentence.
#[derive(Debug, Parser)]
#[command(name = "rejoin", version, after_help = EXAMPLES, max_term_width = 100, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) server: Where,
    /// Print JSON: one document, or one line per event for streams
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start the server
    Serve {
        /// Where HTTP is served
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<SocketAddr>,
    },
    /// Open the page with a one-time sign-in link
    Open {
        /// Print the link even if stdout is not a terminal
        #[arg(long)]
        print: bool,
    },
    /// Add, run and look at tasks
    Tasks {
        #[command(subcommand)]
        command: TasksCommand,
    },
    /// Look at runs and stop them
    Runs {
        #[command(subcommand)]
        command: RunsCommand,
    },
    /// Watch a task, a run, or everything, live; Ctrl-C ends the viewer only
    Watch {
        /// The id or title of a task, or the id of a run; everything without one
        #[arg(value_name = "TASK|RUN")]
        target: Option<String>,
    },
    /// List what runs have found and nobody has answered
    Attention {
        /// Also what is snoozed or acknowledged
        #[arg(long)]
        all: bool,
        /// How many
        #[arg(short, default_value_t = 50)]
        n: usize,
    },
    /// Say something to the run of a task that is under way
    Send {
        /// The id or title of the task
        task: String,
        /// What to say
        text: String,
    },
    /// Let a run go on that asks for it
    Approve {
        /// The run's id
        run: String,
    },
    /// Tell a run that asks that it may not
    Deny {
        /// The run's id
        run: String,
    },
    /// See what people were told by other ways than the page, and try these ways
    Notify {
        #[command(subcommand)]
        command: NotifyCommand,
    },
    /// Say how the server is
    Status,
    /// Look for what is wrong, and say what to do about it; exits with 1 where there is trouble
    Doctor(doctor::Doctor),
    /// Say what the server does for itself, when, and what came of it
    Housekeeping {
        #[command(subcommand)]
        ask: Option<housekeeping::Ask>,
    },
    /// Make a copy of the store in one file, while the server runs
    Backup(backup::Backup),
    /// Put a backup in the place of what the data folder holds; no server may have it
    Restore {
        /// The backup
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Stand over one command; started by the server only
    #[command(hide = true)]
    Supervise,
}

#[derive(Debug, Subcommand)]
pub(super) enum TasksCommand {
    /// Run a task by its title, or make a new one
    Add(Box<add::Add>),
    /// List all tasks
    List,
    /// Show a task
    Show {
        /// The id or title
        task: String,
    },
    /// Remove a task that was added by command
    Remove {
        /// The id or title
        task: String,
        /// Stop its runs first
        #[arg(long)]
        stop: bool,
    },
    /// Let a task not run by itself until it is resumed
    Pause {
        /// The id or title
        task: String,
    },
    /// Let a task run by itself again
    Resume {
        /// The id or title
        task: String,
    },
    /// Run a task now
    Run {
        /// The id or title
        task: String,
        /// A parameter of the run
        #[arg(short, long = "param", value_name = "KEY=VALUE")]
        param: Vec<String>,
        #[command(flatten)]
        until: add::Until,
        /// Do it once, however often this is sent with the same key
        #[arg(long, value_name = "KEY")]
        once: Option<String>,
    },
    /// Show when a task runs next by itself
    Next {
        /// The id or title
        task: String,
        /// How many times to show
        #[arg(short, default_value_t = 5)]
        n: u32,
    },
    /// Show what became of the times at which a task should have run
    Slots {
        /// The id or title
        task: String,
        /// How many to show
        #[arg(short, default_value_t = 20)]
        n: usize,
    },
    /// Check task files; needs no server
    Validate {
        /// The files; all of the folder of tasks without any
        files: Vec<PathBuf>,
    },
    /// Print a task as a file
    Export {
        /// The id or title
        task: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RunsCommand {
    /// List runs, the newest first
    List {
        /// Only of this task
        #[arg(long)]
        task: Option<String>,
        /// Only in this state: queued, running, waiting, succeeded, failed, cancelled, timed_out, interrupted
        #[arg(long)]
        state: Option<String>,
        /// How many
        #[arg(short, default_value_t = 20)]
        n: usize,
    },
    /// Show a run
    Show {
        /// The run's id
        run: String,
    },
    /// Stop a run
    Stop {
        /// The run's id
        run: String,
    },
    /// Do once more what a run that is over was to do, with the same parameters
    Retry {
        /// The run's id
        run: String,
        #[command(flatten)]
        until: add::Until,
        /// Do it once, however often this is sent with the same key
        #[arg(long, value_name = "KEY")]
        once: Option<String>,
    },
    /// Note that what a run has found was seen, and what its task had found before
    Acknowledge {
        /// The run's id
        run: String,
    },
    /// Put away for some time what a run has found
    Snooze {
        /// The run's id
        run: String,
        /// For how long, like 4h or 1d
        #[arg(long = "for", value_name = "DURATION")]
        span: String,
    },
    /// Print what a run did
    Logs {
        /// The run's id
        run: String,
        /// Go on until the run is over
        #[arg(short, long)]
        follow: bool,
        /// Only the last N events
        #[arg(long, value_name = "N")]
        tail: Option<usize>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum NotifyCommand {
    /// List what was told, the newest first
    List {
        /// Only of this task
        #[arg(long)]
        task: Option<String>,
        /// Only by this channel
        #[arg(long)]
        channel: Option<String>,
        /// Only what stands so: pending, held, sent, failed, dropped
        #[arg(long)]
        state: Option<String>,
        /// How many
        #[arg(short, default_value_t = 20)]
        n: usize,
    },
    /// List the channels, and how each stands
    Channels,
    /// Send a test by a channel, now
    Test {
        /// The channel's name
        channel: String,
        /// The task whose check is told, for a channel of signs of life
        #[arg(long)]
        task: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &[&str]) -> std::result::Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("rejoin").chain(line.iter().copied()))
    }

    #[test]
    fn the_definition_of_the_commands_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_documentation_is_understood() {
        for line in [
            &["serve", "--config", "config.toml", "--listen", "127.0.0.1:7171", "--data-dir", "data"][..],
            &["open"],
            &["tasks", "add", "Long task", "--watch", "--json"],
            &[
                "tasks",
                "add",
                "X",
                "--run",
                "true",
                "--cron",
                "0 3 * * *",
                "--tz",
                "Europe/Berlin",
                "--jitter",
                "5m",
                "--stagger",
            ],
            &["tasks", "add", "X", "--run", "true", "--every", "30m", "--overlap", "queue", "--catchup", "last"],
            &["tasks", "add", "X", "--at", "20m", "--retries", "3", "--backoff", "30s..10m", "--idle-timeout", "5m"],
            &["tasks", "add", "X", "-p", "a=b", "-p", "c=d", "--once", "k", "--id", "x", "--dry-run", "--wait"],
            &["tasks", "list", "--json"],
            &["tasks", "next", "x", "-n", "5"],
            &["tasks", "validate"],
            &["runs", "list", "--task", "x", "--state", "failed"],
            &["runs", "logs", "r", "-f", "--tail", "5"],
            &["runs", "retry", "r"],
            &["runs", "retry", "r", "--wait", "--once", "k"],
            &["send", "Long task", "stop after this step"],
            &["attention", "--all"],
            &["runs", "acknowledge", "r"],
            &["runs", "snooze", "r", "--for", "4h"],
            &["approve", "r"],
            &["deny", "r"],
            &["watch"],
            &["watch", "x", "--server", "https://example.org"],
            &["status"],
            &["doctor", "--accept-clock"],
            &["housekeeping"],
            &["housekeeping", "run", "backup", "--json"],
            &["backup", "copy.db", "--without-outputs", "--force"],
            &["restore", "copy.db", "--data-dir", "data"],
            &["tasks", "add", "X", "--run", "true", "--keep", "runs=10,bytes=100MiB"],
            &["tasks", "add", "X", "--run", "true", "--notify", "phone,team", "--notify", "chat"],
            &["doctor", "--json"],
            &["doctor", "--send"],
            &["notify", "list", "--task", "x", "--channel", "phone", "--state", "failed", "-n", "5"],
            &["notify", "channels"],
            &["notify", "test", "phone"],
            &["completions", "bash"],
        ] {
            assert!(parse(line).is_ok(), "{line:?}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        for line in [
            &["tasks", "add", "X", "--watch", "--wait"][..],
            &["tasks", "add", "X", "--cron", "* * * * *", "--every", "1m"],
            &["tasks", "add"],
            &["tasks", "add", "X", "--overlap", "sometimes"],
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
