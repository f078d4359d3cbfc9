//! The client of the command line, over a line in the hands of the soak.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rejoin::cli::live::{Dial, PageError, PageQuery, Transport};
use rejoin::cli::wire::EventPage;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;

use crate::harness::Watcher;
use crate::proxy::Link;
use crate::road::Road;

/// How long a page may take.
const PAGE: Duration = Duration::from_secs(30);

/// Dials over the road, and keeps hold of the last line.
pub struct Dialer {
    /// The way.
    pub road: Arc<Road>,
    /// The line of the last socket, where there is a proxy.
    pub link: Arc<Mutex<Option<Link>>>,
}

impl Transport for Dialer {
    type Stream = TcpStream;

    async fn dial(&self) -> Result<WebSocketStream<TcpStream>, Dial> {
        let failed = || Dial::Failed("nobody listens".to_owned());
        let (stream, address, token, link) = self.road.connect().await.ok_or_else(failed)?;
        let watcher = Watcher::over(stream, address, Some(&token)).await;
        *self.link.lock().unwrap() = link;
        watcher.map(|watcher| watcher.socket).map_err(|error| Dial::Failed(error.to_string()))
    }

    async fn page(&self, query: PageQuery<'_>) -> Result<EventPage, PageError> {
        let PageQuery { task, generation, after, limit } = query;
        let path = format!("/tasks/{task}/events?gen={generation}&after={after}&limit={limit}");
        let failed = || PageError::Failed("no page".to_owned());
        let answer = tokio::time::timeout(PAGE, self.road.text(&path)).await.ok().flatten();
        match answer {
            Some((200, text)) => serde_json::from_str(&text).map_err(|_| failed()),
            Some((409 | 404, _)) => Err(PageError::Replaced),
            _ => Err(failed()),
        }
    }
}
