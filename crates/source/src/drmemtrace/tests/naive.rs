//! A second reader, which shares nothing with the first: it looks at one record after the other and
//! counts, and knows the numbers of `trace_entry.h` only.

use nestwalk_types::{Control, Run};
use std::collections::BTreeSet;

/// What is counted of a trace.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Naive {
    pub(super) accesses: u64,
    pub(super) instructions: u64,
    pub(super) fetches: u64,
    pub(super) kernel: u64,
    pub(super) pages: BTreeSet<u64>,
    /// Accesses before the region of interest.
    pub(super) warmup: u64,
}

/// Counts the runs of a stream.
pub(super) fn of_runs(runs: &[Run], controls: &[(usize, Control)]) -> Naive {
    let begin = controls.iter().find(|c| c.1 == Control::RegionOfInterest).map_or(0, |c| c.0);
    let count = |some: &dyn Fn(&Run) -> bool| {
        runs.iter().filter(|r| some(r)).map(|r| u64::from(r.count)).sum()
    };
    Naive {
        accesses: count(&|_| true),
        instructions: runs.iter().map(|r| u64::from(r.instructions)).sum(),
        fetches: count(&|r| r.flags.is_fetch()),
        kernel: count(&|r| r.flags.is_kernel()),
        pages: runs.iter().map(|r| r.gva.value() >> 12).collect(),
        warmup: runs[..begin].iter().map(|r| u64::from(r.count)).sum(),
    }
}

/// Counts the records of a file, of 12 or 8 bytes each.
pub(super) fn of_records(bytes: &[u8], size: usize) -> Naive {
    let mut n = Naive::default();
    let (mut arm, mut whole_system, mut bimodal) = (false, false, false);
    let (mut syscall, mut switch, mut depth) = (false, false, 0_i64);
    let (mut upper, mut next, mut last) = (false, 0_u64, 0_u64);
    let mut ended = false;
    for r in bytes.chunks_exact(size) {
        let kind = u64::from(r[0]) + 256 * u64::from(r[1]);
        let length = u64::from(r[2]) + 256 * u64::from(r[3]);
        let mut value = 0;
        for byte in r[4..].iter().rev() {
            value = value << 8 | u64::from(*byte);
        }
        let mut address = value;
        if size == 12 && arm {
            address &= 0x00ff_ffff_ffff_ffff;
            if address & 1 << 55 != 0 {
                address |= 0xff00_0000_0000_0000;
            }
            // One of 48 bits is as x86 has it.
            if address >> 48 == 0 || address >> 48 == 0xffff {
                address &= 0x0000_ffff_ffff_ffff;
                if address & 1 << 47 != 0 {
                    address |= 0xffff_0000_0000_0000;
                }
            }
        } else if size == 12 && address >> 56 != 0 && address >> 56 != 0xff {
            address &= 0x0000_ffff_ffff_ffff;
            if address & 1 << 47 != 0 {
                address |= 0xffff_0000_0000_0000;
            }
        }
        let top = if arm { value >> 55 & 1 } else { value >> 63 };
        // What the record accesses, and whether as an instruction.
        let mut made: Vec<(u64, u64, bool)> = Vec::new();
        match kind {
            0 | 1 => made.push((address, length, false)),
            10..=16 | 31 | 48 | 49 => {
                upper = top == 1;
                if length > 0 {
                    made.push((address, length, true));
                    (last, next) = (address, address.wrapping_add(length));
                }
            }
            17 => {
                for i in 0..length {
                    let bytes = value >> (8 * i) & 0xff;
                    made.push((next, bytes, true));
                    next = next.wrapping_add(bytes);
                }
            }
            29 | 30 => {
                upper = top == 1;
                if length > 0 {
                    if kind == 30 && address != last {
                        made.push((address, length, true));
                    }
                    (last, next) = (address, address.wrapping_add(length));
                }
            }
            25 => (syscall, switch, depth) = (false, false, 0),
            28 => match length {
                9 => {
                    arm = value & 8 != 0;
                    whole_system = value & 0x40000 != 0;
                    bimodal = bimodal || value & 0x2000 != 0;
                    upper = false;
                }
                23 => ended = true,
                27 => syscall = true,
                28 => syscall = false,
                34 => switch = true,
                35 => switch = false,
                43 => depth += 1,
                44 => depth = (depth - 1).max(0),
                _ => {}
            },
            _ => {}
        }
        for (from, bytes, fetch) in made {
            let kernel = syscall || switch || depth > 0 || (whole_system && upper);
            let first = from >> 12;
            let across = ((from & 0xfff) + bytes.max(1) - 1) >> 12;
            for page in 0..=across {
                n.accesses += 1;
                n.fetches += u64::from(fetch);
                n.kernel += u64::from(kernel);
                n.warmup += u64::from(bimodal && !ended);
                n.pages.insert((first + page) & 0x000f_ffff_ffff_ffff);
            }
            n.instructions += u64::from(fetch);
        }
    }
    n
}
