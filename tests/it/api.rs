//! The calls over HTTP: what each gives, and how each refuses.

use std::sync::Arc;

use rejoin::event::State;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Barrier;

use crate::harness::{Client, Gate, Home, is_terminal, seqs};
use crate::rows_stage::{Play, forget_below, stage};

fn one_step(title: &str, command: &str) -> Value {
    json!({ "title": title, "steps": [{ "name": "one", "run": command }] })
}

/// Without running it.
fn idle(title: &str) -> Value {
    let mut task = one_step(title, "true");
    task["run"] = json!(false);
    task
}

/// A request with a body that is what it is.
async fn raw(client: &Client, method: Method, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let response = client.request(method, path).header("Content-Type", kind).body(body).send().await.unwrap();
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned()).unwrap_or_default();
    let answer: Value = response.json().await.unwrap_or(Value::Null);
    if status >= 400 {
        assert_eq!(kind, "application/problem+json", "{path}: {answer}");
        assert_eq!(answer["status"], status);
        for member in ["type", "title", "code", "detail"] {
            assert!(answer[member].is_string(), "{member} of {answer}");
        }
    }
    (status, answer)
}

async fn patch(client: &Client, path: &str, body: Value) -> (u16, Value) {
    raw(client, Method::PATCH, path, "application/json", body.to_string()).await
}

