//! The server: the only place that wires all parts together, and stops them in order.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::api::act::Acts;
use crate::api::attention;
use crate::api::auth::{self, Authority};
use crate::api::board::Board;
use crate::api::command::Commands;
use crate::api::door::Door;
use crate::api::hub::{Closing, Hub, SocketLimits};
use crate::api::live::{Live, LiveLimits};
use crate::api::metrics::Scrape;
use crate::api::notice::Notices;
use crate::api::once::Keys;
use crate::api::socket::{self, Tcp, Unix};
use crate::api::status::About;
use crate::api::wire::Viewer;
use crate::api::{Api, router};
use crate::clock::Clock;
use crate::config::{Config, ScheduleDefaults};
use crate::housekeeping::{Chore, Housekeeping};
use crate::logging;
use crate::notify::Notifier;
use crate::planner::Planner;
use crate::run::places::Places;
use crate::run::process::StopStages;
use crate::run::queue::{Patience, Runs};
use crate::run::runner::Workshop;
use crate::schedule::bell::Bell;
use crate::schedule::plan::JUMP_CONFIRMATION;
use crate::shutdown;
use crate::store::Store;
use crate::stream::checkpoint::Checkpointer;
use crate::stream::publish::{Limits, Publisher, Writable};
use crate::stream::reader::ReplayLimits;
use crate::stream::ring;
use crate::stream::topic::QueueLimits;
use crate::stream::writer::Writer;
use crate::task::files::Files;
use crate::task::folder::{self, Folder};
use crate::task::registry::{Registry, Source};

/// How often memory is given back: what the stream and the readers of the store no longer need, and what is free to the
/// system.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// How many sockets are told per second that the server goes down.
const GOODBYES_PER_SECOND: usize = 500;
/// How often it is looked who is no longer signed in: as soon as a revoked one is let go.
const LOOK_FOR_EXPIRED: Duration = Duration::from_secs(1);
/// How long to wait at least before what the store refused is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// How long requests under way may take when the server goes down.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

// Whether a clock that jumped is right is asked at least every `JUMP_CONFIRMATION`, which is with each look for slots: the
// settings allow no longer one.
const _: () = assert!(ScheduleDefaults::LONGEST_LOOK.as_nanos() <= JUMP_CONFIRMATION.as_nanos());

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    api: Api,
    config: Config,
    writer: Writer,
    /// Stops everything that makes work.
    no_more: CancellationToken,
    /// Stops everything else.
    stop: CancellationToken,
    tasks: JoinSet<()>,
    bell: Bell,
    checkpointer: Option<JoinHandle<()>>,
    /// Stops what no task of the runtime holds, should the server be dropped without a stop.
    _dropped: DropGuard,
}

/// Runs the server until the process is told to stop.
///
/// # Errors
/// When it cannot start; each says what to do.
pub async fn serve(config: Config) -> Result<()> {
    logging::start(&config.log);
    shutdown::share_heaps();
    shutdown::survive_file_limit();
    shutdown::raise_descriptor_limit();
    let server = Server::start(config, PathBuf::from("/proc/self/exe"), Clock::system()).await?;
    server.greet();
    shutdown::asked().await?;
    server.stop().await
}

/// A bind that others can reach must be safe some other way.
fn check_bind(config: &Config) -> Result<()> {
    if config.listen.ip().is_loopback() || !config.trusted_proxies.is_empty() {
        return Ok(());
    }
    bail!(
        "refused to listen on {}: it can be reached from other machines, and what is sent would not be encrypted. \
         Listen on 127.0.0.1 and put a proxy with TLS in front of it (name it in trusted_proxies), or use an SSH tunnel",
        config.listen
    )
}

