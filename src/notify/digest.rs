//! The words of a message for people: of one notice, or of several as one.

use super::notice::Notice;

/// The most bytes of a message that lists several: ntfy takes 4096.
const MAX_BYTES: usize = 3500;

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
    let (mut body, mut listed) = (String::new(), 0);
    for notice in notices {
        let line = format!("{}  {}\n", notice.at.strftime("%Y-%m-%d %H:%M UTC"), notice.details().join(" "));
        if body.len() + line.len() > MAX_BYTES {
            break;
        }
        body.push_str(&line);
        listed += 1;
    }
    if listed < notices.len() {
        body.push_str(&format!("and {} more", notices.len() - listed));
    }
    // The page itself: what they have in common.
    let page = notices.iter().find_map(|notice| notice.url.as_deref()?.split("/tasks/").next());
    Message {
        title: format!("{} messages from Rejoin", notices.len()),
        body: body.trim_end().to_owned(),
        url: page.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::telling::Occasion;
    use jiff::Timestamp;

    #[test]
    fn a_message_of_many_is_bounded_and_counts_what_it_leaves_out() {
        let mut notice = Notice::new(Occasion::Failed, Timestamp::UNIX_EPOCH, "ü".repeat(280));
        notice.url = Some("https://tasks.example.org/tasks/a/runs/b".into());
        let message = message(&vec![&notice; 200]);
        assert!(message.body.len() < 4096, "{}", message.body.len());
        assert!(message.body.ends_with("and 194 more"), "{}", message.body);
        assert_eq!(message.title, "200 messages from Rejoin");
        assert_eq!(message.url.as_deref(), Some("https://tasks.example.org"));
    }
}
