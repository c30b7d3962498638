//! Time, and the wish to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A clock that can be waited for.
pub trait Clock {
    /// Nanoseconds since a fixed moment.
    fn now_ns(&self) -> u64;

    /// Waits until `now_ns` is `until_ns`. False if somebody wants to stop before.
    fn wait_until(&mut self, until_ns: u64) -> bool;
}

/// The system's monotonic clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    stop: Arc<AtomicBool>,
}

impl SystemClock {
    /// A clock that begins now. Waiting ends early once `stop` is true.
    pub fn new(stop: Arc<AtomicBool>) -> Self {
        Self { start: Instant::now(), stop }
    }
}

impl Clock for SystemClock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wait_until(&mut self, until_ns: u64) -> bool {
        // A signal's handler only sets the flag: slices keep the answer prompt.
        const SLICE: u64 = 50_000_000;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = until_ns.saturating_sub(self.now_ns());
            if left == 0 {
                return true;
            }
            thread::sleep(Duration::from_nanos(left.min(SLICE)));
        }
    }
}
