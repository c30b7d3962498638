//! 64-bit programs in a guest with fewer address bits.

use nestwalk_types::{Batch, Control, Gva, Room, Source, SourceError, SourceInfo};
use std::ops::Range;

/// Where parts of a 64-bit process go, and what that is. Shifts are multiples of the largest page that a
/// guest of that kind has, so that every large page stays as aligned as it was.
#[derive(Debug)]
pub struct Layout {
    /// Static data and heap, and what is taken off.
    low: (Range<u64>, u64),
    /// Mappings and stack, and what is taken off.
    high: (Range<u64>, u64),
    /// One past the last address of a process.
    end: u64,
    /// For messages: what such addresses are called, what has too few of them, what has more.
    words: (&'static str, &'static str, &'static str),
}

/// A 32-bit process: data begins at 0x0955_8000, above where a 32-bit program's text lies (0x0804_8000),
/// and the stack ends at 0xc000_0000, as with the i386 kernel's 3 GiB for processes.
static BITS_32: Layout = Layout {
    low: (0x5555_5540_0000..0x5556_5540_0000, 0x5555_4c00_0000),
    high: (0x7fff_4000_0000..0x8000_0000_0000, 0x7fff_4000_0000),
    end: 3 << 30,
    words: ("32-bit addresses", "the 3 GiB of a 32-bit process", "4-level"),
};

/// A process with 39-bit addresses, 256 GiB of them its own: data a third up, mappings and stack in the
/// upper half. Linux has them at other places of the same range; the distances within data and within
/// mappings are what counts.
static BITS_39: Layout = Layout {
    low: (0x5555_5540_0000..0x555f_5540_0000, 0x5540_0000_0000),
    high: (0x7fe0_0000_0000..0x8000_0000_0000, 0x7fc0_0000_0000),
    end: 1 << 38,
    words: (
        "39-bit addresses",
        "the 256 GiB of a process with 39-bit addresses",
        "a mode of 48 bits",
    ),
};

impl Layout {
    /// That of addresses with so many bits, if a 64-bit process does not fit as it is.
    pub const fn of(address_bits: u32) -> Option<&'static Self> {
        match address_bits {
            32 => Some(&BITS_32),
            39 => Some(&BITS_39),
            _ => None,
        }
    }

    /// Where an address goes, if it has a place. Text stays where a 32-bit program has it.
    fn place(&self, gva: Gva) -> Option<Gva> {
        let ((low, low_shift), (high, high_shift)) = (&self.low, &self.high);
        match gva.value() {
            at if at < low.start - low_shift => Some(gva),
            at if low.contains(&at) => {
                Some(Gva::new(at - low_shift)).filter(|g| g.value() < self.end)
            }
            at if high.contains(&at) => Some(Gva::new(at - high_shift)),
            _ => None,
        }
    }
}

/// Moves the memory of a 64-bit process to where one with fewer address bits has it. Distances within
/// data and heap, and within mappings and stack, stay.
pub struct Narrow<S> {
    inner: S,
    layout: &'static Layout,
    /// End of what lies low, and start of what lies high, so far.
    low_end: u64,
    high_start: u64,
}

impl<S: Source> Narrow<S> {
    /// Moves what `inner` does.
    pub const fn new(inner: S, layout: &'static Layout) -> Self {
        Self { inner, layout, low_end: 0, high_start: u64::MAX }
    }

    fn moved(&self, gva: Gva) -> Result<Gva, SourceError> {
        self.layout.place(gva).ok_or_else(|| self.no_place(gva.value()))
    }

    fn no_place(&self, at: u64) -> SourceError {
        let (_, few, more) = self.layout.words;
        SourceError {
            source: self.inner.info().name,
            message: format!(
                "address {at:#x} has no place in {few}; give a smaller --footprint, or --guest-paging \
                 {more}"
            ),
        }
    }

    fn map(&mut self, start: Gva, bytes: u64) -> Result<Gva, SourceError> {
        let to = self.moved(start)?;
        if self.layout.high.0.contains(&start.value()) {
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
            run.pc = self.layout.place(run.pc).unwrap_or(run.pc);
        }
        Ok(())
    }
}

impl<S: Source> Source for Narrow<S> {
    fn info(&self) -> SourceInfo {
        let mut info = self.inner.info();
        let to = self.layout.words.0;
        info.approximations.push(format!("a 64-bit program, moved to {to} as it is"));
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

    fn end(bits: u32, footprint: u64, workload: &str) -> Result<u64, SourceError> {
        let spec =
            WorkloadSpec { footprint, accesses: Some(2000), seed: 1, populate: Populate::No };
        let source = nestwalk_workloads::open(workload, &spec).unwrap();
        let mut source = Narrow::new(source, Layout::of(bits).unwrap());
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
                let highest = end(32, footprint, workload.name).unwrap();
                assert!(highest < 3 << 30, "{} reaches {highest:#x}", workload.name);
            }
        }
    }

    #[test]
    fn every_workload_has_its_place_below_256_gib() {
        assert!(Layout::of(48).is_none());
        for workload in WORKLOADS {
            for footprint in [1 << 20, 1 << 30, 16 << 30] {
                let highest = end(39, footprint, workload.name).unwrap();
                assert!(highest < 1 << 38, "{} reaches {highest:#x}", workload.name);
            }
            let error = end(39, 1 << 38, workload.name).unwrap_err().to_string();
            assert!(error.contains("39-bit addresses"), "{}: {error}", workload.name);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for workload in WORKLOADS {
            let error = end(32, 16 << 30, workload.name).unwrap_err().to_string();
            assert!(error.contains("32-bit process"), "{}: {error}", workload.name);
        }
    }
}
