//! The server that is measured: the release binary in a process of its own, mostly on a core of its own, with fresh data.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::process::Times;

/// The core of the server; the load client has the other.
pub const SERVER_CORE: usize = 0;
/// The core of the load client.
pub const CLIENT_CORE: usize = 1;

/// Every socket of the load client shows the same token. What is set here, and what a scenario adds, is the only thing
/// that is not as shipped.
const CONFIG: &str = "[stream]\nconnections_per_credential = 10_000\n";

/// What a server may run on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cores {
    /// One, which the load client does not have.
    Own,
    /// All of them, as whoever installs it would have it: where the load client only looks now and then.
    All,
}

impl Cores {
    /// As `taskset` takes them.
    fn list(self) -> Result<String> {
        match self {
            Self::Own => Ok(SERVER_CORE.to_string()),
            Self::All => Ok(std::fs::read_to_string("/sys/devices/system/cpu/online")?.trim().to_owned()),
        }
    }
}

/// One server with its data.
pub struct Server {
    child: Child,
    home: TempDir,
    program: PathBuf,
    config: String,
    cores: Cores,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its credential.
    pub token: String,
}

/// Keeps this process off the core of servers that have one of their own.
///
/// # Errors
/// When `taskset` cannot be run.
pub fn pin_client() -> Result<()> {
    let pid = std::process::id().to_string();
    let pinned =
        Command::new("taskset").args(["-pc", &CLIENT_CORE.to_string(), &pid]).stdout(Stdio::null()).status()?;
    ensure!(pinned.success(), "the load client could not be pinned to core {CLIENT_CORE}: {pinned}");
    Ok(())
}

impl Server {
    /// Starts one with these task files; ready once it listens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: &Path, under: &Path, tasks: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        Self::start_with(program, under, tasks, "", Cores::Own)
    }

    /// The same with more in its `config.toml`, and on these cores.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with(
        program: &Path,
        under: &Path,
        tasks: impl IntoIterator<Item = (String, String)>,
        config: &str,
        cores: Cores,
    ) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("bench-").tempdir_in(under)?;
        let folder = home.path().join("tasks");
        std::fs::create_dir(&folder)?;
        for (id, text) in tasks {
            std::fs::write(folder.join(format!("{id}.toml")), text)?;
        }
        let config = format!("{CONFIG}{config}");
        let (child, address) = spawn(program, home.path(), "127.0.0.1:0", &config, cores)?;
        let token = std::fs::read_to_string(home.path().join("data/token"))?.trim().to_owned();
        Ok(Self { child, home, program: program.to_owned(), config, cores, address, token })
    }

    /// The folder of its configuration; its data is in `data`, its task files are in `tasks`.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`; waits until it is gone.
    ///
    /// # Errors
    /// The system's.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again over the same data at the same address; gives how long that took.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let address = self.address.to_string();
        let (child, address) = spawn(&self.program, self.home.path(), &address, &self.config, self.cores)?;
        ensure!(address == self.address, "it listens elsewhere: {address}");
        self.child = child;
        Ok(started.elapsed())
    }

    /// The processor time it has used so far, in user and system mode.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let ticks = Times::read(&Path::new("/proc").join(self.pid().to_string()))?.own;
        // USER_HZ is 100 on every Linux that Rust runs on.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// A field of its memory, in bytes.
    fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kib * 1024)
    }

    /// What it has in memory now, in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS")
    }

    /// The most it had in memory since [`Server::forget_peak`], in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak(&self) -> Result<u64> {
        self.memory("VmHWM")
    }

    /// Lets the peak begin anew.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn forget_peak(&self) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn spawn(program: &Path, home: &Path, listen: &str, more: &str, cores: Cores) -> Result<(Child, SocketAddr)> {
    let mut config = format!("listen = \"{listen}\"\ndata_dir = \"data\"\ntasks_dir = \"tasks\"\n");
    let _ = write!(config, "{more}");
    let path = home.join("config.toml");
    std::fs::write(&path, config)?;
    let log = std::fs::File::options().create(true).append(true).open(home.join("log"))?;
    let mut child = Command::new("taskset")
        .args(["-c", &cores.list()?])
        .arg(program)
        .arg("--config")
        .arg(&path)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("taskset (util-linux) is needed to give the server a core of its own")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(';').next()).map(str::trim);
    match address.map(str::parse) {
        Some(Ok(address)) => Ok((child, address)),
        _ => {
            let _ = child.kill();
            let _ = child.wait();
            let log = std::fs::read_to_string(home.join("log")).unwrap_or_default();
            anyhow::bail!("the server did not start: {line}{log}")
        }
    }
}
