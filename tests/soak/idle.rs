//! Idle for more than half an hour: a socket, a stream of events, the client of the command line and a reader of pages
//! see runs that are a quarter of an hour apart on the connections they opened at the beginning, come back after a
//! refresh, and see the next. Meanwhile the server uses next to no processor time, and neither does one with a hundred
//! tasks that nobody watches.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rejoin::cli::live::{Live, Step};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::feed_stage::Stream;
use crate::harness::raw_events;
use crate::harness::{Home, PATIENCE, Process, Watcher, is_terminal};
use crate::part::{Part, play};
use crate::probe::Probe;
use crate::road::Road;
use crate::viewer::Dialer;

/// Runs are seen at the beginning, after one, two and three of these.
const GAPS: u32 = 3;
/// A side that heard nothing for so long takes the line for dead: what the protocol promises not to happen to a line
/// that is only idle.
const LIFE: Duration = Duration::from_secs(35);
/// How often the reader of pages looks.
const LOOK: Duration = Duration::from_secs(20);
/// After a run, and before the next is due, so much is left out of what counts as idle.
const MARGIN: Duration = Duration::from_secs(3);
/// What an idle server may use of one core, with and without watchers.
const MOST: f64 = 0.002;
/// The same for a server with a hundred tasks that nobody watches, and its memory.
const MOST_ALONE: f64 = 0.001;
const MOST_ALONE_KIB: u64 = 30 * 1024;

const WHO: [&str; 4] = ["socket", "stream", "command line", "pages"];

/// An event that somebody got.
struct Got {
    who: &'static str,
    /// Of which connection: 1 is the one opened at the beginning.
    connection: u32,
    seq: u64,
    text: String,
    at: Instant,
}

type Say = mpsc::UnboundedSender<Got>;

/// What one has by now.
#[derive(Clone, Default)]
struct Has {
    generation: Option<String>,
    position: u64,
}

fn tell(say: &Say, who: &'static str, connection: u32, has: &mut Has, seq: u64, text: String) {
    has.position = seq;
    let _ = say.send(Got { who, connection, seq, text, at: Instant::now() });
}

/// A socket that answers heartbeats and does nothing else; it fails when its connection ends.
async fn socket(road: Arc<Road>, connection: u32, mut has: Has, say: Say) {
    let client = road.client().unwrap();
    let mut watcher = Watcher::open(client.address, Some(&client.token)).await;
    let subscribe = json!([{ "sub": 1, "task": "half-hour", "gen": has.generation, "after": has.position }]);
    watcher.hello("an idle page", u64::from(connection), subscribe).await;
    loop {
        let message = timeout(LIFE, watcher.socket.next()).await.expect("the idle socket heard nothing for 35 s");
        let Some(Ok(Message::Text(text))) = message else { panic!("the idle socket was ended: {message:?}") };
        let frame: Value = serde_json::from_str(&text).unwrap();
        match frame["type"].as_str().unwrap() {
            "heartbeat" => {
                let pong = json!({ "type": "pong", "at": frame["at"] });
                watcher.socket.send(Message::text(pong.to_string())).await.unwrap();
            }
            "subscribed" => assert_eq!(frame["outcome"], "resumed", "{frame}"),
            "event" | "events" => {
                for (seq, event) in raw_events(&text) {
                    tell(&say, "socket", connection, &mut has, seq, event);
                }
            }
            _ => {}
        }
    }
}

/// A stream of events, as a browser reads it.
async fn stream(road: Arc<Road>, connection: u32, mut has: Has, say: Say) {
    let client = road.client().unwrap();
    let id = has.generation.as_ref().map(|generation| format!("{generation}.{}", has.position));
    let headers: Vec<_> = id.as_deref().map(|id| ("Last-Event-ID", id)).into_iter().collect();
    let mut stream = Stream::open(&client, "half-hour", "?after=0", &headers).await;
    stream.patience = LIFE;
    assert_eq!(stream.status, 200);
    loop {
        let said = timeout(LIFE, stream.next()).await.expect("the idle stream heard nothing for 35 s");
        let said = said.expect("the idle stream was ended");
        assert!(!matches!(said.name.as_str(), "close" | "error" | "reset"), "{said:?}");
        if matches!(said.name.as_str(), "event" | "events") {
            for (seq, event) in raw_events(&said.data) {
                tell(&say, "stream", connection, &mut has, seq, event);
            }
        }
    }
}

