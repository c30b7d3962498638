//! The translation hardware of one machine: cores with their TLBs and walk caches, and the caches.

pub mod core;
pub mod exchange;
pub mod prefetch;
mod processor;
pub mod tlbs;
mod waiting;
pub mod walk;
pub mod world;

use self::core::PcidLevels;
use crate::measure::counters::{Counters, Dimension, References};
use crate::measure::walk_map::WalkMap;
use nestwalk_hw::blocks::Blocks;
use nestwalk_hw::cache::{NodeLayout, Reference};
use nestwalk_hw::{Asid, Caches, Coalesced, EntryCache, Profile, ServedBy, Tlb, WalkCache};
use nestwalk_tables::Mode;
use nestwalk_types::{Gpa, Gva, Hpa, Invalidation, PageSize, Run, VcpuId};
pub use processor::Processor;
use waiting::WALK;
pub use waiting::{count_program, program_references};

/// The VPID of the one VM of a machine; 0 is the host's own.
pub const GUEST_VPID: u8 = 1;

/// Translation structures of one core; each vCPU has its own core.
pub struct Core {
    /// First-level data TLB.
    pub l1d: Tlb,
    /// First-level instruction TLB.
    pub l1i: Tlb,
    /// Second-level TLB; of data alone if there is one of instructions.
    pub l2: Tlb,
    /// Second-level TLB of instructions, if they have their own.
    pub l2i: Option<Box<Tlb>>,
    /// Paging-structure caches of linear or combined mappings.
    pub walk_cache: WalkCache,
    /// Paging-structure caches of nested tables.
    pub nested_walk_cache: WalkCache,
    /// Entries of tables by where they lie, if the processor caches them so.
    pub entry_cache: Option<Box<EntryCache>>,
    /// Guest-physical translations.
    pub nested_tlb: Option<Tlb>,
    /// TLBs whose entries cover several base pages, in place of the three above, for schemes that have
    /// them.
    pub coalesced: Option<Box<Coalesced>>,
    /// Translations in lines of the second-level data cache, for schemes that have them.
    pub blocks: Option<Box<Blocks>>,
    /// Tag of the current address space: with PCID 0 on a processor without PCIDs.
    pub asid: Asid,
    /// PCIDs that were loaded so far, each once.
    pub(crate) loaded: Vec<u16>,
    /// The PCID that was loaded, whatever the processor makes of it.
    pub pcid: u16,
    /// PCIDs that the TLB levels hold.
    pub(crate) pcids: PcidLevels,
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

/// Who sees the references of walks.
#[derive(Clone, Debug, Default)]
pub enum Watcher {
    /// Nobody.
    #[default]
    Nobody,
    /// Each is kept, for one walk.
    Steps(Vec<Step>),
    /// They are counted by what they read.
    Map(Box<WalkMap>),
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
    pub(crate) caches: Caches,
    /// Cycles of a reference by where it is served.
    pub latency: [u64; ServedBy::COUNT],
    /// Cycles to look the walk caches up.
    pub walk_cache_cycles: u64,
    /// Cycles to look the nested TLB up.
    pub nested_tlb_cycles: u64,
    /// Cores have an [`EntryCache`].
    caches_entries: bool,
    /// Look-ups and hits of it that are not counted yet.
    entry_lookups: u64,
    entry_hits: u64,
    /// Four base pages in order share a TLB entry: walkers look beside the leaf entry.
    pub shares_entries: bool,
    /// Costs of the walk under way.
    pub tally: Tally,
    /// Who sees references of walks.
    pub watcher: Watcher,
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
            caches_entries: profile.entry_cache.is_some(),
            entry_lookups: 0,
            entry_hits: 0,
            shares_entries: [&profile.l1d_tlb, &profile.l1i_tlb, &profile.l2_tlb, &profile.l2i_tlb]
                .into_iter()
                .flatten()
                .any(|array| array.page_sizes().any(|s| s == PageSize::SIZE_16K)),
            tally: Tally::default(),
            watcher: Watcher::Nobody,
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
                ..Default::default()
            }])
        });
        self.cores.push(Core {
            l1d: Tlb::new(&p.l1d_tlb),
            l1i: Tlb::new(&p.l1i_tlb),
            l2: Tlb::new(&p.l2_tlb),
            l2i: (!p.l2i_tlb.is_empty()).then(|| Box::new(Tlb::new(&p.l2i_tlb))),
            walk_cache: WalkCache::new(&p.walk_cache),
            nested_walk_cache: WalkCache::new(&p.nested_walk_cache),
            entry_cache: p.entry_cache.as_ref().map(|e| Box::new(EntryCache::new(e))),
            nested_tlb,
            coalesced: None,
            blocks: None,
            asid: Asid::new(vpid, 0),
            loaded: vec![0],
            pcid: 0,
            pcids: PcidLevels::new(&p.pcid, Asid::new(vpid, 0)),
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
        if self.caches_entries
            && let Some(cache) = &mut self.cores[core].entry_cache
            && cache.holds(level)
        {
            self.entry_lookups += 1;
            if cache.access(at) {
                self.entry_hits += 1;
                return;
            }
        }
        if self.caches.is_deferring() {
            return self.caches.defer(Reference::data(core, WALK + dimension as usize, at.value()));
        }
        let served = self.caches.data(core, at);
        self.tally.references.0[dimension as usize][served as usize] += 1;
        self.tally.cycles += self.latency[served as usize];
        if !matches!(self.watcher, Watcher::Nobody) {
            self.tell(Step { dimension, level, on_behalf, at, entry, served });
        }
    }

    #[cold]
    #[inline(never)]
    fn tell(&mut self, step: Step) {
        match &mut self.watcher {
            Watcher::Nobody => {}
            Watcher::Steps(steps) => steps.push(step),
            Watcher::Map(map) => {
                map.count(step.dimension, (step.level, step.on_behalf), step.served);
            }
        }
    }

    /// The walk is one that is shown: it begins from cold, whatever there is.
    #[inline]
    pub const fn is_shown(&self) -> bool {
        matches!(self.watcher, Watcher::Steps(_))
    }

    /// Empties the data caches, and returns them as they were.
    pub fn take_caches(&mut self) -> Caches {
        let cold = Caches::new(&self.profile.caches, self.cores.len());
        let cold = cold.with_nodes_of(&self.caches, self.profile.caches.llc.geometry());
        std::mem::replace(&mut self.caches, cold)
    }

    /// The machine has these nodes; its data caches are empty.
    pub fn set_nodes(&mut self, layout: NodeLayout) {
        let cold = Caches::new(&self.profile.caches, self.cores.len());
        self.caches = cold.with_nodes(layout, self.profile.caches.llc.geometry());
    }

    /// The region of interest begins: what was counted before is forgotten.
    pub fn region_begins(&mut self) {
        if let Watcher::Map(map) = &mut self.watcher {
            **map = WalkMap::default();
        }
    }

    /// Begins a walk: its costs are counted from zero.
    #[inline]
    pub fn begin_walk(&mut self) {
        self.caches.walk_begins();
        self.tally = Tally { references: References::default(), cycles: self.walk_cache_cycles };
    }

    /// Ends a walk: adds its costs to the counters.
    #[inline(always)]
    pub fn end_walk(&mut self, counters: &mut Counters, faulted: bool) {
        if let Some(far) = self.caches.walk_ends() {
            self.tally.cycles += far.cycles;
            counters.remote_walk_references += far.references;
            counters.remote_walk_cycles += far.cycles;
        }
        counters.walk_cycles += self.tally.cycles;
        if self.caches_entries {
            counters.entry_cache_lookups += std::mem::take(&mut self.entry_lookups);
            counters.entry_cache_hits += std::mem::take(&mut self.entry_hits);
        }
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
    /// TLBs and Paging-Structure Caches"). Guest-physical mappings stay. A processor without PCIDs takes
    /// no notice of PCID and keep bit, which a kernel there would not use, and drops all that is not
    /// global.
    pub fn load_cr3(&mut self, vcpu: VcpuId, pcid: u16, keep: bool) {
        let core = &mut self.cores[usize::from(vcpu.0)];
        if !core.loaded.contains(&pcid) {
            core.loaded.push(pcid);
        }
        let supported = core.pcids.supported();
        core.pcid = pcid;
        core.asid = core.tag(pcid);
        if !keep || !supported {
            core.invalidate_asid(core.asid);
        }
        core.make_room_for_pcid();
    }

    /// INVLPG or INVPCID as the hardware does it. Guest-physical mappings stay.
    pub fn invalidate(&mut self, vcpu: VcpuId, what: Invalidation) {
        let core = &mut self.cores[usize::from(vcpu.0)];
        let vpid = core.asid.vpid();
        match what {
            Invalidation::Page(gva) => core.invalidate_page(gva, core.asid, true),
            Invalidation::PageInPcid(gva, pcid) => {
                core.invalidate_page(gva, core.tag(pcid), false);
            }
            Invalidation::Pcid(pcid) => core.invalidate_asid(core.tag(pcid)),
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
        for i in 0..core.loaded.len() {
            let asid = core.tag(core.loaded[i]);
            core.invalidate_page_in_tlbs(gva, asid, true);
            core.forget_partial_walk(mode, gva, asid);
        }
        core.forget_entries();
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
            core.forget_partial_walks(vpid);
        }
    }

    /// Drops all guest-physical mappings on all cores.
    pub fn forget_nested(&mut self) {
        for core in &mut self.cores {
            let vpid = core.asid.vpid();
            core.nested_walk_cache.invalidate_vpid(vpid);
            core.forget_entries();
            if let Some(nested) = &mut core.nested_tlb {
                nested.invalidate_vpid(vpid, true);
            }
            if let Some(blocks) = &mut core.blocks {
                blocks.invalidate_nested();
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
        if let Some(blocks) = &mut core.blocks {
            blocks.remove_nested(gpa, host);
        }
        core.nested_walk_cache.invalidate_address(nested, gpa, host);
        if let Some((mode, gva)) = linear {
            core.drop_translation(mode, gva);
        }
    }
}
