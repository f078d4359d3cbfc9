//! People are told what happened by other ways than the page: once, in the end, and not too often.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rejoin::clock::Clock;
use rejoin::notify::ledger;
use rejoin::notify::notice::Notice;
use rejoin::store::StoreError;
use rejoin::task::telling::Occasion;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::disk_limits::limit_files;
use crate::harness::{Client, Home, PATIENCE, REJOIN};
use crate::notify_receivers::{Answer, MailServer, Receiver, Request};
use crate::scrape::Scrape;

const SECRET: &str = "a secret of some length";

/// A configuration with a webhook that tries again at once.
fn hook(receiver: &Receiver, more: &str) -> String {
    format!("{}\n{}", AT_ONCE, channel("hook", receiver, more))
}

const AT_ONCE: &str = "[notify]\nretry = \"10ms\"\ntimeout = \"20s\"\npage = \"https://tasks.example.org/\"";

fn channel(name: &str, receiver: &Receiver, more: &str) -> String {
    format!(
        "[notify.channels.{name}]\nkind = \"webhook\"\nurl = \"{}/in\"\nsecret = {{ file = \"secret\" }}\n\
         allow_hosts = [\"127.0.0.1\"]\n{more}",
        receiver.url()
    )
}

fn home(config: &str) -> Home {
    let home = Home::new(config);
    std::fs::write(home.path().join("secret"), SECRET).unwrap();
    home
}

/// HMAC-SHA256, by its definition (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let keyed = |pad: u8, message: &[u8]| {
        let mut digest = Sha256::new();
        digest.update(block.map(|byte| byte ^ pad));
        digest.update(message);
        digest.finalize()
    };
    keyed(0x5c, &keyed(0x36, message)).to_vec()
}

/// What a webhook says, once its signature was found good.
fn verified(request: &Request) -> Value {
    let header = |name: &str| request.headers[name].clone();
    let signed = format!("{}.{}.{}", header("webhook-id"), header("webhook-timestamp"), request.body);
    let wanted = format!("v1,{}", STANDARD.encode(hmac(SECRET.as_bytes(), signed.as_bytes())));
    assert_eq!(header("webhook-signature"), wanted);
    serde_json::from_str(&request.body).unwrap()
}

async fn ended(client: &Client, task: &str) -> String {
    let run = client.run(task).await;
    client.ended(&run).await;
    run
}

/// Waits until the newest delivery, of one channel or any, stands so; gives all.
async fn until_state(client: &Client, query: &str, state: &str) -> Vec<Value> {
    let newest = |list: &Value| list["items"][0]["state"] == state;
    let list = client.until(&format!("/notifications{query}"), newest).await;
    list["items"].as_array().unwrap().clone()
}

/// Waits until `/metrics` counts so many deliveries by channels of a kind: sent, retried, failed, held, dropped.
async fn until_counted(home: &Home, client: &Client, kind: &str, wanted: [u32; 5]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let scrape = Scrape::of(home, client).await;
        let count = |result: &str| {
            let name = format!("rejoin_notifications_total{{channel={kind:?},result={result:?}}}");
            // What is not known any more has no series before there is something to count.
            if kind == "other" { scrape.find(&name).unwrap_or(0.0) } else { scrape.get(&name) }
        };
        let counted = ["sent", "retried", "failed", "held", "dropped"].map(count);
        if counted == wanted.map(f64::from) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{kind}: {counted:?} and not {wanted:?}");
    }
}

