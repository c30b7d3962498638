//! CA paging on states made by hand. Memory is 64 MiB of one zone, all free but for what is taken.

use super::*;
use nestwalk_types::{Gpa, PageSize};

const BLOCK: u64 = 1 << LINUX_MAX_ORDER;
const SMALL: PageSize = PageSize::SIZE_4K;
const LARGE_PAGE: PageSize = PageSize::SIZE_2M;

struct State {
    memory: PhysicalMemory<Gpa>,
    ca: Ca,
    /// Pages of the VMA.
    vma: (u64, u64),
}

impl State {
    /// `used` are frames and orders in use. The first MiB is the firmware's, so the first whole
    /// block is at frame 1024.
    fn new(config: CaConfig, vma: (u64, u64), used: &[(u64, u32)]) -> Self {
        let mut memory = PhysicalMemory::new(&[(Gpa::new(0), 64 << 20)], 0).unwrap();
        for &(frame, order) in used {
            assert!(memory.alloc_at(Gpa::new(frame << 12), order));
        }
        let mut ca = Ca::new(config);
        Placement::attach(&mut ca, &mut memory);
        Self { memory, ca, vma }
    }
    fn request(&self, page: u64, size: PageSize) -> Request {
        let (start, end) = self.vma;
        Request { page: page << 12, size, vma_start: start << 12, vma_end: end << 12, copy: false }
    }
    /// Frame and outcome.
    fn fault(&mut self, page: u64, size: PageSize) -> (u64, Outcome) {
        self.fault_as(page, size, true)
    }
    fn fault_as(&mut self, page: u64, size: PageSize, may_place: bool) -> (u64, Outcome) {
        let request = self.request(page, size);
        let placed = self.ca.place_as(&mut self.memory, &request, may_place).unwrap();
        (placed.frame.page_number(), placed.outcome)
    }
    fn entries(&mut self) -> Vec<(u64, i64)> {
        self.ca.ring(self.vma.0 << 12, self.vma.1 << 12).entries.clone()
    }
}

#[test]
fn pages_go_to_their_targets_in_any_order() {
    let mut s = State::new(CaConfig::RELEASED, (0x8000, 0x9000), &[]);
    // The whole VMA has four blocks: the first range has fifteen, from frame 1024 on.
    assert_eq!(s.fault(0x8400, LARGE_PAGE), (BLOCK + 0x400, Outcome::Target));
    assert_eq!(s.fault(0x8000, LARGE_PAGE), (BLOCK, Outcome::Target));
    assert_eq!(s.fault(0x8e00, LARGE_PAGE), (BLOCK + 0xe00, Outcome::Target));
    // One entry, at the page of the first fault, with the offset of the beginning.
    assert_eq!(s.entries(), [(0x8400, 0x8000 - BLOCK as i64)]);
    // Below 2 MiB the rest of a broken block is taken as well.
    assert_eq!(s.fault(0x8200, SMALL), (BLOCK + 0x200, Outcome::Target));
}

#[test]
fn a_small_page_does_not_break_the_largest_blocks() {
    let mut s = State::new(CaConfig::RELEASED, (0x8000, 0x9000), &[]);
    // The target is in a free block of 4 MiB or more: the lowest of the smallest blocks instead,
    // which is behind the first MiB. No new entry.
    assert_eq!(s.fault(0x8003, SMALL), (256, Outcome::Elsewhere));
    assert_eq!(s.entries(), [(0x8003, 0x8000 - BLOCK as i64)]);
    // With half of it in use the rest is no larger than 2 MiB, and may be split.
    assert!(s.memory.alloc_at(Gpa::new((BLOCK + 512) << 12), 9));
    assert_eq!(s.fault(0x8003, SMALL), (BLOCK + 3, Outcome::Target));
    // The variant breaks any.
    let mut s = State::new(CaConfig::SMALL, (0x8000, 0x9000), &[]);
    assert_eq!(s.fault(0x8003, SMALL), (BLOCK + 3, Outcome::Target));
    assert_eq!(s.fault(0x8004, SMALL), (BLOCK + 4, Outcome::Target));
}

