//! How much each price of software decides: the overhead of each machine with the price halved and
//! doubled.

use crate::show::headings;
use nestwalk_hw::Profile;
use nestwalk_report::{Align, Table};
use nestwalk_sim::measure::cost::vmm_items;
use nestwalk_sim::report::results::MachineResult;
use std::collections::BTreeSet;

/// A row per price that some machine paid, a column per machine that paid any: percentage points of
/// total overhead that halving takes off and doubling adds.
pub fn table(machines: &[MachineResult], profile: &Profile) -> Option<Table> {
    let machines: Vec<&MachineResult> =
        machines.iter().filter(|m| !m.vmm_work.is_empty()).collect();
    let keys: BTreeSet<&str> = machines.iter().flat_map(|m| m.vmm_work.keys().copied()).collect();
    if keys.is_empty() {
        return None;
    }
    let mut table = headings::table(&headings::SENSITIVITY);
    for machine in &machines {
        table = table.column(&machine.name, Align::Right);
    }
    for key in keys {
        let mut row = vec![key.to_owned()];
        row.extend(machines.iter().map(|machine| {
            let mut paid = vmm_items(machine).filter(|i| i.0.key == key && i.1 > 0);
            let Some((price, times)) = paid.next() else { return "-".into() };
            let cycles = profile.core.clock().cycles(times as f64 * price.ns(&profile.software));
            let percent = 100.0 * cycles / machine.ideal_cycles.max(1.0);
            format!("{:+.1} / {:+.1}", -percent / 2.0, percent)
        }));
        table.row(row);
    }
    let mut row = vec!["as it is, %".to_owned()];
    row.extend(machines.iter().map(|m| format!("{:.1}", m.overhead_percent)));
    table.row(row);
    Some(table)
}
