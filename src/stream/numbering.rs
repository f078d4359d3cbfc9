//! Numbering: the events of one group, each given its number and put into a segment, task by task. What is done
//! here is undone with the transaction it is done in.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::Connection;

use super::batch::{Batch, Turn};
use super::ends::{After, Ends, Following};
use super::log;
use super::segment::{Builder, Segment};
use super::topic::{Offer, Refused, Topic};
use crate::event::{RunId, Seq, State};
use crate::record::{Fold, Mark, Run};
use crate::store::{StoreError, TaskNo};

/// The events of one task in one group, numbered.
pub(super) struct Numbering {
    pub(super) topic: Arc<Topic>,
    pub(super) head: Seq,
    pub(super) bytes: u64,
    pub(super) builder: Builder,
    pub(super) at: Timestamp,
    pub(super) segments: Vec<Arc<Segment>>,
    /// The runs whose state this group changes: as they are now, or over.
    pub(super) staged: HashMap<RunId, Option<Run>>,
    /// What each change of that replaced, in their order.
    unstaged: Vec<(RunId, Option<Option<Run>>)>,
    /// The kinds of all its events, in their order.
    pub(super) kinds: Vec<Cow<'static, str>>,
    /// The events that the fold is to hear of.
    pub(super) numbered: Vec<Numbered>,
    /// How far producers have come: applied last.
    pub(super) producers: Vec<Turned>,
    /// What is to be done after the commit because runs ended.
    pub(super) afters: Vec<After>,
    /// The task is deleted with this group.
    is_deleted: bool,
    /// Who says what follows the end of a run.
    ends: Arc<Ends>,
}

/// How far the producer of a run has come in this group.
pub(super) struct Turned {
    pub(super) run: RunId,
    pub(super) seq: Seq,
    pub(super) turn: Turn,
}

/// What of a numbered event is needed after the commit.
pub(super) struct Numbered {
    pub(super) run: Option<RunId>,
    pub(super) seq: Seq,
    pub(super) at: Timestamp,
    pub(super) mark: Mark,
    /// The event's text where the fold keeps it.
    pub(super) text: Option<String>,
}

/// The tasks that a group touches, in the order in which it came to them.
pub(super) struct Numberings {
    pub(super) all: Vec<Numbering>,
    pub(super) index: HashMap<TaskNo, usize>,
    ends: Arc<Ends>,
}

impl Numberings {
    pub(super) fn new(ends: Arc<Ends>) -> Self {
        Self { all: Vec::new(), index: HashMap::new(), ends }
    }

    pub(super) fn of(&mut self, topic: &Arc<Topic>) -> &mut Numbering {
        let index = *self.index.entry(topic.no).or_insert_with(|| {
            self.all.push(Numbering::new(Arc::clone(topic), Arc::clone(&self.ends)));
            self.all.len() - 1
        });
        &mut self.all[index]
    }

    /// The task is deleted by a job that was done: of what comes behind it nothing gets a number.
    pub(super) fn delete(&mut self, topic: &Arc<Topic>) {
        self.of(topic).is_deleted = true;
    }

    /// Closes the streams of the tasks that the group deleted, once it is saved.
    pub(super) fn close_deleted(&self) {
        for numbering in self.all.iter().filter(|numbering| numbering.is_deleted) {
            numbering.topic.close();
        }
    }

    /// Where the tasks of a job stand before it.
    pub(super) fn marks(&mut self, offers: &[(Arc<Topic>, Offer)]) -> HashMap<TaskNo, Before> {
        let mut marks = HashMap::new();
        for (topic, _) in offers {
            let numbering = self.of(topic);
            marks.entry(topic.no).or_insert_with(|| numbering.before());
        }
        marks
    }

    /// Takes back what a job numbered.
    pub(super) fn back_to(&mut self, marks: HashMap<TaskNo, Before>) {
        for (task, before) in marks {
            if let Some(index) = self.index.get(&task) {
                self.all[*index].back_to(before);
            }
        }
    }
}

/// Where a numbering stood before a job.
pub(super) struct Before {
    head: Seq,
    bytes: u64,
    at: Timestamp,
    segments: usize,
    /// How many events of the segment under way were there.
    building: usize,
    kinds: usize,
    numbered: usize,
    afters: usize,
    unstaged: usize,
}