#[test]
fn a_target_that_is_taken_by_a_small_page() {
    // One frame within the second 2 MiB of the target range.
    let used = [(BLOCK + 600, 0)];
    let mut s = State::new(CaConfig::RELEASED, (0x8000, 0x8800), &used);
    // The range of four blocks is no longer at frame 1024: block 1 is not free as a whole.
    assert_eq!(s.fault(0x8000, LARGE_PAGE), (2 * BLOCK, Outcome::Target));
    // Someone takes a frame of the next target.
    assert!(s.memory.alloc_at(Gpa::new((2 * BLOCK + 600) << 12), 0));
    // What is unmapped from there, 1536 pages, is placed at the rover, behind the two blocks of
    // the VMA.
    assert_eq!(s.fault(0x8200, LARGE_PAGE), (4 * BLOCK, Outcome::Again));
    let first = (0x8000, 0x8000 - 2 * BLOCK as i64);
    assert_eq!(s.entries(), [first, (0x8200, 0x8200 - 4 * BLOCK as i64)]);
    // Pages above follow the new entry, pages below the old one.
    assert_eq!(s.fault(0x8400, LARGE_PAGE), (4 * BLOCK + 512, Outcome::Target));
    assert_eq!(s.fault(0x8010, SMALL).1, Outcome::Elsewhere);
    // A small page whose target is taken goes anywhere and leaves no entry.
    assert!(s.memory.alloc_at(Gpa::new((4 * BLOCK + 1024 + 5) << 12), 0));
    let (frame, outcome) = s.fault(0x8605, SMALL);
    assert_eq!((outcome, s.entries().len()), (Outcome::Elsewhere, 2));
    assert!(frame != 4 * BLOCK + 1024 + 5);
}

#[test]
fn a_target_that_is_taken_by_a_large_page() {
    let mut s = State::new(CaConfig::RELEASED, (0x8000, 0x8800), &[]);
    assert_eq!(s.fault(0x8000, LARGE_PAGE), (BLOCK, Outcome::Target));
    assert!(s.memory.alloc_at(Gpa::new((BLOCK + 512) << 12), 9));
    assert_eq!(s.fault(0x8200, LARGE_PAGE), (3 * BLOCK, Outcome::Again));
    // The same for a small page is no reason to place anew, except in the variant.
    let mut s = State::new(CaConfig::SMALL, (0x8000, 0x8800), &[]);
    assert_eq!(s.fault(0x8000, SMALL), (BLOCK, Outcome::Target));
    assert!(s.memory.alloc_at(Gpa::new((BLOCK + 512) << 12), 9));
    assert_eq!(s.fault(0x8200, SMALL), (3 * BLOCK, Outcome::Again));
    assert_eq!(s.fault(0x8201, SMALL), (3 * BLOCK + 1, Outcome::Target));
}

#[test]
fn a_target_between_two_large_pages_is_rounded_up() {
    // The VMA begins in the middle of a 2 MiB page.
    let mut s = State::new(CaConfig::RELEASED, (0x8100, 0x9000), &[]);
    // First frame 1024 for page 0x8100, so page 0x8200 would be at 1280: at 1536 instead.
    assert_eq!(s.fault(0x8200, LARGE_PAGE), (BLOCK + 512, Outcome::Again));
    let entries = [(0x8200, 0x8100 - BLOCK as i64), (0x8200, 0x8200 - BLOCK as i64 - 512)];
    assert_eq!(s.entries(), entries);
    // The kernel's loop takes the first of two entries for one page, so the next one is rounded
    // again, and has an entry of its own then; from there on all is well.
    assert_eq!(s.fault(0x8400, LARGE_PAGE), (BLOCK + 1024, Outcome::Again));
    assert_eq!(s.fault(0x8600, LARGE_PAGE), (BLOCK + 1536, Outcome::Target));
}

