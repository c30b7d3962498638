//! Recent translations of one vCPU, as a guest looks them up for every run: no TLB of any machine.

use nestwalk_tables::{Handle, Mode, Permissions, TableMemory};
use nestwalk_types::{Gpa, Gva, Run, RunFlags};

const PAGES: usize = 4096;
const REGIONS: usize = 4096;
/// The generation takes the page offset's bits of a tag.
const GENERATIONS: u64 = 1 << 12;
/// How many runs [`load_ahead`] looks at.
pub const AHEAD: usize = 32;

/// Bit in a slot's value: stores are allowed (and the leaf is dirty, if the guest wants to see the
/// first store). The three bits are where those of [`RunFlags`] are that need them.
const STORE: u64 = RunFlags::STORE.bits() as u64;
/// Bit in a slot's value: fetches are allowed.
const FETCH: u64 = RunFlags::FETCH.bits() as u64;
/// Bit in a slot's value: user mode is allowed. Runs in user mode are without [`RunFlags::KERNEL`].
const USER: u64 = RunFlags::KERNEL.bits() as u64;
/// In the value of a region: a page that covers the whole region, with the bits above; otherwise
/// the region's table of level 1, with what the levels above it allow.
const LARGE: u64 = 1 << 3;

/// What is known of the part of the address space that one table of level 1 covers.
pub enum Region {
    /// Nothing, or the access is not allowed.
    Unknown,
    /// Its table of level 1, and what the entries above allow.
    Table(Gpa, Handle, Above),
    /// A large page covers it; this is where the address is.
    Page(Gpa),
}

/// What the entries above a table of level 1 allow, as it was remembered.
#[derive(Clone, Copy)]
pub struct Above(u64);

impl From<Above> for Permissions {
    #[inline]
    fn from(Above(bits): Above) -> Self {
        Self { write: bits & STORE != 0, user: bits & USER != 0, execute: bits & FETCH != 0 }
    }
}

/// A direct-mapped cache line. The tag is the page's address with the generation in place of the
/// offset; generation 0 is never current, so a tag of 0 is empty.
#[derive(Clone, Copy, Default)]
struct Slot {
    tag: u64,
    value: u64,
}

/// Pages and level-1 tables that were looked up lately. Every generation is an address space of its
/// own, so that all is forgotten in one step.
pub struct Translations {
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
fn bits_of(allowed: Permissions) -> u64 {
    let bit = |set: bool, bit: u64| if set { bit } else { 0 };
    bit(allowed.write, STORE) | bit(allowed.execute, FETCH) | bit(allowed.user, USER)
}

/// What the flags of a run need in a slot's value.
#[inline]
fn need(run: &Run) -> u64 {
    u64::from(run.flags.bits()) ^ USER
}

impl Translations {
    /// Of a guest with this paging mode.
    pub fn new(mode: &Mode) -> Self {
        Self {
            generation: 1,
            pages: slots(),
            regions: slots(),
            handles: Box::new([Handle::default(); REGIONS]),
            region_shift: mode.span(2).shift(),
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
    pub fn remember(&mut self, gva: Gva, frame: Gpa, allowed: Permissions) {
        let gva = gva.value();
        let value = frame.value() | bits_of(allowed);
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
            let table = Gpa::new(slot.value & !0xfff);
            Region::Table(table, self.handles[index], Above(slot.value))
        } else if need(run) & !slot.value == 0 {
            let (mask, gva) = ((1 << self.region_shift) - 1, run.gva.value());
            let gpa = slot.value & !mask | gva & mask;
            self.pages[(gva >> 12) as usize & (PAGES - 1)] = Slot {
                tag: gva & !0xfff | self.generation,
                value: gpa & !0xfff | slot.value & (STORE | FETCH | USER),
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
            .then(|| (Gpa::new(slot.value & !0xfff), self.handles[index]))
    }
    /// Remembers the part of a large page that covers the region of `gva`; `gpa` is where `gva` is.
    pub fn remember_large(&mut self, gva: Gva, gpa: Gpa, allowed: Permissions) {
        let (index, tag) = self.region(gva);
        let first = gpa.value() >> self.region_shift << self.region_shift;
        self.regions[index] = Slot { tag, value: first | bits_of(allowed) | LARGE };
    }
    /// Remembers the table of level 1 for `gva`; `above` is what the entries on the way to it allow.
    pub fn remember_table(&mut self, gva: Gva, table: Gpa, handle: Handle, above: Permissions) {
        let (index, tag) = self.region(gva);
        self.handles[index] = handle;
        self.regions[index] = Slot { tag, value: table.value() | bits_of(above) };
    }

    /// Forgets everything. Returns whether the numbers of generations began anew, so that older
    /// generations are forgotten, too.
    pub fn forget(&mut self) -> bool {
        self.begin(self.generation + 1)
    }
    /// The generation that is current.
    pub const fn generation(&self) -> u64 {
        self.generation
    }
    /// Goes on in another generation, one that was current before or the one after all those. Returns
    /// whether the numbers began anew.
    pub fn begin(&mut self, generation: u64) -> bool {
        self.generation = generation;
        let anew = generation >= GENERATIONS;
        if anew {
            self.generation = 1;
            self.pages.fill(Slot::default());
            self.regions.fill(Slot::default());
        }
        anew
    }
    /// Forgets the 4 KiB page of `gva`, in every generation.
    #[inline]
    pub fn forget_page(&mut self, gva: Gva) {
        let gva = gva.value();
        let slot = &mut self.pages[(gva >> 12) as usize & (PAGES - 1)];
        if slot.tag & !0xfff == gva & !0xfff {
            *slot = Slot::default();
        }
    }
}

/// Loads the table entries of runs that will be looked up, at most [`AHEAD`], so that the cache misses
/// overlap: a look-up is too long for the processor to overlap many by itself. Changes nothing.
#[inline(always)]
pub fn load_ahead<'a>(
    tables: &TableMemory<Gpa>,
    mode: &Mode,
    runs: &[Run],
    of: impl Fn(&Run) -> Option<&'a Translations>,
) {
    let mut words: [&u64; AHEAD] = [&0; AHEAD];
    for (word, run) in words.iter_mut().zip(runs) {
        let Some(translations) = of(run) else { return };
        if let Some((table, handle)) = translations.table(run.gva) {
            *word = tables.word(handle, mode.entry_at(table, run.gva.value(), 1));
        }
    }
    // All places are known: these loads are all that is under way.
    std::hint::black_box(words.iter().fold(0, |sum, word| sum | **word));
}
