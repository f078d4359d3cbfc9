//! Mail over SMTP.

use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};

use super::digest;
use super::sending::{Line, Parcel, Trouble, Values};
use crate::config::channels::{Mail, MailTls};
use crate::egress;

pub(super) async fn send(line: &Line<'_>, values: &Values, server: &Mail, parcel: &Parcel<'_>) -> Result<(), Trouble> {
    let message = message(server, parcel)?;
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
    transport.build().send(message).await.map(drop).map_err(|error| {
        let why = format!("{host}: {}", words(&error));
        // The mailbox is not there, or wants nothing of it.
        let refused = error.status().is_some_and(|code| matches!(u16::from(code), 550..=554));
        if refused { Trouble::Never(why) } else { Trouble::Later(why) }
    })
}

fn message(server: &Mail, parcel: &Parcel<'_>) -> Result<Message, String> {
    let address =
        |key: &str, text: &str| text.parse().map_err(|error| format!("{key}: {text:?} is no address: {error}"));
    let digest::Message { title, body, url } = digest::message(&parcel.notices);
    let domain = server.from.rsplit('@').next().unwrap_or("localhost").trim_end_matches('>');
    let mut message = Message::builder()
        .from(address("from", &server.from)?)
        // The same at each try: a mailbox that has it may tell.
        .message_id(Some(format!("<{}@{domain}>", parcel.id)))
        .subject(title)
        .header(ContentType::TEXT_PLAIN);
    for to in &server.to {
        message = message.to(address("to", to)?);
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
