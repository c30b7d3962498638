//! Formats in which the command line prints and saves what a command found: a file each, and one word in
//! the list below. `--format`, its help and the files of `--output` follow from the list.

pub mod parquet;

use crate::screen::Screen;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use clap::builder::PossibleValue;
pub use nestwalk_lab::results::FORMAT as RESULTS_FORMAT;
use serde_json::Value;
use std::path::Path;

/// Version of the format of results of sweeps, as [`RESULTS_FORMAT`] is of comparisons.
pub const SWEEP_FORMAT: u64 = 1;

/// What a command found. Formats make their text of it.
pub trait Found {
    /// All of it.
    ///
    /// # Errors
    /// A part cannot be written as JSON.
    fn json(&self) -> Result<Value>;

    /// An object per machine, mapping, step or bar; not for findings that are no table, whose command
    /// calls [`Format::refuse_rows`] before its work.
    ///
    /// # Errors
    /// There are no rows, or a part cannot be written as JSON.
    fn rows(&self) -> Result<Vec<Value>> {
        bail!("this has no rows; there are {}", names(|format| !format.0.is_of_rows()))
    }

    /// For people, where they read it.
    fn table(&self, screen: Screen) -> String;
}

/// From which view of what was found a format is made, and with that, for whom it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// Text for people. Commands that go on print lines for people.
    Table,
    /// One value for programs. Commands that go on print a JSON object per event, a line each.
    Json,
    /// Rows only: commands that find no rows refuse the format.
    Rows,
}

/// A format: what it is known by, and how it is made.
#[derive(Debug)]
pub struct Definition {
    /// Its value of `--format`.
    pub name: &'static str,
    /// One line for `--help`.
    pub meaning: &'static str,
    /// The file under `--output`.
    pub file: &'static str,
    /// What it shows.
    pub view: View,
    /// Makes the text, with the line break at its end.
    pub render: fn(&dyn Found, Screen) -> Result<String>,
}

impl Definition {
    fn is_of_rows(&self) -> bool {
        self.view == View::Rows
    }
}

/// A value of `--format`.
#[derive(Clone, Copy, Debug)]
pub struct Format(&'static Definition);

/// Each file has a `DEFINITION`.
macro_rules! formats {
    ($($name:ident),* $(,)?) => {
        $(mod $name;)*
        /// Every format, in the order of `--help`.
        static FORMATS: &[Format] = &[$(Format(&$name::DEFINITION)),*];
    };
}

formats! { table, json, csv, markdown }

impl Format {
    /// The format of `--json`.
    pub const JSON: Self = Self(&json::DEFINITION);

    /// The text of what was found, for standard output.
    ///
    /// # Errors
    /// The format shows rows and there are none, or a part cannot be written in it.
    pub fn render(self, found: &dyn Found) -> Result<String> {
        (self.0.render)(found, Screen::standard_output())
    }

    /// Programs read it: nothing else may be on standard output, and events are JSON objects.
    pub fn is_for_programs(self) -> bool {
        self.0.view == View::Json
    }

    /// Refuses a format of rows, for commands that find none. `why` says what they print.
    ///
    /// # Errors
    /// It is such a format; the message names those that are not.
    pub fn refuse_rows(self, why: &str) -> Result<()> {
        if self.0.is_of_rows() {
            let others = names(|format| !format.0.is_of_rows());
            bail!("--format {}: {why}; there are {others}", self.0.name);
        }
        Ok(())
    }
}

impl Default for Format {
    fn default() -> Self {
        Self(&table::DEFINITION)
    }
}

impl ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        FORMATS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name).help(self.0.meaning))
    }
}

/// `table, json and csv`: names of those that `of` says.
fn names(of: impl Fn(&Format) -> bool) -> String {
    let names: Vec<&str> = FORMATS.iter().filter(|f| of(f)).map(|f| f.0.name).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, before)) => format!("{} and {last}", before.join(", ")),
        None => String::new(),
    }
}

/// Names of the files that [`save`] makes.
pub fn files() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|format| format.0.file)
}

/// The help of `--output`.
pub fn help_of_output() -> String {
    let files: Vec<&str> = files().collect();
    let files = files.join(", ");
    format!(
        "Also write {files} and the resolved config.toml into DIR; of compare and run also FILE.parquet, \
         the rows alone"
    )
}

