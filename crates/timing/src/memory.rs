//! Anonymous memory of which a process uses single pages, far apart.

use memmap2::{Advice, MmapMut, MmapOptions};
use std::io;

/// Which pages a region asks the kernel for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pages {
    /// Base pages, 4 KiB.
    Small,
    /// Transparent huge pages, 2 MiB.
    Large,
}

impl Pages {
    /// Base-2 logarithm of the size in bytes.
    pub const fn shift(self) -> u32 {
        match self {
            Self::Small => 12,
            Self::Large => 21,
        }
    }
    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
    /// The size for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "4 KiB",
            Self::Large => "2 MiB",
        }
    }
}

/// Addresses reserved at an aligned place. A page that is only read is the kernel's page of zeros, the
/// same frame for all: its data stay in the first-level cache, so a loop over such pages costs what
/// their translations cost.
pub struct Region {
    map: MmapMut,
    start: usize,
    bytes: usize,
}

impl Region {
    /// Reserves addresses. No memory is used until it is stored to.
    ///
    /// # Errors
    /// The kernel has no such addresses, or no such pages.
    pub fn reserve(bytes: u64, align: u64, pages: Pages) -> io::Result<Self> {
        let whole = bytes.checked_add(align).ok_or(io::ErrorKind::InvalidInput)?;
        let map = MmapOptions::new().len(whole as usize).no_reserve_swap().map_anon()?;
        map.advise(match pages {
            Pages::Small => Advice::NoHugePage,
            Pages::Large => Advice::HugePage,
        })?;
        let address = map.as_ptr() as u64;
        let start = (address.next_multiple_of(align.max(1)) - address) as usize;
        Ok(Self { map, start, bytes: bytes as usize })
    }

    /// The memory.
    pub fn bytes(&self) -> &[u8] {
        self.map.get(self.start..self.start + self.bytes).unwrap_or(&[])
    }
    /// The memory, to store to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.map.get_mut(self.start..self.start + self.bytes).unwrap_or(&mut [])
    }
    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.map.as_ptr() as u64 + self.start as u64
    }

    /// Takes the right to store away and gives it back, `times` times, with a store between: the kernel
    /// has to remove translations wherever the process runs.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn protect(self, times: u32) -> io::Result<Self> {
        let Self { mut map, start, bytes } = self;
        for i in 0..times {
            map = map.make_read_only()?.make_mut()?;
            if let Some(byte) = map.get_mut(start) {
                *byte = i as u8;
            }
        }
        Ok(Self { map, start, bytes })
    }
}
