//! The cases of `tests/conformance/server`, played against the real server.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use bench::Not;

mod bench;
mod case;
mod line;
mod pattern;
mod stage;

/// How many cases are played at once.
const AT_ONCE: usize = 6;

/// Where the cases are.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance")
}

/// All cases, or with `CASE=text` those with the text in their names.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_does_what_every_case_for_servers_says() {
    let only = std::env::var("CASE").unwrap_or_default();
    let (mut plays, places) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    for found in case::all(&folder().join("server")).into_iter().filter(|found| found.name.contains(&only)) {
        let places = Arc::clone(&places);
        plays.spawn(async move {
            let _place = places.acquire_owned().await.unwrap();
            let name = found.name.clone();
            // In a task of its own: a part of the harness that panics ends one case and not all.
            let played = tokio::spawn(stage::play(found.case)).await;
            let played = played.unwrap_or_else(|error| Err(Not::Done(panicked(error))));
            (name, played)
        });
    }
    let mut failed = Vec::new();
    let mut count = 0;
    while let Some(played) = plays.join_next().await {
        let (name, played) = played.unwrap();
        match played {
            Ok(()) => count += 1,
            Err(Not::Done(why)) => {
                println!("not ok {name}: {why}");
                failed.push(format!("{name}: {why}"));
            }
            Err(Not::Possible(why)) => println!("skipped {name}: {why}"),
        }
    }
    failed.sort();
    assert!(failed.is_empty(), "{} cases fail, {count} hold:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 0, "no case is called {only}");
}

fn panicked(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(words) => words
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| words.downcast_ref::<&str>().map(|words| (*words).to_owned()))
            .unwrap_or_else(|| "panicked".to_owned()),
        Err(error) => error.to_string(),
    }
}

/// `covered.json` lists every row, code, frame and trap; a case says which of them it is for.
#[test]
fn every_row_code_frame_and_trap_has_a_case() {
    let read = |path: PathBuf| serde_json::from_str::<Value>(&std::fs::read_to_string(path).unwrap()).unwrap();
    let wanted = read(folder().join("covered.json"));
    for side in ["server", "client"] {
        let wanted: BTreeSet<String> = wanted[side]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(group, names)| {
                names.as_array().unwrap().iter().map(move |name| format!("{group}:{}", name.as_str().unwrap()))
            })
            .collect();
        let mut covered = BTreeSet::new();
        for path in case_files(side) {
            for name in read(path)["covers"].as_array().unwrap() {
                covered.insert(name.as_str().unwrap().to_owned());
            }
        }
        let missing: Vec<_> = wanted.difference(&covered).collect();
        assert!(missing.is_empty(), "no case for a {side} is for {missing:?}");
        let unknown: Vec<_> = covered.difference(&wanted).collect();
        assert!(unknown.is_empty(), "covered.json does not know {unknown:?}");
    }
}

fn case_files(side: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder().join(side)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// A fault that cannot be planted any more proves nothing.
#[test]
fn every_planned_fault_can_still_be_planted() {
    let text = std::fs::read_to_string(folder().join("faults.json")).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    let faults = list["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 15);
    assert!(faults.iter().filter(|fault| fault["side"] == "client").count() >= 6);
    let mut finders = BTreeSet::new();
    for fault in faults {
        let edits = fault["edits"].as_array().unwrap();
        assert!(!edits.is_empty(), "{}", fault["id"]);
        for edit in edits {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(edit["file"].as_str().unwrap());
            let text = std::fs::read_to_string(&path).unwrap();
            let count = text.matches(edit["find"].as_str().unwrap()).count();
            assert_eq!(count, 1, "{} stands {count} times in {}", edit["find"], path.display());
        }
        let finder = fault["found_by"].as_str().unwrap();
        assert!(folder().join(finder).with_extension("json").exists(), "{finder}");
        assert!(finders.insert(finder.to_owned()), "{finder} finds two faults");
    }
}
