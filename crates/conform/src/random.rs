//! Random scripts: the same seed, the same script.

use crate::program::Program;
use crate::script::{ScriptError, compile};
use nestwalk_types::SplitMix64;
use std::fmt::Write;

/// Addresses lie in so many regions of 2 MiB, in two of 1 GiB each.
const REGIONS: [u64; 5] = [0, 0x20_0000, 0x40_0000, 0x4000_0000, 0x80_0000_0000];
/// First frame of data, and of pages of 2 MiB.
const DATA: u64 = 0x10_0000;
const LARGE: u64 = 0x40_0000;

struct Dice {
    random: SplitMix64,
    spaces: u64,
}

impl Dice {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.below(of.len() as u64) as usize]
    }

    /// An address in the first two groups of eight pages of a region.
    fn va(&mut self) -> u64 {
        self.one(&REGIONS) + (self.random.below(16) << 12)
    }

    fn flags(&mut self) -> &'static str {
        self.one(&[
            "rwxuad", "rwxuad", "rwxuad", "rwxuad", "rxuad", "rwuad", "rwxua", "rwxu", "rxua",
            "rwxad", "-",
        ])
    }

    fn upper(&mut self) -> &'static str {
        self.one(&["rwxua", "rwxua", "rwxua", "rxua", "rwua", "rwxa", "rwxu"])
    }

    fn map(&mut self) -> String {
        let flags = self.flags();
        if self.random.below(12) == 0 {
            let at = self.one(&REGIONS);
            let frame = LARGE + (self.random.below(2) << 21);
            return format!("map {at:x} {frame:x} {flags} 2m");
        }
        let frame = DATA + (self.random.below(24) << 12);
        format!("map {:x} {frame:x} {flags}", self.va())
    }

    /// What a kernel does to its tables, mostly with the INVLPG that it owes.
    fn change(&mut self) -> String {
        let va = self.va();
        let level = 2 + self.random.below(3);
        let invlpg =
            if self.random.below(4) == 0 { String::new() } else { format!("\ninvlpg {va:x}") };
        match self.random.below(12) {
            0..=3 => self.map() + &invlpg,
            4 => format!("unmap {va:x}{invlpg}"),
            5..=6 => format!("protect {va:x} {}{invlpg}", self.flags()),
            7 => format!("entry {level} {va:x} {}{invlpg}", self.upper()),
            8 => format!("entry {level} {va:x} -"),
            9 => {
                let (from, space) = (self.one(&REGIONS), self.random.below(self.spaces));
                let level = 2 + self.random.below(2);
                format!("link {level} {va:x} {from:x} {space}")
            }
            _ => {
                let (level, n) = (1 + self.random.below(4), 1 + self.random.below(4));
                format!("flood {level} {va:x} {n}")
            }
        }
    }

    fn action(&mut self) -> String {
        match self.random.below(20) {
            0..=9 => format!(
                "{} {:x}",
                self.one(&["read", "read", "write", "write", "fetch"]),
                self.va()
            ),
            10..=11 => format!("cr3 {}", self.random.below(self.spaces)),
            12 => format!("invlpg {:x}", self.va()),
            13 => format!("space {}", self.random.below(self.spaces)),
            _ => self.change(),
        }
    }
}

/// The text of a seed's script: lines that a kernel could not perform are left out.
#[must_use]
pub fn text(seed: u64) -> String {
    let mut dice = Dice { random: SplitMix64::new(seed), spaces: 1 };
    dice.spaces = 1 + dice.random.below(5);
    let mut text = format!("spaces {:x}\n", dice.spaces);
    if dice.random.below(4) == 0 {
        text += "window 2m\n";
    }
    let mut add = |line: String| {
        let longer = format!("{text}{line}\n");
        if compile("", &longer).is_ok() {
            text = longer;
        }
    };
    for space in 0..dice.spaces {
        add(format!("space {space}"));
        for _ in 0..4 + dice.random.below(10) {
            add(dice.map());
        }
    }
    add("run".to_owned());
    for _ in 0..30 {
        let line = dice.action();
        add(line);
    }
    text
}

/// The program of a seed, called `random-SEED`.
///
/// # Errors
/// Never, unless generator and language have come apart.
pub fn program(seed: u64) -> Result<Program, ScriptError> {
    let mut name = String::new();
    // Writing to a string cannot fail.
    let _ = write!(name, "random-{seed}");
    compile(&name, &text(seed))
}
