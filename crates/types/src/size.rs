//! Page sizes as values: the size of a page is read from a table, never fixed by a type.

use std::fmt;

/// Size of a page or of an aligned block: a power of two from 4 KiB.
///
/// Held as its base-2 logarithm, so a 2 MiB page is `PageSize::SIZE_2M` and `shift()` is 21.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u8);

impl PageSize {
    /// 4 KiB, the base page.
    pub const SIZE_4K: Self = Self(12);
    /// 16 KiB: no leaf of x86 tables; four base pages that a TLB entry holds together.
    pub const SIZE_16K: Self = Self(14);
    /// 2 MiB, a level-2 leaf of 4- and 5-level and PAE paging.
    pub const SIZE_2M: Self = Self(21);
    /// 4 MiB, a level-2 leaf of 32-bit paging (PSE).
    pub const SIZE_4M: Self = Self(22);
    /// 1 GiB, a level-3 leaf.
    pub const SIZE_1G: Self = Self(30);

    /// The size of `1 << shift` bytes; `shift` is 12..=63.
    #[inline]
    pub const fn from_shift(shift: u8) -> Self {
        assert!(shift >= 12 && shift < 64, "a page has 2^12 bytes at least");
        Self(shift)
    }
    /// Base-2 logarithm of the size in bytes.
    #[inline]
    pub const fn shift(self) -> u32 {
        self.0 as u32
    }
    /// Bytes in a page.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }
    /// The bits of an address that are the offset in the page.
    #[inline]
    pub const fn mask(self) -> u64 {
        self.bytes() - 1
    }
    /// Base (4 KiB) pages in a page.
    #[inline]
    pub const fn base_pages(self) -> u64 {
        self.bytes() >> 12
    }
    /// Buddy order of a block of this size: 0 for 4 KiB, 9 for 2 MiB, 18 for 1 GiB.
    #[inline]
    pub const fn order(self) -> u32 {
        self.shift() - 12
    }
    /// The short name used in machine names: `4k`, `2m`, `4m`, `1g`.
    pub fn short(self) -> String {
        match self.shift() {
            s @ 12..20 => format!("{}k", 1u64 << (s - 10)),
            s @ 20..30 => format!("{}m", 1u64 << (s - 20)),
            s => format!("{}g", 1u64 << (s - 30)),
        }
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}
impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_orders() {
        let all = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_4M, PageSize::SIZE_1G];
        assert_eq!(all.map(|s| s.short()), ["4k", "2m", "4m", "1g"]);
        assert_eq!(all.map(|s| s.order()), [0, 9, 10, 18]);
        assert_eq!(PageSize::SIZE_1G.base_pages(), 262_144);
    }
}
