//! An agent for tests: it says what its task's parameter `script` tells it to, word by word where that is asked for.
//! Only with the feature `failpoints`; no program that is shipped has it.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::{Assignment, Emitter, Outcome, Over};
use crate::event::{Body, Role};

/// How often it looks for a file that it waits for.
const LOOK: Duration = Duration::from_millis(2);

/// A line of the script: `["what", ...]` as JSON.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    /// `["wait", path]`: goes on once the file is there.
    /// `["say", text]`: a thought that nobody saw growing.
    One(String, String),
    /// `["delta", key, text]`: shows a piece. `["thought" | "message", key, text]`: the whole of it.
    Two(String, String, String),
    /// `["speak", key, text, pause_ms]`: every word a piece, with a pause behind it, then the whole as a message.
    Speak(String, String, String, u64),
}

/// Follows the script.
pub async fn run(assignment: Assignment, emitter: Emitter) -> Outcome {
    let script = assignment.params.get("script").and_then(|script| script.as_str()).unwrap_or_default();
    for line in script.lines().filter(|line| !line.trim().is_empty()) {
        let done = match serde_json::from_str(line) {
            Ok(line) => follow(line, &emitter).await,
            Err(error) => return failed(format!("this line is none of a script: {line} ({error})")),
        };
        match done {
            Ok(true) => {}
            Ok(false) => return failed(format!("this line is none of a script: {line}")),
            Err(Over) => return failed("the run is over".to_owned()),
        }
    }
    Outcome::Succeeded { exit: None, attention: None }
}

async fn follow(line: Line, emitter: &Emitter) -> Result<bool, Over> {
    match line {
        Line::One(what, path) if what == "wait" => {
            while !Path::new(&path).exists() {
                tokio::time::sleep(LOOK).await;
            }
        }
        Line::One(what, text) if what == "say" => emitter.emit(Body::Thought { text }).await?,
        Line::Two(what, key, text) if what == "delta" => emitter.delta(&key, &text),
        Line::Two(what, key, text) if what == "thought" => {
            emitter.emit(Body::Written { key, body: Box::new(Body::Thought { text }) }).await?;
        }
        Line::Two(what, key, text) if what == "message" => emitter.emit(message(key, text)).await?,
        Line::Speak(what, key, text, pause_ms) if what == "speak" => {
            for word in text.split_inclusive(' ') {
                emitter.delta(&key, word);
                match pause_ms {
                    0 => tokio::task::yield_now().await,
                    pause => tokio::time::sleep(Duration::from_millis(pause)).await,
                }
            }
            emitter.emit(message(key, text)).await?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn message(key: String, text: String) -> Body {
    Body::Written { key, body: Box::new(Body::Message { role: Role::Agent, text }) }
}

fn failed(reason: String) -> Outcome {
    Outcome::Failed { reason, exit: None, attention: None }
}
