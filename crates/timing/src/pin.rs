//! Which processor the calling thread runs on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::io;

const CALLING_THREAD: Pid = Pid::from_raw(0);

/// Numbers of the processors that the calling thread may run on.
///
/// # Errors
/// The kernel does not say.
pub fn processors() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(CALLING_THREAD)?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Lets the calling thread, and those that it starts from now on, run on these processors only.
///
/// # Errors
/// There are none of them.
pub fn pin(processors: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in processors.iter().filter(|cpu| **cpu < CpuSet::count()) {
        set.set(*cpu)?;
    }
    Ok(sched_setaffinity(CALLING_THREAD, &set)?)
}
