//! An event as lines for people. Nothing here prints; what an event says cannot act on a terminal.

use std::collections::HashSet;

use jiff::tz::TimeZone;
use owo_colors::{OwoColorize, Style};
use serde_json::Value;

use super::escape;
use super::times;
use super::wire::Event;
use crate::event::State;

/// How many calls are remembered as having shown their output already.
const CALLS_REMEMBERED: usize = 1_000;

/// Turns the events of one stream into lines, in order.
#[derive(Debug)]
pub struct Renderer {
    colour: bool,
    /// Whether every line names its task: where several are watched.
    name_task: bool,
    zone: TimeZone,
    /// Calls whose output came while they worked: their result need not repeat it.
    shown: HashSet<String>,
}

impl Renderer {
    /// A renderer for times in `zone`.
    pub fn new(colour: bool, name_task: bool, zone: TimeZone) -> Self {
        Self { colour, name_task, zone, shown: HashSet::new() }
    }

    /// The lines of an event; none for one that has nothing to show.
    pub fn lines(&mut self, task: &str, event: &Event) -> Vec<String> {
        let Shown { sign, style, head, body } = self.show(event);
        let time = event.at.map(|at| at.to_zoned(self.zone.clone()).strftime("%H:%M:%S").to_string());
        let mut margin = time.unwrap_or_else(|| "--:--:--".into());
        if self.name_task {
            margin.push(' ');
            margin.push_str(&escape::line(task));
        }
        let margin = self.paint(&margin, Style::new().dimmed());
        let mut lines = Vec::new();
        let mut heads = head.into_iter();
        if let Some(first) = heads.next() {
            let text = self.paint(&format!("{sign} {first}"), style);
            lines.push(format!("{margin} {text}"));
        }
        // What follows stands under it, behind a bar that no text can fake at the beginning of a line.
        lines.extend(heads.map(|line| format!("{margin} {}", self.paint(&format!("  {line}"), style))));
        lines.extend(body.into_iter().map(|(bar, line)| {
            let bar = self.paint(bar, Style::new().dimmed());
            format!("{margin}   {bar} {line}").trim_end().to_owned()
        }));
        lines
    }

    fn paint(&self, text: &str, style: Style) -> String {
        if self.colour && !text.is_empty() { text.style(style).to_string() } else { text.to_owned() }
    }

    fn show(&mut self, event: &Event) -> Shown {
        match event.kind.as_str() {
            "status" => self.status(event),
            "thought" => Shown::of('~', Style::new().italic(), event.text("text")),
            "message" => {
                let sign = if event.text("role") == "user" { '<' } else { '>' };
                Shown::of(sign, Style::new(), event.text("text"))
            }
            "tool_use" => use_of(event),
            "tool_output" => self.tool_output(event),
            "tool_result" => self.result(event),
            kind => {
                let mut shown = Shown::of('?', Style::new().dimmed(), kind);
                shown.body = vec![("|", escape::line(&event.data.to_string()))];
                shown
            }
        }
    }

    fn status(&self, event: &Event) -> Shown {
        let (sign, style) = match event.state() {
            Some(State::Succeeded) => ('✓', Style::new().green().bold()),
            Some(State::Failed | State::TimedOut | State::Interrupted) => ('✗', Style::new().red().bold()),
            Some(State::Cancelled | State::Missed | State::Skipped) => ('!', Style::new().yellow()),
            _ => ('•', Style::new().cyan()),
        };
        let said = [event.text("text"), event.text("state")].into_iter().find(|text| !text.is_empty());
        let mut text = said.unwrap_or("status").to_owned();
        let reason = event.text("reason");
        if !reason.is_empty() && !text.contains(reason) {
            text.push_str(": ");
            text.push_str(reason);
        }
        if let Some(ms) = event.data.get("duration_ms").and_then(Value::as_u64) {
            text.push_str(&format!(" ({})", times::duration(ms)));
        }
        if let Some(count) = event.data.get("count").and_then(Value::as_u64).filter(|count| *count > 1) {
            text.push_str(&format!(" ({count} times)"));
        }
        let mut shown = Shown::of(sign, style, &text);
        let summary = event.data.pointer("/attention/summary").and_then(Value::as_str).unwrap_or_default();
        if !summary.is_empty() {
            let summary = self.paint(&format!("Attention: {}", escape::line(summary)), Style::new().yellow().bold());
            shown.body.push(("!", summary));
        }
        shown
    }

