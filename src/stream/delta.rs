//! The texts that agents are writing at the moment, so that watchers see them grow: in memory only, never in the log.
//! Plain data, no lock, no await.
//!
//! What is kept of a text is always its beginning. Where no more can be kept, no more is shown until the event comes
//! that has the whole of it; so nobody ever puts a piece behind a gap.

use crate::event::{RunId, State};
use crate::record::Mark;

/// The most bytes of one text.
pub const MOST_TEXT: usize = 64 * 1024;
/// The most texts of one task that are open at once.
pub const MOST_TEXTS: usize = 16;

/// So many texts are remembered as left to their events. A run that has more begins none until it is over.
const MOST_LEFT: usize = 1024;

/// The open texts of one task.
#[derive(Debug, Default)]
pub struct Drafts {
    texts: Vec<Draft>,
    last: u64,
    /// Texts that began when there was no room. What comes of them later is no beginning.
    left: Vec<(RunId, Box<str>)>,
    /// Runs that have more of those than are remembered.
    barred: Vec<RunId>,
}

#[derive(Debug)]
struct Draft {
    /// Its number among all of this task: a key that is used again is another text.
    number: u64,
    run: RunId,
    key: Box<str>,
    text: String,
    /// It cannot grow any more.
    is_full: bool,
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The run that writes it.
    pub run: RunId,
    /// The text, among those of the run.
    pub key: Box<str>,
    /// How many Unicode scalars of it come before this piece.
    pub offset: usize,
    /// What comes there.
    pub text: String,
}

/// How far one subscription has been shown the open texts.
#[derive(Debug, Default)]
pub struct Shown {
    /// Each text by its number, with the bytes and the scalars that were shown.
    places: Vec<Place>,
    /// Of all changes up to this one everything was shown.
    pub(super) change: u64,
}

#[derive(Debug)]
struct Place {
    number: u64,
    bytes: usize,
    scalars: usize,
}

impl Drafts {
    /// Goes on with a text, or begins it. True if there is more to show now.
    pub fn write(&mut self, run: RunId, key: &str, text: &str) -> bool {
        let known = self.texts.iter().position(|draft| draft.run == run && *draft.key == *key);
        let at = match known {
            Some(at) => at,
            None if self.is_left(run, key) => return false,
            None if self.texts.len() >= MOST_TEXTS => {
                self.leave(run, key);
                return false;
            }
            None => {
                self.last += 1;
                let (number, key) = (self.last, key.into());
                self.texts.push(Draft { number, run, key, text: String::new(), is_full: false });
                self.texts.len() - 1
            }
        };
        let draft = &mut self.texts[at];
        if draft.is_full {
            return false;
        }
        let room = text.floor_char_boundary(MOST_TEXT - draft.text.len());
        draft.is_full = room < text.len();
        draft.text.push_str(&text[..room]);
        room > 0
    }

    /// Forgets what the event with this mark ends: the text it has the whole of, or all texts of a run that is over.
    pub fn end(&mut self, run: RunId, mark: &Mark) {
        match mark {
            Mark::Writes(key) => {
                self.texts.retain(|draft| draft.run != run || *draft.key != **key);
                self.left.retain(|(of, left)| *of != run || **left != **key);
            }
            mark if mark.state().is_some_and(State::is_terminal) => {
                self.texts.retain(|draft| draft.run != run);
                self.left.retain(|(of, _)| *of != run);
                self.barred.retain(|of| *of != run);
            }
            _ => {}
        }
    }

