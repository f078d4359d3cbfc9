//! ntfy: a push to telephones and browsers.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;

use super::digest;
use super::sending::{Line, Parcel, Trouble, Values, parse};
use crate::config::channels::Text;
use crate::task::telling::Occasion;

/// The priority of what is no trouble.
const CALM: u8 = 3;

/// What is published, as ntfy takes it at its root.
#[derive(Serialize)]
struct Message<'m> {
    topic: &'m str,
    title: &'m str,
    message: &'m str,
    priority: u8,
    tags: [&'static str; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    click: Option<&'m str>,
}

pub(super) async fn send(
    line: &Line<'_>,
    values: &Values,
    url: &str,
    topic: &Text,
    priority: u8,
    parcel: &Parcel<'_>,
) -> Result<(), Trouble> {
    let url = parse(url)?;
    let topic = values.text("topic", topic);
    let digest::Message { title, body, url: click } = digest::message(&parcel.notices());
    let events = || parcel.members.iter().map(|(_, notice)| notice.event);
    let is_calm =
        events().all(|event| matches!(event, Occasion::Recovered | Occasion::Late | Occasion::Slow | Occasion::Test));
    let message = Message {
        topic: &topic,
        title: &title,
        message: &body,
        priority: if is_calm { priority.min(CALM) } else { priority },
        tags: [tag(events())],
        click: click.as_deref(),
    };
    let body = serde_json::to_string(&message).map_err(|error| error.to_string())?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(token) = values.of("token") {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| "the token has characters that no token has".to_owned())?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    line.call(&url, headers, body).await
}

/// The sign before the title, by the worst that is told.
fn tag(mut events: impl Iterator<Item = Occasion>) -> &'static str {
    let Some(first) = events.next() else { return "bell" };
    match events.fold(first, Ord::min) {
        Occasion::Failed => "x",
        Occasion::Recovered => "white_check_mark",
        Occasion::Attention => "warning",
        Occasion::Missed | Occasion::Late => "hourglass",
        Occasion::Slow => "snail",
        Occasion::Waiting => "raised_hand",
        Occasion::Test | Occasion::Ping => "bell",
    }
}
