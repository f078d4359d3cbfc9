//! When tasks are due: who is next, and how far slots are planned. Plain data, so that looking costs O(log tasks) a
//! second and not O(tasks).

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::event::TaskId;

/// Where the schedule of one task is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its next slot.
    pub next: Option<Timestamp>,
    /// Every slot up to here has its row.
    pub planned: Timestamp,
}

/// All tasks in the order of their next slots.
#[derive(Debug, Default)]
pub struct Agenda {
    next: BTreeSet<(Timestamp, TaskId)>,
    planned: BTreeSet<(Timestamp, TaskId)>,
}

impl Agenda {
    /// Notes where a task is now, and was before; none where it is not there.
    pub fn note(&mut self, id: &TaskId, before: Option<Entry>, now: Option<Entry>) {
        if before == now {
            return;
        }
        if let Some(Entry { next, planned }) = before {
            self.planned.remove(&(planned, id.clone()));
            next.map(|next| self.next.remove(&(next, id.clone())));
        }
        if let Some(Entry { next, planned }) = now {
            self.planned.insert((planned, id.clone()));
            next.map(|next| self.next.insert((next, id.clone())));
        }
    }

    /// The tasks that are due, in the order of their slots.
    pub fn due(&self, now: Timestamp) -> impl Iterator<Item = &TaskId> {
        self.next.iter().take_while(move |(next, _)| *next <= now).map(|(_, id)| id)
    }

    /// When the next task is due.
    pub fn next(&self) -> Option<Timestamp> {
        self.next.first().map(|(next, _)| *next)
    }

    /// The newest time up to which a task is planned.
    pub fn newest_planned(&self) -> Option<Timestamp> {
        self.planned.last().map(|(planned, _)| *planned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_due_in_the_order_of_their_slots_and_only_as_they_stand_now() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let id = |name: &str| name.parse::<TaskId>().unwrap();
        let entry = |next: Option<i64>, planned| Some(Entry { next: next.map(at), planned: at(planned) });
        let mut agenda = Agenda::default();
        agenda.note(&id("a"), None, entry(Some(30), 10));
        agenda.note(&id("b"), None, entry(Some(20), 12));
        agenda.note(&id("c"), None, entry(Some(20), 11));
        agenda.note(&id("never"), None, entry(None, 5));
        let due = |agenda: &Agenda, now| agenda.due(at(now)).map(TaskId::to_string).collect::<Vec<_>>();
        assert_eq!(due(&agenda, 19), Vec::<String>::new());
        assert_eq!(due(&agenda, 30), ["b", "c", "a"]);
        assert_eq!((agenda.next(), agenda.newest_planned()), (Some(at(20)), Some(at(12))));
        agenda.note(&id("b"), entry(Some(20), 12), entry(Some(40), 20));
        agenda.note(&id("c"), entry(Some(20), 11), None);
        assert_eq!(due(&agenda, 30), ["a"]);
        assert_eq!((agenda.next(), agenda.newest_planned()), (Some(at(30)), Some(at(20))));
        // A clock that is said to be right takes back what was planned.
        agenda.note(&id("b"), entry(Some(40), 20), entry(Some(25), 9));
        assert_eq!((agenda.next(), agenda.newest_planned()), (Some(at(25)), Some(at(10))));
    }
}
