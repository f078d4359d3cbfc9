//! What everybody should know: the store cannot be written, the server is going down, the clock is wrong. Told on
//! change, and to newcomers while it lasts.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::record::wire_time;

/// One thing that everybody should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// `store_not_writable`, `draining` or `clock_wrong`.
    pub code: &'static str,
    /// The same in words, with what to do.
    pub text: String,
    /// Since when.
    #[serde(with = "wire_time")]
    pub since: Timestamp,
    /// Whether it is over.
    pub over: bool,
}

/// The notices, each with the number of its last change.
#[derive(Debug, Default)]
pub struct Notices {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    change: u64,
    notices: Vec<(u64, Notice)>,
}

impl Notices {
    /// Says it; a notice of the same code is replaced.
    pub fn say(&self, code: &'static str, text: String, since: Timestamp) {
        self.put(Notice { code, text, since, over: false });
    }

    /// Says that it is over, if it was said.
    pub fn lift(&self, code: &str, text: &str) {
        let current = self.current().into_iter().find(|notice| notice.code == code);
        if let Some(notice) = current {
            self.put(Notice { over: true, text: text.to_owned(), ..notice });
        }
    }

    fn put(&self, notice: Notice) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.change += 1;
        let change = state.change;
        state.notices.retain(|(_, other)| other.code != notice.code);
        state.notices.push((change, notice));
    }

    /// What is in force.
    pub fn current(&self) -> Vec<Notice> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.notices.iter().filter(|(_, notice)| !notice.over).map(|(_, notice)| notice.clone()).collect()
    }

    /// The frames of what changed after `seen`, and the number of the last change. A newcomer (0) is not told of
    /// what is over.
    pub fn since(&self, seen: u64) -> (u64, Vec<String>) {
        #[derive(Serialize)]
        struct Frame<'a> {
            r#type: &'static str,
            #[serde(flatten)]
            notice: &'a Notice,
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.notices.iter().filter(|(change, notice)| *change > seen && !(seen == 0 && notice.over));
        let frames = due.filter_map(|(_, notice)| serde_json::to_string(&Frame { r#type: "notice", notice }).ok());
        (state.change, frames.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_told_once_and_its_end_only_to_those_who_may_have_seen_it() {
        let notices = Notices::default();
        notices.say("store_not_writable", "full".to_owned(), Timestamp::UNIX_EPOCH);
        let (seen, frames) = notices.since(0);
        assert!(frames[0].contains(r#""over":false"#));
        assert!(notices.since(seen).1.is_empty());
        notices.lift("store_not_writable", "again");
        assert!(notices.since(seen).1[0].contains(r#""over":true"#));
        assert!(notices.since(0).1.is_empty());
        assert!(notices.current().is_empty());
    }
}
