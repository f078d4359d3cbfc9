//! The command line as a watcher: it is cut off in the middle of runs, events are made while it is away, and what it
//! has printed in the end is what the log has, byte for byte.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rejoin::event::State;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::harness::{Gate, Home, InProcess, PATIENCE, REJOIN, hash, is_terminal};
use crate::rows_stage::{Play, keep_log, logged};

/// A way to the server that can be cut. While it is closed, who comes is turned away.
struct Way {
    address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
    is_open: Arc<AtomicBool>,
    carried: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Way {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_open, carried) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let server = Arc::new(Mutex::new(server));
        let way = Self { address, server: server.clone(), is_open: is_open.clone(), carried: carried.clone() };
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                if !is_open.load(Ordering::SeqCst) {
                    continue;
                }
                let server = *server.lock().unwrap();
                let carry = async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                };
                carried.lock().unwrap().push(tokio::spawn(carry));
            }
        });
        way
    }

    /// Ends every connection and lets none through until it is opened.
    async fn cut(&self) {
        self.is_open.store(false, Ordering::SeqCst);
        let carried: Vec<_> = self.carried.lock().unwrap().drain(..).collect();
        for one in carried {
            one.abort();
            let _ = one.await;
        }
    }

    /// Leads to another server.
    fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }
}

/// The program as it watches, with what it has printed.
struct Printed {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    events: Vec<(u64, String)>,
}

impl Printed {
    fn start(home: &Home, way: &Way, line: &[&str]) -> Self {
        let mut child = Command::new(REJOIN)
            .args(line)
            .arg("--json")
            .env("REJOIN_SERVER", format!("http://{}", way.address))
            .env("REJOIN_TOKEN", home.token())
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(home.path().join("words")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, events: Vec::new() }
    }

    /// Reads one event; gives it.
    async fn next(&mut self) -> Value {
        loop {
            let line = timeout(PATIENCE, self.lines.next_line())
                .await
                .expect("nothing was printed")
                .unwrap()
                .expect("it ended");
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            if let Some(seq) = event["seq"].as_u64() {
                self.events.push((seq, hash(&line)));
                return event;
            }
        }
    }

    async fn until(&mut self, good: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event = self.next().await;
            if good(&event) {
                return event;
            }
        }
    }
}

fn head(server: &InProcess, task: &str) -> u64 {
    server.server.api().publisher.topic(&task.parse().unwrap()).unwrap().head().0
}

/// Cut off once: `meanwhile` makes events, which are counted; then it may come back.
async fn away(server: &InProcess, way: &Way, task: &str, meanwhile: impl AsyncFnOnce()) {
    way.cut().await;
    let before = head(server, task);
    meanwhile().await;
    let missed = head(server, task) - before;
    assert!(missed >= 1, "an event was to be missed");
    way.open();
}

