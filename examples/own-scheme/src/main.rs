//! A scheme of one's own beside all others, in one run for each source, with the referee watching.

mod next_page;

use nestwalk_lab::{Lab, Result, Settings, sample};

/// What drives the machines: page after page, at random, and a real guest that was recorded.
const SOURCES: [&str; 3] = ["stride", "chase", "storm"];

fn main() -> Result<()> {
    let lab = Lab::new().with_scheme(&next_page::NEXT_PAGE)?;
    for source in SOURCES {
        let recorded = sample(source).is_some();
        // Segments of the guest need a kernel that keeps a primary region, which no recorded one does.
        let schemes = lab.schemes().filter(|scheme| !recorded || !scheme.facts.primary_region);
        let machines: Vec<&str> = schemes.map(|scheme| scheme.name).collect();
        // Of all that can be set, what is left out has its default. `compare` fails if a machine
        // cannot go on or the referee finds anything.
        let session = lab.compare(&Settings {
            sources: vec![source.into()],
            machines: machines.join(","),
            footprint: (!recorded).then_some(64 << 20),
            accesses: Some(if recorded { 2_000_000 } else { 200_000 }),
            verify: true,
            ..Settings::default()
        })?;
        println!("{}: {}", session.info.name, session.info.description);
        println!(
            "{:36} {:>9} {:>10} {:>9} {:>9} {:>10} {:>12}",
            "machine", "overhead", "L2 misses", "own hits", "refs/walk", "background", "refereed"
        );
        let outcome = &session.outcome;
        for (result, counters) in outcome.machines.iter().zip(&outcome.counters) {
            println!(
                "{:36} {:7.1} % {:10} {:9} {:9.2} {:10} {:12}",
                result.name,
                result.overhead_percent,
                result.l2_tlb_misses,
                counters.assist_hits,
                result.refs_per_walk,
                counters.background.iter().sum::<u64>(),
                result.referee.as_ref().map_or(0, |verdict| verdict.checked),
            );
        }
        println!();
    }
    Ok(())
}
