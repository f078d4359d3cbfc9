//! Places: who waits for one, who has one, and who may start next. Plain data: it knows no lock, no storage and no
//! clock of its own; `queue.rs` holds it.
//!
//! Runs start in the order in which they were made, each as soon as three things are so: no other run of its task is at
//! work (unless the task allows it), its pool has a place, and the server has one. Who is held up holds up nobody of
//! another task or pool. Every change costs O(log n), beside what a line moves.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::event::{RunId, TaskId};

/// How many places a pool has that is not in the configuration any more: whatever it protected bears one at a time, as
/// every pool has at least one.
pub const OF_A_POOL_THAT_IS_GONE: usize = 1;

/// The name under which the server's own places are shown: no pool can have it.
pub const ALL: &str = "all";

/// Where runs of no pool are counted.
const NO_POOL: usize = 0;

/// How the runs of a task are let in, as its definition says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Manner {
    /// The pool it takes places of, beside one of the server's.
    pub pool: Option<Arc<str>>,
    /// Its runs need not follow each other.
    pub side_by_side: bool,
    /// Programs elsewhere carry its runs out: they take no place here, and start when they are asked for.
    pub elsewhere: bool,
}

/// What made a run that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A person.
    Hand,
    /// A slot: it lets the retries of its task go first, as a pending one counts as a run that is not over.
    Slot,
    /// The end of the attempt before; in line once it is due.
    Retry {
        /// When that is; none for one that is due.
        due: Option<Due>,
    },
}

/// When a retry is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// By the clock of the machine.
    pub at: Timestamp,
    /// By the time that passed, should that clock be set back.
    pub by: Instant,
}

/// What a run waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waits {
    /// What for.
    pub what: What,
    /// Which it is, from 1, of those that wait for the same; a retry waits for its time and for nobody.
    pub position: Option<usize>,
}

/// What a run can wait for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// Another run of its task.
    Run,
    /// A place of its pool.
    Pool(Arc<str>),
    /// A place of the server.
    Place,
    /// Its time.
    Retry(Timestamp),
    /// A program that asks for it.
    Claim,
}

/// How a pool stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolState {
    /// Its name.
    pub name: Arc<str>,
    /// How many places it has.
    pub size: usize,
    /// How many of them are taken.
    pub running: usize,
    /// How many runs of its tasks wait, whatever for.
    pub queued: usize,
}

/// A line that stands: all places are taken, and somebody only waits for one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standstill {
    /// The pool, named as in [`PoolState`].
    pub pool: Arc<str>,
    /// Who is first in line.
    pub first: (RunId, TaskId),
    /// Who has the places, in the order of their making.
    pub at_work: Vec<(RunId, TaskId)>,
}

/// Runs in the order of their making. Finding one is O(log n); what comes or goes between the ends moves the shorter
/// part beside it, 16 bytes a run. At the ends, where nearly all comes and goes, nothing moves.
#[derive(Clone, Debug, Default)]
struct Line(VecDeque<RunId>);

impl Line {
    fn insert(&mut self, id: RunId) {
        if let Err(at) = self.0.binary_search(&id) {
            self.0.insert(at, id);
        }
    }

    fn remove(&mut self, id: RunId) -> bool {
        let found = self.0.binary_search(&id);
        if let Ok(at) = found {
            self.0.remove(at);
        }
        found.is_ok()
    }

    fn first(&self) -> Option<RunId> {
        self.0.front().copied()
    }

    /// Which one it is, from 1.
    fn position(&self, id: RunId) -> Option<usize> {
        self.0.binary_search(&id).ok().map(|before| before + 1)
    }
}

#[derive(Debug)]
struct Pool {
    name: Arc<str>,
    size: usize,
    /// In the configuration; otherwise some task still names it.
    is_known: bool,
    running: usize,
    queued: usize,
    /// Those that only wait for a place.
    ready: Line,
    /// The first of them, while the pool has a place for it.
    offered: Option<RunId>,
}

impl Pool {
    fn new(name: Arc<str>, size: usize, is_known: bool) -> Self {
        Self { name, size, is_known, running: 0, queued: 0, ready: Line::default(), offered: None }
    }

