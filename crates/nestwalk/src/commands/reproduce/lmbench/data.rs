//! What is published, the loops behind it, and how prices hang together: `data/lmbench.toml`.

use anyhow::{Context, Result, bail};
use nestwalk_hw::Sourced;
use serde::Deserialize;

const TEXT: &str = include_str!("../../../../data/lmbench.toml");

/// The file.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Where it was measured.
    pub machine: Machine,
    /// Rows in the order of tables.
    pub row: Vec<Row>,
    /// Prices of `[software]` that the rows pay.
    pub price: Vec<Price>,
}

/// The published machine.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The profile that is nearest to it.
    pub profile: String,
    /// Its nominal frequency.
    pub frequency_mhz: Sourced,
    /// Who published it.
    pub source: String,
}

/// A row.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Published time under EPT, microseconds.
    pub ept_us: Option<f64>,
    /// Published time under shadow paging, microseconds.
    pub shadow_us: Option<f64>,
    /// Whether prices are fitted to it.
    pub fitted: bool,
    /// Whether the kernel's cycles per instruction are fitted to it.
    #[serde(default = "yes")]
    pub cpi: bool,
    /// What it measures.
    #[serde(rename = "loop")]
    pub measures: String,
    /// What it is the sum of.
    pub terms: Vec<Term>,
    /// The same with many processes at once.
    pub many: Option<Many>,
}

/// A row with many processes at once.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Many {
    /// How many.
    pub processes: u32,
    /// Published time under EPT, microseconds.
    pub ept_us: f64,
    /// Published time under shadow paging, microseconds.
    pub shadow_us: f64,
}

impl Row {
    /// Published difference of shadow paging and EPT, microseconds.
    pub fn difference(&self) -> Option<f64> {
        Some(self.shadow_us? - self.ept_us?)
    }
}

/// A part of a row: what was counted in a recording, times/per.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// The recording.
    pub sample: String,
    /// How often its loop is in the row.
    #[serde(default = "once")]
    pub times: f64,
    /// How often its loop was recorded.
    pub per: f64,
}

const fn yes() -> bool {
    true
}

const fn once() -> f64 {
    1.0
}

/// A price.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Its key in `[software]`.
    pub key: String,
    /// Nanoseconds, if it is given.
    pub value: Option<f64>,
    /// The price that it is the same as.
    pub tied_to: Option<String>,
    /// Nanoseconds at least, if it is fitted.
    pub least: Option<f64>,
    /// Why, if it is not simply fitted.
    #[serde(default)]
    pub source: String,
}

/// Reads it.
///
/// # Errors
/// It contradicts itself, which a test excludes.
pub fn read() -> Result<Data> {
    parse(TEXT).context("data/lmbench.toml")
}

fn parse(text: &str) -> Result<Data> {
    let data: Data = toml::from_str(text)?;
    for row in &data.row {
        if row.fitted && row.difference().is_none_or(|d| d <= 0.0) {
            bail!("row `{}`: to be fitted to it needs ept_us and a larger shadow_us", row.name);
        }
        for term in &row.terms {
            if term.per <= 0.0 {
                bail!("row `{}`: per = {}: it must be above 0", row.name, term.per);
            }
        }
    }
    for price in &data.price {
        if let Some(other) = &price.tied_to
            && !data.price.iter().any(|p| p.key == *other && p.tied_to.is_none())
        {
            bail!("price `{}`: tied_to = \"{other}\": name one that is not tied", price.key);
        }
        let bound = price.value.is_some() || price.tied_to.is_some() || price.least.is_some();
        if bound && price.source.is_empty() {
            bail!("price `{}`: the source is empty; what is not fitted says why", price.key);
        }
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_sound_and_mistakes_are_named() {
        read().unwrap();
        for (from, to, error) in [
            ("shadow_us = 2.09", "shadow_us = 0.2", "larger shadow_us"),
            ("per = 1024", "per = 0", "above 0"),
            ("tied_to = \"context_exit_ns\"", "tied_to = \"nothing\"", "name one that is not tied"),
            ("source = \"given: hyper", "# source = \"given: hyper", "the source is empty"),
            ("fitted = true", "fited = true", "unknown field"),
        ] {
            assert!(TEXT.contains(from), "{from}");
            let got = parse(&TEXT.replacen(from, to, 1)).unwrap_err();
            assert!(format!("{got:#}").contains(error), "{got:#}");
        }
    }
}
