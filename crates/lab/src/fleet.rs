//! Several VMs on one host: what is asked for, and the fleet that it means.

use crate::experiment::{Experiment, VERSION};
use crate::merging::{Contents, MergeExperiment};
use crate::migration::MigrationExperiment;
use crate::session::{self, Work};
use crate::words;
use crate::{Given, Lab, Settings};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_capture::Step;
use nestwalk_fleet::device::Device;
use nestwalk_fleet::merging::MergePlan;
use nestwalk_fleet::replacement::Kind;
use nestwalk_fleet::{self as fleet, FleetOutcome, FleetPlan, FleetProgress, TURN, Vm};
use nestwalk_report::{parse_bytes, parse_count};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Keys of one VM and what they mean, in order.
pub const VM_KEYS: [(&str, &str); 13] = [
    ("machine", "as in --machines; nested unless given"),
    ("memory", "guest memory, as in 4GiB"),
    ("vcpus", "vCPUs, each on a core of its own while the VM runs"),
    ("core", "its first core: without it VMs share the first ones"),
    ("footprint", "memory that a workload or pattern works on"),
    ("accesses", "accesses after set-up; 0 for all"),
    ("seed", "decides every random choice"),
    ("zero", "pages of zeros, for --merge: a share, as in 10%"),
    ("common", "pages that other VMs with such pages have, too, for --merge: a share"),
    ("async-faults", "on or off: the guest is told of pages that its host reads"),
    ("reporting", "on or off: the guest reports free memory to its host"),
    (
        "guest-swap",
        "a guest that is short of memory swaps: the policy, as in --replacement, but lru",
    ),
    (
        "balloon",
        "on or off: a host that is short of memory asks the guest for pages, before it swaps",
    ),
];

/// One VM of a fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmExperiment {
    /// Its name.
    pub name: String,
    /// Its first core, if it has cores of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u32>,
    /// What its pages contain, for same-page merging.
    #[serde(default, skip_serializing_if = "Contents::is_nothing")]
    pub contents: Contents,
    /// Its guest is told of pages that its host reads, and runs another process meanwhile.
    #[serde(default = "yes")]
    pub async_faults: bool,
    /// Its guest reports free memory to its host.
    #[serde(default)]
    pub reporting: bool,
    /// Its host asks its balloon for pages, before it swaps.
    #[serde(default)]
    pub balloon: bool,
    /// What runs in it; of its machines the one that is no control.
    pub experiment: Experiment,
}

/// Several VMs on one host, with nothing left open: the file that repeats it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// Version of nestwalk that wrote the file.
    pub version: String,
    /// Cores of the host; 0 for as many as the VMs need.
    #[serde(default)]
    pub cores: u32,
    /// Instructions of a VM's turn.
    #[serde(default = "turn")]
    pub turn: u64,
    /// TLBs tell VMs apart.
    #[serde(default = "yes")]
    pub vpids: bool,
    /// Bytes of the host's memory; 0 for all that the VMs can ask for.
    #[serde(default)]
    pub host_memory: u64,
    /// Policy of page replacement.
    #[serde(default = "replacement")]
    pub replacement: String,
    /// Device to swap to.
    #[serde(default = "device")]
    pub swap: String,
    /// What TLBs and what caches cost is told apart.
    #[serde(default = "yes")]
    pub apart: bool,
    /// Pages of the same contents are merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<MergeExperiment>,
    /// VMs that move to other hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub migration: Vec<MigrationExperiment>,
    /// The VMs.
    pub vm: Vec<VmExperiment>,
}

const fn yes() -> bool {
    true
}
const fn turn() -> u64 {
    TURN
}
fn replacement() -> String {
    Kind::default().name().into()
}
fn device() -> String {
    Device::default().name.into()
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            version: VERSION.into(),
            cores: 0,
            turn: TURN,
            vpids: true,
            host_memory: 0,
            replacement: replacement(),
            swap: device(),
            apart: true,
            merge: None,
            migration: Vec::new(),
            vm: Vec::new(),
        }
    }
}

impl Fleet {
    /// The text of the configuration file that repeats it, in TOML.
    ///
    /// # Errors
    /// A value cannot be written in TOML: a number of 2^63 or more.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Whether a configuration file is one of a fleet.
    pub fn is_in(path: &Path) -> bool {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        toml::from_str::<toml::Table>(&text).is_ok_and(|table| table.contains_key("vm"))
    }

