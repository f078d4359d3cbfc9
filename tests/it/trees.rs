//! Deep trees of processes that are stopped, and a census over `/proc` of what is left of them: by a mark in the
//! environment that only the test knows, and by the names that the kernel has for each, zombies included.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{Client, Home, PATIENCE, Process};

/// The stages that ship; and places for all trees at once.
pub const SHIPPED: &str = "[runs]\nconcurrency = 32";
/// How long a stop may take: of a tree that takes SIGINT, and of any.
#[derive(Clone, Copy)]
pub struct Bounds {
    polite: SignedDuration,
    worst: SignedDuration,
}

impl Bounds {
    /// By the stages that ship, however busy the machine is: SIGTERM would come at 5 s, and at 20 s it is given up.
    pub const BY_STAGES: Self = Self { polite: SignedDuration::from_secs(5), worst: SignedDuration::from_secs(20) };
    /// What is promised where a machine has room: SIGKILL comes at 15 s.
    #[allow(dead_code, reason = "not every build of the tests needs all of it")]
    pub const PROMISED: Self = Self { polite: SignedDuration::from_secs(1), worst: SignedDuration::from_secs(16) };
}

/// A kind of tree, as the script below knows it.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// Every process of it takes SIGINT.
    polite: bool,
    /// How many say that they are ready beside one for each level.
    beside: usize,
}

const fn kind(name: &'static str, polite: bool, beside: usize) -> Kind {
    Kind { name, polite, beside }
}

const KINDS: [Kind; 11] = [
    kind("plain", true, 0),
    kind("pipeline", true, 0),
    kind("handler", true, 0),
    kind("background", false, 0),
    kind("deaf", false, 0),
    kind("orphan", false, 1),
    kind("double-fork", false, 1),
    kind("holder", false, 1),
    kind("stopped", false, 1),
    kind("nameless", false, 1),
    kind("zombies", false, 0),
];

/// `tree KIND DEPTH`. Each level is a shell that waits for the next one; the last does what its kind says.
const SCRIPT: &str = r#"
kind=$1 depth=$2
up() { echo up >> "$TREE_READY"; }
deeper() { sh "$TREE_SCRIPT" "$kind" $((depth - 1)); }
case $kind in
handler) trap 'exit 3' INT TERM ;;
deaf) trap '' INT TERM HUP ;;
esac
up
if [ "$depth" -gt 0 ]; then
    case $kind in
    pipeline) deeper | cat ;;
    background | deaf) deeper & wait; sleep 1000 ;;
    zombies) sh -c 'true & exec sleep 1000' & deeper; wait ;;
    *) deeper ;;
    esac
    exit
fi
case $kind in
orphan) sh -c '(echo up >> "$TREE_READY"; exec sleep 1000) &' ;;
double-fork) setsid sh -c 'setsid sh -c "trap \"\" INT TERM; echo up >> \"$TREE_READY\"; sleep 1000; sleep 1000" & exit 0' ;;
holder) (trap '' INT TERM HUP; echo up >> "$TREE_READY"; sleep 1000; sleep 1000) & ;;
stopped) sh -c 'trap "" INT; echo up >> "$TREE_READY"; kill -STOP $$; sleep 1000' & ;;
nameless) env -i PATH="$PATH" TREE_MARK="$TREE_MARK" TREE_READY="$TREE_READY" \
    setsid sh -c 'trap "" INT TERM; echo up >> "$TREE_READY"; sleep 1000; sleep 1000' & ;;
esac
while :; do sleep 1000; done
"#;

/// A process by what names it for ever, and its state when it was looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Seen {
    pid: i32,
    start_ticks: u64,
}

/// What `/proc/<pid>/stat` says: the start, the state, the parent.
fn look(pid: i32) -> Option<(Seen, char, i32)> {
    let stat = String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
    let rest: Vec<&str> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let start_ticks = rest.get(19)?.parse().ok()?;
    Some((Seen { pid, start_ticks }, rest.first()?.chars().next()?, rest.get(1)?.parse().ok()?))
}

fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Those that carry the mark, and the zombies among their children: who is over has no environment any more.
fn census(mark: &str) -> BTreeSet<Seen> {
    let needle = format!("TREE_MARK={mark}");
    let carries = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == needle.as_bytes())
    };
    let all = pids();
    let mut found: BTreeSet<Seen> =
        all.iter().filter(|pid| carries(pid)).filter_map(|pid| look(*pid)).map(|(seen, ..)| seen).collect();
    let parents: BTreeSet<i32> = found.iter().map(|seen| seen.pid).collect();
    let zombies =
        all.iter().filter_map(|pid| look(*pid)).filter(|(_, state, parent)| *state == 'Z' && parents.contains(parent));
    found.extend(zombies.map(|(seen, ..)| seen));
    found
}

/// The zombies that a process has not taken away.
fn zombies_of(parent: u32) -> Vec<i32> {
    let looked = pids().into_iter().filter_map(look);
    looked.filter(|(_, state, of)| *state == 'Z' && of.cast_unsigned() == parent).map(|(seen, ..)| seen.pid).collect()
}

/// A tree that stands.
struct Tree {
    task: String,
    kind: Kind,
    depth: usize,
    run: String,
    mark: String,
    seen: BTreeSet<Seen>,
}

