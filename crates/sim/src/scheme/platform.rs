//! What hardware and software of a machine have in reach.

use super::guard::Guard;
use super::placing::Placing;
use super::{Event, MachineError};
use crate::hardware::Processor;
use crate::measure::counters::ExitReason;
use nestwalk_mm::HostMemory;
use nestwalk_types::{Address, Gpa, Hpa, PageSize, VcpuId};

/// Everything of a machine but its scheme: what software has in reach.
pub struct Platform {
    /// What hardware has in reach.
    pub cpu: Processor,
    /// Memory behind guest RAM; `None` on bare metal, where a gPA is an hPA.
    pub host: Option<HostMemory>,
    /// Instructions retired since the stream began: time, for whatever happens at intervals. Complete
    /// whenever software is called but for [`super::Software::handle_fault`] and
    /// [`Event::AccessMissed`].
    pub instructions: u64,
    /// Ranges (first address, bytes) of guest memory whose host memory software has exchanged since
    /// the engine last looked: what was known of their frames is void.
    pub moved: Vec<(Gpa, u64)>,
    /// The vCPU whose event software deals with.
    pub vcpu: VcpuId,
    /// Exits of the sender and of the receiver of an interrupt from vCPU to vCPU.
    pub interrupt_exits: [u64; 2],
    /// The guest's kernel has deferred updates of its tables: accesses that miss are an
    /// [`Event::AccessMissed`] until it has sent them.
    pub deferred: bool,
    /// The host listens for stores.
    pub guard: Option<Box<Guard>>,
    /// Where pages come to lie, on a machine of several nodes.
    pub placing: Option<Box<Placing>>,
}

impl Platform {
    /// What an event does where no hypervisor takes part.
    ///
    /// # Errors
    /// Host memory is exhausted, or a range is no guest memory.
    pub fn bare_metal(&mut self, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => self.cpu.hardware.load_cr3(vcpu, pcid, keep),
            Event::Invalidate { vcpu, what } => self.cpu.hardware.invalidate(vcpu, what),
            Event::Prefault { start, bytes } => {
                let end = start.value().saturating_add(bytes);
                let mut at = start;
                while at.value() < end && self.host.is_some() {
                    let (_, size) = self.host_page(at)?;
                    at = at.align_down(size).offset_by(size.bytes());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The host page that holds `gpa`, faulted in if it was not there: its first address and size. The
    /// host kernel's work is counted.
    ///
    /// # Errors
    /// Host memory is exhausted, or the address is no guest memory.
    pub fn host_page(&mut self, gpa: Gpa) -> Result<(Hpa, PageSize), MachineError> {
        let Some(host) = &mut self.host else {
            return Err(MachineError::NoTableFrame {
                machine: String::new(),
                what: "guest without a host",
            });
        };
        let page = host.ensure(gpa)?;
        if page.fresh {
            self.cpu.counters.host_faults += 1;
            self.cpu.counters.host_pages_cleared += page.size.base_pages();
        }
        if self.placing.is_some() {
            self.place_page(gpa, (page.frame, page.size), page.fresh);
        }
        Ok((page.frame, page.size))
    }

    /// The VMM has every core drop its linear and combined translations. Other vCPUs that run are called
    /// out of the guest for it (`kvm_flush_remote_tlbs`).
    pub fn flush_remote(&mut self) {
        self.cpu.hardware.invalidate_everywhere();
        self.call_others_out();
    }

    /// As [`Platform::flush_remote`], with the guest-physical translations.
    pub fn flush_remote_nested(&mut self) {
        self.cpu.hardware.invalidate_nested_everywhere();
        self.call_others_out();
    }

    /// A vCPU runs from when it has loaded a root.
    fn call_others_out(&mut self) {
        let running =
            self.cpu.world.roots.iter().filter(|root| **root != Gpa::new(0)).count() as u64;
        self.cpu.counters.remote_flushes += 1;
        self.cpu.counters.exits[ExitReason::RemoteFlush as usize] += running.saturating_sub(1);
    }

    /// An exit whose answer changes shadow tables: one vCPU does that at a time (KVM's `mmu_lock`).
    pub fn locked_exit(&mut self, reason: ExitReason) {
        self.cpu.counters.exit(reason);
        self.lock();
    }

    /// The current vCPU takes the lock of the shadow tables.
    pub fn lock(&mut self) {
        self.cpu.counters.lock_visits.add(self.vcpu);
    }

    /// The guest's kernel interrupted other vCPUs so many times.
    pub fn interrupted(&mut self, times: u64) {
        let [sent, received] = self.interrupt_exits;
        self.cpu.counters.exits[ExitReason::InterruptSent as usize] += times * sent;
        self.cpu.counters.exits[ExitReason::InterruptReceived as usize] += times * received;
    }
}
