//! Nested paging: a walk ends with a line of the guest's entries and one of nested entries.

use super::lines::{LeafLine, combine};
use crate::counters::{Counters, Dimension};
use crate::engine::Build;
use crate::hardware::{Hardware, Request};
use crate::scheme::{Answer, Event, MachineError, PageTableBytes, Platform, Scheme};
use crate::schemes::nested::Nested;
use crate::walk::{
    Fault, HostDimension, NestedTables, Purpose, Tables, translate_nested_watched, walk_2d_watched,
};
use nestwalk_hw::Translation;
use nestwalk_types::{Gpa, PageSize, Run};

/// `nested`, whose walks say what lies beside the page.
pub struct CoalescingNested {
    /// The hypervisor.
    pub inner: Nested,
    guest: LeafLine,
    host: LeafLine,
}

impl CoalescingNested {
    /// With an empty root table, whose frame comes from the machine's host.
    ///
    /// # Errors
    /// There is no host, or no frame.
    pub fn new(build: &mut Build) -> Result<Self, MachineError> {
        let (guest, host) = (LeafLine::default(), LeafLine::default());
        Ok(Self { inner: Nested::new(build)?, guest, host })
    }
}

/// Nested tables, the look-up of the page of the access being watched.
struct Watched<'a> {
    tables: NestedTables<'a>,
    line: &'a mut LeafLine,
    /// Where the page is, and the nested page's size.
    page: Option<(Gpa, PageSize)>,
}

impl HostDimension for Watched<'_> {
    #[inline]
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        let (tables, what) = (&mut self.tables, (gpa, purpose));
        if purpose.on_behalf > 0 {
            return translate_nested_watched(hardware, counters, tables, core, what, &mut ());
        }
        let found = translate_nested_watched(hardware, counters, tables, core, what, self.line)?;
        self.page = Some((gpa, found.size()));
        Ok(found)
    }
}

impl Scheme for CoalescingNested {
    const COALESCES: bool = true;

    #[inline]
    fn walk(&mut self, platform: &mut Platform, request: &Request) -> Result<Translation, Fault> {
        let Platform { world, hardware, counters, .. } = platform;
        let root = world.root(request.vcpu);
        let (mode, memory, dimension) = (world.mode, &mut world.guest, Dimension::Guest);
        let mut guest = Tables { mode, memory, root, dimension };
        self.guest.forget();
        self.host.forget();
        let (tables, line) = (self.inner.mmu.tables(), &mut self.host);
        let mut host = Watched { tables, line, page: None };
        let leaves = &mut self.guest;
        let found = walk_2d_watched(hardware, counters, &mut guest, &mut host, request, leaves)?;
        if found.size() == PageSize::SIZE_4K
            && let Some((gpa, size)) = host.page
            && let Some(tlbs) = &mut hardware.cores[request.core()].coalesced
        {
            let places = (request.gva, gpa, found.frame());
            tlbs.line = combine(places, size, leaves, host.line);
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

    fn page_table_bytes(&self, platform: &Platform) -> PageTableBytes {
        self.inner.page_table_bytes(platform)
    }
}
