//! The same program, performed by the simulator's shadow MMU.

use crate::program::{Action, FILL, Image, Program, WINDOW};
use crate::{Answers, Events};
use nestwalk_hw::Profile;
use nestwalk_mm::{DaemonConfig, HostConfig, HostMemory, PagePolicy, PlacementKind};
use nestwalk_sim::hypervisor::shadow::observe::{PageName, Permits, ShadowEvent};
use nestwalk_sim::scheme::Scheme;
use nestwalk_sim::scheme::vmm_options::{KvmVersion, VmmOptions};
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::{DynMachine, Machine, MachineConfig};
use nestwalk_tables::{Entry, LONG4, Permissions};
use nestwalk_types::{
    Address, Control, FaultCode, Gpa, GuestBatch, Gva, Invalidation, Run, RunFlags, VcpuId,
};

/// Memory of the modelled host, and what of it its kernel has.
const HOST_BYTES: u64 = 1 << 30;
const HOST_KERNEL: u64 = 1 << 26;
const V0: VcpuId = VcpuId(0);

/// Why the model could not perform a program.
#[derive(Debug, thiserror::Error)]
#[error("{script}, action {action}: {what}")]
pub struct ModelError {
    /// The script.
    pub script: String,
    /// Number of the action, from 0.
    pub action: usize,
    /// What the simulator said.
    pub what: String,
}

fn access(p: Permits) -> String {
    let letter = |so, c| if so { c } else { '-' };
    [letter(p.write, 'w'), letter(p.user, 'u'), letter(p.execute, 'x')].iter().collect()
}

fn page(p: PageName) -> String {
    let kind = if p.direct { " direct" } else { "" };
    format!("{:x} l{}{kind} {}", p.gfn, p.level, access(p.access))
}

/// An event as a line, the same as a trace's ([`crate::trace::event`]).
pub(crate) fn told(event: &ShadowEvent) -> String {
    match *event {
        ShadowEvent::Fault { gva, code } => format!("fault {:x} {code:x}", gva.value() & !0xfff),
        ShadowEvent::Injected => "inject".to_owned(),
        ShadowEvent::Emulated => "emulate".to_owned(),
        ShadowEvent::Accessed(at) => format!("accessed {:x}", at.value()),
        ShadowEvent::Dirty(at) => format!("dirty {:x}", at.value()),
        ShadowEvent::Got(p, new) => {
            format!("get {} {}", page(p), if new { "new" } else { "old" })
        }
        ShadowEvent::Set { gfn, level, index, permits } => {
            format!("set {gfn:x} l{level} i{index:x} {}", access(permits))
        }
        ShadowEvent::Unsync(p) => format!("unsync {}", page(p)),
        ShadowEvent::Sync(p) => format!("sync {}", page(p)),
        ShadowEvent::Zapped(p) => format!("zap {}", page(p)),
    }
}

/// A guest of a machine, that performs a program.
pub(crate) struct Guest<'a, S: Scheme> {
    pub(crate) machine: Machine<S>,
    program: &'a Program,
}

type Told = Result<(), String>;

/// A machine for a program, without its scheme.
pub(crate) fn config(program: &Program, version: KvmVersion) -> Result<MachineConfig, String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let guest_bytes = program.pages << 12;
    let policy = if program.huge { "2m" } else { "4k" };
    let config = HostConfig {
        bytes: HOST_BYTES.max(guest_bytes * 2),
        mode: &LONG4,
        policy: PagePolicy::by_name(policy).ok_or("no such pages")?,
        placement: PlacementKind::default(),
        fragmentation: 0.0.into(),
        seed: 1,
        kernel_bytes: HOST_KERNEL,
        daemons: DaemonConfig::default(),
    };
    let host =
        HostMemory::with_config(&config, &[(Gpa::new(0), guest_bytes)]).map_err(|e| told(&e))?;
    Ok(MachineConfig {
        name: program.name.clone(),
        variant: String::new(),
        vmm: VmmOptions { kvm: version, ..VmmOptions::default() },
        // AMD's, as the emulated processor: no erratum of large pages.
        profile: Profile::load("zen2").map_err(|e| told(&e))?,
        guest_mode: &LONG4,
        nested_mode: &LONG4,
        vcpus: 1,
        guest_bytes,
        host: Some(host),
        verify: false,
    })
}

