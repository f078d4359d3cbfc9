//! What carries out a run. An agent gets the task, its parameters and a handle on which it speaks; it never
//! sees connections, storage or HTTP.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;

use self::delta::Deltas;
use crate::event::{Attention, Body, RunId, TaskId};
use crate::run::process::Processes;
use crate::run::secrets::Redactor;
use crate::task::definition::{AgentKind, Definition};

pub mod delta;
#[cfg(feature = "failpoints")]
pub mod echo_model;
pub mod steps;

/// How many events an agent may be ahead of the log: small, so that a full disk is felt at once.
pub const EMITTER_CAPACITY: usize = 64;

/// The handle on which an agent speaks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Emitter {
    bodies: mpsc::Sender<Body>,
    deltas: Deltas,
}

/// The run is over or its log was replaced: there is nobody left to speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run is over")]
pub struct Over;

impl Emitter {
    /// An emitter and the end where its events come out, in order.
    pub fn channel() -> (Self, mpsc::Receiver<Body>) {
        let (bodies, receiver) = mpsc::channel(EMITTER_CAPACITY);
        (Self { bodies, deltas: Deltas::default() }, receiver)
    }

    /// Where what is said by [`Emitter::delta`] comes out.
    pub fn deltas(&self) -> Deltas {
        self.deltas.clone()
    }

    /// Says what happened. Waits while the log cannot take more; watchers never make it wait.
    ///
    /// # Errors
    /// [`Over`] once the run is over.
    pub async fn emit(&self, body: Body) -> Result<(), Over> {
        if let Body::Written { key, .. } = &body {
            self.deltas.close(key);
        }
        self.bodies.send(body).await.map_err(|_| Over)
    }

    /// Shows a piece of a text while it is being written; `key` tells the texts of the run apart. The whole comes as
    /// [`Body::Written`] with that key, and after it no more of the text is shown. Never waits: what cannot be shown in
    /// time is left out, as the event has it.
    pub fn delta(&self, key: &str, text: &str) {
        self.deltas.write(key, text);
    }
}

/// Everything an agent is given.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The task.
    pub task: TaskId,
    /// The run.
    pub run: RunId,
    /// The task as it stood when the run started.
    pub definition: Arc<Definition>,
    /// The parameters: the task's defaults with what this run was given over them.
    pub params: BTreeMap<String, serde_json::Value>,
    /// The slot, unless a person started the run.
    pub scheduled_for: Option<Timestamp>,
    /// Which attempt of its slot this is, from 1.
    pub attempt: u32,
    /// Values from `[secrets]` for the environment of commands; their text never leaves through events.
    pub secrets: BTreeMap<String, String>,
    /// Takes the values of `secrets` out of everything that is written or said.
    pub redactor: Redactor,
    /// Where the whole output of each call is kept, one file a call.
    pub output_dir: PathBuf,
    /// Where the commands run: the folder of the task file, else the data folder.
    pub work_dir: PathBuf,
    /// The port the server listens on: no `http` step reaches it on this machine.
    pub own_port: Option<u16>,
    /// Starts commands, and ends them with everything they started.
    pub processes: Processes,
}

/// How a run went, in the agent's own view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked; perhaps it found something.
    Succeeded {
        /// The exit code of the last command.
        exit: Option<i32>,
        /// What a person should look at.
        attention: Option<Attention>,
    },
    /// It did not work.
    Failed {
        /// Why, in one line: what happened, where, what to do.
        reason: String,
        /// The exit code of what failed.
        exit: Option<i32>,
        /// What a person should look at all the same.
        attention: Option<Attention>,
    },
}

/// Carries out a run with the agent of its task.
pub async fn carry_out(assignment: Assignment, emitter: Emitter) -> Outcome {
    match assignment.definition.agent {
        AgentKind::Steps => steps::run(assignment, emitter).await,
        #[cfg(feature = "failpoints")]
        AgentKind::EchoModel => echo_model::run(assignment, emitter).await,
        AgentKind::External => Outcome::Failed {
            reason: "the task is carried out elsewhere since this run was queued: run it again".to_owned(),
            exit: None,
            attention: None,
        },
    }
}
