//! `advise`: sources whose answer is known, processes whose memory use is arranged here, a virtual
//! machine that QEMU emulates, and what cannot be seen.

mod common;

use common::{Lab, count, number, parse};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A child that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

/// A program with so many MiB, which goes through the first part of them again and again, page by page.
fn touching(all: u64, used: u64) -> Running {
    let program = "
        my ($all, $used) = map { $_ << 20 } @ARGV; my $b = 'x' x $all;
        $| = 1; print qq{ready\\n};
        while (1) { for (my $i = 0; $i < $used; $i += 4096) { substr($b, $i, 1) = 'y' } }";
    let child = Command::new("perl")
        .args(["-e", program, &all.to_string(), &used.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("perl");
    let mut running = Running(child);
    let mut line = String::new();
    BufReader::new(running.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    running
}

fn choice<'a>(advice: &'a Value, machine: &str) -> &'a Value {
    let choices = advice["choices"].as_array().unwrap();
    // What the table's headings name.
    let keys = ["machine", "gain_percent", "walks_per_1000_instructions", "translation_percent"];
    assert!(choices.iter().all(|c| keys.iter().all(|key| !c[*key].is_null())), "{choices:?}");
    choices.iter().find(|c| c["machine"] == machine).unwrap()
}

fn low(range: &Value) -> f64 {
    number(range, "low")
}

fn high(range: &Value) -> f64 {
    number(range, "high")
}

/// What was used in the longest window, bytes.
fn used(advice: &Value) -> f64 {
    let windows = advice["seen"]["windows"].as_array().unwrap();
    number(windows.last().unwrap(), "used_bytes")
}

const QUICK: &str = "--quiet --seconds 1 --accesses 20k";

#[test]
fn the_gain_is_what_compare_measures() {
    let lab = Lab::new();
    let source = "uniform --footprint 64MiB --accesses 50k";
    let advice = lab.json(&format!("advise {source} --repeat 2 --quiet"));
    let machines = "nested:4k+4k,nested:thp+thp,shadow:thp+thp,dual-direct:4k+4k";
    let mut gains = Vec::new();
    for seed in 1..3 {
        let results =
            lab.json(&format!("compare {source} --machines {machines} --seed {seed} --quiet"));
        let cycles = |name: &str| {
            let all = results["machines"].as_array().unwrap();
            let machine = all.iter().find(|m| m["name"].as_str().unwrap().starts_with(name));
            number(machine.unwrap(), "total_cycles")
        };
        gains.push(100.0 * (1.0 - cycles("nested:thp+thp") / cycles("nested:4k+4k")));
    }
    let gain = &choice(&advice, "nested:thp+thp")["gain_percent"];
    let (least, most) = (gains[0].min(gains[1]), gains[0].max(gains[1]));
    assert!(
        (low(gain) - least).abs() < 1e-9 && (high(gain) - most).abs() < 1e-9,
        "{gain} {gains:?}"
    );
    // Random accesses to more than TLBs reach: both, and that is what is advised.
    let answer = &advice["advice"];
    assert_eq!(
        (&answer["large_pages_in_guest"], &answer["large_pages_in_host"]),
        (&true.into(), &true.into())
    );
    assert_eq!(answer["gain_percent"], *gain);
    assert!(low(gain) > 5.0, "{gain}");
    assert_eq!(advice["runs"], serde_json::json!(["seed 1", "seed 2"]));
    // The bound of what anything can gain.
    let direct = high(&choice(&advice, "dual-direct:4k+4k")["gain_percent"]);
    let bound = high(&answer["translation_percent"]) + high(&answer["vmm_percent"]);
    assert!(direct <= bound + 0.1, "{direct} {bound}");
}

#[test]
fn what_fits_the_tlbs_is_left_as_it_is() {
    let lab = Lab::new();
    let advice = lab.json("advise sequential --footprint 128KiB --accesses 50k --repeat 1 --quiet");
    let answer = &advice["advice"];
    assert_eq!(answer["large_pages_in_guest"], false, "{answer}");
    assert_eq!(answer["large_pages_in_host"], false, "{answer}");
    let text = lab.ok("advise sequential --footprint 128KiB --accesses 50k --repeat 1 --quiet");
    assert!(text.contains("Leave pages as they are"), "{text}");
}

#[test]
fn the_table_fits_eighty_columns_and_csv_has_its_rows() {
    let lab = Lab::new();
    let line = "advise uniform --footprint 16MiB --accesses 20k --quiet";
    let out = lab.command().env("COLUMNS", "80").args(line.split(' ')).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(text.matches("choice  ").count(), 1, "one table: {text}");
    let csv = lab.ok(&format!("{line} --format csv"));
    assert_eq!(csv.lines().count(), 1 + 12, "{csv}");
    for word in
        ["choice", "sampled", "busy", "gain %", "walks /1000 instr.", "stand-in", "narrower"]
    {
        let told = lab.run_with(["explain", word]);
        assert!(
            told.code == 0 && told.out.contains("advise") || word == "stand-in",
            "{word}: {}",
            told.err
        );
    }
}

#[test]
fn of_a_process_the_memory_that_it_uses_is_found() {
    let lab = Lab::new();
    for (all, mine) in [(64, 64), (64, 8)] {
        let child = touching(all, mine);
        let advice = lab.json(&format!("advise {} --sampler referenced {QUICK}", child.pid()));
        let seen = &advice["seen"];
        assert_eq!((&seen["kind"], &seen["sampler"]), (&"program".into(), &"referenced".into()));
        assert!(count(seen, "resident_bytes") >= all << 20, "{seen}");
        // What it goes through, and the interpreter.
        let bytes = (mine << 20) as f64;
        assert!(used(&advice) > 0.9 * bytes && used(&advice) < bytes + 8e6, "{seen}");
        assert_eq!(advice["runs"], serde_json::json!(["in order", "at random"]));
        let walks = &choice(&advice, "nested:4k+4k")["walks_per_1000_instructions"];
        // The stand-ins are far apart, and the answer says so.
        assert!(low(walks) < high(walks) / 2.0, "{walks}");
        assert_eq!(advice["complete"], true);
    }
}

#[test]
fn a_process_that_ends_meanwhile_is_told_of_with_what_was_found() {
    let lab = Lab::new();
    let mut child = touching(16, 16);
    let pid = child.pid();
    let mut advising = lab.command();
    let line =
        format!("advise {pid} --json --quiet --seconds 8 --accesses 20k --sampler referenced");
    let advising = advising.args(line.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
    let advising = advising.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let out = advising.wait_with_output().unwrap();
    let errors = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains(&format!("process {pid} (perl) ended while it was sampled")),
        "{errors}"
    );
    let told = parse(&String::from_utf8(out.stdout).unwrap());
    assert_eq!(told["complete"], false);
    assert!(used(&told) > 12e6 && told["advice"].is_object(), "{told}");
}

/// A boot sector that goes from 16 to 48 MiB again and again, adding 1 to a word of each page. Assembled
/// from: cli; xor %ax,%ax; mov %ax,%ds; lgdtl; protected mode; 1: mov $0x1000000,%edi; 2: incl (%edi);
/// add $4096,%edi; cmp $0x3000000,%edi; jb 2b; jmp 1b; a flat table of segments.
const BOOT: [u8; 86] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0x0f, 0x01, 0x16, 0x50, 0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01,
    0x0f, 0x22, 0xc0, 0xea, 0x18, 0x7c, 0x08, 0x00, 0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0xbf, 0x00,
    0x00, 0x00, 0x01, 0xff, 0x07, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x81, 0xff, 0x00, 0x00, 0x00,
    0x03, 0x72, 0xf0, 0xeb, 0xe9, 0x8d, 0x76, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00,
    0x17, 0x00, 0x38, 0x7c, 0x00, 0x00,
];

