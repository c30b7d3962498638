//! `rmm`: nested paging with redundant memory mappings (RMM; Karakostas et al., ISCA 2015). Beside
//! page tables the OS keeps a table of ranges for each process, and hardware a range TLB beside the
//! second-level TLB: a range that covers a page gives the first level its entry by an addition.
//!
//! If both miss, an ordinary walk serves the access, and the range table is walked in the background
//! for the range TLB. In a VM the guest has a range table for each address space and the VMM one for
//! guest memory; a range TLB entry is the intersection of a range of each.

use super::{Definition, Facts};
use crate::assist::ranges::{
    Base, Node, RangeTable, Runs, Scope, SpaceId, Touched, Unit, background, machine,
    permissions_of,
};
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::machine::DynMachine;
use crate::scheme::MachineConfig;
use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineError, Platform, Processor};
use nestwalk_contiguity::{MappedRun, RunSet};
use nestwalk_hw::{HPA_LIMIT, Range, RangeTlb, Translation};
use nestwalk_types::ByNumber;
use nestwalk_types::{Address, Hpa, PageSize};

const NAME: &str = "rmm";
const NATIVE_NAME: &str = "native-rmm";

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: NAME,
    summary: "nested paging with a range TLB and range tables in both dimensions (RMM)",
    virtualized: true,
    facts: Facts { own_structures: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The same on bare metal.
pub const NATIVE: Definition = Definition {
    name: NATIVE_NAME,
    summary: "bare metal with a range TLB and range tables (RMM)",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

const PAGES: [(&str, bool); 2] = [("page", true), ("4k", false)];

static OPTIONS: OptionTable<RmmConfig> = OptionTable::new(&[
    OptionRow {
        name: "entries",
        values: "N",
        meaning: "entries of the range TLB of each core (32)",
        set: |c, value| whole(value, 1, 1 << 12).map(|n| c.entries = n as usize),
        get: |c| c.entries.to_string(),
    },
    OptionRow {
        name: "min",
        values: "PAGES",
        meaning: "shorter runs get no entry in a range table (8)",
        set: |c, value| whole(value, 1, 1 << 40).map(|n| c.min = n),
        get: |c| c.min.to_string(),
    },
    OptionRow {
        name: "l1",
        values: "page|4k",
        meaning: "the first level gets a page as large as the walked one, or 4 KiB",
        set: |c, value| one_of(value, &PAGES).map(|large| c.large = large),
        get: |c| word_of(&c.large, &PAGES),
    },
]);

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let unit = Rmm::new(&request)?;
    machine(request, unit)
}

/// How RMM is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RmmConfig {
    /// Ranges in each range TLB. The paper's are 32.
    pub entries: usize,
    /// Pages of the shortest run that is a range. Not published; chosen: the pages of one line of page
    /// table entries. An entry for less would push longer ranges out of 32 entries for no more than
    /// what a few entries of the second level do.
    pub min: u64,
    /// The first level gets pages of the size that the filling walk found, where the range has them;
    /// otherwise 4 KiB.
    pub large: bool,
}

impl Default for RmmConfig {
    fn default() -> Self {
        Self { entries: 32, min: 8, large: true }
    }
}

/// Range TLBs of all cores and the range tables behind them.
pub struct Rmm {
    config: RmmConfig,
    tlbs: Vec<RangeTlb>,
    /// By address space.
    guest: ByNumber<RangeTable>,
    vmm: RangeTable,
    /// Bare metal: where the next node goes, and nodes given back. The stream's kernel has decided about
    /// its memory without them.
    next: Node,
    free: Vec<Node>,
    /// Lines of the background walk under way.
    lines: Vec<u64>,
}

/// Where a guest has its range tables: at the end of its memory.
const NODES: u64 = u64::MAX;
/// Where bare metal has them: above all memory that can be.
const ABOVE: Node = HPA_LIMIT / 2;

