//! How wide a text may be, and whether it has colours: on a terminal as that is, elsewhere as a file.

use anstream::{AutoStream, ColorChoice};
use nestwalk_report::paragraph;

/// Columns of tables where nobody says how many there are.
const COLUMNS: usize = 120;

/// Where a text goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Screen {
    /// Columns, if they are known.
    columns: Option<usize>,
    colours: bool,
}

impl Screen {
    /// A file: the same whoever writes it.
    pub const FILE: Self = Self { columns: None, colours: false };

    /// Standard output: as wide as `COLUMNS` says, or the terminal if it is one. `NO_COLOR`,
    /// `CLICOLOR_FORCE` and `TERM` decide on colours as elsewhere.
    pub fn standard_output() -> Self {
        let said = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        let is = || terminal_size::terminal_size_of(std::io::stdout()).map(|(w, _)| w.0.into());
        let choice = AutoStream::choice(&std::io::stdout());
        Self {
            columns: said.or_else(is).filter(|columns| *columns > 0),
            colours: choice != ColorChoice::Never,
        }
    }

    /// Columns that tables have.
    pub fn columns(self) -> usize {
        self.columns.unwrap_or(COLUMNS)
    }

    /// Lines of a label and text. They are broken where the width is known: a file is read by programs,
    /// too, and by whoever breaks them as he likes.
    pub fn lines(self, text: &str) -> String {
        let Some(columns) = self.columns else { return text.into() };
        let line = |line: &str| match line.split_at_checked(9) {
            Some((label, rest)) if line.chars().count() > columns => {
                paragraph(label, rest, columns)
            }
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }

    /// Text that stands out.
    pub fn bold(self, text: &str) -> String {
        self.styled("1", text)
    }

    /// Text that is well.
    pub fn green(self, text: &str) -> String {
        self.styled("32", text)
    }

    /// Text that is amiss.
    pub fn red(self, text: &str) -> String {
        self.styled("31", text)
    }

    /// By a number of ECMA-48's "select graphic rendition".
    fn styled(self, number: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{number}m{text}\x1b[0m") } else { text.into() }
    }

    /// A table whose heading, down to the rule, stands out, and of whose rows the one of this name is
    /// the best.
    pub fn table(self, text: &str, best: Option<&str>) -> String {
        if !self.colours {
            return text.into();
        }
        let is_best = |line: &str| best.is_some_and(|name| line.split(' ').next() == Some(name));
        let mut heading = true;
        let line = |line: &str| {
            heading |= line.is_empty();
            let styled = match line {
                "" => String::new(),
                _ if heading => self.bold(line),
                _ if is_best(line) => self.green(line),
                _ => line.into(),
            };
            heading &= !line.starts_with("--");
            styled + "\n"
        };
        text.lines().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_neither_colours_nor_broken_lines() {
        let line = format!("note     {}\n", "word ".repeat(60));
        assert_eq!(Screen::FILE.lines(&line), line);
        assert_eq!(Screen::FILE.bold("a"), "a");
        assert_eq!(Screen::FILE.table("a\n--\nb\n", Some("b")), "a\n--\nb\n");
    }

    #[test]
    fn lines_fit_a_narrow_terminal_under_their_label() {
        let narrow = Screen { columns: Some(60), colours: true };
        let out = narrow.lines(&format!("note     {}\nguest    short\n", "word ".repeat(60)));
        assert!(out.lines().all(|line| line.len() <= 60), "{out}");
        assert!(out.lines().skip(1).all(|l| l.starts_with("         ") || l == "guest    short"));
        assert_eq!(narrow.columns(), 60);
    }

    #[test]
    fn the_heading_and_the_best_row_stand_out() {
        let screen = Screen { columns: None, colours: true };
        let text = screen.table("m\n--\na  1\nb  2\n\nm\n--\nb  3\n", Some("b"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "\x1b[1mm\x1b[0m");
        assert_eq!((lines[2], lines[3]), ("a  1", "\x1b[32mb  2\x1b[0m"));
        assert_eq!((lines[5], lines[7]), ("\x1b[1mm\x1b[0m", "\x1b[32mb  3\x1b[0m"));
    }
}
