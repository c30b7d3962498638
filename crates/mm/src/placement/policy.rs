//! Page-size policy of one dimension.

use crate::error::MmError;
use nestwalk_tables::Mode;
use nestwalk_types::PageSize;

/// Which page sizes a fault may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum PagePolicy {
    /// 4 KiB pages only.
    #[default]
    Base,
    /// Transparent huge pages, "always": a level-2 leaf (2 MiB; 4 MiB in 2-level paging) where the
    /// VMA covers the aligned block, no table of base pages is there already, and a block is free;
    /// otherwise 4 KiB (Linux, `mm/huge_memory.c`). Split on copy-on-write.
    Thp,
    /// As [`Self::Thp`], and a daemon collapses small pages into large ones afterwards, as Linux's
    /// khugepaged does: see [`crate::KhugepagedConfig`].
    Khugepaged,
    /// Like hugetlbfs: the largest of the mode's sizes up to this one that the VMA covers; the next
    /// smaller one, counted, if no block is free. Copy-on-write copies the whole page.
    Explicit(PageSize),
}

impl PagePolicy {
    /// The policy of that name, in any case: `4k`, `thp`, `khugepaged`, `2m`, `4m`, `1g`.
    pub fn by_name(name: &str) -> Option<Self> {
        let all = [PageSize::SIZE_2M, PageSize::SIZE_4M, PageSize::SIZE_1G];
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "4k" => Some(Self::Base),
            "thp" => Some(Self::Thp),
            "khugepaged" => Some(Self::Khugepaged),
            _ => all.into_iter().find(|s| s.short() == name).map(Self::Explicit),
        }
    }
    /// Name on the command line and in machine names.
    pub fn name(self) -> String {
        match self {
            Self::Base => "4k".into(),
            Self::Thp => "thp".into(),
            Self::Khugepaged => "khugepaged".into(),
            Self::Explicit(size) => size.short(),
        }
    }
    /// Whether large pages are given as far as there are any, and programs know nothing of them.
    pub const fn is_transparent(self) -> bool {
        matches!(self, Self::Thp | Self::Khugepaged)
    }
    /// The largest page in this mode.
    pub fn largest(self, mode: &Mode) -> PageSize {
        match self {
            Self::Base => PageSize::SIZE_4K,
            Self::Thp | Self::Khugepaged => mode.span(2),
            Self::Explicit(size) => size,
        }
    }
    /// Whether the mode has the policy's pages.
    ///
    /// # Errors
    /// It has not; the message lists those it has.
    pub fn check(self, mode: &'static Mode) -> Result<(), MmError> {
        let size = self.largest(mode);
        mode.leaf_level(size).map(|_| ()).ok_or(MmError::NoSuchSize { mode, size })
    }
    /// Bytes of the aligned block that an access outside every mapping maps: 2 MiB, or the largest
    /// page if that is more.
    pub fn implicit_block(self, mode: &Mode) -> u64 {
        self.largest(mode).bytes().max(PageSize::SIZE_2M.bytes())
    }
    /// Allowed sizes and their levels, largest first.
    pub(crate) fn sizes(self, mode: &Mode) -> Sizes {
        let (mut sizes, mut n) = ([(PageSize::SIZE_4K, 1); 3], 0);
        let largest = self.largest(mode);
        for level in (1..=mode.levels.min(3)).rev() {
            if mode.may_be_leaf(level) && mode.span(level) <= largest {
                sizes[n] = (mode.span(level), level);
                n += 1;
            }
        }
        Sizes { sizes, n }
    }
}

/// Allowed sizes and their levels, largest first; the last is always 4 KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    sizes: [(PageSize, u8); 3],
    n: usize,
}

impl Sizes {
    pub fn get(&self) -> &[(PageSize, u8)] {
        &self.sizes[..self.n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_tables::{LEGACY32, LONG4, MODES, PAE};

    #[test]
    fn names_and_sizes() {
        for name in ["4k", "thp", "khugepaged", "2m", "4m", "1g"] {
            assert_eq!(PagePolicy::by_name(name).unwrap().name(), name);
        }
        assert_eq!(PagePolicy::by_name("3m"), None);
        let sizes = |name, mode| {
            let p: PagePolicy = PagePolicy::by_name(name).unwrap();
            p.sizes(mode).get().iter().map(|s| s.0.short()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(sizes("1g", &LONG4), "1g 2m 4k");
        assert_eq!(sizes("thp", &LONG4), "2m 4k");
        assert_eq!(sizes("thp", &LEGACY32), "4m 4k");
        for mode in MODES {
            assert_eq!(sizes("4k", mode), "4k");
            assert!(PagePolicy::Thp.check(mode).is_ok());
        }
        let e = PagePolicy::Explicit(PageSize::SIZE_1G).check(&PAE).unwrap_err();
        assert_eq!(e.to_string(), "pae paging has no 1g pages; it has 4k, 2m");
        assert!(PagePolicy::Explicit(PageSize::SIZE_4M).check(&LONG4).is_err());
        assert!(PagePolicy::Explicit(PageSize::SIZE_4M).check(&LEGACY32).is_ok());
        assert_eq!(PagePolicy::Base.implicit_block(&LONG4), 2 << 20);
        assert_eq!(PagePolicy::Explicit(PageSize::SIZE_1G).implicit_block(&LONG4), 1 << 30);
    }
}
