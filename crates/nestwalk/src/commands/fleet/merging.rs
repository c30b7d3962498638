//! What same-page merging came to.

use crate::screen::Screen;
use nestwalk_lab::{FleetOutcome, MergingOutcome};
use nestwalk_report::{Align, Table, bytes, count};

/// The host's line.
pub fn line(m: &MergingOutcome) -> String {
    format!(
        "merging  {} pages looked at, all of them {} times; at the end {} frames are shared, which saves {}\n",
        count(m.pages_scanned),
        count(m.full_scans),
        count(m.frames),
        bytes(m.saved_bytes)
    )
}

/// A row for each VM.
pub fn table(outcome: &FleetOutcome, screen: Screen) -> String {
    let right = Align::Right;
    let mut table = Table::new()
        .column("merging", Align::Left)
        .column("pages\nmerged", right)
        .column("of these\nstored to", right)
        .column("merged\nat the end", right);
    for vm in &outcome.vms {
        let Some(m) = &vm.merging else { continue };
        table.row(vec![vm.name.clone(), count(m.merges), count(m.broken), bytes(m.merged << 12)]);
    }
    format!("\n{}", table.render_within(screen.columns()))
}
