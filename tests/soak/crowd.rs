//! A crowd: two hundred who watch by sockets, streams and pages, over lines that are cut, reset, dead, stalled and
//! slow; producers that flood and are cut themselves; retention that takes what is old from under the slow; tasks that
//! are deleted and made again. In the end everybody has everything once and in order, or was told what is gone.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::follower::{Counts, Follower, Habit, Way};
use crate::harness::Home;
use crate::load::{by_hand, come_and_go};
use crate::part::{Part, play};
use crate::speaker::{Speaker, Voice};
use crate::stage::{ELSEWHERE, Stage, ticking};

/// Heartbeats and lives are short, so that many lines can die; what is replayed and kept is little, so that each answer
/// comes up often.
const CONFIG: &str = "[stream]\nheartbeat = \"2s\"\nlife = \"6s\"\nconnections_per_credential = 2000\n\
                      replay_events = 3000\nslow_window = \"5s\"\n\
                      [retention]\nevents = 8000\nruns = 60\nevery = \"5s\"\n";
const LIFE: Duration = Duration::from_secs(6);
/// Tasks that are fed from elsewhere, and tasks that come and go.
const FED: usize = 4;
const FLEETING: usize = 2;
/// Sockets, slow sockets, streams, readers of pages.
const CROWD: [u64; 4] = [110, 25, 40, 25];
/// What must have happened in a crowd of full length, so that it was one.
const AT_LEAST: [(&str, u64); 12] = [
    ("cuts by FIN", 2000),
    ("cuts by RST", 2000),
    ("lines dead without a word", 1000),
    ("stalls", 1000),
    ("closed: too slow", 20),
    ("closed: no life", 200),
    ("newer sockets", 500),
    ("resubscribes", 1000),
    ("reset: too_far", 50),
    ("reset: retention", 50),
    ("reset: generation", 100),
    ("not found", 100),
];

async fn crowd(part: Arc<Part>, sizes: [u64; 4], peace: Duration) {
    let fed: Vec<String> = (0..FED).map(|number| format!("fed-{number}")).collect();
    let fleeting: Vec<String> = (0..FLEETING).map(|number| format!("fleeting-{number}")).collect();
    let home = fed.iter().fold(Home::new(CONFIG), |home, task| home.task(task, ELSEWHERE));
    let home = home.task("ticking", &ticking(Duration::from_secs(2))).shell_task("by-hand", "seq 30; echo over >&2");
    let stage = Stage::open(&part, home).await;
    stage.road.put_proxy().await;
    let mut random = StdRng::seed_from_u64(part.seed);

    let mut speakers = JoinSet::new();
    for (number, task) in fed.iter().enumerate() {
        let voice = Voice {
            task: task.clone(),
            pause: Duration::from_millis([100, 250, 500, 1000][number % 4]),
            chunk: 1..[4, 10, 30, 100][number % 4],
            flood: ([0.0005, 0.001, 0.002, 0.004][number % 4], 6000),
            chars: 0..700,
            run: 100..20_000,
            cut: 0.02,
        };
        speakers.spawn(Speaker::new(&stage.road, voice, random.random()).speak());
    }
    let mut others = JoinSet::new();
    for task in &fleeting {
        let stay = peace * 2;
        others.spawn(come_and_go(Arc::clone(&stage.road), task.clone(), stay, random.random()));
        let voice = Voice {
            task: task.clone(),
            pause: Duration::from_millis(200),
            chunk: 1..20,
            flood: (0.0, 0),
            chars: 0..300,
            run: 50..500,
            cut: 0.02,
        };
        speakers.spawn(Speaker::new(&stage.road, voice, random.random()).speak());
    }
    others.spawn(by_hand(Arc::clone(&stage.road), "by-hand".to_owned(), Duration::from_secs(2), random.random()));

    let mut tasks = [fed, fleeting].concat();
    tasks.extend(["ticking".to_owned(), "by-hand".to_owned()]);
    let mut watchers = JoinSet::new();
    let ways = ["socket", "slow", "stream", "pages"];
    for (way, count) in ways.into_iter().zip(sizes) {
        for number in 0..count {
            let (way_, most) = match way {
                "socket" => (Way::Socket, 4),
                "slow" => (Way::Slow(1 << random.random_range(10..17)), 2),
                "stream" => (Way::Stream, 1),
                _ => (Way::Pages, 3),
            };
            let habit = Habit { way: way_, life: LIFE, peace: Some(peace) };
            let several = random.random_range(1..=most);
            let mine: Vec<String> = tasks.sample(&mut random, several).cloned().collect();
            let name = format!("{way} {number}");
            let seed = random.random();
            watchers.spawn(Follower::new(name, habit, &mine, &stage.road, &stage.ledger, seed).follow());
        }
    }
    let probe = stage.probe();
    let (mut most, before) = (0, probe.processor());
    while !part.is_over() {
        tokio::select! {
            () = tokio::time::sleep(part.left().min(Duration::from_secs(30))) => {}
            // None ends before its time but by failing.
            failed = watchers.join_next() => panic!("a watcher ended early: {:?}", failed.unwrap().unwrap()),
            failed = speakers.join_next() => drop(failed.unwrap().unwrap().ended),
            failed = others.join_next() => drop(failed.unwrap().unwrap()),
        }
        let sample = probe.sample();
        most = most.max(sample.resident_kib);
        part.say(format!(
            "{} events saved, {} wrong, the server has {} MiB and {} descriptors",
            stage.ledger.totals().0,
            stage.ledger.verdict().0,
            sample.resident_kib / 1024,
            sample.descriptors
        ));
    }
    part.note("watchers", sizes.iter().sum::<u64>());
    part.note("the server's memory at most, in MiB", most / 1024);
    part.note("the server's processor time, in s", (probe.processor() - before).as_secs());
    // Those who make tasks leave them there in the end.
    stage.road.quieten();
    let mut made = Counts::new();
    while let Some(other) = others.join_next().await {
        for (what, count) in other.unwrap() {
            *made.entry(what).or_default() += count;
        }
    }
    part.note("done beside", &made);
    let counts = stage.close(&part, &["ticking"], speakers, watchers).await;
    if part.full {
        let few: Vec<_> =
            AT_LEAST.iter().filter(|(what, least)| counts.get(what).copied().unwrap_or_default() < *least).collect();
        assert!(few.is_empty(), "too little happened for a crowd: {few:?} are wanted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t_06_t_31_a_crowd_over_bad_lines_loses_and_doubles_nothing() {
    crowd(Part::glance("crowd", Duration::from_secs(12)), [12, 3, 5, 4], Duration::from_secs(2)).await;
}

#[test]
#[ignore = "three quarters of an hour: make soak"]
fn crowd_at_full_length() {
    play("crowd", "SOAK_SERVER", |part| async move { crowd(part, CROWD, Duration::from_secs(12)).await });
}
