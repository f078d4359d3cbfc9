//! Who comes in: credentials, cookies, hosts and origins, and what every answer carries.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rejoin::clock::Clock;
use rejoin::config::Config;
use rejoin::server::Server;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::harness::{Client, Home, InProcess, PATIENCE, REJOIN, Watcher};
use crate::process::until;

/// Every call that wants a credential.
const CALLS: &[(&str, &str)] = &[
    ("GET", "/tasks"),
    ("POST", "/tasks"),
    ("GET", "/tasks/job"),
    ("PATCH", "/tasks/job"),
    ("DELETE", "/tasks/job"),
    ("POST", "/tasks/job/pause"),
    ("POST", "/tasks/job/resume"),
    ("GET", "/tasks/job/next"),
    ("GET", "/tasks/job/slots"),
    ("GET", "/tasks/job/runs"),
    ("POST", "/tasks/job/runs"),
    ("GET", "/tasks/job/events"),
    ("POST", "/schedule/preview"),
    ("POST", "/clock/accept"),
    ("GET", "/runs"),
    ("GET", "/runs/0192f0c1-0000-7000-8000-000000000001"),
    ("POST", "/tasks/job/claim"),
    ("GET", "/runs/0192f0c1-0000-7000-8000-000000000001/stop"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/stop"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/events"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/retry"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/message"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/approve"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/deny"),
    ("GET", "/runs/0192f0c1-0000-7000-8000-000000000001/output/c1"),
    ("GET", "/runs/0192f0c1-0000-7000-8000-000000000001/events/1/full"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/acknowledge"),
    ("POST", "/runs/0192f0c1-0000-7000-8000-000000000001/snooze"),
    ("GET", "/attention"),
    ("GET", "/calendar"),
    ("GET", "/tasks/job/export"),
    ("GET", "/session"),
    ("DELETE", "/session"),
    ("POST", "/session/codes"),
    ("GET", "/session/devices"),
    ("DELETE", "/session/devices/x"),
    ("GET", "/status"),
    ("GET", "/housekeeping"),
    ("POST", "/housekeeping/retention/run"),
    ("GET", "/backup"),
    ("GET", "/notifications"),
    ("GET", "/notify"),
    ("POST", "/notify/x/test"),
    ("GET", "/doctor"),
];

fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

/// A request with these headers and no credential of its own.
async fn send(server: &InProcess, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let url = format!("http://{}{path}", server.client.address);
    let mut request = http().request(Method::from_bytes(method.as_bytes()).unwrap(), url).timeout(PATIENCE);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

async fn api(server: &InProcess, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let response = send(server, method, &format!("/api/v1{path}"), headers).await;
    (response.status().as_u16(), response.json().await.unwrap_or(Value::Null))
}

/// Opens a socket with these headers; the status where it is refused.
pub async fn knock(server: &InProcess, headers: &[(&'static str, &str)]) -> Result<Watcher, u16> {
    let address = server.client.address;
    let mut request = format!("ws://{address}/api/v1/live").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "rejoin.v1".parse().unwrap());
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tokio_tungstenite::client_async(request, TcpStream::connect(address).await.unwrap()).await {
        Ok((socket, _)) => Ok(Watcher { socket }),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Signs in by a code, as a browser does; gives the cookie as it is sent back.
pub async fn sign_in(server: &InProcess) -> String {
    let (status, made) = server.client.post("/session/codes", json!({})).await;
    assert_eq!(status, 200);
    let response = use_code(server, made["code"].as_str().unwrap()).await;
    assert_eq!(response.status(), 204);
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

async fn use_code(server: &InProcess, code: &str) -> Response {
    let address = server.client.address;
    let request = http().post(format!("http://{address}/api/v1/session")).header("Origin", format!("http://{address}"));
    request.json(&json!({ "code": code })).send().await.unwrap()
}

#[test]
fn the_list_of_calls_above_is_the_list_of_routes() {
    // Who may read the metrics is asked in `metrics`.
    let open = ["/live", "/healthz", "/readyz", "/metrics", "/api", "/api/{*rest}"];
    let router = include_str!("../../src/api.rs");
    for route in router.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let is_it = |path: &str| {
            let (path, route): (Vec<_>, Vec<_>) = (path.split('/').collect(), route.split('/').collect());
            path.len() == route.len() && path.iter().zip(&route).all(|(a, b)| a == b || b.starts_with('{'))
        };
        assert!(open.contains(&route) || CALLS.iter().any(|(_, path)| is_it(path)), "{route} is asked by no test");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t_32_every_call_without_a_good_credential_is_401_and_changes_nothing() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let token = home.token();
    let basic = format!("Basic {token}");
    let wrong: [&[(&str, &str)]; 5] = [
        &[],
        &[("Authorization", "Bearer wrong")],
        &[("Authorization", "Bearer ")],
        &[("Authorization", &basic)],
        &[("Cookie", "rejoin=x; rejoin_7171=x")],
    ];
    for (method, path) in CALLS {
        for headers in wrong {
            let (status, problem) = api(&server, method, path, headers).await;
            assert_eq!((status, &problem["code"]), (401, &json!("unauthenticated")), "{method} {path} {headers:?}");
        }
        // A wrong header is not made good by anything beside it, nor by a token in the address.
        let (status, _) = api(&server, method, &format!("{path}?token={token}"), &[]).await;
        assert_eq!(status, 401, "{method} {path}");
    }
    let response = send(&server, "GET", "/api/v1/tasks", &[]).await;
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    assert!(server.client.get("/tasks/job").await.1["last_run"].is_null(), "nothing ran");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_the_page_need_no_credential_and_never_redirect() {
    let home = Home::new("");
    let server = home.serve().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(send(&server, "GET", path, &[]).await.status(), 200, "{path}");
    }
    for path in ["/", "/tasks/job", "/tasks/job/runs/x"] {
        let response = send(&server, "GET", path, &[("Sec-Fetch-Site", "cross-site")]).await;
        assert!([200, 404].contains(&response.status().as_u16()), "{path}: {}", response.status());
    }
    assert_eq!(send(&server, "GET", "/assets/none.js", &[]).await.status(), 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_or_missing_credential_is_told_after_the_upgrade() {
    let home = Home::new("");
    let server = home.serve().await;
    for headers in [&[("Authorization", "Bearer wrong")][..], &[], &[("Authorization", "Basic x")]] {
        let mut stranger = knock(&server, headers).await.unwrap();
        stranger.hello("c", 1, json!([])).await;
        assert_eq!(stranger.close_code().await, Some(4500));
    }
    // A wrong header is not made good by a good token in the hello.
    let mut stranger = knock(&server, &[("Authorization", "Bearer wrong")]).await.unwrap();
    stranger.send(json!({ "type": "hello", "protocol": 1, "client": "c", "token": home.token() })).await;
    assert_eq!(stranger.close_code().await, Some(4500));
    let mut known = knock(&server, &[]).await.unwrap();
    known.send(json!({ "type": "hello", "protocol": 1, "client": "c", "token": home.token() })).await;
    assert_eq!(known.next().await["type"], "welcome");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_signs_in_by_a_code_once_and_gets_a_strict_cookie_with_the_port_in_its_name() {
    let home = Home::new("");
    let server = home.serve().await;
    let (_, made) = server.client.post("/session/codes", json!({})).await;
    let code = made["code"].as_str().unwrap();
    assert_eq!(made["expires_in_s"], 60);
    assert_eq!(
        made["url"],
        format!("http://{}/#code={code}", server.client.address),
        "in the fragment, which goes into no request"
    );
    assert_eq!(code.len(), 22, "128 bits");
    let response = use_code(&server, code).await;
    assert_eq!(response.status(), 204);
    let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert!(pair.starts_with(&format!("rejoin_{}=", server.client.address.port())));
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=2592000"] {
        assert!(attributes.split("; ").any(|one| one == attribute), "{attribute}: {attributes}");
    }
    let (status, who) = api(&server, "GET", "/session", &[("Cookie", pair)]).await;
    assert_eq!((status, &who["credential"]), (200, &json!("cookie")));
    let again = use_code(&server, code).await;
    assert_eq!(again.status(), 401, "a code works once");
    assert_eq!(use_code(&server, "wrong").await.status(), 401);
    // A cookie of the server at another port is none of ours.
    let other = pair.replace(&format!("rejoin_{}", server.client.address.port()), "rejoin_1");
    assert_eq!(api(&server, "GET", "/session", &[("Cookie", &other)]).await.0, 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_39_a_browser_stays_signed_in_for_as_long_as_the_config_says() {
    let home = Home::new("[auth]\nsession_days = 3");
    let server = home.serve().await;
    let (_, made) = server.client.post("/session/codes", json!({})).await;
    let response = use_code(&server, made["code"].as_str().unwrap()).await;
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.split("; ").any(|one| one == "Max-Age=259200"), "{cookie}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_good_for_so_long_and_no_longer() {
    let home = Home::new("[auth]\ncode_life = \"1s\"");
    let server = home.serve().await;
    let (_, made) = server.client.post("/session/codes", json!({})).await;
    // This is about time: it has to pass.
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(use_code(&server, made["code"].as_str().unwrap()).await.status(), 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_says_what_is_wrong() {
    let home = Home::new("");
    let server = home.serve().await;
    let token = home.token();
    for (body, expected) in [
        (json!({}), 400),
        (json!({ "code": 7 }), 400),
        (json!({ "code": "x", "token": "y" }), 400),
        (json!({ "token": "wrong" }), 401),
        (json!({ "token": token }), 204),
    ] {
        let url = format!("http://{}/api/v1/session", server.client.address);
        let response = http().post(url).json(&body).send().await.unwrap();
        assert_eq!(response.status(), expected, "{body}");
    }
    let url = format!("http://{}/api/v1/session", server.client.address);
    let form = http().post(url).header("Content-Type", "text/plain").body(json!({ "token": token }).to_string());
    assert_eq!(form.send().await.unwrap().status(), 415, "a form of another site cannot send JSON");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_known_hosts_are_answered_whatever_the_port() {
    let home = Home::new("allowed_hosts = [\"rejoin.example\"]");
    let server = home.serve().await;
    let bearer = format!("Bearer {}", home.token());
    let port = server.client.address.port();
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.0.0.99", "[::1]", "rejoin.example", "Rejoin.Example"] {
        for host in [host.to_owned(), format!("{host}:{port}"), format!("{host}:1")] {
            let (status, _) = api(&server, "GET", "/status", &[("Host", &host), ("Authorization", &bearer)]).await;
            assert_eq!(status, 200, "{host}");
        }
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "rejoin.example.evil",
        "10.0.0.1",
        "0.0.0.0",
        "[::2]",
        "127.0.0.1.evil.example",
        "evil.example:7171",
        "[::1].evil",
    ] {
        let (status, problem) = api(&server, "GET", "/status", &[("Host", host), ("Authorization", &bearer)]).await;
        assert_eq!((status, &problem["code"]), (421, &json!("bad_host")), "{host}");
        for path in ["/", "/healthz"] {
            assert_eq!(send(&server, "GET", path, &[("Host", host)]).await.status(), 421, "{path} at {host}");
        }
        assert_eq!(knock(&server, &[("Host", host), ("Authorization", &bearer)]).await.err(), Some(421));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_host_is_not_answered() {
    let home = Home::new("");
    let server = home.serve().await;
    let mut stream = TcpStream::connect(server.client.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.0 421") || answer.starts_with("HTTP/1.1 4"), "{answer}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_cookie_the_origin_is_required_on_what_changes_something_and_must_match_exactly() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let cookie = sign_in(&server).await;
    let address = server.client.address;
    let (own, port) = (format!("http://{address}"), address.port());
    let localhost = format!("http://localhost:{port}");
    let post = async |headers: &[(&str, &str)]| api(&server, "POST", "/tasks/job/runs", headers).await;
    assert_eq!(post(&[("Cookie", &cookie), ("Origin", &own)]).await.0, 201);
    assert_eq!(post(&[("Cookie", &cookie)]).await.1["code"], "bad_origin");
    let wrong = [
        "null".to_owned(),
        "http://evil.example".to_owned(),
        format!("https://{address}"),
        format!("http://127.0.0.1:{}", port ^ 1),
        "http://127.0.0.1".to_owned(),
        localhost.clone(),
        format!("{own}.evil.example"),
        format!("{own}/"),
        String::new(),
    ];
    for origin in &wrong {
        let (status, problem) = post(&[("Cookie", &cookie), ("Origin", origin)]).await;
        assert_eq!((status, &problem["code"]), (403, &json!("bad_origin")), "{origin}");
        // Reading is refused too where a browser says that another page asks.
        let (status, _) = api(&server, "GET", "/tasks", &[("Cookie", &cookie), ("Origin", origin)]).await;
        assert_eq!(status, 403, "{origin}");
        let refused = knock(&server, &[("Cookie", &cookie), ("Origin", origin)]).await.err();
        assert_eq!(refused, Some(403), "{origin}");
    }
    assert_eq!(
        api(&server, "GET", "/tasks", &[("Cookie", &cookie)]).await.0,
        200,
        "a browser sends none with its own GET"
    );
    assert_eq!(knock(&server, &[("Cookie", &cookie)]).await.err(), Some(403), "the handshake of a browser has one");
    // Under the name that the browser uses, that name is the origin.
    let host = format!("localhost:{port}");
    assert_eq!(post(&[("Cookie", &cookie), ("Host", &host), ("Origin", &localhost)]).await.0, 201);
    let mut socket = knock(&server, &[("Cookie", &cookie), ("Origin", &own)]).await.unwrap();
    socket.hello("tab", 1, json!([])).await;
    assert_eq!(socket.next().await["type"], "welcome");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_an_origin_is_checked_if_there_is_one() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let bearer = format!("Bearer {}", home.token());
    let auth = ("Authorization", bearer.as_str());
    assert_eq!(api(&server, "POST", "/tasks/job/runs", &[auth]).await.0, 201);
    assert_eq!(api(&server, "POST", "/tasks/job/runs", &[auth, ("Origin", "http://evil.example")]).await.0, 403);
    assert_eq!(knock(&server, &[("Authorization", &bearer), ("Origin", "http://evil.example")]).await.err(), Some(403));
    assert_eq!(
        knock(&server, &[("Origin", "http://evil.example")]).await.err(),
        Some(403),
        "nor to ask for the hello's token"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_site_makes_a_browser_send_is_refused() {
    let home = Home::new("");
    let server = home.serve().await;
    let bearer = format!("Bearer {}", home.token());
    let auth = ("Authorization", bearer.as_str());
    for (site, expected) in [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)] {
        let (status, _) = api(&server, "GET", "/status", &[auth, ("Sec-Fetch-Site", site)]).await;
        assert_eq!(status, expected, "{site}");
        assert_eq!(
            knock(&server, &[("Authorization", &bearer), ("Sec-Fetch-Site", site)]).await.is_ok(),
            expected == 200
        );
    }
    let (status, _) = api(&server, "POST", "/session", &[("Sec-Fetch-Site", "cross-site")]).await;
    assert_eq!(status, 403, "nobody is signed in by another site");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_what_the_page_may_do_also_when_it_is_an_error() {
    let home = Home::new("").shell_task("job", "true");
    let server = home.serve().await;
    let bearer = format!("Bearer {}", home.token());
    let auth = ("Authorization", bearer.as_str());
    let answers = [
        send(&server, "GET", "/", &[]).await,
        send(&server, "GET", "/assets/none.js", &[]).await,
        send(&server, "GET", "/healthz", &[]).await,
        send(&server, "POST", "/", &[]).await,
        send(&server, "GET", "/api/v1/tasks", &[auth]).await,
        send(&server, "GET", "/api/v1/tasks", &[]).await,
        send(&server, "GET", "/api/v1/nothing", &[auth]).await,
        send(&server, "PUT", "/api/v1/tasks", &[auth]).await,
        send(&server, "GET", "/api/v2/tasks", &[auth]).await,
        send(&server, "GET", "/api/v1/tasks", &[("Host", "evil.example")]).await,
        send(&server, "GET", "/api/v1/tasks", &[("Sec-Fetch-Site", "cross-site")]).await,
        send(&server, "GET", "/api/v1/live", &[auth]).await,
    ];
    for answer in answers {
        let (status, headers) = (answer.status(), answer.headers());
        let policy = headers["content-security-policy"].to_str().unwrap();
        for part in
            ["default-src 'none'", "script-src 'self'", "img-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
        {
            assert!(policy.contains(part), "{status}: {policy}");
        }
        assert!(!policy.contains("unsafe"));
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["x-frame-options"], "DENY");
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
        assert!(!headers.contains_key("access-control-allow-origin"));
        assert!(!headers.contains_key("server"));
    }
    server.stop().await;
}

/// Before any heartbeat or life could end a socket for another reason.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn signing_out_closes_the_sockets_of_that_browser_at_once_and_no_others() {
    let home = Home::new("");
    let server = home.serve().await;
    let own = format!("http://{}", server.client.address);
    let (one, two) = (sign_in(&server).await, sign_in(&server).await);
    let mut sockets = Vec::new();
    for cookie in [&one, &two] {
        let mut socket = knock(&server, &[("Cookie", cookie), ("Origin", &own)]).await.unwrap();
        socket.hello("tab", 1, json!([])).await;
        assert_eq!(socket.next().await["type"], "welcome");
        sockets.push(socket);
    }
    assert_eq!(api(&server, "DELETE", "/session", &[("Cookie", &one)]).await.0, 403, "not without an origin");
    let begun = Instant::now();
    let response = send(&server, "DELETE", "/api/v1/session", &[("Cookie", &one), ("Origin", &own)]).await;
    assert_eq!(response.status(), 204);
    assert!(response.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    let code = timeout(AT_ONCE, sockets[0].close_code()).await.expect("at once");
    let first = begun.elapsed();
    assert_eq!(code, Some(4505));
    assert_eq!(api(&server, "GET", "/session", &[("Cookie", &one)]).await.0, 401);
    assert_eq!(api(&server, "GET", "/session", &[("Cookie", &two)]).await.0, 200);

    // From elsewhere, by the list of devices.
    let (_, devices) = api(&server, "GET", "/session/devices", &[("Cookie", &two)]).await;
    let [device] = &devices["items"].as_array().unwrap()[..] else { panic!("{devices}") };
    assert_eq!(device["current"], true);
    assert!(device["hash"].is_null());
    let id = device["id"].as_str().unwrap();
    let begun = Instant::now();
    assert_eq!(server.client.delete(&format!("/session/devices/{id}")).await.0, 204);
    let code = timeout(AT_ONCE, sockets[1].close_code()).await.expect("at once");
    assert_eq!(code, Some(4505));
    // Within a second, as is promised: a machine that stands still does not do so both times.
    assert!(first.min(begun.elapsed()) < Duration::from_secs(1), "{first:?}, {:?}", begun.elapsed());
    assert_eq!(server.client.delete(&format!("/session/devices/{id}")).await.0, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swe_20_a_cookie_outlives_the_server_and_only_its_hash_is_stored() {
    let home = Home::new("");
    let server = home.serve().await;
    let cookie = sign_in(&server).await;
    let port = server.client.address.port();
    server.stop().await;
    let value = cookie.split_once('=').unwrap().1.to_owned();
    let stored: Vec<u8> = ["rejoin.db", "rejoin.db-wal"]
        .iter()
        .flat_map(|name| std::fs::read(home.path().join("data").join(name)).unwrap_or_default())
        .collect();
    assert!(!stored.windows(value.len()).any(|window| window == value.as_bytes()));
    let server = home.serve().await;
    let renamed = cookie.replace(&format!("rejoin_{port}"), &format!("rejoin_{}", server.client.address.port()));
    assert_eq!(api(&server, "GET", "/session", &[("Cookie", &renamed)]).await.0, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_proxy_with_tls_the_cookie_is_secure_and_only_a_trusted_proxy_is_believed() {
    for (trusted, secure) in [("[\"127.0.0.1\"]", true), ("[]", false), ("[\"10.0.0.0/8\"]", false)] {
        let home = Home::new(&format!("trusted_proxies = {trusted}\nallowed_hosts = [\"rejoin.example\"]"));
        let server = home.serve().await;
        let url = format!("http://{}/api/v1/session", server.client.address);
        let origin = if secure { "https://rejoin.example" } else { "http://rejoin.example" };
        let request = http()
            .post(url)
            .header("Host", "rejoin.example")
            .header("X-Forwarded-Proto", "https")
            .header("Origin", origin);
        let response = request.json(&json!({ "token": home.token() })).send().await.unwrap();
        assert_eq!(response.status(), 204);
        let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert_eq!(cookie.starts_with("__Host-rejoin_"), secure, "{cookie}");
        assert_eq!(cookie.contains("; Secure"), secure);
        let pair = cookie.split(';').next().unwrap();
        let headers = [("Host", "rejoin.example"), ("X-Forwarded-Proto", "https"), ("Cookie", pair)];
        assert_eq!(api(&server, "GET", "/session", &headers).await.0, 200);
        if secure {
            assert_eq!(api(&server, "GET", "/session", &[("Host", "rejoin.example"), ("Cookie", pair)]).await.0, 401);
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t_32_no_credential_and_no_injected_line_stands_in_the_log() {
    let home = Home::new("").shell_task("job", "printf '\\033[31mred\\nFORGED line\\n'; exit 1");
    let server = home.spawn(&[("RUST_LOG", "debug,hyper=info")]).await;
    let client = &server.client;
    let (_, made) = client.post("/session/codes", json!({})).await;
    let code = made["code"].as_str().unwrap().to_owned();
    let response = http()
        .post(format!("http://{}/api/v1/session", client.address))
        .header("User-Agent", "x FORGED agent")
        .json(&json!({ "code": code }))
        .send()
        .await
        .unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned();
    let steps = json!([{ "name": "one", "run": "true" }]);
    for title in ["evil\nFORGED title", "evil\u{1b}[2J"] {
        client.post("/tasks", json!({ "title": title, "steps": steps })).await;
    }
    client.get("/tasks/evil%0aFORGED%20path").await;
    client.post("/tasks/job/runs", json!({ "params": { "a\nFORGED param": 1 } })).await;
    let mut watcher = Watcher::open(client.address, None).await;
    let hello = json!({ "type": "hello", "protocol": 1, "client": "\nFORGED client", "token": home.token() });
    watcher.send(hello).await;
    assert_eq!(watcher.next().await["type"], "welcome");
    watcher.send(json!({ "type": "subscribe", "sub": 1, "task": "\nFORGED task" })).await;
    watcher.next().await;
    watcher.send(json!({ "type": "subscribe", "sub": 2, "task": "job" })).await;
    let run = client.run("job").await;
    assert_eq!(client.ended(&run).await["state"], "failed");
    // It is logged a moment after it can be seen.
    until("the end of the run is logged", || home.log().contains("run ended")).await;
    let log = home.log();
    for secret in [home.token(), code, cookie] {
        assert!(!log.contains(&secret), "a credential is in the log");
    }
    assert!(!log.contains('\u{1b}'), "{log}");
    assert!(log.lines().all(|line| !line.trim_start().starts_with("FORGED")), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_secret_is_readable_by_its_user_only() {
    let home = Home::new("");
    let server = home.serve().await;
    let mode =
        |name: &str| std::fs::metadata(home.path().join("data").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("token"), 0o600);
    assert_eq!(mode("rejoin.sock"), 0o600);
    assert_eq!(home.token().len(), 43, "256 bits");
    assert_eq!(std::fs::read_to_string(home.path().join("data/token")).unwrap(), home.token(), "the token alone");
    server.stop().await;
    let socket = home.path().join("data/rejoin.sock");
    assert!(!socket.exists(), "the socket goes with the server");
    std::fs::set_permissions(home.path().join("data/token"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let config =
        Config::from_text(Some(&home.path().join("config.toml")), "listen = \"127.0.0.1:0\"", &BTreeMap::new())
            .unwrap();
    let why = Server::start(config, REJOIN.into(), Clock::system()).await.unwrap_err();
    assert!(format!("{why:#}").contains("data/token can be read by others"), "{why:#}");
}

/// That the server does not start, says this, and ends as it does for what it cannot use.
#[track_caller]
fn refuses(home: &Home, words: &str) {
    let before = home.log().len();
    let status = home.try_spawn(&[]).err().expect("it started");
    let said = home.log()[before..].to_owned();
    assert!(said.contains(words), "{said}");
    assert_eq!(status.code(), Some(7), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_others_may_write_is_refused_with_the_line_that_mends_it() {
    let home = Home::new("");
    home.serve().await.stop().await;
    let data = home.path().join("data");
    let mode = |mode| std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode)).unwrap();
    let name = data.display();
    let line = format!("the data folder cannot be used: {name} can be written by everyone: chmod go-w '{name}'");
    for open in [0o777, 0o1777, 0o702] {
        mode(open);
        refuses(&home, &line);
    }
    // What others may read but not write is the administrator's to say.
    mode(0o755);
    home.spawn(&[]).await.terminate().await;
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o755, "and left as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_has_left_in_the_data_folder_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can give files away.
    }
    let home = Home::new("[metrics]\nopen = false");
    home.serve().await.stop().await;
    let data = home.path().join("data");
    let give = |name: &str, to: u32| std::os::unix::fs::lchown(data.join(name), Some(to), None).unwrap();
    for name in ["token", "metrics-token"] {
        give(name, 54_321);
        let file = data.join(name);
        let file = file.display();
        refuses(&home, &format!("{file} belongs to 54321, who knows the token in it: rm '{file}'"));
        std::fs::remove_file(data.join(name)).unwrap();
        home.spawn(&[]).await.terminate().await;
    }
    for name in ["rejoin.db", "opens"] {
        give(name, 54_321);
        let words = format!("{} belongs to 54321, who may have put it there", data.join(name).display());
        refuses(&home, &words);
        give(name, 0);
    }
    // A link is its owner's, whatever it leads to.
    std::fs::create_dir(home.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(home.path().join("elsewhere"), data.join("output")).unwrap();
    give("output", 54_321);
    refuses(&home, "data/output belongs to 54321");
    give("output", 0);
    home.spawn(&[]).await.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_the_data_folder_wants_the_token_too_and_its_path_may_be_long() {
    let home = Home::new("");
    let long = format!("data-{}", "x".repeat(150));
    let text = format!("listen = \"127.0.0.1:0\"\ndata_dir = \"{long}\"\ntasks_dir = \"tasks\"\n");
    let config = Config::from_text(Some(&home.path().join("config.toml")), &text, &BTreeMap::new()).unwrap();
    let server = Server::start(config, REJOIN.into(), Clock::system()).await.unwrap();
    let folder = home.path().join(&long);
    let mode = std::fs::metadata(folder.join("rejoin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let opened = std::fs::File::open(&folder).unwrap();
    let short = format!("/proc/self/fd/{}/rejoin.sock", std::os::fd::AsRawFd::as_raw_fd(&opened));
    let token = std::fs::read_to_string(folder.join("token")).unwrap();
    for (header, expected) in [(String::new(), "401"), (format!("Authorization: Bearer {token}\r\n"), "200")] {
        let mut stream = UnixStream::connect(&short).await.unwrap();
        let request = format!("GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
    }
    let status = tokio::process::Command::new(REJOIN)
        .args(["status", "--json", "--data-dir"])
        .arg(&folder)
        .env_remove("REJOIN_SERVER")
        .output()
        .await
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_others_reach_is_refused_without_tls_in_front() {
    for listen in ["0.0.0.0:0", "[::]:0", "10.0.0.1:0"] {
        let home = Home::new("");
        let text = format!("listen = \"{listen}\"\n");
        let config = Config::from_text(Some(&home.path().join("config.toml")), &text, &BTreeMap::new()).unwrap();
        let why = Server::start(config, REJOIN.into(), Clock::system()).await.unwrap_err().to_string();
        assert!(why.contains(listen) && why.contains("trusted_proxies"), "{why}");
        assert!(!home.path().join("data").exists(), "nothing was made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_others_may_write_are_refused_by_name() {
    let home = Home::new("").shell_task("job", "true").shell_task("open", "true");
    std::fs::set_permissions(home.path().join("tasks/open.toml"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let server = home.serve().await;
    let (_, tasks) = server.client.get("/tasks").await;
    let tasks = tasks["items"].as_array().unwrap();
    let open = tasks.iter().find(|task| task["id"] == "open").unwrap();
    assert_eq!(open["state"], "error");
    assert!(open["error"].to_string().contains("open.toml"), "{open}");
    assert_eq!(server.client.post("/tasks/open/runs", json!({})).await.0, 409, "it does not run");
    server.stop().await;

    std::fs::set_permissions(home.path().join("config.toml"), std::fs::Permissions::from_mode(0o666)).unwrap();
    let refused = tokio::process::Command::new(REJOIN)
        .arg("serve")
        .arg("--config")
        .arg(home.path().join("config.toml"))
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && words.contains("config.toml"), "{:?} {words}", refused.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_do_not_share_one_data_folder() {
    let home = Home::new("");
    let server = home.serve().await;
    let config =
        Config::from_text(Some(&home.path().join("config.toml")), "listen = \"127.0.0.1:0\"", &BTreeMap::new())
            .unwrap();
    let why = Server::start(config, REJOIN.into(), Clock::system()).await.unwrap_err();
    assert!(format!("{why:#}").contains("data"), "{why:#}");
    let client = Client::new(server.client.address, &home.token());
    assert_eq!(client.get("/status").await.0, 200, "the first goes on");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_its_headers_is_let_go() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let home = Home::new("");
    let server = home.serve().await;
    let mut slow = tokio::net::TcpStream::connect(server.client.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").await.unwrap();
    let mut answer = Vec::new();
    let let_go = tokio::time::timeout(crate::harness::PATIENCE, slow.read_to_end(&mut answer)).await;
    assert!(let_go.is_ok(), "it keeps its place for nothing");
    server.stop().await;
}
