//! Paging modes of RISC-V and AArch64: cold walks by count, order and address against an oracle that is
//! written from the manuals, and the referee on random lives of guests in those modes.
//!
//! The oracle knows a mode by what its manual says of it, number of levels or sizes of granule and
//! address, and shares nothing with `Mode`. RISC-V: "The RISC-V Instruction Set Manual", volume II,
//! "Virtual Address Translation Process" and "Two-Stage Address Translation". AArch64: "Arm Architecture
//! Reference Manual", pseudocode of the start level and of the address of a descriptor; how many tables
//! are concatenated, as Linux's KVM chooses (`stage2_pgtable.h`).

use crate::common;

use common::lives::Life;
use common::machines::Setup;
use common::{Script, approve, bare_profile, machine_with, run};
use nestwalk_hw::Profile;
use nestwalk_sim::compare::cold::{ColdError, Mapping, cold_walk};
use nestwalk_sim::hardware::Step;
use nestwalk_sim::schemes::SCHEMES;
use nestwalk_sim::{Dimension, MachineError};
use nestwalk_tables::{
    ARM, ARM_4K, ARM_4K_52, ARM_4K_IPA40, ARM_4K_IPA43, ARM_4K_IPA48, ARM_16K, ARM_64K,
    Architecture, Mode, RISCV, SV39, SV39X4, SV48, SV48X4, SV57, SV57X4, Stage,
};
use nestwalk_types::PageSize;

/// A mode as its manual has it.
#[derive(Clone, Copy)]
enum Manual {
    /// LEVELS, and bits that the root has more than 9.
    RiscV(u32, u32),
    /// Bits of an offset in the granule, bits of the input address, and whether it is stage 2.
    Arm(u32, u32, bool),
}

fn manual(mode: &Mode) -> Manual {
    let name = mode.name;
    if let Some(rest) = name.strip_prefix("sv") {
        let (bits, more) = rest.strip_suffix("x4").map_or((rest, 0), |bits| (bits, 2));
        let levels = match bits {
            "39" => 3,
            "48" => 4,
            "57" => 5,
            _ => panic!("{name}"),
        };
        return Manual::RiscV(levels, more);
    }
    let mut parts = name.split('-').skip(1);
    let granule = match parts.next() {
        Some("4k") => 12,
        Some("16k") => 14,
        Some("64k") => 16,
        _ => panic!("{name}"),
    };
    match parts.next() {
        None => Manual::Arm(granule, 48, false),
        Some(bits) => match bits.strip_prefix("ipa") {
            Some(bits) => Manual::Arm(granule, bits.parse().unwrap(), true),
            None => Manual::Arm(granule, bits.parse().unwrap(), false),
        },
    }
}

impl Manual {
    /// For each level from the root on: the number that this simulator gives it, and how the entry's
    /// offset in its table follows from the address: (lowest bit, bits).
    fn levels(self) -> Vec<(u8, u32, u32)> {
        match self {
            // `i = LEVELS - 1`; the entry is at `a + va.vpn[i] * PTESIZE`; then `i = i - 1`.
            Self::RiscV(levels, more) => (0..levels)
                .rev()
                .map(|i| (i as u8 + 1, 12 + 9 * i, if i == levels - 1 { 9 + more } else { 9 }))
                .collect(),
            Self::Arm(granule, bits, stage2) => {
                let stride = granule - 3;
                // Level of the first look-up, from -1 to 3.
                let needs = if stage2 { bits - 4 } else { bits };
                let start = 4 - (needs as i32 - 4) / stride as i32;
                (start..=3)
                    .map(|level| {
                        let lowest = (3 - level) as u32 * stride + granule;
                        let wide = if level == start { bits - lowest } else { stride };
                        ((4 - level) as u8, lowest, wide)
                    })
                    .collect()
            }
        }
    }
    /// Where a leaf may stand, by our number of the level.
    fn may_be_leaf(self, level: u8) -> bool {
        match self {
            Self::RiscV(..) => true,
            // AArch64.BlockDescSupported, and pages.
            Self::Arm(granule, bits, _) => match (granule, 4 - i32::from(level)) {
                (_, 3 | 2) | (12, 1) => true,
                (12, 0) | (14 | 16, 1) => bits == 52,
                _ => false,
            },
        }
    }
    /// The level whose leaf maps pages of so many bits.
    fn leaf_of(self, shift: u32) -> u8 {
        let found = self.levels().into_iter().find(|l| l.1 == shift && self.may_be_leaf(l.0));
        found.expect("a size of the mode").0
    }
    fn sizes(self) -> Vec<u32> {
        let levels = self.levels().into_iter();
        let mut sizes: Vec<u32> = levels.filter(|l| self.may_be_leaf(l.0)).map(|l| l.1).collect();
        sizes.reverse();
        sizes
    }
}

