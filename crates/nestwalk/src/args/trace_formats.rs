//! Help on trace formats, from their list.

use nestwalk_source::Format;

/// `--trace-format` in a few words.
pub fn read() -> String {
    let names = Format::names().join(", ");
    format!("Format of trace files, instead of telling it by their contents: {names}")
}

/// `--trace-format` with a line for each format.
pub fn described() -> String {
    let lines = Format::ALL.iter().map(|f| format!("\n- {}: {}", f.name(), f.summary()));
    format!(
        "Format of trace files, instead of telling it by their contents:{}",
        lines.collect::<String>()
    )
}

/// The formats that have an ending to be written with.
fn with_endings() -> impl Iterator<Item = &'static Format> {
    Format::ALL.iter().filter(|format| !format.endings().is_empty())
}

/// The endings of names of files that can be written: `.nwt, .a or .b`.
pub fn endings() -> String {
    let endings = with_endings().filter_map(|format| format.endings().first());
    let mut all: Vec<String> = endings.map(|ending| format!(".{ending}")).collect();
    let last = all.pop().unwrap_or_default();
    format!("{} or {last}", all.join(", "))
}

/// OUT of `trace convert`.
pub fn output() -> String {
    format!("The trace to write: {}; all but the first may end with .gz, .xz or .zst", endings())
}

/// `--to` of `trace convert`.
pub fn written() -> String {
    let names: Vec<&str> = with_endings().map(|format| format.name()).collect();
    format!("Format of OUT, instead of telling it by the name: {}", names.join(", "))
}
