//! Rows as an Apache Parquet file: a column for each field, numbers as numbers. It is no text, so it is
//! not in the list of formats: the name of a file asks for it.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// How the names of such files end.
const ENDING: &str = "parquet";

/// Whether the name of a file says that it is one.
pub fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(ENDING))
}

/// That this build can write it, which is found out before the work.
///
/// # Errors
/// It cannot.
pub fn check(option: &str, path: &Path) -> Result<()> {
    if cfg!(feature = "parquet") {
        return Ok(());
    }
    anyhow::bail!(
        "{option} {}: Parquet is not in this build, which is lighter without; cargo build --release \
         --features parquet makes one that has it. CSV is in every build",
        path.display()
    )
}

/// As [`check`], and that the file can be written.
///
/// # Errors
/// It cannot.
pub fn prepare(option: &str, path: &Path) -> Result<()> {
    check(option, path)?;
    std::fs::write(path, "")
        .with_context(|| format!("{option} {}: cannot be written", path.display()))
}

/// That a place which gets folders is none of these files.
///
/// # Errors
/// It is.
pub fn refuse(output: &Option<PathBuf>, of: &str) -> Result<()> {
    match output {
        Some(path) if is_named(path) => {
            anyhow::bail!("--output {}: results {of} go into a folder", path.display())
        }
        _ => Ok(()),
    }
}

#[cfg(feature = "parquet")]
pub use with::Writer;
#[cfg(not(feature = "parquet"))]
pub use without::Writer;

#[cfg(not(feature = "parquet"))]
mod without {
    use super::Result;
    use serde_json::Value;

    /// Nothing that could be made.
    pub enum Writer {}

    impl Writer {
        pub fn new(_: &[Value]) -> Result<Self> {
            anyhow::bail!("Parquet is not in this build")
        }
        pub fn write(&mut self, _: &[Value]) -> Result<()> {
            match *self {}
        }
        pub fn finish(self) -> Result<Vec<u8>> {
            match self {}
        }
    }
}

#[cfg(feature = "parquet")]
mod with {
    use crate::formats::RESULTS_FORMAT;
    use anyhow::{Context, Result, anyhow};
    use nestwalk_lab::VERSION;
    use nestwalk_report::to_cells;
    use parquet::basic::{LogicalType, Repetition, Type as Physical};
    use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
    use parquet::schema::types::Type;
    use serde_json::Value;
    use std::sync::Arc;

