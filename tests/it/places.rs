//! Who waits, who is at work and who starts next, against the same written down naively: lists that are searched.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use rejoin::event::{RunId, TaskId};
use rejoin::run::places::{Due, Kind, Manner, OF_A_POOL_THAT_IS_GONE, Places, PoolState, Standstill, Waits, What};
use tokio::time::Instant;
use uuid::Uuid;

fn run(number: usize) -> RunId {
    RunId(Uuid::from_u128(number as u128))
}

fn task(number: usize) -> TaskId {
    format!("task-{number}").parse().unwrap()
}

fn pools() -> BTreeMap<String, usize> {
    [("narrow".to_owned(), 1), ("wide".to_owned(), 3)].into()
}

fn manner(pool: &str, side_by_side: bool, elsewhere: bool) -> Manner {
    let pool = (!pool.is_empty()).then(|| pool.into());
    Manner { pool, side_by_side, elsewhere }
}

/// Both clocks, so many seconds after the beginning.
fn due(begin: Instant, wall: u64, passed: u64) -> Due {
    let at = Timestamp::from_second(1_800_000_000 + i64::try_from(wall).unwrap()).unwrap();
    Due { at, by: begin + Duration::from_secs(passed) }
}

#[derive(Clone, Debug)]
struct Naive {
    size: usize,
    manners: BTreeMap<TaskId, Manner>,
    waiting: BTreeMap<RunId, (TaskId, Kind)>,
    /// With the pool whose place each has; none where it has no place.
    at_work: BTreeMap<RunId, (TaskId, Option<String>)>,
}

impl Naive {
    fn manner(&self, task: &TaskId) -> Manner {
        self.manners.get(task).cloned().unwrap_or_default()
    }

    fn pool_size(name: &str) -> usize {
        if name.is_empty() { usize::MAX } else { pools().get(name).copied().unwrap_or(OF_A_POOL_THAT_IS_GONE) }
    }

    fn pool_of(&self, task: &TaskId) -> String {
        self.manner(task).pool.as_deref().unwrap_or_default().to_owned()
    }

    fn in_line(kind: Kind) -> bool {
        !matches!(kind, Kind::Retry { due: Some(_) })
    }

    /// Those that the other runs of their task let start.
    fn let_in(&self) -> Vec<(RunId, TaskId)> {
        let mut found: Vec<(RunId, TaskId)> = Vec::new();
        for (id, (task, kind)) in self.waiting.iter().filter(|(_, (_, kind))| Self::in_line(*kind)) {
            let busy = self.at_work.values().any(|(of, _)| of == task);
            let retry = |(of, kind): &(TaskId, Kind)| of == task && matches!(kind, Kind::Retry { .. });
            let behind = *kind == Kind::Slot && self.waiting.values().any(retry);
            let second = found.iter().any(|(_, of)| of == task);
            if self.manner(task).side_by_side || !(busy || behind || second) {
                found.push((*id, task.clone()));
            }
        }
        found
    }

    fn ready(&self) -> Vec<(RunId, TaskId)> {
        self.let_in().into_iter().filter(|(_, task)| !self.manner(task).elsewhere).collect()
    }

    fn taken(&self) -> usize {
        self.at_work.values().filter(|(_, place)| place.is_some()).count()
    }

    fn running(&self, pool: &str) -> usize {
        self.at_work.values().filter(|(_, place)| place.as_deref() == Some(pool)).count()
    }

    fn has_place(&self, pool: &str) -> bool {
        self.running(pool) < Self::pool_size(pool)
    }

    fn next(&self) -> Option<(RunId, TaskId)> {
        let free = self.taken() < self.size;
        self.ready().into_iter().find(|(_, task)| free && self.has_place(&self.pool_of(task)))
    }

    fn start_next(&mut self) -> Option<(RunId, TaskId)> {
        let (id, task) = self.next()?;
        self.waiting.remove(&id);
        self.at_work.insert(id, (task.clone(), Some(self.pool_of(&task))));
        Some((id, task))
    }

    fn give_next_of(&mut self, task: &TaskId) -> Option<RunId> {
        let (id, _) = self.let_in().into_iter().find(|(_, of)| of == task)?;
        self.waiting.remove(&id);
        self.at_work.insert(id, (task.clone(), None));
        Some(id)
    }

    fn line_up_due(&mut self, wall: Timestamp, now: Instant) -> bool {
        let mut any = false;
        for (_, kind) in self.waiting.values_mut() {
            if let Kind::Retry { due: Some(Due { at, by }) } = *kind
                && (at <= wall || by <= now)
            {
                *kind = Kind::Retry { due: None };
                any = true;
            }
        }
        any
    }

