//! Commands: started under a supervisor each, followed, and ended with everything they started.
//!
//! Knows nothing of steps, events or storage: the record of a supervisor is a closure, the stages of a stop go to a
//! channel, the output is two readers.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::event::{RunId, TaskId};

pub(crate) mod survivors;
pub(crate) mod tree;
pub(crate) mod wire;

pub use survivors::{Ended, end_survivors};
pub use wire::Left;

use tree::Process;
use wire::{Order, Report};

/// How many orders to one supervisor may be under way: three signals and a question, twice over.
const ORDERS: usize = 8;

/// How long a supervisor may take to say that it is there. It takes milliseconds, but for a machine whose disk has more to
/// do than it can while the program is not in memory: a run is late then, which is better than failed.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a supervisor may take to name what is left.
const LIST_WITHIN: Duration = Duration::from_millis(500);

/// How long what a lost supervisor leaves may take to end, beyond which it is not waited for: a second more than is tried.
const LOST_WITHIN: Duration = Duration::from_secs(6);

/// A supervisor that is there and has started nothing yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spawned {
    /// The tool call it is for.
    pub call: String,
    /// The supervisor's process id.
    pub pid: i32,
    /// The supervisor's start time, in clock ticks since boot: with the id it names one process for ever.
    pub start_ticks: u64,
}

/// Writes a supervisor down. The command starts only after the future is done, and never if it fails.
pub type Record = Arc<dyn Fn(Spawned) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// The variables that mark every process of a run: `REJOIN_TASK`, `REJOIN_RUN`, `REJOIN_ATTEMPT` and, where the run
/// has a slot, `REJOIN_SCHEDULED_FOR` (RFC 3339, UTC).
pub fn marks(task: &TaskId, run: RunId, scheduled_for: Option<Timestamp>, attempt: u32) -> BTreeMap<String, String> {
    let mut marks = BTreeMap::from([
        ("REJOIN_TASK".to_owned(), task.to_string()),
        ("REJOIN_RUN".to_owned(), run.to_string()),
        ("REJOIN_ATTEMPT".to_owned(), attempt.to_string()),
    ]);
    if let Some(at) = scheduled_for {
        marks.insert("REJOIN_SCHEDULED_FOR".to_owned(), crate::clock::rfc3339(at));
    }
    marks
}

/// A stage of a stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Asked to stop, as by Ctrl-C.
    Interrupt,
    /// Told to end.
    Terminate,
    /// Ended.
    Kill,
}

impl Stage {
    /// The signal's name: `SIGINT`, `SIGTERM`, `SIGKILL`.
    pub const fn as_str(self) -> &'static str {
        self.signal().as_str()
    }

    const fn signal(self) -> Signal {
        match self {
            Self::Interrupt => Signal::SIGINT,
            Self::Terminate => Signal::SIGTERM,
            Self::Kill => Signal::SIGKILL,
        }
    }
}

/// When the stages of a stop come, from its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StopStages {
    /// SIGINT.
    pub interrupt: Duration,
    /// SIGTERM.
    pub terminate: Duration,
    /// SIGKILL.
    pub kill: Duration,
    /// What is left by now cannot be killed: it is named and no longer waited for. A supervisor that does not answer is
    /// ended with all that is below it. Stages that would come later do not come.
    pub give_up: Duration,
}

impl Default for StopStages {
    fn default() -> Self {
        Self {
            interrupt: Duration::ZERO,
            terminate: Duration::from_secs(5),
            kill: Duration::from_secs(15),
            give_up: Duration::from_secs(20),
        }
    }
}

/// A command to start.
#[derive(Clone)]
pub struct CommandSpec {
    /// The tool call it is for; unique within the run.
    pub call: String,
    /// The text for `/bin/sh -c`.
    pub command: String,
    /// Its whole environment, to which the marks of the run are added.
    pub env: BTreeMap<OsString, OsString>,
    /// Where it runs.
    pub cwd: PathBuf,
}

impl fmt::Debug for CommandSpec {
    /// Without the environment, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, command, env: _, cwd } = self;
        let mut spec = f.debug_struct("CommandSpec");
        spec.field("call", call).field("command", command).field("cwd", cwd);
        spec.finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Its exit code, if it ended by itself.
    pub code: Option<i32>,
    /// The number of the signal that ended it. Neither: its supervisor was lost.
    pub signal: Option<i32>,
}

impl Exit {
    /// It ended by itself with code 0.
    pub fn is_success(self) -> bool {
        self.code == Some(0)
    }

