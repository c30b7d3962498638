//! Memory that others have used, processes that populate it in turn, and what covers them.

#![allow(dead_code, reason = "a test and an example use their parts")]

use nestwalk_contiguity::{Pieces, RunSet};
use nestwalk_mm::{
    Access, AddressSpace, FrameRun, Memory, PagePolicy, PhysicalMemory, PlacementKind, SpaceConfig,
    Unobserved,
};
use nestwalk_tables::LONG4;
use nestwalk_types::{Address, Gpa, Gva, Protection, SplitMix64};

const MIB: u64 = 1 << 20;
const BASE: u64 = 0x7000_0000_0000;

/// How memory was used before.
#[derive(Clone, Copy)]
pub struct Aged {
    pub name: &'static str,
    /// Others hold pieces of so many MiB, with free memory of so many MiB between them: the least
    /// and the most of each; `None` if nobody holds any.
    pub neighbours: Option<((u64, u64), (u64, u64))>,
    /// The share of 2 MiB blocks with frames in use for good: see `PhysicalMemory::fragment`.
    pub degree: f64,
}

pub fn memory(bytes: u64, aged: &Aged, seed: u64) -> Memory<Gpa> {
    let ranges = nestwalk_mm::pc_memory_map::<Gpa>(bytes);
    let mut physical = PhysicalMemory::new(&ranges, nestwalk_mm::KERNEL_BYTES).unwrap();
    let mut r = SplitMix64::new(seed);
    if let Some((used, free)) = aged.neighbours {
        let mut between = |(least, most): (u64, u64)| (least * 256) + r.below((most - least) * 256);
        for (start, length) in ranges {
            let (mut at, end) = (start.page_number(), (start.value() + length) >> 12);
            while at < end {
                let frames = between(used).min(end - at);
                physical.take_run(FrameRun { frame: at, frames });
                at += frames + between(free);
            }
        }
    }
    physical.fragment(aged.degree, seed).unwrap();
    Memory::new(physical, false)
}

/// What came of it.
pub struct Outcome {
    /// Runs for 99 % of the footprint, and for all of it.
    pub ranges: (u64, u64),
    /// SpOT offsets for 99 %.
    pub offsets: u64,
    /// 4 KiB pages mapped and never asked for.
    pub bloat: u64,
    pub leaves_2m: u64,
    /// At the target, placed anew, elsewhere.
    pub placed: (u64, u64, u64),
    pub pages: u64,
}

/// So many processes touch so many MiB each, `turn` pages at a time, one after the other.
pub fn populate(
    memory: &mut Memory<Gpa>,
    (placement, policy): (PlacementKind, PagePolicy),
    (processes, mib, turn): (u64, u64, u64),
) -> Outcome {
    let config = SpaceConfig { mode: &LONG4, policy, placement, primary: None };
    let mut spaces: Vec<AddressSpace<Gva, Gpa>> = (0..processes)
        .map(|_| AddressSpace::new(config, memory, &mut Unobserved).unwrap())
        .collect();
    for space in &mut spaces {
        let all = Protection::ALL;
        space.map(memory, Gva::new(BASE), mib * MIB, all, &mut Unobserved).unwrap();
    }
    let mut next = vec![BASE; processes as usize];
    let end = BASE + mib * MIB;
    while next.iter().any(|n| *n < end) {
        for (i, (space, at)) in spaces.iter_mut().zip(&mut next).enumerate() {
            memory.physical.set_cpu(i as u8 % 4);
            for _ in 0..turn {
                if *at < end {
                    let address = Gva::new(*at);
                    let m = space.fault(memory, address, Access::WRITE, &mut Unobserved).unwrap();
                    *at = address.align_down(m.size).value() + m.size.bytes();
                }
            }
        }
    }
    let (mut ranges, mut offsets) = (Pieces::default(), Pieces::default());
    for space in &spaces {
        let mut set = RunSet::new();
        let mut at = BASE;
        while at < end {
            let leaf = space.look_up(memory, Gva::new(at)).unwrap();
            let page = Gva::new(at).page_number();
            set.map(page, leaf.frame.page_number(), leaf.size.base_pages(), 0);
            at += leaf.size.bytes();
        }
        nestwalk_contiguity::ranges(&set).iter().for_each(|(pages, n)| ranges.add(pages, n));
        nestwalk_contiguity::offsets(&set).iter().for_each(|(pages, n)| offsets.add(pages, n));
    }
    let c = memory.counters;
    let pages = processes * mib * 256;
    let outcome = Outcome {
        ranges: (ranges.to_cover(99), ranges.to_cover(100)),
        offsets: offsets.to_cover(99),
        bloat: c.data_frames - pages,
        leaves_2m: c.leaves[1],
        placed: (c.at_target, c.placed_again, c.placed_elsewhere),
        pages,
    };
    spaces.into_iter().for_each(|s| s.destroy(memory, &mut Unobserved));
    outcome
}