impl Numbering {
    fn new(topic: Arc<Topic>, ends: Arc<Ends>) -> Self {
        let tail = topic.tail();
        let (head, bytes) = (tail.head, tail.bytes);
        drop(tail);
        Self {
            topic,
            head,
            bytes,
            builder: Builder::new(head.next()),
            at: Timestamp::UNIX_EPOCH,
            segments: Vec::new(),
            staged: HashMap::new(),
            unstaged: Vec::new(),
            kinds: Vec::new(),
            numbered: Vec::new(),
            producers: Vec::new(),
            afters: Vec::new(),
            is_deleted: false,
            ends,
        }
    }

    fn before(&self) -> Before {
        Before {
            head: self.head,
            bytes: self.bytes,
            at: self.at,
            segments: self.segments.len(),
            building: self.builder.len(),
            kinds: self.kinds.len(),
            numbered: self.numbered.len(),
            afters: self.afters.len(),
            unstaged: self.unstaged.len(),
        }
    }

    pub(super) fn back_to(&mut self, before: Before) {
        let Before { head, bytes, at, segments, building, kinds, numbered, afters, unstaged } = before;
        self.numbered.truncate(numbered);
        self.afters.truncate(afters);
        (self.head, self.bytes, self.at) = (head, bytes, at);
        for (run, before) in self.unstaged.drain(unstaged..).rev() {
            match before {
                Some(before) => self.staged.insert(run, before),
                None => self.staged.remove(&run),
            };
        }
        // What was under way then is the beginning of the first segment that was cut since.
        if let Some(cut) = self.segments.get(segments) {
            self.builder = Builder::again(cut);
        }
        self.builder.truncate(building);
        self.segments.truncate(segments);
        self.kinds.truncate(kinds);
    }

    /// Gives an event its number and puts it into the segment under way.
    pub(super) fn number(
        &mut self,
        connection: &Connection,
        offer: &Offer,
    ) -> Result<Result<Seq, Refused>, StoreError> {
        if self.is_gone() {
            return Ok(Err(Refused::LogGone));
        }
        let begins = offer.mark.state() == Some(State::Queued);
        if let Some(run) = offer.run
            && !begins
            && !self.is_open(run)
        {
            return Ok(Err(Refused::RunOver));
        }
        let seq = self.head.next();
        let mut text = String::with_capacity(offer.data.len() + 192);
        log::write_event(&mut text, &self.topic.id, offer, &offer.data, seq);
        if let Some(whole) = &offer.whole {
            let mut event = String::with_capacity(whole.len() + 192);
            log::write_event(&mut event, &self.topic.id, offer, whole, seq);
            log::keep_whole(connection, self.topic.no, seq, &event)?;
        }
        self.append(connection, offer.kind.clone(), text.len(), |items| items.push_str(&text))?;
        self.at = self.at.max(offer.at);
        let kept = matches!(offer.mark, Mark::Opens(_)).then_some(text);
        let event = Numbered { run: offer.run, seq, at: offer.at, mark: offer.mark.clone(), text: kept };
        if let Some(ended) = self.note(connection, event)? {
            self.follow(connection, &ended)?;
        }
        Ok(Ok(seq))
    }

    /// Numbers what follows the end of a run, right behind it.
    fn follow(&mut self, connection: &Connection, ended: &Run) -> Result<(), StoreError> {
        let Following { offers, after } = self.ends.follow(connection, self.topic.no, ended)?;
        for offer in &offers {
            // A run that another hand ended meanwhile is over all the same.
            let _ = self.number(connection, offer)?;
        }
        self.afters.extend(after);
        Ok(())
    }

    /// Puts the next event, of so many bytes, behind the others.
    fn append(
        &mut self,
        connection: &Connection,
        kind: Cow<'static, str>,
        bytes: usize,
        write: impl FnOnce(&mut String),
    ) -> Result<(), StoreError> {
        if !self.builder.takes(bytes) {
            self.cut_segment(connection)?;
        }
        self.builder.push(write);
        self.head = self.head.next();
        self.bytes += bytes as u64;
        self.kinds.push(kind);
        Ok(())
    }

    /// Keeps what the fold is to hear of after the commit. Gives the run that the event ended, if it did.
    fn note(&mut self, connection: &Connection, event: Numbered) -> Result<Option<Run>, StoreError> {
        let ended = self.stage(connection, &event)?;
        self.numbered.push(event);
        Ok(ended)
    }

