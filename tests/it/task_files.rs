//! Task files and tasks as JSON: what is taken, what is refused and what is said then.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rejoin::task::definition::{
    Action, AgentKind, Backoff, Catchup, Definition, Keep, OnCrash, OnError, Overlap, Param, Policy, Schedule,
    SecretSource, Step, Terms, When,
};
use rejoin::task::parse::{from_json, from_toml, patched, run_params, schedule_from_json};
use rejoin::task::telling::{Occasion, Telling};
use serde_json::json;

/// The file that the guide shows.
const MAINTENANCE: &str = r#"
title = "Run smart maintenance"
description = "Looks after this machine."
agent = "steps"

[schedule]
cron = "0 3 * * *"
tz = "Europe/Berlin"

[policy]
overlap = "skip"
timeout = "20m"

[params]
disk_limit_percent = { default = 85, help = "Warn above this" }

[secrets]
API_KEY = { env = "MY_KEY" }
CERT = { file = "/etc/key.pem" }

[[steps]]
name = "disks"
thought = "Which file systems are nearly full?"
run = "df -P -x tmpfs -x devtmpfs"
attention = 'output.matches("(9[0-9]|100)%")'
summary = "A file system is above 90 %"

[[steps]]
name = "largest"
when = 'steps.disks.output.matches("(9[0-9]|100)%")'
thought = "One is above the limit: what takes the space?"
run = """
du -xh --max-depth=2 / 2>/dev/null |
  sort -rh | head -20
"""
timeout = "2m"
on_error = "continue"

[[steps]]
http = { url = "https://example.org/health", expect_status = [200, 204], headers = { accept = "text/plain" } }
on_error = 3

[[steps]]
write = { path = "/tmp/report", content = "${steps.disks.output}", append = true }
"#;

/// The least that is a task, with one thing more.
fn task(more: &str) -> String {
    format!("title = \"T\"\n{more}\n[[steps]]\nrun = \"true\"\n")
}

fn read(text: &str) -> Result<Definition, String> {
    from_toml("tasks/t.toml", text, &Policy::default()).map_err(|problems| problems.to_string())
}

fn refused(text: &str) -> String {
    read(text).expect_err(text)
}

#[test]
fn a_task_file_is_read_as_it_says() {
    let task = read(MAINTENANCE).unwrap();
    assert_eq!(task.title, "Run smart maintenance");
    assert_eq!(
        task.schedule,
        Some(When::Cron { expression: "0 3 * * *".into(), zone: Some("Europe/Berlin".into()) }.into())
    );
    assert_eq!(task.policy.timeout, Duration::from_secs(1200));
    assert_eq!(task.params["disk_limit_percent"].default, Some(json!(85)));
    assert_eq!(task.secrets["API_KEY"], SecretSource::Env("MY_KEY".into()));
    assert_eq!(task.secrets["CERT"], SecretSource::File("/etc/key.pem".into()));
    let names: Vec<&str> = task.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["disks", "largest", "step3", "step4"]);
    assert_eq!(task.steps[1].timeout, Some(Duration::from_secs(120)));
    assert_eq!(task.steps[1].on_error, OnError::Continue);
    assert_eq!(task.steps[2].on_error, OnError::Retry(3));
    let Action::Http { method, expect_status, .. } = &task.steps[2].action else { panic!() };
    assert_eq!((method.as_str(), expect_status.as_slice()), ("GET", [200, 204].as_slice()));
    assert!(matches!(&task.steps[3].action, Action::Write { append: true, .. }));
}

#[test]
fn a_task_that_says_nothing_of_its_policy_has_the_one_of_the_config() {
    let defaults = Policy {
        overlap: Overlap::Queue,
        queue_limit: 3,
        catchup: Catchup::None,
        catchup_window: Some(Duration::from_secs(60)),
        catchup_limit: 4,
        timeout: Duration::from_secs(5),
        idle_timeout: Some(Duration::from_secs(2)),
        retries: 7,
        backoff: "1s..5s".parse().unwrap(),
        retry_on: vec![75, 111],
        on_crash: OnCrash::Retry,
        pause_after: 9,
        keep: Keep { runs: Some(7), ..Keep::default() },
        concurrency: None,
    };
    let read = |text: &str| from_toml("t.toml", text, &defaults).unwrap().policy;
    assert_eq!(read(&task("")), defaults);
    let mixed = read(&task(
        "[policy]\ncatchup_window = \"auto\"\noverlap = \"skip\"\nidle_timeout = \"none\"\nretries = 0\nretry_on = []\npause_after = 0\n",
    ));
    let zeros = Policy { idle_timeout: None, retries: 0, retry_on: Vec::new(), pause_after: 0, ..defaults.clone() };
    assert_eq!(mixed, Policy { overlap: Overlap::Skip, catchup_window: None, ..zeros });
}