    fn plan(&self, threads: usize) -> Result<FleetPlan> {
        let replacement = words::replacement(&self.replacement)?;
        let device = Device::by_name(&self.swap).ok_or_else(|| {
            let known: Vec<&str> = Device::ALL.iter().map(|d| d.name).collect();
            anyhow!("swap {}: there are {}", self.swap, known.join(", "))
        })?;
        if self.turn == 0 {
            bail!("turn 0: a turn has 1 instruction at least");
        }
        Ok(FleetPlan {
            cores: (self.cores > 0).then_some(self.cores as usize),
            turn: self.turn,
            vpids: self.vpids,
            host_bytes: (self.host_memory > 0).then_some(self.host_memory),
            replacement,
            device,
            merging: self.merge.map(|merge| MergePlan {
                pages: merge.pages,
                sleep_ns: merge.sleep_ns as f64,
                shares: self.vm.iter().map(|vm| (vm.name.clone(), vm.contents.shares())).collect(),
            }),
            migrations: self
                .migration
                .iter()
                .map(MigrationExperiment::plan)
                .collect::<Result<_>>()?,
            apart: self.apart,
            threads,
        })
    }
}

/// What one `NAME=SOURCE; key=value; ...` asks for.
#[derive(Clone, Debug)]
pub struct VmText {
    /// Its name.
    pub name: String,
    /// Its first core.
    pub core: Option<u32>,
    /// As in [`VmExperiment`].
    pub async_faults: bool,
    /// As in [`VmExperiment`].
    pub reporting: bool,
    /// As in [`VmExperiment`].
    pub balloon: bool,
    /// What runs in it.
    pub settings: Settings,
}

/// Reads one `NAME=SOURCE; key=value; ...`, with all else as `base` has it.
///
/// # Errors
/// It has no name or no source, or a key or value has no meaning.
pub fn parse_vm(text: &str, base: &Settings) -> Result<VmText> {
    let mut parts = text.split(';').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let form = || {
        anyhow!(
            "`{text}`: write NAME=SOURCE; machine=shadow; memory=4GiB; vcpus=1, as in 'a=redis'"
        )
    };
    let (name, sources) = first.split_once('=').ok_or_else(form)?;
    let (name, sources) = (name.trim(), sources.split_whitespace().map(String::from));
    let sources: Vec<String> = sources.collect();
    if name.is_empty() || sources.is_empty() {
        return Err(form());
    }
    let mut settings = Settings { sources, machines: "nested".into(), ..base.clone() };
    let (mut core, mut async_faults, mut reporting, mut balloon) = (None, true, false, false);
    for part in parts.filter(|p| !p.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(form)?;
        let (key, value) = (key.trim(), value.trim());
        let wrong = || format!("VM {name}: {key}");
        match key {
            "machine" => settings.machines = value.into(),
            "memory" => settings.guest_memory = Some(parse_bytes(value).with_context(wrong)?),
            "footprint" => settings.footprint = Some(parse_bytes(value).with_context(wrong)?),
            "accesses" => settings.accesses = Some(parse_count(value).with_context(wrong)?),
            "vcpus" => settings.vcpus = Some(value.parse().with_context(wrong)?),
            "core" => core = Some(value.parse().with_context(wrong)?),
            "async-faults" => async_faults = switch(value).with_context(wrong)?,
            "reporting" => reporting = switch(value).with_context(wrong)?,
            "balloon" => balloon = switch(value).with_context(wrong)?,
            "guest-swap" => {
                words::replacement(value).with_context(wrong)?;
                settings.guest_swap = Some(value.into());
            }
            "seed" => settings.seed = value.parse().with_context(wrong)?,
            _ => {
                let known: Vec<&str> = VM_KEYS.iter().map(|k| k.0).collect();
                bail!("VM {name}: no key `{key}`; there are {}", known.join(", "))
            }
        }
    }
    if settings.machines.contains(',') {
        bail!("VM {name}: machine {}: a VM is one machine", settings.machines);
    }
    Ok(VmText { name: name.into(), core, async_faults, reporting, balloon, settings })
}

