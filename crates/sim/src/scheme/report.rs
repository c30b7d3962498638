//! What a scheme reports beside counters.

use super::Platform;
use crate::hardware::walk::segments::SegmentUnit;
use nestwalk_policy::{Decision, Mode, Sample};
use nestwalk_types::{Address, Hpa};
use serde::Serialize;

/// One segment and its escape filter, as hardware has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentInfo {
    /// First address; 0 if there is none.
    pub base: u64,
    /// Length in bytes; 0 if there is none.
    pub bytes: u64,
    /// Pages that were put into the filter.
    pub escaped: u64,
    /// Pages of the segment that the filter reports, false positives included.
    pub reported: u64,
}

impl SegmentInfo {
    /// What a unit has.
    pub fn of<I: Address, O: Address>(unit: &SegmentUnit<I, O>) -> Self {
        let pages = unit.registers().pages();
        let reported = |most| unit.filter().reported(most).count() as u64;
        Self {
            base: unit.registers().base().value(),
            bytes: unit.registers().bytes(),
            escaped: unit.escaped(),
            reported: reported(pages),
        }
    }
}

/// The segments of a machine. Of guest segments the largest that was loaded so far.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SegmentState {
    /// The guest's, from gVA to gPA.
    pub guest: SegmentInfo,
    /// The VMM's, from gPA to hPA.
    pub vmm: SegmentInfo,
    /// Guest memory that lies in the VMM's segment, in percent.
    pub vmm_percent: f64,
}

/// Contiguity as a machine's index has it, and what software keeps for its hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContiguityState {
    /// Pages of 4 KiB that user mode may access, all address spaces.
    pub guest_pages: u64,
    /// Runs in which they lie.
    pub guest_runs: u64,
    /// Guest-physical pages that nested tables map.
    pub host_pages: u64,
    /// Runs in which they lie.
    pub host_runs: u64,
    /// Bytes of range tables.
    pub metadata_bytes: u64,
    /// Pages from anchor to anchor in the largest address space; 0 without anchors.
    pub anchor_distance: u64,
}

/// Bytes of page tables by owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PageTableBytes {
    /// The guest's own tables.
    pub guest: u64,
    /// Nested tables.
    pub nested: u64,
    /// Shadow tables.
    pub shadow: u64,
    /// The host kernel's tables of the VMM process, for guest RAM.
    pub host: u64,
}

impl PageTableBytes {
    /// Of a machine whose only tables are the guest's.
    pub fn of_guest(platform: &Platform) -> Self {
        Self { guest: platform.cpu.world.guest.len() * 4096, ..Self::default() }
    }

    /// Of a machine whose hypervisor keeps `nested` and `shadow` bytes of tables in the host's memory;
    /// the rest of the host's table frames are the host kernel's.
    pub fn of_vm(platform: &Platform, nested: u64, shadow: u64) -> Self {
        let frames = platform.host.as_ref().map_or(0, |h| h.counters().table_frames * 4096);
        let host = frames - nested - shadow;
        Self { nested, shadow, host, ..Self::of_guest(platform) }
    }
}

/// A structure that maps pages, as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StructureState {
    /// Bytes of its tables.
    pub bytes: u64,
    /// Places for entries, or for clusters of them.
    pub places: u64,
    /// Of these, those in use.
    pub used: u64,
}

/// The tables that a scheme has in place of radix tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TableState {
    /// The guest's; zeros without.
    pub guest: StructureState,
    /// The host's; zeros without.
    pub host: StructureState,
    /// Bytes of the guest's radix tables, which the stream's kernel keeps.
    pub radix_bytes: u64,
}

/// Where the frames of a machine of several nodes lie.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodesState {
    /// Frames of 4 KiB in use, by node.
    pub frames: Vec<u64>,
    /// Of these, those of the guest's tables.
    pub guest_tables: Vec<u64>,
    /// Of these, those of nested tables.
    pub nested_tables: Vec<u64>,
}

impl NodesState {
    /// Of a machine of several nodes, whose nested tables are in these frames.
    pub fn of(platform: &Platform, nested: Vec<Hpa>) -> Option<Self> {
        let nodes = platform.cpu.hardware.caches.nodes()?;
        let by_node = |frames: &mut dyn Iterator<Item = Hpa>| {
            let mut counts = vec![0; nodes.count()];
            for node in frames.filter_map(|frame| nodes.of(frame)) {
                counts[usize::from(node)] += 1;
            }
            counts
        };
        let guest = platform.cpu.world.guest.pages();
        Some(Self {
            frames: nodes.used().to_vec(),
            guest_tables: by_node(&mut guest.filter_map(|table| platform.frame_of(table))),
            nested_tables: by_node(&mut nested.into_iter()),
        })
    }
}

/// What a scheme reports beside counters, by section; a section that it does not have is `None`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// Bytes of page tables.
    pub page_tables: PageTableBytes,
    /// Segments.
    pub segments: Option<SegmentState>,
    /// Contiguity as the scheme's index has it.
    pub contiguity: Option<ContiguityState>,
    /// The course of a paging mode that changes.
    pub switching: Option<SwitchingResult>,
    /// Tables in place of radix tables.
    pub tables: Option<TableState>,
    /// Nodes.
    pub nodes: Option<NodesState>,
    /// Frames of nested tables, on a machine of several nodes.
    pub nested_tables: Vec<Hpa>,
}

/// One change of the paging mode.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Switched {
    /// Simulated milliseconds since the region of interest began.
    pub time_ms: f64,
    /// Instructions since then.
    pub instructions: u64,
    /// The mode from then on.
    pub mode: Mode,
    /// Why.
    pub reason: String,
    /// What the policy saw last, if it was one.
    pub sample: Option<Sample>,
}

/// What came of a machine whose paging mode changes, since its region of interest began.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SwitchingResult {
    /// The mode at the beginning.
    pub start: Mode,
    /// Percent of the simulated time in shadow mode.
    pub shadow_percent: f64,
    /// Percent of the simulated time in nested mode.
    pub nested_percent: f64,
    /// Samples that the policy saw.
    pub samples: u64,
    /// The switches in order.
    pub switches: Vec<Switched>,
    /// Every sample with the policy's answer, for whoever draws or replays it; not in JSON.
    #[serde(skip)]
    pub decisions: Vec<(Sample, Decision)>,
}
