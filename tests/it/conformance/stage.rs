//! Plays a case against a server: its clients do what the case says and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::bench::{Bench, Not};
use super::case::{Asked, Case, Said, Step, Via};
use super::line::{Heard, Line, PATIENCE};
use super::pattern::{Memory, check, fill};

/// The first number of the subscriptions by which a client asks whether more is to come.
const QUESTIONS: u64 = 2_000_000_000;
/// A frame of events holds no more, unless it holds one.
const FRAME: (usize, usize) = (256, 32 * 1024);
/// No frame of a server is larger.
const LARGEST: usize = 384 * 1024;

/// Plays a case; what did not hold, with the step.
pub async fn play(case: Case) -> Result<(), Not> {
    let mut stage = Stage {
        bench: Bench::start(&case.settings).await?,
        lines: BTreeMap::new(),
        browsers: BTreeMap::new(),
        memory: Memory::new(),
        revisions: BTreeMap::new(),
        questions: QUESTIONS,
    };
    for (n, step) in case.steps.into_iter().enumerate() {
        let words: String = format!("{step:?}").chars().take(160).collect();
        stage.step(step).await.map_err(|not| match not {
            Not::Done(why) => Not::Done(format!("step {}: {why} [{words}]", n + 1)),
            not @ Not::Possible(_) => not,
        })?;
    }
    stage.lines.clear();
    stage.bench.stop().await;
    Ok(())
}

struct Stage {
    bench: Bench,
    lines: BTreeMap<String, Line>,
    browsers: BTreeMap<String, Browser>,
    memory: Memory,
    /// The last revision of the list of tasks that came over each line.
    revisions: BTreeMap<String, u64>,
    questions: u64,
}

/// A browser that signed in.
struct Browser {
    cookie: String,
    device: String,
}

impl Stage {
    async fn step(&mut self, step: Step) -> Result<(), Not> {
        match step {
            Step::Task { task, work } => self.bench.task(&task, work).await,
            Step::Remove { task } => match self.bench.client().delete(&format!("/tasks/{task}?stop=true")).await {
                (204, _) => Ok(()),
                other => Err(format!("the task could not be deleted: {other:?}").into()),
            },
            Step::Begin { task, run, queued_only } => {
                let id = self.bench.begin(&task, &run, queued_only).await?;
                self.memory.insert(run, id);
                Ok(())
            }
            Step::Say { run, count, bytes, events } => self.say(&run, count, bytes, events).await,
            Step::Delta { run, key, text } => self.bench.delta(&run, &key, &text).await,
            Step::End { run, state } => self.bench.end(&run, &state).await,
            Step::Forget { task, below } => self.bench.forget(&task, below).await,
            Step::Notice { code, text, over } => self.bench.notice(&code, &text, over).await,
            Step::Look { task, save } => {
                let (_, page) = self.bench.client().get(&format!("/tasks/{task}/events")).await;
                self.memory.insert(save, page["gen"].clone());
                Ok(())
            }
            Step::Restart {} => self.bench.restart().await,
            Step::Drain {} => self.bench.drain().await,
            of_a_client => Ok(self.act(of_a_client).await?),
        }
    }

