//! `name:key=value,...`: parsing, ranges, and errors.

use crate::decision::Policy;
use crate::policies::{POLICIES, PolicyInfo};
use crate::sample::{Hundredths, Mode};
use std::fmt;
use std::io;
use std::str::FromStr;
use thiserror::Error;

/// What a parameter's value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A whole number of a range.
    Whole(u64, u64),
    /// A number of a range with at most two decimals: thresholds are compared in hundredths.
    Hundredths(f64, f64),
    /// Any number of a range.
    Real(f64, f64),
    /// One of some words.
    Word(&'static [&'static str]),
    /// A file. Its default is what is used without one, in words.
    File,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(least, most) => write!(f, "whole, {least} to {most}"),
            Self::Hundredths(least, most) => write!(f, "{least} to {most}, two decimals"),
            Self::Real(least, most) => write!(f, "{least} to {most}"),
            Self::Word(words) => f.write_str(&words.join(" or ")),
            Self::File => f.write_str("a file"),
        }
    }
}

/// A parameter of a policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// The key.
    pub name: &'static str,
    /// The value if none is given; of a file, in words.
    pub default: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What it means, with its unit.
    pub meaning: &'static str,
    /// Where the default comes from.
    pub source: &'static str,
}

/// Why a specification of a policy is not accepted.
#[derive(Debug, Error)]
pub enum SpecError {
    /// No such policy.
    #[error("there is no policy `{0}`; there are {1}")]
    UnknownPolicy(String, String),
    /// No such parameter.
    #[error("policy {policy} has no parameter `{key}`; it has {known}")]
    UnknownKey {
        /// The policy.
        policy: &'static str,
        /// What was given.
        key: String,
        /// What there is.
        known: String,
    },
    /// Not `key=value`.
    #[error("policy {policy}: `{text}` is not key=value")]
    NoValue {
        /// The policy.
        policy: &'static str,
        /// What was given.
        text: String,
    },
    /// A key twice.
    #[error("policy {policy}: {key} is given twice")]
    Twice {
        /// The policy.
        policy: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A value that cannot be.
    #[error("policy {policy}: {key}={value}: {expected} is expected")]
    BadValue {
        /// The policy.
        policy: &'static str,
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What may be.
        expected: String,
    },
    /// Two values that do not go together.
    #[error("policy {policy}: {0}", policy = .1)]
    Contradiction(String, &'static str),
    /// A file cannot be read.
    #[error("policy {policy}: {path}: {error}")]
    File {
        /// The policy.
        policy: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        error: String,
    },
    /// `hindsight` needs more than samples.
    #[error(
        "hindsight needs the costs of every interval in both modes, which samples of one run do \
         not have; it is computed from simulations of both modes"
    )]
    NeedsBothModes,
}

/// Reads the text of a file that a specification names.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> io::Result<String>;

/// A policy with its parameters, checked.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    /// The policy.
    pub info: &'static PolicyInfo,
    /// Values in the order of the policy's parameters; none where no file is given.
    values: Vec<Option<String>>,
}

impl PolicySpec {
    /// A new policy for a VM that is in `mode`. `read` reads files that parameters name.
    ///
    /// # Errors
    /// If a file is missing or wrong, or parameters contradict each other.
    pub fn build(&self, mode: Mode, read: ReadFile<'_>) -> Result<Box<dyn Policy>, SpecError> {
        (self.info.build)(self, mode, read)
    }

    fn value(&self, key: &str) -> Option<&str> {
        let index = self.info.parameters.iter().position(|p| p.name == key);
        debug_assert!(index.is_some(), "{} has no parameter {key}", self.info.name);
        self.values.get(index?)?.as_deref()
    }

