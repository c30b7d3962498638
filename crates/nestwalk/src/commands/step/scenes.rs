//! Scenes: small streams of events, and which part of them is shown.

use super::watched::{Moment, Watched};
use crate::args::SceneArg;
use anyhow::Result;
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_sim::compare::{Plan, configuration};
use nestwalk_sim::schemes::switching::Switching;
use nestwalk_sim::{DynMachine, Machine};
use nestwalk_tables::{LONG4, look_up};
use nestwalk_types::{
    AccessKind, Address, Batch, BatchBuilder, Control, GuestBatch, Gva, ProcessId, Protection,
    VcpuId,
};

const GUEST_BYTES: u64 = 1 << 30;
const VCPU: VcpuId = VcpuId(0);
const FIRST: ProcessId = ProcessId(0);
const SECOND: ProcessId = ProcessId(1);
/// Where the pages of the scenes are: in the middle of a table.
const BASE: u64 = 0x7fff_f7a8_0000;
/// Instructions of an access.
const INSTRUCTIONS: u32 = 1000;

/// One thing that a program does.
enum Act {
    /// Something that is no access.
    Does(Control),
    /// An access to the page of this number.
    Access(u64, AccessKind),
    /// The host takes the memory behind the page of this number back.
    TakenBack(u64),
}
use Act::{Access, Does, TakenBack};

/// A scene.
pub struct Scene {
    /// What it shows.
    pub title: &'static str,
    /// The machine.
    pub machine: &'static str,
    /// Pages that are looked at, by number.
    pages: &'static [u64],
    /// What happens before, not shown.
    before: Vec<Act>,
    /// What is shown.
    shown: Vec<Act>,
}

fn page(number: u64) -> Gva {
    Gva::new(BASE + (number << 12))
}

fn map(pages: u64) -> Act {
    let (process, start, protection) = (FIRST, page(0), Protection::READ_WRITE);
    Does(Control::Map { process, start, bytes: pages << 12, protection })
}

fn protect(first: u64, pages: u64, protection: Protection) -> Act {
    let (process, start) = (FIRST, page(first));
    Does(Control::Protect { process, start, bytes: pages << 12, protection })
}

fn populate(first: u64, pages: u64) -> Act {
    let (process, start) = (FIRST, page(first));
    Does(Control::Populate { process, start, bytes: pages << 12 })
}

/// Pages for whose change a kernel flushes all in place of one by one (Linux: more than 33).
const MANY: u64 = 40;

const SHADOW: &str = "switching/every=1000000000000000";
const NESTED: &str = "switching/start=nested/every=1000000000000000";

/// The scene of that name.
pub fn scene(name: SceneArg) -> Scene {
    let (load, store) = (AccessKind::Load, AccessKind::Store);
    match name {
        SceneArg::ShadowFault => Scene {
            title: "a shadow page fault: the guest maps a page, and the VMM its shadow",
            machine: SHADOW,
            pages: &[1],
            before: vec![map(4), Access(0, load)],
            shown: vec![Access(1, load)],
        },
        SceneArg::Unsync => Scene {
            title: "out of step and back: stores to a leaf table are free until the next flush",
            machine: SHADOW,
            pages: &[0, 1, 2],
            before: vec![map(MANY), populate(3, MANY - 3), Access(0, store)],
            shown: vec![
                Access(1, store),
                Access(2, store),
                protect(1, 1, Protection::READ),
                protect(0, MANY, Protection::READ),
                Access(2, load),
            ],
        },
        SceneArg::Cow => Scene {
            title: "copy on write: a store to a page that a fork has made common",
            machine: SHADOW,
            pages: &[0],
            before: vec![map(2), Access(0, store)],
            shown: vec![
                Does(Control::Fork { parent: FIRST, child: SECOND }),
                Access(0, load),
                Access(0, store),
            ],
        },
        SceneArg::EptViolation => Scene {
            title: "an EPT violation: the guest has a page, and nested tables have not",
            machine: NESTED,
            pages: &[1],
            before: vec![map(4), Access(0, load)],
            shown: vec![Access(1, load), TakenBack(1), Access(1, load)],
        },
        SceneArg::ModeSwitch => Scene {
            title: "a mode switch: from shadow to nested paging and on",
            machine: "switching/every=3000/plan=s1n1000",
            pages: &[0],
            before: vec![
                map(4),
                Access(0, store),
                Access(1, load),
                Does(Control::RegionOfInterest),
                Access(0, load),
                Access(1, load),
            ],
            shown: vec![Access(0, load), Access(1, load), Access(0, load)],
        },
    }
}

