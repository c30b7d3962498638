//! `reproduce`: the evaluations of publications, with the workloads that can be had here, beside what
//! was published.

mod agile;
mod bars;
mod figures;
mod isca20;
mod lectures;
mod lmbench;
mod micro14;
mod numa;
mod programs;
mod series;
mod tables;
mod thesis;
mod vmitosis;
mod why;

use crate::args::{Publication, ReproduceArgs};
use crate::commands::report;
use crate::formats::{self, Found};
use anyhow::{Context, Result};
use std::io::Write;

/// `nestwalk reproduce PUBLICATION`.
pub fn reproduce(args: &ReproduceArgs) -> Result<()> {
    let output = &args.output;
    if let Some(folder) = &output.output {
        formats::parquet::refuse(&args.output.output, "of an evaluation")?;
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--output {}: cannot be made", folder.display()))?;
    }
    if let Some(folder) = &args.figures {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--figures {}: cannot be made", folder.display()))?;
    }
    let (found, stopped): (Box<dyn Found>, _) = match args.publication {
        Publication::Thesis => boxed(thesis::run(args)?),
        Publication::Agile => boxed(agile::run(args)?),
        Publication::Micro14 => boxed(micro14::run(args)?),
        Publication::Isca20 => boxed(isca20::run(args)?),
        Publication::Vmitosis => boxed(vmitosis::run(args)?),
        Publication::Lmbench => boxed(lmbench::run(args)?),
        Publication::Lectures => boxed(lectures::run(args)?),
        Publication::Tables => boxed(tables::run(args)?),
        Publication::Numa => boxed(numa::run(args)?),
    };
    if let Some(folder) = &output.output {
        formats::save(folder, found.as_ref())?;
    }
    if let Some(folder) = &args.figures {
        let figures = figures::figures(&found.rows()?).into_iter();
        let named: Vec<_> = figures.map(|figure| (figure.id.clone(), figure)).collect();
        report::write_figures(folder, &named, &args.drawings)?;
    }
    let text = output.format.render(found.as_ref())?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")?;
    stopped.map_or(Ok(()), |error| {
        Err(error.context("ended early; the results are those of the programs before"))
    })
}

/// What was found, with a row per bar of its figures, and what stopped it before its end.
type Ended<T> = (T, Option<anyhow::Error>);

fn boxed<T: Found + 'static>((found, stopped): Ended<T>) -> Ended<Box<dyn Found>> {
    (Box::new(found), stopped)
}
