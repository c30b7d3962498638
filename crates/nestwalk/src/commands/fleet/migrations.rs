//! The table of VMs that moved.

use crate::screen::Screen;
use nestwalk_lab::{FleetOutcome, MigrationProgress};
use nestwalk_report::{Align, Table, bytes, count};

/// A row for each VM that was to move.
pub fn table(outcome: &FleetOutcome, screen: Screen) -> String {
    let right = Align::Right;
    let mut table = Table::new()
        .column("migration", Align::Left)
        .column("came to", Align::Left)
        .column("mode", Align::Left)
        .column("tracking", Align::Left)
        .column("rounds", right)
        .column("first\nround", right)
        .column("last\nround", right)
        .column("sent", right)
        .column("total, ms", right)
        .column("down, ms", right)
        .column("logging\nexits", right)
        .column("network\nfaults", right)
        .column("waited, ms", right);
    for vm in &outcome.vms {
        let Some(m) = &vm.migration else { continue };
        let progress = match m.progress {
            MigrationProgress::Waiting => "not begun",
            MigrationProgress::Unfinished => "VM ended before",
            MigrationProgress::Cancelled => "cancelled",
            MigrationProgress::Completed if m.converged || m.rounds.is_empty() => "completed",
            MigrationProgress::Completed => "completed, forced",
        };
        let pages = |round: Option<&nestwalk_lab::MigrationRound>| {
            round.map_or_else(|| "-".into(), |r| bytes(r.pages << 12))
        };
        let of_faults = |text: String| if m.network_faults > 0 { text } else { "-".into() };
        table.row(vec![
            vm.name.clone(),
            progress.into(),
            m.mode.into(),
            if m.tracking.is_empty() { "-".into() } else { m.tracking.into() },
            if m.rounds.is_empty() { "-".into() } else { count(m.rounds.len() as u64) },
            pages(m.rounds.first()),
            pages(m.rounds.get(1..).and_then(<[_]>::last)),
            bytes(m.bytes_sent),
            format!("{:.3}", m.total_ns / 1e6),
            format!("{:.3}", m.down_ns / 1e6),
            count(m.write_protected + m.pml_full),
            of_faults(count(m.network_faults)),
            of_faults(format!("{:.3}", m.waited_ns / 1e6)),
        ]);
    }
    table.drop_columns_from(0, "-");
    format!("\n{}", table.render_within(screen.columns()))
}