    fn tool_output(&mut self, event: &Event) -> Shown {
        if self.shown.len() >= CALLS_REMEMBERED {
            self.shown.clear();
        }
        self.shown.insert(call_of(event));
        // The two streams look alike unless one is worth a second look.
        let bar = if event.text("stream") == "stderr" { "!" } else { "|" };
        let mut body: Vec<_> = escape::output(event.text("text"), self.colour).map(|line| (bar, line)).collect();
        body.extend(cut(event));
        Shown { sign: ' ', style: Style::new(), head: Vec::new(), body }
    }

    fn result(&mut self, event: &Event) -> Shown {
        let ok = event.data.get("ok").and_then(Value::as_bool).unwrap_or(true);
        let mut text = match event.text("tool") {
            "" => "tool".to_owned(),
            tool => tool.to_owned(),
        };
        text.push_str(if ok { " done" } else { " failed" });
        let exit = event.data.get("exit").and_then(Value::as_i64);
        let exit = exit.filter(|exit| !ok || *exit != 0).map(|exit| format!("exit {exit}"));
        let took = event.data.get("duration_ms").and_then(Value::as_u64).map(times::duration);
        let details: Vec<String> = exit.into_iter().chain(took).collect();
        if !details.is_empty() {
            text.push_str(&format!(" ({})", details.join(", ")));
        }
        let style = if ok { Style::new().green() } else { Style::new().red() };
        let mut shown = Shown::of(if ok { '✓' } else { '✗' }, style, &text);
        if !self.shown.remove(&call_of(event)) && !event.text("output").is_empty() {
            shown.body = escape::output(event.text("output"), self.colour).map(|line| ("|", line)).collect();
            shown.body.extend(cut(event));
        }
        shown
    }
}

