//! What task files say, put in force.

use std::collections::BTreeMap;

use tracing::{error, info, warn};

use super::definition::Definition;
use super::folder::Change;
use super::parse::Problem;
use super::registry::{Registry, Source, Task, TaskError};
use crate::event::TaskId;
use crate::store::StoreError;

/// Puts in force what the folder of task files says.
#[derive(Debug)]
pub struct Files {
    registry: Registry,
    /// What the store could not take: to be put in force when it can, before anything else of the folder.
    refused: Vec<Change>,
    /// What files say whose names are those of tasks that are no files: to be put in force when these are removed.
    hidden: BTreeMap<TaskId, Change>,
}

impl Files {
    /// Nothing was said yet.
    pub fn new(registry: Registry) -> Self {
        Self { registry, refused: Vec::new(), hidden: BTreeMap::new() }
    }

    /// Whether something waits until the store can be written.
    pub fn wait_for_the_store(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Puts in force what the store could not take before.
    pub async fn apply_refused(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.apply(refused).await;
    }

    /// Puts in force what files say. What the store cannot take, and what is of a task that is no file, waits.
    pub async fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            if let Some(id) = change.id() {
                self.hidden.remove(id);
            }
            self.registry.forget_astray(change.path());
            match put_in_force(&self.registry, &change).await {
                Ok(()) => {}
                Err(TaskError::Exists(id)) => self.hide(id, change),
                Err(error) => self.refuse(change, &error),
            }
        }
    }

    /// Waits for a removal that leaves the name of a file free; gives what such files say. Cancelled, it has taken nothing.
    pub async fn shown(&mut self) -> Vec<Change> {
        loop {
            self.registry.removal().await;
            let registry = &self.registry;
            let shown: Vec<_> =
                self.hidden.extract_if(.., |id, _| registry.get(id).is_none()).map(|(_, it)| it).collect();
            if !shown.is_empty() {
                return shown;
            }
        }
    }

    fn hide(&mut self, id: TaskId, change: Change) {
        let path = change.path().to_owned();
        let message = format!(
            "not used: there is a task of this name that is kept in the store; `rejoin tasks remove {id}` lets the file take \
             its place, another name makes it another task"
        );
        let problem = Problem { file: Some(path.display().to_string()), ..Problem::of("", message) };
        warn!(task = %id, "{problem}");
        self.registry.set_astray(path, problem);
        self.hidden.insert(id, change);
    }

    fn refuse(&mut self, change: Change, error: &TaskError) {
        let waits = matches!(error, TaskError::Store(StoreError::NotWritable(_)));
        match &change {
            Change::Good { id, .. } => {
                error!(task = %id, %error, "the task file could not be put in force");
                let key = if waits { "" } else { "schedule" };
                self.registry.set_problem(id, Problem::of(key, error.to_string()));
            }
            Change::Bad { .. } => {}
            Change::Gone { path, .. } => {
                error!(file = %path.display(), %error, "the task of a file that is gone could not be switched off");
            }
        }
        if waits {
            self.refused.push(change);
        }
    }
}

/// Puts one change in force. What is bad is only noted in memory: that does not fail for the store.
///
/// # Errors
/// [`TaskError::Exists`] where a task that is no file has the name; those of a change of a task.
async fn put_in_force(registry: &Registry, change: &Change) -> Result<(), TaskError> {
    match change {
        Change::Good { id, definition, path } => {
            let (definition, path) = (Definition::clone(definition), path.clone());
            let task = match registry.get(id) {
                Some(task) if task.source == Source::Store => return Err(TaskError::Exists(id.clone())),
                Some(task) if task.enabled && *task.definition == definition => registry.adopt(id, path)?,
                Some(_) => {
                    let change = |_: &Task| Ok::<_, TaskError>(definition);
                    registry.redefine(id, change, Some(path), |_| Ok(())).await?
                }
                None => registry.add(Some(id.clone()), definition, Source::File, Some(path), |_, _| Ok(())).await?,
            };
            info!(task = %task.id, "task file in force");
        }
        Change::Bad { id, path, problems } => {
            error!(file = %path.display(), "{problems}");
            match id {
                // A task of this name that is no file is not concerned.
                Some(id) if registry.get(id).is_some_and(|task| task.source == Source::Store) => {
                    return Err(TaskError::Exists(id.clone()));
                }
                Some(id) => registry.set_problem(id, problems.first().clone()),
                None => registry.set_astray(path.clone(), problems.first().clone()),
            }
        }
        Change::Gone { id: Some(id), .. } => {
            registry.forget_broken(id);
            if registry.get(id).is_some_and(|task| task.source == Source::File) {
                warn!(task = %id, "the task file is gone: the task is off and keeps its history");
                registry.set_problem(id, Problem::file_is_gone());
                registry.set_enabled(id, false).await?;
            }
        }
        Change::Gone { id: None, path } => {
            info!(file = %path.display(), "what was wrong with it is over");
        }
    }
    Ok(())
}
