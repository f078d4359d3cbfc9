//! The seeded simulation (`tests/sim`), with as many seeds as the time holds.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::part::{Part, play};

/// So long at a time: what is interrupted has lost no more.
const AT_ONCE: Duration = Duration::from_secs(60);
/// So many seeds must have seen everything that the simulation has to see: the rarest comes once in some 300.
const ENOUGH: u64 = 10_000;
/// The test of the simulation that plays seeds.
const TEST: &str = "whatever_happens_every_watcher_has_what_was_saved_once_and_in_order";

/// Plays seeds from one on for a while; gives the sums that it prints: what, and how often it was seen, if only 0 times.
fn play_seeds(simulation: &std::path::Path, from: u64, length: Duration) -> Vec<(String, u64)> {
    let output = Command::new(simulation)
        .args(["--exact", TEST, "--nocapture"])
        .env("REJOIN_SIM_FROM", from.to_string())
        .env("REJOIN_SIM_FOR", length.as_secs().max(1).to_string())
        .env_remove("REJOIN_SIM_SEED")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "from seed {from} on: {said}");
    let sums = said.lines().skip_while(|line| !line.contains(" seeds in ")).map_while(|line| {
        let (number, what) = line.trim().split_once(' ')?;
        let what = if what.starts_with("seeds in ") { "seeds" } else { what };
        Some((what.to_owned(), number.parse().ok()?))
    });
    let sums: Vec<_> = sums.collect();
    assert!(!sums.is_empty(), "no sums in: {said}");
    assert_eq!(sums[0].0, "seeds");
    sums
}

async fn sim(part: Arc<Part>) {
    let before = part.before().unwrap_or(json!({ "first": part.seed, "next": part.seed, "seconds": 0.0, "sums": {} }));
    let number = |name: &str| before[name].as_u64().unwrap();
    let (first, mut next) = (number("first"), number("next"));
    let mut seconds = before["seconds"].as_f64().unwrap();
    let mut sums: std::collections::BTreeMap<String, u64> = serde_json::from_value(before["sums"].clone()).unwrap();
    if next > first {
        part.say(format!("goes on behind {} seeds", next - first));
    }
    while seconds < part.length.as_secs_f64() && !part.is_over() {
        let length = AT_ONCE.min(part.left());
        let (simulation, from) = (part.program.clone(), next);
        let played = tokio::task::spawn_blocking(move || play_seeds(&simulation, from, length)).await.unwrap();
        next += played[0].1;
        seconds += length.as_secs_f64();
        for (what, sum) in played {
            *sums.entry(what).or_default() += sum;
        }
        part.keep(&json!({ "first": first, "next": next, "seconds": seconds, "sums": sums }));
        part.say(format!("{} seeds", next - first));
    }
    part.note("first seed", first);
    part.note("last seed", next - 1);
    part.note("minutes", (seconds / 6.0).round() / 10.0);
    part.note("sums", &sums);
    part.note("wrong", 0);
    let unseen: Vec<_> = sums.iter().filter(|(_, sum)| **sum == 0).map(|(what, _)| what).collect();
    assert!(next - first < ENOUGH || unseen.is_empty(), "{} seeds, and not one has seen {unseen:?}", next - first);
}

/// Built with the tests, it lies beside this one; alone, `cargo test --test soak` does not build it.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn seeds_are_played_one_behind_the_other() {
    let beside = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let is_simulation = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("sim-") && !name.contains('.')
    };
    let all = std::fs::read_dir(beside).unwrap().map(|entry| entry.unwrap().path()).filter(is_simulation);
    let newest = all.max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    let Some(simulation) = newest else { return println!("there is no simulation to be played") };
    let mut part = Part::glance("sim", Duration::from_secs(2));
    let glance = Arc::get_mut(&mut part).unwrap();
    (glance.program, glance.seed) = (simulation, 1);
    sim(part).await;
}

#[test]
#[ignore = "three quarters of an hour: make soak"]
fn sim_at_full_length() {
    play("sim", "SOAK_SIMULATION", sim);
}
