//! Secrets: read from where they are kept, and taken out of everything that is written or said.
//!
//! Knows nothing of events: it works on text, JSON and bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::task::definition::SecretSource;

/// What stands where a secret was.
pub const REDACTED: &str = "[redacted]";

/// The shortest value of a secret, in bytes: shorter ones would be found in half of all words.
pub const MIN_SECRET_BYTES: usize = 4;

/// The longest value of a secret, in bytes: it goes into an environment, and as much output may be held back.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// The shortest line of a value with several lines that is looked for by itself, in bytes.
const MIN_LINE_BYTES: usize = 12;

/// The shortest piece of base64 that is looked for inside a longer piece, in characters.
const MIN_BASE64_PIECE: usize = 8;

/// Reads the secrets of a task.
///
/// # Errors
/// Names the secret and where it should come from, never its value: a variable that is not set, a file that cannot
/// be read or is no UTF-8, a value outside of 4 bytes to 64 KiB or with a NUL, a name that is no variable's or is
/// one by which the environment of the server would be changed.
pub fn resolve(sources: &BTreeMap<String, SecretSource>) -> Result<BTreeMap<String, String>> {
    let resolved = sources.iter().map(|(name, source)| {
        check_name(name)?;
        Ok((name.clone(), value(name, source)?))
    });
    resolved.collect()
}

/// Reads one secret, which need not become a variable.
///
/// # Errors
/// As [`resolve`], but for the name.
pub fn value(name: &str, source: &SecretSource) -> Result<String> {
    let value = read(source).with_context(|| format!("secret {name}"))?;
    if value.len() < MIN_SECRET_BYTES {
        bail!(
            "secret {name}: its value has fewer than {MIN_SECRET_BYTES} bytes, which cannot be told from \
                 ordinary text; use a longer one"
        );
    }
    if value.len() > MAX_SECRET_BYTES {
        bail!("secret {name}: its value has more than {MAX_SECRET_BYTES} bytes");
    }
    if value.contains('\0') {
        bail!("secret {name}: its value holds a NUL byte, which no variable can hold");
    }
    Ok(value)
}

fn read(source: &SecretSource) -> Result<String> {
    match source {
        SecretSource::Env(variable) => match std::env::var(variable) {
            Ok(value) => Ok(value),
            Err(std::env::VarError::NotPresent) => {
                bail!("the variable {variable} is not set in the server's environment")
            }
            Err(std::env::VarError::NotUnicode(_)) => bail!("the variable {variable} is not UTF-8"),
        },
        SecretSource::File(path) => {
            let place = path.display();
            let failed = || format!("cannot read {place}");
            // A pipe would be waited for, and some devices never end.
            if !std::fs::metadata(path).with_context(failed)?.is_file() {
                bail!("{place} is not a file");
            }
            let bytes = std::fs::read(path).with_context(failed)?;
            // The error of `from_utf8` would carry the bytes.
            let Ok(mut value) = String::from_utf8(bytes) else { bail!("{place} is not UTF-8") };
            if value.ends_with('\n') {
                value.pop();
            }
            Ok(value)
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        bail!("secret {name:?}: not the name of a variable (letters, digits and '_')");
    }
    if name == "PATH" || name.starts_with("LD_") || name.starts_with("REJOIN_") {
        bail!("secret {name}: this variable stays the server's; choose another name");
    }
    Ok(())
}

/// Takes the values of secrets, and what they look like in base64, percent-encoding and JSON, out of text. Cheap to
/// clone; shows nothing of them.
#[derive(Clone)]
pub struct Redactor {
    patterns: Option<Arc<Patterns>>,
}

struct Patterns {
    search: AhoCorasick,
    list: Vec<Vec<u8>>,
    /// The length of the longest, in bytes.
    longest: usize,
    /// Which bytes begin one.
    begins: [bool; 256],
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.patterns.is_some() { "Redactor(..)" } else { "Redactor(none)" })
    }
}

impl Redactor {
    /// Takes nothing out.
    pub const fn none() -> Self {
        Self { patterns: None }
    }

