//! Tables of entries against a plain map, and their reads against the formulas of theory.

use super::super::testing::{Ledger, lives_like_a_map};
use super::*;
use nestwalk_types::SplitMix64;

const RULES: [Rule; 2] = [Rule::Chains, Rule::Groups];

fn table(rule: Rule, load: u64, places: u64) -> (Classic, Ledger) {
    let mut ledger = Ledger::default();
    (Classic::new(rule, (load, places), 1, &mut ledger).unwrap(), ledger)
}

fn holds_its_invariants(table: &Classic) {
    let mut seen = std::collections::HashSet::new();
    for (at, slot) in table.slots.iter().enumerate().filter(|(_, s)| s.tag != 0) {
        assert!(seen.insert((slot.tag, slot.region)), "an entry is there twice");
        // Hardware comes to it.
        assert_eq!(table.find(slot.tag, slot.region, |_| {}), Some(at));
    }
    assert_eq!(seen.len() as u64, table.used);
    let beside = table.slots.len() as u64 - table.places - table.free.len() as u64;
    let first = table.slots[..table.places as usize].iter().filter(|s| s.tag != 0).count() as u64;
    assert_eq!(first + beside, table.used, "a slot was lost");
}

#[test]
fn they_hold_what_a_map_holds_through_any_number_of_resizes() {
    for (seed, rule) in RULES.into_iter().cycle().take(6).enumerate() {
        let (mut table, mut ledger) = table(rule, 60, 64);
        lives_like_a_map(&mut table, &mut ledger, seed as u64, holds_its_invariants);
        assert!(table.work.resizes > 8, "{:?}", table.work);
        assert_eq!(ledger.bytes(), table.state().bytes);
    }
}

/// Steps and lines of a look-up on the average.
fn reads(table: &mut Classic, keys: &[Key], there: bool) -> (f64, f64) {
    let (mut steps, mut lines) = (0, 0);
    for key in keys {
        let mut fetch = |_: u8, read: &[u64]| {
            (steps, lines) = (steps + 1, lines + read.len());
            assert!(read.iter().all(|line| line % LINE == 0));
            Ok::<(), ()>(())
        };
        assert_eq!(table.look_up(0, *key, &mut fetch).unwrap().is_some(), there);
    }
    (steps as f64 / keys.len() as f64, lines as f64 / keys.len() as f64)
}

/// Pages at random, no two alike; half of them go into the table.
fn filled(rule: Rule, percent: u64) -> (Classic, Vec<Key>, Vec<Key>) {
    let (mut table, mut ledger) = table(rule, 100, 1 << 16);
    // It cannot grow: what finds no room, a few pages in a thousand, is left out.
    ledger.limit_to(0);
    let mut r = SplitMix64::new(percent);
    let n = ((1 << 16) * percent / 100) as usize;
    let keys: Vec<Key> = (0..2 * n).map(|_| Key { region: 1, page: r.next() >> 20 }).collect();
    let (there, others) = keys.split_at(n);
    let fits = |key: &&Key| table.put(**key, 12, 1, &mut ledger).is_ok();
    let there: Vec<Key> = there.iter().filter(fits).copied().collect();
    assert!(there.len() * 1000 > n * 995);
    (table, there, others.to_vec())
}

/// Knuth, vol. 3, 6.4: 1 + a / 2 entries for what is there, a + e^-a for what is not.
#[test]
fn chains_are_as_long_as_theory_says() {
    for percent in [25, 50, 75] {
        let (mut table, there, others) = filled(Rule::Chains, percent);
        let a = percent as f64 / 100.0;
        let (hit, miss) = (reads(&mut table, &there, true), reads(&mut table, &others, false));
        assert_eq!((hit.0, miss.0), (hit.1, miss.1));
        assert!((hit.0 / (1.0 + a / 2.0) - 1.0).abs() < 0.02, "{percent}: {hit:?}");
        assert!((miss.0 / (a + (-a).exp()) - 1.0).abs() < 0.02, "{percent}: {miss:?}");
    }
}

/// As many pages as a Poisson variable of the mean 8 a has above 8 find their first group full, if few
/// do; whatever is not there is looked for in both.
#[test]
fn groups_overflow_as_often_as_theory_says() {
    for percent in [50, 60] {
        let (mut table, there, others) = filled(Rule::Groups, percent);
        let mean = 8.0 * percent as f64 / 100.0;
        let mut chance = (-mean).exp();
        let mut above = 0.0;
        for k in 1..60 {
            chance *= mean / f64::from(k);
            above += chance * f64::from((k - 8).max(0));
        }
        let (steps, lines) = reads(&mut table, &there, true);
        let expected = 1.0 + above / mean;
        assert!((lines - 2.0 * steps).abs() < 1e-9, "{lines} {steps}");
        assert!(((steps - 1.0) / (expected - 1.0) - 1.0).abs() < 0.25, "{steps} {expected}");
        assert_eq!(reads(&mut table, &others, false), (2.0, 4.0));
    }
}

/// Pages one after the other fill places one after the other: none collide, and the entries of two
/// neighbours share a line of chains, those of none one of groups.
#[test]
fn neighbours_do_not_collide() {
    for (rule, lines) in [(Rule::Chains, 512), (Rule::Groups, 2048)] {
        let (mut table, mut ledger) = table(rule, 60, 1 << 13);
        let mut read = std::collections::HashSet::new();
        for page in 0..1024 {
            let key = Key { region: 3, page };
            table.put(key, 12, 1, &mut ledger).unwrap();
            let mut fetch = |_: u8, at: &[u64]| {
                read.extend(at.to_vec());
                Ok::<(), ()>(())
            };
            assert!(table.look_up(0, key, &mut fetch).unwrap().is_some());
        }
        assert!(read.len().abs_diff(lines) <= 2, "{rule:?}: {}", read.len());
    }
}

#[test]
fn where_there_is_no_memory_they_fill_up_and_then_say_so() {
    for rule in RULES {
        let (mut table, mut ledger) = table(rule, 60, 64);
        ledger.limit_to(0);
        let mut r = SplitMix64::new(9);
        let mut stored = Vec::new();
        loop {
            let key = Key { region: 0, page: r.next() >> 20 };
            if table.put(key, 12, 1, &mut ledger).is_err() {
                break;
            }
            stored.push(key);
        }
        assert!(stored.len() > 24 && table.work.refused > 0 && table.work.resizes == 0);
        assert!(stored.iter().all(|key| table.get(*key).is_some()));
        holds_its_invariants(&table);
    }
}
