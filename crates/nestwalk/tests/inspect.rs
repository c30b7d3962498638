//! `inspect` against an independent reading of the same files, of processes whose memory is arranged
//! here, and of a VM made of files.

mod common;

use common::{Lab, count, parse};
use memmap2::{Advice, MmapMut};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

const PAGE: u64 = 4096;
const PRESENT: u64 = 1 << 63;

/// Frame by page of this process, entry by entry; frames are 0 if they are hidden.
fn naive(first: u64, pages: u64) -> BTreeMap<u64, u64> {
    let mut file = File::open("/proc/self/pagemap").expect("pagemap");
    let mut found = BTreeMap::new();
    for page in first..first + pages {
        let mut entry = [0; 8];
        file.seek(SeekFrom::Start(page * 8)).unwrap();
        file.read_exact(&mut entry).unwrap();
        let entry = u64::from_le_bytes(entry);
        if entry >> 63 == 1 {
            found.insert(page, entry & 0x7f_ffff_ffff_ffff);
        }
    }
    found
}

/// Lengths of the runs, by page and the one before it.
fn lengths(pages: &BTreeMap<u64, u64>) -> Vec<u64> {
    let mut lengths: Vec<u64> = Vec::new();
    let mut before = None;
    for (&page, &frame) in pages {
        let continues =
            before.is_some_and(|(p, f)| p + 1 == page && (f + 1 == frame || frame == 0));
        match lengths.last_mut() {
            Some(last) if continues => *last += 1,
            _ => lengths.push(1),
        }
        before = Some((page, frame));
    }
    lengths
}

/// Memory of this process, all of it touched.
fn arranged(bytes: usize, advice: Advice) -> MmapMut {
    let mut memory = MmapMut::map_anon(bytes).expect("memory");
    memory.advise(advice).expect("madvise: a kernel with transparent huge pages");
    memory.iter_mut().step_by(PAGE as usize).for_each(|byte| *byte = 1);
    memory
}

/// The mapping that has this address.
fn mapping(report: &Value, address: u64) -> Value {
    let number = |v: &Value| u64::from_str_radix(v.as_str().unwrap().trim_start_matches("0x"), 16);
    let mappings = report["mappings"].as_array().unwrap();
    let has = |m: &&Value| {
        let (start, end) = (number(&m["start"]).unwrap(), number(&m["end"]).unwrap());
        (start..end).contains(&address)
    };
    let found = mappings.iter().find(has).expect("the mapping").clone();
    let start = number(&found["start"]).unwrap();
    let pages = count(&found, "bytes") / PAGE;
    // Where it begins is needed as a number.
    let mut found = found;
    found["first"] = (start / PAGE).into();
    found["pages"] = pages.into();
    found
}

#[test]
fn it_agrees_with_an_independent_reading_of_pagemap() {
    let lab = Lab::new();
    let small = arranged(24 << 20, Advice::NoHugePage);
    let huge = arranged(24 << 20, Advice::HugePage);
    let command = format!("inspect {} --quiet", std::process::id());
    let mut agreed = 0;
    // The kernel may move pages, or make huge ones of them, at any time: then look again.
    for _ in 0..20 {
        let report = parse(&lab.ok(&format!("{command} --json")));
        let snapshot = lab.run(&format!("{command} --snapshot"));
        for (memory, advice) in [(&small, "no-huge"), (&huge, "huge")] {
            let m = mapping(&report, memory.as_ptr() as u64);
            assert_eq!(m["advice"], advice);
            let (first, pages) = (count(&m, "first"), count(&m, "pages"));
            let before = naive(first, pages);
            let hidden = before.values().all(|f| *f == 0);
            assert_eq!(report["frames_shown"], !hidden);
            let lengths = lengths(&before);
            assert!(before.len() as u64 * PAGE >= memory.len() as u64);
            assert_eq!(count(&m, "present_pages"), before.len() as u64);
            assert_eq!(count(&m, "resident_bytes"), before.len() as u64 * PAGE);
            let told = (count(&m, "runs"), count(&m, "longest_pages"));
            let same = told == (lengths.len() as u64, lengths.iter().copied().max().unwrap());
            if hidden {
                assert_eq!(snapshot.code, 2);
                assert!(
                    snapshot.err.contains("are hidden") && snapshot.err.contains("run as root")
                );
                agreed += 4 * usize::from(same);
                continue;
            }
            let runs = parse(&snapshot.out)["runs"].as_array().unwrap().clone();
            let mut all = BTreeMap::new();
            for run in &runs {
                let [from, to, n, _] = [0, 1, 2, 3].map(|i| run[i].as_u64().unwrap());
                all.extend((0..n).map(|i| (from + i, to + i)));
            }
            all.retain(|page, _| (first..first + pages).contains(page));
            agreed += usize::from(same && all == before);
        }
        if agreed >= 4 {
            break;
        }
    }
    assert!(agreed >= 4, "it agreed {agreed} times");
}

