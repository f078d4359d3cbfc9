//! The live client against a server made for the purpose, with a clock that stands still.
//!
//! Sockets are pipes in memory, so that the paused clock moves exactly when everyone waits.

#![allow(clippy::unwrap_used, reason = "what surprises a test should end it")]

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rejoin::cli::failure::Failure;
use rejoin::cli::live::{Dial, Live, PageError, PageQuery, Step, Transport};
use rejoin::cli::wire::EventPage;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

const GEN: &str = "9d2e77c1a0b4f3e8";
const OTHER_GEN: &str = "0000000000000001";

/// A log of which pages are asked for, and the next answers that are not from it.
#[derive(Default)]
struct Pages {
    generation: String,
    oldest: u64,
    head: u64,
    asked: Vec<u64>,
    instead: VecDeque<Option<PageError>>,
}

struct Fake {
    sockets: mpsc::UnboundedSender<WebSocketStream<DuplexStream>>,
    refusals: Arc<Mutex<VecDeque<Dial>>>,
    pages: Arc<Mutex<Pages>>,
}

impl Transport for Fake {
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<WebSocketStream<DuplexStream>, Dial> {
        if let Some(refusal) = self.refusals.lock().unwrap().pop_front() {
            return Err(refusal);
        }
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let theirs = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        self.sockets.send(theirs).map_err(|_| Dial::Failed("refused".into()))?;
        Ok(WebSocketStream::from_raw_socket(ours, Role::Client, None).await)
    }

    async fn page(&self, query: PageQuery<'_>) -> Result<EventPage, PageError> {
        let mut pages = self.pages.lock().unwrap();
        pages.asked.push(query.after);
        if let Some(Some(error)) = pages.instead.pop_front() {
            return Err(error);
        }
        if query.generation != pages.generation {
            return Err(PageError::Replaced);
        }
        let last = pages.head.min(query.after + query.limit);
        Ok(serde_json::from_value(json!({
            "task": "t", "gen": pages.generation, "oldest": pages.oldest, "head": pages.head,
            "items": (query.after + 1..=last).map(event).collect::<Vec<_>>(),
            "next": last, "more": last < pages.head,
        }))
        .unwrap())
    }
}

/// The server's side of all sockets, and what the client says happened.
struct Test {
    sockets: mpsc::UnboundedReceiver<WebSocketStream<DuplexStream>>,
    steps: mpsc::UnboundedReceiver<Result<Step, Failure>>,
    refusals: Arc<Mutex<VecDeque<Dial>>>,
    pages: Arc<Mutex<Pages>>,
}

/// The server's side of one socket.
struct Peer(WebSocketStream<DuplexStream>);

fn event(seq: u64) -> Value {
    json!({"task": "t", "run": "r", "seq": seq, "at": "2026-11-20T20:41:07.123456Z",
           "kind": "thought", "data": {"text": format!("thought {seq}")}})
}

impl Test {
    /// A client that follows task `t` after event `after`.
    fn following(after: u64) -> Self {
        Self::with(|live| assert!(live.follow("t", (after > 0).then_some(GEN), after)), false)
    }

    fn with(prepare: impl FnOnce(&mut Live<Fake>), tasks: bool) -> Self {
        let (socket_sender, sockets) = mpsc::unbounded_channel();
        let (step_sender, steps) = mpsc::unbounded_channel();
        let refusals = Arc::new(Mutex::new(VecDeque::new()));
        let pages = Arc::new(Mutex::new(Pages { generation: GEN.into(), oldest: 1, ..Pages::default() }));
        let fake = Fake { sockets: socket_sender, refusals: refusals.clone(), pages: pages.clone() };
        let mut live = Live::new(fake, || 0.5);
        if tasks {
            live = live.with_tasks();
        }
        prepare(&mut live);
        tokio::spawn(async move {
            loop {
                let step = live.next().await;
                let ended = step.is_err();
                if step_sender.send(step).is_err() || ended {
                    return;
                }
            }
        });
        Self { sockets, steps, refusals, pages }
    }

