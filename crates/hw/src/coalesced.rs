//! The TLBs of a core whose entries cover several base pages, in place of the core's own: CoLT (Pham et
//! al., MICRO 2012) and the clustered TLB (Pham et al., HPCA 2014).
//!
//! ```text
//!            first level                     second level
//! sa         runs in groups of 4             runs in groups of 4
//! fa         conventional + run buffer       conventional
//! all        runs in groups of 4 + buffer    runs in groups of 4
//! clustered  conventional                    some ways for clusters, the others conventional
//! ```
//!
//! Pages larger than base pages are held as ever, in the arrays that the profile has for them.

use crate::clustered::{ClusterArray, ClusterEntry, ClusterHit};
use crate::geometry::Geometry;
use crate::line::{LINE_SHIFT, Line};
use crate::pcids::Displaced;
use crate::profile::{Profile, TlbProfile};
use crate::runs::{Hit, RunBuffer, RunEntry, RunLevel};
use crate::tlb::{Asid, Translation};
use nestwalk_types::{Address, PageSize};

/// How base pages are put together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Set-associative arrays: base-2 logarithm of the pages of a group, of which an entry holds a run.
    /// 0 is a conventional TLB.
    pub shift: u32,
    /// Entries of the fully associative buffer of runs beside the first level; 0 if there is none.
    pub buffer: u32,
    /// Most pages of an entry of the buffer.
    pub longest: u32,
    /// A page whose run goes to the buffer, or whose cluster goes to the clustered ways, goes to the
    /// conventional part of the second level, too.
    pub second_level: bool,
    /// Ways of the second level that hold clusters; 0 if there are none.
    pub cluster_ways: u32,
    /// Fewest pages of a cluster; fewer go to the conventional ways.
    pub cluster_least: u32,
}

/// What a look-up of a level found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Of the page.
    pub translation: Translation,
    /// The walk of another page had brought it in.
    pub neighbour: bool,
    /// So is what the first level then has of it.
    pub first_too: bool,
    /// What the first level gets: a run, or the page alone.
    entry: RunEntry,
}

impl From<Hit> for Found {
    fn from(hit: Hit) -> Self {
        let Hit { translation, entry, neighbour } = hit;
        Self { translation, neighbour, first_too: neighbour, entry }
    }
}

/// The TLBs of one core.
#[derive(Clone, Debug)]
pub struct Coalesced {
    l1d: RunLevel,
    l1i: RunLevel,
    l2: RunLevel,
    /// Of fetches, if they have their own second level.
    l2i: Option<Box<RunLevel>>,
    buffer: Option<RunBuffer>,
    clusters: Option<ClusterArray>,
    shape: Shape,
    any_splinter: bool,
    /// What the last walk learnt; see [`Coalesced::fill_walked`].
    pub line: Line,
}

/// The second level in two parts: conventional ways, and ways of clusters of the array that has base
/// pages.
fn split(arrays: &[TlbProfile], ways: u32) -> Result<(Vec<TlbProfile>, Option<Geometry>), String> {
    let mut rest = arrays.to_vec();
    if ways == 0 {
        return Ok((rest, None));
    }
    let base = rest.iter_mut().find(|p| p.page_sizes().any(|s| s == PageSize::SIZE_4K));
    let Some(base) = base else { return Err("the second-level TLB has no base pages".into()) };
    if ways >= base.ways {
        return Err(format!(
            "{ways} ways of the second-level TLB for clusters, but it has {} in all, of which one at \
             least stays conventional",
            base.ways
        ));
    }
    let sets = base.geometry().sets();
    base.ways -= ways;
    base.entries = sets * base.ways;
    let clusters = Geometry::new(sets * ways, ways).map_err(|e| e.to_string())?;
    Ok((rest, Some(clusters)))
}

