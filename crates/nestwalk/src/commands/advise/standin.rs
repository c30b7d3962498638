//! A stream of accesses that stands in for a process of which only samples are known: its mappings with
//! the pages that are there, and accesses to those that were used.

use nestwalk_types::{
    AccessKind, Batch, BatchBuilder, Control, Gva, ProcessId, Protection, Room, Source,
    SourceError, SourceInfo, SplitMix64, VcpuId,
};

const PAGE: u64 = 4096;
/// Lines of a page.
const LINES: u64 = 64;
/// Instructions with an access at random, as patterns have them.
const INSTRUCTIONS: u32 = 4;
const VCPU: VcpuId = VcpuId(0);
const PROCESS: ProcessId = ProcessId(1);

/// A piece of address space, and how many of its pages are used.
#[derive(Clone, Debug, PartialEq)]
pub struct Area {
    /// Pages that are there: first page and how many, ascending.
    pub runs: Vec<(u64, u64)>,
    /// How many of them are used.
    pub used: u64,
}

/// How accesses follow from what is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// The used pages of an area are its first; all used pages are visited in turn, each line once,
    /// with so many instructions per page.
    InOrder { instructions: u64 },
    /// The used pages are spread evenly over their area; each access goes to any of all used pages.
    AtRandom { seed: u64 },
}

/// An area as it is used: where its pages are in a list of all pages that are there.
struct Placed {
    /// First page and number of pages, with the number of those before it in the area.
    runs: Vec<(u64, u64, u64)>,
    present: u64,
    used: u64,
    /// Used pages of the areas before it.
    before: u64,
}

impl Placed {
    /// The page of a number below `present`.
    fn page(&self, index: u64) -> u64 {
        let at = self.runs.partition_point(|r| r.2 <= index).saturating_sub(1);
        self.runs.get(at).map_or(0, |(first, _, before)| first + (index - before))
    }
}

/// The stream.
pub struct StandIn {
    name: String,
    areas: Vec<Placed>,
    used: u64,
    present: u64,
    order: Order,
    random: SplitMix64,
    accesses: u64,
    done: u64,
    /// What has not been made present yet: first page and pages, the last first.
    populate: Vec<(u64, u64)>,
    begun: bool,
    builder: BatchBuilder,
}

impl StandIn {
    /// A stream of so many accesses; none if no page is used. `present` are all pages that are
    /// there, those of areas among them.
    pub fn new(
        name: &str,
        present: &[(u64, u64)],
        areas: &[Area],
        order: Order,
        accesses: u64,
    ) -> Option<Self> {
        let mut builder = BatchBuilder::new();
        builder.control(Control::Switch { vcpu: VCPU, process: PROCESS });
        let (mut placed, mut before) = (Vec::new(), 0);
        for area in areas {
            let mut pages = 0;
            let mut runs = Vec::new();
            for (first, n) in &area.runs {
                runs.push((*first, *n, pages));
                pages += n;
            }
            let used = area.used.min(pages);
            if used > 0 {
                placed.push(Placed { runs, present: pages, used, before });
                before += used;
            }
        }
        for (first, pages) in mappings(present) {
            builder.control(Control::Map {
                process: PROCESS,
                start: Gva::new(first * PAGE),
                bytes: pages * PAGE,
                protection: Protection::READ_WRITE,
            });
        }
        let seed = if let Order::AtRandom { seed } = order { seed } else { 0 };
        (before > 0).then_some(Self {
            name: name.to_owned(),
            areas: placed,
            used: before,
            present: present.iter().map(|r| r.1).sum(),
            order,
            random: SplitMix64::new(seed),
            accesses,
            done: 0,
            populate: present.iter().rev().copied().collect(),
            begun: false,
            builder,
        })
    }

    /// Address of a used page by its number among all used pages, `spread` over its area or not.
    fn address(&self, number: u64, spread: bool) -> u64 {
        let at = self.areas.partition_point(|a| a.before <= number).saturating_sub(1);
        let Some(area) = self.areas.get(at) else { return 0 };
        let index = number - area.before;
        let wide = u128::from(index) * u128::from(area.present) / u128::from(area.used);
        area.page(if spread { wide as u64 } else { index }) * PAGE
    }

