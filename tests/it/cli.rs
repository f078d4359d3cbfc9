//! The program as people use it: a server of its own, and commands that speak with it.

#![allow(clippy::unwrap_used, reason = "what surprises a test should end it")]

use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, Command};

/// Longer than anything here takes on a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

const QUICK: &str = r#"
title = "Quick work"
[params]
who = { default = "you" }
times = { default = 1 }
[[steps]]
thought = "Say it."
run = "echo hello $REJOIN_PARAM_WHO"
[[steps]]
thought = "Say it again."
run = "echo again >&2"
"#;

const BAD: &str = r#"
title = "Bad work"
[[steps]]
run = "echo before; exit 3"
"#;

/// Works until a file appears.
const LONG: &str = r#"
title = "Long work"
[[steps]]
run = "echo begun; until [ -e go ]; do sleep 0.05; done; echo finished"
"#;

struct House {
    folder: tempfile::TempDir,
    server: Option<Child>,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tasks = folder.path().join("tasks");
        std::fs::create_dir(&tasks).unwrap();
        for (name, text) in [("quick", QUICK), ("bad", BAD), ("long", LONG)] {
            std::fs::write(tasks.join(format!("{name}.toml")), text).unwrap();
        }
        std::fs::write(folder.path().join("config.toml"), "listen = \"127.0.0.1:0\"\n").unwrap();
        let mut house = Self { folder, server: None };
        house.start().await;
        house
    }

    /// Starts the server and waits until it answers.
    async fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let config = self.folder.path().join("config.toml");
        let mut serve = self.command(&["serve", "--config", config.to_str().unwrap()]);
        serve.stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(serve.spawn().unwrap());
        let mut beat = tokio::time::interval(Duration::from_millis(20));
        let answers = async {
            while tokio::net::UnixStream::connect(self.folder.path().join("data/rejoin.sock")).await.is_err() {
                beat.tick().await;
            }
        };
        if tokio::time::timeout(PATIENCE, answers).await.is_err() {
            panic!("the server does not come up: {}", self.log());
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Ends the server with this signal and waits until it is gone.
    async fn end(&mut self, signal: Signal) {
        let mut server = self.server.take().unwrap();
        send(&server, signal);
        tokio::time::timeout(PATIENCE, server.wait()).await.expect("a server that ends").unwrap();
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rejoin"));
        command.current_dir(self.folder.path()).stdin(Stdio::null()).kill_on_drop(true).args(line);
        for name in ["REJOIN_SERVER", "REJOIN_TOKEN"] {
            command.env_remove(name);
        }
        command
    }

    async fn run(&self, line: &[&str]) -> Output {
        let output = tokio::time::timeout(PATIENCE, self.command(line).output()).await;
        output.unwrap_or_else(|_| panic!("{line:?} does not end: {}", self.log())).unwrap()
    }

    /// What a command prints, which must end with this code.
    async fn prints(&self, line: &[&str], code: i32) -> String {
        let output = self.run(line).await;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{line:?}\n{out}\n{err}\n{}", self.log());
        if code == 0 { out } else { out + &err }
    }

    async fn json(&self, line: &[&str]) -> Value {
        let out = self.prints(line, 0).await;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line:?}: {error}: {out}"))
    }

    fn viewer(&self, line: &[&str]) -> Viewer {
        let mut child = self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        Viewer { child, out, err }
    }

    /// Lets the long work end.
    fn go(&self) {
        for folder in ["tasks", "data", "."] {
            let _ = std::fs::write(self.folder.path().join(folder).join("go"), "");
        }
    }
}

/// A command that goes on.
struct Viewer {
    child: Child,
    out: Lines<BufReader<tokio::process::ChildStdout>>,
    err: Lines<BufReader<tokio::process::ChildStderr>>,
}

impl Viewer {
    /// All lines on stdout up to the one that contains `part`.
    async fn shows(&mut self, part: &str) -> Vec<String> {
        until(&mut self.out, part).await
    }

    async fn says(&mut self, part: &str) -> Vec<String> {
        until(&mut self.err, part).await
    }

    /// The rest of stdout, stderr and the exit code.
    async fn end(self) -> (String, String, i32) {
        let Self { mut child, mut out, mut err } = self;
        let rest = async {
            let (out, err) = tokio::join!(rest(&mut out), rest(&mut err));
            (out, err, child.wait().await.unwrap().code().unwrap())
        };
        tokio::time::timeout(PATIENCE, rest).await.expect("a viewer that ends")
    }
}

