//! `rejoin supervise`: the small process that stands over one command and answers for everything it starts.
//!
//! It has one thread and no runtime. Its standard input is a socket to the server, its standard output and error are
//! the pipes of the command. It is the subreaper of the command's tree: a grandchild that leaves its session and
//! loses its parent falls to the supervisor and never out of the tree. The tree is therefore over exactly when the
//! supervisor has no child left. When the socket closes, because the server stopped caring or was killed, the tree
//! is ended.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt};

use super::process::tree::{self, Process};
use super::process::wire::{self, Left, Order, Report};

/// How long leftovers have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How soon a killed tree is looked at again; each child that ends wakes us earlier. Doubled each time, because what
/// is still there then cannot be killed (uninterruptible, or another user's), up to the longest.
const KILL_AGAIN: Duration = Duration::from_millis(20);
const KILL_AGAIN_MAX: Duration = Duration::from_secs(2);

/// What the hidden subcommand does. To be called before any thread or runtime exists.
///
/// The exit code is 0 once nothing is left of the tree, 2 if this was not started by a server, else 1.
pub fn main() -> ExitCode {
    let input = io::stdin();
    if getsockopt(&input, sockopt::SockType).is_err() {
        eprintln!("rejoin supervise: only the server starts this, to stand over one command");
        return ExitCode::from(2);
    }
    match Supervisor::begin().and_then(|mut supervisor| supervisor.stand()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the command's until it runs, so this line is seen with its output.
            eprintln!("rejoin supervise: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Supervisor {
    /// To the server; `None` once it is closed.
    control: Option<UnixStream>,
    /// What came over `control` and is no whole line yet.
    incoming: Vec<u8>,
    /// Tells of children that ended, and of signals to ourselves.
    signals: SignalFd,
    /// The shell, until it was reaped.
    command: Option<i32>,
    /// It was there, and was reaped.
    ended: bool,
    /// A stop has begun: its stages come from the server, and what the shell leaves behind has until they do.
    stopping: bool,
    /// The tree is being ended; at this moment by SIGKILL, and again and again.
    kill_from: Option<Instant>,
    /// That moment has come once.
    killing: bool,
    /// The pause until it is killed again.
    kill_again: Duration,
}

impl Supervisor {
    fn begin() -> Result<Self> {
        restore_signals()?;
        // A session of our own: a Ctrl-C for the server is not for the command, and there is no terminal to ask on.
        // It fails only for the leader of a group, which needs none.
        let _ = nix::unistd::setsid();
        let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        nix::unistd::dup2_stdin(null()?)?;
        close_on_exec()?;
        nix::sys::prctl::set_name(c"rejoin-superv").context("cannot take a name")?;
        nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
        // Nothing of ours shall keep a file system busy.
        let _ = std::env::set_current_dir("/");

        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_set_mask()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags)?;
        let control = Some(control);
        Ok(Self {
            control,
            incoming: Vec::new(),
            signals,
            command: None,
            ended: false,
            stopping: false,
            kill_from: None,
            killing: false,
            kill_again: KILL_AGAIN,
        })
    }

    fn stand(&mut self) -> Result<()> {
        let pid = std::process::id().cast_signed();
        let me = Process::look(pid).context("cannot read /proc/self/stat")?;
        self.report(&Report::Ready { pid, start_ticks: me.start_ticks });
        loop {
            let childless = self.reap();
            if childless && (self.ended || self.control.is_none() || self.kill_from.is_some()) {
                self.report(&Report::Gone);
                return Ok(());
            }
            if self.kill_from.is_some_and(|from| Instant::now() >= from) {
                tree::kill_all(&mut below_us);
                self.killing = true;
                self.kill_from = Some(Instant::now() + self.kill_again);
                self.kill_again = (self.kill_again * 2).min(KILL_AGAIN_MAX);
            }
            let (readable, signalled) = self.wait()?;
            if signalled {
                self.take_signals()?;
            }
            if readable {
                self.take_orders()?;
            }
        }
    }

    /// Waits until the server speaks, a child ends, or it is time to kill.
    fn wait(&self) -> Result<(bool, bool)> {
        let timeout = match self.kill_from {
            None => PollTimeout::NONE,
            Some(from) => {
                // Rounded up to the next millisecond, so that it does not wake a moment too early.
                let rest = from.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(control) = &self.control {
            fds.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
        let ready = |fd: Option<&PollFd<'_>>| fd.and_then(PollFd::any).unwrap_or(false);
        Ok((ready(fds.get(1)), ready(fds.first())))
    }

    /// Takes what ended off the process table. True when there is no child left, and so no descendant.
    fn reap(&mut self) -> bool {
        loop {
            let mut status = 0;
            // The raw call, because a command may end by a signal that has no name (a real-time one).
            // SAFETY: `status` is a valid place for the status; no other thread waits for children.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
            match pid {
                0 => return false,
                -1 if Errno::last() == Errno::EINTR => {}
                -1 => return true,
                _ => self.strike_again(),
            }
            if Some(pid) == self.command {
                self.command = None;
                let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
                let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
                self.ended = true;
                self.report(&Report::Exited { code, signal });
                if !self.stopping {
                    self.end_tree();
                }
            }
        }
    }

    /// A child of a tree that is being killed has ended: if it left another behind in its last moment, that one is
    /// young now, and easier to catch than later.
    fn strike_again(&mut self) {
        if self.killing {
            self.kill_from = Some(Instant::now());
            self.kill_again = KILL_AGAIN;
        }
    }

    /// SIGTERM now, SIGKILL after the grace: for what a command leaves behind by itself, and where nobody is there to
    /// end the tree in stages. What is being ended so already is left to it.
    fn end_tree(&mut self) {
        if self.kill_from.is_none() {
            self.kill_from = Some(Instant::now() + GRACE);
            tree::signal_all(&mut below_us, Signal::SIGTERM);
        }
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            // A child that ended is seen by `reap`; any other is someone asking us to go, and we go with the tree.
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                self.end_tree();
            }
        }
        Ok(())
    }

    fn take_orders(&mut self) -> Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        let mut chunk = vec![0; 64 * 1024];
        match control.read(&mut chunk) {
            Ok(0) => self.lose_server(),
            Ok(n) => self.incoming.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.lose_server(),
        }
        if self.incoming.len() > wire::MAX_LINE {
            bail!("the server's order is too long");
        }
        while let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.incoming.drain(..=end).collect();
            // Our own program wrote this; if it cannot be read, ending the tree is the only safe answer.
            match serde_json::from_slice(&line) {
                Ok(order) => self.obey(order)?,
                Err(_) => self.lose_server(),
            }
        }
        Ok(())
    }

    fn lose_server(&mut self) {
        self.control = None;
        self.incoming.clear();
        self.end_tree();
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Start { command, env, cwd } => return self.start(&command, env, &cwd),
            Order::List => self.report(&Report::Left(left())),
            Order::Signal(number) => {
                self.stopping = true;
                match Signal::try_from(number) {
                    // From here on again and again, until nothing is left.
                    Ok(Signal::SIGKILL) => {
                        self.kill_from = Some(Instant::now());
                        self.kill_again = KILL_AGAIN;
                    }
                    Ok(signal) => tree::signal_all(&mut below_us, signal),
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, text: &str, env: Vec<(OsString, OsString)>, cwd: &OsString) -> Result<()> {
        if self.command.is_some() || self.kill_from.is_some() {
            return Ok(());
        }
        let mut shell = Command::new("/bin/sh");
        // Standard output and error are inherited.
        shell.arg("-c").arg(text).env_clear().envs(env).current_dir(cwd);
        shell.stdin(Stdio::null()).process_group(0);
        // SAFETY: between fork and exec only a system call on a value of the stack is made.
        unsafe {
            // What we block to read it from a descriptor, the command shall take.
            shell.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?));
        }
        match shell.spawn() {
            Ok(child) => {
                let pid = child.id().cast_signed();
                self.command = Some(pid);
                self.report(&Report::Started { pid });
            }
            Err(error) => {
                let place = cwd.to_string_lossy();
                self.report(&Report::Refused(format!("cannot start /bin/sh in {place}: {error}")));
                self.lose_server();
            }
        }
        // The pipes shall end when the command and its children let go of them, not when we do.
        nix::unistd::dup2_stdout(null()?)?;
        nix::unistd::dup2_stderr(null()?)?;
        Ok(())
    }

    /// Tells the server. If that fails the server is gone, which the next read will show.
    fn report(&mut self, report: &Report) {
        if let (Some(control), Ok(line)) = (&mut self.control, wire::line(report)) {
            let _ = control.write_all(&line);
        }
    }
}

/// Shows everything that descends from this process.
fn below_us(visit: &mut dyn FnMut(&Process)) {
    tree::walk(std::process::id().cast_signed(), visit);
}

fn left() -> Vec<Left> {
    let mut left = Vec::new();
    below_us(&mut |process| {
        if left.len() < wire::MAX_LEFT && !process.is_over() {
            left.push(Left { pid: process.pid, name: process.name.clone(), state: process.state });
        }
    });
    left
}

fn null() -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")
}

/// What the server was started with (`nohup`, a shell's `&`) shall not decide which signals a command takes.
fn restore_signals() -> Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        // SIGPIPE: a server that is gone is an error of ours and not our end; the library restores it for children.
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGPIPE) {
            continue;
        }
        // SAFETY: the default action runs no code of ours.
        unsafe { sigaction(signal, &default) }.with_context(|| format!("cannot restore {signal}"))?;
    }
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: as above.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(())
}

/// Whatever the server has inherited from its own parent does not go on to the command.
fn close_on_exec() -> Result<()> {
    let fds: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in fds {
        // SAFETY: only flags are set, on a number that was open a moment ago; for one that is closed by now (the
        // listing's own) the call fails and changes nothing.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
    Ok(())
}
