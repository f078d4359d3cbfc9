//! One seed from its beginning to its end: a storm of faults, then a calm in which everybody must come to the same, then
//! a few words that must arrive at once.

use std::sync::Arc;
use std::time::Duration;

use rejoin::event::{Body, Seq, State, Status};
use rejoin::stream::log;
use rejoin::stream::topic::Topic;
use rejoin::task::definition::Definition;
use rejoin::task::parse;
use rejoin::task::registry::{Source, TaskError};
use rusqlite::Connection;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::chance::Chance;
use crate::emitter::Emitter;
use crate::network::Way;
use crate::node::{Node, POINTS, Running};
use crate::probe;
use crate::truth::Log;
use crate::watcher::{Handle, Shown, Watcher, Wish};
use crate::world::World;

/// How long somebody may stand still once the faults are over, until all have come to the same: a half-open connection is
/// noticed after 35 s, the longest delay of a client is 30 s, twice in a row by bad luck.
const SETTLED: Duration = Duration::from_secs(240);
/// How long they may take in any case, however slow their lines are.
const MOVING: Duration = Duration::from_secs(1200);
/// After this a line that was dead is known to be dead by both of its ends.
const DEAD: Duration = Duration::from_secs(60);
/// The last words are there within this, by no heartbeat.
const PROMPT: Duration = Duration::from_secs(4);

/// Plays a seed.
pub async fn play(world: Arc<World>) {
    let story = Story::begin(&world).await;
    tokio::select! {
        biased;
        () = world.alarm.notified() => {}
        () = story.tell() => {}
    }
}

struct Story {
    world: Arc<World>,
    node: Arc<Node>,
    chance: Chance,
    tasks: Vec<String>,
    watchers: Vec<Handle>,
    watching: Vec<JoinHandle<()>>,
    emitters: Vec<JoinHandle<Emitter>>,
    probes: u64,
}

impl Story {
    async fn begin(world: &Arc<World>) -> Self {
        let node = Node::new(world);
        node.start().await;
        let tasks: Vec<String> = (1..=world.profile.tasks).map(|number| format!("task{number}")).collect();
        let mut story = Self {
            world: Arc::clone(world),
            node,
            chance: Chance::new(world.seed, "story"),
            tasks,
            watchers: Vec::new(),
            watching: Vec::new(),
            emitters: Vec::new(),
            probes: 0,
        };
        for task in story.tasks.clone() {
            story.make(&task).await;
        }
        for number in 1..=world.profile.watchers {
            let of: Vec<String> = story.tasks.iter().filter(|_| !story.chance.one_in(4)).cloned().collect();
            let of = if of.is_empty() { story.tasks.clone() } else { of };
            let (watcher, handle) = Watcher::new(world, &story.node, &format!("watch{number}"), &of);
            story.watchers.push(handle);
            story.watching.push(tokio::spawn(watcher.watch()));
        }
        for (number, task) in (1..).zip(&story.tasks) {
            story.emitters.push(tokio::spawn(Emitter::new(world, &story.node, number, task).speak()));
        }
        story
    }

    async fn tell(mut self) {
        self.storm().await;
        self.world.tick();
        self.world.trace("story", "calm");
        self.world.calm_down();
        self.repair().await;
        let mut emitters = Vec::new();
        for emitter in std::mem::take(&mut self.emitters) {
            match tokio::time::timeout(SETTLED, emitter).await {
                Ok(Ok(emitter)) => emitters.push(emitter),
                _ => return self.world.wrong("story", "an emitter waits for ever"),
            }
        }
        for emitter in &mut emitters {
            if tokio::time::timeout(SETTLED, emitter.conclude(0)).await.is_err() {
                return self.world.wrong("story", "the end of a run waits for ever");
            }
            emitter.check_taken();
        }
        if !self.settle().await {
            return;
        }
        // Who is on a line that is dead shows what is true until the next word: after this, each knows.
        tokio::time::sleep(DEAD).await;
        if !self.settle().await {
            return;
        }
        self.world.trace("story", "settled");
        for emitter in &mut emitters {
            emitter.conclude(3).await;
            if !self.come_to(PROMPT, PROMPT, "see the last words at once").await {
                return;
            }
        }
        self.leave().await;
    }

