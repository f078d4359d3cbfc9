//! The server's own log: the same lines with the same fields as text and as JSON, spans that say which run, and nothing
//! that others have said makes a line of its own.

use std::io::Write;
use std::sync::{Arc, Mutex};

use rejoin::config::LogFormat;
use rejoin::event::{Seq, TaskId};
use rejoin::logging;
use rejoin::stream::forwarder::{Connections, Forwarder, Peer, Watcher};
use serde_json::{Value, json};

use crate::harness::Home;
use crate::rows_stage::Page;

/// What is written.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The lines that are logged while something is done on this thread.
fn lines(format: LogFormat, filter: &str, colours: bool, work: impl FnOnce()) -> Vec<String> {
    let sink = Sink::default();
    let to = sink.clone();
    tracing::subscriber::with_default(logging::log(format, filter, colours, move || to.clone()), work);
    let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// A watcher that comes, goes, and comes back; and an event for one that is closed.
fn comings_and_goings() {
    let task: TaskId = "df-report".parse().unwrap();
    let connections = Connections::new();
    let mut held = Forwarder::default();
    let enter = |peer| {
        let watcher = Arc::new(Watcher::new(Arc::new(Peer::new(peer, "ada".into(), "page".into())), 1, Seq(1)));
        connections.insert(&task, Arc::clone(&watcher));
        watcher
    };
    enter(1);
    connections.get_or_refresh_forwarder(&task, &mut held);
    connections.remove(&task, 1, 1);
    connections.get_or_refresh_forwarder(&task, &mut held);
    let back = enter(2);
    connections.get_or_refresh_forwarder(&task, &mut held);
    back.peer.close();
    held.forward(&task, "tool_use");
}

const MADE: &str = "WebSocket forwarder created: task=df-report, chat=df-report, user=ada";
const BACK: &str = "Detected WebSocket reconnection for chat=df-report, resuming updates";
const SKIPPED: &str = "WebSocket closed for user=ada, chat=df-report - skipping tool_use message";

#[test]
fn swe_38_the_promised_lines_have_the_same_fields_as_text_and_as_json() {
    let filter = "info,rejoin::delivery=debug";
    let text = lines(LogFormat::Text, filter, false, comings_and_goings);
    let wanted = [
        (" INFO", MADE, "connection=1 user=ada task=df-report"),
        (" INFO", BACK, "connection=2 user=ada task=df-report"),
        (" INFO", MADE, "connection=2 user=ada task=df-report"),
        ("DEBUG", SKIPPED, "connection=2 user=ada task=df-report kind=\"tool_use\""),
    ];
    assert_eq!(text.len(), wanted.len(), "{text:#?}");
    for (line, (level, message, fields)) in text.iter().zip(wanted) {
        let (time, rest) = line.split_once(' ').unwrap();
        time.parse::<jiff::Timestamp>().unwrap();
        assert!(rest.starts_with(level) && rest.contains(&format!(": {message} {fields}")), "{line}");
    }
    let json = lines(LogFormat::Json, filter, false, comings_and_goings);
    let (made, back, skipped) = (("INFO", MADE, None), ("INFO", BACK, None), ("DEBUG", SKIPPED, Some("tool_use")));
    assert_eq!(json.len(), 4, "{json:#?}");
    for ((line, connection), (level, message, kind)) in json.iter().zip([1, 2, 2, 2]).zip([made, back, made, skipped]) {
        let line: Value = serde_json::from_str(line).unwrap();
        line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let mut fields = json!({ "message": message, "connection": connection, "user": "ada", "task": "df-report" });
        if let Some(kind) = kind {
            fields["kind"] = kind.into();
        }
        assert_eq!((&line["level"], &line["fields"]), (&json!(level), &fields), "{line}");
    }
}

#[test]
fn swe_38_nothing_that_others_say_ends_a_line_or_steers_a_terminal() {
    const EVIL: &str = "x\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[2J\u{9b}31m\u{2028}\u{202e}";
    let say = || {
        let span = tracing::info_span!("run", task = %EVIL);
        let _in = span.enter();
        tracing::info!(why = %EVIL, said = EVIL, seen = ?EVIL, "it said {EVIL}");
    };
    for colours in [false, true] {
        let text = lines(LogFormat::Text, "info", colours, say);
        assert_eq!(text.len(), 1, "{text:#?}");
        // The colours are the log's own: level, time and names.
        let plain = text[0].replace("\u{1b}[", "");
        assert!(!plain.chars().any(|letter| letter.is_control() || "\u{2028}\u{202e}".contains(letter)), "{plain:?}");
        assert!(!text[0].contains("\u{1b}[2J"), "{:?}", text[0]);
        assert_eq!(text[0].matches(r"x\n2026-01-01T00:00:00Z  INFO forged\r\u{1b}[2J\u{9b}31m").count(), 5, "{text:?}");
    }
    let json = lines(LogFormat::Json, "info", false, say);
    assert_eq!(json.len(), 1, "{json:#?}");
    assert!(!json[0].contains(['\n', '\r', '\u{1b}']));
    let line: Value = serde_json::from_str(&json[0]).unwrap();
    assert_eq!(line["fields"]["why"], EVIL);
}

/// A server's log while a task runs twice, is watched, and is asked for something it cannot do.
async fn log_of_a_server(format: &str) -> (String, String) {
    let home = Home::new("").shell_task("job", "echo hello").task("elsewhere", "title = \"E\"\nagent = \"external\"");
    // The key is part of what is said about it.
    let evil = "title = \"Bad\"\n\"x\\n2026-01-01T00:00:00Z  INFO forged\\u001b[2J\" = 1\n";
    let home = home.task("bad", evil);
    let filter = "info,rejoin::delivery=info";
    let server = home.spawn(&[("REJOIN__LOG__FORMAT", format), ("RUST_LOG", filter)]).await;
    let mut page = Page::open(&server.client, "job").await;
    let run = server.client.run("job").await;
    page.sees_end().await;
    page.cut();
    page.connect().await;
    server.client.run("job").await;
    page.sees_end().await;
    // A program elsewhere says why it failed.
    let (_, answer) = server.client.post("/tasks/elsewhere/runs", json!({})).await;
    let outside = answer["run"]["id"].as_str().unwrap().to_owned();
    let why = "y\n2026-01-01T00:00:00Z  INFO forged\u{1b}[2J";
    let end = json!({ "n": 1, "kind": "status", "data": { "state": "failed", "reason": why } });
    let feed = server.client.request(reqwest::Method::POST, &format!("/runs/{outside}/events"));
    assert!(feed.body(format!("{end}\n")).send().await.unwrap().status().is_success());
    server.client.ended(&outside).await;
    let mut server = server;
    assert!(server.terminate().await.success());
    (home.log(), run)
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_38_a_servers_log_as_text_says_which_run_and_is_not_forged() {
    let (log, run) = log_of_a_server("text").await;
    for line in log.lines() {
        let time = line.split(' ').next().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok_and(|at| at.as_second() > 1_780_000_000 - 86_400), "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    let has = |words: &[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&[&format!("run{{task=job run={run}}}: "), "run starts attempt=1 trigger=\"hand\""]), "{log}");
    assert!(
        has(&[&format!("run{{task=job run={run}}}: "), "run ended", "state=\"succeeded\"", "duration_ms="]),
        "{log}"
    );
    assert!(has(&["Detected WebSocket reconnection for chat=job, resuming updates", "task=job"]), "{log}");
    assert!(has(&["Sent tool_result message to user=admin, session=c-", "chat=job", "kind=\"tool_result\" seq="]));
    assert!(has(&[r"x\n2026-01-01T00:00:00Z  INFO forged\u{1b}[2J"]), "what is wrong with the file is said: {log}");
    assert!(has(&["run ended", r"y\n2026-01-01T00:00:00Z  INFO forged"]), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_38_a_servers_log_as_json_says_which_run_and_is_not_forged() {
    let (log, run) = log_of_a_server("json").await;
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        assert!(line["timestamp"].is_string() && line["level"].is_string() && line["target"].is_string(), "{line}");
    }
    let find = |message: &str| {
        let found =
            lines.iter().find(|line| line["fields"]["message"].as_str().is_some_and(|m| m.starts_with(message)));
        found.unwrap_or_else(|| panic!("no line {message}: {log}"))
    };
    let starts = find("run starts");
    assert_eq!(starts["span"], json!({ "name": "run", "task": "job", "run": run }), "{starts}");
    assert_eq!((&starts["fields"]["attempt"], &starts["fields"]["trigger"]), (&json!(1), &json!("hand")));
    let ended = find("run ended");
    assert_eq!(ended["span"]["run"], run.as_str());
    assert!(ended["fields"]["duration_ms"].is_u64(), "{ended}");
    let back = find("Detected WebSocket reconnection for chat=job");
    assert_eq!((&back["fields"]["task"], &back["fields"]["user"]), (&json!("job"), &json!("admin")));
    let sent = find("Sent tool_result message");
    assert!(sent["fields"]["seq"].is_string() && sent["fields"]["kind"] == "tool_result", "{sent}");
    assert_eq!(sent["target"], "rejoin::delivery");
    let made = find("WebSocket forwarder created: task=job, chat=job, user=admin");
    assert!(made["fields"]["connection"].is_u64());
}
