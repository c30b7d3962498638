//! `govern`: a policy watches a VM, live or recorded, and changes its paging mode.

pub mod show;
mod train;

use crate::args::GovernArgs;
use crate::signals::stop_on_signals;
use anyhow::{Context, Result, bail};
use nestwalk_host::{
    CustomEvents, End, Event, Governor, HostPerf, LiveOptions, LiveVm, ReplayVm, Roots, Summary,
    SystemClock, TwinVm, Vm, find_vms, parse_raw,
};
use nestwalk_policy::{
    IntervalCost, Mode, Plan, PlannedModes, Policy, PolicySpec, Row, Sample, SampleReader,
    SampleWriter, hindsight,
};
use show::Screen;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter};
use std::path::Path;

/// `nestwalk govern`.
///
/// # Errors
/// Something is missing, a recording is wrong, or the VM is left in a mode that is not known.
pub fn govern(args: &GovernArgs) -> Result<()> {
    args.format.refuse_rows("govern prints events, and --record writes samples as CSV")?;
    if args.list {
        return show::catalogue();
    }
    if !args.train.is_empty() {
        return train::train(args);
    }
    let spec: PolicySpec = args.policy.parse().context("--policy")?;
    match args.replay.as_slice() {
        [] => live(args, &spec),
        [one] => replay(args, &spec, one),
        [one, other, ..] => twins(args, &spec, one, other),
    }
}

fn build(spec: &PolicySpec, mode: Mode) -> Result<Box<dyn Policy>> {
    spec.build(mode, &|path| fs::read_to_string(path)).context("--policy")
}

/// A file of samples, ready to be read.
fn open(path: &Path) -> Result<SampleReader<BufReader<File>>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    SampleReader::new(BufReader::new(file)).with_context(|| path.display().to_string())
}

/// All samples of a file.
fn load(path: &Path) -> Result<Vec<Row>> {
    open(path)?.collect::<Result<_, _>>().with_context(|| path.display().to_string())
}

fn samples(path: &Path) -> Result<Vec<Sample>> {
    Ok(load(path)?.iter().map(|row| row.sample).collect())
}

/// Governs, shows and records.
fn run(
    args: &GovernArgs,
    spec: &PolicySpec,
    vm: &mut dyn Vm,
    policy: &mut dyn Policy,
    heading: &str,
) -> Result<Summary> {
    let mut record = match &args.record {
        None => None,
        Some(path) => {
            let file = File::create(path).with_context(|| path.display().to_string())?;
            let comments = [format!("nestwalk govern: {heading}"), format!("policy: {spec}")];
            Some(SampleWriter::new(BufWriter::new(file), &comments)?)
        }
    };
    let mut screen = Screen::new(args.format, args.quiet);
    screen.heading(&format!("{heading}, {spec}"))?;
    let governor = Governor { dry_run: args.dry_run, ..Governor::default() };
    governor.run(vm, policy, |event| -> Result<()> {
        if let (Event::Decided { sample, .. }, Some(writer)) = (event, &mut record) {
            writer.write(sample).context("--record")?;
        }
        screen.event(event)
    })
}

/// An error if something went wrong for good.
fn verdict(summary: &Summary) -> Result<()> {
    if summary.is_good() {
        return Ok(());
    }
    let left = match summary.mode {
        Some(mode) => format!("the VM is left in {mode} paging"),
        None => "the mode in which the VM is left is not known".into(),
    };
    match &summary.end {
        End::Failed(why) => bail!("{why}; {left}"),
        _ => bail!("{left}"),
    }
}

fn live(args: &GovernArgs, spec: &PolicySpec) -> Result<()> {
    let mut roots = Roots::default();
    for (root, given) in [
        (&mut roots.proc, &args.proc),
        (&mut roots.sys, &args.sys),
        (&mut roots.kvm, &args.debugfs),
    ] {
        root.clone_from(given.as_ref().unwrap_or(&root.clone()));
    }
    let pid = match args.pid {
        Some(pid) => pid,
        None => only_vm(&roots)?,
    };
    let interval_ns = duration(&args.interval).context("--interval")?;
    let raw = |text: &Option<String>, option: &'static str| {
        let parsed = text.as_deref().map_or(Ok(Vec::new()), parse_raw);
        parsed.map_err(anyhow::Error::msg).context(option)
    };
    let custom = CustomEvents {
        walk_cycles: raw(&args.walk_events, "--walk-events")?,
        misses: raw(&args.miss_events, "--miss-events")?,
        nested_walks: args.nested_walks,
        cycles_per_walk: args.cycles_per_walk,
    };
    let options = LiveOptions {
        interval_ns,
        settle_ns: interval_ns,
        pms: args.pms.clone(),
        dry_run: args.dry_run,
        needs: spec.info.needs.to_vec(),
        custom,
        guest_faults: args.guest_faults.clone(),
    };
    let clock = Box::new(SystemClock::new(stop_on_signals()));
    let (mut vm, missing) =
        LiveVm::open(&roots, pid, Box::new(HostPerf), clock, options).context("govern")?;
    for missing in &missing {
        crate::tell::tell(format_args!("nestwalk: without {missing}"));
    }
    let heading = format!(
        "process {pid}, {} vCPUs, every {}, mode by {}",
        vm.vcpus(),
        args.interval,
        vm.actuator()
    );
    let mut policy = build(spec, vm.last_mode())?;
    verdict(&run(args, spec, &mut vm, policy.as_mut(), &heading)?)
}

