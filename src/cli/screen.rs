//! Where output goes: data to stdout, words to stderr, colours only to a terminal that wants them.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::failure::Result;

/// What stdout can take, found out once at the start.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Whether JSON is wanted.
    pub json: bool,
    /// Whether stdout is a terminal.
    pub terminal: bool,
    /// Whether colours may be used: a terminal, and `NO_COLOR` is unset.
    pub colour: bool,
}

impl Screen {
    /// The screen of this process.
    pub fn new(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, terminal, colour: terminal && !unwanted }
    }

    /// Writes one line of data.
    pub fn line(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// Writes one JSON document.
    pub fn document(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
        self.line(&self.safe_json(text))
    }

    /// Writes one line of JSON as it was received.
    pub fn json_line(&self, raw: &str) -> Result<()> {
        // Line ends outside of strings are the only ones that JSON allows.
        self.line(&self.safe_json(raw.replace(['\n', '\r'], " ")))
    }

    /// A terminal may act on characters that JSON need not escape; as escapes they are the same JSON.
    fn safe_json(&self, text: String) -> String {
        let acts = |c: char| matches!(c, '\x7f'..='\u{9f}');
        if !self.terminal || !text.contains(acts) {
            return text;
        }
        let mut safe = String::with_capacity(text.len() + 16);
        for c in text.chars() {
            if acts(c) { safe.push_str(&format!("\\u{:04x}", c as u32)) } else { safe.push(c) }
        }
        safe
    }

    /// Says something to the person, on stderr. Nobody there to hear it is no failure.
    pub fn say(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}
