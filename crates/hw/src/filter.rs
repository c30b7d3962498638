//! Which first-level TLBs a filtered recording is exact for.
//!
//! A filter hides accesses whose effect on the order of use of a TLB's sets follows from the accesses
//! that it shows: see [`Filter`]. That holds for an array whose sets refine the filter's, that is whose
//! number of sets is a multiple of the filter's (both are indexed by the lowest bits of the page
//! number), with at least as many ways and replacement by order of use, which all arrays here have.
//! Second-level TLBs and walk caches see the misses of the first level only, and need nothing.

use crate::profile::{Profile, TlbProfile};
use nestwalk_types::{Filter, FilterArray, PageSize};
use std::fmt;

/// An array that a filtered recording is not exact for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct TooFine {
    /// `data` or `instruction`.
    pub kind: &'static str,
    /// Page sizes of the array.
    pub sizes: Vec<String>,
    /// Its sets.
    pub sets: u32,
    /// Its ways.
    pub ways: u32,
    /// What it would have to refine.
    pub filter: FilterArray,
    /// Size of the pages that the filter was indexed by.
    pub by: PageSize,
    /// It is shared by page sizes that the filter keeps apart.
    pub shared: bool,
}

impl fmt::Display for TooFine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, sizes, sets, ways, filter, by, shared } = self;
        let plural = |n: u32, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        write!(
            f,
            "the first-level {kind} TLB for {} pages has {} of {}; the recording is filtered by {} of {} \
             over {by} pages, which is exact for a multiple of {} sets with at least {} ways",
            sizes.join(", "),
            plural(*sets, "set"),
            plural(*ways, "way"),
            plural(u32::from(filter.sets), "set"),
            plural(u32::from(filter.ways), "way"),
            filter.sets,
            filter.ways
        )?;
        if *shared {
            write!(f, ", for one page size")?;
        }
        Ok(())
    }
}

impl Profile {
    /// The first-level arrays whose misses a recording with this filter does not give exactly; none if
    /// all is exact. It is for guests of 64 bits, which have pages of 4 KiB, 2 MiB and 1 GiB.
    ///
    /// Of accesses to 1 GiB pages only those are hidden that follow another one to the same page, so
    /// arrays for these alone are exact always.
    pub fn too_fine_for(&self, filter: &Filter) -> Vec<TooFine> {
        let data = (filter.data, filter.data_large);
        let fetch = (filter.fetch, filter.fetch_large);
        let of = |kind, arrays: &[TlbProfile], filter| -> Vec<TooFine> {
            arrays.iter().filter_map(|a| check(kind, a, filter)).collect()
        };
        let mut found = of("data", &self.l1d_tlb, data);
        found.extend(of("instruction", &self.l1i_tlb, fetch));
        found
    }
}

/// Sets that refine the filter's, and ways enough. A filter that does not exist hides nothing.
fn refines(array: &TlbProfile, filter: FilterArray) -> bool {
    let geometry = array.geometry();
    filter.sets == 0
        || geometry.sets().is_multiple_of(u32::from(filter.sets))
            && geometry.ways >= u32::from(filter.ways)
}

/// Only consecutive accesses to one page are hidden: the page is the most recently used of all.
fn hides_repeats_only(filter: FilterArray) -> bool {
    filter.sets == 0 || filter.sets == 1 && filter.ways == 1
}

fn check(
    kind: &'static str,
    array: &TlbProfile,
    (small, large): (FilterArray, FilterArray),
) -> Option<TooFine> {
    let has = |size: PageSize| array.page_sizes().any(|s| s == size);
    let (small_pages, large_pages) = (has(PageSize::SIZE_4K), has(PageSize::SIZE_2M));
    let shared =
        u8::from(small_pages) + u8::from(large_pages) + u8::from(has(PageSize::SIZE_1G)) > 1;
    let wrong = |filter: FilterArray, by: PageSize, shared: bool| {
        let (sizes, geometry) = (array.sizes.clone(), array.geometry());
        let (sets, ways) = (geometry.sets(), geometry.ways);
        Some(TooFine { kind, sizes, sets, ways, filter, by, shared })
    };
    if small_pages && (!refines(array, small) || shared && !hides_repeats_only(small)) {
        return wrong(small, PageSize::SIZE_4K, shared);
    }
    if large_pages && (!refines(array, large) || shared && !hides_repeats_only(large)) {
        return wrong(large, PageSize::SIZE_2M, shared);
    }
    None
}
