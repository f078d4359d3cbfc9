//! `rejoin open`: a one-time link that signs a browser in.

use std::process::{Command, Stdio};

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::{Value, json};

use super::Session;
use super::escape;
use super::failure::{Failure, Result};
use super::wire::SignIn;

/// Makes a one-time link, opens it where there is a desktop, and prints it where only a person reads it.
pub async fn open(session: &Session, print: bool) -> Result<()> {
    let screen = &session.screen;
    if !screen.terminal && !print {
        return Err(Failure::Usage(
            "stdout is not a terminal: the link signs in whoever reads it, and output that is kept somewhere is read \
             by others. With --print it is printed all the same."
                .into(),
        ));
    }
    let answer: Value = session.client.post(&["session", "codes"], &json!({}), None).await?;
    if screen.json {
        return screen.document(&answer);
    }
    let link: SignIn = serde_json::from_value(answer)
        .map_err(|error| Failure::Server(format!("the sign-in link cannot be read: {error}")))?;
    let url = escape::line(&link.url);
    screen.line(&url)?;
    let mut words = format!("Good for one browser, within {} s.", link.expires_in_s.unwrap_or(60));
    if screen.terminal {
        if let Some(code) = qr(&url) {
            screen.line(&code)?;
            words.push_str(if is_here(&url) {
                " It leads to this machine; for a phone, `listen` and `allowed_hosts` in config.toml name an address."
            } else {
                " A phone can read the code above."
            });
        }
        if show(&url) {
            words.push_str(" The page opens in your browser.");
        }
    }
    screen.say(&words);
    Ok(())
}

/// The link as a code that a phone reads. Light on dark as terminals mostly are: readers take both.
fn qr(url: &str) -> Option<String> {
    let code = QrCode::new(url).ok()?;
    Some(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

/// Whether the link leads to the machine of whoever follows it.
fn is_here(url: &str) -> bool {
    ["http://127.", "http://localhost", "http://[::1]"].iter().any(|here| url.starts_with(here))
}

/// Asks the desktop to show the page. The address is an argument of a process that lives for a moment; the code in
/// it is good once.
fn show(url: &str) -> bool {
    let is_web = url.starts_with("http://") || url.starts_with("https://");
    let desktop =
        ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    is_web
        && desktop
        && Command::new("xdg-open")
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_link_fits_a_terminal() {
        let code = qr("http://127.0.0.1:7171/#code=0123456789abcdef0123456789abcdef").unwrap();
        assert!(code.lines().count() <= 24, "{code}");
        assert!(code.lines().all(|line| line.chars().count() <= 60));
    }
}
