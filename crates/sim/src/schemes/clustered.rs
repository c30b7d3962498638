//! `clustered`: nested paging with a second-level TLB of which some ways hold clusters (Pham et al.,
//! HPCA 2014): up to eight aligned base pages whose frames lie in eight aligned frames, in any order.
//!
//! `native-clustered` is the same on bare metal. Walks, faults and invalidations are those of `nested`
//! and `native`.

use super::{Build, Definition};
use crate::coalescing::machine;
use crate::engine::AnyMachine;
use crate::options::{OptionRow, OptionTable, one_of, whole, word_of};
use crate::scheme::MachineError;
use crate::vmm::options::VmmKind;
use nestwalk_hw::line::LINE_PAGES;
use nestwalk_hw::{Profile, Shape};
use nestwalk_types::PageSize;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "clustered",
    summary: "nested, with second-level TLB entries of up to 8 pages in 8 frames, in any order",
    virtualized: true,
    flushes_by_itself: false,
    primary_region: false,
    own_l1_sets: false,
    sampled: false,
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The catalogue's entry for bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-clustered",
    summary: "bare metal, with second-level TLB entries of up to 8 pages in 8 frames, in any order",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

const WALKED: [(&str, bool); 2] = [("both", true), ("cluster", false)];

static OPTIONS: OptionTable<Clustered> = OptionTable::new(&[
    OptionRow {
        name: "ways",
        values: "N",
        meaning: "ways of the second-level TLB that hold clusters (a quarter of them)",
        set: |c, value| whole(value, 1, 1 << 16).map(|n| c.ways = Some(n as u32)),
        get: |c| c.ways.map_or_else(String::new, |n| n.to_string()),
    },
    OptionRow {
        name: "least",
        values: "1..8",
        meaning: "fewest pages of a cluster; fewer go to the conventional ways (2)",
        set: |c, value| whole(value, 1, LINE_PAGES as u64).map(|n| c.least = n as u32),
        get: |c| c.least.to_string(),
    },
    OptionRow {
        name: "walked",
        values: "both|cluster",
        meaning: "the page that was walked goes to the conventional ways, too, or to its cluster alone \
                  (both)",
        set: |c, value| one_of(value, &WALKED).map(|both| c.both = both),
        get: |c| word_of(&c.both, &WALKED),
    },
]);

/// How it is set up; no ways: a quarter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Clustered {
    ways: Option<u32>,
    least: u32,
    both: bool,
}

impl Default for Clustered {
    fn default() -> Self {
        Self { ways: None, least: 2, both: true }
    }
}

impl Clustered {
    fn shape(self, profile: &Profile) -> Shape {
        let base = |p: &&nestwalk_hw::profile::TlbProfile| {
            p.page_sizes().any(|s| s == PageSize::SIZE_4K)
        };
        let all = profile.l2_tlb.iter().find(base).map_or(0, |p| p.ways);
        let cluster_ways = self.ways.unwrap_or_else(|| (all / 4).max(1));
        Shape {
            shift: 0,
            buffer: 0,
            longest: LINE_PAGES as u32,
            second_level: self.both,
            cluster_ways,
            cluster_least: self.least,
        }
    }
}

/// The shape without options.
pub fn default_shape(profile: &Profile) -> Shape {
    Clustered::default().shape(profile)
}

fn build(request: Build) -> Result<Box<dyn AnyMachine>, MachineError> {
    let shape = request.options(&OPTIONS)?.shape(&request.profile);
    machine(request, shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::SchemeOptions;

    #[test]
    fn names_are_read_back_as_they_are_written() {
        for text in ["", "ways=4", "least=3", "ways=1/least=8/walked=cluster"] {
            assert_eq!(OPTIONS.normalize(text).unwrap(), text);
        }
        assert_eq!(OPTIONS.normalize("least=2/walked=both").unwrap(), "");
        for (text, word) in [
            ("ways=0", "1 to"),
            ("least=9", "1 to 8"),
            ("walked=no", "both, cluster"),
            ("fast", "`fast`"),
            ("a=1", "`a`"),
        ] {
            assert!(OPTIONS.normalize(text).unwrap_err().contains(word));
        }
    }
}
