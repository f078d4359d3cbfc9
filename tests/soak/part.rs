//! One part of the soak: for how long, from which seed, against which build of the program, and where its figures go.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::harness::REJOIN;

/// How many minutes the load of a part lasts unless `SOAK_MINUTES` says otherwise. With what comes before and after it
/// a part takes less than 50.
const MINUTES: f64 = 45.0;

/// What a part is told, and what it has found out so far.
pub struct Part {
    name: &'static str,
    /// Where everything random of the part comes from.
    pub seed: u64,
    /// How long the load lasts.
    pub length: Duration,
    /// Whether it is as long as the soak is meant to be: some things can only be judged then.
    pub full: bool,
    /// The server.
    pub program: PathBuf,
    /// What a part that was interrupted has left behind is in here; none in the gate.
    folder: Option<PathBuf>,
    begun: Instant,
    figures: Mutex<BTreeMap<&'static str, Value>>,
    /// Why it has not come to its end in the time it had, and goes on another time.
    open: Mutex<Option<String>>,
}

/// What is written of a part.
#[derive(Serialize)]
struct Report<'a> {
    part: &'a str,
    result: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<&'a str>,
    commit: &'a str,
    seed: u64,
    program: &'a str,
    machine: Machine,
    started: String,
    minutes: f64,
    full_length: bool,
    figures: &'a BTreeMap<&'static str, Value>,
}

