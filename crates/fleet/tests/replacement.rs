//! Page replacement against the textbook: naive oracles, the stack property, Belady's anomaly, and
//! the optimum as a bound.

use nestwalk_fleet::replacement::{Kind, Page, Replacement};
use nestwalk_types::SplitMix64;
use std::collections::HashSet;
use std::convert::Infallible;

/// References that a working set goes back.
const WINDOW: u64 = 20;

/// Faults of a policy on a string of references with so many frames; accessed bits are exact.
fn faults(kind: Kind, frames: usize, references: &[u64]) -> usize {
    let mut policy: Box<dyn Replacement<Infallible>> = kind.make(WINDOW);
    let (mut resident, mut accessed) = (HashSet::new(), HashSet::new());
    let mut faults = 0;
    for &n in references {
        let page: Page = (0, n);
        policy.passed(0, 1);
        if resident.contains(&page) {
            policy.used(page);
        } else {
            faults += 1;
            if resident.len() == frames {
                let bits = &mut accessed;
                let victim = policy.victim(&mut |p| Ok(Some(bits.remove(&p))));
                let Ok(victim) = victim;
                assert!(resident.remove(&victim.unwrap()), "{kind:?} takes what is there");
            }
            policy.touched(page);
            resident.insert(page);
        }
        accessed.insert(page);
        assert_eq!(policy.len(), resident.len());
    }
    faults
}

/// LRU as a list that is searched.
fn naive_lru(frames: usize, references: &[u64]) -> usize {
    let (mut list, mut faults): (Vec<u64>, usize) = (Vec::new(), 0);
    for n in references {
        match list.iter().position(|m| m == n) {
            Some(at) => {
                list.remove(at);
            }
            None => {
                faults += 1;
                if list.len() == frames {
                    list.remove(0);
                }
            }
        }
        list.push(*n);
    }
    faults
}

/// FIFO likewise.
fn naive_fifo(frames: usize, references: &[u64]) -> usize {
    let (mut list, mut faults): (Vec<u64>, usize) = (Vec::new(), 0);
    for n in references.iter() {
        if !list.contains(n) {
            faults += 1;
            if list.len() == frames {
                list.remove(0);
            }
            list.push(*n);
        }
    }
    faults
}

/// WSClock as the textbook has it: an array of frames, and a hand that stands between two of them.
fn naive_wsclock(frames: usize, references: &[u64]) -> usize {
    struct Frame {
        page: u64,
        accessed: bool,
        last: u64,
    }
    let (mut ring, mut hand, mut faults): (Vec<Frame>, usize, usize) = (Vec::new(), 0, 0);
    for (now, page) in (1..).zip(references.iter().copied()) {
        if let Some(frame) = ring.iter_mut().find(|f| f.page == page) {
            frame.accessed = true;
            continue;
        }
        faults += 1;
        let new = Frame { page, accessed: true, last: now };
        if ring.len() < frames {
            ring.push(new);
            continue;
        }
        let mut victim = None;
        for step in 0..frames {
            let at = (hand + step) % frames;
            let frame = &mut ring[at];
            if std::mem::take(&mut frame.accessed) {
                frame.last = now;
            } else if now - frame.last > WINDOW {
                victim = Some(at);
                break;
            }
        }
        // All are in the working set: the one used longest ago, the first from the hand.
        let at = victim.unwrap_or_else(|| {
            let from_hand = (0..frames).map(|step| (hand + step) % frames);
            from_hand.min_by_key(|at| ring[*at].last).unwrap()
        });
        if victim.is_none() {
            // The hand stands where it stood, and comes to the new one last.
            ring.remove(at);
            hand -= usize::from(at < hand);
            ring.insert(hand, new);
            hand = (hand + 1) % frames;
            continue;
        }
        ring[at] = new;
        hand = (at + 1) % frames;
    }
    faults
}

