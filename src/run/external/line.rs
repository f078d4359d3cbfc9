//! A line of a producer: read once with everything borrowed, and checked so that whoever reads the log later can read
//! what was kept.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{State, Status};

/// The largest integer that every client reads as it was written.
const MAX_INTEGER: u64 = (1 << 53) - 1;
/// How deep data may be nested: readers of frames have limits of their own, and stand a few levels above.
const MAX_DEPTH: u8 = 96;
/// The longest name of a kind, in characters.
const MAX_KIND: usize = 64;
/// The longest name of a call, in bytes: it stands in every event of the call.
const MAX_CALL: usize = 256;

/// What a producer says in one line.
#[derive(Debug)]
pub struct Line<'a> {
    /// The producer's own number.
    pub n: u64,
    /// What it is about.
    pub said: Said<'a>,
}

/// What a line is about.
#[derive(Debug)]
pub enum Said<'a> {
    /// Something happened.
    Event {
        /// Its kind.
        kind: Cow<'a, str>,
        /// Its data, as it came.
        data: &'a RawValue,
        /// When, where the producer says so.
        at: Option<Timestamp>,
        /// What it means for the run.
        meaning: Meaning<'a>,
    },
    /// The producer no longer has what it said from the last number that was taken to this one.
    Gap,
}

/// What an event means for its run.
#[derive(Debug)]
pub enum Meaning<'a> {
    /// Nothing.
    Plain,
    /// A call begins.
    Opens(Cow<'a, str>),
    /// A call is done.
    Closes(Cow<'a, str>),
    /// The run is over.
    Ends(Box<Status>),
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it, in words.
pub fn read(text: &[u8]) -> Result<Line<'_>, String> {
    let text =
        std::str::from_utf8(text).map_err(|error| format!("is not UTF-8 from byte {} on", error.valid_up_to()))?;
    if !text.trim_start().starts_with('{') {
        return Err("is not a JSON object".to_owned());
    }
    let Raw { n, kind, data, at, gap } = serde_json::from_str(text).map_err(|error| in_words(&error))?;
    if n == 0 || n > MAX_INTEGER {
        return Err(format!("n is {n}: numbers begin at 1 and end at 2^53-1"));
    }
    if gap == Some(true) {
        return Ok(Line { n, said: Said::Gap });
    }
    let Some(Text(kind)) = kind else { return Err("has no kind".to_owned()) };
    let Some(data) = data else { return Err("has no data".to_owned()) };
    if kind.is_empty() || kind.chars().count() > MAX_KIND || kind.chars().any(char::is_control) {
        return Err(format!("kind must have 1 to {MAX_KIND} characters, none of them a control character"));
    }
    let at = match at {
        Some(Text(at)) => Some(at.parse().map_err(|_| "at is not a time like 2026-11-20T20:41:07.123456Z".to_owned())?),
        None => None,
    };
    let meaning = checked(&kind, data.get())?;
    Ok(Line { n, said: Said::Event { kind, data, at, meaning } })
}

#[derive(Deserialize)]
struct Raw<'a> {
    n: u64,
    #[serde(borrow, default)]
    kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    at: Option<Text<'a>>,
    #[serde(default)]
    gap: Option<bool>,
}

/// Text that is borrowed where nothing in it is escaped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The words of the reader, without its own count of lines.
fn in_words(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", " at column")
}

/// What a member of known data must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Text,
    /// Text that is not empty.
    Name,
    Call,
    OneOf(&'static [&'static str]),
    Bool,
    Integer,
    Anything,
}

/// A member of known data: its name, what it must be, and whether it must be there.
type Member = (&'static str, Rule, bool);

const CALL: Member = ("call", Rule::Call, true);
const TOOL: Member = ("tool", Rule::Name, true);
const TEXT: Member = ("text", Rule::Text, true);

/// The members of the kinds that this version knows, `status` aside.
fn members_of(kind: &str) -> &'static [Member] {
    match kind {
        "thought" => &[TEXT],
        "message" => &[("role", Rule::OneOf(&["user", "agent", "system"]), true), TEXT],
        "tool_use" => &[CALL, TOOL, ("input", Rule::Anything, true)],
        "tool_output" => &[CALL, ("stream", Rule::OneOf(&["stdout", "stderr"]), true), TEXT],
        "tool_result" => &[
            CALL,
            TOOL,
            ("ok", Rule::Bool, true),
            ("output", Rule::Text, false),
            ("exit", Rule::Integer, false),
            ("duration_ms", Rule::Integer, false),
        ],
        _ => &[],
    }
}

