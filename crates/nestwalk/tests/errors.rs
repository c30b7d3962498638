//! Bad input: each is one clear message that names the place and what would be right, with exit
//! code 2 and no panic; what was computed before is printed and kept.

mod common;

use common::{
    Lab, Ran, champsim, champsim_trace, count, drmemtrace, drmemtrace_record, lackey_log, machine,
};
use std::os::unix::fs::symlink;

/// Refuses `line`, with all of `words` in the message.
#[track_caller]
fn refuses(lab: &Lab, line: &str, words: &[&str]) {
    let message = lab.refused(line);
    for word in words {
        assert!(message.contains(word), "nestwalk {line}\nlacks `{word}`: {message}");
    }
}

#[test]
fn names_that_do_not_exist_are_answered_with_those_that_do() {
    let lab = Lab::new();
    let cases: [(&str, &[&str]); 24] = [
        ("compare nosuch", &["no source `nosuch`", "forkstorm", "zipf", "phases"]),
        (
            "compare gups --machines nestde",
            &["--machines", "`nestde`", "ideal, native, nested, shadow"],
        ),
        (
            "compare gups --machines nested:8k",
            &["`nested:8k`", "`8k`", "4k, thp, khugepaged, 2m, 4m, 1g"],
        ),
        ("compare gups --machines nested@near", &["`near`", "default"]),
        ("compare gups --machines native:4k+2m", &["native:4k+2m", "not virtualized"]),
        ("compare gups --machines nested,nested:4k", &["nested:4k+4k", "twice"]),
        ("compare gups --machines ,", &["--machines", "no machine", "native,shadow,nested"]),
        ("compare gups --page-size 8k", &["--page-size 8k", "4k, thp, khugepaged, 2m, 4m, 1g"]),
        (
            "compare gups --profile pentium",
            &["--profile", "`pentium`", "cascade-lake-6252", ".toml"],
        ),
        (
            "compare gups --guest-paging 3-level",
            &["--guest-paging 3-level", "4-level, 5-level, pae"],
        ),
        ("compare gups --host-paging 6-level", &["--host-paging 6-level", "4-level, 5-level"]),
        ("compare gups --guest-paging sv48x4", &["--guest-paging sv48x4", "sv39, sv48, sv57"]),
        ("compare gups --host-paging sv48", &["--host-paging sv48", "sv39x4, sv48x4, sv57x4"]),
        (
            "compare gups --guest-paging sv48 --machines nested",
            &["`nested:4k+4k`", "two architectures", "--host-paging", "sv48x4"],
        ),
        (
            "compare gups --guest-paging arm-16k --machines native",
            &["`native:4k`", "arm-16k", "`walk`"],
        ),
        (
            "compare gups --footprint 300GiB --guest-paging sv39 --machines native",
            &["--footprint 300 GiB", "256 GiB", "sv39"],
        ),
        (
            "walk nested:1g --guest-paging arm-64k --host-paging arm-64k-ipa40",
            &["`nested:1g`", "64k, 512m"],
        ),
        (
            "walk agile --guest-paging arm-64k --host-paging arm-64k-ipa40",
            &["`agile`", "native and nested"],
        ),
        (
            "walk nested --guest-paging arm-64k --host-paging arm-4k-ipa40",
            &["arm-64k", "64k or more"],
        ),
        ("compare gups --trace-format elf", &["--trace-format", "`elf`", "champsim"]),
        ("compare gups:colour=1", &["gups", "`colour`", "verify"]),
        ("compare zipf:colour=1", &["zipf", "`colour`", "theta"]),
        ("compare phases:uniform/spiral", &["`spiral`", "sequential"]),
        ("explain nosuch", &["`nosuch`", "nestwalk schemes"]),
    ];
    for (line, words) in cases {
        refuses(&lab, line, words);
    }
}

