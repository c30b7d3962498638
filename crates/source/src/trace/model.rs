//! What the encoder and the decoder of runs both know: guesses from what came before.
//!
//! The idea is that of value prediction for trace compression (Burtscher et al., "The VPC Trace-
//! Compression Algorithms", IEEE Transactions on Computers 54(11), 2005): both sides keep the same
//! tables, and only what the tables guess wrong is written out.
//!
//! An instruction address with the flags of its runs is a *site*, numbered in the order in which sites
//! appear. What comes next is guessed from the last four sites, or if these were not seen together
//! before, from the last two, or from the last one (as in prediction by partial matching: Cleary and
//! Witten, IEEE Transactions on Communications 32(4), 1984). What a run touches is guessed from what
//! its site did last, in the same context and at all. Pages that were seen before have a small number
//! in a list by order of use.

use super::lists::{CodePages, Pages};
use nestwalk_types::{Gva, Run, RunFlags, VcpuId};

/// Entries of the tables of what follows four sites, and two, as powers of two.
const FOUR: u32 = 16;
const TWO: u32 = 16;
/// Sites that are remembered to follow one.
const AFTER: usize = 4;
/// Guesses of a site at most, those of all tables.
pub(super) const GUESSES: usize = AFTER + 2;
/// The lowest three bits of a run's flags: all that there are.
#[inline(always)]
pub(super) fn flag_bits(flags: RunFlags) -> u8 {
    u8::from(flags.is_store()) | u8::from(flags.is_fetch()) << 1 | u8::from(flags.is_kernel()) << 2
}

/// Flags from [`flag_bits`]; `None` for a bit that does not exist.
pub(super) const fn flags_of(bits: u8) -> Option<RunFlags> {
    let mut flags = RunFlags::of(nestwalk_types::AccessKind::Load);
    if bits & 1 != 0 {
        flags = flags.union(RunFlags::STORE);
    }
    if bits & 2 != 0 {
        flags = flags.union(RunFlags::FETCH);
    }
    if bits & 4 != 0 {
        flags = flags.union(RunFlags::KERNEL);
    }
    if bits < 8 { Some(flags) } else { None }
}

/// An instruction address with the flags of the runs that it makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pc: u64,
    pub(super) flags: RunFlags,
}

impl Place {
    #[inline(always)]
    pub(super) const fn of(run: &Run) -> Self {
        Self { pc: run.pc.value(), flags: run.flags }
    }
    pub(super) fn key(self) -> u64 {
        (self.pc << 3 ^ u64::from(flag_bits(self.flags))).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// What a run touched.
#[derive(Clone, Copy)]
pub(super) struct Touch {
    /// Number of the cache line of its address.
    pub(super) line: u64,
    pub(super) lines: u64,
    pub(super) count: u16,
    pub(super) instructions: u16,
}

impl Touch {
    const NONE: Self = Self { line: 0, lines: 1, count: 1, instructions: 0 };

    #[inline(always)]
    const fn of(run: &Run) -> Self {
        let line = run.gva.value() >> 6;
        Self { line, lines: run.lines, count: run.count, instructions: run.instructions }
    }
}

/// A site: one cache line of memory.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Site {
    pub(super) place: Place,
    /// Its latest run.
    pub(super) touch: Touch,
    /// How far the address moved then, in lines.
    pub(super) stride: i64,
    /// Sites that came after it, the latest first.
    after: [u32; AFTER],
}

/// The number of no site.
const NO_SITE: u32 = 0;

impl Site {
    const fn new(place: Place) -> Self {
        Self { place, touch: Touch::NONE, stride: 0, after: [NO_SITE; AFTER] }
    }

