//! A step that makes an HTTP call, to addresses that were looked at before.
//!
//! Every redirect is resolved and looked at anew.

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::time::timeout_at;

use super::output::Recorder;
use super::{Call, Done};
use crate::agent::Over;
use crate::egress::{causes, client, shown};
use crate::event::OutputStream;
use crate::run::process::Processes;

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;

/// How much of a response is read, in bytes; the rest is not waited for.
const MAX_BODY: u64 = 64 * 1024 * 1024;

/// A call with its values filled in.
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) url: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Option<String>,
    pub(super) expect_status: &'a [u16],
    pub(super) allow_hosts: &'a [String],
    /// The server's own port: not to be reached.
    pub(super) own_port: Option<u16>,
}

/// Makes the call and follows its redirects.
pub(super) async fn run(
    call: &Call<'_>,
    request: Request<'_>,
    processes: &Processes,
    recorder: &mut Recorder,
) -> Result<Done, Over> {
    let work = make(request, recorder);
    let limited = async {
        match call.deadline {
            Some(deadline) => timeout_at(deadline, work).await.unwrap_or_else(|_| {
                let limit = call.timeout.unwrap_or_default();
                Ok(Done::failed(format!("took longer than its timeout of {limit:?}")))
            }),
            None => work.await,
        }
    };
    let done = tokio::select! {
        biased;
        () = processes.stopping() => return Ok(Done::failed("stopped")),
        done = limited => done,
    };
    match done {
        Ok(done) => Ok(done),
        Err(Trouble::Over) => Err(Over),
        Err(Trouble::Why(reason)) => Ok(Done::failed(reason)),
    }
}

enum Trouble {
    Over,
    Why(String),
}

impl From<Over> for Trouble {
    fn from(_: Over) -> Self {
        Self::Over
    }
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Why(why)
    }
}

async fn make(request: Request<'_>, recorder: &mut Recorder) -> Result<Done, Trouble> {
    let mut method =
        Method::from_bytes(request.method.as_bytes()).map_err(|_| format!("{:?} is no HTTP method", request.method))?;
    let mut url = Url::parse(&request.url).map_err(|error| format!("the url is wrong: {error}"))?;
    let mut headers = headers(&request.headers)?;
    let mut body = request.body;
    for _ in 0..=MAX_REDIRECTS {
        let client = client(&url, request.allow_hosts, request.own_port).await?;
        let mut sent = client.request(method.clone(), url.clone()).headers(headers.clone());
        if let Some(body) = &body {
            sent = sent.body(body.clone());
        }
        let response = sent.send().await.map_err(|error| format!("{method} {}: {}", shown(&url), causes(error)))?;
        let status = response.status();
        let next = next(&url, &response).filter(|_| !request.expect_status.contains(&status.as_u16()));
        let Some(next) = next else {
            return answer(&method, &url, response, request.expect_status, recorder).await;
        };
        let next = next?;
        // As browsers do: what was posted is not posted again, except where the status says so.
        let kept = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        if !kept && method != Method::HEAD {
            method = Method::GET;
            body = None;
        }
        if next.origin() != url.origin() {
            // They were meant for the first host alone, and any of them may hold a key.
            headers.clear();
            body = None;
        }
        url = next;
    }
    Err(format!("more than {MAX_REDIRECTS} redirects, the last to {}", shown(&url)).into())
}

/// The address a redirect leads to.
fn next(from: &Url, response: &Response) -> Option<Result<Url, String>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let to = response.headers().get(LOCATION)?;
    let to = to.to_str().map_err(|_| "the redirect's address is no text".to_owned());
    Some(to.and_then(|to| from.join(to).map_err(|error| format!("the redirect's address is wrong: {error}"))))
}

async fn answer(
    method: &Method,
    url: &Url,
    mut response: Response,
    expect_status: &[u16],
    recorder: &mut Recorder,
) -> Result<Done, Trouble> {
    let status = response.status();
    let expected = match expect_status {
        [] => status.is_success(),
        some => some.contains(&status.as_u16()),
    };
    let mut read = 0;
    while read < MAX_BODY {
        let due = recorder.due();
        tokio::select! {
            chunk = response.chunk() => {
                let chunk = chunk.map_err(|error| format!("{method} {}: {}", shown(url), causes(error)))?;
                let Some(chunk) = chunk else { break };
                read += chunk.len() as u64;
                recorder.take(OutputStream::Stdout, &chunk).await;
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                recorder.tell().await?;
            }
        }
    }
    let reason = (!expected).then(|| {
        let wanted = match expect_status {
            [] => "200 to 299".to_owned(),
            some => some.iter().map(u16::to_string).collect::<Vec<_>>().join(" or "),
        };
        format!("got HTTP {status} from {method} {}, expected {wanted}", shown(url))
    });
    Ok(Done { ok: expected, exit: None, status: Some(status.as_u16()), reason })
}

fn headers(given: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    given
        .iter()
        .map(|(name, value)| {
            let wrong = |what| format!("the header {name} has {what} that cannot be sent");
            let value = HeaderValue::from_str(value).map_err(|_| wrong("a value"))?;
            Ok((HeaderName::try_from(name).map_err(|_| wrong("a name"))?, value))
        })
        .collect()
}