    fn waits(&self, id: RunId) -> Option<Waits> {
        let (task, kind) = self.waiting.get(&id)?;
        if let Kind::Retry { due: Some(due) } = kind {
            return Some(Waits { what: What::Retry(due.at), position: None });
        }
        let place = |ids: Vec<RunId>| ids.iter().position(|other| *other == id).map(|before| before + 1);
        let line = self.waiting.iter().filter(|(_, (of, kind))| of == task && Self::in_line(*kind));
        let in_line = place(line.map(|(id, _)| *id).collect());
        let let_in = self.let_in().iter().any(|(other, _)| *other == id);
        if !let_in {
            return Some(Waits { what: What::Run, position: in_line });
        }
        if self.manner(task).elsewhere {
            return Some(Waits { what: What::Claim, position: in_line });
        }
        let (ready, pool) = (self.ready(), self.pool_of(task));
        if self.has_place(&pool) {
            return Some(Waits { what: What::Place, position: place(ready.iter().map(|(id, _)| *id).collect()) });
        }
        let of_pool = ready.iter().filter(|(_, of)| self.pool_of(of) == pool).map(|(id, _)| *id);
        Some(Waits { what: What::Pool(pool.as_str().into()), position: place(of_pool.collect()) })
    }

    fn standstills(&self) -> Vec<Standstill> {
        let waits_for = |what: What| {
            let is_it = |id: &&RunId| self.waits(**id).is_some_and(|waits| waits.what == what);
            self.waiting.keys().find(is_it).map(|id| (*id, self.waiting[id].0.clone()))
        };
        let at_work = |pool: Option<&str>| {
            let has_one = |place: &Option<String>| place.is_some() && (pool.is_none() || place.as_deref() == pool);
            let all = self.at_work.iter().filter(|(_, (_, place))| has_one(place));
            all.map(|(id, (task, _))| (*id, task.clone())).collect()
        };
        let all = waits_for(What::Place).filter(|_| self.taken() >= self.size);
        let all = all.map(|first| Standstill { pool: "all".into(), first, at_work: at_work(None) });
        let pools = ["gone", "narrow", "wide"].into_iter().filter_map(|name| {
            let first = waits_for(What::Pool(name.into()))?;
            Some(Standstill { pool: name.into(), first, at_work: at_work(Some(name)) })
        });
        all.into_iter().chain(pools).collect()
    }

