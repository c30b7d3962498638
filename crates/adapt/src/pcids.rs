//! A recording of a Linux guest without PCIDs, as if its processor had them.
//!
//! QEMU's processor has no PCIDs, so every load of CR3 in a recording invalidates. Linux with PCIDs
//! (`arch/x86/mm/tlb.c`, `arch/x86/entry/calling.h`) keeps the translations of the last six address
//! spaces, and with page-table isolation (two roots, side by side, for each) a load at an entry to the
//! kernel or on the way out invalidates nothing:
//!
//! - An address space gets one of six numbers in turn (`choose_new_asid`); PCIDs are the number plus one
//!   for the kernel's root, and that with bit 11 for the user's. One that still has its number is
//!   loaded without invalidation.
//! - A reload of the same root is a flush. It and INVLPG reach the kernel's PCID; the user's is flushed
//!   by the next load of its root (`invalidate_user_asid`, of processors without INVPCID, which KVM
//!   hides where it has no EPT).
//! - A flush of a kernel address makes the other numbers void (`invalidate_other`).
//!
//! An address space that is flushed while it is not loaded cannot be told from the stream: with one vCPU
//! Linux does that through the loaded one alone.

use nestwalk_types::{Batch, Control, Gpa, Invalidation, Source, SourceError, SourceInfo, VcpuId};

/// Numbers for address spaces (`TLB_NR_DYN_ASIDS`).
const NUMBERS: usize = 6;
/// Of a user's root: its PCID (`X86_CR3_PTI_PCID_USER_BIT`).
const USER_PCID: u16 = 1 << 11;
/// Of a user's root: its address (`PTI_USER_PGTABLE_BIT`).
const USER_ROOT: u64 = 1 << 12;

/// What one vCPU's kernel keeps (`struct tlb_state`).
#[derive(Default)]
struct Cpu {
    /// The kernel's root of the address space that has each number.
    spaces: [Option<u64>; NUMBERS],
    /// The user's PCID of each number is invalidated when it is loaded next.
    user_flush: [bool; NUMBERS],
    loaded: usize,
    next: usize,
    /// Root in CR3.
    root: u64,
}

impl Cpu {
    /// PCID and "no invalidation" for a load of `root`.
    fn load(&mut self, root: u64, isolated: bool) -> (u16, bool) {
        let user = isolated && root & USER_ROOT != 0;
        let space = if isolated { root & !USER_ROOT } else { root };
        let same_space = self.spaces[self.loaded] == Some(space);
        let keep = if user && same_space {
            !std::mem::take(&mut self.user_flush[self.loaded])
        } else if same_space && self.root != root {
            true
        } else if same_space {
            self.user_flush[self.loaded] = isolated;
            false
        } else if let Some(number) = self.spaces.iter().position(|s| *s == Some(space)) {
            self.loaded = number;
            true
        } else {
            self.loaded = self.next;
            self.next = (self.next + 1) % NUMBERS;
            self.spaces[self.loaded] = Some(space);
            self.user_flush[self.loaded] = isolated && !user;
            false
        };
        self.root = root;
        ((self.loaded as u16 + 1) | if user { USER_PCID } else { 0 }, keep)
    }

    /// A page is no root any more, or another's. The loaded address space has its own: the user's root
    /// is first seen when it is loaded first.
    fn forget(&mut self, table: u64) {
        for (number, space) in self.spaces.iter_mut().enumerate() {
            let has = space.is_some_and(|s| s == table || s | USER_ROOT == table);
            if has && number != self.loaded {
                *space = None;
            }
        }
    }

    fn invalidated(&mut self, what: Invalidation, isolated: bool) {
        match what {
            Invalidation::Page(gva) if gva.value() >> 63 == 0 => {
                self.user_flush[self.loaded] = isolated;
            }
            Invalidation::PageInPcid(..) | Invalidation::Pcid(_) => {}
            Invalidation::Page(_) | Invalidation::AllButGlobal | Invalidation::All => {
                self.user_flush[self.loaded] = isolated;
                let loaded = self.spaces[self.loaded];
                self.spaces = [None; NUMBERS];
                self.spaces[self.loaded] = loaded;
            }
        }
    }
}

