//! Against a plain map, and by closed forms.

use super::super::{AHEAD, MET};
use super::*;
use crate::assist::tables::testing::{Ledger, lives_like_a_map};

fn lines(d: &mut Direct, key: Key) -> Vec<u8> {
    let mut levels = Vec::new();
    let mut fetch = |level: u8, lines: &[u64]| {
        levels.extend(lines.iter().map(|_| level));
        Ok::<(), ()>(())
    };
    assert!(d.look_up(0, key, &mut fetch).unwrap().is_some());
    levels
}

#[test]
fn they_hold_what_a_map_holds_with_pieces_and_without() {
    for (seed, least, host_memory) in [(1, 1, false), (2, 512, true), (3, u64::MAX, false)] {
        let mut ledger = Ledger::default();
        let config = DirectConfig { least, host_memory, ..DirectConfig::default() };
        let mut direct = Direct::new(config);
        lives_like_a_map(&mut direct, &mut ledger, seed, |d: &Direct| {
            for region in &d.regions {
                let registered = region.gibs.iter().flatten().filter(|g| g.registered).count();
                assert_eq!(registered as u64, region.registers);
            }
        });
        assert_eq!(ledger.bytes(), direct.state().bytes);
    }
}

/// One reference for what has a register, the radix tree's four for what has none; entries move into the
/// piece when a GiB becomes a mapping.
#[test]
fn a_register_makes_a_look_up_one_reference() {
    let mut ledger = Ledger::default();
    let config = DirectConfig { registers: 1, least: 4, host_memory: true, ahead: None };
    let mut d = Direct::new(config);
    let key = |page| Key { region: 0, page };
    for page in 0..3 {
        d.put(key(page), 12, 0x1001, &mut ledger).unwrap();
    }
    assert_eq!(lines(&mut d, key(0)), [4, 3, 2, 1]);
    d.put(key(600), 12, 0x1001, &mut ledger).unwrap();
    assert_eq!(d.work.moves, 4);
    assert_eq!(lines(&mut d, key(0)), [1 | DIRECT]);
    // A large page beside small ones is looked for in both places; the second mapping has no register.
    d.put(key(1024), 21, 0x81, &mut ledger).unwrap();
    assert_eq!(lines(&mut d, key(1024)), [1 | DIRECT, 1 | DIRECT]);
    d.put(key(1 << 18), 21, 0x81, &mut ledger).unwrap();
    assert_eq!(lines(&mut d, key(1 << 18)), [4, 3, 2 | DIRECT]);
    // When the first goes the next has its register.
    for (page, shift) in [(0, 12), (1, 12), (2, 12), (600, 12), (1024, 21)] {
        assert!(d.remove(key(page), shift, &mut ledger));
    }
    d.put(key(2 << 18), 21, 0x81, &mut ledger).unwrap();
    assert_eq!(lines(&mut d, key(2 << 18)), [2 | DIRECT]);
}

fn asap(registers: u64, least: u64, host_memory: bool, caches: [usize; 3]) -> DirectConfig {
    DirectConfig { registers, least, host_memory, ahead: Some(Ahead { levels: 2, caches }) }
}

#[test]
fn walks_with_entries_ahead_hold_what_a_map_holds() {
    for (seed, host_memory, caches) in [(4, false, [0; 3]), (5, true, [4, 2, 1])] {
        let mut ledger = Ledger::default();
        let mut direct = Direct::new(asap(1, 64, host_memory, caches));
        lives_like_a_map(&mut direct, &mut ledger, seed, |d: &Direct| {
            for region in &d.regions {
                let has = |g: &Option<Gib>| g.as_ref().is_some_and(|g| g.registered);
                let mut before = false;
                let starts = region
                    .gibs
                    .iter()
                    .filter(|g| has(g) && !std::mem::replace(&mut before, has(g)));
                assert!(starts.count() as u64 <= region.registers);
            }
        });
        let gibs = direct.regions.iter().flat_map(|r| r.gibs.iter().flatten());
        let registered = gibs.filter(|g| g.registered).count() as u64;
        let of_host = if host_memory { registered * (PIECE + PAGE) } else { 0 };
        assert_eq!(ledger.bytes(), direct.state().bytes + of_host);
    }
}

/// What has a register is walked as ever, after its two lowest entries were fetched ahead.
#[test]
fn entries_are_fetched_ahead_of_the_walk() {
    let mut ledger = Ledger::default();
    let mut d = Direct::new(asap(1, 4, true, [0; 3]));
    let key = |page| Key { region: 0, page };
    for page in 0..3 {
        d.put(key(page), 12, 0x1001, &mut ledger).unwrap();
    }
    assert_eq!(lines(&mut d, key(0)), [4, 3, 2, 1]);
    d.put(key(600), 12, 0x1001, &mut ledger).unwrap();
    assert_eq!(d.work.moves, 4);
    assert_eq!(lines(&mut d, key(0)), [AHEAD | 2, AHEAD | 1, 4, 3, 2 | MET, 1 | MET]);
    // A large page beside small ones: that of a base page is fetched in vain.
    d.put(key(1024), 21, 0x81, &mut ledger).unwrap();
    assert_eq!(lines(&mut d, key(1024)), [AHEAD | 2, AHEAD | 1, 4, 3, 2 | MET]);
    // The next GiB shares the register, the one after a hole has none.
    for gib in [1, 3] {
        d.put(key(gib << 18), 21, 0x81, &mut ledger).unwrap();
    }
    assert_eq!(lines(&mut d, key(1 << 18)), [AHEAD | 2, 4, 3, 2 | MET]);
    assert_eq!(lines(&mut d, key(3 << 18)), [4, 3, 2]);
    assert_eq!(d.regions[0].registers, 1);
    // One that closes a gap makes two mappings one.
    let mut d = Direct::new(asap(2, 4, false, [0; 3]));
    for gib in [0, 2, 1] {
        d.put(key(gib << 18), 21, 0x81, &mut ledger).unwrap();
    }
    assert_eq!(d.regions[0].registers, 1);
    assert!(d.remove(key(1 << 18), 21, &mut ledger));
    assert_eq!(d.regions[0].registers, 2);
}

/// Walk caches shorten the walk, not what is fetched ahead.
#[test]
fn walk_caches_begin_walks_further_down() {
    let mut ledger = Ledger::default();
    let mut d = Direct::new(asap(1, 1, false, [1, 2, 1]));
    let key = |page| Key { region: 0, page };
    for page in [0, 1, 512, 1 << 18] {
        d.put(key(page), 12, 0x1001, &mut ledger).unwrap();
    }
    let all = |rest: &[u8]| [&[AHEAD | 2, AHEAD | 1], rest].concat();
    assert_eq!(lines(&mut d, key(0)), all(&[4, 3, 2 | MET, 1 | MET]));
    assert_eq!(lines(&mut d, key(1)), all(&[1 | MET]));
    assert_eq!(lines(&mut d, key(512)), all(&[2 | MET, 1 | MET]));
    assert_eq!(lines(&mut d, key(0)), all(&[2 | MET, 1 | MET]));
    assert_eq!(lines(&mut d, key(1 << 18)), all(&[3, 2 | MET, 1 | MET]));
    d.forget_walks(0);
    assert_eq!(lines(&mut d, key(0)), all(&[4, 3, 2 | MET, 1 | MET]));
}
