//! Stores of a guest that its host wants to hear of, page by page of 4 KiB.
//!
//! A page whose stores are not known yet is one that the tables do not let the guest store to, or whose
//! dirty bit is clear there, and so is every translation of it that a walk finds meanwhile. The first
//! store therefore walks, and is heard of. Translations from before the host began to listen know
//! nothing of that: whoever makes pages clean again owes a flush.

use crate::measure::counters::{Counters, ExitReason};
use nestwalk_types::VcpuId;

/// How a hypervisor comes to know which pages were stored to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tracking {
    /// Pages are protected; the first store to each is an exit (KVM, `KVM_MEM_LOG_DIRTY_PAGES`
    /// without PML).
    #[default]
    WriteProtect,
    /// Dirty bits of nested tables, which are looked through (EPT A/D).
    DirtyBits,
    /// A buffer of 512 addresses per vCPU, which the processor fills when it sets a dirty bit of
    /// nested tables; an exit when it is full (Intel SDM vol. 3C, "Page-Modification Logging").
    Pml,
}

impl Tracking {
    /// Names on the command line and what they mean.
    pub const ALL: [(&'static str, Self, &'static str); 3] = [
        ("write-protect", Self::WriteProtect, "the first store to each page is an exit"),
        ("dirty-bits", Self::DirtyBits, "dirty bits of nested tables are looked through"),
        ("pml", Self::Pml, "a page-modification log: an exit for each 512 pages"),
    ];

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|t| t.0 == name).map(|t| t.1)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|t| t.1 == self).map_or("", |t| t.0)
    }

    /// It needs nested tables with dirty bits.
    pub const fn needs_dirty_bits(self) -> bool {
        !matches!(self, Self::WriteProtect)
    }
}

/// Entries of a page-modification log.
const PML_ENTRIES: u64 = 512;

/// A set of pages by number.
#[derive(Default)]
pub struct PageBits {
    words: Vec<u64>,
}

impl PageBits {
    /// Whether the page is in it.
    #[inline]
    pub fn has(&self, page: u64) -> bool {
        self.words.get((page / 64) as usize).is_some_and(|w| w >> (page % 64) & 1 == 1)
    }

    /// Puts the page in. Returns whether it is new.
    pub fn insert(&mut self, page: u64) -> bool {
        let word = (page / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = !self.has(page);
        self.words[word] |= 1 << (page % 64);
        new
    }

    /// Takes the page out. Returns whether it was there.
    pub fn remove(&mut self, page: u64) -> bool {
        let there = self.has(page);
        if let Some(word) = self.words.get_mut((page / 64) as usize) {
            *word &= !(1 << (page % 64));
        }
        there
    }

    /// The pages, ascending.
    pub fn pages(&self) -> Vec<u64> {
        let bits = |(i, word): (usize, &u64)| {
            let (i, word) = (i as u64 * 64, *word);
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i + bit)
        };
        self.words.iter().enumerate().flat_map(bits).collect()
    }
}

/// The log of pages that a guest has stored to.
pub struct DirtyLog {
    tracking: Tracking,
    dirty: PageBits,
    /// By vCPU: entries in its buffer, and exits so far when the last was made.
    buffers: Vec<(u64, u64)>,
}

impl DirtyLog {
    /// An empty one.
    pub fn new(tracking: Tracking, vcpus: usize) -> Self {
        Self { tracking, dirty: PageBits::default(), buffers: vec![(0, 0); vcpus] }
    }

    /// How it is kept where the VM has nested tables, or not.
    pub const fn tracking(&self, nested: bool) -> Tracking {
        if nested { self.tracking } else { Tracking::WriteProtect }
    }

    /// Whether the page is in it: the next store to it is not heard of.
    #[inline]
    pub fn has(&self, page: u64) -> bool {
        self.dirty.has(page)
    }

    /// A vCPU stores to a page that is not in it. `nested`: the tables are nested ones, with dirty bits
    /// where the log needs them.
    pub fn stored(&mut self, page: u64, vcpu: VcpuId, nested: bool, counters: &mut Counters) {
        if !self.dirty.insert(page) {
            return;
        }
        match self.tracking(nested) {
            Tracking::WriteProtect => {
                counters.exit(ExitReason::WriteProtected);
                // Its entry is made writable, as one is made for a fault.
                if nested {
                    counters.nested_fills += 1;
                } else {
                    counters.shadow_fills += 1;
                    counters.lock_visits.add(vcpu);
                }
            }
            Tracking::DirtyBits => {}
            Tracking::Pml => self.enter(vcpu, counters),
        }
    }

    /// The processor puts an address into the vCPU's buffer, which each exit empties (KVM,
    /// `vmx_flush_pml_buffer`). Of several vCPUs an exit of any empties all.
    fn enter(&mut self, vcpu: VcpuId, counters: &mut Counters) {
        let exits: u64 = counters.exits.iter().sum();
        let Some((entries, seen)) = self.buffers.get_mut(usize::from(vcpu.0)) else { return };
        if *seen != exits {
            (*entries, *seen) = (0, exits);
        }
        // The exit comes with the address for which there is no room.
        if *entries == PML_ENTRIES {
            counters.exit(ExitReason::PmlFull);
            (*entries, *seen) = (0, exits + 1);
        }
        *entries += 1;
    }

    /// The pages, which are clean from now on. The caller owes a flush.
    pub fn take(&mut self) -> Vec<u64> {
        // All vCPUs are called out of the guest, which empties their buffers.
        self.buffers.iter_mut().for_each(|buffer| buffer.0 = 0);
        std::mem::take(&mut self.dirty).pages()
    }
}

/// What a host listens for.
#[derive(Default)]
pub struct Guard {
    /// The log of pages that were stored to, while there is one.
    pub log: Option<DirtyLog>,
    /// Merged pages that were stored to, and have frames of their own since.
    pub broken: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_full_every_512_pages_and_emptied_by_exits() {
        let mut counters = Counters::default();
        let mut log = DirtyLog::new(Tracking::Pml, 1);
        let full = |c: &Counters| c.exits[ExitReason::PmlFull as usize];
        (0..1025).for_each(|page| log.stored(page, VcpuId(0), true, &mut counters));
        assert_eq!(full(&counters), 2);
        (0..1025).for_each(|page| log.stored(page, VcpuId(0), true, &mut counters));
        assert_eq!(full(&counters), 2, "none of these is new");
        counters.exit(ExitReason::Cr3Load);
        (2000..2512).for_each(|page| log.stored(page, VcpuId(0), true, &mut counters));
        assert_eq!(full(&counters), 2);
        assert_eq!(log.take().len(), 1025 + 512);
        assert!(log.take().is_empty() && !log.has(5));
    }

    #[test]
    fn a_set_of_pages_holds_what_was_put_in() {
        let mut bits = PageBits::default();
        assert!(bits.insert(700) && bits.insert(3) && !bits.insert(700));
        assert_eq!((bits.pages(), bits.has(64)), (vec![3, 700], false));
        assert!(bits.remove(3) && !bits.remove(3) && !bits.remove(9999));
        assert_eq!(bits.pages(), [700]);
    }
}
