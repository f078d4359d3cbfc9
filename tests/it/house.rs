//! The rules of the house that no compiler checks: who may know whom, what a file begins with, which names and words
//! there are not. `docs/architecture.md` says why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who may name whom, the most particular module first: "a file of this module may name these, and nothing else of
/// the crate but its own module".
const KNOWS: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("clock", &[]),
    ("failpoint", &[]),
    ("egress", &[]),
    ("logging", &["config"]),
    ("metrics", &[]),
    ("record", &["clock", "event"]),
    ("store", &["config::trust", "failpoint"]),
    ("config::units", &[]),
    ("config::place", &[]),
    ("config::trust", &[]),
    ("config", &["store", "task::definition", "task::telling"]),
    ("task::telling", &[]),
    ("task::definition", &["config::units", "task::telling"]),
    (
        "task::parse",
        &["agent::steps::condition", "config", "event", "schedule::timing", "task::definition", "task::telling"],
    ),
    ("task::folder", &["config", "event", "task::definition", "task::parse"]),
    ("task", &["clock", "config", "event", "failpoint", "metrics", "record", "schedule", "store", "stream", "task"]),
    ("schedule", &["config::units", "task::definition"]),
    ("stream", &["clock", "event", "failpoint", "metrics", "record", "store"]),
    ("run::process", &["clock", "event"]),
    ("run::supervisor", &["run::process"]),
    ("run::secrets", &["task::definition"]),
    ("agent", &["egress", "event", "run::process", "run::secrets", "task::definition"]),
    ("run", &["agent", "clock", "config", "event", "failpoint", "record", "schedule", "store", "stream", "task"]),
    (
        "notify",
        &[
            "clock",
            "config",
            "egress",
            "event",
            "failpoint",
            "metrics",
            "record",
            "run::secrets",
            "store",
            "stream",
            "task",
        ],
    ),
    ("planner", &["clock", "event", "failpoint", "run", "schedule", "store", "stream", "task"]),
    ("housekeeping", &["clock", "config", "event", "failpoint", "schedule", "store", "stream", "task"]),
    ("shutdown", &[]),
    (
        "api",
        &[
            "clock",
            "config",
            "event",
            "failpoint",
            "housekeeping",
            "metrics",
            "notify",
            "planner",
            "record",
            "run",
            "schedule",
            "store",
            "stream",
            "task",
        ],
    ),
    ("cli::doctor", &["cli", "config", "task"]),
    ("cli::serve", &["cli", "config", "server"]),
    ("cli::validate", &["cli", "config", "schedule", "task"]),
    ("cli::backup", &["cli", "failpoint", "housekeeping", "store"]),
    ("cli::live", &["cli::backoff", "cli::escape", "cli::failure", "cli::wire"]),
    ("cli", &["config", "event"]),
    ("main", &["cli", "run::supervisor"]),
];

/// Which modules may name a library. What is not listed here may be named anywhere.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("dashmap", &["stream::forwarder"]),
    ("croner", &["schedule::timing"]),
    ("tokio_cron_scheduler", &["schedule::bell"]),
    ("axum", &["api"]),
    ("hyper", &["api::live", "api::socket", "api::websocket"]),
    ("hyper_util", &["api::socket", "api::websocket"]),
    ("axum_extra", &["api"]),
    ("tower_http", &["api", "server"]),
    ("rust_embed", &["api::web"]),
    ("cel", &["agent::steps::condition", "task::parse"]),
    ("notify", &["task::folder"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("tokio_tungstenite", &["api::live", "api::outgoing", "api::websocket", "cli::client", "cli::live"]),
    ("lettre", &["config::channels", "notify::mail"]),
    ("hmac", &["notify::webhook"]),
    ("reqwest", &["agent::steps::http", "cli::client", "cli::place", "egress", "notify", "task::parse"]),
];

/// Which modules may speak SQL: each owns the tables it speaks of.
const SQL: &[&str] = &[
    "store",
    "stream::log",
    "stream::writer",
    "stream::checkpoint",
    "task::registry",
    "task::slots",
    "notify::ledger",
    "run::attention",
    "run::queue",
    "run::runner",
    "housekeeping",
    "api::auth",
    "api::once",
    "api::wire",
];

/// File names that say nothing about what is in them.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "shared", "misc", "mod"];

/// Words that promise work instead of doing it, or more than is kept. Split, so that this file may hold them.
const WORDS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("for ", "now"),
    concat!("blazing", "ly"),
    concat!("seam", "less"),
    concat!("zero ", "overhead"),
];

