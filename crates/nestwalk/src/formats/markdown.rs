//! A table of GitHub's Markdown. GitHub Flavored Markdown, section 4.10: a `|` in a cell is escaped.

use super::{Definition, View};
use nestwalk_report::{Cells, to_cells};

pub(super) static DEFINITION: Definition = Definition {
    name: "markdown",
    meaning: "A row per machine, as a table for GitHub",
    file: "results.md",
    view: View::Rows,
    render: |found, _| Ok(table(&to_cells(&found.rows()?))),
};

fn table(cells: &Cells) -> String {
    let is_number =
        |c: usize| cells.rows.iter().all(|r| r[c].is_empty() || r[c].parse::<f64>().is_ok());
    let rules =
        (0..cells.columns.len()).map(|c| if is_number(c) { "---:" } else { "---" }.to_owned());
    let mut out = line(cells.columns.iter().map(|title| escaped(title)));
    out += &line(rules);
    for row in &cells.rows {
        out += &line(row.iter().map(|cell| escaped(cell)));
    }
    out
}

fn line(cells: impl Iterator<Item = String>) -> String {
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// Text as it is, in one line, and none of it taken for Markdown.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '\\' | '|' | '*' | '<' | '`' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_stand_right_and_cells_stay_cells() {
        let rows = [
            json!({ "machine": "a|b\\", "walks": { "n": 1, "of": null } }),
            json!({ "machine": "two\nlines", "walks": { "n": 2.5, "of": "*" } }),
        ];
        let text = "| machine | walks.n | walks.of |\n\
                    | --- | ---: | --- |\n\
                    | a\\|b\\\\ | 1 |  |\n\
                    | two lines | 2.5 | \\* |\n";
        assert_eq!(table(&to_cells(&rows)), text);
    }
}
