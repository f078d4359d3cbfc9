//! The text format of Prometheus, version 0.0.4: families of samples, each with its help and type.

use std::fmt::{Display, Write};

use super::instrument::{Histogram, Labelled};

/// What `Content-Type` says of it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family of samples is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows, and begins anew with each start.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A page of families.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// The text.
    pub fn into_text(self) -> String {
        self.0
    }

    /// Begins a family; its samples follow.
    pub fn family(&mut self, kind: Kind, name: &'static str, help: &str) -> Family<'_> {
        self.begin(if kind == Kind::Counter { "counter" } else { "gauge" }, name, help);
        Family { page: self, name }
    }

    /// A family of one sample without labels.
    pub fn counter(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.family(Kind::Counter, name, help).sample(&[], value);
    }

    /// The same of what goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.family(Kind::Gauge, name, help).sample(&[], value);
    }

    /// Counters by one label.
    pub fn counters(&mut self, name: &'static str, help: &str, label: &str, counters: &Labelled) {
        let mut family = self.family(Kind::Counter, name, help);
        for (word, count) in counters.all() {
            family.sample(&[(label, word)], count);
        }
    }

    /// A histogram whose values are so many parts of the unit that its name says.
    pub fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram, parts: f64) {
        self.begin("histogram", name, help);
        let read = histogram.read();
        for (bound, count) in &read.at_most {
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{}\"}} {count}", *bound as f64 / parts);
        }
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {}", read.count);
        let _ = writeln!(self.0, "{name}_sum {}\n{name}_count {}", read.sum as f64 / parts, read.count);
    }

    fn begin(&mut self, kind: &str, name: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

/// The family under way.
#[derive(Debug)]
pub struct Family<'p> {
    page: &'p mut Page,
    name: &'static str,
}

impl Family<'_> {
    /// Adds a sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let out = &mut self.page.0;
        out.push_str(self.name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let _ = write!(out, "{}{label}=\"", if index == 0 { '{' } else { ',' });
            for letter in value.chars() {
                match letter {
                    '\\' => out.push_str("\\\\"),
                    '"' => out.push_str("\\\""),
                    '\n' => out.push_str("\\n"),
                    other => out.push(other),
                }
            }
            out.push('"');
        }
        let _ = writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_help_are_escaped() {
        let mut page = Page::default();
        page.family(Kind::Gauge, "a", "one\ntwo \\").sample(&[("l", "q\" b\\ n\n"), ("m", "")], 1.5);
        let text = "# HELP a one\\ntwo \\\\\n# TYPE a gauge\na{l=\"q\\\" b\\\\ n\\n\",m=\"\"} 1.5\n";
        assert_eq!(page.into_text(), text);
    }

    #[test]
    fn a_histogram_is_in_the_unit_of_its_name() {
        let histogram = Histogram::new(&[100, 2_500_000]);
        histogram.note(250);
        let mut page = Page::default();
        page.histogram("t_seconds", "h", &histogram, 1e6);
        let text = "# HELP t_seconds h\n# TYPE t_seconds histogram\nt_seconds_bucket{le=\"0.0001\"} 0\n\
            t_seconds_bucket{le=\"2.5\"} 1\nt_seconds_bucket{le=\"+Inf\"} 1\nt_seconds_sum 0.00025\nt_seconds_count 1\n";
        assert_eq!(page.into_text(), text);
    }
}