    /// The next socket, and the hello on it; not answered yet.
    async fn hello(&mut self) -> (Peer, Value) {
        let mut peer = Peer(self.sockets.recv().await.expect("a client that connects"));
        let hello = peer.receive().await;
        assert_eq!(hello["type"], "hello");
        (peer, hello)
    }

    /// The next socket, welcomed; its hello and the first subscription in it.
    async fn welcome(&mut self) -> (Peer, Value) {
        let (mut peer, hello) = self.hello().await;
        peer.send(json!({"type": "welcome", "protocol": 1, "connection": "c-1", "heartbeat_ms": 20000,
                         "server": {"version": "0", "boot": "b1"}}))
            .await;
        (peer, hello["subscribe"][0].clone())
    }

    async fn step(&mut self) -> Step {
        self.steps.recv().await.expect("a client that goes on").expect("no end")
    }

    async fn end(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.steps.recv().await.expect("a client that says why it ends") {
                return failure;
            }
        }
    }

    /// The next events, which must be exactly these and nothing between.
    async fn events(&mut self, seqs: RangeInclusive<u64>) {
        for seq in seqs {
            match self.step().await {
                Step::Event { event, .. } => assert_eq!(event.seq, seq),
                other => panic!("event {seq} was to come, not {other:?}"),
            }
        }
    }

    async fn connected(&mut self) -> bool {
        match self.step().await {
            Step::Connected { again } => again,
            other => panic!("{other:?}"),
        }
    }

    async fn reconnecting(&mut self) -> (u32, Duration, String) {
        match self.step().await {
            Step::Reconnecting { attempt, wait, why } => (attempt, wait, why),
            other => panic!("{other:?}"),
        }
    }
}

impl Peer {
    async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.expect("a client that listens");
    }

    async fn receive(&mut self) -> Value {
        loop {
            match self.0.next().await.expect("a frame").expect("a frame") {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(_) => panic!("closed"),
                _ => {}
            }
        }
    }

    async fn resumed(&mut self, sub: &Value, from: u64, head: u64) {
        self.send(json!({"type": "subscribed", "sub": sub, "task": "t", "gen": GEN, "outcome": "resumed",
                         "from": from, "head": head, "missed": head + 1 - from, "runs": []}))
            .await;
    }

    async fn events(&mut self, sub: &Value, seqs: RangeInclusive<u64>) {
        let (first, last) = (*seqs.start(), *seqs.end());
        let items: Vec<Value> = seqs.map(event).collect();
        self.send(json!({"type": "events", "sub": sub, "first": first, "last": last, "items": items})).await;
    }

    async fn reset(&mut self, sub: &Value, generation: &str, why: &str, oldest: u64, seq: u64) {
        self.send(json!({"type": "subscribed", "sub": sub, "task": "t", "gen": generation, "outcome": "reset",
                         "from": seq + 1, "head": seq, "missed": null, "runs": []}))
            .await;
        self.send(json!({"type": "reset", "sub": sub, "gen": generation, "why": why, "have": 0, "oldest": oldest,
                         "head": seq}))
            .await;
        self.send(json!({"type": "snapshot", "sub": sub, "gen": generation, "seq": seq, "head": seq,
                         "state": {"task": {}, "runs": [], "calls": []}}))
            .await;
    }

    async fn caught_up(&mut self, sub: &Value, seq: u64) {
        self.send(json!({"type": "caught_up", "sub": sub, "seq": seq})).await;
    }

    async fn heartbeat(&mut self, heads: Value) -> Value {
        self.send(json!({"type": "heartbeat", "at": "2026-11-20T20:41:07.123456Z", "heads": heads})).await;
        self.receive().await
    }

    async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.to_owned().into() };
        self.0.close(Some(frame)).await.expect("a client that listens");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_resumes_after_the_last_event_it_saw() {
    let mut test = Test::following(0);
    let (mut peer, asked) = test.welcome().await;
    assert_eq!((&asked["after"], &asked["gen"]), (&json!(0), &Value::Null));
    peer.resumed(&asked["sub"], 1, 3).await;
    peer.events(&asked["sub"], 1..=3).await;
    peer.caught_up(&asked["sub"], 3).await;
    assert!(!test.connected().await, "the first time is no reconnect");
    test.events(1..=3).await;
    assert!(matches!(test.step().await, Step::CaughtUp { missed: 3, position: 3, .. }));
    drop(peer);

    let (attempt, wait, _) = test.reconnecting().await;
    assert_eq!((attempt, wait), (1, Duration::from_millis(500)));
    let (mut peer, again) = test.welcome().await;
    assert_eq!((&again["after"], &again["gen"]), (&json!(3), &json!(GEN)));
    assert_ne!(again["sub"], asked["sub"], "a subscription's number is used once");
    peer.resumed(&again["sub"], 4, 5).await;
    peer.events(&again["sub"], 4..=5).await;
    peer.caught_up(&again["sub"], 5).await;
    assert!(test.connected().await);
    test.events(4..=5).await;
    assert!(matches!(test.step().await, Step::CaughtUp { missed: 2, position: 5, .. }));
}

