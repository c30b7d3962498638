//! Restricted segments (Utopia: Kanellopoulos et al., "Utopia: Fast and Efficient Address Translation via
//! Hybrid Restrictive & Flexible Virtual-to-Physical Address Mappings", MICRO 2023). Memory has a segment
//! in which a page may lie in one set of frames only, which a hash of its number names; the rest of
//! memory is flexible. Of a page in the segment hardware needs to know the way alone: it compares the
//! tags of a set, 4 bytes for each of up to 16 ways, which are a line. What is in no segment is walked
//! in radix tables.
//!
//! - *Look-up.* The line of the set's tags, and that of the set filter, a byte for each set that says
//!   whether it has any page: both at once, of each size of pages that has a segment. Each core caches
//!   lines of both. If no tag fits, the radix walk follows.
//! - *Placement.* A page goes to its set when it is mapped. In a full set it takes the place of one that
//!   was not used lately (a bit for each way), which is copied to flexible memory and mapped there
//!   (`full=evict`), or goes there itself (`full=keep`).
//! - *Frames are mirrored.* The stream's kernel has decided where each page lies, and so has the host's
//!   placement. A page of a segment stays there, as if that were the frame that its set and way name:
//!   what is modelled is the look-up, the sets that overflow, and the work. The segment's memory is not
//!   reserved, and no page is moved in fact, but copies are counted.

use super::flattened::{FlatConfig, Flattened};
use super::{Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use nestwalk_hw::assoc::SetAssoc;
use nestwalk_hw::geometry::Geometry;
use nestwalk_tables::Entry;

#[cfg(test)]
mod tests;

const LINE: u64 = 64;
const PAGE: u64 = 4096;
/// Set in the slot of what a segment has; below it are the segment and the place.
const SEGMENT: usize = 1 << 60;
const WHICH: usize = 1 << 59;
/// Segments: of base pages, and of pages of 2 MiB.
const SHIFTS: [u8; 2] = [12, 21];

/// How segments are set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestrictedConfig {
    /// MiB of the segments of base pages and of 2 MiB pages, powers of two; 0 for [`Self::within`].
    /// Chosen: Victima's artifact has 1 GiB and 4 GiB of its Utopia, for programs of its own.
    pub mib: [u64; 2],
    /// Ways of their sets, 16 and 8 there.
    pub ways: [u64; 2],
    /// Lines of tags that a core holds in sets of four, and as many of filters; 32, which are 2 KiB.
    pub held: u32,
    /// A page that finds its set full displaces another.
    pub evict: bool,
}

impl Default for RestrictedConfig {
    fn default() -> Self {
        Self { mib: [0; 2], ways: [16, 8], held: 32, evict: true }
    }
}

impl RestrictedConfig {
    /// The same, with segments that are as large as a guest's memory, down to a power of two, where
    /// nothing else is said.
    #[must_use]
    pub fn within(self, guest_bytes: u64) -> Self {
        let all = (guest_bytes >> 20).checked_ilog2().map_or(1, |log| 1 << log);
        Self { mib: self.mib.map(|mib| if mib == 0 { all } else { mib }), ..self }
    }
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Number of the page, in pages of the segment's size.
    page: u64,
    /// 0 if the slot is free.
    entry: u64,
    region: u32,
    used: bool,
}

/// Sets whose slots are made together.
const CHUNK: usize = 64;

/// A segment of pages of one size.
struct Segment {
    shift: u8,
    ways: usize,
    sets: usize,
    /// Slots by [`CHUNK`] sets, set by set; none where no page was yet.
    chunks: Vec<Vec<Slot>>,
    pages: u64,
    tags: u64,
    filter: u64,
}

impl Segment {
    /// The set of a page: the lowest bits of its number. Address spaces are spread.
    #[inline]
    fn set(&self, key: Key) -> usize {
        let spread = u64::from(key.region).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        key.of_size(self.shift).wrapping_add(spread) as usize & (self.sets - 1)
    }

    /// Slots of a set; none where no page was yet.
    #[inline]
    fn set_slots(&self, set: usize) -> &[Slot] {
        let first = set % CHUNK * self.ways;
        self.chunks[set / CHUNK].get(first..first + self.ways).unwrap_or(&[])
    }

    fn set_slots_mut(&mut self, set: usize) -> &mut [Slot] {
        let (first, ways) = (set % CHUNK * self.ways, self.ways);
        let chunk = &mut self.chunks[set / CHUNK];
        if chunk.is_empty() {
            chunk.resize(CHUNK * ways, Slot::default());
        }
        &mut chunk[first..first + ways]
    }

    #[inline]
    fn slot(&self, at: usize) -> Slot {
        self.set_slots(at / self.ways).get(at % self.ways).copied().unwrap_or_default()
    }

