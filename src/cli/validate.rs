//! `rejoin tasks validate`: checks task files without a server.

use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use serde_json::json;

use super::escape;
use super::failure::{Failure, Result};
use super::place::Where;
use super::screen::Screen;
use crate::config::Config;
use crate::schedule::timing::Timing;
use crate::schedule::words::words;
use crate::task::definition::{Schedule, Terms};
use crate::task::folder;
use crate::task::parse::Problem;

/// Checks files, or all of the folder of tasks, and says of each everything that is wrong with it.
pub fn validate(screen: &Screen, place: &Where, mut files: Vec<PathBuf>) -> Result<()> {
    let config = Config::load(place.config.as_deref()).map_err(|error| Failure::Usage(error.to_string()))?;
    if files.is_empty() {
        files = task_files(&config.tasks_dir)?;
    }
    let terms = config.terms();
    let mut bad = 0;
    let mut results = Vec::new();
    for file in &files {
        let (schedule, problems) = check(file, &terms);
        bad += usize::from(!problems.is_empty());
        let name = file.display().to_string();
        if screen.json {
            let words = schedule.as_deref();
            results
                .push(json!({ "file": name, "ok": problems.is_empty(), "errors": problems, "schedule_words": words }));
        } else if problems.is_empty() {
            let runs = schedule.map(|words| format!(", runs {words}")).unwrap_or_default();
            screen.line(&escape::line(&format!("{name}: good{runs}")))?;
        } else {
            problems.iter().try_for_each(|problem| screen.line(&escape::line(&problem.to_string())))?;
        }
    }
    if screen.json {
        screen.document(&json!({ "items": results }))?;
    }
    match bad {
        0 => Ok(()),
        1 => Err(Failure::Usage(format!("1 of {} task files cannot be used", files.len()))),
        bad => Err(Failure::Usage(format!("{bad} of {} task files cannot be used", files.len()))),
    }
}

/// Reads a file as the server would; gives its schedule in words, and what is wrong with it.
fn check(file: &Path, terms: &Terms) -> (Option<String>, Vec<Problem>) {
    match folder::read(file, terms) {
        (_, Ok(task)) => (task.schedule.as_ref().and_then(in_words), Vec::new()),
        (_, Err(problems)) => (None, problems.all().to_vec()),
    }
}

fn in_words(schedule: &Schedule) -> Option<String> {
    Timing::new(schedule, &TimeZone::system()).ok().map(|timing| words(schedule, &timing))
}

fn task_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error| Failure::Usage(format!("cannot read {}: {error}", folder.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
