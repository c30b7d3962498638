//! What a machine's tables say of contiguity: runs of the guest's dimension, of the host's, and of both
//! together, and how many entries of each technique cover them.
//!
//! Counted are pages of programs: the half of the addresses that is theirs, in every address space that
//! a vCPU has loaded. The kernel's own mapping of memory is one run by nature and would hide all else.

use crate::hardware::world::World;
use crate::scheme::Platform;
use nestwalk_contiguity::{MappedRun, Pieces, RunSet, SHARES, Survey, compose};
use nestwalk_mm::HostMemory;
use nestwalk_tables::{Entry, Mode, Permissions, each_leaf};
use nestwalk_types::{Address, Gpa};
use serde::Serialize;
use std::collections::BTreeMap;

/// Of one machine. Meanings: [`COVERAGE_FIELDS`].
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "documented in COVERAGE_FIELDS, which a test compares with this")]
pub struct CoverageResult {
    pub processes: u64,
    pub guest: DimensionResult,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<DimensionResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub both: Option<DimensionResult>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub over_time: Vec<CoveragePoint>,
}

/// What it was at a moment. Meanings: [`POINT_FIELDS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "documented in POINT_FIELDS, which a test compares with this")]
pub struct CoveragePoint {
    pub instructions: u64,
    pub pages: u64,
    pub guest_ranges_99: u64,
    pub host_ranges_99: u64,
    pub both_ranges_99: u64,
    pub guest_offsets_99: u64,
    pub both_offsets_99: u64,
}

/// Snapshots at the tables every so many instructions, from the beginning of the stream.
#[derive(Clone, Debug)]
pub struct Snapshots {
    every: u64,
    due: u64,
    points: Vec<CoveragePoint>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { every: u64::MAX, due: u64::MAX, points: Vec::new() }
    }
}

impl Snapshots {
    /// Snapshots every so many instructions.
    pub fn new(every: u64) -> Self {
        Self { every: every.max(1), due: every.max(1), points: Vec::new() }
    }
    /// When the next look is due, by the machine's clock.
    #[inline]
    pub const fn due(&self) -> u64 {
        self.due
    }
    /// Snapshots, if it is due; of several moments that have passed only at the last.
    pub fn look(&mut self, clock: u64, platform: &Platform) {
        if clock >= self.due {
            self.due = (clock - clock % self.every).saturating_add(self.every);
            self.points.push(CoveragePoint::of(clock, &CoverageResult::of(platform)));
        }
    }
    /// What was seen.
    pub fn points(&self) -> &[CoveragePoint] {
        &self.points
    }
}

impl CoveragePoint {
    fn of(instructions: u64, all: &CoverageResult) -> Self {
        let for_99 = |d: Option<&DimensionResult>, technique: &str| {
            let shares = d.and_then(|d| d.entries.get(technique));
            shares.and_then(|s| s.get(&99)).copied().unwrap_or(0)
        };
        let (guest, host, both) = (Some(&all.guest), all.host.as_ref(), all.both.as_ref());
        Self {
            instructions,
            pages: all.guest.pages,
            guest_ranges_99: for_99(guest, "ranges"),
            host_ranges_99: for_99(host, "ranges"),
            both_ranges_99: for_99(both, "ranges"),
            guest_offsets_99: for_99(guest, "offsets"),
            both_offsets_99: for_99(both, "offsets"),
        }
    }
}

/// Of one dimension. Meanings: [`DIMENSION_FIELDS`].
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "documented in DIMENSION_FIELDS, which a test compares with this")]
pub struct DimensionResult {
    pub pages: u64,
    pub runs: u64,
    pub longest_pages: u64,
    pub anchor_distance_pages: u64,
    pub entries: BTreeMap<&'static str, BTreeMap<u8, u64>>,
}

/// Name, unit and meaning of each field of [`CoverageResult`], in its order.
pub static COVERAGE_FIELDS: &[(&str, &str, &str)] = &[
    ("processes", "count", "address spaces with memory of a program"),
    ("guest", "", "gVA to gPA, of all programs; on bare metal all that there is"),
    ("host", "", "gPA to hPA, of all memory that the host has behind the guest"),
    ("both", "", "gVA to hPA: what hardware for virtual machines can use"),
    ("over_time", "", "with --contiguity-every: what it was at moments of the run"),
];

