//! Watchers that take too little: the run does not feel them, they cost little, they are let go in time, and come
//! back by cursor. One that is merely slow is served.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::raw_events;
use crate::harness::{Client, Home, PATIENCE, Process, Watcher, is_terminal};
use crate::memory::{Growth, resident};

const KIB: usize = 1024;
const MIB: u64 = 1024 * 1024;
/// From the first byte that waits until a watcher that takes nothing is gone, at most.
const CUT: Duration = Duration::from_secs(20);

/// A task whose run says `steps` times `kib`, as fast as commands can be started: each says its own long command.
pub fn loud(steps: usize, kib: usize) -> String {
    let mut text = String::from("title = \"Loud\"\n");
    for step in 0..steps {
        let _ = write!(text, "[[steps]]\nname = \"s{step}\"\nrun = \"true # {}\"\n", "x".repeat(kib * KIB));
    }
    text
}

pub async fn shout(client: &Client, runs: usize) -> Duration {
    let started = Instant::now();
    for _ in 0..runs {
        let run = client.run("loud").await;
        assert_eq!(client.ended(&run).await["state"], "succeeded");
    }
    started.elapsed()
}

/// A connection whose own side keeps next to nothing.
pub async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(address).await.unwrap()
}

/// Subscribes after the given position over a narrow connection, and reads until the first events are there. Gives
/// the socket, the log and the position.
async fn taste(server: &Process, token: &str, client: &str, attempt: u64) -> (Watcher, String, u64) {
    let address = server.client.address;
    let mut watcher = Watcher::over(narrow(address).await, address, Some(token)).await.unwrap();
    watcher.hello(client, attempt, json!([{ "sub": 1, "task": "loud", "after": 0 }])).await;
    let mut generation = String::new();
    loop {
        let frame = watcher.next().await;
        match frame["type"].as_str().unwrap() {
            "subscribed" => {
                assert_eq!(frame["outcome"], "resumed");
                generation = frame["gen"].as_str().unwrap().to_owned();
            }
            "event" => return (watcher, generation, frame["event"]["seq"].as_u64().unwrap()),
            "events" => return (watcher, generation, frame["last"].as_u64().unwrap()),
            _ => {}
        }
    }
}

/// Whether the server has not let go of a connection.
pub fn is_held(socket: &TcpStream) -> bool {
    socket2::SockRef::from(socket).take_error().unwrap().is_none()
}

