//! What Linux's allocator gives: blocks in the order of its free lists, single pages from the
//! list of the processor on which the fault is (Linux 4.19; `free_lists.rs` has the lists).
//!
//! Not modelled: migration types (everything here is movable; page tables and the kernel's own
//! memory, which Linux keeps in other page blocks, take the lowest address of the smallest
//! block), NUMA nodes, watermarks and reclaim, and compaction. As with `defrag` at `madvise`, a
//! large page that is not free is not waited for.

use crate::physical::PhysicalMemory;
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::Address;

/// Free lists that are last in, first out, and lists of single pages per processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl<O: Address> Placement<O> for Linux {
    fn attach(&mut self, memory: &mut PhysicalMemory<O>) {
        memory.keep_free_lists();
    }
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let frame = memory.alloc_as_linux(request.size.order())?;
        Some(Placed::new(frame, Outcome::Ordinary))
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(*self)
    }
}
