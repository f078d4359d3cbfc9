//! `rejoin tasks add` and `tasks run`: how words, files and flags become a run or a task.

use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::Session;
use super::failure::{Failure, Result};
use super::tasks::{all, get, read, resolve, said_of, slot_lines};
use super::watch::{self, Show};
use super::wire::{Made, Task};
use super::{matching, table, times};

/// What `tasks add` takes.
#[derive(Debug, Default, clap::Args)]
pub struct Add {
    /// The title or id of a task to run, the title of a new one (with --run), or a task file
    #[arg(value_name = "TEXT|FILE.toml")]
    text: String,
    /// A shell command of a new task; may be given several times
    #[arg(long, value_name = "CMD")]
    run: Vec<String>,
    /// A parameter
    #[arg(short, long = "param", value_name = "KEY=VALUE")]
    param: Vec<String>,
    /// The id of a new task; made of its title without
    #[arg(long)]
    id: Option<String>,
    /// Do it once, however often this is sent with the same key
    #[arg(long, value_name = "KEY")]
    once: Option<String>,
    /// Show what would be made, or why it would not, and make nothing; --once is left aside
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    until: Until,
    #[command(flatten)]
    schedule: ScheduleFlags,
    #[command(flatten)]
    policy: PolicyFlags,
    #[command(flatten)]
    telling: TellingFlags,
}

/// Whether to stay until the run is over.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Until {
    /// Watch the run until it is over; Ctrl-C ends the viewer only
    #[arg(long, conflicts_with = "wait")]
    watch: bool,
    /// Wait until the run is over
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Schedule")]
struct ScheduleFlags {
    /// A cron expression: 5 fields, or 6 with seconds
    #[arg(long, value_name = "EXPR", conflicts_with_all = ["every", "at"])]
    cron: Option<String>,
    /// The time zone, such as Europe/Berlin
    #[arg(long, value_name = "ZONE", conflicts_with = "every")]
    tz: Option<String>,
    /// A distance, such as 30m
    #[arg(long, value_name = "DURATION", conflicts_with = "at")]
    every: Option<String>,
    /// Once: a time, or a distance from now such as 20m
    #[arg(long, value_name = "TIME|20m")]
    at: Option<String>,
    /// Start each time so much later at most, by a length drawn for it
    #[arg(long, value_name = "DURATION")]
    jitter: Option<String>,
    /// Start all times later by a length of the task's own, so that tasks due together do not start together
    #[arg(long)]
    stagger: bool,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Policy")]
struct PolicyFlags {
    /// What carries the task out
    #[arg(long)]
    agent: Option<String>,
    /// What to do when a time comes while a run is not over
    #[arg(long, value_parser = ["skip", "queue", "replace", "allow"])]
    overlap: Option<String>,
    /// How many wait with "queue"
    #[arg(long, value_name = "COUNT")]
    queue_limit: Option<u32>,
    /// What to do about times that passed while the server was down
    #[arg(long, value_parser = ["none", "last", "all"])]
    catchup: Option<String>,
    /// How old such a time may be
    #[arg(long, value_name = "DURATION")]
    catchup_window: Option<String>,
    /// How many such times run with "all"
    #[arg(long, value_name = "COUNT")]
    catchup_limit: Option<u32>,
    /// What to keep of it, such as runs=50,days=30,events=100000,bytes=100MiB
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = keep)]
    keep: Option<Value>,
    /// How long a run may take
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// How long a run may say nothing
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<String>,
    /// How often a failed run is tried again
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// How long to wait before that: from, to
    #[arg(long, value_name = "30s..10m")]
    backoff: Option<String>,
    /// After which exit codes only; may be given several times
    #[arg(long, value_name = "CODE", value_delimiter = ',', allow_negative_numbers = true)]
    retry_on: Vec<i64>,
    /// What to do about a run whose server ended under it
    #[arg(long, value_parser = ["fail", "retry"])]
    on_crash: Option<String>,
    /// After how many failures in a row the task pauses itself; 0 is never
    #[arg(long, value_name = "N")]
    pause_after: Option<u32>,
    /// The pool of which its runs take a place
    #[arg(long, value_name = "POOL")]
    concurrency: Option<String>,
}

#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Notifications")]
struct TellingFlags {
    /// The channel that people are told of it by, instead of those for every task; may be given several times
    #[arg(long, value_name = "CHANNEL", value_delimiter = ',')]
    notify: Vec<String>,
}