#[derive(Serialize)]
struct Machine {
    cores: usize,
    processor: String,
    memory_gib: u64,
    system: String,
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease");
        let version: Vec<&str> = release.trim().split(['.', '-']).take(2).collect();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            memory_gib: kib.div_ceil(1 << 20),
            system: format!("Linux {} {}", version.join("."), std::env::consts::ARCH),
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Part {
    /// The same in so few seconds that it can be in the gate: it shows that the part still works, and judges nothing
    /// that takes long.
    pub fn glance(name: &'static str, length: Duration) -> Arc<Self> {
        let seed = variable("REJOIN_TEST_SEED").and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
        println!("REJOIN_TEST_SEED={seed}");
        Arc::new(Self {
            name,
            seed,
            length,
            full: false,
            program: REJOIN.into(),
            folder: None,
            begun: Instant::now(),
            figures: Mutex::default(),
            open: Mutex::default(),
        })
    }

    /// As the environment says; `program` names the variable that names the build.
    fn of_environment(name: &'static str, program: &str) -> Self {
        let needed = |name: &str| variable(name).unwrap_or_else(|| panic!("{name} is not set: use make soak"));
        let minutes = variable("SOAK_MINUTES").map_or(MINUTES, |minutes| minutes.parse().unwrap());
        let seed = variable("SOAK_SEED").map_or_else(|| u64::from(rand::random::<u32>()), |seed| seed.parse().unwrap());
        Self {
            name,
            seed,
            length: Duration::from_secs_f64(60.0 * minutes),
            full: minutes >= MINUTES,
            program: std::path::absolute(needed(program)).unwrap(),
            folder: Some(std::path::absolute(needed("SOAK_FOLDER")).unwrap().join(name)),
            begun: Instant::now(),
            figures: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// Whether the load has lasted as long as it should.
    pub fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.length
    }

    /// How long the load still lasts.
    pub fn left(&self) -> Duration {
        self.length.saturating_sub(self.begun.elapsed())
    }

    /// Notes a figure; the last one of a name counts.
    pub fn note(&self, name: &'static str, value: impl Serialize) {
        self.figures.lock().unwrap().insert(name, serde_json::to_value(value).unwrap());
    }

    /// Says how it goes.
    pub fn say(&self, words: impl std::fmt::Display) {
        println!("{:>6.1} min  {}: {words}", self.begun.elapsed().as_secs_f64() / 60.0, self.name);
    }

    /// What an interrupted part of the same name and commit had come to.
    pub fn before(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.folder.as_ref()?.join("progress.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Keeps what the part has come to, should it be interrupted.
    pub fn keep(&self, progress: &Value) {
        let Some(folder) = &self.folder else { return };
        let (new, kept) = (folder.join("progress.new"), folder.join("progress.json"));
        std::fs::write(&new, progress.to_string()).unwrap();
        std::fs::rename(new, kept).unwrap();
    }

    /// The time was not enough: what was kept is gone on from when the part is played again.
    pub fn leave_open(&self, words: String) {
        *self.open.lock().unwrap() = Some(words);
    }

    fn forget(&self) {
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_file(folder.join("progress.json"));
        }
    }

    fn report(&self, commit: &str, failed: Option<&str>) -> String {
        let lasted = self.begun.elapsed();
        let started = jiff::Timestamp::now() - jiff::SignedDuration::try_from(lasted).unwrap();
        let report = Report {
            part: self.name,
            result: if failed.is_some() { "failed" } else { "passed" },
            failed,
            commit,
            seed: self.seed,
            program: if self.program.ends_with("rejoin-failpoints") {
                "release build, with points for kills"
            } else {
                "release build"
            },
            machine: Machine::this(),
            started: started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            minutes: (lasted.as_secs_f64() / 6.0).round() / 10.0,
            full_length: self.full,
            figures: &self.figures.lock().unwrap(),
        };
        serde_json::to_string_pretty(&report).unwrap() + "\n"
    }
}

/// The report of the part for the commit, if it was played in full and passed.
fn is_there(report: &Path, commit: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(report) else { return false };
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    report["commit"] == commit && report["result"] == "passed" && report["full_length"] == true
}

/// Ends what an interrupted part left running, and removes what it left in the folder.
fn clear(folder: &Path) {
    let of_folder = |pid: i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments
            .split(|byte| *byte == 0)
            .any(|argument| String::from_utf8_lossy(argument).starts_with(&*folder.to_string_lossy()))
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    for pid in all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| of_folder(*pid)) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).unwrap();
}

/// Plays a part as the environment says, and writes its report: to `SOAK_REPORTS` when it was played in full, else
/// beside the program. A part that is there already for the commit is not played again.
pub fn play<F: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    program: &str,
    run: impl FnOnce(Arc<Part>) -> F,
) {
    let part = Arc::new(Part::of_environment(name, program));
    let commit = variable("SOAK_COMMIT").expect("SOAK_COMMIT is not set: use make soak");
    let folder = part.folder.clone().unwrap();
    let reports = variable("SOAK_REPORTS").map(PathBuf::from).expect("SOAK_REPORTS is not set: use make soak");
    let report = if part.full { reports } else { folder.clone() }.join(format!("{name}.json"));
    if part.full && is_there(&report, &commit) {
        println!("{} is there already for {commit}", report.display());
        return;
    }
    std::fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    lock.try_lock().unwrap_or_else(|_| panic!("{name} is being played already"));
    let homes = folder.join("homes");
    clear(&homes);
    tempfile::env::override_temp_dir(&homes).expect("the folder for homes is set once");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let played = runtime.block_on(async { tokio::spawn(run(Arc::clone(&part))).await });
    let failed = played.err().map(|error| words(error.into_panic()));
    runtime.shutdown_timeout(Duration::from_secs(5));
    if let (None, Some(words)) = (&failed, &*part.open.lock().unwrap()) {
        panic!("{name} is not at its end ({words}): the same command goes on from here");
    }
    std::fs::write(&report, part.report(&commit, failed.as_deref())).unwrap();
    part.say(format!("{} is written", report.display()));
    part.forget();
    if let Some(failed) = failed {
        panic!("{name} failed: {failed}");
    }
    let _ = std::fs::remove_dir_all(&homes);
}

fn words(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast::<String>().map(|text| *text);
    text.or_else(|panic| panic.downcast::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|_| "a panic".to_owned())
}
