//! The door: which host names are answered, who a request is from, and whether a browser was made to send it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum_extra::extract::cookie::{Cookie, CookieJar, SameSite};
use jiff::SignedDuration;

use super::auth::{Authority, Credential, Kind, Refused};
use super::error::ApiError;
use super::socket::Came;
use crate::config::Network;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What the page may do: nothing but what the server itself gave it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Which requests come in at all.
#[derive(Debug)]
pub struct Door {
    /// The port of the TCP listener: it is in the cookie's name, as cookies ignore ports.
    pub port: u16,
    /// Names beside loopback that `Host` may have.
    pub allowed_hosts: Vec<String>,
    /// Proxies whose word on the scheme is taken.
    pub trusted_proxies: Vec<Network>,
    /// The page's address for those who come by the socket of the data folder.
    pub address: String,
    /// Who may come in.
    pub authority: Arc<Authority>,
}

impl Door {
    /// The address under which the page is seen by whoever sent this request.
    pub fn origin(&self, headers: &HeaderMap, came: &Came) -> Option<String> {
        let host = headers.get(header::HOST)?.to_str().ok()?;
        Some(format!("{}://{host}", if self.is_secure(headers, came) { "https" } else { "http" }))
    }

    /// The page's address to tell in an answer.
    pub fn address_for(&self, headers: &HeaderMap, came: &Came) -> String {
        match came.from {
            Some(_) => self.origin(headers, came).unwrap_or_else(|| self.address.clone()),
            None => self.address.clone(),
        }
    }

    /// Whether the browser speaks TLS, as told by a proxy that is trusted.
    fn is_secure(&self, headers: &HeaderMap, came: &Came) -> bool {
        came.from.is_some_and(|from| self.trusted_proxies.iter().any(|network| network.contains(from)))
            && headers.get(FORWARDED_PROTO).is_some_and(|proto| proto == "https")
    }

    fn cookie_name(&self, secure: bool) -> String {
        format!("{}rejoin_{}", if secure { "__Host-" } else { "" }, self.port)
    }

    /// The cookie that signs a browser in for so long.
    pub fn cookie(&self, headers: &HeaderMap, came: &Came, value: String, life: SignedDuration) -> Cookie<'static> {
        let secure = self.is_secure(headers, came);
        Cookie::build((self.cookie_name(secure), value))
            .path("/")
            .http_only(true)
            .same_site(SameSite::Strict)
            .secure(secure)
            .max_age(time::Duration::seconds(life.as_secs()))
            .build()
    }

    fn is_known_host(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
        let name = host_name(host);
        let loopback = name.eq_ignore_ascii_case("localhost")
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        loopback || self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }

    /// Who the `Authorization` header names: `None` without one, `Err` when it names nobody.
    pub fn by_header(&self, headers: &HeaderMap) -> Option<Result<Credential, Refused>> {
        let value = headers.get(header::AUTHORIZATION)?;
        Some(bearer(value).and_then(|token| self.authority.by_token(token)).ok_or(Refused::Unknown))
    }

    /// Who the cookie names.
    pub fn by_cookie(&self, headers: &HeaderMap, came: &Came) -> Option<Result<Credential, Refused>> {
        let jar = CookieJar::from_headers(headers);
        let cookie = jar.get(&self.cookie_name(self.is_secure(headers, came)))?;
        Some(self.authority.by_cookie(cookie.value()))
    }

    /// Whether the request was made by the server's own page, as far as the browser tells. `required` where a
    /// cookie came along, which a browser sends by itself.
    ///
    /// # Errors
    /// 403 `bad_origin`.
    pub fn check_origin(&self, headers: &HeaderMap, came: &Came, required: bool) -> Result<(), ApiError> {
        let refused =
            || ApiError::new(StatusCode::FORBIDDEN, "bad_origin", "this request was not made by Rejoin's own page");
        match headers.get(header::ORIGIN) {
            Some(origin) => {
                let expected = self.origin(headers, came).ok_or_else(refused)?;
                if origin.as_bytes() != expected.as_bytes() {
                    return Err(refused());
                }
            }
            None if required => return Err(refused()),
            None => {}
        }
        Ok(())
    }
}

/// The token in an `Authorization` header.
pub fn bearer(value: &HeaderValue) -> Option<&str> {
    // The name of the scheme is in any case (RFC 9110, 11.1).
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}

/// The name in a `Host` header, without the port.
fn host_name(host: &str) -> &str {
    let port_begins = host.find(']').map_or_else(|| host.rfind(':'), |end| Some(end + 1));
    let Some((name, port)) = port_begins.and_then(|at| host.split_at_checked(at)) else { return host };
    // What is no port belongs to a name that is none of ours: it would go into the links that are told.
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if port.is_empty() || port.strip_prefix(':').is_some_and(is_port) { name } else { host }
}

/// For every request: the host must be one of ours (DNS rebinding), a browser's request must come from our own
/// page, and every answer says what the page may do.
pub async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let mut response = if !door.is_known_host(headers) {
        let detail = "this server is not known under that host name: add it to allowed_hosts in config.toml";
        ApiError::new(StatusCode::MISDIRECTED_REQUEST, "bad_host", detail).into_response()
    } else if let Err(error) = check_fetch_site(request.headers(), request.uri().path()) {
        error.into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// `Sec-Fetch-Site`, where a browser sends it: another site may link to the page, and nothing else.
fn check_fetch_site(headers: &HeaderMap, path: &str) -> Result<(), ApiError> {
    let Some(site) = headers.get(FETCH_SITE) else { return Ok(()) };
    let own = site == "same-origin" || site == "none";
    if own || !path.starts_with("/api/") {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "bad_origin", "this request was made by another site"))
}

/// For everything under `/api/v1` but signing in and the socket: a good credential, and with a cookie the page's
/// own origin on calls that change something.
pub async fn require(
    State(door): State<Arc<Door>>,
    ConnectInfo(came): ConnectInfo<Came>,
    request: Request,
    next: Next,
) -> Response {
    let request = match admit(&door, &came, request) {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    if is_safe(request.method()) {
        return next.run(request).await;
    }
    // A change that was begun is carried to its end, also when its caller hangs up half-way: store and memory
    // never part.
    match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => ApiError::internal(&error).into_response(),
    }
}

/// The same for calls that wait for something to give: nothing is given to a caller who has hung up. They carry
/// what they have begun to its end by themselves.
pub async fn require_for_waiting(
    State(door): State<Arc<Door>>,
    ConnectInfo(came): ConnectInfo<Came>,
    request: Request,
    next: Next,
) -> Response {
    match admit(&door, &came, request) {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The request with whom it is from.
fn admit(door: &Door, came: &Came, mut request: Request) -> Result<Request, ApiError> {
    let headers = request.headers();
    let credential = match door.by_header(headers).or_else(|| door.by_cookie(headers, came)) {
        Some(Ok(credential)) => credential,
        _ => return Err(ApiError::unauthenticated()),
    };
    let required = !is_safe(request.method()) && credential.kind == Kind::Cookie;
    door.check_origin(headers, came, required)?;
    request.extensions_mut().insert(credential);
    Ok(request)
}
