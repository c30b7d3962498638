//! What cannot be, found before anything runs.

use crate::args::{CompareArgs, PopulateArg};
use crate::experiment::{self, Experiment};
use crate::sources::{self, Kind};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_hw::HPA_LIMIT;
use nestwalk_mm::PagePolicy;
use nestwalk_report::{bytes, parse_bytes};
use nestwalk_sim::compare::spec::{GuestSpec, MachineSpec, PAGES};
use nestwalk_tables::{MODES, Mode};
use nestwalk_types::GuestInfo;
use nestwalk_workloads::{FOOTPRINT_MAX, FOOTPRINT_MIN};

/// Where a value came from, and so what it is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The command line.
    Arguments,
    /// A configuration file.
    File,
}

impl Origin {
    /// `guest_memory` as the user wrote it.
    fn name(self, key: &str) -> String {
        match self {
            Self::Arguments => format!("--{}", key.replace('_', "-")),
            Self::File => key.to_owned(),
        }
    }
}

/// The paging mode of that name; `option` is for messages.
///
/// # Errors
/// There is none.
pub fn mode(option: &str, name: &str) -> Result<&'static Mode> {
    Mode::by_name(name).ok_or_else(|| {
        let known = MODES.iter().map(|m| m.name).collect::<Vec<_>>().join(", ");
        anyhow!("{option} {name}: no such paging mode; there are: {known}")
    })
}

/// The paging mode of that name for nested tables and the host.
///
/// # Errors
/// There is none, or the host cannot have it.
pub fn host_mode(option: &str, name: &str) -> Result<&'static Mode> {
    let found = mode(option, name)?;
    if found.levels < 4 {
        let fit = MODES.iter().filter(|m| m.levels >= 4).map(|m| m.name);
        bail!(
            "{option} {name}: nested tables and the host's have 64-bit addresses; there are: {}",
            fit.collect::<Vec<_>>().join(", ")
        );
    }
    Ok(found)
}

/// The page policy of that name.
///
/// # Errors
/// There is none.
pub fn pages(option: &str, name: &str) -> Result<PagePolicy> {
    PagePolicy::by_name(name).ok_or_else(|| {
        anyhow!("{option} {name}: no such page size; there are: {}", PAGES.join(", "))
    })
}

/// Bytes of addresses that a process has: the lower half, or 3 GiB of 4 beside a 32-bit kernel.
pub const fn process_bytes(mode: &Mode) -> u64 {
    match mode.address_bits() {
        32 => 3 << 30,
        bits => 1 << (bits - 1),
    }
}

/// Whether a machine can be built with these paging modes.
///
/// # Errors
/// A dimension has no pages of the size asked for.
pub fn machine(spec: &MachineSpec, guest: &'static Mode, host: &'static Mode) -> Result<()> {
    let modelled = match spec.guest {
        GuestSpec::Observed => None,
        GuestSpec::Modelled(policies) => Some(policies),
    };
    let dimensions = [(modelled, guest, "guest"), (spec.host, host, "host")];
    for (dimension, mode, which) in dimensions {
        if let Some(dimension) = dimension {
            let name = &spec.name;
            dimension.pages.check(mode).with_context(|| format!("machine `{name}`: {which}"))?;
        }
    }
    Ok(())
}

