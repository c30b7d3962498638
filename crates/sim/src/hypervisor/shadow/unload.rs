//! All shadow tables go: the VM leaves shadow mode, or the host changed behind them.

use super::{PAE_ROOT, PageId, ShadowMmu};
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::Entry;
use nestwalk_tables::entry::ACCESSED;
use nestwalk_types::{Address, Gpa, PageSize};

impl ShadowMmu {
    /// Drops every shadow page and every root (`kvm_mmu_unload` after `kvm_mmu_zap_all`) and gives
    /// their memory back. The caller owes the flush of everything that hardware may hold.
    pub fn unload(&mut self, platform: &mut Platform) {
        for page in 0..self.pages.len() as PageId {
            let p = &self.pages[page as usize];
            if p.live {
                // An obsolete page was counted when it became that.
                platform.cpu.counters.shadow_zaps += u64::from(!p.obsolete);
                self.free_page(platform, page);
            }
        }
        platform.cpu.counters.shadow_drops += self.rmap.count() + self.dropped;
        let fresh = Self::new(self.guest_mode, self.roots.len(), 0);
        *self = Self { quota: self.quota, ..fresh };
    }

    /// Loads the roots of all vCPUs that run, as KVM does before it enters the guest
    /// (`kvm_mmu_reload`).
    ///
    /// # Errors
    /// The host has no frame for a root.
    pub fn load_roots(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        for vcpu in 0..self.roots.len() {
            if platform.cpu.world.roots[vcpu] != Gpa::new(0) {
                self.hardware_root(platform, vcpu)?;
            }
        }
        Ok(())
    }

    /// Whether an entry may map a part of a larger guest page: one of a split page, or of the 4 MiB
    /// pages of 32-bit guests.
    pub fn may_splinter(&self) -> bool {
        let split = |s| s != PAE_ROOT;
        self.is_narrow() || self.pages.iter().any(|p| p.live && p.split.is_some_and(split))
    }

    /// Whether a shadow entry of the range was accessed; the bits are clear from now on
    /// (`kvm_age_gfn`). The caller owes the flush if one was. What the kernel's own mapping has
    /// used is not told by any entry: the mark of it goes, and the next use is a hidden fault.
    pub fn take_accessed(&mut self, at: Gpa, size: PageSize) -> bool {
        let first = at.page_number();
        let mut accessed = false;
        for gfn in first..first + size.base_pages() {
            for spte in self.rmap.entries(gfn) {
                let Some(entry) = self.memory.read(spte, 8).map(Entry) else { continue };
                if entry.has(ACCESSED) {
                    accessed = true;
                    self.memory.write(spte, 8, entry.without(ACCESSED).0);
                }
            }
            self.direct_map.host_changed(gfn);
        }
        accessed
    }

    /// The host took the page behind these guest frames back: no entry may map it any more. The
    /// caller owes the flush.
    pub fn host_changed(&mut self, at: Gpa, size: PageSize) {
        let first = at.page_number();
        for gfn in first..first + size.base_pages() {
            self.drop_gfn(gfn);
            self.direct_map.host_changed(gfn);
        }
        self.flush_owed = false;
    }
}