/// Goes through all of the data, and says what it means for the run.
fn checked<'a>(kind: &str, data: &'a str) -> Result<Meaning<'a>, String> {
    let members = members_of(kind);
    let mut reader = serde_json::Deserializer::from_str(data);
    let call = reader.deserialize_map(Data { kind, members }).map_err(|error| in_words(&error))?;
    match (kind, call) {
        ("tool_use", Some(call)) => Ok(Meaning::Opens(call)),
        ("tool_result", Some(call)) => Ok(Meaning::Closes(call)),
        ("status", _) => status(data),
        _ => Ok(Meaning::Plain),
    }
}

/// A status says where the run is, or that it is over. What only the server knows is the server's to say.
fn status<'a>(data: &str) -> Result<Meaning<'a>, String> {
    let status: Status = serde_json::from_str(data).map_err(|error| format!("status: {}", in_words(&error)))?;
    if let Some(name) = of_the_server(&status) {
        return Err(format!("status: {name} is the server's to say"));
    }
    if status.duration_ms.is_some_and(|ms| ms > MAX_INTEGER) {
        return Err("status: duration_ms must be at most 2^53-1".to_owned());
    }
    match status.state {
        State::Progress | State::Waiting => Ok(Meaning::Plain),
        State::Succeeded | State::Failed | State::Cancelled => Ok(Meaning::Ends(Box::new(status))),
        _ => {
            Err("status: state is one of progress, waiting, succeeded, failed, cancelled; the others are the server's \
                  to say"
                .to_owned())
        }
    }
}

/// What a status says that only the server knows.
fn of_the_server(status: &Status) -> Option<&'static str> {
    let said = [
        ("stage", status.stage.is_some()),
        ("attempt", status.attempt.is_some()),
        ("retry_of", status.retry_of.is_some()),
        ("trigger", status.trigger.is_some()),
        ("scheduled_for", status.scheduled_for.is_some()),
        ("not_before", status.not_before.is_some()),
        ("params", status.params.is_some()),
        ("count", status.count.is_some()),
    ];
    let other = ["agent", "definition", "gap"].map(|name| (name, status.other.contains_key(name)));
    said.into_iter().chain(other).find_map(|(name, said)| said.then_some(name))
}

/// Reads the data of an event: an object whose known members are as they must be. Gives the call it names.
struct Data<'k> {
    kind: &'k str,
    members: &'static [Member],
}

impl Data<'_> {
    fn wrong<E: Error>(&self, (name, rule, _): Member) -> E {
        let must = match rule {
            Rule::Text => "must be text".to_owned(),
            Rule::Name => "must be text that is not empty".to_owned(),
            Rule::Call => format!("must be text of 1 to {MAX_CALL} bytes"),
            Rule::OneOf(words) => format!("must be one of {}", words.join(", ")),
            Rule::Bool => "must be true or false".to_owned(),
            Rule::Integer => "must be a whole number that is within 2^53-1".to_owned(),
            Rule::Anything => "must be there".to_owned(),
        };
        E::custom(format_args!("{} of a {} {must}", name, self.kind))
    }
}

