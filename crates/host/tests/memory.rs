//! The memory of processes, with a `/proc` made of files, against a naive look at the same files.

use nestwalk_contiguity::{MappedRun, RunSet};
use nestwalk_host::{Cut, MemoryError, PAGE_BYTES, ProcessMemory, Snapshot};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const AT: u64 = 0x7f00_0000_0000;

/// A `/proc` with one process.
struct Fake {
    dir: TempDir,
    smaps: String,
    entries: BTreeMap<u64, u64>,
    flags: BTreeMap<u64, u64>,
}

impl Fake {
    fn new() -> Self {
        let (entries, flags) = (BTreeMap::new(), BTreeMap::new());
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("5")).unwrap();
        let fake = Self { dir, smaps: String::new(), entries, flags };
        fake.write("stat", "5 (a) b) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 777 1 1");
        fake.write("comm", "a) b\n");
        fake
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join("5").join(name), text).unwrap();
    }

    fn page(&mut self, page: u64, entry: u64) {
        self.entries.insert(page, entry);
    }

    fn flag(&mut self, frame: u64, flags: u64) {
        self.flags.insert(frame, flags);
    }

    /// A mapping; `rss` in pages, if smaps is to say it.
    fn map(&mut self, start: u64, pages: u64, permissions: &str, rss: Option<u64>) {
        let end = start + pages * PAGE_BYTES;
        self.smaps += &format!("{start:x}-{end:x} {permissions} 00000000 00:00 0 \n");
        if let Some(rss) = rss {
            self.smaps += &format!("Rss: {} kB\nSwap: 0 kB\n", rss * 4);
        }
    }

    fn process(&self) -> Result<ProcessMemory, MemoryError> {
        self.write("smaps", &self.smaps);
        let save = |path: &str, entries: &BTreeMap<u64, u64>, end: u64| {
            let file = File::create(self.dir.path().join(path)).unwrap();
            file.set_len(end * 8).unwrap();
            for (number, entry) in entries {
                file.write_all_at(&entry.to_le_bytes(), number * 8).unwrap();
            }
        };
        // Holes of a file are zeros, as pages that are not mapped are.
        save("5/pagemap", &self.entries, 1 << 35);
        save("kpageflags", &self.flags, 1 << 20);
        ProcessMemory::open(self.dir.path(), 5)
    }

    fn read(&self) -> Snapshot {
        self.process().unwrap().read(&mut |_, _| true).unwrap()
    }
}

fn pages(set: &RunSet) -> Vec<(u64, u64, u16)> {
    let page = |r: MappedRun| (0..r.pages).map(move |i| (r.from + i, r.to + i, r.tag));
    set.iter().flat_map(page).collect()
}

#[test]
fn runs_are_what_the_entries_say() {
    let mut fake = Fake::new();
    let first = AT / PAGE_BYTES;
    // More than is read at once, with a run across the border, neighbours of other permissions, swap.
    fake.map(AT, 300_000, "rw-p", Some(100_000));
    fake.map(AT + 300_000 * PAGE_BYTES, 10, "rw-p", None);
    fake.map(AT + 300_010 * PAGE_BYTES, 10, "r--p", None);
    for i in (0..1000).chain(130_000..132_000).chain(299_990..300_020) {
        let frame = 5000 + i + if i % 7 == 0 && i < 1000 { 300_000 } else { 0 };
        fake.entries.insert(first + i, PRESENT | 1 << 61 | 1 << 55 | frame);
    }
    fake.entries.insert(first + 2000, SWAPPED | 12345);
    let seen = fake.read();
    assert!(!seen.frames_hidden && seen.cut.is_none() && seen.missing.is_empty());
    let tag = |page: u64| if page >= first + 300_010 { 0b0001 } else { 0b0011 };
    let naive = fake.entries.iter().filter(|(_, e)| *e & PRESENT != 0);
    let naive: Vec<_> = naive.map(|(p, e)| (*p, e & ((1 << 55) - 1), tag(*p))).collect();
    assert_eq!(pages(&seen.runs), naive);
    // 143 pages are elsewhere; what is between them, then one run, then two of other permissions.
    assert_eq!(seen.runs.len(), 2 * 143 + 1 + 2);
    let present: Vec<_> = seen.regions.iter().map(|r| (r.present, r.swapped)).collect();
    assert_eq!(present, [(3010, 1), (10, 0), (10, 0)]);
    assert_eq!(seen.regions[0].rss, 400_000 << 10);
}

