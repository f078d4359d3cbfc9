//! What every way of telling is given: what to send, the secrets it needs, and a line to the receiver.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, Response, Url};
use sha2::{Digest as _, Sha256};

use super::notice::Notice;
use crate::config::channels::Text;
use crate::egress;
use crate::run::secrets::Redactor;

/// How much of what a receiver says about a failure is read, in bytes; what comes together is read together.
const MAX_ANSWER: usize = 1024;

/// How many characters of it are kept.
const MAX_SAID: usize = 200;

/// What is sent at once: one notice, or several where the channel takes them as one message.
#[derive(Clone, Debug)]
pub struct Parcel<'n> {
    /// What is told, each with the id of its delivery, the oldest first; at least one.
    pub members: Vec<(&'n str, &'n Notice)>,
}

impl<'n> Parcel<'n> {
    /// The same at each try, and another for another content: one notice has the id of its delivery, several have one
    /// that follows from theirs. A receiver may drop what it has, and loses nothing by that.
    pub fn id(&self) -> String {
        if let [(id, _)] = self.members.as_slice() {
            return (*id).to_owned();
        }
        let mut digest = Sha256::new();
        for (id, _) in &self.members {
            digest.update(id);
            digest.update([0]);
        }
        let id: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("msg_{id}")
    }

    /// What is told.
    pub fn notices(&self) -> Vec<&'n Notice> {
        self.members.iter().map(|(_, notice)| *notice).collect()
    }
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
    /// Takes the channel's secrets out of what its receiver says.
    pub(super) redactor: &'c Redactor,
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
        let said = self.what_it_says(&mut response).await;
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

    /// The beginning of what a receiver says about a failure. Secrets are taken out before it is cut: of one that goes over
    /// the cut its beginning stays out too.
    async fn what_it_says(&self, response: &mut Response) -> String {
        let mut clean = self.redactor.stream();
        let (mut read, mut said) = (0, Vec::new());
        while read < MAX_ANSWER {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    read += chunk.len();
                    said.extend(clean.push(&chunk));
                }
                Ok(None) => {
                    said.extend(clean.finish());
                    break;
                }
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&said).trim().chars().take(MAX_SAID).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::telling::Occasion;
    use jiff::Timestamp;

    #[test]
    fn a_parcel_has_an_id_of_its_content() {
        let notice = Notice::new(Occasion::Failed, Timestamp::UNIX_EPOCH, "x");
        let id = |ids: &[&'static str]| Parcel { members: ids.iter().map(|id| (*id, &notice)).collect() }.id();
        assert_eq!(id(&["msg_1"]), "msg_1");
        let of_two = id(&["msg_1", "msg_2"]);
        assert_eq!(of_two, id(&["msg_1", "msg_2"]));
        assert!(of_two.starts_with("msg_") && of_two.len() == 36, "{of_two}");
        for other in [id(&["msg_1"]), id(&["msg_1", "msg_3"]), id(&["msg_1", "msg_2", "msg_3"])] {
            assert_ne!(of_two, other);
        }
    }
}
