//! The server's machine: a server that is put together from the real parts, its writer stepped from here, and what may
//! happen to it. A crash leaves what is on the disk at that moment, and nothing else.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use rejoin::api::hub::Closing;
use rejoin::api::{Api, router};
use rejoin::event::Seq;
use rejoin::failpoint;
use rejoin::server::{assemble, tell_writable};
use rejoin::store::{Durability, Store};
use rejoin::stream::publish::Publisher;
use rejoin::stream::writer::{Next, Stepper};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::chance::Chance;
use crate::network::{End, Link, Port};
use crate::truth::Marked;
use crate::world::World;

/// Where the writer is held and ended: before the commit, before the ring has it, before anyone is woken.
pub const POINTS: [&str; 3] = ["in-commit", "committed-not-woken", "in-ring-not-woken"];
/// From here on what is committed is true.
const COMMITTED: &str = "committed-not-woken";

/// The machine.
#[derive(Debug)]
pub struct Node {
    world: Arc<World>,
    state: Mutex<State>,
    /// Rung when the server is gone.
    pub gone: Notify,
}

#[derive(Debug)]
struct State {
    chance: Chance,
    starts: u64,
    /// What is on the disk.
    disk: PathBuf,
    backup: Option<Backup>,
    /// The file on the disk is the one of the backup.
    put_back: Option<Marked>,
    running: Option<Arc<Running>>,
    links: Vec<Arc<Link>>,
}

#[derive(Debug)]
struct Backup {
    dir: PathBuf,
    marked: Marked,
}

/// A server.
#[derive(Debug)]
pub struct Running {
    /// Which start of it.
    pub start: u64,
    /// Its parts.
    pub api: Api,
    /// What answers calls.
    pub router: Router,
    port: mpsc::UnboundedSender<End>,
    commands: mpsc::UnboundedSender<Command>,
    stop: CancellationToken,
    tasks: Vec<AbortHandle>,
    /// The token of its data folder.
    pub token: String,
}

