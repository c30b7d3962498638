//! How many PCIDs a TLB level knows at once. Processors compare the few bits of a slot, not the twelve
//! of a PCID: a load of CR3 with a PCID that has no slot takes the one used longest ago, whose entries
//! go (TLB;DR, USENIX Security 2022: four slots in Kaby Lake's second level, in order of use; in its
//! first-level data TLB no entry outlives a load of CR3).

use crate::tlb::Asid;

/// The slots of one level.
#[derive(Clone, Debug)]
pub struct PcidSlots {
    most: Option<u32>,
    /// The latest first.
    held: Vec<Asid>,
}

/// What a load of CR3 removes from a level, but for global entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Displaced {
    /// Nothing.
    Nothing,
    /// All entries.
    All,
    /// The entries of one address space.
    One(Asid),
}

impl PcidSlots {
    /// For this many; any number without a limit. The core begins with `first`.
    pub fn new(most: Option<u32>, first: Asid) -> Self {
        Self { most, held: vec![first] }
    }

    /// CR3 is loaded with a PCID.
    pub fn load(&mut self, asid: Asid) -> Displaced {
        let Some(most) = self.most else { return Displaced::Nothing };
        if most == 0 {
            return Displaced::All;
        }
        self.held.retain(|held| *held != asid);
        self.held.insert(0, asid);
        if self.held.len() > most as usize
            && let Some(last) = self.held.pop()
        {
            return Displaced::One(last);
        }
        Displaced::Nothing
    }
}
