//! Real guests: what a Debian kernel does to its page tables, as it is recorded.
//!
//! These need QEMU, the plugin and a kernel: `scripts/guest` gets them.

mod common;

use common::{Lab, machine, parse};
use nestwalk_mm::{ObservedGuest, ObservedStats};
use nestwalk_source::trace::TraceReader;
use nestwalk_types::{Batch, GuestBatch, Source};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A program that does one thing to memory between two marks.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void mark_begin(void) { __asm__ volatile(".byte 0x0f,0x1f,0x80,3,0,0xa0,0xf5" ::: "memory"); }
static void mark_end(void) { __asm__ volatile(".byte 0x0f,0x1f,0x80,4,0,0xa0,0xf5" ::: "memory"); }

/* Memory that begins with a multiple of 2 MiB. */
static char *aligned(size_t bytes) {
    char *p = mmap(0, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *a = (char *)(((size_t)p + (2 << 20) - 1) & ~(size_t)((2 << 20) - 1));
    if (a > p) munmap(p, a - p);
    munmap(a + bytes, p + (2 << 20) - a);
    return a;
}

int main(int argc, char **argv) {
    size_t n = argc > 2 ? atol(argv[2]) : 0, bytes = n << 20;
    if (!strcmp(argv[1], "touch") || !strcmp(argv[1], "free")) {
        char *p = aligned(bytes);
        if (argv[1][0] == 't') mark_begin();
        for (size_t i = 0; i < bytes; i += 4096) p[i] = 1;
        if (argv[1][0] == 't') mark_end();
        if (argv[1][0] == 'f') mark_begin();
        munmap(p, bytes);
        if (argv[1][0] == 'f') mark_end();
    } else if (!strcmp(argv[1], "forks")) {
        mark_begin();
        for (size_t i = 0; i < n; i++) {
            pid_t child = fork();
            if (!child) { execl(argv[0], argv[0], "nothing", (char *)0); _exit(1); }
            int status;
            waitpid(child, &status, 0);
            if (status) return 1;
        }
        mark_end();
    }
    return 0;
}
"#;

/// A lab with the program in it, as a static binary.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("memory.c", PROGRAM);
    lab.tool("gcc", &["-O1", "-static", "-o", "memory", "memory.c"]);
    lab
}

/// The stream of a trace, followed to its end.
fn follow(lab: &Lab, name: &str) -> ObservedStats {
    let mut reader = TraceReader::open(&lab.path(name)).unwrap();
    let mut guest = ObservedGuest::new(&reader.info().guest.unwrap()).unwrap();
    let (mut batch, mut out) = (Batch::default(), GuestBatch::default());
    while reader.next_batch(&mut batch).unwrap() {
        guest.process(&batch, &mut out).unwrap();
    }
    let stats = guest.stats();
    assert_eq!(stats.dropped_total().runs, 0, "{:?}", guest.examples());
    assert_eq!(stats.stray_writes, 0);
    stats
}

/// Records a command; its summary.
fn capture(lab: &Lab, options: &str, command: &str) -> Value {
    parse(&lab.ok(&format!("capture --quiet --format json {options} -- {command}")))
}

/// Records what the program does between its marks, and checks every translation against QEMU's.
fn recorded(lab: &Lab, options: &str, action: &str) -> ObservedStats {
    let options = format!("--interest --check --save t.nwt --memory 1GiB {options}");
    let summary = capture(lab, &options, &format!("./memory {action}"));
    agrees(&summary);
    let stats = follow(lab, "t.nwt");
    assert_eq!(summary["table_writes"], stats.table_writes_total());
    assert_eq!(summary["page_faults"], stats.faults);
    stats
}

fn agrees(json: &Value) {
    let check = &json["check"];
    assert!(check["compared"].as_u64().unwrap() > 100, "{check}");
    assert_eq!(check["different"], 0, "{check}");
    assert_eq!(check["not_mapped"], 0, "{check}");
}

#[test]
fn touching_pages_sets_as_many_entries_and_faults_as_often() {
    let lab = lab();
    let stats = recorded(&lab, "--thp never", "touch 16");
    // 16 MiB are 4,096 pages under 8 tables, which are new.
    assert_eq!(stats.table_writes[1].set, 4096);
    assert_eq!(stats.table_writes[1].cleared, 0);
    assert_eq!(stats.table_writes[2].set, 8);
    assert_eq!((stats.faults, stats.write_faults), (4096, 4096));
    assert_eq!(stats.protection_faults, 0);
}

#[test]
fn freeing_pages_clears_as_many_entries_and_flushes() {
    let lab = lab();
    let stats = recorded(&lab, "--thp never", "free 16");
    assert_eq!(stats.table_writes[1].cleared, 4096);
    assert_eq!(stats.table_writes[2].cleared, 8);
    assert_eq!(stats.faults, 0);
    // More than 33 pages: Linux loads CR3 again in place of INVLPG for each.
    assert!(stats.cr3_reloads >= 1, "{stats:?}");
}

