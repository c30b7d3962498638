//! When the daemons of guests and hosts run: parameters of a comparison, in simulated time.

use crate::scheme::options::{OptionRow, OptionTable, number, one_of, whole, word_of};
use nestwalk_hw::Profile;
use nestwalk_mm::{DaemonConfig, KhugepagedConfig, RangerConfig};
use serde::{Deserialize, Serialize};

/// Parameters of khugepaged and of Translation Ranger, of guests and hosts alike. The defaults are
/// the published ones: seconds, which few programs here run for.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DaemonTimes {
    /// Simulated milliseconds from a scan of khugepaged to the next.
    pub khugepaged_interval_ms: f64,
    /// Simulated milliseconds that it waits after no block was free.
    pub khugepaged_alloc_interval_ms: f64,
    /// Pages of a scan.
    pub khugepaged_pages: u64,
    /// Pages of a block that may be missing.
    pub khugepaged_max_none: u64,
    /// Pages of a block that may be shared.
    pub khugepaged_max_shared: u64,
    /// Simulated milliseconds from a run of Translation Ranger to the next.
    pub ranger_interval_ms: f64,
    /// Pages that a run looks at; 0 for all.
    pub ranger_pages: u64,
    /// Large pages are split to change places with small ones.
    pub ranger_split: bool,
}

impl Default for DaemonTimes {
    fn default() -> Self {
        let (khugepaged, ranger) = (KhugepagedConfig::LINUX, RangerConfig::RELEASED);
        Self {
            khugepaged_interval_ms: KhugepagedConfig::INTERVAL_MS,
            khugepaged_alloc_interval_ms: KhugepagedConfig::ALLOC_INTERVAL_MS,
            khugepaged_pages: khugepaged.pages_to_scan,
            khugepaged_max_none: khugepaged.max_ptes_none,
            khugepaged_max_shared: khugepaged.max_ptes_shared,
            ranger_interval_ms: RangerConfig::INTERVAL_MS,
            ranger_pages: ranger.pages,
            ranger_split: ranger.split,
        }
    }
}

/// Milliseconds of an interval: an instruction or so at least, and at most as good as never.
const SHORTEST_MS: f64 = 1e-6;
const LONGEST_MS: f64 = 1e12;
const YES: [(&str, bool); 2] = [("yes", true), ("no", false)];

/// What may be set of daemons.
pub static DAEMON_OPTIONS: OptionTable<DaemonTimes> = OptionTable::new(&[
    OptionRow {
        name: "khugepaged-interval-ms",
        values: "MS",
        meaning: "simulated time from a scan of khugepaged to the next",
        set: |t, value| {
            number(value, SHORTEST_MS, LONGEST_MS).map(|ms| t.khugepaged_interval_ms = ms)
        },
        get: |t| t.khugepaged_interval_ms.to_string(),
    },
    OptionRow {
        name: "khugepaged-alloc-interval-ms",
        values: "MS",
        meaning: "the same after no block of free frames was left",
        set: |t, value| {
            number(value, SHORTEST_MS, LONGEST_MS).map(|ms| t.khugepaged_alloc_interval_ms = ms)
        },
        get: |t| t.khugepaged_alloc_interval_ms.to_string(),
    },
    OptionRow {
        name: "khugepaged-pages",
        values: "PAGES",
        meaning: "pages that a scan goes through",
        set: |t, value| whole(value, 1, 1 << 40).map(|n| t.khugepaged_pages = n),
        get: |t| t.khugepaged_pages.to_string(),
    },
    OptionRow {
        name: "khugepaged-max-none",
        values: "PAGES",
        meaning: "pages of a block's 512 that may be missing",
        set: |t, value| whole(value, 0, 512).map(|n| t.khugepaged_max_none = n),
        get: |t| t.khugepaged_max_none.to_string(),
    },
    OptionRow {
        name: "khugepaged-max-shared",
        values: "PAGES",
        meaning: "pages of a block's 512 that may be shared",
        set: |t, value| whole(value, 0, 512).map(|n| t.khugepaged_max_shared = n),
        get: |t| t.khugepaged_max_shared.to_string(),
    },
    OptionRow {
        name: "ranger-interval-ms",
        values: "MS",
        meaning: "simulated time from a run of Translation Ranger to the next",
        set: |t, value| number(value, SHORTEST_MS, LONGEST_MS).map(|ms| t.ranger_interval_ms = ms),
        get: |t| t.ranger_interval_ms.to_string(),
    },
    OptionRow {
        name: "ranger-pages",
        values: "PAGES",
        meaning: "pages that a run looks at; 0 for all of all processes",
        set: |t, value| whole(value, 0, 1 << 40).map(|n| t.ranger_pages = n),
        get: |t| t.ranger_pages.to_string(),
    },
    OptionRow {
        name: "ranger-split",
        values: "yes|no",
        meaning: "large pages are split to change places with small ones",
        set: |t, value| one_of(value, &YES).map(|yes| t.ranger_split = yes),
        get: |t| word_of(&t.ranger_split, &YES),
    },
]);