fn switch(value: &str) -> Result<bool> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => bail!("`{value}` is neither on nor off"),
    }
}

impl Lab {
    /// One VM of a fleet, as [`parse_vm`] reads it.
    ///
    /// # Errors
    /// See [`parse_vm`] and [`Lab::experiment`].
    pub fn vm(&self, text: &str, base: &Settings) -> Result<VmExperiment> {
        let (text, contents) = Contents::take(text)?;
        let VmText { name, core, async_faults, reporting, balloon, settings } =
            parse_vm(&text, base)?;
        let experiment = self.experiment(&settings).with_context(|| format!("VM {name}"))?;
        Ok(VmExperiment { name, core, contents, async_faults, reporting, balloon, experiment })
    }

    /// The fleet of a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, is no fleet, or one of another version.
    pub fn read_fleet(&self, path: &Path) -> Result<Fleet> {
        let read = || {
            let fleet: Fleet = toml::from_str(&std::fs::read_to_string(path)?)?;
            if fleet.version != VERSION {
                bail!(
                    "written by nestwalk {}, but this is nestwalk {VERSION}, whose results may differ",
                    fleet.version
                );
            }
            for vm in &fleet.vm {
                self.check(&vm.experiment).with_context(|| format!("VM {}", vm.name))?;
            }
            Ok(fleet)
        };
        read().with_context(|| path.display().to_string())
    }

    /// Runs a fleet to the ends of all its VMs, or until `stop` is set. `say` hears the steps until
    /// it runs, `progress` now and then how far it is.
    ///
    /// # Errors
    /// The VMs cannot be set up. What goes wrong later is in the outcome.
    pub fn run_fleet(
        &self,
        fleet: &Fleet,
        threads: usize,
        say: &mut dyn FnMut(Step<'_>),
        (stop, progress): (&AtomicBool, &mut dyn FnMut(FleetProgress)),
    ) -> Result<FleetOutcome> {
        let plan = fleet.plan(threads)?;
        let mut vms = Vec::new();
        for vm in &fleet.vm {
            let work = Work { threads: 1, series: None };
            let opened =
                session::open(&vm.experiment, self.catalogue(), Given::default(), &work, say)
                    .with_context(|| format!("VM {}", vm.name))?;
            let (plan, source) = opened.into_parts();
            let pinned = vm.core.map(|core| core as usize);
            let VmExperiment { async_faults, reporting, balloon, .. } = *vm;
            let name = vm.name.clone();
            vms.push(Vm { name, plan, source, pinned, async_faults, reporting, balloon });
        }
        Ok(fleet::run(&plan, vms, stop, progress)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VmText> {
        parse_vm(text, &Settings::default())
    }

    #[test]
    fn a_vm_is_a_name_sources_and_keys() {
        let text = "db = gups zipf ; machine=shadow:4k+2m; memory=4GiB;vcpus=2; core=1; seed=7";
        let VmText { name, core, async_faults, reporting, settings: s, .. } = parse(text).unwrap();
        assert_eq!((name.as_str(), core, async_faults, reporting), ("db", Some(1), true, false));
        assert!(!parse("a=gups; async-faults=off").unwrap().async_faults);
        assert!(parse("a=gups; reporting=on").unwrap().reporting);
        assert_eq!(
            (s.sources, s.machines.as_str()),
            (vec!["gups".into(), "zipf".into()], "shadow:4k+2m")
        );
        assert_eq!((s.guest_memory, s.vcpus, s.seed), (Some(4 << 30), Some(2), 7));
    }

    #[test]
    fn what_is_no_vm_is_told() {
        for (text, says) in [
            ("gups", "write NAME=SOURCE"),
            ("=gups", "write NAME=SOURCE"),
            ("a=", "write NAME=SOURCE"),
            ("a=gups; memroy=1GiB", "no key `memroy`; there are machine, memory, vcpus"),
            ("a=gups; memory=x", "VM a: memory"),
            ("a=gups; async-faults=maybe", "VM a: async-faults: `maybe` is neither on nor off"),
            ("a=gups; machine=nested,shadow", "a VM is one machine"),
            ("a=gups; guest-swap=best", "VM a: guest-swap: replacement best: there are lru, fifo"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
