//! The real KVM is asked, under QEMU.

use crate::args::ConformArgs;
use crate::commands::setup::built_in;
use crate::progress::{Phase, Phases};
use anyhow::{Result, bail};
use nestwalk_capture::{Cache, KvmKernel, build_vmm, qemu_version, run_under_kvm};
use nestwalk_conform::figures::{Figures, Recordings, without_own};
use nestwalk_conform::paging::Paging;
use nestwalk_conform::program::Program;
use nestwalk_conform::recording::Part;
use nestwalk_conform::sheet::{Sheet, answered, hash};
use nestwalk_conform::trace::Report;
use nestwalk_conform::{Answers, random, trace};
use std::collections::BTreeMap;
use std::path::Path;

/// How those of KVM's own counters begin that are kept: of page faults and of the shadow MMU.
const COUNTERS: [&str; 4] = ["pf_", "mmu_", "invlpg", "pages_4k"];

/// What one kernel's KVM wrote.
struct Asked {
    report: Report,
    /// As `uname -r` has it.
    kernel: String,
    /// The emulator's version.
    qemu: String,
}

/// Has the real KVM perform programs.
fn perform(
    (version, paging): (&str, Paging),
    text: &str,
    args: &ConformArgs,
    phases: &Phases,
) -> Result<Asked> {
    let qemu = Path::new("qemu-system-x86_64");
    let (major, minor) = qemu_version(qemu)?;
    let cache = Cache::locate()?;
    let say = &mut |step: nestwalk_capture::Step<'_>| phases.step(step, &mut crate::tell::say);
    let source = args.source.clone().unwrap_or_else(built_in);
    let vmm = build_vmm(&cache, &source, say)?;
    let kernel = KvmKernel::of(&cache, version, say)?;
    phases.begin(Phase::new("running the real KVM"));
    let out = run_under_kvm(&cache, qemu, &kernel, (&vmm, text), paging == Paging::Nested)?;
    let report = trace::report(&String::from_utf8_lossy(&out));
    if let Some((name, why)) = report.failed.first() {
        bail!("{name}: the real KVM could not perform it: {why}");
    }
    if !report.complete {
        bail!("the real KVM's answers end early, after {} scripts", report.answers.len());
    }
    if report.lost > 0 {
        bail!("the kernel's trace buffer was too small: {} lines were lost", report.lost);
    }
    Ok(Asked { report, kernel: kernel.release, qemu: format!("{major}.{minor}") })
}

/// Answers to these scripts and to random ones of seeds 1 to `seeds`.
///
/// # Errors
/// A piece is missing, QEMU fails, or a script cannot be performed.
pub(super) fn ask(
    kernel: (&str, Paging),
    programs: &[Program],
    seeds: u64,
    args: &ConformArgs,
    phases: &Phases,
) -> Result<Sheet> {
    let random: Vec<Program> = (1..=seeds).map(random::program).collect::<Result<_, _>>()?;
    let text: String = programs.iter().chain(&random).map(Program::text).collect();
    let Asked { report, kernel, qemu } = perform(kernel, &text, args, phases)?;
    let mut sheet = Sheet { kernel, qemu, ..Sheet::default() };
    let of = |program: &Program| {
        let answers = report.answers.get(&program.name).cloned().unwrap_or_default();
        answered(program, &answers)
    };
    for program in programs {
        sheet.scripts.insert(program.name.clone(), of(program));
    }
    for (seed, program) in (1..).zip(&random) {
        sheet.random.insert(seed, hash(&of(program)));
    }
    Ok(sheet)
}

/// Answers to parts of recordings: in figures, and each event, by name.
///
/// # Errors
/// A piece is missing, QEMU fails, or a part cannot be performed.
pub(super) fn ask_recorded(
    kernel: (&str, Paging),
    parts: &[Part],
    args: &ConformArgs,
    phases: &Phases,
) -> Result<(Recordings, BTreeMap<String, Answers>)> {
    let text: String = parts.iter().map(|part| part.program.text()).collect();
    let paging = kernel.1;
    let Asked { mut report, kernel, qemu } = perform(kernel, &text, args, phases)?;
    let mut recordings = Recordings { kernel, qemu, ..Recordings::default() };
    let mut all = BTreeMap::new();
    for part in parts {
        let name = &part.program.name;
        let answers = report.answers.remove(name).unwrap_or_default();
        let answers = without_own(&part.program, paging, answers);
        let mut counters = report.counters.remove(name).unwrap_or_default();
        counters.retain(|name, n| *n > 0 && COUNTERS.iter().any(|c| name.starts_with(c)));
        recordings.figures.insert(name.clone(), Figures::of(part, paging, &answers, counters));
        all.insert(name.clone(), answers);
    }
    Ok((recordings, all))
}