#[test]
fn numbers_that_cannot_be_are_named() {
    let lab = Lab::new();
    let cases: [(&str, &[&str]); 18] = [
        ("compare gups --footprint lots", &["--footprint", "`lots`", "4GiB"]),
        ("compare gups --footprint 4parsec", &["--footprint", "`4parsec`", "GiB"]),
        ("compare gups --footprint 300TiB", &["--footprint 300 TiB", "128 TiB", "4-level"]),
        (
            "compare gups --footprint 4GiB --guest-paging pae",
            &["--footprint 4 GiB", "3 GiB", "pae"],
        ),
        ("compare gups --footprint 2TiB", &["--footprint 2 TiB", "1 MiB to 1 TiB"]),
        ("compare gups --footprint 4KiB", &["--footprint 4 KiB", "1 MiB to 1 TiB"]),
        ("compare uniform --footprint 5000", &["footprint", "5000", "multiple of 4KiB"]),
        ("compare gups --accesses many", &["--accesses", "`many`", "K, M or G"]),
        ("compare gups --warmup 5x", &["--warmup", "`5x`", "K, M or G"]),
        ("compare gups --quantum 0", &["--quantum 0", "at least 1"]),
        ("compare gups --threads 0", &["--threads 0", "at least 1"]),
        ("compare gups --vcpus 0", &["--vcpus 0", "at least 1"]),
        ("compare gups --vcpus 300", &["300", "--vcpus", "255"]),
        ("compare gups --guest-fragmentation 1.5", &["--guest-fragmentation 1.5", "0 to 1"]),
        ("compare gups --host-fragmentation nan", &["--host-fragmentation NaN", "0 to 1"]),
        ("walk --address 0xg", &["--address 0xg", "hexadecimal", "0x7ffff7a01234"]),
        ("walk --address 0x800000000000", &["0x800000000000", "0x7fffffffffff", "4-level"]),
        ("walk ideal", &["ideal", "native, nested, shadow"]),
    ];
    for (line, words) in cases {
        refuses(&lab, line, words);
    }
}

#[test]
fn memory_that_does_not_do_is_found_before_the_run() {
    let lab = Lab::new();
    let small = "--footprint 64MiB --accesses 10k --quiet";
    let cases: [(&str, &[&str]); 6] = [
        ("--guest-memory 32MiB", &["--guest-memory 32 MiB", "64 MiB", "--populate no"]),
        ("--guest-memory 20TiB", &["--guest-memory 20 TiB", "16 TiB"]),
        ("--host-memory 17TiB", &["--host-memory 17 TiB", "16 TiB"]),
        ("--guest-memory 1MiB --populate no", &["1 MiB of physical memory", "kernel image"]),
        ("--host-memory 1MiB", &["shadow:4k+4k", "1 MiB of physical", "kernel image"]),
        ("--guest-paging 2-level --machines native --guest-memory 8GiB", &["3.5 GiB"]),
    ];
    for (options, words) in cases {
        let ran = lab.run(&format!("compare gups {small} {options}"));
        ran.assert_refused(options);
        assert_eq!(ran.out, "", "{options}");
        for word in words {
            assert!(ran.err.contains(word), "{options}: lacks `{word}`: {}", ran.err);
        }
    }
}

#[test]
fn paging_modes_that_a_machine_cannot_have_are_found_before_the_run() {
    let lab = Lab::new();
    let cases: [(&str, &[&str]); 4] = [
        ("compare gups --host-paging pae", &["--host-paging pae", "4-level, 5-level"]),
        ("walk nested --host-paging 2-level", &["--host-paging 2-level", "4-level, 5-level"]),
        (
            "compare gups --machines nested:4m",
            &["`nested:4m+4m`", "guest", "no 4m pages", "4k, 2m, 1g"],
        ),
        (
            "compare gups --machines nested:4m+4m --guest-paging 2-level",
            &["`nested:4m+4m`", "host", "no 4m pages", "4k, 2m, 1g"],
        ),
    ];
    for (line, words) in cases {
        let ran = lab.run(line);
        ran.assert_refused(line);
        assert_eq!(ran.out, "", "{line}");
        for word in words {
            assert!(ran.err.contains(word), "{line}: lacks `{word}`: {}", ran.err);
        }
    }
}