    async fn act(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::SignIn { name } => self.sign_in(name).await,
            Step::SignOut { name } => {
                let device = &self.browsers.get(&name).ok_or("nobody signed in under this name")?.device;
                match self.bench.client().delete(&format!("/session/devices/{device}")).await {
                    (204, _) => Ok(()),
                    other => Err(format!("the browser could not be signed out: {other:?}")),
                }
            }
            Step::Open { name, via, ask, small_window, answer } => {
                self.open(name, via, &ask, small_window, answer.as_ref()).await
            }
            Step::Hello { name, client, attempt, tasks, subscribe, credential, small_window, welcome } => {
                let ask = Asked { credential, ..Asked::default() };
                self.open(name.clone(), Via::Live, &ask, small_window, None).await?;
                let client = json!({ "$uuid": client.as_ref().unwrap_or(&name) });
                let mut hello = json!({ "type": "hello", "protocol": 1, "client": client, "attempt": attempt.unwrap_or(1), "subscribe": subscribe });
                if let Some(tasks) = tasks {
                    hello["tasks"] = json!(tasks);
                }
                self.send(&name, hello).await?;
                let got = self.message(&name, "welcome").await?;
                check(&json!({ "type": "welcome" }), Some(&got), &mut self.memory, "the frame")?;
                check(&welcome.unwrap_or_else(|| json!({})), Some(&got), &mut self.memory, "the frame")
            }
            Step::Send { to, frame, text, binary, times } => {
                let text = match (frame, text) {
                    (Some(frame), None) => fill(&frame, &mut self.memory)?.to_string(),
                    (None, Some(text)) => match fill(&text, &mut self.memory)? {
                        Value::String(text) => text,
                        other => other.to_string(),
                    },
                    _ => return Err("either a frame or a text is sent".to_owned()),
                };
                for _ in 0..times.unwrap_or(1) {
                    let message =
                        if binary { Message::binary(text.clone().into_bytes()) } else { Message::text(text.clone()) };
                    self.line(&to)?.say(message).await?;
                }
                Ok(())
            }
            Step::Expect { from, frame } => {
                let got = self.message(&from, name_of(&frame)).await?;
                check(&frame, Some(&got), &mut self.memory, "the frame")
            }
            Step::ExpectAll { from, mut frames } => {
                while !frames.is_empty() {
                    let got = self.message(&from, "").await?;
                    let fits = |frame: &Value| check(frame, Some(&got), &mut self.memory.clone(), "").is_ok();
                    let index =
                        frames.iter().position(fits).ok_or_else(|| format!("none of these was to come: {got}"))?;
                    check(&frames.remove(index), Some(&got), &mut self.memory, "the frame")?;
                }
                Ok(())
            }
            Step::Events { from, sub, first, last, items, id, frames } => {
                let wanted = Wanted { sub, first, last, items, id, frames };
                self.events(&from, wanted).await
            }
            Step::Until { from, frame } => {
                let deadline = Instant::now() + PATIENCE;
                loop {
                    let got = self.message(&from, name_of(&frame)).await?;
                    if check(&frame, Some(&got), &mut self.memory.clone(), "").is_ok() {
                        return check(&frame, Some(&got), &mut self.memory, "the frame");
                    }
                    if Instant::now() > deadline {
                        return Err(format!("never came: {frame}"));
                    }
                }
            }
            Step::Silent { from } => self.silent(&from).await,
            Step::Closed { from, code, reason, within_ms, after_others } => {
                let within = within_ms.map_or(PATIENCE, Duration::from_millis);
                let closed = self.closed(&from, code, reason.as_ref(), after_others);
                timeout(within, closed).await.map_err(|_| format!("not closed within {} ms", within.as_millis()))?
            }
            Step::Close { name } => {
                let mut line = self.lines.remove(&name).ok_or("there is no such connection")?;
                line.say(Message::Close(None)).await?;
                while matches!(line.hear().await?, Heard::Message(_)) {}
                Ok(())
            }
            Step::Cut { name } => self.lines.remove(&name).map(drop).ok_or("there is no such connection".to_owned()),
            Step::Ask { ask, answer, until } => {
                let deadline = Instant::now() + PATIENCE;
                loop {
                    let got = self.ask(&ask).await?;
                    let checked = check(&answer, Some(&got), &mut self.memory, "the answer");
                    if !until || checked.is_ok() || Instant::now() > deadline {
                        return checked;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Step::Check { value, is } => {
                let value = fill(&value, &mut self.memory)?;
                check(&is, Some(&value), &mut self.memory, "what was saved")
            }
            of_the_server => Err(format!("no client does this: {of_the_server:?}")),
        }
    }

    async fn say(
        &mut self,
        run: &str,
        count: Option<u64>,
        bytes: Option<usize>,
        mut events: Vec<Said>,
    ) -> Result<(), Not> {
        for event in &mut events {
            event.data = fill(&event.data, &mut self.memory)?;
        }
        events.extend((0..count.unwrap_or(0)).map(|n| {
            let text = bytes.map_or_else(|| format!("thought {n}"), |bytes| "x".repeat(bytes));
            Said { kind: "thought".to_owned(), data: json!({ "text": text }) }
        }));
        self.bench.say(run, events).await
    }

    async fn sign_in(&mut self, name: String) -> Result<(), String> {
        let address = self.bench.client().address;
        let post =
            http().post(format!("http://{address}/api/v1/session")).header("Origin", format!("http://{address}"));
        let response = post
            .json(&json!({ "token": self.bench.client().token() }))
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let cookie = response.headers().get("set-cookie").and_then(|cookie| cookie.to_str().ok());
        let cookie = cookie.and_then(|cookie| cookie.split(';').next()).ok_or("no cookie came")?.to_owned();
        let ask = Asked { path: json!("/session/devices"), credential: Some(name.clone()), ..Asked::default() };
        self.browsers.insert(name.clone(), Browser { cookie, device: String::new() });
        let devices = self.ask(&ask).await?;
        let items = devices["body"]["items"].as_array().ok_or("no devices came")?;
        let device = items.iter().find(|device| device["current"] == true).ok_or("it is not in the list")?;
        let device = device["id"].as_str().unwrap_or_default().to_owned();
        if let Some(browser) = self.browsers.get_mut(&name) {
            browser.device = device;
        }
        Ok(())
    }

    // What clients do.

    fn credential(&self, credential: Option<&str>) -> Result<Vec<(String, String)>, String> {
        let header = |name: &str, value: String| (name.to_owned(), value);
        Ok(match credential.unwrap_or("token") {
            "token" => vec![header("Authorization", format!("Bearer {}", self.bench.client().token()))],
            "wrong" => vec![header("Authorization", format!("Bearer {}", "w".repeat(43)))],
            "none" => Vec::new(),
            name => {
                let browser = self.browsers.get(name).ok_or_else(|| format!("{name} is no credential"))?;
                let origin = format!("http://{}", self.bench.client().address);
                vec![header("Cookie", browser.cookie.clone()), header("Origin", origin)]
            }
        })
    }

    /// The headers of a request: those given replace those of the credential.
    fn headers(&mut self, ask: &Asked) -> Result<Vec<(String, String)>, String> {
        let mut headers = self.credential(ask.credential.as_deref())?;
        for (name, value) in &ask.headers {
            let value = plain(&fill(value, &mut self.memory)?);
            headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            headers.push((name.clone(), value));
        }
        Ok(headers)
    }

    fn request(&mut self, ask: &Asked) -> Result<reqwest::RequestBuilder, String> {
        let path = plain(&fill(&ask.path, &mut self.memory)?);
        let method = ask.method.as_deref().unwrap_or("GET").parse().map_err(|_| "no such method".to_owned())?;
        let query: Vec<(String, String)> = ask
            .query
            .iter()
            .map(|(name, value)| Ok((name.clone(), plain(&fill(value, &mut self.memory)?))))
            .collect::<Result<_, String>>()?;
        let mut url = reqwest::Url::parse(&format!("http://{}/api/v1{path}", self.bench.client().address))
            .map_err(|error| error.to_string())?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = http().request(method, url);
        for (name, value) in self.headers(ask)? {
            request = request.header(name, value);
        }
        if let Some(body) = &ask.body {
            request = request.json(&fill(body, &mut self.memory)?);
        }
        Ok(request)
    }

    async fn ask(&mut self, ask: &Asked) -> Result<Value, String> {
        let response = self.request(ask)?.timeout(PATIENCE).send().await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let headers: Value = response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
            .collect();
        let text = response.text().await.map_err(|error| error.to_string())?;
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(json!({ "status": status, "headers": headers, "body": body }))
    }

    async fn open(
        &mut self,
        name: String,
        via: Via,
        ask: &Asked,
        small_window: bool,
        answer: Option<&Value>,
    ) -> Result<(), String> {
        let opened = match via {
            Via::Live => {
                let headers = self.headers(ask)?;
                Line::live(self.bench.client().address, &headers, small_window).await
            }
            Via::Feed => {
                let mut request = self.request(ask)?;
                if !ask.headers.keys().any(|name| name.eq_ignore_ascii_case("accept")) {
                    request = request.header("Accept", "text/event-stream");
                }
                Line::feed(request).await
            }
        };
        match (opened, answer) {
            (Ok((line, got)), answer) => {
                self.lines.insert(name, line);
                answer.map_or(Ok(()), |answer| check(answer, Some(&got), &mut self.memory, "the answer"))
            }
            (Err(got), Some(answer)) => check(answer, Some(&got), &mut self.memory, "the answer"),
            (Err(got), None) => Err(format!("refused: {got}")),
        }
    }

    fn line(&mut self, name: &str) -> Result<&mut Line, String> {
        self.lines.get_mut(name).ok_or_else(|| format!("there is no connection {name}"))
    }

    async fn send(&mut self, name: &str, frame: Value) -> Result<(), String> {
        let text = fill(&frame, &mut self.memory)?.to_string();
        self.line(name)?.say(Message::text(text)).await
    }

    /// The next message; heartbeats are answered and passed over unless they are wanted, changes of the list too.
    async fn message(&mut self, name: &str, wanted: &str) -> Result<Value, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = match self.line(name)?.hear().await? {
                Heard::Message(message) => message,
                Heard::End(close) => return Err(format!("closed instead: {close:?}")),
            };
            if message.to_string().len() > LARGEST {
                return Err("a frame is larger than 384 KiB".to_owned());
            }
            self.count_revision(name, &message)?;
            let is = |name: &str| name_of(&message) == name && wanted != name;
            if is("heartbeat") {
                if matches!(self.line(name)?, Line::Live(_)) {
                    self.send(name, json!({ "type": "pong", "at": message["at"] })).await?;
                }
            } else if !(is("tasks") && message["full"] == false) {
                return Ok(message);
            }
            if Instant::now() > deadline {
                return Err("only heartbeats came".to_owned());
            }
        }
    }

