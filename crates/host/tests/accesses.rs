//! Samplers against files as the kernel has them, with a process that is files, too.

use nestwalk_contiguity::RunSet;
use nestwalk_host::{ProcessMemory, Roots, Snapshot, sample};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

const SHORT: Duration = Duration::from_millis(200);

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn read(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap()
}

/// A process 9, and where its files are.
fn process() -> (TempDir, Roots, ProcessMemory) {
    let dir = tempfile::tempdir().unwrap();
    let stat = "9 (x) S 1 1 1 0 -1 64 1 0 0 0 1 1 0 0 20 0 9 0 777 1 1";
    write(dir.path(), "proc/9/stat", stat);
    write(dir.path(), "proc/9/comm", "x\n");
    let (proc, sys) = (dir.path().join("proc"), dir.path().join("sys"));
    let process = ProcessMemory::open(&proc, 9).unwrap();
    let kvm = sys.join("kernel/debug/kvm");
    (dir, Roots { proc, sys, kvm }, process)
}

/// Pages 1000 to 1999 in frames 64 to 1063.
fn snapshot() -> Snapshot {
    let mut runs = RunSet::new();
    runs.map(1000, 64, 1000, 3);
    Snapshot { runs, ..Snapshot::default() }
}

const KDAMOND: &str = "sys/kernel/mm/damon/admin/kdamonds/0";

fn damon(dir: &Path) {
    write(dir, "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds", "0");
    let context = format!("{KDAMOND}/contexts/0");
    let scheme = format!("{context}/schemes/0");
    for file in ["intervals/sample_us", "intervals/aggr_us", "intervals/update_us"] {
        write(dir, &format!("{context}/monitoring_attrs/{file}"), "");
    }
    for file in ["min", "max"] {
        write(dir, &format!("{context}/monitoring_attrs/nr_regions/{file}"), "");
    }
    for file in ["operations", "targets/nr_targets", "targets/0/pid_target", "schemes/nr_schemes"] {
        write(dir, &format!("{context}/{file}"), "");
    }
    for file in ["sz", "nr_accesses", "age"] {
        write(dir, &format!("{scheme}/access_pattern/{file}/max"), "");
    }
    write(dir, &format!("{scheme}/action"), "");
    write(dir, &format!("{KDAMOND}/contexts/nr_contexts"), "");
    write(dir, &format!("{KDAMOND}/state"), "");
    let regions = [(1000_u64 << 12, 1500_u64 << 12, 20), (1500 << 12, 2000 << 12, 10)];
    for (i, (start, end, looks)) in regions.iter().enumerate() {
        let region = format!("{scheme}/tried_regions/{i}");
        write(dir, &format!("{region}/start"), &start.to_string());
        write(dir, &format!("{region}/end"), &end.to_string());
        write(dir, &format!("{region}/nr_accesses"), &looks.to_string());
    }
    write(dir, &format!("{scheme}/tried_regions/total_bytes"), "4096000");
}

#[test]
fn damon_is_asked_for_the_process_and_left_as_it_was() {
    let (dir, roots, process) = process();
    damon(dir.path());
    let (found, missing) =
        sample(&roots, &process, &snapshot(), SHORT, Some("damon"), &|| true).unwrap();
    assert_eq!((found.sampler.name, found.cut, missing.len()), ("damon", false, 0));
    // Of 5 ms half of the second region; of 100 ms all but a 2^-20th of it.
    let pages: Vec<f64> = found.windows.iter().map(nestwalk_host::Window::pages).collect();
    assert!((pages[0] - 750.0).abs() < 1e-6 && (pages[2] - 1000.0).abs() < 0.01, "{pages:?}");
    let target = format!("{KDAMOND}/contexts/0/targets/0/pid_target");
    assert_eq!(read(dir.path(), &target), "9");
    assert_eq!(read(dir.path(), &format!("{KDAMOND}/contexts/0/operations")), "vaddr");
    assert!(read(dir.path(), &format!("{KDAMOND}/state")).starts_with("off"));
    assert_eq!(read(dir.path(), "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds"), "0");
}

#[test]
fn damon_of_somebody_else_is_left_alone() {
    let (dir, roots, process) = process();
    damon(dir.path());
    let number = "sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds";
    write(dir.path(), number, "1\n");
    let missing =
        sample(&roots, &process, &snapshot(), SHORT, Some("damon"), &|| true).unwrap_err();
    assert!(missing[0].why.contains("somebody else uses it"), "{missing:?}");
    assert_eq!(read(dir.path(), number), "1\n");
    assert_eq!(read(dir.path(), &format!("{KDAMOND}/state")), "");
}

#[test]
fn frames_that_lose_their_mark_were_used() {
    let (dir, roots, process) = process();
    let bitmap = "sys/kernel/mm/page_idle/bitmap";
    write(dir.path(), bitmap, &"\0".repeat(1063_usize.div_ceil(64) * 8));
    let path = dir.path().join(bitmap);
    let end = AtomicBool::new(false);
    let windows = thread::scope(|scope| {
        // Frames 128 to 191 are pages 1064 to 1127, a word of the bitmap. They are used a while
        // after they are marked: which frames can be is looked at just after that.
        scope.spawn(|| {
            let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            while !end.load(Ordering::Relaxed) {
                let mut word = [0; 8];
                file.read_exact_at(&mut word, 128 / 8).unwrap();
                thread::sleep(Duration::from_millis(if word == [0; 8] { 1 } else { 12 }));
                if word != [0; 8] {
                    file.write_all_at(&[0; 8], 128 / 8).unwrap();
                }
            }
        });
        let found = sample(&roots, &process, &snapshot(), SHORT * 15, Some("idle"), &|| true);
        end.store(true, Ordering::Relaxed);
        found.unwrap().0.windows
    });
    assert_eq!(windows.len(), 3);
    for window in windows {
        let used = &window.touched;
        assert_eq!(used.len(), 1, "{used:?}");
        assert_eq!((used[0].start >> 12, used[0].end >> 12), (1064, 1128));
        assert!(window.seconds < 3.0);
    }
}

#[test]
fn without_any_sampler_each_says_why() {
    let (_dir, roots, process) = process();
    let missing = sample(&roots, &process, &snapshot(), SHORT, None, &|| true).unwrap_err();
    let what: Vec<&str> = missing.iter().map(|m| m.what.as_str()).collect();
    assert_eq!(what, ["idle pages", "DAMON", "references by smaps", "soft-dirty bits"]);
    assert!(missing.iter().all(|m| !m.remedy.contains("mount debugfs")), "{missing:?}");
}