impl<'de> Visitor<'de> for Data<'_> {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("data that is an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut call = None;
        let mut seen = 0_u32;
        while let Some(Text(name)) = map.next_key()? {
            let Some(index) = self.members.iter().position(|(known, ..)| *known == name) else {
                map.next_value_seed(Value { depth: 1 })?;
                continue;
            };
            let member @ (_, rule, needed) = self.members[index];
            if seen & (1 << index) != 0 {
                return Err(A::Error::custom(format_args!("{name} stands there twice")));
            }
            let good = match rule {
                Rule::Call | Rule::OneOf(_) | Rule::Name => {
                    let text = map.next_value::<Option<Text<'de>>>()?.map(|Text(text)| text);
                    let good = text.as_deref().is_some_and(|text| match rule {
                        Rule::OneOf(words) => words.contains(&text),
                        Rule::Call => !text.is_empty() && text.len() <= MAX_CALL,
                        _ => !text.is_empty(),
                    });
                    if rule == Rule::Call {
                        call = text;
                    }
                    good
                }
                _ => {
                    let shape = map.next_value_seed(Value { depth: 1 })?;
                    match (rule, shape) {
                        (_, Shape::Null) if !needed => true,
                        (Rule::Anything, _) => true,
                        (Rule::Text, shape) => shape == Shape::Text,
                        (Rule::Bool, shape) => shape == Shape::Bool,
                        (Rule::Integer, shape) => shape == Shape::Integer,
                        _ => false,
                    }
                }
            };
            if !good {
                return Err(self.wrong(member));
            }
            seen |= 1 << index;
        }
        match self.members.iter().enumerate().find(|(index, (.., needed))| *needed && seen & (1 << index) == 0) {
            Some((_, missing)) => Err(self.wrong(*missing)),
            None => Ok(call),
        }
    }
}

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Null,
    Bool,
    /// One that every client reads as it was written.
    Integer,
    Number,
    Text,
    Nested,
}

/// Goes through a value and keeps nothing. What other readers would stumble over is found here: half of a pair of
/// surrogates, a number beyond all bounds, a thousand brackets.
struct Value {
    depth: u8,
}

impl Value {
    fn deeper<E: Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!("data is nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Shape, E> {
        Ok(if number.unsigned_abs() > MAX_INTEGER { Shape::Number } else { Shape::Integer })
    }