#[test]
fn the_forms_of_a_schedule_are_read() {
    let schedule = |text: &str| read(&task(&format!("[schedule]\n{text}"))).unwrap().schedule.unwrap();
    assert_eq!(schedule("every = \"1h30m\""), Schedule::from(When::Every { period: Duration::from_secs(5400) }));
    let at: Schedule = When::At { time: "2026-12-01T03:00:00".into(), zone: Some("UTC".into()) }.into();
    assert_eq!(schedule("at = \"2026-12-01T03:00:00\"\ntz = \"UTC\""), at);
    assert_eq!(schedule("at = 2026-12-01T03:00:00\ntz = \"UTC\""), at);
    // A file stays when its time has come.
    schedule("at = \"2001-01-01T00:00Z\"");
}

#[test]
fn each_mistake_is_told_with_file_line_column_and_key() {
    for (more, expected) in [
        ("tittle = \"x\"", "tasks/t.toml:2:1: tittle: is not known: did you mean \"title\"?"),
        ("description = 7", "tasks/t.toml:2:15: description: must be text, is a number"),
        ("agent = \"model\"", "tasks/t.toml:2:9: agent: \"model\" comes later: in this version there are \"steps\""),
        ("agent = \"magic\"", "tasks/t.toml:2:9: agent: \"magic\" is not known: there are \"steps\""),
        (
            "instruction = \"do it\"",
            "tasks/t.toml:2:15: instruction: no agent of this version takes it: write the work as [[steps]]",
        ),
        (
            "[schedule]\ncron = \"0 0 31 2 *\"",
            "tasks/t.toml:3:8: schedule.cron: \"0 0 31 2 *\" is a date that never comes",
        ),
        (
            "[schedule]\ncron = \"0 0 * * *\"\ntz = \"Europe/Berln\"",
            "tasks/t.toml:4:6: schedule.tz: \"Europe/Berln\" is not a time zone: did you mean \"Europe/Berlin\"?",
        ),
        (
            "[schedule]\nevery = \"1m\"\ncron = \"* * * * *\"",
            "tasks/t.toml:2:1: schedule: takes one of cron, every and at, has cron and every",
        ),
        ("[schedule]", "tasks/t.toml:2:1: schedule: needs one of cron, every and at"),
        (
            "[schedule]\nevery = \"1m\"\ntz = \"UTC\"",
            "tasks/t.toml:4:6: schedule.tz: has no effect with every, which counts elapsed time: take it out",
        ),
        ("[schedule]\nevery = 30", "tasks/t.toml:3:9: schedule.every: must have a unit, like \"30s\" or \"5m\""),
        ("[schedule]\nevery = \"0s\"", "tasks/t.toml:3:9: schedule.every: must be more than nothing"),
        (
            "[schedule]\nevery = \"100ms\"",
            "tasks/t.toml:3:9: schedule.every: every 100ms is too often: one second is the shortest",
        ),
        (
            "[schedule]\ncron = \"*/5 * * * *\"\njitter = \"5m\"",
            "tasks/t.toml:4:10: schedule.jitter: must be less than the shortest time between two slots, which is 5m",
        ),
        (
            "[schedule]\nevery = \"1h\"\njitter = \"1h\"",
            "tasks/t.toml:4:10: schedule.jitter: must be less than the shortest time between two slots, which is 1h",
        ),
        (
            "[schedule]\nat = \"2099-01-01T00:00\"\njitter = \"25h\"",
            "tasks/t.toml:4:10: schedule.jitter: must be less than 24h",
        ),
        (
            "[schedule]\nevery = \"1h\"\njitter = \"0s\"",
            "tasks/t.toml:4:10: schedule.jitter: must be more than nothing",
        ),
        (
            "[schedule]\nevery = \"1h\"\njitter = 5",
            "tasks/t.toml:4:10: schedule.jitter: must have a unit, like \"30s\" or \"5m\"",
        ),
        (
            "[schedule]\nevery = \"1h\"\njitter = \"-5m\"",
            "tasks/t.toml:4:10: schedule.jitter: \"-5m\" is less than nothing",
        ),
        (
            "[schedule]\nevery = \"1h\"\nstagger = \"5m\"",
            "tasks/t.toml:4:11: schedule.stagger: must be true or false, is text",
        ),
        (
            "[policy]\noverlap = \"sometimes\"",
            "tasks/t.toml:3:11: policy.overlap: \"sometimes\" is not known: there are \"skip\", \"queue\", \"replace\" and \"allow\"",
        ),
        (
            "[policy]\ncatchup = \"first\"",
            "tasks/t.toml:3:11: policy.catchup: \"first\" is not known: there are \"none\", \"last\" and \"all\"",
        ),
        ("[policy]\ncatchup_limit = 0", "tasks/t.toml:3:17: policy.catchup_limit: 0 is not from 1 to 10000"),
        ("[policy]\nkeep = 5", "tasks/t.toml:3:8: policy.keep: must be a table, is a number"),
        ("[policy]\nkeep = { runs = 0 }", "tasks/t.toml:3:17: policy.keep.runs: 0 is not from 1 to 1000000000000"),
        ("[policy]\nkeep = { days = \"7d\" }", "tasks/t.toml:3:17: policy.keep.days: must be a whole number, is text"),
        ("[policy]\nkeep = { days = 40000 }", "tasks/t.toml:3:17: policy.keep.days: 40000 is not from 1 to 36525"),
        (
            "[policy]\nkeep = { events = -1 }",
            "tasks/t.toml:3:19: policy.keep.events: -1 is not from 1 to 1000000000000",
        ),
        (
            "[policy]\nkeep = { bytes = \"1 MiBs\" }",
            "tasks/t.toml:3:18: policy.keep.bytes: \"1 MiBs\" is not a size: write it like \"16 MiB\" or as a number of bytes",
        ),
        ("[policy]\nkeep = { bytes = 0 }", "tasks/t.toml:3:18: policy.keep.bytes: must be more than nothing"),
        ("[policy]\nkeep = { runz = 5 }", "tasks/t.toml:3:10: policy.keep.runz: is not known: did you mean \"runs\"?"),
        ("[policy]\nqueue_limit = 0", "tasks/t.toml:3:15: policy.queue_limit: 0 is not from 1 to 10000"),
        ("[policy]\nretries = 101", "tasks/t.toml:3:11: policy.retries: 101 is not from 0 to 100"),
        ("[policy]\nretry_on = [1, 0]", "tasks/t.toml:3:16: policy.retry_on: 0 is not the exit code of a failure"),
        (
            "[policy]\nbackoff = \"1m..30s\"",
            "tasks/t.toml:3:11: policy.backoff: \"1m..30s\" begins with the longer one",
        ),
        ("[policy]\ntimeout = \"-5m\"", "tasks/t.toml:3:11: policy.timeout: \"-5m\" is less than nothing"),
        (
            "[params]\nBad = {}",
            "tasks/t.toml:3:1: params.Bad: must be a name of a-z, 0-9 and '_', beginning with a letter, at most 64 long",
        ),
        (
            "[params]\na = { default = [1] }",
            "tasks/t.toml:3:17: params.a.default: must be text, a number, true or false; is a list",
        ),
        ("[params]\na = 5", "tasks/t.toml:3:5: params.a: must be a table, is a number"),
        (
            "[secrets]\nPATH = { env = \"X\" }",
            "tasks/t.toml:3:1: secrets.PATH: PATH stays the server's: give the secret another name",
        ),
        (
            "[secrets]\nKEY = { env = \"X\", file = \"y\" }",
            "tasks/t.toml:3:7: secrets.KEY: takes one of { env = \"VARIABLE\" } and { file = \"path\" }; its value never stands in a task",
        ),
        ("[policy]\nconcurrency = 3", "tasks/t.toml:3:15: policy.concurrency: must be text, is a number"),
        ("[policy]\nconcurrency = \"\"", "tasks/t.toml:3:15: policy.concurrency: must not be empty"),
        ("[secrets]\nKEY = \"hunter2\"", "tasks/t.toml:3:7: secrets.KEY: must be a table, is text"),
        ("summary = \"x\"", "tasks/t.toml:2:11: summary: goes with attention, which is not there"),
        ("attention = \"1 +\"", "tasks/t.toml:2:13: attention: is not a condition: "),
        ("title = \"again\"", "tasks/t.toml:2:1: duplicate key"),
    ] {
        let said = refused(&task(more));
        assert!(said.starts_with(expected), "{more}\n{said}\n{expected}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn each_mistake_in_a_step_is_told_with_its_place() {
    for (step, expected) in [
        ("", "tasks/t.toml:2:1: steps[0]: does nothing: it needs one of run, http and write"),
        ("run = \"\"", "tasks/t.toml:3:7: steps[0].run: must not be empty"),
        ("run = \"  \\n \"", "tasks/t.toml:3:7: steps[0].run: must not be empty"),
        ("run = \"a\\u0000b\"", "tasks/t.toml:3:7: steps[0].run: must not have a zero byte"),
        (
            "run = \"a\"\nhttp = { url = \"http://a\" }",
            "tasks/t.toml:2:1: steps[0]: does more than one thing: run and http; make each a step",
        ),
        ("run = \"a\"\nname = \"Big\"", "tasks/t.toml:4:8: steps[0].name: must be a name of"),
        (
            "run = \"a\"\nname = \"x\"\n[[steps]]\nrun = \"b\"\nname = \"x\"",
            "tasks/t.toml:7:8: steps[1].name: another step is named \"x\"",
        ),
        (
            "run = \"a\"\nname = \"step2\"\n[[steps]]\nrun = \"b\"",
            "tasks/t.toml:5:1: steps[1].name: another step is named \"step2\"",
        ),
        ("run = \"a\"\nwhen = \"steps.\"", "tasks/t.toml:4:8: steps[0].when: is not a condition: "),
        ("run = \"a\"\ntimeout = \"0s\"", "tasks/t.toml:4:11: steps[0].timeout: must be more than nothing"),
        (
            "run = \"a\"\non_error = \"ignore\"",
            "tasks/t.toml:4:12: steps[0].on_error: \"ignore\" is not known: there are",
        ),
        ("run = \"a\"\non_error = 0", "tasks/t.toml:4:12: steps[0].on_error: 0 is not a number of retries"),
        ("run = \"a\"\nretries = 2", "tasks/t.toml:4:1: steps[0].retries: comes later"),
        ("run = \"a\"\ntimout = \"2s\"", "tasks/t.toml:4:1: steps[0].timout: is not known: did you mean \"timeout\"?"),
        (
            "http = { url = \"ftp://a\" }",
            "tasks/t.toml:3:16: steps[0].http.url: \"ftp://a\" must begin with http:// or https://",
        ),
        (
            "http = { url = \"https://me:pw@a/\" }",
            "tasks/t.toml:3:16: steps[0].http.url: must not have a name or password",
        ),
        ("http = { method = \"GET\" }", "tasks/t.toml:3:8: steps[0].http.url: is missing"),
        (
            "http = { url = \"http://a\", method = \"BREW\" }",
            "tasks/t.toml:3:37: steps[0].http.method: \"BREW\" is not known",
        ),
        (
            "http = { url = \"http://a\", expect_status = 42 }",
            "tasks/t.toml:3:44: steps[0].http.expect_status: must be a status",
        ),
        (
            "http = { url = \"http://a\", headers = { \"a b\" = \"c\" } }",
            "tasks/t.toml:3:40: steps[0].http.headers.a b: is not the name of a header",
        ),
        (
            "http = { url = \"http://a\", allow_hosts = [\"http://b\"] }",
            "tasks/t.toml:3:43: steps[0].http.allow_hosts: must be a list of host names",
        ),
        ("write = { path = \"/tmp/a\" }", "tasks/t.toml:3:9: steps[0].write.content: is missing"),
    ] {
        let said = refused(&format!("title = \"T\"\n[[steps]]\n{step}\n"));
        assert!(said.starts_with(expected), "{step}\n{said}\n{expected}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_pool_is_one_of_the_configuration_and_nothing_that_is_carried_out_elsewhere_takes_its_places() {
    let pools = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let terms = |names: &[&str]| Terms { pools: Some(Arc::new(pools(names))), ..Terms::default() };
    let text = task("[policy]\nconcurrency = \"disk\"");
    let read = |terms: Terms| from_toml("t.toml", &text, &terms).map_err(|problems| problems.to_string());
    assert_eq!(read(terms(&["disk", "net"])).unwrap().policy.concurrency.as_deref(), Some("disk"));
    assert_eq!(
        read(terms(&["net"])).unwrap_err(),
        "t.toml:3:15: policy.concurrency: there is no pool \"disk\" in [pools] of config.toml: there are \"net\""
    );
    assert_eq!(
        read(terms(&[])).unwrap_err(),
        "t.toml:3:15: policy.concurrency: there is no pool \"disk\": name it with its size in [pools] of config.toml"
    );
    // A task of the store stays what it is when its pool goes.
    assert_eq!(read(Policy::default().into()).unwrap().policy.concurrency.as_deref(), Some("disk"));
    let elsewhere = "title = \"T\"\nagent = \"external\"\n[policy]\nconcurrency = \"disk\"\n";
    assert_eq!(
        refused(elsewhere),
        "tasks/t.toml:4:15: policy.concurrency: agent \"external\" takes no places here: take it out, or agent"
    );
}

#[test]
fn names_that_decide_what_runs_are_no_secrets() {
    for name in ["PATH", "LD_PRELOAD", "ld_library_path", "REJOIN_TOKEN", "BASH_ENV", "PYTHONPATH", "IFS", "1A", "A-B"]
    {
        assert!(
            refused(&task(&format!("[secrets]\n\"{name}\" = {{ env = \"X\" }}"))).contains(&format!("secrets.{name}"))
        );
    }
    read(&task("[secrets]\nGITHUB_TOKEN = { env = \"X\" }")).unwrap();
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_text() {
    let said = refused("titel = \"x\"\n[policy]\ntimeout = 5\n[[steps]]\nrun = 7\n[[steps]]\nrum = \"a\"\n");
    let keys: Vec<&str> = said.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(keys, ["titel", "policy.timeout", "steps[0].run", "steps[1]", "steps[1].rum", "title"], "{said}");
}

#[test]
fn a_task_without_a_title_or_with_one_too_long_or_without_steps_is_refused() {
    assert_eq!(refused("[[steps]]\nrun = \"a\"\n"), "tasks/t.toml: title: is missing: a task needs a title");
    assert_eq!(refused("title = \"a\"\n"), "tasks/t.toml: steps: is missing: write at least one [[steps]]");
    assert_eq!(refused("title = \"a\"\nsteps = []\n"), "tasks/t.toml:2:9: steps: is empty: there is nothing to do");
    let title = "ü".repeat(120);
    assert_eq!(read(&format!("title = \"{title}\"\n[[steps]]\nrun = \"a\"\n")).unwrap().title, title);
    assert!(refused(&format!("title = \"{title}x\"\n[[steps]]\nrun = \"a\"\n")).contains("has 121 characters"));
    assert!(refused("title = \"a\\nb\"\n[[steps]]\nrun = \"a\"\n").contains("must be one line"));
    assert!(refused("title = \"a\\u001bb\"\n[[steps]]\nrun = \"a\"\n").contains("control characters"));
}

#[test]
fn a_text_that_is_not_toml_is_told_with_its_place() {
    let said = refused("title = \"a\nsteps");
    assert_eq!(said, "tasks/t.toml:1:11: invalid basic string, expected `\"`");
}

#[test]
fn a_condition_of_any_depth_is_read_or_refused_and_ends_nothing() {
    let with = |condition: String| read(&task(&format!("attention = '{condition}'"))).map(|_| ());
    let brackets = |n: usize| format!("{}1{}", "(".repeat(n), ")".repeat(n));
    assert_eq!(with(brackets(90)), Ok(()));
    assert!(with(brackets(2000)).unwrap_err().ends_with("attention: is not a condition: its brackets go too deep"));
    assert!(with("[".repeat(4096)).is_err());
    assert!(with("!".repeat(4096)).is_err());
    assert!(with(brackets(3000)).unwrap_err().contains("at most 4096 are taken"));
    assert!(read(&task(&format!("x = {}", "[".repeat(100_000)))).is_err());
    assert!(read(&task(&format!("x{} = 1", ".x".repeat(100_000)))).is_err());
}

#[test]
fn what_is_wrong_with_a_condition_is_told_in_one_short_line() {
    for (condition, said) in [
        ("1 +", "1:4: Syntax error: mismatched input '<EOF>'"),
        ("a b", "1:3: Syntax error: extraneous input 'b'"),
        ("has(1)", "1:5: invalid argument to has() macro"),
    ] {
        let problem = refused(&task(&format!("attention = '{condition}'")));
        assert_eq!(problem, format!("tasks/t.toml:2:13: attention: is not a condition: {said}"));
    }
}

#[test]
fn a_task_as_json_is_read_with_the_same_checks() {
    let posted = from_json(
        &json!({"id": "my-task", "run": false, "title": "T", "schedule": {"every": "30m"},
                "params": {"a": {"default": 1.5}}, "steps": [{"run": "true"}], "summary": null}),
        &Policy::default(),
    )
    .unwrap();
    assert_eq!(posted.id.unwrap().as_str(), "my-task");
    assert!(!posted.run);
    assert_eq!(posted.definition.schedule, Some(When::Every { period: Duration::from_secs(1800) }.into()));
    assert!(from_json(&json!({"title": "T", "steps": [{"run": "a"}]}), &Policy::default()).unwrap().run);
    for (value, key, part) in [
        (json!([]), "", "must be a table"),
        (json!({"title": "T"}), "steps", "is missing"),
        (json!({"title": "T", "steps": [{"run": ""}]}), "steps[0].run", "must not be empty"),
        (json!({"title": "T", "id": "A B", "steps": [{"run": "a"}]}), "id", "is not a task id"),
        (json!({"title": "T", "run": 1, "steps": [{"run": "a"}]}), "run", "true or false"),
        (json!({"title": "T", "steps": [{"run": "a", "on_error": 1e300}]}), "steps[0].on_error", "is a number"),
        (json!({"title": "T", "instruction": "x", "steps": [{"run": "a"}]}), "instruction", "no agent"),
        (
            json!({"title": "T", "policy": {"overlap": "never"}, "steps": [{"run": "a"}]}),
            "policy.overlap",
            "is not known",
        ),
    ] {
        let problems = from_json(&value, &Policy::default()).unwrap_err();
        let problem = problems.first();
        assert_eq!((problem.key.as_str(), problem.line, problem.file.as_ref()), (key, None, None), "{value}");
        assert!(problem.message.contains(part), "{value}: {problem}");
    }
}

#[test]
fn numbers_are_taken_as_they_are_written() {
    let default = |text: &str| read(&task(&format!("params.a.default = {text}"))).unwrap().params["a"].default.clone();
    for (text, value) in
        [("1_000", json!(1000)), ("0xff", json!(255)), ("-7", json!(-7)), ("1_0.5", json!(10.5)), ("85.0", json!(85.0))]
    {
        assert_eq!(default(text), Some(value), "{text}");
    }
    for text in ["inf", "nan", "1979-05-27"] {
        assert!(refused(&task(&format!("params.a.default = {text}"))).contains("must be text, a number"), "{text}");
    }
    let posted = |value| {
        let task = json!({"title": "T", "steps": [{"run": "a"}], "params": {"a": {"default": value}}});
        from_json(&task, &Policy::default()).map(|posted| posted.definition.params["a"].default.clone())
    };
    assert_eq!(posted(json!(85.0)), Ok(Some(json!(85.0))));
    assert!(posted(json!(u64::MAX)).unwrap_err().to_string().contains("a number that is too large"));
}

#[test]
fn a_schedule_alone_is_read_with_the_same_checks() {
    let read = schedule_from_json(&json!({"every": "30m"})).unwrap();
    assert_eq!(read, When::Every { period: Duration::from_secs(1800) }.into());
    for (value, key, part) in [
        (json!({"cron": "0 0 31 2 *"}), "cron", "never comes"),
        (json!({"cron": "@daily", "tz": "Berln"}), "tz", "did you mean"),
        (json!({"every": "0s"}), "every", "more than nothing"),
        (json!({}), "", "needs one of"),
        (json!({"every": "30m", "tz": "Asia/Tokyo"}), "tz", "has no effect with every"),
        (json!({"every": "30m", "zone": "UTC"}), "zone", "is not known"),
        (json!("x"), "", "must be a table"),
    ] {
        let problems = schedule_from_json(&value).unwrap_err();
        assert_eq!(problems.first().key, key, "{value}");
        assert!(problems.first().message.contains(part), "{problems}");
    }
}

#[test]
fn the_parameters_of_a_run_are_the_defaults_with_what_is_given_over_them() {
    let task =
        read(&task("[params]\nn = { default = 85 }\nb = { default = false }\nt = { default = \"x\" }\nany = {}\n"))
            .unwrap();
    let params = |given| run_params(&task, &given).map(|params| json!(params));
    // What a command line gives is text.
    let given = json!({"n": "90", "b": "true", "t": "5", "any": "5"});
    assert_eq!(params(given), Ok(json!({"n": 90, "b": true, "t": "5", "any": "5"})));
    assert_eq!(params(json!({"any": 5})), Ok(json!({"n": 85, "b": false, "t": "x", "any": 5})));
    for (given, key, part) in [
        (json!({}), "params.any", "must be given"),
        (json!(null), "params.any", "must be given"),
        (json!([]), "params", "must be a table"),
        (json!({"any": 1, "nn": 1}), "params.nn", "did you mean \"n\"?"),
        (json!({"any": 1, "n": "many"}), "params.n", "\"many\" is not a number"),
        (json!({"any": 1, "b": 1}), "params.b", "must be true or false"),
        (json!({"any": 1, "t": 1}), "params.t", "must be text"),
        (json!({"any": [1]}), "params.any", "must be text, a number"),
    ] {
        let problems = run_params(&task, &given).unwrap_err();
        let found = problems.all().iter().find(|problem| problem.key == key).unwrap();
        assert!(found.message.contains(part), "{given}: {problems}");
    }
}

#[test]
fn a_task_with_a_schedule_has_a_default_for_every_parameter() {
    let said = refused(&task("schedule.every = \"1h\"\nparams.a = { help = \"x\" }"));
    let expected = "tasks/t.toml:3:12: params.a: needs a default: nobody gives one when the task runs by its schedule";
    assert_eq!(said, expected);
    read(&task("params.a = { help = \"x\" }")).unwrap();
}

#[test]
fn a_change_replaces_the_members_it_names_and_null_takes_one_away() {
    let old = read(MAINTENANCE).unwrap();
    let change = |value| patched(&old, &value, &Policy::default());
    let new = change(json!({"title": "Other", "schedule": null})).unwrap();
    assert_eq!(new, Definition { title: "Other".into(), schedule: None, ..old.clone() });
    assert_eq!(change(json!({})).unwrap(), old);
    assert_eq!(change(json!({"id": "x"})).unwrap_err().first().key, "id");
    assert_eq!(change(json!({"title": null})).unwrap_err().first().key, "title");
    assert_eq!(change(json!({"steps": []})).unwrap_err().first().key, "steps");
}

#[test]
fn the_same_task_has_the_same_hash_however_it_was_written() {
    let one = read("title = \"T\"\n[schedule]\nevery = \"60m\"\n[[steps]]\nrun = \"a\"\n").unwrap();
    let two = read("steps = [{ run = \"a\", name = \"step1\" }]\nschedule.every = \"1h\"\ntitle = \"T\"\n").unwrap();
    assert_eq!(one.hash(), two.hash());
    assert_eq!(one.hash().len(), 64);
    let other = read("title = \"T\"\n[schedule]\nevery = \"61m\"\n[[steps]]\nrun = \"a\"\n").unwrap();
    assert_ne!(one.hash(), other.hash());
}

#[test]
fn an_export_reads_well() {
    let text = read(MAINTENANCE).unwrap().to_toml().unwrap();
    let order: Vec<usize> = ["title = ", "[schedule]", "[policy]", "[params", "[secrets", "[[steps]]"]
        .iter()
        .map(|part| text.find(part).unwrap_or_else(|| panic!("{part} in {text}")))
        .collect();
    assert!(order.is_sorted(), "{text}");
    // Commands of several lines stay so.
    assert!(text.contains("du -xh --max-depth=2 / 2>/dev/null |\n  sort"), "{text}");
}

fn words() -> impl Strategy<Value = String> {
    // Texts that are hard to write: quotes, backslashes, line ends, control characters, several scripts.
    prop::string::string_regex("[a-z \"'\\\\\n\r\t#=\\[\\]{}$\u{1}-\u{1f}\u{7f}äλ漢😀]{0,30}[a-z]").unwrap()
}

fn lines() -> impl Strategy<Value = String> {
    prop::string::string_regex("[a-z \"'\\\\#=äλ漢😀]{0,20}[a-z]").unwrap()
}

fn lengths() -> impl Strategy<Value = Duration> {
    (1u64..100_000_000).prop_map(Duration::from_millis)
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        words().prop_map(|command| Action::Run { command }),
        (
            prop::sample::select(vec!["GET", "POST"]),
            prop::collection::btree_map("x-[a-z]{1,5}", "[a-z \"\\\\]{0,9}", 0..3),
            prop::option::of(words()),
            prop::collection::vec(100u16..600, 0..3),
            prop::collection::vec("[a-z.]{1,9}", 0..3),
        )
            .prop_map(|(method, headers, body, expect_status, allow_hosts)| Action::Http {
                method: method.into(),
                url: "http://localhost:1/a?b=c".into(),
                headers,
                body,
                expect_status,
                allow_hosts,
            }),
        (lines(), words(), any::<bool>()).prop_map(|(path, content, append)| Action::Write {
            path: PathBuf::from(path),
            content,
            append
        }),
    ]
}

fn conditions() -> impl Strategy<Value = Option<String>> {
    prop::option::of(prop::sample::select(vec!["true", "exit == 0", "output.matches(\"a\\\\d\")", "params.a > 1"]))
        .prop_map(|condition| condition.map(str::to_owned))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let on_error = prop_oneof![Just(OnError::Stop), Just(OnError::Continue), (1u32..=100).prop_map(OnError::Retry)];
    let step = (
        conditions(),
        prop::option::of(words()),
        actions(),
        prop::option::of((conditions(), prop::option::of(lines()))),
        prop::option::of(lengths()),
        on_error,
    );
    prop::collection::vec(step, 1..5).prop_map(|steps| {
        let named = steps.into_iter().enumerate();
        named
            .map(|(n, (when, thought, action, attention, timeout, on_error))| {
                let (attention, summary) = attention.unwrap_or_default();
                let summary = summary.filter(|_| attention.is_some());
                Step { name: format!("s{n}"), when, thought, action, attention, summary, timeout, on_error }
            })
            .collect()
    })
}

fn schedules() -> impl Strategy<Value = Option<Schedule>> {
    let whens = prop_oneof![
        (60u64..100_000).prop_map(|s| When::Every { period: Duration::from_secs(s) }),
        Just(When::Cron { expression: "*/5 1-3 * * mon".into(), zone: None }),
        Just(When::Cron { expression: "@daily".into(), zone: Some("Europe/Berlin".into()) }),
        Just(When::At { time: "2026-12-01T03:00".into(), zone: Some("UTC".into()) }),
    ];
    let jitters = prop::option::of((1u64..60_000).prop_map(Duration::from_millis));
    prop::option::of((whens, jitters, any::<bool>()).prop_map(|(when, jitter, stagger)| Schedule {
        when,
        jitter,
        stagger,
    }))
}

fn definitions() -> impl Strategy<Value = Definition> {
    let default = prop::option::of(prop_oneof![
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        (-1e9f64..1e9).prop_map(|value| json!(value)),
        words().prop_map(|value| json!(value)),
    ]);
    let params = prop::collection::btree_map("[a-z][a-z0-9_]{0,8}", (default, words()), 0..3)
        .prop_map(|params| params.into_iter().map(|(name, (default, help))| (name, Param { default, help })).collect());
    let source = prop_oneof![
        "[A-Z]{1,8}".prop_map(SecretSource::Env),
        lines().prop_map(|path| SecretSource::File(PathBuf::from(path))),
    ];
    let secrets = prop::collection::btree_map("S_[A-Z]{1,8}", source, 0..3);
    let overlap = prop::sample::select(vec![Overlap::Skip, Overlap::Queue, Overlap::Replace, Overlap::Allow]);
    let catchup = prop::sample::select(vec![Catchup::None, Catchup::Last, Catchup::All]);
    let limits = (1u32..10_000, 1u32..10_000);
    let kept = || prop::option::of(1_u64..1_000_000);
    let keep = (kept(), prop::option::of(1_u32..30_000), kept(), kept()).prop_map(|(runs, days, events, bytes)| Keep {
        runs,
        days,
        events,
        bytes,
    });
    let waits =
        (lengths(), lengths()).prop_map(|(one, other)| Backoff { first: one.min(other), longest: one.max(other) });
    let codes = prop::collection::btree_set(1u8..=255, 0..4).prop_map(|codes| codes.into_iter().collect());
    let on_crash = prop::sample::select(vec![OnCrash::Fail, OnCrash::Retry]);
    let retry = (prop::option::of(lengths()), 0u32..=100, waits, codes, on_crash, 0u32..=1000);
    let pool = prop::option::of("[a-z0-9_-]{1,64}".prop_map(Arc::<str>::from));
    let policy = (overlap, catchup, limits, prop::option::of(lengths()), lengths(), retry, keep, pool).prop_map(
        |(overlap, catchup, (queue_limit, catchup_limit), catchup_window, timeout, retry, keep, concurrency)| {
            let (idle_timeout, retries, backoff, retry_on, on_crash, pause_after) = retry;
            Policy {
                overlap,
                queue_limit,
                catchup,
                catchup_window,
                catchup_limit,
                timeout,
                idle_timeout,
                retries,
                backoff,
                retry_on,
                on_crash,
                pause_after,
                keep,
                concurrency,
            }
        },
    );
    let whole = (lines(), words(), schedules(), policy, tellings(), params, secrets, steps(), conditions());
    whole.prop_map(|(title, description, schedule, policy, notify, params, secrets, steps, attention)| {
        let mut params: BTreeMap<String, Param> = params;
        if schedule.is_some() {
            params.retain(|_, param| param.default.is_some());
        }
        Definition {
            title: title.trim().to_owned(),
            description,
            agent: AgentKind::Steps,
            schedule,
            policy,
            notify,
            params,
            secrets,
            steps,
            summary: attention.is_some().then(|| "found".to_owned()),
            attention,
        }
    })
}

fn tellings() -> impl Strategy<Value = Telling> {
    let names = prop::option::of(prop::collection::btree_set("[a-z]{1,8}", 0..3));
    let on = prop::option::of(prop::sample::subsequence(Occasion::CHOICES.to_vec(), 0..=7));
    let check = prop::option::of("[A-Za-z0-9_-]{1,20}");
    (any::<bool>(), names, on, check).prop_map(|(enabled, channels, on, check)| Telling {
        enabled,
        channels: channels.map(|names| names.into_iter().collect()),
        on,
        check,
    })
}

#[test]
fn a_channel_that_is_told_is_one_of_the_configuration() {
    let terms = |names: &[&str]| {
        let channels = names.iter().map(|name| (*name).to_owned()).collect();
        Terms { channels: Some(Arc::new(channels)), ..Terms::default() }
    };
    let text = task("[notify]\nchannels = [\"team\", \"phone\"]");
    let read = |terms: Terms| from_toml("t.toml", &text, &terms).map_err(|problems| problems.to_string());
    assert_eq!(read(terms(&["phone", "team"])).unwrap().notify.channels.unwrap(), ["team", "phone"]);
    assert_eq!(
        read(terms(&["chat", "team"])).unwrap_err(),
        "t.toml:3:21: notify.channels[1]: there is no channel \"phone\" in [notify.channels] of config.toml: there are \
         \"chat\", \"team\""
    );
    let said = read(terms(&[])).unwrap_err();
    let none = |name: &str| format!("there is no channel {name:?}: set it up in [notify.channels] of config.toml");
    assert_eq!(said.lines().count(), 2, "each is said: {said}");
    assert!(said.contains(&none("team")) && said.contains(&none("phone")), "{said}");
    // A task of the store stays what it is when its channel goes.
    assert_eq!(read(Policy::default().into()).unwrap().notify.channels.unwrap(), ["team", "phone"]);
}

#[test]
fn what_is_told_of_a_task_is_refused_where_it_cannot_be() {
    let terms = Terms { channels: Some(Arc::new(["team".to_owned()].into())), ..Terms::default() };
    for (text, key) in [
        ("channels = [\"phone\"]", "notify.channels[0]"),
        ("channels = [\"team\", \"Team\"]", "notify.channels[1]"),
        ("on = [\"sometimes\"]", "notify.on"),
        ("on = \"failed\"", "notify.on"),
        ("channels = [1]", "notify.channels[0]"),
        ("channels = [\"\"]", "notify.channels[0]"),
        ("enabled = \"no\"", "notify.enabled"),
        ("check = \"a/b\"", "notify.check"),
        ("chanels = []", "notify.chanels"),
    ] {
        let text = format!("title = \"T\"\n[notify]\n{text}\n[[steps]]\nrun = \"true\"\n");
        let problems = from_toml("t.toml", &text, &terms).unwrap_err();
        assert_eq!((problems.first().key.as_str(), problems.first().line), (key, Some(3)), "{problems}");
    }
}

proptest! {
    #[test]
    fn a_task_that_was_written_reads_the_same(task in definitions()) {
        let text = task.to_toml().unwrap();
        let other_defaults = Policy { timeout: Duration::from_secs(1), overlap: Overlap::Queue, ..Policy::default() };
        let from_file = from_toml("t.toml", &text, &other_defaults);
        prop_assert_eq!(from_file.as_ref(), Ok(&task), "{}", text);
        let posted = from_json(&task.to_json(), &other_defaults).map(|posted| posted.definition);
        prop_assert_eq!(posted.as_ref(), Ok(&task));
        prop_assert_eq!(from_file.map(|task| task.hash()), Ok(task.hash()));
    }

    #[test]
    fn no_text_makes_reading_a_task_fail_but_by_saying_why(text in "[a-z=\"\\[\\]{}.\n0-9 ]{0,60}") {
        if let Err(problems) = from_toml("t.toml", &text, &Policy::default()) {
            prop_assert!(!problems.all().is_empty());
        }
    }
}
