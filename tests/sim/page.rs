//! Pages over HTTP: what a watcher fetches that is not replayed to it, and what it may be answered.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, header};
use http_body_util::BodyExt as _;
use rejoin::api::socket::Came;
use serde::Deserialize;
use serde_json::value::RawValue;
use tower::ServiceExt as _;

use crate::chance::Chance;
use crate::judge::Numbered;
use crate::network::CLIENT;
use crate::node::Node;
use crate::truth::{LAG, Log, Micros};
use crate::world::World;

/// The most events of a page.
const MOST: u64 = 500;

/// What a page gave.
#[derive(Debug)]
pub enum Page {
    /// The log of that id, the numbers of the events, and the position behind them.
    Items(String, Vec<u64>, u64),
    /// The position is below that one now.
    Retention(u64),
    /// It is in another log, or there is no such task.
    Gone,
    /// No answer came.
    Lost,
}

impl Page {
    /// Its name in the trace.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Items(..) => "items",
            Self::Retention(_) => "retention",
            Self::Gone => "gone",
            Self::Lost => "lost",
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    task: Option<&'a str>,
    #[serde(borrow)]
    code: Option<&'a str>,
    #[serde(borrow, rename = "gen")]
    generation: Option<&'a str>,
    oldest: Option<u64>,
    head: Option<u64>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
    next: Option<u64>,
    more: Option<bool>,
}

/// Asks for a page behind a position and checks what comes.
pub async fn fetch(
    world: &Arc<World>,
    node: &Arc<Node>,
    chance: &mut Chance,
    task: &str,
    generation: Option<&str>,
    after: u64,
) -> Page {
    tokio::time::sleep(chance.millis(0..=world.profile.line.delay)).await;
    let Some(running) = node.running() else { return Page::Lost };
    let asked = world.tick();
    let limit = *chance.pick(&[1, 7, 100, MOST]);
    let mut uri = format!("/api/v1/tasks/{task}/events?after={after}&limit={limit}");
    if let Some(generation) = generation {
        uri.push_str("&gen=");
        uri.push_str(generation);
    }
    let request = Request::get(uri)
        .header(header::HOST, "localhost:7171")
        .header(header::ACCEPT, "application/json")
        .header(header::AUTHORIZATION, format!("Bearer {}", running.token))
        .extension(ConnectInfo(Came { from: Some(CLIENT.ip()), meter: Arc::default(), place: Arc::default() }))
        .body(Body::empty())
        .unwrap();
    let response = running.router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map(|body| body.to_bytes());
    // A server that is gone has not answered, and a line that is cut has not brought the answer.
    let same = node.running().is_some_and(|now| now.start == running.start);
    let Some(body) = body.ok().filter(|_| same && (world.is_calm() || !chance.one_in(20))) else { return Page::Lost };
    tokio::time::sleep(chance.millis(0..=world.profile.line.delay)).await;
    let now = world.tick();
    let text = String::from_utf8_lossy(&body);
    let read = serde_json::from_str::<Answer<'_>>(&text).map_err(|error| error.to_string());
    let judged = read.and_then(|answer| {
        let question = Question { world, task, generation, after, limit, from: asked.saturating_sub(LAG), to: now };
        question.judge(status, &answer)
    });
    if let Ok(page) = &judged {
        world.saw(&format!("page {}", page.name()));
    }
    judged.unwrap_or_else(|error| {
        world.wrong("page", &format!("{task} {generation:?} after {after}: {status} {error}"));
        Page::Lost
    })
}

struct Question<'q> {
    world: &'q World,
    task: &'q str,
    generation: Option<&'q str>,
    after: u64,
    limit: u64,
    from: Micros,
    to: Micros,
}

impl Question<'_> {
    fn judge(&self, status: u16, answer: &Answer<'_>) -> Result<Page, String> {
        let truth = self.world.truth();
        match (status, answer.code) {
            (404, Some("not_found")) if truth.was_away(self.task, self.from, self.to) => return Ok(Page::Gone),
            // Nothing that could be read: the server is on its way down.
            (503, _) => return Ok(Page::Lost),
            _ => {}
        }
        let told = answer.generation.ok_or("no gen")?;
        let log = truth.log(self.task, told).ok_or_else(|| format!("{told} is no log of it"))?;
        let within = log.was_within(self.from, self.to);
        let (oldest, head) = answer.oldest.zip(answer.head).ok_or("no bounds")?;
        let oldests = log.oldest_within(self.from, self.to);
        let heads = log.head_at(self.from)..=log.head_at(self.to);
        if !within || !oldests.contains(&oldest) || !heads.contains(&head) {
            return Err(format!("[{oldest}, {head}] of {told}, which was {oldests:?}, {heads:?}"));
        }
        let same = self.generation == Some(told);
        match (status, answer.code) {
            (200, _) => self.items(log, answer, oldest, head),
            (409, Some("generation")) if self.after > 0 && !same => Ok(Page::Gone),
            (410, Some("retention")) if same && self.after + 1 < oldest => Ok(Page::Retention(oldest)),
            (409, Some("future")) if self.after > head => Ok(Page::Gone),
            (status, code) => Err(format!("{status} {code:?} with [{oldest}, {head}] of {told}")),
        }
    }

    fn items(&self, log: &Log, answer: &Answer<'_>, oldest: u64, head: u64) -> Result<Page, String> {
        let (items, next, more) = match (&answer.items, answer.next, answer.more) {
            (Some(items), Some(next), Some(more)) => (items, next, more),
            _ => return Err("an answer without items, next or more".to_owned()),
        };
        if answer.task != Some(self.task) || (self.after > 0 && self.generation != Some(&log.generation)) {
            return Err("the page of another log".to_owned());
        }
        if self.after > 0 && (self.after + 1 < oldest || self.after > head) {
            return Err(format!("a page of [{oldest}, {head}]"));
        }
        let mut seqs = Vec::with_capacity(items.len());
        for (due, item) in ((self.after + 1).max(oldest)..).zip(items.iter()) {
            let seq = serde_json::from_str::<Numbered>(item.get()).map_err(|error| error.to_string())?.seq;
            if seq != due {
                return Err(format!("event {seq} where {due} was due"));
            }
            if log.event(seq).is_none_or(|event| *event.text != *item.get()) {
                return Err(format!("event {seq} was told as {}", item.get()));
            }
            seqs.push(seq);
        }
        if seqs.len() as u64 > self.limit || next != seqs.last().copied().unwrap_or(self.after) {
            return Err(format!("{} events of {}, next {next}", seqs.len(), self.limit));
        }
        if more != (next < head && oldest <= head) || (more && seqs.is_empty()) {
            return Err(format!("more is {more} behind {next}, with {} events, under head {head}", seqs.len()));
        }
        Ok(Page::Items(log.generation.clone(), seqs, next))
    }
}