    fn visit_u64<E>(self, number: u64) -> Result<Shape, E> {
        Ok(if number > MAX_INTEGER { Shape::Number } else { Shape::Integer })
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        while seq.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(Shape::Nested)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        while map.next_key::<Text<'de>>()?.is_some() {
            map.next_value_seed(self.deeper()?)?;
        }
        Ok(Shape::Nested)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        match read(text.as_bytes()) {
            Err(why) => why,
            Ok(line) => panic!("taken: {line:?}"),
        }
    }

    #[test]
    fn a_line_is_read_without_a_copy() {
        let line = read(br#"{"n":3,"kind":"thought","data":{"text":"plain"},"at":null,"more":[1]}"#).unwrap();
        assert_eq!(line.n, 3);
        let Said::Event { kind, data, at: None, meaning: Meaning::Plain } = line.said else { panic!("{line:?}") };
        assert!(matches!(kind, Cow::Borrowed("thought")));
        assert_eq!(data.get(), r#"{"text":"plain"}"#);
    }

    #[test]
    fn calls_and_ends_are_seen() {
        let said = |text: &'static str| match read(text.as_bytes()).unwrap().said {
            Said::Event { meaning, .. } => meaning,
            Said::Gap => panic!("a gap"),
        };
        let opens = said(r#"{"n":1,"kind":"tool_use","data":{"call":"c1","tool":"shell","input":{}}}"#);
        assert!(matches!(opens, Meaning::Opens(call) if call == "c1"));
        let closes = said(r#"{"n":1,"kind":"tool_result","data":{"call":"c1","tool":"shell","ok":true,"exit":null}}"#);
        assert!(matches!(closes, Meaning::Closes(call) if call == "c1"));
        let ends = said(r#"{"n":1,"kind":"status","data":{"state":"failed","reason":"why"}}"#);
        assert!(matches!(ends, Meaning::Ends(status) if status.reason.as_deref() == Some("why")));
        assert!(matches!(said(r#"{"n":1,"kind":"status","data":{"state":"progress","text":null}}"#), Meaning::Plain));
        assert!(matches!(read(br#"{"n":9,"gap":true}"#).unwrap().said, Said::Gap));
    }

    #[test]
    fn what_a_known_kind_needs_is_asked_for() {
        for (data, why) in [
            (r#""kind":"thought","data":{}"#, "text of a thought must be text"),
            (r#""kind":"thought","data":{"text":7}"#, "text of a thought must be text"),
            (r#""kind":"thought","data":{"text":"a","text":"b"}"#, "text stands there twice"),
            (r#""kind":"message","data":{"role":"god","text":""}"#, "role of a message must be one of"),
            (r#""kind":"tool_use","data":{"call":"","tool":"t","input":1}"#, "call of a tool_use must be"),
            (r#""kind":"tool_use","data":{"call":null,"tool":"t","input":1}"#, "call of a tool_use must be"),
            (r#""kind":"tool_use","data":{"call":"c","tool":"t"}"#, "input of a tool_use must be there"),
            (r#""kind":"tool_output","data":{"call":"c","stream":"x","text":""}"#, "stream of a tool_output"),
            (r#""kind":"tool_result","data":{"call":"c","tool":"t","ok":1}"#, "ok of a tool_result must be true"),
            (r#""kind":"status","data":{"state":"started"}"#, "the server's to say"),
            (r#""kind":"status","data":{"state":"timed_out"}"#, "the server's to say"),
            (r#""kind":"status","data":{"state":"skipped"}"#, "the server's to say"),
            (r#""kind":"status","data":{"state":"progress","stage":"SIGKILL"}"#, "stage"),
            (r#""kind":"status","data":{"state":"progress","attempt":2}"#, "attempt is the server's to say"),
            (r#""kind":"status","data":{"state":"progress","gap":{"from":1,"to":2}}"#, "gap is the server's to say"),
            (r#""kind":"status","data":{"state":"failed","duration_ms":9007199254740992}"#, "2^53-1"),
            (r#""kind":"tool_result","data":{"call":"c","tool":"t","ok":true,"exit":-9007199254740992}"#, "2^53-1"),
            (r#""kind":"status","data":{"text":"no state"}"#, "state"),
            (r#""kind":"","data":{}"#, "kind must have"),
            (r#""kind":"a\u0007","data":{}"#, "kind must have"),
            (r#""kind":"thought""#, "no data"),
            (r#""kind":"metric","data":7"#, "an object"),
            (r#""data":{}"#, "no kind"),
            (r#""kind":"metric","data":{},"at":"yesterday""#, "at is not a time"),
        ] {
            let why_said = wrong(&format!("{{\"n\":1,{data}}}"));
            assert!(why_said.contains(why), "{data}: {why_said}");
        }
    }

    #[test]
    fn what_other_readers_would_stumble_over_is_refused() {
        let deep = |levels: usize| {
            format!(r#"{{"n":1,"kind":"k","data":{{"a":{}{}}}}}"#, "[".repeat(levels), "]".repeat(levels))
        };
        assert!(read(deep(usize::from(MAX_DEPTH) - 1).as_bytes()).is_ok());
        assert!(wrong(&deep(usize::from(MAX_DEPTH))).contains("nested"));
        assert!(wrong(&deep(100_000)).contains("nested"));
        for data in [r#"{"a":"\ud800"}"#, r#"{"\udfff":1}"#, r#"{"a":1e999}"#, "{\"a\":\"\u{0}\"}", r#"{"a":01}"#] {
            wrong(&format!(r#"{{"n":1,"kind":"k","data":{data}}}"#));
        }
        assert!(read(br#"{"n":1,"kind":"k","data":{"a":"\u0000 \ud83d\ude00"}}"#).is_ok());
        assert!(read(b"{\"n\":1,\"kind\":\"k\",\"data\":{\"a\":\"\xff\"}}").is_err());
    }

    #[test]
    fn numbers_are_from_one_to_what_every_client_can_count() {
        for n in ["0", "-1", "1.5", "9007199254740992", "\"1\"", "null", "1e3"] {
            wrong(&format!(r#"{{"n":{n},"kind":"k","data":{{}}}}"#));
        }
        assert_eq!(read(br#"{"n":9007199254740991,"kind":"k","data":{}}"#).unwrap().n, MAX_INTEGER);
        for text in ["", "7", "[]", r#"[1,"metric",{"a":1}]"#, "null", "{}", "{\"n\":1}{}", "n"] {
            wrong(text);
        }
    }
}
