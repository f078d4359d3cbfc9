//! Who may come in: the token of the data folder, one-time codes, and the cookies they are exchanged for.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, params};
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use crate::config::trust::{Untrusted, trusted};
use crate::record::wire_time;
use crate::store::{Store, StoreError};
use crate::stream::publish::Publisher;

/// How many codes may wait to be used.
const MAX_CODES: usize = 32;
/// How many devices are kept; the one seen longest ago goes.
const MAX_DEVICES: usize = 64;
/// How often the time a device was last seen is written down.
const SEEN_EVERY: SignedDuration = SignedDuration::from_mins(10);

/// Someone who is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What it is revoked by: `token`, or the device's id.
    pub id: Arc<str>,
    /// The name in log lines.
    pub user: Arc<str>,
    /// How it came.
    pub kind: Kind,
}

/// Why nobody is known by what was shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It is no credential, or one that was revoked.
    Unknown,
    /// It was one, for as long as it was good.
    Expired,
}

/// How a credential came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// In a header.
    Token,
    /// In a cookie.
    Cookie,
}

/// A browser that is signed in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// What it is revoked by.
    pub id: String,
    /// What it said it is.
    pub name: String,
    /// When it signed in.
    #[serde(with = "wire_time")]
    pub created_at: Timestamp,
    /// When it was last seen, to ten minutes.
    #[serde(with = "wire_time")]
    pub last_seen: Timestamp,
}

#[derive(Clone, Debug)]
struct Known {
    device: Device,
    expires: Timestamp,
    /// Whether it was told that it has expired.
    ended: bool,
}

/// A token of which only the hash is kept.
pub struct Hashed([u8; 32]);

impl std::fmt::Debug for Hashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hashed")
    }
}

impl Hashed {
    /// The hash of a token.
    pub fn of(token: &str) -> Self {
        Self(hash(token))
    }

    /// Whether it is this one. Compared as hashes of one length, in a time that does not tell how far they agree.
    pub fn is(&self, token: &str) -> bool {
        hash(token).ct_eq(&self.0).into()
    }
}

