//! The guests of a comparison: modelled, re-mapped, observed.

use crate::compare::spec::{DimensionSpec, GuestSpec, MachineSpec};
use crate::compare::{CompareError, Plan};
use crate::replacement::OfGuest;
use nestwalk_mm::{
    DroppedRun, GuestConfig, GuestStats, ModelledGuest, ObservedGuest, ObservedStats, PagePolicy,
    PhysicalMemory, PlacementKind, Remap, RemapStats, SwapStats,
};
use nestwalk_types::{Batch, Gpa, GuestBatch, GuestInfo, SourceInfo};

/// What a guest did, whatever its kind.
#[derive(Clone, PartialEq, Debug)]
pub enum GuestOutcome {
    /// A modelled one, with the processes of the source.
    Modelled(GuestStats),
    /// A modelled one, with the processes of a recorded guest.
    Remapped {
        /// What its kernel did.
        guest: GuestStats,
        /// What was made of the recording.
        remap: RemapStats,
        /// What results must name, a sentence each.
        approximations: Vec<String>,
    },
    /// A recorded one.
    Observed {
        /// What its kernel did.
        stats: ObservedStats,
        /// Some of the runs that were dropped.
        examples: Vec<DroppedRun>,
    },
}

impl GuestOutcome {
    /// What a modelled kernel did, with whatever processes.
    pub const fn modelled(&self) -> Option<&GuestStats> {
        match self {
            Self::Modelled(stats) | Self::Remapped { guest: stats, .. } => Some(stats),
            Self::Observed { .. } => None,
        }
    }
}

/// The guest of some machines.
pub enum Guest {
    /// Its kernel is a model's.
    Modelled(Box<ModelledGuest>),
    /// A recording's processes under a model's kernel.
    Remapped(Box<Remapped>),
    /// As it was recorded.
    Observed(Box<ObservedGuest>),
}

/// A recorded guest's processes on a modelled guest.
pub struct Remapped {
    remap: Remap,
    /// What the processes of the recording did in the current batch.
    plain: Batch,
    guest: ModelledGuest,
}

impl Guest {
    /// The guest that a machine of the plan asks for.
    ///
    /// # Errors
    /// There is nothing observed, or the guest cannot be.
    pub fn new(plan: &Plan, spec: &MachineSpec, info: &SourceInfo) -> Result<Self, CompareError> {
        Ok(match (spec.guest, &info.guest) {
            (GuestSpec::Observed, Some(recorded)) => {
                if let Some(kind) = plan.guest_swap {
                    let reason =
                        "a recorded kernel has done what it did; name 4k in place of `observed`";
                    let (guest, policy) = (spec.guest.name(), kind.name());
                    return Err(CompareError::Swap { guest, policy, reason });
                }
                Self::Observed(Box::new(ObservedGuest::new(recorded)?))
            }
            (GuestSpec::Observed, None) => {
                let (machine, source_name) = (spec.name.clone(), info.name.clone());
                return Err(CompareError::NothingObserved { machine, source_name });
            }
            (GuestSpec::Modelled(policies), Some(recorded)) => {
                Self::Remapped(Box::new(remapped(plan, policies, recorded)?))
            }
            (GuestSpec::Modelled(policies), None) => {
                Self::Modelled(Box::new(modelled(plan, policies)?))
            }
        })
    }

