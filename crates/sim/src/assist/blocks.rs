//! TLB blocks over nested paging or bare metal (`victima`): who fills them, and who looks them up.

use super::coalescing::{LeafLine, combine, native_line};
use crate::hardware::walk::{
    Fault, HostDimension, NestedTables, Purpose, WalkWatch, Watch, translate_nested_watched,
    walk_1d, walk_2d,
};
use crate::hardware::{Hardware, Request};
use crate::hypervisor::bare_metal::Native;
use crate::hypervisor::nested::Nested;
use crate::measure::counters::Counters;
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_hw::blocks::{BLOCK_PAGES, BlockOf};
use nestwalk_hw::{Asid, Line, ServedBy, Translation};
use nestwalk_tables::{Handle, TableMemory, look_up};
use nestwalk_types::{Address, Gpa, Gva, Hpa, PageSize, Run};

/// How blocks are filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockConfig {
    /// Walks that a page has had at least.
    pub walks: u8,
    /// References to memory that these have had at least.
    pub cost: u8,
    /// Guest-physical addresses have blocks, too.
    pub nested: bool,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self { walks: 1, cost: 1, nested: true }
    }
}

/// Counters that a table of the predictor has.
const COUNTERS: usize = 1 << 20;

/// Counts walks and their references to memory by page.
struct Predictor {
    config: BlockConfig,
    /// Walks in the lowest 3 bits, references in the 4 above.
    counts: Box<[u8]>,
}

impl Predictor {
    fn new(config: BlockConfig) -> Self {
        Self { config, counts: vec![0; COUNTERS].into_boxed_slice() }
    }

    /// Counts a walk; whether the page is costly to translate.
    fn is_costly(&mut self, page: u64, space: u64, references: u64) -> bool {
        let hash = (page ^ space.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let count = &mut self.counts[(hash >> 44) as usize % COUNTERS];
        let walks = (*count & 7).saturating_add(1).min(7);
        let cost = u64::from(*count >> 3).saturating_add(references).min(15) as u8;
        *count = cost << 3 | walks;
        walks >= self.config.walks && cost >= self.config.cost
    }
}

/// The line of leaf entries that a walk ends with, and where it lies.
#[derive(Default)]
struct Seen {
    line: LeafLine,
    at: Option<u64>,
}

impl Seen {
    fn forget(&mut self) {
        self.line.forget();
        self.at = None;
    }
}

impl<A: Address> Watch<A> for Seen {
    #[inline]
    fn leaf(&mut self, memory: &TableMemory<A>, held: Handle, at: A, entry_bytes: u8) {
        self.line.leaf(memory, held, at, entry_bytes);
        self.at = Some(at.value());
    }
}

/// What a walk ends with in the host.
#[derive(Default)]
struct SeenInHost {
    leaf: Seen,
    page: Option<(Gpa, PageSize)>,
}

enum Base {
    Nested(Box<Nested>),
    Native(Native),
}

/// Nested paging or bare metal with TLB blocks behind the cores' TLBs.
pub struct Blocked {
    base: Base,
    predictor: Predictor,
    guest: Seen,
    host: SeenInHost,
    /// What a look-up of the host ends with that is not for the page of the access.
    other: Seen,
}

impl Blocked {
    /// Over nested paging if there is a host.
    ///
    /// # Errors
    /// Nested paging cannot be set up.
    pub fn new(config: BlockConfig, build: &mut MachineConfig) -> Result<Self, MachineError> {
        let base = match build.host {
            Some(_) => Base::Nested(Box::new(Nested::new(build)?)),
            None => Base::Native(Native::default()),
        };
        let (guest, other) = (Seen::default(), Seen::default());
        let host = SeenInHost::default();
        Ok(Self { base, predictor: Predictor::new(config), guest, host, other })
    }

    const fn software(&self) -> &dyn Software {
        match &self.base {
            Base::Nested(nested) => &**nested,
            Base::Native(native) => native,
        }
    }

