//! When tasks are due: the order of their next slots.

use jiff::Timestamp;
use rejoin::event::TaskId;
use rejoin::task::agenda::{Agenda, Entry};

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
