//! The same program under nested paging: which violations its walks meet, in order, and what the
//! hypervisor maps for each.

use crate::model::{Guest, ModelError, backed, config};
use crate::program::Program;
use crate::{Answers, Events};
use nestwalk_hw::Translation;
use nestwalk_sim::Machine;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hardware::{Processor, Request};
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::vmm_options::KvmVersion;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Scheme, Software};
use nestwalk_tables::{Entry, LONG4, look_up};
use nestwalk_types::{Address, Gpa};

/// Bits of the error code of a nested page fault (AMD64 manual, volume 2, "Nested versus Guest Page
/// Faults, Fault Ordering"): a store, an access of the guest, a fetch, the page itself, a guest's table.
const STORE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const FETCH: u64 = 1 << 4;
const PAGE: u64 = 1 << 32;
const TABLE: u64 = 1 << 33;

/// Nested paging, with what happens written down.
pub(crate) struct Observed {
    nested: Nested,
    events: Events,
}

/// Whether a walk for the access reads a guest's table in this page; if it does, before the page itself.
fn is_table(platform: &Platform, request: &Request, gpa: Gpa) -> bool {
    let world = &platform.cpu.world;
    let mut table = world.root(request.vcpu);
    for level in (1..=LONG4.levels).rev() {
        let at = LONG4.entry_at(table, request.gva.value(), level);
        if at.page_number() == gpa.page_number() {
            return true;
        }
        let entry = Entry(world.guest.read(at, 8).unwrap_or(0));
        if !entry.is_present() || entry.has(nestwalk_tables::entry::LARGE) {
            return false;
        }
        table = entry.target();
    }
    false
}

impl Observed {
    fn tables(&mut self) -> u64 {
        self.nested.mmu.tables().memory.len()
    }

    /// A violation was answered: the tables that were made for it, from above, and the entry.
    fn filled(&mut self, gpa: Gpa, made: u64) {
        let tables = self.nested.mmu.tables();
        let Ok(leaf) = look_up(tables.memory, tables.mode, tables.root, gpa) else { return };
        let base = |level: u8| gpa.page_number() & !(LONG4.span(level).base_pages() - 1);
        for level in (leaf.level..leaf.level + made as u8).rev() {
            self.events.push(format!("get {:x} l{level} direct wux new", base(level + 1)));
        }
        let (gfn, level) = (base(leaf.level), leaf.level);
        let index = LONG4.index(gpa.value(), level);
        self.events.push(format!("set {gfn:x} l{level} i{index:x} wux"));
    }
}

impl Software for Observed {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        let Fault::Nested { gpa, .. } = fault else {
            return self.nested.handle_fault(platform, request, fault);
        };
        let code = if is_table(platform, request, gpa) {
            // The walker may set the accessed bit.
            TABLE | USER | STORE
        } else {
            let bit = |so, bit| if so { bit } else { 0 };
            PAGE | USER | bit(request.write, STORE) | bit(request.fetch, FETCH)
        };
        self.events.push(format!("fault {:x} {code:x}", gpa.value() & !0xfff));
        let before = self.tables();
        let handled = self.nested.handle_fault(platform, request, fault)?;
        let made = self.tables() - before;
        self.filled(gpa, made);
        Ok(handled)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.nested.on(platform, event)
    }
}

impl Scheme for Observed {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.nested.walk(cpu, request, watch)
    }
}

impl Observed {
    /// What happened since.
    pub(crate) fn take(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }
}

/// A machine with nested paging, whose host has the pages that the program's has.
pub(crate) fn machine(program: &Program, version: KvmVersion) -> Result<Machine<Observed>, String> {
    let mut config = config(program, version)?;
    let nested = Nested::new(&mut config).map_err(|e| e.to_string())?;
    // The root is made before the guest runs.
    let root = "get 0 l4 direct wux new".to_owned();
    backed(program, Observed { nested, events: vec![root] }, config)
}

/// Performs a program under nested paging.
///
/// # Errors
/// The simulator cannot go on; it is said where.
pub fn perform(program: &Program, version: KvmVersion) -> Result<Answers, ModelError> {
    let failed = |what| ModelError { script: program.name.clone(), action: 0, what };
    let machine = machine(program, version).map_err(failed)?;
    Guest::new(program, machine).map_err(failed)?.perform(Observed::take)
}
