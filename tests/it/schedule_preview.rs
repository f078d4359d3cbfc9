//! What a schedule means is shown before it is saved; a schedule or a policy that means nothing is refused with one reason,
//! whichever way it is given.

use std::process::Output;

use jiff::Timestamp;
use rejoin::clock::Clock;
use serde_json::{Value, json};

use crate::harness::{Home, InProcess, REJOIN};

async fn rejoin(server: &InProcess, line: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(REJOIN);
    command.args(line).args(["--server", &format!("http://{}", server.client.address)]);
    command.env("REJOIN_TOKEN", &server.client.token).output().await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn file(schedule: &str) -> String {
    format!("title = \"T\"\n[schedule]\n{schedule}\n[[steps]]\nrun = \"true\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_shown_in_words_with_its_zone_and_what_the_clock_does_to_it_before_it_is_saved() {
    // The night in which Berlin's clock goes back.
    let before: Timestamp = "2026-10-24T10:00:00Z".parse().unwrap();
    let home = Home::new("");
    let server = home.serve_at(Clock::standing_at(before)).await;
    let flags = ["--run", "true", "--cron", "30 2 * * 6,0", "--tz", "Europe/Berlin"];
    let words = "every Saturday and Sunday at 02:30 in Berlin";
    let marked = "2026-10-25T02:30:00+02:00";

    let dry =
        rejoin(&server, &[&["tasks", "add", "Weekend", "--dry-run", "--jitter", "5m"][..], &flags].concat()).await;
    assert!(dry.status.success(), "{}", err(&dry));
    let spread = format!("It would run {words}, spread over 5 minutes. The next times are in Europe/Berlin.");
    assert!(out(&dry).contains(&spread), "{}", out(&dry));
    let line = out(&dry).lines().find(|line| line.contains(marked)).unwrap().to_owned();
    assert!(line.ends_with("clock goes back: first passing"), "{line}");
    assert_eq!(server.client.get("/tasks").await.1["items"], json!([]), "nothing was made");
    let dry = rejoin(&server, &[&["tasks", "add", "Weekend", "--dry-run", "--json"][..], &flags].concat()).await;
    let shown: Value = serde_json::from_str(&out(&dry)).unwrap();
    assert_eq!((&shown["words"], &shown["zone"]), (&json!(words), &json!("Europe/Berlin")), "{shown}");

    let asked = json!({ "cron": "30 2 * * 6,0", "tz": "Europe/Berlin", "n": 1 });
    let preview = server.client.post("/schedule/preview", asked).await.1;
    let item = json!({ "at": marked, "planned_for": null, "note": "clock goes back: first passing" });
    assert_eq!(preview, json!({ "items": [item], "words": words, "zone": "Europe/Berlin" }));

    let made = rejoin(&server, &[&["tasks", "add", "Weekend", "--stagger"][..], &flags].concat()).await;
    assert!(out(&made).contains(&format!("runs  {words}, and ")), "{}", out(&made));
    let task = server.client.get("/tasks/weekend").await.1;
    let moved = task["schedule_words"].as_str().unwrap();
    assert!(moved.starts_with(words) && moved.ends_with(" later"), "{task}");
    for line in [&["tasks", "show", "weekend"][..], &["tasks", "list"]] {
        let shown = rejoin(&server, line).await;
        assert!(out(&shown).contains(moved), "{}", out(&shown));
    }
    let next = rejoin(&server, &["tasks", "next", "weekend", "-n", "1"]).await;
    assert!(err(&next).contains(&format!("Task weekend runs {moved}. Times are in Europe/Berlin.")), "{}", err(&next));
    assert!(out(&next).contains(marked) && out(&next).contains("planned for 2026-10-25T0"), "{}", out(&next));

    let nightly = home.path().join("nightly.toml");
    std::fs::write(&nightly, file("cron = \"0 3 * * 1-5\"\ntz = \"Europe/Berlin\"")).unwrap();
    let config = home.path().join("config.toml");
    let config = config.to_str().unwrap();
    let checked = rejoin(&server, &["tasks", "validate", nightly.to_str().unwrap(), "--config", config]).await;
    assert!(
        out(&checked).ends_with("nightly.toml: good, runs every weekday at 03:00 in Berlin\n"),
        "{}",
        out(&checked)
    );
    server.stop().await;
}

/// Has a task with this table, whose `field` cannot be, refused for one reason in its file, by the call with and
/// without `dry_run`, and by the command with these flags.
async fn assert_refused(server: &InProcess, home: &Home, field: &str, table: &Value, flags: &[String], reason: &str) {
    let path = home.path().join("bad.toml");
    let toml = toml::to_string(table).unwrap();
    std::fs::write(&path, format!("title = \"T\"\n{toml}\n[[steps]]\nrun = \"true\"\n")).unwrap();
    let config = home.path().join("config.toml");
    let line = ["tasks", "validate", path.to_str().unwrap(), "--config", config.to_str().unwrap()];
    let of_file = rejoin(server, &line).await;
    assert_eq!(of_file.status.code(), Some(2), "{table}: {of_file:?}");
    let said = out(&of_file);
    assert!(said.contains(&format!("{field}: ")) && said.contains(reason), "{table}: {said}");

    let mut task = json!({ "title": "T", "steps": [{ "run": "true" }] });
    task.as_object_mut().unwrap().extend(table.as_object().unwrap().clone());
    for call in ["/tasks", "/tasks?dry_run=true"] {
        let (status, problem) = server.client.post(call, task.clone()).await;
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{call}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{call}: {problem}");
    }

    let line: Vec<&str> =
        ["tasks", "add", "T", "--run", "true"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    for line in [&line[..], &[&line[..], &["--dry-run"]].concat()] {
        let refused = rejoin(server, line).await;
        // Of a few words to choose from the command has the list itself.
        let reason = if reason.contains("is not known") { "possible values" } else { reason };
        assert_eq!(refused.status.code(), Some(2), "{line:?}: {}", err(&refused));
        assert!(err(&refused).contains(reason) && out(&refused).is_empty(), "{line:?}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_cannot_be_is_refused_for_one_reason_in_file_call_preview_and_command() {
    let home = Home::new("");
    let server = home.serve_at(Clock::standing_at("2026-05-01T12:00:00Z".parse().unwrap())).await;
    for (schedule, field, reason) in [
        (json!({ "cron": "0 0 31 2 *" }), "cron", "is a date that never comes"),
        (json!({ "cron": "0 3 * * *", "tz": "Europe/Berln" }), "tz", "did you mean \"Europe/Berlin\"?"),
        (json!({ "every": "100ms" }), "every", "is too often: one second is the shortest"),
        (
            json!({ "every": "1h", "jitter": "1h" }),
            "jitter",
            "less than the shortest time between two slots, which is 1h",
        ),
        (json!({ "cron": "0 2,3 * * *", "jitter": "90m" }), "jitter", "between two slots, which is 1h"),
        (json!({ "every": "1h", "jitter": "5" }), "jitter", "is not a length of time"),
        (json!({ "every": "1h", "jitter": "-5m" }), "jitter", "is less than nothing"),
        (json!({ "every": "1h", "jitter": "0s" }), "jitter", "must be more than nothing"),
        (json!({ "at": "2099-12-01T03:00", "jitter": "24h" }), "jitter", "must be less than 24h"),
        (json!({ "at": "2026-10-25T02:30", "tz": "Europe/Berlin" }), "at", "comes twice in Europe/Berlin"),
        (json!({ "at": "2027-03-28T02:30", "tz": "Europe/Berlin" }), "at", "does not exist in Europe/Berlin"),
    ] {
        let flags = schedule.as_object().unwrap().iter();
        let flags: Vec<_> = flags.map(|(key, value)| format!("--{key}={}", value.as_str().unwrap())).collect();
        assert_refused(&server, &home, &format!("schedule.{field}"), &json!({ "schedule": schedule }), &flags, reason)
            .await;

        let (status, problem) = server.client.post("/schedule/preview", schedule.clone()).await;
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{problem}");
    }
    assert_eq!(server.client.get("/tasks").await.1["items"], json!([]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_cannot_be_is_refused_for_one_reason_in_file_call_and_command() {
    let home = Home::new("[pools]\ndisks = 1\n");
    let server = home.serve_at(Clock::standing_at("2026-05-01T12:00:00Z".parse().unwrap())).await;
    for (field, value, reason) in [
        ("overlap", json!("both"), "\"both\" is not known: there are \"skip\""),
        ("queue_limit", json!(0), "0 is not from 1 to 10000"),
        ("catchup", json!("some"), "\"some\" is not known: there are \"none\""),
        ("catchup_window", json!("6"), "is not a length of time"),
        ("catchup_limit", json!(10_001), "10001 is not from 1 to 10000"),
        ("timeout", json!("0s"), "must be more than nothing"),
        ("timeout", json!("11y"), "months and years have no fixed length"),
        ("idle_timeout", json!("-5m"), "is less than nothing"),
        ("retries", json!(101), "101 is not from 0 to 100"),
        ("backoff", json!("10m..30s"), "begins with the longer one"),
        ("retry_on", json!([0]), "0 is not the exit code of a failure"),
        ("on_crash", json!("cry"), "\"cry\" is not known: there are \"fail\""),
        ("pause_after", json!(1001), "1001 is not from 0 to 1000"),
        ("concurrency", json!("disk"), "there is no pool \"disk\""),
        ("keep.runs", json!(0), "0 is not from 1 to"),
        ("keep.bytes", json!("much"), "\"much\" is not a size"),
    ] {
        let (key, member) = field.split_once('.').map_or((field, None), |(key, member)| (key, Some(member)));
        let policy = json!({ key: member.map_or(value.clone(), |member| json!({ member: value })) });
        let plain = value.to_string().trim_matches(['"', '[', ']']).to_owned();
        let flag =
            format!("--{}={}{plain}", key.replace('_', "-"), member.map_or(String::new(), |name| format!("{name}=")));
        assert_refused(&server, &home, &format!("policy.{field}"), &json!({ "policy": policy }), &[flag], reason).await;
    }
    assert_eq!(server.client.get("/tasks").await.1["items"], json!([]), "nothing was made");
    server.stop().await;
}
