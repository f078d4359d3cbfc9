//! `rejoin backup` and `rejoin restore`: the real program, beside a server that is written to, and on data folders.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rejoin::event::Body;
use serde_json::json;

use crate::harness::{Archive, Home, InProcess, REJOIN};

/// Runs the program on a data folder.
pub fn rejoin(data: &Path, arguments: &[impl AsRef<OsStr>], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(REJOIN);
    command.args(arguments).arg("--data-dir").arg(data).env_remove("REJOIN_SERVER");
    command.envs(environment.iter().copied()).output().unwrap()
}

/// What the program said, and that it ended with this code.
#[track_caller]
pub fn said(output: &Output, code: i32) -> String {
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{words}");
    words
}

pub fn data(home: &Home) -> PathBuf {
    home.path().join("data")
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

async fn ran(server: &InProcess, task: &str) -> String {
    let run = server.client.run(task).await;
    server.client.ended(&run).await;
    run
}

/// The program runs on another thread: the server of this process has to answer it.
async fn beside(act: impl FnOnce() -> Output + Send + 'static) -> Output {
    tokio::task::spawn_blocking(act).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_while_events_are_written_is_of_one_moment_and_restores_into_an_empty_folder() {
    let home = Home::new("").shell_task("job", "echo hello").shell_task("busy", "true");
    let server = home.serve().await;
    let run = ran(&server, "job").await;
    let publisher = server.server.api().publisher.clone();
    let topic = publisher.topic(&"busy".parse().unwrap()).unwrap();
    let go_on = Arc::new(AtomicBool::new(true));
    let writing = tokio::spawn({
        let go_on = Arc::clone(&go_on);
        async move {
            let mut number = 0;
            while go_on.load(Ordering::SeqCst) {
                let body = Body::Thought { text: format!("{number} {}", "x".repeat(2000)) };
                publisher.publish(&topic, None, &body).await.unwrap();
                number += 1;
            }
        }
    });
    let before = server.server.api().publisher.topic(&"busy".parse().unwrap()).unwrap();
    while before.head().0 < 500 {
        tokio::task::yield_now().await;
    }
    let least = before.head().0;
    let file = home.path().join("copy.db");
    let (folder, to) = (data(&home), file.clone());
    let output = beside(move || rejoin(&folder, &["backup", path(&to)], &[])).await;
    said(&output, 0);
    go_on.store(false, Ordering::SeqCst);
    writing.await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // A part of what was written, without a gap, and what was there when it began is in it.
    let copy = Archive::at(&file);
    let (.., head) = copy.logs().into_iter().find(|log| log.0 == "busy").unwrap();
    let (live, copied) = (home.logged_events("busy"), copy.events_after("busy", 0));
    assert!(head >= least && copied.len() as u64 == head && live.starts_with(&copied), "{least} {head}");
    assert!(head < before.head().0, "it is of a moment, not of the end");
    let names = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.map(|name| name.into_string().unwrap()).all(|name| !name.contains("part")));
    let jobs = server.client.pages("job").await;
    server.stop().await;

    let other = Home::new("").shell_task("job", "echo hello").shell_task("busy", "true");
    let words = said(&rejoin(&data(&other), &["restore", path(&file)], &[]), 0);
    assert!(words.contains(&format!("rejoin serve --data-dir {}", data(&other).display())), "{words}");
    assert!(words.contains("Restored 2 tasks of 20"), "{words}");
    let server = other.serve().await;
    assert_eq!(server.client.pages("job").await, jobs);
    assert_eq!(other.logged_events("busy"), copied);
    let call =
        jobs.iter().find(|event| event["kind"] == "tool_use").unwrap()["data"]["call"].as_str().unwrap().to_owned();
    let stored = server.client.request(reqwest::Method::GET, &format!("/runs/{run}/output/{call}"));
    assert_eq!(stored.send().await.unwrap().text().await.unwrap(), "hello\n");
    assert_ne!(home.token(), other.token(), "the token is no part of a backup");
    ran(&server, "job").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_09_restored_over_newer_data_positions_of_before_are_reset_and_what_was_there_is_kept() {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.serve().await;
    ran(&server, "job").await;
    let file = home.path().join("copy.db");
    let (folder, to) = (data(&home), file.clone());
    said(&beside(move || rejoin(&folder, &["backup", path(&to)], &[])).await, 0);
    let old = server.client.pages("job").await;
    let later = ran(&server, "job").await;
    let all = server.client.pages("job").await;
    let token = home.token();
    let page = server.client.get("/tasks/job/events").await.1;
    let (generation, position) = (page["gen"].clone(), all.len());
    // A server has it: nothing is touched.
    let (folder, from) = (data(&home), file.clone());
    let words = said(&beside(move || rejoin(&folder, &["restore", path(&from)], &[])).await, 6);
    assert!(words.contains("another server"), "{words}");
    server.stop().await;

    let words = said(&rejoin(&data(&home), &["restore", path(&file)], &[]), 0);
    let kept = std::fs::read_dir(data(&home)).unwrap().map(|entry| entry.unwrap().path());
    let kept =
        kept.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("replaced-")).unwrap();
    assert!(words.contains(path(&kept)), "{words}");
    assert!(
        Archive::at(&kept.join("rejoin.db")).events_after("job", 0).len() == position && kept.join("output").exists()
    );
    let server = home.serve().await;
    assert_eq!(server.client.pages("job").await, old);
    assert_eq!(home.token(), token, "the token is the folder's");
    // As many events as the watcher has seen, but others: under another name.
    ran(&server, "job").await;
    assert_eq!(server.client.pages("job").await.len(), position);
    let from = json!([{ "sub": 1, "task": "job", "gen": generation, "after": position }]);
    let mut watcher = server.client.watch(from).await;
    let frames = watcher.until(|frame| frame["type"] == "reset").await;
    assert_eq!(frames.last().unwrap()["why"], "generation");
    assert_eq!(server.client.get(&format!("/runs/{later}")).await.0, 404);
    assert!(!data(&home).join("output").join(&later).exists(), "outputs are those of the backup");
    server.stop().await;
}

/// A home with one run in it, stopped; and its backup.
async fn backed_up() -> (Home, PathBuf) {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.serve().await;
    ran(&server, "job").await;
    server.stop().await;
    let file = home.path().join("copy.db");
    // Nobody has the folder: it is copied without a server.
    said(&rejoin(&data(&home), &["backup", path(&file)], &[]), 0);
    (home, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_backup_of_a_known_version_is_refused_and_nothing_is_changed() {
    let (home, file) = backed_up().await;
    let there = || {
        let entries = std::fs::read_dir(data(&home)).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        (names, std::fs::read(home.database()).unwrap())
    };
    let before = there();
    let whole = std::fs::read(&file).unwrap();
    let bad = home.path().join("bad.db");
    let refused = |what: &str, bytes: &[u8], part: &str| {
        std::fs::write(&bad, bytes).unwrap();
        let words = said(&rejoin(&data(&home), &["restore", path(&bad)], &[]), 2);
        assert!(words.contains(part) && words.contains("Nothing was changed"), "{what}: {words}");
        assert!(there() == before, "{what}");
    };
    refused("half", &whole[..whole.len() / 2], "damaged");
    refused("empty", b"", "no backup");
    refused("text", "not at all a backup\n".repeat(500).as_bytes(), "no backup");
    let mut holed = whole.clone();
    let middle = holed.len() / 2 / 4096 * 4096;
    holed[middle..middle + 4096].fill(0x55);
    refused("a page that says nothing", &holed, "damaged");
    let newer = |version: u32| {
        std::fs::write(&file, &whole).unwrap();
        rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", version).unwrap();
        std::fs::read(&file).unwrap()
    };
    refused("newer", &newer(rejoin::store::VERSION + 1), &format!("version {}", rejoin::store::VERSION + 1));
    refused("another program's", &newer(0), "not of this program");
    said(&rejoin(&data(&home), &["restore", "/nowhere/at/all"], &[]), 4);
    assert!(there() == before);
    // What is there is replaced only by who says so.
    said(&rejoin(&data(&home), &["backup", path(&bad)], &[]), 6);
    said(&rejoin(&data(&home), &["backup", path(&bad), "--force"], &[]), 0);
    said(&rejoin(&data(&home), &["restore", path(&bad)], &[]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_restored_into_a_folder_that_others_may_write_and_one_that_is_made_is_private() {
    let (home, file) = backed_up().await;
    let folder = home.path().join("new");
    let mode = |mode| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
    std::fs::create_dir(&folder).unwrap();
    mode(0o777);
    let words = said(&rejoin(&folder, &["restore", path(&file)], &[]), 7);
    assert!(words.contains(&format!("can be written by everyone: chmod go-w '{}'", path(&folder))), "{words}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing was changed");
    // Reading needs no such care.
    std::fs::set_permissions(data(&home), std::fs::Permissions::from_mode(0o777)).unwrap();
    said(&rejoin(&data(&home), &["backup", path(&home.path().join("again.db"))], &[]), 0);
    mode(0o755);
    said(&rejoin(&folder, &["restore", path(&file)], &[]), 0);
    let made = home.path().join("made");
    said(&rejoin(&made, &["restore", path(&file)], &[]), 0);
    assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_path_is_not_utf_8_is_made_and_restored_like_any() {
    let (home, _) = backed_up().await;
    let folder = home.path().join(OsStr::from_bytes(b"\xff 100%41?#"));
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join(OsStr::from_bytes(b"\xfe.db"));
    let act = |verb: &str, more: &str| {
        let words = [OsStr::new(verb), file.as_os_str(), OsStr::new(more)];
        said(&rejoin(&data(&home), &words[..if more.is_empty() { 2 } else { 3 }], &[]), 0);
    };
    act("backup", "");
    act("backup", "--force");
    act("restore", "");
    act("restore", "--json");
    std::fs::remove_file(&file).unwrap();
    act("backup", "--json");
    assert!(file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_never_takes_the_place_of_what_a_server_needs_or_of_what_is_no_file() {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.serve().await;
    let folder = data(&home);
    let own = std::fs::metadata(home.database()).unwrap().ino();
    let refused = async |to: PathBuf, code: i32, part: &str| {
        let (folder, name) = (folder.clone(), to.clone());
        let forced = beside(move || rejoin(&folder, &["backup", path(&name), "--force"], &[])).await;
        let words = said(&forced, code);
        assert!(words.contains(part), "{}: {words}", to.display());
    };
    for name in
        ["rejoin.db", "rejoin.db-wal", "rejoin.db-shm", "rejoin.db-journal", "opens", "token", "lock", "backup-mark"]
    {
        refused(folder.join(name), 2, "its server needs").await;
    }
    // The same by another name.
    let link = |name: &str| home.path().join(name);
    symlink(&folder, link("folder")).unwrap();
    symlink(home.database(), link("symbolic.db")).unwrap();
    std::fs::hard_link(home.database(), link("hard.db")).unwrap();
    for name in ["folder/rejoin.db", "symbolic.db", "hard.db"] {
        refused(link(name), 2, "its server needs").await;
    }
    // The server is asked by its address, so that its folder is not known.
    let (address, token, to) = (format!("http://{}", server.client.address), home.token(), home.database());
    let asked = move || {
        let mut command = Command::new(REJOIN);
        command.args(["backup", path(&to), "--force", "--server", &address]).env("REJOIN_TOKEN", token);
        command.output().unwrap()
    };
    assert!(said(&beside(asked).await, 2).contains("its server needs"));
    assert_eq!(std::fs::metadata(home.database()).unwrap().ino(), own);

    let pipe = link("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refused(pipe.clone(), 2, "a pipe").await;
    refused(home.path().to_owned(), 2, "a folder").await;
    symlink("/nowhere/at/all.db", link("away.db")).unwrap();
    let (data_dir, away) = (folder.clone(), link("away.db"));
    said(&beside(move || rejoin(&data_dir, &["backup", path(&away)], &[])).await, 6);
    assert!(link("away.db").is_symlink());
    // A copy may be called as a store is, also when there is one by now.
    let copies = link("copies");
    std::fs::create_dir(&copies).unwrap();
    for _ in 0..2 {
        let (folder, copy) = (folder.clone(), copies.join("rejoin.db"));
        said(&beside(move || rejoin(&folder, &["backup", path(&copy), "--force"], &[])).await, 0);
    }
    ran(&server, "job").await;
    server.stop().await;
    // Nobody writes to it: it is not waited for.
    assert!(said(&rejoin(&folder, &["restore", path(&pipe)], &[]), 2).contains("plain file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_leaves_neither_half_a_backup_nor_half_a_restored_folder() {
    let (home, file) = backed_up().await;
    let limited = |arguments: &str| {
        // Less than any store has.
        let script =
            format!("trap '' XFSZ; ulimit -f 32; exec '{REJOIN}' {arguments} --data-dir '{}'", data(&home).display());
        Command::new("sh").args(["-c", &script]).env_remove("REJOIN_SERVER").output().unwrap()
    };
    let before = std::fs::read(home.database()).unwrap();
    let to = home.path().join("second.db");
    let words = said(&limited(&format!("backup '{}'", to.display())), 7);
    assert!(words.contains("no room") || words.contains("File too large"), "{words}");
    let words = said(&limited(&format!("restore '{}'", file.display())), 7);
    assert!(words.contains("nothing was changed"), "{words}");
    assert!(!data(&home).join("restoring").exists() && std::fs::read(home.database()).unwrap() == before);
    let names = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.contains("part") && name != "second.db"));
    home.serve().await.stop().await;
}