/// Reads the steps of a walk as the manual has them: each must be where the manual says, given what the
/// entries before it hold.
struct Oracle<'a> {
    steps: &'a [Step],
    at: usize,
}

const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Where the guests' roots are, of which no entry tells.
const ROOT: u64 = 16 << 20;

impl Oracle<'_> {
    fn next(&mut self, dimension: Dimension, level: u8, on_behalf: u8) -> Step {
        let step = self.steps[self.at];
        self.at += 1;
        assert_eq!((step.dimension, step.level, step.on_behalf), (dimension, level, on_behalf));
        step
    }
    /// Translates a guest-physical address by the second stage, whose root is where the first reference
    /// of all says; returns the host-physical one.
    fn second(
        &mut self,
        host: (Manual, u32),
        gpa: u64,
        on_behalf: u8,
        root: &mut Option<u64>,
    ) -> u64 {
        let leaf = host.0.leaf_of(host.1);
        let mut table = *root;
        for (level, lowest, wide) in host.0.levels() {
            let step = self.next(Dimension::Nested, level, on_behalf);
            let offset = (gpa >> lowest & ((1 << wide) - 1)) * 8;
            let first = table.unwrap_or(step.at.value().wrapping_sub(offset));
            if root.is_none() {
                // A root is aligned to its length.
                assert_eq!(first % (8 << wide), 0);
                *root = Some(first);
            }
            assert_eq!(step.at.value(), first + offset, "level {level} for {gpa:#x}");
            if level == leaf {
                let mask = (1u64 << host.1) - 1;
                return step.entry & FRAME & !mask | gpa & mask;
            }
            table = Some(step.entry & FRAME);
        }
        panic!("no leaf")
    }
    /// The whole walk; how many references it made.
    fn walk(&mut self, guest: (Manual, u32), host: Option<(Manual, u32)>, gva: u64) -> usize {
        let leaf = guest.0.leaf_of(guest.1);
        let (mut table, mut host_root) = (None::<u64>, None);
        for (level, lowest, wide) in guest.0.levels() {
            let offset = (gva >> lowest & ((1 << wide) - 1)) * 8;
            let step = match host {
                None => {
                    let step = self.next(Dimension::Guest, level, 0);
                    let first = table.unwrap_or(step.at.value().wrapping_sub(offset));
                    assert_eq!(step.at.value(), first + offset, "level {level} for {gva:#x}");
                    step
                }
                Some(host) => {
                    // The next entry tells where a walker really finds it.
                    let gpa = table.unwrap_or(ROOT);
                    let at = self.second(host, gpa, level, &mut host_root) + offset;
                    let step = self.next(Dimension::Guest, level, 0);
                    assert_eq!(step.at.value(), at, "level {level} for {gva:#x}");
                    step
                }
            };
            if level == leaf {
                let mask = (1u64 << guest.1) - 1;
                let page = step.entry & FRAME & !mask | gva & mask;
                if let Some(host) = host {
                    self.second(host, page, 0, &mut host_root);
                }
                return self.at;
            }
            table = Some(step.entry & FRAME);
        }
        panic!("no leaf")
    }
}

fn guests() -> impl Iterator<Item = &'static Mode> {
    RISCV.into_iter().chain(ARM).filter(|m| m.stage == Stage::First)
}

fn hosts(architecture: Architecture) -> impl Iterator<Item = &'static Mode> {
    let all = RISCV.into_iter().chain(ARM);
    all.filter(move |m| m.architecture == architecture && m.stage != Stage::First)
}

fn sizes(mode: &'static Mode) -> Vec<Mapping> {
    let sizes: Vec<Mapping> = mode.page_sizes().map(|size| (mode, size)).collect();
    assert_eq!(sizes.iter().map(|s| s.1.shift()).collect::<Vec<_>>(), manual(mode).sizes());
    sizes
}

