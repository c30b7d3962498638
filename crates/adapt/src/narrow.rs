//! 64-bit programs in a 32-bit guest.

use nestwalk_types::{Batch, Control, Gva, Room, Source, SourceError, SourceInfo};

/// Where a 64-bit process has its static data and heap, and where its mappings and stack.
const LOW: std::ops::Range<u64> = 0x5555_5540_0000..0x5556_5540_0000;
const HIGH: std::ops::Range<u64> = 0x7fff_4000_0000..0x8000_0000_0000;
/// What is taken off: data then begins at 0x0955_8000, above where a 32-bit program's text lies
/// (0x0804_8000), and the stack ends at 0xc000_0000, as with the i386 kernel's 3 GiB for processes.
/// Multiples of 4 MiB, so that every large page stays as aligned as it was.
const LOW_SHIFT: u64 = 0x5555_4c00_0000;
const HIGH_SHIFT: u64 = 0x7fff_4000_0000;

/// Moves the memory of a built-in workload, laid out as in a 64-bit process, to where a 32-bit
/// process has it. Distances within data and heap, and within mappings and stack, stay.
pub struct Narrow<S> {
    inner: S,
    /// End of what lies low, and start of what lies high, so far.
    low_end: u64,
    high_start: u64,
}

/// Where an address goes, if it has a place. Text stays where a 32-bit program has it.
fn place(gva: Gva) -> Option<Gva> {
    match gva.value() {
        at if at < LOW.start - LOW_SHIFT => Some(gva),
        at if LOW.contains(&at) => Some(Gva::new(at - LOW_SHIFT)).filter(|g| g.value() < 3 << 30),
        at if HIGH.contains(&at) => Some(Gva::new(at - HIGH_SHIFT)),
        _ => None,
    }
}

impl<S: Source> Narrow<S> {
    /// Moves what `inner` does.
    pub const fn new(inner: S) -> Self {
        Self { inner, low_end: 0, high_start: 1 << 32 }
    }

    fn moved(&self, gva: Gva) -> Result<Gva, SourceError> {
        place(gva).ok_or_else(|| self.no_place(gva.value()))
    }

    fn no_place(&self, at: u64) -> SourceError {
        SourceError {
            source: self.inner.info().name,
            message: format!(
                "address {at:#x} has no place in the 3 GiB of a 32-bit process; give a smaller \
                 --footprint, or --guest-paging 4-level"
            ),
        }
    }

    fn map(&mut self, start: Gva, bytes: u64) -> Result<Gva, SourceError> {
        let to = self.moved(start)?;
        if HIGH.contains(&start.value()) {
            self.high_start = self.high_start.min(to.value());
        } else {
            self.low_end = self.low_end.max(to.value() + bytes);
        }
        if self.low_end > self.high_start { Err(self.no_place(start.value())) } else { Ok(to) }
    }

    fn control(&mut self, control: &mut Control) -> Result<(), SourceError> {
        match control {
            Control::Map { start, bytes, .. } => *start = self.map(*start, *bytes)?,
            Control::Populate { start, .. }
            | Control::Unmap { start, .. }
            | Control::Protect { start, .. } => *start = self.moved(*start)?,
            _ => {}
        }
        Ok(())
    }

    fn batch(&mut self, batch: &mut Batch) -> Result<(), SourceError> {
        for (_, control) in &mut batch.controls {
            self.control(control)?;
        }
        for run in &mut batch.runs {
            run.gva = self.moved(run.gva)?;
            // Only compared, never translated: what has no place may keep its address.
            run.pc = place(run.pc).unwrap_or(run.pc);
        }
        Ok(())
    }
}

impl<S: Source> Source for Narrow<S> {
    fn info(&self) -> SourceInfo {
        let mut info = self.inner.info();
        info.approximations.push("a 64-bit program, moved to 32-bit addresses as it is".into());
        info
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
        let moved = self.batch(batch);
        if let Err(error) = moved {
            *batch = Batch::default();
            return Err(error);
        }
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_workloads::{Populate, WORKLOADS, WorkloadSpec};

    fn end(footprint: u64, workload: &str) -> Result<u64, SourceError> {
        let spec =
            WorkloadSpec { footprint, accesses: Some(2000), seed: 1, populate: Populate::No };
        let mut source = Narrow::new(nestwalk_workloads::open(workload, &spec).unwrap());
        let mut batch = Batch::default();
        let mut highest = 0;
        while source.next_batch(&mut batch)? {
            highest = batch.runs.iter().map(|r| r.gva.value()).fold(highest, u64::max);
        }
        Ok(highest)
    }

    #[test]
    fn every_workload_has_its_place_below_3_gib() {
        for workload in WORKLOADS {
            for footprint in [1 << 20, 64 << 20, 1 << 30] {
                let highest = end(footprint, workload.name).unwrap();
                assert!(highest < 3 << 30, "{} reaches {highest:#x}", workload.name);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for workload in WORKLOADS {
            let error = end(16 << 30, workload.name).unwrap_err().to_string();
            assert!(error.contains("32-bit process"), "{}: {error}", workload.name);
        }
    }
}
