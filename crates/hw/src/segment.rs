//! Registers of a direct segment: BASE, LIMIT, OFFSET (Basu et al., ISCA 2013; Gandhi et al., MICRO
//! 2014).
//!
//! An address in `BASE..LIMIT` is translated by adding OFFSET. The same registers serve three
//! places: gVA to hPA on bare metal, gVA to gPA in a guest, gPA to hPA in a VMM.

use nestwalk_types::{Address, PageSize};
use std::marker::PhantomData;
use thiserror::Error;

/// Physical addresses have at most 52 bits (SDM vol. 3A, "MAXPHYADDR").
const PHYSICAL_BITS: u32 = 52;

/// Why registers cannot be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SegmentError {
    /// An address or the length is no multiple of a page.
    #[error(
        "segment {base:#x}..{limit:#x} to {target:#x}: base, limit and target must be multiples of 4096"
    )]
    Misaligned {
        /// First address.
        base: u64,
        /// One past the last address.
        limit: u64,
        /// Where the first address is.
        target: u64,
    },
    /// The limit is below the base, or the range reaches over the end of its address space.
    #[error(
        "segment at {base:#x} of {bytes:#x} bytes: wraps around the end of the address space; it must \
         end below 2^64"
    )]
    WrapsAround {
        /// First address.
        base: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// What it maps to is no physical memory.
    #[error(
        "segment to {target:#x} of {bytes:#x} bytes: wraps around the end of physical memory; it must \
         end at 2^52 at most"
    )]
    TargetWrapsAround {
        /// Where the first address is.
        target: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// Two segments share input or output addresses.
    #[error(
        "segments {first:#x}..{first_end:#x} and {second:#x}..{second_end:#x} overlap; they must be apart"
    )]
    Overlap {
        /// First address of one.
        first: u64,
        /// One past its last.
        first_end: u64,
        /// First address of the other.
        second: u64,
        /// One past its last.
        second_end: u64,
    },
}

/// The registers of one segment, from addresses `I` to addresses `O`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<I, O> {
    base: u64,
    bytes: u64,
    offset: u64,
    spaces: PhantomData<(I, O)>,
}

impl<I, O> Segment<I, O> {
    /// Registers that cover nothing: BASE = LIMIT.
    pub const OFF: Self = Self { base: 0, bytes: 0, offset: 0, spaces: PhantomData };
}

impl<I: Address, O: Address> Segment<I, O> {
    /// Registers that map `bytes` from `base` on to `target` and what follows it.
    ///
    /// # Errors
    /// Parts that are not whole pages, or that reach over the end of their address space.
    pub fn new(base: I, bytes: u64, target: O) -> Result<Self, SegmentError> {
        let (base, target) = (base.value(), target.value());
        let limit = base.wrapping_add(bytes);
        if (base | bytes | target) & 0xfff != 0 {
            return Err(SegmentError::Misaligned { base, limit, target });
        }
        if base.checked_add(bytes).is_none() {
            return Err(SegmentError::WrapsAround { base, bytes });
        }
        if target.checked_add(bytes).is_none_or(|end| end > 1 << PHYSICAL_BITS) {
            return Err(SegmentError::TargetWrapsAround { target, bytes });
        }
        Ok(Self { base, bytes, offset: target.wrapping_sub(base), spaces: PhantomData })
    }

    /// The base-bound check: one subtraction and one comparison.
    #[inline]
    pub fn covers(&self, address: I) -> bool {
        address.value().wrapping_sub(self.base) < self.bytes
    }
    /// Where a covered address is.
    #[inline]
    pub fn apply(&self, address: I) -> O {
        O::new(address.value().wrapping_add(self.offset))
    }
    /// Whether the whole page of `size` around an address is covered, and could be one page there.
    #[inline]
    pub fn covers_page(&self, address: I, size: PageSize) -> bool {
        let first = address.value() & !size.mask();
        let from_base = first.wrapping_sub(self.base);
        self.offset & size.mask() == 0
            && from_base < self.bytes
            && self.bytes - from_base >= size.bytes()
    }
    /// The first address.
    pub fn base(&self) -> I {
        I::new(self.base)
    }
    /// Where the first address is.
    pub fn target(&self) -> O {
        self.apply(self.base())
    }
    /// Length in bytes; 0 if it is off.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Numbers of its pages.
    pub const fn pages(&self) -> std::ops::Range<u64> {
        self.base >> 12..(self.base >> 12) + (self.bytes >> 12)
    }

