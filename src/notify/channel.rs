//! One channel: what it takes to send by it, and what became of that. Each way is in a file of its own.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use super::notice::Notice;
use super::{healthchecks, mail, ntfy, webhook};
use crate::config::channels::{self, Text, Way};
use crate::egress;
use crate::run::secrets::{self, Redactor};
use crate::task::definition::SecretSource;
use crate::task::telling::Occasion;

/// How much of what a receiver says about a failure is read, in bytes.
const MAX_ANSWER: usize = 1024;

/// How many characters of it are kept.
const MAX_SAID: usize = 200;

/// A channel by its name.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// What `config.toml` says of it.
    pub config: channels::Channel,
    /// How long its receiver may take.
    pub timeout: Duration,
    /// The port that is never reached: the server's own.
    pub own_port: Option<u16>,
}

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

impl Channel {
    /// Whether it takes several notices as one message.
    pub const fn bundles(&self) -> bool {
        matches!(self.config.way, Way::Ntfy { .. } | Way::Mail(_))
    }

    /// Whether it is told of runs and not of occasions.
    pub const fn is_pulse(&self) -> bool {
        matches!(self.config.way, Way::Healthchecks { .. })
    }

    /// Whether a task's own word counts for it, or its own: what is told by it of such a task.
    pub fn wants(&self, telling: &crate::task::telling::Telling, occasion: Occasion) -> bool {
        let meant = telling.channels.as_ref().map_or(self.config.every_task, |names| names.contains(&self.name));
        meant && !self.is_pulse() && telling.on.as_ref().unwrap_or(&self.config.on).contains(&occasion)
    }

    /// Sends. Secrets are read anew each time, so that one that was replaced is good at once; none of them is in what
    /// is said of a failure.
    ///
    /// # Errors
    /// [`Trouble`]: it did not arrive within its time.
    pub async fn send(&self, parcel: &Parcel<'_>, now: Timestamp) -> Result<(), Trouble> {
        let values = self.values()?;
        let redactor =
            Redactor::new(values.0.iter().map(|(_, value)| value.as_str())).map_err(|error| error.to_string())?;
        let work = async {
            match &self.config.way {
                Way::Webhook { url, .. } => webhook::send(self, &values, url, parcel, now).await,
                Way::Ntfy { url, topic, priority, .. } => {
                    ntfy::send(self, &values, url, topic, *priority, parcel).await
                }
                Way::Mail(server) => mail::send(self, &values, server, parcel).await,
                Way::Healthchecks { url, create, .. } => healthchecks::send(self, &values, url, *create, parcel).await,
            }
        };
        let done = tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(|_| Err(Trouble::Later(format!("no answer within {:?}", self.timeout))));
        let clean = |why: String| super::notice::line(&redactor.text(&why));
        done.map_err(|trouble| match trouble {
            Trouble::Later(why) => Trouble::Later(clean(why)),
            Trouble::Never(why) => Trouble::Never(clean(why)),
        })
    }

    /// Whether its receiver can be reached, as far as that shows without sending: secrets are there, the name has an
    /// address that is allowed, and something answers there.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self) -> Result<(), String> {
        let values = self.values()?;
        let (host, port) = match &self.config.way {
            Way::Webhook { url, .. } => host_and_port(&parse(&values.text("url", url))?)?,
            Way::Ntfy { url, .. } | Way::Healthchecks { url, .. } => host_and_port(&parse(url)?)?,
            Way::Mail(mail) => (mail.host.clone(), mail.port),
        };
        let address = egress::address(&host, port, &self.config.allow_hosts, self.own_port).await?;
        match tokio::time::timeout(self.timeout, tokio::net::TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("{host}:{port} cannot be reached: {error}")),
            Err(_) => Err(format!("{host}:{port} did not answer within {:?}", self.timeout)),
        }
    }

    fn values(&self) -> Result<Values, String> {
        let read = |(key, source): (&'static str, &SecretSource)| {
            secrets::value(key, source).map(|value| (key, value)).map_err(|error| format!("{error:#}"))
        };
        self.config.secrets().into_iter().map(read).collect::<Result<_, _>>().map(Values)
    }

    /// Calls over HTTP, to an address that was looked at. A redirect is not followed: what is told would arrive nowhere.
    pub(super) async fn call(&self, url: &Url, headers: HeaderMap, body: String) -> Result<(), Trouble> {
        let client = egress::client(url, &self.config.allow_hosts, self.own_port).await?;
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

fn host_and_port(url: &Url) -> Result<(String, u16), String> {
    let host = url.host_str().map(|host| host.trim_matches(['[', ']']).to_owned());
    host.zip(url.port_or_known_default()).ok_or_else(|| "the url names no host".to_owned())
}
