//! `GET /metrics`: what is counted, and how things stand at this moment, in the text format of Prometheus.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;

use super::Api;
use super::auth::{self, Hashed};
use super::door::bearer;
use super::error::ApiError;
use super::socket::Came;
use super::wire::{last_ended_run, last_success};
use crate::config;
use crate::metrics::exposition::{CONTENT_TYPE, Kind, Page};
use crate::metrics::process::Process;
use crate::record::Run;
use crate::run::places::PoolState;
use crate::store::{Store, StoreError};
use crate::stream::publish::Writable;
use crate::task::registry::Task;

/// Who may read, and how much there is.
#[derive(Debug)]
pub struct Scrape {
    /// None where everybody may.
    token: Option<Hashed>,
    /// How many tasks have series of their own.
    tasks: usize,
}

impl Scrape {
    /// As configured; makes the token if there is none.
    ///
    /// # Errors
    /// When the token cannot be made or read, or when others may read it.
    pub fn new(config: &config::Metrics, data_dir: &Path) -> Result<Self> {
        let token = (!config.open).then(|| auth::metrics_token(data_dir)).transpose()?;
        Ok(Self { token: token.as_deref().map(Hashed::of), tasks: config.tasks })
    }

    /// Its own token is enough, and so is whatever opens everything else.
    fn admits(&self, api: &Api, headers: &HeaderMap, came: &Came) -> bool {
        let Some(token) = &self.token else { return true };
        let shown = headers.get(header::AUTHORIZATION).and_then(bearer);
        shown.is_some_and(|shown| token.is(shown))
            || matches!(api.door.by_header(headers).or_else(|| api.door.by_cookie(headers, came)), Some(Ok(_)))
    }
}

