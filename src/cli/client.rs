//! Speaks HTTP with the server: over the socket of its data folder or to an address. Knows nothing of what the
//! commands mean; turns refusals into failures with words.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::escape;
use super::failure::{Failure, Result};
use super::live::{Dial, PageError, PageQuery, Transport};
use super::place::Place;
use super::wire::{EventPage, List, Problem};

/// How long a path of a socket may be: `sun_path` with its end.
const LONGEST_SOCKET_PATH: usize = 107;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Server frames are 384 KiB at most; a long list of tasks is the one that may be more.
const LARGEST_FRAME: usize = 16 * 1024 * 1024;

/// How many a page of a list is asked to have.
const LIST_PAGE: usize = 200;

/// A connection to the server, made anew for each call as needed.
pub struct Client {
    http: reqwest::Client,
    base: reqwest::Url,
    token: Option<HeaderValue>,
    place: Place,
    /// Keeps `/proc/self/fd/N` alive where the path of the socket is too long.
    _folder: Option<OwnedFd>,
}

impl fmt::Debug for Client {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Client {
    /// Prepares a client; nothing is sent yet.
    ///
    /// # Errors
    /// A token that cannot be a header, or certificates that cannot be read.
    pub fn new(place: Place) -> Result<Self> {
        let mut http = reqwest::Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            // A server that was restarted must not be met with a connection of its past.
            .pool_idle_timeout(Duration::from_secs(5))
            .user_agent(concat!("rejoin/", env!("CARGO_PKG_VERSION")));
        let mut folder_fd = None;
        let (base, token) = match &place {
            Place::Data(folder) => {
                let (path, fd) = reachable(folder)?;
                folder_fd = fd;
                http = http.unix_socket(path).no_proxy().tls_certs_only([]);
                // The token of the data folder goes over its socket and nowhere else.
                let token = std::fs::read_to_string(folder.join("token")).ok();
                (local_base()?, token)
            }
            Place::Url(url) => {
                if url.scheme() == "http" {
                    // Loopback: a proxy from the environment would be given the token in the clear.
                    http = http.no_proxy().tls_certs_only([]);
                }
                (url.clone(), std::env::var("REJOIN_TOKEN").ok())
            }
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let token = token.map(|token| bearer(&token)).transpose()?;
        let http = http.build().context("cannot prepare HTTP")?;
        Ok(Self { http, base, token, place, _folder: folder_fd })
    }

    /// Where the server is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A call to `/api/v1` + `segments`; every segment is escaped, so that no name can become another path.
    fn call(&self, method: Method, segments: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1"]).extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let call = self.http.request(method, url);
        match &self.token {
            Some(token) => call.header(AUTHORIZATION, token.clone()),
            None => call,
        }
    }

    async fn send(&self, call: RequestBuilder) -> Result<Response> {
        let answer = call.timeout(ANSWER_WITHIN).send().await.map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer).await) }
    }

    async fn read<T: DeserializeOwned>(&self, answer: Response) -> Result<T> {
        let body = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        let body: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(body)
            .map_err(|error| Failure::Server(format!("{} did not answer as a Rejoin server does: {error}", self.place)))
    }

    /// Takes a file away. It may take as long as it takes: the server makes it first.
    ///
    /// # Errors
    /// No server, or a refusal.
    pub async fn download(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Response> {
        let call = self.call(Method::GET, segments, query);
        let answer = call.send().await.map_err(|error| self.unreachable(&error))?;
        if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer).await) }
    }

    /// Reads something.
    ///
    /// # Errors
    /// No server, a refusal, or an answer that cannot be read.
    pub async fn get<T: DeserializeOwned>(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<T> {
        let answer = self.send(self.call(Method::GET, segments, query)).await?;
        self.read(answer).await
    }

    /// Does something; `once` makes sure that it is done once, however often it is sent.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post(&self, segments: &[&str], body: &Value, once: Option<&str>) -> Result<Value> {
        self.post_with(segments, &[], body, once).await
    }

    /// Asks whether a task could be made of this, and makes none.
    ///
    /// # Errors
    /// As [`Client::get`]; also where the answer does not say that nothing was made.
    pub async fn try_task(&self, body: &Value) -> Result<()> {
        let call = self.call(Method::POST, &["tasks"], &[("dry_run", "true")]).json(body);
        let answer: Value = self.read(self.send(call).await?).await?;
        if answer.get("definition").is_some() {
            return Ok(());
        }
        Err(Failure::Server(format!("{} does not say whether it made the task: look at tasks list", self.place)))
    }

    /// Gives what was done under this key before; [`Failure::NotFound`] if nothing was.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post_again(&self, segments: &[&str], body: &Value, key: &str) -> Result<Value> {
        self.post_with(segments, &[("again", "true")], body, Some(key)).await
    }

    async fn post_with(
        &self,
        segments: &[&str],
        query: &[(&str, &str)],
        body: &Value,
        once: Option<&str>,
    ) -> Result<Value> {
        let mut call = self.call(Method::POST, segments, query).json(body);
        if let Some(key) = once {
            let key = HeaderValue::from_str(key)
                .map_err(|_| Failure::Usage("--once takes letters, digits and signs in one line".into()))?;
            call = call.header("Idempotency-Key", key);
        }
        let answer = self.send(call).await.map_err(|failure| Self::doubtful(failure, once))?;
        self.read(answer).await
    }

    /// A connection that broke leaves open whether what was asked for was done: who asked should know.
    fn doubtful(failure: Failure, once: Option<&str>) -> Failure {
        match failure {
            Failure::Broken(words) if once.is_some() => {
                Failure::Broken(format!("{words}. Send it again with the same --once: it is done once."))
            }
            Failure::Broken(words) => Failure::Broken(format!(
                "{words}. It may have been done all the same: look before you send it again (--once KEY makes that safe)."
            )),
            failure => failure,
        }
    }

    /// Removes something.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<()> {
        self.send(self.call(Method::DELETE, segments, query)).await.map(drop)
    }

    /// Reads a list to its end, or to `most` entries.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn list(&self, segments: &[&str], query: &[(&str, &str)], most: usize) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let limit = LIST_PAGE.min(most - items.len()).to_string();
            let mut page_query = query.to_vec();
            page_query.push(("limit", &limit));
            if let Some(cursor) = &cursor {
                page_query.push(("cursor", cursor));
            }
            let page: List = self.get(segments, &page_query).await?;
            items.extend(page.items);
            // A cursor that comes back unchanged would be asked for for ever.
            if items.len() >= most || page.next.is_none() || page.next == cursor {
                items.truncate(most);
                return Ok(items);
            }
            cursor = page.next;
        }
    }

    /// A page of a task's log.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events(&self, task: &str, query: &[(&str, &str)]) -> Result<EventPage> {
        self.get(&["tasks", task, "events"], query).await
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        if error.is_connect() {
            return no_server(&self.place, error);
        }
        let ways = "look at the server's log, and whether it runs (ps, or systemctl status)";
        Failure::Broken(format!("{} did not answer: {}: {ways}", self.place, root_cause(error)))
    }
}

