//! A step that writes a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::Done;

/// Writes the whole file or nothing of it; with `append`, adds to its end.
pub(super) async fn run(path: PathBuf, content: String, append: bool) -> (Done, String) {
    let place = path.display().to_string();
    let bytes = content.len();
    let written =
        tokio::task::spawn_blocking(move || if append { add(&path, &content) } else { replace(&path, &content) });
    match written.await.map_err(io::Error::other).flatten() {
        Ok(()) => {
            let verb = if append { "added to" } else { "written to" };
            (Done { ok: true, exit: None, status: None, reason: None }, format!("{bytes} bytes {verb} {place}\n"))
        }
        Err(error) => {
            let reason = format!("could not write {place}: {error}");
            (Done::failed(reason.clone()), format!("{reason}\n"))
        }
    }
}

fn add(path: &Path, content: &str) -> io::Result<()> {
    // A pipe that nobody reads would be waited for without an end, and the server's own end with it.
    let at_once = OFlag::O_NONBLOCK.bits();
    let mut file = File::options().append(true).create(true).custom_flags(at_once).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// Through a new file beside it, so that a reader sees the old file or the new one and never a part.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("this is no name of a file"))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let beside = path.with_file_name(beside);
    let attempt = || {
        let mut file = File::options().write(true).create_new(true).open(&beside)?;
        file.write_all(content.as_bytes())?;
        if let Ok(old) = fs::metadata(path) {
            file.set_permissions(old.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    attempt().inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}