    /// The number of the list of tasks grows by one with each change, whichever changes come.
    fn count_revision(&mut self, name: &str, message: &Value) -> Result<(), String> {
        let Some(rev) = message["rev"].as_u64().filter(|_| name_of(message) == "tasks") else { return Ok(()) };
        let before = self.revisions.insert(name.to_owned(), rev);
        if message["full"] == true || before.is_some_and(|before| before + 1 == rev) {
            return Ok(());
        }
        Err(format!("a change of the list has revision {rev} behind {before:?}"))
    }

    async fn events(&mut self, name: &str, wanted: Wanted) -> Result<(), String> {
        let number = |value: &Value, memory: &mut Memory| {
            fill(value, memory)?.as_u64().ok_or_else(|| format!("{value} is no number"))
        };
        let (first, last) = (number(&wanted.first, &mut self.memory)?, number(&wanted.last, &mut self.memory)?);
        let (mut next, mut frames, mut events, mut id) = (first, 0_u64, Vec::new(), Value::Null);
        while next <= last {
            let message = self.message(name, "").await?;
            let (frame, is_feed) = match message.get("event").filter(|_| message.get("type").is_none()) {
                Some(_) => (&message["data"], true),
                None => (&message, false),
            };
            let items = match name_of(&message) {
                "event" => vec![frame["event"].clone()],
                "events" => frame["items"].as_array().cloned().unwrap_or_default(),
                _ => return Err(format!("event {next} was to come, not {}", short(&message))),
            };
            check(&wanted.sub.clone().unwrap_or_default(), frame.get("sub"), &mut self.memory, "sub")?;
            for item in &items {
                if item["seq"] != next {
                    return Err(format!("event {next} was to come, not {}", short(&message)));
                }
                next += 1;
            }
            let size = items.iter().map(|item| item.to_string().len() + 1).sum::<usize>() - 1;
            if items.is_empty() || items.len() > FRAME.0 || (items.len() > 1 && size > FRAME.1) {
                return Err(format!("{} events of {size} bytes are in one frame", items.len()));
            }
            if name_of(&message) == "events" && (frame["first"] != items[0]["seq"] || frame["last"] != next - 1) {
                return Err(format!("first and last are not those of the items: {}", short(&message)));
            }
            if is_feed && message["id"].is_null() {
                return Err(format!("events without an id: {}", short(&message)));
            }
            id = message["id"].clone();
            events.extend(items);
            frames += 1;
        }
        if next != last + 1 {
            return Err(format!("the events were to end with {last}, not with {}", next - 1));
        }
        for (item, pattern) in wanted.items.iter().enumerate() {
            check(pattern, events.get(item), &mut self.memory, &format!("event {}", first + item as u64))?;
        }
        if let Some(pattern) = &wanted.id {
            check(pattern, Some(&id), &mut self.memory, "the id")?;
        }
        check(
            &wanted.frames.unwrap_or_else(|| json!({ "$any": true })),
            Some(&json!(frames)),
            &mut self.memory,
            "frames",
        )
    }