/// Addresses whose indexes are all different, at both ends of the address space and within.
fn addresses(mode: &Mode) -> [u64; 4] {
    let mask = mode.address_mask();
    [0, mask, 0x7fff_f7a0_1234_5678 & mask, 0x0123_4567_89ab_cdef & mask]
}

/// Every mode, every page size of both stages, four addresses: count, order and place of each reference.
#[test]
fn cold_walks_are_the_manuals() {
    let profile = bare_profile();
    let mut walks = 0;
    for guest in guests() {
        for (mode, size) in sizes(guest) {
            let first = (manual(mode), size.shift());
            let g = manual(mode).levels().len() - usize::from(first.0.leaf_of(size.shift())) + 1;
            for gva in addresses(mode) {
                let steps = cold_walk(&profile, (mode, size), None, gva).unwrap();
                assert_eq!(Oracle { steps: &steps, at: 0 }.walk(first, None, gva), g);
                assert_eq!(steps.len(), g, "{} {size}", mode.name);
            }
            for host in hosts(mode.architecture).flat_map(sizes) {
                let second = (manual(host.0), host.1.shift());
                let h = second.0.levels().len() - usize::from(second.0.leaf_of(second.1)) + 1;
                for gva in addresses(mode) {
                    let steps = match cold_walk(&profile, (mode, size), Some(host), gva) {
                        Ok(steps) => steps,
                        Err(ColdError::Tables { .. }) => {
                            assert!(host.1 < mode.span(1));
                            continue;
                        }
                        Err(ColdError::Beyond { .. }) => {
                            assert!(size.bytes() > host.0.address_mask() / 2);
                            continue;
                        }
                        Err(e) => panic!("{e}"),
                    };
                    let what = format!("{} {size} on {} {}", mode.name, host.0.name, host.1);
                    let read = Oracle { steps: &steps, at: 0 }.walk(first, Some(second), gva);
                    assert_eq!((read, steps.len()), (g * h + g + h, g * h + g + h), "{what}");
                    walks += 1;
                }
            }
        }
    }
    assert!(walks > 1000, "{walks}");
}

/// The numbers that people know.
#[test]
fn cold_walks_have_the_lengths_that_are_known() {
    let profile = bare_profile();
    let base = |mode: &'static Mode| (mode, mode.span(1));
    let known = |name: &str| base(Mode::by_name(name).unwrap());
    for (guest, host, native, nested) in [
        ("sv39", "sv39x4", 3, 15),
        ("sv48", "sv48x4", 4, 24),
        ("sv57", "sv57x4", 5, 35),
        ("sv39", "sv57x4", 3, 23),
        ("arm-4k", "arm-4k-ipa40", 4, 19),
        ("arm-4k", "arm-4k-ipa48", 4, 24),
        ("arm-4k-39", "arm-4k-ipa40", 3, 15),
        ("arm-4k-52", "arm-4k-ipa52", 5, 29),
        ("arm-16k", "arm-16k-ipa40", 4, 14),
        ("arm-16k-47", "arm-16k-ipa48", 3, 15),
        ("arm-64k", "arm-64k-ipa40", 3, 11),
        ("arm-64k-42", "arm-64k-ipa48", 2, 11),
        ("arm-64k-52", "arm-64k-ipa48", 3, 15),
    ] {
        let one = cold_walk(&profile, known(guest), None, 0x1234_5678).unwrap();
        let two = cold_walk(&profile, known(guest), Some(known(host)), 0x1234_5678).unwrap();
        assert_eq!((one.len(), two.len()), (native, nested), "{guest} on {host}");
    }
}

/// An address or a page that does not fit is told, with what would.
#[test]
fn what_does_not_go_together_is_told() {
    let profile = bare_profile();
    let walk = |guest: Mapping, host: Option<Mapping>, gva| {
        cold_walk(&profile, guest, host, gva).unwrap_err().to_string()
    };
    let size = PageSize::from_shift;
    let told = walk((&SV39, size(12)), None, 1 << 39);
    assert!(told.contains("more bits than sv39"), "{told}");
    let told = walk((&ARM_16K, size(21)), None, 0);
    assert!(told.contains("arm-16k paging has no 2m pages; it has 16k, 32m"), "{told}");
    let told = walk((&ARM_64K, size(16)), Some((&ARM_4K_IPA48, size(12))), 0);
    assert!(told.contains("take nested pages of 64k or more"), "{told}");
    let told = walk((&SV57, size(48)), Some((&SV39X4, size(12))), 0);
    assert!(told.contains("does not lie within the 41 bits of sv39x4"), "{told}");
}

