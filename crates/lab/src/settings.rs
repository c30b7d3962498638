//! What is asked for, and the experiment that it means.

use crate::check::{self, Origin};
use crate::experiment::{Experiment, VERSION, as_numbers};
use crate::guest::RealGuest;
use crate::sampling;
use crate::sources::samples::SAMPLES;
use crate::sources::{self, Kind};
use crate::words;
use anyhow::{Context, Result, bail};
use nestwalk_hw::Profile;
use nestwalk_mm::{Fragmentation, PagePolicy};
use nestwalk_report::bytes;
use nestwalk_sim::DaemonTimes;
use nestwalk_sim::compare::spec::{Defaults, MachineSpec};
use nestwalk_sim::schemes::Catalogue;
use nestwalk_tables::Mode;
use nestwalk_types::GuestInfo;
use std::path::Path;

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
/// Instructions of a turn, if not said otherwise.
const QUANTUM: u64 = 100_000;
/// Paging mode of the guest, if not said otherwise.
const GUEST_PAGING: &str = "4-level";

/// Page tables that come with a trace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PageTablesFile {
    /// Those that the trace names itself, if it does and nothing asks for another guest.
    #[default]
    OfTrace,
    /// None.
    None,
    /// Those of this file.
    File(String),
}

/// What is asked for. `None` and an empty text leave a value to its default, which may depend on the
/// source; [`crate::Lab::experiment`] makes an [`Experiment`] of it, in which nothing is open.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Workloads, patterns, recordings or trace files; several are several processes. If none is named,
    /// nor a command or guest: the first of [`crate::SAMPLES`].
    pub sources: Vec<String>,
    /// A command to run under valgrind's lackey tool, in place of sources.
    pub lackey: Vec<String>,
    /// A real guest to run, in place of sources.
    pub guest: Option<RealGuest>,
    /// Format of trace files; empty to tell it by their contents.
    pub trace_format: String,
    /// Page tables of the one trace that is the source.
    pub page_tables: PageTablesFile,
    /// A file with the host's page tables beside them.
    pub host_page_tables: Option<String>,
    /// Machines, separated by commas; the controls `ideal` and `native` are added.
    pub machines: String,
    /// Page sizes of machines that do not name theirs.
    pub page_size: PagePolicy,
    /// Hardware profile: a built-in name or a .toml file.
    pub profile: String,
    /// Bytes that a workload or pattern works on; 4 GiB, or 1 GiB with 32-bit paging.
    pub footprint: Option<u64>,
    /// Accesses to count, 0 for all; 20 million for workloads and patterns, all of a trace or program.
    pub accesses: Option<u64>,
    /// Accesses before that are not counted.
    pub warmup: u64,
    /// Memory of workloads and patterns is present before counting begins; yes up to 64 GiB.
    pub populate: Option<bool>,
    /// Seed of every random choice.
    pub seed: u64,
    /// The referee watches.
    pub verify: bool,
    /// vCPUs; 1, or those of a recorded guest.
    pub vcpus: Option<u8>,
    /// Instructions of a turn where processes share a vCPU; 100,000.
    pub quantum: Option<u64>,
    /// Bytes of guest memory; twice the footprint and 8 GiB, or those of a recorded guest.
    pub guest_memory: Option<u64>,
    /// Bytes of host memory; 1.25 times the guest's and 8 GiB.
    pub host_memory: Option<u64>,
    /// The gap for I/O in guest memory is reclaimed, and so many bytes stay below it.
    pub low_memory: Option<u64>,
    /// Modelled guests that are short of memory swap pages, which this policy chooses.
    pub guest_swap: Option<String>,
    /// Paging mode of the guest; `4-level`, or that of a recorded guest.
    pub guest_paging: Option<String>,
    /// Paging mode of nested tables and of the host.
    pub host_paging: String,
    /// Fragmentation of guest memory at the start.
    pub guest_fragmentation: Fragmentation,
    /// Fragmentation of host memory at the start.
    pub host_fragmentation: Fragmentation,
    /// So many frames of guest memory are faulty, at random places.
    pub guest_bad: Option<u64>,
    /// These frames of guest memory are faulty.
    pub guest_bad_at: Vec<u64>,
    /// When daemons run, where page sizes or placement ask for any.
    pub daemons: DaemonTimes,
    /// The guest uses PCIDs.
    pub pcids: bool,
    /// Machines run that a filtered recording is not exact for.
    pub approximate: bool,
    /// Only stretches are measured: `default`, or `every=1M,unit=20k,warm=20k`; empty to measure all.
    pub sample: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            lackey: Vec::new(),
            guest: None,
            trace_format: String::new(),
            page_tables: PageTablesFile::OfTrace,
            host_page_tables: None,
            machines: "native,shadow,nested".into(),
            page_size: PagePolicy::Base,
            profile: "cascade-lake-6252".into(),
            footprint: None,
            accesses: None,
            warmup: 0,
            populate: None,
            seed: 1,
            verify: false,
            vcpus: None,
            quantum: None,
            guest_memory: None,
            host_memory: None,
            low_memory: None,
            guest_swap: None,
            guest_paging: None,
            host_paging: GUEST_PAGING.into(),
            guest_fragmentation: Fragmentation::default(),
            host_fragmentation: Fragmentation::default(),
            guest_bad: None,
            guest_bad_at: Vec::new(),
            daemons: DaemonTimes::default(),
            pcids: true,
            approximate: false,
            sample: String::new(),
        }
    }
}

