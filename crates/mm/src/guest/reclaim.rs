//! A guest kernel that is short of memory takes pages from its processes and swaps them.
//!
//! When: below Linux's watermark `low` of free memory, up to `high` (6.1, `mm/page_alloc.c`,
//! `init_per_zone_wmark_min`, `__setup_per_zone_wmarks`), at once and in the way of whoever needs
//! memory. Which: a policy says, that asks of a page whether it was used since it was last asked, as
//! its accessed bit tells. The bit is set by the first use after that, as if no TLB had the page.

use super::daemons::GuestHome;
use super::emit::Output;
use super::{GuestError, ModelledGuest};
use crate::daemons::Home;
use crate::space::SwapSpace;
use nestwalk_types::{Gpa, GuestBatch, Gva, OsWork, Run};
use std::collections::BTreeSet;

/// A page of a process: the number of its address space, and its page number.
pub type ProcessPage = (u32, u64);

/// Decides which page goes.
pub trait PageChoice: Send {
    /// The page was touched for the first time, or has come back.
    fn touched(&mut self, page: ProcessPage);
    /// A process has run so many instructions.
    fn passed(&mut self, space: u32, instructions: u64);
    /// The next page to go, which is forgotten; `None` if none is known. `used` says of a page whether
    /// it was used since this was last asked, and `None` if it is gone.
    fn victim(&mut self, used: &mut dyn FnMut(ProcessPage) -> Option<bool>) -> Option<ProcessPage>;
}

/// What a guest and its swap device did to each other. Pages are of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SwapStats {
    /// Times that the kernel looked whether a page was used.
    pub scanned: u64,
    /// Pages that it took from processes.
    pub taken: u64,
    /// Of these, those that the device had to write.
    pub written: u64,
    /// Pages that came back.
    pub came_back: u64,
    /// Pages that its balloon has given to the host.
    pub ballooned: u64,
}

/// A kernel that swaps.
pub(super) struct Reclaim {
    choice: Box<dyn PageChoice>,
    /// Pages that the choice knows.
    known: BTreeSet<ProcessPage>,
    stats: SwapStats,
}

/// Free frames below which pages are taken, and up to which. `managed` is all memory of processes and
/// tables.
fn watermarks(managed: u64) -> (u64, u64) {
    // min_free_kbytes is the root of 16 times the kilobytes of memory, 128 at least.
    let min = ((managed * 4 * 16).isqrt().clamp(128, 262_144)) / 4;
    (min + min / 4, min + min / 2)
}

impl ModelledGuest {
    /// The kernel has a swap device from now on, and this decides which pages go there.
    pub fn swap_by(&mut self, choice: Box<dyn PageChoice>) {
        self.memory.swap = Some(Box::default());
        let (known, stats) = (BTreeSet::new(), SwapStats::default());
        self.reclaim = Some(Box::new(Reclaim { choice, known, stats }));
    }

    /// What it and its swap device did to each other; `None` if it has none.
    pub fn swap_stats(&self) -> Option<SwapStats> {
        let came_back = self.memory.swap.as_ref().map_or(0, |swap| swap.came);
        self.reclaim.as_ref().map(|r| SwapStats { came_back, ..r.stats })
    }

    /// The kernel's swap device.
    pub fn swap_space(&self) -> Option<&SwapSpace> {
        self.memory.swap.as_deref()
    }

    /// Takes pages if fewer than `low` frames, and those that are needed now, are free.
    pub(super) fn make_room(&mut self, needed: u64, output: &mut Output<'_>) {
        if self.reclaim.is_none() {
            return;
        }
        let physical = &self.memory.physical;
        let managed = (physical.bytes() >> 12).saturating_sub(physical.pinned_frames());
        let (low, high) = watermarks(managed);
        if physical.free_frames() < low + needed {
            self.take_pages(high + needed, output);
        }
    }

    /// Takes pages until so many frames are free, or none can be taken.
    fn take_pages(&mut self, wanted: u64, output: &mut Output<'_>) {
        let Some(mut reclaim) = self.reclaim.take() else { return };
        self.work.emit(output);
        let mut home = self.home(output);
        home.daemon = false;
        let mut fruitless = 0;
        while home.memory().physical.free_frames() < wanted {
            match reclaim.take_one(&mut home) {
                Some(true) => fruitless = 0,
                // What is shared cannot go; once all that is known was tried, nothing can.
                Some(false) if fruitless <= reclaim.known.len() => fruitless += 1,
                Some(false) | None => break,
            }
        }
        self.work.emit(output);
        self.reclaim = Some(reclaim);
    }