/// Modes whose tables and pages are those of modelled guests.
const MODELLED: [(&Mode, &Mode); 8] = [
    (&SV39, &SV39X4),
    (&SV48, &SV48X4),
    (&SV57, &SV57X4),
    (&SV48, &SV39X4),
    (&ARM_4K, &ARM_4K_IPA40),
    (&ARM_4K, &ARM_4K_IPA43),
    (&ARM_4K, &ARM_4K_IPA48),
    (&ARM_4K_52, &ARM_4K_IPA48),
];

/// Machines that software builds tables for: the same count, from a VMM's own tables.
#[test]
fn machines_walk_as_the_oracle_does() {
    for (guest, host) in MODELLED {
        for size in guest.page_sizes().filter(|s| *s <= PageSize::SIZE_1G) {
            let gva = 0x4000_0000;
            let mut script = Script::new(guest);
            script.map_used(gva, 0x4000_0000, size);
            script.load(gva);
            let events = script.take();
            let (first, second) = ((manual(guest), size.shift()), manual(host));
            for pages in ["4k", "2m", "1g"] {
                let shift = PageSize::from_shift(match pages {
                    "4k" => 12,
                    "2m" => 21,
                    _ => 30,
                });
                let mut m = machine_with("nested", guest, host, pages, &bare_profile(), 1);
                m.run(&events).unwrap();
                approve(m.as_ref());
                let steps = m.watch(&run(gva, false)).unwrap();
                let second = (second, shift.shift());
                let length = Oracle { steps: &steps, at: 0 }.walk(first, Some(second), gva);
                assert_eq!(length, steps.len(), "{} {size} on {} {pages}", guest.name, host.name);
            }
            let mut m = machine_with("native", guest, host, "4k", &bare_profile(), 1);
            m.run(&events).unwrap();
            let steps = m.watch(&run(gva, false)).unwrap();
            assert_eq!(Oracle { steps: &steps, at: 0 }.walk(first, None, gva), steps.len());
        }
    }
}

/// A guest with more memory than the second stage maps is refused when the machine is made.
#[test]
fn a_guest_that_nested_tables_cannot_map_is_refused() {
    let setup = |bytes| Setup {
        guest_mode: &ARM_4K,
        host_mode: &ARM_4K_IPA40,
        guest_bytes: bytes,
        ..Setup::new(bare_profile())
    };
    let nested = nestwalk_sim::schemes::by_name("nested").unwrap();
    let build = |bytes| (nested.build)(setup(bytes).build("nested", true));
    assert!(build(1 << 40).is_ok());
    let error = build((1 << 40) + 4096).map(|_| ()).unwrap_err();
    assert!(matches!(error, MachineError::Variant { .. }), "{error}");
    assert!(error.to_string().contains("arm-4k-ipa40 nested tables can map"), "{error}");
}

/// Every scheme, on lives of guests in every mode: what the referee says of x86, it says of these.
#[test]
fn the_referee_approves_of_random_lives_in_every_mode() {
    for (i, (guest, host)) in MODELLED.into_iter().enumerate() {
        for (seed, pages, host_pages) in [(1, "4k", "2m"), (2, "thp", "4k"), (3, "2m", "1g")] {
            let seed = 10 * i as u64 + seed;
            let life = Life {
                seed,
                events: 150,
                vcpus: 2,
                accesses_percent: 60,
                mode: guest,
                pages,
                pcids: seed.is_multiple_of(2),
            };
            let batches = life.live();
            let profile = Profile::load("cascade-lake-6252").unwrap();
            // `ideal` translates nothing that a referee could look at.
            for scheme in SCHEMES.iter().filter(|s| s.name != "ideal") {
                let mut m = machine_with(scheme.name, guest, host, host_pages, &profile, 2);
                for batch in &batches {
                    m.run(batch).unwrap_or_else(|e| panic!("{} {}: {e}", scheme.name, guest.name));
                }
                approve(m.as_ref());
            }
        }
    }
}
