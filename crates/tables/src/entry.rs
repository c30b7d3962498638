//! Page-table entries, in the format of x86-64 (and of AMD's nested tables, which are the same).

use nestwalk_types::{Address, PageSize, Protection};

/// An entry that is present (P).
pub const PRESENT: u64 = 1;
/// Stores are allowed (R/W).
pub const WRITE: u64 = 1 << 1;
/// User mode is allowed (U/S).
pub const USER: u64 = 1 << 2;
/// Set by the walker when the entry is used (A).
pub const ACCESSED: u64 = 1 << 5;
/// Set by the walker when a store uses the leaf (D).
pub const DIRTY: u64 = 1 << 6;
/// In an entry above level 1: it maps a page (PS).
pub const LARGE: u64 = 1 << 7;
/// The translation stays when CR3 is loaded (G).
pub const GLOBAL: u64 = 1 << 8;
/// Software bit 9: a copy-on-write mapping of the modelled kernel.
pub const SOFT_COW: u64 = 1 << 9;
/// Fetches are not allowed (NX); does not exist in 4-byte entries.
pub const NO_EXECUTE: u64 = 1 << 63;
/// Frame address, bits 12..52.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// An entry that points to the next table: everything allowed, the leaf decides.
    #[inline]
    pub fn table<O: Address>(table: O) -> Self {
        Self(table.value() & FRAME | PRESENT | WRITE | USER | ACCESSED)
    }
    /// An entry that maps a user page at `frame`; `large` above level 1.
    #[inline]
    pub fn leaf<O: Address>(frame: O, protection: Protection, large: bool) -> Self {
        let mut e = frame.value() & FRAME | PRESENT | USER;
        if protection.write {
            e |= WRITE;
        }
        if !protection.execute {
            e |= NO_EXECUTE;
        }
        if large {
            e |= LARGE;
        }
        Self(e)
    }
    /// Whether the walk may go on.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }
    /// Whether all of `bits` are set.
    #[inline]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
    /// With `bits` set.
    #[inline]
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }
    /// With `bits` cleared.
    #[inline]
    pub const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }
    /// Where the entry points: the next table or the page.
    #[inline]
    pub fn target<O: Address>(self) -> O {
        O::new(self.0 & FRAME)
    }
    /// Where a leaf of `size` points; the low bits of a large leaf's frame field are not address.
    #[inline]
    pub fn frame<O: Address>(self, size: PageSize) -> O {
        O::new(self.0 & FRAME & !size.mask())
    }
}

/// Permissions gathered along a walk: what every entry on the way allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// Stores are allowed at every level.
    pub write: bool,
    /// User mode is allowed at every level.
    pub user: bool,
    /// Fetches are allowed at every level.
    pub execute: bool,
}

impl Permissions {
    /// Everything: where a walk begins.
    pub const ALL: Self = Self { write: true, user: true, execute: true };

    /// What remains after passing `entry`.
    #[inline]
    #[must_use]
    pub const fn and(self, entry: Entry) -> Self {
        Self {
            write: self.write && entry.has(WRITE),
            user: self.user && entry.has(USER),
            execute: self.execute && !entry.has(NO_EXECUTE),
        }
    }
    /// What both allow.
    #[inline]
    #[must_use]
    pub const fn and_also(self, other: Self) -> Self {
        Self {
            write: self.write && other.write,
            user: self.user && other.user,
            execute: self.execute && other.execute,
        }
    }
    /// Whether an access may be made. Kernel stores to read-only pages fault (CR0.WP is set, as
    /// every current kernel does); SMAP and SMEP are not modelled.
    #[inline]
    pub const fn allow(self, write: bool, fetch: bool, user: bool) -> bool {
        (!write || self.write) && (!fetch || self.execute) && (!user || self.user)
    }
}
