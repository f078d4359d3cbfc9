//! A segment: consecutive events as one text. It is at once the row in the log, the entry of the ring and the
//! `items` of a frame, so that no event is serialised twice.

use std::ops::Range;
use std::sync::Arc;

use crate::event::Seq;

/// The most events in one segment, and so in one `events` frame (`docs/protocol.md`, "Frames").
pub const MAX_EVENTS: usize = 256;
/// The most bytes in one segment; a single larger event makes a segment of its own.
pub const MAX_BYTES: usize = 32 * 1024;

/// Event objects joined by commas, with their end offsets beside them.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment {
    first: Seq,
    items: Box<str>,
    ends: Box<[u32]>,
}

impl Segment {
    /// A segment as it was read from the log.
    ///
    /// # Errors
    /// When the offsets do not lie on the commas of the text: the row is damaged.
    pub fn from_stored(first: Seq, items: String, ends: &[u8]) -> Result<Self, Damaged> {
        let ends: Box<[u32]> =
            ends.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
        let inner_ends = ends.split_last().map_or(&[][..], |(_, inner)| inner);
        let on_commas = inner_ends.iter().all(|end| items.as_bytes().get(*end as usize) == Some(&b','));
        if ends.last().map(|end| *end as usize) != Some(items.len()) || !on_commas || !ends.is_sorted() {
            return Err(Damaged);
        }
        Ok(Self { first, items: items.into_boxed_str(), ends })
    }

    /// The first event's number.
    pub fn first(&self) -> Seq {
        self.first
    }

    /// The last event's number.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + self.ends.len() as u64 - 1)
    }

    /// How many events there are; never 0.
    #[expect(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// All events, joined by commas.
    pub fn items(&self) -> &str {
        &self.items
    }

    /// The end offsets as they are stored: four bytes each, little-endian.
    pub fn ends_to_store(&self) -> Vec<u8> {
        self.ends.iter().flat_map(|end| end.to_le_bytes()).collect()
    }

    /// The bytes of event JSON, commas not counted.
    pub fn event_bytes(&self) -> u64 {
        (self.items.len() + 1 - self.ends.len()) as u64
    }

    /// The bytes of event JSON from event `from` on, commas not counted.
    pub fn event_bytes_from(&self, from: Seq) -> u64 {
        let skipped = from.0.saturating_sub(self.first.0).min(self.ends.len() as u64) as usize;
        if skipped == self.ends.len() {
            return 0;
        }
        (self.items.len() - self.start(skipped) + 1 - (self.ends.len() - skipped)) as u64
    }

    /// What it takes in memory, roughly: the text, the offsets and the handles around them.
    pub fn allocation(&self) -> usize {
        self.items.len() + self.ends.len() * 4 + 128
    }

    /// Each event with its number.
    pub fn events(&self) -> impl DoubleEndedIterator<Item = (Seq, &str)> {
        (0..self.ends.len())
            .map(|index| (Seq(self.first.0 + index as u64), &self.items[self.start(index)..self.ends[index] as usize]))
    }

    /// The events from `from` on, at most `max_bytes` of text, but always at least one.
    /// `None` when `from` lies outside.
    pub fn slice(self: &Arc<Self>, from: Seq, max_bytes: usize) -> Option<Slice> {
        let skip = usize::try_from(from.0.checked_sub(self.first.0)?).ok()?;
        if skip >= self.ends.len() {
            return None;
        }
        let start = self.start(skip);
        let limit = start.saturating_add(max_bytes);
        let fitting = self.ends[skip..].partition_point(|end| *end as usize <= limit).max(1);
        let last = skip + fitting - 1;
        Some(Slice {
            first: from,
            last: Seq(self.first.0 + last as u64),
            range: start..self.ends[last] as usize,
            segment: Arc::clone(self),
        })
    }

    fn start(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.ends[index - 1] as usize + 1 }
    }
}

/// A row of the log does not hold what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a segment of the log is damaged")]
pub struct Damaged;

/// Consecutive events out of one segment, ready for a frame. Costs no copy.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The first event's number.
    pub first: Seq,
    /// The last event's number.
    pub last: Seq,
    range: Range<usize>,
    segment: Arc<Segment>,
}