/// Whether everything that is known before the run fits together.
///
/// # Errors
/// The first thing that does not, named as the user wrote it.
pub fn experiment(e: &Experiment, recorded: Option<&GuestInfo>, origin: Origin) -> Result<()> {
    let name = |key| origin.name(key);
    for (key, value) in [("vcpus", u64::from(e.vcpus)), ("quantum", e.quantum)] {
        if value == 0 {
            bail!("{} 0: at least 1 is needed", name(key));
        }
    }
    for (key, degree) in [
        ("guest_fragmentation", e.guest_fragmentation),
        ("host_fragmentation", e.host_fragmentation),
    ] {
        if !(0.0..=1.0).contains(&degree) {
            bail!("{} {degree}: must be from 0 to 1", name(key));
        }
    }
    for (key, blocks) in
        [("guest_free_blocks", &e.guest_free_blocks), ("host_free_blocks", &e.host_free_blocks)]
    {
        experiment::in_memory(0.0, blocks).with_context(|| name(key))?;
    }
    if let Some(low) = e.low_memory {
        let option = if origin == Origin::Arguments { "--io-gap reclaimed" } else { "low_memory" };
        nestwalk_mm::reclaimed_memory_map::<nestwalk_types::Gpa>(e.guest_memory, low)
            .with_context(|| option.to_owned())?;
    }
    e.bad_frames()?;
    e.daemons.check().map_err(|reason| anyhow!(reason)).with_context(|| name("daemons"))?;
    let trace_format = sources::trace_format(&e.trace_format);
    trace_format.with_context(|| name("trace_format"))?;
    let ways = [!e.sources.is_empty(), !e.lackey.is_empty(), e.guest.is_some()];
    if ways.iter().filter(|w| **w).count() != 1 {
        bail!("sources, a command for lackey or a guest must be named, and one of them only");
    }
    machines(e, recorded, origin)?;
    match recorded {
        Some(guest) => of_recorded(e, guest, origin),
        None => memory(e, origin),
    }
}

/// Whether the options leave a recorded guest what it was.
///
/// # Errors
/// The first that would make another of it, or has no meaning for one.
pub fn options_of_recorded(args: &CompareArgs, guest: &GuestInfo) -> Result<()> {
    let given: [(&str, bool); 4] = [
        ("--footprint", args.footprint.is_some()),
        ("--quantum", args.quantum.is_some()),
        ("--populate", args.populate != PopulateArg::Auto),
        ("--lackey", args.lackey),
    ];
    if let Some((option, _)) = given.into_iter().find(|g| g.1) {
        bail!("{option} is for workloads, patterns and programs; the source is a recorded guest");
    }
    if let Some(text) = &args.guest_memory {
        let size = parse_bytes(text).context("--guest-memory")?;
        if size != guest.memory_bytes {
            bail!("--guest-memory {text}: the recorded guest has {}", bytes(guest.memory_bytes));
        }
    }
    if let Some(name) = args.guest_paging.as_ref().filter(|name| **name != guest.paging) {
        bail!("--guest-paging {name}: the recorded guest has {} paging", guest.paging);
    }
    if let Some(vcpus) = args.vcpus.filter(|n| *n != guest.vcpus) {
        bail!("--vcpus {vcpus}: the recorded guest has {}", guest.vcpus);
    }
    Ok(())
}

/// Whether the experiment is about the recorded guest that its source is.
fn of_recorded(e: &Experiment, guest: &GuestInfo, origin: Origin) -> Result<()> {
    let name = |key| origin.name(key);
    for (key, said, is) in [
        ("guest_memory", e.guest_memory.to_string(), guest.memory_bytes.to_string()),
        ("guest_paging", e.guest_paging.clone(), guest.paging.clone()),
        ("vcpus", e.vcpus.to_string(), guest.vcpus.to_string()),
    ] {
        if said != is {
            bail!("{} {said}: the recorded guest has {is}", name(key));
        }
    }
    let of_modelled = [
        ("guest_fragmentation", e.guest_fragmentation != 0.0 || !e.guest_free_blocks.is_empty()),
        ("guest_bad", e.guest_bad.is_some()),
        ("guest_bad_at", !e.guest_bad_at.is_empty()),
        (if origin == Origin::Arguments { "no_pcids" } else { "pcids" }, !e.pcids),
    ];
    if let Some((key, _)) = of_modelled.into_iter().find(|o| o.1 && !e.has_modelled_guest()) {
        bail!(
            "{}: for modelled guests only, and every machine has the recorded one as it was; name page \
             sizes, such as nested:thp, to re-map it",
            name(key)
        );
    }
    if e.low_memory.is_some() && has_observed(e) {
        let option = if origin == Origin::Arguments { "--io-gap reclaimed" } else { "low_memory" };
        bail!(
            "{option}: a recorded guest has its memory where it had it; name page sizes, such as \
             vmm-direct:4k, to re-map it"
        );
    }
    if e.host_memory > HPA_LIMIT {
        let (size, most) = (bytes(e.host_memory), bytes(HPA_LIMIT));
        bail!("{} {size}: at most {most} of memory can be modelled", name("host_memory"));
    }
    let too_fine = e.profile.too_fine_for(&guest.filter);
    if let Some(first) = too_fine.first().filter(|_| !e.approximate) {
        bail!(
            "profile {}: {first}. Use another profile, record with --no-filter, or accept an \
             approximation with {}",
            e.profile.name,
            match origin {
                Origin::Arguments => "--approximate",
                Origin::File => "approximate = true",
            }
        );
    }
    Ok(())
}

