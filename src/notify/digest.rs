//! The words of a message for people: of one notice, or of several as one.

use super::notice::Notice;

/// How many notices a message lists.
const MAX_LISTED: usize = 30;

/// A message for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Message {
    /// One line.
    pub(super) title: String,
    /// Some lines.
    pub(super) body: String,
    /// Where to look.
    pub(super) url: Option<String>,
}

/// The message of some notices.
pub(super) fn message(notices: &[&Notice]) -> Message {
    if let [notice] = notices {
        return Message { title: notice.headline(), body: notice.details().join("\n"), url: notice.url.clone() };
    }
    let mut lines: Vec<String> = notices
        .iter()
        .take(MAX_LISTED)
        .map(|notice| format!("{}  {}", notice.at.strftime("%Y-%m-%d %H:%M UTC"), notice.details().join(" ")))
        .collect();
    if notices.len() > MAX_LISTED {
        lines.push(format!("and {} more", notices.len() - MAX_LISTED));
    }
    // The page itself: what they have in common.
    let page = notices.iter().find_map(|notice| notice.url.as_deref()?.split("/tasks/").next());
    Message {
        title: format!("{} messages from Rejoin", notices.len()),
        body: lines.join("\n"),
        url: page.map(str::to_owned),
    }
}
