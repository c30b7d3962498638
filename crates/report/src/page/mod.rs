//! A page of tables and figures: one HTML file that needs nothing else and asks no network.

mod explorer;

pub use explorer::{Explored, Explorer};

use crate::figure::{Figure, escape, svg};
use crate::flat::CsvError;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const EXPLORER: &str = include_str!("explorer.js");

/// A cell: what it shows, and the number by which it is sorted, if it is one.
pub type Cell = (String, Option<f64>);

/// A table that sorts by any column.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Sortable {
    /// Title and meaning of each column.
    pub columns: Vec<(String, String)>,
    /// A cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

/// A part of the page.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// A paragraph each.
    pub notes: Vec<String>,
    /// Its table.
    pub table: Option<Sortable>,
    /// Tables to choose from.
    pub explorer: Option<Explorer>,
    /// Its figures.
    pub figures: Vec<Figure>,
}

/// A page.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// A paragraph each.
    pub notes: Vec<String>,
    /// Its parts.
    pub sections: Vec<Section>,
    /// What made it.
    pub made_by: String,
}

fn paragraphs(out: &mut String, notes: &[String]) {
    for note in notes {
        let _ = writeln!(out, "<p>{}</p>", escape(note));
    }
}

/// Text within `<script>`, which ends at the first `</script`, as JSON.
fn embedded(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('<', "\\u003c")
}

fn table(out: &mut String, table: &Sortable) {
    out.push_str("<div class=\"wide\"><table><thead><tr>");
    for (title, meaning) in &table.columns {
        let (title, meaning) = (escape(title), escape(meaning));
        let _ = write!(out, "<th scope=\"col\"><button title=\"{meaning}\">{title}</button></th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (text, number) in row {
            let text = escape(text);
            match number {
                Some(n) => _ = write!(out, "<td class=\"n\" data-n=\"{n}\">{text}</td>"),
                None => _ = write!(out, "<td>{text}</td>"),
            }
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

fn figure(out: &mut String, id: &str, figure: &Figure) -> Result<(), CsvError> {
    let (title, note) = (escape(&figure.title), escape(&figure.note));
    let _ = writeln!(out, "<figure id=\"{}\">", escape(id));
    let _ = writeln!(out, "<figcaption><h3>{title}</h3><p>{note}</p></figcaption>");
    let _ = writeln!(out, "<div class=\"wide\">{}</div>", svg(&figure.scene()));
    out.push_str("<p class=\"get\"><button data-get=\"svg\">SVG</button> ");
    out.push_str("<button data-get=\"csv\">CSV</button></p>\n");
    let data = embedded(&figure.csv()?);
    let _ = writeln!(out, "<script type=\"application/json\">{data}</script>\n</figure>");
    Ok(())
}

impl Page {
    /// The page as HTML.
    ///
    /// # Errors
    /// The CSV writer failed.
    pub fn html(&self) -> Result<String, CsvError> {
        let title = escape(&self.title);
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        );
        paragraphs(&mut out, &self.notes);
        if self.sections.len() > 1 {
            out.push_str("<nav><ul>\n");
            for (i, section) in self.sections.iter().enumerate() {
                let _ = writeln!(out, "<li><a href=\"#s{i}\">{}</a></li>", escape(&section.title));
            }
            out.push_str("</ul></nav>\n");
        }
        for (i, section) in self.sections.iter().enumerate() {
            let _ = writeln!(out, "<section id=\"s{i}\">\n<h2>{}</h2>", escape(&section.title));
            paragraphs(&mut out, &section.notes);
            if let Some(it) = &section.table {
                table(&mut out, it);
            }
            if let Some(it) = &section.explorer {
                it.html(&mut out);
            }
            for it in &section.figures {
                figure(&mut out, &format!("s{i}-{}", it.id), it)?;
            }
            out.push_str("</section>\n");
        }
        let made_by = escape(&self.made_by);
        let explores = self.sections.iter().any(|s| s.explorer.is_some());
        let explorer = if explores { EXPLORER } else { "" };
        let _ = write!(
            out,
            "<footer>{made_by}</footer>\n<script>\n{SCRIPT}{explorer}</script>\n</body>\n</html>\n"
        );
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        let evil = "</script><script>alert(1)</script>\"'&";
        let plot = crate::figure::Plot::Bars {
            axis: crate::figure::Axis::new(evil),
            parts: vec![evil.into()],
            rows: vec![(evil.into(), vec![1.0])],
        };
        let figures = vec![Figure { id: "x".into(), title: evil.into(), note: evil.into(), plot }];
        let table = Sortable {
            columns: vec![(evil.into(), evil.into())],
            rows: vec![vec![(evil.into(), None)]],
        };
        let one = || vec![evil.to_owned()];
        let explorer = Explorer {
            choices: one(),
            columns: one(),
            tables: vec![Explored { words: one(), notes: one(), rows: vec![(0, one())] }],
        };
        let explored = Section { explorer: Some(explorer), ..Section::default() };
        let section = Section {
            title: evil.into(),
            notes: vec![evil.into()],
            table: Some(table),
            figures,
            ..explored
        };
        let page = Page { title: evil.into(), sections: vec![section], ..Page::default() };
        let html = page.html().unwrap();
        assert!(!html.contains("<script>alert"), "{html}");
        assert_eq!(html.matches("</script>").count(), 3, "the data's and our own");
    }
}
