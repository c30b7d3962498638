use super::*;
use nestwalk_types::SplitMix64;

/// LRU by time stamps, as a textbook has it.
struct Oracle {
    sets: Vec<Vec<(u64, u64)>>,
    ways: usize,
    clock: u64,
}
impl Oracle {
    fn access(&mut self, set: usize, tag: u64) -> bool {
        self.clock += 1;
        let set = &mut self.sets[set];
        if let Some(e) = set.iter_mut().find(|e| e.0 == tag) {
            e.1 = self.clock;
            return true;
        }
        if set.len() == self.ways {
            let oldest = set.iter().enumerate().min_by_key(|(_, e)| e.1).unwrap().0;
            set.swap_remove(oldest);
        }
        set.push((tag, self.clock));
        false
    }
}

#[test]
fn misses_equal_the_oracles_for_every_geometry() {
    for (entries, ways) in [
        (64, 4),
        (1536, 12),
        (1536, 6),
        (48, 48),
        (5, 5),
        (33, 11),
        (160, 20),
        (7, 1),
        (256, 16),
        (34, 17),
    ] {
        let geometry = Geometry::new(entries, ways).unwrap();
        let sets = geometry.sets() as usize;
        let mut subject = SetAssoc::<u64, u64>::new(geometry);
        let mut oracle = Oracle { sets: vec![vec![]; sets], ways: ways as usize, clock: 0 };
        let mut r = SplitMix64::new(u64::from(entries));
        for _ in 0..50_000 {
            let bound = u64::from(entries) * 2;
            let key = r.below(bound).min(r.below(bound));
            let set = (key % sets as u64) as usize;
            if r.below(50) == 0 {
                let there = oracle.sets[set].iter().position(|e| e.0 == key);
                assert_eq!(subject.remove(set, key), there.is_some());
                if let Some(i) = there {
                    oracle.sets[set].remove(i);
                }
                continue;
            }
            let hit = subject.look_up(set, key).map(|p| *p);
            assert_eq!(hit.is_some(), oracle.access(set, key));
            match hit {
                Some(p) => assert_eq!(p, key * 3),
                None => subject.fill(set, key, key * 3),
            }
        }
    }
}

#[test]
fn orders_move_as_lists_do() {
    let mut r = SplitMix64::new(9);
    for ways in 1..=16usize {
        let mut order = AT_FIRST;
        let mut list: Vec<usize> = (0..ways).collect();
        for _ in 0..500 {
            let way = r.below(ways as u64) as usize;
            let at = list.iter().position(|w| *w == way).unwrap();
            list.remove(at);
            let place = place_in(order, way);
            assert_eq!(place, 4 * at as u32);
            if r.below(3) == 0 {
                order = unused(order, place, way, ways);
                list.push(way);
            } else {
                order = used(order, place, way);
                list.insert(0, way);
            }
            let fields: Vec<usize> = (0..ways).map(|i| (order >> (4 * i) & 15) as usize).collect();
            assert_eq!(fields, list);
        }
    }
}

#[test]
fn retain_keeps_order_and_makes_room() {
    let mut a = SetAssoc::<u64, ()>::new(Geometry::new(4, 4).unwrap());
    for t in 0..4 {
        a.fill(0, t, ());
    }
    a.retain(|t, ()| t % 2 == 0);
    assert_eq!(a.iter().map(|e| e.0).collect::<Vec<_>>(), [2, 0]);
    a.fill(0, 9, ());
    a.fill(0, 10, ());
    assert_eq!(a.iter().map(|e| e.0).collect::<Vec<_>>(), [10, 9, 2, 0]);
    a.fill(0, 11, ());
    assert_eq!(a.iter().map(|e| e.0).collect::<Vec<_>>(), [11, 10, 9, 2]);
}
