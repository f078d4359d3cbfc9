//! Calls that the server makes for others: only to addresses that were looked at before.
//!
//! A name is resolved once, its addresses are checked, and the connection goes to exactly a checked one. So a name
//! that means another address a moment later changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Once;
use std::time::Duration;

use reqwest::{Client, Url, redirect};

/// How long resolving and connecting may take, each.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// An address without user, password and query, where keys often stand.
pub fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// Why a call failed, in one line, without the address.
pub fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}

/// A client that can reach one checked address and nothing else.
///
/// # Errors
/// Why the address is not called.
pub async fn client(url: &Url, allow_hosts: &[String], own_port: Option<u16>) -> Result<Client, String> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error means that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{} is neither http nor https", shown(url)));
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err("the url names no host".to_owned());
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = address(bare, port, allow_hosts, own_port).await?;
    Client::builder()
        // A proxy of the environment would do the resolving, unchecked.
        .no_proxy()
        .redirect(redirect::Policy::none())
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .user_agent(concat!("rejoin/", env!("CARGO_PKG_VERSION")))
        .resolve(bare, address)
        .build()
        .map_err(|error| format!("no HTTP client: {}", causes(error)))
}

/// The address under which a host may be reached: the first that is allowed.
///
/// # Errors
/// Why none is, and what to do about it.
pub async fn address(
    host: &str,
    port: u16,
    allow_hosts: &[String],
    own_port: Option<u16>,
) -> Result<SocketAddr, String> {
    let addresses: Vec<IpAddr> = match host.parse() {
        Ok(address) => vec![address],
        Err(_) => resolve(host, port).await?,
    };
    let is_host = |one: &String| one.trim_matches(['[', ']']).eq_ignore_ascii_case(host);
    let allowed = allow_hosts.iter().any(is_host);
    let mut refusal = format!("{host} has no address");
    for address in addresses {
        match check(address, port, allowed, own_port) {
            Ok(()) => return Ok(SocketAddr::new(address, port)),
            Err(why) => refusal = format!("{host} is not called: {why}"),
        }
    }
    Err(refusal)
}

async fn resolve(host: &str, port: u16) -> Result<Vec<IpAddr>, String> {
    let found = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host, port))).await;
    match found {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(format!("{host} cannot be resolved: {error}")),
        Err(_) => Err(format!("{host} cannot be resolved within {CONNECT:?}")),
    }
}

fn check(address: IpAddr, port: u16, allowed: bool, own_port: Option<u16>) -> Result<(), String> {
    if own_port == Some(port) && is_this_machine(address) {
        return Err(format!("{address}:{port} is this server itself"));
    }
    match special(address) {
        Some(what) if !allowed => {
            Err(format!("its address {address} is {what}; list the host in allow_hosts if that is meant"))
        }
        _ => Ok(()),
    }
}

/// Only an address of this machine can be bound.
fn is_this_machine(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_unspecified() || address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

/// What an address is that is not one of the public internet.
fn special(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("unspecified"),
        [127, ..] => Some("loopback"),
        [169, 254, ..] => Some("link-local"),
        [10, ..] | [192, 168, ..] => Some("private"),
        [172, second, ..] if (16..32).contains(&second) => Some("private"),
        [100, second, ..] if (64..128).contains(&second) => Some("shared (carrier NAT)"),
        [192, 0, 0, _] | [192, 0, 2, _] | [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => Some("reserved"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved"),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let within = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        special_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Some("private"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2001, 0xdb8, ..] => Some("reserved"),
        // An IPv4 address inside: NAT64, 6to4, and the old IPv4-compatible form.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => within(high, low),
        [0x64, 0xff9b, 1, ..] => Some("private"),
        [0x2002, high, low, ..] => within(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_refused_in_all_their_disguises() {
        for text in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::127.0.0.1",
        ] {
            let address = text.parse().unwrap();
            assert!(check(address, 80, false, None).is_err(), "{text}");
            assert!(check(address, 80, true, None).is_ok(), "{text}");
        }
        for text in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(check(text.parse().unwrap(), 80, false, None).is_ok(), "{text}");
        }
    }

    #[test]
    fn the_own_port_is_refused_even_where_the_host_is_allowed() {
        for text in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0"] {
            let address = text.parse().unwrap();
            assert!(check(address, 7171, true, Some(7171)).is_err(), "{text}");
            assert!(check(address, 7172, true, Some(7171)).is_ok(), "{text}");
        }
    }

    #[test]
    fn an_address_is_shown_without_what_may_be_a_key() {
        let url = Url::parse("https://me:pw@example.org:8443/a?key=1#x").unwrap();
        assert_eq!(shown(&url), "https://example.org:8443/a");
    }
}