/// How many trees there are, and how they are named: the kinds in turn, deeper with each turn.
fn plan(trees: usize) -> Vec<(String, Kind, usize)> {
    let one = |index: usize| {
        let (kind, depth) = (KINDS[index % KINDS.len()], 2 + index / KINDS.len() % 4);
        (format!("{}-{depth}-{index}", kind.name), kind, depth)
    };
    (0..trees).map(one).collect()
}

/// A home with the tasks of so many trees.
pub fn home(config: &str, trees: usize) -> Home {
    let mut home = Home::new(config);
    let script = home.path().join("tree.sh");
    std::fs::write(&script, SCRIPT).unwrap();
    for (task, kind, depth) in plan(trees) {
        let ready = ready(home.path(), &task);
        let mut command = String::new();
        let (ready, script) = (ready.display(), script.display());
        write!(command, "export TREE_MARK=\"$REJOIN_PARAM_MARK\" TREE_READY='{ready}' TREE_SCRIPT='{script}'; ")
            .unwrap();
        write!(command, "exec sh '{script}' {} {depth}", kind.name).unwrap();
        let text = format!(
            "title = {task:?}\n[params]\nmark = {{ default = \"\" }}\n[[steps]]\nname = \"only\"\nrun = {}\n",
            json!(command)
        );
        home = home.task(&task, &text);
    }
    home
}

fn ready(home: &Path, task: &str) -> std::path::PathBuf {
    home.join(format!("{task}.ready"))
}

/// Starts one and waits until all of it says that it is there.
async fn grow(client: Client, home: std::path::PathBuf, (task, kind, depth): (String, Kind, usize)) -> Tree {
    let ready = ready(&home, &task);
    let _ = std::fs::remove_file(&ready);
    let mark = uuid::Uuid::new_v4().to_string();
    let (status, answer) = client.post(&format!("/tasks/{task}/runs"), json!({ "params": { "mark": mark } })).await;
    assert_eq!(status, 201, "{answer}");
    let run = answer["run"]["id"].as_str().unwrap().to_owned();
    let expected = depth + 1 + kind.beside;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = std::fs::read_to_string(&ready).map_or(0, |text| text.lines().count());
        let seen = census(&mark);
        let stands =
            kind.name != "stopped" || seen.iter().any(|seen| look(seen.pid).is_some_and(|(_, state, _)| state == 'T'));
        // The last one of each says it a moment before it sleeps: more there are than have said so.
        if said == expected && stands && seen.len() > expected {
            return Tree { task, kind, depth, run, mark, seen };
        }
        if Instant::now() >= deadline {
            let (_, now) = client.get(&format!("/runs/{run}")).await;
            panic!("{task}: {said} of {expected} said that they are there, {seen:?}; the run: {now}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the stops of some trees took.
#[derive(Debug, Default, Clone, Copy)]
pub struct Took {
    /// How many there were, of how many processes.
    pub trees: usize,
    /// See `trees`.
    pub processes: usize,
    /// The longest of those that take SIGINT, from the call to the end of the run, in ms.
    pub polite_ms: i128,
    /// The longest of all, in ms.
    pub worst_ms: i128,
}

/// Grows so many trees, stops all of them in one moment, and counts who is left when each run is said to be over.
pub async fn stop_all(home: &Home, server: &Process, trees: usize, bounds: Bounds) -> Took {
    let client = &server.client;
    let mut growing = JoinSet::new();
    for plan in plan(trees) {
        growing.spawn(grow(client.clone(), home.path().to_owned(), plan));
    }
    let grown = growing.join_all().await;
    let mut took = Took { trees, ..Took::default() };
    let asked = Timestamp::now();
    let mut stops = JoinSet::new();
    for tree in &grown {
        let (client, path) = (client.clone(), format!("/runs/{}/stop", tree.run));
        stops.spawn(async move { client.post(&path, json!({})).await });
    }
    for (status, answer) in stops.join_all().await {
        assert_eq!(status, 202, "{answer}");
    }
    for Tree { task, kind, depth, run, mark, seen } in &grown {
        let ended = client.ended(run).await;
        let name = format!("{} of depth {depth}", kind.name);
        assert_eq!(ended["state"], "cancelled", "{name}: {ended}");
        let left: Vec<(i32, char)> = seen
            .iter()
            .filter_map(|seen| look(seen.pid).filter(|(now, ..)| now == seen))
            .map(|(now, state, _)| (now.pid, state))
            .collect();
        assert_eq!(left, [], "{name}: left of {}", seen.len());
        assert_eq!(census(mark), BTreeSet::new(), "{name}");
        let lasted = at(&ended["ended_at"]).duration_since(asked);
        assert!(lasted < if kind.polite { bounds.polite } else { bounds.worst }, "{name} took {lasted:#}");
        took.processes += seen.len();
        took.worst_ms = took.worst_ms.max(lasted.as_millis());
        if kind.polite {
            let more = |text: &str| text.contains(run.as_str()) && text.contains("SIGTERM sent");
            let log = home.logged_events(task);
            assert!(!log.iter().any(|(_, text)| more(text)), "{name} takes SIGINT and was sent SIGTERM");
            took.polite_ms = took.polite_ms.max(lasted.as_millis());
        }
    }
    assert_eq!(zombies_of(server.pid()), Vec::<i32>::new());
    took
}

fn at(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}
