//! The translation hardware of one machine: cores with their TLBs and walk caches, and the caches.

use crate::counters::{Counters, Dimension, References};
use nestwalk_hw::{Asid, Caches, Coalesced, Pointer, Profile, ServedBy, Tlb, WalkCache};
use nestwalk_tables::Mode;
use nestwalk_types::{Gpa, Gva, Hpa, Invalidation, Run, VcpuId};

/// The VPID of the one VM of a machine; 0 is the host's own.
pub const GUEST_VPID: u8 = 1;

/// Translation structures of one core; each vCPU has its own core.
pub struct Core {
    /// First-level data TLB.
    pub l1d: Tlb,
    /// First-level instruction TLB.
    pub l1i: Tlb,
    /// Second-level TLB.
    pub l2: Tlb,
    /// Paging-structure caches of linear or combined mappings.
    pub walk_cache: WalkCache,
    /// Paging-structure caches of nested tables.
    pub nested_walk_cache: WalkCache,
    /// Guest-physical translations.
    pub nested_tlb: Option<Tlb>,
    /// TLBs whose entries cover several base pages, in place of the three above, for schemes that have
    /// them.
    pub coalesced: Option<Box<Coalesced>>,
    /// Tag of the current address space.
    pub asid: Asid,
    /// PCIDs that were loaded so far, each once.
    pcids: Vec<u16>,
}

/// One reference of a walk, for those who watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Whose table.
    pub dimension: Dimension,
    /// Level of the entry.
    pub level: u8,
    /// For a reference to nested tables: what the translated guest-physical address is, the guest
    /// table of this level (5..=1) or 0 for the page of the access.
    pub on_behalf: u8,
    /// Where the walker read.
    pub at: Hpa,
    /// The entry's contents.
    pub entry: u64,
    /// Where it was served.
    pub served: ServedBy,
}

/// What one walk costs while it runs.
#[derive(Clone, Copy, Default)]
pub struct Tally {
    pub(crate) references: References,
    pub(crate) cycles: u64,
}

/// The hardware of one machine.
pub struct Hardware {
    /// One core per vCPU.
    pub cores: Vec<Core>,
    /// Caches that data and walks share.
    pub caches: Caches,
    /// Cycles of a reference by where it is served.
    pub latency: [u64; ServedBy::COUNT],
    /// Cycles to look the walk caches up.
    pub walk_cache_cycles: u64,
    /// Cycles to look the nested TLB up.
    pub nested_tlb_cycles: u64,
    /// Costs of the walk under way.
    pub tally: Tally,
    /// References of the walk under way, if somebody watches.
    pub steps: Option<Vec<Step>>,
    profile: Profile,
}

/// One translation that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// On which vCPU.
    pub vcpu: VcpuId,
    /// The address.
    pub gva: Gva,
    /// It is a store.
    pub write: bool,
    /// It is an instruction fetch.
    pub fetch: bool,
    /// It is made in user mode.
    pub user: bool,
    /// Instruction address, 0 if unknown.
    pub pc: Gva,
}

impl Request {
    /// The request of a run's first access.
    #[inline]
    pub const fn of(run: &Run) -> Self {
        Self {
            vcpu: run.vcpu,
            gva: run.gva,
            write: run.flags.is_store(),
            fetch: run.flags.is_fetch(),
            user: !run.flags.is_kernel(),
            pc: run.pc,
        }
    }
    /// Index of the core.
    #[inline]
    pub const fn core(&self) -> usize {
        self.vcpu.0 as usize
    }
}

impl Hardware {
    /// Cold hardware of this profile with `cores` cores, tagged with `vpid`.
    pub fn new(profile: &Profile, cores: usize, vpid: u8) -> Self {
        let c = &profile.caches;
        let mut hardware = Self {
            cores: Vec::new(),
            caches: Caches::new(c, cores),
            latency: [c.l1d.cycles, c.l2.cycles, c.llc.cycles, c.memory_cycles.value as u32]
                .map(u64::from),
            walk_cache_cycles: profile.core.walk_cache_cycles.value as u64,
            nested_tlb_cycles: profile.core.nested_tlb_cycles.value as u64,
            tally: Tally::default(),
            steps: None,
            profile: profile.clone(),
        };
        for _ in 0..cores {
            hardware.add_core(vpid);
        }
        hardware
    }

