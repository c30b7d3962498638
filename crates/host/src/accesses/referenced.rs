//! `/proc/PID/clear_refs` and the line `Referenced` of smaps: how much of each mapping was used.
//!
//! Every kernel with CONFIG_PROC_PAGE_MONITOR has it, for the process's own user. It sees accesses
//! of the process's page tables, not those that a KVM guest makes through nested tables: clearing
//! does not reach these (fs/proc/task_mmu.c, clear_refs_pte_range). It does not empty TLBs, so a
//! page whose translation stays in one is not marked again.

use super::{Job, SamplerKind, Touched, Window, write};
use crate::memory::PAGE_BYTES;
use crate::probe::Missing;
use std::io;

pub(super) const KIND: SamplerKind = SamplerKind {
    name: "referenced",
    sees: "how much of each mapping was used, by clear_refs and smaps",
    assumption: "within a mapping, which pages were used is not known; pages whose translations stayed \
                 in a TLB count as not used",
    sees_guests: false,
    run,
};

fn run(job: &Job<'_>) -> Result<Vec<Window>, Missing> {
    let path = job.process.file("clear_refs");
    let mut look = || {
        let regions = job.process.regions().map_err(io::Error::other)?;
        if regions.iter().all(|r| !r.measured) {
            return Err(io::Error::other("smaps has no sizes"));
        }
        let touched = regions.iter().map(|r| Touched {
            start: r.start,
            end: r.end,
            pages: (r.referenced / PAGE_BYTES) as f64,
        });
        Ok(touched.collect())
    };
    job.windows(&mut || write(&path, "1"), &mut look).map_err(|error| {
        job.missing("references by smaps", &path, &error, "CONFIG_PROC_PAGE_MONITOR")
    })
}
