//! What an experiment is, with nothing left to defaults: the file that repeats it.

use crate::args::{CompareArgs, GapArg, PopulateArg};
pub use crate::check::pages;
use crate::check::{self, Origin};
use crate::guest::RealGuest;
use crate::sources::samples::SAMPLES;
use crate::sources::{self, Kind};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_hw::Profile;
use nestwalk_mm::{
    BadFrames, FREE_BLOCKS, Fragmentation, FreeBlocks, HostPages, LOW_MEMORY_BYTES, PagePolicy,
};
use nestwalk_report::{parse_bytes, parse_count};
use nestwalk_sim::DaemonTimes;
use nestwalk_sim::compare::Plan;
use nestwalk_sim::compare::spec::{Defaults, GuestSpec, MachineSpec};
use nestwalk_tables::Mode;
use nestwalk_types::GuestInfo;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const GIB: u64 = 1 << 30;
/// Bytes that workloads and patterns work on, if not said otherwise.
const FOOTPRINT: u64 = 4 * GIB;
/// The same where addresses have 32 bits.
const FOOTPRINT_32: u64 = GIB;
/// Most guest memory that is given unasked: with it the host's is within what can be modelled.
const GUEST_MAX: u64 = 12 << 40;
/// Footprint up to which memory is populated before counting begins, if not said otherwise: beyond
/// it, populating takes minutes and gigabytes of tables.
const POPULATE_MAX: u64 = 64 * GIB;
/// Accesses of a workload or pattern, if not said otherwise.
const ACCESSES: u64 = 20_000_000;

/// What `--page-tables` says if the trace's own are not to be used.
const NO_TABLES: &str = "none";
/// Instructions of a turn, if not said otherwise.
const QUANTUM: &str = "100k";
/// Paging mode of the guest, if not said otherwise.
const GUEST_PAGING: &str = "4-level";

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
    /// The hardware profile, whole, so that a later change of a built-in one changes nothing here.
    pub profile: Profile,
}

impl Experiment {
    /// What the arguments mean.
    ///
    /// # Errors
    /// An argument has no meaning.
    pub fn from_args(args: &CompareArgs) -> Result<Self> {
        let format = args.trace_format.as_deref().unwrap_or_default();
        let mut args = args.clone();
        if args.sources.is_empty() && !args.lackey && !args.guest && args.command.is_empty() {
            args.sources.push(SAMPLES[0].name.into());
        }
        match args.page_tables.as_deref() {
            Some(NO_TABLES) => args.page_tables = None,
            Some(_) => {}
            None => args.page_tables = tables_of_trace(&args, format),
        }
        let recorded = match args.guest {
            true => Some(Self::real_guest(&args)?.info()),
            false => {
                let tables = args.page_tables.as_deref().unwrap_or_default();
                sources::recorded(&args.sources, format, tables)?
            }
        };
        Self::resolve(&args, recorded.as_ref())
    }

    fn real_guest(args: &CompareArgs) -> Result<RealGuest> {
        RealGuest::new(&args.real, &args.command, args.vcpus.unwrap_or(1), args.seed)
    }