impl Server {
    /// Starts all parts. `exe` is the program that supervises commands: this one.
    ///
    /// # Errors
    /// When a part cannot start; each says what to do.
    pub async fn start(mut config: Config, exe: PathBuf, clock: Clock) -> Result<Self> {
        check_bind(&config)?;
        // Commands run in these folders, and a supervisor has another working directory.
        config.tasks_dir = std::path::absolute(&config.tasks_dir)?;
        config.data_dir = std::path::absolute(&config.data_dir)?;
        if !config.backup.folder.as_os_str().is_empty() {
            config.backup.folder = std::path::absolute(&config.backup.folder)?;
        }
        let opened = Store::open(&config.data_dir, config.durability, config.stream.page_reads)?;
        if opened.logs_replaced {
            warn!("the store is not the one of last time, or may have lost its end: every log has a new id");
        }
        let tcp = Tcp::bind(config.listen)?;
        let address = tcp.address()?;
        let store = Arc::new(opened.store);
        let (publisher, writer) = Publisher::start(opened.writer, limits(&config), clock.clone())?;
        let api = assemble(&config, &store, publisher, exe, address).await?;
        // What is found then is told of too.
        api.notifier.begin().await?;
        // First the survivors of the server before, then everything that could start something.
        api.runs.recover().await?;
        let unix = Unix::bind(&config.data_dir.join("rejoin.sock"))?;

        let wakes = vec![Arc::clone(&api.planner), api.housekeeping.bell()];
        let bell = Bell::start(wakes, api.housekeeping.is_often()).await?;
        let (no_more, stop) = (CancellationToken::new(), CancellationToken::new());
        let _dropped = stop.clone().drop_guard();
        let mut server = Self {
            address,
            api,
            config,
            writer,
            no_more,
            stop,
            tasks: JoinSet::new(),
            bell,
            checkpointer: None,
            _dropped,
        };
        server.read_task_files().await;
        server.spawn_parts()?;
        server.spawn_doors(tcp, unix);
        server.api.about.ready.store(true, Ordering::Relaxed);
        info!(%address, data = %server.config.data_dir.display(), "serving");
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its parts, for those that run beside it in one process.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Says where the page is. The link is a credential: it is shown to a terminal and to nothing else.
    fn greet(&self) {
        let mut out = std::io::stdout();
        let page = format!("http://{}", self.address);
        let words = if out.is_terminal() {
            let code = self.api.door.authority.make_code();
            let life = crate::config::units::duration_words(self.api.door.authority.code_life());
            format!("Rejoin is at {page}\nSign in within {life}: {page}/#code={code}\nAnother link: rejoin open\n")
        } else {
            format!("Rejoin is at {page}; `rejoin open` gives a sign-in link\n")
        };
        // Nobody may be reading: that is no reason not to serve.
        let _ = std::io::Write::write_all(&mut out, words.as_bytes());
    }

    /// Reads the folder of task files once, before anything is due, and follows it from then on.
    async fn read_task_files(&mut self) {
        let (dir, registry) = (self.config.tasks_dir.clone(), self.api.viewer.registry.clone());
        let mut known = registry.all();
        known.retain(|task| task.source == Source::File && task.enabled);
        for task in &known {
            // Also where it cannot be read now: its commands run beside it.
            registry.note_path(&task.id, folder::file_of(&dir, &task.id));
        }
        let folder = Folder::new(dir, self.config.terms()).knowing(known.iter().map(|task| task.id.clone()));
        let mut changes = folder::watch(folder, self.stop.clone());
        let (planner, runs) = (Arc::clone(&self.api.planner), self.api.runs.clone());
        let Some(first) = changes.recv().await else { return };
        let mut files = Files::new(registry);
        // A full disk does not hold up the start.
        files.apply(first).await;
        let (publisher, stop) = (self.api.publisher.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            loop {
                // The folder does not tell them again, and what it tells next comes after them.
                while files.wait_for_the_store() {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = can_be_written(&publisher) => {}
                    }
                    files.apply_refused().await;
                    planner.notify_one();
                    runs.reread();
                }
                let batch = tokio::select! {
                    batch = changes.recv() => batch,
                    shown = files.shown() => Some(shown),
                };
                let Some(batch) = batch else { return };
                files.apply(batch).await;
                planner.notify_one();
                runs.reread();
            }
        });
    }

    fn spawn_parts(&mut self) -> Result<()> {
        let Api { viewer, runs, publisher, store, live, planner, trust, snoozed, .. } = self.api.clone();
        self.tasks.spawn(runs.clone().dispatch());
        self.tasks.spawn(runs.clone().line_up_retries());
        let look_again = self.config.schedule.look_again;
        let registry = viewer.registry.clone();
        let clock_held = trust.held();
        let planner = Planner { registry, runs, publisher: publisher.clone(), bell: planner, look_again, trust };
        self.tasks.spawn(planner.run(self.no_more.clone()));
        self.tasks.spawn(tell_clock(clock_held, live.clone(), self.stop.clone()));
        self.tasks.spawn(Arc::clone(&live.board).follow(self.stop.clone()));
        self.tasks.spawn(self.api.notifier.clone().run(self.stop.clone()));
        let (stop, of) = (self.stop.clone(), publisher.clone());
        self.tasks.spawn(attention::follow(Arc::clone(&store), of, snoozed, stop));
        self.tasks.spawn(tell_writable(publisher.clone(), live.clone(), self.stop.clone()));
        self.tasks.spawn(close_expired(live.clone(), self.stop.clone()));
        let housekeeping = self.api.housekeeping.clone();
        self.tasks.spawn(tell_trouble(housekeeping.clone(), live.clone(), self.stop.clone()));
        self.tasks.spawn(housekeeping.run(self.no_more.clone()));
        let mut checkpointer = Checkpointer::new(&store)?;
        self.tasks.spawn(tidy_when_crowded(publisher.clone(), self.stop.clone()));
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new().name("checkpointer".to_owned()).spawn(move || {
            let mut tidied = Instant::now();
            while !stop.is_cancelled() {
                checkpointer.rest(&store);
                checkpointer.tick(&store, &publisher);
                if tidied.elapsed() >= TIDY_EVERY {
                    tidied = Instant::now();
                    publisher.tidy();
                    store.tidy();
                    shutdown::give_memory_back();
                }
            }
        })?;
        self.checkpointer = Some(thread);
        Ok(())
    }

    fn spawn_doors(&mut self, tcp: Tcp, unix: Unix) {
        // Upgraded sockets have limits of their own and no longer count here.
        let most = self.config.stream.connections;
        let stop = self.no_more.clone();
        self.tasks.spawn(socket::serve(tcp, router(self.api.clone()), most, stop.clone()));
        self.tasks.spawn(socket::serve(unix, router(self.api.clone()), most, stop));
    }

    /// Stops in order: no new work; watchers are told; runs get their grace, then are stopped; what they said is
    /// written; then the store is closed.
    ///
    /// # Errors
    /// When the orderly end cannot be noted.
    pub async fn stop(mut self) -> Result<()> {
        self.api.about.ready.store(false, Ordering::Relaxed);
        let now = self.api.publisher.clock().now();
        self.api.live.notices.say("draining", "the server is stopping; it will be back".to_owned(), now);
        self.api.live.hub.wake_all();
        self.no_more.cancel();
        let grace = self.config.runs.shutdown_grace;
        tokio::join!(self.api.runs.shut_down(grace), self.say_goodbye());
        self.stop.cancel();
        self.api.live.commands.under_way.close();
        let last = async {
            while self.tasks.join_next().await.is_some() {}
            self.api.live.commands.under_way.wait().await;
        };
        if tokio::time::timeout(LAST_REQUESTS, last).await.is_err() {
            self.tasks.shutdown().await;
        }
        if let Err(error) = self.bell.stop().await {
            warn!(%error, "the bell could not be stopped");
        }
        let (writer, checkpointer, store) = (self.writer, self.checkpointer, Arc::clone(&self.api.store));
        let threads = move || {
            writer.stop();
            // It has the store too: as long as it is there, the data folder is locked.
            if let Some(checkpointer) = checkpointer {
                checkpointer.thread().unpark();
                if checkpointer.join().is_err() {
                    error!("the checkpoints ended by a panic");
                }
            }
        };
        tokio::task::spawn_blocking(threads).await.context("the writer did not stop")?;
        store.note_clean_stop()?;
        info!("stopped");
        Ok(())
    }

    /// Tells the watchers, a few hundred per second, so that they do not all come back at once.
    async fn say_goodbye(&self) {
        let handles = self.api.live.hub.start_draining();
        let spread = Duration::from_millis((handles.len() * 1000 / GOODBYES_PER_SECOND) as u64);
        let spread = spread.min(self.config.stream.drain);
        let pause = spread / u32::try_from(handles.len().max(1)).unwrap_or(1);
        for (index, handle) in handles.iter().enumerate() {
            let retry_ms = 500 + rand::random_range(0..1000) + u64::try_from(spread.as_millis()).unwrap_or(0);
            handle.close(Closing::draining(retry_ms));
            if index % 50 == 49 {
                tokio::time::sleep(pause * 50).await;
            }
        }
    }
}