/// Writes what was found into `folder`, in every format. A file that cannot be written does not keep
/// the others from being written.
///
/// # Errors
/// A file cannot be written, or a format cannot be made.
pub fn save(folder: &Path, found: &dyn Found) -> Result<()> {
    let mut all = Ok(());
    for format in FORMATS {
        all = all.and(write(folder, format.0.file, &(format.0.render)(found, Screen::FILE)?));
    }
    all
}

/// Writes one file of `--output`.
///
/// # Errors
/// It cannot be written; then it is not there.
pub fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let written = std::fs::write(&path, text);
    if written.is_err() {
        // Half a file would be taken for a whole one.
        let _ = std::fs::remove_file(&path);
    }
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

/// Writes the rows of what was found into a file of Parquet.
///
/// # Errors
/// This build cannot, there are no rows, or it cannot be written; then it is not there.
pub fn save_rows(file: &Path, found: &dyn Found) -> Result<()> {
    let rows = found.rows()?;
    let mut writer = parquet::Writer::new(&rows)?;
    writer.write(&rows)?;
    let written = std::fs::write(file, writer.finish()?);
    if written.is_err() {
        let _ = std::fs::remove_file(file);
    }
    written.with_context(|| format!("{}: cannot be written", file.display()))
}

/// That the folder of a file which an option names is there, for commands that take long before they
/// write it.
///
/// # Errors
/// It is not.
pub fn check_folder(option: &str, file: &Path) -> Result<()> {
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            bail!("{option} {}: there is no folder {}", file.display(), folder.display())
        }
        _ => Ok(()),
    }
}

/// Writes one file that an option names.
///
/// # Errors
/// It cannot be written; then it is not there.
pub fn write_file(option: &str, file: &Path, text: &str) -> Result<()> {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        bail!("{option} {}: a file is expected", file.display());
    };
    write(folder, &name.to_string_lossy(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    struct Two;

    impl Found for Two {
        fn json(&self) -> Result<Value> {
            Ok(json!({ "machines": self.rows()? }))
        }
        fn rows(&self) -> Result<Vec<Value>> {
            Ok(vec![json!({ "name": "a|b", "walks": { "n": 1 } }), json!({ "name": "c" })])
        }
        fn table(&self, _: Screen) -> String {
            "two machines\n".into()
        }
    }

    struct Verdict;

    impl Found for Verdict {
        fn json(&self) -> Result<Value> {
            Ok(json!({ "violations": 0 }))
        }
        fn table(&self, _: Screen) -> String {
            "no violation\n".into()
        }
    }

    fn named(name: &str) -> Format {
        *FORMATS.iter().find(|format| format.0.name == name).unwrap()
    }

    #[test]
    fn every_format_has_a_name_and_a_file_of_its_own_and_ends_its_last_line() {
        let (mut names, mut files) = (BTreeSet::new(), BTreeSet::from(["config.toml"]));
        for format in FORMATS {
            let Definition { name, meaning, file, .. } = format.0;
            assert!(names.insert(name) && files.insert(file) && !meaning.is_empty(), "{name}");
            assert_eq!(Format::from_str(name, false).unwrap().0.name, *name);
            assert!(format.render(&Two).unwrap().ends_with('\n'), "{name}");
        }
        assert_eq!(Format::default().0.name, FORMATS[0].0.name, "the first is the default");
    }

    #[test]
    fn formats_show_the_view_that_they_say() {
        assert_eq!(named("table").render(&Two).unwrap(), "two machines\n");
        assert_eq!(named("csv").render(&Two).unwrap(), "name,walks.n\na|b,1\nc,\n");
        let text = Format::JSON.render(&Two).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Two.json().unwrap());
        assert!(Format::JSON.is_for_programs() && !Format::default().is_for_programs());
    }

    #[test]
    fn what_has_no_rows_refuses_formats_of_rows_and_names_the_others() {
        for format in FORMATS {
            let refused = format.refuse_rows("a verdict is no table");
            assert_eq!(format.render(&Verdict).is_err(), refused.is_err());
            let Err(error) = refused else { continue };
            let name = format.0.name;
            let message =
                format!("--format {name}: a verdict is no table; there are table and json");
            assert_eq!(error.to_string(), message);
        }
        assert!(named("csv").refuse_rows("").is_err());
    }
}
