//! Webhooks: a signed POST of JSON, in the manner of Standard Webhooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;
use sha2::Sha256;

use super::notice::Notice;
use super::sending::{Line, Parcel, Trouble, Values, parse};
use crate::config::channels::Text;
use crate::event::wire_time;

/// What a secret begins with that is base64 of its bytes.
const ENCODED: &str = "whsec_";

/// The body of a webhook.
#[derive(Serialize)]
struct Body<'n> {
    r#type: &'n str,
    #[serde(with = "wire_time")]
    timestamp: Timestamp,
    data: &'n Notice,
}

pub(super) async fn send(
    line: &Line<'_>,
    values: &Values,
    url: &Text,
    parcel: &Parcel<'_>,
    now: Timestamp,
) -> Result<(), Trouble> {
    let url = parse(&values.text("url", url))?;
    for (id, notice) in &parcel.members {
        let body = Body { r#type: notice.event.as_str(), timestamp: notice.at, data: notice };
        let body = serde_json::to_string(&body).map_err(|error| error.to_string())?;
        let headers = headers(values.of("secret").unwrap_or_default(), id, now, &body)?;
        line.call(&url, headers, body).await?;
    }
    Ok(())
}

fn headers(secret: &str, id: &str, now: Timestamp, body: &str) -> Result<HeaderMap, String> {
    let seconds = now.as_second();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", seconds.to_string()),
        ("webhook-signature", signature(secret, id, seconds, body)?),
    ] {
        headers.insert(name, HeaderValue::try_from(value).map_err(|error| error.to_string())?);
    }
    Ok(headers)
}

/// HMAC-SHA256 over `id.timestamp.body`, so that neither can be changed nor sent again later.
fn signature(secret: &str, id: &str, seconds: i64, body: &str) -> Result<String, String> {
    let key = match secret.strip_prefix(ENCODED) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| format!("the secret is no base64 behind {ENCODED}"))?,
        None => secret.as_bytes().to_vec(),
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(|error| error.to_string())?;
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body.as_bytes());
    Ok(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_published_example() {
        // https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
        let signed = signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signed.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_that_is_no_base64_is_refused_without_being_shown() {
        let error = signature("whsec_not base64!", "id", 1, "").unwrap_err();
        assert!(!error.contains("not base64!"), "{error}");
    }
}