    /// The exit code as a shell says it: 128 + n for signal n. `None` if its supervisor was lost.
    pub fn shell_code(self) -> Option<i32> {
        self.code.or(self.signal.map(|signal| 128 + signal))
    }

    /// `exit code 2`, `SIGKILL`, or that it is unknown.
    pub fn words(self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (_, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => signal.as_str().to_owned(),
                Err(_) => format!("signal {number}"),
            },
            (None, None) => "an unknown end (its supervisor was lost)".to_owned(),
        }
    }
}

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The run is being stopped.
    #[error("the run is being stopped")]
    Stopping,
    /// Its supervisor could not be written down.
    #[error("the start could not be recorded: {0:#}")]
    Record(anyhow::Error),
    /// The supervisor could not be started, or could not start the command.
    #[error("{0}")]
    Start(String),
}

/// Starts the commands of one run and ends them. Cheap to clone.
#[derive(Clone)]
pub struct Processes {
    shared: Arc<Shared>,
}

struct Shared {
    run: RunId,
    marks: BTreeMap<OsString, OsString>,
    exe: PathBuf,
    record: Record,
    stages: StopStages,
    /// True for ever once a stop began. Watched by a spawn that waits for its supervisor or its record.
    stopping: watch::Sender<bool>,
    /// True once a stop ended, and not everything with it.
    given_up: watch::Sender<bool>,
    /// The commands whose supervisor is not gone, by a number of our own. Never held over an await.
    live: Mutex<Live>,
    /// How many of them there are, for those who wait until there are none.
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Live {
    last: u64,
    commands: BTreeMap<u64, Line>,
}

/// How a command's driver is reached.
#[derive(Clone, Debug)]
struct Line {
    supervisor: Supervisor,
    asks: mpsc::Sender<Ask>,
}

/// A supervisor as a process, which names itself by its id and its start time.
#[derive(Clone, Copy, Debug)]
struct Supervisor {
    pid: i32,
    start_ticks: u64,
}

impl Supervisor {
    /// Whoever stopped it (SIGSTOP) keeps it from hearing: it goes on.
    fn wake(self) {
        if let Some(process) = Process::look(self.pid).filter(|process| process.start_ticks == self.start_ticks) {
            process.signal(Signal::SIGCONT);
        }
    }

    /// Ends it and all below it, those included that carry no mark: while it is there they are its own.
    async fn end(self) -> Vec<Left> {
        let recorded = [(self.pid, self.start_ticks)];
        let ended = tokio::task::spawn_blocking(move || end_survivors(&HashSet::new(), &recorded)).await;
        ended.map(|ended| ended.left).unwrap_or_default()
    }
}

/// What a command's driver is asked to do.
#[derive(Debug)]
enum Ask {
    Signal(Stage),
    List(oneshot::Sender<Vec<Left>>),
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut processes = f.debug_struct("Processes");
        processes.field("run", &self.shared.run).field("live", &*self.shared.count.borrow());
        processes.finish_non_exhaustive()
    }
}

impl Processes {
    /// For the commands of `run`. `marks` go into the environment of every supervisor and command ([`marks`]; the
    /// run's id is added in any case). `exe` is this program's own file; a server passes `/proc/self/exe`, which
    /// stays right when the file is replaced under it.
    pub fn new(run: RunId, marks: BTreeMap<String, String>, exe: PathBuf, record: Record) -> Self {
        Self::with_stages(run, marks, exe, record, StopStages::default())
    }

    /// As [`Processes::new`], with other times for the stages of a stop.
    pub fn with_stages(
        run: RunId,
        marks: BTreeMap<String, String>,
        exe: PathBuf,
        record: Record,
        stages: StopStages,
    ) -> Self {
        let mut marks: BTreeMap<OsString, OsString> =
            marks.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        marks.insert("REJOIN_RUN".into(), run.to_string().into());
        let (stopping, given_up) = (watch::Sender::new(false), watch::Sender::new(false));
        let (live, count) = (Mutex::default(), watch::Sender::new(0));
        let shared = Shared { run, marks, exe, record, stages, stopping, given_up, live, count };
        Self { shared: Arc::new(shared) }
    }

    /// Starts a command: first its supervisor, then the record of it, then the command itself.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing of the command has run then, or a stop has given up on it. Dropping the future before it is
    /// done has the same effect, or ends what was started.
    pub async fn spawn(&self, spec: CommandSpec) -> Result<Running, SpawnError> {
        let prepared = tokio::select! {
            biased;
            () = self.stopping() => return Err(SpawnError::Stopping),
            prepared = self.prepare(&spec) => prepared?,
        };
        // From here on a stop finds it, and ends it in stages: it is not let go.
        tokio::select! {
            biased;
            started = self.start(spec, prepared) => started,
            () = self.given_up() => Err(SpawnError::Stopping),
        }
    }

