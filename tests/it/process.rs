//! Commands and their trees: what is started, and that nothing is left of it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rejoin::event::RunId;
use rejoin::run::process::{
    CommandSpec, Exit, Processes, Record, Running, SpawnError, Spawned, Stage, StopStages, end_survivors,
};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

/// The real stages, fifty times as fast; giving up stays far away.
pub const FAST: StopStages = StopStages {
    interrupt: Duration::ZERO,
    terminate: Duration::from_millis(100),
    kill: Duration::from_millis(300),
    give_up: Duration::from_secs(20),
};

pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_rejoin").into()
}

pub fn no_record() -> Record {
    Arc::new(|_| Box::pin(async { Ok(()) }))
}

pub fn processes(run: RunId) -> Processes {
    Processes::with_stages(run, BTreeMap::new(), program(), no_record(), FAST)
}

fn spec(command: &str) -> CommandSpec {
    let env = BTreeMap::from([("PATH".into(), std::env::var_os("PATH").unwrap_or_default())]);
    CommandSpec { call: "c1".into(), command: command.into(), env, cwd: "/".into() }
}

/// Runs until the first line of output, which says that all is in place.
async fn started(processes: &Processes, command: &str) -> Running {
    let mut running = processes.spawn(spec(command)).await.unwrap();
    let mut byte = [0];
    let stdout = running.stdout.as_mut().unwrap();
    while byte[0] != b'\n' {
        assert_eq!(stdout.read(&mut byte).await.unwrap(), 1, "it ended before it was in place");
    }
    running
}

async fn output(running: &mut Running) -> String {
    let mut text = String::new();
    running.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    text
}

/// The living processes of a run, found by their environment; and those whose arguments name it.
pub fn marked(run: RunId) -> HashSet<i32> {
    let mark = format!("REJOIN_RUN={run}");
    let id = run.to_string();
    let has = |path: PathBuf, text: &str| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.split(|byte| *byte == 0).any(|part| String::from_utf8_lossy(part).contains(text))
    };
    let all = std::fs::read_dir("/proc").unwrap();
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let dir = Path::new("/proc").join(pid.to_string());
        has(dir.join("environ"), &mark) || has(dir.join("cmdline"), &id)
    })
    .collect()
}

