//! Sees to it that no release goes out without its page.
//!
//! A debug build reads `web/dist` when it runs and may do without; a release carries the page inside, and one that
//! was built without it would only show that when somebody opens it.

use std::path::Path;
use std::{env, fs};

const PAGE: &str = "web/dist";

fn main() {
    println!("cargo::rerun-if-changed={PAGE}");
    let set = |name: &str| env::var_os(name).is_some();
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // A model of the interleavings is built optimised, and nobody opens it.
    let model = set("CARGO_FEATURE_LOOM");
    if release && !model && !Path::new(PAGE).join("index.html").is_file() {
        println!("cargo::error=there is no page to put into this release ({PAGE}/index.html): run `make page` first");
        return;
    }
    // The folder has to be there for the page to be embedded, even if nothing is in it.
    if let Err(error) = fs::create_dir_all(PAGE) {
        println!("cargo::error=cannot make {PAGE}: {error}");
    }
}
