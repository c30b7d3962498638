//! `advise` inside a real guest, whose kernel is Debian's: by what it has, a program that runs there is
//! sampled.
//!
//! This needs QEMU, the plugin and a kernel: `scripts/guest` gets them.

mod common;

use common::{Lab, number, parse};
use serde_json::Value;

/// Goes through 16 MiB, page by page.
const PROGRAM: &str = "
#include <stdlib.h>
int main(void) {
    size_t bytes = 16 << 20;
    volatile char *p = malloc(bytes);
    for (;;) for (size_t i = 0; i < bytes; i += 4096) p[i]++;
}
";

/// What is advised in a guest with this kernel, by each sampler; an empty name is for the best.
fn inside(kernel: &str, samplers: &[&str]) -> Vec<Value> {
    let lab = Lab::new();
    lab.write("touch.c", PROGRAM);
    lab.tool("gcc", &["-O1", "-static", "-o", "touch", "touch.c"]);
    // Without what debuggers need, which the guest's memory would have to hold.
    lab.tool("strip", &["-o", "nestwalk", env!("CARGO_BIN_EXE_nestwalk")]);
    let mut script = "./touch & pid=$!; sleep 2\n".to_owned();
    for sampler in samplers {
        let sampler = match *sampler {
            "" => String::new(),
            name => format!("--sampler {name}"),
        };
        script += "./nestwalk advise $pid --json --quiet --seconds 3 --accesses 1k ";
        script += &format!("{sampler} | tr -d '\\n'; echo\n");
    }
    lab.write("in.sh", script + "kill $pid\n");
    // What a program needs that no Debian package has.
    let libraries = "--package libc6 --package libgcc-s1";
    let out = lab.ok(&format!(
        "capture --quiet --interest {kernel} {libraries} -- sh in.sh ./nestwalk ./touch"
    ));
    let found: Vec<Value> = out.lines().map(parse).collect();
    assert_eq!(found.len(), samplers.len(), "{out}");
    found
}

/// The program's 16 MiB were seen, by this sampler.
fn sees(advice: &Value, sampler: &str) {
    let seen = &advice["seen"];
    assert_eq!(seen["sampler"], sampler, "{advice}");
    assert_eq!((&seen["kind"], &seen["virtual_machine"]), (&"program".into(), &true.into()));
    let windows = seen["windows"].as_array().unwrap();
    let used = number(windows.last().unwrap(), "used_bytes") / f64::from(1 << 20);
    assert!((14.0..18.0).contains(&used), "{seen}");
    assert!(advice["advice"].is_object() && advice["complete"] == true, "{advice}");
}

/// The kernel is Debian's own, or another that `NESTWALK_GUEST_KERNEL` names.
#[test]
fn a_program_in_a_guest_is_sampled_by_what_its_kernel_has() {
    let kernel = std::env::var("NESTWALK_GUEST_KERNEL").ok();
    let found = match &kernel {
        None => inside("", &[""]),
        Some(kernel) => inside(&format!("--kernel {kernel}"), &["", "soft-dirty"]),
    };
    let missing = |what: &str| {
        let all = found[0]["missing"].as_array().unwrap();
        all.iter().any(|m| m["what"] == what)
    };
    // Debian's 6.1 has no DAMON, later ones do.
    sees(&found[0], if missing("DAMON") { "referenced" } else { "damon" });
    assert!(missing("idle pages"), "{}", found[0]);
    found.iter().skip(1).for_each(|advice| sees(advice, "soft-dirty"));
}

#[test]
fn a_command_is_recorded_and_advised_on() {
    let lab = Lab::new();
    let finite = PROGRAM.replace("for (;;) for", "for").replace("16 << 20", "2 << 20");
    lab.write("touch.c", finite.replace("p[i]++;", "p[i]++;\n    return 3;"));
    lab.tool("gcc", &["-O1", "-static", "-o", "touch", "touch.c"]);
    let ran = lab.run("advise --guest --quiet --json --repeat 1 --memory 512MiB -- ./touch");
    // As of other commands that run one: its failure is told, and is no error of ours.
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("exit status 3") && !ran.err.contains("interruption"), "{}", ran.err);
    let advice = parse(&ran.out);
    assert_eq!(advice["target"], "./touch in a guest");
    // 512 pages are first touched, each of which faults in the host if its pages are small.
    let choices = advice["choices"].as_array().unwrap();
    let of = |name: &str| choices.iter().find(|c| c["machine"] == name).unwrap();
    let vmm = |name: &str| number(&of(name)["vmm_percent"], "low");
    assert!(vmm("nested:4k+4k") > vmm("nested:4k+thp"), "{advice}");
    assert!(advice["advice"]["large_pages_in_host"] == true, "{advice}");
}
