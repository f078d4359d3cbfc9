//! Whether the file is the one that was here last time. A store that was copied back from a backup, or that lost
//! its end in a power cut, must not go on numbering events under the old gens (T-09).

use std::path::Path;

use anyhow::{Context, Result};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::Durability;

/// One open of the store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Open {
    /// Grows by one with each open.
    counter: u64,
    /// Random: two copies of one store part ways at their next open.
    id: u64,
}

/// What stands beside the store in `data/opens`.
#[derive(Debug, Serialize, Deserialize)]
struct Beside {
    /// The open that the store has if this one died between writing here and there.
    last: Option<Open>,
    /// The open that the store has otherwise.
    next: Open,
    /// Whether the store has `next` for certain: one that has `last` is an older copy then.
    #[serde(default)]
    noted: bool,
    /// The kernel's boot id at that open.
    boot: String,
    /// Whether the server stopped in order after it.
    clean: bool,
    /// Whether every commit after it was synced.
    #[serde(default)]
    synced: bool,
    /// Whether the logs get new gens with it. Owed until the store has `next`: a kill in between forgets nothing.
    #[serde(default)]
    renews: bool,
}

/// Notes an open in the store and beside it. True when the logs may not be what watchers have seen.
///
/// The note beside names both the open before and the new one, and is written first: a kill between the two
/// writes leaves a store that still matches. Once the store has the new one, the one before no longer does.
pub(super) fn note_open(store: &Connection, path: &Path, durability: Durability) -> Result<bool> {
    let inside: Option<Open> = store
        .query_row("SELECT value FROM meta WHERE key = 'open'", [], |row| row.get::<_, String>(0))
        .optional()?
        .and_then(|text| serde_json::from_str(&text).ok());
    let beside: Option<Beside> = match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let boot = boot_id();
    let replaced = match (&inside, &beside) {
        (None, None) => false,
        (inside, Some(beside)) => {
            let done = inside.as_ref() == Some(&beside.next);
            let known = done || (!beside.noted && *inside == beside.last);
            let lost_power = !beside.clean && beside.boot != boot && !beside.synced;
            !known || lost_power || (beside.renews && !done)
        }
        (Some(_), None) => true,
    };
    let next = Open { counter: inside.as_ref().map_or(0, |open| open.counter) + 1, id: rand::random() };
    let inside_text = serde_json::to_string(&next)?;
    let synced = durability == Durability::Full;
    let mut beside = Beside { last: inside, next, noted: false, boot, clean: false, synced, renews: replaced };
    write(path, &beside)?;
    let transaction = store.unchecked_transaction()?;
    if replaced {
        transaction.execute("UPDATE tasks SET gen = random()", [])?;
    }
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES ('open', ?1)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [inside_text],
    )?;
    transaction.commit()?;
    beside.noted = true;
    write(path, &beside)?;
    Ok(replaced)
}

pub(super) fn note_clean_stop(path: &Path) -> Result<()> {
    let mut beside: Beside = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    beside.clean = true;
    write(path, &beside)
}

/// Replaces the file in one step, so that a kill leaves the old or the new one.
fn write(path: &Path, beside: &Beside) -> Result<()> {
    let new = path.with_extension("new");
    let failed = || format!("cannot write {}", path.display());
    std::fs::write(&new, serde_json::to_vec(beside)?).with_context(failed)?;
    std::fs::rename(&new, path).with_context(failed)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Connection {
        let mut store = Connection::open_in_memory().unwrap();
        crate::store::schema::migrate(&mut store).unwrap();
        store
    }

    fn inside(store: &Connection) -> String {
        store.query_row("SELECT value FROM meta WHERE key = 'open'", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_store_that_was_only_killed_keeps_its_logs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("opens");
        let store = store();
        for _ in 0..3 {
            assert!(!note_open(&store, &path, Durability::Normal).unwrap());
        }
    }

    #[test]
    fn a_kill_between_the_two_writes_keeps_the_logs_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("opens");
        let store = store();
        note_open(&store, &path, Durability::Normal).unwrap();
        let before = inside(&store);
        note_open(&store, &path, Durability::Normal).unwrap();
        store.execute("UPDATE meta SET value = ?1 WHERE key = 'open'", [before]).unwrap();
        let mut beside: Beside = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        beside.noted = false;
        write(&path, &beside).unwrap();
        assert!(!note_open(&store, &path, Durability::Normal).unwrap());
    }

    #[test]
    fn t_09_a_copy_from_before_the_last_start_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("opens");
        let store = store();
        note_open(&store, &path, Durability::Normal).unwrap();
        let old = inside(&store);
        note_open(&store, &path, Durability::Normal).unwrap();
        store.execute("UPDATE meta SET value = ?1 WHERE key = 'open'", [old]).unwrap();
        assert!(note_open(&store, &path, Durability::Normal).unwrap(), "one start lies between them, with its events");
    }

    #[test]
    fn an_older_copy_of_the_store_is_recognised_t_09() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("opens");
        let store = store();
        note_open(&store, &path, Durability::Normal).unwrap();
        let old = inside(&store);
        for _ in 0..2 {
            note_open(&store, &path, Durability::Normal).unwrap();
        }
        store.execute("UPDATE meta SET value = ?1 WHERE key = 'open'", [old]).unwrap();
        assert!(note_open(&store, &path, Durability::Normal).unwrap());
    }

    #[test]
    fn t_09_a_kill_while_an_older_copy_is_opened_does_not_make_it_pass_for_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("opens");
        let store = store();
        store
            .execute("INSERT INTO tasks (id, gen, source, definition, anchor, planned, created) VALUES ('a', 7, 'store', '', 0, 0, 0)", [])
            .unwrap();
        let generation = || store.query_row("SELECT gen FROM tasks", [], |row| row.get::<_, i64>(0)).unwrap();
        note_open(&store, &path, Durability::Normal).unwrap();
        let old = inside(&store);
        note_open(&store, &path, Durability::Normal).unwrap();
        note_open(&store, &path, Durability::Normal).unwrap();
        let put_back = || store.execute("UPDATE meta SET value = ?1 WHERE key = 'open'", [&old]).unwrap();
        put_back();
        assert!(note_open(&store, &path, Durability::Normal).unwrap());
        // Killed after the note beside, before the one in the store.
        put_back();
        store.execute("UPDATE tasks SET gen = 7", []).unwrap();
        assert!(note_open(&store, &path, Durability::Normal).unwrap(), "still owed");
        assert_ne!(generation(), 7, "the gens go with the note, in one transaction");
        let renewed = generation();
        assert!(!note_open(&store, &path, Durability::Normal).unwrap());
        assert_eq!(generation(), renewed);
    }

    #[test]
    fn a_power_cut_replaces_the_logs_unless_every_commit_was_synced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("opens");
        let store = store();
        let other_boot = || {
            let mut beside: Beside = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            beside.boot = "another".to_owned();
            write(&path, &beside).unwrap();
        };
        note_open(&store, &path, Durability::Full).unwrap();
        other_boot();
        assert!(!note_open(&store, &path, Durability::Normal).unwrap());
        other_boot();
        assert!(
            note_open(&store, &path, Durability::Full).unwrap(),
            "it counts how it was written, not how it will be"
        );
        note_open(&store, &path, Durability::Normal).unwrap();
        note_clean_stop(&path).unwrap();
        other_boot();
        assert!(!note_open(&store, &path, Durability::Normal).unwrap());
    }
}
