//! The sockets and streams that are open: who they belong to, how they are closed from outside, and the limits on
//! them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use super::auth::Refused;
use crate::stream::forwarder::Peer;

/// Why a socket is closed (`docs/protocol.md`, "Close codes").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// The code.
    pub code: u16,
    /// The `code` of the reason.
    pub word: &'static str,
    /// When to come back, in milliseconds.
    pub retry_ms: Option<u64>,
}

impl Closing {
    /// The server goes down.
    pub const fn draining(retry_ms: u64) -> Self {
        Self { code: 4001, word: "draining", retry_ms: Some(retry_ms) }
    }
    /// The rules of WebSockets were broken.
    pub const BROKEN: Self = Self { code: 1002, word: "broken_frame", retry_ms: None };
    /// Text that is not UTF-8.
    pub const NOT_TEXT: Self = Self { code: 1007, word: "not_utf8", retry_ms: None };
    /// A message that is not even read.
    pub const TOO_LARGE: Self = Self { code: 1009, word: "too_large", retry_ms: None };
    /// Took too little in too long.
    pub const SLOW: Self = Self { code: 4008, word: "too_slow", retry_ms: Some(1000) };
    /// Nothing was heard for too long.
    pub const NO_LIFE: Self = Self { code: 4012, word: "no_life", retry_ms: None };
    /// Said too much.
    pub const TOO_MANY: Self = Self { code: 4013, word: "too_many_requests", retry_ms: Some(5000) };
    /// There are too many sockets.
    pub const LIMIT: Self = Self { code: 4104, word: "connection_limit", retry_ms: Some(5000) };
    /// No credential, or a wrong one.
    pub const BAD_CREDENTIAL: Self = Self { code: 4500, word: "bad_credential", retry_ms: None };
    /// Too many frames that cannot be understood.
    pub const BAD_FRAMES: Self = Self { code: 4501, word: "bad_frames", retry_ms: None };
    /// Speaks another version.
    pub const PROTOCOL: Self = Self { code: 4502, word: "protocol", retry_ms: None };
    /// The credential was revoked or has expired.
    pub const EXPIRED: Self = Self { code: 4505, word: "expired", retry_ms: None };
    /// A newer socket of the same client took its place.
    pub const REPLACED: Self = Self { code: 4514, word: "replaced", retry_ms: None };

    /// What somebody is told who is not known.
    pub const fn of_refused(refused: Refused) -> Self {
        match refused {
            Refused::Unknown => Self::BAD_CREDENTIAL,
            Refused::Expired => Self::EXPIRED,
        }
    }

    /// The reason as it goes into the close frame: JSON, at most 123 bytes.
    pub fn reason(&self) -> String {
        match self.retry_ms {
            Some(retry_ms) => json!({ "code": self.word, "retry_ms": retry_ms }).to_string(),
            None => json!({ "code": self.word }).to_string(),
        }
    }
}

/// How many clients' last closes are remembered.
const REMEMBERED: usize = 1024;

/// How many sockets there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimits {
    /// In all.
    pub connections: usize,
    /// Of one credential.
    pub per_credential: usize,
    /// That have shown no credential yet.
    pub unauthenticated: usize,
}

/// One open socket or stream of events, as others see it.
#[derive(Debug)]
pub struct Handle {
    /// Wakes its task; also its number.
    pub peer: Arc<Peer>,
    /// Whose it is.
    credential: Arc<str>,
    attempt: u64,
    /// Whether it belongs to a client that has names for its sockets; a stream of events has none.
    named: bool,
    closing: Mutex<Option<Closing>>,
}

impl Handle {
    /// Asks the socket to close. The first reason counts.
    pub fn close(&self, closing: Closing) {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(closing);
        self.peer.wake.raise();
    }

    /// Why it should close, if it should.
    pub fn closing(&self) -> Option<Closing> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All open sockets.
#[derive(Debug)]
pub struct Hub {
    limits: SocketLimits,
    sockets: Mutex<Sockets>,
}

#[derive(Debug, Default)]
struct Sockets {
    last: u64,
    unauthenticated: usize,
    /// Those with a credential that have not said hello.
    expected: usize,
    /// Set while the server goes down: nobody enters any more.
    draining: bool,
    /// In the order of their coming: so they are told and woken.
    by_number: BTreeMap<u64, Arc<Handle>>,
    /// How many of those each credential has.
    of_credential: HashMap<Arc<str>, usize>,
    /// The newest socket of each client of each credential.
    by_client: HashMap<(Arc<str>, Arc<str>), u64>,
    last_closes: HashMap<(Arc<str>, Arc<str>), &'static str>,
    order: VecDeque<(Arc<str>, Arc<str>)>,
}

impl SocketLimits {
    /// Whether there is room for one more of a credential, once so many have left.
    fn check(&self, sockets: &Sockets, credential: &str, leave: usize) -> Result<(), Closing> {
        let same = sockets.of_credential.get(credential).copied().unwrap_or(0);
        let full = sockets.by_number.len() - leave >= self.connections || same - leave >= self.per_credential;
        if full { Err(Closing::LIMIT) } else { Ok(()) }
    }
}

impl Sockets {
    fn knocking(&mut self, is_known: bool) -> &mut usize {
        if is_known { &mut self.expected } else { &mut self.unauthenticated }
    }

