//! `colt`: nested paging with TLBs that coalesce (CoLT, Pham et al., MICRO 2012): up to eight base pages
//! whose leaf entries came with a walk's line share a TLB entry, if they are consecutive in memory.
//!
//! `native-colt` is the same on bare metal. Walks, faults and invalidations are those of `nested` and
//! `native`.

use super::{Build, Definition};
use crate::coalescing::machine;
use crate::engine::AnyMachine;
use crate::scheme::MachineError;
use crate::vmm::options::VmmKind;
use nestwalk_hw::Shape;
use nestwalk_hw::line::{LINE_PAGES, LINE_SHIFT};
use std::fmt;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "colt",
    summary: "nested, with TLB entries of up to 8 consecutive pages (CoLT)",
    virtualized: true,
    flushes_by_itself: false,
    primary_region: false,
    vmm: VmmKind::Nested,
    keys: KEYS,
    variant,
    build,
};

/// The catalogue's entry for bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-colt",
    summary: "bare metal, with TLB entries of up to 8 consecutive pages (CoLT)",
    virtualized: false,
    vmm: VmmKind::Other,
    ..DEFINITION
};

/// Whether a scheme is this one, whose first-level TLBs have sets of their own: a recording that was
/// filtered at its source hides accesses that may miss there.
pub fn is(scheme: &Definition) -> bool {
    [DEFINITION.name, NATIVE.name].contains(&scheme.name)
}

const KEYS: &[(&str, &str, &str)] = &[
    (
        "kind",
        "sa|fa|all",
        "runs in the set-associative TLBs, in a fully associative buffer, or both; the word alone \
         will do (all)",
    ),
    (
        "shift",
        "0..3",
        "set-associative: index bits of base pages are taken so much higher, so an entry has up to \
         2^shift pages (2); with 0 nothing coalesces there",
    ),
    ("buffer", "N", "entries of the fully associative buffer, 1 to 64 (8)"),
    ("longest", "N", "most pages of an entry of the buffer, 8 to 2^20 (1024)"),
    (
        "second-level",
        "yes|no",
        "what goes to the buffer goes to the second-level TLB, too, as much as an entry takes (yes)",
    ),
];

/// Where runs go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Sa,
    Fa,
    All,
}

/// How CoLT is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Colt {
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

/// A whole number between two others.
pub(super) fn whole(value: &str, least: u32, most: u32) -> Result<u32, String> {
    let n = value.parse().ok().filter(|n| (least..=most).contains(n));
    n.ok_or_else(|| format!("not a whole number from {least} to {most}"))
}

/// What a word of some stands for.
pub(super) fn one_of<T: Copy>(value: &str, words: &[(&str, T)]) -> Result<T, String> {
    let known = || words.iter().map(|w| w.0).collect::<Vec<_>>().join(", ");
    let found = words.iter().find(|w| w.0 == value).map(|w| w.1);
    found.ok_or_else(|| format!("there are: {}", known()))
}

impl Colt {
    fn parse(text: &str) -> Result<Self, String> {
        let mut colt = Self::default();
        for part in text.split('/').filter(|p| !p.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or(("kind", part));
            let done = match name {
                "kind" => {
                    let kinds = [("sa", Kind::Sa), ("fa", Kind::Fa), ("all", Kind::All)];
                    one_of(value, &kinds).map(|kind| colt.kind = kind)
                }
                "shift" => whole(value, 0, LINE_SHIFT).map(|n| colt.shift = n),
                "buffer" => whole(value, 1, 64).map(|n| colt.buffer = n),
                "longest" => {
                    whole(value, LINE_PAGES as u32, 1 << 20).map(|n| colt.longest = n)
                }
                "second-level" => {
                    one_of(value, &[("yes", true), ("no", false)]).map(|b| colt.second_level = b)
                }
                _ => {
                    let names: Vec<&str> = KEYS.iter().map(|k| k.0).collect();
                    return Err(format!(
                        "`{name}` cannot be set; there are: {}",
                        names.join(", ")
                    ));
                }
            };
            done.map_err(|what| format!("{name}={value}: {what}"))?;
        }
        Ok(colt)
    }

    const fn shape(self) -> Shape {
        let buffer = !matches!(self.kind, Kind::Sa);
        Shape {
            shift: if matches!(self.kind, Kind::Fa) { 0 } else { self.shift },
            buffer: if buffer { self.buffer } else { 0 },
            longest: self.longest,
            second_level: self.second_level,
            cluster_ways: 0,
            cluster_least: 0,
        }
    }
}

/// What decides the machine and differs from the default, as [`Colt::parse`] reads it.
impl fmt::Display for Colt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (d, buffered, grouped) =
            (Self::default(), self.kind != Kind::Sa, self.kind != Kind::Fa);
        let mut parts = Vec::new();
        match self.kind {
            Kind::Sa => parts.push("sa".to_owned()),
            Kind::Fa => parts.push("fa".to_owned()),
            Kind::All => {}
        }
        if grouped && self.shift != d.shift {
            parts.push(format!("shift={}", self.shift));
        }
        if buffered && self.buffer != d.buffer {
            parts.push(format!("buffer={}", self.buffer));
        }
        if buffered && self.longest != d.longest {
            parts.push(format!("longest={}", self.longest));
        }
        if buffered && !self.second_level {
            parts.push("second-level=no".to_owned());
        }
        f.write_str(&parts.join("/"))
    }
}

fn variant(text: &str) -> Result<String, String> {
    Colt::parse(text).map(|colt| colt.to_string())
}

fn build(request: Build) -> Result<Box<dyn AnyMachine>, MachineError> {
    let wrong = |reason| MachineError::Variant { machine: request.name.clone(), reason };
    let shape = Colt::parse(&request.variant).map_err(wrong)?.shape();
    machine(request, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(variant(text).unwrap(), text);
        }
        assert_eq!(variant("kind=all/shift=2/buffer=8/longest=1024").unwrap(), "");
        // What the kind does not have decides nothing.
        assert_eq!(variant("sa/buffer=16/second-level=no").unwrap(), "sa");
        assert_eq!(variant("fa/shift=1").unwrap(), "fa");
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
        ] {
            let e = variant(text).unwrap_err();
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
