//! A table for the terminal: ours is which columns stand beside each other, comfy-table sets them.

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Width, presets};

/// On which side a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// Blanks between two columns.
const GAP: usize = 2;
/// A last column of text is not made narrower than this.
const LEAST_TEXT: usize = 24;

/// Rows under titles; titles may have several lines.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// No column yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds a column; a line break in the title begins a new line of the heading.
    #[must_use]
    pub fn column(mut self, title: &str, align: Align) -> Self {
        self.columns.push((title.into(), align));
        self
    }
    /// Adds a row; missing cells are empty, further ones are left out.
    pub fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }
    /// Leaves out columns whose cells are all `empty`.
    pub fn drop_columns_of(&mut self, empty: &str) {
        self.drop_columns_from(0, empty);
    }
    /// As [`Table::drop_columns_of`], but for the first columns, up to `first`.
    pub fn drop_columns_from(&mut self, first: usize, empty: &str) {
        for i in (first..self.columns.len()).rev() {
            if !self.rows.is_empty() && self.rows.iter().all(|r| r[i] == empty) {
                self.columns.remove(i);
                for row in &mut self.rows {
                    row.remove(i);
                }
            }
        }
    }

    /// The table as text, a line each, without trailing blanks, as wide as it needs.
    pub fn render(&self) -> String {
        self.set(&(0..self.columns.len()).collect::<Vec<_>>(), None)
    }

    /// The table as text of so many columns at most, where that can be. A last column of text is broken
    /// into lines; other columns that have no room stand in further tables below, under the first column
    /// again, with an empty line between.
    pub fn render_within(&self, width: usize) -> String {
        let widths = self.widths();
        let mut blocks: Vec<Vec<usize>> = vec![vec![]];
        let mut used = 0;
        for (i, own) in widths.iter().enumerate() {
            let broken = i + 1 == widths.len() && self.columns[i].1 == Align::Left;
            let least = if broken { LEAST_TEXT.min(*own) } else { *own };
            let block = blocks.last_mut().expect("there is a first");
            if block.len() > 1 && used + GAP + least > width {
                blocks.push(vec![0, i]);
                used = widths[0] + GAP + own;
            } else {
                used += own + if block.is_empty() { 0 } else { GAP };
                block.push(i);
            }
        }
        let texts: Vec<String> = blocks.iter().map(|b| self.set(b, Some(width))).collect();
        texts.join("\n")
    }

    /// Columns that the text of each column takes.
    fn widths(&self) -> Vec<usize> {
        let mut plain = comfy_table::Table::new();
        plain.set_header(self.columns.iter().map(|(title, _)| title.as_str()));
        plain.add_rows(self.rows.iter());
        plain.column_max_content_widths().into_iter().map(usize::from).collect()
    }

    /// Some of the columns, as text.
    fn set(&self, block: &[usize], width: Option<usize>) -> String {
        let all = self.widths();
        let mut widths: Vec<usize> = block.iter().map(|i| all[*i]).collect();
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        let (Some(last), Some(at)) = (widths.last_mut(), block.last()) else {
            return String::new();
        };
        let room = width.map_or(usize::MAX, |w| {
            let before: usize = block[..block.len() - 1].iter().map(|i| all[*i] + GAP).sum();
            w.saturating_sub(before).max(LEAST_TEXT)
        });
        let broken = self.columns[*at].1 == Align::Left && *last > room;
        if broken {
            *last = room;
        }
        // Titles stand at the bottom of the heading.
        let height =
            block.iter().map(|i| self.columns[*i].0.matches('\n').count()).max().unwrap_or(0);
        let title = |i: &usize| {
            let text = &self.columns[*i].0;
            "\n".repeat(height - text.matches('\n').count()) + text
        };
        table.set_header(block.iter().map(|i| Cell::new(title(i))));
        table.add_row(widths.iter().map(|w| "-".repeat(*w)));
        table.add_rows(self.rows.iter().map(|row| block.iter().map(|i| row[*i].as_str())));
        for (at, (column, i)) in table.column_iter_mut().zip(block).enumerate() {
            column.set_padding((if at == 0 { 0 } else { GAP as u16 }, 0));
            column.set_cell_alignment(match self.columns[*i].1 {
                Align::Left => CellAlignment::Left,
                Align::Right => CellAlignment::Right,
            });
        }
        if broken && let Some(column) = table.column_mut(block.len() - 1) {
            // Padding counts as the column's.
            let gap = if block.len() > 1 { GAP } else { 0 };
            let fixed = Width::Fixed(u16::try_from(room + gap).unwrap_or(u16::MAX));
            column.set_constraint(ColumnConstraint::Absolute(fixed));
        }
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.trim_fmt() + "\n"
    }
}