impl ScheduleFlags {
    /// The `schedule` member of a task; none without flags.
    fn as_json(&self) -> Option<Value> {
        let schedule = members([
            ("cron", self.cron.clone().map(Value::from)),
            ("every", self.every.clone().map(Value::from)),
            ("at", self.at.clone().map(Value::from)),
            ("tz", self.tz.clone().map(Value::from)),
            ("jitter", self.jitter.clone().map(Value::from)),
            ("stagger", self.stagger.then_some(Value::from(true))),
        ]);
        (!schedule.is_empty()).then_some(Value::Object(schedule))
    }
}

impl PolicyFlags {
    /// The `policy` member of a task; none without flags.
    fn as_json(&self) -> Option<Value> {
        let policy = members([
            ("overlap", self.overlap.clone().map(Value::from)),
            ("queue_limit", self.queue_limit.map(Value::from)),
            ("catchup", self.catchup.clone().map(Value::from)),
            ("catchup_window", self.catchup_window.clone().map(Value::from)),
            ("catchup_limit", self.catchup_limit.map(Value::from)),
            ("keep", self.keep.clone()),
            ("timeout", self.timeout.clone().map(Value::from)),
            ("idle_timeout", self.idle_timeout.clone().map(Value::from)),
            ("retries", self.retries.map(Value::from)),
            ("backoff", self.backoff.clone().map(Value::from)),
            ("retry_on", (!self.retry_on.is_empty()).then(|| self.retry_on.clone().into())),
            ("on_crash", self.on_crash.clone().map(Value::from)),
            ("pause_after", self.pause_after.map(Value::from)),
            ("concurrency", self.concurrency.clone().map(Value::from)),
        ]);
        (!policy.is_empty()).then_some(Value::Object(policy))
    }
}

impl TellingFlags {
    /// The `notify` member of a task; none without flags.
    fn as_json(&self) -> Option<Value> {
        let notify = members([("channels", (!self.notify.is_empty()).then(|| self.notify.clone().into()))]);
        (!notify.is_empty()).then_some(Value::Object(notify))
    }
}

/// Reads `runs=50,bytes=100MiB`. Whether the keys and values are good is the server's to say, as for a file.
fn keep(text: &str) -> std::result::Result<Value, String> {
    let mut members = Map::new();
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is no KEY=VALUE: write it like runs=50,days=30,bytes=100MiB"))?;
        let (key, value) = (key.trim(), value.trim());
        let value = value.parse::<i64>().map_or_else(|_| Value::from(value), Value::from);
        if members.insert(key.to_owned(), value).is_some() {
            return Err(format!("{key:?} is there twice"));
        }
    }
    Ok(Value::Object(members))
}

fn members<const N: usize>(given: [(&str, Option<Value>); N]) -> Map<String, Value> {
    given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// What the command line asks for, once it is known which tasks there are.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Run this task.
    Run { task: String, params: Map<String, Value> },
    /// Make this task.
    Make { body: Map<String, Value> },
}

/// Runs the task that the words mean, or makes a new one.
pub async fn add(session: Session, add: Add) -> Result<()> {
    let plan = if Path::new(&add.text).extension().is_some_and(|extension| extension == "toml") {
        plan_of_file(&add)?
    } else {
        match (plan_of_words(&add, &all(&session).await?), &add.once) {
            (Err(Failure::Conflict(taken)), Some(key)) if !add.dry_run => {
                let answer = made_before(&session, &add, key, taken).await?;
                return report(session, answer, add.until).await;
            }
            (plan, _) => plan?,
        }
    };
    if add.dry_run {
        return dry_run(&session, &plan).await;
    }
    let once = add.once.as_deref();
    let answer = match plan {
        Plan::Run { task, params } => start(&session, &task, params, once).await?,
        Plan::Make { body } => session.client.post(&["tasks"], &Value::Object(body), once).await?,
    };
    report(session, answer, add.until).await
}

/// The task that has the title may be the very one that this line has made, sent again under its key.
async fn made_before(session: &Session, add: &Add, key: &str, taken: String) -> Result<Value> {
    let Plan::Make { body } = make(add)? else { return Err(Failure::Conflict(taken)) };
    match session.client.post_again(&["tasks"], &Value::Object(body), key).await {
        Err(Failure::NotFound(_)) => Err(Failure::Conflict(taken)),
        answer => answer,
    }
}

