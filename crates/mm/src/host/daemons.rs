//! The host kernel's daemons, at work on the VMM process.

use crate::daemons::{DaemonStats, Home, Watch};
use crate::host::HostMemory;
use crate::space::{AddressSpace, Memory, Unobserved};
use nestwalk_types::{Gpa, Hpa, Hva, OsWork};

/// What daemons did in one run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostDaemonRun {
    /// Guest memory whose host pages have moved or have another size now, `(first address, bytes)`,
    /// in the order in which that happened, each with one notification of the VMM. Whoever maps it
    /// in tables of its own, or has it in a TLB, owes their invalidation before the guest runs on.
    pub changed: Vec<(Gpa, u64)>,
    /// What was done.
    pub did: DaemonStats,
}

impl HostMemory {
    /// When the host's daemons are to run next, in instructions since the beginning; `u64::MAX` if
    /// there are none.
    #[inline]
    pub fn daemons_due(&self) -> u64 {
        self.daemons.due()
    }

    /// What the host's daemons have done so far.
    pub const fn daemon_stats(&self) -> DaemonStats {
        self.daemons.stats
    }

    /// The host's daemons work, if their time has come.
    pub fn run_daemons(&mut self, clock: u64) -> HostDaemonRun {
        let before = self.daemons.stats;
        let (memory, space) = (&mut self.memory, &mut self.space);
        let mut home = HostHome { memory, space, changed: Vec::new() };
        self.daemons.run(clock, &mut home);
        let changed = home.changed;
        let changed = changed.into_iter().filter_map(|(hva, bytes)| Some((self.gpa(hva)?, bytes)));
        let changed = changed.collect();
        HostDaemonRun { changed, did: self.daemons.stats.since(&before) }
    }
}

/// The VMM process, the only one of the host. A daemon's notifications go to the VMM.
struct HostHome<'h> {
    memory: &'h mut Memory<Hpa>,
    space: &'h mut AddressSpace<Hva, Hpa>,
    changed: Vec<(Hva, u64)>,
}

/// Its number.
const VMM: u64 = 1;

impl Home<Hva, Hpa> for HostHome<'_> {
    fn spaces(&self) -> Vec<u64> {
        vec![VMM]
    }
    fn look(&self, id: u64) -> Option<&AddressSpace<Hva, Hpa>> {
        (id == VMM).then_some(&*self.space)
    }
    fn memory(&self) -> &Memory<Hpa> {
        self.memory
    }
    fn memory_mut(&mut self) -> &mut Memory<Hpa> {
        self.memory
    }
    fn with<R>(
        &mut self,
        id: u64,
        f: impl FnOnce(&mut AddressSpace<Hva, Hpa>, &mut Memory<Hpa>, &mut Watch<'_, Hva, Hpa>) -> R,
    ) -> Option<R> {
        (id == VMM).then(|| f(self.space, self.memory, &mut Watch(&mut Unobserved)))
    }
    /// The run says it as a whole.
    fn work(&mut self, _: OsWork, _: u64) {}
    /// Addresses of the VMM process are in the lower half, which has no sign extension.
    fn changed(&mut self, _: u64, start: u64, bytes: u64) {
        self.changed.push((Hva::new(start), bytes));
    }
}