    fn slot_mut(&mut self, at: usize) -> &mut Slot {
        let (set, way) = (at / self.ways, at % self.ways);
        &mut self.set_slots_mut(set)[way]
    }

    #[inline]
    fn find(&self, key: Key) -> Option<usize> {
        let (set, page) = (self.set(key), key.of_size(self.shift));
        let fits = |s: &Slot| s.page == page && s.region == key.region && s.entry != 0;
        Some(set * self.ways + self.set_slots(set).iter().position(fits)?)
    }

    #[inline]
    fn lines(&self, key: Key) -> [u64; 2] {
        let set = self.set(key) as u64;
        [self.filter + set / LINE * LINE, self.tags + set * LINE]
    }

    /// The way that a new page of a set takes: a free one, or one that was not used lately.
    fn victim(&mut self, set: usize) -> usize {
        let ways = self.set_slots_mut(set);
        let free = ways.iter().position(|s| s.entry == 0);
        let way = free.or_else(|| ways.iter().position(|s| !s.used)).unwrap_or_else(|| {
            ways.iter_mut().for_each(|s| s.used = false);
            0
        });
        set * self.ways + way
    }

    fn found(&self, at: usize) -> Found {
        let which = if self.shift == SHIFTS[0] { 0 } else { WHICH };
        let slot = SEGMENT | which | at;
        Found { entry: Entry(self.slot(at).entry), shift: self.shift, slot }
    }
}

/// Lines of filters and of tags that a core holds.
type Held = [SetAssoc<u64, ()>; 2];

/// Restricted segments over radix tables.
pub struct Restricted {
    config: RestrictedConfig,
    /// `None` until a page of the size is mapped.
    segments: [Option<Segment>; 2],
    /// There was no memory for the tags.
    refused: [bool; 2],
    flexible: Box<Flattened>,
    held: Vec<Held>,
    bytes: u64,
    work: Work,
}

impl Restricted {
    /// No segments, for so many cores; `host`: under a host's one root. `None`: there is no memory.
    pub fn new(
        config: RestrictedConfig,
        cores: usize,
        host: bool,
        memory: &mut dyn Supply,
    ) -> Option<Self> {
        let radix = FlatConfig { refused: 100, ..FlatConfig::default() };
        let held = match Geometry::new(config.held, 4) {
            Ok(geometry) if config.held > 0 => {
                vec![[SetAssoc::new(geometry), SetAssoc::new(geometry)]; cores]
            }
            _ => Vec::new(),
        };
        let flexible = Box::new(Flattened::new(radix, cores, host, memory)?);
        let (segments, refused) = ([None, None], [false; 2]);
        Some(Self { config, segments, refused, flexible, held, bytes: 0, work: Work::default() })
    }

    /// The segment for pages of a size, which is made with the first of them. `None`: they are flexible.
    fn segment(&mut self, shift: u8, memory: &mut dyn Supply) -> Option<usize> {
        let i = SHIFTS.iter().position(|s| *s == shift)?;
        if self.segments[i].is_some() || self.refused[i] {
            return (!self.refused[i]).then_some(i);
        }
        let ways = self.config.ways[i].max(1);
        let sets = ((self.config.mib[i] << 20 >> shift) / ways).max(1);
        let (tag_bytes, filter_bytes) = ((sets * LINE).max(PAGE), sets.max(PAGE));
        let tags = memory.take(tag_bytes);
        let filter = tags.and_then(|_| memory.take(filter_bytes));
        let (Some(tags), Some(filter)) = (tags, filter) else {
            if let Some(tags) = tags {
                memory.give(tags, tag_bytes);
            }
            self.refused[i] = true;
            self.work.refused += 1;
            return None;
        };
        self.bytes += tag_bytes + filter_bytes;
        self.work.pages += (tag_bytes + filter_bytes) / PAGE;
        let (ways, sets) = (ways as usize, sets as usize);
        let chunks = vec![Vec::new(); sets.div_ceil(CHUNK)];
        self.segments[i] = Some(Segment { shift, ways, sets, chunks, pages: 0, tags, filter });
        Some(i)
    }

    /// Whether a core holds a line, which it does from now on.
    #[inline]
    fn holds(&mut self, core: usize, kind: usize, line: u64) -> bool {
        let Some(held) = self.held.get_mut(core) else { return false };
        let (tag, set) = held[kind].indexer().split(line / LINE);
        held[kind].access(set, tag)
    }

    /// Where a segment has a page.
    #[inline]
    fn find(&self, key: Key) -> Option<(usize, usize)> {
        let at = |s: &Option<Segment>| s.as_ref().and_then(|s| s.find(key));
        (0..SHIFTS.len()).find_map(|i| Some((i, at(&self.segments[i])?)))
    }

