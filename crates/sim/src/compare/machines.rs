//! The machines of a plan, each with memory of its own or on a host that is there already.

use super::spec::{DimensionSpec, MachineSpec};
use super::{CompareError, Plan};
use crate::machine::DynMachine;
use crate::scheme::{MachineConfig, MachineError};
use nestwalk_mm::{
    HostConfig, HostMemory, KERNEL_BYTES, PhysicalMemory, pc_memory_map, reclaimed_memory_map,
};
use nestwalk_types::Hpa;

/// Why a VM among others has no nodes.
const SHARED_NODES: &str = "nodes: the memory and caches of a host that several VMs share are those of one node; \
                            leave it out, or run the machine by itself with `compare`";

/// Makes one machine of the plan.
///
/// # Errors
/// Its memory or its scheme cannot be set up.
pub fn machine(plan: &Plan, spec: &MachineSpec) -> Result<Box<dyn DynMachine>, CompareError> {
    machine_in(plan, spec, None)
}

/// What a machine of the plan is made of.
///
/// # Errors
/// Its memory cannot be set up.
pub fn configuration(plan: &Plan, spec: &MachineSpec) -> Result<MachineConfig, CompareError> {
    configuration_in(plan, spec, None)
}

/// The host of a machine, as configured.
pub fn host_config(plan: &Plan, host: DimensionSpec) -> HostConfig {
    HostConfig {
        bytes: plan.host_bytes,
        mode: plan.host_mode.own(),
        policy: host.pages,
        placement: host.placement,
        fragmentation: plan.fragmentation.1,
        // The host's memory is another machine's: its holes are elsewhere.
        seed: plan.seed ^ 0x686f_7374,
        kernel_bytes: KERNEL_BYTES,
        daemons: plan.daemons.config(&plan.profile),
    }
}

/// As [`machine`], in the physical memory of a host that is there already.
///
/// # Errors
/// As [`machine`].
pub fn machine_in(
    plan: &Plan,
    spec: &MachineSpec,
    physical: Option<PhysicalMemory<Hpa>>,
) -> Result<Box<dyn DynMachine>, CompareError> {
    if physical.is_some() && spec.vmm.nodes.nodes.is_some() {
        let (machine, reason) = (spec.name.clone(), SHARED_NODES.into());
        return Err(MachineError::Variant { machine, reason }.into());
    }
    let built = (spec.scheme.build)(configuration_in(plan, spec, physical)?);
    Ok(built.map_err(|e| e.of(&spec.name))?)
}

fn configuration_in(
    plan: &Plan,
    spec: &MachineSpec,
    physical: Option<PhysicalMemory<Hpa>>,
) -> Result<MachineConfig, CompareError> {
    let memory = |host: DimensionSpec| {
        let config = host_config(plan, host);
        let slots = match plan.low_bytes {
            Some(low) => reclaimed_memory_map(plan.guest_bytes, low)?,
            None => pc_memory_map(plan.guest_bytes),
        };
        let physical = match physical {
            Some(physical) => physical,
            None => HostMemory::physical_memory(&config)?,
        };
        HostMemory::on(physical, &config, &slots, plan.host_pages.as_deref())
    };
    let wrong = |source| CompareError::Memory { machine: spec.name.clone(), source };
    let host = spec.host.map(memory).transpose().map_err(wrong)?;
    Ok(MachineConfig {
        name: spec.name.clone(),
        variant: spec.variant.clone(),
        vmm: spec.vmm,
        profile: plan.profile.clone(),
        guest_mode: plan.guest_mode,
        nested_mode: plan.host_mode,
        vcpus: plan.vcpus,
        guest_bytes: plan.guest_bytes,
        host,
        verify: plan.verify,
    })
}