/// Makes an experiment of what is asked for. `note` gets what a user should know before it runs.
///
/// # Errors
/// Something has no meaning, or does not go together.
pub fn resolve(
    settings: &Settings,
    catalogue: &Catalogue,
    origin: Origin,
    note: fn(&str),
) -> Result<Experiment> {
    let mut settings = settings.clone();
    let runs = settings.guest.is_some() || !settings.lackey.is_empty();
    if settings.sources.is_empty() && !runs {
        settings.sources.push(SAMPLES[0].name.into());
    }
    if settings.page_tables == PageTablesFile::OfTrace
        && let Some(tables) = tables_of_trace(&settings, origin, note)
    {
        settings.page_tables = PageTablesFile::File(tables);
    }
    let recorded = match &settings.guest {
        Some(guest) => Some(guest.info()),
        None => {
            sources::recorded(&settings.sources, &settings.trace_format, settings.tables_file())?
        }
    };
    let experiment = settings.complete(catalogue, origin, recorded.as_ref(), note)?;
    check::experiment(&experiment, catalogue, recorded.as_ref(), origin)?;
    Ok(experiment)
}

impl Settings {
    /// The file of page tables; empty if there is none.
    fn tables_file(&self) -> &str {
        match &self.page_tables {
            PageTablesFile::File(file) => file,
            PageTablesFile::OfTrace | PageTablesFile::None => "",
        }
    }

    /// With defaults, for a source that is a recorded guest, or is none.
    fn complete(
        &self,
        catalogue: &Catalogue,
        origin: Origin,
        recorded: Option<&GuestInfo>,
        note: fn(&str),
    ) -> Result<Experiment> {
        if let Some(guest) = recorded {
            self.check_recorded(guest, origin)?;
        }
        let name = |key| origin.name(key);
        let guest_paging = match (&self.guest_paging, recorded) {
            (Some(name), _) => name.clone(),
            (None, Some(guest)) => guest.paging.clone(),
            (None, None) => GUEST_PAGING.into(),
        };
        let guest_mode = words::mode(&name("guest_paging"), &guest_paging)?;
        let footprint = self.footprint.unwrap_or(match guest_mode.address_bits() {
            32 => FOOTPRINT_32,
            _ => FOOTPRINT,
        });
        let (observed, known) = (recorded.is_some(), (catalogue, origin));
        let machines = self.machines(known, guest_mode, observed, note)?;
        let guest_memory = self.guest_memory(footprint, guest_mode, recorded);
        let host_memory = match self.host_memory {
            Some(bytes) => bytes,
            None => (guest_memory / 4 * 5 + 8 * GIB).max(self.listed_end()?).next_multiple_of(GIB),
        };
        let trace = |s: &String| matches!(sources::kind(s), Some(Kind::File | Kind::Memory));
        let traces =
            recorded.is_some() || !self.lackey.is_empty() || self.sources.iter().any(trace);
        let sampled = sampling::parse(&name("sample"), &self.sample, self.seed)?;
        let (guest_fragmentation, guest_free_blocks) = as_written(&self.guest_fragmentation);
        let (host_fragmentation, host_free_blocks) = as_written(&self.host_fragmentation);
        Ok(Experiment {
            version: VERSION.into(),
            sources: self.sources.clone(),
            lackey: self.lackey.clone(),
            guest: self.guest.clone(),
            trace_format: self.trace_format.clone(),
            page_tables: self.tables_file().into(),
            host_page_tables: self.host_page_tables.clone().unwrap_or_default(),
            machines: machines.into_iter().map(|m| m.name).collect(),
            footprint,
            accesses: self.accesses.unwrap_or(if traces { 0 } else { ACCESSES }),
            warmup: self.warmup,
            populate: self.populate.unwrap_or(footprint <= POPULATE_MAX),
            seed: self.seed,
            verify: self.verify,
            vcpus: self.vcpus.unwrap_or_else(|| recorded.map_or(1, |guest| guest.vcpus)),
            quantum: self.quantum.unwrap_or(QUANTUM),
            guest_memory,
            host_memory,
            guest_paging,
            host_paging: self.host_paging.clone(),
            guest_fragmentation,
            host_fragmentation,
            guest_free_blocks,
            host_free_blocks,
            low_memory: self.low_memory,
            guest_swap: self.guest_swap.clone(),
            guest_bad: self.guest_bad,
            guest_bad_at: self.guest_bad_at.clone(),
            daemons: self.daemons,
            pcids: self.pcids,
            approximate: self.approximate,
            sample: sampled.map_or(String::new(), |s| sampling::text(&s)),
            profile: Profile::load(&self.profile).with_context(|| name("profile"))?,
        })
    }

