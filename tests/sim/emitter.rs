//! An emitter: what a run says, in words that can be told apart. It knows what was acknowledged, and holds the log to it.

use std::collections::VecDeque;
use std::sync::Arc;

use rejoin::event::{Body, OutputStream, Role, RunId, State, Status};
use rejoin::stream::batch::{Batch, Producer, Turn};
use rejoin::stream::publish::Publisher;
use rejoin::stream::topic::{Offer, Refused, Topic};
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::chance::Chance;
use crate::node::{Node, Running};
use crate::world::World;

/// Speaks for the runs of one task.
pub struct Emitter {
    world: Arc<World>,
    node: Arc<Node>,
    chance: Chance,
    number: u32,
    task: String,
    /// How many words it has said.
    count: u64,
    run: Option<RunId>,
    /// The open call of the run.
    call: Option<String>,
    /// The start of the server that it last spoke to.
    start: u64,
    /// What that server took and has not said to be saved.
    taken: VecDeque<u64>,
    /// Whether it sends batches.
    batches: bool,
}

/// Whether to go on with the same server.
type Said = Result<(), Refused>;

impl Emitter {
    /// The emitter of a task.
    pub fn new(world: &Arc<World>, node: &Arc<Node>, number: u32, task: &str) -> Self {
        let mut chance = Chance::new(world.seed, &format!("emitter {number}"));
        let batches = chance.one_in(2);
        Self {
            world: Arc::clone(world),
            node: Arc::clone(node),
            chance,
            number,
            task: task.to_owned(),
            count: 0,
            run: None,
            call: None,
            start: 0,
            taken: VecDeque::new(),
            batches,
        }
    }

    /// Speaks until the faults are over, then ends what is open.
    pub async fn speak(mut self) -> Self {
        while !self.world.is_calm() {
            self.world.tick();
            let pause = self.chance.millis(1..=self.world.profile.pace);
            if let Some((running, topic)) = self.topic() {
                // Refused: the server is gone, or the run or the task is. The next look shows which.
                let _ = self.go_on(&running, &topic).await;
            }
            tokio::time::sleep(pause).await;
        }
        self
    }

    /// Ends every run that is open, and says a few last words, each once the one before is saved.
    pub async fn conclude(&mut self, words: u32) {
        let Some((running, topic)) = self.topic() else { return };
        let open: Vec<RunId> = topic.tail().fold.runs().map(|run| run.id).collect();
        for run in open {
            let _ = self.publish(&running, &topic, Some(run), |_, token| status(State::Cancelled, token)).await;
        }
        (self.run, self.call) = (None, None);
        for _ in 0..words {
            let said = self.publish(&running, &topic, None, |_, token| Body::Thought { text: token }).await;
            if said.is_err() {
                self.world.wrong(&self.name(), "a calm server refuses an event");
            }
            tokio::time::sleep(self.chance.millis(1..=300)).await;
        }
    }

    /// Everything that was taken by the server of now is in the log.
    pub fn check_taken(&mut self) {
        self.note_saved();
        if !self.taken.is_empty() && self.node.running().is_some_and(|running| running.start == self.start) {
            let (who, what) = (self.name(), format!("taken, and not in the log: {:?}", self.taken));
            self.world.wrong(&who, &what);
        }
    }

    fn name(&self) -> String {
        format!("emit{}", self.number)
    }

    /// The task's stream of now. After a start of the server, runs that nobody speaks for are ended.
    fn topic(&mut self) -> Option<(Arc<Running>, Arc<Topic>)> {
        let running = self.node.running()?;
        let topic = running.api.publisher.topic(&self.task.parse().unwrap());
        if running.start != self.start {
            self.start = running.start;
            self.taken.clear();
        }
        if let Some(run) = self.run
            && topic.as_ref().is_none_or(|topic| topic.tail().fold.run(run).is_none())
        {
            // It went with its task, or with the end of the log that an older file does not have.
            (self.run, self.call) = (None, None);
            self.taken.clear();
        }
        Some((running, topic?))
    }

    async fn go_on(&mut self, running: &Running, topic: &Arc<Topic>) -> Said {
        let lost: Vec<RunId> = topic.tail().fold.runs().map(|run| run.id).filter(|id| Some(*id) != self.run).collect();
        for run in lost {
            self.publish(running, topic, Some(run), |_, token| status(State::Interrupted, token)).await?;
        }
        let Some(run) = self.run else { return self.begin(running, topic).await };
        match self.chance.within(0..=20) {
            0 => self.end(running, topic, run).await,
            1 => self.publish(running, topic, Some(run), |_, token| status(State::Progress, token)).await,
            2 => {
                self.publish(running, topic, Some(run), |_, token| status(State::Waiting, token)).await?;
                self.publish(running, topic, Some(run), |_, token| status(State::Progress, token)).await
            }
            3..=5 => self.call(running, topic, run).await,
            6..=8 if self.batches => self.batch(running, topic, run).await,
            9 => self.publish(running, topic, None, |chance, token| words(chance, token, 0)).await,
            10 if self.world.profile.flood > 0 => {
                for _ in 0..self.chance.within(1..=self.world.profile.flood) {
                    self.offer(running, topic, run).await?;
                }
                Ok(())
            }
            _ => self.offer(running, topic, run).await,
        }
    }

