//! `[notify]` of `config.toml`: by which ways people are told what happened, and how often.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use lettre::message::Mailbox;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::units;
use crate::task::definition::SecretSource;
use crate::task::telling::Occasion;

/// Telling people by other ways than the page.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    /// The page's address, as links have it; where the server listens, without.
    pub page: String,
    /// After how long a task that goes on failing is told of again.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub repeat: Duration,
    /// How much is told of one task in an hour, at most.
    pub hourly: u32,
    /// How many times as long as usual a run takes that is slow.
    pub slow: f64,
    /// After how long a delivery that failed is tried again; then after twice as long, up to an hour.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub retry: Duration,
    /// For how long a delivery is tried.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub give_up: Duration,
    /// How long a receiver may take.
    #[serde(deserialize_with = "units::as_duration::deserialize")]
    pub timeout: Duration,
    /// How many deliveries are kept to be shown.
    pub keep: u32,
    /// The channels by their names.
    pub channels: BTreeMap<String, Channel>,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            page: String::new(),
            repeat: Duration::from_secs(4 * 3600),
            hourly: 6,
            slow: 3.0,
            retry: Duration::from_secs(10),
            give_up: Duration::from_secs(24 * 3600),
            timeout: Duration::from_secs(10),
            keep: 5000,
            channels: BTreeMap::new(),
        }
    }
}

impl Notify {
    /// What the types alone do not say: the key and what is wrong with it.
    ///
    /// # Errors
    /// The first that is wrong.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let lengths = [
            ("notify.repeat", self.repeat),
            ("notify.retry", self.retry),
            ("notify.give_up", self.give_up),
            ("notify.timeout", self.timeout),
        ];
        if let Some((key, _)) = lengths.iter().find(|(_, length)| length.is_zero()) {
            return Err((key, "must be more than nothing".into()));
        }
        if self.hourly == 0 {
            return Err(("notify.hourly", "must be more than nothing: take a channel out to be told nothing".into()));
        }
        if self.keep == 0 {
            return Err(("notify.keep", "must be more than nothing".into()));
        }
        if !self.slow.is_finite() || self.slow <= 1.0 {
            return Err(("notify.slow", "must be more than 1: how many times as long as usual is slow".into()));
        }
        if !self.page.is_empty() && !self.page.starts_with("http://") && !self.page.starts_with("https://") {
            return Err(("notify.page", "must begin with https:// or http://".into()));
        }
        let name = |name: &&String| {
            let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
            name.is_empty() || name.len() > 64 || !name.bytes().all(inner)
        };
        if let Some(name) = self.channels.keys().find(name) {
            return Err(("notify.channels", format!("{name:?} is no name of a channel: use a-z, 0-9, '_' and '-'")));
        }
        Ok(())
    }

    /// Paths of secrets are relative to the file.
    pub(super) fn place(&mut self, folder: &Path) {
        for channel in self.channels.values_mut() {
            for secret in channel.secrets_mut() {
                if let SecretSource::File(path) = secret {
                    *path = folder.join(&*path);
                }
            }
        }
    }
}

/// One way to tell people.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Channel {
    /// What it is.
    pub way: Way,
    /// What is told.
    pub on: Vec<Occasion>,
    /// Whether it is told of tasks that name no channels.
    pub every_task: bool,
    /// When it is not to be disturbed.
    pub quiet: Option<Quiet>,
    /// Hosts that may be loopback, private or link-local.
    pub allow_hosts: Vec<String>,
}

/// What a channel is.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    /// A signed POST of JSON.
    Webhook {
        /// Where to.
        url: Text,
        /// What it is signed with.
        secret: SecretSource,
    },
    /// A push to a telephone.
    Ntfy {
        /// The server.
        url: String,
        /// The topic there.
        topic: Text,
        /// The access token.
        token: Option<SecretSource>,
        /// How urgent failures are, from 1 to 5.
        priority: u8,
    },
    /// A mail.
    Mail(Mail),
    /// A service that raises the alarm when signs of life are missing.
    Healthchecks {
        /// The server.
        url: String,
        /// The ping key of the project: checks are named by slugs then.
        key: Option<SecretSource>,
        /// Whether checks that are not there are made.
        create: bool,
    },
}

impl Way {
    /// The name in the file and on the wire.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Ntfy { .. } => "ntfy",
            Self::Mail(_) => "mail",
            Self::Healthchecks { .. } => "healthchecks",
        }
    }
}

/// How mail is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Mail {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the line is encrypted.
    pub tls: MailTls,
    /// Who signs in there.
    pub user: Option<String>,
    /// With what.
    pub password: Option<SecretSource>,
    /// Who it is from.
    pub from: Mailbox,
    /// Who gets it.
    pub to: Vec<Mailbox>,
}

/// How the line to a mail server is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailTls {
    /// Begins in plain and has to be encrypted before anything is said.
    #[default]
    Starttls,
    /// Encrypted from the beginning.
    Tls,
    /// In plain: for a server on this machine.
    None,
}

/// A text that may be a secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    /// As it stands.
    Plain(String),
    /// From elsewhere.
    Secret(SecretSource),
}

