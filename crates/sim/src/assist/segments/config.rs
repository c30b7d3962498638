//! What can be set of machines with segments, as their names spell it: `vmm-direct/bad=16`.

use crate::assist::coalescing::TlbKind;
use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};
use nestwalk_hw::FilterGeometry;

/// Where guest-virtual addresses are checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// With every access, beside the first-level TLB, which is not used on a hit (ISCA 2013).
    L1,
    /// After a miss of the first-level TLB, beside the second level; the result goes to the first
    /// (MICRO 2014).
    L2,
}

/// How a machine with segments is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentConfig {
    /// Where guest-virtual addresses are checked.
    pub check: Check,
    /// Size of each escape filter.
    pub filter: FilterGeometry,
    /// Decides the hash functions.
    pub filter_seed: u64,
    /// See [`crate::hardware::walk::segments::Walker::whole_pages`].
    pub whole_pages: bool,
    /// The VMM segment is there from the beginning.
    pub at_start: bool,
    /// Pages per simulated millisecond that the VMM moves until there is one; 0 if it moves none.
    pub compact: u64,
    /// Faulty frames at random places of the VMM segment.
    pub bad: u64,
    /// Decides the places.
    pub bad_seed: u64,
    /// Numbers of faulty frames of the host.
    pub bad_at: Vec<u64>,
    /// Pages that may escape from the VMM segment beside the bad ones, before it is cut.
    pub escapes: usize,
    /// The cores' TLBs.
    pub tlb: TlbKind,
}

impl Default for SegmentConfig {
    fn default() -> Self {
        Self {
            check: Check::L2,
            filter: FilterGeometry::default(),
            filter_seed: 1,
            whole_pages: true,
            at_start: true,
            compact: 0,
            bad: 0,
            bad_seed: 1,
            bad_at: Vec::new(),
            escapes: 16,
            tlb: TlbKind::Plain,
        }
    }
}

const CHECKS: [(&str, Check); 2] = [("l1", Check::L1), ("l2", Check::L2)];
const ENTRY_SIZES: [(&str, bool); 2] = [("page", true), ("4k", false)];
const STARTS: [(&str, bool); 2] = [("segment", true), ("paged", false)];

type Row = OptionRow<SegmentConfig>;

const CHECK: Row = Row {
    name: "check",
    values: "l1|l2",
    meaning: "guest addresses are checked beside the first or second-level TLB",
    set: |c, value| one_of(value, &CHECKS).map(|check| c.check = check),
    get: |c| word_of(&c.check, &CHECKS),
};
const FILTER: Row = Row {
    name: "filter",
    values: "BITSxHASHES",
    meaning: "size of each escape filter (256x4)",
    set: |c, value| filter(value).map(|filter| c.filter = filter),
    get: |c| format!("{}x{}", c.filter.bits, c.filter.hashes),
};
const FILTER_SEED: Row = Row {
    name: "filter-seed",
    values: "N",
    meaning: "decides the filters' hash functions",
    set: |c, value| whole(value, 0, u64::MAX).map(|seed| c.filter_seed = seed),
    get: |c| c.filter_seed.to_string(),
};
const ENTRIES: Row = Row {
    name: "entries",
    values: "page|4k",
    meaning: "TLB entries are as large as the walked page, or 4 KiB",
    set: |c, value| one_of(value, &ENTRY_SIZES).map(|whole| c.whole_pages = whole),
    get: |c| word_of(&c.whole_pages, &ENTRY_SIZES),
};
const START: Row = Row {
    name: "start",
    values: "segment|paged",
    meaning: "the VMM segment is there from the beginning, or not",
    set: |c, value| one_of(value, &STARTS).map(|there| c.at_start = there),
    get: |c| word_of(&c.at_start, &STARTS),
};
const COMPACT: Row = Row {
    name: "compact",
    values: "PAGES",
    meaning: "with start=paged: pages per millisecond that the VMM moves until there is a segment",
    set: |c, value| whole(value, 0, 1 << 32).map(|pages| c.compact = pages),
    get: |c| c.compact.to_string(),
};
const BAD: Row = Row {
    name: "bad",
    values: "N",
    meaning: "faulty frames at random places of the VMM segment",
    set: |c, value| whole(value, 0, 1 << 24).map(|frames| c.bad = frames),
    get: |c| c.bad.to_string(),
};
const BAD_SEED: Row = Row {
    name: "bad-seed",
    values: "N",
    meaning: "decides the places of bad=N",
    set: |c, value| whole(value, 0, u64::MAX).map(|seed| c.bad_seed = seed),
    get: |c| c.bad_seed.to_string(),
};
const BAD_AT: Row = Row {
    name: "bad-at",
    values: "FRAME+FRAME",
    meaning: "faulty frames of the host by number (hPA / 4096)",
    set: |c, value| frames(value).map(|frames| c.bad_at = frames),
    get: |c| c.bad_at.iter().map(|f| format!("{f:#x}")).collect::<Vec<_>>().join("+"),
};
const ESCAPES: Row = Row {
    name: "escapes",
    values: "N",
    meaning: "pages that may escape beside the bad ones before the segment is cut",
    set: |c, value| whole(value, 0, 1 << 24).map(|pages| c.escapes = pages as usize),
    get: |c| c.escapes.to_string(),
};

