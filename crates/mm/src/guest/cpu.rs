//! What the modelled kernel knows per vCPU: the process, the PCIDs, and recent translations.

use crate::space::Flush;
use crate::translations::Translations;
use nestwalk_tables::Mode;
use nestwalk_types::{Address, Gpa, Gva, PageSize, ProcessId};

/// PCIDs that the kernel uses per vCPU in turn (Linux, `TLB_NR_DYN_ASIDS`).
pub const DYNAMIC_PCIDS: usize = 6;

/// One vCPU.
pub(super) struct Cpu {
    /// The process that runs here.
    pub process: Option<ProcessId>,
    /// Context number of the address space that CR3 points to; 0 if it is gone.
    pub loaded: u64,
    /// Root table in CR3.
    pub root: Gpa,
    /// PCID in CR3.
    pub pcid: u16,
    /// Index of the current PCID in `contexts`.
    slot: usize,
    /// `(context, its generation when it was last flushed here)` of each dynamic PCID.
    contexts: [(u64, u64); DYNAMIC_PCIDS],
    /// The next PCID to take.
    next: usize,
    pub translations: Translations,
    /// The segment registers hold a segment.
    pub segment: bool,
}

impl Cpu {
    /// Runs nothing yet, in a guest with this paging mode.
    pub fn new(mode: &Mode) -> Self {
        Self {
            process: None,
            loaded: 0,
            root: Gpa::new(0),
            pcid: 0,
            slot: 0,
            contexts: [(0, 0); DYNAMIC_PCIDS],
            next: 0,
            translations: Translations::new(mode),
            segment: false,
        }
    }

    /// Forgets everything: CR3 was loaded, or many pages have changed.
    fn forget(&mut self) {
        self.translations.forget();
    }
    /// Forgets what an invalidation is about.
    pub fn forget_flushed(&mut self, flush: &Flush<Gva>) {
        match *flush {
            Flush::Pages { start, stride: PageSize::SIZE_4K, count, tables: false } => {
                for i in 0..count {
                    self.translations.forget_page(start.offset_by(i << 12));
                }
            }
            _ => self.forget(),
        }
    }
    /// The address space in CR3 is gone: the next access or switch loads another one.
    pub fn lose(&mut self) {
        self.loaded = 0;
        self.forget();
    }

    /// The current context was flushed up to this generation.
    pub fn flushed(&mut self, generation: u64) {
        self.contexts[self.slot].1 = generation;
    }

    /// Takes a PCID for the address space and makes it current: Linux's `choose_new_asid`. Returns
    /// whether what is cached under it may be kept.
    pub fn load(&mut self, context: u64, generation: u64, root: Gpa, pcids: bool) -> bool {
        let known = self.contexts.iter().position(|c| c.0 == context);
        let keep = pcids && known.is_some_and(|i| self.contexts[i].1 == generation);
        self.slot = if !pcids {
            0
        } else if let Some(i) = known {
            i
        } else {
            let i = self.next;
            self.next = (i + 1) % DYNAMIC_PCIDS;
            i
        };
        self.contexts[self.slot] = (context, generation);
        self.loaded = context;
        self.root = root;
        // PCID 0 is the kernel's own (`kern_pcid`).
        self.pcid = if pcids { self.slot as u16 + 1 } else { 0 };
        self.forget();
        keep
    }
}