    fn software_mut(&mut self) -> &mut dyn Software {
        match &mut self.base {
            Base::Nested(nested) => &mut **nested,
            Base::Native(native) => native,
        }
    }

    /// Where the walker has read the leaf entry of the guest.
    fn entry_at(&mut self) -> Option<Hpa> {
        let at = self.guest.at?;
        match &mut self.base {
            Base::Native(_) => Some(Hpa::new(at)),
            Base::Nested(nested) => {
                let NestedTables { mode, memory, root, .. } = nested.mmu.tables();
                let at = Gpa::new(at);
                let leaf = look_up(memory, mode, root, at).ok()?;
                Some(leaf.apply(at))
            }
        }
    }

    /// A walk has found this: a costly page goes into a block, with its neighbours.
    fn learn(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        let (core, gva) = (request.core(), request.gva);
        let Processor { hardware, counters, world } = cpu;
        let references = from_memory(hardware);
        let root = world.root(request.vcpu).page_number();
        let page = gva.value() >> found.page_size().shift();
        if !self.predictor.is_costly(page, root, references) {
            return;
        }
        let hpa = found.apply(gva);
        let line = match self.host.page {
            Some((gpa, size)) => {
                combine((gva, gpa, hpa), size, &self.guest.line, &self.host.leaf.line)
            }
            None => native_line(gva, hpa, &self.guest.line),
        };
        let entries = block_of(gva, found, &line);
        let asid = hardware.cores[core].asid;
        if fill(hardware, (core, asid), (gva, BlockOf::Linear), &entries) {
            counters.tlb_block_fills += 1;
            if let Some(at) = self.entry_at() {
                hardware.caches.drop_from_second_level(core, at);
            }
        }
    }
}

/// References of the walk under way that memory has served.
fn from_memory(hardware: &Hardware) -> u64 {
    hardware.tally.references.served_by(ServedBy::Memory)
}

/// The translations of a block: the page's own, and of base pages the neighbours'.
fn block_of<A: Address>(at: A, found: Translation, line: &Line) -> [Translation; BLOCK_PAGES] {
    let mut entries = [Translation::default(); BLOCK_PAGES];
    let found = match found.page_size() {
        PageSize::SIZE_4K => found.part(at, PageSize::SIZE_4K),
        _ => found.restored(),
    };
    let own = (at.value() >> found.size().shift()) as usize % BLOCK_PAGES;
    if found.size() == PageSize::SIZE_4K {
        for (i, entry) in entries.iter_mut().enumerate().filter(|e| line.known >> e.0 & 1 == 1) {
            *entry = found.step(line.frames[i].wrapping_sub(line.frames[own]));
        }
    }
    entries[own] = found;
    entries
}

/// Puts a block into a core's second-level cache. Whether it is new.
fn fill<A: Address>(
    hardware: &mut Hardware,
    (core, asid): (usize, Asid),
    (at, of): (A, BlockOf),
    entries: &[Translation; BLOCK_PAGES],
) -> bool {
    let Hardware { cores, caches, .. } = hardware;
    let Some(blocks) = &mut cores[core].blocks else { return false };
    blocks.fill(at, asid, of, entries, |line| caches.fill_second_level(core, line))
}

/// Looks for a block in a core's second-level cache.
fn find<A: Address>(
    hardware: &mut Hardware,
    (core, asid): (usize, Asid),
    (at, of): (A, BlockOf),
) -> Option<Translation> {
    let Hardware { cores, caches, .. } = hardware;
    let blocks = cores[core].blocks.as_mut()?;
    blocks.look_up(at, asid, of, |line| caches.use_second_level(core, line))
}

/// Nested tables with blocks behind the nested TLB.
struct BlockedHost<'a> {
    tables: NestedTables<'a>,
    predictor: &'a mut Predictor,
    seen: &'a mut SeenInHost,
    other: &'a mut Seen,
}

