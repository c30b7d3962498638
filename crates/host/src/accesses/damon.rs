//! DAMON, by its files in sysfs (Documentation/admin-guide/mm/damon/usage.rst): the kernel splits the
//! address space into regions whose pages are used alike, and looks at a page of each now and then.
//! It sees what KVM guests use, too (mm/damon/vaddr.c calls the notifiers of nested tables). Root only.

use super::{Job, SamplerKind, Touched, Window, write};
use crate::memory::PAGE_BYTES;
use crate::probe::Missing;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// From look to look.
const SAMPLE: Duration = Duration::from_millis(5);
/// Looks that are one count.
const LOOKS: u32 = 20;

pub(super) const KIND: SamplerKind = SamplerKind {
    name: "damon",
    sees: "how often pages of regions were found used, by DAMON",
    assumption: "all pages of a region that DAMON tells are used alike; pages whose translations stayed \
                 in a TLB count as not used",
    sees_guests: true,
    run,
};

fn run(job: &Job<'_>) -> Result<Vec<Window>, Missing> {
    let admin = job.roots.sys.join("kernel/mm/damon/admin/kdamonds");
    let missing =
        |path: &Path, error: &io::Error| job.missing("DAMON", path, error, "CONFIG_DAMON_SYSFS");
    let number = admin.join("nr_kdamonds");
    let running = fs::read_to_string(&number).map_err(|e| missing(&number, &e))?;
    if running.trim() != "0" {
        return Err(Missing {
            what: "DAMON".into(),
            why: format!("{} says {}: somebody else uses it", number.display(), running.trim()),
            remedy: "wait until that has ended".into(),
            fatal: false,
        });
    }
    write(&number, "1").map_err(|e| missing(&number, &e))?;
    // Whatever happens, it is as it was afterwards.
    let _last = Last { admin: admin.clone() };
    let kdamond = admin.join("0");
    begin(job, &kdamond).map_err(|(path, error)| match () {
        () if path.ends_with("operations") => Missing {
            what: "DAMON".into(),
            why: format!(
                "{}: {error}: this kernel's DAMON does not watch processes",
                path.display()
            ),
            remedy: "one with CONFIG_DAMON_VADDR would do".into(),
            fatal: false,
        },
        () => missing(&path, &error),
    })?;
    let whole = job.wait(job.time.max(2 * LOOKS * SAMPLE));
    let regions = regions(&kdamond).map_err(|e| missing(&kdamond.join("state"), &e))?;
    if regions.is_empty() && whole {
        return Err(Missing {
            what: "DAMON".into(),
            why: "it tells no region of the process".into(),
            remedy: "sample for longer (--seconds 10)".into(),
            fatal: false,
        });
    }
    Ok(windows(&regions))
}

/// Ends what was begun.
struct Last {
    admin: PathBuf,
}

impl Drop for Last {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = write(&self.admin.join("0/state"), "off");
        let _ = write(&self.admin.join("nr_kdamonds"), "0");
    }
}

/// Begins to watch the process; else the file that was not as expected.
fn begin(job: &Job<'_>, kdamond: &Path) -> Result<(), (PathBuf, io::Error)> {
    let (sample, most) = (SAMPLE.as_micros(), u64::MAX.to_string());
    let context = "contexts/0";
    let scheme = format!("{context}/schemes/0");
    let attributes = format!("{context}/monitoring_attrs");
    let steps = [
        ("contexts/nr_contexts".to_owned(), "1".to_owned()),
        (format!("{context}/operations"), "vaddr".into()),
        (format!("{attributes}/intervals/sample_us"), sample.to_string()),
        (format!("{attributes}/intervals/aggr_us"), (sample * u128::from(LOOKS)).to_string()),
        (format!("{attributes}/intervals/update_us"), "1000000".into()),
        (format!("{attributes}/nr_regions/min"), "100".into()),
        (format!("{attributes}/nr_regions/max"), "2000".into()),
        (format!("{context}/targets/nr_targets"), "1".into()),
        (format!("{context}/targets/0/pid_target"), job.process.pid.to_string()),
        (format!("{context}/schemes/nr_schemes"), "1".into()),
        (format!("{scheme}/action"), "stat".into()),
        (format!("{scheme}/access_pattern/sz/max"), most),
        (format!("{scheme}/access_pattern/nr_accesses/max"), u32::MAX.to_string()),
        (format!("{scheme}/access_pattern/age/max"), u32::MAX.to_string()),
        ("state".into(), "on".into()),
    ];
    for (file, value) in steps {
        let path = kdamond.join(file);
        write(&path, &value).map_err(|error| (path, error))?;
    }
    Ok(())
}

/// A region, and in how many of [`LOOKS`] looks it was used.
struct Region {
    start: u64,
    end: u64,
    looks: f64,
}

/// What DAMON knows now.
fn regions(kdamond: &Path) -> io::Result<Vec<Region>> {
    write(&kdamond.join("state"), "update_schemes_tried_regions")?;
    let folder = kdamond.join("contexts/0/schemes/0/tried_regions");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let number = |name: &str| {
            fs::read_to_string(entry.path().join(name)).ok()?.trim().parse::<u64>().ok()
        };
        // Beside regions there is a file with their bytes in all.
        if let (Some(start), Some(end), Some(looks)) =
            (number("start"), number("end"), number("nr_accesses"))
            && start < end
        {
            found.push(Region { start, end, looks: looks as f64 });
        }
    }
    found.sort_unstable_by_key(|r| r.start);
    Ok(found)
}

/// From how often a page was found used in so short a time follows how many are in longer ones, if each
/// look were by chance.
fn windows(regions: &[Region]) -> Vec<Window> {
    [1, 4, LOOKS]
        .map(|looks| {
            let touched = regions.iter().map(|r| {
                let share = (r.looks / f64::from(LOOKS)).clamp(0.0, 1.0);
                let used = 1.0 - (1.0 - share).powi(looks.cast_signed());
                Touched {
                    start: r.start,
                    end: r.end,
                    pages: used * ((r.end - r.start) / PAGE_BYTES) as f64,
                }
            });
            Window { seconds: f64::from(looks) * SAMPLE.as_secs_f64(), touched: touched.collect() }
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_used_at_every_look_are_used_in_every_window() {
        let region = |looks| Region { start: 0, end: 100 * PAGE_BYTES, looks };
        let pages = |looks| windows(&[region(looks)]).iter().map(Window::pages).collect::<Vec<_>>();
        assert_eq!(pages(20.0), [100.0; 3]);
        assert_eq!(pages(0.0), [0.0; 3]);
        let some = pages(10.0);
        assert!((some[0] - 50.0).abs() < 1e-9 && (some[1] - 93.75).abs() < 1e-9, "{some:?}");
    }
}
