//! `make bench`: what Rejoin does on this machine, measured from outside.
//!
//! The server is the release binary in a process of its own on one core; this program is on the other, and only in
//! `slots`, where it has nothing to do but to count, beside it. Events come in over HTTP as any producer would send them,
//! and go out over WebSockets; each receipt is checked.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

mod fleet;
mod http;
mod lookup;
mod process;
mod publish;
mod quiet;
mod report;
mod scenario;
mod script;
mod server;
mod slots;
mod standing;

use report::Row;
use scenario::Bench;

/// Measures a Rejoin server.
#[derive(Parser)]
struct Options {
    /// The program that is measured.
    #[arg(long, env = "REJOIN_BIN", default_value = "target/release/rejoin")]
    server: PathBuf,
    /// Where the servers' data goes; a new folder in it for each, removed afterwards.
    #[arg(long, default_value = "target")]
    under: PathBuf,
    /// How often each row is measured.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Only these: S1 to S7, slots, look-up, idle, store.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many events S2 publishes for its sustained rate; 0 leaves that out.
    #[arg(long, default_value_t = 5_000_000)]
    many: u64,
    /// Waits up to so many seconds, before each measurement, for everything else on this machine to be quiet, and
    /// measures again what was disturbed.
    #[arg(long, default_value_t = 0)]
    quiet: u64,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[global_allocator]
static ALLOCATOR: lookup::Counting = lookup::Counting;

type Scenario = fn(&Bench) -> Vec<Row>;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("S1", scenario::s1),
    ("S2", scenario::s2),
    ("S3", scenario::s3),
    ("S4", scenario::s4),
    ("S5", scenario::s5),
    ("S6", scenario::s6),
    ("S7", scenario::s7),
    ("slots", slots::slots),
    ("look-up", lookup::lookup),
    ("idle", standing::idle),
    ("store", standing::store),
];

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.server.exists(), "{} is not there: cargo build --release", options.server.display());
    server::pin_client()?;
    rejoin::shutdown::raise_descriptor_limit();
    let bench = Bench {
        program: std::path::absolute(&options.server)?,
        under: std::path::absolute(&options.under)?,
        repeats: options.repeats.max(1),
        many: options.many,
        wait_for_quiet: std::time::Duration::from_secs(options.quiet),
    };
    let mut rows = Vec::new();
    for (name, scenario) in SCENARIOS {
        if options.only.is_empty() || options.only.iter().any(|only| only.eq_ignore_ascii_case(name)) {
            eprintln!("{name} …");
            rows.extend(scenario(&bench));
        }
    }
    if options.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{}", report::table(&rows));
    }
    Ok(())
}
