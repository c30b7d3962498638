//! Moves of VMs to other hosts: what is asked for, as one line and as a table of the configuration.

use anyhow::{Context, Result, anyhow, bail};
use nestwalk_fleet::migration::{
    LATENCY_NS, LINK_BITS, MAX_DOWNTIME_NS, MAX_ROUNDS, MigrationPlan, Mode,
};
use nestwalk_report::parse_count;
use nestwalk_sim::scheme::guard::Tracking;
use serde::{Deserialize, Serialize};

/// Keys of a move and what they mean, in order.
pub const MIGRATION_KEYS: [(&str, &str); 8] = [
    ("at", "instructions of the VM after which it begins; 0 unless given"),
    ("link", "what the link carries, as in 25Gbit/s; 10Gbit/s unless given"),
    ("latency", "the link's round trip, as in 20us; 50us unless given"),
    (
        "tracking",
        "how stores are logged: write-protect, dirty-bits, pml; write-protect unless given",
    ),
    ("max-downtime", "how long the VM may stand still, as in 1ms; 300ms unless given"),
    ("rounds", "rounds before it stops, whatever is left; 30 unless given"),
    ("mode", "pre-copy or post-copy; pre-copy unless given"),
    ("cancel", "instructions of the VM after which the move is given up"),
];

/// A VM's move to a host of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationExperiment {
    /// Name of the VM.
    pub vm: String,
    /// Instructions of the VM, since counting began, after which it begins.
    #[serde(default)]
    pub at: u64,
    /// Instructions after which it is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<u64>,
    /// Bits that the link carries in a second.
    #[serde(default = "link")]
    pub link_bits_per_s: u64,
    /// The link's round trip, in nanoseconds.
    #[serde(default = "latency")]
    pub latency_ns: u64,
    /// How stores are logged.
    #[serde(default = "tracking")]
    pub tracking: String,
    /// How long the VM may stand still, in nanoseconds.
    #[serde(default = "downtime")]
    pub max_downtime_ns: u64,
    /// Rounds before it stops, whatever is left.
    #[serde(default = "rounds")]
    pub max_rounds: u32,
    /// What moves first.
    #[serde(default = "mode")]
    pub mode: String,
}

const fn link() -> u64 {
    LINK_BITS
}
const fn latency() -> u64 {
    LATENCY_NS
}
const fn downtime() -> u64 {
    MAX_DOWNTIME_NS
}
const fn rounds() -> u32 {
    MAX_ROUNDS
}
fn tracking() -> String {
    Tracking::default().name().into()
}
fn mode() -> String {
    Mode::default().name().into()
}

impl MigrationExperiment {
    /// Reads `NAME; key=value; ...`.
    ///
    /// # Errors
    /// There is no name, or a key or value has no meaning.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split(';').map(str::trim);
        let vm = parts.next().unwrap_or_default();
        let form =
            || anyhow!("`{text}`: write NAME; at=20M; link=10Gbit/s, as in 'a; tracking=pml'");
        if vm.is_empty() || vm.contains('=') {
            return Err(form());
        }
        let mut all = Self {
            vm: vm.into(),
            at: 0,
            cancel: None,
            link_bits_per_s: link(),
            latency_ns: latency(),
            tracking: tracking(),
            max_downtime_ns: downtime(),
            max_rounds: rounds(),
            mode: mode(),
        };
        for part in parts.filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(form)?;
            let (key, value) = (key.trim(), value.trim());
            all.set(key, value).with_context(|| format!("migration of {vm}: {key}"))?;
        }
        all.plan()?;
        Ok(all)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "at" => self.at = parse_count(value)?,
            "cancel" => self.cancel = Some(parse_count(value)?),
            "link" => self.link_bits_per_s = bits_per_s(value)?,
            "latency" => self.latency_ns = nanoseconds(value)?,
            "max-downtime" => self.max_downtime_ns = nanoseconds(value)?,
            "rounds" => self.max_rounds = value.parse()?,
            "tracking" => self.tracking = value.into(),
            "mode" => self.mode = value.into(),
            _ => {
                let known: Vec<&str> = MIGRATION_KEYS.iter().map(|k| k.0).collect();
                bail!("there is no such key; there are {}", known.join(", "))
            }
        }
        Ok(())
    }

    /// The plan that it means.
    ///
    /// # Errors
    /// A name has no meaning.
    pub fn plan(&self) -> Result<MigrationPlan> {
        let tracking = Tracking::by_name(&self.tracking).ok_or_else(|| {
            let known = Tracking::ALL.map(|t| t.0).join(", ");
            anyhow!("migration of {}: tracking {}: there are {known}", self.vm, self.tracking)
        })?;
        let mode = Mode::by_name(&self.mode).ok_or_else(|| {
            let known = Mode::ALL.map(|m| m.0).join(", ");
            anyhow!("migration of {}: mode {}: there are {known}", self.vm, self.mode)
        })?;
        Ok(MigrationPlan {
            vm: self.vm.clone(),
            at: self.at,
            cancel: self.cancel,
            link_bits_per_s: self.link_bits_per_s as f64,
            latency_ns: self.latency_ns as f64,
            tracking,
            max_downtime_ns: self.max_downtime_ns as f64,
            max_rounds: self.max_rounds,
            mode,
        })
    }
}