    /// What a column holds; each value may be missing.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Kind {
        /// INT64.
        Whole,
        /// DOUBLE.
        Real,
        /// BYTE_ARRAY of UTF-8.
        Text,
    }

    /// A column, by the field that it is made of.
    struct Column {
        title: String,
        field: String,
        kind: Kind,
        /// Texts that are numbers are not in it, or nothing else is.
        split: bool,
    }

    /// Writes a file into memory, rows after rows of the same columns.
    pub struct Writer {
        columns: Vec<Column>,
        file: SerializedFileWriter<Vec<u8>>,
    }

    impl Writer {
        /// A file with the columns of these rows, none of which is written yet.
        ///
        /// # Errors
        /// The columns are none that Parquet can have.
        pub fn new(rows: &[Value]) -> Result<Self> {
            let columns = columns(rows);
            let field = |column: &Column| {
                let (physical, logical) = match column.kind {
                    Kind::Whole => (Physical::INT64, None),
                    Kind::Real => (Physical::DOUBLE, None),
                    Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
                };
                let field = Type::primitive_type_builder(&column.title, physical)
                    .with_logical_type(logical)
                    .with_repetition(Repetition::OPTIONAL)
                    .build()?;
                Ok(Arc::new(field))
            };
            let fields = columns.iter().map(field).collect::<Result<_>>()?;
            let schema = Type::group_type_builder("rows").with_fields(fields).build()?;
            let about = [
                ("nestwalk.format_version", RESULTS_FORMAT.to_string()),
                ("nestwalk.version", VERSION.to_owned()),
            ];
            let about = about.map(|(key, value)| KeyValue::new(key.to_owned(), value)).to_vec();
            let properties =
                WriterProperties::builder().set_key_value_metadata(Some(about)).build();
            let file =
                SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
            Ok(Self { columns, file })
        }

        /// Writes rows as a group.
        ///
        /// # Errors
        /// A number is too large.
        pub fn write(&mut self, rows: &[Value]) -> Result<()> {
            let mut group = self.file.next_row_group()?;
            for column in &self.columns {
                let Some(mut out) = group.next_column()? else { break };
                match column.kind {
                    Kind::Whole => put::<Int64Type>(&mut out, column, rows, whole),
                    Kind::Real => put::<DoubleType>(&mut out, column, rows, real),
                    Kind::Text => put::<ByteArrayType>(&mut out, column, rows, text),
                }
                .with_context(|| column.title.clone())?;
                out.close()?;
            }
            group.close()?;
            Ok(())
        }

        /// The bytes of the file.
        ///
        /// # Errors
        /// Its end cannot be written.
        pub fn finish(self) -> Result<Vec<u8>> {
            Ok(self.file.into_inner()?)
        }
    }

    fn put<T: DataType>(
        out: &mut SerializedColumnWriter<'_>,
        column: &Column,
        rows: &[Value],
        of: fn(&Column, &Value) -> Result<Option<T::T>>,
    ) -> Result<()> {
        let leaf = |row| match leaf(row, &column.field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => of(column, value),
        };
        let all = rows.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let there: Vec<i16> = all.iter().map(|value| i16::from(value.is_some())).collect();
        let values: Vec<T::T> = all.into_iter().flatten().collect();
        out.typed::<T>().write_batch(&values, Some(&there), None)?;
        Ok(())
    }

    fn whole(_: &Column, value: &Value) -> Result<Option<i64>> {
        value.as_i64().map(Some).ok_or_else(|| anyhow!("{value}: not below 2^63"))
    }

    fn real(column: &Column, value: &Value) -> Result<Option<f64>> {
        Ok(match value.as_str() {
            Some(text) if column.split => text.parse().ok(),
            _ => value.as_f64(),
        })
    }

    fn text(column: &Column, value: &Value) -> Result<Option<ByteArray>> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join("; "),
            other => other.to_string(),
        };
        let number = column.split && text.parse::<f64>().is_ok();
        Ok((!text.is_empty() && !number).then(|| text.as_str().into()))
    }

    /// As CSV has it.
    fn plain(value: &Value) -> String {
        value.as_str().map_or_else(|| value.to_string(), String::from)
    }

    /// The value of a row at a path, where a key may have dots itself.
    fn leaf<'a>(row: &'a Value, path: &str) -> Option<&'a Value> {
        let object = row.as_object()?;
        object.get(path).or_else(|| {
            let inside = object.iter().filter_map(|(key, value)| {
                leaf(value, path.strip_prefix(key.as_str())?.strip_prefix('.')?)
            });
            inside.into_iter().next()
        })
    }

    /// The columns of rows, in the order in which CSV has them. Of the long table a row's value is a
    /// number or a text: each has a column.
    fn columns(rows: &[Value]) -> Vec<Column> {
        let titles = to_cells(rows).columns;
        let is_long = ["key", "value", "unit"].iter().all(|part| titles.iter().any(|t| t == part));
        let column = |field: String| {
            if is_long && field == "value" {
                let of = |title: &str, kind| Column {
                    title: title.into(),
                    field: field.clone(),
                    kind,
                    split: true,
                };
                return vec![of("value", Kind::Real), of("text", Kind::Text)];
            }
            let values = rows.iter().filter_map(|row| leaf(row, &field));
            let kinds = values.filter(|value| !value.is_null()).map(kind);
            // Of a column without values it is one that most are of.
            let kind = kinds.reduce(wider).unwrap_or(Kind::Real);
            vec![Column { title: field.clone(), field, kind, split: false }]
        };
        titles.into_iter().flat_map(column).collect()
    }

    fn kind(value: &Value) -> Kind {
        match value {
            Value::Number(n) if n.is_f64() => Kind::Real,
            Value::Number(_) => Kind::Whole,
            _ => Kind::Text,
        }
    }

    const fn wider(a: Kind, b: Kind) -> Kind {
        match (a, b) {
            (Kind::Text, _) | (_, Kind::Text) => Kind::Text,
            (Kind::Real, _) | (_, Kind::Real) => Kind::Real,
            _ => Kind::Whole,
        }
    }
}