    /// A supervisor that is there and written down.
    async fn prepare(&self, spec: &CommandSpec) -> Result<Prepared, SpawnError> {
        let shared = &self.shared;
        let mut marks = shared.marks.clone();
        marks.insert("REJOIN_CALL".into(), spec.call.clone().into());
        let (mut child, mut link) =
            supervisor(&shared.exe, &marks).map_err(|error| lost("could not be started", &error))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());

        let ready = timeout(READY_WITHIN, link.hear()).await;
        let (pid, start_ticks) = match ready {
            Ok(Some(Report::Ready { pid, start_ticks })) => (pid, start_ticks),
            Ok(_) => return Err(lost("ended at once", &first_words(stderr).await)),
            Err(late) => return Err(lost("did not answer", &late)),
        };
        let spawned = Spawned { call: spec.call.clone(), pid, start_ticks };
        (shared.record)(spawned).await.map_err(SpawnError::Record)?;
        let supervisor = Supervisor { pid, start_ticks };
        Ok(Prepared { supervisor, child, link, stdout, stderr, marks })
    }

    async fn start(&self, spec: CommandSpec, prepared: Prepared) -> Result<Running, SpawnError> {
        let Prepared { supervisor, child, link, stdout, stderr, marks } = prepared;
        let shared = &self.shared;
        let mut env = spec.env;
        env.extend(marks);
        let env = env.into_iter().collect();
        let cwd = spec.cwd.into_os_string();
        let (asks, asked) = mpsc::channel(ORDERS);
        // From here on the command is found by a stop; a stop that came before is seen under the same lock.
        let line = Line { supervisor, asks };
        let place = shared.enter(line.clone())?;
        let (alive, dropped) = oneshot::channel();
        let (exit, exited) = watch::channel(None);
        let (report_start, started) = oneshot::channel();
        let driver = Driver { shared: shared.clone(), place, link, child, supervisor, call: spec.call, exit };
        let order = Order::Start { command: spec.command, env, cwd };
        tokio::spawn(driver.drive(order, report_start, asked, dropped));
        let stages = shared.stages;
        let running = Running { line, stdout, stderr, exited, stages, _alive: alive };
        match started.await {
            Ok(Ok(_)) => Ok(running),
            Ok(Err(reason)) => Err(SpawnError::Start(reason)),
            Err(_) => Err(lost("was lost", &"it ended before the command began")),
        }
    }

    /// Lets no further command start, and ends those that run with everything they started: SIGINT, SIGTERM and
    /// SIGKILL at the times of [`StopStages`], each followed by SIGCONT, which supervisors get too. Each stage that is
    /// reached goes to `stages`; where that is full (3 places are enough) it is not waited for.
    ///
    /// Returns as soon as nothing is left, with an empty list; or, when it is time to give up, with what is left
    /// (what cannot be killed, with its state: `D` is uninterruptible). Beginning a second stop while one is under way
    /// repeats its stages.
    pub async fn stop(&self, stages: mpsc::Sender<Stage>) -> Vec<Left> {
        self.shared.stopping.send_replace(true);
        let lines = self.shared.lines();
        let mut count = self.shared.count.subscribe();
        let gone = async move {
            // The sender lives in `self`, so this ends only with nobody left.
            let _ = count.wait_for(|count| *count == 0).await;
        };
        let left = walk_stages(self.shared.stages, &lines, &stages, gone).await;
        // What a supervisor cannot see may keep it all the same.
        if *self.shared.count.borrow() > 0 {
            self.shared.given_up.send_replace(true);
        }
        left
    }

    /// Waits until a stop has given up on something: its command's end may never come.
    pub async fn given_up(&self) {
        let mut given_up = self.shared.given_up.subscribe();
        let _ = given_up.wait_for(|given_up| *given_up).await;
    }

    /// Waits until a stop begins; at once if one has.
    pub async fn stopping(&self) {
        let mut stopping = self.shared.stopping.subscribe();
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    /// Whether a stop has begun.
    pub fn is_stopping(&self) -> bool {
        *self.shared.stopping.borrow()
    }

    /// Waits until nothing is left of any command's tree: leftovers of a command that ended have two seconds
    /// between SIGTERM and SIGKILL. Waits for ever on a command that still runs, or that is in uninterruptible
    /// sleep.
    pub async fn settled(&self) {
        let mut count = self.shared.count.subscribe();
        let _ = count.wait_for(|count| *count == 0).await;
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, line: Line) -> Result<u64, SpawnError> {
        let mut live = self.live();
        if *self.stopping.borrow() {
            return Err(SpawnError::Stopping);
        }
        live.last += 1;
        let place = live.last;
        live.commands.insert(place, line);
        self.count.send_replace(live.commands.len());
        Ok(place)
    }

    fn leave(&self, place: u64) {
        let mut live = self.live();
        live.commands.remove(&place);
        self.count.send_replace(live.commands.len());
    }

    fn lines(&self) -> Vec<Line> {
        self.live().commands.values().cloned().collect()
    }
}

