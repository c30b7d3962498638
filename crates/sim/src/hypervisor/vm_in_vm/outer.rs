//! What L0 has of L1: nested tables from gPA1 to hPA, and L1's own record of L2's memory beside it.

use super::Options;
use crate::hypervisor::largest_leaf;
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::measure::counters::ExitReason;
use crate::scheme::vmm_options::VmmRules;
use crate::scheme::{MachineConfig, MachineError, Platform};
use nestwalk_mm::{HostMemory, PagePolicy};
use nestwalk_types::{Address, Gpa, Hpa, PageSize};
use rustc_hash::FxHashMap;

/// L0's nested tables for L1.
pub(super) struct Outer {
    pub(super) tables: NestedMmu,
    /// Of each page of L2 by its first gPA1: its first gPA2 and its size.
    homes: FxHashMap<u64, (Gpa, PageSize)>,
    /// Of each page that L1 uses for itself, by its number: the host's frame behind it.
    own: FxHashMap<u64, Hpa>,
    /// L0 had memory behind all that L1 uses before: nothing of that is counted, until the host takes
    /// some of it back.
    pub(super) lived: bool,
}

impl Outer {
    /// The gPA2 of a gPA1, and the size of L1's page; `None` if L1 uses the page for itself.
    fn home(&self, at: Gpa) -> Option<(Gpa, PageSize)> {
        let sizes = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_4M, PageSize::SIZE_1G];
        sizes.into_iter().find_map(|size| {
            let (first, found) = self.homes.get(&at.align_down(size).value())?;
            (*found == size).then(|| (first.offset_by(at.offset_in(size)), size))
        })
    }

    /// A page is used, by L1 or by hardware for it: L0 maps it if it does not yet. Returns whether that
    /// was a violation to count.
    pub(super) fn touch(&mut self, platform: &mut Platform, at: Gpa) -> Result<bool, MachineError> {
        if self.tables.maps(at) {
            return Ok(false);
        }
        if !self.lived {
            platform.cpu.counters.exit(ExitReason::OuterViolation);
            self.map(platform, at)?;
            return Ok(true);
        }
        let counters = &platform.cpu.counters;
        let before = (counters.host_faults, counters.host_pages_cleared, counters.nested_fills);
        self.map(platform, at)?;
        let counters = &mut platform.cpu.counters;
        (counters.host_faults, counters.host_pages_cleared, counters.nested_fills) = before;
        Ok(false)
    }

    fn map(&mut self, platform: &mut Platform, at: Gpa) -> Result<(), MachineError> {
        if let Some((home, size)) = self.home(at) {
            let (frame, host_size) = platform.host_page(home)?;
            let (level, size) = largest_leaf(self.tables.mode(), size.min(host_size));
            let frame = frame.offset_by(home.offset_in(host_size)).align_down(size);
            return self.tables.map_frame(platform, at, (level, frame));
        }
        let what = "page of a hypervisor in a VM";
        let no_frame = MachineError::NoTableFrame { machine: String::new(), what };
        let frame = platform.host.as_mut().and_then(HostMemory::alloc_table).ok_or(no_frame)?;
        self.own.insert(at.page_number(), frame);
        platform.cpu.counters.host_faults += 1;
        platform.cpu.counters.host_pages_cleared += 1;
        self.tables.map_frame(platform, at, (1, frame))
    }

    /// L1 has a page of L2 at a gPA1 from now on. Returns whether it is new.
    fn claim(&mut self, platform: &mut Platform, at: Gpa, (home, size): (Gpa, PageSize)) -> bool {
        if self.homes.insert(at.value(), (home, size)) == Some((home, size)) {
            return false;
        }
        let (first, pages) = (at.page_number(), size.base_pages());
        let within = |page: &u64| page.wrapping_sub(first) < pages;
        let mut tables: Vec<u64> = if pages == 1 {
            self.own.contains_key(&first).then_some(first).into_iter().collect()
        } else {
            self.own.keys().copied().filter(within).collect()
        };
        tables.sort_unstable();
        for page in &tables {
            self.forget(platform, Gpa::new(page << 12), 4096);
            if let (Some(frame), Some(host)) = (self.own.remove(page), &mut platform.host) {
                host.free_table(frame);
            }
        }
        if !tables.is_empty() {
            platform.cpu.hardware.invalidate_nested_everywhere();
        }
        true
    }

    /// L0 maps this range of gPA1 no more. The caller owes the flush.
    pub(super) fn forget(&mut self, platform: &mut Platform, at: Gpa, bytes: u64) {
        self.tables.unmap_range(platform, at, bytes);
    }

    /// Bytes of memory of the host behind L1's own tables.
    pub(super) fn own_bytes(&self) -> u64 {
        self.own.len() as u64 * 4096
    }
}