    /// Deals with a batch of the source. Parts of the output that are complete go to `sink`, the last
    /// one stays in `output`.
    ///
    /// # Errors
    /// The source says what no guest of its kind does, or the guest has no memory left.
    pub fn process<'a>(
        &mut self,
        spec: GuestSpec,
        batch: &Batch,
        output: &'a mut GuestBatch,
        sink: &'a mut nestwalk_mm::Sink<'a>,
    ) -> Result<(), CompareError> {
        let modelled = |source| CompareError::Guest { guest: spec.name(), source };
        match self {
            Self::Modelled(guest) => guest.process_in_parts(batch, output, sink).map_err(modelled),
            Self::Observed(guest) => Ok(guest.process(batch, output)?),
            Self::Remapped(inner) => {
                let Remapped { remap, plain, guest } = inner.as_mut();
                let remapped = remap.process(batch, plain);
                guest.process_in_parts(plain, output, sink).map_err(modelled)?;
                remapped.map_err(|source| CompareError::Remap { guest: spec.name(), source })
            }
        }
    }

    /// Its physical memory, if its kernel is modelled.
    pub fn physical(&self) -> Option<&PhysicalMemory<Gpa>> {
        self.modelled().map(|guest| &guest.memory().physical)
    }

    /// The same as a modelled guest.
    const fn modelled(&self) -> Option<&ModelledGuest> {
        match self {
            Self::Modelled(guest) => Some(guest),
            Self::Remapped(inner) => Some(&inner.guest),
            Self::Observed(_) => None,
        }
    }

    /// What it and its swap device did to each other, if it has one.
    pub fn swap_stats(&self) -> Option<SwapStats> {
        self.modelled()?.swap_stats()
    }

    /// Its balloon driver takes so many pages, as far as it can; see [`ModelledGuest::inflate`].
    ///
    /// # Errors
    /// The guest cannot go on.
    pub fn inflate(
        &mut self,
        spec: GuestSpec,
        pages: u64,
        output: &mut GuestBatch,
    ) -> Result<Vec<Gpa>, CompareError> {
        let inflated = match self {
            Self::Modelled(guest) => guest.inflate(pages, output),
            Self::Remapped(inner) => inner.guest.inflate(pages, output),
            Self::Observed(_) => Ok(Vec::new()),
        };
        inflated.map_err(|source| CompareError::Guest { guest: spec.name(), source })
    }

    /// What it did.
    pub fn outcome(&self) -> GuestOutcome {
        match self {
            Self::Modelled(guest) => GuestOutcome::Modelled(guest.stats()),
            Self::Observed(guest) => {
                GuestOutcome::Observed { stats: guest.stats(), examples: guest.examples().to_vec() }
            }
            Self::Remapped(inner) => GuestOutcome::Remapped {
                guest: inner.guest.stats(),
                remap: inner.remap.stats(),
                approximations: inner.remap.approximations(),
            },
        }
    }
}

/// The plan's guest is the recorded one.
pub(crate) fn check(plan: &Plan, guest: &GuestInfo) -> Result<(), CompareError> {
    let same = plan.guest_mode.name == guest.paging
        && plan.guest_bytes == guest.memory_bytes
        && plan.vcpus == usize::from(guest.vcpus);
    if same {
        return Ok(());
    }
    let (mode, bytes, vcpus) = (plan.guest_mode.name, plan.guest_bytes, plan.vcpus);
    Err(CompareError::OtherGuest {
        guest: guest.clone(),
        plan: format!("{mode}, {bytes} and {vcpus}"),
    })
}

fn remapped(
    plan: &Plan,
    spec: DimensionSpec,
    recorded: &GuestInfo,
) -> Result<Remapped, CompareError> {
    let remap = Remap::new(recorded, plan.mappings.clone())
        .map_err(|source| CompareError::Remap { guest: spec.name(), source })?;
    Ok(Remapped { remap, plain: Batch::default(), guest: modelled(plan, spec)? })
}

fn modelled(plan: &Plan, spec: DimensionSpec) -> Result<ModelledGuest, CompareError> {
    let config = GuestConfig {
        policy: spec.pages,
        placement: spec.placement,
        low_bytes: plan.low_bytes,
        fragmentation: plan.fragmentation.0,
        bad_frames: plan.bad_frames,
        daemons: plan.daemons.config(&plan.profile),
        seed: plan.seed,
        pcids: plan.pcids && plan.guest_mode.address_bits() > 32,
        ..GuestConfig::new(plan.guest_mode, plan.guest_bytes)
    };
    let guest = spec.name();
    let made = ModelledGuest::new(config);
    let mut made = made.map_err(|source| CompareError::Guest { guest: guest.clone(), source })?;
    if let Some(kind) = plan.guest_swap {
        let wrong =
            |reason| CompareError::Swap { guest: guest.clone(), policy: kind.name(), reason };
        if spec.pages != PagePolicy::Base || spec.placement != PlacementKind::default() {
            return Err(wrong("pages of a guest that swaps are of 4 KiB, anywhere; name 4k"));
        }
        let choice = OfGuest::new(kind).ok_or_else(|| {
            wrong("no kernel hears of every use; take clock, two-lists, mglru, working-set or fifo")
        })?;
        made.swap_by(Box::new(choice));
    }
    Ok(made)
}
