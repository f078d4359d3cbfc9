//! The table: minimum, median and maximum of each row, beside what must be reached.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Value, json};

/// What a value is held to.
#[derive(Clone, Copy)]
pub enum Bound {
    /// It must not be larger.
    AtMost(f64),
    /// It must not be smaller.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn words(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", short(most)),
            Self::AtLeast(least) => format!("≥ {}", short(least)),
        }
    }
}

/// One measurement of a row.
#[derive(Clone, Copy, Default)]
pub struct Sample {
    /// The value, in the row's unit.
    pub value: f64,
    /// Processor seconds of the server per million deliveries.
    pub cpu: Option<f64>,
    /// Memory of the server, in MiB.
    pub memory: Option<f64>,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Self { value, ..Self::default() }
    }
}

/// One row of the table.
pub struct Row {
    /// The scenario.
    pub id: &'static str,
    /// What was measured.
    pub what: &'static str,
    /// The unit of the values.
    pub unit: &'static str,
    /// What must be reached.
    pub must: Option<Bound>,
    /// The measurements.
    pub samples: Vec<Sample>,
    /// The share of the machine that others had during each.
    pub others: Vec<f64>,
    /// Why they count for nothing.
    pub void: Option<String>,
}

impl Row {
    /// A row without measurements.
    pub fn new(id: &'static str, what: &'static str, unit: &'static str, must: Option<Bound>) -> Self {
        Self { id, what, unit, must, samples: Vec::new(), others: Vec::new(), void: None }
    }

    /// Adds a measurement, and the share of the machine that others had meanwhile.
    pub fn add(&mut self, sample: Sample, others: f64) {
        self.samples.push(sample);
        self.others.push(others);
    }

    fn sorted(&self, of: impl Fn(&Sample) -> Option<f64>) -> Vec<f64> {
        let mut values: Vec<f64> = self.samples.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn verdict(&self) -> &'static str {
        let values = self.sorted(|sample| Some(sample.value));
        match (&self.void, self.must) {
            (Some(_), _) => "void",
            (None, Some(must)) if values.is_empty() || !must.holds(median(&values)) => "no",
            (None, Some(_)) => "yes",
            (None, None) => "",
        }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let values = self.sorted(|sample| Some(sample.value));
        json!({
            "scenario": self.id, "what": self.what, "unit": self.unit,
            "min": values.first(), "median": (!values.is_empty()).then(|| median(&values)), "max": values.last(),
            "samples": self.samples.iter().map(|sample| sample.value).collect::<Vec<_>>(),
            "server_cpu_s_per_million": self.samples.iter().map(|sample| sample.cpu).collect::<Vec<_>>(),
            "server_memory_mib": self.samples.iter().map(|sample| sample.memory).collect::<Vec<_>>(),
            "others": self.others,
            "must": self.must.map(Bound::words), "met": self.verdict(), "void": self.void,
        })
    }
}

/// The middle of sorted values.
pub fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// All rows, for people.
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "measured", "unit", "min", "median", "max", "must", "met", "CPU-s/M", "MiB", "others"]);
    for row in rows {
        let values = row.sorted(|sample| Some(sample.value));
        let beside = |values: Vec<f64>| if values.is_empty() { String::new() } else { short(median(&values)) };
        let edge = |value: Option<&f64>| value.map_or_else(String::new, |value| short(*value));
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        table.add_row([
            Cell::new(row.id),
            Cell::new(row.what),
            Cell::new(row.unit),
            right(edge(values.first())),
            right(beside(values.clone())),
            right(edge(values.last())),
            right(row.must.map_or_else(String::new, Bound::words)),
            Cell::new(row.verdict()),
            right(beside(row.sorted(|sample| sample.cpu))),
            right(beside(row.sorted(|sample| sample.memory))),
            right(format!("{:.0} %", row.others.iter().copied().fold(0.0, f64::max) * 100.0)),
        ]);
    }
    let mut text = table.to_string();
    for row in rows {
        if let Some(why) = &row.void {
            text.push_str(&format!("\n{} ({}) is void: {why}", row.id, row.what));
        }
    }
    text
}

/// Three digits that say something.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.0} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
