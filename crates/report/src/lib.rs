//! Tables of numbers for a terminal, as CSV, and flat views of JSON; figures, and pages of them. Knows
//! nothing of models.

pub mod figure;
mod flat;
pub mod page;
mod table;
mod units;

pub use flat::{Cells, CsvError, cells_to_csv, to_cells, to_csv};
pub use table::{Align, Table, paragraph};
pub use units::{UnitError, bytes, count, parse_bytes, parse_count};