    /// Gives the events of a batch their numbers, all or none. Gives the last one.
    pub(super) fn number_batch(
        &mut self,
        connection: &Connection,
        batch: &Batch,
    ) -> Result<Result<Seq, Refused>, StoreError> {
        if self.is_gone() {
            return Ok(Err(Refused::LogGone));
        }
        if batch.turn.as_ref().is_some_and(|turn| !turn.holds()) {
            return Ok(Err(Refused::Fenced));
        }
        if !self.is_open(batch.run) || batch.is_empty() {
            return Ok(Err(Refused::RunOver));
        }
        self.at = self.at.max(batch.at);
        let mut ended = None;
        let mut marks = batch.marks.iter().peekable();
        let mut wholes = batch.wholes.iter().peekable();
        for (index, piece) in batch.pieces.iter().enumerate() {
            let seq = self.head.next();
            let tail = batch.tail(index);
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(seq.0);
            let bytes = batch.head.len() + digits.len() + tail.len();
            self.append(connection, piece.kind.clone(), bytes, |items| {
                items.push_str(&batch.head);
                items.push_str(digits);
                items.push_str(tail);
            })?;
            if let Some((_, data)) = wholes.next_if(|(at, _)| *at == index) {
                log::keep_whole(connection, self.topic.no, seq, &batch.whole(data, seq, index))?;
            }
            if let Some((_, mark)) = marks.next_if(|(at, _)| *at == index) {
                let text = matches!(mark, Mark::Opens(_)).then(|| format!("{}{digits}{tail}", batch.head));
                let event = Numbered { run: Some(batch.run), seq, at: batch.at, mark: mark.clone(), text };
                ended = self.note(connection, event)?;
                if mark.state().is_some_and(State::is_terminal) {
                    // Nothing follows the end of a run, whatever else the batch has (T-28).
                    break;
                }
            }
        }
        if let Some(turn) = &batch.turn {
            self.producers.push(Turned { run: batch.run, seq: self.head, turn: turn.clone() });
        }
        let last = self.head;
        if let Some(ended) = ended {
            self.follow(connection, &ended)?;
        }
        Ok(Ok(last))
    }

    fn is_gone(&self) -> bool {
        self.is_deleted || self.topic.is_closed()
    }

    fn is_open(&self, run: RunId) -> bool {
        match self.staged.get(&run) {
            Some(staged) => staged.is_some(),
            None => self.topic.tail().fold.run(run).is_some(),
        }
    }

    /// A run that is not over, as this group has it by now.
    fn run(&self, id: RunId) -> Option<Run> {
        match self.staged.get(&id) {
            Some(staged) => staged.clone(),
            None => self.topic.tail().fold.run(id).cloned(),
        }
    }

    /// Writes the run whose state an event changes, as the fold will have it after the commit. Gives it where that
    /// ended it.
    fn stage(&mut self, connection: &Connection, event: &Numbered) -> Result<Option<Run>, StoreError> {
        let (Some(id), Some(_)) = (event.run, event.mark.state()) else { return Ok(None) };
        let mut fold = Fold::of_runs(self.run(id));
        let Some(run) = fold.apply(&self.topic.id, Some(id), event.seq, event.at, &event.mark, "") else {
            return Ok(None);
        };
        log::project_run(connection, self.topic.no, &run)?;
        let is_over = run.state.is_ended();
        let before = self.staged.insert(id, (!is_over).then(|| run.clone()));
        self.unstaged.push((id, before));
        Ok(is_over.then_some(run))
    }

    fn cut_segment(&mut self, connection: &Connection) -> Result<(), StoreError> {
        if let Some(segment) = self.builder.finish() {
            log::append(connection, self.topic.no, &segment, self.at, self.bytes)?;
            self.segments.push(Arc::new(segment));
        }
        Ok(())
    }

    /// Writes how far producers have come into the rows of their runs.
    fn save_producers(&mut self, connection: &Connection) -> Result<(), StoreError> {
        for (index, turned) in self.producers.iter().enumerate() {
            if self.producers[index + 1..].iter().any(|later| later.run == turned.run) {
                continue;
            }
            let mut fold = Fold::of_runs(self.run(turned.run));
            if let Some(run) = fold.note_producer(turned.run, turned.seq, Some(turned.turn.last_n)) {
                log::project_run(connection, self.topic.no, run)?;
            } else {
                log::set_last_n(connection, turned.run, turned.turn.last_n)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, connection: &Connection) -> Result<(), StoreError> {
        self.cut_segment(connection)?;
        self.save_producers(connection)?;
        if !self.kinds.is_empty() {
            // Also of a task that a later job of this group deleted: its row is there until its log is gone.
            log::set_head(connection, self.topic.no, self.head, self.bytes)?;
        }
        Ok(())
    }
}