/// `tasks run`: runs a task now.
pub async fn run(session: Session, words: &str, given: &[String], until: Until, once: Option<&str>) -> Result<()> {
    let id = resolve(&session, words).await?;
    let task: Task = read(get(&session, &id).await?)?;
    let params = params_for(&task, given)?;
    let answer = start(&session, &id, params, once).await?;
    report(session, answer, until).await
}

async fn start(session: &Session, task: &str, params: Map<String, Value>, once: Option<&str>) -> Result<Value> {
    session.client.post(&["tasks", task, "runs"], &json!({ "params": params }), once).await
}

fn plan_of_words(add: &Add, tasks: &[Task]) -> Result<Plan> {
    let found = matching::find(&add.text, tasks)?;
    let given = [add.schedule.as_json(), add.policy.as_json(), add.telling.as_json()];
    let changes = given.iter().any(Option::is_some) || add.policy.agent.is_some();
    let makes = !add.run.is_empty() || add.id.is_some();
    match found {
        Some(task) if add.id.is_none() && (changes || makes) => Err(Failure::Conflict(match task.source.as_str() {
            "file" => format!(
                "{:?} is task {} already, and a file keeps it: change the file, or give another title (or --id).",
                add.text, task.id
            ),
            _ => format!(
                "{:?} is task {} already: remove it first (rejoin tasks remove {}), or give another title (or --id).",
                add.text, task.id, task.id
            ),
        })),
        Some(task) if !makes => Ok(Plan::Run { task: task.id.clone(), params: params_for(task, &add.param)? }),
        _ if add.run.is_empty() && add.policy.agent.as_deref().is_none_or(|agent| agent == "steps") => {
            Err(Failure::Usage(no_such_title(&add.text, tasks)))
        }
        _ => make(add),
    }
}

fn make(add: &Add) -> Result<Plan> {
    let mut body = members([
        ("title", Some(add.text.clone().into())),
        ("agent", add.policy.agent.clone().map(Value::from)),
        ("id", add.id.clone().map(Value::from)),
        ("schedule", add.schedule.as_json()),
        ("policy", add.policy.as_json()),
        ("notify", add.telling.as_json()),
    ]);
    if is_elsewhere(&body) {
        // Its runs are opened by its program; who stays for one wants one now.
        if add.until.watch || add.until.wait {
            body.insert("run".into(), true.into());
        }
    } else if add.run.is_empty() {
        body.insert("instruction".into(), add.text.clone().into());
    }
    if !add.run.is_empty() {
        let steps: Vec<Value> = add.run.iter().map(|command| json!({ "run": command })).collect();
        body.insert("steps".into(), steps.into());
    }
    let mut params = Map::new();
    for given in &add.param {
        let (name, value) = pair(given)?;
        params.insert(name.to_owned(), json!({ "default": value }));
    }
    if !params.is_empty() {
        body.insert("params".into(), params.into());
    }
    Ok(Plan::Make { body })
}

/// Whether the work of a new task is done by a program elsewhere.
fn is_elsewhere(body: &Map<String, Value>) -> bool {
    body.get("agent").is_some_and(|agent| agent == "external")
}

fn no_such_title(words: &str, tasks: &[Task]) -> String {
    let near = matching::nearest(words, tasks);
    let near: Vec<String> = near.iter().map(|task| format!("{:?}", task.title)).collect();
    let near = if near.is_empty() { String::new() } else { format!(" Near: {}.", near.join(", ")) };
    format!(
        "There is no task called {words:?}, and nothing was made.{near} Either run one that is there (rejoin tasks \
         list), or say what the new one does: rejoin tasks add {words:?} --run 'COMMAND'."
    )
}