    fn add_core(&mut self, vpid: u8) {
        let p = &self.profile;
        let nested_tlb = p.nested_tlb.as_ref().map(|n| {
            let sizes = ["4k", "2m", "1g"].map(String::from).to_vec();
            Tlb::new(&[nestwalk_hw::profile::TlbProfile {
                sizes,
                entries: n.entries,
                ways: n.ways,
                source: n.source.clone(),
            }])
        });
        self.cores.push(Core {
            l1d: Tlb::new(&p.l1d_tlb),
            l1i: Tlb::new(&p.l1i_tlb),
            l2: Tlb::new(&p.l2_tlb),
            walk_cache: WalkCache::new(&p.walk_cache),
            nested_walk_cache: WalkCache::new(&p.nested_walk_cache),
            nested_tlb,
            coalesced: None,
            asid: Asid::new(vpid, 0),
            pcids: vec![0],
        });
    }

    /// A reference of the walker to an entry: through the data caches, at its real address.
    #[inline]
    pub fn reference(
        &mut self,
        core: usize,
        dimension: Dimension,
        (level, on_behalf): (u8, u8),
        at: Hpa,
        entry: u64,
    ) {
        let served = self.caches.data(core, at);
        self.tally.references.0[dimension as usize][served as usize] += 1;
        self.tally.cycles += self.latency[served as usize];
        if let Some(steps) = &mut self.steps {
            steps.push(Step { dimension, level, on_behalf, at, entry, served });
        }
    }

    /// Begins a walk: its costs are counted from zero.
    #[inline]
    pub fn begin_walk(&mut self) {
        self.tally = Tally { references: References::default(), cycles: self.walk_cache_cycles };
    }

    /// Ends a walk: adds its costs to the counters.
    #[inline]
    pub fn end_walk(&mut self, counters: &mut Counters, faulted: bool) {
        counters.walk_cycles += self.tally.cycles;
        if faulted {
            counters.faulted_walks += 1;
            counters.faulted_references.add(&self.tally.references);
        } else {
            counters.walks += 1;
            counters.references.add(&self.tally.references);
        }
    }

    /// MOV to CR3 as the hardware does it: selects the PCID; without the keep bit, drops all
    /// non-global linear and combined mappings of that PCID (SDM vol. 3A, "Operations that Invalidate
    /// TLBs and Paging-Structure Caches"). Guest-physical mappings stay.
    pub fn load_cr3(&mut self, vcpu: VcpuId, pcid: u16, keep: bool) {
        let core = &mut self.cores[usize::from(vcpu.0)];
        core.asid = core.asid.with_pcid(pcid);
        if !core.pcids.contains(&pcid) {
            core.pcids.push(pcid);
        }
        if !keep {
            core.invalidate_asid(core.asid);
        }
    }

    /// INVLPG or INVPCID as the hardware does it. Guest-physical mappings stay.
    pub fn invalidate(&mut self, vcpu: VcpuId, what: Invalidation) {
        let core = &mut self.cores[usize::from(vcpu.0)];
        let vpid = core.asid.vpid();
        match what {
            Invalidation::Page(gva) => core.invalidate_page(gva, core.asid, true),
            Invalidation::PageInPcid(gva, pcid) => {
                core.invalidate_page(gva, core.asid.with_pcid(pcid), false);
            }
            Invalidation::Pcid(pcid) => core.invalidate_asid(core.asid.with_pcid(pcid)),
            Invalidation::AllButGlobal => core.invalidate_vpid(vpid, false),
            Invalidation::All => core.invalidate_vpid(vpid, true),
        }
    }

    /// Drops all linear and combined mappings on all cores: what a VMM asks for (INVVPID) after it
    /// removed shadow entries.
    pub fn invalidate_everywhere(&mut self) {
        for core in &mut self.cores {
            let vpid = core.asid.vpid();
            core.invalidate_vpid(vpid, true);
        }
    }

    /// Drops all linear and combined mappings of the VM on one vCPU's core, whatever their PCID, global
    /// ones included: INVVPID, single-context.
    pub fn invalidate_vcpu(&mut self, vcpu: VcpuId) {
        let core = &mut self.cores[usize::from(vcpu.0)];
        core.invalidate_vpid(core.asid.vpid(), true);
    }

    /// Drops the mappings of one linear address on one vCPU's core, whatever their PCID: INVVPID,
    /// individual-address. Unlike INVLPG it leaves partial walks of other addresses alone (SDM vol. 3C,
    /// "Operations that Invalidate Cached Mappings").
    pub fn invalidate_address(&mut self, vcpu: VcpuId, mode: &Mode, gva: Gva) {
        let core = &mut self.cores[usize::from(vcpu.0)];
        for i in 0..core.pcids.len() {
            let asid = core.asid.with_pcid(core.pcids[i]);
            core.invalidate_page_in_tlbs(gva, asid, true);
            core.walk_cache.invalidate_address(mode, gva, asid);
        }
    }

