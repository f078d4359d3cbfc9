//! What the server does for itself: that it is done when it is due, that it can be seen, and what it takes and leaves.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use rejoin::event::{Body, Seq};
use rejoin::stream::log;
use serde_json::{Value, json};

use crate::disk_limits::limit_files;
use crate::harness::{Client, Gate, Home, InProcess, events_of, is_terminal, seqs};

/// Has a chore done, and gives how it went.
pub async fn done(client: &Client, chore: &str) -> Value {
    let (status, answer) = client.post(&format!("/housekeeping/{chore}/run"), json!({})).await;
    assert_eq!(status, 202, "{answer}");
    let after = |all: &Value| !["queued", "running"].contains(&of(all, chore)["state"].as_str().unwrap());
    of(&client.until("/housekeeping", after).await, chore)["last"].clone()
}

fn of(all: &Value, chore: &str) -> Value {
    all["items"].as_array().unwrap().iter().find(|item| item["id"] == chore).unwrap().clone()
}

async fn standing(client: &Client, chore: &str) -> Value {
    of(&client.get("/housekeeping").await.1, chore)
}

/// Runs a task so often, one after the other; gives the ids.
async fn runs(server: &InProcess, task: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let run = server.client.run(task).await;
        server.client.ended(&run).await;
        ids.push(run);
    }
    ids
}

fn has_output(home: &Home, run: &str) -> bool {
    home.path().join("data/output").join(run).exists()
}