    /// Another site came after it, which becomes the latest that did.
    #[inline(always)]
    const fn came_after(&mut self, site: u32) {
        let [a, b, c, d] = self.after;
        self.after = if a == site {
            return;
        } else if b == site {
            [b, a, c, d]
        } else if c == site {
            [c, a, b, d]
        } else {
            [site, a, b, c]
        };
    }
}

/// The site that came after others.
#[derive(Clone, Copy)]
struct Next {
    site: u32,
    tag: u16,
}

const NEXT: Next = Next { site: NO_SITE, tag: 0 };

/// So many times the same, made where it stays: a stack has no room for it.
fn table<T: Copy, const N: usize>(each: T) -> Box<[T; N]> {
    vec![each; N].try_into().unwrap_or_else(|_| unreachable!("it was made of this length"))
}

/// What is known of one vCPU.
#[derive(Clone, Copy)]
struct Lane {
    /// The last sites, the latest first.
    sites: [u32; 4],
    /// Instruction address and line of the latest data run, and of the latest fetch run.
    last: [(u64, u64); 2],
}

const LANE: Lane = Lane { sites: [NO_SITE; 4], last: [(0, 0); 2] };

/// Where guesses for the next run stand.
#[derive(Clone, Copy)]
pub(super) struct Context {
    four: usize,
    four_tag: u16,
    two: usize,
    two_tag: u16,
    one: u32,
}

/// The state of both sides. A chunk begins with a new one.
pub(super) struct Model {
    /// That of the vCPU at hand.
    lane: Lane,
    /// Those of the others.
    lanes: Vec<Lane>,
    sites: Vec<Site>,
    // Arrays, so that an index of as many bits needs no look.
    four: Box<[Next; 1 << FOUR]>,
    /// What the site that came after four touched. Apart, since each guess of a site waits for the last
    /// one, and nothing for this.
    touches: Box<[Touch; 1 << FOUR]>,
    two: Box<[Next; 1 << TWO]>,
    pub(super) pages: Pages,
    pub(super) code: CodePages,
    /// The vCPU of the latest run.
    pub(super) vcpu: VcpuId,
}

impl Model {
    pub(super) fn new() -> Self {
        let nowhere = Place { pc: 0, flags: RunFlags::of(nestwalk_types::AccessKind::Load) };
        Self {
            lane: LANE,
            lanes: vec![LANE],
            sites: vec![Site::new(nowhere)],
            four: table(NEXT),
            touches: table(Touch::NONE),
            two: table(NEXT),
            pages: Pages::new(),
            code: CodePages::new(),
            vcpu: VcpuId(0),
        }
    }

    /// Goes on with another vCPU.
    pub(super) fn switch(&mut self, vcpu: VcpuId) {
        let needed = usize::from(vcpu.0.max(self.vcpu.0)) + 1;
        if self.lanes.len() < needed {
            self.lanes.resize(needed, LANE);
        }
        self.lanes[usize::from(self.vcpu.0)] = self.lane;
        self.vcpu = vcpu;
        self.lane = self.lanes[usize::from(vcpu.0)];
    }

    /// Instruction address and line of the latest run of this kind.
    #[inline(always)]
    pub(super) fn last(&self, fetch: bool) -> (u64, u64) {
        self.lane.last[usize::from(fetch)]
    }