/// Waits for something that must come, looking often.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn name_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_stop_ends_the_whole_tree() {
    let run = RunId::new();
    let processes = processes(run);
    // Deaf to the first two signals; out of the session twice over; in the background; stopped; without our
    // environment; and one that always has just forked and gone.
    let dir = tempfile::tempdir().unwrap();
    let restless = dir.path().join("restless.sh");
    std::fs::write(&restless, "trap '' INT TERM\nsh \"$0\" &\n").unwrap();
    let command = format!(
        "trap '' INT TERM
         (trap '' INT TERM; while :; do sleep 1000; done) &
         setsid sh -c 'setsid sleep 1001 & exec sleep 1002' &
         sleep 1003 &
         sh -c 'kill -STOP $$; sleep 1004' &
         env -i \"$(command -v sh)\" -c 'sleep 1005; : {run}' &
         sh {restless} &
         echo up
         while :; do sleep 1006; done",
        restless = restless.display()
    );
    let running = started(&processes, &command).await;
    until("all of the tree is there and one is stopped", || {
        let all = marked(run);
        all.len() >= 10 && all.iter().any(|pid| state_of(*pid) == Some('T'))
    })
    .await;

    let (stages, mut reached) = mpsc::channel(3);
    let left = processes.stop(stages).await;

    assert_eq!(left, []);
    assert_eq!(marked(run), HashSet::new());
    let mut seen = Vec::new();
    while let Ok(stage) = reached.try_recv() {
        seen.push(stage.as_str());
    }
    assert_eq!(seen, ["SIGINT", "SIGTERM", "SIGKILL"]);
    assert_eq!(running.wait().await, Exit { code: None, signal: Some(9) });
    assert!(matches!(processes.spawn(spec("true")).await, Err(SpawnError::Stopping)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_by_the_first_signal_is_sent_no_other() {
    // At the real times, so that a busy machine does not reach the second.
    let processes = Processes::new(RunId::new(), BTreeMap::new(), program(), no_record());
    let running = started(&processes, "echo up; exec sleep 1000").await;
    let (stages, mut reached) = mpsc::channel(3);
    assert_eq!(processes.stop(stages).await, []);
    assert_eq!(reached.recv().await, Some(Stage::Interrupt));
    assert_eq!(reached.recv().await, None);
    assert_eq!(running.wait().await.words(), "SIGINT");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_go_is_named_when_it_is_time_to_give_up() {
    // No process can be made that takes no SIGKILL; one that is not sent any stands for it.
    let stages = StopStages { kill: Duration::from_secs(60), give_up: Duration::from_millis(300), ..FAST };
    let run = RunId::new();
    let processes = Processes::with_stages(run, BTreeMap::new(), program(), no_record(), stages);
    let running = started(&processes, "trap '' INT TERM; echo up; exec sleep 1000").await;
    until("the shell has become what it runs", || marked(run).iter().any(|pid| name_of(*pid) == "sleep")).await;
    let (reached, mut stages) = mpsc::channel(3);
    let left = processes.stop(reached).await;
    assert_eq!(left.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["sleep"]);
    assert_eq!(stages.recv().await, Some(Stage::Interrupt));
    assert_eq!(stages.recv().await, Some(Stage::Terminate));
    assert_eq!(stages.recv().await, None);
    drop(running);
    processes.settled().await;
    assert_eq!(marked(run), HashSet::new());
}

/// Stops the supervisor of a command as SIGSTOP does: it hears nothing.
async fn halt(running: &Running) {
    let supervisor = running.supervisor();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGSTOP).unwrap();
    until("the supervisor is stopped", || state_of(supervisor) == Some('T')).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_a_supervisor_that_was_stopped_goes_on_to_hear_of_a_stop() {
    let run = RunId::new();
    // At the real times, so that a busy machine does not reach the second.
    let processes = Processes::new(run, BTreeMap::new(), program(), no_record());
    let running = started(&processes, "echo up; exec sleep 1000").await;
    halt(&running).await;
    let (stages, mut reached) = mpsc::channel(3);
    assert_eq!(processes.stop(stages).await, []);
    assert_eq!(reached.recv().await, Some(Stage::Interrupt));
    assert_eq!(reached.recv().await, None);
    assert_eq!(running.wait().await.words(), "SIGINT");
    assert_eq!(marked(run), HashSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_a_supervisor_that_does_not_answer_is_ended_with_all_that_is_below_it() {
    // One that is stopped again each time it is woken; one that is not woken stands for it.
    let never = Duration::from_secs(60);
    let stages = StopStages { interrupt: never, terminate: never, kill: never, give_up: Duration::from_millis(300) };
    let run = RunId::new();
    let processes = Processes::with_stages(run, BTreeMap::new(), program(), no_record(), stages);
    // One of them without our mark.
    let command = format!(
        "trap '' INT TERM
         setsid env -i \"$(command -v sh)\" -c 'sleep 1000; : {run}' &
         echo up
         while :; do sleep 1001; done"
    );
    let running = started(&processes, &command).await;
    until("all of the tree is there", || marked(run).len() >= 4).await;
    halt(&running).await;
    assert_eq!(processes.stop(mpsc::channel(3).0).await, []);
    assert_eq!(marked(run), HashSet::new());
    assert_eq!(running.wait().await, Exit { code: None, signal: None });
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_supervisor_was_lost_nothing_is_looked_for_by_its_mark() {
    let run = RunId::new();
    let processes = processes(run);
    let running = started(&processes, "echo up; exec sleep 1000").await;
    let mut stranger = Command::new("sleep");
    stranger.arg("1000").env("REJOIN_RUN", run.to_string()).env("REJOIN_CALL", "c1");
    let mut stranger = stranger.spawn().unwrap();
    drop(running);
    processes.settled().await;
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_is_stopped_alone() {
    let run = RunId::new();
    let processes = processes(run);
    let one = started(&processes, "trap '' INT TERM; echo up; while :; do sleep 1000; done").await;
    let other = started(&processes, "echo up; exec sleep 1000").await;
    let (begun, stages) = (tokio::sync::watch::channel(false).0, tokio::sync::mpsc::channel(3).0);
    assert_eq!(one.stop_at(Instant::now().into(), begun, stages).await, Some(Vec::new()));
    assert_eq!(one.wait().await.shell_code(), Some(137));
    assert!(marked(run).contains(&other.supervisor()));
    assert!(!processes.is_stopping());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grandchild_that_holds_the_pipe_does_not_keep_the_command_alive_and_is_ended() {
    let run = RunId::new();
    let processes = processes(run);
    // It is deaf from its first moment on.
    let running = processes.spawn(spec("trap '' TERM; sleep 1000 & exit 3")).await.unwrap();
    let supervisor = running.supervisor();
    assert_eq!(running.wait().await.code, Some(3));
    assert!(marked(run).iter().any(|pid| *pid != supervisor), "the exit was told when all was over");
    processes.settled().await;
    assert_eq!(marked(run), HashSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_nobody_waits_for_any_more_is_ended_with_its_tree() {
    let run = RunId::new();
    let processes = processes(run);
    let running = started(&processes, "setsid sleep 1000 & echo up; exec sleep 1000").await;
    drop(running);
    processes.settled().await;
    assert_eq!(marked(run), HashSet::new());
}

/// Not a test: what the next one starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_about_to_be_killed() {
    let Some(run) = std::env::var("REJOIN_TEST_RUN_TO_START").ok() else { return };
    let processes = processes(run.parse().unwrap());
    let _running =
        started(&processes, "trap '' INT TERM; setsid sleep 1000 & echo up; while :; do sleep 1000; done").await;
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_takes_its_commands_with_it() {
    let run = RunId::new();
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::a_server_that_is_about_to_be_killed"])
        .env("REJOIN_TEST_RUN_TO_START", run.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the command and its children run", || marked(run).len() >= 4).await;
    server.kill().unwrap();
    server.wait().unwrap();
    until("nothing is left", || marked(run).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_is_killed_leaves_nothing_behind() {
    let run = RunId::new();
    let processes = processes(run);
    let running = started(&processes, "setsid sleep 1000 & echo up; exec sleep 1000").await;
    let supervisor = nix::unistd::Pid::from_raw(running.supervisor());
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(running.wait().await, Exit { code: None, signal: None });
    processes.settled().await;
    assert_eq!(marked(run), HashSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_starts_only_after_its_supervisor_was_recorded() {
    let run = RunId::new();
    let dir = tempfile::tempdir().unwrap();
    let proof = dir.path().join("proof");
    let seen: Arc<Mutex<Vec<Spawned>>> = Arc::default();
    let record: Record = {
        let (seen, proof) = (seen.clone(), proof.clone());
        Arc::new(move |spawned: Spawned| {
            // The supervisor alone is there, and has not been told what to run.
            assert_eq!(marked(run), HashSet::from([spawned.pid]));
            assert!(!proof.exists());
            let arguments = std::fs::read(format!("/proc/{}/cmdline", spawned.pid)).unwrap();
            assert_eq!(arguments, b"rejoin\0supervise\0");
            seen.lock().unwrap().push(spawned);
            Box::pin(async { Ok(()) })
        })
    };
    let processes = Processes::with_stages(run, BTreeMap::new(), program(), record, FAST);
    let running = processes.spawn(spec(&format!("touch {}", proof.display()))).await.unwrap();
    assert!(running.wait().await.is_success());
    assert!(proof.exists());
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen[0].call.as_str(), seen[0].pid), (1, "c1", running.supervisor()));
    assert!(seen[0].start_ticks > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_never_starts_if_the_record_fails() {
    let run = RunId::new();
    let dir = tempfile::tempdir().unwrap();
    let proof = dir.path().join("proof");
    let record: Record = Arc::new(|_| Box::pin(async { anyhow::bail!("the disk is full") }));
    let processes = Processes::with_stages(run, BTreeMap::new(), program(), record, FAST);
    let failed = processes.spawn(spec(&format!("touch {}", proof.display()))).await.unwrap_err();
    assert!(matches!(failed, SpawnError::Record(_)), "{failed}");
    until("the supervisor is gone", || marked(run).is_empty()).await;
    assert!(!proof.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_record_is_written_starts_nothing() {
    let run = RunId::new();
    let (entered, mut in_record) = mpsc::channel(1);
    let record: Record = Arc::new(move |_| {
        let entered = entered.clone();
        Box::pin(async move {
            entered.send(()).await?;
            std::future::pending().await
        })
    });
    let processes = Processes::with_stages(run, BTreeMap::new(), program(), record, FAST);
    let spawning = tokio::spawn({
        let processes = processes.clone();
        async move { processes.spawn(spec("echo no")).await.map(drop) }
    });
    in_record.recv().await.unwrap();
    assert_eq!(processes.stop(mpsc::channel(3).0).await, []);
    assert!(matches!(spawning.await.unwrap(), Err(SpawnError::Stopping)));
    until("the supervisor is gone", || marked(run).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t_28_a_stop_that_meets_the_start_of_a_command_ends_it_in_stages_too() {
    let supervisor = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&supervisor);
    let record: Record = Arc::new(move |spawned: Spawned| {
        // It is told to start the command, and does not hear it yet.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(spawned.pid), nix::sys::signal::Signal::SIGSTOP).unwrap();
        *kept.lock().unwrap() = Some(spawned.pid);
        Box::pin(async { Ok(()) })
    });
    let run = RunId::new();
    // Far off, or a busy machine kills the supervisor before it goes on.
    let stages = StopStages { kill: Duration::from_secs(10), ..FAST };
    let processes = Processes::with_stages(run, BTreeMap::new(), program(), record, stages);
    let spawning = tokio::spawn({
        let processes = processes.clone();
        async move { processes.spawn(spec("trap '' INT; sleep 1000")).await }
    });
    until("it waits for the start", || format!("{processes:?}").contains("live: 1")).await;
    let (stages, mut reached) = mpsc::channel(3);
    let stopping = tokio::spawn({
        let processes = processes.clone();
        async move { processes.stop(stages).await }
    });
    assert_eq!(reached.recv().await, Some(Stage::Interrupt));
    let pid = supervisor.lock().unwrap().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGCONT).unwrap();
    let running = spawning.await.unwrap().expect("it is not let go");
    assert_eq!(stopping.await.unwrap(), []);
    assert_ne!(running.wait().await, Exit { code: None, signal: None }, "its end is known");
    assert_eq!(marked(run), HashSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_begins_with_clean_signals_descriptors_and_its_own_session() {
    let processes = processes(RunId::new());
    // By `exec`, because a shell may clean up before it starts another program.
    let mut spec =
        spec("echo $REJOIN_CALL $PWD; readlink /proc/self/fd/0; ls /proc/self/fd; exec grep Sig /proc/self/status");
    spec.cwd = "/usr".into();
    let mut running = processes.spawn(spec).await.unwrap();
    let text = output(&mut running).await;
    let words: Vec<&str> = text.split_whitespace().collect();
    // The last descriptor is the listing's own.
    assert_eq!(words[..7], ["c1", "/usr", "/dev/null", "0", "1", "2", "3"]);
    for signals in ["SigBlk:", "SigIgn:"] {
        let at = words.iter().position(|word| *word == signals).unwrap();
        let set = u64::from_str_radix(words[at + 1], 16).unwrap();
        // Signals 32 and 33 are the C library's own; it lets nobody touch them.
        assert_eq!(set & !(0b11 << 31), 0, "{signals} {set:x}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_there_is_named_as_the_reason() {
    let processes = processes(RunId::new());
    let mut spec = spec("true");
    spec.cwd = "/nowhere/at/all".into();
    let error = processes.spawn(spec).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
    processes.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn survivors_of_an_earlier_server_are_ended_and_others_are_not() {
    let (ours, other) = (RunId::new(), RunId::new());
    let start = |run: RunId, command: &str| {
        Command::new("sh").args(["-c", command]).env("REJOIN_RUN", run.to_string()).spawn().unwrap()
    };
    let mut survivor = start(ours, "env -i sleep 1000; true");
    let mut stranger = start(other, "exec sleep 1000");
    let mut recorded = Command::new("sleep").arg("1000").spawn().unwrap();
    until("they run", || marked(ours).len() == 1 && marked(other).len() == 1).await;
    let ticks = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse::<u64>().unwrap()
    };
    let recorded_as = (recorded.id().cast_signed(), ticks(recorded.id()));
    let reused = (stranger.id().cast_signed(), ticks(stranger.id()) + 1);

    let ended = tokio::task::spawn_blocking(move || end_survivors(&HashSet::from([ours]), &[recorded_as, reused]))
        .await
        .unwrap();

    let killed: HashSet<i32> = ended.killed.iter().map(|(pid, _)| *pid).collect();
    assert!(killed.contains(&survivor.id().cast_signed()) && killed.contains(&recorded_as.0), "{ended:?}");
    assert!(killed.len() >= 2 && !killed.contains(&reused.0), "{ended:?}");
    assert_eq!(ended.left, []);
    assert!(!survivor.wait().unwrap().success() && !recorded.wait().unwrap().success());
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}