/// Both records of memory, L1's and what L0 makes of it.
pub(super) struct Levels {
    pub(super) outer: Outer,
    /// L1's record of what gPA1 are behind L2's memory.
    pub(super) l1: Option<HostMemory>,
}

impl Levels {
    pub(super) fn new(
        options: &Options,
        request: &mut MachineConfig,
    ) -> Result<Self, MachineError> {
        let l1 = request.host.as_ref().map(|host| {
            let policy = options.l1.unwrap_or_else(|| match host.largest_page() {
                PageSize::SIZE_4K => PagePolicy::Base,
                PageSize::SIZE_2M | PageSize::SIZE_4M => PagePolicy::Thp,
                size => PagePolicy::Explicit(size),
            });
            let slots: Vec<(Gpa, u64)> = host.slots().iter().map(|s| (s.gpa, s.bytes)).collect();
            let bytes = host.physical().bytes();
            HostMemory::new(bytes, request.nested_mode.own(), policy, 0.0, L1_SEED, &slots)
        });
        // Walks of L1's tables are writes, as everywhere with accessed and dirty flags.
        let rules = VmmRules { ept_ad: true, ..VmmRules::PLAIN };
        let tables = NestedMmu::new(request.nested_mode, &mut request.host, rules)?;
        let (homes, own) = (FxHashMap::default(), FxHashMap::default());
        let outer = Outer { tables, homes, own, lived: options.lived };
        Ok(Self { outer, l1: l1.transpose()? })
    }

    /// L1's software works: what it takes for the host's memory is its own.
    pub(super) fn in_l1<R>(
        &mut self,
        platform: &mut Platform,
        work: impl FnOnce(&mut Platform) -> R,
    ) -> R {
        std::mem::swap(&mut platform.host, &mut self.l1);
        let done = work(platform);
        std::mem::swap(&mut platform.host, &mut self.l1);
        done
    }

    /// The page of L2 that L1 has at a gPA2: first gPA2, first gPA1, size.
    pub(super) fn page(&self, at: Gpa) -> Option<(Gpa, Gpa, PageSize)> {
        let page = self.l1.as_ref()?.look_up(at)?;
        Some((at.align_down(page.size), Gpa::new(page.frame.value()), page.size))
    }

    /// L1 may have given L2 pages in this range: L0 learns of each that is new, since L1's kernel has
    /// cleared it.
    pub(super) fn claim(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let end = at.value().saturating_add(bytes);
        let mut gpa = at;
        while gpa.value() < end {
            let Some((first, frame, size)) = self.page(gpa) else {
                gpa = gpa.offset_by(4096);
                continue;
            };
            if self.outer.claim(platform, frame, (first, size)) {
                let mut used = frame;
                while used < frame.offset_by(size.bytes()) {
                    self.outer.touch(platform, used)?;
                    let step = self.outer.tables.mapped_size(used).unwrap_or(PageSize::SIZE_4K);
                    used = used.align_down(step).offset_by(step.bytes());
                }
            }
            gpa = first.offset_by(size.bytes());
        }
        Ok(())
    }

    /// L1 has pages behind this range of L2's memory from before.
    pub(super) fn back(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let end = at.value().saturating_add(bytes);
        let mut gpa = at;
        while gpa.value() < end {
            let (_, size) = self.in_l1(platform, |platform| platform.host_page(gpa))?;
            gpa = gpa.align_down(size).offset_by(size.bytes());
        }
        self.claim(platform, at, bytes)
    }

    /// L1 takes a page of L2 back.
    pub(super) fn discard(&mut self, first: Gpa) -> Result<(), MachineError> {
        if let Some(l1) = &mut self.l1
            && let Some(page) = l1.discard(first)?
        {
            self.outer.homes.remove(&page.frame.value());
        }
        Ok(())
    }

    /// L2 has more memory.
    pub(super) fn hot_add(&mut self, start: Gpa, bytes: u64) -> Result<(), MachineError> {
        if let Some(l1) = &mut self.l1 {
            l1.hot_add(start, bytes)?;
        }
        Ok(())
    }

    /// Pages of L1's record that became larger; what was known of their parts is forgotten.
    pub(super) fn take_promoted(&mut self) -> Vec<(Gpa, PageSize)> {
        let larger = match &mut self.l1 {
            Some(l1) if l1.has_promoted() => l1.take_promoted(),
            _ => return Vec::new(),
        };
        for (at, _) in &larger {
            if let Some((_, frame, size)) = self.page(*at) {
                for i in 0..size.base_pages() {
                    self.outer.homes.remove(&(frame.value() + (i << 12)));
                }
            }
        }
        larger
    }
}

/// Seed of L1's memory, in which no holes are.
const L1_SEED: u64 = 1;
