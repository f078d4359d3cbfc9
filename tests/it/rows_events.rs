//! Before every event it is asked who is live: a watcher that came back a moment ago gets the very next event,
//! whatever its kind, and no heartbeat helps.

use rejoin::event::{Role, State};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::harness::InProcess;
use crate::rows_stage::{Page, Play, stage};

/// A run that has said something, and a page that saw it, went away and is back before the next event.
struct Back {
    home: crate::harness::Home,
    server: InProcess,
    play: Play,
    page: Page,
}

impl Back {
    /// `say` happens while the page is there for the first time.
    async fn after(say: impl AsyncFnOnce(&Play)) -> Self {
        let home = stage("job");
        let server = home.serve().await;
        let play = Play::begin(&server, "job").await;
        let mut page = Page::open(&server.client, "job").await;
        say(&play).await;
        page.sees(play.head()).await;
        Self { home, server, play, page }.come_back().await
    }

    async fn come_back(mut self) -> Self {
        self.page.cut();
        let subscribed = self.page.connect().await;
        assert_eq!((&subscribed["outcome"], &subscribed["missed"]), (&json!("resumed"), &json!(0)));
        // By now its socket sleeps: only who looks it up can wake it.
        assert_eq!(self.server.client.get("/status").await.0, 200);
        self
    }

    /// The event comes to the new connection; and all that was shown is all there is.
    async fn gets(mut self, seq: u64, kind: &str) -> Value {
        let event = self.page.sees(seq).await;
        assert_eq!(event["kind"], kind);
        assert_eq!(event["run"], self.play.run.to_string());
        self.page.has_all_of(&self.home);
        self.server.stop().await;
        event
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_03_who_comes_back_before_a_tool_use_gets_it() {
    let back = Back::after(async |play| {
        play.tool_use("c1").await;
        play.tool_result("c1").await;
    })
    .await;
    let seq = back.play.tool_use("c2").await;
    assert_eq!(back.gets(seq, "tool_use").await["data"]["call"], "c2");
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_04_who_comes_back_before_a_tool_result_gets_it() {
    let back = Back::after(async |play| {
        play.tool_use("c1").await;
    })
    .await;
    let seq = back.play.tool_result("c1").await;
    let event = back.gets(seq, "tool_result").await;
    assert_eq!((&event["data"]["tool"], &event["data"]["ok"]), (&json!("shell"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_05_who_comes_back_before_a_thought_gets_it() {
    let back = Back::after(async |play| {
        play.tool_use("c1").await;
    })
    .await;
    let seq = back.play.thought("Which one is it?").await;
    back.gets(seq, "thought").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_06_who_comes_back_before_a_message_gets_it_whoever_says_it() {
    let mut back = Back::after(async |play| {
        play.thought("Hm.").await;
    })
    .await;
    for role in [Role::User, Role::System] {
        let seq = back.play.message(role, "Go on.").await;
        assert_eq!(back.page.sees(seq).await["data"]["role"], json!(role));
        back = back.come_back().await;
    }
    let seq = back.play.message(Role::Agent, "I am going on.").await;
    back.gets(seq, "message").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_07_who_comes_back_before_the_start_gets_it() {
    let home = stage("job");
    let server = home.serve().await;
    let play = Play::queued(&server, "job").await;
    let page = Page::open(&server.client, "job").await;
    let back = Back { home, server, play, page }.come_back().await;
    let seq = back.play.status(State::Started).await;
    assert_eq!(back.gets(seq, "status").await["data"]["state"], "started");
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_07_who_comes_back_before_the_completion_gets_it() {
    let back = Back::after(async |play| {
        play.tool_use("c1").await;
    })
    .await;
    let seq = back.play.status(State::Succeeded).await;
    assert_eq!(back.gets(seq, "status").await["data"]["state"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn spk_07_who_comes_back_before_the_error_gets_it() {
    let back = Back::after(async |play| {
        play.tool_use("c1").await;
    })
    .await;
    let seq = back.play.status(State::Failed).await;
    assert_eq!(back.gets(seq, "status").await["data"]["state"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn t_25_every_kind_of_event_comes_after_a_reconnection_as_it_came_before() {
    let home = stage("job");
    let server = home.serve().await;
    let mut page = Page::open(&server.client, "job").await;
    let mut kinds = Vec::new();
    for round in 0..2 {
        let play = Play::begin(&server, "job").await;
        play.thought("t").await;
        play.message(Role::Agent, "m").await;
        play.tool_use("c").await;
        let text = "part".to_owned();
        play.say(rejoin::event::Body::ToolOutput {
            call: "c".to_owned(),
            stream: rejoin::event::OutputStream::Stderr,
            text,
            cut_bytes: 3,
        })
        .await;
        play.tool_result("c").await;
        let raw = RawValue::from_string(r#"{"colour": "red", "n": [1, null]}"#.to_owned()).unwrap();
        play.say(rejoin::event::Body::Other { kind: "fireworks".to_owned(), raw }).await;
        let end = if round == 0 { State::Succeeded } else { State::Failed };
        let last = play.status(end).await;
        page.sees(last).await;
        kinds.push(page.events.iter().skip(round * 9).map(|event| event["kind"].clone()).collect::<Vec<_>>());
        page.cut();
        page.connect().await;
    }
    assert_eq!(kinds[0], kinds[1]);
    assert_eq!(
        page.events[7]["data"],
        json!({ "colour": "red", "n": [1, null] }),
        "what is not known is kept as it came"
    );
    page.has_all_of(&home);
    server.stop().await;
}
