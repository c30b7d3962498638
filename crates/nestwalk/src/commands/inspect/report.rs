//! What is found out about a process, before it is printed.

use nestwalk_contiguity::{Histogram, RunSet, Survey};
use nestwalk_host::{Cut, FrameKinds, Missing, PAGE_BYTES, ProcessMemory, Region, Snapshot};
use std::collections::BTreeMap;

/// A mapping of address spaces, of which there are up to four: the process's own, and of a VM the
/// guest's, the host's, and both together.
pub struct Dimension {
    /// `process`, `guest`, `host` or `both`.
    pub name: &'static str,
    /// The two address spaces.
    pub spaces: [&'static str; 2],
    /// Its runs.
    pub runs: RunSet,
    /// Its runs by length.
    pub histogram: Histogram,
    /// What covers them.
    pub survey: Survey,
}

impl Dimension {
    /// Counts what its runs need.
    pub fn new(name: &'static str, spaces: [&'static str; 2], runs: RunSet) -> Self {
        let (histogram, survey) = (Histogram::of(&runs), Survey::of(&runs));
        Self { name, spaces, runs, histogram, survey }
    }

    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.runs.pages() * PAGE_BYTES
    }

    /// Bytes of the longest run.
    pub fn longest(&self) -> u64 {
        self.runs.iter().map(|r| r.pages * PAGE_BYTES).max().unwrap_or(0)
    }
}

/// A mapping and its runs.
pub struct Mapping {
    /// What the kernel says of it.
    pub region: Region,
    /// Contiguous runs in it.
    pub runs: u64,
    /// Bytes of the longest.
    pub longest: u64,
}

impl Mapping {
    /// Resident bytes: by smaps, or else by pagemap.
    pub fn resident(&self) -> u64 {
        let r = &self.region;
        if r.measured { r.resident() } else { r.present * PAGE_BYTES }
    }
}

/// Everything.
pub struct Report {
    /// Number of the process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its mappings.
    pub mappings: Vec<Mapping>,
    /// The process's own dimension first.
    pub dimensions: Vec<Dimension>,
    /// Whether frame numbers are not shown; runs are then those of addresses.
    pub hidden: bool,
    /// What frames are, if that is known.
    pub kinds: Option<FrameKinds>,
    /// What could not be read.
    pub missing: Vec<Missing>,
    /// Whether all was read.
    pub cut: Option<Cut>,
    /// Of a VM with a guest's snapshot: name and process in the guest, pages with no frame behind them.
    pub guest: Option<(String, u64, u64)>,
}

impl Report {
    /// Of a process's memory.
    pub fn new(process: &ProcessMemory, seen: Snapshot) -> Self {
        let mapping = |region: Region| {
            let (first, pages) = (region.start / PAGE_BYTES, region.bytes() / PAGE_BYTES);
            let lengths = seen.runs.within(first, pages).map(|r| r.pages * PAGE_BYTES);
            let (runs, longest) = lengths.fold((0, 0), |(n, most), len| (n + 1, most.max(len)));
            Mapping { region, runs, longest }
        };
        let mappings = seen.regions.into_iter().map(mapping).collect();
        let to = if seen.frames_hidden { "?" } else { "PA" };
        Self {
            pid: process.pid,
            name: process.name.clone(),
            mappings,
            dimensions: vec![Dimension::new("process", ["VA", to], seen.runs)],
            hidden: seen.frames_hidden,
            kinds: seen.kinds,
            missing: seen.missing,
            cut: seen.cut,
            guest: None,
        }
    }

    /// The sum of something over all mappings.
    pub fn sum(&self, what: impl Fn(&Mapping) -> u64) -> u64 {
        self.mappings.iter().map(what).sum()
    }

    /// Resident bytes by the page size that maps them. Empty if the kernel does not say it.
    pub fn page_sizes(&self) -> BTreeMap<u64, u64> {
        let mut sizes = BTreeMap::new();
        for region in self.mappings.iter().map(|m| &m.region).filter(|r| r.measured) {
            *sizes.entry(PAGE_BYTES).or_default() += region.rss.saturating_sub(region.huge);
            *sizes.entry(2 << 20).or_default() += region.huge;
            *sizes.entry(region.page_bytes).or_default() += region.hugetlb;
        }
        sizes.retain(|_, bytes| *bytes > 0);
        sizes
    }
}
