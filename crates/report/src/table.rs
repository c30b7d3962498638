//! A table for the terminal.

/// On which side a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

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
    /// The table as text, a line each, without trailing blanks.
    pub fn render(&self) -> String {
        let titles: Vec<Vec<&str>> =
            self.columns.iter().map(|(t, _)| t.split('\n').collect()).collect();
        let height = titles.iter().map(Vec::len).max().unwrap_or(0);
        let wide = |s: &str| s.chars().count();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                let title = titles[i].iter().map(|t| wide(t)).max().unwrap_or(0);
                self.rows.iter().map(|r| wide(&r[i])).max().unwrap_or(0).max(title)
            })
            .collect();
        let mut out = String::new();
        let mut line = |cells: Vec<&str>| {
            let mut text = String::new();
            for (i, cell) in cells.into_iter().enumerate() {
                if i > 0 {
                    text.push_str("  ");
                }
                match self.columns[i].1 {
                    Align::Left => text.push_str(&format!("{cell:<0$}", widths[i])),
                    Align::Right => text.push_str(&format!("{cell:>0$}", widths[i])),
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        for h in 0..height {
            // Titles stand at the bottom of the heading.
            line(
                titles
                    .iter()
                    .map(|t| {
                        (h + t.len())
                            .checked_sub(height)
                            .and_then(|i| t.get(i))
                            .copied()
                            .unwrap_or("")
                    })
                    .collect(),
            );
        }
        let rules: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
        line(rules.iter().map(String::as_str).collect());
        for row in &self.rows {
            line(row.iter().map(String::as_str).collect());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_empty_ones_can_go() {
        let mut t = Table::new()
            .column("name", Align::Left)
            .column("L2\nMPKI", Align::Right)
            .column("none", Align::Right);
        t.row(vec!["nested".into(), "1.5".into(), "-".into()]);
        t.row(vec!["x".into(), "12.25".into(), "-".into()]);
        t.drop_columns_of("-");
        assert_eq!(
            t.render(),
            "           L2\nname     MPKI\n------  -----\nnested    1.5\nx       12.25\n"
        );
    }
}
