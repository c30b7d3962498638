//! What can be set of machines with segments, as their names spell it: `vmm-direct/bad=16`.

use nestwalk_hw::FilterGeometry;
use std::fmt;

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
    /// See [`crate::walk::segments::Walker::whole_pages`].
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
        }
    }
}

type Key = (&'static str, &'static str, &'static str);

const CHECK: Key =
    ("check", "l1|l2", "guest addresses are checked beside the first or second-level TLB");
const FILTER: Key = ("filter", "BITSxHASHES", "size of each escape filter (256x4)");
const FILTER_SEED: Key = ("filter-seed", "N", "decides the filters' hash functions");
const ENTRIES: Key =
    ("entries", "page|4k", "TLB entries are as large as the walked page, or 4 KiB");
const START: Key =
    ("start", "segment|paged", "the VMM segment is there from the beginning, or not");
const COMPACT: Key = (
    "compact",
    "PAGES",
    "with start=paged: pages per millisecond that the VMM moves until there is a segment",
);
const BAD: Key = ("bad", "N", "faulty frames at random places of the VMM segment");
const BAD_SEED: Key = ("bad-seed", "N", "decides the places of bad=N");
const BAD_AT: Key = ("bad-at", "FRAME+FRAME", "faulty frames of the host by number (hPA / 4096)");
const ESCAPES: Key =
    ("escapes", "N", "pages that may escape beside the bad ones before the segment is cut");

/// Keys of bare metal with a segment.
pub static DS: &[Key] = &[CHECK, FILTER, FILTER_SEED];
/// Keys of Guest Direct.
pub static GUEST: &[Key] = &[FILTER, FILTER_SEED, ENTRIES];
/// Keys of VMM Direct.
pub static VMM: &[Key] =
    &[FILTER, FILTER_SEED, ENTRIES, START, COMPACT, BAD, BAD_SEED, BAD_AT, ESCAPES];
/// Keys of Dual Direct.
pub static DUAL: &[Key] =
    &[CHECK, FILTER, FILTER_SEED, ENTRIES, START, COMPACT, BAD, BAD_SEED, BAD_AT, ESCAPES];

/// The keys that a scheme has.
pub fn keys_of(scheme: &str) -> &'static [Key] {
    match scheme {
        "ds" => DS,
        "guest-direct" => GUEST,
        "vmm-direct" => VMM,
        _ => DUAL,
    }
}

