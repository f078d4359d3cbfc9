//! What every way of telling is given: what to send, the secrets it needs, and a line to the receiver.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use super::notice::Notice;
use crate::config::channels::Text;
use crate::egress;

/// How much of what a receiver says about a failure is read, in bytes.
const MAX_ANSWER: usize = 1024;

/// How many characters of it are kept.
const MAX_SAID: usize = 200;

/// What is sent at once: one notice, or several where the channel takes them as one message.
#[derive(Debug)]
pub struct Parcel<'n> {
    /// The same at each try.
    pub id: &'n str,
    /// What is told, the oldest first; at least one.
    pub notices: Vec<&'n Notice>,
}

/// Why something did not arrive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// It may arrive later.
    Later(String),
    /// It never will: the receiver wants nothing of it.
    Never(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Later(why)
    }
}

/// The line to a receiver: which addresses may be called, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'c> {
    /// Hosts that may be loopback, private or link-local.
    pub(super) allow_hosts: &'c [String],
    /// The port that is never reached: the server's own.
    pub(super) own_port: Option<u16>,
    /// How long its receiver may take.
    pub(super) timeout: Duration,
}

impl Line<'_> {
    /// Calls over HTTP, to an address that was looked at. A redirect is not followed: what is told would arrive nowhere.
    pub(super) async fn call(&self, url: &Url, headers: HeaderMap, body: String) -> Result<(), Trouble> {
        let client = egress::client(url, self.allow_hosts, self.own_port).await?;
        let host = url.host_str().unwrap_or_default();
        let call = client.request(Method::POST, url.clone()).headers(headers).body(body);
        let mut response = call.send().await.map_err(|error| format!("{host}: {}", egress::causes(error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let mut said = Vec::new();
        while said.len() < MAX_ANSWER
            && let Ok(Some(chunk)) = response.chunk().await
        {
            said.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER - said.len())]);
        }
        let said: String = String::from_utf8_lossy(&said).trim().chars().take(MAX_SAID).collect();
        let said = if said.is_empty() { said } else { format!(": {said}") };
        let why = match status.as_u16() {
            300..=399 => {
                format!("{host} answered {status}: a redirect is not followed, write the address that it leads to")
            }
            _ => format!("{host} answered {status}{said}"),
        };
        Err(match status.as_u16() {
            // What is wrong with the message itself is wrong with it later too.
            400 | 410 | 413 | 422 => Trouble::Never(why),
            _ => Trouble::Later(why),
        })
    }
}

/// The values of a channel's secrets, by their keys.
pub(super) struct Values(Vec<(&'static str, String)>);

impl Values {
    /// Values by the keys of their secrets.
    pub(super) fn new(all: Vec<(&'static str, String)>) -> Self {
        Self(all)
    }

    /// All of them, to be taken out of what is said.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, value)| value.as_str())
    }

    /// The value of a secret; empty where the channel has none of that name.
    pub(super) fn of(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }

    /// A text that may be a secret.
    pub(super) fn text<'t>(&'t self, key: &str, text: &'t Text) -> String {
        match text {
            Text::Plain(text) => text.clone(),
            Text::Secret(_) => self.of(key).unwrap_or_default().trim().to_owned(),
        }
    }
}

/// An address; what is wrong with it is said without it, as it may be a secret.
pub(super) fn parse(url: &str) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|error| format!("the url is wrong: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("the url must begin with https:// or http://".to_owned());
    }
    Ok(url)
}