async fn until<R: AsyncBufRead + Unpin>(lines: &mut Lines<R>, part: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while !seen.last().is_some_and(|line| line.contains(part)) {
        match tokio::time::timeout(PATIENCE, lines.next_line()).await {
            Ok(Ok(Some(line))) => seen.push(line),
            _ => panic!("{part:?} does not come after {seen:#?}"),
        }
    }
    seen
}

async fn rest<R: AsyncBufRead + Unpin>(lines: &mut Lines<R>) -> String {
    let mut text = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

/// Lines without their times, so that they can be compared.
fn plain(lines: &str) -> Vec<&str> {
    lines.lines().filter(|line| line.get(2..3) == Some(":")).map(|line| line[8..].trim()).collect()
}

/// The id of the one run of a task.
async fn only_run(house: &House, task: &str) -> String {
    let runs = house.json(&["runs", "list", "--task", task, "--json"]).await;
    assert_eq!(runs["items"].as_array().unwrap().len(), 1, "{runs}");
    runs["items"][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn adding_a_task_by_its_title_runs_it_and_shows_what_it_does() {
    let house = House::new().await;
    let out = house.prints(&["tasks", "add", "QUICK work!", "-p", "who=world", "--watch"], 0).await;
    let lines = plain(&out);
    for part in ["~ Say it.", "$ echo hello $REJOIN_PARAM_WHO", "| hello world", "! again"] {
        assert!(lines.contains(&part), "{part}: {out}");
    }
    assert!(lines.last().unwrap().starts_with("✓ Task quick completed successfully"), "{out}");
    let run = only_run(&house, "quick").await;
    assert!(out.contains(&run) && out.contains("http://127.0.0.1:"), "{out}");
    // Whoever comes later reads the same.
    let logs = house.prints(&["runs", "logs", &run], 0).await;
    assert_eq!(plain(&logs), lines);
    let again = house.prints(&["watch", &run], 0).await;
    assert_eq!(plain(&again), lines);
    let tail = house.prints(&["runs", "logs", &run, "--tail", "1"], 0).await;
    assert_eq!(plain(&tail), lines[lines.len() - 1..]);
}

#[tokio::test]
async fn a_run_that_fails_is_exit_code_1_and_reading_it_is_not() {
    let house = House::new().await;
    let said = house.prints(&["tasks", "run", "bad", "--watch"], 1).await;
    assert!(said.contains("| before") && said.contains("✗ Task bad failed"), "{said}");
    house.prints(&["tasks", "run", "bad", "--wait"], 1).await;
    let runs = house.json(&["runs", "list", "--state", "failed", "--json"]).await;
    assert_eq!(runs["items"].as_array().unwrap().len(), 2);
    let run = runs["items"][0]["id"].as_str().unwrap();
    house.prints(&["runs", "logs", run, "-f"], 0).await;
}

#[tokio::test]
async fn what_went_wrong_can_be_told_by_the_exit_code() {
    let house = House::new().await;
    let before = house.json(&["runs", "list", "--json"]).await;
    for (line, code, part) in [
        (&["tasks", "show", "none"][..], 4, "none"),
        (&["runs", "show", "0192f0c1-0000-7000-8000-000000000001"], 4, ""),
        (&["tasks", "remove", "quick"], 6, "quick"),
        (&["tasks", "add", "Quick wark"], 2, "\"Quick work\""),
        (&["tasks", "add", "Quick work", "--every", "30m"], 6, "change the file"),
        (&["tasks", "add", "New", "--run", "true", "--cron", "99 * * * *"], 2, "cron"),
        (&["tasks", "add", "New", "--run", "true", "--retries", "101"], 2, "retries"),
        (&["tasks", "add", "Tidy up", "--agent", "model"], 2, "agent"),
    ] {
        let said = house.prints(line, code).await;
        assert!(said.contains(part), "{line:?}: {said}");
    }
    assert_eq!(house.json(&["runs", "list", "--json"]).await, before, "a mistake makes nothing");
    assert_eq!(house.json(&["tasks", "list", "--json"]).await["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn ctrl_c_ends_the_viewer_and_the_run_goes_on_to_its_end() {
    let house = House::new().await;
    let mut viewer = house.viewer(&["tasks", "add", "Long work", "--watch"]);
    viewer.shows("| begun").await;
    send(&viewer.child, Signal::SIGINT);
    let (_, err, code) = viewer.end().await;
    assert_eq!(code, 130);
    assert!(err.contains("goes on"), "{err}");
    let run = only_run(&house, "long").await;
    assert_eq!(house.json(&["runs", "show", &run, "--json"]).await["state"], "running");
    house.go();
    let out = house.prints(&["watch", &run], 0).await;
    assert!(out.contains("| begun") && out.contains("| finished"), "{out}");
}

#[tokio::test]
async fn a_viewer_sees_what_became_of_a_run_whose_server_was_killed() {
    let mut house = House::new().await;
    let mut viewer = house.viewer(&["tasks", "add", "Long work", "--watch"]);
    let mut seen = viewer.shows("| begun").await;
    house.end(Signal::SIGKILL).await;
    viewer.says("Connection lost").await;
    house.start().await;
    viewer.says("Connected again").await;
    let (out, _, code) = viewer.end().await;
    assert_eq!(code, 1, "{out}");
    seen.extend(out.lines().map(ToOwned::to_owned));
    let seen = seen.join("\n");
    assert!(plain(&seen).last().unwrap().starts_with('✗'), "{seen}");
    // Nothing twice and nothing missing: it reads as the log does.
    let run = only_run(&house, "long").await;
    assert_eq!(house.json(&["runs", "show", &run, "--json"]).await["state"], "interrupted");
    assert_eq!(plain(&house.prints(&["runs", "logs", &run], 0).await), plain(&seen));
}

#[tokio::test]
async fn watching_a_task_goes_on_over_a_restart_of_the_server() {
    let mut house = House::new().await;
    let mut viewer = house.viewer(&["watch", "quick"]);
    viewer.says("Nothing of quick runs now").await;
    let run = async |house: &House| house.prints(&["tasks", "run", "quick", "--wait"], 0).await;
    run(&house).await;
    viewer.shows("completed successfully").await;
    house.end(Signal::SIGTERM).await;
    viewer.says("Connection lost").await;
    house.start().await;
    viewer.says("Connected again").await;
    run(&house).await;
    let seen = viewer.shows("completed successfully").await;
    assert_eq!(seen.iter().filter(|line| line.ends_with("| hello you")).count(), 1, "{seen:#?}");
    send(&viewer.child, Signal::SIGINT);
    assert_eq!(viewer.end().await.2, 130);
}

#[tokio::test]
async fn watching_everything_shows_tasks_that_are_made_meanwhile() {
    let house = House::new().await;
    let mut viewer = house.viewer(&["watch"]);
    viewer.says("Watching all tasks").await;
    house.prints(&["tasks", "run", "quick", "--wait"], 0).await;
    house.prints(&["tasks", "add", "Brand new", "--run", "echo fresh", "--wait"], 0).await;
    let seen = viewer.shows("| fresh").await;
    assert!(seen.iter().any(|line| line.contains(" quick ") && line.contains("| hello you")), "{seen:#?}");
    assert!(seen.last().unwrap().contains(" brand-new "), "{seen:#?}");
}

#[tokio::test]
async fn a_run_that_is_stopped_says_so() {
    let house = House::new().await;
    let mut viewer = house.viewer(&["tasks", "add", "Long work", "--watch"]);
    viewer.shows("| begun").await;
    let run = only_run(&house, "long").await;
    house.prints(&["runs", "stop", &run], 0).await;
    let (_, _, code) = viewer.end().await;
    assert_eq!(code, 1);
    assert_eq!(house.json(&["runs", "show", &run, "--json"]).await["state"], "cancelled");
}

#[tokio::test]
async fn a_run_that_is_over_is_done_once_more() {
    let house = House::new().await;
    house.prints(&["tasks", "run", "quick", "-p", "who=all", "--wait"], 0).await;
    let first = only_run(&house, "quick").await;
    let line = ["runs", "retry", &first, "--once", "k", "--wait", "--json"];
    let again = house.json(&line).await;
    assert_eq!(
        (&again["run"]["retry_of"], &again["run"]["params"]["who"], &again["run"]["state"]),
        (&serde_json::json!(first), &serde_json::json!("all"), &serde_json::json!("succeeded"))
    );
    assert_eq!(house.json(&line).await["run"]["id"], again["run"]["id"], "the same key");
    let second = again["run"]["id"].as_str().unwrap();
    let shown = house.prints(&["runs", "show", second], 0).await;
    assert!(shown.contains(&first) && shown.contains("retry of"), "{shown}");
    house.prints(&["tasks", "run", "bad", "--wait"], 1).await;
    let bad = only_run(&house, "bad").await;
    house.prints(&["runs", "retry", &bad, "--wait"], 1).await;
}

#[tokio::test]
async fn what_is_said_to_a_run_that_takes_nothing_is_refused_with_the_reason() {
    let house = House::new().await;
    let mut viewer = house.viewer(&["tasks", "add", "Long work", "--watch"]);
    viewer.shows("| begun").await;
    let run = only_run(&house, "long").await;
    house.prints(&["tasks", "run", "quick", "--wait"], 0).await;
    let over = only_run(&house, "quick").await;
    let none = "0192f0c1-0000-7000-8000-000000000001";
    for (line, code, part) in [
        (&["send", "Long work", "how far are you?"][..], 6, "takes no messages"),
        (&["send", "quick", "hello"], 6, "no run at work"),
        (&["send", "none", "hello"], 4, "none"),
        (&["send", "long", " "], 2, "text"),
        (&["approve", &run], 6, "asks for nothing"),
        (&["deny", &run], 6, "asks for nothing"),
        (&["approve", &over], 6, "over"),
        (&["deny", none], 4, ""),
        (&["runs", "retry", &run], 6, "not over"),
        (&["runs", "retry", none], 4, ""),
    ] {
        let said = house.prints(line, code).await;
        assert!(said.contains(part), "{line:?}: {said}");
    }
    house.go();
    let (_, _, code) = viewer.end().await;
    assert_eq!(code, 0, "nothing of it reached the run");
}

#[tokio::test]
async fn json_has_the_names_that_scripts_rely_on() {
    let house = House::new().await;
    let made = house.json(&["tasks", "add", "Quick work", "--wait", "--json"]).await;
    assert_eq!(made["run"]["state"], "succeeded");
    let has = |value: &Value, names: &[&str]| {
        for name in names {
            assert!(value.get(name).is_some(), "{name}: {value}");
        }
    };
    let tasks = house.json(&["tasks", "list", "--json"]).await;
    let quick = tasks["items"].as_array().unwrap().iter().find(|task| task["id"] == "quick").unwrap();
    has(quick, &["id", "title", "agent", "state", "enabled", "schedule", "next_at", "last_run"]);
    let runs = house.json(&["runs", "list", "--json"]).await;
    let names = ["id", "task", "state", "attempt", "queued_at", "started_at", "ended_at", "duration_ms", "first_seq"];
    has(&runs["items"][0], &names);
    has(&house.json(&["status", "--json"]).await, &["version", "uptime_s", "connections", "running", "queued"]);
    has(&house.json(&["tasks", "show", "quick", "--json"]).await, &["id", "definition"]);
    let output = house.run(&["watch", made["run"]["id"].as_str().unwrap(), "--json"]).await;
    for line in text(&output.stdout).lines() {
        has(&serde_json::from_str(line).unwrap(), &["task", "run", "seq", "at", "kind", "data"]);
    }
}

#[tokio::test]
async fn a_task_of_ones_own_is_made_shown_paused_exported_and_removed() {
    let house = House::new().await;
    let line = ["tasks", "add", "My own", "--run", "echo mine", "--cron", "0 3 * * *", "--tz", "Europe/Berlin"];
    let tried = house.prints(&[&line[..], &["--dry-run"]].concat(), 0).await;
    assert!(tried.contains("T03:00:00"), "{tried}");
    house.prints(&["tasks", "show", "my-own"], 4).await;
    house.prints(&line, 0).await;
    let next = house.json(&["tasks", "next", "my-own", "-n", "3", "--json"]).await;
    assert_eq!(next["items"].as_array().unwrap().len(), 3);
    house.prints(&["tasks", "pause", "My own"], 0).await;
    assert_eq!(house.json(&["tasks", "show", "my-own", "--json"]).await["state"], "paused");
    house.prints(&["tasks", "resume", "my-own"], 0).await;
    house.json(&["tasks", "slots", "my-own", "--json"]).await;
    house.prints(&line, 6).await;

    let file = house.prints(&["tasks", "export", "my-own"], 0).await;
    std::fs::write(house.folder.path().join("copy.toml"), &file).unwrap();
    house.prints(&["tasks", "validate", "copy.toml"], 0).await;
    house.prints(&["tasks", "add", "copy.toml"], 0).await;
    let of = async |id: &str| house.json(&["tasks", "show", id, "--json"]).await["definition"]["steps"].clone();
    assert_eq!(of("copy").await, of("my-own").await);
    house.prints(&["tasks", "remove", "my-own"], 0).await;
    house.prints(&["tasks", "show", "my-own"], 4).await;
}

#[tokio::test]
async fn the_same_key_starts_one_run() {
    let house = House::new().await;
    let line = ["tasks", "run", "quick", "--once", "a-key-of-this-test", "--wait", "--json"];
    let first = house.json(&line).await;
    let second = house.json(&line).await;
    assert_eq!(first["run"]["id"], second["run"]["id"]);
    only_run(&house, "quick").await;
}

#[tokio::test]
async fn t_18_the_same_key_makes_one_task_with_or_without_an_id_and_whenever_it_is_due() {
    let house = House::new().await;
    for line in [
        vec!["tasks", "add", "Every hour", "--run", "true", "--every", "1h", "--once", "k1"],
        vec!["tasks", "add", "At once", "--run", "true", "--once", "k2"],
        vec!["tasks", "add", "Soon", "--run", "true", "--at", "20m", "--once", "k3"],
        vec!["tasks", "add", "Soon too", "--id", "soon-2", "--run", "true", "--at", "20m", "--once", "k4"],
    ] {
        let line = [line, vec!["--json"]].concat();
        let begun = jiff::Timestamp::now().as_second();
        let first = house.json(&line).await;
        // Distances are counted in full seconds.
        while jiff::Timestamp::now().as_second() < begun + 2 {
            let again = house.json(&line).await;
            assert_eq!(first["task"]["id"], again["task"]["id"], "{line:?}");
            assert_eq!(first["task"]["next_at"], again["task"]["next_at"], "{line:?}");
            assert_eq!(first["run"]["id"], again["run"]["id"], "{line:?}");
        }
    }
    assert_eq!(house.json(&["tasks", "list", "--json"]).await["items"].as_array().unwrap().len(), 3 + 4);
    // Another key is another request, and the title is taken.
    let other = ["tasks", "add", "At once", "--run", "true", "--once", "k5"];
    assert!(house.prints(&other, 6).await.contains("rejoin tasks remove at-once"));
    let changed = ["tasks", "add", "At once", "--run", "false", "--once", "k2"];
    assert!(house.prints(&changed, 6).await.contains("another request"));
}

#[tokio::test]
async fn over_http_a_token_is_needed_and_is_enough() {
    let house = House::new().await;
    let link = house.json(&["open", "--print", "--json"]).await;
    let url = link["url"].as_str().unwrap().split("/#").next().unwrap().to_owned();
    let without = house.command(&["tasks", "list", "--server", &url]).output().await.unwrap();
    assert_eq!(without.status.code(), Some(5), "{}", text(&without.stderr));
    let token = std::fs::read_to_string(house.folder.path().join("data/token")).unwrap();
    let line = ["tasks", "run", "quick", "--watch", "--server", &url];
    let with = house.command(&line).env("REJOIN_TOKEN", token.trim()).output().await.unwrap();
    assert_eq!(with.status.code(), Some(0), "{}", text(&with.stderr));
    let wrong = house.command(&["watch", "--server", &url]).env("REJOIN_TOKEN", "wrong").output().await.unwrap();
    assert_eq!(wrong.status.code(), Some(5), "{}", text(&wrong.stderr));
}

#[tokio::test]
async fn task_files_are_checked_without_a_server() {
    let mut house = House::new().await;
    house.end(Signal::SIGTERM).await;
    house.prints(&["tasks", "validate"], 0).await;
    let bad = house.folder.path().join("tasks/wrong.toml");
    std::fs::write(&bad, "title = \"Wrong\"\n[[steps]]\nrum = \"true\"\n").unwrap();
    let said = house.prints(&["tasks", "validate"], 2).await;
    assert!(said.contains("wrong.toml:3:"), "{said}");
    let checked = house.run(&["tasks", "validate", "--json"]).await;
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let wrong = checked["items"].as_array().unwrap().iter().find(|file| file["ok"] == json!(false)).unwrap();
    assert!(wrong["errors"].as_array().unwrap().iter().any(|error| error["line"] == 3), "{wrong}");
}
