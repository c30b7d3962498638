//! What an experiment is, with nothing left to defaults: the file that repeats it.

use crate::guest::RealGuest;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_hw::Profile;
use nestwalk_mm::{BadFrames, Fragmentation, FreeBlocks, PagePolicy};
use nestwalk_sim::DaemonTimes;
use nestwalk_sim::compare::spec::{GuestSpec, MachineSpec};
use nestwalk_sim::schemes::Catalogue;
use nestwalk_tables::Mode;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of this library and of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything that decides the results. Byte for byte the same experiment gives byte for byte the
/// same results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Version of nestwalk that wrote the file.
    pub version: String,
    /// Workloads, patterns or trace files.
    pub sources: Vec<String>,
    /// A command to run under valgrind's lackey tool, in place of sources.
    pub lackey: Vec<String>,
    /// A real guest to run, in place of sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<RealGuest>,
    /// Format of trace files; empty to tell it by their contents.
    pub trace_format: String,
    /// A file with the page tables of the one trace that is the source; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub page_tables: String,
    /// A file with the host's page tables beside them; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_page_tables: String,
    /// Names of machines, controls included.
    pub machines: Vec<String>,
    /// Bytes that workloads and patterns work on.
    pub footprint: u64,
    /// Accesses to count; 0 for all that the source has.
    pub accesses: u64,
    /// Accesses before that are not counted.
    pub warmup: u64,
    /// Memory is present before counting begins.
    pub populate: bool,
    /// Seed of every random choice.
    pub seed: u64,
    /// The referee watches.
    pub verify: bool,
    /// vCPUs.
    pub vcpus: u8,
    /// Instructions of a turn.
    pub quantum: u64,
    /// Bytes of guest memory.
    pub guest_memory: u64,
    /// Bytes of host memory.
    pub host_memory: u64,
    /// Paging mode of the guest.
    pub guest_paging: String,
    /// Paging mode of nested tables and of the host.
    pub host_paging: String,
    /// Degree of fragmentation of guest memory.
    pub guest_fragmentation: f64,
    /// Degree of fragmentation of host memory.
    pub host_fragmentation: f64,
    /// Free blocks of each order in guest memory at the start, by proportion, 11 numbers, and of the
    /// page blocks those that hold what cannot be moved, and all, if any do; empty to go by the degree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest_free_blocks: Vec<u64>,
    /// The same of host memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_free_blocks: Vec<u64>,
    /// The gap for I/O in guest memory is reclaimed, and so many bytes stay below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_memory: Option<u64>,
    /// Modelled guests that are short of memory swap pages, which this policy chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_swap: Option<String>,
    /// So many frames of guest memory are faulty, at random places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_bad: Option<u64>,
    /// These frames of guest memory are faulty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guest_bad_at: Vec<u64>,
    /// When daemons run, where page sizes or placement ask for any.
    #[serde(default)]
    pub daemons: DaemonTimes,
    /// The guest uses PCIDs.
    pub pcids: bool,
    /// Machines run that a filtered recording is not exact for.
    #[serde(default)]
    pub approximate: bool,
    /// Only stretches are measured, and results are estimates; empty to measure all:
    /// [`crate::sampling`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sample: String,
    /// The hardware profile, whole, so that a later change of a built-in one changes nothing here.
    pub profile: Profile,
}