/// A machine with shadow paging, whose host has the pages that the program's has.
pub(crate) fn machine(program: &Program, version: KvmVersion) -> Result<Machine<Shadow>, String> {
    let config = config(program, version)?;
    let scheme = Shadow::new(&config).map_err(|e| e.to_string())?;
    backed(program, scheme, config)
}

/// The machine of a scheme, whose host has the pages that the program's has.
pub(crate) fn backed<S: Scheme>(
    program: &Program,
    scheme: S,
    config: MachineConfig,
) -> Result<Machine<S>, String> {
    let mut machine = Machine::new(scheme, config).map_err(|e| e.to_string())?;
    let whole = [(0, program.pages)];
    let backed = if program.backed.is_empty() { &whole[..] } else { &program.backed };
    for gfn in backed.iter().flat_map(|(first, count)| *first..first + count) {
        machine.platform.host_page(Gpa::new(gfn << 12)).map_err(|e| e.to_string())?;
    }
    Ok(machine)
}

impl<'a, S: Scheme> Guest<'a, S> {
    /// Its tables are there; no root is loaded yet.
    pub(crate) fn new(program: &'a Program, machine: Machine<S>) -> Result<Self, String> {
        let mut guest = Self { machine, program };
        for gfn in &program.tables {
            let mut entries = Box::new([0; 512]);
            for (i, entry) in entries.iter_mut().enumerate() {
                let at = gfn << 12 | (i as u64) << 3;
                *entry = program.memory.get(&at).copied().unwrap_or(0);
            }
            guest.add(*gfn, entries)?;
        }
        Ok(guest)
    }

    fn say(&mut self, control: Control) -> Told {
        let mut batch = GuestBatch::default();
        batch.batch.controls.push((0, control));
        self.machine.run(&batch).map_err(|e| e.to_string())
    }

    /// A page has these contents from now on.
    fn add(&mut self, gfn: u64, words: Box<[u64; 512]>) -> Told {
        let gpa = Gpa::new(gfn << 12);
        self.say(Control::TableAdded { vcpu: V0, gpa, entries: Some(words) })
    }

    fn load(&mut self, root: u64) -> Told {
        self.say(Control::LoadCr3 { vcpu: V0, root: Gpa::new(root), pcid: 0, keep: false })
    }

    /// Where the guest's tables lead, and whether they allow the access.
    fn look_up(&self, (va, user): (u64, bool), write: bool, fetch: bool) -> (Option<u64>, bool) {
        let world = &self.machine.platform.cpu.world;
        let mut table = world.roots[0];
        let mut permissions = Permissions::ALL;
        for level in (1..=LONG4.levels).rev() {
            let entry = Entry(world.guest.read(LONG4.entry_at(table, va, level), 8).unwrap_or(0));
            if !entry.is_present() {
                return (None, false);
            }
            permissions = permissions.and(entry);
            if level == 1 || entry.has(nestwalk_tables::entry::LARGE) {
                let size = LONG4.span(level);
                let frame: Gpa = entry.frame(size);
                let gpa = frame.offset_by(Gva::new(va).offset_in(size)).value();
                return (Some(gpa), permissions.allow(write, fetch, user));
            }
            table = entry.target();
        }
        (None, false)
    }

    /// An access; one that the kernel's tables do not allow faults, and its handler runs.
    fn access(
        &mut self,
        (va, user): (u64, bool),
        write: bool,
        fetch: bool,
    ) -> Result<Option<u64>, String> {
        let (gpa, allowed) = self.look_up((va, user), write, fetch);
        if !allowed {
            let code = FaultCode { present: gpa.is_some(), write, user, fetch };
            self.say(Control::Fault { vcpu: V0, gva: Gva::new(va), code })?;
            // Descriptors, the stack, and the handler.
            for (write, fetch) in [(false, false), (true, false), (false, true)] {
                self.run((self.program.own.va, false), write, fetch)?;
            }
            return Ok(None);
        }
        self.run((va, user), write, fetch)?;
        Ok(gpa)
    }

