//! Walks with nothing cached: their number and order are known from the papers and the manuals.

use crate::common;

use common::{Script, approve, bare_profile, machine_with, run};
use nestwalk_sim::Dimension;
use nestwalk_sim::hardware::Step;
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::PageSize;

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
const S1G: PageSize = PageSize::SIZE_1G;

fn cold(
    scheme: &str,
    (guest, host): (&'static Mode, &'static Mode),
    size: PageSize,
    host_pages: &str,
) -> Vec<Step> {
    let mut script = Script::new(guest);
    script.map_used(0x4000_0000, 0x4000_0000, size);
    script.load(0x4000_0000);
    let mut m = machine_with(scheme, guest, host, host_pages, &bare_profile(), 1);
    m.run(&script.take()).unwrap();
    approve(m.as_ref());
    m.watch(&run(0x4000_0000, false)).unwrap()
}

#[test]
fn cold_walks_have_the_published_lengths() {
    let long = (&LONG4, &LONG4);
    let five = (&LONG5, &LONG5);
    for (scheme, modes, size, host_pages, references) in [
        ("native", long, S4K, "", 4),
        ("native", long, S2M, "", 3),
        ("native", long, S1G, "", 2),
        ("native", five, S4K, "", 5),
        ("native", (&PAE, &LONG4), S4K, "", 2),
        ("native", (&LEGACY32, &LONG4), S4K, "", 2),
        ("shadow", long, S4K, "4k", 4),
        ("shadow", five, S4K, "4k", 5),
        ("nested", long, S4K, "4k", 24),
        ("nested", long, S4K, "2m", 19),
        ("nested", long, S2M, "4k", 19),
        ("nested", long, S2M, "2m", 15),
        ("nested", long, S1G, "1g", 8),
        ("nested", five, S4K, "4k", 35),
        ("nested", (&LONG5, &LONG4), S4K, "4k", 29),
        ("nested", (&LEGACY32, &LONG4), S4K, "4k", 14),
        ("xen-pv", long, S4K, "4k", 4),
        ("xen-pv", long, S2M, "2m", 3),
        ("xen-pv", long, S2M, "4k", 4),
        ("xen-pv", long, S1G, "4k", 4),
        ("xen-pv", five, S4K, "4k", 5),
        // The handler loads 4 entries; the hypervisor translates their addresses, and the page's.
        ("soft-tlb", long, S4K, "4k", 9),
        ("soft-tlb", long, S2M, "2m", 7),
        ("soft-tlb", five, S4K, "4k", 11),
        ("soft-tlb", (&LEGACY32, &LONG4), S4K, "4k", 5),
        ("sie", long, S4K, "4k", 14),
        ("sie", long, S2M, "2m", 11),
        ("sie", (&LEGACY32, &LONG4), S4K, "4k", 8),
        ("nested", (&LEGACY32, &LEGACY32), S4K, "4k", 8),
    ] {
        let steps = cold(scheme, modes, size, host_pages);
        assert_eq!(
            steps.len(),
            references,
            "{scheme} {} on {} with {size} on {host_pages}",
            modes.0.name,
            modes.1.name
        );
    }
}

/// The order of the 24, with the names that simulators of the field give them: GiHj is host level j
/// (from the root, 1 to 4) on the way to guest level i, Gi the guest's entry, UDH the data page's.
#[test]
fn the_24_references_come_in_the_published_order() {
    let names: Vec<String> = cold("nested", (&LONG4, &LONG4), S4K, "4k")
        .iter()
        .map(|s| match (s.dimension, s.on_behalf) {
            (Dimension::Guest, _) => format!("G{}", 5 - s.level),
            (_, 0) => format!("UDH{}", 5 - s.level),
            (_, guest) => format!("G{}H{}", 5 - guest, 5 - s.level),
        })
        .collect();
    let published = "G1H1 G1H2 G1H3 G1H4 G1 G2H1 G2H2 G2H3 G2H4 G2 G3H1 G3H2 G3H3 G3H4 G3 \
                     G4H1 G4H2 G4H3 G4H4 G4 UDH1 UDH2 UDH3 UDH4";
    assert_eq!(names.join(" "), published);
}

/// A reference is made where the entry is: eight entries to a line, 512 to a page.
#[test]
fn references_are_at_the_entries_addresses() {
    let steps = cold("native", (&LONG4, &LONG4), S4K, "");
    let indexes: Vec<u64> = steps.iter().map(|s| s.at.value() >> 3 & 511).collect();
    assert_eq!(indexes, [0, 1, 0, 0]);
    let pages: Vec<u64> = steps.iter().map(|s| s.at.value() >> 12).collect();
    assert_eq!(pages, [0x1000, 0x1001, 0x1002, 0x1003]);
}
