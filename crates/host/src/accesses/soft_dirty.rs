//! Soft-dirty bits: which pages were stored to since `4` was written to `/proc/PID/clear_refs`, by
//! bit 55 of pagemap (Documentation/admin-guide/mm/soft-dirty.rst). Loads are not seen, and each
//! first store to a page faults.

use super::{Job, SamplerKind, Touched, Window, write};
use crate::memory::PAGE_BYTES;
use crate::probe::Missing;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SOFT_DIRTY: u64 = 1 << 55;
/// Entries that are read at once.
const CHUNK: u64 = 1 << 16;

pub(super) const KIND: SamplerKind = SamplerKind {
    name: "soft-dirty",
    sees: "which pages were stored to, by soft-dirty bits",
    assumption: "only stores were seen: pages that are only loaded from take no part",
    sees_guests: true,
    run,
};

fn run(job: &Job<'_>) -> Result<Vec<Window>, Missing> {
    let path = job.process.file("clear_refs");
    let option = "CONFIG_MEM_SOFT_DIRTY";
    let missing = |error: &io::Error| job.missing("soft-dirty bits", &path, error, option);
    // A kernel without them takes the 4 and does nothing.
    match is_known(&job.roots.proc) {
        Ok(true) => {}
        Ok(false) => return Err(missing(&io::ErrorKind::NotFound.into())),
        Err(error) => return Err(missing(&error)),
    }
    let map = File::open(job.process.file("pagemap")).map_err(|e| missing(&e))?;
    let mut look = || look(job, &map);
    job.windows(&mut || write(&path, "4"), &mut look).map_err(|error| missing(&error))
}

/// Whether a page that this program has just stored to is marked.
fn is_known(proc: &Path) -> io::Result<bool> {
    let mut page = vec![0_u8; 2 * PAGE_BYTES as usize];
    page[PAGE_BYTES as usize] = 1;
    let at = black_box(&page).as_ptr().addr() as u64 + PAGE_BYTES;
    let mut entry = [0; 8];
    File::open(proc.join("self/pagemap"))?.read_exact_at(&mut entry, at / PAGE_BYTES * 8)?;
    Ok(u64::from_le_bytes(entry) & SOFT_DIRTY != 0)
}

/// Runs of pages that are marked.
fn look(job: &Job<'_>, map: &File) -> io::Result<Vec<Touched>> {
    let mut found: Vec<Touched> = Vec::new();
    let mut buffer = vec![0; 8 * CHUNK as usize];
    for run in job.snapshot.runs.iter() {
        let (mut page, end) = (run.from, run.from + run.pages);
        while page < end {
            let wanted = (end - page).min(CHUNK);
            let read = map.read_at(&mut buffer[..8 * wanted as usize], page * 8)?;
            for entry in buffer[..read].chunks_exact(8) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                if entry & SOFT_DIRTY != 0 {
                    add(&mut found, page);
                }
                page += 1;
            }
            if read < 8 {
                break;
            }
        }
    }
    Ok(found)
}

/// One more page that was used.
pub(super) fn add(found: &mut Vec<Touched>, page: u64) {
    let start = page * PAGE_BYTES;
    match found.last_mut().filter(|t| t.end == start) {
        Some(t) => (t.end, t.pages) = (t.end + PAGE_BYTES, t.pages + 1.0),
        None => found.push(Touched { start, end: start + PAGE_BYTES, pages: 1.0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_row_are_one_range() {
        let mut found = Vec::new();
        [1, 2, 3, 7].into_iter().for_each(|page| add(&mut found, page));
        assert_eq!(found[0], Touched { start: 0x1000, end: 0x4000, pages: 3.0 });
        assert_eq!(found.len(), 2);
    }
}
