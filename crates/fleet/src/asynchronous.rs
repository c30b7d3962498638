//! VMs that wait for pages that their host reads, and guests that are told and do not.
//!
//! As Linux's KVM has it (6.1, `arch/x86/kvm/x86.c`, `virt/kvm/async_pf.c`, `arch/x86/kernel/kvm.c`):
//! a vCPU that uses a page that is away exits. If the guest has asked to be told
//! (`MSR_KVM_ASYNC_PF_EN`) and runs in user mode (`kvm_can_deliver_async_pf`), the host injects a
//! page fault that says "page not present" (`kvm_arch_async_page_not_present`), and the guest's
//! kernel runs another process (`kvm_async_pf_task_wait_schedule`), or halts if there is none. When
//! the page is there the host maps it (`kvm_arch_async_page_ready`) and interrupts the guest, whose
//! kernel wakes the process and acknowledges (`MSR_KVM_ASYNC_PF_ACK`, an exit). In kernel mode, or
//! if the guest has not asked, the vCPU waits. In each case other VMs of the core may run.
//!
//! The order of accesses is the stream's all the same: what overlaps is decided afterwards, on a
//! [`Timeline`] for each core.

use super::memory::SwapCounts;
use super::stage::Place;
use super::timeline::Timeline;
use nestwalk_hw::Profile;
use nestwalk_sim::machine::Tenant;
use nestwalk_sim::measure::cost::Cycles;
use nestwalk_sim::measure::counters::ExitReason;
use nestwalk_types::{Address, Control, Gpa, GuestBatch, OsWork, PageSize, Run, VcpuId};
use rustc_hash::FxHashMap;

/// Pieces that wait for a price: more cost more than they tell.
const MOST: usize = 64;

/// A page that has come back: where, how large, how long the device took.
pub(super) type Came = (Gpa, PageSize, f64);

/// Work of one vCPU on one address space, and a wait behind it.
#[derive(Clone, Copy)]
struct Part {
    vcpu: usize,
    /// Address of the root; 0 before there is one.
    root: u64,
    instructions: u64,
    /// How long, and whether the guest was told.
    wait: Option<(f64, bool)>,
}

/// A VM, as far as its time is concerned.
struct Guest {
    /// It asks to be told.
    told: bool,
    place: Place,
    /// By vCPU, root and PCID of the address space.
    roots: Vec<(Gpa, u16)>,
    /// Work since its time was last taken, in order.
    parts: Vec<Part>,
    /// Cycles of all its vCPUs until then.
    cycles: f64,
    async_faults: u64,
    /// By vCPU, faults of these during which another process ran that are paid for.
    paid: Vec<u64>,
}

/// Where a wait begins: before which run, and whether in kernel mode.
type Position = (usize, bool);

/// All VMs of a host, and its cores.
pub(super) struct Asynchronous {
    profile: Profile,
    guests: Vec<Guest>,
    cores: Vec<Timeline>,
}

impl Asynchronous {
    /// `told` says of each VM whether its guest asks to be told.
    pub(super) fn new(profile: &Profile, places: &[Place], told: &[bool]) -> Self {
        let guest = |(place, told): (&Place, &bool)| Guest {
            told: *told,
            place: *place,
            roots: vec![(Gpa::new(0), 0); place.vcpus],
            parts: Vec::new(),
            cycles: 0.0,
            async_faults: 0,
            paid: vec![0; place.vcpus],
        };
        let cores = places.iter().map(|p| p.cores().end).max().unwrap_or(0);
        Self {
            profile: profile.clone(),
            guests: places.iter().zip(told).map(guest).collect(),
            cores: (0..cores).map(|_| Timeline::default()).collect(),
        }
    }

