//! The commands: who does what the command line says, and the exit code it ends with.
//!
//! Knows the server only from outside, over HTTP and its WebSocket; one file per group of verbs.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use self::client::Client;
use self::failure::{Failure, Result};
use self::place::Where;
use self::screen::Screen;
use self::verbs::{Cli, Command, NotifyCommand, RunsCommand, TasksCommand};

pub mod add;
pub mod attention;
pub mod backoff;
pub mod backup;
pub mod client;
pub mod clock;
pub mod doctor;
pub mod escape;
pub mod failure;
pub mod housekeeping;
pub mod live;
pub mod matching;
pub mod open;
pub mod place;
pub mod render;
pub mod runs;
pub mod screen;
pub mod serve;
pub mod status;
pub mod table;
pub mod tasks;
pub mod telling;
pub mod times;
pub mod validate;
mod verbs;
pub mod watch;
pub mod wire;

/// What every command that speaks with the server is given.
#[derive(Debug)]
pub struct Session {
    /// The server.
    pub client: Client,
    /// Where output goes.
    pub screen: Screen,
    /// What the command line said about the server, for advice on what to type next.
    pub server: Where,
}

impl Session {
    /// A run, as the server gives it.
    ///
    /// # Errors
    /// An id that is none, and whatever the server answers.
    pub async fn run(&self, id: &str) -> Result<serde_json::Value> {
        self.client.get(&["runs", &runs::run_id(id)?], &[]).await
    }
}

/// Reads the command line, does what it says, and says what went wrong.
pub fn main() -> ExitCode {
    // Without a provider of its own, the first use of TLS would end the process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let screen = Screen::new(cli.json);
    match act(cli, screen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                screen.say(&format!("rejoin: {failure}"));
            }
            ExitCode::from(&failure)
        }
    }
}

fn act(cli: Cli, screen: Screen) -> Result<()> {
    let Cli { command, server, .. } = cli;
    match command {
        Command::Serve { listen } => return serve::serve(&server, listen),
        Command::Supervise => return Err(Failure::Usage("only the server starts this".into())),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "rejoin", &mut script);
            return screen.line(String::from_utf8_lossy(&script).trim_end());
        }
        Command::Tasks { command: TasksCommand::Validate { files } } => {
            return validate::validate(&screen, &server, files);
        }
        Command::Restore { file } => return backup::restore(&screen, &server, &file),
        _ => {}
    }
    // One worker beside this thread: Ctrl-C is heard while output waits for a slow reader.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    let done = runtime.block_on(async {
        let command = match command {
            Command::Doctor(doctor) if !doctor.accept_clock => return doctor.look(screen, server).await,
            other => other,
        };
        let session = Session { client: Client::new(server.find()?)?, screen, server };
        speak(session, command).await
    });
    runtime.shutdown_background();
    done
}

async fn speak(session: Session, command: Command) -> Result<()> {
    match command {
        Command::Open { print } => open::open(&session, print).await,
        Command::Status => status::status(&session).await,
        Command::Doctor(_) => clock::accept(&session).await,
        Command::Housekeeping { ask } => housekeeping::housekeeping(&session, ask).await,
        Command::Backup(asked) => backup::backup(&session, &asked).await,
        Command::Notify { command } => match command {
            NotifyCommand::List { task, channel, state, n } => telling::list(&session, task, channel, state, n).await,
            NotifyCommand::Channels => telling::channels(&session).await,
            NotifyCommand::Test { channel, task } => telling::test(&session, &channel, task).await,
        },
        Command::Attention { all, n } => attention::list(&session, all, n).await,
        Command::Send { task, text } => runs::send(&session, &task, &text).await,
        Command::Approve { run } => runs::answer(&session, &run, "approve").await,
        Command::Deny { run } => runs::answer(&session, &run, "deny").await,
        Command::Watch { target } => watch::watch(session, target).await,
        Command::Tasks { command } => match command {
            TasksCommand::Add(add) => add::add(session, *add).await,
            TasksCommand::List => tasks::list(&session).await,
            TasksCommand::Show { task } => tasks::show(&session, &task).await,
            TasksCommand::Remove { task, stop } => tasks::remove(&session, &task, stop).await,
            TasksCommand::Pause { task } => tasks::switch(&session, &task, "pause").await,
            TasksCommand::Resume { task } => tasks::switch(&session, &task, "resume").await,
            TasksCommand::Run { task, param, until, once } => {
                add::run(session, &task, &param, until, once.as_deref()).await
            }
            TasksCommand::Next { task, n } => tasks::next(&session, &task, n).await,
            TasksCommand::Slots { task, n } => tasks::slots(&session, &task, n).await,
            TasksCommand::Export { task } => tasks::export(&session, &task).await,
            TasksCommand::Validate { .. } => Ok(()),
        },
        Command::Runs { command } => match command {
            RunsCommand::List { task, state, n } => runs::list(&session, task, state, n).await,
            RunsCommand::Show { run } => runs::show(&session, &run).await,
            RunsCommand::Stop { run } => runs::stop(&session, &run).await,
            RunsCommand::Retry { run, until, once } => runs::retry(session, &run, until, once.as_deref()).await,
            RunsCommand::Acknowledge { run } => attention::acknowledge(&session, &run).await,
            RunsCommand::Snooze { run, span } => attention::snooze(&session, &run, &span).await,
            RunsCommand::Logs { run, follow, tail } => runs::logs(session, &run, follow, tail).await,
        },
        Command::Serve { .. } | Command::Completions { .. } | Command::Supervise | Command::Restore { .. } => Ok(()),
    }
}
