//! What guests swapped themselves, and the switches of those that change their paging mode.

use crate::screen::Screen;
use nestwalk_lab::FleetOutcome;
use nestwalk_report::{Align, Table, count};

/// A row for each VM whose guest swaps; empty if none does.
pub fn swapping(outcome: &FleetOutcome, screen: Screen) -> String {
    let right = Align::Right;
    let mut table = Table::new()
        .column("guest swaps", Align::Left)
        .column("by", Align::Left)
        .column("pages\nswapped", right)
        .column("written", right)
        .column("came\nback", right)
        .column("waited,\nms", right)
        .column("given by\nballoon", right)
        .column("read by host\nto be swapped", right);
    let mut any = false;
    for vm in &outcome.vms {
        let Some(guest) = &vm.guest_swap else { continue };
        any = true;
        table.row(vec![
            vm.name.clone(),
            guest.policy.into(),
            count(guest.taken_back),
            count(guest.written),
            count(guest.swapped_in),
            format!("{:.1}", guest.waited_ns / 1e6),
            count(vm.swap.ballooned),
            count(vm.swap.double_paged),
        ]);
    }
    if any { format!("\n{}", table.render_within(screen.columns())) } else { String::new() }
}

/// A row for each VM whose paging mode a policy chooses; empty if there is none.
pub fn switching(outcome: &FleetOutcome, screen: Screen) -> String {
    let right = Align::Right;
    let mut table = Table::new()
        .column("paging mode", Align::Left)
        .column("machine", Align::Left)
        .column("begins", Align::Left)
        .column("samples", right)
        .column("switches", right)
        .column("shadow, %\nof time", right)
        .column("nested, %\nof time", right);
    let mut any = false;
    for vm in &outcome.vms {
        let Some(modes) = &vm.together.switching else { continue };
        any = true;
        table.row(vec![
            vm.name.clone(),
            vm.together.name.clone(),
            modes.start.to_string(),
            count(modes.samples),
            count(modes.switches.len() as u64),
            format!("{:.1}", modes.shadow_percent),
            format!("{:.1}", modes.nested_percent),
        ]);
    }
    if any { format!("\n{}", table.render_within(screen.columns())) } else { String::new() }
}