/// What the writer's driver is told.
#[derive(Debug)]
enum Command {
    /// The machine ends now, or at the next pass of that point. `silent`: no connection is told.
    Crash { at: Option<&'static str>, silent: bool },
    /// Write what there is, then end.
    Stop,
}

/// What the writer's thread is told.
enum Order {
    /// The next group; held at that point, to be ended there.
    Step { end_at: Option<&'static str> },
    /// On from the point where it is held.
    Go,
    /// End, wherever it is.
    Die,
    /// Take nothing more.
    Stop,
}

/// What the writer's thread says.
enum Report {
    /// It is held there.
    At(&'static str),
    Stepped(Next),
    Stopping,
    /// It panicked.
    Lost,
}

/// Unwinds the writer's thread.
struct Killed;

impl Node {
    /// A machine whose disk is empty.
    pub fn new(world: &Arc<World>) -> Arc<Self> {
        let state = State {
            chance: Chance::new(world.seed, "node"),
            starts: 0,
            disk: world.dir.join("0"),
            backup: None,
            put_back: None,
            running: None,
            links: Vec::new(),
        };
        Arc::new(Self { world: Arc::clone(world), state: Mutex::new(state), gone: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The server, while there is one.
    pub fn running(&self) -> Option<Arc<Running>> {
        self.state().running.clone()
    }

    /// A connection to the server: refused while there is none.
    pub fn connect(&self, name: &str, chance: &mut Chance) -> Option<(Arc<Link>, End)> {
        let running = self.running()?;
        let (link, client, server) = Link::new(self.world.seed, name, &self.world.line(chance));
        running.port.send(server).ok()?;
        self.state().links.push(Arc::clone(&link));
        Some((link, client))
    }

    /// The connections that someone holds.
    pub fn links(&self) -> Vec<Arc<Link>> {
        let mut state = self.state();
        state.links.retain(|link| Arc::strong_count(link) > 1);
        state.links.clone()
    }

    /// Starts a server on what is on the disk.
    pub async fn start(self: &Arc<Self>) {
        if let Err(error) = self.try_start().await {
            self.world.wrong("node", &format!("the server does not start: {error}"));
        }
    }

    async fn try_start(self: &Arc<Self>) -> Result<(), String> {
        let world = &self.world;
        world.tick();
        let (start, dir, put_back, chance) = {
            let mut state = self.state();
            state.starts += 1;
            let chance = Chance::new(world.seed, &format!("reads {}", state.starts));
            (state.starts, state.disk.clone(), state.put_back.take(), chance)
        };
        let profile = &world.profile;
        let words = |error: anyhow::Error| format!("{error:#}");
        let opened = Store::open(&dir, Durability::Normal, profile.page_reads).map_err(words)?;
        let (chance, pause) = (Mutex::new(chance), profile.read_pause);
        let store = Arc::new(opened.store.reading_here(move || chance.lock().unwrap().millis(0..=pause)));
        if opened.logs_replaced != put_back.is_some() {
            return Err(format!("logs replaced: {}, put back: {}", opened.logs_replaced, put_back.is_some()));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let witness = Connection::open_with_flags(store.path(), flags).map_err(|error| error.to_string())?;
        match &put_back {
            Some(marked) => world.truth().find_older(&witness, marked, world.now())?,
            None => world.truth().find_again(&witness, world.now())?,
        }
        let (publisher, stepper) = Publisher::stepped(opened.writer, profile.limits, world.clock.clone());
        let config = profile.config(dir);
        let address = config.listen;
        let (orders, commands) = mpsc::unbounded_channel();
        let rung = stepper.rung();
        let driver = Driver {
            node: Arc::clone(self),
            publisher: publisher.clone(),
            store: Arc::clone(&store),
            writer: WriterThread::spawn(world, start, stepper, witness),
            commands,
            rung,
            start,
            chance: Chance::new(world.seed, &format!("driver {start}")),
            heads: BTreeMap::new(),
        };
        let mut tasks = vec![tokio::spawn(driver.drive()).abort_handle()];
        let api =
            assemble(&config, &store, publisher.clone(), "/proc/self/exe".into(), address).await.map_err(words)?;
        let stop = CancellationToken::new();
        let (port, arrivals) = mpsc::unbounded_channel();
        let doors = rejoin::api::socket::serve(Port(arrivals), router(api.clone()), 1_000, stop.clone());
        tasks.push(tokio::spawn(doors).abort_handle());
        tasks.push(tokio::spawn(Arc::clone(&api.live.board).follow(stop.clone())).abort_handle());
        tasks.push(tokio::spawn(tell_writable(publisher, api.live.clone(), stop.clone())).abort_handle());
        let token = std::fs::read_to_string(config.data_dir.join("token")).map_err(|error| error.to_string())?;
        let router = router(api.clone());
        let running = Running { start, api, router, port, commands: orders, stop, tasks, token };
        let what = if put_back.is_some() { "start on an older file" } else { "start" };
        world.trace("node", &format!("{what} {start}"));
        world.saw(what);
        self.state().running = Some(Arc::new(running));
        Ok(())
    }

    /// Ends the machine now, or at the next pass of a point of the writer.
    pub fn crash(&self, at: Option<&'static str>, silent: bool) {
        if let Some(running) = self.running() {
            let _ = running.commands.send(Command::Crash { at, silent });
        }
    }

    /// Stops the server in order: watchers are told, what was offered is written.
    pub async fn stop(&self) {
        let Some(running) = self.running() else { return };
        self.world.trace("node", "drains");
        for handle in running.api.live.hub.start_draining() {
            let retry_ms = self.state().chance.within(500..=2_000);
            handle.close(Closing::draining(retry_ms));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = running.commands.send(Command::Stop);
    }

    /// Keeps a copy of what is on the disk of a machine that is down.
    pub fn back_up(&self) {
        let mut state = self.state();
        if state.running.is_none() {
            let dir = self.world.dir.join(format!("backup-{}", state.starts));
            copy(&state.disk, &dir);
            state.backup = Some(Backup { dir, marked: self.world.truth().mark() });
            self.world.trace("node", "backup");
        }
    }

    /// Puts the backup in the place of the file of a machine that is down. What stands beside the file stays.
    pub fn put_back(&self) {
        let mut state = self.state();
        if state.running.is_none()
            && let Some(backup) = state.backup.take()
        {
            let _ = std::fs::remove_file(state.disk.join("rejoin.db-wal"));
            for name in ["rejoin.db", "rejoin.db-wal"] {
                let _ = std::fs::copy(backup.dir.join(name), state.disk.join(name));
            }
            state.put_back = Some(backup.marked);
            self.world.trace("node", "puts the backup back");
        }
    }

    /// What is left when the server is gone: a copy of its folder as it is at this moment.
    fn leave(&self, start: u64) {
        let mut state = self.state();
        let disk = self.world.dir.join(start.to_string());
        copy(&state.disk, &disk);
        state.disk = disk;
    }

    fn end(&self, silent: bool) {
        let (running, links) = {
            let mut state = self.state();
            (state.running.take(), std::mem::take(&mut state.links))
        };
        for link in links {
            if silent {
                link.lose_server();
            } else {
                link.cut();
            }
        }
        if let Some(running) = running {
            running.stop.cancel();
            running.tasks.iter().skip(1).for_each(AbortHandle::abort);
        }
        self.gone.notify_one();
    }
}

/// All that a data folder holds, but for the lock and what SQLite makes anew.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["rejoin.db", "rejoin.db-wal", "opens", "token"] {
        let _ = std::fs::copy(from.join(name), to.join(name));
    }
}

/// The writer's thread. It runs only while the driver waits for it: one of the two is always still.
struct WriterThread {
    orders: Sender<Order>,
    reports: Receiver<Report>,
    thread: Option<JoinHandle<()>>,
}

impl WriterThread {
    fn spawn(world: &Arc<World>, start: u64, stepper: Stepper, witness: Connection) -> Self {
        let (orders, next) = channel();
        let (say, reports) = channel();
        let world = Arc::clone(world);
        let name = format!("writer {}", world.seed);
        let run = move || write(&world, start, stepper, witness, next, say);
        let thread = std::thread::Builder::new().name(name).spawn(run).unwrap();
        Self { orders, reports, thread: Some(thread) }
    }

    fn order(&self, order: Order) -> Report {
        let _ = self.orders.send(order);
        self.reports.recv().unwrap_or(Report::Lost)
    }

    fn die(&mut self) {
        let _ = self.orders.send(Order::Die);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.die();
    }
}

/// The writer's thread, from its first order to its last.
fn write(
    world: &Arc<World>,
    start: u64,
    mut stepper: Stepper,
    witness: Connection,
    orders: Receiver<Order>,
    say: Sender<Report>,
) {
    let orders = Rc::new(orders);
    let end_at = Rc::new(Cell::new(None));
    let mut chance = Chance::new(world.seed, &format!("writer {start}"));
    failpoint::visit_on_this_thread({
        let (world, orders, end_at, say) = (Arc::clone(world), Rc::clone(&orders), Rc::clone(&end_at), say.clone());
        move |point| {
            if point == COMMITTED
                && let Err(error) = world.truth().observe(&witness, world.now())
            {
                world.wrong("truth", &error);
            }
            let Some(point) = POINTS.iter().find(|known| **known == point) else { return };
            let held = chance.one_in(world.profile.held);
            if held || end_at.get() == Some(*point) {
                let _ = say.send(Report::At(point));
                match orders.recv() {
                    Ok(Order::Go) => {}
                    _ => resume_unwind(Box::new(Killed)),
                }
            }
        }
    });
    loop {
        let report = match orders.recv() {
            Ok(Order::Step { end_at: wish }) => {
                end_at.set(wish);
                match catch_unwind(AssertUnwindSafe(|| stepper.step())) {
                    Ok(next) => Report::Stepped(next),
                    Err(payload) if payload.is::<Killed>() => return,
                    Err(_) => Report::Lost,
                }
            }
            Ok(Order::Stop) => {
                stepper.ask_to_stop();
                Report::Stopping
            }
            _ => return,
        };
        let _ = say.send(report);
    }
}

/// Has the writer step when it rings, and ends it.
struct Driver {
    node: Arc<Node>,
    publisher: Publisher,
    store: Arc<Store>,
    writer: WriterThread,
    commands: mpsc::UnboundedReceiver<Command>,
    rung: Arc<Notify>,
    start: u64,
    chance: Chance,
    /// The last event of each task when it last looked.
    heads: BTreeMap<String, u64>,
}

impl Driver {
    async fn drive(mut self) {
        let world = Arc::clone(&self.node.world);
        let mut next = Next::Wait;
        let mut wish: Option<(&'static str, bool)> = None;
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Crash { at: Some(at), silent }) => {
                        wish = Some((at, silent));
                        continue;
                    }
                    Some(Command::Crash { at: None, silent }) => return self.crash("between two groups", silent),
                    Some(Command::Stop) => {
                        self.writer.order(Order::Stop);
                        next = Next::Step;
                    }
                    None => return,
                },
                () = self.rung.notified() => {}
                () = wait(next) => {}
            }
            tokio::time::sleep(self.chance.millis(0..=world.profile.write_pause)).await;
            world.tick();
            let mut report = self.writer.order(Order::Step { end_at: wish.map(|(at, _)| at) });
            let mut held = false;
            loop {
                match report {
                    Report::At(at) => {
                        held = true;
                        if let Some((_, silent)) = wish.filter(|(point, _)| *point == at) {
                            return self.crash(at, silent);
                        }
                        tokio::time::sleep(self.chance.millis(0..=40)).await;
                        world.tick();
                        report = self.writer.order(Order::Go);
                    }
                    Report::Stepped(Next::Over) => return self.over(),
                    Report::Stepped(then) => {
                        next = then;
                        break;
                    }
                    Report::Stopping => break,
                    Report::Lost => return world.wrong("writer", "it ended by a panic"),
                }
            }
            if let Err(error) = self.within_bounds(held) {
                world.wrong("memory", &error);
            }
        }
    }