async fn with_key(client: &Client, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let response = client.request(Method::POST, path).header("Idempotency-Key", key).json(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_made_shown_changed_listed_and_deleted() {
    let home = Home::new("");
    let server = home.serve().await;
    let client = &server.client;
    let (status, made) = client.post("/tasks", idle("Look after Things")).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["task"]["id"], &made["run"]), (&json!("look-after-things"), &Value::Null));
    assert_eq!(made["url"], format!("http://{}/tasks/look-after-things", client.address));
    let task = &made["task"];
    assert_eq!((&task["state"], &task["enabled"], &task["source"]), (&json!("idle"), &json!(true), &json!("store")));
    assert_eq!((&task["oldest"], &task["head"], &task["active_runs"]), (&json!(1), &json!(0), &json!(0)));
    let (status, shown) = client.get("/tasks/look-after-things").await;
    assert_eq!((status, &shown["definition"]["steps"][0]["run"]), (200, &json!("true")));
    for (name, value) in task.as_object().unwrap() {
        assert_eq!(&shown[name], value, "{name}");
    }

    let (status, changed) =
        patch(client, "/tasks/look-after-things", json!({ "title": "Else", "schedule": { "every": "30m" } })).await;
    assert_eq!((status, &changed["title"], &changed["schedule"]), (200, &json!("Else"), &json!({ "every": "30m" })));
    assert!(changed["next_at"].is_string() && changed["schedule_words"].is_string());
    assert_eq!(changed["definition"]["steps"], shown["definition"]["steps"], "what is not given stays");
    let (_, changed) = patch(client, "/tasks/look-after-things", json!({ "schedule": null })).await;
    assert_eq!((&changed["schedule"], &changed["next_at"]), (&Value::Null, &Value::Null));

    client.post("/tasks", idle("Another")).await;
    let (_, list) = client.get("/tasks").await;
    let ids: Vec<_> = list["items"].as_array().unwrap().iter().map(|task| &task["id"]).collect();
    assert_eq!(ids, ["another", "look-after-things"]);
    let (_, first) = client.get("/tasks?limit=1").await;
    assert_eq!((&first["items"][0]["id"], &first["next"]), (&json!("another"), &json!("another")));
    let (_, second) = client.get("/tasks?limit=1&cursor=another").await;
    assert_eq!((&second["items"][0]["id"], &second["next"]), (&json!("look-after-things"), &Value::Null));

    assert_eq!(client.delete("/tasks/look-after-things").await.0, 204);
    assert_eq!(client.delete("/tasks/look-after-things").await.0, 404);
    assert_eq!(client.get("/tasks/look-after-things").await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_pages_of_any_size_each_task_comes_once_and_files_with_errors_too() {
    let mut home = Home::new("").task("b", "title = ").task("e", "no task");
    for id in ["a", "c", "d"] {
        home = home.shell_task(id, "true");
    }
    let server = home.serve().await;
    for size in 1..=6 {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, page) = server.client.get(&format!("/tasks?limit={size}&cursor={cursor}")).await;
            assert_eq!(status, 200, "{page}");
            let items = page["items"].as_array().unwrap();
            ids.extend(items.iter().map(|task| task["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            assert_eq!((items.len(), next), (size, ids.last().unwrap().as_str()), "{page}");
            cursor = next.to_owned();
        }
        assert_eq!(ids, ["a", "b", "c", "d", "e"], "pages of {size}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_different_members_at_the_same_moment_are_all_there_afterwards() {
    let home = Home::new("");
    let server = home.serve().await;
    let client = &server.client;
    assert_eq!(client.post("/tasks", idle("Shared")).await.0, 201);
    for round in 1..=10 {
        let text = format!("round {round}");
        let changes = [
            ("/title", json!({ "title": text })),
            ("/description", json!({ "description": text })),
            ("/schedule/every", json!({ "schedule": { "every": format!("{round}h") } })),
            ("/policy/timeout", json!({ "policy": { "timeout": format!("{round}s") } })),
            ("/notify/check", json!({ "notify": { "check": format!("check-{round}") } })),
            ("/params/n/default", json!({ "params": { "n": { "default": round } } })),
            ("/secrets/KEY/env", json!({ "secrets": { "KEY": { "env": format!("KEY_{round}") } } })),
            ("/steps/0/run", json!({ "steps": [{ "run": format!("echo {round}") }] })),
        ];
        let together = Arc::new(Barrier::new(changes.len()));
        let asked = changes.clone().map(|(_, change)| {
            let (client, together) = (client.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                together.wait().await;
                patch(&client, "/tasks/shared", change).await
            })
        });
        for asked in asked {
            let (status, answer) = asked.await.unwrap();
            assert_eq!(status, 200, "{answer}");
        }
        let (_, shown) = client.get("/tasks/shared").await;
        for (place, change) in &changes {
            assert_eq!(shown["definition"].pointer(place), change.pointer(place), "{place} of {shown}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_a_schedule_runs_at_once_and_the_answer_names_task_run_and_page() {
    let home = Home::new("");
    let server = home.serve().await;
    let client = &server.client;
    let (status, made) = client.post("/tasks", one_step("Now", "echo hello")).await;
    assert_eq!(status, 201);
    let run = made["run"]["id"].as_str().unwrap();
    assert_eq!(made["url"], format!("http://{}/tasks/now/runs/{run}", client.address));
    assert_eq!(client.ended(run).await["state"], "succeeded");
    let mut scheduled = one_step("Later", "true");
    scheduled["schedule"] = json!({ "cron": "0 3 * * *", "tz": "Europe/Berlin" });
    let (_, made) = client.post("/tasks", scheduled).await;
    assert_eq!((&made["run"], &made["task"]["schedule"]["tz"]), (&Value::Null, &json!("Europe/Berlin")));
    // Equal titles are two tasks; a given id is taken or refused.
    assert_eq!(client.post("/tasks", idle("Now")).await.1["task"]["id"], "now-2");
    let mut named = idle("Now");
    named["id"] = json!("now");
    let (status, problem) = client.post("/tasks", named).await;
    assert_eq!((status, &problem["code"], &problem["field"]), (409, &json!("conflict"), &json!("id")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_a_file_is_neither_changed_nor_deleted_here() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    for (status, problem) in
        [patch(&server.client, "/tasks/job", json!({ "title": "x" })).await, server.client.delete("/tasks/job").await]
    {
        assert_eq!((status, &problem["code"]), (409, &json!("task_is_a_file")));
        assert!(problem["detail"].as_str().unwrap().contains("job.toml"), "{problem}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_at_work_is_deleted_only_when_it_may_be_stopped() {
    let home = Home::new("");
    let server = home.serve().await;
    let client = &server.client;
    let run = client.post("/tasks", one_step("Busy", "sleep 600")).await.1["run"]["id"].as_str().unwrap().to_owned();
    let (status, problem) = client.delete("/tasks/busy").await;
    assert_eq!((status, &problem["code"]), (409, &json!("task_running")));
    assert_eq!(client.get(&format!("/runs/{run}")).await.0, 200);
    assert_eq!(client.delete("/tasks/busy?stop=true").await.0, 204);
    assert_eq!(client.get("/tasks/busy").await.0, 404);
    assert_eq!(client.get("/status").await.1["running"], 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_task_keeps_its_schedule_and_has_no_next_run() {
    let home = Home::new("")
        .task("job", "title = \"job\"\n[schedule]\nevery = \"1h\"\n[[steps]]\nname = \"one\"\nrun = \"true\"\n");
    let server = home.serve().await;
    let client = &server.client;
    for _ in 0..2 {
        let (status, paused) = client.post("/tasks/job/pause", json!({})).await;
        assert_eq!(
            (status, &paused["state"], &paused["enabled"], &paused["next_at"]),
            (200, &json!("paused"), &json!(false), &Value::Null)
        );
    }
    let run = client.run("job").await;
    assert_eq!(client.ended(&run).await["state"], "succeeded", "by hand it runs all the same");
    for _ in 0..2 {
        let (status, resumed) = client.post("/tasks/job/resume", json!({})).await;
        assert_eq!((status, &resumed["state"], &resumed["enabled"]), (200, &json!("idle"), &json!(true)));
        assert!(resumed["next_at"].is_string());
    }
    let events = client.pages("job").await;
    let states: Vec<_> =
        events.iter().filter(|event| event["run"].is_null()).map(|event| &event["data"]["state"]).collect();
    assert_eq!(states, ["paused", "resumed"], "said once each");
    for call in ["pause", "resume"] {
        assert_eq!(client.post(&format!("/tasks/none/{call}"), json!({})).await.0, 404);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_times_and_a_preview_are_given_with_their_offset() {
    let home = Home::new("").task(
        "job",
        "title = \"job\"\n[schedule]\ncron = \"30 2 * * *\"\ntz = \"Europe/Berlin\"\n[[steps]]\nname = \"one\"\nrun = \"true\"\n",
    );
    let server = home.serve().await;
    let client = &server.client;
    let (_, next) = client.get("/tasks/job/next").await;
    assert_eq!(next["items"].as_array().unwrap().len(), 5);
    let (_, next) = client.get("/tasks/job/next?n=3").await;
    let asked = json!({ "cron": "30 2 * * *", "tz": "Europe/Berlin", "n": 3 });
    let (status, preview) = client.post("/schedule/preview", asked).await;
    assert_eq!((status, &preview["items"]), (200, &next["items"]));
    assert!(next["items"][0]["at"].as_str().unwrap().contains("T02:30:00+0"), "{next}");
    for n in ["0", "501", "-1", "x", ""] {
        let (status, problem) = client.get(&format!("/tasks/job/next?n={n}")).await;
        if n == "501" && status == 200 {
            continue;
        }
        assert_eq!((status, &problem["code"], &problem["field"]), (400, &json!("invalid"), &json!("n")), "{n}");
    }
    let many = client.post("/schedule/preview", json!({ "every": "1m", "n": 500 })).await.1;
    assert_eq!(many["items"].as_array().unwrap().len(), 500);
    for (asked, field) in [
        (json!({}), ""),
        (json!({ "cron": "* * * * *", "every": "1m" }), ""),
        (json!({ "cron": "61 * * * *" }), "cron"),
        (json!({ "cron": "0 3 * * *", "tz": "Europe/Nowhere" }), "tz"),
        (json!({ "every": "soon" }), "every"),
        (json!({ "at": "2001-01-01T00:00:00Z" }), "at"),
        (json!({ "every": "1m", "n": 0 }), "n"),
        (json!({ "every": "1m", "n": 501 }), "n"),
        (json!({ "every": "1m", "n": "5" }), "n"),
        (json!({ "every": "1m", "zone": "UTC" }), "zone"),
        (json!({ "every": "1m", "tz": "UTC" }), "tz"),
        (json!({ "every": "1m", "jitter": "1m" }), "jitter"),
        (json!({ "every": "1m", "jitter": 5 }), "jitter"),
        (json!({ "every": "1m", "stagger": "often" }), "stagger"),
        (json!({ "at": "2026-03-29T02:30", "tz": "Europe/Berlin" }), "at"),
    ] {
        let (status, problem) = client.post("/schedule/preview", asked.clone()).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid")), "{asked}: {problem}");
        assert_eq!(problem["field"], field, "{asked}: {problem}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_the_due_times_is_listed_in_pages_the_newest_first() {
    let home = Home::new("")
        .task("job", "title = \"job\"\n[schedule]\nevery = \"1s\"\n[[steps]]\nname = \"one\"\nrun = \"true\"\n");
    let server = home.serve().await;
    let client = &server.client;
    client.until("/tasks/job/slots", |slots| slots["items"].as_array().unwrap().len() >= 3).await;
    client.post("/tasks/job/pause", json!({})).await;
    client.until("/tasks/job", |task| task["active_runs"] == 0).await;
    // From here on nothing is added: what comes while it is paused goes on with one row.
    client.until("/tasks/job/slots", |slots| slots["items"][0]["outcome"] == "disabled").await;
    let (_, all) = client.get("/tasks/job/slots").await;
    let all = all["items"].as_array().unwrap();
    // On a busy machine a run may last longer than the second to the next slot, which is skipped then.
    let ran: Vec<_> = all.iter().filter(|slot| slot["outcome"] == "ran" || slot["outcome"] == "late").collect();
    assert!(!ran.is_empty() && ran.iter().all(|slot| slot["run"].is_string()), "{all:?}");
    let all: Vec<_> = all.iter().map(|slot| slot["scheduled_for"].as_str().unwrap().to_owned()).collect();
    assert!(all.is_sorted_by(|a, b| a > b), "{all:?}");
    let (_, first) = client.get("/tasks/job/slots?limit=2").await;
    let (_, second) = client.get(&format!("/tasks/job/slots?limit=2&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!(second["items"][0]["scheduled_for"], all[2]);
    let ends: Vec<_> = first["items"].as_array().unwrap().iter().map(|slot| &slot["scheduled_for"]).collect();
    assert_eq!(ends, [&all[0], &all[1]]);
    for (query, field) in [("limit=0", "limit"), ("cursor=x", "cursor")] {
        let (status, problem) = client.get(&format!("/tasks/job/slots?{query}")).await;
        assert_eq!((status, &problem["field"]), (400, &json!(field)));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_listed_in_pages_and_by_task_and_state() {
    let home = Home::new("").shell_task("good", "true").shell_task("bad", "exit 1");
    let server = home.serve().await;
    let client = &server.client;
    let mut runs = Vec::new();
    for task in ["good", "bad", "good", "bad", "good"] {
        let run = client.run(task).await;
        client.ended(&run).await;
        runs.push(run);
    }
    runs.reverse();
    let ids = |list: &Value| {
        list["items"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&client.get("/runs").await.1), runs, "the newest first");
    let (mut cursor, mut paged) = (String::new(), Vec::new());
    loop {
        let (_, page) = client.get(&format!("/runs?limit=2{cursor}")).await;
        paged.extend(ids(&page));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(paged, runs);
    let bad = [runs[1].clone(), runs[3].clone()];
    assert_eq!(ids(&client.get("/runs?task=bad").await.1), bad);
    assert_eq!(ids(&client.get("/runs?state=failed").await.1), bad);
    assert_eq!(ids(&client.get("/tasks/bad/runs").await.1), bad);
    assert_eq!(ids(&client.get("/tasks/bad/runs?state=succeeded").await.1), Vec::<String>::new());
    for (path, status, field) in [
        ("/runs?state=great", 400, json!("state")),
        ("/runs?limit=0", 400, json!("limit")),
        ("/runs?limit=many", 400, json!("limit")),
        ("/runs?cursor=x", 400, json!("cursor")),
        ("/runs?limit=1&limit=2", 400, json!("limit")),
        ("/runs?task=none", 404, Value::Null),
        ("/tasks/none/runs", 404, Value::Null),
    ] {
        let (given, problem) = raw(client, Method::GET, path, "", "").await;
        assert_eq!((given, &problem["field"]), (status, &field), "{path}: {problem}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_by_hand_wait_in_turn_have_a_place_and_are_at_most_ten() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait());
    let server = home.serve().await;
    let client = &server.client;
    let first = client.run("job").await;
    client.until(&format!("/runs/{first}"), |run| run["state"] == "running").await;
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(client.run("job").await);
    }
    let (status, problem) = client.post("/tasks/job/runs", json!({})).await;
    assert_eq!((status, &problem["code"]), (429, &json!("limit")));
    for (place, run) in waiting.iter().enumerate() {
        let (_, run) = client.get(&format!("/runs/{run}")).await;
        assert_eq!((&run["state"], &run["waits"]), (&json!("queued"), &json!({"for": "run", "position": place + 1})));
    }
    let (status, stopped) = client.post(&format!("/runs/{}/stop", waiting[0]), json!({})).await;
    assert_eq!((status, &stopped["state"]), (202, &json!("cancelled")));
    assert_eq!(client.get(&format!("/runs/{}", waiting[1])).await.1["waits"]["position"], 1);
    assert_eq!(client.get(&format!("/runs/{first}")).await.1["waits"], Value::Null, "it is at work");
    for run in waiting.iter().rev() {
        client.post(&format!("/runs/{run}/stop"), json!({})).await;
    }
    gate.open().await;
    assert_eq!(client.ended(&first).await["state"], "succeeded");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_stopped_once_and_one_that_is_over_says_so() {
    let home = Home::new("").shell_task("job", "echo here; sleep 600").shell_task("quick", "true");
    let server = home.serve().await;
    let client = &server.client;
    let run = client.run("job").await;
    client
        .until("/tasks/job/events", |page| {
            page["items"].as_array().unwrap().iter().any(|event| event["kind"] == "tool_output")
        })
        .await;
    for _ in 0..3 {
        assert_eq!(client.post(&format!("/runs/{run}/stop"), json!({})).await.0, 202);
    }
    let ended = client.ended(&run).await;
    assert_eq!((&ended["state"], &ended["stopping"]), (&json!("cancelled"), &Value::Null));
    assert_eq!(client.post(&format!("/runs/{run}/stop"), json!({})).await.0, 202, "asked again, it changes nothing");
    let events = client.pages("job").await;
    assert_eq!(events.iter().filter(|event| is_terminal(event)).count(), 1);
    let run = client.run("quick").await;
    client.ended(&run).await;
    let (status, problem) = client.post(&format!("/runs/{run}/stop"), json!({})).await;
    assert_eq!((status, &problem["code"], &problem["run"]["state"]), (409, &json!("run_over"), &json!("succeeded")));
    for id in ["none", "0192f0c1-0000-7000-8000-000000000001"] {
        assert_eq!(client.post(&format!("/runs/{id}/stop"), json!({})).await.0, 404);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_checked_by_name() {
    let home = Home::new("").task(
        "job",
        "title = \"job\"\n[params]\nlimit = { default = 85 }\nhost = { help = \"which\" }\n[[steps]]\nname = \"one\"\nrun = 'echo \"$REJOIN_PARAM_HOST $REJOIN_PARAM_LIMIT\"'\n",
    );
    let server = home.serve().await;
    let client = &server.client;
    for (body, field) in [
        (json!({}), "params.host"),
        (json!({ "params": { "host": null } }), "params.host"),
        (json!({ "params": { "host": "a", "colour": "red" } }), "params.colour"),
        (json!({ "params": { "host": ["a"] } }), "params.host"),
        (json!({ "params": [] }), "params"),
        (json!({ "parameters": {} }), "parameters"),
    ] {
        let (status, problem) = client.post("/tasks/job/runs", body.clone()).await;
        assert_eq!((status, &problem["code"], &problem["field"]), (400, &json!("invalid"), &json!(field)), "{body}");
    }
    let (status, made) = client.post("/tasks/job/runs", json!({ "params": { "host": "x; echo $(id)" } })).await;
    assert_eq!((status, &made["run"]["params"]), (201, &json!({ "host": "x; echo $(id)" })));
    let run = made["run"]["id"].as_str().unwrap();
    assert_eq!(client.ended(run).await["state"], "succeeded");
    let text = client.pages("job").await.iter().find(|event| event["kind"] == "tool_result").unwrap()["data"]["output"]
        .to_string();
    assert!(text.contains("x; echo $(id) 85"), "{text}");

    // A task that would run at once without one of its parameters is not made.
    let mut task = json!({ "title": "Ask", "params": { "host": {} }, "steps": [{ "run": "true" }] });
    for path in ["/tasks", "/tasks?dry_run=true"] {
        let (status, problem) = client.post(path, task.clone()).await;
        assert_eq!((status, &problem["field"]), (400, &json!("params.host")), "{path}: {problem}");
    }
    assert_eq!(client.get("/tasks").await.1["items"].as_array().unwrap().len(), 1, "the one of the file");
    task["run"] = false.into();
    assert_eq!(client.post("/tasks", task).await.0, 201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_output_of_a_call_is_a_text_to_keep_in_ranges() {
    let home = Home::new("").shell_task("job", "seq 1 40000; printf '<script>'");
    let server = home.serve().await;
    let client = &server.client;
    let run = client.run("job").await;
    client.ended(&run).await;
    let events = client.pages("job").await;
    let result = events.iter().find(|event| event["kind"] == "tool_result").unwrap();
    let call = result["data"]["call"].as_str().unwrap();
    assert!(result["data"]["cut_bytes"].as_u64().unwrap() > 0, "the event has head and tail only");
    let path = format!("/runs/{run}/output/{call}");
    let response = client.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(headers["content-disposition"], format!("attachment; filename=\"job-{run}-{call}.txt\""));
    assert_eq!(
        (&headers["cache-control"], &headers["x-content-type-options"]),
        (&"no-store".parse().unwrap(), &"nosniff".parse().unwrap())
    );
    let whole = response.text().await.unwrap();
    let expected: String = (1..=40_000).map(|n| format!("{n}\n")).collect::<String>() + "<script>";
    assert_eq!(whole, expected);
    let part = async |range: &str| {
        let response = client.request(Method::GET, &path).header("Range", range).send().await.unwrap();
        (response.status().as_u16(), response.headers().get("content-range").cloned(), response.text().await.unwrap())
    };
    let (status, range, text) = part("bytes=2-8").await;
    assert_eq!((status, text.as_str()), (206, &expected[2..=8]));
    assert_eq!(range.unwrap(), format!("bytes 2-8/{}", expected.len()));
    let (status, _, text) = part("bytes=-8").await;
    assert_eq!((status, text.as_str()), (206, "<script>"));
    let (status, range, _) = part("bytes=99999999-").await;
    assert_eq!((status, range.unwrap().to_str().unwrap()), (416, &*format!("bytes */{}", expected.len())));
    for path in [
        format!("/runs/{run}/output/none"),
        format!("/runs/{run}/output/..%2f..%2ftoken"),
        format!("/runs/none/output/{call}"),
    ] {
        let (status, problem) = client.get(&path).await;
        assert_eq!((status, &problem["code"]), (404, &json!("not_found")), "{path}: {problem}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_fetched_whole_by_its_run_and_number() {
    let home = stage("job");
    let server = home.serve().await;
    let client = &server.client;
    let play = Play::begin(&server, "job").await;
    let other = Play::begin(&server, "job").await;
    let seq = play.thought("short").await;
    let (_, full) = client.get(&format!("/runs/{}/events/{seq}/full", play.run)).await;
    assert_eq!(full, client.pages("job").await[usize::try_from(seq).unwrap() - 1], "one that was not cut, as it is");
    for path in [
        format!("/runs/{}/events/{seq}/full", other.run),
        format!("/runs/{}/events/99/full", play.run),
        format!("/runs/{}/events/x/full", play.run),
        format!("/runs/none/events/{seq}/full"),
    ] {
        assert_eq!(client.get(&path).await.0, 404, "{path}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_paged_forwards_and_backwards_always_ascending() {
    let home = stage("job");
    let server = home.serve().await;
    let client = &server.client;
    let play = Play::begin(&server, "job").await;
    play.thoughts(997).await;
    assert_eq!(play.thought("the thousandth").await, 1000);
    let (_, first) = client.get("/tasks/job/events").await;
    let generation = first["gen"].as_str().unwrap().to_owned();
    assert_eq!((&first["task"], &first["oldest"], &first["head"]), (&json!("job"), &json!(1), &json!(1000)));
    let items = |page: &Value| seqs(page["items"].as_array().unwrap());
    assert_eq!(items(&first)[0], 1);
    assert!(items(&first).len() <= 500 && first["more"] == true);
    assert_eq!(first["next"], *items(&first).last().unwrap());
    let all = client.pages("job").await;
    assert_eq!(seqs(&all), (1..=1000).collect::<Vec<_>>());
    let texts: Vec<Value> =
        home.logged_events("job").iter().map(|(_, text)| serde_json::from_str(text).unwrap()).collect();
    assert_eq!(all, texts, "the same objects as everywhere");

    let get = async |query: &str| client.get(&format!("/tasks/job/events?gen={generation}&{query}")).await;
    let (_, page) = get("after=10&limit=3").await;
    assert_eq!((items(&page), &page["next"], &page["more"]), (vec![11, 12, 13], &json!(13), &json!(true)));
    let (_, page) = get("after=998&limit=500").await;
    assert_eq!((items(&page), &page["next"], &page["more"]), (vec![999, 1000], &json!(1000), &json!(false)));
    let (_, page) = get("after=1000").await;
    assert_eq!((items(&page), &page["next"], &page["more"]), (vec![], &json!(1000), &json!(false)));
    let (_, page) = get("before=1001&limit=3").await;
    assert_eq!((items(&page), &page["next"], &page["more"]), (vec![998, 999, 1000], &json!(998), &json!(true)));
    let (_, page) = get("before=3").await;
    assert_eq!((items(&page), &page["next"], &page["more"]), (vec![1, 2], &json!(1), &json!(false)));
    let (_, page) = get("before=1").await;
    assert_eq!((items(&page), &page["next"], &page["more"]), (vec![], &json!(1), &json!(false)));
    // All the way back.
    let (mut before, mut seen) = (1001, 0);
    loop {
        let (_, page) = get(&format!("before={before}")).await;
        assert!(items(&page).is_sorted());
        seen += items(&page).len();
        before = page["next"].as_u64().unwrap();
        if page["more"] == false {
            break;
        }
    }
    assert_eq!((seen, before), (1000, 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_run_are_paged_by_themselves() {
    let home = stage("job");
    let server = home.serve().await;
    let client = &server.client;
    let (one, two) = (Play::begin(&server, "job").await, Play::begin(&server, "job").await);
    for _ in 0..30 {
        one.thought("one").await;
        two.thought("two").await;
    }
    one.status(State::Succeeded).await;
    two.thoughts(600).await;
    two.status(State::Failed).await;
    let all = client.pages("job").await;
    for run in [one.run, two.run] {
        let wanted: Vec<_> = all.iter().filter(|event| event["run"] == run.to_string()).cloned().collect();
        for limit in [7, 500] {
            let (mut after, mut query, mut got) = (0, String::new(), Vec::new());
            loop {
                let (status, page) =
                    client.get(&format!("/tasks/job/events?run={run}&limit={limit}&after={after}{query}")).await;
                assert_eq!(status, 200, "{page}");
                got.extend(page["items"].as_array().unwrap().iter().cloned());
                after = page["next"].as_u64().unwrap();
                query = format!("&gen={}", page["gen"].as_str().unwrap());
                if page["more"] == false {
                    break;
                }
            }
            assert_eq!(got, wanted);
            let (mut before, mut got) = (all.len() + 1, Vec::new());
            loop {
                let (_, page) =
                    client.get(&format!("/tasks/job/events?run={run}&limit={limit}&before={before}{query}")).await;
                got.splice(0..0, page["items"].as_array().unwrap().iter().cloned());
                before = usize::try_from(page["next"].as_u64().unwrap()).unwrap();
                if page["more"] == false {
                    break;
                }
            }
            assert_eq!(got, wanted);
        }
    }
    for (query, status) in [("run=none", 404), ("run=0192f0c1-0000-7000-8000-000000000001", 404)] {
        assert_eq!(client.get(&format!("/tasks/job/events?{query}")).await.0, status);
    }
    // Of a run whose events were taken there is nothing, and no more.
    forget_below(&server, "job", 200).await;
    let (_, page) = client.get(&format!("/tasks/job/events?run={}", one.run)).await;
    assert_eq!((&page["items"], &page["more"]), (&json!([]), &json!(false)));
    let (_, page) = client
        .get(&format!("/tasks/job/events?run={}&gen={}&before={}", one.run, page["gen"].as_str().unwrap(), all.len()))
        .await;
    assert_eq!((&page["items"], &page["more"]), (&json!([]), &json!(false)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_none_of_this_log_is_refused_with_where_the_log_stands() {
    let home = stage("job").shell_task("other", "true");
    let server = home.serve().await;
    let client = &server.client;
    let play = Play::begin(&server, "job").await;
    for _ in 0..8 {
        play.thought("a row").await;
    }
    forget_below(&server, "job", 6).await;
    let generation = client.get("/tasks/job").await.1["gen"].as_str().unwrap().to_owned();
    let other = "0000000000000001";
    for (query, status, code) in [
        ("after=7".to_owned(), 409, "generation"),
        (format!("gen={other}&after=7"), 409, "generation"),
        (format!("gen={other}&after=99"), 409, "generation"),
        ("before=8".to_owned(), 409, "generation"),
        (format!("gen={generation}&after=4"), 410, "retention"),
        (format!("gen={generation}&before=5"), 410, "retention"),
        (format!("gen={generation}&after=12"), 409, "future"),
    ] {
        let before = client.get("/tasks/job").await.1["gen"].as_str().unwrap().to_owned();
        let (given, problem) = client.get(&format!("/tasks/job/events?{}", query.replace(&generation, &before))).await;
        assert_eq!((given, &problem["code"]), (status, &json!(code)), "{query}: {problem}");
        assert_eq!((&problem["oldest"], &problem["head"]), (&json!(6), &json!(10)), "{query}");
        assert_eq!(problem["gen"], client.get("/tasks/job").await.1["gen"], "the one in force");
        assert_eq!(problem["gen"] != json!(before), code == "future", "a position beyond the end renews the log");
    }
    let generation = client.get("/tasks/job").await.1["gen"].as_str().unwrap().to_owned();
    let (status, problem) = client.get(&format!("/tasks/job/events?gen={generation}&after=11")).await;
    assert_eq!((status, &problem["code"]), (409, &json!("future")));
    for query in ["after=0", "gen=0000000000000001&after=0", "gen=0000000000000001"] {
        let (status, page) = client.get(&format!("/tasks/job/events?{query}")).await;
        assert_eq!((status, &page["items"][0]["seq"]), (200, &json!(6)), "{query}");
    }
    for (query, field) in [
        ("after=1&before=2", "before"),
        ("after=x", "after"),
        ("after=-1", "after"),
        ("after=9007199254740992", "after"),
        ("before=1.5", "before"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("gen=ABC", "gen"),
        ("gen=9D2E77C1A0B4F3E8", "gen"),
    ] {
        let (status, problem) = client.get(&format!("/tasks/job/events?{query}")).await;
        assert_eq!((status, &problem["code"], &problem["field"]), (400, &json!("invalid"), &json!(field)), "{query}");
    }
    assert_eq!(client.get("/tasks/none/events").await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_the_same_key_twice_is_one_task_and_one_run_and_another_body_is_a_conflict() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let client = &server.client;
    let (status, first) = with_key(client, "/tasks", "key-1", &one_step("Once", "true")).await;
    assert_eq!(status, 201);
    let (status, again) = with_key(client, "/tasks", "key-1", &one_step("Once", "true")).await;
    assert_eq!((status, &again["task"]["id"], &again["run"]["id"]), (201, &first["task"]["id"], &first["run"]["id"]));
    let (status, problem) = with_key(client, "/tasks", "key-1", &one_step("Twice", "true")).await;
    assert_eq!((status, &problem["code"]), (409, &json!("conflict")));
    let (status, problem) = with_key(client, "/tasks/job/runs", "key-1", &json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "nor another call");

    let (_, run) = with_key(client, "/tasks/job/runs", "key-2", &json!({})).await;
    client.ended(run["run"]["id"].as_str().unwrap()).await;
    let (_, again) = with_key(client, "/tasks/job/runs", "key-2", &json!({})).await;
    assert_eq!(
        (&again["run"]["id"], &again["run"]["state"]),
        (&run["run"]["id"], &json!("succeeded")),
        "also when it is over"
    );
    for key in ["", "with space", "ä", &"x".repeat(201)] {
        let request = client.request(Method::POST, "/tasks/job/runs").json(&json!({}));
        let Ok(value) = reqwest::header::HeaderValue::from_bytes(key.as_bytes()) else { panic!("{key}") };
        let response = request.header("Idempotency-Key", value).send().await.unwrap();
        assert_eq!(response.status(), 400, "{key:?}");
    }
    assert_eq!(client.get("/runs").await.1["items"].as_array().unwrap().len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_18_the_same_key_at_the_same_moment_acts_once() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let client = &server.client;
    for (path, body) in [("/tasks", one_step("Together", "true")), ("/tasks/job/runs", json!({}))] {
        let calls = (0..16).map(|_| with_key(client, path, "together", &body));
        let key = if path == "/tasks" { "together" } else { "together-2" };
        let calls: Vec<_> = if path == "/tasks" {
            futures_util::future::join_all(calls).await
        } else {
            futures_util::future::join_all((0..16).map(|_| with_key(client, path, key, &body))).await
        };
        for (status, answer) in &calls {
            assert_eq!(*status, 201, "{answer}");
            assert_eq!(answer["run"]["id"], calls[0].1["run"]["id"]);
        }
    }
    assert_eq!(client.get("/tasks").await.1["items"].as_array().unwrap().len(), 2);
    assert_eq!(client.get("/runs").await.1["items"].as_array().unwrap().len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_a_problem_with_its_code_and_field() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let client = &server.client;
    let json = "application/json";
    for (method, path, kind, body, status, code, field) in [
        (Method::POST, "/tasks", json, "{", 400, "invalid", Some("")),
        (Method::POST, "/tasks", json, "[]", 400, "invalid", Some("")),
        (Method::POST, "/tasks", json, "\u{0}", 400, "invalid", Some("")),
        (Method::POST, "/tasks", "text/plain", "{}", 415, "invalid", None),
        (Method::POST, "/tasks", "application/x-www-form-urlencoded", "title=x", 415, "invalid", None),
        (Method::POST, "/tasks", json, "", 400, "invalid", Some("title")),
        (Method::POST, "/tasks", json, r#"{"title":"x"}"#, 400, "invalid", Some("steps")),
        (Method::POST, "/tasks", json, r#"{"title":"x","steps":[]}"#, 400, "invalid", Some("steps")),
        (
            Method::POST,
            "/tasks",
            json,
            r#"{"title":"x","id":"Not An Id","steps":[{"name":"a","run":"true"}]}"#,
            400,
            "invalid",
            Some("id"),
        ),
        (
            Method::POST,
            "/tasks",
            json,
            r#"{"title":"x","steps":[{"name":"a","run":"true"}],"colour":1}"#,
            400,
            "invalid",
            Some("colour"),
        ),
        (
            Method::POST,
            "/tasks",
            json,
            r#"{"title":"x","steps":[{"name":"a","run":"true"}],"run":"no"}"#,
            400,
            "invalid",
            Some("run"),
        ),
        (
            Method::POST,
            "/tasks",
            json,
            r#"{"title":"x","steps":[{"name":"a","run":"true"}],"schedule":{"cron":"nonsense"}}"#,
            400,
            "invalid",
            Some("schedule.cron"),
        ),
        (
            Method::POST,
            "/tasks",
            json,
            r#"{"title":"x","steps":[{"name":"a","run":"true"}],"policy":{"overlap":"never"}}"#,
            400,
            "invalid",
            Some("policy.overlap"),
        ),
        (
            Method::POST,
            "/tasks",
            json,
            r#"{"title":"x","steps":[{"name":"a","run":"true"}],"policy":{"keep":{"runs":0}}}"#,
            400,
            "invalid",
            Some("policy.keep.runs"),
        ),
        (
            Method::POST,
            "/tasks",
            json,
            r#"{"title":"x","steps":[{"name":"a","run":"true"}],"notify":{"channels":["nobody"]}}"#,
            400,
            "invalid",
            Some("notify.channels[0]"),
        ),
        (Method::PATCH, "/tasks/none", json, "{}", 404, "not_found", None),
        (Method::PUT, "/tasks", json, "{}", 405, "method_not_allowed", None),
        (Method::DELETE, "/runs", json, "", 405, "method_not_allowed", None),
        (Method::POST, "/tasks/job/events", json, "{}", 405, "method_not_allowed", None),
        (Method::GET, "/nothing", json, "", 404, "not_found", None),
        (Method::GET, "/tasks/Not%20An%20Id", json, "", 404, "not_found", None),
        (Method::GET, "/tasks/%ff", json, "", 400, "invalid", Some("task")),
        (Method::GET, "/runs/none", json, "", 404, "not_found", None),
        (Method::GET, "/tasks?limit=x", json, "", 400, "invalid", Some("limit")),
        (Method::POST, "/tasks/job/runs", json, "7", 400, "invalid", Some("")),
    ] {
        let (given, problem) = raw(client, method.clone(), path, kind, body).await;
        assert_eq!((given, &problem["code"]), (status, &json!(code)), "{method} {path} {body}: {problem}");
        if let Some(field) = field {
            assert_eq!(problem["field"], field, "{method} {path} {body}: {problem}");
        }
    }
    let (status, problem) =
        raw(client, Method::POST, "/tasks", json, format!(r#"{{"title":"{}"}}"#, "x".repeat(1 << 20))).await;
    assert_eq!((status, &problem["code"]), (413, &json!("too_large")));
    let response = client.request(Method::PUT, "/tasks").send().await.unwrap();
    assert!(response.headers()["allow"].to_str().unwrap().contains("POST"));
    let accepting =
        client.request(Method::GET, "/tasks/job/events").header("Accept", "text/html").send().await.unwrap();
    assert_eq!(accepting.status(), 406);
    let no_upgrade = client.request(Method::GET, "/live").send().await.unwrap();
    assert!(no_upgrade.status().is_client_error());
    assert_eq!(no_upgrade.headers()["content-type"], "application/problem+json");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_what_there_is() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &gate.wait()).task(
        "nightly",
        "title = \"nightly\"\n[schedule]\ncron = \"0 3 * * *\"\n[[steps]]\nname = \"one\"\nrun = \"true\"\n",
    );
    let server = home.serve().await;
    let client = &server.client;
    let (first, second) = (client.run("job").await, client.run("job").await);
    let status = client.until("/status", |status| status["running"] == 1).await;
    assert_eq!((&status["queued"], &status["connections"]), (&json!(1), &json!(0)));
    assert_eq!((&status["version"], &status["next"]["task"]), (&json!(env!("CARGO_PKG_VERSION")), &json!("nightly")));
    assert!(status["uptime_s"].is_u64() && status["notices"] == json!([]) && status["server"]["boot"].is_string());
    for run in [first, second] {
        gate.open().await;
        client.ended(&run).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_utc_with_six_digits_wherever_they_stand() {
    fn check(path: &str, value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    if name.ends_with("_at") || name == "at" || name == "scheduled_for" || name == "last_seen" {
                        if let Some(time) = value.as_str() {
                            assert!(
                                time.len() == 27 && time.ends_with('Z') && &time[19..20] == ".",
                                "{path}.{name}: {time}"
                            );
                        }
                    } else {
                        check(&format!("{path}.{name}"), value);
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| check(path, item)),
            _ => {}
        }
    }
    let home = Home::new("")
        .task("job", "title = \"job\"\n[schedule]\nevery = \"1s\"\n[[steps]]\nname = \"one\"\nrun = \"true\"\n");
    let server = home.serve().await;
    let client = &server.client;
    client
        .until("/tasks/job/slots", |slots| {
            slots["items"].as_array().unwrap().iter().any(|slot| slot["run"].is_string())
        })
        .await;
    for path in
        ["/tasks", "/tasks/job", "/runs", "/tasks/job/slots", "/tasks/job/events", "/status", "/session/devices"]
    {
        check(path, &client.get(path).await.1);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_task_whose_rows_are_going_are_not_found_and_nothing_is_taken_for_damage() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    for _ in 0..2 {
        let run = server.client.run("job").await;
        server.client.ended(&run).await;
    }
    // As the store is between two steps of a removal, of which a reader that came before it knows nothing yet.
    let file = rusqlite::Connection::open(home.database()).unwrap();
    file.execute_batch(
        "UPDATE tasks SET id = '~job'; DELETE FROM segments WHERE key = (SELECT min(key) FROM segments)",
    )
    .unwrap();
    for page in ["after=0", "after=3&limit=1", "before=9"] {
        let (status, answer) = server.client.get(&format!("/tasks/job/events?{page}")).await;
        assert_eq!((status, &answer["code"]), (404, &"not_found".into()), "{page}: {answer}");
    }
    server.stop().await;
}
