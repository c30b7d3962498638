//! What the shadow MMU does, told one by one to whoever asked, as KVM's tracepoints `kvmmmu:*` tell it.
//!
//! Nobody asks in a simulation: then nothing is kept.

use super::{PageId, ShadowMmu};
use nestwalk_tables::Entry;
use nestwalk_tables::entry::{NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_types::{Gpa, Gva};

/// What a shadow page is known by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct PageName {
    /// Guest frame of the table, or the first that a piece of a large page maps.
    pub gfn: u64,
    /// Level, 1 for leaf tables.
    pub level: u8,
    /// It is a piece of a large page: no table of the guest is behind it.
    pub direct: bool,
    /// What it may permit at most.
    pub access: Permits,
}

/// Permissions of an entry or of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Permits {
    /// Stores.
    pub write: bool,
    /// Fetches.
    pub execute: bool,
    /// Accesses by user programs.
    pub user: bool,
}

impl Permits {
    /// Of an entry's bits.
    pub const fn of(bits: u64) -> Self {
        let e = Entry(bits);
        Self { write: e.has(WRITE), execute: !e.has(NO_EXECUTE), user: e.has(USER) }
    }
}

/// Something that the shadow MMU did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShadowEvent {
    /// The hardware faulted on the shadow tables; the error code has the bits P (0), W (1), U (2) and
    /// fetch (4) of the architecture.
    Fault {
        /// Where.
        gva: Gva,
        /// Why.
        code: u32,
    },
    /// The fault goes to the guest.
    Injected,
    /// The VMM emulates the store that faulted.
    Emulated,
    /// The VMM set the accessed bit of a guest's entry.
    Accessed(Gpa),
    /// The VMM set the dirty bit of a guest's entry.
    Dirty(Gpa),
    /// A shadow page was looked up, and made if `new`.
    Got(PageName, bool),
    /// A leaf entry was stored.
    Set {
        /// Guest frame that it maps.
        gfn: u64,
        /// Level of its page.
        level: u8,
        /// Number in its page.
        index: u16,
        /// What it permits.
        permits: Permits,
    },
    /// A leaf table's shadow is out of step from now on.
    Unsync(PageName),
    /// It is brought in step.
    Sync(PageName),
    /// A shadow page is dropped.
    Zapped(PageName),
}

impl ShadowMmu {
    /// Events are told from now on, to [`ShadowMmu::take_observed`].
    pub fn observe(&mut self) {
        self.observed = Some(Vec::new());
    }

    /// What happened since.
    pub fn take_observed(&mut self) -> Vec<ShadowEvent> {
        self.observed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    #[inline]
    pub(super) fn tell(&mut self, event: ShadowEvent) {
        if let Some(list) = &mut self.observed {
            list.push(event);
        }
    }

    /// Tells an event of a page.
    #[inline]
    pub(super) fn tell_page(&mut self, page: PageId, event: impl Fn(PageName) -> ShadowEvent) {
        if self.observed.is_some() {
            let p = &self.pages[page as usize];
            let name = PageName {
                gfn: p.gfn,
                level: p.level,
                direct: p.split.is_some(),
                access: Permits::of(p.split.unwrap_or(p.inherited)),
            };
            self.tell(event(name));
        }
    }

    /// Tells that a leaf was stored.
    pub(super) fn tell_leaf(&mut self, page: PageId, index: u64, gfn: u64, entry: Entry) {
        let level = self.pages[page as usize].level;
        let permits = Permits::of(entry.0);
        self.tell(ShadowEvent::Set { gfn, level, index: index as u16, permits });
    }

    /// Tells a fault, with the error code that the shadow tables give it.
    pub(super) fn tell_fault(&mut self, request: &crate::hardware::Request) {
        if self.observed.is_none() {
            return;
        }
        let mut table = self.walk_root(request.core());
        let mut present = false;
        let levels = if table.value() == 0 { 0 } else { self.mode.levels };
        for level in (1..=levels).rev() {
            let at = self.mode.entry_at(table, request.gva.value(), level);
            let entry = Entry(self.memory.read(at, 8).unwrap_or(0));
            present = entry.has(PRESENT);
            if !present || level == 1 || entry.has(nestwalk_tables::entry::LARGE) {
                break;
            }
            table = entry.target();
        }
        let bit = |flag: bool, place: u32| u32::from(flag) << place;
        let code =
            bit(present, 0) | bit(request.write, 1) | bit(request.user, 2) | bit(request.fetch, 4);
        self.tell(ShadowEvent::Fault { gva: request.gva, code });
    }
}