/// The process to govern if none is named.
fn only_vm(roots: &Roots) -> Result<u32> {
    let found: Vec<u32> = find_vms(&roots.proc)?.iter().map(|p| p.pid).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => bail!(
            "no process here has threads named `CPU n/KVM`, as QEMU's with KVM have (with \
             debug-threads=on); name one, or replay a recording with --replay"
        ),
        several => bail!("several VMs run here: name one of {several:?}"),
    }
}

/// `1s`, `0.5s`, `250ms`, in nanoseconds.
fn duration(text: &str) -> Result<u64> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e6),
        None => (text.strip_suffix('s').unwrap_or(text), 1e9),
    };
    let ns = number.parse::<f64>().map_or(f64::NAN, |n| n * unit);
    if !(1e7..=3.6e12).contains(&ns) {
        bail!("`{text}` is no interval; 10ms to 3600s is");
    }
    Ok(ns as u64)
}

fn replay(args: &GovernArgs, spec: &PolicySpec, path: &Path) -> Result<()> {
    let name = || path.display().to_string();
    let mut vm = ReplayVm::new(open(path)?).map_err(anyhow::Error::msg).with_context(name)?;
    let mode = vm.mode().map_err(anyhow::Error::msg)?;
    let mut policy = build(spec, mode)?;
    let summary = run(args, spec, &mut vm, policy.as_mut(), &format!("replay of {}", name()))?;
    verdict(&summary).with_context(name)
}

/// Two recordings of the same work: switches are obeyed, and the result has a bound.
fn twins(args: &GovernArgs, spec: &PolicySpec, one: &Path, other: &Path) -> Result<()> {
    let start = args.start.map_or(Mode::Shadow, Into::into);
    let (a, b) = (samples(one)?, samples(other)?);
    let mut vm = TwinVm::new(a, b, start).map_err(anyhow::Error::msg).context("--replay")?;
    let cycles = |mode| vm.of(mode).iter().map(|s| s.total_cycles() as f64).collect::<Vec<_>>();
    let statics = [cycles(Mode::Shadow), cycles(Mode::Nested)];
    let plan = best_plan(&statics)?;
    let mut policy: Box<dyn Policy> = if spec.info.name == "hindsight" {
        let first = plan.modes.first().copied().unwrap_or(start);
        vm.switch(first);
        Box::new(PlannedModes::new(first, plan.modes.clone()))
    } else {
        build(spec, start)?
    };
    let heading = format!("replay of {} and {}", one.display(), other.display());
    let mut counted = Counted { vm: &mut vm, cycles: 0.0 };
    let summary = run(args, spec, &mut counted, policy.as_mut(), &heading)?;
    let total = counted.cycles;
    let [shadow, nested] = statics.map(|s| s.iter().sum::<f64>());
    show::compared(args.format, total, shadow, nested, &plan)?;
    verdict(&summary)
}

fn best_plan([shadow, nested]: &[Vec<f64>; 2]) -> Result<Plan> {
    let interval = |(&shadow, &nested): (&f64, &f64)| IntervalCost {
        shadow,
        nested,
        to_shadow: 0.0,
        to_nested: 0.0,
    };
    let intervals: Vec<IntervalCost> = shadow.iter().zip(nested).map(interval).collect();
    Ok(hindsight(&intervals, None)?)
}

/// A VM whose cycles are added up.
struct Counted<'a> {
    vm: &'a mut TwinVm,
    cycles: f64,
}

impl Vm for Counted<'_> {
    fn next(&mut self) -> Result<Sample, nestwalk_host::VmError> {
        let sample = self.vm.next()?;
        self.cycles += sample.total_cycles() as f64;
        Ok(sample)
    }

    fn mode(&mut self) -> Result<Mode, String> {
        self.vm.mode()
    }

    fn switch(&mut self, to: Mode) -> nestwalk_host::SwitchResult {
        self.vm.switch(to)
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn intervals_have_units_and_bounds() {
        assert_eq!(duration("1s").unwrap(), 1_000_000_000);
        assert_eq!(duration("0.25").unwrap(), 250_000_000);
        assert_eq!(duration("250ms").unwrap(), 250_000_000);
        for bad in ["", "s", "9ms", "-1s", "NaN", "4000s", "1m", "inf"] {
            assert!(duration(bad).unwrap_err().to_string().contains("10ms to 3600s"), "{bad}");
        }
    }
}