/// Knows who may come in.
pub struct Authority {
    token: Hashed,
    devices: Mutex<HashMap<[u8; 32], Known>>,
    codes: Mutex<Vec<([u8; 32], Instant)>>,
    publisher: Publisher,
    session: SignedDuration,
    code_life: Duration,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

fn secret<const N: usize>() -> String {
    let mut bytes = [0_u8; N];
    rand::fill(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The token of the data folder; made at first start, 256 bits, readable by this user only.
///
/// # Errors
/// When it cannot be made or read, when others may read it, or when it is somebody else's.
pub fn token(dir: &Path) -> Result<String> {
    token_in(&dir.join("token"))
}

/// The token that is good for reading metrics and for nothing else; made likewise.
///
/// # Errors
/// As for [`token`].
pub fn metrics_token(dir: &Path) -> Result<String> {
    token_in(&dir.join("metrics-token"))
}

fn token_in(path: &Path) -> Result<String> {
    use std::os::unix::fs::PermissionsExt;
    let failed = || format!("cannot use {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let token = secret::<32>();
            file.write_all(token.as_bytes()).with_context(failed)?;
            return Ok(token);
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(failed),
    }
    let looked = trusted(path);
    if let Err(Untrusted::Owner { path: whose, owner, .. }) = &looked
        && whose == path
    {
        let path = path.display();
        bail!("{path} belongs to {owner}, who knows the token in it: rm '{path}', and start again to have one made");
    }
    let mode = std::fs::metadata(path).with_context(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        bail!(
            "{} can be read by others: chmod 600 it, and replace the token if others may have read it (delete the file and start again)",
            path.display()
        );
    }
    looked.with_context(failed)?;
    let token = std::fs::read_to_string(path).with_context(failed)?.trim().to_owned();
    if token.len() < 32 {
        bail!(
            "{} holds no token of at least 32 characters: delete the file and start again to have one made",
            path.display()
        );
    }
    Ok(token)
}

impl Authority {
    /// Knows the token and the devices of the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn load(
        token: &str,
        store: &Arc<Store>,
        publisher: Publisher,
        session_days: u32,
        code_life: Duration,
    ) -> Result<Self, StoreError> {
        let devices = store.read(read_devices).await?;
        Ok(Self {
            token: Hashed::of(token),
            devices: Mutex::new(devices),
            codes: Mutex::default(),
            publisher,
            session: SignedDuration::from_hours(24 * i64::from(session_days)),
            code_life,
        })
    }

    /// Who has this token, if it is one.
    pub fn by_token(&self, token: &str) -> Option<Credential> {
        self.token.is(token).then(|| Credential { id: "token".into(), user: "admin".into(), kind: Kind::Token })
    }

    /// Who has this cookie.
    ///
    /// # Errors
    /// When it is none, or is no longer good.
    pub fn by_cookie(&self, cookie: &str) -> Result<Credential, Refused> {
        let now = self.publisher.clock().now();
        let key = hash(cookie);
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let known = devices.get_mut(&key).ok_or(Refused::Unknown)?;
        if known.expires <= now {
            return Err(Refused::Expired);
        }
        let credential = Credential { id: known.device.id.as_str().into(), user: "admin".into(), kind: Kind::Cookie };
        if now.duration_since(known.device.last_seen) >= SEEN_EVERY {
            known.device.last_seen = now;
            known.expires = now + self.session;
            self.write_seen(&known.device.id, now, known.expires);
        }
        Ok(credential)
    }

    /// Whether somebody who was known is still known. Asked once more by whoever has entered the sockets: it may
    /// have been signed out between its credential and its entry.
    ///
    /// # Errors
    /// When it was signed out, or its time is over.
    pub fn stands(&self, credential: &Credential) -> Result<(), Refused> {
        if credential.kind == Kind::Token {
            return Ok(());
        }
        let now = self.publisher.clock().now();
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        match devices.values().find(|known| *known.device.id == *credential.id) {
            None => Err(Refused::Unknown),
            Some(known) if known.expires <= now => Err(Refused::Expired),
            Some(_) => Ok(()),
        }
    }

    /// The devices whose time has run out since this was last asked.
    pub fn expired(&self) -> Vec<String> {
        let now = self.publisher.clock().now();
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let over = devices.values_mut().filter(|known| known.expires <= now && !known.ended);
        over.map(|known| {
            known.ended = true;
            known.device.id.clone()
        })
        .collect()
    }

    fn write_seen(&self, id: &str, now: Timestamp, expires: Timestamp) {
        let (publisher, id) = (self.publisher.clone(), id.to_owned());
        tokio::spawn(async move {
            let act = move |connection: &Connection| -> Result<_, StoreError> {
                connection.execute(
                    "UPDATE devices SET seen = ?2, expires = ?3 WHERE id = ?1",
                    params![id, now.as_microsecond(), expires.as_microsecond()],
                )?;
                Ok(((), Vec::new()))
            };
            // Not written: seen again in ten minutes.
            let _ = publisher.transact(act).await;
        });
    }

    /// A code that can be exchanged once, for a short while: 128 bits.
    pub fn make_code(&self) -> String {
        let code = secret::<16>();
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        codes.retain(|(_, until)| *until > now);
        if codes.len() >= MAX_CODES {
            codes.remove(0);
        }
        codes.push((hash(&code), now + self.code_life));
        code
    }

    /// How long a code is good.
    pub fn code_life(&self) -> Duration {
        self.code_life
    }

    /// Uses a code up, and says until when it would have been good. None when it is none, or was used, or is too old.
    pub fn use_code(&self, code: &str) -> Option<Instant> {
        let key = hash(code);
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        codes.retain(|(_, until)| *until > now);
        let found = codes.iter().position(|(other, _)| bool::from(other.ct_eq(&key)));
        found.map(|index| codes.remove(index).1)
    }

    /// A code that was used for nothing, because the store could not be written, is good again for what is left.
    pub fn give_code_back(&self, code: &str, until: Instant) {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner).push((hash(code), until));
    }

    /// Signs a browser in; gives its cookie and how long that is good.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn sign_in(&self, name: &str) -> Result<(String, SignedDuration), StoreError> {
        let cookie = secret::<32>();
        let key = hash(&cookie);
        let now = self.publisher.clock().now();
        let name: String = name.chars().filter(|c| !c.is_control()).take(120).collect();
        let device = Device { id: uuid::Uuid::new_v4().to_string(), name, created_at: now, last_seen: now };
        let expires = now + self.session;
        let row = device.clone();
        // Kept for as long again: who comes back with it is told that it has expired, and not that it is none.
        let forgotten = now.checked_sub(self.session).unwrap_or(Timestamp::MIN);
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            connection.execute(
                "INSERT INTO devices (id, hash, name, created, seen, expires) VALUES (?1, ?2, ?3, ?4, ?4, ?5)",
                params![row.id, key.as_slice(), row.name, now.as_microsecond(), expires.as_microsecond()],
            )?;
            connection.execute(
                "DELETE FROM devices WHERE expires <= ?1 OR id IN
                   (SELECT id FROM devices ORDER BY seen DESC LIMIT -1 OFFSET ?2)",
                params![forgotten.as_microsecond(), MAX_DEVICES as i64],
            )?;
            Ok((read_devices(connection)?, Vec::new()))
        };
        let (stored, _) = self.publisher.transact(act).await?;
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        // By difference: one that was revoked since the store was read does not come back.
        devices.retain(|hash, _| stored.contains_key(hash));
        devices.insert(key, Known { device, expires, ended: false });
        drop(devices);
        Ok((cookie, self.session))
    }

    /// The browsers that are signed in, the newest first.
    pub fn devices(&self) -> Vec<Device> {
        let now = self.publisher.clock().now();
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let good = devices.values().filter(|known| known.expires > now);
        let mut all: Vec<Device> = good.map(|known| known.device.clone()).collect();
        all.sort_by_key(|device| std::cmp::Reverse(device.created_at));
        all
    }

    /// Signs a browser out. False when there is no such device.
    ///
    /// # Errors
    /// When the store cannot be written; it is signed out all the same until the next start.
    pub async fn revoke(&self, id: &str) -> Result<bool, StoreError> {
        let found = {
            let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
            let before = devices.len();
            devices.retain(|_, known| known.device.id != id);
            devices.len() < before
        };
        let id = id.to_owned();
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            connection.execute("DELETE FROM devices WHERE id = ?1", [id])?;
            Ok(((), Vec::new()))
        };
        self.publisher.transact(act).await?;
        Ok(found)
    }
}

fn read_devices(connection: &Connection) -> rusqlite::Result<HashMap<[u8; 32], Known>> {
    let time = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default();
    let mut statement = connection.prepare_cached("SELECT hash, id, name, created, seen, expires FROM devices")?;
    let rows = statement.query_map([], |row| {
        let hash: Option<[u8; 32]> = row.get_ref(0)?.as_blob()?.try_into().ok();
        let device =
            Device { id: row.get(1)?, name: row.get(2)?, created_at: time(row.get(3)?), last_seen: time(row.get(4)?) };
        Ok(hash.zip(Some(Known { device, expires: time(row.get(5)?), ended: false })))
    })?;
    rows.filter_map(Result::transpose).collect()
}
