//! Where in a TOML text something stands: line, column and dotted key.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

/// A place in a text that a person can go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Place {
    /// The place of a byte offset; an offset behind the end is the end.
    pub fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset.min(text.len())).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

/// A text as TOML with places.
///
/// # Errors
/// The first mistake in the order of the text: the library puts a mistake that follows from another before it.
pub fn table(text: &str) -> Result<Spanned<DeTable<'_>>, Error> {
    let (table, mistakes) = DeTable::parse_recoverable(text);
    let first = mistakes.into_iter().min_by_key(|mistake| mistake.span().map_or(usize::MAX, |span| span.start));
    first.map_or(Ok(table), Err)
}

/// The dotted key of what stands at `offset`, like `steps[1].timeout`; empty where nothing does, or where the text
/// is not TOML.
pub fn key_at(text: &str, offset: usize) -> String {
    let Ok(table) = DeTable::parse(text) else {
        return String::new();
    };
    let mut path = String::new();
    descend(table.get_ref(), offset, &mut path);
    path
}

/// Goes down to the deepest key whose name or value holds `offset`.
fn descend(table: &DeTable<'_>, offset: usize, path: &mut String) {
    let holds = |range: Range<usize>| range.contains(&offset);
    for (key, value) in table {
        if holds(key.span()) || holds(value.span()) || deep(value.get_ref(), offset) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key.get_ref());
            step(value.get_ref(), offset, path);
            return;
        }
    }
}

/// Goes on below a value.
fn step(value: &DeValue<'_>, offset: usize, path: &mut String) {
    match value {
        DeValue::Table(table) => descend(table, offset, path),
        DeValue::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                if item.span().contains(&offset) || deep(item.get_ref(), offset) {
                    path.push_str(&format!("[{n}]"));
                    step(item.get_ref(), offset, path);
                    return;
                }
            }
        }
        _ => {}
    }
}

/// Whether anything below `value` holds `offset`: the span of a `[table]` covers only its header.
fn deep(value: &DeValue<'_>, offset: usize) -> bool {
    let holds = |range: Range<usize>| range.contains(&offset);
    match value {
        DeValue::Table(table) => {
            table.iter().any(|(key, value)| holds(key.span()) || holds(value.span()) || deep(value.get_ref(), offset))
        }
        DeValue::Array(items) => items.iter().any(|item| holds(item.span()) || deep(item.get_ref(), offset)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        assert_eq!(Place::of("a\nüb", 0), Place { line: 1, column: 1 });
        assert_eq!(Place::of("a\nüb", 4), Place { line: 2, column: 2 });
        assert_eq!(Place::of("a", 99), Place { line: 1, column: 2 });
    }

    #[test]
    fn a_key_is_found_in_tables_and_arrays_of_tables() {
        let text = "[a]\nb = 1\n[[s]]\nx = 1\n[[s]]\nx = { y = 2 }\n";
        assert_eq!(key_at(text, text.find("b =").unwrap()), "a.b");
        assert_eq!(key_at(text, text.rfind('2').unwrap()), "s[1].x.y");
        assert_eq!(key_at("not toml", 0), "");
    }
}