#[test]
fn frames_are_hidden_or_low_but_not_both() {
    let mut fake = Fake::new();
    fake.map(0x40_0000, 8, "r-xp", Some(8));
    // A page whose frame has its own number is no hidden one.
    (0x400..0x408).for_each(|page| fake.page(page, PRESENT | page));
    let seen = fake.read();
    assert!(!seen.frames_hidden);
    assert_eq!((seen.runs.len(), seen.runs.pages()), (1, 8));

    fake.entries.values_mut().for_each(|e| *e = PRESENT);
    fake.entries.remove(&0x403);
    let seen = fake.read();
    assert!(seen.frames_hidden && seen.kinds.is_none());
    let lengths: Vec<u64> = seen.runs.iter().map(|r| r.pages).collect();
    assert_eq!(lengths, [3, 4]);
    assert_eq!(seen.missing.len(), 1);
    let text = seen.missing[0].to_string();
    assert!(text.starts_with("frame numbers: ") && text.contains("CAP_SYS_ADMIN"), "{text}");
}

#[test]
fn kinds_of_frames_are_counted() {
    let mut fake = Fake::new();
    fake.map(AT, 1024, "rw-p", Some(1024));
    let first = AT / PAGE_BYTES;
    (0..1024).for_each(|i| fake.page(first + i, PRESENT | (2048 + i)));
    let (head, tail, huge, ksm, thp, zero) = (1 << 15, 1 << 16, 1 << 17, 1 << 21, 1 << 22, 1 << 24);
    // One of 512, one of 16, the tails of one that begins elsewhere; the rest are single frames.
    (0..512).for_each(|i| {
        fake.flag(2048 + i, thp | if i == 0 { head } else { tail });
    });
    (0..16).for_each(|i| fake.flag(2600 + i, if i == 0 { head } else { tail }));
    (0..3).for_each(|i| fake.flag(2617 + i, huge | tail));
    fake.flags.insert(2620, ksm);
    fake.flags.insert(2621, zero);
    let kinds = fake.read().kinds.unwrap();
    assert_eq!((kinds.thp, kinds.hugetlb, kinds.ksm, kinds.zero), (512, 3, 1, 1));
    // The tails follow frame 2616, of which they look like the rest: 4 frames.
    let mut folios = vec![0; 10];
    (folios[9], folios[4], folios[2], folios[0]) = (512, 16, 4, 1024 - 512 - 16 - 4);
    assert_eq!(kinds.folios, folios);
}

