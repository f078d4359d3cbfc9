//! Five hundred kills -9 of a server at work: at each point at which that is hard, and at random moments. Beside the
//! tasks and the recorder of the scene there are producers and watchers of every kind, and all of them go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::follower::{Counts, Follower, Habit, Way};
use crate::harness::{Archive, Home};
use crate::kills_scene::{Checked, SOON, Scene};
use crate::ledger::Ledger;
use crate::part::{Part, play};
use crate::road::Road;
use crate::speaker::{Speaker, Voice, compare};
use crate::stage::ELSEWHERE;

/// The points, each with the passes among which the one that kills is drawn.
const POINTS: [(&str, u64); 7] = [
    ("queued", 8),
    ("in-commit", 90),
    ("committed-not-woken", 90),
    ("in-ring-not-woken", 150),
    ("claimed-not-started", 6),
    ("spawned-not-recorded", 16),
    ("terminal-not-committed", 4),
];
/// The points that the scene does not come to: a test of their own kills there, each time the gate is passed.
const OF_THEIR_OWN: [&str; 10] = [
    "backup-copied",
    "decided-not-sent",
    "ended-not-decided",
    "removed-not-buried",
    "restore-moved",
    "restore-ready",
    "restore-staged",
    "retry-not-saved",
    "retry-saved",
    "sent-not-noted",
];
/// Kills at each point, and in how many homes.
const AT_POINT: (usize, usize) = (25, 5);
/// Kills at random moments, and in how many homes. All together are more than five hundred.
const AT_RANDOM: (usize, usize) = (330, 33);
/// How long the watchers may take to have all there is.
const SETTLE: Duration = Duration::from_secs(60);
/// As long as nobody falls silent, only the end of a connection ends it.
const LIFE: Duration = Duration::from_secs(35);

/// What has come of the scenes so far.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Progress {
    seed: u64,
    scenes: usize,
    kills: BTreeMap<String, usize>,
    fresh: usize,
    resumed: usize,
    events: u64,
    lines: u64,
    cuts: u64,
    runs: usize,
    met: BTreeMap<String, u64>,
}

