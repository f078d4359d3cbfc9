//! Conditions: CEL expressions over `params` and the steps' results.
//!
//! The same expressions are checked when a task is read ([`check`]) and evaluated when it runs.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use cel::{Context, Program, Value};
use tokio::sync::oneshot;

use super::StepResult;

/// Checks that a text is a CEL expression.
///
/// # Errors
/// Why it is none, in one line.
pub fn check(text: &str) -> Result<(), String> {
    with_room(|| compile(text).map(drop))
}

/// The stack that an expression is read and evaluated on, in bytes: address space, of which a condition that people
/// write touches a few hundred KiB. As much as where tasks are checked, so that what passed there passes here.
const STACK: usize = 256 * 1024 * 1024;

/// How long an expression may take, on however long an output.
const LONGEST: Duration = Duration::from_secs(10);

/// On a stack of its own: the library goes down into itself for every bracket, so far that twenty of them end a
/// thread of 2 MiB, and with it the server. A panic of the library ends here too.
fn with_room<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("condition".to_owned()).stack_size(STACK);
        let working = thread.spawn_scoped(scope, work).map_err(|error| format!("no thread for it: {error}"))?;
        working.join().unwrap_or_else(|_| Err("the expression library broke down on it".to_owned()))
    })
}

fn compile(text: &str) -> Result<Program, String> {
    Program::compile(text).map_err(|errors| one_line(&errors.to_string()))
}

/// The library draws the place under the expression, in lines that begin with `|`; who wrote it has it before them.
fn one_line(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('|'));
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    words.join(" ").chars().take(300).collect()
}

/// What a condition may speak of.
pub(super) struct Facts<'a> {
    pub(super) params: &'a BTreeMap<String, serde_json::Value>,
    pub(super) steps: &'a BTreeMap<String, StepResult>,
    /// The step whose own `attention` it is: its result stands under its plain names, `output`, `exit`, ...
    pub(super) own: Option<&'a StepResult>,
}

impl Facts<'_> {
    /// Whether the condition holds. Nothing of the server waits for it: an expression can take as long as it likes,
    /// and the library cannot be told to give up. What takes too long is left behind with its thread.
    ///
    /// # Errors
    /// Why that cannot be said, in one line.
    pub(super) async fn hold(&self, condition: &str) -> Result<bool, String> {
        let (variables, text) = (self.variables(condition), condition.to_owned());
        let (answer, answered) = oneshot::channel();
        let thread = std::thread::Builder::new().name("condition".to_owned()).stack_size(STACK);
        let spawned = thread.spawn(move || {
            let _ = answer.send(evaluate(&text, variables));
        });
        spawned.map_err(|error| format!("no thread for it: {error}"))?;
        match tokio::time::timeout(LONGEST, answered).await {
            Ok(Ok(held)) => held,
            Ok(Err(_)) => Err("the expression library broke down on it".to_owned()),
            Err(_) => Err(format!("it takes longer than {LONGEST:?}")),
        }
    }

    fn variables(&self, condition: &str) -> Vec<(String, Value)> {
        let params = self.params.iter().map(|(name, value)| (name.clone(), from_json(value)));
        // Only the steps it speaks of are copied: outputs can be long.
        let steps = self.steps.iter().filter(|(name, _)| condition.contains(name.as_str()));
        let steps = steps.map(|(name, step)| (name.clone(), Value::from(members(step))));
        let mut variables = vec![
            ("params".to_owned(), Value::from(params.collect::<HashMap<_, _>>())),
            ("steps".to_owned(), Value::from(steps.collect::<HashMap<_, _>>())),
        ];
        variables.extend(self.own.map(members).into_iter().flatten());
        variables
    }
}

fn evaluate(condition: &str, variables: Vec<(String, Value)>) -> Result<bool, String> {
    let program = compile(condition)?;
    let mut context = Context::default();
    for (name, value) in variables {
        context.add_variable_from_value(name, value);
    }
    match program.execute(&context) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(other) => Err(format!("it gives {}, not true or false", kind(&other))),
        Err(error) => Err(one_line(&error.to_string())),
    }
}

fn members(step: &StepResult) -> HashMap<String, Value> {
    let text = |text: &str| Value::from(text.to_owned());
    HashMap::from([
        ("output".to_owned(), text(&step.output)),
        ("stdout".to_owned(), text(&step.stdout)),
        ("stderr".to_owned(), text(&step.stderr)),
        ("exit".to_owned(), Value::Int(step.exit)),
        ("status".to_owned(), Value::Int(step.status)),
        ("ok".to_owned(), Value::Bool(step.ok)),
        ("skipped".to_owned(), Value::Bool(step.skipped)),
        ("duration_ms".to_owned(), Value::Int(step.duration_ms)),
    ])
}

/// Whole numbers become CEL's signed ones, so that they compare with the numbers one writes in a condition.
fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (_, Some(number)) => Value::UInt(number),
            _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.clone()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(members) => {
            let members = members.iter().map(|(name, value)| (name.clone(), from_json(value)));
            Value::from(members.collect::<HashMap<_, _>>())
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Int(_) | Value::UInt(_) | Value::Float(_) => "a number",
        Value::String(_) => "a text",
        Value::List(_) => "a list",
        Value::Map(_) => "a map",
        Value::Null => "null",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hold(condition: &str) -> Result<bool, String> {
        let params = BTreeMap::from([("limit".to_owned(), serde_json::json!(85))]);
        let disks = StepResult { output: "/dev/vda 97% /\n".into(), ok: true, ..StepResult::default() };
        let steps = BTreeMap::from([("disks".to_owned(), disks.clone())]);
        Facts { params: &params, steps: &steps, own: Some(&disks) }.hold(condition).await
    }

    #[tokio::test]
    async fn conditions_speak_of_parameters_earlier_steps_and_the_step_itself() {
        for holds in [
            r#"steps.disks.output.matches("(9[0-9]|100)%")"#,
            r#"output.matches("9[0-9]%")"#,
            "params.limit > 80 && params.limit == 85",
            "steps.disks.ok && exit == 0 && !skipped",
            "steps.disks.duration_ms < 10 || false",
            r#"size(output) > 3 && output.contains("vda")"#,
        ] {
            assert_eq!(hold(holds).await, Ok(true), "{holds}");
        }
        assert_eq!(hold(r#"output.matches("^$")"#).await, Ok(false));
    }

    #[tokio::test]
    async fn many_brackets_end_neither_the_thread_nor_the_server() {
        let nested = |depth| format!("{}params.limit > 80{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(hold(&nested(30)).await, Ok(true));
        assert!(check(&nested(2000)).is_err());
    }

    #[tokio::test]
    async fn what_cannot_be_said_is_an_error_in_one_line() {
        assert!(hold("steps.nowhere.ok").await.unwrap_err().contains("nowhere"));
        assert!(hold("params.limit").await.unwrap_err().contains("a number"));
        assert!(hold(r#"output.matches("(")"#).await.is_err());
        let wrong = check("steps.disks.output.matches(").unwrap_err();
        assert!(!wrong.contains('\n') && !wrong.is_empty());
        assert_eq!(check("params.limit > 3"), Ok(()));
    }
}