    fn add(
        &mut self,
        credential: Arc<str>,
        user: Arc<str>,
        client: Arc<str>,
        attempt: u64,
        named: bool,
    ) -> Arc<Handle> {
        self.last += 1;
        let peer = Arc::new(Peer::new(self.last, user, client));
        *self.of_credential.entry(Arc::clone(&credential)).or_default() += 1;
        let handle = Arc::new(Handle { peer, credential, attempt, named, closing: Mutex::default() });
        self.by_number.insert(self.last, Arc::clone(&handle));
        handle
    }
}

/// A place among the sockets that have not said hello; given back when dropped.
#[derive(Debug)]
pub struct Knock {
    hub: Arc<Hub>,
    is_known: bool,
}

impl Drop for Knock {
    fn drop(&mut self) {
        *self.hub.sockets().knocking(self.is_known) -= 1;
    }
}

/// A socket's membership; it leaves when this is dropped.
#[derive(Debug)]
pub struct Member {
    hub: Arc<Hub>,
    /// The socket.
    pub handle: Arc<Handle>,
    /// Why this client was closed last, where known.
    pub last_close: Option<&'static str>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.handle.peer.close();
        self.hub.leave(&self.handle);
    }
}

impl Hub {
    /// No sockets.
    pub fn new(limits: SocketLimits) -> Arc<Self> {
        Arc::new(Self { limits, sockets: Mutex::default() })
    }

    /// A socket that has said nothing yet; `is_known` if it came with a good credential. Only who did not stands among
    /// the few that may be without one: a thousand that come back at once do not turn each other away.
    ///
    /// # Errors
    /// [`Closing::LIMIT`] when there are too many of them, [`Closing::draining`] when the server goes down.
    pub fn knock(self: &Arc<Self>, is_known: bool) -> Result<Knock, Closing> {
        let mut sockets = self.sockets();
        if sockets.draining {
            return Err(Closing::draining(1000));
        }
        // Beside those that are open: who comes back may take the place of its own older socket.
        let most = if is_known { self.limits.connections } else { self.limits.unauthenticated };
        let knocking = sockets.knocking(is_known);
        if *knocking >= most {
            return Err(Closing::LIMIT);
        }
        *knocking += 1;
        Ok(Knock { hub: Arc::clone(self), is_known })
    }

    /// A socket that said hello with a good credential. An older one of the same client is closed; when this is
    /// itself the older one, it is refused.
    ///
    /// # Errors
    /// The [`Closing`] to refuse it with.
    pub fn enter(
        self: &Arc<Self>,
        credential: Arc<str>,
        user: Arc<str>,
        client: Arc<str>,
        attempt: u64,
    ) -> Result<Member, Closing> {
        let mut sockets = self.sockets();
        if sockets.draining {
            return Err(Closing::draining(1000));
        }
        let key = (Arc::clone(&credential), Arc::clone(&client));
        let older = sockets.by_client.get(&key).and_then(|number| sockets.by_number.get(number)).cloned();
        if older.as_ref().is_some_and(|older| older.attempt > attempt) {
            return Err(Closing::REPLACED);
        }
        let leaves = usize::from(older.is_some());
        self.limits.check(&sockets, &credential, leaves)?;
        let handle = sockets.add(credential, user, client, attempt, true);
        let last_close = sockets.last_closes.get(&key).copied();
        sockets.by_client.insert(key, handle.peer.id);
        drop(sockets);
        if let Some(older) = older {
            older.close(Closing::REPLACED);
        }
        Ok(Member { hub: Arc::clone(self), handle, last_close })
    }

    /// A stream of events: it counts as a socket, but has no name by which it could take another's place.
    ///
    /// # Errors
    /// The [`Closing`] to refuse it with.
    pub fn enter_stream(self: &Arc<Self>, credential: Arc<str>, user: Arc<str>) -> Result<Member, Closing> {
        let mut sockets = self.sockets();
        if sockets.draining {
            return Err(Closing::draining(1000));
        }
        self.limits.check(&sockets, &credential, 0)?;
        let handle = sockets.add(credential, user, "events".into(), 0, false);
        drop(sockets);
        Ok(Member { hub: Arc::clone(self), handle, last_close: None })
    }

