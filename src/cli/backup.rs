//! `rejoin backup` and `rejoin restore`: a copy of the store in one file, and the way back.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::json;

use super::Session;
use super::failure::{Failure, Result};
use super::place::{Place, Where};
use super::screen::Screen;
use crate::housekeeping::{backup as copies, size_words};
use crate::store;
use crate::store::backup::BackupError;
use crate::store::restore::{self, Unfit};

/// What `backup` takes.
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// The file to make
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Leave out the stored outputs of tool calls
    #[arg(long)]
    without_outputs: bool,
    /// Take the place of a file that is there
    #[arg(long)]
    force: bool,
}

/// Removes the part of a copy that did not become one.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Makes a copy of the store: of a server that runs, wherever it is; or of a data folder here that no server has. What
/// has the name in the end is whole, or there is nothing.
pub async fn backup(session: &Session, asked: &Backup) -> Result<()> {
    let file = &asked.file;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    refuse_taken(session, asked, folder)?;
    let part = beside(file)?;
    // Left by one that was killed.
    let _ = std::fs::remove_file(&part.0);
    let outputs = !asked.without_outputs;
    match download(session, &part.0, outputs).await {
        Ok(()) => {}
        Err(Failure::NoServer(words)) => idle(session, &part.0, outputs, words)?,
        Err(failure) => return Err(failure),
    }
    // What came over a line is looked through as what is restored will be.
    restore::examine(&part.0).map_err(|error| Failure::Server(format!("what came is no whole backup: {error}")))?;
    crate::failpoint::hit("backup-copied");
    let bytes = std::fs::metadata(&part.0)?.len();
    std::fs::rename(&part.0, file).with_context(|| format!("cannot put it at {}", file.display()))?;
    File::open(folder).and_then(|folder| folder.sync_all()).context("cannot sync the folder")?;
    if session.screen.json {
        return session.screen.document(&json!({ "file": file.to_string_lossy(), "bytes": bytes, "outputs": outputs }));
    }
    session.screen.say(&format!("{}: {}", file.display(), size_words(bytes)));
    Ok(())
}

/// Looks at what has the name that a copy is to have.
fn refuse_taken(session: &Session, asked: &Backup, folder: &Path) -> Result<()> {
    let (file, name) = (&asked.file, asked.file.display());
    // The folder of a server that is elsewhere is not known, but that of the file may be one of a server here.
    let own = if let Place::Data(own) = session.client.place() { own } else { folder };
    if let Some(data) = [own, folder].into_iter().find(|data| store::is_part_of(data, file)) {
        let data = data.display();
        let words = format!("{name} is a file of the data folder {data}, which its server needs: give another name.");
        return Err(Failure::Usage(words));
    }
    if let Ok(meta) = std::fs::metadata(file)
        && !meta.is_file()
    {
        let what = if meta.is_dir() { "a folder" } else { "a device, a pipe or a socket" };
        return Err(Failure::Usage(format!("{name} is {what}: name a file to make.")));
    }
    // Not followed: a link to what is not there now is there all the same.
    if std::fs::symlink_metadata(file).is_ok() && !asked.force {
        let words = format!("{name} is there already: give another name, or --force to take its place.");
        return Err(Failure::Conflict(words));
    }
    Ok(())
}

fn beside(file: &Path) -> Result<Part> {
    let name = file.file_name().ok_or_else(|| Failure::Usage(format!("{} names no file", file.display())))?;
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(".part");
    Ok(Part(file.with_file_name(part)))
}

async fn download(session: &Session, part: &Path, outputs: bool) -> Result<()> {
    let query = [("outputs", if outputs { "true" } else { "false" })];
    let mut answer = session.client.download(&["backup"], &query).await?;
    let length = answer.content_length();
    let failed = || format!("cannot write {}", part.display());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part).with_context(failed)?;
    let mut written = 0;
    loop {
        let piece = answer.chunk().await.map_err(|error| Failure::Broken(format!("the backup broke off: {error}")))?;
        let Some(piece) = piece else { break };
        file.write_all(&piece).with_context(failed)?;
        written += piece.len() as u64;
    }
    if length.is_some_and(|length| length != written) {
        return Err(Failure::Broken("the backup broke off before its end".to_owned()));
    }
    file.sync_all().with_context(failed)?;
    Ok(())
}

/// Nobody answers: a data folder here is copied without a server.
fn idle(session: &Session, part: &Path, outputs: bool, words: String) -> Result<()> {
    let Place::Data(folder) = session.client.place() else { return Err(Failure::NoServer(words)) };
    if !folder.join("rejoin.db").exists() {
        return Err(Failure::NoServer(words));
    }
    let label = copies::label(Timestamp::now(), outputs);
    store::copy_of_idle(folder, part, outputs, &label).map_err(|error| match error.downcast_ref::<BackupError>() {
        Some(_) => Failure::Other(error),
        None => Failure::Conflict(format!("{error:#}")),
    })?;
    Ok(())
}

/// Puts a backup in the place of what the data folder holds.
pub fn restore(screen: &Screen, place: &Where, file: &Path) -> Result<()> {
    let Place::Data(folder) = place.find()? else {
        let words =
            "restore works on a data folder of this machine: name it by --data-dir or --config, without --server";
        return Err(Failure::Usage(words.to_owned()));
    };
    refuse_foreign(&folder)?;
    let replaced = format!("replaced-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"));
    let restored = restore::restore(file, &folder, &replaced).map_err(|error| match error.downcast_ref::<Unfit>() {
        Some(Unfit::Unreadable { .. }) => Failure::NotFound(error.to_string()),
        Some(_) => Failure::Usage(error.to_string()),
        None if error.downcast_ref::<store::InUse>().is_some() => Failure::Conflict(error.to_string()),
        None => Failure::Other(error),
    })?;
    if screen.json {
        return screen.document(&json!({
            "data_dir": folder.to_string_lossy(),
            "tasks": restored.tasks,
            "made_at": restored.label.as_ref().map(|label| &label.at),
            "outputs": restored.label.as_ref().map(|label| label.outputs),
            "replaced": restored.replaced.as_deref().map(Path::to_string_lossy),
        }));
    }
    let of = restored.label.map_or_else(String::new, |label| format!(" of {}", label.at));
    screen.say(&format!("Restored {} tasks{of} into {}.", restored.tasks, folder.display()));
    if let Some(replaced) = restored.replaced {
        let replaced = replaced.display();
        screen.say(&format!("What was there is in {replaced}: remove it when you no longer need it."));
    }
    let named = place.flags();
    screen.say(&format!(
        "Browsers sign in anew, viewers start from a snapshot. Start the server with: rejoin serve{named}"
    ));
    Ok(())
}

/// What is made in a folder of somebody else's would be closed to its owner.
fn refuse_foreign(folder: &Path) -> Result<()> {
    let Ok(meta) = std::fs::metadata(folder) else { return Ok(()) };
    if meta.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    Err(Failure::NotAllowed(format!(
        "{} belongs to the user with the id {}: restore as that user (sudo -u '#{}' rejoin restore ...).",
        folder.display(),
        meta.uid(),
        meta.uid()
    )))
}