    async fn storm(&mut self) {
        let end = self.world.profile.storm * 1_000_000;
        while self.world.tick() < end {
            tokio::time::sleep(self.chance.millis(50..=2_500)).await;
            self.world.tick();
            self.fault().await;
        }
    }

    /// One thing that happens.
    async fn fault(&mut self) {
        let faults = self.world.profile.faults;
        let weights = [
            faults.cut,
            faults.silence,
            faults.stall,
            faults.crash,
            faults.restart,
            faults.retention,
            faults.tidy,
            faults.full_disk,
            faults.remake,
            faults.probe,
            faults.leave,
            faults.resubscribe,
        ];
        let all: u64 = weights.iter().sum();
        if all == 0 {
            return;
        }
        let mut drawn = self.chance.within(0..=all - 1);
        let mut which = 0;
        while drawn >= weights[which] {
            drawn -= weights[which];
            which += 1;
        }
        match which {
            0..=2 => self.disturb(which),
            3 => self.crash().await,
            4 => self.restart().await,
            5 => self.retain().await,
            6 => self.tidy(),
            7 => self.full_disk().await,
            8 => self.remake().await,
            9 => self.probe(),
            10 => {
                let wish = if self.chance.one_in(2) { Wish::Leave } else { Wish::Replace };
                self.wish(wish);
            }
            _ => {
                let task = self.chance.pick(&self.tasks).clone();
                let wish = match self.chance.within(0..=3) {
                    0 => Wish::Unsubscribe(task),
                    1 => Wish::Again(task, true),
                    _ => Wish::Again(task, false),
                };
                self.wish(wish);
            }
        }
    }

    fn wish(&mut self, wish: Wish) {
        let _ = self.chance.pick(&self.watchers).wishes.send(wish);
    }

    fn disturb(&mut self, how: usize) {
        let links = self.node.links();
        if links.is_empty() {
            return;
        }
        let link = self.chance.pick(&links);
        match how {
            0 => {
                self.world.trace("network", "cut");
                link.cut();
            }
            1 => {
                let which = self.chance.within(0..=2);
                self.world.trace("network", &format!("silence {which}"));
                for (index, way) in [Way::ToServer, Way::ToClient].into_iter().enumerate() {
                    if which != index as u64 {
                        link.silence(way);
                    }
                }
            }
            _ => {
                let long = self.chance.millis(100..=15_000);
                self.world.trace("network", &format!("stall {} ms", long.as_millis()));
                link.stall(long);
            }
        }
    }

    async fn crash(&mut self) {
        let at = if self.chance.one_in(5) { None } else { Some(*self.chance.pick(&POINTS)) };
        let silent = self.chance.one_in(3);
        self.node.crash(at, silent);
        if tokio::time::timeout(Duration::from_secs(3), self.node.gone.notified()).await.is_err() {
            self.node.crash(None, silent);
            self.node.gone.notified().await;
        }
        self.come_back().await;
    }

    async fn restart(&mut self) {
        self.node.stop().await;
        if tokio::time::timeout(Duration::from_secs(20), self.node.gone.notified()).await.is_err() {
            return self.world.wrong("story", "the server does not stop");
        }
        self.come_back().await;
    }

    async fn come_back(&mut self) {
        let faults = self.world.profile.faults;
        if faults.restore > 0 {
            match self.chance.within(0..=3) {
                0 => self.node.back_up(),
                1 => self.node.put_back(),
                _ => {}
            }
        }
        tokio::time::sleep(self.chance.millis(0..=5_000)).await;
        self.node.start().await;
    }

