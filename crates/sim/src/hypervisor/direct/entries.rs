//! Validation: entries of the tables that hardware walks, and the types that they need of frames.

use super::{DirectMmu, Piece};
use crate::hardware::world::World;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::entry::{FRAME, GLOBAL, LARGE, USER, WRITE};
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{Address, Gpa, Hpa, PageSize};

/// Pages that change their type together, and how many of them are leaf tables.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Changed {
    pub pages: u64,
    pub leaf_tables: u64,
}

impl Changed {
    const fn add(&mut self, level: Level) {
        self.pages += 1;
        self.leaf_tables += (level == 1) as u64;
    }
}

/// The domain's memory is given out in pieces of this size, as the domain builder does where it
/// can.
const EXTENT: u64 = 2 << 20;

impl DirectMmu {
    /// The machine address of a guest page, or `None` if it is no memory of the guest. All memory
    /// was given to the domain when it was built: nothing is counted.
    pub(super) fn machine_page(&mut self, platform: &mut Platform, gpa: Gpa) -> Option<Hpa> {
        let gfn = gpa.page_number();
        let known = self.info.get(gfn).machine;
        if known != 0 {
            return Some(Hpa::new((known - 1) << 12));
        }
        let host = platform.host.as_mut()?;
        host.hva(gpa)?;
        let page = match host.ensure(gpa) {
            Ok(page) => page,
            Err(error) => {
                self.failed.get_or_insert(MachineError::from(error));
                return None;
            }
        };
        if page.fresh && page.size.bytes() < EXTENT {
            let first = gpa.value() & !(EXTENT - 1);
            let others = (first..first + EXTENT).step_by(page.size.bytes() as usize);
            for other in others.map(Gpa::new).filter(|g| *g != gpa.align_down(page.size)) {
                // Neighbours that the host has no memory for are asked for when they are needed.
                if host.hva(other).is_some() && host.ensure(other).is_err() {
                    break;
                }
            }
        }
        let machine = page.frame.offset_by(gpa.offset_in(page.size)).align_down(PageSize::SIZE_4K);
        if self.mode.entry_bytes == 4 && machine.value() >> 32 != 0 {
            self.failed.get_or_insert(MachineError::Variant {
                machine: String::new(),
                reason: format!(
                    "the guest's 4-byte entries cannot hold {machine:?}: \
                     give the host at most 4 GiB"
                ),
            });
            return None;
        }
        self.info.at(gfn).machine = machine.page_number() + 1;
        *self.guest_frames.at(machine.page_number()) = gfn + 1;
        Some(machine)
    }

    /// The guest page behind a machine address, if it is the guest's.
    #[inline]
    pub(super) fn guest_page(&self, at: Hpa) -> Option<u64> {
        self.guest_frames.get(at.page_number()).checked_sub(1)
    }

    /// What the guest has where hardware has the entry at `at`, with its level.
    pub(super) fn source(&self, world: &World, at: Hpa) -> Option<(Level, Entry)> {
        if let Some(piece) = self.pieces.get(&at.page_number()) {
            let index = (at.value() & 0xfff) / u64::from(self.mode.entry_bytes);
            let target = piece.first + (index << self.mode.span(piece.level).shift());
            let large = if piece.level > 1 { LARGE } else { 0 };
            return Some((piece.level, Entry(piece.flags | target | large)));
        }
        let gfn = self.guest_page(at)?;
        let level = self.info.get(gfn).table;
        let here = Gpa::new(gfn << 12 | at.value() & 0xfff);
        let entry = world.guest.read(here, self.mode.entry_bytes)?;
        (level > 0).then_some((level, Entry(entry)))
    }

    const fn is_leaf(&self, level: Level, entry: Entry) -> bool {
        level == 1 || (self.mode.may_be_leaf(level) && entry.has(LARGE))
    }

