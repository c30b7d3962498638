//! Who sees the leaf entries that a walk ends at: TLBs that put several pages into an entry do.

use nestwalk_tables::{Handle, TableMemory};
use nestwalk_types::{Gpa, Hpa, PageSize};

/// Sees the leaf entry of a base page that a walk of one dimension ends at, after it was checked and
/// marked. The walker has the whole line of the data cache that the entry lies in.
pub trait Watch<A> {
    /// The entry lies at `at`, in the table of `held`.
    fn leaf(&mut self, memory: &TableMemory<A>, held: Handle, at: A, entry_bytes: u8);
}

/// Sees how the host's dimension of a walk translates the page of the access.
pub trait HostWatch: Watch<Hpa> {
    /// It looks: where nobody does, walkers leave the calls out.
    const LOOKS: bool;
    /// The page is at `gpa`, in a page of the host of this size.
    fn page(&mut self, gpa: Gpa, size: PageSize);
}

/// Sees both dimensions of a walk.
pub trait WalkWatch {
    /// Sees the first dimension: the guest's tables, or a shadow of them.
    type Guest: Watch<Gpa> + Watch<Hpa>;
    /// Sees the host's dimension, if there is one.
    type Host: HostWatch;
    /// Both.
    fn parts(&mut self) -> (&mut Self::Guest, &mut Self::Host);
}

/// Nobody watches.
impl<A> Watch<A> for () {
    #[inline(always)]
    fn leaf(&mut self, _memory: &TableMemory<A>, _held: Handle, _at: A, _entry_bytes: u8) {}
}

impl HostWatch for () {
    const LOOKS: bool = false;
    #[inline(always)]
    fn page(&mut self, _gpa: Gpa, _size: PageSize) {}
}

/// Nobody watches either dimension.
#[derive(Default)]
pub struct Nobody {
    guest: (),
    host: (),
}

impl WalkWatch for Nobody {
    type Guest = ();
    type Host = ();
    #[inline(always)]
    fn parts(&mut self) -> (&mut (), &mut ()) {
        (&mut self.guest, &mut self.host)
    }
}
