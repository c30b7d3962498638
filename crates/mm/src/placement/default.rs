//! The default: what Linux does, which is to take what the buddy allocator gives.

use crate::physical::PhysicalMemory;
use crate::placement::{Placement, Request};
use nestwalk_types::Address;

/// The smallest block that fits, of these the one with the lowest address.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstFit;

impl<O: Address> Placement<O> for FirstFit {
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<O> {
        memory.alloc(request.size.order())
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(*self)
    }
}
