//! All VMs of a fleet on hosts that share more or less.

use super::SHORT_SLICE;
use super::feed::Given;
use super::hidden::Hidden;
use super::memory::Memory;
use super::merging::{Merging, Token};
use super::migration::Migrations;
use nestwalk_mm::{HostMemory, PhysicalMemory};
use nestwalk_sim::hardware::Hardware;
use nestwalk_sim::hardware::exchange::{Shared, VPIDS};
use nestwalk_sim::machine::{DynMachine, Tenant};
use nestwalk_sim::measure::counters::{Counters, ExitReason};
use nestwalk_sim::scheme::MachineError;
use nestwalk_types::{Address, Control, Gpa, GuestBatch, Hpa};

/// Where a VM runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its first core.
    pub first: usize,
    /// Its vCPUs, each on a core of its own.
    pub vcpus: usize,
    /// Tag of its translations. VMs may have the same: they take turns with it.
    pub vpid: u8,
}

impl Place {
    pub(super) const fn cores(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.vcpus
    }
}

/// What the VMs of a stage share.
pub(super) struct Host {
    /// What of the processor.
    pub shared: Shared,
    /// TLBs tell VMs apart.
    pub vpids: bool,
    /// The cores, with what they remember while no VM runs.
    hardware: Hardware,
    /// The physical memory, while no VM runs.
    pub physical: PhysicalMemory<Hpa>,
    /// By core and VPID, whose translations the core has.
    owners: Vec<[Option<usize>; VPIDS as usize]>,
    /// By core, the VM that ran last.
    last: Vec<Option<usize>>,
    /// Reclaim, if there is less memory than the VMs would take.
    pub memory: Option<Memory>,
}

impl Host {
    pub(super) fn new(
        shared: Shared,
        vpids: bool,
        hardware: Hardware,
        physical: PhysicalMemory<Hpa>,
        memory: Option<Memory>,
    ) -> Self {
        let cores = hardware.cores.len();
        let (owners, last) = (vec![[None; VPIDS as usize]; cores], vec![None; cores]);
        Self { shared, vpids, hardware, physical, owners, last, memory }
    }

    /// What is shared goes from the host to the VM, or back.
    fn exchange(&mut self, tenant: &mut Tenant<'_>, place: Place) {
        tenant.hardware().exchange(&mut self.hardware, place.first, self.shared);
        if let Some(memory) = tenant.host() {
            memory.exchange_physical(&mut self.physical);
        }
    }

    /// The VM, which has the cores by now, enters the guest: nothing of another VM may serve it.
    /// Whether another one had a core meanwhile, and may have what this one left there.
    fn enter(&mut self, vm: usize, tenant: &mut Tenant<'_>, place: Place) -> bool {
        if !self.shared.tlbs {
            return false;
        }
        let mut others = false;
        let hardware = tenant.hardware();
        for (own, core) in place.cores().enumerate() {
            let other = self.last[core].replace(vm) != Some(vm);
            others |= other;
            let owner = &mut self.owners[core][usize::from(place.vpid)];
            if other && !self.vpids {
                (0..VPIDS).for_each(|vpid| hardware.forget_vpid(own, vpid));
            } else if *owner != Some(vm) {
                hardware.forget_vpid(own, place.vpid);
            }
            *owner = Some(vm);
        }
        hardware.take_up_pcids();
        others
    }
}

/// All VMs of a fleet, alone or on one host.
pub(super) struct Stage {
    pub machines: Vec<Box<dyn DynMachine>>,
    pub places: Vec<Place>,
    /// `None` if each VM is alone.
    pub host: Option<Host>,
    /// The VM whose turn it is.
    current: Option<usize>,
    /// VMs that have moved to hosts of their own.
    pub departed: Vec<bool>,
    /// VMs that move, if any does.
    pub migrations: Option<Box<Migrations>>,
    /// Same-page merging, if there is any.
    pub merging: Option<Box<Merging>>,
    /// What the recording of each VM hides; `None` for nothing.
    pub hidden: Vec<Option<Hidden>>,
    /// Instructions of the VM when its turn began.
    began: u64,
}