impl Experiment {
    /// Reads a configuration, of which nothing but the profile is checked yet.
    ///
    /// # Errors
    /// The file cannot be read, is no experiment, or is one of another version.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .context("cannot be read; give a config.toml as `compare --output DIR` writes it")?;
        Self::parse(&text)
    }

    /// As [`Experiment::read`], of the text of a configuration.
    ///
    /// # Errors
    /// It is no experiment, or is one of another version.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let experiment: Self = toml::from_str(text).map_err(|error| {
            // What another version wrote may have other keys: that is the better explanation.
            match version_of(text) {
                Some(version) if version != VERSION => anyhow!(other_version(&version)),
                _ => anyhow!(error),
            }
        })?;
        if experiment.version != VERSION {
            bail!(other_version(&experiment.version));
        }
        // The profile inside is checked as one in a file of its own would be.
        let profile = toml::to_string(&experiment.profile)?;
        Profile::parse("in it", &profile)?;
        Ok(experiment)
    }

    /// The text of the configuration file that repeats it, in TOML.
    ///
    /// # Errors
    /// A value cannot be written in TOML: a number of 2^63 or more.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Bits of its guest's virtual addresses.
    pub(crate) fn address_bits(&self) -> u32 {
        Mode::by_name(&self.guest_paging).map_or(64, Mode::address_bits)
    }

    /// Faulty frames of guest memory.
    ///
    /// # Errors
    /// Both ways of saying which, a frame twice, or more than can be listed.
    pub(crate) fn bad_frames(&self) -> Result<BadFrames> {
        let mut listed = self.guest_bad_at.clone();
        listed.sort_unstable();
        match (self.guest_bad, listed.as_slice()) {
            (None, []) => Ok(BadFrames::NONE),
            (Some(count), []) => Ok(BadFrames::random(count, self.seed)),
            (Some(_), _) => bail!("bad frames of the guest: say how many, or which, not both"),
            (None, frames) => {
                if let Some(twice) = frames.windows(2).find(|w| w[0] == w[1]) {
                    bail!("bad frames of the guest: {:#x} is named twice", twice[0]);
                }
                BadFrames::listed(frames).ok_or_else(|| {
                    let most = BadFrames::MOST;
                    anyhow!("{} bad frames of the guest: up to {most} can be named", frames.len())
                })
            }
        }
    }

    /// Whether a machine has another guest than a recorded one as it was.
    pub(crate) fn has_modelled_guest(&self, catalogue: &Catalogue) -> bool {
        !self.machines.iter().all(|name| is_observed(catalogue, name))
    }

    /// Whether a machine has the recorded guest as it was.
    pub(crate) fn has_observed_guest(&self, catalogue: &Catalogue) -> bool {
        self.machines.iter().any(|name| is_observed(catalogue, name))
    }
}

fn is_observed(catalogue: &Catalogue, name: &str) -> bool {
    MachineSpec::parse_in(catalogue, name, PagePolicy::Base)
        .is_ok_and(|m| m.guest == GuestSpec::Observed)
}

/// Free blocks as a configuration has them: 11 numbers by order; where something cannot be moved, the
/// page blocks that hold it and all page blocks follow.
pub(crate) fn as_numbers(free: &FreeBlocks) -> Vec<u64> {
    let mut numbers = free.blocks.to_vec();
    if free.immovable.0 > 0 {
        numbers.extend([free.immovable.0, free.immovable.1]);
    }
    numbers
}

/// Fragmentation as a configuration says it.
///
/// # Errors
/// Another number of orders than Linux has, or numbers that cannot be.
pub(crate) fn in_memory(degree: f64, blocks: &[u64]) -> Result<Fragmentation> {
    if blocks.is_empty() {
        return Ok(degree.into());
    }
    let wrong = || {
        let n = blocks.len();
        anyhow!(
            "{n} numbers of free blocks: 11 are needed, or 13 with the page blocks that hold what \
             cannot be moved, and all of them"
        )
    };
    let (free, rest) = blocks.split_at_checked(11).ok_or_else(wrong)?;
    let mut found = FreeBlocks::new(free.try_into().map_err(|_| wrong())?);
    found.immovable = match rest {
        [] => (0, 0),
        &[immovable, all] => (immovable, all),
        _ => return Err(wrong()),
    };
    found.check().map_err(|e| anyhow!(e))?;
    Ok(Fragmentation::Blocks(found))
}

/// The version that a configuration names, if it can be told.
fn version_of(text: &str) -> Option<String> {
    let table: toml::Table = toml::from_str(text).ok()?;
    table.get("version")?.as_str().map(Into::into)
}

fn other_version(version: &str) -> String {
    format!(
        "written by nestwalk {version}, but this is nestwalk {VERSION}, whose results may differ; \
         run it with that version, or set `version = \"{VERSION}\"` to run it with this one"
    )
}
