//! What the process asks of the system: when to stop (on SIGTERM or Ctrl-C; a second one does not wait), and limits.

use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// Waits until the process is told to stop. From then on a second signal ends it at once.
///
/// # Errors
/// When the signals cannot be listened to.
pub async fn asked() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => info!("told to stop (SIGTERM)"),
        _ = interrupt.recv() => info!("told to stop (SIGINT)"),
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        warn!("told to stop again: ending at once");
        std::process::exit(130);
    });
    Ok(())
}

/// Lets a limit on the size of files read as a full disk instead of ending the process.
pub fn survive_file_limit() {
    // SIGXFSZ ends a process that writes past its limit; ignored, the write fails like on a full disk.
    #[expect(unsafe_code, reason = "setting a signal to be ignored has no handler that could be wrong")]
    // SAFETY: no handler runs; the disposition is set before any other thread cares for it.
    let result =
        unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGXFSZ, nix::sys::signal::SigHandler::SigIgn) };
    if let Err(error) = result {
        warn!(%error, "SIGXFSZ could not be ignored");
    }
}

/// Has all threads share two heaps. Each thread that may block would get one of its own, and what it gave back would
/// stay with it: memory that climbs with each busy moment, and is never needed again. Without effect where the C library
/// is not glibc.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "setting a parameter of malloc has nothing that could be wrong")]
        // SAFETY: it takes two numbers, and malloc takes its own lock to note them.
        let done = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 2) };
        if done == 0 {
            warn!("the number of heaps could not be set; the server needs more memory");
        }
    }
}

/// Gives back what the heaps hold and nobody uses: pieces that are free between others stay resident otherwise, a few
/// more with each hour. Takes about a millisecond, in which others wait for memory. Without effect where the C library
/// is not glibc.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "it touches nothing that is in use")]
        // SAFETY: it takes malloc's own locks.
        unsafe {
            nix::libc::malloc_trim(0);
        }
    }
}

/// Takes as many descriptors as the system gives: each watcher is one, and the usual 1,024 are few.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the limit on open files could not be raised");
    }
}
