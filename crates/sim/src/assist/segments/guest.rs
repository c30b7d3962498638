//! Guest segments: the registers of each core, which the guest's kernel loads.

use super::config::{Check, SegmentConfig};
use crate::hardware::walk::segments::{Found, SegmentUnit, count_escape};
use crate::measure::counters::Counters;
use crate::scheme::{MachineError, SegmentInfo};
use nestwalk_types::{Gpa, GuestSegment, Gva, VcpuId};

/// The guest segments of all cores.
pub struct GuestSegments {
    cores: Vec<SegmentUnit<Gva, Gpa>>,
    check: Check,
    largest: SegmentInfo,
}

impl GuestSegments {
    /// All off.
    ///
    /// # Errors
    /// A filter that cannot be.
    pub fn new(config: &SegmentConfig, cores: usize) -> Result<Self, String> {
        let unit = |_| SegmentUnit::new(config.filter, config.filter_seed);
        let cores = (0..cores).map(unit).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        Ok(Self { cores, check: config.check, largest: SegmentInfo::default() })
    }

    /// The guest's kernel loads the registers of a core.
    ///
    /// # Errors
    /// A segment that cannot be.
    pub fn load(
        &mut self,
        counters: &mut Counters,
        vcpu: VcpuId,
        segment: Option<&GuestSegment>,
    ) -> Result<(), MachineError> {
        counters.guest_segment_loads += 1;
        let unit = &mut self.cores[usize::from(vcpu.0)];
        let Some(s) = segment else {
            unit.turn_off();
            return Ok(());
        };
        unit.load((s.base, s.bytes, s.target), &s.escaped).map_err(|source| {
            MachineError::Segment { machine: format!("the guest on vCPU {}", vcpu.0), source }
        })?;
        if s.bytes > self.largest.bytes {
            self.largest = SegmentInfo::of(unit);
        }
        Ok(())
    }

    /// Where addresses are checked.
    #[inline]
    pub const fn check(&self) -> Check {
        self.check
    }
    /// The segment of a core.
    #[inline]
    pub fn unit(&self, core: usize) -> &SegmentUnit<Gva, Gpa> {
        &self.cores[core]
    }
    /// The segment of a core, for tests.
    pub fn unit_mut(&mut self, core: usize) -> &mut SegmentUnit<Gva, Gpa> {
        &mut self.cores[core]
    }

    /// The check of an address, counted.
    #[inline]
    pub fn look(&self, counters: &mut Counters, core: usize, gva: Gva) -> Found<Gpa> {
        counters.guest_segment_checks += 1;
        let found = self.cores[core].look(gva);
        count_escape(counters, &found);
        found
    }

    /// The largest segment that was loaded so far.
    pub const fn info(&self) -> SegmentInfo {
        self.largest
    }
}
