//! `report`: a page of figures, and figures for papers, of what `compare --output` wrote.

mod across;
mod figures;
mod fleet;
mod heat;
mod numbers;
mod read;
mod walks;

use crate::args::{Drawing, ReportArgs};
use crate::formats::{self, Found};
use crate::screen::Screen;
use anyhow::{Context, Result, bail};
use nestwalk_lab::VERSION;
use nestwalk_report::bytes;
use nestwalk_report::figure::{Figure, pgf, svg};
use nestwalk_report::page::{Page, Section};
use read::Run;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The page if none is named.
const PAGE: &str = "report.html";

/// `nestwalk report`.
pub fn report(args: &ReportArgs) -> Result<()> {
    let Drawn { runs, named, page: drawn } = match fleet::drawn(&args.results)? {
        Some(_) if args.samples.is_some() => {
            bail!("--samples: of one VM only, and these are fleets")
        }
        Some(fleets) => fleets,
        None => drawn(args)?,
    };
    let mut made = Made { runs, named, written: Vec::new() };
    // A place that cannot be written to is found out before anything is.
    if let Some(folder) = &args.figures {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--figures {}: cannot be made", folder.display()))?;
    }
    let page = match (&args.output, &args.figures) {
        (Some(file), _) => Some(file.clone()),
        (None, None) => Some(PathBuf::from(PAGE)),
        (None, Some(_)) => None,
    };
    if let Some(file) = page {
        if args.results.iter().any(|path| path.join("results.json") == file || *path == file) {
            bail!("-o {}: the results are there", file.display());
        }
        let html = drawn.html()?;
        made.write(&file, &html)?;
    }
    if let Some(folder) = &args.figures {
        made.written.extend(write_figures(folder, &made.named, &args.drawings)?);
    }
    let out = args.format.render(&made)?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// What is drawn of results.
struct Drawn {
    runs: usize,
    /// Figures by the names of their files.
    named: Vec<(String, Figure)>,
    page: Page,
}

/// What is drawn of results of machines.
fn drawn(args: &ReportArgs) -> Result<Drawn> {
    let runs = read::runs(&args.results)?;
    let mut together: Vec<Figure> = across::footprints(&runs);
    together.extend(across::overheads(&runs));
    if let Some(folder) = &args.samples {
        together.extend(across::samples(folder)?);
    }
    let each: Vec<Vec<Figure>> = runs.iter().map(figures::of).collect();
    let labels: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let named = named(&labels, &together, &each);
    Ok(Drawn { runs: runs.len(), named, page: page_of(&runs, together, each) })
}

/// All figures by the names of their files, of runs with these labels.
fn named(labels: &[&str], together: &[Figure], each: &[Vec<Figure>]) -> Vec<(String, Figure)> {
    let mut all: Vec<(String, Figure)> =
        together.iter().map(|figure| (figure.id.clone(), figure.clone())).collect();
    for (i, (label, figures)) in labels.iter().zip(each).enumerate() {
        // Two labels may be the same word among files.
        let word = word(label);
        let twice = labels[..i].iter().any(|other| self::word(other) == word);
        for figure in figures {
            let name = match (labels.len(), twice) {
                (1, _) => figure.id.clone(),
                (_, false) => format!("{word}-{}", figure.id),
                (_, true) => format!("{word}-{}-{}", i + 1, figure.id),
            };
            all.push((name, figure.clone()));
        }
    }
    all
}

/// A label as a word for the name of a file.
fn word(label: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
    label.chars().map(kept).collect::<String>().trim_matches(['-', '.']).to_owned()
}

fn page_of(runs: &[Run], together: Vec<Figure>, each: Vec<Vec<Figure>>) -> Page {
    let about = |run: &Run| {
        let mut notes = vec![format!("{}: {}", run.source, run.description)];
        notes.push(format!("Profile {}.", run.profile));
        notes.extend(run.notes.iter().map(|note| format!("Note: {note}.")));
        notes
    };
    let mut sections = vec![Section {
        title: "All numbers".into(),
        notes: vec!["A heading sorts the table; it says what it means if pointed at.".into()],
        table: Some(numbers::table(runs)),
        figures: together,
        ..Section::default()
    }];
    let mut notes = Vec::new();
    match runs {
        [run] => notes = about(run),
        _ => notes.push(format!("{} runs.", runs.len())),
    }
    for (run, figures) in runs.iter().zip(each) {
        let (title, notes) = match runs.len() {
            1 => ("Figures".to_owned(), Vec::new()),
            _ => (run.label.clone(), about(run)),
        };
        sections.push(Section { title, notes, figures, ..Section::default() });
    }
    sections.extend(walks::section(runs));
    let title = match runs {
        [run] => format!("{} on {}", run.source, run.profile),
        _ => "Comparison of runs".into(),
    };
    Page { title, notes, sections, made_by: format!("nestwalk {VERSION}") }
}

/// Writes figures by the names of their files, each with its numbers: the files and their lengths.
///
/// # Errors
/// One cannot be written.
pub fn write_figures(
    folder: &Path,
    named: &[(String, Figure)],
    drawings: &[Drawing],
) -> Result<Vec<(PathBuf, usize)>> {
    let mut written = Vec::new();
    for (name, figure) in named {
        let scene = figure.scene();
        let mut files = vec![("csv", figure.csv()?)];
        for drawing in drawings {
            match drawing {
                Drawing::Svg => files.push(("svg", svg(&scene))),
                Drawing::Pgf => files.push(("pgf", pgf(&scene))),
                Drawing::Vega => {
                    if let Some(value) = figure.vega() {
                        files.push(("vl.json", serde_json::to_string_pretty(&value)? + "\n"));
                    }
                }
            }
        }
        for (ending, text) in files {
            let file = folder.join(format!("{name}.{ending}"));
            formats::write_file("--figures", &file, &text)?;
            written.push((file, text.len()));
        }
    }
    Ok(written)
}

/// What was made.
struct Made {
    runs: usize,
    /// Figures by the names of their files.
    named: Vec<(String, Figure)>,
    /// Files and their lengths.
    written: Vec<(PathBuf, usize)>,
}

impl Made {
    fn write(&mut self, file: &Path, text: &str) -> Result<()> {
        formats::write_file("-o", file, text)?;
        self.written.push((file.into(), text.len()));
        Ok(())
    }
}

impl Found for Made {
    fn json(&self) -> Result<Value> {
        let figure = |(name, figure): &(String, Figure)| {
            json!({
                "name": name,
                "title": figure.title,
                "note": figure.note,
                "rows": figure.rows(),
            })
        };
        let file = |(path, bytes): &(PathBuf, usize)| json!({ "file": path.to_string_lossy(), "bytes": bytes });
        Ok(json!({
            "runs": self.runs,
            "figures": self.named.iter().map(figure).collect::<Vec<_>>(),
            "written": self.written.iter().map(file).collect::<Vec<_>>(),
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let file = |(path, bytes): &(PathBuf, usize)| json!({ "file": path.to_string_lossy(), "bytes": bytes });
        Ok(self.written.iter().map(file).collect())
    }

    fn table(&self, _: Screen) -> String {
        let line = |(path, length): &(PathBuf, usize)| {
            format!("{}: {}\n", path.display(), bytes(*length as u64))
        };
        self.written.iter().map(line).collect()
    }
}