    async fn retain(&mut self) {
        let Some(running) = self.node.running() else { return };
        let task = self.chance.pick(&self.tasks).clone();
        let Some(topic) = running.api.publisher.topic(&task.parse().unwrap()) else { return };
        let (head, oldest, open) = {
            let tail = topic.tail();
            (tail.head.0, tail.oldest.0, tail.fold.runs().map(|run| run.first_seq.0).min())
        };
        // By number, as the sweep does it; what goes on is never taken from under it.
        let keep = self.chance.within(0..=head);
        let no = topic.no;
        let young = jiff::Timestamp::UNIX_EPOCH;
        let read = move |connection: &Connection| log::outlived(connection, no, young, keep);
        let Ok(to) = running.api.store.read(read).await else { return };
        let to = to.0.min(open.unwrap_or(u64::MAX));
        if to > oldest && running.api.publisher.raise_oldest(&topic, Seq(to)).await.is_ok() {
            self.world.tick();
            self.world.trace("story", &format!("retention of {task} to {to}"));
            self.world.saw("retention");
        }
    }

    fn tidy(&self) {
        let Some(running) = self.node.running() else { return };
        running.api.publisher.tidy();
        let rings: usize = self
            .tasks
            .iter()
            .filter_map(|task| running.api.publisher.topic(&task.parse().unwrap()))
            .map(|topic| topic.tail().ring.bytes())
            .sum();
        if rings > self.world.profile.limits.rings_bytes {
            self.world.wrong("memory", &format!("all rings keep {rings} bytes"));
        }
    }

    /// For a while the file may not grow.
    async fn full_disk(&mut self) {
        let Some(running) = self.node.running() else { return };
        self.world.trace("story", "the disk is full");
        pages(&running, 1).await;
        tokio::time::sleep(self.chance.millis(100..=6_000)).await;
        pages(&running, 1 << 30).await;
        self.world.tick();
        self.world.trace("story", "the disk has room");
    }

    /// Deletes a task and makes it again.
    async fn remake(&mut self) {
        let task = self.chance.pick(&self.tasks).clone();
        self.remove(&task).await;
        tokio::time::sleep(self.chance.millis(0..=4_000)).await;
        self.make(&task).await;
    }

    async fn remove(&mut self, task: &str) {
        let Some(running) = self.node.running() else { return };
        let id = task.parse().unwrap();
        // Its runs end first; what is said meanwhile may begin another.
        for _ in 0..20 {
            let Some(topic) = running.api.publisher.topic(&id) else { return };
            let open: Vec<_> = topic.tail().fold.runs().map(|run| run.id).collect();
            for run in open {
                let status = Status::new(State::Cancelled, "removed");
                let _ = running.api.publisher.publish(&topic, Some(run), &Body::Status(status)).await;
            }
            if self.chance.one_in(2) {
                self.say_meanwhile(&running, &topic);
            }
            match running.api.viewer.registry.remove(&id, |_| Ok(())).await {
                Ok(_) => {
                    self.world.tick();
                    self.world.saw("task removed");
                    return self.world.trace("story", &format!("{task} removed"));
                }
                Err(TaskError::Running) => {}
                Err(_) => return,
            }
        }
    }

