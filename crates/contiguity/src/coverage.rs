//! How many entries each technique needs: what of a run one entry can cover.
//!
//! Everything is computed by runs, never page by page: terabytes cost no more than kilobytes with as
//! many runs.

use crate::pieces::Pieces;
use crate::run::MappedRun;
use crate::set::RunSet;
use std::collections::BTreeMap;

/// Pages of a cluster: PTEs in a line of 64 bytes (Pham et al., HPCA 2014).
pub const CLUSTER_PAGES: u64 = 8;
/// The smallest distance of anchors, pages (Park et al., ISCA 2017).
pub const MIN_DISTANCE: u64 = 2;
/// The largest distance of anchors, pages.
pub const MAX_DISTANCE: u64 = 65_536;

const HUGE_2M: u64 = 512;
const HUGE_1G: u64 = 512 * 512;

/// The page sizes that regular entries may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum PageSizes {
    /// 4 KiB only.
    Base,
    /// 2 MiB too, wherever page and frame number are aligned alike.
    Huge2M,
    /// 1 GiB too.
    Huge1G,
}

/// Ranges (RMM; Karakostas et al., ISCA 2015): one for each run.
pub fn ranges(set: &RunSet) -> Pieces {
    let mut pieces = Pieces::new();
    set.iter().for_each(|run| pieces.add(run.pages, 1));
    pieces
}

/// Offsets (`SpOT`; Alverti et al., ISCA 2020): one for all runs of the same page number minus frame
/// number. Tags do not matter: an offset says nothing of permissions.
pub fn offsets(set: &RunSet) -> Pieces {
    let mut by_offset: BTreeMap<u64, u64> = BTreeMap::new();
    for run in set.iter() {
        *by_offset.entry(run.offset()).or_default() += run.pages;
    }
    let mut pieces = Pieces::new();
    by_offset.values().for_each(|&pages| pieces.add(pages, 1));
    pieces
}

/// Regular entries: pages of the largest of the sizes that page and frame numbers allow, as if the
/// operating system had used each wherever it can.
pub fn huge_pages(set: &RunSet, sizes: PageSizes) -> Pieces {
    let mut pieces = Pieces::new();
    set.iter()
        .for_each(|run| regular(run, sizes, &mut |run, size| pieces.add(size, run.pages / size)));
    pieces
}

/// Anchors (Park et al., ISCA 2017): of every `distance` pages, the aligned one says how many pages go
/// on from it, and covers so many of the `distance`. Pages of a run before its first anchor take
/// regular entries. `distance` is rounded up to a power of two; 1 makes every page an anchor.
pub fn anchors(set: &RunSet, distance: u64, sizes: PageSizes) -> Pieces {
    let distance = distance.checked_next_power_of_two().unwrap_or(1 << 63);
    let mut pieces = Pieces::new();
    for run in set.iter() {
        let (head, body) = split(run, aligned_up(run.from, distance));
        if let Some(head) = head {
            regular(head, sizes, &mut |part, size| pieces.add(size, part.pages / size));
        }
        if let Some(body) = body {
            pieces.add(distance, body.pages / distance);
            pieces.add(body.pages % distance, 1);
        }
    }
    pieces
}

/// Anchors at the distance that needs the fewest entries in all, as the operating system chooses it;
/// the smallest of several. Returns the distance in pages, too.
pub fn best_anchors(set: &RunSet, sizes: PageSizes) -> (u64, Pieces) {
    let mut best = (MIN_DISTANCE, anchors(set, MIN_DISTANCE, sizes));
    let mut distance = MIN_DISTANCE * 2;
    while distance <= MAX_DISTANCE {
        let pieces = anchors(set, distance, sizes);
        if pieces.entries() < best.1.entries() {
            best = (distance, pieces);
        }
        distance *= 2;
    }
    best
}

/// Coalesced entries (`CoLT`; Pham et al., MICRO 2012): consecutive pages with consecutive frames
/// within `group` aligned pages: 8 are the PTEs of a cache line, 4 what a set-associative TLB covers
/// whose index leaves two bits out. Huge pages of the given sizes keep regular entries.
pub fn coalesced(set: &RunSet, group: u64, sizes: PageSizes) -> Pieces {
    let group = group.max(1);
    let mut pieces = Pieces::new();
    for run in set.iter() {
        regular(run, sizes, &mut |part, size| {
            if size > 1 {
                return pieces.add(size, part.pages / size);
            }
            let (head, body) = split(part, aligned_up(part.from, group));
            pieces.add(head.map_or(0, |h| h.pages), 1);
            let pages = body.map_or(0, |b| b.pages);
            pieces.add(group, pages / group);
            pieces.add(pages % group, 1);
        });
    }
    pieces
}