fn plan_of_file(add: &Add) -> Result<Plan> {
    if !add.run.is_empty() {
        return Err(Failure::Usage("a task file has its own steps: leave out --run".into()));
    }
    let path = Path::new(&add.text);
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
    let table: toml::Table = text.parse().map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let Value::Object(mut body) = as_json(toml::Value::Table(table)) else {
        return Err(Failure::Usage(format!("{} is no task file", path.display())));
    };
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    if let Some(id) = add.id.clone().or(stem) {
        body.insert("id".into(), id.into());
    }
    if let Some(agent) = &add.policy.agent {
        body.insert("agent".into(), agent.clone().into());
    }
    if let Some(schedule) = add.schedule.as_json() {
        body.insert("schedule".into(), schedule);
    }
    for (key, flags) in [("policy", add.policy.as_json()), ("notify", add.telling.as_json())] {
        let Some(Value::Object(flags)) = flags else { continue };
        match body.get_mut(key) {
            Some(Value::Object(in_file)) => in_file.extend(flags),
            _ => drop(body.insert(key.into(), flags.into())),
        }
    }
    for given in &add.param {
        let (name, value) = pair(given)?;
        let Some(param) = body.get_mut("params").and_then(|params| params.get_mut(name)) else {
            return Err(Failure::Usage(format!("{} has no parameter {name:?}", path.display())));
        };
        let typed = typed(param.get("default"), name, value)?;
        match param {
            Value::Object(param) => drop(param.insert("default".into(), typed)),
            other => *other = typed,
        }
    }
    Ok(Plan::Make { body })
}

/// TOML as JSON; a time becomes its text.
fn as_json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(items) => items.into_iter().map(as_json).collect::<Vec<_>>().into(),
        toml::Value::Table(table) => {
            table.into_iter().map(|(key, value)| (key, as_json(value))).collect::<Map<_, _>>().into()
        }
    }
}

fn pair(given: &str) -> Result<(&str, &str)> {
    given
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| Failure::Usage(format!("-p takes KEY=VALUE, not {given:?}")))
}

/// The parameters of a run, each of the type that its default has; without one it is text as it stands.
fn params_for(task: &Task, given: &[String]) -> Result<Map<String, Value>> {
    let mut params = Map::new();
    for given in given {
        let (name, value) = pair(given)?;
        let Some(param) = task.params.get(name) else {
            let names: Vec<&str> = task.params.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "it has none".into() } else { format!("it has {}", names.join(", ")) };
            return Err(Failure::Usage(format!("task {} has no parameter {name:?}: {names}", task.id)));
        };
        params.insert(name.to_owned(), typed(param.get("default"), name, value)?);
    }
    Ok(params)
}

fn typed(default: Option<&Value>, name: &str, value: &str) -> Result<Value> {
    let wrong = |kind: &str| Failure::Usage(format!("parameter {name:?} is {kind}, not {value:?}"));
    match default {
        Some(Value::Number(_)) => match serde_json::from_str(value) {
            Ok(number @ Value::Number(_)) => Ok(number),
            _ => Err(wrong("a number")),
        },
        Some(Value::Bool(_)) => value.parse::<bool>().map(Value::from).map_err(|_| wrong("true or false")),
        Some(Value::Array(_) | Value::Object(_)) => serde_json::from_str(value).map_err(|_| wrong("JSON")),
        _ => Ok(value.into()),
    }
}

/// Shows what would be made, and at which times it would run. A new task that the server would not make it refuses here
/// too.
async fn dry_run(session: &Session, plan: &Plan) -> Result<()> {
    let screen = &session.screen;
    if let Plan::Make { body } = plan {
        session.client.try_task(&Value::Object(body.clone())).await?;
    }
    let (would, schedule) = match plan {
        Plan::Run { task, params } => (json!({ "run": { "task": task, "params": params } }), None),
        Plan::Make { body } => (json!({ "make": body }), body.get("schedule").cloned()),
    };
    let times = match schedule {
        Some(mut ask) => {
            ask["n"] = 5.into();
            Some(session.client.post(&["schedule", "preview"], &ask, None).await?)
        }
        None => None,
    };
    if screen.json {
        let of = |name: &str| times.as_ref().and_then(|times| times.get(name));
        let (items, words, zone) = (of("items"), of("words"), of("zone"));
        return screen.document(&json!({ "would": would, "times": items, "words": words, "zone": zone }));
    }
    match plan {
        Plan::Run { task, params } if params.is_empty() => screen.line(&format!("Would run task {task} now."))?,
        Plan::Run { task, params } => {
            screen.line(&format!("Would run task {task} now, with {}.", Value::from(params.clone())))?;
        }
        Plan::Make { body } => {
            screen.line("Would make this task:")?;
            screen.document(body)?;
        }
    }
    match times {
        Some(times) => {
            let said = said_of(&times)
                .map_or_else(|| "at:".to_owned(), |said| said.replacen(". Times", ". The next times", 1));
            screen.line(&format!("It would run {said}"))?;
            slot_lines(&times)?.iter().try_for_each(|line| screen.line(&format!("  {line}")))?;
        }
        None => match plan {
            Plan::Make { body } if is_elsewhere(body) && !body.contains_key("run") => {
                screen.line("It would run when its program opens a run.")?;
            }
            Plan::Make { .. } => screen.line("It would run once, now.")?,
            Plan::Run { .. } => {}
        },
    }
    screen.say("Nothing was made.");
    Ok(())
}