    /// The machines, controls and every scheme of `all` among them; `note` gets what cannot be.
    fn machines(
        &self,
        (catalogue, origin): (&Catalogue, Origin),
        guest_mode: &'static Mode,
        observed: bool,
        note: fn(&str),
    ) -> Result<Vec<MachineSpec>> {
        let name = |key| origin.name(key);
        let defaults = Defaults { pages: self.page_size, observed };
        let host_mode = words::host_mode(&name("host_paging"), &self.host_paging)?;
        let fits = |m: &MachineSpec| words::machine(m, guest_mode, host_mode);
        let mut leave_out =
            |why: String| note(&format!("{} all: left out: {why}", name("machines")));
        let list = words::expand(&self.machines, catalogue, defaults, fits, &mut leave_out);
        MachineSpec::parse_list_in(catalogue, &list, defaults).with_context(|| name("machines"))
    }

    /// Twice what the sources work on, for kernels' and tables' needs and for page sizes that waste,
    /// and 8 GiB, if nothing is said. Memory that is not touched costs the simulator next to nothing.
    fn guest_memory(&self, footprint: u64, mode: &Mode, recorded: Option<&GuestInfo>) -> u64 {
        match (self.guest_memory, recorded) {
            (Some(bytes), _) => bytes,
            (None, Some(guest)) => guest.memory_bytes,
            // Frames of 4-byte entries are below 4 GiB, of which the I/O gap takes one.
            (None, None) if mode.entry_bytes == 4 => 3 * GIB,
            (None, None) => {
                let sources = sources::programs(&self.sources, &self.trace_format);
                let twice = footprint.saturating_mul(2 * sources.max(1));
                twice.saturating_add(8 * GIB).min(GUEST_MAX).next_multiple_of(GIB)
            }
        }
    }

    /// Bytes of host memory that page tables of the host need, if any are given.
    fn listed_end(&self) -> Result<u64> {
        Ok(match (self.tables_file(), &self.host_page_tables) {
            ("", _) | (_, None) => 0,
            (guest, Some(host)) => sources::host_pages(guest, host)?.end().value() + GIB,
        })
    }

    /// Whether this leaves a recorded guest what it was.
    fn check_recorded(&self, guest: &GuestInfo, origin: Origin) -> Result<()> {
        let name = |key| origin.name(key);
        let given = [
            ("footprint", self.footprint.is_some()),
            ("quantum", self.quantum.is_some()),
            ("populate", self.populate.is_some()),
        ];
        if let Some((key, _)) = given.into_iter().find(|g| g.1) {
            bail!(
                "{} is for workloads, patterns and programs; the source is a recorded guest",
                name(key)
            );
        }
        if let Some(size) = self.guest_memory.filter(|size| *size != guest.memory_bytes) {
            let (key, is) = (name("guest_memory"), bytes(guest.memory_bytes));
            bail!("{key} {}: the recorded guest has {is}", bytes(size));
        }
        if let Some(mode) = self.guest_paging.as_ref().filter(|mode| **mode != guest.paging) {
            let (key, is) = (name("guest_paging"), &guest.paging);
            bail!("{key} {mode}: the recorded guest has {is} paging");
        }
        if let Some(vcpus) = self.vcpus.filter(|n| *n != guest.vcpus) {
            bail!("{} {vcpus}: the recorded guest has {}", name("vcpus"), guest.vcpus);
        }
        Ok(())
    }
}

/// The page tables that come with the trace, if the source is one that has some, unless something is
/// asked for that is about a guest which is not that of the trace.
fn tables_of_trace(settings: &Settings, origin: Origin, note: fn(&str)) -> Option<String> {
    let [name] = settings.sources.as_slice() else { return None };
    let readable = matches!(settings.trace_format.as_str(), "" | "drmemtrace");
    let runs = settings.guest.is_some() || !settings.lackey.is_empty();
    if !readable || runs || sources::kind(name) != Some(Kind::File) {
        return None;
    }
    let tables = nestwalk_source::tables_of_trace(Path::new(name))?.to_str()?.to_owned();
    let asked = [
        ("vcpus", settings.vcpus.is_some_and(|n| n != 1)),
        ("guest_memory", settings.guest_memory.is_some()),
        ("guest_paging", settings.guest_paging.is_some()),
        ("footprint", settings.footprint.is_some()),
        ("quantum", settings.quantum.is_some()),
        ("populate", settings.populate.is_some()),
    ];
    let Some((key, _)) = asked.iter().find(|o| o.1) else { return Some(tables) };
    note(&format!(
        "{tables} says where the trace's pages are, which is not used because of {}; {} none says so",
        origin.name(key),
        origin.name("page_tables")
    ));
    None
}

/// Fragmentation as a configuration has it: a degree, and free blocks by order, if it is about those.
fn as_written(fragmentation: &Fragmentation) -> (f64, Vec<u64>) {
    match fragmentation {
        Fragmentation::Degree(degree) => (*degree, Vec::new()),
        Fragmentation::Blocks(blocks) => (0.0, as_numbers(blocks)),
    }
}
