//! The folder of task files: what its owner hears of it, and when.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use rejoin::task::definition::Policy;
use rejoin::task::folder::{Change, Folder, GRACE, load, watch};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::harness::{Home, InProcess};

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn task(title: &str) -> String {
    format!("title = \"{title}\"\n[[steps]]\nrun = \"true\"\n")
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Changes as `good id title`, `bad id message`, `gone id`.
fn told(changes: &[Change]) -> Vec<String> {
    let name = |id: &Option<rejoin::event::TaskId>| id.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    changes
        .iter()
        .map(|change| match change {
            Change::Good { id, definition, .. } => format!("good {id} {}", definition.title),
            Change::Bad { id, problems, .. } => format!("bad {} {}", name(id), problems.first().message),
            Change::Gone { id, .. } => format!("gone {}", name(id)),
        })
        .collect()
}

#[test]
fn a_folder_is_read_in_the_order_of_names_with_what_is_wrong_beside_what_is_good() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    write(&at("b.toml"), &task("B"));
    write(&at("a.toml"), "title = 5\n");
    write(&at("Bad Name.toml"), &task("C"));
    for ignored in [".hidden.toml", "b.toml~", "notes.txt", "b~.toml", "#b.toml#"] {
        write(&at(ignored), "not toml");
    }
    let changes = load(dir.path(), &Policy::default());
    let told = told(&changes);
    assert!(told[0].starts_with("bad ? \"Bad Name\" is not a task id"), "{told:?}");
    assert_eq!(told[1..], ["bad a must be text, is a number", "good b B"]);
    let Change::Bad { problems, path, .. } = &changes[1] else { panic!() };
    assert_eq!((problems.first().line, path), (Some(1), &at("a.toml")));
}

#[test]
fn a_folder_that_is_not_there_has_no_tasks() {
    assert_eq!(load(Path::new("/nowhere/tasks"), &Policy::default()), []);
}

fn unreadable(dir: &Path) -> String {
    format!("bad ? the folder cannot be read, and its tasks stay as they are: {}", fs::read_dir(dir).unwrap_err())
}

#[test]
fn a_folder_that_tasks_came_from_and_that_is_not_there_is_trouble_and_takes_none_of_them() {
    let top = dir();
    let tasks = top.path().join("tasks");
    let known = ["a", "b"].map(|id| id.parse().unwrap());
    let mut folder = Folder::new(tasks.clone(), Policy::default()).knowing(known);
    let start = Instant::now();
    assert_eq!(told(&folder.scan(start)), [unreadable(&tasks)]);
    assert_eq!((folder.scan(start + GRACE * 2), folder.next_gone()), (Vec::new(), None));
    // Its disk is there again, and what is missing on it has its grace: it may be written file by file.
    fs::create_dir(&tasks).unwrap();
    fs::set_permissions(&tasks, Permissions::from_mode(0o700)).unwrap();
    write(&tasks.join("a.toml"), &task("A"));
    let back = start + GRACE * 3;
    assert_eq!(told(&folder.scan(back)), ["good a A", "gone ?"]);
    assert_eq!(told(&folder.scan(back + GRACE)), ["gone b"]);
    // The same while it is followed: that a folder goes is no word about its files, that it is empty is one.
    fs::rename(&tasks, top.path().join("elsewhere")).unwrap();
    let away = back + GRACE * 2;
    assert_eq!(told(&folder.scan(away)), [unreadable(&tasks)]);
    assert_eq!((folder.scan(away + GRACE * 2), folder.next_gone()), (Vec::new(), None));
    fs::create_dir(&tasks).unwrap();
    assert_eq!(told(&folder.scan(away + GRACE * 3)), ["gone ?"]);
    assert_eq!(told(&folder.scan(away + GRACE * 4)), ["gone a"]);
    fs::remove_dir(&tasks).unwrap();
    assert_eq!(folder.scan(away + GRACE * 5), [], "nothing comes from it any more");
}