    fn run(&mut self, (va, user): (u64, bool), write: bool, fetch: bool) -> Told {
        let kind =
            RunFlags::when(RunFlags::STORE, write).union(RunFlags::when(RunFlags::FETCH, fetch));
        let mut batch = GuestBatch::default();
        batch.batch.runs.push(Run {
            gva: Gva::new(va),
            pc: Gva::new(self.program.own.va),
            lines: 1 << (va >> 6 & 63),
            count: 1,
            instructions: 1,
            vcpu: V0,
            flags: kind.union(RunFlags::when(RunFlags::KERNEL, !user)),
        });
        batch.gpas.push(Gpa::new(0));
        self.machine.run(&batch).map_err(|e| e.to_string())
    }

    /// A store of 8 bytes; one to a table is told as such.
    fn store(&mut self, (va, user): (u64, bool), value: u64) -> Told {
        let Some(gpa) = self.access((va, user), true, false)? else { return Ok(()) };
        self.say(Control::TableWrite { vcpu: V0, gpa: Gpa::new(gpa), value })
    }

    fn act(&mut self, action: Action) -> Told {
        if let Action::Place(number) = action {
            let image = self.program.images.get(number).ok_or("no such image")?;
            let Image { gfn, words } = image.clone();
            return self.add(gfn, words.unwrap_or_else(|| Box::new([FILL; 512])));
        }
        let user =
            matches!(action, Action::UserRead(_) | Action::UserWrite(_) | Action::UserFetch(_));
        let code = (self.program.own.va, user);
        // Every action enters the guest, where the emulated processor begins with an empty TLB.
        self.machine.platform.cpu.hardware.invalidate_everywhere();
        self.machine.platform.cpu.hardware.invalidate_nested_everywhere();
        self.run(code, false, true)?;
        match action {
            Action::Read(va) | Action::UserRead(va) => {
                self.access((va, user), false, false).map(|_| ())?;
            }
            Action::Write(va) | Action::UserWrite(va) => self.store((va, user), FILL)?,
            Action::Fetch(va) | Action::UserFetch(va) => {
                return self.access((va, user), false, true).map(|_| ());
            }
            Action::Store(at, value) => self.store((WINDOW + at, false), value)?,
            Action::Put(at, value) => self.store((at, false), value)?,
            Action::Invlpg(va) => {
                self.say(Control::Invalidate { vcpu: V0, what: Invalidation::Page(Gva::new(va)) })?
            }
            Action::Cr3(root) => self.load(root)?,
            Action::Place(_) => {}
        }
        self.run(code, false, true)
    }
}

impl<S: Scheme> Guest<'_, S> {
    /// Loads the first root and performs all actions. `take` takes what the scheme has told since.
    pub(crate) fn perform(
        mut self,
        take: impl Fn(&mut S) -> Events,
    ) -> Result<Answers, ModelError> {
        let program = self.program;
        let failed = |action, what| ModelError { script: program.name.clone(), action, what };
        self.load(program.root).map_err(|e| failed(0, e))?;
        let mut answers = Answers::new();
        for (i, action) in program.actions.iter().enumerate() {
            self.act(*action).map_err(|e| failed(i, e))?;
            answers.push(take(&mut self.machine.scheme));
        }
        Ok(answers)
    }
}

/// Performs a program under shadow paging, with the rules of a KVM version.
///
/// # Errors
/// The simulator cannot go on; it is said where.
pub fn perform(program: &Program, version: KvmVersion) -> Result<Answers, ModelError> {
    let failed = |what| ModelError { script: program.name.clone(), action: 0, what };
    let machine = machine(program, version).map_err(failed)?;
    let mut guest = Guest::new(program, machine).map_err(failed)?;
    guest.machine.scheme.mmu.observe();
    guest.perform(|shadow| shadow.mmu.take_observed().iter().map(told).collect())
}
