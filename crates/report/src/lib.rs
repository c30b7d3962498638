//! Tables of numbers for a terminal, as CSV, and flat views of JSON. Knows nothing of models.

mod flat;
mod table;
mod units;

pub use flat::{Cells, CsvError, to_cells, to_csv};
pub use table::{Align, Table, paragraph};
pub use units::{UnitError, bytes, count, parse_bytes, parse_count};
