//! `config.toml`: what it means, and what is said about one that means nothing.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rejoin::config::{Config, ConfigError, LogFormat, Network};
use rejoin::store::Durability;

const SHIPPED: &str = include_str!("../../config.toml");

fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

fn with(variable: &str, value: &str) -> Result<Config, ConfigError> {
    Config::from_text(None, "", &BTreeMap::from([(variable.to_owned(), value.to_owned())]))
}

fn refused(text: &str) -> String {
    Config::from_text(Some(Path::new("etc/config.toml")), text, &none()).unwrap_err().to_string()
}

#[test]
fn the_shipped_config_says_what_holds_without_it() {
    let shipped = Config::from_text(None, SHIPPED, &none()).unwrap();
    assert_eq!(shipped, Config::default());
}

#[test]
fn the_shipped_config_shows_every_key() {
    // A key that is taken out is either in the file or not a key.
    let table: toml::Table = SHIPPED.parse().unwrap();
    let shown: usize = table.values().map(|value| value.as_table().map_or(1, |section| section.len())).sum();
    let debug = format!("{:#?}", Config::default());
    let keys = debug.lines().filter(|line| line.starts_with("    ") && line.contains(": ")).filter(|line| {
        let indent = line.len() - line.trim_start().len();
        // A section that begins empty has no keys to show.
        let section = line.trim_end().ends_with(['{']) || line.trim_end().ends_with("{},");
        (indent == 4 && !section) || indent == 8
    });
    assert_eq!(shown, keys.count(), "{debug}");
}

