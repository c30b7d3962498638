//! Base pages that share a TLB entry on processors that coalesce four of them (profiles with `16k`):
//! what the walker sees beside the leaf entry that it ends at, in the line of the data cache that it has
//! read, without a further reference.
//!
//! Four pages share an entry if their leaf entries lie in an aligned group, lead to frames one after the
//! other from an aligned one, are all present and accessed, and are alike in whatever an entry has once:
//! permissions, dirty and global bit, memory type, protection key. Nested tables without accessed flags
//! (`eptad=off`) have none to be set. In two dimensions both the guest's
//! group and the nested one of where it leads must do so; a larger page of either is in order by itself.
//! If the nested TLB served the last look-up there was no nested line to see, and nothing is shared.

use super::Found;
use nestwalk_tables::entry::{ACCESSED, DIRTY, GLOBAL, NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_tables::{Entry, Handle, TableMemory};
use nestwalk_types::{Address, Hpa, PageSize};

/// Bits of a leaf entry of a base page that are the same for all pages of a TLB entry: what is checked,
/// memory type (PWT, PCD, PAT), protection key.
pub const ALIKE: u64 = PRESENT
    | WRITE
    | USER
    | ACCESSED
    | DIRTY
    | GLOBAL
    | NO_EXECUTE
    | 1 << 3
    | 1 << 4
    | 1 << 7
    | 0xf << 59;

/// Pages of a group.
const PAGES: u64 = 4;

/// Whether the leaf entries of the group around `at`, in the table of `held`, may share a TLB entry.
/// `flags`: they have accessed flags.
#[inline(never)]
pub fn in_order<A: Address>(
    memory: &TableMemory<A>,
    held: Handle,
    at: A,
    entry_bytes: u8,
    flags: bool,
) -> bool {
    let bytes = u64::from(entry_bytes);
    let first = at.value() & !(bytes * PAGES - 1);
    let entry = |i: u64| Entry(memory.entry(held, A::new(first + bytes * i), entry_bytes));
    let target = |e: Entry| e.target::<Hpa>().page_number();
    let own = entry(0);
    own.is_present()
        && (!flags || own.has(ACCESSED))
        && target(own).is_multiple_of(PAGES)
        && (1..PAGES).all(|i| {
            let other = entry(i);
            other.0 & ALIKE == own.0 & ALIKE && target(other) == target(own) + i
        })
}

impl<A: Address> Found<A> {
    /// With the size that its TLB entry may have.
    #[inline(always)]
    pub(super) fn shared(
        self,
        memory: &TableMemory<A>,
        held: Handle,
        at: A,
        entry_bytes: u8,
    ) -> Self {
        if !in_order(memory, held, at, entry_bytes, true) {
            return self;
        }
        let size = PageSize::SIZE_16K;
        Self { frame: self.frame.align_down(size), size, ..self }
    }
}