struct File {
    path: PathBuf,
    module: String,
    /// Without its own tests and without comments.
    code: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a folder with one of the endings; sorted.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if !["node_modules", "dist", "target"].contains(&name) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<File> {
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let inside = path.strip_prefix(root().join("src")).unwrap().with_extension("");
        let module = inside.to_str().unwrap().replace('/', "::");
        let own = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let own = own.split("#[cfg(all(test").next().unwrap();
        let lines = own.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.collect::<Vec<_>>().join("\n");
        File { path, module, code, text }
    };
    files("src", &[".rs"]).into_iter().map(read).collect()
}

fn is_within(module: &str, of: &str) -> bool {
    module == of || module.strip_prefix(of).is_some_and(|rest| rest.starts_with("::"))
}

/// What a text says right behind `mark`, as a path: `crate::stream::log::page` gives `stream::log::page`. A group
/// gives one path for each of its members.
fn paths_behind<'t>(code: &'t str, mark: &'t str) -> impl Iterator<Item = String> + 't {
    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let starts = code
        .match_indices(mark)
        .filter(move |(at, _)| !code[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    starts.flat_map(move |(at, _)| {
        let rest = &code[at + mark.len()..];
        let path: &str = &rest[..rest.find(|c| !is_path(c)).unwrap_or(rest.len())];
        let group = rest[path.len()..].strip_prefix('{').and_then(|group| group.split('}').next());
        match group {
            None => vec![path.to_owned()],
            Some(group) => group.split(',').map(|member| format!("{path}{}", member.trim())).collect(),
        }
    })
}

/// The modules of the crate that a file names, itself excepted.
fn named(file: &File, modules: &BTreeSet<String>) -> BTreeSet<String> {
    let parent = file.module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let absolute = paths_behind(&file.code, "crate::");
    let of_main = paths_behind(&file.code, "rejoin::");
    let relative = paths_behind(&file.code, "super::").map(|path| format!("{parent}::{path}"));
    let longest = |path: String| {
        let mut path = path.trim_start_matches("::");
        while !modules.contains(path) {
            path = path.rsplit_once("::")?.0;
        }
        Some(path.to_owned())
    };
    absolute.chain(of_main).chain(relative).filter_map(longest).filter(|module| *module != file.module).collect()
}

#[test]
fn imports_point_down() {
    let sources = sources();
    let modules: BTreeSet<String> = sources.iter().map(|file| file.module.clone()).collect();
    let mut wrong = Vec::new();
    for file in &sources {
        let Some((rule, may)) = KNOWS.iter().find(|(module, _)| is_within(&file.module, module)) else { continue };
        for other in named(file, &modules) {
            let top = |module: &str| module.split("::").next().unwrap().to_owned();
            // A module and its own parts know each other; a rule for a part holds within the module too.
            let own = is_within(&other, rule) || (!rule.contains("::") && top(&other) == top(&file.module));
            let parent = is_within(&file.module, &other);
            if !own && !parent && !may.iter().any(|known| is_within(&other, known)) {
                wrong.push(format!("{} names {other}", file.module));
            }
        }
    }
    assert!(wrong.is_empty(), "who may know whom (docs/architecture.md):\n{}", wrong.join("\n"));
}

#[test]
fn no_two_files_name_each_other_in_a_circle() {
    let sources = sources();
    let modules: BTreeSet<String> = sources.iter().map(|file| file.module.clone()).collect();
    let edges: BTreeMap<&str, Vec<String>> = sources
        .iter()
        .map(|file| {
            let others = named(file, &modules).into_iter();
            // A module lists its parts and its parts speak with it: that is one thing in several files.
            let apart = |other: &String| !is_within(other, &file.module) && !is_within(&file.module, other);
            (file.module.as_str(), others.filter(apart).collect())
        })
        .collect();
    for start in edges.keys() {
        let mut ways: Vec<Vec<&str>> = vec![vec![start]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for next in edges.get(way[way.len() - 1]).into_iter().flatten() {
                assert!(next != start, "a circle: {} → {start}", way.join(" → "));
                if seen.insert(next) {
                    ways.push(way.iter().copied().chain([next.as_str()]).collect());
                }
            }
        }
    }
}

#[test]
fn a_library_is_named_only_where_it_belongs() {
    let mut wrong = Vec::new();
    for file in sources() {
        for (library, homes) in LIBRARIES {
            let names = paths_behind(&file.code, &format!("{library}::")).next().is_some();
            if names && !homes.iter().any(|home| is_within(&file.module, home)) {
                wrong.push(format!("{} names {library}, which belongs to {}", file.module, homes.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sql_stands_where_its_table_belongs() {
    let begins = ["SELECT ", "INSERT INTO ", "UPDATE ", "DELETE FROM ", "PRAGMA "];
    let mut wrong = Vec::new();
    for file in sources() {
        let speaks = file.code.lines().any(|line| {
            let line = line.trim_start();
            begins.iter().any(|word| line.starts_with(word) || line.contains(&format!("\"{word}")))
        });
        if speaks && !SQL.iter().any(|home| is_within(&file.module, home)) {
            wrong.push(file.module);
        }
    }
    assert!(wrong.is_empty(), "SQL outside of those who own a table: {}", wrong.join(", "));
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    let mut wrong = Vec::new();
    for path in [files("src", &[".rs"]), files("tests", &[".rs"]), files("benches", &[".rs"])].concat() {
        if !std::fs::read_to_string(&path).unwrap().starts_with("//! ") {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "no `//!` in the first line of:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let endings = [".rs", ".ts", ".svelte", ".mjs", ".js"];
    for path in [files("src", &endings), files("tests", &endings), files("web", &endings)].concat() {
        let stem = path.file_stem().unwrap().to_str().unwrap().to_lowercase();
        assert!(!EMPTY_NAMES.contains(&stem.as_str()), "name {} after what is in it", path.display());
    }
}

#[test]
fn no_word_promises_what_is_not_there() {
    let mut wrong = Vec::new();
    let endings = [".rs", ".ts", ".svelte", ".mjs", ".js", ".md", ".toml", ".css", ".html"];
    let folders = ["src", "tests", "web", "docs", "tasks", "benches"];
    let tops = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Cargo.toml", "config.toml", "build.rs"];
    let tops = tops.iter().map(|name| root().join(name)).filter(|path| path.exists());
    for path in folders.iter().flat_map(|folder| files(folder, &endings)).chain(tops) {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let is_word = |word: &&&str| {
                line.match_indices(**word).any(|(at, _)| {
                    let (before, behind) = (&line[..at], &line[at + word.len()..]);
                    !before.ends_with(char::is_alphanumeric) && !behind.starts_with(char::is_alphanumeric)
                })
            };
            if let Some(word) = WORDS.iter().find(is_word) {
                wrong.push(format!("{}:{}: {word:?}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_exception_from_a_lint_says_why() {
    let mut wrong = Vec::new();
    for file in sources() {
        for attribute in ["#[allow(", "#![allow(", "#[expect("] {
            for (at, _) in file.text.match_indices(attribute) {
                let inside = file.text[at..].split(")]").next().unwrap();
                if !inside.contains("reason") {
                    wrong.push(format!("{}: {inside})]", file.path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "without a reason:\n{}", wrong.join("\n"));
}

/// A row of `docs/promises.md`: its id, and what stands in the column of tests.
fn promises() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("docs/promises.md")).unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim().trim_matches('|').split(" | ").map(str::trim).collect();
        let is_id = cells[0].split_once('-').is_some_and(|(letters, number)| {
            ["SPK", "NAM", "PER", "SWE", "T", "EXT", "SEE"].contains(&letters) && number.parse::<u32>().is_ok()
        });
        (is_id && cells.len() >= 4).then(|| (cells[0].to_owned(), cells[2].to_owned()))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn every_promise_that_names_a_test_has_it() {
    let endings = [".rs", ".ts", ".mjs", ".py", ".json"];
    let all: Vec<PathBuf> = ["src", "tests", "web", "clients"].map(|folder| files(folder, &endings)).concat();
    let text: String = all.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut wrong = Vec::new();
    for (id, tests) in promises() {
        for test in tests.split('`').skip(1).step_by(2) {
            if !text.contains(test.rsplit("::").next().unwrap()) {
                wrong.push(format!("{id}: {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "docs/promises.md names tests that are not there:\n{}", wrong.join("\n"));
}

#[test]
fn every_promise_stands_in_the_table_once() {
    let mut seen = BTreeSet::new();
    for (id, _) in promises() {
        assert!(seen.insert(id.clone()), "{id} stands there twice");
    }
    let wanted = [
        ("SPK", 1..=41),
        ("NAM", 1..=24),
        ("NAM", 40..=52),
        ("PER", 1..=16),
        ("SWE", 1..=47),
        ("T", 1..=36),
        ("EXT", 1..=16),
        ("SEE", 1..=18),
    ];
    for (letters, numbers) in wanted {
        for number in numbers {
            let id = format!("{letters}-{number:02}");
            assert!(seen.contains(&id), "{id} is missing");
        }
    }
}

/// What is asked for each slot and each start must not take longer the more is kept.
#[test]
fn nothing_that_is_asked_of_one_slot_or_of_open_runs_walks_through_all_that_is_kept() {
    let store = rusqlite::Connection::open_in_memory().unwrap();
    for schema in files("src/store/schema", &[".sql"]) {
        store.execute_batch(&std::fs::read_to_string(schema).unwrap()).unwrap();
    }
    let mut asked = 0;
    for path in ["src/task/slots.rs", "src/task/registry/rows.rs", "src/run/queue.rs", "src/run/queue/retries.rs"] {
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        let texts = text.split('"').skip(1).step_by(2);
        let of_one = |sql: &&str| {
            sql.contains("slots") && sql.contains("WHERE run = ?1")
                || sql.contains("FROM runs") && sql.contains("WHERE task = ?1 AND state")
        };
        for sql in texts.filter(of_one) {
            let mut explained = store.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let (mut lines, mut plan) = (explained.raw_query(), Vec::<String>::new());
            while let Some(line) = lines.next().unwrap() {
                plan.push(line.get(3).unwrap());
            }
            let by = if sql.contains("slots") { "slots_by_run (run=?)" } else { "runs_open_by_task (task=?)" };
            assert!(plan.iter().any(|line| line.contains(by)), "{path}: {sql}\n{plan:?}");
            // Asked of each slot that is claimed.
            if path.ends_with("rows.rs") {
                let mut program = store.prepare(&format!("EXPLAIN {sql}")).unwrap();
                let mut codes = program.raw_query();
                while let Some(code) = codes.next().unwrap() {
                    let code: String = code.get(1).unwrap();
                    assert_ne!(code, "OpenEphemeral", "a table is set up each time for {sql}");
                }
            }
            asked += 1;
        }
    }
    assert!(asked >= 10, "only {asked} statements were found");
}
