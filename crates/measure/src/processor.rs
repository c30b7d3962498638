//! What the processor says of itself: beside what is measured, and not believed.

use serde::Serialize;
use std::path::Path;

/// The processor.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Processor {
    /// Its name.
    pub name: String,
    /// Who made it, in CPUID's twelve letters.
    pub vendor: String,
    /// Family and model.
    pub family_model: (u32, u32),
    /// Whether a hypervisor is below.
    pub virtual_machine: bool,
    /// CPUID's descriptions of TLBs.
    pub told: Vec<Told>,
    /// Why there are none, or what is strange with them.
    pub note: String,
}

/// What CPUID says of a TLB.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Told {
    /// 1 or 2.
    pub level: u32,
    /// `data`, `instructions` or `both`.
    pub of: &'static str,
    /// Page sizes.
    pub pages: Vec<&'static str>,
    /// Entries in all.
    pub entries: u32,
    /// Entries per set; as many as `entries` if fully associative.
    pub ways: u32,
}

/// EAX to EDX of a leaf.
type Registers = [u32; 4];

impl Processor {
    /// The one that runs this.
    pub fn this() -> Self {
        let mut processor = Self::from_leaves(&|leaf, sub| cpuid(leaf, sub));
        let text = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
        let model = text.lines().find(|line| line.starts_with("model name"));
        if let Some((_, name)) = model.and_then(|line| line.split_once(": ")) {
            processor.name = name.trim().into();
        }
        processor
    }

    /// From CPUID's leaves and their parts.
    pub fn from_leaves(leaf: &dyn Fn(u32, u32) -> Registers) -> Self {
        let [highest, b, c, d] = leaf(0, 0);
        let letters = [b, d, c].map(u32::to_le_bytes).concat();
        let vendor = String::from_utf8_lossy(&letters).trim_matches('\0').to_owned();
        let [signature, _, features, _] = leaf(1, 0);
        let family = (signature >> 8 & 15) + (signature >> 20 & 0xff);
        let model = signature >> 4 & 15 | (signature >> 16 & 15) << 4;
        let (told, note) = if vendor == "AuthenticAMD" || vendor == "HygonGenuine" {
            (amd(leaf), "of page sizes that share an array, CPUID gives the ways of each")
        } else if highest < 0x18 {
            (Vec::new(), "it has no leaf 18h")
        } else {
            (intel(leaf), "")
        };
        let note = match (told.is_empty(), note) {
            (true, "") => "leaf 18h is empty: it, or the hypervisor, does not tell",
            (_, note) => note,
        };
        Self {
            name: vendor.clone(),
            vendor,
            family_model: (family, model),
            virtual_machine: features >> 31 == 1,
            told,
            note: note.into(),
        }
    }

