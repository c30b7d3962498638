//! What happens to all translation structures of one core together: look-ups and fills that go to one of
//! several, and removals that go to each.

use crate::hardware::Core;
use nestwalk_hw::profile::PcidProfile;
use nestwalk_hw::{Asid, Displaced, PcidSlots, Pointer, Tlb, Translation};
use nestwalk_tables::{Level, Mode};
use nestwalk_types::Gva;

/// PCIDs that the levels of a core hold.
pub struct PcidLevels {
    supported: bool,
    limited: bool,
    l1d: PcidSlots,
    l1i: PcidSlots,
    l2: PcidSlots,
}

impl PcidLevels {
    /// As a profile says; the core begins with `first`.
    pub fn new(profile: &PcidProfile, first: Asid) -> Self {
        let slots = |most: Option<u32>| PcidSlots::new(most, first);
        Self {
            supported: profile.supported,
            limited: profile.l1d.or(profile.l1i).or(profile.l2).is_some(),
            l1d: slots(profile.l1d),
            l1i: slots(profile.l1i),
            l2: slots(profile.l2),
        }
    }

    /// The processor has PCIDs.
    pub const fn supported(&self) -> bool {
        self.supported
    }
}

fn displace(tlb: &mut Tlb, displaced: Displaced, vpid: u8) {
    match displaced {
        Displaced::Nothing => {}
        Displaced::All => tlb.invalidate_vpid(vpid, false),
        Displaced::One(asid) => tlb.invalidate_asid(asid),
    }
}

impl Core {
    /// The processor has PCIDs.
    pub const fn has_pcids(&self) -> bool {
        self.pcids.supported()
    }

    /// The tag of a PCID; on a processor without them all address spaces have the same.
    pub const fn tag(&self, pcid: u16) -> Asid {
        self.asid.with_pcid(if self.pcids.supported() { pcid } else { 0 })
    }

