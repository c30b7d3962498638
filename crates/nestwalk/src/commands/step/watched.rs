//! A machine whose every action is written down: what hardware and VMM did, and what changed by it.

use super::state::{Look, Part};
use nestwalk_hw::Translation;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hardware::world::World;
use nestwalk_sim::hardware::{Processor, Request, Step, Watcher};
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Report, Scheme, Software};
use nestwalk_sim::schemes::switching::Switching;
use nestwalk_sim::{Counters, Dimension, ExitReason};
use nestwalk_tables::Mode;
use nestwalk_types::{Gpa, Gva, Invalidation};
use serde::Serialize;
use std::collections::BTreeMap;

/// What changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    /// Where.
    pub part: Part,
    /// What.
    pub name: String,
    /// Its value before; empty if it was not there.
    pub before: String,
    /// Its value now.
    pub now: String,
}

/// An action and what changed by it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Moment {
    /// Who did what.
    pub what: String,
    /// References of a walk: `gL4`.
    pub references: Vec<String>,
    /// Exits to the VMM.
    pub exits: Vec<String>,
    /// What changed.
    pub changes: Vec<Change>,
}

/// A VM in either paging mode, whose actions are written down.
pub struct Watched {
    vm: Switching,
    pages: Vec<Gva>,
    roots: Vec<Gpa>,
    frames: Vec<Gpa>,
    known: BTreeMap<(Part, String), String>,
    exits: [u64; ExitReason::ALL.len()],
    /// What happened so far.
    pub moments: Vec<Moment>,
}

/// The name of the entry that a reference read.
pub fn entry_name(step: &Step) -> String {
    let letter = match step.dimension {
        Dimension::Guest => 'g',
        Dimension::Nested => 'h',
        Dimension::Shadow => 's',
    };
    format!("{letter}L{}", step.level)
}

impl Watched {
    /// Watches these pages.
    pub fn new(vm: Switching, pages: Vec<Gva>) -> Self {
        Self {
            vm,
            pages,
            roots: Vec::new(),
            frames: Vec::new(),
            known: BTreeMap::new(),
            exits: [0; ExitReason::ALL.len()],
            moments: Vec::new(),
        }
    }

    /// Forgets what happened, not what is known.
    pub fn begin(&mut self) {
        self.moments.clear();
        self.frames.clear();
    }

    /// Writes an action down without a look at what it changed: that is the next one's.
    fn announce(&mut self, what: String) {
        let (references, exits, changes) = (Vec::new(), Vec::new(), Vec::new());
        self.moments.push(Moment { what, references, exits, changes });
    }

    /// What is there already of something that is looked at from now on is no change.
    fn learn(&mut self, cpu: &mut Processor) {
        let (roots, pages, frames) = (&self.roots, &self.pages, &self.frames);
        let mut look = Look { cpu, vm: &mut self.vm, roots, pages, frames };
        for (part, name, value) in look.items().into_iter().filter(|item| item.0 == Part::Vmm) {
            self.known.entry((part, name)).or_insert(value);
        }
    }

    /// Writes an action down, with all that has changed since the last. `always`: even if nothing has.
    pub fn moment(&mut self, cpu: &mut Processor, what: &str, always: bool) {
        self.note(cpu, what.into(), Vec::new(), always);
    }

    fn note(&mut self, cpu: &mut Processor, what: String, references: Vec<String>, always: bool) {
        let root = cpu.world.roots[0];
        if root != Gpa::new(0) && !self.roots.contains(&root) {
            self.roots.push(root);
            if self.roots.len() == 2 {
                self.name_the_first_process();
            }
        }
        let exits = self.new_exits(&cpu.counters);
        let (roots, pages, frames) = (&self.roots, &self.pages, &self.frames);
        let mut look = Look { cpu, vm: &mut self.vm, roots, pages, frames };
        let mut changes = Vec::new();
        let gone = look.gone();
        for ((part, name), value) in &mut self.known {
            let is_gone = gone.iter().any(|head| name.starts_with(head));
            if is_gone && !["empty", "in step", "gone"].contains(&value.as_str()) {
                let now = "gone".to_owned();
                let before = std::mem::replace(value, now.clone());
                changes.push(Change { part: *part, name: name.clone(), before, now });
            }
        }
        for (part, name, now) in look.items() {
            let before = self.known.insert((part, name.clone()), now.clone());
            let nothing = ["empty", "none", "in step"].contains(&now.as_str());
            match before {
                Some(before) if before != now => changes.push(Change { part, name, before, now }),
                None if !nothing => changes.push(Change { part, name, before: String::new(), now }),
                _ => {}
            }
        }
        if always || !changes.is_empty() || !exits.is_empty() {
            self.moments.push(Moment { what, references, exits, changes });
        }
    }

    /// Things are called by their process from now on.
    fn name_the_first_process(&mut self) {
        let named = |name: &str| {
            ["gL", "sL", "shadow of", "L1 TLB", "L2 TLB"].iter().any(|head| name.starts_with(head))
        };
        let known = std::mem::take(&mut self.known);
        self.known = known
            .into_iter()
            .map(|((part, name), value)| {
                let name = if named(&name) { format!("{name} of process 1") } else { name };
                ((part, name), value)
            })
            .collect();
    }