/// A number and one of these units, as a whole number of the smallest.
fn scaled(text: &str, units: &[(&str, f64)], like: &str) -> Result<u64> {
    let text = text.trim();
    let read = || {
        let (unit, scale) = units.iter().find(|u| text.ends_with(u.0))?;
        let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        let value = number * scale;
        (0.0..9e18).contains(&value).then_some(value.round() as u64)
    };
    read().ok_or_else(|| {
        let known: Vec<&str> = units.iter().map(|u| u.0).collect();
        anyhow!("`{text}`: write a number and a unit ({}), as in {like}", known.join(", "))
    })
}

fn bits_per_s(text: &str) -> Result<u64> {
    let units =
        [("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3), ("bit/s", 1.0)];
    scaled(text, &units, "10Gbit/s")
}

pub(crate) fn nanoseconds(text: &str) -> Result<u64> {
    scaled(text, &[("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)], "300ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_a_name_and_keys() {
        let all = MigrationExperiment::parse(
            "db; at=20M; link=2.5Gbit/s; latency=20us; tracking=pml; max-downtime=1.5ms; rounds=7; \
             mode=post-copy; cancel=50M",
        )
        .unwrap();
        assert_eq!((all.vm.as_str(), all.at, all.cancel), ("db", 20_000_000, Some(50_000_000)));
        assert_eq!((all.link_bits_per_s, all.latency_ns), (2_500_000_000, 20_000));
        assert_eq!((all.max_downtime_ns, all.max_rounds), (1_500_000, 7));
        assert_eq!((all.tracking.as_str(), all.mode.as_str()), ("pml", "post-copy"));
        let plain = MigrationExperiment::parse("db").unwrap();
        assert_eq!((plain.link_bits_per_s, plain.max_downtime_ns), (10_000_000_000, 300_000_000));
        assert_eq!(toml::from_str::<MigrationExperiment>("vm = \"db\"").unwrap(), plain);
    }

    #[test]
    fn what_is_no_move_is_told() {
        for (text, says) in [
            ("", "write NAME"),
            ("link=1Gbit/s", "write NAME"),
            ("a; link", "write NAME"),
            ("a; speed=1", "there are at, link"),
            ("a; link=10", "as in 10Gbit/s"),
            ("a; link=-1Gbit/s", "as in 10Gbit/s"),
            ("a; latency=5", "as in 300ms"),
            ("a; tracking=best", "there are write-protect, dirty-bits, pml"),
            ("a; mode=warm", "there are pre-copy, post-copy"),
            ("a; rounds=x", "migration of a: rounds"),
        ] {
            let error = format!("{:#}", MigrationExperiment::parse(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
