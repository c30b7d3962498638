//! What can be seen of a VM at a moment: entries of tables, and of TLBs.

use crate::commands::entries;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_sim::hardware::Processor;
use nestwalk_sim::scheme::Software;
use nestwalk_sim::schemes::switching::Switching;
use nestwalk_tables::entry::LARGE;
use nestwalk_tables::{Entry, Level, Mode, TableMemory};
use nestwalk_types::{Address, Gpa, Gva, Hpa};
use serde::Serialize;

/// Where something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// In the guest's tables, or its CR3.
    Guest,
    /// In the tables of the VMM.
    Vmm,
    /// In the TLBs.
    Tlb,
}

/// A thing and its value: part, name, value.
pub type Item = (Part, String, String);

/// A vCPU and the tables behind it.
pub struct Look<'a> {
    /// Hardware and the guest's tables.
    pub cpu: &'a mut Processor,
    /// The VMM's tables.
    pub vm: &'a mut Switching,
    /// Root tables of the guest's processes, in the order in which they came.
    pub roots: &'a [Gpa],
    /// Pages of programs that are looked at.
    pub pages: &'a [Gva],
    /// Pages of the guest's memory that are looked at, beside those behind `pages`.
    pub frames: &'a [Gpa],
}

/// Entries on the way of an address from a root down: level, index, contents.
fn path<I: Address, O: Address>(
    mode: &Mode,
    memory: &TableMemory<O>,
    root: O,
    address: I,
) -> Vec<(Level, u64, Entry)> {
    let (mut found, mut table) = (Vec::new(), root);
    for level in (1..=mode.levels).rev() {
        let at = mode.entry_at(table, address.value(), level);
        let Some(entry) = memory.read(at, mode.entry_bytes).map(Entry) else { break };
        found.push((level, mode.index(address.value(), level), entry));
        if !entry.is_present() || (entry.has(LARGE) && mode.may_be_leaf(level)) {
            break;
        }
        table = entry.target();
    }
    found
}

impl Look<'_> {
    /// All of it; of entries that several pages share one.
    pub fn items(&mut self) -> Vec<Item> {
        let mut all = Vec::new();
        let mode = match self.vm.paging_mode() {
            Some(PagingMode::Nested) => "nested",
            _ => "shadow",
        };
        all.push((Part::Vmm, "paging mode".into(), mode.to_owned()));
        self.guest(&mut all);
        self.shadow(&mut all);
        self.nested(&mut all);
        self.tlbs(&mut all);
        all.sort();
        all.dedup();
        all
    }

    /// Beginnings of the names of what is not there at all now.
    pub fn gone(&mut self) -> Vec<&'static str> {
        let (shadow, nested) = self.vm.halves();
        let mut names = Vec::new();
        if shadow.mmu.walk_root(0) == Hpa::new(0) {
            names.extend(["sL", "shadow of"]);
        }
        if nested.is_none() {
            names.push("hL");
        }
        names
    }

    /// The process that runs, from 1, and its root.
    fn current(&self) -> Option<(usize, Gpa)> {
        let root = self.cpu.world.roots[0];
        self.roots.iter().position(|r| *r == root).map(|i| (i + 1, root))
    }

    /// A name with the process, if there are several.
    fn of(&self, name: &str, process: usize) -> String {
        if self.roots.len() > 1 { format!("{name} of process {process}") } else { name.into() }
    }

    fn guest(&self, all: &mut Vec<Item>) {
        let world = &self.cpu.world;
        if let Some((process, root)) = self.current() {
            all.push((
                Part::Guest,
                "CR3".into(),
                self.of(&format!("{:#x}", root.value()), process),
            ));
        }
        for (i, root) in self.roots.iter().enumerate() {
            for page in self.pages {
                for (level, index, entry) in path(world.mode, &world.guest, *root, *page) {
                    let name = self.of(&format!("gL{level}[{index}]"), i + 1);
                    all.push((Part::Guest, name, entries::text(entry.0)));
                }
            }
        }
    }

    fn shadow(&mut self, all: &mut Vec<Item>) {
        let Some((process, root)) = self.current() else { return };
        let leaves: Vec<Option<Gpa>> =
            self.pages.iter().map(|page| self.leaf_table(root, *page)).collect();
        let (shadow, _) = self.vm.halves();
        let top = shadow.mmu.walk_root(0);
        if top == Hpa::new(0) {
            return;
        }
        let mut found = Vec::new();
        for (page, leaf) in self.pages.iter().zip(leaves) {
            let (mode, memory) = shadow.mmu.tables();
            for (level, index, entry) in path(mode, memory, top, *page) {
                found.push((format!("sL{level}[{index}]"), entries::text(entry.0)));
            }
            if let Some(table) = leaf {
                let step = if shadow.mmu.is_out_of_step(table) { "out of step" } else { "in step" };
                found.push(("shadow of gL1".into(), step.into()));
            }
        }
        for (name, value) in found {
            all.push((Part::Vmm, self.of(&name, process), value));
        }
    }

    /// The guest's last table on the way to a page.
    fn leaf_table(&self, root: Gpa, page: Gva) -> Option<Gpa> {
        let world = &self.cpu.world;
        let steps = path(world.mode, &world.guest, root, page);
        let above = steps.iter().find(|(level, ..)| *level == 2)?;
        (above.2.is_present() && !above.2.has(LARGE)).then(|| above.2.target())
    }

    fn nested(&mut self, all: &mut Vec<Item>) {
        let Some((_, root)) = self.current() else { return };
        let world = &self.cpu.world;
        let behind = self.pages.iter().filter_map(|page| {
            let steps = path(world.mode, &world.guest, root, *page);
            let (level, _, leaf) = steps.last()?;
            (leaf.is_present() && *level == 1).then(|| leaf.target())
        });
        let frames: Vec<Gpa> = behind.chain(self.frames.iter().copied()).collect();
        let (_, Some(nested)) = self.vm.halves() else { return };
        let tables = nested.mmu.tables();
        for frame in frames {
            for (level, index, entry) in path(tables.mode, tables.memory, tables.root, frame) {
                let name = format!("hL{level}[{index}] of gPA {:#x}", frame.value());
                all.push((Part::Vmm, name, entries::text(entry.0)));
            }
        }
    }

    fn tlbs(&mut self, all: &mut Vec<Item>) {
        let Some((process, _)) = self.current() else { return };
        let pages = self.pages;
        let several = self.roots.len() > 1;
        let core = &mut self.cpu.hardware.cores[0];
        let asid = core.asid;
        for (tlb, level) in [(&mut core.l1d, "L1 TLB"), (&mut core.l2, "L2 TLB")] {
            for page in pages {
                let held = if tlb.holds(*page, asid) { tlb.look_up(*page, asid) } else { None };
                let value = held.map_or("none".into(), |t| {
                    let bit =
                        |so: bool, letter: &str| if so { letter.to_owned() } else { String::new() };
                    let can = t.permissions();
                    let bits = [bit(can.write, " W"), bit(can.user, " U"), bit(t.is_dirty(), " D")];
                    format!("{:#x}{}", t.frame().value(), bits.concat())
                });
                let mut name = format!("{level}, page {:#x}", page.value());
                if several {
                    name += &format!(" of process {process}");
                }
                all.push((Part::Tlb, name, value));
            }
        }
    }
}
