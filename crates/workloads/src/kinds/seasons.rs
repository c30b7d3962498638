//! `seasons`: look-ups in a large table, then a storm of allocations, and again.
//!
//! Source: our own. Programs have phases: a server answers queries for a while and then rebuilds what
//! it has, a compiler parses and then allocates, a virtual machine's users come and go. No paging mode
//! is the best for both kinds, which is what policies that change the mode are for. In the season of
//! look-ups, words of the table are read at random: nothing is mapped, and every read misses the TLB.
//! In the season of storms, memory is mapped, each of its pages is written for the first time, and it
//! is unmapped again: page faults and table writes, over and over.
//!
//! Real: the order of accesses and mappings. No values are kept. The table is populated where asked
//! for; the storms' memory never is. Instructions are estimates of short loops.

use crate::Workload;
use crate::driver::{About, Driver, Kernel, PROCESS};
use crate::layout::{AddressSpace, Mapping, Region, pages_up};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use nestwalk_types::{Control, Gva, Source, SplitMix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "seasons",
    summary: "random look-ups, then storms of map, first touch and unmap, in turn",
    footprint: 1 << 30,
    settings: &[
        Setting {
            name: "length",
            summary: "accesses of a season",
            default: 4_000_000,
            range: (10_000, 1 << 40),
        },
        Setting {
            name: "storm_kib",
            summary: "memory of one mapping in a storm, an eighth of the footprint at most",
            default: 4096,
            range: (64, 1 << 20),
        },
    ],
    make,
};

const LOOK_UP: Site = Site::new(0, 6);
const FIRST_STORE: Site = Site::new(1, 5);
const STORE: Site = Site::new(2, 4);

const PAGE: u64 = 4096;
/// Stores to each page in a storm, one per eighth of it.
const STORES: u64 = 8;
/// Look-ups of one step, or pages of one.
const STEP: u64 = 64;

struct Seasons {
    table: Region,
    storm: Mapping,
    random: SplitMix64,
    length: u64,
    /// Accesses of this season.
    done: u64,
    stormy: bool,
    /// Next page of the mapping that a storm fills; at 0 there is none.
    page: u64,
}

impl Seasons {
    fn look_up(&mut self, m: &mut Recorder) {
        let words = self.table.bytes / 8;
        for _ in 0..STEP {
            m.load(LOOK_UP, self.table.at(self.random.below(words), 8), 8);
        }
        self.done += STEP;
    }

    fn storm(&mut self, m: &mut Recorder) {
        let pages = self.storm.bytes / PAGE;
        if self.page == 0 {
            m.control(self.storm.control(PROCESS));
        }
        let end = (self.page + STEP).min(pages);
        for page in self.page..end {
            let at = self.storm.start + page * PAGE;
            m.store(FIRST_STORE, at, 8);
            for i in 1..STORES {
                m.store(STORE, at + i * PAGE / STORES, 8);
            }
        }
        self.done += (end - self.page) * STORES;
        self.page = end;
        if end == pages {
            let (start, bytes) = (Gva::new(self.storm.start), self.storm.bytes);
            m.control(Control::Unmap { process: PROCESS, start, bytes });
            self.page = 0;
        }
    }
}

impl Kernel for Seasons {
    /// A few look-ups, or some pages of a storm. A year ends with a storm.
    fn step(&mut self, m: &mut Recorder) -> bool {
        if self.stormy {
            self.storm(m);
        } else {
            self.look_up(m);
        }
        // A season ends when nothing of it is left mapped.
        if self.done < self.length || self.page != 0 {
            return true;
        }
        self.done = 0;
        self.stormy = !self.stormy;
        self.stormy
    }

    fn verify(&self) -> Result<(), String> {
        Ok(())
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let bytes = (options.get("storm_kib") << 10).min(spec.footprint / 8);
    let mut space = AddressSpace::new();
    let table = space.malloc((spec.footprint - spec.footprint / 8) & !7);
    let bytes = pages_up(bytes.max(PAGE));
    let start = (space.free_top() - bytes) & !((2 << 20) - 1);
    let length = options.get("length");
    let kernel = Seasons {
        table,
        storm: Mapping { start, bytes },
        random: SplitMix64::new(spec.seed),
        length,
        done: 0,
        stormy: false,
        page: 0,
    };
    let about = About {
        name: WORKLOAD.name,
        description: format!(
            "seasons of {length} accesses: look-ups in a table of {} bytes, storms of {bytes} bytes",
            table.bytes
        ),
        approximations: &["instructions between accesses are estimates"],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_to_end;

    #[test]
    fn a_year_has_a_season_of_each_kind() {
        let mut space = AddressSpace::new();
        let table = space.malloc(1 << 20);
        let mut seasons = Seasons {
            table,
            storm: Mapping { start: 1 << 40, bytes: 100 * PAGE },
            random: SplitMix64::new(1),
            length: 10_000,
            done: 0,
            stormy: false,
            page: 0,
        };
        // Look-ups in steps of 64 make 10,048; thirteen storms of 800 stores make 10,400.
        assert_eq!(run_to_end(&mut seasons), 10_048 + 10_400);
        assert_eq!(run_to_end(&mut seasons), 10_048 + 10_400);
    }
}
