//! Those who are told: an HTTP server that answers as it is told to, and a mail server that takes what it gets.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use crate::harness::PATIENCE;

/// How a receiver answers one request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With this status.
    Status(u16),
    /// With this status and these words.
    Says(u16, String),
    /// With this status and address.
    Redirect(u16, String),
    /// Never.
    Hang,
    /// With this status, once that is told.
    WhenTold(Arc<Notify>, u16),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// The path with its query.
    pub path: String,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// As text.
    pub body: String,
}

/// An HTTP server on a port of its own.
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    requests: mpsc::UnboundedReceiver<Request>,
}

impl Receiver {
    /// One that answers so, in this order, and then always with 200.
    pub async fn answering(answers: &[Answer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::unbounded_channel();
        let answers = Arc::new(Mutex::new(answers.iter().cloned().collect::<VecDeque<_>>()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.clone(), Arc::clone(&answers)));
            }
        });
        Self { address, requests }
    }

    /// The next request.
    pub async fn next(&mut self) -> Request {
        timeout(PATIENCE, self.requests.recv()).await.expect("nothing was sent").unwrap()
    }

    /// Whether something came that was not yet asked for.
    pub fn has_more(&mut self) -> Option<Request> {
        self.requests.try_recv().ok()
    }

    /// Nothing comes for so long.
    pub async fn is_left_alone_for(&mut self, long: Duration) -> bool {
        timeout(long, self.requests.recv()).await.is_err()
    }

    /// Its address as a url.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn serve(
    stream: TcpStream,
    requests: mpsc::UnboundedSender<Request>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await.ok()?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let answer = answers.lock().unwrap().pop_front().unwrap_or(Answer::Status(200));
        let _ = requests.send(Request { path, headers, body: String::from_utf8(body).ok()? });
        let no = || "no".to_owned();
        let (status, location, words) = match answer {
            Answer::Hang => std::future::pending().await,
            Answer::Status(status) => (status, String::new(), no()),
            Answer::Says(status, words) => (status, String::new(), words),
            Answer::WhenTold(told, status) => {
                told.notified().await;
                (status, String::new(), no())
            }
            Answer::Redirect(status, to) => (status, format!("Location: {to}\r\n"), no()),
        };
        let answer = format!("HTTP/1.1 {status} X\r\n{location}Content-Length: {}\r\n\r\n{words}", words.len());
        stream.get_mut().write_all(answer.as_bytes()).await.ok()?;
    }
}

/// A mail as it came.
#[derive(Clone, Debug, Default)]
pub struct Mail {
    /// Who it is from, by the envelope.
    pub from: String,
    /// Who it is for, by the envelope.
    pub to: Vec<String>,
    /// Headers and text.
    pub text: String,
    /// What was said to sign in.
    pub auth: Option<String>,
}

impl Mail {
    /// A header of it, unfolded.
    pub fn header(&self, name: &str) -> Option<String> {
        let unfolded = self.text.replace("\r\n ", " ");
        let line = unfolded.lines().find(|line| line.starts_with(&format!("{name}: ")))?;
        Some(line[name.len() + 2..].to_owned())
    }
}

/// A mail server on a port of its own.
pub struct MailServer {
    /// Where it listens.
    pub address: SocketAddr,
    mails: mpsc::UnboundedReceiver<Mail>,
    commands: Arc<Mutex<Vec<String>>>,
}

impl MailServer {
    /// One that puts off so many mails before it takes the next.
    pub async fn putting_off(count: usize) -> Self {
        Self::new(count, &[]).await
    }

    /// One that answers with a code so many times to whoever has a mail for a mailbox.
    pub async fn without(mailboxes: &[(&'static str, u16, usize)]) -> Self {
        Self::new(0, mailboxes).await
    }

    async fn new(count: usize, mailboxes: &[(&'static str, u16, usize)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mails) = mpsc::unbounded_channel();
        let left = Arc::new(Mutex::new(count));
        let without = Arc::new(Mutex::new(mailboxes.to_vec()));
        let commands = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&commands);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let without = Arc::clone(&without);
                tokio::spawn(converse(stream, sender.clone(), Arc::clone(&left), without, Arc::clone(&heard)));
            }
        });
        Self { address, mails, commands }
    }

    /// The next mail.
    pub async fn next(&mut self) -> Mail {
        timeout(PATIENCE, self.mails.recv()).await.expect("no mail was sent").unwrap()
    }

    /// Whether a mail came that was not yet asked for.
    pub fn has_more(&mut self) -> Option<Mail> {
        self.mails.try_recv().ok()
    }

    /// Everything that was said to it.
    pub fn heard(&self) -> Vec<String> {
        self.commands.lock().unwrap().clone()
    }
}

/// A mailbox that is refused, with which code and how often.
type Without = (&'static str, u16, usize);

async fn converse(
    stream: TcpStream,
    mails: mpsc::UnboundedSender<Mail>,
    put_off: Arc<Mutex<usize>>,
    without: Arc<Mutex<Vec<Without>>>,
    heard: Arc<Mutex<Vec<String>>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut mail = Mail::default();
    stream.get_mut().write_all(b"220 sink ESMTP\r\n").await.ok()?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let line = line.trim_end().to_owned();
        heard.lock().unwrap().push(line.clone());
        let verb = line.split([' ', ':']).next()?.to_uppercase();
        let answer = match verb.as_str() {
            "EHLO" | "HELO" => "250-sink\r\n250-8BITMIME\r\n250 AUTH PLAIN".to_owned(),
            "AUTH" => {
                mail.auth = line.split(' ').nth(2).map(str::to_owned);
                "235 welcome".to_owned()
            }
            "MAIL" => {
                let mut left = put_off.lock().unwrap();
                if *left > 0 {
                    *left -= 1;
                    "451 later".to_owned()
                } else {
                    mail.from = line;
                    "250 ok".to_owned()
                }
            }
            "RCPT" => {
                let mut without = without.lock().unwrap();
                match without.iter_mut().find(|(mailbox, _, left)| *left > 0 && line.contains(mailbox)) {
                    Some((_, code, left)) => {
                        *left -= 1;
                        format!("{code} not that one")
                    }
                    None => {
                        mail.to.push(line);
                        "250 ok".to_owned()
                    }
                }
            }
            "RSET" => {
                mail.to.clear();
                "250 ok".to_owned()
            }
            "DATA" => {
                stream.get_mut().write_all(b"354 go\r\n").await.ok()?;
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
                    if line == ".\r\n" {
                        break;
                    }
                    mail.text.push_str(&line);
                }
                let _ = mails.send(std::mem::take(&mut mail));
                "250 taken".to_owned()
            }
            "QUIT" => {
                stream.get_mut().write_all(b"221 bye\r\n").await.ok()?;
                return Some(());
            }
            _ => "250 ok".to_owned(),
        };
        stream.get_mut().write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
    }
}