#[test]
fn a_virtual_machine_is_known_and_its_memory_told_apart() {
    let lab = Lab::new();
    let mut disk = BOOT.to_vec();
    disk.resize(512, 0);
    disk[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk = lab.write("boot.img", disk);
    let qemu = Command::new("qemu-system-x86_64")
        .args(["-m", "64", "-display", "none", "-serial", "none", "-monitor", "none", "-drive"])
        .arg(format!("file={},format=raw", disk.display()))
        .stdout(Stdio::null())
        .spawn()
        .expect("qemu-system-x86_64");
    let qemu = Running(qemu);
    // Until the firmware has begun what is on the disk.
    std::thread::sleep(Duration::from_secs(6));
    let advice = lab.json(&format!("advise {} {QUICK} --sampler referenced", qemu.pid()));
    let seen = &advice["seen"];
    assert_eq!(seen["kind"], "emulated", "{seen}");
    let target = advice["target"].as_str().unwrap();
    assert!(target.contains("a virtual machine emulated, with 64 MiB"), "{target}");
    // 32 MiB of the guest's, and none of QEMU's own.
    assert!((used(&advice) - 33_554_432.0).abs() < 1e6, "{seen}");
    // The guest's page sizes are not seen, the host's are, for which QEMU asks madvise for large ones.
    let share = number(seen, "large_page_bytes") / number(seen, "resident_bytes");
    let host = if share >= 0.5 { "thp" } else { "4k" };
    let today = ["4k", "thp"].map(|guest| format!("{guest}+{host}"));
    assert_eq!(advice["advice"]["today"], serde_json::json!(today), "{seen}");
    let assumptions = advice["assumptions"].to_string();
    assert!(assumptions.contains("not visible from outside"), "{assumptions}");
}

/// A VM of KVM made of files, with 64 MiB at 4 GiB, of which `used` KiB were used.
fn kvm(lab: &Lab, used: u64) {
    fs::create_dir_all(lab.path("proc/9/fd")).unwrap();
    lab.write(
        "proc/9/stat",
        "9 (qemu-system-x86) S 1 1 1 0 -1 64 1 0 0 0 1 1 0 0 20 0 9 0 777 1 1",
    );
    lab.write("proc/9/comm", "qemu-system-x86\n");
    lab.write("proc/9/cmdline", "/usr/bin/qemu-system-x86_64\0-m\x0064\0");
    let smaps = format!(
        "1000-5000 rw-p 0 00:00 0 [heap]\nRss: 16 kB\nReferenced: 16 kB\n\
         100000000-104000000 rw-p 0 00:00 0 \nRss: 65536 kB\nReferenced: {used} kB\n\
         AnonHugePages: 65536 kB\n"
    );
    lab.write("proc/9/smaps", smaps);
    lab.write("proc/9/clear_refs", "");
    std::os::unix::fs::symlink("anon_inode:kvm-vm", lab.path("proc/9/fd/7")).unwrap();
    fs::create_dir_all(lab.path("sys/kernel/debug/kvm/9-7")).unwrap();
    lab.write("sys/kernel/debug/kvm/9-7/exits", "1000\n");
}

#[test]
fn a_vm_of_kvm_is_known_by_its_files() {
    let lab = Lab::new();
    kvm(&lab, 8192);
    let roots =
        format!("--proc {} --sys {}", lab.path("proc").display(), lab.path("sys").display());
    let advice = lab.json(&format!("advise 9 {QUICK} {roots}"));
    let seen = &advice["seen"];
    assert_eq!(seen["kind"], "kvm");
    // Guest RAM, without the VMM's own memory.
    assert_eq!(
        (count(seen, "resident_bytes"), count(seen, "large_page_bytes")),
        (64 << 20, 64 << 20)
    );
    assert!((used(&advice) - 8_388_608.0).abs() < 1.0, "{seen}");
    assert!(number(seen, "exits_per_second").abs() < 1e-9, "{seen}");
    assert_eq!(advice["advice"]["today"], serde_json::json!(["4k+thp", "thp+thp"]));
    let told = advice["advice"]["sentences"].to_string();
    assert!(told.contains("the host has them already"), "{told}");
    let assumptions = advice["assumptions"].to_string();
    assert!(assumptions.contains("does not see what a guest of KVM uses"), "{assumptions}");
    assert!(advice["narrower"].to_string().contains("perf kvm stat"));
    // Its memory is there and nobody uses it: no advice, and why.
    kvm_idle(&lab, &roots);
}

fn kvm_idle(lab: &Lab, roots: &str) {
    fs::remove_dir_all(lab.path("proc")).unwrap();
    fs::remove_dir_all(lab.path("sys")).unwrap();
    kvm(lab, 0);
    let refused = lab.run(&format!("advise 9 {QUICK} {roots}"));
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("used no memory while it was sampled"), "{}", refused.err);
    assert!(refused.out.contains("100 % in large pages"), "{}", refused.out);
}

