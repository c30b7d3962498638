//! What is asked of a workload, and why it may be refused.

use crate::{WORKLOADS, Workload};
use nestwalk_types::Source;

/// Smallest footprint, bytes: 1 MiB.
pub const FOOTPRINT_MIN: u64 = 1 << 20;
/// Largest footprint, bytes: 1 TiB, 1/128 of the 47-bit user half of the address space.
pub const FOOTPRINT_MAX: u64 = 1 << 40;

/// Whether memory is there before counting begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Populate {
    /// The long-lived memory is made present before the region of interest, array by array, and
    /// what the program does before its main loop (building a hash table, initialising a search
    /// tree) has been done.
    #[default]
    Yes,
    /// Everything is part of the measured run, first touches too.
    No,
}

/// What is asked of a workload. Together with the options it decides the stream to the bit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkloadSpec {
    /// Memory that the program maps, bytes, 1 MiB to 1 TiB. What a workload takes is at most this
    /// and one page per region; where sizes are powers of two it may be as little as half.
    pub footprint: u64,
    /// Accesses in the region of interest, exactly; the algorithm starts over if it ends before.
    /// `None` lets it run to its own end.
    pub accesses: Option<u64>,
    /// Decides all random choices.
    pub seed: u64,
    /// Whether memory is there before counting begins.
    pub populate: Populate,
}

/// A number that a workload can be given as `name:key=value`.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub name: &'static str,
    /// One line: what it is, with its unit.
    pub summary: &'static str,
    /// Value if nothing is said.
    pub default: u64,
    /// Smallest and largest value allowed.
    pub range: (u64, u64),
}

/// Why a workload could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// The name is none of the list.
    #[error("no workload is called `{name}`; there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// All names, separated by commas.
        known: String,
    },
    /// The footprint is outside [`FOOTPRINT_MIN`]`..=`[`FOOTPRINT_MAX`].
    #[error(
        "a footprint of {footprint} bytes cannot be had: {} (1 MiB) to {} (1 TiB) are possible",
        FOOTPRINT_MIN,
        FOOTPRINT_MAX
    )]
    Footprint {
        /// What was asked for, bytes.
        footprint: u64,
    },
    /// No accesses at all were asked for.
    #[error("0 accesses were asked for; at least 1 is needed")]
    NoAccesses,
    /// An option is not `key=value`.
    #[error("option `{option}` of workload {workload} is not of the form key=number")]
    Malformed {
        /// The workload.
        workload: &'static str,
        /// The option as it was given.
        option: String,
    },
    /// The workload has no such option.
    #[error("workload {workload} has no option `{option}`; {known}")]
    UnknownOption {
        /// The workload.
        workload: &'static str,
        /// The key as it was given.
        option: String,
        /// What there is.
        known: String,
    },
    /// The value is outside the option's range.
    #[error("option {option}={value} of workload {workload} is out of range: {min} to {max}")]
    OptionRange {
        /// The workload.
        workload: &'static str,
        /// The key.
        option: &'static str,
        /// The value as it was given.
        value: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// The footprint does not hold the smallest instance with these options.
    #[error("workload {workload} needs {needed} bytes with these options; {footprint} were given")]
    TooSmall {
        /// The workload.
        workload: &'static str,
        /// Bytes of the smallest instance.
        needed: u64,
        /// The footprint, bytes.
        footprint: u64,
    },
}

/// The values of a workload's settings.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    settings: &'static [Setting],
    values: Vec<u64>,
}

impl Options {
    /// Reads `key=value,key=value`; the empty text gives the defaults.
    pub(crate) fn parse(workload: &Workload, text: &str) -> Result<Self, WorkloadError> {
        let settings = workload.settings;
        let mut values: Vec<u64> = settings.iter().map(|s| s.default).collect();
        for option in text.split(',').filter(|o| !o.is_empty()) {
            let malformed =
                || WorkloadError::Malformed { workload: workload.name, option: option.to_owned() };
            let (key, value) = option.split_once('=').ok_or_else(malformed)?;
            let index = settings.iter().position(|s| s.name == key.trim()).ok_or_else(|| {
                let names: Vec<_> = settings.iter().map(|s| s.name).collect();
                let known = match names.as_slice() {
                    [] => "it has none".to_owned(),
                    names => format!("it has {}", names.join(", ")),
                };
                WorkloadError::UnknownOption {
                    workload: workload.name,
                    option: key.to_owned(),
                    known,
                }
            })?;
            let value: u64 = value.trim().parse().map_err(|_| malformed())?;
            let (min, max) = settings[index].range;
            if !(min..=max).contains(&value) {
                let option = settings[index].name;
                let workload = workload.name;
                return Err(WorkloadError::OptionRange { workload, option, value, min, max });
            }
            values[index] = value;
        }
        Ok(Self { settings, values })
    }

    /// The value of a setting of this workload.
    pub(crate) fn get(&self, name: &str) -> u64 {
        let index = self.settings.iter().position(|s| s.name == name);
        debug_assert!(index.is_some(), "{name} is not in the workload's list of settings");
        index.map_or(0, |i| self.values[i])
    }
    /// Whether a setting of 0 or 1 is 1.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.get(name) != 0
    }
}

/// Opens a workload by name, with options: `gups`, `kvstore:set_percent=50,value_bytes=1024`.
///
/// # Errors
/// See [`WorkloadError`]: an unknown name or option, a value or a footprint out of range.
pub fn open(
    name_with_options: &str,
    spec: &WorkloadSpec,
) -> Result<Box<dyn Source>, WorkloadError> {
    let (name, options) = name_with_options.split_once(':').unwrap_or((name_with_options, ""));
    let workload = WORKLOADS.iter().find(|w| w.name == name).ok_or_else(|| {
        let names: Vec<_> = WORKLOADS.iter().map(|w| w.name).collect();
        WorkloadError::Unknown { name: name.to_owned(), known: names.join(", ") }
    })?;
    if !(FOOTPRINT_MIN..=FOOTPRINT_MAX).contains(&spec.footprint) {
        return Err(WorkloadError::Footprint { footprint: spec.footprint });
    }
    if spec.accesses == Some(0) {
        return Err(WorkloadError::NoAccesses);
    }
    (workload.make)(spec, &Options::parse(workload, options)?)
}
