//! Copies of the store that the server makes by itself: so many are kept, older ones are removed.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::config;
use crate::store::Store;
use crate::store::backup::{self, BackupError, Copied, Label};

/// What the name of a copy begins and ends with; between them stands when it was made, in UTC.
const NAME: (&str, &str) = ("rejoin-", ".db");

/// The label of a copy that is made now.
pub fn label(now: Timestamp, outputs: bool) -> Label {
    Label { at: crate::clock::rfc3339(now), program: env!("CARGO_PKG_VERSION").to_owned(), outputs }
}

/// The name of a copy: sorted by name they are sorted by time.
pub fn name(now: Timestamp) -> String {
    let at = now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ");
    format!("{}{at}{}", NAME.0, NAME.1)
}

/// Whether a name is one that [`name`] gives: nothing else in the folder is ours to remove.
fn is_ours(name: &str) -> bool {
    let at = name.strip_prefix(NAME.0).and_then(|rest| rest.strip_suffix(NAME.1));
    at.is_some_and(|at| {
        at.len() == 16
            && at.bytes().enumerate().all(|(index, byte)| match index {
                8 => byte == b'T',
                15 => byte == b'Z',
                _ => byte.is_ascii_digit(),
            })
    })
}

/// Copies the store to a new file of one moment, beside a steady writer. Blocks.
///
/// # Errors
/// [`BackupError`].
pub fn copy(
    store: &Store,
    outputs: Option<&Path>,
    to: &Path,
    label: &Label,
    go_on: &dyn Fn() -> bool,
) -> Result<Copied, BackupError> {
    store.read_for_long(|source| backup::copy(source, outputs, to, label, go_on))
}

/// Makes the copy that is due: beside its place, then renamed into it, so that what has the name of a copy is one.
/// Then removes those that are more than are kept. Blocks; says what was done.
///
/// # Errors
/// That the folder cannot be written, has no room, or that it was given up.
pub fn make(
    store: &Store,
    output_dir: &Path,
    plan: &config::Backup,
    now: Timestamp,
    go_on: &dyn Fn() -> bool,
) -> Result<(PathBuf, Copied, usize)> {
    let folder = &plan.folder;
    let failed = || format!("no backup in {}", folder.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(failed)?;
    let place = folder.join(name(now));
    let part = folder.join(format!(".{}.part", name(now)));
    // What a crash left.
    for entry in std::fs::read_dir(folder).with_context(failed)?.flatten() {
        let old = entry.file_name().to_string_lossy().into_owned();
        let inner = old.strip_prefix('.').and_then(|old| old.split_once(".part").map(|(name, _)| name.to_owned()));
        if inner.is_some_and(|name| is_ours(&name)) {
            std::fs::remove_file(entry.path()).with_context(failed)?;
        }
    }
    let copied = copy(store, plan.outputs.then_some(output_dir), &part, &label(now, plan.outputs), go_on)
        .with_context(failed)?;
    crate::failpoint::hit("backup-copied");
    std::fs::rename(&part, &place).with_context(failed)?;
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).with_context(failed)?;
    let removed = prune(folder, plan.keep as usize, &name(now)).with_context(failed)?;
    Ok((place, copied, removed))
}

/// Removes what is more than is kept beside the one that was just made, the oldest first. What has a later name than that
/// was made by a clock that was ahead: when is not known, and it counts as the oldest.
fn prune(folder: &Path, keep: usize, made: &str) -> std::io::Result<usize> {
    let mut ours: Vec<String> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_ours(name))
        .collect();
    ours.sort_by(|a, b| (a.as_str() <= made, a).cmp(&(b.as_str() <= made, b)));
    let surplus = ours.len().saturating_sub(keep.max(1));
    for name in &ours[..surplus] {
        std::fs::remove_file(folder.join(name))?;
    }
    Ok(surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_copies_are_removed_and_the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let mut expected = vec!["mine.db".to_owned(), "rejoin-2026.db".to_owned()];
        for second in 0..5 {
            std::fs::write(dir.path().join(name(at(second))), "").unwrap();
            if second >= 3 {
                expected.push(name(at(second)));
            }
        }
        for other in ["mine.db", "rejoin-2026.db"] {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        assert_eq!(prune(dir.path(), 2, &name(at(4))).unwrap(), 3);
        let left =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut left: Vec<_> = left.collect();
        left.sort();
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn after_a_clock_that_was_ahead_the_copy_just_made_stays_and_those_of_then_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let at = |second: i64| name(Timestamp::from_second(1_800_000_000 + second).unwrap());
        for second in [1, 2, 3, 1_000_000, 2_000_000] {
            std::fs::write(dir.path().join(at(second)), "").unwrap();
        }
        let left = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(prune(dir.path(), 4, &at(3)).unwrap(), 1);
        assert_eq!(left(), [at(1), at(2), at(3), at(2_000_000)], "of those of then the older one first");
        assert_eq!(prune(dir.path(), 2, &at(3)).unwrap(), 2);
        assert_eq!(left(), [at(2), at(3)]);
        assert_eq!(prune(dir.path(), 1, &at(2)).unwrap(), 1);
        assert_eq!(left(), [at(2)], "whatever the others are called");
    }
}
