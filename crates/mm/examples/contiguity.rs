//! How many ranges cover 99 % of four processes with 8 GiB each that touch their memory in turn, by
//! placement and by how memory was used before. Run with
//! `cargo run --release -p nestwalk-mm --example contiguity`.

#[path = "../tests/common/aged.rs"]
mod aged;

use aged::{Aged, memory, populate};
use nestwalk_mm::{PLACEMENTS, PagePolicy};
use std::time::Instant;

const STATES: &[Aged] = &[
    Aged { name: "nothing in use", neighbours: None, degree: 0.0 },
    Aged {
        name: "neighbours of 16 to 512 MiB, 0.5 to 4 GiB free between them",
        neighbours: Some(((16, 512), (512, 4096))),
        degree: 0.0,
    },
    Aged {
        name: "the same, and 1 in 1000 blocks of 2 MiB with frames in use",
        neighbours: Some(((16, 512), (512, 4096))),
        degree: 0.001,
    },
    Aged {
        name: "neighbours of 4 to 64 MiB, 4 to 256 MiB free between them, 1 % of 2 MiB blocks",
        neighbours: Some(((4, 64), (4, 256))),
        degree: 0.01,
    },
];

fn main() {
    for aged in STATES {
        println!("{}", aged.name);
        println!(
            "  {:<12} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9} {:>9} {:>9} {:>6}",
            "", "99 %", "100 %", "offsets", "2 MiB", "bloat", "target", "again", "else", "s"
        );
        for pages in ["4k", "thp"] {
            for (name, kind, _) in PLACEMENTS.iter().filter(|p| !p.1.has_region()) {
                let started = Instant::now();
                let mut m = memory(96 << 30, aged, 3);
                let policy = PagePolicy::by_name(pages).unwrap_or_default();
                let turn = if pages == "4k" { 16 } else { 1 };
                let o = populate(&mut m, (*kind, policy), (4, 8192, turn));
                let (target, again, elsewhere) = o.placed;
                println!(
                    "  {:<12} {:>9} {:>9} {:>9} {:>7} {:>7} {:>9} {:>9} {:>9} {:>6.1}",
                    format!("{pages}@{name}"),
                    o.ranges.0,
                    o.ranges.1,
                    o.offsets,
                    o.leaves_2m,
                    o.bloat,
                    target,
                    again,
                    elsewhere,
                    started.elapsed().as_secs_f64()
                );
            }
        }
    }
}
