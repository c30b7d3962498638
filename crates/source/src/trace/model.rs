//! What the encoder and the decoder of runs both know: guesses from what came before.
//!
//! The idea is that of value prediction for trace compression (Burtscher et al., "The VPC Trace-
//! Compression Algorithms", IEEE Transactions on Computers 54(11), 2005): both sides keep the same
//! tables, and only what the tables guess wrong is written out. Finite-context tables guess the next
//! instruction address from those before it; a table by instruction address guesses what that
//! instruction touches; lists by order of use name pages that were seen before by a small number.

use nestwalk_types::{Gva, Run, RunFlags, VcpuId};

/// Entries, as a power of two, of the tables of what follows three runs, what follows one, and what
/// an instruction did last.
const FOLLOW: u32 = 14;
const AFTER: u32 = 13;
const SITES: u32 = 13;
/// Page lists, and pages in each: reuse within 64 MiB has a short name.
pub(super) const SETS: usize = 64;
pub(super) const RANKS: usize = 255;

const NONE: Run = Run {
    gva: Gva::new(0),
    pc: Gva::new(0),
    lines: 1,
    count: 1,
    instructions: 0,
    vcpu: VcpuId(0),
    flags: RunFlags::of(nestwalk_types::AccessKind::Load),
};

#[inline(always)]
const fn hash(value: u64, bits: u32) -> usize {
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
}

/// The lowest three bits of a run's flags: all that there are.
#[inline(always)]
pub(super) fn flag_bits(flags: RunFlags) -> u8 {
    u8::from(flags.is_store()) | u8::from(flags.is_fetch()) << 1 | u8::from(flags.is_kernel()) << 2
}

/// Flags from [`flag_bits`]; `None` for a bit that does not exist.
#[inline(always)]
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

/// An instruction address with the flags of the run that it made.
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
    #[inline(always)]
    fn key(self) -> u64 {
        self.pc << 3 ^ u64::from(flag_bits(self.flags))
    }
}

/// What an instruction did last.
#[derive(Clone, Copy)]
pub(super) struct Site {
    pub(super) run: Run,
    /// How far it moved, in lines.
    pub(super) stride: i64,
}

/// What is known of one vCPU.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// Hashes of the last places, the latest first.
    keys: [u64; 3],
    /// The latest run of data and of fetches.
    pub(super) last: [Run; 2],
}

/// The state of both sides. A chunk begins with a new one.
pub(super) struct Model {
    lanes: Vec<Lane>,
    follow: Box<[Run]>,
    after: Box<[[Place; 2]]>,
    sites: Box<[Site]>,
    pub(super) pages: Pages,
    /// The vCPU of the latest run.
    pub(super) vcpu: VcpuId,
}

/// What a model guesses of a run before anything of it is known.
#[derive(Clone, Copy)]
pub(super) struct Guess {
    follow: usize,
    after: usize,
}

impl Model {
    pub(super) fn new() -> Self {
        let place = Place::of(&NONE);
        Self {
            lanes: vec![Lane { keys: [0; 3], last: [NONE; 2] }],
            follow: vec![NONE; 1 << FOLLOW].into(),
            after: vec![[place; 2]; 1 << AFTER].into(),
            sites: vec![Site { run: NONE, stride: 0 }; 1 << SITES].into(),
            pages: Pages::new(),
            vcpu: VcpuId(0),
        }
    }

    /// Goes on with another vCPU.
    pub(super) fn switch(&mut self, vcpu: VcpuId) {
        self.vcpu = vcpu;
        let needed = usize::from(vcpu.0) + 1;
        if self.lanes.len() < needed {
            self.lanes.resize(needed, Lane { keys: [0; 3], last: [NONE; 2] });
        }
    }

    #[inline(always)]
    pub(super) fn lane(&self) -> &Lane {
        &self.lanes[usize::from(self.vcpu.0)]
    }

    #[inline(always)]
    pub(super) fn guess(&self) -> Guess {
        let [a, b, c] = self.lane().keys;
        let three = a ^ b.rotate_left(21) ^ c.rotate_left(42);
        Guess { follow: hash(three, FOLLOW), after: hash(a, AFTER) }
    }
    /// The run that came last after the same three places.
    #[inline(always)]
    pub(super) fn follower(&self, guess: Guess) -> &Run {
        &self.follow[guess.follow]
    }
    /// The last two places that came after the same place.
    #[inline(always)]
    pub(super) fn next(&self, guess: Guess) -> &[Place; 2] {
        &self.after[guess.after]
    }
    /// What the instruction did last.
    #[inline(always)]
    pub(super) fn site(&self, place: Place) -> &Site {
        &self.sites[hash(place.key(), SITES)]
    }

    /// Takes in a run, however it was coded.
    #[inline(always)]
    pub(super) fn learn(&mut self, guess: Guess, run: &Run) {
        let place = Place::of(run);
        self.follow[guess.follow] = *run;
        let after = &mut self.after[guess.after];
        if after[0] != place {
            after[1] = after[0];
            after[0] = place;
        }
        let site = &mut self.sites[hash(place.key(), SITES)];
        site.stride = (run.gva.value() >> 6).wrapping_sub(site.run.gva.value() >> 6) as i64;
        site.run = *run;
        let lane = &mut self.lanes[usize::from(self.vcpu.0)];
        let [a, b, _] = lane.keys;
        lane.keys = [place.key().wrapping_mul(0xd6e8_feb8_6659_fd93), a, b];
        lane.last[usize::from(run.flags.is_fetch())] = *run;
    }
}

/// Pages by order of use, in sets by their lowest bits.
pub(super) struct Pages {
    lists: Box<[[u64; RANKS]; SETS]>,
    lengths: [u8; SETS],
}

impl Pages {
    fn new() -> Self {
        Self { lists: Box::new([[0; RANKS]; SETS]), lengths: [0; SETS] }
    }
    pub(super) const fn set(page: u64) -> usize {
        page as usize % SETS
    }
    /// Pages of the set that were used later than this one; `None` if it is not in its list.
    pub(super) fn rank(&self, page: u64) -> Option<u8> {
        let set = Self::set(page);
        let list = &self.lists[set][..usize::from(self.lengths[set])];
        list.iter().position(|&p| p == page).map(|rank| rank as u8)
    }
    /// The page of this rank, which becomes the latest of its set.
    pub(super) fn take(&mut self, set: usize, rank: u8) -> Option<u64> {
        let (set, rank) = (set % SETS, usize::from(rank));
        if rank >= usize::from(self.lengths[set]) {
            return None;
        }
        let list = &mut self.lists[set];
        let page = list[rank];
        list.copy_within(..rank, 1);
        list[0] = page;
        Some(page)
    }
    /// Adds a page that is in no list.
    pub(super) fn add(&mut self, page: u64) {
        let set = Self::set(page);
        let length = usize::from(self.lengths[set]).min(RANKS - 1);
        let list = &mut self.lists[set];
        list.copy_within(..length, 1);
        list[0] = page;
        self.lengths[set] = (length + 1) as u8;
    }
}
