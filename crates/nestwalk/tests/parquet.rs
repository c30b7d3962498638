//! Rows in Parquet, read back by the library that wrote them, against CSV and JSON of the same.

#![cfg(feature = "parquet")]

mod common;

use common::{Lab, parse};
use parquet::basic::Type;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use std::collections::BTreeMap;

/// Rows by titles, a value that is missing as `Null`, and the physical types of the columns.
fn read(lab: &Lab, name: &str) -> (Vec<BTreeMap<String, Field>>, BTreeMap<String, Type>) {
    let file = std::fs::File::open(lab.path(name)).unwrap();
    let reader = SerializedFileReader::new(file).unwrap();
    let columns = reader.metadata().file_metadata().schema_descr().columns().to_vec();
    let types = columns.iter().map(|c| (c.name().to_owned(), c.physical_type())).collect();
    let rows = reader.get_row_iter(None).unwrap().map(|row| {
        let row = row.unwrap();
        row.get_column_iter().map(|(name, field)| (name.clone(), field.clone())).collect()
    });
    (rows.collect(), types)
}

fn csv(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.deserialize().map(|row| row.unwrap()).collect()
}

/// What CSV has of a value.
fn cell(field: &Field) -> String {
    match field {
        Field::Null => String::new(),
        Field::Str(text) => text.clone(),
        Field::Long(n) => n.to_string(),
        Field::Double(x) => x.to_string(),
        other => panic!("{other:?}"),
    }
}

fn is_same(field: &Field, text: &str) -> bool {
    match (field, text.parse::<f64>()) {
        (Field::Double(x), Ok(number)) => x.to_bits() == number.to_bits(),
        _ => cell(field) == text,
    }
}

const LINE: &str =
    "compare gups --footprint 4MiB --accesses 5k --machines nested,vmm-direct,switching --quiet";

#[test]
fn rows_are_those_of_csv_with_numbers_as_numbers() {
    let lab = Lab::new();
    let text = lab.ok(&format!("{LINE} --format csv --output a.parquet"));
    let ((rows, types), expected) = (read(&lab, "a.parquet"), csv(&text));
    assert_eq!((rows.len(), expected.len()), (5, 5));
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!(row.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (key, field) in row {
            assert!(is_same(field, &expected[key]), "{key}: {field:?} {}", expected[key]);
        }
    }
    assert_eq!((types["walks"], types["total_cycles"]), (Type::INT64, Type::DOUBLE));
    assert_eq!((types["name"], types["page_table_bytes.nested"]), (Type::BYTE_ARRAY, Type::INT64));
}

#[test]
fn the_long_table_has_columns_for_numbers_and_for_texts() {
    let lab = Lab::new();
    let text = lab.ok(&format!("{LINE} --long --format csv --output a.parquet"));
    let ((rows, types), expected) = (read(&lab, "a.parquet"), csv(&text));
    assert!(rows.len() == expected.len() && rows.len() > 400, "{}", rows.len());
    let mut texts = 0;
    for (row, expected) in rows.iter().zip(&expected) {
        let (value, text) = (&row["value"], &row["text"]);
        assert!(matches!(value, Field::Null) || matches!(text, Field::Null), "{row:?}");
        texts += usize::from(!matches!(text, Field::Null));
        let either = if matches!(value, Field::Null) { text } else { value };
        assert!(is_same(either, &expected["value"]), "{row:?} {expected:?}");
        for key in ["machine", "key", "unit", "profile", "pages", "seed", "input_hash"] {
            assert_eq!(cell(&row[key]), expected[key], "{key}");
        }
    }
    assert!(texts >= 5, "names of schemes are texts");
    assert_eq!((types["value"], types["seed"]), (Type::DOUBLE, Type::INT64));
}

#[test]
fn the_table_of_a_sweep_is_one_file() {
    let lab = Lab::new();
    let base =
        "[compare]\nsource = 'gups'\nfootprint = '1MiB'\naccesses = '2k'\nmachines = 'nested'\n";
    lab.write("s.toml", format!("{base}[axes]\nseed = {{ from = 1, to = 3 }}\n"));
    let said = lab.ok("sweep s.toml -o d --quiet --table d/all.parquet");
    assert!(said.contains("d/all.parquet"), "{said}");
    let ((rows, _), expected) = (read(&lab, "d/all.parquet"), csv(&lab.read("d/results.csv")));
    assert_eq!(rows.len(), expected.len());
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!(cell(&row["axis.seed"]), expected["axis.seed"]);
        assert_eq!(cell(&row["key"]), expected["key"]);
    }
    assert!(parse(&lab.read("d/results.json"))["complete"].as_bool().unwrap());
}

#[test]
fn what_cannot_be_is_said_before_the_work() {
    let lab = Lab::new();
    assert!(lab.refused(&format!("{LINE} --output none/a.parquet")).contains("none/a.parquet"));
    lab.write("s.toml", "");
    assert!(lab.refused("sweep s.toml -o d --table a.txt").contains(".parquet"));
    let error = lab.refused("compare --vm a=gups --vm b=gups --output a.parquet");
    assert!(error.contains("a folder") && !lab.path("a.parquet").exists(), "{error}");
}
