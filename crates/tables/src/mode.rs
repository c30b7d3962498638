//! Paging modes as data: one description, so that one walker serves them all. Those of x86 and of
//! IBM are here.

use crate::modes::{ARM, RISCV};
use nestwalk_types::{Address, PageSize};

/// Level of a page table: 1 holds the entries of base pages, `Mode::levels` is the root.
pub type Level = u8;

/// Most levels any mode has.
pub const MAX_LEVELS: usize = 5;

/// Who defines a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Intel and AMD.
    X86,
    /// IBM.
    S390,
    /// RISC-V.
    RiscV,
    /// AArch64.
    Arm,
}

/// Which of the two dimensions can be in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Both.
    Any,
    /// Programs' addresses alone: a guest's tables, or a host's own.
    First,
    /// A guest's physical addresses alone. A host beside such tables has its own in this mode.
    Second(&'static Mode),
}

/// A paging mode (SDM vol. 3A, chapter "Paging"; APM vol. 2, "Page Translation and Protection").
#[derive(Debug, PartialEq, Eq)]
pub struct Mode {
    /// Name on the command line and in results.
    pub name: &'static str,
    /// Who defines it.
    pub architecture: Architecture,
    /// Which dimensions can have it.
    pub stage: Stage,
    /// Number of levels.
    pub levels: Level,
    /// Bytes per entry, 4 or 8.
    pub entry_bytes: u8,
    /// `shifts[l]` is the lowest address bit that indexes level `l`; index 0 is unused.
    shifts: [u8; MAX_LEVELS + 1],
    /// `bits[l]` address bits index level `l`.
    bits: [u8; MAX_LEVELS + 1],
    /// Those bits of an index, all set.
    masks: [u64; MAX_LEVELS + 1],
    /// All translated bits of an address.
    address_mask: u64,
    /// Bit `l` set: an entry of level `l` may map a page.
    leaf_levels: u8,
    /// The root's entries are read into registers when CR3 is loaded (PAE), so that a walk makes no
    /// reference to it.
    pub root_in_registers: bool,
}

/// So many bits, all set, by level.
const fn masks(bits: [u8; MAX_LEVELS + 1]) -> [u64; MAX_LEVELS + 1] {
    let mut masks = [0; MAX_LEVELS + 1];
    let mut level = 0;
    while level < masks.len() {
        masks[level] = (1 << bits[level]) - 1;
        level += 1;
    }
    masks
}

/// 4-level paging: 48-bit addresses; also 4-level nested tables.
pub static LONG4: Mode = Mode {
    name: "4-level",
    architecture: Architecture::X86,
    stage: Stage::Any,
    levels: 4,
    entry_bytes: 8,
    shifts: [0, 12, 21, 30, 39, 48],
    bits: [0, 9, 9, 9, 9, 0],
    masks: masks([0, 9, 9, 9, 9, 0]),
    address_mask: u64::MAX >> 16,
    leaf_levels: 0b1110,
    root_in_registers: false,
};

/// 5-level paging: 57-bit addresses; also 5-level nested tables.
pub static LONG5: Mode = Mode {
    name: "5-level",
    architecture: Architecture::X86,
    stage: Stage::Any,
    levels: 5,
    entry_bytes: 8,
    shifts: [0, 12, 21, 30, 39, 48],
    bits: [0, 9, 9, 9, 9, 9],
    masks: masks([0, 9, 9, 9, 9, 9]),
    address_mask: u64::MAX >> 7,
    leaf_levels: 0b1110,
    root_in_registers: false,
};

/// PAE paging: 32-bit addresses, 8-byte entries, four page-directory pointers in registers.
pub static PAE: Mode = Mode {
    name: "pae",
    architecture: Architecture::X86,
    stage: Stage::Any,
    levels: 3,
    entry_bytes: 8,
    shifts: [0, 12, 21, 30, 32, 0],
    bits: [0, 9, 9, 2, 0, 0],
    masks: masks([0, 9, 9, 2, 0, 0]),
    address_mask: u64::MAX >> 32,
    leaf_levels: 0b0110,
    root_in_registers: true,
};

