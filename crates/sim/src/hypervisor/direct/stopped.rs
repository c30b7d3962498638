//! Walks that stop: what they met, and what is to be done about it.

use super::DirectMmu;
use super::entries::Changed;
use crate::hardware::Request;
use crate::measure::counters::ExitReason;
use crate::scheme::{Handled, MachineError, Platform};
use nestwalk_hw::Translation;
use nestwalk_tables::entry::{DIRTY, LARGE};
use nestwalk_tables::{Entry, Level, look_up};
use nestwalk_types::{Gva, Hpa};

impl DirectMmu {
    /// Where hardware's walk for an address stops: the entry that is not present, or the leaf.
    fn stop(&self, root: Hpa, gva: Gva) -> (Hpa, Level, Entry) {
        let mut table = root;
        for level in (1..=self.mode.levels).rev() {
            let at = self.mode.entry_at(table, gva.value(), level);
            let entry = Entry(self.memory.read(at, self.mode.entry_bytes).unwrap_or(0));
            let large = level > 1
                && self.mode.may_be_leaf(level)
                && entry.has(LARGE)
                && !self.splits.contains_key(&at);
            if !entry.is_present() || level == 1 || large {
                return (at, level, entry);
            }
            table = entry.target();
        }
        (table, 0, Entry(0))
    }

    /// Whether the tables, as they are now, translate the address and permit the access.
    pub fn allows(&self, request: &Request) -> bool {
        let Some(root) = self.roots[request.core()] else { return false };
        look_up(&self.memory, self.mode, root, request.gva)
            .is_ok_and(|found| found.permissions.allow(request.write, request.fetch, request.user))
    }

    /// A walk stopped at an entry that is not present. If the guest has a large page there, whose
    /// small tables were not made yet, they are now. Returns whether it did something.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn fill(
        &mut self,
        platform: &mut Platform,
        request: &Request,
    ) -> Result<bool, MachineError> {
        let filled = self.fill_large(platform, request);
        self.checked().map(|()| filled)
    }

    fn fill_large(&mut self, platform: &mut Platform, request: &Request) -> bool {
        let Some(root) = self.roots[request.core()] else { return false };
        let (at, level, entry) = self.stop(root, request.gva);
        let Some((_, guest)) = self.source(&platform.cpu.world, at) else { return false };
        let large =
            level > 1 && self.mode.may_be_leaf(level) && guest.is_present() && guest.has(LARGE);
        if entry.is_present() || !large {
            return false;
        }
        self.set_entry(platform, (at, level), guest, &mut Changed::default());
        let now = Entry(self.memory.read(at, self.mode.entry_bytes).unwrap_or(0));
        if now.is_present() {
            return true;
        }
        let size = self.mode.span(level);
        self.split_pages.insert((size, request.gva.value() >> size.shift()));
        self.split(platform, at, level, guest)
    }

    /// A store met an entry that is read-only because it maps a table. The kernel's own stores to
    /// its tables are the stream's table writes, for which a ported kernel makes hypercalls: here
    /// they go on. A store of a user program is emulated, each time (Xen, `ptwr_do_page_fault`).
    pub fn store_to_table(
        &mut self,
        platform: &mut Platform,
        request: &Request,
    ) -> Option<Translation> {
        let (at, level, _) = self.stop(self.roots[request.core()]?, request.gva);
        if level != 1 || !request.write || !self.aliases.contains(&at) {
            return None;
        }
        let root = self.roots[request.core()]?;
        let leaf = look_up(&self.memory, self.mode, root, request.gva).ok()?;
        let world = &platform.cpu.world;
        let guest = look_up(&world.guest, self.mode, world.root(request.vcpu), request.gva).ok()?;
        let all = guest.permissions;
        if !all.allow(request.write, request.fetch, request.user) {
            return None;
        }
        let mut permissions = leaf.permissions;
        if request.user {
            platform.cpu.counters.exit(ExitReason::TableEmulation);
        } else {
            permissions.write = true;
        }
        Some(Translation::new(leaf.frame, leaf.size, permissions, leaf.entry.has(DIRTY), false))
    }

    /// Answers a fault: roots that were told late are pinned, entries that were refused are asked
    /// for again; what is left is the guest's, and comes to it through the hypervisor.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
    ) -> Result<Handled, MachineError> {
        self.checked()?;
        let core = request.core();
        if self.roots[core].is_none() {
            self.roots[core] = self.pin(platform, platform.cpu.world.root(request.vcpu));
            self.checked()?;
            if self.roots[core].is_some() {
                return Ok(Handled::Retry);
            }
        }
        if let Some(root) = self.roots[core] {
            let (at, level, _) = self.stop(root, request.gva);
            if self.refused.contains(&at) && self.ask_again(platform, at, level) {
                return Ok(Handled::Retry);
            }
        }
        self.checked()?;
        platform.cpu.counters.exit(ExitReason::FaultBounce);
        Ok(Handled::GuestFault)
    }

    /// What stood in the way of an entry may have gone. Returns whether it has.
    fn ask_again(&mut self, platform: &mut Platform, at: Hpa, level: Level) -> bool {
        let Some((_, guest)) = self.source(&platform.cpu.world, at) else { return false };
        self.set_entry(platform, (at, level), guest, &mut Changed::default());
        self.memory.read(at, self.mode.entry_bytes).is_some_and(|e| Entry(e).is_present())
    }
}
