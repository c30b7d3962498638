//! The prediction table of SpOT, "Speculative Offset-based Translation" (Alverti et al., ISCA 2020):
//! which offset between page and frame an instruction met last, and how often that was right.

use nestwalk_tables::Permissions;
use nestwalk_types::{Address, Gva, Hpa};
use thiserror::Error;

/// A table that cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{entries} entries in {ways} ways: there must be whole sets of 1 to {most} entries in all")]
pub struct PredictionError {
    /// Entries asked for.
    pub entries: u32,
    /// Ways asked for.
    pub ways: u32,
    /// Most entries.
    pub most: u32,
}

/// Most entries of a table.
const MOST: u32 = 1 << 16;
/// Highest confidence: two bits.
const SURE: u8 = 3;
/// Confidence above which an entry predicts.
const PREDICTS_ABOVE: u8 = 1;

/// What an instruction's last translations had in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u64,
    /// Page number less frame number, in pages of 4 KiB, modulo 2^64.
    offset: u64,
    permissions: Permissions,
    confidence: u8,
    valid: bool,
    used: u64,
}

const EMPTY: Entry = Entry {
    tag: 0,
    offset: 0,
    permissions: Permissions { write: false, user: false, execute: false },
    confidence: 0,
    valid: false,
    used: 0,
};

/// How a finished walk left the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trained {
    /// The entry's offset was the right one: confidence went up, to 3 at most.
    Right,
    /// It was another: confidence went down.
    Wrong,
    /// A new entry, or a new offset in one of no confidence.
    Filled,
    /// No entry could give way: all of the set are trusted.
    Bypassed,
    /// The mapping is not known to be contiguous, and there is no entry of the instruction.
    NotContiguous,
}

/// The table of one core, looked up with the address of an instruction whose access missed the last
/// level of TLBs. It has no tag of the address space: the offsets of another process are met as wrong
/// guesses, unless software empties the table.
#[derive(Clone, Debug)]
pub struct PredictionTable {
    entries: Vec<Entry>,
    ways: usize,
    clock: u64,
}

impl PredictionTable {
    /// An empty table.
    ///
    /// # Errors
    /// Entries that are no whole number of sets, none, or too many.
    pub fn new(entries: u32, ways: u32) -> Result<Self, PredictionError> {
        if entries == 0 || entries > MOST || ways == 0 || !entries.is_multiple_of(ways) {
            return Err(PredictionError { entries, ways, most: MOST });
        }
        Ok(Self { entries: vec![EMPTY; entries as usize], ways: ways as usize, clock: 0 })
    }

    /// Index of the first entry of the instruction's set, and its tag.
    #[inline]
    fn place(&self, pc: Gva) -> (usize, u64) {
        let sets = (self.entries.len() / self.ways) as u64;
        ((pc.value() % sets) as usize * self.ways, pc.value() / sets)
    }

    #[inline]
    fn find(&self, pc: Gva) -> Option<usize> {
        let (first, tag) = self.place(pc);
        (first..first + self.ways).find(|&i| self.entries[i].valid && self.entries[i].tag == tag)
    }

    /// Where the page of `gva` is, if the instruction's entry is trusted and permits the access.
    #[inline]
    pub fn predict(&self, pc: Gva, gva: Gva, write: bool, user: bool) -> Option<Hpa> {
        let entry = &self.entries[self.find(pc)?];
        let trusted = entry.confidence > PREDICTS_ABOVE;
        (trusted && entry.permissions.allow(write, false, user)).then(|| {
            let frame = gva.page_number().wrapping_sub(entry.offset) & FRAMES;
            Hpa::new(frame << 12 | gva.value() & 0xfff)
        })
    }

    /// A walk of an access by the instruction has found the page of `gva` at `hpa`. `contiguous` is
    /// asked only if an entry could be filled.
    #[inline]
    pub fn train(
        &mut self,
        (pc, gva): (Gva, Gva),
        hpa: Hpa,
        permissions: Permissions,
        contiguous: impl FnOnce() -> bool,
    ) -> Trained {
        self.clock += 1;
        let offset = gva.page_number().wrapping_sub(hpa.page_number());
        let found = self.find(pc);
        if let Some(i) = found {
            let entry = &mut self.entries[i];
            entry.used = self.clock;
            if entry.offset == offset {
                entry.confidence = (entry.confidence + 1).min(SURE);
                entry.permissions = permissions;
                return Trained::Right;
            }
            if entry.confidence > 0 {
                entry.confidence -= 1;
                return Trained::Wrong;
            }
        }
        if !contiguous() {
            return if found.is_some() { Trained::Wrong } else { Trained::NotContiguous };
        }
        let (first, tag) = self.place(pc);
        let Some(way) = found.or_else(|| self.victim(first)) else { return Trained::Bypassed };
        let used = self.clock;
        self.entries[way] = Entry { tag, offset, permissions, confidence: 1, valid: true, used };
        Trained::Filled
    }

    /// An unused entry of the set, otherwise the least recently used of those without confidence.
    fn victim(&self, first: usize) -> Option<usize> {
        let set = first..first + self.ways;
        let unused = set.clone().find(|&i| !self.entries[i].valid);
        let doubted = set.filter(|&i| self.entries[i].confidence == 0);
        unused.or_else(|| doubted.min_by_key(|&i| self.entries[i].used))
    }

    /// Empties the table.
    pub fn flush(&mut self) {
        self.entries.fill(EMPTY);
    }

