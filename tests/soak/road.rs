//! The way to the server: where it is now, and through what.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::harness::Client;
use crate::ledger::Log;
use crate::proxy::{Link, Proxy};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(30);

/// What all who go to one server share.
#[derive(Default)]
pub struct Road {
    there: Mutex<Option<Client>>,
    proxy: tokio::sync::Mutex<Option<Proxy>>,
    /// No more load, and no more faults.
    quiet: AtomicBool,
    /// Where every log ends, once nothing is added any more: by task, the gen and the head.
    ends: Mutex<Option<HashMap<String, (String, u64)>>>,
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
                let (stream, link) = proxy.connect().await;
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

    /// Nothing is added any more: this is where the logs end.
    pub fn ends_at(&self, ends: impl IntoIterator<Item = (String, (String, u64))>) {
        *self.ends.lock().unwrap() = Some(ends.into_iter().collect());
    }

    /// Whether these positions are the ends of their logs.
    pub fn has_all<'p>(&self, positions: impl IntoIterator<Item = (&'p str, Option<&'p Log>, u64)>) -> bool {
        let ends = self.ends.lock().unwrap();
        let Some(ends) = &*ends else { return false };
        positions.into_iter().all(|(task, log, position)| match ends.get(task) {
            Some((generation, head)) => log.is_some_and(|log| log.1 == *generation) && position == *head,
            None => true,
        })
    }
}
