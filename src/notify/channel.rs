//! One channel: what it takes to send by it, and what became of that. Each way is in a file of its own.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Url;
use tracing::warn;

use super::ledger::Draft;
use super::notice::Notice;
use super::sending::{Line, Parcel, Trouble, Values, parse};
use super::{healthchecks, mail, ntfy, webhook};
use crate::config::channels::{self, Way};
use crate::egress;
use crate::run::secrets::{self, Redactor};
use crate::task::definition::SecretSource;
use crate::task::telling::Occasion;

/// A channel by its name.
#[derive(Debug)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// What `config.toml` says of it.
    pub config: channels::Channel,
    /// How long its receiver may take.
    pub timeout: Duration,
    /// The port that is never reached: the server's own.
    pub own_port: Option<u16>,
    arrived: mail::Arrived,
}

/// Why the receiver of a channel cannot be reached.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreached {
    /// A secret cannot be read.
    #[error("{0}")]
    Secret(String),
    /// Its address is none, is not allowed, or nobody answers there.
    #[error("{0}")]
    Receiver(String),
}

impl Channel {
    /// The channel of that name.
    pub fn new(name: String, config: channels::Channel, timeout: Duration, own_port: Option<u16>) -> Self {
        Self { name, config, timeout, own_port, arrived: mail::Arrived::default() }
    }

    /// `webhook`, `ntfy`, `mail` or `healthchecks`.
    pub const fn kind(&self) -> &'static str {
        self.config.way.as_str()
    }

    /// A delivery by it.
    pub fn draft(&self, subject: String, notice: Notice) -> Draft {
        Draft { channel: self.name.clone(), kind: self.kind(), subject, notice }
    }

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

    /// Sends, signed with what the clock shows: receivers compare that with theirs. Secrets are read anew each time, so
    /// that one that was replaced is good at once; none of them is in what is said of a failure. Gives what those said
    /// that refused it, where others took it.
    ///
    /// # Errors
    /// [`Trouble`]: it did not arrive within its time.
    pub async fn send(&self, parcel: &Parcel<'_>, now: Timestamp) -> Result<Option<String>, Trouble> {
        let values = self.values()?;
        let redactor = Redactor::new(values.all()).map_err(|error| error.to_string())?;
        let line = Line {
            allow_hosts: &self.config.allow_hosts,
            own_port: self.own_port,
            timeout: self.timeout,
            redactor: &redactor,
        };
        let clean = |why: String| super::notice::line(&redactor.text(&why));
        let work = async {
            match &self.config.way {
                Way::Webhook { url, .. } => webhook::send(&line, &values, url, parcel, now).await.map(|()| None),
                Way::Ntfy { url, topic, priority, .. } => {
                    ntfy::send(&line, &values, url, topic, *priority, parcel).await.map(|()| None)
                }
                Way::Mail(server) => {
                    let refused = mail::send(&line, &values, server, parcel, &self.arrived).await?;
                    let refused = refused.map(clean);
                    if let Some(why) = &refused {
                        warn!(channel = self.name, why, "some of those whom a mail was for refused it");
                    }
                    Ok(refused)
                }
                Way::Healthchecks { url, create, .. } => {
                    healthchecks::send(&line, &values, url, *create, parcel).await.map(|()| None)
                }
            }
        };
        let most = self.takes_at_most();
        let done = tokio::time::timeout(most, work)
            .await
            .unwrap_or_else(|_| Err(Trouble::Later(format!("no answer within {most:?}"))));
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
    pub async fn reach(&self) -> Result<(), Unreached> {
        let values = self.values().map_err(Unreached::Secret)?;
        self.reach_receiver(&values).await.map_err(Unreached::Receiver)
    }

    /// Whether its secrets can be read now.
    ///
    /// # Errors
    /// Which cannot, and why.
    pub fn has_its_secrets(&self) -> Result<(), String> {
        self.values().map(drop)
    }

    async fn reach_receiver(&self, values: &Values) -> Result<(), String> {
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

    /// How long it may take to send something.
    pub fn takes_at_most(&self) -> Duration {
        self.timeout.saturating_mul(self.receivers())
    }

    /// How many are sent to one after the other, each with a time of its own.
    fn receivers(&self) -> u32 {
        match &self.config.way {
            Way::Mail(server) => u32::try_from(server.to.len()).unwrap_or(u32::MAX).max(1),
            _ => 1,
        }
    }

    fn values(&self) -> Result<Values, String> {
        let read = |(key, source): (&'static str, &SecretSource)| {
            secrets::value(key, source).map(|value| (key, value)).map_err(|error| format!("{error:#}"))
        };
        self.config.secrets().into_iter().map(read).collect::<Result<_, _>>().map(Values::new)
    }
}

fn host_and_port(url: &Url) -> Result<(String, u16), String> {
    let host = url.host_str().map(|host| host.trim_matches(['[', ']']).to_owned());
    host.zip(url.port_or_known_default()).ok_or_else(|| "the url names no host".to_owned())
}
