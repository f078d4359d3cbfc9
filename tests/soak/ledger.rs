//! What the logs had and what was seen of them: every event that a watcher got is compared, by log, number and hash of
//! its text, with what a separate reader of the file found.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The first bytes of the SHA-256 of an event's text.
pub fn digest(text: &str) -> u64 {
    let bytes = Sha256::digest(text.as_bytes());
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

/// A log: the task and the gen.
pub type Log = (String, String);

/// So many of the things that are wrong are told; all are counted.
const TOLD: usize = 40;

#[derive(Default)]
struct Page {
    /// By number - 1. A log that was first read after its beginning had gone has holes there.
    saved: Vec<Option<u64>>,
    /// Seen by a watcher before the file was read that far.
    early: BTreeMap<u64, u64>,
}

/// Everything that was saved and seen.
#[derive(Default)]
pub struct Ledger {
    pages: Mutex<HashMap<Log, Page>>,
    /// The last line of each run's producer that is saved, and the log that it is in.
    lines: Mutex<HashMap<String, (Log, u64)>>,
    wrong: Mutex<(u64, Vec<String>)>,
}

/// What of an event says which line of its producer it was.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    run: Option<&'a str>,
    #[serde(borrow, default)]
    data: Option<Data<'a>>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
}

impl Ledger {
    /// Something that must not happen, in words.
    pub fn wrong(&self, words: impl Into<String>) {
        let mut wrong = self.wrong.lock().unwrap();
        wrong.0 += 1;
        if wrong.1.len() < TOLD {
            let words = words.into();
            println!("WRONG: {words}");
            wrong.1.push(words);
        }
    }

    /// How much was wrong, and the first of it in words.
    pub fn verdict(&self) -> (u64, Vec<String>) {
        self.wrong.lock().unwrap().clone()
    }

    /// A watcher got this event of a log.
    pub fn seen(&self, log: &Log, seq: u64, digest: u64, by: &str) {
        let mut pages = self.pages.lock().unwrap();
        if !pages.contains_key(log) {
            pages.insert(log.clone(), Page::default());
        }
        let page = pages.get_mut(log).unwrap();
        let same = match page.saved.get(seq as usize - 1).copied().flatten() {
            Some(saved) => saved == digest,
            None => *page.early.entry(seq).or_insert(digest) == digest,
        };
        drop(pages);
        if !same {
            self.wrong(format!("{by} got another event {seq} of {log:?} than others, or than the file has"));
        }
    }

    /// The file has this event of a log.
    pub fn saved(&self, log: &Log, seq: u64, text: &str) {
        let digest = digest(text);
        let mut pages = self.pages.lock().unwrap();
        let page = pages.entry(log.clone()).or_default();
        let at = seq as usize - 1;
        if page.saved.len() <= at {
            page.saved.resize(at + 1, None);
        }
        let before = page.saved[at].replace(digest);
        let early = page.early.remove(&seq);
        drop(pages);
        if [before, early].into_iter().flatten().any(|other| other != digest) {
            self.wrong(format!("event {seq} of {log:?} in the file is not the one that was seen before"));
        }
        if before.is_none() {
            self.line(log, text);
        }
    }

    /// A producer's lines begin with their number: each is saved once, in order, and none is missing.
    fn line(&self, log: &Log, text: &str) {
        let Ok(Said { run: Some(run), data: Some(Data { text: Some(text) }) }) = serde_json::from_str(text) else {
            return;
        };
        let Some(n) = text.strip_prefix("line ").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok()) else {
            return;
        };
        let mut lines = self.lines.lock().unwrap();
        let (_, last) = lines.entry(run.to_owned()).or_insert_with(|| (log.clone(), 0));
        let follows = n == *last + 1;
        let words = format!("line {n} of run {run} is saved behind line {last}");
        *last = n;
        drop(lines);
        if !follows {
            self.wrong(words);
        }
    }

    /// The last line of a run's producer that is saved, and the log that it is in.
    pub fn last_line(&self, run: &str) -> Option<(Log, u64)> {
        self.lines.lock().unwrap().get(run).cloned()
    }

    /// The logs of a task that were read or seen.
    pub fn logs_of(&self, task: &str) -> Vec<Log> {
        self.pages.lock().unwrap().keys().filter(|log| log.0 == task).cloned().collect()
    }

    /// How far the file was read.
    pub fn read_to(&self, log: &Log) -> u64 {
        self.pages.lock().unwrap().get(log).map_or(0, |page| page.saved.len() as u64)
    }

    /// How many events were found in the file, and what watchers have seen that never was found there.
    pub fn totals(&self) -> (u64, Vec<(Log, u64)>) {
        let pages = self.pages.lock().unwrap();
        let saved = pages.values().map(|page| page.saved.iter().flatten().count() as u64).sum();
        let early = pages.iter().flat_map(|(log, page)| page.early.keys().map(|seq| (log.clone(), *seq)));
        (saved, early.collect())
    }
}