/// The recording with PCIDs.
pub struct Pcids<S> {
    inner: S,
    isolated: bool,
    cpus: Vec<Cpu>,
}

impl<S: Source> Pcids<S> {
    /// `isolated`: the guest isolates its page tables.
    pub const fn new(inner: S, isolated: bool) -> Self {
        Self { inner, isolated, cpus: Vec::new() }
    }

    fn cpu(&mut self, vcpu: VcpuId) -> &mut Cpu {
        let index = usize::from(vcpu.0);
        if index >= self.cpus.len() {
            self.cpus.resize_with(index + 1, Cpu::default);
        }
        &mut self.cpus[index]
    }

    fn reused(&mut self, table: Gpa) {
        for cpu in &mut self.cpus {
            cpu.forget(table.value());
        }
    }
}

impl<S: Source> Source for Pcids<S> {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }

    fn position(&self) -> u64 {
        self.inner.position()
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let more = self.inner.next_batch(batch)?;
        let isolated = self.isolated;
        for (_, control) in &mut batch.controls {
            match control {
                Control::LoadCr3 { vcpu, root, pcid, keep } => {
                    (*pcid, *keep) = self.cpu(*vcpu).load(root.value(), isolated);
                }
                Control::Invalidate { vcpu, what } => {
                    let what = *what;
                    self.cpu(*vcpu).invalidated(what, isolated);
                }
                Control::TableAdded { gpa, .. } | Control::TableRetired { gpa, .. } => {
                    self.reused(*gpa)
                }
                _ => {}
            }
        }
        Ok(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(isolated: bool, roots: &[u64]) -> Vec<(u16, bool)> {
        let mut cpu = Cpu::default();
        roots.iter().map(|root| cpu.load(*root, isolated)).collect()
    }

    #[test]
    fn entries_to_the_kernel_invalidate_nothing() {
        let got = loads(true, &[0x8000, 0x9000, 0x8000, 0x9000]);
        // The user's tables are new when they are loaded first.
        assert_eq!(got, [(1, false), (0x801, false), (1, true), (0x801, true)]);
    }

    #[test]
    fn six_address_spaces_keep_what_they_had_and_a_seventh_takes_a_number() {
        let seven: Vec<u64> = (1..=7).map(|n| n << 13).collect();
        let mut cpu = Cpu::default();
        let first: Vec<_> = seven.iter().map(|root| cpu.load(*root, true)).collect();
        assert!(first.iter().all(|(_, keep)| !keep));
        assert_eq!(first.iter().map(|(pcid, _)| *pcid).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 1]);
        assert_eq!(cpu.load(2 << 13, true), (2, true));
        assert_eq!(
            cpu.load(1 << 13, true),
            (2, false),
            "its number was taken, and it takes the next"
        );
    }

    #[test]
    fn flushes_reach_the_users_pcid_at_its_next_load() {
        let mut cpu = Cpu::default();
        let load = |cpu: &mut Cpu, root| cpu.load(root, true).1;
        for root in [0x8000, 0x9000, 0x8000] {
            load(&mut cpu, root);
        }
        assert!(!load(&mut cpu, 0x8000), "a reload is a flush");
        assert!(!load(&mut cpu, 0x9000));
        assert!(load(&mut cpu, 0x8000));
        cpu.invalidated(Invalidation::Page(nestwalk_types::Gva::new(0x1000)), true);
        assert!(!load(&mut cpu, 0x9000));
        assert!(load(&mut cpu, 0x8000) && load(&mut cpu, 0x9000), "once");
    }

    #[test]
    fn a_root_that_is_used_again_is_another_address_space() {
        let mut cpu = Cpu::default();
        cpu.load(0x8000, true);
        cpu.load(0xa000, true);
        cpu.forget(0xb000);
        assert_eq!(cpu.load(0xb000, true), (0x802, false), "the loaded one's other root");
        cpu.forget(0x9000);
        assert_eq!(cpu.load(0x8000, true), (3, false));
    }

    #[test]
    fn without_isolation_each_root_is_an_address_space() {
        let got = loads(false, &[0x8000, 0x9000, 0x8000]);
        assert_eq!(got, [(1, false), (2, false), (1, true)]);
    }
}
