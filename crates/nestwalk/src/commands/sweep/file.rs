//! The file of a sweep: what is run, and the axes along which it changes.

use anyhow::{Context, Result, anyhow, bail};
use nestwalk_lab::XxHash64;
use nestwalk_report::{parse_bytes, parse_count};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// Points of a sweep, at most.
const MOST: u64 = 1_000_000;

/// What is run where no axis says otherwise.
#[derive(Debug, PartialEq)]
pub enum Base {
    /// Options of `compare`.
    Options(Table),
    /// A configuration as `compare --output` writes it.
    File(PathBuf),
}

/// An axis: names that change together, and for each of its places their values.
#[derive(Debug, PartialEq)]
pub struct Axis {
    /// Names of options, keys of a configuration, or words in braces.
    pub names: Vec<String>,
    /// Values, in the order of names.
    pub places: Vec<Vec<Value>>,
}

/// A sweep as it is written.
#[derive(Debug, PartialEq)]
pub struct Sweep {
    /// What is run.
    pub base: Base,
    /// Axes, in the order of the file. The last changes fastest.
    pub axes: Vec<Axis>,
    /// So many points, by chance, in place of all.
    pub sample: Option<Sample>,
}

/// Some of the points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// How many.
    pub points: u64,
    /// Decides which. More points with the same seed are the same and further ones.
    #[serde(default = "one")]
    pub seed: u64,
}

const fn one() -> u64 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    config: Option<PathBuf>,
    compare: Option<Table>,
    #[serde(default)]
    axes: Table,
    sample: Option<Sample>,
}

/// Values of one point, by name.
pub type Values = Vec<(String, Value)>;

impl Sweep {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no sweep.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .context("cannot be read; a file with [compare] and [axes] is expected")?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let written: Written = toml::from_str(text)?;
        let base = match (written.compare, written.config) {
            (Some(_), Some(_)) => {
                bail!("there are [compare] and config: what is run is one or the other")
            }
            (_, Some(file)) => Base::File(file),
            (options, None) => Base::Options(options.unwrap_or_default()),
        };
        let order = order(text)?;
        let mut axes = Vec::new();
        read_axes(&written.axes, "", &mut axes)?;
        axes.sort_by_key(|(key, _)| order.get(key).copied());
        let axes: Vec<Axis> =
            axes.into_iter().map(|(key, values)| axis(&key, values)).collect::<Result<_>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = axes.iter().flat_map(|a| &a.names).find(|n| !names.insert(*n)) {
            bail!("axis `{twice}` is there twice");
        }
        let sweep = Self { base, axes, sample: written.sample };
        if sweep.sample.is_some_and(|sample| sample.points == 0) {
            bail!("[sample] points = 0: at least 1 is needed");
        }
        sweep.count()?;
        Ok(sweep)
    }

    /// Points in all, whether they are run or not.
    fn all(&self) -> Option<u64> {
        self.axes.iter().try_fold(1, |all: u64, axis| all.checked_mul(axis.places.len() as u64))
    }

    /// Points that are run.
    fn count(&self) -> Result<u64> {
        let all = self.all().context("the axes have more points than can be counted")?;
        let run = self.sample.map_or(all, |sample| sample.points.min(all));
        if run > MOST {
            bail!("{run} points, at most {MOST}: leave some out by [sample] points = N");
        }
        Ok(run)
    }

    /// The points that are run, in order.
    ///
    /// # Errors
    /// There are too many.
    pub fn points(&self) -> Result<Vec<Values>> {
        let (all, run) = (self.all().unwrap_or(u64::MAX), self.count()?);
        let chosen: Vec<u64> = match self.sample {
            Some(sample) if run < all => some(all, run, sample.seed),
            _ => (0..run).collect(),
        };
        Ok(chosen.into_iter().map(|number| self.point(number)).collect())
    }

    /// The point of that number among all. The last axis is its lowest digit.
    pub fn point(&self, mut number: u64) -> Values {
        let mut values = Vec::new();
        for axis in self.axes.iter().rev() {
            let places = axis.places.len() as u64;
            let place = &axis.places[(number % places) as usize];
            number /= places;
            values.extend(axis.names.iter().cloned().zip(place.iter().cloned()).rev());
        }
        values.reverse();
        values
    }
}

