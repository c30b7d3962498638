//! Specifications as text: `zipf:theta=0.9,footprint=4GiB`, `phases:sequential/uniform/zipf`.

use super::{Pattern, PatternSpec};
use std::str::FromStr;

/// What is wrong with a specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// No pattern of this name.
    #[error("unknown pattern `{0}`; there are {list} and phases:A/B/…", list = Pattern::NAMES.join(", "))]
    Name(String),
    /// No parameter of this name.
    #[error("pattern `{pattern}` has no parameter `{key}`; it has {known}")]
    Key {
        /// The pattern.
        pattern: String,
        /// The parameter that was given.
        key: String,
        /// Those that exist, separated by commas.
        known: String,
    },
    /// Not `key=value`.
    #[error("`{0}` is not a parameter; write key=value")]
    Form(String),
    /// A value out of range, or none at all.
    #[error("{key} is `{value}`, but must be {wanted}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// A phase gives a parameter that all phases share.
    #[error("`{0}` is shared by all phases and cannot be given for one")]
    Shared(String),
}

const SIZE: &str = "a size such as 4096, 64KiB or 4GiB";
const COUNT: &str = "a number such as 1000, 50M or 2G";

/// Parameters that every pattern has.
const COMMON: [&str; 9] = [
    "footprint",
    "size",
    "reads",
    "accesses",
    "seed",
    "vcpus",
    "chunk",
    "instructions",
    "populate",
];

/// Parameters of one pattern.
fn own(pattern: &Pattern) -> &'static [&'static str] {
    match pattern {
        Pattern::Sequential | Pattern::Uniform => &[],
        Pattern::Stride { .. } => &["stride"],
        Pattern::Zipf { .. } => &["theta", "item"],
        Pattern::Chase { .. } => &["node"],
    }
}

/// A whole number with a unit: K, M, G, T for powers of 1,000, or KiB, MiB, GiB, TiB (of bytes).
fn number(key: &'static str, text: &str, wanted: &'static str) -> Result<u64, PatternError> {
    let bad = || PatternError::Value { key, value: text.to_owned(), wanted };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let value: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit: u64 = match &text[digits..] {
        "" | "B" => 1,
        "K" | "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(bad()),
    };
    value.checked_mul(unit).ok_or_else(bad)
}

fn plain<T: FromStr>(
    key: &'static str,
    text: &str,
    wanted: &'static str,
) -> Result<T, PatternError> {
    text.parse().map_err(|_| PatternError::Value { key, value: text.to_owned(), wanted })
}

fn pattern_of(name: &str) -> Result<Pattern, PatternError> {
    Ok(match name {
        "sequential" => Pattern::Sequential,
        "stride" => Pattern::Stride { bytes: 4160 },
        "uniform" => Pattern::Uniform,
        "zipf" => Pattern::Zipf { theta: 0.99, item: 4096 },
        "chase" => Pattern::Chase { node: 64 },
        _ => return Err(PatternError::Name(name.to_owned())),
    })
}

/// Key and value.
type Pair<'a> = (&'a str, &'a str);

/// `name` and `key=value` pairs.
fn split(text: &str) -> Result<(&str, Vec<Pair<'_>>), PatternError> {
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    let pairs = rest
        .split(',')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').ok_or_else(|| PatternError::Form(p.to_owned())))
        .collect::<Result<_, _>>()?;
    Ok((name, pairs))
}

fn unknown(pattern: &Pattern, key: &str) -> PatternError {
    let known: Vec<_> = own(pattern).iter().chain(&COMMON).copied().collect();
    PatternError::Key {
        pattern: pattern.name().to_owned(),
        key: key.to_owned(),
        known: known.join(", "),
    }
}

/// Sets a parameter of the pattern itself. `Ok(false)` if it has none of this name.
fn set_own(pattern: &mut Pattern, key: &str, value: &str) -> Result<bool, PatternError> {
    match (pattern, key) {
        (Pattern::Stride { bytes }, "stride") => *bytes = number("stride", value, SIZE)?,
        (Pattern::Zipf { theta, .. }, "theta") => {
            *theta = plain("theta", value, "a number such as 0.99")?;
        }
        (Pattern::Zipf { item, .. }, "item") => *item = number("item", value, SIZE)?,
        (Pattern::Chase { node }, "node") => *node = number("node", value, SIZE)?,
        _ => return Ok(false),
    }
    Ok(true)
}