    /// A slice has run on the VM, for which these pages came back.
    pub(super) fn ran(
        &mut self,
        vm: usize,
        slice: &GuestBatch,
        came: &[Came],
        tenant: &mut Tenant<'_>,
    ) {
        let waits = positions(slice, came);
        let guest = &mut self.guests[vm];
        let before = guest.async_faults;
        let mut controls = slice.batch.controls.iter().peekable();
        for at in 0..=slice.batch.runs.len() {
            while let Some((_, control)) = controls.next_if(|c| c.0 as usize <= at) {
                guest.control(control);
            }
            let run = slice.batch.runs.get(at);
            for (ns, kernel) in waits.get(&at).into_iter().flatten() {
                guest.wait(run.or(slice.batch.runs.last()), *ns, *kernel);
            }
            if let Some(run) = run {
                let part = guest.part(run.vcpu);
                part.instructions += u64::from(run.instructions);
            }
        }
        // Told, scheduled away from, woken, scheduled to; the interrupt is acknowledged.
        let told = guest.async_faults - before;
        if told > 0 {
            let counters = tenant.counters();
            counters.async_faults += told;
            counters.os_work[OsWork::PageFault.index()] += told;
            counters.os_work[OsWork::ContextSwitch.index()] += 2 * told;
            counters.exits[ExitReason::PageReadyAck as usize] += told;
        }
        if !came.is_empty() || guest.parts.len() >= MOST {
            self.take_time(vm, tenant);
        }
    }

    /// What the VM has done since this was last called goes to the cores that did it.
    pub(super) fn take_time(&mut self, vm: usize, tenant: &mut Tenant<'_>) {
        let guest = &mut self.guests[vm];
        if guest.parts.is_empty() {
            return;
        }
        let cycles = Cycles::of(tenant.counters(), &self.profile).total();
        let passed = self.profile.core.clock().ns((cycles - guest.cycles).max(0.0));
        guest.cycles = cycles;
        let instructions: u64 = guest.parts.iter().map(|part| part.instructions).sum();
        let each = guest.parts.len() as f64;
        for part in guest.parts.drain(..) {
            let share = match instructions {
                0 => 1.0 / each,
                all => part.instructions as f64 / all as f64,
            };
            let who = (vm as u32, if guest.told { part.root } else { 0 });
            let core = &mut self.cores[guest.place.first + part.vcpu];
            core.work(who, passed * share);
            if let Some((ns, told)) = part.wait {
                core.wait(who, ns, !told);
            }
        }
    }

    /// What the guest did since this was last asked because other processes ran while one waited:
    /// the interrupts that said its page is there, and loads of CR3, one for the other's address
    /// space and one for its own. Both are those of its own, so that no table is loaded that is
    /// none any more.
    pub(super) fn switches(&mut self, vm: usize, tenant: &mut Tenant<'_>) -> Option<GuestBatch> {
        let overtaken: Vec<u64> = self.waits(vm).map(|w| w.overtaken).collect();
        let guest = &mut self.guests[vm];
        let mut batch = GuestBatch::default();
        for (vcpu, overtaken) in overtaken.into_iter().enumerate() {
            let owed = overtaken - guest.paid[vcpu];
            guest.paid[vcpu] = overtaken;
            tenant.counters().exits[ExitReason::PageReady as usize] += owed;
            let (root, pcid) = guest.roots[vcpu];
            let vcpu = VcpuId(vcpu as u8);
            let load = Control::LoadCr3 { vcpu, root, pcid, keep: pcid != 0 };
            let loads = if root == Gpa::new(0) { 0 } else { 2 * owed };
            batch.batch.controls.extend((0..loads).map(|_| (0, load.clone())));
        }
        (!batch.batch.is_empty()).then_some(batch)
    }

    /// The guest halted for those waits during which it had nothing else to run.
    pub(super) fn halts(&self, vm: usize, tenant: &mut Tenant<'_>) {
        let guest = &self.guests[vm];
        tenant.counters().exits[ExitReason::Halted as usize] +=
            guest.async_faults - guest.paid.iter().sum::<u64>();
    }

