//! Figures: numbers with names, laid out once as shapes ([`Scene`]) and written as SVG and PGF; as
//! Vega-Lite and CSV the numbers themselves are written.

mod axis;
mod bars;
mod lines;
mod pgf;
mod plain;
mod rows;
mod scene;
mod svg;
mod vega;

pub use axis::{Axis, Unit, number};
pub use pgf::pgf;
pub use plain::plain;
pub use scene::{Anchor, FONT, Ink, PALETTE, Point, Scene, Shape, width_of};
pub use svg::{escape, svg};

use crate::flat::CsvError;
use serde_json::Value;

/// A stretch: from, to, and the part that it belongs to.
pub type Span = (f64, f64, usize);

/// What a figure shows.
#[derive(Clone, PartialEq, Debug)]
pub enum Plot {
    /// A bar per row, of parts one behind the other.
    Bars {
        /// What the bars' lengths are, with the unit.
        axis: Axis,
        /// Names of the parts.
        parts: Vec<String>,
        /// A name and a number for each part.
        rows: Vec<(String, Vec<f64>)>,
    },
    /// Lines through points.
    Lines {
        /// Along.
        x: Axis,
        /// Up, from 0.
        y: Axis,
        /// A name and points for each line.
        lines: Vec<(String, Vec<Point>)>,
    },
    /// Stretches of each row that belong to one part or another.
    Spans {
        /// Along.
        axis: Axis,
        /// Names of the parts.
        parts: Vec<String>,
        /// A name and its stretches.
        rows: Vec<(String, Vec<Span>)>,
    },
    /// Cells, the darker the larger their number.
    Cells {
        /// What the numbers are.
        title: String,
        /// Names of columns.
        columns: Vec<String>,
        /// A name, and a number for each column; nothing where there can be none.
        rows: Vec<(String, Vec<Option<f64>>)>,
    },
    /// A drawing, and the table of what it shows: titles first.
    Drawing(Box<Scene>, Vec<Vec<String>>),
}

/// A figure.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// Its name among files: lower-case letters, digits and hyphens.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub note: String,
    /// The numbers.
    pub plot: Plot,
}

impl Figure {
    /// The picture.
    pub fn scene(&self) -> Scene {
        match &self.plot {
            Plot::Bars { axis, parts, rows } => bars::bars(&self.title, axis, parts, rows),
            Plot::Spans { axis, parts, rows } => bars::spans(&self.title, axis, parts, rows),
            Plot::Lines { x, y, lines } => lines::lines(&self.title, x, y, lines),
            Plot::Cells { title, columns, rows } => lines::cells(&self.title, title, columns, rows),
            Plot::Drawing(scene, _) => (**scene).clone(),
        }
    }

    /// The numbers as rows of cells, titles first.
    pub fn rows(&self) -> Vec<Vec<String>> {
        rows::rows(&self.plot)
    }

    /// The numbers as CSV.
    ///
    /// # Errors
    /// The CSV writer failed.
    pub fn csv(&self) -> Result<String, CsvError> {
        crate::flat::cells_to_csv(&self.rows())
    }

    /// The figure as Vega-Lite, with its numbers; none of a drawing.
    pub fn vega(&self) -> Option<Value> {
        vega::vega(self)
    }
}