impl PatternSpec {
    /// Reads a specification; what it does not say is taken from `defaults`.
    ///
    /// `NAME[:KEY=VALUE[,…]]` with the names of [`Pattern::NAMES`], or `phases:A/B/…` where each of
    /// A, B… is such a text with the pattern's own parameters only.
    ///
    /// # Errors
    /// An unknown name or parameter, or a value out of range: the message lists what exists.
    pub fn parse(text: &str, defaults: &Self) -> Result<Self, PatternError> {
        let mut spec = defaults.clone();
        if let Some(phases) = text.strip_prefix("phases:") {
            spec.phases = phases.split('/').map(Self::parse_phase).collect::<Result<_, _>>()?;
        } else {
            let (name, pairs) = split(text)?;
            let mut pattern = pattern_of(name)?;
            for (key, value) in pairs {
                if !set_own(&mut pattern, key, value)? && !spec.set_common(key, value)? {
                    return Err(unknown(&pattern, key));
                }
            }
            spec.phases = vec![pattern];
        }
        spec.check()?;
        Ok(spec)
    }

    fn parse_phase(text: &str) -> Result<Pattern, PatternError> {
        let (name, pairs) = split(text)?;
        let mut pattern = pattern_of(name)?;
        for (key, value) in pairs {
            if !set_own(&mut pattern, key, value)? {
                return Err(if COMMON.contains(&key) {
                    PatternError::Shared(key.to_owned())
                } else {
                    unknown(&pattern, key)
                });
            }
        }
        Ok(pattern)
    }

    fn set_common(&mut self, key: &str, value: &str) -> Result<bool, PatternError> {
        match key {
            "footprint" => self.footprint = number("footprint", value, SIZE)?,
            "size" => self.access_bytes = plain("size", value, "1, 2, 4, 8, 16, 32 or 64")?,
            "reads" => self.reads = plain("reads", value, "a share from 0 to 1")?,
            "accesses" => self.accesses = number("accesses", value, COUNT)?,
            "seed" => self.seed = plain("seed", value, "a whole number")?,
            "vcpus" => self.vcpus = plain("vcpus", value, "from 1 to 255")?,
            "chunk" => self.chunk = plain("chunk", value, "at least 1")?,
            "instructions" => {
                self.instructions = plain("instructions", value, "from 1 to 65535")?;
            }
            "populate" => {
                self.populate = Some(match value {
                    "yes" => true,
                    "no" => false,
                    _ => {
                        let value = value.to_owned();
                        return Err(PatternError::Value {
                            key: "populate",
                            value,
                            wanted: "yes or no",
                        });
                    }
                });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether every value is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), PatternError> {
        let wrong = |key, value: String, wanted| Err(PatternError::Value { key, value, wanted });
        let footprint = self.footprint;
        if footprint == 0 || !footprint.is_multiple_of(4096) || footprint > Self::FOOTPRINT_MAX {
            let wanted = "a multiple of 4KiB from 4KiB to 64TiB";
            return wrong("footprint", footprint.to_string(), wanted);
        }
        if !self.access_bytes.is_power_of_two() || self.access_bytes > 64 {
            return wrong("size", self.access_bytes.to_string(), "1, 2, 4, 8, 16, 32 or 64");
        }
        if !(0.0..=1.0).contains(&self.reads) {
            return wrong("reads", self.reads.to_string(), "a share from 0 to 1");
        }
        if self.vcpus == 0 {
            return wrong("vcpus", "0".into(), "from 1 to 255");
        }
        if self.chunk == 0 {
            return wrong("chunk", "0".into(), "at least 1");
        }
        if !(1..=65535).contains(&self.instructions) {
            return wrong("instructions", self.instructions.to_string(), "from 1 to 65535");
        }
        if self.phases.is_empty() {
            return wrong("phases", String::new(), "at least one pattern");
        }
        self.phases.iter().try_for_each(|p| self.check_phase(p))
    }

    fn check_phase(&self, pattern: &Pattern) -> Result<(), PatternError> {
        let block = |key, bytes: u64| {
            let least = u64::from(self.access_bytes);
            if bytes.is_power_of_two() && bytes >= least && bytes <= self.footprint {
                return Ok(());
            }
            let wanted = "a power of two, at least the access size and at most the footprint";
            Err(PatternError::Value { key, value: bytes.to_string(), wanted })
        };
        match *pattern {
            Pattern::Sequential | Pattern::Uniform => Ok(()),
            Pattern::Stride { bytes } if bytes > 0 => Ok(()),
            Pattern::Stride { .. } => {
                let wanted = "at least one byte";
                Err(PatternError::Value { key: "stride", value: "0".into(), wanted })
            }
            Pattern::Zipf { theta, item } if (0.0..=100.0).contains(&theta) => block("item", item),
            Pattern::Zipf { theta, .. } => {
                let wanted = "a number from 0 to 100";
                Err(PatternError::Value { key: "theta", value: theta.to_string(), wanted })
            }
            Pattern::Chase { node } => block("node", node),
        }
    }
}
