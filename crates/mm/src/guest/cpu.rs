//! What the modelled kernel knows per vCPU: the process, the PCIDs, and recent translations.

use crate::space::Flush;
use nestwalk_tables::Handle;
use nestwalk_types::{Gpa, Gva, PageSize, ProcessId, Run};

/// PCIDs that the kernel uses per vCPU in turn (Linux, `TLB_NR_DYN_ASIDS`).
pub const DYNAMIC_PCIDS: usize = 6;

const PAGES: usize = 4096;
const REGIONS: usize = 4096;
/// The generation takes the page offset's bits of a tag.
const GENERATIONS: u64 = 1 << 12;

/// Bit in a slot's value: stores are allowed, and the leaf is dirty.
const STORE: u32 = 0;
/// Bit in a slot's value: fetches are allowed.
const FETCH: u32 = 1;
/// In the value of a region: a page that covers the whole region, with the two bits above; otherwise
/// the region's table of level 1.
const LARGE: u64 = 1 << 2;

/// What is known of the part of the address space that one table of level 1 covers.
pub(super) enum Region {
    /// Nothing, or the access is not allowed.
    Unknown,
    /// Its table of level 1.
    Table(Gpa, Handle),
    /// A large page covers it; this is where the address is.
    Page(Gpa),
}

/// A direct-mapped cache line. The tag is the page's address with the generation in place of the
/// offset; generation 0 is never current, so a tag of 0 is empty.
#[derive(Clone, Copy, Default)]
struct Slot {
    tag: u64,
    value: u64,
}

/// One vCPU.
pub(super) struct Cpu {
    /// The process that runs here.
    pub process: Option<ProcessId>,
    /// Context number of the address space that CR3 points to; 0 if it is gone.
    pub loaded: u64,
    /// Root table in CR3.
    pub root: Gpa,
    /// PCID in CR3.
    pub pcid: u16,
    /// Index of the current PCID in `contexts`.
    slot: usize,
    /// `(context, its generation when it was last flushed here)` of each dynamic PCID.
    contexts: [(u64, u64); DYNAMIC_PCIDS],
    /// The next PCID to take.
    next: usize,
    generation: u64,
    pages: Box<[Slot; PAGES]>,
    regions: Box<[Slot; REGIONS]>,
    /// Short cuts to the tables of `regions`.
    handles: Box<[Handle; REGIONS]>,
    region_shift: u32,
}

fn slots<const N: usize>() -> Box<[Slot; N]> {
    let slots = vec![Slot::default(); N].into_boxed_slice();
    slots.try_into().unwrap_or_else(|_| Box::new([Slot::default(); N]))
}

#[inline]
fn permissions(store: bool, fetch: bool) -> u64 {
    (u64::from(store) << STORE) | (u64::from(fetch) << FETCH)
}

/// What the flags of a run need in a slot's value.
#[inline]
fn need(run: &Run) -> u64 {
    permissions(run.flags.is_store(), run.flags.is_fetch())
}

impl Cpu {
    /// `region_shift` is the shift of what one table of level 1 covers.
    pub fn new(region_shift: u32) -> Self {
        Self {
            process: None,
            loaded: 0,
            root: Gpa::new(0),
            pcid: 0,
            slot: 0,
            contexts: [(0, 0); DYNAMIC_PCIDS],
            next: 0,
            generation: 1,
            pages: slots(),
            regions: slots(),
            handles: Box::new([Handle::default(); REGIONS]),
            region_shift,
        }
    }

    /// Where the run's page is, if that is known and the access is allowed.
    #[inline]
    pub fn cached(&self, run: &Run) -> Option<Gpa> {
        let gva = run.gva.value();
        let slot = &self.pages[(gva >> 12) as usize & (PAGES - 1)];
        let tag = gva & !0xfff | self.generation;
        (((slot.tag ^ tag) | (need(run) & !slot.value)) == 0)
            .then(|| Gpa::new(slot.value & !0xfff | gva & 0xfff))
    }

    /// Remembers the frame of the 4 KiB page of `gva`.
    #[inline]
    pub fn remember(&mut self, gva: Gva, frame: Gpa, writable: bool, executable: bool) {
        let gva = gva.value();
        let value = frame.value() | permissions(writable, executable);
        self.pages[(gva >> 12) as usize & (PAGES - 1)] =
            Slot { tag: gva & !0xfff | self.generation, value };
    }