/// Clustered entries (Pham et al., HPCA 2014): pages of an aligned cluster of 8 whose frames are in
/// the same aligned cluster of 8, in any order. Huge pages of the given sizes keep regular entries.
/// Pages of different tags do not share an entry.
pub fn clustered(set: &RunSet, sizes: PageSizes) -> Pieces {
    let mut pieces = Pieces::new();
    let mut open = Open::default();
    for run in set.iter() {
        regular(run, sizes, &mut |part, size| {
            if size > 1 {
                return pieces.add(size, part.pages / size);
            }
            let (head, body) = split(part, aligned_up(part.from, CLUSTER_PAGES));
            head.into_iter().for_each(|h| open.add(h, &mut pieces));
            let Some(body) = body else { return };
            let (whole, tail) = split(body, body.end() & !(CLUSTER_PAGES - 1));
            if let Some(whole) = whole {
                let upper = whole.to % CLUSTER_PAGES;
                let count = whole.pages / CLUSTER_PAGES;
                pieces.add(CLUSTER_PAGES - upper, count);
                pieces.add(upper, count);
            }
            tail.into_iter().for_each(|t| open.add(t, &mut pieces));
        });
    }
    open.close(&mut pieces);
    pieces
}

/// The cluster that is not finished: several runs may have pages in it.
#[derive(Default)]
struct Open {
    cluster: u64,
    /// Cluster of frames, tag, pages. At most as many as a cluster has pages.
    entries: Vec<(u64, u16, u64)>,
}

impl Open {
    /// Adds pages that are all in one cluster.
    fn add(&mut self, part: MappedRun, pieces: &mut Pieces) {
        let cluster = part.from / CLUSTER_PAGES;
        if cluster != self.cluster {
            self.close(pieces);
            self.cluster = cluster;
        }
        let boundary = (part.to / CLUSTER_PAGES + 1).wrapping_mul(CLUSTER_PAGES);
        let first = boundary.wrapping_sub(part.to).min(part.pages);
        for (to, pages) in [(part.to, first), (boundary, part.pages - first)] {
            let frames = to / CLUSTER_PAGES;
            match self.entries.iter_mut().find(|e| (e.0, e.1) == (frames, part.tag)) {
                Some(entry) => entry.2 += pages,
                None => self.entries.push((frames, part.tag, pages)),
            }
        }
    }

    fn close(&mut self, pieces: &mut Pieces) {
        self.entries.drain(..).for_each(|(_, _, pages)| pieces.add(pages, 1));
    }
}

/// Cuts a run into parts of one page size each, ascending: in the middle the largest size that page
/// and frame numbers allow, at both ends smaller ones. Tells each part and its size in pages.
fn regular(run: MappedRun, sizes: PageSizes, tell: &mut dyn FnMut(MappedRun, u64)) {
    let (size, smaller) = match sizes {
        PageSizes::Base => return tell(run, 1),
        PageSizes::Huge2M => (HUGE_2M, PageSizes::Base),
        PageSizes::Huge1G => (HUGE_1G, PageSizes::Huge2M),
    };
    if !run.offset().is_multiple_of(size) {
        return regular(run, smaller, tell);
    }
    let (head, rest) = split(run, aligned_up(run.from, size));
    let cut = |rest: MappedRun| split(rest, rest.end() & !(size - 1));
    let (body, tail) = rest.map_or((None, None), cut);
    if let Some(head) = head {
        regular(head, smaller, tell);
    }
    if let Some(body) = body {
        tell(body, size);
    }
    if let Some(tail) = tail {
        regular(tail, smaller, tell);
    }
}

/// The first multiple of `size` from `page` on, or the last number that there is.
const fn aligned_up(page: u64, size: u64) -> u64 {
    match page.checked_next_multiple_of(size) {
        Some(aligned) => aligned,
        None => u64::MAX,
    }
}

/// What a run has before page `at`, and from there on.
fn split(run: MappedRun, at: u64) -> (Option<MappedRun>, Option<MappedRun>) {
    (run.clip(0, at), run.clip(at, u64::MAX))
}

/// All techniques at once, for reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survey {
    /// Pages mapped.
    pub footprint: u64,
    /// Names and entries, in a fixed order.
    pub techniques: Vec<(&'static str, Pieces)>,
    /// Distance of the anchors, pages.
    pub distance: u64,
}

impl Survey {
    /// Names of the techniques, in their order. `4k`, `2m` and `1g` are regular entries with pages of
    /// up to that size; the others have regular entries of 4 KiB besides.
    pub const NAMES: [&str; 9] =
        ["4k", "colt-4", "colt-8", "clustered", "2m", "1g", "anchors", "ranges", "offsets"];

    /// Of a set of runs.
    pub fn of(set: &RunSet) -> Self {
        let (distance, anchors) = best_anchors(set, PageSizes::Base);
        let base = PageSizes::Base;
        let pieces = [
            huge_pages(set, base),
            coalesced(set, 4, base),
            coalesced(set, 8, base),
            clustered(set, base),
            huge_pages(set, PageSizes::Huge2M),
            huge_pages(set, PageSizes::Huge1G),
            anchors,
            ranges(set),
            offsets(set),
        ];
        let techniques = Self::NAMES.into_iter().zip(pieces).collect();
        Self { footprint: set.pages(), techniques, distance }
    }
}