/// How much the stream keeps in memory, as configured.
pub fn limits(config: &Config) -> Limits {
    let stream = &config.stream;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let unread_bytes = Limits::default().ring.unread_bytes.max(size(stream.ring_bytes));
    Limits {
        ring: ring::Limits { events: stream.ring_events, bytes: size(stream.ring_bytes), unread_bytes },
        rings_bytes: size(stream.ring_total_bytes),
        ring_idle: stream.ring_idle,
        queue: QueueLimits { events: stream.queue_events, bytes: size(stream.queue_bytes) },
        queues_bytes: size(stream.queue_total_bytes),
    }
}

/// The parts behind the doors, on a store that is open; none of them does anything by itself yet.
///
/// # Errors
/// When the store cannot be read; each says what to do.
pub async fn assemble(
    config: &Config,
    store: &Arc<Store>,
    publisher: Publisher,
    exe: PathBuf,
    address: SocketAddr,
) -> Result<Api> {
    let registry = Registry::load(store, publisher.clone(), config.terms(), TimeZone::system()).await?;
    let output_dir: Arc<Path> = config.data_dir.join("output").into();
    let runs = Runs::new(
        workshop(config, &publisher, exe, &output_dir, address),
        registry.clone(),
        Arc::clone(store),
        places(config),
        Patience { lease: config.runs.external_lease, stop: config.runs.external_stop },
    );
    let token = auth::token(&config.data_dir)?;
    let authority =
        Authority::load(&token, store, publisher.clone(), config.auth.session_days, config.auth.code_life).await?;
    let scrape = Scrape::new(&config.metrics, &config.data_dir)?;
    let (page, own_port) = (format!("http://{address}"), Some(address.port()));
    let notifier =
        Notifier::new(&config.notify, registry.clone(), publisher.clone(), Arc::clone(store), page, own_port);
    let housekeeping =
        Housekeeping::load(config, store, publisher.clone(), registry.clone(), Arc::clone(&output_dir)).await?;
    let viewer = Viewer { registry, publisher, store: Arc::clone(store) };
    let parts = Parts { viewer, runs, notifier, authority: Arc::new(authority), housekeeping, scrape, output_dir };
    Ok(api(config, address, parts))
}

