//! Text of others made safe for a terminal: nothing in it can move the cursor, add a line or change the colours
//! for good. Knows nothing of events.

use std::fmt::Write as _;

/// Whether a character would act on a terminal or hide what stands beside it.
fn acts(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'       // C0, DEL and C1: cursor, bells, escape sequences
        | '\u{200e}' | '\u{200f}' | '\u{061c}'   // marks that turn the direction of writing
        | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        | '\u{2028}' | '\u{2029}')
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if (c as u32) < 0x100 => {
            let _ = write!(out, "\\x{:02x}", c as u32);
        }
        c => {
            let _ = write!(out, "\\u{{{:x}}}", c as u32);
        }
    }
}

/// One line: every character that acts is written out, line ends too.
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) { push_escaped(&mut out, c) } else { out.push(c) }
    }
    out
}

/// Text of several lines, each made safe. A lone carriage return ends a line too: what a progress bar overwrites
/// stays readable and nothing can hide behind it.
pub fn lines(text: &str) -> impl Iterator<Item = String> {
    split(text).map(line)
}

/// Output of a command: as [`lines`], but colours (SGR sequences) pass where `colour` is true and are taken
/// out where it is false. A line that had any ends in plain colours.
pub fn output(text: &str, colour: bool) -> impl Iterator<Item = String> {
    split(text).map(move |text| {
        let mut out = String::with_capacity(text.len());
        let mut coloured = false;
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(length) = sgr_length(rest) {
                if colour {
                    out.push_str(&rest[..length]);
                    coloured = true;
                }
                rest = &rest[length..];
                continue;
            }
            match c {
                '\t' => out.push('\t'),
                c if acts(c) => push_escaped(&mut out, c),
                c => out.push(c),
            }
            rest = &rest[c.len_utf8()..];
        }
        if coloured {
            out.push_str("\x1b[0m");
        }
        out
    })
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

/// How many bytes the SGR sequence has that `text` begins with, if it does.
fn sgr_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !matches!(c, '0'..='9' | ';' | ':'))?;
    // Real ones are short; a long one is not worth finding out what a terminal makes of it.
    (parameters[end..].starts_with('m') && end <= 64).then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(text: &str, colour: bool) -> String {
        output(text, colour).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn a_title_cannot_add_a_line_or_move_the_cursor() {
        let title = "done\n\x1b[2J\r\u{9b}1A\u{202e}x\x07";
        assert_eq!(line(title), "done\\n\\x1b[2J\\r\\x9b1A\\u{202e}x\\x07");
    }

    #[test]
    fn colours_of_output_pass_to_a_terminal_and_nothing_else_does() {
        let text = "\x1b[1;31mred\x1b[0m \x1b[2Jx \x1b]0;title\x07";
        assert_eq!(joined(text, true), "\x1b[1;31mred\x1b[0m \\x1b[2Jx \\x1b]0;title\\x07\x1b[0m");
        assert_eq!(joined(text, false), "red \\x1b[2Jx \\x1b]0;title\\x07");
    }

    #[test]
    fn a_line_that_leaves_a_colour_on_does_not_colour_the_next() {
        assert_eq!(joined("\x1b[31ma\nb", true), "\x1b[31ma\x1b[0m|b");
    }

    #[test]
    fn a_progress_bar_becomes_lines_and_hides_nothing() {
        assert_eq!(joined("10%\r20%\r\ndone\n", false), "10%|20%|done");
    }

    #[test]
    fn an_unfinished_sequence_at_the_end_is_written_out() {
        assert_eq!(joined("x\x1b[31", true), "x\\x1b[31");
        assert_eq!(joined("x\x1b", true), "x\\x1b");
    }
}
