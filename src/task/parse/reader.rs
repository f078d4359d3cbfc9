//! Goes through the tree of a task, takes what is good and notes all that is not.

use std::ops::Range;
use std::time::Duration;

use crate::config::units;
use crate::schedule::timing::nearest;
use crate::task::parse::rules::check_condition;
use crate::task::parse::tree::{Data, Member, Node};
use crate::task::parse::{Problem, Problems};

/// What was found wrong, before it has a file.
pub(super) struct Finding {
    pub(super) key: String,
    span: Option<Range<usize>>,
    message: String,
}

/// Goes through the tree, takes what is good and notes what is not.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) findings: Vec<Finding>,
}

/// A table that is being read: every name that nobody asked for is a problem at the end.
pub(super) struct Open<'n> {
    path: String,
    pub(super) span: Option<Range<usize>>,
    pub(super) members: Vec<(&'n Member, bool)>,
}

impl<'n> Open<'n> {
    /// The dotted key of a member.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The member of that name, if it is there and not null.
    pub(super) fn take(&mut self, name: &str) -> Option<&'n Node> {
        let (member, asked) = self.members.iter_mut().find(|(member, _)| member.name == name)?;
        *asked = true;
        (!matches!(member.node.data, Data::Null)).then_some(&member.node)
    }
}

impl Reader {
    pub(super) fn wrong(&mut self, key: impl Into<String>, span: Option<Range<usize>>, message: String) {
        self.findings.push(Finding { key: key.into(), span, message });
    }

    /// What was read, if nothing is wrong with it.
    pub(super) fn end<T>(
        mut self,
        read: Option<T>,
        problem: impl Fn(Option<Range<usize>>, String, String) -> Problem,
    ) -> Result<T, Problems> {
        // In the order of the text; what is missing has no place and comes last.
        self.findings.sort_by_key(|finding| finding.span.as_ref().map_or(usize::MAX, |span| span.start));
        let problems: Vec<Problem> =
            self.findings.into_iter().map(|finding| problem(finding.span, finding.key, finding.message)).collect();
        match read {
            Some(read) if problems.is_empty() => Ok(read),
            _ if problems.is_empty() => Err(problem(None, String::new(), "cannot be read".into()).into()),
            _ => Err(Problems(problems)),
        }
    }

