//! User address spaces of a recorded guest, and which pages its kernel maps in them.

use crate::observed::{ObservedError, ObservedGuest};
use nestwalk_tables::entry::{LARGE, NO_EXECUTE, WRITE};
use nestwalk_tables::{Entry, Level, Mode, TableMemory};
use nestwalk_types::{Address, ByNumber, Control, Gpa, GuestInfo, PageSize, Protection, VcpuId};
use std::borrow::Cow;

/// A user address space: a root table from its first load to its end. Numbered in the order of their
/// first loads, so that two passes over one stream agree.
pub type SpaceId = u32;

/// What happens to a page of an address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageEvent {
    /// Pages `start..start + bytes` are mapped, or mapped otherwise than before.
    Mapped {
        /// Which address space.
        space: SpaceId,
        /// First address.
        start: u64,
        /// Length in bytes.
        bytes: u64,
        /// What the leaf allows.
        protection: Protection,
    },
    /// The kernel took a leaf, or a table with leaves, away.
    Cleared {
        /// On which vCPU.
        vcpu: VcpuId,
        /// Which address space.
        space: SpaceId,
        /// First address.
        start: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The root table is used for something else.
    Ended(SpaceId),
}

/// Where a table stands: which address space, and what part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    space: SpaceId,
    level: Level,
    /// First address that the table translates.
    base: u64,
}

/// Called with the first address, the size and the entry of a leaf; says whether to go on.
pub type Visit<'a> = dyn FnMut(u64, PageSize, Entry) -> bool + 'a;

/// The address spaces of a recorded guest, mirrored from the controls of its stream.
pub struct Spaces {
    guest: ObservedGuest,
    /// Tables of user address spaces by frame.
    places: ByNumber<Place>,
    /// Root tables by address space; `None` once it has ended.
    roots: Vec<Option<Gpa>>,
    /// Address space in CR3, by vCPU.
    current: Vec<Option<SpaceId>>,
    events: Vec<PageEvent>,
}

impl Spaces {
    pub fn new(info: &GuestInfo) -> Result<Self, ObservedError> {
        let guest = ObservedGuest::new(info)?;
        let current = vec![None; usize::from(info.vcpus)];
        let (roots, events) = (Vec::new(), Vec::new());
        Ok(Self { guest, places: ByNumber::new(), roots, current, events })
    }

