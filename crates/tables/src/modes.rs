//! Paging modes of other architectures than x86.
//!
//! RISC-V: "The RISC-V Instruction Set Manual", volume II, chapters "Sv39", "Sv48", "Sv57" and
//! "Two-Stage Address Translation". A leaf may stand at any level. A guest's physical addresses have two
//! bits more than a host's virtual ones, and their root is four pages long, aligned to its 16 KiB.
//!
//! AArch64: "Arm Architecture Reference Manual for A-profile", chapter "The AArch64 Virtual Memory
//! System Architecture". A table has the granule's size, and so has a page. Levels are numbered the
//! other way round there: its level 3 is our level 1. Blocks stand at its levels 1 and 2 with 4 KiB, at
//! level 2 with 16 and 64 KiB; with 52-bit addresses at one more. At the level where a walk of stage 2
//! starts, up to 16 tables are concatenated, where that saves a level; with Linux's KVM always
//! (`stage2_pgtable.h`).
//!
//! Entries keep the layout of x86's in all of them, in the simulator's own memory: which bits they are
//! changes no reference. So what is a leaf says a bit, and no combination of permissions (RISC-V), and
//! accessed flags are set by the walker (RISC-V with Svadu, Arm with FEAT_HAFDBS).

use crate::mode::{Architecture, Mode, Stage};

const fn riscv(name: &'static str, stage: Stage, (levels, bits): (u8, u8)) -> Mode {
    // Every level may hold leaves.
    let leaves = (2u8 << levels) - 2;
    Mode::uniform(name, (Architecture::RiscV, stage), (12, levels, bits), leaves)
}

/// Sv39: 39-bit addresses, three levels.
pub static SV39: Mode = riscv("sv39", Stage::First, (3, 39));
/// Sv48: 48-bit addresses, four levels.
pub static SV48: Mode = riscv("sv48", Stage::First, (4, 48));
/// Sv57: 57-bit addresses, five levels.
pub static SV57: Mode = riscv("sv57", Stage::First, (5, 57));
/// Sv39x4: guest-physical addresses of 41 bits, three levels.
pub static SV39X4: Mode = riscv("sv39x4", Stage::Second(&SV39), (3, 41));
/// Sv48x4: guest-physical addresses of 50 bits, four levels.
pub static SV48X4: Mode = riscv("sv48x4", Stage::Second(&SV48), (4, 50));
/// Sv57x4: guest-physical addresses of 59 bits, five levels.
pub static SV57X4: Mode = riscv("sv57x4", Stage::Second(&SV57), (5, 59));

/// Every mode of RISC-V with 64-bit registers.
pub static RISCV: [&Mode; 6] = [&SV39, &SV48, &SV57, &SV39X4, &SV48X4, &SV57X4];

/// Blocks of 4 KiB granules: at our levels 2 and 3, with 52 bits at 4, too.
const BLOCKS_4K: u8 = 0b1110;
const BLOCKS_4K_52: u8 = 0b1_1110;
/// Blocks of 16 and 64 KiB granules: at our level 2.
const BLOCKS: u8 = 0b0110;
/// The same with 52 bits: at 3, too.
const BLOCKS_52: u8 = 0b1110;

const fn arm(name: &'static str, stage: Stage, shape: (u8, u8, u8), leaves: u8) -> Mode {
    Mode::uniform(name, (Architecture::Arm, stage), shape, leaves)
}

