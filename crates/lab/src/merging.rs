//! Same-page merging: what is asked for, and what is stated of VMs' contents.

use crate::migration::nanoseconds;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_fleet::merging::{PAGES_TO_SCAN, SLEEP_NS, Shares};
use nestwalk_report::parse_count;
use serde::{Deserialize, Serialize};

/// Keys of same-page merging and what they mean, in order.
pub const MERGE_KEYS: [(&str, &str); 2] = [
    ("pages", "pages that the thread looks at at a time; 100 unless given"),
    ("sleep", "how long it sleeps in between, as in 1ms; 20ms unless given"),
];

/// Same-page merging as Linux's KSM does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeExperiment {
    /// Pages that are looked at at a time.
    #[serde(default = "pages")]
    pub pages: u64,
    /// Time in between, in nanoseconds.
    #[serde(default = "sleep")]
    pub sleep_ns: u64,
}

const fn pages() -> u64 {
    PAGES_TO_SCAN
}
const fn sleep() -> u64 {
    SLEEP_NS
}

impl MergeExperiment {
    /// Reads `ksm; key=value; ...`.
    ///
    /// # Errors
    /// A key or value has no meaning.
    pub fn parse(text: &str) -> Result<Self> {
        let mut all = Self { pages: pages(), sleep_ns: sleep() };
        for part in text.split(';').map(str::trim).filter(|p| !p.is_empty() && *p != "ksm") {
            let form = || anyhow!("`{text}`: write ksm, or ksm; pages=1000; sleep=1ms");
            let (key, value) = part.split_once('=').ok_or_else(form)?;
            match key.trim() {
                "pages" => all.pages = parse_count(value.trim()).context("pages")?,
                "sleep" => all.sleep_ns = nanoseconds(value).context("sleep")?,
                key => {
                    let known: Vec<&str> = MERGE_KEYS.iter().map(|k| k.0).collect();
                    bail!("no key `{key}`; there are {}", known.join(", "))
                }
            }
        }
        Ok(all)
    }
}

/// What is stated of a VM's pages, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// Pages of zeros.
    #[serde(default)]
    pub zero_percent: f64,
    /// Pages whose contents those of the same number have in all VMs with such pages.
    #[serde(default)]
    pub common_percent: f64,
}

impl Contents {
    /// Nothing is stated.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Takes the keys `zero` and `common` out of a VM's text. Returns the rest, and them.
    ///
    /// # Errors
    /// They are no percentages.
    pub fn take(text: &str) -> Result<(String, Self)> {
        let (mut rest, mut contents) = (Vec::new(), Self::default());
        for part in text.split(';') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key.trim() {
                "zero" if !rest.is_empty() => contents.zero_percent = percent("zero", value)?,
                "common" if !rest.is_empty() => contents.common_percent = percent("common", value)?,
                _ => rest.push(part),
            }
        }
        Ok((rest.join(";"), contents))
    }

    /// The shares that they mean.
    pub fn shares(&self) -> Shares {
        Shares { zero: self.zero_percent / 100.0, common: self.common_percent / 100.0 }
    }
}

fn percent(key: &str, text: &str) -> Result<f64> {
    let number = text.trim().strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok());
    number
        .filter(|n| (0.0..=100.0).contains(n))
        .ok_or_else(|| anyhow!("{key}={text}: write a share from 0% to 100%, as in {key}=20%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_and_contents_are_read() {
        let plain = MergeExperiment { pages: 100, sleep_ns: 20_000_000 };
        assert_eq!(MergeExperiment::parse("ksm").unwrap(), plain);
        let fast = MergeExperiment { pages: 5000, sleep_ns: 500_000 };
        assert_eq!(MergeExperiment::parse("ksm; pages=5k; sleep=500us").unwrap(), fast);
        let (rest, contents) =
            Contents::take("a=redis; zero=10%; memory=1GiB; common = 2.5%").unwrap();
        assert_eq!(rest, "a=redis; memory=1GiB");
        assert_eq!((contents.zero_percent, contents.common_percent), (10.0, 2.5));
        assert_eq!(Contents::take("zero=redis").unwrap().0, "zero=redis", "a VM of that name");
        for (text, says) in [("uksm", "write ksm"), ("depth=1", "there are pages, sleep")] {
            let error = format!("{:#}", MergeExperiment::parse(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
        for text in ["a=redis; zero=10", "a=redis; common=101%", "a=redis; zero=-1%"] {
            assert!(Contents::take(text).unwrap_err().to_string().contains("from 0% to 100%"));
        }
    }
}
