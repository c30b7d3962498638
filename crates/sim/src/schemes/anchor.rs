//! `anchor`: nested paging with hybrid TLB coalescing (Park et al., ISCA 2017). Every d-th page table
//! entry is an anchor, in which the OS keeps how many pages from there on lie in frames one after the
//! other, d at most. The second-level TLB holds anchors beside pages: after a regular entry the
//! anchor of the address is looked up, and serves if its contiguity reaches that far.
//!
//! The OS chooses d for each address space by the contiguity that it finds, and again at intervals. A
//! change rewrites the anchors and flushes the TLBs.

use super::{Definition, Facts};
use crate::assist::ranges::{
    Base, Runs, Scope, SpaceId, Touched, Unit, background, machine, permissions_of,
};
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::machine::DynMachine;
use crate::scheme::MachineConfig;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineError, Platform, Processor};
use nestwalk_contiguity::{
    MAX_DISTANCE, MIN_DISTANCE, PageSizes, RunSet, anchors, best_anchors, compose,
};
use nestwalk_hw::{Anchor, Asid, Translation, fitting};
use nestwalk_tables::look_up;
use nestwalk_types::ByNumber;
use nestwalk_types::{Address, Gva, Hpa, PageSize};
use std::borrow::Cow;

const NAME: &str = "anchor";
const NATIVE_NAME: &str = "native-anchor";

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: NAME,
    summary: "nested paging with anchor entries in the second-level TLB (hybrid coalescing)",
    virtualized: true,
    // A change of the distance.
    facts: Facts { flushes_by_itself: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The same on bare metal.
pub const NATIVE: Definition = Definition {
    name: NATIVE_NAME,
    summary: "bare metal with anchor entries in the second-level TLB (hybrid coalescing)",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

static OPTIONS: OptionTable<AnchorConfig> = OptionTable::new(&[
    OptionRow {
        name: "distance",
        values: "auto|PAGES",
        meaning: "pages from anchor to anchor, a power of two; auto unless given",
        set: |c, value| distance(value).map(|distance| c.distance = distance),
        get: |c| c.distance.map_or_else(|| "auto".into(), |pages| pages.to_string()),
    },
    OptionRow {
        name: "interval",
        values: "N",
        meaning: "instructions after which the OS looks at distances again (10000000)",
        set: |c, value| whole(value, 1000, 1 << 50).map(|n| c.interval = n),
        get: |c| c.interval.to_string(),
    },
    OptionRow {
        name: "gain",
        values: "PERCENT",
        meaning: "entries that another distance must save to be taken (10)",
        set: |c, value| whole(value, 0, 99).map(|n| c.gain = n),
        get: |c| c.gain.to_string(),
    },
]);

fn distance(value: &str) -> Result<Option<u64>, String> {
    if value == "auto" {
        return Ok(None);
    }
    let pages =
        whole(value, MIN_DISTANCE, MAX_DISTANCE).ok().filter(|pages| pages.is_power_of_two());
    let what = || format!("neither auto nor a power of two from {MIN_DISTANCE} to {MAX_DISTANCE}");
    pages.map(Some).ok_or_else(what)
}

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let unit = Anchors::new(&request)?;
    machine(request, unit)
}

/// How anchors are set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnchorConfig {
    /// Pages from anchor to anchor; `None` is the OS's choice.
    pub distance: Option<u64>,
    /// Instructions between two looks at the distances. Assumed; long against a flush.
    pub interval: u64,
    /// A distance is changed for so many percent fewer entries. Assumed: hysteresis.
    pub gain: u64,
}

impl Default for AnchorConfig {
    fn default() -> Self {
        Self { distance: None, interval: 10_000_000, gain: 10 }
    }
}

/// Distance of an address space at which the OS has not looked yet: the pages of a line of entries.
const AT_FIRST: u64 = 8;
/// Blocks up to which anchors are removed one by one.
const FEW: u64 = 8;

/// Distances, and whose anchors the second-level TLBs hold.
pub struct Anchors {
    config: AnchorConfig,
    /// Base-2 logarithms of the distances of address spaces that have another than the first.
    shifts: ByNumber<u32>,
    /// By core: to which address space a tag belongs.
    owners: Vec<ByNumber<SpaceId>>,
    first: u32,
    due: u64,
}

