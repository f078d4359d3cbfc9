//! What names, addresses and conditions in a task must be like.

/// The longest condition, in bytes.
pub const MAX_CONDITION: usize = 4096;

/// How the names of steps and parameters look.
pub(super) const NAME_RULE: &str = "must be a name of a-z, 0-9 and '_', beginning with a letter, at most 64 long";

/// Whether a text is the name of a step or a parameter: it becomes part of a variable's name.
pub(super) fn is_name(text: &str) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
    text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.bytes().all(inner)
}

/// Whether a secret may become a variable of that name. Names that decide what a command loads or runs, and ours,
/// stay the server's.
pub(super) fn check_secret_name(name: &str) -> Result<(), String> {
    const TAKEN: [&str; 18] = [
        "PATH",
        "HOME",
        "SHELL",
        "USER",
        "LOGNAME",
        "PWD",
        "OLDPWD",
        "IFS",
        "ENV",
        "BASH_ENV",
        "SHELLOPTS",
        "BASHOPTS",
        "PS4",
        "CDPATH",
        "GLOBIGNORE",
        "TMPDIR",
        "LANG",
        "TZ",
    ];
    const TAKEN_BEGINNINGS: [&str; 8] =
        ["LD_", "DYLD_", "REJOIN_", "BASH_FUNC_", "PYTHON", "PERL", "NODE_OPTIONS", "LC_"];
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins || !name.bytes().all(inner) || name.len() > 128 {
        return Err("must be the name of a variable: letters, digits and '_', not beginning with a digit".into());
    }
    let upper = name.to_uppercase();
    if TAKEN.contains(&upper.as_str()) || TAKEN_BEGINNINGS.iter().any(|beginning| upper.starts_with(beginning)) {
        return Err(format!("{name} stays the server's: give the secret another name"));
    }
    Ok(())
}

/// Whether an address is one that can be asked. `${...}` is filled in only in thoughts and written files, so that an
/// address is what it says.
pub(super) fn check_url(url: &str) -> Result<(), String> {
    let read = reqwest::Url::parse(url).map_err(|_| format!("{url:?} is not an address"))?;
    if !matches!(read.scheme(), "http" | "https") {
        return Err(format!("{url:?} must begin with http:// or https://"));
    }
    if !read.username().is_empty() || read.password().is_some() {
        return Err("must not have a name or password: send a header from a secret".into());
    }
    Ok(())
}

/// Whether a text is a CEL condition.
pub(super) fn check_condition(text: &str) -> Result<(), String> {
    if text.len() > MAX_CONDITION {
        return Err(format!("it has {} bytes, at most {MAX_CONDITION} are taken", text.len()));
    }
    crate::agent::steps::condition::check(text).map_err(|error| plain(&error))
}

/// The library's words in one line: without its prefix and the list of all that could have stood there.
fn plain(error: &str) -> String {
    if error.contains("Recursion limit") {
        return "its brackets go too deep".into();
    }
    let line = error.lines().next().unwrap_or_default();
    let line = line.split(" expecting ").next().unwrap_or(line);
    line.trim_start_matches("ERROR: <input>:").to_owned()
}
