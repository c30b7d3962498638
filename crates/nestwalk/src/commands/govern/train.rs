//! `govern --train`: makes the model of the policy `svm`.

use super::{load, samples};
use crate::args::{Format, GovernArgs};
use anyhow::{Context, Result, bail};
use nestwalk_policy::{Mode, Sample, best_modes, train as learn};
use serde_json::json;
use std::fs;
use std::io::Write;

/// Learns from one file with a column `best_mode`, or from two aligned runs.
pub fn train(args: &GovernArgs) -> Result<()> {
    let Some(output) = &args.save_model else {
        bail!("--train needs --save-model FILE for the model");
    };
    let rows: Vec<(Sample, Mode)> = match args.train.as_slice() {
        [one] => {
            let labelled = load(one)?.into_iter().map(|row| match row.best_mode {
                Some(best) => Ok((row.sample, best)),
                None => bail!(
                    "{}: line {}: no best_mode; give two runs of the same work, one in each mode, \
                     to have it found",
                    one.display(),
                    row.line
                ),
            });
            labelled.collect::<Result<_>>()?
        }
        [one, other] => {
            let (a, b) = (samples(one)?, samples(other)?);
            let a_is_shadow = a.first().is_some_and(|s| s.mode == Mode::Shadow);
            let (shadow, nested) = if a_is_shadow { (a, b) } else { (b, a) };
            best_modes(&shadow, &nested).context("--train")?
        }
        _ => bail!("--train takes one file, or two"),
    };
    let training = learn(&rows).context("--train")?;
    fs::write(output, &training.model).with_context(|| output.display().to_string())?;
    let [shadow, nested] = training.rows;
    let [held, held_right] = training.held_out;
    let text = if args.format == Format::Json {
        json!({
            "model": output, "rows": { "shadow": shadow, "nested": nested },
            "left_out": training.left_out, "support_vectors": training.support_vectors,
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
            training.left_out,
            training.correct
        )
    };
    writeln!(std::io::stdout().lock(), "{text}").context("standard output")
}