#[test]
fn a_terabyte_of_nothing_is_not_read() {
    let mut fake = Fake::new();
    let first = AT / PAGE_BYTES;
    fake.map(AT, 1 << 28, "rw-p", Some(0));
    fake.map(AT + (1 << 40), 1 << 28, "rw-p", Some(2));
    fake.map(AT + (2 << 40), 1, "rw-p", Some(0));
    fake.map(0xffff_ffff_ff60_0000, 1, "--xp", Some(0));
    fake.entries.insert(first + (1 << 28) + 100, PRESENT | 7);
    fake.entries.insert(first + (1 << 28) + 200_000, PRESENT | 8);
    // The zero page, which smaps does not count.
    fake.entries.insert(first + (2 << 28), PRESENT | 9);
    let process = fake.process().unwrap();
    let mut steps = 0;
    let seen = process.read(&mut |done, total| {
        steps += 1;
        assert!(done <= total && total == (1 << 40) + PAGE_BYTES);
        true
    });
    let seen = seen.unwrap();
    assert!(steps < 10, "{steps} pieces were read");
    assert_eq!(pages(&seen.runs).iter().map(|p| p.1).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!(seen.missing.len(), 1);
    assert!(seen.missing[0].what.contains("2047 GiB"), "{}", seen.missing[0]);
}

#[test]
fn what_was_read_before_a_process_ends_is_kept() {
    let mut fake = Fake::new();
    let first = AT / PAGE_BYTES;
    fake.map(AT, 100, "rw-p", Some(100));
    fake.map(AT + (1 << 30), 100, "rw-p", Some(100));
    (0..100).for_each(|i| fake.page(first + i, PRESENT | (i + 9)));
    let process = fake.process().unwrap();
    let map = fake.dir.path().join("5/pagemap");
    File::options().write(true).open(map).unwrap().set_len((first + 50) * 8).unwrap();
    let seen = process.read(&mut |_, _| true).unwrap();
    assert_eq!((seen.cut, seen.runs.pages(), seen.runs.len()), (Some(Cut::Gone), 50, 1));

    // It ends at a moment of its own.
    let process = fake.process().unwrap();
    let seen = process.read(&mut |_, _| {
        fs::remove_file(fake.dir.path().join("5/stat")).ok();
        true
    });
    assert_eq!(seen.unwrap().cut, Some(Cut::Gone));
    fake.write("stat", "5 (a) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 777 1 1");
    let seen = process.read(&mut |_, _| false).unwrap();
    assert_eq!((seen.cut, seen.runs.pages()), (Some(Cut::Stopped), 0));
}

#[test]
fn without_pagemap_there_is_what_smaps_says() {
    let mut fake = Fake::new();
    fake.map(AT, 100, "rw-p", Some(60));
    let process = fake.process().unwrap();
    fs::remove_file(fake.dir.path().join("5/pagemap")).unwrap();
    let seen = process.read(&mut |_, _| true).unwrap();
    assert_eq!((seen.regions[0].rss, seen.runs.pages()), (60 * PAGE_BYTES, 0));
    assert!(seen.frames_hidden && seen.missing[0].what == "pages that are present");
    // Nor smaps: a kernel that knows neither.
    fs::rename(fake.dir.path().join("5/smaps"), fake.dir.path().join("5/maps")).unwrap();
    assert_eq!(process.regions().unwrap().len(), 1);
    fs::remove_file(fake.dir.path().join("kpageflags")).unwrap();
    File::create(fake.dir.path().join("5/pagemap")).unwrap().set_len(1 << 40).unwrap();
    let file = File::options().write(true).open(fake.dir.path().join("5/pagemap")).unwrap();
    file.write_all_at(&(PRESENT | 7).to_le_bytes(), AT / PAGE_BYTES * 8).unwrap();
    let seen = process.read(&mut |_, _| true).unwrap();
    assert_eq!((seen.runs.pages(), seen.frames_hidden, seen.kinds), (1, false, None));
    assert_eq!(seen.missing[0].what, "kinds of frames");
}

#[test]
fn what_has_no_memory_says_why() {
    let fake = Fake::new();
    let error = ProcessMemory::open(fake.dir.path(), 6).unwrap_err();
    assert_eq!(error.to_string(), "there is no process 6");
    let refused = |stat: &str| {
        fake.write("stat", stat);
        fake.process().unwrap().read(&mut |_, _| true).unwrap_err().to_string()
    };
    let line = |state: &str, flags: u64| {
        format!("5 (x) {state} 1 1 1 0 -1 {flags} 1 0 0 0 1 1 0 0 20 0 9 0 777 0 0")
    };
    assert!(refused(&line("S", 0x0020_8040)).contains("is a thread of the kernel"));
    assert!(refused(&line("Z", 0x40_0000)).contains("has ended, and its parent"));
    assert_eq!(refused(&line("S", 0x40_0000)), "there is no process 5");
    fake.write("stat", line("S", 0));
    let process = fake.process().unwrap();
    fake.write("smaps", "7f00-");
    let error = process.regions().unwrap_err().to_string();
    assert!(error.contains("5/smaps, line 1: `7f00-` is no mapping"), "{error}");
}
