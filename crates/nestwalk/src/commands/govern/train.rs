//! `govern --train`: makes the model of the policy `svm`.

use super::{load, samples};
use crate::args::GovernArgs;
use anyhow::{Context, Result, bail};
use nestwalk_policy::{Mode, Sample, SampleWriter, best_modes, train as learn};
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// A sample and the mode that was best.
type Labelled = (Sample, Mode);

/// One file whose rows say the best mode.
fn labelled(path: &Path) -> Result<Vec<Labelled>> {
    let rows = load(path)?.into_iter().map(|row| match row.best_mode {
        Some(best) => Ok((row.sample, best)),
        None => bail!(
            "{}: line {}: no best_mode; give two runs of the same work, one in each mode, to have it \
             found",
            path.display(),
            row.line
        ),
    });
    rows.collect()
}

/// Two runs of the same work: the rows, and how many more there would be if modes were never alike.
fn pair(one: &Path, other: &Path) -> Result<(Vec<Labelled>, usize)> {
    let (a, b) = (samples(one)?, samples(other)?);
    let given = a.len() + b.len();
    let a_is_shadow = a.first().is_some_and(|s| s.mode == Mode::Shadow);
    let (shadow, nested) = if a_is_shadow { (a, b) } else { (b, a) };
    let rows = best_modes(&shadow, &nested)
        .with_context(|| format!("--train: {} and {}", one.display(), other.display()))?;
    let alike = given - rows.len();
    Ok((rows, alike))
}

fn save_rows(path: &Path, rows: &[Labelled]) -> Result<()> {
    let comments = ["labelled by nestwalk govern --train; one run after the other".to_owned()];
    let mut writer = SampleWriter::labelled(BufWriter::new(File::create(path)?), &comments)?;
    let mut time_ns = 0;
    for (sample, best) in rows {
        // Runs began at 0 each, and time grows in a file.
        time_ns += sample.duration_ns.max(1);
        writer.write_labelled(&Sample { time_ns, ..*sample }, *best)?;
    }
    Ok(())
}

/// Learns from one file with a column `best_mode`, or from aligned runs.
pub fn train(args: &GovernArgs) -> Result<()> {
    let Some(output) = &args.save_model else {
        bail!("--train needs --save-model FILE for the model");
    };
    let mut alike = 0;
    let rows: Vec<Labelled> = match args.train.as_slice() {
        [one] => labelled(one)?,
        files if files.len() % 2 == 0 => {
            let mut rows = Vec::new();
            for two in files.chunks(2) {
                let (more, left_out) = pair(&two[0], &two[1])?;
                rows.extend(more);
                alike += left_out;
            }
            rows
        }
        files => bail!(
            "--train takes one file with a column best_mode, or runs of the same work in either mode, \
             two after two; there are {}",
            files.len()
        ),
    };
    if let Some(path) = &args.save_rows {
        save_rows(path, &rows).with_context(|| format!("--save-rows {}", path.display()))?;
    }
    let training = learn(&rows).context("--train")?;
    fs::write(output, &training.model).with_context(|| output.display().to_string())?;
    let [shadow, nested] = training.rows;
    let [held, held_right] = training.held_out;
    let text = if args.format.is_for_programs() {
        json!({
            "model": output, "rows": { "shadow": shadow, "nested": nested },
            "left_out": training.left_out + alike, "support_vectors": training.support_vectors,
            "correct": training.correct,
            "held_out": { "rows": held, "correct": held_right },
        })
        .to_string()
    } else {
        format!(
            "{}: {} support vectors of {} rows ({shadow} best in shadow, {nested} in nested mode; {} \
             left out)\n{} of its own rows are classified rightly; of every fifth row, held out, \
             {held_right} of {held}",
            output.display(),
            training.support_vectors,
            shadow + nested,
            training.left_out + alike,
            training.correct
        )
    };
    writeln!(std::io::stdout().lock(), "{text}").context("standard output")
}
