//! No two pages beside each other: what hardware that lives of contiguity has least of.

use crate::physical::PhysicalMemory;
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::{Address, mix64};

/// Places that are tried before the default's is taken.
const TRIES: u64 = 64;

/// Each page at a place of its own, decided by its address and how many came before: a control, and no
/// kernel's policy. Where none of some places is free, the page lies where the default has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scattered {
    placed: u64,
}

/// The frame at a share of 2^64 of all memory, aligned to a page of this order.
fn at<O: Address>(ranges: &[(O, u64)], share: u64, order: u32) -> Option<O> {
    let bytes = 4096_u64 << order;
    let total: u64 = ranges.iter().map(|range| range.1 / bytes).sum();
    let mut page = ((u128::from(share) * u128::from(total)) >> 64) as u64;
    for (start, length) in ranges {
        if page < length / bytes {
            return Some(O::new((start.value() / bytes + page) * bytes));
        }
        page -= length / bytes;
    }
    None
}

impl<O: Address> Placement<O> for Scattered {
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let order = request.size.order();
        self.placed += 1;
        for i in 0..TRIES {
            let share = mix64(request.page ^ mix64(self.placed * TRIES + i));
            if let Some(frame) = at(memory.ranges(), share, order)
                && memory.alloc_at(frame, order)
            {
                return Some(Placed::new(frame, Outcome::Target));
            }
        }
        Some(Placed::new(memory.alloc(order)?, Outcome::Elsewhere))
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(*self)
    }
}
