//! One translation, as a TLB holds it.

use nestwalk_tables::Permissions;
use nestwalk_types::{Address, Hpa, PageSize};

/// A complete translation, as a TLB holds it: 8 bytes.
///
/// An entry may be a *splinter*: smaller than the page that the guest's tables map, because the
/// host's page is smaller or because the TLB has no entries of the size. It knows the size of the
/// whole, since an invalidation of the page must remove all its splinters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Translation(pub(super) u64);

impl Translation {
    pub(super) const WRITE: u64 = 1;
    pub(super) const USER: u64 = 1 << 1;
    pub(super) const EXECUTE: u64 = 1 << 2;
    pub(super) const DIRTY: u64 = 1 << 3;
    pub(super) const GLOBAL: u64 = 1 << 4;
    pub(super) const FRAME: u64 = 0x000f_ffff_ffff_f000;
    pub(super) const WHOLE_SHIFT: u32 = 52;
    pub(super) const SMASHED_SHIFT: u32 = 58;
    /// The size, that of the whole, what it was smashed from, and whether it is global.
    pub(super) const SIZES: u64 = 63 << 5 | !0 << Self::WHOLE_SHIFT | Self::GLOBAL;

    /// A page of `size` at `frame`. `dirty` says that stores need not set the dirty bit any more.
    #[inline]
    pub fn new(
        frame: Hpa,
        size: PageSize,
        permissions: Permissions,
        dirty: bool,
        global: bool,
    ) -> Self {
        Self(
            frame.value() & Self::FRAME
                | u64::from(permissions.write)
                | u64::from(permissions.user) << 1
                | u64::from(permissions.execute) << 2
                | u64::from(dirty) << 3
                | u64::from(global) << 4
                | u64::from(size.shift()) << 5
                | u64::from(size.shift()) << Self::WHOLE_SHIFT,
        )
    }
    /// What a whole page of a size that is not global has in [`Translation::SIZES`].
    pub(super) const fn sizes(size: PageSize) -> u64 {
        (size.shift() as u64) << 5 | (size.shift() as u64) << Self::WHOLE_SHIFT
    }
    /// The same translation as a part of a page of size `whole`.
    #[inline]
    #[must_use]
    pub const fn splinter_of(self, whole: PageSize) -> Self {
        let rest = self.0 & !(63 << Self::WHOLE_SHIFT);
        Self(rest | (whole.shift() as u64) << Self::WHOLE_SHIFT)
    }
    /// Base-2 logarithm of the size of the page that the guest's tables map.
    #[inline]
    pub(crate) const fn whole_shift(self) -> u32 {
        (self.0 >> Self::WHOLE_SHIFT) as u32 & 63
    }
    /// Whether it is smaller than the page that the guest's tables map.
    #[inline]
    pub const fn is_splinter(self) -> bool {
        self.whole_shift() != (self.0 >> 5 & 63) as u32
    }
    /// Size of the page.
    #[inline]
    pub const fn size(self) -> PageSize {
        PageSize::from_shift((self.0 >> 5 & 63) as u8)
    }
    /// Size of the page of tables that it is of: of four base pages together that of one.
    #[inline]
    pub fn page_size(self) -> PageSize {
        if self.size() == PageSize::SIZE_16K { PageSize::SIZE_4K } else { self.size() }
    }
    /// First address of the page.
    #[inline]
    pub const fn frame(self) -> Hpa {
        Hpa::new(self.0 & Self::FRAME)
    }
    /// Where an address of the page is.
    #[inline]
    pub fn apply<I: Address>(self, address: I) -> Hpa {
        let mask = (1u64 << (self.0 >> 5 & 63)) - 1;
        Hpa::new(self.0 & Self::FRAME | address.value() & mask)
    }
    /// What may be done with the page.
    #[inline]
    pub const fn permissions(self) -> Permissions {
        Permissions {
            write: self.0 & Self::WRITE != 0,
            user: self.0 & Self::USER != 0,
            execute: self.0 & Self::EXECUTE != 0,
        }
    }
    /// Whether a store needs no walk to set the dirty bit.
    #[inline]
    pub const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }
    /// The same translation, of a page that may not be stored to.
    #[inline]
    #[must_use]
    pub const fn read_only(self) -> Self {
        Self(self.0 & !Self::WRITE)
    }
    /// The same translation, whose dirty bit is clear in the tables: a store walks to set it.
    #[inline]
    #[must_use]
    pub const fn clean(self) -> Self {
        Self(self.0 & !Self::DIRTY)
    }
    /// Whether it stays when CR3 is loaded.
    #[inline]
    pub const fn is_global(self) -> bool {
        self.0 & Self::GLOBAL != 0
    }
    /// The bits that an access needs to find set: see [`Translation::serves`].
    #[inline]
    pub const fn needs(write: bool, fetch: bool, user: bool) -> u64 {
        let mut bits = 0;
        if write {
            bits |= Self::WRITE | Self::DIRTY;
        }
        if fetch {
            bits |= Self::EXECUTE;
        }
        if user {
            bits |= Self::USER;
        }
        bits
    }
    /// The translation of the base page that lies `pages` further on in memory, all else the same.
    #[inline]
    #[must_use]
    pub const fn step(self, pages: u64) -> Self {
        let frame = (self.0 & Self::FRAME).wrapping_add(pages << 12) & Self::FRAME;
        Self(self.0 & !Self::FRAME | frame)
    }
    /// Everything but the frame: size, permissions, dirty, global, and what it is a part of.
    #[inline]
    pub const fn attributes(self) -> u64 {
        self.0 & !Self::FRAME
    }
    /// The part of `size` around `address` of a larger page.
    #[inline]
    #[must_use]
    pub fn part<I: Address>(self, address: I, size: PageSize) -> Self {
        let frame = self.apply(address.align_down(size));
        let (permissions, dirty) = (self.permissions(), self.is_dirty());
        let part = Self::new(frame, size, permissions, dirty, self.is_global());
        // Four base pages that share an entry are no larger page of the tables'.
        if self.whole_shift() == PageSize::SIZE_16K.shift() {
            return part;
        }
        part.splinter_of(PageSize::from_shift(self.whole_shift() as u8))
    }
    /// The part of `size` around `address`, which knows the translation that it is a piece of.
    pub(super) fn smashed<I: Address>(self, address: I, size: PageSize) -> Self {
        Self(self.part(address, size).0 | u64::from(self.size().shift()) << Self::SMASHED_SHIFT)
    }
    /// The translation that this was smashed from; itself if it was not.
    #[inline]
    #[must_use]
    pub fn restored(self) -> Self {
        if self.0 >> Self::SMASHED_SHIFT == 0 { self } else { self.whole() }
    }
    #[cold]
    fn whole(self) -> Self {
        let size = PageSize::from_shift((self.0 >> Self::SMASHED_SHIFT) as u8);
        let (frame, whole) = (self.frame().align_down(size), self.whole_shift() as u8);
        Self::new(frame, size, self.permissions(), self.is_dirty(), self.is_global())
            .splinter_of(PageSize::from_shift(whole))
    }
    /// Whether the access may use the entry as it is: permitted, and dirty if it is a store.
    #[inline]
    pub const fn serves(self, needs: u64) -> bool {
        self.0 & needs == needs
    }
}