    /// Confidence in the instruction's entry, if it has one.
    pub fn confidence(&self, pc: Gva) -> Option<u8> {
        self.find(pc).map(|i| self.entries[i].confidence)
    }
}

/// Frame numbers of 52-bit addresses.
const FRAMES: u64 = (1 << 40) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(page: u64) -> (Gva, Hpa) {
        (Gva::new(page << 12), Hpa::new((page + 1000) << 12))
    }
    fn train(t: &mut PredictionTable, pc: u64, page: u64, shift: u64) -> Trained {
        let (gva, hpa) = at(page);
        let hpa = Hpa::new(hpa.value() + (shift << 12));
        t.train((Gva::new(pc), gva), hpa, Permissions::ALL, || true)
    }
    fn predicted(t: &PredictionTable, pc: u64, page: u64) -> Option<u64> {
        let guess = t.predict(Gva::new(pc), Gva::new(page << 12 | 8), true, true)?;
        assert_eq!(guess.value() & 0xfff, 8);
        Some(guess.page_number())
    }

    #[test]
    fn confidence_1_does_not_predict_and_2_does() {
        let mut t = PredictionTable::new(32, 4).unwrap();
        assert_eq!(predicted(&t, 5, 1), None);
        assert_eq!(train(&mut t, 5, 1, 0), Trained::Filled);
        assert_eq!((t.confidence(Gva::new(5)), predicted(&t, 5, 2)), (Some(1), None));
        assert_eq!(train(&mut t, 5, 9, 0), Trained::Right);
        assert_eq!((t.confidence(Gva::new(5)), predicted(&t, 5, 77)), (Some(2), Some(1077)));
        for _ in 0..5 {
            assert_eq!(train(&mut t, 5, 3, 0), Trained::Right);
        }
        assert_eq!(t.confidence(Gva::new(5)), Some(3));
    }

    #[test]
    fn wrong_guesses_cost_confidence_and_at_none_the_offset_is_replaced() {
        let mut t = PredictionTable::new(32, 4).unwrap();
        for page in 0..4 {
            train(&mut t, 5, page, 0);
        }
        for left in [2, 1, 0] {
            assert_eq!(train(&mut t, 5, 3, 64), Trained::Wrong);
            assert_eq!(t.confidence(Gva::new(5)), Some(left));
        }
        assert_eq!(predicted(&t, 5, 3), None);
        assert_eq!(train(&mut t, 5, 3, 64), Trained::Filled);
        assert_eq!(train(&mut t, 5, 3, 64), Trained::Right);
        assert_eq!(predicted(&t, 5, 3), Some(1067));
    }

    #[test]
    fn a_set_full_of_confident_entries_is_bypassed() {
        let mut t = PredictionTable::new(32, 4).unwrap();
        // Four instructions of one of the 8 sets.
        let pcs = [0u64, 8, 16, 24];
        pcs.iter().for_each(|pc| assert_eq!(train(&mut t, *pc, 1, 0), Trained::Filled));
        assert_eq!(train(&mut t, 32, 1, 0), Trained::Bypassed);
        assert_eq!(t.confidence(Gva::new(32)), None);
        // Another set has room.
        assert_eq!(train(&mut t, 33, 1, 0), Trained::Filled);
        // The two that were doubted last and first: the least recently used gives way.
        for pc in [16, 8] {
            assert_eq!(train(&mut t, pc, 1, 5), Trained::Wrong);
        }
        assert_eq!(train(&mut t, 32, 1, 0), Trained::Filled);
        let left = pcs.map(|pc| t.confidence(Gva::new(pc)));
        assert_eq!(left, [Some(1), Some(0), None, Some(1)]);
    }

    #[test]
    fn only_contiguous_mappings_are_filled() {
        let mut t = PredictionTable::new(32, 4).unwrap();
        let (gva, hpa) = at(1);
        let train = |t: &mut PredictionTable, contiguous, hpa| {
            t.train((Gva::new(5), gva), hpa, Permissions::ALL, || contiguous)
        };
        assert_eq!(train(&mut t, false, hpa), Trained::NotContiguous);
        assert_eq!(t.confidence(Gva::new(5)), None);
        assert_eq!(train(&mut t, true, hpa), Trained::Filled);
        // An entry is trained by any walk, and takes another offset from contiguous mappings only.
        assert_eq!(train(&mut t, false, hpa), Trained::Right);
        let other = Hpa::new(hpa.value() + 0x5000);
        for left in [1, 0, 0] {
            assert_eq!(train(&mut t, false, other), Trained::Wrong);
            assert_eq!(t.confidence(Gva::new(5)), Some(left));
        }
    }

    #[test]
    fn what_is_not_permitted_is_not_predicted() {
        let mut t = PredictionTable::new(4, 4).unwrap();
        let (gva, hpa) = at(1);
        let reads = Permissions { write: false, user: true, execute: false };
        for _ in 0..3 {
            t.train((Gva::new(5), gva), hpa, reads, || true);
        }
        assert!(t.predict(Gva::new(5), gva, false, true).is_some());
        assert_eq!(t.predict(Gva::new(5), gva, true, true), None);
        t.flush();
        assert_eq!(t.predict(Gva::new(5), gva, false, true), None);
    }

    #[test]
    fn tables_that_cannot_be_are_refused() {
        for (entries, ways) in [(0, 1), (32, 0), (30, 4), (1 << 17, 4)] {
            let message = PredictionTable::new(entries, ways).unwrap_err().to_string();
            assert!(message.contains("whole sets"), "{message}");
        }
    }
}