impl Rmm {
    /// Nothing in the range TLBs, no range tables.
    ///
    /// # Errors
    /// What is set cannot be.
    pub fn new(build: &MachineConfig) -> Result<Self, MachineError> {
        let config = build.options(&OPTIONS)?;
        Ok(Self {
            config,
            tlbs: vec![RangeTlb::new(config.entries); build.vcpus],
            guest: ByNumber::new(),
            vmm: RangeTable::new(),
            next: ABOVE,
            free: Vec::new(),
            lines: Vec::new(),
        })
    }

    /// The range TLB of a core, for tests of hardware that goes wrong.
    pub fn tlb_mut(&mut self, core: usize) -> &mut RangeTlb {
        &mut self.tlbs[core]
    }

    /// Brings a range table in step with the runs, for pages from a number on.
    fn keep_in_step(
        &mut self,
        platform: &mut Platform,
        runs: Option<&RunSet>,
        space: Option<SpaceId>,
        (first, pages): (u64, u64),
    ) -> Result<(), MachineError> {
        let mut nodes = Nodes { platform, next: &mut self.next, free: &mut self.free };
        let table = match space {
            Some(space) => self.guest.get_or_insert(space.number(), RangeTable::default),
            None => &mut self.vmm,
        };
        let long = |run: &MappedRun| run.pages >= self.config.min;
        // Only where the pages begin, within and right behind them can a range begin or end to be one;
        // the run that ends before them may have become long enough, or too short.
        let end = first.saturating_add(pages);
        let mut wanted: Vec<u64> = Vec::new();
        let mut at = first.saturating_sub(1);
        while let Some(run) = runs.and_then(|r| r.next_at_or_after(at)).filter(|r| r.from <= end) {
            wanted.extend(long(&run).then_some(run.from));
            at = run.end();
        }
        let from = runs.and_then(|r| r.find(first.saturating_sub(1))).map_or(first, |r| r.from);
        let mut stale = Vec::new();
        let mut at = from.min(first);
        while let Some(key) = table.at_or_after(at).filter(|key| *key <= end) {
            if wanted.binary_search(&key).is_err() {
                stale.push(key);
            }
            at = key + 1;
        }
        let mut updates = stale.len() as u64;
        for key in stale {
            table.remove(key, |node| nodes.give_back(node));
        }
        for key in wanted {
            // Of a range that was there, and ends or ended in the pages, the limit has changed.
            let new = table.insert(key, &mut || nodes.take())?;
            updates += u64::from(new || key < first);
        }
        nodes.platform.cpu.counters.contiguity_updates += updates;
        Ok(())
    }

    /// The background walk for a page: a range of each dimension that covers it, if both have one.
    fn walk_ranges(
        &mut self,
        runs: &Runs,
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
    ) {
        let (core, page) = (request.core(), request.gva.page_number());
        let Some(space) = runs.space(core) else { return };
        let (Some((guest, host)), Some(run)) = (runs.lengths(space, page), runs.both(space, page))
        else {
            return;
        };
        // The range bits of the page's entries say whether there is a range to be found.
        if guest.min(host) < self.config.min {
            return;
        }
        let Some(table) = self.guest.get(space.number()) else { return };
        cpu.counters.range_walks += 1;
        let vmm = runs.host.is_some().then_some(&self.vmm);
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        // In two dimensions as page walks: each node of the guest's table is looked for in the VMM's
        // first, and so is the page at the end.
        let mut node = u64::MAX;
        table.walk(page, |at| {
            if at >> 12 != node
                && let Some(vmm) = vmm
            {
                vmm.walk(NODES, |at| lines.push(at));
            }
            node = at >> 12;
            lines.push(at);
        });
        if let Some(vmm) = vmm {
            let gfn = runs.guest.find(space, page).map_or(0, |run| run.frame(page));
            vmm.walk(gfn, |at| lines.push(at));
        }
        let Processor { hardware, counters, .. } = cpu;
        lines.iter().for_each(|at| background(hardware, counters, core, Hpa::new(*at)));
        self.lines = lines;
        let range = Range {
            base: run.from,
            limit: run.end(),
            offset: run.offset(),
            permissions: permissions_of(run),
            dirty: found.is_dirty(),
            page: if self.config.large { found.page_size() } else { PageSize::SIZE_4K },
        };
        self.tlbs[core].fill(hardware.cores[core].asid, range);
    }
}

