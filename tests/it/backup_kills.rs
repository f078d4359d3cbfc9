//! `kill -9` in the middle of a backup and of a restore, at each of its points: what is there then is whole.

use crate::backup::{data, rejoin, said};
use crate::harness::{Archive, Home};
use crate::housekeeping::done;

use serde_json::json;

/// A home with so many runs of one task, stopped.
async fn home_with(runs: usize) -> Home {
    let home = Home::new("").shell_task("job", "echo hello");
    let server = home.serve().await;
    for _ in 0..runs {
        let run = server.client.run("job").await;
        server.client.ended(&run).await;
    }
    server.stop().await;
    home
}

/// How many runs there are, and how many of them have outputs, once a server has it.
async fn has(home: &Home) -> (usize, usize) {
    let server = home.serve().await;
    let runs = server.client.get("/tasks/job/runs").await.1;
    let ids: Vec<_> = runs["items"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    let output = data(home).join("output");
    let all = std::fs::read_dir(&output).map_or(0, |entries| entries.count());
    let with = ids.iter().filter(|id| output.join(id).exists()).count();
    assert_eq!(all, with, "outputs and runs are of the same data");
    let run = server.client.run("job").await;
    assert_eq!(server.client.ended(&run).await["state"], "succeeded");
    server.stop().await;
    assert!(!data(home).join("restoring").exists());
    (ids.len(), with)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_in_a_restore_the_folder_has_the_old_data_or_the_new_and_never_a_mixture() {
    let source = home_with(3).await;
    let file = source.path().join("copy.db");
    said(&rejoin(&data(&source), &["backup", file.to_str().unwrap()], &[]), 0);
    let mut moves = 0;
    for point in ["restore-staged@1", "restore-ready@1"]
        .into_iter()
        .map(str::to_owned)
        .chain((1..=7).map(|n| format!("restore-moved@{n}")))
    {
        let home = home_with(1).await;
        let killed = rejoin(&data(&home), &["restore", file.to_str().unwrap()], &[("REJOIN_FAILPOINT", &point)]);
        if killed.status.success() {
            assert!(point.starts_with("restore-moved"), "{point} was never passed");
            continue;
        }
        moves += usize::from(point.starts_with("restore-moved"));
        let expected = if point.starts_with("restore-staged") { (1, 1) } else { (3, 3) };
        assert_eq!(has(&home).await, expected, "{point}");
        // And it can be done again.
        said(&rejoin(&data(&home), &["restore", file.to_str().unwrap()], &[]), 0);
        assert_eq!(has(&home).await, (3, 3), "{point}");
    }
    assert!(moves >= 5, "what was there goes, what is new comes: {moves}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_backup_there_is_no_file_of_its_name_and_the_next_one_is_made() {
    let home = home_with(1).await;
    let file = home.path().join("copy.db");
    let killed = rejoin(&data(&home), &["backup", file.to_str().unwrap()], &[("REJOIN_FAILPOINT", "backup-copied@1")]);
    assert!(!killed.status.success() && !file.exists());
    said(&rejoin(&data(&home), &["backup", file.to_str().unwrap()], &[]), 0);
    assert_eq!(Archive::at(&file).logs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_copy_of_its_own_the_server_leaves_none_and_makes_it_again() {
    let home = Home::new("[backup]\nfolder = \"copies\"").shell_task("job", "true");
    let mut server = home.spawn(&[("REJOIN_FAILPOINT", "backup-copied@1")]).await;
    let _ = server.client.request(reqwest::Method::POST, "/housekeeping/backup/run").json(&json!({})).send().await;
    server.ended().await;
    let names = || {
        let entries = std::fs::read_dir(home.path().join("copies")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert!(names().iter().all(|name| name.starts_with('.')), "{:?}", names());
    let server = home.spawn(&[]).await;
    assert_eq!(done(&server.client, "backup").await["ok"], true);
    assert!(names().len() == 1 && names()[0].starts_with("rejoin-"), "{:?}", names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_task_whose_rows_a_kill_left_is_gone_and_housekeeping_takes_them() {
    let home = Home::new("");
    let mut server = home.spawn(&[("REJOIN_FAILPOINT", "removed-not-buried@1")]).await;
    let body = json!({ "title": "T", "id": "t", "schedule": { "every": "9d" }, "steps": [{ "run": "echo x" }] });
    assert_eq!(server.client.post("/tasks", body.clone()).await.0, 201);
    let run = server.client.run("t").await;
    server.client.ended(&run).await;
    let _ = server.client.request(reqwest::Method::DELETE, "/tasks/t").send().await;
    server.ended().await;
    let rows = |table: &str| {
        let file = rusqlite::Connection::open(home.database()).unwrap();
        file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert!(rows("segments") > 0);
    let server = home.spawn(&[]).await;
    assert_eq!(server.client.get("/tasks").await.1["items"], json!([]));
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.0, 404);
    assert_eq!(server.client.get("/runs").await.1["items"], json!([]));
    assert_eq!(server.client.post("/tasks", body).await.0, 201, "the name is free");
    done(&server.client, "retention").await;
    assert_eq!(["segments", "runs", "slots"].map(rows), [0; 3]);
    assert_eq!(rows("tasks"), 1);
    assert!(!data(&home).join("output").join(&run).exists());
}
