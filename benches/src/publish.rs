//! A producer elsewhere: NDJSON over one streamed request, as any program would send it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::http;
use crate::script::Script;
use crate::server::Server;

/// How many bytes of lines go into one chunk when there is no waiting between them.
const CHUNK: usize = 64 * 1024;

/// One request that is under way.
pub struct Publisher<'a> {
    stream: TcpStream,
    script: &'a Script,
    lines: Vec<u8>,
    chunk: Vec<u8>,
    sent: u64,
}

impl<'a> Publisher<'a> {
    /// Begins the request.
    ///
    /// # Errors
    /// When the server is not there.
    pub fn open(server: &Server, script: &'a Script) -> Result<Self> {
        let head = http::head(server, "POST", &format!("/runs/{}/events", script.run));
        Self::open_with(server.address, &head, script)
    }

    /// As [`Publisher::open`], for one who has the head of the request already.
    ///
    /// # Errors
    /// When the server is not there.
    pub fn open_with(address: std::net::SocketAddr, head: &str, script: &'a Script) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let more = "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{head}{more}").as_bytes())?;
        Ok(Self { stream, script, lines: Vec::new(), chunk: Vec::new(), sent: 0 })
    }

    /// Sends the events `from..=to`, as fast as they are taken.
    ///
    /// # Errors
    /// When the server is gone or takes no more.
    pub fn send(&mut self, from: u64, to: u64) -> Result<()> {
        for n in from..=to {
            self.script.write_line(n, &mut self.lines);
            if self.lines.len() >= CHUNK || n == to {
                self.send_lines()?;
            }
        }
        self.sent += (to + 1).saturating_sub(from);
        Ok(())
    }

    /// Sends the end of the run, as event `n`.
    ///
    /// # Errors
    /// When the server is gone or takes no more.
    pub fn end(&mut self, n: u64) -> Result<()> {
        self.script.write_end(n, &mut self.lines);
        self.sent += 1;
        self.send_lines()
    }

    fn send_lines(&mut self) -> Result<()> {
        self.chunk.clear();
        let _ = write!(self.chunk, "{:x}\r\n", self.lines.len());
        self.chunk.append(&mut self.lines);
        self.chunk.extend_from_slice(b"\r\n");
        Ok(self.stream.write_all(&self.chunk)?)
    }

    /// Ends the request; the answer must say that every event was taken.
    ///
    /// # Errors
    /// When it does not.
    pub fn finish(mut self) -> Result<()> {
        self.stream.write_all(b"0\r\n\r\n")?;
        self.stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer)?;
        let answer = http::read_answer(&answer).context("publishing")?;
        ensure!(answer["accepted"] == self.sent, "{} events were sent: {answer}", self.sent);
        Ok(())
    }
}
