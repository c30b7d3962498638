//! `native`: no virtual machine. One walk over the guest's own tables, 4 references at most.
//!
//! The control that a virtual machine is compared with: the guest's placement, tables and kernel are
//! those of the virtual machines beside it, only that a guest-physical address *is* an address of RAM.

use super::{Build, Definition};
use crate::counters::Dimension;
use crate::engine::{AnyMachine, Machine};
use crate::hardware::Request;
use crate::scheme::{Answer, MachineError, Platform, Scheme};
use crate::walk::{Fault, Tables, walk_1d};
use nestwalk_hw::Translation;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "native",
    summary: "bare metal: one walk over the guest's own tables",
    virtualized: false,
    build,
};

fn build(request: Build) -> Result<Box<dyn AnyMachine>, MachineError> {
    Ok(Box::new(Machine::new(Native, request)?))
}

/// The scheme has no state of its own.
pub struct Native;

impl Scheme for Native {
    #[inline]
    fn walk(&mut self, platform: &mut Platform, request: &Request) -> Result<Translation, Fault> {
        let world = &mut platform.world;
        let root = world.root(request.vcpu);
        let mut tables = Tables {
            mode: world.mode,
            memory: &mut world.guest,
            root,
            dimension: Dimension::Guest,
        };
        walk_1d(&mut platform.hardware, &mut platform.counters, &mut tables, request)
    }

    fn answer(
        &mut self,
        _platform: &mut Platform,
        _request: &Request,
        _fault: Fault,
    ) -> Result<Answer, MachineError> {
        Ok(Answer::GuestFault)
    }
}
