//! The same policies in a guest's kernel.

use super::{Kind, Replacement};
use nestwalk_mm::{PageChoice, ProcessPage};
use std::convert::Infallible;

/// The window of a guest's working sets, in instructions: a turn of a VM, 3 ms.
const WINDOW: u64 = 6_000_000;

/// A policy that chooses among the pages of a guest's processes.
pub struct OfGuest(Box<dyn Replacement<Infallible>>);

impl OfGuest {
    /// That policy. None is exact: a kernel does not hear of every use.
    pub fn new(kind: Kind) -> Option<Self> {
        let policy = kind.make(WINDOW);
        (!policy.is_exact()).then_some(Self(policy))
    }
}

impl PageChoice for OfGuest {
    fn touched(&mut self, page: ProcessPage) {
        self.0.touched(page);
    }
    fn passed(&mut self, space: u32, instructions: u64) {
        self.0.passed(space, instructions);
    }
    fn victim(&mut self, used: &mut dyn FnMut(ProcessPage) -> Option<bool>) -> Option<ProcessPage> {
        match self.0.victim(&mut |page| Ok(used(page))) {
            Ok(victim) => victim,
        }
    }
}
