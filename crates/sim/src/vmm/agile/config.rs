//! What can be set of agile paging, as machine names spell it: `agile/interval=2000000/back=all`.

use std::fmt;

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

impl Back {
    const ALL: [(&'static str, Self); 3] =
        [("never", Self::Never), ("all", Self::All), ("clean", Self::Clean)];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|b| b.1 == self).map_or("", |b| b.0)
    }
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

/// Keys of machine names, what they take, and their meaning.
pub static KEYS: &[(&str, &str, &str)] = &[
    ("interval", "INSTRUCTIONS", "length of an interval; a second unless given, as in the paper"),
    ("writes", "N", "stores to a guest table within an interval that make it nested; 0 for never"),
    ("back", "never|all|clean", "which nested tables go back at the end of an interval"),
    ("refill", "on|off", "leaf tables that go back are shadowed at once, not by faults"),
    ("start", "shadow|nested", "how a process begins"),
    ("walks", "CYCLES", "walk cycles per 1,000 instructions that end start=nested"),
    ("ad", "on|off", "hardware sets A and D in all tables"),
    ("cr3", "ENTRIES", "CR3 values that the hardware knows the shadow root of; 0 for none"),
    ("sync", "always|kvm", "leaf tables are always in step, or may go out of sync as in KVM"),
];

fn known() -> String {
    KEYS.iter().map(|(key, values, _)| format!("{key}={values}")).collect::<Vec<_>>().join(", ")
}

impl AgileConfig {
    /// Reads `name=value` parts with `/` between them; what is not named is the default.
    ///
    /// # Errors
    /// What is wrong, and what there is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        for part in text.split('/').filter(|p| !p.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is no `name=value`; there are: {}", known()))?;
            let wrong = |what: &str| format!("agile: {name}={value}: {what}");
            let number = |least: u64| {
                let n = value.parse::<u64>().ok().filter(|n| *n >= least && *n <= 1 << 40);
                n.ok_or_else(|| wrong(&format!("not a whole number from {least} to 2^40")))
            };
            let one_of = |words: [(&str, bool); 2]| {
                let [a, b] = words;
                let found = words.iter().find(|w| w.0 == value).map(|w| w.1);
                found.ok_or_else(|| wrong(&format!("neither {} nor {}", a.0, b.0)))
            };
            match name {
                "interval" => config.interval = Some(number(1)?),
                "writes" => {
                    config.writes = u32::try_from(number(0)?).map_err(|_| wrong("too many"))?;
                }
                "back" => {
                    let found = Back::ALL.iter().find(|b| b.0 == value).map(|b| b.1);
                    config.back = found.ok_or_else(|| wrong("none of never, all, clean"))?;
                }
                "refill" => config.refill = one_of([("off", false), ("on", true)])?,
                "start" => config.start_nested = one_of([("shadow", false), ("nested", true)])?,
                "walks" => config.walks = number(0)?,
                "ad" => config.hardware_ad = one_of([("off", false), ("on", true)])?,
                "cr3" => config.cr3_cache = number(0)?.min(1 << 10) as usize,
                "sync" => config.out_of_sync = one_of([("always", false), ("kvm", true)])?,
                _ => return Err(format!("agile has no `{name}`; there are: {}", known())),
            }
        }
        Ok(config)
    }
}

/// What differs from the default, as [`AgileConfig::parse`] reads it.
impl fmt::Display for AgileConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = Self::default();
        let mut parts = Vec::new();
        let mut part = |differs: bool, text: String| {
            if differs {
                parts.push(text);
            }
        };
        let interval = self.interval.map_or_else(String::new, |i| format!("interval={i}"));
        part(self.interval != d.interval, interval);
        part(self.writes != d.writes, format!("writes={}", self.writes));
        part(self.back != d.back, format!("back={}", self.back.name()));
        part(self.refill != d.refill, "refill=off".into());
        part(self.start_nested != d.start_nested, "start=nested".into());
        part(self.walks != d.walks, format!("walks={}", self.walks));
        part(self.hardware_ad != d.hardware_ad, "ad=off".into());
        part(self.cr3_cache != d.cr3_cache, format!("cr3={}", self.cr3_cache));
        part(self.out_of_sync != d.out_of_sync, "sync=kvm".into());
        f.write_str(&parts.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_are_written() {
        let all =
            "interval=5000/writes=3/back=all/refill=off/start=nested/walks=7/ad=off/cr3=4/sync=kvm";
        let config = AgileConfig::parse(all).unwrap();
        assert_eq!(config.to_string(), all);
        let named: Vec<&str> = all.split('/').filter_map(|p| p.split('=').next()).collect();
        assert_eq!(named, KEYS.iter().map(|k| k.0).collect::<Vec<_>>());
        assert_eq!((config.interval, config.writes, config.back), (Some(5000), 3, Back::All));
        assert_eq!((config.start_nested, config.walks, config.cr3_cache), (true, 7, 4));
        assert!(!config.hardware_ad && config.out_of_sync);
        assert_eq!(AgileConfig::parse("").unwrap(), AgileConfig::default());
        assert_eq!(AgileConfig::default().to_string(), "");
        // What is the default already is left out: the same machine has one name.
        assert_eq!(AgileConfig::parse("writes=2/back=clean/ad=on").unwrap().to_string(), "");
    }

    #[test]
    fn what_is_wrong_is_named_with_what_there_is() {
        for (text, words) in [
            ("fast", ["`fast`", "writes=N"]),
            ("speed=3", ["no `speed`", "interval="]),
            ("interval=0", ["interval=0", "from 1"]),
            ("interval=1e6", ["interval=1e6", "whole number"]),
            ("back=dirty", ["back=dirty", "clean"]),
            ("ad=yes", ["ad=yes", "neither off nor on"]),
            ("writes=5000000000", ["writes=5000000000", "too many"]),
        ] {
            let e = AgileConfig::parse(text).unwrap_err();
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    }
}