/// A label and text behind it, whose further lines are indented as far: text of so many columns at most.
pub fn paragraph(label: &str, text: &str, width: usize) -> String {
    let mut out = String::new();
    let indent = " ".repeat(label.chars().count());
    let room = width.saturating_sub(indent.len()).max(LEAST_TEXT);
    let mut line = String::new();
    let mut end = |line: &mut String| {
        out += &format!("{}{line}\n", if out.is_empty() { label } else { &indent });
        line.clear();
    };
    for word in text.split(' ') {
        let fits = line.chars().count() + 1 + word.chars().count() <= room;
        if !line.is_empty() && !fits {
            end(&mut line);
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    end(&mut line);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Table {
        let mut t = Table::new()
            .column("name", Align::Left)
            .column("L2\nMPKI", Align::Right)
            .column("none", Align::Right);
        t.row(vec!["nested".into(), "1.5".into(), "-".into()]);
        t.row(vec!["x".into(), "12.25".into(), "-".into()]);
        t
    }

    #[test]
    fn columns_align_and_empty_ones_can_go() {
        let mut t = three();
        t.drop_columns_of("-");
        let text = "           L2\nname     MPKI\n------  -----\nnested    1.5\nx       12.25\n";
        assert_eq!(t.render(), text);
        assert_eq!(t.render_within(13), text);
        assert_eq!(Table::new().render(), "");
    }

    #[test]
    fn what_has_no_room_stands_below_under_the_first_column_again() {
        let left = "           L2\nname     MPKI\n------  -----\nnested    1.5\nx       12.25\n";
        let right = "name    none\n------  ----\nnested     -\nx          -\n";
        assert_eq!(three().render_within(18), format!("{left}\n{right}"));
        assert_eq!(three().render_within(19), three().render());
        // Nothing is lost where nothing fits.
        assert_eq!(three().render_within(1), format!("{left}\n{right}"));
    }

    #[test]
    fn a_last_column_of_text_is_broken_into_lines() {
        let mut t = Table::new().column("scheme", Align::Left).column("what", Align::Left);
        let text = "two dimensions of tables are walked, and guests switch as they like";
        t.row(vec!["nested".into(), text.into()]);
        let out = t.render_within(40);
        assert!(out.lines().all(|line| line.chars().count() <= 40), "{out}");
        let words: Vec<&str> = out.lines().skip(2).flat_map(str::split_whitespace).collect();
        assert_eq!(words.join(" "), format!("nested {text}"));
    }

    #[test]
    fn paragraphs_keep_their_words_and_their_width() {
        assert_eq!(paragraph("note     ", "short", 80), "note     short\n");
        let out = paragraph("note     ", "a sentence of a dozen words that has no room in it", 40);
        assert_eq!(out.lines().count(), 2);
        assert!(out.starts_with("note     a sentence") && out.contains("\n         "), "{out}");
        assert!(out.lines().all(|line| line.chars().count() <= 40), "{out}");
        let long = "x".repeat(60);
        assert_eq!(paragraph("", &long, 40), format!("{long}\n"));
        assert_eq!(paragraph("n ", "", 40), "n \n");
    }
}
