//! A host that is short of memory: what is touched, what goes, what comes back.

use super::asynchronous::{Asynchronous, Came};
use super::device::Device;
use super::replacement::{Page, Replacement};
use super::reporting::CAPACITY;
use nestwalk_mm::HostMemory;
use nestwalk_sim::machine::Tenant;
use nestwalk_sim::measure::counters::ExitReason;
use nestwalk_sim::scheme::MachineError;
use nestwalk_types::{Address, Control, Gpa, GuestBatch, PageSize};
use rustc_hash::FxHashSet;
use serde::Serialize;

/// What a VM and its host's swap did to each other since counting began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SwapCounts {
    /// Pages of 4 KiB that the host took back.
    pub taken_back: u64,
    /// Of these, those that were written to the device: they were stored to since they were last
    /// there.
    pub written: u64,
    /// Stores of the VM's programs: what write-through would write.
    pub stores: u64,
    /// Pages of 4 KiB that came back.
    pub swapped_in: u64,
    /// How long the device took for them, one after the other, in nanoseconds.
    pub waited_ns: f64,
    /// Pages of 4 KiB in memory that the host has back since the guest reported them to be free.
    pub reported: u64,
    /// Pages of 4 KiB on the device that nobody wants any more for the same reason.
    pub dropped: u64,
    /// Pages of 4 KiB that the guest used after it had reported them to be free, and before its
    /// kernel filled them. Their contents are lost: it must be 0.
    pub lost: u64,
    /// Pages of 4 KiB that the guest's balloon has given to the host.
    pub ballooned: u64,
    /// Pages of 4 KiB that came back since the guest swapped them itself: read to be written.
    pub double_paged: u64,
    /// Times that the guest was told that a page is away, so that it could run another process.
    pub async_faults: u64,
    /// Of these, those during which another process ran.
    pub overtaken: u64,
    /// Time of waits in which another process of the VM ran, in nanoseconds.
    pub hidden_ns: f64,
    /// Time of waits in which nothing of the VM ran on its core, in nanoseconds.
    pub halted_ns: f64,
    /// Of this, the time in which no other VM ran there either.
    pub idle_ns: f64,
}

/// Pages of a request of the balloon (6.1, `VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
const BALLOON_PAGES: usize = 256;

/// What one VM has in memory and on the device.
#[derive(Default)]
struct Space {
    /// Bits of guest frames: stored to since the last write to the device.
    dirty: Vec<u64>,
    /// Bits of guest frames: the device has a copy.
    copied: Vec<u64>,
    counts: SwapCounts,
}

/// Something that is done to a VM, which is made reachable for a moment. Returns whether it has lost
/// translations.
type Act<'a> = dyn FnMut(Tenant<'_>) -> Result<bool, MachineError> + 'a;

/// Reaches a VM by its number, to do something to it.
pub(super) type Reach<'a> = dyn FnMut(u32, &mut Act<'_>) -> Result<(), MachineError> + 'a;

/// The host's memory, of which there is less than the VMs would take.
pub(super) struct Memory {
    policy: Box<dyn Replacement<MachineError>>,
    device: Device,
    /// Frames that must be free before a slice runs.
    low: u64,
    /// Frames that are free after reclaim.
    high: u64,
    spaces: Vec<Space>,
    /// Pages of 4 KiB that are on the device and not in memory.
    away: FxHashSet<Page>,
    /// Pages of 4 KiB that their guests have reported to be free and not filled since.
    given: FxHashSet<Page>,
    /// Frames that can be had for guests and tables.
    frames: u64,
    /// Who waits, and what runs meanwhile.
    pub waiting: Asynchronous,
}