#[test]
fn page_sizes_follow_what_the_program_asked_for() {
    let lab = Lab::new();
    let small = arranged(16 << 20, Advice::NoHugePage);
    let huge = arranged(64 << 20, Advice::HugePage);
    let report = parse(&lab.ok(&format!("inspect {} --json --quiet", std::process::id())));
    let of = |m: &MmapMut| mapping(&report, m.as_ptr() as u64);
    assert_eq!(count(&of(&small), "huge_bytes"), 0);
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
    if enabled.contains("[never]") {
        assert_eq!(count(&of(&huge), "huge_bytes"), 0);
        return;
    }
    // Memory of this machine would have to be fragmented beyond compaction.
    let bytes = count(&of(&huge), "huge_bytes");
    assert!(bytes > 32 << 20, "{bytes} of 64 MiB in huge pages");
    assert!(count(&report["page_size_bytes"], "2097152") >= bytes);
    if report["frames_shown"] == true {
        // A huge page is one run at most; there are 512 pages in it.
        assert!(count(&of(&huge), "runs") <= 32 + (64 * 256 - bytes / PAGE));
        assert!(count(&of(&huge), "longest_pages") >= 512);
        let process = &report["dimensions"]["process"];
        let entries = |name: &str| count(&process["entries"][name], "100");
        assert_eq!(entries("4k"), count(process, "pages"));
        assert!(entries("2m") <= entries("4k") - bytes / (2 << 20) * 511);
        assert_eq!(entries("ranges"), count(process, "runs"));
        assert!(entries("offsets") <= entries("ranges"));
        assert!(
            entries("clustered") <= entries("colt-8") && entries("colt-8") <= entries("colt-4")
        );
    }
    let text = lab.ok(&format!("inspect {} --quiet", std::process::id()));
    for part in ["resident of", "page sizes: ", "asked for", "refused", "offsets (SpOT)", "99 %"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let rows = lab.ok(&format!("inspect {} --quiet --format csv", std::process::id()));
    assert!(rows.starts_with("start,end,permissions,name,bytes,resident_bytes,"), "{rows}");
}

#[test]
fn without_privilege_it_tells_what_it_can() {
    let root = fs::read_to_string("/proc/self/status").unwrap().contains("\nUid:\t0\t");
    if !root {
        // The tests above have had no privilege, and the first process is root's.
        let error = Lab::new().refused("inspect 1 --quiet");
        assert!(error.contains("run as root"), "{error}");
        return;
    }
    let lab = Lab::new();
    // Where another user may run it.
    let binary = lab.path("nestwalk");
    fs::copy(env!("CARGO_BIN_EXE_nestwalk"), &binary).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(binary.parent().unwrap(), open).unwrap();
    let nobody = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
        command.stdin(Stdio::null());
        command
    };
    let inspect = |pid: u32, more: &[&str]| {
        let mut command = nobody(binary.to_str().unwrap());
        let output = command.args(["inspect", &pid.to_string(), "--quiet"]).args(more).output();
        common::ran(output.unwrap())
    };
    let mut child =
        nobody("sleep").arg("60").stdout(Stdio::null()).spawn().expect("setpriv of util-linux");
    // It is no sleep before setpriv has made it one.
    while fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap() != "sleep\n" {
        std::thread::yield_now();
    }
    let told = inspect(child.id(), &["--json"]);
    let report = parse(&told.out);
    assert_eq!((told.code, &report["frames_shown"]), (0, &Value::Bool(false)));
    assert_eq!(report["missing"][0]["what"], "frame numbers");
    assert!(count(&report, "resident_bytes") > 0);
    // All that is resident is present, and the zero page besides.
    let (present, resident) = (count(&report, "present_pages"), count(&report, "resident_bytes"));
    assert!(present * PAGE >= resident, "{present} pages, {resident} bytes");
    assert_eq!(count(&report["dimensions"]["process"], "pages"), present);
    let told = inspect(child.id(), &[]);
    assert!(
        told.out.contains("Frames are hidden") && told.out.contains("(VA to ?)"),
        "{}",
        told.out
    );
    assert!(told.err.contains("nestwalk: without frame numbers: "), "{}", told.err);
    let told = inspect(child.id(), &["--snapshot"]);
    told.assert_refused("--snapshot");
    child.kill().unwrap();
    child.wait().unwrap();
    let told = inspect(std::process::id(), &[]);
    told.assert_refused("of root's process");
    assert!(
        told.err.contains("Permission denied") && told.err.contains("run as root"),
        "{}",
        told.err
    );
}