/// An event taken apart: a sign, text beside it, and lines under it, each with its bar.
struct Shown {
    sign: char,
    style: Style,
    head: Vec<String>,
    body: Vec<(&'static str, String)>,
}

impl Shown {
    fn of(sign: char, style: Style, text: &str) -> Self {
        Self { sign, style, head: escape::lines(text).collect(), body: Vec::new() }
    }
}

fn use_of(event: &Event) -> Shown {
    let input = event.data.get("input").unwrap_or(&Value::Null);
    let member = |name: &str| input.get(name).and_then(Value::as_str).unwrap_or_default();
    let style = Style::new().bold();
    match event.text("tool") {
        "shell" if !member("command").is_empty() => Shown::of('$', style, member("command")),
        "http" if !member("url").is_empty() => {
            let method = if member("method").is_empty() { "GET" } else { member("method") };
            Shown::of('$', style, &format!("{method} {}", member("url")))
        }
        "write" if !member("path").is_empty() => Shown::of('$', style, &format!("write {}", member("path"))),
        tool => Shown::of('$', style, &format!("{tool} {input}")),
    }
}

/// Call ids are unique within a run only.
fn call_of(event: &Event) -> String {
    format!("{}/{}", event.run.as_deref().unwrap_or_default(), event.text("call"))
}

fn cut(event: &Event) -> Option<(&'static str, String)> {
    let cut = event.data.get("cut_bytes").and_then(Value::as_u64).filter(|bytes| *bytes > 0)?;
    Some(("|", format!("({cut} bytes are left out here)")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, data: Value) -> Event {
        let raw = json!({"task": "t", "run": "r", "seq": 1, "at": "2026-11-20T20:41:07.123456Z",
                         "kind": kind, "data": data});
        Event::read(&serde_json::value::to_raw_value(&raw).unwrap()).unwrap()
    }

    fn renderer() -> Renderer {
        Renderer::new(false, false, TimeZone::UTC)
    }

    #[test]
    fn a_call_its_output_and_its_result_read_like_a_terminal() {
        let mut renderer = renderer();
        let mut lines = Vec::new();
        for (kind, data) in [
            ("thought", json!({"text": "Which disks are full?"})),
            ("tool_use", json!({"call": "c1", "tool": "shell", "input": {"command": "df -P"}})),
            ("tool_output", json!({"call": "c1", "stream": "stdout", "text": "a\nb\n"})),
            ("tool_output", json!({"call": "c1", "stream": "stderr", "text": "oops\n"})),
            (
                "tool_result",
                json!({"call": "c1", "tool": "shell", "ok": false, "output": "a\nb\noops\n",
                                   "exit": 2, "duration_ms": 340}),
            ),
        ] {
            lines.extend(renderer.lines("t", &event(kind, data)));
        }
        assert_eq!(
            lines,
            [
                "20:41:07 ~ Which disks are full?",
                "20:41:07 $ df -P",
                "20:41:07   | a",
                "20:41:07   | b",
                "20:41:07   ! oops",
                "20:41:07 ✗ shell failed (exit 2, 0.3 s)",
            ]
        );
    }

    #[test]
    fn a_result_shows_its_output_where_none_came_before() {
        let result = json!({"call": "c2", "tool": "http", "ok": true, "output": "hello\n", "cut_bytes": 7});
        let lines = renderer().lines("t", &event("tool_result", result));
        assert_eq!(lines, ["20:41:07 ✓ http done", "20:41:07   | hello", "20:41:07   | (7 bytes are left out here)"]);
    }

    #[test]
    fn the_end_of_a_run_names_its_time_and_what_it_found() {
        let end = json!({"state": "succeeded", "text": "Task t completed successfully", "duration_ms": 123_000,
                         "attention": {"summary": "A disk is full"}});
        let lines = renderer().lines("t", &event("status", end));
        assert_eq!(
            lines,
            ["20:41:07 ✓ Task t completed successfully (2 min 3 s)", "20:41:07   ! Attention: A disk is full"]
        );
    }

    #[test]
    fn no_text_of_an_event_reaches_the_terminal_as_a_command() {
        let evil = "x\x1b[2J\r\n\u{9b}1Ay\x07";
        let events = [
            event("status", json!({"state": "failed", "text": evil, "reason": evil, "attention": {"summary": evil}})),
            event("thought", json!({"text": evil})),
            event("message", json!({"role": "user", "text": evil})),
            event("tool_use", json!({"call": evil, "tool": "shell", "input": {"command": evil}})),
            event("tool_use", json!({"call": "c", "tool": evil, "input": {"x": evil}})),
            event("tool_output", json!({"call": "c", "stream": "stdout", "text": evil})),
            event("tool_result", json!({"call": "d", "tool": evil, "ok": true, "output": evil})),
            event(evil, json!({"x": evil})),
        ];
        let mut plain = Renderer::new(false, true, TimeZone::UTC);
        let mut coloured = Renderer::new(true, true, TimeZone::UTC);
        for event in &events {
            for line in plain.lines(evil, event) {
                assert!(!line.chars().any(char::is_control), "{line:?}");
                assert!(line.starts_with("20:41:07 "), "{line:?}");
            }
            for line in coloured.lines(evil, event) {
                // Nothing but SGR: after an escape come digits and an m.
                for after in line.split('\x1b').skip(1) {
                    let rest = after.trim_start_matches(['[', ';', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
                    assert!(after.starts_with('[') && rest.starts_with('m'), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn a_kind_of_a_later_version_is_shown_as_it_came() {
        let lines = renderer().lines("t", &event("fireworks", json!({"colour": "red"})));
        assert_eq!(lines, ["20:41:07 ? fireworks", "20:41:07   | {\"colour\":\"red\"}"]);
    }
}
