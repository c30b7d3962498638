//! Options of clustered TLBs.

use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};
use nestwalk_hw::line::LINE_PAGES;
use nestwalk_hw::{Profile, Shape};
use nestwalk_types::PageSize;

const WALKED: [(&str, bool); 2] = [("both", true), ("cluster", false)];

/// What may be set.
pub static OPTIONS: OptionTable<Clustered> = OptionTable::new(&[
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
pub struct Clustered {
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
    /// What the TLBs of a processor are made by.
    pub fn shape(self, profile: &Profile) -> Shape {
        let base =
            |p: &&nestwalk_hw::profile::TlbProfile| p.page_sizes().any(|s| s == PageSize::SIZE_4K);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::options::SchemeOptions;

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