fn set(bits: &mut Vec<u64>, n: u64) {
    let word = (n / 64) as usize;
    if word >= bits.len() {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (n % 64);
}

fn has(bits: &[u64], n: u64) -> bool {
    bits.get((n / 64) as usize).is_some_and(|w| w >> (n % 64) & 1 == 1)
}

fn clear(bits: &mut [u64], n: u64) {
    if let Some(word) = bits.get_mut((n / 64) as usize) {
        *word &= !(1 << (n % 64));
    }
}

impl Memory {
    /// `slice` is what a slice may touch at most, in frames.
    pub(super) fn new(
        policy: Box<dyn Replacement<MachineError>>,
        device: Device,
        (vms, frames, slice): (usize, u64, u64),
        waiting: Asynchronous,
    ) -> Self {
        Self {
            policy,
            device,
            low: slice,
            high: slice + slice.max(frames / 64),
            spaces: (0..vms).map(|_| Space::default()).collect(),
            away: FxHashSet::default(),
            given: FxHashSet::default(),
            frames,
            waiting,
        }
    }

    pub(super) fn counts(&self, vm: usize) -> SwapCounts {
        let mut counts = self.spaces[vm].counts;
        self.waiting.count(vm, &mut counts);
        counts
    }

    /// Numbers of the VM's pages that are on the device alone.
    pub(super) fn pages_away(&self, vm: usize) -> impl Iterator<Item = u64> {
        self.away.iter().filter(move |page| page.0 == vm as u32).map(|page| page.1)
    }

    /// Counting begins.
    pub(super) fn counting_begins(&mut self) {
        self.spaces.iter_mut().for_each(|space| space.counts = SwapCounts::default());
        self.waiting.counting_begins();
    }

    /// Takes pages back if fewer than enough frames are free for the next slice.
    ///
    /// # Errors
    /// Nothing is left that could be taken back; a machine cannot go on.
    pub(super) fn make_room(
        &mut self,
        running: u32,
        free: u64,
        reach: &mut Reach<'_>,
    ) -> Result<(), MachineError> {
        if free >= self.low {
            return Ok(());
        }
        let mut missing = self.high - free;
        while missing > 0 {
            let freed = self.take_one(running, reach)?;
            missing = missing.saturating_sub(freed);
        }
        Ok(())
    }

    /// Takes one page back. Returns how many frames that frees.
    fn take_one(&mut self, running: u32, reach: &mut Reach<'_>) -> Result<u64, MachineError> {
        let victim = self.policy.victim(&mut |(vm, gfn)| {
            let mut used = None;
            reach(vm, &mut |mut tenant| {
                if let Some((at, size)) = tenant.page(Gpa::new(gfn << 12)) {
                    used = Some(tenant.take_used(at, size)?);
                }
                Ok(used == Some(true))
            })?;
            Ok(used)
        })?;
        let Some((vm, gfn)) = victim else {
            return Err(MachineError::HostTooSmall {
                bytes: self.frames << 12,
                needed: (self.frames + self.high) << 12,
            });
        };
        let (mut taken, mut freed) = (None, None);
        reach(vm, &mut |mut tenant| {
            if let Some(page) = tenant.page(Gpa::new(gfn << 12)) {
                // Others may have a merged page's frame.
                let free = |host: &mut HostMemory| host.physical().free_frames();
                let merged = tenant.host().filter(|h| h.is_merged(page.0)).map(free);
                tenant.counters().host_pages_unmapped += 1;
                if vm == running {
                    tenant.exits(ExitReason::HostMigration);
                }
                tenant.take_back(page.0)?;
                taken = Some(page);
                freed = merged.and_then(|before| Some(free(tenant.host()?) - before));
            }
            Ok(taken.is_some())
        })?;
        let frames = taken.map_or(0, |(at, size)| self.swap_out(vm, at, size));
        Ok(freed.unwrap_or(frames))
    }

    fn swap_out(&mut self, vm: u32, at: Gpa, size: PageSize) -> u64 {
        let space = &mut self.spaces[vm as usize];
        for gfn in at.page_number()..at.page_number() + size.base_pages() {
            space.counts.taken_back += 1;
            if has(&space.dirty, gfn) || !has(&space.copied, gfn) {
                space.counts.written += 1;
            }
            clear(&mut space.dirty, gfn);
            set(&mut space.copied, gfn);
            self.away.insert((vm, gfn));
        }
        size.base_pages()
    }

    /// The guest has no use for what is in these blocks of 2 MiB.
    ///
    /// # Errors
    /// The machine cannot go on.
    pub(super) fn reported(
        &mut self,
        vm: usize,
        blocks: &[Gpa],
        mut tenant: Tenant<'_>,
    ) -> Result<(), MachineError> {
        let requests = blocks.len().div_ceil(CAPACITY) as u64;
        tenant.counters().exits[ExitReason::FreePages as usize] += requests;
        for &block in blocks {
            let mut at = block;
            let end = block.offset_by(PageSize::SIZE_2M.bytes());
            while at < end {
                let page = tenant.page(at);
                at = at.offset_by(4096);
                if let Some((first, size)) = page
                    && size <= PageSize::SIZE_2M
                {
                    tenant.counters().host_pages_unmapped += 1;
                    tenant.take_back(first)?;
                    self.spaces[vm].counts.reported += size.base_pages();
                    at = first.offset_by(size.bytes());
                }
            }
            let space = &mut self.spaces[vm];
            for gfn in block.page_number()..end.page_number() {
                clear(&mut space.dirty, gfn);
                clear(&mut space.copied, gfn);
                space.counts.dropped += u64::from(self.away.remove(&(vm as u32, gfn)));
                self.given.insert((vm as u32, gfn));
            }
        }
        let gone: FxHashSet<u64> = blocks.iter().map(|at| at.page_number()).collect();
        let block = |gfn: u64| gfn & !(PageSize::SIZE_2M.base_pages() - 1);
        self.policy.retain(&mut |(of, gfn)| of as usize != vm || !gone.contains(&block(gfn)));
        Ok(())
    }

    /// Whether the guest uses what it has reported to be free.
    fn watch(&mut self, vm: usize, slice: &GuestBatch) {
        let mut events = slice.batch.controls.iter().peekable();
        for (at, gpa) in slice.gpas.iter().enumerate() {
            while let Some((_, event)) = events.next_if(|e| e.0 as usize <= at) {
                self.filled(vm as u32, event);
            }
            let page = (vm as u32, gpa.page_number());
            self.spaces[vm].counts.lost += u64::from(self.given.contains(&page));
        }
        events.for_each(|(_, event)| self.filled(vm as u32, event));
    }

    /// The guest's kernel has filled a page.
    fn filled(&mut self, vm: u32, event: &Control) {
        let (gpa, pages) = match *event {
            Control::PageCleared { gpa, size, .. } => (gpa, size.base_pages()),
            Control::TableAdded { gpa, .. } => (gpa, 1),
            _ => return,
        };
        for gfn in gpa.page_number()..gpa.page_number() + pages {
            self.given.remove(&(vm, gfn));
        }
    }

    /// A slice has run on the VM: what it touched and stored to.
    pub(super) fn ran(&mut self, vm: usize, slice: &GuestBatch, mut tenant: Tenant<'_>) {
        let fresh = tenant.host().map_or(Vec::new(), |h| h.take_touched());
        let largest = tenant.host().map_or(PageSize::SIZE_4K, |h| h.largest_page());
        let came: Vec<Came> =
            fresh.into_iter().filter_map(|(at, size)| self.came(vm, at, size)).collect();
        self.paged_twice(vm, slice, &came);
        self.uses(vm, slice, largest);
        if !self.given.is_empty() {
            self.watch(vm, slice);
        }
        self.policy.passed(vm as u32, slice.batch.instructions());
        self.waiting.ran(vm, slice, &came, &mut tenant);
    }

    /// Returns the page and how long it was waited for, if it was away.
    fn came(&mut self, vm: usize, at: Gpa, size: PageSize) -> Option<Came> {
        let mut came = 0;
        for gfn in at.page_number()..at.page_number() + size.base_pages() {
            came += u64::from(self.away.remove(&(vm as u32, gfn)));
        }
        self.policy.touched((vm as u32, at.page_number()));
        let ns = self.device.read(came << 12);
        let counts = &mut self.spaces[vm].counts;
        (came > 0).then(|| {
            counts.swapped_in += came;
            counts.waited_ns += ns;
            (at, size, ns)
        })
    }

    /// Pages that came back, and that the guest's kernel has given to its own device.
    fn paged_twice(&mut self, vm: usize, slice: &GuestBatch, came: &[Came]) {
        if came.is_empty() {
            return;
        }
        let written = slice.batch.controls.iter().filter_map(|(_, event)| match *event {
            Control::WrittenOut { gpa, .. } => Some(gpa),
            _ => None,
        });
        let came: FxHashSet<Gpa> = came.iter().map(|(at, ..)| *at).collect();
        let sizes = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G];
        let away = |gpa: Gpa| sizes.into_iter().any(|size| came.contains(&gpa.align_down(size)));
        self.spaces[vm].counts.double_paged += written.filter(|gpa| away(*gpa)).count() as u64;
    }

    /// Frames that the host would have from balloons, if so many are free: before it must swap.
    pub(super) const fn wanted(&self, free: u64) -> u64 {
        (2 * self.high).saturating_sub(free)
    }

    /// The guest's balloon has these pages, which are the host's now.
    ///
    /// # Errors
    /// The machine cannot go on.
    pub(super) fn ballooned(
        &mut self,
        vm: usize,
        pages: &[Gpa],
        mut tenant: Tenant<'_>,
    ) -> Result<(), MachineError> {
        let requests = pages.len().div_ceil(BALLOON_PAGES) as u64;
        tenant.counters().exits[ExitReason::Balloon as usize] += requests;
        let space = &mut self.spaces[vm];
        for &page in pages {
            // What a large page of the host holds beside it stays.
            if tenant.page(page).is_some_and(|(_, size)| size == PageSize::SIZE_4K) {
                tenant.counters().host_pages_unmapped += 1;
                tenant.take_back(page)?;
            }
            let gfn = page.page_number();
            clear(&mut space.dirty, gfn);
            clear(&mut space.copied, gfn);
            self.away.remove(&(vm as u32, gfn));
            self.given.insert((vm as u32, gfn));
            space.counts.ballooned += 1;
        }
        let gone: FxHashSet<u64> = pages.iter().map(|at| at.page_number()).collect();
        self.policy.retain(&mut |(of, gfn)| of as usize != vm || !gone.contains(&gfn));
        Ok(())
    }

    /// Stores make pages dirty; an exact policy hears of all uses.
    fn uses(&mut self, vm: usize, slice: &GuestBatch, largest: PageSize) {
        let exact = self.policy.is_exact();
        let sizes = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G];
        let Space { dirty, counts, .. } = &mut self.spaces[vm];
        for (run, gpa) in slice.batch.runs.iter().zip(&slice.gpas) {
            if run.flags.is_store() {
                set(dirty, gpa.page_number());
                counts.stores += u64::from(run.count);
            }
            if exact {
                for size in sizes.into_iter().filter(|s| *s <= largest) {
                    self.policy.used((vm as u32, gpa.align_down(size).page_number()));
                }
            }
        }
        for (_, event) in &slice.batch.controls {
            let (at, pages) = match *event {
                Control::TableWrite { gpa, .. } | Control::TableAdded { gpa, .. } => (gpa, 1),
                Control::PageCleared { gpa, size, .. } => (gpa, size.base_pages()),
                Control::WrittenOut { gpa, .. } if exact => {
                    self.policy.used((vm as u32, gpa.page_number()));
                    continue;
                }
                _ => continue,
            };
            for gfn in at.page_number()..at.page_number() + pages {
                set(dirty, gfn);
                if exact {
                    self.policy.used((vm as u32, gfn));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replacement::Kind;
    use nestwalk_hw::Profile;
    use nestwalk_types::{Gva, Run, RunFlags, VcpuId};

    /// A page that was given away and is used is found, unless the kernel filled it before.
    #[test]
    fn what_a_guest_uses_after_giving_it_away_is_found() {
        let profile = Profile::load("cascade-lake-6252").unwrap();
        let waiting = Asynchronous::new(&profile, &[], &[]);
        let sizes = (1, 1 << 20, 64);
        let mut memory = Memory::new(Kind::Lru.make(1), Device::default(), sizes, waiting);
        memory.given.extend([(0, 5), (0, 6), (1, 7)]);
        let mut slice = GuestBatch::default();
        let size = PageSize::SIZE_4K;
        let filled = Control::PageCleared { vcpu: VcpuId(0), gpa: Gpa::new(5 << 12), size };
        slice.batch.controls.push((1, filled));
        for page in [6u64, 5, 7, 5] {
            let (gva, pc) = (Gva::new(page << 12), Gva::new(0));
            let (vcpu, flags) = (VcpuId(0), RunFlags::STORE);
            let run = Run { gva, pc, lines: 1, count: 1, instructions: 1, vcpu, flags };
            slice.batch.runs.push(run);
            slice.gpas.push(Gpa::new(page << 12));
        }
        memory.watch(0, &slice);
        assert_eq!(memory.spaces[0].counts.lost, 1, "6; 5 was filled, 7 is another VM's");
    }
}
