//! Ends a stream after a number of accesses.

use nestwalk_types::{Batch, Control, Room, Run, Source, SourceError, SourceInfo};

/// A source that ends after so many accesses, counted from [`Control::RegionOfInterest`].
///
/// Set-up before it passes unchanged and is not counted; a source that never says it is not
/// limited. They are the first of the stream in its own order, however many page runs were open at the
/// end ([`Source::set_room`]). Of a recording, whose runs do not have that order any more, the last run
/// is split, and [`SourceInfo::approximations`] says so: its part keeps the run's lines, of which it may
/// have touched fewer, and its share of the instructions.
pub struct Limit<S> {
    inner: S,
    accesses: u64,
    left: u64,
    counting: bool,
    /// What whoever reads this wants of the next batch.
    room: Room,
    /// The stream has no order within runs, and one was cut.
    by_runs: bool,
}

/// What a cut of a stream without order within runs is said to be.
pub const CUT_BY_RUNS: &str = "within page runs the recording keeps no order of accesses: where it is \
                               cut, the first accesses are those of its first runs";

impl<S: Source> Limit<S> {
    /// Limits `inner` to `accesses`.
    pub fn new(inner: S, accesses: u64) -> Self {
        let room = Room::ALL;
        Self { inner, accesses, left: accesses, counting: false, room, by_runs: false }
    }

    /// Index of the first run that counts.
    fn first_counted(&self, batch: &Batch) -> Option<usize> {
        if self.counting {
            return Some(0);
        }
        let roi = batch.controls.iter().find(|c| c.1 == Control::RegionOfInterest)?;
        Some(roi.0 as usize)
    }

    /// Cuts the batch behind the last access that is wanted.
    fn cut(&mut self, batch: &mut Batch, first: usize, exact: bool) {
        self.counting = true;
        let within = batch.runs[first..].iter().position(|run| {
            let count = u64::from(run.count);
            if count > self.left {
                return true;
            }
            self.left -= count;
            false
        });
        if let Some(offset) = within {
            let last = first + offset;
            self.by_runs |= !exact;
            let kept = self.left as u16;
            let whole = batch.runs[last];
            batch.runs.truncate(last);
            batch.controls.retain(|c| c.0 as usize <= last);
            if kept > 0 {
                batch.runs.push(part(whole, kept));
            }
            self.left = 0;
        }
    }
}

/// The first `count` accesses of a run.
fn part(run: Run, count: u16) -> Run {
    let instructions = u32::from(run.instructions) * u32::from(count) / u32::from(run.count);
    Run { count, instructions: instructions as u16, ..run }
}

impl<S: Source> Source for Limit<S> {
    fn info(&self) -> SourceInfo {
        let mut info = self.inner.info();
        if self.by_runs {
            info.approximations.push(CUT_BY_RUNS.into());
        }
        SourceInfo { description: format!("{}, first {}", info.description, self.accesses), ..info }
    }
    fn set_room(&mut self, room: Room) -> bool {
        self.room = room;
        self.inner.set_room(room)
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        if self.counting && self.left == 0 {
            *batch = Batch::default();
            return Ok(false);
        }
        let room = std::mem::replace(&mut self.room, Room::ALL);
        let accesses = room.accesses.min(self.left);
        let exact = self.inner.set_room(Room { accesses, ..room });
        if !self.inner.next_batch(batch)? {
            return Ok(false);
        }
        if let Some(first) = self.first_counted(batch) {
            self.cut(batch, first, exact);
        }
        Ok(true)
    }
    fn tally(&self) -> Vec<(&'static str, u64)> {
        self.inner.tally()
    }
    fn position(&self) -> u64 {
        self.inner.position()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::PatternSpec;

    fn all(mut s: impl Source) -> (u64, u64, u32) {
        let mut batch = Batch::default();
        let (mut before, mut after, mut roi) = (0, 0, 0);
        while s.next_batch(&mut batch).expect("a pattern does not fail") {
            assert!(!batch.is_empty());
            let mark = batch.controls.iter().find(|c| c.1 == Control::RegionOfInterest);
            let first = mark.map_or(if roi > 0 { 0 } else { batch.runs.len() }, |m| m.0 as usize);
            roi += u32::from(mark.is_some());
            before += batch.runs[..first].iter().map(|r| u64::from(r.count)).sum::<u64>();
            after += batch.runs[first..].iter().map(|r| u64::from(r.count)).sum::<u64>();
        }
        (before, after, roi)
    }

    #[test]
    fn the_count_is_exact_wherever_it_falls() {
        let defaults = PatternSpec { accesses: 20_000, footprint: 1 << 20, ..Default::default() };
        for n in [0, 1, 2, 511, 512, 513, 8191, 8192, 19_999, 20_000, 30_000] {
            for text in ["sequential", "uniform"] {
                let spec = PatternSpec::parse(text, &defaults).expect("a known pattern");
                let (before, after, roi) = all(Limit::new(spec.source(), n));
                assert_eq!((before, after, roi), (0, n.min(20_000), 1), "{text} {n}");
            }
        }
    }

    /// A source with accesses in its set-up, within one batch.
    struct Fixed(Option<Batch>);
    impl Source for Fixed {
        fn info(&self) -> SourceInfo {
            SourceInfo::default()
        }
        fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
            *batch = self.0.take().unwrap_or_default();
            Ok(!batch.is_empty())
        }
    }

    #[test]
    fn set_up_is_not_counted_and_controls_behind_the_end_go() {
        let run = Run {
            gva: nestwalk_types::Gva::new(0x1000),
            pc: nestwalk_types::Gva::new(0),
            lines: 1,
            count: 10,
            instructions: 40,
            vcpu: nestwalk_types::VcpuId(0),
            flags: nestwalk_types::RunFlags::default(),
        };
        let exit = Control::Exit { process: nestwalk_types::ProcessId(1) };
        let controls = vec![(1, Control::RegionOfInterest), (2, exit.clone()), (3, exit.clone())];
        let batch = Batch { runs: vec![run; 3], controls };
        let mut limited = Limit::new(Fixed(Some(batch)), 15);
        let mut out = Batch::default();
        assert_eq!(limited.next_batch(&mut out), Ok(true));
        assert_eq!(out.runs.iter().map(|r| r.count).collect::<Vec<_>>(), [10, 10, 5]);
        assert_eq!(out.runs[2].instructions, 20);
        assert_eq!(out.controls, [(1, Control::RegionOfInterest), (2, exit)]);
        assert_eq!(limited.next_batch(&mut out), Ok(false));
        assert!(out.is_empty());
    }
}