const TLB: Row = Row {
    name: "tlb",
    values: "plain|colt|clustered",
    meaning: "TLBs with a page in each entry, or those of the schemes of these names (plain)",
    set: |c, value| one_of(value, &TlbKind::NAMES).map(|tlb| c.tlb = tlb),
    get: |c| word_of(&c.tlb, &TlbKind::NAMES),
};

const fn table(rows: &'static [Row]) -> OptionTable<SegmentConfig> {
    OptionTable { check: together, ..OptionTable::new(rows) }
}

/// Of bare metal with a segment.
pub static DS: OptionTable<SegmentConfig> = table(&[CHECK, FILTER, FILTER_SEED]);
/// Of Guest Direct.
pub static GUEST: OptionTable<SegmentConfig> = table(&[FILTER, FILTER_SEED, ENTRIES, TLB]);
/// Of VMM Direct.
pub static VMM: OptionTable<SegmentConfig> =
    table(&[FILTER, FILTER_SEED, ENTRIES, START, COMPACT, BAD, BAD_SEED, BAD_AT, ESCAPES, TLB]);
/// Of Dual Direct.
pub static DUAL: OptionTable<SegmentConfig> = table(&[
    CHECK,
    FILTER,
    FILTER_SEED,
    ENTRIES,
    START,
    COMPACT,
    BAD,
    BAD_SEED,
    BAD_AT,
    ESCAPES,
    TLB,
]);

fn together(c: &SegmentConfig) -> Result<(), String> {
    if c.compact > 0 && c.at_start {
        return Err(format!("compact={} goes with start=paged", c.compact));
    }
    if c.compact > 0 && c.bad > 0 {
        return Err(format!("bad={} goes with start=segment", c.bad));
    }
    Ok(())
}

fn frames(value: &str) -> Result<Vec<u64>, String> {
    let frame = |text| whole(text, 0, u64::MAX);
    let frames = value.split('+').map(frame).collect::<Result<Vec<u64>, _>>();
    let wrong = "not numbers of frames with `+` between them, as in 0x1000+0x1001";
    let mut frames = frames.map_err(|_| wrong)?;
    frames.sort_unstable();
    if frames.windows(2).any(|w| w[0] == w[1]) {
        return Err("names a frame twice".into());
    }
    Ok(frames)
}

fn filter(value: &str) -> Result<FilterGeometry, String> {
    let parts = value.split_once('x').and_then(|(b, h)| Some((b.parse().ok()?, h.parse().ok()?)));
    let (bits, hashes) = parts.ok_or("not BITSxHASHES, as in 256x4")?;
    let geometry = FilterGeometry { bits, hashes };
    geometry.check().map_err(|e| e.to_string())?;
    Ok(geometry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn names_are_read_back_as_they_are_written() {
        let all = "check=l1/filter=512x8/filter-seed=9/entries=4k/start=paged/bad=3/bad-seed=7/\
                   bad-at=0x1000+0x1001/escapes=2/tlb=colt";
        let config = DUAL.parse(all).unwrap();
        assert_eq!(DUAL.spell(&config), all);
        assert_eq!((config.bad, config.escapes, config.bad_at.len()), (3, 2, 2));
        let compacts = "start=paged/compact=300";
        assert_eq!(VMM.normalize(compacts).unwrap(), compacts);
        assert_eq!(VMM.parse(compacts).unwrap().compact, 300);
        let named: Vec<&str> = all.split('/').filter_map(|p| p.split('=').next()).collect();
        let names = DUAL.rows.iter().map(|row| row.name);
        assert_eq!(named, names.filter(|name| *name != "compact").collect::<Vec<_>>());
        assert_eq!(DS.normalize("check=l2/filter=256x4").unwrap(), "");
        for table in [&DS, &GUEST, &VMM, &DUAL] {
            assert_eq!(table.parse("").unwrap(), SegmentConfig::default());
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (table, text, words) in [
            (&DS, "fast", ["`fast`", "check=l1|l2"]),
            (&DS, "bad=3", ["no option `bad`", "filter="]),
            (&GUEST, "check=l1", ["no option `check`", "entries="]),
            (&DUAL, "check=l3", ["check=l3", "l1, l2"]),
            (&DUAL, "filter=0x4", ["filter=0x4", "neither may be 0"]),
            (&DUAL, "filter=256", ["filter=256", "256x4"]),
            (&DUAL, "filter=100x4", ["power of two", "256 and 4"]),
            (&VMM, "compact=5", ["compact=5", "start=paged"]),
            (&VMM, "bad=-1", ["bad=-1", "whole number"]),
            (&VMM, "bad-at=5+5", ["bad-at=5+5", "twice"]),
            (&VMM, "bad-at=5,6", ["bad-at", "`+`"]),
        ] {
            let e = table.parse(text).unwrap_err();
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
