//! Hardware that several VMs share: what a core remembers goes from one VM to the next.
//!
//! A VM has its [`Hardware`] to itself while it runs, so that nothing of this costs a walk
//! anything. At the end of its turn all that the cores remember goes back to the host's.

use super::core::PcidLevels;
use super::{Core, Hardware};
use nestwalk_hw::Asid;

/// VPIDs that translations can be tagged with, that of the host included.
pub const VPIDS: u8 = 16;

/// What VMs share of a processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared {
    /// TLBs and walk caches.
    pub tlbs: bool,
    /// Data caches, the last level included.
    pub caches: bool,
}

impl Core {
    /// All that remembers translations changes places with another core's. The address space that
    /// is current stays.
    fn exchange(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.l1d, &mut other.l1d);
        std::mem::swap(&mut self.l1i, &mut other.l1i);
        std::mem::swap(&mut self.l2, &mut other.l2);
        std::mem::swap(&mut self.l2i, &mut other.l2i);
        std::mem::swap(&mut self.walk_cache, &mut other.walk_cache);
        std::mem::swap(&mut self.nested_walk_cache, &mut other.nested_walk_cache);
        std::mem::swap(&mut self.entry_cache, &mut other.entry_cache);
        std::mem::swap(&mut self.nested_tlb, &mut other.nested_tlb);
        std::mem::swap(&mut self.coalesced, &mut other.coalesced);
        std::mem::swap(&mut self.pcids, &mut other.pcids);
    }

    /// Drops everything that is tagged with a VPID: linear, combined and guest-physical
    /// translations.
    fn forget_vpid(&mut self, vpid: u8) {
        self.invalidate_vpid(vpid, true);
        self.nested_walk_cache.invalidate_vpid(vpid);
        if let Some(nested) = &mut self.nested_tlb {
            nested.invalidate_vpid(vpid, true);
        }
        self.forget_entries();
    }
}

impl Hardware {
    /// The VM's VPID from now on. Nothing may be cached yet.
    pub fn set_vpid(&mut self, vpid: u8) {
        let pcid = self.profile.pcid.clone();
        for core in &mut self.cores {
            core.asid = Asid::new(vpid, core.asid.pcid());
            core.pcids = PcidLevels::new(&pcid, core.asid);
        }
    }

    /// Has structures of the kinds that `like` has beside a core's usual ones.
    pub fn fit_out(&mut self, like: &Self) {
        if let Some(first) = like.cores.first() {
            for core in &mut self.cores {
                core.coalesced.clone_from(&first.coalesced);
            }
        }
    }

    /// What is shared changes places with the structures of the host's cores from `first` on.
    pub fn exchange(&mut self, host: &mut Self, first: usize, shared: Shared) {
        for core in 0..self.cores.len() {
            if shared.tlbs {
                self.cores[core].exchange(&mut host.cores[first + core]);
            }
            if shared.caches {
                self.caches.exchange_core(core, &mut host.caches, first + core);
            }
        }
        if shared.caches {
            self.caches.exchange_last_level(&mut host.caches);
        }
    }

    /// The VM's address spaces have PCIDs in each level of its cores, if need be in place of
    /// another's.
    pub fn take_up_pcids(&mut self) {
        self.cores.iter_mut().for_each(Core::make_room_for_pcid);
    }

    /// A core drops everything that is tagged with a VPID.
    pub fn forget_vpid(&mut self, core: usize, vpid: u8) {
        self.cores[core].forget_vpid(vpid);
    }
}
