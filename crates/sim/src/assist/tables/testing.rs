//! What tests of structures have in common: a plain map to hold them against, and a ledger of memory.

use super::{Key, Structure, Supply};
use nestwalk_types::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};

/// Memory that knows what is out.
#[derive(Default)]
pub struct Ledger {
    next: u64,
    out: BTreeSet<(u64, u64)>,
    /// Longest block that there is, if they end.
    limit: Option<u64>,
}

impl Ledger {
    /// Bytes that are out.
    pub fn bytes(&self) -> u64 {
        self.out.iter().map(|b| b.1).sum()
    }
    /// From now on no block is longer.
    pub fn limit_to(&mut self, bytes: u64) {
        self.limit = Some(bytes);
    }
}

impl Supply for Ledger {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        if self.limit.is_some_and(|limit| bytes > limit) {
            return None;
        }
        let at = self.next.next_multiple_of(bytes.next_power_of_two()).max(1 << 30);
        self.next = at + bytes;
        self.out.insert((at, bytes));
        Some(at)
    }
    fn take_host(&mut self, bytes: u64) -> Option<u64> {
        self.take(bytes)
    }
    fn give_host(&mut self, at: u64, bytes: u64) {
        self.give(at, bytes);
    }
    fn give(&mut self, at: u64, bytes: u64) {
        assert!(self.out.remove(&(at, bytes)), "{at:#x} was not out");
    }
}

/// [`lives_like_a_map_of`] three regions.
pub fn lives_like_a_map<S: Structure>(
    structure: &mut S,
    memory: &mut Ledger,
    seed: u64,
    check: impl Fn(&S),
) {
    lives_like_a_map_of(3, structure, memory, seed, check);
}

/// Puts and removes pages of several sizes and regions at random, in step with a plain map, which the
/// structure must agree with at every time; `check` looks at it now and then. It grows, shrinks, and
/// grows again.
pub fn lives_like_a_map_of<S: Structure>(
    regions: u64,
    structure: &mut S,
    memory: &mut Ledger,
    seed: u64,
    check: impl Fn(&S),
) {
    let mut r = SplitMix64::new(seed);
    // By region and first page: size and entry. Pages of several sizes do not overlap.
    let mut plain: BTreeMap<(u32, u64), (u8, u64)> = BTreeMap::new();
    for i in 0..24_000_u64 {
        let region = r.below(regions) as u32;
        let size = r.below(10);
        let (shift, page) = match size {
            0 => (21, r.below(64) << 9),
            _ => (12, (64 << 9) + r.below(20_000)),
        };
        let key = Key { region, page };
        let growing = !(8_000..16_000).contains(&i);
        if r.below(10) < if growing { 8 } else { 1 } {
            let entry = r.next() << 12 | u64::from(shift > 12) << 7 | 1;
            structure.put(key, shift, entry, memory).unwrap();
            plain.insert((region, page), (shift, entry));
        } else {
            let first = plain.range((region, page)..).next().map(|(k, v)| (*k, *v));
            let ((region, page), (shift, _)) = match first {
                Some(first) if !growing => first,
                _ => ((region, page), (shift, 0)),
            };
            let there = structure.remove(Key { region, page }, shift, memory);
            assert_eq!(there, plain.remove(&(region, page)).is_some());
        }
        let (region, page) = match r.below(2) {
            0 => (r.below(regions) as u32, r.below((64 << 9) + 20_000)),
            _ => plain
                .keys()
                .nth(r.below(1 + plain.len() as u64 / 64) as usize)
                .copied()
                .unwrap_or((0, 0)),
        };
        let key = Key { region, page };
        let large = plain.get(&(region, page >> 9 << 9)).filter(|v| v.0 == 21);
        let expected = large.or_else(|| plain.get(&(region, page)));
        let mut fetched = 0;
        let mut fetch = |_: u8, lines: &[u64]| {
            fetched += lines.len();
            Ok::<(), ()>(())
        };
        let found = structure.look_up(0, key, &mut fetch).unwrap();
        assert!(fetched > 0 || found.is_none());
        assert_eq!(found.map(|f| (f.shift, f.entry.0)), expected.copied(), "{key:?} at {i}");
        assert_eq!(structure.get(key), found);
        if i % 1_000 == 0 {
            check(structure);
        }
    }
    for ((region, page), (shift, entry)) in &plain {
        let found = structure.get(Key { region: *region, page: *page });
        assert_eq!(found.map(|f| (f.shift, f.entry.0)), Some((*shift, *entry)));
    }
    check(structure);
}
