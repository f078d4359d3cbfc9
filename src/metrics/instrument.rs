//! Instruments: counters and histograms of plain atomics. To note something is an addition or two; nothing is allocated.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that only grows. On a line of its own in the processor's cache: those who add to the next one do not wait
/// for it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// What was added so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What stands for a word that is not among those that are known: the number of series is fixed, and nothing is lost.
pub const OTHER: &str = "other";

/// Counters by one label, whose values are fixed.
#[derive(Debug)]
pub struct Labelled {
    words: &'static [&'static str],
    /// One for each word, and one for any other.
    counters: Box<[Counter]>,
}

impl Labelled {
    /// All at 0.
    pub fn new(words: &'static [&'static str]) -> Self {
        Self { words, counters: (0..=words.len()).map(|_| Counter::default()).collect() }
    }

    /// Adds to the one of a word.
    pub fn add(&self, word: &str, count: u64) {
        self.counters[place(self.words, word)].add(count);
    }

    /// Every word with its number; the other ones only if there were any.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let words = self.words.iter().copied().chain([OTHER]);
        words.zip(self.counters.iter().map(Counter::get)).filter(|(word, count)| *word != OTHER || *count > 0)
    }
}

/// Counters by two labels, whose values are fixed.
#[derive(Debug)]
pub struct Pairs {
    first: &'static [&'static str],
    rows: Box<[Labelled]>,
}

impl Pairs {
    /// All at 0.
    pub fn new(first: &'static [&'static str], second: &'static [&'static str]) -> Self {
        Self { first, rows: (0..=first.len()).map(|_| Labelled::new(second)).collect() }
    }

    /// Adds to the one of two words.
    pub fn add(&self, first: &str, second: &str, count: u64) {
        self.rows[place(self.first, first)].add(second, count);
    }

    /// Every pair with its number; of the other ones only those that are not 0.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let first = self.first.iter().copied().chain([OTHER]).zip(&self.rows);
        first
            .flat_map(|(first, row)| row.all().map(move |(second, count)| (first, second, count)))
            .filter(|(first, _, count)| *first != OTHER || *count > 0)
    }
}

fn place(words: &[&str], word: &str) -> usize {
    words.iter().position(|known| *known == word).unwrap_or(words.len())
}

/// How often values were at most so large.
#[derive(Debug)]
pub struct Histogram {
    /// Ascending, inclusive.
    bounds: &'static [u64],
    /// One for each bound, not yet added up, and one for what is above all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// A histogram at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Distribution {
    /// How many values were at most so large, bound by bound.
    pub at_most: Vec<(u64, u64)>,
    /// How many there were.
    pub count: u64,
    /// All of them together.
    pub sum: u64,
}

impl Histogram {
    /// An empty one.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Notes a value. O(log bounds).
    pub fn note(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts[place].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// What was noted so far. What is noted meanwhile may be in it or not; bounds and count agree with each other.
    pub fn read(&self) -> Distribution {
        let sum = self.sum.load(Relaxed);
        let mut count = 0;
        let mut up_to = self.counts.iter().map(|here| {
            count += here.load(Relaxed);
            count
        });
        let at_most = self.bounds.iter().copied().zip(&mut up_to).collect();
        let count = up_to.last().unwrap_or(0);
        Distribution { at_most, count, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_for_its_bound_and_all_above_it() {
        let histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, 5000] {
            histogram.note(value);
        }
        let read = histogram.read();
        assert_eq!(read, Distribution { at_most: vec![(10, 2), (20, 4)], count: 6, sum: 5062 });
    }

    #[test]
    fn an_empty_histogram_has_all_its_bounds() {
        let read = Histogram::new(&[1, 2]).read();
        assert_eq!(read, Distribution { at_most: vec![(1, 0), (2, 0)], count: 0, sum: 0 });
    }

    #[test]
    fn a_word_that_is_not_known_makes_no_series_of_its_own() {
        let counters = Labelled::new(&["a", "b"]);
        assert_eq!(counters.all().collect::<Vec<_>>(), [("a", 0), ("b", 0)]);
        counters.add("b", 2);
        counters.add("x", 1);
        counters.add("y", 1);
        assert_eq!(counters.all().collect::<Vec<_>>(), [("a", 0), ("b", 2), (OTHER, 2)]);
        let pairs = Pairs::new(&["mail"], &["sent"]);
        pairs.add("mail", "sent", 1);
        pairs.add("pigeon", "sent", 1);
        assert_eq!(pairs.all().collect::<Vec<_>>(), [("mail", "sent", 1), (OTHER, "sent", 1)]);
    }
}