/// 4 KiB granule, 48 bits, from level 0 on.
pub static ARM_4K: Mode = arm("arm-4k", Stage::First, (12, 4, 48), BLOCKS_4K);
/// 4 KiB granule, 39 bits, from level 1 on.
pub static ARM_4K_39: Mode = arm("arm-4k-39", Stage::First, (12, 3, 39), BLOCKS_4K);
/// 4 KiB granule, 52 bits (FEAT_LPA2), from level -1 on, whose table has 16 entries.
pub static ARM_4K_52: Mode = arm("arm-4k-52", Stage::First, (12, 5, 52), BLOCKS_4K_52);
/// 16 KiB granule, 48 bits, from level 0 on, whose table has two entries.
pub static ARM_16K: Mode = arm("arm-16k", Stage::First, (14, 4, 48), BLOCKS);
/// 16 KiB granule, 47 bits, from level 1 on.
pub static ARM_16K_47: Mode = arm("arm-16k-47", Stage::First, (14, 3, 47), BLOCKS);
/// 16 KiB granule, 52 bits (FEAT_LPA2), from level 0 on, whose table has 32 entries.
pub static ARM_16K_52: Mode = arm("arm-16k-52", Stage::First, (14, 4, 52), BLOCKS_52);
/// 64 KiB granule, 48 bits, from level 1 on, whose table has 64 entries.
pub static ARM_64K: Mode = arm("arm-64k", Stage::First, (16, 3, 48), BLOCKS);
/// 64 KiB granule, 42 bits, from level 2 on.
pub static ARM_64K_42: Mode = arm("arm-64k-42", Stage::First, (16, 2, 42), BLOCKS);
/// 64 KiB granule, 52 bits (FEAT_LVA), from level 1 on, whose table has 1024 entries.
pub static ARM_64K_52: Mode = arm("arm-64k-52", Stage::First, (16, 3, 52), BLOCKS_52);

/// 4 KiB granule, 40 bits: two tables of level 1 side by side.
pub static ARM_4K_IPA40: Mode = arm("arm-4k-ipa40", Stage::Second(&ARM_4K), (12, 3, 40), BLOCKS_4K);
/// 4 KiB granule, 43 bits: 16 tables of level 1, as many as there can be.
pub static ARM_4K_IPA43: Mode = arm("arm-4k-ipa43", Stage::Second(&ARM_4K), (12, 3, 43), BLOCKS_4K);
/// 4 KiB granule, 48 bits, from level 0 on.
pub static ARM_4K_IPA48: Mode = arm("arm-4k-ipa48", Stage::Second(&ARM_4K), (12, 4, 48), BLOCKS_4K);
/// 4 KiB granule, 52 bits (FEAT_LPA2): 16 tables of level 0.
pub static ARM_4K_IPA52: Mode =
    arm("arm-4k-ipa52", Stage::Second(&ARM_4K), (12, 4, 52), BLOCKS_4K_52);
/// 16 KiB granule, 40 bits: 16 tables of level 2.
pub static ARM_16K_IPA40: Mode = arm("arm-16k-ipa40", Stage::Second(&ARM_16K), (14, 2, 40), BLOCKS);
/// 16 KiB granule, 48 bits: two tables of level 1.
pub static ARM_16K_IPA48: Mode = arm("arm-16k-ipa48", Stage::Second(&ARM_16K), (14, 3, 48), BLOCKS);
/// 64 KiB granule, 40 bits: a table of level 2 with 2048 entries.
pub static ARM_64K_IPA40: Mode = arm("arm-64k-ipa40", Stage::Second(&ARM_64K), (16, 2, 40), BLOCKS);
/// 64 KiB granule, 46 bits: 16 tables of level 2.
pub static ARM_64K_IPA46: Mode = arm("arm-64k-ipa46", Stage::Second(&ARM_64K), (16, 2, 46), BLOCKS);
/// 64 KiB granule, 48 bits, from level 1 on.
pub static ARM_64K_IPA48: Mode = arm("arm-64k-ipa48", Stage::Second(&ARM_64K), (16, 3, 48), BLOCKS);

