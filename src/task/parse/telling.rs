//! Reads `[notify]` of a task: who is told what of it.

use super::reader::Reader;
use super::tree::{Data, Node};
use crate::task::definition::Terms;
use crate::task::telling::{Occasion, Telling};

/// The longest name of a channel or a check.
const MAX_NAME: usize = 128;

impl Reader {
    pub(super) fn telling(&mut self, node: &Node, terms: &Terms) -> Telling {
        let Some(mut open) = self.open("notify", node) else { return Telling::default() };
        let enabled = self.flag(&mut open, "enabled").unwrap_or(true);
        let no_such = |name: &str| terms.no_such_channel(name);
        let channels = open.take("channels").map(|node| self.names("notify.channels", node, no_such));
        let on = open.take("on").map(|node| self.occasions("notify.on", node));
        let span = open.take("check").and_then(|node| node.span.clone());
        let check = self.line(&mut open, "check").filter(|check| {
            let good =
                check.len() <= MAX_NAME && check.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            if !good {
                self.wrong(
                    "notify.check",
                    span,
                    "must be the UUID or the slug of a check: letters, digits, '-', '_'".into(),
                );
            }
            good
        });
        self.close(open, &["enabled", "channels", "on", "check"], &[]);
        Telling { enabled, channels, on, check }
    }

    /// A list of texts, without those that `refuse` has a word against.
    fn names(&mut self, key: &str, node: &Node, refuse: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let Data::List(items) = &node.data else {
            self.wrong(key, node.span.clone(), format!("must be a list of names, is {}", node.data.name()));
            return Vec::new();
        };
        let mut names: Vec<String> = Vec::new();
        for (n, item) in items.iter().enumerate() {
            match &item.data {
                Data::Text(name) if name.is_empty() || name.len() > MAX_NAME => {
                    self.wrong(format!("{key}[{n}]"), item.span.clone(), "is no name".into());
                }
                Data::Text(name) if names.contains(name) => {}
                Data::Text(name) => match refuse(name) {
                    Some(why) => self.wrong(format!("{key}[{n}]"), item.span.clone(), why),
                    None => names.push(name.clone()),
                },
                other => {
                    self.wrong(format!("{key}[{n}]"), item.span.clone(), format!("must be text, is {}", other.name()))
                }
            }
        }
        names
    }

    fn occasions(&mut self, key: &str, node: &Node) -> Vec<Occasion> {
        let mut chosen = Vec::new();
        for name in self.names(key, node, |_| None) {
            match Occasion::chosen(&name) {
                Some(occasion) => chosen.push(occasion),
                None => {
                    let there = Occasion::CHOICES.map(|occasion| format!("{:?}", occasion.as_str())).join(", ");
                    self.wrong(key, node.span.clone(), format!("{name:?} is not known: there are {there}"));
                }
            }
        }
        chosen
    }
}