impl Transport for &Client {
    type Stream = reqwest::Upgraded;

    async fn dial(&self) -> std::result::Result<WebSocketStream<Self::Stream>, Dial> {
        let key = generate_key();
        let call = self
            .call(Method::GET, &["live"], &[])
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Protocol", super::live::SUBPROTOCOL)
            .header("Sec-WebSocket-Key", &key);
        let answer = call.send().await.map_err(|error| Dial::Failed(root_cause(&error)))?;
        let status = answer.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let lasting = matches!(status.as_u16(), 400 | 401 | 403 | 405 | 421 | 426 | 501);
            let failure = refusal(answer).await;
            return Err(if lasting { Dial::Refused(failure) } else { Dial::Failed(failure.to_string()) });
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if header("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_str())
            || header("sec-websocket-protocol") != Some(super::live::SUBPROTOCOL)
        {
            let words = format!("{} does not speak the live protocol of Rejoin", self.place);
            return Err(Dial::Refused(Failure::Server(words)));
        }
        let stream = answer.upgrade().await.map_err(|error| Dial::Failed(root_cause(&error)))?;
        let config =
            WebSocketConfig::default().max_message_size(Some(LARGEST_FRAME)).max_frame_size(Some(LARGEST_FRAME));
        Ok(WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await)
    }

    async fn page(&self, query: PageQuery<'_>) -> std::result::Result<EventPage, PageError> {
        let (after, limit) = (query.after.to_string(), query.limit.to_string());
        let pairs = [("gen", query.generation), ("after", &after), ("limit", &limit)];
        let call = self.call(Method::GET, &["tasks", query.task, "events"], &pairs[..]);
        let answer = call
            .header("Accept", "application/json")
            .timeout(ANSWER_WITHIN)
            .send()
            .await
            .map_err(|error| PageError::Failed(root_cause(&error)))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| PageError::Failed(root_cause(&error)))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| PageError::Failed(error.to_string()));
        }
        let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
        Err(match (status.as_u16(), problem.oldest) {
            (410, Some(oldest)) => PageError::Gone { oldest },
            (404 | 409, _) => PageError::Replaced,
            _ => PageError::Failed(format!("the server answered {status}")),
        })
    }
}

/// The path under which the socket can be reached, and what must stay open for it.
fn reachable(folder: &Path) -> Result<(PathBuf, Option<OwnedFd>)> {
    let path = folder.join("rejoin.sock");
    if path.as_os_str().as_bytes().len() <= LONGEST_SOCKET_PATH {
        return Ok((path, None));
    }
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
    match nix::fcntl::open(folder, flags, nix::sys::stat::Mode::empty()) {
        Ok(fd) => Ok((PathBuf::from(format!("/proc/self/fd/{}/rejoin.sock", fd.as_raw_fd())), Some(fd))),
        Err(error) => Err(nobody_there(&Place::Data(folder.to_owned()), &io::Error::from(error).to_string())),
    }
}