impl Anchors {
    /// No anchors.
    ///
    /// # Errors
    /// What is set cannot be.
    pub fn new(build: &MachineConfig) -> Result<Self, MachineError> {
        let config = build.options(&OPTIONS)?;
        Ok(Self {
            config,
            shifts: ByNumber::new(),
            owners: vec![ByNumber::new(); build.vcpus],
            first: config.distance.unwrap_or(AT_FIRST).trailing_zeros(),
            due: if config.distance.is_some() { u64::MAX } else { config.interval },
        })
    }

    #[inline]
    fn shift(&self, space: SpaceId) -> u32 {
        self.shifts.get(space.number()).copied().unwrap_or(self.first)
    }

    /// The anchor that a walk for the page of `gva` finds: if it is in the same run, that covers it.
    fn anchor_of(
        &self,
        runs: &Runs,
        request: &Request,
        found: Translation,
    ) -> Option<(SpaceId, u32, u64, Anchor)> {
        let space = runs.space(request.core())?;
        let shift = self.shift(space);
        let page = request.gva.page_number();
        let at = page >> shift << shift;
        let run = runs.both(space, page).filter(|run| run.from <= at)?;
        let contiguity = (run.end() - at).min(1 << shift);
        let anchor = Anchor {
            frame: Hpa::new(run.frame(at) << 12),
            contiguity: contiguity as u32,
            permissions: permissions_of(run),
            dirty: found.is_dirty(),
            page: found.size(),
        };
        // A large page's own entry covers as much or more.
        (contiguity > found.size().base_pages()).then_some((space, shift, at, anchor))
    }

    /// The walker reads the anchor's entry for its contiguity, in the background.
    fn read_anchor(runs: &Runs, cpu: &mut Processor, request: &Request, at: u64) {
        let Processor { world, hardware, counters, .. } = cpu;
        let root = world.root(request.vcpu);
        let Ok(leaf) = look_up(&world.guest, world.mode, root, Gva::new(at << 12)) else { return };
        let gfn = leaf.at.page_number();
        let frame = match &runs.host {
            Some(host) => host.find(gfn).map(|run| run.frame(gfn)),
            None => Some(gfn),
        };
        if let Some(frame) = frame {
            let entry = Hpa::new(frame << 12 | leaf.at.offset_in(PageSize::SIZE_4K));
            background(hardware, counters, request.core(), entry);
        }
    }

    /// Chooses distances by what is mapped now.
    fn choose(&mut self, platform: &mut Platform, runs: &Runs) {
        if self.config.distance.is_some() {
            return;
        }
        let huge = runs.guest.largest_page() > PageSize::SIZE_4K;
        let sizes = if huge { PageSizes::Huge2M } else { PageSizes::Base };
        let mut changed = false;
        for (space, _, guest) in runs.guest.spaces().filter(|s| !s.2.is_empty()) {
            let set: Cow<RunSet> = match &runs.host {
                Some(host) => Cow::Owned(compose(guest, host)),
                None => Cow::Borrowed(guest),
            };
            let now = anchors(&set, 1 << self.shift(space), sizes).entries();
            let (distance, best) = best_anchors(&set, sizes);
            if best.entries() * 100 >= now * (100 - self.config.gain) {
                continue;
            }
            self.shifts.insert(space.number(), distance.trailing_zeros());
            platform.cpu.counters.anchor_changes += 1;
            platform.cpu.counters.contiguity_updates += best.entries();
            changed = true;
        }
        if changed {
            platform.cpu.hardware.invalidate_everywhere();
        }
    }

    fn serve(&self, runs: &Runs, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        let shift = self.shift(runs.space(request.core())?);
        let core = &mut cpu.hardware.cores[request.core()];
        let anchor = core.l2.look_up_anchor(request.gva, shift, core.asid)?;
        let distance = request.gva.page_number() & ((1 << shift) - 1);
        if distance >= u64::from(anchor.contiguity) {
            return None;
        }
        let page = request.gva.page_number();
        let first = page - distance;
        let end = first + u64::from(anchor.contiguity);
        let offset = first.wrapping_sub(anchor.frame.page_number());
        let size = fitting(anchor.page, page, (first, end), offset);
        let frame = anchor.frame.offset_by(distance << 12).align_down(size);
        let found = Translation::new(frame, size, anchor.permissions, anchor.dirty, false);
        Some(found.splinter_of(runs.guest.largest_page()))
    }
}

impl Unit for Anchors {
    fn on_l2_miss(
        &mut self,
        runs: &Runs,
        cpu: &mut Processor,
        request: &Request,
    ) -> Option<Translation> {
        cpu.counters.anchor_lookups += 1;
        let found = self.serve(runs, cpu, request)?;
        let needs = Translation::needs(request.write, request.fetch, request.user);
        if !found.serves(needs) {
            return None;
        }
        cpu.counters.anchor_hits += 1;
        Some(found)
    }

