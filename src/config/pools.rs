//! `[pools]`: names and sizes, as `config.toml` and the environment give them.

use std::fmt;

use serde::Deserialize;

/// The most places of a pool.
const MOST: i64 = 100_000;
/// The server's own places are shown under this name.
const RESERVED: &str = "all";
/// The longest name, as long as the id of a task.
const LONGEST: usize = 64;

/// The name of a pool, as tasks say it: `concurrency = "NAME"`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct PoolName(String);

impl PoolName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PoolName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        if name.is_empty() || name.len() > LONGEST || !name.bytes().all(good) {
            return Err(format!("{name:?} is not the name of a pool: use 1 to {LONGEST} of a-z, 0-9, '_' and '-'"));
        }
        if name == RESERVED {
            return Err(format!("{name:?} stands for all places together: set them with runs.concurrency"));
        }
        Ok(Self(name))
    }
}

/// How many runs of a pool are at work at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "i64")]
pub struct PoolSize(usize);

impl PoolSize {
    /// As a number, above nothing.
    pub const fn get(self) -> usize {
        self.0
    }
}

impl TryFrom<i64> for PoolSize {
    type Error = String;

    fn try_from(size: i64) -> Result<Self, String> {
        match usize::try_from(size) {
            Ok(places) if (1..=MOST).contains(&size) => Ok(Self(places)),
            _ => Err(format!("{size} is not a number of places from 1 to {MOST}")),
        }
    }
}
