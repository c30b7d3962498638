//! Accesses that a filtered recording does not show, where its VM has lost translations through no
//! doing of its guest.
//!
//! A filter ([`Filter`]) shows what misses a small TLB and counts the rest in the record that stands
//! for the page. What follows from that is exact as long as translations go only when the guest
//! says so, since the recorder emptied the filter then. Here they also go because another VM had
//! the core, or because the host took a page, or asked whether it was used. The next access to a
//! page that the filter has is a miss then, and sets its accessed bit; the recording does not show
//! it, if a program keeps to pages that the filter holds, for very long.
//!
//! So the filter's contents are followed by what the stream shows, and once translations are lost
//! those of its pages are touched again, in their order of use, that are known to be used beyond
//! the moment at which they were shown last: whose record counts more accesses than can have come at
//! once. Those are as many as instructions were retired before the next record, or, where another page
//! of the set was shown since, before that, and no more than a program makes that goes through the
//! page once. A page is touched again as often as its record has such accesses, at most.
//!
//! What stays inexact: when those accesses came, so that a page may be touched again that is not used
//! any more; and a page that is shown again after the loss for a use before it is one miss too many.

use nestwalk_types::{Address, Control, Filter, FilterArray, Gpa, GuestBatch, Run};

/// Accesses of a program that goes through a page once, by 8 bytes.
const AT_ONCE: u64 = 512;

/// A page of the filter.
#[derive(Clone, Copy)]
struct Shown {
    /// Its record.
    run: Run,
    gpa: Gpa,
    /// Instructions of its vCPU when it was shown.
    since: u64,
    /// Accesses of its record that were not shown, and have not come at once.
    left: u64,
}

/// What a vCPU's filter has.
#[derive(Clone, Default)]
struct Vcpu {
    /// Sets for data, then those for fetches; of each the page that was shown last comes last.
    sets: Vec<Vec<Shown>>,
    instructions: u64,
    /// The set of the last record.
    last: Option<usize>,
}

/// What a VM's recording hides.
pub(super) struct Hidden {
    /// Of data and of fetches.
    arrays: [FilterArray; 2],
    vcpus: Vec<Vcpu>,
    /// Translations were lost.
    lost: bool,
    /// Pages that were shown again.
    again: u64,
}

/// An array that hides more than repeats, which are over when anything else happens.
const fn hides(array: FilterArray) -> bool {
    array.sets > 1 || array.ways > 1
}

impl Hidden {
    /// `None` if nothing is hidden.
    pub(super) fn new(filter: &Filter, vcpus: usize) -> Option<Self> {
        let arrays = [filter.data, filter.fetch];
        let sets = arrays.map(|a| usize::from(a.sets).max(1));
        let vcpu = Vcpu { sets: vec![Vec::new(); sets[0] + sets[1]], ..Vcpu::default() };
        let vcpus = vec![vcpu; vcpus];
        let any = arrays.into_iter().any(hides);
        any.then_some(Self { arrays, vcpus, lost: false, again: 0 })
    }

    /// Translations were lost through no doing of the guest.
    pub(super) const fn lost(&mut self) {
        self.lost = true;
    }

    /// Pages that were shown again since counting began.
    pub(super) const fn count(&self) -> u64 {
        self.again
    }

    /// Counting begins.
    pub(super) const fn counting_begins(&mut self) {
        self.again = 0;
    }

    /// The VM has run this.
    pub(super) fn ran(&mut self, slice: &GuestBatch) {
        for (controls, runs) in slice.batch.segments() {
            // The recorder empties a vCPU's filter; what is forgotten of others is not shown again.
            if controls.iter().any(|(_, control)| empties(control)) {
                self.vcpus.iter_mut().flat_map(|v| &mut v.sets).for_each(Vec::clear);
            }
            for (run, gpa) in slice.batch.runs[runs.clone()].iter().zip(&slice.gpas[runs]) {
                if let Some(vcpu) = self.vcpus.get_mut(usize::from(run.vcpu.0)) {
                    vcpu.shows(run, *gpa, self.arrays);
                }
            }
        }
    }

    /// What the VM is to touch before it goes on, if it has lost translations; at most so many pages
    /// in each part.
    pub(super) fn take_again(&mut self, most: usize) -> Vec<GuestBatch> {
        if !std::mem::take(&mut self.lost) {
            return Vec::new();
        }
        let mut parts: Vec<GuestBatch> = Vec::new();
        let pages = self.vcpus.iter_mut().flat_map(|v| &mut v.sets).flatten();
        for shown in pages.filter(|shown| shown.left > 0) {
            shown.left -= 1;
            self.again += 1;
            if parts.last().is_none_or(|part| part.gpas.len() >= most) {
                parts.push(GuestBatch::default());
            }
            if let Some(part) = parts.last_mut() {
                part.batch.runs.push(again(&shown.run));
                part.gpas.push(shown.gpa);
            }
        }
        parts
    }
}

