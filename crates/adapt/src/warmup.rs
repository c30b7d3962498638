//! Warm-up: accesses that are simulated and not counted.

use nestwalk_report::count;
use nestwalk_source::CUT_BY_RUNS;
use nestwalk_types::{Batch, Control, Room, Source, SourceError, SourceInfo};

/// Moves the beginning of the region of interest: the first accesses are simulated, not counted.
///
/// If the source ends within the warm-up, the region of interest is said all the same, so that
/// nobody takes the warm-up for a result, and the stream ends with an error.
pub struct Warmup<S> {
    inner: S,
    wanted: u64,
    left: u64,
    state: State,
    /// What whoever reads this wants of the next batch.
    room: Room,
    /// The stream has no order within runs, and one was cut.
    by_runs: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The source has not reached its own region of interest.
    SetUp,
    WarmUp,
    Counting,
    /// The source has ended within the warm-up.
    Short,
}

impl<S: Source> Warmup<S> {
    /// The first `accesses` from the source's region of interest on are warm-up.
    pub const fn new(inner: S, accesses: u64) -> Self {
        let (state, room) = (State::SetUp, Room::ALL);
        Self { inner, wanted: accesses, left: accesses, state, room, by_runs: false }
    }

    /// The source has ended.
    fn end(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        match self.state {
            State::Counting => Ok(false),
            State::SetUp | State::WarmUp => {
                self.state = State::Short;
                batch.controls.push((0, Control::RegionOfInterest));
                Ok(true)
            }
            State::Short => Err(SourceError {
                source: self.inner.info().name,
                message: format!(
                    "ended after {} accesses, within the warm-up of {}: nothing is left to count; \
                     give a shorter --warmup",
                    count(self.wanted - self.left),
                    count(self.wanted)
                ),
            }),
        }
    }

    /// Counts accesses of the warm-up from run `from` on, and puts the beginning where it ends.
    fn skip(&mut self, batch: &mut Batch, from: usize, exact: bool) {
        for index in from..batch.runs.len() {
            let count = u64::from(batch.runs[index].count);
            if count < self.left {
                self.left -= count;
                continue;
            }
            if count > self.left {
                split(batch, index, self.left as u16);
                self.by_runs |= !exact;
            }
            self.left = 0;
            self.state = State::Counting;
            let position = index + 1;
            let place = batch.controls.partition_point(|c| (c.0 as usize) < position);
            batch.controls.insert(place, (position as u32, Control::RegionOfInterest));
            return;
        }
    }
}

/// Makes two runs of one, the first of `count` accesses, each with its share of the instructions.
fn split(batch: &mut Batch, index: usize, count: u16) {
    let first = &mut batch.runs[index];
    let mut rest = *first;
    first.count = count;
    let share = u32::from(rest.instructions) * u32::from(count) / u32::from(rest.count);
    first.instructions = share as u16;
    rest.count -= count;
    rest.instructions -= first.instructions;
    batch.runs.insert(index + 1, rest);
    for control in batch.controls.iter_mut().filter(|c| c.0 as usize > index) {
        control.0 += 1;
    }
}

impl<S: Source> Source for Warmup<S> {
    fn info(&self) -> SourceInfo {
        let mut info = self.inner.info();
        if self.by_runs {
            info.approximations.push(CUT_BY_RUNS.into());
        }
        let warmup = count(self.wanted);
        let description = format!("{}, after {warmup} accesses of warm-up", info.description);
        SourceInfo { description, ..info }
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        self.inner.tally()
    }
    fn position(&self) -> u64 {
        self.inner.position()
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.room = room;
        self.inner.set_room(room)
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let room = std::mem::replace(&mut self.room, Room::ALL);
        let accesses = match self.state {
            State::SetUp | State::WarmUp => room.accesses.min(self.left),
            State::Counting | State::Short => room.accesses,
        };
        let exact = self.inner.set_room(Room { accesses, ..room });
        if self.state == State::Short || !self.inner.next_batch(batch)? {
            *batch = Batch::default();
            return self.end(batch);
        }
        let mut from = 0;
        if self.state == State::SetUp
            && let Some(at) = batch.controls.iter().position(|c| c.1 == Control::RegionOfInterest)
        {
            from = batch.controls.remove(at).0 as usize;
            self.state = State::WarmUp;
        }
        if self.state == State::WarmUp {
            self.skip(batch, from, exact);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_source::{Limit, PatternSpec};

    /// Accesses before and after the region of interest, how often it was said, and the error.
    fn drain(mut source: impl Source) -> (u64, u64, u32, Option<String>) {
        let mut batch = Batch::default();
        let (mut before, mut after, mut said) = (0, 0, 0);
        loop {
            match source.next_batch(&mut batch) {
                Ok(true) => {}
                Ok(false) => return (before, after, said, None),
                Err(error) => return (before, after, said, Some(error.to_string())),
            }
            let mark = batch.controls.iter().find(|c| c.1 == Control::RegionOfInterest);
            let from = mark.map_or(if said > 0 { 0 } else { batch.runs.len() }, |m| m.0 as usize);
            said += u32::from(mark.is_some());
            let sum = |runs: &[nestwalk_types::Run]| -> u64 {
                runs.iter().map(|r| u64::from(r.count)).sum()
            };
            before += sum(&batch.runs[..from]);
            after += sum(&batch.runs[from..]);
        }
    }

    #[test]
    fn the_border_is_exact_wherever_it_falls() {
        let spec = PatternSpec { accesses: 20_000, footprint: 1 << 20, ..Default::default() };
        for n in [1, 2, 511, 512, 513, 8191, 8192, 8193, 19_999] {
            for pattern in ["sequential", "uniform"] {
                let spec = PatternSpec::parse(pattern, &spec).unwrap();
                let found = drain(Warmup::new(spec.source(), n));
                assert_eq!(found, (n, 20_000 - n, 1, None), "{pattern} {n}");
                let found = drain(Limit::new(Warmup::new(spec.source(), n), 100));
                assert_eq!(found, (n, (20_000 - n).min(100), 1, None), "{pattern} {n}");
            }
        }
    }

    #[test]
    fn a_source_that_ends_within_the_warm_up_says_so() {
        let spec = PatternSpec { accesses: 1000, footprint: 1 << 20, ..Default::default() };
        let (before, after, said, error) = drain(Warmup::new(spec.source(), 5000));
        assert_eq!((before, after, said), (1000, 0, 1));
        let error = error.unwrap();
        assert!(error.contains("after 1,000 accesses") && error.contains("5,000"), "{error}");
    }
}