/// Whether a run ended early, with the results of what came before, and says where.
#[track_caller]
fn ended_early(ran: &Ran, words: &[&str]) -> u64 {
    ran.assert_refused("");
    let results = common::parse(&ran.out);
    assert_eq!(results["complete"], false, "{}", ran.err);
    let error = results["error"].as_str().expect("why");
    for word in words {
        assert!(ran.err.contains(word), "lacks `{word}`: {}", ran.err);
        assert!(error.contains(word), "lacks `{word}`: {error}");
    }
    count(machine(&results, "native:4k"), "accesses")
}

#[test]
fn memory_that_runs_out_keeps_what_was_computed() {
    let lab = Lab::new();
    let line =
        "compare uniform --footprint 64MiB --accesses 1M --populate no --quiet --format json";
    let ran = lab.run(&format!("{line} --guest-memory 48MiB"));
    let words = ["guest 4k", "48 MiB of memory are used up", "give the guest more memory"];
    assert!(ended_early(&ran, &words) > 1000, "{}", ran.out);
    let ran = lab.run(&format!("{line} --guest-memory 128MiB --host-memory 32MiB --threads 1"));
    assert!(ended_early(&ran, &["hVA 0x", "more memory"]) > 1000, "{}", ran.out);
}

#[test]
fn damaged_traces_name_the_record_and_keep_what_came_before() {
    let lab = Lab::new();
    let compare = |line: &str| lab.run(&format!("compare {line} --quiet --format json"));

    let whole = champsim_trace(1000);
    lab.write("cut", &whole[..64 * 700 + 10]);
    let before = ended_early(&compare("cut"), &["cut: record 700 at byte 44800 has 10 of its 64"]);
    assert_eq!(before, 700 * 2 + 175, "700 fetches and loads, and a store every fourth");

    let mut bad = champsim(0x40_0000, [0; 2], [0; 4]);
    bad[8] = 9;
    lab.write("bad", [&whole[..64 * 500], &bad, &whole].concat());
    let words = ["bad: record 500 at byte 32000", "is_branch is 9"];
    for line in ["bad", "bad --trace-format champsim"] {
        assert_eq!(ended_early(&compare(line), &words), 500 * 2 + 125);
    }

    let log = lackey_log(1000);
    lab.write("cut.log", &log[..log.len() - 4]);
    let before = ended_early(&compare("cut.log"), &["cut.log: ", "line 2001", "cut off"]);
    assert_eq!(before, 1999);

    // Lines of the program's own among the records are counted and said, and are no error.
    lab.write("mixed.log", log.replace("I  04001010,4\n", "I  0400hello\nI  04001010,4\n"));
    let table = lab.ok("compare mixed.log --quiet");
    assert!(table.contains("lines of the log are neither records nor valgrind's own"), "{table}");

    let trace = drmemtrace(1000);
    lab.write("cut.mem", &trace[..trace.len() - 12]);
    let before = ended_early(&compare("cut.mem"), &["cut.mem: ", "record 2003 at byte 24036"]);
    assert_eq!(before, 2000);

    let damage = drmemtrace_record(77, 0, 0);
    lab.write("bad.mem", [&trace[..12 * 103], &damage, &trace[..]].concat());
    let before = ended_early(&compare("bad.mem"), &["bad.mem: record 103 at byte 1236: type 77"]);
    assert_eq!(before, 100);
}