/// Hours in which nobody is disturbed. Over midnight where the end is before the begin.
#[derive(Clone, Debug, PartialEq)]
pub struct Quiet {
    /// The first moment.
    pub from: Time,
    /// The first moment behind it.
    pub to: Time,
    /// Whose clock counts.
    pub zone: TimeZone,
}

impl Channel {
    /// Every secret it needs, by the key that names it.
    pub fn secrets(&self) -> Vec<(&'static str, &SecretSource)> {
        let [first, second] = match &self.way {
            Way::Webhook { url, secret } => [("url", url.source()), ("secret", Some(secret))],
            Way::Ntfy { topic, token, .. } => [("topic", topic.source()), ("token", token.as_ref())],
            Way::Mail(mail) => [("password", mail.password.as_ref()), ("", None)],
            Way::Healthchecks { key, .. } => [("key", key.as_ref()), ("", None)],
        };
        [first, second].into_iter().filter_map(|(key, source)| Some((key, source?))).collect()
    }

    fn secrets_mut(&mut self) -> impl Iterator<Item = &mut SecretSource> {
        let both = match &mut self.way {
            Way::Webhook { url, secret } => [url.source_mut(), Some(secret)],
            Way::Ntfy { topic, token, .. } => [topic.source_mut(), token.as_mut()],
            Way::Mail(mail) => [mail.password.as_mut(), None],
            Way::Healthchecks { key, .. } => [key.as_mut(), None],
        };
        both.into_iter().flatten()
    }
}

impl Text {
    fn source(&self) -> Option<&SecretSource> {
        match self {
            Self::Plain(_) => None,
            Self::Secret(source) => Some(source),
        }
    }

    fn source_mut(&mut self) -> Option<&mut SecretSource> {
        match self {
            Self::Plain(_) => None,
            Self::Secret(source) => Some(source),
        }
    }
}

/// A channel as it stands in the file: which keys go with which kind is checked when it becomes a [`Channel`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kind: Kind,
    on: Option<Vec<String>>,
    every_task: Option<bool>,
    quiet: Option<String>,
    tz: Option<String>,
    #[serde(default)]
    allow_hosts: Vec<String>,
    url: Option<Given>,
    secret: Option<Given>,
    topic: Option<Given>,
    token: Option<Given>,
    priority: Option<u8>,
    host: Option<String>,
    port: Option<u16>,
    tls: Option<MailTls>,
    user: Option<String>,
    password: Option<Given>,
    from: Option<String>,
    to: Option<OneOrMore>,
    key: Option<Given>,
    create: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Webhook,
    Ntfy,
    Mail,
    Healthchecks,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// A text, or where it comes from.
struct Given(Text);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Plain(String),
            From(BTreeMap<String, String>),
        }
        const SHAPE: &str = "is a text, { env = \"VARIABLE\" } or { file = \"path\" }";
        let form = Form::deserialize(from).map_err(|_| D::Error::custom(SHAPE))?;
        let members = match form {
            Form::Plain(text) => return Ok(Self(Text::Plain(text))),
            Form::From(members) => members,
        };
        let source = match members.iter().map(|(name, value)| (name.as_str(), value)).collect::<Vec<_>>()[..] {
            [("env", variable)] => SecretSource::Env(variable.clone()),
            [("file", path)] => SecretSource::File(PathBuf::from(path)),
            _ => return Err(D::Error::custom(SHAPE)),
        };
        Ok(Self(Text::Secret(source)))
    }
}

impl Given {
    /// What must not stand in the file.
    fn secret(self, key: &str) -> Result<SecretSource, String> {
        match self.0 {
            Text::Secret(source) => Ok(source),
            Text::Plain(_) => Err(format!(
                "{key} never stands in this file: write {key} = {{ env = \"VARIABLE\" }} or {{ file = \"path\" }}"
            )),
        }
    }

    fn plain(self, key: &str) -> Result<String, String> {
        match self.0 {
            Text::Plain(text) => Ok(text),
            Text::Secret(_) => Err(format!("{key} is a text here")),
        }
    }
}

impl TryFrom<Written> for Channel {
    type Error = String;

