//! The single writer: one thread that gives the order. It collects what waits into groups, commits each, puts it
//! into the rings, looks up who is live and wakes them.
//!
//! Commit → ring and head → look up → wake. A watcher never sees what is not saved.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::batch::Batch;
use super::intake::{Acted, Answer, Inbox, Intake, Job, Writable, places, weight};
use super::numbering::{Numbering, Numberings};
use super::topic::{Offer, Queue, Refused, Topic, Work};
use crate::event::{Seq, State, Status};
use crate::failpoint;
use crate::metrics::tally;
use crate::record::{Fold, Mark};
use crate::store::StoreError;

/// The most events of one group (`docs/protocol.md`, invariant 1).
const GROUP_EVENTS: usize = 4096;
/// The most bytes of one group.
const GROUP_BYTES: usize = 4 * 1024 * 1024;
/// The most changes of state that go into one group.
const GROUP_JOBS: usize = 1024;
/// While others wait, one task gets at most this part of a group.
const FLOOD_SHARE: usize = 4;
/// How long to wait before a failed group is tried again; doubled up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// The writer's thread. Stops when told to, after what was offered is written.
#[derive(Debug)]
pub struct Writer {
    pub(super) shared: Arc<Intake>,
    pub(super) thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Writes what was offered, then ends the thread. Blocks.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.ask_to_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the writer ended by a panic");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The writer without its thread: whoever holds it has it write, group by group. For a simulation, which decides
/// when that is. Dropped, it is a writer that ended: what it had not written is lost.
#[derive(Debug)]
pub struct Stepper {
    pub(super) ending: Ending,
    pub(super) connection: Connection,
    pub(super) rounds: Rounds,
}

/// What is next for the one who has the writer step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// There is more to write.
    Step,
    /// Nothing before it rings.
    Wait,
    /// Nothing before it rings, but another try after so long.
    WaitFor(Duration),
    /// It was asked to stop, and has.
    Over,
}

impl Stepper {
    /// Writes the next group, if there is any.
    pub fn step(&mut self) -> Next {
        let intake = &self.ending.0;
        if !self.rounds.write(intake, &self.connection, Patience::None) {
            return Next::Over;
        }
        match self.rounds.patience(intake) {
            _ if self.rounds.kept.is_empty() && intake.has_work() => Next::Step,
            Patience::For(pause) => Next::WaitFor(pause),
            _ => Next::Wait,
        }
    }

    /// Rings when there is something to write.
    pub fn rung(&self) -> Arc<Notify> {
        Arc::clone(&self.ending.0.rung)
    }

    /// Takes nothing more; what was taken is still to be written.
    pub fn ask_to_stop(&self) {
        self.ending.0.ask_to_stop();
    }
}

/// Ends the queue with the writer, also when that ends by a panic: nobody waits for ever.
#[derive(Debug)]
pub(super) struct Ending(pub(super) Arc<Intake>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What goes into one commit.
#[derive(Default)]
struct Group {
    jobs: Vec<Job>,
    batches: Vec<(Arc<Topic>, Vec<Work>)>,
    stop: bool,
}

/// One group after the other: what stays from one to the next.
#[derive(Debug)]
pub(super) struct Rounds {
    /// A group that could not be saved.
    kept: Vec<(Arc<Topic>, Vec<Work>)>,
    pause: Duration,
}

/// How long to wait for something to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Patience {
    None,
    For(Duration),
    Endless,
}

impl Rounds {
    pub(super) fn new() -> Self {
        Self { kept: Vec::new(), pause: RETRY.0 }
    }

    fn patience(&self, intake: &Intake) -> Patience {
        match (self.kept.is_empty(), intake.is_writable()) {
            (false, _) => Patience::For(self.pause),
            (true, false) => Patience::For(RETRY.1),
            (true, true) => Patience::Endless,
        }
    }

    /// Writes one group. False once all is written after a stop.
    fn write(&mut self, intake: &Intake, connection: &Connection, patience: Patience) -> bool {
        let group = intake.collect(std::mem::take(&mut self.kept), patience);
        let stop = group.stop;
        let unsaved = intake.write(connection, group);
        if unsaved.is_empty() {
            self.pause = RETRY.0;
            return !stop;
        }
        if intake.is_stopping() {
            // Tried once more after the stop was asked for; a full disk must not keep the server alive.
            warn!(
                events = unsaved.iter().flat_map(|(_, work)| work).map(Work::events).sum::<usize>(),
                "stopping while the store cannot be written: these events are lost, nobody has seen them"
            );
            return false;
        }
        self.pause = (self.pause * 2).min(RETRY.1);
        self.kept = unsaved;
        true
    }
}

