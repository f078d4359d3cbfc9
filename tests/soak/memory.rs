//! The server under a mixed load that rests now and then, and is measured while it rests: its memory may not climb, its
//! descriptors and threads stay what they are, and no child is left unreaped.

use std::collections::BTreeMap;
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
/// How much the memory may climb: the slope of what is resident while the load rests.
const MOST_PER_HOUR: f64 = 1024.0;
/// What is open when all have left, beyond what was open before they came: two for each reader of the store that stays,
/// and a few connections.
const MORE_DESCRIPTORS: u64 = 20;
/// The clients of the load keep what they do not use for 90 s.
const LEAVING: Duration = Duration::from_secs(120);

/// The load comes in turns: what comes and goes with it moves the memory by more within seconds than the memory may climb
/// in an hour, so that a leak shows only where all of that is gone.
struct Turns {
    /// For so long there is load.
    load: Duration,
    /// Then there is none until the next turn, and after so long all of it has settled.
    settle: Duration,
    /// What is measured from there to the next turn is one measurement.
    measure: Duration,
}

impl Turns {
    const FULL: Self =
        Self { load: Duration::from_secs(60), settle: Duration::from_secs(20), measure: Duration::from_secs(10) };
    /// For the gate, which judges none of it.
    const GLANCE: Self =
        Self { load: Duration::from_secs(2), settle: Duration::from_millis(500), measure: Duration::from_millis(1500) };

    /// The number of the turn at a time since the first began, and how long it has lasted.
    fn at(&self, since: Duration) -> (usize, Duration) {
        let whole = self.load + self.settle + self.measure;
        let turn = since.as_nanos() / whole.as_nanos();
        (turn as usize, since - whole * turn as u32)
    }

    fn rests(&self, within: Duration) -> bool {
        within >= self.load
    }

    fn is_settled(&self, within: Duration) -> bool {
        within >= self.load + self.settle
    }
}

/// The least of what was seen in one rest, and when it was.
#[derive(Clone, Copy, Debug)]
struct Rest {
    hours: f64,
    least: Sample,
}

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

    let turns = if part.full { Turns::FULL } else { Turns::GLANCE };
    let begun = Instant::now();
    // By turn: a machine that stood still may have missed one.
    let (mut rests, mut most): (BTreeMap<usize, Rest>, BTreeMap<usize, Sample>) = Default::default();
    let mut resting = false;
    while !part.is_over() {
        tokio::select! {
            () = tokio::time::sleep(part.left().min(EVERY)) => {}
            failed = watchers.join_next() => panic!("a watcher ended early: {:?}", failed.unwrap().unwrap()),
            failed = speakers.join_next() => drop(failed.unwrap().unwrap().ended),
            failed = others.join_next() => drop(failed.unwrap().unwrap()),
        }
        let (turn, within) = turns.at(begun.elapsed());
        if turns.rests(within) != resting {
            resting = !resting;
            stage.road.pause(resting);
            let change = format!("/tasks/ticking/{}", if resting { "pause" } else { "resume" });
            assert_eq!(stage.server.client.post(&change, json!({})).await.0, 200);
        }
        let sample = probe.sample();
        let so_far = most.entry(turn).or_insert(sample);
        *so_far = so_far.or(&sample, u64::max);
        if turns.is_settled(within) {
            let rest = rests.entry(turn).or_insert_with(|| {
                part.say(format!("{sample:?}, {} wrong", stage.ledger.verdict().0));
                Rest { hours: begun.elapsed().as_secs_f64() / 3600.0, least: sample }
            });
            rest.least = rest.least.or(&sample, u64::min);
        }
    }
    let (rests, most): (Vec<Rest>, Vec<Sample>) = (rests.into_values().collect(), most.into_values().collect());
    stage.road.pause(false);
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
    let judged = judge(&part, &rests, &most);
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

/// Looks at the rests behind the first third, in which caches and rings fill: the memory may climb by so much over
/// them, the least of descriptors, threads and zombies must stay the same.
fn judge(part: &Part, rests: &[Rest], most: &[Sample]) -> Result<(), String> {
    let (early, later) = rests.split_at(rests.len() / 3);
    let each = |of: fn(&Sample) -> u64| -> Vec<u64> { later.iter().map(|rest| of(&rest.least)).collect() };
    let descriptors = each(|sample| sample.descriptors);
    let threads = each(|sample| sample.threads);
    let zombies = each(|sample| sample.zombies);
    let points: Vec<_> = later.iter().map(|rest| (rest.hours, rest.least.resident_kib as f64)).collect();
    let climb = slope(&points);
    part.note("slope of the resident memory at rest behind the first third, in KiB/h", climb.round());
    part.note("standard error of that slope, in KiB/h", error_of_slope(&points).round());
    part.note("rests that were judged", later.len());
    part.note("at rest", later.iter().map(|rest| rest.least).collect::<Vec<_>>());
    part.note("at rest in the first third", early.iter().map(|rest| rest.least).collect::<Vec<_>>());
    part.note("most in each turn", most);
    let mut wrong = Vec::new();
    if climb.is_nan() || climb >= MOST_PER_HOUR {
        wrong.push(format!("the memory climbs by {climb:.0} KiB/h"));
    }
    // The least of the first and of the last third: a leak lifts the last.
    for (what, least, room) in [("descriptors", &descriptors, 2), ("threads", &threads, 0), ("zombies", &zombies, 0)] {
        let third = least.len().div_ceil(3);
        let (first, last) = (least.iter().take(third).min(), least.iter().rev().take(third).min());
        if last > first.map(|first| first + room).as_ref() {
            wrong.push(format!("{what} grow: {least:?}"));
        }
    }
    if zombies.iter().any(|zombies| *zombies > 0) {
        wrong.push(format!("zombies stay through a rest: {zombies:?}"));
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