/// Name, unit and meaning of each field of [`CoveragePoint`], in its order.
pub static POINT_FIELDS: &[(&str, &str, &str)] = &[
    ("instructions", "count", "the moment: instructions since the stream began, set-up included"),
    ("pages", "4 KiB pages", "what programs have mapped"),
    ("guest_ranges_99", "count", "ranges that cover 99 % of it, from gVA to gPA"),
    ("host_ranges_99", "count", "of what the host has behind the guest, from gPA to hPA"),
    ("both_ranges_99", "count", "of what programs have mapped, from gVA to hPA"),
    ("guest_offsets_99", "count", "offsets that cover 99 % of it, from gVA to gPA"),
    ("both_offsets_99", "count", "from gVA to hPA"),
];

/// Name, unit and meaning of each field of [`DimensionResult`], in its order.
pub static DIMENSION_FIELDS: &[(&str, &str, &str)] = &[
    ("pages", "4 KiB pages", "the footprint"),
    ("runs", "count", "maximal runs of pages with consecutive frames and equal permissions"),
    ("longest_pages", "4 KiB pages", "the longest run"),
    (
        "anchor_distance_pages",
        "4 KiB pages",
        "distance of anchors with the fewest entries, of the largest process",
    ),
    (
        "entries",
        "count",
        "by technique, entries that cover 80, 90, 99 and 100 % of the footprint: pages of 4k, up to 2m \
         and up to 1g where alignment allows them, coalesced (colt-4, colt-8), clustered, anchors, \
         ranges, offsets",
    ),
];

/// The end of the addresses that are a program's, as Linux has it.
fn user_end(mode: &Mode) -> u64 {
    match mode.address_bits() {
        32 => 3 << 30,
        bits => 1 << (bits - 1),
    }
}

/// Runs of leaves that come in order.
#[derive(Default)]
struct Joined {
    set: RunSet,
    open: Option<MappedRun>,
}

impl Joined {
    fn add(&mut self, new: MappedRun) {
        if let Some(open) = &mut self.open
            && (open.end(), open.offset(), open.tag) == (new.from, new.offset(), new.tag)
        {
            open.pages += new.pages;
            return;
        }
        self.close();
        self.open = Some(new);
    }

    fn close(&mut self) {
        self.set.extend(self.open.take());
    }

    fn done(mut self) -> RunSet {
        self.close();
        self.set
    }
}

fn tag(p: Permissions) -> u16 {
    u16::from(p.write) | u16::from(p.user) << 1 | u16::from(p.execute) << 2
}

/// The runs of the program whose tables have this root: pages of its half of the addresses to guest
/// frames. Tags are permissions.
pub fn guest_runs(world: &World, root: Gpa) -> RunSet {
    let mut joined = Joined::default();
    let range = 0..user_end(world.mode);
    each_leaf(&world.guest, world.mode, root, &range, &mut |gva, leaf| {
        joined.add(MappedRun {
            from: gva >> 12,
            to: leaf.frame.page_number(),
            pages: leaf.size.base_pages(),
            tag: tag(leaf.permissions),
        });
    });
    joined.done()
}

/// The runs of host memory: guest frames to host frames, as far as the host has pages.
pub fn host_runs(host: &HostMemory) -> RunSet {
    let mut joined = Joined::default();
    host.each_page(&mut |gpa, hpa, bytes| {
        let (from, to) = (gpa.page_number(), hpa.page_number());
        joined.add(MappedRun { from, to, pages: bytes >> 12, tag: 0 });
    });
    joined.done()
}

