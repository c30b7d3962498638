//! `victima`: nested paging whose second-level data caches hold translations, eight pages on end in a
//! line (Kanellopoulos et al., "Victima: Drastically Increasing Address Translation Reach by Leveraging
//! Underutilized Cache Resources", MICRO 2023). A miss of a core's second-level TLB looks for such a *TLB
//! block* in its second-level cache, beside the walk, which a hit cancels. Blocks hold gVA to hPA, and
//! *nested blocks* gPA to hPA for the walker's look-ups. `native-victima` is the same on bare metal.
//!
//! - *Filling.* When a walk ends whose page is costly to translate, the line of its leaf entry becomes
//!   a block: it is data no longer, and stands where the page's number says. The predictor is the
//!   paper's, two counters in unused bits of the entry: walks (3 bits) and their references to memory
//!   (4 bits), each of which has a least value (`walks`, `cost`). The paper's box has upper ends, too,
//!   which are left out, and so is its bypass, which takes all pages while the cache misses much
//!   (`cost=0` does). Here the counters are a table of a million, by a hash of the page.
//! - *What a block knows.* The page itself, and its neighbours whose entries are alike and whose frames
//!   follow from the lines that the walk has read, as for `colt`; others join by walks of their own.
//! - *Replacement.* Blocks and data compete as lines of one cache, by its LRU, so that a block comes in
//!   and is found as the most recently used. The paper's cache has SRRIP, into which blocks come with
//!   the best prediction while TLBs miss much, and which passes them over once.
//! - *Left out.* Blocks that are made when the TLB evicts an entry; the references of a walk that a hit
//!   cancels. The artifact (CMU-SAFARI/Victima, `tlb.cc`) has neither predictor nor owner of blocks:
//!   it fills on evictions alone, through the first level, and finds blocks in the last level, too.
//! - *Invalidations* are those of the core's TLBs. What voids an address space leaves the lines of its
//!   blocks where they are until others need them.

use super::{Definition, Facts};
use crate::assist::blocks::{BlockConfig, Blocked};
use crate::machine::{DynMachine, Machine};
use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};
use nestwalk_hw::blocks::Blocks;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "victima",
    summary: "nested paging with translations in lines of the second-level data cache (Victima)",
    virtualized: true,
    facts: Facts { own_structures: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The same on bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-victima",
    summary: "bare metal with translations in lines of the second-level data cache (Victima)",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

const YES: [(&str, bool); 2] = [("yes", true), ("no", false)];

static OPTIONS: OptionTable<BlockConfig> = OptionTable::new(&[
    OptionRow {
        name: "walks",
        values: "N",
        meaning: "walks of a page before it may be costly to translate (1)",
        set: |c, value| whole(value, 1, 7).map(|n| c.walks = n as u8),
        get: |c| c.walks.to_string(),
    },
    OptionRow {
        name: "cost",
        values: "N",
        meaning: "references to memory that its walks have had, 0 to take every page (1)",
        set: |c, value| whole(value, 0, 15).map(|n| c.cost = n as u8),
        get: |c| c.cost.to_string(),
    },
    OptionRow {
        name: "nested",
        values: "yes|no",
        meaning: "in a VM: blocks of guest-physical addresses, too (yes)",
        set: |c, value| one_of(value, &YES).map(|yes| c.nested = yes),
        get: |c| word_of(&c.nested, &YES),
    },
]);

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    let blocks = Blocks::new(request.profile.caches.l2.geometry());
    let config = request.options(&OPTIONS)?;
    let scheme = Blocked::new(config, &mut request)?;
    let mut machine = Machine::new(scheme, request)?;
    for core in &mut machine.platform.cpu.hardware.cores {
        core.blocks = Some(Box::new(blocks.clone()));
    }
    Ok(Box::new(machine))
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "walks=2/cost=0/nested=no";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("walks=1/cost=1/nested=yes").unwrap(), "");
        for (text, words) in [("walks=8", "1 to 7"), ("cost=16", "0 to 15")] {
            let e = OPTIONS.normalize(text).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
    }
}