    /// A word about a task that is on its way out: it is refused, or it is saved.
    fn say_meanwhile(&mut self, running: &Arc<Running>, topic: &Arc<Topic>) {
        let (world, running, topic) = (Arc::clone(&self.world), Arc::clone(running), Arc::clone(topic));
        let (pause, token) = (self.chance.millis(0..=40), format!("~0.{}~", self.world.number()));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            world.tick();
            let word = Body::Thought { text: token.clone() };
            let Ok(seq) = running.api.publisher.publish(&topic, None, &word).await else { return };
            let saved = |log: &Log| log.event(seq.0).is_some_and(|event| event.text.contains(&token));
            if !world.truth().logs(topic.id.as_str()).iter().any(saved) {
                world.wrong("story", &format!("{token} was acknowledged as event {seq}, which it is not"));
            }
        });
    }

    async fn make(&mut self, task: &str) {
        let Some(running) = self.node.running() else { return };
        let made = running.api.viewer.registry.add(
            Some(task.parse().unwrap()),
            definition(task),
            Source::Store,
            None,
            |_, _| Ok(()),
        );
        if made.await.is_ok() {
            self.world.tick();
            self.world.trace("story", &format!("{task} made"));
        }
    }

    fn probe(&mut self) {
        self.probes += 1;
        let task = self.chance.pick(&self.tasks).clone();
        let (world, node, number) = (Arc::clone(&self.world), Arc::clone(&self.node), self.probes);
        tokio::spawn(probe::ask(world, node, number, task));
    }

    /// What the storm left: a server that is down, a task that is not there.
    async fn repair(&mut self) {
        if self.node.running().is_none() {
            self.node.start().await;
        }
        for task in self.tasks.clone() {
            if self.world.truth().now(&task).is_none() {
                self.make(&task).await;
            }
        }
    }

    /// Waits until every watcher shows what is true. One on a slow line may take long, as long as it gets on.
    async fn settle(&self) -> bool {
        self.come_to(SETTLED, MOVING, "settle").await
    }

    /// Waits until every watcher shows what is true: none may stand still for so long, and all of it takes at most so long.
    async fn come_to(&self, still: Duration, most: Duration, what: &str) -> bool {
        let begin = tokio::time::Instant::now();
        let (mut seen, mut since) = (None, begin);
        loop {
            self.world.tick();
            let Some(lagging) = self.lagging() else { return true };
            if seen.as_ref() != Some(&lagging) {
                (seen, since) = (Some(lagging.clone()), tokio::time::Instant::now());
            }
            if since.elapsed() > still || begin.elapsed() > most {
                self.world.wrong("story", &format!("watchers do not {what}: {lagging}"));
                return false;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    fn lagging(&self) -> Option<String> {
        let truth = self.world.truth();
        for watcher in &self.watchers {
            for (task, shown) in watcher.shown() {
                let due = truth.now(&task).map(|log| Shown {
                    generation: Some(log.generation.clone()),
                    position: log.head(),
                    live: true,
                    whole: true,
                });
                if due.as_ref() != Some(&shown) {
                    return Some(format!("{} shows {shown:?} of {task}, it is {due:?}", watcher.name));
                }
            }
        }
        None
    }

    /// When everybody has left, nothing of them is left.
    async fn leave(self) {
        for watching in &self.watching {
            watching.abort();
        }
        tokio::time::sleep(Duration::from_secs(40)).await;
        self.world.tick();
        let Some(running) = self.node.running() else { return };
        let api = &running.api;
        if api.live.hub.count() > 0 {
            self.world.wrong("story", &format!("{} sockets are left", api.live.hub.count()));
        }
        for task in &self.tasks {
            if api.publisher.connections().has_watchers(&task.parse().unwrap()) {
                self.world.wrong("story", &format!("a watcher of {task} is left"));
            }
        }
        if api.store.permits().available_permits() != self.world.profile.page_reads {
            self.world.wrong("story", "a permit for a page is not given back");
        }
        let events: u64 = self.world.truth().there().map(|(_, log)| log.head()).sum();
        self.world.saw_so_many("event in a log at the end", events);
        self.world.trace("story", "the end");
    }
}

fn definition(task: &str) -> Definition {
    let text = json!({ "title": task, "agent": "steps", "steps": [{ "run": "true" }] });
    parse::from_json(&text, &rejoin::config::Config::default().schedule.policy()).unwrap().definition
}

/// How large the file may become: what SQLite does on a full disk, and after.
async fn pages(running: &Running, most: i64) {
    let act = move |connection: &Connection| -> Result<_, rejoin::store::StoreError> {
        connection.query_row(&format!("PRAGMA max_page_count = {most}"), [], |row| row.get::<_, i64>(0))?;
        Ok(((), Vec::new()))
    };
    let _ = running.api.publisher.transact(act).await;
}