#[test]
fn damaged_compression_is_named_and_keeps_what_came_before() {
    let lab = Lab::new();
    // Random addresses, so that the archives are as large as what is in them.
    let mut x = 1_u64;
    let mut trace = Vec::new();
    for _ in 0..20_000 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        trace.extend(champsim(
            0x40_0000 + x % 1000 * 4,
            [0; 2],
            [0x7f00_0000_0000 + (x >> 30), 0, 0, 0],
        ));
    }
    lab.write("trace", &trace);
    for (tool, suffix) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        lab.tool(tool, &["-k", "-1", "trace"]);
        let name = format!("trace.{suffix}");
        let mut packed = std::fs::read(lab.path(&name)).unwrap();
        lab.write("cut", &packed[..packed.len() / 2]);
        let ran = lab.run("compare cut --quiet --format json");
        let before = ended_early(&ran, &["cut: ", "cut off"]);
        assert!(before > 0 && before < 40_000, "{tool}: {before}");
        let middle = packed.len() / 2;
        packed[middle..middle + 100].fill(0x5a);
        lab.write("bad", &packed);
        // The decoder's checks or the trace's own find it, whichever comes first.
        let ran = lab.run("compare bad --quiet --format json");
        assert!(ended_early(&ran, &[]) < 40_000, "{tool}: {}", ran.err);
        let found = ["bad: ", "outside of the address space"].iter().any(|w| ran.err.contains(w));
        assert!(found, "{tool}: {}", ran.err);
    }
}

#[test]
fn what_is_no_trace_is_refused() {
    let lab = Lab::new();
    lab.write("empty", "");
    lab.write("text", "hello\n");
    std::fs::create_dir(lab.path("folder")).unwrap();
    let cases: [(&str, &[&str]); 7] = [
        ("compare empty", &["empty: ", "an empty file"]),
        ("compare /dev/null", &["/dev/null: empty", "at least one record"]),
        ("compare folder", &["folder: ", "no drmemtrace in this directory"]),
        ("compare folder --trace-format lackey", &["folder: ", "a directory; give a file"]),
        ("compare ./missing.xz", &["./missing.xz: ", "no such file"]),
        ("compare text", &["text: ", "lackey", "champsim", "drmemtrace", "--trace-format"]),
        ("compare text --trace-format lackey", &["text: ", "no record", "--trace-mem=yes"]),
    ];
    for (line, words) in cases {
        refuses(&lab, &format!("{line} --quiet"), words);
    }
}

/// The profile of that name with one text replaced.
fn profile(lab: &Lab, from: &str, to: &str) {
    let text = common::workspace().join("crates/hw/profiles/cascade-lake-6252.toml");
    let text = std::fs::read_to_string(text).unwrap();
    assert!(text.contains(from), "the profile has no `{from}`");
    lab.write("mine.toml", text.replacen(from, to, 1));
}

#[test]
fn contradictory_profiles_are_refused() {
    let lab = Lab::new();
    let cases: [(&str, &str, &[&str]); 9] = [
        ("entries = 64\nways = 4", "entries = 64\nways = 5", &["l1d_tlb", "64", "5"]),
        ("sizes = [\"4k\"]", "sizes = [\"3k\"]", &["l1d_tlb", "`3k`", "4k, 16k, 2m, 4m or 1g"]),
        ("[core]", "[core]\ncolour = 1", &["mine.toml", "line", "colour", "expected one of"]),
        ("[core]", "[core", &["mine.toml", "line"]),
        ("base_cpi = { value = ", "base_cpi = { value = -", &["core.base_cpi", "0 or more"]),
        ("walk_exposed = { value = ", "walk_exposed = { value = 7", &["walk_exposed", "0 and 1"]),
        (
            "memory_cycles = { value = ",
            "memory_cycles = { value = 0.",
            &["memory_cycles", "slower"],
        ),
        ("source = \"", "sauce = \"", &["mine.toml", "sauce", "source"]),
        ("name = ", "nam = ", &["mine.toml", "nam"]),
    ];
    for (from, to, words) in cases {
        profile(&lab, from, to);
        refuses(&lab, "compare gups --profile mine.toml --accesses 1k --footprint 1MiB", words);
        refuses(&lab, "walk --profile mine.toml", words);
    }
    refuses(&lab, "compare gups --profile none.toml", &["--profile", "none.toml", "os error 2"]);
    profile(&lab, "name = \"cascade-lake-6252\"", "name = \"mine\"");
    let table = lab.ok("compare gups --profile mine.toml --accesses 1k --footprint 1MiB --quiet");
    assert!(table.contains("Cascade Lake"), "{table}");
}

