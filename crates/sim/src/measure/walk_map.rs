//! Which references of walks miss where: counts by the entry that a reference reads.

use crate::measure::counters::Dimension;
use nestwalk_hw::ServedBy;
use nestwalk_tables::MAX_LEVELS;
use serde::Serialize;

/// Levels, and 0.
const LEVELS: usize = MAX_LEVELS + 1;

/// Counts of references, those of walks that ended in a fault among them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WalkMap([[[[u64; ServedBy::COUNT]; LEVELS]; LEVELS]; Dimension::COUNT]);

/// References to one kind of entry. Meanings: [`WALK_MAP_FIELDS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "documented in WALK_MAP_FIELDS, which a test compares with this")]
pub struct WalkPlace {
    pub dimension: Dimension,
    pub level: u8,
    pub on_behalf_of_guest_level: u8,
    pub l1: u64,
    pub l2: u64,
    pub llc: u64,
    pub memory: u64,
}

/// Name, unit and meaning of each field of [`WalkPlace`], in its order.
pub static WALK_MAP_FIELDS: &[(&str, &str, &str)] = &[
    ("dimension", "", "whose table was read: guest, nested or shadow"),
    ("level", "", "level of the entry, 1 is the last"),
    (
        "on_behalf_of_guest_level",
        "",
        "nested: the guest table of this level was looked for, or 0, the page; otherwise 0",
    ),
    ("l1", "count", "references that the first-level cache served"),
    ("l2", "count", "references that the second-level cache served"),
    ("llc", "count", "references that the last-level cache served"),
    ("memory", "count", "references that went to memory"),
];

impl WalkMap {
    /// Counts a reference.
    #[inline]
    pub fn count(&mut self, dimension: Dimension, (level, on_behalf): (u8, u8), served: ServedBy) {
        let levels = &mut self.0[dimension as usize];
        let place =
            levels.get_mut(usize::from(on_behalf)).and_then(|l| l.get_mut(usize::from(level)));
        if let Some(place) = place {
            place[served as usize] += 1;
        }
    }

    /// All that have any, from the root of the guest's tables to the page.
    pub fn places(&self) -> Vec<WalkPlace> {
        let mut all = Vec::new();
        for dimension in [Dimension::Guest, Dimension::Nested, Dimension::Shadow] {
            let levels = &self.0[dimension as usize];
            for (on_behalf, level) in
                (0..LEVELS).rev().flat_map(|b| (0..LEVELS).rev().map(move |l| (b, l)))
            {
                let [l1, l2, llc, memory] = levels[on_behalf][level];
                if l1 + l2 + llc + memory > 0 {
                    let (level, on_behalf) = (level as u8, on_behalf as u8);
                    let on_behalf_of_guest_level = on_behalf;
                    all.push(WalkPlace {
                        dimension,
                        level,
                        on_behalf_of_guest_level,
                        l1,
                        l2,
                        llc,
                        memory,
                    });
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_documented_in_order() {
        let mut map = WalkMap::default();
        map.count(Dimension::Nested, (4, 3), ServedBy::Llc);
        map.count(Dimension::Guest, (255, 255), ServedBy::L1);
        let text = serde_json::to_string(&map.places()).unwrap();
        let keys: Vec<&str> =
            text.split('"').skip(1).step_by(2).filter(|k| *k != "nested").collect();
        assert_eq!(keys, WALK_MAP_FIELDS.iter().map(|f| f.0).collect::<Vec<_>>());
        assert_eq!(map.places().len(), 1);
    }
}
