//! The server under a steady, mixed load, measured all the while: its memory may not climb, its descriptors and threads
//! stay what they are, and no child is left unreaped.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::follower::{Counts, Follower, Habit, Way};
use crate::harness::Home;
use crate::load::{by_hand, come_and_go};
use crate::part::{Part, play};
use crate::probe::{Sample, error_of_slope, slope};
use crate::speaker::{Speaker, Voice};
use crate::stage::{ELSEWHERE, Stage, ticking};

/// What is kept is little, so that what is kept is the same from early on.
const CONFIG: &str = "[stream]\nconnections_per_credential = 1000\nreplay_events = 2000\n\
                      [retention]\nevents = 4000\nruns = 40\nevery = \"10s\"\n";
const LIFE: Duration = Duration::from_secs(25);
const EVERY: Duration = Duration::from_secs(1);
/// So many are a minute.
const MINUTE: usize = 60;
/// How much the memory may climb: the slope of its floor in the second half.
const MOST_PER_HOUR: f64 = 1024.0;
/// What is open when all have left, beyond what was open before they came: two for each reader of the store that stays,
/// and a few connections.
const MORE_DESCRIPTORS: usize = 20;
/// The clients of the load keep what they do not use for 90 s.
const LEAVING: Duration = Duration::from_secs(120);

