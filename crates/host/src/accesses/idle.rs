//! Idle-page tracking: a bit for each frame in `/sys/kernel/mm/page_idle/bitmap`, which an access
//! by page tables or, of a KVM guest, nested tables clears
//! (Documentation/admin-guide/mm/idle_page_tracking.rst). Of a large page only the first frame has
//! a bit; the frames behind it take its answer. It takes root.

use super::soft_dirty::add;
use super::{Job, SamplerKind, Touched, Window};
use crate::probe::Missing;
use nestwalk_contiguity::{MappedRun, RunSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// Frames of a large page.
const BLOCK: u64 = 512;
/// Words that are read and written at once.
const CHUNK: u64 = 1 << 13;

pub(super) const KIND: SamplerKind = SamplerKind {
    name: "idle",
    sees: "which pages were used, by idle-page tracking",
    assumption: "pages whose translations stayed in a TLB count as not used",
    sees_guests: true,
    run,
};

fn run(job: &Job<'_>) -> Result<Vec<Window>, Missing> {
    let path = job.roots.sys.join("kernel/mm/page_idle/bitmap");
    let missing =
        |error: &io::Error| job.missing("idle pages", &path, error, "CONFIG_IDLE_PAGE_TRACKING");
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|e| missing(&e))?;
    if job.snapshot.frames_hidden {
        return Err(Missing {
            what: "idle pages".into(),
            why: "the kernel does not show frame numbers".into(),
            remedy: "run as root".into(),
            fatal: false,
        });
    }
    // Frames whose bit does not stay have none.
    let mut marked = Vec::new();
    let mut clear = || {
        mark(job, &file)?;
        marked = bits(job, &file)?;
        Ok(())
    };
    clear().map_err(|e| missing(&e))?;
    let has_bit = marked.clone();
    let mut look = || Ok(used(&job.snapshot.runs, &has_bit, &bits(job, &file)?));
    let mut again = || mark(job, &file);
    job.windows(&mut again, &mut look).map_err(|error| missing(&error))
}

/// Words of the bitmap that have a run's frames: the first, and the one after the last.
fn words(run: &MappedRun) -> (u64, u64) {
    (run.to / 64, (run.to + run.pages).div_ceil(64))
}

/// Sets the bits of all frames. Those of neighbours are set as well, which harms nobody.
fn mark(job: &Job<'_>, file: &File) -> io::Result<()> {
    let ones = vec![0xff; 8 * CHUNK as usize];
    for run in job.snapshot.runs.iter() {
        let (mut at, end) = words(&run);
        while at < end {
            let n = (end - at).min(CHUNK);
            file.write_all_at(&ones[..8 * n as usize], at * 8)?;
            at += n;
        }
    }
    Ok(())
}

/// The bits of all frames, run by run.
fn bits(job: &Job<'_>, file: &File) -> io::Result<Vec<bool>> {
    let mut all = Vec::new();
    for run in job.snapshot.runs.iter() {
        let (first, end) = words(&run);
        let mut bytes = vec![0; 8 * (end - first) as usize];
        file.read_exact_at(&mut bytes, first * 8)?;
        let bit = |frame: u64| {
            let at = frame - first * 64;
            bytes.get(at as usize / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
        };
        all.extend((run.to..run.to + run.pages).map(bit));
    }
    Ok(all)
}

/// Runs of pages that were used, by the bits that were set and those that stayed.
fn used(runs: &RunSet, has_bit: &[bool], stayed: &[bool]) -> Vec<Touched> {
    let mut found = Vec::new();
    let mut each = has_bit.iter().zip(stayed);
    for run in runs.iter() {
        // The answer of the head of the large page that it is in.
        let mut head = (u64::MAX, false);
        for (i, (has, stays)) in (0..run.pages).zip(&mut each) {
            let block = (run.to + i) / BLOCK;
            if *has {
                head = (block, !stays);
            }
            if head == (block, true) {
                add(&mut found, run.from + i);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_page_is_used_as_its_first_frame_is() {
        let mut runs = RunSet::new();
        // Two small pages, and the large ones of frames 512 and 1024.
        runs.map(10, 100, 2, 0);
        runs.map(2048, 512, 1024, 0);
        let mut has_bit = vec![false; 2 + 1024];
        for i in [0, 1, 2, 2 + 512] {
            has_bit[i] = true;
        }
        let mut stayed = has_bit.clone();
        stayed[1] = false;
        stayed[2 + 512] = false;
        let found = used(&runs, &has_bit, &stayed);
        let page = |start: u64, pages: u64| Touched {
            start: start << 12,
            end: (start + pages) << 12,
            pages: pages as f64,
        };
        assert_eq!(found, [page(11, 1), page(2048 + 512, 512)]);
    }
}