/// A whole number, decimal or hexadecimal with `0x`.
fn whole(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl SegmentConfig {
    /// Reads `name=value` parts with `/` between them; what is not named is the default.
    ///
    /// # Errors
    /// What is wrong, and what there is.
    pub fn parse(scheme: &str, text: &str) -> Result<Self, String> {
        let keys = keys_of(scheme);
        let known =
            || keys.iter().map(|k| format!("{}={}", k.0, k.1)).collect::<Vec<_>>().join(", ");
        let mut config = Self::default();
        for part in text.split('/').filter(|p| !p.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is no `name=value`; there are: {}", known()))?;
            if !keys.iter().any(|k| k.0 == name) {
                return Err(format!("{scheme} has no `{name}`; there are: {}", known()));
            }
            config.set(name, value).map_err(|what| format!("{scheme}: {name}={value}: {what}"))?;
        }
        if config.compact > 0 && config.at_start {
            return Err(format!("{scheme}: compact={} goes with start=paged", config.compact));
        }
        if config.compact > 0 && config.bad > 0 {
            return Err(format!("{scheme}: bad={} goes with start=segment", config.bad));
        }
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |most: u64| {
            let n = whole(value).filter(|n| *n <= most);
            n.ok_or_else(|| format!("not a whole number from 0 to {most}"))
        };
        let one_of = |a: &str, b: &str| match value {
            v if v == a => Ok(true),
            v if v == b => Ok(false),
            _ => Err(format!("neither {a} nor {b}")),
        };
        match name {
            "check" => self.check = if one_of("l1", "l2")? { Check::L1 } else { Check::L2 },
            "filter" => self.filter = filter(value)?,
            "filter-seed" => self.filter_seed = number(u64::MAX)?,
            "entries" => self.whole_pages = one_of("page", "4k")?,
            "start" => self.at_start = one_of("segment", "paged")?,
            "compact" => self.compact = number(1 << 32)?,
            "bad" => self.bad = number(1 << 24)?,
            "bad-seed" => self.bad_seed = number(u64::MAX)?,
            "bad-at" => {
                let frames = value.split('+').map(whole).collect::<Option<Vec<u64>>>();
                let mut frames = frames
                    .ok_or("not numbers of frames with `+` between them, as in 0x1000+0x1001")?;
                frames.sort_unstable();
                if frames.windows(2).any(|w| w[0] == w[1]) {
                    return Err("names a frame twice".into());
                }
                self.bad_at = frames;
            }
            _ => self.escapes = number(1 << 24)? as usize,
        }
        Ok(())
    }
}

fn filter(value: &str) -> Result<FilterGeometry, String> {
    let parts = value.split_once('x').and_then(|(b, h)| Some((b.parse().ok()?, h.parse().ok()?)));
    let (bits, hashes) = parts.ok_or("not BITSxHASHES, as in 256x4")?;
    let geometry = FilterGeometry { bits, hashes };
    geometry.check().map_err(|e| e.to_string())?;
    Ok(geometry)
}

/// What differs from the default, as [`SegmentConfig::parse`] reads it.
impl fmt::Display for SegmentConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = Self::default();
        let mut parts = Vec::new();
        let mut part = |differs: bool, text: String| {
            if differs {
                parts.push(text);
            }
        };
        part(self.check != d.check, "check=l1".into());
        let FilterGeometry { bits, hashes } = self.filter;
        part(self.filter != d.filter, format!("filter={bits}x{hashes}"));
        part(self.filter_seed != d.filter_seed, format!("filter-seed={}", self.filter_seed));
        part(self.whole_pages != d.whole_pages, "entries=4k".into());
        part(self.at_start != d.at_start, "start=paged".into());
        part(self.compact != d.compact, format!("compact={}", self.compact));
        part(self.bad != d.bad, format!("bad={}", self.bad));
        part(self.bad_seed != d.bad_seed, format!("bad-seed={}", self.bad_seed));
        let frames: Vec<String> = self.bad_at.iter().map(|f| format!("{f:#x}")).collect();
        part(!frames.is_empty(), format!("bad-at={}", frames.join("+")));
        part(self.escapes != d.escapes, format!("escapes={}", self.escapes));
        f.write_str(&parts.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_are_written() {
        let all = "check=l1/filter=512x8/filter-seed=9/entries=4k/start=paged/bad=3/bad-seed=7/\
                   bad-at=0x1000+0x1001/escapes=2";
        let config = SegmentConfig::parse("dual-direct", all).unwrap();
        assert_eq!(config.to_string(), all);
        let compacts = "start=paged/compact=300";
        let config2 = SegmentConfig::parse("vmm-direct", compacts).unwrap();
        assert_eq!((config2.to_string().as_str(), config2.compact), (compacts, 300));
        let named: Vec<&str> = all.split('/').filter_map(|p| p.split('=').next()).collect();
        assert_eq!(named, DUAL.iter().map(|k| k.0).filter(|k| *k != "compact").collect::<Vec<_>>());
        assert_eq!((config.bad, config.escapes, config.bad_at.len()), (3, 2, 2));
        assert_eq!(SegmentConfig::parse("ds", "check=l2/filter=256x4").unwrap().to_string(), "");
        for scheme in ["ds", "guest-direct", "vmm-direct", "dual-direct"] {
            assert_eq!(SegmentConfig::parse(scheme, "").unwrap(), SegmentConfig::default());
            assert!(keys_of(scheme).iter().all(|k| DUAL.contains(k)));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (scheme, text, words) in [
            ("ds", "fast", ["`fast`", "check=l1|l2"]),
            ("ds", "bad=3", ["ds has no `bad`", "filter="]),
            ("guest-direct", "check=l1", ["no `check`", "entries="]),
            ("dual-direct", "check=l3", ["check=l3", "neither l1 nor l2"]),
            ("dual-direct", "filter=0x4", ["filter=0x4", "neither may be 0"]),
            ("dual-direct", "filter=256", ["filter=256", "256x4"]),
            ("dual-direct", "filter=100x4", ["power of two", "256 and 4"]),
            ("vmm-direct", "compact=5", ["compact=5", "start=paged"]),
            ("vmm-direct", "bad=-1", ["bad=-1", "whole number"]),
            ("vmm-direct", "bad-at=5+5", ["bad-at=5+5", "twice"]),
            ("vmm-direct", "bad-at=5,6", ["bad-at", "`+`"]),
        ] {
            let e = SegmentConfig::parse(scheme, text).unwrap_err();
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