fn places(config: &Config) -> Places {
    let pools = config.pools.iter().map(|(name, size)| (name.to_string(), size.get())).collect();
    Places::new(config.runs.places(), &pools)
}

fn workshop(config: &Config, publisher: &Publisher, exe: PathBuf, output_dir: &Path, address: SocketAddr) -> Workshop {
    let runs = &config.runs;
    Workshop {
        publisher: publisher.clone(),
        exe,
        output_dir: output_dir.to_owned(),
        work_dir: config.data_dir.clone(),
        stages: StopStages {
            interrupt: Duration::ZERO,
            terminate: runs.stop_term,
            kill: runs.stop_kill,
            give_up: runs.stop_give_up,
        },
        own_port: Some(address.port()),
    }
}

/// What the doors open to.
struct Parts {
    viewer: Viewer,
    runs: Runs,
    notifier: Notifier,
    authority: Arc<Authority>,
    housekeeping: Housekeeping,
    scrape: Scrape,
    output_dir: Arc<Path>,
}

fn api(config: &Config, address: SocketAddr, parts: Parts) -> Api {
    let Parts { viewer, runs, notifier, authority, housekeeping, scrape, output_dir } = parts;
    let stream = &config.stream;
    let boot = format!("{:08x}", rand::random::<u32>());
    let door = Door {
        port: address.port(),
        allowed_hosts: config.allowed_hosts.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        address: format!("http://{address}"),
        authority: Arc::clone(&authority),
    };
    let acts = Acts { runs: runs.clone(), keys: Keys::new(Arc::clone(&viewer.store), viewer.publisher.clone()) };
    let live = Arc::new(Live {
        commands: Commands { acts: acts.clone(), under_way: TaskTracker::new() },
        hub: Hub::new(SocketLimits {
            connections: stream.connections,
            per_credential: stream.connections_per_credential,
            unauthenticated: stream.unauthenticated,
        }),
        board: Board::new(viewer.clone()),
        notices: Arc::new(Notices::default()),
        viewer: viewer.clone(),
        authority,
        limits: LiveLimits {
            heartbeat: stream.heartbeat,
            life: stream.life,
            hello: stream.hello_deadline,
            slow_bytes: stream.slow_bytes,
            slow_window: stream.slow_window,
            subscriptions: stream.subscriptions,
            replay: ReplayLimits { events: stream.replay_events, bytes: stream.replay_bytes },
        },
        boot: boot.as_str().into(),
        clock: viewer.publisher.clock().clone(),
    });
    Api {
        publisher: viewer.publisher.clone(),
        store: Arc::clone(&viewer.store),
        viewer,
        runs,
        notifier,
        acts,
        door: Arc::new(door),
        live,
        planner: Arc::new(Notify::new()),
        trust: Arc::default(),
        scrape: Arc::new(scrape),
        snoozed: Arc::new(Notify::new()),
        about: Arc::new(About { started: Instant::now(), boot, ready: AtomicBool::new(false) }),
        housekeeping,
        output_dir,
    }
}