/// Stops reading until the server resets the connection; gives when.
async fn mute_until_cut(watcher: Watcher) -> Instant {
    while is_held(watcher.socket.get_ref()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Instant::now()
}

/// Takes a byte a second until the server resets the connection; gives when.
async fn drip_until_cut(mut watcher: Watcher) -> Instant {
    let mut byte = [0];
    let mut next = Instant::now();
    // What the system still holds can be read behind a reset too: ask for the error itself.
    while is_held(watcher.socket.get_ref()) {
        if Instant::now() >= next {
            next += Duration::from_secs(1);
            watcher.socket.get_mut().read_exact(&mut byte).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Instant::now()
}

/// Comes back behind `after` and reads to `head`: every event follows on, and is as the log has it.
async fn complete(server: &Process, client: &str, generation: &str, after: u64, logged: &[(u64, String)]) -> u64 {
    let mut watcher = Watcher::open(server.client.address, Some(&server.client.token)).await;
    watcher.hello(client, 9, json!([{ "sub": 2, "task": "loud", "gen": generation, "after": after }])).await;
    let welcome = watcher.next().await;
    assert_eq!(welcome["last_close"], "too_slow", "{welcome}");
    let subscribed = watcher.next().await;
    assert_eq!((&subscribed["outcome"], &subscribed["from"]), (&"resumed".into(), &(after + 1).into()));
    let (mut position, mut bytes) = (after, 0);
    while position < logged.len() as u64 {
        let message = timeout(PATIENCE, watcher.socket.next()).await.unwrap().unwrap().unwrap();
        let Message::Text(text) = message else { continue };
        bytes += text.len() as u64;
        if !text.contains(r#""type":"event"#) {
            continue;
        }
        for (seq, event) in raw_events(&text) {
            position += 1;
            assert_eq!(seq, position);
            assert!(logged[seq as usize - 1] == (seq, event), "event {seq} is not as the log has it");
        }
    }
    bytes
}

/// That they do not slow the run is not timed, as the machine may be busy with other tests: had it waited for one of the
/// two, it could not end before the server lets go of that one.
#[tokio::test(flavor = "multi_thread")]
async fn t_31_two_that_stop_reading_slow_no_run_cost_no_memory_are_cut_in_time_and_complete_afterwards() {
    let home = Home::new("[stream]\nreplay_bytes = \"1 GiB\"\nreplay_events = 10_000_000").task("loud", &loud(15, 62));
    let server = home.spawn(&[]).await;
    let token = home.token();
    // What will be due to each: more than 64 MiB.
    shout(&server.client, 71).await;
    let due: u64 = home.logged_events("loud").iter().map(|(_, event)| event.len() as u64).sum();
    assert!(due >= 64 * MIB, "{due}");
    let growth = Growth::of(server.pid());
    let alone = shout(&server.client, 3).await;
    let (mute, generation, mute_at) = taste(&server, &token, "mute", 1).await;
    let (drip, _, _) = taste(&server, &token, "drip", 1).await;
    let started = Instant::now();
    let beside = shout(&server.client, 3).await;
    let held = is_held(mute.socket.get_ref()) && is_held(drip.socket.get_ref());
    assert!(held, "the runs beside slow watchers took {beside:?}, until these were cut");
    let (mute_cut, drip_cut) = timeout(CUT, async { tokio::join!(mute_until_cut(mute), drip_until_cut(drip)) })
        .await
        .expect("both are cut in time");
    let (before, grown) = growth.end().await;

    let logged = home.logged_events("loud");
    let back = Instant::now();
    let bytes = complete(&server, "mute", &generation, mute_at, &logged).await;
    complete(&server, "drip", &generation, 0, &logged).await;

    println!(
        "due {} MiB; alone {alone:?}, beside them {beside:?}; grown by {} KiB over {} KiB; cut after {:?} and {:?}; back with {} MiB, both in {:?}",
        due / MIB,
        grown / 1024,
        before / 1024,
        mute_cut - started,
        drip_cut - started,
        bytes / MIB,
        back.elapsed()
    );
    assert!(grown < 24 * MIB, "the server grew by {grown} bytes");
}

/// Reads about so many bytes of the task's log, as fast as they come.
async fn gulp(server: &Process, client: usize, bytes: usize) -> Watcher {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let stream = socket.connect(server.client.address).await.unwrap();
    let mut watcher = Watcher::over(stream, server.client.address, Some(&server.client.token)).await.unwrap();
    watcher.hello(&format!("fast {client}"), 1, json!([{ "sub": 1, "task": "loud", "after": 0 }])).await;
    let mut read = 0;
    while read < bytes {
        let message = timeout(PATIENCE, watcher.socket.next()).await.unwrap().unwrap().unwrap();
        read += message.len();
    }
    watcher
}

#[tokio::test(flavor = "multi_thread")]
async fn t_31_watchers_that_were_fast_and_stop_have_little_waiting_for_them_each() {
    const STOPPED: usize = 32;
    let home = Home::new("[stream]\nreplay_bytes = \"1 GiB\"\nslow_window = \"1m\"").task("loud", &loud(15, 62));
    let server = home.spawn(&[]).await;
    shout(&server.client, 12).await;
    let started = Instant::now();
    drop(gulp(&server, 0, 10 << 20).await);
    let whole = started.elapsed();
    let before = resident(server.pid());
    let mut stopped = Vec::new();
    for client in 1..=STOPPED {
        stopped.push(gulp(&server, client, 6 << 20).await);
    }
    let after = resident(server.pid());
    let each = after.saturating_sub(before) / STOPPED as u64;
    println!("{} KiB for each of {STOPPED}; 10 MiB to a fast one in {whole:?}", each / 1024);
    assert!(each < 256 * 1024, "{each} bytes for each");
    drop(stopped);
}

/// Passes on what the server says at `rate` bytes per second, and what the client says at once.
pub async fn trickle(server: SocketAddr, rate: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = narrow(server).await;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let slow = async {
            let mut buffer = vec![0; rate / 10];
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                if to_client.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
                tick.tick().await;
            }
        };
        tokio::join!(slow, tokio::io::copy(&mut from_client, &mut to_server)).1.ok();
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_33_a_phone_at_six_kilobytes_a_second_is_not_cut_and_gets_everything() {
    let home = Home::new("[stream]\nheartbeat = \"5s\"\nlife = \"12s\"").task("loud", &loud(3, 50));
    let server = home.spawn(&[]).await;
    shout(&server.client, 1).await;
    let logged = home.logged_events("loud");
    let bytes: usize = logged.iter().map(|(_, event)| event.len()).sum();
    assert!(bytes > 120 * KIB);

    let started = Instant::now();
    let through = trickle(server.client.address, 6000).await;
    let stream = TcpStream::connect(through).await.unwrap();
    let mut phone = Watcher::over(stream, server.client.address, Some(&home.token())).await.unwrap();
    phone.hello("phone", 1, json!([{ "sub": 1, "task": "loud", "after": 0 }])).await;
    let mut events: Vec<(u64, String)> = Vec::new();
    let ends = |event: &str| is_terminal(&serde_json::from_str(event).unwrap());
    while !events.last().is_some_and(|(_, event)| ends(event)) {
        let message = timeout(PATIENCE, phone.socket.next()).await.unwrap().unwrap().unwrap();
        let Message::Text(text) = message else { panic!("cut: {message:?}") };
        let frame: Value = serde_json::from_str(&text).unwrap();
        match frame["type"].as_str().unwrap() {
            "event" | "events" => events.extend(raw_events(&text)),
            "heartbeat" => phone.send(json!({ "type": "pong", "at": frame["at"] })).await,
            _ => {}
        }
    }
    assert!(events == logged);
    println!("{} KiB in {:?}", bytes / KIB, started.elapsed());
    assert!(started.elapsed() > Duration::from_secs(15), "it was slow enough to be told apart");
}