/// A supervisor that is written down and has no command yet.
struct Prepared {
    supervisor: Supervisor,
    child: Child,
    link: Link,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    marks: BTreeMap<OsString, OsString>,
}

/// A command that was started. Dropping it ends the command and its tree.
#[derive(Debug)]
pub struct Running {
    line: Line,
    /// What the command writes to its standard output; take it to read it.
    pub stdout: Option<ChildStdout>,
    /// What the command writes to its standard error; take it to read it.
    pub stderr: Option<ChildStderr>,
    exited: watch::Receiver<Option<Exit>>,
    stages: StopStages,
    /// Its driver notices when this is dropped.
    _alive: oneshot::Sender<()>,
}

impl Running {
    /// The process id of the command's supervisor.
    pub fn supervisor(&self) -> i32 {
        self.line.supervisor.pid
    }

    /// Waits for the end of the command itself; others of its tree may hold its pipes open a little longer.
    pub async fn wait(&self) -> Exit {
        let mut exited = self.exited.clone();
        match exited.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            _ => Exit { code: None, signal: None },
        }
    }

    /// Waits until nothing is left of the command and its tree.
    pub async fn gone(&self) {
        self.line.asks.closed().await;
    }

    /// Ends this command and its tree in the same stages as [`Processes::stop`]; other commands may go on. It does so once
    /// a moment has come, where the command still runs then; otherwise it gives `None`, and nothing is sent. `begun` is
    /// told of the beginning. It outlives this value, and can be waited for elsewhere.
    pub fn stop_at(
        &self,
        deadline: Instant,
        begun: watch::Sender<bool>,
        stages: mpsc::Sender<Stage>,
    ) -> impl Future<Output = Option<Vec<Left>>> + Send + 'static {
        let (times, line, exited) = (self.stages, self.line.clone(), self.exited.clone());
        async move {
            sleep_until(deadline).await;
            if exited.borrow().is_some() || line.asks.is_closed() {
                return None;
            }
            begun.send_replace(true);
            Some(walk_stages(times, std::slice::from_ref(&line), &stages, line.asks.closed()).await)
        }
    }
}

/// Sends the stages when their time comes, until `gone` or until it is time to give up.
async fn walk_stages(
    times: StopStages,
    lines: &[Line],
    stages: &mpsc::Sender<Stage>,
    gone: impl Future<Output = ()>,
) -> Vec<Left> {
    let begin = Instant::now();
    tokio::pin!(gone);
    let plan = [
        (times.interrupt, Some(Stage::Interrupt)),
        (times.terminate, Some(Stage::Terminate)),
        (times.kill, Some(Stage::Kill)),
        (times.give_up, None),
    ];
    for (after, stage) in plan {
        tokio::select! {
            biased;
            () = &mut gone => return Vec::new(),
            () = sleep_until(begin + after.min(times.give_up)) => {}
        }
        let Some(stage) = stage else { break };
        if after >= times.give_up {
            continue;
        }
        for line in lines {
            // Full only if a supervisor takes no orders; the next stage tries again.
            let _ = line.asks.try_send(Ask::Signal(stage));
            line.supervisor.wake();
        }
        let _ = stages.try_send(stage);
    }
    let lines = lines.iter().filter(|line| !line.asks.is_closed());
    join_all(lines.map(left_of)).await.into_iter().flatten().collect()
}

/// What is left of one command when it is given up.
async fn left_of(line: &Line) -> Vec<Left> {
    let (answer, answered) = oneshot::channel();
    let _ = line.asks.try_send(Ask::List(answer));
    match timeout(LIST_WITHIN, answered).await {
        Ok(Ok(some)) => some,
        // Ended in this moment.
        Ok(Err(_)) if line.asks.is_closed() => Vec::new(),
        // It does not even answer, although it was woken. Without it the driver ends what is left elsewhere by its marks.
        _ => {
            let left = line.supervisor.end().await;
            let _ = timeout(LOST_WITHIN, line.asks.closed()).await;
            left
        }
    }
}

