//! `reproduce`: the evaluations of publications, with the workloads that can be had here, beside what
//! was published.

mod agile;
mod bars;
mod isca20;
mod lmbench;
mod micro14;
mod programs;
mod series;
mod thesis;
mod vmitosis;
mod why;

use crate::args::{Publication, ReproduceArgs};
use crate::formats::Format;
use anyhow::{Context, Result};
use std::io::Write;

/// `nestwalk reproduce PUBLICATION`.
pub fn reproduce(args: &ReproduceArgs) -> Result<()> {
    let output = &args.output;
    if let Some(folder) = &output.output {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--output {}: cannot be made", folder.display()))?;
    }
    let (found, stopped): (Box<dyn Evaluation>, _) = match args.publication {
        Publication::Thesis => boxed(thesis::run(args)?),
        Publication::Agile => boxed(agile::run(args)?),
        Publication::Micro14 => boxed(micro14::run(args)?),
        Publication::Isca20 => boxed(isca20::run(args)?),
        Publication::Vmitosis => boxed(vmitosis::run(args)?),
        Publication::Lmbench => boxed(lmbench::run(args)?),
    };
    if let Some(folder) = &output.output {
        for (name, format) in [
            ("results.json", Format::Json),
            ("results.csv", Format::Csv),
            ("table.txt", Format::Table),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, render(found.as_ref(), format)?)
                .with_context(|| format!("{}: cannot be written", path.display()))?;
        }
    }
    let text = render(found.as_ref(), output.format)?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")?;
    stopped.map_or(Ok(()), |error| {
        Err(error.context("ended early; the results are those of the programs before"))
    })
}

/// What was found, and what stopped it before its end.
type Found<T> = (T, Option<anyhow::Error>);

fn boxed<T: Evaluation + 'static>((found, stopped): Found<T>) -> Found<Box<dyn Evaluation>> {
    (Box::new(found), stopped)
}

/// What an evaluation found.
trait Evaluation {
    /// All of it.
    fn json(&self) -> Result<serde_json::Value>;
    /// A row per bar of its figures.
    fn rows(&self) -> Result<Vec<serde_json::Value>>;
    /// For people.
    fn table(&self) -> String;
}

fn render(found: &dyn Evaluation, format: Format) -> Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(&found.json()?)? + "\n",
        Format::Csv => nestwalk_report::to_csv(&found.rows()?)?,
        Format::Table => found.table(),
    })
}