/// What was told of a task, the oldest first.
async fn events(client: &Client, task: &str) -> Vec<String> {
    let (_, list) = client.get(&format!("/notifications?task={task}")).await;
    let mut events: Vec<String> =
        list["items"].as_array().unwrap().iter().map(|one| one["event"].as_str().unwrap().to_owned()).collect();
    events.reverse();
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn nam_14_the_end_of_a_run_is_told_signed_to_a_receiver_that_fails_twice_first() {
    let mut receiver = Receiver::answering(&[Answer::Status(500), Answer::Status(503)]).await;
    let home = home(&hook(&receiver, "")).shell_task("backup", "echo 'no room' >&2; exit 3");
    let server = home.serve().await;
    let run = ended(&server.client, "backup").await;
    let (first, second, third) = (receiver.next().await, receiver.next().await, receiver.next().await);
    let told = verified(&third);
    assert_eq!(told["type"], "failed");
    assert_eq!(told["data"]["run"], run.as_str());
    assert_eq!(told["data"]["exit"], 3);
    assert!(told["data"]["text"].as_str().unwrap().contains("no room"), "{told}");
    assert_eq!(told["data"]["url"], format!("https://tasks.example.org/tasks/backup/runs/{run}"));
    // The same each time, so that a receiver that has it can tell.
    for other in [first, second] {
        assert_eq!(verified(&other), told);
        assert_eq!(other.headers["webhook-id"], third.headers["webhook-id"]);
    }
    let list = until_state(&server.client, "", "sent").await;
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!((list[0]["attempts"].as_u64(), list[0]["channel"].as_str()), (Some(3), Some("hook")));
    assert_eq!(list[0]["id"], third.headers["webhook-id"].as_str());
    until_counted(&home, &server.client, "webhook", [1, 2, 0, 0, 0]).await;
    server.stop().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn nam_14_killed_at_any_point_between_the_end_and_its_arrival_it_is_told_after_the_next_start() {
    for (point, at_least) in [("ended-not-decided", 1), ("decided-not-sent", 1), ("sent-not-noted", 2)] {
        let mut receiver = Receiver::answering(&[]).await;
        let home = home(&hook(&receiver, "")).shell_task("backup", "exit 3");
        let mut server = home.spawn(&[("REJOIN_FAILPOINT", &format!("{point}@1"))]).await;
        // It may be over before it has answered.
        let asked = server.client.request(reqwest::Method::POST, "/tasks/backup/runs").json(&json!({}));
        let _ = asked.timeout(PATIENCE).send().await;
        let status = server.ended().await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point} was not passed");
        let server = home.spawn(&[]).await;
        let list = until_state(&server.client, "", "sent").await;
        assert_eq!(list.len(), 1, "{point}: {list:?}");
        let runs = server.client.get("/tasks/backup/runs").await.1;
        let [run] = &runs["items"].as_array().unwrap()[..] else { panic!("{point}: {runs}") };
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..at_least {
            let request = receiver.next().await;
            assert_eq!(verified(&request)["data"]["run"], run["id"]);
            ids.insert(request.headers["webhook-id"].clone());
        }
        assert_eq!(ids.len(), 1, "{point}: what comes twice has one id");
        assert!(receiver.has_more().is_none(), "{point}");
    }
}

/// A task that fails, and is tried again after an hour.
fn tried_again(more: &str) -> String {
    let policy = "[policy]\nretries = 1\nbackoff = \"1h\"\noverlap = \"replace\"";
    format!("title = \"Again\"\n{policy}\n{more}\n[[steps]]\nname = \"only\"\nrun = \"exit 7\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn nam_14_a_failure_whose_retry_is_taken_back_is_told_once_as_the_failure_it_was() {
    let (mut receiver, mut pulse) = (Receiver::answering(&[]).await, Receiver::answering(&[]).await);
    let config = format!(
        "{}\n[notify.channels.pulse]\nkind = \"healthchecks\"\nurl = \"{}/ping\"\nkey = {{ file = \"key\" }}\n\
         allow_hosts = [\"127.0.0.1\"]",
        hook(&receiver, ""),
        pulse.url()
    );
    let task = tried_again("[notify]\ncheck = \"again\"");
    let home = home(&config).task("stopped", &task).task("paused", &task);
    std::fs::write(home.path().join("key"), "pingkey").unwrap();
    let server = home.serve().await;
    let client = &server.client;
    for task in ["stopped", "paused"] {
        let run = ended(client, task).await;
        assert_eq!(pulse.next().await.path, format!("/ping/pingkey/again/start?rid={run}"));
        assert!(events(client, task).await.iter().all(|event| event == "ping"), "it is tried again");
        let off = if task == "stopped" { format!("/runs/{run}/stop") } else { format!("/tasks/{task}/pause") };
        client.post(&off, json!({})).await;
        let told = verified(&receiver.next().await);
        assert_eq!((&told["type"], &told["data"]["run"]), (&json!("failed"), &json!(run)), "{told}");
        assert_eq!((&told["data"]["exit"], &told["data"]["state"]), (&json!(7), &json!("failed")), "{told}");
        assert_eq!(pulse.next().await.path, format!("/ping/pingkey/again/7?rid={run}"));
    }
    until_state(client, "", "sent").await;
    assert!(receiver.has_more().is_none() && pulse.has_more().is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nam_14_a_task_that_fails_for_ever_is_told_of_though_each_slot_takes_the_place_of_a_retry() {
    let mut receiver = Receiver::answering(&[]).await;
    let home = home(&hook(&receiver, "")).task("again", &tried_again("[schedule]\nevery = \"1s\""));
    let server = home.serve().await;
    let told = verified(&receiver.next().await);
    let (_, runs) = server.client.get("/tasks/again/runs?limit=500").await;
    let failed = &told["data"]["run"];
    assert_eq!(told["type"], "failed", "{told}");
    // One that fails while the next slot waits already has no retry to give way.
    let retry = runs["items"].as_array().unwrap().iter().find(|run| run["retry_of"] == *failed);
    assert!(retry.is_none_or(|retry| retry["state"] == "cancelled" && retry["started_at"].is_null()), "{runs}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_in_quiet_hours_is_held_and_told_as_one_when_they_end() {
    let mut receiver = Receiver::answering(&[]).await;
    let phone = format!(
        "[notify]\n[notify.channels.phone]\nkind = \"ntfy\"\nurl = \"{}\"\ntopic = \"mine\"\nallow_hosts = [\"127.0.0.1\"]\n\
         quiet = \"22:00-07:00\"\ntz = \"UTC\"",
        receiver.url()
    );
    let home = home(&phone).shell_task("one", "exit 1").shell_task("two", "exit 2");
    let clock = Clock::standing_at("2026-05-01T23:00:00Z".parse().unwrap());
    let server = home.serve_at(clock.clone()).await;
    for task in ["one", "two"] {
        ended(&server.client, task).await;
        until_state(&server.client, &format!("?task={task}"), "held").await;
    }
    let (_, list) = server.client.get("/notifications?state=held").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "{list}");
    assert_eq!(list["items"][0]["next_at"], "2026-05-02T07:00:00.000000Z");
    assert_eq!(list["items"][0]["attempts"], 0);
    assert!(receiver.has_more().is_none(), "somebody was woken");
    until_counted(&home, &server.client, "ntfy", [0, 0, 0, 2, 0]).await;

    clock.pass(std::time::Duration::from_secs(8 * 3600));
    let message: Value = serde_json::from_str(&receiver.next().await.body).unwrap();
    let said = message["message"].as_str().unwrap();
    assert!(said.contains("one failed") && said.contains("two failed"), "{message}");
    assert_eq!(message["title"], "2 messages from Rejoin");
    for task in ["one", "two"] {
        until_state(&server.client, &format!("?task={task}"), "sent").await;
    }
    assert!(receiver.has_more().is_none());
    // One message, and each that is in it arrived.
    until_counted(&home, &server.client, "ntfy", [2, 0, 0, 2, 0]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_goes_on_failing_is_told_of_once_and_once_more_when_it_works_again() {
    let receiver = Receiver::answering(&[]).await;
    let home = home(&hook(&receiver, "")).shell_task("flaky", "test -e good");
    let server = home.serve().await;
    for _ in 0..3 {
        ended(&server.client, "flaky").await;
    }
    std::fs::write(home.path().join("tasks/good"), "").unwrap();
    for _ in 0..2 {
        ended(&server.client, "flaky").await;
    }
    let recovered = |list: &Value| list["items"][0]["event"] == "recovered" && list["items"][0]["state"] == "sent";
    server.client.until("/notifications?task=flaky", recovered).await;
    assert_eq!(events(&server.client, "flaky").await, ["failed", "recovered"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_makes_its_own_channel_wait_and_nobody_else() {
    let mut dead = Receiver::answering(&[Answer::Hang, Answer::Hang, Answer::Hang]).await;
    let mut alive = Receiver::answering(&[]).await;
    let config =
        format!("[notify]\nretry = \"10ms\"\n{}\n{}", channel("dead", &dead, ""), channel("alive", &alive, ""));
    let home = home(&config).shell_task("one", "exit 1").shell_task("two", "exit 1");
    let server = home.serve().await;
    ended(&server.client, "one").await;
    dead.next().await;
    alive.next().await;
    // The dead one holds its request open: all others go on.
    ended(&server.client, "two").await;
    assert_eq!(verified(&alive.next().await)["data"]["task"], "two");
    let (_, list) = server.client.get("/notifications?channel=dead").await;
    assert!(list["items"].as_array().unwrap().iter().all(|one| one["state"] == "pending"), "{list}");
    let (_, channels) = server.client.get("/notify").await;
    assert_eq!(channels["items"][1]["name"], "dead");
    // Nor does the server wait for it.
    tokio::time::timeout(std::time::Duration::from_secs(8), server.stop()).await.expect("the stop waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_takes_too_long_is_tried_again() {
    let mut receiver = Receiver::answering(&[Answer::Hang]).await;
    let config = hook(&receiver, "").replace("timeout = \"20s\"", "timeout = \"300ms\"");
    let home = home(&config).shell_task("one", "exit 1");
    let server = home.serve().await;
    ended(&server.client, "one").await;
    receiver.next().await;
    receiver.next().await;
    let list = until_state(&server.client, "", "sent").await;
    assert!(list[0]["attempts"].as_u64() >= Some(2), "{list:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed_and_an_address_that_is_not_allowed_is_not_called() {
    let mut inside = Receiver::answering(&[]).await;
    let to = inside.url();
    let redirects: Vec<Answer> = [301, 302, 303, 307, 308].map(|status| Answer::Redirect(status, to.clone())).to_vec();
    let mut outside = Receiver::answering(&redirects).await;
    let not_allowed = channel("private", &inside, "").replace("allow_hosts = [\"127.0.0.1\"]", "");
    let home = home(&format!("{}\n{not_allowed}", hook(&outside, ""))).shell_task("one", "exit 1");
    let server = home.serve().await;
    ended(&server.client, "one").await;
    for _ in 0..6 {
        outside.next().await;
    }
    until_state(&server.client, "?channel=hook", "sent").await;
    let refused = |list: &Value| list["items"][0]["last_error"].is_string();
    let list = server.client.until("/notifications?channel=private", refused).await;
    assert!(list["items"][0]["last_error"].as_str().unwrap().contains("allow_hosts"), "{list}");
    assert!(inside.has_more().is_none(), "what was told went somewhere else");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_arrives_after_it_was_put_off_and_its_password_stands_nowhere() {
    // Each mailbox is tried by itself: two mails put off are one try.
    let mut sink = MailServer::putting_off(4).await;
    let config = format!(
        "{AT_ONCE}\n[notify.channels.team]\nkind = \"mail\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n\
         user = \"rejoin\"\npassword = {{ file = \"secret\" }}\nfrom = \"Rejoin <rejoin@example.org>\"\n\
         to = [\"team@example.org\", \"boss@example.org\"]\nallow_hosts = [\"127.0.0.1\"]",
        sink.address.port()
    );
    let home = home(&config).shell_task("backup", "echo 'no röom' >&2; exit 3");
    let server = home.serve().await;
    let run = ended(&server.client, "backup").await;
    let mail = sink.next().await;
    assert_eq!(mail.from.split(' ').next(), Some("MAIL"));
    assert!(mail.from.contains("<rejoin@example.org>"), "{}", mail.from);
    assert_eq!(mail.to, ["RCPT TO:<team@example.org>"]);
    assert_eq!(mail.header("To").as_deref(), Some("team@example.org, boss@example.org"));
    let copy = sink.next().await;
    assert_eq!(copy.to, ["RCPT TO:<boss@example.org>"]);
    assert_eq!(copy.header("Message-ID"), mail.header("Message-ID"));
    assert_eq!(mail.header("Subject").as_deref(), Some("backup failed"));
    let auth = STANDARD.decode(mail.auth.as_deref().unwrap()).unwrap();
    assert_eq!(auth, format!("\0rejoin\0{SECRET}").into_bytes());
    let list = until_state(&server.client, "", "sent").await;
    assert_eq!(list[0]["attempts"], 3, "{list:?}");
    let id = list[0]["id"].as_str().unwrap();
    assert_eq!(mail.header("Message-ID").unwrap(), format!("<{id}@example.org>"));
    let text = mail.text.replace("=\r\n", "");
    assert!(text.contains(&format!("/runs/{run}")), "{text}");
    until_counted(&home, &server.client, "mail", [1, 2, 0, 0, 0]).await;
    server.stop().await;
    let file = std::fs::read(home.database()).unwrap();
    let secret = SECRET.as_bytes();
    assert!(!file.windows(secret.len()).any(|window| window == secret), "the password is in the store");
}

/// A channel of mail to two mailboxes.
fn mail_to_two(sink: &MailServer) -> String {
    format!(
        "{AT_ONCE}\n[notify.channels.team]\nkind = \"mail\"\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n\
         from = \"rejoin@example.org\"\nto = [\"boss@example.org\", \"team@example.org\"]\nallow_hosts = [\"127.0.0.1\"]",
        sink.address.port()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_is_dead_keeps_no_mail_from_the_others() {
    let mut sink = MailServer::without(&[("boss", 550, usize::MAX)]).await;
    let home = home(&mail_to_two(&sink)).shell_task("backup", "exit 3");
    let server = home.serve().await;
    ended(&server.client, "backup").await;
    assert_eq!(sink.next().await.to, ["RCPT TO:<team@example.org>"]);
    let list = until_state(&server.client, "", "sent").await;
    assert_eq!(list[0]["attempts"], 1, "{list:?}");
    // It was sent, and who has it not is said where deliveries are looked at.
    let why = list[0]["last_error"].as_str().unwrap();
    assert!(why.contains("boss@example.org") && why.contains("not that one"), "{why}");
    assert!(sink.has_more().is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_no_mailbox_wants_is_given_up_at_once() {
    let sink = MailServer::without(&[("example.org", 550, usize::MAX)]).await;
    let home = home(&mail_to_two(&sink)).shell_task("backup", "exit 3");
    let server = home.serve().await;
    ended(&server.client, "backup").await;
    let list = until_state(&server.client, "", "failed").await;
    assert_eq!(list[0]["attempts"], 1, "{list:?}");
    assert!(list[0]["last_error"].as_str().unwrap().contains("not that one"), "{list:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mailbox_that_puts_a_mail_off_gets_it_later_and_the_others_get_it_once() {
    let mut sink = MailServer::without(&[("boss", 452, 3)]).await;
    let home = home(&mail_to_two(&sink)).shell_task("backup", "exit 3");
    let server = home.serve().await;
    ended(&server.client, "backup").await;
    let first = sink.next().await;
    let second = sink.next().await;
    assert_eq!(first.to, ["RCPT TO:<team@example.org>"]);
    assert_eq!(second.to, ["RCPT TO:<boss@example.org>"]);
    assert_eq!(first.header("Message-ID"), second.header("Message-ID"));
    let list = until_state(&server.client, "", "sent").await;
    assert_eq!(list[0]["attempts"], 4, "{list:?}");
    assert!(sink.has_more().is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_sent_again_and_nothing_else_is_sent_before_it_can_be_noted() {
    let told = Arc::new(Notify::new());
    let mut held = Receiver::answering(&[Answer::WhenTold(Arc::clone(&told), 200)]).await;
    let mut later = Receiver::answering(&[Answer::Status(500)]).await;
    let config = format!(
        "[notify]\nretry = \"6s\"\ntimeout = \"60s\"\n{}\n{}",
        channel("held", &held, ""),
        channel("later", &later, "")
    );
    let home = home(&config).shell_task("one", "exit 1");
    let server = home.spawn(&[]).await;
    let client = server.client.clone();
    ended(&client, "one").await;
    held.next().await;
    later.next().await;
    let tried = |list: &Value| list["items"][0]["attempts"] == 1;
    client.until("/notifications?channel=later", tried).await;
    limit_files(server.pid(), Some(1));
    // What has arrived cannot be noted.
    told.notify_one();
    let is_full = |status: &Value| status["notices"].as_array().is_some_and(|notices| !notices.is_empty());
    client.until("/status", is_full).await;
    assert!(held.is_left_alone_for(Duration::from_secs(7)).await, "it was sent again");
    assert!(later.has_more().is_none(), "it was sent where its arrival could not be noted");
    limit_files(server.pid(), None);
    for (channel, attempts) in [("held", 1), ("later", 2)] {
        let list = until_state(&client, &format!("?channel={channel}"), "sent").await;
        assert_eq!(list[0]["attempts"], attempts, "{list:?}");
    }
    assert!(held.has_more().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_run_does_not_overtake_its_start_that_did_not_arrive() {
    let mut receiver = Receiver::answering(&[Answer::Status(500)]).await;
    let config = format!(
        "[notify]\nretry = \"2s\"\n[notify.channels.pulse]\nkind = \"healthchecks\"\nurl = \"{}/ping\"\n\
         key = {{ file = \"secret\" }}\nallow_hosts = [\"127.0.0.1\"]",
        receiver.url()
    );
    let task = "title = \"N\"\n[notify]\ncheck = \"n\"\n[[steps]]\nname = \"a\"\nrun = \"sleep 0.3\"\n";
    let home = home(&config).task("n", task);
    std::fs::write(home.path().join("secret"), "pingkey").unwrap();
    let server = home.serve().await;
    let run = ended(&server.client, "n").await;
    let start = format!("/ping/pingkey/n/start?rid={run}");
    for path in [&start, &start, &format!("/ping/pingkey/n?rid={run}")] {
        assert_eq!(&receiver.next().await.path, path);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_did_not_arrive_as_one_message_only_what_is_too_old_is_given_up() {
    let mut receiver = Receiver::answering(&[Answer::Status(500)]).await;
    let config = format!(
        "{AT_ONCE}\n[notify.channels.phone]\nkind = \"ntfy\"\nurl = \"{}\"\ntopic = \"mine\"\n\
         allow_hosts = [\"127.0.0.1\"]",
        receiver.url()
    );
    let home = Home::new(&config).shell_task("one", "exit 1");
    let server = home.serve().await;
    let now = Timestamp::now();
    let wait = move |store: &rusqlite::Connection| -> Result<_, StoreError> {
        let draft = |n: i64| {
            let notice = Notice::new(Occasion::Failed, now, "x");
            ledger::Draft { channel: "phone".into(), kind: "ntfy", subject: n.to_string(), notice }
        };
        ledger::add_all(store, &[draft(0)], now - SignedDuration::from_hours(24))?;
        ledger::add_all(store, &[draft(1), draft(2), draft(3)], now)?;
        Ok(((), Vec::new()))
    };
    server.server.api().publisher.transact(wait).await.unwrap();
    // Somebody rings.
    ended(&server.client, "one").await;
    let fates = |list: &Value| {
        let states: Vec<&str> =
            list["items"].as_array().unwrap().iter().filter_map(|one| one["state"].as_str()).collect();
        states == ["sent", "sent", "sent", "sent", "failed"]
    };
    let list = server.client.until("/notifications", fates).await;
    let tries: Vec<&Value> = (1..5).map(|n| &list["items"][n]["attempts"]).collect();
    assert_eq!(tries, [2, 2, 2, 1], "{list}");
    receiver.next().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_back_is_told_when_the_clock_is_set_back() {
    let mut receiver = Receiver::answering(&[]).await;
    let config = hook(&receiver, "").replacen("[notify]", "[notify]\nhourly = 1", 1);
    let home = home(&config).shell_task("flaky", "test -e good");
    let start: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(start);
    let server = home.serve_at(clock.clone()).await;
    ended(&server.client, "flaky").await;
    assert_eq!(verified(&receiver.next().await)["type"], "failed");
    std::fs::write(home.path().join("tasks/good"), "").unwrap();
    ended(&server.client, "flaky").await;
    // Decided, and held back.
    let is_held = || {
        let store = rusqlite::Connection::open(home.database()).unwrap();
        let held = "SELECT EXISTS (SELECT 1 FROM standings WHERE due IS NOT NULL)";
        store.query_row(held, [], |row| row.get::<_, bool>(0)).unwrap()
    };
    while !is_held() {
        tokio::task::yield_now().await;
    }
    clock.set(start - SignedDuration::from_hours(24));
    assert_eq!(verified(&receiver.next().await)["type"], "recovered");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_a_clock_that_jumped_nothing_is_tried_early_or_given_up_before_it_is_believed() {
    let mut receiver = Receiver::answering(&[Answer::Status(503)]).await;
    let home = home(&hook(&receiver, "")).shell_task("one", "exit 1").shell_task("two", "exit 1");
    let start: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
    let clock = Clock::standing_at(start);
    let server = home.serve_at(clock.clone()).await;
    ended(&server.client, "one").await;
    assert_eq!(verified(&receiver.next().await)["data"]["task"], "one");
    let tried = |list: &Value| list["items"][0]["attempts"] == 1;
    server.client.until("/notifications?task=one", tried).await;
    clock.set(start + SignedDuration::from_hours(72));
    ended(&server.client, "two").await;
    assert_eq!(verified(&receiver.next().await)["data"]["task"], "two", "the one before waits longer");
    until_state(&server.client, "?task=two", "sent").await;
    let list = server.client.get("/notifications?task=one").await.1;
    assert!(tried(&list) && list["items"][0]["state"] == "pending", "{list}");
    clock.set(start);
    clock.pass(std::time::Duration::from_secs(1));
    assert_eq!(verified(&receiver.next().await)["data"]["task"], "one");
    until_state(&server.client, "?task=one", "sent").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_in_plain_to_a_mail_server_that_cannot_encrypt() {
    let sink = MailServer::putting_off(0).await;
    let config = format!(
        "{AT_ONCE}\n[notify.channels.team]\nkind = \"mail\"\nhost = \"127.0.0.1\"\nport = {}\nuser = \"rejoin\"\n\
         password = {{ file = \"secret\" }}\nfrom = \"a@example.org\"\nto = \"b@example.org\"\nallow_hosts = [\"127.0.0.1\"]",
        sink.address.port()
    );
    let home = home(&config);
    let server = home.serve().await;
    let (status, delivery) = server.client.post("/notify/team/test", json!({})).await;
    assert_eq!((status, delivery["state"].as_str()), (200, Some("failed")), "{delivery}");
    let heard = sink.heard();
    assert!(!heard.iter().any(|line| line.starts_with("AUTH") || line.starts_with("MAIL")), "{heard:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_has_its_title_priority_and_page_and_its_secrets_are_in_nothing_that_is_shown() {
    let mut receiver = Receiver::answering(&[Answer::Status(403)]).await;
    let config = format!(
        "{AT_ONCE}\n[notify.channels.phone]\nkind = \"ntfy\"\nurl = \"{}\"\ntopic = {{ file = \"topic\" }}\n\
         token = {{ file = \"secret\" }}\npriority = 5\nallow_hosts = [\"127.0.0.1\"]",
        receiver.url()
    );
    let home = home(&config).shell_task("backup", "test -e good");
    std::fs::write(home.path().join("topic"), "hidden-topic\n").unwrap();
    let server = home.serve().await;
    let run = ended(&server.client, "backup").await;
    receiver.next().await;
    let request = receiver.next().await;
    assert_eq!(request.headers["authorization"], format!("Bearer {SECRET}"));
    let message: Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(message["topic"], "hidden-topic");
    assert_eq!((message["title"].as_str(), message["priority"].as_u64()), (Some("backup failed"), Some(5)));
    assert_eq!(message["click"], format!("https://tasks.example.org/tasks/backup/runs/{run}"));
    std::fs::write(home.path().join("tasks/good"), "").unwrap();
    ended(&server.client, "backup").await;
    let message: Value = serde_json::from_str(&receiver.next().await.body).unwrap();
    assert_eq!((message["title"].as_str(), message["priority"].as_u64()), (Some("backup works again"), Some(3)));
    let (_, list) = server.client.get("/notifications").await;
    let (_, channels) = server.client.get("/notify").await;
    for shown in [list.to_string(), channels.to_string()] {
        assert!(!shown.contains(SECRET) && !shown.contains("hidden-topic"), "{shown}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_secret_that_a_receiver_quotes_nothing_is_shown_wherever_its_words_are_cut() {
    // Cut by how much is shown, by how much is read, and where the line ends in the middle of it.
    let words = [175, 190, 1015].map(|before| format!("{}{SECRET}{}", "p".repeat(before), "q".repeat(2000)));
    let blanks = [999, 1015].map(|before| format!("{}{SECRET}", " ".repeat(before)));
    let whole = format!("you sent {SECRET} and it is wrong");
    let all = [words.as_slice(), blanks.as_slice(), &[whole]].concat();
    let answers: Vec<Answer> = all.iter().map(|words| Answer::Says(500, words.clone())).collect();
    let receiver = Receiver::answering(&answers).await;
    let home = home(&hook(&receiver, ""));
    let server = home.serve().await;
    for words in &all {
        let (_, delivery) = server.client.post("/notify/hook/test", json!({})).await;
        let shown = delivery["last_error"].as_str().unwrap();
        assert!(shown.contains("500") && !shown.contains(&SECRET[..4]), "{shown}\n{words}");
    }
    let (_, list) = server.client.get("/notifications?limit=1").await;
    let last = list["items"][0]["last_error"].as_str().unwrap();
    assert!(last.ends_with("you sent [redacted] and it is wrong"), "{last}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signs_of_life_are_start_success_and_exit_code_for_tasks_that_have_a_check() {
    let mut receiver = Receiver::answering(&[]).await;
    let config = format!(
        "{AT_ONCE}\n[notify.channels.pulse]\nkind = \"healthchecks\"\nurl = \"{}/ping\"\nkey = {{ file = \"secret\" }}\n\
         allow_hosts = [\"127.0.0.1\"]",
        receiver.url()
    );
    let task = |check: &str| {
        format!("title = \"Nightly\"\n{check}\n[[steps]]\nname = \"only\"\nrun = \"test -e good || exit 7\"\n")
    };
    let home = home(&config).task("nightly", &task("[notify]\ncheck = \"nightly\"")).task("other", &task(""));
    std::fs::write(home.path().join("secret"), "pingkey").unwrap();
    let server = home.serve().await;
    ended(&server.client, "other").await;
    let bad = ended(&server.client, "nightly").await;
    assert_eq!(receiver.next().await.path, format!("/ping/pingkey/nightly/start?rid={bad}"));
    assert_eq!(receiver.next().await.path, format!("/ping/pingkey/nightly/7?rid={bad}"));
    std::fs::write(home.path().join("tasks/good"), "").unwrap();
    let good = ended(&server.client, "nightly").await;
    assert_eq!(receiver.next().await.path, format!("/ping/pingkey/nightly/start?rid={good}"));
    assert_eq!(receiver.next().await.path, format!("/ping/pingkey/nightly?rid={good}"));
    until_state(&server.client, "", "sent").await;
    assert!(receiver.has_more().is_none(), "a task without a check is told of");
    until_counted(&home, &server.client, "healthchecks", [4, 0, 0, 0, 0]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_chooses_its_channels_and_what_is_told_of_it() {
    let (mut one, mut two) = (Receiver::answering(&[]).await, Receiver::answering(&[]).await);
    let config = format!("{}\n{}", hook(&one, ""), channel("two", &two, "every_task = false"));
    let task = |notify: &str| {
        format!(
            "title = \"T\"\n{notify}\n[[steps]]\nname = \"a\"\nrun = \"echo full\"\nattention = 'output.contains(\"full\")'\n\
             summary = \"The disk is full\"\n[[steps]]\nname = \"b\"\nrun = \"exit 1\"\n"
        )
    };
    let home = home(&config)
        .task("plain", &task(""))
        .task("silent", &task("[notify]\nenabled = false"))
        .task("chosen", &task("[notify]\nchannels = [\"two\"]\non = [\"attention\"]"));
    let server = home.serve().await;
    for task in ["silent", "chosen", "plain"] {
        ended(&server.client, task).await;
    }
    let told = verified(&two.next().await);
    assert_eq!((told["type"].as_str(), told["data"]["task"].as_str()), (Some("attention"), Some("chosen")));
    assert_eq!(told["data"]["text"], "T: The disk is full");
    // A run that failed and found something is one message.
    let told = verified(&one.next().await);
    assert_eq!((told["type"].as_str(), told["data"]["task"].as_str()), (Some("failed"), Some("plain")));
    assert_eq!(told["data"]["attention"], "The disk is full");
    server.client.until("/notifications", |list| list["items"].as_array().is_some_and(|items| items.len() == 2)).await;
    until_state(&server.client, "", "sent").await;
    assert!(one.has_more().is_none() && two.has_more().is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_were_missed_and_runs_that_start_late_are_told() {
    let mut receiver = Receiver::answering(&[]).await;
    let task = |catchup: &str| {
        format!(
            "title = \"{catchup}\"\n[schedule]\nevery = \"1h\"\n[policy]\ncatchup = \"{catchup}\"\ncatchup_window = \"1d\"\n\
             [[steps]]\nname = \"a\"\nrun = \"true\"\n"
        )
    };
    let home =
        home(&hook(&receiver, "on = [\"missed\", \"late\"]")).task("none", &task("none")).task("last", &task("last"));
    let start: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
    home.serve_at(Clock::standing_at(start)).await.stop().await;
    let later = start + SignedDuration::from_mins(5 * 60 + 30);
    let server = home.serve_at(Clock::standing_at(later)).await;
    let mut told = [verified(&receiver.next().await), verified(&receiver.next().await)];
    told.sort_by_key(|told| told["type"].as_str().unwrap().to_owned());
    assert_eq!((told[0]["type"].as_str(), told[0]["data"]["task"].as_str()), (Some("late"), Some("last")), "{told:?}");
    assert_eq!(told[0]["data"]["late_ms"], 30 * 60 * 1000);
    assert_eq!(
        (told[1]["type"].as_str(), told[1]["data"]["task"].as_str()),
        (Some("missed"), Some("none")),
        "{told:?}"
    );
    assert_eq!(told[1]["data"]["slots"], 5);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_takes_much_longer_than_the_last_ones_is_told_of() {
    let mut receiver = Receiver::answering(&[]).await;
    let home = home(&hook(&receiver, "on = [\"slow\"]")).task("import", "title = \"Import\"\nagent = \"external\"\n");
    let server = home.serve().await;
    // A program elsewhere says itself how long it took.
    for duration in [60_000, 61_000, 59_000, 60_000, 62_000, 185_000, 60_000] {
        let run = server.client.run("import").await;
        let line = json!({ "n": 1, "kind": "status", "data": { "state": "succeeded", "duration_ms": duration } });
        let request = server.client.request(reqwest::Method::POST, &format!("/runs/{run}/events"));
        assert_eq!(request.body(line.to_string()).send().await.unwrap().status(), 200);
        server.client.ended(&run).await;
    }
    let told = verified(&receiver.next().await);
    assert_eq!(told["type"], "slow");
    assert_eq!(told["data"]["duration_ms"], 185_000);
    assert_eq!(told["data"]["usual_ms"], 60_000);
    until_state(&server.client, "", "sent").await;
    assert_eq!(events(&server.client, "import").await, ["slow"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_or_not_tried_is_counted_as_that() {
    let mut receiver = Receiver::answering(&[Answer::Status(410)]).await;
    let home = home(&hook(&receiver, "")).shell_task("one", "exit 1").shell_task("two", "exit 1");
    let server = home.serve().await;
    ended(&server.client, "one").await;
    receiver.next().await;
    until_state(&server.client, "", "failed").await;
    until_counted(&home, &server.client, "webhook", [0, 0, 1, 0, 0]).await;
    // As many as may wait do; nobody rings for them.
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    let wait = move |store: &rusqlite::Connection| -> Result<_, StoreError> {
        let draft = |n: i64| {
            let notice = Notice::new(Occasion::Failed, later, "x");
            ledger::Draft { channel: "hook".into(), kind: "webhook", subject: n.to_string(), notice }
        };
        let drafts: Vec<_> = (0..ledger::MOST_WAITING).map(draft).collect();
        ledger::add_all(store, &drafts, later)?;
        Ok(((), Vec::new()))
    };
    server.server.api().publisher.transact(wait).await.unwrap();
    ended(&server.client, "two").await;
    until_state(&server.client, "?task=two", "dropped").await;
    until_counted(&home, &server.client, "webhook", [0, 0, 1, 0, 1]).await;
    server.stop().await;
    // A channel that is gone takes what waits for it along; of what kind it was is not known any more.
    let config = std::fs::read_to_string(home.path().join("config.toml")).unwrap();
    let config = config.replace("notify.channels.hook", "notify.channels.other");
    std::fs::write(home.path().join("config.toml"), config).unwrap();
    let server = home.spawn(&[]).await;
    until_counted(&home, &server.client, "webhook", [0; 5]).await;
    until_counted(&home, &server.client, "other", [0, 0, 0, 0, 1000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_is_sent_at_once_and_says_whether_it_arrived() {
    let mut receiver = Receiver::answering(&[Answer::Status(200), Answer::Status(500)]).await;
    let home = home(&hook(&receiver, "quiet = \"00:00-23:59\"\ntz = \"UTC\""));
    let server = home.serve().await;
    let (status, delivery) = server.client.post("/notify/hook/test", json!({})).await;
    assert_eq!((status, delivery["state"].as_str(), delivery["event"].as_str()), (200, Some("sent"), Some("test")));
    assert_eq!(verified(&receiver.next().await)["type"], "test");
    let (_, delivery) = server.client.post("/notify/hook/test", json!({})).await;
    assert_eq!(delivery["state"], "failed");
    assert!(delivery["last_error"].as_str().unwrap().contains("500"), "{delivery}");
    until_counted(&home, &server.client, "webhook", [1, 0, 1, 0, 0]).await;
    assert_eq!(server.client.post("/notify/nobody/test", json!({})).await.0, 404);
    let (_, page) = server.client.get("/notifications?limit=1").await;
    let next = page["next"].as_str().unwrap();
    let (_, rest) = server.client.get(&format!("/notifications?limit=1&cursor={next}")).await;
    assert_eq!(
        (page["items"][0]["state"].as_str(), rest["items"][0]["state"].as_str()),
        (Some("failed"), Some("sent"))
    );
    assert_eq!(rest["next"], Value::Null);
    assert_eq!(server.client.get("/notifications?state=lost").await.0, 400);
    let (status, unknown) = server.client.get("/notifications?channel=nobody").await;
    assert_eq!((status, &unknown["code"]), (404, &json!("not_found")), "{unknown}");
    server.stop().await;
}

fn rejoin(home: &Home, words: &[&str]) -> (i32, String, String) {
    let config = home.path().join("config.toml");
    let output = Command::new(REJOIN).args(words).arg("--config").arg(config).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_no_test_is_sent_and_of_one_that_was_it_is_said() {
    let told = Arc::new(Notify::new());
    let mut receiver = Receiver::answering(&[Answer::WhenTold(told.clone(), 200)]).await;
    let home = home(&hook(&receiver, ""));
    let server = home.spawn(&[]).await;
    let client = server.client.clone();
    let asked = tokio::spawn(async move { client.post("/notify/hook/test", json!({})).await });
    receiver.next().await;
    limit_files(server.pid(), Some(1));
    told.notify_one();
    let (status, problem) = asked.await.unwrap();
    assert_eq!((status, &problem["code"]), (503, &json!("not_writable")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with("the test was sent, but that could not be"), "{problem}");
    // It is one of those that are brought until it is known that they arrived.
    let (_, list) = server.client.get("/notifications").await;
    assert_eq!(
        (&list["items"][0]["state"], list["items"][0]["next_at"].is_string()),
        (&json!("pending"), true),
        "{list}"
    );
    let (status, problem) = server.client.post("/notify/hook/test", json!({})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("not_writable")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with("the store cannot be written"), "{problem}");
    assert!(receiver.has_more().is_none(), "it was sent where its arrival could not be noted");
    limit_files(server.pid(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_a_task_while_a_test_with_it_is_under_way_is_told_after_that() {
    let told = Arc::new(Notify::new());
    let mut receiver = Receiver::answering(&[Answer::WhenTold(told.clone(), 200)]).await;
    let home = home(&hook(&receiver, "")).shell_task("one", "exit 1");
    let server = home.serve().await;
    let client = server.client.clone();
    let asked = tokio::spawn(async move { client.post("/notify/hook/test", json!({ "task": "one" })).await });
    assert_eq!(verified(&receiver.next().await)["type"], "test");
    ended(&server.client, "one").await;
    let both = |list: &Value| list["items"].as_array().is_some_and(|items| items.len() == 2);
    server.client.until("/notifications?task=one", both).await;
    told.notify_one();
    assert_eq!(asked.await.unwrap().0, 200);
    assert_eq!(verified(&receiver.next().await)["type"], "failed");
    server.stop().await;
}

async fn command(home: &Home, words: &[&'static str]) -> (i32, String, String) {
    tokio::task::block_in_place(|| rejoin(home, words))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_lists_what_was_told_and_tests_a_channel() {
    let receiver = Receiver::answering(&[Answer::Status(200), Answer::Status(500)]).await;
    let home = home(&hook(&receiver, ""));
    let server = home.serve().await;
    let (code, out, _) = command(&home, &["notify", "test", "hook"]).await;
    assert!(code == 0 && out.contains("hook"), "{out}");
    let (code, _, err) = command(&home, &["notify", "test", "hook"]).await;
    assert!(code == 7 && err.contains("500"), "{code} {err}");
    assert_eq!(command(&home, &["notify", "test", "nobody"]).await.0, 4);
    let (code, out, _) = command(&home, &["notify", "list"]).await;
    assert!(code == 0 && out.lines().count() == 3 && out.contains("failed"), "{out}");
    let (code, out, _) = command(&home, &["notify", "channels", "--json"]).await;
    let channels: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, channels["items"][0]["kind"].as_str()), (0, Some("webhook")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_is_wrong_and_ends_with_one_where_there_is_trouble() {
    let mut receiver = Receiver::answering(&[]).await;
    let home = home(&hook(&receiver, "")).shell_task("good", "true");
    let (code, out, _) = command(&home, &["doctor"]).await;
    assert!(code == 1 && out.contains("rejoin serve"), "{out}");
    let server = home.serve().await;
    let (code, out, err) = command(&home, &["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0, "{out}{err}");
    for check in
        ["server", "store", "writing", "disk", "clock", "supervisor", "tasks", "notify", "rights", "task files"]
    {
        let items = report["items"].as_array().unwrap();
        assert!(items.iter().any(|item| item["check"] == check && item["level"] != "trouble"), "{check}: {out}");
    }
    assert!(receiver.has_more().is_none(), "it sends only when asked to");
    assert_eq!(command(&home, &["doctor", "--send"]).await.0, 0);
    assert_eq!(verified(&receiver.next().await)["type"], "test");
    // A task that speaks of a channel that is not there.
    let home = home
        .task("bad", "title = \"Bad\"\n[notify]\nchannels = [\"phone\"]\n[[steps]]\nname = \"a\"\nrun = \"true\"\n");
    let (code, out, _) = command(&home, &["doctor"]).await;
    assert!(code == 1 && out.contains("\"phone\"") && out.contains("trouble"), "{out}");
    // A secret is put right where it is, not where it is named.
    std::fs::remove_file(home.path().join("secret")).unwrap();
    let (code, out, _) = command(&home, &["doctor"]).await;
    assert!(code == 1 && out.contains("channel hook: secret") && out.contains("write the file"), "{out}");
    server.stop().await;
}

fn calls(channels: &[&str]) -> String {
    format!("title = \"Calls\"\n[notify]\nchannels = {channels:?}\n[[steps]]\nname = \"a\"\nrun = \"exit 1\"\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_not_there_is_refused_in_file_api_and_command() {
    let receiver = Receiver::answering(&[]).await;
    let home = home(&hook(&receiver, "")).task("file", &calls(&["hook", "phone"]));
    let server = home.serve().await;
    let client = &server.client;
    let said = "there is no channel \"phone\" in [notify.channels] of config.toml: there are \"hook\"";
    let (_, shown) = client.get("/tasks/file").await;
    assert_eq!(
        (&shown["error"]["message"], &shown["error"]["key"], &shown["error"]["line"]),
        (&json!(said), &json!("notify.channels[1]"), &json!(3)),
        "{shown}"
    );
    let task = |channel: &str| {
        json!({
            "id": "made", "title": "Made", "run": false, "steps": [{"run": "true"}], "notify": {"channels": [channel]},
        })
    };
    for path in ["/tasks", "/tasks?dry_run=true"] {
        let (status, refused) = client.post(path, task("phone")).await;
        assert_eq!((status, &refused["field"]), (400, &json!("notify.channels[0]")), "{path}: {refused}");
        assert!(refused["detail"].as_str().unwrap().contains(said), "{path}: {refused}");
    }
    assert_eq!(client.post("/tasks", task("hook")).await.0, 201);
    let change = json!({"notify": {"channels": ["phone"]}});
    let refused = client.request(reqwest::Method::PATCH, "/tasks/made").json(&change).send().await.unwrap();
    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["field"], "notify.channels[0]", "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains(said), "{refused}");
    let (code, out, _) = command(&home, &["tasks", "validate"]).await;
    assert!(code == 2 && out.contains(&format!("file.toml:3:21: notify.channels[1]: {said}")), "{out}");
    let add = ["tasks", "add", "Added", "--run", "true", "--every", "1h", "--notify"];
    let (code, _, words) = command(&home, &[&add[..], &["hook,phone"]].concat()).await;
    assert!(code == 2 && words.contains(said), "{words}");
    assert_eq!(client.get("/tasks/added").await.0, 404, "nothing was made");
    let (code, _, words) = command(&home, &[&add[..], &["hook"]].concat()).await;
    assert_eq!(code, 0, "{words}");
    let added = client.get("/tasks/added").await.1;
    assert_eq!(added["definition"]["notify"], json!({"channels": ["hook"]}), "{added}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_gone_loses_no_task_and_the_other_channels_are_told() {
    let mut receiver = Receiver::answering(&[]).await;
    let both = format!("{}\n{}", hook(&receiver, ""), channel("phone", &receiver, ""));
    let home = home(&both).task("file", &calls(&["phone", "hook"]));
    let mut server = home.spawn(&[]).await;
    let body = json!({
        "id": "stored", "title": "Stored", "run": false, "steps": [{"run": "exit 1"}],
        "notify": {"channels": ["phone", "hook"]},
    });
    assert_eq!(server.client.post("/tasks", body).await.0, 201);
    server.terminate().await;
    let config = home.path().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("[notify.channels.phone]", "[notify.channels.mobile]");
    std::fs::write(&config, text).unwrap();
    let server = home.spawn(&[]).await;
    let client = &server.client;
    let said = "there is no channel \"phone\" in [notify.channels] of config.toml: there are \"hook\", \"mobile\"";
    let (_, shown) = client.get("/tasks/stored").await;
    assert_eq!(shown["error"]["key"], "notify.channels[0]", "{shown}");
    assert_eq!(shown["error"]["message"], format!("{said}; until then nobody is told by it"));
    // The file is refused as it stands; what was in force before stays so.
    let (_, shown) = client.get("/tasks/file").await;
    assert_eq!((&shown["error"]["message"], &shown["error"]["line"]), (&json!(said), &json!(3)), "{shown}");
    let (code, out, _) = command(&home, &["doctor"]).await;
    for told in ["put it back into config.toml", "correct the file"] {
        assert!(code == 1 && out.contains(said) && out.contains(told), "{told}: {out}");
    }
    for task in ["stored", "file"] {
        ended(client, task).await;
        let told = verified(&receiver.next().await);
        assert_eq!((told["type"].as_str(), told["data"]["task"].as_str()), (Some("failed"), Some(task)));
    }
    assert!(receiver.has_more().is_none(), "once each, by the channel that is there");
    // What is changed has to be right.
    let patch = async |body: Value| {
        let sent = client.request(reqwest::Method::PATCH, "/tasks/stored").json(&body).send().await.unwrap();
        (sent.status().as_u16(), sent.json::<Value>().await.unwrap())
    };
    let (status, refused) = patch(json!({"title": "Other"})).await;
    assert_eq!((status, &refused["field"]), (400, &json!("notify.channels[0]")), "{refused}");
    let (status, mended) = patch(json!({"notify": {"channels": ["mobile", "hook"]}})).await;
    assert_eq!((status, &mended["error"]), (200, &Value::Null), "{mended}");
}

#[test]
fn a_channel_that_cannot_be_is_refused_with_its_place_and_the_way_out() {
    let refused = |text: &str| {
        let none = std::collections::BTreeMap::new();
        rejoin::config::Config::from_text(None, &format!("[notify.channels.x]\n{text}"), &none).unwrap_err().to_string()
    };
    for (text, part) in [
        ("kind = \"pigeon\"", "unknown variant"),
        ("kind = \"webhook\"\nsecret = { env = \"S\" }", "url is missing"),
        ("kind = \"webhook\"\nurl = \"https://a\"", "secret is missing"),
        ("kind = \"webhook\"\nurl = \"https://a\"\nsecret = \"x\"", "never stands in this file"),
        ("kind = \"webhook\"\nurl = \"https://a\"\nsecret = { pipe = \"x\" }", "{ env = "),
        ("kind = \"webhook\"\nurl = \"a\"\nsecret = { env = \"S\" }", "must begin with"),
        ("kind = \"webhook\"\nurl = \"https://me:pw@a\"\nsecret = { env = \"S\" }", "must not have a name or password"),
        ("kind = \"webhook\"\nurl = \"https://a\"\nsecret = { env = \"S\" }\ntopic = \"t\"", "topic does not go with"),
        ("kind = \"ntfy\"", "topic is missing"),
        ("kind = \"ntfy\"\ntopic = \"t\"\npriority = 9", "from 1 to 5"),
        ("kind = \"ntfy\"\ntopic = \"t\"\non = [\"sometimes\"]", "\"recovered\""),
        ("kind = \"ntfy\"\ntopic = \"t\"\nquiet = \"late\"", "22:00-07:00"),
        ("kind = \"ntfy\"\ntopic = \"t\"\nquiet = \"22:00-07:00\"\ntz = \"Nowhere\"", "not a time zone"),
        ("kind = \"ntfy\"\ntopic = \"t\"\ntpoic = \"t\"", "unknown field"),
        ("kind = \"mail\"\nhost = \"a\"\nfrom = \"a@b\"\nto = \"c@d\"\ntls = \"none\"", "on this machine"),
        ("kind = \"mail\"\nhost = \"a\"\nfrom = \"a@b\"\nto = \"c@d\"\nuser = \"u\"", "go together"),
        ("kind = \"mail\"\nhost = \"a\"\nfrom = \"nope\"\nto = \"c@d.org\"", "from: \"nope\" is no address"),
        ("kind = \"mail\"\nhost = \"a\"\nfrom = \"a@b.org\"\nto = [\"c@d.org\", \"d\"]", "to: \"d\" is no address"),
        ("kind = \"mail\"\nhost = \"a\"\nfrom = \"a@b.org\\nx\"\nto = \"c@d.org\"", "is no address"),
        ("kind = \"healthchecks\"\non = [\"failed\"]", "do not go with healthchecks"),
    ] {
        let said = refused(text);
        assert!(said.contains(part) && said.contains("notify.channels.x"), "{said}");
    }
}