#[test]
fn edited_configurations_are_refused_where_they_do_not_fit() {
    let lab = Lab::new();
    lab.ok("compare gups --accesses 1k --footprint 1MiB --quiet --output here");
    let config = lab.read("here/config.toml");
    let cases: [(&str, &str, &[&str]); 12] = [
        ("seed = 1", "seed = 1\ncolour = 2", &["line", "colour", "expected one of"]),
        ("seed = 1", "seed = -1", &["line", "seed = -1"]),
        ("seed = 1\n", "", &["missing field `seed`"]),
        ("version = \"", "version = \"9.", &["nestwalk 9.", "this is nestwalk", "version = \""]),
        ("vcpus = 1", "vcpus = 0", &["vcpus 0", "at least 1"]),
        ("\"nested:4k+4k\"", "\"nestde\"", &["machines", "nestde", "nested"]),
        ("\"nested:4k+4k\"", "\"nested\"", &["machines", "`nested`", "nested:4k+4k"]),
        (
            "guest_paging = \"4-level\"",
            "guest_paging = \"3-level\"",
            &["guest_paging 3-level", "pae"],
        ),
        ("footprint = 1048576", "footprint = 1", &["footprint 1 B", "1 MiB to 1 TiB"]),
        ("sources = [\"gups\"]", "sources = []", &["sources", "lackey"]),
        ("sources = [\"gups\"]", "sources = [\"./none\"]", &["./none", "no such file"]),
        ("guest_fragmentation = 0.0", "guest_fragmentation = 2.0", &["guest_fragmentation 2"]),
    ];
    for (from, to, words) in cases {
        assert!(config.contains(from), "no `{from}` in\n{config}");
        lab.write("edited.toml", config.replacen(from, to, 1));
        refuses(&lab, "run edited.toml --quiet", words);
        if !words.contains(&"./none") {
            refuses(&lab, "run edited.toml --quiet", &["edited.toml: "]);
        }
    }
    // What another version wrote is said to be that, before its keys are.
    let other =
        config.replacen("seed = 1", "colour = 1", 1).replacen("version = \"", "version = \"9.", 1);
    lab.write("other.toml", other);
    refuses(&lab, "run other.toml", &["other.toml: ", "nestwalk 9."]);
    refuses(&lab, "run none.toml", &["none.toml: ", "config.toml", "os error 2"]);
    refuses(&lab, "run .", &["cannot be read", "compare --output DIR"]);
    lab.write("no.toml", "What?\n");
    refuses(&lab, "run no.toml", &["no.toml: ", "line 1"]);
}

#[test]
fn results_that_cannot_be_written_are_said_to_and_printed() {
    let lab = Lab::new();
    let small = "compare gups --accesses 1k --footprint 1MiB --quiet";
    lab.write("file", "");
    refuses(&lab, &format!("{small} --output file"), &["--output file", "cannot be made"]);
    refuses(&lab, &format!("{small} --output file/x"), &["--output file/x", "cannot be made"]);
    // A full disk, found before the run.
    std::fs::create_dir(lab.path("full")).unwrap();
    symlink("/dev/full", lab.path("full/config.toml")).unwrap();
    let ran = lab.run(&format!("{small} --output full"));
    ran.assert_refused("full");
    assert!(ran.err.contains("full/config.toml: cannot be written: No space left"), "{}", ran.err);
    // A place where results cannot replace what is there.
    std::fs::create_dir_all(lab.path("taken/results.csv")).unwrap();
    let message = lab.refused(&format!("{small} --output taken"));
    assert!(message.contains("taken/results.csv: cannot be replaced"), "{message}");
}