#[test]
fn what_cannot_be_seen_is_said_by_its_own_reason() {
    let lab = Lab::new();
    let child = touching(16, 16);
    let sys = lab.path("sys");
    fs::create_dir_all(sys.join("kernel/mm/damon/admin/kdamonds")).unwrap();
    lab.write("sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds", "1\n");
    let line = format!("advise {} {QUICK} --sys {}", child.pid(), sys.display());
    let advice = lab.json(&line);
    let missing = advice["missing"].as_array().unwrap();
    let of = |what: &str| {
        let found = missing.iter().find(|m| m["what"] == what);
        found.unwrap_or_else(|| panic!("{what}: {missing:?}")).to_string()
    };
    assert!(of("idle pages").contains("built without CONFIG_IDLE_PAGE_TRACKING"));
    assert!(of("DAMON").contains("somebody else uses it"));
    assert!(of("perf's memory samples").contains("ibs_op"));
    // With one sampler wanted that is not there nothing is advised, and what was seen is told.
    let out = lab.run(&format!("{line} --sampler idle --json"));
    assert!(out.err.contains("no sampler saw accesses"), "{}", out.err);
    let told = parse(&out.out);
    assert!(told["advice"].is_null() && count(&told["seen"], "resident_bytes") > 16 << 20);
}