/// `count` numbers below `all`, ascending. Of one seed, fewer are among more.
fn some(all: u64, count: u64, seed: u64) -> Vec<u64> {
    let mut chosen = BTreeSet::new();
    let mut draw = 0_u64;
    while (chosen.len() as u64) < count {
        let mut hash = XxHash64::with_seed(seed);
        hash.write_u64(draw);
        chosen.insert(hash.finish() % all);
        draw += 1;
    }
    chosen.into_iter().collect()
}

/// Where each axis stands in the file, which tables do not keep.
fn order(text: &str) -> Result<BTreeMap<String, usize>> {
    let table = DeTable::parse(text)?;
    let mut order = BTreeMap::new();
    if let Some(axes) = table.get_ref().get("axes").and_then(|axes| axes.get_ref().as_table()) {
        places(axes, "", &mut order);
    }
    Ok(order)
}

fn places(table: &DeTable<'_>, before: &str, order: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path = format!("{before}{}", key.get_ref());
        if let DeValue::Table(inside) = value.get_ref() {
            places(inside, &format!("{path}."), order);
        }
        order.insert(path, key.span().start);
    }
}

/// Axes of a table, by their paths: `profile.l2_tlb.entries` is the same with quotes and without.
fn read_axes(table: &Table, before: &str, axes: &mut Vec<(String, Vec<Value>)>) -> Result<()> {
    for (key, value) in table {
        let path = format!("{before}{key}");
        match value {
            Value::Array(values) if values.is_empty() => bail!("axis `{path}` has no values"),
            Value::Array(values) => axes.push((path, values.clone())),
            Value::Table(range) if range.contains_key("from") && range.contains_key("to") => {
                let values = steps(range).with_context(|| format!("axis `{path}`"))?;
                axes.push((path, values));
            }
            Value::Table(inside) => read_axes(inside, &format!("{path}."), axes)?,
            _ => bail!(
                "axis `{path}`: a list of values is expected, as in [1, 2, 3], or a range, as in \
                 {{ from = 1, to = 50 }}"
            ),
        }
    }
    Ok(())
}

/// `{ from, to }` with `step` or `times`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: Value,
    to: Value,
    step: Option<Value>,
    times: Option<u64>,
}

/// Values of a range, both ends included.
fn steps(range: &Table) -> Result<Vec<Value>> {
    let Range { from, to, step, times } = range.clone().try_into()?;
    let floats = [Some(&from), Some(&to), step.as_ref()];
    if floats.into_iter().flatten().any(Value::is_float) {
        bail!("a range is of whole numbers or of sizes; list the values");
    }
    let (from, to) = (whole(&from)?, whole(&to)?);
    let step = step.as_ref().map(whole).transpose()?;
    let next = |n: &u64| match (step, times) {
        (Some(step), _) => n.checked_add(step),
        (None, Some(times)) => n.checked_mul(times),
        (None, None) => n.checked_add(1),
    };
    if step == Some(0) || times.is_some_and(|n| n < 2) || (times.is_some() && from == 0) {
        bail!("from {from} to {to}: it never ends; step is at least 1, times 2 with from above 0");
    }
    if step.is_some() && times.is_some() {
        bail!("step or times, not both");
    }
    if to < from {
        bail!("from {from} to {to}: the first is larger");
    }
    let numbers = std::iter::successors(Some(from), next).take_while(|n| *n <= to);
    let numbers: Vec<u64> = numbers.take(MOST as usize + 1).collect();
    if numbers.len() as u64 > MOST {
        bail!("from {from} to {to}: more than {MOST} values");
    }
    let value =
        |n: u64| i64::try_from(n).map(Value::Integer).map_err(|_| anyhow!("{n}: too large"));
    numbers.into_iter().map(value).collect()
}

