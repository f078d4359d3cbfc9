//! `rejoin serve`.

use std::net::SocketAddr;

use anyhow::Context as _;

use super::failure::{Failure, Result};
use super::place::Where;
use crate::config::Config;

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
    let runtime = tokio::runtime::Runtime::new().context("cannot start the server's threads")?;
    runtime.block_on(crate::server::serve(config))?;
    Ok(())
}