impl HostDimension for BlockedHost<'_> {
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        let host = Asid::new(hardware.cores[core].asid.vpid(), 0);
        let write = purpose.write || (purpose.on_behalf > 0 && self.tables.ad);
        let needs = Translation::needs(write, purpose.fetch, false);
        let nested_tlb = hardware.cores[core].nested_tlb.as_mut();
        let cycles = if nested_tlb.is_some() { hardware.nested_tlb_cycles } else { 0 };
        let mut found =
            nested_tlb.and_then(|tlb| tlb.look_up(gpa, host)).filter(|f| f.serves(needs));
        if found.is_some() {
            counters.nested_tlb_hits += 1;
            hardware.tally.cycles += cycles;
        } else if self.predictor.config.nested {
            found =
                find(hardware, (core, host), (gpa, BlockOf::Nested)).filter(|f| f.serves(needs));
            if let Some(found) = found {
                counters.nested_block_hits += 1;
                hardware.tally.cycles += cycles + hardware.latency[ServedBy::L2 as usize];
                if let Some(tlb) = &mut hardware.cores[core].nested_tlb {
                    tlb.fill(gpa, host, found);
                }
            }
        }
        let for_page = purpose.on_behalf == 0;
        let found = match found {
            Some(found) => found,
            None => {
                let seen = if for_page { &mut self.seen.leaf } else { &mut *self.other };
                seen.forget();
                let before = from_memory(hardware);
                let at = (gpa, purpose);
                let found =
                    translate_nested_watched(hardware, counters, &mut self.tables, core, at, seen)?;
                let references = from_memory(hardware) - before;
                let page = gpa.value() >> found.page_size().shift();
                if self.predictor.config.nested
                    && self.predictor.is_costly(page, u64::MAX, references)
                {
                    let line = native_line(Gva::new(gpa.value()), found.apply(gpa), &seen.line);
                    let entries = block_of(gpa, found, &line);
                    let filled = fill(hardware, (core, host), (gpa, BlockOf::Nested), &entries);
                    counters.tlb_block_fills += u64::from(filled);
                }
                found
            }
        };
        if for_page {
            self.seen.page = Some((gpa, found.size()));
        }
        Ok(found)
    }
}

impl Scheme for Blocked {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    // What caches hold decides what is translated by them.
    #[inline(always)]
    fn may_wait(&self) -> bool {
        false
    }

    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        _watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Self { base, predictor, guest, host, other } = self;
        guest.forget();
        host.leaf.forget();
        host.page = None;
        let Processor { world, hardware, counters } = cpu;
        let tables = &mut world.tables(request.vcpu);
        match base {
            Base::Native(_) => walk_1d(hardware, counters, tables, request, guest),
            Base::Nested(nested) => {
                let tables_of_host = nested.mmu.tables();
                let mut host = BlockedHost { tables: tables_of_host, predictor, seen: host, other };
                walk_2d(hardware, counters, tables, &mut host, request, guest)
            }
        }
    }

    fn on_l2_miss(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        let (core, gva) = (request.core(), request.gva);
        let hardware = &mut cpu.hardware;
        let asid = hardware.cores[core].asid;
        let found = find(hardware, (core, asid), (gva, BlockOf::Linear))?;
        if !found.serves(Translation::needs(request.write, request.fetch, request.user)) {
            hardware.cores[core].drop_page(gva, asid, true);
            return None;
        }
        cpu.counters.tlb_block_hits += 1;
        cpu.counters.assist_cycles += hardware.latency[ServedBy::L2 as usize];
        hardware.cores[core].fill_second_level(gva, request.fetch, found);
        Some(found)
    }

    fn fill_l2(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        let core = &mut cpu.hardware.cores[request.core()];
        core.fill_second_level(request.gva, request.fetch, found);
        self.learn(cpu, request, found);
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        match &mut self.base {
            Base::Nested(nested) => nested.prefetch(cpu, runs, gpas),
            Base::Native(native) => native.prefetch(cpu, runs, gpas),
        }
    }
}

impl Software for Blocked {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.software_mut().handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.software_mut().on(platform, event)
    }

    fn take_accessed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<bool, MachineError> {
        self.software_mut().take_accessed(platform, at, size)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        self.software().report(platform, out);
    }
}