    fn walk<B: Base, W: WalkWatch>(
        &mut self,
        base: &mut B,
        runs: &Runs,
        (cpu, request): (&mut Processor, &Request),
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        // An anchor that covers the page but could not serve, or that the access faults in spite of,
        // goes, as regular entries do.
        if self.serve(runs, cpu, request).is_some()
            && let Some(space) = runs.space(request.core())
        {
            let core = &mut cpu.hardware.cores[request.core()];
            core.l2.remove_anchor(request.gva, self.shift(space), core.asid);
        }
        base.walk(cpu, request, watch)
    }

    fn fill_l2(&mut self, runs: &Runs, cpu: &mut Processor, request: &Request, found: Translation) {
        let Some((space, shift, at, anchor)) = self.anchor_of(runs, request, found) else {
            let core = &mut cpu.hardware.cores[request.core()];
            return core.fill_second_level(request.gva, request.fetch, found);
        };
        let core = &mut cpu.hardware.cores[request.core()];
        core.l2.fill_anchor(request.gva, shift, core.asid, anchor);
        self.owners[request.core()].insert(core.asid.pcid().into(), space);
        cpu.counters.anchor_fills += 1;
        if at != request.gva.page_number() {
            Self::read_anchor(runs, cpu, request, at);
        }
    }

    fn invalidate(&mut self, platform: &mut Platform, core: usize, scope: Scope) {
        // Whole address spaces go with the regular entries, whose tags they share.
        let Scope::Pages(asid, first, end) = scope else { return };
        let l2 = &mut platform.cpu.hardware.cores[core].l2;
        let Some(space) = self.owners[core].get(asid.pcid().into()) else { return };
        let shift = self.shift(*space);
        if (end - first) >> shift > FEW {
            return l2.remove_anchors(first, end, shift, asid);
        }
        for block in first >> shift..=(end - 1) >> shift {
            l2.remove_anchor(Gva::new(block << shift << 12), shift, asid);
        }
    }

    /// A tag that goes to another address space without a flush takes its anchors with it: they have
    /// another distance.
    fn switched(&mut self, runs: &Runs, platform: &mut Platform, core: usize) {
        let asid: Asid = platform.cpu.hardware.cores[core].asid;
        if let Some(owner) = self.owners[core].get(asid.pcid().into())
            && Some(*owner) != runs.space(core)
        {
            platform.cpu.hardware.cores[core].l2.remove_anchors(0, u64::MAX, 0, asid);
            self.owners[core].remove(asid.pcid().into());
        }
    }

    fn changed(
        &mut self,
        platform: &mut Platform,
        _runs: &Runs,
        guest: &[Touched],
        host: &[(u64, u64)],
    ) -> Result<(), MachineError> {
        // Each block that has changed has one anchor; of the host's changes each is one at least.
        let blocks = |&(space, first, pages): &Touched| {
            let shift = self.shift(space);
            ((first + pages.max(1) - 1) >> shift) - (first >> shift) + 1
        };
        let written: u64 = guest.iter().map(blocks).sum();
        platform.cpu.counters.contiguity_updates += written + host.len() as u64;
        Ok(())
    }

    #[inline]
    fn next_timer(&self) -> u64 {
        self.due
    }

    fn timer(&mut self, platform: &mut Platform, runs: &Runs) -> Result<(), MachineError> {
        let passed = (platform.instructions - self.due) / self.config.interval + 1;
        self.due += passed * self.config.interval;
        self.choose(platform, runs);
        Ok(())
    }

    /// By then the OS has looked.
    fn region_begins(&mut self, platform: &mut Platform, runs: &Runs) {
        let counted = platform.cpu.counters.clone();
        self.choose(platform, runs);
        platform.cpu.counters = counted;
    }

    fn distance(&self, space: SpaceId) -> Option<u64> {
        Some(1 << self.shift(space))
    }
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn what_is_set_is_read_back() {
        let all = "distance=512/interval=5000/gain=0";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        let defaults = "distance=auto/interval=10000000/gain=10";
        assert_eq!(OPTIONS.normalize(defaults).unwrap(), "");
        for (text, words) in [
            ("distance=3", "power of two"),
            ("distance=131072", "65536"),
            ("interval=1", "from 1000"),
            ("far=2", "no option `far`"),
        ] {
            let message = OPTIONS.parse(text).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