impl DaemonTimes {
    /// Reads `name=value,name=value`, as [`DAEMON_OPTIONS`] has them.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        DAEMON_OPTIONS.parse_parts(parts)
    }

    /// Whether this can be.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        DAEMON_OPTIONS.admits(self)
    }

    /// The same in instructions, at the base CPI of the profile: the time of a program that never
    /// waits for memory, so intervals are rather too short than too long.
    pub fn config(&self, profile: &Profile) -> DaemonConfig {
        let per_ms = profile.instructions_in_us(1e3);
        let instructions = |ms: f64| (ms * per_ms).max(1.0) as u64;
        DaemonConfig {
            khugepaged: KhugepagedConfig {
                interval: instructions(self.khugepaged_interval_ms),
                alloc_interval: instructions(self.khugepaged_alloc_interval_ms),
                pages_to_scan: self.khugepaged_pages,
                max_ptes_none: self.khugepaged_max_none,
                max_ptes_shared: self.khugepaged_max_shared,
            },
            ranger: RangerConfig {
                interval: instructions(self.ranger_interval_ms),
                pages: self.ranger_pages,
                split: self.ranger_split,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_default_and_is_read() {
        let default = DaemonTimes::default();
        let rows = DAEMON_OPTIONS.rows.iter();
        let all: Vec<_> = rows.map(|row| format!("{}={}", row.name, (row.get)(&default))).collect();
        assert_eq!(DaemonTimes::parse(&all.join(",")), Ok(DaemonTimes::default()));
        let value = serde_json::to_value(DaemonTimes::default()).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), DAEMON_OPTIONS.rows.len());
        assert!(DAEMON_OPTIONS.rows.iter().all(|row| keys.contains(&&row.name.to_string())));
        let t = DaemonTimes::parse("ranger-interval-ms=0.5, khugepaged-pages=64").unwrap();
        assert_eq!((t.ranger_interval_ms, t.khugepaged_pages), (0.5, 64));
        let profile = Profile::load("cascade-lake-6252").unwrap();
        assert_eq!(t.config(&profile).ranger.interval, 4_200_000);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| DaemonTimes::parse(text).unwrap_err();
        assert!(error("interval=1").contains("khugepaged-interval-ms"));
        assert!(error("ranger-pages").contains("name=value"));
        assert!(error("ranger-pages=x").contains("whole number"));
        assert!(error("ranger-interval-ms=0").contains("number from 0.000001"));
        assert!(error("ranger-interval-ms=NaN").contains("number from 0.000001"));
        assert!(error("ranger-split=maybe").contains("yes, no"));
        assert!(error("khugepaged-max-none=513").contains("512"));
        assert!(error("khugepaged-pages=0").contains("from 1 to"));
        // The same bounds hold for what a file says.
        assert_eq!(DaemonTimes::default().check(), Ok(()));
        let of_file = DaemonTimes { khugepaged_max_none: 513, ..DaemonTimes::default() };
        assert_eq!(of_file.check(), Err(error("khugepaged-max-none=513")));
        let of_file = DaemonTimes { ranger_interval_ms: f64::NAN, ..DaemonTimes::default() };
        assert!(of_file.check().is_err());
    }
}
