//! Machines of every scheme, each with an oracle beside it.

use super::machines::Setup;
use super::oracle::{Oracle, Shadowed};
use nestwalk_hw::Translation;
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::scheme::vmm_options::VmmOptions;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::{DynMachine, Machine};
use nestwalk_tables::entry::PRESENT;
use nestwalk_tables::look_up;
use nestwalk_types::{GuestBatch, Invalidation, PageSize};

/// Shadow paging that writes down what the oracle cannot know.
struct Watched {
    inner: Shadow,
    log: Vec<Shadowed>,
}

impl Watched {
    /// The hypervisor has flushed everything, or there was nothing.
    fn flushed(&mut self, platform: &Platform) {
        let cores = &platform.cpu.hardware.cores;
        if cores.iter().all(|c| c.l1d.is_empty() && c.l1i.is_empty() && c.l2.is_empty()) {
            self.log.push(Shadowed::Flushed);
        }
    }
}

impl Scheme for Watched {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let found = self.inner.walk(cpu, request, watch)?;
        self.log.push(Shadowed::Walked(found));
        Ok(found)
    }
}

impl Software for Watched {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        // An entry that stood where the new one is put is replaced, and dropped everywhere.
        let (mode, tables) = self.inner.mmu.tables();
        let mut stood = Vec::new();
        for page in tables.pages() {
            for level in 1..=mode.levels {
                let at = mode.entry_at(page, request.gva.value(), level);
                if tables.read(at, 8).is_some_and(|e| e & PRESENT != 0) {
                    stood.push(at);
                }
            }
        }
        let answer = self.inner.handle_fault(platform, request, fault)?;
        self.flushed(platform);
        let root = self.inner.mmu.walk_root(request.core());
        let (mode, tables) = self.inner.mmu.tables();
        if answer == Handled::Retry
            && let Ok(leaf) = look_up(tables, mode, root, request.gva)
            && stood.contains(&leaf.at)
        {
            self.log.push(Shadowed::Dropped(request.gva));
        }
        Ok(answer)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        if let Event::Invalidate { vcpu, what: Invalidation::PageInPcid(_, pcid) } = event
            && self.inner.mmu.has_at_hand(usize::from(vcpu.0), pcid)
        {
            self.log.push(Shadowed::AtHand);
        }
        self.inner.on(platform, event)?;
        if matches!(
            event,
            Event::LoadCr3 { .. }
                | Event::Invalidate { .. }
                | Event::TableStore { .. }
                | Event::PageWritten { .. }
        ) {
            self.flushed(platform);
        }
        if let Event::LoadCr3 { vcpu, .. } = event {
            // Whether the root was at hand, the oracle does not know.
            let core = &platform.cpu.hardware.cores[usize::from(vcpu.0)];
            if core.l1d.is_empty() && core.l1i.is_empty() && core.l2.is_empty() {
                self.log.push(Shadowed::FlushedVcpu(vcpu));
            }
        }
        Ok(())
    }
}

/// A machine of each scheme and the oracle beside each.
pub struct Pairs {
    plain: Vec<(Box<dyn DynMachine>, Oracle)>,
    shadow: Option<(Machine<Watched>, Oracle)>,
    what: String,
}

impl Pairs {
    pub fn new(setup: &Setup, what: &str) -> Self {
        let host = match setup.host_pages {
            "4k" => PageSize::SIZE_4K,
            "2m" => PageSize::SIZE_2M,
            _ => PageSize::SIZE_1G,
        };
        // The oracle knows one size of the host's pages, whatever is executed.
        let vmm = VmmOptions { nx_huge_pages: Some(false), ..setup.vmm };
        let setup = &Setup { vmm, ..setup.clone() };
        let oracle = |host| Oracle::new(&setup.profile, setup.guest_mode, setup.vcpus, host);
        let build = setup.build("shadow", true);
        let watched = Watched { inner: Shadow::new(&build).unwrap(), log: Vec::new() };
        Self {
            plain: vec![
                (Box::new(setup.native()), oracle(None)),
                (Box::new(setup.nested()), oracle(Some(host))),
            ],
            shadow: Some((Machine::new(watched, build).unwrap(), oracle(Some(host)).below_kvm())),
            what: format!("{what} on {}", setup.profile.name),
        }
    }

    pub fn follow(&mut self, events: &GuestBatch) {
        for (machine, oracle) in &mut self.plain {
            machine.run(events).unwrap();
            oracle.follow(events);
            let agreed = oracle.agrees(machine.counters());
            assert_eq!(agreed, Ok(()), "{}: {}", self.what, machine.name());
        }
        if let Some((machine, oracle)) = &mut self.shadow {
            in_step(machine, oracle, events);
            let agreed = oracle.agrees(machine.counters());
            assert_eq!(agreed, Ok(()), "{}: shadow", self.what);
            for (core, other) in machine.platform.cpu.hardware.cores.iter().zip(&oracle.cores) {
                let found = [core.l1d.len(), core.l1i.len(), core.l2.len()];
                let expected = [other.l1d.len(), other.l1i.len(), other.l2.len()];
                assert_eq!(found, expected, "{}: entries held", self.what);
            }
        }
    }

    /// Misses were counted, and in each level there were hits.
    pub fn end(&self) {
        for (machine, oracle) in &self.plain {
            let [first, second, misses, _] = oracle.counts;
            let accesses = machine.counters().accesses;
            assert!(first < accesses && second + misses == first && misses > 0, "{}", self.what);
            let told = machine.verdict().map_or(Vec::new(), |v| v.told);
            assert_eq!(told, Vec::<String>::new(), "{}", self.what);
        }
    }
}

/// One event at a time, so that what the hypervisor did is known of each.
fn in_step(machine: &mut Machine<Watched>, oracle: &mut Oracle, events: &GuestBatch) {
    let mut one = GuestBatch::default();
    let controls = &events.batch.controls;
    let mut next = 0;
    for i in 0..=events.batch.runs.len() {
        while next < controls.len() && (controls[next].0 as usize) <= i {
            one.batch.runs.clear();
            one.gpas.clear();
            one.batch.controls = vec![(0, controls[next].1.clone())];
            machine.run(&one).unwrap();
            oracle.control(&controls[next].1, &machine.scheme.log);
            machine.scheme.log.clear();
            next += 1;
        }
        let Some(run) = events.batch.runs.get(i) else { return };
        one.batch.controls.clear();
        one.batch.runs = vec![*run];
        one.gpas = vec![events.gpas[i]];
        machine.run(&one).unwrap();
        oracle.access(run, &machine.scheme.log);
        machine.scheme.log.clear();
    }
}