#[tokio::test(start_paused = true)]
async fn cut_a_thousand_times_it_gives_every_event_once_and_in_order() {
    let mut test = Test::following(0);
    let head = 5_000;
    let server = async {
        for round in 0_u64.. {
            let (mut peer, asked) = test_welcome(&mut test.sockets).await;
            let after = asked["after"].as_u64().unwrap();
            peer.resumed(&asked["sub"], after + 1, head).await;
            // A different number of events each time, none now and then, in frames of different size.
            let mut next = after + 1;
            for size in 0..round % 4 {
                let last = (next + (round * 7 + size * 3) % 5).min(head);
                if next <= last {
                    peer.events(&asked["sub"], next..=last).await;
                    next = last + 1;
                }
            }
            if next > head {
                return round;
            }
        }
        0
    };
    let (rounds, seen) = tokio::join!(server, async {
        let mut seen = Vec::new();
        while seen.last() != Some(&head) {
            if let Some(Ok(Step::Event { event, .. })) = test.steps.recv().await {
                seen.push(event.seq);
            }
        }
        seen
    });
    assert!(rounds >= 1_000, "{rounds}");
    assert!(seen.into_iter().eq(1..=head));
}

async fn test_welcome(sockets: &mut mpsc::UnboundedReceiver<WebSocketStream<DuplexStream>>) -> (Peer, Value) {
    let mut peer = Peer(sockets.recv().await.expect("a client that connects"));
    let hello = peer.receive().await;
    peer.send(json!({"type": "welcome", "protocol": 1})).await;
    (peer, hello["subscribe"][0].clone())
}