/// Over a socket the host names nothing, but HTTP wants one.
fn local_base() -> Result<reqwest::Url> {
    Ok(reqwest::Url::parse("http://localhost/").context("a constant address")?)
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Failure::Usage("the token has characters that no token has".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn no_server(place: &Place, error: &reqwest::Error) -> Failure {
    let kind = io_cause(error).map(io::Error::kind);
    if kind == Some(io::ErrorKind::PermissionDenied) {
        return Failure::NotAllowed(format!(
            "{place} belongs to another user: be that user, or use --server with REJOIN_TOKEN."
        ));
    }
    nobody_there(place, &root_cause(error))
}

/// The one line for a server that is not there: the address that was tried, and how to start one.
fn nobody_there(place: &Place, cause: &str) -> Failure {
    let cause = plainly(cause);
    Failure::NoServer(match place {
        Place::Data(folder) => {
            let named =
                if folder == Path::new("data") { String::new() } else { format!(" --data-dir {}", folder.display()) };
            format!("No server answers at {place} ({cause}). Start one with: rejoin serve{named}")
        }
        Place::Url(_) => {
            format!("No server answers at {place} ({cause}). Start one on that machine with: rejoin serve")
        }
    })
}

fn io_cause(error: &reqwest::Error) -> Option<&io::Error> {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            return Some(error);
        }
        cause = inner.source();
    }
    None
}

/// The innermost words: the outer ones only say that an HTTP call failed, which who reads them knows.
fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    plainly(&cause.to_string())
}

/// Words of the operating system without its number for them.
fn plainly(words: &str) -> String {
    words.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Turns an answer that is no success into words and the exit code for it.
async fn refusal(answer: Response) -> Failure {
    let status = answer.status();
    let is_problem = answer
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/problem+json"));
    let body = answer.bytes().await.unwrap_or_default();
    let problem: Problem =
        if is_problem { serde_json::from_slice(&body).unwrap_or_default() } else { Problem::default() };
    failure_of(status, &problem)
}

fn failure_of(status: StatusCode, problem: &Problem) -> Failure {
    let said = problem.detail.as_deref().or(problem.title.as_deref());
    let mut words = match said {
        Some(said) => escape::line(said),
        None => format!("The server answered {status}"),
    };
    // The words often name the member themselves.
    if let Some(field) = problem.field.as_deref().filter(|field| !words.contains(*field)) {
        words = format!("{}: {words}", escape::line(field));
    }
    match status.as_u16() {
        400 | 413 | 415 | 422 => Failure::Usage(words),
        401 => Failure::NotAllowed(format!("{words}. Over --server, REJOIN_TOKEN must hold a token of that server.")),
        403 | 421 => Failure::NotAllowed(words),
        404 | 410 => Failure::NotFound(words),
        409 => Failure::Conflict(words),
        _ => Failure::Server(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_becomes_words_and_an_exit_code() {
        let problem = |detail: &str, field: Option<&str>| Problem {
            detail: Some(detail.into()),
            field: field.map(Into::into),
            ..Problem::default()
        };
        let bad = failure_of(StatusCode::BAD_REQUEST, &problem("no such zone", Some("schedule.tz")));
        assert_eq!((bad.code(), bad.to_string().as_str()), (2, "schedule.tz: no such zone"));
        assert_eq!(failure_of(StatusCode::NOT_FOUND, &problem("no such task", None)).code(), 4);
        assert_eq!(failure_of(StatusCode::FORBIDDEN, &Problem::default()).code(), 5);
        assert_eq!(failure_of(StatusCode::CONFLICT, &problem("it is a file", None)).code(), 6);
        assert_eq!(failure_of(StatusCode::INTERNAL_SERVER_ERROR, &Problem::default()).code(), 7);
    }

    #[test]
    fn the_words_of_a_server_cannot_act_on_the_terminal() {
        let problem = Problem { title: Some("x\x1b[2J\ny".into()), ..Problem::default() };
        assert_eq!(failure_of(StatusCode::NOT_FOUND, &problem).to_string(), "x\\x1b[2J\\ny");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_says_what_was_tried_and_how_to_start_a_server() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for folder in ["none", &"long/".repeat(40)] {
            let failure = match Client::new(Place::Data(folder.into())) {
                Ok(client) => client.get::<Value>(&["status"], &[]).await.unwrap_err(),
                Err(failure) => failure,
            };
            assert_eq!(failure.code(), 3);
            let words = failure.to_string();
            for part in ["rejoin.sock", "rejoin serve", "no such file or directory"] {
                assert!(words.contains(part), "{part}: {words}");
            }
            assert!(!words.contains('\n'), "{words}");
        }
    }
}