#[test]
fn huge_pages_are_entries_of_the_level_above() {
    let lab = lab();
    let stats = recorded(&lab, "--thp always", "touch 16");
    assert_eq!(stats.table_writes[2].set, 8);
    assert_eq!(stats.table_writes[1].total(), 0);
    // Before the first, the region has no table above either: one fault each.
    assert_eq!(stats.faults, 8);
    let stats = recorded(&lab, "--thp always", "free 16");
    assert_eq!(stats.table_writes[2].cleared, 8);
}

#[test]
fn each_fork_and_exec_costs_the_same_table_writes() {
    let lab = lab();
    let writes = |n: u32| {
        let stats = recorded(&lab, "", &format!("forks {n}"));
        // To the child, to its new tables, and back.
        assert!(stats.cr3_loads >= u64::from(3 * n), "{stats:?}");
        (stats.table_writes[1].total(), stats.faults, stats.tables_new)
    };
    let (few, more, most) = (writes(4), writes(8), writes(12));
    let grow = |a: u64, b: u64| b.checked_sub(a).expect("more forks, more of all");
    let close = |a: u64, b: u64| a.abs_diff(b) * 20 <= a.max(b);
    assert!(close(grow(few.0, more.0), grow(more.0, most.0)), "{few:?} {more:?} {most:?}");
    assert!(close(grow(few.1, more.1), grow(more.1, most.1)), "{few:?} {more:?} {most:?}");
    // A static program: some tens of pages each time, and at least four tables.
    assert!(grow(few.0, more.0) / 4 > 50 && grow(few.2, more.2) / 4 >= 4, "{few:?} {more:?}");
}

#[test]
fn output_and_exit_status_come_back_and_the_recording_repeats() {
    let lab = Lab::new();
    let run = |name: &str| {
        lab.run_with([
            "capture",
            "-q",
            "--save",
            name,
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        ])
    };
    let (first, second) = (run("a.nwt"), run("b.nwt"));
    // 2 and more are errors of nestwalk's; how the command failed is the last line.
    assert_eq!((first.code, second.code), (1, 1), "{}", first.err);
    assert_eq!(first.out, "out\nerr\n");
    let last = first.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("nestwalk: the guest's command failed: exit status 7"), "{last}");
    let bytes = |name: &str| std::fs::read(lab.path(name)).unwrap();
    assert!(bytes("a.nwt") == bytes("b.nwt"), "two recordings of one command differ");
    let info = lab.json("trace info a.nwt");
    assert_eq!(info["header"]["reproducible"], true, "{info}");
    assert_eq!(info["summary"]["exit_status"], 7, "{info}");
}

/// The tables of a command that failed stay, and its failure is told.
#[test]
fn a_command_that_fails_in_a_guest_is_told_after_its_tables() {
    let lab = Lab::new();
    let ran = lab.run("compare --machines nested --quiet --guest -- false");
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("nested:observed+4k") && ran.out.contains("transl."), "{}", ran.out);
    let last = ran.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("nestwalk: the guest's command failed: exit status 1"), "{last}");
}

#[test]
fn two_vcpus_agree_with_qemu_on_every_translation() {
    let lab = Lab::new();
    let command =
        ["sh", "-c", "for i in 1 2 3 4; do (seq 1 2000 | sort -r | gzip >/dev/null) & done; wait"];
    let mut line = vec!["capture", "-q", "--format", "json", "--vcpus", "2", "--check"];
    line.extend(["--save", "t.nwt", "--"]);
    line.extend(command);
    let ran = lab.run_with(&line);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let summary = parse(&ran.out);
    assert_eq!(summary["check"]["different"], 0, "{summary}");
    // One vCPU may use a translation that the other has just taken away: hardly ever.
    let (compared, stale) = (&summary["check"]["compared"], &summary["check"]["not_mapped"]);
    assert!(stale.as_u64().unwrap() * 10_000 < compared.as_u64().unwrap(), "{summary}");
    // Both did something, and what one flushed of the other's shows on the other.
    let mut reader = TraceReader::open(&lab.path("t.nwt")).unwrap();
    let mut runs = [0u64; 2];
    let mut batch = Batch::default();
    while reader.next_batch(&mut batch).unwrap() {
        for run in &batch.runs {
            runs[usize::from(run.vcpu.0)] += 1;
        }
    }
    assert!(runs.iter().all(|r| *r > 10_000), "{runs:?}");
}

#[test]
fn isolated_page_tables_change_cr3_at_each_entry_to_the_kernel() {
    let lab = lab();
    let plain = recorded(&lab, "--thp never", "touch 4");
    let isolated = recorded(&lab, "--thp never --pti", "touch 4");
    assert_eq!(plain.faults, 1024);
    assert!(plain.cr3_loads < 20, "{plain:?}");
    // Into the kernel and out of it, for each fault.
    assert!((2048..2100).contains(&isolated.cr3_loads), "{isolated:?}");
}

