//! Nanoseconds per run of the modelled guest: where the software cache hits, where a look-up of the
//! tables is needed, and at first touch. Run with `cargo run --release --example guest_speed`.

use nestwalk_mm::{GuestConfig, HostMemory, ModelledGuest, PagePolicy, pc_memory_map};
use nestwalk_tables::LONG4;
use nestwalk_types::{
    Batch, Control, GuestBatch, Gva, ProcessId, Run, RunFlags, SplitMix64, VcpuId,
};
use std::hint::black_box;
use std::time::Instant;

const BASE: u64 = 0x7000_0000_0000;

fn run(page: u64, flags: RunFlags) -> Run {
    let gva = Gva::new(BASE + (page << 12));
    let pc = Gva::new(0x40_0000);
    Run { gva, pc, lines: 1, count: 1, instructions: 1, vcpu: VcpuId(0), flags }
}

fn guest(policy: &str) -> ModelledGuest {
    let policy = PagePolicy::by_name(policy).unwrap_or_default();
    let config = GuestConfig { policy, ..GuestConfig::new(&LONG4, 8 << 30) };
    ModelledGuest::new(config).expect("a guest of 8 GiB")
}

/// Processes batches of `pages` and says how long a run took, in nanoseconds.
fn time(guest: &mut ModelledGuest, batches: &[Batch]) -> f64 {
    let mut out = GuestBatch::default();
    let started = Instant::now();
    let mut runs = 0;
    for batch in batches {
        guest.process(batch, &mut out).expect("enough memory");
        runs += black_box(&out).gpas.len();
    }
    started.elapsed().as_nanos() as f64 / runs as f64
}

fn batches(n: usize, mut page: impl FnMut() -> u64, flags: RunFlags) -> Vec<Batch> {
    let batch = |_| Batch {
        runs: (0..Batch::RUNS).map(|_| run(page(), flags)).collect(),
        controls: vec![],
    };
    (0..n).map(batch).collect()
}

fn main() {
    let store = RunFlags::STORE;
    for policy in ["4k", "thp", "1g"] {
        let mut g = guest(policy);
        let pages = 1u64 << 20; // 4 GiB
        let mut next = 0..pages;
        let touch = batches(128, || next.next().unwrap_or(0), store);
        let first = time(&mut g, &touch);
        let mut rng = SplitMix64::new(1);
        let hot = batches(64, || rng.below(256), store);
        time(&mut g, &hot);
        let hit = time(&mut g, &hot);
        let mut rng = SplitMix64::new(2);
        let mut at = 0;
        let some = batches(
            64,
            || {
                at = (at + 1 + rng.below(3)) % 2048;
                at
            },
            store,
        );
        time(&mut g, &some);
        let hit_2048 = time(&mut g, &some);
        let mut rng = SplitMix64::new(3);
        let cold = batches(64, || rng.below(pages), store);
        let miss = time(&mut g, &cold);
        println!(
            "{policy:>4}: hit {hit:5.1} ns, hit in 2,048 pages {hit_2048:5.1} ns, miss in 4 GiB \
             {miss:5.1} ns, sequential first touch {first:6.1} ns per run"
        );
    }
    let mut g = guest("4k");
    let mut out = GuestBatch::default();
    let started = Instant::now();
    for i in 0..128u64 {
        let (start, bytes) = (Gva::new(BASE + (i << 24)), 16 << 20);
        let control = Control::Populate { process: ProcessId(0), start, bytes };
        let batch = Batch { runs: vec![], controls: vec![(0, control)] };
        g.process(&batch, &mut out).expect("enough memory");
        black_box(&out);
    }
    let populate = started.elapsed().as_nanos() as f64 / f64::from(128 << 12);
    let control = |c| Batch { runs: vec![], controls: vec![(0, c)] };
    let started = Instant::now();
    let fork = control(Control::Fork { parent: ProcessId(0), child: ProcessId(1) });
    g.process_in_parts(&fork, &mut out, &mut |_| {}).expect("enough memory");
    let fork = started.elapsed().as_nanos() as f64 / f64::from(128 << 12);
    let started = Instant::now();
    let exit = control(Control::Exit { process: ProcessId(1) });
    g.process_in_parts(&exit, &mut out, &mut |_| {}).expect("enough memory");
    let exit_shared = started.elapsed().as_nanos() as f64 / f64::from(128 << 12);
    let started = Instant::now();
    let exit = control(Control::Exit { process: ProcessId(0) });
    g.process_in_parts(&exit, &mut out, &mut |_| {}).expect("enough memory");
    let exit = started.elapsed().as_nanos() as f64 / f64::from(128 << 12);
    println!(
        "per 4 KiB page: populate {populate:.1} ns, fork {fork:.1} ns, exit of the child \
         {exit_shared:.1} ns, exit of the parent {exit:.1} ns"
    );
    let slots = pc_memory_map(8 << 30);
    let host = HostMemory::new(32 << 30, &LONG4, PagePolicy::Base, 0.0, 1, &slots);
    let mut host = host.expect("a host of 32 GiB");
    let started = Instant::now();
    for i in 0..1u64 << 19 {
        black_box(host.ensure(nestwalk_types::Gpa::new(i << 12)).expect("in a slot"));
    }
    let ns = started.elapsed().as_nanos() as f64 / f64::from(1 << 19);
    println!("host: {ns:.1} ns per first touch");
}