#[test]
fn what_is_no_process_is_refused() {
    let lab = Lab::new();
    assert!(lab.refused("advise 4194304").contains("there is no process 4194304"));
    assert!(lab.refused("advise 0").contains("there is no process 0"));
    assert!(lab.refused("advise nosuch").contains("no source `nosuch`"));
    assert!(lab.refused("advise").contains("required"));
    let me = std::process::id();
    assert!(
        lab.refused(&format!("advise {me} --sampler x"))
            .contains("idle, damon, referenced, soft-dirty")
    );
    assert!(lab.refused(&format!("advise {me} --seconds 0")).contains("from 0.1 to 3600"));
    assert!(lab.refused(&format!("advise {me} --footprint 1GiB")).contains("is for sources"));
    // A thread of the kernel, made of files: containers do not show real ones.
    fs::create_dir_all(lab.path("proc/7")).unwrap();
    lab.write(
        "proc/7/stat",
        "7 (kworker/0:0) I 2 0 0 0 -1 69238880 0 0 0 0 0 0 0 0 20 0 1 0 9 0 0",
    );
    lab.write("proc/7/comm", "kworker/0:0\n");
    lab.write("proc/7/smaps", "");
    let proc = lab.path("proc");
    let refused = lab.refused(&format!("advise 7 --proc {}", proc.display()));
    assert!(refused.contains("a thread of the kernel"), "{refused}");
}

#[test]
fn commands_of_the_documentation_run() {
    let lab = Lab::new();
    for line in common::tested_commands("docs/advise.md") {
        lab.ok(&line);
    }
}
