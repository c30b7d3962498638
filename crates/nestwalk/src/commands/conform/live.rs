//! The real KVM is asked, under QEMU.

use crate::commands::setup::built_in;
use crate::progress::{Phase, Phases};
use anyhow::{Result, bail};
use nestwalk_capture::{Cache, KvmKernel, build_vmm, qemu_version, run_under_kvm};
use nestwalk_conform::program::Program;
use nestwalk_conform::sheet::{Sheet, answered, hash};
use nestwalk_conform::{random, trace};
use std::path::Path;

/// Answers to these scripts and to random ones of seeds 1 to `seeds`.
///
/// # Errors
/// A piece is missing, QEMU fails, or a script cannot be performed.
pub(super) fn ask(
    version: &str,
    programs: &[Program],
    seeds: u64,
    source: Option<&Path>,
    phases: &Phases,
) -> Result<Sheet> {
    let qemu = Path::new("qemu-system-x86_64");
    let (major, minor) = qemu_version(qemu)?;
    let cache = Cache::locate()?;
    let say = &mut |step: nestwalk_capture::Step<'_>| phases.step(step, &mut crate::tell::say);
    let source = source.map_or_else(built_in, Path::to_path_buf);
    let vmm = build_vmm(&cache, &source, say)?;
    let kernel = KvmKernel::of(&cache, version, say)?;
    let random: Vec<Program> = (1..=seeds).map(random::program).collect::<Result<_, _>>()?;
    let text: String = programs.iter().chain(&random).map(Program::text).collect();
    phases.begin(Phase::new("running the real KVM"));
    let out = run_under_kvm(&cache, qemu, &kernel, (&vmm, &text), false)?;
    let report = trace::report(&String::from_utf8_lossy(&out));
    if let Some((name, why)) = report.failed.first() {
        bail!("{name}: the real KVM could not perform it: {why}");
    }
    if !report.complete {
        bail!("the real KVM's answers end early, after {} scripts", report.answers.len());
    }
    let mut sheet =
        Sheet { kernel: kernel.release, qemu: format!("{major}.{minor}"), ..Sheet::default() };
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