    fn leave(&self, handle: &Handle) {
        let mut sockets = self.sockets();
        sockets.by_number.remove(&handle.peer.id);
        if let Some(count) = sockets.of_credential.get_mut(&handle.credential) {
            *count -= 1;
            if *count == 0 {
                sockets.of_credential.remove(&handle.credential);
            }
        }
        if !handle.named {
            return;
        }
        let key = (Arc::clone(&handle.credential), Arc::clone(&handle.peer.client));
        // Only its own entry: a newer socket of the client stays (T-03).
        if sockets.by_client.get(&key) == Some(&handle.peer.id) {
            sockets.by_client.remove(&key);
        }
        if let Some(closing) = handle.closing() {
            if sockets.last_closes.insert(key.clone(), closing.word).is_none() {
                sockets.order.push_back(key);
            }
            if sockets.order.len() > REMEMBERED
                && let Some(oldest) = sockets.order.pop_front()
            {
                sockets.last_closes.remove(&oldest);
            }
        } else {
            // It went by itself: what was said to an earlier one is no longer the last.
            if sockets.last_closes.remove(&key).is_some() {
                sockets.order.retain(|known| *known != key);
            }
        }
    }

    /// Closes every socket of a credential.
    pub fn close_credential(&self, credential: &str, closing: &Closing) {
        for handle in self.all() {
            if &*handle.credential == credential {
                handle.close(closing.clone());
            }
        }
    }

    /// Lets nobody in any more; gives those that are in.
    pub fn start_draining(&self) -> Vec<Arc<Handle>> {
        self.sockets().draining = true;
        self.all()
    }

    /// Wakes every socket: there is a notice.
    pub fn wake_all(&self) {
        for handle in self.all() {
            handle.peer.wake.raise();
        }
    }

    /// How many sockets are open.
    pub fn count(&self) -> usize {
        self.sockets().by_number.len()
    }

    /// How many of them are sockets, and how many streams of events. O(open).
    pub fn count_by_kind(&self) -> (usize, usize) {
        let sockets = self.sockets();
        let named = sockets.by_number.values().filter(|handle| handle.named).count();
        (named, sockets.by_number.len() - named)
    }

    fn all(&self) -> Vec<Arc<Handle>> {
        self.sockets().by_number.values().cloned().collect()
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Sockets> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> Arc<Hub> {
        Hub::new(SocketLimits { connections: 3, per_credential: 2, unauthenticated: 1 })
    }

    fn enter(hub: &Arc<Hub>, credential: &str, client: &str, attempt: u64) -> Result<Member, Closing> {
        hub.enter(credential.into(), "u".into(), client.into(), attempt)
    }

    #[test]
    fn t_01_the_newest_wins_only_within_one_client() {
        let hub = hub();
        let first = enter(&hub, "a", "tab-1", 1).unwrap();
        let other = enter(&hub, "a", "tab-2", 1).unwrap();
        let second = enter(&hub, "a", "tab-1", 2).unwrap();
        assert_eq!(first.handle.closing(), Some(Closing::REPLACED));
        assert_eq!(other.handle.closing(), None);
        drop(first);
        assert_eq!(enter(&hub, "a", "tab-1", 1).unwrap_err(), Closing::REPLACED, "late and older: refused itself");
        assert_eq!(second.handle.closing(), None);
    }

    #[test]
    fn another_credential_cannot_close_a_client() {
        let hub = hub();
        let first = enter(&hub, "a", "tab-1", 1).unwrap();
        let _stranger = enter(&hub, "b", "tab-1", 9).unwrap();
        assert_eq!(first.handle.closing(), None);
    }

    #[test]
    fn limits_hold_and_places_are_given_back() {
        let hub = hub();
        let knock = hub.knock(false).unwrap();
        assert_eq!(hub.knock(false).unwrap_err(), Closing::LIMIT);
        let known = [hub.knock(true).unwrap(), hub.knock(true).unwrap(), hub.knock(true).unwrap()];
        assert_eq!(hub.knock(true).unwrap_err(), Closing::LIMIT, "who shows a credential has more room, not any");
        drop((knock, known));
        drop(hub.knock(false).unwrap());
        let _one = enter(&hub, "a", "1", 1).unwrap();
        let two = enter(&hub, "a", "2", 1).unwrap();
        assert_eq!(enter(&hub, "a", "3", 1).unwrap_err(), Closing::LIMIT);
        drop(two);
        assert!(enter(&hub, "a", "3", 1).is_ok());
    }

    #[test]
    fn a_client_is_told_why_it_was_closed_last() {
        let hub = hub();
        let first = enter(&hub, "a", "1", 1).unwrap();
        first.handle.close(Closing::SLOW);
        drop(first);
        assert_eq!(enter(&hub, "a", "1", 2).unwrap().last_close, Some("too_slow"));
    }

    #[test]
    fn every_reason_fits_into_a_close_frame() {
        for closing in [Closing::draining(u64::MAX), Closing::TOO_MANY, Closing::BAD_CREDENTIAL] {
            assert!(closing.reason().len() <= 123);
        }
    }
}
