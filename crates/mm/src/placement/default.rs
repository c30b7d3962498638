//! The default: what a buddy allocator gives, whatever happened before.

use crate::physical::PhysicalMemory;
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::Address;

/// The smallest block that fits, of these the one with the lowest address. It has no history,
/// which makes runs comparable, and neighbours of what was just allocated come next, which is
/// kinder to contiguity than Linux is: see [`crate::Linux`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstFit;

impl<O: Address> Placement<O> for FirstFit {
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let frame = memory.alloc(request.size.order())?;
        Some(Placed::new(frame, Outcome::Ordinary))
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(*self)
    }
}