/// What the doctor says of tasks.
async fn doctor(server: &InProcess) -> Vec<Value> {
    let items = server.client.get("/doctor").await.1["items"].as_array().unwrap().clone();
    items.into_iter().filter(|item| item["check"] == "tasks").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_the_name_of_a_stored_task_is_told_of_and_takes_its_place_when_that_is_removed() {
    let home = Home::new("").shell_task("other", "true");
    let server = home.serve().await;
    let stored = json!({ "id": "disk", "title": "Disk", "run": false, "steps": [{ "run": "df" }] });
    assert_eq!(server.client.post("/tasks", stored).await.0, 201);
    let home = home.task("disk", &task("From a file")).task("wrong", "title = 1");
    let is_told = |items: &Value| {
        items["items"].as_array().unwrap().iter().any(|item| {
            item["text"].as_str().unwrap().contains("disk.toml: not used: there is a task of this name")
                && item["text"].as_str().unwrap().contains("rejoin tasks remove disk")
        })
    };
    server.client.until("/doctor", is_told).await;
    assert_eq!(server.client.get("/tasks/disk").await.1["title"], "Disk");
    let (status, refused) = server.client.post("/tasks/wrong/runs", json!({})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("conflict")));
    assert!(refused["detail"].as_str().unwrap().starts_with("the file of task wrong has an error: "), "{refused}");
    assert_eq!(server.client.delete("/tasks/disk").await.0, 204);
    let task = server.client.until("/tasks/disk", |task| task["title"] == "From a file").await;
    assert_eq!(task["source"], "file");
    assert!(!is_told(&server.client.get("/doctor").await.1));
    server.stop().await;
    drop(home);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_the_file_of_a_task_is_gone_is_said_after_every_start() {
    let home = Home::new("").shell_task("gone", "true");
    home.serve().await.stop().await;
    fs::remove_file(home.path().join("tasks/gone.toml")).unwrap();
    for start in 0..3 {
        let server = home.serve().await;
        let task = server.client.get("/tasks/gone").await.1;
        assert_eq!(task["error"]["message"], "the file is gone: put it back, or remove the task", "start {start}");
        let said = doctor(&server).await;
        assert_eq!((said.len(), &said[0]["level"]), (1, &json!("trouble")), "{said:?}");
        assert!(said[0]["advice"].as_str().unwrap().ends_with("rejoin tasks remove gone"), "{said:?}");
        server.stop().await;
    }
    let home = home.shell_task("gone", "true");
    let server = home.serve().await;
    let task = server.client.get("/tasks/gone").await.1;
    assert_eq!((&task["enabled"], &task["error"]), (&json!(true), &Value::Null), "{task}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_task_folder_leaves_its_tasks_as_they_are_and_says_so() {
    let home = Home::new("").shell_task("kept", "pwd");
    home.serve().await.stop().await;
    let tasks = home.path().join("tasks");
    // Its disk is not there; or something else is in its place, which cannot be read either.
    fs::rename(&tasks, home.path().join("elsewhere")).unwrap();
    for place in ["missing", "other"] {
        if place == "other" {
            fs::write(&tasks, "").unwrap();
        }
        let server = home.serve().await;
        let kept = server.client.get("/tasks/kept").await.1;
        assert_eq!((&kept["enabled"], &kept["error"]), (&json!(true), &Value::Null), "{place}: {kept}");
        let said = doctor(&server).await;
        assert_eq!((said.len(), &said[0]["level"]), (1, &json!("trouble")), "{place}: {said:?}");
        let text = said[0]["text"].as_str().unwrap();
        assert!(text.starts_with(&format!("{}: the folder cannot be read", tasks.display())), "{place}: {text}");
        server.stop().await;
    }
    fs::remove_file(&tasks).unwrap();
    fs::rename(home.path().join("elsewhere"), &tasks).unwrap();
    let server = home.serve().await;
    let said = doctor(&server).await;
    assert_eq!((said.len(), &said[0]["level"]), (1, &json!("ok")), "{said:?}");
    server.stop().await;
    // An empty one is another thing.
    fs::remove_file(tasks.join("kept.toml")).unwrap();
    let server = home.serve().await;
    assert_eq!(server.client.get("/tasks/kept").await.1["enabled"], false);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_and_runs_of_a_task_whose_file_is_gone_say_so() {
    let text = "title = \"Goes\"\n[schedule]\nevery = \"1s\"\n[policy]\noverlap = \"queue\"\n\
                [[steps]]\nrun = \"until [ -e ../go ]; do sleep 0.05; done\"\n";
    let home = Home::new("").task("goes", text);
    let server = home.serve().await;
    let client = &server.client;
    let has = |list: &Value, named: &str, value: &str| {
        list["items"].as_array().unwrap().iter().find(|item| item[named] == value).map(|item| item["reason"].clone())
    };
    client.until("/tasks/goes/runs", |runs| has(runs, "state", "queued").is_some()).await;
    fs::remove_file(home.path().join("tasks/goes.toml")).unwrap();
    client.until("/tasks/goes", |task| task["enabled"] == false).await;
    fs::write(home.path().join("go"), "").unwrap();
    let runs = client.until("/tasks/goes/runs", |runs| has(runs, "state", "cancelled").is_some()).await;
    assert_eq!(has(&runs, "state", "cancelled").unwrap(), "the task or its file was removed");
    let reasons = |slots: &Value| -> Vec<Value> {
        let slots = slots["items"].as_array().unwrap().iter();
        slots.filter(|slot| slot["outcome"] == "disabled").map(|slot| slot["reason"].clone()).collect()
    };
    let (passed, waited) = (json!("the task or its file is gone"), json!("the task or its file was removed"));
    let slots = client
        .until("/tasks/goes/slots", |slots| [&passed, &waited].iter().all(|reason| reasons(slots).contains(reason)))
        .await;
    assert!(reasons(&slots).iter().all(|reason| [&passed, &waited].contains(&reason)), "{slots}");
    server.stop().await;
}

#[test]
fn files_that_went_while_nobody_looked_are_gone_at_the_first_look_and_what_cannot_be_read_is_not() {
    let dir = dir();
    write(&dir.path().join("a.toml"), &task("A"));
    // Whoever runs this may read everything; what a link leads to in a circle nobody can.
    symlink("b.toml", dir.path().join("b.toml")).unwrap();
    let known = ["a", "b", "c"].map(|id| id.parse().unwrap());
    let mut folder = Folder::new(dir.path().to_owned(), Policy::default()).knowing(known);
    let told = told(&folder.scan(Instant::now()));
    assert_eq!((told.len(), told[0].as_str(), told[2].as_str()), (3, "good a A", "gone c"), "{told:?}");
    assert!(told[1].starts_with("bad b Too many levels of symbolic links"), "{told:?}");
}

#[test]
fn a_file_that_others_may_write_is_refused_by_name_with_the_command_that_mends_it() {
    let dir = dir();
    let file = dir.path().join("a.toml");
    write(&file, &task("A"));
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    let told = told(&load(dir.path(), &Policy::default()));
    assert!(told[0].starts_with("bad a refused: ") && told[0].contains("chmod go-w"), "{told:?}");
}

#[test]
fn a_link_into_a_folder_that_others_may_write_is_refused() {
    let (dir, open) = (dir(), dir());
    write(&open.path().join("real.toml"), &task("A"));
    symlink(open.path().join("real.toml"), dir.path().join("a.toml")).unwrap();
    assert_eq!(told(&load(dir.path(), &Policy::default())), ["good a A"]);
    fs::set_permissions(open.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(told(&load(dir.path(), &Policy::default()))[0].starts_with("bad a refused: "));
}

#[test]
fn what_is_no_plain_file_or_too_large_is_refused_without_reading_it() {
    let dir = dir();
    fs::create_dir(dir.path().join("a.toml")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("b.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    symlink("/nowhere", dir.path().join("c.toml")).unwrap();
    write(&dir.path().join("d.toml"), &"#".repeat((1 << 20) + 1));
    let told = told(&load(dir.path(), &Policy::default()));
    assert_eq!(told[..2], ["bad a is not a file", "bad b is not a file"]);
    assert!(told[2].starts_with("bad c No such file"), "{told:?}");
    assert_eq!(told[3], "bad d is larger than 1024 KiB");
}

#[test]
fn only_what_is_different_is_told_and_a_broken_file_keeps_its_task() {
    let dir = dir();
    let file = dir.path().join("a.toml");
    let mut folder = Folder::new(dir.path().to_owned(), Policy::default());
    let now = Instant::now();
    write(&file, &task("A"));
    assert_eq!(told(&folder.scan(now)), ["good a A"]);
    assert_eq!(folder.scan(now), []);
    // Written anew with the same meaning: nothing to tell.
    write(&file, &format!("# a comment\n{}", task("A")));
    assert_eq!(folder.scan(now), []);
    write(&file, "title = ");
    let said = told(&folder.scan(now));
    assert!(said.len() == 1 && said[0].starts_with("bad a "), "{said:?}");
    assert_eq!(folder.scan(now), []);
    write(&file, &task("A"));
    assert_eq!(told(&folder.scan(now)), ["good a A"]);
}

#[test]
fn a_file_is_gone_only_after_it_was_away_for_five_seconds() {
    let dir = dir();
    let file = dir.path().join("a.toml");
    let mut folder = Folder::new(dir.path().to_owned(), Policy::default());
    let start = Instant::now();
    write(&file, &task("A"));
    folder.scan(start);
    fs::remove_file(&file).unwrap();
    assert_eq!(folder.scan(start), []);
    assert_eq!(folder.next_gone(), Some(start + GRACE));
    // An editor that unlinks and creates.
    write(&file, &task("A"));
    assert_eq!(folder.scan(start + Duration::from_secs(2)), []);
    assert_eq!(folder.next_gone(), None);
    fs::remove_file(&file).unwrap();
    assert_eq!(folder.scan(start + Duration::from_secs(3)), []);
    assert_eq!(folder.scan(start + Duration::from_millis(7999)), []);
    assert_eq!(told(&folder.scan(start + Duration::from_secs(8))), ["gone a"]);
    assert_eq!(folder.scan(start + Duration::from_secs(60)), []);
    write(&file, &task("A"));
    assert_eq!(told(&folder.scan(start + Duration::from_secs(61))), ["good a A"]);
}

/// The next message, within a time that only a broken watcher takes.
async fn next(changes: &mut Receiver<Vec<Change>>) -> Vec<String> {
    let within = tokio::time::timeout(Duration::from_secs(120), changes.recv());
    told(&within.await.expect("a change is told").expect("the watcher is there"))
}

#[tokio::test(start_paused = true)]
async fn the_folder_is_told_as_it_stands_then_as_it_changes() {
    let dir = dir();
    let file = dir.path().join("a.toml");
    let mut changes = watch(Folder::new(dir.path().to_owned(), Policy::default()), CancellationToken::new());
    assert_eq!(next(&mut changes).await, [""; 0]);
    // The clock is paused: whether the system's word comes first or the 30 s are over, it is told.
    write(&file, &task("A"));
    assert_eq!(next(&mut changes).await, ["good a A"]);
    write(&file, &task("B"));
    assert_eq!(next(&mut changes).await, ["good a B"]);
    let before = Instant::now();
    fs::remove_file(&file).unwrap();
    assert_eq!(next(&mut changes).await, ["gone a"]);
    assert!(before.elapsed() >= GRACE);
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_is_made_later_is_found() {
    let dir = dir();
    let tasks = dir.path().join("tasks");
    let mut changes = watch(Folder::new(tasks.clone(), Policy::default()), CancellationToken::new());
    assert_eq!(next(&mut changes).await, [""; 0]);
    fs::create_dir(&tasks).unwrap();
    fs::set_permissions(&tasks, Permissions::from_mode(0o700)).unwrap();
    write(&tasks.join("a.toml"), &task("A"));
    assert_eq!(next(&mut changes).await, ["good a A"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_told_by_the_system_without_waiting_for_the_next_look() {
    let dir = dir();
    let mut changes = watch(Folder::new(dir.path().to_owned(), Policy::default()), CancellationToken::new());
    assert_eq!(next(&mut changes).await, [""; 0]);
    // It comes as a whole: the watcher may look at any moment.
    let beside = tempfile::tempdir().unwrap();
    write(&beside.path().join("a.toml"), &task("A"));
    let before = std::time::Instant::now();
    fs::rename(beside.path().join("a.toml"), dir.path().join("a.toml")).unwrap();
    assert_eq!(next(&mut changes).await, ["good a A"]);
    assert!(before.elapsed() < Duration::from_secs(20), "it took the next look: {:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_watcher_ends_when_it_is_told_to_and_when_nobody_listens() {
    let dir = dir();
    let stop = CancellationToken::new();
    let mut changes = watch(Folder::new(dir.path().to_owned(), Policy::default()), stop.clone());
    next(&mut changes).await;
    stop.cancel();
    assert_eq!(changes.recv().await, None);
}