#[test]
fn a_killed_recording_is_readable_and_nothing_of_its_guest_stays() {
    let lab = Lab::new();
    let line = [
        "capture",
        "-q",
        "--save",
        "t.nwt",
        "--",
        "sh",
        "-c",
        "while :; do seq 1 1000 | sort; done",
    ];
    let mut child =
        lab.command().args(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    let size = || std::fs::metadata(lab.path("t.nwt")).map_or(0, |m| m.len());
    while size() < 1 << 20 {
        assert!(begin.elapsed() < Duration::from_secs(120), "nothing is recorded");
        std::thread::sleep(Duration::from_millis(50));
    }
    let name = format!("nestwalk-guest-{}-", child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    let info = lab.json("trace info t.nwt");
    assert_eq!(info["complete"], false, "{info}");
    assert!(info["totals"]["runs"].as_u64().unwrap() > 100_000, "{info}");
    follow(&lab, "t.nwt");
    let left = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|c| String::from_utf8_lossy(&c).contains(&name))
        })
    };
    let files = || {
        [std::env::temp_dir(), "/dev/shm".into()].iter().any(|folder: &PathBuf| {
            let mut names = std::fs::read_dir(folder).unwrap().flatten().map(|e| e.file_name());
            names.any(|n| n.to_string_lossy().starts_with(&name))
        })
    };
    while left() || files() {
        assert!(
            begin.elapsed() < Duration::from_secs(150),
            "the guest or its files are still there"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_a_filter_hides_changes_no_machine() {
    let lab = lab();
    capture(&lab, "--save filtered.nwt", "./memory forks 2");
    capture(&lab, "--save whole.nwt --no-filter", "./memory forks 2");
    let compare = |name| lab.json(&format!("compare {name} --machines native,shadow,nested"));
    let (filtered, whole) = (compare("filtered.nwt"), compare("whole.nwt"));
    let misses = ["l1_tlb_misses", "l2_tlb_misses", "l2_tlb_hits", "walks", "walk_cache_hits"];
    let always = ["accesses", "vm_exits", "table_writes", "guest_faults"];
    for name in ["native:observed", "nested:observed+4k", "shadow:observed+4k"] {
        let (f, w) = (machine(&filtered, name), machine(&whole, name));
        // The last few are in no run.
        let instructions = |m: &Value| m["instructions"].as_u64().unwrap();
        assert!(instructions(f).abs_diff(instructions(w)) < 500, "{name}");
        for key in always.iter().chain(&misses) {
            assert!(!w[key].is_null(), "{key}: {w}");
            if name.starts_with("shadow") && misses.contains(key) {
                // The hypervisor empties TLBs at exits that no event of the guest announces: what the
                // filter hides after that should have missed again.
                let (f, w) = (f[key].as_f64().unwrap(), w[key].as_f64().unwrap());
                assert!((f / w - 1.0).abs() < 0.02, "{name}: {key}: {f} {w}");
            } else {
                assert_eq!(f[key], w[key], "{name}: {key}");
            }
        }
    }
    let runs =
        |name: &str| lab.json(&format!("trace info {name}"))["totals"]["runs"].as_u64().unwrap();
    assert!(runs("filtered.nwt") * 2 < runs("whole.nwt"));
}

#[test]
fn a_live_comparison_is_that_of_the_recording() {
    let lab = lab();
    capture(&lab, "--save t.nwt", "./memory forks 2");
    let recorded = lab.json("compare t.nwt");
    let live = lab.ok("compare --guest --format json -- ./memory forks 2");
    assert_eq!(recorded["machines"], parse(&live)["machines"]);
}

#[test]
fn phases_are_told_from_the_pieces_to_the_end() {
    let lab = lab();
    let line = "compare --guest --format json --machines native -- ./memory forks 1";
    let told = lab.run(line);
    assert_eq!(told.code, 0, "{}", told.err);
    let phases: Vec<&str> =
        told.err.lines().filter_map(|line| line.strip_prefix("nestwalk: ")).collect();
    let expected = [
        "resolving the guest's kernel and packages",
        "making the guest's root file system",
        "booting the guest, until its command begins",
        "building the tables of the guest as it was before",
        "running",
    ];
    // Others are told where a busy machine takes half a minute for one.
    let mut rest = phases.iter();
    for phase in expected {
        assert!(rest.any(|told| *told == phase), "{phase} is not in its place: {phases:?}");
    }
    let quiet = lab.run(&format!("compare --quiet {}", line.strip_prefix("compare ").unwrap()));
    assert_eq!(quiet.err, "");
    assert_eq!(quiet.out, told.out);
    let told = lab.run("capture --interest --save t.nwt -- ./memory touch 1");
    let marked = "nestwalk: booting the guest, until its program marks what to look at\n";
    assert!(
        told.err.contains(marked) && told.err.contains("nestwalk: recording\n"),
        "{}",
        told.err
    );
}