    /// Processes have run this.
    pub(super) fn time_passes(&mut self, runs: &[Run]) {
        let Some(reclaim) = &mut self.reclaim else { return };
        for run in runs {
            if let Some(cpu) = self.cpus.get(usize::from(run.vcpu.0)) {
                reclaim.choice.passed(cpu.loaded as u32, u64::from(run.instructions));
            }
        }
    }

    /// The page of the process is there now.
    pub(super) fn page_came(&mut self, context: u64, gva: Gva) {
        let page = gva.value() & self.config.mode.address_mask();
        if let Some(reclaim) = &mut self.reclaim {
            reclaim.hears((context as u32, page >> 12));
        }
    }

    /// The balloon driver takes so many frames, as far as the kernel has them or can take them, and
    /// they are the host's from now on. `output` is replaced by what the kernel does for it.
    ///
    /// # Errors
    /// None so far.
    pub fn inflate(
        &mut self,
        frames: u64,
        output: &mut GuestBatch,
    ) -> Result<Vec<Gpa>, GuestError> {
        let mut output = Output::new(output, None);
        self.make_room(frames, &mut output);
        let physical = &mut self.memory.physical;
        let managed = (physical.bytes() >> 12).saturating_sub(physical.pinned_frames());
        let spare = physical.free_frames().saturating_sub(watermarks(managed).0);
        let taken = physical.pin(frames.min(spare));
        let pages: Vec<Gpa> = taken.into_iter().flatten().map(|n| Gpa::new(n << 12)).collect();
        if let Some(reclaim) = &mut self.reclaim {
            reclaim.stats.ballooned += pages.len() as u64;
        }
        Ok(pages)
    }
}

impl Reclaim {
    fn hears(&mut self, page: ProcessPage) {
        if self.known.insert(page) {
            self.choice.touched(page);
        }
    }

    /// Takes one page. Whether that has freed one; `None` if there is none to take.
    fn take_one(&mut self, home: &mut GuestHome<'_, '_>) -> Option<bool> {
        if self.known.is_empty() {
            self.hear_all(home);
        }
        let (known, stats) = (&mut self.known, &mut self.stats);
        let victim = self.choice.victim(&mut |page| {
            stats.scanned += 1;
            home.work(OsWork::PageScanned, 1);
            let used = home.take_accessed(page);
            if used.is_none() {
                known.remove(&page);
            }
            used
        });
        let Some(page) = victim else {
            known.clear();
            return None;
        };
        known.remove(&page);
        match home.swap_out(page) {
            Some(written) => {
                stats.taken += 1;
                stats.written += u64::from(written);
                home.work(OsWork::PageMigrated, 1);
                Some(true)
            }
            None => Some(false),
        }
    }

    /// All pages of all processes that can go: of those that were shared before, nobody has told.
    fn hear_all(&mut self, home: &GuestHome<'_, '_>) {
        let mut found = Vec::new();
        for id in home.spaces() {
            let Some(space) = home.look(id) else { continue };
            space.pages(home.memory(), &mut |page, size, entry| {
                if space.can_move(home.memory(), page, entry.frame(size), size) {
                    found.push((id as u32, page >> 12));
                }
            });
        }
        found.into_iter().for_each(|page| self.hears(page));
    }
}

impl GuestHome<'_, '_> {
    fn take_accessed(&mut self, (id, page): ProcessPage) -> Option<bool> {
        let used = self.with(u64::from(id), |space, memory, watch| {
            space.take_accessed(memory, page << 12, watch)
        })??;
        if used {
            // The next use sets it again.
            self.forget(u64::from(id), page);
        }
        Some(used)
    }

    fn swap_out(&mut self, (id, page): ProcessPage) -> Option<bool> {
        self.with(u64::from(id), |space, memory, watch| space.swap_out(memory, page << 12, watch))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with 8 GiB of Linux 6.1 on x86-64 has a `min_free_kbytes` of about 11,500.
    #[test]
    fn watermarks_are_linuxs() {
        let (low, high) = watermarks((8 << 30) >> 12);
        assert_eq!((low, high), (3620, 4344));
        assert_eq!(watermarks(0), (40, 48));
    }
}
