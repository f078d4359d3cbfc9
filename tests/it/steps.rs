//! The `steps` agent, from a task's steps to what it says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rejoin::agent::{Assignment, Emitter, Outcome, steps};
use rejoin::event::{Body, OutputStream, RunId};
use rejoin::run::process::{Processes, StopStages};
use rejoin::run::secrets::Redactor;
use rejoin::task::definition::{Action, AgentKind, Definition, OnError, Param, Policy, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::process::{FAST, marked, no_record, processes, program, until};

struct Work {
    assignment: Assignment,
    dir: tempfile::TempDir,
}

struct Done {
    outcome: Outcome,
    events: Vec<(Instant, Body)>,
    dir: tempfile::TempDir,
}

fn step(name: &str, command: &str) -> Step {
    let action = Action::Run { command: command.to_owned() };
    Step {
        name: name.to_owned(),
        when: None,
        thought: None,
        action,
        attention: None,
        summary: None,
        timeout: None,
        on_error: OnError::Stop,
    }
}

fn http(url: String, allow_hosts: &[&str]) -> Action {
    Action::Http {
        method: "GET".into(),
        url,
        headers: BTreeMap::new(),
        body: None,
        expect_status: Vec::new(),
        allow_hosts: allow_hosts.iter().map(|host| (*host).to_owned()).collect(),
    }
}

fn work(steps: Vec<Step>) -> Work {
    let dir = tempfile::tempdir().unwrap();
    let definition = Definition {
        title: "A task".into(),
        description: String::new(),
        agent: AgentKind::Steps,
        schedule: None,
        policy: Policy::default(),
        notify: rejoin::task::telling::Telling::default(),
        params: BTreeMap::from([("limit".to_owned(), Param { default: None, help: String::new() })]),
        secrets: BTreeMap::new(),
        steps,
        attention: None,
        summary: None,
    };
    let run = RunId::new();
    let assignment = Assignment {
        task: "a-task".parse().unwrap(),
        run,
        definition: Arc::new(definition),
        params: BTreeMap::from([("limit".to_owned(), 85.into()), ("PATH".to_owned(), "/not/declared".into())]),
        scheduled_for: None,
        attempt: 1,
        secrets: BTreeMap::new(),
        redactor: Redactor::none(),
        output_dir: dir.path().join("output"),
        work_dir: dir.path().into(),
        own_port: None,
        processes: processes(run),
    };
    Work { assignment, dir }
}

impl Work {
    fn define(mut self, change: impl FnOnce(&mut Definition)) -> Self {
        change(Arc::make_mut(&mut self.assignment.definition));
        self
    }

    async fn done(self) -> Done {
        let (run, processes) = (self.assignment.run, self.assignment.processes.clone());
        let (emitter, mut bodies) = Emitter::channel();
        let collect = async {
            let mut events = Vec::new();
            while let Some(body) = bodies.recv().await {
                events.push((Instant::now(), body));
            }
            events
        };
        let (outcome, events) = tokio::join!(steps::run(self.assignment, emitter), collect);
        // A stop that is under way ends them by itself.
        assert!(processes.is_stopping() || marked(run).is_empty(), "something is left of the run");
        Done { outcome, events, dir: self.dir }
    }

    /// The same where the log takes nothing, and so the step waits, until the command has come and gone with all it
    /// started. The folder is there as long as what is given.
    async fn done_while_the_log_takes_nothing(self) -> (Outcome, tempfile::TempDir) {
        let (emitter, mut bodies) = Emitter::channel();
        // One event more, and the channel is full.
        for _ in 0..rejoin::agent::EMITTER_CAPACITY - 1 {
            emitter.emit(Body::Thought { text: String::new() }).await.unwrap();
        }
        let run = self.assignment.run;
        let watching = async {
            until("the command was there", || !marked(run).is_empty()).await;
            until("the command is gone", || marked(run).is_empty()).await;
            while bodies.recv().await.is_some() {}
        };
        let (outcome, ()) = tokio::join!(steps::run(self.assignment, emitter), watching);
        (outcome, self.dir)
    }
}

impl Done {
    /// What was told of the output, by stream.
    fn told(&self, of: OutputStream) -> String {
        let texts = self.events.iter().filter_map(|(_, body)| match body {
            Body::ToolOutput { stream, text, .. } if *stream == of => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    fn results(&self) -> Vec<(String, bool, Option<i32>, String)> {
        let results = self.events.iter().filter_map(|(_, body)| match body {
            Body::ToolResult { call, ok, exit, output, .. } => Some((call.clone(), *ok, *exit, output.clone())),
            _ => None,
        });
        results.collect()
    }

    /// The signals that it was told of.
    fn stages(&self) -> Vec<&str> {
        let stages = self.events.iter().filter_map(|(_, body)| match body {
            Body::Status(status) => status.text.split(' ').nth(5),
            _ => None,
        });
        stages.collect()
    }

    fn outputs(&self) -> Vec<String> {
        self.results().into_iter().map(|(_, _, _, output)| output).collect()
    }

    fn reason(&self) -> &str {
        match &self.outcome {
            Outcome::Failed { reason, .. } => reason,
            Outcome::Succeeded { .. } => panic!("it worked"),
        }
    }

    fn attention(&self) -> Option<&str> {
        let (Outcome::Succeeded { attention, .. } | Outcome::Failed { attention, .. }) = &self.outcome;
        attention.as_ref().map(|attention| attention.summary.as_str())
    }

    fn whole(&self, call: &str) -> PathBuf {
        self.dir.path().join("output").join(call)
    }

    fn everything(&self) -> String {
        self.events.iter().map(|(_, body)| body.data().unwrap().to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_thinks_acts_tells_and_ends_in_this_order() {
    let mut first = step("first", "echo out; echo err >&2; exit 0");
    first.thought = Some("Is it over ${params.limit}?".into());
    let done = work(vec![first]).done().await;
    let kinds: Vec<&str> = done.events.iter().map(|(_, body)| body.kind()).collect();
    assert_eq!(kinds, ["thought", "tool_use", "tool_output", "tool_output", "tool_result"]);
    assert!(matches!(&done.events[0].1, Body::Thought { text } if text == "Is it over 85?"));
    assert_eq!(done.told(OutputStream::Stdout), "out\n");
    assert_eq!(done.told(OutputStream::Stderr), "err\n");
    let Body::ToolResult { call, tool, ok, output, exit, .. } = &done.events[4].1 else { panic!("no result") };
    assert_eq!((call.as_str(), tool.as_str(), *ok, *exit), ("c1", "shell", true, Some(0)));
    assert!(output.contains("out\n") && output.contains("err\n"), "{output}");
    assert_eq!(done.outcome, Outcome::Succeeded { exit: Some(0), attention: None });
    let whole = std::fs::read_to_string(done.whole("c1")).unwrap();
    assert_eq!((whole.len(), whole.contains("out\n")), (8, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_told_in_order_at_most_four_times_a_second_and_16_kib_each() {
    let command = "i=0; while [ $i -lt 240 ]; do i=$((i+1)); echo \"line $i\"; sleep 0.01; done";
    let done = work(vec![step("lines", command)]).done().await;
    let times = |is: fn(&Body) -> bool| -> Vec<Instant> {
        done.events.iter().filter(|(_, body)| is(body)).map(|(at, _)| *at).collect()
    };
    let begun = times(|body| matches!(body, Body::ToolUse { .. }))[0];
    let times = times(|body| matches!(body, Body::ToolOutput { .. }));
    assert!(times.len() >= 4, "{}", times.len());
    // Whatever held one of them up on its way to us, no more of them were told by then than so many seconds allow.
    for (told, at) in times.iter().enumerate() {
        assert!(*at - begun >= Duration::from_secs(told as u64 / 4), "{told} in {:?}", *at - begun);
    }
    // The first of five may be held up for a moment, and the last not.
    for five in times.windows(5) {
        assert!(five[4] - five[0] >= Duration::from_millis(900), "{:?}", five[4] - five[0]);
    }
    let expected: String = (1..=240).map(|i| format!("line {i}\n")).collect();
    assert_eq!(done.told(OutputStream::Stdout), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_flood_the_middle_is_cut_with_its_count_and_the_whole_is_kept() {
    let done = work(vec![step("flood", "seq 1 2000000")]).done().await;
    for (_, body) in &done.events {
        if let Body::ToolOutput { text, cut_bytes, .. } = body {
            assert!(text.len() <= 16 * 1024, "{}", text.len());
            assert!(*cut_bytes == 0 || text.contains(&format!("{cut_bytes} bytes cut")));
        }
    }
    let Some((_, Body::ToolResult { output, cut_bytes, .. })) = done.events.last() else { panic!() };
    let whole = std::fs::read_to_string(done.whole("c1")).unwrap();
    assert!(whole.starts_with("1\n2\n") && whole.ends_with("1999999\n2000000\n"));
    assert_eq!(whole.len() as u64, 8 * 1024 + cut_bytes);
    assert!(output.starts_with("1\n2\n") && output.ends_with("2000000\n"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_waits_while_the_log_cannot_take_more_is_not_lost_at_the_end() {
    let work =
        work(vec![step("last", "i=0; while [ $i -lt 70 ]; do i=$((i+1)); echo $i; done; sleep 0.1; seq 1 10000")]);
    let whole = work.dir.path().join("output/c1");
    // It can go on long after the command has ended.
    let (outcome, _dir) = work.done_while_the_log_takes_nothing().await;
    assert!(matches!(outcome, Outcome::Succeeded { .. }));
    assert!(std::fs::read_to_string(whole).unwrap().ends_with("\n10000\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_takes_too_long_is_ended_also_while_the_log_takes_nothing() {
    let mut deaf = step("deaf", "trap '' INT TERM; setsid sleep 1000 & while :; do echo deaf; sleep 0.1; done");
    deaf.timeout = Some(Duration::from_secs(2));
    let work = work(vec![deaf]);
    let (outcome, _dir) = work.done_while_the_log_takes_nothing().await;
    let Outcome::Failed { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("took longer than its timeout of 2s"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_the_environment_and_in_nothing_that_is_said_or_kept() {
    let mut first =
        step("first", "printf hunt; sleep 0.4; printf 'er22 and %s' \"$(printf %s \"$KEY\" | base64)\"; exit 4");
    first.thought = Some("hunter22?".into());
    let mut work = work(vec![first]);
    work.assignment.secrets = BTreeMap::from([("KEY".to_owned(), "hunter22".to_owned())]);
    work.assignment.redactor = Redactor::new(["hunter22"]).unwrap();
    let done = work.done().await;
    assert_eq!(std::fs::read_to_string(done.whole("c1")).unwrap(), "[redacted] and [redacted]");
    assert_eq!(done.told(OutputStream::Stdout), "[redacted] and [redacted]");
    let all = done.everything() + done.reason();
    assert!(!all.contains("hunter") && !all.contains("aHVudGVyMjI"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_and_earlier_outputs_reach_a_command_under_our_names_only() {
    let long = step("long", "head -c 120000 /dev/zero | tr '\\0' x");
    let seen = step(
        "seen",
        "echo \"$REJOIN_PARAM_LIMIT|$REJOIN_PARAM_PATH|$REJOIN_STEP_HELLO|$REJOIN_STEP_LONG\"
         wc -c < \"$REJOIN_STEP_LONG_FILE\"; [ \"$PATH\" != /not/declared ] && echo same",
    );
    let done = work(vec![step("hello", "echo hi"), long, seen]).done().await;
    assert_eq!(done.outputs()[2], "85||hi|\n120000\nsame\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_leaves_a_step_out_and_later_ones_see_that() {
    let mut never = step("never", "echo no");
    never.when = Some("steps.first.output.matches('b+') || params.limit > 90".into());
    let mut last = step("last", "echo yes");
    last.when = Some("steps.never.skipped && steps.first.ok && steps.first.exit == 0".into());
    let done = work(vec![step("first", "echo aaa"), never, last]).done().await;
    assert_eq!(done.outputs(), ["aaa\n", "yes\n"]);
    let said = |body: &Body| matches!(body, Body::Message { text, .. } if text.contains("never is left out"));
    assert!(done.events.iter().any(|(_, body)| said(body)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_cannot_be_evaluated_fails_the_run_by_step_and_expression() {
    let mut second = step("second", "echo no");
    second.when = Some("steps.frist.ok".into());
    let done = work(vec![step("first", "true"), second]).done().await;
    let reason = done.reason();
    assert!(reason.contains("second") && reason.contains("`steps.frist.ok`"), "{reason}");
    assert_eq!(done.results().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_stops_the_run_and_its_reason_says_where_and_what() {
    let done = work(vec![step("first", "echo 'no such disk' >&2; exit 7"), step("second", "true")]).done().await;
    let reason = "Step first ended with exit code 7: no such disk (see call c1)";
    let outcome = Outcome::Failed { reason: reason.into(), exit: Some(7), attention: None };
    assert_eq!(done.outcome, outcome);
    assert_eq!(done.results().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_may_happen_lets_the_run_go_on_and_is_seen_by_later_steps() {
    let mut first = step("first", "kill -9 $$");
    first.on_error = OnError::Continue;
    let mut second = step("second", "echo so");
    second.when = Some("!steps.first.ok && steps.first.exit == 137".into());
    let done = work(vec![first, second]).done().await;
    assert_eq!(done.outputs()[1], "so\n");
    assert_eq!(done.outcome, Outcome::Succeeded { exit: Some(0), attention: None });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_tried_again_as_often_as_it_says_each_time_as_a_call_of_its_own() {
    let mut first = step("first", "echo x >> tries; [ $(wc -l < tries) -ge 2 ]");
    first.on_error = OnError::Retry(2);
    let done = work(vec![first]).done().await;
    let results = done.results();
    let calls: Vec<_> = results.iter().map(|(call, ok, ..)| (call.as_str(), *ok)).collect();
    assert_eq!(calls, [("c1", false), ("c2", true)]);

    let mut never = step("never", "exit 2");
    never.on_error = OnError::Retry(1);
    let done = work(vec![never]).done().await;
    assert_eq!(done.results().len(), 2);
    assert!(done.reason().contains("tried 2 times"), "{}", done.reason());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_takes_too_long_is_ended_in_stages_with_its_tree() {
    let mut slow = step("slow", "trap '' INT TERM; setsid sleep 1000 & echo begun; while :; do sleep 1000; done");
    // Its shell has set its trap by then.
    slow.timeout = Some(Duration::from_secs(3));
    let begin = Instant::now();
    let done = work(vec![slow]).done().await;
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert!(done.reason().contains("Step slow took longer than its timeout of 3s"), "{}", done.reason());
    assert_eq!(done.stages(), ["SIGINT", "SIGTERM", "SIGKILL"]);
    let [(_, false, Some(137), output)] = &done.results()[..] else { panic!("{:?}", done.results()) };
    assert!(output.contains("begun") && output.contains("timeout"), "{output}");
}

/// A shell that ends at SIGINT, and what it leaves in the background: that takes SIGTERM, and longer than what a command
/// leaves behind by itself has.
const CLEANS_UP: &str = "(trap '' INT; trap 'sleep 2.5; echo cleaned; exit' TERM; echo begun; touch begun
    while :; do sleep 0.1; done) & wait";
const PATIENT: StopStages = StopStages { kill: Duration::from_secs(60), give_up: Duration::from_secs(90), ..FAST };

#[tokio::test(flavor = "multi_thread")]
async fn what_the_shell_of_a_stopped_step_leaves_behind_has_the_stages_of_the_stop_and_is_heard() {
    let mut work = work(vec![step("slow", CLEANS_UP)]);
    let processes = Processes::with_stages(work.assignment.run, BTreeMap::new(), program(), no_record(), PATIENT);
    work.assignment.processes = processes.clone();
    let begun = work.dir.path().join("begun");
    let stop = async {
        until("the command has said something", || begun.exists()).await;
        processes.stop(tokio::sync::mpsc::channel(3).0).await
    };
    let (done, left) = tokio::join!(work.done(), stop);
    assert_eq!(left, []);
    assert!(done.outputs()[0].contains("cleaned"), "{:?}", done.outputs());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_shell_of_a_step_that_took_too_long_leaves_behind_has_the_stages_too() {
    let mut slow = step("slow", CLEANS_UP);
    slow.timeout = Some(Duration::from_secs(3));
    let mut work = work(vec![slow]);
    work.assignment.processes =
        Processes::with_stages(work.assignment.run, BTreeMap::new(), program(), no_record(), PATIENT);
    let done = work.done().await;
    assert!(done.reason().contains("took longer than its timeout of 3s"), "{}", done.reason());
    assert!(done.outputs()[0].contains("cleaned"), "{:?}", done.outputs());
    assert_eq!(done.stages(), ["SIGINT", "SIGTERM"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_step_closes_its_call_and_tries_nothing_again() {
    let mut slow = step("slow", "echo begun; touch begun; exec sleep 1000");
    slow.on_error = OnError::Retry(5);
    let work = work(vec![slow, step("next", "true")]);
    let processes = work.assignment.processes.clone();
    let run = work.assignment.run;
    let begun = work.dir.path().join("begun");
    let stop = async {
        until("the command has said something", || begun.exists()).await;
        processes.stop(tokio::sync::mpsc::channel(3).0).await
    };
    let (done, left) = tokio::join!(work.done(), stop);
    assert_eq!(left, []);
    assert!(marked(run).is_empty());
    assert_eq!(done.reason(), "Step slow stopped: begun (see call c1)");
    assert_eq!(done.results().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_gives_up_ends_the_step_all_the_same() {
    let mut work = work(vec![step("deaf", "trap '' INT TERM; touch deaf; exec sleep 1000")]);
    let deaf = work.dir.path().join("deaf");
    let run = work.assignment.run;
    // No process can be made that takes no SIGKILL; one that is not sent any stands for it.
    let stages = StopStages { kill: Duration::from_secs(60), give_up: Duration::from_millis(300), ..FAST };
    let processes = Processes::with_stages(run, BTreeMap::new(), program(), no_record(), stages);
    work.assignment.processes = processes.clone();
    let stop = async {
        until("the command takes no notice", || deaf.exists()).await;
        processes.stop(tokio::sync::mpsc::channel(3).0).await
    };
    let (done, left) = tokio::join!(work.done(), stop);
    assert_eq!(left.len(), 1);
    assert!(matches!(&done.results()[..], [(_, false, None, _)]), "{:?}", done.results());
    processes.settled().await;
    assert!(marked(run).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_is_drawn_by_steps_and_by_the_task_without_failing_the_run() {
    let mut disks = step("disks", "echo '/dev/vda 97% /'");
    disks.attention = Some(r#"output.matches("(9[0-9]|100)%")"#.into());
    disks.summary = Some("A file system is above ${params.limit} %".into());
    let mut quiet = step("quiet", "true");
    quiet.attention = Some("exit != 0".into());
    let work = work(vec![disks, quiet]).define(|definition| {
        definition.attention = Some("steps.quiet.ok".into());
        definition.summary = Some("All is quiet".into());
    });
    let done = work.done().await;
    assert_eq!(done.attention(), Some("A file system is above 85 %; All is quiet"));
    assert!(matches!(done.outcome, Outcome::Succeeded { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_written_whole_or_added_to() {
    let write = |name: &str, append| {
        let content = "${steps.hello.output} ${params.limit}\n".to_owned();
        let action = Action::Write { path: "out.txt".into(), content, append };
        Step { action, ..step(name, "") }
    };
    let done = work(vec![step("hello", "echo hi"), write("one", false), write("two", true)]).done().await;
    assert_eq!(std::fs::read_to_string(done.dir.path().join("out.txt")).unwrap(), "hi 85\nhi 85\n");
    assert_eq!(std::fs::read_dir(done.dir.path()).unwrap().count(), 2);
    let action = Action::Write { path: "no/such/dir/x".into(), content: String::new(), append: false };
    let done = work(vec![Step { action, ..step("lost", "") }]).done().await;
    assert!(done.reason().contains("Step lost could not write"), "{}", done.reason());
}

/// Answers each connection with the next of `answers`, and gives back what was asked.
async fn serve(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
            asked.push(String::from_utf8(request).unwrap());
        }
        asked
    });
    (port, serving)
}

fn http_answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_step_reads_its_answer_follows_redirects_and_judges_the_status() {
    let answers = vec![
        http_answer("302 Found\r\nLocation: /there", ""),
        http_answer("200 OK", "hello"),
        http_answer("503 Service Unavailable", "busy"),
    ];
    let (port, serving) = serve(answers).await;
    let call = |name| Step { action: http(format!("http://127.0.0.1:{port}/"), &["127.0.0.1"]), ..step(name, "") };
    let mut second = call("second");
    second.when = Some("steps.first.status == 200 && steps.first.output == 'hello'".into());
    let done = work(vec![call("first"), second]).done().await;
    assert_eq!(done.outputs()[0], "hello");
    assert!(done.reason().contains("HTTP 503"), "{}", done.reason());
    let asked = serving.await.unwrap();
    assert!(asked[1].starts_with("GET /there "), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_a_header_reaches_the_host_it_is_for_and_no_other() {
    let (other, other_serving) = serve(vec![http_answer("200 OK", "hunter22 was your key")]).await;
    let elsewhere = format!("302 Found\r\nLocation: http://localhost:{other}/");
    let (port, serving) = serve(vec![http_answer(&elsewhere, "")]).await;
    let mut action = http(format!("http://127.0.0.1:{port}/"), &["127.0.0.1", "localhost"]);
    if let Action::Http { headers, .. } = &mut action {
        headers.insert("Authorization".into(), "Bearer ${secrets.KEY}".into());
    }
    let mut work = work(vec![Step { action, ..step("call", "") }]);
    work.assignment.secrets = BTreeMap::from([("KEY".to_owned(), "hunter22".to_owned())]);
    work.assignment.redactor = Redactor::new(["hunter22"]).unwrap();
    let done = work.done().await;
    assert_eq!(done.outputs(), ["[redacted] was your key"]);
    assert!(!done.everything().contains("hunter22"));
    assert!(serving.await.unwrap()[0].contains("authorization: Bearer hunter22"));
    assert!(!other_serving.await.unwrap()[0].to_lowercase().contains("authorization"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_step_reaches_no_private_address_and_never_the_server_itself() {
    let call = |url: &str, hosts: &[&str]| Step { action: http(url.to_owned(), hosts), ..step("call", "") };
    for url in [
        "http://127.0.0.1:9/",
        "http://localhost:9/",
        "http://[::1]:9/",
        "http://0x7f.1/",
        "http://169.254.169.254/latest",
    ] {
        let done = work(vec![call(url, &[])]).done().await;
        assert!(done.reason().contains("allow_hosts"), "{url}: {}", done.reason());
    }
    let mut own = work(vec![call("http://localhost:7171/", &["localhost"])]);
    own.assignment.own_port = Some(7171);
    assert!(own.done().await.reason().contains("this server itself"));
    // A host that may be called cannot lead to one that may not.
    let (port, _serving) = serve(vec![http_answer("302 Found\r\nLocation: http://localhost:9/", "")]).await;
    let done = work(vec![call(&format!("http://127.0.0.1:{port}/"), &["127.0.0.1"])]).done().await;
    assert!(done.reason().contains("localhost is not called"), "{}", done.reason());
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_cannot_be_kept_is_mentioned_once_and_fails_nothing() {
    let mut work = work(vec![step("first", "echo a"), step("second", "echo b")]);
    work.assignment.output_dir = "/dev/null/output".into();
    let done = work.done().await;
    assert!(matches!(done.outcome, Outcome::Succeeded { .. }));
    let said =
        |body: &&(Instant, Body)| matches!(&body.1, Body::Message { text, .. } if text.contains("could not be kept"));
    assert_eq!(done.events.iter().filter(said).count(), 1);
}

/// The shipped task files.
fn shipped() -> Vec<(String, Definition)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tasks");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let tasks = files.map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        match rejoin::task::parse::from_toml(&name, &text, &Policy::default()) {
            Ok(definition) => (name, definition),
            Err(problems) => panic!("{problems:?}"),
        }
    });
    tasks.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_tasks_work_on_this_machine() {
    let tasks = shipped();
    assert_eq!(tasks.len(), 6);
    for (name, definition) in tasks {
        let mut params: BTreeMap<String, serde_json::Value> =
            definition.params.iter().map(|(name, param)| (name.clone(), param.default.clone().unwrap())).collect();
        // As they are, but for the pauses that are there to be watched.
        params.extend([("seconds".to_owned(), 1.into()), ("pause".to_owned(), 0.into())]);
        let mut work = work(Vec::new());
        work.assignment.params = params;
        work.assignment.definition = Arc::new(definition);
        let done = work.done().await;
        assert!(matches!(done.outcome, Outcome::Succeeded { .. }), "{name}: {:?}", done.outcome);
        if std::env::var_os("REJOIN_TEST_SHOW").is_some() {
            println!("== {name}: {:?}", done.outcome);
            for (_, body) in &done.events {
                match body {
                    Body::ToolResult { output, duration_ms, .. } => println!("--- {duration_ms} ms\n{output}"),
                    Body::Thought { text } | Body::Message { text, .. } => println!("* {text}"),
                    _ => {}
                }
            }
        }
    }
}