/// Each control and run by itself.
fn singly(all: &GuestBatch) -> Vec<GuestBatch> {
    let mut found = Vec::new();
    for (controls, runs) in all.batch.segments() {
        for (_, control) in controls {
            let batch = Batch { runs: Vec::new(), controls: vec![(0, control.clone())] };
            found.push(GuestBatch { batch, gpas: Vec::new() });
        }
        for i in runs {
            let batch = Batch { runs: vec![all.batch.runs[i]], controls: Vec::new() };
            found.push(GuestBatch { batch, gpas: vec![all.gpas[i]] });
        }
    }
    found
}

fn told(act: &Act) -> String {
    match act {
        Access(number, kind) => {
            let verb = match kind {
                AccessKind::Load => "loads from",
                AccessKind::Store => "stores to",
                AccessKind::Fetch => "fetches from",
            };
            format!("program: {verb} {:#x}", page(*number).value())
        }
        Does(Control::Fork { .. }) => "program: forks".into(),
        TakenBack(number) => {
            format!("host: takes the memory behind {:#x} back", page(*number).value())
        }
        Does(Control::Protect { start, bytes, .. }) => {
            let pages =
                if *bytes >> 12 == 1 { "page".into() } else { format!("{} pages", bytes >> 12) };
            format!("program: makes the {pages} at {:#x} read-only", start.value())
        }
        Does(_) => "counting begins".into(),
    }
}

/// A machine, and the guest that drives it.
struct Stage {
    machine: Machine<Watched>,
    guest: ModelledGuest,
    builder: BatchBuilder,
}

impl Stage {
    fn new(scene: &Scene, profile: Profile) -> Result<Self> {
        let spec = MachineSpec::parse(scene.machine, PagePolicy::Base)?;
        let plan = Plan::new(Vec::new(), profile, (GUEST_BYTES, 2 * GUEST_BYTES));
        let mut config = configuration(&plan, &spec)?;
        let vm = Switching::new(&mut config)?;
        let pages = scene.pages.iter().map(|n| page(*n)).collect();
        let machine = Machine::new(Watched::new(vm, pages), config)?;
        let guest = ModelledGuest::new(GuestConfig::new(&LONG4, GUEST_BYTES))?;
        Ok(Self { machine, guest, builder: BatchBuilder::new() })
    }

    /// The host takes the memory behind a page back.
    fn take_back(&mut self, page: Gva, told: &str) -> Result<()> {
        let world = &self.machine.platform.cpu.world;
        let found = look_up(&world.guest, world.mode, world.roots[0], page);
        let Machine { scheme, platform, .. } = &mut self.machine;
        scheme.moment(&mut platform.cpu, told, true);
        if let Ok(leaf) = found {
            self.machine.discard(leaf.apply(page))?;
        }
        let Machine { scheme, platform, .. } = &mut self.machine;
        scheme.moment(&mut platform.cpu, "VMM: drops what maps it", false);
        Ok(())
    }

    fn act(&mut self, act: &Act) -> Result<()> {
        let told = told(act);
        match act {
            TakenBack(number) => return self.take_back(page(*number), &told),
            Does(control) => self.builder.control(control.clone()),
            Access(number, kind) => {
                let (pc, gva) = (Gva::new(0x40_0000), page(*number).offset_by(0x40));
                self.builder.access(VCPU, pc, gva, 8, *kind, INSTRUCTIONS);
            }
        }
        let (mut batch, mut events) = (Batch::default(), GuestBatch::default());
        self.builder.take_into(&mut batch);
        self.guest.process(&batch, &mut events)?;
        if matches!(act, Does(_)) {
            let Machine { scheme, platform, .. } = &mut self.machine;
            scheme.moment(&mut platform.cpu, &told, true);
        }
        for event in singly(&events) {
            let what = match event.batch.controls.first() {
                None => Some(told.clone()),
                Some((_, Control::Fault { .. })) => {
                    Some(format!("{told}, which the guest's tables do not allow"))
                }
                Some(_) => None,
            };
            let Machine { scheme, platform, .. } = &mut self.machine;
            if let Some(what) = &what {
                scheme.moment(&mut platform.cpu, what, true);
            }
            self.machine.run(&event)?;
            let Machine { scheme, platform, .. } = &mut self.machine;
            let end = match event.batch.controls.first() {
                None => "hardware: the access is done",
                Some((_, Control::Fault { .. })) => "hardware: delivers the page fault",
                Some(_) => "guest kernel: goes on",
            };
            scheme.moment(&mut platform.cpu, end, false);
        }
        Ok(())
    }
}

/// What happens in a scene, in order.
///
/// # Errors
/// The machine cannot be set up, or cannot go on.
pub fn play(scene: &Scene, profile: Profile) -> Result<Vec<Moment>> {
    let mut stage = Stage::new(scene, profile)?;
    for act in &scene.before {
        stage.act(act)?;
    }
    stage.machine.scheme.begin();
    for act in &scene.shown {
        stage.act(act)?;
    }
    Ok(std::mem::take(&mut stage.machine.scheme.moments))
}
