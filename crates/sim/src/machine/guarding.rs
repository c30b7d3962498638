//! A host that listens for stores, at the machine: walks and the guest's kernel are what it hears.

use super::events::Events;
use crate::hardware::Request;
use crate::measure::counters::ExitReason;
use crate::scheme::guard::{DirtyLog, Tracking};
use crate::scheme::{Event, MachineError};
use nestwalk_hw::Translation;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_tables::look_up;
use nestwalk_types::{Address, Control, Gpa, Hpa, PageSize, VcpuId};

impl Events<'_> {
    fn nested(&self) -> bool {
        self.software.paging_mode() != Some(PagingMode::Shadow)
    }

    fn page_of(&self, request: &Request) -> Option<Gpa> {
        let world = &self.platform.cpu.world;
        let leaf = look_up(&world.guest, world.mode, world.root(request.vcpu), request.gva);
        leaf.ok().map(|leaf| leaf.apply(request.gva))
    }

    /// What a walk has found, as tables have it whose host listens for stores.
    #[cold]
    pub(super) fn guarded(&mut self, request: &Request, found: Translation) -> Translation {
        let (nested, gpa) = (self.nested(), self.page_of(request));
        let (Some(guard), Some(gpa)) = (&mut self.platform.guard, gpa) else { return found };
        let page = gpa.page_number();
        let mut found = found;
        if self.platform.host.as_ref().is_some_and(|host| host.is_merged(gpa)) {
            found = found.read_only();
        }
        if let Some(log) = &mut guard.log {
            if found.size() != PageSize::SIZE_4K {
                found = found.part(request.gva, PageSize::SIZE_4K);
            }
            if request.write {
                log.stored(page, request.vcpu, nested, &mut self.platform.cpu.counters);
            }
            if !log.has(page) {
                found = match log.tracking(nested) {
                    Tracking::WriteProtect => found.read_only(),
                    Tracking::DirtyBits | Tracking::Pml => found.clean(),
                };
            }
        }
        found
    }

    /// The guest's kernel stores to pages through a mapping of its own that the stream does not show.
    #[cold]
    pub(super) fn kernel_stores(&mut self, control: &Control) -> Result<(), MachineError> {
        let Some((vcpu, first, pages)) = stores_of(control) else { return Ok(()) };
        for page in first.page_number()..first.page_number() + pages {
            self.unmerge(Gpa::new(page << 12))?;
        }
        let nested = self.nested();
        let counters = &mut self.platform.cpu.counters;
        if let Some(log) = self.platform.guard.as_mut().and_then(|g| g.log.as_mut()) {
            for page in first.page_number()..first.page_number() + pages {
                log.stored(page, vcpu, nested, counters);
            }
        }
        Ok(())
    }

    /// A store is about to walk: a merged page has a frame of its own from now on. The walk finds
    /// nothing mapped, and exits.
    #[cold]
    pub(super) fn before_store(&mut self, request: &Request) -> Result<(), MachineError> {
        match self.page_of(request) {
            Some(gpa) => self.unmerge(gpa),
            None => Ok(()),
        }
    }

    fn unmerge(&mut self, gpa: Gpa) -> Result<(), MachineError> {
        let Some(host) = self.platform.host.as_mut().filter(|h| h.is_merged(gpa)) else {
            return Ok(());
        };
        let copied = host.unmerge(gpa)?;
        let counters = &mut self.platform.cpu.counters;
        counters.host_faults += 1;
        counters.pages_moved += u64::from(copied);
        if let Some(guard) = &mut self.platform.guard {
            guard.broken += 1;
        }
        self.page_changed(gpa)?;
        self.platform.flush_remote_nested();
        Ok(())
    }

    /// The page behind `gpa` is merged: see [`nestwalk_mm::HostMemory::merge`].
    pub(super) fn merge(
        &mut self,
        gpa: Gpa,
        with: Option<Hpa>,
    ) -> Result<Option<Hpa>, MachineError> {
        let merged = self.platform.host.as_mut().and_then(|host| host.merge(gpa, with));
        if merged.is_some() {
            self.platform.guard.get_or_insert_default();
            self.platform.cpu.counters.host_pages_unmapped += 1;
            self.page_changed(gpa)?;
        }
        Ok(merged)
    }

    /// Another frame is behind a page, or it may be stored to no more.
    fn page_changed(&mut self, gpa: Gpa) -> Result<(), MachineError> {
        let (at, size) = (gpa.align_down(PageSize::SIZE_4K), PageSize::SIZE_4K);
        if let Some(referee) = &mut self.drive.referee {
            referee.exchanged(at, size.bytes());
        }
        self.tell(Event::HostChanged { at, size, promoted: false })
    }

    /// The host logs from now on which pages are stored to, or no longer. All pages are clean at first.
    /// While it does, tables map by 4 KiB: larger entries are dropped, at the end so that they come back
    /// (KVM, `kvm_mmu_zap_collapsible_sptes`).
    pub(super) fn log_stores(&mut self, tracking: Option<Tracking>) -> Result<(), MachineError> {
        let vcpus = self.platform.cpu.hardware.cores.len();
        let guard = self.platform.guard.get_or_insert_default();
        guard.log = tracking.map(|tracking| DirtyLog::new(tracking, vcpus));
        let Some(host) = &mut self.platform.host else { return Ok(()) };
        host.split_pages(tracking.is_some());
        let (mut large, mut all) = (Vec::new(), 0);
        for page in whole_pages(host) {
            all += page.1.base_pages();
            if page.1 > PageSize::SIZE_4K {
                large.push(page);
            }
        }
        if tracking.is_some() {
            self.platform.cpu.counters.host_pages_scanned += all;
        }
        for (at, size) in large {
            self.tell(Event::HostChanged { at, size, promoted: true })?;
        }
        self.flush_all();
        Ok(())
    }

    /// The pages that were stored to since this was last asked, which are clean from now on.
    pub(super) fn take_dirty(&mut self) -> Vec<u64> {
        let nested = self.nested();
        let Some(log) = self.platform.guard.as_mut().and_then(|g| g.log.as_mut()) else {
            return Vec::new();
        };
        let (tracking, dirty) = (log.tracking(nested), log.take());
        // Dirty bits are found by looking at every entry; of a log each entry is looked up.
        let looked_at = match (tracking, &self.platform.host) {
            (Tracking::DirtyBits, Some(host)) => {
                whole_pages(host).iter().map(|page| page.1.base_pages()).sum()
            }
            _ => dirty.len() as u64,
        };
        self.platform.cpu.counters.host_pages_scanned += looked_at;
        self.flush_all();
        dirty
    }

    /// Every vCPU is called out of the guest and drops its translations: the request comes from
    /// another thread than theirs (`kvm_flush_remote_tlbs`).
    fn flush_all(&mut self) {
        let hardware = &mut self.platform.cpu.hardware;
        hardware.invalidate_nested_everywhere();
        let vcpus = hardware.cores.len() as u64;
        let counters = &mut self.platform.cpu.counters;
        counters.remote_flushes += 1;
        counters.exits[ExitReason::RemoteFlush as usize] += vcpus;
    }
}

/// Pages of the guest's memory, as large as the host has them.
fn whole_pages(host: &nestwalk_mm::HostMemory) -> Vec<(Gpa, PageSize)> {
    let mut pages = Vec::new();
    host.each_page(&mut |gpa, _, bytes| {
        let sizes = [PageSize::SIZE_1G, PageSize::SIZE_2M];
        let size = sizes.into_iter().find(|s| s.bytes() == bytes).unwrap_or(PageSize::SIZE_4K);
        pages.push((gpa, size));
    });
    pages
}

/// Which vCPU stores to which pages by this.
fn stores_of(control: &Control) -> Option<(VcpuId, Gpa, u64)> {
    match *control {
        Control::TableWrite { vcpu, gpa, .. } => Some((vcpu, gpa, 1)),
        Control::TableAdded { vcpu, gpa, .. } => Some((vcpu, gpa, 1)),
        Control::PageCleared { vcpu, gpa, size } => Some((vcpu, gpa, size.base_pages())),
        _ => None,
    }
}