    #[inline]
    fn region(&self, gva: Gva) -> (usize, u64) {
        let region = gva.value() >> self.region_shift;
        (region as usize & (REGIONS - 1), region << self.region_shift | self.generation)
    }
    /// What is known of the region around the run's address. Part of a large page is remembered as
    /// a page, too, so that the next access is a hit.
    #[inline]
    pub fn look_in_region(&mut self, run: &Run) -> Region {
        let (index, tag) = self.region(run.gva);
        let slot = &self.regions[index];
        if slot.tag != tag {
            Region::Unknown
        } else if slot.value & LARGE == 0 {
            Region::Table(Gpa::new(slot.value), self.handles[index])
        } else if need(run) & !slot.value == 0 {
            let (mask, gva) = ((1 << self.region_shift) - 1, run.gva.value());
            let gpa = slot.value & !mask | gva & mask;
            self.pages[(gva >> 12) as usize & (PAGES - 1)] = Slot {
                tag: gva & !0xfff | self.generation,
                value: gpa & !0xfff | slot.value & permissions(true, true),
            };
            Region::Page(Gpa::new(gpa))
        } else {
            Region::Unknown
        }
    }
    /// The table of level 1 for `gva`, if that is known.
    #[inline]
    pub fn table(&self, gva: Gva) -> Option<(Gpa, Handle)> {
        let (index, tag) = self.region(gva);
        let slot = &self.regions[index];
        (slot.tag == tag && slot.value & LARGE == 0)
            .then(|| (Gpa::new(slot.value), self.handles[index]))
    }
    /// Remembers the part of a large page that covers the region of `gva`; `gpa` is where `gva` is.
    pub fn remember_large(&mut self, gva: Gva, gpa: Gpa, writable: bool, executable: bool) {
        let (index, tag) = self.region(gva);
        let first = gpa.value() >> self.region_shift << self.region_shift;
        let value = first | permissions(writable, executable) | LARGE;
        self.regions[index] = Slot { tag, value };
    }
    /// Remembers the table of level 1 for `gva`.
    pub fn remember_table(&mut self, gva: Gva, table: Gpa, handle: Handle) {
        let (index, tag) = self.region(gva);
        self.handles[index] = handle;
        self.regions[index] = Slot { tag, value: table.value() };
    }

    /// Forgets everything: CR3 was loaded, or many pages have changed.
    pub fn forget(&mut self) {
        self.generation += 1;
        if self.generation == GENERATIONS {
            self.generation = 1;
            self.pages.fill(Slot::default());
            self.regions.fill(Slot::default());
        }
    }
    /// Forgets what an invalidation is about.
    pub fn forget_flushed(&mut self, flush: &Flush<Gva>) {
        match *flush {
            Flush::Pages { start, stride: PageSize::SIZE_4K, count, tables: false } => {
                for i in 0..count {
                    let gva = start.value().wrapping_add(i << 12);
                    let slot = &mut self.pages[(gva >> 12) as usize & (PAGES - 1)];
                    if slot.tag == gva & !0xfff | self.generation {
                        *slot = Slot::default();
                    }
                }
            }
            _ => self.forget(),
        }
    }
    /// The address space in CR3 is gone: the next access or switch loads another one.
    pub fn lose(&mut self) {
        self.loaded = 0;
        self.forget();
    }

    /// The current context was flushed up to this generation.
    pub fn flushed(&mut self, generation: u64) {
        self.contexts[self.slot].1 = generation;
    }

    /// Takes a PCID for the address space and makes it current: Linux's `choose_new_asid`. Returns
    /// whether what is cached under it may be kept.
    pub fn load(&mut self, context: u64, generation: u64, root: Gpa, pcids: bool) -> bool {
        let known = self.contexts.iter().position(|c| c.0 == context);
        let keep = pcids && known.is_some_and(|i| self.contexts[i].1 == generation);
        self.slot = if !pcids {
            0
        } else if let Some(i) = known {
            i
        } else {
            let i = self.next;
            self.next = (i + 1) % DYNAMIC_PCIDS;
            i
        };
        self.contexts[self.slot] = (context, generation);
        self.loaded = context;
        self.root = root;
        // PCID 0 is the kernel's own (`kern_pcid`).
        self.pcid = if pcids { self.slot as u16 + 1 } else { 0 };
        self.forget();
        keep
    }
}
