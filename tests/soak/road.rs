//! The way to the server: where it is now, and through what.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::harness::Client;
use crate::ledger::Log;
use crate::proxy::{Link, Proxy};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(30);
/// How often one who rests looks whether all is quiet.
const LOOK: Duration = Duration::from_millis(250);

/// What all who go to one server share.
#[derive(Default)]
pub struct Road {
    there: Mutex<Option<Client>>,
    proxy: tokio::sync::Mutex<Option<Proxy>>,
    /// No more load, and no more faults.
    quiet: AtomicBool,
    /// No load for a while: who rests goes on resting.
    paused: AtomicBool,
    /// Where every log ends, once nothing is added any more: by task, the gen and the head.
    ends: Mutex<Option<HashMap<String, (String, u64)>>>,
    /// Who is not there yet: the position that was looked at last.
    missing: Mutex<HashMap<String, String>>,
}

impl Road {
    /// From now on the server is here.
    pub fn point_at(&self, address: SocketAddr, token: &str) {
        *self.there.lock().unwrap() = Some(Client::new(address, token));
    }

    /// From now on connections go through a proxy.
    pub async fn put_proxy(&self) {
        let address = self.client().unwrap().address;
        *self.proxy.lock().await = Some(Proxy::before(address).await);
    }

    /// Speaks with the server; none before it was there for the first time.
    pub fn client(&self) -> Option<Client> {
        self.there.lock().unwrap().clone()
    }

    /// A connection, with a hold of the line where there is a proxy. None while nobody listens.
    pub async fn connect(&self) -> Option<(TcpStream, SocketAddr, String, Option<Link>)> {
        let Client { address, token, .. } = self.client()?;
        let proxy = self.proxy.lock().await;
        match &*proxy {
            Some(proxy) => {
                let (stream, link) = proxy.try_connect().await.ok()?;
                Some((stream, address, token, Some(link)))
            }
            None => Some((TcpStream::connect(address).await.ok()?, address, token, None)),
        }
    }

    /// A call; none where there was no answer.
    pub async fn call(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Option<(u16, Value)> {
        self.keyed(method, path, body, None).await
    }

    /// A call with an `Idempotency-Key`.
    pub async fn keyed(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<Value>,
        key: Option<&str>,
    ) -> Option<(u16, Value)> {
        let mut request = self.client()?.request(method, path).timeout(CALL);
        if let Some(body) = body {
            request = request.json(&body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        let text = answer.text().await.ok()?;
        Some((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// The text of a page, with its status; none where there was no answer.
    pub async fn text(&self, path: &str) -> Option<(u16, String)> {
        let answer = self.client()?.request(reqwest::Method::GET, path).timeout(CALL).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// Load and faults end.
    pub fn quieten(&self) {
        self.quiet.store(true, Ordering::SeqCst);
    }

    /// Whether load and faults have ended.
    pub fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst)
    }

    /// From now on who rests does not go on, or does again.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Waits so long and until no pause is on, or until load and faults end.
    pub async fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while (Instant::now() < until || self.is_paused()) && !self.is_quiet() {
            let look = Instant::now() + LOOK;
            tokio::time::sleep_until(if self.is_paused() { look } else { until.min(look) }).await;
        }
    }

    /// Nothing is added any more: this is where the logs end.
    pub fn ends_at(&self, ends: impl IntoIterator<Item = (String, (String, u64))>) {
        *self.ends.lock().unwrap() = Some(ends.into_iter().collect());
    }

    /// Whether these positions of somebody are the ends of their logs.
    pub fn has_all<'p>(&self, who: &str, positions: impl IntoIterator<Item = (&'p str, Option<&'p Log>, u64)>) -> bool {
        let ends = self.ends.lock().unwrap();
        let Some(ends) = &*ends else { return false };
        let not_there = positions.into_iter().find_map(|(task, log, position)| {
            let (generation, head) = ends.get(task)?;
            let is_there = log.is_some_and(|log| log.1 == *generation) && position == *head;
            (!is_there).then(|| format!("{task}: {position} of {log:?} instead of {head} of {generation}"))
        });
        let mut missing = self.missing.lock().unwrap();
        let is_there = not_there.is_none();
        match not_there {
            Some(words) => drop(missing.insert(who.to_owned(), words)),
            None => drop(missing.remove(who)),
        }
        is_there
    }

    /// Who is not there yet, in words.
    pub fn missing(&self) -> String {
        format!("{:?}", self.missing.lock().unwrap())
    }
}