/// One home: where it is killed, and how often.
#[derive(Clone, Copy)]
struct Plan {
    /// None is at random moments.
    point: Option<(&'static str, u64)>,
    kills: usize,
}

fn plans(random: &mut StdRng) -> Vec<Plan> {
    let many = |point, (kills, scenes)| std::iter::repeat_n(Plan { point, kills: kills / scenes }, scenes);
    let mut plans: Vec<Plan> = POINTS.into_iter().flat_map(|point| many(Some(point), AT_POINT)).collect();
    plans.extend(many(None, AT_RANDOM));
    // What there is time for is of every kind.
    plans.shuffle(random);
    plans
}

/// One scene with those who watch and speak, and what it came to.
async fn scene(part: &Part, plan: Plan, seed: u64, progress: &mut Progress) {
    let mut random = StdRng::seed_from_u64(seed);
    let (road, ledger) = (Arc::new(Road::default()), Arc::new(Ledger::default()));
    let home = Home::new(SOON).run_by(&part.program).task("elsewhere", ELSEWHERE);
    let pointer: crate::kills_scene::Pointer = Box::new({
        let road = Arc::clone(&road);
        move |address, token| road.point_at(address, token)
    });
    let mut scene = Scene::on(home, vec![pointer]);

    let all = ["tick", "talk", "elsewhere"].map(str::to_owned);
    let ways = [(Way::Socket, 0..3), (Way::Socket, 1..3), (Way::Stream, 1..2), (Way::Stream, 2..3), (Way::Pages, 0..3)];
    let mut watchers = JoinSet::new();
    for (number, (way, tasks)) in ways.into_iter().enumerate() {
        let habit = Habit { way, life: LIFE, peace: None };
        let name = format!("watcher {number}");
        watchers.spawn(Follower::new(name, habit, &all[tasks], &road, &ledger, random.random()).follow());
    }
    let voice = Voice {
        task: "elsewhere".to_owned(),
        pause: Duration::from_millis(10),
        chunk: 1..4,
        flood: (0.01, 300),
        chars: 0..200,
        run: 20..600,
        cut: 0.01,
    };
    let speaker = tokio::spawn(Speaker::new(&road, voice, random.random()).speak());

    for _ in 0..plan.kills {
        match plan.point {
            Some((point, passes)) => scene.kill_at(&format!("{point}@{}", random.random_range(1..=passes))).await,
            None => scene.kill_after(Duration::from_millis(random.random_range(0..600))).await,
        }
    }
    let server = scene.spawn(&[]).await;
    road.quieten();
    let spoken = speaker.await.unwrap();
    let Checked { home, kills, fresh, resumed } = scene.check_on(server).await;

    let mut server = home.spawn(&[]).await;
    road.point_at(server.client.address, &home.token());
    let ends = Archive::open(&home).logs();
    road.ends_at(ends.iter().map(|(task, generation, _, head)| (task.clone(), (generation.clone(), *head))));
    let mut counts = Counts::new();
    let settled = timeout(SETTLE, async {
        while let Some(one) = watchers.join_next().await {
            for (what, count) in one.unwrap() {
                *counts.entry(what).or_default() += count;
            }
        }
    });
    assert!(settled.await.is_ok(), "some do not have all there is: {}", road.missing());
    assert!(server.terminate().await.success(), "{}", home.log());
    for (task, generation, _, _) in ends {
        let log = (task, generation);
        for (seq, event) in home.logged_events(&log.0) {
            ledger.saved(&log, seq, &event);
            progress.events += 1;
        }
    }
    compare(&ledger, &spoken, |_, _| false);
    let (_, never_found) = ledger.totals();
    assert!(never_found.is_empty(), "seen and not in the file: {never_found:?}");
    if counts.keys().any(|what| what.starts_with("reset")) {
        ledger.wrong(format!("a kill made somebody begin anew: {counts:?}"));
    }
    let (wrong, words) = ledger.verdict();
    assert!(wrong == 0, "{wrong} things are wrong: {}", words.join("\n"));
    assert!(plan.point.is_some() || fresh == kills, "{fresh} of {kills} kills were right behind an event");

    let what = plan.point.map_or("at a random moment", |(point, _)| point);
    *progress.kills.entry(what.to_owned()).or_default() += kills;
    progress.fresh += fresh;
    progress.resumed += resumed;
    progress.lines += spoken.lines;
    progress.cuts += spoken.cuts;
    progress.runs += spoken.ended.len();
    for (what, count) in counts {
        *progress.met.entry(what.to_owned()).or_default() += count;
    }
    progress.scenes += 1;
}

async fn kills(part: Arc<Part>, only: Option<Vec<Plan>>) {
    let before = part.before().and_then(|before| serde_json::from_value::<Progress>(before).ok());
    let mut progress = before.unwrap_or(Progress { seed: part.seed, ..Progress::default() });
    let mut random = StdRng::seed_from_u64(progress.seed);
    let plans = only.unwrap_or_else(|| plans(&mut random));
    if progress.scenes > 0 {
        part.say(format!("goes on behind {} scenes", progress.scenes));
    }
    for (number, plan) in plans.iter().enumerate().skip(progress.scenes) {
        if part.is_over() {
            break;
        }
        let seed = progress.seed.wrapping_add(number as u64 + 1);
        scene(&part, *plan, seed, &mut progress).await;
        part.keep(&serde_json::to_value(&progress).unwrap());
        let kills: usize = progress.kills.values().sum();
        part.say(format!("{} of {} scenes, {kills} kills", progress.scenes, plans.len()));
    }
    let kills: usize = progress.kills.values().sum();
    part.note("kills", kills);
    part.note("kills by where", &progress.kills);
    part.note("kills within 100 ms behind an event that was seen", progress.fresh);
    part.note("times the recorders came back to their logs", progress.resumed);
    part.note("seed of the scenes", progress.seed);
    part.note("homes", progress.scenes);
    part.note("events in the files, each compared", progress.events);
    part.note("runs fed from elsewhere to their end", progress.runs);
    part.note("lines from elsewhere that were said to be kept, each compared", progress.lines);
    part.note("cut requests of programs elsewhere", progress.cuts);
    part.note("watchers met", json!(progress.met));
    part.note("lost", 0);
    part.note("doubled", 0);
    if part.full && progress.scenes < plans.len() {
        part.leave_open(format!("{kills} kills so far"));
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn t_09_t_35_killed_with_producers_and_watchers_of_every_kind_all_go_on_and_nothing_is_lost() {
    let plan = |point| Plan { point, kills: 1 };
    let plans = vec![plan(Some(("in-commit", 40))), plan(None)];
    kills(Part::glance("kills", Duration::from_secs(60)), Some(plans)).await;
}

/// Who adds a point adds it here, with how often it is passed, or with a test of its own.
#[test]
fn every_point_for_kills_is_in_the_soak() {
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut found = std::collections::BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read_to_string(path).unwrap();
                found.extend(
                    text.split("failpoint::hit(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()),
                );
            }
        }
    }
    let known = POINTS.iter().map(|(point, _)| *point).chain(OF_THEIR_OWN);
    assert_eq!(found, known.map(str::to_owned).collect());
}

#[test]
#[ignore = "most of an hour: make soak"]
fn kills_at_full_length() {
    play("kills", "SOAK_SERVER_WITH_POINTS", |part| kills(part, None));
}
