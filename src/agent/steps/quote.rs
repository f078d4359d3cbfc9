//! `${params.x}`, `${steps.x.output}` and, in HTTP calls, `${secrets.X}`: values in a text that a person reads or
//! that is sent. Never used for the text of a command.

use std::collections::BTreeMap;

use super::StepResult;

/// Where quoted values come from.
pub(super) struct Quotes<'a> {
    pub(super) params: &'a BTreeMap<String, serde_json::Value>,
    pub(super) steps: &'a BTreeMap<String, StepResult>,
    /// Empty where secrets may not be quoted.
    pub(super) secrets: &'a BTreeMap<String, String>,
    /// The longest a single value may be, in characters; longer ones end with `…`.
    pub(super) longest: usize,
}

impl Quotes<'_> {
    /// The text with its values filled in; what names nothing known stays as it is written.
    pub(super) fn fill(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            out.push_str(before);
            let Some((path, behind)) = after.split_once('}') else {
                out.push_str("${");
                rest = after;
                continue;
            };
            if let Some(value) = self.value(path.trim()) {
                out.push_str(&shorten(&value, self.longest));
                rest = behind;
            } else {
                out.push_str("${");
                rest = after;
            }
        }
        out.push_str(rest);
        out
    }

    fn value(&self, path: &str) -> Option<String> {
        let mut parts = path.splitn(3, '.');
        match (parts.next()?, parts.next()?, parts.next()) {
            ("params", name, None) => self.params.get(name).map(plain),
            ("secrets", name, None) => self.secrets.get(name).cloned(),
            ("steps", name, Some(member)) => self.steps.get(name)?.member(member),
            _ => None,
        }
    }
}

/// A parameter as plain text: a string without quotes, all else as JSON.
pub(super) fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The text, or its beginning and `…` where it has more than `longest` characters.
pub(super) fn shorten(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_filled_in_and_what_is_unknown_stays_as_written() {
        let params = BTreeMap::from([("limit".to_owned(), serde_json::json!(85))]);
        let disks = StepResult { output: "97%\n".into(), ..StepResult::default() };
        let steps = BTreeMap::from([("disks".to_owned(), disks)]);
        let secrets = BTreeMap::new();
        let quotes = Quotes { params: &params, steps: &steps, secrets: &secrets, longest: 200 };
        let text = "${steps.disks.output} > ${params.limit}? ${HOME} ${params.x} ${secrets.K} ${";
        let filled = "97% > 85? ${HOME} ${params.x} ${secrets.K} ${";
        assert_eq!(quotes.fill(text), filled);
        assert_eq!(Quotes { longest: 2, ..quotes }.fill("${steps.disks.output}"), "97…");
    }
}