    fn try_from(mut written: Written) -> Result<Self, String> {
        let way = match written.kind {
            Kind::Webhook => {
                let Given(url) = written.url.take().ok_or("url is missing: where a webhook is sent")?;
                if let Text::Plain(url) = &url {
                    check_url(url)?;
                }
                let secret = written.secret.take().ok_or("secret is missing: what a webhook is signed with")?;
                Way::Webhook { url, secret: secret.secret("secret")? }
            }
            Kind::Ntfy => {
                let Given(topic) = written.topic.take().ok_or("topic is missing: where ntfy publishes it")?;
                let priority = written.priority.take().unwrap_or(4);
                if !(1..=5).contains(&priority) {
                    return Err(format!("priority is from 1 to 5, not {priority}"));
                }
                Way::Ntfy {
                    url: address(written.url.take(), "https://ntfy.sh")?,
                    topic,
                    token: written.token.take().map(|token| token.secret("token")).transpose()?,
                    priority,
                }
            }
            Kind::Mail => Way::Mail(mail(&mut written)?),
            Kind::Healthchecks => {
                if written.on.is_some() || written.quiet.is_some() {
                    return Err("on and quiet do not go with healthchecks: it is told of every run".into());
                }
                Way::Healthchecks {
                    url: address(written.url.take(), "https://hc-ping.com")?,
                    key: written.key.take().map(|key| key.secret("key")).transpose()?,
                    create: written.create.take().unwrap_or(false),
                }
            }
        };
        let foreign = [
            ("url", written.url.is_some()),
            ("secret", written.secret.is_some()),
            ("topic", written.topic.is_some()),
            ("token", written.token.is_some()),
            ("priority", written.priority.is_some()),
            ("host", written.host.is_some()),
            ("port", written.port.is_some()),
            ("tls", written.tls.is_some()),
            ("user", written.user.is_some()),
            ("password", written.password.is_some()),
            ("from", written.from.is_some()),
            ("to", written.to.is_some()),
            ("key", written.key.is_some()),
            ("create", written.create.is_some()),
        ];
        if let Some((key, _)) = foreign.iter().find(|(_, left)| *left) {
            return Err(format!("{key} does not go with kind = {:?}", way.as_str()));
        }
        let on = match written.on {
            None => Occasion::DEFAULTS.to_vec(),
            Some(names) => names.iter().map(|name| occasion(name)).collect::<Result<_, _>>()?,
        };
        let quiet = match (written.quiet, written.tz) {
            (None, Some(_)) => return Err("tz goes with quiet, which is not there".into()),
            (None, None) => None,
            (Some(hours), zone) => Some(quiet(&hours, zone.as_deref())?),
        };
        let every_task = written.every_task.unwrap_or(true);
        Ok(Self { way, on, every_task, quiet, allow_hosts: written.allow_hosts })
    }
}

fn address(given: Option<Given>, default: &str) -> Result<String, String> {
    let Some(given) = given else { return Ok(default.to_owned()) };
    let url = given.plain("url")?;
    check_url(&url)?;
    Ok(url.trim_end_matches('/').to_owned())
}

/// Plainly no address, or one with a password in it. Whether it may be reached is looked at when it is.
fn check_url(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if host.is_empty() || url.contains(char::is_whitespace) {
        return Err("url must begin with https:// or http://".into());
    }
    if host.contains('@') {
        return Err("url must not have a name or password: they would stand in this file".into());
    }
    Ok(())
}

fn occasion(name: &str) -> Result<Occasion, String> {
    Occasion::chosen(name).ok_or_else(|| {
        let there = Occasion::CHOICES.map(|occasion| format!("{:?}", occasion.as_str())).join(", ");
        format!("on: {name:?} is not known: there are {there}")
    })
}

fn mail(written: &mut Written) -> Result<Mail, String> {
    let host = written.host.take().ok_or("host is missing: the mail server")?;
    let tls = written.tls.take().unwrap_or_default();
    let local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if tls == MailTls::None && !local {
        return Err(
            "tls = \"none\" is for a server on this machine: mail and password would be readable on the way".into()
        );
    }
    let to = match written.to.take().ok_or("to is missing: who gets the mail")? {
        OneOrMore::One(to) => vec![to],
        OneOrMore::More(to) => to,
    };
    if to.is_empty() {
        return Err("to is empty: who gets the mail".into());
    }
    let password = written.password.take().map(|password| password.secret("password")).transpose()?;
    let user = written.user.take();
    if user.is_some() != password.is_some() {
        return Err("user and password go together".into());
    }
    let port = written.port.take().unwrap_or(match tls {
        MailTls::Starttls => 587,
        MailTls::Tls => 465,
        MailTls::None => 25,
    });
    let to = to.iter().map(|to| mailbox("to", to)).collect::<Result<_, _>>()?;
    let from = mailbox("from", &written.from.take().ok_or("from is missing: who the mail is from")?)?;
    Ok(Mail { host, port, tls, user, password, from, to })
}

fn mailbox(key: &str, text: &str) -> Result<Mailbox, String> {
    text.parse().map_err(|error| {
        format!("{key}: {text:?} is no address like \"you@example.org\" or \"You <you@example.org>\": {error}")
    })
}

fn quiet(hours: &str, zone: Option<&str>) -> Result<Quiet, String> {
    let wrong = || format!("quiet: {hours:?} is not like \"22:00-07:00\"");
    let (from, to) = hours.split_once('-').ok_or_else(wrong)?;
    let time = |text: &str| text.trim().parse::<Time>().map_err(|_| wrong());
    let (from, to) = (time(from)?, time(to)?);
    if from == to {
        return Err(format!("quiet: {hours:?} begins when it ends"));
    }
    let zone = match zone {
        None => TimeZone::system(),
        Some(name) => {
            TimeZone::get(name).map_err(|_| format!("tz: {name:?} is not a time zone, like \"Europe/Berlin\""))?
        }
    };
    Ok(Quiet { from, to, zone })
}
