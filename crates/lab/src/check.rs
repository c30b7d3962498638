//! What cannot be, found before anything runs.

use crate::experiment::{Experiment, in_memory};
use crate::sampling;
use crate::sources::{self, Kind};
use crate::words;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_hw::HPA_LIMIT;
use nestwalk_mm::PagePolicy;
use nestwalk_report::bytes;
use nestwalk_sim::compare::spec::{GuestSpec, MachineSpec};
use nestwalk_sim::schemes::Catalogue;
use nestwalk_types::GuestInfo;
use nestwalk_workloads::{FOOTPRINT_MAX, FOOTPRINT_MIN};

/// How messages name a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// As an option of the command line: `--guest-memory`.
    Arguments,
    /// As a key of a configuration file or a field of [`crate::Settings`]: `guest_memory`.
    Keys,
}

impl Origin {
    /// `guest_memory` as the user wrote it.
    pub fn name(self, key: &str) -> String {
        match self {
            Self::Arguments => format!("--{}", key.replace('_', "-")),
            Self::Keys => key.to_owned(),
        }
    }
}

/// Whether everything that is known before the run fits together.
///
/// # Errors
/// The first thing that does not, named as the user wrote it.
pub fn experiment(
    e: &Experiment,
    catalogue: &Catalogue,
    recorded: Option<&GuestInfo>,
    origin: Origin,
) -> Result<()> {
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
        in_memory(0.0, blocks).with_context(|| name(key))?;
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
    sampling::parse(&name("sample"), &e.sample, e.seed)?;
    machines(e, catalogue, recorded, origin)?;
    match recorded {
        Some(guest) => of_recorded(e, catalogue, guest, origin),
        None => memory(e, origin),
    }
}

/// Whether the experiment is about the recorded guest that its source is.
fn of_recorded(
    e: &Experiment,
    catalogue: &Catalogue,
    guest: &GuestInfo,
    origin: Origin,
) -> Result<()> {
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
    if let Some((key, _)) =
        of_modelled.into_iter().find(|o| o.1 && !e.has_modelled_guest(catalogue))
    {
        bail!(
            "{}: for modelled guests only, and every machine has the recorded one as it was; name page \
             sizes, such as nested:thp, to re-map it",
            name(key)
        );
    }
    if e.low_memory.is_some() && e.has_observed_guest(catalogue) {
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
                Origin::Keys => "approximate = true",
            }
        );
    }
    Ok(())
}

fn machines(
    e: &Experiment,
    catalogue: &Catalogue,
    recorded: Option<&GuestInfo>,
    origin: Origin,
) -> Result<()> {
    let guest = words::mode(&origin.name("guest_paging"), &e.guest_paging)?;
    let host = words::host_mode(&origin.name("host_paging"), &e.host_paging)?;
    let machines = origin.name("machines");
    if e.machines.is_empty() {
        bail!("{machines}: no machine is named; write for example native,shadow,nested");
    }
    // Controls that were added stand first: what was asked for is named before them.
    for name in e.machines.iter().rev() {
        let spec = MachineSpec::parse_in(catalogue, name, PagePolicy::Base);
        let spec = spec.with_context(|| machines.clone())?;
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
        words::machine(&spec, guest, host)?;
        if !e.sample.is_empty() {
            sampling::fits(&origin.name("sample"), &spec)?;
        }
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
    let guest = words::mode(&name("guest_paging"), &e.guest_paging)?;
    let room = words::process_bytes(guest);
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
                Origin::Keys => "populate = false",
            }
        );
    }
    Ok(())
}
