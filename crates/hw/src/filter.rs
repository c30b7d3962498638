//! Which first-level TLBs a filtered recording is exact for.
//!
//! A filter hides accesses whose effect on the order of use of a TLB's sets follows from the accesses
//! that it shows: see [`Filter`]. That holds for an array whose sets refine the filter's, that is whose
//! number of sets is a multiple of the filter's (both are indexed by the lowest bits of the page
//! number), with at least as many ways and replacement by order of use. Another index or replacement is
//! exact only where nothing but repeats is hidden, which no policy takes notice of. Second-level TLBs
//! and walk caches see the misses of the first level only, and need nothing.

use crate::profile::{IndexProfile, Profile, TlbProfile};
use crate::replacement::Replacement;
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
    /// What it does otherwise than by the lowest bits of the page number and the order of use.
    pub otherwise: Option<String>,
}

impl fmt::Display for TooFine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, sizes, sets, ways, filter, by, shared, otherwise } = self;
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
        if let Some(otherwise) = otherwise {
            write!(f, ", with a linear index and true LRU; it has {otherwise}")?;
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

/// What an array has that the order of use by the lowest bits says nothing of.
fn otherwise(array: &TlbProfile) -> Option<String> {
    let replacement = array.replacement();
    let index = match &array.index {
        Some(IndexProfile::Xor { .. }) => Some("an index by exclusive ors".to_owned()),
        Some(IndexProfile::Named(name)) if name != "linear" => Some(format!("index {name}")),
        _ => None,
    };
    let policy = (replacement != Replacement::Lru).then(|| format!("replacement {replacement}"));
    let both: Vec<String> = [index, policy].into_iter().flatten().collect();
    (!both.is_empty()).then(|| both.join(" and "))
}

fn check(
    kind: &'static str,
    array: &TlbProfile,
    (small, large): (FilterArray, FilterArray),
) -> Option<TooFine> {
    let has = |size: PageSize| array.page_sizes().any(|s| s == size);
    let (small_pages, large_pages) = (has(PageSize::SIZE_4K), has(PageSize::SIZE_2M));
    let others = [PageSize::SIZE_16K, PageSize::SIZE_1G].map(has);
    let shared =
        [small_pages, large_pages, others[0], others[1]].iter().filter(|h| **h).count() > 1;
    let other = otherwise(array);
    let inexact = |filter| (shared || other.is_some()) && !hides_repeats_only(filter);
    let wrong = |filter: FilterArray, by: PageSize, shared: bool| {
        let (sizes, geometry) = (array.sizes.clone(), array.geometry());
        let (sets, ways) = (geometry.sets(), geometry.ways);
        Some(TooFine { kind, sizes, sets, ways, filter, by, shared, otherwise: other.clone() })
    };
    if small_pages && (!refines(array, small) || inexact(small)) {
        return wrong(small, PageSize::SIZE_4K, shared);
    }
    if large_pages && (!refines(array, large) || inexact(large)) {
        return wrong(large, PageSize::SIZE_2M, shared);
    }
    None
}
