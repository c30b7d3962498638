//! What a trace says of itself: the header, the totals and the summary, as JSON within the file.

use nestwalk_types::{Control, Filter, FilterArray, GuestInfo, SourceInfo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What made a trace, and what it can and cannot answer.
///
/// Every field may be missing in a file and is then empty, and fields that this version does not know
/// are ignored, so that later versions can add some.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// What wrote the file, with its version: `nestwalk 0.1.0`.
    pub tool: String,
    /// One line on where the stream came from; made from `command` if it is empty.
    pub description: String,
    /// The command that was recorded, word by word.
    pub command: Vec<String>,
    /// Release of the guest's kernel, as `uname -r` says it.
    pub kernel: String,
    /// CPU model as QEMU was given it: `max,erms=off,fsrm=off`.
    pub cpu: String,
    /// Version of QEMU.
    pub qemu: String,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// Name of the guest's paging mode, as `nestwalk_tables` has it.
    pub paging: String,
    /// Transparent huge pages of the guest: `always`, `madvise` or `never`.
    pub thp: String,
    /// The guest isolates its page tables (kPTI): CR3 changes at each entry to its kernel.
    pub pti: bool,
    /// Debian packages in the guest, `name=version`.
    pub packages: Vec<String>,
    /// Decides every random choice of the recorder or of the modelled guest.
    pub seed: Option<u64>,
    /// Recording the same command again gives the same bytes.
    pub reproducible: bool,
    /// Why not, if it does not.
    pub irreproducible_because: String,
    /// The boot of the guest is part of the trace.
    pub boot: bool,
    /// Accesses that the stream does not show.
    #[serde(with = "FilterDef")]
    pub filter: Filter,
    /// Which of a page's cache lines were touched is known.
    pub knows_lines: bool,
    /// Instruction addresses are known.
    pub knows_pc: bool,
    /// Instruction fetches are part of the stream.
    pub has_fetches: bool,
    /// Addresses of runs have their lowest 6 bits cleared: no model looks below a cache line.
    /// Instruction addresses are whole. The writer sets it from its options.
    pub line_addresses: bool,
    /// Approximations that results must name, one sentence each.
    pub approximations: Vec<String>,
    /// What this trace cannot answer, one sentence each: for people. The writer adds what follows
    /// from the other fields ([`Header::limits`]).
    pub cannot_answer: Vec<String>,
}

impl Header {
    /// The header of a stream of which only this is known.
    ///
    /// Empty where the stream is not one of a guest.
    pub fn of(info: &SourceInfo) -> Self {
        let guest = info.guest.clone().unwrap_or(GuestInfo {
            memory_bytes: 0,
            paging: String::new(),
            vcpus: 0,
            filter: Filter::default(),
        });
        Self {
            tool: concat!("nestwalk ", env!("CARGO_PKG_VERSION")).into(),
            description: info.description.clone(),
            memory_bytes: guest.memory_bytes,
            vcpus: guest.vcpus,
            paging: guest.paging,
            filter: guest.filter,
            knows_lines: info.knows_lines,
            knows_pc: info.knows_pc,
            has_fetches: info.has_fetches,
            approximations: info.approximations.clone(),
            ..Self::default()
        }
    }

    /// What consumers of the stream are told of the guest.
    pub fn guest(&self) -> GuestInfo {
        GuestInfo {
            memory_bytes: self.memory_bytes,
            paging: self.paging.clone(),
            vcpus: self.vcpus,
            filter: self.filter,
        }
    }

    /// One line on where the stream came from.
    pub fn origin(&self) -> String {
        match (self.description.as_str(), self.command.as_slice()) {
            ("", []) => "recorded guest".into(),
            ("", words) => format!("recorded guest running {}", words.join(" ")),
            (text, _) => text.into(),
        }
    }

    /// What follows from filter and flags, in words: what cannot be answered from this trace.
    pub fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if let Some(text) = filter_in_words(&self.filter) {
            limits.push(text);
        }
        if !self.knows_lines {
            limits.push(
                "which cache lines of a page were touched is not known: effects of data \
                         in caches are an upper bound or are left out"
                    .into(),
            );
        }
        if !self.knows_pc {
            limits.push(
                "instruction addresses are not known: nothing that depends on them can be \
                         modelled"
                    .into(),
            );
        }
        if !self.has_fetches {
            limits.push(
                "instruction fetches are not part of the stream: TLBs for instructions \
                         see none"
                    .into(),
            );
        }
        if self.line_addresses {
            limits.push(
                "addresses of accesses have their lowest 6 bits cleared: nothing below a \
                         cache line of 64 bytes can be told apart"
                    .into(),
            );
        }
        limits
    }
}