    /// Stores the entry at `at`, validated: what the old one used is given back first.
    pub(super) fn set_entry(
        &mut self,
        platform: &mut Platform,
        (at, level): (Hpa, Level),
        guest: Entry,
        changed: &mut Changed,
    ) {
        self.clear_entry(platform, (at, level), changed);
        if !guest.is_present() {
            return;
        }
        let machine = if self.is_leaf(level, guest) {
            self.leaf(platform, (at, level), guest)
        } else {
            self.link(platform, (at, level), guest, changed)
        };
        if let Some(machine) = machine {
            self.memory.write(at, self.mode.entry_bytes, machine.0);
        }
    }

    /// The entry with a machine address. No entry is global: a 64-bit guest's kernel may not use
    /// the bit, and what Xen sets for user pages goes with every load of CR3.
    fn with_address(guest: Entry, machine: Hpa) -> Entry {
        Entry(guest.0 & !(FRAME | GLOBAL) | machine.value())
    }

    fn leaf(
        &mut self,
        platform: &mut Platform,
        (at, level): (Hpa, Level),
        guest: Entry,
    ) -> Option<Entry> {
        let size = self.mode.span(level);
        let first: Gpa = guest.frame(size);
        if level > 1 {
            return self.large_leaf(platform, at, guest, first, size);
        }
        let Some(machine) = self.machine_page(platform, first) else {
            self.refuse(platform, at);
            return None;
        };
        let gfn = first.page_number();
        let mut entry = Self::with_address(guest, machine);
        self.mappings.add(gfn, at);
        if entry.has(WRITE) {
            let info = self.info.at(gfn);
            if info.table == 0 {
                info.writable_uses += 1;
            } else {
                entry = entry.without(WRITE);
                self.read_only(platform, at, entry);
            }
        }
        Some(entry)
    }

    /// A large entry stays large where machine memory is contiguous and no table lies in it. Others
    /// are split when a walk comes by.
    fn large_leaf(
        &mut self,
        platform: &mut Platform,
        at: Hpa,
        guest: Entry,
        first: Gpa,
        size: PageSize,
    ) -> Option<Entry> {
        let machine = self.machine_page(platform, first)?;
        let host = platform.host.as_ref()?.look_up(first)?;
        if host.size < size || self.tables_in(first, size) {
            return None;
        }
        self.mappings.add(first.page_number(), at);
        self.large_leaves += 1;
        Some(Self::with_address(guest, machine))
    }

    fn tables_in(&self, first: Gpa, size: PageSize) -> bool {
        let regions = first.page_number() >> 9..=(first.page_number() + size.base_pages() - 1) >> 9;
        regions.into_iter().any(|r| self.tables_by_region.get(r) > 0)
    }

    /// An entry of the guest that Xen does not take.
    fn refuse(&mut self, platform: &mut Platform, at: Hpa) {
        if self.refused.insert(at) {
            platform.cpu.counters.updates_refused += 1;
        }
    }

    /// The guest would map a table writable here. A ported kernel has made its own mapping
    /// read-only before; a mapping for user programs is refused.
    fn read_only(&mut self, platform: &mut Platform, at: Hpa, entry: Entry) {
        if self.aliases.insert(at) && entry.has(USER) {
            platform.cpu.counters.updates_refused += 1;
        }
    }

    fn link(
        &mut self,
        platform: &mut Platform,
        (at, level): (Hpa, Level),
        guest: Entry,
        changed: &mut Changed,
    ) -> Option<Entry> {
        let table: Gpa = guest.target();
        if !platform.cpu.world.guest.contains(table) {
            // A recorded guest says a table's contents after it was linked.
            self.waiting.entry(table.page_number()).or_default().push(at);
            return None;
        }
        match self.promote(platform, table, level - 1, changed) {
            Some(machine) => {
                self.links.add(table.page_number(), at);
                Some(Self::with_address(guest, machine))
            }
            None => {
                self.refuse(platform, at);
                None
            }
        }
    }