#[test]
fn watching_ends_with_the_process() {
    let lab = Lab::new();
    let mut child = Command::new("sleep").arg("1").spawn().unwrap();
    let out = lab.ok(&format!("inspect {} --watch 0.1 --json", child.id()));
    let events: Vec<Value> = out.lines().map(parse).collect();
    let (last, looks) = events.split_last().unwrap();
    assert_eq!((&last["event"], &last["why"]), (&"ended".into(), &"the process has ended".into()));
    assert_eq!(count(last, "looks"), looks.len() as u64);
    assert!(looks.len() > 2, "{out}");
    assert!(looks.iter().all(|l| l["event"] == "look" && count(l, "resident_bytes") > 0));
    assert!(looks.is_sorted_by_key(|l| l["seconds"].as_f64().unwrap().to_bits()));
    child.wait().unwrap();

    let mut child = Command::new("sleep").arg("0.5").spawn().unwrap();
    let out = lab.ok(&format!("inspect {} --watch 0.1", child.id()));
    child.wait().unwrap();
    assert!(out.contains("the process has ended after "), "{out}");
    assert!(out.contains("entries to cover"), "{out}");
    assert!(
        lab.refused(&format!("inspect {} --watch 0.1", child.id())).contains("there is no process")
    );
}

/// A VM: RAM of 4 GiB at `0x7f0000000000`, of which pages 0 to 1023 and the first 100 above 4 GiB have
/// frames, in runs of 300.
fn vm(lab: &Lab) {
    let first = 0x7f_0000_0000 / PAGE * 256;
    fs::create_dir_all(lab.path("proc/9")).unwrap();
    lab.write(
        "proc/9/stat",
        "9 (qemu-system-x86) S 1 1 1 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 9 0 777 1 1",
    );
    lab.write("proc/9/comm", "qemu-system-x86\n");
    lab.write("proc/9/cmdline", "/usr/bin/qemu-system-x86_64\0-m\x004G\0-smp\x002\0");
    lab.write(
        "proc/9/smaps",
        "1000-3000 rw-p 0 00:00 0 [heap]\nRss: 8 kB\n\
         7f0000000000-7f0100000000 rw-p 0 00:00 0 \nRss: 4496 kB\n",
    );
    let file = File::create(lab.path("proc/9/pagemap")).unwrap();
    file.set_len(1 << 40).unwrap();
    let entry = |page: u64, frame: u64| {
        file.write_all_at(&(PRESENT | frame).to_le_bytes(), page * 8).unwrap();
    };
    (1..3).for_each(|page| entry(page, 77));
    (0..1024).for_each(|i| entry(first + i, frame(i)));
    (0..100).for_each(|i| entry(first + (3 << 18) + i, 90_000 + i));
    File::create(lab.path("proc/kpageflags")).unwrap().set_len(1 << 20).unwrap();
}

fn frame(gpa_page: u64) -> u64 {
    50_000 + gpa_page + gpa_page / 300 * 1000
}

