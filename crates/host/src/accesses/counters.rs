//! What the processor counts of a process while it is sampled: instructions and misses of the data TLB.

use crate::memory::ProcessMemory;
use perf_event::events::{Cache, CacheId, CacheOp, CacheResult, Hardware};
use perf_event::{Builder, Counter};
use std::fs;
use std::io;

/// Counters of all threads that there are, counting.
pub struct ProcessCounters {
    threads: Vec<[Counter; 2]>,
}

/// What they counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Instructions retired, those of a guest among them.
    pub instructions: u64,
    /// Loads that missed all data TLBs, as perf's event dTLB-load-misses.
    pub tlb_misses: u64,
}

impl ProcessCounters {
    /// Begins to count.
    ///
    /// # Errors
    /// The system's: ENOENT and EOPNOTSUPP if the processor, or the VM that this is,
    /// counts no such thing.
    pub fn open(process: &ProcessMemory) -> io::Result<Self> {
        const MISSES: Cache =
            Cache { which: CacheId::DTLB, operation: CacheOp::READ, result: CacheResult::MISS };
        let mut threads = Vec::new();
        for entry in fs::read_dir(process.file("task"))?.flatten() {
            let Some(tid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let instructions = counter(Builder::new(Hardware::INSTRUCTIONS), tid)?;
            threads.push([instructions, counter(Builder::new(MISSES), tid)?]);
        }
        Ok(Self { threads })
    }

    /// What they have counted so far, scaled to the time that they were to count.
    ///
    /// # Errors
    /// A counter cannot be read.
    pub fn read(&mut self) -> io::Result<Counts> {
        let mut all = Counts::default();
        for [instructions, misses] in &mut self.threads {
            all.instructions += scaled(instructions)?;
            all.tlb_misses += scaled(misses)?;
        }
        Ok(all)
    }
}

fn counter(mut builder: Builder<'_>, tid: i32) -> io::Result<Counter> {
    builder.observe_pid(tid).any_cpu().exclude_hv(false).enabled(true);
    builder.build()
}

fn scaled(counter: &mut Counter) -> io::Result<u64> {
    let data = counter.read_full()?;
    let share = match (data.time_enabled(), data.time_running()) {
        (Some(all), Some(some)) if !some.is_zero() => all.as_secs_f64() / some.as_secs_f64(),
        _ => 1.0,
    };
    Ok((data.count() as f64 * share) as u64)
}