/// What a filter hides, if it hides anything.
fn filter_in_words(filter: &Filter) -> Option<String> {
    if *filter == Filter::RUNS || *filter == Filter::default() {
        return None;
    }
    let array = |name: &str, a: FilterArray| match a.sets {
        0 => None,
        sets => Some(format!("{name} {sets} x {} ways", a.ways)),
    };
    let arrays: Vec<String> = [
        array("data", filter.data),
        array("data in large pages", filter.data_large),
        array("fetches", filter.fetch),
        array("fetches from large pages", filter.fetch_large),
    ]
    .into_iter()
    .flatten()
    .collect();
    Some(format!(
        "accesses that hit the recorder's filter ({}) are counted in earlier runs: exact only for \
         TLBs with replacement by order of use, at least as many ways, and sets that refine the \
         filter's; other TLBs, and the order of accesses within the filter's reach, cannot be \
         answered",
        arrays.join(", ")
    ))
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Filter", default)]
struct FilterDef {
    #[serde(with = "ArrayDef")]
    data: FilterArray,
    #[serde(with = "ArrayDef")]
    data_large: FilterArray,
    #[serde(with = "ArrayDef")]
    fetch: FilterArray,
    #[serde(with = "ArrayDef")]
    fetch_large: FilterArray,
}

impl Default for FilterDef {
    fn default() -> Self {
        let Filter { data, data_large, fetch, fetch_large } = Filter::default();
        Self { data, data_large, fetch, fetch_large }
    }
}

impl From<FilterDef> for Filter {
    fn from(def: FilterDef) -> Self {
        let FilterDef { data, data_large, fetch, fetch_large } = def;
        Self { data, data_large, fetch, fetch_large }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "FilterArray")]
struct ArrayDef {
    sets: u16,
    ways: u8,
}

/// How much a stream holds. Counted by the writer.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Runs.
    pub runs: u64,
    /// Accesses in all runs.
    pub accesses: u64,
    /// Instructions in all runs.
    pub instructions: u64,
    /// Controls of all kinds.
    pub controls: u64,
    /// Accesses since [`Control::RegionOfInterest`]; 0 if that was never said.
    pub accesses_of_interest: u64,
    /// Controls by kind, under the names of [`control_name`].
    pub controls_by_kind: BTreeMap<String, u64>,
}

impl Totals {
    pub(super) fn add_controls(&mut self, name: &'static str, count: u64) {
        if let Some(known) = self.controls_by_kind.get_mut(name) {
            *known += count;
        } else {
            self.controls_by_kind.insert(name.into(), count);
        }
        self.controls += count;
    }
}

/// What the recorder knows at the end.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Exit status of the recorded command; `None` if it is not known.
    pub exit_status: Option<i32>,
    /// Events that were not recorded, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Anything else worth keeping, by name: counts of the recorder.
    pub counts: BTreeMap<String, u64>,
    /// Remarks, one sentence each.
    pub notes: Vec<String>,
}

/// The name of a kind of control in totals and messages.
pub const fn control_name(control: &Control) -> &'static str {
    match control {
        Control::Switch { .. } => "switch",
        Control::Map { .. } => "map",
        Control::Populate { .. } => "populate",
        Control::RegionOfInterest => "region_of_interest",
        Control::Unmap { .. } => "unmap",
        Control::Protect { .. } => "protect",
        Control::Fork { .. } => "fork",
        Control::Exec { .. } => "exec",
        Control::Exit { .. } => "exit",
        Control::LoadCr3 { .. } => "load_cr3",
        Control::LoadSegment { .. } => "load_segment",
        Control::SelfBallooned { .. } => "self_ballooned",
        Control::WrittenOut { .. } => "written_out",
        Control::Invalidate { .. } => "invalidate",
        Control::TableAdded { .. } => "table_new",
        Control::TableWrite { .. } => "table_write",
        Control::PageCleared { .. } => "page_cleared",
        Control::TableRetired { .. } => "table_reused",
        Control::Prefault { .. } => "backed",
        Control::Process { .. } => "process",
        Control::Fault { .. } => "fault",
        Control::OsWork { .. } => "os_work",
    }
}
