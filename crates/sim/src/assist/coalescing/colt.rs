//! Options of CoLT.

use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};
use nestwalk_hw::Shape;
use nestwalk_hw::line::{LINE_PAGES, LINE_SHIFT};

const KINDS: [(&str, Kind); 3] = [("sa", Kind::Sa), ("fa", Kind::Fa), ("all", Kind::All)];
const YES: [(&str, bool); 2] = [("yes", true), ("no", false)];

/// What a kind has no use for stays as it is by default: the same machine has one name.
pub static OPTIONS: OptionTable<Colt> = OptionTable {
    bare: Some("kind"),
    ..OptionTable::new(&[
        OptionRow {
            name: "kind",
            values: "sa|fa|all",
            meaning: "runs in the set-associative TLBs, in a fully associative buffer, or both; the word \
                      alone will do (all)",
            set: |c, value| one_of(value, &KINDS).map(|kind| c.kind = kind),
            get: |c| word_of(&c.kind, &KINDS),
        },
        OptionRow {
            name: "shift",
            values: "0..3",
            meaning: "set-associative: index bits of base pages are taken so much higher, so an entry has \
                      up to 2^shift pages (2); with 0 nothing coalesces there",
            set: |c, value| whole(value, 0, u64::from(LINE_SHIFT)).map(|n| c.shift = n as u32),
            get: |c| if c.grouped() { c.shift } else { Colt::default().shift }.to_string(),
        },
        OptionRow {
            name: "buffer",
            values: "N",
            meaning: "entries of the fully associative buffer, 1 to 64 (8)",
            set: |c, value| whole(value, 1, 64).map(|n| c.buffer = n as u32),
            get: |c| if c.buffered() { c.buffer } else { Colt::default().buffer }.to_string(),
        },
        OptionRow {
            name: "longest",
            values: "N",
            meaning: "most pages of an entry of the buffer, 8 to 2^20 (1024)",
            set: |c, value| whole(value, LINE_PAGES as u64, 1 << 20).map(|n| c.longest = n as u32),
            get: |c| if c.buffered() { c.longest } else { Colt::default().longest }.to_string(),
        },
        OptionRow {
            name: "second-level",
            values: "yes|no",
            meaning: "what goes to the buffer goes to the second-level TLB, too, as much as an entry \
                      takes (yes)",
            set: |c, value| one_of(value, &YES).map(|too| c.second_level = too),
            get: |c| word_of(&(c.second_level || !c.buffered()), &YES),
        },
    ])
};

/// Where runs go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Sa,
    Fa,
    All,
}

/// How CoLT is set up: options of the scheme.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Colt {
    kind: Kind,
    shift: u32,
    buffer: u32,
    longest: u32,
    second_level: bool,
}

impl Default for Colt {
    fn default() -> Self {
        Self { kind: Kind::All, shift: 2, buffer: 8, longest: 1024, second_level: true }
    }
}

impl Colt {
    const fn buffered(self) -> bool {
        !matches!(self.kind, Kind::Sa)
    }

    const fn grouped(self) -> bool {
        !matches!(self.kind, Kind::Fa)
    }

    /// What the TLBs are made by.
    pub const fn shape(self) -> Shape {
        Shape {
            shift: if self.grouped() { self.shift } else { 0 },
            buffer: if self.buffered() { self.buffer } else { 0 },
            longest: self.longest,
            second_level: self.second_level,
            cluster_ways: 0,
            cluster_least: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn names_are_read_back_as_they_are_written() {
        for text in [
            "",
            "sa",
            "fa",
            "sa/shift=3",
            "fa/buffer=16/longest=64/second-level=no",
            "shift=1/buffer=16/longest=64/second-level=no",
        ] {
            assert_eq!(OPTIONS.normalize(text).unwrap(), text);
        }
        assert_eq!(OPTIONS.normalize("kind=all/shift=2/buffer=8/longest=1024").unwrap(), "");
        // What the kind does not have decides nothing.
        assert_eq!(OPTIONS.normalize("sa/buffer=16/second-level=no").unwrap(), "sa");
        assert_eq!(OPTIONS.normalize("fa/shift=1").unwrap(), "fa");
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (text, words) in [
            ("xx", ["kind=xx", "sa, fa, all"]),
            ("shift=4", ["shift=4", "0 to 3"]),
            ("buffer=0", ["buffer=0", "1 to 64"]),
            ("longest=7", ["longest=7", "8 to 1048576"]),
            ("second-level=maybe", ["second-level=maybe", "yes, no"]),
            ("speed=9", ["`speed`", "buffer"]),
            ("shift=1/shift=2", ["shift", "twice"]),
        ] {
            let e = OPTIONS.normalize(text).unwrap_err();
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
