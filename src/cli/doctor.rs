//! `rejoin doctor`: looks for what is wrong, here and at the server, and says what to do about it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::Client;
use super::escape;
use super::failure::{Failure, Result};
use super::place::{Place, Where};
use super::screen::Screen;
use crate::config::{self, Config};
use crate::task::folder;

/// What is looked at, and what is done.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Send a test by each channel too
    #[arg(long)]
    send: bool,
    /// Say that the clock is right: schedules that are held go on from now, and nothing runs a second time
    #[arg(long, conflicts_with = "send")]
    pub accept_clock: bool,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, Deserialize)]
struct Finding {
    check: String,
    level: Level,
    text: String,
    advice: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Trouble,
}

impl Finding {
    fn new(level: Level, check: &str, text: impl Into<String>, advice: &str) -> Self {
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        Self { check: check.to_owned(), level, text: text.into(), advice }
    }
}

/// What the server found.
#[derive(Debug, Deserialize)]
struct Report {
    #[serde(default)]
    version: String,
    #[serde(default)]
    items: Vec<Finding>,
}

impl Doctor {
    /// Looks at everything, and says it; trouble is a failure.
    ///
    /// # Errors
    /// [`Failure::Trouble`], once it is said.
    pub async fn look(self, screen: Screen, place: Where) -> Result<()> {
        let mut findings = Vec::new();
        let found = place.find();
        // What stands on this machine says nothing of a server elsewhere.
        if !matches!(found, Ok(Place::Url(_))) {
            here(&place, &mut findings);
        }
        match found.and_then(Client::new) {
            Ok(client) => self.there(&client, &mut findings).await,
            Err(failure) => {
                findings.push(Finding::new(Level::Trouble, "server", failure.to_string(), "name another place"))
            }
        }
        let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
        if screen.json {
            screen.document(&json!({ "level": worst, "items": findings }))?;
        } else {
            findings.iter().try_for_each(|finding| screen.line(&words(finding, screen.colour)))?;
        }
        if worst == Level::Trouble { Err(Failure::Trouble) } else { Ok(()) }
    }

    async fn there(&self, client: &Client, findings: &mut Vec<Finding>) {
        let report: Report = match client.get(&["doctor"], &[]).await {
            Ok(report) => report,
            Err(failure) => {
                let advice =
                    if matches!(failure, Failure::NoServer(_)) { "start it: rejoin serve" } else { "look at its log" };
                findings.push(Finding::new(Level::Trouble, "server", failure.to_string(), advice));
                return;
            }
        };
        let own = env!("CARGO_PKG_VERSION");
        findings.push(if report.version == own {
            Finding::new(Level::Ok, "server", format!("{} answers, version {own}", client.place()), "")
        } else {
            let text = format!("{} is of version {}, this program of {own}", client.place(), report.version);
            Finding::new(
                Level::Warn,
                "server",
                text,
                "start the server again after an update, and update what is older",
            )
        });
        findings.extend(report.items);
        if self.send {
            send(client, findings).await;
        }
    }
}

/// Sends a test by each channel that takes one by itself.
async fn send(client: &Client, findings: &mut Vec<Finding>) {
    let channels: Value = client.get(&["notify"], &[]).await.unwrap_or_default();
    for channel in channels["items"].as_array().into_iter().flatten() {
        let (Some(name), Some(kind)) = (channel["name"].as_str(), channel["kind"].as_str()) else { continue };
        if kind == "healthchecks" {
            continue;
        }
        let answer = client.post(&["notify", name, "test"], &json!({}), None).await;
        let why = match answer {
            Ok(delivery) if delivery["state"] == "sent" => {
                if let Some(why) = delivery["last_error"].as_str() {
                    let text = format!("channel {name}: not all took the test: {why}");
                    findings.push(Finding::new(Level::Warn, "notify", text, "correct the channel in config.toml"));
                }
                None
            }
            Ok(delivery) => Some(delivery["last_error"].as_str().unwrap_or("it did not arrive").to_owned()),
            Err(failure) => Some(failure.to_string()),
        };
        findings.push(match why {
            None => Finding::new(Level::Ok, "notify", format!("channel {name}: a test was sent"), ""),
            Some(why) => {
                let text = format!("channel {name}: the test did not arrive: {why}");
                Finding::new(Level::Trouble, "notify", text, "correct the channel in config.toml")
            }
        });
    }
}

/// Looks at what stands on this machine: the configuration, who may write to it, the task files.
fn here(place: &Where, findings: &mut Vec<Finding>) {
    let config = match Config::load(place.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            findings.push(Finding::new(
                Level::Trouble,
                "config",
                error.to_string(),
                "correct it, and start the server again",
            ));
            return;
        }
    };
    findings.push(Finding::new(Level::Ok, "config", "the configuration is understood", ""));
    let data_dir = place.data_dir.as_ref().unwrap_or(&config.data_dir);
    for (name, folder) in [("tasks", &config.tasks_dir), ("data", data_dir)] {
        findings.push(rights(name, folder));
    }
    findings.extend(task_files(&config));
}

fn rights(name: &str, folder: &Path) -> Finding {
    if !folder.exists() {
        let text = format!("the {name} folder {} is not there", folder.display());
        return Finding::new(
            Level::Warn,
            "rights",
            text,
            "the server makes its data folder; make the other, or set tasks_dir",
        );
    }
    match config::trusted(folder) {
        Ok(()) => {
            Finding::new(Level::Ok, "rights", format!("{} can be written by its owner only", folder.display()), "")
        }
        Err(why) => Finding::new(Level::Trouble, "rights", why.to_string(), "run the command that is named"),
    }
}

fn task_files(config: &Config) -> Vec<Finding> {
    let terms = config.terms();
    let mut findings = Vec::new();
    let mut good = 0;
    for entry in std::fs::read_dir(&config.tasks_dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        match folder::read(&path, &terms).1 {
            Ok(_) => good += 1,
            Err(problems) => {
                let text = problems.first().to_string();
                findings.push(Finding::new(
                    Level::Trouble,
                    "task files",
                    text,
                    "rejoin tasks validate shows all of it",
                ));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::new(Level::Ok, "task files", format!("{good} task files, each understood"), ""));
    }
    findings
}

fn words(finding: &Finding, colour: bool) -> String {
    let (name, code) = match finding.level {
        Level::Ok => ("ok", "32"),
        Level::Warn => ("warn", "33"),
        Level::Trouble => ("trouble", "31"),
    };
    let shown = if colour { format!("\x1b[{code}m{name:8}\x1b[0m") } else { format!("{name:8}") };
    let mut line = format!("{shown}{:11} {}", finding.check, escape::line(&finding.text));
    if let Some(advice) = &finding.advice {
        line.push_str(&format!("\n{:20}→ {}", "", escape::line(advice)));
    }
    line
}
