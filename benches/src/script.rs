//! What is published and what must arrive: event `n` of a run has a text of its own, so that every receipt can be
//! checked to the byte.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The bytes of one event, as it stands in the log and in frames: the whole JSON object. The number in it varies by
/// a few digits; this is what it is at six.
pub const EVENT_BYTES: usize = 400;

/// Texts are cut out of this many bytes.
const POOL: usize = 1 << 16;
/// The length of a time in an event.
const TIME: usize = "2026-11-20T20:41:07.123456Z".len();
const KIND: &str = r#"","kind":"thought","data":{"text":""#;

/// The events of one run.
pub struct Script {
    /// The id of the run.
    pub run: String,
    /// The number of the last event before event 1 of the run's producer.
    base: u64,
    before_seq: String,
    text_bytes: usize,
    pool: Vec<u8>,
}

impl Script {
    /// The script of a run as the server has just opened it.
    ///
    /// # Errors
    /// When the answer tells of no run.
    pub fn new(task: &str, opened: &Value) -> Result<Self> {
        let run = opened["run"]["id"].as_str().context("no run was opened")?.to_owned();
        let base = opened["run"]["last_seq"].as_u64().context("the run has no last event")?;
        let before_seq = format!(r#"{{"task":"{task}","run":"{run}","seq":"#);
        let around = before_seq.len() + 6 + r#","at":""#.len() + TIME + KIND.len() + r#""}}"#.len();
        // Letters and blanks, the same in every run, that repeat too seldom to matter.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let letters = b"abcdefghijklmnopqrstuvwxyz012345";
        let pool = (0..POOL)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                letters[(state >> 59) as usize]
            })
            .collect();
        Ok(Self { run, base, before_seq, text_bytes: EVENT_BYTES - around, pool })
    }

    /// The number that event `n` has in the log.
    pub fn seq(&self, n: u64) -> u64 {
        self.base + n
    }

    fn text(&self, n: u64) -> &[u8] {
        let start = (n.wrapping_mul(7919) % (POOL - self.text_bytes) as u64) as usize;
        &self.pool[start..start + self.text_bytes]
    }

    /// Adds the line that publishes event `n`.
    pub fn write_line(&self, n: u64, out: &mut Vec<u8>) {
        let _ = write!(out, r#"{{"n":{n},"kind":"thought","data":{{"text":""#);
        out.extend_from_slice(self.text(n));
        out.extend_from_slice(b"\"}}\n");
    }

    /// Adds the line that ends the run, as event `n`.
    pub fn write_end(&self, n: u64, out: &mut Vec<u8>) {
        let _ = writeln!(out, r#"{{"n":{n},"kind":"status","data":{{"state":"succeeded","text":"done"}}}}"#);
    }

    /// Reads the event at the beginning of `items`, which must be number `seq`; gives its length and, if it is the
    /// producer's, its `n`. Every byte but those of its time is compared.
    ///
    /// # Errors
    /// When it is another event, or not as it was published.
    pub fn check(&self, items: &[u8], seq: u64) -> Result<(usize, Option<u64>)> {
        let Some(rest) = items.strip_prefix(self.before_seq.as_bytes()) else { return other(items, seq) };
        let (found, digits) = number(rest);
        ensure!(found == seq, "event {found} came where {seq} was due");
        let rest = &rest[digits..];
        let Some(n) = seq.checked_sub(self.base).filter(|n| *n > 0) else { return other(items, seq) };
        let mut at = r#","at":""#.len() + TIME;
        let text = self.text(n);
        if rest.get(at..at + KIND.len()) != Some(KIND.as_bytes()) {
            return other(items, seq);
        }
        at += KIND.len();
        ensure!(rest.get(at..at + text.len()) == Some(text), "event {seq} has another text than was published");
        at += text.len();
        ensure!(rest.get(at..at + 3) == Some(br#""}}"#), "event {seq} has another end than was published");
        Ok((self.before_seq.len() + digits + at + 3, Some(n)))
    }
}

/// An event that is not the producer's: a status.
fn other(items: &[u8], seq: u64) -> Result<(usize, Option<u64>)> {
    let mut events = serde_json::Deserializer::from_slice(items).into_iter::<Value>();
    match events.next() {
        Some(Ok(event)) if event["kind"] == "status" && event["seq"] == seq => Ok((events.byte_offset(), None)),
        other => bail!("something else came where event {seq} was due: {other:?}"),
    }
}

/// The number at the beginning of a text, and how many digits it has.
pub fn number(text: &[u8]) -> (u64, usize) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (text[..digits].iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')), digits)
}