    /// Takes the entry at `at` away: the types that it used are used once less.
    pub(super) fn clear_entry(
        &mut self,
        platform: &mut Platform,
        (at, level): (Hpa, Level),
        changed: &mut Changed,
    ) {
        let bytes = self.mode.entry_bytes;
        let old = Entry(self.memory.write(at, bytes, 0).unwrap_or(0));
        self.refused.remove(&at);
        let alias = self.aliases.remove(&at);
        if !old.is_present() {
            return;
        }
        if let Some(split) = self.splits.remove(&at) {
            self.drop_split(platform, split, changed);
            return;
        }
        let Some(gfn) = self.guest_page(old.target()) else { return };
        if self.is_leaf(level, old) {
            self.mappings.remove(gfn, at);
            self.large_leaves -= u64::from(level > 1);
            if level == 1 && old.has(WRITE) && !alias {
                let info = self.info.at(gfn);
                info.writable_uses = info.writable_uses.saturating_sub(1);
            }
        } else {
            self.links.remove(gfn, at);
            self.release(platform, gfn, changed);
        }
    }

    /// One use of a table less; with the last it is a table no more.
    pub(super) fn release(&mut self, platform: &mut Platform, gfn: u64, changed: &mut Changed) {
        let info = self.info.at(gfn);
        info.table_uses = info.table_uses.saturating_sub(1);
        if info.table_uses == 0 && info.table > 0 {
            self.demote(platform, gfn, changed);
        }
    }

    /// Makes a page a table of `level`, with every entry validated, or uses it as such once more.
    /// `None` if it is a table of another level, or no memory.
    pub(super) fn promote(
        &mut self,
        platform: &mut Platform,
        table: Gpa,
        level: Level,
        changed: &mut Changed,
    ) -> Option<Hpa> {
        let machine = self.machine_page(platform, table)?;
        let gfn = table.page_number();
        let info = self.info.at(gfn);
        if info.table > 0 {
            let same = info.table == level;
            info.table_uses += u32::from(same);
            return same.then_some(machine);
        }
        let words = *platform.cpu.world.guest.page(table)?;
        info.table = level;
        info.table_uses = 1;
        changed.add(level);
        self.write_protect(platform, gfn);
        *self.tables_by_region.at(gfn >> 9) += 1;
        self.memory.insert(machine, None);
        let bytes = u64::from(self.mode.entry_bytes);
        // PAE: the root is four entries somewhere in its page.
        let (from, count) = if self.mode.root_in_registers && level == self.mode.levels {
            (table.value() & 0xfe0, self.mode.entries(level))
        } else {
            (0, 4096 / bytes)
        };
        for offset in (0..count).map(|i| from + i * bytes) {
            let word = words[(offset >> 3) as usize];
            let entry =
                Entry(if bytes == 8 { word } else { word >> (8 * (offset & 4)) & 0xffff_ffff });
            if entry.is_present() {
                platform.cpu.counters.entries_validated += 1;
                self.set_entry(platform, (machine.offset_by(offset), level), entry, changed);
            }
        }
        Some(machine)
    }

    /// Nothing maps the page writable any more.
    fn write_protect(&mut self, platform: &mut Platform, gfn: u64) {
        for at in self.mappings.entries(gfn) {
            let entry = Entry(self.memory.read(at, self.mode.entry_bytes).unwrap_or(0));
            let small = self.source(&platform.cpu.world, at).is_none_or(|(level, _)| level == 1);
            if small && entry.has(WRITE) {
                self.memory.write(at, self.mode.entry_bytes, entry.without(WRITE).0);
                self.read_only(platform, at, entry);
            }
        }
        self.info.at(gfn).writable_uses = 0;
        if self.large_leaves > 0 {
            self.unmap_large(platform, gfn);
        }
    }

