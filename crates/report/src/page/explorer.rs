//! Tables of which one is shown at a time, by what is chosen.

use crate::figure::escape;
use serde_json::json;
use std::fmt::Write;

/// A table for each combination of choices that there is.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Explorer {
    /// Titles of the choices. What can be chosen depends on what is chosen before it.
    pub choices: Vec<String>,
    /// Titles of the columns.
    pub columns: Vec<String>,
    /// The tables, in the order in which choices are offered.
    pub tables: Vec<Explored>,
}

/// One of the tables.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Explored {
    /// A word for each choice.
    pub words: Vec<String>,
    /// A line each, above it.
    pub notes: Vec<String>,
    /// Rows: one of three kinds, which have a colour each, and a cell for each column.
    pub rows: Vec<(u8, Vec<String>)>,
}

impl Explorer {
    /// The page's part; `explorer.js` fills it.
    pub(super) fn html(&self, out: &mut String) {
        out.push_str("<div class=\"explorer\">\n<p>");
        for choice in &self.choices {
            let _ = write!(out, "<label>{} <select></select></label> ", escape(choice));
        }
        out.push_str("</p>\n<div class=\"notes\"></div>\n<div class=\"wide\"><table><thead><tr>");
        for column in &self.columns {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(column));
        }
        out.push_str("</tr></thead><tbody></tbody></table></div>\n");
        let tables = self.tables.iter().map(|t| json!([t.words, t.notes, t.rows]));
        let data = json!(tables.collect::<Vec<_>>()).to_string().replace('<', "\\u003c");
        let _ = writeln!(out, "<script type=\"application/json\">{data}</script>\n</div>");
    }
}