    fn pools(&self) -> Vec<PoolState> {
        let queued = |pool: Option<&str>| {
            let of = self
                .waiting
                .values()
                .filter(|(task, _)| !self.manner(task).elsewhere && pool.is_none_or(|pool| self.pool_of(task) == pool));
            of.count()
        };
        let all = PoolState { name: "all".into(), size: self.size, running: self.taken(), queued: queued(None) };
        let named = ["gone", "narrow", "wide"].into_iter().map(|name| PoolState {
            name: name.into(),
            size: Self::pool_size(name),
            running: self.running(name),
            queued: queued(Some(name)),
        });
        let shown = named.filter(|pool| pools().contains_key(&*pool.name) || pool.running + pool.queued > 0);
        std::iter::once(all).chain(shown).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add {
        task: usize,
        kind: u8,
        wall: u64,
        passed: u64,
    },
    TakeOut(prop::sample::Index),
    /// As on a loaded server: not every free place is filled at once.
    Start,
    Leave(prop::sample::Index),
    Give(usize),
    Opened(usize),
    Manner {
        task: usize,
        manner: Manner,
    },
    Time {
        wall: u64,
        passed: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pool = prop::sample::select(vec!["", "narrow", "wide", "gone"]);
    let manner = (pool, any::<bool>(), prop::bool::weighted(0.2));
    let manner = manner.prop_map(|(pool, side_by_side, elsewhere)| self::manner(pool, side_by_side, elsewhere));
    let step = prop_oneof![
        8 => (0..6usize, 0..4u8, 0..40u64, 0..40u64)
            .prop_map(|(task, kind, wall, passed)| Step::Add { task, kind, wall, passed }),
        2 => any::<prop::sample::Index>().prop_map(Step::TakeOut),
        6 => Just(Step::Start),
        5 => any::<prop::sample::Index>().prop_map(Step::Leave),
        2 => (0..6usize).prop_map(Step::Give),
        1 => (0..6usize).prop_map(Step::Opened),
        2 => (0..6usize, manner).prop_map(|(task, manner)| Step::Manner { task, manner }),
        2 => (0..40u64, 0..40u64).prop_map(|(wall, passed)| Step::Time { wall, passed }),
    ];
    prop::collection::vec(step, 1..120)
}

fn pick<V>(map: &BTreeMap<RunId, V>, index: &prop::sample::Index) -> Option<RunId> {
    (!map.is_empty()).then(|| *map.keys().nth(index.index(map.len())).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn places_are_given_as_by_one_who_looks_through_all_lists(size in 1..6usize, steps in steps()) {
        let begin = Instant::now();
        let mut places = Places::new(size, &pools());
        let mut naive =
            Naive { size, manners: BTreeMap::new(), waiting: BTreeMap::new(), at_work: BTreeMap::new() };
        let mut made = 0;
        let next_id = |made: &mut usize| { *made += 1; run(*made) };
        for step in steps {
            match step {
                Step::Add { task: of, kind, wall, passed } => {
                    let (id, of) = (next_id(&mut made), task(of));
                    let kind = match kind {
                        0 => Kind::Hand,
                        1 => Kind::Retry { due: Some(due(begin, wall, passed)) },
                        _ => Kind::Slot,
                    };
                    places.add(id, &of, kind, naive.manner(&of));
                    naive.waiting.insert(id, (of, kind));
                }
                Step::TakeOut(index) => if let Some(id) = pick(&naive.waiting, &index) {
                    let of = naive.waiting.remove(&id).map(|(task, _)| task);
                    prop_assert_eq!(places.take_out(id), of);
                }
                Step::Start => prop_assert_eq!(places.start_next(), naive.start_next()),
                Step::Leave(index) => if let Some(id) = pick(&naive.at_work, &index) {
                    naive.at_work.remove(&id);
                    prop_assert!(places.leave(id));
                    prop_assert!(!places.leave(id), "once");
                }
                Step::Give(of) => {
                    let of = task(of);
                    if naive.manner(&of).elsewhere {
                        prop_assert_eq!(places.give_next_of(&of), naive.give_next_of(&of));
                    }
                }
                Step::Opened(of) => {
                    let (id, of) = (next_id(&mut made), task(of));
                    places.note_elsewhere(id, &of);
                    naive.at_work.insert(id, (of, None));
                }
                Step::Manner { task: of, manner } => {
                    let of = task(of);
                    places.set_manner(&of, manner.clone());
                    naive.manners.insert(of, manner);
                }
                Step::Time { wall, passed } => {
                    let now = due(begin, wall, passed);
                    prop_assert_eq!(places.line_up_due(now.at, now.by), naive.line_up_due(now.at, now.by));
                }
            }
            for id in (1..=made).map(run) {
                prop_assert_eq!(places.waits(id), naive.waits(id), "{:?}", id);
            }
            prop_assert_eq!(places.pools(), naive.pools());
            prop_assert_eq!(places.standstills(), naive.standstills());
            prop_assert_eq!((places.running(), places.queued()), (naive.at_work.len(), naive.waiting.len()));
            for of in (0..6).map(task) {
                let at_work = naive.at_work.iter().filter(|(_, (task, _))| *task == of).map(|(id, _)| *id);
                prop_assert_eq!(places.at_work_of(&of), at_work.collect::<Vec<_>>());
                let waiting = naive.waiting.iter().filter(|(_, (task, _))| *task == of).map(|(id, _)| *id);
                prop_assert_eq!(places.waiting_of(&of), waiting.collect::<Vec<_>>());
                prop_assert_eq!(places.has_any_of(&of), places.tasks().any(|task| *task == of));
            }
            let dues = naive.waiting.values().filter_map(|(_, kind)| match kind {
                Kind::Retry { due } => *due,
                _ => None,
            });
            let dues: Vec<Due> = dues.collect();
            let next = dues.iter().map(|due| due.at).min().zip(dues.iter().map(|due| due.by).min());
            prop_assert_eq!(places.next_due().map(|due| (due.at, due.by)), next);
        }
        // Whatever came before: every place that may be given is given, and then no more.
        while let Some(next) = naive.start_next() {
            prop_assert_eq!(places.start_next(), Some(next));
        }
        prop_assert_eq!(places.start_next(), None);
        for id in naive.at_work.keys().chain(naive.waiting.keys()) {
            prop_assert!(places.leave(*id) || places.take_out(*id).is_some());
        }
        prop_assert_eq!(places.tasks().count(), 0, "nothing is remembered of tasks without runs");
    }
}