    /// Large entries that map the page go; walks will find them split.
    fn unmap_large(&mut self, platform: &mut Platform, gfn: u64) {
        let mut any = false;
        for level in (2..=self.mode.levels).filter(|&l| self.mode.may_be_leaf(l)) {
            let first = gfn & !(self.mode.span(level).base_pages() - 1);
            for at in self.mappings.entries(first) {
                if self.source(&platform.cpu.world, at).is_some_and(|(l, _)| l == level) {
                    self.clear_entry(platform, (at, level), &mut Changed::default());
                    any = true;
                }
            }
        }
        if any {
            platform.cpu.hardware.invalidate_everywhere();
        }
    }

    /// The page is a table no more: its entries are given back, and the kernel's mappings of it are
    /// writable again.
    pub(super) fn demote(&mut self, platform: &mut Platform, gfn: u64, changed: &mut Changed) {
        let info = self.info.at(gfn);
        let level = std::mem::take(&mut info.table);
        (info.pinned, info.table_uses) = (false, 0);
        let machine = Hpa::new((info.machine - 1) << 12);
        changed.add(level);
        *self.tables_by_region.at(gfn >> 9) -= 1;
        let bytes = u64::from(self.mode.entry_bytes);
        for offset in (0..4096 / bytes).map(|i| i * bytes) {
            self.clear_entry(platform, (machine.offset_by(offset), level), changed);
        }
        self.memory.remove(machine);
        for root in self
            .roots
            .iter_mut()
            .filter(|r| r.is_some_and(|r| r.page_number() == machine.page_number()))
        {
            *root = None;
        }
        for at in self.mappings.entries(gfn) {
            if self.aliases.remove(&at) {
                let entry = Entry(self.memory.read(at, self.mode.entry_bytes).unwrap_or(0));
                self.memory.write(at, self.mode.entry_bytes, entry.with(WRITE).0);
                self.info.at(gfn).writable_uses += 1;
            }
        }
    }

    /// A guest without large pages has small tables for this one from the beginning: they are made
    /// when a walk first needs them, uncounted. Returns whether there is a table now.
    pub(super) fn split(
        &mut self,
        platform: &mut Platform,
        at: Hpa,
        level: Level,
        guest: Entry,
    ) -> bool {
        let size = self.mode.span(level);
        let first: Gpa = guest.frame(size);
        let Some(host) = &mut platform.host else { return false };
        if host.hva(first).is_none() {
            return false;
        }
        let Some(table) = host.alloc_table() else {
            self.failed.get_or_insert(MachineError::NoTableFrame {
                machine: String::new(),
                what: "split large page",
            });
            return false;
        };
        self.memory.insert(table, None);
        let flags = guest.0 & !(FRAME | LARGE | GLOBAL);
        let piece = Piece { first: first.value(), level: level - 1, flags, owner: at };
        self.pieces.insert(table.page_number(), piece);
        self.splits.insert(at, table);
        self.memory.write(at, self.mode.entry_bytes, flags | table.value());
        if level == 2 {
            let bytes = u64::from(self.mode.entry_bytes);
            for offset in (0..4096 / bytes).map(|i| i * bytes) {
                let here = table.offset_by(offset);
                if let Some((level, entry)) = self.source(&platform.cpu.world, here) {
                    self.set_entry(platform, (here, level), entry, &mut Changed::default());
                }
            }
        }
        true
    }

    /// The small tables of a large entry are given back. Their frame may be another table's before the
    /// guest invalidates anything, which it need not do if the entry permits more than before: partial
    /// walks to it go at once, as Xen flushes before a frame gets another type (`tlbflush_timestamp`).
    fn drop_split(&mut self, platform: &mut Platform, table: Hpa, changed: &mut Changed) {
        platform.cpu.hardware.forget_partial_walks();
        let Some(piece) = self.pieces.remove(&table.page_number()) else { return };
        let bytes = u64::from(self.mode.entry_bytes);
        for offset in (0..4096 / bytes).map(|i| i * bytes) {
            self.clear_entry(platform, (table.offset_by(offset), piece.level), changed);
        }
        self.memory.remove(table);
        if let Some(host) = &mut platform.host {
            host.free_table(table);
        }
    }
}
