//! The server's own log, on standard error: one line for each thing that happened, as text or as JSON. What others have
//! said is part of some lines (why a program elsewhere failed, what a task file says): none of it ends a line or steers
//! a terminal.

use std::fmt::{self, Write};
use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{self, FormatFields, Writer};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Begins to log.
pub fn start(config: &Log) {
    // One line for each delivered event would flood a busy log: held back unless asked for.
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        _ => format!("tokio_cron_scheduler=warn,{},rejoin::delivery=off", config.filter),
    };
    // A second server in one process (tests) keeps the log of the first.
    let _ = log(config.format, &filter, std::io::stderr().is_terminal(), std::io::stderr).try_init();
}

/// A log in this form, of what the filter lets through, written there; with colours where those are seen.
pub fn log<W>(format: LogFormat, filter: &str, colours: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse_lossy(filter);
    // A log that cannot be written (the disk is full) is no reason to fail: the other choice ends the thread that
    // wanted to say something by a panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Json => Box::new(log.json().finish()),
        LogFormat::Text => Box::new(log.fmt_fields(fields()).with_ansi(colours).finish()),
    }
}

/// How the fields of a line of text, and of the spans it stands in, are written: the message, then `name=value`.
fn fields() -> impl for<'w> FormatFields<'w> {
    format::debug_fn(|out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        match field.name() {
            // Where a line of another library's own kind came from; the line says it already.
            name if name.starts_with("log.") => return Ok(()),
            "message" => {}
            name => write!(out, "{name}=")?,
        }
        write!(OneLine(out), "{value:?}")
    })
    .delimited(" ")
}

/// Writes what controls a terminal, or ends a line, as an escape that shows.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain = 0;
        for (at, letter) in text.char_indices().filter(|(_, letter)| steers(*letter)) {
            self.0.write_str(&text[plain..at])?;
            write!(self.0, "{}", letter.escape_default())?;
            plain = at + letter.len_utf8();
        }
        self.0.write_str(&text[plain..])
    }
}

/// Control characters, what some readers take for the end of a line, and what turns the direction of the text after it.
fn steers(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_line_or_steer_a_terminal_shows() {
        let mut out = String::new();
        write!(OneLine(&mut out), "a\nb\r\u{1b}[2J\u{9b}x\u{2028}y\u{202e}z\té").unwrap();
        assert_eq!(out, r"a\nb\r\u{1b}[2J\u{9b}x\u{2028}y\u{202e}z\té");
    }
}