impl Intake {
    pub(super) fn write_until_stopped(&self, connection: &Connection) {
        let mut rounds = Rounds::new();
        while rounds.write(self, connection, rounds.patience(self)) {}
    }

    pub(super) fn ring(&self) {
        self.bell.notify_one();
        self.rung.notify_one();
    }

    fn ask_to_stop(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.ring();
    }

    fn has_work(&self) -> bool {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        !inbox.jobs.is_empty() || !inbox.ready.is_empty()
    }

    fn is_writable(&self) -> bool {
        *self.writable.borrow() == Writable::Yes
    }

    /// Finds out whether the store can be written again while nobody has anything to write: those who were told
    /// that it cannot should be told that it can.
    fn probe(&self, connection: &Connection) {
        let written = connection.execute(
            "INSERT INTO meta (key, value) VALUES ('probe', ?1)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [crate::clock::rfc3339(self.clock.now())],
        );
        if written.is_ok() {
            self.note_writable();
        }
    }

    fn is_stopping(&self) -> bool {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    /// Nothing is written any more. Whoever still waits is told: by the drop of what was queued, and by the
    /// closing of what they wait in front of.
    fn end(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.stop = true;
        inbox.jobs.clear();
        let mut lost = 0;
        for topic in inbox.ready.drain(..) {
            let mut queue = topic.queue.lock().unwrap_or_else(PoisonError::into_inner);
            lost += queue.work.drain(..).map(|work| work.events()).sum::<usize>();
            queue.listed = false;
        }
        drop(inbox);
        if lost > 0 {
            warn!(events = lost, "the writer ended before these events were written; nobody has seen them");
        }
        self.queues_bytes.close();
        for topic in self.topics.read().unwrap_or_else(PoisonError::into_inner).values() {
            topic.close_queue();
        }
    }

    /// Waits for something to write, as long as patience lasts; `kept` goes again then at the latest.
    fn collect(&self, kept: Vec<(Arc<Topic>, Vec<Work>)>, patience: Patience) -> Group {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let idle = inbox.jobs.is_empty() && (inbox.ready.is_empty() || !kept.is_empty());
            if !idle || inbox.stop {
                break;
            }
            match patience {
                Patience::None => break,
                Patience::For(pause) => {
                    inbox = self.bell.wait_timeout(inbox, pause).unwrap_or_else(PoisonError::into_inner).0;
                    break;
                }
                Patience::Endless => inbox = self.bell.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let jobs = inbox.jobs.len().min(GROUP_JOBS);
        let mut group = Group { jobs: inbox.jobs.drain(..jobs).collect(), batches: kept, stop: false };
        // While a failed group waits, queues are left full: emitters wait in front of them.
        if group.batches.is_empty() {
            take_batches(&mut inbox, &mut group);
        }
        group.stop = inbox.stop && inbox.jobs.is_empty() && inbox.ready.is_empty();
        group
    }

    /// Commits a group, then tells everyone. Gives back the batches of a group that could not be saved.
    fn write(&self, connection: &Connection, group: Group) -> Vec<(Arc<Topic>, Vec<Work>)> {
        let Group { jobs, batches, .. } = group;
        if jobs.is_empty() && batches.is_empty() {
            if !self.is_writable() {
                self.probe(connection);
            }
            return batches;
        }
        let begun = Instant::now();
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        tally::begin();
        let mut numberings = Numberings::new(Arc::clone(&self.ends));
        let mut jobs = jobs.into_iter();
        let (mut answers, mut follows) = (Vec::new(), Vec::new());
        let mut acks = Vec::new();
        let written = (|| -> Result<(), StoreError> {
            connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            for (index, job) in jobs.by_ref().enumerate() {
                let undo = if index == 0 { Undo::Transaction } else { Undo::Savepoint };
                run_job(connection, undo, &mut numberings, job, &mut answers, &mut follows)?;
            }
            for (topic, works) in &batches {
                let numbering = numberings.of(topic);
                for work in works {
                    acks.push(match work {
                        Work::One(offer) => numbering.number(connection, offer)?,
                        Work::Many(batch) => numbering.number_batch(connection, batch)?,
                    });
                }
            }
            for numbering in &mut numberings.all {
                numbering.finish(connection)?;
            }
            failpoint::hit("in-commit");
            connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        })();
        if let Err(error) = written {
            // A failed COMMIT may leave the transaction open or may have ended it: both are fine.
            let _ = connection.execute_batch("ROLLBACK");
            drop(gate);
            self.metrics.commits_failed.add(1);
            for (answer, _) in answers {
                answer(Err(error.clone()));
            }
            for untried in jobs {
                untried.refuse(&error);
            }
            self.note_unwritable(&error);
            return batches;
        }
        drop(gate);
        self.count(begun, &numberings.all);
        failpoint::hit("committed-not-woken");
        self.note_writable();
        numberings.close_deleted();
        for follow in follows {
            follow();
        }
        for numbering in numberings.all {
            // Deleted in this very group: what was numbered before that goes with its log.
            if !numbering.topic.is_closed() {
                self.show(numbering);
            }
        }
        for (answer, numbers) in answers {
            answer(numbers);
        }
        self.acknowledge(batches, acks);
        Vec::new()
    }

    /// Counts what is saved.
    fn count(&self, begun: Instant, numberings: &[Numbering]) {
        let events = numberings.iter().map(|numbering| numbering.kinds.len() as u64).sum();
        let segments = numberings.iter().flat_map(|numbering| &numbering.segments);
        let bytes = segments.map(|segment| segment.event_bytes()).sum();
        self.metrics.committed(begun.elapsed(), events, bytes, tally::take());
        for event in numberings.iter().flat_map(|numbering| &numbering.numbered) {
            if let (Some(_), Mark::Status(status)) = (event.run, &event.mark) {
                self.count_status(status);
            }
        }
    }

    fn count_status(&self, status: &Status) {
        let metrics = &self.metrics;
        match status.state {
            State::Queued => metrics.runs_made.add(status.trigger.as_deref().unwrap_or_default(), 1),
            State::Started => metrics.runs_started.add(1),
            ended if ended.is_terminal() => metrics.ended(ended.as_str(), status.duration_ms),
            _ => {}
        }
    }

    fn show(&self, numbering: Numbering) {
        let Numbering { topic, segments, kinds, numbered, producers, staged, afters, .. } = numbering;
        let id = &topic.id;
        let changes_task = !staged.is_empty() || numbered.iter().any(|event| event.mark.state().is_some());
        let apply = |fold: &mut Fold| {
            for event in &numbered {
                let text = event.text.as_deref().unwrap_or_default();
                fold.apply(id, event.run, event.seq, event.at, &event.mark, text);
            }
            for turned in &producers {
                fold.note_producer(turned.run, turned.seq, Some(turned.turn.last_n));
                turned.turn.note_saved();
            }
        };
        topic.end_drafts(numbered.iter().filter_map(|event| Some((event.run?, &event.mark))));
        let grown = topic.show(&self.connections, segments, apply, kinds.iter().map(|kind| &**kind));
        self.note_grown(grown);
        if changes_task {
            self.changes.note(id);
        }
        for after in afters {
            after();
        }
    }

    /// Gives the places in the queue back and tells those who wait for their numbers.
    fn acknowledge(&self, batches: Vec<(Arc<Topic>, Vec<Work>)>, results: Vec<Result<Seq, Refused>>) {
        let mut results = results.into_iter();
        for (topic, works) in batches {
            let (mut free, mut bytes) = (0, 0);
            for work in works {
                let result = results.next().unwrap_or(Err(Refused::Stopping));
                if !matches!(&work, Work::One(offer) if offer.is_from_reserve()) {
                    free += places(work.events(), &self.limits) as usize;
                    bytes += weight(work.bytes(), &self.limits) as usize;
                }
                let (Work::One(Offer { ack, .. }) | Work::Many(Batch { ack, .. })) = work;
                if let Some(ack) = ack {
                    let _ = ack.send(result);
                }
            }
            topic.slots.add_permits(free);
            topic.bytes.add_permits(bytes);
            self.queues_bytes.add_permits(bytes);
        }
    }

    fn note_unwritable(&self, error: &StoreError) {
        let why = error.to_string();
        let since = self.clock.now();
        self.writable.send_if_modified(|writable| {
            if *writable == Writable::Yes {
                error!(%why, "the store cannot be written; what is offered waits and is tried again");
                *writable = Writable::No { since, why };
                true
            } else {
                false
            }
        });
    }

    fn note_writable(&self) {
        self.writable.send_if_modified(|writable| {
            let changed = *writable != Writable::Yes;
            if changed {
                info!("the store can be written again");
                *writable = Writable::Yes;
            }
            changed
        });
    }
}

/// Fills the group from the queues, in turn; one that floods gets a share while others wait.
fn take_batches(inbox: &mut Inbox, group: &mut Group) {
    let (mut events, mut bytes) = (0, 0);
    for _ in 0..inbox.ready.len() {
        if events >= GROUP_EVENTS || bytes >= GROUP_BYTES {
            break;
        }
        let Some(topic) = inbox.ready.pop_front() else { break };
        let share = if inbox.ready.is_empty() && group.batches.is_empty() { 1 } else { FLOOD_SHARE };
        let most_events = (GROUP_EVENTS / share).min(GROUP_EVENTS - events);
        let most_bytes = (GROUP_BYTES / share).min(GROUP_BYTES - bytes);
        let mut queue = topic.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = take(&mut queue, most_events, most_bytes);
        events += taken.iter().map(Work::events).sum::<usize>();
        bytes += taken.iter().map(Work::bytes).sum::<usize>();
        queue.listed = !queue.work.is_empty();
        let again = queue.listed;
        drop(queue);
        if again {
            inbox.ready.push_back(Arc::clone(&topic));
        }
        if !taken.is_empty() {
            group.batches.push((topic, taken));
        }
    }
}

fn take(queue: &mut Queue, most_events: usize, most_bytes: usize) -> Vec<Work> {
    let (mut events, mut bytes) = (0, 0);
    let count = queue
        .work
        .iter()
        .take_while(|work| {
            events += work.events();
            bytes += work.bytes();
            events <= most_events && bytes <= most_bytes
        })
        .count()
        .max(1)
        .min(queue.work.len());
    queue.work.drain(..count).collect()
}

/// How what a job fails at is undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Undo {
    /// With the transaction, which begins anew: nothing of the group is in it before the first job. A savepoint would
    /// have the store copy each page of it before the job's first change there, which is most of the pages of a group
    /// that claims slots.
    Transaction,
    /// Back to a savepoint, behind what the jobs before it did.
    Savepoint,
}

impl Undo {
    fn prepare(self, connection: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Transaction => Ok(()),
            Self::Savepoint => connection.prepare_cached("SAVEPOINT job")?.execute([]).map(drop),
        }
    }