#[test]
fn an_unknown_key_is_refused_with_file_line_and_key() {
    let said = refused("listen = \"127.0.0.1:1\"\n\n[stream]\nheartbaet = \"20s\"\n");
    assert!(said.starts_with("etc/config.toml:4:1: stream.heartbaet: unknown field"), "{said}");
    let said = refused("lisen = 1\n");
    assert!(said.starts_with("etc/config.toml:1:1: lisen: "), "{said}");
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_with_its_place() {
    for (text, beginning, part) in [
        ("listen = \"nowhere\"", "etc/config.toml:1:10: listen: ", "socket address"),
        ("[stream]\nheartbeat = 20", "etc/config.toml:2:13: stream.heartbeat: ", "expected a string"),
        ("[stream]\nheartbeat = \"20\"", "etc/config.toml:2:13: stream.heartbeat: ", "with its unit"),
        ("[stream]\nring_bytes = \"lots\"", "etc/config.toml:2:14: stream.ring_bytes: ", "not a size"),
        ("durability = \"some\"", "etc/config.toml:1:14: durability: ", "`normal` or `full`"),
        ("trusted_proxies = [\"10.0.0.0/99\"]", "etc/config.toml:1:19: trusted_proxies: ", "not an address"),
        ("listen = ", "etc/config.toml:1:", ""),
        ("[pools]\nbackup = 0", "etc/config.toml:2:10: pools.backup: ", "0 is not a number of places from 1 to 100000"),
        ("[pools]\nbackup = \"2\"", "etc/config.toml:2:10: pools.backup: ", "expected i64"),
        ("[pools]\nall = 2", "etc/config.toml:2:1: pools.all: ", "set them with runs.concurrency"),
        ("[pools]\n\"a b\" = 2", "etc/config.toml:2:1: pools.a b: ", "is not the name of a pool: use 1 to 64 of a-z"),
    ] {
        let said = refused(text);
        assert!(said.starts_with(beginning) && said.contains(part), "{said}");
    }
}

#[test]
fn a_value_that_cannot_work_is_refused_with_its_place() {
    for (text, beginning) in [
        ("[stream]\nlife = \"10s\"", "etc/config.toml:2:1: stream.life: "),
        ("[retention]\nruns = 0", "etc/config.toml:2:1: retention.runs: "),
        ("[retention]\ndays = 36526", "etc/config.toml:2:1: retention.days: must be at most 36525"),
        (
            "[schedule]\nlook_again = \"61s\"",
            "etc/config.toml:2:1: schedule.look_again: must be at most 1m: less often, a clock that jumps is not seen",
        ),
        ("[auth]\nsession_days = 36526", "etc/config.toml:2:1: auth.session_days: must be at most 36525"),
        ("[runs]\nstop_kill = \"1s\"", "etc/config.toml:2:1: runs.stop_kill: "),
        ("allowed_hosts = [\"http://a\"]", "etc/config.toml:1:1: allowed_hosts: "),
        ("[log]\nfilter = \"a=b=c\"", "etc/config.toml:2:1: log.filter: "),
    ] {
        let said = refused(text);
        assert!(said.starts_with(beginning), "{said}");
    }
}

#[test]
fn sections_of_other_versions_are_refused_rather_than_ignored() {
    let said = refused("\n[tls]\ncert = \"a\"\n");
    assert_eq!(said, "etc/config.toml:2:2: tls: not in this version");
    assert_eq!(refused("[agents.model]\n"), "etc/config.toml:1:2: agents.model: not in this version");
    let said = with("REJOIN__TLS__CERT", "a").unwrap_err().to_string();
    assert_eq!(said, "REJOIN__TLS__CERT: tls.cert: not in this version");
}

#[test]
fn a_variable_of_the_environment_goes_over_the_file() {
    assert_eq!(with("REJOIN__LISTEN", "127.0.0.1:8080").unwrap().listen.port(), 8080);
    assert_eq!(with("REJOIN__STREAM__HEARTBEAT", "5s").unwrap().stream.heartbeat, Duration::from_secs(5));
    assert_eq!(with("REJOIN__STREAM__RING_EVENTS", "7").unwrap().stream.ring_events, 7);
    assert_eq!(with("REJOIN__STREAM__RING_BYTES", "7").unwrap().stream.ring_bytes, 7);
    assert_eq!(with("REJOIN__ALLOWED_HOSTS", "[\"a\", \"b\"]").unwrap().allowed_hosts, ["a", "b"]);
    assert_eq!(with("REJOIN__DURABILITY", "full").unwrap().durability, Durability::Full);
    assert_eq!(with("REJOIN__LOG__FORMAT", "json").unwrap().log.format, LogFormat::Json);
    let pools = with("REJOIN__POOLS__BACKUP", "2").unwrap().pools;
    assert_eq!(pools.iter().map(|(name, size)| (name.as_str(), size.get())).collect::<Vec<_>>(), [("backup", 2)]);
    // What TOML would read as something else is text where the key wants text.
    assert_eq!(with("REJOIN__DATA_DIR", "7").unwrap().data_dir, Path::new("7"));
    let both = BTreeMap::from([
        ("REJOIN__STREAM__HEARTBEAT".to_owned(), "50s".to_owned()),
        ("REJOIN__STREAM__LIFE".to_owned(), "90s".to_owned()),
    ]);
    let config = Config::from_text(None, "[stream]\nlife = \"30s\"\n", &both).unwrap();
    assert_eq!(config.stream.life, Duration::from_secs(90));
    // Only what holds in the end has to fit together.
    let config = Config::from_text(None, "[stream]\nlife = \"10s\"\n", &both).unwrap();
    assert_eq!(config.stream.life, Duration::from_secs(90));
}

#[test]
fn a_variable_that_cannot_be_read_is_named() {
    for (variable, value, part) in [
        ("REJOIN__STREAM__RING_EVENTS", "many", "stream.ring_events: "),
        ("REJOIN__STREAM__HEARTBAET", "5s", "unknown field"),
        ("REJOIN__STREAM__LIFE", "1s", "must be more than stream.heartbeat"),
        ("REJOIN__A__B__C", "1", "a key is named like"),
        ("REJOIN__", "1", "a key is named like"),
        ("REJOIN__LISTEN__PORT", "1", "listen.port"),
    ] {
        let said = with(variable, value).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{variable}: ")) && said.contains(part), "{said}");
    }
}

#[test]
fn relative_paths_are_relative_to_the_file() {
    let config =
        Config::from_text(Some(Path::new("/etc/rejoin/config.toml")), "tasks_dir = \"/srv/t\"", &none()).unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/rejoin/data"));
    assert_eq!(config.tasks_dir, Path::new("/srv/t"));
    let config = Config::from_text(None, "", &none()).unwrap();
    assert_eq!(config.data_dir, Path::new("data"));
}

#[test]
fn a_named_file_that_is_not_there_is_an_error() {
    let said = Config::load(Some(Path::new("/nowhere/config.toml"))).unwrap_err().to_string();
    assert!(said.starts_with("/nowhere/config.toml: "), "{said}");
}

#[test]
fn a_config_that_others_may_write_is_refused_with_the_command_that_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let config = Config::load(Some(&file)).unwrap();
    assert_eq!(config.data_dir, dir.path().join("data"));
    fs::set_permissions(&file, Permissions::from_mode(0o646)).unwrap();
    let said = Config::load(Some(&file)).unwrap_err().to_string();
    assert!(said.contains("can be written by everyone: chmod go-w"), "{said}");
}

#[test]
fn no_set_number_of_runs_is_twice_the_cores() {
    let mut config = Config::default();
    assert!(config.runs.places() >= 2 && config.runs.places().is_multiple_of(2));
    config.runs.concurrency = 3;
    assert_eq!(config.runs.places(), 3);
}

#[test]
fn a_network_holds_its_addresses_and_no_others() {
    let network = |text: &str| text.parse::<Network>().unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(network("10.0.0.0/8").contains(ip("10.9.8.7")));
    assert!(!network("10.0.0.0/8").contains(ip("11.0.0.1")));
    assert!(network("0.0.0.0/0").contains(ip("1.2.3.4")));
    assert!(network("::/0").contains(ip("2001:db8::1")));
    assert!(network("10.0.0.7").contains(ip("::ffff:10.0.0.7")));
    assert!(!network("10.0.0.7").contains(ip("10.0.0.8")));
    assert!(network("fd00::/8").contains(ip("fd12::1")));
    assert!(!network("fd00::/8").contains(ip("10.0.0.1")));
    for wrong in ["", "10.0.0.0/33", "10.0.0", "::/129", "a/8", "10.0.0.0/"] {
        assert!(wrong.parse::<Network>().is_err(), "{wrong}");
    }
}