    /// What the arguments mean for a source that is a recorded guest, or is none.
    ///
    /// # Errors
    /// An argument has no meaning.
    pub fn resolve(args: &CompareArgs, recorded: Option<&GuestInfo>) -> Result<Self> {
        if let Some(guest) = recorded {
            check::options_of_recorded(args, guest)?;
        }
        let sources = args.sources.clone();
        if args.lackey && !sources.is_empty() {
            bail!(
                "--lackey runs a command, so there can be no other source: {}",
                sources.join(" ")
            );
        }
        if args.guest && !sources.is_empty() {
            bail!("--guest runs a command, so there can be no other source: {}", sources.join(" "));
        }
        let runs = args.lackey || args.guest;
        if !runs && !args.command.is_empty() {
            bail!(
                "a command after `--` needs --guest or --lackey, as in: compare --guest -- gcc -c x.c"
            );
        }
        let words = args.command.iter().filter(|_| args.lackey);
        let lackey: Vec<String> = words
            .map(|a| a.to_str().map(String::from).ok_or_else(|| anyhow!("{a:?}: not valid UTF-8")))
            .collect::<Result<_>>()?;
        let guest_paging = match (&args.guest_paging, recorded) {
            (Some(name), _) => name.clone(),
            (None, Some(guest)) => guest.paging.clone(),
            (None, None) => GUEST_PAGING.into(),
        };
        let guest_mode = check::mode("--guest-paging", &guest_paging)?;
        let footprint = match &args.footprint {
            Some(text) => parse_bytes(text).context("--footprint")?,
            None if guest_mode.address_bits() == 32 => FOOTPRINT_32,
            None => FOOTPRINT,
        };
        let pages = pages("--page-size", &args.page_size)?;
        let defaults = Defaults { pages, observed: recorded.is_some() };
        let machines = MachineSpec::parse_list(&args.machines, defaults).context("--machines")?;
        let guest_memory = match (&args.guest_memory, recorded) {
            (Some(text), _) => parse_bytes(text).context("--guest-memory")?,
            (None, Some(guest)) => guest.memory_bytes,
            // Frames of 4-byte entries are below 4 GiB, of which the I/O gap takes one.
            (None, None) if guest_mode.entry_bytes == 4 => 3 * GIB,
            (None, None) => {
                let format = args.trace_format.as_deref().unwrap_or_default();
                default_guest_memory(footprint, sources::programs(&sources, format))
            }
        };
        let host_memory = match &args.host_memory {
            Some(text) => parse_bytes(text).context("--host-memory")?,
            None => (guest_memory / 4 * 5 + 8 * GIB).max(listed_end(args)?).next_multiple_of(GIB),
        };
        let trace = |s: &String| sources::kind(s) == Some(Kind::File);
        let traces = recorded.is_some() || args.lackey || sources.iter().any(trace);
        let accesses = match &args.accesses {
            Some(text) => parse_count(text).context("--accesses")?,
            None if traces => 0,
            None => ACCESSES,
        };
        let (guest_fragmentation, guest_free_blocks) =
            fragmentation("--guest-fragmentation", &args.guest_fragmentation)?;
        let (host_fragmentation, host_free_blocks) =
            fragmentation("--host-fragmentation", &args.host_fragmentation)?;
        let experiment = Self {
            version: VERSION.into(),
            sources,
            lackey,
            guest: args.guest.then(|| Self::real_guest(args)).transpose()?,
            trace_format: args.trace_format.clone().unwrap_or_default(),
            page_tables: args.page_tables.clone().unwrap_or_default(),
            host_page_tables: args.host_page_tables.clone().unwrap_or_default(),
            machines: machines.into_iter().map(|m| m.name).collect(),
            footprint,
            accesses,
            warmup: parse_count(&args.warmup).context("--warmup")?,
            populate: match args.populate {
                PopulateArg::Auto => footprint <= POPULATE_MAX,
                PopulateArg::Yes => true,
                PopulateArg::No => false,
            },
            seed: args.seed,
            verify: args.verify,
            vcpus: args.vcpus.unwrap_or_else(|| recorded.map_or(1, |guest| guest.vcpus)),
            quantum: parse_count(args.quantum.as_deref().unwrap_or(QUANTUM))
                .context("--quantum")?,
            guest_memory,
            host_memory,
            guest_paging,
            host_paging: args.host_paging.clone(),
            guest_fragmentation,
            host_fragmentation,
            guest_free_blocks,
            host_free_blocks,
            low_memory: low_memory(args)?,
            guest_bad: args.guest_bad,
            guest_bad_at: frames(args.guest_bad_at.as_deref())?,
            daemons: daemons(args.daemons.as_deref())?,
            pcids: !args.no_pcids,
            approximate: args.approximate,
            profile: Profile::load(&args.profile).context("--profile")?,
        };
        check::experiment(&experiment, recorded, Origin::Arguments)?;
        Ok(experiment)
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// The file cannot be read, or is no experiment.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::read(path).with_context(|| path.display().to_string())
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .context("cannot be read; give a config.toml as `compare --output DIR` writes it")?;
        let experiment: Self = toml::from_str(&text).map_err(|error| {
            // What another version wrote may have other keys: that is the better explanation.
            match version_of(&text) {
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
        let recorded = match &experiment.guest {
            Some(guest) => Some(guest.info()),
            None => sources::recorded(
                &experiment.sources,
                &experiment.trace_format,
                &experiment.page_tables,
            )?,
        };
        check::experiment(&experiment, recorded.as_ref(), Origin::File)?;
        Ok(experiment)
    }

    /// Whether its guest has 32-bit addresses.
    pub fn has_32_bit_guest(&self) -> bool {
        Mode::by_name(&self.guest_paging).is_some_and(|m| m.address_bits() == 32)
    }

    /// The machines and their memory.
    ///
    /// # Errors
    /// A name in the file has no meaning.
    pub fn plan(&self, threads: usize) -> Result<Plan> {
        let mut machines = Vec::new();
        for name in &self.machines {
            machines.push(MachineSpec::parse(name, PagePolicy::Base)?);
        }
        let guest_mode = check::mode("guest_paging", &self.guest_paging)?;
        Ok(Plan {
            machines,
            profile: self.profile.clone(),
            guest_mode,
            host_mode: check::mode("host_paging", &self.host_paging)?,
            vcpus: usize::from(self.vcpus),
            guest_bytes: self.guest_memory,
            host_bytes: self.host_memory,
            low_bytes: self.low_memory,
            bad_frames: self.bad_frames()?,
            fragmentation: (
                in_memory(self.guest_fragmentation, &self.guest_free_blocks)?,
                in_memory(self.host_fragmentation, &self.host_free_blocks)?,
            ),
            daemons: self.daemons,
            pcids: self.pcids,
            seed: self.seed,
            verify: self.verify,
            threads,
            mappings: None,
            host_pages: self.host_pages()?,
            series: None,
            contiguity: false,
            contiguity_every: None,
            samples: None,
        })
    }

    /// Where hosts have guest memory, if page tables say it.
    fn host_pages(&self) -> Result<Option<Arc<HostPages>>> {
        let (guest, host) = (&self.page_tables, &self.host_page_tables);
        match (guest.as_str(), host.as_str()) {
            (_, "") => Ok(None),
            ("", _) => bail!("host_page_tables {host}: is for a trace with page_tables"),
            _ => sources::host_pages(guest, host).map(Some),
        }
    }

    /// Faulty frames of guest memory.
    ///
    /// # Errors
    /// Both ways of saying which, a frame twice, or more than can be listed.
    pub fn bad_frames(&self) -> Result<BadFrames> {
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
    pub fn has_modelled_guest(&self) -> bool {
        let observed = |name: &String| {
            MachineSpec::parse(name, PagePolicy::Base).is_ok_and(|m| m.guest == GuestSpec::Observed)
        };
        !self.machines.iter().all(observed)
    }
}

/// The page tables that come with the trace, if the source is one that has some, unless an option is
/// about a guest that is not that of the trace.
fn tables_of_trace(args: &CompareArgs, format: &str) -> Option<String> {
    let [name] = args.sources.as_slice() else { return None };
    let readable = matches!(format, "" | "drmemtrace");
    if !readable || args.lackey || args.guest || sources::kind(name) != Some(Kind::File) {
        return None;
    }
    let tables = nestwalk_source::tables_of_trace(Path::new(name))?.to_str()?.to_owned();
    let options = [
        ("--vcpus", args.vcpus.is_some_and(|n| n != 1)),
        ("--guest-memory", args.guest_memory.is_some()),
        ("--guest-paging", args.guest_paging.is_some()),
        ("--footprint", args.footprint.is_some()),
        ("--quantum", args.quantum.is_some()),
        ("--populate", args.populate != PopulateArg::Auto),
    ];
    match options.iter().find(|o| o.1) {
        None => Some(tables),
        Some((option, _)) => {
            crate::tell::tell(format_args!(
                "nestwalk: {tables} says where the trace's pages are, which is not used because of \
                 {option}; --page-tables {NO_TABLES} says so"
            ));
            None
        }
    }
}

/// Bytes of host memory that page tables of the host need, if any are given.
fn listed_end(args: &CompareArgs) -> Result<u64> {
    Ok(match (&args.page_tables, &args.host_page_tables) {
        (Some(guest), Some(host)) => sources::host_pages(guest, host)?.end().value() + GIB,
        _ => 0,
    })
}

/// What `--guest-fragmentation` says: a degree, and free blocks by order, if it is about those.
fn fragmentation(option: &str, text: &str) -> Result<(f64, Vec<u64>)> {
    if let Ok(degree) = text.parse() {
        return Ok((degree, Vec::new()));
    }
    if let Some(blocks) = FreeBlocks::by_name(text) {
        return Ok((0.0, as_numbers(&blocks)));
    }
    let contents = std::fs::read_to_string(text).with_context(|| {
        let names: Vec<&str> = FREE_BLOCKS.iter().map(|f| f.0).collect();
        let names = names.join(", ");
        format!("{option} {text}: no degree, none of {names}, and no file that can be read")
    })?;
    let blocks = FreeBlocks::parse(&contents).map_err(|e| anyhow!("{option} {text}: {e}"))?;
    Ok((0.0, as_numbers(&blocks)))
}

/// Free blocks as a configuration has them: 11 numbers by order; where something cannot be moved, the
/// page blocks that hold it and all page blocks follow.
fn as_numbers(free: &FreeBlocks) -> Vec<u64> {
    let mut numbers = free.blocks.to_vec();
    if free.immovable.0 > 0 {
        numbers.extend([free.immovable.0, free.immovable.1]);
    }
    numbers
}

/// What a configuration says about it.
///
/// # Errors
/// Another number of orders than Linux has, or numbers that cannot be.
pub fn in_memory(degree: f64, blocks: &[u64]) -> Result<Fragmentation> {
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

/// Numbers of frames with `+` between them, each once.
/// What `--daemons` says.
fn daemons(text: Option<&str>) -> Result<DaemonTimes> {
    DaemonTimes::parse(text.unwrap_or_default()).map_err(|e| anyhow!(e)).context("--daemons")
}

fn frames(text: Option<&str>) -> Result<Vec<u64>> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    let found = text.split('+').map(number).collect::<Result<Vec<u64>, _>>().map_err(|_| {
        anyhow!("--guest-bad-at {text}: write numbers of frames (gPA / 4096) with `+` between them, as in 0x1000+0x1001")
    })?;
    Ok(found)
}

fn low_memory(args: &CompareArgs) -> Result<Option<u64>> {
    match (args.io_gap, &args.low_memory) {
        (GapArg::Kept, Some(text)) => {
            bail!("--low-memory {text}: is for --io-gap reclaimed")
        }
        (GapArg::Kept, None) => Ok(None),
        (GapArg::Reclaimed, None) => Ok(Some(LOW_MEMORY_BYTES)),
        (GapArg::Reclaimed, Some(text)) => Ok(Some(parse_bytes(text).context("--low-memory")?)),
    }
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

/// Twice what the sources work on, for kernels' and tables' needs and for page sizes that waste,
/// and 8 GiB. Memory that is not touched costs the simulator next to nothing.
fn default_guest_memory(footprint: u64, sources: u64) -> u64 {
    let twice = footprint.saturating_mul(2 * sources.max(1));
    twice.saturating_add(8 * GIB).min(GUEST_MAX).next_multiple_of(GIB)
}
