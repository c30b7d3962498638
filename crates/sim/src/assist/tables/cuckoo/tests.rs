//! Against a plain map, and by closed forms.

use super::*;
use crate::assist::tables::testing::{Ledger, lives_like_a_map};

fn tables(entries: u64) -> (Cuckoo, Ledger) {
    let mut ledger = Ledger::default();
    let config = CuckooConfig { entries, ..CuckooConfig::default() };
    (Cuckoo::new(config, 1, &mut ledger).unwrap(), ledger)
}

fn holds_its_invariants(c: &Cuckoo) {
    for table in &c.tables {
        let mut seen = std::collections::HashSet::new();
        for way in &table.ways {
            let new = way.new.iter().flat_map(|n| n.0.lines.iter().enumerate());
            let new = new.map(|(i, l)| ((true, i), l));
            let old = way.old.lines.iter().enumerate().map(|(i, l)| ((false, i), l));
            let mut used = 0;
            for (place, line) in old.chain(new).filter(|(_, l)| l.present != 0) {
                used += 1;
                assert!(seen.insert((line.cluster, line.region)), "a line is there twice");
                assert_eq!(way.place(line.cluster, line.region), place, "no probe finds it");
            }
            assert_eq!(used, way.used);
        }
        let sizes: Vec<u64> = table.ways.iter().map(Way::len).collect();
        assert!(sizes.iter().max().unwrap() <= &(2 * sizes.iter().min().unwrap()), "{sizes:?}");
    }
}

#[test]
fn they_hold_what_a_map_holds_through_any_number_of_resizes() {
    for seed in 1..=3 {
        let (mut tables, mut ledger) = tables(512);
        lives_like_a_map(&mut tables, &mut ledger, seed, holds_its_invariants);
        assert!(tables.work.resizes > 12, "{:?}", tables.work);
        assert_eq!(ledger.bytes(), tables.state().bytes);
    }
}

/// A line of each way, whether a resize is under way or not; of a large page that a walk-table entry
/// tells one; without walk-table entries those of every size there is.
#[test]
fn a_look_up_reads_as_many_lines_as_there_are_ways() {
    let (mut tables, mut ledger) = tables(512);
    let lines = |tables: &mut Cuckoo, page: u64| {
        let (mut n, mut calls) = (0, 0);
        let mut fetch = |level: u8, lines: &[u64]| {
            if level != BACKGROUND {
                n += lines.len();
                calls += 1;
            }
            Ok::<(), ()>(())
        };
        assert!(tables.look_up(0, Key { region: 0, page }, &mut fetch).unwrap().is_some());
        assert_eq!(calls, 1, "one step");
        n
    };
    let mut resizing = 0;
    for i in 0..2_000 {
        tables.put(Key { region: 0, page: i * 8 }, 12, i << 12 | 1, &mut ledger).unwrap();
        resizing += u32::from(tables.tables[0].ways.iter().any(|w| w.new.is_some()));
        assert_eq!(lines(&mut tables, i * 8), 3);
    }
    assert!(resizing > 100, "{resizing}");
    let large = 1 << 20;
    tables.put(Key { region: 0, page: large }, 21, 0x81, &mut ledger).unwrap();
    tables.forget_walks(0);
    assert_eq!([lines(&mut tables, large), lines(&mut tables, large)], [6, 1]);
    assert_eq!([lines(&mut tables, 0), lines(&mut tables, 0)], [6, 3]);
}