/// Waits until the store can be written. A moment first: it refuses what was asked before it says that it cannot.
async fn can_be_written(publisher: &Publisher) {
    tokio::time::sleep(TRY_AGAIN).await;
    let _ = publisher.writable().wait_for(|writable| *writable == Writable::Yes).await;
}

/// Closes the sockets of those whose sign-in has run out, as it runs out. The time of day is looked at, not waited
/// for: a machine that slept has not counted.
async fn close_expired(live: Arc<Live>, stop: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_FOR_EXPIRED);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
        }
        for device in live.authority.expired() {
            live.hub.close_credential(&device, &Closing::EXPIRED);
        }
    }
}

/// Gives memory back as soon as all rings together take too much, beside the round that is made from time to time.
async fn tidy_when_crowded(publisher: Publisher, stop: CancellationToken) {
    let mut crowded = publisher.crowded();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            rung = crowded.changed() => if rung.is_err() { return },
        }
        publisher.tidy();
    }
}

/// Tells everybody when the store cannot be written, and when it can again.
pub async fn tell_writable(publisher: Publisher, live: Arc<Live>, stop: CancellationToken) {
    let words = |now: &Writable| match now {
        Writable::No { since, why } => {
            let text = format!(
                "Nothing can be saved at the moment ({why}), most often because the disk is full. \
                Runs wait, nothing unsaved is shown; free some space and they go on."
            );
            Some((text, *since))
        }
        Writable::Yes => None,
    };
    let over = "The store can be written again.";
    tell(publisher.writable(), "store_not_writable", words, over, &live, stop).await;
}

/// Tells everybody what housekeeping could not do, until it can.
async fn tell_trouble(housekeeping: Housekeeping, live: Arc<Live>, stop: CancellationToken) {
    let words = |now: &Vec<(Chore, String)>| {
        let each: Vec<String> = now.iter().map(|(chore, why)| format!("{}: {why}", chore.name())).collect();
        let text = format!("Housekeeping could not do its work. {}", each.join("; "));
        (!now.is_empty()).then(|| (text, live.clock.now()))
    };
    let over = "Housekeeping could do again what it could not.";
    tell(housekeeping.trouble(), "housekeeping_failed", words, over, &live, stop).await;
}

/// Tells everybody when the clock cannot be believed and schedules are held, and when they go on.
async fn tell_clock(held: watch::Receiver<Option<Timestamp>>, live: Arc<Live>, stop: CancellationToken) {
    let words = |until: &Option<Timestamp>| {
        let until = crate::clock::rfc3339((*until)?);
        let text = format!(
            "The clock of this machine is more than an hour behind what is stored: it was once {until}. \
            Schedules are held until it has caught up; set the clock and they go on. If it is right as it is, say \
            so: rejoin doctor --accept-clock. Runs by hand are not held."
        );
        Some((text, live.clock.now()))
    };
    tell(held, "clock_wrong", words, "The clock is right again: schedules go on.", &live, stop).await;
}

/// Tells everybody while something is amiss: `words` says what, and since when; `over` that it is so no more.
async fn tell<T>(
    mut watched: watch::Receiver<T>,
    code: &'static str,
    words: impl Fn(&T) -> Option<(String, Timestamp)>,
    over: &'static str,
    live: &Live,
    stop: CancellationToken,
) {
    let mut told = false;
    loop {
        let now = words(&watched.borrow_and_update());
        let was_told = std::mem::replace(&mut told, now.is_some());
        match now {
            Some((text, since)) => live.notices.say(code, text, since),
            None if was_told => live.notices.lift(code, over),
            None => {}
        }
        live.hub.wake_all();
        tokio::select! {
            () = stop.cancelled() => return,
            changed = watched.changed() => if changed.is_err() { return },
        }
    }
}
