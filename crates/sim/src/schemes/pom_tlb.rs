//! `pom-tlb`: nested paging with a very large TLB in memory, a part of the address space that the data
//! caches hold as any other (Ryoo et al., "Rethinking TLB Designs in Virtualized Environments: A Very
//! Large Part-of-Memory TLB", ISCA 2017). A miss of a core's second level reads a line of it, which is
//! a set of four entries; what it holds is gVA to hPA, so that a hit is one reference in place of a
//! walk. `native-pom-tlb` is the same on bare metal.
//!
//! - *Sizes.* Half of the memory is for pages of 4 KiB, half for larger ones. A predictor of 512 bits
//!   for each core, by the 2 MiB around the page, says where to look first; the other half is read
//!   after a miss.
//! - *What is left out.* The paper's predictor of lines that had better bypass the caches, and
//!   contention of the channel that the TLB's memory has for itself.
//! - *Tags and invalidations* are those of `shared-tlb`. The paper's TLB is shared by VMs; here there is
//!   one.

use super::shared_tlb::SharedTlb;
use super::{Definition, Facts};
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::hypervisor::bare_metal::Native;
use crate::hypervisor::nested::Nested;
use crate::machine::{DynMachine, Machine};
use crate::scheme::options::{OptionRow, OptionTable, power_of_two};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_hw::{HPA_LIMIT, Translation};
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "pom-tlb",
    summary: "nested paging with a TLB of 16 MiB in memory behind the second level (POM-TLB)",
    virtualized: true,
    facts: Facts { own_structures: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The same on bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-pom-tlb",
    summary: "bare metal with a TLB of 16 MiB in memory behind the second level (POM-TLB)",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

/// Bytes of an entry, and of a set: a line.
const ENTRY: u64 = 16;
const LINE: u64 = 64;
const PREDICTOR: usize = 512;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Config {
    mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { mib: 16 }
    }
}

static OPTIONS: OptionTable<Config> = OptionTable::new(&[OptionRow {
    name: "mib",
    values: "N",
    meaning: "MiB of the TLB, 16 bytes an entry, a power of two (16)",
    set: |c, value| power_of_two(value, 1, 256).map(|n| c.mib = n),
    get: |c| c.mib.to_string(),
}]);

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    let bytes = request.options(&OPTIONS)?.mib << 20;
    let (vcpus, entries) = (request.vcpus, (bytes / ENTRY) as u32);
    if let Some(host) = &mut request.host {
        let order = (bytes / 4096).trailing_zeros();
        let what = "TLB in memory, in one piece";
        let no_frame = MachineError::NoTableFrame { machine: String::new(), what };
        let base = host.alloc_tables(order).ok_or(no_frame)?;
        let shared = SharedTlb::of(Nested::new(&mut request)?, (vcpus, true), (entries, 4, 0)).renewing();
        return Ok(Box::new(Machine::new(PomTlb::new(shared, base, bytes, vcpus), request)?));
    }
    let shared = SharedTlb::of(Native::default(), (vcpus, false), (entries, 4, 0)).renewing();
    let pom = PomTlb::new(shared, Hpa::new(HPA_LIMIT / 2), bytes, vcpus);
    Ok(Box::new(Machine::new(pom, request)?))
}

/// A scheme with the TLB in memory behind its cores' own.
pub struct PomTlb<B> {
    shared: SharedTlb<B>,
    base: Hpa,
    /// Sets of each half.
    sets: u64,
    /// By core: whether the page of an entry is a large one.
    predictors: Vec<[bool; PREDICTOR]>,
}

impl<B> PomTlb<B> {
    fn new(shared: SharedTlb<B>, base: Hpa, bytes: u64, cores: usize) -> Self {
        let predictors = vec![[false; PREDICTOR]; cores];
        Self { shared, base, sets: bytes / 2 / LINE, predictors }
    }

    /// Reads the set where a page would be.
    fn read(&self, cpu: &mut Processor, request: &Request, large: bool) {
        let shift = if large { 21 } else { 12 };
        // Address spaces are spread by their tags.
        let set = (request.gva.value() >> shift) ^ self.shared.spread(request.core());
        let half = if large { self.sets } else { 0 };
        let at = self.base.offset_by((half + set % self.sets) * LINE);
        let served = cpu.hardware.caches.data(request.core(), at);
        cpu.counters.assist_cycles += cpu.hardware.latency[served as usize];
        cpu.counters.memory_tlb_reads += 1;
    }
}

impl<B: Scheme> Scheme for PomTlb<B> {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        self.shared.looks_up_first()
    }

    // The reference to a set is waited for before the next.
    #[inline(always)]
    fn may_wait(&self) -> bool {
        false
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.shared.walk(cpu, request, watch)
    }

    #[inline]
    fn on_l2_miss(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        let index = (request.gva.value() >> 21) as usize % PREDICTOR;
        let predicted = self.predictors[request.core()][index];
        self.read(cpu, request, predicted);
        let found = self.shared.on_l2_miss(cpu, request);
        let large = found.map_or(!predicted, |f| f.page_size() > PageSize::SIZE_4K);
        if large != predicted {
            self.read(cpu, request, large);
        }
        if found.is_some() {
            self.predictors[request.core()][index] = large;
        }
        found
    }

    fn fill_l2(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        let index = (request.gva.value() >> 21) as usize % PREDICTOR;
        self.predictors[request.core()][index] = found.page_size() > PageSize::SIZE_4K;
        self.shared.fill_l2(cpu, request, found);
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        self.shared.prefetch(cpu, runs, gpas);
    }
}

impl<B: Scheme> Software for PomTlb<B> {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.shared.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.shared.on(platform, event)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        self.shared.report(platform, out);
    }
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        assert_eq!(OPTIONS.normalize("mib=32").unwrap(), "mib=32");
        assert_eq!(OPTIONS.normalize("mib=16").unwrap(), "");
        assert!(OPTIONS.normalize("mib=12").unwrap_err().contains("power of two"));
    }
}