    /// Whether there is nothing that an event could end.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.left.is_empty() && self.barred.is_empty()
    }

    /// Whether a text is left to its event: its beginning is not there.
    fn is_left(&self, run: RunId, key: &str) -> bool {
        self.barred.contains(&run) || self.left.iter().any(|(of, left)| *of == run && **left == *key)
    }

    fn leave(&mut self, run: RunId, key: &str) {
        if self.left.len() < MOST_LEFT {
            self.left.push((run, key.into()));
        } else {
            self.barred.push(run);
        }
    }

    /// The next piece that was not shown, of at most `most` bytes but at least one scalar. O(open texts).
    pub fn next(&self, shown: &mut Shown, most: usize) -> Option<Piece> {
        shown.places.retain(|place| self.texts.iter().any(|draft| draft.number == place.number));
        for draft in &self.texts {
            let at = shown.places.iter().position(|place| place.number == draft.number).unwrap_or_else(|| {
                shown.places.push(Place { number: draft.number, bytes: 0, scalars: 0 });
                shown.places.len() - 1
            });
            let place = &mut shown.places[at];
            let rest = &draft.text[place.bytes..];
            let Some(first) = rest.chars().next() else { continue };
            let text = &rest[..rest.floor_char_boundary(most.max(first.len_utf8()))];
            let piece = Piece { run: draft.run, key: draft.key.clone(), offset: place.scalars, text: text.to_owned() };
            place.bytes += text.len();
            place.scalars += text.chars().count();
            return Some(piece);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn all(drafts: &Drafts, shown: &mut Shown, most: usize) -> Vec<(String, usize, String)> {
        std::iter::from_fn(|| drafts.next(shown, most))
            .map(|piece| (piece.key.into(), piece.offset, piece.text))
            .collect()
    }

    #[test]
    fn a_newcomer_gets_the_text_so_far_and_who_was_there_what_is_new() {
        let (mut drafts, run) = (Drafts::default(), RunId::new());
        let mut first = Shown::default();
        assert!(drafts.write(run, "k", "Grüß"));
        assert_eq!(all(&drafts, &mut first, 1000), [("k".to_owned(), 0, "Grüß".to_owned())]);
        assert!(drafts.write(run, "k", " dich 🦀"));
        assert_eq!(all(&drafts, &mut first, 1000), [("k".to_owned(), 4, " dich 🦀".to_owned())]);
        assert_eq!(all(&drafts, &mut Shown::default(), 1000), [("k".to_owned(), 0, "Grüß dich 🦀".to_owned())]);
        assert!(all(&drafts, &mut first, 1000).is_empty());
    }

    #[test]
    fn what_ends_a_text_ends_that_one_and_the_end_of_a_run_ends_all_of_its_texts() {
        let (mut drafts, one, two) = (Drafts::default(), RunId::new(), RunId::new());
        for (run, key) in [(one, "a"), (one, "b"), (two, "a")] {
            drafts.write(run, key, "text");
        }
        drafts.end(one, &Mark::Writes("a".to_owned()));
        let left = |drafts: &Drafts| all(drafts, &mut Shown::default(), 9).len();
        assert_eq!(left(&drafts), 2);
        drafts.end(one, &Mark::Plain);
        assert_eq!(left(&drafts), 2);
        let over = crate::event::Status::new(State::Failed, "");
        drafts.end(one, &Mark::Status(Box::new(over)));
        assert_eq!(left(&drafts), 1);
    }

    #[test]
    fn a_text_that_is_too_long_stays_as_it_is_and_never_gets_a_gap() {
        let (mut drafts, run) = (Drafts::default(), RunId::new());
        assert!(drafts.write(run, "k", &"x".repeat(MOST_TEXT - 1)));
        assert!(!drafts.write(run, "k", "ö"), "half a character does not fit");
        assert!(!drafts.write(run, "k", "y"), "nor does anything behind what is missing");
        let mut shown = Shown::default();
        let pieces = all(&drafts, &mut shown, 16 * 1024);
        assert_eq!(pieces.iter().map(|(.., text)| text.len()).sum::<usize>(), MOST_TEXT - 1);
        assert!(pieces.iter().all(|(.., text)| !text.contains('y')));
    }

    #[test]
    fn a_text_whose_beginning_had_no_room_is_left_to_its_event_also_when_there_is_room_again() {
        let (mut drafts, run, other) = (Drafts::default(), RunId::new(), RunId::new());
        for n in 0..MOST_TEXTS {
            drafts.write(other, &n.to_string(), "text");
        }
        assert!(!drafts.write(run, "k", "its beginning, "));
        drafts.end(other, &Mark::Writes("0".to_owned()));
        assert!(!drafts.write(run, "k", "and what follows it"), "no piece behind a gap");
        drafts.end(run, &Mark::Writes("k".to_owned()));
        assert!(drafts.write(run, "k", "another text"));
        for n in 0..2 * MOST_LEFT {
            drafts.write(run, &format!("left {n}"), "its beginning, ");
        }
        assert_eq!(drafts.left.len(), MOST_LEFT, "what is remembered is bounded");
        drafts.end(run, &Mark::Writes("k".to_owned()));
        assert!(!drafts.write(run, &format!("left {}", 2 * MOST_LEFT - 1), "and what follows it"));
        let over = crate::event::Status::new(State::Succeeded, "");
        drafts.end(run, &Mark::Status(Box::new(over)));
        assert!(drafts.left.is_empty() && drafts.barred.is_empty());
    }

    #[test]
    fn one_text_too_many_is_not_shown_and_the_others_go_on() {
        let (mut drafts, run) = (Drafts::default(), RunId::new());
        for n in 0..MOST_TEXTS {
            assert!(drafts.write(run, &n.to_string(), "text"));
        }
        assert!(!drafts.write(run, "more", "text"));
        assert!(drafts.write(run, "0", "text"));
    }

    proptest! {
        #[test]
        fn whoever_looks_whenever_always_has_the_beginning_of_each_text(
            steps in prop::collection::vec((0..6_usize, 0..3_usize, "[aäß🦀 ]{0,5}", 1..9_usize), 1..80),
        ) {
            let (mut drafts, run) = (Drafts::default(), RunId::new());
            let mut whole: HashMap<String, String> = HashMap::new();
            let mut watchers: Vec<(Shown, HashMap<String, String>)> = (0..3).map(|_| Default::default()).collect();
            for (what, who, text, most) in steps {
                let key = format!("k{who}");
                match what {
                    0 => {
                        drafts.end(run, &Mark::Writes(key.clone()));
                        whole.remove(&key);
                        for (_, texts) in &mut watchers {
                            texts.remove(&key);
                        }
                    }
                    1 => watchers[who] = Default::default(),
                    2 | 3 => {
                        drafts.write(run, &key, &text);
                        whole.entry(key).or_default().push_str(&text);
                    }
                    _ => {
                        let (shown, texts) = &mut watchers[who];
                        if let Some(piece) = drafts.next(shown, most) {
                            let text = texts.entry(piece.key.to_string()).or_default();
                            prop_assert_eq!(text.chars().count(), piece.offset);
                            prop_assert!(!piece.text.is_empty());
                            text.push_str(&piece.text);
                            prop_assert!(whole[&*piece.key].starts_with(&*text));
                        }
                    }
                }
            }
            for (shown, texts) in &mut watchers {
                while let Some(piece) = drafts.next(shown, 3) {
                    texts.entry(piece.key.to_string()).or_default().push_str(&piece.text);
                }
                whole.retain(|_, text| !text.is_empty());
                prop_assert_eq!(&*texts, &whole);
            }
        }
    }
}