    /// Takes out these values, and each line of a value that has several. Values that are empty are left out.
    ///
    /// # Errors
    /// Only when the values are too many or too long to search for, many megabytes together.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut all = BTreeSet::new();
        for value in values.into_iter().filter(|value| !value.is_empty()) {
            all.extend(forms(value));
            let lines = value.lines().map(str::trim);
            for line in lines.filter(|line| line.len() >= MIN_LINE_BYTES && *line != value) {
                all.extend(forms(line));
            }
        }
        if all.is_empty() {
            return Ok(Self::none());
        }
        let list: Vec<Vec<u8>> = all.into_iter().collect();
        // The longest of those that begin at a place: of a secret that begins with another nothing remains.
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&list)
            .map_err(|_| anyhow::anyhow!("the secrets are too long to look for"))?;
        let longest = list.iter().map(Vec::len).max().unwrap_or(0);
        let mut begins = [false; 256];
        for first in list.iter().filter_map(|pattern| pattern.first()) {
            begins[usize::from(*first)] = true;
        }
        Ok(Self { patterns: Some(Arc::new(Patterns { search, list, longest, begins })) })
    }

    /// The text without secrets.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match &self.patterns {
            Some(patterns) if patterns.search.is_match(text) => {
                let marks = vec![REDACTED; patterns.list.len()];
                Cow::Owned(patterns.search.replace_all(text, &marks))
            }
            _ => Cow::Borrowed(text),
        }
    }

    /// Takes secrets out of every string of a JSON value, of the names of its members, and out of numbers.
    pub fn json(&self, value: &mut serde_json::Value) {
        use serde_json::Value;
        if self.patterns.is_none() {
            return;
        }
        match value {
            Value::String(text) => {
                if let Cow::Owned(clean) = self.text(text) {
                    *text = clean;
                }
            }
            Value::Number(number) => {
                if let Cow::Owned(clean) = self.text(&number.to_string()) {
                    *value = Value::String(clean);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(members) => {
                for (name, mut member) in std::mem::take(members) {
                    self.json(&mut member);
                    members.insert(self.text(&name).into_owned(), member);
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// For bytes that come in pieces: a secret that is split between two of them is taken out too.
    pub fn stream(&self) -> RedactorStream {
        RedactorStream { patterns: self.patterns.clone(), held: Vec::new() }
    }
}

/// Takes secrets out of bytes that come in pieces. Holds back what may be the beginning of one: at most one byte
/// less than the longest form of a secret.
pub struct RedactorStream {
    patterns: Option<Arc<Patterns>>,
    held: Vec<u8>,
}

impl fmt::Debug for RedactorStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedactorStream").finish_non_exhaustive()
    }
}

impl RedactorStream {
    /// Takes a piece, gives what is certain.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let Some(patterns) = &self.patterns else { return piece.to_vec() };
        self.held.extend_from_slice(piece);
        let mut out = Vec::with_capacity(self.held.len());
        let mut at = 0;
        loop {
            // A place is decided once no longer form can still begin there. Everything before `open` is decided.
            let open = patterns.open_from(&self.held, at);
            match patterns.search.find(&self.held[at..]) {
                Some(found) if at + found.start() < open => {
                    out.extend_from_slice(&self.held[at..at + found.start()]);
                    out.extend_from_slice(REDACTED.as_bytes());
                    at += found.end();
                }
                _ => {
                    out.extend_from_slice(&self.held[at..open]);
                    self.held.drain(..open);
                    return out;
                }
            }
        }
    }

    /// Gives what was held back, when no more will come.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        match &self.patterns {
            Some(patterns) => {
                let marks = vec![REDACTED; patterns.list.len()];
                patterns.search.replace_all_bytes(&held, &marks)
            }
            None => held,
        }
    }
}

impl Patterns {
    /// The first place from `from` on where all that follows is the beginning of a form and not the whole of it.
    fn open_from(&self, bytes: &[u8], from: usize) -> usize {
        let first = from.max((bytes.len() + 1).saturating_sub(self.longest));
        (first..bytes.len())
            .filter(|place| self.begins[usize::from(bytes[*place])])
            .find(|place| {
                let rest = &bytes[*place..];
                self.list.iter().any(|form| form.len() > rest.len() && form.starts_with(rest))
            })
            .unwrap_or(bytes.len())
    }
}