    /// By their making, as the ids of real runs are.
    fn new_run(&self) -> RunId {
        let now = self.world.clock.now().as_millisecond() as u128;
        RunId(Uuid::from_u128((now << 80) | (7 << 76) | (2 << 62) | u128::from(self.world.number())))
    }

    async fn begin(&mut self, running: &Running, topic: &Arc<Topic>) -> Said {
        let run = self.new_run();
        if self.chance.one_in(3) {
            // Two events in one change of state, as a start that is saved at once.
            let at = self.world.clock.now();
            let (first, second) = (self.token(), self.token());
            let offers = [status(State::Queued, first.clone()), status(State::Started, second)];
            let offers: Vec<_> =
                offers.iter().map(|body| (Arc::clone(topic), Offer::new(Some(run), at, body))).collect();
            let done =
                running.api.publisher.transact::<_, rejoin::store::StoreError, _>(move |_| Ok(((), offers))).await;
            let Ok(((), numbers)) = done else { return Err(Refused::Stopping) };
            if numbers.len() == 2 {
                self.check_saved(numbers[0].0, &first);
                self.run = Some(run);
            }
            return Ok(());
        }
        if self.chance.one_in(4) {
            self.claim_twice(running, topic).await;
        }
        self.publish(running, topic, Some(run), |_, token| status(State::Queued, token)).await?;
        self.run = Some(run);
        self.publish(running, topic, Some(run), |_, token| status(State::Started, token)).await
    }

    /// Two runs for one slot in one change of state: the second cannot be, and so the first is not either.
    async fn claim_twice(&mut self, running: &Running, topic: &Arc<Topic>) {
        let at = self.world.clock.now();
        let offers: Vec<_> = (0..2)
            .map(|_| {
                let mut queued = Status::new(State::Queued, self.token());
                (queued.scheduled_for, queued.attempt) = (Some(at), Some(1));
                (Arc::clone(topic), Offer::new(Some(self.new_run()), at, &Body::Status(queued)))
            })
            .collect();
        let done = running.api.publisher.transact::<_, rejoin::store::StoreError, _>(move |_| Ok(((), offers))).await;
        match done {
            Ok((_, numbers)) if !numbers.is_empty() => {
                self.world.wrong(&self.name(), "one slot was claimed by two runs");
            }
            Ok(_) => {}
            Err(_) => self.world.saw("change of state undone"),
        }
    }

    async fn end(&mut self, running: &Running, topic: &Arc<Topic>, run: RunId) -> Said {
        let state = *self.chance.pick(&[State::Succeeded, State::Failed, State::Cancelled, State::TimedOut]);
        self.publish(running, topic, Some(run), |_, token| status(state, token)).await?;
        (self.run, self.call) = (None, None);
        // Its end is behind everything that it said.
        self.check_taken();
        Ok(())
    }

    async fn call(&mut self, running: &Running, topic: &Arc<Topic>, run: RunId) -> Said {
        let Some(call) = self.call.clone() else {
            let call = format!("c{}", self.count);
            let used = call.clone();
            let body = move |_: &mut Chance, token| Body::ToolUse {
                call: used,
                tool: "shell".to_owned(),
                input: json!({ "command": token }),
            };
            self.publish(running, topic, Some(run), body).await?;
            self.call = Some(call);
            return Ok(());
        };
        let result = self.chance.one_in(2);
        let body = |_: &mut Chance, token| match result {
            true => Body::ToolResult {
                call,
                tool: "shell".to_owned(),
                ok: true,
                output: token,
                cut_bytes: 0,
                exit: Some(0),
                duration_ms: 1,
            },
            false => Body::ToolOutput { call, stream: OutputStream::Stdout, text: token, cut_bytes: 0 },
        };
        self.publish(running, topic, Some(run), body).await?;
        if result {
            self.call = None;
        }
        Ok(())
    }