    pub const fn mode(&self) -> &'static Mode {
        self.guest.mode()
    }
    const fn tables(&self) -> &TableMemory<Gpa> {
        self.guest.tables()
    }
    /// The address space that the vCPU has in CR3.
    #[inline]
    pub fn current(&self, vcpu: VcpuId) -> Option<SpaceId> {
        self.current.get(usize::from(vcpu.0)).copied().flatten()
    }
    /// Address spaces that there have been so far.
    pub const fn len(&self) -> usize {
        self.roots.len()
    }

    /// Deals with a control. Returns what it did to pages of address spaces, in order.
    pub fn follow(&mut self, control: &(u32, Control)) -> Result<&[PageEvent], ObservedError> {
        self.events.clear();
        if let Control::TableWrite { vcpu, gpa, value } = control.1 {
            self.write(vcpu, gpa, Entry(value));
        }
        self.guest.follow(std::slice::from_ref(control))?;
        match control.1 {
            Control::TableRetired { gpa, .. } => self.end(gpa),
            Control::PageCleared { gpa, size, .. } => {
                (0..size.base_pages()).for_each(|i| self.end(gpa.offset_by(i << 12)));
            }
            Control::TableWrite { gpa, value, .. } => self.link(gpa, Entry(value)),
            Control::TableAdded { gpa, .. } => {
                // A root that is said anew is another one.
                if self.places.get(gpa.page_number()).is_some_and(|p| p.level == self.mode().levels)
                {
                    self.end(gpa);
                }
                self.scan(gpa.page_number());
            }
            Control::LoadCr3 { vcpu, root, .. } => self.load(vcpu, root),
            _ => {}
        }
        Ok(&self.events)
    }

    /// Lower half: the addresses of user space.
    const fn is_user(&self, base: u64, level: Level) -> bool {
        base >> (self.mode().address_bits() - 1) == 0 && level > 0
    }

    /// What an entry that is stored to takes away.
    fn write(&mut self, vcpu: VcpuId, gpa: Gpa, new: Entry) {
        let Some(&Place { space, level, base }) = self.places.get(gpa.page_number()) else {
            return;
        };
        let mode = self.mode();
        let old = Entry(self.tables().read(gpa, mode.entry_bytes).unwrap_or(0));
        let span = mode.span(level);
        let index = (gpa.value() & 0xfff) / u64::from(mode.entry_bytes);
        let start = base + (index << span.shift());
        if !old.is_present() || !self.is_user(start, level) {
            return;
        }
        let gone = if is_leaf(mode, level, old) {
            !new.is_present()
        } else {
            !new.is_present() || new.target::<Gpa>() != old.target()
        };
        if gone && !is_leaf(mode, level, old) {
            // It may be linked elsewhere: mremap moves tables.
            self.unplace(old.target(), Place { space, level: level - 1, base: start });
        }
        if gone {
            self.events.push(PageEvent::Cleared { vcpu, space, start, bytes: span.bytes() });
        }
    }

    /// What an entry that was stored to gives.
    fn link(&mut self, gpa: Gpa, new: Entry) {
        let Some(&place) = self.places.get(gpa.page_number()) else { return };
        let index = (gpa.value() & 0xfff) / u64::from(self.mode().entry_bytes);
        self.give(place, index, new);
    }

    fn give(&mut self, place: Place, index: u64, entry: Entry) {
        let mode = self.mode();
        let Place { space, level, base } = place;
        let span = mode.span(level);
        let start = base + (index << span.shift());
        if !entry.is_present() || !self.is_user(start, level) {
            return;
        }
        if is_leaf(mode, level, entry) {
            let write = entry.has(WRITE);
            let protection = Protection { write, execute: !entry.has(NO_EXECUTE) };
            let bytes = span.bytes();
            self.events.push(PageEvent::Mapped { space, start, bytes, protection });
        } else {
            // A table has one place, so that each is looked through once, whatever points to it.
            let frame = entry.target::<Gpa>().page_number();
            if !self.places.contains(frame) {
                self.places.insert(frame, Place { space, level: level - 1, base: start });
                self.scan(frame);
            }
        }
    }

    /// A table is taken from its place, and those below from theirs.
    fn unplace(&mut self, table: Gpa, place: Place) {
        if self.places.get(table.page_number()) != Some(&place) {
            return;
        }
        self.places.remove(table.page_number());
        let mode = self.mode();
        let Place { space, level, base } = place;
        let Some(page) = self.tables().page(table).filter(|_| level > 1) else { return };
        for (index, word) in (0..).zip(*page) {
            let entry = Entry(word);
            if entry.is_present() && !is_leaf(mode, level, entry) {
                let base = base + (index << mode.span(level).shift());
                self.unplace(entry.target(), Place { space, level: level - 1, base });
            }
        }
    }

    /// Everything that a table gives.
    fn scan(&mut self, frame: u64) {
        let Some(&place) = self.places.get(frame) else { return };
        let Some(page) = self.tables().page(Gpa::new(frame << 12)) else { return };
        let entries: Vec<(u64, Entry)> = (0..512).zip(page.iter().map(|w| Entry(*w))).collect();
        for (index, entry) in entries.into_iter().filter(|(_, e)| e.is_present()) {
            self.give(place, index, entry);
        }
    }

    /// A page that was a table is none any more.
    fn end(&mut self, gpa: Gpa) {
        let frame = gpa.page_number();
        let levels = self.mode().levels;
        if let Some(place) = self.places.remove(frame)
            && place.level == levels
            && self.roots[place.space as usize].is_some_and(|r| r.page_number() == frame)
        {
            self.roots[place.space as usize] = None;
            self.events.push(PageEvent::Ended(place.space));
        }
    }

    fn load(&mut self, vcpu: VcpuId, root: Gpa) {
        let levels = self.mode().levels;
        let frame = root.page_number();
        let known = self.places.get(frame).filter(|p| p.level == levels).map(|p| p.space);
        let space = match known.or_else(|| self.other_half(root)) {
            Some(space) => space,
            None => {
                self.roots.push(Some(root));
                self.roots.len() as SpaceId - 1
            }
        };
        if known.is_none() {
            self.places.insert(frame, Place { space, level: levels, base: 0 });
            self.scan(frame);
        }
        if let Some(current) = self.current.get_mut(usize::from(vcpu.0)) {
            *current = Some(space);
        }
    }

    /// With page-table isolation a process has two root tables side by side, which point to the same
    /// tables for user space (Linux, `kernel_to_user_pgdp`).
    fn other_half(&self, root: Gpa) -> Option<SpaceId> {
        let other = Gpa::new(root.value() ^ 0x1000);
        let place = self.places.get(other.page_number())?;
        if place.level != self.mode().levels {
            return None;
        }
        let (one, two) = (self.tables().page(root)?, self.tables().page(other)?);
        let user = |page: &[u64; 512]| -> Vec<Option<Gpa>> {
            let entries = page[..256].iter().map(|w| Entry(*w));
            entries.map(|e| e.is_present().then(|| e.target())).collect()
        };
        let (one, two) = (user(&one), user(&two));
        (one == two && one.iter().any(Option::is_some)).then_some(place.space)
    }

    /// Leaves in the address space from an address on, in order.
    pub fn leaves(&self, space: SpaceId, from: u64, visit: &mut Visit<'_>) {
        if let Some(Some(root)) = self.roots.get(space as usize) {
            let place = Place { space, level: self.mode().levels, base: 0 };
            self.visit(*root, place, from, visit);
        }
    }

    /// The table, if this is its place: what else points to it is no part of the address space.
    fn table_at(&self, table: Gpa, place: Place) -> Option<Cow<'_, [u64; 512]>> {
        if self.places.get(table.page_number()) != Some(&place) {
            return None;
        }
        self.tables().page(table)
    }

    fn visit(&self, table: Gpa, place: Place, from: u64, visit: &mut Visit<'_>) -> bool {
        let mode = self.mode();
        let Place { space, level, base } = place;
        let span = mode.span(level);
        let Some(page) = self.table_at(table, place) else { return true };
        let first = (from.saturating_sub(base) >> span.shift()).min(512);
        for index in first..512 {
            let start = base + (index << span.shift());
            if !self.is_user(start, level) {
                return true;
            }
            let entry = Entry(page[index as usize]);
            let go_on = if !entry.is_present() {
                true
            } else if is_leaf(mode, level, entry) {
                visit(start, span, entry)
            } else {
                let below = Place { space, level: level - 1, base: start };
                self.visit(entry.target(), below, from, visit)
            };
            if !go_on {
                return false;
            }
        }
        true
    }

    /// The first leaf that ends behind `from`.
    pub fn next_leaf(&self, space: SpaceId, from: u64) -> Option<(u64, u64)> {
        let mut found = None;
        self.leaves(space, from, &mut |start, size, _| {
            found = Some((start, start + size.bytes()));
            false
        });
        found
    }

    /// The last leaf that begins before `at`.
    pub fn last_leaf(&self, space: SpaceId, at: u64) -> Option<(u64, u64)> {
        let root = (*self.roots.get(space as usize)?)?;
        let place = Place { space, level: self.mode().levels, base: 0 };
        self.last_below(root, place, at.checked_sub(1)?)
    }

    fn last_below(&self, table: Gpa, place: Place, last: u64) -> Option<(u64, u64)> {
        let mode = self.mode();
        let Place { space, level, base } = place;
        let span = mode.span(level);
        let page = self.table_at(table, place)?;
        let highest = (last.checked_sub(base)? >> span.shift()).min(511);
        for index in (0..=highest).rev() {
            let start = base + (index << span.shift());
            let entry = Entry(page[index as usize]);
            if !entry.is_present() || !self.is_user(start, level) {
                continue;
            }
            if is_leaf(mode, level, entry) {
                return Some((start, start + span.bytes()));
            }
            let below = Place { space, level: level - 1, base: start };
            let found = self.last_below(entry.target(), below, last);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The living address space that most of this one's pages are shared with, at their addresses.
    pub fn parent(&self, child: SpaceId) -> Option<SpaceId> {
        const SAMPLE: usize = 64;
        let mut sample = Vec::new();
        self.leaves(child, 0, &mut |start, size, entry| {
            sample.push((start, entry.frame::<Gpa>(size)));
            sample.len() < SAMPLE
        });
        let mut best = None;
        for (other, root) in self.roots.iter().enumerate() {
            let other = other as SpaceId;
            let Some(root) = root.filter(|_| other != child) else { continue };
            let same = |(start, frame): &&(u64, Gpa)| {
                let at = nestwalk_types::Gva::new(*start);
                nestwalk_tables::look_up(self.tables(), self.mode(), root, at)
                    .is_ok_and(|leaf| leaf.apply(at) == *frame)
            };
            let shared = sample.iter().filter(same).count();
            if 2 * shared > sample.len() && best.is_none_or(|(most, _)| shared > most) {
                best = Some((shared, other));
            }
        }
        best.map(|(_, parent)| parent)
    }
}

fn is_leaf(mode: &Mode, level: Level, entry: Entry) -> bool {
    level == 1 || (mode.may_be_leaf(level) && entry.has(LARGE))
}