/// Every mode of AArch64.
pub static ARM: [&Mode; 18] = [
    &ARM_4K,
    &ARM_4K_39,
    &ARM_4K_52,
    &ARM_16K,
    &ARM_16K_47,
    &ARM_16K_52,
    &ARM_64K,
    &ARM_64K_42,
    &ARM_64K_52,
    &ARM_4K_IPA40,
    &ARM_4K_IPA43,
    &ARM_4K_IPA48,
    &ARM_4K_IPA52,
    &ARM_16K_IPA40,
    &ARM_16K_IPA48,
    &ARM_64K_IPA40,
    &ARM_64K_IPA46,
    &ARM_64K_IPA48,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// (levels, bits at the root, bits below it) of a mode, as the manuals' tables have them.
    fn shape(mode: &Mode) -> (u8, u32, u32) {
        let root = mode.entries(mode.levels).trailing_zeros();
        (mode.levels, root, mode.entries(1).trailing_zeros())
    }

    #[test]
    fn names_are_one_mode_each_and_addresses_have_the_bits_that_they_say() {
        let names: Vec<&str> = Mode::all().map(|m| m.name).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name}");
            assert_eq!(Mode::by_name(name).map(|m| m.name), Some(*name));
        }
        for mode in RISCV.into_iter().chain(ARM) {
            assert_eq!(mode.address_mask(), u64::MAX >> (64 - mode.address_bits()));
            let digits =
                mode.name.trim_end_matches("x4").trim_start_matches(|c: char| !c.is_ascii_digit());
            let said = mode.name.rsplit(['-', 'v', 'a']).next().and_then(|d| d.parse().ok());
            if let (Some(said), true) = (said, mode.architecture == Architecture::Arm) {
                assert_eq!(mode.address_bits(), said, "{}", mode.name);
            }
            if let (Ok(own), true) =
                (digits.parse::<u32>(), mode.architecture == Architecture::RiscV)
            {
                let more = if mode.stage == Stage::First { 0 } else { 2 };
                assert_eq!(mode.address_bits(), own + more, "{}", mode.name);
            }
        }
    }

    #[test]
    fn roots_are_as_long_as_the_manuals_say() {
        assert_eq!(RISCV.map(|m| m.root_order()), [0, 0, 0, 2, 2, 2]);
        assert_eq!([&SV39X4, &SV48X4, &SV57X4].map(shape), [(3, 11, 9), (4, 11, 9), (5, 11, 9)]);
        // Stage 1 of 4, 16 and 64 KiB granules with 48 bits: 9+9+9+9, 1+11+11+11, 6+13+13.
        assert_eq!([&ARM_4K, &ARM_16K, &ARM_64K].map(shape), [(4, 9, 9), (4, 1, 11), (3, 6, 13)]);
        // Concatenated tables at the start of stage 2.
        let tables = |m: &Mode| m.entries(m.levels) / m.entries(1);
        let concatenated = [&ARM_4K_IPA40, &ARM_4K_IPA43, &ARM_4K_IPA52, &ARM_16K_IPA40];
        assert_eq!(concatenated.map(tables), [2, 16, 16, 16]);
        assert_eq!([&ARM_16K_IPA48, &ARM_64K_IPA46].map(tables), [2, 16]);
        // Linux's KVM: as many levels as stage 1 would need for four bits less.
        for mode in ARM.into_iter().filter(|m| matches!(m.stage, Stage::Second(_))) {
            let shift = mode.lowest_bit(1);
            assert_eq!(
                u32::from(mode.levels),
                (mode.address_bits() - 4 - 4) / (shift - 3),
                "{}",
                mode.name
            );
        }
    }

    #[test]
    fn pages_and_blocks_have_the_sizes_of_the_manuals() {
        let sizes = |mode: &Mode| -> Vec<u32> { mode.page_sizes().map(|s| s.shift()).collect() };
        assert_eq!(sizes(&SV39), [12, 21, 30]);
        assert_eq!(sizes(&SV48X4), [12, 21, 30, 39]);
        assert_eq!(sizes(&SV57), [12, 21, 30, 39, 48]);
        // 2 MiB and 1 GiB; 32 MiB; 512 MiB; with 52 bits 512 GiB, 64 GiB and 4 TiB.
        assert_eq!(sizes(&ARM_4K), [12, 21, 30]);
        assert_eq!(sizes(&ARM_16K), [14, 25]);
        assert_eq!(sizes(&ARM_64K), [16, 29]);
        assert_eq!(
            [&ARM_4K_52, &ARM_16K_52, &ARM_64K_52].map(sizes),
            [vec![12, 21, 30, 39], vec![14, 25, 36], vec![16, 29, 42]]
        );
    }
}