/// 32-bit paging: 32-bit addresses, two levels of 4-byte entries, 4 MiB pages.
pub static LEGACY32: Mode = Mode {
    name: "2-level",
    architecture: Architecture::X86,
    stage: Stage::Any,
    levels: 2,
    entry_bytes: 4,
    shifts: [0, 12, 22, 32, 0, 0],
    bits: [0, 10, 10, 0, 0, 0],
    masks: masks([0, 10, 10, 0, 0, 0]),
    address_mask: u64::MAX >> 32,
    leaf_levels: 0b0110,
    root_in_registers: false,
};

/// Host tables of IBM's interpretive execution: a segment table with an entry for each MiB of the
/// guest, and page tables of 256 entries (System/370 Extended Architecture, "Dynamic Address
/// Translation"; Gum, IBM Journal of Research and Development 27(6), 1983). Entries have 8 bytes,
/// as z/Architecture's, since 4 cannot hold today's addresses. The segment table is as long as the
/// guest is large, and contiguous: its index takes up to 24 bits, 16 TiB.
pub static SIE: Mode = Mode {
    name: "sie",
    architecture: Architecture::S390,
    stage: Stage::Second(&LONG4),
    levels: 2,
    entry_bytes: 8,
    shifts: [0, 12, 20, 44, 0, 0],
    bits: [0, 8, 24, 0, 0, 0],
    masks: masks([0, 8, 24, 0, 0, 0]),
    address_mask: u64::MAX >> 20,
    leaf_levels: 0b0010,
    root_in_registers: false,
};

/// Every mode of x86, for the command line and for tests.
pub static MODES: [&Mode; 4] = [&LONG4, &LONG5, &PAE, &LEGACY32];

