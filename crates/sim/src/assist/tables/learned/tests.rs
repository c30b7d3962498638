//! Against a plain map, and by closed forms.

use super::*;
use crate::assist::tables::testing::{Ledger, lives_like_a_map};

fn lines(l: &mut Learned, page: u64) -> Vec<u8> {
    let mut levels = Vec::new();
    let mut fetch = |level: u8, lines: &[u64]| {
        levels.extend(lines.iter().map(|_| level));
        Ok::<(), ()>(())
    };
    assert!(l.look_up(0, Key { region: 0, page }, &mut fetch).unwrap().is_some());
    levels
}

#[test]
fn it_holds_what_a_map_holds_through_any_number_of_trainings() {
    for (seed, error) in [(1, 3), (2, 1), (3, 8)] {
        let mut ledger = Ledger::default();
        let mut learned = Learned::new(LearnedConfig { error, held: 4 }, 1);
        lives_like_a_map(&mut learned, &mut ledger, seed, |l: &Learned| {
            for models in l.regions.iter().flatten() {
                assert!(models.models.is_sorted_by(|a, b| a.first < b.first));
                for (i, m) in models.models.iter().enumerate() {
                    let next = models.models.get(i + 1).map_or(u64::MAX, |n| n.first);
                    for (at, line) in m.lines.iter().enumerate().filter(|(_, l)| l.present != 0) {
                        assert!((m.first..next).contains(&line.cluster));
                        let off = m.predict(line.cluster).abs_diff(at as u64);
                        assert!(off <= l.config.error, "{off} places off");
                    }
                }
            }
        });
        assert!(learned.work.resizes > 10, "{:?}", learned.work);
        assert_eq!(ledger.bytes(), learned.state().bytes);
    }
}

/// Addresses in order are one model, whose error is none: a line of models, which is held from then on,
/// and a line of entries.
#[test]
fn pages_in_order_are_one_reference() {
    for stride in [1, 8, 64] {
        let mut ledger = Ledger::default();
        let mut l = Learned::new(LearnedConfig::default(), 1);
        for i in 0..4_000 {
            l.put(Key { region: 0, page: i * stride }, 12, i << 12 | 1, &mut ledger).unwrap();
        }
        let models = l.regions[0][0].models.len();
        assert!(models <= 4, "{models} models for a straight line");
        let mut all = 0;
        for i in 0..4_000 {
            let read = lines(&mut l, i * stride);
            assert_eq!(read.contains(&2), i == 0, "the model is held");
            all += read.iter().filter(|level| **level == 1).count();
        }
        assert!(all < 4_000 * 2, "{all} lines for 4,000 pages, stride {stride}");
    }
}
