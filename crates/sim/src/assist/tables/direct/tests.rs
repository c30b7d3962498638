//! Against a plain map, and by closed forms.

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
    let config = DirectConfig { registers: 1, least: 4, host_memory: true };
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
