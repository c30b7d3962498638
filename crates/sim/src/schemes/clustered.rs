//! `clustered`: nested paging with a second-level TLB of which some ways hold clusters (Pham et al.,
//! HPCA 2014): up to eight aligned base pages whose frames lie in eight aligned frames, in any order.
//!
//! `native-clustered` is the same on bare metal. Walks, faults and invalidations are those of `nested`
//! and `native`.

use super::colt::{one_of, whole};
use super::{Build, Definition};
use crate::coalescing::machine;
use crate::engine::AnyMachine;
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
    vmm: VmmKind::Nested,
    keys: KEYS,
    variant,
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

const KEYS: &[(&str, &str, &str)] = &[
    ("ways", "N", "ways of the second-level TLB that hold clusters (a quarter of them)"),
    ("least", "1..8", "fewest pages of a cluster; fewer go to the conventional ways (2)"),
    (
        "walked",
        "both|cluster",
        "the page that was walked goes to the conventional ways, too, or to its cluster alone (both)",
    ),
];

/// How it is set up; no ways: a quarter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Clustered {
    ways: Option<u32>,
    least: u32,
    both: bool,
}

impl Clustered {
    fn parse(text: &str) -> Result<Self, String> {
        let known = || KEYS.iter().map(|k| k.0).collect::<Vec<_>>().join(", ");
        let mut clustered = Self { ways: None, least: 2, both: true };
        for part in text.split('/').filter(|p| !p.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is no `name=value`; there are: {}", known()))?;
            let done = match name {
                "ways" => whole(value, 1, 1 << 16).map(|n| clustered.ways = Some(n)),
                "least" => whole(value, 1, LINE_PAGES as u32).map(|n| clustered.least = n),
                "walked" => {
                    let words = [("both", true), ("cluster", false)];
                    one_of(value, &words).map(|both| clustered.both = both)
                }
                _ => return Err(format!("`{name}` cannot be set; there are: {}", known())),
            };
            done.map_err(|what| format!("{name}={value}: {what}"))?;
        }
        Ok(clustered)
    }

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

fn variant(text: &str) -> Result<String, String> {
    let Clustered { ways, least, both } = Clustered::parse(text)?;
    let ways = ways.map(|n| format!("ways={n}"));
    let least = (least != 2).then(|| format!("least={least}"));
    let walked = (!both).then(|| "walked=cluster".to_owned());
    Ok(ways.into_iter().chain(least).chain(walked).collect::<Vec<_>>().join("/"))
}

fn build(request: Build) -> Result<Box<dyn AnyMachine>, MachineError> {
    let wrong = |reason| MachineError::Variant { machine: request.name.clone(), reason };
    let shape = Clustered::parse(&request.variant).map_err(wrong)?.shape(&request.profile);
    machine(request, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_are_written() {
        for text in ["", "ways=4", "least=3", "ways=1/least=8/walked=cluster"] {
            assert_eq!(variant(text).unwrap(), text);
        }
        assert_eq!(variant("least=2/walked=both").unwrap(), "");
        for (text, word) in [
            ("ways=0", "1 to"),
            ("least=9", "1 to 8"),
            ("walked=no", "both, cluster"),
            ("fast", "`fast`"),
            ("a=1", "`a`"),
        ] {
            assert!(variant(text).unwrap_err().contains(word));
        }
    }
}