#[test]
fn a_vm_has_both_dimensions_together() {
    let lab = Lab::new();
    vm(&lab);
    let report = lab.json("inspect 9 --proc proc");
    let host = &report["dimensions"]["host"];
    assert_eq!((count(host, "pages"), count(host, "runs")), (1124, 5));
    // Two pages of one frame are two runs.
    assert_eq!(count(&report["dimensions"]["process"], "runs"), 7);

    // gVA pages 16 to 715 on gPA pages 200 to 899; 4 pages on the first above 4 GiB; 5 on none.
    let runs = "[[16,200,700,3],[2000,1048576,4,3],[3000,5000,5,1]]";
    let guest = |runs: &str| {
        format!(
            r#"{{"format":"nestwalk-snapshot","version":1,"pid":7,"name":"db","complete":true,"page_bytes":4096,"runs":{runs}}}"#
        )
    };
    lab.write("guest.json", guest(runs));
    let report = lab.json("inspect 9 --proc proc --guest guest.json");
    let d = &report["dimensions"];
    let of = |name: &str| (count(&d[name], "pages"), count(&d[name], "runs"));
    assert_eq!((of("guest"), of("host"), of("both")), ((709, 3), (1124, 5), (704, 4)));
    assert_eq!(report["guest"]["pages_without_frame"], 5);
    // 200..300, 300..600, 600..900 of gPA, and the 4 pages: the largest two have 600 of 704.
    assert_eq!(count(&d["both"], "longest_pages"), 300);
    let entries = &d["both"]["entries"]["ranges"];
    assert_eq!(["80", "90", "99", "100"].map(|p| count(entries, p)), [2, 3, 3, 4]);
    let text = lab.ok("inspect 9 --proc proc --guest guest.json");
    for part in
        ["guest (gVA to gPA)", "both (gVA to hPA)", "guest process 7 (db): 20 KiB of it have"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // By hand, it is the same.
    let by_hand = "--ram 0x7f0000000000:3GiB --ram 7f00c0000000:1GiB:100000000";
    let again = lab.json(&format!("inspect 9 --proc proc --guest guest.json {by_hand}"));
    assert_eq!(again["dimensions"], report["dimensions"]);

    let refused = |args: &str| lab.refused(&format!("inspect 9 --proc proc {args}"));
    lab.write("bad.json", guest("[[16,200,700,3],[700,0,1,3]]"));
    assert!(refused("--guest bad.json").contains("run 1: page 700"));
    assert!(refused("--guest none.json").contains("none.json"));
    assert!(refused("--ram 1000:1GiB").contains("only 8192 of these bytes are mapped"));
    assert!(refused("--ram 7f0000000000:1GiB --ram 7f00c0000000:1GiB").contains("another piece"));
    assert!(refused("--ram 7f0000000000").contains("ADDRESS:BYTES:GPA"));
    lab.write("proc/9/cmdline", "qemu-system-x86_64\0-m\x005G\0");
    let error = refused("--guest guest.json");
    assert!(error.contains("`-m` says 5368709120 bytes") && error.contains("--ram"), "{error}");
    let ran = lab.run("inspect 9 --proc proc");
    assert!(
        ran.code == 0 && ran.err.contains("without the host's dimension of guest RAM"),
        "{}",
        ran.err
    );
    lab.write("proc/9/cmdline", "sleep\x0060\0");
    assert!(refused("--guest guest.json").contains("say where guest RAM is with --ram"));
}

/// Every key of an object and of what is in it, but for keys that are data.
fn keys(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let data = key.bytes().next().is_some_and(|b| b.is_ascii_digit());
                found.extend((!data).then(|| key.clone()));
                keys(inner, found);
            }
        }
        Value::Array(all) => all.iter().for_each(|inner| keys(inner, found)),
        _ => {}
    }
}

#[test]
fn every_field_and_technique_is_in_the_document() {
    let lab = Lab::new();
    vm(&lab);
    lab.write(
        "guest.json",
        r#"{"format":"nestwalk-snapshot","version":1,"pid":7,"name":"db","complete":true,"page_bytes":4096,"runs":[]}"#,
    );
    let mut all = Vec::new();
    keys(&lab.json("inspect 9 --proc proc --guest guest.json"), &mut all);
    keys(&parse(&lab.read("guest.json")), &mut all);
    assert!(all.len() > 100, "{all:?}");
    let text = fs::read_to_string(common::workspace().join("docs/inspect.md")).unwrap();
    for key in all {
        let known = ["`KEY`", ".KEY`", "KEY[]`"].map(|form| form.replace("KEY", &key));
        assert!(
            known.iter().any(|form| text.contains(form)),
            "docs/inspect.md does not explain {key}"
        );
    }
}

#[test]
fn what_cannot_be_inspected_says_why_and_partial_results_are_kept() {
    let lab = Lab::new();
    vm(&lab);
    let file = File::options().write(true).open(lab.path("proc/9/pagemap")).unwrap();
    file.set_len((0x7f_0000_0000 / PAGE * 256 + 512) * 8).unwrap();
    let ran = lab.run("inspect 9 --proc proc --json");
    ran.assert_refused("a process that goes away");
    assert!(ran.err.contains("ended, or began another program, while it was read"), "{}", ran.err);
    let report = parse(&ran.out);
    assert_eq!((&report["complete"], count(&report, "present_pages")), (&Value::Bool(false), 514));

    assert!(lab.refused("inspect 4294967295 --quiet").contains("there is no process 4294967295"));
    for bad in ["inspect", "inspect 0", "inspect -1", "inspect x", "inspect 1 --json --format csv"]
    {
        lab.refused(bad);
    }
    assert!(lab.refused("inspect 1 --watch 0").contains("0.01 to 86400 seconds"));
    assert!(lab.refused("inspect 1 --watch NaN").contains("0.01 to 86400 seconds"));
    // Thread 2 is the kernel's wherever its threads can be seen.
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
        let error = lab.refused("inspect 2");
        assert!(error.contains("(kthreadd) is a thread of the kernel"), "{error}");
    }
}
