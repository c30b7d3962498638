//! The VMM segment over a VM's life: made at the start or by compaction, grown, shrunk, loaded.

use super::vm::{LEAST_BYTES, SegmentedVm};
use crate::measure::counters::ExitReason;
use crate::scheme::{MachineError, Platform};
use nestwalk_mm::{SegmentChange, SegmentRequest, Slot};
use nestwalk_types::{Address, Gpa};

impl SegmentedVm {
    pub(super) fn switch_on(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let Some(host) = platform.host.as_mut().filter(|_| self.vmm.is_some()) else {
            return Ok(());
        };
        host.poison(&self.config.bad_at)?;
        let largest = host.slots().iter().copied().max_by_key(|s| s.bytes);
        let Some(Slot { gpa, bytes, .. }) = largest else { return Ok(()) };
        if self.config.at_start {
            let bad = self.config.bad;
            self.create(platform, gpa, bytes & !0xfff, bad)?;
        } else if self.config.compact > 0
            && host.begin_compaction(gpa, bytes & !0xfff, self.config.escapes)?
        {
            self.due = self.every;
        }
        Ok(())
    }

    /// Makes host memory contiguous behind a range of guest memory, as far as free frames allow,
    /// and loads the VMM segment, in place of the one there is. Pages in use are moved, and
    /// counted. Returns whether there is a segment now.
    ///
    /// # Errors
    /// A range that is not whole pages of one memory slot; host memory is exhausted.
    pub fn create_vmm_segment(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<bool, MachineError> {
        self.create(platform, start, bytes, 0)
    }

    pub(super) fn create(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
        bad: u64,
    ) -> Result<bool, MachineError> {
        let Some(host) = &mut platform.host else { return Ok(false) };
        let request = SegmentRequest {
            start,
            bytes,
            least_bytes: LEAST_BYTES,
            escapes: self.config.escapes + self.config.bad_at.len(),
            bad,
            seed: self.config.bad_seed,
        };
        let made = host.create_segment(&request);
        // Whatever came of it, the registers follow what the host has.
        let range = host.segment().map_or((start, bytes), |s| (s.gpa, s.bytes));
        self.changed(platform, range, made.clone().ok().flatten().unwrap_or_default())?;
        Ok(made?.is_some())
    }

    /// The VMM begins to make host memory contiguous behind a range. Returns whether it can.
    ///
    /// # Errors
    /// A range that is not whole pages of one memory slot.
    pub fn begin_compaction(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<bool, MachineError> {
        let Some(host) = &mut platform.host else { return Ok(false) };
        let begun = host.begin_compaction(start, bytes, self.config.escapes);
        self.reload(platform)?;
        Ok(begun?)
    }

    /// The VMM moves so many pages. When the last is in place the segment is loaded, and the
    /// machine
    /// runs in another mode. Each vCPU is called out of the guest when pages behind it have moved.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn compact(&mut self, platform: &mut Platform, pages: u64) -> Result<(), MachineError> {
        let Some(host) = &mut platform.host else { return Ok(()) };
        let Some(step) = host.compact(pages)? else {
            self.due = u64::MAX;
            return self.reload(platform);
        };
        let counters = &mut platform.cpu.counters;
        counters.pages_moved += step.others + step.guest.moved_pages;
        counters.host_pages_cleared += step.guest.cleared_pages;
        if step.guest.moved_pages > 0 {
            let (start, bytes) = step.range;
            self.nested.unmap_range(platform, start, bytes);
            platform.cpu.hardware.invalidate_nested_everywhere();
            platform.moved.push((start, bytes));
            let vcpus = platform.cpu.hardware.cores.len() as u64;
            platform.cpu.counters.exits[ExitReason::HostMigration as usize] += vcpus;
        }
        if step.done {
            platform.cpu.counters.mode_switches += 1;
            self.due = u64::MAX;
            self.reload(platform)?;
        }
        Ok(())
    }

    /// The VMM segment grows at its end, to `bytes` or as far as the frames behind it are free and
    /// its memory slot reaches.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn grow_vmm_segment(
        &mut self,
        platform: &mut Platform,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let Some(host) = &mut platform.host else { return Ok(()) };
        let Some(before) = host.segment() else { return Ok(()) };
        let grown = host.grow_segment(bytes);
        let after = host.segment().map_or(before.bytes, |s| s.bytes);
        let range = (before.gpa.offset_by(before.bytes), after - before.bytes);
        self.changed(platform, range, grown.clone().unwrap_or_default())?;
        grown?;
        Ok(())
    }

    /// The VMM segment shrinks at its end, to `bytes`; 0 takes it away. Pages behind it are paged:
    /// the nested tables map them when they are used.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn shrink_vmm_segment(
        &mut self,
        platform: &mut Platform,
        bytes: u64,
    ) -> Result<(), MachineError> {
        if let Some(host) = &mut platform.host {
            host.shrink_segment(bytes);
        }
        self.reload(platform)
    }

    /// The host has put contiguous memory behind a range: nested entries and TLBs forget what was
    /// moved.
    pub(super) fn changed(
        &mut self,
        platform: &mut Platform,
        (start, bytes): (Gpa, u64),
        change: SegmentChange,
    ) -> Result<(), MachineError> {
        platform.cpu.counters.pages_moved += change.moved_pages;
        platform.cpu.counters.host_pages_cleared += change.cleared_pages;
        if change.moved_pages > 0 {
            self.nested.unmap_range(platform, start, bytes);
            platform.cpu.hardware.invalidate_nested_everywhere();
            platform.moved.push((start, bytes));
        }
        self.reload(platform)
    }

    /// Loads registers and filter with what the host's record says, and has the nested tables map
    /// every page that the filter reports, false positives included: the walker finds them there.
    pub(super) fn reload(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let (Some(unit), Some(host)) = (&mut self.vmm, &platform.host) else {
            return Ok(());
        };
        platform.cpu.counters.vmm_segment_loads += 1;
        let Some(segment) = host.segment() else {
            unit.turn_off();
            return Ok(());
        };
        let registers = (segment.gpa, segment.bytes, segment.target);
        unit.load(registers, &segment.escaped)
            .map_err(|source| MachineError::Segment { machine: String::new(), source })?;
        for gfn in unit.filter().reported(unit.registers().pages()) {
            let gpa = Gpa::new(gfn << 12);
            let there = platform.host.as_ref().is_some_and(|h| h.look_up(gpa).is_some());
            if there && !self.nested.maps(gpa) {
                self.nested.map(platform, gpa)?;
            }
        }
        Ok(())
    }
}