impl Coalesced {
    /// Empty TLBs of the geometry of a profile.
    ///
    /// # Errors
    /// The shape does not fit the profile.
    pub fn new(profile: &Profile, shape: Shape) -> Result<Self, String> {
        let (l2, clusters) = split(&profile.l2_tlb, shape.cluster_ways)?;
        let buffer = (shape.buffer > 0).then(|| Geometry::new(shape.buffer, shape.buffer));
        let buffer = buffer.transpose().map_err(|e| e.to_string())?;
        Ok(Self {
            l1d: RunLevel::new(&profile.l1d_tlb, shape.shift),
            l1i: RunLevel::new(&profile.l1i_tlb, shape.shift),
            l2: RunLevel::new(&l2, shape.shift),
            l2i: (!profile.l2i_tlb.is_empty())
                .then(|| Box::new(RunLevel::new(&profile.l2i_tlb, shape.shift))),
            buffer: buffer.map(|g| RunBuffer::new(g, shape.longest)),
            clusters: clusters.map(ClusterArray::new),
            shape,
            any_splinter: false,
            line: Line::default(),
        })
    }

    /// Whether there is a buffer, which is looked up with every access.
    pub const fn has_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    fn first_level(&mut self, fetch: bool) -> &mut RunLevel {
        if fetch { &mut self.l1i } else { &mut self.l1d }
    }