    /// As a runner elsewhere does: a turn, and batches in it.
    async fn batch(&mut self, running: &Running, topic: &Arc<Topic>, run: RunId) -> Said {
        let publisher = &running.api.publisher;
        let producer = Producer::new(0);
        let turn = publisher.take_turn(&producer).await.map_err(|_| Refused::Stopping)?;
        let mut saved = Vec::new();
        for number in 1..=self.chance.within(1..=3) {
            let events = self.chance.within(1..=8);
            let batch = self.words_in_a_batch(topic, run, events);
            saved.push(publisher.offer_batch(topic, batch, &turn, number).await?);
        }
        if self.chance.one_in(4) {
            self.lose_turn(publisher, topic, run, &producer, &turn).await?;
        }
        for saved in saved {
            let seq = saved.await.map_err(|_| Refused::Stopping)??;
            // The log that it was offered to: its task may have been deleted since the answer was given.
            let truth = self.world.truth();
            let has_it =
                truth.logs(&self.task).iter().rfind(|log| log.no == topic.no.0).is_some_and(|log| log.head() >= seq.0);
            drop(truth);
            if !has_it {
                self.world.wrong(&self.name(), &format!("batch acknowledged through {seq}, beyond the log"));
            }
        }
        Ok(())
    }

    fn words_in_a_batch(&mut self, topic: &Arc<Topic>, run: RunId, events: u64) -> Batch {
        let mut batch = Batch::new(&topic.id, run, self.world.clock.now());
        for _ in 0..events {
            let token = self.token();
            let text = json!({ "text": words_text(&mut self.chance, token, self.world.profile.large) }).to_string();
            batch.push("thought", &RawValue::from_string(text).unwrap());
        }
        batch
    }

    /// Another takes the turn: of what is offered in the old one from then on, nothing is saved.
    async fn lose_turn(
        &mut self,
        publisher: &Publisher,
        topic: &Arc<Topic>,
        run: RunId,
        producer: &Arc<Producer>,
        old: &Turn,
    ) -> Said {
        publisher.take_turn(producer).await.map_err(|_| Refused::Stopping)?;
        let late = self.words_in_a_batch(topic, run, 1);
        let answer = publisher.offer_batch(topic, late, old, 9).await?.await.map_err(|_| Refused::Stopping)?;
        if let Ok(seq) = answer {
            self.world.wrong(&self.name(), &format!("a batch was saved as event {seq} though its turn was taken"));
        }
        Ok(())
    }

    async fn offer(&mut self, running: &Running, topic: &Arc<Topic>, run: RunId) -> Said {
        let token = self.token();
        let body = words(&mut self.chance, token, self.world.profile.large);
        let count = self.count;
        running.api.publisher.offer(topic, Some(run), &body).await?;
        self.taken.push_back(count);
        self.note_saved();
        // A place is given back when its event is saved, or refused because the run is over.
        let open = topic.tail().fold.run(run).is_some();
        if open && !self.batches && self.taken.len() > self.world.profile.limits.queue.events {
            let what =
                format!("{} events wait in a queue for {}", self.taken.len(), self.world.profile.limits.queue.events);
            self.world.wrong(&self.name(), &what);
        }
        Ok(())
    }

    async fn publish(
        &mut self,
        running: &Running,
        topic: &Arc<Topic>,
        run: Option<RunId>,
        body: impl FnOnce(&mut Chance, String) -> Body,
    ) -> Said {
        let token = self.token();
        let body = body(&mut self.chance, token.clone());
        let seq = running.api.publisher.publish(topic, run, &body).await?;
        self.check_saved(seq.0, &token);
        Ok(())
    }

    fn check_saved(&self, seq: u64, token: &str) {
        let truth = self.world.truth();
        let there = truth
            .logs(&self.task)
            .iter()
            .rev()
            .take(2)
            .any(|log| log.event(seq).is_some_and(|event| event.text.contains(token)));
        drop(truth);
        if !there {
            self.world.wrong(&self.name(), &format!("{token} was acknowledged as event {seq}, which it is not"));
        }
    }

    fn note_saved(&mut self) {
        let truth = self.world.truth();
        let number = self.number;
        self.taken.retain(|count| !truth.has(number, *count));
    }

    /// The next word's mark.
    fn token(&mut self) -> String {
        self.count += 1;
        format!("~{}.{}~", self.number, self.count)
    }
}

fn status(state: State, text: String) -> Body {
    Body::Status(Status::new(state, text))
}

/// A word of some size: most are short, few do not fit into an event.
fn words_text(chance: &mut Chance, token: String, large: u64) -> String {
    let more = match (chance.one_in(large), chance.one_in(12)) {
        (true, true) => *chance.pick(&[33_000, 70_000]),
        (true, false) => chance.size(500..=6_000),
        _ => chance.size(0..=120),
    };
    token + &"x".repeat(more)
}

fn words(chance: &mut Chance, token: String, large: u64) -> Body {
    let text = words_text(chance, token, large);
    match chance.within(0..=2) {
        0 => Body::Thought { text },
        1 => Body::Message { role: Role::Agent, text },
        _ => Body::Other {
            kind: "note".to_owned(),
            raw: RawValue::from_string(json!({ "say": text }).to_string()).unwrap(),
        },
    }
}