/// Whether a machine has the recorded guest as it was.
fn has_observed(e: &Experiment) -> bool {
    e.machines.iter().any(|name| {
        MachineSpec::parse(name, PagePolicy::Base).is_ok_and(|m| m.guest == GuestSpec::Observed)
    })
}

fn machines(e: &Experiment, recorded: Option<&GuestInfo>, origin: Origin) -> Result<()> {
    let guest = mode(&origin.name("guest_paging"), &e.guest_paging)?;
    let host = host_mode(&origin.name("host_paging"), &e.host_paging)?;
    let machines = origin.name("machines");
    if e.machines.is_empty() {
        bail!("{machines}: no machine is named; write for example native,shadow,nested");
    }
    // Controls that were added stand first: what was asked for is named before them.
    for name in e.machines.iter().rev() {
        let spec = MachineSpec::parse(name, PagePolicy::Base).with_context(|| machines.clone())?;
        if spec.name != *name {
            bail!("{machines}: `{name}` leaves something open; write `{}`", spec.name);
        }
        if spec.guest == GuestSpec::Observed && recorded.is_none() {
            bail!(
                "{machines}: `{name}`: the source is no recorded guest, so there is nothing observed; \
                 name page sizes, such as {}:4k",
                spec.scheme.name
            );
        }
        machine(&spec, guest, host)?;
    }
    Ok(())
}

fn memory(e: &Experiment, origin: Origin) -> Result<()> {
    let name = |key| origin.name(key);
    for (key, size) in [("guest_memory", e.guest_memory), ("host_memory", e.host_memory)] {
        if size > HPA_LIMIT {
            let (size, most) = (bytes(size), bytes(HPA_LIMIT));
            bail!("{} {size}: at most {most} of memory can be modelled", name(key));
        }
    }
    let kinds: Vec<Kind> = e.sources.iter().filter_map(|s| sources::kind(s)).collect();
    let sized = kinds.iter().filter(|k| matches!(k, Kind::Workload | Kind::Pattern)).count() as u64;
    if sized == 0 {
        return Ok(());
    }
    let footprint = name("footprint");
    let size = bytes(e.footprint);
    let guest = mode(&name("guest_paging"), &e.guest_paging)?;
    let room = process_bytes(guest);
    if e.footprint > room {
        bail!(
            "{footprint} {size}: a process has {} of addresses under {} paging",
            bytes(room),
            guest.name
        );
    }
    let takes = FOOTPRINT_MIN..=FOOTPRINT_MAX;
    if kinds.contains(&Kind::Workload) && !takes.contains(&e.footprint) {
        let (least, most) = (bytes(FOOTPRINT_MIN), bytes(FOOTPRINT_MAX));
        bail!("{footprint} {size}: workloads take {least} to {most}");
    }
    let needed = e.footprint.saturating_mul(sized);
    if e.populate && needed > e.guest_memory {
        bail!(
            "{} {}: less than the {} that is populated; give more of it, a smaller {footprint}, \
             or {}",
            name("guest_memory"),
            bytes(e.guest_memory),
            bytes(needed),
            match origin {
                Origin::Arguments => "--populate no",
                Origin::File => "populate = false",
            }
        );
    }
    Ok(())
}