/// The server's end of the line to a supervisor.
struct Link {
    lines: Lines<BufReader<OwnedReadHalf>>,
    /// Dropped to tell the supervisor that nobody cares any more.
    orders: Option<OwnedWriteHalf>,
}

impl Link {
    /// The next report; `None` at the end or for one that cannot be read.
    async fn hear(&mut self) -> Option<Report> {
        let line = self.lines.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }

    async fn tell(&mut self, order: &Order) {
        if let (Some(orders), Ok(line)) = (&mut self.orders, wire::line(order))
            && orders.write_all(&line).await.is_err()
        {
            self.orders = None;
        }
    }
}

fn lost(what: &str, error: &dyn fmt::Display) -> SpawnError {
    SpawnError::Start(format!("the command's supervisor {what}: {error}"))
}

/// Starts a supervisor: its standard input is our socket, its environment the marks and nothing else.
fn supervisor(exe: &PathBuf, marks: &BTreeMap<OsString, OsString>) -> std::io::Result<(Child, Link)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let (read, write) = UnixStream::from_std(ours)?.into_split();
    // The command value holds our copy of `theirs` and ends with this function: the socket must close when the
    // supervisor ends.
    let child = Command::new(exe)
        .arg0("rejoin")
        .arg("supervise")
        .env_clear()
        .envs(marks)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok((child, Link { lines: BufReader::new(read).lines(), orders: Some(write) }))
}

/// What a supervisor that ended at once had to say, at most 400 bytes.
async fn first_words(stderr: Option<ChildStderr>) -> String {
    use tokio::io::AsyncReadExt;
    let mut words = Vec::new();
    if let Some(stderr) = stderr {
        let mut stderr = stderr.take(400);
        let _ = timeout(LIST_WITHIN, stderr.read_to_end(&mut words)).await;
    }
    String::from_utf8_lossy(&words).trim().replace('\n', " ")
}

/// Stands between one supervisor and those who wait for its command.
struct Driver {
    shared: Arc<Shared>,
    place: u64,
    link: Link,
    child: Child,
    supervisor: Supervisor,
    call: String,
    exit: watch::Sender<Option<Exit>>,
}

impl Driver {
    async fn drive(
        mut self,
        start: Order,
        started: oneshot::Sender<Result<i32, String>>,
        mut asked: mpsc::Receiver<Ask>,
        mut dropped: oneshot::Receiver<()>,
    ) {
        self.link.tell(&start).await;
        drop(start);
        let mut started = Some(started);
        let mut lists: Vec<oneshot::Sender<Vec<Left>>> = Vec::new();
        let mut gone = false;
        loop {
            tokio::select! {
                report = self.link.hear() => match report {
                    Some(Report::Started { pid }) => answer(&mut started, Ok(pid)),
                    Some(Report::Refused(reason)) => {
                        gone = true;
                        answer(&mut started, Err(reason));
                    }
                    Some(Report::Exited { code, signal }) => {
                        self.exit.send_replace(Some(Exit { code, signal }));
                    }
                    Some(Report::Left(left)) => {
                        for list in lists.drain(..) {
                            let _ = list.send(left.clone());
                        }
                    }
                    Some(Report::Gone) => gone = true,
                    Some(Report::Ready { .. }) => {}
                    None => break,
                },
                Some(ask) = asked.recv() => match ask {
                    Ask::Signal(stage) => {
                        self.link.tell(&Order::Signal(stage.signal() as i32)).await;
                    }
                    Ask::List(list) => {
                        lists.push(list);
                        self.link.tell(&Order::List).await;
                    }
                },
                _ = &mut dropped, if self.link.orders.is_some() => {
                    self.link.orders = None;
                    self.supervisor.wake();
                }
            }
        }
        // One to whom nobody listens any more cannot say that all are gone, but it ends well only then.
        let ended = self.child.wait().await;
        if !gone && !ended.is_ok_and(|status| status.success()) {
            // Somebody killed the supervisor. Its tree fell to init; it is still known by its marks.
            let (run, call) = (self.shared.run, self.call.clone());
            tracing::warn!(%run, call, "the supervisor of a command was lost: ending what is left");
            let ended = tokio::task::spawn_blocking(move || survivors::end_command(run, &call)).await;
            for left in ended.unwrap_or_default().left {
                tracing::warn!(%run, %left, "a process of a command cannot be ended");
            }
        }
        self.shared.leave(self.place);
        // Dropping `exit` and `asked` last: who waits on them finds the tree gone.
    }
}

fn answer(to: &mut Option<oneshot::Sender<Result<i32, String>>>, with: Result<i32, String>) {
    if let Some(to) = to.take() {
        let _ = to.send(with);
    }
}