    // Values were checked when they were parsed, and a test parses all defaults.
    fn number<T: FromStr + Default>(&self, key: &str) -> T {
        self.value(key).and_then(|v| v.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn whole(&self, key: &str) -> u32 {
        self.number(key)
    }

    pub(crate) fn seed(&self, key: &str) -> u64 {
        self.number(key)
    }

    pub(crate) fn real(&self, key: &str) -> f64 {
        self.number(key)
    }

    pub(crate) fn hundredths(&self, key: &str) -> Hundredths {
        Hundredths(self.value(key).and_then(hundredths).unwrap_or_default())
    }

    /// The path and the text of the file that a parameter names, if it names one.
    pub(crate) fn file(
        &self,
        key: &str,
        read: ReadFile<'_>,
    ) -> Result<Option<(&str, String)>, SpecError> {
        let Some(path) = self.value(key) else { return Ok(None) };
        let text = read(path).map_err(|e| self.file_error(path, &e))?;
        Ok(Some((path, text)))
    }

    pub(crate) fn file_error(&self, path: &str, error: &dyn fmt::Display) -> SpecError {
        let error = error.to_string();
        SpecError::File { policy: self.info.name, path: path.to_owned(), error }
    }
}

/// `12`, `12.5` or `0.25` in hundredths; none if there is more or else.
fn hundredths(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 2 {
        return None;
    }
    let padded = format!("{decimals:0<2}");
    whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(padded.parse().ok()?)
}

fn within(kind: Kind, text: &str) -> bool {
    let ranged = |least: f64, most: f64| {
        // A comparison with NaN is false.
        text.parse::<f64>().is_ok_and(|v| v >= least && v <= most)
    };
    match kind {
        Kind::Whole(least, most) => {
            text.bytes().all(|b| b.is_ascii_digit())
                && text.parse::<u64>().is_ok_and(|v| (least..=most).contains(&v))
        }
        Kind::Hundredths(least, most) => ranged(least, most) && hundredths(text).is_some(),
        Kind::Real(least, most) => ranged(least, most),
        Kind::Word(words) => words.contains(&text),
        Kind::File => !text.is_empty(),
    }
}

impl FromStr for PolicySpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let info = POLICIES.iter().find(|p| p.name == name).ok_or_else(|| {
            let names: Vec<&str> = POLICIES.iter().map(|p| p.name).collect();
            SpecError::UnknownPolicy(name.to_owned(), names.join(", "))
        })?;
        let policy = info.name;
        let mut given: Vec<Option<String>> = vec![None; info.parameters.len()];
        for part in rest.split(',').filter(|p| !p.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(SpecError::NoValue { policy, text: part.to_owned() });
            };
            let found = info.parameters.iter().position(|p| p.name == key);
            let Some((index, parameter)) = found.and_then(|i| Some((i, info.parameters.get(i)?)))
            else {
                let known: Vec<&str> = info.parameters.iter().map(|p| p.name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(SpecError::UnknownKey { policy, key: key.to_owned(), known });
            };
            if !within(parameter.kind, value) {
                return Err(SpecError::BadValue {
                    policy,
                    key: parameter.name,
                    value: value.to_owned(),
                    expected: parameter.kind.to_string(),
                });
            }
            if given[index].replace(value.to_owned()).is_some() {
                return Err(SpecError::Twice { policy, key: parameter.name });
            }
        }
        let values = info.parameters.iter().zip(given).map(|(parameter, value)| {
            value.or_else(|| (parameter.kind != Kind::File).then(|| parameter.default.to_owned()))
        });
        Ok(Self { info, values: values.collect() })
    }
}

impl fmt::Display for PolicySpec {
    /// The specification with all its values, which parses to the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info.name)?;
        let set = self.info.parameters.iter().zip(&self.values);
        for (i, (parameter, value)) in set.filter_map(|(p, v)| Some((p, v.as_ref()?))).enumerate() {
            let separator = if i == 0 { ':' } else { ',' };
            write!(f, "{separator}{}={value}", parameter.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, PolicySpec, hundredths, within};
    use crate::policies::POLICIES;

    #[test]
    fn defaults_are_within_their_ranges_and_have_sources() {
        for policy in POLICIES {
            for p in policy.parameters {
                let ok = p.kind == Kind::File || within(p.kind, p.default);
                assert!(ok, "{}:{}={}", policy.name, p.name, p.default);
                assert!(!p.source.is_empty() && !p.meaning.is_empty(), "{}", p.name);
            }
            let spec: PolicySpec = policy.name.parse().unwrap();
            let again: PolicySpec = spec.to_string().parse().unwrap();
            assert_eq!(again.to_string(), spec.to_string());
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let says = |text: &str| text.parse::<PolicySpec>().unwrap_err().to_string();
        assert!(says("none").starts_with("there is no policy `none`; there are static-thresholds"));
        assert_eq!(
            says("static-thresholds:high=NaN"),
            "policy static-thresholds: high=NaN: 0 to 100, two decimals is expected"
        );
        assert_eq!(
            says("static-thresholds:n=0"),
            "policy static-thresholds: n=0: whole, 1 to 1000 is expected"
        );
        for bad in ["high=-1", "high=101", "high=9.005", "high=1e1", "n=+4", "n=4.0", "high=inf"] {
            let error = says(&format!("static-thresholds:{bad}"));
            assert!(error.contains(bad) && error.contains("expected"), "{error}");
        }
        let error = says("static-thresholds:hihg=9");
        assert!(error.contains("no parameter `hihg`; it has high, low"), "{error}");
        assert!(says("static-thresholds:high").contains("`high` is not key=value"));
        assert!(says("static-thresholds:n=4,n=5").contains("n is given twice"));
    }

    #[test]
    fn hundredths_are_exact() {
        let known =
            [("9", Some(900)), ("9.5", Some(950)), ("0.07", Some(7)), ("9.", None), (".5", None)];
        for (text, value) in known {
            assert_eq!(hundredths(text), value, "{text}");
        }
        assert_eq!(hundredths("1.234"), None);
        assert_eq!(hundredths("99999999999999999999"), None);
    }
}
