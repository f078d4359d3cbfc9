//! Mail over SMTP.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use lettre::address::Envelope;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};

use super::digest;
use super::sending::{Line, Parcel, Trouble, Values};
use crate::config::channels::{Mail, MailTls};
use crate::egress;

/// How much is known of what arrived in some mailboxes and not in others.
const MOST_ARRIVED: usize = 10_000;

/// What arrived in which mailbox, by the ids of deliveries: while another mailbox still waits for it, it is not sent
/// there again. Known until the next start.
#[derive(Default, Debug)]
pub(super) struct Arrived(Mutex<BTreeSet<(String, String)>>);

impl Arrived {
    fn note(&self, parcel: &Parcel<'_>, mailbox: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(parcel.members.iter().map(|(id, _)| ((*id).to_owned(), mailbox.to_owned())));
        while known.len() > MOST_ARRIVED {
            // Ids are in the order of time.
            known.pop_first();
        }
    }

    fn left<'n>(&self, parcel: &Parcel<'n>, mailbox: &str) -> Parcel<'n> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_left = |id: &str| !known.contains(&(id.to_owned(), mailbox.to_owned()));
        Parcel { members: parcel.members.iter().filter(|(id, _)| is_left(id)).copied().collect() }
    }
}

/// Sends to each mailbox apart, so that one that is dead keeps nothing from the others. Gives what those said that
/// refused it, where others took it.
pub(super) async fn send(
    line: &Line<'_>,
    values: &Values,
    server: &Mail,
    parcel: &Parcel<'_>,
    arrived: &Arrived,
) -> Result<Option<String>, Trouble> {
    let transport = transport(line, values, server).await?;
    let (mut is_taken, mut put_off, mut refused) = (false, Vec::new(), Vec::new());
    for mailbox in &server.to {
        let name = mailbox.to_string();
        let left = arrived.left(parcel, &name);
        if left.members.is_empty() {
            is_taken = true;
            continue;
        }
        let message = message(server, &left)?;
        let envelope = Envelope::new(message.envelope().from().cloned(), vec![mailbox.email.clone()])
            .map_err(|error| format!("{name}: {error}"))?;
        let bytes = message.formatted();
        match tokio::time::timeout(line.timeout, transport.send_raw(&envelope, &bytes)).await {
            Ok(Ok(_)) => {
                is_taken = true;
                arrived.note(&left, &name);
            }
            Ok(Err(error)) => {
                let why = format!("{name}: {}: {}", server.host, words(&error));
                // The mailbox is not there, or wants nothing of it.
                let is_refused = error.status().is_some_and(|code| matches!(u16::from(code), 550..=554));
                let kept = if is_refused { &mut refused } else { &mut put_off };
                kept.push(why);
            }
            Err(_) => {
                put_off.push(format!("{name}: no answer within {:?}", line.timeout));
            }
        }
    }
    if !put_off.is_empty() {
        put_off.append(&mut refused);
        return Err(Trouble::Later(put_off.join("; ")));
    }
    let refused = (!refused.is_empty()).then(|| refused.join("; "));
    match refused {
        Some(why) if !is_taken => Err(Trouble::Never(why)),
        refused => Ok(refused),
    }
}

async fn transport(
    line: &Line<'_>,
    values: &Values,
    server: &Mail,
) -> Result<AsyncSmtpTransport<Tokio1Executor>, Trouble> {
    let Mail { host, port, tls, user, .. } = server;
    let address = egress::address(host, *port, line.allow_hosts, line.own_port).await?;
    let encrypted = || TlsParameters::new(host.clone()).map_err(|error| words(&error));
    let tls = match tls {
        MailTls::Starttls => Tls::Required(encrypted()?),
        MailTls::Tls => Tls::Wrapper(encrypted()?),
        MailTls::None if address.ip().is_loopback() => Tls::None,
        MailTls::None => {
            return Err(format!("{host} is not on this machine: tls = \"none\" would show the mail on the way").into());
        }
    };
    // To the address that was looked at; the certificate is still the name's.
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(address.ip().to_string())
        .port(*port)
        .tls(tls)
        .timeout(Some(line.timeout));
    if let Some((user, password)) = user.as_ref().zip(values.of("password")) {
        transport = transport.credentials(Credentials::new(user.clone(), password.to_owned()));
    }
    Ok(transport.build())
}

fn message(server: &Mail, parcel: &Parcel<'_>) -> Result<Message, String> {
    let digest::Message { title, body, url } = digest::message(&parcel.notices());
    let domain = server.from.email.domain();
    let mut message = Message::builder()
        .from(server.from.clone())
        // The same at each try: a mailbox that has it may tell.
        .message_id(Some(format!("<{}@{domain}>", parcel.id())))
        .subject(title)
        .header(ContentType::TEXT_PLAIN);
    for to in &server.to {
        message = message.to(to.clone());
    }
    let url = url.map(|url| format!("\n\n{url}")).unwrap_or_default();
    message.body(format!("{body}{url}\n")).map_err(|error| format!("the mail cannot be written: {error}"))
}

fn words(error: &lettre::transport::smtp::Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_words = inner.to_string();
        if !words.contains(&inner_words) {
            words = format!("{words}: {inner_words}");
        }
        cause = inner.source();
    }
    words
}
