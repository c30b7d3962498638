//! Against a plain map, and by closed forms.

use super::*;
use crate::assist::tables::testing::{Ledger, lives_like_a_map};

fn tables(refused: u64, cache: usize) -> (Flattened, Ledger) {
    let mut ledger = Ledger::default();
    (Flattened::new(FlatConfig { refused, cache }, 1, true, &mut ledger).unwrap(), ledger)
}

#[test]
fn they_hold_what_a_map_holds_whether_there_are_nodes_or_not() {
    for (seed, refused) in [(1, 0), (2, 50), (3, 100)] {
        let (mut tables, mut ledger) = tables(refused, 4);
        lives_like_a_map(&mut tables, &mut ledger, seed, |t: &Flattened| {
            let used: u32 = t.gibs.iter().flatten().map(|g| g.used).sum();
            let parts = t.gibs.iter().flatten().flat_map(|g| &g.parts);
            assert_eq!(used as usize, parts.filter(|p| !matches!(p, Part::Empty)).count());
        });
        assert_eq!(ledger.bytes(), tables.state().bytes);
    }
}

/// Two references, three or four where there are no nodes; walk caches leave out all but the last.
#[test]
fn walks_have_two_references() {
    for (refused, cache, cold, warm) in [(0, 0, 2, 2), (100, 0, 4, 4), (0, 8, 2, 1), (100, 8, 4, 1)]
    {
        let (mut tables, mut ledger) = tables(refused, cache);
        let key = Key { region: 0, page: 0x12345 };
        tables.put(key, 12, 0x1001, &mut ledger).unwrap();
        let mut walk = || {
            let mut n = 0;
            let mut fetch = |_: u8, lines: &[u64]| {
                n += lines.len();
                Ok::<(), ()>(())
            };
            assert!(tables.look_up(0, key, &mut fetch).unwrap().is_some());
            n
        };
        assert_eq!((walk(), walk()), (cold, warm), "{refused} {cache}");
        // Of a large page each of the entries is stored where there is no level for it.
        let before = tables.work.updates;
        tables.put(Key { region: 0, page: 0x40000 }, 21, 0x20_0081, &mut ledger).unwrap();
        assert_eq!(tables.work.updates - before, if refused == 0 { 512 } else { 1 });
    }
}