/// Names the task, the run and the page, and stays until the run is over where that is wanted.
pub(super) async fn report(session: Session, mut answer: Value, until: Until) -> Result<()> {
    let made: Made = read(answer.clone())?;
    let screen = session.screen;
    let stays = until.watch || until.wait;
    let next = made.task.as_ref().and_then(|task| task.next_at);
    let runs = made.task.as_ref().and_then(|task| task.schedule_words.clone());
    let task = made.run.as_ref().map(|run| run.task.clone()).or_else(|| made.task.map(|task| task.id));
    let facts = table::facts(&[
        ("task", task),
        ("run", made.run.as_ref().map(|run| run.id.clone())),
        ("runs", runs),
        ("next", next.map(|at| times::with_distance(at, Timestamp::now(), &TimeZone::system()))),
        ("page", made.url),
    ]);
    match (screen.json, stays && made.run.is_some()) {
        (false, _) => screen.line(&facts)?,
        // The stream, or the document at the end, is the data; these are words then.
        (true, true) => screen.say(&facts),
        (true, false) => screen.document(&answer)?,
    }
    let Some(run) = made.run.filter(|_| stays) else {
        if stays {
            screen.say("There is no run to stay for: it runs at its times.");
        }
        return Ok(());
    };
    let show = if until.watch { Show::Everything } else { Show::End };
    let over = watch::until_over(&session, &run, show).await?;
    if screen.json && until.wait {
        answer["run"] = session.run(&over.run).await?;
        screen.document(&answer)?;
    }
    over.result()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Vec<Task> {
        let tasks = json!([
            {"id": "smart-maintenance", "title": "Run smart maintenance", "source": "file",
             "params": {"limit": {"default": 85}, "name": {"default": "x"}, "dry": {"default": true}}},
            {"id": "mine", "title": "My own", "source": "store"},
        ]);
        serde_json::from_value(tasks).unwrap()
    }

    fn add(text: &str) -> Add {
        Add { text: text.into(), ..Add::default() }
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn words_that_name_a_task_run_it_with_parameters_of_its_types() {
        let given = Add { param: words(&["limit=90", "name=01", "dry=false"]), ..add("run smart MAINTENANCE!") };
        let Plan::Run { task, params } = plan_of_words(&given, &tasks()).unwrap() else { panic!("a run") };
        assert_eq!(task, "smart-maintenance");
        assert_eq!(Value::Object(params), json!({"limit": 90, "name": "01", "dry": false}));
    }

    #[test]
    fn a_parameter_that_the_task_does_not_have_is_refused() {
        for (given, part) in [("limti=90", "no parameter"), ("limit=many", "a number"), ("limit", "KEY=VALUE")] {
            let wrong = Add { param: words(&[given]), ..add("smart-maintenance") };
            let failure = plan_of_words(&wrong, &tasks()).unwrap_err();
            assert_eq!(failure.code(), 2);
            assert!(failure.to_string().contains(part), "{failure}");
        }
    }

    #[test]
    fn words_that_name_nothing_make_nothing_and_show_the_two_ways_on() {
        let failure = plan_of_words(&add("Run smart maintenence"), &tasks()).unwrap_err();
        assert_eq!(failure.code(), 2);
        let words = failure.to_string();
        for part in ["nothing was made", "\"Run smart maintenance\"", "rejoin tasks list", "--run"] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }

    #[test]
    fn commands_make_a_new_task_with_its_schedule_and_policy() {
        let given = Add {
            run: words(&["echo 1", "echo 2"]),
            param: words(&["who=me"]),
            schedule: ScheduleFlags {
                cron: Some("0 3 * * *".into()),
                tz: Some("Europe/Berlin".into()),
                ..ScheduleFlags::default()
            },
            policy: PolicyFlags {
                overlap: Some("queue".into()),
                queue_limit: Some(5),
                catchup_window: Some("6h".into()),
                retries: Some(3),
                ..PolicyFlags::default()
            },
            telling: TellingFlags { notify: words(&["phone", "team"]) },
            ..add("Say hello")
        };
        let Plan::Make { body } = plan_of_words(&given, &tasks()).unwrap() else { panic!("a task") };
        assert_eq!(
            Value::Object(body),
            json!({
                "title": "Say hello",
                "steps": [{"run": "echo 1"}, {"run": "echo 2"}],
                "schedule": {"cron": "0 3 * * *", "tz": "Europe/Berlin"},
                "policy": {"overlap": "queue", "queue_limit": 5, "catchup_window": "6h", "retries": 3},
                "notify": {"channels": ["phone", "team"]},
                "params": {"who": {"default": "me"}},
            })
        );
    }

    #[test]
    fn a_schedule_for_a_task_that_is_there_already_is_a_conflict() {
        let every = || ScheduleFlags { every: Some("30m".into()), ..ScheduleFlags::default() };
        let of_file = plan_of_words(&Add { schedule: every(), ..add("smart-maintenance") }, &tasks()).unwrap_err();
        assert_eq!(of_file.code(), 6);
        assert!(of_file.to_string().contains("change the file"), "{of_file}");
        let telling = TellingFlags { notify: words(&["phone"]) };
        let told = plan_of_words(&Add { telling, ..add("smart-maintenance") }, &tasks()).unwrap_err();
        assert_eq!(told.code(), 6, "{told}");
        let of_store = plan_of_words(&Add { run: words(&["true"]), ..add("My own") }, &tasks()).unwrap_err();
        assert_eq!(of_store.code(), 6);
        assert!(of_store.to_string().contains("rejoin tasks remove mine"), "{of_store}");
    }

    #[test]
    fn a_program_elsewhere_gets_no_instruction_and_opens_its_runs_itself() {
        let elsewhere = |until: Until| {
            let policy = PolicyFlags { agent: Some("external".into()), ..PolicyFlags::default() };
            let Ok(Plan::Make { body }) = plan_of_words(&Add { policy, until, ..add("Load report") }, &tasks()) else {
                panic!("no task is made");
            };
            Value::Object(body)
        };
        assert_eq!(elsewhere(Until::default()), json!({"title": "Load report", "agent": "external"}));
        let stays = elsewhere(Until { watch: true, wait: false });
        assert_eq!(stays, json!({"title": "Load report", "agent": "external", "run": true}));
    }

    #[test]
    fn an_agent_that_takes_words_is_left_to_the_server_to_judge() {
        let given =
            Add { policy: PolicyFlags { agent: Some("model".into()), ..PolicyFlags::default() }, ..add("Tidy up") };
        let Plan::Make { body } = plan_of_words(&given, &tasks()).unwrap() else { panic!("a task") };
        assert_eq!(Value::Object(body), json!({"title": "Tidy up", "agent": "model", "instruction": "Tidy up"}));
    }

    #[test]
    fn a_file_becomes_the_same_task_as_json_with_flags_over_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello.toml");
        std::fs::write(
            &path,
            "title = \"Hello\"\n[schedule]\nat = 2026-12-01T03:00:00Z\n[policy]\ntimeout = \"5m\"\noverlap = \"skip\"\n\
             [notify]\nchannels = [\"phone\"]\non = [\"failed\"]\n[params]\nn = { default = 1 }\n[[steps]]\nrun = \"true\"\n",
        )
        .unwrap();
        let given = Add {
            param: words(&["n=2"]),
            policy: PolicyFlags { timeout: Some("9m".into()), ..PolicyFlags::default() },
            telling: TellingFlags { notify: words(&["team"]) },
            ..add(path.to_str().unwrap())
        };
        let Plan::Make { body } = plan_of_file(&given).unwrap() else { panic!("a task") };
        assert_eq!(
            Value::Object(body),
            json!({
                "id": "hello", "title": "Hello", "schedule": {"at": "2026-12-01T03:00:00Z"},
                "policy": {"timeout": "9m", "overlap": "skip"}, "params": {"n": {"default": 2}},
                "notify": {"channels": ["team"], "on": ["failed"]}, "steps": [{"run": "true"}],
            })
        );
        assert_eq!(plan_of_file(&add("none.toml")).unwrap_err().code(), 2);
    }
}
