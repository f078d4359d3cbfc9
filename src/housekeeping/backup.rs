//! Copies of the store that the server makes by itself: so many are kept, older ones are removed.

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::config;
use crate::store::Store;
use crate::store::backup::{self, BackupError, Copied, Label};

/// What the name of a copy begins and ends with; between them stands when it was made, in UTC, and for one that the server
/// makes by itself, the mark of its data folder.
const NAME: (&str, &str) = ("rejoin-", ".db");
/// The file of a data folder that holds its mark. A restore leaves it where it is.
const MARK: &str = "backup-mark";

/// The label of a copy that is made now.
pub fn label(now: Timestamp, outputs: bool) -> Label {
    Label { at: crate::clock::rfc3339(now), program: env!("CARGO_PKG_VERSION").to_owned(), outputs }
}

/// The name of a copy: sorted by name they are sorted by time.
pub fn name(now: Timestamp) -> String {
    format!("{}{}{}", NAME.0, stamp(now), NAME.1)
}

fn stamp(now: Timestamp) -> String {
    now.to_zoned(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// Names the copies of one data folder: several servers can have theirs in one place, and each removes only its own.
struct Mark(String);

impl Mark {
    /// The mark of a data folder, made when it is first asked for.
    fn of(data: &Path) -> std::io::Result<Self> {
        let file = data.join(MARK);
        match std::fs::read(&file).map(String::from_utf8) {
            Ok(Ok(text)) if text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) => {
                return Ok(Self(text));
            }
            // A crash left a part of it: nothing was named by it yet.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mark = Self(format!("{:08x}", rand::random::<u32>()));
        let mut file = std::fs::File::create(file)?;
        file.write_all(mark.0.as_bytes())?;
        file.sync_all()?;
        Ok(mark)
    }

    fn name(&self, now: Timestamp) -> String {
        format!("{}{}-{}{}", NAME.0, stamp(now), self.0, NAME.1)
    }

    /// Whether a name is one that [`Mark::name`] gives: nothing else in the folder is ours to remove.
    fn is_of(&self, name: &str) -> bool {
        let rest = name.strip_prefix(NAME.0).and_then(|rest| rest.strip_suffix(NAME.1));
        let at = rest.and_then(|rest| rest.strip_suffix(self.0.as_str())?.strip_suffix('-'));
        at.is_some_and(|at| {
            at.len() == 16
                && at.bytes().enumerate().all(|(index, byte)| match index {
                    8 => byte == b'T',
                    15 => byte == b'Z',
                    _ => byte.is_ascii_digit(),
                })
        })
    }
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
    let data = store.path().parent().unwrap_or(Path::new("."));
    let mark = Mark::of(data).with_context(|| format!("cannot use {}", data.join(MARK).display()))?;
    let name = mark.name(now);
    let (place, part) = (folder.join(&name), folder.join(format!(".{name}.part")));
    // What a crash left.
    for entry in std::fs::read_dir(folder).with_context(failed)?.flatten() {
        let old = entry.file_name().to_string_lossy().into_owned();
        let inner = old.strip_prefix('.').and_then(|old| old.split_once(".part").map(|(name, _)| name.to_owned()));
        if inner.is_some_and(|name| mark.is_of(&name)) {
            std::fs::remove_file(entry.path()).with_context(failed)?;
        }
    }
    let copied = copy(store, plan.outputs.then_some(output_dir), &part, &label(now, plan.outputs), go_on)
        .with_context(failed)?;
    crate::failpoint::hit("backup-copied");
    std::fs::rename(&part, &place).with_context(failed)?;
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).with_context(failed)?;
    let removed = prune(folder, plan.keep as usize, &mark, &name).with_context(failed)?;
    Ok((place, copied, removed))
}

/// Removes what is more than is kept beside the one that was just made, the oldest first. What has a later name than that
/// was made by a clock that was ahead: when is not known, and it counts as the oldest.
fn prune(folder: &Path, keep: usize, mark: &Mark, made: &str) -> std::io::Result<usize> {
    let mut ours: Vec<String> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| mark.is_of(name))
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
        let (mark, other) = (Mark("0a1b2c3d".to_owned()), Mark("f0a1b2c3".to_owned()));
        let mut expected =
            vec!["mine.db".to_owned(), "rejoin-2026.db".to_owned(), name(at(0)), other.name(at(0)), other.name(at(1))];
        for second in 0..5 {
            std::fs::write(dir.path().join(mark.name(at(second))), "").unwrap();
            if second >= 3 {
                expected.push(mark.name(at(second)));
            }
        }
        for other in expected.iter().take(5) {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        assert_eq!(prune(dir.path(), 2, &mark, &mark.name(at(4))).unwrap(), 3);
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
        let mark = Mark("0a1b2c3d".to_owned());
        let at = |second: i64| mark.name(Timestamp::from_second(1_800_000_000 + second).unwrap());
        for second in [1, 2, 3, 1_000_000, 2_000_000] {
            std::fs::write(dir.path().join(at(second)), "").unwrap();
        }
        let left = || {
            let entries = std::fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(prune(dir.path(), 4, &mark, &at(3)).unwrap(), 1);
        assert_eq!(left(), [at(1), at(2), at(3), at(2_000_000)], "of those of then the older one first");
        assert_eq!(prune(dir.path(), 2, &mark, &at(3)).unwrap(), 2);
        assert_eq!(left(), [at(2), at(3)]);
        assert_eq!(prune(dir.path(), 1, &mark, &at(2)).unwrap(), 1);
        assert_eq!(left(), [at(2)], "whatever the others are called");
    }

    #[test]
    fn a_data_folder_keeps_its_mark_and_makes_another_of_a_part_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let mark = Mark::of(dir.path()).unwrap();
        assert!(mark.is_of(&mark.name(Timestamp::UNIX_EPOCH)), "{}", mark.0);
        assert_eq!(Mark::of(dir.path()).unwrap().0, mark.0);
        std::fs::write(dir.path().join(MARK), &mark.0[..7]).unwrap();
        assert_eq!(Mark::of(dir.path()).unwrap().0.len(), 8);
    }
}
