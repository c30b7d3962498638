//! The scheme: a guest's side over a host's.

use super::guest::{GuestSide, GuestTable, RadixGuest};
use super::host::{HostSide, HostTable, NoHost};
use super::{Structure, Supply};
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::machine::{DynMachine, Machine};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, PageTableBytes, Platform, Processor, Report,
    Scheme, Software, TableState,
};
use nestwalk_hw::Translation;
use nestwalk_hw::profile::WalkCacheProfile;
use nestwalk_types::{Address, Gpa, PageSize};

/// Page tables of two kinds, or of one, that need not be trees.
pub struct Tabled<G, H> {
    /// The guest's.
    pub guest: G,
    /// The host's.
    pub host: H,
}

/// Which dimensions have a structure in place of radix tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sides {
    /// Guest and host.
    Both,
    /// The host, under a radix guest.
    Host,
    /// The guest, over nested tables.
    Guest,
    /// Bare metal.
    Native,
}

/// A machine whose structures are what `make` makes, for a host if that is said; `cached`: with the walk
/// caches and the nested TLB of its profile.
///
/// # Errors
/// It cannot be made.
pub fn build<S: Structure + 'static>(
    build: MachineConfig,
    sides: Sides,
    cached: bool,
    make: impl Fn(bool, &mut dyn Supply) -> Option<S>,
) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut build = build;
    if !cached {
        build.profile.walk_cache = WalkCacheProfile::default();
        build.profile.nested_walk_cache = WalkCacheProfile::default();
        build.profile.entry_cache = None;
        build.profile.nested_tlb = None;
    }
    let mode = build.nested_mode;
    if sides == Sides::Host {
        let host = HostTable::new(mode, &mut build.host, |m| make(true, m))?;
        return boxed(RadixGuest, host, build);
    }
    let guest = GuestTable::new(&mut build, |m| make(false, m))?;
    match sides {
        Sides::Both => {
            let host = HostTable::new(mode, &mut build.host, |m| make(true, m))?;
            boxed(guest, host, build)
        }
        Sides::Guest | Sides::Host => {
            let rules = build.rules(VmmKind::Nested)?;
            let host = NestedMmu::new(mode, &mut build.host, rules)?;
            boxed(guest, host, build)
        }
        Sides::Native => boxed(guest, NoHost, build),
    }
}

fn boxed<G: GuestSide + 'static, H: HostSide + 'static>(
    guest: G,
    host: H,
    build: MachineConfig,
) -> Result<Box<dyn DynMachine>, MachineError> {
    Ok(Box::new(Machine::new(Tabled { guest, host }, build)?))
}

impl<G: GuestSide, H: HostSide> Scheme for Tabled<G, H> {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    // References of a look-up run at once: the longest counts.
    #[inline(always)]
    fn may_wait(&self) -> bool {
        false
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.guest.walk(cpu, &mut self.host.dimension(), request, watch)
    }
}

impl<G: GuestSide, H: HostSide> Tabled<G, H> {
    fn backed(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let end = start.value().saturating_add(bytes);
        let mut at = start;
        while at.value() < end {
            let size = self.host.map(platform, at)?;
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }
}

impl<G: GuestSide, H: HostSide> Software for Tabled<G, H> {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        match fault {
            Fault::Linear { .. } => self.guest.fault(platform, &mut self.host, request),
            Fault::Nested { gpa, fetch } => {
                self.host.violation(platform, request.vcpu, Some(request), (gpa, fetch))?;
                Ok(Handled::Retry)
            }
        }
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.guest.on(platform, &mut self.host, event)?;
        if platform.host.is_none() {
            return platform.bare_metal(event);
        }
        match event {
            Event::PageWritten { vcpu, at, size } => {
                self.host.back(platform, vcpu, (at, size.bytes()))
            }
            Event::Prefault { start, bytes } => self.backed(platform, start, bytes),
            Event::MemoryAdded { start, bytes } => self.host.hot_added(start, bytes),
            Event::HostChanged { at, size, .. } => {
                self.host.host_changed(platform, at, size);
                platform.cpu.hardware.invalidate_nested_everywhere();
                Ok(())
            }
            other => platform.bare_metal(other),
        }
    }

    fn take_accessed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<bool, MachineError> {
        let Some(accessed) = self.host.take_accessed(at, size) else {
            self.on(platform, Event::HostChanged { at, size, promoted: false })?;
            return Ok(false);
        };
        if accessed {
            platform.flush_remote_nested();
        }
        Ok(accessed)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        let (bytes, host) = self.host.state();
        out.page_tables = if platform.host.is_some() {
            PageTableBytes::of_vm(platform, bytes, 0)
        } else {
            PageTableBytes::of_guest(platform)
        };
        let guest = self.guest.state();
        if let Some(guest) = guest {
            out.page_tables.guest = guest.bytes;
        }
        let radix_bytes = platform.cpu.world.guest.len() * 4096;
        out.tables = Some(TableState {
            guest: guest.unwrap_or_default(),
            host: host.unwrap_or_default(),
            radix_bytes,
        });
    }
}
