//! `ds`: bare metal with a direct segment (Basu et al., ISCA 2013): a primary region of each
//! process is translated by an addition, everything else by one walk over its tables.

use super::{Definition, Facts};
use crate::assist::segments::{Check, DS, GuestSegments};
use crate::hardware::Request;
use crate::hardware::prefetch::read_sets;
use crate::hardware::walk::segments::{Found, covered};
use crate::hardware::walk::{Fault, WalkWatch, walk_1d};
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::Counters;
use crate::scheme::MachineConfig;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineError, PageTableBytes, Platform, Processor, Report, Scheme, SegmentInfo,
    SegmentState, Software,
};
use nestwalk_hw::Translation;
use nestwalk_types::{Gpa, Gva, Hpa, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "ds",
    summary: "bare metal with a direct segment for each process's primary region",
    virtualized: false,
    facts: Facts { primary_region: true, ..Facts::NONE },
    vmm: VmmKind::Other,
    options: &DS,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    Ok(Box::new(Machine::new(DirectSegment::new(&request)?, request)?))
}

/// The segments of all cores.
pub struct DirectSegment {
    segments: GuestSegments,
}

impl DirectSegment {
    /// All off.
    ///
    /// # Errors
    /// What is set cannot be.
    pub fn new(request: &MachineConfig) -> Result<Self, MachineError> {
        let config = request.options(&DS)?;
        let segments = GuestSegments::new(&config, request.vcpus);
        let machine = request.name.clone();
        let segments = segments.map_err(|reason| MachineError::Variant { machine, reason })?;
        Ok(Self { segments })
    }

    /// The registers, for tests of hardware that goes wrong.
    pub const fn segments_mut(&mut self) -> &mut GuestSegments {
        &mut self.segments
    }

    #[inline]
    fn look(&self, counters: &mut Counters, core: usize, gva: Gva) -> Option<Translation> {
        match self.segments.look(counters, core, gva) {
            // On bare metal a gPA is an hPA.
            Found::Inside(gpa) => Some(covered(Hpa::new(gpa.value()))),
            _ => None,
        }
    }
}

impl Scheme for DirectSegment {
    #[inline]
    fn looks_up_first(&self) -> bool {
        self.segments.check() == Check::L2
    }

    #[inline]
    fn instead_of_l1(&mut self, cpu: &mut Processor, run: &Run) -> Option<Translation> {
        if self.segments.check() == Check::L2 || run.flags.is_fetch() {
            return None;
        }
        let counters = &mut cpu.counters;
        let found = self.look(counters, usize::from(run.vcpu.0), run.gva);
        counters.guest_segment_checks += u64::from(run.count).saturating_sub(1);
        counters.segment_accesses += found.map_or(0, |_| u64::from(run.count));
        found
    }

    #[inline]
    fn parallel_to_l2(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        if self.segments.check() == Check::L1 || request.fetch {
            return None;
        }
        let found = self.look(&mut cpu.counters, request.core(), request.gva);
        cpu.counters.segment_hits += u64::from(found.is_some());
        found
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Processor { world, hardware, counters } = cpu;
        if !request.fetch
            && let Found::Inside(gpa) = self.segments.unit(request.core()).look(request.gva)
        {
            return Ok(covered(Hpa::new(gpa.value())));
        }
        walk_1d(hardware, counters, &mut world.tables(request.vcpu), request, watch.parts().0)
    }

    fn prefetch(&mut self, cpu: &Processor, _runs: &[Run], gpas: &[Gpa]) {
        read_sets(cpu.hardware.caches(), gpas.iter().map(|g| Hpa::new(g.value())));
    }
}

impl Software for DirectSegment {
    fn handle_fault(
        &mut self,
        _platform: &mut Platform,
        _request: &Request,
        _fault: Fault,
    ) -> Result<Handled, MachineError> {
        Ok(Handled::GuestFault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadSegment { vcpu, segment } => {
                self.segments.load(&mut platform.cpu.counters, vcpu, segment)
            }
            other => platform.bare_metal(other),
        }
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        let (guest, vmm) = (self.segments.info(), SegmentInfo::default());
        out.page_tables = PageTableBytes::of_guest(platform);
        out.segments = Some(SegmentState { guest, vmm, vmm_percent: 0.0 });
    }
}