    /// The slot that a new page gets, whose page is moved to flexible memory; `None`: it goes there
    /// itself.
    fn make_room(
        &mut self,
        i: usize,
        key: Key,
        memory: &mut dyn Supply,
    ) -> Result<Option<usize>, NoMemory> {
        let Some(segment) = &mut self.segments[i] else { return Ok(None) };
        let at = segment.victim(segment.set(key));
        let old = segment.slot(at);
        if old.entry == 0 {
            segment.pages += 1;
            return Ok(Some(at));
        }
        if !self.config.evict {
            return Ok(None);
        }
        let page = old.page << (segment.shift - SHIFTS[0]);
        let (moved, shift) = (Key { region: old.region, page }, segment.shift);
        self.flexible.put(moved, shift, old.entry, memory)?;
        self.work.copies += 1 << (shift - SHIFTS[0]);
        Ok(Some(at))
    }
}

impl Structure for Restricted {
    #[inline]
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let (mut lines, mut count) = ([0; 4], 0);
        for i in 0..SHIFTS.len() {
            let Some(wanted) = self.segments[i].as_ref().map(|s| s.lines(key)) else { continue };
            for (kind, line) in wanted.into_iter().enumerate() {
                if !self.holds(core, kind, line) {
                    lines[count] = line;
                    count += 1;
                }
            }
        }
        if count > 0 {
            fetch(1, &lines[..count])?;
        }
        if let Some((i, at)) = self.find(key)
            && let Some(segment) = &mut self.segments[i]
        {
            segment.slot_mut(at).used = true;
            return Ok(Some(segment.found(at)));
        }
        self.flexible.look_up(core, key, fetch)
    }

    fn get(&self, key: Key) -> Option<Found> {
        let Some((i, at)) = self.find(key) else { return self.flexible.get(key) };
        self.segments[i].as_ref().map(|s| s.found(at))
    }

    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let flexible = self.flexible.get(key).is_some_and(|f| f.shift == shift);
        let Some(i) = self.segment(shift, memory).filter(|_| !flexible) else {
            return self.flexible.put(key, shift, entry, memory);
        };
        let there = self.segments[i].as_ref().and_then(|s| s.find(key));
        let at = match there {
            Some(at) => Some(at),
            None => self.make_room(i, key, memory)?,
        };
        let (Some(at), Some(segment)) = (at, &mut self.segments[i]) else {
            return self.flexible.put(key, shift, entry, memory);
        };
        let page = key.of_size(shift);
        *segment.slot_mut(at) = Slot { page, entry, region: key.region, used: true };
        self.work.updates += 1;
        Ok(())
    }

    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        if let Some((i, at)) = self.find(key)
            && SHIFTS[i] == shift
            && let Some(segment) = &mut self.segments[i]
        {
            *segment.slot_mut(at) = Slot::default();
            segment.pages -= 1;
            self.work.updates += 1;
            return true;
        }
        self.flexible.remove(key, shift, memory)
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        if found.slot & SEGMENT == 0 {
            return self.flexible.mark(found, bits);
        }
        let segment = &mut self.segments[usize::from(found.slot & WHICH != 0)];
        let at = found.slot & (WHICH - 1);
        if let Some(segment) = segment.as_mut().filter(|s| at < s.sets * s.ways) {
            segment.slot_mut(at).entry |= bits;
        }
    }

    fn shifts(&self) -> Vec<u8> {
        let mut shifts = self.flexible.shifts();
        let used = self.segments.iter().flatten().filter(|s| s.pages > 0);
        shifts.extend(used.map(|s| s.shift));
        shifts.sort_unstable();
        shifts.dedup();
        shifts
    }

    fn cycles(&self) -> u64 {
        1
    }

    fn root_loaded(&mut self, root: u64, memory: &mut dyn Supply) {
        self.flexible.root_loaded(root, memory);
    }

    fn root_gone(&mut self, root: u64) {
        self.flexible.root_gone(root);
    }

    fn forget_walks(&mut self, core: usize) {
        if let Some(held) = self.held.get_mut(core) {
            held.iter_mut().for_each(SetAssoc::flush);
        }
        self.flexible.forget_walks(core);
    }

    fn work(&mut self) -> &mut Work {
        // The radix tables ask for no nodes of 2 MiB: nothing was refused to them.
        let Work { updates, moves, pages, .. } = std::mem::take(self.flexible.work());
        self.work.updates += updates;
        self.work.moves += moves;
        self.work.pages += pages;
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let flexible = self.flexible.state();
        let (mut places, mut used) = (flexible.places, flexible.used);
        for segment in self.segments.iter().flatten() {
            places += (segment.sets * segment.ways) as u64;
            used += segment.pages;
        }
        StructureState { bytes: self.bytes + flexible.bytes, places, used }
    }
}