    #[inline(always)]
    pub(super) fn context(&self) -> Context {
        let [a, b, c, d] = self.lane.sites;
        let [a, b, c, d] = [u64::from(a), u64::from(b), u64::from(c), u64::from(d)];
        let two = (a | b << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let four = (two ^ two >> 29 ^ c << 20 ^ d << 40).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Context {
            four: (four >> (64 - FOUR)) as usize,
            four_tag: (four >> 16) as u16,
            two: (two >> (64 - TWO)) as usize,
            two_tag: (two >> 24) as u16,
            one: a as u32,
        }
    }

    /// The site that is the likeliest.
    #[inline(always)]
    pub(super) fn guess(&self, context: Context) -> u32 {
        let four = &self.four[context.four];
        if four.tag == context.four_tag { four.site } else { self.short_guess(context) }
    }
    #[inline(always)]
    fn short_guess(&self, context: Context) -> u32 {
        let two = &self.two[context.two];
        if two.tag == context.two_tag {
            two.site
        } else {
            self.sites[context.one as usize].after[0]
        }
    }

    /// All sites that are likely, the likeliest first; [`NO_SITE`] behind the last.
    pub(super) fn guesses(&self, context: Context) -> [u32; GUESSES] {
        let mut all = [NO_SITE; GUESSES];
        let mut known = 0;
        let mut add = |site: u32| {
            if !all[..known].contains(&site) {
                all[known] = site;
                known += 1;
            }
        };
        let (four, two) = (&self.four[context.four], &self.two[context.two]);
        if four.tag == context.four_tag {
            add(four.site);
        }
        if two.tag == context.two_tag {
            add(two.site);
        }
        self.sites[context.one as usize].after.into_iter().for_each(add);
        all
    }

    /// A site by its number, if there is one.
    #[inline(always)]
    pub(super) fn site(&self, site: u32) -> Option<&Site> {
        self.sites.get(site as usize)
    }
    /// Adds a site, and says its number.
    pub(super) fn add(&mut self, place: Place) -> u32 {
        let number = self.sites.len() as u32;
        self.sites.push(Site::new(place));
        self.code.add(place.pc, number);
        number
    }

    /// What the site touched last in this context, or at all if the context is new.
    #[inline(always)]
    pub(super) fn touch_in(&self, context: Context, number: u32, site: &Site) -> Touch {
        let four = &self.four[context.four];
        if four.site == number && four.tag == context.four_tag {
            self.touches[context.four]
        } else {
            site.touch
        }
    }

    /// Takes in a run of this site, however it was coded.
    #[inline(always)]
    pub(super) fn learn(&mut self, context: Context, site: u32, run: &Run) {
        let touch = Touch::of(run);
        let four = &mut self.four[context.four];
        // What the longest context knew, the shorter need not learn.
        if four.site != site || four.tag != context.four_tag {
            four.site = site;
            four.tag = context.four_tag;
            self.two[context.two] = Next { site, tag: context.two_tag };
            self.sites[context.one as usize].came_after(site);
        }
        self.touches[context.four] = touch;
        let own = &mut self.sites[site as usize];
        own.stride = touch.line.wrapping_sub(own.touch.line) as i64;
        own.touch = touch;
        let [a, b, c, _] = self.lane.sites;
        self.lane.sites = [site, a, b, c];
        self.lane.last[usize::from(run.flags.is_fetch())] = (run.pc.value(), touch.line);
    }
}

/// The numbers of sites by their places: what an encoder looks up.
pub(super) struct Numbers {
    /// Numbers by hash, [`NO_SITE`] where there is none; a power of two, at most half full.
    slots: Vec<u32>,
    used: usize,
}

impl Numbers {
    pub(super) fn new() -> Self {
        Self { slots: vec![NO_SITE; 1 << 12], used: 0 }
    }
    /// The number of a place; `None` if it is no site yet.
    pub(super) fn find(&self, place: Place, model: &Model) -> Option<u32> {
        let found = self.slots[self.slot(place, model)];
        (found != NO_SITE).then_some(found)
    }
    /// Where the place is, or would be.
    fn slot(&self, place: Place, model: &Model) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (place.key() >> 32) as usize & mask;
        while self.slots[at] != NO_SITE && model.sites[self.slots[at] as usize].place != place {
            at = (at + 1) & mask;
        }
        at
    }
    /// Adds a site that the model knows.
    pub(super) fn add(&mut self, site: u32, model: &Model) {
        if self.used * 2 >= self.slots.len() {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![NO_SITE; old.len() * 2];
            for known in old.into_iter().filter(|&s| s != NO_SITE) {
                let slot = self.slot(model.sites[known as usize].place, model);
                self.slots[slot] = known;
            }
        }
        let slot = self.slot(model.sites[site as usize].place, model);
        self.slots[slot] = site;
        self.used += 1;
    }
}

/// The address of a line.
#[inline(always)]
pub(super) const fn address(line: u64) -> Gva {
    Gva::new(line << 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_made_on_a_small_stack() {
        // Those of threads that write and read have 2 MiB, as much as the tables.
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let made = small.spawn(|| Model::new().sites.len()).unwrap().join().unwrap();
        assert_eq!(made, 1);
    }
}