/// The generations of Linux, each page with its number, looked through as a table.
fn naive_mglru(frames: usize, references: &[u64]) -> usize {
    // Page, generation, order of arrival in its list, list it stands in, accessed bit.
    let mut table: Vec<(u64, i64, i64, i64, bool)> = Vec::new();
    let (mut min, mut max, mut clock, mut faults) = (0i64, 3i64, 0i64, 0);
    for page in references.iter().copied() {
        clock += 1;
        if let Some(row) = table.iter_mut().find(|r| r.0 == page) {
            row.4 = true;
            continue;
        }
        faults += 1;
        while table.len() == frames {
            let of = |seq: i64| table.iter().filter(|r| r.1 == seq).count();
            let age = match max - min {
                0 | 1 => true,
                2 => of(max) * 2 > table.len() || of(min) * 4 < table.len(),
                _ => false,
            };
            if age {
                for row in &mut table {
                    row.1 = if std::mem::take(&mut row.4) { max } else { row.1 };
                }
                max += 1;
                assert!(max - min < 4);
            }
            let oldest = table.iter().enumerate().filter(|(_, r)| r.3 == min).min_by_key(|e| e.1.2);
            let Some(at) = oldest.map(|e| e.0) else {
                min += 1;
                continue;
            };
            clock += 1;
            let row = &mut table[at];
            if row.1 > min {
                (row.3, row.2) = (row.1, clock);
            } else if std::mem::take(&mut row.4) {
                (row.1, row.3, row.2) = (max, max, clock);
            } else {
                table.remove(at);
            }
        }
        table.push((page, max, clock, max, true));
    }
    faults
}

/// The optimum: the page goes that is used last of all.
fn optimum(frames: usize, references: &[u64]) -> usize {
    let (mut list, mut faults): (Vec<u64>, usize) = (Vec::new(), 0);
    for (i, n) in references.iter().enumerate() {
        if list.contains(n) {
            continue;
        }
        faults += 1;
        if list.len() == frames {
            let next = |m: &u64| references[i..].iter().position(|r| r == m).unwrap_or(usize::MAX);
            let victim = (0..list.len()).max_by_key(|k| next(&list[*k])).unwrap();
            list.remove(victim);
        }
        list.push(*n);
    }
    faults
}

fn string(random: &mut SplitMix64) -> Vec<u64> {
    let pages = 5 + random.below(30);
    // Some pages are used more than others.
    (0..600).map(|_| random.below(pages).min(random.below(pages))).collect()
}

/// Belady, Nelson and Shedler 1969: nine faults with three frames, ten with four.
#[test]
fn beladys_anomaly() {
    let textbook = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5];
    assert_eq!((faults(Kind::Fifo, 3, &textbook), faults(Kind::Fifo, 4, &textbook)), (9, 10));
    assert_eq!((faults(Kind::Lru, 3, &textbook), faults(Kind::Lru, 4, &textbook)), (10, 8));
    assert_eq!((optimum(3, &textbook), optimum(4, &textbook)), (7, 6));
}

#[test]
fn lru_and_fifo_are_what_lists_make_of_them() {
    let mut random = SplitMix64::new(1);
    for _ in 0..200 {
        let (references, frames) = (string(&mut random), 1 + random.below(20) as usize);
        assert_eq!(faults(Kind::Lru, frames, &references), naive_lru(frames, &references));
        assert_eq!(faults(Kind::Fifo, frames, &references), naive_fifo(frames, &references));
    }
}

#[test]
fn working_sets_and_generations_are_what_tables_make_of_them() {
    let mut random = SplitMix64::new(3);
    for round in 0..300 {
        let (references, frames) = (string(&mut random), 1 + random.below(20) as usize);
        let told = |kind, naive| assert_eq!(faults(kind, frames, &references), naive, "{round}");
        told(Kind::WorkingSet, naive_wsclock(frames, &references));
        told(Kind::Mglru, naive_mglru(frames, &references));
    }
}

