//! From the values of a point to its experiment and its key.

use super::file::{Base, Sweep, Values};
use super::keys::{self, Takes};
use crate::args::{Args, Command};
use crate::settings;
use crate::show::long::{COMMIT, input_hash};
use crate::tell;
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use nestwalk_lab::XxHash64;
use nestwalk_lab::{Experiment, Lab, VERSION};
use std::collections::BTreeMap;
use std::hash::Hasher;
use toml::{Table, Value};

/// A point, ready to be run.
pub struct Point {
    /// Its values, by names of axes.
    pub values: Values,
    /// What is run.
    pub experiment: Experiment,
    /// Hash of the contents of its files and of its configuration but the seed.
    pub input_hash: String,
    /// The name of its result: a hash of configuration, seed, contents, version and commit.
    pub key: String,
}

/// The points of a sweep, those that cannot be left out if they are to be.
///
/// # Errors
/// An axis is none, or a point cannot be.
pub fn points(sweep: &Sweep, skip_invalid: bool) -> Result<Vec<Point>> {
    let maker = Maker::new(sweep)?;
    let mut points = Vec::new();
    for (number, values) in sweep.points()?.into_iter().enumerate() {
        let words = words(&values);
        match maker.point(values) {
            Ok(point) => points.push(point),
            Err(error) if skip_invalid => {
                tell::note(&format!("left out: {words}: {error:#}"));
            }
            Err(error) => {
                let number = number + 1;
                return Err(error.context(format!("point {number} ({words})")));
            }
        }
    }
    if points.is_empty() {
        bail!("no point is left");
    }
    Ok(points)
}

/// Values in a line: `footprint=16MiB seed=1`.
pub fn words(values: &Values) -> String {
    let words = values.iter().map(|(name, value)| {
        format!("{name}={}", keys::text(value).unwrap_or_else(|| value.to_string()))
    });
    let all = words.collect::<Vec<_>>().join(" ");
    if all.is_empty() { "the only one".into() } else { all }
}

/// What every point is made of.
struct Maker<'a> {
    base: &'a Base,
    /// Of a file.
    config: Option<Experiment>,
    options: BTreeMap<String, Takes>,
    /// Axes that are keys of a configuration.
    keys: Vec<String>,
    lab: Lab,
}

impl<'a> Maker<'a> {
    fn new(sweep: &'a Sweep) -> Result<Self> {
        // What is left out of `--machines all` would be told for every point.
        let lab = Lab::new().for_command_line(|_| ());
        let (config, options) = match &sweep.base {
            Base::Options(_) => (None, keys::options()),
            Base::File(file) => (Some(lab.read(file)?), BTreeMap::new()),
        };
        let mut maker = Self { base: &sweep.base, config, options, keys: Vec::new(), lab };
        maker.find_keys(&sweep.point(0))?;
        Ok(maker)
    }

    /// An axis that is neither an option nor a word in braces is a key.
    fn find_keys(&mut self, first: &Values) -> Result<()> {
        let mut words = Vec::new();
        if let Base::Options(table) = self.base {
            let texts = table.values().chain(first.iter().map(|(_, value)| value));
            for text in texts {
                keys::fill(&mut text.clone(), first, &mut words)?;
            }
        }
        let is_key = |name: &&String| {
            !self.options.contains_key(&keys::plain(name)) && !words.contains(name)
        };
        self.keys = first.iter().map(|(name, _)| name).filter(is_key).cloned().collect();
        if self.keys.is_empty() {
            return Ok(());
        }
        let mut config = value(&self.before_keys(first).context("its first point")?)?;
        for name in &self.keys {
            if keys::find(&mut config, name).is_none() {
                let mut all = Vec::new();
                keys::paths(&config, "", &mut all);
                return Err(keys::unknown("axis", name, &self.options, &all));
            }
        }
        Ok(())
    }

    fn point(&self, values: Values) -> Result<Point> {
        let mut experiment = self.before_keys(&values)?;
        if !self.keys.is_empty() {
            let mut config = value(&experiment)?;
            for (name, value) in values.iter().filter(|(name, _)| self.keys.contains(name)) {
                keys::set(&mut config, name, value)?;
            }
            experiment = self.lab.parse(&toml::to_string(&config)?)?;
        }
        let input_hash = input_hash(&experiment)?;
        let mut hash = XxHash64::with_seed(0);
        for part in [&experiment.to_toml()?, &input_hash, VERSION, COMMIT] {
            hash.write(part.as_bytes());
            hash.write_u8(0);
        }
        let key = format!("{:016x}", hash.finish());
        Ok(Point { values, experiment, input_hash, key })
    }

    /// The experiment, keys that axes set apart.
    fn before_keys(&self, values: &Values) -> Result<Experiment> {
        match (self.base, &self.config) {
            (Base::Options(table), _) => self.of_options(table, values),
            (Base::File(_), Some(config)) => Ok(config.clone()),
            (Base::File(file), None) => self.lab.read(file),
        }
    }

    /// What the options mean, those of `[compare]` and those of axes.
    fn of_options(&self, table: &Table, values: &Values) -> Result<Experiment> {
        let mut table: Table =
            table.iter().map(|(key, value)| (keys::plain(key), value.clone())).collect();
        for (name, value) in values {
            if self.options.contains_key(&keys::plain(name)) {
                table.insert(keys::plain(name), value.clone());
            }
        }
        for (_, value) in &mut table {
            keys::fill(value, values, &mut Vec::new())?;
        }
        let words = keys::words(&table)?;
        let args = Args::try_parse_from(words).map_err(|error| {
            let text = error.render().to_string();
            let told = text.lines().next().unwrap_or_default();
            anyhow!("{}", told.strip_prefix("error: ").unwrap_or(told))
        })?;
        match args.command {
            Command::Compare(options) => self.lab.experiment(&settings::settings(&options)?),
            _ => bail!("no comparison"),
        }
    }
}

fn value(experiment: &Experiment) -> Result<Value> {
    let text = experiment.to_toml()?;
    Ok(Value::Table(toml::from_str(&text).context("its own configuration")?))
}
