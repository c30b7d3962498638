//! `/proc/kpageflags`: what each frame is to the kernel.

use nestwalk_contiguity::RunSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are read at once.
const CHUNK: u64 = 1 << 19;

// include/uapi/linux/kernel-page-flags.h.
const COMPOUND_HEAD: u64 = 1 << 15;
const COMPOUND_TAIL: u64 = 1 << 16;
const HUGE: u64 = 1 << 17;
const KSM: u64 = 1 << 21;
const THP: u64 = 1 << 22;
const ZERO_PAGE: u64 = 1 << 24;

/// What frames are, in pages of 4 KiB that map to them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FrameKinds {
    /// Of hugetlbfs.
    pub hugetlb: u64,
    /// Of transparent huge pages, also where small entries map them.
    pub thp: u64,
    /// Merged with equal ones (KSM).
    pub ksm: u64,
    /// The shared zero page.
    pub zero: u64,
    /// By the size of the kernel's allocation, as far as it is mapped: `[n]` are pages in pieces of
    /// 2^n up to before twice as many.
    pub folios: Vec<u64>,
}

/// The file.
pub(super) struct FrameFlags {
    file: File,
}

impl FrameFlags {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)? })
    }

    /// What the frames of runs are.
    ///
    /// # Errors
    /// If the file cannot be read. Frames beyond its end are nothing in particular.
    pub(super) fn kinds(&mut self, runs: &RunSet) -> io::Result<FrameKinds> {
        let mut kinds = FrameKinds::default();
        let mut buffer = vec![0; CHUNK as usize];
        for run in runs.iter() {
            let mut folio = 0;
            let (mut frame, end) = (run.to, run.to.saturating_add(run.pages));
            while frame < end {
                let wanted = ((end - frame) * 8).min(CHUNK) as usize;
                let Some(at) = frame.checked_mul(8) else { break };
                let read = self.file.read_at(&mut buffer[..wanted], at)? / 8 * 8;
                buffer[read..wanted].fill(0);
                for entry in buffer[..wanted].chunks_exact(8) {
                    let flags = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                    kinds.count(flags);
                    if flags & COMPOUND_TAIL == 0 || flags & COMPOUND_HEAD != 0 {
                        kinds.folio(folio);
                        folio = 0;
                    }
                    folio += 1;
                }
                frame += wanted as u64 / 8;
            }
            kinds.folio(folio);
        }
        Ok(kinds)
    }
}

impl FrameKinds {
    fn count(&mut self, flags: u64) {
        let has = |flag: u64| u64::from(flags & flag != 0);
        self.hugetlb += has(HUGE);
        self.thp += has(THP);
        self.ksm += has(KSM);
        self.zero += has(ZERO_PAGE);
    }

    fn folio(&mut self, pages: u64) {
        let Some(order) = pages.checked_ilog2() else { return };
        let order = order as usize;
        if self.folios.len() <= order {
            self.folios.resize(order + 1, 0);
        }
        self.folios[order] += pages;
    }
}
