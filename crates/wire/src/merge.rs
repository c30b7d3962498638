//! One order for the events of all vCPUs.
//!
//! Every event that other vCPUs can depend on (a table changes, a translation is invalidated) makes a
//! new *moment*, a number that all vCPUs share. A vCPU writes the moment into its ring whenever it has
//! changed since its last record. So the records of a moment can be put behind the event that made it,
//! and before the event that made the next one. Among records of one moment of several vCPUs the order
//! is unknown and does not matter to any table.

use crate::record::{Kind, Record};
use std::collections::VecDeque;

/// The moment of a vCPU that is halted: nothing comes from it until it runs again.
pub const IDLE: u64 = u64::MAX;

/// Records of one vCPU at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The moment, doubled, and 1 unless the first record is the event that made it.
    key: u64,
    /// The vCPU.
    pub vcpu: u8,
    /// Its records in order.
    pub records: Vec<Record>,
}

#[derive(Default)]
struct Line {
    segments: VecDeque<Segment>,
    /// No record of before this moment comes any more.
    reached: u64,
    ended: bool,
    /// Records of an image that are still to come: they are no events.
    image: usize,
}

/// Puts the records of all vCPUs in one order.
#[derive(Default)]
pub struct Merge {
    lines: Vec<Line>,
}

impl Merge {
    /// For so many vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self { lines: (0..vcpus).map(|_| Line::default()).collect() }
    }

    /// Takes the next record of a vCPU.
    pub fn take(&mut self, vcpu: usize, record: Record) {
        let line = &mut self.lines[vcpu];
        let kind = if line.image > 0 { None } else { Kind::of(record.kind) };
        line.image = line.image.saturating_sub(1);
        match kind {
            Some(Kind::Moment) => {
                let key = record.a << 1 | u64::from(record.b == 0);
                line.segments.push_back(Segment { key, vcpu: vcpu as u8, records: Vec::new() });
                return;
            }
            Some(Kind::TableNew) => line.image = crate::IMAGE_RECORDS,
            Some(Kind::Process) => line.image = 1,
            Some(Kind::End) => line.ended = true,
            _ => {}
        }
        if line.segments.is_empty() {
            line.segments.push_back(Segment { key: 1, vcpu: vcpu as u8, records: Vec::new() });
        }
        if let Some(last) = line.segments.back_mut() {
            last.records.push(record);
        }
    }

    /// Nothing of before this moment comes any more from a vCPU ([`crate::Consumer::reached`], with
    /// [`IDLE`] replaced by what the moment was before it was asked).
    pub fn reached(&mut self, vcpu: usize, moment: u64) {
        self.lines[vcpu].reached = moment;
    }

    /// The next segment, if it is certain that nothing comes before it. The last segment of a vCPU may
    /// still grow and is given in pieces. `all`: there will be no more records.
    pub fn next(&mut self, all: bool) -> Option<Segment> {
        let head = |l: &Line| {
            l.segments
                .front()
                .filter(|s| l.segments.len() > 1 || !s.records.is_empty())
                .map(|s| s.key)
        };
        let (first, key) = self
            .lines
            .iter()
            .enumerate()
            .filter_map(|(i, l)| Some((i, head(l)?)))
            .min_by_key(|(i, key)| (*key, *i))?;
        let certain = self.lines.iter().enumerate().all(|(i, l)| {
            i == first
                || all
                || l.ended
                || head(l).is_some()
                || l.reached.saturating_mul(2) >= key & !1
        });
        if !certain {
            return None;
        }
        let line = &mut self.lines[first];
        if line.segments.len() > 1 {
            return line.segments.pop_front();
        }
        let last = line.segments.front_mut()?;
        // What is still to come at this moment comes after the event that made it.
        let piece = Segment { records: std::mem::take(&mut last.records), ..*last };
        last.key |= 1;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(n: u64, made: bool) -> Record {
        Record::control(Kind::Moment, n, u64::from(made))
    }
    fn run(a: u64) -> Record {
        Record { a, ..Record::default() }
    }
    fn values(merge: &mut Merge, all: bool) -> Vec<u64> {
        let mut out = Vec::new();
        while let Some(s) = merge.next(all) {
            out.extend(s.records.iter().map(|r| r.a));
        }
        out
    }

    #[test]
    fn an_event_stands_before_what_follows_it_and_after_what_was_before() {
        let mut m = Merge::new(2);
        // vCPU 0 makes moments 1 and 2; vCPU 1 sees 0, then 2.
        for r in [run(10), moment(1, true), run(11), moment(2, true), run(12)] {
            m.take(0, r);
        }
        m.take(1, run(20));
        assert_eq!(values(&mut m, false), [10, 20], "vCPU 1 may still be at moment 0");
        m.take(1, moment(2, false));
        m.take(1, run(22));
        m.reached(1, 2);
        m.reached(0, 2);
        assert_eq!(values(&mut m, false), [11, 12, 22]);
    }

    #[test]
    fn a_halted_vcpu_is_not_waited_for() {
        let mut m = Merge::new(2);
        for r in [moment(5, true), run(1)] {
            m.take(0, r);
        }
        assert_eq!(values(&mut m, false), [0; 0]);
        m.reached(1, IDLE);
        assert_eq!(values(&mut m, false), [1]);
    }

    #[test]
    fn words_of_an_image_are_no_events() {
        let mut m = Merge::new(1);
        m.take(0, Record::control(Kind::TableNew, 1, 0));
        for _ in 0..crate::IMAGE_RECORDS {
            m.take(0, moment(77, true));
        }
        m.take(0, run(2));
        let all = m.next(false).unwrap();
        assert_eq!(all.records.len(), 2 + crate::IMAGE_RECORDS);
    }
}