#[test]
fn a_disk_that_fills_up_during_the_run_loses_nothing_that_fits() {
    let lab = Lab::new();
    // No file may be larger than 40 blocks of 512 bytes: configuration and table are smaller, the
    // JSON results of so many machines are larger.
    let script = format!(
        "trap '' XFSZ; ulimit -f 40; exec '{}' compare gups --accesses 1k --footprint 1MiB --quiet \
         --machines native,shadow,nested,nested:4k+2m,nested:thp,nested:2m --output here",
        env!("CARGO_BIN_EXE_nestwalk")
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(lab.path("."))
        .output()
        .expect("a shell");
    let ran = common::ran(output);
    ran.assert_refused(&script);
    assert!(ran.err.contains("nestwalk: here/results.json: cannot be written: "), "{}", ran.err);
    // Half a file would be taken for a whole one.
    assert!(!lab.path("here/results.json").exists());
    assert_eq!(lab.read("here/table.txt"), ran.out);
    assert!(ran.out.contains("nested:4k+4k"), "{}", ran.out);
}

#[test]
fn results_that_cannot_be_printed_are_kept_in_files() {
    let lab = Lab::new();
    let full = std::fs::File::create("/dev/full").expect("/dev/full");
    let args = "compare gups --accesses 1k --footprint 1MiB --quiet --output here";
    let output = lab.command().args(args.split_whitespace()).stdout(full).output().unwrap();
    let ran = common::ran(output);
    ran.assert_refused(args);
    assert!(ran.err.contains("standard output: No space left"), "{}", ran.err);
    assert!(lab.read("here/table.txt").contains("nested:4k+4k"));
}

#[test]
fn a_warm_up_longer_than_its_source_is_no_result() {
    let lab = Lab::new();
    lab.write("trace", champsim_trace(100));
    let ran = lab.run("compare trace --warmup 1M --quiet --format json");
    let words = ["trace: ended after 225 accesses", "warm-up of 1,000,000", "--warmup"];
    assert_eq!(ended_early(&ran, &words), 0);
}

#[test]
fn live_programs_that_cannot_start_are_said_to() {
    let lab = Lab::new();
    lab.write("plain", "text");
    let cases: [(&str, &[&str]); 6] = [
        ("compare --lackey", &["COMMAND"]),
        ("compare gups --lackey -- true", &["--lackey", "gups"]),
        ("compare -- true", &["--guest or --lackey", "compare --guest -- gcc"]),
        ("compare --lackey -- ./none", &["./none", "cannot start", "os error 2"]),
        ("compare --lackey -- no-such-command", &["`no-such-command`", "PATH"]),
        ("compare --lackey -- ./plain", &["./plain", "not an executable"]),
    ];
    for (line, words) in cases {
        refuses(&lab, line, words);
    }
}

#[test]
fn a_missing_valgrind_is_said_to_be_missing() {
    let lab = Lab::new();
    let args = ["compare", "--lackey", "--", "/bin/true"];
    let output = lab.command().env("PATH", lab.path("empty")).args(args).output().unwrap();
    let ran = common::ran(output);
    ran.assert_refused("--lackey");
    for word in ["`valgrind` is not installed", "Debian package `valgrind`"] {
        assert!(ran.err.contains(word), "lacks `{word}`: {}", ran.err);
    }
}

/// Nobody reads what is said: the exit code says it all the same.
#[test]
fn a_reader_that_has_gone_is_no_reason_to_panic() {
    for (line, code) in [("compare nothing", 2), ("compare gups --footprint 1MiB --accesses 1k", 0)]
    {
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        let lab = Lab::new();
        let mut command = lab.command();
        command.args(line.split(' ')).stderr(write.try_clone().unwrap()).stdout(write);
        assert_eq!(command.status().unwrap().code(), Some(code), "{line}");
    }
}