/// A step for each gate; the first says something before it, and once more after the gate `seen`.
fn two_minutes(home: &Home, seen: &Gate, gates: &[&Gate]) -> String {
    let mut text = "title = \"Run smart maintenance\"\n".to_owned();
    for (n, gate) in gates.iter().enumerate() {
        let before = if n == 0 { format!("echo begin; {}; ", seen.wait()) } else { String::new() };
        let command = format!("{before}echo step {n}; {}; echo step {n} done", gate.wait());
        text += &format!("[[steps]]\nname = \"s{n}\"\nthought = \"Now {n}.\"\nrun = {}\n", Value::from(command));
    }
    assert!(home.path().is_dir());
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_23_a_maintenance_run_that_is_watched_and_cut_goes_on_with_the_next_call_and_all_that_remains() {
    keep_log();
    let home = Home::new("");
    let seen = Gate::new(home.path(), "seen");
    let gates = ["g0", "g1", "g2"].map(|name| Gate::new(home.path(), name));
    let text = two_minutes(&home, &seen, &gates.each_ref());
    let home = home.task("smart-maintenance", &text);
    let server = home.serve().await;
    let way = Way::to(server.client.address).await;
    let mut printed = Printed::start(&home, &way, &["tasks", "add", "Run smart maintenance", "--watch"]);
    printed.until(|event| event["kind"] == "tool_output").await;
    // All so far may have been caught up on. Something has to come while it is there: who was never met does not come back.
    seen.open().await;
    printed.until(|event| event["kind"] == "tool_output").await;
    // It is away while the first call ends and the second begins.
    away(&server, &way, "smart-maintenance", async || {
        gates[0].open().await;
        server
            .client
            .until("/tasks/smart-maintenance/events", |page| {
                page["items"].as_array().unwrap().iter().filter(|event| event["kind"] == "tool_use").count() == 2
            })
            .await;
    })
    .await;
    printed.until(|event| event["data"]["text"] == "Now 1.").await;
    gates[1].open().await;
    printed.until(|event| event["data"]["text"] == "Now 2.").await;
    gates[2].open().await;
    let end = printed.until(is_terminal).await;
    assert_eq!(end["data"]["state"], "succeeded");
    assert_eq!(printed.events, home.logged("smart-maintenance"));
    assert_eq!(timeout(PATIENCE, printed.child.wait()).await.unwrap().unwrap().code(), Some(0));
    assert!(!logged(&["Detected WebSocket reconnection for chat=smart-maintenance, resuming updates"]).is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_24_a_task_of_many_steps_that_is_cut_three_times_is_printed_whole() {
    let home = Home::new("").shell_task("complex", "true");
    let server = home.serve().await;
    let way = Way::to(server.client.address).await;
    let play = Play::begin(&server, "complex").await;
    let mut printed = Printed::start(&home, &way, &["watch", "complex"]);
    printed.until(|event| event["seq"] == 2).await;
    for cut in 0..3 {
        let seq = play.tool_use(&format!("c{cut}")).await;
        printed.until(|event| event["seq"] == seq).await;
        away(&server, &way, "complex", async || {
            play.thoughts(cut * 40).await;
            play.tool_result(&format!("c{cut}")).await;
        })
        .await;
        let last = play.head();
        printed.until(|event| event["seq"] == last).await;
    }
    let last = play.status(State::Succeeded).await;
    printed.until(|event| event["seq"] == last).await;
    assert_eq!(printed.events, home.logged("complex"));
    let words = std::fs::read_to_string(home.path().join("words")).unwrap();
    assert_eq!(words.matches("Connection lost").count(), 3, "{words}");
    assert_eq!(words.matches("Caught up on").count(), 3, "{words}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_25_a_watcher_that_ended_is_made_up_for_by_a_new_one_that_knows_nothing() {
    let home = Home::new("");
    let gate = Gate::new(home.path(), "gate");
    let home = home.shell_task("long", &format!("echo one; {}; echo two", gate.wait()));
    let server = home.serve().await;
    let way = Way::to(server.client.address).await;
    let run = server.client.run("long").await;
    let mut printed = Printed::start(&home, &way, &["watch", &run]);
    printed.until(|event| event["kind"] == "tool_output").await;
    let seen = printed.events.clone();
    printed.child.kill().await.unwrap();
    assert_eq!(server.client.get(&format!("/runs/{run}")).await.1["state"], "running");
    let mut printed = Printed::start(&home, &way, &["watch", &run]);
    printed.until(|event| event["kind"] == "tool_output").await;
    assert_eq!(printed.events, seen, "from the beginning, without anything kept");
    gate.open().await;
    printed.until(is_terminal).await;
    assert_eq!(printed.events, home.logged("long"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_32_a_server_that_is_killed_in_the_middle_and_started_again_is_come_back_to() {
    let home = Home::new("").shell_task("job", "echo one; sleep 600");
    let mut server = home.spawn(&[]).await;
    let run = server.client.run("job").await;
    let way = Way::to(server.client.address).await;
    let mut printed = Printed::start(&home, &way, &["watch", &run]);
    printed.until(|event| event["kind"] == "tool_output").await;
    server.kill();
    way.cut().await;
    // It comes back under the address that the watcher knows.
    let again = home.spawn(&[]).await;
    way.lead_to(again.client.address);
    way.open();
    let end = printed.until(is_terminal).await;
    assert_eq!(end["data"]["state"], "interrupted", "it is told what became of its run");
    assert_eq!(printed.events, home.logged("job"));
    assert_eq!(again.client.get(&format!("/runs/{run}")).await.1["state"], "interrupted");
}