/// The client of the command line.
async fn command_line(road: Arc<Road>, connection: u32, mut has: Has, say: Say) {
    let dialer = Dialer { road, link: Arc::default() };
    let mut live = Live::new(dialer, rand::random::<f64>);
    assert!(live.follow("half-hour", has.generation.as_deref(), has.position));
    loop {
        match live.next().await.unwrap() {
            Step::Event { event, .. } => {
                let text = event.raw.get().to_owned();
                tell(&say, "command line", connection, &mut has, event.seq, text);
            }
            Step::Connected { again: false } | Step::CaughtUp { .. } => {}
            other => panic!("the idle command line was told: {other:?}"),
        }
    }
}

/// Asks for what is new from time to time.
async fn pages(road: Arc<Road>, connection: u32, mut has: Has, say: Say, look: Duration) {
    loop {
        let named = has.generation.as_ref().map(|generation| format!("&gen={generation}")).unwrap_or_default();
        let path = format!("/tasks/half-hour/events?after={}{named}", has.position);
        let (status, text) = road.text(&path).await.expect("a page");
        assert_eq!(status, 200, "{text}");
        has.generation = serde_json::from_str::<Value>(&text).unwrap()["gen"].as_str().map(str::to_owned);
        for (seq, event) in raw_events(&text) {
            tell(&say, "pages", connection, &mut has, seq, event);
        }
        tokio::time::sleep(look).await;
    }
}

/// How one who watches is getting on: an end is a failure, and is told as such.
struct Guests {
    road: Arc<Road>,
    say: Say,
    look: Duration,
    failed: Arc<Mutex<Vec<String>>>,
    here: Vec<AbortHandle>,
}

impl Guests {
    /// All who watch leave, and come back as new ones with what they have.
    fn come(&mut self, connection: u32, has: &Has) {
        self.leave();
        let (road, say) = (|| Arc::clone(&self.road), || self.say.clone());
        let tasks = [
            tokio::spawn(socket(road(), connection, has.clone(), say())),
            tokio::spawn(stream(road(), connection, has.clone(), say())),
            tokio::spawn(command_line(road(), connection, has.clone(), say())),
            tokio::spawn(pages(road(), connection, has.clone(), say(), self.look)),
        ];
        for task in tasks {
            self.here.push(task.abort_handle());
            let failed = Arc::clone(&self.failed);
            tokio::spawn(async move {
                if let Err(error) = task.await
                    && error.is_panic()
                {
                    failed.lock().unwrap().push(format!("{error:?}"));
                }
            });
        }
    }

    fn leave(&mut self) {
        for guest in self.here.drain(..) {
            guest.abort();
        }
    }

    fn check(&self) {
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{failed:?}");
    }
}

/// A server with a hundred tasks, two of them scheduled far away, that nobody watches.
async fn deserted(part: &Part) -> (Home, Process) {
    let mut home = Home::new("").run_by(&part.program);
    for number in 0..98 {
        home = home.shell_task(&format!("task-{number}"), "true");
    }
    for (id, schedule) in [("yearly", "cron = \"0 4 1 1 *\""), ("daily", "every = \"24h\"")] {
        let text = format!("title = {id:?}\n[schedule]\n{schedule}\n[[steps]]\nname = \"only\"\nrun = \"true\"\n");
        home = home.task(id, &text);
    }
    let server = home.spawn(&[]).await;
    (home, server)
}

