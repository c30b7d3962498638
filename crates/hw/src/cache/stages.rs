//! Many references at once: each level works on all of them before the next does.
//!
//! Where a reference is served decides no address, so references may wait, and what a level does with
//! one depends on those before it at that level alone. A level that works on many has its sets near by,
//! and reads those that lie far away while it waits for others.

use super::sets::Sets;
use super::{Cache, Levels, ServedBy, access_other};
use std::hint::black_box;

/// Kinds of references that are counted apart.
pub const KINDS: usize = 16;
/// References by their kind and by where they were served.
pub type Served = [[u64; ServedBy::COUNT]; KINDS];

const LINE_BITS: u32 = 38;
const KIND: u32 = 40;
const PATH: u32 = 44;
/// References of the last level whose sets are read ahead of their use.
const AHEAD: usize = 64;

/// A reference that waits: from the lowest bits on its line, its kind, whether it fetches instructions,
/// and its core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reference(u64);

impl Reference {
    /// A data reference, of the program or of the walker.
    #[inline(always)]
    pub const fn data(core: usize, kind: usize, at: u64) -> Self {
        Self(at >> 6 | (kind as u64) << KIND | (core as u64) << (PATH + 1))
    }
    /// An instruction fetch.
    #[inline(always)]
    pub const fn fetch(core: usize, kind: usize, at: u64) -> Self {
        Self(Self::data(core, kind, at).0 | 1 << PATH)
    }
    #[inline(always)]
    const fn line(self) -> u64 {
        self.0 & ((1 << LINE_BITS) - 1)
    }
    #[inline(always)]
    const fn kind(self) -> usize {
        (self.0 >> KIND) as usize % KINDS
    }
    #[inline(always)]
    const fn core(self) -> usize {
        (self.0 >> (PATH + 1)) as usize
    }
    #[inline(always)]
    const fn is_fetch(self) -> bool {
        self.0 >> PATH & 1 == 1
    }
}

/// References at one level. Those that its caches do not have are left at the front.
struct Stage<'a> {
    references: &'a mut [Reference],
    served: &'a mut Served,
    level: ServedBy,
    /// The reference that is next.
    next: usize,
    /// References that went on to the next level.
    kept: usize,
}

impl Stage<'_> {
    /// All from `next` on whose bits from `same` on are those of the first go through `access`.
    #[inline(always)]
    fn send(&mut self, same: u32, mut access: impl FnMut(u64) -> bool) {
        let Some(first) = self.references.get(self.next) else { return };
        let path = first.0 >> same;
        let (mut next, mut kept) = (self.next, self.kept);
        while let Some(&reference) = self.references.get(next)
            && reference.0 >> same == path
        {
            let hit = access(reference.line());
            self.served[reference.kind()][self.level as usize] += u64::from(hit);
            self.references[kept] = reference;
            kept += usize::from(!hit);
            next += 1;
        }
        (self.next, self.kept) = (next, kept);
    }

    fn through(&mut self, cache: &mut Cache, same: u32) {
        match cache {
            Cache::Twelve(sets) => self.through_sets(sets, same),
            Cache::Sixteen(sets) => self.through_sets(sets, same),
            Cache::Other(sets) => self.send(same, |line| access_other(sets, line)),
        }
    }

    #[inline(always)]
    fn through_sets<const Q: usize>(&mut self, sets: &mut Sets<Q>, same: u32) {
        match sets.mask() {
            Some(mask) => self.send(same, |line| sets.access_in(line as usize & mask, line)),
            None => self.send(same, |line| sets.access(line)),
        }
    }
}

impl Levels {
    /// Sends references through the caches, in order, and counts where each was served. What is left in
    /// `references` means nothing.
    pub(super) fn drain(&mut self, references: &mut [Reference], served: &mut Served) {
        let mut first = Stage { references, served, level: ServedBy::L1, next: 0, kept: 0 };
        while let Some(reference) = first.references.get(first.next) {
            let core = &mut self.cores[reference.core()];
            let cache = if reference.is_fetch() { &mut core.l1i } else { &mut core.l1d };
            first.through(cache, PATH);
        }
        let Stage { references, served, kept, .. } = first;
        let references = &mut references[..kept];
        let mut second = Stage { references, served, level: ServedBy::L2, next: 0, kept: 0 };
        while let Some(reference) = second.references.get(second.next) {
            second.through(&mut self.cores[reference.core()].l2, PATH + 1);
        }
        for group in second.references[..second.kept].chunks(AHEAD) {
            self.last_level(group, second.served);
        }
    }

    /// Sends a group of references through the last level, whose sets are read first.
    fn last_level(&mut self, group: &[Reference], served: &mut Served) {
        match &mut self.llc {
            Cache::Twelve(sets) => last_level_sets(sets, group, served),
            Cache::Sixteen(sets) => last_level_sets(sets, group, served),
            Cache::Other(sets) => {
                for reference in group {
                    count(*reference, access_other(sets, reference.line()), served);
                }
            }
        }
    }
}

#[inline(always)]
fn count(reference: Reference, hit: bool, served: &mut Served) {
    served[reference.kind()][ServedBy::Llc as usize + usize::from(!hit)] += 1;
}

#[inline(always)]
fn last_level_sets<const Q: usize>(sets: &mut Sets<Q>, group: &[Reference], served: &mut Served) {
    let mut places = [0_u32; AHEAD];
    let mut mix = 0;
    for (place, reference) in places.iter_mut().zip(group) {
        let set = sets.set(reference.line());
        *place = set as u32;
        mix ^= *sets.place(set);
    }
    black_box(mix);
    for (place, reference) in places.iter().zip(group) {
        let hit = sets.access_in(*place as usize, reference.line());
        count(*reference, hit, served);
    }
}
