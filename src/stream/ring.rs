//! The ring: a cache of the tail of one task's log. Plain data: no lock, no await, not thread-safe; the lock
//! lives one level up, in `topic`.

use std::collections::VecDeque;
use std::sync::Arc;

use super::segment::Segment;
use crate::event::Seq;

/// How much a ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most events.
    pub events: usize,
    /// The most bytes of allocation.
    pub bytes: usize,
    /// The most bytes while a connected reader has not passed them.
    pub unread_bytes: usize,
}

/// Segments of consecutive events, the newest at the end.
#[derive(Debug)]
pub struct Ring {
    segments: VecDeque<Arc<Segment>>,
    events: usize,
    bytes: usize,
    evicted_through: Seq,
    limits: Limits,
}

impl Ring {
    /// An empty ring behind `head`: everything up to it is only in the log.
    pub fn new(head: Seq, limits: Limits) -> Self {
        Self { segments: VecDeque::new(), events: 0, bytes: 0, evicted_through: head, limits }
    }

    /// Takes the next segment, then lets go of what is too much: whole segments from the old end, but none
    /// that holds `unread`, the first event that a connected reader still wants, while those are few enough;
    /// it is asked for only when something must go.
    /// A segment that does not follow on empties the ring first: it never has a hole.
    pub fn push(&mut self, segment: Arc<Segment>, unread: impl FnOnce() -> Option<Seq>) {
        if segment.first() != self.next() {
            self.clear();
            self.evicted_through = segment.first().prev();
        }
        self.events += segment.len();
        self.bytes += segment.allocation();
        self.segments.push_back(segment);
        if self.is_over() {
            self.trim(unread());
        }
    }

    fn is_over(&self) -> bool {
        self.events > self.limits.events || self.bytes > self.limits.bytes
    }

    fn trim(&mut self, unread: Option<Seq>) {
        while let Some(oldest) = self.segments.front() {
            let wanted = unread.is_some_and(|unread| unread <= oldest.last());
            if !self.is_over() || (wanted && self.bytes <= self.limits.unread_bytes) {
                break;
            }
            self.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        if let Some(gone) = self.segments.pop_front() {
            self.events -= gone.len();
            self.bytes -= gone.allocation();
            self.evicted_through = gone.last();
        }
    }

    /// Lets go of everything; the log still has it.
    pub fn clear(&mut self) {
        while !self.segments.is_empty() {
            self.evict_oldest();
        }
        self.segments.shrink_to_fit();
    }

    /// Lets go of what retention has taken from the log: nothing below `oldest` is answered any more.
    pub fn forget_below(&mut self, oldest: Seq) {
        while self.segments.front().is_some_and(|segment| segment.first() < oldest) {
            self.evict_oldest();
        }
    }

    /// The segment that holds `seq`, if it is here. O(log segments).
    pub fn holding(&self, seq: Seq) -> Option<Arc<Segment>> {
        if seq <= self.evicted_through {
            return None;
        }
        let index = self.segments.partition_point(|segment| segment.last() < seq);
        self.segments.get(index).filter(|segment| segment.first() <= seq).cloned()
    }

    /// Everything up to here is only in the log.
    pub fn evicted_through(&self) -> Seq {
        self.evicted_through
    }

    /// Bytes of allocation.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many events are here.
    pub fn events(&self) -> usize {
        self.events
    }

    fn next(&self) -> Seq {
        self.segments.back().map_or(self.evicted_through.next(), |segment| segment.last().next())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::segment::Builder;

    const LIMITS: Limits = Limits { events: 64, bytes: 8192, unread_bytes: 16384 };

    fn segment(first: Seq, sizes: &[usize]) -> Arc<Segment> {
        let mut builder = Builder::new(first);
        for size in sizes {
            builder.push(|items| items.extend(std::iter::repeat_n('x', *size)));
        }
        Arc::new(builder.finish().unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_ring_holds_the_tail_without_holes_within_its_bounds(
            batches in prop::collection::vec(prop::collection::vec(1usize..300, 1..20), 1..60),
        ) {
            let mut ring = Ring::new(Seq(0), LIMITS);
            let mut head = Seq(0);
            for sizes in &batches {
                ring.push(segment(head.next(), sizes), || None);
                head = Seq(head.0 + sizes.len() as u64);
                prop_assert!(ring.events() <= LIMITS.events && ring.bytes() <= LIMITS.bytes);
                for seq in 1..=head.0 + 1 {
                    let held = ring.holding(Seq(seq));
                    prop_assert_eq!(held.is_some(), Seq(seq) > ring.evicted_through() && seq <= head.0);
                    if let Some(held) = held {
                        prop_assert!(held.first() <= Seq(seq) && Seq(seq) <= held.last());
                    }
                }
            }
        }

        #[test]
        fn what_a_connected_reader_wants_stays_up_to_its_own_bound(
            batches in prop::collection::vec(prop::collection::vec(1usize..300, 1..20), 1..60),
            wanted in 1u64..200,
        ) {
            let mut ring = Ring::new(Seq(0), LIMITS);
            let mut head = Seq(0);
            for sizes in &batches {
                ring.push(segment(head.next(), sizes), || Some(Seq(wanted)));
                head = Seq(head.0 + sizes.len() as u64);
                prop_assert!(ring.bytes() <= LIMITS.unread_bytes);
                if ring.evicted_through() >= Seq(wanted) {
                    prop_assert!(ring.bytes() > LIMITS.bytes - 6200 || ring.events() > LIMITS.events - 40
                        || ring.bytes() + 6200 > LIMITS.unread_bytes, "let go only when full");
                }
            }
        }

        #[test]
        fn nothing_below_oldest_is_answered(
            batches in prop::collection::vec(1usize..20, 1..30),
            oldest in 1u64..300,
        ) {
            let mut ring = Ring::new(Seq(0), LIMITS);
            let mut head = Seq(0);
            for count in &batches {
                ring.push(segment(head.next(), &vec![10; *count]), || None);
                head = Seq(head.0 + *count as u64);
            }
            ring.forget_below(Seq(oldest));
            for seq in 1..oldest {
                prop_assert!(ring.holding(Seq(seq)).is_none_or(|held| held.first() >= Seq(oldest)));
            }
        }
    }

    #[test]
    fn a_segment_that_does_not_follow_on_empties_the_ring_first() {
        let mut ring = Ring::new(Seq(0), LIMITS);
        ring.push(segment(Seq(1), &[5, 5]), || None);
        ring.push(segment(Seq(9), &[5]), || None);
        assert!(ring.holding(Seq(1)).is_none());
        assert!(ring.holding(Seq(9)).is_some());
        assert_eq!(ring.evicted_through(), Seq(8));
    }
}
