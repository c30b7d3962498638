//! What the guest does to its tables and to CR3, and what the VMM owes for it.

use super::{FLOOD, NONE, PageId, Root, ShadowMmu};
use crate::hardware::walk::agile::SWITCH;
use crate::measure::counters::ExitReason;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::Entry;
use nestwalk_tables::entry::{LARGE, PRESENT};
use nestwalk_types::{Address, Gpa, Gva, Hpa, Invalidation, PageSize, VcpuId};
use std::collections::VecDeque;

/// What the VMM drops from the TLBs of the vCPU that exited.
enum Flush {
    Nothing,
    /// One address (INVVPID, individual-address).
    Address(Gva),
    /// Everything (INVVPID, single-context).
    Vpid,
}

impl ShadowMmu {
    /// The guest stored to one of its tables; the mirror has the new entry already.
    pub fn table_write(&mut self, platform: &mut Platform, at: Gpa, new: u64) {
        let gfn = at.page_number();
        let Some(&first) = self.by_guest.get(&gfn) else { return };
        if self.is_protected(first) {
            platform.locked_exit(ExitReason::TableWrite);
            self.emulate(platform, first, at, Entry(new));
            self.settle(platform);
            self.reload_obsolete(platform);
        } else {
            self.unsync(platform, first);
        }
    }

    /// An emulated store (`kvm_mmu_pte_write`).
    pub(super) fn emulate(&mut self, platform: &mut Platform, first: PageId, at: Gpa, new: Entry) {
        let guest_index = (at.value() & 0xfff) / u64::from(self.guest_mode.entry_bytes);
        if self.rules.kvm.is_newer() {
            return self.emulate_newer(platform, first, guest_index);
        }
        let mut page = first;
        while page != NONE {
            let next = self.pages[page as usize].next_same;
            let p = &mut self.pages[page as usize];
            if p.level > 1 {
                p.flood += 1;
                if p.flood >= FLOOD {
                    platform.cpu.counters.flood_zaps += 1;
                    self.zap(platform, page);
                    page = next;
                    continue;
                }
            }
            let level = p.level;
            for index in self.entries_of(page, guest_index) {
                let spte = self.spte_at(page, index);
                self.drop_entry(spte);
                if level == 1 && new.has(self.fillable()) {
                    let gfn = new.target::<Gpa>().page_number();
                    if self.prefill(platform, page, index, gfn, new) {
                        platform.cpu.counters.shadow_prefetches += 1;
                    }
                }
            }
            page = next;
        }
    }

    /// The guest kernel wrote a whole page through its own mapping.
    ///
    /// The first write of a page needs a shadow entry of that mapping (a hidden fault per host page).
    /// A page that is still shadowed as a table, since the hypervisor cannot know that it was freed,
    /// is written like one: stores to a protected table exit until flooding drops it, a leaf table
    /// goes out of sync.
    ///
    /// # Errors
    /// Host memory is exhausted, or the address is no guest memory.
    pub fn page_written(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        self.map_page_for_kernel(platform, gpa, size)?;
        let end = gpa.value() + size.bytes();
        for region in gpa.value() >> 21..=(end - 1) >> 21 {
            if !self.shadowed_in_2m.contains_key(&region) {
                continue;
            }
            let from = (region << 9).max(gpa.page_number());
            let to = ((region + 1) << 9).min(end >> 12);
            for gfn in from..to {
                self.overwrite(platform, gfn);
            }
        }
        self.settle(platform);
        Ok(())
    }

    /// A shadowed guest frame is overwritten as a whole.
    pub(super) fn overwrite(&mut self, platform: &mut Platform, gfn: u64) {
        while let Some(&first) = self.by_guest.get(&gfn) {
            if !self.is_protected(first) {
                self.unsync(platform, first);
                return;
            }
            platform.locked_exit(ExitReason::TableWrite);
            self.emulate(platform, first, Gpa::new(gfn << 12), Entry(0));
            self.settle(platform);
        }
    }

    /// The guest loaded CR3.
    ///
    /// # Errors
    /// No frame for a root.
    pub fn load_cr3(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        pcid: u16,
        keep: bool,
    ) -> Result<(), MachineError> {
        let known = self.take_up_root(platform, vcpu, pcid, keep)?;
        if self.rules.write_protect || !keep || !known {
            platform.cpu.counters.exit(ExitReason::Cr3Load);
        }
        platform.cpu.hardware.load_cr3(vcpu, pcid, keep);
        // The VPID as a whole, whatever the PCID: `kvm_set_cr3` and `fast_cr3_switch` for a load that
        // flushes, `kvm_mmu_load` for a root that was not at hand.
        if !keep || !known {
            platform.cpu.hardware.invalidate_vcpu(vcpu);
        }
        Ok(())
    }

    /// The shadow of the root in CR3 is the vCPU's from now on. Returns whether it was at hand: the
    /// current root of this PCID, or one of the previous ones.
    ///
    /// # Errors
    /// No frame for a root.
    pub fn take_up_root(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        pcid: u16,
        keep: bool,
    ) -> Result<bool, MachineError> {
        let v = usize::from(vcpu.0);
        let gfn = platform.cpu.world.roots[v].page_number();
        let known;
        if let Some(mut root) = self.roots[v].current
            && root.gfn == gfn
            && !self.pages[root.page as usize].obsolete
        {
            known = root.pcid == pcid;
            root.pcid = pcid;
            self.roots[v].current = Some(root);
            if !keep || !known {
                self.sync_root(platform, root.page);
            }
        } else {
            known = self.switch_root(platform, v, (gfn, pcid), keep)?;
        }
        self.settle(platform);
        Ok(known)
    }

