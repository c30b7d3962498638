//! The guest kernel's own mapping of memory, of a modelled guest, whose stream does not show it.
//!
//! A kernel maps all of its memory by pages as large as the processor has them, and stores to fresh
//! pages and fresh tables through that mapping. Its shadow follows KVM's rules for any mapping: an entry
//! is as large as the host's page, unless a shadowed guest table lies in it (`mmu_need_write_protect`,
//! `mapping_level`, `disallow_lpage`). A large entry loses the permission to store when a table in it
//! becomes shadowed (`rmap_write_protect`); the next store through it is a fault that drops it
//! (`drop_large_spte`) and maps the page alone, with its neighbours in an aligned group of 8
//! (`direct_pte_prefetch`). When the last table has gone the small entries stay.
//!
//! Which entries there are is kept as a bit for each page; no tables are built. Reads through the
//! mapping are not counted: the stream does not show them.

use super::{PREFETCH, ShadowMmu};
use crate::measure::counters::ExitReason;
use crate::scheme::{MachineError, Platform};
use nestwalk_mm::HostMemory;
use nestwalk_types::{Address, Gpa, PageSize};

/// Pages of 4 KiB in one of 2 MiB, in words of a bit each.
const WORDS: usize = 512 / 64;

/// Which pages the kernel may store to through its own mapping without a fault.
#[derive(Default)]
pub(super) struct DirectMap {
    /// A bit for each guest frame.
    mapped: Vec<u64>,
    /// A bit for each 2 MiB that large entries map.
    large: Vec<u64>,
}

fn bit(words: &[u64], index: u64) -> bool {
    words.get((index >> 6) as usize).is_some_and(|w| w >> (index & 63) & 1 == 1)
}

fn set_bit(words: &mut Vec<u64>, index: u64) {
    let word = (index >> 6) as usize;
    if word >= words.len() {
        words.resize(word + 1, 0);
    }
    words[word] |= 1 << (index & 63);
}

fn clear_bit(words: &mut [u64], index: u64) {
    if let Some(word) = words.get_mut((index >> 6) as usize) {
        *word &= !(1 << (index & 63));
    }
}

impl DirectMap {
    fn has(&self, gfn: u64) -> bool {
        bit(&self.mapped, gfn)
    }

    fn add(&mut self, gfn: u64) {
        set_bit(&mut self.mapped, gfn);
    }

    /// A large entry for the 2 MiB of this frame.
    fn add_large(&mut self, gfn: u64) {
        set_bit(&mut self.large, gfn >> 9);
        let first = (gfn >> 9) as usize * WORDS;
        if first + WORDS > self.mapped.len() {
            self.mapped.resize(first + WORDS, 0);
        }
        self.mapped[first..first + WORDS].fill(u64::MAX);
    }

    /// A table of this frame becomes shadowed: a large entry over it allows no stores any more.
    pub(super) fn protect(&mut self, gfn: u64) {
        if bit(&self.large, gfn >> 9) {
            clear_bit(&mut self.large, gfn >> 9);
            let first = (gfn >> 9) as usize * WORDS;
            self.mapped[first..first + WORDS].fill(0);
        }
    }

    /// The host took the page behind this frame back; a large entry goes as a whole.
    pub(super) fn host_changed(&mut self, gfn: u64) {
        self.protect(gfn);
        clear_bit(&mut self.mapped, gfn);
    }
}

impl ShadowMmu {
    /// Makes sure that the kernel's own mapping of a whole page has shadow entries.
    ///
    /// # Errors
    /// Host memory is exhausted, or the address is no guest memory.
    pub fn map_page_for_kernel(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        let end = gpa.value() + size.bytes();
        let mut at = gpa;
        while at.value() < end {
            at = self.map_for_kernel(platform, at)?;
        }
        Ok(())
    }

    /// Makes sure that the kernel's own mapping of `gpa` has a shadow entry that allows stores. Returns
    /// the end of what is mapped.
    fn map_for_kernel(&mut self, platform: &mut Platform, gpa: Gpa) -> Result<Gpa, MachineError> {
        let gfn = gpa.page_number();
        let next = gpa.align_down(PageSize::SIZE_4K).offset_by(0x1000);
        if self.direct_map.has(gfn) {
            return Ok(next);
        }
        platform.locked_exit(ExitReason::HiddenFault);
        platform.cpu.counters.shadow_fills += 1;
        let (_, host_size) = platform.host_page(gpa)?;
        let shadowed = |mmu: &Self, gfn: u64| mmu.shadowed_in_2m.contains_key(&(gfn >> 9));
        if host_size < PageSize::SIZE_2M || shadowed(self, gfn) {
            self.map_group_for_kernel(platform, gfn, host_size);
            return Ok(next);
        }
        // As large as the host's page, if no table lies in all of it.
        let (mut first, mut pages) = (gfn >> 9 << 9, 512);
        let whole = gfn & !(host_size.base_pages() - 1);
        if !self.is_shadowed_within(whole, host_size) {
            (first, pages) = (whole, host_size.base_pages());
        }
        for at in (first..first + pages).step_by(512) {
            self.direct_map.add_large(at);
        }
        Ok(Gpa::new((first + pages) << 12))
    }

    /// A small entry, and those of its neighbours that the host has pages for.
    fn map_group_for_kernel(&mut self, platform: &mut Platform, gfn: u64, host_size: PageSize) {
        self.direct_map.add(gfn);
        let first = gfn & !(PREFETCH - 1);
        for at in (first..first + PREFETCH).filter(|at| *at != gfn) {
            // A protected table in the group is mapped read-only.
            if self.direct_map.has(at) || self.emulates(at) {
                continue;
            }
            let host: Option<&HostMemory> = platform.host.as_ref();
            let backed = host_size > PageSize::SIZE_4K
                || host.is_some_and(|h| h.look_up(Gpa::new(at << 12)).is_some());
            if !backed {
                break;
            }
            self.direct_map.add(at);
            platform.cpu.counters.shadow_prefetches += 1;
        }
    }
}