    /// What is on the disk at this moment is all that is left.
    fn crash(mut self, at: &str, silent: bool) {
        let world = &self.node.world;
        world.trace("node", &format!("crash {at}{}", if silent { ", in silence" } else { "" }));
        world.saw(&format!("crash {at}"));
        self.node.leave(self.start);
        self.writer.die();
        self.node.end(silent);
    }

    /// All is written, and nothing is open any more.
    fn over(mut self) {
        self.writer.die();
        if let Err(error) = self.store.note_clean_stop() {
            self.node.world.wrong("node", &format!("the stop cannot be noted: {error:#}"));
        }
        self.node.world.trace("node", "stopped");
        self.node.world.saw("stop");
        self.node.leave(self.start);
        self.node.end(false);
    }

    /// What the stream may keep in memory.
    fn within_bounds(&mut self, held: bool) -> Result<(), String> {
        let limits = &self.node.world.profile.limits;
        let ids: Vec<String> = self.node.world.truth().there().map(|(id, _)| id.to_owned()).collect();
        for id in ids {
            let Some(topic) = self.publisher.topic(&id.parse().unwrap()) else { continue };
            let unread = self.publisher.connections().slowest(&topic.id);
            let tail = topic.tail();
            let (ring, head) = (&tail.ring, tail.head.0);
            let (through, events) = (ring.evicted_through().0, ring.events() as u64);
            if through + events != head {
                return Err(format!("the ring of {id} has {events} events behind {through}, and the head is {head}"));
            }
            if events > 0 && (ring.holding(Seq(through)).is_some() || ring.holding(Seq(through + 1)).is_none()) {
                return Err(format!("the ring of {id} does not begin behind {through}"));
            }
            if through + 1 < tail.oldest.0 && events > 0 {
                return Err(format!("the ring of {id} answers from {}, below {}", through + 1, tail.oldest));
            }
            let over = ring.events() > limits.ring.events || ring.bytes() > limits.ring.bytes;
            // What nobody waits for goes with the next event; what someone waits for, only beyond its own bound.
            let grew = self.heads.insert(id.clone(), head).is_some_and(|before| before < head);
            if over && grew && !held && unread.is_none_or(|unread| unread > tail.head) {
                return Err(format!("the ring of {id} keeps {} events, {} bytes", ring.events(), ring.bytes()));
            }
            if ring.bytes() > limits.ring.bytes.max(limits.ring.unread_bytes) {
                return Err(format!("the ring of {id} keeps {} bytes for those who lag", ring.bytes()));
            }
        }
        Ok(())
    }
}

async fn wait(next: Next) {
    match next {
        Next::Step => {}
        Next::WaitFor(pause) => tokio::time::sleep(pause).await,
        Next::Wait | Next::Over => std::future::pending().await,
    }
}