    /// Looks the first level and the buffer beside it up.
    #[inline]
    pub fn look_up_first<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        fetch: bool,
    ) -> Option<Found> {
        if let Some(hit) = self.first_level(fetch).look_up(address, asid) {
            return Some(hit.into());
        }
        self.buffer.as_mut()?.look_up(address, asid).map(Found::from)
    }

    fn second_level(&mut self, fetch: bool) -> &mut RunLevel {
        match &mut self.l2i {
            Some(l2i) if fetch => l2i,
            _ => &mut self.l2,
        }
    }

    fn levels(&mut self) -> impl Iterator<Item = &mut RunLevel> {
        let l2i = self.l2i.as_deref_mut();
        [&mut self.l1d, &mut self.l1i, &mut self.l2].into_iter().chain(l2i)
    }

    /// Looks the second level up, both of its parts.
    pub fn look_up_second<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        fetch: bool,
    ) -> Option<Found> {
        if let Some(hit) = self.second_level(fetch).look_up(address, asid) {
            return Some(hit.into());
        }
        let hit = self.clusters.as_mut()?.look_up(address, asid)?;
        let entry = RunEntry::page(address, asid, hit.translation);
        let ClusterHit { translation, neighbour } = hit;
        Some(Found { translation, neighbour, first_too: false, entry })
    }

    /// Puts what the second level found into the first: as much of a run as fits there.
    pub fn fill_first<I: Address>(&mut self, address: I, fetch: bool, found: &Found) {
        self.first_level(fetch).fill_splintering(address, &found.entry);
    }

    /// Puts what was found beside the TLBs into the first level, the page alone.
    pub fn fill_first_alone<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        fetch: bool,
        translation: Translation,
    ) {
        self.any_splinter |= translation.is_splinter();
        let page = RunEntry::page(address, asid, translation);
        self.first_level(fetch).fill_splintering(address, &page);
    }

    /// Puts a walked translation into the TLBs, with as many of the pages in [`Coalesced::line`] as may
    /// share its entry. Returns the pages of the largest entry.
    pub fn fill_walked<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        fetch: bool,
        translation: Translation,
    ) -> u32 {
        self.any_splinter |= translation.is_splinter();
        let single = RunEntry::page(address, asid, translation);
        if translation.size() != PageSize::SIZE_4K {
            self.second_level(fetch).fill(address, &single);
            self.first_level(fetch).fill_splintering(address, &single);
            return 1;
        }
        if let Some(pages) = self.fill_cluster(address, asid, translation) {
            if self.shape.second_level {
                self.second_level(fetch).fill(address, &single);
            }
            self.first_level(fetch).fill(address, &single);
            return pages;
        }
        let run = self.run(single);
        let part = run.cut(single.first, self.shape.shift);
        if let Some(buffer) = self.buffer.as_mut().filter(|_| part.pages < run.pages) {
            let pages = buffer.fill(&run);
            if self.shape.second_level {
                self.second_level(fetch).fill(address, &part);
            }
            return pages;
        }
        self.second_level(fetch).fill(address, &part);
        self.first_level(fetch).fill(address, &part)
    }

    /// The run of the line around a page, as an entry.
    fn run(&self, page: RunEntry) -> RunEntry {
        let shift = if self.buffer.is_some() { LINE_SHIFT } else { self.shape.shift };
        let (first, pages) = self.line.run(shift);
        let before = u64::from(self.line.index - first);
        RunEntry {
            first: page.first - before,
            pages: u32::from(pages),
            translation: page.translation.step(before.wrapping_neg()),
            ..page
        }
    }

    /// Puts the cluster of the line into the clustered part, if there is one and it has enough pages.
    fn fill_cluster<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        translation: Translation,
    ) -> Option<u32> {
        let clusters = self.clusters.as_mut()?;
        let (pages, places) = self.line.cluster();
        if pages.count_ones() < self.shape.cluster_least {
            return None;
        }
        let place = translation.frame().page_number() & 7;
        let walked = self.line.index;
        let translation = translation.step(place.wrapping_neg());
        let cluster = address.page_number() >> LINE_SHIFT;
        Some(clusters.fill(&ClusterEntry { cluster, pages, walked, asid, places, translation }))
    }

    /// Removes what the TLBs have for one address, whole runs; parts of a large page elsewhere stay.
    pub fn remove<I: Address>(&mut self, address: I, asid: Asid, global: bool) {
        for level in self.levels() {
            level.remove(address, asid, global);
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.remove(address, asid, global, false);
        }
        if let Some(clusters) = &mut self.clusters {
            clusters.remove(address, asid, global);
        }
    }

    /// As [`Coalesced::remove`], with all other parts of the same large page: INVLPG.
    pub fn invalidate_page<I: Address>(&mut self, address: I, asid: Asid, global: bool) {
        for level in self.levels() {
            level.invalidate_page(address, asid, global);
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.remove(address, asid, global, self.any_splinter);
        }
        if let Some(clusters) = &mut self.clusters {
            clusters.invalidate_page(address, asid, global);
        }
    }

    /// Removes everything of `asid` but global entries.
    pub fn invalidate_asid(&mut self, asid: Asid) {
        for level in self.levels() {
            level.invalidate_asid(asid);
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.invalidate_asid(asid);
        }
        if let Some(clusters) = &mut self.clusters {
            clusters.invalidate_asid(asid);
        }
    }

    /// Removes everything of a VPID, with or without its global entries.
    pub fn invalidate_vpid(&mut self, vpid: u8, global: bool) {
        for level in self.levels() {
            level.invalidate_vpid(vpid, global);
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.invalidate_vpid(vpid, global);
        }
        if let Some(clusters) = &mut self.clusters {
            clusters.invalidate_vpid(vpid, global);
        }
    }

    /// Removes what loads of CR3 displace from the two first levels and the second; global entries stay.
    pub fn displace(&mut self, [l1d, l1i, l2]: [Displaced; 3], vpid: u8) {
        let one = |level: &mut RunLevel, displaced: Displaced| match displaced {
            Displaced::Nothing => {}
            Displaced::All => level.invalidate_vpid(vpid, false),
            Displaced::One(asid) => level.invalidate_asid(asid),
        };
        one(&mut self.l1d, l1d);
        one(&mut self.l1i, l1i);
        one(&mut self.l2, l2);
        if let Some(level) = &mut self.l2i {
            one(level, l2);
        }
        // The buffer stands beside the first-level data TLB, clusters are a part of the second level.
        if let Some(buffer) = &mut self.buffer {
            match l1d {
                Displaced::Nothing => {}
                Displaced::All => buffer.invalidate_vpid(vpid, false),
                Displaced::One(asid) => buffer.invalidate_asid(asid),
            }
        }
        if let Some(clusters) = &mut self.clusters {
            match l2 {
                Displaced::Nothing => {}
                Displaced::All => clusters.invalidate_vpid(vpid, false),
                Displaced::One(asid) => clusters.invalidate_asid(asid),
            }
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        for level in self.levels() {
            level.flush();
        }
        if let Some(buffer) = &mut self.buffer {
            buffer.flush();
        }
        if let Some(clusters) = &mut self.clusters {
            clusters.flush();
        }
        self.any_splinter = false;
    }
}
