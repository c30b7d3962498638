//! Bare metal: one walk, one line.

use super::lines::{LeafLine, native_line};
use crate::counters::Dimension;
use crate::hardware::Request;
use crate::scheme::{Answer, Event, MachineError, Platform, Scheme};
use crate::schemes::native::Native;
use crate::walk::{Fault, Tables, walk_1d_marking};
use nestwalk_hw::Translation;
use nestwalk_types::{Gpa, PageSize, Run};

/// `native`, whose walks say what lies beside the page.
#[derive(Default)]
pub struct CoalescingNative {
    inner: Native,
    leaves: LeafLine,
}

impl Scheme for CoalescingNative {
    const COALESCES: bool = true;

    #[inline]
    fn walk(&mut self, platform: &mut Platform, request: &Request) -> Result<Translation, Fault> {
        let Platform { world, hardware, counters, .. } = platform;
        let root = world.root(request.vcpu);
        let (mode, memory, dimension) = (world.mode, &mut world.guest, Dimension::Guest);
        let mut tables = Tables { mode, memory, root, dimension };
        let leaves = &mut self.leaves;
        leaves.forget();
        let found = walk_1d_marking(hardware, counters, &mut tables, request, |_, _| {}, leaves)?;
        if found.size() == PageSize::SIZE_4K
            && let Some(tlbs) = &mut hardware.cores[request.core()].coalesced
        {
            tlbs.line = native_line(request.gva, found.frame(), leaves);
        }
        Ok(found)
    }

    fn read_ahead(&mut self, platform: &Platform, runs: &[Run], gpas: &[Gpa]) {
        self.inner.read_ahead(platform, runs, gpas);
    }

    fn answer(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Answer, MachineError> {
        self.inner.answer(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.inner.on(platform, event)
    }
}