    /// One piece of set-up; `false` once there is none.
    fn set_up(&mut self) -> bool {
        let most = Control::POPULATE_BYTES / PAGE;
        // Small pieces share a batch.
        let mut room = most;
        while let Some((first, pages)) = self.populate.pop() {
            let now = pages.min(room);
            let (start, bytes) = (Gva::new(first * PAGE), now * PAGE);
            self.builder.control(Control::Populate { process: PROCESS, start, bytes });
            if now < pages {
                self.populate.push((first + now, pages - now));
            }
            room -= now;
            if room == 0 {
                return true;
            }
        }
        if !self.begun {
            self.builder.control(Control::RegionOfInterest);
            self.begun = true;
        }
        false
    }

    fn next_access(&mut self) {
        let pc = Gva::new(0x40_1000);
        let (address, instructions) = match self.order {
            Order::AtRandom { .. } => {
                let page = self.random.below(self.used);
                (self.address(page, true) + 8 * self.random.below(PAGE / 8), INSTRUCTIONS)
            }
            Order::InOrder { instructions } => {
                let page = self.done / LINES % self.used;
                let each = (instructions / LINES).clamp(INSTRUCTIONS.into(), u32::MAX.into());
                (self.address(page, false) + self.done % LINES * (PAGE / LINES), each as u32)
            }
        };
        self.builder.access(VCPU, pc, Gva::new(address), 8, AccessKind::Load, instructions);
        self.done += 1;
    }
}

/// Mappings of pages that are there: holes of less than 2 MiB are mapped with them.
fn mappings(runs: &[(u64, u64)]) -> Vec<(u64, u64)> {
    const HOLE: u64 = 512;
    let mut all: Vec<(u64, u64)> = Vec::new();
    for (first, pages) in runs {
        match all.last_mut().filter(|(f, n)| *first >= f + n && first - (f + n) < HOLE) {
            Some((f, n)) => *n = first + pages - *f,
            None => all.push((*first, *pages)),
        }
    }
    all
}

impl Source for StandIn {
    fn info(&self) -> SourceInfo {
        SourceInfo {
            name: self.name.clone(),
            description: format!("{} pages, of which {} are used", self.present, self.used),
            knows_lines: true,
            knows_pc: true,
            has_fetches: false,
            approximations: Vec::new(),
            guest: None,
            total: Some(self.accesses),
            populates: self.present * PAGE,
            failed: None,
        }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        if !self.set_up() {
            while !self.builder.is_full() && self.done < self.accesses {
                self.next_access();
            }
        }
        self.builder.take_into(batch);
        Ok(!batch.is_empty())
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.builder.set_room(room);
        true
    }

    fn position(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Accesses by page, and the number of instructions.
    fn pages(order: Order, accesses: u64) -> (BTreeMap<u64, u64>, u64) {
        let areas = [
            Area { runs: vec![(10, 4), (20, 4)], used: 4 },
            Area { runs: vec![(5000, 2)], used: 2 },
        ];
        let present = [(10, 4), (20, 4), (5000, 2)];
        let mut source = StandIn::new("x", &present, &areas, order, accesses).unwrap();
        let (mut found, mut instructions, mut batch) = (BTreeMap::new(), 0, Batch::default());
        while source.next_batch(&mut batch).unwrap() {
            for run in &batch.runs {
                *found.entry(run.gva.value() / PAGE).or_default() += u64::from(run.count);
            }
            instructions += batch.instructions();
        }
        (found, instructions)
    }

    #[test]
    fn in_order_the_first_pages_of_areas_are_visited_alike() {
        let (found, instructions) = pages(Order::InOrder { instructions: 64_000 }, 2 * 6 * LINES);
        let want = [10, 11, 12, 13, 5000, 5001].map(|page| (page, 2 * LINES));
        assert_eq!(found, want.into());
        assert_eq!(instructions, 2 * 6 * 64_000);
    }

    #[test]
    fn at_random_used_pages_are_spread_over_their_area() {
        let (found, instructions) = pages(Order::AtRandom { seed: 1 }, 6000);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [10, 12, 20, 22, 5000, 5001]);
        assert!(found.values().all(|n| (850..1150).contains(n)), "{found:?}");
        assert_eq!(instructions, 24_000);
    }

    #[test]
    fn nothing_used_is_no_stream() {
        let area = Area { runs: vec![(1, 1)], used: 0 };
        assert!(StandIn::new("x", &[(1, 1)], &[area], Order::AtRandom { seed: 1 }, 10).is_none());
        assert_eq!(mappings(&[(0, 1), (100, 1), (1000, 5)]), [(0, 101), (1000, 5)]);
    }
}