#[test]
fn the_65th_entry_takes_the_place_of_the_first() {
    let mut ring = Ring::default();
    (0..64).for_each(|i| ring.insert(100 + i, i as i64, 64));
    assert_eq!(ring.look_up(100), (Some(0), Some(101)));
    assert_eq!(ring.look_up(50), (Some(0), Some(100)));
    ring.insert(300, 64, 64);
    assert_eq!((ring.entries.len(), ring.entries[0]), (64, (300, 64)));
    // Page 100 has lost its own: the smallest above counts.
    assert_eq!(ring.look_up(100), (Some(1), Some(101)));
    assert_eq!(ring.look_up(250), (Some(63), Some(300)));
    ring.insert(301, 65, 64);
    assert_eq!(ring.entries[1], (301, 65));
    assert_eq!(ring.look_up(400), (Some(65), None));
}

#[test]
fn several_vmas_take_turns_around_memory() {
    let mut s = State::new(CaConfig::RELEASED, (0x8000, 0x8000 + 6 * BLOCK), &[]);
    assert_eq!(s.fault(0x8000, LARGE_PAGE).0, BLOCK);
    s.vma = (0x20000, 0x20000 + 6 * BLOCK);
    assert_eq!(s.fault(0x20000, LARGE_PAGE).0, 7 * BLOCK);
    // Three blocks are left before the end of memory; five are not, so the rover goes round. The
    // range that begins at block 1 has lost that to the first VMA: it has five, which the first
    // VMA expects.
    s.vma = (0x40000, 0x40000 + 5 * BLOCK);
    assert_eq!(s.fault(0x40000, LARGE_PAGE).0, 2 * BLOCK);
    // None has eight: the longest.
    s.vma = (0x60000, 0x60000 + 8 * BLOCK);
    let (frame, outcome) = s.fault(0x60000, LARGE_PAGE);
    assert_eq!((frame, outcome), (8 * BLOCK, Outcome::Target));
}

#[test]
fn a_thread_that_may_not_place_uses_what_there_is() {
    let mut s = State::new(CaConfig::RELEASED, (0x8000, 0x8800), &[]);
    // No entry yet: an ordinary block, and none is made.
    let (_, outcome) = s.fault_as(0x8000, LARGE_PAGE, false);
    assert_eq!((outcome, s.entries()), (Outcome::Elsewhere, vec![]));
    let (first, _) = s.fault_as(0x8200, LARGE_PAGE, true);
    let entries = s.entries();
    // The entry is used by all, but a target that is taken gives an ordinary block.
    assert!(s.memory.alloc_at(Gpa::new((first + 512) << 12), 9));
    assert_eq!(s.fault_as(0x8600, LARGE_PAGE, false), (first + 1024, Outcome::Target));
    assert_eq!(s.fault_as(0x8400, LARGE_PAGE, false).1, Outcome::Elsewhere);
    assert_eq!(s.entries(), entries);
}

#[test]
fn entries_follow_vmas_that_are_split_merged_and_unmapped() {
    let mut s = State::new(CaConfig::RELEASED, (0x8000, 0x9000), &[]);
    let first = s.fault(0x8000, LARGE_PAGE).0;
    // mprotect splits: the second half knows the offset.
    s.vma = (0x8800, 0x9000);
    assert_eq!(s.fault(0x8800, LARGE_PAGE), (first + 0x800, Outcome::Target));
    // Grown: the same offset, if there is room.
    s.vma = (0x8000, 0x9400);
    assert_eq!(s.fault(0x9200, LARGE_PAGE), (first + 0x1200, Outcome::Target));
    // The middle unmapped and mapped anew by itself: a new placement, from the rover on.
    Placement::<Gpa>::unmapped(&mut s.ca, &mut s.memory, 0x8400 << 12, 0x8600 << 12);
    s.vma = (0x8400, 0x8600);
    assert_eq!(s.entries(), []);
    assert_eq!(s.fault(0x8400, LARGE_PAGE), (first + 0x1400, Outcome::Target));
    s.vma = (0x8600, 0x9400);
    assert_eq!(s.entries().len(), 1);
    // A child knows the parent's.
    let mut child = s.ca.clone();
    assert_eq!(child.ring(0x8600 << 12, 0x9400 << 12).entries, s.entries());
}
