//! All that is measured of a machine, in order.

use crate::estimate::{Figure, Geometry, geometry};
use crate::kernel::{Kernel, kernel};
use crate::pattern::Clock;
use crate::processor::Processor;
use crate::real::Machine;
use crate::walks::{Walks, walks};
use nestwalk_timing::{Pages, pin, processors};
use serde::Serialize;
use std::io;

/// How long it may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// Half a minute.
    Quick,
    /// A few minutes.
    Full,
}

impl Effort {
    /// How often a pattern is timed.
    const fn rounds(self) -> u32 {
        match self {
            Self::Quick => 12,
            Self::Full => 60,
        }
    }
}

/// What was measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Survey {
    /// What it says of itself.
    pub processor: Processor,
    /// Megahertz while it was measured: from a chain of multiplications.
    pub mhz: f64,
    /// TLBs for pages of 4 KiB.
    pub small: Geometry,
    /// Cycles of a load from one page after the other of a single page of 2 MiB.
    pub within_large: Within,
    /// TLBs for pages of 2 MiB.
    pub large: Figure<Geometry>,
    /// What walks cost.
    pub walks: Walks,
    /// What the kernel's part costs.
    pub kernel: Kernel,
}

/// Loads from all the 4 KiB of one large page.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Within {
    /// Cycles of a load.
    pub cycles: f64,
    /// What follows of the pages behind it.
    pub behind: Figure<&'static str>,
}

/// Measures this machine. `step` is told what is done next, and `done` how many timings were made.
///
/// # Errors
/// The kernel has no addresses for it, or its thread cannot be kept on one processor.
pub fn survey(
    effort: Effort,
    mut step: impl FnMut(&'static str),
    done: Box<dyn FnMut(u64)>,
) -> io::Result<Survey> {
    let all = processors()?;
    // The last one: what the kernel does for devices is mostly on the first.
    pin(&all[all.len().saturating_sub(1)..])?;
    step("length of a cycle");
    let mut machine = Machine::new(effort.rounds(), done)?;
    step("TLBs for pages of 4 KiB");
    let small = geometry(&mut machine, Pages::Small);
    step("pages behind a page of 2 MiB");
    let within_large = within(&mut machine, &small);
    let large = if within_large.behind.get() == Some(&"2 MiB") {
        step("TLBs for pages of 2 MiB");
        Figure::known(geometry(&mut machine, Pages::Large), "patterns in pages of 2 MiB")
    } else {
        Figure::unknown(format!(
            "a page of 2 MiB is held as smaller ones: {}",
            within_large.behind.why()
        ))
    };
    step("walks");
    let walks = walks(&mut machine, &small, effort);
    step("faults, shootdowns and switches");
    let kernel = kernel(&all);
    pin(&all)?;
    let mhz = 1e3 / machine.cycle_ns();
    Ok(Survey { processor: Processor::this(), mhz, small, within_large, large, walks, kernel })
}

/// One page of 2 MiB, all of whose pieces are loaded from: if a TLB holds it whole, every load hits.
fn within(machine: &mut Machine, small: &Geometry) -> Within {
    let pieces = machine.pieces();
    let cycles = pieces.ns / machine.cycle_ns();
    let hit = small.l2_hit_cycles.get().copied().unwrap_or(0.0);
    let told = format!(
        "a load in turn from each 4 KiB of one page takes {cycles:.1} cycles, a first-level hit {:.1}",
        small.load_cycles
    );
    let behind = if hit <= 0.0 {
        Figure::unknown("what a first-level miss costs is not known")
    } else if cycles < small.load_cycles + 0.25 * hit {
        Figure::known("2 MiB", told)
    } else if cycles > small.load_cycles + 0.75 * hit {
        Figure::known("4 KiB", told)
    } else {
        Figure::unknown(format!("between both: {told}"))
    };
    Within { cycles, behind }
}
