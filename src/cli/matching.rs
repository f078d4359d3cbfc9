//! How words find their task: by id or title, case and punctuation aside. Knows neither server nor terminal.

use super::failure::{Failure, Result};
use super::wire::Task;

/// How many titles are named where none is meant.
const NAMED: usize = 3;

/// What remains of a title when case and punctuation are set aside.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_alphanumeric() {
            plain.push(c);
        } else if !plain.is_empty() && !plain.ends_with(' ') {
            plain.push(' ');
        }
    }
    plain.truncate(plain.trim_end().len());
    plain
}

/// The task that `words` mean: the one with exactly this id, else the one whose id or title says the same.
///
/// # Errors
/// Where several tasks are meant.
pub fn find<'a>(words: &str, tasks: &'a [Task]) -> Result<Option<&'a Task>> {
    if let Some(task) = tasks.iter().find(|task| task.id == words) {
        return Ok(Some(task));
    }
    let wanted = plain(words);
    if wanted.is_empty() {
        return Ok(None);
    }
    let mut meant = tasks.iter().filter(|task| plain(&task.title) == wanted || plain(&task.id) == wanted);
    let first = meant.next();
    let others: Vec<&str> = meant.map(|task| task.id.as_str()).collect();
    match (first, others.as_slice()) {
        (Some(first), [_, ..]) => Err(Failure::Usage(format!(
            "{words:?} means several tasks: {}, {}. Give the id.",
            first.id,
            others.join(", ")
        ))),
        (first, _) => Ok(first),
    }
}

/// The tasks that are called most alike, the most alike first; none that have nothing in common.
pub fn nearest<'a>(words: &str, tasks: &'a [Task]) -> Vec<&'a Task> {
    let wanted = plain(words);
    let mut scored: Vec<(f64, &Task)> = tasks
        .iter()
        .map(|task| (likeness(&wanted, &plain(&task.title)).max(likeness(&wanted, &plain(&task.id))), task))
        .filter(|(score, _)| *score > 0.2)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(NAMED).map(|(_, task)| task).collect()
}

/// How many pairs of neighbouring letters two texts share, from 0 to 1.
fn likeness(a: &str, b: &str) -> f64 {
    let pairs = |text: &str| -> Vec<(char, char)> { text.chars().zip(text.chars().skip(1)).collect() };
    let (a, mut b) = (pairs(a), pairs(b));
    let total = a.len() + b.len();
    if total == 0 {
        return 0.0;
    }
    let shared = a
        .iter()
        .filter(|pair| b.iter().position(|other| other == *pair).map(|place| b.swap_remove(place)).is_some())
        .count();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred letters")]
    let share = 2.0 * shared as f64 / total as f64;
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> Vec<Task> {
        let task = |id: &str, title: &str| -> Task {
            serde_json::from_value(serde_json::json!({ "id": id, "title": title })).unwrap()
        };
        vec![
            task("smart-maintenance", "Run smart maintenance"),
            task("long", "Long task"),
            task("complex", "Complex multi-step task"),
            task("twin-1", "Twin"),
            task("twin-2", "twin!"),
        ]
    }

    fn id_of(words: &str) -> Option<String> {
        find(words, &tasks()).unwrap().map(|task| task.id.clone())
    }

    #[test]
    fn words_find_their_task_whatever_the_case_and_punctuation() {
        for words in ["Run smart maintenance", "run SMART  maintenance!", "smart-maintenance", "Smart Maintenance"] {
            assert_eq!(id_of(words).as_deref(), Some("smart-maintenance"), "{words}");
        }
        assert_eq!(id_of("complex multi step task").as_deref(), Some("complex"));
    }

    #[test]
    fn half_a_title_is_no_title() {
        assert_eq!(id_of("Run smart"), None);
        assert_eq!(id_of("..."), None);
    }

    #[test]
    fn words_that_mean_two_tasks_are_refused_with_their_ids() {
        let failure = find("TWIN", &tasks()).unwrap_err();
        assert_eq!(failure.code(), 2);
        assert!(failure.to_string().contains("twin-1, twin-2"), "{failure}");
        assert_eq!(id_of("twin-2").as_deref(), Some("twin-2"));
    }

    #[test]
    fn a_typo_is_answered_with_the_nearest_titles() {
        let tasks = tasks();
        let near: Vec<&str> = nearest("Run smart maintenence", &tasks).iter().map(|t| t.id.as_str()).collect();
        assert_eq!(near.first(), Some(&"smart-maintenance"));
        assert!(nearest("qqq", &tasks).is_empty());
    }
}
