//! A host of 1 TiB whose free memory is fragmented: seconds until it is there, memory that this
//! process needs, and nanoseconds per allocation, by placement. Run with `cargo run --release -p
//! nestwalk-mm --example placement_scale`.

use nestwalk_mm::{
    Fragmentation, FreeBlocks, HostConfig, HostMemory, KERNEL_BYTES, PLACEMENTS, PagePolicy,
    PhysicalMemory, PlacementKind, Request,
};
use nestwalk_tables::LONG4;
use nestwalk_types::{Gpa, Hpa, PageSize, SplitMix64};
use std::hint::black_box;
use std::time::Instant;

const TIB: u64 = 1 << 40;

/// MiB of this process that are resident.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}

fn host(placement: PlacementKind, fragmentation: Fragmentation) {
    let started = Instant::now();
    let policy = PagePolicy::Thp;
    let config = HostConfig {
        bytes: TIB,
        mode: &LONG4,
        policy,
        placement,
        fragmentation,
        seed: 1,
        daemons: nestwalk_mm::DaemonConfig::default(),
        kernel_bytes: KERNEL_BYTES,
    };
    let slots = [(Gpa::new(0), TIB / 2)];
    let mut host = HostMemory::with_config(&config, &slots).expect("a host of 1 TiB");
    let ready = started.elapsed().as_secs_f64();
    // 64 GiB of first touches, all over the slot.
    let (mut r, n) = (SplitMix64::new(9), 1u64 << 15);
    let began = Instant::now();
    for _ in 0..n {
        black_box(host.ensure(Gpa::new(r.below(TIB / 2)))).expect("free memory");
    }
    let each = began.elapsed().as_nanos() as f64 / n as f64;
    println!(
        "  {:<8} ready in {ready:5.2} s, {:4} MiB resident; {each:5.0} ns per first touch",
        placement.name(),
        resident()
    );
}

/// Nanoseconds per page of `size` placed by the policy alone, in order, in memory of `bytes`.
fn place(kind: PlacementKind, bytes: u64, degree: f64, size: PageSize) -> f64 {
    let mut memory = PhysicalMemory::<Hpa>::new(&[(Hpa::new(0), bytes)], 0).expect("memory");
    memory.fragment(degree, 1).expect("a degree");
    let mut policy = kind.build::<Hpa>(PagePolicy::Thp, &LONG4);
    policy.attach(&mut memory);
    let n = 1u64 << if size == PageSize::SIZE_4K { 18 } else { 12 };
    let (vma_start, vma_end) = (0x7000_0000_0000, 0x7000_0000_0000 + n * size.bytes());
    let began = Instant::now();
    for i in 0..n {
        let page = vma_start + i * size.bytes();
        black_box(
            policy.place(&mut memory, &Request { page, size, vma_start, vma_end, copy: false }),
        );
    }
    began.elapsed().as_nanos() as f64 / n as f64
}

fn main() {
    let kinds = [PlacementKind::FirstFit, PlacementKind::Linux, PlacementKind::Ca];
    let aged = FreeBlocks::by_name("aged").map_or(0.5.into(), Fragmentation::Blocks);
    for (name, fragmentation) in [("half of the 2 MiB blocks", 0.5.into()), ("aged", aged)] {
        println!("1 TiB, fragmented: {name}");
        for kind in kinds {
            host(kind, fragmentation);
        }
    }
    println!("nanoseconds per page placed, half of the 2 MiB blocks fragmented");
    println!("  {:<16} {:>9} {:>9} {:>9}", "", "16 GiB", "128 GiB", "1 TiB");
    for (name, kind, _) in PLACEMENTS.iter().filter(|p| !p.1.has_region()) {
        // Those that set memory aside look at all of it once for each mapping.
        if matches!(kind, PlacementKind::Ideal | PlacementKind::Eager | PlacementKind::HugeTlb) {
            continue;
        }
        for size in [PageSize::SIZE_4K, PageSize::SIZE_2M] {
            let times = [16u64, 128, 1024].map(|gib| place(*kind, gib << 30, 0.5, size));
            let [a, b, c] = times.map(|t| format!("{t:.0}"));
            println!("  {:<16} {a:>9} {b:>9} {c:>9}", format!("{size} {name}"));
        }
    }
}