/// A whole number, or a size or count in words: 16MiB, 100k.
pub fn whole(value: &Value) -> Result<u64> {
    match value {
        Value::Integer(n) => u64::try_from(*n).map_err(|_| anyhow!("{n}: below 0")),
        Value::String(text) => match parse_bytes(text) {
            Ok(bytes) => Ok(bytes),
            Err(error) => parse_count(text).map_err(|_| anyhow!(error)),
        },
        other => bail!("{other}: a whole number or a size is expected"),
    }
}

/// An axis of one name, or of several with commas between them.
fn axis(key: &str, values: Vec<Value>) -> Result<Axis> {
    let names: Vec<String> = key.split(',').map(|name| name.trim().to_owned()).collect();
    if let [_] = names[..] {
        return Ok(Axis { names, places: values.into_iter().map(|value| vec![value]).collect() });
    }
    let place = |value: Value| match value {
        Value::Array(place) if place.len() == names.len() => Ok(place),
        other => bail!("axis `{key}`: {other}: a list of {} values is expected", names.len()),
    };
    let places = values.into_iter().map(place).collect::<Result<_>>()?;
    Ok(Axis { names, places })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(values: &Values) -> String {
        values.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn points_are_all_combinations_in_the_order_of_the_file() {
        let text =
            "[axes]\nseed = [1, 2]\nprofile.l2_tlb.entries = [8]\n\"b,a\" = [[1, 2], [3, 4]]\n";
        let points = Sweep::parse(text).unwrap().points().unwrap();
        let expected = [
            "seed=1 profile.l2_tlb.entries=8 b=1 a=2",
            "seed=1 profile.l2_tlb.entries=8 b=3 a=4",
            "seed=2 profile.l2_tlb.entries=8 b=1 a=2",
            "seed=2 profile.l2_tlb.entries=8 b=3 a=4",
        ];
        assert_eq!(points.iter().map(words).collect::<Vec<_>>(), expected);
        assert_eq!(Sweep::parse("").unwrap().points().unwrap(), [vec![]], "one, without axes");
    }

    #[test]
    fn ranges_have_both_ends() {
        let of = |text: &str| {
            let sweep = Sweep::parse(&format!("[axes]\nx = {text}\n"))?;
            Ok::<_, anyhow::Error>(sweep.points()?.iter().map(words).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of("{ from = 1, to = 3 }").unwrap(), "x=1 x=2 x=3");
        assert_eq!(of("{ from = 1, to = 6, step = 3 }").unwrap(), "x=1 x=4");
        assert_eq!(
            of("{ from = '1KiB', to = '4KiB', times = 2 }").unwrap(),
            "x=1024 x=2048 x=4096"
        );
        for wrong in ["{ from = 0, to = 3, times = 2 }", "{ from = 2, to = 1 }", "[]", "3"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert!(of("{ from = 1, to = 9, step = 1, times = 2 }").is_err());
    }

    #[test]
    fn a_sample_is_part_of_a_larger_one() {
        let of = |points| {
            let text = format!(
                "sample = {{ points = {points}, seed = 7 }}\n[axes]\nx = {{ from = 1, to = 40 }}\n\
                 y = {{ from = 1, to = 5 }}\n"
            );
            Sweep::parse(&text).unwrap().points().unwrap()
        };
        let (few, more) = (of(20), of(60));
        assert_eq!((few.len(), more.len(), of(1000).len()), (20, 60, 200));
        assert!(few.iter().all(|point| more.contains(point)));
        // By chance, and not the first.
        assert_ne!(few, more[..20]);
    }

    #[test]
    fn too_many_points_are_refused_before_they_are_made() {
        let axis = |name: &str| format!("{name} = {{ from = 1, to = 100000 }}\n");
        let text = format!("[axes]\n{}{}", axis("a"), axis("b"));
        let error = Sweep::parse(&text).unwrap_err().to_string();
        assert!(error.contains("10000000000 points") && error.contains("sample"), "{error}");
        assert_eq!(
            Sweep::parse(&format!("sample.points = 3\n{text}")).unwrap().points().unwrap().len(),
            3
        );
    }
}