/// Where nodes of range tables come from.
struct Nodes<'a> {
    platform: &'a mut Platform,
    next: &'a mut Node,
    free: &'a mut Vec<Node>,
}

impl Nodes<'_> {
    fn take(&mut self) -> Result<Node, MachineError> {
        let none = MachineError::NoTableFrame { machine: String::new(), what: "range table" };
        if let Some(host) = &mut self.platform.host {
            return host.alloc_table().map(Address::value).ok_or(none);
        }
        Ok(self.free.pop().unwrap_or_else(|| {
            *self.next += PageSize::SIZE_4K.bytes();
            *self.next - PageSize::SIZE_4K.bytes()
        }))
    }
    fn give_back(&mut self, node: Node) {
        match &mut self.platform.host {
            Some(host) => host.free_table(Hpa::new(node)),
            None => self.free.push(node),
        }
    }
}

impl Unit for Rmm {
    #[inline]
    fn parallel_to_l2(
        &mut self,
        runs: &Runs,
        cpu: &mut Processor,
        request: &Request,
    ) -> Option<Translation> {
        let tlb = &mut self.tlbs[request.core()];
        cpu.counters.range_checks += tlb.len() as u64;
        let asid = cpu.hardware.cores[request.core()].asid;
        let page = request.gva.page_number();
        let range = tlb.look_up(page, asid)?;
        let size = range.entry_size(page);
        let frame = Hpa::new(range.frame(page) << 12).align_down(size);
        let found = Translation::new(frame, size, range.permissions, range.dirty, false)
            .splinter_of(runs.guest.largest_page());
        let needs = Translation::needs(request.write, request.fetch, request.user);
        if !found.serves(needs) {
            return None;
        }
        cpu.counters.range_hits += 1;
        Some(found)
    }

    fn walk<B: Base, W: WalkWatch>(
        &mut self,
        base: &mut B,
        runs: &Runs,
        (cpu, request): (&mut Processor, &Request),
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        // A range that could not serve the access, or that the access faults in spite of, goes, as
        // entries of other TLBs do.
        let (asid, page) = (cpu.hardware.cores[request.core()].asid, request.gva.page_number());
        self.tlbs[request.core()].remove(asid, page, page + 1);
        let found = base.walk(cpu, request, watch)?;
        self.walk_ranges(runs, cpu, request, found);
        Ok(found)
    }

    fn invalidate(&mut self, _platform: &mut Platform, core: usize, scope: Scope) {
        match scope {
            Scope::Pages(asid, first, end) => self.tlbs[core].remove(asid, first, end),
            Scope::Space(asid) => self.tlbs[core].remove_asid(asid),
            Scope::Everything => self.tlbs[core].flush(),
        }
    }

    fn changed(
        &mut self,
        platform: &mut Platform,
        runs: &Runs,
        guest: &[Touched],
        host: &[(u64, u64)],
    ) -> Result<(), MachineError> {
        for &(space, first, pages) in guest {
            self.keep_in_step(platform, runs.guest.runs(space), Some(space), (first, pages))?;
            // The OS gives the table of a process that is no more back.
            if runs.guest.runs(space).is_none()
                && let Some(mut table) = self.guest.remove(space.number())
            {
                let Self { next, free, .. } = self;
                let mut nodes = Nodes { platform, next, free };
                table.clear(|node| nodes.give_back(node));
            }
        }
        for &place in host {
            self.keep_in_step(platform, runs.host.as_ref(), None, place)?;
        }
        Ok(())
    }

    fn metadata_bytes(&self) -> u64 {
        self.vmm.bytes() + self.guest.values().map(RangeTable::bytes).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn what_is_set_is_read_back() {
        let all = "entries=8/min=512/l1=4k";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("entries=32/min=8").unwrap(), "");
        for (text, words) in
            [("entries=0", "from 1 to 4096"), ("mini=3", "no option `mini`"), ("l1=2m", "page, 4k")]
        {
            let message = OPTIONS.parse(text).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