    /// Whether this and another segment that is in force at the same time are apart, in what they
    /// map and in what they map to.
    ///
    /// # Errors
    /// They overlap.
    pub fn check_apart(&self, other: &Self) -> Result<(), SegmentError> {
        let targets = |s: &Self| s.base.wrapping_add(s.offset);
        for (first, second) in [(self.base, other.base), (targets(self), targets(other))] {
            let (first_end, second_end) = (first + self.bytes, second + other.bytes);
            let empty = self.bytes == 0 || other.bytes == 0;
            if !empty && first < second_end && second < first_end {
                return Err(SegmentError::Overlap { first, first_end, second, second_end });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::{Gpa, Gva, Hpa};

    fn segment(base: u64, bytes: u64, target: u64) -> Result<Segment<Gva, Gpa>, SegmentError> {
        Segment::new(Gva::new(base), bytes, Gpa::new(target))
    }

    #[test]
    fn covers_from_base_to_limit_and_nothing_else() {
        let s = segment(0x7000_0000, 0x3000, 0x1000).unwrap();
        for (gva, inside) in [
            (0x6fff_ffff, false),
            (0x7000_0000, true),
            (0x7000_2fff, true),
            (0x7000_3000, false),
            (0, false),
            (u64::MAX, false),
        ] {
            assert_eq!(s.covers(Gva::new(gva)), inside, "{gva:#x}");
        }
        assert_eq!(s.apply(Gva::new(0x7000_2abc)), Gpa::new(0x3abc));
        assert_eq!(
            (s.base(), s.bytes(), s.target()),
            (Gva::new(0x7000_0000), 0x3000, Gpa::new(0x1000))
        );
        assert_eq!(s.pages(), 0x70000..0x70003);
        assert!([0, 1, u64::MAX].iter().all(|a| !Segment::<Gva, Gpa>::OFF.covers(Gva::new(*a))));
        let upper = segment(0xffff_8000_0000_0000, 0x1000, 0).unwrap();
        assert_eq!(upper.apply(Gva::new(0xffff_8000_0000_0123)), Gpa::new(0x123));
    }

    #[test]
    fn large_pages_must_lie_inside_and_be_aligned_on_both_sides() {
        let (m2, g1) = (PageSize::SIZE_2M, PageSize::SIZE_1G);
        let s = segment(0x4000_0000, 0x40_1000, 0x8000_0000).unwrap();
        assert!(
            s.covers_page(Gva::new(0x4000_0000), m2) && s.covers_page(Gva::new(0x403f_ffff), m2)
        );
        assert!(
            !s.covers_page(Gva::new(0x4040_0000), m2) && !s.covers_page(Gva::new(0x4000_0000), g1)
        );
        assert!(s.covers_page(Gva::new(0x4040_0000), PageSize::SIZE_4K));
        let shifted = segment(0x4000_0000, 0x40_0000, 0x8000_1000).unwrap();
        assert!(!shifted.covers_page(Gva::new(0x4000_0000), m2));
    }

    #[test]
    fn registers_that_cannot_be_are_refused_with_what_would_be_right() {
        let text = |s: Result<Segment<Gva, Gpa>, SegmentError>| s.unwrap_err().to_string();
        for (base, bytes, target) in [(1, 0x1000, 0), (0, 0x1001, 0), (0, 0x1000, 0x800)] {
            assert!(text(segment(base, bytes, target)).contains("multiples of 4096"));
        }
        let e = text(segment(0xffff_ffff_ffff_f000, 0x2000, 0));
        assert!(e.contains("0xfffffffffffff000") && e.contains("below 2^64"), "{e}");
        // A limit below the base is a length that wraps around.
        assert!(text(segment(0x2000, 0x1000u64.wrapping_sub(0x2000), 0)).contains("wraps"));
        let e = text(segment(0, 0x2000, (1 << 52) - 0x1000));
        assert!(e.contains("2^52"), "{e}");
        assert!(segment(0, 0x1000, (1 << 52) - 0x1000).is_ok());
    }

    #[test]
    fn overlap_is_seen_on_both_sides() {
        let s = |gpa: u64, hpa: u64| {
            Segment::<Gpa, Hpa>::new(Gpa::new(gpa), 0x2000, Hpa::new(hpa)).unwrap()
        };
        assert!(s(0, 0x10000).check_apart(&s(0x2000, 0x12000)).is_ok());
        assert!(s(0, 0x10000).check_apart(&Segment::OFF).is_ok());
        let e = s(0, 0x10000).check_apart(&s(0x1000, 0x20000)).unwrap_err().to_string();
        assert!(e.contains("0x0..0x2000") && e.contains("overlap"), "{e}");
        let e = s(0, 0x10000).check_apart(&s(0x2000, 0x11000)).unwrap_err().to_string();
        assert!(e.contains("0x10000..0x12000 and 0x11000..0x13000"), "{e}");
    }
}
