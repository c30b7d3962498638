//! Where a program's memory lies: the address space of an x86-64 Linux process.
//!
//! ```text
//! 0x5555_5555_8000  .data and .bss of a position-independent executable, address-space layout
//!                   randomisation off (as under gdb or `setarch -R`)
//! 0x5555_5577_9000  heap (brk), upwards; behind .bss if that is larger
//!        ...
//! 0x7fff_f7c0_0000  anonymous mmaps, downwards, below the C library
//! 0x7fff_ffff_f000  top of the stack
//! ```
//!
//! Mappings of 2 MiB and more are aligned to 2 MiB, as Linux 6.7 to 6.11 do for transparent huge
//! pages (6.12 does it only if the length is a multiple of 2 MiB, too: "mm, mmap: limit THP
//! alignment of anonymous mappings to PMD-aligned sizes"). Between two mappings one page at least
//! stays free, so that they do not become one.

use nestwalk_types::{Control, Gva, ProcessId, Protection};

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;
const DATA: u64 = 0x5555_5555_8000;
const HEAP: u64 = 0x5555_5577_9000;
/// Where mmap begins, downwards.
pub(crate) const MMAP_TOP: u64 = 0x7fff_f7c0_0000;
const STACK_TOP: u64 = 0x7fff_ffff_f000;
const STACK_BYTES: u64 = 4 * PAGE;
/// glibc's header of an allocation: the size before the data, data aligned to 16 bytes.
const MALLOC_HEADER: u64 = 16;

/// `bytes` rounded up to whole 4 KiB pages.
pub(crate) const fn pages_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE)
}

/// An array in the program's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Address of the first byte of data.
    pub base: u64,
    /// Bytes of data.
    pub bytes: u64,
}

impl Region {
    /// Address of element `index` of an array of elements of `size` bytes.
    #[inline(always)]
    pub(crate) const fn at(&self, index: u64, size: u64) -> u64 {
        debug_assert!(index < self.bytes / size, "an index lies beyond its array");
        self.base + index * size
    }
}

/// A range of whole pages that the program maps for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub start: u64,
    pub bytes: u64,
}

impl Mapping {
    /// The control that maps it for a process.
    pub(crate) const fn control(self, process: ProcessId) -> Control {
        Control::Map {
            process,
            start: Gva::new(self.start),
            bytes: self.bytes,
            protection: Protection::READ_WRITE,
        }
    }
}

/// The mappings of process 0, in the order in which the program makes and initialises them.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    mappings: Vec<Mapping>,
    mmap_top: u64,
    brk: u64,
    /// Everything that is allocated lies in one mapping.
    region: bool,
}

impl AddressSpace {
    pub(crate) const fn new() -> Self {
        Self::with_region(false)
    }

    /// With a region, everything but static variables and the stack is allocated from one mapping: the
    /// program asked for a primary region for its allocator (Basu et al., ISCA 2013), which a direct
    /// segment can then hold.
    pub(crate) const fn with_region(region: bool) -> Self {
        Self { mappings: Vec::new(), mmap_top: MMAP_TOP, brk: HEAP, region }
    }

    fn add(&mut self, start: u64, bytes: u64) {
        self.mappings.push(Mapping { start, bytes });
    }

    /// Static variables of `bytes` bytes. May be called once, before [`Self::heap`].
    pub(crate) fn data(&mut self, bytes: u64) -> Region {
        let len = pages_up(bytes);
        self.add(DATA, len);
        self.brk = self.brk.max(DATA + len + PAGE);
        Region { base: DATA, bytes }
    }

    /// The heap below brk, as many small allocations one behind the other. May be called once.
    pub(crate) fn heap(&mut self, bytes: u64) -> Region {
        if self.region {
            return self.malloc(bytes);
        }
        let start = self.brk;
        let len = pages_up(bytes + MALLOC_HEADER);
        self.add(start, len);
        self.brk = start + len + PAGE;
        Region { base: start + MALLOC_HEADER, bytes }
    }

    /// Anonymous memory from mmap.
    pub(crate) fn mmap(&mut self, bytes: u64) -> Region {
        let len = pages_up(bytes);
        if self.region {
            return self.in_region(len, bytes);
        }
        let align = if len >= HUGE { HUGE } else { PAGE };
        let start = (self.mmap_top - len) & !(align - 1);
        self.mmap_top = start - PAGE;
        self.add(start, len);
        Region { base: start, bytes }
    }

    /// Pages of the region, which grows downwards. It is the first mapping made by [`Self::mmap`], and
    /// with it the only one.
    fn in_region(&mut self, len: u64, bytes: u64) -> Region {
        let end = self.mmap_top;
        let start = end - len;
        self.mmap_top = start;
        match self.mappings.iter_mut().find(|m| m.start == end) {
            Some(all) => *all = Mapping { start, bytes: all.bytes + len },
            None => self.add(start, len),
        }
        Region { base: start, bytes }
    }

    /// A large malloc: an mmap of its own, data behind glibc's header.
    pub(crate) fn malloc(&mut self, bytes: u64) -> Region {
        let region = self.mmap(bytes + MALLOC_HEADER);
        Region { base: region.base + MALLOC_HEADER, bytes }
    }

    /// The stack, 16 KiB, as a region whose end is the top.
    pub(crate) fn stack(&mut self) -> Region {
        let start = STACK_TOP - STACK_BYTES;
        self.add(start, STACK_BYTES);
        Region { base: start, bytes: STACK_BYTES }
    }

    /// Below everything mapped so far: where the next mmap would end.
    pub(crate) const fn free_top(&self) -> u64 {
        self.mmap_top
    }
    /// All mappings in order.
    pub(crate) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_keep_apart_and_large_ones_are_aligned() {
        let mut s = AddressSpace::new();
        let d = s.data(10 << 20);
        let h = s.heap(100);
        let a = s.malloc(3 << 20);
        let b = s.malloc(5000);
        let c = s.mmap(1 << 40);
        let k = s.stack();
        assert_eq!(a.base % HUGE, MALLOC_HEADER);
        assert_eq!(c.base % HUGE, 0);
        assert_eq!(s.mappings()[3].bytes, 8192);
        let mut all = s.mappings().to_vec();
        all.sort_by_key(|m| m.start);
        for pair in all.windows(2) {
            assert!(pair[0].start + pair[0].bytes + PAGE <= pair[1].start);
        }
        for r in [d, h, a, b, c, k] {
            let holds = |m: &Mapping| m.start <= r.base && r.base + r.bytes <= m.start + m.bytes;
            assert!(s.mappings().iter().any(holds));
        }
        assert!(all.iter().all(|m| m.start + m.bytes <= 1 << 47));
    }

    #[test]
    fn a_region_holds_all_that_is_allocated() {
        let mut s = AddressSpace::with_region(true);
        let d = s.data(5000);
        let all = [s.malloc(3 << 20), s.heap(100), s.mmap(1 << 30), s.malloc(5000)];
        assert_eq!(s.mappings().len(), 2);
        let [data, region] = s.mappings() else { panic!("{:?}", s.mappings()) };
        assert_eq!((data.start, region.start + region.bytes), (d.base, MMAP_TOP));
        let pages = [3 << 20, 100, 1 << 30, 5000].map(|b: u64| pages_up(b + 1)).iter().sum::<u64>();
        assert_eq!(region.bytes, pages - PAGE);
        let mut end = MMAP_TOP;
        for r in all {
            assert!(region.start <= r.base && r.base + r.bytes <= end);
            end = r.base;
        }
        assert_eq!(s.free_top(), region.start);
    }
}
