//! Which memory a live process uses, by what an unpatched kernel tells of it: a sampler clears a mark,
//! waits, and looks what has it again.
//!
//! Samplers see whether a page was used in a window of time, never how often, and none sees addresses
//! within a page. What each sees and costs stands at the head of its file.

mod counters;
mod damon;
mod idle;
mod referenced;
mod soft_dirty;

pub use counters::{Counts, ProcessCounters};

use crate::Roots;
use crate::memory::{ProcessMemory, Snapshot};
use crate::probe::Missing;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// A range of addresses, of whose pages some were used.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Touched {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Pages of 4 KiB of it that were used; which ones is not known if they are not all.
    pub pages: f64,
}

/// What was used in one window of time, or on average in several as long.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Window {
    /// Its length.
    pub seconds: f64,
    /// What was used, ascending.
    pub touched: Vec<Touched>,
}

impl Window {
    /// Pages that were used.
    pub fn pages(&self) -> f64 {
        self.touched.iter().map(|t| t.pages).sum()
    }
}

/// What samples say of a process.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// By what.
    pub sampler: &'static SamplerKind,
    /// Windows, the shortest first.
    pub windows: Vec<Window>,
    /// The process ended, or nobody wanted more, before all windows were over.
    pub cut: bool,
}

/// A way to see accesses.
#[derive(Debug)]
pub struct SamplerKind {
    /// Its name.
    pub name: &'static str,
    /// What it sees, in a few words.
    pub sees: &'static str,
    /// What is wrong with what it sees.
    pub assumption: &'static str,
    /// Whether it sees what a guest of KVM uses, whose accesses mark nested tables.
    pub sees_guests: bool,
    run: fn(&Job<'_>) -> Result<Vec<Window>, Missing>,
}

/// Every sampler, the best first.
pub static SAMPLERS: [SamplerKind; 4] =
    [idle::KIND, damon::KIND, referenced::KIND, soft_dirty::KIND];

/// What a sampler is to do.
struct Job<'a> {
    roots: &'a Roots,
    process: &'a ProcessMemory,
    snapshot: &'a Snapshot,
    /// Time that there is.
    time: Duration,
    go_on: &'a dyn Fn() -> bool,
}

/// Samples a process for about `time`, by the first sampler that works, or by the one that is wanted.
/// `go_on` ends it by `false`. With it comes what better samplers lacked.
///
/// # Errors
/// What each sampler lacked, if none works.
pub fn sample(
    roots: &Roots,
    process: &ProcessMemory,
    snapshot: &Snapshot,
    time: Duration,
    wanted: Option<&str>,
    go_on: &dyn Fn() -> bool,
) -> Result<(Sampling, Vec<Missing>), Vec<Missing>> {
    let mut missing = Vec::new();
    let job = Job { roots, process, snapshot, time, go_on };
    for sampler in SAMPLERS.iter().filter(|s| wanted.is_none_or(|name| name == s.name)) {
        match (sampler.run)(&job) {
            Ok(windows) => {
                let cut = !go_on() || !process.alive();
                return Ok((Sampling { sampler, windows, cut }, missing));
            }
            Err(reason) => missing.push(reason),
        }
    }
    Err(missing)
}