/// `GET /metrics`.
///
/// # Errors
/// 401 without a credential; 503 when the store cannot be read.
pub async fn page(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if !api.scrape.admits(&api, &headers, &came) {
        let mut refused = ApiError::new(
            axum::http::StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "show the token of data/metrics-token: `authorization: {credentials_file: ...}` in prometheus.yml",
        )
        .into_response();
        refused.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Ok(refused);
    }
    let mut page = Page::default();
    counted(&api, &mut page);
    let (files, process) = tokio::task::spawn_blocking({
        let store = Arc::clone(&api.store);
        move || (file_sizes(&store), Process::this())
    })
    .await
    .map_err(|error| ApiError::internal(&error))?;
    standing(&api, &mut page);
    stored(&mut page, files);
    of_tasks(&api, &mut page).await?;
    of_process(&mut page, process);
    let fixed = [(header::CONTENT_TYPE, CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")];
    Ok((fixed, page.into_text()).into_response())
}

/// What was counted since the start.
fn counted(api: &Api, page: &mut Page) {
    let metrics = api.publisher.metrics();
    page.counter("rejoin_slots_due_total", "Due times of tasks that came.", metrics.slots_due.get());
    let help = "Due times that are closed, by what became of them. What is due and not here waits for its run.";
    page.counters("rejoin_slots_total", help, "outcome", &metrics.slots);
    let help = "How long after its planned time the run of a due time started.";
    page.histogram("rejoin_slot_lateness_seconds", help, &metrics.lateness, 1e3);
    page.counters("rejoin_runs_made_total", "Runs that were made, by what made them.", "trigger", &metrics.runs_made);
    page.counter("rejoin_runs_started_total", "Runs that began.", metrics.runs_started.get());
    page.counters("rejoin_runs_ended_total", "Runs that ended, by how.", "state", &metrics.runs_ended);
    let help = "How long runs took, of those that began.";
    page.histogram("rejoin_run_duration_seconds", help, &metrics.run_times, 1e3);

    page.counter("rejoin_events_total", "Events that were saved.", metrics.events.get());
    page.counter("rejoin_event_bytes_total", "JSON of the events that were saved.", metrics.event_bytes.get());
    let help = "How long a group of events and changes took from its beginning until it was saved.";
    page.histogram("rejoin_commit_duration_seconds", help, &metrics.commits, 1e6);
    page.histogram("rejoin_commit_size_events", "How many events a group had.", &metrics.commit_events, 1.0);
    let help = "Groups that could not be saved; they are tried again.";
    page.counter("rejoin_commit_failures_total", help, metrics.commits_failed.get());

    let help = "Sockets and streams of events that came in.";
    page.counters("rejoin_connections_opened_total", help, "transport", &metrics.opened);
    let help = "Sockets and streams of events that ended or were not let in, by why.";
    page.counters("rejoin_connections_closed_total", help, "reason", &metrics.closed);
    let help = "Watchers that came back with the position they had.";
    page.counter("rejoin_reconnects_total", help, metrics.reconnects.get());
    let help = "Events that watchers had missed when they came back, and were given.";
    page.counter("rejoin_replayed_events_total", help, metrics.replayed.get());
    let help = "Watchers that had to start again behind a snapshot, by why.";
    page.counters("rejoin_resets_total", help, "reason", &metrics.resets);
    let help = "Events handed to the connections of watchers.";
    page.counter("rejoin_delivered_events_total", help, metrics.delivered.get());

    let help = "Notifications, by kind of channel and by what a try came to.";
    let mut family = page.family(Kind::Counter, "rejoin_notifications_total", help);
    for (channel, result, count) in metrics.notifications.all() {
        family.sample(&[("channel", channel), ("result", result)], count);
    }
}

/// How things stand in memory.
fn standing(api: &Api, page: &mut Page) {
    let help = "1, with the version of the program.";
    page.family(Kind::Gauge, "rejoin_build_info", help).sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.gauge("rejoin_uptime_seconds", "How long the server is there.", api.about.started.elapsed().as_secs_f64());
    let ready = api.about.ready.load(Relaxed);
    page.gauge("rejoin_ready", "1 while it takes work.", u8::from(ready));

    let (running, queued) = api.runs.counts();
    page.gauge("rejoin_runs_running", "Runs at work.", running);
    page.gauge("rejoin_runs_queued", "Runs that wait for their turn.", queued);
    each_pool(page, &api.runs.pools());
    let help = "1 while schedules are held, because the clock is wrong.";
    page.gauge("rejoin_schedules_held", help, u8::from(api.publisher.metrics().schedules_held.load(Relaxed)));

    let (sockets, streams) = api.live.hub.count_by_kind();
    let mut family = page.family(Kind::Gauge, "rejoin_connections", "Sockets and streams of events that are open.");
    family.sample(&[("transport", "websocket")], sockets);
    family.sample(&[("transport", "events")], streams);

    let (mut ring_bytes, mut ring_events, mut watchers, mut behind) = (0, 0, 0, 0);
    for topic in api.publisher.topics() {
        let head = {
            let tail = topic.tail();
            (ring_bytes, ring_events) = (ring_bytes + tail.ring.bytes(), ring_events + tail.ring.events());
            tail.head
        };
        let (count, most) = api.publisher.connections().lag(&topic.id, head);
        (watchers, behind) = (watchers + count, behind.max(most));
    }
    page.gauge("rejoin_watchers", "Subscriptions of tasks.", watchers);
    let help = "Events that the last of all watchers has not been handed yet.";
    page.gauge("rejoin_watcher_lag_events", help, behind);
    page.gauge("rejoin_ring_bytes", "Memory of the last events of all tasks.", ring_bytes);
    page.gauge("rejoin_ring_events", "Events of all tasks that are in memory.", ring_events);
    let (events, bytes) = api.publisher.waiting();
    page.gauge("rejoin_queue_events", "Events that wait to be saved.", events);
    page.gauge("rejoin_queue_bytes", "Their data.", bytes);
    let writable = *api.publisher.writable().borrow() == Writable::Yes;
    let help = "1 while the store can be written; 0 most often means that the disk is full.";
    page.gauge("rejoin_store_writable", help, u8::from(writable));
}

/// The server's places, and those of each pool: there are as many as the configuration names.
fn each_pool(page: &mut Page, pools: &[PoolState]) {
    let mut family = |name, help: &str, value: fn(&PoolState) -> usize| {
        let mut family = page.family(Kind::Gauge, name, help);
        for pool in pools {
            family.sample(&[("pool", &*pool.name)], value(pool));
        }
    };
    family("rejoin_pool_size", "Places of a pool; `all` has those of the server.", |pool| pool.size);
    family("rejoin_pool_running", "Places of a pool that are taken by runs at work.", |pool| pool.running);
    family("rejoin_pool_queued", "Runs that wait of those that need a place of a pool.", |pool| pool.queued);
}

fn stored(page: &mut Page, (file, wal): (u64, u64)) {
    page.gauge("rejoin_store_bytes", "Size of the database.", file);
    page.gauge("rejoin_store_wal_bytes", "Size of the write-ahead log beside it.", wal);
}

fn file_sizes(store: &Store) -> (u64, u64) {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let mut wal = store.path().as_os_str().to_owned();
    wal.push("-wal");
    (size(store.path()), size(wal.as_ref()))
}

/// All tasks together, and the first of them each by itself.
async fn of_tasks(api: &Api, page: &mut Page) -> Result<(), StoreError> {
    let registry = &api.viewer.registry;
    let mut tasks = registry.all();
    let now = api.publisher.clock().now();
    let count = |is: &dyn Fn(&Task) -> bool| tasks.iter().filter(|task| is(task)).count();
    let states = [
        ("on", count(&|task| task.enabled && !task.paused)),
        ("paused", count(&|task| task.enabled && task.paused)),
        ("off", count(&|task| !task.enabled)),
    ];
    let mut family = page.family(Kind::Gauge, "rejoin_tasks", "Tasks; off are those whose file is gone.");
    for (state, count) in states {
        family.sample(&[("state", state)], count);
    }
    let wrong = count(&|task| task.problem.is_some()) + registry.broken().len();
    page.gauge("rejoin_task_problems", "Task files with something wrong in them, or gone.", wrong);
    let overdue = tasks.iter().filter(|task| task.is_scheduled()).filter_map(|task| task.next).min();
    let overdue = overdue.map_or(SignedDuration::ZERO, |next| now.duration_since(next).max(SignedDuration::ZERO));
    let help = "How long a due time has been waiting to be looked at; more than a few seconds: schedules stand still.";
    page.gauge("rejoin_schedule_overdue_seconds", help, overdue.as_secs_f64());

    // In the order of their making: one that is new takes the series of no other.
    tasks.sort_by_key(|task| task.no);
    let without = tasks.len().saturating_sub(api.scrape.tasks);
    let help = "Tasks without series of their own, see [metrics] tasks in config.toml.";
    page.gauge("rejoin_tasks_without_series", help, without);
    tasks.truncate(api.scrape.tasks);
    let numbers: Vec<_> = tasks.iter().map(|task| task.no).collect();
    let read = move |connection: &Connection| {
        let of_one = |no| Ok((last_ended_run(connection, no)?, last_success(connection, no)?));
        numbers.into_iter().map(of_one).collect::<rusqlite::Result<Vec<_>>>()
    };
    let ends = if tasks.is_empty() { Vec::new() } else { api.store.read(read).await? };
    each_task(api, page, &tasks.into_iter().zip(ends).collect::<Vec<_>>());
    Ok(())
}

type Ends = (Option<Run>, Option<Run>);

fn each_task(api: &Api, page: &mut Page, tasks: &[(Arc<Task>, Ends)]) {
    let seconds = |at: Timestamp| at.as_duration().as_secs_f64();
    let ended = |run: &Option<Run>| run.as_ref().and_then(|run| run.ended_at).map_or(0.0, seconds);
    let mut family = |name, help: &str, value: &dyn Fn(&Task, &Ends) -> Option<f64>| {
        let mut family = page.family(Kind::Gauge, name, help);
        for (task, ends) in tasks {
            if let Some(value) = value(task, ends) {
                family.sample(&[("task", task.id.as_str())], value);
            }
        }
    };
    let help = "When the last run of the task ended; 0 if none has.";
    family("rejoin_task_last_end_timestamp_seconds", help, &|_, (last, _)| Some(ended(last)));
    let help = "When a run of the task last succeeded; 0 if none of its last 1,000 has.";
    family("rejoin_task_last_success_timestamp_seconds", help, &|_, (_, good)| Some(ended(good)));
    let help = "1 if the last run of the task that ended has succeeded.";
    family("rejoin_task_last_run_succeeded", help, &|_, (last, _)| {
        last.as_ref().map(|run| f64::from(u8::from(run.state == crate::record::RunState::Succeeded)))
    });
    let help = "When the task is due next.";
    family("rejoin_task_next_due_timestamp_seconds", help, &|task, _| {
        task.due_next().filter(|_| task.is_scheduled()).map(seconds)
    });
    let help = "1 while the task is paused.";
    family("rejoin_task_paused", help, &|task, _| Some(f64::from(u8::from(task.paused))));
    let topic = |task: &Task| api.publisher.topic(&task.id);
    let help = "The number of the newest event of the task.";
    family("rejoin_task_stream_head", help, &|task, _| Some(topic(task)?.head().0 as f64));
    let help = "Events of the task that the last of its watchers has not been handed yet.";
    family("rejoin_task_watcher_lag_events", help, &|task, _| {
        let head = topic(task)?.head();
        Some(api.publisher.connections().lag(&task.id, head).1 as f64)
    });
}

fn of_process(page: &mut Page, process: Process) {
    let Process { cpu_seconds, resident_bytes, virtual_bytes, open_fds, max_fds, threads, start_seconds } = process;
    page.counter("process_cpu_seconds_total", "Time of the processor, in user and system mode.", cpu_seconds);
    page.gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes);
    page.gauge("process_virtual_memory_bytes", "Virtual memory.", virtual_bytes);
    page.gauge("process_open_fds", "Open file descriptors.", open_fds);
    page.gauge("process_max_fds", "Most file descriptors that may be open.", max_fds);
    page.gauge("process_threads", "Threads.", threads);
    page.gauge("process_start_time_seconds", "When the process started, since 1970.", start_seconds);
}
