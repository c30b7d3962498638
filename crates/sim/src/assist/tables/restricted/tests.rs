use super::super::testing::{Ledger, lives_like_a_map};
use super::*;

fn small(mib: u64, evict: bool) -> (Restricted, Ledger) {
    let config = RestrictedConfig { mib: [mib, 16], ways: [4, 2], held: 8, evict };
    let mut ledger = Ledger::default();
    (Restricted::new(config, 1, true, &mut ledger).unwrap(), ledger)
}

/// Every page of a segment is in the set that its number names, once, and none is in flexible tables.
fn holds_its_invariants(r: &Restricted) {
    for segment in r.segments.iter().flatten() {
        let mut pages = 0;
        let mut seen = std::collections::HashSet::new();
        let slots = (0..segment.sets * segment.ways).map(|at| (at, segment.slot(at)));
        for (at, slot) in slots.filter(|s| s.1.entry != 0) {
            let page = slot.page << (segment.shift - 12);
            let key = Key { region: slot.region, page };
            assert_eq!(segment.set(key), at / segment.ways);
            assert!(seen.insert((slot.region, slot.page)), "a page is there twice");
            assert!(r.flexible.get(key).is_none_or(|f| f.shift != segment.shift));
            pages += 1;
        }
        assert_eq!(pages, segment.pages);
    }
}

#[test]
fn it_holds_what_a_map_holds() {
    for (seed, evict) in [(1, true), (2, false), (3, true)] {
        let (mut r, mut ledger) = small(4, evict);
        // A core that holds lines may read none.
        r.held.clear();
        lives_like_a_map(&mut r, &mut ledger, seed, holds_its_invariants);
        assert_eq!(r.work().copies > 1_000, evict);
        assert_eq!(ledger.bytes(), r.state().bytes);
    }
}

/// Of 1 MiB in sets of four: pages whose numbers are 64 apart share a set.
#[test]
fn a_full_set_makes_room_by_a_copy_or_keeps_what_it_has() {
    for evict in [true, false] {
        let (mut r, mut ledger) = small(1, evict);
        let key = |i: u64| Key { region: 0, page: i * 64 };
        for i in 0..4 {
            r.put(key(i), 12, (i + 1) << 12 | 1, &mut ledger).unwrap();
        }
        assert_eq!((r.work().copies, r.state().used), (0, 4));
        r.put(key(4), 12, 5 << 12 | 1, &mut ledger).unwrap();
        assert_eq!(r.work().copies, u64::from(evict));
        let mut reads = |i: u64| {
            let mut n = Vec::new();
            r.forget_walks(0);
            let mut fetch = |_: u8, lines: &[u64]| {
                n.push(lines.len());
                Ok::<(), ()>(())
            };
            let found = r.look_up(0, key(i), &mut fetch).unwrap().unwrap();
            assert_eq!(found.entry.0, (i + 1) << 12 | 1);
            n
        };
        // Filter and tags at once; of a page that is flexible a radix walk follows.
        let (restricted, flexible) = if evict { (4, 0) } else { (0, 4) };
        assert_eq!(reads(restricted), [2]);
        assert_eq!(reads(flexible), [2, 1, 1, 1, 1]);
    }
}

#[test]
fn lines_that_a_core_holds_are_not_read() {
    let (mut r, mut ledger) = small(4, true);
    for page in 0..64 {
        r.put(Key { region: 0, page }, 12, page << 12 | 1, &mut ledger).unwrap();
    }
    let mut read = |page: u64| {
        let mut n = 0;
        let mut fetch = |_: u8, lines: &[u64]| {
            n += lines.len();
            Ok::<(), ()>(())
        };
        assert!(r.look_up(0, Key { region: 0, page }, &mut fetch).unwrap().is_some());
        n
    };
    // 64 sets share a line of the filter, each has a line of tags, of which 8 are held.
    assert_eq!((read(0), read(0), read(1)), (2, 0, 1));
    assert_eq!((2..64).map(&mut read).sum::<usize>(), 62);
    assert_eq!(read(0), 1);
}

#[test]
fn without_memory_for_tags_all_is_flexible() {
    let (mut r, mut ledger) = small(64, true);
    ledger.limit_to(4096);
    r.put(Key { region: 0, page: 1 }, 12, 7 << 12 | 1, &mut ledger).unwrap();
    assert!(r.segments[0].is_none() && r.work().refused == 1);
    assert_eq!(r.get(Key { region: 0, page: 1 }).unwrap().entry.0, 7 << 12 | 1);
}
