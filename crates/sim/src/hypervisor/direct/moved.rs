//! The host moves a page: every entry that maps it, or points to it, gets the new address.

use super::{Changed, DirectMmu};
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::Level;
use nestwalk_types::{Address, Gpa, Hpa, PageSize};

impl DirectMmu {
    /// The host took the page of `size` at `at` away. A domain's memory is its own, so it gets
    /// other memory at once, as when Xen takes a failing page offline or moves a domain; the
    /// reverse information says which entries to write anew. The flush is the hypervisor's, too.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn host_changed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        self.send_all(platform)?;
        let counted = platform.cpu.counters.clone();
        let frames = at.page_number()..at.page_number() + size.base_pages();
        let (mut entries, mut pins): (Vec<Hpa>, Vec<Gpa>) = (Vec::new(), Vec::new());
        let mut known = Vec::new();
        for gfn in frames {
            let info = self.info.get(gfn);
            if info.machine == 0 {
                continue;
            }
            known.push(gfn);
            self.forget_mappings(platform, gfn, &mut entries);
            if self.info.get(gfn).table > 0 {
                if info.pinned {
                    pins.push(Gpa::new(gfn << 12));
                }
                self.demote(platform, gfn, &mut Changed::default());
            }
        }
        for &gfn in &known {
            let info = self.info.at(gfn);
            // Another page may be there by now, if several have changed places.
            let behind = self.guest_frames.at(info.machine - 1);
            if *behind == gfn + 1 {
                *behind = 0;
            }
            info.machine = 0;
        }
        platform.cpu.counters = counted;
        for &gfn in &known {
            let fresh = platform.host.as_mut().map(|h| h.ensure(Gpa::new(gfn << 12)));
            if let Some(page) = fresh.transpose()?
                && page.fresh
            {
                platform.cpu.counters.host_faults += 1;
                platform.cpu.counters.host_pages_cleared += page.size.base_pages();
            }
        }
        let counted = platform.cpu.counters.clone();
        self.write_anew(platform, &entries, &pins);
        platform.cpu.counters = counted;
        platform.cpu.hardware.invalidate_everywhere();
        self.checked()
    }

    /// Clears what maps or points to a frame; the places are added to `entries`.
    fn forget_mappings(&mut self, platform: &mut Platform, gfn: u64, entries: &mut Vec<Hpa>) {
        let mappings = self.mappings.entries(gfn);
        for at in mappings.into_iter().chain(self.links.entries(gfn)) {
            let Some((level, _)) = self.source(&platform.cpu.world, at) else { continue };
            entries.push(at);
            // A large entry may reach here from its first frame alone; others of its frames follow
            // it.
            self.clear_entry(platform, (at, level), &mut Changed::default());
        }
    }

    fn write_anew(&mut self, platform: &mut Platform, entries: &[Hpa], pins: &[Gpa]) {
        for (core, (root, _)) in self.loaded.clone().into_iter().enumerate() {
            if pins.contains(&root.align_down(PageSize::SIZE_4K)) {
                self.roots[core] = self.pin(platform, root);
            }
        }
        // Roots that no vCPU has loaded wait until one does: the kernel may have done with them,
        // and with what their entries point to. Tables that have moved are at other places by now,
        // with all that is in them.
        for &at in entries {
            if let Some((level, entry)) = self.source(&platform.cpu.world, at) {
                let level: Level = level;
                self.set_entry(platform, (at, level), entry, &mut Changed::default());
            }
        }
    }
}