    /// All that waits has waited.
    pub(super) fn finish(&mut self) {
        self.cores.iter_mut().for_each(Timeline::finish);
    }

    /// Counting begins.
    pub(super) fn counting_begins(&mut self) {
        self.cores.iter_mut().for_each(Timeline::counting_begins);
        for guest in &mut self.guests {
            (guest.async_faults, guest.cycles) = (0, 0.0);
            guest.paid.fill(0);
            guest.parts.clear();
        }
    }

    fn waits(&self, vm: usize) -> impl Iterator<Item = super::timeline::Waits> {
        let cores = &self.cores[self.guests[vm].place.cores()];
        cores.iter().map(move |core| core.waits(vm as u32))
    }

    /// Adds what is known of the VM's waits.
    pub(super) fn count(&self, vm: usize, counts: &mut SwapCounts) {
        counts.async_faults = self.guests[vm].async_faults;
        for waits in self.waits(vm) {
            counts.overtaken += waits.overtaken;
            counts.hidden_ns += waits.own_ns;
            counts.halted_ns += waits.neighbours_ns + waits.idle_ns;
            counts.idle_ns += waits.idle_ns;
        }
    }
}

impl Guest {
    fn control(&mut self, control: &Control) {
        if let Control::LoadCr3 { vcpu, root, pcid, .. } = *control
            && let Some(known) = self.roots.get_mut(usize::from(vcpu.0))
        {
            *known = (root, pcid);
        }
    }

    /// Where work of the vCPU is counted.
    fn part(&mut self, vcpu: VcpuId) -> &mut Part {
        // A vCPU that is not there ends the machine's life.
        let vcpu = usize::from(vcpu.0).min(self.roots.len() - 1);
        let root = self.roots[vcpu].0.value();
        let same = |p: &Part| (p.vcpu, p.root, p.wait.is_none()) == (vcpu, root, true);
        if !self.parts.last().is_some_and(same) {
            self.parts.push(Part { vcpu, root, instructions: 0, wait: None });
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }

    /// A wait before the run, or where no program runs.
    fn wait(&mut self, run: Option<&Run>, ns: f64, kernel: bool) {
        let told = self.told && !kernel && run.is_some();
        self.async_faults += u64::from(told);
        self.part(run.map_or(VcpuId(0), |r| r.vcpu)).wait = Some((ns, told));
    }
}

/// Before which runs the waits of a slice are.
fn positions(slice: &GuestBatch, came: &[Came]) -> FxHashMap<usize, Vec<(f64, bool)>> {
    let mut waits: FxHashMap<usize, Vec<(f64, bool)>> = FxHashMap::default();
    for &(at, size, ns) in came {
        let (run, kernel) = position(slice, |gpa| gpa.align_down(size) == at);
        waits.entry(run).or_default().push((ns, kernel));
    }
    waits
}

/// Who used the page first: the kernel by an event, or a run. A page that none of them names is a
/// table that a walk read: for the first run of the slice, as far as anybody knows.
fn position(slice: &GuestBatch, is_page: impl Fn(Gpa) -> bool) -> Position {
    let runs = &slice.batch.runs;
    let run = slice.gpas.iter().position(|gpa| is_page(*gpa)).unwrap_or(runs.len());
    let event = slice.batch.controls.iter().find(|(_, event)| match *event {
        Control::TableWrite { gpa, .. }
        | Control::TableAdded { gpa, .. }
        | Control::PageCleared { gpa, .. }
        | Control::WrittenOut { gpa, .. }
        | Control::Prefault { start: gpa, .. } => is_page(gpa),
        _ => false,
    });
    match event {
        Some((at, _)) if *at as usize <= run => (*at as usize, true),
        _ if run < runs.len() => (run, runs[run].flags.is_kernel()),
        _ => (0, runs.first().is_none_or(|run| run.flags.is_kernel())),
    }
}
