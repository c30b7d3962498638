//! Several VMs on one host.

use clap::Args as ClapArgs;
use nestwalk_fleet::device::Device;
use nestwalk_fleet::replacement::Kind;
use nestwalk_lab::{Fleet, MERGE_KEYS, MIGRATION_KEYS};

/// Options of `compare` for several VMs on one host.
#[derive(ClapArgs, Debug, Clone)]
#[command(next_help_heading = "Several VMs on one host")]
pub struct FleetArgs {
    /// A VM: 'NAME=SOURCE; machine=shadow:4k+4k; memory=4GiB; vcpus=2', given once for each; other
    /// keys: core, footprint, accesses, seed, async-faults, reporting, guest-swap,
    /// balloon, zero, common. With it
    /// --host-memory is the memory that all of them share
    #[arg(long = "vm", value_name = "VM")]
    pub vms: Vec<String>,
    /// Cores of the host [default: as many as the VMs need]
    #[arg(long, value_name = "N", requires = "vms")]
    pub cores: Option<u32>,
    /// Instructions of a VM's turn where VMs share cores [default: 6M]
    #[arg(long, value_name = "COUNT", requires = "vms")]
    pub turn: Option<String>,
    /// TLBs do not tell VMs apart: each change of VMs empties them
    #[arg(long, requires = "vms")]
    pub no_vpids: bool,
    /// Which page a host that is short of memory takes back
    #[arg(long, value_name = "POLICY", requires = "vms", help = replacements())]
    pub replacement: Option<String>,
    /// Where such pages go
    #[arg(long, value_name = "DEVICE", requires = "vms", help = devices())]
    pub swap: Option<String>,
    /// Pages of the same contents are merged
    #[arg(long, value_name = "HOW", requires = "vms", help = merging())]
    pub merge: Option<String>,
    /// A VM that moves to another host while it runs, given once for each
    #[arg(long = "migrate", value_name = "MOVE", requires = "vms", help = migrations())]
    pub migrations: Vec<String>,
    /// Do not tell apart what TLBs and what caches cost: half the work
    #[arg(long, requires = "vms")]
    pub not_apart: bool,
}

fn merging() -> String {
    let keys = MERGE_KEYS.map(|(key, meaning)| format!("{key}, {meaning}"));
    format!(
        "Pages of the same contents are merged as Linux's KSM does it: 'ksm; pages=1000; sleep=1ms'. Keys: \
         {}. What VMs' pages contain their keys `zero` and `common` state",
        keys.join("; ")
    )
}

fn migrations() -> String {
    let keys = MIGRATION_KEYS.map(|(key, meaning)| format!("{key}, {meaning}"));
    format!(
        "A VM that moves to another host while it runs: 'NAME; at=20M; link=10Gbit/s; tracking=pml; \
         max-downtime=1ms', given once for each. Keys: {}",
        keys.join("; ")
    )
}

fn replacements() -> String {
    let all = Kind::ALL.map(|(name, _, meaning)| format!("{name}, {meaning}"));
    format!(
        "Which page a host that is short of memory takes back: {} [default: {}]",
        all.join("; "),
        Fleet::default().replacement
    )
}

fn devices() -> String {
    let all = Device::ALL.map(|d| d.name);
    format!("Where it puts them: {} [default: {}]", all.join(", "), Fleet::default().swap)
}