    pub(super) fn open<'n>(&mut self, path: &str, node: &'n Node) -> Option<Open<'n>> {
        let Data::Table(members) = &node.data else {
            self.wrong(path, node.span.clone(), format!("must be a table, is {}", node.data.name()));
            return None;
        };
        Some(Open {
            path: path.to_owned(),
            span: node.span.clone(),
            members: members.iter().map(|member| (member, false)).collect(),
        })
    }

    /// Names what nobody asked for. `later` are keys that other versions know.
    pub(super) fn close(&mut self, open: Open<'_>, known: &[&'static str], later: &[&'static str]) {
        for (member, asked) in &open.members {
            if *asked {
                continue;
            }
            let key = open.key(&member.name);
            let message = if later.contains(&member.name.as_str()) {
                "comes later: this version does not act on it".to_owned()
            } else {
                not_known(&member.name, known)
            };
            self.wrong(key, member.name_span.clone(), message);
        }
    }

    pub(super) fn text(&mut self, open: &mut Open<'_>, name: &str) -> Option<String> {
        let node = open.take(name)?;
        match &node.data {
            Data::Text(text) => Some(text.clone()),
            other => {
                let message = format!("must be text, is {}", other.name());
                self.wrong(open.key(name), node.span.clone(), message);
                None
            }
        }
    }

    /// Text that says something; empty or white is a problem.
    pub(super) fn filled(&mut self, open: &mut Open<'_>, name: &str) -> Option<String> {
        let span = open.take(name).and_then(|node| node.span.clone());
        let text = self.text(open, name)?;
        if text.trim().is_empty() {
            self.wrong(open.key(name), span, "must not be empty".into());
            return None;
        }
        if text.contains('\0') {
            self.wrong(open.key(name), span, "must not have a zero byte".into());
            return None;
        }
        Some(text)
    }

    /// One line of text.
    pub(super) fn line(&mut self, open: &mut Open<'_>, name: &str) -> Option<String> {
        let span = open.take(name).and_then(|node| node.span.clone());
        let text = self.filled(open, name)?;
        if text.contains(['\n', '\r']) {
            self.wrong(open.key(name), span, "must be one line".into());
            return None;
        }
        Some(text)
    }

    pub(super) fn flag(&mut self, open: &mut Open<'_>, name: &str) -> Option<bool> {
        let node = open.take(name)?;
        match node.data {
            Data::Bool(value) => Some(value),
            ref other => {
                let message = format!("must be true or false, is {}", other.name());
                self.wrong(open.key(name), node.span.clone(), message);
                None
            }
        }
    }

    /// A length of time above nothing.
    pub(super) fn length(&mut self, open: &mut Open<'_>, name: &str) -> Option<Duration> {
        let node = open.take(name)?;
        let read = match &node.data {
            Data::Text(text) => units::duration(text),
            Data::Integer(_) | Data::Float(_) => Err("must have a unit, like \"30s\" or \"5m\"".into()),
            other => Err(format!("must be a length of time like \"30s\", is {}", other.name())),
        };
        let read = read.and_then(|length| match length {
            Duration::ZERO => Err("must be more than nothing".into()),
            // A millisecond is the finest that is kept, so that writing and reading give the same.
            length if length.subsec_nanos() % 1_000_000 != 0 => Err("must be whole milliseconds".into()),
            length => Ok(length),
        });
        read.map_err(|message| self.wrong(open.key(name), node.span.clone(), message)).ok()
    }

    /// A size above nothing.
    pub(super) fn size(&mut self, open: &mut Open<'_>, name: &str) -> Option<u64> {
        let node = open.take(name)?;
        let read = match &node.data {
            Data::Text(text) => units::bytes(text),
            Data::Integer(bytes) => u64::try_from(*bytes).map_err(|_| "must be more than nothing".into()),
            other => Err(format!("must be a size like \"16 MiB\" or a number of bytes, is {}", other.name())),
        };
        let read = read.and_then(|bytes| if bytes == 0 { Err("must be more than nothing".into()) } else { Ok(bytes) });
        read.map_err(|message| self.wrong(open.key(name), node.span.clone(), message)).ok()
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, open: &mut Open<'_>, name: &str, words: &[(&str, Option<T>)]) -> Option<T> {
        let node = open.take(name)?;
        let Data::Text(text) = &node.data else {
            let message = format!("must be text, is {}", node.data.name());
            self.wrong(open.key(name), node.span.clone(), message);
            return None;
        };
        let there_are = || {
            let words: Vec<String> =
                words.iter().filter(|(_, value)| value.is_some()).map(|(word, _)| format!("{word:?}")).collect();
            match words.split_last() {
                Some((last, before)) if !before.is_empty() => format!("{} and {last}", before.join(", ")),
                _ => words.concat(),
            }
        };
        match words.iter().find(|(word, _)| word == text) {
            Some((_, Some(value))) => Some(*value),
            Some((word, None)) => {
                let message = format!("{word:?} comes later: in this version there are {}", there_are());
                self.wrong(open.key(name), node.span.clone(), message);
                None
            }
            None => {
                let message = format!("{text:?} is not known: there are {}", there_are());
                self.wrong(open.key(name), node.span.clone(), message);
                None
            }
        }
    }

    /// A CEL condition.
    pub(super) fn condition(&mut self, open: &mut Open<'_>, name: &str) -> Option<String> {
        let span = open.take(name).and_then(|node| node.span.clone());
        let text = self.filled(open, name)?;
        if let Err(why) = check_condition(&text) {
            self.wrong(open.key(name), span, format!("is not a condition: {why}"));
            return None;
        }
        Some(text)
    }

    pub(super) fn number(&mut self, open: &mut Open<'_>, name: &str, least: i64, most: i64) -> Option<i64> {
        let node = open.take(name)?;
        match node.data {
            Data::Integer(n) if (least..=most).contains(&n) => Some(n),
            Data::Integer(n) => {
                self.wrong(open.key(name), node.span.clone(), format!("{n} is not from {least} to {most}"));
                None
            }
            ref other => {
                let message = format!("must be a whole number, is {}", other.name());
                self.wrong(open.key(name), node.span.clone(), message);
                None
            }
        }
    }
}

/// What is said about a name that nobody asked for.
pub(super) fn not_known(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("is not known: did you mean {near:?}?"),
        None if known.is_empty() => "is not known: there are none".into(),
        None => format!("is not known: there are {}", known.join(", ")),
    }
}