    fn has_place(&self) -> bool {
        self.running < self.size
    }
}

/// The runs of one task that are not over.
#[derive(Debug, Default)]
struct OfTask {
    manner: Manner,
    /// How many wait, in line or not.
    queued: usize,
    /// Those in line.
    line: Line,
    /// Those in line that let no retry pass.
    unhindered: BTreeSet<RunId>,
    /// Its retries, in line or not.
    retries: BTreeSet<RunId>,
    at_work: BTreeSet<RunId>,
    /// The one that may start as far as the task is concerned; of tasks whose runs go side by side, all in line may.
    candidate: Option<RunId>,
}

impl OfTask {
    fn is_empty(&self) -> bool {
        self.queued == 0 && self.at_work.is_empty()
    }

    /// The first that the others of the task let start.
    fn first(&self) -> Option<RunId> {
        if self.manner.side_by_side {
            self.line.first()
        } else if !self.at_work.is_empty() {
            None
        } else if self.retries.is_empty() {
            self.line.first()
        } else {
            self.unhindered.first().copied()
        }
    }
}

#[derive(Debug)]
struct Waiting {
    task: TaskId,
    kind: Kind,
}

#[derive(Debug)]
struct Seat {
    task: TaskId,
    /// The pool whose place it has, beside one of the server's; none where it has neither.
    place: Option<usize>,
}

/// Who waits, who is at work, who may start next.
#[derive(Debug)]
pub struct Places {
    size: usize,
    taken: usize,
    pools: Vec<Pool>,
    by_name: BTreeMap<Arc<str>, usize>,
    waiting: BTreeMap<RunId, Waiting>,
    at_work: HashMap<RunId, Seat>,
    tasks: HashMap<TaskId, OfTask>,
    /// All that only wait for a place.
    ready: Line,
    /// The first of each pool that has a place for it.
    front: BTreeSet<(RunId, usize)>,
    /// Retries that are not due, by either clock.
    later: Later,
}

#[derive(Debug, Default)]
struct Later {
    at: BTreeSet<(Timestamp, RunId)>,
    by: BTreeSet<(Instant, RunId)>,
}

impl Later {
    fn insert(&mut self, id: RunId, due: Due) {
        self.at.insert((due.at, id));
        self.by.insert((due.by, id));
    }

    fn remove(&mut self, id: RunId, due: Due) {
        self.at.remove(&(due.at, id));
        self.by.remove(&(due.by, id));
    }

    /// One that is due by one of the clocks.
    fn first_due(&self, wall: Timestamp, now: Instant) -> Option<RunId> {
        let at = self.at.first().filter(|(at, _)| *at <= wall).map(|(_, id)| *id);
        at.or_else(|| self.by.first().filter(|(by, _)| *by <= now).map(|(_, id)| *id))
    }
}

impl Places {
    /// So many places of the server, and of each pool.
    pub fn new(size: usize, pools: &BTreeMap<String, usize>) -> Self {
        let mut places = Self {
            size,
            taken: 0,
            pools: vec![Pool::new("".into(), usize::MAX, false)],
            by_name: BTreeMap::new(),
            waiting: BTreeMap::new(),
            at_work: HashMap::new(),
            tasks: HashMap::new(),
            ready: Line::default(),
            front: BTreeSet::new(),
            later: Later::default(),
        };
        for (name, size) in pools {
            places.add_pool(name.as_str().into(), *size, true);
        }
        places
    }

    fn add_pool(&mut self, name: Arc<str>, size: usize, is_known: bool) -> usize {
        self.pools.push(Pool::new(Arc::clone(&name), size, is_known));
        self.by_name.insert(name, self.pools.len() - 1);
        self.pools.len() - 1
    }

    /// Where the runs of a task are counted; none for those that take no place here.
    fn pool_of(&mut self, manner: &Manner) -> Option<usize> {
        match (&manner.pool, manner.elsewhere) {
            (_, true) => None,
            (None, _) => Some(NO_POOL),
            (Some(name), _) => Some(match self.by_name.get(name) {
                Some(pool) => *pool,
                None => self.add_pool(Arc::clone(name), OF_A_POOL_THAT_IS_GONE, false),
            }),
        }
    }

