//! The end of an interval: which nested guest tables go back to shadow mode, and which processes leave
//! fully nested mode.

use super::{AgileMmu, Back};
use crate::counters::ExitReason;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::entry::LARGE;
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{Address, Gpa};
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
    pub fn tick(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let (now, interval) = (platform.clock, self.config.interval);
        self.due += (now - self.due) / interval * interval + interval;
        self.stores.retain(|_, s| now - s.since < interval);
        self.leave_young(platform);
        match self.config.back {
            Back::Never => {}
            Back::All => self.all_back(platform),
            Back::Clean => self.clean_back(platform),
        }
        self.dirty.clear();
        self.restart(platform)
    }

    /// Processes that have run for an interval, and whose walks cost much, are shadowed from now on.
    fn leave_young(&mut self, platform: &mut Platform) {
        let walked = platform.counters.walk_cycles;
        // The counters may have begun anew within the interval.
        let cycles = walked.checked_sub(self.walk_cycles).unwrap_or(walked);
        self.walk_cycles = walked;
        let (now, interval) = (platform.clock, self.config.interval);
        if cycles.saturating_mul(1000) >= self.config.walks.saturating_mul(interval) {
            self.young.retain(|_, since| now - *since < interval);
        }
    }

    fn all_back(&mut self, platform: &mut Platform) {
        let all: Vec<u64> = self.shadow.nested_tables().keys().copied().collect();
        if all.is_empty() {
            return;
        }
        interrupt(platform);
        for gfn in all {
            platform.counters.tables_shadowed += 1;
            self.shadow.make_shadowed(platform, gfn);
        }
    }

    /// Looks at the dirty bits of the pages with nested guest tables, and clears them.
    fn clean_back(&mut self, platform: &mut Platform) {
        let mut tops: Vec<(u64, Level)> =
            self.shadow.nested_tables().iter().map(|(g, l)| (*g, *l)).collect();
        if tops.is_empty() {
            return;
        }
        tops.sort_by_key(|(gfn, level)| (std::cmp::Reverse(*level), *gfn));
        let mut scan = Scan::default();
        for (gfn, level) in tops {
            self.look_at(platform, &mut scan, (gfn, level), false);
        }
        interrupt(platform);
        platform.counters.dirty_bits_scanned += scan.seen.len() as u64;
        platform.counters.tables_shadowed += scan.clean.len() as u64;
        for gfn in scan.clean {
            self.shadow.make_shadowed(platform, gfn);
        }
        for (gfn, level) in scan.stay {
            self.shadow.remember_nested(gfn, level);
        }
        for gfn in scan.covered {
            self.shadow.forget_covered(gfn);
        }
        // The hardware would not set again what it remembers as set (INVEPT).
        platform.hardware.invalidate_everywhere();
        for core in &mut platform.hardware.cores {
            core.nested_walk_cache.flush();
            if let Some(tlb) = &mut core.nested_tlb {
                tlb.flush();
            }
        }
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
        let world = &platform.world;
        let table = Gpa::new(gfn << 12);
        let clean = !world.guest.contains(table) || !self.dirty.contains(&gfn);
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
    for _ in 0..platform.hardware.cores.len() {
        platform.counters.exit(ExitReason::Interval);
    }
}