impl Mode {
    /// A mode of 8-byte entries in tables of one page: of `1 << shift` bytes, and the root longer where
    /// that leaves bits of the address over. `leaves`: bit `l` set where level `l` may map a page.
    pub(crate) const fn uniform(
        name: &'static str,
        (architecture, stage): (Architecture, Stage),
        (shift, levels, address_bits): (u8, Level, u8),
        leaves: u8,
    ) -> Self {
        let (mut shifts, mut bits) = ([0; MAX_LEVELS + 1], [0; MAX_LEVELS + 1]);
        let mut level = 1;
        while level <= levels as usize {
            bits[level] = shift - 3;
            shifts[level] = shift + (level as u8 - 1) * bits[level];
            level += 1;
        }
        bits[levels as usize] = address_bits - shifts[levels as usize];
        Self {
            name,
            architecture,
            stage,
            levels,
            entry_bytes: 8,
            shifts,
            bits,
            masks: masks(bits),
            address_mask: u64::MAX >> (64 - address_bits),
            leaf_levels: leaves,
            root_in_registers: false,
        }
    }
    /// The mode of that name, of any architecture.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::all().find(|m| m.name == name)
    }
    /// Every mode that has a name on the command line.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        MODES.into_iter().chain(RISCV).chain(ARM)
    }
    /// The mode of a host's own tables, which has nested tables in this one.
    pub const fn own(&'static self) -> &'static Self {
        match self.stage {
            Stage::Second(own) => own,
            Stage::Any | Stage::First => self,
        }
    }
    /// Bytes of the table of `level`, at least a page of 4 KiB.
    pub const fn table_bytes(&self, level: Level) -> u64 {
        let bytes = self.entries(level) * self.entry_bytes as u64;
        if bytes < 4096 { 4096 } else { bytes }
    }
    /// Frames of 4 KiB that the root takes, as a power of two: tables that are concatenated count.
    pub const fn root_order(&self) -> u32 {
        (self.table_bytes(self.levels) >> 12).trailing_zeros()
    }
    /// Bits of an address that are translated, the offset included.
    pub const fn address_bits(&self) -> u32 {
        self.shifts[self.levels as usize] as u32 + self.bits[self.levels as usize] as u32
    }
    /// Bytes that one entry of `level` covers, as a size.
    #[inline]
    pub const fn span(&self, level: Level) -> PageSize {
        PageSize::from_shift(self.shifts[level as usize])
    }
    /// Base-2 logarithm of the bytes that one entry of `level` covers.
    #[inline]
    pub const fn lowest_bit(&self, level: Level) -> u32 {
        self.shifts[level as usize] as u32
    }
    /// Whether an entry of `level` may map a page.
    #[inline]
    pub const fn may_be_leaf(&self, level: Level) -> bool {
        self.leaf_levels >> level & 1 == 1
    }
    /// The level whose entries map pages of `size`, if there is one.
    pub fn leaf_level(&self, size: PageSize) -> Option<Level> {
        (1..=self.levels).find(|&l| self.may_be_leaf(l) && self.span(l) == size)
    }
    /// Page sizes that can be mapped, smallest first.
    pub fn page_sizes(&self) -> impl Iterator<Item = PageSize> {
        (1..=self.levels).filter(|&l| self.may_be_leaf(l)).map(|l| self.span(l))
    }
    /// Index of `address` in its table of `level`.
    #[inline]
    pub const fn index(&self, address: u64, level: Level) -> u64 {
        address >> self.shifts[level as usize] & self.masks[level as usize]
    }
    /// Entries in a table of `level`.
    #[inline]
    pub const fn entries(&self, level: Level) -> u64 {
        1 << self.bits[level as usize]
    }
    /// Address of the entry for `address` in the table of `level` at `table`.
    #[inline]
    pub fn entry_at<O: Address>(&self, table: O, address: u64, level: Level) -> O {
        table.offset_by(self.index(address, level) * u64::from(self.entry_bytes))
    }
    /// The bits of `address` above what an entry of `level` covers: what a walk cache that skips to
    /// the table below is tagged with.
    #[inline]
    pub const fn prefix(&self, address: u64, level: Level) -> u64 {
        (address & self.address_mask()) >> self.shifts[level as usize]
    }
    /// All translated address bits.
    #[inline]
    pub const fn address_mask(&self) -> u64 {
        self.address_mask
    }
    /// References of a walk that finds nothing cached and a leaf at `leaf`.
    pub const fn walk_references(&self, leaf: Level) -> u32 {
        self.levels as u32 - leaf as u32 + 1 - self.root_in_registers as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modes_are_the_manuals() {
        assert_eq!(MODES.map(Mode::address_bits), [48, 57, 32, 32]);
        for m in MODES.into_iter().chain([&SIE]) {
            assert_eq!(m.address_mask(), u64::MAX >> (64 - m.address_bits()));
        }
        assert_eq!(
            LEGACY32.page_sizes().collect::<Vec<_>>(),
            [PageSize::SIZE_4K, PageSize::SIZE_4M]
        );
        assert_eq!(PAE.leaf_level(PageSize::SIZE_2M), Some(2));
        assert_eq!(PAE.leaf_level(PageSize::SIZE_1G), None);
        assert_eq!(LONG5.leaf_level(PageSize::SIZE_1G), Some(3));
        assert_eq!(MODES.map(|m| m.walk_references(1)), [4, 5, 2, 2]);
        // A table is one 4 KiB page, but for PAE's four-entry root.
        for m in MODES {
            for l in 1..=m.levels {
                let bytes = m.entries(l) * u64::from(m.entry_bytes);
                assert!(bytes == 4096 || (l == 3 && m.name == "pae" && bytes == 32));
            }
        }
    }

    #[test]
    fn index_takes_the_right_bits() {
        let a = 0x0000_7fff_ffff_f000;
        assert_eq!((1..=4).map(|l| LONG4.index(a, l)).collect::<Vec<_>>(), [511, 511, 511, 255]);
        assert_eq!(LEGACY32.index(0xffc0_1000, 2), 1023);
        assert_eq!(LEGACY32.index(0xffc0_1000, 1), 1);
    }
}