#[tokio::test(start_paused = true)]
async fn a_hole_in_the_numbers_is_asked_for_again_and_late_frames_are_discarded() {
    let mut test = Test::following(10);
    let (mut peer, asked) = test.welcome().await;
    let old = asked["sub"].clone();
    peer.resumed(&old, 11, 11).await;
    peer.events(&old, 11..=11).await;
    peer.events(&old, 13..=14).await;
    let again = peer.receive().await;
    assert_eq!((&again["type"], &again["task"], &again["after"]), (&json!("subscribe"), &json!("t"), &json!(11)));
    // What is still on its way for the old number.
    peer.events(&old, 12..=15).await;
    peer.caught_up(&old, 15).await;
    peer.resumed(&again["sub"], 12, 15).await;
    peer.events(&again["sub"], 12..=15).await;
    test.connected().await;
    test.events(11..=15).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_twice_is_given_once() {
    let mut test = Test::following(10);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 11, 12).await;
    peer.events(&asked["sub"], 11..=12).await;
    peer.send(json!({"type": "event", "sub": asked["sub"], "event": event(12)})).await;
    let again = peer.receive().await;
    assert_eq!(again["after"], 12);
    peer.resumed(&again["sub"], 13, 12).await;
    peer.send(json!({"type": "event", "sub": again["sub"], "event": event(13)})).await;
    test.connected().await;
    test.events(11..=13).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_out_of_order_costs_the_connection_and_not_the_processor() {
    let mut test = Test::following(10);
    let (mut peer, mut asked) = test.welcome().await;
    test.connected().await;
    for _ in 0..4 {
        peer.resumed(&asked["sub"], 11, 12).await;
        peer.events(&asked["sub"], 12..=12).await;
        if let Ok(Some(Ok(Message::Text(text)))) = tokio::time::timeout(Duration::from_secs(2), peer.0.next()).await {
            asked = serde_json::from_str(&text).unwrap();
        }
    }
    let (_, _, why) = test.reconnecting().await;
    assert!(why.contains("out of order"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn after_a_reset_the_gap_comes_from_pages_before_anything_newer() {
    let mut test = Test::following(100);
    test.pages.lock().unwrap().head = 1_300;
    let (mut peer, asked) = test.welcome().await;
    peer.reset(&asked["sub"], GEN, "too_far", 1, 1_300).await;
    peer.events(&asked["sub"], 1_301..=1_302).await;
    peer.caught_up(&asked["sub"], 1_302).await;
    test.connected().await;
    assert!(matches!(test.step().await, Step::Reset { replaced: false, lost: None, skipped: None, .. }));
    test.events(101..=1_302).await;
    assert!(matches!(test.step().await, Step::CaughtUp { missed: 1_200, position: 1_302, .. }));
    assert_eq!(test.pages.lock().unwrap().asked, [100, 600, 1_100]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_lost_while_the_gap_is_read_goes_on_where_the_pages_ended() {
    let mut test = Test::following(100);
    {
        let mut pages = test.pages.lock().unwrap();
        pages.head = 1_300;
        pages.instead = [None, Some(PageError::Failed("reset by peer".into()))].into();
    }
    let (mut peer, asked) = test.welcome().await;
    peer.reset(&asked["sub"], GEN, "too_far", 1, 1_300).await;
    test.connected().await;
    test.step().await;
    test.events(101..=600).await;
    test.reconnecting().await;
    let (mut peer, again) = test.welcome().await;
    assert_eq!(again["after"], 600);
    peer.resumed(&again["sub"], 601, 601).await;
    peer.events(&again["sub"], 601..=601).await;
    test.connected().await;
    test.events(601..=601).await;
}

#[tokio::test(start_paused = true)]
async fn events_that_retention_took_are_named() {
    let mut test = Test::following(100);
    {
        let mut pages = test.pages.lock().unwrap();
        (pages.oldest, pages.head) = (150, 152);
    }
    let (mut peer, asked) = test.welcome().await;
    peer.reset(&asked["sub"], GEN, "retention", 150, 152).await;
    test.connected().await;
    assert!(matches!(test.step().await, Step::Reset { replaced: false, lost: Some((101, 149)), .. }));
    test.events(150..=152).await;
}

#[tokio::test(start_paused = true)]
async fn retention_that_overtakes_the_pages_is_said_too() {
    let mut test = Test::following(100);
    {
        let mut pages = test.pages.lock().unwrap();
        (pages.oldest, pages.head) = (121, 122);
        pages.instead = [Some(PageError::Gone { oldest: 121 })].into();
    }
    let (mut peer, asked) = test.welcome().await;
    peer.reset(&asked["sub"], GEN, "too_far", 1, 122).await;
    test.connected().await;
    assert!(matches!(test.step().await, Step::Reset { lost: None, .. }));
    assert!(matches!(test.step().await, Step::Reset { lost: Some((101, 120)), .. }));
    test.events(121..=122).await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_was_replaced_is_said_and_read_from_its_beginning() {
    let mut test = Test::following(100);
    {
        let mut pages = test.pages.lock().unwrap();
        (pages.generation, pages.head) = (OTHER_GEN.into(), 2);
    }
    let (mut peer, asked) = test.welcome().await;
    peer.reset(&asked["sub"], OTHER_GEN, "generation", 1, 2).await;
    test.connected().await;
    assert!(matches!(test.step().await, Step::Reset { replaced: true, lost: None, skipped: None, .. }));
    test.events(1..=2).await;
    drop(peer);
    test.reconnecting().await;
    let (_, again) = test.welcome().await;
    assert_eq!((&again["gen"], &again["after"]), (&json!(OTHER_GEN), &json!(2)));
}

#[tokio::test(start_paused = true)]
async fn a_second_answer_on_an_open_subscription_means_another_log() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 6, 6).await;
    peer.events(&asked["sub"], 6..=6).await;
    test.connected().await;
    test.events(6..=6).await;
    {
        let mut pages = test.pages.lock().unwrap();
        (pages.generation, pages.head) = (OTHER_GEN.into(), 1);
    }
    peer.reset(&asked["sub"], OTHER_GEN, "generation", 1, 1).await;
    assert!(matches!(test.step().await, Step::Reset { replaced: true, .. }));
    test.events(1..=1).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_log_that_replaced_another_is_not_repeated_whole() {
    let mut test = Test::following(100);
    {
        let mut pages = test.pages.lock().unwrap();
        (pages.generation, pages.head) = (OTHER_GEN.into(), 50_000);
    }
    let (mut peer, asked) = test.welcome().await;
    let sub = &asked["sub"];
    peer.send(json!({"type": "subscribed", "sub": sub, "task": "t", "gen": OTHER_GEN, "outcome": "reset"})).await;
    peer.send(json!({"type": "reset", "sub": sub, "gen": OTHER_GEN, "why": "generation", "oldest": 1})).await;
    let run = json!({"id": "r", "task": "t", "state": "running", "first_seq": 49_999});
    peer.send(json!({"type": "snapshot", "sub": sub, "gen": OTHER_GEN, "seq": 50_000, "state": {"runs": [run]}})).await;
    test.connected().await;
    assert!(matches!(test.step().await, Step::Reset { skipped: Some((1, 49_998)), .. }));
    test.events(49_999..=50_000).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_deleted_ends_its_subscription_and_not_the_connection() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.send(json!({"type": "subscribed", "sub": asked["sub"], "task": "t", "outcome": "not_found"})).await;
    test.connected().await;
    assert!(matches!(test.step().await, Step::NotFound { .. }));
    assert_eq!(peer.heartbeat(json!({})).await["type"], "pong");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_are_answered_and_a_right_one_changes_nothing() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 6, 5).await;
    let heads = json!({asked["sub"].to_string(): {"sent": 5, "head": 5}});
    for _ in 0..5 {
        let pong = peer.heartbeat(heads.clone()).await;
        assert_eq!((&pong["type"], &pong["at"]), (&json!("pong"), &json!("2026-11-20T20:41:07.123456Z")));
        tokio::time::advance(Duration::from_secs(20)).await;
    }
    test.connected().await;
    assert!(test.steps.try_recv().is_err(), "a quiet connection is kept");
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_says_more_was_sent_than_came_subscribes_again() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 6, 6).await;
    peer.heartbeat(json!({asked["sub"].to_string(): {"sent": 6, "head": 6}})).await;
    let again = peer.receive().await;
    assert_eq!((&again["type"], &again["after"]), (&json!("subscribe"), &json!(5)));
    peer.resumed(&again["sub"], 6, 6).await;
    peer.events(&again["sub"], 6..=6).await;
    test.connected().await;
    test.events(6..=6).await;
}

#[tokio::test(start_paused = true)]
async fn a_subscription_missing_from_two_heartbeats_is_made_again() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 6, 5).await;
    assert_eq!(peer.heartbeat(json!({})).await["type"], "pong");
    assert_eq!(peer.heartbeat(json!({})).await["type"], "pong");
    assert_eq!(peer.receive().await["type"], "subscribe");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_holds_back_what_it_has_is_asked_again() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 6, 5).await;
    let behind = json!({asked["sub"].to_string(): {"sent": 5, "head": 7}});
    assert_eq!(peer.heartbeat(behind.clone()).await["type"], "pong");
    assert_eq!(peer.heartbeat(behind).await["type"], "pong");
    assert_eq!(peer.receive().await["type"], "subscribe");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_for_35_seconds_is_dead() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 6, 5).await;
    test.connected().await;
    let begin = Instant::now();
    let (attempt, _, why) = test.reconnecting().await;
    assert_eq!((attempt, begin.elapsed().as_secs()), (1, 35));
    assert!(why.contains("35 s"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn waits_begin_anew_only_after_a_welcome() {
    let mut test = Test::following(5);
    for round in 1..=4 {
        let (mut peer, hello) = test.hello().await;
        assert_eq!(hello["attempt"], round);
        peer.close(1011, "").await;
        let (attempt, wait, _) = test.reconnecting().await;
        assert_eq!(attempt, round);
        assert_eq!(wait, rejoin::cli::backoff::delay(round, 0.5));
    }
    let (peer, _) = test.welcome().await;
    test.connected().await;
    drop(peer);
    assert_eq!(test.reconnecting().await.0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_for_hours_is_tried_again_and_again() {
    let mut test = Test::following(5);
    let (peer, _) = test.welcome().await;
    test.connected().await;
    test.refusals.lock().unwrap().extend((0..300).map(|_| Dial::Failed("connection refused".into())));
    let begin = Instant::now();
    drop(peer);
    for attempt in 1..=301 {
        assert_eq!(test.reconnecting().await.0, attempt);
    }
    assert!(begin.elapsed() > Duration::from_secs(2 * 3600));
    test.welcome().await;
    assert!(test.connected().await);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_drains_is_given_the_time_it_asked_for() {
    let mut test = Test::following(5);
    let (mut peer, _) = test.welcome().await;
    test.connected().await;
    peer.close(4001, r#"{"code":"draining","retry_ms":4200}"#).await;
    let (_, wait, why) = test.reconnecting().await;
    assert_eq!(wait, Duration::from_millis(4200));
    assert!(why.contains("restarting"), "{why}");
    test.welcome().await;
}

#[tokio::test(start_paused = true)]
async fn every_code_below_4500_and_4514_comes_back_and_three_of_them_late() {
    for (code, least) in [
        (1000, 0),
        (1001, 0),
        (1002, 30),
        (1007, 30),
        (1009, 30),
        (4008, 0),
        (4012, 0),
        (4013, 0),
        (4104, 0),
        (4514, 0),
    ] {
        let mut test = Test::following(5);
        let (mut peer, _) = test.welcome().await;
        test.connected().await;
        peer.close(code, "").await;
        let (_, wait, _) = test.reconnecting().await;
        assert!(wait >= Duration::from_secs(least), "{code}: {wait:?}");
        let (_, hello) = test.hello().await;
        assert_eq!(hello["attempt"], 2, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn codes_from_4500_on_end_it_with_a_reason() {
    for (code, exit) in [(4500, 5), (4501, 7), (4502, 7), (4505, 5), (4599, 7)] {
        let mut test = Test::following(5);
        let (mut peer, _) = test.hello().await;
        peer.close(code, "{}").await;
        assert_eq!(test.end().await.code(), exit, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_http_ends_it() {
    let mut test = Test::following(5);
    let (peer, _) = test.welcome().await;
    test.refusals.lock().unwrap().push_back(Dial::Refused(Failure::NotAllowed("wrong host".into())));
    drop(peer);
    assert_eq!(test.end().await.code(), 5);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_served_at_the_moment_is_asked_for_again_and_disturbs_nothing_else() {
    let mut test =
        Test::with(|live| assert!(live.follow("t", Some(GEN), 5) && live.follow("other", Some(GEN), 2)), false);
    let (mut peer, hello) = test.hello().await;
    peer.send(json!({"type": "welcome", "protocol": 1, "server": {"boot": "b1"}})).await;
    test.connected().await;
    let (mut sub, other) = (hello["subscribe"][0]["sub"].clone(), hello["subscribe"][1]["sub"].clone());
    let error =
        |sub: &Value| json!({"type": "error", "sub": sub, "code": "internal", "message": "no log", "retryable": true});
    peer.resumed(&other, 3, 2).await;
    for _ in 0..3 {
        peer.send(error(&sub)).await;
        // What it said of the old subscription counts no more, and a heartbeat without it is no reason for anything.
        peer.send(json!({"type": "heartbeat", "at": "x", "heads": {other.to_string(): {"sent": 2, "head": 2}}})).await;
        assert_eq!(peer.receive().await["type"], "pong");
        let before = Instant::now();
        let again = peer.receive().await;
        assert_eq!(before.elapsed().as_secs(), 5);
        assert_eq!((&again["type"], &again["task"], &again["after"]), (&json!("subscribe"), &json!("t"), &json!(5)));
        assert_ne!(again["sub"], sub);
        sub = again["sub"].clone();
    }
    peer.resumed(&sub, 6, 6).await;
    peer.events(&sub, 6..=6).await;
    let Step::Event { event, .. } = test.step().await else { panic!("the event") };
    assert_eq!(event.seq, 6);
}

#[tokio::test(start_paused = true)]
async fn a_list_of_tasks_with_a_hole_is_asked_for_anew() {
    let mut test = Test::with(|_| {}, true);
    let (mut peer, hello) = test.hello().await;
    assert_eq!(hello["tasks"], true);
    peer.send(json!({"type": "welcome", "protocol": 1, "server": {"boot": "b1"}})).await;
    let task = json!({"id": "t", "title": "T", "gen": GEN, "head": 7, "new_member": [1, 2]});
    peer.send(json!({"type": "tasks", "rev": 4, "full": true, "items": [task], "removed": []})).await;
    peer.send(json!({"type": "tasks", "rev": 5, "full": false, "items": [], "removed": []})).await;
    peer.send(json!({"type": "tasks", "rev": 7, "full": false, "items": [], "removed": ["t"]})).await;
    assert_eq!(peer.receive().await, json!({"type": "tasks"}));
    test.connected().await;
    let Step::Tasks { full: true, items, .. } = test.step().await else { panic!("the list") };
    assert_eq!((items[0].id.as_str(), items[0].head), ("t", 7));
}

#[tokio::test(start_paused = true)]
async fn frames_and_members_of_later_versions_are_no_trouble() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.send(json!({"type": "fireworks", "sub": asked["sub"], "colour": {"a": [1]}})).await;
    peer.send(json!({"type": "delta", "sub": asked["sub"], "run": "r", "key": "k", "offset": 0, "text": "x"})).await;
    peer.send(json!({"type": "notice", "code": "draining", "text": "going", "since": "x", "over": false})).await;
    peer.resumed(&asked["sub"], 6, 6).await;
    let mut odd = event(6);
    odd["kind"] = "sparkle".into();
    odd["extra"] = json!({"x": 1.50});
    peer.send(json!({"type": "event", "sub": asked["sub"], "event": odd, "more": null})).await;
    test.connected().await;
    assert!(matches!(test.step().await, Step::Notice { over: false, .. }));
    let Step::Event { event, .. } = test.step().await else { panic!("the event") };
    assert_eq!((event.kind.as_str(), event.raw.get()), ("sparkle", odd.to_string().as_str()));
}

#[tokio::test(start_paused = true)]
async fn an_event_larger_than_a_page_of_memory_comes_whole() {
    let mut test = Test::following(5);
    let (mut peer, asked) = test.welcome().await;
    peer.resumed(&asked["sub"], 6, 6).await;
    let mut large = event(6);
    large["data"]["text"] = "ä".repeat(30_000).into();
    peer.send(json!({"type": "event", "sub": asked["sub"], "event": large})).await;
    test.connected().await;
    let Step::Event { event, .. } = test.step().await else { panic!("the event") };
    assert_eq!(event.text("text").chars().count(), 30_000);
}
