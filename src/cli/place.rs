//! Which server is meant: an address, or the socket of a data folder.

#![expect(rustdoc::bare_urls, reason = "help texts show addresses as people type them")]

use std::fmt;
use std::path::{Path, PathBuf};

use super::failure::{Failure, Result};

/// The name of the socket within the data folder.
const SOCKET: &str = "rejoin.sock";

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine, at the socket of this data folder.
    Data(PathBuf),
    /// At an address.
    Url(reqwest::Url),
}

/// What the command line says about it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Where {
    /// The server's address, such as https://tasks.example.org (or REJOIN_SERVER, with REJOIN_TOKEN)
    #[arg(long, global = true, value_name = "URL", help_heading = "Which server")]
    pub server: Option<String>,
    /// The data folder of a server on this machine; its socket is used
    #[arg(long, global = true, value_name = "DIR", help_heading = "Which server")]
    pub data_dir: Option<PathBuf>,
    /// The server's config.toml, which names the data folder
    #[arg(long, global = true, value_name = "FILE", help_heading = "Which server")]
    pub config: Option<PathBuf>,
}

impl Where {
    /// What a command must say to mean the same server, for advice on what to type next.
    pub fn flags(&self) -> String {
        let mut flags = String::new();
        if let Some(url) = &self.server {
            flags.push_str(&format!(" --server {url}"));
        } else if let Some(folder) = &self.data_dir {
            flags.push_str(&format!(" --data-dir {}", folder.display()));
        } else if let Some(file) = &self.config {
            flags.push_str(&format!(" --config {}", file.display()));
        }
        flags
    }

    /// Finds the place: what the command line names wins over the environment, an address over a folder.
    ///
    /// # Errors
    /// A bad address, or a config file that was named and cannot be read.
    pub fn find(&self) -> Result<Place> {
        let from_environment = || std::env::var("REJOIN_SERVER").ok().filter(|url| !url.is_empty());
        let named_here = self.data_dir.is_some() || self.config.is_some();
        if let Some(url) = self.server.clone().or_else(|| from_environment().filter(|_| !named_here)) {
            return address(&url).map(Place::Url);
        }
        if let Some(folder) = &self.data_dir {
            return Ok(Place::Data(folder.clone()));
        }
        match &self.config {
            Some(file) => data_dir(file, true),
            None => data_dir(Path::new("config.toml"), false),
        }
        .map(Place::Data)
    }
}

/// The data folder that a config file names; `data` beside it where it names none.
fn data_dir(config: &Path, named: bool) -> Result<PathBuf> {
    let folder = config.parent().unwrap_or(Path::new(""));
    if let Some(data) = std::env::var_os("REJOIN__DATA_DIR").filter(|data| !data.is_empty()) {
        return Ok(folder.join(data));
    }
    let text = match std::fs::read_to_string(config) {
        Ok(text) => text,
        Err(_) if !named => return Ok(folder.join("data")),
        Err(error) => return Err(Failure::Usage(format!("cannot read {}: {error}", config.display()))),
    };
    let table: toml::Table = text.parse().map_err(|error| Failure::Usage(format!("{}: {error}", config.display())))?;
    Ok(folder.join(table.get("data_dir").and_then(toml::Value::as_str).unwrap_or("data")))
}

/// Checks an address. Plain HTTP leaves this machine for nobody: the token would be readable on the way.
fn address(text: &str) -> Result<reqwest::Url> {
    let usage = |why: String| Failure::Usage(format!("{text:?} is no address of a server: {why}"));
    let mut url = reqwest::Url::parse(text).map_err(|error| usage(error.to_string()))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(usage("the token belongs into REJOIN_TOKEN, not into the address".into()));
    }
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(&url) => {}
        "http" => {
            return Err(Failure::NotAllowed(format!(
                "Plain HTTP to {} is refused: the token and all output would be readable on the way. Use https://, \
                 or an SSH tunnel to the server's 127.0.0.1.",
                url.host_str().unwrap_or_default(),
            )));
        }
        _ => return Err(usage("it begins with https:// (or http:// for this machine)".into())),
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Place {
    /// The socket, where the place is a data folder.
    pub fn socket(&self) -> Option<PathBuf> {
        match self {
            Self::Data(folder) => Some(folder.join(SOCKET)),
            Self::Url(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(folder) => folder.join(SOCKET).display().fmt(f),
            Self::Url(url) => url.as_str().trim_end_matches('/').fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_refused_off_this_machine_and_says_why() {
        let failure = address("http://192.168.1.5:7171").unwrap_err();
        assert_eq!(failure.code(), 5);
        assert!(failure.to_string().contains("readable on the way"), "{failure}");
        for here in ["http://127.0.0.1:7171", "http://localhost:7171", "http://[::1]:7171"] {
            assert!(address(here).is_ok(), "{here}");
        }
        assert!(address("http://localhost.example.org").is_err());
        assert!(address("https://192.168.1.5:7171").is_ok());
    }

    #[test]
    fn a_password_in_the_address_is_refused() {
        assert_eq!(address("https://me:secret@example.org").unwrap_err().code(), 2);
    }

    #[test]
    fn the_data_folder_is_relative_to_the_config_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        assert!(data_dir(&config, true).is_err());
        assert_eq!(data_dir(&config, false).unwrap(), folder.path().join("data"));
        std::fs::write(&config, "data_dir = \"state\"").unwrap();
        assert_eq!(data_dir(&config, true).unwrap(), folder.path().join("state"));
    }

    #[test]
    fn the_command_line_wins_over_the_config_file() {
        let named = Where { server: None, data_dir: Some("elsewhere".into()), config: Some("none.toml".into()) };
        assert_eq!(named.find().unwrap(), Place::Data("elsewhere".into()));
        let both = Where { server: Some("https://example.org/".into()), ..named };
        assert!(matches!(both.find().unwrap(), Place::Url(_)));
    }
}
