//! A disk that is full, for real: nothing unsaved is shown, nothing dies of it, Stop works, and everything goes on
//! once there is room.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::Instant;

use crate::disk_limits::limit_files;
use crate::harness::{Client, Home, PATIENCE, Process, REJOIN};
use crate::kills_recorder::Recorder;
use crate::memory::resident;

/// Says something until a file is there.
fn steady(home: &Path) -> String {
    format!("while [ ! -e '{}' ]; do echo tick; sleep 0.05; done; echo end", home.join("go").display())
}

/// The processes of a run that are there, found by their mark.
pub fn processes_of(run: &str) -> usize {
    let mark = format!("REJOIN_RUN={run}").into_bytes();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark)
        })
        .count()
}

async fn becomes(what: &str, is: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is().await {
        assert!(Instant::now() < deadline, "never came about: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// `/readyz` is outside of the API and needs no token.
async fn ready(client: &Client) -> u16 {
    reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .get(format!("http://{}/readyz", client.address))
        .send()
        .await
        .unwrap()
        .status()
        .as_u16()
}

async fn notice(client: &Client) -> Option<Value> {
    let status = client.get("/status").await.1;
    status["notices"].as_array().unwrap().iter().find(|notice| notice["code"] == "store_not_writable").cloned()
}

/// What the recorder has is in the file, now.
fn assert_saved(home: &Home, recorder: &Recorder) {
    // Looked at first: what is seen later is not in it.
    let seen = recorder.look(|seen| seen.events.clone());
    for (task, events) in seen {
        let logged = home.logged(&task);
        assert!(logged.starts_with(&events), "{task}: something was shown that is not saved");
    }
}

/// How the disk is made full and gets room again.
trait Disk {
    fn fill(&self, server: &Process);
    fn free(&self, server: &Process);
}

struct FileLimit;

impl Disk for FileLimit {
    fn fill(&self, server: &Process) {
        limit_files(server.pid(), Some(1));
    }

    fn free(&self, server: &Process) {
        limit_files(server.pid(), None);
    }
}

/// A file system in memory; unmounted with the test.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs"]).arg(&at);
        mount.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let done = mount.status().is_ok_and(|status| status.success());
        done.then_some(Self { at })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

impl Disk for Mounted {
    fn fill(&self, _: &Process) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.at.join("ballast")).unwrap();
        let block = [0_u8; 4096];
        while file.write_all(&block).is_ok() {}
    }

    fn free(&self, _: &Process) {
        std::fs::remove_file(self.at.join("ballast")).unwrap();
    }
}

/// The whole story over one kind of full disk.
async fn full_and_free_again(home: Home, disk: &impl Disk) {
    let steady = steady(home.path());
    let home = home
        .shell_task("steady", &steady)
        .shell_task("flood", "echo up; trap '' INT; yes 'more and more and more of it'")
        .shell_task("other", "echo hello");
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    let recorder = Recorder::start(&["steady", "flood"]);
    recorder.point_at(client.address, &home.token());
    let (steady, flood) = (client.run("steady").await, client.run("flood").await);
    let said = |task: &str| recorder.look(|seen| seen.events.get(task).map_or(0, Vec::len));
    becomes("both say something", async || said("steady") >= 6 && said("flood") >= 6).await;
    let mut viewer = tokio::process::Command::new(REJOIN)
        .args(["watch", "steady", "--server", &format!("http://{}", client.address)])
        .env("REJOIN_TOKEN", home.token())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut viewer_says = BufReader::new(viewer.stderr.take().unwrap()).lines();
    let before = resident(server.pid());

    disk.fill(&server);
    becomes("the store cannot be written", async || notice(&client).await.is_some()).await;
    let told = notice(&client).await.unwrap();
    assert!(told["text"].as_str().unwrap().contains("Nothing can be saved"), "{told}");
    assert_eq!(ready(&client).await, 503);
    becomes("the watcher is told", async || notices(&recorder).contains(&false)).await;
    let said_by_viewer = async {
        loop {
            let line = viewer_says.next_line().await.unwrap().expect("the viewer ended");
            if line.contains("Nothing can be saved") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, said_by_viewer).await.expect("the viewer says nothing of it");

    // Refused at once, not after some retries.
    let asked = Instant::now();
    let (status, answer) = client.post("/tasks/other/runs", json!({})).await;
    assert_eq!((status, answer["code"].as_str()), (503, Some("not_writable")), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());

    // Stop acts although nothing of it can be saved.
    assert!(processes_of(&flood) >= 2);
    let asked = Instant::now();
    assert_eq!(client.post(&format!("/runs/{flood}/stop"), json!({})).await.0, 202);
    becomes("the flood is over", async || processes_of(&flood) == 0).await;
    let stopped_in = asked.elapsed();
    assert!(stopped_in < Duration::from_secs(4), "{stopped_in:?}");
    assert!(processes_of(&steady) >= 2, "the other run goes on");
    let frozen = (said("steady"), said("flood"));
    assert_saved(&home, &recorder);
    // It stays like this for a while: nothing is shown, and memory stays where it is.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_saved(&home, &recorder);
    assert_eq!((said("steady"), said("flood")), frozen, "something unsaved was shown");
    let grown = resident(server.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "memory grew by {grown} bytes");

    disk.free(&server);
    becomes("the store can be written", async || notice(&client).await.is_none()).await;
    assert_eq!(ready(&client).await, 200);
    becomes("the watcher is told of the end", async || notices(&recorder).contains(&true)).await;
    assert_eq!(client.ended(&flood).await["state"], "cancelled");
    std::fs::write(home.path().join("go"), "").unwrap();
    assert_eq!(client.ended(&steady).await["state"], "succeeded");
    let other = client.run("other").await;
    assert_eq!(client.ended(&other).await["state"], "succeeded");
    let heads = [("steady", head(&client, "steady").await), ("flood", head(&client, "flood").await)];
    recorder.reaches(&heads).await;
    assert!(server.terminate().await.success(), "{}", home.log());
    let seen = recorder.end();
    for (task, _) in heads {
        let logged = home.logged(task);
        let numbers: Vec<u64> = logged.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        assert_eq!(seen.events[task], logged);
    }
    eprintln!("stopped in {stopped_in:?} on the full disk; memory grew by {} KiB beside a flood", grown / 1024);
}

/// The ends of the notices that the recorder got: `false` for the beginning, `true` for the end.
fn notices(recorder: &Recorder) -> BTreeSet<bool> {
    let notices = recorder.look(|seen| seen.notices.clone());
    notices.iter().filter(|(code, _)| code == "store_not_writable").map(|(_, over)| *over).collect()
}

async fn head(client: &Client, task: &str) -> u64 {
    client.get(&format!("/tasks/{task}")).await.1["head"].as_u64().unwrap()
}

const FAST: &str =
    "[runs]\nstop_term = \"200ms\"\nstop_kill = \"500ms\"\nstop_give_up = \"10s\"\nshutdown_grace = \"200ms\"";

#[tokio::test(flavor = "multi_thread")]
async fn t_29_on_a_full_disk_nothing_unsaved_is_shown_stop_works_and_all_goes_on_later() {
    full_and_free_again(Home::new(FAST), &FileLimit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_29_on_a_small_file_system_that_is_full_it_is_the_same() {
    let home = Home::new(FAST);
    let Some(disk) = Mounted::new(home.path().join("data")) else {
        eprintln!("skipped: a file system can be mounted only by root");
        return;
    };
    // Only the store is on it: an output that is cut gives space back, and the disk would not stay full.
    let elsewhere = home.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, home.path().join("data/output")).unwrap();
    full_and_free_again(home, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_up_the_start_of_a_command_and_does_not_make_the_run_fail() {
    let home = Home::new(FAST);
    let first = steady(home.path());
    let text = format!(
        "title = \"Two\"\n[[steps]]\nname = \"first\"\nrun = {}\n[[steps]]\nname = \"second\"\nrun = \"echo second\"\n",
        json!(first)
    );
    let home = home.task("two", &text);
    let server = home.spawn(&[]).await;
    let client = server.client.clone();
    let run = client.run("two").await;
    client.until("/tasks/two", |task| task["head"].as_u64().is_some_and(|head| head >= 5)).await;
    limit_files(server.pid(), Some(1));
    becomes("the store cannot be written", async || notice(&client).await.is_some()).await;
    // The first command ends on the full disk, and the second one would start.
    std::fs::write(home.path().join("go"), "").unwrap();
    becomes("the first command is over", async || processes_of(&run) <= 1).await;
    limit_files(server.pid(), None);
    let ended = client.ended(&run).await;
    assert_eq!(ended["state"], "succeeded", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_in_the_folder_while_the_disk_is_full_is_in_force_once_there_is_room() {
    let home = Home::new(FAST).shell_task("changed", "echo old").shell_task("gone", "true");
    let server = home.spawn(&[]).await;
    let client = server.client.clone();
    client.until("/tasks/gone", |task| task["enabled"] == true).await;
    limit_files(server.pid(), Some(1));
    assert_eq!(client.post("/tasks/gone/runs", json!({})).await.0, 503);
    let text = |title: &str| format!("title = \"{title}\"\n[[steps]]\nrun = \"true\"\n");
    let home = home.task("changed", &text("Later")).task("added", &text("Added"));
    std::fs::remove_file(home.path().join("tasks/gone.toml")).unwrap();
    // It was tried, and could not be; the others wait behind it.
    client.until("/tasks/changed", |task| !task["error"].is_null()).await;
    let task = client.get("/tasks/changed").await.1;
    assert_eq!(task["title"], "changed", "what is not saved is not in force: {task}");
    limit_files(server.pid(), None);
    client.until("/tasks/changed", |task| task["title"] == "Later" && task["error"].is_null()).await;
    client.until("/tasks/gone", |task| task["enabled"] == false).await;
    client.until("/tasks/added", |task| task["title"] == "Added").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_to_stop_on_a_full_disk_stops_and_the_next_start_says_what_became_of_its_runs() {
    let home = Home::new(FAST);
    let command = steady(home.path());
    let home = home.shell_task("steady", &command);
    let mut server = home.spawn(&[]).await;
    let client = server.client.clone();
    let (run, waits) = (client.run("steady").await, client.run("steady").await);
    client.until("/tasks/steady", |task| task["head"].as_u64().is_some_and(|head| head >= 7)).await;
    limit_files(server.pid(), Some(1));
    becomes("the store cannot be written", async || notice(&client).await.is_some()).await;
    let begin = Instant::now();
    server.terminate().await;
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert_eq!(processes_of(&run), 0);

    std::fs::write(home.path().join("go"), "").unwrap();
    let mut server = home.spawn(&[]).await;
    assert_eq!(server.client.ended(&run).await["state"], "interrupted");
    assert_eq!(server.client.ended(&waits).await["state"], "succeeded");
    assert!(server.terminate().await.success());
}