/// A value and what becomes of it on its usual ways into a log.
fn forms(value: &str) -> BTreeSet<Vec<u8>> {
    let mut forms = BTreeSet::from([value.as_bytes().to_vec()]);
    for engine in [&STANDARD, &URL_SAFE] {
        forms.insert(engine.encode(value).into_bytes());
        // Inside a longer text ("user:secret") the value begins at any of three places of a group. Only the
        // characters that are of the value alone can be looked for.
        for offset in 0..3 {
            let mut shifted = vec![0; offset];
            shifted.extend_from_slice(value.as_bytes());
            let encoded = engine.encode(&shifted).into_bytes();
            let (from, to) = ((offset * 8).div_ceil(6), shifted.len() * 8 / 6);
            if to >= from + MIN_BASE64_PIECE {
                forms.insert(encoded[from..to].to_vec());
            }
        }
    }
    // Not all agree on what needs no escape: beside the strict way those that leave a path whole (Python, shells),
    // those that leave some marks (JavaScript), and those that leave what a path may hold.
    for marks in ["", "/", "!'()*", "/!'()*", "/!$&'()*+,;=:@"] {
        let kept =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || marks.as_bytes().contains(&byte);
        let escaped = |escape: fn(u8) -> String| -> String {
            value.bytes().map(|byte| if kept(byte) { char::from(byte).to_string() } else { escape(byte) }).collect()
        };
        let upper = escaped(|byte| format!("%{byte:02X}"));
        forms.insert(escaped(|byte| format!("%{byte:02x}")).into_bytes());
        forms.insert(upper.replace("%20", "+").into_bytes());
        forms.insert(upper.into_bytes());
    }
    if let Ok(json) = serde_json::to_string(value) {
        forms.insert(json.trim_matches('"').as_bytes().to_vec());
    }
    forms.retain(|form| !form.is_empty());
    forms
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redactor(values: &[&str]) -> Redactor {
        Redactor::new(values.iter().copied()).unwrap()
    }

    #[test]
    fn a_value_is_taken_out_in_every_form_it_travels_in() {
        let redactor = redactor(&["pa ss/wörd+1"]);
        let basic = STANDARD.encode("user:pa ss/wörd+1");
        for seen in [
            "pa ss/wörd+1".to_owned(),
            STANDARD.encode("pa ss/wörd+1"),
            URL_SAFE.encode("pa ss/wörd+1"),
            "pa%20ss%2Fw%C3%B6rd%2B1".to_owned(),
            "pa%20ss%2fw%c3%b6rd%2b1".to_owned(),
            "pa+ss%2Fw%C3%B6rd%2B1".to_owned(),
            "pa%20ss/w%C3%B6rd%2B1".to_owned(),
            "pa%20ss/w%C3%B6rd+1".to_owned(),
        ] {
            assert_eq!(redactor.text(&format!("<{seen}>")), "<[redacted]>", "{seen}");
        }
        assert!(redactor.text(&basic).contains(REDACTED), "{basic}");
    }

    #[test]
    fn a_secret_that_begins_with_another_leaves_nothing() {
        assert_eq!(redactor(&["abcd", "abcdefgh"]).text("x abcdefgh y"), "x [redacted] y");
    }

    #[test]
    fn json_is_cleaned_in_names_values_and_numbers() {
        let mut value = serde_json::json!({"k-hunter22": ["hunter22", 1, {"n": 90_210_555}]});
        redactor(&["hunter22", "90210555"]).json(&mut value);
        let clean = serde_json::json!({"k-[redacted]": ["[redacted]", 1, {"n": "[redacted]"}]});
        assert_eq!(value, clean);
    }

    #[test]
    fn nothing_of_a_value_is_shown_by_debug() {
        let shown = format!("{:?} {:?}", redactor(&["hunter22"]), redactor(&["hunter22"]).stream());
        assert!(!shown.contains("hunter"));
    }

    #[test]
    fn a_secret_that_is_missing_or_too_short_is_refused_by_name_and_without_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        std::fs::write(&short, "abc\n").unwrap();
        let of = |source| BTreeMap::from([("API_KEY".to_owned(), source)]);
        let error = resolve(&of(SecretSource::File(short))).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("API_KEY") && !error.contains("abc"), "{error}");
        let error = resolve(&of(SecretSource::Env("REJOIN_TEST_NOT_SET".into()))).unwrap_err();
        assert!(format!("{error:#}").contains("REJOIN_TEST_NOT_SET"));
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let device = BTreeMap::from([("KEY".to_owned(), SecretSource::File("/dev/zero".into()))]);
        assert!(format!("{:#}", resolve(&device).unwrap_err()).contains("/dev/zero is not a file"));
    }

    #[test]
    fn the_last_newline_of_a_secret_file_is_not_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "hunter22\n").unwrap();
        let all = resolve(&BTreeMap::from([("KEY".to_owned(), SecretSource::File(path))])).unwrap();
        assert_eq!(all["KEY"], "hunter22");
    }

    proptest! {
        #[test]
        fn whatever_the_pieces_the_result_is_that_of_the_whole(
            // A small alphabet, so that forms overlap, nest and break off.
            values in prop::collection::vec("[ab]{4,7}", 1..4),
            text in "[abc]{0,60}",
            cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            let redactor = Redactor::new(values.iter().map(String::as_str)).unwrap();
            let longest = redactor.patterns.as_ref().unwrap().longest;
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let mut stream = redactor.stream();
            let (mut out, mut at) = (Vec::new(), 0);
            for cut in cuts {
                out.extend(stream.push(&text.as_bytes()[at..cut]));
                prop_assert!(stream.held.len() < longest);
                at = cut;
            }
            out.extend(stream.finish());
            let whole = redactor.text(&text);
            prop_assert_eq!(String::from_utf8(out).unwrap(), whole);
        }
    }
}
