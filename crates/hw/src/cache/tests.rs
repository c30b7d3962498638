//! References that wait are served where they would have been.

use super::{Caches, Reference, Served, ServedBy};
use crate::profile::Profile;
use nestwalk_types::{Hpa, SplitMix64};

/// A reference: core, whether it fetches, kind, address.
type Made = (usize, bool, usize, u64);

/// Some that come back soon, some later, some never; from two cores, in no order.
fn references(count: usize) -> Vec<Made> {
    let mut random = SplitMix64::new(3);
    let mut made = Vec::with_capacity(count);
    for _ in 0..count {
        let span = [64, 2048, 40_000, 2_000_000][random.below(4) as usize];
        let fetch = random.below(5) == 0;
        let kind = random.below(9) as usize;
        made.push((random.below(2) as usize, fetch, kind, random.below(span) << 6 | 8));
    }
    made
}

fn one_by_one(caches: &mut Caches, made: &[Made]) -> Served {
    let mut served = Served::default();
    for &(core, fetch, kind, at) in made {
        let at = Hpa::new(at);
        let place = if fetch { caches.fetch(core, at) } else { caches.data(core, at) };
        served[kind][place as usize] += 1;
    }
    served
}

/// Waiting, with what is settled at these distances; every third time a walk is under way.
fn waiting(caches: &mut Caches, made: &[Made], distances: &[usize]) -> Served {
    let mut served = Served::default();
    let mut add = |more: &Served| {
        let sums = served.as_flattened_mut().iter_mut();
        sums.zip(more.as_flattened()).for_each(|(sum, n)| *sum += n);
    };
    let mut left = made;
    for (i, distance) in distances.iter().cycle().enumerate() {
        let (now, rest) = left.split_at((*distance).min(left.len()));
        caches.set_deferring(true);
        for (j, &(core, fetch, kind, at)) in now.iter().enumerate() {
            let make = if fetch { Reference::fetch } else { Reference::data };
            match i % 3 == 0 && j + 5 == now.len() {
                true => caches.walk_begins(),
                false if j % 7 == 0 && j + 5 < now.len() => caches.send_enough(),
                false => {}
            }
            caches.defer(make(core, kind, at));
        }
        caches.set_deferring(false);
        let settled = caches.take_settled();
        let walk: u64 = settled.walk.as_flattened().iter().sum();
        assert_eq!(walk, if i % 3 == 0 && now.len() >= 5 { 5 } else { 0 }, "{distance}");
        add(&settled.before);
        add(&settled.walk);
        left = rest;
        if left.is_empty() {
            return served;
        }
    }
    served
}

#[test]
fn those_that_wait_are_served_where_they_would_have_been() {
    let made = references(300_000);
    for name in ["cascade-lake-6252", "golden-cove", "sandy-bridge-e5-2430", "kaby-lake-i5-7600"] {
        let fresh = Caches::new(&Profile::load(name).unwrap().caches, 2);
        let right = one_by_one(&mut fresh.clone(), &made);
        for place in ServedBy::ALL {
            let total: u64 = right.iter().map(|kind| kind[place as usize]).sum();
            assert!(total > 5_000, "{name} {place:?}");
        }
        for helped in [false, true] {
            for distances in [&[300_000][..], &[1, 5, 3000, 64, 40_000, 900]] {
                let mut caches = fresh.clone();
                if helped {
                    caches.have_helper();
                }
                let served = waiting(&mut caches, &made, distances);
                assert_eq!(served, right, "{name} {helped} {distances:?}");
                // And what comes next finds the caches as it should.
                let mut after = fresh.clone();
                one_by_one(&mut after, &made);
                let next = &made[..20_000];
                assert_eq!(one_by_one(&mut caches, next), one_by_one(&mut after, next), "{name}");
            }
        }
    }
}
