//! A profile of what was measured, over the nearest that is built in.

use crate::estimate::{Figure, Index, Level};
use crate::survey::Survey;
use nestwalk_hw::profile::{IndexProfile, ProfileError, TlbProfile};
use nestwalk_hw::{Profile, Sourced};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a profile's file says: keys and tables as in `crates/hw/profiles`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Written {
    /// The profile that says all else.
    pub base: &'static str,
    /// The processor in words.
    pub description: String,
    /// Single numbers of the core.
    pub core: BTreeMap<&'static str, Sourced>,
    /// Single numbers of the software.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub software: BTreeMap<&'static str, Sourced>,
    /// First level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub l1d_tlb: Vec<TlbProfile>,
    /// Second level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub l2_tlb: Vec<TlbProfile>,
}

/// Where a figure comes from, in a profile.
fn measured(why: &str) -> String {
    format!("measured: nestwalk measure: {why}")
}

/// The profile of a survey.
///
/// # Errors
/// The base cannot be read, which a test rules out.
pub fn profile(survey: &Survey) -> Result<Written, ProfileError> {
    let base = survey.processor.nearest_profile();
    let arrays = Profile::load(base)?;
    let mut core = BTreeMap::new();
    let mut add = |key, figure: &Figure<f64>, decimals: i32| {
        if let Figure::Known { value, source } = figure {
            let scale = 10_f64.powi(decimals);
            let value = (value * scale).round() / scale;
            core.insert(key, Sourced { value, source: measured(source) });
        }
    };
    let mhz = "a chain of multiplications and exclusive ors";
    add("frequency_mhz", &Figure::known(survey.mhz, mhz), 0);
    add("l2_tlb_hit_cycles", &survey.small.l2_hit_cycles, 1);
    add("walk_exposed", &survey.walks.exposed, 2);
    let kernel = &survey.kernel;
    if let (Some(process), Some(thread)) =
        (kernel.process_switch_ns.get(), kernel.thread_switch_ns.get())
        && process > thread
    {
        let cycles = (process - thread) * survey.mhz / 1e3;
        let why =
            "a switch to another process less one to another thread, and what TLBs lose by it";
        add("cr3_load_cycles", &Figure::known(cycles, why), 0);
    }
    let mut software = BTreeMap::new();
    if let Figure::Known { value, source } = &kernel.load_fault_ns {
        let cost = Sourced { value: value.round(), source: measured(source) };
        software.insert("guest_fault_ns", cost);
    }
    if let Figure::Known { value, source } = &kernel.shootdown_ns {
        let cost = Sourced { value: value.round(), source: measured(source) };
        software.insert("shootdown_ns", cost);
    }
    Ok(Written {
        base,
        description: format!("{}, measured; what was not is {base}'s", survey.processor.name),
        core,
        software,
        l1d_tlb: level(survey.small.l1.get(), large(survey, |g| &g.l1), &arrays.l1d_tlb, base),
        l2_tlb: level(survey.small.l2.get(), large(survey, |g| &g.l2), &arrays.l2_tlb, base),
    })
}

fn large(
    survey: &Survey,
    of: impl Fn(&crate::estimate::Geometry) -> &Figure<Level>,
) -> Option<&Level> {
    survey.large.get().and_then(|g| of(g).get())
}

/// Arrays of a level: a list replaces the base's, so what was not measured is said again.
fn level(
    small: Option<&Level>,
    large: Option<&Level>,
    base: &[TlbProfile],
    name: &str,
) -> Vec<TlbProfile> {
    let Some(small) = small else { return Vec::new() };
    let one = |array: &TlbProfile| {
        let holds = |size: &str| array.sizes.iter().any(|s| s == size);
        let mut array = match (holds("4k"), holds("2m"), large) {
            (true, ..) => with(array, small, "4 KiB"),
            (false, true, Some(large)) => with(array, large, "2 MiB"),
            _ => {
                let mut same = array.clone();
                same.source = format!("carried over from {name}: {}", array.source);
                return same;
            }
        };
        if array.sizes.len() > 1 {
            array.source += &format!("; that other sizes share it is carried over from {name}");
        }
        array
    };
    base.iter().map(one).collect()
}

/// An array with what was measured of it.
fn with(array: &TlbProfile, level: &Level, pages: &str) -> TlbProfile {
    let mut source = measured(&format!("{pages}: {}", level.source));
    if level.replacement.get().is_none() {
        source += "; replacement unknown: LRU";
    }
    // Sets that are no power of two have a linear index.
    let index = level.index.get().filter(|_| (level.entries / level.ways).is_power_of_two());
    TlbProfile {
        entries: level.entries,
        ways: level.ways,
        index: index.and_then(named),
        replacement: level.replacement.get().cloned().filter(|name| name != "lru"),
        source,
        ..array.clone()
    }
}

/// The index as profiles have it; nothing of a linear one.
fn named(index: &Index) -> Option<IndexProfile> {
    if index.is_linear() {
        None
    } else if index.is_folded() {
        Some(IndexProfile::Named(format!("xor-{}", index.bits())))
    } else {
        Some(IndexProfile::Xor { xor: index.xor.clone() })
    }
}