/// Whether the region of interest begins in it.
pub(super) fn begins_region(slice: &GuestBatch) -> bool {
    slice.batch.controls.iter().any(|(_, event)| *event == Control::RegionOfInterest)
}

/// Reaches a machine that was checked to be virtual.
pub(super) fn tenant(machine: &mut Box<dyn DynMachine>) -> Result<Tenant<'_>, MachineError> {
    let name = machine.name().to_owned();
    machine.tenant().ok_or(MachineError::NoTenant { machine: name })
}

impl Stage {
    pub(super) fn new(
        machines: Vec<Box<dyn DynMachine>>,
        places: Vec<Place>,
        host: Option<Host>,
    ) -> Self {
        let departed = vec![false; machines.len()];
        let hidden = machines.iter().map(|_| None).collect();
        Self {
            machines,
            places,
            host,
            current: None,
            departed,
            migrations: None,
            merging: None,
            hidden,
            began: 0,
        }
    }

    /// A turn of the VM begins.
    ///
    /// # Errors
    /// It is no virtual machine.
    pub(super) fn begin_turn(&mut self, vm: usize) -> Result<(), MachineError> {
        self.began = self.machines[vm].counters().instructions;
        if let Some(host) = &mut self.host
            && !self.departed[vm]
        {
            let mut tenant = tenant(&mut self.machines[vm])?;
            host.exchange(&mut tenant, self.places[vm]);
            let others = host.enter(vm, &mut tenant, self.places[vm]);
            self.current = Some(vm);
            if others {
                self.lost(vm);
            }
        }
        Ok(())
    }

    /// Its turn ends, and others of `rivals` have its cores next, if it would go on.
    ///
    /// # Errors
    /// It is no virtual machine.
    pub(super) fn end_turn(&mut self, vm: usize, rivals: &[usize]) -> Result<(), MachineError> {
        self.turn_took(vm);
        if let Some(host) = &mut self.host
            && self.current.take() == Some(vm)
        {
            let mut tenant = tenant(&mut self.machines[vm])?;
            if let Some(memory) = &mut host.memory {
                memory.waiting.take_time(vm, &mut tenant);
            }
            host.exchange(&mut tenant, self.places[vm]);
            if rivals.iter().any(|rival| !self.departed[*rival]) {
                tenant.exits(ExitReason::Preempted);
            }
        }
        let ended = self.machines[vm].counters().instructions;
        self.merge_pages(vm, ended.saturating_sub(self.began))
    }

    /// The VM whose turn it is does this.
    ///
    /// # Errors
    /// The machine cannot go on, or the host has not enough memory.
    pub(super) fn run(&mut self, vm: usize, slice: &GuestBatch) -> Result<(), MachineError> {
        self.make_room(vm)?;
        let again = self.hidden[vm].as_mut().map_or(Vec::new(), |h| h.take_again(SHORT_SLICE));
        for part in &again {
            self.goes_on(vm, part)?;
            self.make_room(vm)?;
        }
        if let Some(hidden) = &mut self.hidden[vm] {
            hidden.ran(slice);
        }
        self.goes_on(vm, slice)
    }

    /// The VM does this, for which there is room.
    fn goes_on(&mut self, vm: usize, slice: &GuestBatch) -> Result<(), MachineError> {
        self.machines[vm].run(slice)?;
        let memory = self.host.as_mut().and_then(|h| h.memory.as_mut());
        if let Some(memory) = memory
            && !self.departed[vm]
        {
            memory.ran(vm, slice, tenant(&mut self.machines[vm])?);
            if let Some(loads) = memory.waiting.switches(vm, &mut tenant(&mut self.machines[vm])?) {
                self.machines[vm].run(&loads)?;
            }
        }
        self.stores_change_contents(vm, slice);
        self.migrate(vm, slice)
    }

    /// The VM has lost translations through no doing of its guest.
    pub(super) fn lost(&mut self, vm: usize) {
        if let Some(hidden) = &mut self.hidden[vm] {
            hidden.lost();
        }
    }

