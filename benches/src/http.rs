//! One call at a time over a connection of its own: what the load client asks beside the load.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::server::Server;

/// The lines that every request begins with.
pub fn head(server: &Server, method: &str, path: &str) -> String {
    head_for(server.address, &server.token, method, path)
}

fn head_for(address: SocketAddr, token: &str, method: &str, path: &str) -> String {
    format!(
        "{method} /api/v1{path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Origin: http://{address}\r\n"
    )
}

/// Calls; gives the answer's JSON.
///
/// # Errors
/// When there is none, or it is an error.
pub fn call(server: &Server, method: &str, path: &str, body: &str) -> Result<Value> {
    call_at(server.address, &server.token, method, path, body)
}

/// As [`call`], for one who has no hold of the server.
///
/// # Errors
/// As [`call`].
pub fn call_at(address: SocketAddr, token: &str, method: &str, path: &str, body: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let length = body.len();
    let request = format!(
        "{}Connection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}",
        head_for(address, token, method, path)
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    read_answer(&answer).with_context(|| format!("{method} {path}"))
}

/// The JSON of a whole answer.
///
/// # Errors
/// When it is an error, or no JSON.
pub fn read_answer(answer: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(answer)?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "{}: {body}", head.lines().next().unwrap_or_default());
    let body =
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") { unchunk(body)? } else { body.into() };
    Ok(if body.trim().is_empty() { Value::Null } else { serde_json::from_str(&body)? })
}

fn unchunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk has no size")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("a chunk is cut")?);
        body = rest.get(size + 2..).context("a chunk has no end")?;
    }
}