impl Vcpu {
    #[inline]
    fn shows(&mut self, run: &Run, gpa: Gpa, arrays: [FilterArray; 2]) {
        let fetch = run.flags.is_fetch();
        let sets = arrays.map(|a| usize::from(a.sets).max(1));
        let set = run.gva.page_number() as usize & (sets[usize::from(fetch)] - 1);
        let at = if fetch { sets[0] + set } else { set };
        self.instructions += u64::from(run.instructions);
        // What the last page of the vCPU did at once, and what this one's set did until now.
        for before in [self.last, Some(at)].into_iter().flatten() {
            if let Some(page) = self.sets[before].last_mut() {
                let came = AT_ONCE.min(self.instructions - page.since);
                let hidden = u64::from(page.run.count.saturating_sub(1));
                page.left = page.left.min(hidden.saturating_sub(came));
            }
        }
        self.last = Some(at);
        let pages = &mut self.sets[at];
        let same = |p: &Shown| {
            let kernel = p.run.flags.is_kernel() == run.flags.is_kernel();
            p.run.gva.page_number() == run.gva.page_number() && kernel
        };
        let ways = usize::from(arrays[usize::from(fetch)].ways).max(1);
        match pages.iter().position(same) {
            Some(old) => drop(pages.remove(old)),
            None if pages.len() >= ways => drop(pages.remove(0)),
            None => {}
        }
        let (since, left) = (self.instructions, u64::from(run.count.saturating_sub(1)));
        pages.push(Shown { run: *run, gpa, since, left });
    }
}

/// An access to the page that is counted already.
fn again(run: &Run) -> Run {
    let lines = 1 << (run.gva.value() >> 6 & 63);
    Run { count: 0, instructions: 0, lines, ..*run }
}

/// Whether what was translated before may be translated otherwise now.
const fn empties(control: &Control) -> bool {
    !matches!(control, Control::OsWork { .. } | Control::Process { .. } | Control::RegionOfInterest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::{Gva, OsWork, RunFlags, VcpuId};

    /// Records of pages, with accesses and instructions.
    fn slice(records: &[(u64, u16, u16)]) -> GuestBatch {
        let mut batch = GuestBatch::default();
        for &(page, count, instructions) in records {
            let (gva, pc) = (Gva::new(page << 12 | 0x40), Gva::new(0));
            let (vcpu, flags) = (VcpuId(0), RunFlags::STORE);
            batch.batch.runs.push(Run { gva, pc, lines: 7, count, instructions, vcpu, flags });
            batch.gpas.push(Gpa::new(page << 12 | 0x40));
        }
        batch
    }

    fn pages(parts: &[GuestBatch]) -> Vec<u64> {
        parts.iter().flat_map(|p| p.gpas.iter().map(|gpa| gpa.page_number())).collect()
    }

    /// The last of each set, as often as its record counts, and no more once the filter is empty.
    #[test]
    fn pages_come_again_as_often_as_they_were_used() {
        let array = FilterArray { sets: 16, ways: 4 };
        let filter = Filter { data: array, ..Filter::RUNS };
        assert!(Hidden::new(&Filter::RUNS, 1).is_none());
        let mut hidden = Hidden::new(&filter, 1).unwrap();
        // An access an instruction or so: those of pages 35 and 6 came at once; of page 3's some came
        // after page 19 was shown, if page 19 was used then, too.
        hidden.ran(&slice(&[(3, 50, 20), (19, 30, 1), (35, 20, 40), (6, 9, 40), (5, 2, 40)]));
        assert!(hidden.take_again(8).is_empty(), "nothing was lost");
        for expected in [vec![3, 5], vec![3], vec![3]] {
            hidden.lost();
            let parts = hidden.take_again(1);
            assert_eq!(pages(&parts), expected);
            assert_eq!(parts.len(), expected.len());
            let counted: u64 = parts.iter().map(|p| p.batch.accesses()).sum();
            assert_eq!(counted, 0);
        }
        assert_eq!(hidden.count(), 4);
        let mut next = slice(&[(7, 9, 9)]);
        let (work, count) = (OsWork::Fork, 1);
        next.batch.controls.push((1, Control::OsWork { work, count }));
        hidden.ran(&next);
        hidden.lost();
        assert_eq!(pages(&hidden.take_again(8)), [3, 7]);
        let (vcpu, root) = (VcpuId(0), Gpa::new(0));
        next.batch.controls.push((1, Control::LoadCr3 { vcpu, root, pcid: 0, keep: false }));
        hidden.ran(&next);
        hidden.lost();
        assert!(hidden.take_again(8).is_empty());
    }
}