    /// The guest of the VM whose turn it is gives this to its host.
    ///
    /// # Errors
    /// The machine cannot go on.
    pub(super) fn given(&mut self, vm: usize, given: &Given) -> Result<(), MachineError> {
        let memory = self.host.as_mut().and_then(|h| h.memory.as_mut());
        let Some(memory) = memory.filter(|_| !self.departed[vm]) else { return Ok(()) };
        if !given.blocks.is_empty() {
            memory.reported(vm, &given.blocks, tenant(&mut self.machines[vm])?)?;
        }
        if !given.pages.is_empty() {
            memory.ballooned(vm, &given.pages, tenant(&mut self.machines[vm])?)?;
        }
        Ok(())
    }

    /// There may be less memory than the VMs would take.
    pub(super) fn is_short(&self) -> bool {
        self.host.as_ref().is_some_and(|host| host.memory.is_some())
    }

    /// Frames that the host would have from balloons now, while no VM runs.
    pub(super) fn wanted(&self) -> u64 {
        let host = self.host.as_ref();
        host.map_or(0, |h| h.memory.as_ref().map_or(0, |m| m.wanted(h.physical.free_frames())))
    }

    /// Frames behind a VM's memory here.
    ///
    /// # Errors
    /// It is no virtual machine.
    pub(super) fn frames(&mut self, vm: usize) -> Result<u64, MachineError> {
        let departed = self.departed[vm];
        let mut tenant = tenant(&mut self.machines[vm])?;
        Ok(tenant.host().filter(|_| !departed).map_or(0, |host| host.counters().data_frames))
    }

    /// No VM goes on: what still waits has waited.
    ///
    /// # Errors
    /// A VM cannot do what it owes.
    pub(super) fn finish(&mut self) -> Result<(), MachineError> {
        if let Some(memory) = self.host.as_mut().and_then(|h| h.memory.as_mut()) {
            memory.waiting.finish();
            let departed = self.departed.clone();
            for vm in (0..self.machines.len()).filter(|vm| !departed[*vm]) {
                self.begin_turn(vm)?;
                let host = self.host.as_mut().and_then(|h| h.memory.as_mut());
                let Some(memory) = host else { continue };
                let mut tenant = tenant(&mut self.machines[vm])?;
                let loads = memory.waiting.switches(vm, &mut tenant);
                memory.waiting.halts(vm, &mut tenant);
                let done = loads.map_or(Ok(()), |loads| self.machines[vm].run(&loads));
                self.end_turn(vm, &[])?;
                done?;
            }
        }
        Ok(())
    }

    /// The VM, whose turn it is and whose memory here is free, goes on on this machine, on a host of
    /// its own.
    ///
    /// # Errors
    /// It is no virtual machine.
    pub(super) fn departs(
        &mut self,
        vm: usize,
        there: Box<dyn DynMachine>,
    ) -> Result<(), MachineError> {
        let mut here = std::mem::replace(&mut self.machines[vm], there);
        if let Some(host) = &mut self.host {
            host.exchange(&mut tenant(&mut here)?, self.places[vm]);
        }
        self.current = None;
        self.departed[vm] = true;
        self.lost(vm);
        Ok(())
    }

    /// Whether entries of the VM's TLBs are of a page each.
    ///
    /// # Errors
    /// It is no virtual machine.
    pub(super) fn knows_base_pages(&mut self, vm: usize) -> Result<bool, MachineError> {
        let mut tenant = tenant(&mut self.machines[vm])?;
        Ok(tenant.hardware().cores.iter().all(|core| core.coalesced.is_none()))
    }

    /// What was counted of these VMs so far.
    pub(super) fn counted(&self, vms: &[usize]) -> Vec<(usize, Counters)> {
        vms.iter().map(|vm| (*vm, self.machines[*vm].counters().clone())).collect()
    }

    /// Forgets what was counted since then.
    ///
    /// # Errors
    /// A machine is no virtual machine.
    pub(super) fn restore(&mut self, counted: Vec<(usize, Counters)>) -> Result<(), MachineError> {
        for (vm, counters) in counted {
            *tenant(&mut self.machines[vm])?.counters() = counters;
        }
        Ok(())
    }

