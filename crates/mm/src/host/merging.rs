//! Pages of guest memory that share frames with others of the same contents.

use super::{HostMemory, HostPage};
use crate::error::MmError;
use crate::space::{Access, Unobserved};
use nestwalk_types::{Address, Gpa, Hpa, PageSize};

impl HostMemory {
    /// The small page behind `gpa` has the frame `with` from now on, which has the same contents, or
    /// keeps its own, which others will have. It cannot be stored to until [`HostMemory::unmerge`].
    /// Whoever maps it in tables of its own owes their invalidation. Returns the frame; `None`, and
    /// nothing is done, if no page of 4 KiB is there.
    pub fn merge(&mut self, gpa: Gpa, with: Option<Hpa>) -> Option<Hpa> {
        let hva = self.hva(gpa)?.align_down(PageSize::SIZE_4K);
        let frame = self.space.merge(&mut self.memory, hva.value(), with)?;
        self.merged.insert(gpa.page_number());
        Some(frame)
    }

    /// Whether the page was merged.
    #[inline]
    pub fn is_merged(&self, gpa: Gpa) -> bool {
        !self.merged.is_empty() && self.merged.contains(&gpa.page_number())
    }

    /// The page if it was merged, marked as asked for.
    #[inline]
    pub(super) fn merged_page(&mut self, gpa: Gpa) -> Option<HostPage> {
        if !self.is_merged(gpa) {
            return None;
        }
        let page = self.look_up(gpa)?;
        if let Some(touches) = &mut self.touches {
            touches.mapped(gpa, &page);
        }
        Some(page)
    }

    /// Pages that are merged.
    pub fn merged_pages(&self) -> impl Iterator<Item = Gpa> {
        self.merged.iter().map(|page| Gpa::new(page << 12))
    }

    /// A merged page is about to be stored to, and has a frame of its own from now on (`do_wp_page`).
    /// Returns whether it was copied: its last sharer keeps the frame. Invalidation is owed as by
    /// [`HostMemory::merge`].
    ///
    /// # Errors
    /// No free frame.
    pub fn unmerge(&mut self, gpa: Gpa) -> Result<bool, MmError> {
        let (true, Some(hva)) = (self.merged.remove(&gpa.page_number()), self.hva(gpa)) else {
            return Ok(false);
        };
        let copies = self.memory.counters.copies;
        self.space.fault(&mut self.memory, hva, Access::WRITE, &mut Unobserved)?;
        Ok(self.memory.counters.copies > copies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostConfig;
    use crate::placement::{PagePolicy, PlacementKind};
    use nestwalk_tables::LONG4;

    /// Two VMs share a frame until one stores to its page; the last one keeps it.
    #[test]
    fn frames_are_shared_between_vms_and_given_back() {
        let config = HostConfig {
            bytes: 256 << 20,
            mode: &LONG4,
            policy: PagePolicy::Base,
            placement: PlacementKind::default(),
            fragmentation: 0.0.into(),
            seed: 1,
            kernel_bytes: 1 << 20,
            daemons: crate::DaemonConfig::default(),
        };
        let slots = [(Gpa::new(0), 64 << 20)];
        let mut physical = HostMemory::physical_memory(&config).unwrap();
        let all = physical.free_frames();
        let mut one = HostMemory::on(physical, &config, &slots, None).unwrap();
        let (a, b) = (Gpa::new(0x5000), Gpa::new(0x9000));
        let frame = one.ensure(a).unwrap().frame;
        physical = crate::PhysicalMemory::none();
        one.exchange_physical(&mut physical);
        let mut two = HostMemory::on(physical, &config, &slots, None).unwrap();
        let own = two.ensure(b).unwrap().frame;
        let free = two.physical().free_frames();
        physical = crate::PhysicalMemory::none();
        two.exchange_physical(&mut physical);
        one.exchange_physical(&mut physical);
        assert_eq!(one.merge(a, None), Some(frame));
        assert_eq!(one.merge(Gpa::new(0x7000), None), None, "nothing is there");
        one.exchange_physical(&mut physical);
        two.exchange_physical(&mut physical);
        assert_eq!(two.merge(b, Some(frame)), Some(frame));
        assert_eq!(two.physical().free_frames(), free + 1);
        assert!(two.physical().is_free(own) && two.is_merged(b));
        // A look, and a fault that stores nothing, leave it.
        assert_eq!(two.ensure(b).unwrap().frame, frame);
        assert!(two.unmerge(b).unwrap(), "it was copied");
        let copy = two.look_up(b).unwrap().frame;
        assert!(copy != frame && !two.is_merged(b));
        assert_eq!(two.physical().free_frames(), free);
        two.exchange_physical(&mut physical);
        one.exchange_physical(&mut physical);
        assert!(!one.unmerge(a).unwrap(), "nobody else has it");
        assert_eq!(one.look_up(a).unwrap().frame, frame);
        one.merge(a, None).unwrap();
        one.discard(a).unwrap();
        assert!(!one.is_merged(a));
        one.leave().unwrap();
        one.exchange_physical(&mut physical);
        two.exchange_physical(&mut physical);
        two.leave().unwrap();
        assert_eq!(two.physical().free_frames(), all);
    }
}
