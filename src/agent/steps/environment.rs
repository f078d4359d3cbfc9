//! What a command finds in its environment: the server's own, the run's parameters, what earlier steps gave, and
//! the secrets. Parameters and outputs come only under names of ours, so none can become `PATH` or `LD_PRELOAD`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use super::StepResult;
use super::quote::plain;
use crate::agent::Assignment;

/// The longest value that goes into a variable, in bytes; the kernel takes 128 KiB with the name.
const VALUE_BYTES: usize = 96 * 1024;

/// The most that all values together may take, in bytes: the kernel takes 2 MiB for everything on common machines.
const ALL_BYTES: usize = 768 * 1024;

/// The environment of a command.
///
/// # Errors
/// If a long parameter cannot be written to a file, says which.
pub(super) async fn of(
    assignment: &Assignment,
    steps: &BTreeMap<String, StepResult>,
) -> Result<BTreeMap<OsString, OsString>, String> {
    let ours = |name: &OsString| name.as_encoded_bytes().starts_with(b"REJOIN_");
    let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().filter(|(name, _)| !ours(name)).collect();
    let mut room = ALL_BYTES;
    let mut fits = |value: &str| {
        let fits = value.len() <= VALUE_BYTES && value.len() <= room;
        room -= if fits { value.len() } else { 0 };
        fits
    };
    let declared = assignment.definition.params.keys();
    for (name, value) in declared.filter_map(|name| Some((name, assignment.params.get(name)?))) {
        let (variable, value) = (variable("REJOIN_PARAM_", name), plain(value).replace('\0', ""));
        if fits(&value) {
            env.insert(variable.into(), value.into());
        } else {
            let path = keep(assignment, name, value)
                .await
                .map_err(|error| format!("parameter {name} is long and cannot be written: {error}"))?;
            env.insert(format!("{variable}_FILE").into(), path.into());
        }
    }
    for (name, step) in steps.iter().filter(|(_, step)| !step.skipped) {
        let variable = variable("REJOIN_STEP_", name);
        let value = step.output.trim_end_matches('\n').replace('\0', "");
        match &step.file {
            Some(file) if !step.whole || !fits(&value) => {
                env.insert(format!("{variable}_FILE").into(), file.into());
            }
            _ => {
                // Not kept whole (a full disk): its beginning has to do.
                let end = value.floor_char_boundary(VALUE_BYTES);
                env.insert(variable.into(), value[..end].into());
            }
        }
    }
    let secrets = assignment.secrets.iter();
    env.extend(secrets.map(|(name, value)| (OsString::from(name), OsString::from(value))));
    Ok(env)
}

fn variable(prefix: &str, name: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    prefix.chars().chain(name.chars().map(upper)).collect()
}

async fn keep(assignment: &Assignment, name: &str, value: String) -> std::io::Result<PathBuf> {
    tokio::fs::create_dir_all(&assignment.output_dir).await?;
    let path = assignment.output_dir.join(format!("param-{}", variable("", name)));
    tokio::fs::write(&path, value).await?;
    Ok(path)
}
