//! `rejoin serve`.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;

use super::failure::{Failure, Result};
use super::place::Where;
use crate::config::Config;

/// How long a thread that may block is kept for the next one who needs it: those of a busy moment go with it.
const SPARE_THREADS: Duration = Duration::from_secs(1);
/// How long threads that read or write files may take when all else has ended.
const LAST_THREADS: Duration = Duration::from_secs(2);

/// Reads the configuration, puts the command line over it, and runs the server until it is told to stop.
pub fn serve(place: &Where, listen: Option<SocketAddr>) -> Result<()> {
    if place.server.is_some() {
        return Err(Failure::Usage("serve starts a server here; --server names another one".into()));
    }
    let mut config = Config::load(place.config.as_deref()).map_err(|error| Failure::Usage(error.to_string()))?;
    if let Some(listen) = listen {
        config.listen = listen;
    }
    if let Some(folder) = &place.data_dir {
        config.data_dir.clone_from(folder);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(SPARE_THREADS)
        .build()
        .context("cannot start the server's threads")?;
    let served = runtime.block_on(crate::server::serve(config));
    // All that matters has ended in order. A thread that waits for a file system that does not answer would be
    // waited for as long.
    runtime.shutdown_timeout(LAST_THREADS);
    Ok(served?)
}