    async fn silent(&mut self, name: &str) -> Result<(), String> {
        if matches!(self.line(name)?, Line::Feed(_)) {
            let got = self.message(name, "heartbeat").await?;
            return match name_of(&got) {
                "heartbeat" => Ok(()),
                _ => Err(format!("nothing was to come, not {}", short(&got))),
            };
        }
        self.questions += 1;
        let question =
            json!({ "type": "subscribe", "sub": self.questions, "task": "nothing-has-this-name", "after": 0 });
        self.send(name, question).await?;
        let got = self.message(name, "").await?;
        if got["sub"] == self.questions && got["outcome"] == "not_found" {
            return Ok(());
        }
        Err(format!("nothing was to come, not {}", short(&got)))
    }

    async fn closed(
        &mut self,
        name: &str,
        code: Option<u16>,
        reason: Option<&Value>,
        after_others: bool,
    ) -> Result<(), String> {
        let close = loop {
            match self.line(name)?.hear().await? {
                Heard::End(close) => break close,
                Heard::Message(message) if after_others || name_of(&message) == "heartbeat" => {}
                Heard::Message(message) => return Err(format!("a close was to come, not {}", short(&message))),
            }
        };
        self.lines.remove(name);
        let got = close.as_ref().map(|close| u16::from(close.code));
        if code.is_some() && got != code {
            return Err(format!("closed with {got:?}"));
        }
        let said = close.map(|close| close.reason.to_string()).unwrap_or_default();
        if said.len() > 123 {
            return Err(format!("the reason has {} bytes", said.len()));
        }
        let Some(reason) = reason else { return Ok(()) };
        let said: Value = serde_json::from_str(&said).map_err(|_| format!("the reason is no JSON: {said}"))?;
        check(reason, Some(&said), &mut self.memory, "the reason")
    }
}

/// The events that are to come.
struct Wanted {
    sub: Option<Value>,
    first: Value,
    last: Value,
    items: Vec<Value>,
    id: Option<Value>,
    frames: Option<Value>,
}

/// The name of a frame, or of an event of a stream.
fn name_of(message: &Value) -> &str {
    message["type"].as_str().or(message["event"].as_str()).unwrap_or_default()
}

fn short(message: &Value) -> String {
    message.to_string().chars().take(400).collect()
}

/// As it stands in a header or an address.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}
