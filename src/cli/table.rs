//! Lists as columns without borders, and single things as name and value. What stands in them cannot act on a
//! terminal.

use comfy_table::{ContentArrangement, Table, presets};

use super::escape;

/// A list under its headings. With a width the columns share it; without one nothing is wrapped, so that a pipe
/// gets one line for each entry.
pub fn list(headings: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.set_header(headings.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| escape::line(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table)
}

/// Names and values, one line each; what has no value is left out.
pub fn facts(facts: &[(&str, Option<String>)]) -> String {
    let there = || facts.iter().filter_map(|(name, value)| Some((name, value.as_ref().filter(|v| !v.is_empty())?)));
    let width = there().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = there().map(|(name, value)| format!("{name:width$}  {}", escape::line(value))).collect();
    lines.join("\n")
}

fn trimmed(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_columns_and_no_borders() {
        let rows = [vec!["a".into(), "Long task".into()], vec!["bcd".into(), "x\ny".into()]];
        assert_eq!(list(&["ID", "TITLE"], &rows, None), "ID   TITLE\na    Long task\nbcd  x\\ny");
    }

    #[test]
    fn a_narrow_terminal_wraps_instead_of_running_over() {
        let rows = [vec!["task".into(), "a title of several words".into()]];
        let narrow = list(&["ID", "TITLE"], &rows, Some(20));
        assert!(narrow.lines().all(|line| line.chars().count() <= 20), "{narrow}");
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        let text = facts(&[("task", Some("t".into())), ("next", None), ("state", Some("idle".into()))]);
        assert_eq!(text, "task   t\nstate  idle");
    }
}
