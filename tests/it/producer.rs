//! A program elsewhere that feeds a run, request by request, and does nothing by itself.
#![allow(dead_code, reason = "not every build of the tests needs all of it")]

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Client, PATIENCE};

/// One streamed request of a producer, in the hands of the test.
pub struct Producer {
    /// The connection.
    pub stream: TcpStream,
}

impl Producer {
    /// Begins a request of chunks.
    pub async fn open(client: &Client, run: &str) -> Self {
        Self::with(client, run, "Transfer-Encoding: chunked\r\n").await
    }

    /// The same where there may be nobody.
    pub async fn try_open(client: &Client, run: &str) -> std::io::Result<Self> {
        Self::try_with(client, run, "Transfer-Encoding: chunked\r\n").await
    }

    /// Begins a request with these headers.
    pub async fn with(client: &Client, run: &str, headers: &str) -> Self {
        Self::try_with(client, run, headers).await.unwrap()
    }

    async fn try_with(client: &Client, run: &str, headers: &str) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(client.address).await?;
        let head = format!(
            "POST /api/v1/runs/{run}/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n{headers}\r\n",
            client.address, client.token
        );
        stream.write_all(head.as_bytes()).await?;
        Ok(Self { stream })
    }

    /// Sends a chunk.
    pub async fn say(&mut self, text: impl AsRef<[u8]>) {
        self.try_say(text).await.unwrap();
    }

    /// The same where nobody may listen any more.
    pub async fn try_say(&mut self, text: impl AsRef<[u8]>) -> std::io::Result<()> {
        let text = text.as_ref();
        let chunk = [format!("{:x}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat();
        self.stream.write_all(&chunk).await
    }

    /// Ends the body; gives the answer.
    pub async fn end(mut self) -> (u16, Value) {
        let _ = self.stream.write_all(b"0\r\n\r\n").await;
        self.answer().await
    }

    /// The same where there may be none.
    pub async fn try_end(mut self) -> Option<(u16, Value)> {
        let _ = self.stream.write_all(b"0\r\n\r\n").await;
        self.try_answer(PATIENCE).await
    }

    /// The answer, whether the body is at its end or not.
    pub async fn answer(&mut self) -> (u16, Value) {
        self.try_answer(PATIENCE).await.expect("no answer")
    }

    /// The same where there may be none, or none in time.
    pub async fn try_answer(&mut self, patience: Duration) -> Option<(u16, Value)> {
        timeout(patience, self.read()).await.ok().flatten()
    }

    async fn read(&mut self) -> Option<(u16, Value)> {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let status = head.split(' ').nth(1)?.parse().ok()?;
                let length = head
                    .lines()
                    .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    return Some((status, serde_json::from_str(body).unwrap_or(Value::Null)));
                }
            }
            let mut part = [0; 4096];
            let count = self.stream.read(&mut part).await.ok().filter(|count| *count > 0)?;
            bytes.extend_from_slice(&part[..count]);
        }
    }
}