impl Job<'_> {
    /// Lengths of windows in order, each several times: short ones tell rates, long ones what is in use.
    fn ladder(&self) -> Vec<(Duration, u32)> {
        vec![(self.time / 100, 4), (self.time / 12, 3), (self.time / 3, 2)]
    }

    /// Waits; `false` if it shall not go on, or the process has ended.
    fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            if !(self.go_on)() || !self.process.alive() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// Runs all windows: `clear` begins one, `look` sees what was used in it, of the same ranges in the
    /// same order as long as mappings stay. It ends early where the process does.
    fn windows(
        &self,
        clear: &mut dyn FnMut() -> io::Result<()>,
        look: &mut dyn FnMut() -> io::Result<Vec<Touched>>,
    ) -> io::Result<Vec<Window>> {
        let mut windows = Vec::new();
        for (length, times) in self.ladder() {
            let mut same = Vec::new();
            for _ in 0..times {
                let begin = Instant::now();
                clear()?;
                let cleared = Instant::now();
                if !self.wait(length) {
                    break;
                }
                let looking = Instant::now();
                let touched = look()?;
                // Marks go and are seen one after the other: a page's window begins when its own goes.
                let (clearing, seeing) = (cleared - begin, looking.elapsed());
                let seconds = (looking - cleared + clearing / 2 + seeing / 2).as_secs_f64();
                same.push(Window { seconds, touched });
            }
            windows.extend(mean(&same));
            if !self.process.alive() || !(self.go_on)() {
                break;
            }
        }
        match windows.is_empty() {
            true => Err(io::Error::other("the process ended before the first window did")),
            false => Ok(windows),
        }
    }

    /// The reason why a file does not do what a sampler needs.
    fn missing(&self, what: &str, path: &Path, error: &io::Error, option: &str) -> Missing {
        Missing {
            what: what.to_owned(),
            why: format!("{}: {error}", path.display()),
            remedy: remedy(error, option, path.starts_with(&self.roots.sys)),
            fatal: false,
        }
    }
}

/// What to do, by the system's error: what is forbidden is no option of the kernel, nor the reverse.
fn remedy(error: &io::Error, option: &str, of_system: bool) -> String {
    const EPERM: i32 = 1;
    const EACCES: i32 = 13;
    const EBUSY: i32 = 16;
    match error.raw_os_error() {
        Some(EPERM) => "the kernel forbids it: it takes CAP_SYS_ADMIN, and no lockdown".into(),
        Some(EACCES) if of_system => "no permission: it is root's".into(),
        Some(EACCES) => {
            "no permission: run as root, or as the user to whom the process belongs".into()
        }
        Some(EBUSY) => "something else uses it: wait until that has ended".into(),
        _ if error.kind() == io::ErrorKind::NotFound => {
            format!("this kernel is built without {option}; one with it would do")
        }
        _ => "the kernel does not do it".into(),
    }
}

/// The average of windows of one length; ranges are those of the last, and pages the mean of those that
/// have the range.
fn mean(windows: &[Window]) -> Option<Window> {
    let last = windows.last()?;
    let n = windows.len() as f64;
    let touched = last.touched.iter().map(|t| {
        let same = windows.iter().filter_map(|w| {
            let at = w.touched.binary_search_by_key(&t.start, |o| o.start).ok()?;
            w.touched.get(at).filter(|o| o.end == t.end)
        });
        let (sum, times) = same.fold((0.0, 0.0), |(sum, n), o| (sum + o.pages, n + 1.0));
        Touched { pages: sum / f64::max(times, 1.0), ..*t }
    });
    let seconds = windows.iter().map(|w| w.seconds).sum::<f64>() / n;
    Some(Window { seconds, touched: touched.collect() })
}

/// Writes a word into a file of the kernel.
fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| io::Write::write_all(&mut f, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_one_length_are_one() {
        let window = |seconds, pages: [f64; 2]| Window {
            seconds,
            touched: [0, 1]
                .map(|i| Touched { start: i << 20, end: (i + 1) << 20, pages: pages[i as usize] })
                .to_vec(),
        };
        let found = mean(&[window(1.0, [2.0, 0.0]), window(3.0, [4.0, 8.0])]).unwrap();
        assert!((found.seconds - 2.0).abs() < 1e-9 && (found.pages() - 7.0).abs() < 1e-9);
        assert!((found.touched[1].pages - 4.0).abs() < 1e-9);
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn what_is_forbidden_is_not_said_to_be_missing() {
        let of = |n| remedy(&io::Error::from_raw_os_error(n), "CONFIG_X", false);
        assert!(of(1).contains("CAP_SYS_ADMIN") && !of(1).contains("CONFIG_X"));
        assert!(of(2).contains("built without CONFIG_X"));
        assert!(of(13).contains("no permission"));
    }
}
