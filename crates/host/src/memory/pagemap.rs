//! `/proc/PID/pagemap`: an entry of 8 bytes for each virtual page.

use super::{PAGE_BYTES, Region};
use nestwalk_contiguity::{MappedRun, RunSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are read at once: the pages of 512 MiB.
const CHUNK: usize = 1 << 20;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FRAME: u64 = (1 << 55) - 1;

/// How far a mapping was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// To its end.
    All,
    /// Until all that is resident was found; so many bytes were left out.
    Enough(u64),
    /// Nobody wanted more.
    Stopped,
    /// There was no more.
    Gone,
}

/// The file, and what was found in it.
pub(super) struct PageMap {
    file: File,
    buffer: Vec<u8>,
    runs: RunSet,
    /// The run that is being read, and whether its frames are shown.
    open: Option<(MappedRun, bool)>,
    /// Present pages with a frame number; the others.
    shown: u64,
    hidden: RunSet,
}

impl PageMap {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let (runs, hidden) = (RunSet::new(), RunSet::new());
        Ok(Self { file, buffer: vec![0; CHUNK], runs, open: None, shown: 0, hidden })
    }

    /// Reads the entries of a mapping. If more than `enough` pages are known not to be there, it ends
    /// where so many were found.
    pub(super) fn read(
        &mut self,
        region: &mut Region,
        enough: Option<u64>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Seen> {
        let seen = self.read_chunks(region, enough, go_on);
        self.close();
        seen
    }

    fn read_chunks(
        &mut self,
        region: &mut Region,
        enough: Option<u64>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Seen> {
        let tag = region.tag();
        let (mut page, end) = (region.start / PAGE_BYTES, region.end / PAGE_BYTES);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut chunk = || -> io::Result<Option<Seen>> {
            if page >= end {
                return Ok(Some(Seen::All));
            }
            if !go_on(page * PAGE_BYTES - region.start) {
                return Ok(Some(Seen::Stopped));
            }
            if enough.is_some_and(|e| region.present + region.swapped >= e) {
                return Ok(Some(Seen::Enough((end - page) * PAGE_BYTES)));
            }
            let wanted = ((end - page) * 8).min(CHUNK as u64) as usize;
            let read = self.file.read_at(&mut buffer[..wanted], page * 8)?;
            for entry in buffer[..read].chunks_exact(8) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                if entry & PRESENT != 0 {
                    region.present += 1;
                    self.found(page, entry & FRAME, tag);
                } else if entry & SWAPPED != 0 {
                    region.swapped += 1;
                }
                page += 1;
            }
            Ok((read < 8).then_some(Seen::Gone))
        };
        let seen = loop {
            match chunk() {
                Ok(None) => {}
                Ok(Some(seen)) => break Ok(seen),
                Err(error) => break Err(error),
            }
        };
        self.buffer = buffer;
        seen
    }

    fn found(&mut self, page: u64, frame: u64, tag: u16) {
        // Frame 0 is no program's: it stands for a number that is not shown.
        let shown = frame != 0;
        let to = if shown { frame } else { page };
        self.shown += u64::from(shown);
        if let Some((open, as_shown)) = &mut self.open
            && open.end() == page
            && open.frame(page) == to
            && *as_shown == shown
        {
            open.pages += 1;
            return;
        }
        self.close();
        self.open = Some((MappedRun { from: page, to, pages: 1, tag }, shown));
    }

    fn close(&mut self) {
        if let Some((run, shown)) = self.open.take() {
            let set = if shown { &mut self.runs } else { &mut self.hidden };
            set.map(run.from, run.to, run.pages, run.tag);
        }
    }

    /// Whether there are present pages and no frame number was shown.
    pub(super) fn hidden(&self) -> bool {
        self.shown == 0 && self.hidden.pages() > 0
    }

    /// What was found.
    pub(super) fn into_runs(self) -> RunSet {
        if self.hidden() { self.hidden } else { self.runs }
    }
}
