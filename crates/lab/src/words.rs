//! Words for paging modes and page sizes, and what goes together.

use anyhow::{Context, Result, anyhow, bail};
use nestwalk_mm::PagePolicy;
use nestwalk_sim::compare::spec::{GuestSpec, MachineSpec, PAGES};
use nestwalk_tables::{MODES, Mode};

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

/// The paging mode of that name for nested tables and the host; `option` is for messages.
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

/// The page policy of that name; `option` is for messages.
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
