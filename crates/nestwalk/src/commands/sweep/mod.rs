//! `sweep`: an experiment at many points, each of them once.

mod collect;
mod exact;
mod file;
mod keys;
mod point;
mod run;
mod slurm;
mod store;

use crate::args::SweepArgs;
use crate::formats::{Found, parquet};
use crate::screen::Screen;
use anyhow::{Context, Result, anyhow, bail};
use collect::Collected;
use file::{Sweep, Values};
use nestwalk_report::{Align, Table};
use point::Point;
use run::{How, Tally};
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;
use store::Store;

/// `nestwalk sweep`.
pub fn sweep(args: &SweepArgs) -> Result<ExitCode> {
    let shard = args.shard.as_deref().map(Shard::parse).transpose()?;
    if args.threads == Some(0) {
        bail!("--threads 0: at least 1 is needed");
    }
    if let Some(table) = &args.table {
        if !parquet::is_named(table) {
            bail!("--table {}: a name that ends with .parquet is expected", table.display());
        }
        parquet::check("--table", table)?;
    }
    let file = args.file.display();
    let sweep = Sweep::read(&args.file).with_context(|| file.to_string())?;
    let points = point::points(&sweep, args.skip_invalid).with_context(|| file.to_string())?;
    let store = Store::open(&args.output)?;
    if args.list {
        return list(args, &points, &store);
    }
    if args.slurm {
        let submitted = slurm::submit(args, &points, &store)?;
        if !args.wait {
            print(args, &submitted)?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut tally = None;
    if !args.slurm && !args.collect {
        let of_share =
            |(number, point)| shard.is_none_or(|shard| shard.has(number)).then_some(point);
        let mine: Vec<&Point> = points.iter().enumerate().filter_map(of_share).collect();
        let found = run::run(&mine, &store, &how(args))?;
        if shard.is_some() {
            print(args, &found)?;
            found.complete()?;
            return Ok(ExitCode::SUCCESS);
        }
        tally = Some(found);
    }
    let mut all = collect::collect(&points, &store)?;
    all.write(&args.output)?;
    if let Some(table) = &args.table {
        all.write_parquet(table)?;
    }
    print(args, &all)?;
    tally.map_or(Ok(()), |tally| tally.complete())?;
    complete(args, &all)
}

/// Whether all points are there.
fn complete(args: &SweepArgs, all: &Collected) -> Result<ExitCode> {
    if all.missing() == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let mut why = format!("{} of {} points are missing", all.missing(), all.points());
    if args.slurm {
        why += &format!("; {} says why", slurm::logs(args).display());
    }
    why += "; without --collect the same command goes on with them";
    bail!(why)
}

fn how(args: &SweepArgs) -> How {
    let jobs = usize::from(args.jobs);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    How { jobs, threads: args.threads.unwrap_or((cores / jobs).max(1)), quiet: args.quiet }
}

fn print(args: &SweepArgs, found: &dyn Found) -> Result<()> {
    let out = args.format.render(found)?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// A share: every N-th point from the I-th on, so that what is near each other is spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    number: usize,
    shares: usize,
}

impl Shard {
    fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            anyhow!(
                "--shard {text}: the number of a share and of all shares is expected, from 1/8 to 8/8 \
                 for example"
            )
        };
        let (number, shares) = text.split_once('/').ok_or_else(wrong)?;
        let shard = Self {
            number: number.trim().parse().map_err(|_| wrong())?,
            shares: shares.trim().parse().map_err(|_| wrong())?,
        };
        if shard.number == 0 || shard.number > shard.shares {
            return Err(wrong());
        }
        Ok(shard)
    }

    /// Whether the point of that number, from 0 on, is in it.
    const fn has(self, point: usize) -> bool {
        point % self.shares == self.number - 1
    }
}

/// What there is, without running any.
struct Listed<'a>(Vec<(&'a Point, bool)>);

fn list(args: &SweepArgs, points: &[Point], store: &Store) -> Result<ExitCode> {
    let listed = Listed(points.iter().map(|point| (point, store.has(point))).collect());
    print(args, &listed)?;
    Ok(ExitCode::SUCCESS)
}

impl Found for Listed<'_> {
    fn json(&self) -> Result<Value> {
        Ok(json!({ "points": self.rows()? }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let row = |(point, done): &(&Point, bool)| {
            let axes = collect::axes_json(&point.values)?;
            Ok(json!({ "key": point.key, "done": done, "axes": axes }))
        };
        self.0.iter().map(row).collect()
    }

    fn table(&self, screen: Screen) -> String {
        let axes = self.0.first().map(|(point, _)| &point.values);
        let mut table = Table::new().column("key", Align::Left).column("done", Align::Left);
        for (name, _) in axes.into_iter().flatten() {
            table = table.column(name, Align::Right);
        }
        let cells = |values: &Values| -> Vec<String> {
            let text = |value| keys::text(value).unwrap_or_else(|| value.to_string());
            values.iter().map(|(_, value)| text(value)).collect()
        };
        for (point, done) in &self.0 {
            let head = [point.key.clone(), if *done { "yes" } else { "no" }.into()];
            table.row(head.into_iter().chain(cells(&point.values)).collect());
        }
        table.render_within(screen.columns())
    }
}

impl Found for Tally {
    fn json(&self) -> Result<Value> {
        let failed = self.failed.iter().map(|(point, why)| json!({ "point": point, "error": why }));
        Ok(json!({
            "points": self.points,
            "done_before": self.before,
            "ran": self.ran,
            "elsewhere": self.elsewhere,
            "failed": failed.collect::<Vec<_>>(),
            "interrupted": self.interrupted,
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(vec![self.json()?])
    }

    fn table(&self, _: Screen) -> String {
        let (done, of, ran) = (self.done(), self.points, self.ran);
        format!("{done} of {of} points of this share are done, {ran} of them now\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_every_point_once() {
        for shares in 1..=5 {
            let all: Vec<Shard> =
                (1..=shares).map(|i| Shard::parse(&format!("{i}/{shares}")).unwrap()).collect();
            for point in 0..20 {
                assert_eq!(all.iter().filter(|shard| shard.has(point)).count(), 1);
            }
        }
        for wrong in ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", ""] {
            assert!(Shard::parse(wrong).is_err(), "{wrong}");
        }
    }
}