    /// The current address space has a PCID in each level, if need be in place of another's.
    pub(crate) fn make_room_for_pcid(&mut self) {
        if !self.pcids.limited {
            return;
        }
        let (asid, vpid) = (self.asid, self.asid.vpid());
        let levels = [&mut self.pcids.l1d, &mut self.pcids.l1i, &mut self.pcids.l2];
        let [l1d, l1i, l2] = levels.map(|level| level.load(asid));
        displace(&mut self.l1d, l1d, vpid);
        displace(&mut self.l1i, l1i, vpid);
        displace(&mut self.l2, l2, vpid);
        if let Some(tlb) = &mut self.l2i {
            displace(tlb, l2, vpid);
        }
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.displace([l1d, l1i, l2], vpid);
        }
    }

    /// The first-level TLB of data or of fetches.
    #[inline(always)]
    pub const fn first_level(&mut self, fetch: bool) -> &mut Tlb {
        if fetch { &mut self.l1i } else { &mut self.l1d }
    }

    /// The second-level TLB of data or of fetches, which may be the same.
    #[inline(always)]
    pub fn second_level(&mut self, fetch: bool) -> &mut Tlb {
        match &mut self.l2i {
            Some(l2i) if fetch => l2i,
            _ => &mut self.l2,
        }
    }

    /// Puts what a walk has found into the second level, which has no entry of the address.
    #[inline(always)]
    pub fn fill_second_level(&mut self, gva: Gva, fetch: bool, found: Translation) {
        let asid = self.asid;
        self.second_level(fetch).fill_missed(gva, asid, found);
    }

    /// All TLBs.
    pub fn tlbs(&mut self) -> impl Iterator<Item = &mut Tlb> {
        let l2i = self.l2i.as_deref_mut();
        [&mut self.l1d, &mut self.l1i, &mut self.l2].into_iter().chain(l2i)
    }

    /// One page of one address space, every part of it if it is a large one, and all partial walks of
    /// the address space, as INVLPG does.
    pub fn invalidate_page(&mut self, gva: Gva, asid: Asid, global: bool) {
        self.invalidate_page_in_tlbs(gva, asid, global);
        self.walk_cache.invalidate_asid(asid);
        self.l2.remove_pdes(asid);
        self.forget_entries();
    }

    /// As [`Core::invalidate_page`], without the partial walks.
    pub(crate) fn invalidate_page_in_tlbs(&mut self, gva: Gva, asid: Asid, global: bool) {
        for tlb in self.tlbs() {
            tlb.invalidate_page(gva, asid, global);
        }
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.invalidate_page(gva, asid, global);
        }
        if let Some(blocks) = &mut self.blocks {
            blocks.invalidate_page(gva, asid, global);
        }
    }

    /// The partial walks of one address, by prefix.
    pub(crate) fn forget_partial_walk(&mut self, mode: &Mode, gva: Gva, asid: Asid) {
        self.walk_cache.invalidate_address(mode, gva, asid);
        self.l2.remove_pde(mode.prefix(gva.value(), 2), asid);
    }

    /// The entries for one address from the TLBs only: what an access that could not use them, or a
    /// fault, removes. Other parts of a large page stay.
    pub fn drop_page(&mut self, gva: Gva, asid: Asid, global: bool) {
        for tlb in self.tlbs() {
            tlb.remove(gva, asid, global);
        }
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.remove(gva, asid, global);
        }
        if let Some(blocks) = &mut self.blocks {
            blocks.remove(gva, asid, global);
        }
    }

    /// The translation and the partial walks of one address in the current address space: what a
    /// fault removes.
    pub fn drop_translation(&mut self, mode: &Mode, gva: Gva) {
        self.drop_page(gva, self.asid, false);
        self.forget_partial_walk(mode, gva, self.asid);
    }

    /// Everything of an address space but global entries.
    pub(crate) fn invalidate_asid(&mut self, asid: Asid) {
        for tlb in self.tlbs() {
            tlb.invalidate_asid(asid);
        }
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.invalidate_asid(asid);
        }
        if let Some(blocks) = &mut self.blocks {
            blocks.invalidate_asid(asid);
        }
        self.walk_cache.invalidate_asid(asid);
        self.forget_entries();
    }

    /// Everything of a VPID, with or without global entries.
    pub(crate) fn invalidate_vpid(&mut self, vpid: u8, global: bool) {
        for tlb in self.tlbs() {
            tlb.invalidate_vpid(vpid, global);
        }
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.invalidate_vpid(vpid, global);
        }
        if let Some(blocks) = &mut self.blocks {
            blocks.invalidate_all(global);
        }
        self.walk_cache.invalidate_vpid(vpid);
        self.forget_entries();
    }

    /// The partial walks of a VPID; complete translations stay.
    pub fn forget_partial_walks(&mut self, vpid: u8) {
        self.walk_cache.invalidate_vpid(vpid);
        self.l2.remove_pdes_of_vpid(vpid);
        self.forget_entries();
    }

    /// The entries of tables that are held by where they lie. Their tags know no address space, so that
    /// whatever voids partial walks voids all of them.
    #[inline]
    pub(crate) fn forget_entries(&mut self) {
        if let Some(cache) = &mut self.entry_cache {
            cache.flush();
        }
    }

    /// Empties whatever shortens walks.
    pub(crate) fn forget_walks(&mut self) {
        self.walk_cache.flush();
        self.l2.remove_pdes_of_vpid(self.asid.vpid());
        self.nested_walk_cache.flush();
        self.forget_entries();
        if let Some(nested) = &mut self.nested_tlb {
            nested.flush();
        }
    }

    /// The longest partial walk of the current address space: the level of the table to go on with,
    /// and where it is.
    #[inline]
    pub fn partial_walk(&mut self, mode: &Mode, gva: Gva) -> Option<(u8, Pointer)> {
        if self.l2.holds_pdes()
            && let Some(found) = self.l2.look_up_pde(mode.prefix(gva.value(), 2), self.asid)
        {
            return Some((1, found));
        }
        self.walk_cache.look_up(mode, gva, self.asid)
    }

    /// Remembers that a walk in the current address space, which found no longer match, came to a table
    /// of `level`.
    #[inline]
    pub fn remember_walk(&mut self, mode: &Mode, gva: Gva, level: Level, pointer: Pointer) {
        if level == 1 && self.l2.holds_pdes() {
            return self.l2.fill_pde(mode.prefix(gva.value(), 2), self.asid, pointer);
        }
        self.walk_cache.fill_missed(mode, gva, self.asid, level, pointer);
    }
}