/// The roots of different programs. Roots whose entries of the programs' half are equal are one
/// program's, as with page-table isolation.
fn programs(world: &World) -> Vec<Gpa> {
    let mut seen: Vec<Vec<u64>> = Vec::new();
    let mode = world.mode;
    let of_program = |root: &Gpa| -> Vec<u64> {
        let span = mode.span(mode.levels).bytes();
        let addresses = (0..mode.entries(mode.levels)).map(|i| i * span);
        let entries = addresses.take_while(|a| *a < user_end(mode)).map(|a| {
            let at = mode.entry_at(*root, a, mode.levels);
            Entry(world.guest.read(at, mode.entry_bytes).unwrap_or(0))
        });
        entries.map(|e| if e.is_present() { e.target::<Gpa>().value() | 1 } else { 0 }).collect()
    };
    let known = world.known_roots.iter().map(Gpa::new).filter(|root| world.guest.contains(*root));
    let mut is_new = |root: &Gpa| {
        let program = of_program(root);
        let place = seen.binary_search(&program).err();
        if let Some(place) = place {
            seen.insert(place, program);
        }
        place.is_some()
    };
    known.filter(|root| is_new(root)).collect()
}

impl CoverageResult {
    /// Of the tables as they are now.
    pub fn of(platform: &Platform) -> Self {
        let world = &platform.cpu.world;
        let programs = programs(world).into_iter().map(|root| guest_runs(world, root));
        let programs: Vec<RunSet> = programs.filter(|runs| !runs.is_empty()).collect();
        let host = platform.host.as_ref().map(host_runs);
        let both = host.as_ref().map(|host| {
            let both: Vec<RunSet> = programs.iter().map(|p| compose(p, host)).collect();
            DimensionResult::of(&both)
        });
        Self {
            processes: programs.len() as u64,
            guest: DimensionResult::of(&programs),
            host: host.map(|host| DimensionResult::of(&[host])),
            both,
            over_time: Vec::new(),
        }
    }
}

impl DimensionResult {
    /// Of several address spaces: no run or entry is in two of them.
    pub fn of(spaces: &[RunSet]) -> Self {
        let mut pieces: Vec<(&'static str, Pieces)> = Vec::new();
        let mut largest = (0, 0);
        for space in spaces {
            let survey = Survey::of(space);
            if survey.footprint > largest.0 {
                largest = (survey.footprint, survey.distance);
            }
            for (name, of_space) in survey.techniques {
                let known = pieces.iter().position(|p| p.0 == name).unwrap_or(pieces.len());
                if known == pieces.len() {
                    pieces.push((name, Pieces::default()));
                }
                let all = &mut pieces[known].1;
                of_space.iter().for_each(|(size, count)| all.add(size, count));
            }
        }
        let shares = |p: &Pieces| SHARES.into_iter().zip(p.shares()).collect();
        Self {
            pages: spaces.iter().map(RunSet::pages).sum(),
            runs: spaces.iter().map(|s| s.len() as u64).sum(),
            longest_pages: spaces.iter().flat_map(RunSet::iter).map(|r| r.pages).max().unwrap_or(0),
            anchor_distance_pages: largest.1,
            entries: pieces.iter().map(|(name, p)| (*name, shares(p))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_documented_in_order() {
        let dimension = DimensionResult::of(&[]);
        let both = (Some(dimension.clone()), Some(dimension.clone()));
        let point = CoveragePoint::default();
        let result = CoverageResult {
            host: both.0,
            both: both.1,
            over_time: vec![point],
            ..CoverageResult::default()
        };
        let keys = |value: serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let sorted = |fields: &[(&str, &str, &str)]| {
            let mut names: Vec<String> = fields.iter().map(|f| f.0.to_owned()).collect();
            names.sort();
            names
        };
        let mut of_result = keys(serde_json::to_value(&result).unwrap());
        let mut of_dimension = keys(serde_json::to_value(&dimension).unwrap());
        of_result.sort();
        of_dimension.sort();
        assert_eq!(of_result, sorted(COVERAGE_FIELDS));
        assert_eq!(of_dimension, sorted(DIMENSION_FIELDS));
        let mut of_point = keys(serde_json::to_value(point).unwrap());
        of_point.sort();
        assert_eq!(of_point, sorted(POINT_FIELDS));
    }
}