    /// The nearest profile that is built in.
    pub fn nearest_profile(&self) -> &'static str {
        let (family, model) = self.family_model;
        match (self.vendor.as_str(), family, model) {
            ("AuthenticAMD" | "HygonGenuine", 0x1a.., _) => "zen5",
            ("AuthenticAMD" | "HygonGenuine", 0x19, 0x10..=0x1f | 0x60..=0xaf) => "zen4",
            ("AuthenticAMD" | "HygonGenuine", 0x19, _) => "zen3",
            ("AuthenticAMD" | "HygonGenuine", ..) => "zen2",
            (_, 6, 0x2a | 0x2d | 0x3a | 0x3e) => "sandy-bridge-e5-2430",
            (_, 6, 0x4e | 0x5e | 0x8e | 0x9e) => "kaby-lake-i5-7600",
            (_, 6, 0x55) => "cascade-lake-6252",
            _ => "golden-cove",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpuid(leaf: u32, sub: u32) -> Registers {
    let r = std::arch::x86_64::__cpuid_count(leaf, sub);
    [r.eax, r.ebx, r.ecx, r.edx]
}

#[cfg(not(target_arch = "x86_64"))]
fn cpuid(_: u32, _: u32) -> Registers {
    [0; 4]
}

/// Leaf 18h (Intel SDM vol. 2A, CPUID: deterministic address translation parameters).
fn intel(leaf: &dyn Fn(u32, u32) -> Registers) -> Vec<Told> {
    let most = leaf(0x18, 0)[0].min(32);
    let one = |sub: u32| {
        let [_, b, sets, d] = leaf(0x18, sub);
        let of = match d & 31 {
            1 | 4 | 5 => "data",
            2 => "instructions",
            3 => "both",
            _ => return None,
        };
        let names = [(1, "4k"), (2, "2m"), (4, "4m"), (8, "1g")];
        let pages = names.iter().filter(|(bit, _)| b & bit != 0).map(|(_, name)| *name).collect();
        let entries = sets.saturating_mul(b >> 16);
        let ways = if d >> 8 & 1 == 1 { entries } else { b >> 16 };
        Some(Told { level: d >> 5 & 7, of, pages, entries, ways })
    };
    (0..=most).filter_map(one).collect()
}

/// Leaves 80000005h and 80000006h (AMD64 Architecture Programmer's Manual vol. 3, appendix E.4).
fn amd(leaf: &dyn Fn(u32, u32) -> Registers) -> Vec<Told> {
    let [large, small, ..] = leaf(0x8000_0005, 0);
    let [large2, small2, ..] = leaf(0x8000_0006, 0);
    let mut told = Vec::new();
    let mut add = |level, of, pages, entries: u32, ways: u32| {
        if entries > 0 && ways > 0 {
            told.push(Told { level, of, pages: vec![pages], entries, ways });
        }
    };
    let first = |ways: u32, entries: u32| if ways == 0xff { entries } else { ways };
    for (word, pages) in [(small, "4k"), (large, "2m")] {
        let (i, d) = (word & 0xff, word >> 16 & 0xff);
        add(1, "instructions", pages, i, first(word >> 8 & 0xff, i));
        add(1, "data", pages, d, first(word >> 24, d));
    }
    // Codes of associativity of the second level.
    let ways = |code: u32, entries: u32| match code {
        1 | 2 | 4 => code,
        3 | 5 => code + u32::from(code == 5),
        6 => 8,
        8 => 16,
        10 => 32,
        11 => 48,
        12 => 64,
        13 => 96,
        14 => 128,
        15 => entries,
        _ => 0,
    };
    for (word, pages) in [(small2, "4k"), (large2, "2m")] {
        let (i, d) = (word & 0xfff, word >> 16 & 0xfff);
        add(2, "instructions", pages, i, ways(word >> 12 & 15, i));
        add(2, "data", pages, d, ways(word >> 28, d));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_18h_of_a_sapphire_rapids() {
        // The figures of the profile `golden-cove`, laid out as the manual has them.
        let leaf = |leaf, sub| match (leaf, sub) {
            (0, _) => [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            (1, _) => [0x0008_06f8, 0, 0, 0],
            (0x18, 0) => [8, 0, 0, 0],
            (0x18, 1) => [0, 0x0008_0001, 0x20, 0x4022],
            (0x18, 3) => [0, 0x0004_0001, 0x10, 0x4024],
            (0x18, 5) => [0, 0x0008_0008, 1, 0x4124],
            (0x18, 7) => [0, 0x0008_0007, 0x80, 0x4043],
            _ => [0; 4],
        };
        let p = Processor::from_leaves(&leaf);
        assert_eq!((p.vendor.as_str(), p.family_model), ("GenuineIntel", (6, 0x8f)));
        let short = |t: &Told| (t.level, t.of, t.pages.join(" "), t.entries, t.ways);
        let told: Vec<_> = p.told.iter().map(short).collect();
        assert_eq!(
            told,
            [
                (1, "instructions", "4k".into(), 256, 8),
                (1, "data", "4k".into(), 64, 4),
                (1, "data", "1g".into(), 8, 8),
                (2, "both", "4k 2m 4m".into(), 1024, 8),
            ]
        );
        assert_eq!(p.nearest_profile(), "golden-cove");
    }

    #[test]
    fn every_processor_has_a_profile_that_is_built_in() {
        for vendor in ["GenuineIntel", "AuthenticAMD", "HygonGenuine", "CentaurHauls"] {
            for (family, model) in (0..0x20).flat_map(|f| (0..=0xff).map(move |m| (f, m))) {
                let vendor = vendor.to_owned();
                let p = Processor { vendor, family_model: (family, model), ..Processor::default() };
                let name = p.nearest_profile();
                assert!(nestwalk_hw::profile::is_built_in(name), "{name}");
            }
        }
    }
}
