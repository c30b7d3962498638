//! Set-up by the program: memory is populated by the process's own stores.

use nestwalk_types::{
    Batch, Control, Gva, ProcessId, Room, Run, RunFlags, Source, SourceError, SourceInfo, VcpuId,
};

/// Turns every [`Control::Populate`] into what a program's initialisation does to page tables and
/// TLBs: one store to each base page of the range, in order, by the process itself.
///
/// The difference to populating in the kernel matters to a hypervisor: a shadow table is filled when
/// the *process* touches a page, so memory that only its kernel has touched is still cold.
pub struct FirstTouch<S> {
    inner: S,
    /// Which process each vCPU runs.
    running: Vec<ProcessId>,
    taken: Batch,
}

impl<S: Source> FirstTouch<S> {
    /// Populates `inner`'s memory by stores.
    pub fn new(inner: S) -> Self {
        Self { inner, running: Vec::new(), taken: Batch::default() }
    }

    fn switch(&mut self, vcpu: VcpuId, process: ProcessId) {
        let index = usize::from(vcpu.0);
        if index >= self.running.len() {
            self.running.resize(index + 1, ProcessId(0));
        }
        self.running[index] = process;
    }

    /// The stores that populate a range, on a vCPU that runs the process; a switch if none does.
    fn touch(&mut self, batch: &mut Batch, process: ProcessId, start: Gva, bytes: u64) {
        let running = self.running.iter().position(|p| *p == process);
        let vcpu = VcpuId(running.unwrap_or(0) as u8);
        if running.is_none() {
            self.switch(vcpu, process);
            let at = batch.runs.len() as u32;
            batch.controls.push((at, Control::Switch { vcpu, process }));
        }
        batch.runs.extend((0..bytes).step_by(4096).map(|offset| Run {
            gva: Gva::new(start.value() + offset),
            pc: Gva::new(0),
            lines: 1,
            count: 1,
            instructions: 1,
            vcpu,
            flags: RunFlags::STORE,
        }));
    }
}

impl<S: Source> Source for FirstTouch<S> {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }
    fn tally(&self) -> Vec<(&'static str, u64)> {
        self.inner.tally()
    }
    fn position(&self) -> u64 {
        self.inner.position()
    }
    fn set_room(&mut self, room: Room) -> bool {
        self.inner.set_room(room)
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let more = self.inner.next_batch(batch)?;
        if !batch.controls.iter().any(|c| matches!(c.1, Control::Populate { .. })) {
            for index in 0..batch.controls.len() {
                if let Control::Switch { vcpu, process } = batch.controls[index].1 {
                    self.switch(vcpu, process);
                }
            }
            return Ok(more);
        }
        let mut taken = std::mem::take(&mut self.taken);
        std::mem::swap(batch, &mut taken);
        let mut done = 0;
        for (position, control) in taken.controls.drain(..) {
            batch.runs.extend_from_slice(&taken.runs[done..position as usize]);
            done = position as usize;
            match control {
                Control::Populate { process, start, bytes } => {
                    self.touch(batch, process, start, bytes);
                }
                other => {
                    if let Control::Switch { vcpu, process } = other {
                        self.switch(vcpu, process);
                    }
                    batch.controls.push((batch.runs.len() as u32, other));
                }
            }
        }
        batch.runs.extend_from_slice(&taken.runs[done..]);
        taken.runs.clear();
        self.taken = taken;
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PatternSpec;

    #[test]
    fn every_page_is_stored_to_once_before_the_region_of_interest() {
        let spec = PatternSpec {
            footprint: 40 << 20,
            accesses: 1000,
            populate: Some(true),
            ..PatternSpec::default()
        };
        let mut source = FirstTouch::new(spec.source());
        let mut batch = Batch::default();
        let (mut pages, mut counted, mut begun) = (Vec::new(), 0, false);
        while source.next_batch(&mut batch).unwrap() {
            for (controls, runs) in batch.segments() {
                begun |= controls.iter().any(|c| c.1 == Control::RegionOfInterest);
                assert!(!controls.iter().any(|c| matches!(c.1, Control::Populate { .. })));
                for run in &batch.runs[runs] {
                    if begun {
                        counted += u64::from(run.count);
                    } else {
                        assert!(run.flags.is_store());
                        pages.push(run.gva.value());
                    }
                }
            }
        }
        let base = PatternSpec::BASE.value();
        assert_eq!(pages, (0..40 << 8).map(|i| base + (i << 12)).collect::<Vec<_>>());
        assert_eq!(counted, 1000);
    }
}
