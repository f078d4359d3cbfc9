//! `/api/v1/session`: signing in and out, and the browsers that are signed in.

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum_extra::extract::CookieJar;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::auth::Credential;
use super::error::ApiError;
use super::hub::Closing;
use super::socket::Came;
use super::{Api, One, json_body};

/// Who is signed in.
///
/// # Errors
/// 401.
pub async fn show(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let credential = known(&api, &headers, &came)?;
    Ok(Json(json!({ "user": &*credential.user, "credential": credential.kind, "device": &*credential.id })))
}

fn known(api: &Api, headers: &HeaderMap, came: &Came) -> Result<Credential, ApiError> {
    match api.door.by_header(headers).or_else(|| api.door.by_cookie(headers, came)) {
        Some(Ok(credential)) => Ok(credential),
        _ => Err(ApiError::unauthenticated()),
    }
}

/// Exchanges a one-time code or a token for a cookie.
///
/// # Errors
/// 401 for a code or token that is none, 403 from another site.
pub async fn sign_in(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    api.door.check_origin(&headers, &came, false)?;
    let body = json_body(&headers, &body)?;
    let (good, code) = match (body.get("code"), body.get("token")) {
        (Some(Value::String(code)), None) => {
            let used = api.door.authority.use_code(code.trim());
            (used.is_some(), used.map(|until| (code.trim(), until)))
        }
        (None, Some(Value::String(token))) => (api.door.authority.by_token(token.trim()).is_some(), None),
        _ => return Err(ApiError::invalid("code", "give a code or a token")),
    };
    if !good {
        let detail =
            "this code or token is not good: a code works once and for a minute; `rejoin open` gives a new one";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail));
    }
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("unknown browser");
    let before = api.door.authority.devices();
    let signed_in = api.door.authority.sign_in(agent).await;
    if let (Err(_), Some((code, until))) = (&signed_in, code) {
        api.door.authority.give_code_back(code, until);
    }
    let (cookie, life) = signed_in?;
    // Where there were too many, the one seen longest ago is signed out: its sockets too.
    let after = api.door.authority.devices();
    for gone in before.iter().filter(|device| after.iter().all(|other| other.id != device.id)) {
        api.live.hub.close_credential(&gone.id, &Closing::EXPIRED);
    }
    tracing::info!(from = ?came.from, "a browser signed in");
    let jar = CookieJar::new().add(api.door.cookie(&headers, &came, cookie, life));
    Ok((StatusCode::NO_CONTENT, jar).into_response())
}

/// Signs out: the cookie is no longer good, and its sockets close.
///
/// # Errors
/// 403 from another site.
pub async fn sign_out(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let credential = known(&api, &headers, &came)?;
    api.door.check_origin(&headers, &came, credential.kind == super::auth::Kind::Cookie)?;
    let jar = CookieJar::new();
    if credential.kind == super::auth::Kind::Cookie {
        let revoked = api.door.authority.revoke(&credential.id).await;
        api.live.hub.close_credential(&credential.id, &Closing::EXPIRED);
        revoked?;
    }
    let gone = api.door.cookie(&headers, &came, String::new(), SignedDuration::ZERO);
    Ok((StatusCode::NO_CONTENT, jar.add(gone)).into_response())
}

/// Makes a one-time sign-in link.
///
/// # Errors
/// Never, once the caller is known.
pub async fn make_code(
    State(api): State<Api>,
    ConnectInfo(came): ConnectInfo<Came>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let code = api.door.authority.make_code();
    // In the fragment: it goes into no request and no log.
    let url = format!("{}/#code={code}", api.door.address_for(&headers, &came));
    Ok(Json(json!({ "code": code, "url": url, "expires_in_s": api.door.authority.code_life().as_secs() })))
}

/// The browsers that are signed in.
pub async fn devices(State(api): State<Api>, Extension(credential): Extension<Credential>) -> Json<Value> {
    let devices = api.door.authority.devices().into_iter();
    let items: Vec<Value> = devices
        .map(|device| {
            let mut item = json!(device);
            item["current"] = (device.id == *credential.id).into();
            item
        })
        .collect();
    Json(json!({ "items": items, "next": null }))
}

/// Signs a browser out from elsewhere; its sockets close within a second.
///
/// # Errors
/// 404.
pub async fn revoke(State(api): State<Api>, Path(id): One) -> Result<StatusCode, ApiError> {
    let revoked = api.door.authority.revoke(&id).await;
    api.live.hub.close_credential(&id, &Closing::EXPIRED);
    match revoked? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such device")),
    }
}