/// Idle from run to run.
pub async fn idle(part: Arc<Part>) {
    // What is idle begins and ends a little away from the runs.
    let gap = part.length / GAPS;
    let margin = MARGIN.min(gap / 4);
    let (_deserted_home, deserted) = deserted(&part).await;
    let text = format!(
        "title = \"Half hour\"\n[schedule]\nevery = \"{}ms\"\n[[steps]]\nname = \"only\"\nthought = \"Again?\"\nrun = \"echo again\"\n",
        gap.as_millis()
    );
    let home = Home::new("").run_by(&part.program).task("half-hour", &text);
    let server = home.spawn(&[]).await;
    let begun = Instant::now();
    let road = Arc::new(Road::default());
    road.point_at(server.client.address, &home.token());
    let (say, mut heard) = mpsc::unbounded_channel();
    let look = LOOK.min(gap / 4);
    let mut guests = Guests { road, say, look, failed: Arc::default(), here: Vec::new() };
    guests.come(1, &Has::default());
    let first = server.client.run("half-hour").await;

    let mut seen: Vec<Vec<(u64, String)>> = vec![Vec::new(); WHO.len()];
    let (mut idle, mut used) = (Duration::ZERO, Duration::ZERO);
    let (mut alone, mut alone_used) = (Duration::ZERO, Duration::ZERO);
    let mut waits = Vec::new();
    let mut last_run = String::new();
    for number in 0..=GAPS {
        let connection = if number == GAPS { 2 } else { 1 };
        // A run is over when everybody has its end.
        let due = begun + gap * number;
        let mut ended: Vec<Option<Instant>> = vec![None; WHO.len()];
        while ended.iter().any(Option::is_none) {
            let got = tokio::time::timeout_at(due + PATIENCE + look, heard.recv()).await;
            guests.check();
            let got = got.unwrap_or_else(|_| panic!("run {number} was not seen by all: {ended:?}")).unwrap();
            let who = WHO.iter().position(|who| *who == got.who).unwrap();
            assert_eq!(got.connection, connection, "{} saw run {number} on another connection", got.who);
            let position = seen[who].last().map_or(0, |(seq, _)| *seq);
            assert_eq!(got.seq, position + 1, "{}: lost or doubled", got.who);
            let event: Value = serde_json::from_str(&got.text).unwrap();
            if is_terminal(&event) {
                assert_eq!(event["data"]["state"], "succeeded", "{event}");
                assert!(ended[who].is_none() && event["run"] != last_run, "run {number} is another one: {event}");
                ended[who] = Some(got.at);
            }
            seen[who].push((got.seq, got.text));
        }
        let event: Value = serde_json::from_str(&seen[0].last().unwrap().1).unwrap();
        last_run = event["run"].as_str().unwrap().to_owned();
        assert_eq!(number == 0, last_run == first);
        let wait = ended[..3].iter().flatten().max().unwrap().saturating_duration_since(due);
        waits.push(wait.as_millis() as u64);
        part.say(format!("run {number} was seen by all on connection {connection}, {wait:?} after it was due"));
        if number == GAPS {
            break;
        }
        if number == GAPS - 1 {
            let generation = server.client.get("/tasks/half-hour").await.1["gen"].as_str().map(str::to_owned);
            guests.come(2, &Has { generation, position: seen[0].last().unwrap().0 });
        }
        tokio::time::sleep(margin).await;
        let probes = [Probe::of(server.pid()), Probe::of(deserted.pid())];
        let (from, before) = (Instant::now(), probes.map(Probe::processor));
        tokio::time::sleep_until(begun + gap * (number + 1) - margin).await;
        let after = probes.map(Probe::processor);
        (idle, used) = (idle + from.elapsed(), used + (after[0] - before[0]));
        (alone, alone_used) = (alone + from.elapsed(), alone_used + (after[1] - before[1]));
        guests.check();
    }
    guests.leave();
    let logged = home.logged_events("half-hour");
    for (who, seen) in WHO.iter().zip(&seen) {
        assert!(*seen == logged, "{who} has other events than the file");
    }
    let share = |used: Duration, of: Duration| used.as_secs_f64() / of.as_secs_f64();
    let (watched, deserted_share) = (share(used, idle), share(alone_used, alone));
    let (sample, deserted_sample) = (Probe::of(server.pid()).sample(), Probe::of(deserted.pid()).sample());
    part.note("minutes between the runs", gap.as_secs_f64() / 60.0);
    part.note("runs seen on the connection of the beginning", GAPS);
    part.note("runs seen after the refresh", 1);
    part.note("ms from due to the end seen by all but the reader of pages", &waits);
    part.note("events seen by each", logged.len());
    part.note("lost", 0);
    part.note("doubled", 0);
    part.note("minutes idle", idle.as_secs_f64() / 60.0);
    part.note("percent of a core while idle, with four who watch", watched * 100.0);
    part.note("percent of a core with 100 tasks and nobody", deserted_share * 100.0);
    part.note("at the end, with four who watch", sample);
    part.note("at the end, with 100 tasks and nobody", deserted_sample);
    if part.full {
        assert!(watched < MOST, "idle, the server used {watched:.5} of a core");
        assert!(deserted_share < MOST_ALONE, "with nobody there the server used {deserted_share:.5} of a core");
        let resident = deserted_sample.resident_kib;
        assert!(resident < MOST_ALONE_KIB, "with a hundred tasks and nobody the server has {resident} KiB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_21_who_is_idle_sees_the_next_runs_on_the_same_connection_and_after_a_refresh_the_next() {
    idle(Part::glance("idle", Duration::from_secs(18))).await;
}

#[test]
#[ignore = "three quarters of an hour: make soak"]
fn idle_at_full_length() {
    play("idle", "SOAK_SERVER", idle);
}