    /// Drops all guest-physical and combined mappings on all cores: what a VMM asks for (INVEPT) after
    /// it removed nested entries. Linear mappings share the tag of combined ones and go, too.
    pub fn invalidate_nested_everywhere(&mut self) {
        self.invalidate_everywhere();
        self.forget_nested();
    }

    /// Drops all partial walks of linear addresses on all cores; complete translations stay.
    pub fn forget_partial_walks(&mut self) {
        for core in &mut self.cores {
            let vpid = core.asid.vpid();
            core.walk_cache.invalidate_vpid(vpid);
        }
    }

    /// Drops all guest-physical mappings on all cores.
    pub fn forget_nested(&mut self) {
        for core in &mut self.cores {
            let vpid = core.asid.vpid();
            core.nested_walk_cache.invalidate_vpid(vpid);
            if let Some(nested) = &mut core.nested_tlb {
                nested.invalidate_vpid(vpid, true);
            }
        }
    }

    /// What an EPT violation removes by itself on its vCPU: the guest-physical mappings used for the
    /// address and the combined mappings of the linear address, if the guest's tables are walked
    /// (SDM vol. 3C, "Operations that Invalidate Cached Mappings").
    pub fn after_ept_violation(
        &mut self,
        vcpu: VcpuId,
        (nested, gpa): (&Mode, Gpa),
        linear: Option<(&Mode, Gva)>,
    ) {
        let core = &mut self.cores[usize::from(vcpu.0)];
        let host = Asid::new(core.asid.vpid(), 0);
        if let Some(nested) = &mut core.nested_tlb {
            nested.invalidate_page(gpa, host, false);
        }
        core.nested_walk_cache.invalidate_address(nested, gpa, host);
        if let Some((mode, gva)) = linear {
            core.drop_translation(mode, gva);
        }
    }
}

impl Core {
    /// One page of one address space, every part of it if it is a large one, and all walk-cache
    /// entries of the address space, as INVLPG does.
    pub fn invalidate_page(&mut self, gva: Gva, asid: Asid, global: bool) {
        self.invalidate_page_in_tlbs(gva, asid, global);
        self.walk_cache.invalidate_asid(asid);
    }
    /// As [`Core::invalidate_page`], without the walk cache.
    fn invalidate_page_in_tlbs(&mut self, gva: Gva, asid: Asid, global: bool) {
        self.l1d.invalidate_page(gva, asid, global);
        self.l1i.invalidate_page(gva, asid, global);
        self.l2.invalidate_page(gva, asid, global);
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.invalidate_page(gva, asid, global);
        }
    }
    /// The entries for one address from the TLBs only: what an access that could not use them, or a
    /// fault, removes. Other parts of a large page stay.
    pub fn drop_page(&mut self, gva: Gva, asid: Asid, global: bool) {
        self.l1d.remove(gva, asid, global);
        self.l1i.remove(gva, asid, global);
        self.l2.remove(gva, asid, global);
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.remove(gva, asid, global);
        }
    }
    /// The translation and the partial walks of one address in the current address space: what a
    /// fault removes.
    pub fn drop_translation(&mut self, mode: &Mode, gva: Gva) {
        self.drop_page(gva, self.asid, false);
        self.walk_cache.invalidate_address(mode, gva, self.asid);
    }
    fn invalidate_asid(&mut self, asid: Asid) {
        self.l1d.invalidate_asid(asid);
        self.l1i.invalidate_asid(asid);
        self.l2.invalidate_asid(asid);
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.invalidate_asid(asid);
        }
        self.walk_cache.invalidate_asid(asid);
    }
    fn invalidate_vpid(&mut self, vpid: u8, global: bool) {
        self.l1d.invalidate_vpid(vpid, global);
        self.l1i.invalidate_vpid(vpid, global);
        self.l2.invalidate_vpid(vpid, global);
        if let Some(coalesced) = &mut self.coalesced {
            coalesced.invalidate_vpid(vpid, global);
        }
        self.walk_cache.invalidate_vpid(vpid);
    }
    /// Looks the combined walk cache up for the current address space.
    #[inline]
    pub fn partial_walk(&mut self, mode: &Mode, gva: Gva) -> Option<(u8, Pointer)> {
        self.walk_cache.look_up(mode, gva, self.asid)
    }
}