/// Generations withstand a scan that FIFO does not.
#[test]
fn generations_withstand_a_scan() {
    let mut references = Vec::new();
    for round in 0..200u64 {
        references.extend(0..8);
        references.extend((0..4).map(|i| 1000 + round * 4 + i));
    }
    let cold = 200 * 4 + 8;
    let (fifo, found) = (faults(Kind::Fifo, 16, &references), faults(Kind::Mglru, 16, &references));
    assert!(found - cold < (fifo - cold) / 2, "{found}, fifo {fifo}, at least {cold}");
}

/// A page goes once it is out of the window, in time of its own VM.
#[test]
fn a_page_leaves_the_working_set_by_the_time_of_its_vm() {
    let mut policy: Box<dyn Replacement<Infallible>> = Kind::WorkingSet.make(WINDOW);
    for page in [(0, 1), (1, 2), (0, 3), (0, 4)] {
        policy.touched(page);
    }
    let mut victim = |vm: u32, passed: u64, used: Page| {
        policy.passed(vm, passed);
        let Ok(found) = policy.victim(&mut |p| Ok(Some(p == used)));
        found
    };
    assert_eq!(victim(0, 30, (0, 1)), Some((0, 3)), "1 was used, and 2's VM has not run");
    assert_eq!(victim(1, 10, (9, 9)), Some((0, 4)));
    assert_eq!(victim(0, 5, (9, 9)), Some((1, 2)), "all are in working sets: 10 are more than 5");
    assert_eq!(victim(0, 0, (9, 9)), Some((0, 1)));
    assert_eq!(victim(0, 0, (9, 9)), None);
}

/// A larger memory never misses more (the stack property), and nobody beats the optimum.
#[test]
fn lru_has_the_stack_property_and_the_optimum_bounds_all() {
    let mut random = SplitMix64::new(2);
    for _ in 0..100 {
        let references = string(&mut random);
        let mut last = usize::MAX;
        for frames in 1..24 {
            let lru = faults(Kind::Lru, frames, &references);
            assert!(lru <= last, "{frames} frames: {lru} after {last}");
            last = lru;
            let best = optimum(frames, &references);
            for (name, kind, _) in Kind::ALL {
                let found = faults(kind, frames, &references);
                assert!(found >= best, "{name} with {frames} frames: {found}, optimum {best}");
            }
        }
    }
}

/// A page whose accessed bit is set when the hand comes gets a second chance, and only one.
#[test]
fn the_clock_gives_a_second_chance() {
    let mut policy: Box<dyn Replacement<Infallible>> = Kind::Clock.make(WINDOW);
    (1..=3).for_each(|n| policy.touched((0, n)));
    let mut victim = |used: &[u64]| {
        let mut left: HashSet<u64> = used.iter().copied().collect();
        let Ok(found) = policy.victim(&mut |p| Ok(Some(left.remove(&p.1))));
        found.map(|p| p.1)
    };
    assert_eq!(victim(&[1]), Some(2), "1 is passed over");
    assert_eq!(victim(&[3, 1]), Some(3), "all were used: the first goes on the second round");
    assert_eq!(victim(&[]), Some(1));
    assert_eq!(victim(&[]), None);
}

/// Linux's lists: a page becomes active when it is found used twice, so that a scan of pages that
/// are used once does not drive out what is used all the time.
#[test]
fn two_lists_withstand_a_scan_that_fifo_does_not() {
    let mut references = Vec::new();
    for round in 0..200u64 {
        for hot in 0..8 {
            references.extend([hot; 2]);
        }
        references.extend((0..8).map(|i| 1000 + round * 8 + i));
    }
    let cold = 200 * 8 + 8;
    let lists = faults(Kind::TwoLists, 20, &references);
    let fifo = faults(Kind::Fifo, 20, &references);
    assert!(
        lists < fifo && lists - cold < (fifo - cold) / 2,
        "{lists} and {fifo}, {cold} at least"
    );
}
