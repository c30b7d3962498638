//! The end of an interval: which nested guest tables go back to shadow mode, and which processes leave
//! fully nested mode.

use super::{AgileMmu, Back};
use crate::hardware::Request;
use crate::hardware::walk::agile::Start;
use crate::measure::counters::ExitReason;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::entry::LARGE;
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{Address, Gpa, Gva, VcpuId};
use rustc_hash::FxHashSet;

/// What a look at the dirty bits of nested tables finds.
#[derive(Default)]
struct Scan {
    /// Tables looked at.
    seen: FxHashSet<u64>,
    /// Those that go back.
    clean: Vec<u64>,
    /// Those that stay nested, below tables that go back or are shadowed.
    stay: Vec<(u64, Level)>,
    /// Those that are below tables that stay nested.
    covered: Vec<u64>,
}

impl AgileMmu {
    /// The interval ended.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn timer(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let (now, interval) = (platform.instructions, self.interval);
        self.due += (now - self.due) / interval * interval + interval;
        self.stores.retain(|_, s| now - s.since < interval);
        let grown = self.leave_young(platform);
        let back = match self.config.back {
            Back::Never => FxHashSet::default(),
            Back::All => self.all_back(platform),
            Back::Clean => self.clean_back(platform),
        };
        self.dirty.clear();
        self.last_dirty = u64::MAX;
        self.restart(platform)?;
        if self.config.refill && platform.cpu.world.mode.entry_bytes == 8 {
            for v in 0..self.starts.len() {
                let root = platform.cpu.world.roots[v];
                let top = (root, platform.cpu.world.mode.levels);
                let all = grown.contains(&root.page_number());
                if (all || !back.is_empty()) && self.starts[v] == Start::Shadow {
                    let back = (!all).then_some(&back);
                    self.refill(platform, VcpuId(v as u8), back, top, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Shadows the leaf tables that went back, all for `None`, below a table of a vCPU's address space.
    /// `base` is the first address that the table translates.
    fn refill(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        back: Option<&FxHashSet<u64>>,
        (table, level): (Gpa, Level),
        base: u64,
    ) -> Result<(), MachineError> {
        let mode = platform.cpu.world.mode;
        let Some(entries) = platform.cpu.world.guest.page(table).map(|page| *page) else {
            return Ok(());
        };
        for (index, word) in entries.iter().enumerate() {
            let entry = Entry(*word);
            if !entry.is_present() || (mode.may_be_leaf(level) && entry.has(LARGE)) {
                continue;
            }
            let mut start = base + ((index as u64) << mode.span(level).shift());
            if level == mode.levels
                && mode.address_bits() > 32
                && index as u64 >= mode.entries(level) / 2
            {
                // The upper half is at the end of the 64-bit addresses.
                start |= u64::MAX << mode.address_bits();
            }
            let child: Gpa = entry.target();
            if level > 2 {
                self.refill(platform, vcpu, back, (child, level - 1), start)?;
            } else if back.is_none_or(|b| b.contains(&child.page_number())) {
                let gva = Gva::new(start);
                let (write, fetch, user) = (false, false, true);
                let request = Request { vcpu, gva, write, fetch, user, pc: Gva::new(0) };
                self.shadow.fill_table(platform, &request)?;
            }
        }
        Ok(())
    }

    /// Processes that have run for an interval, and whose walks cost much, are shadowed from now on.
    /// Returns their roots.
    fn leave_young(&mut self, platform: &mut Platform) -> Vec<u64> {
        let walked = platform.cpu.counters.walk_cycles;
        let cycles = walked.saturating_sub(self.walk_cycles);
        self.walk_cycles = walked;
        let (now, interval) = (platform.instructions, self.interval);
        if cycles.saturating_mul(1000) >= self.config.walks.saturating_mul(interval) {
            let old = self.young.iter().filter(|(_, since)| now - **since >= interval);
            let grown: Vec<u64> = old.map(|(gfn, _)| gfn).collect();
            for gfn in &grown {
                self.young.remove(*gfn);
            }
            if !grown.is_empty() {
                interrupt(platform);
            }
            return grown;
        }
        Vec::new()
    }

    fn all_back(&mut self, platform: &mut Platform) -> FxHashSet<u64> {
        let tops = self.shadow.nested_tables().iter().map(|(g, l)| (g, *l));
        let all: Vec<(u64, Level)> = tops.collect();
        if all.is_empty() {
            return FxHashSet::default();
        }
        let mut scan = Scan::default();
        interrupt(platform);
        for (gfn, level) in all {
            self.look_at(platform, &mut scan, (gfn, level), false);
            platform.cpu.counters.tables_shadowed += 1;
            self.shadow.make_shadowed(platform, gfn);
        }
        scan.seen
    }

    /// Snapshots at the dirty bits of the pages with nested guest tables, and clears them.
    /// Returns those that go back.
    fn clean_back(&mut self, platform: &mut Platform) -> FxHashSet<u64> {
        let mut tops: Vec<(u64, Level)> =
            self.shadow.nested_tables().iter().map(|(g, l)| (g, *l)).collect();
        if tops.is_empty() {
            return FxHashSet::default();
        }
        tops.sort_by_key(|(gfn, level)| (std::cmp::Reverse(*level), *gfn));
        let mut scan = Scan::default();
        for (gfn, level) in tops {
            self.look_at(platform, &mut scan, (gfn, level), false);
        }
        interrupt(platform);
        platform.cpu.counters.dirty_bits_scanned += scan.seen.len() as u64;
        platform.cpu.counters.tables_shadowed += scan.clean.len() as u64;
        for gfn in &scan.clean {
            self.shadow.make_shadowed(platform, *gfn);
        }
        for (gfn, level) in scan.stay {
            self.shadow.remember_nested(gfn, level);
        }
        for gfn in scan.covered {
            self.shadow.forget_covered(gfn);
        }
        self.walked.fill(0);
        // The hardware would not set again what it remembers as set (INVEPT).
        platform.cpu.hardware.invalidate_nested_everywhere();
        scan.clean.into_iter().collect()
    }

    fn was_walked(&self, gfn: u64) -> bool {
        self.walked.get((gfn >> 6) as usize).is_some_and(|w| w >> (gfn & 63) & 1 == 1)
    }

    /// A nested table and what is below it. `covered`: a table above stays nested.
    fn look_at(
        &self,
        platform: &Platform,
        scan: &mut Scan,
        (gfn, level): (u64, Level),
        covered: bool,
    ) {
        if !scan.seen.insert(gfn) {
            return;
        }
        let world = &platform.cpu.world;
        let table = Gpa::new(gfn << 12);
        let clean =
            !world.guest.contains(table) || !(self.dirty.contains(&gfn) || self.was_walked(gfn));
        if covered {
            scan.covered.push(gfn);
        } else if clean {
            scan.clean.push(gfn);
        } else {
            scan.stay.push((gfn, level));
        }
        if level <= 1 || !world.guest.contains(table) {
            return;
        }
        let bytes = u64::from(world.mode.entry_bytes);
        for index in 0..4096 / bytes {
            let at = table.offset_by(index * bytes);
            let entry = Entry(world.guest.read(at, world.mode.entry_bytes).unwrap_or(0));
            if !entry.is_present() || (world.mode.may_be_leaf(level) && entry.has(LARGE)) {
                continue;
            }
            let child: Gpa = entry.target();
            if world.guest.contains(child) {
                let below = (child.page_number(), level - 1);
                self.look_at(platform, scan, below, covered || !clean);
            }
        }
    }
}

/// The hypervisor has every vCPU leave the guest, to change what its hardware may hold.
fn interrupt(platform: &mut Platform) {
    for _ in 0..platform.cpu.hardware.cores.len() {
        platform.cpu.counters.exit(ExitReason::Interval);
    }
}