    /// Takes up a previous root, or loads one (`fast_cr3_switch`). Returns whether it was a previous
    /// one.
    fn switch_root(
        &mut self,
        platform: &mut Platform,
        v: usize,
        (gfn, pcid): (u64, u16),
        keep: bool,
    ) -> Result<bool, MachineError> {
        let cached = self.roots[v]
            .previous
            .iter()
            .position(|r| r.gfn == gfn && r.pcid == pcid && !self.pages[r.page as usize].obsolete);
        let (root, known) = match cached.and_then(|i| self.roots[v].previous.remove(i)) {
            Some(root) => {
                if !keep {
                    self.sync_root(platform, root.page);
                }
                (root, true)
            }
            None => (self.take_root(platform, gfn, pcid)?, false),
        };
        if let Some(old) = self.roots[v].current.replace(root) {
            self.roots[v].previous.push_front(old);
        }
        if self.roots[v].previous.len() > self.rules.previous_roots
            && let Some(oldest) = self.roots[v].previous.pop_back()
        {
            self.release(platform, oldest.page);
        }
        Ok(known)
    }

    /// The guest invalidated translations: KVM's `kvm_mmu_invlpg`, `kvm_mmu_invpcid_gva` and
    /// `handle_invpcid`.
    ///
    /// What of a PCID no root at hand has needs no flush: the load that takes such a root up flushes
    /// the whole VPID.
    pub fn invalidate(&mut self, platform: &mut Platform, vcpu: VcpuId, what: Invalidation) {
        platform.cpu.counters.exit(ExitReason::Invalidation);
        let v = usize::from(vcpu.0);
        let roots: Vec<Root> =
            self.roots[v].current.into_iter().chain(self.roots[v].previous.clone()).collect();
        let mut flush = Flush::Nothing;
        match what {
            // Whatever the PCID: which mappings are global in some root, KVM does not look at.
            Invalidation::Page(gva) => {
                platform.lock();
                for root in &roots {
                    self.invalidate_page(platform, root.page, gva);
                }
                flush = Flush::Address(gva);
            }
            Invalidation::PageInPcid(gva, pcid) if self.has_at_hand(v, pcid) => {
                platform.lock();
                for root in roots.iter().filter(|r| r.pcid == pcid) {
                    self.invalidate_page(platform, root.page, gva);
                }
                flush = Flush::Address(gva);
            }
            Invalidation::PageInPcid(..) => {}
            Invalidation::Pcid(pcid) => {
                if platform.cpu.hardware.cores[v].pcid == pcid {
                    self.sync_current(platform, v);
                    flush = Flush::Vpid;
                }
                self.forget_previous(platform, v, |root| root.pcid == pcid);
            }
            // No shadow entry is global, so that both types are one (`kvm_mmu_unload`).
            Invalidation::AllButGlobal | Invalidation::All => {
                self.sync_current(platform, v);
                self.forget_previous(platform, v, |_| true);
                flush = Flush::Vpid;
            }
        }
        self.settle(platform);
        match flush {
            Flush::Nothing => {}
            Flush::Address(gva) => platform.cpu.hardware.invalidate_address(vcpu, self.mode, gva),
            Flush::Vpid => platform.cpu.hardware.invalidate_vcpu(vcpu),
        }
    }

    /// Whether the current root of a vCPU or one of its previous ones has a PCID.
    pub fn has_at_hand(&self, vcpu: usize, pcid: u16) -> bool {
        let roots = &self.roots[vcpu];
        roots.current.iter().chain(&roots.previous).any(|r| r.pcid == pcid)
    }

    fn sync_current(&mut self, platform: &mut Platform, v: usize) {
        if let Some(root) = self.roots[v].current {
            self.sync_root(platform, root.page);
        }
    }

    /// Previous roots of a vCPU are given up.
    fn forget_previous(
        &mut self,
        platform: &mut Platform,
        v: usize,
        which: impl Fn(&Root) -> bool,
    ) {
        let previous = std::mem::take(&mut self.roots[v].previous);
        let (gone, kept): (VecDeque<Root>, _) = previous.into_iter().partition(which);
        self.roots[v].previous = kept;
        for root in gone {
            self.release(platform, root.page);
        }
    }

    /// INVLPG: an out-of-sync leaf is dropped and read anew (`FNAME(invlpg)`).
    pub(super) fn invalidate_page(&mut self, platform: &mut Platform, root: PageId, gva: Gva) {
        if !self.rules.write_protect {
            return self.resync_address(platform, root, gva);
        }
        let mut page = root;
        for level in (1..=self.mode.levels).rev() {
            let index = self.mode.index(gva.value(), level);
            let spte = self.spte_at(page, index);
            let entry = Entry(self.memory.read(spte, 8).unwrap_or(0));
            if level == 1 || entry.has(PRESENT | LARGE) {
                if !self.pages[page as usize].unsync {
                    return;
                }
                if !super::newer::invlpg_fills(self.rules.kvm) {
                    self.compare_entry(platform, page, index);
                    return;
                }
                self.drop_entry(spte);
                let at = self.guest_entry_at(page, index);
                let raw =
                    platform.cpu.world.guest.read(at, self.guest_mode.entry_bytes).unwrap_or(0);
                let guest = Entry(raw);
                let gfn = guest.target::<Gpa>().page_number();
                if guest.has(self.fillable()) && self.prefill(platform, page, index, gfn, guest) {
                    platform.cpu.counters.shadow_prefetches += 1;
                }
                return;
            }
            if !entry.is_present() || entry.has(SWITCH) {
                return;
            }
            page = self.by_table[&entry.target::<Hpa>().page_number()];
        }
    }
}
