//! `next-page`: nested paging whose walker prefetches the translation of the next page.
//!
//! On a miss of the second-level TLB the walker translates the page of the access, then the page after
//! it, and puts that into a small buffer beside the TLBs (sequential prefetching; Kandiraju and
//! Sivasubramaniam, "Going the Distance for TLB Prefetching", ISCA 2002). An access that misses the TLBs
//! and is found in the buffer takes the entry to the TLBs and has the page after it prefetched in turn.
//!
//! Nothing waits for a prefetch: its references go through the caches and are counted in the background,
//! and no cycles are. If it faults it is dropped. The hypervisor is that of nested paging.

use nestwalk_lab::scheme::{
    Address, Asid, Definition, DynMachine, Event, Facts, Fault, Gpa, Gva, Handled, Machine,
    MachineConfig, MachineError, Nested, Nobody, OptionRow, OptionTable, Platform, Processor,
    Report, Request, Run, Scheme, ServedBy, Software, Translation, VmmKind, WalkWatch, whole,
};
use std::collections::VecDeque;

/// What the scheme is known by: its name in names of machines, and how a machine is made.
pub static NEXT_PAGE: Definition = Definition {
    name: "next-page",
    summary: "nested paging whose walker prefetches the translation of the next page",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// How it is set up: `next-page/buffer=32`.
struct Config {
    buffer: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { buffer: 16 }
    }
}

static OPTIONS: OptionTable<Config> = OptionTable::new(&[OptionRow {
    name: "buffer",
    values: "N",
    meaning: "entries of each core's prefetch buffer (16)",
    set: |config, value| whole(value, 1, 1024).map(|n| config.buffer = n as usize),
    get: |config| config.buffer.to_string(),
}]);

fn build(mut build: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let Config { buffer } = build.options(&OPTIONS)?;
    let buffers = (0..build.vcpus).map(|_| Buffer { room: buffer, entries: VecDeque::new() });
    let scheme = NextPage { buffers: buffers.collect(), nested: Nested::new(&mut build)? };
    Ok(Box::new(Machine::new(scheme, build)?))
}

/// A translation that was prefetched: of which address space, and its first address.
struct Entry {
    asid: Asid,
    first: Gva,
    found: Translation,
}

/// The prefetch buffer of one core: fully associative, first in, first out.
struct Buffer {
    room: usize,
    entries: VecDeque<Entry>,
}

impl Buffer {
    fn position(&self, gva: Gva, asid: Asid) -> Option<usize> {
        let covers = |e: &Entry| e.asid == asid && gva.align_down(e.found.size()) == e.first;
        self.entries.iter().position(covers)
    }

    fn put(&mut self, entry: Entry) {
        if self.entries.len() == self.room {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }
}

/// The scheme: nested paging, and a prefetch buffer for each core.
struct NextPage {
    nested: Nested,
    buffers: Vec<Buffer>,
}

impl NextPage {
    /// Translates the page after the one that `found` translates, unless that is known already.
    fn prefetch_next(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        let core = request.core();
        let first = request.gva.align_down(found.size());
        let next = first.value().checked_add(found.size().bytes());
        let bits = cpu.world.mode.address_bits();
        // The two halves of the address space are no neighbours.
        let Some(next) = next.filter(|n| (n ^ first.value()) >> (bits - 1) == 0) else { return };
        let (next, asid) = (Gva::new(next), cpu.hardware.cores[core].asid);
        let l2 = cpu.hardware.cores[core].second_level(request.fetch);
        if l2.holds(next, asid) || self.buffers[core].position(next, asid).is_some() {
            return;
        }
        let ahead = Request { gva: next, write: false, ..*request };
        if let Ok(found) = self.walk_in_background(cpu, &ahead) {
            let first = next.align_down(found.size());
            self.buffers[core].put(Entry { asid, first, found });
        }
    }

    /// Walks as for an access, but nothing waits for it: of what it counts only the references stay.
    fn walk_in_background(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
    ) -> Result<Translation, Fault> {
        let counted = std::mem::take(&mut cpu.counters);
        let under_way = cpu.hardware.tally;
        cpu.hardware.begin_walk();
        let walked = self.nested.walk(cpu, request, &mut Nobody::default());
        cpu.hardware.end_walk(&mut cpu.counters, walked.is_err());
        cpu.hardware.tally = under_way;
        let walk = std::mem::replace(&mut cpu.counters, counted);
        for place in ServedBy::ALL {
            let served = [&walk.references, &walk.faulted_references].map(|r| r.served_by(place));
            cpu.counters.background[place as usize] += served.iter().sum::<u64>();
        }
        walked
    }

    /// Every core forgets what it has prefetched.
    fn forget_everywhere(&mut self) {
        self.buffers.iter_mut().for_each(|buffer| buffer.entries.clear());
    }
}

/// The hardware half. It has the processor in reach, and nothing of the host.
impl Scheme for NextPage {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let found = self.nested.walk(cpu, request, watch)?;
        self.prefetch_next(cpu, request, found);
        Ok(found)
    }

    /// Both levels of TLBs have missed: what the buffer serves is no walk and no `l2_tlb_misses`. The
    /// engine counts it among `assist_hits`.
    fn on_l2_miss(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        let core = &mut cpu.hardware.cores[request.core()];
        let buffer = &mut self.buffers[request.core()];
        let place = buffer.position(request.gva, core.asid)?;
        let Entry { found, .. } = buffer.entries.remove(place)?;
        // The first store to a page sets its dirty bit: that takes a walk.
        if !found.serves(Translation::needs(request.write, request.fetch, request.user)) {
            return None;
        }
        // The engine puts it into the first level.
        core.fill_second_level(request.gva, request.fetch, found);
        self.prefetch_next(cpu, request, found);
        Some(found)
    }

    /// Of the simulator's own speed: no result depends on it.
    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        self.nested.prefetch(cpu, runs, gpas);
    }
}

/// The software half: the hypervisor is that of nested paging, and the buffers owe what TLBs owe.
impl Software for NextPage {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        let flushes = platform.cpu.counters.remote_flushes;
        let handled = self.nested.handle_fault(platform, request, fault)?;
        // What the hypervisor flushes (INVEPT) is flushed from the buffers, too.
        if platform.cpu.counters.remote_flushes != flushes {
            self.forget_everywhere();
        }
        Ok(handled)
    }

    /// Every event that voids translations reaches the buffer; one of a single page empties all of it.
    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::HostChanged { .. } => self.forget_everywhere(),
            Event::Invalidate { vcpu, .. } => {
                self.buffers[usize::from(vcpu.0)].entries.clear();
            }
            Event::LoadCr3 { vcpu, keep, .. } => {
                let core = usize::from(vcpu.0);
                if !keep || !platform.cpu.hardware.cores[core].has_pcids() {
                    self.buffers[core].entries.clear();
                }
            }
            _ => {}
        }
        // Whoever wraps a scheme gives it every event.
        self.nested.on(platform, event)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        self.nested.report(platform, out);
    }
}
