//! The four address spaces of a virtual machine, one type each.
//!
//! Only a stage of translation turns one into another: there is no conversion between the types,
//! and none from `u64` except the explicit `new`.
//!
//! ```compile_fail
//! use nestwalk_types::{Gpa, Gva};
//! fn poke(_: Gpa) {}
//! poke(Gva::new(0x1000)); // the wrong space does not compile
//! ```

use crate::size::PageSize;
use std::fmt;

/// What the four address types have in common, so that tables and allocators can be written once
/// for the guest and the host dimension.
pub trait Address: Copy + Ord + Eq + std::hash::Hash + fmt::Debug + Send + Sync + 'static {
    /// The word for this space in messages: `gVA`, `gPA`, `hVA`, `hPA`.
    const SPACE: &'static str;
    /// Wraps a number as an address of this space.
    fn new(value: u64) -> Self;
    /// The number.
    fn value(self) -> u64;
    /// Number of the 4 KiB page that holds this address (GVN, GFN, HVN, HFN).
    #[inline]
    fn page_number(self) -> u64 {
        self.value() >> 12
    }
    /// First address of the enclosing page of `size`.
    #[inline]
    fn align_down(self, size: PageSize) -> Self {
        Self::new(self.value() & !size.mask())
    }
    /// Offset in the enclosing page of `size`, in bytes.
    #[inline]
    fn offset_in(self, size: PageSize) -> u64 {
        self.value() & size.mask()
    }
    /// The address `bytes` further on; wraps at 2^64.
    #[inline]
    fn offset_by(self, bytes: u64) -> Self {
        Self::new(self.value().wrapping_add(bytes))
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $space:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a number as an address of this space.
            #[inline]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// The number.
            #[inline]
            pub const fn value(self) -> u64 {
                self.0
            }
        }
        impl Address for $name {
            const SPACE: &'static str = $space;
            #[inline]
            fn new(value: u64) -> Self {
                Self(value)
            }
            #[inline]
            fn value(self) -> u64 {
                self.0
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($space, " {:#x}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// Guest virtual address: what a program in the guest uses.
    Gva, "gVA");
address!(
    /// Guest physical address: guest RAM as the guest kernel sees it. On bare metal this is RAM.
    Gpa, "gPA");
address!(
    /// Host virtual address: the VMM process's mapping of guest RAM.
    Hva, "hVA");
address!(
    /// Host physical address: RAM of the host.
    Hpa, "hPA");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_follows_page_size() {
        let a = Gva::new(0x4020_1234);
        assert_eq!(a.align_down(PageSize::SIZE_4K), Gva::new(0x4020_1000));
        assert_eq!(a.align_down(PageSize::SIZE_2M), Gva::new(0x4020_0000));
        assert_eq!(a.align_down(PageSize::SIZE_1G), Gva::new(0x4000_0000));
        assert_eq!(a.offset_in(PageSize::SIZE_2M), 0x1234);
        assert_eq!(a.page_number(), 0x40201);
        assert_eq!(format!("{a:?}"), "gVA 0x40201234");
    }
}