async fn memory(part: Arc<Part>) {
    let fed: Vec<String> = (0..3).map(|number| format!("fed-{number}")).collect();
    let home = fed.iter().fold(Home::new(CONFIG), |home, task| home.task(task, ELSEWHERE));
    let home = home.task("ticking", &ticking(Duration::from_secs(2))).shell_task("by-hand", "seq 30; echo over >&2");
    let stage = Stage::open(&part, home).await;
    stage.road.put_proxy().await;
    let probe = stage.probe();
    let before = probe.sample();
    let mut random = StdRng::seed_from_u64(part.seed);

    let mut speakers = JoinSet::new();
    for task in fed.iter().map(String::as_str).chain(["fleeting"]) {
        let voice = Voice {
            task: task.to_owned(),
            pause: Duration::from_millis(100),
            chunk: 1..6,
            flood: (0.0, 0),
            chars: 0..700,
            run: 100..1000,
            cut: 0.002,
        };
        speakers.spawn(Speaker::new(&stage.road, voice, random.random()).speak());
    }
    let mut others = JoinSet::new();
    let stay = Duration::from_secs(10);
    others.spawn(come_and_go(Arc::clone(&stage.road), "fleeting".to_owned(), stay, random.random()));
    others.spawn(by_hand(Arc::clone(&stage.road), "by-hand".to_owned(), Duration::from_secs(1), random.random()));

    // Some stay all the time, others come and go and are cut.
    let mut watchers = JoinSet::new();
    let tasks = [fed, vec!["ticking".to_owned(), "by-hand".to_owned(), "fleeting".to_owned()]].concat();
    for number in 0..48 {
        let way = match number % 8 {
            0..5 => Way::Socket,
            5 | 6 => Way::Stream,
            _ => Way::Pages,
        };
        let peace = (number >= 24).then_some(Duration::from_secs(5));
        let habit = Habit { way, life: LIFE, peace };
        let mine = if way == Way::Stream { vec![tasks[number % tasks.len()].clone()] } else { tasks.clone() };
        let name = format!("watcher {number}");
        let seed = random.random();
        watchers.spawn(Follower::new(name, habit, &mine, &stage.road, &stage.ledger, seed).follow());
    }

    let begun = Instant::now();
    let mut samples: Vec<(f64, Sample)> = Vec::new();
    while !part.is_over() {
        tokio::select! {
            () = tokio::time::sleep(part.left().min(EVERY)) => {}
            failed = watchers.join_next() => panic!("a watcher ended early: {:?}", failed.unwrap().unwrap()),
            failed = speakers.join_next() => drop(failed.unwrap().unwrap().ended),
            failed = others.join_next() => drop(failed.unwrap().unwrap()),
        }
        let sample = probe.sample();
        samples.push((begun.elapsed().as_secs_f64() / 3600.0, sample));
        if samples.len().is_multiple_of(MINUTE) {
            part.say(format!("{sample:?}, {} wrong", stage.ledger.verdict().0));
        }
    }
    let used = probe.processor();
    stage.road.quieten();
    let mut made = Counts::new();
    while let Some(other) = others.join_next().await {
        for (what, count) in other.unwrap() {
            *made.entry(what).or_default() += count;
        }
    }
    part.note("done beside", &made);
    part.note("the server's processor time, in s", used.as_secs());
    let judged = judge(&part, &samples);
    let road = Arc::clone(&stage.road);
    let (_, (after, open)) = stage
        .close_after(&part, &["ticking"], speakers, watchers, async {
            // The last to leave are still being noticed.
            let deadline = Instant::now() + LEAVING;
            loop {
                let status = road.call(reqwest::Method::GET, "/status", None).await;
                let alone = status.is_some_and(|(_, status)| status["connections"] == 0)
                    && probe.sample().descriptors <= before.descriptors + MORE_DESCRIPTORS;
                if alone || Instant::now() > deadline {
                    return (probe.sample(), probe.open());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    part.note("before", before);
    part.note("when all have left", after);
    part.note("what is open then", &open);
    let least = before.descriptors + MORE_DESCRIPTORS;
    assert!(
        after.descriptors <= least,
        "{} descriptors are open when all have left, not {least}: {open:?}",
        after.descriptors
    );
    assert_eq!(after.zombies, 0, "children are left unreaped");
    if part.full {
        judged.unwrap();
    }
}

/// Looks at the second half of the samples, and there at the least of each minute: what comes and goes with the load
/// moves the memory by more within seconds than it may climb in an hour. The floors of descriptors, threads and zombies
/// must stay the same, that of the memory may climb by so much.
fn judge(part: &Part, samples: &[(f64, Sample)]) -> Result<(), String> {
    let second = &samples[samples.len() / 2..];
    let line = |of: fn(&Sample) -> f64| slope(&second.iter().map(|(at, sample)| (*at, of(sample))).collect::<Vec<_>>());
    let minutes: Vec<&[(f64, Sample)]> = second.chunks_exact(MINUTE).collect();
    let floors = |of: fn(&Sample) -> u64| -> Vec<u64> {
        minutes.iter().map(|minute| minute.iter().map(|(_, sample)| of(sample)).min().unwrap()).collect()
    };
    let descriptors = floors(|sample| sample.descriptors as u64);
    let threads = floors(|sample| sample.threads);
    let zombies = floors(|sample| sample.zombies as u64);
    let memory = floors(|sample| sample.resident_kib);
    let hours = |index: usize| index as f64 / 60.0;
    let points: Vec<_> = memory.iter().enumerate().map(|(index, kib)| (hours(index), *kib as f64)).collect();
    let resident = slope(&points);
    part.note("slope of the resident memory's floor over the second half, in KiB/h", resident.round());
    part.note("standard error of that slope, in KiB/h", error_of_slope(&points).round());
    part.note("least resident KiB in each minute of the second half", &memory);
    part.note("slope of all samples of it, in KiB/h", line(|sample| sample.resident_kib as f64).round());
    part.note("slope of the descriptors, per h", line(|sample| sample.descriptors as f64));
    let each_minute =
        |of: fn(&Sample) -> u64| -> Vec<u64> { samples.chunks(MINUTE).map(|minute| of(&minute[0].1)).collect() };
    part.note(
        "each minute",
        json!({
            "resident KiB": each_minute(|sample| sample.resident_kib),
            "descriptors": each_minute(|sample| sample.descriptors as u64),
            "threads": each_minute(|sample| sample.threads),
            "zombies": each_minute(|sample| sample.zombies as u64),
        }),
    );
    part.note("fewest descriptors in each minute of the second half", &descriptors);
    part.note("fewest threads", &threads);
    part.note("fewest zombies", &zombies);
    let mut wrong = Vec::new();
    if resident >= MOST_PER_HOUR {
        wrong.push(format!("the memory climbs by {resident:.0} KiB/h"));
    }
    // The floors of the first and the last third: a leak lifts the last.
    for (what, floors, room) in [("descriptors", &descriptors, 2), ("threads", &threads, 0), ("zombies", &zombies, 0)] {
        let third = floors.len() / 3;
        if third == 0 {
            continue;
        }
        let (first, last) = (floors[..third].iter().min(), floors[floors.len() - third..].iter().min());
        if last > first.map(|first| first + room).as_ref() {
            wrong.push(format!("{what} grow: {floors:?}"));
        }
    }
    if zombies.iter().any(|zombies| *zombies > 0) {
        wrong.push(format!("zombies stay for a minute: {zombies:?}"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn per_11_under_a_mixed_load_nothing_stays_behind_in_the_server() {
    memory(Part::glance("memory", Duration::from_secs(6))).await;
}

#[test]
#[ignore = "three quarters of an hour: make soak"]
fn memory_at_full_length() {
    play("memory", "SOAK_SERVER", memory);
}
