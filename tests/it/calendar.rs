//! When tasks are due in the days to come: single moments, and lines for what is due too often to list.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rejoin::clock::Clock;
use rejoin::schedule::calendar::{self, Entry};
use rejoin::schedule::timing::Timing;
use rejoin::task::definition::{Schedule, When};
use serde_json::{Value, json};

use crate::harness::Home;

fn cron(expression: &str, zone: &str) -> Timing {
    let schedule = Schedule::from(When::Cron { expression: expression.into(), zone: Some(zone.into()) });
    Timing::new(&schedule, &TimeZone::UTC).unwrap()
}

fn every(period: &str) -> Timing {
    let period = rejoin::config::units::duration(period).unwrap();
    Timing::new(&When::Every { period }.into(), &TimeZone::UTC).unwrap()
}

fn ts(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// In words: `at`, or `from to count`.
fn entries(timing: &Timing, now: &str, zone: &str, days: u8) -> Vec<String> {
    let zone = TimeZone::get(zone).unwrap();
    let days = calendar::days(ts(now), &zone, days);
    calendar::entries(timing, ts(now), &days, &mut u64::MAX.clone())
        .into_iter()
        .map(|entry| match entry {
            Entry::At(moment) => moment.at.timestamp().to_string(),
            Entry::Dense { from, to, count } => format!("{from} {to} {count}"),
        })
        .collect()
}

#[test]
fn each_day_has_its_moments_and_midnight_belongs_to_the_day_it_begins() {
    let nightly = cron("0 0 * * *", "Europe/Berlin");
    assert_eq!(
        entries(&nightly, "2026-03-27T12:00:00Z", "Europe/Berlin", 4),
        // The clock goes forward on the 29th: that day has 23 hours.
        ["2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"]
    );
    // Eight times a day is listed, nine times is one line.
    assert_eq!(entries(&cron("0 1-8 * * *", "UTC"), "2026-03-01T00:00:00Z", "UTC", 1).len(), 8);
    assert_eq!(
        entries(&cron("0 1-9 * * *", "UTC"), "2026-03-01T00:00:00Z", "UTC", 1),
        ["2026-03-01T01:00:00Z 2026-03-01T09:00:00Z 9"]
    );
    // What is exactly now is not to come.
    assert_eq!(entries(&nightly, "2026-03-26T23:00:00Z", "Europe/Berlin", 1), Vec::<String>::new());
}

#[test]
fn what_is_due_all_day_is_one_line_a_day_with_its_number() {
    assert_eq!(
        entries(&every("1m"), "2026-03-01T12:00:00Z", "UTC", 2),
        ["2026-03-01T12:01:00Z 2026-03-01T23:59:00Z 719", "2026-03-02T00:00:00Z 2026-03-02T23:59:00Z 1440"]
    );
    assert_eq!(
        entries(&cron("* * * * *", "UTC"), "2026-03-01T12:00:00Z", "UTC", 2),
        ["2026-03-01T12:01:00Z 2026-03-01T23:59:00Z 719", "2026-03-02T00:00:00Z 2026-03-02T23:59:00Z 1440"]
    );
    assert_eq!(
        entries(&every("1s"), "2026-03-01T00:00:00Z", "UTC", 1),
        ["2026-03-01T00:00:01Z 2026-03-01T23:59:59Z 86399"]
    );
    assert_eq!(
        entries(&cron("* * * * * *", "UTC"), "2026-03-01T00:00:00Z", "UTC", 1),
        ["2026-03-01T00:00:01Z 2026-03-01T23:59:59Z 86399"]
    );
}

fn task(schedule: &str) -> String {
    format!(
        "title = \"T\"\nagent = \"steps\"\n[schedule]\n{schedule}\n[policy]\ncatchup = \"none\"\n\
         [[steps]]\nname = \"a\"\nrun = \"true\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calendar_has_every_task_that_runs_by_itself_in_the_order_of_time() {
    let home = Home::new("")
        .task("nightly", &task("cron = \"30 2 * * *\"\ntz = \"Europe/Berlin\""))
        .task("often", &task("every = \"1h\""))
        .task("paused", &task("every = \"5h\""))
        .task("asked", &task("every = \"1h\"").replace("[schedule]\nevery = \"1h\"\n", ""));
    let server = home.serve_at(Clock::standing_at(ts("2026-03-27T12:00:00Z"))).await;
    server.client.post("/tasks/paused/pause", json!({})).await;
    let (status, calendar) = server.client.get("/calendar?days=3&tz=Europe/Berlin").await;
    assert_eq!(status, 200, "{calendar}");
    assert_eq!(calendar["from"], "2026-03-27T13:00:00+01:00");
    assert_eq!((&calendar["tz"], &calendar["left_off"]), (&json!("Europe/Berlin"), &json!(0)));
    let line =
        |task: &str, from: &str, to: &str, count: u64| json!({ "task": task, "from": from, "to": to, "count": count });
    assert_eq!(
        calendar["items"],
        json!([
            line("often", "2026-03-27T14:00:00+01:00", "2026-03-27T23:00:00+01:00", 10),
            line("often", "2026-03-28T00:00:00+01:00", "2026-03-28T23:00:00+01:00", 24),
            { "task": "nightly", "at": "2026-03-28T02:30:00+01:00", "note": null },
            line("often", "2026-03-29T00:00:00+01:00", "2026-03-29T23:00:00+02:00", 23),
            { "task": "nightly", "at": "2026-03-29T03:00:00+02:00", "note": "clock goes forward: moved from 02:30" },
        ])
    );
    for (query, field) in [("days=0", "days"), ("days=32", "days"), ("days=x", "days"), ("tz=Europe/Berlinn", "tz")] {
        let (status, problem) = server.client.get(&format!("/calendar?{query}")).await;
        assert_eq!((status, &problem["field"]), (400, &json!(field)), "{query}");
    }
    let (_, week) = server.client.get("/calendar").await;
    let nightly = |items: &Value| items.as_array().unwrap().iter().filter(|item| item["task"] == "nightly").count();
    assert_eq!(nightly(&week["items"]), 6, "seven days, the first without its past");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_beyond_what_one_answer_holds_are_left_off_by_number() {
    let mut home = Home::new("");
    for number in 0..25 {
        home = home.task(&format!("crowd{number:02}"), &task("cron = \"0 1-8 * * *\""));
    }
    home = home.task("yearly", &task("cron = \"0 0 1 1 *\""));
    let server = home.serve_at(Clock::standing_at(ts("2026-03-01T00:00:30Z"))).await;
    let (_, calendar) = server.client.get("/calendar?days=31&tz=UTC").await;
    // Eight lines a day for each: with the twenty-first there are more than five thousand.
    assert_eq!(calendar["left_off"], 5, "{}", calendar["items"].as_array().unwrap().len());
    assert_eq!(calendar["items"].as_array().unwrap().len(), 21 * 8 * 31);
    server.stop().await;
}