fn rows(home: &Home, table: &str) -> i64 {
    let file = rusqlite::Connection::open(home.database()).unwrap();
    file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_22_swe_37_what_is_too_old_goes_with_its_outputs_and_how_its_runs_ended_stays() {
    let home = Home::new("[retention]\nruns = 2").shell_task("job", "echo hello");
    let server = home.serve().await;
    let ids = runs(&server, "job", 4).await;
    let before = home.logged("job");
    let last = done(&server.client, "retention").await;
    assert_eq!(last["ok"], true, "{last}");
    let first_kept = server.client.get(&format!("/runs/{}", ids[2])).await.1["first_seq"].as_u64().unwrap();
    let kept: Vec<_> = before.into_iter().filter(|(seq, _)| *seq >= first_kept).collect();
    assert_eq!(home.logged("job"), kept, "all of the two newest runs is there");
    let generation = server.client.get("/tasks/job/events?after=1").await.1["gen"].as_str().unwrap().to_owned();
    let (status, gone) = server.client.get(&format!("/tasks/job/events?after=1&gen={generation}")).await;
    assert_eq!((status, &gone["oldest"]), (410, &json!(first_kept)), "{gone}");
    // The past of the task is listed, ends and all.
    let listed = server.client.get("/tasks/job/runs").await.1;
    let said = |run: &Value| (run["id"].as_str().unwrap().to_owned(), run["state"].as_str().unwrap().to_owned());
    let listed: Vec<_> = listed["items"].as_array().unwrap().iter().map(said).collect();
    assert_eq!(listed, ids.iter().rev().map(|id| (id.clone(), "succeeded".to_owned())).collect::<Vec<_>>());
    assert_eq!(ids.iter().map(|id| has_output(&home, id)).collect::<Vec<_>>(), [false, false, true, true]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_task_keeps_what_it_says_and_what_the_server_says_otherwise() {
    let text = |keep: &str| format!("title = \"T\"\n[policy]\nkeep = {{ {keep} }}\n[[steps]]\nrun = \"echo x\"\n");
    let home = Home::new("[retention]\nruns = 3").task("a-own", &text("runs = 1")).task("z-other", &text("days = 5"));
    // Between the two more tasks than are looked at together, with nothing to let go of.
    let home = (0..100).fold(home, |home, number| home.shell_task(&format!("m{number}"), "true"));
    let server = home.serve().await;
    for task in ["a-own", "z-other"] {
        runs(&server, task, 4).await;
    }
    done(&server.client, "retention").await;
    for (task, kept) in [("a-own", 1), ("z-other", 3)] {
        let ends = home.logged_events(task);
        let ends = ends.iter().filter(|(_, event)| is_terminal(&serde_json::from_str(event).unwrap())).count();
        assert_eq!(ends, kept, "{task}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stored_outputs_of_tool_calls_count_as_bytes_that_are_kept() {
    let home = Home::new("").task(
        "job",
        "title = \"T\"\n[policy]\nkeep = { bytes = \"3 MiB\" }\n[[steps]]\nrun = \"head -c 2000000 /dev/zero | tr '\\\\0' x\"\n",
    );
    let server = home.serve().await;
    let ids = runs(&server, "job", 3).await;
    assert!(ids.iter().all(|id| has_output(&home, id)));
    done(&server.client, "retention").await;
    // The events of all three are far below the limit: it is the outputs that are too much.
    assert_eq!(ids.iter().map(|id| has_output(&home, id)).collect::<Vec<_>>(), [false, false, true]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_36_of_a_run_that_goes_on_for_days_with_nobody_there_nothing_is_taken() {
    let start: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(start);
    let home = Home::new("[retention]\nruns = 1\ndays = 1\nevents = 1\nbytes = 1");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("job", &format!("echo before; {}; echo after", gate.wait()));
    let server = home.serve_at(clock.clone()).await;
    let run = server.client.run("job").await;
    let said = |page: &Value| page["items"].as_array().unwrap().iter().any(|event| event["kind"] == "tool_output");
    let before = server.client.until("/tasks/job/events", said).await["items"].as_array().unwrap().clone();
    // Nobody looks for two hours, then for three days; housekeeping goes on.
    for hours in [2, 70] {
        clock.pass(Duration::from_secs(hours * 3600));
        done(&server.client, "retention").await;
        assert_eq!(server.client.pages("job").await, before, "after {hours} h more");
        assert!(has_output(&home, &run));
    }
    let mut watcher = server.client.watch(json!([{ "sub": 1, "task": "job", "after": 0 }])).await;
    gate.open().await;
    let mut events = Vec::new();
    while !events.last().is_some_and(is_terminal) {
        events.extend(events_of(&watcher.next().await));
    }
    assert_eq!(seqs(&events), (1..=events.len() as u64).collect::<Vec<_>>(), "from the first on, without a gap");
    // Now that it is over, what it said is as old as it is.
    clock.pass(Duration::from_secs(128 * 3600));
    done(&server.client, "retention").await;
    assert!(!has_output(&home, &run));
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.1["state"], "succeeded", "how it ended stays");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_22_by_a_clock_that_jumped_nothing_is_too_old_before_it_is_believed() {
    let start: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let year = SignedDuration::from_hours(365 * 24);
    let clock = Clock::standing_at(start);
    let home = Home::new("[retention]\nevents = 4").shell_task("job", "echo x");
    let server = home.serve_at(clock.clone()).await;
    let run = runs(&server, "job", 1).await.remove(0);
    done(&server.client, "retention").await;
    // Whole groups of events go; of one run there are more.
    let few = 4..7;
    let kept = home.logged("job");
    assert!(few.contains(&kept.len()), "{kept:?}");
    // Set ahead by mistake it is due by itself, and somebody asks for it half a minute later.
    clock.set(start + year);
    server.server.api().housekeeping.bell().notify_one();
    let jumped = json!(rejoin::clock::rfc3339(start + year));
    let all = server.client.until("/housekeeping", |all| of(all, "retention")["last"]["at"] == jumped).await;
    let doubted =
        |last: &Value| last["result"].as_str().unwrap().ends_with("; nothing by its age, as the clock is in doubt");
    assert!(doubted(&of(&all, "retention")["last"]), "{all}");
    assert_eq!(home.logged("job"), kept);
    clock.pass(Duration::from_secs(30));
    assert!(doubted(&done(&server.client, "retention").await));
    assert_eq!(home.logged("job"), kept);
    // What is too much goes all the same.
    let run = (run, runs(&server, "job", 1).await.remove(0));
    assert!(doubted(&done(&server.client, "retention").await));
    let kept = home.logged("job");
    assert!(few.contains(&kept.len()), "{kept:?}");
    // Set back it is right again, and nothing is too old.
    clock.set(start + SignedDuration::from_secs(30));
    let last = done(&server.client, "retention").await;
    assert!(!doubted(&last), "{last}");
    assert_eq!(home.logged("job"), kept);
    assert_eq!([&run.0, &run.1].map(|run| has_output(&home, run)), [false, true]);
    // That it is right shows after a minute. What was said while it was ahead bears the times of then.
    clock.set(start + year * 2);
    assert!(doubted(&done(&server.client, "retention").await));
    clock.pass(Duration::from_secs(61));
    let last = done(&server.client, "retention").await;
    assert!(!doubted(&last), "{last}");
    assert_eq!(home.logged("job"), []);
    assert!(!has_output(&home, &run.1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_old_runs_ended_is_forgotten_at_last_and_slots_with_them() {
    let home = Home::new("[retention]\nruns = 1\nhistory = 3").shell_task("job", "true");
    let server = home.serve().await;
    let ids = runs(&server, "job", 6).await;
    let file = rusqlite::Connection::open(home.database()).unwrap();
    for slot in 0..10 {
        let sql = "INSERT INTO slots (task, gen, scheduled_for, through, outcome) VALUES (1, 1, ?1, ?1, 'ran')";
        file.execute(sql, [slot]).unwrap();
    }
    // Of these it is still to be noted what becomes of them.
    for (slot, outcome) in [(-2, "queued"), (-1, "pending")] {
        let sql = "INSERT INTO slots (task, gen, scheduled_for, through, outcome) VALUES (1, 1, ?1, ?1, ?2)";
        file.execute(sql, rusqlite::params![slot, outcome]).unwrap();
    }
    done(&server.client, "retention").await;
    let listed = server.client.get("/tasks/job/runs").await.1;
    let listed: Vec<_> = listed["items"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids.iter().rev().take(3).collect::<Vec<_>>());
    let slots: Vec<i64> = file
        .prepare("SELECT scheduled_for FROM slots ORDER BY 1")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(slots, [-2, -1, 7, 8, 9]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_runs_that_are_gone_are_removed_and_what_is_no_output_stays() {
    let home = Home::new("").shell_task("job", "echo x");
    let server = home.serve().await;
    let run = runs(&server, "job", 1).await.remove(0);
    let gone = uuid::Uuid::now_v7().to_string();
    let dir = home.path().join("data/output");
    for name in [gone.as_str(), "notes"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    done(&server.client, "retention").await;
    assert_eq!([&*gone, "notes", &*run].map(|name| dir.join(name).exists()), [false, true, true]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_let_go_of_goes_in_steps_that_are_bounded() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let publisher = &server.server.api().publisher;
    let topic = publisher.topic(&"job".parse().unwrap()).unwrap();
    for number in 0..400 {
        let body = Body::Thought { text: format!("{number} {}", "x".repeat(20_000)) };
        publisher.publish(&topic, None, &body).await.unwrap();
    }
    let mut file = rusqlite::Connection::open(home.database()).unwrap();
    // It writes after it has read: it has to be the one who writes from the beginning.
    let transaction = file.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let count = || transaction.query_row("SELECT count(*) FROM segments", [], |row| row.get::<_, i64>(0)).unwrap();
    let (mut steps, mut before) = (0, count());
    while let Some(raised) = log::raise_oldest(&transaction, topic.no, Seq(380)).unwrap() {
        let now = count();
        assert!(before - now <= 30, "half a MiB of 20 KB each: {}", before - now);
        (steps, before) = (steps + 1, now);
        assert_eq!(raised.done, raised.oldest == Seq(380));
    }
    assert!(steps > 10, "{steps}");
    assert_eq!(before, 21);
    transaction.rollback().unwrap();
    publisher.raise_oldest(&topic, Seq(380)).await.unwrap();
    assert_eq!(topic.tail().oldest, Seq(380));
    assert_eq!(home.logged("job").first().unwrap().0, 380);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_chore_can_be_seen_with_its_last_time_its_result_and_its_next_also_after_a_restart() {
    let start: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(start);
    let home = Home::new("[housekeeping]\nvacuum = \"2h\"").shell_task("job", "true");
    let server = home.serve_at(clock.clone()).await;
    for chore in ["retention", "vacuum", "checkpoint", "integrity"] {
        let last = done(&server.client, chore).await;
        assert_eq!(last["ok"], true, "{chore}: {last}");
        assert_eq!(last["at"], "2026-11-21T12:00:00.000000Z");
    }
    let (status, answer) = server.client.post("/housekeeping/backup/run", json!({})).await;
    assert_eq!((status, &answer["code"]), (409, &json!("chore_off")), "no folder is named");
    assert_eq!(standing(&server.client, "backup").await["state"], "off");
    let (status, answer) = server.client.post("/housekeeping/dusting/run", json!({})).await;
    assert_eq!((status, &answer["code"]), (404, &json!("not_found")));
    // Housekeeping is no task: lists stay as they are.
    assert_eq!(server.client.get("/tasks").await.1["items"].as_array().unwrap().len(), 1);
    server.stop().await;
    let server = home.serve_at(clock.clone()).await;
    let vacuum = standing(&server.client, "vacuum").await;
    assert_eq!(vacuum["last"]["at"], "2026-11-21T12:00:00.000000Z", "{vacuum}");
    assert_eq!(vacuum["next_at"], "2026-11-21T14:00:00.000000Z");
    // The bell rings; it is not due. Then it is.
    let bell = server.server.api().housekeeping.bell();
    clock.set(start + SignedDuration::from_mins(119));
    let retention = |all: &Value| of(all, "retention")["last"]["at"] == "2026-11-21T13:59:00.000000Z";
    bell.notify_one();
    server.client.until("/housekeeping", retention).await;
    assert_eq!(standing(&server.client, "vacuum").await["last"], vacuum["last"], "not before its time");
    clock.set(start + SignedDuration::from_mins(121));
    bell.notify_one();
    let vacuumed = |all: &Value| of(all, "vacuum")["last"]["at"] == "2026-11-21T14:01:00.000000Z";
    server.client.until("/housekeeping", vacuumed).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_that_is_no_longer_needed_is_given_back_while_events_are_written() {
    let home = Home::new("").shell_task("job", "true").shell_task("busy", "true");
    let server = home.serve().await;
    // What never was done is done at the first ring.
    done(&server.client, "vacuum").await;
    done(&server.client, "integrity").await;
    let publisher = server.server.api().publisher.clone();
    let topic = publisher.topic(&"job".parse().unwrap()).unwrap();
    for number in 0..600 {
        let body = Body::Thought { text: format!("{number} {}", "x".repeat(30_000)) };
        publisher.offer(&topic, None, &body).await.unwrap();
    }
    let end = publisher.publish(&topic, None, &Body::Thought { text: "end".into() }).await.unwrap();
    publisher.raise_oldest(&topic, Seq(end.0 + 1)).await.unwrap();
    done(&server.client, "checkpoint").await;
    let size = || std::fs::metadata(home.database()).unwrap().len();
    let before = size();
    // Somebody writes all the time, one event after the other.
    let (busy, writer) = (publisher.topic(&"busy".parse().unwrap()).unwrap(), publisher.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::spawn(async move {
        let mut stopped = stopped;
        let mut longest = std::time::Duration::ZERO;
        while stopped.try_recv().is_err() {
            let began = std::time::Instant::now();
            writer.publish(&busy, None, &Body::Thought { text: "x".into() }).await.unwrap();
            longest = longest.max(began.elapsed());
        }
        longest
    });
    let last = done(&server.client, "vacuum").await;
    stop.send(()).unwrap();
    eprintln!("vacuum: {last}; the longest that an event waited: {:?}", writing.await.unwrap());
    assert!(last["result"].as_str().unwrap().starts_with("gave back 1"), "{last}");
    done(&server.client, "checkpoint").await;
    assert!(size() + (12 << 20) < before, "{before} {}", size());
    assert_eq!(done(&server.client, "integrity").await["result"], "no damage");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_everybody_is_told() {
    let home = Home::new("").shell_task("job", "true");
    home.serve().await.stop().await;
    let (page, size) = {
        let file = rusqlite::Connection::open(home.database()).unwrap();
        file.execute_batch("CREATE TABLE other (a); INSERT INTO other VALUES (1)").unwrap();
        let page: u64 = file
            .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'other'", [], |row| row.get::<_, i64>(0))
            .unwrap()
            .unsigned_abs();
        file.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        (page, file.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0)).unwrap().unsigned_abs())
    };
    let write = |bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(home.database()).unwrap();
        file.write_all_at(bytes, (page - 1) * size).unwrap();
    };
    let mut good = vec![0; usize::try_from(size).unwrap()];
    {
        use std::os::unix::fs::FileExt;
        std::fs::File::open(home.database()).unwrap().read_exact_at(&mut good, (page - 1) * size).unwrap();
    }
    write(&vec![0x55; good.len()]);
    let server = home.serve().await;
    let last = done(&server.client, "integrity").await;
    assert_eq!(last["ok"], false, "{last}");
    assert!(last["result"].as_str().unwrap().starts_with("the store is damaged ("), "{last}");
    assert_eq!(standing(&server.client, "integrity").await["state"], "failed");
    let told = |status: &Value| {
        let notices = status["notices"].as_array().unwrap();
        notices.iter().any(|notice| {
            notice["code"] == "housekeeping_failed"
                && notice["text"].as_str().unwrap().contains("integrity: the store is damaged")
        })
    };
    server.client.until("/status", told).await;
    server.stop().await;
    write(&good);
    let server = home.serve().await;
    server.client.until("/status", told).await;
    assert_eq!(done(&server.client, "integrity").await["ok"], true);
    server.client.until("/status", |status| !told(status)).await;
    server.stop().await;
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_made_when_they_are_due_and_so_many_are_kept() {
    let start: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(start);
    let home = Home::new("[backup]\nfolder = \"copies\"\nkeep = 2\nevery = \"1h\"").shell_task("job", "echo x");
    let server = home.serve_at(clock.clone()).await;
    runs(&server, "job", 1).await;
    let bell = server.server.api().housekeeping.bell();
    for hour in 0..4 {
        clock.set(start + SignedDuration::from_hours(hour));
        bell.notify_one();
        let made = |all: &Value| {
            let last = of(all, "backup")["last"].clone();
            last["at"] == json!(rejoin::clock::rfc3339(start + SignedDuration::from_hours(hour)))
        };
        let all = server.client.until("/housekeeping", made).await;
        assert_eq!(of(&all, "backup")["last"]["ok"], true, "{all}");
    }
    let copies = home.path().join("copies");
    let mark = std::fs::read_to_string(home.path().join("data/backup-mark")).unwrap();
    let named = ["14", "15"].map(|hour| format!("rejoin-20261121T{hour}0000Z-{mark}.db"));
    assert_eq!(names(&copies), named);
    for name in names(&copies) {
        use std::os::unix::fs::PermissionsExt;
        let file = copies.join(name);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let label = rejoin::store::restore::examine(&file).unwrap().unwrap();
        assert!(label.outputs);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_a_folder_for_their_copies_remove_only_their_own() {
    let shared = tempfile::tempdir().unwrap();
    let config = format!("[backup]\nfolder = \"{}\"\nkeep = 1\nevery = \"1000h\"", shared.path().display());
    let homes = [Home::new(&config), Home::new(&config)];
    let clock = Clock::standing_at("2026-11-21T12:00:00Z".parse().unwrap());
    let servers = [homes[0].serve_at(clock.clone()).await, homes[1].serve_at(clock.clone()).await];
    let copies = |home: &Home| {
        let mark = std::fs::read_to_string(home.path().join("data/backup-mark")).unwrap_or("none".to_owned());
        names(shared.path()).into_iter().filter(|name| name.ends_with(&format!("-{mark}.db"))).count()
    };
    // The first copies of both are of the same second.
    for server in &servers {
        assert_eq!(done(&server.client, "backup").await["ok"], true);
    }
    // One that another server writes at this moment.
    let part = shared.path().join(".rejoin-20261121T120000Z-00000000.db.part");
    std::fs::write(&part, "").unwrap();
    for _ in 0..2 {
        clock.pass(Duration::from_secs(60));
        assert_eq!(done(&servers[0].client, "backup").await["ok"], true);
    }
    assert_eq!([copies(&homes[0]), copies(&homes[1])], [1, 1], "{:?}", names(shared.path()));
    assert!(part.exists());
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_said_and_nothing_of_a_copy_is_left() {
    let home = Home::new("[backup]\nfolder = \"copies\"").shell_task("job", "head -c 3000000 /dev/zero | tr '\\0' x");
    let server = home.spawn(&[]).await;
    let run = server.client.run("job").await;
    server.client.ended(&run).await;
    // The first of all is made by itself sooner or later: from here on none is.
    done(&server.client, "backup").await;
    let copies = home.path().join("copies");
    names(&copies).iter().for_each(|name| std::fs::remove_file(copies.join(name)).unwrap());
    // The store's log goes on from its beginning: only the copy is too large.
    done(&server.client, "checkpoint").await;
    limit_files(server.pid(), Some(1 << 20));
    let last = done(&server.client, "backup").await;
    assert_eq!(last["ok"], false, "{last}");
    assert!(last["result"].as_str().unwrap().contains("no room"), "{last}");
    assert_eq!(names(&copies), [] as [&str; 0]);
    let (status, answer) = server.client.get("/backup").await;
    assert_eq!((status, &answer["code"]), (507, &json!("disk_full")), "{answer}");
    assert!(names(&home.path().join("data")).iter().all(|name| !name.contains("part")));
    limit_files(server.pid(), None);
    assert_eq!(done(&server.client, "backup").await["ok"], true);
    assert_eq!(names(&copies).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_task_is_gone_at_once_with_all_its_rows() {
    let home = Home::new("");
    let server = home.serve().await;
    let body = json!({ "title": "T", "id": "t", "schedule": { "every": "9d" }, "steps": [{ "run": "echo x" }] });
    assert_eq!(server.client.post("/tasks", body.clone()).await.0, 201);
    let run = runs(&server, "t", 1).await.remove(0);
    assert_eq!(server.client.delete("/tasks/t").await.0, 204);
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.0, 404);
    assert!(!has_output(&home, &run));
    assert_eq!(["tasks", "runs", "segments", "slots"].map(|table| rows(&home, table)), [0; 4]);
    assert_eq!(server.client.post("/tasks", body).await.0, 201, "the name is free");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_rings_together_take_no_more_than_they_may_without_waiting_for_the_next_round() {
    let home = Home::new("[stream]\nring_total_bytes = \"256 KiB\"");
    let home = (0..8).fold(home, |home, number| home.shell_task(&format!("t{number}"), "true"));
    let server = home.serve().await;
    let publisher = &server.server.api().publisher;
    let topics: Vec<_> =
        (0..8).map(|number| publisher.topic(&format!("t{number}").parse().unwrap()).unwrap()).collect();
    for round in 0..8 {
        for topic in &topics {
            publisher
                .publish(topic, None, &Body::Thought { text: format!("{round} {}", "x".repeat(20_000)) })
                .await
                .unwrap();
        }
    }
    // The round from time to time comes after ten seconds only.
    let began = std::time::Instant::now();
    while topics.iter().map(|topic| topic.tail().ring.bytes()).sum::<usize>() > 256 << 10 {
        assert!(began.elapsed() < std::time::Duration::from_secs(8), "more than they may");
        tokio::task::yield_now().await;
    }
    server.stop().await;
}