    fn keep(self, connection: &Connection) -> Result<(), StoreError> {
        match self {
            Self::Transaction => ensure_in_transaction(connection),
            Self::Savepoint => Ok(connection.prepare_cached("RELEASE job")?.execute([]).map(drop)?),
        }
    }

    fn undo(self, connection: &Connection) -> Result<(), StoreError> {
        ensure_in_transaction(connection)?;
        Ok(connection.execute_batch(match self {
            Self::Transaction => "ROLLBACK; BEGIN IMMEDIATE",
            Self::Savepoint => "ROLLBACK TO job; RELEASE job",
        })?)
    }
}

/// Fails where the store has ended the transaction by itself: what comes next would be saved for itself.
fn ensure_in_transaction(connection: &Connection) -> Result<(), StoreError> {
    if connection.is_autocommit() {
        return Err(StoreError::NotWritable("the transaction was ended by the store".to_owned()));
    }
    Ok(())
}

/// Runs one job: what it fails at is undone and answered, the group goes on. An error here means that the group is
/// lost: the store has ended the transaction, as it does when the disk is full, or begins none.
fn run_job(
    connection: &Connection,
    undo: Undo,
    numberings: &mut Numberings,
    job: Job,
    answers: &mut Vec<(Answer, Result<Vec<Seq>, StoreError>)>,
    follows: &mut Vec<Box<dyn FnOnce() + Send>>,
) -> Result<(), StoreError> {
    if let Err(error) = undo.prepare(connection) {
        let error = StoreError::from(error);
        job.refuse(&error);
        return Err(error);
    }
    let tallied = tally::mark();
    // A panic in a job undoes that job; its asker is told by the drop of the answer.
    let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (job.act)(Ok(connection))));
    let Ok(Acted { offers, ends, follow, answer }) = acted else {
        error!("a change of state ended by a panic; it is undone");
        return undo_job(connection, undo, tallied);
    };
    let Ok(offers) = offers else {
        answers.push((answer, Ok(Vec::new())));
        return undo_job(connection, undo, tallied);
    };
    let before = numberings.marks(&offers);
    let numbered = offers.iter().try_fold(Vec::with_capacity(offers.len()), |mut numbers, (topic, offer)| {
        numbers.extend(numberings.of(topic).number(connection, offer)?.ok());
        Ok::<_, StoreError>(numbers)
    });
    if numbered.is_err() {
        numberings.back_to(before);
        answers.push((answer, numbered));
        return undo_job(connection, undo, tallied);
    }
    answers.push((answer, numbered));
    if let Some(topic) = ends {
        numberings.delete(&topic);
    }
    follows.extend(follow);
    undo.keep(connection)
}

fn undo_job(connection: &Connection, undo: Undo, tallied: usize) -> Result<(), StoreError> {
    tally::back_to(tallied);
    undo.undo(connection)
}
