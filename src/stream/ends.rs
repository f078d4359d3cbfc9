//! What follows the end of a run, decided by whoever carries runs out, in the very transaction that saves the end:
//! whatever ends the server, either both are there or neither. Knows neither tasks nor policies.

use std::fmt;
use std::sync::OnceLock;

use rusqlite::Connection;

use super::offer::Offer;
use crate::record::Run;
use crate::store::{StoreError, TaskNo};

/// What follows the end of a run.
#[derive(Default)]
pub struct Following {
    /// Events of the same task, right behind the one that ended the run.
    pub offers: Vec<Offer>,
    /// What brings memory up to it, once it is saved and shown. Called by the writer: it must not wait.
    pub after: Option<After>,
}

/// What is to be done once something is saved.
pub type After = Box<dyn FnOnce() + Send>;

/// Decides what follows the end of a run. Where the commit fails it is asked again, so it may change nothing but what
/// it writes over the connection.
pub type Decide = Box<dyn Fn(&Connection, TaskNo, &Run) -> Result<Following, StoreError> + Send + Sync>;

/// Who is asked what follows: nobody, until it is said once.
#[derive(Default)]
pub(super) struct Ends {
    decide: OnceLock<Decide>,
}

impl Ends {
    /// Says who is asked. The first who says so stays.
    pub(super) fn set(&self, decide: Decide) {
        let _ = self.decide.set(decide);
    }

    pub(super) fn follow(&self, connection: &Connection, task: TaskNo, run: &Run) -> Result<Following, StoreError> {
        self.decide.get().map_or_else(|| Ok(Following::default()), |decide| decide(connection, task, run))
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").field("is_set", &self.decide.get().is_some()).finish()
    }
}
