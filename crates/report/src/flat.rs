//! Nested JSON objects as rows of cells, and as CSV: `{"a": {"b": 1}}` becomes the column `a.b`.

use serde_json::Value;
use thiserror::Error;

/// CSV could not be written.
#[derive(Debug, Error)]
#[error("csv: {0}")]
pub struct CsvError(String);

fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, value, out);
            }
        }
        Value::Array(items) => {
            let text: Vec<String> = items.iter().map(scalar).collect();
            out.push((prefix.into(), text.join("; ")));
        }
        other => out.push((prefix.into(), scalar(other))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Titles of columns, and cells of each row below them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cells {
    /// Titles.
    pub columns: Vec<String>,
    /// Rows, each with a cell per column.
    pub rows: Vec<Vec<String>>,
}

/// Objects as cells, a row each. The columns are all that occur, in the order of their first
/// occurrence; what a row does not have is empty.
pub fn to_cells(rows: &[Value]) -> Cells {
    let mut columns: Vec<String> = Vec::new();
    let mut flat = Vec::new();
    for row in rows {
        let mut cells = Vec::new();
        flatten("", row, &mut cells);
        // A new column stands behind the one before it in its own row.
        let mut after = 0;
        for (name, _) in &cells {
            match columns.iter().position(|c| c == name) {
                Some(at) => after = at + 1,
                None => {
                    columns.insert(after, name.clone());
                    after += 1;
                }
            }
        }
        flat.push(cells);
    }
    let row = |cells: Vec<(String, String)>| {
        let cell =
            |c: &String| cells.iter().find(|(name, _)| name == c).map(|(_, text)| text.clone());
        columns.iter().map(|c| cell(c).unwrap_or_default()).collect()
    };
    let rows = flat.into_iter().map(row).collect();
    Cells { columns, rows }
}

/// Writes the cells of [`to_cells`] as CSV, titles first.
///
/// # Errors
/// The CSV writer failed.
pub fn to_csv(rows: &[Value]) -> Result<String, CsvError> {
    let Cells { columns, rows } = to_cells(rows);
    cells_to_csv(&[vec![columns], rows].concat())
}

/// Writes rows of cells as CSV, as they are.
///
/// # Errors
/// The CSV writer failed.
pub fn cells_to_csv(rows: &[Vec<String>]) -> Result<String, CsvError> {
    let fail = |e: &dyn std::fmt::Display| CsvError(e.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row).map_err(|e| fail(&e))?;
    }
    let bytes = writer.into_inner().map_err(|e| fail(&e))?;
    String::from_utf8(bytes).map_err(|e| fail(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_keys_become_columns_and_missing_cells_are_empty() {
        let rows = [
            json!({"n": "a,b", "x": {"p": 1}, "z": 0}),
            json!({"n": "c", "x": {"q": 2.5}, "z": 3}),
        ];
        assert_eq!(to_csv(&rows).unwrap(), "n,x.q,x.p,z\n\"a,b\",,1,0\nc,2.5,,3\n");
    }
}
