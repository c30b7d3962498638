//! What can be set of agile paging, as machine names spell it: `agile/interval=2000000/back=all`.

use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};

/// When nested guest tables go back to shadow mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Back {
    /// Never.
    Never,
    /// All of them, at the end of each interval (the paper's simple policy).
    All,
    /// Those that were not stored to since the interval began, each after the table above it (the
    /// paper's preferred policy).
    Clean,
}

/// How agile paging is set up. The default is what the paper evaluates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgileConfig {
    /// Length of an interval in instructions; `None` is a second, as the paper has it, of instructions
    /// that take the least that they can. Simulated programs are some hundredths of a second long, so
    /// that no such interval ends in them; a short one is a variant.
    pub interval: Option<u64>,
    /// Stores to a guest table within an interval that make it nested: 2 in the paper; 0 for never.
    pub writes: u32,
    /// When tables go back.
    pub back: Back,
    /// A leaf table that goes back is shadowed as a whole, in the address spaces that run: the VMM
    /// has it at hand. Otherwise faults build its shadow. The paper does not say, and counts
    /// neither.
    pub refill: bool,
    /// Processes begin fully nested, for the first interval at least (the paper's administrative policy
    /// for short-lived processes).
    pub start_nested: bool,
    /// With `start_nested`: walk cycles per 1,000 instructions in the last interval from which on a
    /// process goes to shadow mode. The paper says "large" and gives no number; 50 is an assumption, 5 %
    /// at one instruction per cycle.
    pub walks: u64,
    /// Hardware sets A and D in all tables, by a nested walk, so that the VMM need not (the paper's
    /// first hardware option).
    pub hardware_ad: bool,
    /// Entries of the cache from the guest's CR3 to the shadow root that spares exits at CR3 loads (the
    /// paper's second hardware option, 4 to 8 entries); 0 for none.
    pub cr3_cache: usize,
    /// Leaf tables may go out of sync as in KVM. Then INVLPG and CR3 loads that flush must exit.
    /// Without, shadows are always in step, the guest's invalidations reach the hardware alone, and
    /// each store to a shadowed table is seen.
    pub out_of_sync: bool,
}

impl Default for AgileConfig {
    fn default() -> Self {
        Self {
            interval: None,
            writes: 2,
            back: Back::Clean,
            refill: true,
            start_nested: false,
            walks: 50,
            hardware_ad: true,
            cr3_cache: 8,
            out_of_sync: false,
        }
    }
}

const BACK: [(&str, Back); 3] =
    [("never", Back::Never), ("all", Back::All), ("clean", Back::Clean)];
const SWITCH: [(&str, bool); 2] = [("off", false), ("on", true)];
const START: [(&str, bool); 2] = [("shadow", false), ("nested", true)];
const SYNC: [(&str, bool); 2] = [("always", false), ("kvm", true)];
/// Most instructions and cycles that may be asked for.
const MOST: u64 = 1 << 40;

/// What may be set after the name.
pub static OPTIONS: OptionTable<AgileConfig> = OptionTable::new(&[
    OptionRow {
        name: "interval",
        values: "INSTRUCTIONS",
        meaning: "length of an interval; a second unless given, as in the paper",
        set: |c, value| whole(value, 1, MOST).map(|n| c.interval = Some(n)),
        get: |c| c.interval.map_or_else(String::new, |n| n.to_string()),
    },
    OptionRow {
        name: "writes",
        values: "N",
        meaning: "stores to a guest table within an interval that make it nested; 0 for never (2)",
        set: |c, value| whole(value, 0, u64::from(u32::MAX)).map(|n| c.writes = n as u32),
        get: |c| c.writes.to_string(),
    },
    OptionRow {
        name: "back",
        values: "never|all|clean",
        meaning: "which nested tables go back at the end of an interval; clean unless given",
        set: |c, value| one_of(value, &BACK).map(|back| c.back = back),
        get: |c| word_of(&c.back, &BACK),
    },
    OptionRow {
        name: "refill",
        values: "on|off",
        meaning: "leaf tables that go back are shadowed at once, not by faults; on unless given",
        set: |c, value| one_of(value, &SWITCH).map(|on| c.refill = on),
        get: |c| word_of(&c.refill, &SWITCH),
    },
    OptionRow {
        name: "start",
        values: "shadow|nested",
        meaning: "how a process begins; shadow unless given",
        set: |c, value| one_of(value, &START).map(|nested| c.start_nested = nested),
        get: |c| word_of(&c.start_nested, &START),
    },
    OptionRow {
        name: "walks",
        values: "CYCLES",
        meaning: "walk cycles per 1,000 instructions that end start=nested (50)",
        set: |c, value| whole(value, 0, MOST).map(|n| c.walks = n),
        get: |c| c.walks.to_string(),
    },
    OptionRow {
        name: "ad",
        values: "on|off",
        meaning: "hardware sets A and D in all tables; on unless given",
        set: |c, value| one_of(value, &SWITCH).map(|on| c.hardware_ad = on),
        get: |c| word_of(&c.hardware_ad, &SWITCH),
    },
    OptionRow {
        name: "cr3",
        values: "ENTRIES",
        meaning: "CR3 values that the hardware knows the shadow root of, up to 1024; 0 for none (8)",
        set: |c, value| whole(value, 0, 1024).map(|n| c.cr3_cache = n as usize),
        get: |c| c.cr3_cache.to_string(),
    },
    OptionRow {
        name: "sync",
        values: "always|kvm",
        meaning: "leaf tables are always in step, or may go out of sync as in KVM; always unless given",
        set: |c, value| one_of(value, &SYNC).map(|kvm| c.out_of_sync = kvm),
        get: |c| word_of(&c.out_of_sync, &SYNC),
    },
]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn names_are_read_back_as_they_are_written() {
        let all =
            "interval=5000/writes=3/back=all/refill=off/start=nested/walks=7/ad=off/cr3=4/sync=kvm";
        let config = OPTIONS.parse(all).unwrap();
        assert_eq!(OPTIONS.spell(&config), all);
        let named: Vec<&str> = all.split('/').filter_map(|p| p.split('=').next()).collect();
        assert_eq!(named, OPTIONS.rows.iter().map(|row| row.name).collect::<Vec<_>>());
        assert_eq!((config.interval, config.writes, config.back), (Some(5000), 3, Back::All));
        assert_eq!((config.start_nested, config.walks, config.cr3_cache), (true, 7, 4));
        assert!(!config.hardware_ad && config.out_of_sync);
        assert_eq!(OPTIONS.parse("").unwrap(), AgileConfig::default());
        // A default is left out: the same machine has one name.
        assert_eq!(OPTIONS.normalize("writes=2/back=clean/ad=on").unwrap(), "");
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (text, words) in [
            ("fast", ["`fast`", "writes=N"]),
            ("speed=3", ["no option `speed`", "interval="]),
            ("interval=0", ["interval=0", "from 1"]),
            ("interval=1e6", ["interval=1e6", "whole number"]),
            ("back=dirty", ["back=dirty", "clean"]),
            ("ad=yes", ["ad=yes", "off, on"]),
            ("writes=5000000000", ["writes=5000000000", "4294967295"]),
            ("writes=3/writes=4", ["writes", "twice"]),
        ] {
            let e = OPTIONS.parse(text).unwrap_err();
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