impl Slice {
    /// The events, joined by commas.
    pub fn items(&self) -> &str {
        &self.segment.items[self.range.clone()]
    }

    /// Each event with its number.
    pub fn events(&self) -> impl Iterator<Item = (Seq, &str)> {
        let (first, last) = (self.first, self.last);
        self.segment.events().filter(move |(seq, _)| *seq >= first && *seq <= last)
    }
}

/// Builds segments out of events that come in order.
#[derive(Debug)]
pub struct Builder {
    first: Seq,
    items: String,
    ends: Vec<u32>,
}

impl Builder {
    /// Starts with the event numbered `first`.
    pub fn new(first: Seq) -> Self {
        Self { first, items: String::new(), ends: Vec::new() }
    }

    /// Starts with what a segment holds, as it was before that was cut.
    pub fn again(segment: &Segment) -> Self {
        Self { first: segment.first, items: segment.items.to_string(), ends: segment.ends.to_vec() }
    }

    /// How many events were added.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Takes back all but the first `events`.
    pub fn truncate(&mut self, events: usize) {
        self.ends.truncate(events);
        self.items.truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether an event of `bytes` still fits.
    pub fn takes(&self, bytes: usize) -> bool {
        self.is_empty() || (self.ends.len() < MAX_EVENTS && self.items.len() + 1 + bytes <= MAX_BYTES)
    }

    /// Adds the next event: `write` puts its JSON at the end of the text.
    pub fn push(&mut self, write: impl FnOnce(&mut String)) {
        if !self.items.is_empty() {
            self.items.push(',');
        }
        write(&mut self.items);
        self.ends.push(u32::try_from(self.items.len()).unwrap_or(u32::MAX));
    }

    /// The segment; the builder starts again behind it. `None` when nothing was added.
    pub fn finish(&mut self) -> Option<Segment> {
        if self.is_empty() {
            return None;
        }
        let first = self.first;
        self.first = Seq(first.0 + self.ends.len() as u64);
        Some(Segment {
            first,
            items: std::mem::take(&mut self.items).into_boxed_str(),
            ends: std::mem::take(&mut self.ends).into_boxed_slice(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: u64, events: &[&str]) -> Arc<Segment> {
        let mut builder = Builder::new(Seq(first));
        for event in events {
            builder.push(|items| items.push_str(event));
        }
        Arc::new(builder.finish().unwrap())
    }

    #[test]
    fn a_slice_begins_where_it_is_asked_to_and_ends_with_the_bytes_it_may_have() {
        let segment = segment(10, &["{1}", "{22}", "{333}"]);
        let slice = segment.slice(Seq(11), 9).unwrap();
        assert_eq!((slice.first, slice.last, slice.items()), (Seq(11), Seq(11), "{22}"));
        let slice = segment.slice(Seq(11), 10).unwrap();
        assert_eq!((slice.last, slice.items()), (Seq(12), "{22},{333}"));
        assert!(segment.slice(Seq(13), 100).is_none());
        assert!(segment.slice(Seq(9), 100).is_none());
        assert_eq!(segment.slice(Seq(12), 1).unwrap().items(), "{333}", "one event always goes");
    }

    #[test]
    fn a_stored_segment_comes_back_as_it_was_and_a_damaged_one_is_refused() {
        let segment = segment(1, &["{1}", "{22}"]);
        let ends = segment.ends_to_store();
        let again = Segment::from_stored(Seq(1), segment.items().to_owned(), &ends).unwrap();
        assert_eq!(again, *segment);
        assert_eq!(Segment::from_stored(Seq(1), "{1},{2".to_owned(), &ends), Err(Damaged));
        assert_eq!(Segment::from_stored(Seq(1), "{1} {22}".to_owned(), &ends), Err(Damaged));
    }

    #[test]
    fn bytes_of_events_leave_the_commas_out() {
        let segment = segment(5, &["{1}", "{22}", "{333}"]);
        assert_eq!(segment.event_bytes(), 12);
        assert_eq!(segment.event_bytes_from(Seq(6)), 9);
        assert_eq!(segment.event_bytes_from(Seq(8)), 0);
        assert_eq!(segment.event_bytes_from(Seq(1)), 12);
    }
}