    /// All VMs are where their regions of interest begin.
    pub(super) fn counting_begins(&mut self) {
        if let Some(memory) = self.host.as_mut().and_then(|h| h.memory.as_mut()) {
            memory.counting_begins();
        }
        self.migrations_count();
        self.merging_counts();
        self.hidden.iter_mut().flatten().for_each(Hidden::counting_begins);
    }

    fn make_room(&mut self, vm: usize) -> Result<(), MachineError> {
        if self.departed[vm] {
            return Ok(());
        }
        let Some(host) = &mut self.host else { return Ok(()) };
        let Some(mut memory) = host.memory.take() else { return Ok(()) };
        let (machines, places, departed) = (&mut self.machines, &self.places, &self.departed);
        let hidden = &mut self.hidden;
        let free = tenant(&mut machines[vm])?.host().map_or(0, |h| h.physical().free_frames());
        let done = memory.make_room(vm as u32, free, &mut |other, act| {
            let other = other as usize;
            if departed[other] {
                return Ok(());
            }
            let mut act = |tenant: Tenant<'_>| {
                if act(tenant)?
                    && let Some(hidden) = &mut hidden[other]
                {
                    hidden.lost();
                }
                Ok(())
            };
            if other == vm {
                return act(tenant(&mut machines[vm])?);
            }
            host.exchange(&mut tenant(&mut machines[vm])?, places[vm]);
            let mut victim = tenant(&mut machines[other])?;
            host.exchange(&mut victim, places[other]);
            let done = act(victim);
            host.exchange(&mut tenant(&mut machines[other])?, places[other]);
            host.exchange(&mut tenant(&mut machines[vm])?, places[vm]);
            done
        });
        host.memory = Some(memory);
        done
    }

    /// Looks at the VM with the host's memory in its hands.
    ///
    /// # Errors
    /// It is no virtual machine.
    pub(super) fn look<R>(
        &mut self,
        vm: usize,
        look: impl FnOnce(&mut Box<dyn DynMachine>) -> R,
    ) -> Result<R, MachineError> {
        let Some(host) = self.host.as_mut().filter(|_| !self.departed[vm]) else {
            return Ok(look(&mut self.machines[vm]));
        };
        host.exchange(&mut tenant(&mut self.machines[vm])?, self.places[vm]);
        let seen = look(&mut self.machines[vm]);
        host.exchange(&mut tenant(&mut self.machines[vm])?, self.places[vm]);
        Ok(seen)
    }

    /// Frames that are behind pages of two VMs, or free and behind a page: each with a VM. None may
    /// be, but for merged pages of the same contents.
    ///
    /// # Errors
    /// A VM is none.
    pub(super) fn frames_given_twice(&mut self) -> Result<Vec<(usize, Hpa)>, MachineError> {
        let Some(host) = &self.host else { return Ok(Vec::new()) };
        let merged = |vm: usize, gpa: Gpa| {
            self.merging.as_ref().map(|m| m.contents.of(vm, gpa.page_number()))
        };
        let mut owner: rustc_hash::FxHashMap<u64, Option<Token>> = rustc_hash::FxHashMap::default();
        let mut twice = Vec::new();
        for (vm, machine) in self.machines.iter_mut().enumerate() {
            if self.departed[vm] {
                continue;
            }
            let mut tenant = tenant(machine)?;
            let Some(memory) = tenant.host() else { continue };
            HostMemory::each_page(memory, &mut |gpa, frame, bytes| {
                let token = if memory.is_merged(gpa) { merged(vm, gpa) } else { None };
                for n in frame.page_number()..frame.page_number() + (bytes >> 12) {
                    let at = Hpa::new(n << 12);
                    let other = owner.insert(n, token);
                    let apart = other.is_some_and(|other| token.is_none() || other != token);
                    if apart || host.physical.is_free(at) {
                        twice.push((vm, at));
                    }
                }
            });
        }
        Ok(twice)
    }
}