    /// The tasks that have a run here.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.keys()
    }

    /// Notes how the runs of a task are let in from now on. What is at work keeps the place it has.
    pub fn set_manner(&mut self, task: &TaskId, manner: Manner) {
        let Some(of_task) = self.tasks.get(task) else { return };
        if of_task.manner == manner {
            return;
        }
        let (line, queued) = (Vec::from(of_task.line.0.clone()), of_task.queued);
        let before = self.pool_of_task(task);
        let after = self.pool_of(&manner);
        if let Some(pool) = before {
            self.pools[pool].queued -= queued;
            for id in line.iter().copied() {
                self.withdraw(id, pool);
            }
        }
        if let Some(pool) = after {
            self.pools[pool].queued += queued;
        }
        let Some(of_task) = self.tasks.get_mut(task) else { return };
        (of_task.manner, of_task.candidate) = (manner, None);
        if let (true, Some(pool)) = (of_task.manner.side_by_side, after) {
            line.into_iter().for_each(|id| self.offer(id, pool));
        }
        self.settle(task);
    }

    /// Puts a run into the line of its task, or lets it wait for its time.
    pub fn add(&mut self, id: RunId, task: &TaskId, kind: Kind, manner: Manner) {
        if self.waiting.contains_key(&id) {
            return;
        }
        self.tasks.entry(task.clone()).or_insert_with(|| OfTask { manner: manner.clone(), ..OfTask::default() });
        self.set_manner(task, manner);
        self.waiting.insert(id, Waiting { task: task.clone(), kind });
        if let Some(pool) = self.pool_of_task(task) {
            self.pools[pool].queued += 1;
        }
        let Some(of_task) = self.tasks.get_mut(task) else { return };
        of_task.queued += 1;
        if let Kind::Retry { due } = kind {
            of_task.retries.insert(id);
            if let Some(due) = due {
                self.later.insert(id, due);
                return self.settle(task);
            }
        }
        self.line_up(id, task);
    }

    fn line_up(&mut self, id: RunId, task: &TaskId) {
        let Some(waiting) = self.waiting.get(&id) else { return };
        let passes_none = !matches!(waiting.kind, Kind::Slot);
        let Some(of_task) = self.tasks.get_mut(task) else { return };
        of_task.line.insert(id);
        if passes_none {
            of_task.unhindered.insert(id);
        }
        if of_task.manner.side_by_side
            && let Some(pool) = self.pool_of_task(task)
        {
            self.offer(id, pool);
        }
        self.settle(task);
    }

    /// Takes a run out that waits; gives its task.
    pub fn take_out(&mut self, id: RunId) -> Option<TaskId> {
        let Waiting { task, kind } = self.waiting.remove(&id)?;
        if let Kind::Retry { due: Some(due) } = kind {
            self.later.remove(id, due);
        }
        let pool = self.pool_of_task(&task);
        if let Some(pool) = pool {
            self.pools[pool].queued -= 1;
            self.withdraw(id, pool);
        }
        if let Some(of_task) = self.tasks.get_mut(&task) {
            of_task.queued -= 1;
            of_task.line.remove(id);
            of_task.unhindered.remove(&id);
            of_task.retries.remove(&id);
            if of_task.candidate == Some(id) {
                of_task.candidate = None;
            }
        }
        self.settle(&task);
        Some(task)
    }

    /// Gives the next run its place, if one may start.
    pub fn start_next(&mut self) -> Option<(RunId, TaskId)> {
        if self.taken >= self.size {
            return None;
        }
        let (id, pool) = *self.front.first()?;
        let task = self.waiting.get(&id)?.task.clone();
        // At work before it is no longer in line: in between no other of the task is let in.
        self.seat(id, &task, Some(pool));
        self.take_out(id);
        Some((id, task))
    }

    /// Gives the next run of a task away that is carried out elsewhere, if one may start. It takes no place.
    pub fn give_next_of(&mut self, task: &TaskId) -> Option<RunId> {
        let id = self.tasks.get(task)?.first()?;
        self.seat(id, task, None);
        self.take_out(id);
        Some(id)
    }

    /// Notes a run that is at work elsewhere and never stood in line, or not since the server started.
    pub fn note_elsewhere(&mut self, id: RunId, task: &TaskId) {
        self.seat(id, task, None);
    }

    fn seat(&mut self, id: RunId, task: &TaskId, place: Option<usize>) {
        if self.at_work.insert(id, Seat { task: task.clone(), place }).is_some() {
            return;
        }
        self.tasks.entry(task.clone()).or_default().at_work.insert(id);
        if let Some(pool) = place {
            self.taken += 1;
            self.pools[pool].running += 1;
            self.settle_pool(pool);
        }
        self.settle(task);
    }

    /// A run is no longer at work: its place, if it had one, is free. False when it was not at work.
    pub fn leave(&mut self, id: RunId) -> bool {
        let Some(Seat { task, place }) = self.at_work.remove(&id) else { return false };
        if let Some(of_task) = self.tasks.get_mut(&task) {
            of_task.at_work.remove(&id);
        }
        if let Some(pool) = place {
            self.taken -= 1;
            self.pools[pool].running -= 1;
            self.settle_pool(pool);
        }
        self.settle(&task);
        true
    }

    /// Puts the retries into line that are due; whether there was one.
    pub fn line_up_due(&mut self, wall: Timestamp, now: Instant) -> bool {
        let mut any = false;
        while let Some(id) = self.later.first_due(wall, now) {
            let Some(Waiting { task, kind }) = self.waiting.get_mut(&id) else { break };
            let task = task.clone();
            if let Kind::Retry { due: Some(due) } = *kind {
                self.later.remove(id, due);
            }
            *kind = Kind::Retry { due: None };
            self.line_up(id, &task);
            any = true;
        }
        any
    }

    /// Lets no retry wait longer by the clock of the machine than by the time that passes.
    pub fn bring_near(&mut self, wall: Timestamp, now: Instant) {
        for (_, id) in std::mem::take(&mut self.later.at) {
            let Some(Waiting { kind: Kind::Retry { due: Some(due) }, .. }) = self.waiting.get_mut(&id) else {
                continue;
            };
            let latest = wall.saturating_add(due.by.saturating_duration_since(now)).unwrap_or(due.at);
            due.at = due.at.min(latest);
            self.later.at.insert((due.at, id));
        }
    }

    /// When the next retry is due, by each clock.
    pub fn next_due(&self) -> Option<Due> {
        let ((at, _), (by, _)) = (self.later.at.first()?, self.later.by.first()?);
        Some(Due { at: *at, by: *by })
    }

    /// What a run waits for; none when it does not wait.
    pub fn waits(&self, id: RunId) -> Option<Waits> {
        let Waiting { task, kind } = self.waiting.get(&id)?;
        let of_task = self.tasks.get(task)?;
        if let Kind::Retry { due: Some(due) } = kind {
            return Some(Waits { what: What::Retry(due.at), position: None });
        }
        let in_line = of_task.line.position(id);
        if of_task.manner.elsewhere && (of_task.manner.side_by_side || of_task.first() == Some(id)) {
            return Some(Waits { what: What::Claim, position: in_line });
        }
        let Some(in_all) = self.ready.position(id) else {
            return Some(Waits { what: What::Run, position: in_line });
        };
        let pool = of_task.manner.pool.as_ref().and_then(|name| self.by_name.get(name)).map(|pool| &self.pools[*pool]);
        Some(match pool.filter(|pool| !pool.has_place()) {
            Some(pool) => Waits { what: What::Pool(Arc::clone(&pool.name)), position: pool.ready.position(id) },
            None => Waits { what: What::Place, position: Some(in_all) },
        })
    }

    /// The runs of a task that wait, in their order.
    pub fn waiting_of(&self, task: &TaskId) -> Vec<RunId> {
        let Some(of_task) = self.tasks.get(task) else { return Vec::new() };
        let waiting: BTreeSet<RunId> = of_task.line.0.iter().chain(&of_task.retries).copied().collect();
        waiting.into_iter().collect()
    }

    /// The runs of a task that are at work, here or elsewhere.
    pub fn at_work_of(&self, task: &TaskId) -> Vec<RunId> {
        self.tasks.get(task).map_or_else(Vec::new, |of_task| of_task.at_work.iter().copied().collect())
    }

    /// Whether a run of the task waits or is at work.
    pub fn has_any_of(&self, task: &TaskId) -> bool {
        self.tasks.contains_key(task)
    }

    /// How many wait.
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    /// How many are at work, here or elsewhere.
    pub fn running(&self) -> usize {
        self.at_work.len()
    }

    /// How the pools stand: first the server's places, then each pool by its name.
    pub fn pools(&self) -> Vec<PoolState> {
        let all = PoolState {
            name: ALL.into(),
            size: self.size,
            running: self.taken,
            queued: self.pools.iter().map(|pool| pool.queued).sum(),
        };
        let named = self.by_name.values().map(|pool| &self.pools[*pool]);
        let in_use = named.filter(|pool| pool.is_known || pool.running + pool.queued > 0);
        let state = |pool: &Pool| PoolState {
            name: Arc::clone(&pool.name),
            size: pool.size,
            running: pool.running,
            queued: pool.queued,
        };
        std::iter::once(all).chain(in_use.map(state)).collect()
    }

    /// The lines that stand, in the order of [`Places::pools`]. O(runs at work) for each.
    pub fn standstills(&self) -> Vec<Standstill> {
        let all = self.front.first().map(|(id, _)| *id).filter(|_| self.taken >= self.size);
        let full = self.by_name.values().filter(|pool| !self.pools[**pool].has_place());
        let of_pools = full.filter_map(|pool| Some((Some(*pool), self.pools[*pool].ready.first()?)));
        let lines = all.map(|id| (None, id)).into_iter().chain(of_pools);
        let standstill = |(pool, id): (Option<usize>, RunId)| {
            let has_one = |seat: &Seat| seat.place.is_some_and(|place| pool.is_none_or(|pool| place == pool));
            let at_work = self.at_work.iter().filter(|(_, seat)| has_one(seat));
            let mut at_work: Vec<_> = at_work.map(|(id, seat)| (*id, seat.task.clone())).collect();
            at_work.sort_unstable_by_key(|(id, _)| *id);
            let name = pool.map_or_else(|| ALL.into(), |pool| Arc::clone(&self.pools[pool].name));
            Some(Standstill { pool: name, first: (id, self.waiting.get(&id)?.task.clone()), at_work })
        };
        lines.filter_map(standstill).collect()
    }

    fn pool_of_task(&mut self, task: &TaskId) -> Option<usize> {
        let manner = self.tasks.get(task)?.manner.clone();
        self.pool_of(&manner)
    }

    /// Brings a task's candidate up to date, and forgets a task that has no run left.
    fn settle(&mut self, task: &TaskId) {
        let Some(of_task) = self.tasks.get(task) else { return };
        if of_task.is_empty() {
            self.tasks.remove(task);
            return;
        }
        if of_task.manner.side_by_side || of_task.manner.elsewhere {
            return;
        }
        let (before, after) = (of_task.candidate, of_task.first());
        if before == after {
            return;
        }
        let Some(pool) = self.pool_of_task(task) else { return };
        if let Some(id) = before {
            self.withdraw(id, pool);
        }
        if let Some(id) = after {
            self.offer(id, pool);
        }
        if let Some(of_task) = self.tasks.get_mut(task) {
            of_task.candidate = after;
        }
    }

    fn offer(&mut self, id: RunId, pool: usize) {
        self.ready.insert(id);
        self.pools[pool].ready.insert(id);
        self.settle_pool(pool);
    }

    fn withdraw(&mut self, id: RunId, pool: usize) {
        if self.ready.remove(id) {
            self.pools[pool].ready.remove(id);
            self.settle_pool(pool);
        }
    }

    /// Brings what a pool offers up to date.
    fn settle_pool(&mut self, index: usize) {
        let pool = &mut self.pools[index];
        let offered = pool.ready.first().filter(|_| pool.has_place());
        let before = std::mem::replace(&mut pool.offered, offered);
        if before != offered {
            if let Some(id) = before {
                self.front.remove(&(id, index));
            }
            if let Some(id) = offered {
                self.front.insert((id, index));
            }
        }
    }
}
