//! When the daemons of guests and hosts run: parameters of a comparison, in simulated time.

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

/// What may be set: key, default, meaning.
pub static DAEMON_KEYS: &[(&str, &str, &str)] = &[
    ("khugepaged-interval-ms", "10000", "simulated time from a scan of khugepaged to the next"),
    ("khugepaged-alloc-interval-ms", "60000", "the same after no block of free frames was left"),
    ("khugepaged-pages", "4096", "pages that a scan goes through"),
    ("khugepaged-max-none", "511", "pages of a block's 512 that may be missing"),
    ("khugepaged-max-shared", "256", "pages of a block's 512 that may be shared"),
    ("ranger-interval-ms", "3000", "simulated time from a run of Translation Ranger to the next"),
    ("ranger-pages", "0", "pages that a run looks at; 0 for all of all processes"),
    ("ranger-split", "yes", "large pages are split to change places with small ones: yes or no"),
];

impl DaemonTimes {
    /// Reads `key=value,key=value`, keys as in [`DAEMON_KEYS`].
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut times = Self::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}`: write it as key=value"))?;
            times.set(key, value)?;
        }
        times.check()?;
        Ok(times)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let ms = || {
            let n: Result<f64, _> = value.parse();
            n.map_err(|_| format!("{key}={value}: a number of milliseconds is needed"))
        };
        let pages = || {
            let n: Result<u64, _> = value.parse();
            n.map_err(|_| format!("{key}={value}: a number of pages is needed"))
        };
        match key {
            "khugepaged-interval-ms" => self.khugepaged_interval_ms = ms()?,
            "khugepaged-alloc-interval-ms" => self.khugepaged_alloc_interval_ms = ms()?,
            "khugepaged-pages" => self.khugepaged_pages = pages()?,
            "khugepaged-max-none" => self.khugepaged_max_none = pages()?,
            "khugepaged-max-shared" => self.khugepaged_max_shared = pages()?,
            "ranger-interval-ms" => self.ranger_interval_ms = ms()?,
            "ranger-pages" => self.ranger_pages = pages()?,
            "ranger-split" => {
                self.ranger_split = match value {
                    "yes" => true,
                    "no" => false,
                    _ => return Err(format!("{key}={value}: yes or no is needed")),
                }
            }
            _ => {
                let known: Vec<&str> = DAEMON_KEYS.iter().map(|k| k.0).collect();
                return Err(format!("no key `{key}`; there are: {}", known.join(", ")));
            }
        }
        Ok(())
    }

    /// Whether this can be.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        for (key, ms) in [
            ("khugepaged-interval-ms", self.khugepaged_interval_ms),
            ("khugepaged-alloc-interval-ms", self.khugepaged_alloc_interval_ms),
            ("ranger-interval-ms", self.ranger_interval_ms),
        ] {
            if !(ms.is_finite() && ms > 0.0) {
                return Err(format!("{key}={ms}: must be more than 0"));
            }
        }
        for (key, pages) in [
            ("khugepaged-max-none", self.khugepaged_max_none),
            ("khugepaged-max-shared", self.khugepaged_max_shared),
        ] {
            if pages > 512 {
                return Err(format!("{key}={pages}: a block has 512 pages"));
            }
        }
        if self.khugepaged_pages == 0 {
            return Err("khugepaged-pages=0: must be at least 1".into());
        }
        Ok(())
    }

    /// The same in instructions, at the base CPI of the profile: the time of a program that never
    /// waits for memory, so intervals are rather too short than too long.
    pub fn config(&self, profile: &Profile) -> DaemonConfig {
        let core = &profile.core;
        let per_ms = core.frequency_mhz.value * 1000.0 / core.base_cpi.value;
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
        let all: Vec<String> = DAEMON_KEYS.iter().map(|k| format!("{}={}", k.0, k.1)).collect();
        assert_eq!(DaemonTimes::parse(&all.join(",")), Ok(DaemonTimes::default()));
        let value = serde_json::to_value(DaemonTimes::default()).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), DAEMON_KEYS.len());
        assert!(DAEMON_KEYS.iter().all(|k| keys.contains(&&k.0.to_string())));
        let t = DaemonTimes::parse("ranger-interval-ms=0.5, khugepaged-pages=64").unwrap();
        assert_eq!((t.ranger_interval_ms, t.khugepaged_pages), (0.5, 64));
        let profile = Profile::load("cascade-lake-6252").unwrap();
        assert_eq!(t.config(&profile).ranger.interval, 4_200_000);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| DaemonTimes::parse(text).unwrap_err();
        assert!(error("interval=1").contains("khugepaged-interval-ms"));
        assert!(error("ranger-pages").contains("key=value"));
        assert!(error("ranger-pages=x").contains("number of pages"));
        assert!(error("ranger-interval-ms=0").contains("more than 0"));
        assert!(error("ranger-interval-ms=NaN").contains("more than 0"));
        assert!(error("ranger-split=maybe").contains("yes or no"));
        assert!(error("khugepaged-max-none=513").contains("512"));
        assert!(error("khugepaged-pages=0").contains("at least 1"));
    }
}