    fn new_exits(&mut self, counters: &Counters) -> Vec<String> {
        let mut told = Vec::new();
        for reason in ExitReason::ALL {
            let n = counters.exits[reason as usize];
            // Counters begin anew with the region of interest.
            let more = n.saturating_sub(self.exits[reason as usize]);
            self.exits[reason as usize] = n;
            let word = reason.name().replace('_', " ");
            match more {
                0 => {}
                1 => told.push(word),
                n => told.push(format!("{n} times {word}")),
            }
        }
        told
    }
}

fn scope(what: Invalidation) -> String {
    match what {
        Invalidation::Page(gva) => format!("the page {:#x} (INVLPG)", gva.value()),
        Invalidation::PageInPcid(gva, pcid) => {
            format!("the page {:#x} in PCID {pcid} (INVPCID)", gva.value())
        }
        Invalidation::Pcid(pcid) => format!("all of PCID {pcid} (INVPCID)"),
        Invalidation::AllButGlobal => "all but what is global".into(),
        Invalidation::All => "everything".into(),
    }
}

/// Who did what, for events that the VMM may hear of.
fn name_of(event: &Event<'_>) -> String {
    match event {
        Event::LoadCr3 { pcid, .. } => format!("guest kernel: loads CR3 with PCID {pcid}"),
        Event::Invalidate { what, .. } => format!("guest kernel: invalidates {}", scope(*what)),
        Event::TableStore { at, .. } => {
            format!("guest kernel: stores to the entry at gPA {:#x} of a table", at.value())
        }
        Event::TableAdded { at, .. } => {
            format!("guest kernel: takes gPA {:#x} for a table", at.value())
        }
        Event::TableRetired { at, .. } => {
            format!("guest kernel: gPA {:#x} is no table now", at.value())
        }
        Event::PageWritten { at, .. } => {
            format!("guest kernel: clears the page at gPA {:#x}", at.value())
        }
        Event::HostChanged { at, .. } => {
            format!("host: the memory behind gPA {:#x} is not there any more", at.value())
        }
        _ => "something else".into(),
    }
}

impl Scheme for Watched {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let before = std::mem::replace(&mut cpu.hardware.watcher, Watcher::Steps(Vec::new()));
        let result = self.vm.walk(cpu, request, watch);
        let watcher = std::mem::replace(&mut cpu.hardware.watcher, before);
        let steps = if let Watcher::Steps(steps) = watcher { steps } else { Vec::new() };
        let end = match result {
            Ok(found) => format!("finds hPA {:#x}", found.apply(request.gva).value()),
            Err(Fault::Linear { level, protection: true }) => {
                format!("a fault: the entry of level {level} forbids it")
            }
            Err(Fault::Linear { level, .. }) => format!("a fault: no entry at level {level}"),
            Err(Fault::Nested { gpa, .. }) => {
                format!("an EPT violation: no nested entry of gPA {:#x}", gpa.value())
            }
        };
        let what = format!("hardware: walks for {:#x}, {end}", request.gva.value());
        self.note(cpu, what, steps.iter().map(entry_name).collect(), true);
        result
    }

    fn fill_l2(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        self.vm.fill_l2(cpu, request, found);
        self.moment(cpu, "hardware: fills the second-level TLB", false);
    }
}

impl Software for Watched {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        let handled = self.vm.handle_fault(platform, request, fault)?;
        let what = match handled {
            Handled::GuestFault if self.vm.paging_mode() == Some(PagingMode::Nested) => {
                "hardware: the fault is the guest's, and goes to its kernel without an exit"
            }
            Handled::GuestFault => "VMM: the fault is the guest's, and is injected",
            Handled::Emulated(_) => "VMM: emulates the access",
            _ => "VMM: mends its tables, and the access is made again",
        };
        self.moment(&mut platform.cpu, what, true);
        Ok(handled)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        let name = name_of(&event);
        let always = matches!(event, Event::LoadCr3 { .. } | Event::Invalidate { .. });
        if let Event::PageWritten { at, .. } = event
            && !self.frames.contains(&at)
        {
            self.frames.push(at);
            self.learn(&mut platform.cpu);
        }
        if always {
            // What CR3 says and what hardware walks differ until the VMM has answered.
            self.announce(name);
            self.vm.on(platform, event)?;
            self.moment(&mut platform.cpu, "VMM and hardware: do what that means", false);
            return Ok(());
        }
        // The event's own effect on the guest's tables comes before the VMM's answer.
        let before = self.moments.len();
        self.moment(&mut platform.cpu, &name, true);
        self.vm.on(platform, event)?;
        self.moment(&mut platform.cpu, "VMM: answers", false);
        // An event that changed nothing and that nobody answered is passed over.
        let silent = self.moments.len() == before + 1;
        if silent && self.moments[before].changes.is_empty() {
            self.moments.truncate(before);
        }
        Ok(())
    }

    fn next_timer(&self) -> u64 {
        self.vm.next_timer()
    }

    fn timer(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        self.vm.timer(platform)?;
        self.moment(&mut platform.cpu, "VMM: changes the paging mode", false);
        Ok(())
    }

    fn emulates_interrupts(&self) -> bool {
        self.vm.emulates_interrupts()
    }

    fn paging_mode(&self) -> Option<PagingMode> {
        self.vm.paging_mode()
    }

    fn walk_mode(&self, world: &World) -> &'static Mode {
        self.vm.walk_mode(world)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        self.vm.report(platform, out);
    }
}
