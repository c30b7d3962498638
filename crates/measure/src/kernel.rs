//! What the kernel's part of translation costs: faults, shootdowns, switches of address spaces.

use crate::estimate::Figure;
use crate::pattern::Sample;
use nestwalk_timing::{Pages, Region, loops, pin};
use serde::Serialize;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Costs in nanoseconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Kernel {
    /// A first store to a page: the fault, and a frame that is cleared.
    pub store_fault_ns: Figure<f64>,
    /// A first load from a page: the fault alone, since all such pages are the one of zeros.
    pub load_fault_ns: Figure<f64>,
    /// A first store to a page of 2 MiB.
    pub large_fault_ns: Figure<f64>,
    /// The right to store is taken away and given back, and the fault of the next store, while so many
    /// other threads run: threads and nanoseconds.
    pub protect_ns: Vec<(usize, f64)>,
    /// What one other thread adds: its processor is interrupted.
    pub shootdown_ns: Figure<f64>,
    /// A switch to another thread of the same address space, through a pipe.
    pub thread_switch_ns: Figure<f64>,
    /// The same to another process: with a load of CR3.
    pub process_switch_ns: Figure<f64>,
}

/// Measures the kernel. `all` are the processors that may be used.
pub fn kernel(all: &[usize]) -> Kernel {
    let figure = |found: io::Result<f64>, how: &str| match found {
        Ok(ns) => Figure::known(ns, how),
        Err(error) => Figure::unknown(error.to_string()),
    };
    let protect_ns = protects(all);
    let shootdown_ns = shootdown(&protect_ns);
    Kernel {
        store_fault_ns: figure(faults(Pages::Small, 64, true), "first stores to fresh pages"),
        load_fault_ns: figure(faults(Pages::Small, 64, false), "first loads from fresh pages"),
        large_fault_ns: figure(faults(Pages::Large, 1, true), "first stores to fresh pages"),
        protect_ns,
        shootdown_ns,
        thread_switch_ns: figure(
            threads(),
            "a byte to another thread and back by pipes, half of it",
        ),
        process_switch_ns: figure(
            process(),
            "a byte to another process and back by pipes, half of it",
        ),
    }
}

/// Nanoseconds of a first access to a page.
fn faults(pages: Pages, count: u64, store: bool) -> io::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..64 {
        let mut region = Region::reserve(count << pages.shift(), Pages::Large.bytes(), pages)?;
        let step = pages.bytes() as usize;
        let time = if store {
            loops::nanoseconds(|| region.bytes_mut().iter_mut().step_by(step).for_each(|b| *b = 1))
        } else {
            loops::nanoseconds(|| region.bytes().iter().step_by(step).fold(0, |sum, b| sum | *b))
        };
        times.push(time / count as f64);
    }
    Ok(Sample::of(times).ns)
}

/// Nanoseconds of a protection and the fault after it, by other threads that run.
fn protects(all: &[usize]) -> Vec<(usize, f64)> {
    let most = all.len().saturating_sub(1).min(3);
    let of = |threads| Some((threads, protect_beside(all, threads).ok()?));
    (0..=most).filter_map(of).collect()
}

/// What the first other thread adds.
fn shootdown(protects: &[(usize, f64)]) -> Figure<f64> {
    match protects {
        [(0, alone), (1, beside), ..] if *beside > alone * 1.1 => {
            Figure::known(beside - alone, "mprotect beside a thread that runs, less mprotect alone")
        }
        [(0, alone), (1, beside), ..] => Figure::unknown(format!(
            "{beside:.0} ns beside a thread, {alone:.0} alone: it may not have run then, or its TLB is \
             flushed later"
        )),
        _ => Figure::unknown("there is no other processor"),
    }
}

fn protect_beside(all: &[usize], threads: usize) -> io::Result<f64> {
    const TIMES: u32 = 50;
    let over = AtomicBool::new(false);
    let mut region = Region::reserve(Pages::Small.bytes(), Pages::Small.bytes(), Pages::Small)?;
    let mine = all.last().copied().into_iter().collect::<Vec<_>>();
    let times = std::thread::scope(|scope| {
        for cpu in all.iter().take(threads) {
            scope.spawn(|| {
                // A thread that cannot be kept there still runs somewhere.
                let _ = pin(&[*cpu]);
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut times = Vec::new();
        let all_of_it = || -> io::Result<()> {
            pin(&mine)?;
            for _ in 0..40 {
                let mut next = None;
                let time = loops::nanoseconds(|| next = Some(region.protect(TIMES)));
                region = next.ok_or(io::ErrorKind::Other)??;
                times.push(time / f64::from(TIMES));
            }
            Ok(())
        };
        let done = all_of_it();
        over.store(true, Ordering::Relaxed);
        done.map(|()| times)
    })?;
    Ok(Sample::of(times).ns)
}

/// Bytes there and back that are timed together.
const TRIPS: u32 = 200;

/// Nanoseconds of a byte's way to whoever answers and back, halved.
fn trips(mut to: impl Write, mut from: impl Read) -> io::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..30 {
        let mut result = Ok(());
        let time = loops::nanoseconds(|| {
            for _ in 0..TRIPS {
                let mut byte = [1];
                result = to.write_all(&byte).and_then(|()| from.read_exact(&mut byte));
                if result.is_err() {
                    break;
                }
            }
        });
        result?;
        times.push(time / f64::from(2 * TRIPS));
    }
    Ok(Sample::of(times).ns)
}

fn threads() -> io::Result<f64> {
    let ((mut there, to), (from, mut back)) = (io::pipe()?, io::pipe()?);
    std::thread::scope(|scope| {
        // It ends when the pipe does.
        scope.spawn(move || io::copy(&mut there, &mut back));
        trips(to, from)
    })
}

fn process() -> io::Result<f64> {
    // It inherits the processor, so that each byte needs two switches.
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let pipes = child.stdin.take().zip(child.stdout.take());
    let (to, from) = pipes.ok_or(io::ErrorKind::BrokenPipe)?;
    let found = trips(to, from);
    child.wait()?;
    found
}
